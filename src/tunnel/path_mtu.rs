//! Path MTU discovery for datagrams (RFC 8899), by probing alone: ICMP is
//! unauthenticated and often filtered, so it is not listened to.
//!
//! ```text
//!                    probes acknowledged / timed out
//!              +-----------------------------------------+
//!              v                                         |
//!  reset --> SEARCHING --- nothing left to try --> COMPLETE --- raise timer --> SEARCHING
//!              ^                                         |
//!              +---- confirmation lost three times ------+
//!                      (back to the base size)
//! ```
//!
//! A probe is a padded ping. The usual sizes are probed all at once, so that a
//! path is at its size after one round trip; the gap between the largest that
//! came through and the smallest that did not is then halved. While datagrams
//! of the found size are in use, one probe of that size per
//! [`CONFIRM_INTERVAL`] notices a path that shrank.

use std::time::Duration;

use crate::time::Instant;

/// `BASE_PLPMTU` of RFC 8899, section 5.1.2: UDP payload, bytes.
pub(super) const BASE_SIZE: usize = 1200;
/// Used where not even the base size passes: UDP payload of the 576-byte
/// packet that every IPv4 host takes (RFC 791, section 3.1), with IPv6's header.
pub(super) const FLOOR_SIZE: usize = 576 - 48;
/// Largest packet that is tried, bytes with IP header.
pub(super) const PACKET_SIZE_MAX: usize = 9216;
/// How often the size in use is confirmed while it is being used.
const CONFIRM_INTERVAL: Duration = Duration::from_millis(500);
/// How often a larger size is tried (`PMTU_RAISE_TIMER`).
const RAISE_INTERVAL: Duration = Duration::from_secs(30);
/// `MAX_PROBES` of RFC 8899: losses of one size before it counts as too big.
const ATTEMPTS_MAX: u8 = 3;
/// The search ends when the gap is this small, bytes.
const SEARCH_STEP: usize = 8;
const PROBE_TIMEOUT_MIN: Duration = Duration::from_millis(100);
const PROBE_TIMEOUT_MAX: Duration = Duration::from_secs(1);

/// Packet sizes that real paths have, bytes with IP header: IPv6's minimum,
/// tunnels and PPPoE over Ethernet, Ethernet, FDDI, jumbo frames.
const USUAL_PACKET_SIZES: [usize; 15] =
    [1280, 1360, 1400, 1420, 1440, 1454, 1468, 1480, 1492, 1500, 2048, 4352, 8192, 9000, 9216];

/// A probe to be sent: a ping padded to a datagram of `size` bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Probe {
    /// UDP payload, bytes.
    pub size: usize,
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    size: usize,
    /// The ping that carries the probe, once it is sent.
    sequence: Option<u32>,
    deadline: Instant,
    lost: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Searching,
    Complete { raise_at: Instant },
}

/// The search for one path's MTU. All sizes are UDP payloads in bytes.
#[derive(Debug)]
pub struct PathMtu {
    packet_overhead: usize,
    /// Largest size that is known to pass, or assumed to.
    size: usize,
    /// Smallest size that is known not to pass.
    too_big: usize,
    phase: Phase,
    attempts: Vec<Attempt>,
    /// A size was acknowledged since the search (re)started.
    acknowledged: bool,
    in_use: bool,
    confirm_at: Instant,
    confirmations_lost: u8,
    /// A size was given up since the last search from the top: the path shrank,
    /// or it was cut for a while.
    gave_up: bool,
    probe_timeout: Duration,
}

impl PathMtu {
    /// Starts a search on a path whose IP and UDP headers are
    /// `packet_overhead` bytes (28 for IPv4, 48 for IPv6).
    pub fn new(now: Instant, packet_overhead: usize) -> Self {
        let mut path = Self {
            packet_overhead,
            size: BASE_SIZE,
            too_big: 0,
            phase: Phase::Searching,
            attempts: Vec::with_capacity(USUAL_PACKET_SIZES.len() + 1),
            acknowledged: false,
            in_use: false,
            confirm_at: now,
            confirmations_lost: 0,
            gave_up: false,
            probe_timeout: PROBE_TIMEOUT_MAX / 4,
        };
        path.restart(now);
        path
    }

    /// Datagrams up to this size may be sent.
    #[inline]
    pub fn size(&self) -> usize {
        self.size
    }

    /// The same with IP and UDP headers: what an operator calls the path MTU.
    pub fn packet_size(&self) -> usize {
        self.size + self.packet_overhead
    }

