//! The hash table under the FDB: lock-free reads, one writer, bounded probes.
//!
//! A key lives in one of **two buckets** of four slots, chosen by a keyed
//! hash; a bucket is one cache line. A lookup reads at most these two lines,
//! whatever MACs an attacker invents, and since it never has to follow a chain,
//! removing a key just frees its slot: there are no tombstones. A key goes to its
//! first bucket while that has room, so most lookups read one line.
//!
//! The table grows by **linear hashing** (Litwin, 1980), one bucket per
//! insertion at most, so memory follows use and no insertion pays for a rehash.
//! It never shrinks.
//!
//! An entry that moves to another bucket is first copied, then the table's
//! `shape` changes, then the original is freed: a reader that misses and sees an
//! unchanged shape has really missed.

use std::{
    array,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError, TryLockError,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};

use crossbeam_utils::CachePadded;

use super::{
    hash::KeyedHash,
    slot::{Key, Packed, Record, Slot},
};

/// Most keys that [`Table::find_batch`] takes.
pub(super) const BATCH_MAX: usize = 64;

const SLOTS_PER_BUCKET: usize = 4;
/// Buckets that are allocated at once: 64 KiB.
const BUCKETS_PER_SEGMENT: usize = 1024;

#[derive(Default)]
#[repr(align(64))]
struct Bucket([Slot; SLOTS_PER_BUCKET]);

const _: () = assert!(size_of::<Bucket>() == 64);

pub(super) struct Table {
    segments: Box<[OnceLock<Box<[Bucket; BUCKETS_PER_SEGMENT]>>]>,
    /// Buckets in use (high 32 bits), relocations so far modulo 2³² (low).
    shape: CachePadded<AtomicU64>,
    hash: KeyedHash,
    capacity: usize,
    entry_count: CachePadded<Mutex<usize>>,
}

/// The table has no slot for another key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NoRoom;

impl Table {
    /// A table for `capacity` entries, at most half full when it holds them all.
    pub(super) fn new(capacity: usize, seed: [u64; 2]) -> Self {
        assert!((1..=1 << 30).contains(&capacity), "capacity {capacity} is out of range");
        let segment_count = (capacity * 2).div_ceil(SLOTS_PER_BUCKET * BUCKETS_PER_SEGMENT);
        let table = Self {
            segments: (0..segment_count).map(|_| OnceLock::new()).collect(),
            shape: CachePadded::new(AtomicU64::new(shape(BUCKETS_PER_SEGMENT, 0))),
            hash: KeyedHash::new(seed),
            capacity,
            entry_count: CachePadded::new(Mutex::new(0)),
        };
        table.segments[0].get_or_init(new_segment);
        table
    }

    pub(super) fn bucket_count(&self) -> usize {
        bucket_count(self.shape.load(Acquire))
    }

    /// The slot that holds `key`, and what it held when it was read.
    #[inline]
    pub(super) fn find(&self, key: Key) -> Option<(&Slot, Packed, Record)> {
        self.find_hashed(key, self.hash(key))
    }

    /// As [`Self::find`], for a key whose [`Self::hash`] is known.
    #[inline]
    fn find_hashed(&self, key: Key, hash: u64) -> Option<(&Slot, Packed, Record)> {
        let mut shape = self.shape.load(Acquire);
        loop {
            for place in Buckets::in_use(shape).places(hash) {
                if let Some(found) = self.find_in(place, key) {
                    return Some(found);
                }
            }
            let seen = std::mem::replace(&mut shape, self.shape.load(Acquire));
            if seen == shape {
                return None;
            }
        }
    }

    /// Looks into one bucket. All of its slots are compared before anything
    /// depends on the outcome: which of them holds the key can't be predicted.
    #[inline]
    fn find_in(&self, place: usize, key: Key) -> Option<(&Slot, Packed, Record)> {
        let bucket = self.bucket(place);
        let mut matches =
            bucket.iter().rev().fold(0u32, |bits, slot| bits << 1 | u32::from(slot.holds(key)));
        // Two match while the key moves from one to the other; the first may be freed.
        while let Some(slot) = bucket.get(matches.trailing_zeros() as usize) {
            if let Some((value, record)) = slot.get(key) {
                return Some((slot, value, record));
            }
            matches &= matches - 1;
        }
        None
    }

