//! `landbridge run`: the appliance itself.
#![allow(clippy::disallowed_methods)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::anyhow;

use super::files::{read_group, read_preshared_key, read_private_key};
use crate::{
    io::daemon::{self, Settings},
    manage::{log, socket},
    session::Identity,
};

/// Runs this host's appliance in the foreground, until SIGTERM or Ctrl-C.
///
/// Example: sudo landbridge run --group /etc/landbridge/group.toml --key /etc/landbridge/east-1.key
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Group file, the same on every appliance
    #[arg(long, value_name = "FILE")]
    group: PathBuf,
    /// This appliance's private key, as `landbridge genkey` prints it
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Where the management socket goes [default: /run/landbridge/APPLIANCE.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Log more (twice: everything)
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

/// Runs `landbridge run`.
///
/// # Errors
/// Whatever keeps the appliance from running, with what to do about it.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    log::init(arguments.verbose)?;
    let group = read_group(&arguments.group)?;
    let private = read_private_key(&arguments.key)?;
    warn_if_exposed(&arguments.key);
    let preshared_file = group.preshared_key_path(&arguments.group);
    let preshared = preshared_file.as_deref().map(read_preshared_key).transpose()?;
    if let Some(file) = &preshared_file {
        warn_if_exposed(file);
    }
    let (site, appliance) = group.myself(&private.public()).map_err(|error| {
        anyhow!("{error}\n  try: --key with this appliance's key, or add it to the group file")
    })?;
    let name = &group.site(site).appliances[appliance].name;
    let socket = arguments.socket.clone().unwrap_or_else(|| socket::default_path(name));
    daemon::run(Settings {
        group,
        site,
        appliance,
        identity: Identity { private, preshared },
        socket,
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A warning where others than the owner may read a secret.
fn warn_if_exposed(path: &Path) {
    let Ok(metadata) = fs::metadata(path) else { return };
    if metadata.permissions().mode() & 0o077 != 0 {
        tracing::warn!(
            "{} can be read by others than its owner; try: chmod 600 {0}",
            path.display()
        );
    }
}
