//! Whether this host can run an appliance.

use std::{
    fs::{self, OpenOptions},
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::{Finding, virtualisation};
use crate::{
    config::{Appliance, AttachmentKind, Group, InterfaceName, Network},
    manage::socket,
    topology::SiteIndex,
};

/// Bits of `CapEff` (`include/uapi/linux/capability.h`).
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;

/// Receive buffer that a burst at full rate needs, in bytes.
const WANTED_RECEIVE_BUFFER_BYTES: u64 = 4 << 20;

/// Checks everything that the appliance needs here.
pub fn check(group: &Group, site: SiteIndex, appliance: &Appliance, findings: &mut Vec<Finding>) {
    let kinds: Vec<(&Network, &AttachmentKind)> = group
        .networks
        .iter()
        .filter_map(|network| Some((network, &network.attachment(site)?.kind)))
        .collect();
    let has_tap = kinds.iter().any(|(_, kind)| !matches!(kind, AttachmentKind::Nic { .. }));
    let has_nic = kinds.iter().any(|(_, kind)| matches!(kind, AttachmentKind::Nic { .. }));
    let shares_lan = kinds.iter().any(|(_, kind)| !matches!(kind, AttachmentKind::Tap { .. }));

    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = effective_capabilities(&status).unwrap_or(0);
    findings.push(capability(capabilities, CAP_NET_ADMIN, "CAP_NET_ADMIN"));
    if has_nic {
        findings.push(capability(capabilities, CAP_NET_RAW, "CAP_NET_RAW"));
    }
    if has_tap {
        findings.push(tun_device(Path::new("/dev/net/tun")));
        let restriction = fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled");
        findings.extend(steering(restriction.is_ok_and(|text| text.trim() != "0"), capabilities));
    }
    let running = is_running(&appliance.name);
    let interfaces = Interfaces(PathBuf::from("/sys/class/net"));
    for (network, kind) in &kinds {
        findings.extend(interfaces.check(&network.name, kind, running));
    }
    if kinds.is_empty() {
        findings.push(Finding::warning(
            "no network is attached at this site",
            "add `attach.SITE` to a [[network]]",
        ));
    }
    findings.push(port(appliance.listen, running));
    findings.extend(underlay(appliance));
    let maximum = fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap_or_default();
    findings.push(receive_buffer(maximum.trim().parse().unwrap_or(0), capabilities));
    findings.push(aes());
    if shares_lan {
        findings.extend(virtualisation::hints(&virtualisation::Facts::gather(Path::new("/"))));
    }
}

/// Who may read a file with a secret; its text was read already.
pub fn secret_file(what: &str, path: &Path) -> Finding {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.permissions().mode() & 0o077 != 0 => {
            Finding::warning(
                format!("the {what} {shown} can be read by others than its owner"),
                format!("chmod 600 {shown}"),
            )
        }
        _ => Finding::ok(format!("the {what} {shown} is good")),
    }
}

/// The `CapEff` line of `/proc/PID/status` (proc_pid_status(5)).
fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn capability(effective: u64, bit: u32, name: &str) -> Finding {
    if effective & (1 << bit) != 0 {
        return Finding::ok(format!("{name} is there"));
    }
    Finding::error(
        format!("{name} is missing: `landbridge run` needs it"),
        "run this check and landbridge as root, or with the systemd unit, which grants it",
    )
}

/// Whether a TAP's queues can be chosen by flow (bpf(2)).
fn steering(is_restricted: bool, effective: u64) -> Option<Finding> {
    if !is_restricted || effective & (1 << CAP_BPF | 1 << CAP_SYS_ADMIN) != 0 {
        return None;
    }
    Some(Finding::warning(
        "CAP_BPF is missing: with several lanes, a flow from a TAP may be reordered now and then",
        "grant it, as the systemd unit does, or set `lanes = 1`",
    ))
}

