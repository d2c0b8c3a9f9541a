//! Who gets a tunnel, and what everybody else gets: nothing.
//!
//! ```text
//!   host-e ── br-100 ── east-1 ════ router ════ west-1 ── br-100 ── host-w
//!                              a stranger, a relay
//! ```

use crate::harness::{
    TestPair,
    ask::{counter, eventually, peer, ping_once, status, wait_for_counter},
    can_run, landbridge_pair,
    relay::Relay,
};
use landbridge::{
    io::random::OsRandom,
    lab::{PairOptions, Side, ping},
    manage::model::PeerState,
    session::{
        CipherSet, Hello, Identity, Initiator, LaneCount, PrivateKey, PublicKey, SoftwareVersion,
        VersionRange,
    },
};
use std::{
    fs,
    net::UdpSocket,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// First messages of strangers that know the appliance's public key, and no more.
fn strangers_initiations(appliance: &PublicKey, count: u32) -> Vec<Vec<u8>> {
    let hello = Hello {
        versions: VersionRange::LOCAL,
        capabilities: 0,
        lanes: LaneCount::ONE,
        ciphers: CipherSet::detect(),
        group_digest: [0; 32],
        software: SoftwareVersion::lossy(b"a stranger"),
        startup_id: 1,
    };
    let mut random = OsRandom;
    let identity = Identity { private: PrivateKey::generate(&mut random), preshared: None };
    let initiation =
        |index| Initiator::start(&identity, appliance, index, &hello, None, &mut random).unwrap().1;
    (0..count).map(initiation).collect()
}

fn public_key(pair: &TestPair, side: Side) -> PublicKey {
    status(pair, side).unwrap().public_key.parse().unwrap()
}

fn stranger(pair: &TestPair) -> UdpSocket {
    let socket = pair.router.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

fn completed(pair: &TestPair, side: Side) -> u64 {
    counter(pair, side, "handshake_completed").unwrap()
}

#[test]
fn a_stranger_gets_no_answer() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions::default());
    let stranger = stranger(&pair);
    for side in Side::BOTH {
        for initiation in strangers_initiations(&public_key(&pair, side), 3) {
            stranger.send_to(&initiation, pair.options.endpoint(side)).unwrap();
        }
        wait_for_counter(&pair, side, "handshake_unknown_peer", 3);
    }
    assert!(stranger.recv_from(&mut [0; 2000]).is_err(), "a stranger was answered");
    ping_once(&pair).unwrap();
}

#[test]
fn under_a_flood_of_handshakes_the_tunnel_stays_and_is_rekeyed() {
    const FLOOD: Duration = Duration::from_secs(6);
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions {
        extra_group_lines: "rekey_after_s = 2\n".into(),
        ..PairOptions::default()
    });
    let before = Side::BOTH.map(|side| completed(&pair, side));
    let initiations = Side::BOTH.map(|side| {
        (pair.options.endpoint(side), strangers_initiations(&public_key(&pair, side), 16))
    });
    let (stranger, ended) = (stranger(&pair), AtomicBool::new(false));
    let report = thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0.. {
                for (endpoint, initiations) in &initiations {
                    // A full send buffer only means fewer of them.
                    let _ = stranger.send_to(&initiations[number % initiations.len()], endpoint);
                }
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                thread::sleep(Duration::from_micros(500));
            }
        });
        let start = Instant::now();
        let (east, west) = (pair.host(Side::East), pair.host(Side::West));
        let (mut sent, mut received) = (0, 0);
        while start.elapsed() < FLOOD {
            if let Ok(report) = ping(&east.namespace, west.v4.into(), 50) {
                received += report.received;
            }
            sent += 50;
        }
        ended.store(true, Ordering::Relaxed);
        (sent, received)
    });
    assert_eq!(report.0, report.1, "pings sent and answered");
    for side in Side::BOTH {
        wait_for_counter(&pair, side, "cookie_sent", 100);
        let after = completed(&pair, side);
        assert!(after > before[side as usize], "no new keys under the flood");
    }
    let received = Side::BOTH.map(|side| counter(&pair, side, "cookie_received").unwrap());
    assert!(received.iter().sum::<u64>() > 0, "nobody used a cookie: {received:?}");
}

