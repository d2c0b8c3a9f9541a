//! What a new user tries first, with real partners.
//!
//! ```text
//!   host-e ── br-100 ── east-1 ════ router ════ west-1 ── br-100 ── host-w
//!                        LAN and underlay MTU 1500
//! ```

use crate::harness::{ask::eventually, can_run, fail, iperf3, landbridge_pair, part_of_machine};
use landbridge::lab::{AttachmentKind, Pair, PairOptions, Side, Underlay, ping, tour, transfer};
use std::{net::IpAddr, path::Path, time::Duration};

fn assert_pings(pair: &Pair) {
    let west = pair.host(Side::West);
    for target in [IpAddr::from(west.v4), IpAddr::from(west.v6)] {
        let report =
            ping(&pair.host(Side::East).namespace, target, 20).unwrap_or_else(|error| fail(&error));
        assert_eq!(report.received, report.sent, "{target}");
    }
}

#[test]
fn ping_by_every_attachment() {
    for kind in [AttachmentKind::Bridge, AttachmentKind::Tap, AttachmentKind::Nic] {
        if !can_run() {
            return;
        }
        let options =
            PairOptions { attachments: [kind, AttachmentKind::Bridge], ..PairOptions::default() };
        assert_pings(&landbridge_pair(options));
    }
}

#[test]
fn ping_over_an_ipv6_underlay() {
    if !can_run() {
        return;
    }
    let options = PairOptions { underlay: Underlay::V6, ..PairOptions::default() };
    assert_pings(&landbridge_pair(options));
}

#[test]
fn a_full_size_ping_crosses_an_underlay_of_the_same_mtu() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions::default());
    let target = pair.host(Side::West).v4.to_string();
    // 1472 bytes of payload are 1500 of IP; `do` forbids fragments.
    let argv = ["ping", "-n", "-c", "5", "-i", "0.01", "-M", "do", "-s", "1472", &target];
    let output = pair.host(Side::East).namespace.exec(&argv).unwrap();
    assert!(output.status.success(), "{}", output.stdout + &output.stderr);
}

#[test]
fn iperf3_both_ways() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions::default());
    for reverse in [false, true] {
        let bits_per_second = iperf3(&pair, reverse, 3);
        println!("reverse {reverse}: {:.2} Gbit/s", bits_per_second / 1e9);
        assert!(bits_per_second > 50e6, "only {bits_per_second} bit/s");
    }
}

#[test]
fn every_byte_of_a_transfer_arrives() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions::default());
    let (east, west) = (pair.host(Side::East), pair.host(Side::West));
    let second = Duration::from_secs(1);
    transfer(&east.namespace, &west.namespace, west.v4.into(), second).unwrap();
    transfer(&west.namespace, &east.namespace, east.v6.into(), second).unwrap();
}

#[test]
fn neighbour_discovery_crosses() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions::default());
    let (east, west) = (pair.host(Side::East), pair.host(Side::West));
    let argv = ["ndisc6", "-1", "-m", &west.v6.to_string(), "eth0"].map(str::to_owned);
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let output = east.namespace.exec(&argv).unwrap();
    let mac = west.namespace.mac("eth0").unwrap();
    let mac = mac.map(|byte| format!("{byte:02X}")).join(":");
    assert!(output.status.success() && output.stdout.contains(&mac), "{}", output.stdout);
}

#[test]
fn router_advertisements_cross() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions::default());
    let (east, west) = (&pair.host(Side::East).namespace, &pair.host(Side::West).namespace);
    let router = west
        .spawn(&[
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--user=root",
            "--log-facility=-",
            "--pid-file=",
            "--port=0",
            "--interface=eth0",
            "--enable-ra",
            "--dhcp-range=fd00::,ra-only,64,1h",
        ])
        .unwrap();
    let said = eventually("an advertisement", || {
        let output = east.exec(&["rdisc6", "-1", "-r", "1", "-w", "500", "eth0"]).unwrap();
        let said = output.stdout + &output.stderr + &router.stderr();
        if output.status.success() { Ok(said) } else { Err(said) }
    });
    assert!(said.contains("fd00::/64"), "{said}");
}

#[test]
fn the_tour_succeeds() {
    if !can_run() {
        return;
    }
    let _share = part_of_machine();
    let report = tour(Path::new(env!("CARGO_BIN_EXE_landbridge")), true).unwrap();
    let steps = report.steps.iter();
    let failed: Vec<_> = steps.filter(|step| !step.ok).collect();
    assert!(report.ok && failed.is_empty(), "{failed:#?}");
    assert_eq!(report.steps.len(), 8);
}
