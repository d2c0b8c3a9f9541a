//! A real TCP stream between two kernels' namespaces, carried by two queues:
//!
//! ```text
//!  namespace A                            namespace B
//!  client ─ host ═ nic ─ PacketQueue ⇄ TapQueue or PlainTap ─ lb ─ server
//!                          (this test carries the frames)
//! ```
//!
//! The kernels judge every superframe, checksum and tag that goes through.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    sync::{Arc, atomic::AtomicU32, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{in_namespace, index_of, ip, is_privileged};
use crate::{
    io::lan::{FRAME_BUFFER_LENGTH, LanQueue, PacketQueue, PlainTap, TapQueue},
    offload::Segmentation,
};

const BYTES: usize = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

/// Superframes seen, in each direction.
#[derive(Default, Debug)]
struct Superframes {
    from_client: usize,
    from_server: usize,
}

fn addresses(is_v6: bool) -> (&'static str, IpAddr) {
    match is_v6 {
        true => ("fd00:9", IpAddr::V6(Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 2))),
        false => ("10.9.0", IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2))),
    }
}

fn assign(device: &str, host: u8, is_v6: bool) {
    ip(&format!("link set {device} up"));
    let (prefix, _) = addresses(is_v6);
    match is_v6 {
        true => ip(&format!("addr add {prefix}::{host}/64 nodad dev {device}")),
        false => ip(&format!("addr add {prefix}.{host}/24 dev {device}")),
    };
}

fn allow_ipv6() {
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "0").expect("IPv6");
}

/// Runs `make` and then `serve` in a thread with its own namespace; what
/// `make` returns comes back at once.
fn in_other_namespace<T: Send + 'static>(
    make: impl FnOnce() -> T + Send + 'static,
    serve: impl FnOnce() + Send + 'static,
) -> (T, JoinHandle<()>) {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::spawn(move || {
        in_namespace(move || {
            sender.send(make()).expect("a waiting test");
            serve();
        });
    });
    (receiver.recv().expect("a namespace"), thread)
}

/// Sends and receives `BYTES` of a pattern at once, and checks what comes.
fn exchange(stream: TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    let mut writing = stream.try_clone().expect("a second handle");
    let sent: Vec<u8> = (0..BYTES).map(|i| (i * 31 % 251) as u8).collect();
    let expected = sent.clone();
    let writer = thread::spawn(move || {
        writing.write_all(&sent).expect("write");
        writing.shutdown(std::net::Shutdown::Write).expect("shutdown");
    });
    let mut received = Vec::new();
    (&stream).read_to_end(&mut received).expect("read");
    writer.join().expect("the writer");
    assert!(received == expected, "{} bytes, not the same", received.len());
}

fn is_tcp_superframe(segmentation: Segmentation) -> bool {
    matches!(segmentation, Segmentation::Tcp4 | Segmentation::Tcp6)
}

/// Moves what `from` has to `to`; returns how many superframes that were.
fn carry(from: &mut LanQueue, to: &mut LanQueue, buffer: &mut [u8]) -> usize {
    let mut superframes = 0;
    while let Some(received) = from.receive(buffer).expect("a frame") {
        superframes += usize::from(is_tcp_superframe(received.offload.segmentation));
        // A full queue is a lost frame, as on any LAN.
        let _ = to.transmit(received.vlan, &received.offload, received.frame());
    }
    to.flush(|_, _| {});
    superframes
}

fn open_server(is_v6: bool, open: fn() -> LanQueue) -> (LanQueue, JoinHandle<()>) {
    let (sender, listening) = mpsc::channel();
    let make = move || {
        allow_ipv6();
        let queue = open();
        assign("lb", 2, is_v6);
        sender.send(TcpListener::bind((addresses(is_v6).1, 5001)).expect("listen")).expect("send");
        queue
    };
    in_other_namespace(make, move || {
        let listener = listening.recv().expect("a listener");
        exchange(listener.accept().expect("a client").0);
    })
}

fn open_client(is_v6: bool) -> (LanQueue, JoinHandle<()>) {
    let make = move || {
        allow_ipv6();
        ip("link add host type veth peer name nic");
        assign("host", 1, is_v6);
        ip("link set nic up");
        let mtu = Arc::new(AtomicU32::new(1500));
        let queues = PacketQueue::open(index_of("nic"), 1, &mtu).expect("a socket");
        queues.into_iter().map(LanQueue::Packet).next().expect("one queue")
    };
    in_other_namespace(make, move || {
        let server = SocketAddr::new(addresses(is_v6).1, 5001);
        exchange(TcpStream::connect(server).expect("connect"));
    })
}

fn run(is_v6: bool, open: fn() -> LanQueue) -> Superframes {
    let (mut server_side, server) = open_server(is_v6, open);
    let (mut client_side, client) = open_client(is_v6);
    let mut seen = Superframes::default();
    let mut buffer = vec![0; FRAME_BUFFER_LENGTH];
    let deadline = Instant::now() + PATIENCE;
    // A namespace lives as long as its queue, so the last acknowledgements get through.
    while !(client.is_finished() && server.is_finished()) {
        assert!(Instant::now() < deadline, "the stream stalled: {seen:?}");
        seen.from_client += carry(&mut client_side, &mut server_side, &mut buffer);
        seen.from_server += carry(&mut server_side, &mut client_side, &mut buffer);
        let (a, b) = (client_side.as_fd(), server_side.as_fd());
        let mut fds = [PollFd::new(&a, PollFlags::IN), PollFd::new(&b, PollFlags::IN)];
        let pause = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        poll(&mut fds, Some(&pause)).expect("poll");
    }
    client.join().expect("the client");
    server.join().expect("the server");
    seen
}

fn open_tap() -> LanQueue {
    LanQueue::Tap(TapQueue::open("lb", 1).expect("a TAP").remove(0))
}

fn open_plain() -> LanQueue {
    LanQueue::Plain(PlainTap::open("lb").expect("a TAP"))
}

#[test]
fn tcp_crosses_as_superframes_both_ways() {
    for is_v6 in [false, true] {
        if !is_privileged() {
            return;
        }
        let seen = run(is_v6, open_tap);
        assert!(seen.from_client > 50 && seen.from_server > 50, "{seen:?}");
    }
}

#[test]
fn tcp_superframes_are_cut_for_a_plain_tap() {
    for is_v6 in [false, true] {
        if !is_privileged() {
            return;
        }
        let seen = run(is_v6, open_plain);
        assert!(seen.from_client > 50 && seen.from_server == 0, "{seen:?}");
    }
}
