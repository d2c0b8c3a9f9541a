//! Lane 0 of all tunnels: handshakes, liveness and farewells.

mod handshake;
mod interface;
mod peer;

use std::{sync::Arc, time::Duration};

use self::peer::{DOWN, PENDING_LIFETIME, PeerControl};
pub use self::{
    interface::{ControlEvent, ControlOutlet, PeerReport},
    peer::PeerStanding,
};
use super::{Counter, Counters, WorkerCommand, WorkerEvent, worker::send_counter};
use crate::{
    session::{CookieChecker, Hello, Identity, Random, SeenInitiations, message::HandshakeMessage},
    stream::{StreamEvent, StreamSink},
    time::Instant,
    topology::Topology,
    tunnel::{Lane, LaneSink, LaneStatistics, Path, ReceiveError, TransmitError},
    wire::{
        datagram::{CONTROL_LANE, Header},
        signal::{CloseReason, Item, Signal},
    },
};

/// How often the control lane pings: several fit into [`peer::SILENCE`].
const PING_INTERVAL: Duration = Duration::from_millis(200);
/// After a farewell the peer is left alone for this time.
const FAREWELL_PAUSE: Duration = Duration::from_secs(1);

/// What makes a control plane.
pub struct ControlSettings {
    /// The group as this appliance sees it.
    pub topology: Arc<Topology>,
    /// This appliance's keys.
    pub identity: Identity,
    /// What it says of itself in handshakes.
    pub hello: Hello,
    /// How many workers there are.
    pub workers: u8,
    /// Lanes that the workers can serve, at most.
    pub lanes_max: u8,
    /// A session is replaced after this time.
    pub rekey_after: Duration,
    /// Where randomness comes from.
    pub random: Box<dyn Random + Send>,
}

/// Handshakes, liveness and farewells with every peer: lane 0 of all tunnels.
pub struct ControlPlane {
    topology: Arc<Topology>,
    identity: Identity,
    hello: Hello,
    workers: u8,
    lanes_max: u8,
    rekey_after: Duration,
    random: Box<dyn Random + Send>,
    checker: CookieChecker,
    peers: Vec<PeerControl>,
    statistics: Vec<Arc<LaneStatistics>>,
    counters: Arc<Counters>,
}

impl ControlPlane {
    /// A control plane that wants to reach every peer at once.
    pub fn new(now: Instant, settings: ControlSettings) -> Self {
        let statistics: Vec<Arc<LaneStatistics>> =
            settings.topology.peers.iter().map(|_| Arc::default()).collect();
        let peers = settings
            .topology
            .peer_indices()
            .map(|index| PeerControl {
                index,
                endpoints: settings.topology.peer(index).endpoints.clone(),
                lane: Lane::new(
                    CONTROL_LANE,
                    PING_INTERVAL,
                    statistics[usize::from(index.0)].clone(),
                ),
                sessions: Vec::new(),
                initiations: Vec::new(),
                initiate_at: now,
                attempts: 0,
                cookie: None,
                seen: SeenInitiations::new(),
                standing: PeerStanding::Connecting,
                heard_at: None,
                rekey_wanted: false,
                software: String::new(),
                startup_id: None,
                group_digest: None,
                established: None,
            })
            .collect();
        Self {
            checker: CookieChecker::new(&settings.identity.private.public()),
            topology: settings.topology,
            identity: settings.identity,
            hello: settings.hello,
            workers: settings.workers,
            lanes_max: settings.lanes_max,
            rekey_after: settings.rekey_after,
            random: settings.random,
            peers,
            statistics,
            counters: Arc::default(),
        }
    }

    /// What the control plane counts.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// What the status shows of each peer.
    pub fn report(&self) -> Vec<PeerReport> {
        let report = |peer: &PeerControl| {
            let current = peer.current();
            PeerReport {
                peer: peer.index,
                standing: peer.standing.clone(),
                software: peer.software.clone(),
                version: current.map(|session| session.agreed.version),
                cipher: current.map(|session| session.agreed.cipher),
                lanes: current.map(|session| self.lanes(session.agreed.lanes.get())),
                group_differs: self.group_differs(peer),
                established: peer.established,
                path: peer.lane.path(),
                statistics: self.statistics[usize::from(peer.index.0)].clone(),
            }
        };
        self.peers.iter().map(report).collect()
    }

