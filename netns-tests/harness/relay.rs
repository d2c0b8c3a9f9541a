//! A relay in the underlay's router: delay, jitter, reordering, loss, duplicates,
//! NAT and one-way cuts, by seed, changed while traffic flows.
//!
//! The router sends every forwarded packet through a TUN interface, behind which
//! this relay decides what becomes of it; what it writes back is routed on:
//!
//! ```text
//!   east ──▶ router ──▶ relay0 ──▶ [this thread] ──▶ relay0 ──▶ router ──▶ west
//! ```
//!
//! So appliances need not know of it, whatever ports they use. Packets have real
//! sizes there: a TUN without offloads makes the kernel cut superframes up.

use super::frames::Seeded;
use landbridge::lab::{Pair, Side};
use std::{
    collections::{BinaryHeap, VecDeque},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// What happens to the packets that come from one side.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Impairment {
    /// Added to every packet's way.
    pub(crate) delay: Duration,
    /// Up to so much more, uniformly; packets overtake each other then.
    pub(crate) jitter: Duration,
    /// Share of packets lost, 0 to 1; 1 cuts this direction.
    pub(crate) loss: f64,
    /// Share of packets that arrive twice.
    pub(crate) duplicates: f64,
    /// Share of packets that are held for [`Relay::REORDER_DELAY`], and so overtaken.
    pub(crate) reordering: f64,
    /// Share of UDP packets with one bit of the payload flipped under a checksum
    /// made right again: only the receiving program can notice.
    pub(crate) corruption: f64,
}

/// Packets by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) forwarded: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    pub(crate) corrupted: u64,
    pub(crate) translated: u64,
}

/// The running relay; dropping it takes it out of the way.
pub(crate) struct Relay<'a> {
    pair: &'a Pair,
    /// Share of the packets that take this way; `None` for all of them.
    per_mille: Option<u32>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    stop: AtomicBool,
}

struct State {
    impairments: [Impairment; 2],
    tallies: [Tally; 2],
    nat: Option<Nat>,
    seeded: Seeded,
    waiting: BinaryHeap<Waiting>,
    order: u64,
    recorded: VecDeque<(Side, Vec<u8>)>,
    east_prefix: [u8; 3],
}

/// Source NAT of IPv4 UDP from the east side: to another address, each port
/// moved by an offset that a remap changes.
#[derive(Debug, Clone, Copy)]
struct Nat {
    inside: [u8; 4],
    outside: [u8; 4],
    port_offset: u16,
}

/// Ordered so that the heap's greatest is the one due first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Waiting(std::cmp::Reverse<(Instant, u64)>, Vec<u8>);

const INTERFACE: &str = "relay0";
const TABLE: u32 = 100;
const MARK: u32 = 1;
const LONGEST_PACKET: usize = 65_535;
const MOST_RECORDED: usize = 1000;

impl<'a> Relay<'a> {
    /// How long a reordered packet is held.
    pub(crate) const REORDER_DELAY: Duration = Duration::from_millis(2);
    /// The address that NAT gives to the east side.
    pub(crate) const NAT_ADDRESS: [u8; 4] = [203, 0, 113, 7];

    /// Puts a relay without impairments into the pair's underlay.
    pub(crate) fn new(pair: &'a Pair, seed: u64) -> Self {
        Self::start(pair, seed, None)
    }

    /// The same for a random share of the packets; the others take the kernel's
    /// own way, at its speed.
    pub(crate) fn for_share(pair: &'a Pair, seed: u64, per_mille: u32) -> Self {
        Self::start(pair, seed, Some(per_mille))
    }

