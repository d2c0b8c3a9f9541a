use std::{sync::Arc, time::Duration};

use landbridge::{
    config,
    node::{ControlEvent, ControlOutlet, ControlPlane, ControlSettings, WorkerCommand},
    session::{CookieChecker, Established, Initiator, PublicKey, Responder, SealKey},
    time::Instant,
    topology::{SiteIndex, Topology},
    tunnel::{Path, SocketRole, TransmitError},
    wire::datagram::{CONTROL_LANE, HEADER_LENGTH, Header, Kind, TAG_LENGTH},
};

use crate::{
    input::Input,
    peer::{Seeded, correct_mac1, hello, identity, initiation, response},
};

const OURS: u8 = 1;
const THEIRS: u8 = 2;
/// Steps per input: each may cost a few Diffie-Hellman operations.
const STEPS_MAX: usize = 24;

/// A control plane, strangers, and a peer that holds its key and uses it as the
/// fuzzer says.
pub(crate) fn control(data: &[u8]) {
    let mut input = Input::new(data);
    let (ours, theirs) = (identity(OURS), identity(THEIRS));
    let (our_key, their_key) = (ours.private.public(), theirs.private.public());
    let now = Instant::from_nanos(1);
    let settings = ControlSettings {
        topology: Arc::new(topology(&our_key, &their_key)),
        identity: ours,
        hello: hello(1),
        workers: 2,
        lanes_max: 4,
        rekey_after: Duration::from_secs(120),
        random: Box::new(Seeded(1)),
    };
    let mut scene = Scene {
        plane: ControlPlane::new(now, settings),
        outside: Outside::default(),
        now,
        our_key,
        random: Seeded(2),
        session: None,
        counter: 0,
    };
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        scene.step(&mut input);
        scene.check();
    }
    scene.plane.shut_down(scene.now, &mut scene.outside);
}

fn topology(ours: &PublicKey, theirs: &PublicKey) -> Topology {
    let text = format!(
        r#"
        [group]
        name = "g"
        [[site]]
        name = "east"
        [[site.appliance]]
        name = "east-1"
        public_key = "{ours}"
        underlay = ["192.0.2.1:51840"]
        [[site]]
        name = "west"
        [[site.appliance]]
        name = "west-1"
        public_key = "{theirs}"
        underlay = ["192.0.2.2:51840", "[2001:db8::2]:51840"]
        [[network]]
        id = 100
        name = "app"
        attach.east = {{ tap = "app0" }}
        attach.west = {{ tap = "app0" }}
        "#
    );
    let group = config::parse(&text, "group.toml").expect("a valid group file");
    Topology::new(&group, SiteIndex(0), 0)
}

struct Scene {
    plane: ControlPlane,
    outside: Outside,
    now: Instant,
    our_key: PublicKey,
    random: Seeded,
    /// The peer's index for the session at our side, and the key to seal with.
    session: Option<(u32, SealKey)>,
    counter: u64,
}

