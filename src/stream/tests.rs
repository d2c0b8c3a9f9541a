use std::{ops::Range, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{
    offload::Offload,
    time::Instant,
    topology::NetworkId,
    wire::{
        datagram::{HEADER_LENGTH, POSITION_LENGTH, Position, STREAM_OVERHEAD, TAG_LENGTH},
        record::{self, Record},
    },
};

/// A datagram as the unpacker sees it after authentication.
#[derive(Clone, Debug)]
struct Sent {
    counter: u64,
    position: Position,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Collected {
    frames: Vec<Vec<u8>>,
    damaged: Vec<(Vec<u8>, Vec<Range<usize>>)>,
    events: Vec<(StreamEvent, u64)>,
}

impl Collected {
    fn count(&self, wanted: StreamEvent) -> u64 {
        self.events.iter().filter(|(event, _)| *event == wanted).map(|(_, amount)| amount).sum()
    }
}

impl StreamSink for Collected {
    fn record(&mut self, bytes: &[u8]) {
        self.frames.push(record::parse(bytes).expect("whole records only").frame.to_vec());
    }

    fn damaged(&mut self, record: &mut [u8], survived: &[Range<usize>]) {
        self.damaged.push((record.to_vec(), survived.to_vec()));
    }

    fn event(&mut self, event: StreamEvent, amount: u64) {
        self.events.push((event, amount));
    }
}

/// Packs bursts of frames; a `gap` of counters before a burst stands for signals.
fn pack(size: usize, bursts: &[(u8, Vec<Vec<u8>>)]) -> Vec<Sent> {
    let mut packer = Packer::new(size);
    let mut sent = Vec::new();
    let mut counter = 0;
    for (gap, burst) in bursts {
        counter += u64::from(*gap);
        let mut skipped = *gap;
        let mut drain = |packer: &mut Packer| {
            let (size, batch) = packer.take();
            for datagram in batch.chunks(size) {
                let plaintext = &datagram[HEADER_LENGTH..datagram.len() - TAG_LENGTH];
                let (position, bytes) = plaintext.split_first_chunk::<POSITION_LENGTH>().unwrap();
                let position =
                    Position { skipped: std::mem::take(&mut skipped), ..Position::parse(position) };
                sent.push(Sent { counter, position, bytes: bytes.to_vec() });
                counter += 1;
            }
        };
        for frame in burst {
            if packer.is_full() {
                drain(&mut packer);
            }
            let record = Record::new(NetworkId(7), Offload::NONE, frame);
            packer.begin_record(record.has_trailer());
            for part in record.parts() {
                let mut rest = part;
                while !rest.is_empty() {
                    if packer.is_full() {
                        drain(&mut packer);
                    }
                    rest = &rest[packer.write(rest)..];
                }
            }
        }
        drain(&mut packer);
        assert!(packer.is_empty());
    }
    sent
}

fn at(millis: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(millis)
}

fn unpack(datagrams: &[Sent]) -> Collected {
    let mut unpacker = Unpacker::default();
    let mut collected = Collected::default();
    for datagram in datagrams {
        unpacker.receive(
            at(0),
            datagram.counter,
            datagram.position,
            &datagram.bytes,
            &mut collected,
        );
    }
    let mut now = at(1);
    while unpacker.deadline().is_some() {
        unpacker.expire(now, &mut collected);
        now = now + HOLD_MAX;
    }
    collected
}

fn frame(length: usize, fill: u8) -> Vec<u8> {
    (0..length).map(|at| (at as u8).wrapping_mul(31).wrapping_add(fill)).collect()
}

fn bursts() -> impl Strategy<Value = Vec<(u8, Vec<Vec<u8>>)>> {
    let length = prop_oneof![
        14usize..200,
        1400usize..1600,
        8000usize..9300,
        60_000usize..record::FRAME_LENGTH_MAX + 1
    ];
    let frame = (length, any::<u8>()).prop_map(|(length, fill)| frame(length, fill));
    let burst = prop::collection::vec(frame, 1..6);
    prop::collection::vec((0u8..3, burst), 1..5)
}

fn frames(bursts: &[(u8, Vec<Vec<u8>>)]) -> Vec<Vec<u8>> {
    bursts.iter().flat_map(|(_, burst)| burst.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_goes_in_comes_out(size in STREAM_OVERHEAD + 1..3000, bursts in bursts()) {
        // Tiny datagrams make the case slow, not more telling.
        let size = if size < 200 { 200 } else { size };
        let collected = unpack(&pack(size, &bursts));
        prop_assert_eq!(collected.frames, frames(&bursts));
        prop_assert!(collected.events.is_empty(), "{:?}", collected.events);
    }

    #[test]
    fn shuffled_within_the_window_comes_out_in_order(bursts in bursts(), seed: u64) {
        // A gap in the counters counts for the window like a datagram.
        let bursts: Vec<_> = bursts.into_iter().map(|(_, burst)| (0, burst)).collect();
        let mut sent = pack(1400, &bursts);
        let mut state = seed;
        for chunk in sent.chunks_mut(WINDOW_MIN) {
            for index in (1..chunk.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                chunk.swap(index, (state >> 33) as usize % (index + 1));
            }
        }
        let collected = unpack(&sent);
        prop_assert_eq!(&collected.frames, &frames(&bursts));
        prop_assert_eq!(collected.count(StreamEvent::Missing), 0);
    }

    #[test]
    fn losses_cost_only_the_records_that_they_touch(bursts in bursts(), lost in prop::collection::vec(any::<bool>(), 500)) {
        // What comes last shows what was lost before.
        let mut bursts = bursts;
        bursts.push((0, vec![frame(14, 9)]));
        let sent = pack(1400, &bursts);
        let last = sent[sent.len() - 1].counter;
        let kept: Vec<Sent> =
            sent.iter().filter(|datagram| datagram.counter == last
                    || !lost.get(datagram.counter as usize).unwrap_or(&false)).cloned().collect();
        let collected = unpack(&kept);
        let all = frames(&bursts);
        let mut untouched = Vec::new();
        let mut headed = 0;
        let mut place = 0usize;
        let mut spans = Vec::new();
        for datagram in &sent {
            spans.push((place..place + datagram.bytes.len(), kept.iter().any(|k| k.counter == datagram.counter)));
            place += datagram.bytes.len();
        }
        let mut start = 0;
        for frame in &all {
            let end = start + record::HEADER_LENGTH + 3 + frame.len();
            if spans.iter().all(|(span, kept)| *kept || span.end <= start || span.start >= end) {
                untouched.push(frame.clone());
            } else {
                let whole = Record::new(NetworkId(7), Offload::NONE, frame).parts().concat();
                let has_header = spans.iter().all(|(span, kept)| *kept || span.end <= start || span.start >= start + record::HEADER_LENGTH);
                if has_header {
                    let (record, survived) = &collected.damaged[headed];
                    headed += 1;
                    prop_assert_eq!(record.len(), whole.len());
                    for range in survived {
                        prop_assert_eq!(&record[range.clone()], &whole[range.clone()]);
                    }
                }
            }
            start = end;
        }
        prop_assert_eq!(&collected.frames, &untouched);
        let cut_off = collected.damaged.len() - headed;
        prop_assert!(cut_off == 0, "{cut_off} records out of nowhere");
    }

    #[test]
    fn loss_and_reordering_deliver_each_frame_at_most_once(
        seed: u64,
        reach in 2usize..200,
        loss in 0u64..30,
    ) {
        let sent = pack(200, &(0..3000).map(|at| (0, vec![frame(60, at as u8)])).collect::<Vec<_>>());
        let mut state = seed;
        let mut draw = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        let mut order: Vec<_> = sent.iter().filter(|_| draw(100) >= loss).cloned().collect();
        for chunk in order.chunks_mut(reach) {
            for index in (1..chunk.len()).rev() {
                if draw(4) == 0 {
                    chunk.swap(index, draw(index as u64 + 1) as usize);
                }
            }
        }
        let collected = unpack(&order);
        prop_assert_eq!(collected.frames.len(), order.len());
        prop_assert_eq!(collected.count(StreamEvent::Malformed), 0);
    }

    #[test]
    fn arbitrary_datagrams_never_panic(
        datagrams in prop::collection::vec((0u64..300, any::<Option<u16>>(), any::<u8>(), 0u32..70_000, any::<bool>(), prop::collection::vec(any::<u8>(), 0..50)), 0..200)
    ) {
        struct Ignore;
        impl StreamSink for Ignore {
            fn record(&mut self, _: &[u8]) {}
            fn damaged(&mut self, record: &mut [u8], survived: &[Range<usize>]) {
                assert!(survived.iter().all(|range| range.end <= record.len()));
            }
            fn event(&mut self, _: StreamEvent, _: u64) {}
        }
        let mut unpacker = Unpacker::default();
        for (counter, first_record, skipped, record_offset, has_trailer, bytes) in datagrams {
            unpacker.receive(at(0), counter, Position { first_record, skipped, record_offset, has_trailer }, &bytes, &mut Ignore);
            unpacker.receive_signal(at(0), counter + 3, &mut Ignore);
        }
        unpacker.expire(at(5), &mut Ignore);
    }
}

#[test]
fn a_hole_is_waited_for_and_then_given_up() {
    let sent =
        pack(200, &[(0, vec![frame(14, 1)]), (0, vec![frame(14, 2)]), (0, vec![frame(14, 3)])]);
    let mut unpacker = Unpacker::default();
    let mut collected = Collected::default();
    let give = |unpacker: &mut Unpacker, collected: &mut Collected, index: usize, now| {
        let Sent { counter, position, bytes } = &sent[index];
        unpacker.receive(now, *counter, *position, bytes, collected);
    };
    give(&mut unpacker, &mut collected, 0, at(0));
    give(&mut unpacker, &mut collected, 2, at(0));
    assert_eq!(collected.frames.len(), 1);
    assert_eq!(unpacker.deadline(), Some(at(0) + HOLD_MAX));
    unpacker.expire(at(0), &mut collected);
    assert_eq!(collected.frames.len(), 1, "not before its time");
    unpacker.expire(at(1), &mut collected);
    assert_eq!(collected.frames, [frame(14, 1), frame(14, 3)]);
    assert_eq!(collected.count(StreamEvent::Missing), 1);
    assert_eq!(unpacker.deadline(), None);
    give(&mut unpacker, &mut collected, 1, at(2));
    assert_eq!(collected.frames.last(), Some(&frame(14, 2)), "late, but whole");
    assert_eq!(collected.count(StreamEvent::Late), 1);
}

#[test]
fn a_long_idle_time_leaves_no_hole() {
    // A probe that was lost, then more signals than can be told.
    let sent = pack(200, &[(255, vec![frame(14, 1)])]);
    let mut unpacker = Unpacker::default();
    let mut collected = Collected::default();
    for counter in 1..1000 {
        unpacker.receive_signal(at(0), counter, &mut collected);
    }
    unpacker.receive(at(0), 1000, sent[0].position, &sent[0].bytes, &mut collected);
    assert_eq!(collected.frames.len(), 1);
    assert!(collected.events.is_empty());
}

#[test]
fn signals_leave_no_hole() {
    let sent = pack(200, &[(2, vec![frame(14, 1)])]);
    assert_eq!(sent[0].counter, 2);
    assert_eq!(unpack(&sent).frames.len(), 1);

    let mut unpacker = Unpacker::default();
    let mut collected = Collected::default();
    unpacker.receive_signal(at(0), 0, &mut collected);
    let position = Position { skipped: 0, ..sent[0].position };
    unpacker.receive(at(0), 1, position, &sent[0].bytes, &mut collected);
    assert_eq!(collected.frames.len(), 1);
    assert!(collected.events.is_empty());
}

#[test]
fn a_record_goes_on_behind_a_hole() {
    let whole = frame(10_000, 3);
    let sent = pack(1400, &[(0, vec![whole.clone(), frame(50, 1)])]);
    let payload = 1400 - STREAM_OVERHEAD;
    let kept: Vec<Sent> = [0, 1, 3, 4, 6, 7].map(|index: usize| sent[index].clone()).to_vec();
    let collected = unpack(&kept);
    assert_eq!(collected.frames, [frame(50, 1)]);
    let (record, survived) = &collected.damaged[0];
    assert_eq!(record.len(), whole.len() + record::HEADER_LENGTH + 3);
    assert_eq!(*survived, [0..2 * payload, 3 * payload..5 * payload, 6 * payload..record.len()]);
}

#[test]
fn lost_signals_leave_no_hole() {
    let mut unpacker = Unpacker::default();
    let mut collected = Collected::default();
    let first = &pack(200, &[(0, vec![frame(14, 1)])])[0];
    unpacker.receive(at(0), 0, first.position, &first.bytes, &mut collected);
    // 1 and 2 were probes that the path swallowed, 3 is a pong.
    unpacker.receive_signal(at(1), 3, &mut collected);
    assert_eq!(unpacker.deadline(), None);
    let next = &pack(200, &[(3, vec![frame(14, 2)])])[0];
    unpacker.receive(at(2), 4, next.position, &next.bytes, &mut collected);
    assert_eq!(collected.frames, [frame(14, 1), frame(14, 2)]);
    assert!(collected.events.is_empty(), "{:?}", collected.events);

    // 5 carried a record and is lost, 6 is a signal, 7 another record.
    unpacker.receive_signal(at(3), 6, &mut collected);
    let last = &pack(200, &[(1, vec![frame(14, 3)])])[0];
    unpacker.receive(at(3), 7, last.position, &last.bytes, &mut collected);
    unpacker.expire(at(4), &mut collected);
    assert_eq!(collected.frames.last(), Some(&frame(14, 3)));
    assert_eq!(collected.count(StreamEvent::Missing), 1);
}

#[test]
fn the_window_follows_the_path() {
    let sent = pack(200, &(0..7000).map(|_| (0, vec![frame(14, 1)])).collect::<Vec<_>>());
    let mut unpacker = Unpacker::default();
    let mut collected = Collected::default();
    let mut give = |collected: &mut Collected, index: usize| {
        let Sent { counter, position, bytes } = &sent[index];
        unpacker.receive(at(0), *counter, *position, bytes, collected);
    };
    // Every hundredth datagram is 50 late.
    let mut order: Vec<usize> = (0..sent.len()).collect();
    for start in (0..1000).step_by(100) {
        order[start..start + 51].rotate_left(1);
    }
    for index in &order[..1000] {
        give(&mut collected, *index);
    }
    assert_eq!(collected.count(StreamEvent::Late), 3, "8, 16 and 32 are too few for 50");
    assert_eq!(collected.frames.len(), 1000);
    // A path that keeps order, but loses: the window shrinks again.
    let mut held = Vec::new();
    for start in (1000..7000).step_by(1000) {
        let before = collected.count(StreamEvent::Held);
        for index in (start..start + 1000).filter(|index| index % 20 != 0) {
            give(&mut collected, index);
        }
        held.push(collected.count(StreamEvent::Held) - before);
    }
    assert_eq!((held[0], held[5]), (950, 50 * WINDOW_MIN as u64), "{held:?}");
}

/// Datagrams of a superframe's record with a trailer, and of one more frame behind it.
fn superframe_datagrams() -> Vec<Sent> {
    let offload = Offload {
        segmentation: crate::offload::Segmentation::Tcp4,
        segment_size: 1000,
        ..Offload::CHECKSUM
    };
    let (big, small) = (frame(10_000, 3), frame(14, 1));
    let mut packer = Packer::new(1400);
    for (bytes, offload) in [(&big, offload), (&small, Offload::NONE)] {
        let record = Record::new(NetworkId(7), offload, bytes);
        packer.begin_record(record.has_trailer());
        for part in record.parts() {
            assert_eq!(packer.write(part), part.len());
        }
    }
    let (size, batch) = packer.take();
    let sent = |(counter, datagram): (usize, &[u8])| {
        let plaintext = &datagram[HEADER_LENGTH..datagram.len() - TAG_LENGTH];
        let (position, bytes) = plaintext.split_first_chunk::<POSITION_LENGTH>().unwrap();
        let position = Position::parse(position);
        Sent { counter: counter as u64, position, bytes: bytes.to_vec() }
    };
    batch.chunks(size).enumerate().map(sent).collect()
}

#[test]
fn a_record_without_a_beginning_has_a_trailer() {
    let sent = superframe_datagrams();
    let collected = unpack(&sent[1..]);
    assert_eq!(collected.frames, [frame(14, 1)]);
    let (record, survived) = &collected.damaged[0];
    assert_eq!(survived.len(), 1);
    assert_eq!(survived[0], 1400 - STREAM_OVERHEAD..record.len());
    assert_eq!(&record[survived[0].clone()][..100], &sent[1].bytes[..100]);
}

#[test]
fn a_record_given_up_by_its_sender_has_none() {
    // The first datagram is lost, those from the fifth on were never sent: what
    // the fourth ends with is payload, and must not be read as a trailer.
    let mut sent = superframe_datagrams();
    sent.truncate(4);
    sent.remove(0);
    let next = Position { first_record: Some(0), skipped: 3, ..Position::default() };
    let bytes = pack(1400, &[(0, vec![frame(14, 2)])])[0].bytes.clone();
    sent.push(Sent { counter: 7, position: next, bytes });
    let collected = unpack(&sent);
    assert_eq!(collected.frames, [frame(14, 2)]);
    assert!(collected.damaged.is_empty());
    assert_eq!(collected.count(StreamEvent::RecordTruncated), 1);
}
