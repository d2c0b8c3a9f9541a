//! An appliance goes and comes back.
//!
//! ```text
//!   host-e ── br-100 ── east-1 ════ router ════ west-1 ── br-100 ── host-w
//!                                               restarted
//! ```

use crate::harness::{can_run, landbridge_pair_alone};
use landbridge::lab::{Appliance, PairOptions, Side};
use std::time::{Duration, Instant};

/// From the start of the process on. One second is promised from the
/// peer's point of view; the process's own start and the TAP's are in it too.
const LIMIT: Duration = Duration::from_secs(1);

fn assert_back_soon(end: fn(&mut Appliance)) {
    if !can_run() {
        return;
    }
    let mut pair = landbridge_pair_alone(PairOptions::default());
    for side in [Side::West, Side::East] {
        end(pair.appliance_mut(side));
        let start = Instant::now();
        pair.start(side).unwrap();
        pair.wait_for_tunnel().unwrap();
        let took = start.elapsed();
        println!("{side:?} was back after {} ms", took.as_millis());
        assert!(took < LIMIT, "{side:?} was back only after {} ms", took.as_millis());
    }
}

#[test]
fn a_stopped_appliance_is_back_within_a_second() {
    assert_back_soon(Appliance::stop);
}

#[test]
fn a_killed_appliance_is_back_within_a_second() {
    assert_back_soon(Appliance::kill);
}
