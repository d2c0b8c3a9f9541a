use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;
use crate::{
    offload::fixtures::{FrameSpec, segments},
    wire::ethernet::VlanTag,
};

/// What leaves: place, descriptor, bytes, frames merged.
type Leaving = Vec<(u8, Offload, Vec<u8>, u32)>;

/// Everything that leaves when `frames` come as one burst.
fn coalesce(frames: &[(u8, Offload, Vec<u8>)]) -> Leaving {
    let mut leaving = Leaving::new();
    let mut emit = |it: Coalesced<'_, u8>| {
        leaving.push((it.place, it.offload, it.frame.to_vec(), it.merged));
    };
    let mut coalescer = Coalescer::default();
    for (place, offload, frame) in frames {
        coalescer.offer(*place, offload, frame, &mut emit);
    }
    coalescer.flush(&mut emit);
    coalescer.flush(&mut |_| panic!("a flushed coalescer holds nothing"));
    leaving
}

/// The same for finished frames to one place: how many were merged each time.
fn merged(frames: &[Vec<u8>]) -> Vec<u32> {
    let frames: Vec<_> = frames.iter().map(|frame| (0, Offload::NONE, frame.clone())).collect();
    coalesce(&frames).iter().map(|(.., merged)| *merged).collect()
}

fn kinds() -> [FrameSpec; 4] {
    [(false, false), (true, false), (false, true), (true, true)].map(|(v6, udp)| FrameSpec {
        v6,
        udp,
        payload: vec![0x5a; 100],
        ..FrameSpec::default()
    })
}

/// The frame that continues a flow of frames with 100 bytes of payload each.
fn nth(spec: &FrameSpec, number: u16) -> FrameSpec {
    FrameSpec {
        id: spec.id.wrapping_add(number),
        sequence: spec.sequence.wrapping_add(100 * u32::from(number)),
        ..spec.clone()
    }
}

/// `frame` with its byte at `at` changed and all checksums right again.
fn changed(mut frame: Vec<u8>, at: usize, change: u8) -> Vec<u8> {
    frame[at] ^= change;
    let headers = Headers::parse(&frame).expect("still a frame");
    if headers.l3 == L3::V4 {
        let header = &mut frame[headers.l3_offset..headers.l4_offset];
        write_u16(header, 10, 0);
        write_u16(header, 10, !checksum::sum(header));
    }
    let at = headers.l4_offset + headers.l4.checksum_offset().expect("TCP or UDP");
    let pseudo_header = checksum::pseudo_header(&frame, &headers);
    write_u16(&mut frame, at, pseudo_header);
    checksum::complete(&mut frame).expect("TCP or UDP");
    frame
}

#[test]
fn a_lone_frame_leaves_as_it_came() {
    for spec in kinds() {
        let (finished, unfinished) = (spec.build(), spec.build_unfinished());
        let frames = [(7, Offload::CHECKSUM, unfinished.clone())];
        assert_eq!(coalesce(&frames), [(7, Offload::CHECKSUM, unfinished, 1)]);
        let frames = [(7, Offload::NONE, finished.clone())];
        assert_eq!(coalesce(&frames), [(7, Offload::NONE, finished, 1)]);
    }
}

#[test]
fn a_run_is_what_a_kernel_would_have_made() {
    for spec in kinds() {
        let whole = FrameSpec { flags: 0x19, payload: vec![0x5a; 350], ..spec };
        let frames: Vec<_> = whole
            .expected_segments(100)
            .into_iter()
            .map(|frame| (0, Offload::NONE, frame))
            .collect();
        assert_eq!(
            coalesce(&frames),
            [(0, whole.offload(100), whole.build_unfinished(), 4)],
            "{whole:?}"
        );
    }
}

#[test]
fn finished_and_unfinished_frames_mix() {
    for spec in kinds() {
        let frames = [
            (0, Offload::CHECKSUM, nth(&spec, 0).build_unfinished()),
            (0, Offload::NONE, nth(&spec, 1).build()),
            (0, Offload::CHECKSUM, nth(&spec, 2).build_unfinished()),
        ];
        let whole = FrameSpec { payload: vec![0x5a; 300], ..spec };
        let superframe = whole.build_unfinished();
        assert_eq!(coalesce(&frames), [(0, whole.offload(100), superframe, 3)]);
    }
}

