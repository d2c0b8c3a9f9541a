use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use super::{
    LaneStatistics, Path, PathMtu, SessionParameters, TransmitError,
    lane_session::{LaneSession, OpenFailure},
    path_mtu::{BASE_SIZE, PACKET_SIZE_MAX},
    statistics::add,
};
use crate::{
    stream::{Packer, StreamSink},
    time::Instant,
    wire::{
        datagram::{HEADER_LENGTH, Header, Kind, POSITION_LENGTH, Position, TAG_LENGTH},
        record::Record,
        signal::{self, Item, Signal},
    },
};

/// Sessions that a lane keeps at once: the one in use, its successor, and
/// those whose last datagrams may still be on their way.
pub const SESSIONS_MAX: usize = 8;
/// How often an initiator repeats its first datagram until the peer answers.
const CONFIRM_INTERVAL: Duration = Duration::from_millis(50);
/// An initiator whose first datagram was not answered for this long (or two
/// round trips) doubts its path.
const ANSWER_PATIENCE: Duration = Duration::from_millis(250);
/// Pings whose answers are waited for, at most.
const PINGS_MAX: usize = 32;

/// What a lane needs from around it: a place for records, and a way out.
pub trait LaneSink: StreamSink {
    /// A signal that concerns the tunnel, not the lane.
    fn signal(&mut self, signal: Item);
    /// Sends a run of datagrams, each of `size` bytes but for the last, which
    /// may be shorter, over `path`.
    ///
    /// # Errors
    /// See [`TransmitError`]; then none or some were sent.
    fn transmit(&mut self, path: &Path, size: usize, datagrams: &[u8])
    -> Result<(), TransmitError>;
    /// `datagrams` that were no probes could not be sent.
    fn unsent(&mut self, error: TransmitError, datagrams: u64);
}

/// Why a frame could not be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SendError {
    /// No session that the peer has confirmed, or none whose path is known.
    #[error("no session with the peer")]
    NoSession,
    /// The kernel did not take the datagrams.
    #[error(transparent)]
    Transmit(#[from] TransmitError),
    /// The key may not be used any more and no new one has come.
    #[error("key used up")]
    KeyUsedUp,
}

/// Why a datagram was not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReceiveError {
    /// No session has this index.
    #[error("no such session")]
    UnknownSession,
    /// Seen before, or too old to know.
    #[error("replayed")]
    Replayed,
    /// Not sealed by the peer.
    #[error("not authentic")]
    NotAuthentic,
    /// Authentic, but shorter than its kind needs.
    #[error("malformed")]
    Malformed,
}

/// One UDP flow of the tunnel to one peer, with its own keys, counters, path
/// and path MTU. Owned by one thread.
pub struct Lane {
    number: u8,
    sessions: Vec<LaneSession>,
    /// Index into `sessions` of the one that is sent with.
    current: Option<usize>,
    packer: Option<Packer>,
    signal_buffer: Vec<u8>,
    path_mtu: Option<PathMtu>,
    pings: Vec<(u32, Instant)>,
    next_sequence: u32,
    ping_interval: Duration,
    ping_at: Instant,
    round_trip: Option<Duration>,
    statistics: Arc<LaneStatistics>,
}

impl Lane {
    /// A lane without sessions. It pings every `ping_interval`.
    pub fn new(number: u8, ping_interval: Duration, statistics: Arc<LaneStatistics>) -> Self {
        Self {
            number,
            sessions: Vec::with_capacity(SESSIONS_MAX),
            current: None,
            packer: None,
            signal_buffer: Vec::new(),
            path_mtu: None,
            pings: Vec::with_capacity(PINGS_MAX),
            next_sequence: 0,
            ping_interval,
            ping_at: Instant::ZERO,
            round_trip: None,
            statistics,
        }
    }

    /// Takes a new session; the oldest goes where there are too many. An
    /// initiator sends with it from now on, over the lane's present path where
    /// no other is given.
    pub fn install(&mut self, now: Instant, mut parameters: SessionParameters) {
        if self.sessions.len() == SESSIONS_MAX {
            let oldest = usize::from(self.current == Some(0));
            let local_index = self.sessions[oldest].local_index;
            self.remove(local_index);
        }
        let initiated = parameters.initiated;
        if initiated {
            parameters.path = parameters.path.or(self.path());
        }
        self.sessions.push(LaneSession::new(now, self.number, parameters));
        if initiated {
            self.switch_to(now, self.sessions.len() - 1);
        }
    }

    /// Forgets the session that this side calls `local_index`.
    pub fn remove(&mut self, local_index: u32) {
        let Some(index) = self.position(local_index) else { return };
        self.sessions.remove(index);
        self.current = match self.current {
            Some(current) if current == index => None,
            Some(current) if current > index => Some(current - 1),
            other => other,
        };
    }

