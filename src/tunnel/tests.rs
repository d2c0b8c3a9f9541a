//! Two ends of one lane, face to face.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use super::{lane_session::LaneSession, *};
use crate::{
    offload::Offload,
    session::{CipherSuite, OpenKey, SealKey},
    stream::{StreamEvent, StreamSink},
    time::Instant,
    topology::NetworkId,
    wire::{
        datagram::{HEADER_LENGTH, Header, TAG_LENGTH},
        record::Record,
        signal::{Item, Signal},
    },
};

/// What a lane sends and finds.
#[derive(Default)]
struct Ends {
    sent: Vec<Vec<u8>>,
    records: Vec<Vec<u8>>,
    missing: u64,
    unsent: u64,
    refusal: Option<TransmitError>,
}

impl StreamSink for Ends {
    fn record(&mut self, record: &[u8]) {
        self.records.push(record.to_vec());
    }

    fn damaged(&mut self, _: &mut [u8], _: &[Range<usize>]) {}

    fn event(&mut self, event: StreamEvent, amount: u64) {
        if event == StreamEvent::Missing {
            self.missing += amount;
        }
    }
}

impl LaneSink for Ends {
    fn signal(&mut self, _: Item) {}

    fn transmit(
        &mut self,
        path: &Path,
        size: usize,
        datagrams: &[u8],
    ) -> Result<(), TransmitError> {
        match self.refusal {
            _ if path.local == Some(GONE) => Err(TransmitError::NoSource),
            Some(error) => Err(error),
            None => {
                self.sent.extend(datagrams.chunks(size).map(<[u8]>::to_vec));
                Ok(())
            }
        }
    }

    fn unsent(&mut self, _: TransmitError, datagrams: u64) {
        self.unsent += datagrams;
    }
}

const LOCAL: u32 = 1;
const REMOTE: u32 = 2;
/// A source address that this host had once.
const GONE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77));

fn at(millis: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(millis)
}

fn path(socket: SocketRole, port: u16) -> Path {
    Path { socket, local: None, remote: SocketAddr::from(([192, 0, 2, 9], port)) }
}

/// A session's share of one end; `number` tells sessions apart.
fn parameters(number: u32, initiated: bool, path: Option<Path>) -> SessionParameters {
    let key = |direction: bool| [number as u8 * 2 + u8::from(direction); 32];
    let (local, remote) = if initiated { (LOCAL, REMOTE) } else { (REMOTE, LOCAL) };
    SessionParameters {
        local_index: number * 16 + local,
        remote_index: number * 16 + remote,
        initiated,
        seal: SealKey::new(CipherSuite::ChaCha20Poly1305, &mut key(initiated)),
        open: OpenKey::new(CipherSuite::ChaCha20Poly1305, &mut key(!initiated)),
        path,
    }
}

fn lane() -> Lane {
    Lane::new(1, Duration::from_millis(500), Arc::default())
}

/// An initiator's lane and a responder's, with session 1.
fn pair() -> (Lane, Lane) {
    let (mut near, mut far) = (lane(), lane());
    near.install(at(0), parameters(1, true, Some(path(SocketRole::Dialer, 51840))));
    far.install(at(0), parameters(1, false, None));
    (near, far)
}

/// Gives what `ends` sent to `lane`, as coming over `path`.
fn pass(now: Instant, from: &mut Ends, lane: &mut Lane, over: Path, to: &mut Ends) {
    for mut datagram in from.sent.drain(..) {
        let header = Header::parse(&datagram).unwrap();
        lane.receive(now, &header, over, &mut datagram, to).unwrap();
    }
}

fn frame(length: usize) -> Vec<u8> {
    vec![7; length]
}

fn outgoing(frame: &[u8]) -> Record<'_> {
    Record::new(NetworkId(7), Offload::NONE, frame)
}

fn record(length: usize) -> Vec<u8> {
    outgoing(&frame(length)).parts().concat()
}

#[test]
fn a_datagram_full_of_pings_gets_one_pong() {
    let (_, mut far) = pair();
    let mut hostile =
        LaneSession::new(at(0), 1, parameters(1, true, Some(path(SocketRole::Dialer, 51840))));
    let mut datagram = vec![0; HEADER_LENGTH];
    for sequence in 0..1000 {
        Signal::Ping { sequence }.emit(&mut datagram);
    }
    datagram.resize(datagram.len() + TAG_LENGTH, 0);
    assert!(hostile.seal_signal(&mut datagram));
    let (mut sent, mut answers) = (Ends::default(), Ends::default());
    sent.sent.push(datagram);
    pass(at(1), &mut sent, &mut far, path(SocketRole::Listener, 4000), &mut answers);
    assert_eq!(answers.sent.len(), 1);
}

#[test]
fn counters_of_a_failed_send_are_not_waited_for() {
    let (mut near, mut far) = pair();
    let (mut out, mut found) = (Ends::default(), Ends::default());
    // Probes that no path takes, then a batch that the socket has no room for.
    near.handle_timeout(at(0), &mut out);
    assert!(out.sent.len() > 5);
    out.sent.clear();
    out.refusal = Some(TransmitError::Full);
    near.push(at(0), &outgoing(&frame(3000)), &mut out).unwrap();
    near.flush(at(0), &mut out).unwrap_err();
    assert_eq!(out.unsent, 3);
    out.refusal = None;
    near.push(at(0), &outgoing(&frame(100)), &mut out).unwrap();
    near.flush(at(0), &mut out).unwrap();
    pass(at(1), &mut out, &mut far, path(SocketRole::Listener, 4000), &mut found);
    assert_eq!(found.records, [record(100)], "at once, without waiting");
    assert_eq!(found.missing, 0);
}

