//! What is measured, in which order.

mod batch;
mod cpu;
mod frames;
mod loss;
mod ping;
mod rate;
mod segments;
mod tcp;

pub(crate) use cpu::busy_share;
pub(crate) use frames::PAYLOAD as FRAME_PAYLOAD;
pub(crate) use loss::PER_MILLE as LOSS_PER_MILLE;

use crate::{
    carriers::{Carrier, OURS},
    samples::{Cell, Samples},
    settings::Settings,
    topology::{Topology, Underlay, Wiring},
};
use anyhow::Result;
use landbridge::lab::{Process, Side};

/// Everything that is measured of one carrier on one underlay.
pub(crate) fn all(
    topology: &Topology<'_>,
    settings: &Settings,
    carrier: &Carrier,
    daemons: &[Process],
    cell: Cell,
    samples: &mut Samples,
) -> Result<()> {
    let mut add = |metric: &str, value: f64| samples.add(cell, metric, value);
    let rss = |when: &str, add: &mut dyn FnMut(&str, f64)| -> Result<()> {
        if let Some(bytes) = cpu::largest_resident_bytes(daemons)? {
            add(&format!("rss_mib/{when}"), bytes as f64 / f64::from(1 << 20));
        }
        Ok(())
    };
    rss("idle", &mut add)?;
    let servers = tcp::serve(topology)?;
    ping::measure(topology, settings, &mut add)?;
    // A cable without a bridge is about frames; its TCP is the bridge's.
    if carrier.wiring == Wiring::Bridge {
        tcp::measure(topology, settings, cell.underlay, daemons, &mut add)?;
    }
    if carrier.name == OURS && settings.loss && cell.underlay == Underlay::Real {
        loss::measure(topology, settings, &mut add)?;
    }
    drop(servers);
    frames::measure(topology, settings, &mut add)?;
    segments::measure(topology, settings, &mut add)?;
    rss("after", &mut add)
}

/// Metric suffix of a direction.
fn direction(from: Side) -> String {
    format!("{}-{}", from.site(), from.other().site())
}

/// Panics where a parser is wrong; run at every start.
pub(crate) fn self_check() {
    tcp::self_check();
    ping::self_check();
    loss::self_check();
    cpu::self_check();
}
