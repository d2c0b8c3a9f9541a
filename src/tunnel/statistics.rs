use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// What a lane tells the outside, written by its thread alone and read by any.
#[derive(Debug, Default)]
pub struct LaneStatistics {
    /// Datagrams sent.
    pub sent_datagrams: AtomicU64,
    /// UDP payload sent, bytes.
    pub sent_bytes: AtomicU64,
    /// Authentic datagrams received.
    pub received_datagrams: AtomicU64,
    /// UDP payload of those, bytes.
    pub received_bytes: AtomicU64,
    /// Path MTU with IP and UDP headers, bytes; 0 before it is known.
    pub path_mtu: AtomicU32,
    /// Smoothed round-trip time, microseconds; 0 before it is known.
    pub round_trip_us: AtomicU32,
    /// When the peer was last heard, ns on the appliance's clock; 0 for never.
    pub heard_at: AtomicU64,
}

/// Adds to a counter that only this thread writes: no locked instruction.
#[inline]
pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(amount), Relaxed);
}
