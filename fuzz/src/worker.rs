use std::{sync::Arc, time::Duration};

use landbridge::{
    node::{DeliverError, Outlet, Worker, WorkerCommand},
    offload::{Offload, virtio},
    session::{CipherSuite, SealKey},
    time::Instant,
    topology::{NetworkId, PortIndex, Topology},
    tunnel::{Path, SessionParameters, TransmitError},
    wire::{
        datagram::{
            DATAGRAM_LENGTH_MAX, HEADER_LENGTH, Header, Kind, POSITION_LENGTH, Position, TAG_LENGTH,
        },
        ethernet::{self, VlanTag},
        record::{FRAME_LENGTH_MAX, Record},
    },
};

use crate::{
    input::Input,
    offload::offload,
    pair::{
        EAST, LANE, PEER, WEST, keys, path_from, session_index, topology, worker as new_worker,
    },
};

const SUITE: CipherSuite = CipherSuite::ChaCha20Poly1305;
const NETWORKS: [u32; 6] = [100, 200, 300, 400, 0, 0xff_ffff];

/// A worker with an established session, frames from its LAN, datagrams from a
/// peer that seals whatever the fuzzer says, and a kernel that refuses at will.
pub(crate) fn worker(data: &[u8]) {
    let mut input = Input::new(data);
    let mut scene = Scene {
        worker: new_worker(EAST, SUITE),
        outlet: Outside::new(),
        seal: keys(SUITE, WEST).0,
        counter: 0,
        now: Instant::from_nanos(1),
    };
    while !input.is_empty() {
        scene.step(&mut input);
    }
    scene.settle();
}

struct Scene {
    worker: Worker,
    outlet: Outside,
    seal: SealKey,
    counter: u64,
    now: Instant,
}

impl Scene {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 12 {
            0 => {
                let plaintext = [&input.array::<POSITION_LENGTH>()[..], input.chunk()].concat();
                self.sealed(Kind::Stream, &plaintext, input);
            }
            1..=3 => {
                let network = NetworkId(NETWORKS[usize::from(input.byte()) % NETWORKS.len()]);
                let offload = offload(input);
                let frame = input.chunk();
                let record = Record::new(network, offload, frame).parts().concat();
                let mut position = [0; POSITION_LENGTH];
                Position { first_record: Some(0), ..Position::default() }.emit(&mut position);
                let plaintext = [&position[..], &record].concat();
                self.sealed(Kind::Stream, &plaintext, input);
            }
            4 => {
                let plaintext = input.chunk();
                self.sealed(Kind::Signal, plaintext, input);
            }
            5 => {
                let mut datagram = input.chunk().to_vec();
                self.receive(&mut datagram);
            }
            6 | 7 => self.frame(input),
            8 => self.worker.flush(self.now, &mut self.outlet),
            9 => {
                self.now = self.now + Duration::from_micros(u64::from(input.u16()) * 50);
                self.timeout();
            }
            10 => self.outlet.refuse(input.byte()),
            _ => self.rekey(input),
        }
        while self.worker.poll_event().is_some() {}
    }

    fn frame(&mut self, input: &mut Input<'_>) {
        let port = PortIndex(u16::from(input.byte()) % self.outlet.topology.ports.len() as u16);
        let id = [None, Some(200), Some(7)][usize::from(input.byte()) % 3];
        let vlan = id.map(|tci| VlanTag { tpid: VlanTag::CUSTOMER, tci });
        let offload = if input.flag() { offload(input) } else { Offload::NONE };
        let stretch = usize::from(input.u16()) * 3;
        let mut frame = input.chunk().to_vec();
        frame.resize(frame.len().max(stretch), 0x11);
        self.worker.handle_frame(self.now, port, vlan, offload, &frame, &mut self.outlet);
    }

    /// A datagram that the peer sealed, with a counter that mostly goes on.
    fn sealed(&mut self, kind: Kind, plaintext: &[u8], input: &mut Input<'_>) {
        let step = input.byte();
        let counter = match step {
            0..=199 => self.counter,
            200..=230 => self.counter + u64::from(step - 199),
            231..=253 => self.counter.saturating_sub(u64::from(step - 230)),
            254 => self.counter + 100_000,
            255 => u64::from(input.u32()) << 12,
        };
        self.counter = self.counter.max(counter + 1);
        let receiver = session_index(EAST);
        let plaintext = &plaintext[..plaintext.len().min(DATAGRAM_LENGTH_MAX - 32)];
        let mut datagram = vec![0; HEADER_LENGTH];
        let header = datagram.first_chunk_mut().expect("a header");
        Header { kind, lane: LANE, receiver, counter }.emit(header);
        datagram.extend_from_slice(plaintext);
        let mut tag = [0; TAG_LENGTH];
        let (clear, sealed) = datagram.split_at_mut(HEADER_LENGTH);
        self.seal.seal(counter, clear, sealed, &mut tag);
        datagram.extend(tag);
        self.receive(&mut datagram);
    }

    fn receive(&mut self, datagram: &mut [u8]) {
        self.outlet.is_receiving = true;
        self.worker.handle_datagram(self.now, path_from(EAST), datagram, &mut self.outlet);
        // As often as not more comes in the same burst.
        if datagram.last().is_some_and(|byte| byte & 1 == 0) {
            self.worker.flush_to_lan(&mut self.outlet);
        }
        self.outlet.is_receiving = false;
    }

    fn rekey(&mut self, input: &mut Input<'_>) {
        let (kind, index) = (input.byte(), input.byte());
        let command = match kind % 2 {
            0 => WorkerCommand::Install {
                peer: PEER,
                lane: index % 4,
                parameters: SessionParameters {
                    local_index: 0x1000 + u32::from(index),
                    remote_index: 9,
                    initiated: kind & 2 != 0,
                    seal: keys(SUITE, EAST).0,
                    open: keys(SUITE, WEST).1,
                    path: (kind & 2 != 0).then(|| path_from(EAST)),
                },
            },
            _ => WorkerCommand::Remove { peer: PEER, local_index: 0x1000 + u32::from(index) },
        };
        self.worker.handle_command(self.now, command);
    }

    fn timeout(&mut self) {
        self.worker.handle_timeout(self.now, &mut self.outlet);
        let next = self.worker.poll_timeout();
        assert!(next.is_none_or(|at| at > self.now), "what was due is done: {next:?}");
    }

    /// Whatever happened, the worker goes on and its timers never spin.
    fn settle(&mut self) {
        self.worker.flush(self.now, &mut self.outlet);
        for _ in 0..20 {
            let Some(at) = self.worker.poll_timeout() else { return };
            self.now = self.now.max(at);
            self.timeout();
        }
    }
}

