use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use super::{
    Counter, Counters, DeliverError, Outlet, WorkerCommand, WorkerEvent,
    delivery::{Delivery, Destination},
    salvage::salvage,
};
use crate::{
    bridge::{
        fdb::{Fdb, Learned, Location},
        forwarding::{Decision, Origin, decide},
        reflection::ReflectionDetector,
        underlay_guard::UnderlayGuard,
    },
    offload::Offload,
    stream::{StreamEvent, StreamSink},
    time::Instant,
    topology::{NetworkIndex, PeerIndex, PortIndex, SiteIndex, Topology},
    tunnel::{Lane, LaneSink, LaneStatistics, Path, ReceiveError, SendError, TransmitError, add},
    wire::{
        datagram::Header,
        ethernet::{Frame, MacAddr, VlanTag},
        record::{self, FrameRecord, Record, RecordError},
        signal::Item,
    },
};

/// How often an idle data lane pings: a NAT that maps it anew is followed this
/// soon, even while frames come from the far side only.
const PING_INTERVAL: Duration = Duration::from_millis(500);
/// Suspicious events told per second, at most; all are counted.
const SUSPICION_INTERVAL: Duration = Duration::from_secs(1);
/// Events kept for the control plane, at most; more are forgotten, since each
/// only repeats what the statistics hold.
const EVENTS_MAX: usize = 64;

/// What makes a worker.
pub struct WorkerSettings {
    /// The group as this appliance sees it.
    pub topology: Arc<Topology>,
    /// The MAC table that all workers share.
    pub fdb: Arc<Fdb>,
    /// This worker's number, from 0.
    pub index: u8,
    /// How many workers there are.
    pub workers: u8,
    /// Lanes per tunnel that this worker may come to serve, at most.
    pub lanes_max: u8,
    /// Refuses the underlay's own packets.
    pub guard: UnderlayGuard,
    /// Notices own frames that come back, shared by all workers.
    pub reflections: Arc<Mutex<ReflectionDetector>>,
}

/// Frames and bytes of one network at one worker.
#[derive(Debug, Default)]
pub struct NetworkStatistics {
    /// Frames that came from the LAN, superframes as one.
    pub from_lan_frames: AtomicU64,
    /// Bytes of those.
    pub from_lan_bytes: AtomicU64,
    /// Frames put onto the LAN, superframes as one, also those that were merged here.
    pub to_lan_frames: AtomicU64,
    /// Bytes of those.
    pub to_lan_bytes: AtomicU64,
}

/// What a worker tells the outside.
#[derive(Debug)]
pub struct WorkerStatistics {
    /// Drops and the like.
    pub counters: Counters,
    /// By [`NetworkIndex`].
    pub networks: Box<[NetworkStatistics]>,
    /// The lanes that this worker serves: peer, lane number, statistics.
    pub lanes: Vec<(PeerIndex, u8, Arc<LaneStatistics>)>,
}

/// The data plane of one thread: its lanes of every tunnel, from LAN frame to
/// datagram and back.
///
/// With W workers, worker w serves the lanes w+1, w+1+W, w+1+2W …; it sends on
/// the first and receives on all. So a peer with more threads than this
/// appliance still has all its lanes served.
pub struct Worker {
    forwarding: Forwarding,
    tunnels: Vec<Tunnel>,
    workers: u8,
    index: u8,
    /// Tunnels with frames that wait for the end of the burst.
    pending: Vec<usize>,
}

struct Tunnel {
    peer: PeerIndex,
    site: SiteIndex,
    lanes: Vec<Lane>,
    reported_paths: Vec<Option<Path>>,
    is_pending: bool,
}

/// What a worker needs to judge a frame, apart from the tunnels.
struct Forwarding {
    topology: Arc<Topology>,
    fdb: Arc<Fdb>,
    guard: UnderlayGuard,
    reflections: Arc<Mutex<ReflectionDetector>>,
    statistics: Arc<WorkerStatistics>,
    delivery: Delivery,
    events: VecDeque<WorkerEvent>,
    suspicion_at: Instant,
}

