//! Two hosts, two appliances, and the underlay between them.

use crate::{carriers::Carrier, settings::Settings};
use anyhow::{Context, Result};
use landbridge::lab::{LabError, Namespace, Process, Run, Side, Veth, wait_until};
use rustix::thread::CpuSet;
use serde::Serialize;
use std::{fmt, net::Ipv4Addr, path::Path, time::Duration};

/// No router: what is measured is carriers, not the kernel's forwarding.
///
/// ```text
///           site east                                   site west
///  host-e ── br0 ─ appliance-e ══════ veth ══════ appliance-w ─ br0 ── host-w
///  10.0.1.1        192.0.2.1                      192.0.2.2        10.0.2.1
/// ```
///
/// Every box is a network namespace. Where a carrier takes the host's cable
/// itself, there is no bridge.
#[derive(Debug)]
pub(crate) struct Topology<'run> {
    /// East, then west; index with [`Topology::site`].
    sites: [Site; 2],
    pub(crate) run: &'run Run,
}

/// One site: a host, an appliance, and the cores that its programs run on.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) side: Side,
    /// Its interface is `eth0`.
    pub(crate) host: Namespace,
    /// Its interfaces are `lan0` towards the host and `uplink`.
    pub(crate) appliance: Namespace,
    /// `None` where nothing is pinned.
    pub(crate) cores: Option<Cores>,
}

/// How the host reaches its appliance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wiring {
    /// By `br0` in the appliance, which the carrier's TAP joins.
    Bridge,
    /// The carrier serves `lan0` itself.
    Nic,
}

/// What crosses the underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Underlay {
    /// Packets of at most 1500 bytes: TSO, GSO, GRO and UDP segmentation off.
    Real,
    /// Superframes: veth as it is, with GRO on at the receivers.
    Gso,
}

/// Cores by number, the first included and the last not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cores {
    first: usize,
    end: usize,
}

impl<'run> Topology<'run> {
    /// How long a carrier may take until frames cross.
    const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

    /// Builds it all; the carrier is not started yet.
    pub(crate) fn new(
        run: &'run Run,
        settings: &Settings,
        underlay: Underlay,
        carrier: &Carrier,
    ) -> Result<Self> {
        let site = |side| Site::new(run, settings, side, carrier);
        let topology = Self { sites: [site(Side::East)?, site(Side::West)?], run };
        let [east, west] = &topology.sites;
        Veth { namespace: &east.appliance, interface: "uplink" }
            .connect(Veth { namespace: &west.appliance, interface: "uplink" }, 1500)?;
        for site in &topology.sites {
            site.appliance.ip(&format!("address add {}/24 dev uplink", site.underlay_address()))?;
            underlay.apply(&site.appliance)?;
        }
        Ok(topology)
    }

    pub(crate) fn site(&self, side: Side) -> &Site {
        &self.sites[side as usize]
    }

    pub(crate) fn sites(&self) -> &[Site; 2] {
        &self.sites
    }

    /// Waits until the west host answers the east one.
    pub(crate) fn wait_until_connected(&self) -> Result<()> {
        let [east, west] = &self.sites;
        let target = west.host_address().to_string();
        wait_until("frames to cross", Self::CONNECT_TIMEOUT, || {
            let ping = ["ping", "-n", "-q", "-c", "1", "-W", "0.5", &target];
            let answer = east.host.exec(&ping).and_then(landbridge::lab::Output::success);
            answer.map(drop).map_err(|error| error.to_string())
        })?;
        Ok(())
    }
}

impl Site {
    fn new(run: &Run, settings: &Settings, side: Side, carrier: &Carrier) -> Result<Self> {
        let letter = ['e', 'w'][side as usize];
        let site = Self {
            side,
            host: Namespace::new(run, &format!("host-{letter}"))?,
            appliance: Namespace::new(run, &format!("appliance-{letter}"))?,
            cores: settings.splits_cores().then(|| Cores::of(side)),
        };
        let cable = Veth { namespace: &site.appliance, interface: "lan0" };
        cable.connect(Veth { namespace: &site.host, interface: "eth0" }, carrier.lan_mtu)?;
        site.host.ip(&format!("address add {}/16 dev eth0", site.host_address()))?;
        if carrier.wiring == Wiring::Bridge {
            site.appliance.add_bridge("br0", carrier.lan_mtu)?;
            site.appliance.ip("link set lan0 addrgenmode none")?;
            site.appliance.enslave("lan0", "br0")?;
        }
        Ok(site)
    }

