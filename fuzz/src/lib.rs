//! Fuzz targets for everything that decodes what others send, and for the whole
//! data and control plane behind an established session. Each target is a plain
//! function: libFuzzer drives it through `fuzz_targets/any.rs`, and `cargo test`
//! runs each over its corpus without libFuzzer.

mod bridge;
mod config;
mod control;
mod input;
mod management;
mod offload;
#[path = "../../benches/support/pair.rs"]
#[allow(dead_code)]
mod pair;
mod peer;
pub mod seeds;
mod session;
mod stream;
mod wire;
mod worker;

/// A named target.
pub struct Target {
    /// Its name, and that of its directory in `corpus/`.
    pub name: &'static str,
    /// Panics where it finds a bug.
    pub run: fn(&[u8]),
}

const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run }
}

/// Every target.
pub const TARGETS: &[Target] = &[
    target("group_file", config::group_file),
    target("datagram", wire::datagram),
    target("record", wire::record),
    target("signal", wire::signal),
    target("ethernet", wire::ethernet),
    target("unpacker", stream::unpacker),
    target("lossy_stream", stream::lossy_stream),
    target("hello", session::hello),
    target("handshake", session::handshake),
    target("virtio", offload::virtio),
    target("segment", offload::segment),
    target("salvage", offload::salvage),
    target("coalesce", offload::coalesce),
    target("underlay_guard", bridge::underlay_guard),
    target("worker", worker::worker),
    target("control", control::control),
    target("management", management::management),
];

/// The target of that name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
