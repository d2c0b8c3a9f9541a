//! Where a frame goes, given what the FDB says about its destination.

use super::fdb::Location;
use crate::{topology::SiteIndex, wire::ethernet::MacAddr};

/// Where a frame came from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Origin {
    /// This site's LAN.
    Lan,
    /// A tunnel from a remote site.
    Tunnel,
}

/// What to do with a frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Decision {
    /// Send it to this one site.
    ToSite(SiteIndex),
    /// Send it to every remote site of its network.
    Flood,
    /// Emit it to this site's LAN.
    ToLan,
    /// Forget it; the reason is to be counted.
    Drop(DropReason),
}

/// Why a frame is not forwarded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DropReason {
    /// It was heard on the LAN where its destination lives: it has arrived.
    LocalDestination,
}

/// Decides about one frame.
///
/// `known` is the FDB's answer for `destination`; it is ignored for groups. What
/// came from a tunnel never leaves by a tunnel, even where the FDB knows better
/// (split horizon: every site has a tunnel to every other).
#[inline]
pub fn decide(destination: MacAddr, known: Option<Location>, origin: Origin) -> Decision {
    match (origin, known) {
        (Origin::Tunnel, _) => Decision::ToLan,
        (Origin::Lan, _) if destination.is_group() => Decision::Flood,
        (Origin::Lan, Some(Location::Local)) => Decision::Drop(DropReason::LocalDestination),
        (Origin::Lan, Some(Location::Site(site))) => Decision::ToSite(site),
        (Origin::Lan, None) => Decision::Flood,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell() {
        use Decision::*;
        use Origin::*;
        const STATION: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
        const MULTICAST: MacAddr = MacAddr([0x01, 0, 0x5e, 0, 0, 1]);
        const BROADCAST: MacAddr = MacAddr::BROADCAST;
        const HERE: Option<Location> = Some(Location::Local);
        const THERE: Option<Location> = Some(Location::Site(SiteIndex(3)));
        let table = [
            (STATION, None, Lan, Flood),
            (STATION, HERE, Lan, Drop(DropReason::LocalDestination)),
            (STATION, THERE, Lan, ToSite(SiteIndex(3))),
            (MULTICAST, None, Lan, Flood),
            (MULTICAST, HERE, Lan, Flood),
            (MULTICAST, THERE, Lan, Flood),
            (BROADCAST, None, Lan, Flood),
            (BROADCAST, HERE, Lan, Flood),
            (BROADCAST, THERE, Lan, Flood),
            (STATION, None, Tunnel, ToLan),
            (STATION, HERE, Tunnel, ToLan),
            (STATION, THERE, Tunnel, ToLan),
            (MULTICAST, None, Tunnel, ToLan),
            (MULTICAST, HERE, Tunnel, ToLan),
            (MULTICAST, THERE, Tunnel, ToLan),
            (BROADCAST, None, Tunnel, ToLan),
            (BROADCAST, HERE, Tunnel, ToLan),
            (BROADCAST, THERE, Tunnel, ToLan),
        ];
        for (destination, known, origin, expected) in table {
            let decision = decide(destination, known, origin);
            assert_eq!(decision, expected, "{destination} {known:?} {origin:?}");
        }
    }
}
