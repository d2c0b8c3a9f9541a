//! An operator sees what an appliance does, and what goes wrong on its LAN.
//!
//! ```text
//!   host-e ── br-100 or lan0 ── east-1 ════ router ════ west-1 ── br-100 ── host-w
//!    probe                     `status`                `counters`           probe
//! ```

use crate::harness::{
    ask::{counter, eventually, peer, ping_once, status, wait_for_counter},
    can_run,
    frames::{EXPERIMENTAL, frame},
    landbridge_pair,
    probe::Probe,
};
use etherparse::PacketBuilder;
use landbridge::{
    lab::{AttachmentKind, PairOptions, Side, transfer},
    manage::model::PeerState,
};
use rustix::process::Signal;
use std::{
    fs,
    net::IpAddr,
    os::unix::fs::{MetadataExt, PermissionsExt},
    time::Duration,
};

#[test]
fn the_status_tells_what_the_tunnel_does() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions::default());
    let (east, west) = (pair.host(Side::East), pair.host(Side::West));
    let seconds = Duration::from_secs(3);
    transfer(&east.namespace, &west.namespace, west.v4.into(), seconds).unwrap();
    let status = status(&pair, Side::East).unwrap();
    assert_eq!((&*status.appliance, &*status.site, &*status.group), ("east-1", "east", "lab"));
    let peer = &status.peers[0];
    assert_eq!((&*peer.name, peer.state), ("west-1", PeerState::Up));
    assert_eq!((peer.path_mtu, peer.group_digest_differs), (1500, false));
    assert!(peer.rtt_us.is_some_and(|rtt| rtt > 0) && peer.last_handshake_s.is_some(), "{peer:?}");
    assert!(peer.tx.bytes > 100_000 && peer.tx.rate_bps > 0, "{peer:?}");
    let network = &status.networks[0];
    assert_eq!((network.id, &*network.name), (100, "app"));
    assert!(network.rx.bytes > 100_000 && network.rx.rate_bps > 0, "{network:?}");
    assert!(status.warnings.is_empty(), "{:?}", status.warnings);
    for words in ["status", "macs", "counters"] {
        let text = pair.ask(Side::East, words).unwrap();
        assert!(!text.trim().is_empty(), "{words} says nothing");
    }
}

#[test]
fn only_root_may_ask() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions::default());
    let socket = fs::metadata(pair.appliance(Side::East).socket()).unwrap();
    assert_eq!((socket.permissions().mode() & 0o777, socket.uid()), (0o600, 0));
}

#[test]
fn a_group_file_that_differs_is_told_and_drops_nothing() {
    if !can_run() {
        return;
    }
    let mut pair = landbridge_pair(PairOptions::default());
    let group = fs::read_to_string(pair.group_file()).unwrap();
    for differs in [true, false] {
        let line = if differs { "ageing_s = 77\nattach.east" } else { "attach.east" };
        pair.run.write("group.toml", &group.replace("attach.east", line)).unwrap();
        pair.start(Side::West).unwrap();
        pair.wait_for_tunnel().unwrap();
        for side in Side::BOTH {
            eventually("the digest to be judged", || {
                let status = status(&pair, side)?;
                let warned = status.warnings.iter().any(|text| text.contains("group file"));
                let told = status.peers[0].group_digest_differs;
                if (told, warned) == (differs, differs) {
                    Ok(())
                } else {
                    Err(format!("{status:?}"))
                }
            });
        }
    }
}

#[test]
fn a_farewell_is_understood_at_once() {
    if !can_run() {
        return;
    }
    let mut pair = landbridge_pair(PairOptions::default());
    pair.appliance_mut(Side::West).stop();
    let peer = peer(&pair, Side::East).unwrap();
    assert_eq!(peer.state, PeerState::Down);
    assert!(peer.reason.contains("farewell"), "{}", peer.reason);
}

#[test]
fn a_peer_that_vanishes_is_reported() {
    if !can_run() {
        return;
    }
    let mut pair = landbridge_pair(PairOptions::default());
    pair.appliance_mut(Side::West).kill();
    let peer = eventually("the peer to be missed", || {
        let peer = peer(&pair, Side::East)?;
        if peer.state == PeerState::Down { Ok(peer) } else { Err(format!("{peer:?}")) }
    });
    assert!(peer.reason.contains("not heard"), "{}", peer.reason);
}

