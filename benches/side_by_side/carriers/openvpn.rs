//! OpenVPN with a TAP.

use super::{Carrier, missing_program};
use crate::{
    settings::Settings,
    topology::{Topology, Wiring},
};
use anyhow::{Context, Result};
use landbridge::lab::{Process, Side};

pub(super) const CARRIER: Carrier = Carrier {
    name: "openvpn",
    configuration: "2.6, point to point over UDP, `--dev-type tap --data-ciphers AES-256-GCM --fast-io \
                    --sndbuf 0 --rcvbuf 0 --txqueuelen 1000`, mssfix as by default; no DCO, which does no TAP; \
                    hosts keep MTU 1500 (what TCP's clamped MSS does not spare, the kernel fragments)",
    encrypted: true,
    wiring: Wiring::Bridge,
    lan_mtu: 1500,
    missing: |_| {
        missing_program("openvpn", "openvpn").or_else(|| missing_program("openssl", "openssl"))
    },
    start,
};

const DEVICE: &str = "tap0";

fn start(topology: &Topology<'_>, _: &Settings) -> Result<Vec<Process>> {
    let certificates = Side::BOTH.map(|side| Certificate::new(topology, side));
    let [east, west] = certificates;
    let certificates = [east?, west?];
    let mut daemons = Vec::new();
    for site in topology.sites() {
        let other = site.side.other();
        let own = &certificates[site.side as usize];
        let local = site.underlay_address().to_string();
        let remote = topology.site(other).underlay_address().to_string();
        let role = ["--tls-server", "--tls-client"][site.side as usize];
        let mut argv = vec!["openvpn", "--dev", DEVICE, "--dev-type", "tap", "--proto", "udp4"];
        argv.extend(["--local", &local, "--remote", &remote, "--port", "1194", role]);
        if site.side == Side::East {
            argv.extend(["--dh", "none"]);
        }
        argv.extend(["--cert", &own.file, "--key", &own.key_file]);
        argv.extend(["--peer-fingerprint", &certificates[other as usize].fingerprint]);
        argv.extend(["--data-ciphers", "AES-256-GCM", "--cipher", "AES-256-GCM", "--fast-io"]);
        argv.extend(["--sndbuf", "0", "--rcvbuf", "0", "--txqueuelen", "1000", "--verb", "1"]);
        daemons.push(site.start_daemon(&argv)?);
    }
    for site in topology.sites() {
        site.join(DEVICE)?;
    }
    Ok(daemons)
}

struct Certificate {
    file: String,
    key_file: String,
    /// SHA-256, as `--peer-fingerprint` wants it.
    fingerprint: String,
}

impl Certificate {
    fn new(topology: &Topology<'_>, side: Side) -> Result<Self> {
        let (site, run) = (topology.site(side), topology.run);
        let file = site.write(run, "openvpn.crt", "")?;
        let key_file = site.write(run, "openvpn.key", "")?;
        let subject = format!("/CN={}", side.site());
        run.command(&[
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            &subject,
            "-keyout",
            &key_file,
            "-out",
            &file,
        ])?
        .success()?;
        let show = ["openssl", "x509", "-in", &file, "-noout", "-fingerprint", "-sha256"];
        let answer = run.command(&show)?.success()?.stdout;
        let fingerprint =
            answer.trim().split_once('=').context("openssl printed no fingerprint")?.1;
        Ok(Self { file, key_file, fingerprint: fingerprint.to_owned() })
    }
}
