//! UDP segmentation offload from host to host.

use super::rate::{Load, positive, search};
use crate::{settings::Settings, topology::Topology};
use anyhow::Result;

const PAYLOAD: usize = 64;
/// What every kernel with UDP_SEGMENT takes in one send (include/linux/udp.h,
/// UDP_MAX_SEGMENTS; 128 since Linux 6.9).
const SEGMENTS: usize = 64;

/// Datagrams of 64 bytes received per second, sent with UDP_SEGMENT and received
/// with UDP_GRO, from east to west: the most of any rate that was tried.
pub(super) fn measure(
    topology: &Topology<'_>,
    settings: &Settings,
    add: &mut dyn FnMut(&str, f64),
) -> Result<()> {
    let load = Load { datagram: PAYLOAD, datagrams_per_message: SEGMENTS, first_rate: 100e3 };
    let found = search(topology, settings, &load)?;
    add("segments_per_s", positive(found.most)?);
    Ok(())
}
