use proptest::prelude::*;

use super::{
    super::{
        aead::{CipherSet, CipherSuite},
        hello::{LaneCount, SoftwareVersion, VERSION_MAX, VersionRange, tests::hello},
        message::{COOKIE_REPLY_LENGTH, HandshakeMessage},
        random::SeededRandom,
        replay::SeenInitiations,
    },
    *,
};

const LOCAL: u32 = 0x0101_0101;
const REMOTE: u32 = 0x0202_0202;

fn identity(seed: u64, preshared: Option<u64>) -> Identity {
    Identity {
        private: PrivateKey::generate(&mut SeededRandom(seed)),
        preshared: preshared.map(|seed| PresharedKey::generate(&mut SeededRandom(seed))),
    }
}

fn start(from: &Identity, to: &Identity, seed: u64) -> (Initiator, Vec<u8>) {
    let remote = to.private.public();
    Initiator::start(from, &remote, LOCAL, &hello(1), None, &mut SeededRandom(seed)).unwrap()
}

fn read(at: &Identity, datagram: &[u8]) -> Result<Responder, HandshakeError> {
    Responder::read(at, datagram, &|_| true, &mut SeededRandom(99))
}

/// Recomputes mac1, as an attacker who knows the receiver's public key can.
fn with_mac1(datagram: &[u8], receiver: &Identity) -> Vec<u8> {
    let mut forged = datagram[..datagram.len() - MACS].to_vec();
    Mac1Key::of(&receiver.private.public()).append(&mut forged, None);
    forged
}

fn crosses(from: &Established, to: &Established, lane: u8) -> bool {
    let (mut datagram, mut tag) = (b"a frame".to_vec(), [0; 16]);
    from.secrets.lane(lane).seal.seal(7, b"header", &mut datagram, &mut tag);
    datagram.extend(tag);
    to.secrets.lane(lane).open.open(7, b"header", &mut datagram) == Ok(7)
        && datagram.starts_with(b"a frame")
}

#[test]
fn a_session_is_made_with_and_without_a_preshared_key() {
    for preshared in [None, Some(3)] {
        let (here, there) = (identity(1, preshared), identity(2, preshared));
        let (mut initiator, initiation) = start(&here, &there, 10);
        let responder = read(&there, &initiation).unwrap();
        assert_eq!(responder.peer(), here.private.public());
        assert_eq!(responder.remote_hello(), &hello(1));
        let answer = responder.respond(REMOTE, &hello(2)).unwrap();
        assert!(answer.datagram.len() <= initiation.len());
        let theirs = answer.outcome.unwrap();
        let ours = initiator.finish(&answer.datagram).unwrap();

        assert_eq!((ours.local_index, ours.remote_index), (LOCAL, REMOTE));
        assert_eq!((theirs.local_index, theirs.remote_index), (REMOTE, LOCAL));
        assert_eq!((ours.peer, theirs.peer), (there.private.public(), here.private.public()));
        assert_eq!((&ours.remote_hello, &theirs.remote_hello), (&hello(2), &hello(1)));
        assert_eq!((ours.initiated, theirs.initiated), (true, false));
        assert_eq!(ours.agreed, theirs.agreed);
        assert_eq!(ours.agreed.version, VERSION_MAX);
        for lane in [0, 1, 63] {
            assert!(crosses(&ours, &theirs, lane) && crosses(&theirs, &ours, lane));
        }
        assert!(matches!(initiator.finish(&answer.datagram), Err(HandshakeError::Finished)));
    }
}

#[test]
fn each_handshake_has_keys_of_its_own() {
    let (here, there) = (identity(1, None), identity(2, None));
    let session = |seed| {
        let (mut initiator, initiation) = start(&here, &there, seed);
        let answer = read(&there, &initiation).unwrap().respond(REMOTE, &hello(2)).unwrap();
        (initiator.finish(&answer.datagram).unwrap(), answer.outcome.unwrap())
    };
    let (one, other) = (session(10), session(11));
    assert!(crosses(&one.0, &one.1, 0));
    assert!(!crosses(&one.0, &other.1, 0));
    assert!(!crosses(&other.1, &one.0, 0));
}

#[test]
fn preshared_keys_must_be_the_same() {
    for (ours, theirs) in [(None, Some(3)), (Some(3), None), (Some(3), Some(4))] {
        let (here, there) = (identity(1, ours), identity(2, theirs));
        let (mut initiator, initiation) = start(&here, &there, 10);
        let answer = read(&there, &initiation).unwrap().respond(REMOTE, &hello(2)).unwrap();
        let error = initiator.finish(&answer.datagram).unwrap_err();
        assert!(matches!(error, HandshakeError::Noise(snow::Error::Decrypt)), "{error:?}");
    }
}

