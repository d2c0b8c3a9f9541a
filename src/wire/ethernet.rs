//! Ethernet II / 802.3 frames, as far as forwarding needs them.

use std::{fmt, str::FromStr};

/// Shortest frame that is forwarded: two addresses and a type field, bytes.
pub const HEADER_LENGTH: usize = 14;

/// One VLAN tag (TPID and TCI), bytes.
pub const TAG_LENGTH: usize = 4;

/// VLAN tags that are looked through; the kernel stops at as many
/// (`VLAN_MAX_DEPTH`, linux/if_vlan.h).
pub const MAX_TAGS: usize = 8;

/// EtherType of IPv4 (RFC 894).
pub const ETHERTYPE_IPV4: u16 = 0x0800;

/// EtherType of IPv6 (RFC 2464).
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

const TYPE_OFFSET: usize = 12;

/// A frame, known to hold at least an Ethernet header. No accessor fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'a>(&'a [u8]);

impl<'a> Frame<'a> {
    /// Wraps `bytes`: destination address first, no frame check sequence.
    ///
    /// # Errors
    /// Fewer than [`HEADER_LENGTH`] bytes.
    pub const fn new_checked(bytes: &'a [u8]) -> Result<Self, FrameTooShort> {
        if bytes.len() < HEADER_LENGTH {
            return Err(FrameTooShort { length: bytes.len() });
        }
        Ok(Self(bytes))
    }

    /// The whole frame.
    pub const fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// Destination address.
    pub fn destination(self) -> MacAddr {
        self.address(0)
    }

    /// Source address.
    pub fn source(self) -> MacAddr {
        self.address(6)
    }

    /// The VLAN tags, outermost first: at most [`MAX_TAGS`], each followed by
    /// at least a type field.
    pub fn tags(self) -> Tags<'a> {
        Tags { frame: self.0, at: TYPE_OFFSET, left: MAX_TAGS }
    }

    /// The type field behind the VLAN tags: an EtherType, or below 0x0600 an
    /// 802.3 length. A frame that ends within a tag has that tag's TPID here.
    pub fn ethertype(self) -> u16 {
        read_u16(self.0, self.type_offset())
    }

    /// Where the payload starts: behind tags and type field, bytes.
    pub fn payload_offset(self) -> usize {
        self.type_offset() + 2
    }

    /// What the frame carries, padding included.
    pub fn payload(self) -> &'a [u8] {
        &self.0[self.payload_offset()..]
    }

    fn type_offset(self) -> usize {
        TYPE_OFFSET + TAG_LENGTH * self.tags().count()
    }

    fn address(self, at: usize) -> MacAddr {
        let mut octets = [0; 6];
        octets.copy_from_slice(&self.0[at..at + 6]);
        MacAddr(octets)
    }
}

/// The VLAN tags of a frame, outermost first; see [`Frame::tags`].
#[derive(Clone, Debug)]
pub struct Tags<'a> {
    frame: &'a [u8],
    at: usize,
    left: usize,
}

impl Iterator for Tags<'_> {
    type Item = VlanTag;

    fn next(&mut self) -> Option<VlanTag> {
        let tag_and_type = self.frame.get(self.at..self.at + TAG_LENGTH + 2)?;
        let tag = VlanTag { tpid: read_u16(tag_and_type, 0), tci: read_u16(tag_and_type, 2) };
        if self.left == 0 || !VlanTag::is_tpid(tag.tpid) {
            return None;
        }
        self.at += TAG_LENGTH;
        self.left -= 1;
        Some(tag)
    }
}

/// A VLAN tag (IEEE 802.1Q 9.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct VlanTag {
    /// Tag protocol identifier: 0x8100, 0x88a8 or 0x9100.
    pub tpid: u16,
    /// Tag control information: priority (3 bits), drop eligible (1), VLAN id (12).
    pub tci: u16,
}

