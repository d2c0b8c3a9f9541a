//! UDP sockets of the underlay.
//!
//! Every lane group (the control lane, and each worker's lanes) has two
//! sockets: a *listener* on the appliance's one well-known port and a *dialer*
//! on a port of its own. The listeners share the port (SO_REUSEPORT); a classic
//! BPF program hands each datagram to the socket of its lane, which stands in
//! the datagram's second byte, so that no thread ever passes one on.
#![allow(unsafe_code, clippy::disallowed_methods)]

use std::{
    cell::RefCell,
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    tunnel::{Path, SocketRole, TransmitError},
    wire::datagram::LANE_OFFSET,
};

/// Socket buffer asked for, bytes: about 2 ms at 16 Gbit/s.
const SOCKET_BUFFER: usize = 4 << 20;
/// GRO runs taken with one `recvmmsg`, at most.
const RECEIVE_BUFFERS: usize = quinn_udp::BATCH_SIZE;
/// Longest GRO run: a UDP payload of 64 KiB.
const RECEIVE_BUFFER_LENGTH: usize = 65_535;
/// How long a full socket buffer is waited for before datagrams are dropped, ms.
const SEND_PATIENCE_MS: i64 = 2;

/// Why the underlay's sockets could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum UnderlayError {
    /// Another program has the port.
    #[error(
        "UDP {0} is in use by another program; try: ss -lunp 'sport = :{port}' to see which, \
         or another `listen` port in the group file", port = .0.port()
    )]
    InUse(SocketAddr),
    /// The address is none of this host's.
    #[error(
        "{0} is not an address of this host; try: `listen` with one that is, or [::]:{port}",
        port = .0.port()
    )]
    NotLocal(SocketAddr),
    /// The kernel refused otherwise.
    #[error("cannot open UDP {address}: {step}")]
    Socket {
        /// What was to be bound.
        address: SocketAddr,
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A listener and a dialer for the control lane, then for each worker.
pub struct Underlay {
    /// The control lane's sockets.
    pub control: SocketPair,
    /// Each worker's sockets.
    pub workers: Vec<SocketPair>,
    /// Where the listeners are.
    pub local: SocketAddr,
}

/// The two sockets of a lane group.
pub struct SocketPair {
    /// On the well-known port.
    pub listener: UnderlaySocket,
    /// On a port of its own.
    pub dialer: UnderlaySocket,
}

impl SocketPair {
    /// Datagrams that the kernel dropped because a buffer was full.
    pub fn kernel_drops(&self) -> u64 {
        dropped(self.listener.as_fd()) + dropped(self.dialer.as_fd())
    }

    /// The socket of this role.
    #[inline]
    pub fn get(&self, role: SocketRole) -> &UnderlaySocket {
        match role {
            SocketRole::Listener => &self.listener,
            SocketRole::Dialer => &self.dialer,
        }
    }
}

impl Underlay {
    /// Opens the sockets of the control lane and of `workers` workers.
    ///
    /// # Errors
    /// See [`UnderlayError`].
    pub fn open(listen: SocketAddr, workers: u8) -> Result<Self, UnderlayError> {
        let listen = match probe(listen) {
            Err(UnderlayError::Socket { .. })
                if listen.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) =>
            {
                // A host without IPv6.
                let any: SocketAddr = ([0, 0, 0, 0], listen.port()).into();
                probe(any)?;
                any
            }
            result => {
                result?;
                listen
            }
        };
        let any = SocketAddr::new(unspecified(listen), 0);
        let open_pair = || {
            Ok(SocketPair {
                listener: UnderlaySocket::open(SocketRole::Listener, listen, true)?,
                dialer: UnderlaySocket::open(SocketRole::Dialer, any, false)?,
            })
        };
        let control = open_pair()?;
        let workers = (0..workers).map(|_| open_pair()).collect::<Result<Vec<_>, _>>()?;
        steer(&control.listener.socket, workers.len() as u32).map_err(|source| {
            UnderlayError::Socket {
                address: listen,
                step: "steering lanes to sockets (SO_ATTACH_REUSEPORT_CBPF)",
                source,
            }
        })?;
        Ok(Self { control, workers, local: listen })
    }
}

