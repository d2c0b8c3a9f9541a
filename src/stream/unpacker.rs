use std::{ops::Range, time::Duration};

use crate::{
    time::Instant,
    wire::{datagram::Position, record},
};

/// Datagrams that wait behind a hole, at most.
pub const HELD_MAX: usize = 128;
/// How far a datagram may run ahead before the holes behind it are given up,
/// while the path keeps order, datagrams.
pub const WINDOW_MIN: usize = 8;
/// The window is halved when this many holes in a row were true losses.
const TRUE_LOSSES: u32 = 64;
/// How long datagrams wait behind a hole, at most.
pub const HOLD_MAX: Duration = Duration::from_millis(1);

/// What happened to the stream, for the counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamEvent {
    /// Datagrams that had not come when their hole was given up.
    Missing,
    /// A datagram came after its hole had been given up: its whole records
    /// were delivered, its fragments dropped.
    Late,
    /// A datagram had to wait behind a hole.
    Held,
    /// A record lost its beginning.
    RecordTruncated,
    /// Lengths that contradict each other: skipped to the next record start.
    Malformed,
}

/// Where an [`Unpacker`] puts what it finds.
pub trait StreamSink {
    /// One whole record, header included, in stream order.
    fn record(&mut self, record: &[u8]);
    /// One record, header included, of which only the `survived` ranges
    /// (ascending) came; what is between them is noise, and may be
    /// overwritten. The first starts at 0, or the record's beginning is lost
    /// and its trailer is whole.
    fn damaged(&mut self, record: &mut [u8], survived: &[Range<usize>]);
    /// `amount` occurrences of an event.
    fn event(&mut self, event: StreamEvent, amount: u64);
}

/// The receiving end of a lane's stream: puts datagrams in order, waits a
/// little for those that are missing, and cuts the stream into records.
///
/// It starts at counter 0 and at a record boundary; where the first datagrams
/// are lost it joins at the first record start that it sees.
///
/// How long a hole is waited for follows the path, as the reordering window of
/// RACK does (RFC 8985, section 6.2): [`WINDOW_MIN`] datagrams as long as order
/// is kept, twice as many, up to [`HELD_MAX`], whenever one came that had
/// been given up, and never more than [`HOLD_MAX`].
pub struct Unpacker {
    /// The next counter in order.
    expected: u64,
    partial: Partial,
    held: Box<[Held]>,
    held_count: usize,
    deadline: Option<Instant>,
    window: usize,
    /// Holes given up since the last datagram that came late.
    true_losses: u32,
}

/// Runs of lost datagrams within one record that are bridged, at most.
const GAPS_MAX: usize = 7;

/// The record that has begun but not ended.
#[derive(Default)]
struct Partial {
    in_record: bool,
    /// Its beginning is lost: it is as long as the datagrams say, and its
    /// trailer tells the rest. The first gap is what came before.
    is_headless: bool,
    bytes: Vec<u8>,
    /// Stream bytes of the datagrams that carry it: all but the last have the same.
    datagram_length: usize,
    /// Datagrams that are missing before the next one.
    missing: u64,
    /// Ranges of `bytes` that were lost.
    gaps: [Range<usize>; GAPS_MAX],
    gap_count: usize,
}

/// A datagram that waits behind a hole.
#[derive(Default)]
struct Held {
    occupied: bool,
    counter: u64,
    position: Position,
    bytes: Vec<u8>,
}

impl Default for Unpacker {
    fn default() -> Self {
        Self {
            expected: 0,
            partial: Partial::default(),
            held: std::iter::repeat_with(Held::default).take(HELD_MAX).collect(),
            held_count: 0,
            deadline: None,
            window: WINDOW_MIN,
            true_losses: 0,
        }
    }
}

impl Unpacker {
    /// Takes the stream bytes of an authentic datagram that was never seen before.
    #[inline]
    pub fn receive(
        &mut self,
        now: Instant,
        counter: u64,
        position: Position,
        bytes: &[u8],
        sink: &mut impl StreamSink,
    ) {
        if counter < self.expected {
            self.late(position, bytes, sink);
        } else if first_counter(counter, position) <= self.expected {
            self.partial.datagram(position, bytes, sink);
            self.advance(now, counter + 1, sink);
        } else {
            self.hold(now, counter, position, bytes, sink);
        }
    }

