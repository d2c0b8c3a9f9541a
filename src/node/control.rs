use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::{
    Counter, Counters, WorkerCommand, WorkerEvent,
    peer::{
        DOWN, INITIATIONS_MAX, Initiation, OVERDUE_LIFETIME, PENDING_LIFETIME, PeerControl,
        PeerStanding, Session,
    },
    worker::send_counter,
};
use crate::{
    session::{
        Admission, CookieChecker, DropReason, Established, HandshakeError, Hello, Identity,
        Initiator, Random, Responder, SeenInitiations, message::HandshakeMessage, random::draw,
    },
    stream::{StreamEvent, StreamSink},
    time::Instant,
    topology::{PeerIndex, PortIndex, Topology},
    tunnel::{
        Lane, LaneSink, LaneStatistics, Path, ReceiveError, SessionParameters, SocketRole,
        TransmitError,
    },
    wire::{
        datagram::{CONTROL_LANE, Header},
        signal::{CloseReason, Item, Signal},
    },
};

/// How often the control lane pings: several fit into [`super::peer::SILENCE`].
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

/// What an operator should read in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ControlEvent {
    /// A session is up where there was none.
    PeerUp {
        /// Who.
        peer: PeerIndex,
        /// Where.
        path: Path,
    },
    /// The peer is gone; says why.
    PeerDown {
        /// Who.
        peer: PeerIndex,
        /// Why, for people.
        reason: String,
    },
    /// The peer's process is another one than before.
    PeerRestarted {
        /// Who.
        peer: PeerIndex,
    },
    /// The peer answers, but there is nothing in common.
    PeerIncompatible {
        /// Who.
        peer: PeerIndex,
        /// What is missing, for people.
        reason: String,
    },
    /// The peer's address is another one.
    PeerMoved {
        /// Who.
        peer: PeerIndex,
        /// Where to.
        path: Path,
    },
    /// The peer's group file is another one (or is the same again).
    GroupFile {
        /// Who.
        peer: PeerIndex,
        /// It differs from this appliance's.
        differs: bool,
    },
    /// Handshakes fail to authenticate.
    HandshakeRefused {
        /// From where.
        source: SocketAddr,
        /// Why, for people.
        reason: String,
    },
    /// A worker noticed that the LAN sends own frames or underlay packets.
    Suspicious {
        /// What.
        counter: Counter,
        /// Where.
        port: PortIndex,
    },
}

impl ControlEvent {
    /// The peer that it is about, where there is one.
    pub fn peer(&self) -> Option<PeerIndex> {
        match self {
            Self::PeerUp { peer, .. }
            | Self::PeerDown { peer, .. }
            | Self::PeerRestarted { peer }
            | Self::PeerIncompatible { peer, .. }
            | Self::PeerMoved { peer, .. }
            | Self::GroupFile { peer, .. } => Some(*peer),
            Self::HandshakeRefused { .. } | Self::Suspicious { .. } => None,
        }
    }
}

/// The way out of the control plane, lent by the shell.
pub trait ControlOutlet {
    /// Sends one datagram over `path`, from a socket of the control lane.
    ///
    /// # Errors
    /// See [`TransmitError`].
    fn transmit(&mut self, path: &Path, datagram: &[u8]) -> Result<(), TransmitError>;
    /// Passes a command to the worker with this number. It must reach the
    /// worker before any datagram does that is a consequence of what is
    /// transmitted later.
    fn command(&mut self, worker: u8, command: WorkerCommand);
    /// Tells the operator.
    fn event(&mut self, event: ControlEvent);
}

/// What the status shows of a peer.
#[derive(Clone, Debug)]
pub struct PeerReport {
    /// Who.
    pub peer: PeerIndex,
    /// Where the tunnel stands.
    pub standing: PeerStanding,
    /// Software that it told.
    pub software: String,
    /// Agreed protocol version.
    pub version: Option<u16>,
    /// Agreed cipher.
    pub cipher: Option<crate::session::CipherSuite>,
    /// Agreed number of data lanes.
    pub lanes: Option<u8>,
    /// Its group file differs from this appliance's.
    pub group_differs: bool,
    /// When the newest session was established, be it over by now or not.
    pub established: Option<Instant>,
    /// The control lane's path.
    pub path: Option<Path>,
    /// The control lane's statistics.
    pub statistics: Arc<LaneStatistics>,
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
    pub fn shut_down(&mut self, now: Instant, outlet: &mut impl ControlOutlet) {
        for peer in &mut self.peers {
            let mut sink = Sink::new(&self.counters, outlet);
            let farewell = Signal::Close { reason: CloseReason::Shutdown };
            let _ = peer.lane.signal(now, &farewell, &mut sink);
        }
    }

