//! Segmentation in software (TSO, USO), for a receiver whose kernel can't.

use super::{
    Offload, OffloadError, checksum,
    superframe::{Superframe, Task},
};

/// Hands `emit` the finished frames that `frame` and `offload` stand for:
/// checksums complete, one call per segment, in order. They are built in
/// `scratch`, which needs the length of the longest frame emitted; a frame
/// with nothing left to do is handed through as it is. Returns their number.
///
/// # Errors
/// `offload` doesn't fit `frame`, or `scratch` is too small; nothing was emitted.
pub fn segment(
    frame: &[u8],
    offload: &Offload,
    scratch: &mut [u8],
    emit: &mut dyn FnMut(&[u8]),
) -> Result<usize, OffloadError> {
    match Task::of(offload, frame, frame.len())? {
        Task::Nothing => {
            emit(frame);
            Ok(1)
        }
        Task::Checksum(headers) => {
            let copy = reserve(scratch, frame.len())?;
            copy.copy_from_slice(frame);
            checksum::complete_at(copy, &headers)?;
            emit(copy);
            Ok(1)
        }
        Task::Cut(superframe) => cut(frame, &superframe, scratch, emit),
    }
}

fn cut(
    frame: &[u8],
    superframe: &Superframe,
    scratch: &mut [u8],
    emit: &mut dyn FnMut(&[u8]),
) -> Result<usize, OffloadError> {
    let (header, payload) = frame.split_at(superframe.header_length());
    let scratch = reserve(scratch, header.len() + superframe.segment_size())?;
    let mut start = 0;
    for part in payload.chunks(superframe.segment_size()) {
        let segment = &mut scratch[..header.len() + part.len()];
        let (segment_header, segment_payload) = segment.split_at_mut(header.len());
        segment_header.copy_from_slice(header);
        segment_payload.copy_from_slice(part);
        superframe.write_header(segment_header, &(start..start + part.len()));
        let mut headers = *superframe.headers();
        headers.end = segment.len();
        checksum::complete_at(segment, &headers)?;
        emit(segment);
        start += part.len();
    }
    Ok(superframe.segment_count())
}

fn reserve(scratch: &mut [u8], needed: usize) -> Result<&mut [u8], OffloadError> {
    let given = scratch.len();
    scratch.get_mut(..needed).ok_or(OffloadError::ScratchTooSmall { needed, given })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::offload::{
        fixtures::{FrameSpec, segments, superframe_spec},
        headers::Headers,
    };

    #[test]
    fn a_finished_frame_is_handed_through() {
        let frame = b"fourteen bytes";
        let mut emitted = Vec::new();
        let count =
            segment(frame, &Offload::NONE, &mut [], &mut |frame| emitted.push(frame.to_vec()));
        assert_eq!((count, emitted), (Ok(1), vec![frame.to_vec()]));
    }

    #[test]
    fn flags_go_where_they_belong() {
        let flags = 0xff & !0x02 & !0x04;
        let spec = FrameSpec { flags, payload: vec![7; 25], ..FrameSpec::default() };
        let emitted = segments(&spec.build_unfinished(), &spec.offload(10));
        let flags: Vec<u8> = emitted.iter().map(|frame| frame[47]).collect();
        assert_eq!(flags, [0b1111_0000, 0b0111_0000, 0b0111_1001]);
    }

    #[test]
    fn id_and_sequence_wrap() {
        let spec = FrameSpec {
            id: 0xffff,
            sequence: u32::MAX,
            payload: vec![7; 25],
            ..FrameSpec::default()
        };
        let emitted = segments(&spec.build_unfinished(), &spec.offload(10));
        assert_eq!(emitted, spec.expected_segments(10));
        assert_eq!(emitted[1][18..20], [0, 0]);
        assert_eq!(emitted[1][38..42], [0, 0, 0, 9]);
    }

    #[test]
    fn a_small_scratch_buffer_is_refused_before_anything_is_emitted() {
        let spec = FrameSpec { payload: vec![7; 25], ..FrameSpec::default() };
        let frame = spec.build_unfinished();
        for (offload, needed) in [(spec.offload(10), 64), (Offload::CHECKSUM, frame.len())] {
            let result = segment(&frame, &offload, &mut vec![0; needed - 1], &mut |_| panic!());
            let given = needed - 1;
            assert_eq!(result, Err(OffloadError::ScratchTooSmall { needed, given }));
        }
    }

    proptest! {
        #[test]
        fn equals_frames_built_one_by_one((spec, size) in superframe_spec()) {
            let emitted = segments(&spec.build_unfinished(), &spec.offload(size));
            prop_assert_eq!(&emitted, &spec.expected_segments(size));
            let mut payload: Vec<u8> = Vec::new();
            for frame in &emitted {
                prop_assert!(checksum::verify(frame));
                let headers = Headers::parse(frame).unwrap();
                prop_assert!(headers.end - headers.payload_offset <= usize::from(size));
                payload.extend(&frame[headers.payload_offset..headers.end]);
            }
            prop_assert_eq!(payload, spec.payload);
        }

        #[test]
        fn any_descriptor_on_any_frame_is_survived(
            (spec, _) in superframe_spec(),
            kind in 0usize..5, ecn: bool, segment_size: u16, needs_checksum: bool,
            noise in proptest::collection::vec((0usize..120, any::<u8>()), 0..4),
        ) {
            use crate::offload::Segmentation::{None, Tcp4, Tcp6, Udp4, Udp6};
            let segmentation = [None, Tcp4, Tcp6, Udp4, Udp6][kind];
            let mut frame = spec.build_unfinished();
            for (at, value) in noise {
                let at = at % frame.len();
                frame[at] = value;
            }
            let offload = Offload { segmentation, ecn, segment_size, needs_checksum };
            let mut count = 0;
            let mut scratch = vec![0; 70_000];
            match segment(&frame, &offload, &mut scratch, &mut |_| count += 1) {
                Ok(emitted) => prop_assert_eq!(emitted, count),
                Err(_) => prop_assert_eq!(count, 0),
            }
        }
    }
}
