//! Frames that leave with one system call (`sendmmsg`).
//!
//! A transmit ring (`PACKET_TX_RING`) would do the same, and measured no
//! better: it maps every frame's pages into its packet, and reports errors by slot.

use std::{array, io::IoSlice, os::fd::AsFd};

use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};

use super::super::{TransmitError, outgoing::Outgoing};
use crate::offload::virtio::HEADER_LENGTH as VNET_HEADER_LENGTH;

/// Frames per batch.
const BATCH_MAX: usize = 32;
/// Bytes of a frame and its kernel header, at most; longer ones go by themselves.
const SLOT_LENGTH: usize = 2048;

/// Frames that wait for the end of the burst, each behind its kernel header.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Box<[u8]>,
    lengths: [u16; BATCH_MAX],
    count: usize,
    refused: Refused,
}

impl Batch {
    pub(super) fn new() -> Box<Self> {
        let bytes = vec![0; BATCH_MAX * SLOT_LENGTH].into_boxed_slice();
        Box::new(Self { bytes, lengths: [0; BATCH_MAX], count: 0, refused: Refused::default() })
    }

    /// Whether a frame of this kind goes into a batch at all.
    pub(super) fn takes(outgoing: &Outgoing<'_>) -> bool {
        VNET_HEADER_LENGTH + outgoing.length() <= SLOT_LENGTH
    }

    /// Keeps a frame that [`Self::takes`] approves of; the batch must not be full.
    pub(super) fn push(&mut self, outgoing: &Outgoing<'_>, header: &[u8; VNET_HEADER_LENGTH]) {
        let slot = &mut self.bytes[self.count * SLOT_LENGTH..][..SLOT_LENGTH];
        self.lengths[self.count] = outgoing.copy_to(header, slot) as u16;
        self.count += 1;
    }

    pub(super) fn is_full(&self) -> bool {
        self.count == BATCH_MAX
    }

    /// Sends what was kept, in order, and counts what the kernel refuses. One
    /// refused frame never stops the others.
    pub(super) fn send(&mut self, socket: impl AsFd) {
        let mut sent = 0;
        while sent < self.count {
            match self.send_from(&socket, sent) {
                Ok(count) => sent += count.max(1),
                Err(error) => {
                    self.refused.add(error);
                    sent += 1;
                }
            }
        }
        self.count = 0;
    }

    /// Tells and forgets each reason for which frames were refused, and how many.
    pub(super) fn drain_refused(&mut self, tell: &mut impl FnMut(TransmitError, u64)) {
        for (error, count) in self.refused.0.iter_mut().map_while(Option::take) {
            tell(error, count);
        }
    }

    /// Sends frames from number `first` on. The error is that one's: sendmmsg
    /// stops short of a later one that fails and says how far it came.
    fn send_from(&self, socket: impl AsFd, first: usize) -> Result<usize, TransmitError> {
        let length = self.lengths[first];
        let failed = |errno| {
            TransmitError::from_errno(errno, usize::from(length).saturating_sub(VNET_HEADER_LENGTH))
        };
        let pending = self.count - first;
        if pending == 1 {
            return rustix::io::write(socket, self.packet(first)).map(|_| 1).map_err(failed);
        }
        let parts: [_; BATCH_MAX] =
            array::from_fn(|i| [IoSlice::new(self.packet((first + i).min(self.count - 1)))]);
        let mut controls: [_; BATCH_MAX] = array::from_fn(|_| SendAncillaryBuffer::default());
        let mut controls = controls.iter_mut();
        let mut messages: [_; BATCH_MAX] = array::from_fn(|i| {
            MMsgHdr::new(&parts[i], controls.next().expect("one for each message"))
        });
        sendmmsg(socket, &mut messages[..pending], SendFlags::DONTWAIT).map_err(failed)
    }

    fn packet(&self, number: usize) -> &[u8] {
        &self.bytes[number * SLOT_LENGTH..][..usize::from(self.lengths[number])]
    }
}

/// Frames that were refused after `transmit` had taken them, by reason.
#[derive(Debug, Default)]
struct Refused([Option<(TransmitError, u64)>; Refused::REASONS]);

impl Refused {
    /// How many kinds of [`TransmitError`] there are.
    const REASONS: usize = 7;

    #[cold]
    fn add(&mut self, error: TransmitError) {
        let kind = std::mem::discriminant(&error);
        for entry in &mut self.0 {
            match entry {
                Some((known, count)) if std::mem::discriminant(known) == kind => {
                    *count += 1;
                    return;
                }
                Some(_) => {}
                None => {
                    *entry = Some((error, 1));
                    return;
                }
            }
        }
        unreachable!("more kinds of errors than there are");
    }
}
