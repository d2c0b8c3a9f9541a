//! What the loss of datagrams does to TCP: goodput, and how many of its segments
//! one lost datagram takes along.

use super::tcp;
use crate::{settings::Settings, topology::Topology};
use anyhow::{Context, Result};
use landbridge::lab::Side;

/// Datagrams dropped of a thousand.
pub(crate) const PER_MILLE: [u32; 3] = [0, 1, 10];

/// BBR from east to west; the appliance at west loses datagrams where they arrive,
/// with GRO off: one packet there is one datagram.
pub(super) fn measure(
    topology: &Topology<'_>,
    settings: &Settings,
    add: &mut dyn FnMut(&str, f64),
) -> Result<()> {
    for per_mille in PER_MILLE {
        if per_mille > 0 {
            start_dropping(topology, per_mille)?;
        }
        let before = retransmitted(topology)?;
        let outcome = tcp::transfer(topology, Side::East, 1, settings.seconds, "bbr")?.wait()?;
        let segments = retransmitted(topology)?.wrapping_sub(before);
        add(&format!("loss_gbps/{per_mille}"), outcome.bits_per_second / 1e9);
        if per_mille > 0 {
            let datagrams = dropped(topology)?;
            topology
                .site(Side::West)
                .appliance
                .exec(&["nft", "delete table netdev bench"])?
                .success()?;
            anyhow::ensure!(datagrams > 0, "no datagram was dropped: what arrives is not UDP?");
            add(&format!("loss_datagrams/{per_mille}"), datagrams as f64);
            let amplification = f64::from(segments) / datagrams as f64;
            add(&format!("segments_per_lost_datagram/{per_mille}"), amplification);
        }
    }
    Ok(())
}

fn start_dropping(topology: &Topology<'_>, per_mille: u32) -> Result<()> {
    let site = topology.site(Side::West);
    let rules = format!(
        "table netdev bench {{\n counter lost {{ }}\n chain arriving {{\n  \
         type filter hook ingress device \"uplink\" priority 0;\n  \
         ip protocol udp numgen random mod 1000 < {per_mille} counter name lost drop\n }}\n}}\n"
    );
    let file = site.write(topology.run, "loss.nft", &rules)?;
    site.appliance.exec(&["nft", "-f", &file])?.success()?;
    Ok(())
}

fn dropped(topology: &Topology<'_>) -> Result<u64> {
    let command = ["nft", "-j", "list counter netdev bench lost"];
    let answer = topology.site(Side::West).appliance.exec(&command)?.success()?.stdout;
    parse_counter(&answer).with_context(|| format!("nft answered {answer}"))
}

/// Segments that the east host has sent again, all in all.
fn retransmitted(topology: &Topology<'_>) -> Result<u32> {
    let snmp = topology.site(Side::East).host_proc_net("snmp")?;
    parse_retransmitted(&snmp).context("/proc/net/snmp has no RetransSegs")
}

fn parse_counter(answer: &str) -> Option<u64> {
    let answer: serde_json::Value = serde_json::from_str(answer).ok()?;
    answer["nftables"].as_array()?.iter().find_map(|item| item["counter"]["packets"].as_u64())
}

/// Two lines begin with `Tcp:`, the names and the values.
fn parse_retransmitted(snmp: &str) -> Option<u32> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let position = names.split(' ').position(|name| name == "RetransSegs")?;
    values.split(' ').nth(position)?.parse().ok()
}

pub(super) fn self_check() {
    let answer = r#"{"nftables":[{"metainfo":{}},{"counter":{"packets":17,"bytes":3}}]}"#;
    assert_eq!(parse_counter(answer), Some(17));
    assert_eq!(parse_counter("{}"), None);
    let snmp = "Ip: A\nIp: 1\nTcp: RtoMin MaxConn RetransSegs X\nTcp: 200 -1 42 7\n";
    assert_eq!(parse_retransmitted(snmp), Some(42));
}
