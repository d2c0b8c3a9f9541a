//! Minutes of TCP under loss, reordering and a rekey every three seconds, with
//! every byte compared and every counter explained. `scripts/soak` runs it.
//!
//! ```text
//!   host-e ── br-100 ── east-1 ════ router ════ west-1 ── br-100 ── host-w
//!    8 TCP flows         2 lanes   nftables: 0.5 % lost    8 TCP flows
//!                                  relay: 2 % overtaken
//! ```

mod account;
mod flows;

use crate::harness::{
    TestPair, can_run, fail, landbridge_pair_alone, nft,
    relay::{Impairment, Relay},
};
use account::{Counts, Inbound, counts, explain, table, unexplained};
use flows::{Stop, Traffic};
use landbridge::{
    lab::{LabError, Offload, PairOptions, Side, interrupt_on_signals, wait_until},
    manage::model::{Counter, PeerState, PeerStatus, Status},
};
use std::{
    fs,
    sync::atomic::Ordering::Relaxed,
    thread,
    time::{Duration, Instant},
};

const SECOND: Duration = Duration::from_secs(1);
const REKEY_AFTER: Duration = Duration::from_secs(3);
const LOSS_PER_MILLE: u32 = 5;
const OVERTAKEN_PER_MILLE: u32 = 20;
/// Around what a receiver waits (1 ms): some are waited for, some come too late.
const OVERTAKEN_BY: Duration = Duration::from_micros(1500);
/// Each takes one of two lanes at random, its answers the same: that all of them
/// meet in one is beyond 1 in 30,000.
const FLOWS_EACH_WAY: u64 = 8;
/// Datagrams in each second on each lane and direction: a rekey without any
/// would prove nothing.
const IN_FLIGHT_MIN: u64 = 20;
/// Per direction. TCP keeps more even through this loss, on a busy machine too.
const GOODPUT_MIN: f64 = 5e6;
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

#[test]
#[ignore = "takes minutes: scripts/soak"]
fn minutes_of_loss_reordering_and_rekeys() {
    interrupt_on_signals().unwrap();
    let seconds = std::env::var("LANDBRIDGE_SOAK_S").map_or(600, |text| text.parse().unwrap());
    soak(Duration::from_secs(seconds));
}

#[test]
fn twenty_seconds_of_loss_reordering_and_rekeys() {
    soak(20 * SECOND);
}

/// RSS by lanes, printed for people; `scripts/soak` runs it.
#[test]
#[ignore = "measures only: scripts/soak"]
fn memory_by_lanes() {
    if !can_run() {
        return;
    }
    println!("\n| lanes | RSS idle, MiB | RSS under load, MiB |\n|---|---|---|");
    for lanes in [1, 2, 4] {
        let pair =
            landbridge_pair_alone(PairOptions { lanes: Some(lanes), ..PairOptions::default() });
        pause(2 * SECOND);
        let idle = memory(&pair);
        let traffic = Traffic::default();
        let mut loaded = idle;
        thread::scope(|scope| {
            let _stop = Stop(&traffic);
            traffic.start(scope, &pair, FLOWS_EACH_WAY);
            for _ in 0..5 {
                pause(SECOND);
                loaded = greater(loaded, memory(&pair));
            }
        });
        assert_eq!(traffic.failures(), [""; 0]);
        println!("| {lanes} | {} | {} |", mebibytes(idle), mebibytes(loaded));
    }
}

fn soak(duration: Duration) {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair_alone(PairOptions {
        lanes: Some(2),
        extra_group_lines: format!("rekey_after_s = {}\n", REKEY_AFTER.as_secs()),
        // Loss is meant for single datagrams, not for GSO runs of them.
        underlay_offload: Offload::RealPackets,
        ..PairOptions::default()
    });
    let soak = Soak::new(&pair);
    let findings = soak.run(duration);
    assert!(findings.is_empty(), "the soak failed:\n  {}", findings.join("\n  "));
    println!("\nThe soak passed.");
}

/// A pair whose underlay loses and reorders, and what it told before.
struct Soak<'a> {
    pair: &'a TestPair,
    /// By the side that they concern, as everything here.
    before: [Snapshot; 2],
    losses: [nft::Loss<'a>; 2],
    relay: Relay<'a>,
    started: Instant,
}

/// What one appliance tells at one moment.
struct Snapshot {
    peer: PeerStatus,
    counts: Counts,
    at: Instant,
}

/// What is watched while traffic flows.
#[derive(Default)]
struct Watch {
    /// Resident memory of both, bytes, once per second.
    memory: Vec<[u64; 2]>,
    /// Least datagrams per second of any lane and direction.
    quietest: Option<u64>,
    findings: Vec<String>,
}

