//! Command line: one file per sub-command.

pub mod counters;
pub mod lab;
pub mod macs;
pub mod run;
pub mod status;

use std::process::ExitCode;

use clap::Parser;

/// Stretches Ethernet networks between sites over any IP network, encrypted.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Run(run::Arguments),
    Status(status::Arguments),
    Macs(macs::Arguments),
    Counters(counters::Arguments),
    Lab(lab::Arguments),
}

/// Runs the command line and returns the process's exit code: 0 for success,
/// 1 for failure, 2 for wrong usage.
pub fn main() -> ExitCode {
    let result = match CommandLine::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Macs(arguments) => macs::run(&arguments),
        Command::Counters(arguments) => counters::run(&arguments),
        Command::Lab(arguments) => lab::run(arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("landbridge: {error:#}");
        ExitCode::FAILURE
    })
}
