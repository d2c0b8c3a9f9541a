//! The appliance as a process: the control thread, which owns the control
//! plane, the attachments and the management socket, and starts the data threads.
#![allow(clippy::disallowed_methods)]

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::Interest,
    net::UdpSocket,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{Instant as TokioInstant, sleep_until},
};

use super::{
    clock,
    data_thread::{DataThread, StartError, ThreadCommand},
    lan::{AttachmentEvent, AttachmentKind, AttachmentManager, AttachmentSpec, ManagerError},
    random::OsRandom,
    spin::{Spin, default_limit},
    status::{Rates, Reporter},
    underlay::{ReceiveBuffers, SocketPair, Underlay, UnderlayError, UnderlaySocket},
};
use crate::{
    bridge::{
        fdb::{Fdb, FdbConfig, NetworkLimits},
        reflection::ReflectionDetector,
        underlay_guard::UnderlayGuard,
    },
    config::{self, Group},
    manage::{
        model::Request,
        notify::ServiceManager,
        rate_limit::RateLimit,
        socket::{BindError, QUERY_QUEUE, Query, Server},
    },
    node::{
        ControlEvent, ControlOutlet, ControlPlane, ControlSettings, Counter, Worker, WorkerCommand,
        WorkerEvent, WorkerSettings,
    },
    session::{CipherSet, Hello, Identity, LaneCount, SoftwareVersion, VersionRange, random::draw},
    time::Instant,
    topology::{PeerIndex, PortIndex, SiteIndex, Topology},
    tunnel::{Path, SocketRole, TransmitError},
};

/// Data lanes of a tunnel, at most.
pub const DATA_LANES_MAX: u8 = 16;
/// Data threads, where the group file says nothing: half of the cores, and no more than this.
const DEFAULT_LANES_MAX: usize = 4;
/// Events from the data threads that may wait.
const EVENTS_MAX: usize = 256;
/// Rates are measured and aged MAC addresses swept this often.
const TICK: Duration = Duration::from_secs(1);
/// The whole MAC table is swept once in so many ticks.
const SWEEP_TICKS: usize = 10;
/// What is logged about one peer, at most: a member can make it flap.
const PEER_EVENTS_PER_MINUTE: u32 = 30;
/// How long the kernel may take to tell its drop counters.
const KERNEL_PATIENCE: Duration = Duration::from_millis(200);
/// A data thread that did not turn for this long is reported, ns.
const STUCK_NS: u64 = 5_000_000_000;

/// What an appliance needs to run.
pub struct Settings {
    /// The group.
    pub group: Group,
    /// This appliance's site.
    pub site: SiteIndex,
    /// Its place among the site's appliances.
    pub appliance: usize,
    /// Its keys.
    pub identity: Identity,
    /// Where the management socket goes.
    pub socket: PathBuf,
}