fn tun_device(path: &Path) -> Finding {
    let shown = path.display();
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Finding::ok(format!("{shown} can be opened")),
        Err(error) if error.kind() == ErrorKind::NotFound => Finding::error(
            format!("{shown} is not there: no TAP can be made"),
            "modprobe tun; in a container, pass the device in (docker run --device /dev/net/tun)",
        ),
        Err(error) => Finding::error(
            format!("{shown} can't be opened: {error}"),
            "run as root; modprobe tun; in a container, allow the device",
        ),
    }
}

/// Whether an appliance of this name answers on its management socket.
fn is_running(appliance: &str) -> bool {
    std::os::unix::net::UnixStream::connect(socket::default_path(appliance)).is_ok()
}

/// `/sys/class/net`, or what stands for it in a test.
struct Interfaces(PathBuf);

impl Interfaces {
    fn check(&self, network: &str, kind: &AttachmentKind, running: bool) -> Vec<Finding> {
        match kind {
            AttachmentKind::Bridge { bridge, tap } => {
                vec![self.bridge(network, bridge), self.tap(network, tap, running)]
            }
            AttachmentKind::Tap { tap, .. } => vec![self.tap(network, tap, running)],
            AttachmentKind::Nic { nic, .. } => self.nic(network, nic),
        }
    }

    fn bridge(&self, network: &str, bridge: &InterfaceName) -> Finding {
        if !self.exists(bridge) {
            return Finding::warning(
                format!("network {network}: bridge {bridge} is not there; it is waited for"),
                format!("ip link add {bridge} type bridge && ip link set {bridge} up"),
            );
        }
        if !self.has(bridge, "bridge") {
            return Finding::error(
                format!("network {network}: {bridge} is no bridge"),
                format!(
                    "attach it as {{ nic = \"{bridge}\" }}, or name a bridge: ip link show type bridge"
                ),
            );
        }
        self.up(network, "bridge", bridge)
    }

    fn nic(&self, network: &str, nic: &InterfaceName) -> Vec<Finding> {
        if !self.exists(nic) {
            return vec![Finding::warning(
                format!("network {network}: interface {nic} is not there; it is waited for"),
                "ip link show",
            )];
        }
        let mut findings = vec![self.up(network, "interface", nic)];
        if self.has(nic, "bridge") {
            findings.push(Finding::warning(
                format!("network {network}: {nic} is a bridge, attached as a NIC"),
                format!("attach it as {{ bridge = \"{nic}\" }}"),
            ));
        } else if self.has(nic, "brport") {
            findings.push(Finding::warning(
                format!(
                    "network {network}: {nic} is a port of a bridge, which sees its frames, too"
                ),
                "attach the bridge instead, or take the port out: ip link set IFACE nomaster",
            ));
        }
        if self.read(nic, "type").is_some_and(|kind| kind != ARPHRD_ETHER) {
            findings.push(Finding::error(
                format!("network {network}: {nic} is no Ethernet interface"),
                "ip link show",
            ));
        }
        findings
    }

    /// The TAP that is going to be made.
    fn tap(&self, network: &str, tap: &InterfaceName, running: bool) -> Finding {
        if !self.exists(tap) {
            return Finding::ok(format!("network {network}: the name {tap} is free for the TAP"));
        }
        if running {
            return Finding::ok(format!("network {network}: TAP {tap} is there"));
        }
        if self.has(tap, "tun_flags") {
            return Finding::warning(
                format!("network {network}: TAP {tap} is there, but no appliance runs"),
                format!("if nothing else uses it: ip link delete {tap}"),
            );
        }
        Finding::error(
            format!("network {network}: {tap} is there and is no TAP"),
            "choose another name with `tap` in the attachment",
        )
    }

