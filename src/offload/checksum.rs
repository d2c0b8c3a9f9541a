//! The Internet checksum (RFC 1071), its incremental update (RFC 1624), and
//! finishing what a kernel left undone. SCTP's CRC32c (RFC 9260 appendix A) is
//! here too: a NIC may leave that one undone as well.
//!
//! A *sum* is the folded ones-complement sum of big-endian words; a *checksum*
//! is its complement.

use super::{
    OffloadError,
    headers::{Headers, L3, L4, PROTOCOL_TCP, PROTOCOL_UDP, read_u16, write_u16},
};

/// Completes the L4 checksum of a frame whose checksum field holds the
/// pseudo-header sum (`CHECKSUM_PARTIAL`, kernel include/linux/skbuff.h).
///
/// # Errors
/// The frame isn't whole TCP or UDP.
pub fn complete(frame: &mut [u8]) -> Result<(), OffloadError> {
    let headers = Headers::parse(frame)?;
    complete_at(frame, &headers)
}

/// As [`complete`], for headers already known.
pub(super) fn complete_at(frame: &mut [u8], headers: &Headers) -> Result<(), OffloadError> {
    let Some(offset) = headers.l4.checksum_offset() else {
        return Err(OffloadError::NoTransport { found: headers.l4 });
    };
    let packet = &mut frame[headers.l4_offset..headers.end];
    let checksum = !sum(packet);
    let has_no_zero = headers.l4 == L4::Udp;
    write_u16(packet, offset, if has_no_zero { never_zero(checksum) } else { checksum });
    Ok(())
}

/// Completes a checksum anywhere, as `skb_checksum_help` (kernel
/// net/core/dev.c) would: the sum of `packet`, which starts at `csum_start`,
/// goes to `offset`. False where that lies outside.
pub(super) fn complete_raw(packet: &mut [u8], offset: usize) -> bool {
    if packet.len() < offset + 2 {
        return false;
    }
    let checksum = never_zero(!sum(packet));
    write_u16(packet, offset, checksum);
    true
}

/// Completes SCTP's CRC32c, whose field at 8 counts as zero. `packet` starts
/// with the SCTP header and ends with its last chunk. False where it is too short.
pub(super) fn complete_sctp(packet: &mut [u8]) -> bool {
    let Some(field) = packet.get_mut(SCTP_CHECKSUM_OFFSET..SCTP_CHECKSUM_OFFSET + 4) else {
        return false;
    };
    field.fill(0);
    let crc = crc32c(packet);
    packet[SCTP_CHECKSUM_OFFSET..SCTP_CHECKSUM_OFFSET + 4].copy_from_slice(&crc.to_le_bytes());
    true
}

/// Where SCTP's checksum is in its header, bytes (RFC 9260 section 3.1). No
/// protocol with a ones-complement sum has it there.
pub(super) const SCTP_CHECKSUM_OFFSET: usize = 8;

/// Whether every checksum that the frame has is right: IPv4 header, TCP, UDP.
/// A UDP checksum of 0 over IPv4 counts as right (none). False for a frame
/// that can't be parsed. An IPv6 routing header isn't followed.
pub fn verify(frame: &[u8]) -> bool {
    let Ok(headers) = Headers::parse(frame) else {
        return false;
    };
    if headers.l3 == L3::V4 {
        let length = usize::from(frame[headers.l3_offset] & 0x0f) * 4;
        if sum(&frame[headers.l3_offset..headers.l3_offset + length]) != 0xffff {
            return false;
        }
    }
    let Some(offset) = headers.l4.checksum_offset() else {
        return true;
    };
    if headers.l4 == L4::Udp && read_u16(frame, headers.l4_offset + offset) == 0 {
        return headers.l3 == L3::V4;
    }
    let packet = &frame[headers.l4_offset..headers.end];
    add(pseudo_header(frame, &headers), sum(packet)) == 0xffff
}

/// The pseudo-header's sum (RFC 9293 section 3.1, RFC 768, RFC 8200 section
/// 8.1) of a TCP or UDP frame: addresses, protocol, L4 length by IP. The
/// destination is the IP header's, also where a routing header names a later one.
pub fn pseudo_header(frame: &[u8], headers: &Headers) -> u16 {
    let addresses = match headers.l3 {
        L3::V4 => headers.l3_offset + 12..headers.l3_offset + 20,
        L3::V6 => headers.l3_offset + 8..headers.l3_offset + 40,
    };
    let protocol = match headers.l4 {
        L4::Tcp => PROTOCOL_TCP,
        L4::Udp => PROTOCOL_UDP,
        L4::Other(protocol) => protocol,
        L4::Fragment => 0,
    };
    let length = (headers.end - headers.l4_offset) as u64;
    let rest = fold(u64::from(protocol) + length);
    add(sum(&frame[addresses]), rest)
}

