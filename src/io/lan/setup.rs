//! Making what an attachment needs, and leaving the rest of the host as it was.

use std::{
    hash::Hasher,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use siphasher::sip::SipHasher24;
use tracing::info;

use super::{
    LanQueue, PacketError, PacketQueue, PlainError, PlainTap, ReceiveOffload, TapError, TapQueue,
    ethtool::disable_lro,
    links::{Link, LinkTable},
    machine::{AttachmentKind, AttachmentSpec, Made, tap_mtu},
    netlink::{Interfaces, NetlinkError},
};
use crate::wire::ethernet::MacAddr;

/// Frames that a TAP's queue holds, superframes or not. It is what stands
/// between a burst and a drop while a data thread is busy; at 64 KiB a
/// superframe it bounds the kernel memory of a stalled one.
const TAP_QUEUE_LENGTH: u32 = 512;

/// First byte of the MAC address of a TAP in a bridge: a bridge takes the
/// lowest address of its ports for its own (`br_stp_recalculate_bridge_id` in
/// net/bridge/br_stp_if.c).
const PORT_MAC_PREFIX: u8 = 0xfe;

/// First byte of the MAC address of a TAP alone: locally administered.
const TAP_MAC_PREFIX: u8 = 0x02;

/// What was made for an attachment.
pub(super) struct Opened {
    pub(super) made: Made,
    pub(super) queues: Vec<LanQueue>,
    pub(super) notes: Vec<String>,
}

/// Makes what `spec` needs; whatever it depends on was there a moment ago.
/// `mtu` (bytes) is what a NIC's queues will hold their segments against.
pub(super) async fn open(
    spec: &AttachmentSpec,
    links: &LinkTable,
    interfaces: &Interfaces,
    appliance: &str,
    mtu: &Arc<AtomicU32>,
) -> Result<Opened, OpenError> {
    match &spec.kind {
        AttachmentKind::Nic { nic } => open_nic(nic, spec.queues, links, mtu),
        AttachmentKind::Tap { tap, mtu } => {
            let mac = stable_mac(TAP_MAC_PREFIX, appliance, tap);
            open_tap(spec, tap, *mtu, mac, interfaces).await
        }
        AttachmentKind::Bridge { bridge, tap } => {
            let mac = stable_mac(PORT_MAC_PREFIX, appliance, tap);
            open_port(spec, bridge, tap, mac, links, interfaces).await
        }
    }
}

fn open_nic(
    nic: &str,
    count: usize,
    links: &LinkTable,
    mtu: &Arc<AtomicU32>,
) -> Result<Opened, OpenError> {
    let link = links.by_name(nic).ok_or_else(|| OpenError::vanished(nic))?;
    mtu.store(link.mtu, Ordering::Relaxed);
    let queues = PacketQueue::open(link.index, count, mtu)?;
    let mut notes = Vec::new();
    if link.controller.is_some() {
        notes.push(format!(
            "{nic} belongs to a bridge or bond, which gets the same frames as the stretched LAN"
        ));
    }
    match disable_lro(nic) {
        Ok(false) => {}
        Ok(true) => notes.push(format!("LRO of {nic} was on and is off now")),
        Err(errno) => notes.push(format!(
            "LRO of {nic} can't be looked at ({errno}); try: ethtool -K {nic} lro off"
        )),
    }
    let made = Made { interface: link.index, bridge: None };
    Ok(Opened { made, queues: queues.into_iter().map(LanQueue::Packet).collect(), notes })
}

async fn open_tap(
    spec: &AttachmentSpec,
    tap: &str,
    mtu: Option<u32>,
    mac: MacAddr,
    interfaces: &Interfaces,
) -> Result<Opened, OpenError> {
    let (queues, notes) = make_tap(spec, tap)?;
    let link = made_link(tap, interfaces).await?;
    interfaces.prepare(link.index, mac, TAP_QUEUE_LENGTH).await?;
    if let Some(mtu) = mtu {
        interfaces.set_mtu(link.index, mtu).await?;
    }
    interfaces.set_up(link.index).await?;
    Ok(Opened { made: Made { interface: link.index, bridge: None }, queues, notes })
}

async fn open_port(
    spec: &AttachmentSpec,
    bridge: &str,
    tap: &str,
    mac: MacAddr,
    links: &LinkTable,
    interfaces: &Interfaces,
) -> Result<Opened, OpenError> {
    let before = interfaces.get_by_name(bridge).await?;
    let before = before.ok_or_else(|| OpenError::vanished(bridge))?;
    let (queues, mut notes) = make_tap(spec, tap)?;
    let link = made_link(tap, interfaces).await?;
    interfaces.prepare_port(link.index, mac, TAP_QUEUE_LENGTH).await?;
    interfaces.set_mtu(link.index, tap_mtu(links, &before, link.index)).await?;
    join_bridge(link.index, &before, interfaces).await?;
    interfaces.set_up(link.index).await?;
    notes.extend(bridge_notes(&before, tap));
    let made = Made { interface: link.index, bridge: Some(before.index) };
    Ok(Opened { made, queues, notes })
}

async fn made_link(name: &str, interfaces: &Interfaces) -> Result<Link, OpenError> {
    interfaces.get_by_name(name).await?.ok_or_else(|| OpenError::vanished(name))
}

/// Puts a TAP into a bridge, which is afterwards what it was `before`.
pub(super) async fn join_bridge(
    tap: u32,
    before: &Link,
    interfaces: &Interfaces,
) -> Result<(), NetlinkError> {
    interfaces.enslave(tap, before.index).await?;
    restore_bridge(before, interfaces).await
}

/// A bridge whose address and MTU nobody set takes them from its ports: where
/// ours came as the only one, or went as the last, they have to be put back.
pub(super) async fn restore_bridge(
    before: &Link,
    interfaces: &Interfaces,
) -> Result<(), NetlinkError> {
    let Some(now) = interfaces.get(before.index).await? else { return Ok(()) };
    if let Some(mac) = before.mac
        && now.mac != before.mac
    {
        info!(bridge = %before.name, %mac, "the bridge keeps its MAC address");
        interfaces.set_mac(before.index, mac).await?;
    }
    if now.mtu != before.mtu {
        info!(bridge = %before.name, mtu = before.mtu, "the bridge keeps its MTU");
        interfaces.set_mtu(before.index, before.mtu).await?;
    }
    Ok(())
}

/// Why an attachment could not be set up.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error(transparent)]
    Plain(#[from] PlainError),
    #[error(transparent)]
    Packet(#[from] PacketError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("{0} vanished while it was set up")]
    Vanished(String),
}

impl OpenError {
    fn vanished(name: &str) -> Self {
        Self::Vanished(name.to_owned())
    }
}

fn make_tap(spec: &AttachmentSpec, name: &str) -> Result<(Vec<LanQueue>, Vec<String>), OpenError> {
    if !spec.offload {
        return Ok((vec![LanQueue::Plain(PlainTap::open(name)?)], Vec::new()));
    }
    let queues = TapQueue::open(name, spec.queues)?;
    let note = match queues[0].receive_offload() {
        ReceiveOffload::TcpUdp => None,
        ReceiveOffload::Tcp => Some("UDP superframes are cut in software (before Linux 6.2)"),
        _ => Some("this kernel grants few TAP offloads: expect less throughput"),
    };
    let notes = note.into_iter().map(str::to_owned).collect();
    Ok((queues.into_iter().map(LanQueue::Tap).collect(), notes))
}

/// What crosses a bridge and what doesn't, as it is set up.
fn bridge_notes(link: &Link, tap: &str) -> Vec<String> {
    let Some(bridge) = link.bridge else { return Vec::new() };
    let name = &link.name;
    let mut notes = vec![match bridge.group_fwd_mask {
        0 => format!("{name} passes no link-local groups (01:80:c2:00:00:0x)"),
        mask => format!(
            "{name} passes the link-local groups 01:80:c2:00:00:0x of group_fwd_mask {mask:#06x}"
        ),
    }];
    if bridge.filters_vlans {
        notes.push(format!(
            "{name} filters VLANs: only its default VLAN crosses until others are added; \
             try: bridge vlan add dev {tap} vid <id>"
        ));
    }
    notes
}

/// A MAC address that is the same after every restart.
fn stable_mac(prefix: u8, appliance: &str, interface: &str) -> MacAddr {
    let mut hasher = SipHasher24::new();
    hasher.write(appliance.as_bytes());
    hasher.write_u8(0);
    hasher.write(interface.as_bytes());
    let [a, b, c, d, e, ..] = hasher.finish().to_be_bytes();
    MacAddr([prefix, a, b, c, d, e])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_address_is_stable_and_differs_between_appliances() {
        let mac = |appliance, tap| stable_mac(PORT_MAC_PREFIX, appliance, tap);
        assert_eq!(mac("east-1", "lb-100"), mac("east-1", "lb-100"));
        assert_ne!(mac("east-1", "lb-100"), mac("west-1", "lb-100"));
        assert_ne!(mac("east-1", "lb-100"), mac("east-1", "lb-101"));
        assert_eq!(mac("east-1", "lb-100").0[0], 0xfe);
        assert!(!mac("east-1", "lb-100").is_group());
    }
}
