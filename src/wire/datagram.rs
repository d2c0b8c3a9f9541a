//! Transport datagrams: what crosses the underlay once a session is up.
//!
//! ```text
//!  0      1      2      4          8            16                    -16
//!  +------+------+------+----------+------------+---------- … ---------+-----+
//!  | type | lane | zero | receiver |  counter   |      ciphertext      | tag |
//!  +------+------+------+----------+------------+---------- … ---------+-----+
//!   u8     u8     2      u32 LE     u64 LE       stream or signals      16
//! ```
//!
//! The first 16 bytes are in clear and authenticated with the rest. Every
//! Landbridge datagram begins `[type][lane][0][0]`, handshake messages
//! ([`crate::session`]) with lane 0, so that a socket filter can steer by the
//! second byte.

/// Bytes in clear before the ciphertext.
pub const HEADER_LENGTH: usize = 16;
/// Bytes of the AEAD tag after the ciphertext.
pub const TAG_LENGTH: usize = 16;
/// Where the lane stands in every datagram, bytes from the start.
pub const LANE_OFFSET: usize = 1;
/// Lane of the control plane: handshakes and signals, never LAN frames.
pub const CONTROL_LANE: u8 = 0;
/// Highest lane number.
pub const LANE_MAX: u8 = 64;
/// Largest UDP payload over IPv4, bytes (65,535 − 20 − 8).
pub const DATAGRAM_LENGTH_MAX: usize = 65_507;

/// What a transport datagram carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A piece of the lane's record stream ([`crate::stream`]).
    Stream,
    /// Signals between the two ends of the lane ([`crate::wire::signal`]).
    Signal,
}

impl Kind {
    const STREAM: u8 = 4;
    const SIGNAL: u8 = 5;

    const fn to_wire(self) -> u8 {
        match self {
            Self::Stream => Self::STREAM,
            Self::Signal => Self::SIGNAL,
        }
    }
}

/// The clear part of a transport datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What the ciphertext holds.
    pub kind: Kind,
    /// Lane of the session.
    pub lane: u8,
    /// The receiver's name for the session.
    pub receiver: u32,
    /// AEAD counter of this lane and direction.
    pub counter: u64,
}

/// Why a datagram is not a transport datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeaderError {
    /// Shorter than header and tag.
    #[error("datagram shorter than a transport header and tag")]
    Short,
    /// Another type, or non-zero reserved bytes.
    #[error("not a transport datagram")]
    Unknown,
}

impl Header {
    /// Reads the header of `datagram` (the whole UDP payload).
    ///
    /// # Errors
    /// See [`HeaderError`].
    #[inline]
    pub fn parse(datagram: &[u8]) -> Result<Self, HeaderError> {
        if datagram.len() < HEADER_LENGTH + TAG_LENGTH {
            return Err(HeaderError::Short);
        }
        let Some((header, _)) = datagram.split_first_chunk::<HEADER_LENGTH>() else {
            return Err(HeaderError::Short);
        };
        let kind = match header[0] {
            Kind::STREAM => Kind::Stream,
            Kind::SIGNAL => Kind::Signal,
            _ => return Err(HeaderError::Unknown),
        };
        let [_, lane, 0, 0, a, b, c, d, counter @ ..] = *header else {
            return Err(HeaderError::Unknown);
        };
        Ok(Self {
            kind,
            lane,
            receiver: u32::from_le_bytes([a, b, c, d]),
            counter: u64::from_le_bytes(counter),
        })
    }

    /// Writes the header over the first [`HEADER_LENGTH`] bytes.
    #[inline]
    pub fn emit(&self, header: &mut [u8; HEADER_LENGTH]) {
        header[0] = self.kind.to_wire();
        header[1] = self.lane;
        header[2..4].fill(0);
        header[4..8].copy_from_slice(&self.receiver.to_le_bytes());
        header[8..16].copy_from_slice(&self.counter.to_le_bytes());
    }
}