    /// Finds up to [`BATCH_MAX`] keys at once and gives what is known of each to
    /// `found`, with its index. The CPU fetches the first buckets of all of them in
    /// parallel, then the second ones of those that were not there.
    #[inline]
    pub(super) fn find_batch(
        &self,
        keys: &[Option<Key>],
        mut found: impl FnMut(usize, Key, Record),
    ) {
        let buckets = Buckets::in_use(self.shape.load(Acquire));
        let mut hashes = [0; BATCH_MAX];
        for (key, hash) in keys.iter().zip(&mut hashes) {
            *hash = key.map_or(0, |key| self.hash(key));
        }
        self.touch(hashes[..keys.len()].iter().map(|hash| buckets.places(*hash)[0]));
        let mut missed = [0; BATCH_MAX];
        let mut missed_count = 0;
        for (index, (key, hash)) in keys.iter().zip(hashes).enumerate() {
            let Some(key) = *key else { continue };
            if let Some((.., record)) = self.find_in(buckets.places(hash)[0], key) {
                found(index, key, record);
            } else {
                missed[missed_count] = index;
                missed_count += 1;
            }
        }
        let missed = &missed[..missed_count];
        self.touch(missed.iter().map(|index| buckets.places(hashes[*index])[1]));
        for &index in missed {
            let Some(key) = keys[index] else { continue };
            if let Some((.., record)) = self.find_hashed(key, hashes[index]) {
                found(index, key, record);
            }
        }
    }

    /// Reads from buckets and waits for none of them. Does nothing else meanwhile,
    /// so that many of these reads fit into the CPU's reordering window.
    #[inline]
    fn touch(&self, places: impl Iterator<Item = usize>) {
        for place in places {
            std::hint::black_box(self.bucket(place)[0].is_free());
        }
    }

    /// The slots of one bucket in use; `place` is less than [`Self::bucket_count`].
    pub(super) fn bucket(&self, place: usize) -> &[Slot; SLOTS_PER_BUCKET] {
        let segment = self.segments[place / BUCKETS_PER_SEGMENT].get();
        let segment = segment.expect("a segment is allocated before its buckets are in use");
        &segment[place % BUCKETS_PER_SEGMENT].0
    }

    /// The right to insert and remove, `None` where someone else has it.
    pub(super) fn try_write(&self) -> Option<Writer<'_>> {
        let entry_count = match self.entry_count.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(Writer { table: self, entry_count })
    }

    /// The right to insert and remove. Waits for it: not for data threads.
    pub(super) fn write(&self) -> Writer<'_> {
        let entry_count = self.entry_count.lock().unwrap_or_else(PoisonError::into_inner);
        Writer { table: self, entry_count }
    }

    #[inline]
    fn hash(&self, key: Key) -> u64 {
        self.hash.of(key.bits())
    }
}

fn new_segment() -> Box<[Bucket; BUCKETS_PER_SEGMENT]> {
    let buckets: Box<[Bucket]> = (0..BUCKETS_PER_SEGMENT).map(|_| Bucket::default()).collect();
    buckets.try_into().unwrap_or_else(|_| unreachable!("it was made of so many"))
}

fn shape(bucket_count: usize, relocations: u32) -> u64 {
    (bucket_count as u64) << 32 | u64::from(relocations)
}

fn bucket_count(shape: u64) -> usize {
    (shape >> 32) as usize
}

/// Which buckets are in use.
#[derive(Clone, Copy)]
struct Buckets {
    count: usize,
    /// The least power of two that `count` does not exceed, less one.
    mask: usize,
}

impl Buckets {
    fn of(count: usize) -> Self {
        Self { count, mask: count.next_power_of_two() - 1 }
    }

    fn in_use(shape: u64) -> Self {
        Self::of(bucket_count(shape))
    }

    /// The two buckets where a key with this hash may live.
    #[inline]
    fn places(self, hash: u64) -> [usize; 2] {
        [hash as u32, (hash >> 32) as u32].map(|half| {
            let place = half as usize & self.mask;
            if place < self.count { place } else { place & (self.mask >> 1) }
        })
    }
}

/// Exclusive right to insert into and remove from a [`Table`].
pub(super) struct Writer<'a> {
    table: &'a Table,
    entry_count: MutexGuard<'a, usize>,
}

