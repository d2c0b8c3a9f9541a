//! Packet sockets on an existing NIC (net/packet/af_packet.c, packet(7)):
//! whole superframes by `PACKET_VNET_HDR`, VLAN tags out of band by
//! `PACKET_AUXDATA`, promiscuous by membership, own frames not looped back.
//!
//! What the host itself sends on the NIC does not cross (it is outgoing here),
//! and what it receives goes to its own stack as well. GRO'd encapsulations
//! that a `virtio_net_hdr` can't express are dropped by the kernel.
//! `PACKET_QDISC_BYPASS` is left off: it would drop wherever the NIC's ring is
//! full for a moment, instead of queueing.
#![allow(unsafe_code)]
#![allow(clippy::disallowed_methods)]

use std::{
    mem::{self, MaybeUninit},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use rustix::io::Errno;
use socket2::{Domain, SockFilter, Socket, Type};

use super::{
    HEADROOM, MAX_FRAME_LENGTH, ReceiveError, Received, TransmitError,
    outgoing::Outgoing,
    tap::{check, last_errno},
};
use crate::{
    offload::{
        Offload, Segmentation,
        virtio::{self, HEADER_LENGTH as VNET_HEADER_LENGTH},
    },
    wire::ethernet::{self, VlanTag},
};

/// Receive buffer asked for, bytes; a superframe takes some 70 KiB of it.
const RECEIVE_BUFFER_BYTES: usize = 16 << 20;

/// One packet socket on a NIC; several share its frames by flow.
#[derive(Debug)]
pub struct PacketQueue {
    socket: OwnedFd,
    /// The NIC's MTU, bytes, as the manager last heard it.
    mtu: Arc<AtomicU32>,
    takes_udp_superframes: bool,
    scratch: Box<[u8]>,
}

impl PacketQueue {
    /// Opens `count` sockets (at least 1) on the interface with this index.
    /// `mtu` (bytes) is shared with whoever watches the interface.
    pub fn open(
        interface_index: u32,
        count: usize,
        mtu: &Arc<AtomicU32>,
    ) -> Result<Vec<Self>, PacketError> {
        assert!(count > 0, "an attachment without queues");
        let takes_udp_superframes = kernel_release().is_some_and(|r| is_linux_6_2(&r));
        let mut group = None;
        let mut queues = Vec::with_capacity(count);
        for _ in 0..count {
            let socket = open_silent(interface_index)?;
            if count > 1 {
                group = Some(join_fanout(&socket, group).map_err(PacketError::Fanout)?);
            }
            queues.push(socket);
        }
        queues
            .into_iter()
            .map(|socket| {
                socket.detach_filter().map_err(PacketError::Filter)?;
                Ok(Self {
                    socket: socket.into(),
                    mtu: Arc::clone(mtu),
                    takes_udp_superframes,
                    scratch: vec![0; MAX_FRAME_LENGTH].into_boxed_slice(),
                })
            })
            .collect()
    }

    /// A second handle to the socket that only reads its drop counter.
    pub fn statistics(&self) -> Result<PacketStatistics, PacketError> {
        let socket = self.socket.try_clone().map_err(PacketError::Socket)?;
        Ok(PacketStatistics { socket, drops: 0 })
    }

    // HOT PATH
    pub(super) fn receive<'a>(
        &mut self,
        buffer: &'a mut [u8],
    ) -> Result<Option<Received<'a>>, ReceiveError> {
        let mut header = [0; VNET_HEADER_LENGTH];
        let room = buffer.len() - HEADROOM;
        let (length, vlan) =
            match receive_message(&self.socket, &mut header, &mut buffer[HEADROOM..]) {
                Ok(message) => message,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            };
        let length = length.saturating_sub(VNET_HEADER_LENGTH);
        if !(ethernet::HEADER_LENGTH..=room).contains(&length) {
            return Err(ReceiveError::Length { length });
        }
        let bytes = &mut buffer[..HEADROOM + length];
        let offload = virtio::from_kernel(&header, &mut bytes[HEADROOM..])
            .map_err(ReceiveError::InvalidHeader)?;
        Ok(Some(Received::new(vlan, offload, bytes)))
    }

    // HOT PATH
    pub(super) fn transmit(
        &mut self,
        outgoing: &Outgoing<'_>,
        offload: &Offload,
    ) -> Result<(), TransmitError> {
        let header = outgoing.kernel_header(offload)?;
        if offload.segmentation != Segmentation::None {
            // The kernel holds single frames against the MTU, but no superframe
            // (`packet_snd`), and a NIC may choke on a segment that is too long.
            let length = outgoing.packet_length(&header, offload);
            if length > self.mtu.load(Ordering::Relaxed) as usize {
                return Err(TransmitError::TooBig { length });
            }
            let is_udp = matches!(offload.segmentation, Segmentation::Udp4 | Segmentation::Udp6);
            if is_udp && !self.takes_udp_superframes {
                let header = [0; VNET_HEADER_LENGTH];
                let scratch = &mut self.scratch;
                return outgoing.segment_and_write(&self.socket, &header, offload, scratch);
            }
        }
        outgoing.write(&self.socket, &header)
    }
}