    /// Takes a datagram that came over `path` to a socket of the control lane.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        path: Path,
        datagram: &mut [u8],
        outlet: &mut impl ControlOutlet,
    ) {
        if let Ok(header) = Header::parse(datagram) {
            self.handle_transport(now, &header, path, datagram, outlet);
            return;
        }
        match HandshakeMessage::parse(datagram) {
            Ok(HandshakeMessage::CookieReply(_)) => self.handle_cookie(now, datagram),
            Ok(HandshakeMessage::Initiation(_)) => {
                if self.admit(now, path, datagram, outlet) {
                    self.handle_initiation(now, path, datagram, outlet);
                }
            }
            Ok(HandshakeMessage::Response(response)) => {
                // Asked for first: what nobody waits for uses up no rate.
                if self.begun(response.receiver()).is_none() {
                    self.counters.bump(Counter::HandshakeInvalid);
                } else if self.admit(now, path, datagram, outlet) {
                    self.handle_response(now, path, response.receiver(), datagram, outlet);
                }
            }
            Err(_) => self.counters.bump(Counter::DatagramUnknown),
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, outlet: &mut impl ControlOutlet) {
        for index in 0..self.peers.len() {
            let mut sink = Sink::new(&self.counters, outlet);
            self.peers[index].lane.handle_timeout(now, &mut sink);
            self.expire(now, index, outlet);
            let peer = &mut self.peers[index];
            if peer.standing == PeerStanding::Up && peer.is_silent(now, DOWN) {
                let reason = format!("not heard for {} s", DOWN.as_secs());
                peer.standing = PeerStanding::Down(reason.clone());
                outlet.event(ControlEvent::PeerDown { peer: peer.index, reason });
            }
            if peer.wants_handshake_at(self.rekey_after).max(peer.initiate_at) <= now {
                self.initiate(now, index, outlet);
            }
        }
    }

    /// When [`ControlPlane::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.peers
            .iter()
            .flat_map(|peer| {
                let handshake = peer.wants_handshake_at(self.rekey_after).max(peer.initiate_at);
                let down = (peer.standing == PeerStanding::Up)
                    .then(|| peer.heard_at.map(|heard_at| heard_at + DOWN))
                    .flatten();
                let expiry = peer.sessions.iter().map(|session| session.expire_at).min();
                [Some(handshake), down, expiry, peer.lane.poll_timeout()]
            })
            .flatten()
            .min()
    }

    /// Takes what a worker has to say.
    pub fn handle_worker_event(&mut self, event: WorkerEvent, outlet: &mut impl ControlOutlet) {
        match event {
            WorkerEvent::RekeyWanted { peer } => {
                self.peers[usize::from(peer.0)].rekey_wanted = true;
            }
            WorkerEvent::Suspicious { counter, port } => {
                outlet.event(ControlEvent::Suspicious { counter, port });
            }
            // Shown by the status from the shell's own record.
            WorkerEvent::PathChanged { .. } => {}
        }
    }

    /// Says farewell to every peer, so that nobody waits for a time-out.
    pub fn shut_down(&mut self, outlet: &mut impl ControlOutlet) {
        for peer in &mut self.peers {
            let mut sink = Sink::new(&self.counters, outlet);
            let farewell = Signal::Close { reason: CloseReason::Shutdown };
            let _ = peer.lane.signal(&farewell, &mut sink);
        }
    }

    fn handle_transport(
        &mut self,
        now: Instant,
        header: &Header,
        path: Path,
        datagram: &mut [u8],
        outlet: &mut impl ControlOutlet,
    ) {
        let owner = self.peers.iter().position(|peer| {
            peer.sessions.iter().any(|session| session.local_index == header.receiver)
        });
        let Some(index) = owner.filter(|_| header.lane == CONTROL_LANE) else {
            self.counters.bump(Counter::DatagramNoSession);
            return;
        };
        let mut sink = Sink::new(&self.counters, outlet);
        let peer = &mut self.peers[index];
        let before = peer.lane.path();
        let result = peer.lane.receive(now, header, path, datagram, &mut sink);
        let signals = std::mem::take(&mut sink.signals);
        match result {
            Ok(()) => {}
            Err(error) => {
                self.counters.bump(match error {
                    ReceiveError::UnknownSession => Counter::DatagramNoSession,
                    ReceiveError::Replayed => Counter::DatagramReplayed,
                    ReceiveError::NotAuthentic => Counter::DatagramForged,
                    ReceiveError::Malformed => Counter::DatagramMalformed,
                });
                return;
            }
        }
        peer.note_heard(now, header.receiver);
        if peer.session(header.receiver).is_some_and(|session| !session.confirmed) {
            self.confirm(now, index, header.receiver, outlet);
        } else {
            self.revive(index, before, outlet);
        }
        for signal in signals {
            self.handle_signal(now, index, header.receiver, signal, outlet);
        }
    }

    /// The peer was heard: it is up (again), perhaps elsewhere.
    fn revive(&mut self, index: usize, before: Option<Path>, outlet: &mut impl ControlOutlet) {
        let peer = &mut self.peers[index];
        let Some(path) = peer.lane.path() else { return };
        if peer.standing != PeerStanding::Up {
            peer.standing = PeerStanding::Up;
            peer.attempts = 0;
            outlet.event(ControlEvent::PeerUp { peer: peer.index, path });
        } else if before.is_some_and(|before| before.remote != path.remote) {
            outlet.event(ControlEvent::PeerMoved { peer: peer.index, path });
        }
    }

    fn handle_signal(
        &mut self,
        now: Instant,
        index: usize,
        local_index: u32,
        item: Item,
        outlet: &mut impl ControlOutlet,
    ) {
        match item {
            Item::Known(Signal::Close { .. }) => {
                self.handle_farewell(now, index, local_index, outlet);
            }
            Item::Known(Signal::GroupDigest { digest }) => {
                let differed = self.group_differs(&self.peers[index]);
                self.peers[index].group_digest = Some(digest);
                self.tell_group_file(index, differed, outlet);
            }
            // The lane has dealt with these.
            Item::Known(Signal::Ping { .. } | Signal::Pong { .. }) => {}
            Item::Unknown(_) => self.counters.bump(Counter::SignalUnknown),
            Item::Malformed => self.counters.bump(Counter::SignalMalformed),
        }
    }

    /// The process that holds session `local_index` ends. A farewell may come
    /// late: the sessions of the process that came after it stay.
    fn handle_farewell(
        &mut self,
        now: Instant,
        index: usize,
        local_index: u32,
        outlet: &mut impl ControlOutlet,
    ) {
        let peer = &mut self.peers[index];
        let Some(session) = peer.session(local_index) else { return };
        let leaving = session.hello.startup_id;
        let sessions: Vec<u32> = peer
            .sessions
            .iter()
            .filter(|session| session.hello.startup_id == leaving)
            .map(|session| session.local_index)
            .collect();
        for local_index in sessions {
            self.remove(index, local_index, outlet);
        }
        let peer = &mut self.peers[index];
        if peer.current().is_some() {
            return;
        }
        let reason = "it said farewell: shut down or restarting".to_owned();
        peer.standing = PeerStanding::Down(reason.clone());
        peer.initiations.clear();
        peer.initiate_at = now + FAREWELL_PAUSE;
        outlet.event(ControlEvent::PeerDown { peer: peer.index, reason });
    }

    fn expire(&mut self, now: Instant, index: usize, outlet: &mut impl ControlOutlet) {
        self.peers[index]
            .initiations
            .retain(|begun| now.saturating_since(begun.begun_at) < PENDING_LIFETIME);
        let expired: Vec<u32> = self.peers[index]
            .sessions
            .iter()
            .filter(|session| session.expire_at <= now)
            .map(|session| session.local_index)
            .collect();
        for local_index in expired {
            self.remove(index, local_index, outlet);
        }
    }

    fn remove(&mut self, index: usize, local_index: u32, outlet: &mut impl ControlOutlet) {
        let peer = &mut self.peers[index];
        peer.lane.remove(local_index);
        peer.sessions.retain(|session| session.local_index != local_index);
        for worker in 0..self.workers {
            let peer = peer.index;
            outlet.command(worker, WorkerCommand::Remove { peer, local_index });
        }
    }

    fn group_differs(&self, peer: &PeerControl) -> bool {
        peer.group_digest.is_some_and(|digest| digest != self.hello.group_digest)
    }

    fn tell_group_file(&self, index: usize, differed: bool, outlet: &mut impl ControlOutlet) {
        let peer = &self.peers[index];
        let differs = self.group_differs(peer);
        if differs != differed {
            outlet.event(ControlEvent::GroupFile { peer: peer.index, differs });
        }
    }

    fn lanes(&self, agreed: u8) -> u8 {
        agreed.min(self.lanes_max)
    }
}

