//! tinc as a switch.

use super::{Carrier, missing_program};
use crate::{
    settings::Settings,
    topology::{Topology, Wiring, text},
};
use anyhow::{Context, Result};
use landbridge::lab::{Process, Side};
use std::fs;

pub(super) const CARRIER: Carrier = Carrier {
    name: "tinc",
    configuration: "1.0, `Mode = switch`, `Cipher = aes-128-cbc`, `Digest = sha1`, `ReplayWindow = 128`; hosts keep \
                    MTU 1500: by default it finds the path MTU and clamps TCP's MSS",
    encrypted: true,
    wiring: Wiring::Bridge,
    lan_mtu: 1500,
    missing: |_| missing_program("tincd", "tinc"),
    start,
};

const INTERFACE: &str = "tap0";

fn start(topology: &Topology<'_>, _: &Settings) -> Result<Vec<Process>> {
    let run = topology.run;
    let directory = |side: Side| run.directory().join(format!("tinc-{}", side.site()));
    let mut public_keys = Vec::new();
    for site in topology.sites() {
        let (directory, name) = (directory(site.side), site.side.site());
        fs::create_dir_all(directory.join("hosts")).context("cannot make tinc's directories")?;
        let config = format!(
            "Name = {name}\nMode = switch\nDeviceType = tap\nInterface = {INTERFACE}\n\
             AddressFamily = ipv4\nReplayWindow = 128\nConnectTo = {}\n",
            site.side.other().site()
        );
        fs::write(directory.join("tinc.conf"), config).context("cannot write tinc.conf")?;
        let host =
            format!("Address = {}\nCipher = aes-128-cbc\nDigest = sha1\n", site.underlay_address());
        let host_file = directory.join("hosts").join(name);
        fs::write(&host_file, host).context("cannot write tinc's host file")?;
        // Without a terminal it asks nothing, and adds the public key to the host file.
        run.command(&["tincd", "-c", &text(&directory), "-K2048"])?.success()?;
        public_keys.push(fs::read_to_string(&host_file).context("cannot read tinc's host file")?);
    }
    let mut daemons = Vec::new();
    for site in topology.sites() {
        let (directory, other) = (directory(site.side), site.side.other());
        fs::write(directory.join("hosts").join(other.site()), &public_keys[other as usize])
            .context("cannot write tinc's host file")?;
        let directory = text(&directory);
        let pid_file = format!("--pidfile={directory}/pid");
        daemons.push(site.start_daemon(&["tincd", "-c", &directory, "-D", "-d1", &pid_file])?);
    }
    for site in topology.sites() {
        site.join(INTERFACE)?;
    }
    Ok(daemons)
}
