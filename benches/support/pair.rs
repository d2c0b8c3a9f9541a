//! Two workers of two sites with a session between them, all in memory: for the
//! benches, the allocation test and the fuzz targets.

use std::{
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use landbridge::{
    bridge::{
        fdb::{Fdb, FdbConfig, NetworkLimits},
        reflection::ReflectionDetector,
        underlay_guard::UnderlayGuard,
    },
    config,
    node::{DeliverError, Outlet, Worker, WorkerCommand, WorkerSettings},
    offload::{Offload, Segmentation, checksum, headers::Headers, superframe::Task},
    session::{CipherSuite, OpenKey, SealKey},
    time::Instant,
    topology::{PeerIndex, PortIndex, SiteIndex, Topology},
    tunnel::{Path, SessionParameters, SocketRole, TransmitError},
    wire::ethernet::VlanTag,
};

/// The group of both: network 100 whole on port 0, network 200 as VLAN 200 on
/// port 1; network 300 is not at site east, 400 not at site west.
pub(crate) const GROUP: &str = r#"
[group]
name = "pair"
[[site]]
name = "east"
[[site.appliance]]
name = "east-1"
public_key = "GLYlKqB9FaE6MMNlX4ZeG4D5jPRlDJqfIJU2mpvOBXg="
underlay = ["192.0.2.1:51840"]
[[site]]
name = "west"
[[site.appliance]]
name = "west-1"
public_key = "nLxAGzJnbVYF5UMGdcR1ZvNBSPUhqcPi4hQcVLLZb0I="
underlay = ["192.0.2.2:51840"]
[[site]]
name = "north"
[[site.appliance]]
name = "north-1"
public_key = "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM="
underlay = ["[2001:db8::3]:51840"]
[[network]]
id = 100
name = "app"
attach.east = { tap = "app0" }
attach.west = { tap = "app0" }
[[network]]
id = 200
name = "db"
attach.east = { nic = "eth1", vlan = 200 }
attach.west = { nic = "eth1", vlan = 200 }
[[network]]
id = 300
name = "lab"
attach.west = { tap = "lab0" }
attach.north = { tap = "lab0" }
[[network]]
id = 400
name = "dmz"
attach.east = { tap = "dmz0" }
attach.north = { tap = "dmz0" }
"#;

/// The site that begins the session.
pub(crate) const EAST: SiteIndex = SiteIndex(0);
/// The site that answers.
pub(crate) const WEST: SiteIndex = SiteIndex(1);
/// The lane that carries the frames.
pub(crate) const LANE: u8 = 1;
/// The port that takes every frame, of network 100.
pub(crate) const PORT: PortIndex = PortIndex(0);
/// Each side's peer in this session, as the topology counts them.
pub(crate) const PEER: PeerIndex = PeerIndex(0);

/// A site's name for its end of the session.
pub(crate) fn session_index(site: SiteIndex) -> u32 {
    0x100 + u32::from(site.0)
}

/// The key of what `from` sends, and of who opens it.
pub(crate) fn keys(suite: CipherSuite, from: SiteIndex) -> (SealKey, OpenKey) {
    let bytes = [from.0 as u8 + 1; 32];
    (SealKey::new(suite, &mut bytes.clone()), OpenKey::new(suite, &mut bytes.clone()))
}

/// How `site` reaches the other one.
pub(crate) fn path_from(site: SiteIndex) -> Path {
    let (socket, remote) = match site {
        EAST => (SocketRole::Dialer, "192.0.2.2:51840"),
        _ => (SocketRole::Listener, "192.0.2.1:40000"),
    };
    Path { socket, local: None, remote: remote.parse().expect("an address") }
}

/// The group as `site` sees it; parsed once, for a fuzzer asks often.
pub(crate) fn topology(site: SiteIndex) -> Arc<Topology> {
    static VIEWS: [OnceLock<Arc<Topology>>; 2] = [const { OnceLock::new() }; 2];
    let view = || {
        let group = config::parse(GROUP, "group.toml").expect("a valid group file");
        Arc::new(Topology::new(&group, site, 0))
    };
    VIEWS[usize::from(site.0)].get_or_init(view).clone()
}

/// The one worker of `site`, its end of the session installed.
pub(crate) fn worker(site: SiteIndex, suite: CipherSuite) -> Worker {
    let topology = topology(site);
    let limits = NetworkLimits { max_macs: 4096, ageing: Duration::from_secs(300) };
    let networks = vec![limits; topology.networks.len()];
    let config = FdbConfig { networks: &networks, capacity: 4096 };
    let mut worker = Worker::new(WorkerSettings {
        topology,
        fdb: Arc::new(Fdb::new(&config, [1, 2])),
        index: 0,
        workers: 1,
        lanes_max: 2,
        guard: UnderlayGuard::new(&[path_from(EAST).remote, path_from(WEST).remote]),
        reflections: Arc::new(Mutex::new(ReflectionDetector::new([3, 4]))),
    });
    let other = if site == EAST { WEST } else { EAST };
    let parameters = SessionParameters {
        local_index: session_index(site),
        remote_index: session_index(other),
        initiated: site == EAST,
        seal: keys(suite, site).0,
        open: keys(suite, other).1,
        path: (site == EAST).then(|| path_from(site)),
    };
    worker.handle_command(
        Instant::ZERO,
        WorkerCommand::Install { peer: PEER, lane: LANE, parameters },
    );
    worker
}

/// Takes what a worker sends and delivers, into buffers that are used again.
#[derive(Default)]
pub(crate) struct Wire {
    /// Datagrams sent, one after the other.
    pub(crate) sent: Vec<u8>,
    /// Runs in `sent`: their datagrams' size and their length in all.
    pub(crate) runs: Vec<(usize, usize)>,
    /// Larger datagrams are refused; 0 lets all pass.
    pub(crate) datagram_length_max: usize,
    /// Frames delivered, each segment of a superframe as one.
    pub(crate) frames: u64,
    /// How often frames were delivered, superframes as one.
    pub(crate) writes: u64,
    /// Bytes of those.
    pub(crate) bytes: u64,
}

impl Outlet for Wire {
    fn transmit(&mut self, _: &Path, size: usize, datagrams: &[u8]) -> Result<(), TransmitError> {
        let longest = size.min(datagrams.len());
        if self.datagram_length_max != 0 && longest > self.datagram_length_max {
            return Err(TransmitError::TooBig);
        }
        self.sent.extend_from_slice(datagrams);
        self.runs.push((size, datagrams.len()));
        Ok(())
    }

    fn deliver(
        &mut self,
        _: PortIndex,
        _: Option<VlanTag>,
        offload: &Offload,
        frame: &[u8],
    ) -> Result<(), DeliverError> {
        self.frames += segment_count(offload, frame);
        self.writes += 1;
        self.bytes += frame.len() as u64;
        Ok(())
    }
}

impl Wire {
    /// Hands everything sent so far to `receiver`, which answers through `answers`.
    pub(crate) fn carry(
        &mut self,
        now: Instant,
        receiver: &mut Worker,
        to: SiteIndex,
        answers: &mut Self,
    ) {
        let mut rest = &mut self.sent[..];
        for &(size, length) in &self.runs {
            let (run, after) = rest.split_at_mut(length);
            for datagram in run.chunks_mut(size) {
                receiver.handle_datagram(now, path_from(to), datagram, answers);
            }
            rest = after;
        }
        receiver.flush_to_lan(answers);
        self.forget();
    }

    /// Loses everything sent so far.
    pub(crate) fn forget(&mut self) {
        self.sent.clear();
        self.runs.clear();
    }
}

/// Both workers, and what each of them sends.
pub(crate) struct Pair {
    /// The initiator.
    pub(crate) east: Worker,
    /// The responder.
    pub(crate) west: Worker,
    /// What `east` sends.
    pub(crate) from_east: Wire,
    /// What `west` sends.
    pub(crate) from_west: Wire,
    /// Their clock.
    pub(crate) now: Instant,
}

impl Pair {
    /// Two workers that know each other over a path with an MTU of 1500.
    pub(crate) fn new(suite: CipherSuite) -> Self {
        let wire = || Wire { datagram_length_max: 1500 - 28, ..Wire::default() };
        let mut pair = Self {
            east: worker(EAST, suite),
            west: worker(WEST, suite),
            from_east: wire(),
            from_west: wire(),
            now: Instant::ZERO,
        };
        for _ in 0..100 {
            pair.pass(Duration::from_millis(10));
        }
        pair
    }

    /// Lets time pass and the workers answer each other.
    pub(crate) fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.east.handle_timeout(self.now, &mut self.from_east);
        self.west.handle_timeout(self.now, &mut self.from_west);
        self.exchange();
    }

    /// Carries what was sent, both ways.
    pub(crate) fn exchange(&mut self) {
        self.from_east.carry(self.now, &mut self.west, WEST, &mut self.from_west);
        self.from_west.carry(self.now, &mut self.east, EAST, &mut self.from_east);
    }

    /// Sends `frames` as one burst from the LAN of `from` to the other's.
    pub(crate) fn burst(&mut self, from: SiteIndex, offload: Offload, frames: &[Vec<u8>]) {
        self.load(from, offload, frames);
        self.exchange();
    }

    /// The sending half of [`Pair::burst`].
    pub(crate) fn load(&mut self, from: SiteIndex, offload: Offload, frames: &[Vec<u8>]) {
        let (sender, wire) = match from {
            EAST => (&mut self.east, &mut self.from_east),
            _ => (&mut self.west, &mut self.from_west),
        };
        for frame in frames {
            sender.handle_frame(self.now, PORT, None, offload, frame, wire);
        }
        sender.flush(self.now, wire);
    }
}