/// Where the control lane's signals and datagrams go. It carries no records.
struct Sink<'a, O> {
    counters: &'a Counters,
    outlet: &'a mut O,
    signals: Vec<Item>,
}

impl<'a, O: ControlOutlet> Sink<'a, O> {
    fn new(counters: &'a Counters, outlet: &'a mut O) -> Self {
        Self { counters, outlet, signals: Vec::new() }
    }
}

impl<O: ControlOutlet> StreamSink for Sink<'_, O> {
    fn record(&mut self, _: &[u8]) {
        self.counters.bump(Counter::RecordUnknown);
    }

    fn damaged(&mut self, _: &mut [u8], _: &[std::ops::Range<usize>]) {}

    // Gaps mean nothing here: signals are repeated until they are answered.
    fn event(&mut self, _: StreamEvent, _: u64) {}
}

impl<O: ControlOutlet> LaneSink for Sink<'_, O> {
    fn signal(&mut self, signal: Item) {
        self.signals.push(signal);
    }

    fn transmit(
        &mut self,
        path: &Path,
        _size: usize,
        datagrams: &[u8],
    ) -> Result<(), TransmitError> {
        self.outlet.transmit(path, datagrams)
    }

    fn unsent(&mut self, error: TransmitError, datagrams: u64) {
        self.counters.add(send_counter(error), datagrams);
    }
}
