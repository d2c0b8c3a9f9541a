//! The attachment manager against real bridges, TAPs and NICs.

use std::{fs, net::UdpSocket, time::Duration};

use super::{in_namespace, ip, veth_pair};
use crate::{
    io::lan::{
        AttachmentEvent, AttachmentKind, AttachmentManager, AttachmentSpec, AttachmentState,
        AttachmentStatus, FRAME_BUFFER_LENGTH, LanQueue, Reason,
        links::Link,
        netlink::{Interfaces, Monitor},
    },
    offload::Offload,
    topology::PortIndex,
    wire::ethernet::MacAddr,
};

const PATIENCE: Duration = Duration::from_secs(8);
const PORT: PortIndex = PortIndex(4);

/// A manager with one attachment, and a second look at the interfaces.
struct Stage {
    manager: AttachmentManager,
    interfaces: Interfaces,
    _monitor: Monitor,
}

/// An [`AttachmentEvent::Up`].
#[derive(Debug)]
struct Up {
    queues: Vec<LanQueue>,
    mtu: u32,
    obstacle: Option<Reason>,
}

impl Stage {
    async fn new(kind: AttachmentKind, offload: bool, queues: usize) -> Self {
        let spec = AttachmentSpec { port: PORT, kind, offload, queues };
        let manager = AttachmentManager::new(vec![spec], "east-1").await.expect("a manager");
        let (interfaces, _monitor) = Monitor::open().expect("netlink");
        Self { manager, interfaces, _monitor }
    }

    async fn event(&mut self) -> AttachmentEvent {
        let event = tokio::time::timeout(PATIENCE, self.manager.next_event()).await;
        let status = self.manager.status();
        event.unwrap_or_else(|_| panic!("nothing happens: {status:?}")).expect("a running manager")
    }

    async fn up(&mut self) -> Up {
        match self.event().await {
            AttachmentEvent::Up { port: PORT, queues, mtu, obstacle, .. } => {
                Up { queues, mtu, obstacle }
            }
            other => panic!("{other:?}"),
        }
    }

    async fn down(&mut self) -> Reason {
        match self.event().await {
            AttachmentEvent::Down { port: PORT, reason } => reason,
            other => panic!("{other:?}"),
        }
    }

    async fn changed(&mut self) -> (u32, Option<Reason>) {
        match self.event().await {
            AttachmentEvent::Changed { port: PORT, mtu, obstacle } => (mtu, obstacle),
            other => panic!("{other:?}"),
        }
    }

    async fn status(&self, wanted: impl Fn(&AttachmentStatus) -> bool) -> AttachmentStatus {
        let mut status = self.manager.watch_status();
        let found = tokio::time::timeout(PATIENCE, status.wait_for(|all| wanted(&all[0]))).await;
        let now = self.manager.status();
        found.unwrap_or_else(|_| panic!("still {now:?}")).expect("a running manager")[0].clone()
    }

    async fn link(&self, name: &str) -> Option<Link> {
        self.interfaces.get_by_name(name).await.expect("netlink")
    }

    /// Waits until an interface is as wanted.
    async fn link_until(&self, name: &str, wanted: impl Fn(&Link) -> bool) -> Link {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let link = self.link(name).await;
            match link {
                Some(link) if wanted(&link) => return link,
                link if tokio::time::Instant::now() > deadline => panic!("still {link:?}"),
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }
}

fn on_stage<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    in_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(test());
    });
}

fn bridge_kind() -> AttachmentKind {
    AttachmentKind::Bridge { bridge: "br0".into(), tap: "lb-1".into() }
}

fn nic_kind() -> AttachmentKind {
    AttachmentKind::Nic { nic: "nic".into() }
}

fn tap_kind(mtu: Option<u32>) -> AttachmentKind {
    AttachmentKind::Tap { tap: "lb-1".into(), mtu }
}

/// What of a bridge an attachment must leave alone.
fn identity(link: &Link) -> (Option<MacAddr>, u32, u16) {
    (link.mac, link.mtu, link.bridge.expect("a bridge").group_fwd_mask)
}

