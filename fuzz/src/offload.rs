use landbridge::offload::{
    Offload, Segmentation, checksum,
    coalesce::{Coalesced, Coalescer},
    headers::{Headers, L3, L4},
    salvage::Salvage,
    segment::segment as cut,
    superframe::{MAX_UDP_SEGMENTS, Task},
    virtio::{from_kernel, to_kernel},
};

use crate::input::Input;

/// A descriptor, as a record may carry it.
pub(crate) fn offload(input: &mut Input<'_>) -> Offload {
    let [kind, flags] = input.array();
    let segmentation = match kind % 5 {
        0 => Segmentation::None,
        1 => Segmentation::Tcp4,
        2 => Segmentation::Tcp6,
        3 => Segmentation::Udp4,
        _ => Segmentation::Udp6,
    };
    let segment_size = input.u16();
    Offload { segmentation, ecn: flags & 1 != 0, segment_size, needs_checksum: flags & 2 == 0 }
}

/// The rest of the input as a frame; often with lengths and checksums put
/// right, which a fuzzer seldom guesses.
fn frame(input: &mut Input<'_>) -> Vec<u8> {
    let (mend, stretch) = (input.byte(), input.u16());
    let mut frame = input.rest().to_vec();
    if mend & 1 != 0 {
        frame.resize(frame.len() + usize::from(stretch), 0xa5);
        mend_lengths(&mut frame);
    }
    if let Ok(headers) = Headers::parse(&frame)
        && let Some(offset) = headers.l4.checksum_offset()
    {
        let sum = checksum::pseudo_header(&frame, &headers);
        write_u16(&mut frame, headers.l4_offset + offset, sum as usize);
        mend_ipv4_checksum(&mut frame, &headers);
    }
    frame
}

fn mend_ipv4_checksum(frame: &mut [u8], headers: &Headers) {
    if headers.l3 == L3::V4 {
        let header = &mut frame[headers.l3_offset..headers.l4_offset];
        header[10..12].fill(0);
        let sum = !checksum::sum(header);
        write_u16(header, 10, usize::from(sum));
    }
}

/// Makes IP and UDP lengths fit the frame.
fn mend_lengths(frame: &mut [u8]) {
    let Ok(ethernet) = landbridge::wire::ethernet::Frame::new_checked(frame) else { return };
    let (l3, ethertype) = (ethernet.payload_offset(), ethernet.ethertype());
    let length = frame.len() - l3;
    match ethertype {
        0x0800 if length >= 20 => write_u16(frame, l3 + 2, length.min(0xffff)),
        0x86dd if length >= 40 => write_u16(frame, l3 + 4, (length - 40).min(0xffff)),
        _ => return,
    }
    if let Ok(headers) = Headers::parse(frame)
        && headers.l4 == L4::Udp
    {
        write_u16(frame, headers.l4_offset + 4, headers.end - headers.l4_offset);
    }
}

fn write_u16(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}

/// Any `virtio_net_hdr` before any frame, and any descriptor on it: what is
/// given to a kernel passes `virtio_net_hdr_to_skb` (include/linux/virtio_net.h).
pub(crate) fn virtio(data: &[u8]) {
    let mut input = Input::new(data);
    let header = input.array();
    let offload = offload(&mut input);
    let mut frame = frame(&mut input);
    if let Ok(header) = to_kernel(&offload, &frame) {
        assert_kernel_takes(&header, &frame);
    }
    let before = frame.clone();
    match from_kernel(&header, &mut frame) {
        Ok(offload) => {
            let header = to_kernel(&offload, &frame).expect("what a kernel gave, a kernel takes");
            assert_kernel_takes(&header, &frame);
            assert_eq!(from_kernel(&header, &mut frame), Ok(offload));
        }
        Err(_) => assert_eq!(frame, before, "a refused frame is left alone"),
    }
}

fn assert_kernel_takes(header: &[u8; 10], frame: &[u8]) {
    const NEEDS_CSUM: u8 = 1;
    const GSO_UDP_L4: u8 = 5;
    let word = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    let (flags, gso_type) = (header[0], header[1] & 0x7f);
    let (hdr_len, gso_size, start, offset) = (word(2), word(4), word(6), word(8));
    if flags & NEEDS_CSUM != 0 {
        assert!(start + offset + 2 <= frame.len());
    }
    if gso_type == 0 {
        return;
    }
    let is_udp = gso_type == GSO_UDP_L4;
    assert!(matches!(gso_type, 1 | 4 | GSO_UDP_L4));
    assert!(!is_udp || header[1] == GSO_UDP_L4, "ECN is TCP's");
    assert_eq!(flags, NEEDS_CSUM);
    assert_eq!(offset, if is_udp { 6 } else { 16 });
    let payload = frame.len() - (start + if is_udp { 8 } else { 20 });
    assert!(gso_size != 0 && gso_size != 0xffff && payload > gso_size && hdr_len <= frame.len());
    assert!(!is_udp || payload <= gso_size * MAX_UDP_SEGMENTS);
}

/// Segments have the payload of their superframe, in order, and every checksum right.
pub(crate) fn segment(data: &[u8]) {
    let mut input = Input::new(data);
    let offload = offload(&mut input);
    let frame = frame(&mut input);
    let mut segments: Vec<Vec<u8>> = Vec::new();
    let mut scratch = vec![0; 1 << 17];
    let result = cut(&frame, &offload, &mut scratch, &mut |s| segments.push(s.to_vec()));
    let Ok(count) = result else {
        assert!(segments.is_empty(), "what is refused emits nothing");
        return;
    };
    assert_eq!(segments.len(), count);
    if let Ok(Task::Cut(superframe)) = Task::of(&offload, &frame, frame.len()) {
        let header = superframe.header_length();
        let payload: Vec<u8> = segments.iter().flat_map(|s| s[header..].to_vec()).collect();
        assert_eq!(payload, frame[header..]);
    }
    for segment in segments.iter().filter(|_| offload.needs_checksum) {
        assert!(checksum::verify(segment), "{segment:02x?}");
    }
}

