//! The security layer: who a peer is, and what only it can read.
//!
//! ```text
//!  datagram ─▶ cookie::CookieChecker ─▶ handshake::{Initiator, Responder} ─▶ Established
//!              cheap: mac1, rate,         Noise IKpsk2; payload: hello::Hello     │
//!              cookie under load                                                ▼
//!  datagram ─▶ replay::ReplayWindow ─▶ aead::OpenKey ◀── secrets::SessionSecrets::lane
//! ```
//!
//! No clock, socket or randomness in here: `now` and [`random::Random`] come from
//! the caller. Nothing unauthenticated changes any state beyond a rate counter.
//! Every decoder takes plain bytes and is safe to feed with anything:
//! [`message::HandshakeMessage::parse`], [`hello::Hello::decode`],
//! [`handshake::Responder::read`], [`handshake::Initiator::finish`],
//! [`handshake::Initiator::take_cookie`], [`cookie::CookieChecker::check`].

pub mod aead;
pub mod cookie;
pub mod handshake;
pub mod hello;
pub mod keys;
pub mod message;
mod noise;
pub mod random;
pub mod replay;
mod secrets;

pub use aead::{CipherSet, CipherSuite, OpenError, OpenKey, SealKey, TAG_LENGTH};
pub use cookie::{Admission, Cookie, CookieChecker, CookieError, DropReason};
pub use handshake::{Answer, Established, HandshakeError, Identity, Initiator, Responder};
pub use hello::{Agreed, Disagreement, Hello, LaneCount, SoftwareVersion, VersionRange};
pub use keys::{KeyError, PresharedKey, PrivateKey, PublicKey};
pub use random::Random;
pub use replay::{ReplayError, ReplayWindow, SeenInitiations};
pub use secrets::{LaneKeys, SessionSecrets};
