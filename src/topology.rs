//! The group as one appliance sees it: indices instead of names, resolved once.

use std::{collections::HashMap, net::SocketAddr};

use crate::{
    config::{Attachment, AttachmentKind, Group},
    session::PublicKey,
    wire::ethernet::VlanTag,
};

/// Index of a site in the group file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SiteIndex(pub u16);

/// Index of another appliance that this one keeps a tunnel to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerIndex(pub u16);

/// Index of a network in the group file (not its id).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NetworkIndex(pub u16);

/// Index of an interface through which this appliance meets a LAN: a TAP
/// belongs to one network, a NIC may carry several by VLAN.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortIndex(pub u16);

/// One stretched L2 segment's 24-bit id, as in the group file and on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NetworkId(pub u32);

/// Everything about the group that does not change while it runs.
#[derive(Debug)]
pub struct Topology {
    /// This appliance's site.
    pub site: SiteIndex,
    /// This appliance's name.
    pub appliance: String,
    /// Names of the sites, by [`SiteIndex`].
    pub sites: Vec<String>,
    /// The appliances of the other sites, by [`PeerIndex`].
    pub peers: Vec<Peer>,
    /// The networks, by [`NetworkIndex`].
    pub networks: Vec<Network>,
    /// This site's interfaces, by [`PortIndex`].
    pub ports: Vec<Port>,
    /// Which appliance answers for each site, by [`SiteIndex`]; `None` for this one.
    holders: Vec<Option<PeerIndex>>,
    by_id: HashMap<NetworkId, NetworkIndex>,
}

/// Another appliance.
#[derive(Debug)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its site.
    pub site: SiteIndex,
    /// Its static key.
    pub public_key: PublicKey,
    /// Where it can be reached, the preferred one first.
    pub endpoints: Vec<SocketAddr>,
}

/// A stretched network.
#[derive(Debug)]
pub struct Network {
    /// Its id on the wire.
    pub id: NetworkId,
    /// Its name.
    pub name: String,
    /// The other sites that it is attached at.
    pub remote_sites: Vec<SiteIndex>,
    /// Where it meets this site's LAN, if it does.
    pub attachment: Option<PortAttachment>,
}

/// A network's place on a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortAttachment {
    /// The port.
    pub port: PortIndex,
    /// The tag that its frames carry there; `None` where they cross as they are.
    pub vlan: Option<VlanTag>,
    /// Superframes leave there whole; `false` where they would be cut in software.
    pub takes_superframes: bool,
}

/// An interface of this appliance.
#[derive(Debug)]
pub struct Port {
    /// Name of the interface.
    pub interface: String,
    /// Takes every frame as it is, tags and all.
    whole: Option<NetworkIndex>,
    /// VLAN id → network, where tags select.
    vlans: HashMap<u16, NetworkIndex>,
}

impl Port {
    /// The network that a frame belongs to which came with this tag out of
    /// band (or with none), if any.
    #[inline]
    pub fn classify(&self, vlan: Option<VlanTag>) -> Option<NetworkIndex> {
        match self.whole {
            Some(network) => Some(network),
            None => {
                let tag = vlan.filter(|tag| tag.tpid == VlanTag::CUSTOMER)?;
                self.vlans.get(&tag.id()).copied()
            }
        }
    }

    /// Tags are part of the frames that cross.
    #[inline]
    pub fn keeps_tags(&self) -> bool {
        self.whole.is_some()
    }
}

impl Topology {
    /// The view of `group` from `appliance` (an index within its site) of `site`.
    pub fn new(group: &Group, site: SiteIndex, appliance: usize) -> Self {
        let peers: Vec<Peer> = group
            .appliances()
            .filter(|(peer_site, _, _)| *peer_site != site)
            .map(|(site, _, appliance)| Peer {
                name: appliance.name.clone(),
                site,
                public_key: appliance.public_key,
                endpoints: appliance.underlay.clone(),
            })
            .collect();
        let holders = (0..group.sites.len())
            .map(|at| {
                let holder = peers.iter().position(|peer| usize::from(peer.site.0) == at);
                holder.map(|index| PeerIndex(index as u16))
            })
            .collect();
        let mut ports: Vec<Port> = Vec::new();
        let mut networks = Vec::new();
        for (index, network) in group.networks.iter().enumerate() {
            let remote_sites = (0..group.sites.len())
                .map(|at| SiteIndex(at as u16))
                .filter(|at| *at != site && network.attachment(*at).is_some())
                .collect();
            let attachment = network
                .attachment(site)
                .map(|attachment| attach(&mut ports, NetworkIndex(index as u16), attachment));
            networks.push(Network {
                id: network.id,
                name: network.name.clone(),
                remote_sites,
                attachment,
            });
        }
        let by_id = networks
            .iter()
            .enumerate()
            .map(|(index, network)| (network.id, NetworkIndex(index as u16)))
            .collect();
        Self {
            site,
            appliance: group.site(site).appliances[appliance].name.clone(),
            sites: group.sites.iter().map(|site| site.name.clone()).collect(),
            peers,
            networks,
            ports,
            holders,
            by_id,
        }
    }

    /// The appliance that frames for `site` go to, if there is one.
    #[inline]
    pub fn holder(&self, site: SiteIndex) -> Option<PeerIndex> {
        *self.holders.get(usize::from(site.0))?
    }

