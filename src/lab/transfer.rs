//! A TCP transfer of known bytes, verified on arrival.

use super::{LabError, Namespace, Result};
use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

/// The text that a transfer repeats, to be searched for on the underlay.
pub const MARKER: &[u8; 32] = b"<landbridge lab: known text .. >";

/// What a transfer achieved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Transfer {
    /// Bytes that arrived, all of them as sent.
    pub bytes: u64,
    /// From the first byte sent to the last one received.
    pub duration: Duration,
}

/// How much a transfer sends.
#[derive(Debug, Clone, Copy)]
pub(super) enum Amount {
    Bytes(u64),
    For(Duration),
}

/// Sends [`MARKER`] over and over from `from` to `to`, whose address is `address`,
/// for `duration`, and verifies every byte that arrives.
///
/// # Errors
/// [`LabError::Transfer`] where the connection broke or stalled for ten seconds;
/// [`LabError::Corrupted`].
pub fn transfer(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
    duration: Duration,
) -> Result<Transfer> {
    send_amount(from, to, address, Amount::For(duration))
}

pub(super) fn send_amount(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
    amount: Amount,
) -> Result<Transfer> {
    const STALL: Duration = Duration::from_secs(10);
    let address = SocketAddr::new(address, 0);
    let failed = |step, to| move |source| LabError::Transfer { to, step, source };
    let listener = to.enter(|| TcpListener::bind(address))?.map_err(failed("listen", address))?;
    let target = listener.local_addr().map_err(failed("listen", address))?;
    let failed = |step| failed(step, target);
    let outgoing =
        from.enter(|| TcpStream::connect_timeout(&target, STALL))?.map_err(failed("connect"))?;
    let (incoming, _) = listener.accept().map_err(failed("accept"))?;
    outgoing.set_write_timeout(Some(STALL)).map_err(failed("send"))?;
    incoming.set_read_timeout(Some(STALL)).map_err(failed("receive"))?;
    let start = Instant::now();
    let (sent, received) = thread::scope(|scope| {
        let sender = scope.spawn(|| send(outgoing, start, amount));
        let received = receive(incoming);
        (sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), received)
    });
    let duration = start.elapsed();
    // Why the receiver gave up tells more than that the sender then couldn't go on.
    let (received, wrong_at) = received.map_err(failed("receive"))?;
    let sent = sent.map_err(failed("send"))?;
    if wrong_at.is_some() || sent != received {
        return Err(LabError::Corrupted { to: target, sent, received, wrong_at });
    }
    Ok(Transfer { bytes: received, duration })
}

impl Transfer {
    /// Payload bits per second.
    pub fn bits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.duration.as_secs_f64()
    }
}

const CHUNK: usize = 256 << 10;

fn send(mut stream: TcpStream, start: Instant, amount: Amount) -> std::io::Result<u64> {
    let pattern = MARKER.repeat(CHUNK / MARKER.len());
    let mut sent = 0;
    loop {
        let left = match amount {
            Amount::Bytes(bytes) => bytes - sent,
            Amount::For(duration) if start.elapsed() < duration => u64::MAX,
            Amount::For(_) => 0,
        };
        if left == 0 {
            stream.shutdown(std::net::Shutdown::Write)?;
            return Ok(sent);
        }
        let length = left.min(CHUNK as u64) as usize;
        stream.write_all(&pattern[..length])?;
        sent += length as u64;
    }
}

/// Bytes received, and where the first wrong one was.
fn receive(mut stream: impl Read) -> std::io::Result<(u64, Option<u64>)> {
    let pattern = MARKER.repeat(CHUNK / MARKER.len() + 1);
    let mut buffer = vec![0; CHUNK];
    let (mut received, mut wrong_at) = (0_u64, None);
    loop {
        let length = match stream.read(&mut buffer) {
            // A socket with a time limit is not gone on with after a signal (signal(7)).
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        };
        if length == 0 {
            return Ok((received, wrong_at));
        }
        let phase = (received % MARKER.len() as u64) as usize;
        let expected = &pattern[phase..][..length];
        if wrong_at.is_none() && buffer[..length] != *expected {
            let first = buffer.iter().zip(expected).position(|(is, should)| is != should);
            wrong_at = first.map(|offset| received + offset as u64);
        }
        received += length as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_wrong_byte() {
        let mut bytes = MARKER.repeat(20_000);
        assert_eq!(receive(&bytes[..]).unwrap(), (640_000, None));
        bytes[300_007] ^= 1;
        bytes[600_000] ^= 1;
        assert_eq!(receive(&bytes[..]).unwrap(), (640_000, Some(300_007)));
        bytes.remove(5);
        assert_eq!(receive(&bytes[..]).unwrap(), (639_999, Some(5)));
    }
}