    /// Notes that `counter` was a signal: nothing of the stream is missing
    /// there. What is missing before it may be signals, too (a path MTU probe
    /// that was too big); only the next stream datagram tells.
    #[inline]
    pub fn receive_signal(&mut self, now: Instant, counter: u64, sink: &mut impl StreamSink) {
        if counter == self.expected {
            self.advance(now, counter + 1, sink);
        }
    }

    /// When [`Unpacker::expire`] wants to be called, if nothing else comes.
    #[inline]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Gives up a hole that has been waited for long enough.
    pub fn expire(&mut self, now: Instant, sink: &mut impl StreamSink) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.give_up_hole(now, sink);
        }
    }

    /// A datagram whose hole was given up: its whole records are still good.
    #[cold]
    fn late(&mut self, position: Position, bytes: &[u8], sink: &mut impl StreamSink) {
        sink.event(StreamEvent::Late, 1);
        self.window = (2 * self.window).min(HELD_MAX);
        self.true_losses = 0;
        let rest = position.first_record.and_then(|first| bytes.get(usize::from(first)..));
        whole_records(rest.unwrap_or_default(), sink);
    }

    fn hold(
        &mut self,
        now: Instant,
        counter: u64,
        position: Position,
        bytes: &[u8],
        sink: &mut impl StreamSink,
    ) {
        if self.true_losses >= TRUE_LOSSES {
            self.window = (self.window / 2).max(WINDOW_MIN);
            self.true_losses = 0;
        }
        self.give_up_to(now, counter, HELD_MAX, sink);
        if counter >= self.expected + HELD_MAX as u64 {
            let missing = first_counter(counter, position).saturating_sub(self.expected);
            self.note_missing(missing, sink);
            self.expected = counter;
        }
        if counter == self.expected {
            self.partial.datagram(position, bytes, sink);
            self.advance(now, counter + 1, sink);
            return;
        }
        let slot = &mut self.held[(counter % HELD_MAX as u64) as usize];
        if slot.occupied {
            // Only a peer that lies about what it skipped gets here.
            sink.event(StreamEvent::Malformed, 1);
            return;
        }
        sink.event(StreamEvent::Held, 1);
        slot.occupied = true;
        slot.counter = counter;
        slot.position = position;
        slot.bytes.clear();
        slot.bytes.extend_from_slice(bytes);
        self.held_count += 1;
        self.deadline.get_or_insert(now + HOLD_MAX);
        // It waits itself by now: others that wait may be newer, where the window has shrunk.
        self.give_up_to(now, counter, self.window, sink);
    }

    /// Gives holes up until `counter` is less than a `window` ahead.
    fn give_up_to(
        &mut self,
        now: Instant,
        counter: u64,
        window: usize,
        sink: &mut impl StreamSink,
    ) {
        while self.held_count > 0 && counter >= self.expected + window as u64 {
            self.give_up_hole(now, sink);
        }
    }

    #[inline]
    fn advance(&mut self, now: Instant, expected: u64, sink: &mut impl StreamSink) {
        self.expected = expected;
        if self.held_count > 0 {
            self.drain(now, sink);
        }
    }

    /// Processes what no longer waits; the deadline restarts for the next hole.
    fn drain(&mut self, now: Instant, sink: &mut impl StreamSink) {
        while self.held_count > 0 {
            let Some(next) = self.next_held() else { break };
            let held = &self.held[next];
            if first_counter(held.counter, held.position) > self.expected {
                break;
            }
            self.process_held(next, sink);
        }
        self.deadline = (self.held_count > 0).then(|| now + HOLD_MAX);
    }

    fn give_up_hole(&mut self, now: Instant, sink: &mut impl StreamSink) {
        if let Some(next) = self.next_held() {
            let held = &self.held[next];
            let first = first_counter(held.counter, held.position);
            self.note_missing(first.saturating_sub(self.expected), sink);
            self.process_held(next, sink);
        }
        self.drain(now, sink);
    }

    fn note_missing(&mut self, missing: u64, sink: &mut impl StreamSink) {
        sink.event(StreamEvent::Missing, missing);
        self.partial.missing += missing;
        self.true_losses = self.true_losses.saturating_add(1);
    }

    /// The held datagram with the lowest counter.
    fn next_held(&self) -> Option<usize> {
        (0..HELD_MAX as u64)
            .map(|ahead| ((self.expected + ahead) % HELD_MAX as u64) as usize)
            .find(|&slot| self.held[slot].occupied)
    }

    fn process_held(&mut self, slot: usize, sink: &mut impl StreamSink) {
        let held = &mut self.held[slot];
        held.occupied = false;
        self.held_count -= 1;
        self.expected = self.expected.max(held.counter + 1);
        self.partial.datagram(held.position, &held.bytes, sink);
    }
}

