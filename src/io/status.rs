//! Gathers what the management socket answers.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use super::lan::{self, KernelDrops};
use crate::{
    bridge::fdb::{Fdb, Location},
    config::{AttachmentKind, Group},
    manage::model::{
        self, AttachmentState, AttachmentStatus, LaneStatus, MacEntry, MacTable, NetworkStatus,
        PeerState, PeerStatus, Request, Response, Status, Traffic,
    },
    node::{ControlPlane, Counters, PeerReport, PeerStanding, WorkerEvent, WorkerStatistics},
    session::{CipherSuite, PublicKey},
    time::Instant,
    topology::{NetworkIndex, PeerIndex, Topology},
    tunnel::LaneStatistics,
};

/// Everything that a report needs and that does not change its owner.
pub(super) struct Reporter {
    started: Instant,
    group: Group,
    topology: Arc<Topology>,
    public_key: PublicKey,
    local: SocketAddr,
    fdb: Arc<Fdb>,
    workers: Vec<Arc<WorkerStatistics>>,
    /// Where each data lane sends to: peer, lane.
    endpoints: HashMap<(PeerIndex, u8), SocketAddr>,
}

/// Bytes per second over the last interval, of what [`Reporter::totals`] lists.
#[derive(Default)]
pub(super) struct Rates {
    sampled: Option<(Instant, Vec<u64>)>,
    bits_per_second: Vec<u64>,
}

impl Rates {
    pub(super) fn sample(&mut self, now: Instant, totals: &[u64]) {
        if let Some((before, old)) = &self.sampled {
            let nanos = now.saturating_since(*before).as_nanos().max(1);
            self.bits_per_second = totals
                .iter()
                .zip(old)
                .map(|(new, old)| {
                    let bits = u128::from(new.saturating_sub(*old)) * 8 * 1_000_000_000;
                    u64::try_from(bits / nanos).unwrap_or(u64::MAX)
                })
                .collect();
        }
        self.sampled = Some((now, totals.to_vec()));
    }

    fn get(&self, place: usize) -> u64 {
        self.bits_per_second.get(place).copied().unwrap_or(0)
    }
}

impl Reporter {
    pub(super) fn new(
        started: Instant,
        group: Group,
        topology: Arc<Topology>,
        public_key: PublicKey,
        local: SocketAddr,
        fdb: Arc<Fdb>,
        workers: Vec<Arc<WorkerStatistics>>,
    ) -> Self {
        let endpoints = HashMap::new();
        Self { started, group, topology, public_key, local, fdb, workers, endpoints }
    }

    /// Remembers what only events tell.
    pub(super) fn note(&mut self, event: &WorkerEvent) {
        if let WorkerEvent::PathChanged { peer, lane, path } = *event {
            match path {
                Some(path) => self.endpoints.insert((peer, lane), path.remote),
                None => self.endpoints.remove(&(peer, lane)),
            };
        }
    }

    /// Byte counters whose rates are shown: two per network, then two per peer.
    pub(super) fn totals(&self, control: &ControlPlane) -> Vec<u64> {
        let networks = (0..self.group.networks.len()).flat_map(|index| {
            let (rx, tx) = self.network_traffic(index);
            [rx.bytes, tx.bytes]
        });
        let peers = control.report().into_iter().flat_map(|report| {
            let (rx, tx) = self.peer_traffic(&report);
            [rx.bytes, tx.bytes]
        });
        networks.chain(peers).collect()
    }