impl Worker {
    /// A worker without sessions.
    pub fn new(settings: WorkerSettings) -> Self {
        let WorkerSettings { topology, fdb, index, workers, lanes_max, guard, reflections } =
            settings;
        let numbers: Vec<u8> = (index + 1..=lanes_max).step_by(usize::from(workers)).collect();
        let mut lane_statistics = Vec::new();
        let tunnels = topology
            .peer_indices()
            .map(|peer| Tunnel {
                peer,
                site: topology.peer(peer).site,
                lanes: numbers
                    .iter()
                    .map(|&number| {
                        let statistics = Arc::<LaneStatistics>::default();
                        lane_statistics.push((peer, number, statistics.clone()));
                        Lane::new(number, PING_INTERVAL, statistics)
                    })
                    .collect(),
                reported_paths: vec![None; numbers.len()],
                is_pending: false,
            })
            .collect();
        let networks = topology.networks.iter().map(|_| NetworkStatistics::default()).collect();
        let statistics = Arc::new(WorkerStatistics {
            counters: Counters::default(),
            networks,
            lanes: lane_statistics,
        });
        Self {
            forwarding: Forwarding {
                topology,
                fdb,
                guard,
                reflections,
                delivery: Delivery::new(statistics.clone()),
                statistics,
                events: VecDeque::with_capacity(EVENTS_MAX),
                suspicion_at: Instant::ZERO,
            },
            tunnels,
            workers,
            index,
            pending: Vec::new(),
        }
    }

    /// What this worker counts.
    pub fn statistics(&self) -> Arc<WorkerStatistics> {
        self.forwarding.statistics.clone()
    }

    /// Tags that came out of band belong into the frames of `port`.
    #[inline]
    pub fn keeps_tags(&self, port: PortIndex) -> bool {
        self.forwarding.topology.ports[usize::from(port.0)].keeps_tags()
    }

    /// Counts something that the shell noticed.
    #[inline]
    pub fn count(&self, counter: Counter) {
        self.forwarding.statistics.counters.bump(counter);
    }

    /// Counts frames that the outlet took and could not deliver after all.
    pub fn undelivered(&self, error: DeliverError, frames: u64) {
        self.forwarding.statistics.counters.add(error.counter(), frames);
    }

    /// Carries out what the control plane wants.
    pub fn handle_command(&mut self, now: Instant, command: WorkerCommand) {
        match command {
            WorkerCommand::Install { peer, lane, parameters } => {
                if let Some(lane) = self.lane(peer, lane) {
                    lane.install(now, parameters);
                }
            }
            WorkerCommand::Remove { peer, local_index } => {
                for lane in &mut self.tunnels[usize::from(peer.0)].lanes {
                    lane.remove(local_index);
                }
            }
        }
    }

    /// Takes a frame from the LAN at `port`. It is sent when the batch is full,
    /// or with [`Worker::flush`].
    #[inline]
    pub fn handle_frame(
        &mut self,
        now: Instant,
        port: PortIndex,
        vlan: Option<VlanTag>,
        offload: Offload,
        bytes: &[u8],
        outlet: &mut impl Outlet,
    ) {
        let Some(verdict) = self.forwarding.judge(now, port, vlan, bytes) else { return };
        let network = verdict.network;
        let id = self.forwarding.topology.network(network).id;
        let record = Record::new(id, offload, bytes);
        match verdict.decision {
            Decision::ToSite(site) => self.push(now, site, &record, outlet),
            Decision::Flood => {
                let topology = self.forwarding.topology.clone();
                let sites = &topology.network(network).remote_sites;
                if sites.is_empty() {
                    self.count(Counter::LanNoRemote);
                }
                for &site in sites {
                    self.push(now, site, &record, outlet);
                }
            }
            Decision::ToLan => {}
            Decision::Drop(_) => self.count(Counter::LanLocalDestination),
        }
    }

    /// Sends what has been packed so far: the end of a burst.
    #[inline]
    pub fn flush(&mut self, now: Instant, outlet: &mut impl Outlet) {
        while let Some(index) = self.pending.pop() {
            let tunnel = &mut self.tunnels[index];
            tunnel.is_pending = false;
            let mut sink =
                Sink { forwarding: &mut self.forwarding, outlet, site: tunnel.site, now };
            let result = tunnel.lanes[0].flush(now, &mut sink);
            self.forwarding.count_send(result);
        }
    }

