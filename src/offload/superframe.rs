//! An [`Offload`] checked against its frame: what remains to be done, and the
//! headers that a part of a superframe gets.

use std::ops::Range;

use super::{
    Offload, OffloadError, Segmentation, checksum,
    headers::{Headers, IPV6_HEADER_LENGTH, L3, L4, read_u16, write_u16},
};

/// Smallest TCP segment that Linux makes itself (`TCP_MIN_GSO_SIZE`, kernel
/// include/net/tcp.h); a peer that asks for less asks for work, not for a
/// transfer.
pub const MIN_TCP_SEGMENT_SIZE: u16 = 8;

/// 0xffff means something else to the kernel (`GSO_BY_FRAGS`, include/linux/skbuff.h).
pub const MAX_SEGMENT_SIZE: u16 = 0xfffe;

/// Most datagrams that one UDP superframe is cut into (`UDP_MAX_SEGMENTS`, kernel
/// include/linux/udp.h). Kernels before 6.10 take 64.
pub const MAX_UDP_SEGMENTS: usize = 128;

/// What remains to be done on a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Task {
    /// Nothing: it is complete.
    Nothing,
    /// Its L4 checksum; it is one segment.
    Checksum(Headers),
    /// It is to be cut.
    Cut(Superframe),
}

impl Task {
    /// What `offload` asks for on the frame of `frame_length` bytes of which
    /// at least all headers, `head`, are at hand. A superframe with payload for one segment
    /// only is none, as to the kernel (`virtio_net_hdr_to_skb`, include/linux/virtio_net.h).
    ///
    /// # Errors
    /// `offload` doesn't fit the frame.
    #[inline]
    pub fn of(offload: &Offload, head: &[u8], frame_length: usize) -> Result<Self, OffloadError> {
        match (offload.segmentation, offload.needs_checksum) {
            (Segmentation::None, false) => Ok(Self::Nothing),
            (Segmentation::None, true) => {
                let headers = Headers::parse_head(head, frame_length)?;
                match headers.l4 {
                    L4::Tcp | L4::Udp => Ok(Self::Checksum(headers)),
                    found => Err(OffloadError::NoTransport { found }),
                }
            }
            (_, false) => Err(OffloadError::ChecksumRequired),
            (_, true) => {
                let superframe = Superframe::check(offload, head, frame_length)?;
                Ok(match superframe.segment_count() {
                    0 | 1 => Self::Checksum(superframe.headers),
                    _ => Self::Cut(superframe),
                })
            }
        }
    }
}

/// A frame that is to be cut into segments, descriptor and headers agreeing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Superframe {
    headers: Headers,
    segment_size: usize,
}

impl Superframe {
    fn check(offload: &Offload, head: &[u8], frame_length: usize) -> Result<Self, OffloadError> {
        let headers = Headers::parse_head(head, frame_length)?;
        let (named, fitting) = (offload.segmentation, Segmentation::of(headers.l3, headers.l4));
        if named != fitting {
            return Err(OffloadError::WrongKind { named, fitting });
        }
        if offload.ecn && !named.is_tcp() {
            return Err(OffloadError::EcnWithoutTcp);
        }
        let smallest = if named.is_tcp() { MIN_TCP_SEGMENT_SIZE } else { 1 };
        if !(smallest..=MAX_SEGMENT_SIZE).contains(&offload.segment_size) {
            return Err(OffloadError::SegmentSize { size: offload.segment_size });
        }
        if headers.end != frame_length {
            let stated = headers.end;
            return Err(OffloadError::Length { field: "IP", stated, actual: frame_length });
        }
        if headers.l4 == L4::Udp {
            let stated = usize::from(read_u16(head, headers.l4_offset + 4));
            let actual = headers.end - headers.l4_offset;
            if stated != actual {
                return Err(OffloadError::Length { field: "UDP", stated, actual });
            }
        }
        let superframe = Self { headers, segment_size: usize::from(offload.segment_size) };
        let segments = superframe.segment_count();
        if headers.l4 == L4::Udp && segments > MAX_UDP_SEGMENTS {
            return Err(OffloadError::TooManySegments { segments });
        }
        Ok(superframe)
    }