impl<'a> Soak<'a> {
    fn new(pair: &'a TestPair) -> Self {
        let before = Side::BOTH.map(|side| Snapshot::take(pair, side));
        let losses = Side::BOTH.map(|from| nft::Loss::new(pair, from, LOSS_PER_MILLE));
        let relay = Relay::for_share(pair, 11, OVERTAKEN_PER_MILLE);
        relay.impair_both(Impairment { jitter: OVERTAKEN_BY, ..Impairment::default() });
        Self { pair, before, losses, relay, started: Instant::now() }
    }

    /// Returns what is wrong, one sentence each.
    fn run(&self, duration: Duration) -> Vec<String> {
        let traffic = Traffic::default();
        let watch = thread::scope(|scope| {
            let _stop = Stop(&traffic);
            traffic.start(scope, self.pair, FLOWS_EACH_WAY);
            self.watch(&traffic, duration)
        });
        let took = self.started.elapsed();
        // What is still held or on its way.
        pause(SECOND);
        let mut findings = watch.findings.clone();
        findings.extend(traffic.failures());
        let goodput = Side::BOTH.map(|from| {
            traffic.bytes[from as usize].load(Relaxed) as f64 * 8.0 / took.as_secs_f64()
        });
        if goodput.iter().any(|rate| *rate < GOODPUT_MIN) {
            findings.push(format!("only {goodput:.0?} bit/s, east to west and back"));
        }
        findings.extend(log_findings(&self.pair.logs()));
        let summary = self.summary(&traffic, &watch, goodput);
        let tables = Side::BOTH.map(|side| self.account(side, &mut findings));
        println!("\n{summary}\n{}\n{}", tables[0], tables[1]);
        findings
    }

    fn watch(&self, traffic: &Traffic, duration: Duration) -> Watch {
        let mut watch = Watch::default();
        let mut lanes = Side::BOTH.map(|side| lane_packets(&ask(self.pair, side)));
        let mut progress_at = self.started + PROGRESS_INTERVAL;
        // Lanes fill while the first connections begin.
        pause(SECOND);
        while self.started.elapsed() < duration && traffic.failures().is_empty() {
            pause(SECOND);
            let peers = Side::BOTH.map(|side| ask(self.pair, side));
            for (side, peer) in Side::BOTH.into_iter().zip(&peers) {
                if peer.state != PeerState::Up {
                    let second = self.started.elapsed().as_secs();
                    let (who, state) = (side.appliance(), peer.state);
                    watch.findings.push(format!("{who}: tunnel {state:?} at {second} s"));
                }
                let now = lane_packets(peer);
                let moved = now.iter().zip(&lanes[side as usize]).map(|(new, old)| new - old);
                let moved: Vec<u64> = moved.collect();
                watch.quietest = moved.iter().copied().chain(watch.quietest).min();
                if moved.iter().any(|datagrams| *datagrams < IN_FLIGHT_MIN) {
                    watch.findings.push(format!(
                        "{} at {:.1} s: nothing in flight on a lane, had it been rekeyed now \
                         (received and sent within a second, lane by lane: {moved:?})",
                        side.appliance(),
                        self.started.elapsed().as_secs_f64(),
                    ));
                }
                lanes[side as usize] = now;
            }
            watch.memory.push(memory(self.pair));
            if Instant::now() >= progress_at {
                progress_at += PROGRESS_INTERVAL;
                self.progress(traffic, &watch);
            }
        }
        watch.findings.extend(memory_findings(&watch.memory));
        watch
    }

    fn progress(&self, traffic: &Traffic, watch: &Watch) {
        let seconds = self.started.elapsed().as_secs_f64();
        let [east, west] = [Side::East, Side::West]
            .map(|side| traffic.bytes[side as usize].load(Relaxed) as f64 * 8e-6 / seconds);
        let lost: u64 = self.losses.iter().map(nft::Loss::dropped).sum();
        println!(
            "{seconds:4.0} s: {east:.0} Mbit/s east to west, {west:.0} back; {} connections; \
             {lost} datagrams lost, {} overtaken; RSS {} MiB",
            traffic.connections.load(Relaxed),
            Side::BOTH.map(|from| self.relay.tally(from).forwarded).iter().sum::<u64>(),
            watch.memory.last().map_or_else(String::new, |memory| mebibytes(*memory)),
        );
    }

    fn account(&self, side: Side, findings: &mut Vec<String>) -> String {
        let from = side.other();
        let before = &self.before[side as usize];
        let after = Snapshot::take(self.pair, side);
        let sender = Snapshot::take(self.pair, from);
        let inbound = Inbound {
            sent: sender.peer.tx.packets - self.before[from as usize].peer.tx.packets,
            received: after.peer.rx.packets - before.peer.rx.packets,
            lost: self.losses[from as usize].dropped(),
            overtaken: self.relay.tally(from).forwarded,
            overflowed: self.relay.overflowed(),
            duration: after.at - before.at,
            rekey_after: REKEY_AFTER,
        };
        let lines = explain(&before.counts, &after.counts, &inbound);
        findings.extend(unexplained(side.appliance(), &lines));
        table(side.appliance(), &lines)
    }

