//! Attachments: what each is, and which interfaces it has for itself.

use std::ops::Range;

use super::{
    Attachment, AttachmentKind, DEFAULT_TAP_MTU, InterfaceName, VlanId,
    group::{field, number},
    problem::quote,
    reader::{Field, Reader, Table, Value},
};
use crate::topology::NetworkId;

const BRIDGE: Field = field("bridge", "\"br0\"");
const TAP: Field = field("tap", "\"lb0\"");
const NIC: Field = field("nic", "\"eth1\"");
const VLAN: Field = field("vlan", "100");
const MTU: Field = field("mtu", "1500");
const OFFLOAD: Field = field("offload", "true");

pub(super) fn read_attachment(
    reader: &mut Reader<'_>,
    value: &Value<'_>,
    site: &str,
    network: Option<NetworkId>,
) -> Option<Attachment> {
    let example = "write { bridge = \"br0\" }, { tap = \"lb0\" } or { nic = \"eth1\" }";
    let table = reader.table(value, "an attachment", example)?;
    reader.known_fields(&table, &[BRIDGE, TAP, NIC, VLAN, MTU, OFFLOAD]);
    let offload = table.entries.get(OFFLOAD.name).map(|value| reader.flag(value));

    let bridge = table.entries.get(BRIDGE.name);
    let tap = table.entries.get(TAP.name);
    let nic = table.entries.get(NIC.name);
    let kind = match (bridge, nic, tap) {
        (Some(bridge), None, tap) => {
            reject(reader, &table, &[VLAN], "a bridge", "use `nic` for a VLAN of a trunk");
            reject(reader, &table, &[MTU], "a bridge", "the TAP takes the bridge's MTU");
            read_bridge(reader, bridge, tap, site, network)
        }
        (None, Some(nic), None) => {
            reject(reader, &table, &[MTU], "a NIC", "set it with `ip link set … mtu …`");
            read_nic(reader, nic, table.entries.get(VLAN.name), site)
        }
        (None, None, Some(tap)) => {
            reject(reader, &table, &[VLAN], "a TAP", "use `nic` for a VLAN of a trunk");
            let mtu = number(reader, &table, MTU, 576, 9216);
            let mtu = mtu.and_then(|mtu| u16::try_from(mtu).ok()).unwrap_or(DEFAULT_TAP_MTU);
            let tap = role(reader, tap, site, "TAP");
            tap.map(|tap| AttachmentKind::Tap { tap, mtu })
        }
        (None, None, None) => {
            let message = "the attachment names no `bridge`, `tap` or `nic`";
            reader.report_absence(table.span.clone(), message, example);
            None
        }
        (bridge, Some(nic), _) => {
            let other = if bridge.is_some() { "bridge" } else { "tap" };
            reader.report(
                nic.span(),
                format!("an attachment is either a `nic` or a `{other}`, not both"),
                "leave one out",
            );
            None
        }
    };
    Some(Attachment { kind: kind?, offload: offload.unwrap_or(Some(true))? })
}

fn read_bridge<'t>(
    reader: &mut Reader<'_>,
    bridge: &'t Value<'t>,
    tap: Option<&'t Value<'t>>,
    site: &str,
    network: Option<NetworkId>,
) -> Option<AttachmentKind> {
    let name = role(reader, bridge, site, "bridge");
    let tap = match tap {
        Some(tap) => role(reader, tap, site, "TAP"),
        None => network.and_then(|network| {
            let tap: InterfaceName = format!("lb-{}", network.0).parse().ok()?;
            claim(reader, &tap, bridge.span(), site, "TAP").then_some(tap)
        }),
    };
    Some(AttachmentKind::Bridge { bridge: name?, tap: tap? })
}

