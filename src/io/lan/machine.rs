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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{io::lan::links::Bridge, wire::ethernet::MacAddr};

    const BRIDGE: u32 = 3;
    const TAP: u32 = 7;
    const NIC: u32 = 5;
    const MADE_PORT: Option<Made> = Some(Made { interface: TAP, bridge: Some(BRIDGE) });
    const MADE_NIC: Option<Made> = Some(Made { interface: NIC, bridge: None });

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            mtu: 1500,
            mac: Some(MacAddr([2, 0, 0, 0, 0, index as u8])),
            is_ethernet: true,
            is_up: true,
            has_carrier: true,
            controller: None,
            port_state: None,
            bridge: None,
        }
    }

    fn bridge() -> Link {
        Link { bridge: Some(Bridge::default()), ..link(BRIDGE, "br0") }
    }

    fn port() -> Link {
        let port_state = Some(PortState::Forwarding);
        Link { controller: Some(BRIDGE), port_state, ..link(TAP, "lb-1") }
    }

    fn nic() -> Link {
        Link { controller: Some(BRIDGE), ..link(NIC, "eth1") }
    }

    fn table(links: impl IntoIterator<Item = Link>) -> LinkTable {
        let mut table = LinkTable::default();
        table.replace_all(links.into_iter().collect());
        table
    }

    fn bridge_kind() -> AttachmentKind {
        AttachmentKind::Bridge { bridge: "br0".into(), tap: "lb-1".into() }
    }

    fn nic_kind() -> AttachmentKind {
        AttachmentKind::Nic { nic: "eth1".into() }
    }

    fn tap_kind() -> AttachmentKind {
        AttachmentKind::Tap { tap: "lb-1".into(), mtu: None }
    }

    fn serve(mtu: u32, obstacle: Option<Reason>) -> Step {
        Step::Serve(Condition { mtu, obstacle })
    }

    fn port_is(state: &'static str) -> Reason {
        Reason::PortNotForwarding { bridge: "br0".into(), tap: "lb-1".into(), state }
    }

    #[test]
    fn before_it_is_made() {
        let name = |name: &str| name.to_owned();
        let not_ethernet = Link { is_ethernet: false, ..nic() };
        let cases = [
            (bridge_kind(), vec![], Step::Wait(Reason::Missing(name("br0")))),
            (bridge_kind(), vec![link(1, "br0")], Step::Wait(Reason::NotABridge(name("br0")))),
            (bridge_kind(), vec![bridge(), port()], Step::Wait(Reason::NameTaken(name("lb-1")))),
            (bridge_kind(), vec![bridge()], Step::Open),
            (tap_kind(), vec![port()], Step::Wait(Reason::NameTaken(name("lb-1")))),
            (tap_kind(), vec![], Step::Open),
            (nic_kind(), vec![], Step::Wait(Reason::Missing(name("eth1")))),
            (nic_kind(), vec![not_ethernet], Step::Wait(Reason::NotEthernet(name("eth1")))),
            (nic_kind(), vec![nic()], Step::Open),
        ];
        for (kind, links, expected) in cases {
            assert_eq!(next_step(&kind, &table(links), None, false), expected, "{kind:?}");
        }
    }

    #[test]
    fn a_nic_that_is_made() {
        let removed = || Step::Close(Reason::Removed("eth1".into()));
        let down = Link { is_up: false, has_carrier: false, ..nic() };
        let unplugged = Link { has_carrier: false, ..nic() };
        let cases = [
            (vec![], removed()),
            (vec![link(99, "eth1")], removed()),
            (vec![link(NIC, "renamed")], removed()),
            (vec![nic()], serve(1500, None)),
            (vec![Link { mtu: 9000, ..nic() }], serve(9000, None)),
            (vec![down], serve(1500, Some(Reason::Down("eth1".into())))),
            (vec![unplugged], serve(1500, Some(Reason::NoCarrier("eth1".into())))),
        ];
        for (links, expected) in cases {
            for is_served in [false, true] {
                let step = next_step(&nic_kind(), &table(links.clone()), MADE_NIC, is_served);
                assert_eq!(step, expected, "{links:?}");
            }
        }
    }

    #[test]
    fn a_port_that_is_made() {
        let removed = |name: &str| Step::Close(Reason::Removed(name.to_owned()));
        let no_master = Link { controller: None, ..port() };
        let other_master = Link { controller: Some(99), ..port() };
        let jumbo_bridge = Link { mtu: 9000, ..bridge() };
        let jumbo_nic = Link { mtu: 9000, ..nic() };
        let new_bridge = Link { index: 99, ..bridge() };
        let cases = [
            (vec![bridge()], removed("lb-1")),
            (vec![port()], removed("br0")),
            (vec![port(), new_bridge], removed("br0")),
            (vec![bridge(), no_master], Step::Enslave),
            (vec![bridge(), other_master], Step::Enslave),
            (vec![jumbo_bridge, port()], Step::SetMtu(9000)),
            (vec![bridge(), port(), jumbo_nic], Step::SetMtu(9000)),
            (vec![bridge(), port()], serve(1500, None)),
            (vec![bridge(), port(), nic()], serve(1500, None)),
        ];
        for (links, expected) in cases {
            for is_served in [false, true] {
                let step = next_step(&bridge_kind(), &table(links.clone()), MADE_PORT, is_served);
                assert_eq!(step, expected, "{links:?}");
            }
        }
    }

    #[test]
    fn a_port_settles_before_it_is_served_and_is_cut_off_after() {
        let in_state = |state| Link { port_state: state, ..port() };
        let cases = [
            (bridge(), in_state(None), port_is("not a port")),
            (bridge(), in_state(Some(PortState::Disabled)), port_is("disabled")),
            (bridge(), in_state(Some(PortState::Listening)), port_is("listening")),
            (bridge(), in_state(Some(PortState::Learning)), port_is("learning")),
            (bridge(), in_state(Some(PortState::Blocking)), port_is("blocking")),
            (Link { is_up: false, ..bridge() }, port(), Reason::Down("br0".into())),
            (bridge(), Link { is_up: false, ..port() }, Reason::Down("lb-1".into())),
            (bridge(), Link { has_carrier: false, ..port() }, Reason::NoCarrier("lb-1".into())),
        ];
        for (bridge, port, reason) in cases {
            let links = table([bridge, port]);
            let step = |is_served| next_step(&bridge_kind(), &links, MADE_PORT, is_served);
            assert_eq!(step(false), Step::Settle(reason.clone()));
            assert_eq!(step(true), serve(1500, Some(reason)));
        }
    }

    #[test]
    fn a_bridge_without_a_cable_is_served_but_cut_off() {
        let unplugged = |index, name| Link { has_carrier: false, index, name, ..nic() };
        let two = [unplugged(8, "eth1".to_owned()), unplugged(9, "eth2".to_owned())];
        let cut_off = serve(1500, Some(Reason::NoPortHasCarrier("br0".into())));
        let links = table([bridge(), port()].into_iter().chain(two.clone()));
        assert_eq!(next_step(&bridge_kind(), &links, MADE_PORT, false), cut_off);

        let plugged = Link { has_carrier: true, ..two[1].clone() };
        let links = table([bridge(), port(), two[0].clone(), plugged]);
        assert_eq!(next_step(&bridge_kind(), &links, MADE_PORT, false), serve(1500, None));
    }

    prop_compose! {
        fn any_link(index: u32, name: &'static str)(
            mtu in prop_oneof![Just(1500), Just(9000), 68_u32..65_536],
            is_ethernet: bool,
            is_up: bool,
            has_carrier: bool,
            controller in prop_oneof![Just(None), Just(Some(BRIDGE)), Just(Some(99))],
            port_state in prop_oneof![
                Just(None), Just(Some(PortState::Forwarding)), Just(Some(PortState::Blocking))
            ],
            is_bridge: bool,
        ) -> Link {
            let bridge = is_bridge.then(Bridge::default);
            Link {
                mtu, is_ethernet, is_up, has_carrier, controller, port_state, bridge,
                ..link(index, name)
            }
        }
    }

    proptest! {
        /// Whatever the host looks like, doing what the steps say comes to rest.
        #[test]
        fn steps_come_to_rest(
            bridge_link in proptest::option::of(any_link(BRIDGE, "br0")),
            tap_link in proptest::option::of(any_link(TAP, "lb-1")),
            other_link in proptest::option::of(any_link(NIC, "eth1")),
            is_made: bool,
            is_served: bool,
        ) {
            let mut links: Vec<_> = [bridge_link, tap_link, other_link].into_iter().flatten().collect();
            let mut made = MADE_PORT.filter(|_| is_made);
            let mut is_served = is_served && is_made;
            for _ in 0..6 {
                let step = next_step(&bridge_kind(), &table(links.clone()), made, is_served);
                let tap = links.iter_mut().find(|link| link.index == TAP);
                match step {
                    Step::Wait(_) => { prop_assert!(made.is_none()); return Ok(()); }
                    Step::Settle(_) => { prop_assert!(!is_served && made.is_some()); return Ok(()); }
                    Step::Serve(_) => { prop_assert!(made.is_some()); return Ok(()); }
                    Step::Open => {
                        prop_assert!(made.is_none() && tap.is_none());
                        links.push(link(TAP, "lb-1"));
                        made = MADE_PORT;
                    }
                    Step::Close(_) => {
                        prop_assert!(made.is_some());
                        links.retain(|link| link.index != TAP);
                        (made, is_served) = (None, false);
                    }
                    Step::Enslave => tap.expect("a TAP to enslave").controller = Some(BRIDGE),
                    Step::SetMtu(mtu) => tap.expect("a TAP to change").mtu = mtu,
                }
            }
            prop_assert!(false, "still busy");
        }
    }
}
