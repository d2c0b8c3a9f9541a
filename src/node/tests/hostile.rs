//! What a stranger, a recorder or a bad member can send changes nothing.

use std::time::Duration;

use super::{simulation::*, tunnels::time_to_cross};
use crate::{
    node::Counter,
    session::{
        CipherSet, Hello, Identity, Initiator, LaneCount, SoftwareVersion, VersionRange,
        random::SeededRandom,
    },
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A pair that is up, with everything that it sent so far.
fn recorded() -> (World, Vec<Datagram>) {
    let mut world = World::pair(1, NodeSettings::default());
    world.tap = Some(Vec::new());
    world.run(SECOND);
    for number in 0..20 {
        world.send(0, 0, APP, &[frame(station(0), station(1), number, 3000)]);
        world.send(1, 1, APP, &[frame(station(1), station(0), number, 300)]);
    }
    world.run(100 * MS);
    let recording = world.tap.take().unwrap();
    (world, recording)
}

fn stranger(last: u8) -> std::net::SocketAddr {
    std::net::SocketAddr::from(([198, 51, 100, last], 4000))
}

/// All that must not change.
fn state(world: &World) -> String {
    let nodes = world.nodes.iter().map(|node| {
        let lanes = node.workers.iter().map(|worker| format!("{:?}", worker.statistics().lanes));
        let timeouts = node.workers.iter().map(|worker| worker.poll_timeout());
        format!(
            "{:?} {:?} {:?} {:?} {}",
            node.control.report(),
            node.control.poll_timeout(),
            lanes.collect::<Vec<_>>(),
            timeouts.collect::<Vec<_>>(),
            node.frames.len(),
        )
    });
    nodes.collect::<Vec<_>>().join("\n")
}

fn target(datagram: &Datagram) -> usize {
    usize::from(datagram.to.ip() == address(1))
}

/// The local port of its receiver, who has no NAT.
fn port(datagram: &Datagram) -> u16 {
    datagram.to.port()
}

#[test]
fn replayed_datagrams_change_nothing() {
    let (mut world, recording) = recorded();
    assert!(recording.len() > 100);
    world.tap = Some(Vec::new());
    let before = state(&world);
    // Those that the path swallowed for their size were never received: authentic news.
    let received = recording.iter().filter(|datagram| datagram.bytes.len() + 28 <= 1500);
    for (at, datagram) in received.enumerate() {
        let from = if at % 2 == 0 { stranger(at as u8) } else { datagram.from };
        world.inject(target(datagram), from, port(datagram), &datagram.bytes);
    }
    assert_eq!(state(&world), before);
    assert_eq!(world.tap.as_ref().unwrap(), &[]);
    for node in 0..2 {
        assert!(world.count(node, Counter::DatagramReplayed) > 20);
        assert_eq!(world.count(node, Counter::HandshakeReplayed), 1);
    }
    assert!(time_to_cross(&mut world, 40 * MS).is_some());
}

#[test]
fn damaged_datagrams_change_nothing() {
    let (mut world, recording) = recorded();
    let (mut fresh, _) = recorded();
    fresh.tap = Some(Vec::new());
    // The same world a little later: datagrams that have not been received here.
    for number in 0..5 {
        fresh.send(0, 0, APP, &[frame(station(0), station(1), number, 3000)]);
    }
    fresh.run(300 * MS);
    let news = fresh.tap.take().unwrap();
    assert!(news.len() > 10);
    world.tap = Some(Vec::new());
    let before = state(&world);
    for (at, datagram) in recording.iter().chain(&news).enumerate() {
        let mut damaged = datagram.bytes.clone();
        // The last 16 bytes of a handshake are a MAC that only counts under load.
        let end = if damaged[0] < 4 { damaged.len() - 16 } else { damaged.len() };
        damaged[(at * 7919) % end] ^= 1 << (at % 8);
        world.inject(target(datagram), stranger(1), port(datagram), &damaged);
        let cut = at % damaged.len();
        world.inject(target(datagram), stranger(1), port(datagram), &datagram.bytes[..cut]);
        let longer = [&datagram.bytes[..], &[0]].concat();
        world.inject(target(datagram), stranger(1), port(datagram), &longer);
    }
    let answers = world.tap.take().unwrap();
    let cookies = answers.iter().filter(|datagram| datagram.bytes[0] == 3).count();
    assert_eq!(answers.len(), cookies, "nothing but cookies, where there is load");
    assert_eq!(state(&world), before);
    assert!(time_to_cross(&mut world, 40 * MS).is_some());
}

/// First messages as node 0 may have sent them some time ago.
fn initiations(count: u64) -> Vec<Vec<u8>> {
    let identity = Identity { private: private_key(0), preshared: None };
    let hello = Hello {
        versions: VersionRange::LOCAL,
        capabilities: 0,
        lanes: LaneCount::ONE,
        ciphers: CipherSet::for_hardware(true),
        group_digest: [0; 32],
        software: SoftwareVersion::lossy(b"old"),
        startup_id: 1,
    };
    let mut random = SeededRandom(77);
    let start = |at: u64| {
        let remote = private_key(1).public();
        let begun = Initiator::start(&identity, &remote, at as u32, &hello, None, &mut random);
        begun.expect("usable keys").1
    };
    (0..count).map(start).collect()
}

#[test]
fn hundreds_of_old_initiations_evict_no_session() {
    let mut world = World::pair(1, NodeSettings::default());
    world.run(SECOND);
    let before = (world.report(1, 0).established, world.report(1, 0).path);
    for (at, initiation) in initiations(200).iter().enumerate() {
        world.inject(1, stranger(at as u8), LISTENER_PORT, initiation);
        world.send(0, 0, APP, &[frame(station(0), station(1), at as u64, 60)]);
        world.send(1, 0, APP, &[frame(station(1), station(0), at as u64, 60)]);
        world.run(20 * MS);
    }
    world.run(10 * SECOND);
    assert_eq!((world.report(1, 0).established, world.report(1, 0).path), before);
    assert_eq!(world.report(1, 0).software, "simulated");
    for node in 0..2 {
        assert_eq!(world.nodes[node].frames.len(), 200);
        assert_eq!(world.count(node, Counter::HandshakeCompleted), 2);
    }
}

#[test]
fn a_peer_comes_back_through_a_flood_by_way_of_a_cookie() {
    let mut world = World::pair(1, NodeSettings::default());
    world.run(SECOND);
    // Only node 0 can begin: node 1 does not reach a fresh translator.
    world.translate(0, std::net::Ipv4Addr::new(203, 0, 113, 1).into());
    let flood = initiations(100);
    world.restart(0);
    let mut crossed = false;
    for round in 0..50 {
        for (at, initiation) in flood.iter().enumerate() {
            world.inject(1, stranger(at as u8), LISTENER_PORT, initiation);
        }
        world.run(20 * MS);
        world.send(0, 0, APP, &[frame(station(0), station(1), round, 60)]);
        crossed |= !world.nodes[1].frames.is_empty();
    }
    assert!(crossed);
    assert!(world.count(1, Counter::CookieSent) > 1000);
    assert!(world.count(0, Counter::CookieReceived) > 0);
}

#[test]
fn a_flood_of_responses_does_not_keep_the_real_one_out() {
    let (mut world, recording) = recorded();
    let response = recording
        .iter()
        .find(|datagram| datagram.bytes[0] == 2 && target(datagram) == 0)
        .expect("node 1 answered")
        .clone();
    world.restart(0);
    for _ in 0..20 {
        for _ in 0..50 {
            let port = world.nodes[0].control_dialer();
            world.inject(0, response.from, port, &response.bytes);
        }
        world.run(MS);
    }
    assert!(world.is_up(0));
    assert_eq!(world.count(0, Counter::HandshakeRate), 0);
    assert!(world.count(0, Counter::HandshakeInvalid) >= 1000);
}

#[test]
fn a_copy_that_overtakes_the_original_diverts_the_tunnel_for_a_moment_only() {
    let mut world = World::pair(1, NodeSettings::default());
    world.run(SECOND);
    world.tap = Some(Vec::new());
    world.cuts.insert((0, 1));
    world.run(250 * MS);
    let caught = world.tap.take().unwrap();
    world.cuts.clear();
    for datagram in caught.iter().filter(|datagram| target(datagram) == 1) {
        world.inject(1, stranger(1), port(datagram), &datagram.bytes);
    }
    world.run(2 * SECOND);
    assert_ne!(world.report(1, 0).path.unwrap().remote, stranger(1));
    assert!(time_to_cross(&mut world, 40 * MS).is_some());
}