    /// Where its headers are.
    pub const fn headers(&self) -> &Headers {
        &self.headers
    }

    /// All headers, Ethernet's to TCP's or UDP's, bytes: what each segment repeats.
    pub const fn header_length(&self) -> usize {
        self.headers.payload_offset
    }

    /// Payload in a segment, bytes; the last may have less.
    pub const fn segment_size(&self) -> usize {
        self.segment_size
    }

    /// Payload in all segments together, bytes.
    pub const fn payload_length(&self) -> usize {
        self.headers.end - self.headers.payload_offset
    }

    /// Segments it is cut into.
    pub const fn segment_count(&self) -> usize {
        self.payload_length().div_ceil(self.segment_size)
    }

    /// Turns `header`, a copy of the superframe's headers, into those of a
    /// frame with only `part` of the payload; `part` starts at a segment's
    /// start. The checksum field then holds the part's pseudo-header sum.
    ///
    /// As `tcp_gso_segment`, `__udp_gso_segment` and `inet_gso_segment` do it
    /// (kernel net/ipv4): the IPv4 id counts segments, FIN and PSH go with
    /// the payload's end, CWR with its start.
    pub(super) fn write_header(&self, header: &mut [u8], part: &Range<usize>) {
        debug_assert!(part.start.is_multiple_of(self.segment_size));
        debug_assert!(part.start < part.end && part.end <= self.payload_length());
        let Headers { l3_offset, l3, l4_offset, l4, payload_offset, end } = self.headers;
        let part_end = payload_offset + part.len();
        match l3 {
            L3::V4 => {
                let packet = &mut header[l3_offset..l4_offset];
                write_u16(packet, 2, (part_end - l3_offset) as u16);
                let index = (part.start / self.segment_size) as u16;
                write_u16(packet, 4, read_u16(packet, 4).wrapping_add(index));
                write_u16(packet, 10, 0);
                write_u16(packet, 10, !checksum::sum(packet));
            }
            L3::V6 => {
                let length = part_end - l3_offset - IPV6_HEADER_LENGTH;
                write_u16(header, l3_offset + 4, length as u16);
            }
        }
        let length = (part_end - l4_offset) as u16;
        let checksum_at = match l4 {
            L4::Tcp => {
                self.write_tcp(&mut header[l4_offset..], part);
                l4_offset + 16
            }
            _ => {
                write_u16(header, l4_offset + 4, length);
                l4_offset + 6
            }
        };
        let pseudo_header = read_u16(header, checksum_at);
        let whole_length = (end - l4_offset) as u16;
        write_u16(header, checksum_at, checksum::replace(pseudo_header, whole_length, length));
    }

