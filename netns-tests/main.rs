//! The shipped binary between real hosts, in network namespaces.
//!
//! Every test builds its own topology, drawn at the top of its file, with names
//! of its own, and everything is gone when it ends, also by a panic. Without
//! root a test says that it was skipped; with `LANDBRIDGE_REQUIRE_ROOT=1` that is
//! a failure.
#![allow(clippy::disallowed_methods)]

mod attachments;
mod coalescing;
mod ethernet;
mod first_contact;
mod handshakes;
mod harness;
mod harness_check;
mod hostile;
mod integrity;
mod isolation;
mod lanes;
mod macs;
mod memory;
mod observation;
mod path_mtu;
mod rekey;
mod restart;
mod roaming;
mod sites;
mod soak;
mod startup;
mod underlay;
mod versions;
