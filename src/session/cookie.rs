//! Who is let in to the handshake, and at what cost to whom: WireGuard's cookies
//! (whitepaper, sections 5.3 and 5.4.7), with labels of our own.
//!
//! ```text
//! mac1 wrong ─────────────────────────────────────────────▶ silence
//! response ──── within the rate for responses ────────────▶ process
//! initiation ── not under load ───────────────────────────▶ process
//!          └─── under load ─┬─ mac2 made with no cookie
//!                           │  of this address ───────────▶ cookie reply
//!                           └─ made with one ── within the
//!                                address's rate ──────────▶ process
//! ```

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use blake2::digest::Mac;
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, aead::AeadInPlace};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{
    keys::PublicKey,
    message::{
        COOKIE_REPLY_LENGTH, CookieReply, HandshakeMessage, Initiation, MAC_LENGTH, Mac1Key,
        MessageError, TYPE_COOKIE_REPLY, labelled_hash, mac, mac1_of, verify_mac2,
    },
    random::{Random, draw},
};
use crate::time::Instant;

/// How long a cookie is good for, and how long the secret behind cookies lives.
pub const COOKIE_LIFETIME: Duration = Duration::from_secs(120);
/// Initiations per second, and at once, that are processed before cookies are asked for.
/// Each costs four Diffie-Hellman operations, two of them before its sender is known.
pub const INITIATIONS_PER_SECOND: u32 = 64;
/// Responses per second, and at once, that are processed. A real one is owed to an
/// initiation of our own, so these are few.
pub const RESPONSES_PER_SECOND: u32 = 256;
/// Initiations per second, and at once, from one address that has shown its cookie.
pub const INITIATIONS_PER_SECOND_PER_SOURCE: u32 = 8;
/// Addresses whose rate is kept at once.
pub const SOURCES_MAX: usize = 1024;

/// Proof that its holder receives what is sent to its address. Not shown by `Debug`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Cookie {
    value: [u8; MAC_LENGTH],
    #[zeroize(skip)]
    received: Instant,
}

/// Why a cookie reply is refused.
#[derive(Debug, Error)]
pub enum CookieError {
    /// Not a cookie reply.
    #[error("not a cookie reply")]
    Message(#[source] MessageError),
    /// A reply to some other initiation.
    #[error("the cookie reply is for another session")]
    Receiver,
    /// It answers nothing that was sent, or doesn't come from who it was sent to.
    #[error("the cookie reply does not authenticate")]
    Forged,
}

/// What to do with a handshake datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Go on with it.
    Process,
    /// Send this cookie reply to where it came from, and nothing else.
    ReplyWithCookie(Vec<u8>),
    /// Do nothing but count it.
    Drop(DropReason),
}

/// Why a handshake datagram is dropped without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DropReason {
    /// Not an initiation or response at all.
    #[error("malformed handshake message")]
    Malformed(#[source] MessageError),
    /// mac1 is wrong: the sender doesn't know this appliance's key.
    #[error("handshake message with a wrong mac1")]
    Mac1,
    /// Its address, though proven, begins too many handshakes.
    #[error("too many handshakes from one address")]
    SourceRate,
    /// More addresses at once than are kept.
    #[error("too many addresses begin handshakes at once")]
    SourceTableFull,
    /// More responses than could be owed.
    #[error("too many handshake responses")]
    ResponseRate,
}

/// The doorkeeper: judges initiations and responses before any costly arithmetic.
pub struct CookieChecker {
    mac1_key: Mac1Key,
    reply_key: [u8; 32],
    secret: Option<CookieSecret>,
    initiations: TokenBucket,
    responses: TokenBucket,
    sources: HashMap<IpAddr, TokenBucket>,
}

impl Cookie {
    /// Is it still good at `now`?
    pub fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_since(self.received) < COOKIE_LIFETIME
    }

    /// Opens the reply to a message with this `mac1` that was sent to `responder`.
    pub(super) fn open(
        now: Instant,
        reply: CookieReply<'_>,
        responder: &PublicKey,
        mac1: &[u8; MAC_LENGTH],
    ) -> Result<Self, CookieError> {
        let sealed = reply.sealed_cookie();
        let (value, tag) = sealed.split_at(MAC_LENGTH);
        let mut value: [u8; MAC_LENGTH] = value.try_into().expect("split at its length");
        XChaCha20Poly1305::new(&reply_key(responder).into())
            .decrypt_in_place_detached(&reply.nonce().into(), mac1, &mut value, tag.into())
            .map_err(|_| CookieError::Forged)?;
        Ok(Self { value, received: now })
    }

    pub(super) fn as_bytes(&self) -> &[u8; MAC_LENGTH] {
        &self.value
    }
}

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cookie(received {:?})", self.received)
    }
}

