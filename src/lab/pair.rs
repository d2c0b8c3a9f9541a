//! Two sites with one appliance each.

use super::{
    LabError, Namespace, Offload, Process, Result, Run, Veth, group::group_file, run::require_tool,
    wait_until,
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

/// Two sites, one appliance each, and a routed underlay between them:
///
/// ```text
///      site east                    underlay                    site west
///  host-e ─┐                                                  ┌─ host-w
///          ├ br-100 ─ east-1 ══════ router ══════ west-1 ─ br-100 ┤
///  host-e2 ┘         192.0.2.11    .1   .1    198.51.100.11   └─ host-w2
/// ```
///
/// Every box is a network namespace. Network `n` has the addresses
/// 10.`n`.0.0/16 and fd00:`n`::/64.
#[derive(Debug)]
pub struct Pair {
    /// East, then west; index with [`Pair::appliance`].
    appliances: [Appliance; 2],
    /// Every host of every network and site.
    pub hosts: Vec<Host>,
    /// The underlay's router, with the interfaces `east` and `west`.
    pub router: Namespace,
    /// What it was built from.
    pub options: PairOptions,
    /// Its names and files; dropped last.
    pub run: Run,
}

/// What a [`Pair`] is made of.
#[derive(Debug, Clone)]
pub struct PairOptions {
    /// MTU of hosts and bridges, in bytes of IP.
    pub lan_mtu: u32,
    /// MTU of both underlay links, in bytes of IP.
    pub underlay_mtu: u32,
    /// What the underlay speaks.
    pub underlay: Underlay,
    /// How each side's appliance meets its LAN.
    pub attachments: [AttachmentKind; 2],
    /// Hosts of each network at each site, at least 1.
    pub hosts_per_site: usize,
    /// Stretched networks, at least 1.
    pub networks: usize,
    /// Lanes in the group file; `None` leaves them to the product.
    pub lanes: Option<u8>,
    /// Whole lines added to the group file's `[group]`.
    pub extra_group_lines: String,
    /// Whole lines added to each `[[network]]`.
    pub extra_network_lines: String,
    /// Added inside of each attachment, with a leading comma.
    pub extra_attachment_fields: String,
    /// What the appliances' underlay links leave to the other end.
    pub underlay_offload: Offload,
    /// What carries frames between the sites.
    pub carrier: Carrier,
}

/// A side of the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Site `east`, appliance `east-1`, hosts `host-e…`.
    East = 0,
    /// Site `west`, appliance `west-1`, hosts `host-w…`.
    West = 1,
}

/// What the underlay speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Underlay {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

/// How an appliance meets its LAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachmentKind {
    /// `bridge = "br-<id>"`, with the hosts on that bridge.
    Bridge,
    /// `tap = "tap-<id>"`; a bridge that Landbridge knows nothing about joins it
    /// with the hosts ([`Pair::join_taps`]).
    Tap,
    /// `nic = "lan<n>"`, cabled straight to one host.
    Nic,
    /// `nic = "lan0", vlan = <id>`: all networks tagged on one NIC, cabled
    /// straight to one host.
    Trunk,
}

/// What carries frames between the sites.
#[derive(Debug, Clone)]
pub enum Carrier {
    /// `landbridge run`; the path of each [`Side`]'s binary.
    Landbridge([PathBuf; 2]),
    /// The kernel's VXLAN, in the clear: to compare with, and to prove that a
    /// test can fail. Wants `Bridge` attachments on a v4 underlay.
    KernelVxlan,
    /// Nothing; a test starts what it wants.
    Nothing,
}

/// An appliance's namespace and what runs in it.
#[derive(Debug)]
pub struct Appliance {
    /// The running binary, if any.
    pub process: Option<Process>,
    /// Where it runs.
    pub namespace: Namespace,
    key_file: PathBuf,
    socket: PathBuf,
    earlier_logs: String,
}

