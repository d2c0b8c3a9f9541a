//! The attachment manager: makes the interfaces that the group file names,
//! hands their queues out, and follows what happens to them.
#![allow(clippy::disallowed_methods)]

use std::sync::{Arc, Mutex};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::{
    LanQueue, PacketStatistics,
    links::LinkTable,
    machine::{AttachmentSpec, AttachmentState, Reason},
    netlink::{Interfaces, Monitor, NetlinkError},
    worker::{Attachment, DropSource, Worker, lock},
};
use crate::topology::PortIndex;

/// Events that may wait to be taken.
const EVENT_QUEUE_LENGTH: usize = 64;

/// Owns every attachment of this appliance. Its work is done by a task; it
/// has to be made and used within a tokio runtime, in the network namespace
/// of the interfaces.
pub struct AttachmentManager {
    events: mpsc::Receiver<AttachmentEvent>,
    status: watch::Receiver<Vec<AttachmentStatus>>,
    drops: Arc<Mutex<Vec<DropSource>>>,
    interfaces: Interfaces,
    shutdown: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl AttachmentManager {
    /// Starts to set up `specs`. `appliance` is this appliance's name: with
    /// the interfaces' names it makes MAC addresses that stay the same over
    /// restarts and differ between appliances.
    pub async fn new(specs: Vec<AttachmentSpec>, appliance: &str) -> Result<Self, ManagerError> {
        let (interfaces, monitor) = Monitor::open().map_err(ManagerError::Netlink)?;
        let mut links = LinkTable::default();
        links.replace_all(interfaces.all().await.map_err(ManagerError::Netlink)?);
        let (event_sender, events) = mpsc::channel(EVENT_QUEUE_LENGTH);
        let attachments: Vec<_> = specs.into_iter().map(Attachment::new).collect();
        let (status_sender, status) =
            watch::channel(attachments.iter().map(Attachment::status).collect());
        let (shutdown, stop) = oneshot::channel();
        let drops = Arc::new(Mutex::new(Vec::new()));
        let worker = Worker {
            interfaces: interfaces.clone(),
            monitor,
            links,
            attachments,
            appliance: appliance.to_owned(),
            events: event_sender,
            status: status_sender,
            drops: Arc::clone(&drops),
        };
        let task = tokio::spawn(worker.run(stop));
        Ok(Self { events, status, drops, interfaces, shutdown: Some(shutdown), task })
    }

    /// Waits for the next event. Cancel-safe. Never ends while the manager
    /// runs; `None` if its task is gone.
    pub async fn next_event(&mut self) -> Option<AttachmentEvent> {
        self.events.recv().await
    }

    /// How every attachment is, in the order of the specs.
    pub fn status(&self) -> Vec<AttachmentStatus> {
        self.status.borrow().clone()
    }

    /// The same, with every change of it.
    pub fn watch_status(&self) -> watch::Receiver<Vec<AttachmentStatus>> {
        self.status.clone()
    }

    /// What the kernel dropped for us, per attachment that is handed out.
    pub async fn kernel_drops(&self) -> Vec<KernelDrops> {
        let mut drops = Vec::new();
        let mut taps = Vec::new();
        for source in lock(&self.drops).iter_mut() {
            let packet_socket = source.sockets.iter_mut().map(PacketStatistics::drops).sum();
            drops.push(KernelDrops { port: source.port, packet_socket, tap_transmit: 0 });
            taps.push(source.tap);
        }
        for (drops, tap) in drops.iter_mut().zip(taps) {
            let Some(index) = tap else { continue };
            if let Ok(Some(count)) = self.interfaces.transmit_drops(index).await {
                drops.tap_transmit = count;
            }
        }
        drops
    }

    /// Removes what was made and ends. Queues that are still held are dead then.
    pub async fn close(mut self) {
        self.events.close();
        if let Some(shutdown) = self.shutdown.take() {
            let _ = shutdown.send(());
        }
        let _ = (&mut self.task).await;
    }
}

impl Drop for AttachmentManager {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a user of the LAN has to act on.
#[derive(Debug)]
pub enum AttachmentEvent {
    /// The attachment works: these queues replace any of its old ones.
    Up {
        /// Which one.
        port: PortIndex,
        /// One per data thread, or fewer (a plain TAP has one).
        queues: Vec<LanQueue>,
        /// The TAP's or NIC's name.
        interface: String,
        /// Bytes.
        mtu: u32,
        /// Set where the interface is there, but cut off.
        obstacle: Option<Reason>,
    },
    /// Its queues are dead: drop them.
    Down {
        /// Which one.
        port: PortIndex,
        /// Why.
        reason: Reason,
    },
    /// The queues stay good; this changed.
    Changed {
        /// Which one.
        port: PortIndex,
        /// Bytes.
        mtu: u32,
        /// Set while no frames can cross.
        obstacle: Option<Reason>,
    },
}

/// How one attachment is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttachmentStatus {
    /// Which one.
    pub port: PortIndex,
    /// `bridge`, `tap` or `nic`.
    pub kind: &'static str,
    /// The TAP's or NIC's name.
    pub interface: String,
    /// The bridge's name.
    pub bridge: Option<String>,
    /// How it is.
    pub state: AttachmentState,
    /// Why it is not up.
    pub reason: Option<Reason>,
    /// Bytes, once it is set up.
    pub mtu: Option<u32>,
    /// Whether superframes come and go.
    pub offload: bool,
    /// Queues that there are, once it is set up.
    pub queues: usize,
    /// What an operator should know, a sentence each.
    pub notes: Vec<String>,
}

/// What the kernel dropped because a data thread was not fast enough.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KernelDrops {
    /// Which attachment.
    pub port: PortIndex,
    /// Frames dropped at the packet sockets (PACKET_STATISTICS).
    pub packet_socket: u64,
    /// Frames dropped at the TAP's queue (tx_dropped), since it was made.
    pub tap_transmit: u64,
}

/// Why the manager could not start.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// The interfaces can't be read or watched.
    #[error("can't read the host's interfaces")]
    Netlink(#[source] NetlinkError),
}
