//! A receive ring that the kernel fills and this thread empties
//! (`TPACKET_V2`, Documentation/networking/packet_mmap.rst).
//!
//! ```text
//!  slot of 2048 bytes                          tp_mac
//!  | tpacket2_hdr | sockaddr_ll | … | virtio_net_hdr | frame … |
//!    tp_status: KERNEL → (kernel fills) → USER → (we copy it out) → KERNEL
//! ```
//!
//! A frame that does not fit its slot is queued whole on the socket as well
//! (`PACKET_COPY_THRESH`), in the order of the slots.
#![allow(unsafe_code)]

use std::{
    mem,
    os::fd::AsFd,
    ptr::{self, NonNull},
    sync::atomic::{AtomicU32, Ordering},
};

use libc::tpacket2_hdr;
use rustix::{
    io::Errno,
    mm::{MapFlags, ProtFlags, mmap, munmap},
};

use super::socket::set_option;
use crate::{offload::virtio::HEADER_LENGTH as VNET_HEADER_LENGTH, wire::ethernet::VlanTag};

/// Bytes of a slot: a 1518-byte frame and all that comes before it.
const SLOT_LENGTH: usize = 2048;
/// Bytes that the kernel allocates in one piece.
const BLOCK_LENGTH: usize = 64 << 10;
const SLOTS_PER_BLOCK: usize = BLOCK_LENGTH / SLOT_LENGTH;

/// The slots, mapped, and whose turn it is.
#[derive(Debug)]
pub(super) struct ReceiveRing {
    base: NonNull<u8>,
    slot_count: usize,
    next: usize,
}

// SAFETY: the mapping is the whole process's, and only this value refers to it.
unsafe impl Send for ReceiveRing {}

/// What the kernel says about a frame in its slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Filled {
    /// It is there, all of it.
    Whole {
        /// Where it begins in its slot, bytes.
        offset: usize,
        /// Its length, bytes.
        length: usize,
        /// The tag that the kernel took out of it.
        vlan: Option<VlanTag>,
    },
    /// It waits on the socket, being longer than a slot.
    Queued,
    /// It was longer than a slot, and the socket's buffer had no room for it.
    CutOff,
}

