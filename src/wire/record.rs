//! Records: the units of a lane's stream.
//!
//! ```text
//!  0      1          4
//!  +------+----------+------ … ------+
//!  | type |  length  |     body      |
//!  +------+----------+------ … ------+
//!   u8     u24 LE     `length` bytes
//!
//!  type 1, frame:      network u24 LE, Ethernet frame
//!  type 2, offloaded:  network u24 LE, descriptor u8, segment size u16 LE, Ethernet frame
//! ```
//!
//! The descriptor's low four bits are the segmentation (0 none, 1 TCP/IPv4,
//! 2 TCP/IPv6, 3 UDP/IPv4, 4 UDP/IPv6), bit 6 says ECN, bit 7 that the L4
//! checksum is still to be finished. Unknown types are skipped by their length.

use crate::{
    offload::{Offload, Segmentation},
    topology::NetworkId,
    wire::ethernet,
};

/// Bytes of type and length.
pub const HEADER_LENGTH: usize = 4;
/// Longest prefix before a frame: record header, network, offload.
pub const PREFIX_LENGTH_MAX: usize = HEADER_LENGTH + 3 + 3;
/// Longest Ethernet frame in a record: a 64 KiB IP superframe behind an
/// Ethernet header and four VLAN tags.
pub const FRAME_LENGTH_MAX: usize = 65_535 + ethernet::HEADER_LENGTH + 4 * 4;
/// Longest record, header included.
pub const RECORD_LENGTH_MAX: usize = PREFIX_LENGTH_MAX + FRAME_LENGTH_MAX;

const FRAME: u8 = 1;
const OFFLOADED: u8 = 2;
const DESCRIPTOR_ECN: u8 = 0x40;
const DESCRIPTOR_NEEDS_CHECKSUM: u8 = 0x80;

/// What stands before a frame in its record.
#[derive(Clone, Copy)]
pub struct Prefix {
    bytes: [u8; PREFIX_LENGTH_MAX],
    length: u8,
}

impl Prefix {
    /// The prefix for a frame of `frame_length` ≤ [`FRAME_LENGTH_MAX`] bytes.
    #[inline]
    pub fn new(network: NetworkId, offload: Offload, frame_length: usize) -> Self {
        debug_assert!(frame_length <= FRAME_LENGTH_MAX);
        let plain = offload == Offload::default();
        let length = if plain { HEADER_LENGTH + 3 } else { PREFIX_LENGTH_MAX };
        let mut bytes = [0; PREFIX_LENGTH_MAX];
        bytes[0] = if plain { FRAME } else { OFFLOADED };
        let body = (length - HEADER_LENGTH + frame_length) as u32;
        bytes[1..4].copy_from_slice(&body.to_le_bytes()[..3]);
        bytes[4..7].copy_from_slice(&network.0.to_le_bytes()[..3]);
        if !plain {
            bytes[7] = descriptor(offload);
            bytes[8..10].copy_from_slice(&offload.segment_size.to_le_bytes());
        }
        Self { bytes, length: length as u8 }
    }

    /// The bytes that go before the frame.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

fn descriptor(offload: Offload) -> u8 {
    let segmentation = match offload.segmentation {
        Segmentation::None => 0,
        Segmentation::Tcp4 => 1,
        Segmentation::Tcp6 => 2,
        Segmentation::Udp4 => 3,
        Segmentation::Udp6 => 4,
    };
    segmentation
        | if offload.ecn { DESCRIPTOR_ECN } else { 0 }
        | if offload.needs_checksum { DESCRIPTOR_NEEDS_CHECKSUM } else { 0 }
}

/// A frame as a record carries it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameRecord<'a> {
    /// The stretched network that it belongs to.
    pub network: NetworkId,
    /// What is still to be done on it.
    pub offload: Offload,
    /// The frame, from its destination address on; at least 14 bytes.
    pub frame: &'a [u8],
}

/// Why a record's body could not be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecordError {
    /// A type that this version does not know: skipped.
    #[error("unknown record type {0}")]
    UnknownType(u8),
    /// Too short for its type, or an undefined descriptor.
    #[error("malformed record")]
    Malformed,
}