    /// One line for the service manager.
    pub(super) fn summary(&self, control: &ControlPlane) -> String {
        let reports = control.report();
        let up = reports.iter().filter(|report| report.standing == PeerStanding::Up).count();
        format!("{up} of {} peers up", reports.len())
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn answer(
        &self,
        now: Instant,
        request: &Request,
        control: &ControlPlane,
        attachments: &[lan::AttachmentStatus],
        rates: &Rates,
        kernel: &[KernelDrops],
        sockets: &[(String, u64)],
    ) -> Response {
        match request {
            Request::Status => {
                Response::Status(Box::new(self.status(now, control, attachments, rates)))
            }
            Request::Macs { network } => self.macs(now, network.as_deref()),
            Request::Counters => Response::Counters(self.counters(control, kernel, sockets)),
        }
    }

    fn status(
        &self,
        now: Instant,
        control: &ControlPlane,
        attachments: &[lan::AttachmentStatus],
        rates: &Rates,
    ) -> Status {
        let networks: Vec<NetworkStatus> = (0..self.group.networks.len())
            .map(|index| self.network(now, index, attachments, rates))
            .collect();
        let rates_of_peers = 2 * networks.len();
        let peers: Vec<PeerStatus> = control
            .report()
            .iter()
            .enumerate()
            .map(|(index, report)| {
                let mut status = self.peer(now, report);
                status.rx.rate_bps = rates.get(rates_of_peers + 2 * index);
                status.tx.rate_bps = rates.get(rates_of_peers + 2 * index + 1);
                status
            })
            .collect();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            group: self.group.name.clone(),
            group_digest: self.group.digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            site: self.topology.sites[usize::from(self.topology.site.0)].clone(),
            appliance: self.topology.appliance.clone(),
            public_key: self.public_key.to_string(),
            listen: self.local.to_string(),
            uptime_s: now.saturating_since(self.started).as_secs(),
            warnings: self.warnings(&networks, &peers, attachments),
            networks,
            peers,
        }
    }

    fn warnings(
        &self,
        networks: &[NetworkStatus],
        peers: &[PeerStatus],
        attachments: &[lan::AttachmentStatus],
    ) -> Vec<String> {
        let mut warnings = Vec::new();
        for peer in peers.iter().filter(|peer| peer.group_digest_differs) {
            warnings.push(format!(
                "the group file of {} differs from this one: copy the same file to both and \
                 restart them one after the other",
                peer.name
            ));
        }
        for network in networks.iter().filter(|network| network.max_macs > 0) {
            if network.macs_local + network.macs_remote >= network.max_macs {
                warnings.push(format!(
                    "network {} has as many MACs as it may have ({}): frames for others are \
                     flooded; raise max_macs",
                    network.name, network.max_macs
                ));
            }
        }
        let total = |counter| -> u64 {
            self.workers.iter().map(|worker| worker.counters.get(counter)).sum()
        };
        if total(crate::node::Counter::LanReflected) > 0 {
            warnings.push(
                "own frames have come back from the LAN: see `landbridge counters` and the log"
                    .to_owned(),
            );
        }
        if total(crate::node::Counter::LanOwnUnderlay) > 0 {
            warnings.push(
                "own underlay packets have come from the LAN: the underlay must not run over the \
                 stretched network"
                    .to_owned(),
            );
        }
        for attachment in attachments {
            let notes = attachment.notes.iter().filter(|note| !is_link_local_note(note));
            warnings.extend(notes.map(|note| format!("{}: {note}", attachment.interface)));
        }
        warnings
    }

    fn network(
        &self,
        now: Instant,
        index: usize,
        attachments: &[lan::AttachmentStatus],
        rates: &Rates,
    ) -> NetworkStatus {
        let network = &self.group.networks[index];
        let entries = self.fdb.entries(now, NetworkIndex(index as u16));
        let local = entries.iter().filter(|entry| entry.location == Location::Local).count();
        let (mut rx, mut tx) = self.network_traffic(index);
        rx.rate_bps = rates.get(2 * index);
        tx.rate_bps = rates.get(2 * index + 1);
        NetworkStatus {
            id: network.id.0,
            name: network.name.clone(),
            attachment: self.attachment(index, attachments),
            macs_local: local as u32,
            macs_remote: (entries.len() - local) as u32,
            max_macs: network.max_macs,
            rx,
            tx,
        }
    }

    fn attachment(
        &self,
        index: usize,
        attachments: &[lan::AttachmentStatus],
    ) -> Option<AttachmentStatus> {
        let place = self.topology.networks[index].attachment?;
        let configured = self.group.networks[index].attachment(self.topology.site)?;
        let found = attachments.iter().find(|status| status.port == place.port)?;
        let (kind, tap) = match &configured.kind {
            AttachmentKind::Bridge { tap, .. } => {
                (model::AttachmentKind::Bridge, Some(tap.as_str().to_owned()))
            }
            AttachmentKind::Tap { .. } => (model::AttachmentKind::Tap, None),
            AttachmentKind::Nic { .. } => (model::AttachmentKind::Nic, None),
        };
        Some(AttachmentStatus {
            kind,
            interface: configured.kind.interface().as_str().to_owned(),
            tap,
            vlan: place.vlan.map(|tag| tag.id()),
            state: match found.state {
                lan::AttachmentState::Waiting => AttachmentState::Waiting,
                lan::AttachmentState::Settling => AttachmentState::Down,
                lan::AttachmentState::Up => AttachmentState::Up,
                lan::AttachmentState::NoCarrier => AttachmentState::NoCarrier,
                lan::AttachmentState::Failed => AttachmentState::Failed,
            },
            reason: found.reason.as_ref().map(ToString::to_string).unwrap_or_default(),
            mtu: found.mtu.unwrap_or(0),
            offload: found.offload,
            queues: found.queues as u16,
            link_local_note: found
                .notes
                .iter()
                .find(|note| is_link_local_note(note))
                .cloned()
                .unwrap_or_default(),
        })
    }

