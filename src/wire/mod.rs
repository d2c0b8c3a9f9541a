//! Bytes only: what stands on the LAN and what stands in a tunnel datagram.

pub mod datagram;
pub mod ethernet;
pub mod record;
pub mod signal;
