//! The task behind the attachment manager: takes every attachment's next
//! steps whenever an interface changes.
#![allow(clippy::disallowed_methods)]

use std::{
    collections::BTreeSet,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use super::{
    AttachmentEvent, AttachmentStatus, LanQueue, PacketStatistics,
    links::LinkTable,
    machine::{
        AttachmentKind, AttachmentSpec, AttachmentState, Condition, Made, Reason, Step, next_step,
    },
    netlink::{Interfaces, Monitor, Notice},
    setup::{self, join_bridge, restore_bridge},
};
use crate::topology::PortIndex;

/// Every interface is looked at again this often, whatever was notified.
const RESYNC_INTERVAL: Duration = Duration::from_secs(10);

/// What failed is tried again after this long.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Steps that one attachment may take in a row before the others' turn.
const MAX_STEPS: usize = 8;

/// The task behind [`super::AttachmentManager`].
pub(super) struct Worker {
    pub(super) interfaces: Interfaces,
    pub(super) monitor: Monitor,
    pub(super) links: LinkTable,
    pub(super) attachments: Vec<Attachment>,
    pub(super) appliance: String,
    pub(super) events: mpsc::Sender<AttachmentEvent>,
    pub(super) status: watch::Sender<Vec<AttachmentStatus>>,
    pub(super) drops: Arc<Mutex<Vec<DropSource>>>,
}

/// The receiver of events is gone: the manager is being closed.
struct Closed;

impl Worker {
    pub(super) async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut resync_at = Instant::now() + RESYNC_INTERVAL;
        loop {
            if self.advance_all().await.is_err() {
                break;
            }
            let retry_at = self.attachments.iter().filter_map(|a| a.retry_at).min();
            let wake_at = retry_at.map_or(resync_at, |at| at.min(resync_at));
            tokio::select! {
                _ = &mut stop => break,
                notice = self.monitor.next() => self.follow(notice).await,
                () = sleep_until(wake_at) => {}
            }
            if Instant::now() >= resync_at {
                self.resync().await;
                resync_at = Instant::now() + RESYNC_INTERVAL;
            }
        }
        self.remove_all().await;
    }

    /// Fetches what the notification, and those behind it, are about.
    async fn follow(&mut self, first: Option<Notice>) {
        // Without a monitor there is still the resync; don't spin on its end.
        let Some(first) = first else {
            return tokio::time::sleep(RETRY_INTERVAL).await;
        };
        let mut changed = BTreeSet::new();
        let mut next = Some(first);
        while let Some(notice) = next {
            match notice {
                Notice::Changed(index) => changed.insert(index),
                Notice::Lost => return self.resync().await,
            };
            next = self.monitor.try_next();
        }
        for index in changed {
            self.refresh(index).await;
        }
    }

    async fn refresh(&mut self, index: u32) {
        match self.interfaces.get(index).await {
            Ok(Some(link)) => self.links.insert(link),
            Ok(None) => self.links.remove(index),
            Err(error) => warn!(index, %error, "an interface's state is unknown"),
        }
    }

    async fn resync(&mut self) {
        match self.interfaces.all().await {
            Ok(links) => self.links.replace_all(links),
            Err(error) => warn!(%error, "the interfaces' state is unknown"),
        }
    }

    async fn advance_all(&mut self) -> Result<(), Closed> {
        for which in 0..self.attachments.len() {
            self.advance(which).await?;
        }
        let status = self.attachments.iter().map(Attachment::status).collect();
        self.status.send_if_modified(|old| {
            let is_news = *old != status;
            *old = status;
            is_news
        });
        Ok(())
    }

    async fn advance(&mut self, which: usize) -> Result<(), Closed> {
        for _ in 0..MAX_STEPS {
            let attachment = &mut self.attachments[which];
            let is_pausing = attachment.is_pausing();
            if !is_pausing {
                attachment.retry_at = None;
            }
            let is_served = attachment.served.is_some();
            let step = next_step(&attachment.spec.kind, &self.links, attachment.made, is_served);
            match step {
                Step::Open | Step::Enslave | Step::SetMtu(_) if is_pausing => return Ok(()),
                Step::Open => self.open(which).await,
                Step::Enslave => self.enslave(which).await,
                Step::SetMtu(mtu) => self.set_mtu(which, mtu).await,
                Step::Close(reason) => self.let_go(which, reason).await?,
                Step::Serve(condition) => return self.serve(which, condition).await,
                Step::Wait(reason) => {
                    attachment.enter(AttachmentState::Waiting, Some(reason));
                    return Ok(());
                }
                Step::Settle(reason) => {
                    attachment.enter(AttachmentState::Settling, Some(reason));
                    return Ok(());
                }
            }
        }
        self.attachments[which].retry_at = Some(Instant::now() + RETRY_INTERVAL);
        Ok(())
    }

    async fn open(&mut self, which: usize) {
        let Attachment { spec, mtu, .. } = &self.attachments[which];
        let opened = setup::open(spec, &self.links, &self.interfaces, &self.appliance, mtu).await;
        let attachment = &mut self.attachments[which];
        match opened {
            Ok(opened) => {
                attachment.made = Some(opened.made);
                attachment.queue_count = opened.queues.len();
                attachment.queues = opened.queues;
                attachment.notes = opened.notes;
                self.refresh(opened.made.interface).await;
                if let Some(bridge) = opened.made.bridge {
                    self.refresh(bridge).await;
                }
            }
            Err(error) => attachment.fail(describe(&error)),
        }
    }

    async fn enslave(&mut self, which: usize) {
        let Some(Made { interface, bridge: Some(bridge) }) = self.attachments[which].made else {
            return;
        };
        let outcome = match self.interfaces.get(bridge).await {
            Ok(Some(before)) => join_bridge(interface, &before, &self.interfaces).await,
            other => other.map(drop),
        };
        if let Err(error) = outcome {
            self.attachments[which].fail(describe(&error));
        }
        self.refresh(interface).await;
        self.refresh(bridge).await;
    }

    async fn set_mtu(&mut self, which: usize, mtu: u32) {
        let Some(made) = self.attachments[which].made else { return };
        if let Err(error) = self.interfaces.set_mtu(made.interface, mtu).await {
            self.attachments[which].fail(describe(&error));
        }
        self.refresh(made.interface).await;
    }

    async fn serve(&mut self, which: usize, condition: Condition) -> Result<(), Closed> {
        let attachment = &mut self.attachments[which];
        attachment.mtu.store(condition.mtu, Ordering::Relaxed);
        let state = match condition.obstacle {
            Some(_) => AttachmentState::NoCarrier,
            None => AttachmentState::Up,
        };
        attachment.enter(state, condition.obstacle.clone());
        if attachment.served.as_ref() == Some(&condition) {
            return Ok(());
        }
        let port = attachment.spec.port;
        let Condition { mtu, obstacle } = condition.clone();
        let event = if attachment.served.replace(condition).is_some() {
            AttachmentEvent::Changed { port, mtu, obstacle }
        } else {
            let queues = mem::take(&mut attachment.queues);
            let tap = match attachment.spec.kind {
                AttachmentKind::Nic { .. } => None,
                _ => attachment.made.map(|made| made.interface),
            };
            let sockets = queues.iter().filter_map(|queue| match queue {
                LanQueue::Packet(queue) => queue.statistics().ok(),
                _ => None,
            });
            lock(&self.drops).push(DropSource { port, sockets: sockets.collect(), tap });
            let interface = attachment.spec.kind.interface().to_owned();
            AttachmentEvent::Up { port, queues, interface, mtu, obstacle }
        };
        self.events.send(event).await.map_err(|_| Closed)
    }

    async fn let_go(&mut self, which: usize, reason: Reason) -> Result<(), Closed> {
        let attachment = &mut self.attachments[which];
        let port = attachment.spec.port;
        attachment.made = None;
        attachment.queues.clear();
        attachment.queue_count = 0;
        attachment.notes.clear();
        attachment.enter(AttachmentState::Waiting, Some(reason.clone()));
        lock(&self.drops).retain(|source| source.port != port);
        match attachment.served.take() {
            None => Ok(()),
            Some(_) => {
                let event = AttachmentEvent::Down { port, reason };
                self.events.send(event).await.map_err(|_| Closed)
            }
        }
    }

    async fn remove_all(mut self) {
        for attachment in mem::take(&mut self.attachments) {
            let Some(made) = attachment.made else { continue };
            if matches!(attachment.spec.kind, AttachmentKind::Nic { .. }) {
                continue;
            }
            let bridge = match made.bridge {
                Some(index) => self.interfaces.get(index).await.ok().flatten(),
                None => None,
            };
            let mut outcome = self.interfaces.remove(made.interface).await;
            if let (Ok(()), Some(before)) = (&outcome, bridge) {
                outcome = restore_bridge(&before, &self.interfaces).await;
            }
            if let Err(error) = outcome {
                warn!(interface = attachment.spec.kind.interface(), %error, "left behind");
            }
        }
    }
}

