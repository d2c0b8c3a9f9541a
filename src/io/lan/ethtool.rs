//! LRO off: it merges packets in a way that can't be undone, so nothing that
//! forwards may use it (the kernel does the same for ports of a bridge,
//! `dev_disable_lro` in net/core/dev.c).
#![allow(unsafe_code)]
#![allow(clippy::disallowed_methods)]

use std::os::fd::AsRawFd;

use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

use super::tap::{check, interface_name, last_errno};

/// From include/uapi/linux/ethtool.h, which the libc crate leaves out.
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
const ETH_FLAG_LRO: u32 = 1 << 15;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Switches an interface's LRO off; says whether it was on.
pub(super) fn disable_lro(interface: &str) -> Result<bool, Errno> {
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None).map_err(|_| last_errno())?;
    let flags = match request(&socket, interface, ETHTOOL_GFLAGS, 0) {
        Ok(flags) => flags,
        // A driver without such flags has no LRO.
        Err(Errno::OPNOTSUPP) => return Ok(false),
        Err(errno) => return Err(errno),
    };
    if flags & ETH_FLAG_LRO == 0 {
        return Ok(false);
    }
    request(&socket, interface, ETHTOOL_SFLAGS, flags & !ETH_FLAG_LRO).map(|_| true)
}

fn request(socket: &Socket, interface: &str, command: u32, data: u32) -> Result<u32, Errno> {
    let mut value = Value { command, data };
    let request = libc::ifreq {
        ifr_name: interface_name(interface),
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut value).cast() },
    };
    // SAFETY: SIOCETHTOOL reads an `ifreq` whose data is a whole `ethtool_value`, as these commands want.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw const request) })?;
    Ok(value.data)
}
