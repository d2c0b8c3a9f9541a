//! Status, MAC tables and counters as text for a terminal, in the manner of
//! `wg show`, `bridge fdb` and `ethtool -S`.
//!
//! Names and reasons may come from a remote appliance: whatever is not
//! printable is replaced before it reaches a terminal.

use std::{fmt::Write, time::Duration};

use super::{
    model::{
        AttachmentKind, AttachmentState, AttachmentStatus, Counter, LaneStatus, Location, MacTable,
        NetworkStatus, PeerState, PeerStatus, Status, Traffic,
    },
    units,
};

/// How text looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Whether ANSI colours are used.
    pub colour: bool,
}

impl Style {
    /// No colours: for files, pipes and `NO_COLOR`.
    pub const PLAIN: Self = Self { colour: false };

    fn paint(self, colour: Colour, text: &str) -> String {
        match self.colour {
            true => format!("\x1b[{}m{text}\x1b[0m", colour as u8),
            false => text.to_owned(),
        }
    }
}

/// SGR parameters (ECMA-48, section 8.3.117).
#[derive(Clone, Copy)]
enum Colour {
    Bold = 1,
    Red = 31,
    Green = 32,
    Yellow = 33,
}

/// Width of the column of labels, indentation included.
const LABEL_WIDTH: usize = 17;

/// What `landbridge status` prints.
pub fn status(status: &Status, style: Style) -> String {
    let mut out = Text { text: String::new(), style };
    out.heading("appliance", &status.appliance, &format!("site {}", status.site));
    let digest = status.group_digest.get(..16).unwrap_or(&status.group_digest);
    out.line("group", &format!("{} (file digest {digest})", status.group));
    out.line("public key", &status.public_key);
    out.line("listening", &status.listen);
    let uptime = units::duration(Duration::from_secs(status.uptime_s));
    out.line("landbridge", &format!("{}, up {uptime}", status.version));

    for network in &status.networks {
        render_network(&mut out, network);
    }
    for peer in &status.peers {
        render_peer(&mut out, peer);
    }
    if !status.warnings.is_empty() {
        out.text.push('\n');
    }
    for warning in &status.warnings {
        let label = style.paint(Colour::Yellow, "warning:");
        let _ = writeln!(out.text, "{label} {}", printable(warning));
    }
    out.text
}

fn render_network(out: &mut Text, network: &NetworkStatus) {
    out.text.push('\n');
    out.heading("network", &network.name, &format!("id {}", network.id));
    match &network.attachment {
        Some(attachment) => render_attachment(out, attachment),
        None => out.line("attachment", "none at this site"),
    }
    out.line(
        "MACs",
        &format!(
            "{} local, {} remote, at most {}",
            network.macs_local, network.macs_remote, network.max_macs
        ),
    );
    out.line("from the LAN", &traffic(network.rx, "frames"));
    out.line("to the LAN", &traffic(network.tx, "frames"));
}

fn render_attachment(out: &mut Text, attachment: &AttachmentStatus) {
    let kind = match attachment.kind {
        AttachmentKind::Bridge => "bridge ",
        AttachmentKind::Tap => "TAP ",
        AttachmentKind::Nic => "NIC ",
        AttachmentKind::Unknown => "",
    };
    let mut text = format!("{kind}{}", attachment.interface);
    if let Some(vlan) = attachment.vlan {
        let _ = write!(text, " VLAN {vlan}");
    }
    if let Some(tap) = &attachment.tap {
        let _ = write!(text, " (TAP {tap})");
    }
    out.line("attachment", &text);

    let (colour, state) = match attachment.state {
        AttachmentState::Up => (Colour::Green, "up"),
        AttachmentState::Waiting => (Colour::Yellow, "waiting for the interface"),
        AttachmentState::Down => (Colour::Red, "down"),
        AttachmentState::NoCarrier => (Colour::Red, "no carrier"),
        AttachmentState::Failed => (Colour::Red, "failed"),
        AttachmentState::Unknown => (Colour::Yellow, "unknown"),
    };
    out.state(colour, state, &attachment.reason);
    if attachment.mtu > 0 {
        let queues = match attachment.queues {
            0 => String::new(),
            1 => ", 1 queue".to_owned(),
            n => format!(", {n} queues"),
        };
        let offload = if attachment.offload { "on" } else { "off" };
        out.line("MTU", &format!("{}, offload {offload}{queues}", attachment.mtu));
    }
    if !attachment.link_local_note.is_empty() {
        out.line("link-local", &attachment.link_local_note);
    }
}