#[test]
fn nothing_is_lost_with_a_source_address() {
    let (mut near, mut far) = (lane(), lane());
    let old = Path { local: Some(GONE), ..path(SocketRole::Listener, 51840) };
    near.install(at(0), parameters(1, true, Some(old)));
    far.install(at(0), parameters(1, false, None));
    let (mut sent, mut received) = (Ends::default(), Ends::default());
    near.push(at(1), &outgoing(&frame(100)), &mut sent).unwrap();
    near.flush(at(1), &mut sent).unwrap();
    pass(at(2), &mut sent, &mut far, path(SocketRole::Listener, 40_000), &mut received);
    assert_eq!((received.records, sent.unsent), (vec![record(100)], 0));
    assert_eq!(near.path(), Some(Path { local: None, ..old }));
}

#[test]
fn frames_without_a_path_are_refused_one_by_one() {
    let mut lane = lane();
    let mut ends = Ends::default();
    assert_eq!(lane.push(at(0), &outgoing(&frame(100)), &mut ends), Err(SendError::NoSession));
    lane.install(at(0), parameters(1, true, None));
    assert_eq!(lane.push(at(0), &outgoing(&frame(100)), &mut ends), Err(SendError::NoSession));
    assert!(lane.poll_timeout().is_some());
    lane.handle_timeout(at(0), &mut ends);
    assert!(lane.poll_timeout() > Some(at(0)), "no path is no reason to spin");
}

#[test]
fn a_responder_says_nothing_before_the_keys_are_proven() {
    let (mut near, mut far) = pair();
    let mut ends = Ends::default();
    assert_eq!(far.push(at(0), &outgoing(&frame(100)), &mut ends), Err(SendError::NoSession));
    far.handle_timeout(at(1), &mut ends);
    assert!(ends.sent.is_empty());
    near.handle_timeout(at(1), &mut ends);
    let mut answers = Ends::default();
    pass(at(2), &mut ends, &mut far, path(SocketRole::Listener, 4000), &mut answers);
    assert_eq!(far.path(), Some(path(SocketRole::Listener, 4000)));
    assert!(!answers.sent.is_empty());
}

#[test]
fn a_link_with_no_room_at_all_neither_panics_nor_spins() {
    let (mut near, _) = pair();
    let mut out = Ends { refusal: Some(TransmitError::TooBig), ..Ends::default() };
    for now in 0..2000 {
        near.handle_timeout(at(now), &mut out);
        assert!(near.poll_timeout() > Some(at(now)));
        near.push(at(now), &outgoing(&frame(100)), &mut out).unwrap();
        near.flush(at(now), &mut out).unwrap_err();
        let _ = near.push(at(now), &outgoing(&frame(60_000)), &mut out);
        let _ = near.flush(at(now), &mut out);
    }
}

#[test]
fn a_session_that_is_not_answered_takes_the_path_of_one_that_is() {
    let (mut near, mut far) = pair();
    let (mut out, mut back) = (Ends::default(), Ends::default());
    let over = path(SocketRole::Dialer, 51840);
    near.handle_timeout(at(0), &mut out);
    pass(at(1), &mut out, &mut far, path(SocketRole::Listener, 4000), &mut back);
    pass(at(2), &mut back, &mut near, over, &mut Ends::default());
    // The next session goes astray, while the peer still uses the first.
    let astray = Path { remote: SocketAddr::from(([203, 0, 113, 1], 1)), ..over };
    near.install(at(10), parameters(2, true, Some(astray)));
    for now in (10..400).step_by(10) {
        near.handle_timeout(at(now), &mut Ends::default());
        far.handle_timeout(at(now), &mut back);
        far.push(at(now), &outgoing(&frame(100)), &mut back).unwrap();
        far.flush(at(now), &mut back).unwrap();
        pass(at(now), &mut back, &mut near, over, &mut Ends::default());
        let expected = if now < 260 { astray } else { over };
        assert_eq!(near.path(), Some(expected), "after {now} ms");
    }
}

#[test]
fn flows_both_ways_keep_their_paths() {
    let listener = path(SocketRole::Listener, 4000);
    let dialer = path(SocketRole::Dialer, 51840);
    let (mut near, mut far) = (lane(), lane());
    near.install(at(0), parameters(2, false, None));
    near.install(at(0), parameters(1, true, Some(dialer)));
    far.install(at(0), parameters(1, false, None));
    far.install(at(0), parameters(2, true, Some(dialer)));
    let (mut out, mut back) = (Ends::default(), Ends::default());
    // Each sends with its own session, from its dialer to the other's listener.
    for now in 1..1000 {
        near.handle_timeout(at(now), &mut out);
        far.handle_timeout(at(now), &mut back);
        let (mut answers, mut more) = (Ends::default(), Ends::default());
        pass(at(now), &mut out, &mut far, listener, &mut answers);
        pass(at(now), &mut back, &mut near, listener, &mut more);
        pass(at(now), &mut answers, &mut near, dialer, &mut Ends::default());
        pass(at(now), &mut more, &mut far, dialer, &mut Ends::default());
        assert_eq!((near.path(), far.path()), (Some(dialer), Some(dialer)), "{now}");
    }
    assert_ne!(near.current_session(), far.current_session());
}

#[test]
fn a_handshake_with_a_restarted_peer_abandons_its_old_port() {
    let (listener, old) = (path(SocketRole::Dialer, 51840), path(SocketRole::Listener, 4000));
    let mut lane = lane();
    lane.install(at(0), parameters(1, true, Some(old)));
    lane.install(at(1), parameters(2, true, None));
    assert_eq!(lane.path(), Some(old), "no other is known");
    lane.install(at(2), parameters(3, true, Some(listener)));
    assert_eq!(lane.path(), Some(listener));
}