    /// Takes a datagram that came over `path`; opens it in place. Its frames are
    /// delivered, at the latest, with [`Worker::flush_to_lan`].
    #[inline]
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        path: Path,
        datagram: &mut [u8],
        outlet: &mut impl Outlet,
    ) {
        let Ok(header) = Header::parse(datagram) else {
            self.count(Counter::DatagramUnknown);
            return;
        };
        let Some(place) = self.place(header.lane) else {
            self.count(Counter::DatagramNoSession);
            return;
        };
        let mut result = Err(ReceiveError::UnknownSession);
        for tunnel in &mut self.tunnels {
            let mut sink =
                Sink { forwarding: &mut self.forwarding, outlet, site: tunnel.site, now };
            let lane = &mut tunnel.lanes[place];
            result = lane.receive(now, &header, path, datagram, &mut sink);
            if result != Err(ReceiveError::UnknownSession) {
                let path = lane.path();
                if tunnel.reported_paths[place] != path {
                    tunnel.reported_paths[place] = path;
                    let (peer, lane) = (tunnel.peer, header.lane);
                    self.forwarding.tell(WorkerEvent::PathChanged { peer, lane, path });
                }
                break;
            }
        }
        match result {
            Ok(()) => {}
            Err(ReceiveError::UnknownSession) => self.count(Counter::DatagramNoSession),
            Err(ReceiveError::Replayed) => self.count(Counter::DatagramReplayed),
            Err(ReceiveError::NotAuthentic) => self.count(Counter::DatagramForged),
            Err(ReceiveError::Malformed) => self.count(Counter::DatagramMalformed),
        }
    }

    /// Delivers what is held to be merged with more: the end of a burst of datagrams.
    #[inline]
    pub fn flush_to_lan(&mut self, outlet: &mut impl Outlet) {
        self.forwarding.delivery.flush(outlet);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, outlet: &mut impl Outlet) {
        for tunnel in &mut self.tunnels {
            let peer = tunnel.peer;
            for lane in &mut tunnel.lanes {
                if lane.poll_timeout().is_some_and(|at| at <= now) {
                    let site = tunnel.site;
                    let mut sink = Sink { forwarding: &mut self.forwarding, outlet, site, now };
                    lane.handle_timeout(now, &mut sink);
                }
                if lane.wants_rekey() {
                    self.forwarding.tell(WorkerEvent::RekeyWanted { peer });
                }
            }
        }
        self.flush_to_lan(outlet);
    }

    /// When [`Worker::handle_timeout`] wants to be called.
    #[inline]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.tunnels.iter().flat_map(|tunnel| &tunnel.lanes).filter_map(Lane::poll_timeout).min()
    }

    /// What the control plane should know.
    pub fn poll_event(&mut self) -> Option<WorkerEvent> {
        self.forwarding.events.pop_front()
    }

    /// Makes the keys in use as good as worn.
    #[cfg(test)]
    pub(super) fn wear_out(&mut self) {
        for lane in self.tunnels.iter_mut().flat_map(|tunnel| &mut tunnel.lanes) {
            lane.wear_out();
        }
    }

    fn lane(&mut self, peer: PeerIndex, number: u8) -> Option<&mut Lane> {
        let place = self.place(number)?;
        self.tunnels[usize::from(peer.0)].lanes.get_mut(place)
    }

    /// Where the lane with this number stands among those that are served here.
    #[inline]
    fn place(&self, number: u8) -> Option<usize> {
        let ahead = number.checked_sub(self.index + 1)?;
        let place = usize::from(ahead / self.workers);
        let lanes = self.tunnels.first()?.lanes.len();
        (ahead % self.workers == 0 && place < lanes).then_some(place)
    }

    #[inline]
    fn push(
        &mut self,
        now: Instant,
        site: SiteIndex,
        record: &Record<'_>,
        outlet: &mut impl Outlet,
    ) {
        let Some(peer) = self.forwarding.topology.holder(site) else {
            self.count(Counter::TunnelDown);
            return;
        };
        let index = usize::from(peer.0);
        let tunnel = &mut self.tunnels[index];
        if !std::mem::replace(&mut tunnel.is_pending, true) {
            self.pending.push(index);
        }
        let mut sink = Sink { forwarding: &mut self.forwarding, outlet, site, now };
        let result = tunnel.lanes[0].push(now, record, &mut sink);
        self.forwarding.count_send(result);
    }
}

