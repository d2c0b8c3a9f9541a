//! What is a packet socket's own: its ring, its batches, and what it loses.
//!
//! ```text
//!  host (sends, or hears) ═ veth ═ nic ─ PacketQueue
//! ```

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, atomic::AtomicU32},
    time::{Duration, Instant},
};

use rustix::event::{Timespec, epoll};

use super::{in_namespace, index_of, ip, veth_pair};
use crate::{
    io::lan::{
        FRAME_BUFFER_LENGTH, LanQueue, PacketQueue, PacketStatistics, ReceiveError, TapQueue,
        TransmitError,
    },
    offload::{Offload, Segmentation},
};

const PATIENCE: Duration = Duration::from_secs(5);

fn open(interface: &str) -> (LanQueue, PacketStatistics) {
    let mtu = Arc::new(AtomicU32::new(1500));
    let queue = PacketQueue::open(index_of(interface), 1, &mtu).expect("a socket").remove(0);
    let statistics = queue.statistics().expect("statistics");
    (LanQueue::Packet(queue), statistics)
}

/// A broadcast frame of this length with a number in it.
fn numbered(number: u16, length: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 12];
    frame.extend_from_slice(&[0x88, 0xb5]);
    frame.extend_from_slice(&number.to_be_bytes());
    frame.resize(length, number as u8);
    frame
}

fn number_of(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[14], frame[15]])
}

/// A TCP superframe with a number in its sequence number and payload.
fn superframe(number: u8, payload: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])
        .ipv4([10, 9, 0, 2], [10, 9, 0, 1], 64)
        .tcp(7000, 7000, u32::from(number), 1000)
        .write(&mut frame, &vec![number; payload])
        .expect("a frame");
    frame
}

const TCP: Offload = Offload {
    segmentation: Segmentation::Tcp4,
    ecn: false,
    segment_size: 1000,
    needs_checksum: true,
};

/// All that waits in `queue`.
fn drain(queue: &mut LanQueue) -> Vec<Vec<u8>> {
    let mut buffer = vec![0; FRAME_BUFFER_LENGTH];
    let mut frames = Vec::new();
    while let Some(received) = queue.receive(&mut buffer).expect("no error") {
        frames.push(received.frame().to_vec());
    }
    frames
}

fn send(queue: &mut LanQueue, offload: &Offload, frame: &[u8]) {
    queue.transmit(None, offload, frame).expect("transmit");
}

fn no_errors(error: TransmitError, frames: u64) {
    panic!("{frames} frames: {error}");
}

#[test]
fn small_and_large_frames_keep_their_order_in_and_out() {
    in_namespace(|| {
        veth_pair();
        let (mut host, _) = open("host");
        let (mut nic, mut statistics) = open("nic");
        // 200 superframes of 10 KB, each behind up to 39 frames of different lengths.
        let mut sent = Vec::new();
        for i in 0..200_u8 {
            for j in 0..usize::from(i % 40) {
                sent.push((Offload::NONE, numbered(u16::from(i), 60 + 36 * j)));
            }
            sent.push((TCP, superframe(i, 10_000)));
        }
        let mut received = Vec::new();
        for (number, (offload, frame)) in sent.iter().enumerate() {
            send(&mut host, offload, frame);
            if number % 77 == 0 {
                received.extend(drain(&mut nic));
            }
        }
        host.flush(no_errors);
        received.extend(drain(&mut nic));
        let sent: Vec<_> = sent.into_iter().map(|(_, frame)| frame).collect();
        assert_eq!(received.len(), sent.len());
        for (number, (received, sent)) in received.iter().zip(&sent).enumerate() {
            // The checksum field holds the pseudo-header's sum, which the sender need not fill in.
            let same = received.len() == sent.len() && received[..50] == sent[..50];
            assert!(same && received[52..] == sent[52..], "frame {number} of {}", sent.len());
        }
        assert_eq!(statistics.drops(), 0);
    });
}

#[test]
fn a_ring_turns_over_many_times() {
    in_namespace(|| {
        veth_pair();
        let (mut host, _) = open("host");
        let (mut nic, mut statistics) = open("nic");
        let mut expected = 0;
        while expected < 30_000 {
            for number in expected..expected + 1000 {
                send(&mut host, &Offload::NONE, &numbered(number, 60));
            }
            host.flush(no_errors);
            for frame in drain(&mut nic) {
                assert_eq!(number_of(&frame), expected);
                expected += 1;
            }
            assert_eq!(expected % 1000, 0, "frames were lost");
        }
        assert_eq!(statistics.drops(), 0);
    });
}

