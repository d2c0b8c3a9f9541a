//! The kernel's VXLAN: plaintext, the measure of what a kernel can do.

use super::Carrier;
use crate::{
    settings::Settings,
    topology::{Topology, Wiring},
};
use anyhow::Result;
use landbridge::lab::Process;

pub(super) const CARRIER: Carrier = Carrier {
    name: "vxlan",
    configuration: "`ip link add … type vxlan id 100 local … remote … dstport 4789`, a port of the bridge; \
                    plaintext; it does not fragment, so bridges and hosts have MTU 1450",
    encrypted: false,
    wiring: Wiring::Bridge,
    lan_mtu: 1450,
    missing: |_| None,
    start,
};

fn start(topology: &Topology<'_>, _: &Settings) -> Result<Vec<Process>> {
    for site in topology.sites() {
        let (local, remote) =
            (site.underlay_address(), topology.site(site.side.other()).underlay_address());
        site.appliance.ip(&format!(
            "link add vx0 mtu {} type vxlan id 100 local {local} remote {remote} dstport 4789",
            CARRIER.lan_mtu
        ))?;
        site.join("vx0")?;
    }
    Ok(Vec::new())
}