/// A host on a stretched LAN.
#[derive(Debug)]
pub struct Host {
    /// Where it lives; its interface is `eth0`.
    pub namespace: Namespace,
    /// The site it is at.
    pub side: Side,
    /// The network it is in, from 0.
    pub network: usize,
    /// Its IPv4 address, of prefix length 16.
    pub v4: Ipv4Addr,
    /// Its IPv6 address, of prefix length 64.
    pub v6: Ipv6Addr,
}

impl Default for PairOptions {
    fn default() -> Self {
        Self {
            lan_mtu: 1500,
            underlay_mtu: 1500,
            underlay: Underlay::V4,
            attachments: [AttachmentKind::Bridge; 2],
            hosts_per_site: 1,
            networks: 1,
            lanes: None,
            extra_group_lines: String::new(),
            extra_network_lines: String::new(),
            extra_attachment_fields: String::new(),
            underlay_offload: Offload::Default,
            carrier: Carrier::Nothing,
        }
    }
}

impl Carrier {
    /// The same binary on both sides.
    pub fn landbridge(binary: &Path) -> Self {
        Self::Landbridge([binary.to_owned(), binary.to_owned()])
    }
}

impl Side {
    /// East, then west.
    pub const BOTH: [Self; 2] = [Self::East, Self::West];

    /// The site's name.
    pub fn site(self) -> &'static str {
        ["east", "west"][self as usize]
    }

    /// The appliance's name.
    pub fn appliance(self) -> &'static str {
        ["east-1", "west-1"][self as usize]
    }

    /// The side across the underlay.
    pub fn other(self) -> Self {
        [Self::West, Self::East][self as usize]
    }

    fn letter(self) -> char {
        ['e', 'w'][self as usize]
    }
}

impl PairOptions {
    /// UDP port of the appliances.
    pub const PORT: u16 = 51840;

    /// Where the other side reaches `side`'s appliance.
    pub fn endpoint(&self, side: Side) -> SocketAddr {
        SocketAddr::new(self.underlay_address(side, 0x11), Self::PORT)
    }

    fn router_address(&self, side: Side) -> IpAddr {
        self.underlay_address(side, 1)
    }

    fn underlay_address(&self, side: Side, host: u8) -> IpAddr {
        // 0x11 reads as 11 in both notations.
        let decimal = if host == 0x11 { 11 } else { host };
        match (self.underlay, side) {
            (Underlay::V4, Side::East) => Ipv4Addr::new(192, 0, 2, decimal).into(),
            (Underlay::V4, Side::West) => Ipv4Addr::new(198, 51, 100, decimal).into(),
            (Underlay::V6, _) => {
                let site = 0xe + side as u16;
                Ipv6Addr::new(0x2001, 0xdb8, site, 0, 0, 0, 0, host.into()).into()
            }
        }
    }

    fn underlay_prefix_length(&self) -> u8 {
        match self.underlay {
            Underlay::V4 => 24,
            Underlay::V6 => 64,
        }
    }
}

impl Pair {
    /// How long a tunnel may take until a first frame crosses.
    pub const TUNNEL_TIMEOUT: Duration = Duration::from_secs(10);

    /// Builds it all and starts the carrier.
    ///
    /// # Errors
    /// The first step that failed; what was made before is gone again.
    ///
    /// # Panics
    /// If `Nic` or `Trunk` is asked for with more than one host.
    pub fn new(run: Run, options: PairOptions) -> Result<Self> {
        let router = Namespace::new(&run, "router")?;
        router.set("net.ipv4.ip_forward", "1")?;
        router.set("net.ipv6.conf.all.forwarding", "1")?;
        let east = Appliance::new(&run, &router, &options, Side::East)?;
        let west = Appliance::new(&run, &router, &options, Side::West)?;
        let mut pair = Self { run, router, appliances: [east, west], hosts: Vec::new(), options };
        for side in Side::BOTH {
            pair.build_site(side)?;
        }
        match pair.options.carrier {
            Carrier::Nothing => {}
            Carrier::KernelVxlan => pair.connect_by_vxlan()?,
            Carrier::Landbridge(_) => {
                pair.write_group_and_keys()?;
                for side in Side::BOTH {
                    pair.start(side)?;
                }
                pair.join_taps()?;
            }
        }
        Ok(pair)
    }