#[test]
fn an_empty_bridge_keeps_its_mac_mtu_and_mask() {
    for mtu in [1280, 1500, 9000] {
        on_stage(move || async move {
            ip(&format!("link add br0 mtu {mtu} type bridge group_fwd_mask 0x4008"));
            ip("link set br0 up");
            let mut stage = Stage::new(tap_kind(None), true, 1).await;
            drop(stage.up().await);
            let before = identity(&stage.link("br0").await.expect("a bridge"));
            stage.manager.close().await;

            let mut stage = Stage::new(bridge_kind(), true, 2).await;
            let up = stage.up().await;
            assert_eq!((up.queues.len(), up.mtu, up.obstacle), (2, mtu, None));
            let bridge = stage.link("br0").await.expect("a bridge");
            assert_eq!(identity(&bridge), before);
            let tap = stage.link("lb-1").await.expect("a TAP");
            assert_eq!((tap.mtu, tap.controller), (mtu, Some(bridge.index)));
            assert_eq!(tap.mac.expect("a MAC").0[0], 0xfe);
            let status = stage.status(|s| s.state == AttachmentState::Up).await;
            assert!(status.notes[0].contains("0x4008"), "{:?}", status.notes);

            let interfaces = stage.interfaces.clone();
            stage.manager.close().await;
            let bridge = interfaces.get_by_name("br0").await.expect("netlink").expect("a bridge");
            assert_eq!(identity(&bridge), before);
            assert_eq!(interfaces.get_by_name("lb-1").await.expect("netlink"), None);
        });
    }
}

#[test]
fn a_tap_has_no_ipv6_address_of_its_own_in_a_bridge() {
    on_stage(|| async {
        fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "0").expect("IPv6");
        ip("link add br0 type bridge");
        ip("link set br0 up");
        let mut stage = Stage::new(bridge_kind(), true, 1).await;
        let _up = stage.up().await;
        let addresses = fs::read_to_string("/proc/thread-self/net/if_inet6").expect("addresses");
        assert!(!addresses.contains("lb-1"), "{addresses}");
        let mode = fs::read_to_string("/proc/sys/net/ipv6/conf/lb-1/addr_gen_mode");
        assert_eq!(mode.expect("a mode").trim(), "1");
    });
}

#[test]
fn a_bridge_with_ports_keeps_its_identity_and_its_mtu_is_followed() {
    on_stage(|| async {
        veth_pair();
        ip("link add br0 type bridge");
        ip("link set nic master br0");
        ip("link set br0 up");
        let mut stage = Stage::new(tap_kind(None), true, 1).await;
        drop(stage.up().await);
        let before = identity(&stage.link("br0").await.expect("a bridge"));
        stage.manager.close().await;

        let mut stage = Stage::new(bridge_kind(), true, 1).await;
        let up = stage.up().await;
        assert_eq!(up.mtu, 1500);
        assert_eq!(identity(&stage.link("br0").await.expect("a bridge")), before);

        // Nobody set the bridge's MTU: it is its smallest port's, and not held down by ours.
        ip("link set nic mtu 9000");
        assert_eq!(stage.changed().await, (9000, None));
        stage.link_until("br0", |bridge| bridge.mtu == 9000).await;
        ip("link set nic mtu 1400");
        assert_eq!(stage.changed().await, (1400, None));
        stage.link_until("br0", |bridge| bridge.mtu == 1400).await;
        // Now somebody sets it.
        ip("link set br0 mtu 2000");
        assert_eq!(stage.changed().await, (2000, None));
        assert_eq!(stage.link("lb-1").await.expect("a TAP").mtu, 2000);
        assert_eq!(stage.link("br0").await.expect("a bridge").mtu, 2000);
    });
}

#[test]
fn a_frame_crosses_the_bridge_as_soon_as_it_is_up() {
    on_stage(|| async {
        veth_pair();
        ip("link add br0 type bridge");
        ip("link set nic master br0");
        ip("link set br0 up");
        let host = UdpSocket::bind("10.9.0.1:7000").expect("bind");
        host.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let mut stage = Stage::new(bridge_kind(), true, 1).await;
        let mut up = stage.up().await;
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])
            .ipv4([10, 9, 0, 2], [10, 9, 0, 1], 64)
            .udp(7000, 7000)
            .write(&mut frame, b"hello")
            .expect("a frame");
        up.queues[0].transmit(None, &Offload::NONE, &frame).expect("transmit");
        let mut datagram = [0; 16];
        assert_eq!(host.recv(&mut datagram).expect("the frame crossed"), 5);
    });
}

#[test]
fn a_bridge_that_appears_later_and_again_is_used() {
    on_stage(|| async {
        let mut stage = Stage::new(bridge_kind(), true, 1).await;
        let missing = Some(Reason::Missing("br0".into()));
        stage.status(|s| s.state == AttachmentState::Waiting && s.reason == missing).await;
        ip("link add br0 type bridge");
        let down = Some(Reason::Down("br0".into()));
        stage.status(|s| s.state == AttachmentState::Settling && s.reason == down).await;
        ip("link set br0 up");
        let up = stage.up().await;
        assert_eq!(up.obstacle, None);

        ip("link del br0");
        assert_eq!(stage.down().await, Reason::Removed("br0".into()));
        drop(up);
        stage.status(|s| s.state == AttachmentState::Waiting && s.reason == missing).await;
        ip("link add br0 type bridge");
        ip("link set br0 up");
        assert_eq!(stage.up().await.obstacle, None);
    });
}

