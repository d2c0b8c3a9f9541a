//! A packet socket on one interface: raw frames out, whole frames in.
//!
//! The kernel takes the outer VLAN tag out of a received frame and hands it over
//! beside it (`PACKET_AUXDATA`, packet(7)); here it is put back, so that callers
//! compare bytes with bytes.
#![allow(unsafe_code)]

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};
use std::{io, mem, os::fd::AsRawFd, ptr, time::Duration};

/// A raw socket bound to an interface, promiscuous, deaf to its own frames.
pub(crate) struct PacketSocket(Socket);

const ETH_P_ALL: u16 = libc::ETH_P_ALL as u16;
const LONGEST_FRAME: usize = 128 << 10;

impl PacketSocket {
    /// Opens it in the calling thread's network namespace.
    pub(crate) fn open(interface_index: i32) -> io::Result<Self> {
        // Protocol 0 hears nothing until it is bound, so no other interface leaks in.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        set(&socket, libc::PACKET_AUXDATA, &1_i32)?;
        set(&socket, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
        let promiscuous = libc::packet_mreq {
            mr_ifindex: interface_index,
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        set(&socket, libc::PACKET_ADD_MEMBERSHIP, &promiscuous)?;
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 64 << 20)?;
        socket.bind(&address(interface_index))?;
        Ok(Self(socket))
    }

    /// Sends a whole frame.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        let sent = self.0.send(frame)?;
        assert_eq!(sent, frame.len(), "a packet socket sends a frame whole");
        Ok(())
    }

    /// The next frame, or `None` after `timeout`.
    pub(crate) fn receive(&self, timeout: Duration) -> io::Result<Option<Vec<u8>>> {
        // Zero would mean for ever.
        self.0.set_read_timeout(Some(timeout.max(Duration::from_micros(1))))?;
        let mut buffer = vec![0_u8; LONGEST_FRAME];
        let mut control = [0_u64; 16];
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: all-zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = mem::size_of_val(&control);
        let length = loop {
            // SAFETY: the message points at live buffers of the lengths it says.
            let length = unsafe { libc::recvmsg(self.0.as_raw_fd(), &mut message, 0) };
            if let Ok(length) = usize::try_from(length) {
                break length;
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::WouldBlock => return Ok(None),
                // A socket with a time limit is not gone on with after a signal (signal(7)).
                io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            }
        };
        buffer.truncate(length);
        if let Some([tpid, tci]) = outer_tag(&message) {
            let tag = [tpid.to_be_bytes(), tci.to_be_bytes()].concat();
            buffer.splice(12..12, tag);
        }
        Ok(Some(buffer))
    }
}

fn address(interface_index: i32) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is one of the kinds that a sockaddr_storage holds.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET as u16;
    link.sll_protocol = ETH_P_ALL.to_be();
    link.sll_ifindex = interface_index;
    // SAFETY: the storage was filled as a sockaddr_ll just above.
    unsafe { SockAddr::new(storage, mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}

fn set<T>(socket: &Socket, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes at a live reference.
    let result = unsafe {
        let value = ptr::from_ref(value).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, value, length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// TPID and TCI of the tag that the kernel took out, if it did.
fn outer_tag(message: &libc::msghdr) -> Option<[u16; 2]> {
    // SAFETY: the kernel filled the control buffer that the message points at.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return headers inside the buffer.
        let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
        if (level, kind) == (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
            // SAFETY: this kind of message carries a tpacket_auxdata.
            let data: libc::tpacket_auxdata =
                unsafe { ptr::read_unaligned(libc::CMSG_DATA(header).cast()) };
            if data.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
                let has_tpid = data.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
                return Some([if has_tpid { data.tp_vlan_tpid } else { 0x8100 }, data.tp_vlan_tci]);
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}
