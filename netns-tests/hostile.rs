//! Datagrams from anybody: none of them changes anything.
//!
//! ```text
//!   host-e ── br-100 ── east-1 ════ router ════ west-1 ── br-100 ── host-w
//!                               the stranger
//! ```

use crate::harness::{
    ask::{peer, wait_for_counter},
    can_run,
    frames::Seeded,
    landbridge_pair,
    relay::{Impairment, Relay},
};
use landbridge::lab::{Pair, PairOptions, Side, ping};
use std::net::{SocketAddr, UdpSocket};

fn assert_all_answered(pair: &Pair) {
    let target = pair.host(Side::West).v4.into();
    let report = ping(&pair.host(Side::East).namespace, target, 50).unwrap();
    assert_eq!(report.received, report.sent);
}

#[test]
fn random_and_truncated_datagrams_are_met_with_silence() {
    const COUNT: u64 = 5000;
    if !can_run() {
        return;
    }
    let mut pair = landbridge_pair(PairOptions::default());
    let before = Side::BOTH.map(|side| pair.appliance(side).process.as_ref().unwrap().id());
    let stranger = pair.router.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    stranger.set_nonblocking(true).unwrap();
    let mut seeded = Seeded::new(3);
    for number in 0..COUNT {
        let length = (seeded.next() % 1400) as usize;
        let mut datagram = seeded.bytes(length);
        // A quarter each begins with a small number, as message types do.
        if let Some(first) = datagram.first_mut().filter(|_| number % 4 == 0) {
            *first %= 16;
        }
        for side in Side::BOTH {
            // A full send buffer only means fewer of them.
            let _ = stranger.send_to(&datagram, pair.options.endpoint(side));
        }
    }
    assert_all_answered(&pair);
    assert!(stranger.recv_from(&mut [0; 2000]).is_err(), "a stranger was answered");
    let after = Side::BOTH.map(|side| {
        let process = pair.appliance_mut(side).process.as_mut().unwrap();
        assert!(process.is_running());
        process.id()
    });
    assert_eq!(before, after);
    for side in Side::BOTH {
        wait_for_counter(&pair, side, "datagram_unknown", 100);
        let peer = peer(&pair, side).unwrap();
        assert_eq!(
            peer.endpoint.map(|endpoint| endpoint.parse().map(|e: SocketAddr| e.ip())),
            Some(Ok(pair.options.endpoint(side.other()).ip()))
        );
    }
}

#[test]
fn corrupted_datagrams_are_dropped_and_counted() {
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions::default());
    {
        let relay = Relay::new(&pair, 4);
        relay.impair(Side::East, Impairment { corruption: 1.0, ..Impairment::default() });
        let target = pair.host(Side::West).v4.into();
        assert!(ping(&pair.host(Side::East).namespace, target, 20).is_err());
        assert!(relay.tally(Side::East).corrupted >= 20, "{:?}", relay.tally(Side::East));
    }
    assert_all_answered(&pair);
    wait_for_counter(&pair, Side::West, "datagram_forged", 10);
}
