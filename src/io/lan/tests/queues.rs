//! What goes through a queue is what the other side of the kernel sent or gets.

use std::{
    net::UdpSocket,
    os::fd::{AsFd, AsRawFd},
    sync::{Arc, atomic::AtomicU32},
    time::{Duration, Instant},
};

use etherparse::PacketBuilder;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{address_host, in_namespace, index_of, ip, veth_pair};
use crate::{
    io::lan::{
        FRAME_BUFFER_LENGTH, LanQueue, PacketQueue, PlainTap, ReceiveError, ReceiveOffload,
        TapError, TapQueue, TransmitError,
    },
    offload::{Offload, Segmentation, checksum, headers::Headers},
    wire::ethernet::VlanTag,
};

const SEGMENT_SIZE: u16 = 1000;
const HEADERS: usize = 14 + 20 + 8;
const PATIENCE: Duration = Duration::from_secs(5);

/// A frame out of its buffer.
#[derive(Clone, PartialEq, Debug)]
struct Captured {
    vlan: Option<VlanTag>,
    offload: Offload,
    frame: Vec<u8>,
}

fn wait_readable(fd: impl AsFd, patience: Duration) {
    let timeout = Timespec::try_from(patience).expect("a short time");
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&timeout)).expect("poll");
}

/// The next frame for or from 10.9.0.2, or `None` after `patience`.
fn capture(queue: &mut LanQueue, patience: Duration) -> Option<Captured> {
    let mut buffer = vec![0; FRAME_BUFFER_LENGTH];
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        match queue.receive(&mut buffer).expect("a frame") {
            Some(received) if received.frame()[12..14] == [8, 0] => {
                let frame = received.frame().to_vec();
                return Some(Captured { vlan: received.vlan, offload: received.offload, frame });
            }
            Some(_) => {}
            None => wait_readable(&*queue, Duration::from_millis(50)),
        }
    }
    None
}

/// Transmits one frame and ends the burst; returns the error of either.
fn put(
    queue: &mut LanQueue,
    vlan: Option<VlanTag>,
    offload: &Offload,
    frame: &[u8],
) -> Result<(), TransmitError> {
    let mut outcome = queue.transmit(vlan, offload, frame);
    queue.flush(|error, frames| {
        assert_eq!((outcome, frames), (Ok(()), 1));
        outcome = Err(error);
    });
    outcome
}

fn host_socket() -> UdpSocket {
    let socket = UdpSocket::bind("10.9.0.1:7000").expect("bind");
    socket.connect("10.9.0.2:7000").expect("connect");
    socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    socket
}

/// Sends `payload` as one UDP superframe.
fn send_superframe(socket: &UdpSocket, payload: &[u8]) {
    let size = libc::c_int::from(SEGMENT_SIZE);
    // SAFETY: UDP_SEGMENT takes an int.
    let outcome = unsafe {
        let (value, length) = ((&raw const size).cast(), size_of_val(&size) as libc::socklen_t);
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, value, length)
    };
    assert_eq!(outcome, 0);
    socket.send(payload).expect("send");
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}

/// The same frame from the neighbour to the host; no sum changes by that.
fn turn_round(frame: &[u8]) -> Vec<u8> {
    let mut turned = frame.to_vec();
    turned[..6].copy_from_slice(&frame[6..12]);
    turned[6..12].copy_from_slice(&frame[..6]);
    turned[26..30].copy_from_slice(&frame[30..34]);
    turned[30..34].copy_from_slice(&frame[26..30]);
    turned
}

/// Packets that the kernel counts as received on an interface.
fn received_packets(interface: &str) -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").expect("/proc");
    let line = table.lines().find_map(|line| line.trim().strip_prefix(&format!("{interface}:")));
    let count = line.and_then(|line| line.split_whitespace().nth(1)).expect("the interface");
    count.parse().expect("a number")
}

fn receive_all(socket: &UdpSocket, length: usize) -> Vec<u8> {
    let mut all = Vec::new();
    let mut datagram = [0; 65_536];
    while all.len() < length {
        let size = socket.recv(&mut datagram).expect("a datagram");
        assert!(size <= usize::from(SEGMENT_SIZE));
        all.extend_from_slice(&datagram[..size]);
    }
    all
}

/// Captures what the host sends as a superframe, turns it round and checks
/// that the host gets the same bytes. Returns what was captured.
fn there_and_back(queue: &mut LanQueue, socket: &UdpSocket, payload: &[u8]) -> Vec<Captured> {
    send_superframe(socket, payload);
    let mut captured = Vec::new();
    let mut length = 0;
    while length < payload.len() {
        let frame = capture(queue, PATIENCE).expect("the host's frame");
        length += frame.frame.len() - HEADERS;
        captured.push(frame);
    }
    for Captured { vlan, offload, frame } in &captured {
        put(queue, *vlan, offload, &turn_round(frame)).expect("transmit");
    }
    assert_eq!(receive_all(socket, payload.len()), payload);
    captured
}

