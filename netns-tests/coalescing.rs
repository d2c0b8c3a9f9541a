//! Frames of a flow are merged before they are put onto the LAN, and arrive as if
//! they were not: each byte, each checksum, each flow's order.
//!
//! ```text
//!   host-e ── br-100 or lan0 ── east-1 ════ router ════ west-1 ── br-100 or lan0 ── host-w
//!    probe                                                    cuts and sums           probe
//! ```
//!
//! The port to each host may leave nothing to the other end, so a host hears what
//! would be on a wire.

use crate::harness::{
    TestPair,
    ask::{counter, wait_for_counter},
    can_run,
    frames::Seeded,
    landbridge_pair,
    probe::Probe,
};
use etherparse::{PacketBuilder, TcpHeader};
use landbridge::{
    lab::{AttachmentKind, PairOptions, Side},
    offload::checksum,
};
use std::{net::UdpSocket, time::Duration};

const PATIENCE: Duration = Duration::from_secs(5);
/// Windows of frames; all of one arrive before the next is sent.
const WINDOWS: u16 = 20;
/// Frames of each flow in a window.
const FRAMES: u16 = 40;
/// Consecutive frames of one flow.
const RUN: u16 = 8;
/// Every so many-th frame has a wrong checksum.
const DAMAGED: u16 = 37;

fn pair_of(kind: AttachmentKind) -> TestPair {
    let options = PairOptions { attachments: [kind; 2], lanes: Some(1), ..PairOptions::default() };
    let pair = landbridge_pair(options);
    let port = if kind == AttachmentKind::Nic { "lan0" } else { "port0-0" };
    for side in [Side::East, Side::West] {
        let namespace = &pair.appliance(side).namespace;
        let argv = ["ethtool", "-K", port, "tx", "off", "tso", "off", "gso", "off"];
        namespace.exec(&argv).unwrap().success().unwrap();
    }
    pair
}

/// Kinds of flows: UDP and TCP, over IPv4 and IPv6, small, tagged and of full length.
const FLOWS: u16 = 5;

/// Frame `number` of a flow, to a host that has none of these addresses.
fn frame_of(flow: u16, number: u16, from: &Probe, to: &Probe, seeded: &mut Seeded) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(from.mac, to.mac);
    let v4 = |mut header: etherparse::Ipv4Header| {
        header.identification = number;
        header
    };
    let (source, destination) = ([192, 0, 2, 1], [192, 0, 2, 2]);
    let length = [18, 100, 1200, 1440, 18][usize::from(flow)];
    let payload = seeded.bytes(length);
    let mut frame = Vec::new();
    let ports = (40_000 + flow, 9);
    let ip = match flow {
        1 | 3 => builder.ipv6([0xfd; 16], [0xfc; 16], 64),
        _ => {
            let header = etherparse::Ipv4Header {
                source,
                destination,
                time_to_live: 64,
                dont_fragment: flow == 0,
                ..etherparse::Ipv4Header::default()
            };
            builder.ip(etherparse::IpHeaders::Ipv4(v4(header), Default::default()))
        }
    };
    if matches!(flow, 2 | 3) {
        let sequence = u32::from(number) * length as u32;
        let mut tcp = TcpHeader::new(ports.0, ports.1, sequence, 1000);
        (tcp.ack, tcp.acknowledgment_number) = (true, 7);
        ip.tcp_header(tcp).write(&mut frame, &payload).unwrap();
    } else {
        ip.udp(ports.0, ports.1).write(&mut frame, &payload).unwrap();
    }
    if flow == 4 {
        frame.splice(12..12, [0x81, 0, 0x20, 100]);
    }
    frame
}

/// The flow of a frame made here.
fn flow_of(frame: &[u8]) -> Option<u16> {
    let headers = landbridge::offload::headers::Headers::parse(frame).ok()?;
    let port = frame.get(headers.l4_offset..)?.first_chunk()?;
    u16::from_be_bytes(*port).checked_sub(40_000).filter(|flow| *flow < FLOWS)
}

fn of_flow(frames: &[Vec<u8>], flow: u16) -> Vec<&Vec<u8>> {
    frames.iter().filter(|frame| flow_of(frame) == Some(flow)).collect()
}

