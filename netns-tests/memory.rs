//! How much memory the appliances take with many stations.
//!
//! ```text
//!   host-e ── LAN ── east-1 ════ router ════ west-1 ── LAN ── host-w
//!    probe                                                   probe
//! ```

use crate::{
    harness::{
        TestPair,
        ask::{peer, status, within},
        can_run,
        flows::Flows,
        frames::{EXPERIMENTAL, frame},
        landbridge_pair, landbridge_pair_alone,
        probe::Probe,
    },
    soak::memory,
};
use landbridge::lab::{AttachmentKind, MacAddress, PairOptions, Side};
use std::{thread, time::Duration};

const MIB: u64 = 1 << 20;
/// What a debug build keeps up with: 60,000 frames per second.
const BURST: u32 = 256;
const BURST_PAUSE: Duration = Duration::from_millis(4);

fn station(side: Side, number: u32) -> MacAddress {
    let [a, b, c, d] = number.to_be_bytes();
    [2, 0xb0 + side as u8, a, b, c, d]
}

/// A frame of 60 bytes from each of a side's first `count` stations to `target`,
/// beginning with station `first`.
fn speak(probe: &Probe, side: Side, [first, count]: [u32; 2], target: MacAddress) {
    for step in 0..count {
        let source = station(side, (first + step) % count);
        probe.send(&frame(target, source, &[], EXPERIMENTAL, &[0; 46]));
        if step % BURST == BURST - 1 {
            thread::sleep(BURST_PAUSE);
        }
    }
}

/// Lets both sides' stations speak until both appliances know as many. What a queue
/// drops is said again; and as none is learnt while stations are counted, others
/// are the last ones every time.
fn introduce(pair: &TestPair, counts: [u32; 2], limit: Duration) {
    let probes = Side::BOTH.map(|side| Probe::on(pair.host(side)));
    let mut round = 0;
    within(limit, "all stations to be learnt", || {
        for side in Side::BOTH {
            let target = probes[side.other() as usize].mac;
            let count = counts[side as usize];
            speak(&probes[side as usize], side, [count / 8 * (round % 8), count], target);
        }
        round += 1;
        for side in Side::BOTH {
            let network = status(pair, side)?.networks.remove(0);
            let known = [network.macs_local, network.macs_remote];
            let expected = [counts[side as usize], counts[side.other() as usize]];
            if known[0] < expected[0] || known[1] < expected[1] {
                return Err(format!("{side:?} knows {known:?} of {expected:?}, local and remote"));
            }
        }
        Ok(())
    });
}

fn data_lanes(pair: &TestPair, side: Side) -> Vec<u64> {
    let lanes = peer(pair, side).unwrap().lanes;
    lanes.iter().skip(1).map(|lane| lane.rx.packets).collect()
}

#[test]
fn ten_thousand_stations_and_four_lanes_fit_into_64_mebibytes() {
    const FLOWS: usize = 32;
    if !can_run() {
        return;
    }
    let pair = landbridge_pair(PairOptions {
        lanes: Some(4),
        extra_network_lines: "max_macs = 20000\n".into(),
        ..PairOptions::default()
    });
    introduce(&pair, [5_000; 2], Duration::from_secs(30));
    let before = Side::BOTH.map(|side| data_lanes(&pair, side));
    let flows = Side::BOTH.map(|from| {
        Flows::start(pair.host(from), pair.host(from.other()), FLOWS, Duration::from_millis(1))
    });
    let mut peak = [0; 2];
    within(Duration::from_secs(20), "traffic on all lanes", || {
        let now = memory(&pair);
        peak = [peak[0].max(now[0]), peak[1].max(now[1])];
        for side in Side::BOTH {
            let lanes = data_lanes(&pair, side);
            let moved = lanes.iter().zip(&before[side as usize]).map(|(now, before)| now - before);
            let moved: Vec<u64> = moved.collect();
            if moved.len() != 4 || moved.iter().any(|datagrams| *datagrams < 100) {
                return Err(format!("{side:?} received {moved:?} datagrams, lane by lane"));
            }
        }
        Ok(())
    });
    for flows in flows {
        assert!(flows.finish().sent > 0);
    }
    println!("resident: {:.1?} MiB", peak.map(mebibytes));
    assert!(peak.iter().all(|bytes| *bytes < 64 * MIB), "{peak:?} bytes resident");
}

/// A million stations at one site. Sending for all of them takes 20 s and more.
#[test]
#[ignore = "takes long: scripts/soak"]
fn a_million_stations_take_less_than_128_mebibytes_more() {
    const STATIONS: u32 = 1_000_000;
    if !can_run() {
        return;
    }
    // No bridge, whose own table would be the bottleneck.
    let pair = landbridge_pair_alone(PairOptions {
        attachments: [AttachmentKind::Nic; 2],
        extra_network_lines: "max_macs = 1_048_576\n".into(),
        ..PairOptions::default()
    });
    introduce(&pair, [1, 1], Duration::from_secs(5));
    let before = memory(&pair);
    introduce(&pair, [STATIONS, 1], Duration::from_secs(240));
    let after = memory(&pair);
    println!("resident: {:.1?} MiB, then {:.1?}", before.map(mebibytes), after.map(mebibytes));
    for side in Side::BOTH {
        let grown = after[side as usize].saturating_sub(before[side as usize]);
        assert!(grown < 128 * MIB, "{side:?} grew by {grown} bytes");
        // 32 bytes for each: what did not grow has not learned them.
        assert!(grown > u64::from(STATIONS) * 32 / 2, "{side:?} grew by {grown} bytes only");
    }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}
