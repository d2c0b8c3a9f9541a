//! A TAP without offloads (`offload = false`): one queue, one finished frame
//! per call. The device is made by the `tun-tap` crate.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::{fs::OFlags, io::Errno};
use tun_tap::{Iface, Mode};

use super::{
    HEADROOM, MAX_FRAME_LENGTH, ReceiveError, Received, TransmitError,
    outgoing::Outgoing,
    tap::{TapError, is_valid_name},
};
use crate::{
    offload::{Offload, Segmentation},
    wire::ethernet,
};

/// A plain TAP. The device vanishes with it.
pub struct PlainTap {
    interface: Iface,
    scratch: Box<[u8]>,
}

impl PlainTap {
    /// Makes the TAP `name`, down.
    pub fn open(name: &str) -> Result<Self, PlainError> {
        if !is_valid_name(name) {
            return Err(TapError::InvalidName { name: name.to_owned() }.into());
        }
        let interface = Iface::without_packet_info(name, Mode::Tap).map_err(|error| {
            match Errno::from_io_error(&error).unwrap_or(Errno::IO) {
                Errno::NOENT | Errno::NXIO | Errno::NODEV => TapError::NoDevice,
                // tun_set_iff: the name belongs to an interface of another kind.
                Errno::INVAL => TapError::NameTaken { name: name.to_owned() },
                other => TapError::attach(name, other),
            }
        })?;
        let tap = Self { interface, scratch: vec![0; MAX_FRAME_LENGTH].into_boxed_slice() };
        rustix::fs::fcntl_setfl(&tap, OFlags::NONBLOCK).map_err(PlainError::NonBlocking)?;
        Ok(tap)
    }

    pub(super) fn receive<'a>(
        &mut self,
        buffer: &'a mut [u8],
    ) -> Result<Option<Received<'a>>, ReceiveError> {
        let room = buffer.len() - HEADROOM;
        let length = match rustix::io::read(&*self, &mut buffer[HEADROOM..]) {
            Ok(length) => length,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        if !(ethernet::HEADER_LENGTH..=room).contains(&length) {
            return Err(ReceiveError::Length { length });
        }
        let bytes = &mut buffer[..HEADROOM + length];
        Ok(Some(Received::new(None, Offload::default(), bytes)))
    }

    pub(super) fn transmit(
        &mut self,
        outgoing: &Outgoing<'_>,
        offload: &Offload,
    ) -> Result<(), TransmitError> {
        let file = borrow(&self.interface);
        if offload.segmentation == Segmentation::None && !offload.needs_checksum {
            return outgoing.write(file, &[]);
        }
        outgoing.segment_and_write(file, &[], offload, &mut self.scratch)
    }
}

impl AsFd for PlainTap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.interface)
    }
}

impl std::fmt::Debug for PlainTap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlainTap").field("name", &self.interface.name()).finish_non_exhaustive()
    }
}

/// Why a plain TAP could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PlainError {
    /// The device could not be made.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The descriptor could not be made non-blocking.
    #[error("can't make the TAP non-blocking")]
    NonBlocking(#[source] Errno),
}

fn borrow(interface: &Iface) -> BorrowedFd<'_> {
    // SAFETY: `interface` owns the descriptor and outlives the borrow.
    unsafe { BorrowedFd::borrow_raw(interface.as_raw_fd()) }
}