    fn up(&self, network: &str, what: &str, name: &InterfaceName) -> Finding {
        let mtu = self.read(name, "mtu").unwrap_or_else(|| "?".into());
        let flags = self.read(name, "flags");
        let flags =
            flags.and_then(|text| u32::from_str_radix(text.trim_start_matches("0x"), 16).ok());
        if flags.is_some_and(|flags| flags & IFF_UP == 0) {
            return Finding::warning(
                format!("network {network}: {what} {name} is down (MTU {mtu})"),
                format!("ip link set {name} up"),
            );
        }
        // Reading the carrier of an interface that is down fails; it is up here.
        if self.read(name, "carrier").is_some_and(|carrier| carrier == "0") {
            return Finding::warning(
                format!("network {network}: {what} {name} has no carrier (MTU {mtu})"),
                "plug the cable in, or give the bridge a port that is up",
            );
        }
        Finding::ok(format!("network {network}: {what} {name} is up (MTU {mtu})"))
    }

    fn exists(&self, name: &InterfaceName) -> bool {
        self.0.join(name.as_str()).exists()
    }

    fn has(&self, name: &InterfaceName, entry: &str) -> bool {
        self.0.join(name.as_str()).join(entry).exists()
    }

    fn read(&self, name: &InterfaceName, entry: &str) -> Option<String> {
        let text = fs::read_to_string(self.0.join(name.as_str()).join(entry)).ok()?;
        Some(text.trim().to_owned())
    }
}

/// `IFF_UP` (`include/uapi/linux/if.h`).
const IFF_UP: u32 = 1;

/// `ARPHRD_ETHER` (`include/uapi/linux/if_arp.h`) as sysfs prints it.
const ARPHRD_ETHER: &str = "1";

