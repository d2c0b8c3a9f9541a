//! Packet sockets on an existing NIC (net/packet/af_packet.c, packet(7)):
//! superframes by `PACKET_VNET_HDR`, VLAN tags out of band, promiscuous by
//! membership, own frames not looped back.
//!
//! Small frames come through a ring in shared memory and leave in batches;
//! what is longer than a slot comes and leaves with a system call of its own,
//! in its place among the others. ARCHITECTURE.md, "Attachments", says why.
//!
//! What the host itself sends on the NIC does not cross (it is outgoing here),
//! and what it receives goes to its own stack as well. GRO'd encapsulations
//! that a `virtio_net_hdr` can't express are dropped by the kernel.
//! `PACKET_QDISC_BYPASS` is left off: it would drop wherever the NIC's ring is
//! full for a moment, instead of queueing.

mod batch;
mod ring;
mod socket;
mod statistics;

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use rustix::{io::Errno, net::sockopt::socket_error};

pub use self::statistics::PacketStatistics;
use self::{
    batch::Batch,
    ring::{Filled, ReceiveRing},
    socket::{join_fanout, open_silent, receive_message},
    statistics::{Tally, Totals},
};
use super::{
    HEADROOM, MAX_FRAME_LENGTH, ReceiveError, Received, TransmitError, outgoing::Outgoing,
};
use crate::{
    offload::{
        Offload, Segmentation,
        virtio::{self, HEADER_LENGTH as VNET_HEADER_LENGTH},
    },
    wire::ethernet::{self, VlanTag},
};

/// Slots of all the rings on one NIC together (8 MiB), as long as each ring
/// has [`SLOTS_MIN`] of them.
const SLOTS_PER_NIC: usize = 4096;
/// Slots of one ring, at least (2 MiB).
const SLOTS_MIN: usize = 1024;

/// One packet socket on a NIC; several share its frames by flow.
#[derive(Debug)]
pub struct PacketQueue {
    socket: OwnedFd,
    /// `None` where the kernel gave none, or gave one that stalled.
    ring: Option<ReceiveRing>,
    /// The last reading brought nothing.
    was_idle: bool,
    checked: Checked,
    tally: Arc<Tally>,
    batch: Box<Batch>,
    /// The NIC's MTU, bytes, as the manager last heard it.
    mtu: Arc<AtomicU32>,
    takes_udp_superframes: bool,
    scratch: Box<[u8]>,
}

/// A frame's length (kernel header excluded, even where the frame was cut off)
/// and its tag.
type Taken = (usize, Option<VlanTag>);

impl PacketQueue {
    /// Opens `count` sockets (at least 1) on the interface with this index.
    /// `mtu` (bytes) is shared with whoever watches the interface.
    ///
    /// # Errors
    /// See [`PacketError`]. A ring that can't be had is no error.
    pub fn open(
        interface_index: u32,
        count: usize,
        mtu: &Arc<AtomicU32>,
    ) -> Result<Vec<Self>, PacketError> {
        assert!(count > 0, "an attachment without queues");
        let takes_udp_superframes = kernel_release().is_some_and(|r| is_linux_6_2(&r));
        let slot_count = (SLOTS_PER_NIC / count).max(SLOTS_MIN);
        let mut group = None;
        let mut queues = Vec::with_capacity(count);
        for _ in 0..count {
            let (socket, ring) = open_silent(interface_index, slot_count)?;
            if count > 1 {
                group = Some(join_fanout(&socket, group).map_err(PacketError::Fanout)?);
            }
            queues.push((socket, ring));
        }
        queues
            .into_iter()
            .map(|(socket, ring)| {
                socket.detach_filter().map_err(PacketError::Filter)?;
                Ok(Self {
                    socket: socket.into(),
                    ring,
                    was_idle: true,
                    checked: Checked::default(),
                    tally: Arc::default(),
                    batch: Batch::new(),
                    mtu: Arc::clone(mtu),
                    takes_udp_superframes,
                    scratch: vec![0; MAX_FRAME_LENGTH].into_boxed_slice(),
                })
            })
            .collect()
    }

    /// A second handle to the socket that only reads its drop counter.
    ///
    /// # Errors
    /// Where there is no file descriptor left.
    pub fn statistics(&self) -> Result<PacketStatistics, PacketError> {
        let socket = self.socket.try_clone().map_err(PacketError::Socket)?;
        Ok(PacketStatistics { socket, tally: Arc::clone(&self.tally) })
    }

