//! The tour: a first look at a working pair, with real hosts and real traffic.

use super::{
    AttachmentKind, Capture, Carrier, LabError, MARKER, Namespace, Offload, Pair, PairOptions,
    Process, Report, Result, Run, Side, Step, Veth, ping,
    report::{Printer, grouped, rate},
    run::require_tool,
    transfer::{Amount, send_amount},
    wait_until,
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::{Duration, Instant},
};

/// Builds a pair with `binary`, shows what it does, and takes it down again.
/// Prints as it goes unless `silent`. The report says what failed.
///
/// # Errors
/// What kept the tour from being taken at all, or [`LabError::Interrupted`].
pub fn tour(binary: &Path, silent: bool) -> Result<Report> {
    tour_of(options(binary), silent)
}

/// The tour of any pair with `Bridge` attachments on both sides.
///
/// # Errors
/// As for [`tour`].
pub fn tour_of(options: PairOptions, silent: bool) -> Result<Report> {
    for (tool, package) in TOOLS {
        require_tool(tool, package)?;
    }
    Run::remove_stale(false)?;
    let run = Run::new("tour")?;
    let mut tour = Tour { printer: Printer::new(silent), report: Report::default() };
    tour.printer.text(DRAWING);
    let outcome = tour.take(run, options);
    if let Err(LabError::Interrupted) = outcome {
        return Err(LabError::Interrupted);
    }
    let mut report = tour.report;
    report.ok = outcome.is_ok() && report.steps.iter().all(|step| step.ok);
    tour.printer.text(if report.ok {
        "\nAll of it worked, and nothing of it is left on this machine.\n\
         To keep one to play with:  landbridge lab up"
    } else {
        "\nNot all of it worked. Nothing of it is left on this machine."
    });
    Ok(report)
}

/// What the tour's pair is made of; `lab up` makes the same.
pub(super) fn options(binary: &Path) -> PairOptions {
    PairOptions {
        attachments: [AttachmentKind::Bridge; 2],
        underlay_offload: Offload::RealPackets,
        carrier: Carrier::landbridge(binary),
        ..PairOptions::default()
    }
}

/// Programs that the tour runs, and the Debian packages that have them.
const TOOLS: [(&str, &str); 5] = [
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("ping", "iputils-ping"),
    ("dnsmasq", "dnsmasq-base"),
    ("busybox", "busybox"),
];

const DRAWING: &str = "
Landbridge lab: one LAN at two sites, on this one machine.

      site east                 an IP network                 site west

  host-e ──┐                                                ┌── host-w
           ├─ bridge ─ east-1 ═══════ router ═══════ west-1 ─ bridge
  guest-e ─┘             encrypted UDP, 1500-byte packets

Every name is a network namespace; the LAN is 10.0.0.0/16 and fd00::/64.
";

struct Tour {
    printer: Printer,
    report: Report,
}

impl Tour {
    /// Err ends the tour; it has been reported as a failed step then.
    fn take(&mut self, run: Run, options: PairOptions) -> Result<()> {
        let (mut pair, capture) = self.step("Two sites on an IP network", || {
            let start = Instant::now();
            let pair = Pair::new(run, options)?;
            let built = start.elapsed();
            let capture = Capture::start(&pair.router, &["east", "west"], MARKER)?;
            let step = Step::found(format!(
                "hosts, bridges, appliances and a router, made in {} ms",
                built.as_millis()
            ))
            .figure("build_ms", built.as_secs_f64() * 1e3);
            Ok(((pair, capture), step))
        })?;
        let travelled = self.travel(&mut pair, capture);
        super::wait::check_interrupt()?;
        if travelled.is_err() || self.report.steps.iter().any(|step| !step.ok) {
            self.printer.text(&pair.logs());
        }
        travelled
    }

    fn travel(&mut self, pair: &mut Pair, capture: Capture) -> Result<()> {
        let before = arrived(&pair.router)?;
        self.step("A first frame crosses", || first_frame(pair).map(|step| ((), step)))?;
        let west = pair.host(Side::West);
        let (v4, v6) = (IpAddr::from(west.v4), IpAddr::from(west.v6));
        let pair = &*pair;
        let _ = self.step("Ping, IPv4", || ping_step(pair, v4));
        let _ = self.step("Ping, IPv6", || ping_step(pair, v6));
        let _ = self.step("A DHCP lease from the other site", || lease_step(pair));
        let _ = self.step("The underlay carries only ciphertext", || {
            ciphertext_step(pair, capture, before)
        });
        let _ = self
            .step("A bulk TCP transfer, IPv4, east to west", || bulk_step(pair, Side::East, v4));
        let east = IpAddr::from(pair.host(Side::East).v6);
        let _ = self
            .step("A bulk TCP transfer, IPv6, west to east", || bulk_step(pair, Side::West, east));
        Ok(())
    }

