//! What an appliance needs, and what it says where it doesn't get it.
//!
//! ```text
//!   host-e ── br-100 or lan0 ── east-1 ════ router ════ west-1 ── br-100 ── host-w
//!                         started in odd ways
//! ```

use crate::harness::{
    TestPair,
    ask::{attachment, eventually, ping_once, within},
    can_run, landbridge_pair,
};
use landbridge::{
    lab::{AttachmentKind, Pair, PairOptions, Process, Side},
    manage::model::AttachmentState,
};
use std::{fs, net::UdpSocket, os::unix::fs::PermissionsExt, time::Duration};

/// An unprivileged user that every Linux has.
const NOBODY: u32 = 65_534;

/// What the appliance says when it can't start; it must end by itself, with an error.
fn last_words(mut process: Process) -> String {
    let output = process.wait(Duration::from_secs(5)).unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", output.stderr);
    output.stderr
}

fn stopped_pair(options: PairOptions) -> TestPair {
    let mut pair = landbridge_pair(options);
    pair.appliance_mut(Side::East).stop();
    pair
}

#[test]
fn a_port_in_use_is_named() {
    if !can_run() {
        return;
    }
    let pair = stopped_pair(PairOptions::default());
    let namespace = &pair.appliance(Side::East).namespace;
    let address = ("0.0.0.0", PairOptions::PORT);
    let _other = namespace.enter(|| UdpSocket::bind(address)).unwrap().unwrap();
    let said = last_words(pair.spawn(Side::East, &[]).unwrap());
    assert!(said.contains("51840 is in use"), "{said}");
}

#[test]
fn a_key_that_is_not_in_the_group_is_refused() {
    if !can_run() {
        return;
    }
    let pair = stopped_pair(PairOptions::default());
    let binary = pair.binary(Side::East);
    let key = pair.run.command(&[&binary, "genkey"]).unwrap().success().unwrap().stdout;
    pair.run.write("east-1.key", &key).unwrap();
    let said = last_words(pair.spawn(Side::East, &[]).unwrap());
    assert!(said.contains("--key") && said.contains("group file"), "{said}");
}

#[test]
fn a_second_appliance_on_one_socket_is_refused() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions::default());
    let said = last_words(pair.spawn(Side::East, &[]).unwrap());
    assert!(said.contains("east-1.sock"), "{said}");
    ping_once(&pair).unwrap();
}

#[test]
fn without_dev_net_tun_the_attachment_says_what_is_missing() {
    if !can_run() {
        return;
    }
    let pair = stopped_pair(PairOptions::default());
    let script = "mount -t tmpfs none /dev/net && exec \"$0\" \"$@\"";
    let _process = pair.spawn(Side::East, &["unshare", "--mount", "sh", "-c", script]).unwrap();
    let attachment = eventually("the attachment to fail", || {
        let attachment = attachment(&pair, Side::East)?;
        match attachment.state {
            AttachmentState::Failed => Ok(attachment),
            _ => Err(format!("{attachment:?}")),
        }
    });
    assert!(attachment.reason.contains("/dev/net/tun"), "{}", attachment.reason);
}

#[test]
fn clocks_may_differ_by_years() {
    if !can_run() {
        return;
    }
    let pair = stopped_pair(PairOptions::default());
    let years = "94608000";
    let through = [
        "unshare",
        "--time",
        "--monotonic",
        years,
        "--boottime",
        years,
        "--fork",
        "--kill-child=SIGKILL",
    ];
    let process = pair.spawn(Side::East, &through).unwrap();
    within(Pair::TUNNEL_TIMEOUT, "the tunnel", || {
        ping_once(&pair).map_err(|error| error + &process.stderr())
    });
}