/// Where the drops of one handed-out attachment are counted.
pub(super) struct DropSource {
    pub(super) port: PortIndex,
    pub(super) sockets: Vec<PacketStatistics>,
    pub(super) tap: Option<u32>,
}

/// One attachment and what was made for it.
pub(super) struct Attachment {
    spec: AttachmentSpec,
    made: Option<Made>,
    /// Queues that are not handed out yet.
    queues: Vec<LanQueue>,
    queue_count: usize,
    /// What a NIC's queues hold their segments against, bytes.
    mtu: Arc<AtomicU32>,
    /// What its users were last told; `None` until they have the queues.
    served: Option<Condition>,
    retry_at: Option<Instant>,
    state: AttachmentState,
    reason: Option<Reason>,
    notes: Vec<String>,
}

impl Attachment {
    pub(super) fn new(spec: AttachmentSpec) -> Self {
        assert!(spec.queues > 0, "an attachment without queues");
        Self {
            spec,
            made: None,
            queues: Vec::new(),
            queue_count: 0,
            mtu: Arc::default(),
            served: None,
            retry_at: None,
            state: AttachmentState::Waiting,
            reason: None,
            notes: Vec::new(),
        }
    }

    pub(super) fn status(&self) -> AttachmentStatus {
        let bridge = match &self.spec.kind {
            AttachmentKind::Bridge { bridge, .. } => Some(bridge.clone()),
            _ => None,
        };
        let is_nic = matches!(self.spec.kind, AttachmentKind::Nic { .. });
        let mtu = self.made.map(|_| self.mtu.load(Ordering::Relaxed));
        AttachmentStatus {
            port: self.spec.port,
            kind: self.spec.kind.name(),
            interface: self.spec.kind.interface().to_owned(),
            bridge,
            state: self.state,
            reason: self.reason.clone(),
            mtu: mtu.filter(|&mtu| mtu > 0),
            offload: self.spec.offload || is_nic,
            queues: self.queue_count,
            notes: self.notes.clone(),
        }
    }

    /// Notes the state, and logs news that its users are not told: they log the rest.
    fn enter(&mut self, state: AttachmentState, reason: Option<Reason>) {
        if self.state == state && self.reason == reason {
            return;
        }
        let (kind, interface) = (self.spec.kind.name(), self.spec.kind.interface());
        match &reason {
            Some(reason) if state == AttachmentState::Failed => {
                warn!(kind, interface, %reason, "attachment failed");
            }
            Some(reason) if self.served.is_none() => {
                info!(kind, interface, %reason, "attachment {state}");
            }
            _ => {}
        }
        self.state = state;
        self.reason = reason;
    }

    fn fail(&mut self, reason: String) {
        self.retry_at = Some(Instant::now() + RETRY_INTERVAL);
        self.enter(AttachmentState::Failed, Some(Reason::Failed(reason)));
    }

    fn is_pausing(&self) -> bool {
        self.retry_at.is_some_and(|at| at > Instant::now())
    }
}

/// An error and its causes in one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
