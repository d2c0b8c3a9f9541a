//! Links between namespaces: veth pairs and bridges.

use super::{LabError, Namespace, Result};

/// An Ethernet address.
pub type MacAddress = [u8; 6];

/// One end of a veth pair to be made.
#[derive(Debug, Clone, Copy)]
pub struct Veth<'a> {
    /// Where the end lives.
    pub namespace: &'a Namespace,
    /// Its name there, at most 15 bytes.
    pub interface: &'a str,
}

/// What a link leaves to the other end, by `ethtool -K`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// The kernel's defaults for veth: superframes cross whole.
    Default,
    /// What leaves is cut to the MTU, as on a real wire; what arrives is put
    /// together again (GRO). Checksums stay offloaded: before Linux 6.11 UDP GSO
    /// needs that.
    RealPackets,
    /// Nothing at all is left to anybody.
    None,
}

impl Veth<'_> {
    /// Makes the pair `self` – `other` with the given MTU (bytes), both up.
    ///
    /// # Errors
    /// [`LabError::Command`] with what `ip` said.
    pub fn connect(self, other: Veth<'_>, mtu: u32) -> Result<()> {
        let (here, there) = (self.interface, other.interface);
        self.namespace.ip(&format!(
            "link add {here} mtu {mtu} type veth peer name {there} mtu {mtu} netns {}",
            other.namespace.full_name()
        ))?;
        self.namespace.ip(&format!("link set {here} up"))?;
        other.namespace.ip(&format!("link set {there} up"))?;
        Ok(())
    }
}

impl Namespace {
    /// Makes a bridge that forwards at once (no spanning tree, no snooping,
    /// which has nothing to snoop here) and is up.
    ///
    /// # Errors
    /// [`LabError::Command`] with what `ip` said.
    pub fn add_bridge(&self, bridge: &str, mtu: u32) -> Result<()> {
        self.ip(&format!(
            "link add {bridge} mtu {mtu} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
        ))?;
        self.ip(&format!("link set {bridge} addrgenmode none up"))?;
        Ok(())
    }

    /// Makes `interface` a port of `bridge`.
    ///
    /// # Errors
    /// [`LabError::Command`] with what `ip` said.
    pub fn enslave(&self, interface: &str, bridge: &str) -> Result<()> {
        self.ip(&format!("link set {interface} master {bridge}")).map(drop)
    }

    /// Switches an interface's offloads.
    ///
    /// # Errors
    /// [`LabError::Command`] with what `ethtool` said.
    pub fn set_offload(&self, interface: &str, offload: Offload) -> Result<()> {
        let switches: &[&str] = match offload {
            Offload::Default => return Ok(()),
            Offload::RealPackets => {
                &["tso", "off", "gso", "off", "tx-udp-segmentation", "off", "gro", "on"]
            }
            Offload::None => &[
                "tso",
                "off",
                "gso",
                "off",
                "tx-udp-segmentation",
                "off",
                "tx",
                "off",
                "gro",
                "off",
            ],
        };
        let mut argv = vec!["ethtool", "-K", interface];
        argv.extend(switches);
        self.exec(&argv)?.success().map(drop)
    }

    /// An interface's MAC address.
    ///
    /// # Errors
    /// [`LabError::Command`] where there is no such interface.
    pub fn mac(&self, interface: &str) -> Result<MacAddress> {
        let link = self.link(interface)?;
        let text = link["address"].as_str().unwrap_or_default();
        let bytes: Option<Vec<u8>> =
            text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| LabError::Answer {
            command: format!("ip link show {interface}"),
            answer: link.to_string(),
        })
    }

    /// What `ip -json -details -statistics link show` says about an interface.
    ///
    /// # Errors
    /// [`LabError::Command`] where there is no such interface.
    pub fn link(&self, interface: &str) -> Result<serde_json::Value> {
        let command = format!("-json -details -statistics link show dev {interface}");
        let answer = self.ip(&command)?;
        let links: Option<Vec<serde_json::Value>> = serde_json::from_str(&answer).ok();
        links
            .and_then(|links| links.into_iter().next())
            .ok_or(LabError::Answer { command: format!("ip {command}"), answer })
    }
}