    /// Takes one step and reports it, failed or not.
    fn step<T>(&mut self, name: &str, take: impl FnOnce() -> Result<(T, Step)>) -> Result<T> {
        let outcome = take();
        if let Err(LabError::Interrupted) = outcome {
            return Err(LabError::Interrupted);
        }
        let (outcome, mut step) = match outcome {
            Ok((value, step)) => (Ok(value), step),
            Err(error) => {
                let step = Step::found(with_sources(&error)).provided(false);
                (Err(error), step)
            }
        };
        step.name = name.to_owned();
        self.printer.step(&step);
        self.report.steps.push(step);
        outcome
    }
}

fn first_frame(pair: &mut Pair) -> Result<Step> {
    let start = Instant::now();
    pair.wait_for_tunnel()?;
    let waited = start.elapsed();
    Ok(Step::found(format!("host-e reached host-w after {} ms", waited.as_millis()))
        .figure("first_frame_ms", waited.as_secs_f64() * 1e3))
}

fn ping_step(pair: &Pair, target: IpAddr) -> Result<((), Step)> {
    const COUNT: u32 = 50;
    let report = ping(&pair.host(Side::East).namespace, target, COUNT)?;
    let step = Step::found(format!(
        "{} of {} answered by {target}, {:.2} ms there and back ({:.2} to {:.2})",
        report.received, report.sent, report.mean_ms, report.min_ms, report.max_ms
    ))
    .figure("sent", report.sent.into())
    .figure("received", report.received.into())
    .figure("round_trip_ms", report.mean_ms)
    .provided(report.received == report.sent);
    Ok(((), step))
}

fn lease_step(pair: &Pair) -> Result<((), Step)> {
    let guest = Guest::new(pair, "guest-e")?;
    let start = Instant::now();
    let (_server, address) = guest.lease(pair)?;
    let took = start.elapsed();
    let west = pair.host(Side::West);
    let report = ping(&guest.0, west.v4.into(), 5)?;
    let step = Step::found(format!(
        "guest-e asked; dnsmasq on host-w gave it {address} after {} ms",
        took.as_millis()
    ))
    .and(format!("with it, {} of {} pings reach host-w", report.received, report.sent))
    .figure("lease_ms", took.as_secs_f64() * 1e3)
    .provided(report.received == report.sent);
    Ok(((), step))
}

fn ciphertext_step(pair: &Pair, capture: Capture, before: u64) -> Result<((), Step)> {
    const SENT_BYTES: u64 = 16 << 20;
    let (east, west) = (pair.host(Side::East), pair.host(Side::West));
    let control = Capture::start(&west.namespace, &["eth0"], MARKER)?;
    send_amount(&east.namespace, &west.namespace, west.v4.into(), Amount::Bytes(SENT_BYTES))?;
    let on_lan = control.finish()?;
    let arrived = arrived(&pair.router)?;
    let on_underlay = capture.finish()?;
    let missed = arrived.saturating_sub(before + on_underlay.frames);
    let others: u64 = on_underlay.other_ip.values().sum();
    let step = Step::found(format!(
        "the router carried {} datagrams, {} kB; to UDP port {}, from {}; {} ICMP messages of \
         hosts and routers, and {others} other IP packets",
        grouped(on_underlay.datagrams()),
        grouped(on_underlay.bytes / 1000),
        ports(on_underlay.udp_flows.keys().map(|(_, to)| to.port())),
        ports(on_underlay.udp_flows.keys().map(|(from, _)| from.port())),
        on_underlay.icmp,
    ))
    .and(format!(
        "a known text sent {} times from host-e to host-w is in {} of them; on host-w's own \
         cable, the same search finds it in {} frames",
        grouped(SENT_BYTES / MARKER.len() as u64),
        grouped(on_underlay.with_text),
        grouped(on_lan.with_text),
    ))
    .figure("datagrams", on_underlay.datagrams() as f64)
    .figure("datagrams_with_known_text", on_underlay.with_text as f64)
    .figure("lan_frames_with_known_text", on_lan.with_text as f64)
    .figure("packets_not_looked_at", missed as f64);
    let step = if missed > 0 {
        step.and(format!("{missed} packets were too fast for the capture to look at"))
    } else {
        step
    };
    let proven = on_underlay.with_text == 0 && on_lan.with_text > 0;
    let carried = on_underlay.bytes >= SENT_BYTES && others == 0 && missed == 0;
    Ok(((), step.provided(proven && carried)))
}