const SUPERFRAME: Offload = Offload {
    segmentation: Segmentation::Udp4,
    ecn: false,
    segment_size: SEGMENT_SIZE,
    needs_checksum: true,
};

/// A UDP superframe from the neighbour to the host.
fn superframe(payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])
        .ipv4([10, 9, 0, 2], [10, 9, 0, 1], 64)
        .udp(7000, 7000);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).expect("a frame");
    let sum = checksum::pseudo_header(&frame, &Headers::parse(&frame).expect("headers"));
    frame[40..42].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn is_whole(captured: &[Captured], payload: &[u8]) -> bool {
    let [Captured { offload, frame, .. }] = captured else { return false };
    *offload == SUPERFRAME && frame.len() == HEADERS + payload.len()
}

fn open_tap(steps: &[ReceiveOffload]) -> LanQueue {
    let mut queues = TapQueue::open_with("tap", 1, steps).expect("a TAP");
    ip("link set tap address 02:00:00:00:00:01");
    address_host("tap");
    LanQueue::Tap(queues.remove(0))
}

fn open_packet(interface: &str, count: usize) -> Vec<LanQueue> {
    let mtu = Arc::new(AtomicU32::new(1500));
    let queues = PacketQueue::open(index_of(interface), count, &mtu).expect("sockets");
    queues.into_iter().map(LanQueue::Packet).collect()
}

#[test]
fn a_tap_brings_and_takes_superframes() {
    in_namespace(|| {
        let payload = pattern(62_500);
        let mut tap = open_tap(&ReceiveOffload::ALL);
        let captured = there_and_back(&mut tap, &host_socket(), &payload);
        let LanQueue::Tap(queue) = &tap else { unreachable!() };
        let grants_udp = queue.receive_offload() == ReceiveOffload::TcpUdp;
        assert_eq!(is_whole(&captured, &payload), grants_udp);
    });
}

#[test]
fn a_tap_with_fewer_offloads_brings_frames_and_cuts_superframes() {
    for &step in &ReceiveOffload::ALL[1..] {
        in_namespace(move || {
            let payload = pattern(4500);
            let mut tap = open_tap(&[step]);
            let socket = host_socket();
            let captured = there_and_back(&mut tap, &socket, &payload);
            assert_eq!(captured.len(), 5);
            let is_unfinished = |c: &Captured| c.offload.needs_checksum;
            assert_eq!(captured.iter().all(is_unfinished), step != ReceiveOffload::None);

            let before = received_packets("tap");
            put(&mut tap, None, &SUPERFRAME, &superframe(&payload)).expect("cut in software");
            assert_eq!(receive_all(&socket, payload.len()), payload);
            assert_eq!(received_packets("tap") - before, 5);
        });
    }
}

#[test]
fn a_plain_tap_brings_finished_frames_and_cuts_superframes() {
    in_namespace(|| {
        let payload = pattern(4500);
        let mut tap = LanQueue::Plain(PlainTap::open("tap").expect("a TAP"));
        ip("link set tap address 02:00:00:00:00:01");
        address_host("tap");
        let socket = host_socket();
        let captured = there_and_back(&mut tap, &socket, &payload);
        assert_eq!(captured.len(), 5);
        assert!(captured.iter().all(|c| c.offload == Offload::NONE));

        put(&mut tap, None, &SUPERFRAME, &superframe(&payload)).expect("cut in software");
        assert_eq!(receive_all(&socket, payload.len()), payload);
    });
}

#[test]
fn a_nic_brings_and_takes_superframes_and_never_its_own_frames() {
    in_namespace(|| {
        let payload = pattern(62_500);
        veth_pair();
        let mut nic = open_packet("nic", 1).remove(0);
        let socket = host_socket();
        let captured = there_and_back(&mut nic, &socket, &payload);
        assert!(is_whole(&captured, &payload), "{:?}", captured[0].offload);
        // Its own frames, and those of whoever else sends on this NIC.
        let mut other = open_packet("nic", 1).remove(0);
        put(&mut other, None, &SUPERFRAME, &superframe(&payload)).expect("transmit");
        assert_eq!(capture(&mut nic, Duration::from_millis(200)), None, "an outgoing frame came");
    });
}

