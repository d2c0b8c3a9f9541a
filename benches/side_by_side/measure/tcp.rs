//! TCP between the hosts, by iperf3.

use super::{cpu, direction};
use crate::{
    settings::Settings,
    topology::{Site, Topology, Underlay},
};
use anyhow::{Context, Result};
use landbridge::lab::{Process, Side, wait_until};
use std::time::Duration;

const PORT: u16 = 5201;
/// What a run may take beyond the time it was given.
const GRACE: Duration = Duration::from_secs(15);

/// An Ethernet frame of a 1500-byte link, bytes.
const LONGEST_REAL_PACKET: f64 = 1514.0;

/// A running transfer.
pub(super) struct Transfer {
    client: Process,
    timeout: Duration,
}

/// What one transfer achieved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Outcome {
    /// Payload that arrived, bits per second.
    pub(super) bits_per_second: f64,
    /// Payload that arrived, bytes.
    pub(super) bytes: f64,
}

/// Starts a server in both hosts.
pub(super) fn serve(topology: &Topology<'_>) -> Result<[Process; 2]> {
    let serve = |site: &Site| -> Result<Process> {
        let port = PORT.to_string();
        let server = site.start_on_host(&["iperf3", "-s", "-p", &port])?;
        // State 0A is LISTEN (include/net/tcp_states.h).
        let listening = format!(":{PORT:04X} 00000000000000000000000000000000:0000 0A");
        wait_until("iperf3 to listen", Duration::from_secs(5), || {
            let sockets = site.host_proc_net("tcp6").map_err(|error| error.to_string())?;
            if sockets.contains(&listening) { Ok(()) } else { Err("no such socket".into()) }
        })?;
        Ok(server)
    };
    let [east, west] = topology.sites();
    Ok([serve(east)?, serve(west)?])
}

/// One and four streams in both directions: throughput, and processor time for a
/// gigabyte.
pub(super) fn measure(
    topology: &Topology<'_>,
    settings: &Settings,
    underlay: Underlay,
    daemons: &[Process],
    add: &mut dyn FnMut(&str, f64),
) -> Result<()> {
    let before = received_on_underlay(topology)?;
    for streams in [1, 4] {
        for from in Side::BOTH {
            let name = format!("{streams}/{}", direction(from));
            let (machine, own) = (cpu::machine_seconds()?, cpu::process_seconds(daemons)?);
            let outcome = transfer(topology, from, streams, settings.seconds, "cubic")?.wait()?;
            let machine = cpu::machine_seconds()? - machine;
            let own = cpu::process_seconds(daemons)? - own;
            add(&format!("tcp_gbps/{name}"), outcome.bits_per_second / 1e9);
            add(&format!("tcp_machine_cpu_s_per_gb/{name}"), machine / (outcome.bytes / 1e9));
            if !daemons.is_empty() {
                add(&format!("tcp_daemon_cpu_s_per_gb/{name}"), own / (outcome.bytes / 1e9));
            }
        }
    }
    let after = received_on_underlay(topology)?;
    let mean = (after.bytes - before.bytes) / (after.packets - before.packets);
    add("underlay_bytes_per_packet", mean);
    let is_as_asked = underlay == Underlay::Gso || mean <= LONGEST_REAL_PACKET;
    anyhow::ensure!(is_as_asked, "packets of {mean:.0} bytes crossed the `real` underlay");
    Ok(())
}

/// What has crossed the underlay, both directions together.
struct Crossed {
    packets: f64,
    /// Ethernet headers included.
    bytes: f64,
}

fn received_on_underlay(topology: &Topology<'_>) -> Result<Crossed> {
    let mut crossed = Crossed { packets: 0.0, bytes: 0.0 };
    for site in topology.sites() {
        let link = site.appliance.link("uplink")?;
        let field = |name: &str| link["stats64"]["rx"][name].as_f64().context("no link statistics");
        crossed.packets += field("packets")?;
        crossed.bytes += field("bytes")?;
    }
    Ok(crossed)
}

/// Starts sending from the host at `from` to the other.
pub(super) fn transfer(
    topology: &Topology<'_>,
    from: Side,
    streams: u32,
    seconds: u64,
    congestion_control: &str,
) -> Result<Transfer> {
    let target = topology.site(from.other()).host_address().to_string();
    let (port, streams, time) = (PORT.to_string(), streams.to_string(), seconds.to_string());
    let client = topology.site(from).start_on_host(&[
        "iperf3",
        "-c",
        &target,
        "-p",
        &port,
        "-P",
        &streams,
        "-t",
        &time,
        "-C",
        congestion_control,
        "--connect-timeout",
        "5000",
        "-J",
    ])?;
    Ok(Transfer { client, timeout: Duration::from_secs(seconds) + GRACE })
}

impl Transfer {
    pub(super) fn wait(mut self) -> Result<Outcome> {
        let output = self.client.wait(self.timeout)?;
        parse(&output.stdout).map_err(|error| anyhow::anyhow!("iperf3: {error}"))
    }
}

/// What `iperf3 -J` printed: what arrived, or the error that it names.
fn parse(text: &str) -> Result<Outcome> {
    let report: serde_json::Value = serde_json::from_str(text).context("it printed no JSON")?;
    if let Some(error) = report["error"].as_str() {
        anyhow::bail!("{error}");
    }
    let received = &report["end"]["sum_received"];
    let number = |key: &str| received[key].as_f64().filter(|number| *number > 0.0);
    let (bits_per_second, bytes) = (number("bits_per_second"), number("bytes"));
    Ok(Outcome {
        bits_per_second: bits_per_second.context("nothing arrived")?,
        bytes: bytes.context("nothing arrived")?,
    })
}

pub(super) fn self_check() {
    let text = r#"{"start":{},"end":{"sum_sent":{"bytes":9,"bits_per_second":9.0},
                   "sum_received":{"bytes":8,"bits_per_second":6.4e1}}}"#;
    let outcome = Outcome { bits_per_second: 64.0, bytes: 8.0 };
    assert_eq!(parse(text).ok(), Some(outcome));
    let error = |text: &str| parse(text).unwrap_err().to_string();
    assert_eq!(error(r#"{"end":{},"error":"unable to connect"}"#), "unable to connect");
    assert_eq!(error(r#"{"end":{"sum_received":{"bytes":0}}}"#), "nothing arrived");
    assert_eq!(error(""), "it printed no JSON");
}
