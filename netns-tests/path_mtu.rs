//! The path MTU is smaller than the links say, shrinks, and grows again.
//!
//! ```text
//!   host-e ── br-100 ── east-1 ════ router ════ west-1 ── br-100 ── host-w
//!                     1500         1300 … 1500
//! ```

use crate::harness::{can_run, landbridge_pair, nft};
use landbridge::lab::{Pair, PairOptions, Side, Underlay, transfer};
use std::time::Duration;

fn transfer_both_ways(pair: &Pair) {
    let (east, west) = (pair.host(Side::East), pair.host(Side::West));
    let second = Duration::from_secs(1);
    transfer(&east.namespace, &west.namespace, west.v4.into(), second).unwrap();
    transfer(&west.namespace, &east.namespace, east.v4.into(), second).unwrap();
}

/// Both directions, by the router's routes: a veth with a smaller MTU would also
/// drop what it receives, in silence.
pub(crate) fn set_path_mtu(pair: &Pair, mtu: u32) {
    for side in Side::BOTH {
        let (address, link) = (pair.options.endpoint(side).ip(), side.site());
        pair.router.ip(&format!("route replace {address} dev {link} mtu lock {mtu}")).unwrap();
    }
}

#[test]
fn traffic_follows_the_path_mtu_down_and_up() {
    for underlay in [Underlay::V4, Underlay::V6] {
        if !can_run() {
            return;
        }
        let pair = landbridge_pair(PairOptions { underlay, ..PairOptions::default() });
        for mtu in [1500, 1300, 1500] {
            set_path_mtu(&pair, mtu);
            transfer_both_ways(&pair);
        }
    }
}

#[test]
fn a_black_hole_is_found_without_icmp() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions::default());
    let _silence = nft::NoIcmp::new(&pair);
    set_path_mtu(&pair, 1300);
    transfer_both_ways(&pair);
}

#[test]
fn a_large_lan_crosses_a_small_underlay() {
    if !can_run() {
        return;
    }
    let options = PairOptions { lan_mtu: 9000, underlay_mtu: 1280, ..PairOptions::default() };
    transfer_both_ways(&landbridge_pair(options));
}
