//! The group file: one TOML file, the same on every appliance, parsed into a
//! typed and validated [`Group`]. Every mistake in it is reported at once, each
//! with its line, the offending text and a suggestion ([`Problems`]).
//!
//! ```toml
//! [group]
//! name = "dc-east-west"
//!
//! [[site]]
//! name = "east"
//! [[site.appliance]]
//! name = "east-1"
//! public_key = "…"
//! underlay = ["192.0.2.11:51840"]
//!
//! [[network]]
//! id = 100
//! name = "app"
//! attach.east = { bridge = "br-app" }
//! attach.west = { nic = "eth1", vlan = 100 }
//! ```
//!
//! `examples/group.toml` shows every field with its meaning.

pub mod digest;
pub mod names;
pub mod problem;

mod attachment;
mod group;
mod reader;
mod values;

#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

pub use group::parse;
pub use names::{InterfaceName, InvalidInterfaceName, InvalidVlanId, VlanId};
pub use problem::{Problem, Problems};
pub use values::is_name;

use crate::{
    session::keys::PublicKey,
    topology::{NetworkId, SiteIndex},
};

/// Longest group file that is read, in bytes.
pub const MAX_FILE_BYTES: usize = 1 << 20;
/// Most sites in a group.
pub const MAX_SITES: usize = 256;
/// Most networks in a group.
pub const MAX_NETWORKS: usize = 4096;
/// Most underlay addresses of one appliance.
pub const MAX_UNDERLAY_ADDRESSES: usize = 16;
/// Longest name of a group, site, appliance or network, in bytes.
pub const MAX_NAME_BYTES: usize = 63;

/// Rekey interval where the file names none.
pub const DEFAULT_REKEY_AFTER: Duration = Duration::from_secs(120);
/// Bound of a network's MAC table where the file names none.
pub const DEFAULT_MAX_MACS: u32 = 16_384;
/// Ageing time where the file names none (IEEE 802.1Q-2018, table 8-6).
pub const DEFAULT_AGEING: Duration = Duration::from_secs(300);
/// MTU of a TAP alone where the file names none, in bytes.
pub const DEFAULT_TAP_MTU: u16 = 1500;

/// A whole group as [`parse`] accepts it: at least two sites, names, keys and
/// addresses unique, every network attached at two sites or more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// What people call the group.
    pub name: String,
    /// File with the group's preshared key, as written; see
    /// [`Group::preshared_key_path`].
    pub preshared_key_file: Option<PathBuf>,
    /// A session's keys are replaced after this time, 2 to 120 s.
    pub rekey_after: Duration,
    /// Lanes per tunnel, 1 to 16; `None` lets each appliance choose by its cores.
    pub lanes: Option<u8>,
    /// How long a data thread looks for work before it sleeps, at most, 0 to 1 ms;
    /// `None` lets each appliance choose by its cores.
    pub spin: Option<Duration>,
    /// The sites in the order of the file; [`SiteIndex`] counts them.
    pub sites: Vec<Site>,
    /// The networks in the order of the file; [`crate::topology::NetworkIndex`] counts them.
    pub networks: Vec<Network>,
    /// Digest of what the file says, however it is formatted: see [`digest`].
    pub digest: [u8; 32],
}

impl Group {
    /// Which appliance holds the private key of `key`: its site and its index
    /// among the site's appliances.
    ///
    /// # Errors
    /// [`NotInGroup`] where no appliance of the file has that key.
    pub fn myself(&self, key: &PublicKey) -> Result<(SiteIndex, usize), NotInGroup> {
        let found = self.appliances().find(|(_, _, appliance)| appliance.public_key == *key);
        match found {
            Some((site, index, _)) => Ok((site, index)),
            None => Err(NotInGroup {
                key: *key,
                group: self.name.clone(),
                members: self
                    .appliances()
                    .map(|(_, _, appliance)| (appliance.name.clone(), appliance.public_key))
                    .collect(),
            }),
        }
    }

