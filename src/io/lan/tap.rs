//! An offloaded, multi-queue TAP: `/dev/net/tun` with `IFF_VNET_HDR`, so that
//! one read brings up to 64 KiB (Documentation/networking/tuntap.rst,
//! drivers/net/tun.c).
#![allow(unsafe_code)]

use std::{
    io::IoSliceMut,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Once,
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use tracing::warn;

use super::{
    HEADROOM, MAX_FRAME_LENGTH, ReceiveError, Received, TransmitError, outgoing::Outgoing,
    steering::steer_by_flow,
};
use crate::{
    offload::{
        Offload, Segmentation,
        virtio::{self, HEADER_LENGTH as VNET_HEADER_LENGTH},
    },
    wire::ethernet,
};

const DEVICE: &str = "/dev/net/tun";

/// One queue of a TAP that speaks `virtio_net_hdr`. The device vanishes with
/// its last queue.
#[derive(Debug)]
pub struct TapQueue {
    file: OwnedFd,
    offload: ReceiveOffload,
    scratch: Box<[u8]>,
}

impl TapQueue {
    /// Makes the TAP `name` with `count` queues (at least 1), down, with the
    /// best offloads that this kernel has. Which queue a flow comes to never
    /// changes, where the kernel takes an eBPF program for that.
    pub fn open(name: &str, count: usize) -> Result<Vec<Self>, TapError> {
        Self::open_with(name, count, &ReceiveOffload::ALL)
    }

    pub(super) fn open_with(
        name: &str,
        count: usize,
        steps: &[ReceiveOffload],
    ) -> Result<Vec<Self>, TapError> {
        assert!(count > 0, "a TAP without queues");
        if !is_valid_name(name) {
            return Err(TapError::InvalidName { name: name.to_owned() });
        }
        let multi_queue = if count > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | multi_queue;
        let mut queues = Vec::with_capacity(count);
        for index in 0..count {
            // The first must make the device: without EXCL it would join a stranger's.
            let exclusive = if index == 0 { libc::IFF_TUN_EXCL } else { 0 };
            let file = open_device()?;
            attach(&file, name, flags | exclusive)
                .map_err(|errno| TapError::attach(name, errno))?;
            set_header_length(&file).map_err(|source| TapError::HeaderLength { source })?;
            let offload = step_down(steps, |step| set_offload(&file, step))
                .map_err(|source| TapError::Offload { name: name.to_owned(), source })?;
            let scratch = vec![0; MAX_FRAME_LENGTH].into_boxed_slice();
            queues.push(Self { file, offload, scratch });
        }
        if count > 1
            && let Err(errno) = steer_by_flow(&queues[0].file)
        {
            static ONCE: Once = Once::new();
            let try_this = match errno {
                Errno::PERM | Errno::ACCESS => "grant CAP_BPF, or lanes = 1",
                _ => "lanes = 1, for this kernel has no programs for it",
            };
            ONCE.call_once(|| {
                warn!(
                    interface = name, %errno,
                    "the kernel chooses the queues of TAPs by itself, and may reorder a flow when \
                     it moves it; try: {try_this}"
                );
            });
        }
        Ok(queues)
    }

    /// What the kernel leaves undone on frames that it hands over.
    pub const fn receive_offload(&self) -> ReceiveOffload {
        self.offload
    }

    // HOT PATH
    pub(super) fn receive<'a>(
        &mut self,
        buffer: &'a mut [u8],
    ) -> Result<Option<Received<'a>>, ReceiveError> {
        let mut header = [0; VNET_HEADER_LENGTH];
        let room = buffer.len() - HEADROOM;
        let mut parts = [IoSliceMut::new(&mut header), IoSliceMut::new(&mut buffer[HEADROOM..])];
        let length = match rustix::io::readv(&self.file, &mut parts) {
            Ok(length) => length.saturating_sub(VNET_HEADER_LENGTH),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        // tun_put_user returns the whole length of a frame that it had to cut.
        if !(ethernet::HEADER_LENGTH..=room).contains(&length) {
            return Err(ReceiveError::Length { length });
        }
        let bytes = &mut buffer[..HEADROOM + length];
        let offload = virtio::from_kernel(&header, &mut bytes[HEADROOM..])
            .map_err(ReceiveError::InvalidHeader)?;
        Ok(Some(Received::new(None, offload, bytes)))
    }

    // HOT PATH
    pub(super) fn transmit(
        &mut self,
        outgoing: &Outgoing<'_>,
        offload: &Offload,
    ) -> Result<(), TransmitError> {
        let is_udp = matches!(offload.segmentation, Segmentation::Udp4 | Segmentation::Udp6);
        // A kernel that offers no USO to readers takes none from writers either.
        if is_udp && self.offload != ReceiveOffload::TcpUdp {
            let header = [0; VNET_HEADER_LENGTH];
            return outgoing.segment_and_write(&self.file, &header, offload, &mut self.scratch);
        }
        outgoing.write(&self.file, &outgoing.kernel_header(offload)?)
    }
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// What a kernel may leave undone on frames that it hands to a TAP's reader.
/// Each step contains the next ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReceiveOffload {
    /// TCP and UDP superframes, ECN included (Linux 6.2).
    TcpUdp,
    /// TCP superframes, ECN included.
    Tcp,
    /// TCP superframes of flows without ECN.
    TcpWithoutEcn,
    /// Single frames, their checksum to be finished.
    Checksum,
    /// Nothing: single, finished frames.
    None,
}

