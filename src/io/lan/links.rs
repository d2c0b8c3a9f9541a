//! What is known of the host's interfaces: a plain table, filled by netlink.

use std::collections::HashMap;

use crate::wire::ethernet::MacAddr;

/// One interface, as far as an attachment cares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// Bytes.
    pub(super) mtu: u32,
    /// `None`: it has no Ethernet address.
    pub(super) mac: Option<MacAddr>,
    pub(super) is_ethernet: bool,
    /// Administratively up (IFF_UP).
    pub(super) is_up: bool,
    /// Up and with a carrier (IFF_LOWER_UP).
    pub(super) has_carrier: bool,
    /// The bridge, bond or the like that it belongs to.
    pub(super) controller: Option<u32>,
    /// Its state as a port of a bridge.
    pub(super) port_state: Option<PortState>,
    /// Set where it is a bridge.
    pub(super) bridge: Option<Bridge>,
}

/// What a bridge has beyond an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Bridge {
    /// Which link-local groups it passes (bit n: 01:80:c2:00:00:0n).
    pub(super) group_fwd_mask: u16,
    /// Passes each port its own VLANs only.
    pub(super) filters_vlans: bool,
}

/// State of a bridge port (IFLA_BRPORT_STATE, IEEE 802.1D 7.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PortState {
    Disabled,
    Listening,
    Learning,
    Forwarding,
    Blocking,
}

impl PortState {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Listening => "listening",
            Self::Learning => "learning",
            Self::Forwarding => "forwarding",
            Self::Blocking => "blocking",
        }
    }
}

/// The interfaces of this network namespace.
#[derive(Debug, Default)]
pub(super) struct LinkTable {
    links: HashMap<u32, Link>,
}

impl LinkTable {
    pub(super) fn insert(&mut self, link: Link) {
        self.links.insert(link.index, link);
    }

    pub(super) fn remove(&mut self, index: u32) {
        self.links.remove(&index);
    }

    pub(super) fn replace_all(&mut self, links: Vec<Link>) {
        self.links = links.into_iter().map(|link| (link.index, link)).collect();
    }

    pub(super) fn by_index(&self, index: u32) -> Option<&Link> {
        self.links.get(&index)
    }

    pub(super) fn by_name(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// The interfaces that belong to `controller`.
    pub(super) fn ports_of(&self, controller: u32) -> impl Iterator<Item = &Link> {
        self.links.values().filter(move |link| link.controller == Some(controller))
    }
}