impl VlanTag {
    /// TPID of a customer tag (802.1Q).
    pub const CUSTOMER: u16 = 0x8100;
    /// TPID of a service tag (802.1ad, QinQ).
    pub const SERVICE: u16 = 0x88a8;
    /// TPID that QinQ gear used before 802.1ad.
    pub const LEGACY_SERVICE: u16 = 0x9100;

    /// Whether a type field announces a VLAN tag.
    pub const fn is_tpid(ethertype: u16) -> bool {
        matches!(ethertype, Self::CUSTOMER | Self::SERVICE | Self::LEGACY_SERVICE)
    }

    /// VLAN id, 0 to 4095; 0 is a priority tag, which names no VLAN.
    pub const fn id(self) -> u16 {
        self.tci & 0x0fff
    }

    /// Priority code point, 0 to 7.
    pub const fn priority(self) -> u8 {
        (self.tci >> 13) as u8
    }
}

/// The header of an untagged (or less tagged) frame with `tag` put in as the
/// outermost one, for a NIC that hands the tag over out of band.
pub fn insert_tag(header: &[u8; HEADER_LENGTH], tag: VlanTag) -> [u8; HEADER_LENGTH + TAG_LENGTH] {
    let mut tagged = [0; HEADER_LENGTH + TAG_LENGTH];
    let (addresses, ethertype) = header.split_at(TYPE_OFFSET);
    tagged[..TYPE_OFFSET].copy_from_slice(addresses);
    tagged[TYPE_OFFSET..TYPE_OFFSET + 2].copy_from_slice(&tag.tpid.to_be_bytes());
    tagged[TYPE_OFFSET + 2..HEADER_LENGTH + 2].copy_from_slice(&tag.tci.to_be_bytes());
    tagged[HEADER_LENGTH + 2..].copy_from_slice(ethertype);
    tagged
}

fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Too few bytes to be an Ethernet frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a frame of {length} bytes is shorter than an Ethernet header ({HEADER_LENGTH} bytes)")]
pub struct FrameTooShort {
    /// Bytes there were.
    pub length: usize,
}

/// A 48-bit MAC address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// ff:ff:ff:ff:ff:ff
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Group bit set: broadcast or multicast (IEEE 802, I/G bit).
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = MacAddrError;

    /// Six pairs of hexadecimal digits, separated by `:` or `-` throughout.
    fn from_str(text: &str) -> Result<Self, MacAddrError> {
        let bad = || MacAddrError { text: text.to_owned() };
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut octets = [0; 6];
        let mut parts = text.split(separator);
        for octet in &mut octets {
            let digits = parts.next().ok_or_else(bad)?;
            if digits.len() != 2 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *octet = u8::from_str_radix(digits, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            return Err(bad());
        }
        Ok(Self(octets))
    }
}

/// A text that is no MAC address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} is not a MAC address; write six pairs of hex digits, as in 02:00:5e:10:00:01")]
pub struct MacAddrError {
    text: String,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ADDRESSES: [u8; 12] = [2, 0, 0, 0, 0, 1, 6, 0, 0, 0, 0, 2];

