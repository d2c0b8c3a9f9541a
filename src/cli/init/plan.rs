//! What a new group shall be, and the group file that says so. No I/O.

use std::{
    fmt::Write,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::Path,
    str::FromStr,
};

use super::write::{GROUP_FILE, NewFile, PRESHARED_KEY_FILE};
use crate::{
    config::{self, InterfaceName, VlanId},
    session::keys::PublicKey,
};

/// The UDP port of an appliance where none is given.
pub const DEFAULT_PORT: u16 = 51840;

/// A group to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The group's name; by default those of its sites.
    pub name: Option<String>,
    /// Its sites, one appliance each.
    pub sites: Vec<SitePlan>,
    /// Its networks.
    pub networks: Vec<NetworkPlan>,
    /// Where each site meets each network.
    pub attachments: Vec<AttachmentPlan>,
    /// Whether it gets a preshared key.
    pub preshared: bool,
}

impl Plan {
    /// What must still be said, in words with the flag that says it.
    pub fn missing(&self) -> Option<String> {
        if self.sites.len() < 2 {
            return Some("give at least two sites: --site NAME=ADDRESS[:PORT]".into());
        }
        let unattached = self
            .sites
            .iter()
            .find(|site| !self.attachments.iter().any(|attachment| attachment.site == site.name));
        let site = &unattached?.name;
        let network = self.networks.first().map_or(DEFAULT_NETWORK, |network| &network.name);
        Some(format!(
            "say where the LAN of site {site} is: --attach {site}:{network}=bridge:br0 (or tap:NAME, \
             nic:NAME, nic:NAME:VLAN)"
        ))
    }

    /// The plan with a name and a network, where it has none.
    pub fn with_defaults(mut self) -> Self {
        if self.networks.is_empty() {
            self.networks
                .push(NetworkPlan { id: DEFAULT_NETWORK_ID, name: DEFAULT_NETWORK.into() });
        }
        if self.name.is_none() {
            let names: Vec<&str> = self.sites.iter().map(|site| site.name.as_str()).collect();
            let mut name = names.join("-");
            name.truncate(config::MAX_NAME_BYTES);
            self.name = Some(name);
        }
        self
    }

    /// The text of the group file; `keys` are those of the sites' appliances.
    pub fn group_file(&self, keys: &[PublicKey]) -> String {
        let mut text = HEAD.to_owned();
        let preshared = if self.preshared {
            format!("\n{PRESHARED_NOTE}preshared_key_file = \"{PRESHARED_KEY_FILE}\"\n")
        } else {
            String::new()
        };
        let name = self.name.as_deref().unwrap_or_default();
        push(&mut text, format_args!("\n[group]\nname = \"{name}\"\n{preshared}{SITES_NOTE}"));
        for (site, key) in self.sites.iter().zip(keys) {
            let SitePlan { name, underlay } = site;
            let appliance = site.appliance();
            push(
                &mut text,
                format_args!(
                    "\n[[site]]\nname = \"{name}\"\n\n[[site.appliance]]\nname = \
                     \"{appliance}\"\npublic_key = \"{key}\"\nunderlay = [\"{underlay}\"]\n"
                ),
            );
        }
        text.push_str(NETWORKS_NOTE);
        for network in &self.networks {
            let NetworkPlan { id, name } = network;
            push(&mut text, format_args!("\n[[network]]\nid = {id}\nname = \"{name}\"\n"));
            for attachment in self.attachments.iter().filter(|at| at.is_of(network)) {
                push(&mut text, format_args!("{}\n", attachment.line()));
            }
        }
        // Nothing that was said may get lost: the parser tells what is wrong with it.
        for stray in &self.attachments {
            if !self.networks.iter().any(|network| stray.is_of(network)) {
                push(&mut text, format_args!("# no such network: \"{}\"\n", stray.network));
                push(&mut text, format_args!("unknown_network = \"{}\"\n", stray.network));
            }
        }
        text
    }

    /// What to do with the files that were written to `directory`.
    pub fn next_steps(&self, directory: &Path, files: &[NewFile]) -> String {
        let shown = directory.display();
        let mut text = format!("Made in {shown}:\n");
        for file in files {
            push(&mut text, format_args!("  {:<16} {}\n", file.name, file.purpose));
        }
        push(
            &mut text,
            format_args!(
                "\nNext:\n  1. Read {shown}/{GROUP_FILE} and complete it where you like.\n  2. On \
                 each appliance install landbridge, and bring it its files:\n"
            ),
        );
        let shared =
            if self.preshared { format!(" {shown}/{PRESHARED_KEY_FILE}") } else { String::new() };
        for site in &self.sites {
            let host = match site.underlay.ip() {
                IpAddr::V4(ip) => ip.to_string(),
                IpAddr::V6(ip) => format!("[{ip}]"),
            };
            let key = format!("{shown}/{}.key", site.appliance());
            push(
                &mut text,
                format_args!(
                    "       scp {shown}/{GROUP_FILE}{shared} root@{host}:/etc/landbridge/\n       \
                     scp {key} root@{host}:/etc/landbridge/appliance.key\n"
                ),
            );
        }
        text.push_str(LAST_STEPS);
        text
    }
}