fn unspecified(address: SocketAddr) -> IpAddr {
    if address.is_ipv4() { [0, 0, 0, 0].into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// With SO_REUSEPORT a second appliance of the same user would share the port
/// unnoticed, so the port is first asked for without.
fn probe(listen: SocketAddr) -> Result<(), UnderlayError> {
    bind(listen, false).map(drop)
}

fn bind(address: SocketAddr, shared: bool) -> Result<UdpSocket, UnderlayError> {
    let failed = |step| move |source| UnderlayError::Socket { address, step, source };
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))
        .map_err(failed("opening a socket"))?;
    if address.is_ipv6() {
        let only_v6 = address.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        socket.set_only_v6(only_v6).map_err(failed("IPV6_V6ONLY"))?;
    }
    socket.set_reuse_port(shared).map_err(failed("SO_REUSEPORT"))?;
    socket.bind(&address.into()).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => UnderlayError::InUse(address),
        io::ErrorKind::AddrNotAvailable if !address.ip().is_unspecified() => {
            UnderlayError::NotLocal(address)
        }
        _ => UnderlayError::Socket { address, step: "binding", source },
    })?;
    Ok(socket.into())
}

/// Makes the reuseport group choose by lane: 0 for the control lane, else
/// 1 + (lane − 1) mod workers. The program sees the UDP payload
/// (`run_bpf_filter` in net/core/sock_reuseport.c); whatever is too short for
/// a lane goes to the control lane.
fn steer(socket: &UdpSocket, workers: u32) -> io::Result<()> {
    const fn op(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
        libc::sock_filter { code: code as u16, jt, jf, k }
    }
    let mut program = [
        op(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, LANE_OFFSET as u32),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, 0),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        op(libc::BPF_ALU | libc::BPF_SUB | libc::BPF_K, 0, 0, 1),
        op(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, 0, workers.max(1)),
        op(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K, 0, 0, 1),
        op(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: `filter` and the program that it points to outlive the call, which copies them.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A UDP socket with segmentation and receive offload, used by one thread.
pub struct UnderlaySocket {
    role: SocketRole,
    socket: UdpSocket,
    is_v6: bool,
    state: RefCell<UdpSocketState>,
}

impl UnderlaySocket {
    fn open(role: SocketRole, address: SocketAddr, shared: bool) -> Result<Self, UnderlayError> {
        let socket = bind(address, shared)?;
        grow_buffers(&socket);
        let state = UdpSocketState::new((&socket).into()).map_err(|source| {
            UnderlayError::Socket { address, step: "setting UDP options", source }
        })?;
        drop_unread_messages(&socket, role);
        Ok(Self { role, socket, is_v6: address.is_ipv6(), state: RefCell::new(state) })
    }

    /// Sends a run of datagrams of `size` bytes, the last perhaps shorter.
    ///
    /// # Errors
    /// See [`TransmitError`]; some may have been sent.
    #[inline]
    pub fn transmit(
        &self,
        path: &Path,
        size: usize,
        datagrams: &[u8],
    ) -> Result<(), TransmitError> {
        let destination = if self.is_v6 { to_mapped(path.remote) } else { path.remote };
        let mut rest = datagrams;
        while !rest.is_empty() {
            let segments = self.state.borrow().max_gso_segments();
            let (contents, after) = rest.split_at(rest.len().min(segments * size));
            let transmit = Transmit {
                destination,
                ecn: None,
                contents,
                segment_size: Some(size),
                src_ip: path.local,
            };
            let sent = self.state.borrow().try_send((&self.socket).into(), &transmit);
            match sent {
                Ok(()) => {
                    rest = after;
                    continue;
                }
                Err(error) => self.recover(path, segments, &error)?,
            }
        }
        Ok(())
    }

    /// Decides whether to try again after `error`.
    #[cold]
    fn recover(
        &self,
        path: &Path,
        segments: usize,
        error: &io::Error,
    ) -> Result<(), TransmitError> {
        match error.raw_os_error() {
            Some(libc::EMSGSIZE) => Err(TransmitError::TooBig),
            Some(libc::EAGAIN) => {
                if self.wait_writable() {
                    Ok(())
                } else {
                    Err(TransmitError::Full)
                }
            }
            Some(libc::ENOBUFS) => Err(TransmitError::Full),
            Some(libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH)
                if path.local.is_some() =>
            {
                // The source address is gone; quinn-udp took it for a refusal of GSO.
                if let Ok(state) = UdpSocketState::new((&self.socket).into()) {
                    self.state.replace(state);
                }
                Err(TransmitError::NoSource)
            }
            // quinn-udp has just stopped to use GSO: once more without.
            Some(libc::EINVAL | libc::EIO) if segments > 1 => Ok(()),
            _ => Err(TransmitError::Unreachable),
        }
    }

    fn wait_writable(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let patience = Timespec { tv_sec: 0, tv_nsec: SEND_PATIENCE_MS * 1_000_000 };
        poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], Some(&patience))
            .is_ok_and(|ready| ready > 0)
    }

    /// A second handle on the socket, for waiting on it in another way.
    ///
    /// # Errors
    /// Where no file descriptor is left.
    pub fn handle(&self) -> io::Result<UdpSocket> {
        self.socket.try_clone()
    }

    /// Takes what has arrived into `buffers`, up to one `recvmmsg`. Returns
    /// whether that was anything.
    #[inline]
    pub fn receive(&self, buffers: &mut ReceiveBuffers) -> bool {
        let mut slices = buffers.bytes.each_mut().map(|buffer| IoSliceMut::new(buffer));
        let received =
            self.state.borrow().recv((&self.socket).into(), &mut slices, &mut buffers.meta);
        // Errors here are none of this socket's (ICMP about a peer) or would-block.
        buffers.filled = received.unwrap_or(0);
        buffers.role = self.role;
        buffers.filled > 0
    }
}

