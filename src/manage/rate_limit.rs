//! Bounds how often the network can make an appliance speak.

use std::time::Duration;

use crate::time::Instant;

/// Lets through `burst` events at once and `burst` per interval in the long
/// run, and counts the rest; one per kind of event.
///
/// The generic cell rate algorithm (ITU-T I.371, annex A): `due` is when the
/// bucket will be empty again, and an event passes while that is less than one
/// interval away.
#[derive(Clone, Debug)]
pub struct RateLimit {
    interval: Duration,
    spacing: Duration,
    due: Instant,
    suppressed: u64,
}

impl RateLimit {
    /// A limit of `burst` events per `interval`.
    ///
    /// # Panics
    ///
    /// If `burst` is 0.
    pub const fn new(interval: Duration, burst: u32) -> Self {
        assert!(burst > 0, "a limit of 0 events would never let one through");
        let spacing = Duration::from_nanos((interval.as_nanos() / burst as u128) as u64);
        Self { interval, spacing, due: Instant::ZERO, suppressed: 0 }
    }

    /// Whether an event may pass at `now`: then the number of events that were
    /// suppressed since the last one that passed.
    pub fn allow(&mut self, now: Instant) -> Option<u64> {
        let due = self.due.max(now) + self.spacing;
        if due.saturating_since(now) > self.interval {
            self.suppressed += 1;
            return None;
        }
        self.due = due;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(millis)
    }

    #[test]
    fn a_burst_passes_and_the_rest_is_counted() {
        let mut limit = RateLimit::new(SECOND, 2);
        let answers: Vec<_> = [0, 0, 0, 1, 499, 500, 501].map(|t| limit.allow(at(t))).into();
        assert_eq!(answers, [Some(0), Some(0), None, None, None, Some(3), None]);
        assert_eq!(limit.allow(at(60_000)), Some(1));
    }

    #[test]
    fn a_clock_near_its_end_still_bounds() {
        let mut limit = RateLimit::new(SECOND, 1);
        let late = Instant::from_nanos(u64::MAX - 2_000_000_000);
        assert_eq!(limit.allow(late), Some(0));
        assert_eq!(limit.allow(late), None);
    }

    proptest! {
        #[test]
        fn no_window_exceeds_the_rate(
            burst in 1u32..8,
            gaps in prop::collection::vec(0u64..400, 1..200),
        ) {
            let mut limit = RateLimit::new(SECOND, burst);
            let (mut now_ms, mut passed, mut refused, mut told) = (0, Vec::new(), 0, 0);
            for gap in gaps {
                now_ms += gap;
                match limit.allow(at(now_ms)) {
                    Some(suppressed) => { passed.push(now_ms); told += suppressed; }
                    None => refused += 1,
                }
            }
            prop_assert_eq!(told + limit.suppressed, refused);
            for (i, &start) in passed.iter().enumerate() {
                let within = passed[i..].iter().filter(|&&t| t < start + 1000).count();
                prop_assert!(within <= 2 * burst as usize, "{} within a second", within);
                let span_ms = passed[passed.len() - 1] - start;
                let bound = u64::from(burst) + span_ms * u64::from(burst) / 1000 + 1;
                prop_assert!((passed.len() - i) as u64 <= bound);
            }
        }
    }
}
