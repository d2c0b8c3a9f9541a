//! Randomness, handed in from outside.
//!
//! The core draws no randomness of its own: the shell passes the operating
//! system's, a test or the simulator a seeded one, and a seeded run replays
//! byte for byte, Noise's ephemeral keys included.

/// A source of random bytes.
///
/// What keys are made from must be unpredictable: outside tests, only the
/// operating system's generator may stand behind this.
pub trait Random {
    /// Fills all of `bytes`. A source that can fail must end the process
    /// rather than return with fewer.
    fn fill(&mut self, bytes: &mut [u8]);
}

/// Draws `N` bytes.
pub fn draw<const N: usize>(random: &mut dyn Random) -> [u8; N] {
    let mut bytes = [0; N];
    random.fill(&mut bytes);
    bytes
}

/// Repeatable bytes for tests (SplitMix64). Never for keys that guard anything.
#[cfg(test)]
#[derive(Debug, Clone)]
pub(crate) struct SeededRandom(pub(crate) u64);

#[cfg(test)]
impl Random for SeededRandom {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            chunk.copy_from_slice(&z.to_le_bytes()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_bytes() {
        let first: [u8; 37] = draw(&mut SeededRandom(7));
        assert_eq!(first, draw::<37>(&mut SeededRandom(7)));
        assert_ne!(first, draw::<37>(&mut SeededRandom(8)));
    }
}
