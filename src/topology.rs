//! The group as one appliance sees it: indices instead of names, resolved once.

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