    /// The network with this id.
    #[inline]
    pub fn network_by_id(&self, id: NetworkId) -> Option<NetworkIndex> {
        self.by_id.get(&id).copied()
    }

    /// The network with this index.
    #[inline]
    pub fn network(&self, index: NetworkIndex) -> &Network {
        &self.networks[usize::from(index.0)]
    }

    /// The peer with this index.
    pub fn peer(&self, index: PeerIndex) -> &Peer {
        &self.peers[usize::from(index.0)]
    }

    /// The peer with this key.
    pub fn peer_by_key(&self, key: &PublicKey) -> Option<PeerIndex> {
        let index = self.peers.iter().position(|peer| peer.public_key == *key)?;
        Some(PeerIndex(index as u16))
    }

    /// All peers' indices.
    pub fn peer_indices(&self) -> impl Iterator<Item = PeerIndex> + use<> {
        (0..self.peers.len()).map(|index| PeerIndex(index as u16))
    }
}

fn attach(ports: &mut Vec<Port>, network: NetworkIndex, attachment: &Attachment) -> PortAttachment {
    let (interface, vlan) = match &attachment.kind {
        AttachmentKind::Bridge { tap, .. } | AttachmentKind::Tap { tap, .. } => (tap, None),
        AttachmentKind::Nic { nic, vlan } => (nic, *vlan),
    };
    let known = ports.iter().position(|port| port.interface == interface.as_str());
    let index = known.unwrap_or_else(|| {
        let interface = interface.as_str().to_owned();
        ports.push(Port { interface, whole: None, vlans: HashMap::new() });
        ports.len() - 1
    });
    match vlan {
        None => ports[index].whole = Some(network),
        Some(vlan) => {
            ports[index].vlans.insert(vlan.get(), network);
        }
    }
    PortAttachment {
        port: PortIndex(index as u16),
        vlan: vlan.map(|vlan| VlanTag { tpid: VlanTag::CUSTOMER, tci: vlan.get() }),
        takes_superframes: attachment.offload,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: &str = r#"
        [group]
        name = "g"
        [[site]]
        name = "east"
        [[site.appliance]]
        name = "east-1"
        public_key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
        underlay = ["192.0.2.1:51840"]
        [[site]]
        name = "west"
        [[site.appliance]]
        name = "west-1"
        public_key = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="
        underlay = ["192.0.2.2:51840"]
        [[site]]
        name = "north"
        [[site.appliance]]
        name = "north-1"
        public_key = "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM="
        underlay = ["192.0.2.3:51840"]
        [[network]]
        id = 100
        name = "app"
        attach.east = { nic = "eth1", vlan = 100 }
        attach.west = { bridge = "br0" }
        [[network]]
        id = 200
        name = "db"
        attach.east = { nic = "eth1", vlan = 200 }
        attach.west = { tap = "db0" }
        attach.north = { nic = "eth2" }
    "#;

    fn view(site: u16) -> Topology {
        let group = crate::config::parse(GROUP, "group.toml").expect("a valid group");
        Topology::new(&group, SiteIndex(site), 0)
    }

    #[test]
    fn tags_select_networks_on_a_shared_nic() {
        let east = view(0);
        assert_eq!(east.ports.len(), 1);
        let tag = |id: u16| Some(VlanTag { tpid: VlanTag::CUSTOMER, tci: 0x6000 | id });
        let port = &east.ports[0];
        assert_eq!(port.classify(tag(100)), Some(NetworkIndex(0)));
        assert_eq!(port.classify(tag(200)), Some(NetworkIndex(1)));
        assert_eq!(port.classify(tag(300)), None);
        assert_eq!(port.classify(None), None);
        let service = VlanTag { tpid: VlanTag::SERVICE, tci: 100 };
        assert_eq!(port.classify(Some(service)), None, "an S-tag is another thing");
        assert!(!port.keeps_tags());
    }

    #[test]
    fn an_interface_without_vlan_takes_everything() {
        let north = view(2);
        let port = &north.ports[0];
        assert!(port.keeps_tags());
        assert_eq!(port.classify(None), Some(NetworkIndex(1)));
        assert_eq!(
            port.classify(Some(VlanTag { tpid: VlanTag::CUSTOMER, tci: 7 })),
            Some(NetworkIndex(1))
        );
        assert_eq!(north.network(NetworkIndex(0)).attachment, None);
    }

    #[test]
    fn peers_and_sites_exclude_oneself() {
        let west = view(1);
        assert_eq!(west.appliance, "west-1");
        assert_eq!(west.peers.len(), 2);
        assert_eq!(west.network(NetworkIndex(0)).remote_sites, [SiteIndex(0)]);
        assert_eq!(west.network(NetworkIndex(1)).remote_sites, [SiteIndex(0), SiteIndex(2)]);
        assert_eq!(west.holder(SiteIndex(0)), Some(PeerIndex(0)));
        assert_eq!(west.holder(SiteIndex(1)), None);
        assert_eq!(west.holder(SiteIndex(2)), Some(PeerIndex(1)));
        assert_eq!(west.network_by_id(NetworkId(200)), Some(NetworkIndex(1)));
        let key = west.peer(PeerIndex(1)).public_key;
        assert_eq!(west.peer_by_key(&key), Some(PeerIndex(1)));
    }
}
