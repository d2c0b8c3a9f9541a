//! TAP, AF_PACKET, UDP, netlink, threads: every system call is in here.

pub mod lan;
