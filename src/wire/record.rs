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
//!  type 3, superframe: as type 2, then the trailer:
//!                      the frame's first 128 bytes, network, descriptor and segment size again
//! ```
//!
//! The trailer makes good the loss of the datagram in which a long superframe
//! begins: without its headers nothing of it could be used. Every datagram that
//! continues such a record says so ([`crate::wire::datagram::Position`]).
//!
//! The descriptor's low four bits are the segmentation (0 none, 1 TCP/IPv4,
//! 2 TCP/IPv6, 3 UDP/IPv4, 4 UDP/IPv6), bit 6 says ECN, bit 7 that the L4
//! checksum is still to be finished. Unknown types are skipped by their length.

use std::ops::Range;

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
/// Bytes of a frame that a trailer repeats: Ethernet with two tags, IPv6 and
/// TCP with all its options come to 122.
pub const REPEATED_LENGTH: usize = 128;
/// Bytes of a trailer: what is repeated of the frame and of the prefix.
pub const TRAILER_LENGTH: usize = REPEATED_LENGTH + PREFIX_LENGTH_MAX - HEADER_LENGTH;
/// Superframes of this many bytes and more get a trailer: less than 2 % more to send.
pub const TRAILER_FRAME_LENGTH_MIN: usize = 8192;
/// Longest record, header included.
pub const RECORD_LENGTH_MAX: usize = PREFIX_LENGTH_MAX + FRAME_LENGTH_MAX + TRAILER_LENGTH;

const FRAME: u8 = 1;
const OFFLOADED: u8 = 2;
const SUPERFRAME: u8 = 3;
const DESCRIPTOR_ECN: u8 = 0x40;
const DESCRIPTOR_NEEDS_CHECKSUM: u8 = 0x80;

/// A frame's record on its way out, not yet put together.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    prefix: [u8; PREFIX_LENGTH_MAX],
    prefix_length: usize,
    frame: &'a [u8],
    has_trailer: bool,
}

impl<'a> Record<'a> {
    /// The record of a frame of at most [`FRAME_LENGTH_MAX`] bytes.
    #[inline]
    pub fn new(network: NetworkId, offload: Offload, frame: &'a [u8]) -> Self {
        debug_assert!(frame.len() <= FRAME_LENGTH_MAX);
        let is_plain = offload == Offload::default();
        let is_superframe = offload.segmentation != Segmentation::None;
        let has_trailer = is_superframe && frame.len() >= TRAILER_FRAME_LENGTH_MIN;
        let prefix_length = if is_plain { HEADER_LENGTH + 3 } else { PREFIX_LENGTH_MAX };
        let mut prefix = [0; PREFIX_LENGTH_MAX];
        prefix[0] = match (is_plain, has_trailer) {
            (true, _) => FRAME,
            (false, false) => OFFLOADED,
            (false, true) => SUPERFRAME,
        };
        let trailer_length = if has_trailer { TRAILER_LENGTH } else { 0 };
        let body = (prefix_length - HEADER_LENGTH + frame.len() + trailer_length) as u32;
        prefix[1..4].copy_from_slice(&body.to_le_bytes()[..3]);
        prefix[4..7].copy_from_slice(&network.0.to_le_bytes()[..3]);
        if !is_plain {
            prefix[7] = descriptor(offload);
            prefix[8..10].copy_from_slice(&offload.segment_size.to_le_bytes());
        }
        Self { prefix, prefix_length, frame, has_trailer }
    }

    /// The record's bytes, part by part.
    #[inline]
    pub fn parts(&self) -> [&[u8]; 4] {
        let (repeated, fields) = match self.has_trailer {
            true => (&self.frame[..REPEATED_LENGTH], &self.prefix[HEADER_LENGTH..]),
            false => (&[][..], &[][..]),
        };
        [&self.prefix[..self.prefix_length], self.frame, repeated, fields]
    }

    /// The record repeats its beginning at its end.
    #[inline]
    pub const fn has_trailer(&self) -> bool {
        self.has_trailer
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
        [OFFLOADED, _, _, _, a, b, c, descriptor, d, e, frame @ ..] => {
            described([*a, *b, *c, *descriptor, *d, *e], frame)
        }
        [SUPERFRAME, _, _, _, a, b, c, descriptor, d, e, rest @ ..] => {
            let end = rest.len().checked_sub(TRAILER_LENGTH).ok_or(RecordError::Malformed)?;
            described([*a, *b, *c, *descriptor, *d, *e], &rest[..end])
        }
        [FRAME | OFFLOADED | SUPERFRAME, ..] | [] => Err(RecordError::Malformed),
        [other, ..] => Err(RecordError::UnknownType(*other)),
    }
}

