//! The kernel's `struct virtio_net_hdr` (include/uapi/linux/virtio_net.h), as
//! TAP (`IFF_VNET_HDR`) and AF_PACKET (`PACKET_VNET_HDR`) put it before each
//! frame, ⇄ [`Offload`].

use super::{
    Offload, OffloadError, Segmentation,
    checksum::{self, SCTP_CHECKSUM_OFFSET},
    headers::{Headers, write_u16},
    superframe::Task,
};

/// Length of `struct virtio_net_hdr`, bytes.
pub const HEADER_LENGTH: usize = 10;

/// Reads the header that a kernel put before `frame`.
///
/// A checksum left undone elsewhere than in the frame's own TCP or UDP header
/// (an inner header of an encapsulation, ICMPv6, SCTP's CRC32c) is finished here: an
/// [`Offload`] can't express it. `hdr_len` is not looked at: on forwarded frames
/// it is not to be trusted.
///
/// # Errors
/// The kernel asks for what an [`Offload`] can't express. `frame` is then
/// as it was: count it and drop it.
pub fn from_kernel(header: &[u8; HEADER_LENGTH], frame: &mut [u8]) -> Result<Offload, VirtioError> {
    let header = Header::decode(header);
    if header.gso_type != GSO_NONE {
        return superframe_from_kernel(&header, frame);
    }
    if header.flags & NEEDS_CSUM == 0 {
        return Ok(Offload::NONE);
    }
    if Headers::parse(frame).is_ok_and(|headers| header.is_checksum_of(&headers)) {
        return Ok(Offload::CHECKSUM);
    }
    finish_checksum(&header, frame)?;
    Ok(Offload::NONE)
}

/// The header with which a kernel takes `frame`: passes `virtio_net_hdr_to_skb`
/// (include/linux/virtio_net.h), with offsets from the frame's own headers.
///
/// # Errors
/// `offload` doesn't fit `frame`; nothing of it may reach the kernel.
pub fn to_kernel(offload: &Offload, frame: &[u8]) -> Result<[u8; HEADER_LENGTH], OffloadError> {
    let (headers, gso_type, gso_size) = match Task::of(offload, frame, frame.len())? {
        Task::Nothing => return Ok([0; HEADER_LENGTH]),
        Task::Checksum(headers) => (headers, GSO_NONE, 0),
        Task::Cut(superframe) => {
            let ecn = if offload.ecn { GSO_ECN } else { 0 };
            let gso_type = gso_type_of(offload.segmentation) | ecn;
            (*superframe.headers(), gso_type, offload.segment_size)
        }
    };
    let header = Header {
        flags: NEEDS_CSUM,
        gso_type,
        hdr_len: if gso_size == 0 { 0 } else { headers.payload_offset as u16 },
        gso_size,
        csum_start: headers.l4_offset as u16,
        csum_offset: headers.l4.checksum_offset().unwrap_or_default() as u16,
    };
    Ok(header.encode())
}

fn superframe_from_kernel(header: &Header, frame: &mut [u8]) -> Result<Offload, VirtioError> {
    let headers = Headers::parse(frame).map_err(OffloadError::from)?;
    let segmentation = Segmentation::of(headers.l3, headers.l4);
    let gso_type = header.gso_type & !GSO_ECN;
    if !matches!(gso_type, GSO_TCPV4 | GSO_TCPV6 | GSO_UDP_L4) {
        return Err(VirtioError::UnknownSegmentation { gso_type: header.gso_type });
    }
    if gso_type_of(segmentation) != gso_type {
        return Err(VirtioError::InnerSegmentation { gso_type: header.gso_type });
    }
    let offload = Offload {
        segmentation,
        ecn: header.gso_type & GSO_ECN != 0,
        segment_size: header.gso_size,
        needs_checksum: true,
    };
    let task = Task::of(&offload, frame, frame.len())?;
    match (header.flags & NEEDS_CSUM != 0, header.flags & DATA_VALID != 0) {
        (true, _) if header.is_checksum_of(&headers) => {}
        (true, _) => return Err(VirtioError::InnerSegmentation { gso_type: header.gso_type }),
        // A NIC that checked what it merged: each segment gets its checksum anew.
        (false, true) => {
            let at = headers.l4_offset + headers.l4.checksum_offset().unwrap_or_default();
            let pseudo_header = checksum::pseudo_header(frame, &headers);
            write_u16(frame, at, pseudo_header);
        }
        (false, false) => return Err(VirtioError::UncheckedSegmentation),
    }
    Ok(match task {
        Task::Cut(_) => offload,
        Task::Nothing | Task::Checksum(_) => Offload::CHECKSUM,
    })
}

