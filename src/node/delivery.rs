use std::sync::Arc;

use super::{Counter, DeliverError, Outlet, WorkerStatistics};
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
            Err(DeliverError::Full) => Counter::LanFull,
            Err(DeliverError::InvalidOffload) => Counter::LanInvalidOffload,
            Err(DeliverError::TooBig) => Counter::LanTooBig,
            Err(DeliverError::NotUp) => Counter::LanNotUp,
            Err(DeliverError::Refused) => Counter::LanRefused,
        };
    statistics.counters.add(counter, merged);
}