fn read_nic<'t>(
    reader: &mut Reader<'_>,
    nic: &'t Value<'t>,
    vlan: Option<&'t Value<'t>>,
    site: &str,
) -> Option<AttachmentKind> {
    let name = reader.interface(nic);
    let tag = vlan.map(|value| {
        let range = u32::from(VlanId::MIN)..=u32::from(VlanId::MAX);
        let id = reader.number(value, "VLAN", range)?;
        VlanId::try_from(u16::try_from(id).ok()?).ok()
    });
    let name = name?;
    let tag = match tag {
        None => None,
        Some(tag) => Some(tag?),
    };
    let span = vlan.unwrap_or(nic).span();
    claim_nic(reader, &name, tag, span, site)
        .then_some(AttachmentKind::Nic { nic: name, vlan: tag })
}

/// An interface that an attachment has for itself, as bridge or as TAP.
fn role<'t>(
    reader: &mut Reader<'_>,
    value: &'t Value<'t>,
    site: &str,
    what: &'static str,
) -> Option<InterfaceName> {
    let name = reader.interface(value)?;
    claim(reader, &name, value.span(), site, what).then_some(name)
}

/// What uses of an interface are remembered as, to find clashes.
const INTERFACE: &str = "interface";
const UNTAGGED: &str = "untagged NIC";
const TAGGED: &str = "tagged NIC";
const NIC_VLAN: &str = "VLAN of a NIC";

/// Reserves an interface of a site for one attachment; `false` if it was taken.
fn claim(
    reader: &mut Reader<'_>,
    name: &InterfaceName,
    span: Range<usize>,
    site: &str,
    what: &'static str,
) -> bool {
    let key = format!("{site}\0{name}");
    let as_nic = reader.used_at(UNTAGGED, &key).or_else(|| reader.used_at(TAGGED, &key));
    let taken = match as_nic {
        Some(line) => Err(line),
        None => reader.first_use(INTERFACE, key, &span),
    };
    if let Err(line) = taken {
        reader.report(
            span,
            format!(
                "{what} `{name}` is used twice at site {}: first used at line {line}",
                quote(site)
            ),
            "each network needs its own; set `tap` to choose a TAP's name",
        );
    }
    taken.is_ok()
}

/// Reserves a NIC, or one VLAN of it; `false` if it was taken.
fn claim_nic(
    reader: &mut Reader<'_>,
    nic: &InterfaceName,
    vlan: Option<VlanId>,
    span: Range<usize>,
    site: &str,
) -> bool {
    let key = format!("{site}\0{nic}");
    let (mine, other) = if vlan.is_some() { (TAGGED, UNTAGGED) } else { (UNTAGGED, TAGGED) };
    let mixed = reader.used_at(other, &key);
    let (clash, what) = if let Some(line) = reader.used_at(INTERFACE, &key) {
        (Some(line), format!("NIC `{nic}` is used twice"))
    } else if mixed.is_some() {
        (mixed, format!("NIC `{nic}` is used both with a VLAN and without"))
    } else if let Some(vlan) = vlan {
        let vlan_key = format!("{key}\0{vlan}");
        let clash = reader.first_use(NIC_VLAN, vlan_key, &span).err();
        (clash, format!("VLAN {vlan} of NIC `{nic}` is used twice"))
    } else {
        (reader.used_at(mine, &key), format!("NIC `{nic}` is used twice"))
    };
    if let Some(line) = clash {
        reader.report(
            span,
            format!("{what} at site {}: first used at line {line}", quote(site)),
            "give each network its own NIC, or its own `vlan` of one NIC",
        );
        return false;
    }
    // Later VLANs of the NIC are expected: only the first is remembered.
    let _ = reader.first_use(mine, key, &span);
    true
}

/// Reports fields that make no sense for this kind of attachment.
fn reject(
    reader: &mut Reader<'_>,
    table: &Table<'_>,
    fields: &[Field],
    kind: &str,
    suggestion: &str,
) {
    for field in fields {
        if let Some((key, _)) = table.entries.get_key_value(field.name) {
            let message = format!("`{}` does not go with {kind}", field.name);
            reader.report(key.span(), message, suggestion);
        }
    }
}
