//! Where the headers of a frame are. Whatever is done to a superframe starts
//! from these offsets, never from offsets that someone sent along.

use crate::wire::ethernet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Frame, FrameTooShort};

/// IPv6 extension headers that are walked; a longer chain is refused.
pub const MAX_EXTENSION_HEADERS: usize = 8;

/// Fixed IPv6 header, bytes (RFC 8200 section 3).
pub(super) const IPV6_HEADER_LENGTH: usize = 40;
const IPV4_HEADER_LENGTH: usize = 20;
const TCP_HEADER_LENGTH: usize = 20;
const UDP_HEADER_LENGTH: usize = 8;

pub(super) const PROTOCOL_TCP: u8 = 6;
pub(super) const PROTOCOL_UDP: u8 = 17;

/// Header offsets of an IP frame, all from the frame's first byte and all
/// within the frame: `l3_offset < l4_offset <= payload_offset <= end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Headers {
    /// Where the IP header starts: behind Ethernet header and VLAN tags.
    pub l3_offset: usize,
    /// The version of IP.
    pub l3: L3,
    /// Where that starts which IP carries: behind options and extension headers.
    pub l4_offset: usize,
    /// What IP carries.
    pub l4: L4,
    /// Where the payload of TCP or UDP starts; equal to `l4_offset` for the rest.
    pub payload_offset: usize,
    /// Where the packet ends by IP's own length; Ethernet padding may follow.
    pub end: usize,
}

/// Version of IP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum L3 {
    /// IPv4 (RFC 791).
    V4,
    /// IPv6 (RFC 8200).
    V6,
}

/// What an IP packet carries, as far as offloads go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum L4 {
    /// TCP, with a header that is whole (RFC 9293).
    Tcp,
    /// UDP, with a header that is whole (RFC 768).
    Udp,
    /// Another protocol, by its IANA number.
    Other(u8),
    /// A fragment, the first included: no L4 packet that could be summed.
    Fragment,
}

impl L4 {
    /// Where the checksum is from the start of the header, bytes, in the
    /// protocols whose checksum a kernel may leave undone.
    pub const fn checksum_offset(self) -> Option<usize> {
        match self {
            Self::Tcp => Some(16),
            Self::Udp => Some(6),
            Self::Other(_) | Self::Fragment => None,
        }
    }
}

impl Headers {
    /// Finds the headers of a whole frame.
    ///
    /// # Errors
    /// The frame isn't IP, or its headers contradict its length or themselves.
    pub fn parse(frame: &[u8]) -> Result<Self, HeaderError> {
        Self::parse_head(frame, frame.len())
    }

    /// Finds the headers of a frame of `frame_length` bytes of which only the
    /// first, `head`, are at hand.
    ///
    /// # Errors
    /// As [`Headers::parse`]; and `head` ends before the headers do.
    pub fn parse_head(head: &[u8], frame_length: usize) -> Result<Self, HeaderError> {
        let ethernet = Frame::new_checked(head)?;
        let l3_offset = ethernet.payload_offset();
        let packet = match ethernet.ethertype() {
            ETHERTYPE_IPV4 => Packet::parse_v4(head, l3_offset)?,
            ETHERTYPE_IPV6 => Packet::parse_v6(head, l3_offset)?,
            ethertype => return Err(HeaderError::NotIp { ethertype }),
        };
        if packet.end > frame_length {
            return Err(HeaderError::LengthBeyondFrame { end: packet.end, frame_length });
        }
        let (l4, header_length) = packet.parse_l4(head)?;
        let payload_offset = packet.l4_offset + header_length;
        if payload_offset > packet.end {
            return Err(HeaderError::HeaderBeyondPacket {
                header: payload_offset,
                end: packet.end,
            });
        }
        let Packet { l3, l4_offset, end, .. } = packet;
        Ok(Self { l3_offset, l3, l4_offset, l4, payload_offset, end })
    }
}