impl Writer<'_> {
    /// Adds a key that is not in the table.
    pub(super) fn insert(&mut self, key: Key, record: Record) -> Result<(), NoRoom> {
        if *self.entry_count >= self.table.capacity {
            return Err(NoRoom);
        }
        if *self.entry_count * 2 >= self.table.bucket_count() * SLOTS_PER_BUCKET {
            self.grow();
        }
        let slot = self.vacant_slot(key).ok_or(NoRoom)?;
        slot.fill(key, record);
        *self.entry_count += 1;
        Ok(())
    }

    /// Removes what `slot` holds, unless it has changed since it was `seen`.
    pub(super) fn remove(&mut self, slot: &Slot, seen: Packed) -> bool {
        let is_removed = slot.retire_if(seen);
        if is_removed {
            *self.entry_count -= 1;
        }
        is_removed
    }

    fn vacant_slot(&self, key: Key) -> Option<&Slot> {
        let buckets = Buckets::of(self.table.bucket_count());
        let places = buckets.places(self.table.hash(key));
        let [first, second] = places.map(|place| self.table.bucket(place));
        let free = |bucket: &[Slot]| bucket.iter().filter(|slot| slot.is_free()).count();
        let preferred = if free(first) >= free(second).min(2) { first } else { second };
        let slots = || first.iter().chain(second);
        let vacant = preferred.iter().find(|slot| slot.is_free());
        vacant
            .or_else(|| slots().find(|slot| self.relocate(slot)))
            .or_else(|| slots().find(|slot| self.relocate_behind(slot) && self.relocate(slot)))
    }

    /// The slots of both buckets that `key` may live in.
    fn slots_for(&self, key: Key) -> impl Iterator<Item = &Slot> {
        let buckets = Buckets::of(self.table.bucket_count());
        buckets.places(self.table.hash(key)).into_iter().flat_map(|place| self.table.bucket(place))
    }

    /// Makes room where the key in `slot` could go instead, by relocating another.
    fn relocate_behind(&self, slot: &Slot) -> bool {
        let Some((key, ..)) = slot.occupant() else { return false };
        self.slots_for(key).any(|other| self.relocate(other))
    }

    /// Frees `slot` by moving its key to that key's other bucket, if there is room.
    fn relocate(&self, slot: &Slot) -> bool {
        let Some((key, _, record)) = slot.occupant() else { return false };
        let Some(vacant) = self.slots_for(key).find(|other| other.is_free()) else { return false };
        let shape = self.table.shape.load(Relaxed);
        let copy = vacant.fill(key, record);
        // The low half wraps by itself, never into the bucket count.
        let relocations = (shape as u32).wrapping_add(1);
        self.table.shape.store(self::shape(bucket_count(shape), relocations), Release);
        hand_over(slot, vacant, copy, record);
        true
    }

    /// Puts one more bucket into use: moves to it what now belongs there.
    fn grow(&self) {
        let table = self.table;
        let shape = table.shape.load(Relaxed);
        let count = bucket_count(shape);
        let Some(segment) = table.segments.get(count / BUCKETS_PER_SEGMENT) else { return };
        let new = &segment.get_or_init(new_segment)[count % BUCKETS_PER_SEGMENT].0;
        let old_place = count - (1 << count.ilog2());
        let old = table.bucket(old_place);
        let buckets = Buckets::of(count + 1);
        let moved: [_; SLOTS_PER_BUCKET] = array::from_fn(|i| {
            let (key, _, record) = old[i].occupant()?;
            let must_move = !buckets.places(table.hash(key)).contains(&old_place);
            must_move.then(|| (new[i].fill(key, record), record))
        });
        table.shape.store(self::shape(count + 1, shape as u32), Release);
        for ((old, new), moved) in old.iter().zip(new).zip(moved) {
            if let Some((copy, record)) = moved {
                hand_over(old, new, copy, record);
            }
        }
    }
}