#[test]
fn what_differs_is_not_merged() {
    for spec in kinds() {
        let tags = vec![VlanTag { tpid: VlanTag::CUSTOMER, tci: 100 }];
        let spec = FrameSpec { tags, tcp_options: 3, ..spec };
        let first = nth(&spec, 0).build();
        let second = nth(&spec, 1).build();
        assert_eq!(merged(&[first.clone(), second.clone()]), [2]);
        let headers = Headers::parse(&second).unwrap();
        let Headers { l3_offset: l3, l4_offset: l4, payload_offset, .. } = headers;
        // Addresses and tag but for the group bit; ToS, TTL or hop limit, DF,
        // addresses; ports; all of TCP but for lengths, FIN and PSH.
        let mut places: Vec<_> = (1..12).chain([14, 15]).chain(l4..l4 + 4).collect();
        places.extend(match headers.l3 {
            L3::V4 => [l3 + 1, l3 + 8, l3 + 12, l3 + 19],
            L3::V6 => [l3 + 1, l3 + 7, l3 + 8, l3 + 39],
        });
        if headers.l4 == L4::Tcp {
            places
                .extend((l4 + 4..l4 + 12).chain([l4 + 14, l4 + 18]).chain(l4 + 20..payload_offset));
            places.push(l4 + 15);
        }
        for at in places {
            let other = changed(second.clone(), at, 0x10);
            assert_eq!(merged(&[first.clone(), other]), [1, 1], "byte {at} of {spec:?}");
        }
        for frames in [[(0, first.clone()), (1, second.clone())], [(1, first), (0, second)]] {
            let frames = frames.map(|(place, frame)| (place, Offload::NONE, frame));
            assert_eq!(coalesce(&frames).len(), 2, "places differ");
        }
    }
}

#[test]
fn only_data_with_ack_is_merged_and_fin_and_psh_end_it() {
    let spec = &kinds()[0];
    let after = |flags: u8| {
        let second = FrameSpec { flags, ..nth(spec, 1) };
        merged(&[nth(spec, 0).build(), second.build(), nth(spec, 2).build()])
    };
    assert_eq!(after(0x10), [3]);
    for flags in [0x18, 0x11, 0x19] {
        assert_eq!(after(flags), [2, 1], "{flags:#x}");
    }
    for flags in [0x00, 0x12, 0x14, 0x30, 0x50, 0x90] {
        assert_eq!(after(flags), [1, 1, 1], "{flags:#x}");
    }
    let ece = |number| FrameSpec { flags: 0x50, ..nth(spec, number) }.build();
    assert_eq!(merged(&[ece(0), ece(1)]), [2]);
    let pure_ack = FrameSpec { payload: Vec::new(), ..nth(spec, 1) };
    assert_eq!(merged(&[nth(spec, 0).build(), pure_ack.build(), nth(spec, 1).build()]), [1; 3]);
}

#[test]
fn damage_stays_visible() {
    for spec in kinds() {
        let good = [0, 1, 2].map(|number| nth(&spec, number).build());
        for at in 14..good[1].len() {
            let mut damaged = good.clone();
            damaged[1][at] ^= 4;
            let frames = damaged.clone().map(|frame| (0, Offload::NONE, frame));
            let leaving = coalesce(&frames);
            let is_alone = |(.., bytes, merged): &(u8, Offload, Vec<u8>, u32)| {
                *merged == 1 && *bytes == damaged[1]
            };
            assert!(leaving.iter().any(is_alone), "byte {at} of {spec:?}: {leaving:?}");
        }
    }
}

#[test]
fn a_udp_datagram_without_checksum_stays_alone() {
    let spec = &kinds()[2];
    let frames = [0, 1].map(|number| {
        let mut frame = nth(spec, number).build();
        write_u16(&mut frame, 40, 0);
        frame
    });
    assert_eq!(merged(&frames), [1, 1]);
}

