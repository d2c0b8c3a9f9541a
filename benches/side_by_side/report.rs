//! The report: Markdown for people, JSON for programs.

use crate::{
    bar::{Better, Must, best_peer, requirements},
    carriers::{Carrier, OURS, OURS_NIC, VXLAN},
    measure::{FRAME_PAYLOAD, LOSS_PER_MILLE},
    samples::Samples,
    settings::Settings,
    topology::{Cores, Underlay, machine_cores},
};
use landbridge::lab::Side;
use serde::Serialize;
use std::{fmt::Write, fs, process::Command};

/// Where and when the bench ran.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    date: String,
    processor: String,
    cores: usize,
    kernel: String,
    memory_mib: u64,
    /// What carriers over TCP use.
    congestion_control: String,
}

impl Machine {
    pub(crate) fn examine() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map_or("unknown", |(_, value)| value.trim()).to_owned()
        };
        let date = Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).output();
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        Self {
            date: date.map_or_else(
                |_| "unknown".into(),
                |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            ),
            processor: field(&read("/proc/cpuinfo"), "model name"),
            cores: machine_cores(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory_mib: memory
                .split(' ')
                .next()
                .and_then(|kib| kib.parse::<u64>().ok())
                .unwrap_or(0)
                >> 10,
            congestion_control: read("/proc/sys/net/ipv4/tcp_congestion_control").trim().to_owned(),
        }
    }
}

/// All of it, for a program.
pub(crate) fn json(machine: &Machine, settings: &Settings, samples: &Samples) -> serde_json::Value {
    serde_json::json!({ "machine": machine, "settings": settings, "measured": samples })
}

/// The report, for people.
pub(crate) fn markdown(
    machine: &Machine,
    settings: &Settings,
    carriers: &[&Carrier],
    samples: &Samples,
) -> String {
    let mut text = String::from("# Landbridge side by side\n\n");
    introduction(&mut text, machine, settings, samples);
    configurations(&mut text, carriers);
    for underlay in &settings.underlays {
        let meaning = match underlay {
            Underlay::Real => {
                "real packets: at most 1500 bytes on the underlay, no TSO, GSO, GRO, UDP segmentation"
            }
            Underlay::Gso => {
                "GSO underlay: veth as it is, superframes cross whole, GRO on at the receivers"
            }
        };
        let _ = writeln!(text, "## Underlay `{underlay}`: {meaning}\n");
        let report = Section { underlay: *underlay, carriers, samples };
        report.tcp(&mut text);
        report.small(&mut text);
        report.round_trips(&mut text);
        report.ratios(&mut text);
    }
    loss(&mut text, samples);
    bar(&mut text, samples, carriers);
    let notes = samples.notes();
    if !notes.is_empty() {
        text.push_str("## Not measured, and failures\n\n");
        for note in notes {
            let _ = writeln!(text, "* {note}");
        }
    }
    text
}

fn introduction(text: &mut String, machine: &Machine, settings: &Settings, samples: &Samples) {
    let Machine { date, processor, cores, kernel, memory_mib, congestion_control } = machine;
    let _ = writeln!(
        text,
        "{date}; {processor}, {cores} cores, {memory_mib} MiB; Linux {kernel}. Share of the machine that was busy with \
         other things before each round: {} %. What else runs counts as machine CPU.\n",
        samples.busy_shares()
    );
    let _ = writeln!(
        text,
        "host-e – bridge – appliance-e ═ veth ═ appliance-w – bridge – host-w, in network namespaces of this one \
         machine, no router. Medians over {} interleaved round{}; TCP for {} s with cubic (iperf3), the default \
         of the machine being {congestion_control}.{}",
        settings.rounds,
        if settings.rounds == 1 { "" } else { "s" },
        settings.seconds,
        if settings.quick { " A quick run: rough numbers." } else { "" }
    );
    if !settings.splits_cores() {
        text.push_str(" All programs of both sites share all cores.\n\n");
    } else {
        let _ = writeln!(
            text,
            " Everything of site east (daemon, iperf3, tools) runs on core {}, of west on core {}.\n",
            Cores::of(Side::East),
            Cores::of(Side::West)
        );
    }
}