/// Bytes of [`Position`] at the start of a stream datagram's plaintext.
pub const POSITION_LENGTH: usize = 6;
/// Overhead of a stream datagram over the stream bytes that it carries.
pub const STREAM_OVERHEAD: usize = HEADER_LENGTH + POSITION_LENGTH + TAG_LENGTH;

/// Where a datagram's bytes sit in the record stream (in the manner of the
/// block offset of RFC 9347, section 2.2.1).
///
/// ```text
///  0                2          3                 6
///  +----------------+----------+-----------------+----- …
///  |  first record  | skipped  |  record offset  | stream bytes
///  +----------------+----------+-----------------+----- …
///    u16 LE           u8         u24 LE
/// ```
///
/// The record offset's highest bit says that the continued record has a
/// trailer ([`crate::wire::record`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Position {
    /// Offset in the stream bytes at which the first record starts; `None`
    /// where all of them continue a record that an earlier datagram started.
    pub first_record: Option<u16>,
    /// How many counters just before this one carried no stream bytes
    /// (signals, or datagrams that were never sent), so that nobody waits for
    /// them; 255 where it is that many or more.
    pub skipped: u8,
    /// How many bytes of the continued record came in earlier datagrams; 0
    /// where a record starts right here.
    pub record_offset: u32,
    /// The continued record repeats at its end what its beginning says.
    pub has_trailer: bool,
}

impl Position {
    const NO_RECORD: u16 = u16::MAX;
    const TRAILER: u32 = 1 << 23;

    /// Reads the position from the start of a plaintext.
    #[inline]
    pub fn parse(bytes: &[u8; POSITION_LENGTH]) -> Self {
        let first_record = u16::from_le_bytes([bytes[0], bytes[1]]);
        let offset = u32::from_le_bytes([bytes[3], bytes[4], bytes[5], 0]);
        Self {
            first_record: (first_record != Self::NO_RECORD).then_some(first_record),
            skipped: bytes[2],
            record_offset: offset & !Self::TRAILER,
            has_trailer: offset & Self::TRAILER != 0,
        }
    }

    /// Writes the position. `record_offset` must be below 2²³.
    #[inline]
    pub fn emit(&self, bytes: &mut [u8; POSITION_LENGTH]) {
        debug_assert!(self.record_offset < Self::TRAILER);
        let trailer = if self.has_trailer { Self::TRAILER } else { 0 };
        let offset = self.record_offset | trailer;
        bytes[0..2].copy_from_slice(&self.first_record.unwrap_or(Self::NO_RECORD).to_le_bytes());
        bytes[2] = self.skipped;
        bytes[3..6].copy_from_slice(&offset.to_le_bytes()[..3]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn header_round_trips(stream: bool, lane: u8, receiver: u32, counter: u64) {
            let kind = if stream { Kind::Stream } else { Kind::Signal };
            let header = Header { kind, lane, receiver, counter };
            let mut datagram = [0; HEADER_LENGTH + TAG_LENGTH];
            header.emit(datagram.first_chunk_mut().unwrap());
            prop_assert_eq!(Header::parse(&datagram), Ok(header));
        }

        #[test]
        fn position_round_trips(first in 0u16..u16::MAX, skipped: u8, record_offset in 0u32..1 << 23, has_trailer: bool) {
            for first_record in [Some(first), None] {
                let position = Position { first_record, skipped, record_offset, has_trailer };
                let mut bytes = [0; POSITION_LENGTH];
                position.emit(&mut bytes);
                prop_assert_eq!(Position::parse(&bytes), position);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Header::parse(&bytes);
        }
    }

    #[test]
    fn refuses_what_is_no_transport_datagram() {
        let mut datagram = [0u8; 64];
        assert_eq!(Header::parse(&datagram), Err(HeaderError::Unknown));
        datagram[0] = 4;
        assert!(Header::parse(&datagram).is_ok());
        datagram[2] = 1;
        assert_eq!(Header::parse(&datagram), Err(HeaderError::Unknown));
        assert_eq!(Header::parse(&datagram[..31]), Err(HeaderError::Short));
    }
}
