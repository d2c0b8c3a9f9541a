//! What an appliance answers when it is asked.

use landbridge::{
    lab::{Pair, Side, wait_until},
    manage::model::{AttachmentStatus, Counter, MacEntry, MacTable, PeerStatus, Status},
};
use serde::de::DeserializeOwned;
use std::time::Duration;

fn ask<T: DeserializeOwned>(pair: &Pair, side: Side, words: &str) -> Result<T, String> {
    let text = pair.ask(side, &format!("{words} --json")).map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
}

/// `landbridge status` of a side.
pub(crate) fn status(pair: &Pair, side: Side) -> Result<Status, String> {
    ask(pair, side, "status")
}

/// What a side says of the other one.
pub(crate) fn peer(pair: &Pair, side: Side) -> Result<PeerStatus, String> {
    let mut peers = status(pair, side)?.peers;
    peers.pop().ok_or_else(|| "no peer".into())
}

/// What a side says of the attachment of its first network.
pub(crate) fn attachment(pair: &Pair, side: Side) -> Result<AttachmentStatus, String> {
    let networks = status(pair, side)?.networks;
    let first = networks.into_iter().next();
    first.and_then(|network| network.attachment).ok_or_else(|| "no attachment".into())
}

/// `landbridge macs` of a side.
pub(crate) fn macs(pair: &Pair, side: Side) -> Result<Vec<MacEntry>, String> {
    ask(pair, side, "macs").map(|table: MacTable| table.entries)
}

/// The sum of a side's counters called `name`, over all threads and interfaces.
pub(crate) fn counter(pair: &Pair, side: Side, name: &str) -> Result<u64, String> {
    let counters: Vec<Counter> = ask(pair, side, "counters --all")?;
    let mut values = counters.iter().filter(|counter| counter.name == name).peekable();
    values.peek().ok_or_else(|| format!("no counter is called {name}"))?;
    Ok(values.map(|counter| counter.value).sum())
}

/// Waits until a side's counter `name` is at least `least`.
///
/// # Panics
/// If it isn't within five seconds.
pub(crate) fn wait_for_counter(pair: &Pair, side: Side, name: &str, least: u64) {
    eventually(&format!("{name} of {} to be {least}", side.appliance()), || {
        match counter(pair, side, name)? {
            value if value >= least => Ok(()),
            value => Err(value.to_string()),
        }
    });
}

/// What `condition` returns once it is `Ok`.
///
/// # Panics
/// If it isn't within five seconds.
pub(crate) fn eventually<T>(what: &str, condition: impl FnMut() -> Result<T, String>) -> T {
    within(Duration::from_secs(5), what, condition)
}

/// The same, within `limit`.
///
/// # Panics
/// If it isn't `Ok` by then.
pub(crate) fn within<T>(
    limit: Duration,
    what: &str,
    condition: impl FnMut() -> Result<T, String>,
) -> T {
    wait_until(what, limit, condition).unwrap_or_else(|error| panic!("{error}"))
}

/// One ping from the first east host to the first west one.
pub(crate) fn ping_once(pair: &Pair) -> Result<(), String> {
    ping_from(pair, Side::East)
}

/// One ping from a side's first host to the other side's.
pub(crate) fn ping_from(pair: &Pair, side: Side) -> Result<(), String> {
    let target = pair.host(side.other()).v4.to_string();
    let argv = ["ping", "-n", "-c", "1", "-W", "0.2", &target];
    let output = pair.host(side).namespace.exec(&argv);
    output.and_then(|output| output.success()).map(drop).map_err(|error| error.to_string())
}