/// The first of the counters up to `counter` that are known to have carried
/// nothing of the stream but what this datagram carries.
fn first_counter(counter: u64, position: Position) -> u64 {
    match position.skipped {
        // That many or more: the lane was idle for long.
        u8::MAX => 0,
        skipped => counter.saturating_sub(u64::from(skipped)),
    }
}

impl Partial {
    #[inline]
    fn datagram(&mut self, position: Position, bytes: &[u8], sink: &mut impl StreamSink) {
        if self.missing > 0 && !self.bridge(position) {
            self.abandon(sink);
        }
        if self.is_headless && position.record_offset == 0 {
            // Where datagrams were never sent, the record may have been given up half-way:
            // its last bytes are then no trailer.
            if position.skipped == 0 { self.end_headless(sink) } else { self.abandon(sink) }
        }
        let continues = position.record_offset > 0;
        if self.in_record != continues
            || (continues && self.bytes.len() != position.record_offset as usize)
        {
            self.abandon(sink);
            if position.has_trailer {
                self.begin_headless(position);
            }
        }
        let start = if !self.in_record {
            position.first_record.map(usize::from)
        } else if self.is_headless {
            self.fill_headless(position, bytes, sink)
        } else {
            self.fill(bytes, sink)
        };
        let Some(start) = start else { return };
        if let Some(rest) = bytes.get(start..) {
            self.begin(whole_records(rest, sink));
            self.datagram_length = bytes.len();
        } else {
            sink.event(StreamEvent::Malformed, 1);
        }
    }

    /// Goes on with the record behind the missing datagrams, where it is still
    /// the same one: a datagram within a record is full, so the bytes that are
    /// missing are known. (Had the record ended in the hole, fewer would be.)
    /// Returns whether it is.
    fn bridge(&mut self, position: Position) -> bool {
        let missing = usize::try_from(std::mem::take(&mut self.missing)).unwrap_or(usize::MAX);
        let have = self.bytes.len();
        let behind = position.record_offset as usize;
        let length = if self.is_headless { Some(record::RECORD_LENGTH_MAX) } else { self.length() };
        let is_same = self.in_record
            && self.gap_count < GAPS_MAX
            && length.is_some_and(|length| behind < length)
            && missing.checked_mul(self.datagram_length) == behind.checked_sub(have);
        if is_same {
            self.gaps[self.gap_count] = have..behind;
            self.gap_count += 1;
            self.bytes.resize(behind, 0);
        }
        is_same
    }

    /// The rest of the record will not come.
    #[cold]
    fn abandon(&mut self, sink: &mut impl StreamSink) {
        if !std::mem::replace(&mut self.in_record, false) {
            return;
        }
        match self.length() {
            Some(length) if !self.is_headless => {
                let have = self.bytes.len();
                self.bytes.resize(length, 0);
                self.deliver_damaged(have, sink);
            }
            _ => sink.event(StreamEvent::RecordTruncated, 1),
        }
        self.is_headless = false;
    }

    /// Takes up a record in its middle.
    #[cold]
    fn begin_headless(&mut self, position: Position) {
        let lost = position.record_offset as usize;
        if lost < record::RECORD_LENGTH_MAX {
            self.in_record = true;
            self.is_headless = true;
            self.bytes.clear();
            self.bytes.resize(lost, 0);
            self.gaps[0] = 0..lost;
            self.gap_count = 1;
            self.datagram_length = 0;
        }
    }

