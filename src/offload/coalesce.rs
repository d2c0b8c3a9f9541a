//! Merging consecutive frames of a flow into a superframe, so that one write
//! brings many of them to the LAN: GRO in user space, by the rules of
//! `tcp_gro_receive`, `udp_gro_receive` and `inet_gro_receive` (kernel net/ipv4).
//!
//! What [`segment`](super::segment) or a kernel makes of the superframe are the very frames that
//! were merged, byte for byte. So a frame is merged only if all that its headers say
//! follows from the first frame's: lengths, sequence number, IPv4 id; FIN
//! and PSH end a superframe. And only if its checksums were right: a damaged frame
//! goes on alone, damaged.
//!
//! One thing changes, as with the kernel's GRO for UDP: a flow whose IPv4 packets
//! all have the same id and may not be fragmented (DF) leaves with ids that
//! count. Nobody may look at those (RFC 6864 section 4.1), and a `virtio_net_hdr`
//! cannot ask for a fixed id (`SKB_GSO_TCP_FIXEDID`).
//!
//! ```text
//! frames     | headers 1 | payload | headers 2 | payload | headers 3 | payl |
//! superframe | headers   | payload · payload · payl |
//! ```

use std::ops::Range;

use super::{
    Offload, Segmentation, checksum,
    headers::{Headers, IPV6_HEADER_LENGTH, L3, L4, read_u16, write_u16},
    superframe::MIN_TCP_SEGMENT_SIZE,
};
use crate::wire::ethernet::{HEADER_LENGTH, MAX_TAGS, TAG_LENGTH};

/// Longest frame that is merged, bytes: one of a 1500-byte LAN, tags included.
/// Copying longer ones costs what their writes would, and no NIC chokes on segments
/// of this size, whatever its MTU.
pub const MERGED_FRAME_LENGTH_MAX: usize = 1500 + HEADER_LENGTH + MAX_TAGS * TAG_LENGTH;

/// Longest superframe, bytes: its IP packet's length fits its field.
pub const SUPERFRAME_LENGTH_MAX: usize = 65_535;

/// Most datagrams in a UDP superframe (`UDP_MAX_SEGMENTS` before Linux 6.10).
pub const UDP_FRAMES_MAX: u32 = 64;

/// Flows of which a superframe may be under construction at once.
pub const FLOWS: usize = 8;

/// Superframes under construction, at most one per flow, for places of type `P`
/// that frames go to.
///
/// Frames of a flow keep their order, and any frame that is neither TCP nor UDP
/// stays behind all that came before it.
#[derive(Debug)]
pub struct Coalescer<P> {
    slots: [Slot<P>; FLOWS],
    /// Flows of the slots in use.
    flows: [u32; FLOWS],
    /// Slots in use, a bit each.
    used: u32,
    /// Which one makes room where all are in use.
    next_victim: usize,
}

/// What leaves a [`Coalescer`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Coalesced<'a, P> {
    /// Where it goes.
    pub place: P,
    /// What is left to do on it.
    pub offload: Offload,
    /// The frame.
    pub frame: &'a [u8],
    /// How many frames it was made of; as it came where that is 1.
    pub merged: u32,
}

impl<P: Copy + PartialEq> Default for Coalescer<P> {
    fn default() -> Self {
        let slots = std::array::from_fn(|_| Slot::default());
        Self { slots, flows: [0; FLOWS], used: 0, next_victim: 0 }
    }
}

