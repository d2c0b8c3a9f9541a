//! What each counter may be after a soak, and why.

use landbridge::manage::model::Counter;
use std::{collections::BTreeMap, fmt::Write, ops::RangeInclusive, time::Duration};

/// Datagrams that may be on their way while two appliances are asked in turn:
/// pings, since the traffic has ended.
const IN_FLIGHT: u64 = 16;

/// One appliance's counters by name, summed over its threads.
pub(crate) type Counts = BTreeMap<String, u64>;

/// What is known from outside about the datagrams to one appliance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inbound {
    /// Sent by the peer, by its own account, handshakes excepted.
    pub(crate) sent: u64,
    /// Authentic ones received, by the appliance's account.
    pub(crate) received: u64,
    /// Dropped on purpose.
    pub(crate) lost: u64,
    /// Held by the relay, and so overtaken.
    pub(crate) overtaken: u64,
    /// Dropped because the relay was too slow; of both directions.
    pub(crate) overflowed: u64,
    /// How long it took.
    pub(crate) duration: Duration,
    /// A session is replaced after this time.
    pub(crate) rekey_after: Duration,
}

/// A number, what it may be, and why.
pub(crate) struct Line {
    name: String,
    value: i64,
    allowed: RangeInclusive<i64>,
    because: String,
}

impl Line {
    fn is_explained(&self) -> bool {
        self.allowed.contains(&self.value)
    }
}

/// Sums what the appliance told over its threads.
pub(crate) fn counts(counters: &[Counter]) -> Counts {
    let mut counts = Counts::new();
    for counter in counters {
        *counts.entry(counter.name.clone()).or_default() += counter.value;
    }
    counts
}

/// Explains every counter that moved between `before` and `after`.
pub(crate) fn explain(before: &Counts, after: &Counts, inbound: &Inbound) -> Vec<Line> {
    let moved: Counts = after
        .iter()
        .map(|(name, value)| (name.clone(), value - before.get(name).unwrap_or(&0)))
        .collect();
    let count = |name: &str| moved.get(name).copied().unwrap_or(0);
    let dropped = inbound.lost + count("udp_receive_dropped");
    let gone = dropped + inbound.overflowed;
    let refused = ["datagram_forged", "datagram_no_session", "datagram_replayed"]
        .map(count)
        .iter()
        .sum::<u64>();
    let handshakes = inbound.duration.as_secs() / inbound.rekey_after.as_secs();
    let unaccounted = inbound.sent as i64 - (inbound.received + dropped + refused) as i64;
    let balance = Line {
        name: "sent − received − dropped".into(),
        value: unaccounted,
        // A handshake's datagrams are lost, too, but are in no lane's account.
        allowed: -((IN_FLIGHT + handshakes) as i64)..=(IN_FLIGHT + inbound.overflowed) as i64,
        because: format!(
            "{} sent, {} received, {} dropped on purpose, up to {} by the slow relay",
            inbound.sent, inbound.received, inbound.lost, inbound.overflowed
        ),
    };
    let lines = moved.iter().filter(|(name, value)| **value > 0 || is_expected(name)).map(
        |(name, &value)| {
            let (allowed, because) = expectation(name, inbound, &count, gone, handshakes);
            let allowed = *allowed.start() as i64..=*allowed.end() as i64;
            Line { name: name.clone(), value: value as i64, allowed, because }
        },
    );
    std::iter::once(balance).chain(lines).collect()
}

/// A soak without these would not have tested what it is for.
fn is_expected(name: &str) -> bool {
    matches!(name, "stream_missing" | "stream_held" | "handshake_completed")
}

