//! What was measured, and its medians.

use crate::topology::Underlay;
use serde::Serialize;

/// All that was measured so far.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Samples {
    samples: Vec<Sample>,
    failures: Vec<(Cell, String)>,
    notes: Vec<String>,
    /// Share of all cores that was busy before each round, 0 to 1.
    busy_before: Vec<f64>,
}

/// One measurement.
#[derive(Debug, Serialize)]
struct Sample {
    #[serde(flatten)]
    cell: Cell,
    /// Words separated by slashes, from what to how; the unit is part of the first.
    metric: String,
    value: f64,
}

/// Where and when a measurement was made.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Cell {
    pub(crate) round: u32,
    pub(crate) underlay: Underlay,
    pub(crate) carrier: &'static str,
}

impl Samples {
    pub(crate) fn add(&mut self, cell: Cell, metric: &str, value: f64) {
        eprintln!("  {metric}: {value:.4}");
        self.samples.push(Sample { cell, metric: metric.to_owned(), value });
    }

    /// Notes that a carrier failed; it is left out of later rounds on that underlay
    /// once it failed twice.
    pub(crate) fn give_up(&mut self, cell: Cell, why: String) {
        self.failures.push((cell, why));
    }

    pub(crate) fn gave_up(&self, cell: &Cell) -> bool {
        let same = |other: &Cell| other.underlay == cell.underlay && other.carrier == cell.carrier;
        self.failures.iter().filter(|(other, _)| same(other)).count() >= 2
    }

    /// Notes what the machine did before a round, by itself.
    pub(crate) fn note_busy_share(&mut self, share: f64) {
        self.busy_before.push(share);
    }

    /// What the machine did before each round, in percent, for people.
    pub(crate) fn busy_shares(&self) -> String {
        let percent = |share: &f64| format!("{:.0}", share * 100.0);
        self.busy_before.iter().map(percent).collect::<Vec<_>>().join(", ")
    }

    /// Adds a sentence to the report.
    pub(crate) fn note(&mut self, sentence: String) {
        self.notes.push(sentence);
    }

    /// Every failure and note, as sentences.
    pub(crate) fn notes(&self) -> Vec<String> {
        let failure = |(cell, why): &(Cell, String)| {
            let Cell { round, underlay, carrier } = cell;
            format!("{carrier}, {underlay}, round {round}: {why}")
        };
        self.notes.iter().cloned().chain(self.failures.iter().map(failure)).collect()
    }

    /// The median over all rounds of the metrics that are `metric` or lie below it
    /// (`tcp_gbps/1` pools both directions).
    pub(crate) fn median(&self, underlay: Underlay, carrier: &str, metric: &str) -> Option<f64> {
        let belongs = |sample: &&Sample| {
            sample.cell.underlay == underlay
                && sample.cell.carrier == carrier
                && sample
                    .metric
                    .strip_prefix(metric)
                    .is_some_and(|r| r.is_empty() || r.starts_with('/'))
        };
        let values: Vec<f64> = self.samples.iter().filter(belongs).map(|s| s.value).collect();
        quantile(&values, 0.5)
    }
}

/// The quantile `q` of `values`, between neighbours in proportion; none of none.
pub(crate) fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let position = q * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (position.floor() as usize, position.ceil() as usize);
    Some(sorted[below] + (sorted[above] - sorted[below]) * position.fract())
}

/// Panics where the arithmetic above is wrong. Run at every start, for this bench
/// has no test harness.
pub(crate) fn self_check() {
    assert_eq!(quantile(&[], 0.5), None);
    assert_eq!(quantile(&[7.0], 0.99), Some(7.0));
    assert_eq!(quantile(&[3.0, 1.0, 2.0], 0.5), Some(2.0));
    assert_eq!(quantile(&[4.0, 1.0, 2.0, 3.0], 0.5), Some(2.5));
    assert_eq!(quantile(&[0.0, 100.0], 0.99), Some(99.0));
    let mut samples = Samples::default();
    let cell = Cell { round: 1, underlay: Underlay::Real, carrier: "x" };
    for (metric, value) in [("a/1/east", 1.0), ("a/1/west", 3.0), ("a/10/east", 50.0)] {
        samples.samples.push(Sample { cell, metric: metric.into(), value });
    }
    assert_eq!(samples.median(Underlay::Real, "x", "a/1"), Some(2.0));
    assert_eq!(samples.median(Underlay::Real, "x", "a/10/east"), Some(50.0));
    assert_eq!(samples.median(Underlay::Gso, "x", "a/1"), None);
}
