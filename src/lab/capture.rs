//! What crosses a namespace's interfaces, searched for a known text.

use super::{LabError, MacAddress, Namespace, Result};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// A running capture of what arrives at some interfaces of a namespace.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<std::io::Result<Seen>>>,
    namespace: String,
}

/// What a capture saw.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Ethernet frames.
    pub frames: u64,
    /// Their bytes, headers included.
    pub bytes: u64,
    /// UDP datagrams by source and destination.
    pub udp_flows: BTreeMap<(SocketAddr, SocketAddr), u64>,
    /// ICMP and ICMPv6 errors, neighbour and router discovery: what hosts and
    /// routers say of themselves. An echo is not among them.
    pub icmp: u64,
    /// Other frames of IP that are not UDP, by IP protocol number.
    pub other_ip: BTreeMap<u8, u64>,
    /// Frames that contain the text that was searched for.
    pub with_text: u64,
}

impl Capture {
    /// Starts capturing what arrives at `interfaces` of `namespace`, and counting
    /// the frames that contain `text`. From the return on, nothing is missed as
    /// long as the 64 MiB socket buffer lasts.
    ///
    /// # Errors
    /// [`LabError::Capture`], [`LabError::Enter`].
    pub fn start(namespace: &Namespace, interfaces: &[&str], text: &[u8]) -> Result<Self> {
        let own: Vec<MacAddress> =
            interfaces.iter().map(|name| namespace.mac(name)).collect::<Result<_>>()?;
        let failed =
            |source| LabError::Capture { namespace: namespace.full_name().to_owned(), source };
        // Unbound: it hears every interface, which spares the unsafe sockaddr_ll.
        let socket = namespace.enter(open)?.map_err(failed)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, text) = (Arc::clone(&stop), text.to_vec());
        let thread = std::thread::Builder::new()
            .name("lab-capture".into())
            .spawn(move || capture(&socket, &stopped, &own, &text))
            .map_err(failed)?;
        Ok(Self { stop, thread: Some(thread), namespace: namespace.full_name().to_owned() })
    }

    /// Ends it and returns what it saw.
    ///
    /// # Errors
    /// [`LabError::Capture`].
    pub fn finish(mut self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("taken only here");
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            .map_err(|source| LabError::Capture { namespace: self.namespace.clone(), source })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Seen {
    /// UDP datagrams in all.
    pub fn datagrams(&self) -> u64 {
        self.udp_flows.values().sum()
    }

    fn add(&mut self, frame: &[u8], text: &memchr::memmem::Finder<'_>) {
        self.frames += 1;
        self.bytes += frame.len() as u64;
        self.with_text += u64::from(text.find(frame).is_some());
        let Ok(packet) = SlicedPacket::from_ethernet(frame) else { return };
        let (source, destination, protocol): (IpAddr, IpAddr, u8) = match &packet.net {
            Some(NetSlice::Ipv4(ip)) => (
                ip.header().source_addr().into(),
                ip.header().destination_addr().into(),
                ip.payload_ip_number().0,
            ),
            Some(NetSlice::Ipv6(ip)) => (
                ip.header().source_addr().into(),
                ip.header().destination_addr().into(),
                ip.payload().ip_number.0,
            ),
            _ => return,
        };
        match &packet.transport {
            Some(TransportSlice::Udp(udp)) => {
                let flow = (
                    SocketAddr::new(source, udp.source_port()),
                    SocketAddr::new(destination, udp.destination_port()),
                );
                *self.udp_flows.entry(flow).or_default() += 1;
            }
            Some(TransportSlice::Icmpv4(icmp)) if is_own_affair(icmp.type_u8()) => self.icmp += 1,
            Some(TransportSlice::Icmpv6(icmp)) if is_own_affair_v6(icmp.type_u8()) => {
                self.icmp += 1;
            }
            _ => *self.other_ip.entry(protocol).or_default() += 1,
        }
    }
}

/// Destination unreachable, redirect, time exceeded, parameter problem (RFC 792).
fn is_own_affair(icmp_type: u8) -> bool {
    matches!(icmp_type, 3 | 5 | 11 | 12)
}

/// Errors (RFC 4443, section 2.1), router and neighbour discovery (RFC 4861,
/// section 4), multicast listeners (RFC 2710, RFC 3810).
fn is_own_affair_v6(icmp_type: u8) -> bool {
    matches!(icmp_type, 0..128 | 130..=137 | 143)
}

const POLL: Duration = Duration::from_millis(20);
/// The longest superframe a veth hands over, with room for tags.
const LONGEST_FRAME: usize = 128 << 10;

fn open() -> std::io::Result<Socket> {
    const ETH_P_ALL: u16 = 3;
    const BUFFER_BYTES: usize = 64 << 20;
    let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
    set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES)?;
    socket.set_read_timeout(Some(POLL))?;
    Ok(socket)
}

