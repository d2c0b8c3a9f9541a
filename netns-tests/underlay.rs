//! What the underlay sees and does.
//!
//! ```text
//!   host-e ── br-100 ── east-1 ══ router ══ west-1 ── br-100 ── host-w
//!                               relay, tcpdump
//! ```

use crate::harness::{
    ask::wait_for_counter,
    can_run,
    frames::{EXPERIMENTAL, frame},
    landbridge_pair, nft,
    probe::Probe,
    relay::{Impairment, Relay},
};
use landbridge::lab::{
    Capture, MARKER, Offload, Pair, PairOptions, Side, Underlay, ping, transfer, wait_until,
};
use std::{fs, time::Duration};

const SECOND: Duration = Duration::from_secs(1);

fn transfer_east_to_west(pair: &Pair, duration: Duration) -> f64 {
    let (east, west) = (pair.host(Side::East), pair.host(Side::West));
    let transfer = transfer(&east.namespace, &west.namespace, west.v4.into(), duration).unwrap();
    assert!(transfer.bytes > 100_000, "only {} bytes crossed", transfer.bytes);
    transfer.bits_per_second()
}

#[test]
fn only_ciphertext_crosses() {
    for underlay in [Underlay::V4, Underlay::V6] {
        if !can_run() {
            return;
        }
        let pair = landbridge_pair(PairOptions { underlay, ..PairOptions::default() });
        let capture = Capture::start(&pair.router, &["east", "west"], MARKER).unwrap();
        transfer_east_to_west(&pair, SECOND / 5);
        let seen = capture.finish().unwrap();
        assert!(seen.datagrams() > 100, "{seen:?}");
        assert_eq!(seen.with_text, 0, "{seen:?}");
        for (_, to) in seen.udp_flows.keys() {
            assert!(Side::BOTH.iter().any(|side| pair.options.endpoint(*side).ip() == to.ip()));
        }
    }
}

#[test]
fn traffic_crosses_whatever_the_underlay_leaves_to_others() {
    for underlay_offload in [Offload::Default, Offload::RealPackets, Offload::None] {
        for underlay in [Underlay::V4, Underlay::V6] {
            if !can_run() {
                return;
            }
            let options = PairOptions { underlay, underlay_offload, ..PairOptions::default() };
            transfer_east_to_west(&landbridge_pair(options), SECOND / 5);
        }
    }
}

#[test]
fn tcpdump_sees_udp_between_the_appliances_and_nothing_else() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions::default());
    let file = pair.run.directory().join("underlay.pcap");
    let path = file.to_string_lossy();
    let argv =
        ["tcpdump", "-Z", "root", "-U", "--immediate-mode", "-ni", "east", "-w", &path, "ip"];
    let mut tcpdump = pair.router.spawn(&argv).unwrap();
    wait_until("tcpdump to listen", 5 * SECOND, || {
        let said = tcpdump.stderr();
        if said.contains("listening on") { Ok(()) } else { Err(said) }
    })
    .unwrap();
    let (east, west) = (pair.host(Side::East), pair.host(Side::West));
    let pattern = "4c616e646272696467652d70696e6721"; // "Landbridge-ping!"
    let target = west.v4.to_string();
    let argv = ["ping", "-n", "-c", "20", "-i", "0.01", "-s", "1000", "-p", pattern, &target];
    east.namespace.exec(&argv).unwrap().success().unwrap();
    let bytes = wait_until("tcpdump to write 20 pings and answers", 5 * SECOND, || {
        let bytes = fs::read(&file).unwrap_or_default();
        if bytes.len() > 20 * 2 * 1000 { Ok(bytes) } else { Err(format!("{} bytes", bytes.len())) }
    })
    .unwrap();
    tcpdump.terminate();
    assert!(!bytes.windows(16).any(|window| window == b"Landbridge-ping!"));
    let others = ["tcpdump", "-nr", &path, "not udp"];
    let output = pair.router.exec(&others).unwrap().success().unwrap();
    assert_eq!(output.stdout, "");
}

#[test]
fn traffic_survives_delay_loss_reordering_and_duplicates() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions::default());
    let relay = Relay::new(&pair, 7);
    relay.impair_both(Impairment {
        delay: Duration::from_millis(2),
        jitter: Duration::from_micros(300),
        loss: 0.002,
        duplicates: 0.01,
        reordering: 0.01,
        corruption: 0.002,
    });
    transfer_east_to_west(&pair, 3 * SECOND);
    let tally = relay.tally(Side::East);
    let [lost, twice, late, wrong] =
        [tally.lost, tally.duplicated, tally.reordered, tally.corrupted];
    assert!(lost > 0 && twice > 0 && late > 0 && wrong > 0, "{tally:?}");
}

#[test]
fn a_one_way_cut_heals() {
    if !can_run() {
        return;
    }
    let mut pair = landbridge_pair(PairOptions::default());
    for side in Side::BOTH {
        {
            let relay = Relay::new(&pair, 8);
            relay.cut(side);
            let target = pair.host(Side::West).v4.into();
            assert!(ping(&pair.host(Side::East).namespace, target, 3).is_err());
        }
        pair.wait_for_tunnel().unwrap();
    }
}

#[test]
fn replayed_datagrams_change_nothing() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions::default());
    let relay = Relay::new(&pair, 10);
    let (east, west) = (Probe::on(pair.host(Side::East)), Probe::on(pair.host(Side::West)));
    let send = |number: u8| {
        let frame = frame(west.mac, east.mac, &[], EXPERIMENTAL, &[number; 100]);
        east.send(&frame);
        frame
    };
    let frames: Vec<_> = (0..20).map(send).collect();
    let is_one = |frame: &[u8]| frames.iter().any(|sent| sent == frame);
    assert_eq!(west.receive(frames.len(), 5 * SECOND, is_one).len(), frames.len());
    let recorded = relay.recorded(Side::East);
    // IPv4 and UDP header, then the type: up to 3 for handshakes.
    let transport = recorded.iter().filter(|packet| packet.get(28) > Some(&3)).count() as u64;
    assert!(transport > 0);
    for packet in recorded {
        relay.inject(packet);
    }
    let last = send(20);
    west.expect_none_before(5 * SECOND, is_one, |frame| frame == last);
    wait_for_counter(&pair, Side::West, "datagram_replayed", transport);
}

#[test]
fn tcp_survives_loss_by_nftables() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions::default());
    let _loss = nft::Loss::new(&pair, Side::East, 5);
    transfer_east_to_west(&pair, 2 * SECOND);
}