/// Frames that a frame with this descriptor stands for.
pub(crate) fn segment_count(offload: &Offload, frame: &[u8]) -> u64 {
    match Task::of(offload, frame, frame.len()) {
        Ok(Task::Cut(superframe)) => superframe.segment_count() as u64,
        _ => 1,
    }
}

/// A TCP/IPv4 frame of `length` bytes from a station at `from` to one at the
/// other site, finished. At least 54 bytes.
pub(crate) fn frame(from: SiteIndex, station: u8, length: usize) -> Vec<u8> {
    let mut frame = unfinished(from, station, length);
    checksum::complete(&mut frame).expect("TCP");
    frame
}

/// UDP/IPv4 frames of `length` bytes, of one flow, finished. At least 42 bytes.
pub(crate) fn flow(from: SiteIndex, count: u16, length: usize) -> Vec<Vec<u8>> {
    let number = |id: u16| {
        let mut frame = unfinished(from, 1, length.max(54));
        frame.truncate(length);
        frame[18..20].copy_from_slice(&id.to_be_bytes());
        frame[23] = 17;
        frame[38..40].copy_from_slice(&((length - 34) as u16).to_be_bytes());
        sum_headers(&mut frame);
        checksum::complete(&mut frame).expect("UDP");
        frame
    };
    (0..count).map(number).collect()
}

