//! The MAC table (filtering database, IEEE 802.1Q 8.8): where each station of
//! each network was last heard.
//!
//! One table serves all data threads. A lookup takes no lock and writes
//! nothing; a known station costs a store about once a second; only a station
//! that is new takes the writer lock, and never waits for it.

mod hash;
mod slot;
mod table;
#[cfg(test)]
mod tests;

use std::{
    sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use crossbeam_utils::CachePadded;

use self::{
    slot::{Key, Packed, Record, Slot, Stamp, from_ticks, ticks},
    table::{NoRoom, Table},
};
use crate::{
    time::Instant,
    topology::{NetworkIndex, SiteIndex},
    wire::ethernet::MacAddr,
};

/// Most entries a table can be made for. With all of them in use it takes
/// 128 MiB: 32 bytes per entry.
pub const CAPACITY_MAX: usize = 1 << 22;

/// Most destinations that [`Fdb::lookup_batch`] takes at once.
pub const LOOKUP_BATCH_MAX: usize = table::BATCH_MAX;

/// How long a known station's entry is left alone after it was refreshed, so
/// that threads that hear the same station don't fight for its cache line.
pub const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// Where a station lives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Location {
    /// On this site's LAN.
    Local,
    /// Behind a remote site. The index is below 65,534.
    Site(SiteIndex),
}

/// Bounds of one network's share of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NetworkLimits {
    /// Most stations remembered at a time; those that have aged count until
    /// they are swept.
    pub max_macs: u32,
    /// A station not heard for this long is forgotten. Kept in steps of 67 ms,
    /// rounded up, and up to [`REFRESH_INTERVAL`] early, since younger entries
    /// aren't refreshed.
    pub ageing: Duration,
}

/// What an [`Fdb`] is made for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FdbConfig<'a> {
    /// Limits by [`NetworkIndex`].
    pub networks: &'a [NetworkLimits],
    /// Most entries of all networks together; taken as 1 or [`CAPACITY_MAX`]
    /// where it is outside of these.
    pub capacity: usize,
}

/// What came of learning a source address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Learned {
    /// Known there, and heard within [`REFRESH_INTERVAL`].
    Unchanged,
    /// Known there; its age starts anew.
    Refreshed,
    /// Not known before, or aged.
    New,
    /// Known elsewhere until now.
    Moved {
        /// Where it was.
        from: Location,
    },
    /// Not learned: the network has as many stations as it may have.
    Full,
    /// Not learned: the whole table has as many stations as it can hold.
    TableFull,
    /// Not learned: another thread was changing the table. The station's next
    /// frame will do.
    Busy,
    /// Not learned: the source is a group address, all zero, or of a network
    /// that the table was not made for.
    Ignored,
}

/// One station, as a listing shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its address.
    pub mac: MacAddr,
    /// Where it was last heard.
    pub location: Location,
    /// Time since then, within [`REFRESH_INTERVAL`] and 67 ms.
    pub age: Duration,
    /// Moves since it was first learned; stays at 255.
    pub moves: u8,
}

/// What one [`Fdb::sweep`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SweepReport {
    /// Buckets looked at.
    pub buckets: usize,
    /// Aged entries removed.
    pub expired: usize,
    /// The sweep reached the table's end: the next one starts from the front.
    pub is_pass_complete: bool,
}

/// The MAC table. Shared by reference between all threads.
///
/// Every call takes the caller's `now`; calls from different threads may be
/// somewhat out of step.
pub struct Fdb {
    table: Table,
    networks: Box<[Ageing]>,
    /// Apart from `networks`, whose cache lines every lookup reads.
    entry_counts: Box<[CachePadded<AtomicU32>]>,
    sweep_position: CachePadded<AtomicUsize>,
}

struct Ageing {
    max_macs: u32,
    ticks: u32,
}

impl Fdb {
    /// An empty table. `seed` keys its hash: it must be random and stay secret,
    /// or an attacker could choose MACs that share two buckets.
    ///
    /// # Panics
    /// With more than 65,536 networks.
    pub fn new(config: &FdbConfig<'_>, seed: [u64; 2]) -> Self {
        assert!(config.networks.len() <= 1 << 16, "more networks than a NetworkIndex can name");
        let ageing = |n: &NetworkLimits| Ageing { max_macs: n.max_macs, ticks: ticks(n.ageing) };
        Self {
            table: Table::new(config.capacity.clamp(1, CAPACITY_MAX), seed),
            networks: config.networks.iter().map(ageing).collect(),
            entry_counts: config.networks.iter().map(|_| CachePadded::default()).collect(),
            sweep_position: CachePadded::default(),
        }
    }

