//! Nothing changes on the way: every byte of TCP and UDP is compared at the receiving
//! host, and every checksum that arrives there is computed anew.
//!
//! ```text
//!   host-e ── br-100 or lan0 ── east-1 ══ router ══ west-1 ── br-100 or lan0 ── host-w
//!    eth0: rx, gro off                    relay                  │        eth0: rx, gro off
//!                        towards the host: tx off ───────────────┘
//! ```
//!
//! Between network namespaces a checksum may be left undone all the way, and is then
//! believed. Here, whatever leaves an appliance towards its host is cut and finished
//! by the kernel at the latest (`tx off`), and both the host's kernel and
//! [`SumCheck`] verify what comes out of the cable.

use crate::harness::{
    TestPair,
    account::{dropped_frames, snmp},
    ask::{counter, eventually, status},
    can_run,
    frames::Seeded,
    landbridge_pair,
    relay::{Impairment, Relay},
    sums::SumCheck,
    tagged::TaggedInterface,
};
use landbridge::lab::{
    AttachmentKind::{self, Bridge, Nic, Tap},
    Namespace, PairOptions, Side,
};
use quinn_udp::{Transmit, UdpSocketState};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

/// One combination.
#[derive(Debug, Clone, Copy)]
struct Case {
    is_v6: bool,
    is_tagged: bool,
    attachments: [AttachmentKind; 2],
    offload: [bool; 2],
    lan_mtu: u32,
    loss_per_mille: u32,
    sums: Sums,
}

/// Who computes a sending host's checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sums {
    /// Nobody: superframes and sums come to the appliance undone.
    Undone,
    /// The sending host, frame by frame: its sums arrive at the other host.
    ByHost,
    /// The sending host; then the appliance's interface makes superframes (GRO).
    ByHostThenGro,
}

use Sums::{ByHost, ByHostThenGro, Undone};

const V4: bool = false;
const V6: bool = true;
const ON: bool = true;
const OFF: bool = false;
const TAGGED: bool = true;
const UNTAGGED: bool = false;

const fn case(
    is_v6: bool,
    is_tagged: bool,
    attachments: [AttachmentKind; 2],
    offload: [bool; 2],
    lan_mtu: u32,
    loss_per_mille: u32,
    sums: Sums,
) -> Case {
    Case { is_v6, is_tagged, attachments, offload, lan_mtu, loss_per_mille, sums }
}

/// Every pair of values of two columns occurs in some line, `Bridge` and `Tap` (TAPs
/// both) taken for one; but tagged frames come from a TAP of the host's, so that their
/// sums are always done.
#[rustfmt::skip]
const CASES: [Case; 13] = [
    case(V4, UNTAGGED, [Bridge, Bridge], [ON,  ON],  1500, 0,  Undone),
    case(V6, UNTAGGED, [Bridge, Bridge], [ON,  OFF], 9000, 0,  Undone),
    case(V6, UNTAGGED, [Nic,    Bridge], [ON,  ON],  1500, 0,  ByHostThenGro),
    case(V4, UNTAGGED, [Nic,    Nic],    [OFF, ON],  9000, 0,  ByHost),
    case(V4, TAGGED,   [Bridge, Nic],    [OFF, ON],  1500, 0,  ByHost),
    case(V4, UNTAGGED, [Tap,    Nic],    [ON,  ON],  9000, 1,  Undone),
    case(V6, UNTAGGED, [Bridge, Bridge], [OFF, OFF], 1500, 1,  ByHost),
    case(V6, UNTAGGED, [Bridge, Nic],    [OFF, ON],  1500, 1,  ByHostThenGro),
    case(V6, TAGGED,   [Nic,    Bridge], [ON,  ON],  9000, 1,  ByHost),
    case(V4, UNTAGGED, [Bridge, Bridge], [OFF, ON],  1500, 10, Undone),
    case(V4, UNTAGGED, [Nic,    Bridge], [ON,  OFF], 9000, 10, ByHostThenGro),
    case(V6, UNTAGGED, [Nic,    Nic],    [ON,  OFF], 1500, 10, Undone),
    case(V4, TAGGED,   [Bridge, Tap],    [ON,  OFF], 1500, 10, ByHost),
];

#[test]
fn nothing_changes_without_loss() {
    check(|case| case.loss_per_mille == 0 && case.lan_mtu == 1500);
}

#[test]
fn nothing_changes_with_long_frames() {
    check(|case| case.loss_per_mille == 0 && case.lan_mtu == 9000);
}