const DEFAULT_NETWORK_ID: u32 = 100;
/// Name of the network where none is given.
pub const DEFAULT_NETWORK: &str = "lan";

const HEAD: &str = "\
# Landbridge group file: the same on every appliance of the group. After a change,
# check it, copy it to all of them and restart them one after the other:
#
#   landbridge check --group group.toml
";

const PRESHARED_NOTE: &str = "\
# A secret that all appliances share besides their own keys. A relative path
# counts from the directory of this file.
";

const SITES_NOTE: &str = "
# A site is a place with a LAN. Its appliance is known by its public key (the
# private one is in its .key file) and is reached by the other sites at `underlay`.
# Behind NAT, write there what the others see, and the local address to bind as
#   listen = \"0.0.0.0:51840\"
";

const NETWORKS_NOTE: &str = "
# A network is one stretched LAN. `attach.SITE` says where it meets a site's LAN:
#   { bridge = \"br0\" }             a bridge that exists; a TAP is made and enslaved
#   { nic = \"eth1\", vlan = 100 }   an interface that exists, or one VLAN of it
#   { tap = \"app0\" }               a TAP alone, for a virtual machine or as you like
# Optional: max_macs = 16384 (bound of the MAC table), ageing_s = 300.
";

const LAST_STEPS: &str = "     Then delete the .key files here: each belongs on its own host alone.
  3. On each appliance, check the file and the host, and try it:
       cd /etc/landbridge
       landbridge check --group group.toml --key appliance.key
       landbridge run --group group.toml --key appliance.key
  4. When it works, leave it to systemd:
       systemctl enable --now landbridge
       landbridge status
";

/// A site to be made, with one appliance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SitePlan {
    /// Its name.
    pub name: String,
    /// Where other sites reach its appliance.
    pub underlay: SocketAddr,
}

impl SitePlan {
    /// Name of its appliance.
    pub fn appliance(&self) -> String {
        format!("{}-1", self.name)
    }
}

impl FromStr for SitePlan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, address) =
            text.split_once('=').ok_or("write it as NAME=ADDRESS or NAME=ADDRESS:PORT")?;
        Ok(Self { name: valid_name(name)?, underlay: parse_underlay(address)? })
    }
}

/// A network to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPlan {
    /// Its id.
    pub id: u32,
    /// Its name.
    pub name: String,
}

impl FromStr for NetworkPlan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (id, name) = text.split_once(':').ok_or("write it as ID:NAME, as 100:app")?;
        let id = id.parse().map_err(|_| format!("the id {id:?} is not a number"))?;
        Ok(Self { id, name: valid_name(name)? })
    }
}

/// Where a site shall meet a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachmentPlan {
    /// The site's name.
    pub site: String,
    /// The network's name or id.
    pub network: String,
    /// Through what.
    pub kind: KindPlan,
}

impl AttachmentPlan {
    fn is_of(&self, network: &NetworkPlan) -> bool {
        self.network == network.name || self.network == network.id.to_string()
    }

    fn line(&self) -> String {
        let site =
            if self.site.contains('.') { format!("\"{}\"", self.site) } else { self.site.clone() };
        match &self.kind {
            KindPlan::Bridge(bridge) => format!("attach.{site} = {{ bridge = \"{bridge}\" }}"),
            KindPlan::Tap(tap) => format!("attach.{site} = {{ tap = \"{tap}\" }}"),
            KindPlan::Nic(nic, None) => format!("attach.{site} = {{ nic = \"{nic}\" }}"),
            KindPlan::Nic(nic, Some(vlan)) => {
                format!("attach.{site} = {{ nic = \"{nic}\", vlan = {vlan} }}")
            }
        }
    }
}

impl FromStr for AttachmentPlan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = "write it as SITE:NETWORK=bridge:br0, …=tap:app0, …=nic:eth1 or …=nic:eth1:100";
        let (place, kind) = text.split_once('=').ok_or(usage)?;
        let (site, network) = place.split_once(':').ok_or(usage)?;
        Ok(Self { site: valid_name(site)?, network: valid_name(network)?, kind: kind.parse()? })
    }
}

/// Through what a site meets a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KindPlan {
    /// An existing bridge.
    Bridge(InterfaceName),
    /// A TAP alone.
    Tap(InterfaceName),
    /// An existing interface, or one VLAN of it.
    Nic(InterfaceName, Option<VlanId>),
}

