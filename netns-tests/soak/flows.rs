//! TCP flows of seeded bytes, every one of them compared on arrival.

use crate::harness::frames::Seeded;
use landbridge::lab::{Pair, Side};
use std::{
    fmt::Display,
    io::{self, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

/// A connection ends, and another begins on other ports, after this time and up
/// to as much again: so both long flows and new ones meet every rekey, and their
/// lanes never all change at once.
const CONNECTION_DURATION: Duration = Duration::from_secs(7);
/// TCP backs off for seconds where several retransmissions in a row are lost.
const STALL: Duration = Duration::from_secs(30);
const CHUNK: usize = 64 << 10;

/// What all flows together have done so far.
#[derive(Default)]
pub(crate) struct Traffic {
    /// Verified bytes, by the [`Side`] that they came from.
    pub(crate) bytes: [AtomicU64; 2],
    /// Connections that ended with every byte where it belongs.
    pub(crate) connections: AtomicU64,
    failures: Mutex<Vec<String>>,
    stop: AtomicBool,
}

/// Ends the flows when it is dropped, so also where a check panics.
pub(crate) struct Stop<'a>(pub(crate) &'a Traffic);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Relaxed);
    }
}

impl Traffic {
    /// Starts `each_way` flows from either side, half of them by IPv4.
    pub(crate) fn start<'scope>(
        &'scope self,
        scope: &'scope thread::Scope<'scope, '_>,
        pair: &'scope Pair,
        each_way: u64,
    ) {
        for number in 0..each_way * 2 {
            let from = Side::BOTH[(number % 2) as usize];
            let target = pair.host(from.other());
            let address = if number / 2 % 2 == 0 { target.v4.into() } else { target.v6.into() };
            scope.spawn(move || {
                let mut seed = number << 32;
                while !self.stop.load(Relaxed) {
                    seed += 1;
                    match self.connection(pair, from, address, seed) {
                        Ok(()) => _ = self.connections.fetch_add(1, Relaxed),
                        Err(failure) => {
                            let from = from.site();
                            return self.fail(format!("TCP from {from} to {address}: {failure}"));
                        }
                    }
                }
            });
        }
    }

    /// What went wrong so far.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fail(&self, failure: String) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
    }

    fn connection(
        &self,
        pair: &Pair,
        from: Side,
        address: IpAddr,
        seed: u64,
    ) -> Result<(), String> {
        let [sender, receiver] = [from, from.other()].map(|side| &pair.host(side).namespace);
        let bind = || TcpListener::bind(SocketAddr::new(address, 0));
        let listener = receiver.enter(bind).map_err(text)?.map_err(text)?;
        let target = listener.local_addr().map_err(text)?;
        let connect = || TcpStream::connect_timeout(&target, STALL);
        let outgoing = sender.enter(connect).map_err(text)?.map_err(text)?;
        let (incoming, _) = listener.accept().map_err(text)?;
        outgoing.set_write_timeout(Some(STALL)).map_err(text)?;
        incoming.set_read_timeout(Some(STALL)).map_err(text)?;
        let (sent, received) = thread::scope(|scope| {
            let sender = scope.spawn(|| self.send(outgoing, seed));
            let received = self.receive(incoming, seed, &self.bytes[from as usize]);
            (sender.join().expect("a sender does not panic"), received)
        });
        let (sent, received) = (sent.map_err(text)?, received?);
        if sent != received {
            return Err(format!("{sent} bytes sent, {received} arrived"));
        }
        Ok(())
    }

    fn send(&self, mut stream: TcpStream, seed: u64) -> io::Result<u64> {
        let duration = CONNECTION_DURATION.mul_f64(1.0 + Seeded::new(!seed).fraction());
        let (start, mut seeded, mut sent) = (Instant::now(), Seeded::new(seed), 0);
        let mut chunk = vec![0; CHUNK];
        while start.elapsed() < duration && !self.stop.load(Relaxed) {
            seeded.fill(&mut chunk);
            stream.write_all(&chunk)?;
            sent += chunk.len() as u64;
        }
        stream.shutdown(Shutdown::Write)?;
        Ok(sent)
    }

    fn receive(
        &self,
        mut stream: TcpStream,
        seed: u64,
        verified: &AtomicU64,
    ) -> Result<u64, String> {
        let (mut seeded, mut received) = (Seeded::new(seed), 0);
        let [mut chunk, mut expected] = [vec![0; CHUNK], vec![0; CHUNK]];
        loop {
            let mut length = 0;
            while length < CHUNK {
                match stream.read(&mut chunk[length..]).map_err(text)? {
                    0 => break,
                    more => length += more,
                }
            }
            seeded.fill(&mut expected);
            if chunk[..length] != expected[..length] {
                let wrong = chunk.iter().zip(&expected).position(|(is, should)| is != should);
                return Err(format!("byte {} is wrong", received + wrong.unwrap_or(0) as u64));
            }
            received += length as u64;
            verified.fetch_add(length as u64, Relaxed);
            if length < CHUNK {
                return Ok(received);
            }
        }
    }
}

fn text(error: impl Display) -> String {
    error.to_string()
}
