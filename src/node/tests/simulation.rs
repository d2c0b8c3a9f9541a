//! Whole nodes, joined by a network that loses, doubles, delays and reorders
//! datagrams as a seed says: same seed, same trace.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::{
    bridge::{
        fdb::{Fdb, FdbConfig, NetworkLimits},
        reflection::ReflectionDetector,
        underlay_guard::UnderlayGuard,
    },
    config,
    node::{
        ControlEvent, ControlOutlet, ControlPlane, ControlSettings, Counter, DeliverError, Outlet,
        PeerReport, PeerStanding, Worker, WorkerCommand, WorkerSettings,
    },
    offload::Offload,
    session::{
        CipherSet, Hello, Identity, LaneCount, PrivateKey, SoftwareVersion, VersionRange,
        random::{SeededRandom, draw},
    },
    time::Instant,
    topology::{PeerIndex, PortIndex, SiteIndex, Topology},
    tunnel::{Path, SocketRole, TransmitError},
    wire::{
        datagram::LANE_OFFSET,
        ethernet::{MacAddr, VlanTag},
    },
};

pub(super) const APP: PortIndex = PortIndex(0);
pub(super) const DB: PortIndex = PortIndex(1);
pub(super) const LISTENER_PORT: u16 = 51840;
const LANES_MAX: u8 = 16;
const IP_UDP_LENGTH: usize = 28;
/// Steps at one moment of virtual time: more mean that somebody spins.
const STEPS_AT_ONCE_MAX: usize = 5_000;

/// What makes a node.
#[derive(Clone)]
pub(super) struct NodeSettings {
    pub(super) group: String,
    pub(super) workers: u8,
    pub(super) versions: VersionRange,
    pub(super) rekey_after: Duration,
    /// What the node's clock shows when the world begins.
    pub(super) clock_start: Instant,
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self {
            group: group_file(2),
            workers: 2,
            versions: VersionRange::LOCAL,
            rekey_after: Duration::from_secs(120),
            clock_start: Instant::ZERO,
        }
    }
}

/// What the network does to every datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    pub(super) loss_percent: u8,
    pub(super) duplication_percent: u8,
    pub(super) delay: Duration,
    pub(super) jitter: Duration,
    /// Bigger packets vanish, bytes with IP header.
    pub(super) path_mtu: usize,
}

impl Default for Weather {
    fn default() -> Self {
        Self {
            loss_percent: 0,
            duplication_percent: 0,
            delay: Duration::from_millis(5),
            jitter: Duration::ZERO,
            path_mtu: 1500,
        }
    }
}

/// A datagram on its way, with the addresses that the underlay sees.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Datagram {
    at: Duration,
    sequence: u64,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

/// A frame that reached a LAN.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Delivered {
    pub(super) port: PortIndex,
    pub(super) worker: u8,
    pub(super) bytes: Vec<u8>,
}

/// An address translator in front of a node: nobody outside reaches a port of
/// it that has not sent to that host before.
#[derive(Default)]
struct Nat {
    address: Option<IpAddr>,
    next_port: u16,
    /// Inner port → outer port.
    ports: BTreeMap<u16, u16>,
    contacted: HashSet<(u16, IpAddr)>,
}

pub(super) struct Node {
    pub(super) control: ControlPlane,
    pub(super) workers: Vec<Worker>,
    pub(super) settings: NodeSettings,
    pub(super) frames: Vec<Delivered>,
    pub(super) events: Vec<ControlEvent>,
    pub(super) is_running: bool,
    /// MTU of the node's own interface: bigger packets are refused.
    pub(super) link_mtu: usize,
    address: IpAddr,
    nat: Nat,
    /// Dialers get other ports at each start.
    dialer_base: u16,
}

pub(super) struct World {
    pub(super) now: Duration,
    pub(super) nodes: Vec<Node>,
    pub(super) weather: Weather,
    /// Directed links that carry nothing.
    pub(super) cuts: HashSet<(usize, usize)>,
    /// All that was sent, where somebody listens.
    pub(super) tap: Option<Vec<Datagram>>,
    in_flight: BinaryHeap<Reverse<Datagram>>,
    sequence: u64,
    random: SeededRandom,
    trace: DefaultHasher,
}

