use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicBool, Ordering},
};

use proptest::prelude::*;

use super::*;

const SEED: [u64; 2] = [0x0123_4567_89ab_cdef, 42];
const A: NetworkIndex = NetworkIndex(0);
const B: NetworkIndex = NetworkIndex(1);
const START: Instant = Instant::from_nanos(60 * 86_400 * 1_000_000_000);
const AGEING: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_nanos(1 << 26);

fn fdb(max_macs: [u32; 2], capacity: usize) -> Fdb {
    let networks = max_macs.map(|max_macs| NetworkLimits { max_macs, ageing: AGEING });
    Fdb::new(&FdbConfig { networks: &networks, capacity }, SEED)
}

fn mac(number: u32) -> MacAddr {
    let [a, b, c, d] = number.to_be_bytes();
    MacAddr([0x02, 0, a, b, c, d])
}

fn site(number: u16) -> Location {
    Location::Site(SiteIndex(number))
}

fn sweep_all(fdb: &Fdb, now: Instant) -> usize {
    let mut expired = 0;
    loop {
        let report = fdb.sweep(now, 100);
        expired += report.expired;
        if report.is_pass_complete {
            return expired;
        }
    }
}

/// Raises its flag when dropped, so that a panic ends the threads that wait for it.
pub(super) struct RaiseOnDrop<'a>(pub(super) &'a AtomicBool);

impl Drop for RaiseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The listed MACs; panics where one is listed twice.
fn listed(fdb: &Fdb, now: Instant, network: NetworkIndex) -> HashMap<MacAddr, Entry> {
    let entries = fdb.entries(now, network);
    let listed: HashMap<_, _> = entries.iter().map(|entry| (entry.mac, *entry)).collect();
    assert_eq!(listed.len(), entries.len(), "a MAC is listed twice");
    listed
}

#[test]
fn groups_zero_and_unknown_networks_are_ignored() {
    let fdb = fdb([10, 10], 100);
    for mac in [MacAddr::BROADCAST, MacAddr([1, 0, 0, 0, 0, 0]), MacAddr([0; 6])] {
        assert_eq!(fdb.learn(START, A, mac, Location::Local), Learned::Ignored);
        assert_eq!(fdb.lookup(START, A, mac), None);
    }
    assert_eq!(fdb.learn(START, NetworkIndex(2), mac(1), Location::Local), Learned::Ignored);
    assert_eq!(fdb.lookup(START, NetworkIndex(2), mac(1)), None);
    assert!(fdb.is_empty(A) && fdb.entries(START, NetworkIndex(2)).is_empty());
}

#[test]
fn a_station_ages_moves_and_comes_back() {
    let fdb = fdb([10, 10], 100);
    let last_moment = START + AGEING;
    let aged = last_moment + 2 * TICK;
    assert_eq!(fdb.learn(START, A, mac(1), Location::Local), Learned::New);
    assert_eq!(fdb.learn(START, A, mac(1), Location::Local), Learned::Unchanged);
    assert_eq!(fdb.lookup(last_moment, A, mac(1)), Some(Location::Local));
    assert_eq!(fdb.lookup(aged, A, mac(1)), None);
    assert_eq!(fdb.learn(last_moment, A, mac(1), Location::Local), Learned::Refreshed);
    assert_eq!(fdb.lookup(aged, A, mac(1)), Some(Location::Local));
    let moved = Learned::Moved { from: Location::Local };
    assert_eq!(fdb.learn(aged, A, mac(1), site(7)), moved);
    assert_eq!(fdb.lookup(aged, A, mac(1)), Some(site(7)));
    assert_eq!(listed(&fdb, aged, A)[&mac(1)].moves, 1);
    let later = aged + 2 * AGEING;
    assert_eq!(fdb.learn(later, A, mac(1), Location::Local), Learned::New);
    assert_eq!(listed(&fdb, later, A)[&mac(1)].moves, 0);
}

#[test]
fn moves_stay_at_their_maximum() {
    let fdb = fdb([10, 10], 100);
    for number in 0..600 {
        let _ = fdb.learn(START, A, mac(1), site(number));
    }
    assert_eq!(listed(&fdb, START, A)[&mac(1)].moves, 255);
    assert_eq!(fdb.lookup(START, A, mac(1)), Some(site(599)));
}