impl AsFd for PacketQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Reads what the kernel dropped because a [`PacketQueue`]'s buffer was full.
/// It keeps the socket open: drop it together with the queue.
#[derive(Debug)]
pub struct PacketStatistics {
    socket: OwnedFd,
    drops: u64,
}

impl PacketStatistics {
    /// Frames dropped since the socket was opened (`PACKET_STATISTICS`, which
    /// starts at zero again with each reading).
    pub fn drops(&mut self) -> u64 {
        let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        if get_option(&self.socket, libc::PACKET_STATISTICS, &mut statistics).is_ok() {
            self.drops += u64::from(statistics.tp_drops);
        }
        self.drops
    }
}

/// Why packet sockets could not be opened on a NIC.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// Not allowed.
    #[error("not allowed to open a packet socket; try: run as root or grant CAP_NET_RAW")]
    NotPermitted,
    /// No socket.
    #[error("can't open a packet socket")]
    Socket(#[source] std::io::Error),
    /// The drop-all filter that holds while sockets are set up.
    #[error("can't set a packet socket's filter")]
    Filter(#[source] std::io::Error),
    /// An option failed.
    #[error("can't set {option} on a packet socket (Linux 4.20 or later is needed)")]
    Option {
        /// The option's name, as in packet(7).
        option: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The interface is gone or takes no packet socket.
    #[error("can't bind a packet socket to interface {interface_index}")]
    Bind {
        /// The interface's index.
        interface_index: u32,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The sockets could not be made to share the frames.
    #[error("can't share the NIC's frames among several packet sockets (PACKET_FANOUT)")]
    Fanout(#[source] Errno),
}

/// A set-up socket, bound to the interface, that drops everything: what comes
/// before a fanout group is complete would come twice.
fn open_silent(interface_index: u32) -> Result<Socket, PacketError> {
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
    Ok(socket)
}

/// Puts `socket` into the fanout group `group`, or into a new one whose id the
/// kernel chooses; returns the group's id. Frames are shared by flow hash; no
/// defragmentation.
fn join_fanout(socket: &Socket, group: Option<u16>) -> Result<u16, Errno> {
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

/// Whether the kernel takes UDP superframes from user space
/// (`VIRTIO_NET_HDR_GSO_UDP_L4` came with Linux 6.2).
fn is_linux_6_2(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (6, 2),
        _ => false,
    }
}

fn kernel_release() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()
}

/// Room for one `PACKET_AUXDATA` message and one to spare.
#[repr(C, align(8))]
struct Control([u8; 96]);

/// One frame: its length (kernel header included, even where cut off) and the
/// tag that the kernel took out of it.
fn receive_message(
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
    Ok((length, auxiliary_data(&message).and_then(|data| vlan_tag(&data))))
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

fn vlan_tag(data: &libc::tpacket_auxdata) -> Option<VlanTag> {
    if data.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let has_tpid = data.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
    let tpid = if has_tpid { data.tp_vlan_tpid } else { VlanTag::CUSTOMER };
    Some(VlanTag { tpid, tci: data.tp_vlan_tci })
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
fn set_option<T: Copy>(socket: &Socket, option: libc::c_int, value: &T) -> Result<(), Errno> {
    let length = mem::size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: `value` points to `length` readable bytes.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, value, length) })
}

/// Reads an option of level SOL_PACKET into a plain C value that any bytes make.
fn get_option<T: Copy>(
    socket: &impl AsRawFd,
    option: libc::c_int,
    value: &mut T,
) -> Result<(), Errno> {
    let mut length = mem::size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_mut(value).cast();
    // SAFETY: `value` points to `length` writable bytes; callers pass integers and structs of them.
    check(unsafe {
        let length = &raw mut length;
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, value, length)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udp_superframes_need_linux_6_2() {
        for release in ["6.2.0", "6.18.44-x\n", "7.0", "10.1"] {
            assert!(is_linux_6_2(release), "{release}");
        }
        for release in ["6.1.0-13-amd64", "5.19", "", "x.y", "6"] {
            assert!(!is_linux_6_2(release), "{release}");
        }
    }
}
