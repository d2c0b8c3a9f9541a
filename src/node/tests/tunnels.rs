//! Tunnels come up, survive what networks do, and come back.

use std::{net::Ipv4Addr, sync::atomic::Ordering::Relaxed, time::Duration};

use super::simulation::*;
use crate::{
    node::{ControlEvent, Counter, PeerStanding},
    session::VersionRange,
    time::Instant,
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn up(seed: u64, settings: NodeSettings) -> World {
    let mut world = World::pair(seed, settings);
    world.run_until(SECOND, |world| world.all_up()).expect("the tunnel comes up");
    world.run(SECOND);
    world
}

/// Sends a frame each way every 20 ms until one has crossed both ways; returns
/// how long that took.
pub(super) fn time_to_cross(world: &mut World, limit: Duration) -> Option<Duration> {
    for node in &mut world.nodes {
        node.frames.clear();
    }
    let (start, mut number) = (world.now, 0);
    while world.now - start < limit {
        number += 1;
        let there = frame(station(0), station(1), number, 100);
        let back = frame(station(1), station(0), number, 100);
        world.send(0, 0, APP, &[there]);
        world.send(1, 0, APP, &[back]);
        world.run(20 * MS);
        if world.nodes.iter().take(2).all(|node| !node.frames.is_empty()) {
            return Some(world.now - start);
        }
    }
    None
}

fn path_mtus(world: &World) -> Vec<u32> {
    let lanes = world.nodes.iter().flat_map(|node| &node.workers).map(|worker| {
        let statistics = worker.statistics();
        let (_, _, lane) = &statistics.lanes[0];
        lane.path_mtu.load(Relaxed)
    });
    lanes.collect()
}

/// Keeps both lanes of both nodes busy with full datagrams.
fn run_busy(world: &mut World, time: Duration) {
    let end = world.now + time;
    let mut number = 0;
    while world.now < end {
        number += 1;
        for node in 0..2 {
            let bytes = frame(station(node), station(1 - node), number, 9000);
            for worker in 0..world.nodes[node].settings.workers {
                world.send(node, worker, APP, std::slice::from_ref(&bytes));
            }
        }
        world.run(20 * MS);
    }
}

#[test]
fn comes_up_within_two_round_trips_and_a_half() {
    let mut world = World::pair(1, NodeSettings::default());
    let took = world.run_until(SECOND, |world| world.all_up());
    assert!(took <= Some(25 * MS), "{took:?}");
    assert!(took.is_some());
    assert_eq!(world.report(0, 0).lanes, Some(2));
}

#[test]
fn comes_up_while_a_third_of_all_datagrams_is_lost() {
    for seed in 0..10 {
        let mut world = World::pair(seed, NodeSettings::default());
        world.weather.loss_percent = 30;
        let took = world.run_until(5 * SECOND, |world| world.all_up());
        assert!(took.is_some(), "seed {seed}");
    }
}

#[test]
fn comes_up_over_a_satellite() {
    let mut world = World::pair(1, NodeSettings::default());
    world.weather.delay = 350 * MS;
    let took = world.run_until(5 * SECOND, |world| world.all_up());
    assert!(took.is_some_and(|took| took < 2 * SECOND), "{took:?}");
}

#[test]
fn same_seed_same_trace() {
    let trace = |seed| {
        let mut world = World::pair(seed, NodeSettings::default());
        world.weather = Weather { loss_percent: 10, jitter: 3 * MS, ..Weather::default() };
        run_busy(&mut world, SECOND / 2);
        world.trace()
    };
    assert_eq!(trace(7), trace(7));
    assert_ne!(trace(7), trace(8));
}

#[test]
fn both_sessions_of_a_simultaneous_start_stay_in_use() {
    let mut world = up(3, NodeSettings::default());
    let handshakes = world.count(0, Counter::HandshakeCompleted);
    assert_eq!(handshakes, 2, "each side began one");
    for number in 0..1500 {
        let bytes = frame(station(0), station(1), number, 60);
        world.send(0, 0, APP, &[bytes]);
        let bytes = frame(station(1), station(0), number, 60);
        world.send(1, 0, APP, &[bytes]);
        world.run(20 * MS);
    }
    for node in 0..2 {
        assert_eq!(world.nodes[node].frames.len(), 1500);
        assert_eq!(world.count(node, Counter::HandshakeCompleted), handshakes);
        assert_eq!(world.count(node, Counter::DatagramNoSession), 0);
    }
}

#[test]
fn clocks_need_not_agree_and_may_be_old() {
    let starts = [
        Instant::ZERO,
        Instant::from_nanos(60 * 86_400_000_000_000 - 1_000_000_000),
        Instant::from_nanos((1 << 58) - 1_500_000_000),
        Instant::from_nanos(u64::MAX - 86_400_000_000_000),
    ];
    for (index, clock_start) in starts.into_iter().enumerate() {
        let other = NodeSettings { rekey_after: 2 * SECOND, ..NodeSettings::default() };
        let mut world =
            World::new(index as u64, vec![NodeSettings { clock_start, ..other.clone() }, other]);
        run_busy(&mut world, 6 * SECOND);
        assert!(world.all_up(), "clock from {clock_start:?}");
        assert!(time_to_cross(&mut world, SECOND).is_some());
        assert_eq!(path_mtus(&world), [1500; 4], "clock from {clock_start:?}");
    }
}

#[test]
fn a_restarted_peer_is_back_within_a_second() {
    for (seed, node) in [(1, 0), (2, 1), (3, 0), (4, 1)] {
        let mut world = up(seed, NodeSettings::default());
        world.run(seed as u32 * 77 * MS);
        world.restart(node);
        let took = time_to_cross(&mut world, SECOND);
        assert!(took.is_some(), "seed {seed}");
        let restarted = ControlEvent::PeerRestarted { peer: PEER };
        assert!(world.nodes[1 - node].events.contains(&restarted), "seed {seed}");
        // Every lane in both directions, not only the first to come back.
        world.run(SECOND);
        for worker in 0..2 {
            for node in 0..2 {
                world.nodes[1 - node].frames.clear();
                let bytes = frame(station(node), station(1 - node), 1, 60);
                world.send(node, worker, APP, &[bytes]);
                world.run(10 * MS);
                assert_eq!(world.nodes[1 - node].frames.len(), 1, "seed {seed}");
            }
        }
    }
}

#[test]
fn a_restart_while_a_third_is_lost_is_survived() {
    for seed in 0..5 {
        let mut world = up(seed, NodeSettings::default());
        world.weather.loss_percent = 30;
        world.restart(0);
        assert!(time_to_cross(&mut world, 5 * SECOND).is_some(), "seed {seed}");
    }
}

#[test]
fn a_farewell_is_heard_at_once() {
    let mut world = up(1, NodeSettings::default());
    world.shut_down(1);
    world.run(6 * MS);
    assert!(matches!(world.report(0, 0).standing, PeerStanding::Down(_)));
    world.send(0, 0, APP, &[frame(station(0), station(1), 1, 60)]);
    assert_eq!(world.count(0, Counter::TunnelDown), 1);
    world.run(3 * SECOND);
    world.restart(1);
    assert!(time_to_cross(&mut world, SECOND).is_some());
}

#[test]
fn a_late_farewell_spares_the_next_process() {
    let mut world = up(1, NodeSettings::default());
    world.tap = Some(Vec::new());
    world.cuts.insert((1, 0));
    world.shut_down(1);
    let farewell = world.tap.take().unwrap().pop().expect("a farewell");
    world.cuts.clear();
    world.restart(1);
    assert!(time_to_cross(&mut world, SECOND).is_some());
    let received = |world: &World| world.report(0, 0).statistics.received_datagrams.load(Relaxed);
    let before = received(&world);
    world.inject(0, farewell.from, farewell.to.port(), &farewell.bytes);
    assert_eq!(received(&world), before + 1, "the old session still opens it");
    assert!(world.is_up(0));
    assert!(time_to_cross(&mut world, 60 * MS).is_some());
}

#[test]
fn silence_is_noticed_and_healed() {
    for cuts in [&[(0, 1), (1, 0)][..], &[(0, 1)], &[(1, 0)]] {
        let mut world = up(1, NodeSettings::default());
        world.cuts.extend(cuts);
        world.run(4 * SECOND);
        let deaf = cuts.last().unwrap().1;
        assert!(matches!(world.report(deaf, 0).standing, PeerStanding::Down(_)));
        world.cuts.clear();
        assert!(time_to_cross(&mut world, SECOND + 100 * MS).is_some(), "{cuts:?}");
        assert!(world.run_until(SECOND, |world| world.all_up()).is_some(), "{cuts:?}");
    }
}

#[test]
fn a_peer_behind_nat_is_followed_to_another_address_within_a_second() {
    let outer = |last| Ipv4Addr::new(203, 0, 113, last).into();
    let mut world = World::pair(5, NodeSettings::default());
    world.translate(0, outer(1));
    world.run(2 * SECOND);
    assert!(world.all_up());
    for address in [1, 2, 2, 3] {
        world.translate(0, outer(address));
        world.run(SECOND);
        // Only the far side speaks: nothing but the tunnel itself tells it where to.
        for worker in 0..2 {
            world.nodes[0].frames.clear();
            world.send(1, worker, APP, &[frame(station(1), station(0), 1, 60)]);
            world.run(10 * MS);
            assert_eq!(world.nodes[0].frames.len(), 1, "worker {worker}, {address}");
        }
    }
    assert_eq!(world.report(1, 0).path.unwrap().remote.ip(), outer(3));
}

#[test]
fn a_rekey_begun_by_the_far_side_of_a_nat_keeps_all_lanes() {
    for (seed, wait) in (0..20).map(|at| (at, at as u32 * 130 * MS)) {
        let near = NodeSettings::default();
        let far = NodeSettings { rekey_after: 2 * SECOND, ..NodeSettings::default() };
        let mut world = World::new(seed, vec![near, far]);
        world.translate(0, Ipv4Addr::new(203, 0, 113, 1).into());
        // The session is the NAT side's: the far side waits 10 s longer to replace it.
        world.run(11 * SECOND + wait);
        world.translate(0, Ipv4Addr::new(203, 0, 113, 2).into());
        world.run(4 * SECOND);
        for worker in 0..2 {
            for node in 0..2 {
                world.nodes[1 - node].frames.clear();
                let bytes = frame(station(node), station(1 - node), 1, 60);
                world.send(node, worker, APP, &[bytes]);
                world.run(10 * MS);
                let crossed = world.nodes[1 - node].frames.len();
                assert_eq!(crossed, 1, "seed {seed}, worker {worker} of {node}");
            }
        }
    }
}

#[test]
fn versions_without_an_overlap_are_reported_on_both_sides() {
    let later = VersionRange::new(7, 9).unwrap();
    let settings = NodeSettings::default();
    let mut world =
        World::new(1, vec![settings.clone(), NodeSettings { versions: later, ..settings }]);
    world.run(2 * SECOND);
    for node in 0..2 {
        let PeerStanding::Incompatible(reason) = world.report(node, 0).standing else {
            panic!("{:?}", world.report(node, 0).standing)
        };
        assert!(reason.contains("7 to 9"), "{reason}");
        let events = &world.nodes[node].events;
        let told = |event: &&ControlEvent| matches!(event, ControlEvent::PeerIncompatible { .. });
        assert_eq!(events.iter().filter(told).count(), 1);
        assert!(world.count(node, Counter::HandshakeIncompatible) > 0);
    }
}

#[test]
fn a_group_file_that_differs_is_told_and_drops_nothing() {
    let group = group_file(2).replace("simulated", "another");
    let settings = NodeSettings::default();
    let mut world = World::new(1, vec![settings.clone(), NodeSettings { group, ..settings }]);
    world.run(SECOND);
    assert!(world.all_up());
    for node in 0..2 {
        assert!(world.report(node, 0).group_differs);
        let told = ControlEvent::GroupFile { peer: PEER, differs: true };
        assert_eq!(world.nodes[node].events.iter().filter(|event| **event == told).count(), 1);
    }
}

#[test]
fn a_key_that_is_worn_is_replaced() {
    let mut world = up(1, NodeSettings::default());
    let before = world.report(0, 0).established;
    world.nodes[0].workers[1].wear_out();
    world.run(SECOND);
    assert!(world.report(0, 0).established > before);
    assert_eq!(world.count(0, Counter::HandshakeCompleted), 3, "once is enough");
}

#[test]
fn the_path_mtu_is_found_and_followed_down_and_up() {
    let mut world = up(1, NodeSettings::default());
    run_busy(&mut world, SECOND);
    assert_eq!(path_mtus(&world), [1500; 4]);
    world.weather.path_mtu = 1400;
    run_busy(&mut world, 4 * SECOND);
    assert_eq!(path_mtus(&world), [1400; 4]);
    world.weather.path_mtu = 9000;
    world.run(30 * SECOND);
    run_busy(&mut world, 2 * SECOND);
    assert_eq!(path_mtus(&world), [9000; 4]);
}

#[test]
fn an_outage_does_not_leave_small_datagrams_behind() {
    for outage in [1, 2, 5] {
        let mut world = up(1, NodeSettings::default());
        run_busy(&mut world, SECOND);
        world.cuts.extend([(0, 1), (1, 0)]);
        run_busy(&mut world, outage * SECOND);
        world.cuts.clear();
        run_busy(&mut world, 4 * SECOND);
        assert_eq!(path_mtus(&world), [1500; 4], "after {outage} s");
    }
}

#[test]
fn a_link_that_shrinks_loses_no_frame_that_is_still_being_sent() {
    let mut world = World::pair(1, NodeSettings::default());
    world.weather.path_mtu = 9000;
    run_busy(&mut world, SECOND);
    assert_eq!(path_mtus(&world), [9000; 4]);
    world.nodes[1].frames.clear();
    world.nodes[0].link_mtu = 1300;
    // More than one batch: the first one is refused while the frame is packed.
    let long = frame(station(0), station(1), 1, 65_500);
    let next = frame(station(0), station(1), 2, 65_500);
    world.send(0, 0, APP, &[long.clone(), next.clone()]);
    world.run(SECOND);
    let frames: Vec<_> = world.nodes[1].frames.iter().map(|frame| &frame.bytes).collect();
    let got: Vec<_> = frames.iter().map(|frame| (number(frame), frame.len())).collect();
    assert_eq!(got, [(1, 65_500), (2, 65_500)]);
    assert!(world.count(0, Counter::UnderlayTooBig) > 0);
    assert_eq!(path_mtus(&world)[0], 1300);
    assert!(time_to_cross(&mut world, SECOND).is_some());
}