    /// Where `mac` lives; `None` for groups and for stations unknown or aged.
    #[inline]
    pub fn lookup(&self, now: Instant, network: NetworkIndex, mac: MacAddr) -> Option<Location> {
        let ageing = self.networks.get(usize::from(network.0))?;
        let (_, _, record) = self.table.find(Key::new(network, mac)?)?;
        ageing.is_fresh(&record, Stamp::at(now)).then_some(record.location)
    }

    /// Looks up to [`LOOKUP_BATCH_MAX`] destinations up at once, `found[i]` being
    /// the answer for `wanted[i]`. Pays off where the table outgrows the CPU's second
    /// cache (tens of thousands of stations), since it waits for many of them at once.
    ///
    /// # Panics
    /// Where the slices differ in length or are longer than that.
    pub fn lookup_batch(
        &self,
        now: Instant,
        wanted: &[(NetworkIndex, MacAddr)],
        found: &mut [Option<Location>],
    ) {
        assert!(wanted.len() == found.len() && wanted.len() <= LOOKUP_BATCH_MAX);
        let now = Stamp::at(now);
        let mut keys = [None; LOOKUP_BATCH_MAX];
        for ((network, mac), key) in wanted.iter().zip(&mut keys) {
            *key = Key::new(*network, *mac);
        }
        found.fill(None);
        self.table.find_batch(&keys[..wanted.len()], |index, key, record| {
            let ageing = self.networks.get(usize::from(key.network().0));
            let is_fresh = ageing.is_some_and(|ageing| ageing.is_fresh(&record, now));
            found[index] = is_fresh.then_some(record.location);
        });
    }

    /// Notes that a frame with source `mac` came from `location`.
    ///
    /// Takes no lock for a station that is known. A new one may make the
    /// table grow, which allocates 64 KiB for every 2,048 new stations.
    pub fn learn(
        &self,
        now: Instant,
        network: NetworkIndex,
        mac: MacAddr,
        location: Location,
    ) -> Learned {
        let Some(ageing) = self.networks.get(usize::from(network.0)) else {
            return Learned::Ignored;
        };
        let Some(key) = Key::new(network, mac) else { return Learned::Ignored };
        let heard = Record { location, last_seen: Stamp::at(now), moves: 0 };
        match self.table.find(key) {
            Some(found) => ageing.renew(found, heard),
            None => self.insert(key, heard),
        }
    }

    fn insert(&self, key: Key, heard: Record) -> Learned {
        let network = usize::from(key.network().0);
        let (ageing, entry_count) = (&self.networks[network], &self.entry_counts[network]);
        if entry_count.load(Relaxed) >= ageing.max_macs {
            return Learned::Full;
        }
        let Some(mut writer) = self.table.try_write() else { return Learned::Busy };
        if let Some(found) = self.table.find(key) {
            return ageing.renew(found, heard);
        }
        if entry_count.load(Relaxed) >= ageing.max_macs {
            return Learned::Full;
        }
        match writer.insert(key, heard) {
            Ok(()) => {
                entry_count.fetch_add(1, Relaxed);
                Learned::New
            }
            Err(NoRoom) => Learned::TableFull,
        }
    }

    /// Removes aged entries from the next `budget_buckets` buckets (of four
    /// entries). Called regularly by one thread, so that the whole table is seen
    /// at least once per shortest ageing time.
    pub fn sweep(&self, now: Instant, budget_buckets: usize) -> SweepReport {
        let now = Stamp::at(now);
        let bucket_count = self.table.bucket_count();
        let start = self.sweep_position.load(Relaxed);
        let end = bucket_count.min(start.saturating_add(budget_buckets));
        let is_aged = |key: Key, record: &Record| {
            !self.networks[usize::from(key.network().0)].is_fresh(record, now)
        };
        let expired = (start..end).map(|place| self.remove_where(place, is_aged)).sum();
        let is_pass_complete = end == bucket_count;
        self.sweep_position.store(if is_pass_complete { 0 } else { end }, Relaxed);
        SweepReport { buckets: end.saturating_sub(start), expired, is_pass_complete }
    }