impl FromStr for KindPlan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let interface = |name: &str| {
            name.parse().map_err(|error| format!("{name:?} can't name an interface: {error}"))
        };
        match parts[..] {
            ["bridge", name] => Ok(Self::Bridge(interface(name)?)),
            ["tap", name] => Ok(Self::Tap(interface(name)?)),
            ["nic", name] => Ok(Self::Nic(interface(name)?, None)),
            ["nic", name, vlan] => {
                let id: u16 = vlan.parse().map_err(|_| format!("{vlan:?} is not a VLAN"))?;
                let vlan = VlanId::try_from(id).map_err(|error| error.to_string())?;
                Ok(Self::Nic(interface(name)?, Some(vlan)))
            }
            _ => Err("write bridge:NAME, tap:NAME, nic:NAME or nic:NAME:VLAN".into()),
        }
    }
}

/// Reads an address with or without a port; IPv6 may go without brackets where
/// it has no port.
///
/// # Errors
/// Says what to write.
pub fn parse_underlay(text: &str) -> Result<SocketAddr, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    if let Some(ip) = bare.and_then(|inner| inner.parse::<Ipv6Addr>().ok()) {
        return Ok(SocketAddr::from((ip, DEFAULT_PORT)));
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::from((ip, DEFAULT_PORT)));
    }
    text.parse().map_err(|_| {
        format!(
            "{text:?} is no address: write an IP address, with a port if it isn't {DEFAULT_PORT}: \
             192.0.2.11, 192.0.2.11:4000 or [2001:db8::11]:4000"
        )
    })
}

/// Checks a name by the group file's rule.
///
/// # Errors
/// Says the rule.
pub fn valid_name(name: &str) -> Result<String, String> {
    if config::is_name(name) {
        return Ok(name.to_owned());
    }
    Err(format!(
        "{name:?} is not a name: use up to {} letters, digits, `-`, `_` and `.`, a letter or digit \
         first",
        config::MAX_NAME_BYTES
    ))
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.write_fmt(line).expect("a String takes any text");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(count: u8) -> Vec<PublicKey> {
        (1..=count).map(|n| PublicKey::from_bytes([n; 32]).unwrap()).collect()
    }

    fn plan() -> Plan {
        Plan {
            sites: vec!["east=192.0.2.11".parse().unwrap(), "w.e=2001:db8::7".parse().unwrap()],
            networks: vec!["100:app".parse().unwrap(), "7:db".parse().unwrap()],
            attachments: vec![
                "east:app=bridge:br0".parse().unwrap(),
                "w.e:100=nic:eth1:5".parse().unwrap(),
                "east:db=tap:db0".parse().unwrap(),
                "w.e:7=nic:eth2".parse().unwrap(),
            ],
            ..Plan::default()
        }
    }

    #[test]
    fn the_file_says_what_was_planned() {
        for preshared in [false, true] {
            let plan = Plan { preshared, ..plan() }.with_defaults();
            let text = plan.group_file(&keys(2));
            let group = config::parse(&text, "f").unwrap_or_else(|p| panic!("{p}\n{text}"));
            assert_eq!(group.name, "east-w.e");
            assert_eq!(group.preshared_key_file.is_some(), preshared);
            assert_eq!(group.sites[1].appliances[0].name, "w.e-1");
            assert_eq!(group.sites[1].appliances[0].underlay[0].port(), DEFAULT_PORT);
            assert_eq!(group.networks.len(), 2);
            assert!(group.networks.iter().all(|n| n.attachments.iter().all(Option::is_some)));
            assert!(plan.next_steps(Path::new("d"), &[]).contains("root@[2001:db8::7]:/etc"));
        }
    }

    #[test]
    fn nothing_said_is_lost() {
        let mut plan = plan();
        plan.attachments.push("east:other=tap:x".parse().unwrap());
        assert!(config::parse(&plan.with_defaults().group_file(&keys(2)), "f").is_err());
    }

    #[test]
    fn what_is_missing() {
        let mut plan = plan();
        assert_eq!(plan.missing(), None);
        plan.attachments.retain(|attachment| attachment.site == "east");
        assert!(plan.missing().unwrap().contains("--attach w.e:app=bridge:br0"));
        plan.sites.pop();
        assert!(plan.missing().unwrap().contains("--site"));
    }

    #[test]
    fn flags_that_make_no_sense() {
        for bad in ["east", "east=", "east=host", "=1.2.3.4", "e t=1.2.3.4", "a\"=1.2.3.4"] {
            assert!(bad.parse::<SitePlan>().is_err(), "{bad}");
        }
        for bad in ["", "app", "x:app", "1:", "1:a b", "-1:app"] {
            assert!(bad.parse::<NetworkPlan>().is_err(), "{bad}");
        }
        for bad in [
            "e:a",
            "e=tap:x",
            "e:a=tap",
            "e:a=eth:x",
            "e:a=nic:x:0",
            "e:a=tap:a/b",
            "e:a=nic:x:1:2",
        ] {
            assert!(bad.parse::<AttachmentPlan>().is_err(), "{bad}");
        }
    }
}
