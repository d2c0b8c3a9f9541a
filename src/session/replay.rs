//! Replay protection: of transport datagrams by counter, of first handshake
//! messages by ephemeral key.

use std::collections::VecDeque;

use thiserror::Error;

/// Counters in one block of the bitmap.
const BLOCK_BITS: u64 = u64::BITS as u64;
/// Blocks in the ring, a power of two.
const BLOCKS: u64 = 256;
/// A counter further behind the highest accepted one than this is too old to
/// judge. One block less than the ring holds: the newest block is only partly
/// used (RFC 6479 section 3).
pub const WINDOW_COUNTERS: u64 = (BLOCKS - 1) * BLOCK_BITS;
const _: () = assert!(BLOCKS.is_power_of_two() && WINDOW_COUNTERS >= 8192);

/// First messages remembered per peer by [`SeenInitiations`].
pub const SEEN_INITIATIONS: usize = 64;

/// Which counters of one (lane, direction, key) were accepted already: a bitmap
/// ring in the manner of RFC 6479, 2 KiB. Moving it forward clears whole blocks,
/// never shifts.
///
/// ```text
///            too old           │   judged by its bit: WINDOW_COUNTERS    │ new
/// ─────────────────────────────┼─────────────────────────────────────────┼──────▶
///                                                                   highest
/// ```
#[derive(Debug, Clone)]
pub struct ReplayWindow {
    highest: u64,
    blocks: Box<[u64; BLOCKS as usize]>,
}

/// Why a counter is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ReplayError {
    /// It was accepted before.
    #[error("this counter was accepted before: a replayed or duplicated datagram")]
    Duplicate,
    /// It is so far behind that nobody knows any more.
    #[error("this counter is more than {WINDOW_COUNTERS} behind the newest")]
    TooOld,
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { highest: 0, blocks: Box::new([0; BLOCKS as usize]) }
    }
}

impl ReplayWindow {
    /// A window that has accepted nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Would `counter` be accepted? Changes nothing, and so may be asked before
    /// authentication.
    ///
    /// # Errors
    /// [`ReplayError`].
    #[inline]
    pub fn check(&self, counter: u64) -> Result<(), ReplayError> {
        if counter > self.highest {
            return Ok(());
        }
        if self.highest - counter >= WINDOW_COUNTERS {
            return Err(ReplayError::TooOld);
        }
        let (block, bit) = position(counter);
        if self.blocks[block] & bit != 0 { Err(ReplayError::Duplicate) } else { Ok(()) }
    }

    /// Marks `counter` as accepted. Only for a counter whose datagram has
    /// authenticated: a forged one would push the window past the real ones.
    ///
    /// # Errors
    /// [`ReplayError`], and then nothing has changed.
    #[inline]
    pub fn accept(&mut self, counter: u64) -> Result<(), ReplayError> {
        self.check(counter)?;
        if counter > self.highest {
            let newest = self.highest / BLOCK_BITS;
            let fresh = (counter / BLOCK_BITS - newest).min(BLOCKS);
            for step in 1..=fresh {
                self.blocks[((newest + step) % BLOCKS) as usize] = 0;
            }
            self.highest = counter;
        }
        let (block, bit) = position(counter);
        self.blocks[block] |= bit;
        Ok(())
    }

    /// The highest counter accepted so far (0 where there was none).
    pub fn highest(&self) -> u64 {
        self.highest
    }
}

#[inline]
fn position(counter: u64) -> (usize, u64) {
    (((counter / BLOCK_BITS) % BLOCKS) as usize, 1 << (counter % BLOCK_BITS))
}

/// The ephemeral keys of the last [`SEEN_INITIATIONS`] first messages accepted
/// from one peer.
///
/// A first message can be recorded and sent again, and authenticates each time
/// (Noise, section 7.7). What truly protects is that its session stays pending
/// until the initiator proves the new keys; this set spares the work and the pending
/// slot for the recent ones. No clock is asked, so none has to agree.
#[derive(Debug, Clone, Default)]
pub struct SeenInitiations(VecDeque<[u8; 32]>);

impl SeenInitiations {
    /// A set that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Was this first message accepted before?
    pub fn contains(&self, ephemeral: &[u8; 32]) -> bool {
        self.0.contains(ephemeral)
    }

