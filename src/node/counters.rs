use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a frame or datagram was dropped, or what else is worth counting.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Counter {
            $($(#[doc = $help])+ $variant,)+
        }

        impl Counter {
            /// All of them, in the order in which they are shown.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Name for people and scripts, snake case.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it counts and what to do about it.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => concat!($($help),+),)+ }
            }
        }

        const COUNT: usize = [$(Counter::$variant),+].len();
    };
}

counters! {
    /// frames from the LAN that are shorter than an Ethernet header or longer than any record: dropped
    LanLength = "lan_length",
    /// frames from the LAN whose offload header the kernel got wrong or could not express: dropped
    LanOffload = "lan_offload",
    /// reads from the LAN that the kernel refused: see the log
    LanReceive = "lan_receive",
    /// frames from the LAN with a VLAN tag (or none) that no network of the NIC has: not for us
    LanNoNetwork = "lan_no_network",
    /// frames from the LAN for a station on the same LAN: rightly not forwarded
    LanLocalDestination = "lan_local_destination",
    /// own underlay packets that came from the LAN: dropped; the underlay must not run over the stretched network
    LanOwnUnderlay = "lan_own_underlay",
    /// own frames that the LAN sent back: dropped; look for a loop or a reflecting virtual switch
    LanReflected = "lan_reflected",
    /// frames from the LAN of a network that no other site has: dropped
    LanNoRemote = "lan_no_remote",
    /// stations that moved from one site to another: many mean a loop or a duplicate MAC
    MacMoved = "mac_moved",
    /// stations not learned because the network has max_macs already: their frames are flooded
    MacLimit = "mac_limit",
    /// stations not learned because the whole table is full: their frames are flooded
    MacTableFull = "mac_table_full",
    /// frames for a site to which no session is up: dropped
    TunnelDown = "tunnel_down",
    /// datagrams that the outgoing interface found too big: lost once, then smaller ones are sent
    UnderlayTooBig = "underlay_too_big",
    /// datagrams for which the socket buffer had no room: dropped; the uplink is slower than the LAN
    UnderlayFull = "underlay_full",
    /// datagrams for which there was no route, or that a firewall refused: dropped
    UnderlayUnreachable = "underlay_unreachable",
    /// frames not sent because a key was used up before it could be replaced
    KeyUsedUp = "key_used_up",
    /// datagrams that are none of ours: dropped
    DatagramUnknown = "datagram_unknown",
    /// datagrams of a session that is not known (any more), as after a restart: dropped
    DatagramNoSession = "datagram_no_session",
    /// datagrams that were seen before, or came so late that this cannot be told: dropped
    DatagramReplayed = "datagram_replayed",
    /// datagrams that the peer did not seal: forged or damaged, dropped
    DatagramForged = "datagram_forged",
    /// authentic datagrams that make no sense: dropped
    DatagramMalformed = "datagram_malformed",
    /// datagrams that the underlay lost
    StreamMissing = "stream_missing",
    /// datagrams that came after they had been given up for lost: their whole records were used
    StreamLate = "stream_late",
    /// datagrams that waited for an earlier one
    StreamHeld = "stream_held",
    /// frames lost because a datagram that carried a part of them was
    RecordTruncated = "record_truncated",
    /// superframes that lost some of their segments because a datagram was lost: the rest was used
    RecordSalvaged = "record_salvaged",
    /// stream bytes that make no sense: skipped to the next record
    RecordMalformed = "record_malformed",
    /// records of a type that this version does not know: skipped
    RecordUnknown = "record_unknown",
    /// signals of a kind that this version does not know: skipped
    SignalUnknown = "signal_unknown",
    /// signals that make no sense: skipped
    SignalMalformed = "signal_malformed",
    /// frames from a tunnel for a network that is not in this group file: dropped
    NetworkUnknown = "network_unknown",
    /// frames from a tunnel for a network that this site or the sending one is not attached to: dropped
    NetworkNotAttached = "network_not_attached",
    /// frames for the LAN that left together with others of their flow, as superframes: fewer writes
    LanMerged = "lan_merged",
    /// frames for the LAN while its attachment is not up: dropped
    LanNotUp = "lan_not_up",
    /// frames for the LAN that its interface had no room for: dropped
    LanFull = "lan_full",
    /// frames for the LAN that are longer than its MTU: dropped; give the LANs of a network one MTU
    LanTooBig = "lan_too_big",
    /// frames for the LAN whose offload descriptor does not fit them: dropped
    LanInvalidOffload = "lan_invalid_offload",
    /// frames for the LAN that the kernel refused: dropped
    LanRefused = "lan_refused",
    /// handshakes completed
    HandshakeCompleted = "handshake_completed",
    /// handshake messages that make no sense, or whose first check fails: dropped without an answer
    HandshakeInvalid = "handshake_invalid",
    /// handshake messages that do not authenticate: wrong key or preshared key, or forged
    HandshakeForged = "handshake_forged",
    /// handshakes from keys that are not in the group file
    HandshakeUnknownPeer = "handshake_unknown_peer",
    /// first messages that were seen before
    HandshakeReplayed = "handshake_replayed",
    /// handshakes with peers that have no version or cipher in common with this one
    HandshakeIncompatible = "handshake_incompatible",
    /// handshake messages beyond the rate that is answered
    HandshakeRate = "handshake_rate",
    /// cookies sent because handshakes came too fast
    CookieSent = "cookie_sent",
    /// cookies received: the peer is under load
    CookieReceived = "cookie_received",
    /// fields of a handshake that this version does not know: skipped
    HelloUnknownField = "hello_unknown_field",
}

/// A set of counters that one thread writes and any may read.
#[derive(Debug)]
pub struct Counters([AtomicU64; COUNT]);

/// What a [`Counters`] held at one moment.
pub type CountersByKind = Vec<(Counter, u64)>;

impl Default for Counters {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; COUNT])
    }
}

impl Counters {
    /// Counts one.
    #[inline]
    pub fn bump(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Counts `amount`. Only the owning thread may.
    #[inline]
    pub fn add(&self, counter: Counter, amount: u64) {
        crate::tunnel::add(&self.0[counter as usize], amount);
    }

    /// The value of one counter.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize].load(Relaxed)
    }

    /// All values, in the order of [`Counter::ALL`].
    pub fn read(&self) -> CountersByKind {
        Counter::ALL.iter().map(|&counter| (counter, self.get(counter))).collect()
    }
}