#[test]
fn strangers_and_other_peoples_messages_are_refused() {
    let (here, there, stranger) = (identity(1, None), identity(2, None), identity(3, None));
    let (_, initiation) = start(&here, &there, 10);
    assert!(matches!(read(&stranger, &initiation), Err(HandshakeError::Mac1)));
    let readdressed = with_mac1(&initiation, &stranger);
    assert!(matches!(read(&stranger, &readdressed), Err(HandshakeError::Noise(_))));
    assert!(matches!(read(&here, &with_mac1(&initiation, &here)), Err(HandshakeError::Noise(_))));

    let known = here.private.public();
    let (_, initiation) = start(&stranger, &there, 10);
    let result = Responder::read(&there, &initiation, &|key| *key == known, &mut SeededRandom(1));
    let Err(HandshakeError::UnknownPeer(key)) = result else { panic!("{result:?}") };
    assert_eq!(key, stranger.private.public());
}

#[test]
fn another_appliance_cannot_answer_in_the_peers_place() {
    let (here, there, rogue) = (identity(1, None), identity(2, None), identity(3, None));
    let (mut initiator, _) = start(&here, &there, 10);
    let (_, to_rogue) = start(&here, &rogue, 10);
    let forged = read(&rogue, &to_rogue).unwrap().respond(REMOTE, &hello(2)).unwrap();
    assert!(matches!(initiator.finish(&forged.datagram), Err(HandshakeError::Noise(_))));
}

#[test]
fn no_damaged_initiation_is_read() {
    let (here, there) = (identity(1, None), identity(2, None));
    let (_, initiation) = start(&here, &there, 10);
    for length in 0..initiation.len() {
        assert!(read(&there, &initiation[..length]).is_err(), "cut to {length}");
    }
    for byte in 0..initiation.len() - MAC_LENGTH {
        let mut damaged = initiation.clone();
        damaged[byte] ^= 1 << (byte % 8);
        assert!(read(&there, &damaged).is_err(), "byte {byte}");
    }
    for byte in (0..initiation.len() - MACS).filter(|byte| *byte < 12 || byte % 17 == 0) {
        let mut damaged = initiation.clone();
        damaged[byte] ^= 1 << (byte % 8);
        assert!(read(&there, &with_mac1(&damaged, &there)).is_err(), "byte {byte}, mac1 right");
    }
    let mut longer = initiation[..initiation.len() - MACS].to_vec();
    longer.push(0);
    longer.extend([0; MACS]);
    assert!(read(&there, &with_mac1(&longer, &there)).is_err());
    assert!(read(&there, &initiation).is_ok());
}

#[test]
fn the_real_response_still_counts_after_any_forged_one() {
    let (here, there) = (identity(1, Some(3)), identity(2, Some(3)));
    let (mut initiator, initiation) = start(&here, &there, 10);
    let answer = read(&there, &initiation).unwrap().respond(REMOTE, &hello(2)).unwrap();
    let response = &answer.datagram;
    for length in 0..response.len() {
        assert!(initiator.finish(&response[..length]).is_err(), "cut to {length}");
    }
    for byte in 0..response.len() - MAC_LENGTH {
        let mut damaged = response.clone();
        damaged[byte] ^= 1 << (byte % 8);
        assert!(initiator.finish(&damaged).is_err(), "byte {byte}");
        // The sender index in the header is no more than a hint: what is under Noise counts.
        if !(4..8).contains(&byte) && (byte < 12 || byte % 5 == 0) && byte < response.len() - MACS {
            let forged = with_mac1(&damaged, &here);
            assert!(initiator.finish(&forged).is_err(), "byte {byte}, mac1 right");
        }
    }
    assert!(initiator.finish(&initiation).is_err());
    assert!(crosses(&initiator.finish(response).unwrap(), &answer.outcome.unwrap(), 0));
}

#[test]
fn a_response_with_a_forged_header_index_does_no_harm() {
    let (here, there) = (identity(1, None), identity(2, None));
    let (mut initiator, initiation) = start(&here, &there, 10);
    let mut response =
        read(&there, &initiation).unwrap().respond(REMOTE, &hello(2)).unwrap().datagram;
    response[4] ^= 0xff;
    let established = initiator.finish(&with_mac1(&response, &here)).unwrap();
    assert_eq!(established.remote_index, REMOTE);
}

#[test]
fn a_forged_header_index_in_an_initiation_is_noticed() {
    let (here, there) = (identity(1, None), identity(2, None));
    let (_, mut initiation) = start(&here, &there, 10);
    initiation[5] ^= 0xff;
    let result = read(&there, &with_mac1(&initiation, &there));
    assert!(matches!(result, Err(HandshakeError::Sender)), "{result:?}");
}