    /// Remembers the ephemeral key of a first message that authenticated, at the
    /// cost of the oldest. False where it is known already: a replay.
    pub fn insert(&mut self, ephemeral: [u8; 32]) -> bool {
        if self.contains(&ephemeral) {
            return false;
        }
        if self.0.len() == SEEN_INITIATIONS {
            self.0.pop_front();
        }
        self.0.push_back(ephemeral);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// What the window is meant to do, with unbounded memory.
    #[derive(Default)]
    struct Model {
        accepted: HashSet<u64>,
        highest: u64,
    }

    impl Model {
        fn accept(&mut self, counter: u64) -> Result<(), ReplayError> {
            if u128::from(counter) + u128::from(WINDOW_COUNTERS) <= u128::from(self.highest) {
                return Err(ReplayError::TooOld);
            }
            if !self.accepted.insert(counter) {
                return Err(ReplayError::Duplicate);
            }
            self.highest = self.highest.max(counter);
            Ok(())
        }
    }

    #[test]
    fn edges() {
        let mut window = ReplayWindow::new();
        assert_eq!(window.accept(0), Ok(()));
        assert_eq!(window.accept(0), Err(ReplayError::Duplicate));
        assert_eq!(window.accept(WINDOW_COUNTERS), Ok(()));
        assert_eq!(window.check(0), Err(ReplayError::TooOld));
        assert_eq!(window.accept(1), Ok(()));
        assert_eq!(window.accept(1), Err(ReplayError::Duplicate));
        assert_eq!(window.accept(u64::MAX), Ok(()));
        assert_eq!(window.accept(u64::MAX), Err(ReplayError::Duplicate));
        assert_eq!(window.accept(u64::MAX - 1), Ok(()));
        assert_eq!(window.check(WINDOW_COUNTERS), Err(ReplayError::TooOld));
        assert_eq!(window.highest(), u64::MAX);
    }

    #[test]
    fn a_jump_once_round_the_ring_leaves_no_stale_bit() {
        for rounds in [1, 2, 3] {
            let mut window = ReplayWindow::new();
            window.accept(0).unwrap();
            let again = rounds * BLOCKS * BLOCK_BITS;
            window.accept(again + 5).unwrap();
            assert_eq!(window.check(again), Ok(()));
        }
    }

    #[test]
    fn a_refused_counter_changes_nothing() {
        let mut window = ReplayWindow::new();
        window.accept(100_000).unwrap();
        let before = window.blocks.clone();
        window.accept(100_000).unwrap_err();
        window.accept(3).unwrap_err();
        assert_eq!((window.highest(), window.blocks), (100_000, before));
    }

    #[test]
    fn seen_initiations_forget_the_oldest_only() {
        let key = |n: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&(n as u64).to_le_bytes());
            key
        };
        let mut seen = SeenInitiations::new();
        for n in 0..SEEN_INITIATIONS {
            assert!(seen.insert(key(n)));
            assert!(!seen.insert(key(n)));
        }
        assert!(seen.contains(&key(0)));
        assert!(seen.insert(key(SEEN_INITIATIONS)));
        assert!(!seen.contains(&key(0)));
        assert!((1..=SEEN_INITIATIONS).all(|n| seen.contains(&key(n))));
        assert_eq!(seen.0.len(), SEEN_INITIATIONS);
    }

    fn counters() -> impl Strategy<Value = Vec<u64>> {
        let near = |centre: u64| {
            (0..2 * WINDOW_COUNTERS + 200).prop_map(move |offset| {
                centre.saturating_sub(WINDOW_COUNTERS + 100).saturating_add(offset)
            })
        };
        let start = prop_oneof![
            Just(0),
            Just(u64::MAX),
            Just(u64::MAX / 2),
            Just(WINDOW_COUNTERS),
            any::<u64>()
        ];
        start.prop_flat_map(move |centre| {
            proptest::collection::vec(
                prop_oneof![
                    8 => near(centre),
                    4 => (0..70_u64).prop_map(move |offset| centre.saturating_sub(offset)),
                    2 => (0..4_u64).prop_map(move |blocks| {
                        centre.saturating_sub(WINDOW_COUNTERS - 64 * blocks)
                    }),
                    1 => any::<u64>(),
                ],
                1..300,
            )
        })
    }

    proptest! {
        #[test]
        fn agrees_with_the_model(counters in counters()) {
            let (mut window, mut model) = (ReplayWindow::new(), Model::default());
            for counter in counters {
                let expected = model.accept(counter);
                prop_assert_eq!(window.check(counter), expected);
                prop_assert_eq!(window.accept(counter), expected);
            }
        }
    }
}
