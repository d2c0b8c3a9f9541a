//! The security layer: who a peer is, and what only it can read.

pub mod aead;
pub mod keys;
pub mod random;
pub mod replay;
