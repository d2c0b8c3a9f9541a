//! Numbered UDP datagrams in several flows at a steady rate: what was lost, came
//! twice or overtook another.

use landbridge::lab::Host;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{RecvFlags, recvfrom, sockopt::set_socket_recv_buffer_size_force},
};
use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Datagrams under way from one host to another.
pub(crate) struct Flows {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<Numbers>,
}

/// By receiving socket and source port.
type Numbers = BTreeMap<(usize, Option<u16>), Vec<u64>>;

/// What became of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    /// Datagrams that came after a later one of their flow.
    pub(crate) overtaken: u64,
}

const LAST: u64 = u64::MAX;
const SILENCE: Duration = Duration::from_secs(2);
const LENGTH: usize = 200;

impl Flows {
    /// Starts `count` flows; each sends a datagram every `interval`.
    pub(crate) fn start(from: &Host, to: &Host, count: usize, interval: Duration) -> Self {
        let receiving = open(to);
        let target = receiving.local_addr().unwrap();
        let senders: Vec<_> = (0..count).map(|_| open(from)).collect();
        for socket in &senders {
            socket.connect(target).unwrap();
        }
        Self::run(senders, vec![receiving], interval)
    }

    /// Starts `count` flows in which both hosts send a datagram every `interval`;
    /// each has a port of its own on either side.
    pub(crate) fn both_ways(hosts: [&Host; 2], count: usize, interval: Duration) -> [Self; 2] {
        let ends: [Vec<_>; 2] = hosts.map(|host| (0..count).map(|_| open(host)).collect());
        for (one, other) in ends[0].iter().zip(&ends[1]) {
            one.connect(other.local_addr().unwrap()).unwrap();
            other.connect(one.local_addr().unwrap()).unwrap();
        }
        let copies = ends.each_ref().map(|sockets| {
            sockets.iter().map(|socket| socket.try_clone().unwrap()).collect::<Vec<_>>()
        });
        let ([one, other], [to_one, to_other]) = (ends, copies);
        [Self::run(one, to_other, interval), Self::run(other, to_one, interval)]
    }

    fn run(senders: Vec<UdpSocket>, receivers: Vec<UdpSocket>, interval: Duration) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), senders.len());
        let stopped = Arc::clone(&stop);
        let sender = thread::spawn(move || {
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                send_all(&senders, number);
                number += 1;
                thread::sleep(interval);
            }
            send_all(&senders, LAST);
            number * senders.len() as u64
        });
        let receiver = thread::spawn(move || receive_all(&receivers, count));
        Self { stop, sender, receiver }
    }

    /// Ends them and tells what became of every datagram.
    pub(crate) fn finish(self) -> Delivery {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().unwrap();
        let flows = self.receiver.join().unwrap();
        let (mut arrived, mut doubled, mut overtaken) = (0, 0, 0);
        for numbers in flows.into_values() {
            let mut highest = None;
            for number in &numbers {
                overtaken += u64::from(Some(number) < highest);
                highest = highest.max(Some(number));
            }
            let count = numbers.len() as u64;
            let mut unique = numbers;
            unique.sort_unstable();
            unique.dedup();
            arrived += unique.len() as u64;
            doubled += count - unique.len() as u64;
        }
        Delivery { sent, lost: sent - arrived, doubled, overtaken }
    }
}

impl Delivery {
    /// Each datagram arrived once and in its flow's order.
    pub(crate) fn is_whole(&self) -> bool {
        (self.lost, self.doubled, self.overtaken) == (0, 0, 0)
    }
}

fn open(host: &Host) -> UdpSocket {
    let address = SocketAddr::from((host.v4, 0));
    let socket = host.namespace.enter(|| UdpSocket::bind(address)).unwrap().unwrap();
    set_socket_recv_buffer_size_force(&socket, 32 << 20).unwrap();
    socket
}

fn send_all(sockets: &[UdpSocket], number: u64) {
    let mut datagram = [0; LENGTH];
    datagram[..8].copy_from_slice(&number.to_be_bytes());
    for socket in sockets {
        // What the host itself drops counts as lost.
        let _ = socket.send(&datagram);
    }
}

/// Numbers in the order of their arrival, by flow, until every flow has ended.
fn receive_all(sockets: &[UdpSocket], flows: usize) -> Numbers {
    let mut numbers = Numbers::new();
    let mut ended = 0;
    let silence = Timespec::try_from(SILENCE).expect("a short time");
    while ended < flows {
        let mut ready: Vec<_> =
            sockets.iter().map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
        match poll(&mut ready, Some(&silence)) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => panic!("poll: {errno}"),
        }
        for (place, _) in ready.iter().enumerate().filter(|(_, fd)| !fd.revents().is_empty()) {
            ended += receive_some(&sockets[place], place, &mut numbers);
        }
    }
    numbers
}

/// What there is to read now; returns how many flows ended with it.
fn receive_some(socket: &UdpSocket, place: usize, numbers: &mut Numbers) -> usize {
    let (mut ended, mut buffer) = (0, [0; LENGTH]);
    loop {
        let port = match recvfrom(socket, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((_, _, from)) => from.map(|from| SocketAddr::try_from(from).unwrap().port()),
            Err(Errno::INTR) => continue,
            Err(_) => return ended,
        };
        match u64::from_be_bytes(buffer[..8].try_into().expect("eight bytes")) {
            LAST => ended += 1,
            number => numbers.entry((place, port)).or_default().push(number),
        }
    }
}
