//! A frame on its way to the LAN: its VLAN tag, its kernel header, its
//! segments; one gathering write each, without a copy of the payload.

use std::{io::IoSlice, os::fd::AsFd};

use super::TransmitError;
use crate::{
    offload::{
        Offload,
        segment::segment,
        virtio::{self, HEADER_LENGTH as VNET_HEADER_LENGTH},
    },
    wire::ethernet::{self, Frame, TAG_LENGTH, VlanTag, insert_tag},
};

/// Offsets in `struct virtio_net_hdr` (include/uapi/linux/virtio_net.h).
const FLAGS_OFFSET: usize = 0;
const GSO_TYPE_OFFSET: usize = 1;
const HDR_LEN_OFFSET: usize = 2;
const CSUM_START_OFFSET: usize = 6;

const TAGGED_HEADER_LENGTH: usize = ethernet::HEADER_LENGTH + TAG_LENGTH;

/// A frame of at least an Ethernet header, and the tag to put into it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outgoing<'a> {
    vlan: Option<VlanTag>,
    frame: &'a [u8],
}

impl<'a> Outgoing<'a> {
    pub(super) fn new(vlan: Option<VlanTag>, frame: &'a [u8]) -> Result<Self, TransmitError> {
        if frame.len() < ethernet::HEADER_LENGTH {
            return Err(TransmitError::TooShort { length: frame.len() });
        }
        Ok(Self { vlan, frame })
    }

    /// The kernel's header for this frame, tag included.
    pub(super) fn kernel_header(
        &self,
        offload: &Offload,
    ) -> Result<[u8; VNET_HEADER_LENGTH], TransmitError> {
        let header =
            virtio::to_kernel(offload, self.frame).map_err(TransmitError::InvalidOffload)?;
        Ok(if self.vlan.is_some() { shift_for_tag(header) } else { header })
    }

    /// Length of the frame with its tag, bytes.
    pub(super) fn length(&self) -> usize {
        self.frame.len() + if self.vlan.is_some() { TAG_LENGTH } else { 0 }
    }

    /// Length in bytes of the longest packet that a superframe with this
    /// kernel header is cut into, from the IP header on.
    pub(super) fn packet_length(
        &self,
        header: &[u8; VNET_HEADER_LENGTH],
        offload: &Offload,
    ) -> usize {
        let tag_length = self.length() - self.frame.len();
        let headers = usize::from(read_u16(header, HDR_LEN_OFFSET)).saturating_sub(tag_length);
        let segment = (headers + usize::from(offload.segment_size)).min(self.frame.len());
        let packet_offset = Frame::new_checked(self.frame).map_or(0, Frame::payload_offset);
        segment.saturating_sub(packet_offset)
    }

    /// Copies `header` and the frame into `room`, which must take both;
    /// returns how many bytes that were.
    pub(super) fn copy_to(&self, header: &[u8], room: &mut [u8]) -> usize {
        let mut tagged = [0; TAGGED_HEADER_LENGTH];
        let (head, rest) = self.split(&mut tagged);
        let mut length = 0;
        for part in [header, head, rest] {
            room[length..][..part.len()].copy_from_slice(part);
            length += part.len();
        }
        length
    }

    /// The frame in two parts; the first is in `tagged`, where it has a tag.
    fn split<'b>(&'b self, tagged: &'b mut [u8; TAGGED_HEADER_LENGTH]) -> (&'b [u8], &'b [u8]) {
        match (self.vlan, self.frame.split_first_chunk()) {
            (Some(tag), Some((header, rest))) => {
                *tagged = insert_tag(header, tag);
                (tagged, rest)
            }
            _ => (&[], self.frame),
        }
    }

    /// Writes the frame behind `header` (empty: none).
    pub(super) fn write(&self, file: impl AsFd, header: &[u8]) -> Result<(), TransmitError> {
        let mut tagged = [0; TAGGED_HEADER_LENGTH];
        let (head, rest) = self.split(&mut tagged);
        let parts = [IoSlice::new(header), IoSlice::new(head), IoSlice::new(rest)];
        rustix::io::writev(file, &parts)
            .map(drop)
            .map_err(|errno| TransmitError::from_errno(errno, head.len() + rest.len()))
    }

    /// Cuts the frame in software and writes every packet behind `header`.
    /// The first failure ends the sending.
    pub(super) fn segment_and_write(
        &self,
        file: impl AsFd,
        header: &[u8],
        offload: &Offload,
        scratch: &mut [u8],
    ) -> Result<(), TransmitError> {
        let mut outcome = Ok(());
        segment(self.frame, offload, scratch, &mut |packet| {
            if outcome.is_ok() {
                outcome = Outgoing { vlan: self.vlan, frame: packet }.write(&file, header);
            }
        })
        .map_err(TransmitError::InvalidOffload)?;
        outcome
    }
}

/// `header`, made for a frame, for the same frame with one tag more: `hdr_len`
/// and `csum_start` count from the frame's start.
fn shift_for_tag(mut header: [u8; VNET_HEADER_LENGTH]) -> [u8; VNET_HEADER_LENGTH] {
    if header[FLAGS_OFFSET] == 0 && header[GSO_TYPE_OFFSET] == 0 {
        return header;
    }
    for field in [HDR_LEN_OFFSET, CSUM_START_OFFSET] {
        let shifted = read_u16(&header, field).saturating_add(TAG_LENGTH as u16);
        header[field..field + 2].copy_from_slice(&shifted.to_ne_bytes());
    }
    header
}

fn read_u16(header: &[u8; VNET_HEADER_LENGTH], at: usize) -> u16 {
    u16::from_ne_bytes([header[at], header[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_shifts_the_offsets_of_a_header_that_has_any() {
        let mut header = [0; VNET_HEADER_LENGTH];
        assert_eq!(shift_for_tag(header), header);

        header[FLAGS_OFFSET] = 1;
        header[HDR_LEN_OFFSET..][..2].copy_from_slice(&54_u16.to_ne_bytes());
        header[CSUM_START_OFFSET..][..2].copy_from_slice(&34_u16.to_ne_bytes());
        let shifted = shift_for_tag(header);
        assert_eq!(read_u16(&shifted, HDR_LEN_OFFSET), 58);
        assert_eq!(read_u16(&shifted, CSUM_START_OFFSET), 38);
    }
}