#[test]
fn a_tag_comes_out_of_band_and_goes_inline() {
    in_namespace(|| {
        let payload = pattern(4500);
        veth_pair();
        let mut host = open_packet("host", 1).remove(0);
        let mut nic = open_packet("nic", 1).remove(0);
        let tag = Some(VlanTag { tpid: VlanTag::CUSTOMER, tci: 0xa064 });
        put(&mut nic, tag, &SUPERFRAME, &superframe(&payload)).expect("transmit");

        let mut bytes = Vec::new();
        while bytes.len() < payload.len() {
            let captured = capture(&mut host, PATIENCE).expect("a tagged frame");
            assert_eq!(captured.vlan, tag);
            assert_eq!(captured.frame[12..14], [8, 0]);
            bytes.extend_from_slice(&captured.frame[HEADERS..]);
        }
        assert_eq!(bytes, payload);
    });
}

#[test]
fn the_outer_of_two_tags_comes_out_of_band_and_goes_back_inline() {
    in_namespace(|| {
        veth_pair();
        let mut host = open_packet("host", 1).remove(0);
        let mut nic = open_packet("nic", 1).remove(0);
        let outer = VlanTag { tpid: VlanTag::SERVICE, tci: 100 };
        let mut frame = vec![0xff; 12];
        frame.extend_from_slice(&[0x81, 0x00, 0x00, 0xc8, 0x88, 0xb5]);
        frame.extend_from_slice(&pattern(60));
        put(&mut nic, Some(outer), &Offload::NONE, &frame).expect("transmit");

        wait_readable(&host, PATIENCE);
        let mut buffer = vec![0; FRAME_BUFFER_LENGTH];
        let mut received = host.receive(&mut buffer).expect("a frame").expect("a frame");
        assert_eq!((received.vlan, received.frame()), (Some(outer), &frame[..]));
        received.inline_vlan();
        assert_eq!(received.vlan, None);
        assert_eq!(received.frame()[..12], frame[..12]);
        assert_eq!(received.frame()[12..16], [0x88, 0xa8, 0, 100]);
        assert_eq!(received.frame()[16..], frame[12..]);
    });
}

#[test]
fn frames_of_every_length_cross_unchanged() {
    in_namespace(|| {
        veth_pair();
        ip("link set host mtu 9216");
        ip("link set nic mtu 9216");
        let mut host = open_packet("host", 1).remove(0);
        let mut nic = open_packet("nic", 1).remove(0);
        let mut buffer = vec![0; FRAME_BUFFER_LENGTH];
        for length in [14, 15, 59, 60, 64, 1514, 9216 + 14] {
            let mut frame = vec![0xff; 12];
            frame.extend_from_slice(&[0x88, 0xb5]);
            frame.extend_from_slice(&pattern(length - 14));
            put(&mut nic, None, &Offload::NONE, &frame).expect("transmit");
            wait_readable(&host, PATIENCE);
            let received = host.receive(&mut buffer).expect("a frame").expect("a frame");
            assert_eq!(received.frame(), frame);
        }
        let frame = vec![0xff; 9216 + 15];
        let refused = put(&mut nic, None, &Offload::NONE, &frame);
        assert_eq!(refused, Err(TransmitError::TooBig { length: frame.len() }));
        let refused = put(&mut nic, None, &Offload::NONE, &frame[..13]);
        assert_eq!(refused, Err(TransmitError::TooShort { length: 13 }));
    });
}

#[test]
fn a_superframe_whose_segments_exceed_the_mtu_is_refused() {
    in_namespace(|| {
        veth_pair();
        let mut nic = open_packet("nic", 1).remove(0);
        let frame = superframe(&pattern(4500));
        let fitting = Offload { segment_size: 1500 - 28, ..SUPERFRAME };
        assert_eq!(put(&mut nic, None, &fitting, &frame), Ok(()));
        let too_big = Offload { segment_size: 1500 - 27, ..SUPERFRAME };
        let refused = Err(TransmitError::TooBig { length: 1501 });
        assert_eq!(put(&mut nic, None, &too_big, &frame), refused);
        let tag = Some(VlanTag { tpid: VlanTag::CUSTOMER, tci: 5 });
        assert_eq!(put(&mut nic, tag, &fitting, &frame), Ok(()));
        assert_eq!(put(&mut nic, tag, &too_big, &frame), refused);
    });
}