    /// Nothing is being searched at the moment.
    pub fn is_complete(&self) -> bool {
        matches!(self.phase, Phase::Complete { .. })
    }

    /// A datagram of the full size was sent: keep the size confirmed.
    #[inline]
    pub fn note_use(&mut self) {
        self.in_use = true;
    }

    /// Takes the path's round-trip time into account.
    pub fn set_round_trip(&mut self, round_trip: Duration) {
        self.probe_timeout = (round_trip * 4).clamp(PROBE_TIMEOUT_MIN, PROBE_TIMEOUT_MAX);
    }

    /// The peer answered a ping: what was given up before may have been lost to
    /// an outage that is over now.
    pub(super) fn answered(&mut self) {
        if self.gave_up {
            self.raise();
        }
    }

    /// The next probe to send now, if any. Say which ping carries it with
    /// [`PathMtu::sent`], or [`PathMtu::refused`] where the kernel refused it.
    pub(super) fn poll_probe(&mut self, now: Instant) -> Option<Probe> {
        self.expire(now);
        if let Some(attempt) = self.attempts.iter().find(|attempt| attempt.sequence.is_none()) {
            return Some(Probe { size: attempt.size });
        }
        None
    }

    /// The probe of `size` left in the ping `sequence`.
    pub fn sent(&mut self, now: Instant, size: usize, sequence: u32) {
        let deadline = now + self.probe_timeout;
        if let Some(attempt) = self.unsent(size) {
            attempt.sequence = Some(sequence);
            attempt.deadline = deadline;
        }
    }

    /// The kernel refused a datagram of `size` bytes (EMSGSIZE): no path out
    /// of this host takes it.
    pub fn refused(&mut self, now: Instant, size: usize) {
        self.too_big = self.too_big.min(size.max(FLOOR_SIZE + 1));
        self.attempts.retain(|attempt| attempt.size < size);
        if self.size >= size {
            self.size = if size > BASE_SIZE { BASE_SIZE } else { FLOOR_SIZE };
            self.acknowledged = false;
            self.phase = Phase::Searching;
            self.enqueue_usual();
        }
        self.continue_search(now);
    }

    /// The ping `sequence` was answered. Returns whether the size changed.
    pub fn acknowledged(&mut self, now: Instant, sequence: u32) -> bool {
        let Some(found) = self.attempts.iter().find(|attempt| attempt.sequence == Some(sequence))
        else {
            return false;
        };
        let size = found.size;
        let changed = size > self.size;
        self.size = self.size.max(size);
        self.acknowledged = true;
        self.confirmations_lost = 0;
        if size == self.size {
            self.confirm_at = now + CONFIRM_INTERVAL;
        }
        self.attempts.retain(|attempt| attempt.size > size);
        self.continue_search(now);
        changed
    }

