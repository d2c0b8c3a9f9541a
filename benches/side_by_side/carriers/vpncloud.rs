//! vpncloud, the closest peer: Ethernet over encrypted UDP, in Rust.

use super::Carrier;
use crate::{
    settings::Settings,
    topology::{Topology, Wiring, text},
};
use anyhow::Result;
use landbridge::lab::Process;

pub(super) const CARRIER: Carrier = Carrier {
    name: "vpncloud",
    configuration: "2.3.0, `--type tap --mode switch --algorithm aes128`; it does not fragment and gives \
                    its device the MTU 1413 on a 1500-byte path, which bridges and hosts have, too",
    encrypted: true,
    wiring: Wiring::Bridge,
    lan_mtu: 1413,
    missing: |settings| {
        let program = program(settings);
        let there = std::path::Path::new(&program).is_file();
        (!there).then(|| format!("{program} is not there (cargo install vpncloud --root …)"))
    },
    start,
};

const DEVICE: &str = "tap0";

fn program(settings: &Settings) -> String {
    text(&settings.tools.join("bin/vpncloud"))
}

fn start(topology: &Topology<'_>, settings: &Settings) -> Result<Vec<Process>> {
    let program = program(settings);
    let mut daemons = Vec::new();
    for site in topology.sites() {
        let remote = topology.site(site.side.other()).underlay_address();
        // It derives its device's MTU from that of the default route's device.
        site.appliance.ip(&format!("route add default via {remote}"))?;
        let listen = format!("{}:3210", site.underlay_address());
        let peer = format!("{remote}:3210");
        daemons.push(site.start_daemon(&[
            &program,
            "--type",
            "tap",
            "--mode",
            "switch",
            "--device",
            DEVICE,
            "--listen",
            &listen,
            "--peer",
            &peer,
            "--password",
            "bench",
            "--algorithm",
            "aes128",
            "--no-port-forwarding",
        ])?);
    }
    for site in topology.sites() {
        site.join(DEVICE)?;
    }
    Ok(daemons)
}