fn configurations(text: &mut String, carriers: &[&Carrier]) {
    text.push_str("| carrier | LAN MTU | configuration |\n|---|---|---|\n");
    for carrier in carriers {
        let _ = writeln!(
            text,
            "| {} | {} | {} |",
            carrier.name, carrier.lan_mtu, carrier.configuration
        );
    }
    text.push('\n');
}

/// One underlay's tables.
struct Section<'a> {
    underlay: Underlay,
    carriers: &'a [&'a Carrier],
    samples: &'a Samples,
}

impl Section<'_> {
    /// A table with a row for each carrier; a column is a title, a metric, a factor
    /// and digits.
    fn table(&self, text: &mut String, title: &str, columns: &[(&str, &str, f64, usize)]) {
        let titles: Vec<_> = columns.iter().map(|column| column.0).collect();
        let _ = writeln!(text, "### {title}\n\n| carrier | {} |", titles.join(" | "));
        let _ = writeln!(text, "|---|{}", "--:|".repeat(columns.len()));
        for carrier in self.carriers {
            let values: Vec<_> = columns
                .iter()
                .map(|(_, metric, factor, digits)| {
                    let median = self.samples.median(self.underlay, carrier.name, metric);
                    number(median.map(|value| value * factor), *digits)
                })
                .collect();
            let _ = writeln!(text, "| {} | {} |", carrier.name, values.join(" | "));
        }
        text.push('\n');
    }

    fn tcp(&self, text: &mut String) {
        self.table(
            text,
            "TCP, Gbit/s",
            &[
                ("1 stream, east to west", "tcp_gbps/1/east-west", 1.0, 2),
                ("west to east", "tcp_gbps/1/west-east", 1.0, 2),
                ("4 streams, east to west", "tcp_gbps/4/east-west", 1.0, 2),
                ("west to east", "tcp_gbps/4/west-east", 1.0, 2),
            ],
        );
        self.table(
            text,
            "TCP, CPU-seconds per GB (both directions pooled)",
            &[
                ("1 stream, machine", "tcp_machine_cpu_s_per_gb/1", 1.0, 2),
                ("both daemons", "tcp_daemon_cpu_s_per_gb/1", 1.0, 2),
                ("4 streams, machine", "tcp_machine_cpu_s_per_gb/4", 1.0, 2),
                ("both daemons", "tcp_daemon_cpu_s_per_gb/4", 1.0, 2),
                (
                    "underlay bytes per packet, acknowledgements included",
                    "underlay_bytes_per_packet",
                    1.0,
                    0,
                ),
            ],
        );
    }

    fn small(&self, text: &mut String) {
        let title = format!(
            "Small frames, east to west: thousands per second (64-byte Ethernet frames without FCS, {FRAME_PAYLOAD} bytes of UDP \
             payload, 4 flows, less than 1 % lost; USO: 64-byte payloads, 64 per send, UDP_GRO at the receiver)"
        );
        self.table(
            text,
            &title,
            &[
                ("64-byte frames", "frames_per_s", 1e-3, 0),
                ("USO datagrams", "segments_per_s", 1e-3, 0),
            ],
        );
    }

    fn round_trips(&self, text: &mut String) {
        self.table(
            text,
            "Round trip in µs, and resident memory of a daemon in MiB",
            &[
                ("idle, median", "ping_us/idle/median", 1.0, 0),
                ("p99", "ping_us/idle/p99", 1.0, 0),
                ("beside one TCP stream, median", "ping_us/loaded/median", 1.0, 0),
                ("p99", "ping_us/loaded/p99", 1.0, 0),
                ("RSS idle", "rss_mib/idle", 1.0, 1),
                ("RSS after load", "rss_mib/after", 1.0, 1),
            ],
        );
    }

    fn ratios(&self, text: &mut String) {
        text.push_str(
            "### Ratios (both directions pooled)\n\n\
             | | Landbridge | best encrypted peer | ratio | VXLAN | ratio |\n|---|--:|--:|--:|--:|--:|\n",
        );
        for (title, carrier, metric, better) in [
            ("TCP, 1 stream, Gbit/s", OURS, "tcp_gbps/1", Better::More),
            ("TCP, 4 streams, Gbit/s", OURS, "tcp_gbps/4", Better::More),
            ("machine CPU-s/GB, 1 stream", OURS, "tcp_machine_cpu_s_per_gb/1", Better::Less),
            ("machine CPU-s/GB, 4 streams", OURS, "tcp_machine_cpu_s_per_gb/4", Better::Less),
            ("64-byte frames/s, TAP", OURS, "frames_per_s", Better::More),
            ("64-byte frames/s, AF_PACKET", OURS_NIC, "frames_per_s", Better::More),
            ("USO datagrams/s", OURS, "segments_per_s", Better::More),
            ("idle ping, median, µs", OURS, "ping_us/idle/median", Better::Less),
            ("loaded ping, median, µs", OURS, "ping_us/loaded/median", Better::Less),
        ] {
            let ours = self.samples.median(self.underlay, carrier, metric);
            let peer = best_peer(self.samples, self.carriers, self.underlay, metric, better);
            let vxlan = self.samples.median(self.underlay, VXLAN, metric);
            let ratio =
                |other: Option<f64>| number(ours.zip(other).map(|(ours, other)| ours / other), 2);
            let peer_text = peer.map_or("–".into(), |(name, value)| {
                format!("{} ({name})", number(Some(value), 2))
            });
            let _ = writeln!(
                text,
                "| {title} | {} | {peer_text} | {} | {} | {} |",
                number(ours, 2),
                ratio(peer.map(|(_, value)| value)),
                number(vxlan, 2),
                ratio(vxlan)
            );
        }
        text.push('\n');
    }
}