fn finish_checksum(header: &Header, frame: &mut [u8]) -> Result<(), VirtioError> {
    let (start, offset) = (usize::from(header.csum_start), usize::from(header.csum_offset));
    let frame_length = frame.len();
    let is_done = frame.get_mut(start..).is_some_and(|packet| match offset {
        SCTP_CHECKSUM_OFFSET => checksum::complete_sctp(packet),
        _ => checksum::complete_raw(packet, offset),
    });
    if is_done { Ok(()) } else { Err(VirtioError::ChecksumOutside { start, offset, frame_length }) }
}

fn gso_type_of(segmentation: Segmentation) -> u8 {
    match segmentation {
        Segmentation::None => GSO_NONE,
        Segmentation::Tcp4 => GSO_TCPV4,
        Segmentation::Tcp6 => GSO_TCPV6,
        Segmentation::Udp4 | Segmentation::Udp6 => GSO_UDP_L4,
    }
}

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// `struct virtio_net_hdr`, its 16-bit fields in the machine's byte order
/// (legacy virtio, without `IFF_VNET_BE`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Header {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Header {
    fn decode(bytes: &[u8; HEADER_LENGTH]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    fn encode(&self) -> [u8; HEADER_LENGTH] {
        let mut bytes = [0; HEADER_LENGTH];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        let words = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset];
        for (field, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            field.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    fn is_checksum_of(&self, headers: &Headers) -> bool {
        usize::from(self.csum_start) == headers.l4_offset
            && headers.l4.checksum_offset() == Some(usize::from(self.csum_offset))
    }
}

/// What a kernel may ask for and an [`Offload`] can't express.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VirtioError {
    /// UFO, or a kind newer than this program.
    #[error("gso_type {gso_type:#04x} is not one that this program asked for")]
    UnknownSegmentation {
        /// `gso_type` as it came.
        gso_type: u8,
    },
    /// Headers of an encapsulation are to be cut, not the frame's own.
    #[error(
        "gso_type {gso_type:#04x} is about an inner header; switch off gro or tunnel segmentation on the interface"
    )]
    InnerSegmentation {
        /// `gso_type` as it came.
        gso_type: u8,
    },
    /// Merged by a NIC (LRO) that vouches for no checksum.
    #[error("a merged frame without checksum information; switch off lro on the interface")]
    UncheckedSegmentation,
    /// A checksum field that isn't within the frame.
    #[error("checksum at {start}+{offset} is outside a frame of {frame_length} bytes")]
    ChecksumOutside {
        /// `csum_start`, bytes.
        start: usize,
        /// `csum_offset`, bytes.
        offset: usize,
        /// Length of the frame, bytes.
        frame_length: usize,
    },
    /// The header contradicts the frame.
    #[error("the offload header contradicts its frame")]
    Offload(#[from] OffloadError),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::offload::{
        fixtures::{FrameSpec, frame_spec, segments, superframe_spec},
        headers::read_u16,
    };

    const TCP: Header = Header {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 10,
        csum_start: 34,
        csum_offset: 16,
    };

    fn superframe() -> FrameSpec {
        FrameSpec { payload: vec![7; 25], ..FrameSpec::default() }
    }

    /// What `header` gives on `frame`, and `frame` afterwards.
    fn read(header: Header, frame: &[u8]) -> (Result<Offload, VirtioError>, Vec<u8>) {
        let mut frame = frame.to_vec();
        (from_kernel(&header.encode(), &mut frame), frame)
    }

    #[test]
    fn a_plain_frame_is_all_zeros_both_ways() {
        let mut frame = *b"not even IP is asked for";
        assert_eq!(from_kernel(&[0; 10], &mut frame), Ok(Offload::NONE));
        assert_eq!(to_kernel(&Offload::NONE, &frame), Ok([0; 10]));
    }

    #[test]
    fn fields_are_where_the_kernel_has_them() {
        let spec = superframe();
        let offload = Offload { ecn: true, ..spec.offload(10) };
        let header = to_kernel(&offload, &spec.build_unfinished()).unwrap();
        assert_eq!(header[..2], [1, 0x81]);
        let words: Vec<_> =
            header[2..].chunks(2).map(|word| u16::from_ne_bytes([word[0], word[1]])).collect();
        assert_eq!(words, [54, 10, 34, 16]);
    }

    #[test]
    fn hdr_len_is_not_trusted() {
        let frame = superframe().build_unfinished();
        for hdr_len in [0, 1, 20, u16::MAX] {
            let (offload, after) = read(Header { hdr_len, ..TCP }, &frame);
            assert_eq!(offload, Ok(superframe().offload(10)));
            assert_eq!(after, frame);
        }
    }

    #[test]
    fn what_is_no_superframe_becomes_a_frame() {
        let frame = superframe().build_unfinished();
        for (gso_size, expected) in
            [(24, superframe().offload(24)), (25, Offload::CHECKSUM), (9000, Offload::CHECKSUM)]
        {
            assert_eq!(read(Header { gso_size, ..TCP }, &frame).0, Ok(expected));
        }
    }

    #[test]
    fn what_no_descriptor_expresses_is_refused_and_nothing_written() {
        use VirtioError::{
            InnerSegmentation, Offload as Contradiction, UncheckedSegmentation, UnknownSegmentation,
        };
        let frame = superframe().build_unfinished();
        let cases = [
            (Header { gso_type: 3, ..TCP }, UnknownSegmentation { gso_type: 3 }),
            (Header { gso_type: 0x80, ..TCP }, UnknownSegmentation { gso_type: 0x80 }),
            (Header { gso_type: 4, ..TCP }, InnerSegmentation { gso_type: 4 }),
            (Header { gso_type: 5, ..TCP }, InnerSegmentation { gso_type: 5 }),
            (Header { csum_start: 54, ..TCP }, InnerSegmentation { gso_type: 1 }),
            (Header { csum_offset: 6, ..TCP }, InnerSegmentation { gso_type: 1 }),
            (Header { flags: 0, ..TCP }, UncheckedSegmentation),
            (Header { gso_size: 0, ..TCP }, Contradiction(OffloadError::SegmentSize { size: 0 })),
        ];
        for (header, error) in cases {
            assert_eq!(read(header, &frame), (Err(error), frame.clone()), "{header:?}");
        }
    }

    #[test]
    fn a_merged_frame_that_was_checked_gets_its_pseudo_header_back() {
        let spec = superframe();
        let (offload, frame) = read(Header { flags: DATA_VALID, ..TCP }, &spec.build());
        assert_eq!(offload, Ok(spec.offload(10)));
        assert_eq!(segments(&frame, &offload.unwrap()), spec.expected_segments(10));
    }

    #[test]
    fn an_inner_checksum_is_finished_at_once() {
        let inner = FrameSpec { udp: true, v6: true, ..superframe() };
        let vxlan = |inner: Vec<u8>| {
            let payload = [&[8, 0, 0, 0, 0, 0, 1, 0][..], &inner].concat();
            let mut frame = FrameSpec { udp: true, payload, ..FrameSpec::default() }.build();
            write_u16(&mut frame, 40, 0);
            frame
        };
        let header =
            Header { flags: NEEDS_CSUM, csum_start: 50 + 54, csum_offset: 6, ..Header::default() };
        let (offload, frame) = read(header, &vxlan(inner.build_unfinished()));
        assert_eq!(offload, Ok(Offload::NONE));
        assert_eq!(frame, vxlan(inner.build()));
    }

    #[test]
    fn sctp_gets_its_crc() {
        // INIT-less packet: common header of 12 bytes, then the check string.
        let sctp = [&[0, 7, 0, 9, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff][..], b"123456789"].concat();
        let mut frame =
            FrameSpec { udp: true, payload: vec![0; 13], ..FrameSpec::default() }.build();
        frame[23] = 132;
        frame[34..].copy_from_slice(&sctp);
        let header =
            Header { flags: NEEDS_CSUM, csum_start: 34, csum_offset: 8, ..Header::default() };
        let (offload, frame) = read(header, &frame);
        assert_eq!(offload, Ok(Offload::NONE));
        // CRC-32C of the packet with a field of zeros, by a bit-by-bit reference.
        let mut crc = !0u32;
        for byte in
            sctp.iter().enumerate().map(|(at, b)| if (8..12).contains(&at) { 0 } else { *b })
        {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
            }
        }
        assert_eq!(frame[42..46], (!crc).to_le_bytes());
    }

    #[test]
    fn a_checksum_outside_the_frame_is_refused() {
        let frame = superframe().build();
        let length = frame.len() as u16;
        for (csum_start, csum_offset) in
            [(length, 0), (length - 1, 0), (length - 5, 8), (u16::MAX, u16::MAX), (0, u16::MAX)]
        {
            let header = Header { flags: NEEDS_CSUM, csum_start, csum_offset, ..Header::default() };
            let (result, after) = read(header, &frame);
            assert!(matches!(result, Err(VirtioError::ChecksumOutside { .. })), "{header:?}");
            assert_eq!(after, frame);
        }
    }

    proptest! {
        #[test]
        fn a_superframe_reads_back((spec, size) in superframe_spec(), ecn: bool) {
            let offload = Offload { ecn: ecn && !spec.udp, ..spec.offload(size) };
            let mut frame = spec.build_unfinished();
            let header = to_kernel(&offload, &frame).unwrap();
            prop_assert_eq!(from_kernel(&header, &mut frame), Ok(offload));
            prop_assert_eq!(frame, spec.build_unfinished());
        }

        #[test]
        fn an_unfinished_frame_reads_back(spec in frame_spec(0..200)) {
            let mut frame = spec.build_unfinished();
            let header = to_kernel(&Offload::CHECKSUM, &frame).unwrap();
            prop_assert_eq!(from_kernel(&header, &mut frame), Ok(Offload::CHECKSUM));
        }

        #[test]
        fn any_header_on_any_frame_is_survived(
            header: [u8; 10], small: bool,
            (spec, _) in superframe_spec(),
            noise in proptest::collection::vec((0usize..120, any::<u8>()), 0..4),
        ) {
            let mut header = Header::decode(&header);
            if small {
                (header.flags, header.gso_type) = (header.flags & 3, header.gso_type & 0x87);
                (header.csum_start, header.csum_offset) = (header.csum_start & 127, header.csum_offset & 31);
            }
            let mut frame = spec.build_unfinished();
            for (at, value) in noise {
                let at = at % frame.len();
                frame[at] = value;
            }
            if let Ok(offload) = from_kernel(&header.encode(), &mut frame) {
                prop_assert!(to_kernel(&offload, &frame).is_ok());
            }
        }

        /// `virtio_net_hdr_to_skb`'s checks, on whatever a peer may send.
        #[test]
        fn the_kernel_is_given_what_it_takes(
            (spec, _) in superframe_spec(), kind in 0usize..5, ecn: bool, segment_size: u16, needs_checksum: bool,
            noise in proptest::collection::vec((0usize..120, any::<u8>()), 0..4),
        ) {
            use Segmentation::{None, Tcp4, Tcp6, Udp4, Udp6};
            let segmentation = [None, Tcp4, Tcp6, Udp4, Udp6][kind];
            let mut frame = spec.build_unfinished();
            for (at, value) in noise {
                let at = at % frame.len();
                frame[at] = value;
            }
            let offload = Offload { segmentation, ecn, segment_size, needs_checksum };
            let Ok(bytes) = to_kernel(&offload, &frame) else { return Ok(()) };
            let header = Header::decode(&bytes);
            let start = usize::from(header.csum_start);
            if header.flags == NEEDS_CSUM {
                prop_assert!(start + usize::from(header.csum_offset) + 2 <= frame.len());
            }
            if header.gso_type != GSO_NONE {
                let udp = header.gso_type == GSO_UDP_L4;
                let payload_start = start + if udp { 8 } else { 20 };
                prop_assert_eq!(header.flags, NEEDS_CSUM);
                prop_assert_eq!(header.csum_offset, if udp { 6 } else { 16 });
                prop_assert!(header.gso_size != 0 && header.gso_size != 0xffff);
                prop_assert!(frame.len() - payload_start > usize::from(header.gso_size));
                prop_assert!(!udp || frame.len() - payload_start <= usize::from(header.gso_size) * 128);
                prop_assert!(usize::from(header.hdr_len) <= frame.len());
                let ip = usize::from(read_u16(&frame, start - 2) != 0) * start;
                prop_assert!(ip <= frame.len());
            }
        }
    }
}