#[test]
fn a_tap_that_is_removed_or_taken_out_of_its_bridge_is_put_back() {
    on_stage(|| async {
        ip("link add br0 type bridge");
        ip("link set br0 up");
        let mut stage = Stage::new(bridge_kind(), false, 1).await;
        let first = stage.up().await;
        assert!(matches!(first.queues[..], [LanQueue::Plain(_)]));
        ip("link del lb-1");
        assert_eq!(stage.down().await, Reason::Removed("lb-1".into()));
        let _second = stage.up().await;

        ip("link set lb-1 nomaster");
        stage.link_until("lb-1", |tap| tap.controller.is_some()).await;
        stage.status(|s| s.state == AttachmentState::Up).await;
        ip("link set lb-1 down");
        let mut last = stage.changed().await;
        while last.1 != Some(Reason::Down("lb-1".into())) {
            last = stage.changed().await;
        }
        ip("link set lb-1 up");
        while last.1.is_some() {
            last = stage.changed().await;
        }
    });
}

#[test]
fn a_port_that_spanning_tree_holds_back_is_not_handed_out() {
    on_stage(|| async {
        ip("link add br0 type bridge stp_state 1 forward_delay 200");
        ip("link set br0 up");
        let mut stage = Stage::new(bridge_kind(), true, 1).await;
        let held_back = |s: &AttachmentStatus| {
            s.state == AttachmentState::Settling
                && matches!(s.reason, Some(Reason::PortNotForwarding { state: "listening", .. }))
        };
        stage.status(held_back).await;
        stage.up().await;
    });
}

#[test]
fn a_tap_whose_name_is_taken_waits() {
    on_stage(|| async {
        ip("link add lb-1 type veth peer name other");
        let mut stage = Stage::new(tap_kind(Some(1400)), true, 1).await;
        let taken = Some(Reason::NameTaken("lb-1".into()));
        stage.status(|s| s.reason == taken).await;
        ip("link del lb-1");
        let up = stage.up().await;
        assert_eq!((up.mtu, up.obstacle), (1400, None));
    });
}

#[test]
fn a_nic_is_followed_through_cable_and_removal() {
    on_stage(|| async {
        let mut stage = Stage::new(nic_kind(), true, 2).await;
        stage.status(|s| s.reason == Some(Reason::Missing("nic".into()))).await;
        veth_pair();
        let mut up = stage.up().await;
        let mut last = (up.mtu, up.obstacle.take());
        while last.1.is_some() {
            last = stage.changed().await;
        }
        assert_eq!(up.queues.len(), 2);
        let shown = ip("-d link show nic");
        assert!(shown.contains("promiscuity 2") && !shown.contains("PROMISC"), "{shown}");
        assert_eq!(stage.manager.status()[0].notes, Vec::<String>::new());

        ip("link set host down");
        assert_eq!(stage.changed().await, (1500, Some(Reason::NoCarrier("nic".into()))));
        ip("link set host up");
        assert_eq!(stage.changed().await, (1500, None));
        ip("link set nic mtu 1400");
        assert_eq!(stage.changed().await, (1400, None));
        ip("link set nic down");
        assert_eq!(stage.changed().await, (1400, Some(Reason::Down("nic".into()))));

        ip("link del nic");
        assert_eq!(stage.down().await, Reason::Removed("nic".into()));
        drop(up);
        veth_pair();
        let mut again = stage.up().await;
        let mut buffer = vec![0; FRAME_BUFFER_LENGTH];
        let socket = UdpSocket::bind("10.9.0.1:7000").expect("bind");
        socket.send_to(b"hello", "10.9.0.2:7000").expect("send");
        let mut came = 0;
        for queue in &mut again.queues {
            while let Some(received) = queue.receive(&mut buffer).expect("a frame") {
                came += usize::from(received.frame().ends_with(b"hello"));
            }
        }
        assert_eq!(came, 1);
        let drops = stage.manager.kernel_drops().await;
        assert_eq!((drops.len(), drops[0].port), (1, PORT));
    });
}

#[test]
fn what_a_tap_drops_is_counted() {
    on_stage(|| async {
        let mut stage = Stage::new(tap_kind(None), true, 1).await;
        let _up = stage.up().await;
        super::address_host("lb-1");
        let socket = UdpSocket::bind("10.9.0.1:7000").expect("bind");
        ip("link set lb-1 txqueuelen 10");
        for _ in 0..2000 {
            let _ = socket.send_to(&[0; 100], "10.9.0.2:7000");
        }
        let drops = stage.manager.kernel_drops().await;
        assert!(drops[0].tap_transmit > 0, "{drops:?}");
    });
}
