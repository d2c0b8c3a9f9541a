//! What the bench is told on its command line.

use crate::topology::{Underlay, machine_cores};
use clap::{Parser, ValueEnum};
use serde::Serialize;
use std::path::PathBuf;

/// Measures Landbridge side by side with other carriers of Ethernet, and prints a
/// Markdown report. Progress goes to standard error.
#[derive(Debug, Clone, Parser, Serialize)]
#[command(name = "scripts/bench")]
pub(crate) struct Settings {
    /// Times that all carriers are measured; the report has the medians
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// One short round: shows that all works, its numbers are rough
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only these carriers, separated by commas [default: all]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) carriers: Vec<String>,
    /// Only these underlays, separated by commas
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = "real,gso")]
    pub(crate) underlays: Vec<Underlay>,
    /// Seconds that each TCP measurement takes
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub(crate) seconds: u64,
    /// Drop datagrams on the underlay, too (Landbridge only, real packets)
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set,
          num_args = 0..=1, default_missing_value = "true")]
    pub(crate) loss: bool,
    /// Which cores the sites run on [default: split with four cores and more, else shared]
    #[arg(long, value_enum)]
    pub(crate) cores: Option<Placement>,
    /// The Landbridge to measure
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_landbridge"))]
    pub(crate) landbridge: PathBuf,
    /// Where vpncloud was installed to (`cargo install --root`)
    #[arg(long, value_name = "DIR", default_value = "target/bench-tools")]
    pub(crate) tools: PathBuf,
    /// Write every single measurement there
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Which cores a site's programs may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
pub(crate) enum Placement {
    /// Each site has half of them.
    Split,
    /// All sites have all; the kernel chooses. What a veth's receiver has to do is
    /// done on the core of the sender, so a site with a single core of its own
    /// would do its peer's work, too.
    Shared,
}

impl Settings {
    /// Whether each site has cores of its own.
    pub(crate) fn splits_cores(&self) -> bool {
        match self.cores {
            Some(placement) => placement == Placement::Split,
            None => machine_cores() >= 4,
        }
    }

    /// With what `--quick` implies.
    pub(crate) fn resolved(mut self) -> Self {
        if self.quick {
            self.rounds = 1;
            self.seconds = 1;
        }
        self
    }

    /// How long one step of the search for a frame rate takes, milliseconds.
    pub(crate) fn step_ms(&self) -> u64 {
        if self.quick { 250 } else { 500 }
    }

    /// Echo requests of one measurement.
    pub(crate) fn pings(&self) -> u32 {
        if self.quick { 100 } else { 200 }
    }
}