    /// A side's appliance.
    pub fn appliance(&self, side: Side) -> &Appliance {
        &self.appliances[side as usize]
    }

    /// A side's appliance, to stop it for example.
    pub fn appliance_mut(&mut self, side: Side) -> &mut Appliance {
        &mut self.appliances[side as usize]
    }

    /// The first host of network 0 at a site.
    pub fn host(&self, side: Side) -> &Host {
        self.host_in(side, 0, 0)
    }

    /// Host `number` of `network` at a site, both counted from 0.
    ///
    /// # Panics
    /// If there is none.
    pub fn host_in(&self, side: Side, network: usize, number: usize) -> &Host {
        let mut hosts =
            self.hosts.iter().filter(|host| host.side == side && host.network == network);
        hosts.nth(number).expect("the pair was built with such a host")
    }

    /// Where the group file is.
    pub fn group_file(&self) -> PathBuf {
        self.run.directory().join("group.toml")
    }

    /// Starts (or starts again) a side's appliance.
    ///
    /// # Errors
    /// As for [`Namespace::spawn`].
    ///
    /// # Panics
    /// If the carrier is not Landbridge.
    pub fn start(&mut self, side: Side) -> Result<()> {
        let (binary, group) = (self.binary(side), path_text(&self.group_file()));
        let appliance = &mut self.appliances[side as usize];
        appliance.stop();
        let (key, socket) = (path_text(&appliance.key_file), path_text(&appliance.socket));
        appliance.process = Some(
            appliance
                .namespace
                .spawn(&[&binary, "run", "--group", &group, "--key", &key, "--socket", &socket])?,
        );
        Ok(())
    }

    /// Asks a side's appliance: `landbridge <words> --socket …`.
    ///
    /// # Errors
    /// [`LabError::Command`] with what it said.
    ///
    /// # Panics
    /// If the carrier is not Landbridge.
    pub fn ask(&self, side: Side, words: &str) -> Result<String> {
        let appliance = self.appliance(side);
        let (binary, socket) = (self.binary(side), path_text(&appliance.socket));
        let mut argv = vec![binary.as_str()];
        argv.extend(words.split_whitespace());
        argv.extend(["--socket", &socket]);
        Ok(appliance.namespace.exec(&argv)?.success()?.stdout)
    }

    /// Waits until frames cross: until the first east host of every network gets
    /// an answer from the first west one. Networks on a trunk have no host that
    /// could answer and are not waited for.
    ///
    /// # Errors
    /// [`LabError::TimedOut`] with the last answer of `ping`, or what the
    /// appliance that ended said.
    pub fn wait_for_tunnel(&mut self) -> Result<()> {
        require_tool("ping", "iputils-ping")?;
        if self.options.attachments.contains(&AttachmentKind::Trunk) {
            return Ok(());
        }
        for network in 0..self.options.networks {
            let target = self.host_in(Side::West, network, 0).v4.to_string();
            wait_until("frames to cross", Self::TUNNEL_TIMEOUT, || {
                let from = &self.host_in(Side::East, network, 0).namespace;
                let ping = ["ping", "-n", "-c", "1", "-W", "0.2", &target];
                match from.exec(&ping).and_then(super::Output::success) {
                    Ok(_) => Ok(()),
                    Err(error) => Err(self.ended_appliance().unwrap_or_else(|| error.to_string())),
                }
            })?;
        }
        Ok(())
    }

    /// Makes each TAP of a `Tap` attachment a port of the bridge where the hosts
    /// are, once it appears. To be called again after the appliance was restarted.
    ///
    /// # Errors
    /// [`LabError::TimedOut`] where a TAP doesn't appear.
    pub fn join_taps(&self) -> Result<()> {
        for side in Side::BOTH {
            if self.options.attachments[side as usize] != AttachmentKind::Tap {
                continue;
            }
            let namespace = &self.appliance(side).namespace;
            for network in 0..self.options.networks {
                let (tap, bridge) = (tap_name(network), bridge_name(network));
                wait_until(&format!("{tap} to appear"), Self::TUNNEL_TIMEOUT, || {
                    namespace.enslave(&tap, &bridge).map_err(|error| error.to_string())
                })?;
            }
        }
        Ok(())
    }

