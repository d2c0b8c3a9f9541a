use std::{net::SocketAddr, time::Duration};

use crate::{
    session::{Agreed, Cookie, Hello, Initiator, SeenInitiations},
    time::Instant,
    topology::PeerIndex,
    tunnel::{Lane, Path, SocketRole},
};

/// Sessions that the peer has proven to hold, at most: the one in use and its
/// predecessors, whose last datagrams may still be on their way.
pub(super) const CONFIRMED_MAX: usize = 5;
/// Sessions that the peer has begun but not yet proven to hold, at most.
pub(super) const PENDING_MAX: usize = 3;
const _: () = assert!(CONFIRMED_MAX + PENDING_MAX <= crate::tunnel::SESSIONS_MAX);
/// Handshakes of this side's that wait for a response, at most: what is sent
/// within a second, so that a round trip may take that long.
pub(super) const INITIATIONS_MAX: usize = 4;
/// A session that was begun but never used goes after this time.
pub(super) const PENDING_LIFETIME: Duration = Duration::from_secs(5);
/// A session that was replaced is still opened for this time.
pub(super) const RETIRED_LIFETIME: Duration = Duration::from_secs(10);
/// A session that should have been replaced is still used for this time.
pub(super) const OVERDUE_LIFETIME: Duration = Duration::from_secs(60);
/// How much longer than the initiator the other side waits before it rekeys.
const REKEY_PATIENCE: Duration = Duration::from_secs(10);
/// A peer that was not heard for this long is asked for a new session: it may
/// have restarted.
pub(super) const SILENCE: Duration = Duration::from_millis(700);
/// A peer that was not heard for this long is reported as down.
pub(super) const DOWN: Duration = Duration::from_secs(3);
const RETRY_FAST: Duration = Duration::from_millis(250);
const RETRY_SLOW: Duration = Duration::from_millis(750);
const RETRIES_FAST: u32 = 8;

/// Where the tunnel to a peer stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerStanding {
    /// No session yet.
    Connecting,
    /// A session is up and the peer is heard.
    Up,
    /// There was a session; the peer is not heard any more. Says why, for people.
    Down(String),
    /// The peer answers, but there is nothing in common. Says what, for people.
    Incompatible(String),
}

/// What the control plane keeps about one session.
pub(super) struct Session {
    pub(super) local_index: u32,
    pub(super) established: Instant,
    pub(super) initiated: bool,
    pub(super) confirmed: bool,
    pub(super) expire_at: Instant,
    /// Whatever happens, it is not used beyond this time.
    pub(super) overdue_at: Instant,
    pub(super) hello: Hello,
    pub(super) agreed: Agreed,
}

/// A handshake that this side has begun.
pub(super) struct Initiation {
    pub(super) begun_at: Instant,
    pub(super) initiator: Initiator,
    pub(super) path: Path,
    pub(super) cookie_used: bool,
}

/// The control plane's share of the tunnel to one peer.
pub(super) struct PeerControl {
    pub(super) index: PeerIndex,
    pub(super) endpoints: Vec<SocketAddr>,
    pub(super) lane: Lane,
    pub(super) sessions: Vec<Session>,
    /// Those that still wait for their response, the oldest first.
    pub(super) initiations: Vec<Initiation>,
    /// Not before this time is another handshake begun.
    pub(super) initiate_at: Instant,
    pub(super) attempts: u32,
    pub(super) cookie: Option<Cookie>,
    pub(super) seen: SeenInitiations,
    pub(super) standing: PeerStanding,
    pub(super) heard_at: Option<Instant>,
    pub(super) rekey_wanted: bool,
    pub(super) software: String,
    pub(super) startup_id: Option<u64>,
    pub(super) group_digest: Option<[u8; 32]>,
    pub(super) established: Option<Instant>,
}

impl PeerControl {
    /// The newest session that the peer has proven to hold.
    pub(super) fn current(&self) -> Option<&Session> {
        self.sessions.iter().rev().find(|session| session.confirmed)
    }