fn bulk_step(pair: &Pair, from: Side, target: IpAddr) -> Result<((), Step)> {
    const DURATION: Duration = Duration::from_secs(3);
    let (from, to) = (&pair.host(from).namespace, &pair.host(from.other()).namespace);
    let transfer = send_amount(from, to, target, Amount::For(DURATION))?;
    let step = Step::found(format!(
        "{} MB in {:.1} s, every byte as sent: {} (CUBIC, 1500-byte packets on the underlay)",
        grouped(transfer.bytes / 1_000_000),
        transfer.duration.as_secs_f64(),
        rate(transfer.bits_per_second()),
    ))
    .figure("bytes", transfer.bytes as f64)
    .figure("duration_s", transfer.duration.as_secs_f64())
    .figure("bits_per_second", transfer.bits_per_second());
    Ok(((), step))
}

/// `51840, 51841`, or how many there are where that would be long.
fn ports(ports: impl Iterator<Item = u16>) -> String {
    const MOST: usize = 6;
    let ports: BTreeSet<u16> = ports.collect();
    if ports.len() > MOST {
        return format!("{} ports", ports.len());
    }
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

/// Packets that arrived at the router's interfaces so far.
fn arrived(router: &Namespace) -> Result<u64> {
    let mut packets = 0;
    for interface in ["east", "west"] {
        let link = router.link(interface)?;
        packets += link["stats64"]["rx"]["packets"].as_u64().unwrap_or(0);
    }
    Ok(packets)
}

/// A host of the east site that has no address.
struct Guest(Namespace);

impl Guest {
    fn new(pair: &Pair, name: &str) -> Result<Self> {
        let guest = Self(Namespace::new(&pair.run, name)?);
        let appliance = &pair.appliance(Side::East).namespace;
        let cable = Veth { namespace: appliance, interface: name };
        cable.connect(Veth { namespace: &guest.0, interface: "eth0" }, pair.options.lan_mtu)?;
        appliance.enslave(name, "br-100")?;
        Ok(guest)
    }

    /// Gets an address by DHCP from a server on host-w, and uses it.
    fn lease(&self, pair: &Pair) -> Result<(Process, Ipv4Addr)> {
        let server = dhcp_server(pair)?;
        let script = "#!/bin/sh\n[ \"$1\" = bound ] && ip address add \"$ip/$mask\" dev \
                      \"$interface\" && echo \"leased $ip\"\nexit 0\n";
        let script = pair.run.write("udhcpc-script", script)?;
        rustix::fs::chmod(&script, rustix::fs::Mode::RWXU)
            .map_err(|error| LabError::File { path: script.clone(), source: error.into() })?;
        let script = script.to_string_lossy();
        let argv = [
            "busybox", "udhcpc", "-f", "-n", "-q", "-t", "10", "-T", "1", "-i", "eth0", "-s",
            &script,
        ];
        let output = self.0.exec(&argv)?.success()?;
        let lease = output.stdout.lines().find_map(|line| line.strip_prefix("leased "));
        let address = lease.and_then(|address| address.parse().ok());
        let address = address.ok_or_else(|| LabError::Answer {
            command: output.command.clone(),
            answer: output.stdout.clone() + &output.stderr,
        })?;
        Ok((server, address))
    }
}

fn dhcp_server(pair: &Pair) -> Result<Process> {
    let west = pair.host(Side::West);
    let lease_file = format!("--dhcp-leasefile={}/leases", pair.run.directory().display());
    let server = west.namespace.spawn(&[
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--user=root",
        "--log-facility=-",
        "--pid-file=",
        "--port=0",
        "--interface=eth0",
        "--no-ping",
        "--dhcp-authoritative",
        "--dhcp-range=10.0.100.1,10.0.100.99,255.255.0.0,1h",
        &lease_file,
    ])?;
    wait_until("dnsmasq to listen", Duration::from_secs(5), || {
        let said = server.stderr() + &server.stdout();
        if said.contains("DHCP, IP range") { Ok(()) } else { Err(said) }
    })?;
    Ok(server)
}

/// An error and what caused it, in one line.
fn with_sources(error: &LabError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
