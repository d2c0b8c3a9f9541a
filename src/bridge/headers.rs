//! Finds the transport header of a frame: behind VLAN tags, IP options and
//! IPv6 extension headers. Never fails, only finds nothing.

use std::net::IpAddr;

/// IP protocol number of TCP.
pub(super) const TCP: u8 = 6;
/// IP protocol number of UDP.
pub(super) const UDP: u8 = 17;

/// More tags or IPv6 extension headers than this are taken for nonsense.
const NESTING_MAX: usize = 8;

/// Where the transport header of an unfragmented packet or a first fragment is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Transport {
    /// IP protocol number.
    pub(super) protocol: u8,
    /// Where the transport header starts, from the frame's first byte; at most
    /// the frame's length.
    pub(super) offset: usize,
    /// Where the source address starts; the destination address follows it.
    addresses_offset: usize,
    is_ipv6: bool,
}

impl Transport {
    /// Finds it; `None` where `frame` isn't IP, is cut short, or is a later fragment.
    pub(super) fn find(frame: &[u8]) -> Option<Self> {
        let mut offset = 12;
        for _ in 0..NESTING_MAX {
            let ethertype = u16::from_be_bytes(array(frame, offset)?);
            match ethertype {
                0x8100 | 0x88a8 | 0x9100 => offset += 4,
                0x0800 => return Self::find_ipv4(frame, offset + 2),
                0x86dd => return Self::find_ipv6(frame, offset + 2),
                _ => return None,
            }
        }
        None
    }

    fn find_ipv4(frame: &[u8], start: usize) -> Option<Self> {
        let header: [u8; 20] = array(frame, start)?;
        let header_length = usize::from(header[0] & 0x0f) * 4;
        let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
        let offset = start + header_length;
        let is_sound = header[0] >> 4 == 4 && header_length >= 20 && offset <= frame.len();
        (is_sound && fragment_offset == 0).then_some(Self {
            protocol: header[9],
            offset,
            addresses_offset: start + 12,
            is_ipv6: false,
        })
    }

    fn find_ipv6(frame: &[u8], start: usize) -> Option<Self> {
        let header: [u8; 40] = array(frame, start)?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let (mut protocol, mut offset) = (header[6], start + 40);
        for _ in 0..NESTING_MAX {
            let length = |[_, length]: [u8; 2], unit: usize| usize::from(length) * unit + 8;
            let step = match protocol {
                // Hop-by-hop options, routing, destination options (RFC 8200, 4).
                0 | 43 | 60 => length(array(frame, offset)?, 8),
                44 => {
                    let [_, _, high, low] = array(frame, offset)?;
                    if u16::from_be_bytes([high, low]) >> 3 != 0 {
                        return None;
                    }
                    8
                }
                // Authentication header (RFC 4302, 2.2).
                51 => length(array(frame, offset)?, 4),
                _ => {
                    let addresses_offset = start + 8;
                    let is_sound = offset <= frame.len();
                    return is_sound.then_some(Self {
                        protocol,
                        offset,
                        addresses_offset,
                        is_ipv6: true,
                    });
                }
            };
            protocol = *frame.get(offset)?;
            offset += step;
        }
        None
    }

    /// Source and destination address in `frame`, in which `self` was found.
    pub(super) fn addresses(&self, frame: &[u8]) -> Option<[IpAddr; 2]> {
        let start = self.addresses_offset;
        if self.is_ipv6 {
            let address = |at| array::<16>(frame, at).map(IpAddr::from);
            Some([address(start)?, address(start + 16)?])
        } else {
            let address = |at| array::<4>(frame, at).map(IpAddr::from);
            Some([address(start)?, address(start + 4)?])
        }
    }
}

/// The `N` bytes at `offset`.
pub(super) fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_it_finds_is_inside_the_frame(
            mut frame in prop::collection::vec(any::<u8>(), 0..200),
            ethertype in prop::sample::select(vec![0x0800u16, 0x86dd, 0x8100]),
            version in prop::sample::select(vec![0x45u8, 0x4f, 0x60]),
            protocol in prop::sample::select(vec![0u8, 17, 43, 44, 51, 60]),
        ) {
            for (at, byte) in [(12, (ethertype >> 8) as u8), (13, ethertype as u8), (14, version), (20, protocol)] {
                if let Some(place) = frame.get_mut(at) {
                    *place = byte;
                }
            }
            if let Some(transport) = Transport::find(&frame) {
                prop_assert!(transport.offset <= frame.len());
                prop_assert!(transport.addresses(&frame).is_some());
            }
        }
    }
}
