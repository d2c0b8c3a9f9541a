//! What an attachment does next, decided from what is known of the host's
//! interfaces and what was done so far. No I/O here.
//!
//! ```text
//!            target there                 made              forwarding
//!  waiting ───────────────▶ setting up ─────────▶ settling ────────────▶ up ◀─┐
//!   ▲  ▲                        │                    │ removed           │    │ carrier
//!   │  └──────── failed ◀───────┘                    │                   ├────┘ lost, back
//!   │       (again after a pause)                    │                   │
//!   └────────────────────────────────────────────────┴───────────────────┘ removed
//! ```

use std::fmt;

use super::links::{Link, LinkTable, PortState};
use crate::topology::PortIndex;

/// One attachment of this site, as configured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttachmentSpec {
    /// Names it in events.
    pub port: PortIndex,
    /// What to attach to.
    pub kind: AttachmentKind,
    /// Whether to use superframes and several queues (TAPs only).
    pub offload: bool,
    /// Queues wanted, one per data thread; at least 1. A plain TAP has 1.
    pub queues: usize,
}

/// Where an appliance meets the LAN.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AttachmentKind {
    /// A TAP is made and put into an existing bridge.
    Bridge {
        /// The bridge's name.
        bridge: String,
        /// The TAP's name.
        tap: String,
    },
    /// A TAP alone.
    Tap {
        /// The TAP's name.
        tap: String,
        /// Its MTU, bytes; `None`: the kernel's default (1500).
        mtu: Option<u32>,
    },
    /// An existing Ethernet interface.
    Nic {
        /// Its name.
        nic: String,
    },
}

impl AttachmentKind {
    /// `bridge`, `tap` or `nic`, as in the group file.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Bridge { .. } => "bridge",
            Self::Tap { .. } => "tap",
            Self::Nic { .. } => "nic",
        }
    }

    /// The interface whose frames cross: the TAP or the NIC.
    pub fn interface(&self) -> &str {
        match self {
            Self::Bridge { tap, .. } | Self::Tap { tap, .. } => tap,
            Self::Nic { nic } => nic,
        }
    }
}

/// How an attachment is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttachmentState {
    /// Something that it needs isn't there.
    Waiting,
    /// Set up, and not forwarding yet.
    Settling,
    /// Frames cross.
    Up,
    /// Set up, but cut off from the LAN for now.
    NoCarrier,
    /// Setting it up failed; it is tried again.
    Failed,
}

impl fmt::Display for AttachmentState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Settling => "settling",
            Self::Up => "up",
            Self::NoCarrier => "no carrier",
            Self::Failed => "failed",
        })
    }
}

/// Why an attachment is not up: what is wrong, and what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Reason {
    /// No interface has this name.
    #[error("there is no interface {0}")]
    Missing(String),
    /// The interface is no bridge.
    #[error("{0} is not a bridge; try: attach it as `nic`, or name a bridge")]
    NotABridge(String),
    /// The interface has no Ethernet frames.
    #[error("{0} is not an Ethernet interface")]
    NotEthernet(String),
    /// Another interface has the TAP's name.
    #[error(
        "an interface named {0} exists already; try: ip link del {0}, or choose another `tap` name"
    )]
    NameTaken(String),
    /// The interface was removed or renamed, or replaced by another.
    #[error("{0} was removed")]
    Removed(String),
    /// The interface is administratively down.
    #[error("{0} is down; try: ip link set {0} up")]
    Down(String),
    /// The interface has no link.
    #[error("{0} has no carrier (cable, or the other end)")]
    NoCarrier(String),
    /// The bridge has ports, and none of the others has a link.
    #[error("no other port of bridge {0} has a carrier")]
    NoPortHasCarrier(String),
    /// The bridge does not forward on our port (yet).
    #[error("{tap} in bridge {bridge} is {state} (spanning tree, or just set up)")]
    PortNotForwarding {
        /// The bridge's name.
        bridge: String,
        /// The TAP's name.
        tap: String,
        /// The port's state.
        state: &'static str,
    },
    /// An operation failed.
    #[error("{0}")]
    Failed(String),
}

/// What was made for an attachment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Made {
    /// The TAP or NIC.
    pub(super) interface: u32,
    /// The bridge.
    pub(super) bridge: Option<u32>,
}

/// What the users of an attachment were last told of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Condition {
    /// Bytes.
    pub(super) mtu: u32,
    /// `None`: frames cross.
    pub(super) obstacle: Option<Reason>,
}

/// The next step of an attachment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Nothing to be done until an interface changes.
    Wait(Reason),
    /// Make it.
    Open,
    /// What was made is gone or useless: let go of it.
    Close(Reason),
    /// Put the TAP (back) into the bridge.
    Enslave,
    /// Set the TAP's MTU, bytes.
    SetMtu(u32),
    /// Made, but not to be handed out yet.
    Settle(Reason),
    /// In working order or cut off: its users are told what changed.
    Serve(Condition),
}