#[test]
fn own_underlay_packets_from_the_lan_are_refused() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions::default());
    let (east, west) = (Probe::on(pair.host(Side::East)), Probe::on(pair.host(Side::West)));
    let endpoint = |side| match pair.options.endpoint(side).ip() {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(_) => unreachable!("the default underlay is IPv4"),
    };
    let mut own = Vec::new();
    // A stream datagram of lane 1, as far as anybody without keys can tell.
    let payload = [&[4, 1, 0, 0][..], &[7; 60]].concat();
    PacketBuilder::ethernet2(east.mac, west.mac)
        .ipv4(endpoint(Side::East), endpoint(Side::West), 64)
        .udp(40_000, PairOptions::PORT)
        .write(&mut own, &payload)
        .unwrap();
    let last = frame(west.mac, east.mac, &[], EXPERIMENTAL, b"and then this");
    east.send(&own);
    east.send(&last);
    west.expect_none_before(Duration::from_secs(5), |frame| frame == own, |frame| frame == last);
    assert!(counter(&pair, Side::East, "lan_own_underlay").unwrap() >= 1);
    let warnings = status(&pair, Side::East).unwrap().warnings;
    assert!(warnings.iter().any(|text| text.contains("underlay")), "{warnings:?}");
    eventually("the log to say so", || {
        let log = pair.appliance(Side::East).log();
        if log.contains("own underlay packets") { Ok(()) } else { Err(log) }
    });
}

#[test]
fn frames_that_the_lan_sends_back_are_noticed() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions {
        attachments: [AttachmentKind::Nic, AttachmentKind::Bridge],
        ..PairOptions::default()
    });
    let (east, west) = (Probe::on(pair.host(Side::East)), Probe::on(pair.host(Side::West)));
    let patience = Duration::from_secs(5);
    let broadcast = frame([0xff; 6], west.mac, &[], EXPERIMENTAL, b"is there a loop?");
    west.send(&broadcast);
    let received = east.receive(1, patience, |frame| frame == broadcast);
    east.send(&received[0]);
    wait_for_counter(&pair, Side::East, "lan_reflected", 1);
    let last = frame(west.mac, east.mac, &[], EXPERIMENTAL, b"and then this");
    east.send(&last);
    west.expect_none_before(patience, |frame| frame == broadcast, |frame| frame == last);
    let warnings = status(&pair, Side::East).unwrap().warnings;
    assert!(warnings.iter().any(|text| text.contains("come back")), "{warnings:?}");
    eventually("the log to say so", || {
        let log = pair.appliance(Side::East).log();
        if log.contains("sends own frames back") { Ok(()) } else { Err(log) }
    });
}

/// Frames sent while an appliance doesn't read; more than any buffer holds.
const FLOOD: usize = 20_000;

#[test]
fn what_the_kernel_drops_for_us_is_counted() {
    if !can_run() {
        return;
    }
    let mut pair = landbridge_pair(PairOptions {
        attachments: [AttachmentKind::Nic, AttachmentKind::Bridge],
        ..PairOptions::default()
    });
    let probes = Side::BOTH.map(|side| Probe::on(pair.host(side)));
    let flood = |from: Side, length: usize| {
        let probe = &probes[from as usize];
        let frame = frame([0xff; 6], probe.mac, &[], EXPERIMENTAL, &vec![1; length]);
        (0..FLOOD).for_each(|_| probe.send(&frame));
    };
    let signal = |pair: &mut crate::harness::TestPair, side: Side, signal: Signal| {
        pair.appliance_mut(side).process.as_mut().unwrap().signal(signal);
    };
    for (stopped, from, name) in [
        (Side::East, Side::East, "packet_dropped"),
        (Side::West, Side::West, "tap_tx_dropped"),
        (Side::West, Side::East, "udp_receive_dropped"),
    ] {
        let before = counter(&pair, stopped, name).unwrap();
        signal(&mut pair, stopped, Signal::STOP);
        flood(from, 1400);
        signal(&mut pair, stopped, Signal::CONT);
        wait_for_counter(&pair, stopped, name, before + 1);
        eventually("frames to cross again", || ping_once(&pair));
    }
}