    fn frame(tags: &[VlanTag], ethertype: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = ADDRESSES.to_vec();
        for tag in tags {
            bytes.extend(tag.tpid.to_be_bytes());
            bytes.extend(tag.tci.to_be_bytes());
        }
        bytes.extend(ethertype.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn thirteen_bytes_are_no_frame() {
        assert_eq!(Frame::new_checked(&[0; 13]), Err(FrameTooShort { length: 13 }));
        assert!(Frame::new_checked(&[0; 14]).is_ok());
    }

    #[test]
    fn untagged_frame() {
        let bytes = frame(&[], ETHERTYPE_IPV4, b"payload");
        let frame = Frame::new_checked(&bytes).unwrap();
        assert_eq!(frame.destination(), MacAddr([2, 0, 0, 0, 0, 1]));
        assert_eq!(frame.source(), MacAddr([6, 0, 0, 0, 0, 2]));
        assert_eq!(frame.tags().count(), 0);
        assert_eq!(frame.ethertype(), ETHERTYPE_IPV4);
        assert_eq!(frame.payload_offset(), 14);
        assert_eq!(frame.payload(), b"payload");
    }

    #[test]
    fn tags_are_outermost_first() {
        let outer = VlanTag { tpid: VlanTag::SERVICE, tci: 0xe064 };
        let inner = VlanTag { tpid: VlanTag::CUSTOMER, tci: 0x1fff };
        let bytes = frame(&[outer, inner], ETHERTYPE_IPV6, b"x");
        let frame = Frame::new_checked(&bytes).unwrap();
        assert_eq!(frame.tags().collect::<Vec<_>>(), [outer, inner]);
        assert_eq!((outer.id(), outer.priority()), (100, 7));
        assert_eq!((inner.id(), inner.priority()), (4095, 0));
        assert_eq!(frame.ethertype(), ETHERTYPE_IPV6);
        assert_eq!(frame.payload(), b"x");
    }

    #[test]
    fn a_frame_that_ends_within_a_tag_keeps_the_tpid_as_its_type() {
        for length in 14..18 {
            let bytes = &frame(&[VlanTag { tpid: 0x8100, tci: 5 }], 0x0800, &[])[..length];
            let frame = Frame::new_checked(bytes).unwrap();
            assert_eq!(frame.tags().count(), 0);
            assert_eq!(frame.ethertype(), 0x8100);
            assert_eq!(frame.payload().len(), length - 14);
        }
    }

    #[test]
    fn tags_beyond_the_bound_are_payload() {
        let tag = VlanTag { tpid: VlanTag::LEGACY_SERVICE, tci: 1 };
        let bytes = frame(&[tag; MAX_TAGS + 1], ETHERTYPE_IPV4, &[]);
        let frame = Frame::new_checked(&bytes).unwrap();
        assert_eq!(frame.tags().count(), MAX_TAGS);
        assert_eq!(frame.ethertype(), VlanTag::LEGACY_SERVICE);
        assert_eq!(frame.payload_offset(), 14 + 4 * MAX_TAGS);
    }

    #[test]
    fn an_inserted_tag_is_the_outermost() {
        let inner = VlanTag { tpid: VlanTag::CUSTOMER, tci: 7 };
        let outer = VlanTag { tpid: VlanTag::SERVICE, tci: 9 };
        let bytes = frame(&[inner], ETHERTYPE_IPV4, b"payload");
        let (header, rest) = bytes.split_first_chunk().unwrap();
        let tagged = [&insert_tag(header, outer)[..], rest].concat();
        assert_eq!(tagged, frame(&[outer, inner], ETHERTYPE_IPV4, b"payload"));
    }

    #[test]
    fn mac_addresses_as_people_write_them() {
        let address = MacAddr([0x02, 0xab, 0, 0x10, 0xff, 1]);
        for text in ["02:ab:00:10:ff:01", "02:AB:00:10:FF:01", "02-ab-00-10-ff-01"] {
            assert_eq!(text.parse(), Ok(address));
        }
        for text in [
            "",
            "02:ab:00:10:ff",
            "02:ab:00:10:ff:01:02",
            "2:ab:00:10:ff:01",
            "02:ab-00:10:ff:01",
            "02:ab:00:10:ff:0g",
            "+2:ab:00:10:ff:01",
            "02ab0010ff01",
            "02:ab:00:10:ff:01 ",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text:?}");
        }
        assert!(MacAddr::BROADCAST.is_group());
        assert!(!address.is_group());
    }

    proptest! {
        #[test]
        fn a_mac_address_reads_back(octets: [u8; 6]) {
            let address = MacAddr(octets);
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }

        #[test]
        fn accessors_never_fail(bytes in proptest::collection::vec(
            prop_oneof![Just(0x81), Just(0x88), Just(0xa8), Just(0), any::<u8>()], 14..80,
        )) {
            let frame = Frame::new_checked(&bytes).unwrap();
            let length = frame.payload_offset() + frame.payload().len();
            prop_assert_eq!(length, bytes.len());
            prop_assert!(frame.tags().count() <= MAX_TAGS);
            frame.ethertype();
        }
    }
}