    fn start(pair: &'a Pair, seed: u64, per_mille: Option<u32>) -> Self {
        let tun = pair
            .router
            .enter(|| tun_tap::Iface::without_packet_info(INTERFACE, tun_tap::Mode::Tun))
            .unwrap()
            .unwrap();
        let tun = Arc::new(tun);
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                impairments: [Impairment::default(); 2],
                tallies: [Tally::default(); 2],
                nat: None,
                seeded: Seeded::new(seed),
                waiting: BinaryHeap::new(),
                order: 0,
                recorded: VecDeque::new(),
                east_prefix: [192, 0, 2],
            }),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let threads = vec![
            spawn("relay-in", &shared, &tun, read_packets),
            spawn("relay-out", &shared, &tun, write_packets),
        ];
        let relay = Self { pair, per_mille, shared, threads };
        relay.divert();
        relay
    }

    /// Sets what happens to the packets that come from `from`.
    pub(crate) fn impair(&self, from: Side, impairment: Impairment) {
        self.state().impairments[from as usize] = impairment;
    }

    /// Sets the same for both directions.
    pub(crate) fn impair_both(&self, impairment: Impairment) {
        self.state().impairments = [impairment; 2];
    }

    /// Cuts the way from `from` to the other side.
    pub(crate) fn cut(&self, from: Side) {
        self.impair(from, Impairment { loss: 1.0, ..Impairment::default() });
    }

    /// Lets everything pass again.
    pub(crate) fn heal(&self) {
        self.impair_both(Impairment::default());
    }

    /// Puts the east appliance behind source NAT (IPv4), its ports moved by
    /// `port_offset`; called again with another offset, the mapping has changed
    /// and the old one is dead.
    pub(crate) fn translate_east(&self, port_offset: u16) {
        let std::net::IpAddr::V4(inside) = self.pair.options.endpoint(Side::East).ip() else {
            panic!("NAT is for IPv4 underlays");
        };
        self.state().nat =
            Some(Nat { inside: inside.octets(), outside: Self::NAT_ADDRESS, port_offset });
    }

    /// What became of the packets that came from `from`.
    pub(crate) fn tally(&self, from: Side) -> Tally {
        self.state().tallies[from as usize]
    }

    /// The last packets (IP header first) that came from `from`, oldest first.
    pub(crate) fn recorded(&self, from: Side) -> Vec<Vec<u8>> {
        let state = self.state();
        let recorded = state.recorded.iter().filter(|(side, _)| *side == from);
        recorded.map(|(_, packet)| packet.clone()).collect()
    }

    /// Sends a packet (IP header first) to where its destination says.
    pub(crate) fn inject(&self, packet: Vec<u8>) {
        self.state().push(Instant::now(), packet);
        self.shared.wake.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared)
    }

    /// Packets that were dropped because this machine was too slow for the relay.
    pub(crate) fn overflowed(&self) -> u64 {
        let link = self.pair.router.link(INTERFACE).unwrap();
        link["stats64"]["tx"]["dropped"].as_u64().unwrap()
    }

    /// Sends what comes in by either underlay link, or the share of it, to the relay.
    fn divert(&self) {
        let router = &self.pair.router;
        for interface in ["all", "default", INTERFACE, "east", "west"] {
            router.set(&format!("net.ipv4.conf.{interface}.rp_filter"), "0").unwrap();
        }
        router.ip(&format!("link set {INTERFACE} mtu {LONGEST_PACKET} up")).unwrap();
        if let Some(per_mille) = self.per_mille {
            let rules = format!(
                "table inet {INTERFACE} {{ chain prerouting {{ type filter hook prerouting \
                 priority mangle; iifname {{ east, west }} numgen random mod 1000 < {per_mille} \
                 meta mark set {MARK}; }}; }}"
            );
            router.exec(&["nft", &rules]).unwrap().success().unwrap();
        }
        for family in ["-4", "-6"] {
            router
                .ip(&format!("{family} route add default dev {INTERFACE} table {TABLE}"))
                .unwrap();
            for side in Side::BOTH {
                router.ip(&format!("{family} rule add {}", self.rule(side))).unwrap();
            }
        }
    }

    fn rule(&self, side: Side) -> String {
        let mark = self.per_mille.map_or_else(String::new, |_| format!("fwmark {MARK}"));
        format!("iif {} {mark} lookup {TABLE} pref 50", side.site())
    }
}