#[test]
fn a_flood_arrives_as_it_was_sent() {
    for kind in [AttachmentKind::Bridge, AttachmentKind::Nic] {
        if !can_run() {
            return;
        }
        let pair = pair_of(kind);
        let (east, west) = (Probe::on(pair.host(Side::East)), Probe::on(pair.host(Side::West)));
        let mut seeded = Seeded::new(3);
        let mut damaged = 0;
        for window in 0..WINDOWS {
            let mut sent = Vec::new();
            for run in 0..FRAMES / RUN {
                for flow in 0..FLOWS {
                    let first = window * FRAMES + run * RUN;
                    for number in first..first + RUN {
                        let mut frame = frame_of(flow, number, &east, &west, &mut seeded);
                        if (number + flow) % DAMAGED == 0 {
                            *frame.last_mut().expect("a payload") ^= 0x40;
                        }
                        sent.push(frame);
                    }
                }
            }
            sent.iter().for_each(|frame| east.send(frame));
            let arrived = west.receive(sent.len(), PATIENCE, |frame| flow_of(frame).is_some());
            for flow in 0..FLOWS {
                let (sent, arrived) = (of_flow(&sent, flow), of_flow(&arrived, flow));
                let place = sent.iter().zip(&arrived).position(|(sent, arrived)| sent != arrived);
                assert!(
                    sent == arrived,
                    "{kind:?}, window {window}, flow {flow}: {} sent, {} arrived, the first other one is {place:?}",
                    sent.len(),
                    arrived.len()
                );
            }
            damaged += arrived.iter().filter(|frame| !checksum::verify(frame)).count();
        }
        let frames = u64::from(WINDOWS * FRAMES * FLOWS);
        let merged = counter(&pair, Side::West, "lan_merged").unwrap();
        println!("{kind:?}: {merged} of {frames} frames were merged, {damaged} were damaged");
        assert!(damaged > 0, "damage arrives as damage");
        assert!(merged >= frames / 10, "{merged} of {frames} frames were merged");
    }
}

/// What a host's own kernel sends has checksums that are still to be finished.
#[test]
fn datagrams_of_a_socket_arrive_in_order() {
    const DATAGRAMS: u64 = 200;
    for kind in [AttachmentKind::Bridge, AttachmentKind::Nic] {
        if !can_run() {
            return;
        }
        let pair = pair_of(kind);
        let open = |side| {
            let host = pair.host(side);
            host.namespace.enter(|| UdpSocket::bind((host.v4, 0))).unwrap().unwrap()
        };
        let (east, west) = (open(Side::East), open(Side::West));
        west.set_read_timeout(Some(PATIENCE)).unwrap();
        east.connect(west.local_addr().unwrap()).unwrap();
        for window in 0..u64::from(WINDOWS) {
            for number in 0..DATAGRAMS {
                east.send(&(window * DATAGRAMS + number).to_be_bytes()).unwrap();
            }
            for number in 0..DATAGRAMS {
                let mut datagram = [0; 16];
                let length = west.recv(&mut datagram).unwrap();
                let expected = (window * DATAGRAMS + number).to_be_bytes();
                assert_eq!(datagram[..length], expected, "{kind:?}");
            }
        }
        wait_for_counter(&pair, Side::West, "lan_merged", DATAGRAMS);
    }
}

#[test]
fn a_plain_tap_gets_single_frames() {
    if !can_run() {
        return;
    }
    let plain = ["", ", offload = false"].map(str::to_owned);
    let pair =
        landbridge_pair(PairOptions { extra_attachment_fields: plain, ..PairOptions::default() });
    let (east, west) = (Probe::on(pair.host(Side::East)), Probe::on(pair.host(Side::West)));
    let mut seeded = Seeded::new(4);
    let sent: Vec<_> =
        (0..FRAMES).map(|number| frame_of(0, number, &east, &west, &mut seeded)).collect();
    sent.iter().for_each(|frame| east.send(frame));
    let arrived = west.receive(sent.len(), PATIENCE, |frame| flow_of(frame).is_some());
    assert!(sent == arrived, "{} sent, {} arrived", sent.len(), arrived.len());
    assert_eq!(counter(&pair, Side::West, "lan_merged"), Ok(0));
}