/// A group of `sites` with one appliance each; "app" is attached everywhere,
/// "db" at the first two.
pub(super) fn group_file(sites: usize) -> String {
    let mut text = "[group]\nname = \"simulated\"\n".to_owned();
    for site in 0..sites {
        text += &format!(
            "[[site]]\nname = \"s{site}\"\n[[site.appliance]]\nname = \"s{site}-1\"\n\
             public_key = \"{}\"\nunderlay = [\"{}:{LISTENER_PORT}\"]\n",
            private_key(site).public(),
            address(site),
        );
    }
    text += "[[network]]\nid = 100\nname = \"app\"\n";
    for site in 0..sites {
        text += &format!("attach.s{site} = {{ tap = \"app\" }}\n");
    }
    text += "[[network]]\nid = 200\nname = \"db\"\n";
    text + "attach.s0 = { tap = \"db\" }\nattach.s1 = { tap = \"db\" }\n"
}

pub(super) fn private_key(site: usize) -> PrivateKey {
    PrivateKey::generate(&mut SeededRandom(0x5eed_0000 + site as u64))
}

pub(super) fn address(site: usize) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, site as u8 + 1).into()
}

/// A station of a site's LAN.
pub(super) fn station(site: usize) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, site as u8 + 1])
}

/// A frame that can be told from all others by `number`.
pub(super) fn frame(from: MacAddr, to: MacAddr, number: u64, length: usize) -> Vec<u8> {
    let mut bytes = [&to.0[..], &from.0, &[0x88, 0xb5], &number.to_be_bytes()].concat();
    let fill = (bytes.len()..length.max(bytes.len()))
        .map(|at| (at as u64).wrapping_mul(31).wrapping_add(number) as u8);
    bytes.extend(fill.collect::<Vec<u8>>());
    bytes
}

/// The number of a frame.
pub(super) fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[14..22].try_into().unwrap())
}

impl World {
    pub(super) fn new(seed: u64, settings: Vec<NodeSettings>) -> Self {
        let mut random = SeededRandom(seed);
        let nodes = settings
            .into_iter()
            .enumerate()
            .map(|(site, settings)| Node::new(site, settings, Duration::ZERO, 0, &mut random))
            .collect();
        Self {
            now: Duration::ZERO,
            nodes,
            weather: Weather::default(),
            cuts: HashSet::new(),
            tap: None,
            in_flight: BinaryHeap::new(),
            sequence: 0,
            random,
            trace: DefaultHasher::new(),
        }
    }

    /// Two nodes with these settings.
    pub(super) fn pair(seed: u64, settings: NodeSettings) -> Self {
        Self::new(seed, vec![settings.clone(), settings])
    }

    /// A digest of every datagram sent so far.
    pub(super) fn trace(&self) -> u64 {
        self.trace.finish()
    }