/// Datagrams that the kernel dropped because the socket's buffer was full
/// (`SK_MEMINFO_DROPS` of SO_MEMINFO, what SO_RXQ_OVFL reports).
pub(super) fn dropped(socket: BorrowedFd<'_>) -> u64 {
    const SK_MEMINFO_DROPS: usize = 8;
    let mut values = [0u32; SK_MEMINFO_DROPS + 1];
    let mut length = size_of_val(&values) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `values`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 { u64::from(values[SK_MEMINFO_DROPS]) } else { 0 }
}

impl AsFd for UnderlaySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for UnderlaySocket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}

/// Room for one `recvmmsg`.
pub struct ReceiveBuffers {
    bytes: [Box<[u8]>; RECEIVE_BUFFERS],
    meta: [RecvMeta; RECEIVE_BUFFERS],
    filled: usize,
    role: SocketRole,
}

impl ReceiveBuffers {
    /// Hands over what [`UnderlaySocket::receive`] took, datagram by datagram.
    #[inline]
    pub fn drain(&mut self, mut datagram: impl FnMut(Path, &mut [u8])) {
        for (buffer, meta) in self.bytes.iter_mut().zip(&self.meta).take(self.filled) {
            // Nobody can be answered there (RFC 768); the kernel refuses it as it refuses GSO.
            if meta.addr.port() == 0 {
                continue;
            }
            let remote = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
            let local = match self.role {
                SocketRole::Listener => meta.dst_ip.map(|ip| ip.to_canonical()),
                // Whoever dials follows its routing table, wherever that moves to.
                SocketRole::Dialer => None,
            };
            let path = Path { socket: self.role, local, remote };
            for bytes in buffer[..meta.len].chunks_mut(meta.stride.max(1)) {
                datagram(path, bytes);
            }
        }
        self.filled = 0;
    }
}

impl Default for ReceiveBuffers {
    fn default() -> Self {
        Self {
            bytes: std::array::from_fn(|_| vec![0; RECEIVE_BUFFER_LENGTH].into_boxed_slice()),
            meta: [RecvMeta::default(); RECEIVE_BUFFERS],
            filled: 0,
            role: SocketRole::Listener,
        }
    }
}