impl<P: Copy + PartialEq> Coalescer<P> {
    /// Takes a frame for `place`. What must leave now is handed to `emit`: this frame,
    /// what was held before it, both or neither.
    // HOT PATH
    #[inline]
    pub fn offer(
        &mut self,
        place: P,
        offload: &Offload,
        frame: &[u8],
        emit: &mut impl FnMut(Coalesced<'_, P>),
    ) {
        let alone = Coalesced { place, offload: *offload, frame, merged: 1 };
        let may_merge = may_merge(offload, frame);
        if !may_merge && self.used == 0 {
            return emit(alone);
        }
        let Some(headers) = flow_headers(frame) else {
            self.flush(emit);
            return emit(alone);
        };
        let flow = flow_hash(frame, &headers);
        let segment = may_merge.then(|| Segment::check(offload, frame, &headers)).flatten();
        if let Some(index) = self.find(flow) {
            let slot = &mut self.slots[index];
            let is_appended = segment.is_some_and(|segment| slot.append(place, &segment, frame));
            if !is_appended || slot.is_complete() {
                self.flush_slot(index, emit);
            }
            if is_appended {
                return;
            }
        }
        match segment.filter(Segment::may_be_first) {
            Some(segment) => {
                let index = self.vacate(emit);
                self.slots[index].begin(place, offload, segment, frame);
                self.flows[index] = flow;
                self.used |= 1 << index;
            }
            None => emit(alone),
        }
    }

    /// The slot in use of a flow, or of one with the same hash.
    fn find(&self, flow: u32) -> Option<usize> {
        (0..FLOWS).find(|index| self.flows[*index] == flow && self.used >> index & 1 == 1)
    }

    /// A slot that is not in use.
    fn vacate(&mut self, emit: &mut impl FnMut(Coalesced<'_, P>)) -> usize {
        let unused = self.used.trailing_ones() as usize;
        if unused < FLOWS {
            return unused;
        }
        let victim = self.next_victim;
        self.next_victim = (victim + 1) % FLOWS;
        self.flush_slot(victim, emit);
        victim
    }

    /// Hands all that is held to `emit`: the end of a burst.
    #[inline]
    pub fn flush(&mut self, emit: &mut impl FnMut(Coalesced<'_, P>)) {
        while self.used != 0 {
            self.flush_slot(self.used.trailing_zeros() as usize, emit);
        }
    }

    fn flush_slot(&mut self, index: usize, emit: &mut impl FnMut(Coalesced<'_, P>)) {
        self.used &= !(1 << index);
        if let Some(run) = self.slots[index].run.take() {
            emit(run.finish(&mut self.slots[index].buffer));
        }
    }
}

/// What can be told without reading much of the frame.
fn may_merge(offload: &Offload, frame: &[u8]) -> bool {
    // A reflected broadcast is recognised by its bytes: those stay single.
    let is_group = frame.first().is_none_or(|octet| octet & 1 != 0);
    offload.segmentation == Segmentation::None
        && frame.len() <= MERGED_FRAME_LENGTH_MAX
        && !is_group
}

/// The headers of a frame that belongs to a flow of TCP or UDP.
fn flow_headers(frame: &[u8]) -> Option<Headers> {
    Headers::parse(frame).ok().filter(|headers| matches!(headers.l4, L4::Tcp | L4::Udp))
}

/// A number for addresses and ports. Two flows with the same one only hinder each other.
fn flow_hash(frame: &[u8], headers: &Headers) -> u32 {
    let word = |at: usize| frame[at..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
    let (source, destination) = match headers.l3 {
        L3::V4 => (headers.l3_offset + 12, headers.l3_offset + 16),
        L3::V6 => (headers.l3_offset + 20, headers.l3_offset + 36),
    };
    word(source) ^ word(destination).rotate_left(16) ^ word(headers.l4_offset).rotate_left(8)
}

/// A frame that may be a segment of a superframe: whole, with right checksums,
/// and with nothing in its headers that a superframe cannot repeat.
#[derive(Clone, Copy, Debug)]
struct Segment {
    headers: Headers,
    /// TCP's sequence number; 0 for UDP.
    sequence: u32,
    /// IPv4's id; 0 for IPv6.
    id: u16,
    /// DF is set: nobody reads the id.
    is_atomic: bool,
    /// FIN and PSH.
    last_flags: u8,
}

const FIN_PSH: u8 = 0x01 | 0x08;
const ECE: u8 = 0x40;
const ACK: u8 = 0x10;
const FLAGS_OFFSET: usize = 13;

impl Segment {
    fn check(offload: &Offload, frame: &[u8], headers: &Headers) -> Option<Self> {
        let Headers { l3_offset, l3, l4_offset, l4, payload_offset, end } = *headers;
        if payload_offset == end || end != frame.len() {
            return None;
        }
        let (id, is_atomic) = match l3 {
            L3::V4 => check_ipv4(&frame[l3_offset..l4_offset])?,
            L3::V6 if l4_offset - l3_offset == IPV6_HEADER_LENGTH => (0, false),
            L3::V6 => return None,
        };
        let packet = &frame[l4_offset..];
        let (sequence, last_flags) = match l4 {
            L4::Tcp if packet[FLAGS_OFFSET] & !(FIN_PSH | ECE) == ACK => {
                let sequence = u32::from_be_bytes([packet[4], packet[5], packet[6], packet[7]]);
                (sequence, packet[FLAGS_OFFSET] & FIN_PSH)
            }
            L4::Udp if usize::from(read_u16(packet, 4)) == packet.len() => (0, 0),
            _ => return None,
        };
        let pseudo_header = checksum::pseudo_header(frame, headers);
        let field = read_u16(packet, l4.checksum_offset()?);
        let is_right = match (offload.needs_checksum, l4, field) {
            (true, ..) => field == pseudo_header,
            // None at all, and the zero that nobody writes so.
            (false, L4::Udp, 0) | (false, L4::Tcp, 0xffff) => false,
            (false, ..) => checksum::add(pseudo_header, checksum::sum(packet)) == 0xffff,
        };
        is_right.then_some(Self { headers: *headers, sequence, id, is_atomic, last_flags })
    }

    const fn payload_length(&self) -> usize {
        self.headers.end - self.headers.payload_offset
    }

    /// Others may follow it in a superframe.
    fn may_be_first(&self) -> bool {
        self.last_flags == 0
            && (self.headers.l4 == L4::Udp
                || self.payload_length() >= usize::from(MIN_TCP_SEGMENT_SIZE))
    }
}

/// The id of an IPv4 header and whether DF is set; `None` where it has options or
/// a checksum that is wrong or, for 0, written as nobody does.
fn check_ipv4(header: &[u8]) -> Option<(u16, bool)> {
    let is_right = read_u16(header, 10) != 0xffff && checksum::sum(header) == 0xffff;
    let is_atomic = header[6] & 0x40 != 0;
    (header.len() == 20 && is_right).then(|| (read_u16(header, 4), is_atomic))
}

/// Whether two frames with headers at the same places agree in all that a superframe
/// states once for its segments.
fn agree(a: &[u8], b: &[u8], headers: &Headers) -> bool {
    let same = |range: Range<usize>| a[range.clone()] == b[range];
    let Headers { l3_offset: l3, l4_offset: l4, payload_offset, .. } = *headers;
    // But for length, id and checksum.
    let network = match headers.l3 {
        L3::V4 => same(0..l3 + 2) && same(l3 + 6..l3 + 10) && same(l3 + 12..l4 + 4),
        L3::V6 => same(0..l3 + 4) && same(l3 + 6..l4 + 4),
    };
    // But for sequence number, FIN, PSH and checksum; for UDP its length and checksum.
    network
        && (headers.l4 == L4::Udp
            || (same(l4 + 8..l4 + FLAGS_OFFSET)
                && (a[l4 + FLAGS_OFFSET] ^ b[l4 + FLAGS_OFFSET]) & !FIN_PSH == 0
                && same(l4 + 14..l4 + 16)
                && same(l4 + 18..payload_offset)))
}

/// Room for one superframe.
#[derive(Debug)]
struct Slot<P> {
    run: Option<Run<P>>,
    /// Starts with the run's first frame as it came.
    buffer: Box<[u8]>,
}

/// Frames merged so far.
#[derive(Clone, Copy, Debug)]
struct Run<P> {
    place: P,
    /// The first frame, and how it came.
    first: Segment,
    offload: Offload,
    merged: u32,
    /// Bytes in the buffer.
    length: usize,
    /// All IPv4 ids are the same, rather than counting.
    has_fixed_id: bool,
    /// FIN and PSH of the last frame.
    last_flags: u8,
    /// The last frame was shorter than the first.
    has_short_end: bool,
}

impl<P> Default for Slot<P> {
    fn default() -> Self {
        Self { run: None, buffer: vec![0; SUPERFRAME_LENGTH_MAX].into_boxed_slice() }
    }
}

impl<P: Copy + PartialEq> Slot<P> {
    fn begin(&mut self, place: P, offload: &Offload, first: Segment, frame: &[u8]) {
        self.buffer[..frame.len()].copy_from_slice(frame);
        self.run = Some(Run {
            place,
            first,
            offload: *offload,
            merged: 1,
            length: frame.len(),
            has_fixed_id: false,
            last_flags: 0,
            has_short_end: false,
        });
    }

    /// Appends the payload of `frame` if it continues the run.
    fn append(&mut self, place: P, segment: &Segment, frame: &[u8]) -> bool {
        let Some(run) = &mut self.run else { return false };
        let payload = &frame[segment.headers.payload_offset..];
        let end = run.length + payload.len();
        if run.place != place
            || end > self.buffer.len()
            || !run.continues_with(segment)
            || !agree(frame, &self.buffer, &segment.headers)
        {
            return false;
        }
        self.buffer[run.length..end].copy_from_slice(payload);
        run.length = end;
        run.merged += 1;
        run.has_fixed_id = segment.id == run.first.id;
        run.last_flags = segment.last_flags;
        run.has_short_end = payload.len() < run.first.payload_length();
        true
    }

    /// Nothing can follow.
    fn is_complete(&self) -> bool {
        self.run.as_ref().is_some_and(|run| {
            run.has_short_end
                || run.last_flags != 0
                || (run.first.headers.l4 == L4::Udp && run.merged == UDP_FRAMES_MAX)
        })
    }
}

impl<P: Copy> Run<P> {
    /// Whether places, lengths and numbers are those of the next segment.
    fn continues_with(&self, segment: &Segment) -> bool {
        let (first, next) = (&self.first.headers, &segment.headers);
        let are_alike = (first.l3_offset, first.l3, first.l4_offset, first.l4)
            == (next.l3_offset, next.l3, next.l4_offset, next.l4)
            && first.payload_offset == next.payload_offset;
        let payload_so_far = (self.length - first.payload_offset) as u32;
        let follows = first.l4 == L4::Udp
            || segment.sequence == self.first.sequence.wrapping_add(payload_so_far);
        let id_counts = match segment.id.wrapping_sub(self.first.id) {
            _ if first.l3 == L3::V6 => true,
            0 => segment.is_atomic && (self.merged == 1 || self.has_fixed_id),
            ahead => u32::from(ahead) == self.merged && !self.has_fixed_id,
        };
        are_alike && follows && id_counts && segment.payload_length() <= self.first.payload_length()
    }

    /// The superframe; the frame as it came where it is the only one.
    fn finish(self, buffer: &mut [u8]) -> Coalesced<'_, P> {
        let Self { place, offload, merged, length, .. } = self;
        let frame = &mut buffer[..length];
        if merged == 1 {
            return Coalesced { place, offload, frame, merged };
        }
        let headers = Headers { end: length, ..self.first.headers };
        let Headers { l3_offset, l4_offset, .. } = headers;
        match headers.l3 {
            L3::V4 => {
                let packet = &mut frame[l3_offset..];
                write_u16(packet, 2, packet.len() as u16);
                write_u16(packet, 10, 0);
                write_u16(packet, 10, !checksum::sum(&packet[..l4_offset - l3_offset]));
            }
            L3::V6 => {
                write_u16(frame, l3_offset + 4, (length - l3_offset - IPV6_HEADER_LENGTH) as u16)
            }
        }
        if headers.l4 == L4::Tcp {
            frame[l4_offset + FLAGS_OFFSET] |= self.last_flags;
        } else {
            write_u16(frame, l4_offset + 4, (length - l4_offset) as u16);
        }
        let pseudo_header = checksum::pseudo_header(frame, &headers);
        let field = headers.l4.checksum_offset().unwrap_or_default();
        write_u16(frame, l4_offset + field, pseudo_header);
        let offload = Offload {
            segmentation: Segmentation::of(headers.l3, headers.l4),
            segment_size: self.first.payload_length() as u16,
            ..Offload::CHECKSUM
        };
        Coalesced { place, offload, frame, merged }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*, sample::Index};

    use super::*;
    use crate::{
        offload::fixtures::{FrameSpec, segments},
        wire::ethernet::VlanTag,
    };

    /// What leaves: place, descriptor, bytes, frames merged.
    type Leaving = Vec<(u8, Offload, Vec<u8>, u32)>;

    /// Everything that leaves when `frames` come as one burst.
    fn coalesce(frames: &[(u8, Offload, Vec<u8>)]) -> Leaving {
        let mut leaving = Leaving::new();
        let mut emit = |it: Coalesced<'_, u8>| {
            leaving.push((it.place, it.offload, it.frame.to_vec(), it.merged));
        };
        let mut coalescer = Coalescer::default();
        for (place, offload, frame) in frames {
            coalescer.offer(*place, offload, frame, &mut emit);
        }
        coalescer.flush(&mut emit);
        coalescer.flush(&mut |_| panic!("a flushed coalescer holds nothing"));
        leaving
    }

    /// The same for finished frames to one place: how many were merged each time.
    fn merged(frames: &[Vec<u8>]) -> Vec<u32> {
        let frames: Vec<_> = frames.iter().map(|frame| (0, Offload::NONE, frame.clone())).collect();
        coalesce(&frames).iter().map(|(.., merged)| *merged).collect()
    }

    fn kinds() -> [FrameSpec; 4] {
        [(false, false), (true, false), (false, true), (true, true)].map(|(v6, udp)| FrameSpec {
            v6,
            udp,
            payload: vec![0x5a; 100],
            ..FrameSpec::default()
        })
    }

    /// The frame that continues a flow of frames with 100 bytes of payload each.
    fn nth(spec: &FrameSpec, number: u16) -> FrameSpec {
        FrameSpec {
            id: spec.id.wrapping_add(number),
            sequence: spec.sequence.wrapping_add(100 * u32::from(number)),
            ..spec.clone()
        }
    }

    /// `frame` with its byte at `at` changed and all checksums right again.
    fn changed(mut frame: Vec<u8>, at: usize, change: u8) -> Vec<u8> {
        frame[at] ^= change;
        let headers = Headers::parse(&frame).expect("still a frame");
        if headers.l3 == L3::V4 {
            let header = &mut frame[headers.l3_offset..headers.l4_offset];
            write_u16(header, 10, 0);
            write_u16(header, 10, !checksum::sum(header));
        }
        let at = headers.l4_offset + headers.l4.checksum_offset().expect("TCP or UDP");
        let pseudo_header = checksum::pseudo_header(&frame, &headers);
        write_u16(&mut frame, at, pseudo_header);
        checksum::complete(&mut frame).expect("TCP or UDP");
        frame
    }

    #[test]
    fn a_lone_frame_leaves_as_it_came() {
        for spec in kinds() {
            let (finished, unfinished) = (spec.build(), spec.build_unfinished());
            let frames = [(7, Offload::CHECKSUM, unfinished.clone())];
            assert_eq!(coalesce(&frames), [(7, Offload::CHECKSUM, unfinished, 1)]);
            let frames = [(7, Offload::NONE, finished.clone())];
            assert_eq!(coalesce(&frames), [(7, Offload::NONE, finished, 1)]);
        }
    }

    #[test]
    fn a_run_is_what_a_kernel_would_have_made() {
        for spec in kinds() {
            let whole = FrameSpec { flags: 0x19, payload: vec![0x5a; 350], ..spec };
            let frames: Vec<_> = whole
                .expected_segments(100)
                .into_iter()
                .map(|frame| (0, Offload::NONE, frame))
                .collect();
            assert_eq!(
                coalesce(&frames),
                [(0, whole.offload(100), whole.build_unfinished(), 4)],
                "{whole:?}"
            );
        }
    }

    #[test]
    fn finished_and_unfinished_frames_mix() {
        for spec in kinds() {
            let frames = [
                (0, Offload::CHECKSUM, nth(&spec, 0).build_unfinished()),
                (0, Offload::NONE, nth(&spec, 1).build()),
                (0, Offload::CHECKSUM, nth(&spec, 2).build_unfinished()),
            ];
            let whole = FrameSpec { payload: vec![0x5a; 300], ..spec };
            let superframe = whole.build_unfinished();
            assert_eq!(coalesce(&frames), [(0, whole.offload(100), superframe, 3)]);
        }
    }

    #[test]
    fn what_differs_is_not_merged() {
        for spec in kinds() {
            let tags = vec![VlanTag { tpid: VlanTag::CUSTOMER, tci: 100 }];
            let spec = FrameSpec { tags, tcp_options: 3, ..spec };
            let first = nth(&spec, 0).build();
            let second = nth(&spec, 1).build();
            assert_eq!(merged(&[first.clone(), second.clone()]), [2]);
            let headers = Headers::parse(&second).unwrap();
            let Headers { l3_offset: l3, l4_offset: l4, payload_offset, .. } = headers;
            // Addresses and tag but for the group bit; ToS, TTL or hop limit, DF,
            // addresses; ports; all of TCP but for lengths, FIN and PSH.
            let mut places: Vec<_> = (1..12).chain([14, 15]).chain(l4..l4 + 4).collect();
            places.extend(match headers.l3 {
                L3::V4 => [l3 + 1, l3 + 8, l3 + 12, l3 + 19],
                L3::V6 => [l3 + 1, l3 + 7, l3 + 8, l3 + 39],
            });
            if headers.l4 == L4::Tcp {
                places.extend(
                    (l4 + 4..l4 + 12).chain([l4 + 14, l4 + 18]).chain(l4 + 20..payload_offset),
                );
                places.push(l4 + 15);
            }
            for at in places {
                let other = changed(second.clone(), at, 0x10);
                assert_eq!(merged(&[first.clone(), other]), [1, 1], "byte {at} of {spec:?}");
            }
            for frames in [[(0, first.clone()), (1, second.clone())], [(1, first), (0, second)]] {
                let frames = frames.map(|(place, frame)| (place, Offload::NONE, frame));
                assert_eq!(coalesce(&frames).len(), 2, "places differ");
            }
        }
    }

    #[test]
    fn only_data_with_ack_is_merged_and_fin_and_psh_end_it() {
        let spec = &kinds()[0];
        let after = |flags: u8| {
            let second = FrameSpec { flags, ..nth(spec, 1) };
            merged(&[nth(spec, 0).build(), second.build(), nth(spec, 2).build()])
        };
        assert_eq!(after(0x10), [3]);
        for flags in [0x18, 0x11, 0x19] {
            assert_eq!(after(flags), [2, 1], "{flags:#x}");
        }
        for flags in [0x00, 0x12, 0x14, 0x30, 0x50, 0x90] {
            assert_eq!(after(flags), [1, 1, 1], "{flags:#x}");
        }
        let ece = |number| FrameSpec { flags: 0x50, ..nth(spec, number) }.build();
        assert_eq!(merged(&[ece(0), ece(1)]), [2]);
        let pure_ack = FrameSpec { payload: Vec::new(), ..nth(spec, 1) };
        assert_eq!(merged(&[nth(spec, 0).build(), pure_ack.build(), nth(spec, 1).build()]), [1; 3]);
    }

    #[test]
    fn damage_stays_visible() {
        for spec in kinds() {
            let good = [0, 1, 2].map(|number| nth(&spec, number).build());
            for at in 14..good[1].len() {
                let mut damaged = good.clone();
                damaged[1][at] ^= 4;
                let frames = damaged.clone().map(|frame| (0, Offload::NONE, frame));
                let leaving = coalesce(&frames);
                let is_alone = |(.., bytes, merged): &(u8, Offload, Vec<u8>, u32)| {
                    *merged == 1 && *bytes == damaged[1]
                };
                assert!(leaving.iter().any(is_alone), "byte {at} of {spec:?}: {leaving:?}");
            }
        }
    }

    #[test]
    fn a_udp_datagram_without_checksum_stays_alone() {
        let spec = &kinds()[2];
        let frames = [0, 1].map(|number| {
            let mut frame = nth(spec, number).build();
            write_u16(&mut frame, 40, 0);
            frame
        });
        assert_eq!(merged(&frames), [1, 1]);
    }

    #[test]
    fn options_fragments_padding_and_groups_stay_alone() {
        for spec in kinds() {
            let options = FrameSpec { ip_options: 1, ..spec.clone() };
            assert_eq!(merged(&[0, 1].map(|number| nth(&options, number).build())), [1, 1]);
            let alone = |change: fn(&mut Vec<u8>)| {
                let frames = [0, 1].map(|number| {
                    let mut frame = nth(&spec, number).build();
                    change(&mut frame);
                    frame
                });
                assert_eq!(merged(&frames), [1, 1], "{spec:?}");
            };
            alone(|frame| frame.push(0));
            alone(|frame| frame[0] |= 1);
            if !spec.v6 {
                alone(|frame| {
                    frame[20] = 0x20;
                    write_u16(frame, 24, 0);
                    let sum = !checksum::sum(&frame[14..34]);
                    write_u16(frame, 24, sum);
                });
            }
        }
    }

    #[test]
    fn superframes_have_bounds() {
        for spec in kinds() {
            let frames: Vec<_> = (0..1000).map(|number| nth(&spec, number).build()).collect();
            let merged = merged(&frames);
            assert_eq!(merged.iter().sum::<u32>(), 1000);
            let headers = Headers::parse(&frames[0]).unwrap();
            let most = match headers.l4 {
                L4::Udp => UDP_FRAMES_MAX,
                _ => ((SUPERFRAME_LENGTH_MAX - headers.payload_offset) / 100) as u32,
            };
            assert_eq!(merged[0], most);
        }
    }

    /// Linux gives packets that may not be fragmented id 0 on unconnected sockets.
    #[test]
    fn fixed_ids_are_merged_where_nobody_may_look_at_them() {
        let spec = &kinds()[2];
        let fixed = FrameSpec { id: 0, ..spec.clone() }.build();
        assert_eq!(merged(&[fixed.clone(), fixed.clone(), fixed.clone()]), [3]);
        let one = FrameSpec { id: 1, ..spec.clone() }.build();
        assert_eq!(merged(&[fixed.clone(), fixed.clone(), one.clone()]), [2, 1]);
        assert_eq!(merged(&[fixed.clone(), one, fixed.clone()]), [2, 1]);
        let fragmentable = changed(fixed, 20, 0x40);
        assert_eq!(merged(&[fragmentable.clone(), fragmentable]), [1, 1]);
    }

    #[test]
    fn as_many_flows_as_there_is_room_for_do_not_hinder_each_other() {
        let interleaved = |count: u16| {
            let frame = |number: u16| {
                move |flow: u16| {
                    let spec = FrameSpec { source_port: 5001 + flow, ..kinds()[3].clone() };
                    nth(&spec, number).build()
                }
            };
            let frames: Vec<_> = (0..4).flat_map(|number| (0..count).map(frame(number))).collect();
            merged(&frames)
        };
        assert_eq!(interleaved(FLOWS as u16), [4; FLOWS]);
        assert_eq!(interleaved(FLOWS as u16 + 1), [1; 4 * (FLOWS + 1)]);
    }

    #[test]
    fn others_wait_for_all_that_came_before() {
        let arp = [&[2; 12][..], &[8, 6], &[0; 46]].concat();
        let frames: Vec<Vec<u8>> =
            kinds().iter().map(FrameSpec::build).chain([arp.clone()]).collect();
        let burst: Vec<_> = frames.iter().map(|frame| (0, Offload::NONE, frame.clone())).collect();
        assert_eq!(coalesce(&burst).last().unwrap().2, arp);
    }

    /// What happens to a flow next.
    #[derive(Clone, Debug)]
    struct Step {
        flow: Index,
        place: u8,
        payload: usize,
        flags: u8,
        gap: u32,
        id_step: u16,
        unfinished: bool,
        noise: Option<(Index, u8, bool)>,
        superframe: bool,
    }

    fn step() -> impl Strategy<Value = Step> {
        let mostly = |usual: u8, others: &'static [u8]| prop_oneof![6 => Just(usual), 1 => prop::sample::select(others)];
        let noise = prop_oneof![
            9 => Just(None),
            1 => any::<(Index, u8, bool)>().prop_map(Some),
        ];
        (
            (any::<Index>(), mostly(0, &[1]), prop_oneof![6 => Just(40usize), 1 => 0usize..60]),
            mostly(0x10, &[0x18, 0x11, 0x50, 0x90, 0x12, 0x02]),
            (
                prop_oneof![9 => Just(0u32), 1 => any::<u32>()],
                prop_oneof![9 => Just(1u16), 1 => 2u16..],
            ),
            (any::<bool>(), noise, prop::bool::weighted(0.05)),
        )
            .prop_map(
                |(
                    (flow, place, payload),
                    flags,
                    (gap, id_step),
                    (unfinished, noise, superframe),
                )| Step {
                    flow,
                    place,
                    payload,
                    flags,
                    gap,
                    id_step,
                    unfinished,
                    noise,
                    superframe,
                },
            )
    }

    fn flow() -> impl Strategy<Value = FrameSpec> {
        let tag = any::<u16>().prop_map(|tci| VlanTag { tpid: VlanTag::CUSTOMER, tci });
        (any::<(bool, bool, u16, u32)>(), vec(tag, 0..2), 0..2u16, 0..2u8).prop_map(
            |((v6, udp, id, sequence), tags, port, tcp_options)| FrameSpec {
                v6,
                udp,
                id,
                sequence,
                tags,
                tcp_options,
                source_port: 5001 + port,
                ..FrameSpec::default()
            },
        )
    }

    /// Lets `step` happen to `spec`: what comes.
    fn frame_of(spec: &mut FrameSpec, step: &Step) -> (u8, Offload, Vec<u8>) {
        spec.id = spec.id.wrapping_add(step.id_step);
        spec.sequence = spec.sequence.wrapping_add(step.gap);
        let length = if step.superframe { 500 } else { step.payload };
        let payload = (0..length).map(|at| (at as u32 ^ spec.sequence) as u8).collect();
        let sent = FrameSpec { flags: step.flags, payload, ..spec.clone() };
        spec.sequence = spec.sequence.wrapping_add(length as u32);
        if step.superframe {
            spec.id = spec.id.wrapping_add(9);
            return (step.place, sent.offload(50), sent.build_unfinished());
        }
        if let Some((at, change, mend)) = step.noise {
            let frame = sent.build();
            let at = at.index(frame.len());
            let mut damaged = frame.clone();
            damaged[at] ^= change;
            let mendable =
                mend && Headers::parse(&damaged).is_ok_and(|h| h.l4.checksum_offset().is_some());
            let frame = if mendable { changed(frame, at, change) } else { damaged };
            return (step.place, Offload::NONE, frame);
        }
        match step.unfinished {
            true => (step.place, Offload::CHECKSUM, sent.build_unfinished()),
            false => (step.place, Offload::NONE, sent.build()),
        }
    }

    /// Finished frames by what orders them: place, flow.
    fn by_flow<'a>(
        frames: impl Iterator<Item = (u8, &'a Offload, &'a [u8])>,
    ) -> BTreeMap<(u8, Vec<u8>), Vec<Vec<u8>>> {
        let mut flows = BTreeMap::<_, Vec<_>>::new();
        for (place, offload, frame) in frames {
            for frame in segments(frame, offload) {
                let flow = flow_headers(&frame).map_or_else(Vec::new, |headers| {
                    let addresses = match headers.l3 {
                        L3::V4 => 12..20,
                        L3::V6 => 8..40,
                    };
                    let network = &frame[headers.l3_offset..headers.l4_offset];
                    [&network[addresses], &frame[headers.l4_offset..][..4]].concat()
                });
                flows.entry((place, flow)).or_default().push(frame);
            }
        }
        flows
    }

    proptest! {
        /// Whatever comes leaves byte for byte, each flow in its order.
        #[test]
        fn segments_are_the_frames_that_were_merged(
            mut flows in vec(flow(), 1..4), steps in vec(step(), 1..120),
        ) {
            let frames: Vec<_> = steps
                .iter()
                .map(|step| {
                    let index = step.flow.index(flows.len());
                    frame_of(&mut flows[index], step)
                })
                .collect();
            let leaving = coalesce(&frames);
            let came = by_flow(frames.iter().map(|(place, offload, frame)| (*place, offload, &frame[..])));
            let left = by_flow(leaving.iter().map(|(place, offload, frame, _)| (*place, offload, &frame[..])));
            prop_assert_eq!(came, left);
            prop_assert_eq!(leaving.iter().map(|(.., merged)| *merged as usize).sum::<usize>(), frames.len());
            for (_, offload, frame, merged) in leaving.iter().filter(|(.., merged)| *merged > 1) {
                prop_assert_eq!(segments(frame, offload).len(), *merged as usize);
            }
        }

        #[test]
        fn any_frame_is_survived(frames in vec(vec(any::<u8>(), 0..80), 0..10)) {
            let frames: Vec<_> = frames.into_iter().map(|frame| (0, Offload::CHECKSUM, frame)).collect();
            prop_assert_eq!(coalesce(&frames).len(), frames.len());
        }
    }
}