    fn network_traffic(&self, index: usize) -> (Traffic, Traffic) {
        let (mut rx, mut tx) = (Traffic::default(), Traffic::default());
        for worker in &self.workers {
            let network = &worker.networks[index];
            rx.packets += network.from_lan_frames.load(Relaxed);
            rx.bytes += network.from_lan_bytes.load(Relaxed);
            tx.packets += network.to_lan_frames.load(Relaxed);
            tx.bytes += network.to_lan_bytes.load(Relaxed);
        }
        (rx, tx)
    }

    fn lanes(&self, peer: PeerIndex) -> impl Iterator<Item = (u8, &LaneStatistics)> {
        self.workers
            .iter()
            .flat_map(|worker| &worker.lanes)
            .filter(move |(owner, _, _)| *owner == peer)
            .map(|(_, lane, statistics)| (*lane, &**statistics))
    }

    fn peer_traffic(&self, report: &PeerReport) -> (Traffic, Traffic) {
        let control = traffic(&report.statistics);
        self.lanes(report.peer)
            .map(|(_, statistics)| traffic(statistics))
            .fold(control, |(rx, tx), (lane_rx, lane_tx)| (sum(rx, lane_rx), sum(tx, lane_tx)))
    }

    fn peer(&self, now: Instant, report: &PeerReport) -> PeerStatus {
        let peer = self.topology.peer(report.peer);
        let (rx, tx) = self.peer_traffic(report);
        let (state, reason) = match &report.standing {
            PeerStanding::Connecting => (PeerState::Connecting, String::new()),
            PeerStanding::Up => (PeerState::Up, String::new()),
            PeerStanding::Down(reason) => (PeerState::Down, reason.clone()),
            PeerStanding::Incompatible(reason) => (PeerState::Incompatible, reason.clone()),
        };
        let agreed_lanes = report.lanes.unwrap_or(0);
        let mut lanes =
            vec![lane_status(0, report.path.map(|path| path.remote), &report.statistics)];
        let mut data: Vec<_> = self.lanes(report.peer).collect();
        data.sort_by_key(|(lane, _)| *lane);
        for (lane, statistics) in data.into_iter().filter(|(lane, _)| *lane <= agreed_lanes) {
            let endpoint = self.endpoints.get(&(report.peer, lane)).copied();
            lanes.push(lane_status(lane, endpoint, statistics));
        }
        let path_mtu =
            lanes.iter().map(|lane| lane.path_mtu).filter(|&mtu| mtu > 0).min().unwrap_or(0);
        let round_trip = report.statistics.round_trip_us.load(Relaxed);
        PeerStatus {
            name: peer.name.clone(),
            site: self.topology.sites[usize::from(peer.site.0)].clone(),
            public_key: peer.public_key.to_string(),
            state,
            reason,
            software: report.software.clone(),
            protocol_version: report.version.unwrap_or(0),
            group_digest_differs: report.group_differs,
            endpoint: report.path.map(|path| path.remote.to_string()),
            last_handshake_s: report
                .established
                .map(|established| now.saturating_since(established).as_secs()),
            rtt_us: (round_trip > 0).then_some(u64::from(round_trip)),
            path_mtu,
            cipher: report.cipher.map(cipher_name).unwrap_or_default().to_owned(),
            lanes,
            rx,
            tx,
        }
    }

