//! Numbered UDP datagrams in several flows at a steady rate: what was lost, came
//! twice or overtook another.

use landbridge::lab::Host;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use std::{
    collections::BTreeMap,
    io::ErrorKind,
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
    receiver: JoinHandle<BTreeMap<u16, Vec<u64>>>,
}

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
        let open = |host: &Host| {
            let address = SocketAddr::from((host.v4, 0));
            host.namespace.enter(|| UdpSocket::bind(address)).unwrap().unwrap()
        };
        let receiving = open(to);
        set_socket_recv_buffer_size_force(&receiving, 32 << 20).unwrap();
        receiving.set_read_timeout(Some(SILENCE)).unwrap();
        let target = receiving.local_addr().unwrap();
        let sockets: Vec<_> = (0..count).map(|_| open(from)).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let sender = thread::spawn(move || {
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                send_all(&sockets, target, number);
                number += 1;
                thread::sleep(interval);
            }
            send_all(&sockets, target, LAST);
            number * sockets.len() as u64
        });
        let receiver = thread::spawn(move || receive_all(&receiving, count));
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

fn send_all(sockets: &[UdpSocket], target: SocketAddr, number: u64) {
    let mut datagram = [0; LENGTH];
    datagram[..8].copy_from_slice(&number.to_be_bytes());
    for socket in sockets {
        // What the host itself drops counts as lost.
        let _ = socket.send_to(&datagram, target);
    }
}

/// Numbers in the order of their arrival, by source port, until every flow has ended.
fn receive_all(socket: &UdpSocket, flows: usize) -> BTreeMap<u16, Vec<u64>> {
    let mut numbers = BTreeMap::<u16, Vec<u64>>::new();
    let (mut ended, mut buffer) = (0, [0; LENGTH]);
    while ended < flows {
        let from = match socket.recv_from(&mut buffer) {
            Ok((_, from)) => from,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        match u64::from_be_bytes(buffer[..8].try_into().expect("eight bytes")) {
            LAST => ended += 1,
            number => numbers.entry(from.port()).or_default().push(number),
        }
    }
    numbers
}
