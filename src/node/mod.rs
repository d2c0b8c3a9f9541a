//! The sans-I/O whole of an appliance.
//!
//! ```text
//!                 commands: sessions come and go
//!   ControlPlane ────────────────────────────────▶ Worker (one per data thread)
//!    lane 0: handshakes,  ◀──────────────────────   lanes w, w+W, w+2W …
//!    liveness, farewell     events: rekey, roaming  LAN frames ⇄ datagrams
//! ```
//!
//! Neither half has a socket, clock or thread: the shell calls `handle_*`
//! with what arrived and `now`, passes on commands and events, and lends an
//! [`Outlet`] to send with.

mod control;
mod counters;
mod delivery;
mod salvage;
mod worker;

pub use control::{
    ControlEvent, ControlOutlet, ControlPlane, ControlSettings, PeerReport, PeerStanding,
};
pub use counters::{Counter, Counters, CountersByKind};
pub use worker::{NetworkStatistics, Worker, WorkerSettings, WorkerStatistics};

use crate::{
    offload::Offload,
    topology::{PeerIndex, PortIndex},
    tunnel::{Path, SessionParameters, TransmitError},
    wire::ethernet::VlanTag,
};

#[cfg(test)]
mod tests;

/// The way out of the core, lent by the shell.
pub trait Outlet {
    /// Sends a run of datagrams, each of `size` bytes but for the last, which
    /// may be shorter, over `path`.
    ///
    /// # Errors
    /// See [`TransmitError`].
    fn transmit(&mut self, path: &Path, size: usize, datagrams: &[u8])
    -> Result<(), TransmitError>;

    /// Puts a frame onto the LAN at `port`, with `vlan` as its outermost tag. It may
    /// be a superframe that was merged here. The shell may keep it for the end of its burst.
    ///
    /// # Errors
    /// See [`DeliverError`].
    fn deliver(
        &mut self,
        port: PortIndex,
        vlan: Option<VlanTag>,
        offload: &Offload,
        frame: &[u8],
    ) -> Result<(), DeliverError>;
}

/// Why a frame did not get onto the LAN.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DeliverError {
    /// The interface's queue is full.
    #[error("the interface's queue is full")]
    Full,
    /// The descriptor does not fit the frame.
    #[error("the offload descriptor does not fit the frame")]
    InvalidOffload,
    /// Longer than the interface's MTU.
    #[error("longer than the interface's MTU")]
    TooBig,
    /// The interface is missing or down.
    #[error("the attachment is not up")]
    NotUp,
    /// Anything else the kernel said.
    #[error("refused by the kernel")]
    Refused,
}

impl DeliverError {
    /// Where it is counted.
    pub(crate) const fn counter(self) -> Counter {
        match self {
            Self::Full => Counter::LanFull,
            Self::InvalidOffload => Counter::LanInvalidOffload,
            Self::TooBig => Counter::LanTooBig,
            Self::NotUp => Counter::LanNotUp,
            Self::Refused => Counter::LanRefused,
        }
    }
}

/// What the control plane tells the workers.
pub enum WorkerCommand {
    /// A new session's share for one lane.
    Install {
        /// With whom.
        peer: PeerIndex,
        /// For which lane.
        lane: u8,
        /// Keys and names.
        parameters: SessionParameters,
    },
    /// A session is over.
    Remove {
        /// With whom.
        peer: PeerIndex,
        /// This side's name for it.
        local_index: u32,
    },
}

/// What a worker tells the control plane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WorkerEvent {
    /// A lane's key has carried so much that it wants to be replaced.
    RekeyWanted {
        /// With whom.
        peer: PeerIndex,
    },
    /// A lane's path is another one.
    PathChanged {
        /// With whom.
        peer: PeerIndex,
        /// Which lane.
        lane: u8,
        /// Where it sends to now.
        path: Option<Path>,
    },
    /// Own frames came back from the LAN, or own underlay packets came from it.
    Suspicious {
        /// Which.
        counter: Counter,
        /// Where.
        port: PortIndex,
    },
}
