//! Network namespaces.

use super::{LabError, Output, Process, Result, Run};
use rustix::{
    process::{Pid, Signal, kill_process, test_kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use std::{
    fs::{self, File},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// A network namespace made by `ip netns add`. Dropping it ends every process
/// inside and removes it, unless it was left to outlive the run.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    full_name: String,
    directory: PathBuf,
    leave: bool,
}

impl Namespace {
    /// How long [`Namespace::exec`] lets a command run.
    pub const EXEC_TIMEOUT: Duration = Duration::from_secs(60);

    /// Makes `lb-<run id>-<name>` with loopback up and IPv6 addresses usable at
    /// once (no duplicate address detection: nothing here is ever a duplicate).
    ///
    /// # Errors
    /// [`LabError::Command`] where `ip` refuses, for example inside a container
    /// without CAP_SYS_ADMIN.
    pub fn new(run: &Run, name: &str) -> Result<Self> {
        let full_name = run.namespace_name(name);
        run.command(&["ip", "netns", "add", &full_name])?.success()?;
        let namespace = Self {
            name: name.to_owned(),
            full_name,
            directory: run.directory().to_owned(),
            leave: false,
        };
        namespace.ip("link set lo up")?;
        namespace.set("net.ipv6.conf.all.accept_dad", "0")?;
        namespace.set("net.ipv6.conf.default.accept_dad", "0")?;
        Ok(namespace)
    }

    /// The short name, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name that `ip netns` knows.
    pub fn full_name(&self) -> &str {
        &self.full_name
    }

    /// Runs `ip -n <namespace> <words>` and returns what it printed. Words are
    /// separated by white space.
    ///
    /// # Errors
    /// [`LabError::Command`] with what `ip` said.
    pub fn ip(&self, words: &str) -> Result<String> {
        let mut argv = vec!["ip", "-n", &self.full_name];
        argv.extend(words.split_whitespace());
        Ok(Process::start(&self.directory, &self.name, &argv)?
            .wait(Self::EXEC_TIMEOUT)?
            .success()?
            .stdout)
    }

    /// Sets a sysctl of this namespace; `key` has dots.
    ///
    /// # Errors
    /// [`LabError::File`] where the kernel refuses.
    pub fn set(&self, key: &str, value: &str) -> Result<()> {
        let path = PathBuf::from("/proc/sys").join(key.replace('.', "/"));
        self.enter(|| fs::write(&path, value))?
            .map_err(|source| LabError::File { path: path.clone(), source })
    }

    /// Runs `argv` inside and waits for its end, at most
    /// [`EXEC_TIMEOUT`](Self::EXEC_TIMEOUT).
    ///
    /// # Errors
    /// As for [`Process::wait`]; how the program ended is in the output.
    pub fn exec(&self, argv: &[&str]) -> Result<Output> {
        self.spawn(argv)?.wait(Self::EXEC_TIMEOUT)
    }

    /// Starts `argv` inside (by `ip netns exec`, which replaces itself by the
    /// program and shows it a /sys of the namespace).
    ///
    /// # Errors
    /// [`LabError::Start`].
    pub fn spawn(&self, argv: &[&str]) -> Result<Process> {
        let mut command = vec!["ip", "netns", "exec", &self.full_name];
        command.extend(argv);
        Process::start(&self.directory, &self.name, &command)
    }

    /// Calls `function` on a thread inside. Sockets that it opens stay inside
    /// for good, whoever uses them later.
    ///
    /// # Errors
    /// [`LabError::Enter`].
    ///
    /// # Panics
    /// If `function` panics.
    pub fn enter<T: Send>(&self, function: impl FnOnce() -> T + Send) -> Result<T> {
        let failed = |source| LabError::Enter { namespace: self.full_name.clone(), source };
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let file = File::open(Path::new("/run/netns").join(&self.full_name))?;
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(function())
            });
            match inside.join() {
                Ok(result) => result.map_err(failed),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Dropping it no longer removes it.
    pub(super) fn leave(&mut self) {
        self.leave = true;
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.leave {
            remove(&self.full_name);
        }
    }
}

/// Ends every process inside the namespace `full_name` and removes it; returns
/// how many processes there were.
pub(super) fn remove(full_name: &str) -> usize {
    const GRACE: Duration = Duration::from_secs(2);
    let pids = pids_inside(full_name);
    signal_all(&pids, Signal::TERM);
    let deadline = Instant::now() + GRACE;
    let any_lives = || pids.iter().any(|pid| is_alive(*pid));
    while any_lives() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    if any_lives() {
        signal_all(&pids_inside(full_name), Signal::KILL);
    }
    let _ = Command::new("ip").args(["netns", "del", full_name]).output();
    pids.len()
}

fn signal_all(pids: &[Pid], signal: Signal) {
    for pid in pids {
        // It may have ended by itself.
        let _ = kill_process(*pid, signal);
    }
}

fn pids_inside(full_name: &str) -> Vec<Pid> {
    let Ok(output) = Command::new("ip").args(["netns", "pids", full_name]).output() else {
        return Vec::new();
    };
    let own = rustix::process::getpid();
    String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
        .filter(|pid| *pid != own)
        .collect()
}

/// A zombie counts as ended: it waits only for its parent.
fn is_alive(pid: Pid) -> bool {
    if test_kill_process(pid).is_err() {
        return false;
    }
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    // The state follows the command's name, which may contain spaces and brackets.
    stat.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z')))
}