    pub(super) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        let (mut moment, mut steps) = (self.now, 0);
        while self.step(until) {
            steps = if self.now == moment { steps + 1 } else { 0 };
            moment = self.now;
            assert!(steps < STEPS_AT_ONCE_MAX, "somebody spins at {moment:?}");
        }
        self.now = until;
    }

    /// Runs until `done`, for `limit` at most; returns how long it took.
    pub(super) fn run_until(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> Option<Duration> {
        let start = self.now;
        while !done(self) {
            if self.now - start >= limit {
                return None;
            }
            self.run(Duration::from_millis(5));
        }
        Some(self.now - start)
    }

    pub(super) fn clock(&self, node: usize) -> Instant {
        self.nodes[node].settings.clock_start + self.now
    }

    pub(super) fn report(&self, node: usize, peer: u16) -> PeerReport {
        self.nodes[node].control.report().swap_remove(usize::from(peer))
    }

    pub(super) fn is_up(&self, node: usize) -> bool {
        self.nodes[node].control.report().iter().all(|peer| peer.standing == PeerStanding::Up)
    }

    pub(super) fn all_up(&self) -> bool {
        (0..self.nodes.len()).all(|node| self.is_up(node))
    }

    /// Sum over the node's control plane and workers.
    pub(super) fn count(&self, node: usize, counter: Counter) -> u64 {
        let node = &self.nodes[node];
        let workers = node.workers.iter().map(|worker| worker.statistics().counters.get(counter));
        node.control.counters().get(counter) + workers.sum::<u64>()
    }

    /// A burst of frames from the LAN of `node`, read by one worker.
    pub(super) fn send(&mut self, node: usize, worker: u8, port: PortIndex, frames: &[Vec<u8>]) {
        let now = self.clock(node);
        let sent = self.nodes[node].drive_worker(now, worker, |worker, wire| {
            for frame in frames {
                worker.handle_frame(now, port, None, Offload::default(), frame, wire);
            }
            worker.flush(now, wire);
        });
        self.carry(node, sent);
    }

    /// A datagram arrives at `node` now, whoever sent it.
    pub(super) fn inject(&mut self, node: usize, from: SocketAddr, port: u16, bytes: &[u8]) {
        let now = self.clock(node);
        let sent = self.nodes[node].receive(now, from, port, bytes.to_vec());
        self.carry(node, sent);
    }

    /// The node's process dies; another one starts at once.
    pub(super) fn restart(&mut self, site: usize) {
        let old = &self.nodes[site];
        let (settings, dialer_base) = (old.settings.clone(), old.dialer_base + 100);
        let nat = std::mem::take(&mut self.nodes[site].nat);
        let link_mtu = self.nodes[site].link_mtu;
        self.nodes[site] = Node::new(site, settings, self.now, dialer_base, &mut self.random);
        self.nodes[site].nat = nat;
        self.nodes[site].link_mtu = link_mtu;
    }

    /// The node ends in good order; its farewells are on their way.
    pub(super) fn shut_down(&mut self, node: usize) {
        let now = self.clock(node);
        let sent = self.nodes[node].drive_control(now, |control, wire| control.shut_down(wire));
        self.nodes[node].is_running = false;
        self.carry(node, sent);
    }

    /// The node is behind a translator from now on, or its translator forgets
    /// everything and gives out other ports, at `outer`.
    pub(super) fn translate(&mut self, node: usize, outer: IpAddr) {
        let nat = &mut self.nodes[node].nat;
        nat.address = Some(outer);
        nat.next_port += 1000;
        nat.ports.clear();
        nat.contacted.clear();
    }

    /// Does the next thing that is due by `until`, if any.
    fn step(&mut self, until: Duration) -> bool {
        let timers = self.nodes.iter().enumerate().filter(|(_, node)| node.is_running);
        let timer = timers.filter_map(|(index, node)| Some((node.due_at()?, index))).min();
        let timer = timer.map(|(at, index)| (at.max(self.now), index));
        let arrival = self.in_flight.peek().map(|Reverse(datagram)| datagram.at);
        if let Some(at) = arrival.filter(|&at| at <= until)
            && timer.is_none_or(|(due, _)| at <= due)
        {
            self.now = at;
            if let Some(Reverse(datagram)) = self.in_flight.pop() {
                self.arrive(datagram);
            }
            return true;
        }
        let Some((at, index)) = timer.filter(|(at, _)| *at <= until) else { return false };
        self.now = at;
        let now = self.clock(index);
        let sent = self.nodes[index].handle_timeout(now);
        self.carry(index, sent);
        true
    }

    fn arrive(&mut self, datagram: Datagram) {
        let Datagram { from, to, bytes, .. } = datagram;
        let Some(index) = self.owner(to.ip()) else { return };
        if let Some(port) = self.nodes[index].nat.inner_port(from, to) {
            self.inject(index, from, port, &bytes);
        }
    }

    fn owner(&self, address: IpAddr) -> Option<usize> {
        self.nodes.iter().position(|node| node.outer_address() == address)
    }

    /// Sends what `node` put onto its wire through the weather.
    fn carry(&mut self, node: usize, sent: Vec<Sent>) {
        for Sent { port, to, bytes } in sent {
            let from = SocketAddr::new(
                self.nodes[node].outer_address(),
                self.nodes[node].nat.outer_port(port, to.ip()),
            );
            (self.now, from, to, &bytes).hash(&mut self.trace);
            let mut datagram = Datagram { at: self.now, sequence: 0, from, to, bytes };
            if let Some(tap) = &mut self.tap {
                tap.push(datagram.clone());
            }
            let is_cut = self.owner(to.ip()).is_none_or(|to| self.cuts.contains(&(node, to)));
            if is_cut || datagram.bytes.len() + IP_UDP_LENGTH > self.weather.path_mtu {
                continue;
            }
            let copies = 1 + usize::from(self.chance(self.weather.duplication_percent));
            for _ in 0..copies {
                if self.chance(self.weather.loss_percent) {
                    continue;
                }
                self.sequence += 1;
                datagram.sequence = self.sequence;
                let jitter = self.weather.jitter * u32::from(self.byte()) / 255;
                datagram.at = self.now + self.weather.delay + jitter;
                self.in_flight.push(Reverse(datagram.clone()));
            }
        }
    }

    pub(super) fn byte(&mut self) -> u8 {
        let [byte] = draw(&mut self.random);
        byte
    }

    pub(super) fn chance(&mut self, percent: u8) -> bool {
        let number = u16::from_le_bytes(draw(&mut self.random));
        number % 100 < u16::from(percent)
    }
}

