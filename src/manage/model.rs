//! What an appliance tells about itself.
//!
//! The JSON form is an interface that people script against: fields are only
//! ever added. A reader takes missing fields as zero or empty and an unknown
//! state as `unknown`, so that a newer command can talk to an older appliance.

use serde::{Deserialize, Serialize};

/// Most entries that one [`MacTable`] carries; the rest is counted in
/// [`MacTable::omitted`]. 2¹⁸ entries of at most ~200 bytes stay below
/// [`MAX_RESPONSE_BYTES`].
pub const MAX_MAC_ENTRIES: usize = 1 << 18;

/// Longest response line, in bytes, that a client accepts.
pub const MAX_RESPONSE_BYTES: u64 = 64 << 20;

/// Longest request line, in bytes, that the server accepts.
pub const MAX_REQUEST_BYTES: u64 = 64 << 10;

/// One question to a running appliance: a line of JSON on the socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Everything that `landbridge status` shows.
    Status,
    /// The MAC tables.
    Macs {
        /// Only this network, by name or id; all of them if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        network: Option<String>,
    },
    /// Every counter, zeros included.
    Counters,
}

/// The answer to a [`Request`]: a line of JSON on the socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Macs`].
    Macs(MacTable),
    /// To [`Request::Counters`].
    Counters(Vec<Counter>),
    /// The request was refused; a sentence for a person.
    Error(String),
}

/// One appliance at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of the running software.
    pub version: String,
    /// The group's name.
    pub group: String,
    /// Digest of the group file, 64 hexadecimal digits.
    pub group_digest: String,
    /// This appliance's site.
    pub site: String,
    /// This appliance's name.
    pub appliance: String,
    /// This appliance's public key, base64.
    pub public_key: String,
    /// Local address of the underlay's UDP socket.
    pub listen: String,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// The networks of the group, in the group file's order.
    pub networks: Vec<NetworkStatus>,
    /// The other sites' appliances, in the group file's order.
    pub peers: Vec<PeerStatus>,
    /// What an operator should look at now, one sentence each.
    pub warnings: Vec<String>,
}

/// Traffic in one direction since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// Frames or datagrams, whichever the context carries.
    pub packets: u64,
    /// Their bytes: Ethernet frames without FCS, or UDP payloads.
    pub bytes: u64,
    /// Rate over the last second or so, in bit/s of those bytes.
    pub rate_bps: u64,
}

/// One stretched network as this appliance sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkStatus {
    /// 24-bit id, as in the group file and on the wire.
    pub id: u32,
    /// Name in the group file.
    pub name: String,
    /// Where it meets this site's LAN; absent where this site has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attachment: Option<AttachmentStatus>,
    /// MACs learnt from this site's LAN.
    pub macs_local: u32,
    /// MACs learnt from other sites.
    pub macs_remote: u32,
    /// Bound of the MAC table.
    pub max_macs: u32,
    /// Frames that came from the LAN.
    pub rx: Traffic,
    /// Frames that went to the LAN.
    pub tx: Traffic,
}

/// An attachment: the meeting point of a network and a LAN.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AttachmentStatus {
    /// What it is.
    pub kind: AttachmentKind,
    /// The interface named in the group file: bridge, TAP or NIC.
    pub interface: String,
    /// The TAP that serves it, where it isn't `interface` itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// VLAN id, where it takes one VLAN of a trunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// Whether frames pass.
    pub state: AttachmentState,
    /// Why not, where they don't; empty otherwise.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The interface's MTU in bytes (Ethernet payload); 0 = not known.
    pub mtu: u32,
    /// Whether superframes (TSO, GRO, checksum offload) are in use.
    pub offload: bool,
    /// Queues in use.
    pub queues: u16,
    /// Which link-local groups (01:80:c2:00:00:0X) don't cross; empty = all do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub link_local_note: String,
}

/// The kind of an attachment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachmentKind {
    /// A TAP enslaved to an existing bridge.
    Bridge,
    /// A TAP alone.
    Tap,
    /// AF_PACKET on an existing interface.
    Nic,
    /// A kind newer than this command.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Whether an attachment passes frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachmentState {
    /// Frames pass.
    Up,
    /// The interface doesn't exist (yet); it is taken when it appears.
    Waiting,
    /// It exists but is set down.
    Down,
    /// It is set up but has no carrier: cable pulled, or no bridge port up.
    NoCarrier,
    /// The kernel refused; the reason tells.
    Failed,
    /// A state newer than this command.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Another appliance and the tunnel to it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Its site.
    pub site: String,
    /// Its public key, base64.
    pub public_key: String,
    /// Where the tunnel stands.
    pub state: PeerState,
    /// Why it isn't up; empty otherwise.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Software version that it told; empty = never heard.
    pub software: String,
    /// Agreed protocol version; 0 = none yet.
    pub protocol_version: u16,
    /// Whether its group file differs from ours.
    pub group_digest_differs: bool,
    /// Its underlay address as last authenticated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Seconds since the last completed handshake; absent = never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_handshake_s: Option<u64>,
    /// Smoothed round-trip time in microseconds; absent = not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// Path MTU in bytes of IP packet, the lowest of the lanes; 0 = unknown.
    pub path_mtu: u16,
    /// Cipher in use, e.g. `aes-256-gcm`; empty = none yet.
    pub cipher: String,
    /// The tunnel's lanes.
    pub lanes: Vec<LaneStatus>,
    /// Datagrams received from it, all lanes.
    pub rx: Traffic,
    /// Datagrams sent to it, all lanes.
    pub tx: Traffic,
}

