//! Superframes: what is left to do on a frame that a kernel handed over
//! unfinished (checksum, segmentation), and doing it in software where the
//! receiving side's kernel can't.
//!
//! | module | what is in it |
//! |---|---|
//! | [`headers`] | where a frame's headers are: the source of every offset |
//! | [`superframe`] | a descriptor checked against its frame; headers for a part of it |
//! | [`checksum`] | ones-complement sums, finishing a checksum |
//! | [`segment`] | superframe → segments |
//! | [`coalesce`] | frames of a flow → superframe |
//! | [`salvage`] | superframe with a hole → smaller superframes |
//! | [`virtio`] | the kernel's `struct virtio_net_hdr` ⇄ [`Offload`] |

pub mod checksum;
pub mod coalesce;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod headers;
pub mod salvage;
pub mod segment;
pub mod superframe;
pub mod virtio;

use headers::{HeaderError, L3, L4};

/// How a superframe is to be cut into packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum Segmentation {
    /// One frame; nothing to cut.
    #[default]
    None,
    /// TCP over IPv4 (TSO4).
    Tcp4,
    /// TCP over IPv6 (TSO6).
    Tcp6,
    /// UDP over IPv4, one datagram per segment (USO4).
    Udp4,
    /// UDP over IPv6, one datagram per segment (USO6).
    Udp6,
}

impl Segmentation {
    /// The kind for a frame with these headers; `None` where there is none.
    pub const fn of(l3: L3, l4: L4) -> Self {
        match (l3, l4) {
            (L3::V4, L4::Tcp) => Self::Tcp4,
            (L3::V6, L4::Tcp) => Self::Tcp6,
            (L3::V4, L4::Udp) => Self::Udp4,
            (L3::V6, L4::Udp) => Self::Udp6,
            (_, L4::Other(_) | L4::Fragment) => Self::None,
        }
    }

    /// Cuts a TCP stream rather than a train of datagrams.
    pub const fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Tcp6)
    }
}

/// What a kernel left undone on a frame. It is this project's own descriptor,
/// carried in records; offsets are never carried: whoever needs them derives
/// them from the frame's own headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Offload {
    /// How to cut the frame. Where it is `None`, `ecn` and `segment_size`
    /// mean nothing.
    pub segmentation: Segmentation,
    /// TCP flow uses ECN: CWR goes on the first segment only (`VIRTIO_NET_HDR_GSO_ECN`).
    pub ecn: bool,
    /// Payload bytes per segment (MSS); 0 where `segmentation` is `None`.
    pub segment_size: u16,
    /// The L4 checksum field holds the pseudo-header sum only.
    pub needs_checksum: bool,
}

impl Offload {
    /// A complete frame: nothing left to do.
    pub const NONE: Self = Self {
        segmentation: Segmentation::None,
        ecn: false,
        segment_size: 0,
        needs_checksum: false,
    };

    /// One frame whose L4 checksum is still to be completed.
    pub const CHECKSUM: Self = Self { needs_checksum: true, ..Self::NONE };
}

/// Why an [`Offload`] doesn't fit its frame. Descriptor and frame come from
/// another machine: count it and drop the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OffloadError {
    /// The headers can't be found.
    #[error("the headers of the frame can't be found")]
    Headers(#[from] HeaderError),
    /// Neither TCP nor UDP, or a fragment.
    #[error(
        "the frame carries {found:?}: neither TCP nor UDP, so there is no checksum to complete"
    )]
    NoTransport {
        /// What IP carries.
        found: L4,
    },
    /// The descriptor names another kind of packet.
    #[error("segmentation {named:?} for a frame that takes {fitting:?}")]
    WrongKind {
        /// What the descriptor says.
        named: Segmentation,
        /// What the frame's headers call for.
        fitting: Segmentation,
    },
    /// ECN is TCP's (RFC 3168), here on UDP.
    #[error("the ECN flag on a frame that isn't TCP")]
    EcnWithoutTcp,
    /// Segments get new checksums, so the frame's must be unfinished.
    #[error("segmentation without an unfinished checksum")]
    ChecksumRequired,
    /// See [`superframe::MIN_TCP_SEGMENT_SIZE`] and [`superframe::MAX_SEGMENT_SIZE`].
    #[error("a segment size of {size} bytes is out of bounds")]
    SegmentSize {
        /// What the descriptor says, bytes.
        size: u16,
    },
    /// More datagrams than the kernel takes at once; see [`superframe::MAX_UDP_SEGMENTS`].
    #[error("{segments} UDP segments; the kernel takes {} at once", superframe::MAX_UDP_SEGMENTS)]
    TooManySegments {
        /// Segments the frame would be cut into.
        segments: usize,
    },
    /// A superframe's length and its IP or UDP length field must agree.
    #[error("the superframe has {actual} bytes, its {field} length says {stated}")]
    Length {
        /// `"IP"` or `"UDP"`.
        field: &'static str,
        /// By the field, bytes.
        stated: usize,
        /// In truth, bytes.
        actual: usize,
    },
    /// Programmer's slip rather than bad input: give a scratch buffer as long as the longest frame.
    #[error("the scratch buffer holds {given} bytes, {needed} are needed")]
    ScratchTooSmall {
        /// Bytes needed.
        needed: usize,
        /// Bytes given.
        given: usize,
    },
    /// Salvage keeps headers of up to [`salvage::MAX_HEADER_LENGTH`] bytes.
    #[error("headers of {length} bytes are longer than what salvage keeps")]
    HeadersTooLong {
        /// Length of all headers, bytes.
        length: usize,
    },
    /// The frame has one segment only.
    #[error("the frame is no superframe")]
    NoSuperframe,
}
