//! Where an appliance meets the LAN.
//!
//! Two halves: [`LanQueue`], all that a data thread sees of a TAP or NIC, and
//! [`AttachmentManager`], which runs on the control thread, makes and watches
//! the interfaces and hands queues out.
//!
//! | attachment | queue | superframes in | superframes out |
//! |---|---|---|---|
//! | `bridge`, `tap` | [`TapQueue`] | what TUNSETOFFLOAD granted | yes; UDP since Linux 6.2 |
//! | the same, `offload = false` | [`PlainTap`] | no | cut in software |
//! | `nic` | [`PacketQueue`] | what GRO made of them | yes; UDP since Linux 6.2 |

mod attachment;
mod ethtool;
mod links;
mod machine;
mod netlink;
mod outgoing;
mod packet;
mod plain;
mod setup;
mod steering;
mod tap;
#[cfg(test)]
mod tests;
mod worker;

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use self::outgoing::Outgoing;
pub use self::{
    attachment::{AttachmentEvent, AttachmentManager, AttachmentStatus, KernelDrops, ManagerError},
    machine::{AttachmentKind, AttachmentSpec, AttachmentState, Reason},
    netlink::NetlinkError,
    packet::{PacketError, PacketQueue, PacketStatistics},
    plain::{PlainError, PlainTap},
    tap::{ReceiveOffload, TapError, TapQueue},
};
use crate::{
    offload::{
        Offload, OffloadError,
        virtio::{HEADER_LENGTH as VNET_HEADER_LENGTH, VirtioError},
    },
    wire::ethernet::{self, TAG_LENGTH, VlanTag, insert_tag},
};

/// Longest frame without its outermost VLAN tag, bytes: the largest IP packet
/// behind an Ethernet header with room for a second tag.
pub const MAX_FRAME_LENGTH: usize = 65_535 + ethernet::HEADER_LENGTH + 2 * TAG_LENGTH;

/// Room that [`LanQueue::receive`] leaves before a frame, bytes, so that a tag
/// can go inline without moving the payload. A multiple of 16.
const HEADROOM: usize = 16;

/// Bytes that a buffer for [`LanQueue::receive`] has to have: a frame, a
/// header of virtio and headroom, rounded up to 64.
pub const FRAME_BUFFER_LENGTH: usize =
    (HEADROOM + MAX_FRAME_LENGTH + VNET_HEADER_LENGTH).next_multiple_of(64);

/// One queue of an attachment: a data thread's only view of the LAN.
#[derive(Debug)]
pub enum LanQueue {
    /// One queue of an offloaded TAP.
    Tap(TapQueue),
    /// A TAP without offloads.
    Plain(PlainTap),
    /// A packet socket on a NIC.
    Packet(PacketQueue),
}

impl LanQueue {
    /// Takes the next frame from the LAN into `buffer`, which must have
    /// [`FRAME_BUFFER_LENGTH`] bytes; `None` where there is none now.
    pub fn receive<'a>(
        &mut self,
        buffer: &'a mut [u8],
    ) -> Result<Option<Received<'a>>, ReceiveError> {
        assert!(buffer.len() >= FRAME_BUFFER_LENGTH, "a frame buffer is too short");
        match self {
            Self::Tap(queue) => queue.receive(buffer),
            Self::Plain(queue) => queue.receive(buffer),
            Self::Packet(queue) => queue.receive(buffer),
        }
    }

    /// Puts a frame onto the LAN, `vlan` (if any) as its outermost tag. It may
    /// wait for others, at most until [`Self::flush`].
    ///
    /// What the kernel can't cut is cut in software; then the first failed
    /// segment's error is returned and the rest is not sent.
    pub fn transmit(
        &mut self,
        vlan: Option<VlanTag>,
        offload: &Offload,
        frame: &[u8],
    ) -> Result<(), TransmitError> {
        let outgoing = Outgoing::new(vlan, frame)?;
        match self {
            Self::Tap(queue) => queue.transmit(&outgoing, offload),
            Self::Plain(queue) => queue.transmit(&outgoing, offload),
            Self::Packet(queue) => queue.transmit(&outgoing, offload),
        }
    }

    /// The end of a burst: sends what waits. Each reason for which frames that
    /// [`Self::transmit`] had taken were refused, and their number, goes to `refused`.
    pub fn flush(&mut self, mut refused: impl FnMut(TransmitError, u64)) {
        match self {
            Self::Tap(_) | Self::Plain(_) => {}
            Self::Packet(queue) => queue.flush(&mut refused),
        }
    }

    /// Looks whether frames still come, and sees to it that they do. To be
    /// called every now and then: it takes a system call.
    pub fn check(&mut self) {
        match self {
            Self::Tap(_) | Self::Plain(_) => {}
            Self::Packet(queue) => queue.check(),
        }
    }
}

