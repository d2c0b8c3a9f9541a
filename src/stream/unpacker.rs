use std::time::Duration;

use crate::{
    time::Instant,
    wire::{datagram::Position, record},
};

/// Datagrams that wait behind a hole, at most; one more gives the hole up.
pub const HELD_MAX: usize = 128;
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
    /// A record lost its beginning, middle or end.
    RecordTruncated,
    /// Lengths that contradict each other: skipped to the next record start.
    Malformed,
}

/// Where an [`Unpacker`] puts what it finds.
pub trait StreamSink {
    /// One whole record, header included, in stream order.
    fn record(&mut self, record: &[u8]);
    /// `amount` occurrences of an event.
    fn event(&mut self, event: StreamEvent, amount: u64);
}

/// The receiving end of a lane's stream: puts datagrams in order, waits a
/// little for those that are missing, and cuts the stream into records.
///
/// It starts at counter 0 and at a record boundary; where the first datagrams
/// are lost it joins at the first record start that it sees.
pub struct Unpacker {
    /// The next counter in order.
    expected: u64,
    partial: Partial,
    held: Box<[Held]>,
    held_count: usize,
    deadline: Option<Instant>,
}

#[derive(Default)]
struct Partial {
    bytes: Vec<u8>,
    in_record: bool,
}

/// A datagram that waits behind a hole; `stream` is `None` for a signal,
/// which only fills its place.
#[derive(Default)]
struct Held {
    occupied: bool,
    counter: u64,
    stream: Option<Position>,
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
            sink.event(StreamEvent::Late, 1);
            // Its fragments belong to records that were given up.
            let rest = position.first_record.and_then(|first| bytes.get(usize::from(first)..));
            whole_records(rest.unwrap_or_default(), sink);
        } else if counter.saturating_sub(u64::from(position.skipped)) <= self.expected {
            self.partial.datagram(position, bytes, sink);
            self.advance(now, counter + 1, sink);
        } else {
            self.hold(now, counter, Some(position), bytes, sink);
        }
    }

    /// Notes that `counter` was a signal: nothing of the stream is missing there.
    #[inline]
    pub fn receive_signal(&mut self, now: Instant, counter: u64, sink: &mut impl StreamSink) {
        if counter == self.expected {
            self.advance(now, counter + 1, sink);
        } else if counter > self.expected {
            self.hold(now, counter, None, &[], sink);
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

    fn hold(
        &mut self,
        now: Instant,
        counter: u64,
        stream: Option<Position>,
        bytes: &[u8],
        sink: &mut impl StreamSink,
    ) {
        while self.held_count > 0 && counter - self.expected >= HELD_MAX as u64 {
            self.give_up_hole(now, sink);
        }
        if counter - self.expected >= HELD_MAX as u64 {
            sink.event(StreamEvent::Missing, counter - self.expected);
            self.partial.hole(sink);
            self.expected = counter;
        }
        if counter == self.expected {
            if let Some(position) = stream {
                self.partial.datagram(position, bytes, sink);
            }
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
        slot.stream = stream;
        slot.bytes.clear();
        slot.bytes.extend_from_slice(bytes);
        self.held_count += 1;
        self.deadline.get_or_insert(now + HOLD_MAX);
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
            let skipped = self.held[next].stream.map_or(0, |position| position.skipped);
            if self.held[next].counter.saturating_sub(u64::from(skipped)) > self.expected {
                break;
            }
            self.process_held(next, sink);
        }
        self.deadline = (self.held_count > 0).then(|| now + HOLD_MAX);
    }

    fn give_up_hole(&mut self, now: Instant, sink: &mut impl StreamSink) {
        if let Some(next) = self.next_held() {
            let held = &self.held[next];
            let skipped = u64::from(held.stream.map_or(0, |position| position.skipped));
            let first = held.counter.saturating_sub(skipped);
            sink.event(StreamEvent::Missing, first.saturating_sub(self.expected));
            self.partial.hole(sink);
            self.process_held(next, sink);
        }
        self.drain(now, sink);
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
        if let Some(position) = held.stream {
            self.partial.datagram(position, &held.bytes, sink);
        }
    }
}

impl Partial {
    fn hole(&mut self, sink: &mut impl StreamSink) {
        if self.in_record {
            self.in_record = false;
            sink.event(StreamEvent::RecordTruncated, 1);
        }
    }

    #[inline]
    fn datagram(&mut self, position: Position, bytes: &[u8], sink: &mut impl StreamSink) {
        let continues = position.record_offset > 0;
        if self.in_record != continues
            || (continues && self.bytes.len() != position.record_offset as usize)
        {
            self.hole(sink);
        }
        let start = if self.in_record {
            match self.fill(bytes, sink) {
                Some(start) => start,
                None => return,
            }
        } else {
            match position.first_record {
                Some(first) => usize::from(first),
                None => return,
            }
        };
        if let Some(rest) = bytes.get(start..) {
            self.records(rest, sink);
        } else {
            sink.event(StreamEvent::Malformed, 1);
        }
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
        sink.record(&self.bytes);
        (taken < bytes.len()).then_some(taken)
    }

    /// Delivers the whole records at the start of `bytes` in place and keeps the rest.
    #[inline]
    fn records(&mut self, bytes: &[u8], sink: &mut impl StreamSink) {
        let rest = whole_records(bytes, sink);
        if !rest.is_empty() {
            self.in_record = true;
            self.bytes.clear();
            self.bytes.extend_from_slice(rest);
        }
    }
}

/// Delivers the whole records at the start of `bytes` and returns the beginning
/// of one after them; nothing where a length makes no sense.
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
