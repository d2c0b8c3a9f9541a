//! The rate of datagrams that a carrier keeps up with.

use super::batch::{BATCH, BatchReceiver, BatchSender};
use crate::{settings::Settings, topology::Topology};
use anyhow::{Context, Result};
use landbridge::lab::check_interrupt;
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

/// What is sent, and how it is received.
pub(super) struct Load {
    /// Bytes of one datagram's payload.
    pub(super) datagram: usize,
    /// Datagrams handed to the kernel as one message (UDP_SEGMENT), and taken as
    /// one if it likes (UDP_GRO).
    pub(super) datagrams_per_message: usize,
    /// Where the search begins, datagrams per second.
    pub(super) first_rate: f64,
}

/// What one step saw.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// Datagrams received per second, while they were being sent.
    received_rate: f64,
    /// Share lost, 0 to 1.
    lost: f64,
    /// Whether the sender kept up with the rate asked for.
    kept_up: bool,
}

/// What a search found, datagrams per second.
pub(super) struct Found {
    /// Received in the best step that lost less than 1 %.
    pub(super) sustained: f64,
    /// Received in the best step of all.
    pub(super) most: f64,
}

/// UDP flows that datagrams are spread over.
pub(super) const FLOWS: usize = 4;
const LOSS_MAX: f64 = 0.01;
/// The search ends when its bounds are this close to each other.
const PRECISION: f64 = 1.06;
/// How long the sender sleeps when nothing is due: the daemon may share its core.
const PAUSE: Duration = Duration::from_micros(50);
const DRAIN_MAX: Duration = Duration::from_millis(500);
const DRAIN_SILENCE: Duration = Duration::from_millis(40);

/// Searches from the east host to the west one: doubles the rate until more than
/// 1 % is lost or the sender can do no more, then halves the interval.
pub(super) fn search(topology: &Topology<'_>, settings: &Settings, load: &Load) -> Result<Found> {
    let [east, west] = topology.sites();
    let message = load.datagram * load.datagrams_per_message;
    let (longest, coalesced) = match load.datagrams_per_message {
        1 => (2048, false),
        _ => (65_535, true),
    };
    let mut receiver = west
        .host
        .enter(|| BatchReceiver::new((west.host_address(), 0).into(), longest, coalesced))??;
    let target = receiver.local_address()?;
    let sender = east.host.enter(|| BatchSender::new(FLOWS, target, message, load.datagram))??;
    let (received, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let receiving = scope.spawn(|| -> Result<()> {
            west.cores.map_or(Ok(()), |cores| cores.pin_this_thread())?;
            while !stop.load(Ordering::Relaxed) {
                let mut datagrams = 0;
                receiver.receive(|length| datagrams += length.div_ceil(load.datagram) as u64)?;
                received.fetch_add(datagrams, Ordering::Relaxed);
            }
            Ok(())
        });
        let sending = scope.spawn(|| -> Result<Found> {
            east.cores.map_or(Ok(()), |cores| cores.pin_this_thread())?;
            let per_message = load.datagrams_per_message as u64;
            let mut probe = Probe { sender, received: &received, per_message };
            probe.search(load.first_rate, Duration::from_millis(settings.step_ms()))
        });
        let found = sending.join();
        stop.store(true, Ordering::Relaxed);
        receiving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        found.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

struct Probe<'a> {
    sender: BatchSender,
    received: &'a AtomicU64,
    per_message: u64,
}

impl Probe<'_> {
    fn search(&mut self, first_rate: f64, duration: Duration) -> Result<Found> {
        let mut found = Found { sustained: 0.0, most: 0.0 };
        // Learns addresses, fills caches; what it loses says nothing.
        self.step(first_rate, duration / 2)?;
        let (mut low, mut high, mut rate) = (0.0, f64::INFINITY, first_rate);
        while high > low * PRECISION {
            check_interrupt()?;
            let mut step = self.step(rate, duration)?;
            // A hiccup of the machine is not the carrier's limit: it has a second try.
            if step.lost >= LOSS_MAX && step.lost < 5.0 * LOSS_MAX {
                found.note(step);
                step = self.step(rate, duration)?;
            }
            found.note(step);
            if step.lost < LOSS_MAX && step.kept_up {
                low = rate;
            } else {
                high = rate;
            }
            rate = if high.is_finite() { f64::midpoint(low, high) } else { rate * 2.0 };
            // Not even a hundredth of the first rate gets through.
            if high < first_rate / 100.0 {
                break;
            }
        }
        Ok(found)
    }

    fn step(&mut self, rate: f64, duration: Duration) -> Result<Step> {
        let before = self.received.load(Ordering::Relaxed);
        let start = Instant::now();
        let mut sent: u64 = 0;
        let elapsed = loop {
            let elapsed = start.elapsed();
            if elapsed >= duration {
                break elapsed.as_secs_f64();
            }
            let due = (rate * elapsed.as_secs_f64()) as u64;
            let messages = due.saturating_sub(sent) / self.per_message;
            if messages == 0 {
                thread::sleep(PAUSE);
                continue;
            }
            let count = messages.min(BATCH as u64) as usize;
            match self.sender.send(count) {
                Ok(messages) => sent += messages as u64 * self.per_message,
                // The queue is full, or an earlier datagram was refused.
                Err(_) => thread::sleep(PAUSE),
            }
        };
        let in_time = self.received.load(Ordering::Relaxed) - before;
        self.drain(before + sent);
        let received = self.received.load(Ordering::Relaxed) - before;
        anyhow::ensure!(sent > 0, "nothing could be sent");
        Ok(Step {
            received_rate: in_time as f64 / elapsed,
            lost: 1.0 - (received as f64 / sent as f64).min(1.0),
            kept_up: sent as f64 >= 0.95 * rate * elapsed,
        })
    }

    /// Waits until `expected` were received, or nothing more comes.
    fn drain(&self, expected: u64) {
        let start = Instant::now();
        let (mut last, mut last_change) = (0, start);
        while start.elapsed() < DRAIN_MAX && last_change.elapsed() < DRAIN_SILENCE {
            let received = self.received.load(Ordering::Relaxed);
            if received >= expected {
                return;
            }
            if received != last {
                (last, last_change) = (received, Instant::now());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Found {
    fn note(&mut self, step: Step) {
        self.most = self.most.max(step.received_rate);
        if step.lost < LOSS_MAX {
            self.sustained = self.sustained.max(step.received_rate);
        }
    }
}

/// The rate of `found` if there is one.
pub(super) fn positive(rate: f64) -> Result<f64> {
    (rate > 0.0).then_some(rate).context("no datagram arrived")
}