#[test]
fn what_a_stalled_reader_loses_is_counted() {
    in_namespace(|| {
        veth_pair();
        let (mut host, _) = open("host");
        let (mut nic, mut statistics) = open("nic");
        assert_eq!(statistics.drops(), 0);
        for number in 0..5000 {
            send(&mut host, &Offload::NONE, &numbered(number, 60));
        }
        host.flush(no_errors);
        let received = drain(&mut nic);
        let drops = statistics.drops();
        assert!(received.len() >= 4000 && drops >= 500, "{} and {drops}", received.len());
        assert_eq!(received.len() as u64 + drops, 5000);
        assert_eq!(statistics.drops(), drops, "the count goes on from where it was");

        // Superframes without room on the socket: cut off, and counted by the reader.
        rustix::net::sockopt::set_socket_recv_buffer_size(&nic, 4096).expect("a small buffer");
        for number in 0..10 {
            send(&mut host, &TCP, &superframe(number, 10_000));
        }
        send(&mut host, &Offload::NONE, &numbered(7, 60));
        host.flush(no_errors);
        let received = drain(&mut nic);
        assert_eq!(received.last().map(|frame| number_of(frame)), Some(7));
        let lost = 11 - received.len() as u64;
        assert!(lost > 5, "{lost}");
        assert_eq!(statistics.drops(), drops + lost);
    });
}

/// The number of frames that were refused for `reason`; all others panic.
fn refused(queue: &mut LanQueue, reason: TransmitError) -> u64 {
    let mut count = 0;
    queue.flush(|error, frames| {
        assert_eq!(error, reason);
        count += frames;
    });
    count
}

#[test]
fn a_refused_frame_is_counted_and_stops_no_other() {
    in_namespace(|| {
        veth_pair();
        let (mut host, _) = open("host");
        let (mut nic, _) = open("nic");
        for number in 0..50 {
            let length = if number % 5 == 0 { 1514 + 5 } else { 60 };
            send(&mut host, &Offload::NONE, &numbered(number, length));
        }
        assert_eq!(refused(&mut host, TransmitError::TooBig { length: 1519 }), 10);
        let numbers: Vec<_> = drain(&mut nic).iter().map(|frame| number_of(frame)).collect();
        assert_eq!(numbers, (0..50).filter(|number| number % 5 != 0).collect::<Vec<_>>());
        assert_eq!(refused(&mut host, TransmitError::Full), 0, "told once");

        ip("link set host down");
        for number in 0..40 {
            send(&mut host, &Offload::NONE, &numbered(number, 60));
        }
        assert_eq!(refused(&mut host, TransmitError::Down), 40);
    });
}

/// Watches `queue` as a data thread does; returns what a turn needs.
fn watch(queue: &LanQueue) -> OwnedFd {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    let data = epoll::EventData::new_u64(1);
    epoll::add(&epoll, queue, data, epoll::EventFlags::IN).expect("watched");
    epoll
}

fn is_ready(epoll: impl AsFd, patience: Duration) -> bool {
    let mut events = Vec::with_capacity(4);
    let timeout = Timespec::try_from(patience).expect("a short time");
    let room = rustix::buffer::spare_capacity(&mut events);
    epoll::wait(epoll, room, Some(&timeout)).expect("epoll_wait") > 0
}

#[test]
fn a_queue_is_ready_exactly_while_frames_wait() {
    const NOW: Duration = Duration::ZERO;
    in_namespace(|| {
        veth_pair();
        let (mut host, _) = open("host");
        let (mut nic, _) = open("nic");
        let epoll = watch(&nic);
        let mut buffer = vec![0; FRAME_BUFFER_LENGTH];
        for offload in [Offload::NONE, TCP] {
            assert!(!is_ready(&epoll, NOW), "nothing has come");
            for number in 0..3 {
                let frame = match offload {
                    TCP => superframe(number, 10_000),
                    _ => numbered(number.into(), 60),
                };
                send(&mut host, &offload, &frame);
            }
            assert!(!is_ready(&epoll, NOW) || offload == TCP, "the burst has not ended");
            host.flush(no_errors);
            for _ in 0..3 {
                assert!(is_ready(&epoll, PATIENCE), "a frame waits");
                assert!(nic.receive(&mut buffer).expect("no error").is_some());
            }
            assert!(!is_ready(&epoll, NOW), "all were taken");
            assert!(nic.receive(&mut buffer).expect("no error").is_none());
        }

        send(&mut host, &Offload::NONE, &numbered(1, 60));
        host.flush(no_errors);
        ip("link set nic down");
        assert!(is_ready(&epoll, PATIENCE));
        assert!(nic.receive(&mut buffer).expect("the frame first").is_some());
        assert!(nic.receive(&mut buffer).expect("the ring is empty").is_none());
        assert!(is_ready(&epoll, PATIENCE), "the error waits");
        assert_eq!(nic.receive(&mut buffer).expect_err("down"), ReceiveError::Down);
        assert!(!is_ready(&epoll, NOW), "the error was taken");
        // The carrier comes back a little later.
        ip("link set nic up");
        let deadline = Instant::now() + PATIENCE;
        while !is_ready(&epoll, Duration::from_millis(20)) {
            assert!(Instant::now() < deadline, "frames come again");
            send(&mut host, &Offload::NONE, &numbered(2, 60));
            host.flush(|_, _| {});
        }
        assert!(nic.receive(&mut buffer).expect("no error").is_some());
    });
}