/// What is salvaged, once cut, is a part of what the whole would have been cut into.
pub(crate) fn salvage(data: &[u8]) {
    let mut input = Input::new(data);
    let offload = offload(&mut input);
    let mut ranges: Vec<usize> = (0..4).map(|_| usize::from(input.u16())).collect();
    let mut frame = frame(&mut input);
    let Ok(salvage) = Salvage::new(&frame, frame.len(), &offload) else { return };
    let mut scratch = vec![0; 1 << 17];
    let mut whole = Vec::new();
    cut(&frame, &offload, &mut scratch, &mut |s| whole.push(s.to_vec())).expect("a superframe");
    ranges.iter_mut().for_each(|at| *at %= frame.len() + 1);
    ranges.sort_unstable();
    let mut last = 0;
    for survived in ranges.chunks(2) {
        let survived = survived[0]..survived[1];
        let Some((part, offload)) = salvage.part(&mut frame, survived) else { continue };
        let mut segments = Vec::new();
        cut(part, &offload, &mut scratch, &mut |s| segments.push(s.to_vec())).expect("fits");
        for segment in segments {
            assert!(checksum::verify(&segment));
            let found = whole[last..].iter().position(|s| is_alike(s, &segment));
            last += found.expect("a segment of the superframe") + 1;
        }
    }
}

/// The same, but for the congestion bit CWR and the checksum that covers it.
fn is_alike(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && {
        let headers = Headers::parse(a).expect("a segment");
        a[headers.payload_offset..] == b[headers.payload_offset..]
            && a[..headers.l4_offset] == b[..headers.l4_offset]
    }
}

/// Superframes made here, once cut, are the frames that they were made of; the rest leaves
/// as it came. A burst begins with any frames and goes on with their successors.
pub(crate) fn coalesce(data: &[u8]) {
    let mut input = Input::new(data);
    let mut last = Vec::new();
    let (mut came, mut left) = (Vec::new(), Vec::new());
    let mut emit = |leaving: Coalesced<'_, u8>| {
        let before = left.len();
        cut_into(&mut left, leaving.place, &leaving.offload, leaving.frame);
        let is_single = leaving.merged == 1;
        assert!(is_single || left.len() - before == leaving.merged as usize);
    };
    let mut coalescer = Coalescer::default();
    while !input.is_empty() {
        let [action, place] = input.array();
        let mut frame = match action & 7 {
            0 => frame(&mut Input::new(input.chunk())),
            1 => input.chunk().to_vec(),
            _ => successor(&last, u16::from(action & 2 == 0)),
        };
        last.clone_from(&frame);
        let offload = match action >> 4 {
            0 => offload(&mut input),
            1..=7 => Offload::CHECKSUM,
            _ => {
                let _ = checksum::complete(&mut frame);
                Offload::NONE
            }
        };
        if action & 8 != 0 && !frame.is_empty() {
            let at = usize::from(input.byte()) % frame.len();
            frame[at] ^= input.byte();
        }
        let place = place & 1;
        cut_into(&mut came, place, &offload, &frame);
        coalescer.offer(place, &offload, &frame, &mut emit);
    }
    coalescer.flush(&mut emit);
    came.sort_unstable();
    left.sort_unstable();
    assert_eq!(came, left);
}

/// What a kernel makes of a frame; the frame itself if it refuses it.
fn cut_into(frames: &mut Vec<(u8, Vec<u8>)>, place: u8, offload: &Offload, frame: &[u8]) {
    let mut scratch = vec![0; frame.len()];
    let result = cut(frame, offload, &mut scratch, &mut |frame| {
        frames.push((place, without_unread_id(frame)));
    });
    if result.is_err() {
        frames.push((place, frame.to_vec()));
    }
}

/// The id of a packet that may not be fragmented is nobody's business (RFC 6864).
fn without_unread_id(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if let Ok(headers) = Headers::parse(&frame)
        && headers.l3 == L3::V4
        && frame[headers.l3_offset + 6] & 0x40 != 0
        && checksum::verify(&frame)
    {
        write_u16(&mut frame, headers.l3_offset + 4, 0);
        mend_ipv4_checksum(&mut frame, &headers);
    }
    frame
}

/// The frame that goes on where `frame` ends, unfinished; its IPv4 id is `id_step` further.
fn successor(frame: &[u8], id_step: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let Ok(headers) = Headers::parse(&frame) else { return frame };
    let Some(offset) = headers.l4.checksum_offset() else { return frame };
    if headers.l3 == L3::V4 {
        let at = headers.l3_offset + 4;
        let id = u16::from_be_bytes([frame[at], frame[at + 1]]).wrapping_add(id_step);
        write_u16(&mut frame, at, usize::from(id));
        mend_ipv4_checksum(&mut frame, &headers);
    }
    if headers.l4 == L4::Tcp {
        let field = &mut frame[headers.l4_offset + 4..][..4];
        let sequence = u32::from_be_bytes([field[0], field[1], field[2], field[3]]);
        let length = (headers.end - headers.payload_offset) as u32;
        field.copy_from_slice(&sequence.wrapping_add(length).to_be_bytes());
    }
    let sum = checksum::pseudo_header(&frame, &headers);
    write_u16(&mut frame, headers.l4_offset + offset, usize::from(sum));
    frame
}
