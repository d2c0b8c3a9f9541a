//! Keeps Landbridge's own datagrams out of its tunnels.
//!
//! Where the underlay runs over the very LAN that is stretched, each datagram
//! that is sent would be read from the LAN, tunnelled in a new datagram, read
//! again, and so on. The guard knows such a datagram when it sees one.

use std::net::{IpAddr, SocketAddr};

use super::headers::{Transport, UDP, array};

const UDP_HEADER_LENGTH: usize = 8;
const DATAGRAM_TYPES: std::ops::RangeInclusive<u8> = 1..=5;
const LANE_MAX: u8 = 64;

/// Knows the underlay's endpoints, own and remote. One per data thread.
///
/// A frame counts as own underlay where it is UDP over IPv4 or IPv6 (VLAN tags,
/// IP options and extension headers are skipped), goes to or comes from one of
/// the endpoints, and its payload starts like a Landbridge datagram: type 1 to
/// 5, lane at most 64, two zero bytes. A later fragment carries none of this and
/// is never recognised; Landbridge sends its datagrams unfragmented.
#[derive(Clone, Debug, Default)]
pub struct UnderlayGuard {
    /// Sorted: nearly every frame is told apart by these alone.
    ports: Vec<u16>,
    /// Sorted.
    endpoints: Vec<(IpAddr, u16)>,
}

impl UnderlayGuard {
    /// A guard for these endpoints: this appliance's own addresses (as they
    /// stand in packets on the LAN, so not `0.0.0.0` or `::`, which match
    /// nothing) and its peers'. IPv4-mapped IPv6 addresses count as IPv4.
    pub fn new(endpoints: &[SocketAddr]) -> Self {
        let mut guard = Self::default();
        guard.replace(endpoints);
        guard
    }

    /// Forgets the endpoints and takes these, as after a peer has roamed.
    pub fn replace(&mut self, endpoints: &[SocketAddr]) {
        self.endpoints = endpoints.iter().map(|e| (e.ip().to_canonical(), e.port())).collect();
        self.endpoints.sort_unstable();
        self.endpoints.dedup();
        self.ports = self.endpoints.iter().map(|&(_, port)| port).collect();
        self.ports.sort_unstable();
        self.ports.dedup();
    }

    /// Whether `frame`, from its destination MAC on, is one of the underlay's own.
    #[inline]
    pub fn is_own_underlay(&self, frame: &[u8]) -> bool {
        self.check(frame).unwrap_or(false)
    }

