//! Recognises frames of our own that the LAN sends back.
//!
//! A virtual switch with teamed uplinks, or a loop, returns what an appliance
//! emits. Tunnelling such a frame would double it, and learning from it would
//! put a remote station on the local LAN.

use std::{hash::Hasher, time::Duration};

use siphasher::sip::SipHasher13;

use super::{
    fdb::Location,
    headers::{TCP, Transport, UDP},
};
use crate::{time::Instant, topology::NetworkIndex, wire::ethernet::MacAddr};

/// How long after it was emitted a frame can be recognised.
pub const REFLECTION_WINDOW: Duration = Duration::from_secs(1);

/// Emitted frames that are remembered.
pub const EMISSIONS_MAX: usize = 256;

/// Copies recognised of one emitted frame: a team of five uplinks returns four.
pub const COPIES_MAX: u8 = 4;

/// Longest frame that a link may have padded: 64 bytes without FCS, and a tag.
const PADDED_LENGTH_MAX: usize = 68;

/// Remembers the group-addressed frames emitted to the LAN. One for all data
/// threads, behind a lock: the thread that reads a reflection is seldom the one
/// that emitted it. Only broadcast and multicast from a tunnel, and frames from
/// the LAN that could be reflections, ever take it.
///
/// A frame read from the LAN is a reflection where all of this holds: it is
/// group-addressed; the same bytes were emitted to the same network within
/// [`REFLECTION_WINDOW`]; its source is known to live at a remote site; and
/// fewer than [`COPIES_MAX`] copies of that emission were seen before. Ask
/// *before* learning its source.
///
/// Same bytes means: but for padding that a link adds to a short frame, and for
/// the TCP or UDP checksum, which a kernel may have finished on the way.
///
/// What it can't do:
/// * A station that moves here and within the window repeats the very bytes
///   that it sent from its old site is taken for a reflection, at most
///   [`COPIES_MAX`] times per frame sent there. Any other frame of it, a unicast
///   one first of all, passes and teaches the move.
/// * Frames that one source repeats at a remote site are remembered one by
///   one, so each may be reflected.
/// * A unicast frame, one that the switch changed (a tag, a priority), one that
///   was emitted as a superframe and comes back in segments, and one that comes
///   back after [`EMISSIONS_MAX`] more emissions are not recognised.
/// * A loop that returns more than [`COPIES_MAX`] copies gets the rest through.
pub struct ReflectionDetector {
    /// Apart from `emissions`, so that a search reads little.
    digests: [u64; EMISSIONS_MAX],
    emissions: [Emission; EMISSIONS_MAX],
    next: usize,
    hasher: SipHasher13,
}

#[derive(Clone, Copy, Default)]
struct Emission {
    at: Instant,
    copies_left: u8,
}

impl ReflectionDetector {
    /// Remembers nothing yet. `seed` keys the digests: it must be random and
    /// stay secret, or frames could be made that pass for each other.
    pub fn new(seed: [u64; 2]) -> Self {
        Self {
            digests: [0; EMISSIONS_MAX],
            emissions: [Emission::default(); EMISSIONS_MAX],
            next: 0,
            hasher: SipHasher13::new_with_keys(seed[0], seed[1]),
        }
    }

    /// Notes that `frame` is emitted to `network`'s LAN. Does nothing for a
    /// frame that isn't group-addressed.
    pub fn emitted(&mut self, now: Instant, network: NetworkIndex, frame: &[u8]) {
        if !is_group_addressed(frame) {
            return;
        }
        self.digests[self.next] = self.digest(network, frame);
        self.emissions[self.next] = Emission { at: now, copies_left: COPIES_MAX };
        self.next = (self.next + 1) % EMISSIONS_MAX;
    }

    /// Whether `frame`, read from `network`'s LAN, is one of ours.
    /// `source_location` is the FDB's answer for its source MAC. A `true` uses
    /// up one of the emission's copies.
    #[inline]
    pub fn is_reflection(
        &mut self,
        now: Instant,
        network: NetworkIndex,
        frame: &[u8],
        source_location: Option<Location>,
    ) -> bool {
        matches!(source_location, Some(Location::Site(_)))
            && is_group_addressed(frame)
            && self.take_copy(now, network, frame)
    }

    fn take_copy(&mut self, now: Instant, network: NetworkIndex, frame: &[u8]) -> bool {
        let digest = self.digest(network, frame);
        let candidates = self.digests.iter().zip(&mut self.emissions);
        let emission =
            candidates.filter(|(known, _)| **known == digest).map(|(_, e)| e).find(|emission| {
                emission.copies_left > 0 && now.saturating_since(emission.at) <= REFLECTION_WINDOW
            });
        if let Some(emission) = emission {
            emission.copies_left -= 1;
            return true;
        }
        false
    }

    fn digest(&self, network: NetworkIndex, frame: &[u8]) -> u64 {
        let mut hasher = self.hasher;
        hasher.write_u16(network.0);
        let (before, after) = around_checksum(frame);
        hasher.write(before);
        hasher.write(after);
        let padding = PADDED_LENGTH_MAX.saturating_sub(frame.len());
        hasher.write(&[0; PADDED_LENGTH_MAX][..padding]);
        hasher.finish()
    }
}

fn is_group_addressed(frame: &[u8]) -> bool {
    frame.first_chunk().is_some_and(|destination| MacAddr(*destination).is_group())
}