fn render_peer(out: &mut Text, peer: &PeerStatus) {
    out.text.push('\n');
    out.heading("peer", &peer.name, &format!("site {}", peer.site));
    out.line("public key", &peer.public_key);
    let (colour, state) = match peer.state {
        PeerState::Up => (Colour::Green, "up"),
        PeerState::Connecting => (Colour::Yellow, "connecting"),
        PeerState::Down => (Colour::Red, "down"),
        PeerState::Incompatible => (Colour::Red, "incompatible"),
        PeerState::Unknown => (Colour::Yellow, "unknown"),
    };
    out.state(colour, state, &peer.reason);
    if let Some(endpoint) = &peer.endpoint {
        out.line("endpoint", endpoint);
    }
    let handshake = match peer.last_handshake_s {
        Some(age) => format!("{} ago", units::duration(Duration::from_secs(age))),
        None => "never".to_owned(),
    };
    out.line("last handshake", &handshake);
    if !peer.software.is_empty() {
        let mut text = format!("landbridge {}", peer.software);
        if peer.protocol_version > 0 {
            let _ = write!(text, ", protocol {}", peer.protocol_version);
        }
        if !peer.cipher.is_empty() {
            let _ = write!(text, ", {}", peer.cipher);
        }
        out.line("software", &text);
    }
    if peer.group_digest_differs {
        let text = out.style.paint(Colour::Yellow, "differs from this appliance's");
        out.raw_line("group file", &text);
    }
    if let Some(micros) = peer.rtt_us {
        out.line("round trip", &units::round_trip(micros));
    }
    if peer.path_mtu > 0 {
        out.line("path MTU", &format!("{} bytes", peer.path_mtu));
    }
    out.line("received", &traffic(peer.rx, "datagrams"));
    out.line("sent", &traffic(peer.tx, "datagrams"));
    if peer.lanes.len() > 1 {
        for lane in &peer.lanes {
            render_lane(out, lane, peer);
        }
    }
}

fn render_lane(out: &mut Text, lane: &LaneStatus, peer: &PeerStatus) {
    let mut text =
        format!("received {}, sent {}", units::bytes(lane.rx.bytes), units::bytes(lane.tx.bytes));
    if lane.path_mtu != peer.path_mtu && lane.path_mtu > 0 {
        let _ = write!(text, ", path MTU {}", lane.path_mtu);
    }
    if let Some(endpoint) = lane.endpoint.as_ref().filter(|&e| Some(e) != peer.endpoint.as_ref()) {
        let _ = write!(text, ", endpoint {endpoint}");
    }
    out.line(&format!("lane {}", lane.lane), &text);
}

fn traffic(traffic: Traffic, unit: &str) -> String {
    format!(
        "{} {unit}, {}, {}",
        units::count(traffic.packets),
        units::bytes(traffic.bytes),
        units::rate(traffic.rate_bps)
    )
}

/// What `landbridge macs` prints: a table, by network, then place, then MAC.
pub fn macs(table: &MacTable, style: Style) -> String {
    let mut entries: Vec<_> = table.entries.iter().collect();
    entries.sort_by_key(|entry| (&entry.network, &entry.location, &entry.mac));
    let mut rows = vec![["NETWORK", "MAC", "WHERE", "HEARD", "MOVES"].map(str::to_owned)];
    rows.extend(entries.iter().map(|entry| {
        [
            printable(&entry.network),
            printable(&entry.mac),
            match &entry.location {
                Location::Local => "local".to_owned(),
                Location::Site(name) => format!("site {}", printable(name)),
            },
            format!("{} ago", units::duration(Duration::from_secs(entry.age_s))),
            entry.moves.to_string(),
        ]
    }));
    let mut out = columns(&rows, style);
    if table.entries.is_empty() {
        out.push_str("(no MAC address has been learnt)\n");
    }
    if table.omitted > 0 {
        let _ = writeln!(out, "({} more; ask for one network with --network)", table.omitted);
    }
    out
}

