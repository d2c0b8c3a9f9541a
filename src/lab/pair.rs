//! Two sites with one appliance each.

use super::{
    AttachmentKind, Carrier, LabError, Namespace, PairOptions, Process, Result, Run, Side, Veth,
    group::group_file,
    options::{bridge_name, network_id, network_name, nic_name, tap_name},
    run::require_tool,
    wait_until,
};
use std::{
    net::{Ipv4Addr, Ipv6Addr},
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
        self.appliance_mut(side).stop();
        let process = self.spawn(side, &[])?;
        self.appliance_mut(side).process = Some(process);
        Ok(())
    }

    /// Starts `landbridge run` for a side, by way of the command `through` (such
    /// as `setpriv`), and leaves the process to the caller.
    ///
    /// # Errors
    /// As for [`Namespace::spawn`].
    ///
    /// # Panics
    /// If the carrier is not Landbridge.
    pub fn spawn(&self, side: Side, through: &[&str]) -> Result<Process> {
        let (binary, group) = (self.binary(side), path_text(&self.group_file()));
        let appliance = self.appliance(side);
        let (key, socket) = (path_text(&appliance.key_file), path_text(&appliance.socket));
        let run = [&binary, "run", "--group", &group, "--key", &key, "--socket", &socket];
        appliance.namespace.spawn(&[through, &run[..]].concat())
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
    /// could answer and are not waited for, and without a carrier there is nothing to
    /// wait for.
    ///
    /// # Errors
    /// [`LabError::TimedOut`] with the last answer of `ping`, or what the
    /// appliance that ended said.
    pub fn wait_for_tunnel(&mut self) -> Result<()> {
        require_tool("ping", "iputils-ping")?;
        if matches!(self.options.carrier, Carrier::Nothing) {
            return Ok(());
        }
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

    /// A side's binary.
    ///
    /// # Panics
    /// If the carrier is not Landbridge.
    pub fn binary(&self, side: Side) -> String {
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

fn small(number: usize) -> u8 {
    u8::try_from(number).expect("a lab has fewer than 256 networks and hosts")
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
