//! Networks of one group are kept strictly apart.
//!
//! ```text
//!   host-e    ── br-100 ─┐                               ┌─ br-100 ── host-w
//!   host-e-db ── br-101 ─┴ east-1 ═══ router ═══ west-1 ─┴ br-101 ── host-w-db
//! ```

use crate::harness::{
    can_run,
    frames::{C_TAG, EXPERIMENTAL, frame},
    landbridge_pair,
    probe::Probe,
};
use landbridge::lab::{AttachmentKind, Pair, PairOptions, Side};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn a_broadcast_stays_in_its_network() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions { networks: 2, ..PairOptions::default() });
    let probe = |side, network| Probe::on(pair.host_in(side, network, 0));
    for (network, other) in [(0, 1), (1, 0)] {
        let (from, to) = (probe(Side::East, network), probe(Side::West, network));
        let (other_from, other_to) = (probe(Side::East, other), probe(Side::West, other));
        let mine = frame([0xff; 6], from.mac, &[], EXPERIMENTAL, b"for one network only");
        let other_mine = frame([0xff; 6], other_from.mac, &[], EXPERIMENTAL, b"for the other one");
        from.send(&mine);
        assert_eq!(to.receive(1, PATIENCE, |frame| frame == mine).len(), 1);
        other_from.send(&other_mine);
        other_to.expect_none_before(PATIENCE, |frame| frame == mine, |frame| frame == other_mine);
    }
}

/// ```text
///   host-e ── lan0 ── east-1 ═══ router ═══ west-1 ─┬ br-100 ── host-w
///         tags 100, 101                             └ br-101 ── host-w-db
/// ```
#[test]
fn a_trunk_meets_two_bridges() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions {
        networks: 2,
        attachments: [AttachmentKind::Trunk, AttachmentKind::Bridge],
        ..PairOptions::default()
    });
    let trunk = Probe::on(pair.host(Side::East));
    let bridged = [0, 1].map(|network| Probe::on(pair.host_in(Side::West, network, 0)));
    wait_for_trunk(&pair, &trunk, &bridged);
    for (network, probe) in bridged.iter().enumerate() {
        let vlan = 100 + network as u16;
        let inside = frame([0xff; 6], trunk.mac, &[], EXPERIMENTAL, &[vlan as u8; 50]);
        let tagged = frame([0xff; 6], trunk.mac, &[(C_TAG, vlan)], EXPERIMENTAL, &[vlan as u8; 50]);
        trunk.send(&tagged);
        assert_eq!(probe.receive(1, PATIENCE, |frame| frame == inside).len(), 1, "VLAN {vlan}");
        let back = frame(trunk.mac, probe.mac, &[], EXPERIMENTAL, &[!vlan as u8; 50]);
        let back_tagged =
            frame(trunk.mac, probe.mac, &[(C_TAG, vlan)], EXPERIMENTAL, &[!vlan as u8; 50]);
        probe.send(&back);
        assert_eq!(trunk.receive(1, PATIENCE, |frame| frame == back_tagged).len(), 1);
        let other = &bridged[1 - network];
        let end =
            frame([0xff; 6], trunk.mac, &[(C_TAG, 201 - vlan)], EXPERIMENTAL, b"the end of it");
        let end_inside = frame([0xff; 6], trunk.mac, &[], EXPERIMENTAL, b"the end of it");
        trunk.send(&end);
        other.expect_none_before(PATIENCE, |frame| frame == inside, |frame| frame == end_inside);
    }
}

/// No host on a trunk answers a ping here, so a frame is repeated until it crosses.
fn wait_for_trunk(pair: &Pair, trunk: &Probe, bridged: &[Probe]) {
    for (network, probe) in bridged.iter().enumerate() {
        let hello = frame([0xff; 6], trunk.mac, &[], EXPERIMENTAL, b"is anybody there?");
        let tag = [(C_TAG, 100 + network as u16)];
        let tagged = frame([0xff; 6], trunk.mac, &tag, EXPERIMENTAL, b"is anybody there?");
        landbridge::lab::wait_until("a tagged frame to cross", Pair::TUNNEL_TIMEOUT, || {
            trunk.send(&tagged);
            let arrived = probe.receive(1, Duration::from_millis(100), |frame| frame == hello);
            if arrived.is_empty() { Err(pair.logs()) } else { Ok(()) }
        })
        .unwrap();
    }
}