/// Length of the whole record that starts with `header`, in bytes, or `None`
/// where it would be longer than any record may be.
#[inline]
pub fn length(header: [u8; HEADER_LENGTH]) -> Option<usize> {
    let body = u32::from_le_bytes([header[1], header[2], header[3], 0]) as usize;
    let length = HEADER_LENGTH + body;
    (length <= RECORD_LENGTH_MAX).then_some(length)
}

/// Reads one whole record.
///
/// # Errors
/// See [`RecordError`].
#[inline]
pub fn parse(record: &[u8]) -> Result<FrameRecord<'_>, RecordError> {
    match record {
        [FRAME, _, _, _, a, b, c, frame @ ..] => {
            checked(u32::from_le_bytes([*a, *b, *c, 0]), Offload::default(), frame)
        }
        [OFFLOADED, _, _, _, a, b, c, descriptor, d, e, frame @ ..] => checked(
            u32::from_le_bytes([*a, *b, *c, 0]),
            offload(*descriptor, u16::from_le_bytes([*d, *e]))?,
            frame,
        ),
        [FRAME | OFFLOADED, ..] | [] => Err(RecordError::Malformed),
        [other, ..] => Err(RecordError::UnknownType(*other)),
    }
}

fn checked(network: u32, offload: Offload, frame: &[u8]) -> Result<FrameRecord<'_>, RecordError> {
    if frame.len() < ethernet::HEADER_LENGTH {
        return Err(RecordError::Malformed);
    }
    Ok(FrameRecord { network: NetworkId(network), offload, frame })
}

fn offload(descriptor: u8, segment_size: u16) -> Result<Offload, RecordError> {
    let segmentation = match descriptor & !(DESCRIPTOR_ECN | DESCRIPTOR_NEEDS_CHECKSUM) {
        0 => Segmentation::None,
        1 => Segmentation::Tcp4,
        2 => Segmentation::Tcp6,
        3 => Segmentation::Udp4,
        4 => Segmentation::Udp6,
        _ => return Err(RecordError::Malformed),
    };
    Ok(Offload {
        segmentation,
        ecn: descriptor & DESCRIPTOR_ECN != 0,
        segment_size,
        needs_checksum: descriptor & DESCRIPTOR_NEEDS_CHECKSUM != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_offload() -> impl Strategy<Value = Offload> {
        (0usize..5, any::<bool>(), any::<u16>(), any::<bool>()).prop_map(
            |(kind, ecn, segment_size, needs_checksum)| Offload {
                segmentation: [
                    Segmentation::None,
                    Segmentation::Tcp4,
                    Segmentation::Tcp6,
                    Segmentation::Udp4,
                    Segmentation::Udp6,
                ][kind],
                ecn,
                segment_size,
                needs_checksum,
            },
        )
    }

    proptest! {
        #[test]
        fn round_trips(id in 0u32..1 << 24, offload in any_offload(), frame in prop::collection::vec(any::<u8>(), 14..200)) {
            let prefix = Prefix::new(NetworkId(id), offload, frame.len());
            let record = [prefix.as_bytes(), &frame].concat();
            prop_assert_eq!(length(*record.first_chunk().unwrap()), Some(record.len()));
            prop_assert_eq!(parse(&record), Ok(FrameRecord { network: NetworkId(id), offload, frame: &frame }));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }

    #[test]
    fn unknown_types_are_named_and_short_bodies_refused() {
        assert_eq!(parse(&[9, 0, 0, 0]), Err(RecordError::UnknownType(9)));
        assert_eq!(parse(&[FRAME, 5, 0, 0, 1, 0, 0, 1, 2]), Err(RecordError::Malformed));
        assert_eq!(parse(&[OFFLOADED, 5, 0, 0, 1, 0, 0, 1, 2]), Err(RecordError::Malformed));
        assert_eq!(length([FRAME, 0xff, 0xff, 0xff]), None);
    }
}
