//! Superframes with a hole: the whole segments before and after it are made
//! into smaller superframes, so that the loss of one datagram costs the
//! segments that it carried and not the tens of others.

use std::ops::Range;

use super::{Offload, OffloadError, Segmentation, superframe::Superframe, superframe::Task};

/// Longest headers, Ethernet's to TCP's or UDP's together, that are kept, bytes.
pub const MAX_HEADER_LENGTH: usize = 256;

/// What is kept of a superframe with holes: a copy of its headers.
///
/// The rest stays where it was received. A surviving part gets its headers
/// written just before its payload, over bytes that were lost or already
/// emitted, so no payload is copied:
///
/// ```text
/// received   | headers | payload ····· |  hole  | ··|·· payload ·········· |
///                                                   ^ next segment's start
/// part 1     | headers | payload ··|
/// part 2                              | headers | payload ················ |
/// ```
#[derive(Clone, Debug)]
pub struct Salvage {
    superframe: Superframe,
    offload: Offload,
    header: [u8; MAX_HEADER_LENGTH],
}

impl Salvage {
    /// Keeps the headers of a superframe of `frame_length` bytes, of which at
    /// least the first, `head`, are intact.
    ///
    /// # Errors
    /// `offload` doesn't fit the frame, `head` doesn't hold all headers, or
    /// the frame has one segment only: there is nothing to salvage.
    pub fn new(head: &[u8], frame_length: usize, offload: &Offload) -> Result<Self, OffloadError> {
        let Task::Cut(superframe) = Task::of(offload, head, frame_length)? else {
            return Err(OffloadError::NoSuperframe);
        };
        let length = superframe.header_length();
        let mut header = [0; MAX_HEADER_LENGTH];
        let kept = header.get_mut(..length).ok_or(OffloadError::HeadersTooLong { length })?;
        kept.copy_from_slice(&head[..length]);
        Ok(Self { superframe, offload: *offload, header })
    }