/// Whether a record that starts with `header` has a trailer.
pub const fn has_trailer(header: [u8; HEADER_LENGTH]) -> bool {
    header[0] == SUPERFRAME
}

/// What a trailer says about its record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trailer<'a> {
    /// The stretched network that the frame belongs to.
    pub network: NetworkId,
    /// What is still to be done on the frame.
    pub offload: Offload,
    /// The frame's first bytes.
    pub head: &'a [u8; REPEATED_LENGTH],
    /// Where the frame is in the record.
    pub frame: Range<usize>,
}

/// Reads the trailer of a record that is known to have one, and whose
/// beginning may be lost.
///
/// # Errors
/// See [`RecordError`].
pub fn parse_trailer(record: &[u8]) -> Result<Trailer<'_>, RecordError> {
    let (rest, fields) = record.split_last_chunk::<6>().ok_or(RecordError::Malformed)?;
    let (before, head) =
        rest.split_last_chunk::<REPEATED_LENGTH>().ok_or(RecordError::Malformed)?;
    let frame = PREFIX_LENGTH_MAX..before.len();
    if frame.len() < REPEATED_LENGTH {
        return Err(RecordError::Malformed);
    }
    let FrameRecord { network, offload, .. } = described(*fields, head)?;
    Ok(Trailer { network, offload, head, frame })
}

fn described(fields: [u8; 6], frame: &[u8]) -> Result<FrameRecord<'_>, RecordError> {
    let [a, b, c, descriptor, d, e] = fields;
    let offload = offload(descriptor, u16::from_le_bytes([d, e]))?;
    checked(u32::from_le_bytes([a, b, c, 0]), offload, frame)
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
        fn round_trips(
            id in 0u32..1 << 24,
            offload in any_offload(),
            frame in prop_oneof![
                prop::collection::vec(any::<u8>(), 14..200),
                prop::collection::vec(any::<u8>(), TRAILER_FRAME_LENGTH_MIN - 1..TRAILER_FRAME_LENGTH_MIN + 2),
            ],
        ) {
            let network = NetworkId(id);
            let outgoing = Record::new(network, offload, &frame);
            let record = outgoing.parts().concat();
            prop_assert_eq!(length(*record.first_chunk().unwrap()), Some(record.len()));
            prop_assert_eq!(parse(&record), Ok(FrameRecord { network, offload, frame: &frame }));
            let is_long = frame.len() >= TRAILER_FRAME_LENGTH_MIN;
            prop_assert_eq!(outgoing.has_trailer(), is_long && offload.segmentation != Segmentation::None);
            if outgoing.has_trailer() {
                let trailer = parse_trailer(&record).unwrap();
                prop_assert_eq!((trailer.network, trailer.offload), (network, offload));
                prop_assert_eq!(&trailer.head[..], &frame[..REPEATED_LENGTH]);
                prop_assert_eq!(&record[trailer.frame], &frame[..]);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes);
            let _ = parse_trailer(&bytes);
        }
    }

    #[test]
    fn unknown_types_are_named_and_short_bodies_refused() {
        assert_eq!(parse(&[9, 0, 0, 0]), Err(RecordError::UnknownType(9)));
        assert_eq!(parse(&[FRAME, 5, 0, 0, 1, 0, 0, 1, 2]), Err(RecordError::Malformed));
        assert_eq!(parse(&[OFFLOADED, 5, 0, 0, 1, 0, 0, 1, 2]), Err(RecordError::Malformed));
        assert_eq!(parse(&[SUPERFRAME; 10 + TRAILER_LENGTH - 1]), Err(RecordError::Malformed));
        assert_eq!(
            parse_trailer(&[0; 9 + REPEATED_LENGTH + TRAILER_LENGTH]),
            Err(RecordError::Malformed)
        );
        assert_eq!(length([FRAME, 0xff, 0xff, 0xff]), None);
    }
}