impl AsFd for LanQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tap(queue) => queue.as_fd(),
            Self::Plain(queue) => queue.as_fd(),
            Self::Packet(queue) => queue.as_fd(),
        }
    }
}

/// A frame from the LAN, in the buffer that was handed in.
#[derive(Debug)]
pub struct Received<'a> {
    /// The outermost tag where the kernel took it out of the frame (NICs only;
    /// a TAP's frames carry their tags inline).
    pub vlan: Option<VlanTag>,
    /// What the kernel left undone.
    pub offload: Offload,
    bytes: &'a mut [u8],
    start: usize,
}

impl<'a> Received<'a> {
    /// `bytes[HEADROOM..]` is the frame, at least an Ethernet header long.
    fn new(vlan: Option<VlanTag>, offload: Offload, bytes: &'a mut [u8]) -> Self {
        Self { vlan, offload, bytes, start: HEADROOM }
    }

    /// The frame, without [`Self::vlan`].
    pub fn frame(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Puts [`Self::vlan`] into the frame; the payload stays where it is.
    pub fn inline_vlan(&mut self) {
        let Some(tag) = self.vlan.take() else { return };
        let (header, _) = self.bytes[self.start..].split_first_chunk().expect("checked in new");
        let tagged = insert_tag(header, tag);
        self.start -= TAG_LENGTH;
        self.bytes[self.start..][..tagged.len()].copy_from_slice(&tagged);
    }
}

/// Why no frame came out of a queue. All but `Down`, `Gone` and `Kernel` are
/// one lost frame, to be counted; the queue goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The kernel's virtio header does not fit the frame.
    #[error("the kernel's offload header does not fit its frame")]
    InvalidHeader(#[source] VirtioError),
    /// Longer than the buffer (BIG TCP), or shorter than an Ethernet header.
    #[error("a frame of {length} bytes can't be carried")]
    Length {
        /// Bytes that the kernel had.
        length: usize,
    },
    /// GRO merged what `struct virtio_net_hdr` has no words for (a tunnel's
    /// inner packets): the kernel refuses to hand it over and drops it
    /// (`packet_rcv_vnet` in net/packet/af_packet.c).
    #[error("GRO made a superframe that can't be described; try: ethtool -K <nic> gro off")]
    Inexpressible,
    /// The interface is administratively down; the queue stays good.
    #[error("the interface is down")]
    Down,
    /// The interface was removed. Stop polling this queue and drop it; the
    /// manager brings new ones.
    #[error("the interface is gone")]
    Gone,
    /// Anything else the kernel said.
    #[error("the kernel refused to hand over a frame")]
    Kernel(#[source] Errno),
}

impl From<Errno> for ReceiveError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NETDOWN | Errno::IO => Self::Down,
            // tun_ring_recv (drivers/net/tun.c): EFAULT while the device is being removed, EBADFD after.
            Errno::NODEV | Errno::NXIO | Errno::BADFD | Errno::FAULT => Self::Gone,
            Errno::INVAL => Self::Inexpressible,
            other => Self::Kernel(other),
        }
    }
}

/// Why a frame did not get onto the LAN. Each is one lost frame, to be counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TransmitError {
    /// The interface's queue or the socket's buffer is full.
    #[error("the interface's transmit queue is full")]
    Full,
    /// The descriptor does not fit the frame; it never reached the kernel.
    #[error("the offload descriptor does not fit its frame")]
    InvalidOffload(#[source] OffloadError),
    /// Longer than the interface's MTU allows, or its segments are.
    #[error("a frame of {length} bytes is longer than the interface's MTU allows")]
    TooBig {
        /// Bytes of the frame, or of its first segment.
        length: usize,
    },
    /// Shorter than an Ethernet header.
    #[error("a frame of {length} bytes is shorter than an Ethernet header")]
    TooShort {
        /// Bytes of the frame.
        length: usize,
    },
    /// The interface is administratively down; the queue stays good.
    #[error("the interface is down")]
    Down,
    /// The interface was removed; the manager brings new queues.
    #[error("the interface is gone")]
    Gone,
    /// Anything else the kernel said.
    #[error("the kernel refused a frame")]
    Kernel(#[source] Errno),
}

impl TransmitError {
    fn from_errno(errno: Errno, length: usize) -> Self {
        match errno {
            Errno::AGAIN | Errno::NOBUFS => Self::Full,
            Errno::MSGSIZE => Self::TooBig { length },
            Errno::NETDOWN | Errno::IO => Self::Down,
            Errno::NODEV | Errno::NXIO | Errno::BADFD => Self::Gone,
            other => Self::Kernel(other),
        }
    }
}
