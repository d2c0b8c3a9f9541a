//! Command line: one file per sub-command.
//!
//! Exit codes: 0 for success, 1 for failure, 2 for wrong usage. An error is told
//! on stderr as `landbridge: what: why`, with the next command to try below.

pub mod check;
pub mod counters;
pub mod files;
pub mod genkey;
pub mod init;
pub mod lab;
pub mod macs;
pub mod run;
pub mod status;

use std::process::ExitCode;

use clap::Parser;

/// Stretches Ethernet networks between sites over any IP network, encrypted.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, after_help = FIRST_STEPS)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

const FIRST_STEPS: &str = "\
First steps:
  sudo landbridge lab       see it work on this machine alone
  landbridge init           make the group file and the keys for your sites
  landbridge check          is the group file right, and is this host?
  sudo landbridge run       run this host's appliance
  sudo landbridge status    how is it?

`landbridge COMMAND --help` tells more, with an example.";

#[derive(Debug, clap::Subcommand)]
enum Command {
    Init(init::Arguments),
    Check(check::Arguments),
    Run(run::Arguments),
    Status(status::Arguments),
    Macs(macs::Arguments),
    Counters(counters::Arguments),
    /// Prints a new private key
    ///
    /// Example: (umask 077; landbridge genkey > east-1.key)
    Genkey,
    /// Prints the public key of the private key on standard input
    ///
    /// Example: landbridge pubkey < east-1.key
    Pubkey,
    /// Prints a new preshared key, for `preshared_key_file` in the group file
    ///
    /// Example: (umask 077; landbridge genpsk > group.psk)
    Genpsk,
    Lab(lab::Arguments),
}

/// Arguments that clap can't check by itself lack something or don't go
/// together: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Runs the command line and returns the process's exit code: 0 for success,
/// 1 for failure, 2 for wrong usage.
pub fn main() -> ExitCode {
    let result = match CommandLine::parse().command {
        Command::Init(arguments) => init::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Macs(arguments) => macs::run(&arguments),
        Command::Counters(arguments) => counters::run(&arguments),
        Command::Genkey => genkey::private(),
        Command::Pubkey => genkey::public(),
        Command::Genpsk => genkey::preshared(),
        Command::Lab(arguments) => lab::run(arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("landbridge: {}", told(&error));
        if error.is::<UsageError>() { ExitCode::from(2) } else { ExitCode::FAILURE }
    })
}

/// The error with those of its causes that it doesn't tell itself; what to try
/// comes last.
fn told(error: &anyhow::Error) -> String {
    let text = error.to_string();
    let (what, advice) = match text.find("\n  try:") {
        Some(at) => text.split_at(at),
        None => (text.as_str(), ""),
    };
    let mut told = what.to_owned();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            told += ": ";
            told += &cause;
        }
    }
    told + advice
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn arguments_are_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn causes_come_before_the_advice_and_only_once() {
        let refused = std::io::Error::from_raw_os_error(13);
        let error = anyhow::Error::new(refused).context("no socket\n  try: sudo");
        assert_eq!(told(&error), "no socket: Permission denied (os error 13)\n  try: sudo");
        let error = anyhow::Error::new(std::io::Error::other("why")).context("what: why");
        assert_eq!(told(&error), "what: why");
    }

    #[test]
    fn every_command_shows_an_example() {
        for command in CommandLine::command().get_subcommands_mut() {
            let help = command.render_long_help().to_string();
            assert!(help.contains("Example"), "{}:\n{help}", command.get_name());
        }
    }
}
