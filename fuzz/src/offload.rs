use landbridge::offload::{
    Offload, Segmentation, checksum,
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
        if headers.l3 == L3::V4 {
            let header = &mut frame[headers.l3_offset..headers.l4_offset];
            header[10..12].fill(0);
            let sum = !checksum::sum(header);
            write_u16(header, 10, usize::from(sum));
        }
    }
    frame
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
