//! Raw frames at a host: sends any bytes, records what arrives.

use super::packet::PacketSocket;
use landbridge::lab::{Host, MacAddress, Namespace};
use std::time::{Duration, Instant};

/// A raw sender and receiver on an interface.
pub(crate) struct Probe {
    socket: PacketSocket,
    /// The interface's own address.
    pub(crate) mac: MacAddress,
}

impl Probe {
    /// On a host's `eth0`.
    pub(crate) fn on(host: &Host) -> Self {
        Self::at(&host.namespace, "eth0")
    }

    /// On any interface.
    pub(crate) fn at(namespace: &Namespace, interface: &str) -> Self {
        let link = namespace.link(interface).unwrap();
        let index = link["ifindex"].as_i64().expect("a link has an index") as i32;
        let socket = namespace.enter(|| PacketSocket::open(index)).unwrap().unwrap();
        Self { socket, mac: namespace.mac(interface).unwrap() }
    }

    /// Sends a frame as it is.
    pub(crate) fn send(&self, frame: &[u8]) {
        self.socket
            .send(frame)
            .unwrap_or_else(|error| panic!("cannot send {} bytes: {error}", frame.len()));
    }

    /// Frames that satisfy `wanted`, until there are `count` of them or `timeout`
    /// has passed.
    pub(crate) fn receive(
        &self,
        count: usize,
        timeout: Duration,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> Vec<Vec<u8>> {
        let deadline = Instant::now() + timeout;
        let mut frames = Vec::new();
        while frames.len() < count {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            match self.socket.receive(left).unwrap() {
                Some(frame) if wanted(&frame) => frames.push(frame),
                Some(_) => {}
                None => break,
            }
        }
        frames
    }

    /// Fails if a frame that satisfies `unwanted` arrives before one that
    /// satisfies `last`, which the test sends afterwards.
    pub(crate) fn expect_none_before(
        &self,
        timeout: Duration,
        mut unwanted: impl FnMut(&[u8]) -> bool,
        mut last: impl FnMut(&[u8]) -> bool,
    ) {
        let frames = self.receive(1, timeout, |frame| {
            assert!(!unwanted(frame), "this frame must not arrive: {frame:02x?}");
            last(frame)
        });
        assert_eq!(frames.len(), 1, "the last frame did not arrive");
    }
}
