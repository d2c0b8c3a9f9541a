//! Any frame crosses byte for byte.
//!
//! ```text
//!   host-e ── br-100 ── east-1 ════ router ════ west-1 ── br-100 ── host-w
//!    probe      LAN MTU 9216      underlay MTU 1500                 probe
//! ```

use crate::harness::{
    ask::within,
    can_run,
    frames::{C_TAG, EXPERIMENTAL, S_TAG, Seeded, frame},
    landbridge_pair,
    probe::Probe,
};
use landbridge::lab::{AttachmentKind, Pair, PairOptions, Side};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);
/// Frames under way at once; well below any socket buffer.
const WINDOW: usize = 32;

/// Sends what `build` makes both ways between the first hosts and compares all
/// bytes, in any order.
pub(crate) fn assert_cross(pair: &Pair, build: impl Fn(&Probe, &Probe) -> Vec<Vec<u8>>) {
    let (east, west) = (Probe::on(pair.host(Side::East)), Probe::on(pair.host(Side::West)));
    for (from, to) in [(&east, &west), (&west, &east)] {
        let mut frames = build(from, to);
        for window in frames.chunks_mut(WINDOW) {
            window.iter().for_each(|frame| from.send(frame));
            let mut arrived =
                to.receive(window.len(), PATIENCE, |frame| window.iter().any(|sent| sent == frame));
            window.sort();
            arrived.sort();
            let lengths = |frames: &[Vec<u8>]| frames.iter().map(Vec::len).collect::<Vec<_>>();
            assert!(
                arrived == window,
                "sent {:?}, arrived {:?}",
                lengths(window),
                lengths(&arrived)
            );
        }
    }
}

/// One frame of each of `lengths` bytes, addresses included, with `tags` on top.
pub(crate) fn of_lengths(
    from: &Probe,
    to: &Probe,
    tags: &[(u16, u16)],
    lengths: impl IntoIterator<Item = usize>,
) -> Vec<Vec<u8>> {
    const HEADER: usize = 14;
    let mut seeded = Seeded::new(1);
    let payload = |length| seeded.bytes(length - HEADER);
    let payloads = lengths.into_iter().map(payload);
    payloads.map(|payload| frame(to.mac, from.mac, tags, EXPERIMENTAL, &payload)).collect()
}

/// The kinds of frames that a LAN has.
pub(crate) fn of_kinds(from: &Probe, to: &Probe) -> Vec<Vec<u8>> {
    const BROADCAST: [u8; 6] = [0xff; 6];
    const UNKNOWN: [u8; 6] = [2, 0xee, 0, 0, 0, 1];
    const MULTICAST_V4: [u8; 6] = [1, 0, 0x5e, 1, 2, 3];
    const MULTICAST_V6: [u8; 6] = [0x33, 0x33, 0, 0, 0x12, 0x34];
    let mut seeded = Seeded::new(2);
    let tag_stacks: [&[(u16, u16)]; 6] = [
        &[],
        &[(C_TAG, 0x0064)],
        &[(C_TAG, 0xe000)],
        &[(S_TAG, 0x0fff)],
        &[(S_TAG, 0x4065), (C_TAG, 0x1066)],
        &[(C_TAG, 0x0065), (C_TAG, 0x0066)],
    ];
    let ether_types = [EXPERIMENTAL, 0x88f7, 0x8847, 0x8863, 0x0101];
    let mut frames = Vec::new();
    for destination in [to.mac, BROADCAST, UNKNOWN, MULTICAST_V4, MULTICAST_V6] {
        for tags in tag_stacks {
            for ether_type in ether_types {
                let payload = seeded.bytes(100);
                frames.push(frame(destination, from.mac, tags, ether_type, &payload));
            }
        }
    }
    frames
}

#[test]
fn every_length_from_14_to_9216_bytes() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions { lan_mtu: 9216, ..PairOptions::default() });
    assert_cross(&pair, |from, to| of_lengths(from, to, &[], 14..=9216));
}