    fn write_tcp(&self, tcp: &mut [u8], part: &Range<usize>) {
        const FLAGS: usize = 13;
        const FIN_PSH: u8 = 0x01 | 0x08;
        const CWR: u8 = 0x80;
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        tcp[4..8].copy_from_slice(&sequence.wrapping_add(part.start as u32).to_be_bytes());
        if part.end != self.payload_length() {
            tcp[FLAGS] &= !FIN_PSH;
        }
        if part.start != 0 {
            tcp[FLAGS] &= !CWR;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::offload::fixtures::{FrameSpec, superframe_spec};

    fn task(spec: &FrameSpec, offload: &Offload) -> Result<Task, OffloadError> {
        let frame = spec.build_unfinished();
        Task::of(offload, &frame, frame.len())
    }

    #[test]
    fn nothing_to_do_is_never_an_error() {
        assert_eq!(Task::of(&Offload::NONE, &[], 0), Ok(Task::Nothing));
    }

    #[test]
    fn a_kind_fits_its_own_frames_only() {
        use Segmentation::{Tcp4, Tcp6, Udp4, Udp6};
        let kinds =
            [(Tcp4, false, false), (Tcp6, true, false), (Udp4, false, true), (Udp6, true, true)];
        for (named, ..) in kinds {
            for (fitting, v6, udp) in kinds {
                let spec = FrameSpec { v6, udp, payload: vec![0; 100], ..FrameSpec::default() };
                let offload =
                    Offload { segmentation: named, segment_size: 40, ..Offload::CHECKSUM };
                let expected = if named == fitting {
                    Ok(3)
                } else {
                    Err(OffloadError::WrongKind { named, fitting })
                };
                let count = task(&spec, &offload).map(|task| match task {
                    Task::Cut(superframe) => superframe.segment_count(),
                    other => panic!("{other:?}"),
                });
                assert_eq!(count, expected);
            }
        }
    }

    #[test]
    fn bounds_of_the_segment_size() {
        let tcp = FrameSpec { payload: vec![0; 1000], ..FrameSpec::default() };
        let udp = FrameSpec { udp: true, ..tcp.clone() };
        for (spec, size, fits) in [
            (&tcp, 0, false),
            (&tcp, 7, false),
            (&tcp, 8, true),
            (&tcp, 0xfffe, true),
            (&tcp, 0xffff, false),
            (&udp, 0, false),
            (&udp, 7, false),
            (&udp, 8, true),
            (&udp, 0xffff, false),
        ] {
            let offload = Offload { segment_size: size, ..spec.offload(1) };
            assert_eq!(task(spec, &offload).is_ok(), fits, "{size} {offload:?}");
        }
        let too_many = OffloadError::TooManySegments { segments: 143 };
        assert_eq!(task(&udp, &udp.offload(7)), Err(too_many));
    }

    #[test]
    fn flags_that_contradict_are_refused() {
        let udp = FrameSpec { udp: true, payload: vec![0; 100], ..FrameSpec::default() };
        let offload = udp.offload(10);
        assert_eq!(task(&udp, &Offload { ecn: true, ..offload }), Err(OffloadError::EcnWithoutTcp));
        let finished = Offload { needs_checksum: false, ..offload };
        assert_eq!(task(&udp, &finished), Err(OffloadError::ChecksumRequired));
    }

    #[test]
    fn lengths_must_agree() {
        let spec = FrameSpec { udp: true, payload: vec![0; 100], ..FrameSpec::default() };
        let offload = spec.offload(10);
        let mut frame = spec.build_unfinished();
        let length = frame.len();
        frame.push(0);
        assert_eq!(
            Task::of(&offload, &frame, length + 1),
            Err(OffloadError::Length { field: "IP", stated: length, actual: length + 1 })
        );
        frame.pop();
        write_u16(&mut frame, 38, 107);
        assert_eq!(
            Task::of(&offload, &frame, length),
            Err(OffloadError::Length { field: "UDP", stated: 107, actual: 108 })
        );
    }

    #[test]
    fn one_segment_is_no_superframe() {
        for length in [0, 1, 100] {
            let spec = FrameSpec { payload: vec![0; length], ..FrameSpec::default() };
            assert!(matches!(task(&spec, &spec.offload(100)), Ok(Task::Checksum(_))));
        }
        let spec = FrameSpec { payload: vec![0; 101], ..FrameSpec::default() };
        assert!(matches!(task(&spec, &spec.offload(100)), Ok(Task::Cut(_))));
    }

    proptest! {
        #[test]
        fn the_head_alone_gives_the_same((spec, size) in superframe_spec()) {
            let frame = spec.build_unfinished();
            let offload = spec.offload(size);
            let Ok(Task::Cut(whole)) = Task::of(&offload, &frame, frame.len()) else { panic!() };
            let head = &frame[..whole.header_length()];
            prop_assert_eq!(Task::of(&offload, head, frame.len()), Ok(Task::Cut(whole)));
        }
    }
}