/// Writes a UFO superframe as a virtual machine would: of a kind that the
/// kernel takes, and cannot describe to a packet socket.
fn write_inexpressible(tap: &OwnedFd) {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [0xff; 6])
        .ipv4([10, 9, 0, 2], [10, 9, 0, 1], 64)
        .udp(7000, 7001)
        .write(&mut frame, &[0; 1400])
        .expect("a frame");
    // struct virtio_net_hdr: NEEDS_CSUM, VIRTIO_NET_HDR_GSO_UDP, hdr_len, gso_size, csum.
    let mut bytes = vec![1, 3];
    for word in [42_u16, 704, 34, 6] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(&frame);
    assert_eq!(rustix::io::write(tap, &bytes), Ok(bytes.len()));
}

#[test]
fn a_ring_that_stalls_is_given_up_and_frames_come_again() {
    in_namespace(|| {
        let tap = TapQueue::open("nic", 1).expect("a TAP").remove(0);
        ip("link set nic up");
        let tap_file = tap.as_fd().try_clone_to_owned().expect("a second handle");
        let mut tap = LanQueue::Tap(tap);
        let (mut nic, mut statistics) = open("nic");
        let epoll = watch(&nic);
        nic.check();
        send(&mut tap, &Offload::NONE, &numbered(1, 60));
        assert_eq!(drain(&mut nic).len(), 1);
        nic.check();
        write_inexpressible(&tap_file);
        assert_eq!(drain(&mut nic), Vec::<Vec<u8>>::new());
        // What a kernel without this fault would bring anyway.
        send(&mut tap, &Offload::NONE, &numbered(2, 60));
        let before_check = drain(&mut nic);
        nic.check();
        send(&mut tap, &Offload::NONE, &numbered(3, 60));
        send(&mut tap, &Offload::NONE, &numbered(4, 60));
        assert!(is_ready(&epoll, PATIENCE), "a wake-up");
        let numbers: Vec<_> = drain(&mut nic).iter().map(|frame| number_of(frame)).collect();
        assert_eq!(numbers, [3, 4]);
        assert_eq!(statistics.drops(), 2 - before_check.len() as u64);
        // From now on nothing is lost but the frame itself.
        write_inexpressible(&tap_file);
        let mut buffer = vec![0; FRAME_BUFFER_LENGTH];
        let has_ring = !before_check.is_empty();
        match nic.receive(&mut buffer) {
            Ok(received) => assert!(has_ring && received.is_none()),
            Err(error) => assert!(!has_ring && error == ReceiveError::Inexpressible),
        }
        send(&mut tap, &Offload::NONE, &numbered(5, 60));
        assert_eq!(drain(&mut nic).len(), 1);
    });
}

#[test]
fn one_of_several_rings_that_stalls_takes_no_flow_with_it() {
    in_namespace(|| {
        let tap = TapQueue::open("nic", 1).expect("a TAP").remove(0);
        ip("link set nic up");
        let tap_file = tap.as_fd().try_clone_to_owned().expect("a second handle");
        let mut tap = LanQueue::Tap(tap);
        let mtu = Arc::new(AtomicU32::new(1500));
        let queues = PacketQueue::open(index_of("nic"), 3, &mtu).expect("sockets");
        let mut queues: Vec<_> = queues.into_iter().map(LanQueue::Packet).collect();
        queues.iter_mut().for_each(LanQueue::check);
        write_inexpressible(&tap_file);
        queues.iter_mut().for_each(LanQueue::check);
        for port in 1..=60 {
            let mut frame = Vec::new();
            etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [0xff; 6])
                .ipv4([10, 9, 0, 2], [10, 9, 0, 1], 64)
                .udp(port, 9)
                .write(&mut frame, &[])
                .expect("a frame");
            send(&mut tap, &Offload::NONE, &frame);
        }
        let mut ports = Vec::new();
        for queue in &mut queues {
            let frames = drain(queue);
            assert!(frames.len() < 60, "all flows came to one socket");
            ports.extend(frames.iter().map(|frame| u16::from_be_bytes([frame[34], frame[35]])));
        }
        ports.sort_unstable();
        assert_eq!(ports, (1..=60).collect::<Vec<_>>());
    });
}
