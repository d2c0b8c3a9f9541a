//! Three sites, each with a tunnel to each other one.
//!
//! ```text
//!   host-e ── br-100 ── east-1 ════ router ════ west-1 ── br-100 ── host-w
//!                                     ║
//!                                  north-1 ── br-100 ── host-n
//! ```

use crate::harness::{
    TestPair,
    ask::{status, within},
    can_run,
    frames::{EXPERIMENTAL, frame},
    landbridge_pair,
    probe::Probe,
};
use landbridge::lab::{Namespace, Pair, PairOptions, Process, Side, Veth};
use std::{fs, time::Duration};

/// A site that the pair knows nothing of; the process ends before its namespace goes.
struct North {
    process: Process,
    #[expect(dead_code, reason = "held until dropped")]
    appliance: Namespace,
    host: Namespace,
}

impl North {
    /// Adds the site to the group and starts all three appliances.
    fn join(pair: &mut TestPair) -> Self {
        let appliance = Namespace::new(&pair.run, "north-1").unwrap();
        let host = Namespace::new(&pair.run, "host-n").unwrap();
        let uplink = Veth { namespace: &appliance, interface: "uplink" };
        uplink.connect(Veth { namespace: &pair.router, interface: "north" }, 1500).unwrap();
        pair.router.ip("address add 203.0.113.1/24 dev north").unwrap();
        appliance.ip("address add 203.0.113.11/24 dev uplink").unwrap();
        appliance.ip("route add default via 203.0.113.1").unwrap();
        appliance.add_bridge("br-100", 1500).unwrap();
        let cable = Veth { namespace: &appliance, interface: "port0-0" };
        cable.connect(Veth { namespace: &host, interface: "eth0" }, 1500).unwrap();
        appliance.enslave("port0-0", "br-100").unwrap();
        host.ip("address add 10.0.3.1/16 dev eth0").unwrap();

        let binary = pair.binary(Side::East);
        let key = pair.run.command(&[&binary, "genkey"]).unwrap().success().unwrap().stdout;
        let key_file = pair.run.write("north-1.key", &key).unwrap();
        let public = key.trim().parse::<landbridge::session::PrivateKey>().unwrap().public();
        let group = fs::read_to_string(pair.group_file()).unwrap();
        let site = format!(
            "\n[[site]]\nname = \"north\"\n[[site.appliance]]\nname = \"north-1\"\n\
             public_key = \"{public}\"\nunderlay = [\"203.0.113.11:51840\"]\n"
        );
        let attached = "attach.north = { bridge = \"br-100\" }\nattach.east";
        pair.run.write("group.toml", &(group.replace("attach.east", attached) + &site)).unwrap();
        for side in Side::BOTH {
            pair.start(side).unwrap();
        }
        let [group, key, socket] =
            [pair.group_file(), key_file, pair.run.directory().join("north-1.sock")]
                .map(|path| path.to_string_lossy().into_owned());
        let argv = [&binary, "run", "--group", &group, "--key", &key, "--socket", &socket];
        let process = appliance.spawn(&argv).unwrap();
        Self { process, appliance, host }
    }
}

#[test]
fn three_sites_are_one_lan_without_echo() {
    if !can_run() {
        return;
    }
    let mut pair = landbridge_pair(PairOptions::default());
    let north = North::join(&mut pair);
    pair.wait_for_tunnel().unwrap();
    for host in [pair.host(Side::East), pair.host(Side::West)] {
        within(Pair::TUNNEL_TIMEOUT, "the third site", || {
            let target = host.v4.to_string();
            let output = north.host.exec(&["ping", "-n", "-c", "1", "-W", "0.2", &target]);
            output
                .and_then(|output| output.success())
                .map_err(|error| format!("{error}: {}", north.process.stderr()))
        });
    }
    assert_eq!(status(&pair, Side::East).unwrap().peers.len(), 2);
    let probes = [
        Probe::on(pair.host(Side::East)),
        Probe::on(pair.host(Side::West)),
        Probe::at(&north.host, "eth0"),
    ];
    let patience = Duration::from_secs(5);
    for (index, from) in probes.iter().enumerate() {
        let flooded = |text: &[u8]| {
            frame([0xff; 6], from.mac, &[], EXPERIMENTAL, &[text, &[index as u8]].concat())
        };
        let (first, last) = (flooded(b"once to each"), flooded(b"and then this"));
        let others: Vec<_> = probes.iter().filter(|probe| probe.mac != from.mac).collect();
        from.send(&first);
        for other in &others {
            assert_eq!(other.receive(1, patience, |frame| frame == first).len(), 1);
        }
        from.send(&last);
        for other in &others {
            other.expect_none_before(patience, |frame| frame == first, |frame| frame == last);
        }
        // Had it come back by way of another site, it would have done so before this.
        for other in &others {
            let answer = frame(from.mac, other.mac, &[], EXPERIMENTAL, b"an answer");
            other.send(&answer);
            from.expect_none_before(patience, |frame| frame == first, |frame| frame == answer);
        }
    }
}
