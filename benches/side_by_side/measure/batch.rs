//! Many datagrams per system call: sendmmsg and recvmmsg, with UDP_SEGMENT and
//! UDP_GRO where wanted.
#![allow(unsafe_code)]

use anyhow::{Context, Result};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use std::{
    io,
    mem::size_of_val,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    ptr,
    time::Duration,
};

/// Messages of one system call, at most.
pub(super) const BATCH: usize = 64;
/// Receive buffer of a socket, bytes: so large that what is lost is the carrier's.
const RECEIVE_BUFFER: usize = 32 << 20;
/// How long a receiver waits before it looks whether it shall end.
const RECEIVE_TIMEOUT: Duration = Duration::from_millis(10);

/// Sends copies of one message.
pub(super) struct BatchSender {
    sockets: Vec<UdpSocket>,
    next: usize,
    payload: Vec<u8>,
}

/// Receives and counts bytes.
pub(super) struct BatchReceiver {
    socket: UdpSocket,
    buffers: Vec<Vec<u8>>,
}

impl BatchSender {
    /// From `flows` sockets of the calling thread's namespace, by turns. A message
    /// of `payload` bytes is cut by the kernel into datagrams of `segment` bytes if
    /// that is less (udp(7), UDP_SEGMENT).
    pub(super) fn new(
        flows: usize,
        to: SocketAddr,
        payload: usize,
        segment: usize,
    ) -> Result<Self> {
        let open = |_| -> Result<UdpSocket> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(to)?;
            if segment < payload {
                set_udp_option(&socket, libc::UDP_SEGMENT, segment.try_into()?)?;
            }
            Ok(socket)
        };
        let sockets =
            (0..flows).map(open).collect::<Result<_>>().context("cannot open UDP sockets")?;
        Ok(Self { sockets, next: 0, payload: vec![0x5a; payload] })
    }

    /// Sends at most `count` and at most [`BATCH`] messages; returns how many went.
    pub(super) fn send(&mut self, count: usize) -> io::Result<usize> {
        let socket = &self.sockets[self.next];
        self.next = (self.next + 1) % self.sockets.len();
        let mut vector =
            libc::iovec { iov_base: self.payload.as_mut_ptr().cast(), iov_len: self.payload.len() };
        let mut messages = [empty_message(); BATCH];
        let messages = &mut messages[..count.min(BATCH)];
        for message in messages.iter_mut() {
            message.msg_hdr.msg_iov = &raw mut vector;
            message.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: every header points to `vector`, and that to `payload`; both outlive
        // the call, which only reads them. The length is that of the slice.
        let sent = unsafe {
            libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), messages.len() as u32, 0)
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

impl BatchReceiver {
    /// On a port of the kernel's choice in the calling thread's namespace, for
    /// messages of at most `length` bytes; with `coalesced` the kernel may hand over
    /// several datagrams as one message (udp(7), UDP_GRO).
    pub(super) fn new(address: SocketAddr, length: usize, coalesced: bool) -> Result<Self> {
        let socket = UdpSocket::bind(address).context("cannot open a UDP socket")?;
        set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)?;
        socket.set_read_timeout(Some(RECEIVE_TIMEOUT))?;
        if coalesced {
            set_udp_option(&socket, libc::UDP_GRO, 1).context("cannot have UDP_GRO")?;
        }
        Ok(Self { socket, buffers: vec![vec![0; length]; BATCH] })
    }

    pub(super) fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Waits for messages, and calls `each` with the length of each; returns after a
    /// while without any, too.
    pub(super) fn receive(&mut self, mut each: impl FnMut(usize)) -> io::Result<()> {
        let mut vectors: [libc::iovec; BATCH] = std::array::from_fn(|index| libc::iovec {
            iov_base: self.buffers[index].as_mut_ptr().cast(),
            iov_len: self.buffers[index].len(),
        });
        let mut messages = [empty_message(); BATCH];
        for (message, vector) in messages.iter_mut().zip(&mut vectors) {
            message.msg_hdr.msg_iov = ptr::from_mut(vector);
            message.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: each header points to a vector of its own, and that to a buffer of its
        // own with its true length; all outlive the call. A null timeout is allowed.
        let received = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_WAITFORONE,
                ptr::null_mut(),
            )
        };
        match usize::try_from(received) {
            Ok(count) => {
                messages[..count].iter().for_each(|message| each(message.msg_len as usize));
                Ok(())
            }
            Err(_) => match io::Error::last_os_error() {
                error
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) =>
                {
                    Ok(())
                }
                error => Err(error),
            },
        }
    }
}

fn empty_message() -> libc::mmsghdr {
    // SAFETY: all-zero is a valid mmsghdr: null pointers with lengths of 0.
    unsafe { std::mem::zeroed() }
}

fn set_udp_option(socket: &UdpSocket, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: `value` is an int, as these options want, and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