    /// Buckets in use: what a full pass of [`Self::sweep`] has to look at.
    pub fn bucket_count(&self) -> usize {
        self.table.bucket_count()
    }

    /// Removes all of `network`'s stations that live at `location`, and says how
    /// many they were. Walks the whole table.
    pub fn forget(&self, network: NetworkIndex, location: Location) -> usize {
        self.remove_everywhere(|key, record| {
            key.network() == network && record.location == location
        })
    }

    /// Removes all of `network`'s stations, and says how many they were. Walks
    /// the whole table.
    pub fn flush(&self, network: NetworkIndex) -> usize {
        self.remove_everywhere(|key, _| key.network() == network)
    }

    /// The stations of `network` that have not aged, in no order, each once.
    ///
    /// Walks the whole table under the writer lock: for some milliseconds per
    /// million entries [`Self::learn`] answers [`Learned::Busy`] for new ones.
    pub fn entries(&self, now: Instant, network: NetworkIndex) -> Vec<Entry> {
        let now = Stamp::at(now);
        let Some(ageing) = self.networks.get(usize::from(network.0)) else { return Vec::new() };
        let mut entries = Vec::with_capacity(self.len(network));
        let _writer = self.table.write();
        for place in 0..self.table.bucket_count() {
            for (key, _, record) in self.table.bucket(place).iter().filter_map(Slot::occupant) {
                if key.network() == network && ageing.is_fresh(&record, now) {
                    let Record { location, last_seen, moves } = record;
                    let age = from_ticks(last_seen.age(now));
                    entries.push(Entry { mac: key.mac(), location, age, moves });
                }
            }
        }
        entries
    }

    /// Entries that count towards `network`'s limit: those that have aged but
    /// are not yet swept included.
    pub fn len(&self, network: NetworkIndex) -> usize {
        let entry_count = self.entry_counts.get(usize::from(network.0));
        entry_count.map_or(0, |count| count.load(Relaxed) as usize)
    }

    /// Whether `network` has no entry.
    pub fn is_empty(&self, network: NetworkIndex) -> bool {
        self.len(network) == 0
    }

    fn remove_everywhere(&self, is_unwanted: impl Fn(Key, &Record) -> bool) -> usize {
        // Growth moves entries from buckets behind the walk to ones ahead of
        // it; a relocation can do the reverse, so it must not happen meanwhile.
        let mut writer = self.table.write();
        let places = 0..self.table.bucket_count();
        places.map(|place| self.remove_from(&mut writer, place, &is_unwanted)).sum()
    }

    /// Takes the lock only where there is something to remove.
    fn remove_where(&self, place: usize, is_unwanted: impl Fn(Key, &Record) -> bool) -> usize {
        let mut occupants = self.table.bucket(place).iter().filter_map(Slot::occupant);
        if !occupants.any(|(key, _, record)| is_unwanted(key, &record)) {
            return 0;
        }
        self.remove_from(&mut self.table.write(), place, is_unwanted)
    }

    fn remove_from(
        &self,
        writer: &mut table::Writer<'_>,
        place: usize,
        is_unwanted: impl Fn(Key, &Record) -> bool,
    ) -> usize {
        let mut removed = 0;
        for slot in self.table.bucket(place) {
            let Some((key, seen, record)) = slot.occupant() else { continue };
            if is_unwanted(key, &record) && writer.remove(slot, seen) {
                self.entry_counts[usize::from(key.network().0)].fetch_sub(1, Relaxed);
                removed += 1;
            }
        }
        removed
    }
}

impl Ageing {
    fn is_fresh(&self, record: &Record, now: Stamp) -> bool {
        record.last_seen.age(now) <= self.ticks
    }

    fn renew(&self, (slot, seen, known): (&Slot, Packed, Record), heard: Record) -> Learned {
        let now = heard.last_seen;
        let (renewed, outcome) = if !self.is_fresh(&known, now) {
            (heard, Learned::New)
        } else if known.location != heard.location {
            let moves = known.moves.saturating_add(1);
            (Record { moves, ..heard }, Learned::Moved { from: known.location })
        } else if known.last_seen.age(now) < ticks(REFRESH_INTERVAL) {
            return Learned::Unchanged;
        } else {
            (Record { last_seen: now, ..known }, Learned::Refreshed)
        };
        if slot.replace(seen, renewed) { outcome } else { Learned::Busy }
    }
}