    /// As many sessions wait for their first use as there may be.
    pub(super) fn is_crowded(&self) -> bool {
        let pending = self.sessions.iter().filter(|session| !session.confirmed);
        pending.count() >= PENDING_MAX
    }

    /// The handshake of this side's that `local_index` names.
    pub(super) fn initiation(&self, local_index: u32) -> Option<usize> {
        self.initiations.iter().position(|begun| begun.initiator.local_index() == local_index)
    }

    pub(super) fn session(&mut self, local_index: u32) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|session| session.local_index == local_index)
    }

    /// The peer was heard with a session. One that was replaced lives on as long
    /// as the peer sends with it: after a simultaneous start each side sends
    /// with another.
    pub(super) fn note_heard(&mut self, now: Instant, local_index: u32) {
        self.heard_at = Some(now);
        if let Some(session) = self.session(local_index).filter(|session| session.confirmed) {
            let retire_at = (now + RETIRED_LIFETIME).min(session.overdue_at);
            session.expire_at = session.expire_at.max(retire_at);
        }
    }

    /// Notes that the peer has proven to hold the session's keys, which retires
    /// the older ones. Returns whether it is the newest.
    pub(super) fn confirm(&mut self, now: Instant, local_index: u32) -> bool {
        let place = self.sessions.iter().position(|session| session.local_index == local_index);
        let Some(place) = place else { return false };
        let (older, newer) = self.sessions.split_at_mut(place);
        for session in older.iter_mut().filter(|session| session.confirmed) {
            session.expire_at = session.expire_at.min(now + RETIRED_LIFETIME);
        }
        let Some((session, newer)) = newer.split_first_mut() else { return false };
        let is_newest = !newer.iter().any(|session| session.confirmed);
        session.confirmed = true;
        session.expire_at = if is_newest { session.overdue_at } else { now + RETIRED_LIFETIME };
        is_newest
    }

    pub(super) fn is_silent(&self, now: Instant, limit: Duration) -> bool {
        self.heard_at.is_none_or(|heard_at| now.saturating_since(heard_at) >= limit)
    }

    /// A new session is wanted from this time on; `None` while the present
    /// one is as good as new.
    pub(super) fn wants_handshake_at(&self, rekey_after: Duration) -> Instant {
        let Some(session) = self.current().filter(|_| !self.rekey_wanted) else {
            return Instant::ZERO;
        };
        let patience = if session.initiated { Duration::ZERO } else { REKEY_PATIENCE };
        let worn_at = session.established + rekey_after + patience;
        let silent_at = self.heard_at.map_or(Instant::ZERO, |heard_at| heard_at + SILENCE);
        worn_at.min(silent_at)
    }

    /// Where to send the next first message: where the peer is, if it is known,
    /// then by turns where the group file says that it is.
    pub(super) fn next_path(&self) -> Path {
        let known = self.lane.path();
        let places = self.endpoints.len() + usize::from(known.is_some());
        let turn = self.attempts as usize % places.max(1);
        match known {
            Some(path) if turn == 0 => path,
            _ => {
                let turn = turn - usize::from(known.is_some());
                Path { socket: SocketRole::Dialer, local: None, remote: self.endpoints[turn] }
            }
        }
    }

    /// When the next attempt is due after one at `now`; `jitter` is random.
    pub(super) fn retry_at(&self, now: Instant, jitter: u8) -> Instant {
        let interval = if self.attempts < RETRIES_FAST { RETRY_FAST } else { RETRY_SLOW };
        now + interval + interval / 4 * u32::from(jitter) / 255
    }

    /// Which sessions have to go before another may come: the oldest of those
    /// that are confirmed (or not), where there are as many as there may be.
    pub(super) fn surplus(&self, confirmed: bool) -> Vec<u32> {
        let limit = if confirmed { CONFIRMED_MAX } else { PENDING_MAX };
        let alike: Vec<u32> = self
            .sessions
            .iter()
            .filter(|session| session.confirmed == confirmed)
            .map(|session| session.local_index)
            .collect();
        alike[..(alike.len() + 1).saturating_sub(limit)].to_vec()
    }
}
