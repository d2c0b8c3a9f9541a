//! Frames cross whole, once, in order, and only where they belong.

use std::time::Duration;

use super::simulation::*;
use crate::{node::Counter, wire::ethernet::MacAddr};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn up(settings: Vec<NodeSettings>) -> World {
    let mut world = World::new(9, settings);
    world.run(SECOND);
    assert!(world.all_up());
    world
}

/// Frames that arrived by one worker, in order.
fn numbers(world: &World, node: usize, worker: u8) -> Vec<u64> {
    let frames = world.nodes[node].frames.iter().filter(|frame| frame.worker == worker);
    frames.map(|frame| number(&frame.bytes)).collect()
}

#[test]
fn every_length_crosses_byte_for_byte_and_in_order() {
    let mut world = up(vec![NodeSettings::default(); 2]);
    let lengths = [22, 60, 1400, 1514, 1518, 4000, 9216, 9238, 65_000, 23];
    for node in 0..2 {
        let frames: Vec<_> = (0..100)
            .map(|at| {
                frame(station(node), station(1 - node), at, lengths[at as usize % lengths.len()])
            })
            .collect();
        world.nodes[1 - node].frames.clear();
        for burst in frames.chunks(16) {
            world.send(node, 1, APP, burst);
        }
        let mut shortest = frames[0][..14].to_vec();
        shortest[12..].copy_from_slice(&[0xaa, 0xbb]);
        world.send(node, 1, APP, std::slice::from_ref(&shortest));
        world.run(50 * MS);
        let arrived: Vec<_> =
            world.nodes[1 - node].frames.iter().map(|frame| frame.bytes.clone()).collect();
        assert_eq!(arrived.len(), 101);
        assert_eq!(arrived[..100], frames);
        assert_eq!(arrived[100], shortest);
    }
}

#[test]
fn a_rekey_under_traffic_loses_and_doubles_nothing() {
    let settings = NodeSettings { rekey_after: 2 * SECOND, ..NodeSettings::default() };
    let mut world = up(vec![settings; 2]);
    const FRAMES: u64 = 2500;
    for at in 0..FRAMES {
        for (node, worker) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let bytes = frame(station(node), station(1 - node), at, 60 + (at as usize * 97) % 4000);
            world.send(node, worker, APP, &[bytes]);
        }
        world.run(4 * MS);
    }
    world.run(50 * MS);
    assert!(world.count(0, Counter::HandshakeCompleted) >= 5);
    for node in 0..2 {
        for worker in 0..2 {
            assert_eq!(numbers(&world, node, worker), (0..FRAMES).collect::<Vec<_>>());
        }
        for counter in [
            Counter::DatagramNoSession,
            Counter::DatagramReplayed,
            Counter::DatagramForged,
            Counter::StreamMissing,
            Counter::StreamLate,
            Counter::RecordTruncated,
            Counter::RecordMalformed,
            Counter::TunnelDown,
        ] {
            assert_eq!(world.count(node, counter), 0, "{}", counter.name());
        }
    }
}

#[test]
fn one_lane_and_four_lanes_work_together() {
    let one = NodeSettings { workers: 1, ..NodeSettings::default() };
    let four = NodeSettings { workers: 4, ..NodeSettings::default() };
    let mut world = up(vec![one, four]);
    for node in 0..2 {
        assert_eq!(world.report(node, 0).lanes, Some(4));
    }
    for worker in 0..4 {
        world.send(1, worker, APP, &[frame(station(1), station(0), u64::from(worker), 3000)]);
    }
    world.send(0, 0, APP, &[frame(station(0), station(1), 9, 3000)]);
    world.run(20 * MS);
    let mut arrived = numbers(&world, 0, 0);
    arrived.sort_unstable();
    assert_eq!(arrived, [0, 1, 2, 3]);
    assert_eq!(numbers(&world, 1, 0), [9]);
}

#[test]
fn three_sites_share_a_lan_and_never_relay() {
    let settings = NodeSettings { group: group_file(3), ..NodeSettings::default() };
    let mut world = up(vec![settings; 3]);
    world.send(0, 0, APP, &[frame(station(0), MacAddr::BROADCAST, 1, 60)]);
    world.run(20 * MS);
    let arrived = |world: &World| [0, 1, 2].map(|node| world.nodes[node].frames.len());
    assert_eq!(arrived(&world), [0, 1, 1]);
    // Site 0's station is known now: its answer goes there alone.
    world.send(1, 1, APP, &[frame(station(1), station(0), 2, 60)]);
    world.run(20 * MS);
    assert_eq!(arrived(&world), [1, 1, 1]);
    // From a tunnel to a station that is known to live elsewhere: not relayed.
    world.send(0, 0, APP, &[frame(station(0), station(2), 3, 60)]);
    world.run(20 * MS);
    assert_eq!(arrived(&world), [1, 2, 2]);
    // A known station on the same LAN.
    world.send(0, 0, APP, &[frame(station(0), station(9), 4, 60)]);
    world.send(0, 0, APP, &[frame(station(9), station(0), 5, 60)]);
    world.run(20 * MS);
    assert_eq!(arrived(&world), [1, 3, 3]);
    assert_eq!(world.count(0, Counter::LanLocalDestination), 1);
}

#[test]
fn networks_are_kept_apart() {
    let mut world = up(vec![NodeSettings::default(); 2]);
    world.send(0, 0, DB, &[frame(station(0), station(1), 1, 60)]);
    world.send(0, 0, APP, &[frame(station(0), station(1), 2, 60)]);
    world.run(20 * MS);
    let ports: Vec<_> = world.nodes[1].frames.iter().map(|frame| frame.port).collect();
    assert_eq!(ports, [DB, APP]);
}

#[test]
fn networks_that_are_unknown_or_elsewhere_are_counted() {
    let without_db = group_file(2).split("[[network]]\nid = 200").next().unwrap().to_owned();
    let settings = NodeSettings::default();
    let other = NodeSettings { group: without_db, ..settings.clone() };
    let mut world = up(vec![settings.clone(), other]);
    world.send(0, 0, DB, &[frame(station(0), station(1), 1, 60)]);
    world.run(20 * MS);
    assert_eq!(world.count(1, Counter::NetworkUnknown), 1);
    assert!(world.nodes[1].frames.is_empty());

    // Site 2 has no "db" in its own file, but in that of site 0.
    let honest = NodeSettings { group: group_file(3), ..settings };
    let claim = group_file(3) + "attach.s2 = { tap = \"db\" }\n";
    let liar = NodeSettings { group: claim, ..honest.clone() };
    let mut world = up(vec![liar, honest.clone(), honest]);
    world.send(0, 0, DB, &[frame(station(0), station(2), 1, 60)]);
    world.run(20 * MS);
    assert_eq!(world.count(2, Counter::NetworkNotAttached), 1);
    assert_eq!(world.nodes[1].frames.len(), 1);
    assert!(world.nodes[2].frames.is_empty());
}

#[test]
fn frames_without_a_tunnel_are_counted_one_by_one() {
    let mut world = World::pair(1, NodeSettings::default());
    let frames: Vec<_> = (0..5).map(|at| frame(station(0), station(1), at, 60)).collect();
    world.send(0, 0, APP, &frames);
    assert_eq!(world.count(0, Counter::TunnelDown), 5);
    let short = vec![0; 13];
    world.send(0, 0, APP, &[short]);
    assert_eq!(world.count(0, Counter::LanLength), 1);
}
