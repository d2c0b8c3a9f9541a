//! `landbridge lab`: two sites on this machine, to look at or to keep.
#![allow(clippy::disallowed_methods)]

use crate::lab::{self, LabError, Run, Side, StandingLab};
use anyhow::Context;
use std::{os::unix::process::CommandExt, process::ExitCode};

/// Hosts and appliances of two sites in network namespaces on this one machine,
/// with real traffic between them. Without a sub-command: build them, show what
/// works, clean up. Needs root.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  sudo landbridge lab\n  sudo landbridge lab up\n  \
                        sudo landbridge lab exec host-e -- ping -c 3 10.0.2.1\n  \
                        sudo landbridge lab down")]
pub struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    /// Print the report as JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Build the two sites and leave them running
    Up,
    /// Remove them, and what killed labs left behind
    Down,
    /// Show what is running
    Status,
    /// Run a command on a host, an appliance or the router
    Exec {
        /// host-e, host-w, east-1, west-1 or router
        host: String,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

/// Runs the sub-command.
///
/// # Errors
/// What kept it from doing its work; a tour that was taken and failed is an exit
/// code of 1.
pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    lab::require_root()?;
    let json = arguments.json;
    match arguments.action {
        None => tour(json),
        Some(Action::Up) => up(json),
        Some(Action::Down) => down(json),
        Some(Action::Status) => show(&StandingLab::find()?, json),
        Some(Action::Exec { host, command }) => exec(&host, &command),
    }
}

fn tour(json: bool) -> anyhow::Result<ExitCode> {
    lab::interrupt_on_signals().context("cannot handle signals")?;
    let report = lab::tour(&own_binary()?, json)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn up(json: bool) -> anyhow::Result<ExitCode> {
    lab::interrupt_on_signals().context("cannot handle signals")?;
    let standing = StandingLab::build(&own_binary()?)?;
    show(&standing, json)
}

fn down(json: bool) -> anyhow::Result<ExitCode> {
    let removed = Run::remove_stale(true)?;
    let (namespaces, processes) = (removed.namespaces.len(), removed.processes);
    if json {
        println!("{}", serde_json::json!({ "namespaces": namespaces, "processes": processes }));
    } else if namespaces == 0 {
        println!("No lab was up.");
    } else {
        println!("Removed {namespaces} namespaces and ended {processes} processes.");
    }
    Ok(ExitCode::SUCCESS)
}

fn show(standing: &StandingLab, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        println!("{}", serde_json::to_string_pretty(standing)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("The lab is up:\n");
    for member in &standing.members {
        let state = match &member.processes[..] {
            [] => String::new(),
            pids => format!(
                "  (process {})",
                pids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
            ),
        };
        println!("  {:<8} {}{state}", member.name, member.addresses.join("  "));
    }
    let binary = own_binary()?;
    let binary = binary.display();
    println!(
        "\nTry:\n  {binary} lab exec host-e -- ping -c 3 10.0.2.1\n  \
         {binary} lab exec router -- tcpdump -c 5 -ni east udp\n  \
         {binary} status --socket {}\n  {binary} lab down\n\nFiles: {}",
        standing.socket(Side::East).display(),
        standing.directory.display(),
    );
    Ok(ExitCode::SUCCESS)
}

fn exec(host: &str, command: &[String]) -> anyhow::Result<ExitCode> {
    let error = StandingLab::find()?.command(host, command)?.exec();
    Err(LabError::Start { command: "ip netns exec".into(), source: error }.into())
}

fn own_binary() -> anyhow::Result<std::path::PathBuf> {
    std::env::current_exe().context("cannot find this program's own file")
}
