//! A peer whose address changes is followed.
//!
//! ```text
//!   host-e ── br-100 ── east-1 ═══ router ═══ west-1 ── br-100 ── host-w
//!                    .11 → .12      NAT     .11 → .12
//! ```

use crate::harness::{
    TestPair,
    ask::{peer, ping_from, ping_once, within},
    can_run, landbridge_pair, landbridge_pair_alone,
    relay::Relay,
};
use landbridge::{
    lab::{Pair, PairOptions, Side, Underlay},
    manage::model::LaneStatus,
};
use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

/// What a person would call at once.
const SOON: Duration = Duration::from_secs(2);

/// Whichever side speaks first.
fn wait_until_followed(pair: &Pair) {
    let start = Instant::now();
    for from in [Side::West, Side::East] {
        let left = SOON.saturating_sub(start.elapsed());
        within(left, "the peer to be followed", || ping_from(pair, from));
    }
}

#[test]
fn a_changed_mapping_of_a_nat_is_followed() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair_alone(PairOptions::default());
    let relay = Relay::new(&pair, 9);
    for port_offset in [1000, 2000, 3000] {
        relay.translate_east(port_offset);
        wait_until_followed(&pair);
        within(SOON, "the new address to be shown", || {
            let endpoint = peer(&pair, Side::West)?.endpoint.unwrap_or_default();
            if endpoint.starts_with("203.0.113.7:") { Ok(()) } else { Err(endpoint) }
        });
    }
    assert!(relay.tally(Side::East).translated > 0);
    assert!(relay.tally(Side::West).translated > 0);
}

#[test]
fn a_peer_behind_nat_from_the_start_gets_its_tunnel() {
    if !can_run() {
        return;
    }
    let mut pair = landbridge_pair(PairOptions::default());
    for side in Side::BOTH {
        pair.appliance_mut(side).stop();
    }
    let relay = Relay::new(&pair, 13);
    relay.translate_east(5000);
    let processes = Side::BOTH.map(|side| pair.spawn(side, &[]).unwrap());
    within(Pair::TUNNEL_TIMEOUT, "the tunnel", || {
        ping_once(&pair).map_err(|error| {
            let logs = processes.each_ref().map(|process| process.stderr());
            error + &logs.concat()
        })
    });
    // West's own first messages to the inside were all in vain.
    assert!(relay.tally(Side::West).lost > 0);
}

fn change_address(pair: &TestPair, side: Side) {
    let old = pair.options.endpoint(side).ip();
    let (new, gateway, length) = match old {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            (format!("{a}.{b}.{c}.12"), format!("{a}.{b}.{c}.1"), 24)
        }
        IpAddr::V6(ip) => {
            let text = ip.to_string();
            let net = text.strip_suffix("11").unwrap();
            (format!("{net}12"), format!("{net}1"), 64)
        }
    };
    let namespace = &pair.appliance(side).namespace;
    namespace.ip(&format!("address del {old}/{length} dev uplink")).unwrap();
    namespace.ip(&format!("address add {new}/{length} dev uplink")).unwrap();
    namespace.ip(&format!("route replace default via {gateway}")).unwrap();
}

#[test]
fn changed_addresses_are_followed() {
    for underlay in [Underlay::V4, Underlay::V6] {
        if !can_run() {
            return;
        }
        let pair = landbridge_pair_alone(PairOptions { underlay, ..PairOptions::default() });
        for side in [Side::East, Side::West] {
            change_address(&pair, side);
            wait_until_followed(&pair);
            within(SOON, "the new address to be shown", || {
                let lanes = peer(&pair, side.other())?.lanes;
                let is_new = |lane: &LaneStatus| {
                    let endpoint = lane.endpoint.as_deref().unwrap_or_default();
                    let ip = endpoint.rsplit_once(':').unwrap_or_default().0;
                    ip.trim_end_matches(']').ends_with("12")
                };
                if lanes.iter().all(is_new) { Ok(()) } else { Err(format!("{lanes:?}")) }
            });
        }
    }
}
