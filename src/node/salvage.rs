use std::ops::Range;

use crate::{
    offload::salvage::Salvage,
    topology::NetworkId,
    wire::record::{self, FrameRecord, PREFIX_LENGTH_MAX, TRAILER_LENGTH},
};

/// What can be had of a damaged record: whole segments of its superframe.
pub(super) struct Salvaged {
    /// The stretched network that the frame belongs to.
    pub(super) network: NetworkId,
    /// Where the frame is in the record.
    pub(super) frame: Range<usize>,
    /// Makes the segments.
    pub(super) salvage: Salvage,
}

/// Finds the headers of a damaged record's superframe, of which the `survived`
/// ranges came: at its beginning or, where they are not whole there, in its trailer.
pub(super) fn salvage(bytes: &[u8], survived: &[Range<usize>]) -> Option<Salvaged> {
    let (first, last) = (survived.first()?, survived.last()?);
    by_head(bytes, first).or_else(|| by_trailer(bytes, first, last))
}

fn by_head(bytes: &[u8], first: &Range<usize>) -> Option<Salvaged> {
    let head = first.end.checked_sub(PREFIX_LENGTH_MAX).filter(|_| first.start == 0)?;
    let FrameRecord { network, offload, frame } = record::parse(bytes).ok()?;
    let head = &frame[..head.min(frame.len())];
    let salvage = Salvage::new(head, frame.len(), &offload).ok()?;
    let frame = PREFIX_LENGTH_MAX..PREFIX_LENGTH_MAX + frame.len();
    Some(Salvaged { network, frame, salvage })
}

fn by_trailer(bytes: &[u8], first: &Range<usize>, last: &Range<usize>) -> Option<Salvaged> {
    // A record without a beginning comes here only if its datagrams said that it has one.
    let says_so = first.start > 0 || bytes.first_chunk().copied().is_some_and(record::has_trailer);
    if !says_so || last.end != bytes.len() || last.len() < TRAILER_LENGTH {
        return None;
    }
    let trailer = record::parse_trailer(bytes).ok()?;
    let salvage = Salvage::new(trailer.head, trailer.frame.len(), &trailer.offload).ok()?;
    Some(Salvaged { network: trailer.network, frame: trailer.frame, salvage })
}

impl Salvaged {
    /// The part of the frame that `survived`, a range of the record, covers.
    pub(super) fn within_frame(&self, survived: &Range<usize>) -> Range<usize> {
        let within = |at: usize| at.clamp(self.frame.start, self.frame.end) - self.frame.start;
        within(survived.start)..within(survived.end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        offload::{
            Offload,
            fixtures::{FrameSpec, segments, superframe_spec},
        },
        stream::{HOLD_MAX, Packer, StreamEvent, StreamSink, Unpacker},
        time::Instant,
        wire::{
            datagram::{HEADER_LENGTH, POSITION_LENGTH, Position, STREAM_OVERHEAD, TAG_LENGTH},
            record::{Record, TRAILER_FRAME_LENGTH_MIN},
        },
    };

    const NETWORK: NetworkId = NetworkId(7);
    const SIZE: usize = 1472;

    /// The segments that come out at the far end.
    #[derive(Default)]
    struct Lan(Vec<Vec<u8>>);

    impl StreamSink for Lan {
        fn record(&mut self, bytes: &[u8]) {
            let record = record::parse(bytes).unwrap();
            self.0.extend(segments(record.frame, &record.offload));
        }

        fn damaged(&mut self, bytes: &mut [u8], survived: &[Range<usize>]) {
            let Some(salvaged) = salvage(bytes, survived) else { return };
            assert_eq!(salvaged.network, NETWORK);
            for range in survived {
                let within = salvaged.within_frame(range);
                let frame = &mut bytes[salvaged.frame.clone()];
                if let Some((part, offload)) = salvaged.salvage.part(frame, within) {
                    self.0.extend(segments(part, &offload));
                }
            }
        }

        fn event(&mut self, _: StreamEvent, _: u64) {}
    }

    fn datagrams(records: &[Record<'_>]) -> Vec<Vec<u8>> {
        let mut packer = Packer::new(SIZE);
        let mut datagrams = Vec::new();
        let mut take = |packer: &mut Packer| {
            let (size, batch) = packer.take();
            let stream = |bytes: &[u8]| bytes[HEADER_LENGTH..bytes.len() - TAG_LENGTH].to_vec();
            datagrams.extend(batch.chunks(size).map(stream));
        };
        for record in records {
            packer.begin_record(record.has_trailer());
            for mut part in record.parts() {
                while !part.is_empty() {
                    part = &part[packer.write(part)..];
                    if packer.is_full() {
                        take(&mut packer);
                    }
                }
            }
        }
        take(&mut packer);
        datagrams
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_lost_datagram_costs_the_segments_in_it(
            (spec, segment_size) in superframe_spec(),
            length in 0..55_000usize,
            before in prop_oneof![14usize..2000, 1330usize..1434],
            lost in any::<prop::sample::Index>(),
        ) {
            let payload = (0..TRAILER_FRAME_LENGTH_MIN + length).map(|at| (at % 251) as u8).collect();
            let segment_size = segment_size.max(600);
            let spec = FrameSpec { payload, ..spec };
            let frame = spec.build_unfinished();
            let record = Record::new(NETWORK, spec.offload(segment_size), &frame);
            prop_assert!(record.has_trailer());
            let before = vec![9; before];
            let small = Record::new(NETWORK, Offload::NONE, &before);
            let offset = small.parts().concat().len();
            let datagrams = datagrams(&[small, record]);
            let lost = lost.index(datagrams.len());

            let (mut unpacker, mut lan) = (Unpacker::default(), Lan::default());
            let mut now = Instant::ZERO;
            for (counter, datagram) in datagrams.iter().enumerate().filter(|(at, _)| *at != lost) {
                let (position, bytes) = datagram.split_first_chunk::<POSITION_LENGTH>().unwrap();
                unpacker.receive(now, counter as u64, Position::parse(position), bytes, &mut lan);
            }
            // What comes next shows that the last was lost, or that a record ended with a full one.
            let next = Position { first_record: Some(0), ..Position::default() };
            unpacker.receive(now, datagrams.len() as u64, next, &[], &mut lan);
            now = now + HOLD_MAX;
            unpacker.expire(now, &mut lan);

            let stream_bytes = SIZE - STREAM_OVERHEAD;
            let gap = lost * stream_bytes..(lost + 1) * stream_bytes;
            let end = offset + PREFIX_LENGTH_MAX + frame.len();
            let start = end - spec.payload.len();
            let is_whole = |index: usize| {
                let from = start + index * usize::from(segment_size);
                let to = (from + usize::from(segment_size)).min(end);
                gap.end <= from || to <= gap.start
            };
            let segments = spec.expected_segments(segment_size).into_iter().enumerate()
                .filter_map(|(index, segment)| is_whole(index).then_some(segment));
            let small = (gap.start >= offset).then_some(before);
            prop_assert_eq!(lan.0, small.into_iter().chain(segments).collect::<Vec<_>>());
        }
    }
}