    fn macs(&self, now: Instant, wanted: Option<&str>) -> Response {
        let chosen: Vec<usize> = (0..self.group.networks.len())
            .filter(|&index| {
                let network = &self.group.networks[index];
                wanted.is_none_or(|wanted| {
                    wanted == network.name || wanted == network.id.0.to_string()
                })
            })
            .collect();
        if let (Some(wanted), true) = (wanted, chosen.is_empty()) {
            let names: Vec<&str> =
                self.group.networks.iter().map(|network| network.name.as_str()).collect();
            return Response::Error(format!(
                "no network is called {wanted}; there are: {}",
                names.join(", ")
            ));
        }
        let entries = chosen.into_iter().flat_map(|index| {
            let name = &self.group.networks[index].name;
            self.fdb.entries(now, NetworkIndex(index as u16)).into_iter().map(|entry| MacEntry {
                network: name.clone(),
                mac: entry.mac.to_string(),
                location: match entry.location {
                    Location::Local => model::Location::Local,
                    Location::Site(site) => {
                        model::Location::Site(self.topology.sites[usize::from(site.0)].clone())
                    }
                },
                age_s: entry.age.as_secs(),
                moves: u32::from(entry.moves),
            })
        });
        Response::Macs(MacTable::collect(entries))
    }

    fn counters(
        &self,
        control: &ControlPlane,
        kernel: &[KernelDrops],
        sockets: &[(String, u64)],
    ) -> Vec<model::Counter> {
        let mut all = listed("control", &control.counters());
        for (index, worker) in self.workers.iter().enumerate() {
            all.extend(listed(&format!("worker {index}"), &worker.counters));
        }
        let kernel_counter = |scope: String, name: &str, value, help: &str| model::Counter {
            scope,
            name: name.to_owned(),
            value,
            help: help.to_owned(),
        };
        for (socket, dropped) in sockets {
            all.push(kernel_counter(
                format!("kernel {socket}"),
                "udp_receive_dropped",
                *dropped,
                "datagrams that the kernel dropped because the socket's buffer was full \
                 (SO_RXQ_OVFL): the data thread is too slow",
            ));
        }
        for drops in kernel {
            let port = &self.topology.ports[usize::from(drops.port.0)];
            let scope = format!("kernel {}", port.interface);
            all.push(kernel_counter(
                scope.clone(),
                "tap_tx_dropped",
                drops.tap_transmit,
                "frames that the kernel dropped because the TAP's queue was full: the data thread \
                 is too slow",
            ));
            all.push(kernel_counter(
                scope,
                "packet_dropped",
                drops.packet_socket,
                "frames that the kernel dropped because the packet socket's ring or buffer was full \
                 (PACKET_STATISTICS): the data thread is too slow; or because it could not describe \
                 a superframe: see the log",
            ));
        }
        all
    }
}

/// Shown with the attachment: it is so on every bridge, and nothing to be acted on.
fn is_link_local_note(note: &str) -> bool {
    note.contains("01:80:c2")
}

fn listed(scope: &str, counters: &Counters) -> Vec<model::Counter> {
    let counter = |(counter, value): (crate::node::Counter, u64)| model::Counter {
        scope: scope.to_owned(),
        name: counter.name().to_owned(),
        value,
        help: counter.help().trim().to_owned(),
    };
    counters.read().into_iter().map(counter).collect()
}

fn cipher_name(cipher: CipherSuite) -> &'static str {
    match cipher {
        CipherSuite::Aes256Gcm => "aes-256-gcm",
        CipherSuite::ChaCha20Poly1305 => "chacha20-poly1305",
    }
}

fn lane_status(lane: u8, endpoint: Option<SocketAddr>, statistics: &LaneStatistics) -> LaneStatus {
    let (rx, tx) = traffic(statistics);
    LaneStatus {
        lane,
        endpoint: endpoint.map(|endpoint| endpoint.to_string()),
        path_mtu: statistics.path_mtu.load(Relaxed) as u16,
        rx,
        tx,
    }
}

fn traffic(statistics: &LaneStatistics) -> (Traffic, Traffic) {
    let load = |packets: &std::sync::atomic::AtomicU64, bytes: &std::sync::atomic::AtomicU64| {
        Traffic { packets: packets.load(Relaxed), bytes: bytes.load(Relaxed), rate_bps: 0 }
    };
    (
        load(&statistics.received_datagrams, &statistics.received_bytes),
        load(&statistics.sent_datagrams, &statistics.sent_bytes),
    )
}

fn sum(a: Traffic, b: Traffic) -> Traffic {
    Traffic { packets: a.packets + b.packets, bytes: a.bytes + b.bytes, rate_bps: 0 }
}