/// Why an appliance could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The runtime could not be had.
    #[error("cannot start the control thread")]
    Runtime(#[source] std::io::Error),
    /// See [`UnderlayError`].
    #[error(transparent)]
    Underlay(#[from] UnderlayError),
    /// See [`StartError`].
    #[error(transparent)]
    Thread(#[from] StartError),
    /// See [`ManagerError`].
    #[error(transparent)]
    Attachments(#[from] ManagerError),
    /// See [`BindError`].
    #[error(transparent)]
    Management(#[from] BindError),
    /// The attachments are not looked after any more.
    #[error("the attachment manager ended unexpectedly")]
    AttachmentsEnded,
}

/// Runs an appliance until it is told to stop by SIGTERM or SIGINT.
///
/// # Errors
/// See [`DaemonError`].
pub fn run(settings: Settings) -> Result<(), DaemonError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DaemonError::Runtime)?;
    runtime.block_on(async {
        let daemon = Daemon::start(settings).await?;
        daemon.run().await
    })
}

struct Daemon {
    control: ControlPlane,
    outlet: ControlOut,
    /// Second handles on the control lane's sockets, to wait with.
    listener: UdpSocket,
    dialer: UdpSocket,
    buffers: ReceiveBuffers,
    attachments: AttachmentManager,
    fdb: Arc<Fdb>,
    events: mpsc::Receiver<WorkerEvent>,
    queries: mpsc::Receiver<Query>,
    reporter: Reporter,
    rates: Rates,
    service: ServiceManager,
    stuck: RateLimit,
    terminate: Signal,
    interrupt: Signal,
}

/// The control plane's way out.
struct ControlOut {
    sockets: SocketPair,
    threads: Vec<DataThread>,
    topology: Arc<Topology>,
    refusals: RateLimit,
    /// By [`PeerIndex`].
    peer_events: Vec<RateLimit>,
}

impl Daemon {
    async fn start(settings: Settings) -> Result<Self, DaemonError> {
        let Settings { group, site, appliance, identity, socket } = settings;
        let now = clock::now();
        let topology = Arc::new(Topology::new(&group, site, appliance));
        let me = &group.site(site).appliances[appliance];
        let lanes = group.lanes.map_or_else(default_lanes, |lanes| lanes.min(DATA_LANES_MAX));
        // First what can fail on another process's account.
        let server = Server::bind(&socket)?;
        let underlay = Underlay::open(me.listen, lanes)?;
        let fdb = Arc::new(mac_table(&group));
        let guard = UnderlayGuard::new(&endpoints(&group));

        let reflections = Arc::new(Mutex::new(ReflectionDetector::new(seed())));
        let (event_sender, events) = mpsc::channel(EVENTS_MAX);
        let mut threads = Vec::new();
        let mut statistics = Vec::new();
        let spin = group.spin.unwrap_or_else(|| default_limit(cores(), lanes.into()));
        for (index, sockets) in underlay.workers.into_iter().enumerate() {
            let index = index as u8;
            let worker = Worker::new(WorkerSettings {
                topology: topology.clone(),
                fdb: fdb.clone(),
                index,
                workers: lanes,
                lanes_max: DATA_LANES_MAX,
                guard: guard.clone(),
                reflections: reflections.clone(),
            });
            statistics.push(worker.statistics());
            let name = format!("data-{index}");
            let spin = Spin::new(spin);
            threads.push(DataThread::start(name, worker, sockets, spin, event_sender.clone())?);
        }
        let specs = attachment_specs(&group, site, &topology, usize::from(lanes));
        let attachments = AttachmentManager::new(specs, &topology.appliance).await?;

        let public_key = identity.private.public();
        let control = ControlPlane::new(
            now,
            ControlSettings {
                topology: topology.clone(),
                identity,
                hello: hello(&group, lanes),
                workers: lanes,
                lanes_max: DATA_LANES_MAX,
                rekey_after: group.rekey_after,
                random: Box::new(OsRandom),
            },
        );
        let (query_sender, queries) = mpsc::channel(QUERY_QUEUE);
        tokio::spawn(server.serve(query_sender));
        let wait_on = |socket: &UnderlaySocket| {
            socket.handle().and_then(UdpSocket::from_std).map_err(DaemonError::Runtime)
        };
        let unix_signal = |kind| signal(kind).map_err(DaemonError::Runtime);
        tracing::info!(
            appliance = %topology.appliance, group = %group.name, listen = %underlay.local, lanes,
            "running"
        );
        Ok(Self {
            control,
            listener: wait_on(&underlay.control.listener)?,
            dialer: wait_on(&underlay.control.dialer)?,
            outlet: ControlOut {
                sockets: underlay.control,
                threads,
                topology: topology.clone(),
                refusals: RateLimit::new(Duration::from_secs(60), 5),
                peer_events: vec![
                    RateLimit::new(Duration::from_secs(60), PEER_EVENTS_PER_MINUTE);
                    topology.peers.len()
                ],
            },
            buffers: ReceiveBuffers::default(),
            attachments,
            fdb: fdb.clone(),
            events,
            queries,
            reporter: Reporter::new(
                now,
                group,
                topology,
                public_key,
                underlay.local,
                fdb,
                statistics,
            ),
            rates: Rates::default(),
            service: ServiceManager::from_environment(),
            stuck: RateLimit::new(Duration::from_secs(60), 1),
            terminate: unix_signal(SignalKind::terminate())?,
            interrupt: unix_signal(SignalKind::interrupt())?,
        })
    }

    async fn run(mut self) -> Result<(), DaemonError> {
        self.service.ready("running");
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let watchdog = self.service.watchdog_interval().unwrap_or(Duration::from_secs(3600));
        let mut watchdog = tokio::time::interval(watchdog);
        loop {
            let now = clock::now();
            if self.control.poll_timeout().is_some_and(|at| at <= now) {
                self.control.handle_timeout(now, &mut self.outlet);
            }
            let deadline = deadline(self.control.poll_timeout(), now);
            tokio::select! {
                ready = self.listener.readable() => self.receive(ready.is_ok(), SocketRole::Listener),
                ready = self.dialer.readable() => self.receive(ready.is_ok(), SocketRole::Dialer),
                () = sleep_until(deadline) => {}
                event = self.attachments.next_event() => match event {
                    Some(event) => self.handle_attachment(event),
                    None => return Err(DaemonError::AttachmentsEnded),
                },
                Some(event) = self.events.recv() => {
                    self.reporter.note(&event);
                    self.control.handle_worker_event(event, &mut self.outlet);
                }
                Some(query) = self.queries.recv() => self.answer(query).await,
                _ = tick.tick() => self.tick(),
                _ = watchdog.tick() => {
                    if self.stuck_thread(clock::now()).is_none() {
                        self.service.alive();
                    }
                }
                _ = self.terminate.recv() => break,
                _ = self.interrupt.recv() => break,
            }
        }
        self.stop().await;
        Ok(())
    }

    fn receive(&mut self, is_ready: bool, role: SocketRole) {
        if !is_ready {
            return;
        }
        let waiting = match role {
            SocketRole::Listener => &self.listener,
            SocketRole::Dialer => &self.dialer,
        };
        let socket = self.outlet.sockets.get(role);
        let received = waiting.try_io(Interest::READABLE, || {
            let any = socket.receive(&mut self.buffers);
            any.then_some(()).ok_or_else(|| std::io::ErrorKind::WouldBlock.into())
        });
        if received.is_ok() {
            let now = clock::now();
            let Self { control, outlet, buffers, .. } = self;
            buffers.drain(|path, datagram| control.handle_datagram(now, path, datagram, outlet));
        }
    }

    fn handle_attachment(&mut self, event: AttachmentEvent) {
        let network =
            |port: PortIndex| self.outlet.topology.ports[usize::from(port.0)].interface.clone();
        match event {
            AttachmentEvent::Up { port, queues, interface, mtu, obstacle } => {
                match obstacle {
                    None => tracing::info!(interface, mtu, "attachment up"),
                    Some(reason) => tracing::warn!(interface, %reason, "attachment cut off"),
                }
                for (thread, queue) in self.outlet.threads.iter().zip(queues) {
                    thread.send(ThreadCommand::Attach { port, queue });
                }
            }
            AttachmentEvent::Down { port, reason } => {
                tracing::warn!(interface = network(port), %reason, "attachment down");
                for thread in &self.outlet.threads {
                    thread.send(ThreadCommand::Detach { port });
                }
            }
            AttachmentEvent::Changed { port, mtu, obstacle } => match obstacle {
                None => tracing::info!(interface = network(port), mtu, "attachment up"),
                Some(reason) => {
                    tracing::warn!(interface = network(port), %reason, "attachment cut off");
                }
            },
        }
    }

    async fn answer(&mut self, query: Query) {
        let (mut kernel, mut sockets) = (Vec::new(), Vec::new());
        if query.request == Request::Counters {
            // The kernel is asked for them over netlink; the tunnels must not wait for long.
            let asked = tokio::time::timeout(KERNEL_PATIENCE, self.attachments.kernel_drops());
            kernel = asked.await.unwrap_or_default();
            sockets.push(("control".to_owned(), self.outlet.sockets.kernel_drops()));
            let workers = self.outlet.threads.iter().map(DataThread::kernel_drops).enumerate();
            sockets.extend(workers.map(|(index, drops)| (format!("worker {index}"), drops)));
        }
        let response = self.reporter.answer(
            clock::now(),
            &query.request,
            &self.control,
            &self.attachments.status(),
            &self.rates,
            &kernel,
            &sockets,
        );
        // Whoever asked may have gone.
        let _ = query.reply.send(response);
    }

    fn tick(&mut self) {
        let now = clock::now();
        // The table grows: what a tenth of it is changes.
        let _ = self.fdb.sweep(now, self.fdb.bucket_count() / SWEEP_TICKS + 1);
        self.rates.sample(now, &self.reporter.totals(&self.control));
        if let Some(index) = self.stuck_thread(now)
            && self.stuck.allow(now).is_some()
        {
            tracing::error!(thread = index, "a data thread has not turned for 5 s");
        }
        self.service.status(&self.reporter.summary(&self.control));
    }

    /// A data thread that did not turn for too long. The service manager's
    /// watchdog is not fed while there is one.
    fn stuck_thread(&self, now: Instant) -> Option<usize> {
        let silent = |thread: &DataThread| now.as_nanos().saturating_sub(thread.alive_at());
        self.outlet.threads.iter().position(|thread| silent(thread) > STUCK_NS)
    }

    async fn stop(mut self) {
        tracing::info!("stopping");
        self.service.stopping();
        self.control.shut_down(&mut self.outlet);
        for thread in self.outlet.threads {
            thread.stop();
        }
        self.attachments.close().await;
    }
}

fn deadline(at: Option<Instant>, now: Instant) -> TokioInstant {
    let wait = at.map_or(TICK, |at| at.saturating_since(now)).min(TICK);
    TokioInstant::now() + wait
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn default_lanes() -> u8 {
    (cores() / 2).clamp(1, DEFAULT_LANES_MAX) as u8
}

fn seed() -> [u64; 2] {
    let low = u64::from_le_bytes(draw(&mut OsRandom));
    let high = u64::from_le_bytes(draw(&mut OsRandom));
    [low, high]
}

fn mac_table(group: &Group) -> Fdb {
    let limits: Vec<NetworkLimits> = group
        .networks
        .iter()
        .map(|network| NetworkLimits { max_macs: network.max_macs, ageing: network.ageing })
        .collect();
    let capacity = limits.iter().map(|limit| limit.max_macs as usize).sum();
    Fdb::new(&FdbConfig { networks: &limits, capacity }, seed())
}

/// Every address that an appliance of the group may be reached at.
fn endpoints(group: &Group) -> Vec<SocketAddr> {
    group.appliances().flat_map(|(_, _, appliance)| appliance.underlay.clone()).collect()
}

fn hello(group: &Group, lanes: u8) -> Hello {
    Hello {
        versions: VersionRange::LOCAL,
        capabilities: 0,
        lanes: LaneCount::new(lanes).unwrap_or(LaneCount::ONE),
        ciphers: CipherSet::detect(),
        group_digest: group.digest,
        software: SoftwareVersion::lossy(env!("CARGO_PKG_VERSION").as_bytes()),
        startup_id: u64::from_le_bytes(draw(&mut OsRandom)),
    }
}

/// One specification per interface: networks on one NIC share it.
fn attachment_specs(
    group: &Group,
    site: SiteIndex,
    topology: &Topology,
    queues: usize,
) -> Vec<AttachmentSpec> {
    let mut specs: Vec<AttachmentSpec> = Vec::new();
    for (network, view) in group.networks.iter().zip(&topology.networks) {
        let (Some(attachment), Some(place)) = (network.attachment(site), view.attachment) else {
            continue;
        };
        let kind = match &attachment.kind {
            config::AttachmentKind::Bridge { bridge, tap } => AttachmentKind::Bridge {
                bridge: bridge.as_str().to_owned(),
                tap: tap.as_str().to_owned(),
            },
            config::AttachmentKind::Tap { tap, mtu } => {
                AttachmentKind::Tap { tap: tap.as_str().to_owned(), mtu: Some(u32::from(*mtu)) }
            }
            config::AttachmentKind::Nic { nic, .. } => {
                AttachmentKind::Nic { nic: nic.as_str().to_owned() }
            }
        };
        if specs.iter().all(|spec| spec.port != place.port) {
            specs.push(AttachmentSpec {
                port: place.port,
                kind,
                offload: attachment.offload,
                queues,
            });
        }
    }
    specs
}

impl ControlOutlet for ControlOut {
    fn transmit(&mut self, path: &Path, datagram: &[u8]) -> Result<(), TransmitError> {
        self.sockets.get(path.socket).transmit(path, datagram.len(), datagram)
    }

    fn command(&mut self, worker: u8, command: WorkerCommand) {
        if !self.threads[usize::from(worker)].send(ThreadCommand::Worker(command)) {
            tracing::error!(thread = worker, "a data thread takes no more commands");
        }
    }

    fn event(&mut self, event: ControlEvent) {
        if let Some(peer) = event.peer()
            && self.peer_events[usize::from(peer.0)].allow(clock::now()).is_none()
        {
            return;
        }
        let name = |peer: PeerIndex| self.topology.peer(peer).name.as_str();
        match event {
            ControlEvent::PeerUp { peer, path } => {
                tracing::info!(peer = name(peer), endpoint = %path.remote, "tunnel up");
            }
            ControlEvent::PeerDown { peer, reason } => {
                tracing::warn!(peer = name(peer), reason, "tunnel down");
            }
            ControlEvent::PeerRestarted { peer } => {
                tracing::info!(peer = name(peer), "peer restarted");
            }
            ControlEvent::PeerIncompatible { peer, reason } => {
                tracing::error!(peer = name(peer), reason, "no tunnel is possible");
            }
            ControlEvent::PeerMoved { peer, path } => {
                tracing::info!(peer = name(peer), endpoint = %path.remote, "peer moved");
            }
            ControlEvent::GroupFile { peer, differs: true } => {
                tracing::warn!(peer = name(peer), "its group file differs from this one");
            }
            ControlEvent::GroupFile { peer, differs: false } => {
                tracing::info!(peer = name(peer), "its group file is the same again");
            }
            ControlEvent::HandshakeRefused { source, reason } => {
                match self.refusals.allow(clock::now()) {
                    Some(0) => tracing::warn!(%source, reason, "handshake refused"),
                    Some(suppressed) => {
                        tracing::warn!(%source, reason, suppressed, "handshakes refused");
                    }
                    None => {}
                }
            }
            ControlEvent::Suspicious { counter, port } => {
                let interface = self.topology.ports[usize::from(port.0)].interface.as_str();
                match counter {
                    Counter::LanOwnUnderlay => tracing::warn!(
                        interface,
                        "own underlay packets came from the LAN and were dropped: \
                         the underlay must not run over the stretched network"
                    ),
                    _ => tracing::warn!(
                        interface,
                        "the LAN sends own frames back: look for a loop, or a virtual switch that \
                         reflects (teaming, promiscuous mode)"
                    ),
                }
            }
        }
    }
}