    // HOT PATH
    pub(super) fn receive<'a>(
        &mut self,
        buffer: &'a mut [u8],
    ) -> Result<Option<Received<'a>>, ReceiveError> {
        let mut header = [0; VNET_HEADER_LENGTH];
        let room = buffer.len() - HEADROOM;
        let taken = match self.ring {
            Some(_) => self.take(&mut header, &mut buffer[HEADROOM..])?,
            None => take_queued(&self.socket, &mut header, &mut buffer[HEADROOM..])?,
        };
        let Some((length, vlan)) = taken else { return Ok(None) };
        if !(ethernet::HEADER_LENGTH..=room).contains(&length) {
            return Err(ReceiveError::Length { length });
        }
        let bytes = &mut buffer[..HEADROOM + length];
        let offload = virtio::from_kernel(&header, &mut bytes[HEADROOM..])
            .map_err(ReceiveError::InvalidHeader)?;
        Ok(Some(Received::new(vlan, offload, bytes)))
    }

    /// Takes the next frame by way of the ring.
    #[inline]
    fn take(
        &mut self,
        header: &mut [u8; VNET_HEADER_LENGTH],
        frame: &mut [u8],
    ) -> Result<Option<Taken>, ReceiveError> {
        let Some(ring) = &mut self.ring else { return Ok(None) };
        for _ in 0..ring.slot_count() {
            let Some(filled) = ring.peek() else { break };
            self.was_idle = false;
            match filled {
                Filled::Whole { offset, length, vlan } => {
                    ring.copy(offset, length, header, frame);
                    ring.release();
                    return Ok(Some((length, vlan)));
                }
                Filled::Queued => {
                    let taken = take_queued(&self.socket, header, frame);
                    if taken == Err(ReceiveError::Down) {
                        // The socket told of the interface first; the frame still waits.
                        return taken;
                    }
                    ring.release();
                    if taken != Ok(None) {
                        return taken;
                    }
                    self.tally.count_cut_off();
                }
                Filled::CutOff => {
                    ring.release();
                    self.tally.count_cut_off();
                }
            }
        }
        // A ring tells of no errors: ask for them where there was a wake-up, but no frame.
        match std::mem::replace(&mut self.was_idle, true) {
            true => self.socket_error().map(|()| None),
            false => Ok(None),
        }
    }

    #[cold]
    fn socket_error(&self) -> Result<(), ReceiveError> {
        Ok(socket_error(&self.socket).and_then(|outcome| outcome)?)
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
                self.batch.send(&self.socket);
                let header = [0; VNET_HEADER_LENGTH];
                let scratch = &mut self.scratch;
                return outgoing.segment_and_write(&self.socket, &header, offload, scratch);
            }
        }
        if !Batch::takes(outgoing) {
            self.batch.send(&self.socket);
            return outgoing.write(&self.socket, &header);
        }
        self.batch.push(outgoing, &header);
        if self.batch.is_full() {
            self.batch.send(&self.socket);
        }
        Ok(())
    }

    pub(super) fn flush(&mut self, tell: &mut impl FnMut(TransmitError, u64)) {
        self.batch.send(&self.socket);
        self.batch.drain_refused(tell);
    }

    /// Does without the ring if it has stalled.
    ///
    /// A superframe that `virtio_net_hdr` has no words for (UFO, SCTP; before
    /// Linux 6.2 any of UDP) leaves its slot marked as being filled for good:
    /// `tpacket_rcv` sets the slot's bit in `rx_owner_map` and forgets it where
    /// `virtio_net_hdr_from_skb` fails. From then on the kernel drops every frame.
    pub(super) fn check(&mut self) {
        let Some(ring) = &self.ring else { return };
        let checked =
            Checked { totals: self.tally.update(&self.socket), was_empty: ring.is_empty() };
        let before = std::mem::replace(&mut self.checked, checked);
        if !checked.is_stalled_since(&before) {
            return;
        }
        match self.give_up_ring() {
            Ok(()) => tracing::warn!(
                "a superframe that the kernel can't describe stalled a NIC's receive ring: going \
                 on without; try: ethtool -K <nic> gro off"
            ),
            Err(errno) => tracing::error!(%errno, "can't remove a NIC's stalled receive ring"),
        }
    }

    /// From now on every frame takes a system call; what waits in the ring is lost.
    pub(super) fn give_up_ring(&mut self) -> Result<(), Errno> {
        self.ring.take().map_or(Ok(()), |ring| ring.close(&self.socket))
    }
}

impl AsFd for PacketQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What [`PacketQueue::check`] saw.
#[derive(Clone, Copy, Debug, Default)]
struct Checked {
    totals: Totals,
    was_empty: bool,
}

impl Checked {
    /// Frames are dropped although the ring was and is empty, and none came:
    /// in between it can't have been full.
    fn is_stalled_since(&self, before: &Self) -> bool {
        before.was_empty
            && self.was_empty
            && self.totals.dropped > before.totals.dropped
            && self.totals.accepted == before.totals.accepted
    }
}

/// Takes the next frame from the socket's own queue.
fn take_queued(
    socket: &OwnedFd,
    header: &mut [u8; VNET_HEADER_LENGTH],
    frame: &mut [u8],
) -> Result<Option<Taken>, ReceiveError> {
    match receive_message(socket, header, frame) {
        Ok((length, vlan)) => Ok(Some((length.saturating_sub(VNET_HEADER_LENGTH), vlan))),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(errno) => Err(errno.into()),
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

    #[test]
    fn a_ring_has_stalled_where_an_empty_one_only_drops() {
        let checked = |accepted, dropped, was_empty| Checked {
            totals: Totals { accepted, dropped },
            was_empty,
        };
        let before = checked(5, 1, true);
        assert!(checked(5, 2, true).is_stalled_since(&before));
        assert!(!checked(5, 1, true).is_stalled_since(&before), "nothing came");
        assert!(!checked(6, 2, true).is_stalled_since(&before), "it was full in between");
        assert!(!checked(5, 2, false).is_stalled_since(&before), "frames wait");
        assert!(!checked(5, 2, true).is_stalled_since(&checked(5, 1, false)), "it was full");
    }
}