/// Switches off the control messages that quinn-udp asks for and nobody here
/// reads: together they cost some 100 ns per datagram where the path gives no GRO.
fn drop_unread_messages(socket: &UdpSocket, role: SocketRole) {
    let unread = [
        (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS),
        (libc::IPPROTO_IP, libc::IP_RECVTOS),
        (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
    ];
    // Whoever dials doesn't ask which of its addresses was answered.
    let unread_by_dialers =
        [(libc::IPPROTO_IP, libc::IP_PKTINFO), (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)];
    let more = if role == SocketRole::Dialer { &unread_by_dialers[..] } else { &[] };
    for &(level, option) in unread.iter().chain(more) {
        // One that can't be switched off, or is of the other family, does no harm.
        let _ = set_integer(socket, level, option, 0);
    }
}

/// Sets a socket option that is one C int.
fn set_integer(
    socket: &UdpSocket,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the kernel reads one int.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Beyond the system's limit where this process may (CAP_NET_ADMIN), up to it otherwise.
fn grow_buffers(socket: &UdpSocket) {
    let size = SOCKET_BUFFER as libc::c_int;
    for (force, plain) in
        [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
    {
        if set_integer(socket, libc::SOL_SOCKET, force, size).is_err() {
            let _ = set_integer(socket, libc::SOL_SOCKET, plain, size);
        }
    }
}

fn to_mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Underlay {
        Underlay::open("127.0.0.1:0".parse().unwrap(), 2).unwrap()
    }

    fn port_of(socket: &UnderlaySocket) -> u16 {
        socket.socket.local_addr().unwrap().port()
    }

    #[test]
    fn a_port_in_use_is_said_so() {
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = other.local_addr().unwrap();
        assert!(matches!(Underlay::open(address, 1), Err(UnderlayError::InUse(_))));
    }

    #[test]
    fn an_address_of_another_host_is_said_so() {
        let address = "192.0.2.77:51840".parse().unwrap();
        assert!(matches!(Underlay::open(address, 1), Err(UnderlayError::NotLocal(_))));
    }

    #[test]
    fn lanes_reach_their_sockets() {
        // Port 0 would give each listener another port: take one first.
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let listen = SocketAddr::from(([127, 0, 0, 1], port));
        let underlay = Underlay::open(listen, 2).unwrap();
        let sender = open();
        let path = Path { socket: SocketRole::Dialer, local: None, remote: listen };
        for lane in 0u8..7 {
            sender.control.dialer.transmit(&path, 40, &[[4, lane], [0; 2]].concat()).unwrap();
        }
        sender.control.dialer.transmit(&path, 40, &[9]).unwrap();
        let lanes_at = |pair: &SocketPair| {
            let mut lanes = Vec::new();
            let mut buffers = ReceiveBuffers::default();
            while pair.listener.receive(&mut buffers) {
                buffers.drain(|from, bytes| {
                    assert_eq!(from.remote.port(), port_of(&sender.control.dialer));
                    assert_eq!(from.local, Some(listen.ip()));
                    lanes.push(bytes.get(1).copied());
                });
            }
            lanes
        };
        assert_eq!(lanes_at(&underlay.control), [Some(0), None]);
        assert_eq!(lanes_at(&underlay.workers[0]), [Some(1), Some(3), Some(5)]);
        assert_eq!(lanes_at(&underlay.workers[1]), [Some(2), Some(4), Some(6)]);
    }

    #[test]
    fn a_batch_is_cut_into_datagrams() {
        let underlay = open();
        let remote = SocketAddr::from(([127, 0, 0, 1], port_of(&underlay.control.dialer)));
        let path = Path { socket: SocketRole::Dialer, local: None, remote };
        let batch: Vec<u8> = (0..250u8).collect();
        underlay.workers[0].dialer.transmit(&path, 100, &batch).unwrap();
        let mut got = Vec::new();
        let mut buffers = ReceiveBuffers::default();
        while got.len() < 3 {
            underlay.control.dialer.receive(&mut buffers);
            buffers.drain(|_, bytes| got.push(bytes.to_vec()));
        }
        assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 50]);
        assert_eq!(got.concat(), batch);
    }

    #[test]
    fn where_gso_is_refused_datagrams_go_one_by_one() {
        let underlay = open();
        let socket = &underlay.workers[0].dialer;
        // udp_send_skb (net/ipv4/udp.c) refuses GSO without checksums, as it
        // does for devices that cannot compute them.
        set_integer(&socket.socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
        assert!(socket.state.borrow().max_gso_segments() > 1);
        let remote = SocketAddr::from(([127, 0, 0, 1], port_of(&underlay.control.dialer)));
        let path = Path { socket: SocketRole::Dialer, local: None, remote };
        let batch: Vec<u8> = (0..250u8).collect();
        assert_eq!(socket.transmit(&path, 100, &batch), Ok(()));
        assert_eq!(socket.state.borrow().max_gso_segments(), 1);
        let mut got = Vec::new();
        let mut buffers = ReceiveBuffers::default();
        while got.len() < 3 {
            underlay.control.dialer.receive(&mut buffers);
            buffers.drain(|_, bytes| got.push(bytes.to_vec()));
        }
        assert_eq!(got.concat(), batch);
    }

    #[test]
    fn a_vanished_source_address_is_said_so_and_gso_stays() {
        let underlay = open();
        let remote = SocketAddr::from(([127, 0, 0, 1], port_of(&underlay.control.dialer)));
        let local = Some([192, 0, 2, 99].into());
        let path = Path { socket: SocketRole::Dialer, local, remote };
        let socket = &underlay.workers[0].dialer;
        let before = socket.state.borrow().max_gso_segments();
        assert_eq!(socket.transmit(&path, 10, &[0; 20]), Err(TransmitError::NoSource));
        assert_eq!(socket.state.borrow().max_gso_segments(), before);
    }
}