#[test]
fn nothing_changes_at_a_loss_of_1_per_mille() {
    check(|case| case.loss_per_mille == 1);
}

#[test]
fn nothing_changes_at_a_loss_of_10_per_mille() {
    check(|case| case.loss_per_mille == 10);
}

fn check(mut is_wanted: impl FnMut(&Case) -> bool) {
    for case in CASES.iter().filter(|case| is_wanted(case)) {
        if !can_run() {
            return;
        }
        let pair = pair_for(case);
        Check { case, pair: &pair }.run();
    }
}

fn pair_for(case: &Case) -> TestPair {
    let field = |offload: bool| if offload { "" } else { ", offload = false" }.to_owned();
    let pair = landbridge_pair(PairOptions {
        attachments: case.attachments,
        lan_mtu: case.lan_mtu,
        extra_attachment_fields: case.offload.map(field),
        ..PairOptions::default()
    });
    for side in Side::BOTH {
        let (host, appliance) = (&pair.host(side).namespace, &pair.appliance(side).namespace);
        let port = if case.attachments[side as usize] == Nic { "lan0" } else { "port0-0" };
        switch(appliance, port, "tx off");
        switch(host, "eth0", "rx off gro off");
        if case.sums != Undone {
            switch(host, "eth0", "tx off");
        }
        if case.sums == ByHostThenGro {
            switch(appliance, port, "gro on");
        }
    }
    pair
}

fn switch(namespace: &Namespace, interface: &str, features: &str) {
    let mut argv = vec!["ethtool", "-K", interface];
    argv.extend(features.split(' '));
    namespace.exec(&argv).unwrap().success().unwrap();
}

struct Check<'a> {
    case: &'a Case,
    pair: &'a TestPair,
}

/// Datagrams with which one UDP transfer was begun, and what did not arrive.
#[derive(Debug, Clone, Copy)]
struct UdpOutcome {
    sent: u64,
    missing: u64,
}

/// What is known of losses on the way from one side.
struct Losses {
    /// Frames that counters admit to.
    frames: u64,
    /// Datagrams that the receiving appliance misses.
    missing: u64,
    /// Datagrams that the relay dropped on purpose.
    lost: u64,
    /// Datagrams that were dropped otherwise, or came too late.
    others: u64,
}

/// What may be on its way while two appliances are asked in turn, and signals.
const SLACK: u64 = 16;
/// Datagrams to one destination of which a part is in one lost datagram of the
/// tunnel, or whose superframe's beginning is: at most two superframes.
const DATAGRAMS_PER_LOSS: u64 = 2 * GROUP as u64;

