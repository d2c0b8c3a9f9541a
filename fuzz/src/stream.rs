use std::{collections::HashSet, ops::Range, time::Duration};

use landbridge::{
    offload::Offload,
    stream::{HOLD_MAX, Packer, StreamEvent, StreamSink, Unpacker, WINDOW_MIN},
    time::Instant,
    topology::NetworkId,
    wire::{
        datagram::{HEADER_LENGTH, POSITION_LENGTH, Position, STREAM_OVERHEAD, TAG_LENGTH},
        record::{self, Record},
    },
};

use crate::input::Input;

/// Lanes open nothing beyond this counter.
const COUNTER_MAX: u64 = 1 << 40;

/// Takes whole records only.
#[derive(Default)]
struct Records(Vec<Vec<u8>>);

impl StreamSink for Records {
    fn record(&mut self, bytes: &[u8]) {
        let header = *bytes.first_chunk().expect("a record's header");
        assert_eq!(record::length(header), Some(bytes.len()));
        let _ = record::parse(bytes);
        self.0.push(bytes.to_vec());
    }

    fn damaged(&mut self, bytes: &mut [u8], survived: &[Range<usize>]) {
        let (first, last) = (survived.first().expect("a range"), survived.last().expect("a range"));
        if first.start == 0 {
            let header = *bytes.first_chunk().expect("a record's header");
            assert_eq!(record::length(header), Some(bytes.len()));
        } else {
            assert!(bytes.len() <= record::RECORD_LENGTH_MAX);
            assert!(last.end == bytes.len() && last.len() >= record::TRAILER_LENGTH);
        }
        assert!(survived.windows(2).all(|pair| pair[0].end <= pair[1].start));
        assert!(survived.iter().all(|range| range.start <= range.end && range.end <= bytes.len()));
    }

    fn event(&mut self, _: StreamEvent, _: u64) {}
}

fn settle(unpacker: &mut Unpacker, mut now: Instant, records: &mut Records) {
    let mut rounds = 0;
    while let Some(deadline) = unpacker.deadline() {
        assert!(deadline <= now + HOLD_MAX && rounds < 1000, "nothing waits for ever");
        now = now.max(deadline);
        unpacker.expire(now, records);
        rounds += 1;
    }
}

/// Authentic datagrams from a peer that lies about everything.
pub(crate) fn unpacker(data: &[u8]) {
    let mut input = Input::new(data);
    let mut unpacker = Unpacker::default();
    let mut records = Records::default();
    let (mut now, mut next) = (Instant::ZERO, 0u64);
    while !input.is_empty() {
        let (kind, step) = (input.byte(), input.byte());
        let counter = match step {
            0..=127 => next,
            128..=191 => next + u64::from(step - 128),
            192..=254 => next.saturating_sub(u64::from(step - 191)),
            255 => u64::from(input.u32()) << 8 & (COUNTER_MAX - 1),
        };
        next = (counter + 1).min(COUNTER_MAX - 1000);
        match kind % 4 {
            0 => unpacker.receive_signal(now, counter, &mut records),
            1 => {
                now = now + Duration::from_micros(u64::from(step) * 10);
                unpacker.expire(now, &mut records);
            }
            _ => {
                let position = Position::parse(&input.array());
                let bytes = input.chunk();
                unpacker.receive(now, counter, position, bytes, &mut records);
            }
        }
    }
    settle(&mut unpacker, now, &mut records);
}

/// An honest peer's records over a network that loses and reorders: what comes
/// out went in, whole and at most once; all of it where nothing is lost and
/// nothing comes later than the unpacker waits.
pub(crate) fn lossy_stream(data: &[u8]) {
    let mut input = Input::new(data);
    let mut packer = Packer::new(STREAM_OVERHEAD + 1 + usize::from(input.byte()));
    let mut sent = HashSet::new();
    let mut datagrams = Vec::new();
    for number in 0..input.byte() % 32 {
        let length = 14 + usize::from(input.u16()) % 5000;
        let mut frame = vec![number; length];
        frame[0] = input.byte();
        let record = Record::new(NetworkId(u32::from(number)), Offload::NONE, &frame);
        let bytes = record.parts().concat();
        pack(&mut packer, &bytes, &mut datagrams);
        if input.flag() {
            drain(&mut packer, &mut datagrams);
        }
        sent.insert(bytes);
    }
    drain(&mut packer, &mut datagrams);

    let (mut unpacker, mut records) = (Unpacker::default(), Records::default());
    let mut is_faithful = true;
    let mut delayed: Option<usize> = None;
    let total = sent.len();
    for counter in 0..datagrams.len() {
        match input.byte() % 8 {
            0 => is_faithful = false,
            1 if delayed.is_none() => delayed = Some(counter),
            _ => receive(&mut unpacker, &datagrams, counter, &mut records),
        }
        if let Some(late) = delayed.take_if(|late| counter + 2 > *late + WINDOW_MIN) {
            receive(&mut unpacker, &datagrams, late, &mut records);
        }
    }
    if let Some(late) = delayed {
        receive(&mut unpacker, &datagrams, late, &mut records);
    }
    settle(&mut unpacker, Instant::ZERO, &mut records);
    assert!(!is_faithful || records.0.len() == total, "{} of {total}", records.0.len());
    for record in records.0 {
        assert!(sent.remove(&record), "a record that was never sent, or sent once only");
    }
}

fn receive(unpacker: &mut Unpacker, sent: &[Vec<u8>], counter: usize, records: &mut Records) {
    let (position, bytes) = sent[counter].split_first_chunk::<POSITION_LENGTH>().expect("packed");
    unpacker.receive(Instant::ZERO, counter as u64, Position::parse(position), bytes, records);
}

fn pack(packer: &mut Packer, mut bytes: &[u8], datagrams: &mut Vec<Vec<u8>>) {
    if packer.is_full() {
        drain(packer, datagrams);
    }
    packer.begin_record(false);
    loop {
        bytes = &bytes[packer.write(bytes)..];
        if bytes.is_empty() {
            return;
        }
        drain(packer, datagrams);
    }
}

fn drain(packer: &mut Packer, datagrams: &mut Vec<Vec<u8>>) {
    let (size, batch) = packer.take();
    let plaintext = |datagram: &[u8]| datagram[HEADER_LENGTH..datagram.len() - TAG_LENGTH].to_vec();
    datagrams.extend(batch.chunks(size).map(plaintext));
}
