//! One entry of the table: two atomic words that always agree.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use super::Location;
use crate::{
    time::Instant,
    topology::{NetworkIndex, SiteIndex},
    wire::ethernet::MacAddr,
};

/// Network index (16 bits) and MAC (48 bits); never 0, which marks a free slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Key(u64);

impl Key {
    /// `None` where `mac` is no station's address: all zero, or a group.
    pub(super) fn new(network: NetworkIndex, mac: MacAddr) -> Option<Self> {
        let [a, b, c, d, e, f] = mac.0;
        let [high, low] = network.0.to_be_bytes();
        let is_station = mac != MacAddr::default() && !mac.is_group();
        is_station.then_some(Self(u64::from_be_bytes([high, low, a, b, c, d, e, f])))
    }

    pub(super) fn network(self) -> NetworkIndex {
        NetworkIndex((self.0 >> 48) as u16)
    }

    pub(super) fn mac(self) -> MacAddr {
        let [_, _, mac @ ..] = self.0.to_be_bytes();
        MacAddr(mac)
    }

    pub(super) fn bits(self) -> u64 {
        self.0
    }
}

/// A coarse time in ticks of 2²⁶ ns (67 ms). It wraps after nine years; ages
/// are right as long as no entry gets half that old, which sweeping ensures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp(u32);

const TICK_SHIFT: u32 = 26;

impl Stamp {
    pub(super) const fn at(now: Instant) -> Self {
        Self((now.as_nanos() >> TICK_SHIFT) as u32)
    }

    /// Ticks from `self` to `now`, 0 where `self` is the later one: threads
    /// read the clock once per batch, so a stamp may be ahead of a reader.
    pub(super) fn age(self, now: Self) -> u32 {
        (now.0.wrapping_sub(self.0) as i32).max(0) as u32
    }
}

/// A duration in ticks, rounded up.
pub(super) fn ticks(duration: std::time::Duration) -> u32 {
    const AGE_MAX: u32 = i32::MAX as u32 - 1;
    let ticks = duration.as_nanos().div_ceil(1 << TICK_SHIFT);
    u32::try_from(ticks).unwrap_or(AGE_MAX).min(AGE_MAX)
}

/// A number of ticks as a duration.
pub(super) fn from_ticks(ticks: u32) -> std::time::Duration {
    std::time::Duration::from_nanos(u64::from(ticks) << TICK_SHIFT)
}

/// What is known about one MAC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Record {
    pub(super) location: Location,
    pub(super) last_seen: Stamp,
    pub(super) moves: u8,
}

/// A slot's second word: location 16 bits, stamp 32, moves 8, generation 8.
///
/// The generation grows whenever the slot changes hands, so that a
/// compare-and-swap meant for the previous owner's record fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Packed(u64);

const LOCATION_LOCAL: u16 = 0xffff;
const LOCATION_RETIRED: u16 = 0xfffe;

impl Packed {
    fn new(record: Record, generation: u8) -> Self {
        let location = match record.location {
            Location::Local => LOCATION_LOCAL,
            Location::Site(SiteIndex(site)) => {
                assert!(site < LOCATION_RETIRED, "site index {site} is out of range");
                site
            }
        };
        let stamp = u64::from(record.last_seen.0) << 16;
        let moves = u64::from(record.moves) << 48;
        Self(u64::from(location) | stamp | moves | u64::from(generation) << 56)
    }

    fn generation(self) -> u8 {
        (self.0 >> 56) as u8
    }

    fn retired(self) -> Self {
        Self(self.0 & !0xffff | u64::from(LOCATION_RETIRED))
    }

    /// `None` where the slot is being taken out of use.
    pub(super) fn record(self) -> Option<Record> {
        let location = match self.0 as u16 {
            LOCATION_RETIRED => return None,
            LOCATION_LOCAL => Location::Local,
            site => Location::Site(SiteIndex(site)),
        };
        let last_seen = Stamp((self.0 >> 16) as u32);
        Some(Record { location, last_seen, moves: (self.0 >> 48) as u8 })
    }
}

/// One entry. Anyone may read it and replace its record; only the holder of
/// the table's writer lock fills and retires it.
///
/// The value is written before the key and the key cleared before the next
/// owner's value: whoever reads the same key before and after a value has a
/// value of that key.
#[derive(Default)]
pub(super) struct Slot {
    key: AtomicU64,
    value: AtomicU64,
}

impl Slot {
    pub(super) fn is_free(&self) -> bool {
        self.key.load(Acquire) == 0
    }

    /// Whether the slot holds `key` at the moment; [`Self::get`] makes sure of it.
    pub(super) fn holds(&self, key: Key) -> bool {
        self.key.load(Acquire) == key.0
    }

    /// The value, where the slot holds `key`.
    pub(super) fn get(&self, key: Key) -> Option<(Packed, Record)> {
        if self.key.load(Acquire) != key.0 {
            return None;
        }
        let value = Packed(self.value.load(Acquire));
        let is_same = self.key.load(Relaxed) == key.0;
        is_same.then_some((value, value.record()?))
    }

    /// Key and value of whoever holds the slot.
    pub(super) fn occupant(&self) -> Option<(Key, Packed, Record)> {
        let key = Key(self.key.load(Acquire));
        if key.0 == 0 {
            return None;
        }
        self.get(key).map(|(value, record)| (key, value, record))
    }

    /// Replaces the record, unless the slot has changed since it was `seen`.
    pub(super) fn replace(&self, seen: Packed, record: Record) -> bool {
        let new = Packed::new(record, seen.generation());
        self.value.compare_exchange(seen.0, new.0, Release, Relaxed).is_ok()
    }

    /// Writer only: gives a free slot to `key`.
    pub(super) fn fill(&self, key: Key, record: Record) -> Packed {
        debug_assert!(self.is_free());
        let generation = Packed(self.value.load(Relaxed)).generation().wrapping_add(1);
        let value = Packed::new(record, generation);
        self.value.store(value.0, Release);
        self.key.store(key.0, Release);
        value
    }

    /// Writer only: frees the slot, unless it has changed since it was `seen`.
    pub(super) fn retire_if(&self, seen: Packed) -> bool {
        let is_unchanged =
            self.value.compare_exchange(seen.0, seen.retired().0, Release, Relaxed).is_ok();
        if is_unchanged {
            self.key.store(0, Release);
        }
        is_unchanged
    }

    /// Writer only: frees the slot and returns what it held last.
    pub(super) fn retire(&self) -> Packed {
        loop {
            let seen = Packed(self.value.load(Acquire));
            if self.retire_if(seen) {
                return seen;
            }
        }
    }
}