impl Check<'_> {
    fn run(&self) {
        let Self { case, pair } = *self;
        let tagged: Vec<_> = Side::BOTH
            .into_iter()
            .filter(|_| case.is_tagged)
            .map(|side| TaggedInterface::new(pair.host(side), case.lan_mtu))
            .collect();
        let relay = (case.loss_per_mille > 0).then(|| {
            let relay = Relay::new(pair, 20 + u64::from(case.loss_per_mille));
            let loss = f64::from(case.loss_per_mille) / 1000.0;
            let delay = Duration::from_micros(500);
            let reordering = 0.01;
            relay.impair_both(Impairment { delay, loss, reordering, ..Impairment::default() });
            relay
        });
        let watches = Side::BOTH.map(|side| SumCheck::start(pair.host(side)));
        let before = Side::BOTH.map(|from| self.losses(from, relay.as_ref()));
        let outcomes = thread::scope(|scope| {
            let tcp = Side::BOTH.map(|from| scope.spawn(move || self.tcp(from)));
            tcp.into_iter().for_each(|transfer| transfer.join().unwrap());
            let udp = Side::BOTH.map(|from| scope.spawn(move || self.udp(from)));
            udp.map(|transfer| transfer.join().unwrap())
        });
        for (side, watch) in Side::BOTH.into_iter().zip(watches) {
            self.check_sums(side, watch);
        }
        for from in Side::BOTH {
            let outcome = outcomes[from as usize];
            eventually("what is missing to be accounted for", || {
                let now = self.losses(from, relay.as_ref());
                self.check_losses(&before[from as usize], &now, outcome)
            });
        }
        if let Some(relay) = &relay {
            let lost: u64 = Side::BOTH.map(|from| relay.tally(from).lost).iter().sum();
            assert!(lost > 0, "{case:?}: the relay lost nothing");
        }
        drop(tagged);
    }

    fn check_sums(&self, side: Side, watch: SumCheck) {
        let (case, host) = (self.case, self.pair.host(side));
        let checked = watch.finish();
        assert_eq!(checked.wrong, [""; 0], "{case:?}, at {}", host.name());
        let longest = case.lan_mtu as usize + 14 + if case.is_tagged { 4 } else { 0 };
        assert_eq!(checked.longest, longest, "{case:?}: frames as on a real cable");
        assert!(checked.tcp >= TCP_BYTES / u64::from(case.lan_mtu), "{case:?}: {checked:?}");
        assert!(checked.udp >= DATAGRAMS / 2, "{case:?}: {checked:?}");
        // Else the superframes would be another test's.
        let makes_superframes = case.sums != ByHost && case.offload[side.other() as usize];
        if makes_superframes && case.lan_mtu == 1500 {
            let taken = status(self.pair, side.other()).unwrap().networks[0].rx.packets;
            let arrived = checked.tcp + checked.udp;
            assert!(taken * 5 < arrived * 4, "{case:?}: {taken} frames, {arrived} arrived");
        }
        for protocol in ["Tcp", "Udp", "Udp6"] {
            let errors = snmp(host, protocol, "InCsumErrors");
            assert_eq!(errors, 0, "{case:?}: {protocol} at {}", host.name());
        }
    }

    fn losses(&self, from: Side, relay: Option<&Relay<'_>>) -> Losses {
        let count = |name| counter(self.pair, from.other(), name).unwrap();
        let overflowed = relay.map_or(0, Relay::overflowed);
        Losses {
            frames: dropped_frames(self.pair, from, DATAGRAMS_PER_LOSS),
            missing: count("stream_missing"),
            lost: relay.map_or(0, |relay| relay.tally(from).lost),
            others: overflowed + count("stream_late") + count("udp_receive_dropped"),
        }
    }

    fn check_losses(&self, before: &Losses, now: &Losses, udp: UdpOutcome) -> Result<(), String> {
        let frames = now.frames - before.frames;
        let missing = now.missing - before.missing;
        let (lost, others) = (now.lost - before.lost, now.others - before.others);
        let is_explained = udp.missing <= frames && missing <= lost + others + SLACK;
        let is_noticed = missing + SLACK >= lost * 8 / 10;
        if is_explained && is_noticed && udp.missing <= udp.sent / 5 {
            return Ok(());
        }
        Err(format!(
            "{:?}: {udp:?}; {frames} frames by the counters; {missing} datagrams missing in the \
             tunnel, {lost} lost by the relay, {others} otherwise",
            self.case
        ))
    }

    fn address(&self, side: Side) -> IpAddr {
        let host = self.pair.host(side);
        let [v4, v6] = if self.case.is_tagged {
            TaggedInterface::addresses(host)
        } else {
            [host.v4.into(), host.v6.into()]
        };
        if self.case.is_v6 { v6 } else { v4 }
    }
    fn tcp(&self, from: Side) {
        let [sender, receiver] = [from, from.other()].map(|side| &self.pair.host(side).namespace);
        let address = SocketAddr::new(self.address(from.other()), 0);
        let listener = receiver.enter(|| TcpListener::bind(address)).unwrap().unwrap();
        let target = listener.local_addr().unwrap();
        let connect = || TcpStream::connect_timeout(&target, STALL);
        let outgoing = sender.enter(connect).unwrap().unwrap();
        let (incoming, _) = listener.accept().unwrap();
        outgoing.set_write_timeout(Some(STALL)).unwrap();
        incoming.set_read_timeout(Some(STALL)).unwrap();
        let seed = from as u64;
        thread::scope(|scope| {
            scope.spawn(move || send_stream(outgoing, seed));
            receive_stream(incoming, seed, &format!("{:?}, from {}", self.case, from.site()));
        });
    }

    fn udp(&self, from: Side) -> UdpOutcome {
        let open = |side: Side| {
            let address = SocketAddr::new(self.address(side), 0);
            let bind = || UdpSocket::bind(address);
            self.pair.host(side).namespace.enter(bind).unwrap().unwrap()
        };
        let receiver = open(from.other());
        set_socket_recv_buffer_size_force(&receiver, 32 << 20).unwrap();
        let target = receiver.local_addr().unwrap();
        let (whole, grouped) = (open(from), open(from));
        let segmenting = UdpSocketState::new((&grouped).into()).unwrap();
        let sends_superframes = self.case.sums == Undone;
        let lan_mtu = self.case.lan_mtu as usize;
        let ended = AtomicBool::new(false);
        let arrived = thread::scope(|scope| {
            scope.spawn(|| {
                for first in (0..DATAGRAMS).step_by(GROUP) {
                    let group = first..first + GROUP as u64;
                    let contents: Vec<u8> = group.flat_map(|n| datagram(n, lan_mtu)).collect();
                    let length = contents.len() / GROUP;
                    if sends_superframes && length <= lan_mtu - HEADERS {
                        let segment_size = Some(length);
                        let contents = &contents[..];
                        let (ecn, src_ip) = (None, None);
                        let transmit =
                            Transmit { destination: target, ecn, contents, segment_size, src_ip };
                        segmenting.try_send((&grouped).into(), &transmit).unwrap();
                    } else {
                        for datagram in contents.chunks(length) {
                            whole.send_to(datagram, target).unwrap();
                        }
                    }
                    // So slow that the relay and the queues of a debug build keep up.
                    thread::sleep(PACE);
                }
                ended.store(true, Relaxed);
            });
            receive_datagrams(&receiver, lan_mtu, &ended, &format!("{:?}", self.case))
        });
        UdpOutcome { sent: DATAGRAMS, missing: DATAGRAMS - arrived }
    }
}

