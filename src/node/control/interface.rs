//! What the control plane says to the shell.

use std::{net::SocketAddr, sync::Arc};

use super::PeerStanding;
use crate::{
    node::{Counter, WorkerCommand},
    time::Instant,
    topology::{PeerIndex, PortIndex},
    tunnel::{LaneStatistics, Path, TransmitError},
};

/// What an operator should read in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ControlEvent {
    /// A session is up where there was none.
    PeerUp {
        /// Who.
        peer: PeerIndex,
        /// Where.
        path: Path,
    },
    /// The peer is gone; says why.
    PeerDown {
        /// Who.
        peer: PeerIndex,
        /// Why, for people.
        reason: String,
    },
    /// The peer's process is another one than before.
    PeerRestarted {
        /// Who.
        peer: PeerIndex,
    },
    /// The peer answers, but there is nothing in common.
    PeerIncompatible {
        /// Who.
        peer: PeerIndex,
        /// What is missing, for people.
        reason: String,
    },
    /// The peer's address is another one.
    PeerMoved {
        /// Who.
        peer: PeerIndex,
        /// Where to.
        path: Path,
    },
    /// The peer's group file is another one (or is the same again).
    GroupFile {
        /// Who.
        peer: PeerIndex,
        /// It differs from this appliance's.
        differs: bool,
    },
    /// Handshakes fail to authenticate.
    HandshakeRefused {
        /// From where.
        source: SocketAddr,
        /// Why, for people.
        reason: String,
    },
    /// A worker noticed that the LAN sends own frames or underlay packets.
    Suspicious {
        /// What.
        counter: Counter,
        /// Where.
        port: PortIndex,
    },
}

impl ControlEvent {
    /// The peer that it is about, where there is one.
    pub fn peer(&self) -> Option<PeerIndex> {
        match self {
            Self::PeerUp { peer, .. }
            | Self::PeerDown { peer, .. }
            | Self::PeerRestarted { peer }
            | Self::PeerIncompatible { peer, .. }
            | Self::PeerMoved { peer, .. }
            | Self::GroupFile { peer, .. } => Some(*peer),
            Self::HandshakeRefused { .. } | Self::Suspicious { .. } => None,
        }
    }
}

/// The way out of the control plane, lent by the shell.
pub trait ControlOutlet {
    /// Sends one datagram over `path`, from a socket of the control lane.
    ///
    /// # Errors
    /// See [`TransmitError`].
    fn transmit(&mut self, path: &Path, datagram: &[u8]) -> Result<(), TransmitError>;
    /// Passes a command to the worker with this number. It must reach the
    /// worker before any datagram does that is a consequence of what is
    /// transmitted later.
    fn command(&mut self, worker: u8, command: WorkerCommand);
    /// Tells the operator.
    fn event(&mut self, event: ControlEvent);
}

/// What the status shows of a peer.
#[derive(Clone, Debug)]
pub struct PeerReport {
    /// Who.
    pub peer: PeerIndex,
    /// Where the tunnel stands.
    pub standing: PeerStanding,
    /// Software that it told.
    pub software: String,
    /// Agreed protocol version.
    pub version: Option<u16>,
    /// Agreed cipher.
    pub cipher: Option<crate::session::CipherSuite>,
    /// Agreed number of data lanes.
    pub lanes: Option<u8>,
    /// Its group file differs from this appliance's.
    pub group_differs: bool,
    /// When the newest session was established, be it over by now or not.
    pub established: Option<Instant>,
    /// The control lane's path.
    pub path: Option<Path>,
    /// The control lane's statistics.
    pub statistics: Arc<LaneStatistics>,
}
