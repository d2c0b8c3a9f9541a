//! A VLAN interface for a host by hand, for kernels without 802.1Q:
//!
//! ```text
//!   IP stack ── vlan0 (TAP) ── [two threads: tag in, tag out] ── eth0
//! ```

use super::{frames::C_TAG, packet::PacketSocket};
use landbridge::lab::Host;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// The running interface; dropping it removes it.
pub(crate) struct TaggedInterface<'a> {
    host: &'a Host,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

const INTERFACE: &str = "vlan0";
/// Priority 1, VLAN 100.
const TAG: [u8; 4] = [0x81, 0x00, 0x20, 0x64];

impl<'a> TaggedInterface<'a> {
    /// The addresses that [`Self::new`] gives to a side's host, IPv4 and IPv6.
    pub(crate) fn addresses(host: &Host) -> [IpAddr; 2] {
        let site = host.side as u8 + 1;
        let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, site.into());
        [Ipv4Addr::new(10, 77, 0, site).into(), v6.into()]
    }

    pub(crate) fn new(host: &'a Host, mtu: u32) -> Self {
        let namespace = &host.namespace;
        let open = || tun_tap::Iface::without_packet_info(INTERFACE, tun_tap::Mode::Tap);
        let tap = Arc::new(namespace.enter(open).unwrap().unwrap());
        let [v4, v6] = Self::addresses(host);
        namespace.ip(&format!("address add {v4}/24 dev {INTERFACE}")).unwrap();
        namespace.ip(&format!("address add {v6}/64 dev {INTERFACE}")).unwrap();
        namespace.ip(&format!("link set {INTERFACE} mtu {mtu} txqueuelen 10000 up")).unwrap();
        let index = namespace.link("eth0").unwrap()["ifindex"].as_i64().unwrap() as i32;
        let cable = Arc::new(namespace.enter(|| PacketSocket::open(index)).unwrap().unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let outward = {
            let (tap, cable, stop) = (Arc::clone(&tap), Arc::clone(&cable), Arc::clone(&stop));
            thread::spawn(move || send_tagged(&tap, &cable, &stop))
        };
        let inward = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || receive_untagged(&tap, &cable, &stop))
        };
        Self { host, stop, threads: vec![outward, inward] }
    }
}

impl Drop for TaggedInterface<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        // `recv` fails once the interface is gone.
        let _ = self.host.namespace.ip(&format!("link del {INTERFACE}"));
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn send_tagged(tap: &tun_tap::Iface, cable: &PacketSocket, stop: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    while !stop.load(Relaxed) {
        let Ok(length) = tap.recv(&mut buffer) else {
            // Before it is up, and once it is gone.
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        let tagged = [&buffer[..12], &TAG, &buffer[12..length]].concat();
        // A full queue of the cable loses frames as any NIC does, and counts them.
        let _ = cable.send(&tagged);
    }
}

fn receive_untagged(tap: &tun_tap::Iface, cable: &PacketSocket, stop: &AtomicBool) {
    while !stop.load(Relaxed) {
        let Ok(Some(mut frame)) = cable.receive(Duration::from_millis(20)) else { continue };
        if frame.get(12..14) == Some(&C_TAG.to_be_bytes()) && frame.get(14..16) == Some(&TAG[2..]) {
            frame.drain(12..16);
            let _ = tap.send(&frame);
        }
    }
}