#[test]
fn responses_to_other_sessions_are_refused() {
    let (here, there) = (identity(1, None), identity(2, None));
    let (mut first, initiation) = start(&here, &there, 10);
    let (mut second, _) = start(&here, &there, 11);
    second.local_index = LOCAL + 1;
    let answer = read(&there, &initiation).unwrap().respond(REMOTE, &hello(2)).unwrap();
    let error = second.finish(&answer.datagram).unwrap_err();
    assert!(matches!(error, HandshakeError::Receiver { receiver: LOCAL, .. }), "{error:?}");
    assert!(first.finish(&answer.datagram).is_ok());
}

#[test]
fn a_replayed_initiation_is_recognised_and_gains_no_session() {
    let (here, there) = (identity(1, None), identity(2, None));
    let (mut initiator, initiation) = start(&here, &there, 10);
    let mut seen = SeenInitiations::new();
    let first = read(&there, &initiation).unwrap();
    assert_eq!(first.ephemeral(), Initiation::parse(&initiation).unwrap().ephemeral());
    assert!(seen.insert(first.ephemeral()));
    let answer = first.respond(REMOTE, &hello(2)).unwrap();
    let ours = initiator.finish(&answer.datagram).unwrap();

    let again = Responder::read(&there, &initiation, &|_| true, &mut SeededRandom(98)).unwrap();
    assert!(!seen.insert(again.ephemeral()));
    let replayed = again.respond(REMOTE + 1, &hello(2)).unwrap().outcome.unwrap();
    assert!(!crosses(&ours, &replayed, 0), "nobody holds the replayed session's keys");

    let (_, fresh) = start(&here, &there, 11);
    assert!(seen.insert(read(&there, &fresh).unwrap().ephemeral()));
}