/// An IP packet, its L4 not looked at yet.
struct Packet {
    l3: L3,
    l4_offset: usize,
    /// `None` for a fragment.
    protocol: Option<u8>,
    end: usize,
}

impl Packet {
    /// RFC 791 section 3.1.
    fn parse_v4(head: &[u8], l3_offset: usize) -> Result<Self, HeaderError> {
        let header: &[u8; IPV4_HEADER_LENGTH] = array(head, l3_offset)?;
        if header[0] >> 4 != 4 {
            return Err(HeaderError::Version { found: header[0] >> 4 });
        }
        let header_length = usize::from(header[0] & 0x0f) * 4;
        if header_length < IPV4_HEADER_LENGTH {
            return Err(HeaderError::HeaderLength { length: header_length });
        }
        let l4_offset = l3_offset + header_length;
        let end = l3_offset + usize::from(read_u16(header, 2));
        if l4_offset > end {
            return Err(HeaderError::HeaderBeyondPacket { header: l4_offset, end });
        }
        if l4_offset > head.len() {
            return Err(HeaderError::Truncated { needed: l4_offset, length: head.len() });
        }
        const MORE_FRAGMENTS_AND_OFFSET: u16 = 0x3fff;
        let is_fragment = read_u16(header, 6) & MORE_FRAGMENTS_AND_OFFSET != 0;
        let protocol = (!is_fragment).then_some(header[9]);
        Ok(Self { l3: L3::V4, l4_offset, protocol, end })
    }

    /// RFC 8200 section 4: hop-by-hop options, routing, fragment and
    /// destination options are walked; anything else counts as L4.
    fn parse_v6(head: &[u8], l3_offset: usize) -> Result<Self, HeaderError> {
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const FRAGMENT: u8 = 44;
        const DESTINATION_OPTIONS: u8 = 60;

        let header: &[u8; IPV6_HEADER_LENGTH] = array(head, l3_offset)?;
        if header[0] >> 4 != 6 {
            return Err(HeaderError::Version { found: header[0] >> 4 });
        }
        let mut at = l3_offset + IPV6_HEADER_LENGTH;
        let end = at + usize::from(read_u16(header, 4));
        let mut next_header = header[6];
        let mut is_fragment = false;
        for _ in 0..=MAX_EXTENSION_HEADERS {
            let length = match next_header {
                HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS if !is_fragment => {
                    8 + 8 * usize::from(array::<2>(head, at)?[1])
                }
                FRAGMENT if !is_fragment => {
                    is_fragment = true;
                    8
                }
                _ => {
                    let protocol = (!is_fragment).then_some(next_header);
                    return Ok(Self { l3: L3::V6, l4_offset: at, protocol, end });
                }
            };
            if at + length > end {
                return Err(HeaderError::HeaderBeyondPacket { header: at + length, end });
            }
            if at + length > head.len() {
                return Err(HeaderError::Truncated { needed: at + length, length: head.len() });
            }
            next_header = head[at];
            at += length;
        }
        Err(HeaderError::TooManyExtensions)
    }

    /// What is carried, and the length of its header (0 where unknown), bytes.
    fn parse_l4(&self, head: &[u8]) -> Result<(L4, usize), HeaderError> {
        match self.protocol {
            Some(PROTOCOL_TCP) => {
                let header: &[u8; TCP_HEADER_LENGTH] = array(head, self.l4_offset)?;
                let length = usize::from(header[12] >> 4) * 4;
                if length < TCP_HEADER_LENGTH {
                    return Err(HeaderError::HeaderLength { length });
                }
                let needed = self.l4_offset + length;
                if needed > head.len() {
                    return Err(HeaderError::Truncated { needed, length: head.len() });
                }
                Ok((L4::Tcp, length))
            }
            Some(PROTOCOL_UDP) => {
                array::<UDP_HEADER_LENGTH>(head, self.l4_offset)?;
                Ok((L4::Udp, UDP_HEADER_LENGTH))
            }
            Some(protocol) => Ok((L4::Other(protocol), 0)),
            None => Ok((L4::Fragment, 0)),
        }
    }
}

