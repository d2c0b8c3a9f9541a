//! Many flows on several lanes: none is ever reordered, and what is lost is counted.
//!
//! ```text
//!   host-e ── br-100 or lan0 ── east-1 ════ router ════ west-1 ── br-100 or lan0 ── host-w
//!   64 flows                  1 or 4 lanes   in order   4 lanes                    64 flows
//! ```

use crate::harness::{
    TestPair,
    account::dropped_frames,
    ask::{eventually, peer, status},
    can_run,
    flows::{Delivery, Flows},
    landbridge_pair_alone,
};
use landbridge::lab::{AttachmentKind, Pair, PairOptions, Side};
use std::{fs, thread, time::Duration};

const FLOWS: usize = 64;
/// 64,000 datagrams per second and direction, if the machine can.
const INTERVAL: Duration = Duration::from_millis(1);
const DURATION: Duration = Duration::from_secs(1);
const LANES: u8 = 4;
/// Frames of [`Flows`] of which a datagram of 1500 bytes has at least a part.
const FRAMES_PER_DATAGRAM: u64 = 7;

/// A pair with [`LANES`] lanes, and `east` threads at the east side.
fn pair_with_lanes(east: u8, attachment: AttachmentKind) -> TestPair {
    let mut pair = landbridge_pair_alone(PairOptions {
        lanes: Some(LANES),
        attachments: [attachment; 2],
        ..PairOptions::default()
    });
    if east != LANES {
        let group = fs::read_to_string(pair.group_file()).unwrap();
        let own = group.replace(&format!("lanes = {LANES}\n"), &format!("lanes = {east}\n"));
        assert_ne!(own, group);
        fs::write(pair.group_file(), own).unwrap();
        pair.start(Side::East).unwrap();
        pair.join_taps().unwrap();
        pair.wait_for_tunnel().unwrap();
    }
    pair
}

/// Datagrams sent so far by each data lane.
fn sent_by_lane(pair: &Pair, side: Side) -> Vec<u64> {
    let lanes = peer(pair, side).unwrap().lanes;
    // Lane 0 is the control lane.
    lanes[1..].iter().map(|lane| lane.tx.packets).collect()
}

fn check_order(east: u8, attachment: AttachmentKind) {
    let pair = pair_with_lanes(east, attachment);
    let what = format!("{east} to {LANES} lanes, {attachment:?}");
    let lanes_before = Side::BOTH.map(|side| sent_by_lane(&pair, side));
    let accounted_before = Side::BOTH.map(|from| dropped_frames(&pair, from, FRAMES_PER_DATAGRAM));
    let flows = Flows::both_ways(Side::BOTH.map(|side| pair.host(side)), FLOWS, INTERVAL);
    thread::sleep(DURATION);
    let deliveries: [Delivery; 2] = flows.map(Flows::finish);
    for (from, delivery) in Side::BOTH.into_iter().zip(deliveries) {
        println!("{what}, from {}: {delivery:?}", from.site());
        assert_eq!((delivery.doubled, delivery.overtaken), (0, 0), "{what}: {delivery:?}");
        assert!(delivery.sent - delivery.lost > 5000, "{what}: {delivery:?}");
        eventually("every loss to be accounted for", || {
            let accounted =
                dropped_frames(&pair, from, FRAMES_PER_DATAGRAM) - accounted_before[from as usize];
            let is_explained = delivery.lost <= accounted;
            if is_explained { Ok(()) } else { Err(format!("{what}: {delivery:?}, {accounted}")) }
        });
    }
    for side in Side::BOTH {
        // A side with fewer threads sends on the first lane of each.
        let used = if side == Side::East { east } else { LANES };
        let lanes = sent_by_lane(&pair, side);
        assert_eq!(lanes.len(), usize::from(LANES));
        let before = &lanes_before[side as usize];
        let moved = lanes.iter().zip(before).map(|(now, before)| now - before);
        let busy = moved.filter(|datagrams| *datagrams > 500).count();
        assert_eq!(busy, usize::from(used), "{what}: {} sent {lanes:?}", side.appliance());
        let network = &status(&pair, side).unwrap().networks[0];
        assert_eq!(network.attachment.as_ref().unwrap().queues, u16::from(used), "{what}");
    }
}

#[test]
fn no_flow_is_reordered_between_four_lanes_and_four() {
    for attachment in [AttachmentKind::Bridge, AttachmentKind::Nic] {
        if !can_run() {
            return;
        }
        check_order(LANES, attachment);
    }
}

#[test]
fn no_flow_is_reordered_between_one_thread_and_four() {
    for attachment in [AttachmentKind::Bridge, AttachmentKind::Nic] {
        if !can_run() {
            return;
        }
        check_order(1, attachment);
    }
}