#[test]
fn options_fragments_padding_and_groups_stay_alone() {
    for spec in kinds() {
        let options = FrameSpec { ip_options: 1, ..spec.clone() };
        assert_eq!(merged(&[0, 1].map(|number| nth(&options, number).build())), [1, 1]);
        let alone = |change: fn(&mut Vec<u8>)| {
            let frames = [0, 1].map(|number| {
                let mut frame = nth(&spec, number).build();
                change(&mut frame);
                frame
            });
            assert_eq!(merged(&frames), [1, 1], "{spec:?}");
        };
        alone(|frame| frame.push(0));
        alone(|frame| frame[0] |= 1);
        if !spec.v6 {
            alone(|frame| {
                frame[20] = 0x20;
                write_u16(frame, 24, 0);
                let sum = !checksum::sum(&frame[14..34]);
                write_u16(frame, 24, sum);
            });
        }
    }
}

#[test]
fn superframes_have_bounds() {
    for spec in kinds() {
        let frames: Vec<_> = (0..1000).map(|number| nth(&spec, number).build()).collect();
        let merged = merged(&frames);
        assert_eq!(merged.iter().sum::<u32>(), 1000);
        let headers = Headers::parse(&frames[0]).unwrap();
        let most = match headers.l4 {
            L4::Udp => UDP_FRAMES_MAX,
            _ => ((SUPERFRAME_LENGTH_MAX - headers.payload_offset) / 100) as u32,
        };
        assert_eq!(merged[0], most);
    }
}

/// Linux gives packets that may not be fragmented id 0 on unconnected sockets.
#[test]
fn fixed_ids_are_merged_where_nobody_may_look_at_them() {
    let spec = &kinds()[2];
    let fixed = FrameSpec { id: 0, ..spec.clone() }.build();
    assert_eq!(merged(&[fixed.clone(), fixed.clone(), fixed.clone()]), [3]);
    let one = FrameSpec { id: 1, ..spec.clone() }.build();
    assert_eq!(merged(&[fixed.clone(), fixed.clone(), one.clone()]), [2, 1]);
    assert_eq!(merged(&[fixed.clone(), one, fixed.clone()]), [2, 1]);
    let fragmentable = changed(fixed, 20, 0x40);
    assert_eq!(merged(&[fragmentable.clone(), fragmentable]), [1, 1]);
}

#[test]
fn as_many_flows_as_there_is_room_for_do_not_hinder_each_other() {
    let interleaved = |count: u16| {
        let frame = |number: u16| {
            move |flow: u16| {
                let spec = FrameSpec { source_port: 5001 + flow, ..kinds()[3].clone() };
                nth(&spec, number).build()
            }
        };
        let frames: Vec<_> = (0..4).flat_map(|number| (0..count).map(frame(number))).collect();
        merged(&frames)
    };
    assert_eq!(interleaved(FLOWS as u16), [4; FLOWS]);
    assert_eq!(interleaved(FLOWS as u16 + 1), [1; 4 * (FLOWS + 1)]);
}

#[test]
fn others_wait_for_all_that_came_before() {
    let arp = [&[2; 12][..], &[8, 6], &[0; 46]].concat();
    let frames: Vec<Vec<u8>> = kinds().iter().map(FrameSpec::build).chain([arp.clone()]).collect();
    let burst: Vec<_> = frames.iter().map(|frame| (0, Offload::NONE, frame.clone())).collect();
    assert_eq!(coalesce(&burst).last().unwrap().2, arp);
}

/// What happens to a flow next.
#[derive(Clone, Debug)]
struct Step {
    flow: Index,
    place: u8,
    payload: usize,
    flags: u8,
    gap: u32,
    id_step: u16,
    unfinished: bool,
    noise: Option<(Index, u8, bool)>,
    superframe: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let mostly = |usual: u8, others: &'static [u8]| prop_oneof![6 => Just(usual), 1 => prop::sample::select(others)];
    let noise = prop_oneof![
        9 => Just(None),
        1 => any::<(Index, u8, bool)>().prop_map(Some),
    ];
    (
        (any::<Index>(), mostly(0, &[1]), prop_oneof![6 => Just(40usize), 1 => 0usize..60]),
        mostly(0x10, &[0x18, 0x11, 0x50, 0x90, 0x12, 0x02]),
        (
            prop_oneof![9 => Just(0u32), 1 => any::<u32>()],
            prop_oneof![9 => Just(1u16), 1 => 2u16..],
        ),
        (any::<bool>(), noise, prop::bool::weighted(0.05)),
    )
        .prop_map(
            |((flow, place, payload), flags, (gap, id_step), (unfinished, noise, superframe))| {
                Step { flow, place, payload, flags, gap, id_step, unfinished, noise, superframe }
            },
        )
}

