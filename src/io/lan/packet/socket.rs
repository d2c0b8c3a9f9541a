//! Packet sockets: made, bound, shared, and read one frame at a time
//! (packet(7), net/packet/af_packet.c).
#![allow(unsafe_code)]
#![allow(clippy::disallowed_methods)]

use std::{
    mem::{self, MaybeUninit},
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use rustix::io::Errno;
use socket2::{Domain, SockFilter, Socket, Type};

use super::{
    super::tap::{check, last_errno},
    PacketError,
    ring::{ReceiveRing, vlan_tag},
};
use crate::{offload::virtio::HEADER_LENGTH as VNET_HEADER_LENGTH, wire::ethernet::VlanTag};

/// Receive buffer asked for, bytes; a superframe takes some 70 KiB of it.
const RECEIVE_BUFFER_BYTES: usize = 16 << 20;

/// A set-up socket, bound to the interface, that drops everything, and its
/// ring, if it can have one. What comes before a fanout group is complete would come twice.
pub(super) fn open_silent(
    interface_index: u32,
    slot_count: usize,
) -> Result<(Socket, Option<ReceiveRing>), PacketError> {
    // Protocol 0: nothing arrives before the bind names interface and protocol.
    let kind = Type::RAW.nonblocking().cloexec();
    let socket = Socket::new(Domain::PACKET, kind, None).map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => PacketError::NotPermitted,
        _ => PacketError::Socket(error),
    })?;
    const RETURN_NOTHING: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    socket
        .attach_filter(&[SockFilter::new(RETURN_NOTHING, 0, 0, 0)])
        .map_err(PacketError::Filter)?;
    // Refused without CAP_NET_ADMIN: then what rmem_max allows has to do.
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES)
        .is_err()
    {
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES);
    }
    let on: libc::c_int = 1;
    for (option, name) in [
        (libc::PACKET_VNET_HDR, "PACKET_VNET_HDR"),
        (libc::PACKET_AUXDATA, "PACKET_AUXDATA"),
        (libc::PACKET_IGNORE_OUTGOING, "PACKET_IGNORE_OUTGOING"),
    ] {
        set_option(&socket, option, &on)
            .map_err(|source| PacketError::Option { option: name, source })?;
    }
    // Before the bind, so that no frame is in the socket's queue that is not in the ring.
    let ring = ReceiveRing::open(&socket, slot_count)
        .inspect_err(|errno| tracing::warn!(%errno, "no receive ring for a NIC: going on without"))
        .ok();
    let membership = libc::packet_mreq {
        mr_ifindex: interface_index.cast_signed(),
        mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set_option(&socket, libc::PACKET_ADD_MEMBERSHIP, &membership)
        .map_err(|source| PacketError::Option { option: "PACKET_MR_PROMISC", source })?;
    bind(&socket, interface_index)
        .map_err(|source| PacketError::Bind { interface_index, source })?;
    Ok((socket, ring))
}

/// Puts `socket` into the fanout group `group`, or into a new one whose id the
/// kernel chooses; returns the group's id. Frames are shared by flow hash; no
/// defragmentation.
pub(super) fn join_fanout(socket: &Socket, group: Option<u16>) -> Result<u16, Errno> {
    let kind = match group {
        Some(_) => libc::PACKET_FANOUT_HASH,
        None => libc::PACKET_FANOUT_HASH | libc::PACKET_FANOUT_FLAG_UNIQUEID,
    };
    let argument = u32::from(group.unwrap_or(0)) | kind << 16;
    set_option(socket, libc::PACKET_FANOUT, &argument)?;
    if let Some(id) = group {
        return Ok(id);
    }
    let mut made: u32 = 0;
    get_option(socket, libc::PACKET_FANOUT, &mut made)?;
    Ok((made & 0xffff) as u16)
}

/// Room for one `PACKET_AUXDATA` message and one to spare.
#[repr(C, align(8))]
struct Control([u8; 96]);

/// One frame: its length (kernel header included, even where cut off) and the
/// tag that the kernel took out of it.
pub(super) fn receive_message(
    socket: &OwnedFd,
    header: &mut [u8; VNET_HEADER_LENGTH],
    frame: &mut [u8],
) -> Result<(usize, Option<VlanTag>), Errno> {
    let mut parts = [
        libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: header.len() },
        libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() },
    ];
    let mut control = Control([0; 96]);
    // SAFETY: all-zero is a valid `msghdr` (null pointers, zero lengths).
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len() as _;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = mem::size_of::<Control>() as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: `message` points to buffers that are live and as long as it says.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let Ok(length) = usize::try_from(length) else { return Err(last_errno()) };
    let vlan = auxiliary_data(&message)
        .and_then(|data| vlan_tag(data.tp_status, data.tp_vlan_tpid, data.tp_vlan_tci));
    Ok((length, vlan))
}

fn auxiliary_data(message: &libc::msghdr) -> Option<libc::tpacket_auxdata> {
    let data_length = mem::size_of::<libc::tpacket_auxdata>();
    // SAFETY: recvmsg filled `message` in; its control buffer is still live.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !next.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give whole headers within the buffer, or null.
        let header = unsafe { &*next };
        // SAFETY: pure arithmetic.
        let whole = unsafe { libc::CMSG_LEN(data_length as libc::c_uint) } as usize;
        if header.cmsg_level == libc::SOL_PACKET
            && header.cmsg_type == libc::PACKET_AUXDATA
            && header.cmsg_len as usize >= whole
        {
            // SAFETY: the length says that a whole `tpacket_auxdata` follows; any bytes are one.
            return Some(unsafe {
                libc::CMSG_DATA(next).cast::<libc::tpacket_auxdata>().read_unaligned()
            });
        }
        // SAFETY: as above.
        next = unsafe { libc::CMSG_NXTHDR(message, next) };
    }
    None
}

fn bind(socket: &Socket, interface_index: u32) -> Result<(), Errno> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as libc::c_ushort,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: interface_index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: `address` is a whole `sockaddr_ll` of `length` bytes.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })
}

/// Sets an option of level SOL_PACKET to a plain C value.
pub(super) fn set_option<T: Copy>(
    socket: impl AsFd,
    option: libc::c_int,
    value: &T,
) -> Result<(), Errno> {
    let length = mem::size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: `value` points to `length` readable bytes.
    check(unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), libc::SOL_PACKET, option, value, length)
    })
}

/// Reads an option of level SOL_PACKET into a plain C value that any bytes make.
pub(super) fn get_option<T: Copy>(
    socket: impl AsFd,
    option: libc::c_int,
    value: &mut T,
) -> Result<(), Errno> {
    let mut length = mem::size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_mut(value).cast();
    // SAFETY: `value` points to `length` writable bytes; callers pass integers and structs of them.
    check(unsafe {
        let length = &raw mut length;
        libc::getsockopt(socket.as_fd().as_raw_fd(), libc::SOL_PACKET, option, value, length)
    })
}