impl CookieChecker {
    /// The doorkeeper of the appliance with this public key.
    pub fn new(local: &PublicKey) -> Self {
        Self {
            mac1_key: Mac1Key::of(local),
            reply_key: reply_key(local),
            secret: None,
            initiations: TokenBucket::full(INITIATIONS_PER_SECOND),
            responses: TokenBucket::full(RESPONSES_PER_SECOND),
            sources: HashMap::new(),
        }
    }

    /// Judges an initiation or response. Load is judged here, by rate;
    /// `under_load` says that the caller is busy besides. A cookie reply isn't for
    /// here: [`super::handshake::Initiator::take_cookie`] authenticates it.
    pub fn check(
        &mut self,
        now: Instant,
        source: SocketAddr,
        datagram: &[u8],
        under_load: bool,
        random: &mut dyn Random,
    ) -> Admission {
        let message = match HandshakeMessage::parse(datagram) {
            Ok(HandshakeMessage::CookieReply(_)) => {
                let kind = TYPE_COOKIE_REPLY;
                return Admission::Drop(DropReason::Malformed(MessageError::Type { kind }));
            }
            Ok(message) => message,
            Err(error) => return Admission::Drop(DropReason::Malformed(error)),
        };
        if !self.mac1_key.verify(datagram) {
            return Admission::Drop(DropReason::Mac1);
        }
        let HandshakeMessage::Initiation(initiation) = message else {
            return if self.responses.take(now) {
                Admission::Process
            } else {
                Admission::Drop(DropReason::ResponseRate)
            };
        };
        if self.initiations.take(now) && !under_load {
            return Admission::Process;
        }
        let cookie = self.cookie_of(now, source, random);
        if verify_mac2(initiation, &cookie) {
            self.charge(now, source.ip())
        } else {
            Admission::ReplyWithCookie(self.reply(initiation, &cookie, random))
        }
    }

    /// The cookie of an address: MAC(secret, IP ‖ port).
    fn cookie_of(
        &mut self,
        now: Instant,
        source: SocketAddr,
        random: &mut dyn Random,
    ) -> Zeroizing<[u8; MAC_LENGTH]> {
        if self.secret.as_ref().is_none_or(|secret| secret.is_old(now)) {
            self.secret = Some(CookieSecret { value: draw(random), made: now });
        }
        let secret = self.secret.as_ref().expect("just made where it was missing");
        let port = source.port().to_le_bytes();
        let ip = as_v6(source.ip()).octets();
        Zeroizing::new(mac(&secret.value, &[&ip, &port]).finalize().into_bytes().into())
    }

    fn reply(
        &self,
        initiation: Initiation<'_>,
        cookie: &[u8; MAC_LENGTH],
        random: &mut dyn Random,
    ) -> Vec<u8> {
        let nonce: [u8; 24] = draw(random);
        let mut sealed = *cookie;
        let tag = XChaCha20Poly1305::new(&self.reply_key.into())
            .encrypt_in_place_detached(&nonce.into(), &mac1_of(initiation.as_bytes()), &mut sealed)
            .expect("16 bytes are within the cipher's limit");
        let mut datagram = Vec::with_capacity(COOKIE_REPLY_LENGTH);
        datagram.extend([TYPE_COOKIE_REPLY, 0, 0, 0]);
        datagram.extend(initiation.sender().to_le_bytes());
        datagram.extend(nonce);
        datagram.extend(sealed);
        datagram.extend(tag);
        datagram
    }

