//! Against the running kernel, each test in a network namespace of its own
//! that goes with its thread. Skipped where not root, unless
//! `LANDBRIDGE_REQUIRE_ROOT` says that this is a failure.
#![allow(unsafe_code)]
#![allow(clippy::disallowed_methods)]

mod attachments;
mod packet;
mod queues;
mod rates;
mod tcp;

use std::{ffi::CString, process::Command};

/// Runs `test` in a thread with an empty network namespace.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if !is_privileged() {
        return;
    }
    let thread = std::thread::spawn(move || {
        // SAFETY: a namespace of the network is no shared memory or descriptor table.
        let outcome = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(outcome, 0, "unshare: {}", std::io::Error::last_os_error());
        // No router solicitations and reports among the frames that a test counts.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub(super) fn is_privileged() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("LANDBRIDGE_REQUIRE_ROOT").is_none(), "this test needs root");
    eprintln!("skipped: needs root to make a network namespace");
    false
}

/// Runs `ip` in the calling thread's namespace; returns what it prints.
fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output();
    let output = output.expect("iproute2 is installed");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn index_of(interface: &str) -> u32 {
    let name = CString::new(interface).expect("no zero byte");
    // SAFETY: `name` is a C string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0, "no interface {interface}");
    index
}

/// Makes the pair `host` (10.9.0.1, 02:00:00:00:00:01) and `nic`, both up.
fn veth_pair() {
    ip("link add host address 02:00:00:00:00:01 type veth peer name nic");
    address_host("host");
    ip("link set nic up");
    // Until the kernel has noticed both carriers, it drops what is sent without a word.
    let is_up = |device: &str| ip(&format!("-o link show {device}")).contains("state UP");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while !(is_up("host") && is_up("nic")) {
        assert!(std::time::Instant::now() < deadline, "the pair has no carrier");
        std::thread::yield_now();
    }
}

/// Gives a device the host's address and a neighbour that answers to nothing.
fn address_host(device: &str) {
    ip(&format!("link set {device} up"));
    ip(&format!("addr add 10.9.0.1/24 dev {device}"));
    ip(&format!("neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev {device}"));
}
