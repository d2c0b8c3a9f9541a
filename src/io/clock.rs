//! The appliance's clock.

use rustix::time::{ClockId, clock_gettime};

use crate::time::Instant;

/// Now, on `CLOCK_BOOTTIME`: monotonic, and it goes on while the host sleeps,
/// so that sessions age as their peers' do. No system call (vDSO).
#[inline]
pub fn now() -> Instant {
    let time = clock_gettime(ClockId::Boottime);
    Instant::from_nanos(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}
