//! What the kernel took in and dropped for a packet socket
//! (`PACKET_STATISTICS`, which starts at zero again with each reading).

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::socket::get_option;

/// Sums of all readings, whoever read.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// The kernel's, a few readings per second by two threads: each takes both
    /// numbers together, or a pause between them would look like a stalled ring.
    totals: Mutex<Totals>,
    /// Frames that came cut off, for want of room for the whole of them.
    cut_off: AtomicU64,
}

/// Frames since a socket was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Totals {
    /// Taken in by the kernel.
    pub(super) accepted: u64,
    /// Dropped by the kernel.
    pub(super) dropped: u64,
}

impl Tally {
    /// Adds what `socket` has to say since the last reading.
    pub(super) fn update(&self, socket: impl AsFd) -> Totals {
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let mut news = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        if get_option(socket, libc::PACKET_STATISTICS, &mut news).is_ok() {
            let accepted = news.tp_packets.saturating_sub(news.tp_drops);
            totals.accepted += u64::from(accepted);
            totals.dropped += u64::from(news.tp_drops);
        }
        *totals
    }

    #[cold]
    pub(super) fn count_cut_off(&self) {
        self.cut_off.fetch_add(1, Relaxed);
    }
}

/// Reads what the kernel dropped for want of room in a
/// [`PacketQueue`](super::PacketQueue), or because it could not describe it.
/// It keeps the socket open: drop it together with the queue.
#[derive(Debug)]
pub struct PacketStatistics {
    pub(super) socket: OwnedFd,
    pub(super) tally: Arc<Tally>,
}

impl PacketStatistics {
    /// Frames dropped since the socket was opened.
    pub fn drops(&mut self) -> u64 {
        self.tally.update(&self.socket).dropped + self.tally.cut_off.load(Relaxed)
    }
}
