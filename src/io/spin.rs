//! How long a data thread looks for work before it sleeps.

use std::time::Duration;

/// The first budget after a sleep that was short.
const FIRST: Duration = Duration::from_micros(8);

/// A shorter time is none that anything slept: there was work at hand.
const NO_SLEEP: Duration = Duration::from_micros(3);

/// An adaptive spin, in the manner of the kernel's haltpoll
/// (`adjust_poll_limit` in drivers/cpuidle/governors/haltpoll.c): a thread that
/// is woken soon after it fell asleep had better not sleep, one that slept
/// long had better not spin.
#[derive(Debug)]
pub struct Spin {
    most: Duration,
    budget: Duration,
}

impl Spin {
    /// A spin of at most `most`; zero is none at all.
    pub const fn new(most: Duration) -> Self {
        Self { most, budget: Duration::ZERO }
    }

    /// How long to look for work before the next sleep.
    pub const fn budget(&self) -> Duration {
        self.budget
    }

    /// Notes how long a sleep lasted.
    pub fn slept(&mut self, time: Duration) {
        if time < NO_SLEEP {
            return;
        }
        self.budget = if time <= self.most {
            (2 * self.budget).clamp(FIRST.min(self.most), self.most)
        } else if self.budget <= FIRST {
            Duration::ZERO
        } else {
            self.budget / 2
        };
    }
}

/// The longest spin where nobody says otherwise: none where `cores` are so
/// scarce that hosts or the kernel would wait for a core that only looks for
/// work of `threads` data threads.
pub fn default_limit(cores: usize, threads: usize) -> Duration {
    if cores >= 2 * threads + 2 { Duration::from_micros(50) } else { Duration::ZERO }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(50);
    const SHORT: Duration = Duration::from_micros(30);
    const LONG: Duration = Duration::from_millis(5);

    #[test]
    fn short_sleeps_grow_the_budget_and_long_ones_end_it() {
        let mut spin = Spin::new(MOST);
        assert_eq!(spin.budget(), Duration::ZERO);
        let mut budgets = Vec::new();
        for time in [LONG, SHORT, SHORT, SHORT, SHORT, SHORT, LONG, LONG, LONG, LONG] {
            spin.slept(time);
            budgets.push(spin.budget().as_nanos());
        }
        let expected = [0, 8_000, 16_000, 32_000, 50_000, 50_000, 25_000, 12_500, 6_250, 0];
        assert_eq!(budgets, expected);
    }

    #[test]
    fn work_at_hand_says_nothing_about_sleeping() {
        let mut spin = Spin::new(MOST);
        spin.slept(Duration::from_micros(1));
        assert_eq!(spin.budget(), Duration::ZERO);
    }

    #[test]
    fn without_a_limit_nothing_spins() {
        let mut spin = Spin::new(Duration::ZERO);
        for time in [Duration::ZERO, SHORT, LONG] {
            spin.slept(time);
            assert_eq!(spin.budget(), Duration::ZERO);
        }
    }

    #[test]
    fn scarce_cores_are_left_to_others() {
        assert_eq!(default_limit(2, 1), Duration::ZERO);
        assert_eq!(default_limit(8, 4), Duration::ZERO);
        assert_eq!(default_limit(4, 1), MOST);
        assert_eq!(default_limit(10, 4), MOST);
    }
}