impl Node {
    fn new(
        site: usize,
        settings: NodeSettings,
        started: Duration,
        dialer_base: u16,
        random: &mut SeededRandom,
    ) -> Self {
        let group = config::parse(&settings.group, "group.toml").expect("a valid group file");
        let topology = Arc::new(Topology::new(&group, SiteIndex(site as u16), 0));
        let limits: Vec<NetworkLimits> = group
            .networks
            .iter()
            .map(|network| NetworkLimits { max_macs: network.max_macs, ageing: network.ageing })
            .collect();
        let fdb = Arc::new(Fdb::new(&FdbConfig { networks: &limits, capacity: 4096 }, [1, 2]));
        let endpoints: Vec<SocketAddr> =
            group.appliances().flat_map(|(_, _, appliance)| appliance.underlay.clone()).collect();
        let guard = UnderlayGuard::new(&endpoints);
        let workers = (0..settings.workers)
            .map(|index| {
                Worker::new(WorkerSettings {
                    topology: topology.clone(),
                    fdb: fdb.clone(),
                    index,
                    workers: settings.workers,
                    lanes_max: LANES_MAX,
                    guard: guard.clone(),
                    reflections: Arc::new(Mutex::new(ReflectionDetector::new([3, 4]))),
                })
            })
            .collect();
        let control = ControlPlane::new(
            settings.clock_start + started,
            ControlSettings {
                topology,
                identity: Identity { private: private_key(site), preshared: None },
                hello: Hello {
                    versions: settings.versions,
                    capabilities: 0,
                    lanes: LaneCount::new(settings.workers).expect("1 to 64"),
                    ciphers: CipherSet::for_hardware(true),
                    group_digest: group.digest,
                    software: SoftwareVersion::lossy(b"simulated"),
                    startup_id: u64::from_le_bytes(draw(random)),
                },
                workers: settings.workers,
                lanes_max: LANES_MAX,
                rekey_after: settings.rekey_after,
                random: Box::new(SeededRandom(u64::from_le_bytes(draw(random)))),
            },
        );
        Self {
            control,
            workers,
            settings,
            frames: Vec::new(),
            events: Vec::new(),
            is_running: true,
            link_mtu: 9000,
            address: address(site),
            nat: Nat::default(),
            dialer_base: dialer_base.max(40_000),
        }
    }

    pub(super) fn outer_address(&self) -> IpAddr {
        self.nat.address.unwrap_or(self.address)
    }

    /// The local port of the control lane's dialer.
    pub(super) fn control_dialer(&self) -> u16 {
        self.dialer_base
    }

    /// When the node wants to be woken, on the world's clock.
    fn due_at(&self) -> Option<Duration> {
        let workers = self.workers.iter().filter_map(Worker::poll_timeout);
        let due = workers.chain(self.control.poll_timeout()).min()?;
        Some(due.saturating_since(self.settings.clock_start))
    }

    fn handle_timeout(&mut self, now: Instant) -> Vec<Sent> {
        let mut sent = Vec::new();
        if self.control.poll_timeout().is_some_and(|at| at <= now) {
            sent.extend(self.drive_control(now, |control, wire| control.handle_timeout(now, wire)));
            assert!(self.control.poll_timeout().is_none_or(|at| at > now), "control plane spins");
        }
        for index in 0..self.workers.len() {
            if self.workers[index].poll_timeout().is_some_and(|at| at <= now) {
                sent.extend(self.drive_worker(now, index as u8, |worker, wire| {
                    worker.handle_timeout(now, wire);
                }));
                let due = self.workers[index].poll_timeout();
                assert!(due.is_none_or(|at| at > now), "worker {index} spins");
            }
        }
        sent
    }

    fn receive(
        &mut self,
        now: Instant,
        from: SocketAddr,
        port: u16,
        mut bytes: Vec<u8>,
    ) -> Vec<Sent> {
        let group = if port == LISTENER_PORT {
            match bytes.get(LANE_OFFSET) {
                Some(&lane @ 1..) => 1 + u16::from(lane - 1) % u16::from(self.settings.workers),
                Some(0) | None => 0,
            }
        } else {
            port.wrapping_sub(self.dialer_base)
        };
        let socket = if port == LISTENER_PORT { SocketRole::Listener } else { SocketRole::Dialer };
        let path = Path { socket, local: Some(self.address), remote: from };
        match group {
            _ if !self.is_running => Vec::new(),
            0 => self.drive_control(now, |control, wire| {
                control.handle_datagram(now, path, &mut bytes, wire);
            }),
            worker if worker <= u16::from(self.settings.workers) => {
                self.drive_worker(now, worker as u8 - 1, |worker, wire| {
                    worker.handle_datagram(now, path, &mut bytes, wire);
                    worker.flush_to_lan(wire);
                })
            }
            _ => Vec::new(),
        }
    }

