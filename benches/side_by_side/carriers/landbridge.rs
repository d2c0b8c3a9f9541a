//! Landbridge itself.

use super::Carrier;
use crate::{
    settings::Settings,
    topology::{Topology, Wiring, text},
};
use anyhow::Result;
use landbridge::lab::{Process, Side};

/// On a bridge, by a TAP.
pub(super) const ON_BRIDGE: Carrier = Carrier {
    name: "landbridge",
    configuration: "the group file of `landbridge init` with `bridge` attachments (a TAP), \
                    defaults; AES-256-GCM; hosts keep MTU 1500",
    encrypted: true,
    wiring: Wiring::Bridge,
    lan_mtu: 1500,
    missing,
    start: |topology, settings| start(topology, settings, "bridge:br0"),
};

/// Straight on the cable to the host, by a packet socket.
pub(super) const ON_NIC: Carrier = Carrier {
    name: "landbridge-nic",
    configuration: "the same with `nic` attachments (AF_PACKET) straight on the host's cable, no bridge",
    wiring: Wiring::Nic,
    start: |topology, settings| start(topology, settings, "nic:lan0"),
    ..ON_BRIDGE
};

fn missing(settings: &Settings) -> Option<String> {
    let binary = &settings.landbridge;
    (!binary.is_file())
        .then(|| format!("{} is not there (cargo build --release)", binary.display()))
}

fn start(topology: &Topology<'_>, settings: &Settings, attachment: &str) -> Result<Vec<Process>> {
    let binary = text(&settings.landbridge);
    let directory = text(&topology.run.directory().join("landbridge"));
    let mut init =
        vec![binary.clone(), "init".into(), "--force".into(), "--out".into(), directory.clone()];
    for site in topology.sites() {
        let (name, address) = (site.side.site(), site.underlay_address());
        init.extend(["--site".into(), format!("{name}={address}")]);
        init.extend(["--attach".into(), format!("{name}:lan={attachment}")]);
    }
    let init: Vec<&str> = init.iter().map(String::as_str).collect();
    topology.run.command(&init)?.success()?;
    let group = format!("{directory}/group.toml");
    let start = |side: Side| {
        let key = format!("{directory}/{}.key", side.appliance());
        let socket = format!("{directory}/{}.sock", side.appliance());
        topology
            .site(side)
            .start_daemon(&[&binary, "run", "--group", &group, "--key", &key, "--socket", &socket])
    };
    Side::BOTH.into_iter().map(start).collect()
}