/// A directory that `nobody` may use, with what an appliance of its own needs, as
/// the service manager makes one.
fn belongings_of_nobody(pair: &TestPair) -> tempfile::TempDir {
    let directory = tempfile::Builder::new().prefix("landbridge-").tempdir().unwrap();
    let path = directory.path();
    // By a process of its own: what another test's thread forks meanwhile would
    // hold the file open for writing, and nobody could run it (ETXTBSY).
    let binary = path.join("landbridge").to_string_lossy().into_owned();
    pair.run.command(&["cp", &pair.binary(Side::East), &binary]).unwrap().success().unwrap();
    fs::copy(pair.group_file(), path.join("group.toml")).unwrap();
    fs::copy(pair.appliance(Side::East).key_file(), path.join("key")).unwrap();
    for name in ["", "group.toml", "key"] {
        let path = path.join(name);
        std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    fs::set_permissions(path.join("landbridge"), fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

/// Runs the east appliance as `nobody`, with the capabilities `kept` (`setpriv`'s
/// notation) and no way to more.
fn spawn_as_nobody(pair: &TestPair, directory: &std::path::Path, kept: &str) -> Process {
    let file = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let user = NOBODY.to_string();
    let [binary, group, key, socket] = ["landbridge", "group.toml", "key", "sock"].map(file);
    // The device as udev makes it; a container's may be for root alone.
    let script = "mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200 && \
                  exec \"$0\" \"$@\"";
    let argv = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        script,
        "setpriv",
        "--reuid",
        &user,
        "--regid",
        &user,
        "--clear-groups",
        "--no-new-privs",
        "--inh-caps",
        kept,
        "--ambient-caps",
        kept,
        "--bounding-set",
        kept,
        &binary,
        "run",
        "--group",
        &group,
        "--key",
        &key,
        "--socket",
        &socket,
    ];
    pair.appliance(Side::East).namespace.spawn(&argv).unwrap()
}

#[test]
fn two_capabilities_suffice() {
    const KEPT: &str = "-all,+net_admin,+net_raw";
    for kind in [AttachmentKind::Bridge, AttachmentKind::Tap, AttachmentKind::Nic] {
        if !can_run() {
            return;
        }
        // CAP_NET_ADMIN is bit 12, CAP_NET_RAW bit 13 (capability.h).
        let said = runs_with(KEPT, "0000000000003000", kind);
        let restriction = fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled").unwrap();
        let lacks_bpf = restriction.trim() != "0" && kind != AttachmentKind::Nic;
        assert_eq!(said.contains("grant CAP_BPF"), lacks_bpf, "{said}");
    }
}

#[test]
fn a_third_lets_a_tap_choose_its_queues() {
    if !can_run() {
        return;
    }
    // CAP_BPF is bit 39.
    let kept = "-all,+net_admin,+net_raw,+bpf";
    let said = runs_with(kept, "0000008000003000", AttachmentKind::Bridge);
    assert!(!said.contains("WARN"), "{said}");
}

/// Starts the east appliance on two lanes with these capabilities, `kept` and as `/proc`
/// shows them, waits for frames to cross, and returns what it said.
fn runs_with(kept: &str, effective: &str, kind: AttachmentKind) -> String {
    let pair = stopped_pair(PairOptions {
        attachments: [kind, AttachmentKind::Bridge],
        lanes: Some(2),
        ..PairOptions::default()
    });
    let directory = belongings_of_nobody(&pair);
    let process = spawn_as_nobody(&pair, directory.path(), kept);
    pair.join_taps().unwrap();
    within(Pair::TUNNEL_TIMEOUT, "the tunnel", || {
        ping_once(&pair).map_err(|error| error + &process.stderr())
    });
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    assert!(status.contains(&format!("Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}")), "{status}");
    assert!(status.contains(&format!("CapEff:\t{effective}")), "{status}");
    process.stdout() + &process.stderr()
}

#[test]
fn without_privilege_it_says_so() {
    if !can_run() {
        return;
    }
    for kind in [AttachmentKind::Bridge, AttachmentKind::Nic] {
        let pair = stopped_pair(PairOptions {
            attachments: [kind, AttachmentKind::Bridge],
            ..PairOptions::default()
        });
        let directory = belongings_of_nobody(&pair);
        let process = spawn_as_nobody(&pair, directory.path(), "-all");
        eventually("the missing privilege to be named", || {
            let said = process.stderr();
            if said.contains("CAP_NET") { Ok(()) } else { Err(said) }
        });
    }
}
