//! Checksums of what really arrives at a host, computed here and not by its kernel.

use super::{
    frames::{C_TAG, S_TAG},
    probe::Probe,
    relay::internet_checksum,
};
use landbridge::lab::Host;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Looks at every frame that comes to a host's `eth0` until it is finished.
pub(crate) struct SumCheck {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Checked>,
}

/// What was looked at.
#[derive(Debug, Clone, Default)]
pub(crate) struct Checked {
    /// Frames whose TCP or UDP checksum was computed and found right.
    pub(crate) tcp: u64,
    pub(crate) udp: u64,
    /// Bytes of the longest of all frames.
    pub(crate) longest: usize,
    /// The first frames with a wrong sum, and what is wrong.
    pub(crate) wrong: Vec<String>,
}

const WRONG_MAX: usize = 5;

impl SumCheck {
    pub(crate) fn start(host: &Host) -> Self {
        let probe = Probe::on(host);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut checked = Checked::default();
            // What has come is looked at even after the end.
            loop {
                let was_stopped = stopped.load(Relaxed);
                let frames = probe.receive(1, Duration::from_millis(20), |_| true);
                match frames.first() {
                    Some(frame) => checked.take(frame),
                    None if was_stopped => return checked,
                    None => {}
                }
            }
        });
        Self { stop, thread }
    }

    pub(crate) fn finish(self) -> Checked {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap()
    }
}

impl Checked {
    pub(crate) fn take(&mut self, frame: &[u8]) {
        self.longest = self.longest.max(frame.len());
        match transport(frame) {
            Ok(Some(6)) => self.tcp += 1,
            Ok(Some(17)) => self.udp += 1,
            Ok(_) => {}
            Err(what) if self.wrong.len() < WRONG_MAX => {
                self.wrong.push(format!("{what}: {:02x?}", &frame[..frame.len().min(90)]));
            }
            Err(_) => {}
        }
    }
}

/// The protocol of a frame's whole TCP or UDP packet whose sums are right; `None` for
/// fragments and everything else.
fn transport(frame: &[u8]) -> Result<Option<u8>, &'static str> {
    let number = |at: usize| frame.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
    let mut start = 14;
    while number(start - 2).is_some_and(|kind| [C_TAG, S_TAG].contains(&kind)) {
        start += 4;
    }
    let packet = &frame[start.min(frame.len())..];
    let (addresses, protocol, header, length) = match number(start - 2) {
        Some(0x0800) if packet.len() >= 20 => {
            let header = usize::from(packet[0] & 0xf) * 4;
            let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            if internet_checksum(packet.get(..header).ok_or("IPv4 header cut off")?) != 0 {
                return Err("wrong IPv4 header checksum");
            }
            if u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0 {
                return Ok(None);
            }
            (&packet[12..20], packet[9], header, length)
        }
        Some(0x86dd) if packet.len() >= 40 => {
            let length = 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
            (&packet[8..40], packet[6], 40, length)
        }
        _ => return Ok(None),
    };
    let checksum_offset = match protocol {
        6 => 16,
        17 => 6,
        _ => return Ok(None),
    };
    // Behind the packet there may be padding.
    let segment = packet.get(header..length).ok_or("cut off")?;
    if protocol == 17 && segment.get(checksum_offset..checksum_offset + 2) == Some(&[0, 0]) {
        return Err("UDP without a checksum, which no host here sends");
    }
    let mut summed = [addresses, &[0, protocol], &(segment.len() as u16).to_be_bytes()].concat();
    summed.extend_from_slice(segment);
    if internet_checksum(&summed) == 0 { Ok(Some(protocol)) } else { Err("wrong checksum") }
}

#[test]
fn wrong_sums_are_noticed() {
    use etherparse::PacketBuilder;
    let ethernet = || PacketBuilder::ethernet2([2; 6], [4; 6]);
    let mut frames = vec![Vec::new(); 3];
    let [tcp4, udp6, tagged] = &mut frames[..] else { panic!("three frames") };
    ethernet().ipv4([1; 4], [2; 4], 9).tcp(1, 2, 3, 4).write(tcp4, &[7; 100]).unwrap();
    ethernet().ipv6([1; 16], [2; 16], 9).udp(1, 2).write(udp6, &[7; 101]).unwrap();
    let tag = etherparse::VlanId::try_new(100).unwrap();
    ethernet().single_vlan(tag).ipv4([1; 4], [2; 4], 9).udp(1, 2).write(tagged, &[7; 9]).unwrap();
    for frame in frames {
        let mut checked = Checked::default();
        checked.take(&frame);
        assert_eq!((checked.tcp + checked.udp, checked.wrong.len()), (1, 0), "{checked:?}");
        for place in [frame.len() - 1, frame.len() - 30] {
            let mut broken = frame.clone();
            broken[place] ^= 0x10;
            checked.take(&broken);
        }
        assert_eq!((checked.tcp + checked.udp, checked.wrong.len()), (1, 2), "{checked:?}");
    }
}
