//! The keyed hash that chooses a station's buckets.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

/// Hashes 64 bits to 64 under a secret: a folded multiplication, then Dietzfelbinger's
/// multiply-shift (*Universal hashing and k-wise independent random variables via
/// integer arithmetic without primes*, 1996).
///
/// The second step is strongly universal, so any two keys that the first has not
/// made equal fall on any two values equally likely: nobody who doesn't know the
/// secret can choose keys that share buckets more often than random ones do. The
/// first is not linear: who finds keys that do share some, by what is flooded, can't
/// add the same difference to others. This is no cryptographic hash, and has no need
/// to be one: its values never leave the table, and where buckets do overflow, a
/// station is not learned.
#[derive(Clone, Copy)]
pub(super) struct KeyedHash {
    mask: u64,
    fold: u64,
    factor: u128,
    summand: u128,
}

impl KeyedHash {
    /// `seed` must be random and stay secret.
    pub(super) fn new(seed: [u64; 2]) -> Self {
        let word = |number: u64| {
            let mut hasher = SipHasher13::new_with_keys(seed[0], seed[1]);
            hasher.write_u64(number);
            hasher.finish()
        };
        let wide = |number| u128::from(word(number)) << 64 | u128::from(word(number + 1));
        // An odd factor loses nothing of the lower half before the fold.
        Self { mask: word(0), fold: word(1) | 1, factor: wide(2), summand: wide(4) }
    }

    #[inline]
    pub(super) fn of(&self, bits: u64) -> u64 {
        let product = u128::from(bits ^ self.mask) * u128::from(self.fold);
        let folded = (product as u64) ^ (product >> 64) as u64;
        let sum = self.factor.wrapping_mul(folded.into()).wrapping_add(self.summand);
        (sum >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys that differ as those of real and of invented stations do.
    #[test]
    fn keys_with_a_pattern_spread_as_random_ones() {
        const KEYS: usize = 4096;
        const BUCKETS: usize = 1024;
        for (seed, shift) in (0..48).flat_map(|shift| [1, 2, 3].map(|seed| (seed, shift))) {
            let hash = KeyedHash::new([seed, !seed]);
            for half in [0, 32] {
                let mut loads = [0_usize; BUCKETS];
                for number in 0..KEYS as u64 {
                    let value = hash.of(number.rotate_left(shift) ^ 0x0200 << 32);
                    loads[(value >> half) as usize % BUCKETS] += 1;
                }
                // With random ones, any of 1024 has more than 20 twice in a million times.
                let fullest = loads.into_iter().max().unwrap();
                assert!(fullest <= 20, "{fullest} of {KEYS} keys, shift {shift}, seed {seed}");
            }
        }
    }

    #[test]
    fn another_seed_is_another_hash() {
        let [one, other] = [[1, 2], [2, 1]].map(KeyedHash::new);
        assert!((0..1000).all(|bits| one.of(bits) != other.of(bits)));
    }
}