    fn admit(
        &mut self,
        now: Instant,
        path: Path,
        datagram: &[u8],
        outlet: &mut impl ControlOutlet,
    ) -> bool {
        match self.checker.check(now, path.remote, datagram, false, &mut *self.random) {
            Admission::Process => return true,
            Admission::ReplyWithCookie(reply) => {
                self.counters.bump(Counter::CookieSent);
                let _ = outlet.transmit(&path, &reply);
            }
            Admission::Drop(DropReason::Malformed(_) | DropReason::Mac1) => {
                self.counters.bump(Counter::HandshakeInvalid);
            }
            Admission::Drop(_) => self.counters.bump(Counter::HandshakeRate),
        }
        false
    }

    fn initiate(&mut self, now: Instant, index: usize, outlet: &mut impl ControlOutlet) {
        let local_index = self.fresh_index();
        let peer = &mut self.peers[index];
        let path = peer.next_path();
        let [jitter] = draw(&mut *self.random);
        peer.initiate_at = peer.retry_at(now, jitter);
        peer.attempts = peer.attempts.wrapping_add(1);
        let key = self.topology.peer(peer.index).public_key;
        let cookie = peer.cookie.as_ref().filter(|cookie| cookie.is_fresh(now));
        let cookie_used = cookie.is_some();
        let started = Initiator::start(
            &self.identity,
            &key,
            local_index,
            &self.hello,
            cookie,
            &mut *self.random,
        );
        match started {
            Ok((initiator, datagram)) => {
                if peer.initiations.len() == INITIATIONS_MAX {
                    peer.initiations.remove(0);
                }
                peer.initiations.push(Initiation { initiator, path, cookie_used });
                if let Err(error) = outlet.transmit(&path, &datagram) {
                    self.counters.bump(send_counter(error));
                }
            }
            Err(error) => {
                peer.standing = PeerStanding::Incompatible(error.to_string());
                self.counters.bump(Counter::HandshakeInvalid);
            }
        }
    }

    fn handle_cookie(&mut self, now: Instant, datagram: &[u8]) {
        for peer in &mut self.peers {
            for initiation in &peer.initiations {
                if let Ok(cookie) = initiation.initiator.take_cookie(now, datagram) {
                    self.counters.bump(Counter::CookieReceived);
                    peer.cookie = Some(cookie);
                    if !initiation.cookie_used {
                        peer.initiate_at = now;
                    }
                    return;
                }
            }
        }
        self.counters.bump(Counter::HandshakeInvalid);
    }

    fn handle_response(
        &mut self,
        now: Instant,
        path: Path,
        receiver: u32,
        datagram: &[u8],
        outlet: &mut impl ControlOutlet,
    ) {
        let Some((index, place)) = self.begun(receiver) else { return };
        let initiation = &mut self.peers[index].initiations[place];
        match initiation.initiator.finish(datagram) {
            Ok(established) => {
                // Answered from elsewhere than asked: the peer knows its way best.
                let path = Path { local: None, socket: initiation.path.socket, ..path };
                self.peers[index].initiations.clear();
                self.establish(now, index, established, Some(path), outlet);
            }
            Err(error) => self.refuse(index, path.remote, &error, outlet),
        }
    }

    /// The handshake of this side's that `local_index` names: whose, and which.
    fn begun(&self, local_index: u32) -> Option<(usize, usize)> {
        self.peers
            .iter()
            .enumerate()
            .find_map(|(index, peer)| Some((index, peer.initiation(local_index)?)))
    }

    fn handle_initiation(
        &mut self,
        now: Instant,
        path: Path,
        datagram: &[u8],
        outlet: &mut impl ControlOutlet,
    ) {
        let topology = self.topology.clone();
        let is_known = |key: &_| topology.peer_by_key(key).is_some();
        let read = Responder::read(&self.identity, datagram, &is_known, &mut *self.random);
        let responder = match read {
            Ok(responder) => responder,
            Err(error) => {
                self.counters.bump(handshake_counter(&error));
                let (source, reason) = (path.remote, error.to_string());
                outlet.event(ControlEvent::HandshakeRefused { source, reason });
                return;
            }
        };
        let Some(index) = topology.peer_by_key(&responder.peer()) else { return };
        let index = usize::from(index.0);
        if !self.peers[index].seen.insert(responder.ephemeral()) {
            self.counters.bump(Counter::HandshakeReplayed);
            return;
        }
        let local_index = self.fresh_index();
        match responder.respond(local_index, &self.hello) {
            Ok(answer) => {
                match answer.outcome {
                    Ok(established) => self.establish(now, index, established, None, outlet),
                    Err(disagreement) => {
                        self.counters.bump(Counter::HandshakeIncompatible);
                        self.incompatible(index, disagreement.to_string(), outlet);
                    }
                }
                if let Err(error) = outlet.transmit(&path, &answer.datagram) {
                    self.counters.bump(send_counter(error));
                }
            }
            Err(error) => self.counters.bump(handshake_counter(&error)),
        }
    }