#[test]
fn both_sides_learn_why_they_cannot_agree() {
    let (here, there) = (identity(1, None), identity(2, None));
    let mut other_version = hello(2);
    other_version.versions = VersionRange::new(7, 9).unwrap();
    other_version.software = SoftwareVersion::lossy(b"9.1");
    let mut other_cipher = hello(2);
    other_cipher.ciphers = CipherSet::EMPTY;
    for theirs in [other_version, other_cipher] {
        let (mut initiator, initiation) = start(&here, &there, 10);
        let answer = read(&there, &initiation).unwrap().respond(REMOTE, &theirs).unwrap();
        let (at_responder, at_initiator) =
            (answer.outcome.unwrap_err(), initiator.finish(&answer.datagram).unwrap_err());
        let HandshakeError::Disagreement { peer, source, remote_software } = at_initiator else {
            panic!("{at_initiator:?}")
        };
        assert!(matches!(initiator.finish(&answer.datagram), Err(HandshakeError::Finished)));
        assert_eq!((peer, &remote_software), (there.private.public(), &theirs.software));
        match (at_responder, source) {
            (
                Disagreement::NoCommonVersion { local, remote },
                Disagreement::NoCommonVersion { local: ours, remote: theirs },
            ) => {
                assert_eq!((local, remote), (theirs, ours));
                assert_eq!(local, VersionRange::new(7, 9).unwrap());
            }
            (Disagreement::NoCommonCipher { local, .. }, Disagreement::NoCommonCipher { .. }) => {
                assert_eq!(local, CipherSet::EMPTY);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn both_sides_agree_on_the_same() {
    let (here, there) = (identity(1, None), identity(2, None));
    let (mut initiator, initiation) = start(&here, &there, 10);
    let mut theirs = hello(2);
    theirs.lanes = LaneCount::new(2).unwrap();
    theirs.capabilities = 0b110;
    theirs.ciphers = CipherSet::for_hardware(false);
    theirs.versions = VersionRange::new(1, 40).unwrap();
    let answer = read(&there, &initiation).unwrap().respond(REMOTE, &theirs).unwrap();
    let agreed = initiator.finish(&answer.datagram).unwrap().agreed;
    let expected = Agreed {
        version: VERSION_MAX,
        capabilities: 0b100,
        lanes: hello(1).lanes.max(LaneCount::new(2).unwrap()),
        cipher: CipherSuite::ChaCha20Poly1305,
    };
    assert_eq!(agreed, expected);
    assert_eq!(answer.outcome.unwrap().agreed, expected);
}

#[test]
fn an_unreadable_hello_names_its_sender() {
    let (here, there) = (identity(1, None), identity(2, None));
    for (payload, source) in [
        (vec![1, 2, 3], HelloError::Truncated { kind: 0 }),
        (vec![0, 0, 0, 0, 9, 9], HelloError::Truncated { kind: 9 }),
        (vec![0; 50], HelloError::Missing { kind: 1 }),
    ] {
        let mut noise =
            noise::initiator(&here, &there.private.public(), &mut SeededRandom(1)).unwrap();
        let mut datagram = vec![TYPE_INITIATION, 0, 0, 0, 0, 0, 0, 0];
        let mut padded = payload.clone();
        if payload.len() == 50 {
            padded.resize(INITIATION_LENGTH_MIN - INITIATION_HEADER - INITIATION_NOISE - MACS, 0);
        }
        write_noise(&mut noise, &padded, INITIATION_NOISE, &mut datagram).unwrap();
        let mut reader = noise::responder(&there, &mut SeededRandom(2)).unwrap();
        let error = read_noise(&mut reader, &datagram[8..], &|_| true).unwrap_err();
        let HandshakeError::Hello { peer, source: found } = error else { panic!("{error:?}") };
        assert_eq!((peer, found), (here.private.public(), source));
    }
}

#[test]
fn debug_shows_no_secret() {
    let (here, there) = (identity(1, Some(3)), identity(2, Some(3)));
    let (mut initiator, initiation) = start(&here, &there, 10);
    let pending = format!("{here:?} {initiator:?}");
    let responder = read(&there, &initiation).unwrap();
    let reading = format!("{responder:?}");
    let answer = responder.respond(REMOTE, &hello(2)).unwrap();
    let established = initiator.finish(&answer.datagram).unwrap();
    let keys = format!("{:?} {:?}", established.secrets.lane(0), established);
    let private = here.private.as_bytes();
    for shown in [&pending, &reading, &keys] {
        assert!(!shown.contains(here.private.to_base64().as_str()));
        assert!(!shown.contains(here.preshared.as_ref().unwrap().to_base64().as_str()));
        assert!(!shown.contains(&format!("{}, {}, {}", private[0], private[1], private[2])));
    }
    assert!(keys.contains("SealKey(AES-256-GCM)") && keys.contains("SessionSecrets(AES-256-GCM)"));
}

/// A change of this digest is a change of the wire format or of the key schedule.
#[cfg(not(feature = "next-protocol"))]
#[test]
fn the_same_seed_gives_the_same_bytes() {
    use ring::digest::{SHA256, digest};
    let transcript = || {
        let (here, there) = (identity(1, Some(3)), identity(2, Some(3)));
        let (mut initiator, mut bytes) = start(&here, &there, 10);
        let answer = read(&there, &bytes).unwrap().respond(REMOTE, &hello(2)).unwrap();
        bytes.extend(&answer.datagram);
        let established = initiator.finish(&answer.datagram).unwrap();
        let mut tag = [0; 16];
        established.secrets.lane(3).seal.seal(0, b"", &mut [], &mut tag);
        bytes.extend(tag);
        let digest = digest(&SHA256, &bytes);
        u64::from_be_bytes(digest.as_ref()[..8].try_into().unwrap())
    };
    assert_eq!(transcript(), transcript());
    assert_eq!(transcript(), PINNED);
}

#[cfg(not(feature = "next-protocol"))]
const PINNED: u64 = 7_088_433_718_324_826_572;

#[test]
fn no_answer_is_longer_than_the_question() {
    let (here, there) = (identity(1, None), identity(2, None));
    let (_, initiation) = start(&here, &there, 10);
    let mut longest = hello(u64::MAX);
    longest.software = SoftwareVersion::lossy(&[b'v'; 64]);
    let answer = read(&there, &initiation).unwrap().respond(REMOTE, &longest).unwrap();
    assert_eq!(initiation.len(), INITIATION_LENGTH_MIN);
    assert!(answer.datagram.len() <= RESPONSE_LENGTH_MAX);
    assert!(answer.datagram.len().max(COOKIE_REPLY_LENGTH) <= initiation.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_datagrams_are_refused(
        kind in 0..5_u8, seed in any::<u64>(), length in 0..1300_usize, mac1_right in any::<bool>(),
    ) {
        let (here, there) = (identity(1, None), identity(2, None));
        let mut datagram = vec![0; length];
        SeededRandom(seed).fill(&mut datagram);
        for (byte, value) in datagram.iter_mut().zip([kind, 0, 0, 0]) {
            *byte = value;
        }
        let (mut initiator, _) = start(&here, &there, 10);
        if length >= 12 {
            datagram[8..12].copy_from_slice(&LOCAL.to_le_bytes());
        }
        let (to_there, to_here) = if mac1_right && length > MACS {
            (with_mac1(&datagram, &there), with_mac1(&datagram, &here))
        } else {
            (datagram.clone(), datagram.clone())
        };
        prop_assert!(read(&there, &to_there).is_err());
        prop_assert!(initiator.finish(&to_here).is_err());
        prop_assert!(initiator.take_cookie(Instant::ZERO, &datagram).is_err());
        let _ = HandshakeMessage::parse(&datagram);
    }
}