fn capture(
    mut socket: &Socket,
    stop: &AtomicBool,
    own: &[MacAddress],
    text: &[u8],
) -> std::io::Result<Seen> {
    let finder = memchr::memmem::Finder::new(text);
    let mut seen = Seen::default();
    let mut buffer = vec![0; LONGEST_FRAME];
    loop {
        // Read before the socket, so that all that came before `stop` counts.
        let stopping = stop.load(Ordering::Relaxed);
        match socket.read(&mut buffer) {
            Ok(length) => {
                let frame = &buffer[..length];
                if arrives_at(frame, own) {
                    seen.add(frame, &finder);
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if stopping {
                    return Ok(seen);
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The socket also hears what the namespace itself sends; that is what carries
/// one of its own addresses as source. The other interfaces' traffic carries
/// none of `own` as destination and isn't for a group.
fn arrives_at(frame: &[u8], own: &[MacAddress]) -> bool {
    let (Some(destination), Some(source)) = (frame.get(..6), frame.get(6..12)) else {
        return false;
    };
    let is_own = |address: &[u8]| own.iter().any(|own| own == address);
    !is_own(source) && (is_own(destination) || destination[0] & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    const OWN: MacAddress = [2, 0, 0, 0, 0, 1];
    const OTHER: MacAddress = [2, 0, 0, 0, 0, 2];

    fn datagram(payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(OTHER, OWN)
            .ipv4([192, 0, 2, 11], [192, 0, 2, 1], 64)
            .udp(7, 8);
        let mut frame = Vec::new();
        builder.write(&mut frame, payload).unwrap();
        frame
    }

    #[test]
    fn counts_datagrams_and_finds_the_text() {
        let finder = memchr::memmem::Finder::new(b"secret");
        let mut seen = Seen::default();
        seen.add(&datagram(b"a secret inside"), &finder);
        seen.add(&datagram(b"nothing inside"), &finder);
        seen.add(b"short", &finder);
        let flow = ("192.0.2.11:7".parse().unwrap(), "192.0.2.1:8".parse().unwrap());
        assert_eq!(seen.udp_flows, BTreeMap::from([(flow, 2)]));
        assert_eq!((seen.frames, seen.datagrams(), seen.with_text), (3, 2, 1));
    }

    #[test]
    fn an_error_is_the_underlays_own_affair_and_an_echo_is_not() {
        use etherparse::{Icmpv4Type, icmpv4::DestUnreachableHeader};
        let finder = memchr::memmem::Finder::new(b"secret");
        let mut seen = Seen::default();
        let ethernet = || PacketBuilder::ethernet2(OTHER, OWN);
        let builder = || ethernet().ipv4([192, 0, 2, 11], [192, 0, 2, 1], 64);
        let unreachable = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port);
        for builder in [builder().icmpv4(unreachable), builder().icmpv4_echo_request(1, 1)] {
            let mut frame = Vec::new();
            builder.write(&mut frame, &[0; 28]).unwrap();
            seen.add(&frame, &finder);
        }
        assert_eq!((seen.icmp, seen.other_ip), (1, BTreeMap::from([(1, 1)])));
    }

    #[test]
    fn only_what_arrives_counts() {
        let frame = |destination: MacAddress, source: MacAddress| [destination, source].concat();
        assert!(arrives_at(&frame(OWN, OTHER), &[OWN]));
        assert!(arrives_at(&frame([0xff; 6], OTHER), &[OWN]));
        assert!(!arrives_at(&frame(OTHER, OWN), &[OWN]));
        assert!(!arrives_at(&frame([0xff; 6], OWN), &[OWN]));
        assert!(!arrives_at(&frame([4; 6], OTHER), &[OWN]));
        assert!(!arrives_at(&[0; 11], &[OWN]));
    }
}