fn loss(text: &mut String, samples: &Samples) {
    let median = |metric: String| samples.median(Underlay::Real, OURS, &metric);
    let Some(lossless) = median("loss_gbps/0".into()) else { return };
    text.push_str(
        "## Loss on the underlay (Landbridge, real packets, one TCP stream with BBR, east to west)\n\n\
         Datagrams are dropped at random where they arrive at appliance-w, with GRO off. Segments lost are the \
         sender's retransmissions (RetransSegs) over the datagrams dropped.\n\n\
         | datagrams lost | Gbit/s | of lossless | datagrams dropped | segments lost per datagram |\n|--:|--:|--:|--:|--:|\n",
    );
    for per_mille in LOSS_PER_MILLE {
        let rate = median(format!("loss_gbps/{per_mille}"));
        let _ = writeln!(
            text,
            "| {} % | {} | {} | {} | {} |",
            f64::from(per_mille) / 10.0,
            number(rate, 2),
            number(rate.map(|rate| rate / lossless), 2),
            number(median(format!("loss_datagrams/{per_mille}")), 0),
            number(median(format!("segments_per_lost_datagram/{per_mille}")), 2)
        );
    }
    text.push('\n');
}

fn bar(text: &mut String, samples: &Samples, carriers: &[&Carrier]) {
    text.push_str("## The bar\n\n| | measured | must be | |\n|---|--:|--:|---|\n");
    for requirement in requirements(samples, carriers) {
        let must = match requirement.must {
            Must::AtLeast(bound) => format!("≥ {bound}"),
            Must::AtMost(bound) => format!("≤ {bound}"),
        };
        let verdict = match requirement.measured {
            None => "not measured",
            Some(value) if requirement.must.is_met(value) => "met",
            Some(_) => "**not met**",
        };
        let _ = writeln!(
            text,
            "| {} | {} | {must} | {verdict} |",
            requirement.what,
            number(requirement.measured, 2)
        );
    }
    text.push('\n');
}

/// A number with `digits` after the point, or a dash.
fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}
