//! MAC addresses are learnt, age, move and are bounded.
//!
//! ```text
//!   host-e ── br-100 ── east-1 ════ router ════ west-1 ── br-100 ── host-w
//!    probe             `macs`                    `macs`             probe
//! ```

use crate::harness::{
    TestPair,
    ask::{counter, eventually, macs, status, wait_for_counter, within},
    can_run,
    frames::{EXPERIMENTAL, frame},
    landbridge_pair,
    probe::Probe,
};
use landbridge::{
    lab::{MacAddress, PairOptions, Side},
    manage::model::{Location, MacEntry},
};
use std::time::Duration;

const STATION: MacAddress = [2, 0xaa, 0, 0, 0, 1];
const HERE: &[u8] = b"here I am";

fn entry(pair: &TestPair, side: Side, mac: MacAddress) -> Result<MacEntry, String> {
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let entries = macs(pair, side)?;
    let found = entries.iter().find(|entry| entry.mac == mac).cloned();
    found.ok_or_else(|| format!("{mac} is not in {entries:?}"))
}

fn assert_lives(pair: &TestPair, mac: MacAddress, home: Side, moves: u32) {
    for side in Side::BOTH {
        let expected = match home {
            home if home == side => Location::Local,
            home => Location::Site(home.site().into()),
        };
        eventually("the address to be learnt", || {
            let entry = entry(pair, side, mac)?;
            let is = entry.location == expected && entry.moves == moves && entry.network == "app";
            if is { Ok(()) } else { Err(format!("{side:?}: {entry:?}")) }
        });
    }
}

fn flooded(source: MacAddress, text: &[u8]) -> Vec<u8> {
    frame([0xff; 6], source, &[], EXPERIMENTAL, text)
}

#[test]
fn a_station_is_learnt_moves_and_is_followed() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions { hosts_per_site: 2, ..PairOptions::default() });
    let [east, west] = Side::BOTH.map(|side| Probe::on(pair.host(side)));
    for side in Side::BOTH {
        assert_lives(&pair, pair.host(side).namespace.mac("eth0").unwrap(), side, 0);
    }
    east.send(&flooded(STATION, HERE));
    assert_lives(&pair, STATION, Side::East, 0);
    west.send(&flooded(STATION, b"and now here"));
    assert_lives(&pair, STATION, Side::West, 1);
    for side in Side::BOTH {
        wait_for_counter(&pair, side, "mac_moved", 1);
    }
    let other = Probe::on(pair.host_in(Side::East, 0, 1));
    let to_it = frame(STATION, other.mac, &[], EXPERIMENTAL, b"to the new place");
    other.send(&to_it);
    assert_eq!(west.receive(1, Duration::from_secs(5), |frame| frame == to_it).len(), 1);
}

#[test]
fn a_silent_station_is_forgotten() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions {
        extra_network_lines: "ageing_s = 10\n".into(),
        ..PairOptions::default()
    });
    Probe::on(pair.host(Side::East)).send(&flooded(STATION, HERE));
    assert_lives(&pair, STATION, Side::East, 0);
    for side in Side::BOTH {
        within(Duration::from_secs(15), "the address to age", || {
            match entry(&pair, side, STATION) {
                Err(_) => Ok(()),
                Ok(entry) => Err(format!("{entry:?}")),
            }
        });
    }
}

#[test]
fn a_network_has_as_many_stations_as_it_may() {
    const MOST: u32 = 16;
    const MORE: u8 = 50;
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions {
        extra_network_lines: format!("max_macs = {MOST}\n"),
        ..PairOptions::default()
    });
    let [east, west] = Side::BOTH.map(|side| Probe::on(pair.host(side)));
    for number in 0..MORE {
        let [a, b, c, d, e, _] = STATION;
        east.send(&flooded([a, b, c, d, e, 0x10 + number], HERE));
    }
    // All of them are flooded nevertheless.
    let arrived = west.receive(MORE.into(), Duration::from_secs(5), |frame| {
        frame.ends_with(HERE) && frame[6..8] == STATION[..2]
    });
    assert_eq!(arrived.len(), usize::from(MORE));
    for side in Side::BOTH {
        assert_eq!(macs(&pair, side).unwrap().len(), MOST as usize);
        assert!(counter(&pair, side, "mac_limit").unwrap() >= u64::from(MORE) - u64::from(MOST));
        let warnings = status(&pair, side).unwrap().warnings;
        assert!(warnings.iter().any(|warning| warning.contains("max_macs")), "{warnings:?}");
    }
}
