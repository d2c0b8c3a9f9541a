//! SoftEther: two servers whose virtual hubs are cascaded over TCP.

use super::{Carrier, missing_program};
use crate::{
    settings::Settings,
    topology::{Site, Topology, Wiring},
};
use anyhow::Result;
use landbridge::lab::{Output, Process, Side, wait_until};
use std::{path::Path, time::Duration};

pub(super) const CARRIER: Carrier = Carrier {
    name: "softether",
    configuration: "vpnserver on both sides, virtual hubs cascaded over TLS (TCP 443) with 8 TCP connections as its manual \
                    advises for fast lines, local bridge to a TAP (`BridgeCreate /TAP:yes`) that joins the bridge; hosts \
                    keep MTU 1500; it gives itself priority (nice -20)",
    encrypted: true,
    wiring: Wiring::Bridge,
    lan_mtu: 1500,
    missing: |_| {
        let there = Path::new(PROGRAM).is_file();
        (!there)
            .then(|| "vpnserver is not installed (apt-get install softether-vpnserver)".to_owned())
            .or_else(|| missing_program("vpncmd", "softether-vpncmd"))
    },
    start,
};

/// Where Debian puts it.
const PROGRAM: &str = "/usr/libexec/softether/vpnserver/vpnserver";
/// Its configuration, logs and locks are in fixed places. `ip netns exec` gives
/// each program mounts of its own, so these are seen by it alone.
const IN_PRIVATE_DIRECTORIES: &str = "set -e
for directory in /var/lib /var/log /run; do
    mount -t tmpfs none $directory
    mkdir $directory/softether
done
exec \"$0\" execsvc";
const HUB: &str = "bench";
/// It puts `tap_` before the device's name.
const DEVICE: &str = "bench";
const INTERFACE: &str = "tap_bench";

fn start(topology: &Topology<'_>, _: &Settings) -> Result<Vec<Process>> {
    let mut daemons = Vec::new();
    for site in topology.sites() {
        daemons.push(site.start_daemon(&["sh", "-c", IN_PRIVATE_DIRECTORIES, PROGRAM])?);
    }
    let east_address = topology.site(Side::East).underlay_address();
    for site in topology.sites() {
        wait_until("SoftEther's server", Duration::from_secs(20), || {
            let answer = administer(site, &["ServerInfoGet"]).map_err(|error| error.to_string())?;
            answer.success().map(drop).map_err(|error| error.to_string())
        })?;
        administer(site, &["HubCreate", HUB, "/PASSWORD:bench"])?.success()?;
        administer(site, &["BridgeCreate", HUB, &format!("/DEVICE:{DEVICE}"), "/TAP:yes"])?
            .success()?;
        site.join(INTERFACE)?;
    }
    let in_hub = |side: Side, words: &[&str]| -> Result<()> {
        let hub = format!("/ADMINHUB:{HUB}");
        administer(topology.site(side), &[&[&hub, "/CMD"], words].concat())?.success()?;
        Ok(())
    };
    in_hub(Side::East, &["UserCreate", "west", "/GROUP:none", "/REALNAME:none", "/NOTE:none"])?;
    in_hub(Side::East, &["UserPasswordSet", "west", "/PASSWORD:bench"])?;
    let (server, hub) = (format!("/SERVER:{east_address}:443"), format!("/HUB:{HUB}"));
    in_hub(Side::West, &["CascadeCreate", "east", &server, &hub, "/USERNAME:west"])?;
    in_hub(Side::West, &["CascadePasswordSet", "east", "/PASSWORD:bench", "/TYPE:standard"])?;
    in_hub(
        Side::West,
        &[
            "CascadeDetailSet",
            "east",
            "/MAXTCP:8",
            "/INTERVAL:1",
            "/TTL:0",
            "/HALF:no",
            "/NOQOS:no",
        ],
    )?;
    in_hub(Side::West, &["CascadeOnline", "east"])?;
    Ok(daemons)
}

/// Runs `vpncmd` in the appliance; a command that does not begin with an option is
/// one for the whole server.
fn administer(site: &Site, words: &[&str]) -> Result<Output> {
    let mut argv = vec!["vpncmd", "127.0.0.1:5555", "/SERVER"];
    if words.first().is_some_and(|word| !word.starts_with('/')) {
        argv.push("/CMD");
    }
    argv.extend(words);
    Ok(site.appliance.exec(&argv)?)
}
