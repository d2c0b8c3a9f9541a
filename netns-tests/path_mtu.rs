//! The path MTU is smaller than the links say, shrinks, and grows again.
//!
//! ```text
//!   host-e ── br-100 ── east-1 ════ router ════ west-1 ── br-100 ── host-w
//!                     1500         1300 … 1500
//! ```

use crate::harness::{
    ask::{counter, peer, within},
    can_run, landbridge_pair, nft,
};
use landbridge::lab::{Pair, PairOptions, Side, Underlay, transfer};
use std::time::Duration;

fn transfer_both_ways(pair: &Pair) {
    let (east, west) = (pair.host(Side::East), pair.host(Side::West));
    let a_moment = Duration::from_millis(500);
    transfer(&east.namespace, &west.namespace, west.v4.into(), a_moment).unwrap();
    transfer(&west.namespace, &east.namespace, east.v4.into(), a_moment).unwrap();
}

/// Both directions, by the router's routes: a veth with a smaller MTU would also
/// drop what it receives, in silence.
pub(crate) fn set_path_mtu(pair: &Pair, mtu: u32) {
    for side in Side::BOTH {
        let (address, link) = (pair.options.endpoint(side).ip(), side.site());
        pair.router.ip(&format!("route replace {address} dev {link} mtu lock {mtu}")).unwrap();
    }
}

/// Transfers until both sides' status shows a path MTU that `is_right`.
fn wait_for_path_mtu(pair: &Pair, limit: Duration, is_right: impl Fn(u16) -> bool) {
    within(limit, "the path MTU to be found", || {
        transfer_both_ways(pair);
        let found = Side::BOTH.map(|side| peer(pair, side).map(|peer| peer.path_mtu));
        let right = found.iter().all(|mtu| mtu.as_ref().is_ok_and(|mtu| is_right(*mtu)));
        if right { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

/// The search ends within 8 bytes of the truth.
fn is_about(mtu: u16) -> impl Fn(u16) -> bool {
    move |found| (mtu - 8..=mtu).contains(&found)
}

#[test]
fn the_path_mtu_is_followed_down_and_up_without_icmp() {
    /// A larger size is tried every 30 s.
    const PATIENCE: Duration = Duration::from_secs(45);
    for underlay in [Underlay::V4, Underlay::V6] {
        if !can_run() {
            return;
        }
        let pair = landbridge_pair(PairOptions { underlay, ..PairOptions::default() });
        let _silence = nft::NoIcmp::new(&pair);
        wait_for_path_mtu(&pair, PATIENCE, |found| found == 1500);
        set_path_mtu(&pair, 1300);
        transfer_both_ways(&pair);
        wait_for_path_mtu(&pair, PATIENCE, is_about(1300));
        set_path_mtu(&pair, 1500);
        wait_for_path_mtu(&pair, PATIENCE, |found| found == 1500);
    }
}

#[test]
fn a_link_that_shrinks_is_acted_on_at_once() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions::default());
    wait_for_path_mtu(&pair, Duration::from_secs(5), |found| found == 1500);
    for (side, mtu) in [(Side::East, 1400), (Side::West, 1300)] {
        // What comes to such a link must be as small.
        set_path_mtu(&pair, mtu);
        let uplink = format!("link set uplink mtu {mtu}");
        pair.appliance(side).namespace.ip(&uplink).unwrap();
        let target = pair.host(Side::West).v4.into();
        let report = ping_of_size(&pair, 1472, target);
        assert!(report, "a full-size ping after the link shrank to {mtu}");
        wait_for_path_mtu(&pair, Duration::from_secs(10), is_about(mtu as u16));
        assert!(counter(&pair, side, "underlay_too_big").unwrap() >= 1);
    }
}

/// Whether at most the first two pings of 50 a second were lost.
fn ping_of_size(pair: &Pair, payload: u32, target: std::net::IpAddr) -> bool {
    let (payload, target) = (payload.to_string(), target.to_string());
    let argv =
        ["ping", "-n", "-c", "20", "-i", "0.02", "-W", "1", "-M", "do", "-s", &payload, &target];
    let output = pair.host(Side::East).namespace.exec(&argv).unwrap();
    let answers = output.stdout.matches("bytes from").count();
    answers >= 18
}

#[test]
fn a_large_lan_crosses_a_small_underlay() {
    if !can_run() {
        return;
    }
    let options = PairOptions { lan_mtu: 9000, underlay_mtu: 1280, ..PairOptions::default() };
    transfer_both_ways(&landbridge_pair(options));
}
