//! What a frame costs at a packet socket. Not a test of right or wrong:
//!
//! ```text
//! cargo test --release --lib -- --ignored --nocapture packet_queue_rates
//! ```
//!
//! One thread sends a burst on one end of a veth pair and then empties the
//! other, so nothing waits for anybody: the processor time of both halves is
//! what a frame costs. The sending half includes the kernel's way to the other
//! end's ring, since a veth pair does that in the sender's context.

use std::{
    os::fd::AsFd,
    sync::{Arc, atomic::AtomicU32, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    time::{ClockId, clock_gettime},
};

use super::{in_namespace, index_of, veth_pair};
use crate::{
    io::lan::{FRAME_BUFFER_LENGTH, LanQueue, PacketQueue},
    offload::{Offload, Segmentation},
};

/// How frames go through a queue.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Way {
    /// One system call per frame.
    Single,
    /// Through the ring, and in batches.
    Together,
}

fn open(interface: &str, way: Way) -> LanQueue {
    let mtu = Arc::new(AtomicU32::new(1500));
    let mut queue = PacketQueue::open(index_of(interface), 1, &mtu).expect("a socket").remove(0);
    if way == Way::Single {
        queue.give_up_ring().expect("a plain queue");
    }
    LanQueue::Packet(queue)
}

fn flush(queue: &mut LanQueue) {
    queue.flush(|error, frames| panic!("{frames} frames: {error}"));
}

/// Processor time of this thread.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn frame_of(length: usize) -> (Offload, Vec<u8>) {
    let mut frame = Vec::new();
    let builder = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [0xff; 6])
        .ipv4([10, 9, 0, 2], [10, 9, 0, 77], 64)
        .tcp(7000, 7000, 1, 1000);
    let payload = length - builder.size(0);
    builder.write(&mut frame, &vec![7; payload]).expect("a frame");
    let segmentation = if length > 1514 { Segmentation::Tcp4 } else { Segmentation::None };
    let is_cut = segmentation != Segmentation::None;
    let segment_size = if is_cut { 1448 } else { 0 };
    (Offload { segmentation, ecn: false, segment_size, needs_checksum: is_cut }, frame)
}

fn cost(way: Way, length: usize, burst: usize, rounds: usize) {
    let (mut sender, mut receiver) = (open("host", way), open("nic", way));
    let (offload, frame) = frame_of(length);
    let mut buffer = vec![0; FRAME_BUFFER_LENGTH];
    let (mut sending, mut receiving, mut received) = (Duration::ZERO, Duration::ZERO, 0);
    for _ in 0..rounds {
        let start = processor_time();
        for _ in 0..burst {
            sender.transmit(None, &offload, &frame).expect("transmit");
            if way == Way::Single {
                flush(&mut sender);
            }
        }
        flush(&mut sender);
        let between = processor_time();
        while receiver.receive(&mut buffer).expect("no error").is_some() {
            received += 1;
        }
        sending += between - start;
        receiving += processor_time() - between;
    }
    let sent = rounds * burst;
    assert_eq!(received, sent, "frames were lost");
    let each = |time: Duration| time.as_nanos() / sent as u128;
    println!(
        "{way:?}, {length:>5} bytes: {:>6} ns to send (with the way over), {:>6} ns to receive",
        each(sending),
        each(receiving)
    );
}

/// Median time from before a frame's transmission in one thread until it was
/// received in another that sleeps in poll.
fn latency(way: Way, rounds: usize) {
    let (mut sender, mut receiver) = (open("host", way), open("nic", way));
    let (offload, frame) = frame_of(60);
    let (arrivals, arrived) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut buffer = vec![0; FRAME_BUFFER_LENGTH];
        for _ in 0..rounds {
            while receiver.receive(&mut buffer).expect("no error").is_none() {
                let fd = receiver.as_fd();
                let pause = Timespec { tv_sec: 5, tv_nsec: 0 };
                assert_eq!(poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&pause)), Ok(1));
            }
            arrivals.send(Instant::now()).expect("a waiting test");
        }
    });
    let mut times: Vec<Duration> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            sender.transmit(None, &offload, &frame).expect("transmit");
            flush(&mut sender);
            arrived.recv().expect("a frame") - start
        })
        .collect();
    reader.join().expect("the reader");
    times.sort_unstable();
    let (median, late) = (times[rounds / 2], times[rounds * 99 / 100]);
    println!("{way:?}, one frame: {median:?} (median), {late:?} (99 %)");
}

#[test]
#[ignore = "measures, proves nothing"]
fn packet_queue_rates() {
    in_namespace(|| {
        veth_pair();
        for way in [Way::Single, Way::Together, Way::Single, Way::Together] {
            cost(way, 60, 256, 2000);
            cost(way, 1514, 256, 2000);
            cost(way, 65_226, 64, 500);
            latency(way, 5000);
        }
    });
}