impl ReceiveOffload {
    /// Every step, best first.
    pub(super) const ALL: [Self; 5] =
        [Self::TcpUdp, Self::Tcp, Self::TcpWithoutEcn, Self::Checksum, Self::None];

    const fn flags(self) -> libc::c_uint {
        const TCP: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        match self {
            Self::TcpUdp => TCP | libc::TUN_F_TSO_ECN | libc::TUN_F_USO4 | libc::TUN_F_USO6,
            Self::Tcp => TCP | libc::TUN_F_TSO_ECN,
            Self::TcpWithoutEcn => TCP,
            Self::Checksum => libc::TUN_F_CSUM,
            Self::None => 0,
        }
    }
}

/// Why a TAP could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// `/dev/net/tun` does not exist.
    #[error(
        "{DEVICE} is missing; try: modprobe tun, or hand the device to the container \
         (docker run --device {DEVICE})"
    )]
    NoDevice,
    /// `/dev/net/tun` could not be opened.
    #[error("can't open {DEVICE}; try: run as root, or check the device's permissions")]
    Open(#[source] Errno),
    /// Not allowed to make interfaces.
    #[error("not allowed to make the TAP {name}; try: run as root or grant CAP_NET_ADMIN")]
    NotPermitted {
        /// The TAP's name.
        name: String,
    },
    /// An interface has this name.
    #[error(
        "an interface named {name} exists already; try: ip link del {name}, or choose another \
         `tap` name in the group file"
    )]
    NameTaken {
        /// The TAP's name.
        name: String,
    },
    /// Not a name that an interface can have.
    #[error("{name:?} is no interface name: 1 to 15 bytes, without '/', ':' or white space")]
    InvalidName {
        /// The name.
        name: String,
    },
    /// `TUNSETIFF` failed otherwise.
    #[error("can't make the TAP {name}")]
    Attach {
        /// The TAP's name.
        name: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// `TUNSETVNETHDRSZ` failed.
    #[error("can't set the size of the TAP's offload header")]
    HeaderLength {
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// `TUNSETOFFLOAD` failed even for no offload at all.
    #[error("can't set the offloads of the TAP {name}; try: offload = false")]
    Offload {
        /// The TAP's name.
        name: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

impl TapError {
    pub(super) fn attach(name: &str, errno: Errno) -> Self {
        let name = name.to_owned();
        match errno {
            Errno::PERM | Errno::ACCESS => Self::NotPermitted { name },
            Errno::BUSY | Errno::EXIST => Self::NameTaken { name },
            source => Self::Attach { name, source },
        }
    }
}

fn open_device() -> Result<OwnedFd, TapError> {
    rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| match errno {
            Errno::NOENT | Errno::NXIO | Errno::NODEV => TapError::NoDevice,
            other => TapError::Open(other),
        })
}

/// Whether the kernel takes `name` as an interface's name as it is
/// (`dev_valid_name` in net/core/dev.c; '%' would be a pattern).
pub(super) fn is_valid_name(name: &str) -> bool {
    let fits = (1..libc::IFNAMSIZ).contains(&name.len());
    let bad =
        |byte: u8| matches!(byte, b'/' | b':' | b'%' | 0 | 0x0b) || byte.is_ascii_whitespace();
    fits && name != "." && name != ".." && !name.bytes().any(bad)
}

fn attach(file: &OwnedFd, name: &str, flags: libc::c_int) -> Result<(), Errno> {
    let request = libc::ifreq {
        ifr_name: interface_name(name),
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags as libc::c_short },
    };
    // SAFETY: `request` is a whole `struct ifreq`, which TUNSETIFF reads and writes.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) })
}

/// `name`, at most 15 bytes, as `struct ifreq` holds it.
pub(super) fn interface_name(name: &str) -> [libc::c_char; libc::IFNAMSIZ] {
    assert!(name.len() < libc::IFNAMSIZ, "an interface name of more than 15 bytes");
    let mut field = [0; libc::IFNAMSIZ];
    for (to, from) in field.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    field
}

fn set_header_length(file: &OwnedFd) -> Result<(), Errno> {
    let length = VNET_HEADER_LENGTH as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const length) })
}

