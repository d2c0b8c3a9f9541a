//! Writes the files of a new group: secrets for their owner alone, and nothing
//! over what is there.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use crate::session::keys::{PresharedKey, PrivateKey};

/// Name of the group file.
pub const GROUP_FILE: &str = "group.toml";
/// Name of the file with the group's preshared key.
pub const PRESHARED_KEY_FILE: &str = "group.psk";

/// A file to be written.
pub struct NewFile {
    /// Its name in the directory.
    pub name: String,
    /// What it is for.
    pub purpose: String,
    mode: u32,
    text: Zeroizing<String>,
}

/// The group file with this text: no secret.
pub fn group_file(text: String) -> NewFile {
    let purpose = "the group file, the same on every appliance".into();
    NewFile { name: GROUP_FILE.into(), purpose, mode: 0o644, text: text.into() }
}

/// The file with the preshared key.
pub fn preshared_key_file(key: &PresharedKey) -> NewFile {
    let purpose = "the preshared key, the same on every appliance: secret".into();
    let text = format!("{}\n", *key.to_base64()).into();
    NewFile { name: PRESHARED_KEY_FILE.into(), purpose, mode: 0o600, text }
}

/// The file with an appliance's private key.
pub fn private_key_file(appliance: &str, key: &PrivateKey) -> NewFile {
    let purpose = format!("private key, for {appliance} alone: secret");
    let text = format!("{}\n", *key.to_base64()).into();
    NewFile { name: format!("{appliance}.key"), purpose, mode: 0o600, text }
}

/// Why the files were not, or not all, written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A file is there already; nothing was written.
    #[error(
        "{} is there already, nothing was written\n  try: another --out, or --force to overwrite \
         it (its keys are lost)", .0.display()
    )]
    Exists(PathBuf),
    /// The directory can't be made.
    #[error("directory {} can't be made: {source}\n  try: another --out", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file can't be written.
    #[error("{} can't be written: {source}\n  try: another --out", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Writes the files to `directory`, which is made (0700) where it isn't there.
///
/// # Errors
/// [`WriteError`]; with [`WriteError::Exists`] nothing was changed.
pub fn write_all(directory: &Path, files: &[NewFile], force: bool) -> Result<(), WriteError> {
    let existing = files.iter().map(|file| directory.join(&file.name));
    if let Some(path) = existing.into_iter().find(|path| path.symlink_metadata().is_ok())
        && !force
    {
        return Err(WriteError::Exists(path));
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|source| WriteError::Directory { path: directory.to_owned(), source })?;
    for file in files {
        let path = directory.join(&file.name);
        write(&path, file, force).map_err(|source| WriteError::File { path, source })?;
    }
    Ok(())
}

fn write(path: &Path, file: &NewFile, force: bool) -> io::Result<()> {
    if force
        && let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut output = OpenOptions::new().write(true).create_new(true).mode(file.mode).open(path)?;
    output.write_all(file.text.as_bytes())?;
    output.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn key_file() -> NewFile {
        let key = PrivateKey::generate(&mut crate::io::random::OsRandom);
        private_key_file("a-1", &key)
    }

    #[test]
    fn secrets_are_for_their_owner_and_nothing_is_overwritten() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("new");
        let files = [group_file("text".into()), key_file()];
        write_all(&directory, &files, false).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&directory), 0o700);
        assert_eq!(mode(&directory.join("a-1.key")), 0o600);

        let key = fs::read(directory.join("a-1.key")).unwrap();
        fs::remove_file(directory.join(GROUP_FILE)).unwrap();
        let error = write_all(&directory, &[group_file("new".into()), key_file()], false);
        assert!(error.unwrap_err().to_string().contains("a-1.key is there already"));
        assert_eq!(fs::read(directory.join("a-1.key")).unwrap(), key);
        assert!(!directory.join(GROUP_FILE).exists(), "all or nothing");

        write_all(&directory, &[key_file()], true).unwrap();
        assert_ne!(fs::read(directory.join("a-1.key")).unwrap(), key);
    }
}