impl Scene {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 10 {
            0 => self.receive(input.chunk().to_vec()),
            1 => {
                let mut message = input.chunk().to_vec();
                correct_mac1(&mut message, &self.our_key);
                self.receive(message);
            }
            2 => {
                let (sender, payload) = (input.u32(), input.chunk());
                self.receive(initiation(THEIRS, &self.our_key, sender, payload));
            }
            3 => self.initiate(),
            4 => self.answer(input.chunk()),
            5 => {
                let ended = self.outside.initiation.take();
                let Some(message) = ended else { return };
                let mut checker = CookieChecker::new(&identity(THEIRS).private.public());
                let from = "192.0.2.1:51840".parse().expect("an address");
                let reply = checker.check(self.now, from, &message, true, &mut self.random);
                if let landbridge::session::Admission::ReplyWithCookie(reply) = reply {
                    self.receive(reply);
                }
            }
            6 | 7 => {
                let (kind, plaintext) = (input.flag(), input.chunk());
                self.sealed(if kind { Kind::Stream } else { Kind::Signal }, plaintext);
            }
            8 => {
                self.now = self.now + Duration::from_millis(u64::from(input.u16()));
                self.plane.handle_timeout(self.now, &mut self.outside);
            }
            _ => {
                self.outside.refusal =
                    [None, Some(TransmitError::TooBig)][usize::from(input.flag())]
            }
        }
    }

    fn receive(&mut self, mut datagram: Vec<u8>) {
        let remote = "192.0.2.2:51840".parse().expect("an address");
        let path = Path { socket: SocketRole::Listener, local: None, remote };
        let before = self.outside.sent_bytes;
        let is_unproven = Header::parse(&datagram).is_err();
        let length = datagram.len();
        self.plane.handle_datagram(self.now, path, &mut datagram, &mut self.outside);
        let answered = self.outside.sent_bytes - before;
        // A response makes a session, whose first pings and probes follow it.
        let is_amplified = is_unproven && datagram.first() != Some(&2) && answered > length;
        assert!(!is_amplified, "{answered} bytes for {length}");
    }

    /// The peer begins a handshake as it should.
    fn initiate(&mut self) {
        let (theirs, hello) = (identity(THEIRS), hello(2));
        let started = Initiator::start(&theirs, &self.our_key, 77, &hello, None, &mut self.random);
        let (mut initiator, message) = started.expect("a sound key");
        self.outside.response = None;
        self.receive(message);
        if let Some(response) = self.outside.response.take()
            && let Ok(established) = initiator.finish(&response)
        {
            self.adopt(&established);
        }
    }

    /// The peer answers our initiation: as it should, or with `payload`.
    fn answer(&mut self, payload: &[u8]) {
        let Some(message) = self.outside.initiation.clone() else { return };
        if !payload.is_empty() {
            if let Some(hostile) = response(THEIRS, &message, &self.our_key, 5, payload) {
                self.receive(hostile);
            }
            return;
        }
        let theirs = identity(THEIRS);
        let read = Responder::read(&theirs, &message, &|_| true, &mut self.random);
        let answer = read.and_then(|responder| responder.respond(78, &hello(2)));
        let answer = answer.expect("an honest initiation");
        self.receive(answer.datagram);
        self.adopt(&answer.outcome.expect("the same version"));
    }

    fn adopt(&mut self, established: &Established) {
        let key = established.secrets.lane(CONTROL_LANE).seal;
        self.session = Some((established.remote_index, key));
        self.counter = 0;
    }

    fn sealed(&mut self, kind: Kind, plaintext: &[u8]) {
        let Some((receiver, seal)) = &self.session else { return };
        let mut datagram = vec![0; HEADER_LENGTH];
        let header =
            Header { kind, lane: CONTROL_LANE, receiver: *receiver, counter: self.counter };
        header.emit(datagram.first_chunk_mut().expect("a header"));
        datagram.extend_from_slice(plaintext);
        let mut tag = [0; TAG_LENGTH];
        let (clear, sealed) = datagram.split_at_mut(HEADER_LENGTH);
        seal.seal(self.counter, clear, sealed, &mut tag);
        datagram.extend(tag);
        self.counter += 1;
        self.receive(datagram);
    }

    fn check(&mut self) {
        self.plane.handle_timeout(self.now, &mut self.outside);
        let next = self.plane.poll_timeout();
        assert!(next.is_none_or(|at| at > self.now), "what was due is done: {next:?}");
        let _ = self.plane.report();
    }
}

#[derive(Default)]
struct Outside {
    initiation: Option<Vec<u8>>,
    response: Option<Vec<u8>>,
    refusal: Option<TransmitError>,
    sent_bytes: usize,
}

impl ControlOutlet for Outside {
    fn transmit(&mut self, _: &Path, datagram: &[u8]) -> Result<(), TransmitError> {
        match datagram.first() {
            Some(1) => self.initiation = Some(datagram.to_vec()),
            Some(2) => self.response = Some(datagram.to_vec()),
            Some(3) => {}
            _ => assert!(Header::parse(datagram).is_ok()),
        }
        self.sent_bytes += datagram.len();
        match self.refusal {
            Some(error) if datagram.len() > 1300 => Err(error),
            _ => Ok(()),
        }
    }

    fn command(&mut self, worker: u8, _: WorkerCommand) {
        assert!(worker < 2);
    }

    fn event(&mut self, _: ControlEvent) {}
}