    /// When `poll_probe` wants to be called again.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let raise = match self.phase {
            Phase::Complete { raise_at } => Some(raise_at),
            Phase::Searching => None,
        };
        let confirm = (self.in_use && !self.confirming()).then_some(self.confirm_at);
        let deadlines = self.attempts.iter().map(|attempt| attempt.deadline);
        deadlines.chain(raise).chain(confirm).min()
    }

    fn unsent(&mut self, size: usize) -> Option<&mut Attempt> {
        self.attempts.iter_mut().find(|attempt| attempt.size == size && attempt.sequence.is_none())
    }

    fn confirming(&self) -> bool {
        self.attempts.iter().any(|attempt| attempt.size == self.size)
    }

    fn restart(&mut self, now: Instant) {
        self.size = BASE_SIZE;
        self.too_big = PACKET_SIZE_MAX + 1 - self.packet_overhead;
        self.phase = Phase::Searching;
        self.acknowledged = false;
        self.confirmations_lost = 0;
        self.confirm_at = now + CONFIRM_INTERVAL;
        self.attempts.clear();
        self.enqueue(BASE_SIZE, 0);
        self.enqueue_usual();
    }

    fn enqueue_usual(&mut self) {
        let usual = USUAL_PACKET_SIZES.map(|packet_size| packet_size - self.packet_overhead);
        for size in std::iter::once(BASE_SIZE).chain(usual) {
            if size > self.size && size < self.too_big {
                self.enqueue(size, 0);
            }
        }
    }

    fn enqueue(&mut self, size: usize, lost: u8) {
        if self.attempts.iter().all(|attempt| attempt.size != size) {
            let deadline = Instant::ZERO;
            self.attempts.push(Attempt { size, sequence: None, deadline, lost });
        }
    }

    fn expire(&mut self, now: Instant) {
        let size = self.size;
        let mut confirmation_lost = false;
        let mut too_big = self.too_big;
        for attempt in &mut self.attempts {
            if attempt.sequence.is_none() || attempt.deadline > now {
                continue;
            }
            attempt.sequence = None;
            attempt.lost += 1;
            confirmation_lost |= attempt.size == size;
            if attempt.lost >= ATTEMPTS_MAX && attempt.size > size {
                too_big = too_big.min(attempt.size);
            }
        }
        self.too_big = too_big;
        self.attempts.retain(|attempt| attempt.size < too_big || attempt.size <= size);
        if confirmation_lost {
            self.confirmations_lost += 1;
        }
        if self.confirmations_lost >= ATTEMPTS_MAX {
            self.give_up_size(now);
        }
        if let Phase::Complete { raise_at } = self.phase
            && raise_at <= now
        {
            self.raise();
        }
        if self.in_use && self.confirm_at <= now && !self.confirming() {
            self.in_use = false;
            self.enqueue(size, 0);
        }
        self.continue_search(now);
    }

    /// Searches for a larger size than the one in use.
    fn raise(&mut self) {
        self.gave_up = false;
        self.phase = Phase::Searching;
        self.too_big = PACKET_SIZE_MAX + 1 - self.packet_overhead;
        self.attempts.retain(|attempt| attempt.size <= self.size);
        self.enqueue_usual();
    }

    /// The size in use no longer passes: start over from the base size, or
    /// use the floor where the base is what failed.
    fn give_up_size(&mut self, now: Instant) {
        let at_base = self.size <= BASE_SIZE;
        self.restart(now);
        self.gave_up = true;
        if at_base {
            self.size = FLOOR_SIZE;
        }
    }

    fn continue_search(&mut self, now: Instant) {
        if self.phase != Phase::Searching
            || self.attempts.iter().any(|attempt| attempt.size > self.size)
        {
            return;
        }
        if self.too_big.saturating_sub(self.size) > SEARCH_STEP && self.acknowledged {
            self.enqueue((self.size + self.too_big) / 2, 0);
        } else {
            self.phase = Phase::Complete { raise_at: now + RAISE_INTERVAL };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OVERHEAD: usize = 28;

    /// A path that swallows packets above `packet_size`, and refuses those
    /// above `link_size` at once; returns the time that passed.
    fn run(
        mtu: &mut PathMtu,
        start: Instant,
        duration: Duration,
        packet_size: usize,
        link_size: usize,
        in_use: bool,
    ) -> Instant {
        let mut now = start;
        let mut sequence = 0;
        while now < start + duration {
            if in_use {
                mtu.note_use();
            }
            while let Some(probe) = mtu.poll_probe(now) {
                sequence += 1;
                if probe.size + OVERHEAD > link_size {
                    mtu.refused(now, probe.size);
                } else {
                    mtu.sent(now, probe.size, sequence);
                    if probe.size + OVERHEAD <= packet_size {
                        mtu.acknowledged(now + Duration::from_millis(1), sequence);
                    }
                }
            }
            now = now + Duration::from_millis(10);
        }
        now
    }

    #[test]
    fn the_usual_sizes_are_found_at_once() {
        for packet_size in USUAL_PACKET_SIZES {
            let mut mtu = PathMtu::new(Instant::ZERO, OVERHEAD);
            run(&mut mtu, Instant::ZERO, Duration::from_millis(10), packet_size, 10_000, false);
            assert_eq!(mtu.packet_size(), packet_size);
        }
    }

    #[test]
    fn unusual_sizes_are_found_within_the_step() {
        for packet_size in [1250, 1303, 1436, 1499, 1501, 3333, 8999, 9215] {
            let mut mtu = PathMtu::new(Instant::ZERO, OVERHEAD);
            run(&mut mtu, Instant::ZERO, Duration::from_secs(20), packet_size, 10_000, false);
            assert!(mtu.is_complete());
            assert!(mtu.packet_size() <= packet_size);
            assert!(packet_size - mtu.packet_size() <= SEARCH_STEP, "{packet_size} {mtu:?}");
        }
    }

    #[test]
    fn a_link_that_refuses_ends_the_search_without_waiting() {
        let mut mtu = PathMtu::new(Instant::ZERO, OVERHEAD);
        run(&mut mtu, Instant::ZERO, Duration::from_millis(10), 1500, 1500, false);
        assert_eq!(mtu.packet_size(), 1500);
        assert!(mtu.is_complete());
    }

    #[test]
    fn a_path_that_shrinks_is_noticed_within_two_seconds_of_use() {
        let mut mtu = PathMtu::new(Instant::ZERO, OVERHEAD);
        let now = run(&mut mtu, Instant::ZERO, Duration::from_secs(5), 9000, 9000, true);
        assert_eq!(mtu.packet_size(), 9000);
        run(&mut mtu, now, Duration::from_secs(2), 1420, 9000, true);
        assert_eq!(mtu.packet_size(), 1420);
    }

    #[test]
    fn a_path_that_grows_is_noticed_by_the_raise_timer() {
        let mut mtu = PathMtu::new(Instant::ZERO, OVERHEAD);
        let now = run(&mut mtu, Instant::ZERO, Duration::from_secs(20), 1420, 1500, true);
        assert!(mtu.packet_size() <= 1420);
        run(&mut mtu, now, RAISE_INTERVAL + Duration::from_secs(1), 1500, 1500, true);
        assert_eq!(mtu.packet_size(), 1500);
    }

    #[test]
    fn a_link_that_shrinks_is_acted_on_at_once() {
        let mut mtu = PathMtu::new(Instant::ZERO, OVERHEAD);
        let now = run(&mut mtu, Instant::ZERO, Duration::from_secs(1), 9000, 9000, true);
        mtu.refused(now, 9000 - OVERHEAD);
        assert_eq!(mtu.size(), BASE_SIZE);
        run(&mut mtu, now, Duration::from_millis(10), 1500, 1500, true);
        assert_eq!(mtu.packet_size(), 1500);
    }

    #[test]
    fn a_link_below_the_base_is_served_from_the_floor_at_once() {
        let mut mtu = PathMtu::new(Instant::ZERO, OVERHEAD);
        mtu.refused(Instant::ZERO, BASE_SIZE);
        assert_eq!(mtu.size(), FLOOR_SIZE);
        run(&mut mtu, Instant::ZERO, RAISE_INTERVAL * 2, 1000, 1000, true);
        assert!((1000 - SEARCH_STEP..=1000).contains(&mtu.packet_size()), "{mtu:?}");
    }

    #[test]
    fn a_link_below_the_floor_changes_nothing_more() {
        let mut mtu = PathMtu::new(Instant::ZERO, OVERHEAD);
        for size in [1200, 528, 100, 1] {
            mtu.refused(Instant::ZERO, size);
            assert_eq!(mtu.size(), FLOOR_SIZE);
        }
    }

    #[test]
    fn where_the_base_does_not_pass_the_search_starts_from_the_floor() {
        let mut mtu = PathMtu::new(Instant::ZERO, OVERHEAD);
        run(&mut mtu, Instant::ZERO, Duration::from_secs(10), 600, 10_000, true);
        assert!((FLOOR_SIZE..=600 - OVERHEAD).contains(&mtu.size()), "{mtu:?}");
    }

    #[test]
    fn an_outage_costs_the_size_only_until_the_next_answer() {
        let mut mtu = PathMtu::new(Instant::ZERO, OVERHEAD);
        let now = run(&mut mtu, Instant::ZERO, Duration::from_secs(5), 1500, 9000, true);
        let now = run(&mut mtu, now, Duration::from_secs(10), 100, 9000, true);
        assert_eq!(mtu.size(), FLOOR_SIZE);
        mtu.answered();
        run(&mut mtu, now, Duration::from_millis(300), 1500, 9000, true);
        assert_eq!(mtu.packet_size(), 1500);
    }

    #[test]
    fn a_link_below_every_size_is_survived() {
        let mut mtu = PathMtu::new(Instant::ZERO, OVERHEAD);
        mtu.refused(Instant::ZERO, 60);
        assert_eq!(mtu.size(), FLOOR_SIZE);
        run(&mut mtu, Instant::ZERO, Duration::from_secs(5), 68, 68, true);
        assert_eq!(mtu.size(), FLOOR_SIZE);
    }

    #[test]
    fn an_idle_path_sends_no_confirmations() {
        let mut mtu = PathMtu::new(Instant::ZERO, OVERHEAD);
        let now = run(&mut mtu, Instant::ZERO, Duration::from_secs(1), 1500, 1500, false);
        assert!(mtu.poll_timeout().unwrap() > now + Duration::from_secs(20));
    }
}
