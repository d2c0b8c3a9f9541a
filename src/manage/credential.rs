//! Files that systemd hands to a service that may not read them itself.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

/// The ID under which the unit loads a whole directory
/// (`LoadCredential=landbridge:/etc/landbridge`): each of its files arrives as
/// `landbridge_<file name>` (systemd.exec(5)).
const ID: &str = "landbridge";

/// Where to read the file that is known to people as `path`: systemd's copy of
/// it in `$CREDENTIALS_DIRECTORY` if there is one, `path` itself otherwise.
pub fn locate(path: &Path) -> PathBuf {
    let directory = env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    directory.and_then(|directory| copy_in(&directory, path)).unwrap_or_else(|| path.to_owned())
}

fn copy_in(directory: &Path, path: &Path) -> Option<PathBuf> {
    let mut name = OsString::from(ID);
    name.push("_");
    name.push(path.file_name()?);
    Some(directory.join(name)).filter(|copy| copy.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_stands_for_the_file_of_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let copy = directory.path().join("landbridge_group.toml");
        std::fs::write(&copy, "").unwrap();
        let found = |path: &str| copy_in(directory.path(), Path::new(path));
        assert_eq!(found("/etc/landbridge/group.toml"), Some(copy.clone()));
        assert_eq!(found("/etc/landbridge/group.psk"), None);
        assert_eq!(found("/"), None);
    }
}