/// What `landbridge counters` prints: per scope one table of value, name and
/// help; zeros only with `all`.
pub fn counters(counters: &[Counter], all: bool, style: Style) -> String {
    let shown: Vec<_> = counters.iter().filter(|counter| all || counter.value > 0).collect();
    let width = |f: fn(&Counter) -> usize| shown.iter().map(|c| f(c)).max().unwrap_or(0);
    let value_width = width(|counter| counter.value.to_string().len());
    let name_width = width(|counter| counter.name.chars().count());
    let mut out = String::new();
    let mut scope = None;
    for counter in &shown {
        if scope != Some(&counter.scope) {
            let gap = if out.is_empty() { "" } else { "\n" };
            let title = style.paint(Colour::Bold, &printable(&counter.scope));
            let _ = writeln!(out, "{gap}{title}");
            scope = Some(&counter.scope);
        }
        let (name, help) = (printable(&counter.name), printable(&counter.help));
        let line = format!("  {:>value_width$}  {name:<name_width$}  {help}", counter.value);
        let _ = writeln!(out, "{}", line.trim_end());
    }
    let hidden = counters.len() - shown.len();
    if hidden > 0 {
        let gap = if out.is_empty() { "" } else { "\n" };
        let _ = writeln!(out, "{gap}({hidden} more at zero; --all shows them)");
    }
    out
}