    /// Makes a frame of the whole segments within `survived`, a range of the
    /// frame's bytes, and returns it with its descriptor; its headers are
    /// written in place. `None` where no whole segment survived.
    ///
    /// Call it for the surviving ranges in ascending order: the headers of a part may
    /// overwrite the end of the part before.
    ///
    /// # Panics
    /// If `frame` is shorter than the length given to [`Salvage::new`].
    pub fn part<'f>(
        &self,
        frame: &'f mut [u8],
        survived: Range<usize>,
    ) -> Option<(&'f [u8], Offload)> {
        assert!(frame.len() >= self.superframe.headers().end, "not the frame this was made from");
        let part = self.whole_segments(survived)?;
        let header_length = self.superframe.header_length();
        let made = &mut frame[part.start..header_length + part.end];
        let header = &mut made[..header_length];
        header.copy_from_slice(&self.header[..header_length]);
        self.superframe.write_header(header, &part);
        Some((made, self.offload_of(&part)))
    }

    /// The whole segments within a range of the frame, as a range of its payload.
    fn whole_segments(&self, survived: Range<usize>) -> Option<Range<usize>> {
        let size = self.superframe.segment_size();
        let payload_length = self.superframe.payload_length();
        let in_payload = |at: usize| at.saturating_sub(self.superframe.header_length());
        let start = in_payload(survived.start).next_multiple_of(size);
        let end = match in_payload(survived.end) {
            end if end >= payload_length => payload_length,
            end => end - end % size,
        };
        (start < end).then_some(start..end)
    }

    fn offload_of(&self, part: &Range<usize>) -> Offload {
        if part.len() <= self.superframe.segment_size() {
            return Offload::CHECKSUM;
        }
        let ecn = self.offload.ecn && part.start == 0;
        debug_assert_ne!(self.offload.segmentation, Segmentation::None);
        Offload { ecn, ..self.offload }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::offload::fixtures::{FrameSpec, segments, superframe_spec};

    /// The parts around `holes` (ascending, of the frame), cut into segments.
    fn salvage(spec: &FrameSpec, segment_size: u16, holes: &[Range<usize>]) -> Vec<Vec<u8>> {
        let mut frame = spec.build_unfinished();
        let offload = spec.offload(segment_size);
        let salvage = Salvage::new(&frame[..holes[0].start], frame.len(), &offload).unwrap();
        for hole in holes {
            frame[hole.clone()].fill(0xee);
        }
        let starts = std::iter::once(0).chain(holes.iter().map(|hole| hole.end));
        let ends = holes.iter().map(|hole| hole.start).chain(std::iter::once(frame.len()));
        let survived: Vec<_> = starts.zip(ends).map(|(start, end)| start..end).collect();
        let mut emitted = Vec::new();
        for range in survived {
            if let Some((part, offload)) = salvage.part(&mut frame, range) {
                emitted.extend(segments(part, &offload));
            }
        }
        emitted
    }

    #[test]
    fn a_part_of_one_segment_is_no_superframe() {
        let spec = FrameSpec { payload: vec![7; 30], ..FrameSpec::default() };
        let mut frame = spec.build_unfinished();
        let salvage = Salvage::new(&frame, frame.len(), &spec.offload(10)).unwrap();
        let (part, offload) = salvage.part(&mut frame, 54..65).unwrap();
        assert_eq!((part.len(), offload), (64, Offload::CHECKSUM));
        assert_eq!(salvage.part(&mut frame, 0..63), None);
        assert_eq!(salvage.part(&mut frame, 55..73), None);
        assert_eq!(salvage.part(&mut frame, 84..84), None);
    }

    #[test]
    fn what_has_no_segments_is_refused() {
        let spec = FrameSpec { payload: vec![7; 30], ..FrameSpec::default() };
        let frame = spec.build_unfinished();
        for offload in [Offload::NONE, Offload::CHECKSUM, spec.offload(30)] {
            let refused = Salvage::new(&frame, frame.len(), &offload).unwrap_err();
            assert_eq!(refused, OffloadError::NoSuperframe);
        }
        let lost_head = Salvage::new(&frame[..53], frame.len(), &spec.offload(10)).unwrap_err();
        assert!(matches!(lost_head, OffloadError::Headers(_)));
    }

    #[test]
    fn ecn_stays_with_the_start() {
        let spec = FrameSpec { flags: 0x90, payload: vec![7; 60], ..FrameSpec::default() };
        let offload = Offload { ecn: true, ..spec.offload(10) };
        let mut frame = spec.build_unfinished();
        let length = frame.len();
        let salvage = Salvage::new(&frame, length, &offload).unwrap();
        assert!(salvage.part(&mut frame, 0..74).unwrap().1.ecn);
        assert!(!salvage.part(&mut frame, 84..length).unwrap().1.ecn);
    }

    proptest! {
        #[test]
        fn what_survives_is_the_segments_without_a_hole(
            (spec, size) in superframe_spec(),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 2..8),
        ) {
            let whole = spec.build_unfinished();
            let header_length = whole.len() - spec.payload.len();
            let mut cuts: Vec<usize> =
                cuts.iter().map(|cut| header_length + cut.index(spec.payload.len() + 1)).collect();
            cuts.sort_unstable();
            let holes: Vec<_> = cuts.chunks_exact(2).map(|cut| cut[0]..cut[1]).collect();

            let size_bytes = usize::from(size);
            let segment_is_whole = |index: usize| {
                let start = header_length + index * size_bytes;
                let end = (start + size_bytes).min(whole.len());
                // An empty hole still parts what is before it from what is behind.
                let touched = |hole: &Range<usize>| {
                    if hole.is_empty() { start < hole.start && hole.start < end }
                    else { hole.start < end && start < hole.end }
                };
                !holes.iter().any(touched)
            };
            let expected: Vec<_> = spec.expected_segments(size).into_iter().enumerate()
                .filter(|(index, _)| segment_is_whole(*index))
                .map(|(_, segment)| segment)
                .collect();
            prop_assert_eq!(salvage(&spec, size, &holes), expected);
        }

        #[test]
        fn any_range_is_survived((spec, size) in superframe_spec(), start: u16, end: u16) {
            let mut frame = spec.build_unfinished();
            let salvage = Salvage::new(&frame, frame.len(), &spec.offload(size)).unwrap();
            let range = usize::from(start)..usize::from(end);
            if let Some((part, offload)) = salvage.part(&mut frame, range) {
                prop_assert!(!segments(part, &offload).is_empty());
            }
        }
    }
}