    /// `None` where the frame isn't UDP, or ends too early to tell.
    fn check(&self, frame: &[u8]) -> Option<bool> {
        let transport = Transport::find(frame)?;
        if transport.protocol != UDP {
            return None;
        }
        let [a, b, c, d] = array(frame, transport.offset)?;
        let ports = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
        if !ports.iter().any(|port| self.ports.binary_search(port).is_ok()) {
            return Some(false);
        }
        let [kind, lane, 0, 0] = array(frame, transport.offset + UDP_HEADER_LENGTH)? else {
            return Some(false);
        };
        if !DATAGRAM_TYPES.contains(&kind) || lane > LANE_MAX {
            return Some(false);
        }
        let addresses = transport.addresses(frame)?;
        let is_ours = |endpoint| self.endpoints.binary_search(&endpoint).is_ok();
        Some(addresses.into_iter().zip(ports).any(is_ours))
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{
        IpFragOffset, Ipv4Extensions, Ipv4Header, Ipv4Options, Ipv6FragmentHeader, PacketBuilder,
        VlanId, ip_number,
    };

    use super::*;

    const DATAGRAM: [u8; 6] = [4, 2, 0, 0, 9, 9];
    const OWN: &str = "192.0.2.11:51840";
    const OWN_V6: &str = "[2001:db8::11]:51840";
    const PEER: &str = "198.51.100.7:4000";

    fn guard() -> UnderlayGuard {
        UnderlayGuard::new(&[OWN, OWN_V6, PEER].map(|e| e.parse().unwrap()))
    }

    fn udp(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
        let (source, destination): (SocketAddr, SocketAddr) =
            (source.parse().unwrap(), destination.parse().unwrap());
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let builder = match (source.ip(), destination.ip()) {
            (IpAddr::V4(s), IpAddr::V4(d)) => builder.ipv4(s.octets(), d.octets(), 64),
            (IpAddr::V6(s), IpAddr::V6(d)) => builder.ipv6(s.octets(), d.octets(), 64),
            _ => unreachable!("one family per frame"),
        };
        let mut frame = Vec::new();
        builder.udp(source.port(), destination.port()).write(&mut frame, payload).unwrap();
        frame
    }

    /// Inserts one VLAN tag after the MAC addresses.
    fn tag(frame: &[u8], tag_type: u16, vlan: u16) -> Vec<u8> {
        let id = VlanId::try_new(vlan).unwrap().value();
        [&frame[..12], &tag_type.to_be_bytes(), &id.to_be_bytes(), &frame[12..]].concat()
    }

    #[test]
    fn endpoints_are_matched_as_address_and_port() {
        let table = [
            (OWN, "203.0.113.1:9", true),
            ("203.0.113.1:9", OWN, true),
            (OWN, PEER, true),
            (PEER, "203.0.113.1:9", true),
            (OWN_V6, "[2001:db8::99]:9", true),
            ("[2001:db8::99]:9", OWN_V6, true),
            // The right port at the wrong address, both ways round.
            ("192.0.2.12:51840", "203.0.113.1:9", false),
            ("203.0.113.1:9", "192.0.2.12:51840", false),
            ("[2001:db8::12]:51840", "[2001:db8::99]:9", false),
            // The right address with the other one's port.
            ("192.0.2.11:4000", "203.0.113.1:9", false),
            ("192.0.2.11:9", "203.0.113.1:51840", false),
        ];
        for (source, destination, expected) in table {
            let frame = udp(source, destination, &DATAGRAM);
            assert_eq!(guard().is_own_underlay(&frame), expected, "{source} {destination}");
        }
    }

    #[test]
    fn payload_must_start_like_a_datagram() {
        for kind in 0..=255 {
            for lane in [0, 1, 64, 65, 255] {
                let frame = udp(OWN, PEER, &[kind, lane, 0, 0]);
                let expected = (1..=5).contains(&kind) && lane <= 64;
                assert_eq!(guard().is_own_underlay(&frame), expected, "{kind} {lane}");
            }
        }
        assert!(!guard().is_own_underlay(&udp(OWN, PEER, &[4, 0, 1, 0])));
        assert!(!guard().is_own_underlay(&udp(OWN, PEER, &[4, 0, 0, 1])));
    }

    #[test]
    fn vlan_tags_are_skipped() {
        for plain in [udp(OWN, PEER, &DATAGRAM), udp(OWN_V6, OWN_V6, &DATAGRAM)] {
            let tagged = tag(&plain, 0x8100, 100);
            assert!(guard().is_own_underlay(&tagged));
            assert!(guard().is_own_underlay(&tag(&tagged, 0x88a8, 200)));
            assert!(guard().is_own_underlay(&tag(&tagged, 0x9100, 200)));
            assert!(!guard().is_own_underlay(&tag(&plain, 0x1234, 100)));
        }
    }

    #[test]
    fn a_truncated_frame_is_recognised_from_the_datagram_header_on() {
        for frame in [
            udp(OWN, PEER, &DATAGRAM),
            udp(OWN_V6, OWN_V6, &DATAGRAM),
            tag(&udp(OWN, PEER, &DATAGRAM), 0x8100, 5),
        ] {
            let enough = frame.len() - DATAGRAM.len() + 4;
            for length in 0..=frame.len() {
                let is_own = guard().is_own_underlay(&frame[..length]);
                assert_eq!(is_own, length >= enough, "{length} of {}", frame.len());
            }
        }
    }

    fn ipv4_with(change: impl FnOnce(&mut Ipv4Header)) -> Vec<u8> {
        let mut header =
            Ipv4Header::new(14, 64, ip_number::UDP, [192, 0, 2, 11], [203, 0, 113, 1]).unwrap();
        change(&mut header);
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ip(etherparse::IpHeaders::Ipv4(header, Ipv4Extensions::default()))
            .udp(51840, 9)
            .write(&mut frame, &DATAGRAM)
            .unwrap();
        frame
    }

    #[test]
    fn ipv4_options_are_skipped_and_later_fragments_left_alone() {
        let options = Ipv4Options::try_from(&[1u8; 40][..]).unwrap();
        assert!(guard().is_own_underlay(&ipv4_with(|header| header.options = options)));
        assert!(guard().is_own_underlay(&ipv4_with(|header| header.more_fragments = true)));
        let later = ipv4_with(|header| header.fragment_offset = IpFragOffset::try_new(1).unwrap());
        assert!(!guard().is_own_underlay(&later));
        let mut not_udp = udp(OWN, PEER, &DATAGRAM);
        not_udp[14 + 9] = 6;
        assert!(!guard().is_own_underlay(&not_udp));
    }

    fn ipv6_with(extensions: &[u8], first: u8) -> Vec<u8> {
        let plain = udp(OWN_V6, "[2001:db8::99]:9", &DATAGRAM);
        let mut frame = [&plain[..54], extensions, &plain[54..]].concat();
        frame[20] = first;
        frame
    }

    #[test]
    fn ipv6_extension_headers_are_skipped_and_later_fragments_left_alone() {
        let options = [60, 0, 0, 0, 0, 0, 0, 0, 17, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(guard().is_own_underlay(&ipv6_with(&options, 0)));
        for (offset, expected) in [(0, true), (1, false)] {
            let fragment = Ipv6FragmentHeader::new(
                ip_number::UDP,
                IpFragOffset::try_new(offset).unwrap(),
                true,
                7,
            );
            let frame = ipv6_with(&fragment.to_bytes(), 44);
            assert_eq!(guard().is_own_underlay(&frame), expected);
        }
        let endless = [0u8; 8 * 20];
        assert!(!guard().is_own_underlay(&ipv6_with(&endless, 0)));
    }

    #[test]
    fn endpoints_are_replaced() {
        let mut guard = guard();
        guard.replace(&["203.0.113.9:7000".parse().unwrap()]);
        assert!(!guard.is_own_underlay(&udp(OWN, PEER, &DATAGRAM)));
        assert!(guard.is_own_underlay(&udp("203.0.113.9:7000", PEER, &DATAGRAM)));
        guard.replace(&[]);
        assert!(!guard.is_own_underlay(&udp("203.0.113.9:7000", PEER, &DATAGRAM)));
    }

    #[test]
    fn a_mapped_endpoint_counts_as_ipv4_and_an_unspecified_one_matches_nothing() {
        let guard = |endpoint: &str| UnderlayGuard::new(&[endpoint.parse().unwrap()]);
        let frame = udp(OWN, "203.0.113.1:9", &DATAGRAM);
        assert!(guard("[::ffff:192.0.2.11]:51840").is_own_underlay(&frame));
        assert!(!guard("0.0.0.0:51840").is_own_underlay(&frame));
    }
}