fn set_offload(file: &OwnedFd, step: ReceiveOffload) -> Result<(), Errno> {
    let flags = libc::c_ulong::from(step.flags());
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, flags) })
}

/// The first of `steps` that `try_step` accepts, or why the last was refused.
fn step_down(
    steps: &[ReceiveOffload],
    mut try_step: impl FnMut(ReceiveOffload) -> Result<(), Errno>,
) -> Result<ReceiveOffload, Errno> {
    let mut outcome = Err(Errno::INVAL);
    for &step in steps {
        outcome = try_step(step).map(|()| step);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// The outcome of a system call that returns -1 for failure.
pub(super) fn check(result: libc::c_int) -> Result<(), Errno> {
    if result >= 0 { Ok(()) } else { Err(last_errno()) }
}

pub(super) fn last_errno() -> Errno {
    let code = std::io::Error::last_os_error().raw_os_error();
    Errno::from_raw_os_error(code.unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_step_down_to_what_the_kernel_grants() {
        for (granted, &best) in ReceiveOffload::ALL.iter().enumerate() {
            let mut tried = Vec::new();
            let outcome = step_down(&ReceiveOffload::ALL, |step| {
                tried.push(step);
                if tried.len() > granted { Ok(()) } else { Err(Errno::INVAL) }
            });
            assert_eq!(outcome, Ok(best));
            assert_eq!(tried, ReceiveOffload::ALL[..=granted]);
        }
        let refused = step_down(&ReceiveOffload::ALL, |_| Err(Errno::NOTTY));
        assert_eq!(refused, Err(Errno::NOTTY));
    }

    #[test]
    fn each_step_asks_for_less() {
        for pair in ReceiveOffload::ALL.windows(2) {
            let (more, less) = (pair[0].flags(), pair[1].flags());
            assert!(more & less == less && more != less, "{pair:?}");
        }
    }

    #[test]
    fn names_are_checked_as_the_kernel_does() {
        for good in ["lb-100", "a", "exactly15bytes_"] {
            assert!(is_valid_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a:1", "tap%d", "sixteen_bytes_is", "a\tb", "a\0"]
        {
            assert!(!is_valid_name(bad), "{bad:?}");
        }
    }
}