#[test]
fn tags_cost_no_length() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions { lan_mtu: 9216, ..PairOptions::default() });
    let tag_stacks: [&[(u16, u16)]; 2] = [&[(C_TAG, 100)], &[(S_TAG, 7), (C_TAG, 100)]];
    for tags in tag_stacks {
        assert_cross(&pair, |from, to| of_lengths(from, to, tags, (16..=9216).step_by(19)));
    }
}

/// Bytes without tags. Two must follow a tag, or Linux drops the frame
/// (skb_vlan_untag in net/core/skbuff.c).
fn some_lengths() -> impl Iterator<Item = usize> {
    (16..=9216).step_by(97).chain([60, 1499, 1500, 1514, 9215, 9216])
}

#[test]
fn every_kind_and_length_by_every_attachment() {
    const PLAIN: &str = ", offload = false";
    for kind in [AttachmentKind::Bridge, AttachmentKind::Tap, AttachmentKind::Nic] {
        for fields in [["", ""], [PLAIN, ""], [PLAIN, PLAIN]] {
            if !can_run() {
                return;
            }
            let pair = landbridge_pair(PairOptions {
                attachments: [kind; 2],
                lan_mtu: 9216,
                extra_attachment_fields: fields.map(str::to_owned),
                ..PairOptions::default()
            });
            assert_cross(&pair, of_kinds);
            assert_cross(&pair, |from, to| of_lengths(from, to, &[], some_lengths()));
            let tags = [(S_TAG, 7), (C_TAG, 100)];
            assert_cross(&pair, |from, to| of_lengths(from, to, &tags, some_lengths()));
        }
    }
}

/// What is inside of the trunk's tag crosses as it is, tags too.
#[test]
fn a_trunk_carries_tags_within_its_tag() {
    if !can_run() {
        return;
    }
    let options = PairOptions {
        attachments: [AttachmentKind::Trunk; 2],
        lan_mtu: 9216,
        ..PairOptions::default()
    };
    let pair = landbridge_pair(options);
    wait_for_frames(&pair, &[(C_TAG, 100)]);
    for inner in [&[][..], &[(C_TAG, 0x2007)], &[(S_TAG, 7)], &[(S_TAG, 7), (C_TAG, 100)]] {
        let tags = [&[(C_TAG, 100)], inner].concat();
        assert_cross(&pair, |from, to| of_lengths(from, to, &tags, some_lengths()));
    }
}

/// No host on a trunk answers a ping, so a frame is repeated until it crosses.
fn wait_for_frames(pair: &Pair, tags: &[(u16, u16)]) {
    let (east, west) = (Probe::on(pair.host(Side::East)), Probe::on(pair.host(Side::West)));
    for (from, to) in [(&east, &west), (&west, &east)] {
        let hello = frame(to.mac, from.mac, tags, EXPERIMENTAL, b"is anybody there?");
        within(Pair::TUNNEL_TIMEOUT, "a frame to cross", || {
            from.send(&hello);
            let arrived = to.receive(1, Duration::from_millis(100), |frame| frame == hello);
            if arrived.is_empty() { Err(pair.logs()) } else { Ok(()) }
        });
    }
}

#[test]
fn a_frame_comes_once_and_never_back() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions { hosts_per_site: 2, ..PairOptions::default() });
    let east = Probe::on(pair.host(Side::East));
    let others = [(Side::East, 1), (Side::West, 0), (Side::West, 1)]
        .map(|(side, number)| Probe::on(pair.host_in(side, 0, number)));
    let flooded = |text: &[u8]| frame([0xff; 6], east.mac, &[], EXPERIMENTAL, text);
    let (broadcast, end) = (flooded(b"flooded once"), flooded(b"and then this"));
    east.send(&broadcast);
    for other in &others {
        assert_eq!(other.receive(1, PATIENCE, |frame| frame == broadcast).len(), 1);
    }
    east.send(&end);
    for other in &others {
        other.expect_none_before(PATIENCE, |frame| frame == broadcast, |frame| frame == end);
    }
    // Had it come back, it would have done so before this answer from afar.
    let answer = frame(east.mac, others[1].mac, &[], EXPERIMENTAL, b"from the far side");
    others[1].send(&answer);
    east.expect_none_before(PATIENCE, |frame| frame == broadcast, |frame| frame == answer);
}
