use landbridge::{
    session::{
        Agreed, Cookie, CookieChecker, Hello, Initiator, PublicKey, Responder,
        message::HandshakeMessage,
    },
    time::Instant,
};

use crate::{
    input::Input,
    peer::{Seeded, correct_mac1, hello as our_hello, identity, initiation, response},
};

const OURS: u8 = 1;
const THEIRS: u8 = 2;
const LOCAL_INDEX: u32 = 0x0101_0101;

/// A handshake payload: what is read is written and read back the same.
pub(crate) fn hello(data: &[u8]) {
    let Ok((hello, _)) = Hello::decode(data) else { return };
    assert!(hello.software.as_str().bytes().all(|byte| matches!(byte, b' '..=b'~')));
    let mut bytes = Vec::new();
    hello.encode(&mut bytes);
    let (again, unknown) = Hello::decode(&bytes).expect("what was encoded");
    assert_eq!((&again, unknown), (&hello, 0));
    let ours = our_hello(1);
    let agreed = Agreed::between(&ours, &hello);
    assert_eq!(agreed.is_ok(), Agreed::between(&hello, &ours).is_ok());
}

/// Each handshake message, damaged or made by a peer that says what it likes.
/// Whatever came before, the true answer still makes a session.
pub(crate) fn handshake(data: &[u8]) {
    let mut input = Input::new(data);
    let (ours, theirs) = (identity(OURS), identity(THEIRS));
    let (our_key, their_key) = (ours.private.public(), theirs.private.public());
    let kind = input.byte();
    let mut bytes = input.rest().to_vec();
    let _ = HandshakeMessage::parse(&bytes);
    match kind % 6 {
        0 => {
            correct_mac1(&mut bytes, &our_key);
            let _ = Responder::read(&ours, &bytes, &|_| true, &mut Seeded(1));
        }
        1 => {
            let message = initiation(THEIRS, &our_key, 7, &bytes);
            let read = Responder::read(&ours, &message, &|_| true, &mut Seeded(1));
            if let Ok(responder) = read {
                assert_eq!(responder.peer(), their_key);
                let answer = responder.respond(9, &our_hello(1)).expect("a sound key");
                assert!(answer.datagram.len() <= message.len(), "no amplification");
            }
        }
        2..=4 => finish(kind % 6, &bytes, our_key, their_key),
        _ => {
            let mut checker = CookieChecker::new(&our_key);
            let source = "192.0.2.9:9".parse().expect("an address");
            for under_load in [false, true] {
                let _ = checker.check(Instant::ZERO, source, &bytes, under_load, &mut Seeded(1));
                correct_mac1(&mut bytes, &our_key);
            }
        }
    }
}

fn finish(kind: u8, bytes: &[u8], our_key: PublicKey, their_key: PublicKey) {
    let (ours, theirs) = (identity(OURS), identity(THEIRS));
    let started =
        Initiator::start(&ours, &their_key, LOCAL_INDEX, &our_hello(1), None, &mut Seeded(2));
    let (mut initiator, message) = started.expect("a sound key");
    match kind {
        2 => {
            let mut forged = bytes.to_vec();
            if forged.len() > 12 {
                forged[8..12].copy_from_slice(&LOCAL_INDEX.to_le_bytes());
            }
            correct_mac1(&mut forged, &our_key);
            assert!(initiator.finish(&forged).is_err());
        }
        3 => {
            let hostile = response(THEIRS, &message, &our_key, 9, bytes).expect("authentic");
            if let Ok(established) = initiator.finish(&hostile) {
                assert_eq!(established.peer, their_key);
            }
            // Only the true peer ends a handshake so.
            return;
        }
        _ => {
            let cookie: Result<Cookie, _> = initiator.take_cookie(Instant::ZERO, bytes);
            assert!(cookie.is_err());
        }
    }
    let read = Responder::read(&theirs, &message, &|key| *key == our_key, &mut Seeded(3));
    let answer = read.and_then(|responder| responder.respond(9, &our_hello(2))).expect("honest");
    assert!(initiator.finish(&answer.datagram).is_ok(), "the true answer still counts");
}
