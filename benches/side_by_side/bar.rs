//! The bar: what Landbridge must reach side by side with the others.

use crate::{
    carriers::{Carrier, OURS, OURS_NIC, VXLAN},
    samples::Samples,
    topology::Underlay::{self, Gso, Real},
};
use serde::Serialize;

/// One requirement and what was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Requirement {
    pub(crate) what: String,
    /// `None` where something that it needs was not measured.
    pub(crate) measured: Option<f64>,
    pub(crate) must: Must,
}

/// The value that is met.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) enum Must {
    AtLeast(f64),
    AtMost(f64),
}

/// Whether more or less of a metric is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    More,
    Less,
}

impl Must {
    pub(crate) fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

/// The encrypted carrier other than Landbridge that has the best median.
pub(crate) fn best_peer(
    samples: &Samples,
    carriers: &[&Carrier],
    underlay: Underlay,
    metric: &str,
    better: Better,
) -> Option<(&'static str, f64)> {
    carriers
        .iter()
        .filter(|carrier| carrier.encrypted && !carrier.is_ours())
        .filter_map(|carrier| Some((carrier.name, samples.median(underlay, carrier.name, metric)?)))
        .max_by(|(_, a), (_, b)| match better {
            Better::More => a.total_cmp(b),
            Better::Less => b.total_cmp(a),
        })
}

/// Every requirement; both directions are pooled.
pub(crate) fn requirements(samples: &Samples, carriers: &[&Carrier]) -> Vec<Requirement> {
    let ours = |underlay, carrier, metric: &str| samples.median(underlay, carrier, metric);
    let to_peer = |carrier, metric: &str, better| {
        let (_, peer) = best_peer(samples, carriers, Real, metric, better)?;
        Some(ours(Real, carrier, metric)? / peer)
    };
    let to_vxlan = |underlay, metric: &str| {
        Some(ours(underlay, OURS, metric)? / ours(underlay, VXLAN, metric)?)
    };
    let mut all = Vec::new();
    let mut add = |what: String, measured, must| all.push(Requirement { what, measured, must });
    for streams in [1, 4] {
        let metric = format!("tcp_gbps/{streams}");
        let name = format!("TCP, {streams} stream{}", if streams == 1 { "" } else { "s" });
        add(
            format!("{name}, real packets, of the best encrypted peer"),
            to_peer(OURS, &metric, Better::More),
            Must::AtLeast(4.0),
        );
        add(
            format!("{name}, real packets, of VXLAN"),
            to_vxlan(Real, &metric),
            Must::AtLeast(0.65),
        );
        add(format!("{name}, GSO underlay, of VXLAN"), to_vxlan(Gso, &metric), Must::AtLeast(0.40));
        let metric = format!("tcp_machine_cpu_s_per_gb/{streams}");
        add(
            format!("machine CPU-s/GB, {name}, real packets, of the best encrypted peer"),
            to_peer(OURS, &metric, Better::Less),
            Must::AtMost(0.25),
        );
    }
    add(
        "64-byte frames, TAP, real packets, of the best encrypted peer".into(),
        to_peer(OURS, "frames_per_s", Better::More),
        Must::AtLeast(1.5),
    );
    add(
        "64-byte frames, AF_PACKET, real packets, of the best encrypted peer".into(),
        to_peer(OURS_NIC, "frames_per_s", Better::More),
        Must::AtLeast(3.0),
    );
    for underlay in [Real, Gso] {
        let rate = ours(underlay, OURS, "segments_per_s").map(|rate| rate / 1e6);
        add(
            format!("USO end to end, {underlay} underlay, million datagrams/s"),
            rate,
            Must::AtLeast(3.0),
        );
    }
    add(
        "idle ping, median, real packets, of the best encrypted peer".into(),
        to_peer(OURS, "ping_us/idle/median", Better::Less),
        Must::AtMost(1.0),
    );
    let goodput = |per_mille| {
        let lossless = ours(Real, OURS, "loss_gbps/0")?;
        Some(ours(Real, OURS, &format!("loss_gbps/{per_mille}"))? / lossless)
    };
    add("goodput at 0.1 % loss, of that without (BBR)".into(), goodput(1), Must::AtLeast(0.85));
    add("goodput at 1 % loss, of that without (BBR)".into(), goodput(10), Must::AtLeast(0.6));
    for (per_mille, percent) in [(1, "0.1"), (10, "1")] {
        let metric = format!("segments_per_lost_datagram/{per_mille}");
        add(
            format!("segments lost per lost datagram at {percent} %"),
            ours(Real, OURS, &metric),
            Must::AtMost(3.5),
        );
    }
    all
}
