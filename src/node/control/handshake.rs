//! Handshakes: from the first message of either side to a session in every lane.

use std::net::SocketAddr;

use super::{
    ControlEvent, ControlOutlet, ControlPlane, PeerStanding, Sink,
    peer::{INITIATIONS_MAX, Initiation, OVERDUE_LIFETIME, PENDING_LIFETIME, PeerControl, Session},
};
use crate::{
    node::{Counter, WorkerCommand, worker::send_counter},
    session::{
        Admission, DropReason, Established, HandshakeError, Initiator, Responder, random::draw,
    },
    time::Instant,
    tunnel::{Path, SessionParameters, SocketRole},
    wire::datagram::CONTROL_LANE,
};

impl ControlPlane {
    pub(super) fn admit(
        &mut self,
        now: Instant,
        path: Path,
        datagram: &[u8],
        outlet: &mut impl ControlOutlet,
    ) -> bool {
        // Sessions that wait for their first use would crowd each other out:
        // whoever wants more of them shows that it owns its address.
        let under_load = self.peers.iter().any(PeerControl::is_crowded);
        match self.checker.check(now, path.remote, datagram, under_load, &mut *self.random) {
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

    pub(super) fn initiate(&mut self, now: Instant, index: usize, outlet: &mut impl ControlOutlet) {
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
                peer.initiations.push(Initiation { begun_at: now, initiator, path, cookie_used });
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

    pub(super) fn handle_cookie(&mut self, now: Instant, datagram: &[u8]) {
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

    pub(super) fn handle_response(
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
    pub(super) fn begun(&self, local_index: u32) -> Option<(usize, usize)> {
        self.peers
            .iter()
            .enumerate()
            .find_map(|(index, peer)| Some((index, peer.initiation(local_index)?)))
    }

    pub(super) fn handle_initiation(
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
    pub(super) fn confirm(
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
        // What else was begun would only replace this session by one as old.
        peer.initiations.clear();
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