fn port(listen: SocketAddr, running: bool) -> Finding {
    match UdpSocket::bind(listen) {
        Ok(_) => Finding::ok(format!("UDP {listen} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse && running => {
            Finding::ok(format!("UDP {listen} is in use: the appliance runs"))
        }
        Err(error) if error.kind() == ErrorKind::AddrInUse => Finding::error(
            format!("UDP {listen} is in use by another program"),
            format!("ss -ulpn sport = :{}", listen.port()),
        ),
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => Finding::error(
            format!("this host doesn't have the address of `listen`, {listen}"),
            "ip address show; leave `listen` out to take every address",
        ),
        Err(error) => Finding::error(
            format!("UDP {listen} can't be bound: {error}"),
            format!("without IPv6 on the host: listen = \"0.0.0.0:{}\"", listen.port()),
        ),
    }
}

/// Whether the host has the addresses at which others reach it: if not, it is
/// behind NAT, or it has another appliance's key.
fn underlay(appliance: &Appliance) -> Option<Finding> {
    let mine = |address: &&SocketAddr| UdpSocket::bind((address.ip(), 0)).is_ok();
    if appliance.underlay.iter().any(|address| mine(&address)) {
        return None;
    }
    let addresses: Vec<String> = appliance.underlay.iter().map(ToString::to_string).collect();
    Some(Finding::hint(
        format!("this host has no address of `underlay` ({})", addresses.join(", ")),
        format!(
            "behind NAT that is right: forward the UDP port to {}; else: is this the key of another \
             appliance?",
            appliance.listen
        ),
    ))
}

fn receive_buffer(maximum: u64, capabilities: u64) -> Finding {
    if maximum >= WANTED_RECEIVE_BUFFER_BYTES {
        return Finding::ok(format!("receive buffers may have {maximum} bytes"));
    }
    if capabilities & (1 << CAP_NET_ADMIN) != 0 {
        return Finding::ok("receive buffers are enlarged by privilege (SO_RCVBUFFORCE)");
    }
    Finding::warning(
        format!("receive buffers are limited to {maximum} bytes: bursts may be lost"),
        format!("sysctl -w net.core.rmem_max={WANTED_RECEIVE_BUFFER_BYTES}"),
    )
}

fn aes() -> Finding {
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    let present =
        std::is_x86_feature_detected!("aes") && std::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    let present = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
    let present = false;
    if present {
        return Finding::ok("the processor has AES instructions");
    }
    Finding::warning(
        "no AES instructions: ChaCha20-Poly1305 is used, at about a third of the speed",
        "in a virtual machine, choose the host's processor model",
    )
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};

    fn interfaces(entries: &[(&str, &str)]) -> (tempfile::TempDir, Interfaces) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in entries {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let interfaces = Interfaces(root.path().to_owned());
        (root, interfaces)
    }

    fn levels(findings: &[Finding]) -> Vec<Level> {
        findings.iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn interfaces_as_sysfs_shows_them() {
        let (_root, sysfs) = interfaces(&[
            ("br0/bridge/stp_state", "0"),
            ("br0/flags", "0x1003\n"),
            ("br0/mtu", "1500\n"),
            ("br0/carrier", "1\n"),
            ("br0/type", "1\n"),
            ("eth1/flags", "0x1002\n"),
            ("eth1/type", "1\n"),
            ("eth2/flags", "0x1003\n"),
            ("eth2/carrier", "0\n"),
            ("eth2/brport/state", "3\n"),
            ("lo/type", "772\n"),
            ("tap0/tun_flags", "0x1002\n"),
        ]);
        let name = |text: &str| text.parse::<InterfaceName>().unwrap();
        assert!(sysfs.bridge("n", &name("br0")).message.ends_with("br0 is up (MTU 1500)"));
        assert_eq!(sysfs.bridge("n", &name("eth1")).level, Level::Error);
        assert_eq!(sysfs.bridge("n", &name("br9")).level, Level::Warning);
        assert_eq!(levels(&sysfs.nic("n", &name("eth1"))), [Level::Warning]);
        assert_eq!(levels(&sysfs.nic("n", &name("eth2"))), [Level::Warning, Level::Warning]);
        assert_eq!(levels(&sysfs.nic("n", &name("lo"))), [Level::Ok, Level::Error]);
        assert_eq!(levels(&sysfs.nic("n", &name("br0"))), [Level::Ok, Level::Warning]);
        assert_eq!(sysfs.tap("n", &name("tap0"), true).level, Level::Ok);
        assert_eq!(sysfs.tap("n", &name("tap0"), false).level, Level::Warning);
        assert_eq!(sysfs.tap("n", &name("eth1"), false).level, Level::Error);
        assert_eq!(sysfs.tap("n", &name("lb-1"), false).level, Level::Ok);
    }

    #[test]
    fn capabilities_of_a_process() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t0000000000001000\n";
        let effective = effective_capabilities(status).unwrap();
        assert_eq!(capability(effective, CAP_NET_ADMIN, "A").level, Level::Ok);
        assert_eq!(capability(effective, CAP_NET_RAW, "B").level, Level::Error);
        assert_eq!(effective_capabilities("CapEff: x"), None);
        assert_eq!(steering(true, effective).map(|finding| finding.level), Some(Level::Warning));
        for (is_restricted, capabilities) in [(false, 0), (true, 1 << 39), (true, 1 << 21)] {
            assert!(steering(is_restricted, capabilities).is_none());
        }
        assert_eq!(receive_buffer(212_992, effective).level, Level::Ok);
        assert_eq!(receive_buffer(212_992, 0).level, Level::Warning);
        assert_eq!(receive_buffer(WANTED_RECEIVE_BUFFER_BYTES, 0).level, Level::Ok);
    }

    #[test]
    fn ports() {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(port(address, false).level, Level::Error);
        assert_eq!(port(address, true).level, Level::Ok);
        let foreign = port("192.0.2.1:51840".parse().unwrap(), false);
        assert!(foreign.message.contains("doesn't have the address"), "{foreign:?}");
    }

    #[test]
    fn secrets_that_others_can_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(secret_file("key", file.path()).level, Level::Ok);
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(secret_file("key", file.path()).level, Level::Warning);
        assert_eq!(tun_device(Path::new("/nonexistent/tun")).level, Level::Error);
    }
}
