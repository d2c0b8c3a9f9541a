//! The harness checked against the kernel's VXLAN: what it builds works, what it
//! measures is true, and its tests can fail.
//!
//! ```text
//!   host-e ── br-100 ── vx-100 ════ router ════ vx-100 ── br-100 ── host-w
//!                            plaintext, relay
//! ```

use crate::{
    ethernet::{assert_cross, of_kinds, of_lengths},
    harness::{
        TestPair, can_run, connected, nft, part_of_machine,
        relay::{Impairment, Relay},
        vxlan_pair,
    },
    path_mtu::set_path_mtu,
};
use landbridge::lab::{
    Capture, Carrier, MARKER, Namespace, Offload, PairOptions, Run, Side, Underlay, ping, tour_of,
    transfer, wait_until,
};
use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

const SECOND: Duration = Duration::from_secs(1);

/// VXLAN never fragments: its underlay is made large enough.
fn options() -> PairOptions {
    PairOptions { underlay_mtu: 9400, lan_mtu: 9216, ..PairOptions::default() }
}

#[test]
fn a_pair_pings_and_plaintext_is_seen() {
    if !can_run() {
        return;
    }
    let pair = vxlan_pair(options());
    let (east, west) = (pair.host(Side::East), pair.host(Side::West));
    for target in [west.v4.into(), west.v6.into()] {
        let report = ping(&east.namespace, target, 10).unwrap();
        assert_eq!((report.sent, report.received), (10, 10));
    }
    let capture = Capture::start(&pair.router, &["east", "west"], MARKER).unwrap();
    let sent = transfer(&east.namespace, &west.namespace, west.v4.into(), SECOND / 5).unwrap();
    let seen = capture.finish().unwrap();
    // A busy machine's capture may miss some.
    assert!(seen.with_text > 0 && seen.bytes > sent.bytes / 2, "{seen:?}");
}

#[test]
fn probes_see_frames_byte_for_byte() {
    if !can_run() {
        return;
    }
    let pair = vxlan_pair(options());
    assert_cross(&pair, of_kinds);
    assert_cross(&pair, |from, to| of_lengths(from, to, &[], (14..=9216).step_by(211)));
}

#[test]
fn the_relay_delays_and_loses() {
    if !can_run() {
        return;
    }
    let pair = vxlan_pair(options());
    let relay = Relay::new(&pair, 1);
    let (east, target) = (&pair.host(Side::East).namespace, pair.host(Side::West).v4.into());
    relay.impair_both(Impairment { delay: Duration::from_millis(5), ..Impairment::default() });
    let report = ping(east, target, 10).unwrap();
    assert_eq!(report.received, 10);
    assert!(report.min_ms >= 10.0, "{report:?}");
    relay.impair_both(Impairment { loss: 0.5, ..Impairment::default() });
    let report = ping(east, target, 100).unwrap();
    assert!((1..=60).contains(&report.received), "{report:?}");
    relay.cut(Side::West);
    assert!(ping(east, target, 3).is_err());
    relay.heal();
    assert_eq!(ping(east, target, 10).unwrap().received, 10);
    drop(relay);
    assert_eq!(ping(east, target, 10).unwrap().received, 10);
}

#[test]
fn the_relay_duplicates_and_corrupts() {
    if !can_run() {
        return;
    }
    let pair = vxlan_pair(options());
    let relay = Relay::new(&pair, 2);
    let (east, west) = (pair.host(Side::East), pair.host(Side::West));
    relay.impair(Side::East, Impairment { duplicates: 1.0, ..Impairment::default() });
    let target = west.v4.to_string();
    let output = east.namespace.exec(&["ping", "-n", "-c", "3", "-i", "0.05", &target]).unwrap();
    assert!(output.stdout.contains("(DUP!)"), "{}", output.stdout);
    relay.impair(Side::East, Impairment { corruption: 1.0, ..Impairment::default() });
    let _ = ping(&east.namespace, west.v4.into(), 20);
    let tally = relay.tally(Side::East);
    assert!(tally.duplicated >= 3 && tally.corrupted >= 1, "{tally:?}");
}

/// A UDP socket in each appliance's namespace, on the appliances' own addresses.
fn sockets(pair: &TestPair) -> [UdpSocket; 2] {
    Side::BOTH.map(|side| {
        let address = pair.options.endpoint(side);
        let namespace = &pair.appliance(side).namespace;
        let socket = namespace.enter(|| UdpSocket::bind(address)).unwrap().unwrap();
        socket.set_read_timeout(Some(5 * SECOND)).unwrap();
        socket
    })
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2000];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..length].to_vec(), from)
}

