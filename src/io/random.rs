//! The appliance's randomness.
#![allow(clippy::disallowed_methods)]

use crate::session::Random;

/// The kernel's random numbers (getrandom(2)).
#[derive(Debug, Clone, Copy, Default)]
pub struct OsRandom;

impl Random for OsRandom {
    /// # Panics
    /// Where the kernel has no random numbers: nothing secure can be done then.
    fn fill(&mut self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("getrandom(2) does not fail on Linux 3.17 and later");
    }
}