/// Where the tunnel to a peer stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerState {
    /// Frames pass.
    Up,
    /// The handshake is under way.
    Connecting,
    /// Nothing authentic is heard.
    Down,
    /// It speaks, but no common protocol version or cipher exists.
    Incompatible,
    /// A state newer than this command.
    #[default]
    #[serde(other)]
    Unknown,
}

/// One UDP flow of a tunnel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LaneStatus {
    /// Its number, from 0.
    pub lane: u8,
    /// The far end's address as last authenticated on this lane.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Path MTU in bytes of IP packet; 0 = unknown.
    pub path_mtu: u16,
    /// Datagrams received.
    pub rx: Traffic,
    /// Datagrams sent.
    pub tx: Traffic,
}

/// What the MAC tables hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MacTable {
    /// At most [`MAX_MAC_ENTRIES`] of them.
    pub entries: Vec<MacEntry>,
    /// Entries left out because of that bound.
    pub omitted: u64,
}

impl MacTable {
    /// Takes the first [`MAX_MAC_ENTRIES`] entries and counts the rest.
    pub fn collect(entries: impl IntoIterator<Item = MacEntry>) -> Self {
        let mut rest = entries.into_iter();
        let entries = rest.by_ref().take(MAX_MAC_ENTRIES).collect();
        Self { entries, omitted: rest.count() as u64 }
    }
}

/// One learnt MAC address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MacEntry {
    /// The network's name.
    pub network: String,
    /// The address, `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// Where it was learnt.
    pub location: Location,
    /// Seconds since it was last heard.
    pub age_s: u64,
    /// How often it changed its location since it was learnt.
    pub moves: u32,
}

/// Where a MAC address lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Location {
    /// On this site's LAN.
    #[default]
    Local,
    /// At another site, by name.
    Site(String),
}

/// One counter since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counter {
    /// What it belongs to: `worker 0`, `peer west-1 lane 1`, `network app`,
    /// `kernel eth1`, `control`.
    pub scope: String,
    /// Its name, snake_case.
    pub name: String,
    /// Its value.
    pub value: u64,
    /// What it counts and what to do about it, in one sentence.
    pub help: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_documented_json() {
        let json = |request: &Request| serde_json::to_string(request).unwrap();
        assert_eq!(json(&Request::Status), r#"{"request":"status"}"#);
        assert_eq!(json(&Request::Macs { network: None }), r#"{"request":"macs"}"#);
        assert_eq!(
            json(&Request::Macs { network: Some("app".into()) }),
            r#"{"request":"macs","network":"app"}"#
        );
    }

    #[test]
    fn states_and_locations_are_snake_case() {
        assert_eq!(serde_json::to_string(&AttachmentState::NoCarrier).unwrap(), r#""no_carrier""#);
        assert_eq!(serde_json::to_string(&Location::Local).unwrap(), r#""local""#);
        assert_eq!(
            serde_json::to_string(&Location::Site("west".into())).unwrap(),
            r#"{"site":"west"}"#
        );
    }

    #[test]
    fn another_versions_status_is_understood() {
        let text = r#"{"group":"g","from_the_future":1,
            "networks":[{"id":7,"attachment":{"kind":"quantum","state":"entangled"}}]}"#;
        let status: Status = serde_json::from_str(text).unwrap();
        let attachment = status.networks[0].attachment.as_ref().unwrap();
        assert_eq!(attachment.kind, AttachmentKind::Unknown);
        assert_eq!(attachment.state, AttachmentState::Unknown);
        assert_eq!(status.networks[0].max_macs, 0);
    }

    #[test]
    fn a_mac_table_is_bounded_and_counts_the_rest() {
        let entries = std::iter::repeat_n(MacEntry::default(), MAX_MAC_ENTRIES + 3);
        let table = MacTable::collect(entries);
        assert_eq!((table.entries.len(), table.omitted), (MAX_MAC_ENTRIES, 3));
    }

    #[test]
    fn the_largest_mac_table_fits_a_response() {
        let longest = MacEntry {
            network: "n".repeat(63),
            mac: "aa:bb:cc:dd:ee:ff".into(),
            location: Location::Site("s".repeat(63)),
            age_s: u64::from(u32::MAX),
            moves: u32::MAX,
        };
        let bytes = serde_json::to_vec(&longest).unwrap().len() as u64 + 1;
        assert!(bytes * MAX_MAC_ENTRIES as u64 + 64 <= MAX_RESPONSE_BYTES, "{bytes} bytes each");
    }
}