    /// A site by its index, which must come from this group.
    pub fn site(&self, index: SiteIndex) -> &Site {
        &self.sites[usize::from(index.0)]
    }

    /// Every appliance with its site and its index there.
    pub fn appliances(&self) -> impl Iterator<Item = (SiteIndex, usize, &Appliance)> {
        (0..).zip(&self.sites).flat_map(|(site, entry)| {
            let appliances = entry.appliances.iter().enumerate();
            appliances.map(move |(index, appliance)| (SiteIndex(site), index, appliance))
        })
    }

    /// Where the preshared key is: a relative path counts from the directory of
    /// the group file.
    pub fn preshared_key_path(&self, group_file: &Path) -> Option<PathBuf> {
        let file = self.preshared_key_file.as_deref()?;
        Some(group_file.parent().unwrap_or(Path::new("")).join(file))
    }
}

/// A place with a LAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Unique among the sites.
    pub name: String,
    /// At least one; the first listed goes first among equals.
    pub appliances: Vec<Appliance>,
}

/// A host that runs Landbridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appliance {
    /// Unique among all appliances of the group.
    pub name: String,
    /// Tells who it is; unique in the group.
    pub public_key: PublicKey,
    /// Where other sites reach it, best first: at least one, all with the same
    /// port, unique in the group.
    pub underlay: Vec<SocketAddr>,
    /// The local address that its UDP socket is bound to.
    pub listen: SocketAddr,
    /// Where its partner of the same site reaches it.
    pub peer_link: Option<SocketAddr>,
}

/// One stretched L2 segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Unique in the group, 1 to 2²⁴ − 1.
    pub id: NetworkId,
    /// Unique among the networks.
    pub name: String,
    /// Most entries of its MAC table.
    pub max_macs: u32,
    /// A MAC address that was silent for so long is forgotten.
    pub ageing: Duration,
    /// Where it meets each site's LAN, by [`SiteIndex`]; at least two are there.
    pub attachments: Vec<Option<Attachment>>,
}

impl Network {
    /// Where the network meets a site's LAN, if it does.
    pub fn attachment(&self, site: SiteIndex) -> Option<&Attachment> {
        self.attachments.get(usize::from(site.0))?.as_ref()
    }
}

/// Where an appliance meets the LAN of one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Through what.
    pub kind: AttachmentKind,
    /// Whether segmentation and checksum offloads may be used.
    pub offload: bool,
}

/// Through what an appliance meets a LAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttachmentKind {
    /// A TAP is made and enslaved to an existing bridge, whose MTU it takes.
    Bridge {
        /// The bridge.
        bridge: InterfaceName,
        /// The TAP's name.
        tap: InterfaceName,
    },
    /// A TAP alone.
    Tap {
        /// The TAP's name.
        tap: InterfaceName,
        /// Its MTU in bytes, 576 to 9216.
        mtu: u16,
    },
    /// Straight onto an existing interface.
    Nic {
        /// The interface.
        nic: InterfaceName,
        /// The tag that the network has there; `None` takes every frame as it is.
        vlan: Option<VlanId>,
    },
}

impl AttachmentKind {
    /// The existing interface, or the TAP where there is none.
    pub fn interface(&self) -> &InterfaceName {
        match self {
            Self::Bridge { bridge, .. } => bridge,
            Self::Tap { tap, .. } => tap,
            Self::Nic { nic, .. } => nic,
        }
    }
}

/// A private key fits no appliance of the group file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no appliance of group `{group}` has the public key {key}; the file has {}",
    list_members(.members)
)]
pub struct NotInGroup {
    /// The public key of the private key at hand.
    pub key: PublicKey,
    /// The group's name.
    pub group: String,
    /// Names and public keys in the file.
    pub members: Vec<(String, PublicKey)>,
}

fn list_members(members: &[(String, PublicKey)]) -> String {
    let shown: Vec<String> = members.iter().map(|(name, key)| format!("{name} = {key}")).collect();
    shown.join(", ")
}