    /// Counts an initiation against its proven address. An idle address's bucket
    /// is as good as a new one, so those go first when the table is full.
    fn charge(&mut self, now: Instant, source: IpAddr) -> Admission {
        let source = rate_group(source);
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&source) {
            self.sources.retain(|_, bucket| !bucket.is_full(now));
            if self.sources.len() >= SOURCES_MAX {
                return Admission::Drop(DropReason::SourceTableFull);
            }
        }
        let bucket = self
            .sources
            .entry(source)
            .or_insert(TokenBucket::full(INITIATIONS_PER_SECOND_PER_SOURCE));
        if bucket.take(now) { Admission::Process } else { Admission::Drop(DropReason::SourceRate) }
    }
}

impl fmt::Debug for CookieChecker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CookieChecker({} addresses)", self.sources.len())
    }
}

#[derive(Zeroize, ZeroizeOnDrop)]
struct CookieSecret {
    value: [u8; 32],
    #[zeroize(skip)]
    made: Instant,
}

impl CookieSecret {
    fn is_old(&self, now: Instant) -> bool {
        now.saturating_since(self.made) >= COOKIE_LIFETIME
    }
}

/// A second's worth of permits that fills up again evenly. Its level is kept as
/// the time it took to fill.
#[derive(Debug, Clone)]
struct TokenBucket {
    permit_nanos: u64,
    level_nanos: u64,
    updated: Instant,
}

impl TokenBucket {
    const FULL_NANOS: u64 = 1_000_000_000;

    fn full(permits_per_second: u32) -> Self {
        let permit_nanos = Self::FULL_NANOS / u64::from(permits_per_second);
        Self { permit_nanos, level_nanos: Self::FULL_NANOS, updated: Instant::ZERO }
    }

    /// Takes one permit, if there is one.
    fn take(&mut self, now: Instant) -> bool {
        self.level_nanos = self.level(now);
        self.updated = self.updated.max(now);
        let rest = self.level_nanos.checked_sub(self.permit_nanos);
        self.level_nanos = rest.unwrap_or(self.level_nanos);
        rest.is_some()
    }

    fn is_full(&self, now: Instant) -> bool {
        self.level(now) == Self::FULL_NANOS
    }

    fn level(&self, now: Instant) -> u64 {
        let elapsed = now.as_nanos().saturating_sub(self.updated.as_nanos());
        self.level_nanos.saturating_add(elapsed).min(Self::FULL_NANOS)
    }
}

fn reply_key(responder: &PublicKey) -> [u8; 32] {
    labelled_hash(b"landbridge v1 cookie", responder)
}

