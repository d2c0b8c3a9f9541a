//! New keys every two seconds, several lanes, and nobody notices.
//!
//! ```text
//!   host-e ── br-100 ── east-1 ════ router ════ west-1 ── br-100 ── host-w
//!    8 flows            2 lanes, rekey_after_s = 2                  8 flows
//! ```

use crate::harness::{
    ask::{counter, peer},
    can_run,
    flows::{Delivery, Flows},
    landbridge_pair,
};
use landbridge::lab::{AttachmentKind, Pair, PairOptions, Side};
use std::{thread, time::Duration};

const FLOWS: usize = 8;
/// So slow that a TAP's queue outlasts a busy machine's pauses.
const INTERVAL: Duration = Duration::from_millis(10);

fn both_ways(pair: &Pair, duration: Duration) -> [Delivery; 2] {
    let flows = Side::BOTH
        .map(|side| Flows::start(pair.host(side), pair.host(side.other()), FLOWS, INTERVAL));
    thread::sleep(duration);
    flows.map(Flows::finish)
}

#[test]
fn new_keys_lose_no_datagram() {
    if !can_run() {
        return;
    }
    for lanes in [1, 2] {
        let pair = landbridge_pair(PairOptions {
            lanes: Some(lanes),
            extra_group_lines: "rekey_after_s = 2\n".into(),
            ..PairOptions::default()
        });
        let before = counter(&pair, Side::East, "handshake_completed").unwrap();
        for delivery in both_ways(&pair, Duration::from_secs(7)) {
            assert!(delivery.is_whole() && delivery.sent > 500, "{lanes} lanes: {delivery:?}");
        }
        let after = counter(&pair, Side::East, "handshake_completed").unwrap();
        assert!(after >= before + 3, "{before} handshakes, then {after}");
    }
}

#[test]
fn two_lanes_share_the_flows_and_keep_each_in_order() {
    for kind in [AttachmentKind::Bridge, AttachmentKind::Tap, AttachmentKind::Nic] {
        if !can_run() {
            return;
        }
        let pair = landbridge_pair(PairOptions {
            lanes: Some(2),
            attachments: [kind; 2],
            ..PairOptions::default()
        });
        for delivery in both_ways(&pair, Duration::from_secs(1)) {
            assert!(delivery.is_whole() && delivery.sent > 100, "{kind:?}: {delivery:?}");
        }
        for side in Side::BOTH {
            let lanes = peer(&pair, side).unwrap().lanes;
            // Lane 0 is the control lane.
            let busy = lanes[1..].iter().filter(|lane| lane.tx.packets > 20).count();
            assert_eq!((lanes.len(), busy), (3, 2), "{kind:?}: {lanes:#?}");
        }
    }
}