/// Why a frame's headers can't be found. Any host may send such a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeaderError {
    /// No Ethernet header.
    #[error(transparent)]
    Ethernet(#[from] FrameTooShort),
    /// Neither IPv4 nor IPv6.
    #[error("EtherType {ethertype:#06x} is neither IPv4 nor IPv6")]
    NotIp {
        /// The type field behind the VLAN tags.
        ethertype: u16,
    },
    /// EtherType and IP header disagree about the version.
    #[error("IP header says version {found}, its EtherType another")]
    Version {
        /// The version field.
        found: u8,
    },
    /// A header length field below the smallest header.
    #[error("header length of {length} bytes is below the protocol's minimum")]
    HeaderLength {
        /// What the field says, bytes.
        length: usize,
    },
    /// The bytes end within a header.
    #[error("headers need {needed} bytes, only {length} are there")]
    Truncated {
        /// Bytes needed from the frame's start.
        needed: usize,
        /// Bytes there are.
        length: usize,
    },
    /// A header reaches beyond the IP packet's own length.
    #[error("a header ends at byte {header}, its IP packet at {end}")]
    HeaderBeyondPacket {
        /// End of the header, bytes from the frame's start.
        header: usize,
        /// End of the packet, bytes from the frame's start.
        end: usize,
    },
    /// The IP packet's length reaches beyond the frame.
    #[error("the IP packet ends at byte {end}, its frame has {frame_length}")]
    LengthBeyondFrame {
        /// End of the packet, bytes from the frame's start.
        end: usize,
        /// Length of the frame, bytes.
        frame_length: usize,
    },
    /// More than [`MAX_EXTENSION_HEADERS`].
    #[error("more than {MAX_EXTENSION_HEADERS} IPv6 extension headers")]
    TooManyExtensions,
}

/// `N` bytes at `at`.
fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<&[u8; N], HeaderError> {
    let truncated = HeaderError::Truncated { needed: at + N, length: bytes.len() };
    bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or(truncated)
}

