//! Round trips between the hosts, idle and beside a TCP stream.

use super::tcp;
use crate::{samples::quantile, settings::Settings, topology::Topology};
use anyhow::{Context, Result};
use landbridge::lab::Side;
use std::time::Duration;

/// Seconds between two requests.
const INTERVAL: &str = "0.005";

/// Median and 99th percentile, in microseconds.
pub(super) fn measure(
    topology: &Topology<'_>,
    settings: &Settings,
    add: &mut dyn FnMut(&str, f64),
) -> Result<()> {
    add_quantiles("idle", &round_trips_us(topology, settings.pings())?, add)?;
    // The requests take 1 s; the stream's first and last moments are not among them.
    let load = tcp::transfer(topology, Side::East, 1, 3, "cubic")?;
    std::thread::sleep(Duration::from_millis(700));
    let loaded = round_trips_us(topology, settings.pings());
    load.wait()?;
    add_quantiles("loaded", &loaded?, add)
}

fn add_quantiles(when: &str, times: &[f64], add: &mut dyn FnMut(&str, f64)) -> Result<()> {
    for (name, q) in [("median", 0.5), ("p99", 0.99)] {
        let value = quantile(times, q).context("ping had no answer")?;
        add(&format!("ping_us/{when}/{name}"), value);
    }
    Ok(())
}

fn round_trips_us(topology: &Topology<'_>, count: u32) -> Result<Vec<f64>> {
    let target = topology.site(Side::West).host_address().to_string();
    let count = count.to_string();
    let argv = ["ping", "-n", "-i", INTERVAL, "-c", &count, "-W", "2", &target];
    let output = topology.site(Side::East).start_on_host(&argv)?.wait(Duration::from_secs(20))?;
    Ok(parse_us(&output.stdout))
}

/// Every line's `time=0.123 ms`.
fn parse_us(text: &str) -> Vec<f64> {
    let time = |line: &str| line.split_once("time=")?.1.split(' ').next()?.parse::<f64>().ok();
    text.lines().filter_map(time).map(|ms| ms * 1000.0).collect()
}

pub(super) fn self_check() {
    let text = "PING 10.0.2.1 (10.0.2.1) 56(84) bytes of data.\n\
                64 bytes from 10.0.2.1: icmp_seq=1 ttl=64 time=0.25 ms\n\
                64 bytes from 10.0.2.1: icmp_seq=2 ttl=64 time=12 ms\n\n\
                2 packets transmitted, 2 received, 0% packet loss, time 5ms\n";
    assert_eq!(parse_us(text), [250.0, 12000.0]);
}
