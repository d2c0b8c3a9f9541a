//! What a pair is made of, and what its parts are called.

use super::Offload;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

/// What a [`Pair`](super::Pair) is made of.
#[derive(Debug, Clone)]
pub struct PairOptions {
    /// MTU of hosts and bridges, in bytes of IP.
    pub lan_mtu: u32,
    /// MTU of both underlay links, in bytes of IP.
    pub underlay_mtu: u32,
    /// What the underlay speaks.
    pub underlay: Underlay,
    /// How each side's appliance meets its LAN.
    pub attachments: [AttachmentKind; 2],
    /// Hosts of each network at each site, at least 1.
    pub hosts_per_site: usize,
    /// Stretched networks, at least 1.
    pub networks: usize,
    /// Lanes in the group file; `None` leaves them to the product.
    pub lanes: Option<u8>,
    /// Whole lines added to the group file's `[group]`.
    pub extra_group_lines: String,
    /// Whole lines added to each `[[network]]`.
    pub extra_network_lines: String,
    /// Added inside of each side's attachments, with a leading comma.
    pub extra_attachment_fields: [String; 2],
    /// What the appliances' underlay links leave to the other end.
    pub underlay_offload: Offload,
    /// What carries frames between the sites.
    pub carrier: Carrier,
}

/// A side of the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Site `east`, appliance `east-1`, hosts `host-e…`.
    East = 0,
    /// Site `west`, appliance `west-1`, hosts `host-w…`.
    West = 1,
}

/// What the underlay speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Underlay {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

/// How an appliance meets its LAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachmentKind {
    /// `bridge = "br-<id>"`, with the hosts on that bridge.
    Bridge,
    /// `tap = "tap-<id>"`; a bridge that Landbridge knows nothing about joins it
    /// with the hosts ([`Pair::join_taps`](super::Pair::join_taps)).
    Tap,
    /// `nic = "lan<n>"`, cabled straight to one host.
    Nic,
    /// `nic = "lan0", vlan = <id>`: all networks tagged on one NIC, cabled
    /// straight to one host.
    Trunk,
}

/// What carries frames between the sites.
#[derive(Debug, Clone)]
pub enum Carrier {
    /// `landbridge run`; the path of each [`Side`]'s binary.
    Landbridge([PathBuf; 2]),
    /// The kernel's VXLAN, in the clear: to compare with, and to prove that a
    /// test can fail. Wants `Bridge` attachments on a v4 underlay.
    KernelVxlan,
    /// Nothing; a test starts what it wants.
    Nothing,
}

impl Default for PairOptions {
    fn default() -> Self {
        Self {
            lan_mtu: 1500,
            underlay_mtu: 1500,
            underlay: Underlay::V4,
            attachments: [AttachmentKind::Bridge; 2],
            hosts_per_site: 1,
            networks: 1,
            lanes: None,
            extra_group_lines: String::new(),
            extra_network_lines: String::new(),
            extra_attachment_fields: Default::default(),
            underlay_offload: Offload::Default,
            carrier: Carrier::Nothing,
        }
    }
}

impl Carrier {
    /// The same binary on both sides.
    pub fn landbridge(binary: &Path) -> Self {
        Self::Landbridge([binary.to_owned(), binary.to_owned()])
    }
}

impl Side {
    /// East, then west.
    pub const BOTH: [Self; 2] = [Self::East, Self::West];

    /// The site's name.
    pub fn site(self) -> &'static str {
        ["east", "west"][self as usize]
    }

    /// The appliance's name.
    pub fn appliance(self) -> &'static str {
        ["east-1", "west-1"][self as usize]
    }

    /// The side across the underlay.
    pub fn other(self) -> Self {
        [Self::West, Self::East][self as usize]
    }

    pub(super) fn letter(self) -> char {
        ['e', 'w'][self as usize]
    }
}

impl PairOptions {
    /// UDP port of the appliances.
    pub const PORT: u16 = 51840;

    /// Where the other side reaches `side`'s appliance.
    pub fn endpoint(&self, side: Side) -> SocketAddr {
        SocketAddr::new(self.underlay_address(side, 0x11), Self::PORT)
    }

    pub(super) fn router_address(&self, side: Side) -> IpAddr {
        self.underlay_address(side, 1)
    }

    fn underlay_address(&self, side: Side, host: u8) -> IpAddr {
        // 0x11 reads as 11 in both notations.
        let decimal = if host == 0x11 { 11 } else { host };
        match (self.underlay, side) {
            (Underlay::V4, Side::East) => Ipv4Addr::new(192, 0, 2, decimal).into(),
            (Underlay::V4, Side::West) => Ipv4Addr::new(198, 51, 100, decimal).into(),
            (Underlay::V6, _) => {
                let site = 0xe + side as u16;
                Ipv6Addr::new(0x2001, 0xdb8, site, 0, 0, 0, 0, host.into()).into()
            }
        }
    }

    pub(super) fn underlay_prefix_length(&self) -> u8 {
        match self.underlay {
            Underlay::V4 => 24,
            Underlay::V6 => 64,
        }
    }
}

/// The id of network `network`, counted from 0.
pub(super) fn network_id(network: usize) -> usize {
    100 + network
}

/// The VLAN of network `network` on a trunk.
pub(super) fn vlan_id(network: usize) -> usize {
    network_id(network)
}

pub(super) fn network_name(network: usize) -> String {
    ["app", "db", "voice"].get(network).map_or_else(|| format!("net{network}"), |&n| n.to_owned())
}

pub(super) fn bridge_name(network: usize) -> String {
    format!("br-{}", network_id(network))
}

pub(super) fn tap_name(network: usize) -> String {
    format!("tap-{}", network_id(network))
}

pub(super) fn nic_name(network: usize) -> String {
    format!("lan{network}")
}