    /// Where the lane sends to.
    pub fn path(&self) -> Option<Path> {
        self.sessions.get(self.current?)?.path
    }

    /// The session that is sent with, by this side's name for it.
    pub fn current_session(&self) -> Option<u32> {
        Some(self.sessions.get(self.current?)?.local_index)
    }

    /// The key in use has carried so much that it wants to be replaced; said
    /// once per session.
    pub fn wants_rekey(&mut self) -> bool {
        let Some(session) = self.current.and_then(|current| self.sessions.get_mut(current)) else {
            return false;
        };
        let wants = session.is_worn() && !session.rekey_asked;
        session.rekey_asked |= wants;
        wants
    }

    /// Makes the key in use as good as worn.
    #[cfg(test)]
    pub(crate) fn wear_out(&mut self) {
        if let Some(session) = self.current.and_then(|current| self.sessions.get_mut(current)) {
            session.wear_out();
        }
    }

    /// Appends a record to the lane's stream, sending full batches on the way.
    ///
    /// # Errors
    /// See [`SendError`]. Where the MTU of the outgoing interface has shrunk,
    /// the record is packed once more at a size that fits.
    #[inline]
    pub fn push(
        &mut self,
        now: Instant,
        record: &Record<'_>,
        sink: &mut impl LaneSink,
    ) -> Result<(), SendError> {
        match self.push_once(now, record, sink) {
            Err(SendError::Transmit(TransmitError::TooBig)) => self.push_once(now, record, sink),
            result => result,
        }
    }

    fn push_once(
        &mut self,
        now: Instant,
        record: &Record<'_>,
        sink: &mut impl LaneSink,
    ) -> Result<(), SendError> {
        if self.path().is_none() {
            return Err(SendError::NoSession);
        }
        if self.packer.as_ref().is_some_and(Packer::is_full) {
            self.flush(now, sink)?;
        }
        let packer = self.packer.get_or_insert_with(|| Packer::new(BASE_SIZE));
        if packer.is_empty()
            && let Some(path_mtu) = &self.path_mtu
            && path_mtu.size() != packer.datagram_size()
        {
            packer.set_datagram_size(path_mtu.size());
        }
        packer.begin_record(record.has_trailer());
        for part in record.parts() {
            let mut rest = part;
            while let Some(packer) = &mut self.packer {
                rest = &rest[packer.write(rest)..];
                if rest.is_empty() {
                    break;
                }
                self.flush(now, sink)?;
            }
        }
        Ok(())
    }

    /// Seals and sends what was pushed: the end of a burst.
    ///
    /// # Errors
    /// See [`SendError`]; what was pushed is lost then.
    #[inline]
    pub fn flush(&mut self, now: Instant, sink: &mut impl LaneSink) -> Result<(), SendError> {
        let Some(packer) = self.packer.as_mut().filter(|packer| !packer.is_empty()) else {
            return Ok(());
        };
        let Some(session) = self.current.and_then(|current| self.sessions.get_mut(current)) else {
            packer.reset();
            return Err(SendError::NoSession);
        };
        if session.path.is_none() {
            packer.reset();
            return Err(SendError::NoSession);
        }
        let (size, batch) = packer.take();
        let skipped = session.skipped;
        if !session.seal_stream(size, batch) {
            packer.reset();
            return Err(SendError::KeyUsedUp);
        }
        let datagrams = batch.len().div_ceil(size);
        let batch_size = batch.len().min(size);
        let result = session.transmit(size, batch, sink);
        match result {
            Ok(()) => {
                add(&self.statistics.sent_datagrams, datagrams as u64);
                add(&self.statistics.sent_bytes, batch.len() as u64);
                if let Some(path_mtu) = &mut self.path_mtu
                    && batch.len() >= size
                {
                    path_mtu.note_use();
                }
            }
            Err(error) => {
                session.note_unsent(skipped, datagrams);
                packer.reset();
                sink.unsent(error, datagrams as u64);
                self.refused(now, error, batch_size);
            }
        }
        Ok(result?)
    }

    fn refused(&mut self, now: Instant, error: TransmitError, size: usize) {
        if let (TransmitError::TooBig, Some(path_mtu)) = (error, &mut self.path_mtu) {
            path_mtu.refused(now, size);
            self.statistics.path_mtu.store(path_mtu.packet_size() as u32, Relaxed);
        }
    }

