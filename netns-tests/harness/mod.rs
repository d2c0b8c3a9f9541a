//! What the tests stand on: pairs that show their logs on failure, raw frames,
//! a relay in the underlay, programs of the distribution.

pub(crate) mod account;
pub(crate) mod ask;
pub(crate) mod flows;
pub(crate) mod frames;
pub(crate) mod nft;
pub(crate) mod packet;
pub(crate) mod probe;
pub(crate) mod relay;
pub(crate) mod sums;
pub(crate) mod tagged;

use landbridge::lab::{Carrier, LabError, Pair, PairOptions, Process, Run, require_root};
use std::{
    ops::{Deref, DerefMut},
    path::Path,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

/// A pair that prints both appliances' logs when its test fails, and its share of
/// this machine.
pub(crate) struct TestPair(Pair, #[expect(dead_code, reason = "held until dropped")] Share);

/// What a test has of this machine: its part, or all of it, because it measures
/// time.
pub(crate) enum Share {
    Part(#[expect(dead_code, reason = "held until dropped")] RwLockReadGuard<'static, ()>),
    All(#[expect(dead_code, reason = "held until dropped")] RwLockWriteGuard<'static, ()>),
}

static MACHINE: RwLock<()> = RwLock::new(());

/// A part of the machine: tests run side by side.
pub(crate) fn part_of_machine() -> Share {
    Share::Part(MACHINE.read().unwrap_or_else(PoisonError::into_inner))
}

fn whole_machine() -> Share {
    Share::All(MACHINE.write().unwrap_or_else(PoisonError::into_inner))
}

/// Whether this test can run; says so if not.
///
/// # Panics
/// Without root, where `LANDBRIDGE_REQUIRE_ROOT=1` asks for it.
pub(crate) fn can_run() -> bool {
    if require_root().is_ok() {
        return true;
    }
    let required = std::env::var_os("LANDBRIDGE_REQUIRE_ROOT").is_some_and(|value| value == "1");
    assert!(!required, "this test needs root, and LANDBRIDGE_REQUIRE_ROOT=1");
    println!("skipped: needs root");
    false
}

/// A pair by the shipped binary, with its tunnel up.
pub(crate) fn landbridge_pair(options: PairOptions) -> TestPair {
    connected(with_landbridge(options), part_of_machine())
}

/// The same, while no other test runs.
pub(crate) fn landbridge_pair_alone(options: PairOptions) -> TestPair {
    connected(with_landbridge(options), whole_machine())
}

/// A pair by the kernel's VXLAN, in the clear: for checks of the harness itself.
pub(crate) fn vxlan_pair(options: PairOptions) -> TestPair {
    connected(PairOptions { carrier: Carrier::KernelVxlan, ..options }, part_of_machine())
}

/// A pair as `options` say, with its tunnel up.
pub(crate) fn connected(options: PairOptions, share: Share) -> TestPair {
    let run = Run::new("test").unwrap();
    let pair = Pair::new(run, options).unwrap_or_else(|error| fail(&error));
    let mut pair = TestPair(pair, share);
    pair.wait_for_tunnel().unwrap_or_else(|error| fail(&error));
    pair
}

fn with_landbridge(options: PairOptions) -> PairOptions {
    let carrier = Carrier::landbridge(Path::new(env!("CARGO_BIN_EXE_landbridge")));
    PairOptions { carrier, ..options }
}

/// Panics with an error and all that caused it.
pub(crate) fn fail(error: &LabError) -> ! {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    panic!("{text}");
}

/// What `iperf3` measured, in bits per second, by TCP for `seconds`.
pub(crate) fn iperf3(pair: &Pair, reverse: bool, seconds: u32) -> f64 {
    use landbridge::lab::{Side, wait_until};
    let (client, server) = (pair.host(Side::East), pair.host(Side::West));
    let server_process: Process =
        server.namespace.spawn(&["iperf3", "--server", "--one-off", "--forceflush"]).unwrap();
    wait_until("iperf3 to listen", Duration::from_secs(5), || {
        let said = server_process.stdout();
        if said.contains("listening") { Ok(()) } else { Err(said) }
    })
    .unwrap();
    let (address, seconds) = (server.v4.to_string(), seconds.to_string());
    let mut argv =
        vec!["iperf3", "--json", "--congestion", "cubic", "-t", &seconds, "-c", &address];
    if reverse {
        argv.push("--reverse");
    }
    let output = client.namespace.exec(&argv).unwrap().success().unwrap();
    let report: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    report["end"]["sum_received"]["bits_per_second"].as_f64().expect("iperf3 reports a rate")
}

impl Deref for TestPair {
    type Target = Pair;

    fn deref(&self) -> &Pair {
        &self.0
    }
}

impl DerefMut for TestPair {
    fn deref_mut(&mut self) -> &mut Pair {
        &mut self.0
    }
}

impl Drop for TestPair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.0.logs());
        }
    }
}