#[test]
fn replayed_handshakes_change_nothing() {
    if !can_run() {
        return;
    }
    let mut pair = landbridge_pair(PairOptions {
        extra_group_lines: "rekey_after_s = 2\n".into(),
        ..PairOptions::default()
    });
    let recorded = {
        let relay = Relay::new(&pair, 11);
        let before = completed(&pair, Side::East);
        eventually("a handshake to be recorded", || match completed(&pair, Side::East) {
            after if after > before + 1 => Ok(()),
            after => Err(after.to_string()),
        });
        Side::BOTH.map(|side| {
            let packets = relay.recorded(side).into_iter();
            // IPv4 and UDP header, then the type: initiation 1, response 2.
            packets.filter(|packet| matches!(packet.get(28), Some(1 | 2))).collect::<Vec<_>>()
        })
    };
    assert!(recorded.iter().map(Vec::len).sum::<usize>() >= 2, "{recorded:?}");
    let group = fs::read_to_string(pair.group_file()).unwrap();
    pair.run
        .write("group.toml", &group.replace("rekey_after_s = 2", "rekey_after_s = 120"))
        .unwrap();
    // The first time to those who took part, the second to those who know nothing of it.
    for restarted in [false, true] {
        if restarted {
            for side in Side::BOTH {
                pair.start(side).unwrap();
            }
            pair.wait_for_tunnel().unwrap();
        }
        let relay = Relay::new(&pair, 12);
        let refused = |side| {
            let names = ["handshake_replayed", "handshake_invalid", "handshake_forged"];
            names.iter().map(|name| counter(&pair, side, name).unwrap()).sum::<u64>()
        };
        let before = Side::BOTH.map(refused);
        let sessions = Side::BOTH.map(|side| completed(&pair, side));
        for packet in recorded.iter().flatten().chain(recorded.iter().flatten()) {
            relay.inject(packet.clone());
        }
        eventually("the replays to be refused", || {
            let now = Side::BOTH.map(refused);
            let count = now.iter().sum::<u64>() - before.iter().sum::<u64>();
            // At least each first message's second copy.
            let firsts = recorded.iter().flatten().filter(|packet| packet[28] == 1);
            let least = firsts.count() as u64;
            if count >= least { Ok(()) } else { Err(format!("{before:?}, then {now:?}")) }
        });
        let report = ping(&pair.host(Side::East).namespace, pair.host(Side::West).v4.into(), 50);
        assert_eq!(report.unwrap().received, 50);
        for side in Side::BOTH {
            let peer = peer(&pair, side).unwrap();
            assert_eq!(peer.state, PeerState::Up);
            assert_eq!(peer.endpoint.unwrap().split(':').count(), 2);
            if restarted {
                assert_eq!(completed(&pair, side), sessions[side as usize], "{side:?}");
            }
        }
    }
}

/// Restarts the west appliance after `change`, and waits until `counter` of
/// `side` shows that it is refused.
fn assert_refused(
    pair: &mut TestPair,
    change: impl FnOnce(&TestPair),
    side: Side,
    counter_name: &str,
) {
    pair.appliance_mut(Side::West).stop();
    change(pair);
    pair.start(Side::West).unwrap();
    wait_for_counter_of_a_start(pair, side, counter_name);
    assert!(ping_once(pair).is_err());
    for side in Side::BOTH {
        assert_ne!(peer(pair, side).unwrap().state, PeerState::Up);
    }
}

fn wait_for_counter_of_a_start(pair: &TestPair, side: Side, name: &str) {
    eventually(name, || match counter(pair, side, name)? {
        0 => Err(pair.logs()),
        _ => Ok(()),
    });
}

#[test]
fn a_wrong_preshared_key_makes_no_tunnel() {
    if !can_run() {
        return;
    }
    let mut pair = landbridge_pair(PairOptions::default());
    let genpsk = |pair: &TestPair| {
        let binary = pair.binary(Side::West);
        let text = pair.run.command(&[&binary, "genpsk"]).unwrap().success().unwrap().stdout;
        pair.run.write("group.psk", &text).unwrap();
    };
    let group = fs::read_to_string(pair.group_file()).unwrap();
    let group =
        group.replace("name = \"lab\"\n", "name = \"lab\"\npreshared_key_file = \"group.psk\"\n");
    pair.run.write("group.toml", &group).unwrap();
    genpsk(&pair);
    for side in Side::BOTH {
        pair.start(side).unwrap();
    }
    pair.wait_for_tunnel().unwrap();
    assert_refused(&mut pair, genpsk, Side::East, "handshake_forged");
}

#[test]
fn a_wrong_public_key_makes_no_tunnel() {
    if !can_run() {
        return;
    }
    let mut pair = landbridge_pair(PairOptions::default());
    let east = public_key(&pair, Side::East).to_string();
    let other = PrivateKey::generate(&mut OsRandom).public().to_string();
    let change = |pair: &TestPair| {
        let group = fs::read_to_string(pair.group_file()).unwrap();
        pair.run.write("group.toml", &group.replace(&east, &other)).unwrap();
    };
    // What west sends is meant for the other key; what it hears is from one that it
    // doesn't know.
    assert_refused(&mut pair, change, Side::East, "handshake_invalid");
    wait_for_counter_of_a_start(&pair, Side::West, "handshake_unknown_peer");
}