    fn summary(&self, traffic: &Traffic, watch: &Watch, goodput: [f64; 2]) -> String {
        let [east, west] = Side::BOTH.map(|from| {
            let bytes = traffic.bytes[from as usize].load(Relaxed) as f64 / 1e9;
            format!("{bytes:.2} GB at {:.0} Mbit/s", goodput[from as usize] / 1e6)
        });
        let (first, second) = watch.memory.split_at(watch.memory.len() / 2);
        let peak = |half: &[[u64; 2]]| mebibytes(half.iter().copied().fold([0; 2], greater));
        format!(
            "# Soak of {} s\n\n\
             - {LOSS_PER_MILLE} ‰ lost (nftables), {OVERTAKEN_PER_MILLE} ‰ held up to {} µs and \
             overtaken (relay), both ways; 2 lanes; rekey each {} s\n\
             - {} TCP connections, every byte compared: {east} east to west, {west} back\n\
             - least traffic of any lane and direction in any second: {} datagrams\n\
             - highest RSS (east-1 / west-1): {} MiB in the first half, {} MiB in the second\n",
            self.started.elapsed().as_secs(),
            OVERTAKEN_BY.as_micros(),
            REKEY_AFTER.as_secs(),
            traffic.connections.load(Relaxed),
            watch.quietest.unwrap_or(0),
            peak(first),
            peak(second),
        )
    }
}

impl Snapshot {
    fn take(pair: &TestPair, side: Side) -> Self {
        let counters = pair.ask(side, "counters --json").unwrap_or_else(|error| fail(&error));
        let counters: Vec<Counter> = serde_json::from_str(&counters).unwrap();
        Self { peer: ask(pair, side), counts: counts(&counters), at: Instant::now() }
    }
}

fn ask(pair: &TestPair, side: Side) -> PeerStatus {
    let status = pair.ask(side, "status --json").unwrap_or_else(|error| fail(&error));
    let status: Status = serde_json::from_str(&status).unwrap();
    status.peers.into_iter().next().expect("a pair has one peer each")
}

/// Received and sent so far, lane by lane, without the control lane.
fn lane_packets(peer: &PeerStatus) -> Vec<u64> {
    assert_eq!(peer.lanes.len(), 3, "control lane and two others");
    peer.lanes[1..].iter().flat_map(|lane| [lane.rx.packets, lane.tx.packets]).collect()
}

/// Resident memory of both appliances, bytes.
///
/// # Panics
/// If one has ended.
pub(crate) fn memory(pair: &TestPair) -> [u64; 2] {
    Side::BOTH.map(|side| {
        let process = pair.appliance(side).process.as_ref().expect("it was started");
        let status = fs::read_to_string(format!("/proc/{}/status", process.id()));
        let line = status.as_deref().unwrap_or_default().lines().find_map(|line| {
            let kilobytes = line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?;
            kilobytes.parse::<u64>().ok()
        });
        line.unwrap_or_else(|| panic!("{} has ended", side.appliance())) * 1024
    })
}

fn memory_findings(samples: &[[u64; 2]]) -> Vec<String> {
    let (first, second) = samples.split_at(samples.len() / 2);
    let peak = |half: &[[u64; 2]]| half.iter().copied().fold([0; 2], greater);
    let (first, second) = (peak(first), peak(second));
    let grown = |side: &Side| second[*side as usize] > first[*side as usize] / 20 * 21 + (1 << 20);
    Side::BOTH
        .into_iter()
        .filter(grown)
        .map(|side| {
            let [before, after] = [first, second].map(|peak| peak[side as usize]);
            format!("{}: RSS grew from {before} to {after} bytes", side.appliance())
        })
        .collect()
}

fn log_findings(logs: &str) -> Vec<String> {
    let is_bad = |line: &&str| {
        ["panicked", "ERROR", "WARN", "tunnel down", "restarted"]
            .iter()
            .any(|word| line.contains(word))
    };
    logs.lines().filter(is_bad).map(|line| format!("in a log: {line}")).collect()
}

fn greater(a: [u64; 2], b: [u64; 2]) -> [u64; 2] {
    [a[0].max(b[0]), a[1].max(b[1])]
}

fn mebibytes([east, west]: [u64; 2]) -> String {
    let [east, west] = [east, west].map(|bytes| bytes as f64 / f64::from(1 << 20));
    format!("{east:.1} / {west:.1}")
}

/// Waits, but not after Ctrl-C.
fn pause(duration: Duration) {
    let passed = wait_until::<()>("time to pass", duration, || Err(String::new()));
    if let Err(error @ LabError::Interrupted) = passed {
        fail(&error);
    }
}

#[test]
fn memory_that_grows_is_noticed() {
    let constant = vec![[10 << 20, 10 << 20]; 10];
    assert_eq!(memory_findings(&constant), [""; 0]);
    let mut growing = constant;
    growing[9] = [10 << 20, 12 << 20];
    assert_eq!(memory_findings(&growing).len(), 1);
}
