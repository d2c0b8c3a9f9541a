//! One run of the lab: its id, its directory, its leftovers.

use super::{LabError, Output, Process, Result};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// Names and files of one run. The id begins every namespace's name
/// (`lb-<id>-<name>`), and carries the pid of its owner, so that a later run can
/// tell what a killed one left behind.
#[derive(Debug)]
pub struct Run {
    id: String,
    directory: PathBuf,
    leave: bool,
}

/// What [`Run::remove_stale`] took away.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stale {
    /// Full names of the namespaces removed.
    pub namespaces: Vec<String>,
    /// Processes that ran inside them.
    pub processes: usize,
}

/// Fails unless the effective user is root.
///
/// # Errors
/// [`LabError::NotRoot`].
pub fn require_root() -> Result<()> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err(LabError::NotRoot) }
}

impl Run {
    /// The id of the lab that `lab up` leaves running.
    pub const PERSISTENT_ID: &'static str = "lab";
    const DIRECTORY: &'static str = "/run/landbridge-lab";
    const NETNS_DIRECTORY: &'static str = "/run/netns";

    /// A run that belongs to this process; `kind` is a short word (`tour`, `test`).
    ///
    /// # Errors
    /// [`LabError::NotRoot`], [`LabError::MissingTool`], [`LabError::File`].
    pub fn new(kind: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self::with_id(format!("{kind}{}x{number}", std::process::id()))
    }

    /// The run that outlives this process.
    ///
    /// # Errors
    /// [`LabError::AlreadyUp`], and as for [`Run::new`].
    pub fn persistent() -> Result<Self> {
        require_root()?;
        if !namespaces_of(Self::PERSISTENT_ID).is_empty() {
            return Err(LabError::AlreadyUp);
        }
        Self::with_id(Self::PERSISTENT_ID.to_owned())
    }

    fn with_id(id: String) -> Result<Self> {
        require_root()?;
        require_tool("ip", "iproute2")?;
        require_tool("ethtool", "ethtool")?;
        let directory = Self::directory_of(&id);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|source| LabError::File { path: directory.clone(), source })?;
        Ok(Self { id, directory, leave: false })
    }

    /// Where the run `id` keeps its files.
    pub(super) fn directory_of(id: &str) -> PathBuf {
        Path::new(Self::DIRECTORY).join(id)
    }

    /// The id, as in the namespaces' names.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where this run keeps its files; removed with it.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The full name of this run's namespace `name`.
    pub fn namespace_name(&self, name: &str) -> String {
        format!("lb-{}-{name}", self.id)
    }

    /// Writes a file of this run (mode 0600 inside a 0700 directory).
    ///
    /// # Errors
    /// [`LabError::File`].
    pub fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        use std::{io::Write, os::unix::fs::OpenOptionsExt};
        let path = self.directory.join(name);
        fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(content.as_bytes()))
            .map_err(|source| LabError::File { path: path.clone(), source })?;
        Ok(path)
    }

    /// Runs `argv` outside of any namespace of the lab and waits for its end.
    ///
    /// # Errors
    /// As for [`Process::wait`]; how the program ended is in the output.
    pub fn command(&self, argv: &[&str]) -> Result<Output> {
        Process::start(&self.directory, "command", argv)?.wait(Duration::from_secs(30))
    }

    /// Removes what runs whose process no longer lives left behind, and with
    /// `persistent` also what `lab up` made.
    ///
    /// # Errors
    /// [`LabError::NotRoot`].
    pub fn remove_stale(persistent: bool) -> Result<Stale> {
        require_root()?;
        let is_stale = |id: &str| match owner_pid(id) {
            Some(pid) => !Path::new(&format!("/proc/{pid}")).exists(),
            None => persistent && id == Self::PERSISTENT_ID,
        };
        let mut stale = Stale::default();
        for name in namespace_names() {
            if run_id(&name).is_some_and(is_stale) {
                stale.processes += super::namespace::remove(&name);
                stale.namespaces.push(name);
            }
        }
        for id in file_names(Self::DIRECTORY) {
            if is_stale(&id) {
                let _ = fs::remove_dir_all(Self::directory_of(&id));
            }
        }
        Ok(stale)
    }

    /// Dropping it no longer removes its directory.
    pub(super) fn leave(&mut self) {
        self.leave = true;
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.leave {
            let _ = fs::remove_dir_all(&self.directory);
            // Succeeds only for the last run.
            let _ = fs::remove_dir(Self::DIRECTORY);
        }
    }
}

/// Full names of the namespaces of the run `id`, sorted.
pub(super) fn namespaces_of(id: &str) -> Vec<String> {
    namespace_names().into_iter().filter(|name| run_id(name) == Some(id)).collect()
}

/// Fails unless `tool` is found in `PATH` (or the system's sbin directories).
pub(super) fn require_tool(tool: &str, package: &str) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(tool).is_file());
    if found {
        return Ok(());
    }
    Err(LabError::MissingTool { tool: tool.to_owned(), package: package.to_owned() })
}

fn namespace_names() -> BTreeSet<String> {
    file_names(Run::NETNS_DIRECTORY).into_iter().collect()
}

fn file_names(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// `lb-<id>-<name>` → `<id>`.
fn run_id(namespace: &str) -> Option<&str> {
    namespace.strip_prefix("lb-")?.split_once('-').map(|(id, _)| id)
}

/// `<kind><pid>x<number>` → `<pid>`.
fn owner_pid(id: &str) -> Option<u32> {
    let (owner, number) = id.rsplit_once('x')?;
    number.parse::<u32>().ok()?;
    owner.trim_start_matches(|c: char| c.is_ascii_lowercase()).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_owner() {
        assert_eq!(run_id("lb-tour812x0-host-e"), Some("tour812x0"));
        assert_eq!(owner_pid("tour812x0"), Some(812));
        assert_eq!(run_id("lb-lab-east-1"), Some("lab"));
        assert_eq!(owner_pid("lab"), None);
        for foreign in ["lb-", "lb-lab", "blue", "lb"] {
            assert_eq!(run_id(foreign), None, "{foreign}");
        }
        for foreign in ["tourx0", "tour1", "tour1x", "x1", "812y0"] {
            assert_eq!(owner_pid(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_missing_tool_names_its_package() {
        let error = require_tool("no-such-tool", "no-such-package").unwrap_err().to_string();
        assert!(error.contains("apt-get install no-such-package"), "{error}");
        require_tool("sh", "dash").unwrap();
    }
}
