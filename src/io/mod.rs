//! TAP, AF_PACKET, UDP, netlink, threads: every system call is in here.

pub mod clock;
pub mod daemon;
pub mod data_thread;
pub mod lan;
pub mod random;
pub mod spin;
mod status;
pub mod underlay;
