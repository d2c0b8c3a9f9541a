//! Small frames per second, one by one.

use super::rate::{Load, positive, search};
use crate::{settings::Settings, topology::Topology};
use anyhow::Result;

/// UDP payload of a 64-byte Ethernet frame (without its checksum), bytes: 64 less
/// 14 of Ethernet, 20 of IPv4 and 8 of UDP.
pub(crate) const PAYLOAD: usize = 64 - 14 - 20 - 8;

/// Frames per second of which less than 1 % are lost, from east to west.
pub(super) fn measure(
    topology: &Topology<'_>,
    settings: &Settings,
    add: &mut dyn FnMut(&str, f64),
) -> Result<()> {
    let load = Load { datagram: PAYLOAD, datagrams_per_message: 1, first_rate: 50e3 };
    add("frames_per_s", positive(search(topology, settings, &load)?.sustained)?);
    Ok(())
}
