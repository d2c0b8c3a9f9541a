//! `landbridge counters`: every drop with its reason.

use std::process::ExitCode;

use anyhow::bail;

use super::status::{Appliance, print, style};
use crate::manage::{
    model::{Request, Response},
    render,
};

/// Shows what was counted since the start, each counter with its meaning: every
/// drop has its reason here, the kernel's included. Needs root.
///
/// Example: sudo landbridge counters
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    appliance: Appliance,
    /// Show counters at zero too
    #[arg(long)]
    all: bool,
    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// Runs `landbridge counters`.
///
/// # Errors
///
/// If the appliance can't be asked or stdout not be written.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let Response::Counters(mut counters) = arguments.appliance.ask(&Request::Counters)? else {
        bail!("the appliance answered another question");
    };
    if arguments.json {
        counters.retain(|counter| arguments.all || counter.value > 0);
        return print(&(serde_json::to_string_pretty(&counters)? + "\n"));
    }
    print(&render::counters(&counters, arguments.all, style()))
}
