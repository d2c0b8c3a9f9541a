//! What all counters together admit to have dropped.

use super::ask::counter;
use landbridge::lab::{Host, Pair, Side};
use std::fs;

/// Frames on the way from one first host to the other that may have been dropped so
/// far, where a lost datagram had a part of `frames_per_datagram` of them.
pub(crate) fn dropped_frames(pair: &Pair, from: Side, frames_per_datagram: u64) -> u64 {
    let to = from.other();
    // A TAP has the one, a NIC the other.
    let kernel = ["tap_tx_dropped", "packet_dropped"];
    let before: u64 = kernel.iter().map(|name| counter(pair, from, name).unwrap_or(0)).sum();
    let after = ["lan_full", "record_truncated"].map(|name| counter(pair, to, name).unwrap());
    let datagrams = counter(pair, to, "stream_missing").unwrap();
    let hosts = dropped_by(pair.host(from)) + dropped_by(pair.host(to));
    before + after.iter().sum::<u64>() + datagrams * frames_per_datagram + hosts
}

/// What a host's interface and its UDP sockets dropped for want of room.
fn dropped_by(host: &Host) -> u64 {
    let statistics = host.namespace.link("eth0").unwrap()["stats64"].clone();
    let dropped = |way: &str| statistics[way]["dropped"].as_u64().expect("links count drops");
    let [v4, v6] =
        [("Udp", "RcvbufErrors"), ("Udp6", "RcvbufErrors")].map(|(p, n)| snmp(host, p, n));
    dropped("tx") + dropped("rx") + v4 + v6
}

/// A counter of a host's IP stack (proc_pid_net(5)).
///
/// # Panics
/// If there is none of this name.
pub(crate) fn snmp(host: &Host, protocol: &str, name: &str) -> u64 {
    let read = |file| {
        let path = format!("/proc/thread-self/net/{file}");
        host.namespace.enter(|| fs::read_to_string(path)).unwrap().unwrap()
    };
    let value = if protocol.ends_with('6') {
        let (text, key) = (read("snmp6"), format!("{protocol}{name}"));
        let mut lines = text.lines().map(|line| line.split_once(char::is_whitespace).unwrap());
        lines.find(|line| line.0 == key).map(|line| line.1.trim().to_owned())
    } else {
        let (text, key) = (read("snmp"), format!("{protocol}: "));
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(&key));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let place = names.split(' ').position(|is| is == name);
        place.and_then(|place| values.split(' ').nth(place)).map(str::to_owned)
    };
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {protocol} {name}"))
}
