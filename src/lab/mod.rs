//! Hosts, LANs, an underlay and appliances in network namespaces of one
//! machine: the building blocks of `landbridge lab` and of the netns tests.
//!
//! Everything made here is undone by `Drop`: processes are ended by pid, then
//! namespaces are removed, and with them every interface inside. All traffic
//! stays inside the namespaces. What a killed run leaves behind is found again
//! by its name ([`Run::remove_stale`]).
//!
//! It stands on `ip` (iproute2) and `ethtool`, the tools that a network
//! engineer would type, so that an error shows a command that can be repeated.
#![allow(clippy::disallowed_methods)]

mod capture;
mod group;
mod link;
mod namespace;
mod options;
mod pair;
mod ping;
mod process;
mod report;
mod run;
mod standing;
mod tour;
mod transfer;
mod wait;

pub use capture::{Capture, Seen};
pub use link::{MacAddress, Offload, Veth};
pub use namespace::Namespace;
pub use options::{AttachmentKind, Carrier, PairOptions, Side, Underlay};
pub use pair::{Appliance, Host, Pair};
pub use ping::{PingReport, ping};
pub use process::{Output, Process};
pub use report::{Report, Step};
pub use run::{Run, Stale, require_root};
pub use standing::{Member, StandingLab};
pub use tour::{tour, tour_of};
pub use transfer::{MARKER, Transfer, transfer};
pub use wait::{check_interrupt, interrupt_on_signals, wait_until};

use std::{path::PathBuf, time::Duration};

/// What can go wrong while a lab is built or used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum LabError {
    /// The effective user is not root.
    #[error("landbridge lab needs root: it makes network namespaces\n  try: sudo landbridge lab")]
    NotRoot,
    /// A program that the lab stands on is not installed.
    #[error("`{tool}` is not installed\n  try: apt-get install {package}")]
    MissingTool { tool: String, package: String },
    /// A program could not be started.
    #[error("cannot start `{command}`")]
    Start {
        command: String,
        #[source]
        source: std::io::Error,
    },
    /// A program ended with an error.
    #[error("`{command}` failed ({status}): {message}")]
    Command { command: String, status: String, message: String },
    /// A condition did not come true in time.
    #[error("gave up waiting for {what} after {} s; last seen: {last_seen}", .after.as_secs_f32())]
    TimedOut { what: String, after: Duration, last_seen: String },
    /// SIGINT, SIGTERM or SIGHUP arrived.
    #[error("interrupted")]
    Interrupted,
    /// A file of the lab could not be read or written.
    #[error("cannot access {}", .path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A thread could not move into a namespace.
    #[error("cannot enter network namespace {namespace}")]
    Enter {
        namespace: String,
        #[source]
        source: std::io::Error,
    },
    /// Packets could not be captured.
    #[error("cannot capture packets in {namespace}")]
    Capture {
        namespace: String,
        #[source]
        source: std::io::Error,
    },
    /// A TCP transfer broke.
    #[error("TCP transfer to {to}: cannot {step}")]
    Transfer {
        to: std::net::SocketAddr,
        step: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// What arrived over TCP is not what was sent.
    #[error(
        "TCP transfer to {to}: {received} bytes arrived of {sent}, the first wrong one at {wrong_at:?}"
    )]
    Corrupted { to: std::net::SocketAddr, sent: u64, received: u64, wrong_at: Option<u64> },
    /// A program's answer was not understood.
    #[error("`{command}` answered what the lab does not understand: {answer}")]
    Answer { command: String, answer: String },
    /// A lab is up already.
    #[error("a lab is up already\n  try: landbridge lab status, or landbridge lab down")]
    AlreadyUp,
    /// The standing lab has no such namespace.
    #[error("the lab has no `{name}`; it has {names}")]
    NoSuchMember { name: String, names: String },
    /// No lab is up.
    #[error("no lab is up\n  try: landbridge lab up")]
    NotUp,
}

/// What the lab's functions return.
pub type Result<T, E = LabError> = std::result::Result<T, E>;
