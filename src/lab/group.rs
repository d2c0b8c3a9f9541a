//! The lab's group file.

use super::{AttachmentKind, PairOptions, Side, options as names};
use std::fmt::Write;

/// The group file of the pair that `options` describe; `public_keys` by
/// [`Side`].
pub(super) fn group_file(options: &PairOptions, public_keys: [&str; 2]) -> String {
    let mut text = String::from(
        "# Two sites on one machine, made by `landbridge lab`.\n\n[group]\nname = \"lab\"\n",
    );
    if let Some(lanes) = options.lanes {
        let _ = writeln!(text, "lanes = {lanes}");
    }
    text.push_str(&options.extra_group_lines);
    for side in Side::BOTH {
        let endpoint = options.endpoint(side);
        let _ = write!(
            text,
            "\n[[site]]\nname = \"{}\"\n[[site.appliance]]\nname = \"{}\"\npublic_key = \"{}\"\n\
             underlay = [\"{endpoint}\"]\n",
            side.site(),
            side.appliance(),
            public_keys[side as usize],
        );
    }
    for network in 0..options.networks {
        let _ = write!(
            text,
            "\n[[network]]\nid = {}\nname = \"{}\"\n{}attach.east = {}\nattach.west = {}\n",
            names::network_id(network),
            names::network_name(network),
            options.extra_network_lines,
            attachment(options, Side::East, network),
            attachment(options, Side::West, network),
        );
    }
    text
}

fn attachment(options: &PairOptions, side: Side, network: usize) -> String {
    let extra = &options.extra_attachment_fields[side as usize];
    match options.attachments[side as usize] {
        AttachmentKind::Bridge => {
            format!("{{ bridge = \"{}\"{extra} }}", names::bridge_name(network))
        }
        AttachmentKind::Tap => {
            format!(
                "{{ tap = \"{}\", mtu = {}{extra} }}",
                names::tap_name(network),
                options.lan_mtu
            )
        }
        AttachmentKind::Nic => format!("{{ nic = \"{}\"{extra} }}", names::nic_name(network)),
        AttachmentKind::Trunk => format!(
            "{{ nic = \"{}\", vlan = {}{extra} }}",
            names::nic_name(0),
            names::vlan_id(network)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_every_network_and_site() {
        let options = PairOptions {
            networks: 2,
            lanes: Some(2),
            attachments: [AttachmentKind::Bridge, AttachmentKind::Trunk],
            extra_group_lines: "rekey_after_s = 2\n".into(),
            extra_attachment_fields: [String::new(), ", offload = false".into()],
            ..PairOptions::default()
        };
        let text = group_file(&options, ["EAST", "WEST"]);
        let file: toml::Table = text.parse().unwrap();
        assert_eq!(file["group"]["lanes"].as_integer(), Some(2));
        assert_eq!(file["group"]["rekey_after_s"].as_integer(), Some(2));
        assert_eq!(file["site"][1]["appliance"][0]["public_key"].as_str(), Some("WEST"));
        assert_eq!(file["network"][1]["attach"]["east"]["bridge"].as_str(), Some("br-101"));
        assert_eq!(file["network"][1]["attach"]["west"]["vlan"].as_integer(), Some(101));
        assert_eq!(file["network"][0]["attach"]["west"]["nic"].as_str(), Some("lan0"));
        assert_eq!(file["network"][0]["attach"]["west"]["offload"].as_bool(), Some(false));
        assert!(file["network"][0]["attach"]["east"].get("offload").is_none());
    }
}