    fn wire(&self, group: u16) -> Wire {
        Wire {
            address: self.address,
            dialer: self.dialer_base + group,
            link_mtu: self.link_mtu,
            sent: Vec::new(),
            frames: Vec::new(),
            commands: Vec::new(),
            events: Vec::new(),
        }
    }

    fn drive_control(
        &mut self,
        now: Instant,
        act: impl FnOnce(&mut ControlPlane, &mut Wire),
    ) -> Vec<Sent> {
        let mut wire = self.wire(0);
        act(&mut self.control, &mut wire);
        self.events.append(&mut wire.events);
        for (worker, command) in wire.commands {
            self.workers[usize::from(worker)].handle_command(now, command);
        }
        wire.sent
    }

    pub(super) fn drive_worker(
        &mut self,
        now: Instant,
        index: u8,
        act: impl FnOnce(&mut Worker, &mut Wire),
    ) -> Vec<Sent> {
        let mut wire = self.wire(1 + u16::from(index));
        let worker = &mut self.workers[usize::from(index)];
        act(worker, &mut wire);
        let frames = wire.frames.into_iter();
        self.frames.extend(frames.map(|(port, bytes)| Delivered { port, worker: index, bytes }));
        let mut sent = wire.sent;
        while let Some(event) = self.workers[usize::from(index)].poll_event() {
            sent.extend(self.drive_control(now, |control, wire| {
                control.handle_worker_event(event, wire);
            }));
        }
        sent
    }
}

impl Nat {
    fn outer_port(&mut self, inner: u16, remote: IpAddr) -> u16 {
        if self.address.is_none() {
            return inner;
        }
        self.contacted.insert((inner, remote));
        let next_port = &mut self.next_port;
        *self.ports.entry(inner).or_insert_with(|| {
            *next_port += 1;
            *next_port
        })
    }

    fn inner_port(&self, from: SocketAddr, to: SocketAddr) -> Option<u16> {
        if self.address.is_none() {
            return Some(to.port());
        }
        let (inner, _) = self.ports.iter().find(|(_, outer)| **outer == to.port())?;
        self.contacted.contains(&(*inner, from.ip())).then_some(*inner)
    }
}

/// A datagram that left a node, from one of its ports.
pub(super) struct Sent {
    port: u16,
    to: SocketAddr,
    bytes: Vec<u8>,
}

/// The way out of a node's parts.
pub(super) struct Wire {
    address: IpAddr,
    dialer: u16,
    link_mtu: usize,
    sent: Vec<Sent>,
    frames: Vec<(PortIndex, Vec<u8>)>,
    commands: Vec<(u8, WorkerCommand)>,
    events: Vec<ControlEvent>,
}

impl Outlet for Wire {
    fn transmit(
        &mut self,
        path: &Path,
        size: usize,
        datagrams: &[u8],
    ) -> Result<(), TransmitError> {
        if path.local.is_some_and(|local| local != self.address) {
            return Err(TransmitError::NoSource);
        }
        if size.min(datagrams.len()) + IP_UDP_LENGTH > self.link_mtu {
            return Err(TransmitError::TooBig);
        }
        let port = match path.socket {
            SocketRole::Listener => LISTENER_PORT,
            SocketRole::Dialer => self.dialer,
        };
        let to = path.remote;
        let datagrams = datagrams.chunks(size);
        self.sent.extend(datagrams.map(|bytes| Sent { port, to, bytes: bytes.to_vec() }));
        Ok(())
    }

    fn deliver(
        &mut self,
        port: PortIndex,
        _: Option<VlanTag>,
        _: &Offload,
        frame: &[u8],
    ) -> Result<(), DeliverError> {
        self.frames.push((port, frame.to_vec()));
        Ok(())
    }
}

impl ControlOutlet for Wire {
    fn transmit(&mut self, path: &Path, datagram: &[u8]) -> Result<(), TransmitError> {
        Outlet::transmit(self, path, datagram.len(), datagram)
    }

    fn command(&mut self, worker: u8, command: WorkerCommand) {
        self.commands.push((worker, command));
    }

    fn event(&mut self, event: ControlEvent) {
        self.events.push(event);
    }
}

/// The one peer of a node in a pair.
pub(super) const PEER: PeerIndex = PeerIndex(0);