    /// Both appliances' logs, to be shown when something failed.
    pub fn logs(&self) -> String {
        let log = |side: Side| {
            format!("--- log of {} ---\n{}", side.appliance(), self.appliance(side).log())
        };
        log(Side::East) + &log(Side::West)
    }

    /// Lets everything outlive this process; `lab down` removes it.
    pub(super) fn leave(mut self) {
        for appliance in &mut self.appliances {
            appliance.namespace.leave();
            if let Some(process) = &mut appliance.process {
                process.leave();
            }
        }
        self.hosts.iter_mut().for_each(|host| host.namespace.leave());
        self.router.leave();
        self.run.leave();
    }

    fn ended_appliance(&mut self) -> Option<String> {
        Side::BOTH.into_iter().find_map(|side| {
            let process = self.appliance_mut(side).process.as_mut()?;
            (!process.is_running())
                .then(|| format!("{} has ended: {}", side.appliance(), process.stderr().trim()))
        })
    }

    fn build_site(&mut self, side: Side) -> Result<()> {
        let kind = self.options.attachments[side as usize];
        let appliance = &self.appliances[side as usize].namespace;
        let bridged = matches!(kind, AttachmentKind::Bridge | AttachmentKind::Tap);
        assert!(bridged || self.options.hosts_per_site == 1, "a NIC is cabled to one host");
        let cabled_networks = if kind == AttachmentKind::Trunk { 1 } else { self.options.networks };
        for network in 0..cabled_networks {
            let bridge = bridge_name(network);
            if bridged {
                appliance.add_bridge(&bridge, self.options.lan_mtu)?;
            }
            for number in 0..self.options.hosts_per_site {
                let host = Host::new(&self.run, side, network, number)?;
                let port =
                    if bridged { format!("port{network}-{number}") } else { nic_name(network) };
                let cable = Veth { namespace: appliance, interface: &port };
                cable.connect(host.veth(), self.options.lan_mtu)?;
                if bridged {
                    appliance.ip(&format!("link set {port} addrgenmode none"))?;
                    appliance.enslave(&port, &bridge)?;
                }
                host.configure()?;
                self.hosts.push(host);
            }
        }
        Ok(())
    }

    fn binary(&self, side: Side) -> String {
        let Carrier::Landbridge(binaries) = &self.options.carrier else {
            panic!("this pair is not carried by Landbridge");
        };
        path_text(&binaries[side as usize])
    }

    fn write_group_and_keys(&self) -> Result<()> {
        let mut public_keys = [String::new(), String::new()];
        for side in Side::BOTH {
            let binary = self.binary(side);
            let key = self.run.command(&[&binary, "genkey"])?.success()?.stdout;
            let name = format!("{}.key", side.appliance());
            let path = path_text(&self.run.write(&name, &key)?);
            // `pubkey` reads standard input; a shell puts the file there.
            let script = "exec \"$0\" pubkey < \"$1\"";
            let public = self.run.command(&["sh", "-c", script, &binary, &path])?.success()?;
            public_keys[side as usize] = public.stdout.trim().to_owned();
        }
        let group = group_file(&self.options, [&public_keys[0], &public_keys[1]]);
        self.run.write("group.toml", &group).map(drop)
    }

    fn connect_by_vxlan(&self) -> Result<()> {
        for side in Side::BOTH {
            let namespace = &self.appliance(side).namespace;
            let (local, remote) =
                (self.options.endpoint(side), self.options.endpoint(side.other()));
            for network in 0..self.options.networks {
                let (id, bridge, mtu) =
                    (network_id(network), bridge_name(network), self.options.lan_mtu);
                let vxlan = format!("vx-{id}");
                namespace.ip(&format!(
                    "link add {vxlan} mtu {mtu} type vxlan id {id} local {} remote {} dstport 4789",
                    local.ip(),
                    remote.ip()
                ))?;
                namespace.ip(&format!("link set {vxlan} master {bridge} up"))?;
            }
        }
        Ok(())
    }
}