fn unfinished(from: SiteIndex, station: u8, length: usize) -> Vec<u8> {
    let mut frame = vec![0x5a; length];
    let (own, other) = (from.0 as u8, 1 - from.0 as u8);
    frame[..14].copy_from_slice(&[2, 0, 0, 0, other, station, 2, 0, 0, 0, own, station, 8, 0]);
    frame[14..34].copy_from_slice(&[
        0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, own, station, 10, 0, other, station,
    ]);
    frame[16..18].copy_from_slice(&((length - 14) as u16).to_be_bytes());
    frame[34..54].copy_from_slice(&[
        0x13, 0x89, 0x13, 0x8a, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0,
    ]);
    sum_headers(&mut frame);
    frame
}

/// The IPv4 header's checksum, and the pseudo-header's sum for that of TCP or UDP.
fn sum_headers(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let ip = !checksum::sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&ip.to_be_bytes());
    let headers = Headers::parse(frame).expect("an IPv4 frame");
    let at = headers.l4_offset + headers.l4.checksum_offset().expect("TCP or UDP");
    let pseudo_header = checksum::pseudo_header(frame, &headers);
    frame[at..at + 2].copy_from_slice(&pseudo_header.to_be_bytes());
}

/// The longest TCP superframe, with the descriptor of a kernel that makes it.
pub(crate) fn superframe(from: SiteIndex) -> (Offload, Vec<u8>) {
    let offload =
        Offload { segmentation: Segmentation::Tcp4, segment_size: 1448, ..Offload::CHECKSUM };
    (offload, unfinished(from, 1, 14 + 65_535))
}