struct Verdict {
    network: NetworkIndex,
    decision: Decision,
}

impl Forwarding {
    /// What to do with a frame from the LAN; `None` where it is dropped and counted.
    #[inline]
    fn judge(
        &mut self,
        now: Instant,
        port: PortIndex,
        vlan: Option<VlanTag>,
        bytes: &[u8],
    ) -> Option<Verdict> {
        let counters = &self.statistics.counters;
        let (Ok(frame), ..=record::FRAME_LENGTH_MAX) = (Frame::new_checked(bytes), bytes.len())
        else {
            counters.bump(Counter::LanLength);
            return None;
        };
        let Some(network) = self.topology.ports[usize::from(port.0)].classify(vlan) else {
            counters.bump(Counter::LanNoNetwork);
            return None;
        };
        if self.guard.is_own_underlay(bytes) {
            self.suspect(now, Counter::LanOwnUnderlay, port);
            return None;
        }
        let (destination, source) = (frame.destination(), frame.source());
        if destination.is_group() {
            let known = self.fdb.lookup(now, network, source);
            if matches!(known, Some(Location::Site(_)))
                && lock(&self.reflections).is_reflection(now, network, bytes, known)
            {
                self.suspect(now, Counter::LanReflected, port);
                return None;
            }
        }
        let statistics = &self.statistics.networks[usize::from(network.0)];
        add(&statistics.from_lan_frames, 1);
        add(&statistics.from_lan_bytes, bytes.len() as u64);
        self.learn(now, network, source, Location::Local);
        let known =
            if destination.is_group() { None } else { self.fdb.lookup(now, network, destination) };
        Some(Verdict { network, decision: decide(destination, known, Origin::Lan) })
    }

    #[inline]
    fn learn(&self, now: Instant, network: NetworkIndex, source: MacAddr, location: Location) {
        let counters = &self.statistics.counters;
        match self.fdb.learn(now, network, source, location) {
            Learned::Moved { .. } => counters.bump(Counter::MacMoved),
            Learned::Full => counters.bump(Counter::MacLimit),
            Learned::TableFull => counters.bump(Counter::MacTableFull),
            Learned::Unchanged
            | Learned::Refreshed
            | Learned::New
            | Learned::Busy
            | Learned::Ignored => {}
        }
    }

    #[cold]
    fn suspect(&mut self, now: Instant, counter: Counter, port: PortIndex) {
        self.statistics.counters.bump(counter);
        if self.suspicion_at <= now {
            self.suspicion_at = now + SUSPICION_INTERVAL;
            self.tell(WorkerEvent::Suspicious { counter, port });
        }
    }

    fn tell(&mut self, event: WorkerEvent) {
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(event);
        }
    }

    #[inline]
    fn count_send(&self, result: Result<(), SendError>) {
        let counter = match result {
            Ok(()) => return,
            Err(SendError::NoSession) => Counter::TunnelDown,
            Err(SendError::KeyUsedUp) => Counter::KeyUsedUp,
            // Counted where it happened, by datagrams.
            Err(SendError::Transmit(_)) => return,
        };
        self.statistics.counters.bump(counter);
    }

    #[inline]
    fn deliver(
        &mut self,
        now: Instant,
        site: SiteIndex,
        record: FrameRecord<'_>,
        outlet: &mut impl Outlet,
    ) {
        let FrameRecord { network: id, offload, frame } = record;
        let counters = &self.statistics.counters;
        let Some(index) = self.topology.network_by_id(id) else {
            counters.bump(Counter::NetworkUnknown);
            return;
        };
        let network = self.topology.network(index);
        let Some(attachment) = network.attachment.filter(|_| network.remote_sites.contains(&site))
        else {
            counters.bump(Counter::NetworkNotAttached);
            return;
        };
        let Ok(view) = Frame::new_checked(frame) else {
            counters.bump(Counter::RecordMalformed);
            return;
        };
        self.learn(now, index, view.source(), Location::Site(site));
        if view.destination().is_group() {
            lock(&self.reflections).emitted(now, index, frame);
        }
        let destination = Destination { network: index, attachment };
        self.delivery.put(destination, offload, frame, outlet);
    }
}

