//! `landbridge check`: is the group file right, and is this host?
#![allow(clippy::disallowed_methods)]

pub mod host;
pub mod virtualisation;

use std::{fmt::Write, path::PathBuf, process::ExitCode};

use serde::Serialize;

use super::{
    files::{FileError, read_group, read_private_key},
    status::print,
};
use crate::config::{Group, Problem};

/// Checks the group file and, with a key, this host
///
/// Without --key it checks the file alone, on any machine. With the private key
/// of an appliance it says which one this host is and checks whether it can run
/// here: devices, privileges, interfaces, port, buffers. It changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sudo landbridge check --group group.toml --key appliance.key")]
pub struct Arguments {
    /// Group file
    #[arg(long, value_name = "FILE")]
    group: PathBuf,
    /// This appliance's private key: checks this host, too
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// How good or bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// To be known; may need something outside this host.
    Hint,
    /// Works, but not as well as it could.
    Warning,
    /// Doesn't work like that.
    Error,
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How good or bad it is.
    pub level: Level,
    /// What was found.
    pub message: String,
    /// What to type or to do about it; empty where there is nothing to do.
    pub fix: String,
}

impl Finding {
    /// As it should be.
    pub fn ok(message: impl Into<String>) -> Self {
        Self { level: Level::Ok, message: message.into(), fix: String::new() }
    }

    /// Something to know.
    pub fn hint(message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { level: Level::Hint, message: message.into(), fix: fix.into() }
    }

    /// Works, but not as well as it could.
    pub fn warning(message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { level: Level::Warning, message: message.into(), fix: fix.into() }
    }

    /// Doesn't work.
    pub fn error(message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { level: Level::Error, message: message.into(), fix: fix.into() }
    }
}

/// All that was found, as `--json` prints it.
#[derive(Debug, Default, Serialize)]
struct Report {
    group_file: String,
    valid: bool,
    /// Mistakes in the group file, at most 100.
    mistakes: Vec<Mistake>,
    group: Option<GroupSummary>,
    myself: Option<Myself>,
    findings: Vec<Finding>,
    errors: usize,
    warnings: usize,
}

#[derive(Debug, Serialize)]
struct Mistake {
    line: usize,
    column: usize,
    message: String,
    suggestion: String,
}

impl From<&Problem> for Mistake {
    fn from(problem: &Problem) -> Self {
        Self {
            line: problem.line,
            column: problem.column,
            message: problem.message.clone(),
            suggestion: problem.suggestion.clone(),
        }
    }
}

#[derive(Debug, Serialize)]
struct GroupSummary {
    name: String,
    sites: Vec<String>,
    networks: Vec<String>,
    digest: String,
}

impl From<&Group> for GroupSummary {
    fn from(group: &Group) -> Self {
        Self {
            name: group.name.clone(),
            sites: group.sites.iter().map(|site| site.name.clone()).collect(),
            networks: group.networks.iter().map(|network| network.name.clone()).collect(),
            digest: group.digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Myself {
    site: String,
    appliance: String,
    public_key: String,
}

/// Runs `landbridge check`: exit code 1 where something is wrong.
///
/// # Errors
/// If the group file can't be read or stdout not be written. Mistakes in the
/// file are reported, too, with `--json` on stdout.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut report =
        Report { group_file: arguments.group.display().to_string(), ..Report::default() };
    match read_group(&arguments.group) {
        Ok(group) => check(&group, arguments, &mut report),
        Err(FileError::Mistakes { problems, .. }) if arguments.json => {
            report.mistakes = problems.iter().map(Mistake::from).collect();
            report.errors = problems.count();
        }
        Err(FileError::Mistakes { problems, .. }) => {
            let count = match problems.count() {
                1 => "1 mistake".to_owned(),
                count => format!("{count} mistakes"),
            };
            eprintln!("{problems}\n\nlandbridge: {count} in {}", arguments.group.display());
            return Ok(ExitCode::FAILURE);
        }
        Err(error) => return Err(error.into()),
    }
    let count = |level| report.findings.iter().filter(|finding| finding.level == level).count();
    report.errors += count(Level::Error);
    report.warnings = count(Level::Warning);
    let printed = print(&match arguments.json {
        true => serde_json::to_string_pretty(&report)? + "\n",
        false => render(&report),
    })?;
    Ok(if report.errors > 0 { ExitCode::FAILURE } else { printed })
}

fn check(group: &Group, arguments: &Arguments, report: &mut Report) {
    report.valid = true;
    report.group = Some(group.into());
    let Some(key_path) = &arguments.key else { return };
    let key = match read_private_key(key_path) {
        Ok(key) => key.public(),
        Err(error) => return report.findings.push(failed(&error)),
    };
    let (site, index) = match group.myself(&key) {
        Ok(found) => found,
        Err(error) => {
            let fix = "give the key of an appliance in the file, or put this public key into it";
            return report.findings.push(Finding::error(error.to_string(), fix));
        }
    };
    let appliance = &group.site(site).appliances[index];
    report.myself = Some(Myself {
        site: group.site(site).name.clone(),
        appliance: appliance.name.clone(),
        public_key: key.to_string(),
    });
    report.findings.push(host::secret_file("private key", key_path));
    if let Some(path) = group.preshared_key_path(&arguments.group) {
        report.findings.push(match super::files::read_preshared_key(&path) {
            Ok(_) => host::secret_file("preshared key", &path),
            Err(error) => failed(&error),
        });
    }
    host::check(group, site, appliance, &mut report.findings);
}

/// An error whose text ends with what to try.
fn failed(error: &FileError) -> Finding {
    let text = error.to_string();
    let (message, fix) = text.split_once("\n  try: ").unwrap_or((&text, ""));
    Finding::error(message, fix)
}

fn render(report: &Report) -> String {
    let mut text = String::new();
    if let Some(group) = &report.group {
        text += &format!(
            "{} is right: group {}, sites {}, networks {}\n",
            report.group_file,
            group.name,
            group.sites.join(", "),
            group.networks.join(", "),
        );
        text += &format!("digest {}, the same on every appliance\n", group.digest);
    }
    match &report.myself {
        Some(me) => text += &format!("this host is {} of site {}\n\n", me.appliance, me.site),
        None if report.findings.is_empty() => {
            text += "on an appliance, add --key FILE to check the host, too\n";
        }
        None => text.push('\n'),
    }
    for finding in &report.findings {
        let mark = match finding.level {
            Level::Ok => "ok",
            Level::Hint => "hint",
            Level::Warning => "warning",
            Level::Error => "error",
        };
        writeln!(text, "{mark:<8} {}", finding.message).expect("a String takes any text");
        let lead = if finding.level == Level::Hint { "" } else { "try: " };
        for line in finding.fix.lines() {
            writeln!(text, "{:<8}   {lead}{line}", "").expect("a String takes any text");
        }
    }
    if !report.findings.is_empty() {
        text += &format!("\nerrors: {}, warnings: {}\n", report.errors, report.warnings);
    }
    text
}
