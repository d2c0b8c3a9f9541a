use std::time::Duration;

use super::{LaneSink, Path, PathMtu, TransmitError};
use crate::{
    session::{
        aead::{OpenKey, SealKey},
        replay::ReplayWindow,
    },
    stream::Unpacker,
    time::Instant,
    wire::datagram::{HEADER_LENGTH, Header, Kind, TAG_LENGTH},
};

/// Rekey after so many datagrams in one direction of a lane.
pub(super) const REKEY_DATAGRAMS: u64 = 1 << 28;
/// Rekey after so many bytes in one direction of a lane.
pub(super) const REKEY_BYTES: u64 = 1 << 38;
/// Beyond this counter nothing is sealed or opened any more.
pub(super) const COUNTER_MAX: u64 = 1 << 40;

/// What the control plane hands to a lane for a new session.
pub struct SessionParameters {
    /// This side's name for the session: what arrives with it is ours to open.
    pub local_index: u32,
    /// The peer's name for it.
    pub remote_index: u32,
    /// This side began the handshake: it may send at once, the other side
    /// only after the first authentic datagram has proven the keys.
    pub initiated: bool,
    /// Seals what this side sends.
    pub seal: SealKey,
    /// Opens what this side receives.
    pub open: OpenKey,
    /// Where to send, known at first to the initiator only.
    pub path: Option<Path>,
}

/// One session's share of a lane: keys, counters, replay window, stream position.
pub(super) struct LaneSession {
    pub(super) local_index: u32,
    remote_index: u32,
    lane: u8,
    seal: SealKey,
    open: OpenKey,
    replay: ReplayWindow,
    counter: u64,
    sealed_bytes: u64,
    /// Counters since the last stream datagram that carried no stream bytes.
    pub(super) skipped: u8,
    pub(super) unpacker: Unpacker,
    pub(super) path: Option<Path>,
    /// How the newest datagram came.
    pub(super) heard_over: Option<Path>,
    /// When the newest datagram came.
    pub(super) heard_at: Instant,
    pub(super) installed_at: Instant,
    /// The peer has proven that it holds the keys.
    pub(super) confirmed: bool,
    pub(super) confirm_at: Instant,
    pub(super) rekey_asked: bool,
}

/// Why a datagram could not be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum OpenFailure {
    /// Seen before, or too old to know.
    #[error("replayed")]
    Replayed,
    /// Not sealed by the peer.
    #[error("not authentic")]
    NotAuthentic,
}

impl LaneSession {
    pub(super) fn new(now: Instant, lane: u8, parameters: SessionParameters) -> Self {
        Self {
            local_index: parameters.local_index,
            remote_index: parameters.remote_index,
            lane,
            seal: parameters.seal,
            open: parameters.open,
            replay: ReplayWindow::new(),
            counter: 0,
            sealed_bytes: 0,
            skipped: 0,
            unpacker: Unpacker::default(),
            path: parameters.path,
            heard_over: None,
            heard_at: Instant::ZERO,
            installed_at: now,
            confirmed: false,
            confirm_at: now,
            rekey_asked: false,
        }
    }

    /// Seals a batch of stream datagrams in place; all but the last are
    /// `size` bytes. Returns `false` where the key is used up.
    #[inline]
    pub(super) fn seal_stream(&mut self, size: usize, batch: &mut [u8]) -> bool {
        for datagram in batch.chunks_mut(size) {
            datagram[HEADER_LENGTH + 2] = std::mem::take(&mut self.skipped);
            if !self.seal_one(Kind::Stream, datagram) {
                return false;
            }
        }
        true
    }

    /// Seals one signal datagram in place: its plaintext stands between blank
    /// header and tag. Returns `false` where the key is used up.
    pub(super) fn seal_signal(&mut self, datagram: &mut [u8]) -> bool {
        self.skipped = self.skipped.saturating_add(1);
        self.seal_one(Kind::Signal, datagram)
    }

    /// Notes that the last `datagrams` stream datagrams never left this host,
    /// and with them the word of the `skipped` counters before them.
    pub(super) fn note_unsent(&mut self, skipped: u8, datagrams: usize) {
        let datagrams = u8::try_from(datagrams).unwrap_or(u8::MAX);
        self.skipped = skipped.saturating_add(datagrams);
    }

    /// Sends sealed datagrams over the session's path. Where its source address
    /// is gone, the routing table chooses another one, at once and from now on.
    #[inline]
    pub(super) fn transmit(
        &mut self,
        size: usize,
        datagrams: &[u8],
        sink: &mut impl LaneSink,
    ) -> Result<(), TransmitError> {
        let path = self.path.as_mut().ok_or(TransmitError::Unreachable)?;
        match sink.transmit(path, size, datagrams) {
            Err(TransmitError::NoSource) => {
                path.local = None;
                sink.transmit(path, size, datagrams)
            }
            result => result,
        }
    }

    /// The key has been used so much that it wants to be replaced.
    #[inline]
    pub(super) fn is_worn(&self) -> bool {
        self.counter >= REKEY_DATAGRAMS || self.sealed_bytes >= REKEY_BYTES
    }

    #[cfg(test)]
    pub(super) fn wear_out(&mut self) {
        self.sealed_bytes = REKEY_BYTES;
    }

    #[inline]
    fn seal_one(&mut self, kind: Kind, datagram: &mut [u8]) -> bool {
        if self.counter >= COUNTER_MAX {
            return false;
        }
        let counter = self.counter;
        self.counter += 1;
        self.sealed_bytes += datagram.len() as u64;
        let header = Header { kind, lane: self.lane, receiver: self.remote_index, counter };
        let (clear, rest) = datagram.split_first_chunk_mut::<HEADER_LENGTH>().expect("laid out");
        let (plaintext, tag) = rest.split_last_chunk_mut::<TAG_LENGTH>().expect("laid out");
        header.emit(clear);
        self.seal.seal(counter, clear, plaintext, tag);
        true
    }

    /// Opens a datagram in place and returns its plaintext, and whether it is
    /// the newest that came so far.
    #[inline]
    pub(super) fn open<'a>(
        &mut self,
        counter: u64,
        datagram: &'a mut [u8],
    ) -> Result<(&'a mut [u8], bool), OpenFailure> {
        if counter >= COUNTER_MAX || self.replay.check(counter).is_err() {
            return Err(OpenFailure::Replayed);
        }
        let (clear, sealed) = datagram.split_at_mut(HEADER_LENGTH);
        let length =
            self.open.open(counter, clear, sealed).map_err(|_| OpenFailure::NotAuthentic)?;
        let newest = counter >= self.replay.highest();
        self.replay.accept(counter).map_err(|_| OpenFailure::Replayed)?;
        Ok((&mut sealed[..length], newest))
    }

    pub(super) fn confirm_again(&mut self, now: Instant, interval: Duration) {
        self.confirm_at = now + interval;
    }

    pub(super) fn path_mtu(&self, now: Instant) -> Option<PathMtu> {
        self.path.map(|path| PathMtu::new(now, path.packet_overhead()))
    }
}
