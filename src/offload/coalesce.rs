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
mod tests;
