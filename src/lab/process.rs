//! Child processes whose output is kept and whose end is certain.

use super::{LabError, Result, wait_until};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::{
    fs::{self, File},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// A running program: its output goes to files, and dropping it ends it
/// (SIGTERM, at most two seconds, SIGKILL) and removes them, unless it was told
/// to outlive the lab's command.
#[derive(Debug)]
pub struct Process {
    child: Child,
    command: String,
    stdout: PathBuf,
    stderr: PathBuf,
    status: Option<ExitStatus>,
    leave_running: bool,
}

/// What a program that has ended said.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Process {
    const GRACE: Duration = Duration::from_secs(2);

    /// Starts `argv` with its output in new files of `directory`, named after
    /// `place`. It gets a
    /// process group of its own, so that Ctrl-C on the terminal reaches the lab
    /// alone, which then ends its processes in order.
    ///
    /// # Errors
    /// [`LabError::Start`], [`LabError::File`].
    ///
    /// # Panics
    /// If `argv` is empty.
    pub(super) fn start(directory: &Path, place: &str, argv: &[&str]) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let (program, arguments) = argv.split_first().expect("a command has a name");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let stdout = directory.join(format!("{place}-{number}.out"));
        let stderr = directory.join(format!("{place}-{number}.err"));
        let create = |path: &PathBuf| {
            File::create(path).map_err(|source| LabError::File { path: path.clone(), source })
        };
        let command = argv.join(" ");
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(create(&stdout)?)
            .stderr(create(&stderr)?)
            .process_group(0)
            .spawn()
            .map_err(|source| LabError::Start { command: command.clone(), source })?;
        Ok(Self { child, command, stdout, stderr, status: None, leave_running: false })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.try_wait().is_none()
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        read_lossy(&self.stdout)
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        read_lossy(&self.stderr)
    }

    /// Where its standard error goes.
    pub fn stderr_path(&self) -> &Path {
        &self.stderr
    }

    /// Sends a signal; to a process that has ended, nothing happens.
    pub fn signal(&mut self, signal: Signal) {
        if self.is_running() {
            let _ = kill_process(Pid::from_child(&self.child), signal);
        }
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// [`LabError::TimedOut`], [`LabError::Interrupted`]; it then goes on running.
    pub fn wait(&mut self, timeout: Duration) -> Result<Output> {
        let what = format!("`{}` to end", self.command);
        let status =
            wait_until(&what, timeout, || self.try_wait().ok_or_else(|| self.last_words()))?;
        Ok(Output {
            command: self.command.clone(),
            status,
            stdout: self.stdout(),
            stderr: self.stderr(),
        })
    }

    /// Ends it: SIGTERM, at most two seconds, SIGKILL.
    pub fn terminate(&mut self) {
        self.signal(Signal::TERM);
        let deadline = std::time::Instant::now() + Self::GRACE;
        while self.is_running() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.kill();
    }

    /// Ends it and what it has started at once, as a crash would: SIGKILL.
    pub fn kill(&mut self) {
        if self.is_running() {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            self.status = self.child.wait().ok();
        }
    }

    /// Dropping it no longer ends it.
    pub(super) fn leave(&mut self) {
        self.leave_running = true;
    }

    fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            // An error means that there is no such child any more.
            self.status =
                self.child.try_wait().unwrap_or_else(|_| Some(ExitStatus::from_raw(0x7f00)));
        }
        self.status
    }

    fn last_words(&self) -> String {
        let text = self.stderr() + &self.stdout();
        let lines: Vec<&str> = text.lines().collect();
        match lines.len() {
            0 => "it said nothing".into(),
            count => lines[count.saturating_sub(3)..].join(" / "),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.leave_running {
            self.terminate();
            let _ = fs::remove_file(&self.stdout);
            let _ = fs::remove_file(&self.stderr);
        }
    }
}

impl Output {
    /// The output of a program that ended well.
    ///
    /// # Errors
    /// [`LabError::Command`] where it did not.
    pub fn success(self) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        let said = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        Err(LabError::Command {
            message: said.trim().to_owned(),
            status: self.status.to_string(),
            command: self.command,
        })
    }
}

fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_output_and_status() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = Process::start(
            directory.path(),
            "here",
            &["sh", "-c", "echo out; echo err >&2; exit 3"],
        )
        .unwrap();
        let output = process.wait(Duration::from_secs(5)).unwrap();
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
        assert_eq!(output.status.code(), Some(3));
        let error = output.success().unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("err"), "{error}");
    }

    #[test]
    fn ends_what_ignores_sigterm() {
        let directory = tempfile::tempdir().unwrap();
        let script = "trap '' TERM; echo ready; exec sleep 60";
        let mut process = Process::start(directory.path(), "here", &["sh", "-c", script]).unwrap();
        wait_until("the trap", Duration::from_secs(5), || {
            if process.stdout() == "ready\n" { Ok(()) } else { Err(process.stdout()) }
        })
        .unwrap();
        process.terminate();
        assert_eq!(process.status.and_then(|status| status.signal()), Some(9));
        let group = Pid::from_child(&process.child);
        wait_until("its children to end", Duration::from_secs(5), || {
            match rustix::process::test_kill_process_group(group) {
                Err(_) => Ok(()),
                Ok(()) => Err("they run on".into()),
            }
        })
        .unwrap();
    }

    #[test]
    fn says_what_cannot_be_started() {
        let directory = tempfile::tempdir().unwrap();
        let error =
            Process::start(directory.path(), "here", &["no-such-program", "x"]).unwrap_err();
        assert_eq!(error.to_string(), "cannot start `no-such-program x`");
    }
}