/// The frame without its TCP or UDP checksum, where it has one.
fn around_checksum(frame: &[u8]) -> (&[u8], &[u8]) {
    let checksum = Transport::find(frame).and_then(|transport| match transport.protocol {
        UDP => Some(transport.offset + 6),
        TCP => Some(transport.offset + 16),
        _ => None,
    });
    match checksum {
        Some(at) if at + 2 <= frame.len() => (&frame[..at], &frame[at + 2..]),
        _ => (frame, &[]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::topology::SiteIndex;

    const NETWORK: NetworkIndex = NetworkIndex(1);
    const REMOTE: Option<Location> = Some(Location::Site(SiteIndex(1)));
    const START: Instant = Instant::from_nanos(1 << 50);

    fn detector() -> ReflectionDetector {
        ReflectionDetector::new([1, 2])
    }

    fn broadcast(id: u16, length: usize) -> Vec<u8> {
        let mut frame = vec![0xa5; length];
        frame[..6].fill(0xff);
        frame[12..16].copy_from_slice(&[0x08, 0x06, (id >> 8) as u8, id as u8]);
        frame
    }

    #[test]
    fn every_condition_counts() {
        let frame = broadcast(1, 100);
        let mut unicast = frame.clone();
        unicast[0] = 2;
        let end = START + REFLECTION_WINDOW;
        let table = [
            (&frame, START, NETWORK, REMOTE, true),
            (&frame, end, NETWORK, REMOTE, true),
            (&frame, end + Duration::from_nanos(1), NETWORK, REMOTE, false),
            (&frame, START, NetworkIndex(2), REMOTE, false),
            (&frame, START, NETWORK, Some(Location::Local), false),
            (&frame, START, NETWORK, None, false),
            (&broadcast(2, 100), START, NETWORK, REMOTE, false),
            (&broadcast(1, 101), START, NETWORK, REMOTE, false),
            (&unicast, START, NETWORK, REMOTE, false),
        ];
        for (number, (read, now, network, location, expected)) in table.into_iter().enumerate() {
            let mut detector = detector();
            detector.emitted(START, NETWORK, &frame);
            detector.emitted(START, NETWORK, &unicast);
            let is_reflection = detector.is_reflection(now, network, read, location);
            assert_eq!(is_reflection, expected, "row {number}");
        }
    }

    #[test]
    fn copies_are_counted_per_emission() {
        let frame = broadcast(1, 100);
        let mut detector = detector();
        detector.emitted(START, NETWORK, &frame);
        detector.emitted(START, NETWORK, &frame);
        for _ in 0..2 * COPIES_MAX {
            assert!(detector.is_reflection(START, NETWORK, &frame, REMOTE));
        }
        assert!(!detector.is_reflection(START, NETWORK, &frame, REMOTE));
    }

    #[test]
    fn questions_about_a_local_source_use_up_nothing() {
        let frame = broadcast(1, 100);
        let mut detector = detector();
        detector.emitted(START, NETWORK, &frame);
        for _ in 0..2 * COPIES_MAX {
            assert!(!detector.is_reflection(START, NETWORK, &frame, Some(Location::Local)));
        }
        assert!(detector.is_reflection(START, NETWORK, &frame, REMOTE));
    }

    #[test]
    fn the_oldest_emission_makes_room() {
        let mut detector = detector();
        for id in 0..=EMISSIONS_MAX as u16 {
            detector.emitted(START, NETWORK, &broadcast(id, 100));
        }
        assert!(!detector.is_reflection(START, NETWORK, &broadcast(0, 100), REMOTE));
        for id in 1..=EMISSIONS_MAX as u16 {
            assert!(detector.is_reflection(START, NETWORK, &broadcast(id, 100), REMOTE), "{id}");
        }
    }

    #[test]
    fn padding_does_not_hide_a_reflection() {
        let arp = broadcast(1, 42);
        for length in [46, 56, 60, 64] {
            let mut padded = arp.clone();
            padded.resize(length, 0);
            let mut detector = detector();
            detector.emitted(START, NETWORK, &arp);
            assert!(detector.is_reflection(START, NETWORK, &padded, REMOTE), "{length}");
        }
    }

    #[test]
    fn a_finished_checksum_does_not_hide_a_reflection() {
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2([2; 6], [0xff; 6])
            .ipv4([10, 0, 0, 1], [255; 4], 64)
            .udp(68, 67)
            .write(&mut frame, &[7; 300])
            .unwrap();
        let mut unfinished = frame.clone();
        unfinished[14 + 20 + 6] ^= 0x55;
        let mut other = frame.clone();
        other[14 + 20 + 8] ^= 0x55;
        let mut detector = detector();
        detector.emitted(START, NETWORK, &unfinished);
        assert!(!detector.is_reflection(START, NETWORK, &other, REMOTE));
        assert!(detector.is_reflection(START, NETWORK, &frame, REMOTE));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived_and_only_group_frames_recognised(
            frame in prop::collection::vec(any::<u8>(), 0..120),
        ) {
            let mut detector = detector();
            detector.emitted(START, NETWORK, &frame);
            let is_group = frame.len() >= 6 && frame[0] & 1 == 1;
            prop_assert_eq!(detector.is_reflection(START, NETWORK, &frame, REMOTE), is_group);
        }
    }
}
