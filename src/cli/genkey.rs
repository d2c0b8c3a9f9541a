//! `landbridge genkey`, `pubkey` and `genpsk`: keys, in the manner of `wg`.
#![allow(clippy::disallowed_methods)]

use std::{
    fs::File,
    io::{self, IsTerminal, Read, Write},
    os::{fd::AsFd, unix::fs::PermissionsExt},
    process::ExitCode,
};

use anyhow::Context;

use crate::{
    io::random::OsRandom,
    session::{PresharedKey, PrivateKey},
};

/// Keys are 44 characters; whatever is much longer is no key.
const INPUT_MAX: u64 = 4096;

/// Prints a new private key.
///
/// # Errors
/// Where standard output can't be written.
pub fn private_key() -> anyhow::Result<ExitCode> {
    print_secret(&PrivateKey::generate(&mut OsRandom).to_base64())
}

/// Prints a new preshared key.
///
/// # Errors
/// Where standard output can't be written.
pub fn preshared_key() -> anyhow::Result<ExitCode> {
    print_secret(&PresharedKey::generate(&mut OsRandom).to_base64())
}

/// Reads a private key from standard input and prints its public key.
///
/// # Errors
/// Where the input is no private key.
pub fn public_key() -> anyhow::Result<ExitCode> {
    let mut text = zeroize::Zeroizing::new(String::new());
    io::stdin()
        .take(INPUT_MAX)
        .read_to_string(&mut text)
        .context("cannot read a private key from standard input")?;
    let key: PrivateKey = text.trim().parse().context(
        "standard input holds no private key\n  try: landbridge genkey | landbridge pubkey",
    )?;
    println!("{}", key.public());
    Ok(ExitCode::SUCCESS)
}

fn print_secret(key: &str) -> anyhow::Result<ExitCode> {
    warn_if_others_may_read();
    writeln!(io::stdout(), "{key}").context("cannot write the key to standard output")?;
    Ok(ExitCode::SUCCESS)
}

fn warn_if_others_may_read() {
    let stdout = io::stdout();
    if stdout.is_terminal() {
        return;
    }
    let Ok(file) = stdout.as_fd().try_clone_to_owned().map(File::from) else { return };
    if file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o007 != 0) {
        eprintln!(
            "landbridge: warning: writing a secret to a file that everybody may read\n  try: umask 077, and again"
        );
    }
}
