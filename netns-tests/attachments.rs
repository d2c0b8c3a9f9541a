//! Where an appliance meets its LAN: left as it was, lost and found again.
//!
//! ```text
//!   host-e ── br-100 or lan0 ── east-1 ════ router ════ west-1 ── br-100 ── host-w
//!             comes and goes
//! ```

use crate::harness::{
    TestPair,
    ask::{attachment, eventually},
    can_run,
    frames::{EXPERIMENTAL, frame},
    landbridge_pair,
    probe::Probe,
};
use landbridge::{
    lab::{AttachmentKind, PairOptions, Side, Veth},
    manage::model::AttachmentState,
};
use serde_json::Value;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);

fn nic_east() -> PairOptions {
    PairOptions {
        attachments: [AttachmentKind::Nic, AttachmentKind::Bridge],
        ..PairOptions::default()
    }
}

/// Waits until the east attachment is in `state`, for a reason that contains `text`.
fn wait_for_state(pair: &TestPair, state: AttachmentState, text: &str) {
    eventually("the attachment's state", || {
        let attachment = attachment(pair, Side::East)?;
        let is = attachment.state == state && attachment.reason.contains(text);
        if is { Ok(()) } else { Err(format!("{attachment:?}")) }
    });
}

#[test]
fn a_bridge_stays_as_it_was() {
    if !can_run() {
        return;
    }
    let mut pair = landbridge_pair(PairOptions { lan_mtu: 1400, ..PairOptions::default() });
    let bridge = |pair: &TestPair| -> [Value; 3] {
        let link = pair.appliance(Side::East).namespace.link("br-100").unwrap();
        let mask = link["linkinfo"]["info_data"]["group_fwd_mask"].clone();
        [link["address"].clone(), link["mtu"].clone(), mask]
    };
    let with = bridge(&pair);
    pair.appliance_mut(Side::East).stop();
    let without = bridge(&pair);
    assert!(without.iter().all(|value| !value.is_null()), "{without:?}");
    assert_eq!(with, without);
    pair.start(Side::East).unwrap();
    pair.wait_for_tunnel().unwrap();
    assert_eq!(bridge(&pair), without);
}

#[test]
fn a_bridge_that_is_made_again_is_joined_again() {
    if !can_run() {
        return;
    }
    let mut pair = landbridge_pair(PairOptions::default());
    let namespace = &pair.appliance(Side::East).namespace;
    namespace.ip("link del br-100").unwrap();
    wait_for_state(&pair, AttachmentState::Waiting, "br-100");
    namespace.add_bridge("br-100", 1500).unwrap();
    namespace.enslave("port0-0", "br-100").unwrap();
    pair.wait_for_tunnel().unwrap();
}

#[test]
fn a_bridge_that_appears_later_is_waited_for() {
    if !can_run() {
        return;
    }
    let mut pair = landbridge_pair(PairOptions::default());
    pair.appliance_mut(Side::East).stop();
    pair.appliance(Side::East).namespace.ip("link del br-100").unwrap();
    pair.start(Side::East).unwrap();
    wait_for_state(&pair, AttachmentState::Waiting, "br-100");
    let namespace = &pair.appliance(Side::East).namespace;
    namespace.add_bridge("br-100", 1500).unwrap();
    namespace.enslave("port0-0", "br-100").unwrap();
    pair.wait_for_tunnel().unwrap();
    wait_for_state(&pair, AttachmentState::Up, "");
}

#[test]
fn a_bridge_without_a_link_is_reported() {
    if !can_run() {
        return;
    }
    let mut pair = landbridge_pair(PairOptions::default());
    let host = &pair.host(Side::East).namespace;
    host.ip("link set eth0 down").unwrap();
    wait_for_state(&pair, AttachmentState::NoCarrier, "br-100");
    host.ip("link set eth0 up").unwrap();
    pair.wait_for_tunnel().unwrap();
    wait_for_state(&pair, AttachmentState::Up, "");
}

#[test]
fn a_nic_that_is_made_again_is_used_again() {
    if !can_run() {
        return;
    }
    let mut pair = landbridge_pair(nic_east());
    let (appliance, host) = (&pair.appliance(Side::East).namespace, pair.host(Side::East));
    appliance.ip("link del lan0").unwrap();
    let cable = Veth { namespace: appliance, interface: "lan0" };
    cable.connect(host.veth(), 1500).unwrap();
    host.namespace.ip(&format!("address add {}/16 dev eth0", host.v4)).unwrap();
    pair.wait_for_tunnel().unwrap();
}

#[test]
fn a_cable_is_pulled_and_put_back() {
    if !can_run() {
        return;
    }
    let mut pair = landbridge_pair(nic_east());
    let host = &pair.host(Side::East).namespace;
    host.ip("link set eth0 down").unwrap();
    wait_for_state(&pair, AttachmentState::NoCarrier, "carrier");
    host.ip("link set eth0 up").unwrap();
    pair.wait_for_tunnel().unwrap();
}

#[test]
fn a_nic_does_not_hear_itself() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(nic_east());
    let (east, west) = (Probe::on(pair.host(Side::East)), Probe::on(pair.host(Side::West)));
    let send = |text: &[u8]| {
        let frame = frame([0xff; 6], west.mac, &[], EXPERIMENTAL, text);
        west.send(&frame);
        frame
    };
    let (first, last) = (send(b"must not come back"), send(b"the last one"));
    assert_eq!(east.receive(2, PATIENCE, |frame| frame == first || frame == last).len(), 2);
    let answer = frame(west.mac, east.mac, &[], EXPERIMENTAL, b"an answer");
    east.send(&answer);
    west.expect_none_before(PATIENCE, |frame| frame == first, |frame| frame == answer);
}
