//! Frames for the tests of this module, built by etherparse: the referee.

use etherparse::{
    IpDscp, IpHeaders, IpNumber, Ipv4Header, Ipv4Options, Ipv6Extensions, Ipv6Header,
    Ipv6RawExtHeader, PacketBuilder, TcpHeader,
};
use proptest::{collection::vec, prelude::*};

use super::{
    Offload, Segmentation, checksum,
    headers::{Headers, L3, L4, write_u16},
    segment::segment,
};
use crate::wire::ethernet::VlanTag;

/// A TCP or UDP frame. The default is TCP over IPv4 without tags or options.
#[derive(Clone, Debug)]
pub(crate) struct FrameSpec {
    pub(crate) v6: bool,
    pub(crate) udp: bool,
    pub(crate) tags: Vec<VlanTag>,
    /// IPv4 options in 4 bytes, 0 to 10; IPv6 hop-by-hop options if not 0.
    pub(crate) ip_options: u8,
    /// TCP options in 4 bytes, 0 to 10.
    pub(crate) tcp_options: u8,
    pub(crate) flags: u8,
    pub(crate) id: u16,
    pub(crate) sequence: u32,
    pub(crate) source_port: u16,
    pub(crate) payload: Vec<u8>,
}

impl Default for FrameSpec {
    fn default() -> Self {
        Self {
            v6: false,
            udp: false,
            tags: Vec::new(),
            ip_options: 0,
            tcp_options: 0,
            flags: 0x10,
            id: 77,
            sequence: 0x1234_5678,
            source_port: 5001,
            payload: b"payload".to_vec(),
        }
    }
}

impl FrameSpec {
    /// The finished frame.
    pub(crate) fn build(&self) -> Vec<u8> {
        let builder =
            PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).ip(self.ip());
        let mut frame = Vec::new();
        if self.udp {
            builder.udp(self.source_port, 5002).write_to_vec(&mut frame, &self.payload).unwrap();
        } else {
            builder.tcp_header(self.tcp()).write_to_vec(&mut frame, &self.payload).unwrap();
        }
        for tag in self.tags.iter().rev() {
            let [a, b] = tag.tpid.to_be_bytes();
            let [c, d] = tag.tci.to_be_bytes();
            frame.splice(12..12, [a, b, c, d]);
        }
        frame
    }

    /// The frame with the pseudo-header sum for a checksum, as from a kernel.
    pub(crate) fn build_unfinished(&self) -> Vec<u8> {
        let mut frame = self.build();
        let headers = Headers::parse(&frame).unwrap();
        let at = headers.l4_offset + headers.l4.checksum_offset().unwrap();
        let pseudo_header = checksum::pseudo_header(&frame, &headers);
        write_u16(&mut frame, at, pseudo_header);
        frame
    }

    /// The descriptor that makes the frame a superframe.
    pub(crate) fn offload(&self, segment_size: u16) -> Offload {
        let segmentation = Segmentation::of(
            if self.v6 { L3::V6 } else { L3::V4 },
            if self.udp { L4::Udp } else { L4::Tcp },
        );
        Offload { segmentation, segment_size, ..Offload::CHECKSUM }
    }

    /// The segments, each built as a frame of its own.
    pub(crate) fn expected_segments(&self, segment_size: u16) -> Vec<Vec<u8>> {
        let chunks = self.payload.chunks(usize::from(segment_size));
        let last = chunks.len() - 1;
        let build = |(index, payload): (usize, &[u8])| {
            let start = index * usize::from(segment_size);
            let mut flags = self.flags;
            if index != 0 {
                flags &= !0x80;
            }
            if index != last {
                flags &= !0x09;
            }
            let part = Self {
                flags,
                id: self.id.wrapping_add(index as u16),
                sequence: self.sequence.wrapping_add(start as u32),
                payload: payload.to_vec(),
                ..self.clone()
            };
            part.build()
        };
        chunks.enumerate().map(build).collect()
    }

    fn ip(&self) -> IpHeaders {
        if self.v6 {
            let header = Ipv6Header {
                hop_limit: 64,
                source: [0xfd; 16],
                destination: [0xfc; 16],
                ..Ipv6Header::default()
            };
            let hop_by_hop =
                || Ipv6RawExtHeader::new_raw(IpNumber(0), &[1, 4, 0, 0, 0, 0]).unwrap();
            let extensions = Ipv6Extensions {
                hop_by_hop_options: (self.ip_options != 0).then(hop_by_hop),
                ..Ipv6Extensions::default()
            };
            return IpHeaders::Ipv6(header, extensions);
        }
        let mut options = Ipv4Options::new();
        if self.ip_options != 0 {
            let bytes = vec![1; usize::from(self.ip_options) * 4];
            options = Ipv4Options::try_from(&bytes[..]).unwrap();
        }
        let header = Ipv4Header {
            dscp: IpDscp::ZERO,
            identification: self.id,
            dont_fragment: true,
            time_to_live: 64,
            source: [10, 0, 0, 1],
            destination: [10, 0, 0, 2],
            options,
            ..Ipv4Header::default()
        };
        IpHeaders::Ipv4(header, Default::default())
    }

    fn tcp(&self) -> TcpHeader {
        let mut header = TcpHeader::new(self.source_port, 5002, self.sequence, 4096);
        header.acknowledgment_number = 99;
        let flag = |bit: u8| self.flags & bit != 0;
        header.fin = flag(0x01);
        header.syn = flag(0x02);
        header.rst = flag(0x04);
        header.psh = flag(0x08);
        header.ack = flag(0x10);
        header.urg = flag(0x20);
        header.ece = flag(0x40);
        header.cwr = flag(0x80);
        header.set_options_raw(&vec![1; usize::from(self.tcp_options) * 4]).unwrap();
        header
    }
}

/// What `segment` emits.
pub(crate) fn segments(frame: &[u8], offload: &Offload) -> Vec<Vec<u8>> {
    let mut emitted = Vec::new();
    let count =
        segment(frame, offload, &mut vec![0; 70_000], &mut |frame| emitted.push(frame.to_vec()));
    assert_eq!(count, Ok(emitted.len()));
    emitted
}

/// Any frame with a payload of `length` bytes.
pub(crate) fn frame_spec(length: std::ops::Range<usize>) -> impl Strategy<Value = FrameSpec> {
    let tag = (prop_oneof![Just(0x8100), Just(0x88a8), Just(0x9100)], any::<u16>())
        .prop_map(|(tpid, tci)| VlanTag { tpid, tci });
    (
        any::<(bool, bool)>(),
        vec(tag, 0..3),
        (prop_oneof![3 => Just(0u8), 1 => 1..=10u8], 0..=10u8),
        any::<(u8, u16, u32)>(),
        vec(any::<u8>(), length),
    )
        .prop_map(|(kind, tags, (ip_options, tcp_options), (flags, id, sequence), payload)| {
            let rest = FrameSpec::default();
            let (v6, udp) = kind;
            FrameSpec {
                v6,
                udp,
                tags,
                ip_options,
                tcp_options,
                flags,
                id,
                sequence,
                payload,
                ..rest
            }
        })
}

/// Any superframe that is cut into at least 2 segments, and its segment size.
pub(crate) fn superframe_spec() -> impl Strategy<Value = (FrameSpec, u16)> {
    (frame_spec(40..5000), any::<prop::sample::Index>()).prop_map(|(spec, index)| {
        let smallest = if spec.udp { spec.payload.len().div_ceil(128) } else { 8 };
        let size = smallest + index.index(spec.payload.len() - smallest);
        (spec, size as u16)
    })
}
