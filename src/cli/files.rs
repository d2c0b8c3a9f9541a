//! The files that an appliance is started with: group file, private key,
//! preshared key.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    str::{FromStr, Utf8Error},
};

use zeroize::Zeroizing;

use crate::{
    config::{self, Group, MAX_FILE_BYTES, Problems},
    manage::credential,
    session::keys::{KeyError, PresharedKey, PrivateKey},
};

/// Longest key file that is read, in bytes: a key is 45 with its newline.
const MAX_KEY_FILE_BYTES: usize = 4096;

/// Why a file can't serve.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It can't be read.
    #[error("{} can't be read: {source}\n  try: {}", path.display(), advice(path, source))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It isn't text.
    #[error(
        "{} is not UTF-8 text from byte {} on\n  try: is it the right file? `file {}`",
        path.display(), source.valid_up_to(), path.display()
    )]
    NotText {
        /// The file.
        path: PathBuf,
        /// Where the text ends.
        source: Utf8Error,
    },
    /// It is a group file with mistakes.
    #[error("{} has mistakes:\n{problems}", path.display())]
    Mistakes {
        /// The file.
        path: PathBuf,
        /// All of them.
        problems: Problems,
    },
    /// It holds no key.
    #[error(
        "{} holds no key: {source}\n  try: landbridge {maker} makes one, and `landbridge init` a \
         whole set", path.display()
    )]
    NotAKey {
        /// The file.
        path: PathBuf,
        /// The sub-command that makes such a key.
        maker: &'static str,
        /// What is wrong with it.
        source: KeyError,
    },
}

/// Reads and validates a group file.
///
/// # Errors
/// [`FileError`], with every mistake where the file has some.
pub fn read_group(path: &Path) -> Result<Group, FileError> {
    let bytes = read(path, MAX_FILE_BYTES)?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|source| FileError::NotText { path: path.to_owned(), source })?;
    config::parse(text, &path.display().to_string())
        .map_err(|problems| FileError::Mistakes { path: path.to_owned(), problems })
}

/// Reads an appliance's private key.
///
/// # Errors
/// [`FileError`].
pub fn read_private_key(path: &Path) -> Result<PrivateKey, FileError> {
    read_key(path, "genkey")
}

/// Reads a group's preshared key.
///
/// # Errors
/// [`FileError`].
pub fn read_preshared_key(path: &Path) -> Result<PresharedKey, FileError> {
    read_key(path, "genpsk")
}

fn read_key<K: FromStr<Err = KeyError>>(path: &Path, maker: &'static str) -> Result<K, FileError> {
    let bytes = read(path, MAX_KEY_FILE_BYTES)?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|source| FileError::NotText { path: path.to_owned(), source })?;
    text.parse().map_err(|source| FileError::NotAKey { path: path.to_owned(), maker, source })
}

/// Reads `path`, or systemd's copy of it: at most one byte more than `max`, so that the reader sees that it is
/// too long.
fn read(path: &Path, max: usize) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let mut bytes = Zeroizing::new(Vec::new());
    File::open(credential::locate(path))
        .and_then(|file| file.take(max as u64 + 1).read_to_end(&mut bytes))
        .map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    Ok(bytes)
}

fn advice(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "landbridge init makes the group file and the keys; or correct the path".into()
        }
        io::ErrorKind::PermissionDenied => "the same with sudo".into(),
        _ => format!("ls -l {}", path.display()),
    }
}