    /// The host's address on the stretched LAN.
    pub(crate) fn host_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, self.side as u8 + 1, 1)
    }

    /// The appliance's address on the underlay.
    pub(crate) fn underlay_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, self.side as u8 + 1)
    }

    /// Starts a program in the appliance, on this site's cores.
    pub(crate) fn start_daemon(&self, argv: &[&str]) -> Result<Process> {
        self.spawn(&self.appliance, argv)
    }

    /// Starts a program in the host, on this site's cores.
    pub(crate) fn start_on_host(&self, argv: &[&str]) -> Result<Process> {
        self.spawn(&self.host, argv)
    }

    fn spawn(&self, namespace: &Namespace, argv: &[&str]) -> Result<Process> {
        let cores = self.cores.map(|cores| cores.to_string());
        let mut command = Vec::new();
        if let Some(cores) = &cores {
            command.extend(["taskset", "-c", cores]);
        }
        command.extend(argv);
        Ok(namespace.spawn(&command)?)
    }

    /// Waits for an interface of the appliance to appear, and makes it a port of
    /// the bridge, up.
    pub(crate) fn join(&self, interface: &str) -> Result<()> {
        wait_until(&format!("{interface} to appear"), Duration::from_secs(15), || {
            self.appliance.link(interface).map(drop).map_err(|error| error.to_string())
        })?;
        self.appliance.ip(&format!("link set {interface} up"))?;
        Ok(self.appliance.enslave(interface, "br0")?)
    }

    /// Writes a file of this site into a directory of its own, which is removed
    /// with the run, and returns its path.
    pub(crate) fn write(&self, run: &Run, name: &str, content: &str) -> Result<String> {
        let path = run.write(&format!("{}-{name}", self.side.site()), content)?;
        Ok(text(&path))
    }

    /// Reads a file below /proc/net of the host.
    pub(crate) fn host_proc_net(&self, name: &str) -> Result<String> {
        let path = format!("/proc/thread-self/net/{name}");
        let content = self.host.enter(|| std::fs::read_to_string(&path))?;
        content.with_context(|| format!("cannot read {path}"))
    }
}

impl Underlay {
    fn apply(self, appliance: &Namespace) -> Result<(), LabError> {
        let switches: &[&str] = match self {
            Self::Real => &["tso", "off", "gso", "off", "gro", "off", "tx-udp-segmentation", "off"],
            Self::Gso => &["gro", "on"],
        };
        let command = [&["ethtool", "-K", "uplink"], switches].concat();
        appliance.exec(&command)?.success().map(drop)
    }
}

impl fmt::Display for Underlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Real => "real",
            Self::Gso => "gso",
        })
    }
}

impl Cores {
    /// The lower half of the machine's cores for east, the upper for west; both
    /// share the only core of a machine that has one.
    pub(crate) fn of(side: Side) -> Self {
        let count = machine_cores();
        let half = (count / 2).max(1);
        match side {
            Side::East => Self { first: 0, end: half },
            Side::West if count == 1 => Self { first: 0, end: 1 },
            Side::West => Self { first: half, end: count },
        }
    }

    /// Keeps the calling thread on them.
    pub(crate) fn pin_this_thread(self) -> Result<()> {
        let mut set = CpuSet::new();
        (self.first..self.end).for_each(|core| set.set(core));
        rustix::thread::sched_setaffinity(None, &set).context("cannot pin a thread")
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.end - self.first == 1 {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.end - 1)
        }
    }
}

/// Cores of the machine.
pub(crate) fn machine_cores() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

/// A path for a command line.
pub(crate) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