    /// Opens a datagram that came over `path`, and hands what it holds to `sink`.
    ///
    /// # Errors
    /// See [`ReceiveError`]; nothing has changed then.
    #[inline]
    pub fn receive(
        &mut self,
        now: Instant,
        header: &Header,
        path: Path,
        datagram: &mut [u8],
        sink: &mut impl LaneSink,
    ) -> Result<(), ReceiveError> {
        let index = self.position(header.receiver).ok_or(ReceiveError::UnknownSession)?;
        if datagram.len() > PACKET_SIZE_MAX {
            // Nobody sends such; held behind a hole they would take up much memory.
            return Err(ReceiveError::Malformed);
        }
        let session = &mut self.sessions[index];
        let length = datagram.len() as u64;
        let (plaintext, newest) =
            session.open(header.counter, datagram).map_err(|failure| match failure {
                OpenFailure::Replayed => ReceiveError::Replayed,
                OpenFailure::NotAuthentic => ReceiveError::NotAuthentic,
            })?;
        add(&self.statistics.received_datagrams, 1);
        add(&self.statistics.received_bytes, length);
        self.statistics.heard_at.store(now.as_nanos().max(1), Relaxed);
        let moved = newest && self.follow(now, index, path);
        let first = !std::mem::replace(&mut self.sessions[index].confirmed, true);
        if first && self.current.is_none_or(|current| current < index) {
            self.switch_to(now, index);
        } else if moved {
            self.path_mtu = self.current.and_then(|index| self.sessions[index].path_mtu(now));
        }
        let session = &mut self.sessions[index];
        match header.kind {
            Kind::Stream => {
                let (position, bytes) = plaintext
                    .split_first_chunk::<POSITION_LENGTH>()
                    .ok_or(ReceiveError::Malformed)?;
                let position = Position::parse(position);
                session.unpacker.receive(now, header.counter, position, bytes, sink);
            }
            Kind::Signal => {
                session.unpacker.receive_signal(now, header.counter, sink);
                let mut pinged = None;
                for item in signal::parse(plaintext) {
                    match item {
                        Item::Known(Signal::Ping { sequence }) => pinged = Some(sequence),
                        Item::Known(Signal::Pong { sequence }) => self.handle_pong(now, sequence),
                        other => sink.signal(other),
                    }
                }
                // One answer per datagram, however many pings it holds: no peer
                // gets more out of this host than it put in.
                if let Some(sequence) = pinged {
                    let _ = self.send_signal(index, &Signal::Pong { sequence }, 0, sink);
                }
            }
        }
        Ok(())
    }

    /// Follows the peer to where the newest datagram of session `index` came
    /// from. Each side may send with a session of its own: where the peer moved
    /// (a NAT maps it anew), the sessions that shared its old path move along.
    /// Returns whether the lane sends elsewhere now.
    #[inline]
    fn follow(&mut self, now: Instant, index: usize, path: Path) -> bool {
        let session = &mut self.sessions[index];
        session.heard_at = now;
        if session.path == Some(path) && session.heard_over == Some(path) {
            return false;
        }
        let before = self.path().map(|path| path.remote);
        let session = &mut self.sessions[index];
        session.path = Some(path);
        // From one socket to another is no move: the peer has flows both ways.
        let old = session.heard_over.replace(path).filter(|old| old.socket == path.socket);
        for session in &mut self.sessions {
            let place = |path: Path| (path.socket, path.remote);
            if old.is_some() && session.path.map(place) == old.map(place) {
                session.path = Some(path);
            }
        }
        self.path().map(|path| path.remote) != before
    }

    /// A session in use that the peer does not answer has a wrong path; where
    /// the peer was heard with another session meanwhile, that one's is right.
    fn correct_path(&mut self, now: Instant, index: usize) {
        let session = &self.sessions[index];
        let (path, heard_at) = (session.path, session.heard_at.max(session.installed_at));
        let interval = if session.confirmed { 2 * self.ping_interval } else { Duration::ZERO };
        let round_trip = self.round_trip.unwrap_or_default();
        let patience = interval + (2 * round_trip).max(ANSWER_PATIENCE);
        if path.is_some() && now < heard_at + patience {
            return;
        }
        let others = self.sessions.iter().filter(|session| session.heard_at > heard_at);
        let right = others.max_by_key(|session| session.heard_at).and_then(|other| other.path);
        if right.is_some() && right != path {
            self.sessions[index].path = right;
            self.path_mtu = self.sessions[index].path_mtu(now);
        }
    }

    fn handle_pong(&mut self, now: Instant, sequence: u32) {
        if let Some(index) = self.pings.iter().position(|(sent, _)| *sent == sequence) {
            let (_, sent_at) = self.pings.remove(index);
            let sample = now.saturating_since(sent_at);
            // RFC 6298, section 2.
            let smoothed = self.round_trip.map_or(sample, |old| old * 7 / 8 + sample / 8);
            self.round_trip = Some(smoothed);
            let micros = u32::try_from(smoothed.as_micros()).unwrap_or(u32::MAX);
            self.statistics.round_trip_us.store(micros.max(1), Relaxed);
        }
        if let Some(path_mtu) = &mut self.path_mtu {
            if let Some(round_trip) = self.round_trip {
                path_mtu.set_round_trip(round_trip);
            }
            path_mtu.answered();
            path_mtu.acknowledged(now, sequence);
            self.statistics.path_mtu.store(path_mtu.packet_size() as u32, Relaxed);
        }
    }