fn expectation(
    name: &str,
    inbound: &Inbound,
    count: &impl Fn(&str) -> u64,
    gone: u64,
    handshakes: u64,
) -> (RangeInclusive<u64>, String) {
    let (missing, late) = (count("stream_missing"), count("stream_late"));
    match name {
        "stream_missing" => (
            // What a session loses last, nothing newer shows to be missing. A signal
            // seems missing where the datagram that tells of it is lost, too.
            (inbound.lost * 9 / 10 + late).saturating_sub(IN_FLIGHT)
                ..=gone + late + IN_FLIGHT + handshakes,
            format!("{gone} lost, {late} late"),
        ),
        "stream_late" => (
            0..=inbound.overtaken,
            format!("of {} overtaken, those later than was waited for", inbound.overtaken),
        ),
        // Were one a repetition, it would be missing in the balance.
        "datagram_replayed" => (
            0..=inbound.overtaken / 1000,
            "where this machine starves the relay, overtaken ones come later than the replay \
             window knows"
                .into(),
        ),
        "stream_held" => (
            1..=128 * (missing + inbound.overtaken),
            format!("at most 128 behind each of {} holes", missing + inbound.overtaken),
        ),
        "record_truncated" | "record_salvaged" => (
            0..=missing
                .saturating_sub(count("record_truncated") + count("record_salvaged") - count(name)),
            format!("with the other of salvaged and truncated, one at each of {missing} missing"),
        ),
        "handshake_completed" => (
            handshakes * 8 / 10..=handshakes * 12 / 10 + 2,
            format!(
                "one each {} s for {} s",
                inbound.rekey_after.as_secs(),
                inbound.duration.as_secs()
            ),
        ),
        "lan_merged" => (0..=u32::MAX.into(), "frames of a flow that came together".into()),
        "handshake_invalid" => {
            (0..=handshakes / 50 + 1, "answers to a handshake that was begun again".into())
        }
        "tap_tx_dropped" => {
            (0..=inbound.sent / 100, "TCP fills the slowest queue, which is the TAP's".into())
        }
        "udp_receive_dropped" => (
            0..=inbound.sent / 100,
            "hosts, relay and appliances share this machine's cores".into(),
        ),
        _ => (0..=0, "never".into()),
    }
}

/// The lines as a Markdown table; those that break their rule are marked.
pub(crate) fn table(appliance: &str, lines: &[Line]) -> String {
    let mut table =
        format!("| {appliance} | value | allowed | because | |\n|---|---:|---:|---|---|\n");
    for line in lines {
        let (low, high) = (line.allowed.start(), line.allowed.end());
        let verdict = if line.is_explained() { "ok" } else { "**UNEXPLAINED**" };
        let _ = writeln!(
            table,
            "| {} | {} | {low} … {high} | {} | {verdict} |",
            line.name, line.value, line.because
        );
    }
    table
}

/// What is not explained, one sentence each.
pub(crate) fn unexplained(appliance: &str, lines: &[Line]) -> Vec<String> {
    let broken = lines.iter().filter(|line| !line.is_explained());
    broken
        .map(|line| {
            let Line { name, value, allowed, because } = line;
            format!("{appliance}: {name} is {value}, not in {allowed:?} ({because})")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const INBOUND: Inbound = Inbound {
        sent: 100_000,
        received: 99_500,
        lost: 500,
        overtaken: 1000,
        overflowed: 0,
        duration: Duration::from_secs(60),
        rekey_after: Duration::from_secs(3),
    };

    fn after(changes: &[(&str, u64)]) -> Counts {
        let usual = [
            ("stream_missing", 600),
            ("stream_late", 100),
            ("stream_held", 5000),
            ("handshake_completed", 20),
        ];
        usual.iter().chain(changes).map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    fn complaints(changes: &[(&str, u64)], inbound: &Inbound) -> Vec<String> {
        unexplained("east-1", &explain(&Counts::new(), &after(changes), inbound))
    }

    #[test]
    fn what_has_a_cause_is_explained() {
        assert_eq!(complaints(&[("lan_full", 0)], &INBOUND), [""; 0]);
        let before = after(&[("tunnel_down", 3)]);
        let later = explain(&Counts::from([("tunnel_down".into(), 3)]), &before, &INBOUND);
        assert_eq!(unexplained("east-1", &later), [""; 0]);
    }

    #[test]
    fn what_has_none_is_not() {
        for broken in [
            ("datagram_forged", 1),
            ("tunnel_down", 1),
            ("never_heard_of", 1),
            ("stream_missing", 0),
            ("stream_missing", 2000),
            ("handshake_completed", 10),
            ("stream_held", 0),
        ] {
            assert!(!complaints(&[broken], &INBOUND).is_empty(), "{broken:?}");
        }
        let leaky = Inbound { received: 99_000, ..INBOUND };
        assert_eq!(complaints(&[], &leaky).len(), 1);
    }
}