#[test]
fn a_reader_whose_clock_is_behind_sees_a_fresh_entry() {
    let fdb = fdb([10, 10], 100);
    let _ = fdb.learn(START + Duration::from_secs(2), A, mac(1), site(1));
    assert_eq!(fdb.lookup(START, A, mac(1)), Some(site(1)));
    assert_eq!(fdb.learn(START, A, mac(1), site(1)), Learned::Unchanged);
    assert_eq!(listed(&fdb, START, A)[&mac(1)].age, Duration::ZERO);
}

#[test]
fn a_full_table_refuses_and_keeps_what_it_has() {
    const CAPACITY: u32 = 50_000;
    let fdb = fdb([2 * CAPACITY, 10], CAPACITY as usize);
    for number in 0..CAPACITY {
        assert_eq!(fdb.learn(START, A, mac(number), site(1)), Learned::New, "{number}");
    }
    assert_eq!(fdb.learn(START, A, mac(CAPACITY), site(1)), Learned::TableFull);
    assert_eq!(fdb.learn(START, B, mac(0), site(1)), Learned::TableFull);
    assert!((0..CAPACITY).all(|number| fdb.lookup(START, A, mac(number)) == Some(site(1))));
    assert_eq!(fdb.lookup(START, A, mac(CAPACITY)), None);
    assert_eq!(listed(&fdb, START, A).len(), CAPACITY as usize);
    assert_eq!(fdb.flush(A), CAPACITY as usize);
    assert_eq!(fdb.learn(START, B, mac(0), site(1)), Learned::New);
}

#[test]
fn a_flood_of_chosen_macs_hits_its_own_network_only() {
    let fdb = fdb([5_000, 100], 10_000);
    assert_eq!(fdb.learn(START, A, mac(1), Location::Local), Learned::New);
    let chosen = (0..0x1_0000u32).map(|number| {
        let [.., high, low] = number.to_be_bytes();
        MacAddr([high & !1, low, 0xde, 0xad, 0, 0])
    });
    let outcomes: Vec<_> = chosen
        .filter(|mac| !mac.is_group())
        .collect::<HashSet<_>>()
        .into_iter()
        .map(|mac| fdb.learn(START, A, mac, site(1)))
        .collect();
    let count = |outcome| outcomes.iter().filter(|o| **o == outcome).count();
    assert_eq!(count(Learned::New), 4_999);
    assert_eq!(count(Learned::Full), outcomes.len() - 4_999);
    assert_eq!(fdb.lookup(START, A, mac(1)), Some(Location::Local));
    for number in 0..100 {
        assert_eq!(fdb.learn(START, B, mac(number), site(2)), Learned::New);
    }
    assert_eq!(fdb.learn(START, B, mac(100), site(2)), Learned::Full);
}

#[test]
fn churn_of_ten_times_the_capacity_leaves_no_trace() {
    const CAPACITY: u32 = 4_000;
    let fdb = fdb([CAPACITY, 10], CAPACITY as usize);
    let mut now = START;
    let mut bucket_counts = HashSet::new();
    for round in 0..12 {
        let macs = || (0..CAPACITY).map(|number| mac(round * CAPACITY + number));
        for mac in macs() {
            assert_eq!(fdb.learn(now, A, mac, site(1)), Learned::New, "round {round}");
        }
        assert!(macs().all(|mac| fdb.lookup(now, A, mac) == Some(site(1))));
        assert_eq!(listed(&fdb, now, A).len(), CAPACITY as usize);
        bucket_counts.insert(fdb.bucket_count());
        now = now + 2 * AGEING;
        assert_eq!(sweep_all(&fdb, now), CAPACITY as usize);
        assert!(fdb.is_empty(A));
    }
    assert_eq!(bucket_counts.len(), 1, "grown once, then reused: {bucket_counts:?}");
}