    /// Continues a record without a beginning; returns where the datagram's own
    /// records start, or `None` where nothing is left. It ends where another
    /// record begins, or with a datagram that isn't full.
    #[cold]
    fn fill_headless(
        &mut self,
        position: Position,
        bytes: &[u8],
        sink: &mut impl StreamSink,
    ) -> Option<usize> {
        let start = position.first_record.map(usize::from);
        let own = &bytes[..start.unwrap_or(bytes.len()).min(bytes.len())];
        if self.bytes.len() + own.len() > record::RECORD_LENGTH_MAX {
            sink.event(StreamEvent::Malformed, 1);
            self.in_record = false;
            self.is_headless = false;
            return start;
        }
        self.bytes.extend_from_slice(own);
        if start.is_some() || bytes.len() < self.datagram_length {
            self.end_headless(sink);
        }
        self.datagram_length = bytes.len();
        start
    }

    fn end_headless(&mut self, sink: &mut impl StreamSink) {
        self.in_record = false;
        self.is_headless = false;
        let have = self.bytes.len();
        let last_gap = self.gaps[..self.gap_count].last().map_or(0, |gap| gap.end);
        if have - last_gap >= record::TRAILER_LENGTH {
            self.deliver_damaged(have, sink);
        } else {
            sink.event(StreamEvent::RecordTruncated, 1);
        }
    }

    fn deliver_damaged(&mut self, have: usize, sink: &mut impl StreamSink) {
        let mut survived = [const { 0..0 }; GAPS_MAX + 1];
        let (mut count, mut start) = (0, 0);
        for gap in &self.gaps[..self.gap_count] {
            // A lost beginning leaves nothing before it.
            if gap.start > 0 {
                survived[count] = start..gap.start;
                count += 1;
            }
            start = gap.end;
        }
        survived[count] = start..have;
        sink.damaged(&mut self.bytes, &survived[..=count]);
    }

    /// Length of the whole record, once its header is there.
    fn length(&self) -> Option<usize> {
        record::length(*self.bytes.first_chunk()?)
    }

    /// Continues the partial record; returns where the datagram's own records
    /// start, or `None` where nothing is left.
    fn fill(&mut self, bytes: &[u8], sink: &mut impl StreamSink) -> Option<usize> {
        let mut taken = 0;
        if let Some(missing) = record::HEADER_LENGTH.checked_sub(self.bytes.len()) {
            taken = missing.min(bytes.len());
            self.bytes.extend_from_slice(&bytes[..taken]);
        }
        let header = *self.bytes.first_chunk::<{ record::HEADER_LENGTH }>()?;
        let Some(length) = record::length(header) else {
            self.in_record = false;
            sink.event(StreamEvent::Malformed, 1);
            return None;
        };
        let more = length.saturating_sub(self.bytes.len()).min(bytes.len() - taken);
        self.bytes.extend_from_slice(&bytes[taken..taken + more]);
        taken += more;
        if self.bytes.len() < length {
            return None;
        }
        self.in_record = false;
        if self.gap_count == 0 {
            sink.record(&self.bytes);
        } else {
            self.deliver_damaged(length, sink);
        }
        (taken < bytes.len()).then_some(taken)
    }

    /// Keeps the beginning of a record, if there is one.
    #[inline]
    fn begin(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.in_record = true;
            self.gap_count = 0;
            self.bytes.clear();
            self.bytes.extend_from_slice(bytes);
        }
    }
}

/// Delivers the whole records at the start of `bytes` in place and returns the rest.
#[inline]
fn whole_records<'a>(mut bytes: &'a [u8], sink: &mut impl StreamSink) -> &'a [u8] {
    while let Some(header) = bytes.first_chunk::<{ record::HEADER_LENGTH }>() {
        let Some(length) = record::length(*header) else {
            sink.event(StreamEvent::Malformed, 1);
            return &[];
        };
        let Some((whole, rest)) = bytes.split_at_checked(length) else { break };
        sink.record(whole);
        bytes = rest;
    }
    bytes
}