#[test]
fn the_relay_translates_both_ways() {
    if !can_run() {
        return;
    }
    let pair = connected(PairOptions::default(), part_of_machine());
    let relay = Relay::new(&pair, 3);
    let [east, west] = sockets(&pair);
    for port_offset in [0, 1000, 60_000] {
        relay.translate_east(port_offset);
        east.send_to(b"hello", pair.options.endpoint(Side::West)).unwrap();
        let (text, from) = receive(&west);
        let port = PairOptions::PORT.wrapping_add(port_offset);
        assert_eq!((&text[..], from), (&b"hello"[..], (Relay::NAT_ADDRESS, port).into()));
        west.send_to(b"back", from).unwrap();
        assert_eq!(receive(&east), (b"back".to_vec(), pair.options.endpoint(Side::West)));
    }
    assert_eq!(relay.tally(Side::East).translated, 3);
    assert_eq!(relay.tally(Side::West).translated, 3);
}

#[test]
fn the_relay_corrupts_records_and_replays() {
    if !can_run() {
        return;
    }
    for underlay in [Underlay::V4, Underlay::V6] {
        let pair = connected(PairOptions { underlay, ..PairOptions::default() }, part_of_machine());
        let relay = Relay::new(&pair, 4);
        let [east, west] = sockets(&pair);
        let target = pair.options.endpoint(Side::West);
        relay.impair(Side::East, Impairment { corruption: 1.0, ..Impairment::default() });
        let sent = [0_u8; 100];
        east.send_to(&sent, target).unwrap();
        let (corrupted, _) = receive(&west);
        let flipped: u32 = corrupted.iter().map(|byte| byte.count_ones()).sum();
        assert_eq!((corrupted.len(), flipped), (100, 1));
        let recorded = relay.recorded(Side::East);
        let packet = recorded.iter().find(|packet| packet.ends_with(&sent)).unwrap();
        relay.inject(packet.clone());
        assert_eq!(receive(&west).0, sent);
    }
}

#[test]
fn nftables_cut_one_direction() {
    if !can_run() {
        return;
    }
    let pair = vxlan_pair(options());
    let (east, target) = (&pair.host(Side::East).namespace, pair.host(Side::West).v4.into());
    let loss = nft::Loss::new(&pair, Side::West, 1000);
    assert!(ping(east, target, 3).is_err());
    drop(loss);
    assert_eq!(ping(east, target, 10).unwrap().received, 10);
}

#[test]
fn the_tour_notices_plaintext_and_nothing_else() {
    if !can_run() {
        return;
    }
    let _share = part_of_machine();
    let report = tour_of(
        PairOptions {
            carrier: Carrier::KernelVxlan,
            underlay_offload: Offload::RealPackets,
            underlay_mtu: 1600,
            ..PairOptions::default()
        },
        true,
    )
    .unwrap();
    let failed: Vec<_> = report.steps.iter().filter(|step| !step.ok).collect();
    assert!(!report.ok);
    assert_eq!(report.steps.len(), 8, "{:#?}", report.steps);
    assert_eq!(failed.len(), 1, "{failed:#?}");
    assert!(failed[0].figures["datagrams_with_known_text"] > 0.0, "{failed:#?}");
}

#[test]
fn the_path_mtu_is_enforced_with_and_without_icmp() {
    if !can_run() {
        return;
    }
    for underlay in [Underlay::V4, Underlay::V6] {
        let pair = connected(PairOptions { underlay, ..PairOptions::default() }, part_of_machine());
        let target = pair.options.endpoint(Side::West).ip().to_string();
        let ping = |size: &str| {
            let argv = ["ping", "-n", "-c", "1", "-W", "0.3", "-M", "do", "-s", size, &target];
            let output = pair.appliance(Side::East).namespace.exec(&argv).unwrap();
            (output.status.success(), output.stdout + &output.stderr)
        };
        assert!(ping("1400").0);
        set_path_mtu(&pair, 1300);
        {
            let _silence = nft::NoIcmp::new(&pair);
            let (answered, text) = ping("1400");
            assert!(!answered && !text.contains("mtu"), "{text}");
        }
        let (answered, text) = ping("1400");
        assert!(!answered && text.contains("1300"), "{text}");
        assert!(ping("1000").0);
    }
}

#[test]
fn nothing_is_left_behind() {
    if !can_run() {
        return;
    }
    let run = Run::new("test").unwrap();
    let directory = run.directory().to_owned();
    let namespace = Namespace::new(&run, "left").unwrap();
    let name = namespace.full_name().to_owned();
    let mut process = namespace.spawn(&["sh", "-c", "echo up; sleep 600 & wait"]).unwrap();
    wait_until("the shell to start", 5 * SECOND, || {
        if process.stdout() == "up\n" { Ok(()) } else { Err(process.stderr()) }
    })
    .unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _run = run;
        let _namespace = namespace;
        std::panic::resume_unwind(Box::new("a failing test"));
    }));
    assert!(panicked.is_err());
    assert!(!process.is_running());
    assert!(!directory.exists());
    assert!(!std::path::Path::new("/run/netns").join(name).exists());
}
