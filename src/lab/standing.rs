//! The lab that `landbridge lab up` leaves running.

use super::{
    LabError, Pair, Result, Run, Side,
    run::{namespaces_of, require_root},
    tour,
};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A lab that outlives the command that made it.
#[derive(Debug, Serialize)]
pub struct StandingLab {
    /// Its hosts, appliances and router.
    pub members: Vec<Member>,
    /// Where its group file, keys, sockets and logs are.
    pub directory: PathBuf,
}

/// A namespace of the standing lab.
#[derive(Debug, Serialize)]
pub struct Member {
    /// What `lab exec` calls it.
    pub name: String,
    /// What `ip netns` calls it.
    pub namespace: String,
    /// Addresses of its interfaces, loopback and link-local ones left out.
    pub addresses: Vec<String>,
    /// Ids of the processes inside.
    pub processes: Vec<u32>,
}

impl StandingLab {
    /// Builds one with `binary` and leaves it running once a frame has crossed.
    ///
    /// # Errors
    /// [`LabError::AlreadyUp`], or what kept it from working; it is gone again then.
    pub fn build(binary: &Path) -> Result<Self> {
        Run::remove_stale(false)?;
        let mut pair = Pair::new(Run::persistent()?, tour::options(binary))?;
        pair.wait_for_tunnel()?;
        pair.leave();
        Self::find()
    }

    /// The one that is up.
    ///
    /// # Errors
    /// [`LabError::NotUp`], [`LabError::NotRoot`].
    pub fn find() -> Result<Self> {
        require_root()?;
        let namespaces = namespaces_of(Run::PERSISTENT_ID);
        if namespaces.is_empty() {
            return Err(LabError::NotUp);
        }
        let members = namespaces.into_iter().map(Member::new).collect::<Result<_>>()?;
        Ok(Self { members, directory: Run::directory_of(Run::PERSISTENT_ID) })
    }

    /// A command that runs `argv` inside the member `name`, in the caller's
    /// terminal.
    ///
    /// # Errors
    /// [`LabError::NoSuchMember`].
    pub fn command(&self, name: &str, argv: &[String]) -> Result<Command> {
        let member = self.members.iter().find(|member| member.name == name);
        let member = member.ok_or_else(|| LabError::NoSuchMember {
            name: name.to_owned(),
            names: self.members.iter().map(|member| &*member.name).collect::<Vec<_>>().join(", "),
        })?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &member.namespace]).args(argv);
        Ok(command)
    }

    /// The management socket of a side's appliance.
    pub fn socket(&self, side: Side) -> PathBuf {
        self.directory.join(format!("{}.sock", side.appliance()))
    }
}

impl Member {
    fn new(namespace: String) -> Result<Self> {
        let ip = |arguments: &[&str]| -> Result<String> {
            let mut command = Command::new("ip");
            command.args(arguments);
            let text = format!("{command:?}").replace('"', "");
            let output = command
                .output()
                .map_err(|source| LabError::Start { command: text.clone(), source })?;
            if output.status.success() {
                return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
            }
            Err(LabError::Command {
                command: text,
                status: output.status.to_string(),
                message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            })
        };
        let prefix = format!("lb-{}-", Run::PERSISTENT_ID);
        Ok(Self {
            name: namespace.strip_prefix(&prefix).unwrap_or(&namespace).to_owned(),
            addresses: addresses(&ip(&["-n", &namespace, "-brief", "address", "show", "up"])?),
            processes: ip(&["netns", "pids", &namespace])?
                .split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect(),
            namespace,
        })
    }
}

/// `ip -brief address`: name, state, then addresses.
fn addresses(brief: &str) -> Vec<String> {
    let lines = brief.lines().filter(|line| !line.starts_with("lo "));
    lines
        .flat_map(|line| line.split_whitespace().skip(2))
        .filter(|word| word.contains('/') && !word.starts_with("fe80:"))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_addresses() {
        let brief = "lo               UNKNOWN        127.0.0.1/8 ::1/128 \n\
                     eth0@if2         UP             10.0.1.1/16 fd00::1:1/64 fe80::1/64 \n\
                     uplink@if3       UP             \n";
        assert_eq!(addresses(brief), ["10.0.1.1/16", "fd00::1:1/64"]);
    }
}