#[test]
fn a_batch_answers_as_single_lookups_do() {
    let fdb = fdb([1_000, 1_000], 2_000);
    for number in (0..1_000).step_by(3) {
        let age = AGEING / 500 * number;
        let _ = fdb.learn(START + age, A, mac(number), site(number as u16));
    }
    let now = START + AGEING + AGEING / 2;
    let networks = [A, B, NetworkIndex(2)];
    let wanted: Vec<_> = (0..1_000)
        .flat_map(|number| networks.map(|network| (network, mac(number))))
        .chain([(A, MacAddr::BROADCAST), (A, MacAddr::default())])
        .collect();
    let mut hits = 0;
    for wanted in wanted.chunks(LOOKUP_BATCH_MAX) {
        let mut found = vec![Some(Location::Local); wanted.len()];
        fdb.lookup_batch(now, wanted, &mut found);
        for ((network, mac), found) in wanted.iter().zip(found) {
            assert_eq!(found, fdb.lookup(now, *network, *mac), "{network:?} {mac}");
            hits += usize::from(found.is_some());
        }
    }
    assert!((200..334).contains(&hits), "{hits} hits: some aged, some not");
}

#[test]
fn a_sweep_keeps_to_its_budget_and_resumes() {
    let fdb = fdb([100, 100], 100);
    let total = fdb.bucket_count();
    let first = fdb.sweep(START, total - 1);
    assert_eq!(first, SweepReport { buckets: total - 1, expired: 0, is_pass_complete: false });
    let second = fdb.sweep(START, total - 1);
    assert_eq!(second, SweepReport { buckets: 1, expired: 0, is_pass_complete: true });
    assert_eq!(fdb.sweep(START, usize::MAX).buckets, total);
}

#[test]
fn threads_never_lose_or_confuse_stations() {
    const STABLE: u32 = 3_000;
    let fdb = fdb([1 << 20, 1 << 20], 40_000);
    let home = |number: u32| site((number % 1_000) as u16);
    for number in 0..STABLE {
        assert_eq!(fdb.learn(START, A, mac(number), home(number)), Learned::New);
    }
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut now = START;
                while !is_done.load(Ordering::Relaxed) {
                    now = now + TICK;
                    for number in 0..STABLE {
                        let (mac, home) = (mac(number), home(number));
                        assert_eq!(fdb.lookup(START, A, mac), Some(home));
                        let learned = fdb.learn(now, A, mac, home);
                        assert!(
                            matches!(
                                learned,
                                Learned::Unchanged | Learned::Refreshed | Learned::Busy
                            ),
                            "{learned:?}"
                        );
                    }
                }
            });
        }
        scope.spawn(|| {
            let _done = RaiseOnDrop(&is_done);
            for _ in 0..4 {
                for number in STABLE..STABLE + 30_000 {
                    let _ = fdb.learn(START, B, mac(number), site(2_000));
                }
                listed(&fdb, START, A);
                assert!(fdb.flush(B) > 0);
                sweep_all(&fdb, START);
            }
        });
    });
    assert_eq!(fdb.len(A), STABLE as usize);
    assert_eq!(fdb.len(B), 0);
    assert_eq!(listed(&fdb, START, A).len(), STABLE as usize);
}

#[test]
fn threads_that_learn_the_same_stations_insert_each_once() {
    let fdb = fdb([20_000, 10], 20_000);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let fdb = &fdb;
            scope.spawn(move || {
                for number in 0..5_000 {
                    while fdb.learn(START, A, mac(number), site(thread)) == Learned::Busy {}
                }
            });
        }
    });
    assert_eq!(fdb.len(A), 5_000);
    assert_eq!(listed(&fdb, START, A).len(), 5_000);
}

/// The table as it ought to behave, in ticks of 2²⁶ ns.
#[derive(Default)]
struct Model {
    entries: HashMap<(NetworkIndex, MacAddr), (Location, u64, u8)>,
}

const MODEL_LIMITS: [u32; 2] = [6, 3];
const MODEL_CAPACITY: usize = 8;

impl Model {
    fn is_fresh(last_seen: u64, now: u64) -> bool {
        now - last_seen <= (AGEING.as_nanos() as u64).div_ceil(1 << 26)
    }

    fn len(&self, network: NetworkIndex) -> usize {
        self.entries.keys().filter(|(n, _)| *n == network).count()
    }

    fn lookup(&self, now: u64, network: NetworkIndex, mac: MacAddr) -> Option<Location> {
        let (location, last_seen, _) = self.entries.get(&(network, mac))?;
        Self::is_fresh(*last_seen, now).then_some(*location)
    }

