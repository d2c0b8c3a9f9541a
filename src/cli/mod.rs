//! Command line: one file per sub-command.

pub mod counters;
pub mod genkey;
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
    /// Prints a new private key, like `wg genkey`
    ///
    /// Example: landbridge genkey > east-1.key
    Genkey,
    /// Reads a private key from standard input and prints its public key
    ///
    /// Example: landbridge pubkey < east-1.key
    Pubkey,
    /// Prints a new preshared key, like `wg genpsk`
    ///
    /// Example: landbridge genpsk > group.psk
    Genpsk,
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
        Command::Genkey => genkey::private_key(),
        Command::Pubkey => genkey::public_key(),
        Command::Genpsk => genkey::preshared_key(),
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