/// The sum of `bytes`; an odd last byte counts as if a zero followed.
pub fn sum(bytes: &[u8]) -> u16 {
    // Words are summed in the machine's order, which RFC 1071 section 2(B)
    // allows, into lanes of their own, which compilers turn into vectors.
    // 32-bit words in 64-bit lanes can't overflow below 2^34 bytes.
    let mut lanes = [0u64; 8];
    let (blocks, rest) = bytes.as_chunks::<32>();
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let mut total: u64 = lanes.iter().sum();
    let (words, odd) = rest.as_chunks::<2>();
    for word in words {
        total += u64::from(u16::from_ne_bytes(*word));
    }
    if let [last] = odd {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    u16::from_be(fold(total))
}

/// The sum of two parts, the first of even length.
pub const fn add(a: u16, b: u16) -> u16 {
    let (total, carry) = a.overflowing_add(b);
    total + carry as u16
}

/// The sum after one of its words changed from `old` to `new`: RFC 1624
/// equation 3 without its complements.
pub const fn replace(sum: u16, old: u16, new: u16) -> u16 {
    add(add(sum, !old), new)
}

const fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total >> 16) + (total & 0xffff);
    }
    total as u16
}

/// UDP sends 0xffff for 0, which means no checksum (RFC 768). To a ones-complement
/// sum both are the same.
const fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes
        .iter()
        .fold(!0, |crc: u32, byte| (crc >> 8) ^ CRC32C_TABLE[usize::from(crc as u8 ^ byte)])
}

const CRC32C_TABLE: [u32; 256] = {
    const REVERSED_POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = index as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (if crc & 1 == 1 { REVERSED_POLYNOMIAL } else { 0 });
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::offload::fixtures::{FrameSpec, frame_spec};

    /// RFC 1071 section 4.1, word by word.
    fn naive_sum(bytes: &[u8]) -> u16 {
        let mut total: u32 = 0;
        for pair in bytes.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }

    #[test]
    fn the_example_of_rfc_1624() {
        assert_eq!(!replace(!0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn crc32c_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn all_ones_don_t_overflow() {
        assert_eq!(sum(&vec![0xff; 1 << 20]), 0xffff);
        assert_eq!(sum(&[]), 0);
    }

    #[test]
    fn a_udp_checksum_of_zero_becomes_all_ones() {
        let mut spec = FrameSpec { udp: true, payload: vec![0, 0, 7], ..FrameSpec::default() };
        let frame = spec.build();
        let checksum = read_u16(&frame, 40);
        spec.payload[..2].copy_from_slice(&checksum.to_be_bytes());
        let mut frame = spec.build_unfinished();
        complete(&mut frame).unwrap();
        assert_eq!(read_u16(&frame, 40), 0xffff);
        assert!(verify(&frame));
    }

    #[test]
    fn a_fragment_has_no_checksum_to_complete() {
        let mut frame = FrameSpec::default().build();
        write_u16(&mut frame, 20, 0x2000);
        assert_eq!(complete(&mut frame), Err(OffloadError::NoTransport { found: L4::Fragment }));
    }

    proptest! {
        #[test]
        fn equals_the_naive_sum(bytes in vec(any::<u8>(), 0..300), skip in 0usize..8) {
            let bytes = &bytes[skip.min(bytes.len())..];
            prop_assert_eq!(sum(bytes), naive_sum(bytes));
        }

        #[test]
        fn parts_add_up(bytes in vec(any::<u8>(), 0..300), at in 0usize..150) {
            let (a, b) = bytes.split_at((at * 2).min(bytes.len() & !1));
            prop_assert_eq!(add(sum(a), sum(b)), sum(&bytes));
        }

        #[test]
        fn an_update_equals_a_new_sum(mut bytes in vec(any::<u8>(), 2..100), at: prop::sample::Index, new: u16) {
            let at = at.index(bytes.len() / 2) * 2;
            let updated = replace(sum(&bytes), read_u16(&bytes, at), new);
            write_u16(&mut bytes, at, new);
            // Both 0 and 0xffff are zero to a ones-complement sum.
            prop_assert_eq!(updated % 0xffff, sum(&bytes) % 0xffff);
        }

        #[test]
        fn completes_to_what_etherparse_builds(spec in frame_spec(0..2000)) {
            let finished = spec.build();
            prop_assert!(verify(&finished));
            let mut frame = spec.build_unfinished();
            complete(&mut frame).unwrap();
            prop_assert_eq!(&frame, &finished);
        }

        #[test]
        fn a_flipped_bit_is_noticed(spec in frame_spec(1..200), at: prop::sample::Index, bit in 0u8..8) {
            let mut frame = spec.build();
            let headers = Headers::parse(&frame).unwrap();
            let at = headers.payload_offset + at.index(headers.end - headers.payload_offset);
            frame[at] ^= 1 << bit;
            prop_assert!(!verify(&frame));
        }
    }
}