    fn learn(&mut self, now: u64, network: NetworkIndex, mac: MacAddr, to: Location) -> Learned {
        let (network_len, total) = (self.len(network), self.entries.len());
        match self.entries.get_mut(&(network, mac)) {
            None if network_len >= MODEL_LIMITS[usize::from(network.0)] as usize => Learned::Full,
            None if total >= MODEL_CAPACITY => Learned::TableFull,
            None => {
                self.entries.insert((network, mac), (to, now, 0));
                Learned::New
            }
            Some(entry) if !Self::is_fresh(entry.1, now) => {
                *entry = (to, now, 0);
                Learned::New
            }
            Some(entry) if entry.0 != to => {
                let from = entry.0;
                *entry = (to, now, entry.2 + 1);
                Learned::Moved { from }
            }
            Some(entry) if now - entry.1 < 1_000_000_000_u64.div_ceil(1 << 26) => {
                Learned::Unchanged
            }
            Some(entry) => {
                entry.1 = now;
                Learned::Refreshed
            }
        }
    }

    fn remove(&mut self, is_unwanted: impl Fn(NetworkIndex, Location, u64) -> bool) -> usize {
        let before = self.entries.len();
        self.entries
            .retain(|(network, _), (location, at, _)| !is_unwanted(*network, *location, *at));
        before - self.entries.len()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Learn(NetworkIndex, MacAddr, Location),
    Wait(Duration),
    Sweep,
    Forget(NetworkIndex, Location),
    Flush(NetworkIndex),
}

fn any_step() -> impl Strategy<Value = Step> {
    let network = || prop::sample::select(vec![A, B]);
    let location = || prop::sample::select(vec![Location::Local, site(0), site(65_533)]);
    prop_oneof![
        20 => (network(), 0u32..9, location()).prop_map(|(n, m, l)| Step::Learn(n, mac(m), l)),
        5 => (0u64..4_000).prop_map(|ms| Step::Wait(Duration::from_millis(ms))),
        2 => Just(Step::Sweep),
        1 => (network(), location()).prop_map(|(n, l)| Step::Forget(n, l)),
        1 => network().prop_map(Step::Flush),
    ]
}

proptest! {
    #[test]
    fn behaves_like_the_model(
        // The clock's zero, and shortly before the stamps wrap.
        start in prop::sample::select(vec![0, (u64::from(u32::MAX) - 200) << 26]),
        steps in prop::collection::vec(any_step(), 0..200),
    ) {
        let fdb = fdb(MODEL_LIMITS, MODEL_CAPACITY);
        let mut model = Model::default();
        let mut now = Instant::from_nanos(start);
        for step in steps {
            let tick = now.as_nanos() >> 26;
            match step {
                Step::Learn(network, mac, location) => prop_assert_eq!(
                    fdb.learn(now, network, mac, location),
                    model.learn(tick, network, mac, location)
                ),
                Step::Wait(duration) => now = now + duration,
                Step::Sweep => prop_assert_eq!(
                    sweep_all(&fdb, now),
                    model.remove(|_, _, at| !Model::is_fresh(at, tick))
                ),
                Step::Forget(network, location) => prop_assert_eq!(
                    fdb.forget(network, location),
                    model.remove(|n, l, _| n == network && l == location)
                ),
                Step::Flush(network) => prop_assert_eq!(
                    fdb.flush(network),
                    model.remove(|n, _, _| n == network)
                ),
            }
            let tick = now.as_nanos() >> 26;
            for network in [A, B] {
                prop_assert_eq!(fdb.len(network), model.len(network));
                let listed = listed(&fdb, now, network);
                for number in 0..9 {
                    let mac = mac(number);
                    let expected = model.lookup(tick, network, mac);
                    prop_assert_eq!(fdb.lookup(now, network, mac), expected);
                    prop_assert_eq!(listed.get(&mac).map(|entry| entry.location), expected);
                    if let Some(entry) = listed.get(&mac) {
                        let (_, at, moves) = model.entries[&(network, mac)];
                        prop_assert_eq!(entry.moves, moves);
                        prop_assert_eq!(entry.age.as_nanos(), u128::from(tick - at) << 26);
                    }
                }
            }
        }
    }
}
