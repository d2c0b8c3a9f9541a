//! The path MTU is smaller than the links say, shrinks, and grows again.
//!
//! ```text
//!   host-e ── br-100 ── east-1 ════ router ════ west-1 ── br-100 ── host-w
//!                     1500         1300 … 1500
//! ```

use crate::harness::{
    ask::{counter, peer, within},
    can_run,
    frames::{EXPERIMENTAL, frame},
    landbridge_pair, nft,
    probe::Probe,
};
use landbridge::lab::{Pair, PairOptions, Side, Underlay, transfer};
use std::{thread, time::Duration};

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
    const FRAMES: u8 = 50;
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions::default());
    wait_for_path_mtu(&pair, Duration::from_secs(5), |found| found == 1500);
    let (east, west) = (Probe::on(pair.host(Side::East)), Probe::on(pair.host(Side::West)));
    pair.appliance(Side::East).namespace.ip("link set uplink mtu 1300").unwrap();
    let frames: Vec<_> = (0..FRAMES)
        .map(|number| frame(west.mac, east.mac, &[], EXPERIMENTAL, &[number; 1400]))
        .collect();
    for frame in &frames {
        east.send(frame);
        thread::sleep(Duration::from_millis(5));
    }
    let arrived = west.receive(frames.len(), Duration::from_secs(1), |frame| {
        frames.iter().any(|sent| sent == frame)
    });
    // Those that were under way when the size was refused.
    assert!(arrived.len() >= frames.len() - 2, "{} of {FRAMES} arrived", arrived.len());
    assert!(counter(&pair, Side::East, "underlay_too_big").unwrap() >= 1);
    // The link takes no larger ones either: a black hole for the other side.
    wait_for_path_mtu(&pair, Duration::from_secs(15), is_about(1300));
}

#[test]
fn a_large_lan_crosses_a_small_underlay() {
    if !can_run() {
        return;
    }
    let options = PairOptions { lan_mtu: 9000, underlay_mtu: 1280, ..PairOptions::default() };
    transfer_both_ways(&landbridge_pair(options));
}