/// IPv6 and UDP.
const HEADERS: usize = 40 + 8;
const TCP_BYTES: u64 = 4 << 20;
const CHUNK: usize = 64 << 10;
const STALL: Duration = Duration::from_secs(20);
const DATAGRAMS: u64 = 250 * GROUP as u64;
/// Datagrams of one length that are sent together.
const GROUP: usize = 6;
const SHORTEST: usize = 200;
const PACE: Duration = Duration::from_millis(2);
/// The way of a datagram takes less, even by a relay and with lost CPU time.
const SILENCE: Duration = Duration::from_millis(300);

fn send_stream(mut stream: TcpStream, seed: u64) {
    let (mut seeded, mut chunk) = (Seeded::new(seed), vec![0; CHUNK]);
    for _ in 0..TCP_BYTES / CHUNK as u64 {
        seeded.fill(&mut chunk);
        stream.write_all(&chunk).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

fn receive_stream(mut stream: TcpStream, seed: u64, what: &str) {
    let mut seeded = Seeded::new(seed);
    let [mut chunk, mut expected] = [vec![0; CHUNK], vec![0; CHUNK]];
    for number in 0..TCP_BYTES / CHUNK as u64 {
        seeded.fill(&mut expected);
        stream.read_exact(&mut chunk).unwrap_or_else(|error| panic!("{what}: TCP: {error}"));
        assert!(chunk == expected, "{what}: TCP: wrong bytes in chunk {number}");
    }
    assert_eq!(stream.read(&mut chunk).unwrap(), 0, "{what}: more than was sent");
}

/// A datagram: its number, then bytes that follow from it. Most fit a frame; those of
/// every eighth group are fragmented.
fn datagram(number: u64, lan_mtu: usize) -> Vec<u8> {
    let group = number / GROUP as u64;
    let longest = if group % 8 == 7 { 3 * lan_mtu } else { lan_mtu - HEADERS };
    let length = match group % 4 {
        // Where most is at stake.
        0 => longest,
        _ => SHORTEST + Seeded::new(group).next() as usize % (longest - SHORTEST),
    };
    let mut bytes = vec![number as u8; length];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    Seeded::new(number).fill(&mut bytes[8..]);
    bytes
}

/// How many datagrams arrived, each of them once and as it was sent.
fn receive_datagrams(socket: &UdpSocket, lan_mtu: usize, ended: &AtomicBool, what: &str) -> u64 {
    let (mut arrived, mut buffer) = (BTreeSet::new(), vec![0; 65_536]);
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    loop {
        let was_ended = ended.load(Relaxed);
        let length = match socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) if was_ended => return arrived.len() as u64,
            Err(_) => continue,
        };
        let number = u64::from_be_bytes(buffer[..8].try_into().expect("eight bytes"));
        assert!(number < DATAGRAMS, "{what}: UDP: wrong number {number}");
        assert!(arrived.insert(number), "{what}: UDP: {number} came twice");
        let sent = datagram(number, lan_mtu);
        assert!(buffer[..length] == sent, "{what}: UDP: {number} has wrong bytes");
    }
}