/// Rows of cells, the first one a heading, each column as wide as its widest
/// cell.
fn columns<const N: usize>(rows: &[[String; N]], style: Style) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for (index, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        let line = line.trim_end();
        match index {
            0 => out.push_str(&style.paint(Colour::Bold, line)),
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

/// Text with every control and formatting character replaced, so that nothing
/// that came over the network can steer a terminal.
fn printable(text: &str) -> String {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if steers(c) { '\u{fffd}' } else { c }).collect()
}

struct Text {
    text: String,
    style: Style,
}

impl Text {
    fn heading(&mut self, kind: &str, name: &str, detail: &str) {
        let title = self.style.paint(Colour::Bold, &format!("{kind} {}", printable(name)));
        let _ = writeln!(self.text, "{title} ({})", printable(detail));
    }

    fn line(&mut self, label: &str, value: &str) {
        self.raw_line(label, &printable(value));
    }

    fn state(&mut self, colour: Colour, state: &str, reason: &str) {
        let state = self.style.paint(colour, state);
        let reason = printable(reason);
        match reason.is_empty() {
            true => self.raw_line("state", &state),
            false => self.raw_line("state", &format!("{state}: {reason}")),
        }
    }

    /// `value` is already fit for a terminal.
    fn raw_line(&mut self, label: &str, value: &str) {
        if !value.is_empty() {
            let _ = writeln!(self.text, "  {label:<width$}{value}", width = LABEL_WIDTH - 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::model::MacEntry, *};

    fn example() -> Status {
        let lane = |lane, bytes| LaneStatus {
            lane,
            endpoint: Some("198.51.100.2:51840".into()),
            path_mtu: 1500 - u16::from(lane) * 20,
            rx: Traffic { packets: 10, bytes, rate_bps: 0 },
            tx: Traffic { packets: 20, bytes: 2 * bytes, rate_bps: 0 },
        };
        Status {
            version: "0.1.0".into(),
            group: "east-west".into(),
            group_digest: "0123456789abcdef0123456789abcdef".into(),
            site: "east".into(),
            appliance: "east-1".into(),
            public_key: "k1=".into(),
            listen: "[::]:51840".into(),
            uptime_s: 3_723,
            networks: vec![
                NetworkStatus {
                    id: 100,
                    name: "app".into(),
                    attachment: Some(AttachmentStatus {
                        kind: AttachmentKind::Bridge,
                        interface: "br-app".into(),
                        tap: Some("lb-100".into()),
                        state: AttachmentState::Up,
                        mtu: 1500,
                        offload: true,
                        queues: 2,
                        link_local_note: "01:80:c2:00:00:01, :02 stay local".into(),
                        ..Default::default()
                    }),
                    macs_local: 3,
                    macs_remote: 12,
                    max_macs: 16384,
                    rx: Traffic { packets: 1_234_567, bytes: 987_654_321, rate_bps: 9_870_000_000 },
                    tx: Traffic { packets: 7, bytes: 700, rate_bps: 0 },
                },
                NetworkStatus {
                    id: 200,
                    name: "storage".into(),
                    attachment: Some(AttachmentStatus {
                        kind: AttachmentKind::Nic,
                        interface: "eth1".into(),
                        vlan: Some(200),
                        state: AttachmentState::NoCarrier,
                        reason: "check the cable of eth1".into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                },
                NetworkStatus { id: 300, name: "elsewhere".into(), ..Default::default() },
            ],
            peers: vec![
                PeerStatus {
                    name: "west-1".into(),
                    site: "west".into(),
                    public_key: "k2=".into(),
                    state: PeerState::Up,
                    software: "0.1.0".into(),
                    protocol_version: 1,
                    cipher: "aes-256-gcm".into(),
                    group_digest_differs: true,
                    endpoint: Some("198.51.100.2:51840".into()),
                    last_handshake_s: Some(42),
                    rtt_us: Some(1_234),
                    path_mtu: 1500,
                    lanes: vec![lane(0, 1024), lane(1, 4096)],
                    rx: Traffic { packets: 20, bytes: 5120, rate_bps: 1_000_000 },
                    tx: Traffic { packets: 40, bytes: 10_240, rate_bps: 2_500_000 },
                    ..Default::default()
                },
                PeerStatus {
                    name: "north-1".into(),
                    site: "north".into(),
                    public_key: "k3=".into(),
                    state: PeerState::Down,
                    reason: "no answer from 203.0.113.9:51840".into(),
                    ..Default::default()
                },
            ],
            warnings: vec!["network storage does not pass frames".into()],
        }
    }

    const EXAMPLE: &str = "\
appliance east-1 (site east)
  group          east-west (file digest 0123456789abcdef)
  public key     k1=
  listening      [::]:51840
  landbridge     0.1.0, up 1h 2m

network app (id 100)
  attachment     bridge br-app (TAP lb-100)
  state          up
  MTU            1500, offload on, 2 queues
  link-local     01:80:c2:00:00:01, :02 stay local
  MACs           3 local, 12 remote, at most 16384
  from the LAN   1.23 M frames, 942 MiB, 9.87 Gbit/s
  to the LAN     7 frames, 700 B, 0 bit/s

network storage (id 200)
  attachment     NIC eth1 VLAN 200
  state          no carrier: check the cable of eth1
  MACs           0 local, 0 remote, at most 0
  from the LAN   0 frames, 0 B, 0 bit/s
  to the LAN     0 frames, 0 B, 0 bit/s

network elsewhere (id 300)
  attachment     none at this site
  MACs           0 local, 0 remote, at most 0
  from the LAN   0 frames, 0 B, 0 bit/s
  to the LAN     0 frames, 0 B, 0 bit/s

peer west-1 (site west)
  public key     k2=
  state          up
  endpoint       198.51.100.2:51840
  last handshake 42s ago
  software       landbridge 0.1.0, protocol 1, aes-256-gcm
  group file     differs from this appliance's
  round trip     1.23 ms
  path MTU       1500 bytes
  received       20 datagrams, 5.00 KiB, 1.00 Mbit/s
  sent           40 datagrams, 10.0 KiB, 2.50 Mbit/s
  lane 0         received 1.00 KiB, sent 2.00 KiB
  lane 1         received 4.00 KiB, sent 8.00 KiB, path MTU 1480

peer north-1 (site north)
  public key     k3=
  state          down: no answer from 203.0.113.9:51840
  last handshake never
  received       0 datagrams, 0 B, 0 bit/s
  sent           0 datagrams, 0 B, 0 bit/s

warning: network storage does not pass frames
";

    #[test]
    fn status_reads_well() {
        assert_eq!(status(&example(), Style::PLAIN), EXAMPLE);
    }

    #[test]
    fn colour_adds_escapes_and_nothing_else() {
        let coloured = status(&example(), Style { colour: true });
        assert!(coloured.contains("\x1b[32mup\x1b[0m"));
        let mut stripped = coloured;
        for code in ["\x1b[0m", "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m"] {
            stripped = stripped.replace(code, "");
        }
        assert_eq!(stripped, EXAMPLE);
    }

    #[test]
    fn nothing_remote_can_steer_the_terminal() {
        let evil = "\x1b]0;owned\x07\u{202e}\nnetwork fake".to_owned();
        let mut told = example();
        told.peers[0].name.clone_from(&evil);
        told.peers[0].software.clone_from(&evil);
        told.peers[1].reason.clone_from(&evil);
        told.warnings[0].clone_from(&evil);
        let macs_told = MacTable {
            entries: vec![MacEntry {
                network: evil.clone(),
                location: Location::Site(evil.clone()),
                ..Default::default()
            }],
            omitted: 0,
        };
        let counters_told =
            [Counter { scope: evil.clone(), name: evil, value: 1, ..Default::default() }];
        for text in [
            status(&told, Style::PLAIN),
            macs(&macs_told, Style::PLAIN),
            counters(&counters_told, false, Style::PLAIN),
        ] {
            assert!(!text.contains(['\x1b', '\x07', '\u{202e}']), "{text:?}");
            assert!(!text.contains("\nnetwork fake"), "{text:?}");
        }
    }

    #[test]
    fn a_short_digest_from_another_version_is_no_trouble() {
        let told = Status { group_digest: "ü€".into(), ..Default::default() };
        assert!(status(&told, Style::PLAIN).contains("(file digest ü€)"));
    }

    #[test]
    fn macs_are_a_sorted_table() {
        let entry = |mac: &str, location, age_s| MacEntry {
            network: "app".into(),
            mac: mac.into(),
            location,
            age_s,
            moves: 1,
        };
        let table = MacTable {
            entries: vec![
                entry("02:00:00:00:00:03", Location::Site("west".into()), 5),
                entry("02:00:00:00:00:02", Location::Local, 70),
            ],
            omitted: 4,
        };
        let expected = "\
NETWORK  MAC                WHERE      HEARD       MOVES
app      02:00:00:00:00:02  local      1m 10s ago  1
app      02:00:00:00:00:03  site west  5s ago      1
(4 more; ask for one network with --network)
";
        assert_eq!(macs(&table, Style::PLAIN), expected);
        assert!(macs(&MacTable::default(), Style::PLAIN).ends_with("has been learnt)\n"));
    }

    #[test]
    fn counters_hide_zeros_unless_asked() {
        let counter = |scope: &str, name: &str, value, help: &str| Counter {
            scope: scope.into(),
            name: name.into(),
            value,
            help: help.into(),
        };
        let all = [
            counter("worker 0", "rx_replayed", 12, "Datagrams seen before."),
            counter("worker 0", "rx_forged", 0, "Datagrams that failed authentication."),
            counter("kernel lb-100", "tx_dropped", 3456, "Frames that the TAP's queue refused."),
        ];
        let expected = "\
worker 0
    12  rx_replayed  Datagrams seen before.

kernel lb-100
  3456  tx_dropped   Frames that the TAP's queue refused.

(1 more at zero; --all shows them)
";
        assert_eq!(counters(&all, false, Style::PLAIN), expected);
        let everything = counters(&all, true, Style::PLAIN);
        assert!(everything.contains("\n     0  rx_forged    Datagrams"), "{everything}");
        assert!(!everything.contains("more at zero"));
        assert_eq!(counters(&[], false, Style::PLAIN), "");
    }
}