impl ReceiveRing {
    /// Gives `socket` a ring of at least `slot_count` slots. Its virtio header
    /// must be set before, and nothing may have arrived yet.
    pub(super) fn open(socket: impl AsFd, slot_count: usize) -> Result<Self, Errno> {
        let block_count = slot_count.div_ceil(SLOTS_PER_BLOCK);
        let slot_count = block_count * SLOTS_PER_BLOCK;
        let on: libc::c_int = 1;
        set_option(&socket, libc::PACKET_COPY_THRESH, &on)?;
        set_option(&socket, libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V2 as u32))?;
        let request = libc::tpacket_req {
            tp_block_size: BLOCK_LENGTH as u32,
            tp_block_nr: block_count as u32,
            tp_frame_size: SLOT_LENGTH as u32,
            tp_frame_nr: slot_count as u32,
        };
        set_option(&socket, libc::PACKET_RX_RING, &request)?;
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        let length = slot_count * SLOT_LENGTH;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let base = unsafe { mmap(ptr::null_mut(), length, access, flags, &socket, 0) };
        let base = base.and_then(|base| NonNull::new(base.cast()).ok_or(Errno::NOMEM));
        match base {
            Ok(base) => Ok(Self { base, slot_count, next: 0 }),
            Err(errno) => {
                let _ = remove(&socket);
                Err(errno)
            }
        }
    }

    /// Unmaps the ring and takes it from `socket`, which then has a plain queue.
    pub(super) fn close(self, socket: impl AsFd) -> Result<(), Errno> {
        drop(self);
        remove(socket)
    }

    /// How many slots it has.
    pub(super) fn slot_count(&self) -> usize {
        self.slot_count
    }

    /// Whether no frame is waiting.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.status() & libc::TP_STATUS_USER == 0
    }

    /// The frame that is waiting, if any.
    #[inline]
    pub(super) fn peek(&self) -> Option<Filled> {
        let status = self.status();
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        if status & libc::TP_STATUS_COPY != 0 {
            return Some(Filled::Queued);
        }
        // SAFETY: the slot is ours (status, acquired) and begins with a `tpacket2_hdr`.
        let header = unsafe { self.slot().cast::<tpacket2_hdr>().read() };
        let (offset, length) = (usize::from(header.tp_mac), header.tp_snaplen as usize);
        let least = mem::size_of::<tpacket2_hdr>() + VNET_HEADER_LENGTH;
        let fits = offset >= least && length <= SLOT_LENGTH.saturating_sub(offset);
        if header.tp_snaplen != header.tp_len || !fits {
            return Some(Filled::CutOff);
        }
        let vlan = vlan_tag(status, header.tp_vlan_tpid, header.tp_vlan_tci);
        Some(Filled::Whole { offset, length, vlan })
    }

    /// Copies out the frame that [`Self::peek`] found whole, as much of it as
    /// `frame` takes, and the kernel header before it.
    #[inline]
    pub(super) fn copy(
        &self,
        offset: usize,
        length: usize,
        header: &mut [u8; VNET_HEADER_LENGTH],
        frame: &mut [u8],
    ) {
        assert!(offset >= VNET_HEADER_LENGTH && offset + length <= SLOT_LENGTH);
        let length = length.min(frame.len());
        // SAFETY: both ranges are within the slot (checked above), which the
        // kernel does not write to until it is released.
        unsafe {
            let start = self.slot().as_ptr().add(offset);
            let before = start.sub(VNET_HEADER_LENGTH);
            ptr::copy_nonoverlapping(before, header.as_mut_ptr(), VNET_HEADER_LENGTH);
            ptr::copy_nonoverlapping(start, frame.as_mut_ptr(), length);
        }
    }

    /// Gives the slot that was waiting back to the kernel.
    #[inline]
    pub(super) fn release(&mut self) {
        debug_assert!(!self.is_empty(), "a slot of the kernel's");
        self.status_word().store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = if self.next + 1 == self.slot_count { 0 } else { self.next + 1 };
    }

    #[inline]
    fn slot(&self) -> NonNull<u8> {
        // SAFETY: `next` is below `slot_count`, so the slot is within the mapping.
        unsafe { self.base.add(self.next * SLOT_LENGTH) }
    }

    /// `tp_status`, with what the kernel wrote before it.
    #[inline]
    fn status(&self) -> u32 {
        self.status_word().load(Ordering::Acquire)
    }

    #[inline]
    fn status_word(&self) -> &AtomicU32 {
        // SAFETY: `tp_status` is a slot's first field, aligned, mapped as long
        // as `self` lives, and accessed by atomics only while it may change.
        unsafe { AtomicU32::from_ptr(self.slot().cast().as_ptr()) }
    }
}

impl Drop for ReceiveRing {
    fn drop(&mut self) {
        // SAFETY: `base` was mapped with this length, and nothing refers to it any more.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.slot_count * SLOT_LENGTH) };
    }
}

fn remove(socket: impl AsFd) -> Result<(), Errno> {
    let nothing =
        libc::tpacket_req { tp_block_size: 0, tp_block_nr: 0, tp_frame_size: 0, tp_frame_nr: 0 };
    set_option(&socket, libc::PACKET_RX_RING, &nothing)
}

/// The tag that came out of band, from the fields of `tpacket2_hdr` or
/// `tpacket_auxdata`.
pub(super) fn vlan_tag(status: u32, tpid: u16, tci: u16) -> Option<VlanTag> {
    if status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let has_tpid = status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
    let tpid = if has_tpid { tpid } else { VlanTag::CUSTOMER };
    Some(VlanTag { tpid, tci })
}