/// The world around the worker; it checks all that the worker does to it.
struct Outside {
    topology: Arc<Topology>,
    is_receiving: bool,
    refusal: Option<TransmitError>,
    longest: Option<usize>,
}

impl Outside {
    fn new() -> Self {
        Self { topology: topology(EAST), is_receiving: false, refusal: None, longest: None }
    }

    fn refuse(&mut self, how: u8) {
        (self.refusal, self.longest) = match how % 6 {
            0 => (Some(TransmitError::Full), None),
            1 => (Some(TransmitError::NoSource), None),
            2 => (Some(TransmitError::Unreachable), None),
            3 => (None, Some(usize::from(how) * 40)),
            _ => (None, None),
        };
    }
}

impl Outlet for Outside {
    fn transmit(&mut self, _: &Path, size: usize, run: &[u8]) -> Result<(), TransmitError> {
        assert!(!run.is_empty() && run.len() <= DATAGRAM_LENGTH_MAX);
        assert!(run.len().div_ceil(size) <= 64, "a GSO send takes no more");
        for datagram in run.chunks(size) {
            let header = Header::parse(datagram).expect("a transport datagram");
            let may_send = !self.is_receiving || header.kind == Kind::Signal;
            assert!(may_send, "what came from a tunnel never leaves by one");
        }
        match (self.refusal, self.longest) {
            (Some(error), _) => Err(error),
            (None, Some(longest)) if size.min(run.len()) > longest => Err(TransmitError::TooBig),
            _ => Ok(()),
        }
    }

    fn deliver(
        &mut self,
        port: PortIndex,
        vlan: Option<VlanTag>,
        offload: &Offload,
        frame: &[u8],
    ) -> Result<(), DeliverError> {
        assert!((ethernet::HEADER_LENGTH..=FRAME_LENGTH_MAX).contains(&frame.len()));
        let place = self.topology.networks.iter().find(|network| {
            network.attachment.is_some_and(|at| at.port == port && at.vlan == vlan)
        });
        let network = place.expect("a network of this site");
        assert!(network.remote_sites.contains(&WEST), "a network that the sender has, too");
        virtio::to_kernel(offload, frame).map_err(|_| DeliverError::InvalidOffload)?;
        Ok(())
    }
}