/// Big-endian 16 bits at `at`, which must be within `bytes`.
pub(super) fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Writes 16 bits big-endian at `at`, which must be within `bytes`.
pub(super) fn write_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::offload::fixtures::{FrameSpec, frame_spec};

    #[test]
    fn plain_tcp_over_ipv4() {
        let frame = FrameSpec::default().build();
        let headers = Headers::parse(&frame).unwrap();
        assert_eq!(
            headers,
            Headers {
                l3_offset: 14,
                l3: L3::V4,
                l4_offset: 34,
                l4: L4::Tcp,
                payload_offset: 54,
                end: frame.len(),
            }
        );
    }

    #[test]
    fn padding_is_not_part_of_the_packet() {
        let spec = FrameSpec { payload: vec![1], ..FrameSpec::default() };
        let mut frame = spec.build();
        let end = frame.len();
        frame.resize(60, 0);
        assert_eq!(Headers::parse(&frame).unwrap().end, end);
    }

    #[test]
    fn fragments_have_no_l4() {
        for (flags_and_offset, fragment) in
            [(0x4000, false), (0x2000, true), (0x0001, true), (0x2100, true)]
        {
            let mut frame = FrameSpec::default().build();
            write_u16(&mut frame, 20, flags_and_offset);
            let headers = Headers::parse(&frame).unwrap();
            assert_eq!(headers.l4 == L4::Fragment, fragment, "{flags_and_offset:#x}");
            assert_eq!(headers.payload_offset == headers.l4_offset, fragment);
        }
    }

    #[test]
    fn an_ipv6_fragment_header_hides_the_l4() {
        let spec = FrameSpec { v6: true, ..FrameSpec::default() };
        let mut frame = spec.build();
        frame[20] = 44;
        frame.splice(54..54, [6, 0, 0, 1, 0, 0, 0, 9]);
        let length = read_u16(&frame, 18) + 8;
        write_u16(&mut frame, 18, length);
        let headers = Headers::parse(&frame).unwrap();
        assert_eq!((headers.l4, headers.l4_offset), (L4::Fragment, 62));
    }

    #[test]
    fn an_endless_extension_chain_is_refused() {
        let mut frame = FrameSpec { v6: true, ..FrameSpec::default() }.build();
        frame[20] = 0;
        frame.splice(54..54, [0; 8 * (MAX_EXTENSION_HEADERS + 1)]);
        let length = read_u16(&frame, 18) + 8 * (MAX_EXTENSION_HEADERS as u16 + 1);
        write_u16(&mut frame, 18, length);
        assert_eq!(Headers::parse(&frame), Err(HeaderError::TooManyExtensions));
    }

    #[test]
    fn lies_about_lengths_are_refused() {
        let frame = FrameSpec::default().build();
        let with = |at: usize, value: u8| {
            let mut bytes = frame.clone();
            bytes[at] = value;
            Headers::parse(&bytes)
        };
        assert_eq!(with(14, 0x44), Err(HeaderError::HeaderLength { length: 16 }));
        assert_eq!(with(14, 0x65), Err(HeaderError::Version { found: 6 }));
        assert_eq!(with(46, 0x40), Err(HeaderError::HeaderLength { length: 16 }));
        assert!(matches!(with(16, 0xff), Err(HeaderError::LengthBeyondFrame { .. })));
        assert_eq!(with(12, 0x07), Err(HeaderError::NotIp { ethertype: 0x0700 }));
        let short = [&frame[..16], &[0, 19], &frame[18..]].concat();
        assert!(matches!(Headers::parse(&short), Err(HeaderError::HeaderBeyondPacket { .. })));
    }

    proptest! {
        #[test]
        fn agrees_with_etherparse(spec in frame_spec(1..2000)) {
            let frame = spec.build();
            let headers = Headers::parse(&frame).unwrap();
            let reference = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
            let (l4, payload) = match reference.transport.unwrap() {
                etherparse::TransportSlice::Tcp(tcp) => (L4::Tcp, tcp.payload()),
                etherparse::TransportSlice::Udp(udp) => (L4::Udp, udp.payload()),
                other => panic!("{other:?}"),
            };
            prop_assert_eq!(headers.l4, l4);
            prop_assert_eq!(&frame[headers.payload_offset..headers.end], payload);
            prop_assert_eq!(headers.l3 == L3::V6, spec.v6);
        }

        #[test]
        fn a_head_cut_anywhere_is_truncated(spec in frame_spec(1..200)) {
            let frame = spec.build();
            let headers = Headers::parse(&frame).unwrap();
            for length in 0..frame.len() {
                let parsed = Headers::parse_head(&frame[..length], frame.len());
                if length >= headers.payload_offset {
                    prop_assert_eq!(parsed, Ok(headers));
                } else {
                    prop_assert!(parsed.is_err());
                }
                prop_assert!(Headers::parse(&frame[..length]).is_err());
            }
        }

        #[test]
        fn offsets_are_within_any_frame(
            spec in frame_spec(1..100), noise in proptest::collection::vec((0usize..150, any::<u8>()), 0..6),
        ) {
            let mut frame = spec.build();
            for (at, value) in noise {
                let at = at % frame.len();
                frame[at] = value;
            }
            if let Ok(headers) = Headers::parse(&frame) {
                prop_assert!(headers.l3_offset < headers.l4_offset);
                prop_assert!(headers.l4_offset <= headers.payload_offset);
                prop_assert!(headers.payload_offset <= headers.end);
                prop_assert!(headers.end <= frame.len());
            }
        }
    }
}
