//! `landbridge macs`: what the MAC tables hold.

use std::process::ExitCode;

use anyhow::bail;

use super::status::{Appliance, print, style};
use crate::manage::{
    model::{Request, Response},
    render,
};

/// Shows the learnt MAC addresses: where each lives and when it was last
/// heard. Needs root.
///
/// Example: sudo landbridge macs --network app
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    appliance: Appliance,
    /// Only this network, by name or id
    #[arg(long, value_name = "NAME|ID")]
    network: Option<String>,
    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// Runs `landbridge macs`.
///
/// # Errors
///
/// If the appliance can't be asked or stdout not be written.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let request = Request::Macs { network: arguments.network.clone() };
    let Response::Macs(table) = arguments.appliance.ask(&request)? else {
        bail!("the appliance answered another question");
    };
    print(&match arguments.json {
        true => serde_json::to_string_pretty(&table)? + "\n",
        false => render::macs(&table, style()),
    })
}