impl Drop for Relay<'_> {
    fn drop(&mut self) {
        let router = &self.pair.router;
        for family in ["-4", "-6"] {
            for side in Side::BOTH {
                let _ = router.ip(&format!("{family} rule del {}", self.rule(side)));
            }
        }
        if self.per_mille.is_some() {
            let _ = router.exec(&["nft", "delete", "table", "inet", INTERFACE]);
        }
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.wake.notify_all();
        // The reader's `read` fails once its interface is gone.
        let _ = router.ip(&format!("link del {INTERFACE}"));
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn spawn(
    name: &str,
    shared: &Arc<Shared>,
    tun: &Arc<tun_tap::Iface>,
    work: fn(&Shared, &tun_tap::Iface),
) -> JoinHandle<()> {
    let (shared, tun) = (Arc::clone(shared), Arc::clone(tun));
    let builder = thread::Builder::new().name(name.into());
    let run = move || {
        // A network does not slow down because its hosts are busy.
        let _ = rustix::process::setpriority_process(None, -20);
        work(&shared, &tun);
    };
    builder.spawn(run).expect("a thread can be started")
}

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.state.lock().expect("the relay's threads do not panic")
}

fn read_packets(shared: &Shared, tun: &tun_tap::Iface) {
    let mut buffer = vec![0; LONGEST_PACKET];
    while !shared.stop.load(Ordering::Relaxed) {
        match tun.recv(&mut buffer) {
            Ok(length) => {
                lock(shared).handle(Instant::now(), buffer[..length].to_vec());
                shared.wake.notify_one();
            }
            // Before it is up, and once it is gone.
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn write_packets(shared: &Shared, tun: &tun_tap::Iface) {
    let mut state = lock(shared);
    while !shared.stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let due = state.waiting.peek().map(|waiting| waiting.0.0.0);
        state = match due {
            Some(due) if due <= now => {
                let Waiting(_, packet) = state.waiting.pop().expect("it was peeked at");
                drop(state);
                let _ = tun.send(&packet);
                lock(shared)
            }
            Some(due) => shared.wake.wait_timeout(state, due - now).expect("no thread panics").0,
            None => shared.wake.wait(state).expect("no thread panics"),
        };
    }
}

impl State {
    fn handle(&mut self, now: Instant, mut packet: Vec<u8>) {
        let Some(from) = self.side_of(&packet) else { return };
        if self.recorded.len() == MOST_RECORDED {
            self.recorded.pop_front();
        }
        self.recorded.push_back((from, packet.clone()));
        let impairment = self.impairments[from as usize];
        let mut tally = self.tallies[from as usize];
        let mut happens = |share: f64| share > 0.0 && self.seeded.fraction() < share;
        if happens(impairment.loss) {
            tally.lost += 1;
            self.tallies[from as usize] = tally;
            return;
        }
        let (twice, held, corrupt) = (
            happens(impairment.duplicates),
            happens(impairment.reordering),
            happens(impairment.corruption),
        );
        let jitter = impairment.jitter.mul_f64(self.seeded.fraction());
        let mut due = now + impairment.delay + jitter;
        if held {
            tally.reordered += 1;
            due += Relay::REORDER_DELAY;
        }
        if self.nat.is_some_and(|nat| nat.blocks(&packet)) {
            self.tallies[from as usize].lost += 1;
            return;
        }
        if self.nat.is_some_and(|nat| nat.translate(&mut packet)) {
            tally.translated += 1;
        }
        if corrupt && corrupt_payload(&mut packet, self.seeded.next()) {
            tally.corrupted += 1;
        }
        if twice {
            tally.duplicated += 1;
            self.push(due, packet.clone());
        }
        tally.forwarded += 1;
        self.push(due, packet);
        self.tallies[from as usize] = tally;
    }

    fn push(&mut self, due: Instant, packet: Vec<u8>) {
        self.order += 1;
        self.waiting.push(Waiting(std::cmp::Reverse((due, self.order)), packet));
    }

    /// By source address; link-local packets belong to neither.
    fn side_of(&self, packet: &[u8]) -> Option<Side> {
        match packet.first()? >> 4 {
            4 if packet.len() >= 20 => {
                Some(if packet[12..15] == self.east_prefix { Side::East } else { Side::West })
            }
            6 if packet.len() >= 40 => match packet[8..14] {
                [0x20, 0x01, 0x0d, 0xb8, 0, 0x0e] => Some(Side::East),
                [0x20, 0x01, 0x0d, 0xb8, 0, 0x0f] => Some(Side::West),
                _ => None,
            },
            _ => None,
        }
    }
}

impl Nat {
    /// Nobody outside reaches the inside by its own address.
    fn blocks(&self, packet: &[u8]) -> bool {
        packet[0] >> 4 == 4 && packet[16..20] == self.inside
    }

    /// Rewrites an IPv4 UDP packet that leaves the inside or comes back to it.
    fn translate(&self, packet: &mut [u8]) -> bool {
        let Some(udp) = udp_offset(packet).filter(|_| packet[0] >> 4 == 4) else { return false };
        if packet[12..16] == self.inside {
            packet[12..16].copy_from_slice(&self.outside);
            add_to_port(&mut packet[udp..udp + 2], self.port_offset);
        } else if packet[16..20] == self.outside {
            packet[16..20].copy_from_slice(&self.inside);
            add_to_port(&mut packet[udp + 2..udp + 4], self.port_offset.wrapping_neg());
        } else {
            return false;
        }
        packet[10..12].fill(0);
        let sum = internet_checksum(&packet[..udp]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        // No checksum is allowed over IPv4 (RFC 768).
        packet[udp + 6..udp + 8].fill(0);
        true
    }
}

fn add_to_port(port: &mut [u8], offset: u16) {
    let moved = u16::from_be_bytes([port[0], port[1]]).wrapping_add(offset);
    port.copy_from_slice(&moved.to_be_bytes());
}

/// Flips one bit of a UDP payload and makes the checksum right again, so that no
/// kernel drops it.
fn corrupt_payload(packet: &mut [u8], random: u64) -> bool {
    let Some(udp) = udp_offset(packet) else { return false };
    let payload = udp + 8;
    if packet.len() <= payload + 2 {
        return false;
    }
    let place = payload + (random >> 8) as usize % (packet.len() - payload);
    packet[place] ^= 1 << (random & 7);
    packet[udp + 6..udp + 8].fill(0);
    if packet[0] >> 4 == 6 {
        // RFC 8200 section 8.1: addresses, length, next header.
        let length = ((packet.len() - udp) as u32).to_be_bytes();
        let summed = [&packet[8..40], &length, &[0, 0, 0, 17], &packet[udp..]].concat();
        let sum = match internet_checksum(&summed) {
            0 => 0xffff,
            sum => sum,
        };
        packet[udp + 6..udp + 8].copy_from_slice(&sum.to_be_bytes());
    }
    true
}

/// Where the UDP header begins; `None` for anything else and for fragments.
fn udp_offset(packet: &[u8]) -> Option<usize> {
    const UDP: u8 = 17;
    let offset = match packet.first()? >> 4 {
        4 if packet.len() >= 20 && packet[9] == UDP => {
            let fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff;
            (fragment == 0).then_some(usize::from(packet[0] & 0xf) * 4)?
        }
        6 if packet.len() >= 40 && packet[6] == UDP => 40,
        _ => return None,
    };
    (packet.len() >= offset + 8).then_some(offset)
}

/// RFC 1071; 0 where `bytes` hold a checksum that is right.
pub(crate) fn internet_checksum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
