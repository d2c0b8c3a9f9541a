//! `landbridge genkey`, `pubkey` and `genpsk`: keys as `wg` makes and prints
//! them, one line of base64.

use std::{
    io::{self, Read},
    process::ExitCode,
};

use anyhow::{Context, anyhow};
use zeroize::Zeroizing;

use super::status::print;
use crate::{
    io::random::OsRandom,
    session::keys::{PresharedKey, PrivateKey},
};

/// More than any key with white space around it has.
const MAX_INPUT_BYTES: u64 = 4096;

/// Prints a new private key.
///
/// # Errors
/// If stdout can't be written.
pub fn private() -> anyhow::Result<ExitCode> {
    warn_if_others_can_read_stdout();
    let key = PrivateKey::generate(&mut OsRandom);
    print(&Zeroizing::new(format!("{}\n", *key.to_base64())))
}

/// Prints the public key of the private key on stdin.
///
/// # Errors
/// If stdin holds no private key, or stdout can't be written.
pub fn public() -> anyhow::Result<ExitCode> {
    let mut text = Zeroizing::new(String::new());
    io::stdin()
        .take(MAX_INPUT_BYTES)
        .read_to_string(&mut text)
        .context("standard input can't be read")?;
    let key = text.parse::<PrivateKey>().map_err(|error| {
        anyhow!(
            "standard input is no private key: {error}\n  try: landbridge pubkey < KEYFILE, with \
             a file that landbridge genkey made"
        )
    })?;
    print(&format!("{}\n", key.public()))
}

/// Prints a new preshared key.
///
/// # Errors
/// If stdout can't be written.
pub fn preshared() -> anyhow::Result<ExitCode> {
    warn_if_others_can_read_stdout();
    let key = PresharedKey::generate(&mut OsRandom);
    print(&Zeroizing::new(format!("{}\n", *key.to_base64())))
}

/// A secret goes to stdout: says so where that is a file that others may read.
fn warn_if_others_can_read_stdout() {
    let Ok(stat) = rustix::fs::fstat(io::stdout()) else { return };
    let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
    if is_file && stat.st_mode & 0o007 != 0 {
        eprintln!(
            "landbridge: warning: the secret goes to a file that every user can read\n  try: \
             chmod 600 on it, and umask 077 before the next"
        );
    }
}
