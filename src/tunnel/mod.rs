//! Tunnels: what one lane of a security association does besides carrying
//! records: sessions, paths, path MTU discovery, liveness, roaming.

mod lane;
mod lane_session;
mod path_mtu;
mod statistics;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

pub use lane::{Lane, LaneSink, ReceiveError, SESSIONS_MAX, SendError};
pub use lane_session::SessionParameters;
pub use path_mtu::PathMtu;
pub use statistics::LaneStatistics;
pub(crate) use statistics::add;

/// Which of a lane's two sockets a datagram came by or goes out of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SocketRole {
    /// Bound to the appliance's one well-known port: where peers find it.
    Listener,
    /// Bound to a port of the lane's own: where it opens flows from.
    Dialer,
}

/// How datagrams of a lane reach the peer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Path {
    /// Which socket.
    pub socket: SocketRole,
    /// Source address to use; `None` leaves the choice to the routing table.
    pub local: Option<IpAddr>,
    /// The peer, as seen from here.
    pub remote: SocketAddr,
}

impl Path {
    /// Bytes of IP and UDP header on this path.
    pub fn packet_overhead(&self) -> usize {
        match self.remote.ip().to_canonical() {
            IpAddr::V4(_) => 20 + 8,
            IpAddr::V6(_) => 40 + 8,
        }
    }
}

/// Why the shell could not send.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TransmitError {
    /// Larger than the interface's MTU (EMSGSIZE).
    #[error("datagram larger than the MTU of the outgoing interface")]
    TooBig,
    /// The socket's buffer is full.
    #[error("socket buffer full")]
    Full,
    /// The path's source address is not this host's any more.
    #[error("source address not available")]
    NoSource,
    /// No route, interface down, firewall, refused.
    #[error("network unreachable")]
    Unreachable,
}