/// The next step of the attachment `kind`, of which `made` exists and which
/// `is_served` says is in its users' hands.
pub(super) fn next_step(
    kind: &AttachmentKind,
    links: &LinkTable,
    made: Option<Made>,
    is_served: bool,
) -> Step {
    let Some(made) = made else { return step_before_open(kind, links) };
    match (kind, made.bridge) {
        (AttachmentKind::Bridge { bridge, tap }, Some(bridge_index)) => {
            step_of_bridge(bridge, tap, links, made.interface, bridge_index, is_served)
        }
        _ => step_of_interface(kind.interface(), links, made.interface),
    }
}

fn step_before_open(kind: &AttachmentKind, links: &LinkTable) -> Step {
    let missing = |name: &String| Step::Wait(Reason::Missing(name.clone()));
    let taken = |tap: &String| match links.by_name(tap) {
        Some(_) => Step::Wait(Reason::NameTaken(tap.clone())),
        None => Step::Open,
    };
    match kind {
        AttachmentKind::Bridge { bridge, tap } => match links.by_name(bridge) {
            None => missing(bridge),
            Some(link) if link.bridge.is_none() => Step::Wait(Reason::NotABridge(bridge.clone())),
            Some(_) => taken(tap),
        },
        AttachmentKind::Tap { tap, .. } => taken(tap),
        AttachmentKind::Nic { nic } => match links.by_name(nic) {
            None => missing(nic),
            Some(link) if !link.is_ethernet => Step::Wait(Reason::NotEthernet(nic.clone())),
            Some(_) => Step::Open,
        },
    }
}

fn step_of_interface(name: &str, links: &LinkTable, index: u32) -> Step {
    match same_link(links, name, index) {
        None => Step::Close(Reason::Removed(name.to_owned())),
        Some(link) => Step::Serve(Condition { mtu: link.mtu, obstacle: obstacle_of(link) }),
    }
}

fn step_of_bridge(
    bridge_name: &str,
    tap_name: &str,
    links: &LinkTable,
    tap_index: u32,
    bridge_index: u32,
    is_served: bool,
) -> Step {
    let Some(tap) = same_link(links, tap_name, tap_index) else {
        return Step::Close(Reason::Removed(tap_name.to_owned()));
    };
    let Some(bridge) = same_link(links, bridge_name, bridge_index) else {
        return Step::Close(Reason::Removed(bridge_name.to_owned()));
    };
    if tap.controller != Some(bridge_index) {
        return Step::Enslave;
    }
    let mtu = tap_mtu(links, bridge, tap_index);
    if tap.mtu != mtu {
        return Step::SetMtu(mtu);
    }
    if let Some(reason) = obstacle_of_port(bridge, tap)
        && !is_served
    {
        return Step::Settle(reason);
    }
    let obstacle = obstacle_of_port(bridge, tap).or_else(|| {
        let mut others = links.ports_of(bridge_index).filter(|port| port.index != tap_index);
        let first = others.next()?;
        let cut_off = !first.has_carrier && others.all(|port| !port.has_carrier);
        cut_off.then(|| Reason::NoPortHasCarrier(bridge_name.to_owned()))
    });
    Step::Serve(Condition { mtu, obstacle })
}

/// The MTU that a TAP in `bridge` has to have, bytes: the largest of the
/// bridge's and its other ports'. A bridge whose MTU nobody set takes its
/// smallest port's (`br_mtu_auto_adjust` in net/bridge/br_if.c), and so ours
/// is never the one that holds it down.
pub(super) fn tap_mtu(links: &LinkTable, bridge: &Link, tap_index: u32) -> u32 {
    let others = links.ports_of(bridge.index).filter(|port| port.index != tap_index);
    others.map(|port| port.mtu).fold(bridge.mtu, u32::max)
}

fn obstacle_of_port(bridge: &Link, tap: &Link) -> Option<Reason> {
    if !bridge.is_up {
        return Some(Reason::Down(bridge.name.clone()));
    }
    if let Some(reason) = obstacle_of(tap) {
        return Some(reason);
    }
    match tap.port_state {
        Some(PortState::Forwarding) => None,
        state => Some(Reason::PortNotForwarding {
            bridge: bridge.name.clone(),
            tap: tap.name.clone(),
            state: state.map_or("not a port", PortState::name),
        }),
    }
}

fn obstacle_of(link: &Link) -> Option<Reason> {
    if !link.is_up {
        return Some(Reason::Down(link.name.clone()));
    }
    (!link.has_carrier).then(|| Reason::NoCarrier(link.name.clone()))
}

/// The interface with this index, if it still has this name.
fn same_link<'a>(links: &'a LinkTable, name: &str, index: u32) -> Option<&'a Link> {
    links.by_index(index).filter(|link| link.name == name)
}