/// Frees `old`, whose `record` was copied to `new`, and carries over what
/// readers have written to it since.
fn hand_over(old: &Slot, new: &Slot, copy: Packed, record: Record) {
    let last = old.retire().record().expect("only the writer retires a slot");
    if last != record {
        // Fails where the copy got news of its own, which is as recent.
        new.replace(copy, last);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use proptest::prelude::*;

    use super::{super::Location, *};
    use crate::{
        bridge::fdb::{slot::Stamp, tests::RaiseOnDrop},
        time::Instant,
        topology::NetworkIndex,
        wire::ethernet::MacAddr,
    };

    const RECORD: Record =
        Record { location: Location::Local, last_seen: Stamp::at(Instant::ZERO), moves: 0 };

    /// One segment that may be filled to the brim, so that entries must be relocated.
    fn crammed_table() -> Table {
        Table { capacity: usize::MAX, ..Table::new(1, [1, 2]) }
    }

    fn key(number: u16) -> Key {
        let [high, low] = number.to_be_bytes();
        Key::new(NetworkIndex(0), MacAddr([2, 0, 0, 0, high, low])).unwrap()
    }

    fn occurrences(table: &Table, key: Key) -> usize {
        let slots = (0..table.bucket_count()).flat_map(|place| table.bucket(place));
        slots.filter(|slot| slot.get(key).is_some()).count()
    }

    #[test]
    fn relocation_fills_most_of_the_table_and_loses_nothing() {
        let table = crammed_table();
        let mut writer = table.write();
        let filled = (0..).take_while(|i| writer.insert(key(*i), RECORD).is_ok()).last().unwrap();
        // In use the table is at most half full, but halfway through a doubling the
        // buckets that are not yet split hold up to three quarters.
        assert!(filled > 4_096 * 3 / 4, "only {filled} of 4096 slots filled");
        assert_ne!(table.shape.load(Relaxed) as u32, 0, "nothing was relocated");
        for number in 0..=filled {
            assert!(table.find(key(number)).is_some(), "{number}");
            assert_eq!(occurrences(&table, key(number)), 1, "{number}");
        }
    }

    #[test]
    fn an_insertion_grows_the_table_by_one_bucket_and_one_segment_at_most() {
        const ENTRIES: u32 = 1_000_000;
        let table = Table::new(ENTRIES as usize, [1, 2]);
        let is_allocated = |segment: usize| table.segments[segment].get().is_some();
        let mut writer = table.write();
        for number in 0..ENTRIES {
            let before = table.bucket_count();
            let [a, b, c, d] = number.to_be_bytes();
            let key = Key::new(NetworkIndex(0), MacAddr([2, 0, a, b, c, d])).unwrap();
            assert_eq!(writer.insert(key, RECORD), Ok(()), "{number}");
            assert!(table.bucket_count() - before <= 1, "{number}");
            let segments = table.bucket_count().div_ceil(BUCKETS_PER_SEGMENT);
            assert!(is_allocated(segments - 1), "{number}");
            assert!(segments == table.segments.len() || !is_allocated(segments), "{number}");
        }
        assert_eq!(size_of::<[Bucket; BUCKETS_PER_SEGMENT]>(), 64 << 10);
        assert!(table.bucket_count() >= ENTRIES as usize / 2 - 1);
    }

    #[test]
    fn a_reader_never_misses_a_key_that_is_being_relocated() {
        const STABLE: u16 = 1_000;
        let table = crammed_table();
        for number in 0..STABLE {
            table.write().insert(key(number), RECORD).unwrap();
        }
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(Relaxed) {
                    for number in 0..STABLE {
                        assert!(table.find(key(number)).is_some(), "{number}");
                    }
                }
            });
            let _done = RaiseOnDrop(&is_done);
            let mut writer = table.write();
            for _ in 0..20 {
                let numbers = STABLE..;
                let added: Vec<_> =
                    numbers.take_while(|i| writer.insert(key(*i), RECORD).is_ok()).collect();
                for number in added {
                    let (slot, seen, _) = table.find(key(number)).unwrap();
                    assert!(writer.remove(slot, seen));
                }
            }
        });
        assert_ne!(table.shape.load(Relaxed) as u32, 0, "nothing was relocated");
    }

    #[test]
    fn a_reader_never_misses_a_key_that_keeps_moving() {
        let table = crammed_table();
        table.write().insert(key(1), RECORD).unwrap();
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(Relaxed) {
                    assert!(table.find(key(1)).is_some());
                    let mut found = 0;
                    table.find_batch(&[Some(key(1)); 2], |_, _, _| found += 1);
                    assert_eq!(found, 2);
                }
            });
            let _done = RaiseOnDrop(&is_done);
            let writer = table.write();
            for _ in 0..300_000 {
                let (slot, ..) = table.find(key(1)).unwrap();
                assert!(writer.relocate(slot));
            }
        });
        assert_eq!(occurrences(&table, key(1)), 1);
    }

    #[test]
    fn a_swap_meant_for_the_previous_owner_fails() {
        let slot = Slot::default();
        let seen = slot.fill(key(1), RECORD);
        assert!(slot.retire_if(seen));
        let moved = Record { location: Location::Local, moves: 9, ..RECORD };
        assert!(!slot.replace(seen, moved));
        slot.fill(key(2), RECORD);
        assert!(!slot.replace(seen, moved));
        assert_eq!(slot.occupant().unwrap().2, RECORD);
    }

    #[test]
    fn handing_over_keeps_what_was_written_meanwhile() {
        let (old, new) = (Slot::default(), Slot::default());
        let seen = old.fill(key(1), RECORD);
        let copy = new.fill(key(1), RECORD);
        let moved = Record { moves: 1, ..RECORD };
        assert!(old.replace(seen, moved));
        hand_over(&old, &new, copy, RECORD);
        assert!(old.is_free());
        assert_eq!(new.occupant().unwrap().2, moved);
    }

    proptest! {
        #[test]
        fn growing_moves_a_place_only_to_the_new_bucket(hash: u64, count in 1usize..5000) {
            let [before, after] = [count, count + 1].map(|count| Buckets::of(count).places(hash));
            for (before, after) in before.into_iter().zip(after) {
                prop_assert!(before < count);
                let split = count - (1 << count.ilog2());
                prop_assert!(after == before || (after == count && before == split));
            }
        }
    }
}
