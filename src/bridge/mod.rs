//! What a bridge knows and decides: where each MAC lives ([`fdb`]), where a
//! frame goes ([`forwarding`]), and which frames from the LAN must not cross
//! although a LAN delivered them ([`reflection`], [`underlay_guard`]).
//!
//! Nothing here counts or logs: every outcome is a return value, which the
//! caller counts.

pub mod fdb;
pub mod forwarding;
mod headers;
pub mod reflection;
pub mod underlay_guard;