impl Forwarding {
    /// Delivers the whole segments of a superframe that has lost some of its bytes.
    #[cold]
    fn deliver_damaged(
        &mut self,
        now: Instant,
        site: SiteIndex,
        bytes: &mut [u8],
        survived: &[Range<usize>],
        outlet: &mut impl Outlet,
    ) {
        let counters = &self.statistics.clone().counters;
        let Some(salvaged) = salvage(bytes, survived) else {
            counters.bump(Counter::RecordTruncated);
            return;
        };
        let mut parts = 0;
        for range in survived {
            let within = salvaged.within_frame(range);
            let frame = &mut bytes[salvaged.frame.clone()];
            if let Some((frame, offload)) = salvaged.salvage.part(frame, within) {
                let network = salvaged.network;
                self.deliver(now, site, FrameRecord { network, offload, frame }, outlet);
                parts += 1;
            }
        }
        counters.bump(if parts > 0 { Counter::RecordSalvaged } else { Counter::RecordTruncated });
    }
}

/// Where a lane's records and datagrams go: to the LAN by way of the MAC
/// table, and out of the appliance.
struct Sink<'a, O> {
    forwarding: &'a mut Forwarding,
    outlet: &'a mut O,
    site: SiteIndex,
    now: Instant,
}

impl<O: Outlet> StreamSink for Sink<'_, O> {
    #[inline]
    fn record(&mut self, bytes: &[u8]) {
        match record::parse(bytes) {
            Ok(record) => self.forwarding.deliver(self.now, self.site, record, self.outlet),
            Err(RecordError::UnknownType(_)) => {
                self.forwarding.statistics.counters.bump(Counter::RecordUnknown);
            }
            Err(RecordError::Malformed) => {
                self.forwarding.statistics.counters.bump(Counter::RecordMalformed);
            }
        }
    }

    fn damaged(&mut self, bytes: &mut [u8], survived: &[Range<usize>]) {
        self.forwarding.deliver_damaged(self.now, self.site, bytes, survived, self.outlet);
    }

    #[inline]
    fn event(&mut self, event: StreamEvent, amount: u64) {
        let counter = match event {
            StreamEvent::Missing => Counter::StreamMissing,
            StreamEvent::Late => Counter::StreamLate,
            StreamEvent::Held => Counter::StreamHeld,
            StreamEvent::RecordTruncated => Counter::RecordTruncated,
            StreamEvent::Malformed => Counter::RecordMalformed,
        };
        self.forwarding.statistics.counters.add(counter, amount);
    }
}

impl<O: Outlet> LaneSink for Sink<'_, O> {
    fn signal(&mut self, signal: Item) {
        match signal {
            // Tunnel-wide signals belong on the control lane.
            Item::Known(_) | Item::Unknown(_) => {
                self.forwarding.statistics.counters.bump(Counter::SignalUnknown);
            }
            Item::Malformed => {
                self.forwarding.statistics.counters.bump(Counter::SignalMalformed);
            }
        }
    }

    #[inline]
    fn transmit(
        &mut self,
        path: &Path,
        size: usize,
        datagrams: &[u8],
    ) -> Result<(), TransmitError> {
        self.outlet.transmit(path, size, datagrams)
    }

    fn unsent(&mut self, error: TransmitError, datagrams: u64) {
        self.forwarding.statistics.counters.add(send_counter(error), datagrams);
    }
}

/// A thread that panicked while it held the detector left nothing half done.
fn lock(detector: &Mutex<ReflectionDetector>) -> MutexGuard<'_, ReflectionDetector> {
    detector.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The counter for datagrams that could not be sent.
pub(super) fn send_counter(error: TransmitError) -> Counter {
    match error {
        TransmitError::TooBig => Counter::UnderlayTooBig,
        TransmitError::Full => Counter::UnderlayFull,
        TransmitError::NoSource | TransmitError::Unreachable => Counter::UnderlayUnreachable,
    }
}
