//! What carries frames between the sites, each in its best documented
//! configuration.

mod fastd;
mod landbridge;
mod openvpn;
mod softether;
mod tinc;
mod vpncloud;
mod vxlan;

use crate::{
    settings::Settings,
    topology::{Topology, Wiring},
};
use ::landbridge::lab::Process;
use anyhow::{Result, bail};

/// A carrier, and how it is started.
pub(crate) struct Carrier {
    pub(crate) name: &'static str,
    /// Its configuration, for the report: options, and why where it isn't plain.
    pub(crate) configuration: &'static str,
    pub(crate) encrypted: bool,
    pub(crate) wiring: Wiring,
    /// MTU of hosts and bridges, bytes of IP.
    pub(crate) lan_mtu: u32,
    /// What is not installed, with the package that brings it.
    pub(crate) missing: fn(&Settings) -> Option<String>,
    /// Starts it on both sides; returns its daemons, east first.
    start: fn(&Topology<'_>, &Settings) -> Result<Vec<Process>>,
}

/// Landbridge on a bridge, which the bar is about.
pub(crate) const OURS: &str = landbridge::ON_BRIDGE.name;
/// Landbridge straight on the host's cable.
pub(crate) const OURS_NIC: &str = landbridge::ON_NIC.name;
/// The kernel's plaintext.
pub(crate) const VXLAN: &str = vxlan::CARRIER.name;

static ALL: [Carrier; 8] = [
    landbridge::ON_BRIDGE,
    landbridge::ON_NIC,
    vxlan::CARRIER,
    vpncloud::CARRIER,
    fastd::CARRIER,
    softether::CARRIER,
    openvpn::CARRIER,
    tinc::CARRIER,
];

impl Carrier {
    /// Starts it and waits until frames cross.
    pub(crate) fn start(
        &self,
        topology: &Topology<'_>,
        settings: &Settings,
    ) -> Result<Vec<Process>> {
        let daemons = (self.start)(topology, settings)?;
        if let Err(error) = topology.wait_until_connected() {
            let said: Vec<String> =
                daemons.iter().map(|daemon| daemon.stdout() + &daemon.stderr()).collect();
            let said = said.join("\n");
            let mut last: Vec<&str> = said.lines().rev().take(4).collect();
            last.reverse();
            let last = last.join(" / ");
            return Err(error.context(format!("it does not connect; its last words: {last}")));
        }
        Ok(daemons)
    }

    /// Whether it is Landbridge.
    pub(crate) fn is_ours(&self) -> bool {
        [OURS, OURS_NIC].contains(&self.name)
    }
}

/// The carriers of these names, all if there are none.
pub(crate) fn select(names: &[String]) -> Result<Vec<&'static Carrier>> {
    if let Some(unknown) = names.iter().find(|name| ALL.iter().all(|c| c.name != **name)) {
        let known: Vec<_> = ALL.iter().map(|carrier| carrier.name).collect();
        bail!("there is no carrier {unknown}; there are {}", known.join(", "));
    }
    let wanted = |carrier: &&Carrier| names.is_empty() || names.iter().any(|n| n == carrier.name);
    Ok(ALL.iter().filter(wanted).collect())
}

/// What to say where `program` is not in PATH.
fn missing_program(program: &str, package: &str) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(program).is_file());
    (!found).then(|| format!("{program} is not installed (apt-get install {package})"))
}