fn flow() -> impl Strategy<Value = FrameSpec> {
    let tag = any::<u16>().prop_map(|tci| VlanTag { tpid: VlanTag::CUSTOMER, tci });
    (any::<(bool, bool, u16, u32)>(), vec(tag, 0..2), 0..2u16, 0..2u8).prop_map(
        |((v6, udp, id, sequence), tags, port, tcp_options)| FrameSpec {
            v6,
            udp,
            id,
            sequence,
            tags,
            tcp_options,
            source_port: 5001 + port,
            ..FrameSpec::default()
        },
    )
}

/// Lets `step` happen to `spec`: what comes.
fn frame_of(spec: &mut FrameSpec, step: &Step) -> (u8, Offload, Vec<u8>) {
    spec.id = spec.id.wrapping_add(step.id_step);
    spec.sequence = spec.sequence.wrapping_add(step.gap);
    let length = if step.superframe { 500 } else { step.payload };
    let payload = (0..length).map(|at| (at as u32 ^ spec.sequence) as u8).collect();
    let sent = FrameSpec { flags: step.flags, payload, ..spec.clone() };
    spec.sequence = spec.sequence.wrapping_add(length as u32);
    if step.superframe {
        spec.id = spec.id.wrapping_add(9);
        return (step.place, sent.offload(50), sent.build_unfinished());
    }
    if let Some((at, change, mend)) = step.noise {
        let frame = sent.build();
        let at = at.index(frame.len());
        let mut damaged = frame.clone();
        damaged[at] ^= change;
        let mendable =
            mend && Headers::parse(&damaged).is_ok_and(|h| h.l4.checksum_offset().is_some());
        let frame = if mendable { changed(frame, at, change) } else { damaged };
        return (step.place, Offload::NONE, frame);
    }
    match step.unfinished {
        true => (step.place, Offload::CHECKSUM, sent.build_unfinished()),
        false => (step.place, Offload::NONE, sent.build()),
    }
}

/// Finished frames by what orders them: place, flow.
fn by_flow<'a>(
    frames: impl Iterator<Item = (u8, &'a Offload, &'a [u8])>,
) -> BTreeMap<(u8, Vec<u8>), Vec<Vec<u8>>> {
    let mut flows = BTreeMap::<_, Vec<_>>::new();
    for (place, offload, frame) in frames {
        for frame in segments(frame, offload) {
            let flow = flow_headers(&frame).map_or_else(Vec::new, |headers| {
                let addresses = match headers.l3 {
                    L3::V4 => 12..20,
                    L3::V6 => 8..40,
                };
                let network = &frame[headers.l3_offset..headers.l4_offset];
                [&network[addresses], &frame[headers.l4_offset..][..4]].concat()
            });
            flows.entry((place, flow)).or_default().push(frame);
        }
    }
    flows
}

proptest! {
    /// Whatever comes leaves byte for byte, each flow in its order.
    #[test]
    fn segments_are_the_frames_that_were_merged(
        mut flows in vec(flow(), 1..4), steps in vec(step(), 1..120),
    ) {
        let frames: Vec<_> = steps
            .iter()
            .map(|step| {
                let index = step.flow.index(flows.len());
                frame_of(&mut flows[index], step)
            })
            .collect();
        let leaving = coalesce(&frames);
        let came = by_flow(frames.iter().map(|(place, offload, frame)| (*place, offload, &frame[..])));
        let left = by_flow(leaving.iter().map(|(place, offload, frame, _)| (*place, offload, &frame[..])));
        prop_assert_eq!(came, left);
        prop_assert_eq!(leaving.iter().map(|(.., merged)| *merged as usize).sum::<usize>(), frames.len());
        for (_, offload, frame, merged) in leaving.iter().filter(|(.., merged)| *merged > 1) {
            prop_assert_eq!(segments(frame, offload).len(), *merged as usize);
        }
    }

    #[test]
    fn any_frame_is_survived(frames in vec(vec(any::<u8>(), 0..80), 0..10)) {
        let frames: Vec<_> = frames.into_iter().map(|frame| (0, Offload::CHECKSUM, frame)).collect();
        prop_assert_eq!(coalesce(&frames).len(), frames.len());
    }
}