    /// Hands a new session's keys to its lanes. `path` is known to the
    /// initiator only; so is that the peer holds the keys.
    fn establish(
        &mut self,
        now: Instant,
        index: usize,
        established: Established,
        path: Option<Path>,
        outlet: &mut impl ControlOutlet,
    ) {
        self.counters.add(Counter::HelloUnknownField, established.unknown_fields as u64);
        let initiated = established.initiated;
        for local_index in self.peers[index].surplus(initiated) {
            self.remove(index, local_index, outlet);
        }
        // A listener's path leads to the peer's control lane alone: behind a NAT,
        // each of its lanes has another port.
        let is_common = path.is_some_and(|path| path.socket == SocketRole::Dialer);
        let parameters = |lane: u8| {
            let path = path.filter(|_| is_common || lane == CONTROL_LANE);
            let keys = established.secrets.lane(lane);
            SessionParameters {
                local_index: established.local_index,
                remote_index: established.remote_index,
                initiated,
                seal: keys.seal,
                open: keys.open,
                path,
            }
        };
        let peer = self.peers[index].index;
        for lane in 1..=self.lanes(established.agreed.lanes.get()) {
            let worker = (lane - 1) % self.workers;
            let parameters = parameters(lane);
            outlet.command(worker, WorkerCommand::Install { peer, lane, parameters });
        }
        let peer = &mut self.peers[index];
        peer.lane.install(now, parameters(CONTROL_LANE));
        peer.sessions.push(Session {
            local_index: established.local_index,
            established: now,
            initiated,
            confirmed: false,
            expire_at: now + PENDING_LIFETIME,
            overdue_at: now + self.rekey_after + OVERDUE_LIFETIME,
            hello: established.remote_hello,
            agreed: established.agreed,
        });
        if initiated {
            peer.heard_at = Some(now);
            self.confirm(now, index, established.local_index, outlet);
            let mut sink = Sink::new(&self.counters, outlet);
            self.peers[index].lane.handle_timeout(now, &mut sink);
        }
    }

    /// The peer has proven that it holds the session's keys.
    fn confirm(
        &mut self,
        now: Instant,
        index: usize,
        local_index: u32,
        outlet: &mut impl ControlOutlet,
    ) {
        for surplus in self.peers[index].surplus(true) {
            self.remove(index, surplus, outlet);
        }
        let differed = self.group_differs(&self.peers[index]);
        let peer = &mut self.peers[index];
        self.counters.bump(Counter::HandshakeCompleted);
        if !peer.confirm(now, local_index) {
            return;
        }
        let Some(session) = peer.session(local_index) else { return };
        let hello = session.hello.clone();
        peer.established = Some(now);
        peer.rekey_wanted = false;
        peer.attempts = 0;
        peer.software = hello.software.as_str().to_owned();
        peer.group_digest = Some(hello.group_digest);
        let restarted = peer.startup_id.replace(hello.startup_id);
        if restarted.is_some_and(|before| before != hello.startup_id) {
            outlet.event(ControlEvent::PeerRestarted { peer: peer.index });
        }
        if peer.standing != PeerStanding::Up {
            peer.standing = PeerStanding::Up;
            if let Some(path) = peer.lane.path() {
                outlet.event(ControlEvent::PeerUp { peer: peer.index, path });
            }
        }
        self.tell_group_file(index, differed, outlet);
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

    fn refuse(
        &mut self,
        index: usize,
        source: SocketAddr,
        error: &HandshakeError,
        outlet: &mut impl ControlOutlet,
    ) {
        self.counters.bump(handshake_counter(error));
        match error {
            HandshakeError::Disagreement { source, .. } => {
                self.peers[index].initiations.clear();
                self.incompatible(index, source.to_string(), outlet);
            }
            other => {
                if matches!(other, HandshakeError::Hello { .. }) {
                    self.peers[index].initiations.clear();
                }
                let reason = other.to_string();
                outlet.event(ControlEvent::HandshakeRefused { source, reason });
            }
        }
    }

    fn incompatible(&mut self, index: usize, reason: String, outlet: &mut impl ControlOutlet) {
        let peer = &mut self.peers[index];
        let standing = PeerStanding::Incompatible(reason.clone());
        if peer.current().is_none() && peer.standing != standing {
            peer.standing = standing;
            outlet.event(ControlEvent::PeerIncompatible { peer: peer.index, reason });
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

    /// A name that no session and no handshake of this appliance has.
    fn fresh_index(&mut self) -> u32 {
        loop {
            let index = u32::from_le_bytes(draw(&mut *self.random));
            let taken = self.peers.iter().any(|peer| {
                peer.sessions.iter().any(|session| session.local_index == index)
                    || peer.initiation(index).is_some()
            });
            if !taken {
                return index;
            }
        }
    }
}

fn handshake_counter(error: &HandshakeError) -> Counter {
    match error {
        HandshakeError::Message(_) | HandshakeError::Mac1 | HandshakeError::Receiver { .. } => {
            Counter::HandshakeInvalid
        }
        HandshakeError::Finished => Counter::HandshakeReplayed,
        HandshakeError::Noise(_) | HandshakeError::Sender => Counter::HandshakeForged,
        HandshakeError::UnknownPeer(_) => Counter::HandshakeUnknownPeer,
        HandshakeError::Hello { .. } => Counter::HandshakeInvalid,
        HandshakeError::Disagreement { .. } => Counter::HandshakeIncompatible,
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
