//! fastd, the daemon of many community networks.

use super::{Carrier, missing_program};
use crate::{
    settings::Settings,
    topology::{Topology, Wiring},
};
use anyhow::Result;
use landbridge::lab::{Process, Side};

pub(super) const CARRIER: Carrier = Carrier {
    name: "fastd",
    configuration: "TAP mode, method `aes128-gcm`; it does not fragment, so by its documentation \
                    interface, bridges and hosts have MTU 1434 (1500 − 20 IPv4 − 8 UDP − 24 method − 14 Ethernet)",
    encrypted: true,
    wiring: Wiring::Bridge,
    lan_mtu: 1434,
    missing: |_| missing_program("fastd", "fastd"),
    start,
};

const METHOD: &str = "aes128-gcm";
const INTERFACE: &str = "tap0";

fn start(topology: &Topology<'_>, _: &Settings) -> Result<Vec<Process>> {
    let run = topology.run;
    let mut secrets = Vec::new();
    let mut public_keys = Vec::new();
    for side in Side::BOTH {
        let secret =
            run.command(&["fastd", "--generate-key", "--machine-readable"])?.success()?.stdout;
        let secret = secret.trim().to_owned();
        let config = format!("secret \"{secret}\";\n");
        let file = topology.site(side).write(run, "fastd-key.conf", &config)?;
        let show = ["fastd", "--show-key", "--machine-readable", "--config", &file];
        public_keys.push(run.command(&show)?.success()?.stdout.trim().to_owned());
        secrets.push(secret);
    }
    let mut daemons = Vec::new();
    for site in topology.sites() {
        let (own, other) = (site.side as usize, site.side.other());
        let config = format!(
            "log level warn;\nmode tap;\ninterface \"{INTERFACE}\";\nmethod \"{METHOD}\";\nmtu {mtu};\n\
             bind {address}:10000;\nsecret \"{secret}\";\n\
             peer \"{peer}\" {{ key \"{key}\"; remote {remote}:10000; }}\n",
            mtu = CARRIER.lan_mtu,
            address = site.underlay_address(),
            secret = secrets[own],
            peer = other.site(),
            key = public_keys[other as usize],
            remote = topology.site(other).underlay_address(),
        );
        let file = site.write(run, "fastd.conf", &config)?;
        daemons.push(site.start_daemon(&["fastd", "--config", &file])?);
    }
    for site in topology.sites() {
        site.join(INTERFACE)?;
    }
    Ok(daemons)
}