    /// Sends a signal to the peer with the session in use.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn signal(&mut self, signal: &Signal, sink: &mut impl LaneSink) -> Result<(), SendError> {
        let current = self.current.ok_or(SendError::NoSession)?;
        self.send_signal(current, signal, 0, sink)
    }

    /// Does what is due: pings, probes, records that waited long enough.
    pub fn handle_timeout(&mut self, now: Instant, sink: &mut impl LaneSink) {
        for session in &mut self.sessions {
            session.unpacker.expire(now, sink);
        }
        for index in 0..self.sessions.len() {
            if self.wants_confirmation(index) && self.sessions[index].confirm_at <= now {
                self.correct_path(now, index);
                self.sessions[index].confirm_again(now, CONFIRM_INTERVAL);
                let _ = self.ping(now, index, 0, sink);
            }
        }
        let Some(current) = self.current else { return };
        if self.ping_at <= now {
            self.ping_at = now + self.ping_interval;
            self.correct_path(now, current);
            let _ = self.ping(now, current, 0, sink);
        }
        while let Some(probe) = self.path_mtu.as_mut().and_then(|path_mtu| path_mtu.poll_probe(now))
        {
            let outcome = self.ping(now, current, probe.size, sink);
            let Some(path_mtu) = &mut self.path_mtu else { break };
            match outcome {
                Err(SendError::Transmit(TransmitError::TooBig)) => {
                    path_mtu.refused(now, probe.size)
                }
                // Whatever else went wrong counts as a lost probe.
                Ok(sequence) => path_mtu.sent(now, probe.size, sequence),
                Err(_) => path_mtu.sent(now, probe.size, self.next_sequence.wrapping_sub(1)),
            }
            self.statistics.path_mtu.store(path_mtu.packet_size() as u32, Relaxed);
        }
    }

    /// When [`Lane::handle_timeout`] wants to be called.
    #[inline]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let mut next = self.current.map(|_| self.ping_at);
        let mut earlier = |at: Option<Instant>| {
            next = match (next, at) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        };
        for (index, session) in self.sessions.iter().enumerate() {
            earlier(session.unpacker.deadline());
            earlier(self.wants_confirmation(index).then_some(session.confirm_at));
        }
        if self.current.is_some() {
            earlier(self.path_mtu.as_ref().and_then(PathMtu::poll_timeout));
        }
        next
    }

    fn wants_confirmation(&self, index: usize) -> bool {
        self.current == Some(index) && !self.sessions[index].confirmed
    }

    #[inline]
    fn position(&self, local_index: u32) -> Option<usize> {
        self.sessions.iter().position(|session| session.local_index == local_index)
    }

    fn switch_to(&mut self, now: Instant, index: usize) {
        let old_remote = self.path().map(|path| path.remote);
        self.current = Some(index);
        let remote = self.sessions[index].path.map(|path| path.remote);
        if self.path_mtu.is_none() || old_remote != remote {
            self.path_mtu = self.sessions[index].path_mtu(now);
        }
        self.ping_at = now;
    }

    fn ping(
        &mut self,
        now: Instant,
        session: usize,
        size: usize,
        sink: &mut impl LaneSink,
    ) -> Result<u32, SendError> {
        let sequence = self.next_sequence;
        self.next_sequence = sequence.wrapping_add(1);
        self.send_signal(session, &Signal::Ping { sequence }, size, sink)?;
        if self.pings.len() == PINGS_MAX {
            self.pings.remove(0);
        }
        self.pings.push((sequence, now));
        Ok(sequence)
    }

    /// Sends one signal in a datagram of at least `size` bytes.
    fn send_signal(
        &mut self,
        session: usize,
        signal: &Signal,
        size: usize,
        sink: &mut impl LaneSink,
    ) -> Result<(), SendError> {
        let session = self.sessions.get_mut(session).ok_or(SendError::NoSession)?;
        if session.path.is_none() {
            return Err(SendError::NoSession);
        }
        let buffer = &mut self.signal_buffer;
        buffer.clear();
        buffer.resize(HEADER_LENGTH, 0);
        signal.emit(buffer);
        buffer.resize((buffer.len() + TAG_LENGTH).max(size), 0);
        if !session.seal_signal(buffer) {
            return Err(SendError::KeyUsedUp);
        }
        let length = buffer.len();
        let result = session.transmit(length, buffer, sink);
        match result {
            Ok(()) => {
                add(&self.statistics.sent_datagrams, 1);
                add(&self.statistics.sent_bytes, length as u64);
            }
            Err(error) => {
                if size == 0 {
                    sink.unsent(error, 1);
                }
            }
        }
        Ok(result?)
    }
}
