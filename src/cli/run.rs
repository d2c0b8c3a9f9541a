//! `landbridge run`: the appliance itself.
#![allow(clippy::disallowed_methods)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, anyhow, bail};

use crate::{
    config::{self, Group},
    io::daemon::{self, Settings},
    manage::{credential, log, socket},
    session::{Identity, PresharedKey, PrivateKey},
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
    /// Where the management socket goes [default: /run/landbridge/<appliance>.sock]
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
    let preshared = match group.preshared_key_path(&arguments.group) {
        Some(path) => Some(read_preshared_key(&path)?),
        None => None,
    };
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

/// Reads and checks a group file; all its mistakes make the error.
pub(super) fn read_group(path: &Path) -> anyhow::Result<Group> {
    let text = fs::read_to_string(credential::locate(path))
        .with_context(|| format!("cannot read the group file {}", path.display()))?;
    config::parse(&text, &path.display().to_string()).map_err(|problems| anyhow!("{problems}"))
}

/// Reads a private key; warns where others may read it, too.
pub(super) fn read_private_key(path: &Path) -> anyhow::Result<PrivateKey> {
    let text = read_secret(path, "private key")?;
    text.trim().parse().with_context(|| {
        format!("{} holds no private key\n  try: landbridge genkey > {0}", path.display())
    })
}

fn read_preshared_key(path: &Path) -> anyhow::Result<PresharedKey> {
    let text = read_secret(path, "preshared key")?;
    text.trim().parse().with_context(|| {
        format!("{} holds no preshared key\n  try: landbridge genpsk > {0}", path.display())
    })
}

fn read_secret(path: &Path, what: &str) -> anyhow::Result<zeroize::Zeroizing<String>> {
    use std::os::unix::fs::PermissionsExt;
    let located = credential::locate(path);
    let cannot_read = || format!("cannot read the {what} {}", path.display());
    let metadata = fs::metadata(&located).with_context(cannot_read)?;
    if !metadata.is_file() {
        bail!("{} is not a file", path.display());
    }
    if metadata.permissions().mode() & 0o004 != 0 {
        tracing::warn!(file = %path.display(), "everybody may read the {what}; try: chmod 600 {}", path.display());
    }
    fs::read_to_string(&located).map(zeroize::Zeroizing::new).with_context(cannot_read)
}
