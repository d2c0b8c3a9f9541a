//! Superframes: what is left to do on a frame that a kernel handed over
//! unfinished (checksum, segmentation), and doing it in software where the
//! receiving side's kernel can't.

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

/// What a kernel left undone on a frame. It is this project's own descriptor,
/// carried in records; offsets are never carried: whoever needs them derives
/// them from the frame's own headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Offload {
    /// How to cut the frame.
    pub segmentation: Segmentation,
    /// TCP flow uses ECN: CWR goes on the first segment only (`VIRTIO_NET_HDR_GSO_ECN`).
    pub ecn: bool,
    /// Payload bytes per segment (MSS); 0 where `segmentation` is `None`.
    pub segment_size: u16,
    /// The L4 checksum field holds the pseudo-header sum only.
    pub needs_checksum: bool,
}
