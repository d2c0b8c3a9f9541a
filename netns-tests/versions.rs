//! Two builds that differ in protocol version understand each other.
//!
//! ```text
//!   host-e ── br-100 ── east-1 ════ router ════ west-1 ── br-100 ── host-w
//!                      this build              built with the feature
//!                                              `next-protocol`
//! ```

use crate::harness::{can_run, connected, part_of_machine};
use landbridge::lab::{Carrier, PairOptions, Side, transfer};
use std::{path::PathBuf, time::Duration};

#[test]
fn a_build_talks_to_the_next_version() {
    if !can_run() {
        return;
    }
    let this = PathBuf::from(env!("CARGO_BIN_EXE_landbridge"));
    let next = this.with_file_name("landbridge-next-protocol");
    if !next.exists() {
        let required =
            std::env::var_os("LANDBRIDGE_REQUIRE_ROOT").is_some_and(|value| value == "1");
        assert!(!required, "{} is missing; scripts/test builds it", next.display());
        println!("skipped: {} is missing; scripts/test builds it", next.display());
        return;
    }
    for binaries in [[this.clone(), next.clone()], [next, this]] {
        let carrier = Carrier::Landbridge(binaries);
        let pair = connected(PairOptions { carrier, ..PairOptions::default() }, part_of_machine());
        let (east, west) = (pair.host(Side::East), pair.host(Side::West));
        let second = Duration::from_secs(1);
        transfer(&east.namespace, &west.namespace, west.v4.into(), second).unwrap();
    }
}