/// An IPv4 address and its IPv6-mapped form are one: which of the two a socket
/// reports depends on the socket.
fn as_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// The addresses that share a rate: one IPv4 address, or one IPv6 /64, which a
/// single host can have to itself.
fn rate_group(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{
            handshake::{Identity, Initiator, Responder},
            hello::tests::hello,
            keys::PrivateKey,
            message::{INITIATION_LENGTH_MIN, MACS},
            random::SeededRandom,
        },
        *,
    };

    struct Setup {
        here: Identity,
        there: Identity,
        checker: CookieChecker,
        random: SeededRandom,
    }

    impl Setup {
        fn new() -> Self {
            let mut random = SeededRandom(5);
            let [here, there] = [(); 2]
                .map(|()| Identity { private: PrivateKey::generate(&mut random), preshared: None });
            let checker = CookieChecker::new(&there.private.public());
            Self { here, there, checker, random }
        }

        fn initiation(&mut self, cookie: Option<&Cookie>) -> (Initiator, Vec<u8>) {
            let there = self.there.private.public();
            Initiator::start(&self.here, &there, 77, &hello(1), cookie, &mut self.random).unwrap()
        }

        fn check(&mut self, now: Instant, source: SocketAddr, datagram: &[u8]) -> Admission {
            self.checker.check(now, source, datagram, true, &mut self.random)
        }

        /// A cookie, as `source` gets it under load at `now`.
        fn cookie(&mut self, now: Instant, source: SocketAddr) -> Cookie {
            let (initiator, datagram) = self.initiation(None);
            let Admission::ReplyWithCookie(reply) = self.check(now, source, &datagram) else {
                panic!("no cookie reply")
            };
            initiator.take_cookie(now, &reply).unwrap()
        }
    }

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    fn source(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn without_load_no_cookie_is_asked_for() {
        let mut setup = Setup::new();
        let (_, datagram) = setup.initiation(None);
        let admission =
            setup.checker.check(at(1), source("192.0.2.1:5"), &datagram, false, &mut setup.random);
        assert_eq!(admission, Admission::Process);
    }

    #[test]
    fn load_is_noticed_by_rate_and_passes() {
        let mut setup = Setup::new();
        let (_, datagram) = setup.initiation(None);
        let processed = |now, setup: &mut Setup| {
            (0..INITIATIONS_PER_SECOND * 3)
                .filter(|_| {
                    let from = source("192.0.2.1:5");
                    setup.checker.check(now, from, &datagram, false, &mut setup.random)
                        == Admission::Process
                })
                .count() as u32
        };
        assert_eq!(processed(at(1), &mut setup), INITIATIONS_PER_SECOND);
        assert_eq!(processed(at(1), &mut setup), 0);
        let half = at(1) + Duration::from_millis(500);
        assert_eq!(processed(half, &mut setup), INITIATIONS_PER_SECOND / 2);
        assert_eq!(processed(at(99), &mut setup), INITIATIONS_PER_SECOND);
    }

    #[test]
    fn a_wrong_mac1_gets_silence_even_under_load() {
        let mut setup = Setup::new();
        let (_, datagram) = setup.initiation(None);
        for at_byte in [4, 8, 100, datagram.len() - MACS - 1, datagram.len() - MACS] {
            let mut damaged = datagram.clone();
            damaged[at_byte] ^= 1;
            assert_eq!(
                setup.check(at(1), source("192.0.2.1:5"), &damaged),
                Admission::Drop(DropReason::Mac1)
            );
        }
        let elsewhere = CookieChecker::new(&setup.here.private.public());
        setup.checker = elsewhere;
        assert_eq!(
            setup.check(at(1), source("192.0.2.1:5"), &datagram),
            Admission::Drop(DropReason::Mac1)
        );
    }

    #[test]
    fn a_cookie_opens_the_door_for_its_address_and_time_only() {
        let mut setup = Setup::new();
        let home = source("192.0.2.1:5");
        let cookie = setup.cookie(at(1), home);
        let (_, datagram) = setup.initiation(Some(&cookie));
        assert_eq!(setup.check(at(2), home, &datagram), Admission::Process);
        assert_eq!(
            setup.check(at(2), source("[::ffff:192.0.2.1]:5"), &datagram),
            Admission::Process
        );
        for elsewhere in ["192.0.2.2:5", "192.0.2.1:6", "[2001:db8::1]:5"] {
            let admission = setup.check(at(2), source(elsewhere), &datagram);
            assert!(matches!(admission, Admission::ReplyWithCookie(_)), "{elsewhere}");
        }
        let mut damaged = datagram.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert!(matches!(setup.check(at(2), home, &damaged), Admission::ReplyWithCookie(_)));

        assert_eq!(setup.check(at(120), home, &datagram), Admission::Process);
        assert!(matches!(setup.check(at(121), home, &datagram), Admission::ReplyWithCookie(_)));
        assert!(cookie.is_fresh(at(120)) && !cookie.is_fresh(at(121)));
    }

    #[test]
    fn an_initiation_with_a_cookie_still_makes_a_session() {
        let mut setup = Setup::new();
        let cookie = setup.cookie(at(1), source("192.0.2.1:5"));
        let (mut initiator, datagram) = setup.initiation(Some(&cookie));
        let responder =
            Responder::read(&setup.there, &datagram, &|_| true, &mut setup.random).unwrap();
        let answer = responder.respond(9, &hello(2)).unwrap();
        assert!(initiator.finish(&answer.datagram).is_ok());
    }

    #[test]
    fn cookie_replies_are_authenticated() {
        let mut setup = Setup::new();
        let home = source("192.0.2.1:5");
        let (initiator, datagram) = setup.initiation(None);
        let Admission::ReplyWithCookie(reply) = setup.check(at(1), home, &datagram) else {
            panic!("no cookie reply")
        };
        assert!(reply.len() < datagram.len());
        for byte in 0..reply.len() {
            let mut damaged = reply.clone();
            damaged[byte] ^= 0x10;
            assert!(initiator.take_cookie(at(1), &damaged).is_err(), "byte {byte}");
            assert!(initiator.take_cookie(at(1), &reply[..byte]).is_err(), "cut to {byte}");
        }
        let (other, _) = setup.initiation(None);
        assert!(matches!(other.take_cookie(at(1), &reply), Err(CookieError::Forged)));
        assert!(initiator.take_cookie(at(1), &reply).is_ok());
    }

    #[test]
    fn a_proven_address_is_held_to_its_rate() {
        let mut setup = Setup::new();
        let (home, other) = (source("[2001:db8::1]:5"), source("[2001:db8:0:1::1]:5"));
        let cookie = setup.cookie(at(1), home);
        let (_, datagram) = setup.initiation(Some(&cookie));
        for _ in 0..INITIATIONS_PER_SECOND_PER_SOURCE {
            assert_eq!(setup.check(at(2), home, &datagram), Admission::Process);
        }
        let refused = Admission::Drop(DropReason::SourceRate);
        assert_eq!(setup.check(at(2), home, &datagram), refused);

        let neighbour = source("[2001:db8::2]:5");
        let cookie = setup.cookie(at(2), neighbour);
        let (_, its) = setup.initiation(Some(&cookie));
        assert_eq!(setup.check(at(2), neighbour, &its), refused, "same /64, same rate");

        let cookie = setup.cookie(at(2), other);
        let (_, its) = setup.initiation(Some(&cookie));
        assert_eq!(setup.check(at(2), other, &its), Admission::Process);
        assert_eq!(setup.check(at(3), home, &datagram), Admission::Process);
    }

    #[test]
    fn the_table_of_addresses_is_bounded() {
        let mut checker = Setup::new().checker;
        let ip = |n: u32| IpAddr::V4(n.into());
        for n in 0..SOURCES_MAX as u32 {
            assert_eq!(checker.charge(at(1), ip(n)), Admission::Process);
        }
        let full = Admission::Drop(DropReason::SourceTableFull);
        assert_eq!(checker.charge(at(1), ip(u32::MAX)), full);
        assert_eq!(checker.charge(at(1), ip(0)), Admission::Process);
        assert_eq!(checker.charge(at(3), ip(u32::MAX)), Admission::Process);
        assert_eq!(checker.sources.len(), 1);
    }

    #[test]
    fn responses_have_a_rate_of_their_own() {
        let mut setup = Setup::new();
        let (_, datagram) = setup.initiation(None);
        let responder =
            Responder::read(&setup.there, &datagram, &|_| true, &mut setup.random).unwrap();
        let response = responder.respond(9, &hello(2)).unwrap().datagram;
        setup.checker = CookieChecker::new(&setup.here.private.public());
        for _ in 0..RESPONSES_PER_SECOND {
            assert_eq!(setup.check(at(1), source("192.0.2.1:5"), &response), Admission::Process);
        }
        assert_eq!(
            setup.check(at(1), source("192.0.2.1:5"), &response),
            Admission::Drop(DropReason::ResponseRate)
        );
    }

    #[test]
    fn debug_shows_no_cookie() {
        let mut setup = Setup::new();
        let cookie = setup.cookie(at(1), source("192.0.2.1:5"));
        assert_eq!(format!("{cookie:?}"), "Cookie(received 1.000000000s)");
    }

    proptest! {
        #[test]
        fn any_datagram_is_judged(
            kind in 0..5_u8, seed in any::<u64>(),
            length in prop_oneof![0..100_usize, Just(INITIATION_LENGTH_MIN), 0..1300_usize],
        ) {
            let mut setup = Setup::new();
            let mut datagram = vec![0; length];
            SeededRandom(seed).fill(&mut datagram);
            for (byte, value) in datagram.iter_mut().zip([kind, 0, 0, 0]) {
                *byte = value;
            }
            let admission = setup.check(at(1), source("192.0.2.1:5"), &datagram);
            prop_assert!(matches!(admission, Admission::Drop(_)));
        }

        #[test]
        fn a_bucket_never_gives_more_than_its_rate(
            steps in proptest::collection::vec(0..200_000_000_u64, 1..200),
        ) {
            let (rate, mut now) = (10, at(1));
            let mut bucket = TokenBucket::full(rate);
            let mut taken = 0;
            for step in steps {
                now = now + Duration::from_nanos(step);
                taken += u64::from(bucket.take(now));
                let elapsed = now.saturating_since(at(1)).as_nanos() as u64;
                prop_assert!(taken <= u64::from(rate) + elapsed / 100_000_000);
            }
        }
    }
}
