use std::sync::Arc;

use super::{Counter, Outlet, WorkerStatistics};
use crate::{
    offload::{
        Offload,
        coalesce::{Coalesced, Coalescer},
    },
    topology::{NetworkIndex, PortAttachment},
    tunnel::add,
};

/// The last step to the LAN: merges frames of a flow, hands them over and counts them.
pub(super) struct Delivery {
    coalescer: Coalescer<Destination>,
    statistics: Arc<WorkerStatistics>,
}

/// Where a frame leaves, and whose it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Destination {
    pub(super) network: NetworkIndex,
    pub(super) attachment: PortAttachment,
}

impl Delivery {
    pub(super) fn new(statistics: Arc<WorkerStatistics>) -> Self {
        Self { coalescer: Coalescer::default(), statistics }
    }

    /// Takes a frame. It leaves at once, or with [`Delivery::flush`] at the latest.
    #[inline]
    pub(super) fn put(
        &mut self,
        destination: Destination,
        offload: Offload,
        frame: &[u8],
        outlet: &mut impl Outlet,
    ) {
        let statistics = &self.statistics;
        let mut write = |frame: Coalesced<'_, Destination>| hand_over(statistics, &frame, outlet);
        if destination.attachment.takes_superframes {
            self.coalescer.offer(destination, &offload, frame, &mut write);
        } else {
            write(Coalesced { place: destination, offload, frame, merged: 1 });
        }
    }

    /// Hands over what is held.
    #[inline]
    pub(super) fn flush(&mut self, outlet: &mut impl Outlet) {
        let statistics = &self.statistics;
        self.coalescer.flush(&mut |frame| hand_over(statistics, &frame, outlet));
    }
}

fn hand_over(
    statistics: &WorkerStatistics,
    frame: &Coalesced<'_, Destination>,
    outlet: &mut impl Outlet,
) {
    let Destination { network, attachment } = frame.place;
    let merged = u64::from(frame.merged);
    let counter =
        match outlet.deliver(attachment.port, attachment.vlan, &frame.offload, frame.frame) {
            Ok(()) => {
                let network = &statistics.networks[usize::from(network.0)];
                add(&network.to_lan_frames, 1);
                add(&network.to_lan_bytes, frame.frame.len() as u64);
                if merged > 1 {
                    statistics.counters.add(Counter::LanMerged, merged);
                }
                return;
            }
            Err(error) => error.counter(),
        };
    statistics.counters.add(counter, merged);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;
    use crate::{
        node::{Counters, DeliverError, NetworkStatistics},
        offload::fixtures::FrameSpec,
        topology::PortIndex,
        tunnel::{Path, TransmitError},
        wire::ethernet::VlanTag,
    };

    /// A LAN that answers as it is told.
    struct Lan {
        answer: Result<(), DeliverError>,
        lengths: Vec<usize>,
    }

    impl Outlet for Lan {
        fn transmit(&mut self, _: &Path, _: usize, _: &[u8]) -> Result<(), TransmitError> {
            panic!("what came from a tunnel never leaves by one")
        }

        fn deliver(
            &mut self,
            _: PortIndex,
            _: Option<VlanTag>,
            _: &Offload,
            frame: &[u8],
        ) -> Result<(), DeliverError> {
            self.lengths.push(frame.len());
            self.answer
        }
    }

    /// Three frames of 54 + 100 bytes that belong together, delivered.
    fn deliver(
        takes_superframes: bool,
        answer: Result<(), DeliverError>,
    ) -> (Vec<usize>, Arc<WorkerStatistics>) {
        let statistics = Arc::new(WorkerStatistics {
            counters: Counters::default(),
            networks: [NetworkStatistics::default()].into(),
            lanes: Vec::new(),
        });
        let attachment = PortAttachment { port: PortIndex(0), vlan: None, takes_superframes };
        let destination = Destination { network: NetworkIndex(0), attachment };
        let mut delivery = Delivery::new(statistics.clone());
        let mut lan = Lan { answer, lengths: Vec::new() };
        let whole = FrameSpec { payload: vec![1; 300], ..FrameSpec::default() };
        for frame in whole.expected_segments(100) {
            delivery.put(destination, Offload::NONE, &frame, &mut lan);
        }
        delivery.flush(&mut lan);
        (lan.lengths, statistics)
    }

    #[test]
    fn a_superframe_is_one_frame_written() {
        let (lengths, statistics) = deliver(true, Ok(()));
        assert_eq!(lengths, [354]);
        let network = &statistics.networks[0];
        let read = |value: &AtomicU64| value.load(Relaxed);
        assert_eq!((read(&network.to_lan_frames), read(&network.to_lan_bytes)), (1, 354));
        assert_eq!(statistics.counters.get(Counter::LanMerged), 3);
    }

    #[test]
    fn every_frame_of_a_refused_superframe_is_counted() {
        for (error, counter) in [
            (DeliverError::Full, Counter::LanFull),
            (DeliverError::InvalidOffload, Counter::LanInvalidOffload),
            (DeliverError::TooBig, Counter::LanTooBig),
            (DeliverError::NotUp, Counter::LanNotUp),
            (DeliverError::Refused, Counter::LanRefused),
        ] {
            let (lengths, statistics) = deliver(true, Err(error));
            assert_eq!(lengths, [354]);
            for other in Counter::ALL {
                let expected = if *other == counter { 3 } else { 0 };
                assert_eq!(statistics.counters.get(*other), expected, "{error:?}: {other:?}");
            }
            assert_eq!(statistics.networks[0].to_lan_frames.load(Relaxed), 0);
        }
    }

    #[test]
    fn a_lan_that_takes_no_superframes_gets_none() {
        let (lengths, statistics) = deliver(false, Ok(()));
        assert_eq!(lengths, [154; 3]);
        assert_eq!(statistics.counters.get(Counter::LanMerged), 0);
    }
}