#[test]
fn both_directions_of_a_flow_come_to_one_of_several_sockets() {
    in_namespace(|| {
        veth_pair();
        let mut host = open_packet("host", 1).remove(0);
        let mut queues = open_packet("nic", 3);
        let builder = |hosts: [u8; 2], ports: [u16; 2]| {
            let mut frame = Vec::new();
            PacketBuilder::ethernet2([2, 0, 0, 0, 0, hosts[0]], [2, 0, 0, 0, 0, hosts[1]])
                .ipv4([10, 9, 0, hosts[0]], [10, 9, 0, hosts[1]], 64)
                .udp(ports[0], ports[1])
                .write(&mut frame, &[])
                .expect("a frame");
            frame
        };
        let there = (1..=91).map(|port| builder([1, 2], [port, 999]));
        let back = (1..=91).map(|port| builder([2, 1], [999, port]));
        for frame in there.chain(back) {
            put(&mut host, None, &Offload::NONE, &frame).expect("transmit");
        }
        let mut flows = Vec::new();
        let mut busy = 0;
        for queue in &mut queues {
            let mut ports = Vec::new();
            while let Some(captured) = capture(queue, Duration::from_millis(200)) {
                let port = |at| u16::from_be_bytes([captured.frame[at], captured.frame[at + 1]]);
                ports.push(port(34).min(port(36)));
            }
            let (first, second) = ports.split_at(ports.len() / 2);
            assert_eq!(first, second, "a flow was split");
            busy += usize::from(!first.is_empty());
            flows.extend_from_slice(first);
        }
        flows.sort_unstable();
        assert_eq!(flows, (1..=91).collect::<Vec<_>>());
        assert!(busy > 1, "all flows came to one socket");
    });
}

/// Without the program, the kernel moves a flow to the queue that answers it.
#[test]
fn a_flow_stays_on_its_tap_queue_whichever_queue_answers() {
    const FLOWS: u16 = 64;
    in_namespace(|| {
        let mut queues: Vec<_> =
            TapQueue::open("tap", 4).expect("a TAP").into_iter().map(LanQueue::Tap).collect();
        ip("link set tap address 02:00:00:00:00:01");
        address_host("tap");
        let sockets: Vec<_> = (0..FLOWS)
            .map(|flow| {
                let socket = UdpSocket::bind(("10.9.0.1", 7000 + flow)).expect("bind");
                socket.connect("10.9.0.2:9").expect("connect");
                socket
            })
            .collect();
        let mut places = [usize::MAX; FLOWS as usize];
        for round in 0..3 {
            for socket in &sockets {
                socket.send(&[0; 100]).expect("send");
            }
            let mut frames = Vec::new();
            for (place, queue) in queues.iter_mut().enumerate() {
                while let Some(captured) = capture(queue, Duration::from_millis(50)) {
                    let port = u16::from_be_bytes([captured.frame[34], captured.frame[35]]);
                    let known = &mut places[usize::from(port - 7000)];
                    assert!(round == 0 || *known == place, "flow {port} moved: {known}, {place}");
                    *known = place;
                    frames.push((place, captured));
                }
            }
            assert_eq!(frames.len(), usize::from(FLOWS));
            for (place, Captured { offload, frame, .. }) in frames {
                let mut answer = turn_round(&frame);
                answer[34..36].copy_from_slice(&frame[36..38]);
                answer[36..38].copy_from_slice(&frame[34..36]);
                let other = (place + 1 + round) % queues.len();
                queues[other].transmit(None, &offload, &answer).expect("transmit");
            }
        }
        assert!((0..4).all(|place| places.contains(&place)), "{places:?}");
    });
}

#[test]
fn queues_say_what_became_of_their_interface() {
    in_namespace(|| {
        let mut buffer = vec![0; FRAME_BUFFER_LENGTH];
        let frame = [0xff; 60];
        let mut tap = open_tap(&ReceiveOffload::ALL);
        ip("link set tap down");
        assert_eq!(put(&mut tap, None, &Offload::NONE, &frame), Err(TransmitError::Down));
        ip("link del tap");
        assert_eq!(put(&mut tap, None, &Offload::NONE, &frame), Err(TransmitError::Gone));
        assert_eq!(tap.receive(&mut buffer).expect_err("gone"), ReceiveError::Gone);

        veth_pair();
        let mut nic = open_packet("nic", 1).remove(0);
        ip("link set nic down");
        assert_eq!(nic.receive(&mut buffer).expect_err("down"), ReceiveError::Down);
        assert_eq!(put(&mut nic, None, &Offload::NONE, &frame), Err(TransmitError::Down));
        ip("link set nic up");
        there_and_back(&mut nic, &host_socket(), &pattern(4500));
        ip("link del nic");
        assert_eq!(put(&mut nic, None, &Offload::NONE, &frame), Err(TransmitError::Gone));
    });
}

#[test]
fn a_tap_that_exists_is_not_joined() {
    in_namespace(|| {
        let first = TapQueue::open("tap", 2).expect("a TAP");
        assert_eq!(first.len(), 2);
        let second = TapQueue::open("tap", 2).expect_err("its name is taken");
        assert!(matches!(second, TapError::NameTaken { .. }), "{second}");
        drop(first);
        // A program that another test starts holds this process's descriptors until its exec.
        let deadline = Instant::now() + PATIENCE;
        loop {
            match TapQueue::open("tap", 1) {
                Err(TapError::NameTaken { .. }) if Instant::now() < deadline => {
                    std::thread::yield_now();
                }
                opened => break drop(opened.expect("the device went with its queues")),
            }
        }
    });
}
