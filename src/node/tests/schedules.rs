//! Random schedules: whatever the network does, no frame is invented, changed
//! or doubled; and when it is over, frames cross again.

use std::{collections::HashSet, net::Ipv4Addr, time::Duration};

use super::{simulation::*, tunnels::time_to_cross};
use crate::{node::PeerStanding, time::Instant};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const SEEDS: u64 = 100;

struct Schedule {
    world: World,
    sent: [HashSet<Vec<u8>>; 2],
    number: u64,
}

impl Schedule {
    fn new(seed: u64) -> Self {
        let mut settings = vec![NodeSettings::default(); 2];
        let mut dice = World::new(seed, Vec::new());
        for settings in &mut settings {
            settings.workers = 1 + dice.byte() % 3;
            settings.rekey_after = u32::from(1 + dice.byte() % 3) * SECOND;
            settings.clock_start = Instant::from_nanos(u64::from(dice.byte()) << 54);
        }
        let mut world = World::new(seed, settings);
        if dice.chance(30) {
            world.translate(0, Ipv4Addr::new(203, 0, 113, 1).into());
        }
        Self { world, sent: Default::default(), number: 0 }
    }

    fn change_weather(&mut self) {
        let world = &mut self.world;
        world.weather = Weather {
            loss_percent: world.byte() % 30,
            duplication_percent: world.byte() % 20,
            delay: u32::from(1 + world.byte() % 40) * MS,
            jitter: u32::from(world.byte() % 10) * MS,
            path_mtu: [700, 1280, 1420, 1500, 9000][usize::from(world.byte()) % 5],
        };
        match world.byte() % 8 {
            0 => world.restart(0),
            1 => world.restart(1),
            2 => drop(world.cuts.insert((0, 1))),
            3 => drop(world.cuts.insert((1, 0))),
            4 if world.nodes[0].outer_address() != address(0) => {
                world.translate(0, Ipv4Addr::new(203, 0, 113, 2).into());
            }
            5 => world.nodes[1].link_mtu = [1300, 1500, 9000][usize::from(world.byte()) % 3],
            _ => world.cuts.clear(),
        }
    }

    fn send(&mut self) {
        for node in 0..2 {
            let worker = self.world.byte() % self.world.nodes[node].settings.workers;
            let frames: Vec<_> = (0..1 + self.world.byte() % 3)
                .map(|_| {
                    self.number += 1;
                    let length = 22 + usize::from(self.world.byte()) * 20;
                    frame(station(node), station(1 - node), self.number, length)
                })
                .collect();
            self.sent[1 - node].extend(frames.iter().cloned());
            self.world.send(node, worker, APP, &frames);
        }
    }

    /// Takes what arrived: each frame was sent, and comes once.
    fn collect(&mut self) {
        for node in 0..2 {
            for frame in std::mem::take(&mut self.world.nodes[node].frames) {
                assert!(self.sent[node].remove(&frame.bytes), "frame {}", number(&frame.bytes));
            }
        }
    }
}

fn run(seed: u64) -> u64 {
    let mut schedule = Schedule::new(seed);
    for _ in 0..4 {
        schedule.change_weather();
        for _ in 0..12 {
            schedule.send();
            schedule.world.run(50 * MS);
            schedule.collect();
        }
    }
    let world = &mut schedule.world;
    world.weather = Weather::default();
    world.cuts.clear();
    assert!(time_to_cross(world, 2 * SECOND).is_some(), "frames cross again");
    world.run(2 * SECOND);
    assert!(world.all_up());
    // Every lane, in both directions, once a path that shrank was noticed.
    for round in 0..30 {
        for node in 0..2 {
            for worker in 0..world.nodes[node].settings.workers {
                let bytes = frame(station(node), station(1 - node), round, 9000);
                world.send(node, worker, APP, &[bytes]);
            }
        }
        world.run(100 * MS);
    }
    for node in 0..2 {
        for worker in 0..world.nodes[node].settings.workers {
            world.nodes[1 - node].frames.clear();
            world.send(node, worker, APP, &[frame(station(node), station(1 - node), 0, 9000)]);
            world.run(10 * MS);
            assert_eq!(world.nodes[1 - node].frames.len(), 1, "worker {worker} of {node}");
        }
    }
    let standings = (0..2).map(|node| world.report(node, 0).standing);
    assert!(standings.into_iter().all(|standing| standing == PeerStanding::Up));
    world.trace()
}

#[test]
fn random_schedules_are_safe_and_heal() {
    for seed in 0..SEEDS {
        if let Err(cause) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("schedule with seed {seed} failed");
            std::panic::resume_unwind(cause);
        }
    }
}

#[test]
fn a_schedule_can_be_repeated() {
    assert_eq!(run(17), run(17));
}