impl Appliance {
    fn new(run: &Run, router: &Namespace, options: &PairOptions, side: Side) -> Result<Self> {
        let namespace = Namespace::new(run, side.appliance())?;
        let uplink = Veth { namespace: &namespace, interface: "uplink" };
        uplink.connect(Veth { namespace: router, interface: side.site() }, options.underlay_mtu)?;
        let length = options.underlay_prefix_length();
        let (own, gateway) = (options.endpoint(side).ip(), options.router_address(side));
        namespace.ip(&format!("address add {own}/{length} dev uplink"))?;
        router.ip(&format!("address add {gateway}/{length} dev {}", side.site()))?;
        namespace.ip(&format!("route add default via {gateway}"))?;
        namespace.set_offload("uplink", options.underlay_offload)?;
        Ok(Self {
            process: None,
            namespace,
            key_file: run.directory().join(format!("{}.key", side.appliance())),
            socket: run.directory().join(format!("{}.sock", side.appliance())),
            earlier_logs: String::new(),
        })
    }

    /// Its management socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its private key's file.
    pub fn key_file(&self) -> &Path {
        &self.key_file
    }

    /// Ends it in good order (SIGTERM first).
    pub fn stop(&mut self) {
        self.end(Process::terminate);
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        self.end(Process::kill);
    }

    /// What it logged so far, over all its starts.
    pub fn log(&self) -> String {
        let now = self.process.as_ref().map(|process| process.stdout() + &process.stderr());
        self.earlier_logs.clone() + &now.unwrap_or_default()
    }

    fn end(&mut self, how: impl FnOnce(&mut Process)) {
        if let Some(process) = &mut self.process {
            how(process);
            self.earlier_logs = self.log() + "--- ended ---\n";
            self.process = None;
        }
    }
}

impl Host {
    fn new(run: &Run, side: Side, network: usize, number: usize) -> Result<Self> {
        let mut name = format!("host-{}", side.letter());
        if number > 0 {
            name += &(number + 1).to_string();
        }
        if network > 0 {
            name = format!("{name}-{}", network_name(network));
        }
        let site = side as u8 + 1;
        let (network_byte, host_byte) = (small(network), small(number + 1));
        Ok(Self {
            namespace: Namespace::new(run, &name)?,
            side,
            network,
            v4: Ipv4Addr::new(10, network_byte, site, host_byte),
            v6: Ipv6Addr::new(
                0xfd00,
                network_byte.into(),
                0,
                0,
                0,
                0,
                site.into(),
                host_byte.into(),
            ),
        })
    }

    /// Its interface.
    pub fn veth(&self) -> Veth<'_> {
        Veth { namespace: &self.namespace, interface: "eth0" }
    }

    /// Its name, as in `host-e`.
    pub fn name(&self) -> &str {
        self.namespace.name()
    }

    fn configure(&self) -> Result<()> {
        self.namespace.ip(&format!("address add {}/16 broadcast + dev eth0", self.v4))?;
        self.namespace.ip(&format!("address add {}/64 dev eth0", self.v6))?;
        // Debian's default, and what an application LAN's hosts use; BBR hides loss.
        let key = "net.ipv4.tcp_congestion_control";
        match self.namespace.set(key, "cubic") {
            Err(LabError::File { .. }) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The id of network `network`, counted from 0.
pub(super) fn network_id(network: usize) -> usize {
    100 + network
}

/// The VLAN of network `network` on a trunk.
pub(super) fn vlan_id(network: usize) -> usize {
    network_id(network)
}

pub(super) fn network_name(network: usize) -> String {
    ["app", "db", "voice"].get(network).map_or_else(|| format!("net{network}"), |&n| n.to_owned())
}

pub(super) fn bridge_name(network: usize) -> String {
    format!("br-{}", network_id(network))
}

pub(super) fn tap_name(network: usize) -> String {
    format!("tap-{}", network_id(network))
}

pub(super) fn nic_name(network: usize) -> String {
    format!("lan{network}")
}

fn small(number: usize) -> u8 {
    u8::try_from(number).expect("a lab has fewer than 256 networks and hosts")
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
