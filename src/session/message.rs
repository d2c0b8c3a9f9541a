//! Handshake datagrams as bytes: where things are, and the MACs that make a
//! stranger's datagram cheap to refuse.
//!
//! Little endian. Every Landbridge datagram starts `[type][lane][0][0]`; a
//! handshake's lane is 0.
//!
//! ```text
//! 1 initiation    [1][0][0][0][sender u32][Noise message][mac1 16][mac2 16]
//! 2 response      [2][0][0][0][sender u32][receiver u32][Noise message][mac1 16][mac2 16]
//! 3 cookie reply  [3][0][0][0][receiver u32][nonce 24][sealed cookie 16 + 16]
//! ```
//!
//! An initiation has at least [`INITIATION_LENGTH_MIN`] bytes, more than any
//! answer to it: Landbridge amplifies nobody's flood.
//!
//! `mac1` and `mac2` are WireGuard's (whitepaper, section 5.4.4), with labels of
//! our own: `mac1` is keyed with the receiver's public key, so only who knows it
//! gets an answer at all; `mac2` is keyed with a cookie that the receiver gave to
//! this very address. Both cover everything before them. A response's `mac2` is
//! zero and not looked at: what holds forged responses off is the receiver index, a
//! random number that only the path has seen.

use blake2::{
    Blake2s256, Blake2sMac, Digest,
    digest::{Mac, consts::U16},
};
use thiserror::Error;

use super::{hello::HELLO_LENGTH_MAX, keys::PublicKey};

/// Type byte of an initiation.
pub const TYPE_INITIATION: u8 = 1;
/// Type byte of a response.
pub const TYPE_RESPONSE: u8 = 2;
/// Type byte of a cookie reply.
pub const TYPE_COOKIE_REPLY: u8 = 3;

/// Bytes in mac1 and in mac2.
pub const MAC_LENGTH: usize = 16;
/// Bytes in a cookie reply, always.
pub const COOKIE_REPLY_LENGTH: usize = 8 + COOKIE_NONCE_LENGTH + SEALED_COOKIE_LENGTH;
/// The shortest initiation, in bytes; one fits the smallest IPv4 MTU that hosts
/// must take (576, RFC 1122 section 3.3.2).
pub const INITIATION_LENGTH_MIN: usize = 512;
/// The longest handshake datagram, in bytes: fits the IPv6 minimum MTU.
pub const HANDSHAKE_LENGTH_MAX: usize = 1200;

/// Bytes before the Noise message of an initiation.
pub(super) const INITIATION_HEADER: usize = 8;
/// Bytes before the Noise message of a response.
pub(super) const RESPONSE_HEADER: usize = 12;
/// Bytes that the Noise message of an initiation has beyond its payload: ephemeral key,
/// static key and tag, tag (`-> e, es, s, ss`).
pub(super) const INITIATION_NOISE: usize = 32 + (32 + 16) + 16;
/// Bytes that the Noise message of a response has beyond its payload: ephemeral key, tag
/// (`<- e, ee, se, psk`).
pub(super) const RESPONSE_NOISE: usize = 32 + 16;
/// Bytes of both MACs.
pub(super) const MACS: usize = 2 * MAC_LENGTH;
/// The session index that precedes the [`super::hello::Hello`] in either payload.
pub(super) const INDEX_LENGTH: usize = 4;
/// XChaCha20's nonce.
pub(super) const COOKIE_NONCE_LENGTH: usize = 24;
/// A cookie and its tag.
pub(super) const SEALED_COOKIE_LENGTH: usize = 16 + 16;

const RESPONSE_LENGTH_MIN: usize = RESPONSE_HEADER + RESPONSE_NOISE + INDEX_LENGTH + MACS;
const _: () = assert!(
    RESPONSE_LENGTH_MIN + HELLO_LENGTH_MAX <= INITIATION_LENGTH_MIN
        && COOKIE_REPLY_LENGTH <= INITIATION_LENGTH_MIN
        && INITIATION_HEADER + INITIATION_NOISE + INDEX_LENGTH + HELLO_LENGTH_MAX + MACS
            <= INITIATION_LENGTH_MIN
);

/// A handshake datagram whose lengths and header were checked, and nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeMessage<'a> {
    /// The first message.
    Initiation(Initiation<'a>),
    /// The answer to it.
    Response(Response<'a>),
    /// "Show that you are where you seem to be, then ask again."
    CookieReply(CookieReply<'a>),
}

/// A view of an initiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initiation<'a>(&'a [u8]);

/// A view of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response<'a>(&'a [u8]);

/// A view of a cookie reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CookieReply<'a>(&'a [u8]);

/// Why a datagram is not a handshake message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MessageError {
    /// Shorter than a header.
    #[error("{length} bytes are too few for a handshake message")]
    Truncated {
        /// Bytes that were there.
        length: usize,
    },
    /// The type byte of something else.
    #[error("type {kind} is not a handshake message's")]
    Type {
        /// The type byte.
        kind: u8,
    },
    /// The lane or a reserved byte isn't zero.
    #[error("the lane and reserved bytes of a handshake message are not zero")]
    Header,
    /// A length that a message of this type can't have.
    #[error("a handshake message of type {kind} cannot have {length} bytes")]
    Length {
        /// The type byte.
        kind: u8,
        /// Bytes that were there.
        length: usize,
    },
}

impl<'a> HandshakeMessage<'a> {
    /// Checks the header and length of `datagram`.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn parse(datagram: &'a [u8]) -> Result<Self, MessageError> {
        let length = datagram.len();
        let &[kind, lane, reserved_1, reserved_2, ..] = datagram else {
            return Err(MessageError::Truncated { length });
        };
        let (lengths, message) = match kind {
            TYPE_INITIATION => (
                INITIATION_LENGTH_MIN..=HANDSHAKE_LENGTH_MAX,
                Self::Initiation(Initiation(datagram)),
            ),
            TYPE_RESPONSE => {
                (RESPONSE_LENGTH_MIN..=HANDSHAKE_LENGTH_MAX, Self::Response(Response(datagram)))
            }
            TYPE_COOKIE_REPLY => (
                COOKIE_REPLY_LENGTH..=COOKIE_REPLY_LENGTH,
                Self::CookieReply(CookieReply(datagram)),
            ),
            _ => return Err(MessageError::Type { kind }),
        };
        if (lane, reserved_1, reserved_2) != (0, 0, 0) {
            return Err(MessageError::Header);
        }
        if !lengths.contains(&length) {
            return Err(MessageError::Length { kind, length });
        }
        Ok(message)
    }
}

impl<'a> Initiation<'a> {
    /// Checks that `datagram` is an initiation.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn parse(datagram: &'a [u8]) -> Result<Self, MessageError> {
        match HandshakeMessage::parse(datagram)? {
            HandshakeMessage::Initiation(initiation) => Ok(initiation),
            _ => Err(MessageError::Type { kind: datagram[0] }),
        }
    }

    /// The whole datagram.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// The initiator's session index, not authenticated: good to address a
    /// cookie reply, no more.
    pub fn sender(self) -> u32 {
        u32_at(self.0, 4)
    }

    /// The initiator's ephemeral key, sent in the clear: names this very message.
    pub fn ephemeral(self) -> [u8; 32] {
        array_at(self.0, INITIATION_HEADER)
    }

    pub(super) fn noise(self) -> &'a [u8] {
        &self.0[INITIATION_HEADER..self.0.len() - MACS]
    }
}

impl<'a> Response<'a> {
    /// Checks that `datagram` is a response.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn parse(datagram: &'a [u8]) -> Result<Self, MessageError> {
        match HandshakeMessage::parse(datagram)? {
            HandshakeMessage::Response(response) => Ok(response),
            _ => Err(MessageError::Type { kind: datagram[0] }),
        }
    }

    /// The whole datagram.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// The index of the session that the initiator asked for.
    pub fn receiver(self) -> u32 {
        u32_at(self.0, 8)
    }

    pub(super) fn noise(self) -> &'a [u8] {
        &self.0[RESPONSE_HEADER..self.0.len() - MACS]
    }
}

impl<'a> CookieReply<'a> {
    /// Checks that `datagram` is a cookie reply.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn parse(datagram: &'a [u8]) -> Result<Self, MessageError> {
        match HandshakeMessage::parse(datagram)? {
            HandshakeMessage::CookieReply(reply) => Ok(reply),
            _ => Err(MessageError::Type { kind: datagram[0] }),
        }
    }

    /// The index of the session that the initiator asked for.
    pub fn receiver(self) -> u32 {
        u32_at(self.0, 4)
    }

    pub(super) fn nonce(self) -> [u8; COOKIE_NONCE_LENGTH] {
        array_at(self.0, 8)
    }

    pub(super) fn sealed_cookie(self) -> [u8; SEALED_COOKIE_LENGTH] {
        array_at(self.0, 8 + COOKIE_NONCE_LENGTH)
    }
}

/// The key of mac1 in messages to one appliance: BLAKE2s(label ‖ its public key).
#[derive(Debug, Clone)]
pub(super) struct Mac1Key([u8; 32]);

impl Mac1Key {
    pub(super) fn of(receiver: &PublicKey) -> Self {
        Self(labelled_hash(b"landbridge v1 mac1", receiver))
    }

    /// Appends both MACs to a message that has neither; mac2 is zero without a cookie.
    /// Returns mac1.
    pub(super) fn append(
        &self,
        message: &mut Vec<u8>,
        cookie: Option<&[u8; 16]>,
    ) -> [u8; MAC_LENGTH] {
        let mac1 = mac(&self.0, &[message]).finalize().into_bytes().into();
        message.extend(mac1);
        let mac2 = cookie.map_or([0; MAC_LENGTH], |cookie| {
            mac(cookie, &[message]).finalize().into_bytes().into()
        });
        message.extend(mac2);
        mac1
    }

    /// Is mac1 of this initiation or response right? In constant time.
    pub(super) fn verify(&self, datagram: &[u8]) -> bool {
        let (covered, macs) = datagram.split_at(datagram.len() - MACS);
        mac(&self.0, &[covered]).verify_slice(&macs[..MAC_LENGTH]).is_ok()
    }
}

/// Is mac2 of this initiation made with `cookie`? In constant time.
pub(super) fn verify_mac2(initiation: Initiation<'_>, cookie: &[u8; 16]) -> bool {
    let (covered, mac2) = initiation.0.split_at(initiation.0.len() - MAC_LENGTH);
    mac(cookie, &[covered]).verify_slice(mac2).is_ok()
}

/// Keyed BLAKE2s-128 (RFC 7693 section 2.9) over `parts`, one after the other.
pub(super) fn mac(key: &[u8], parts: &[&[u8]]) -> Blake2sMac<U16> {
    let mut mac = <Blake2sMac<U16> as Mac>::new_from_slice(key)
        .expect("BLAKE2s takes keys of up to 32 bytes");
    for part in parts {
        Mac::update(&mut mac, part);
    }
    mac
}

/// BLAKE2s-256 of a label and a public key.
pub(super) fn labelled_hash(label: &[u8], key: &PublicKey) -> [u8; 32] {
    Blake2s256::new().chain_update(label).chain_update(key.as_bytes()).finalize().into()
}

/// mac1 of an initiation or response.
pub(super) fn mac1_of(datagram: &[u8]) -> [u8; MAC_LENGTH] {
    array_at(datagram, datagram.len() - MACS)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of N bytes")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_and_headers() {
        let cases: [(u8, usize, bool); 10] = [
            (1, INITIATION_LENGTH_MIN, true),
            (1, INITIATION_LENGTH_MIN - 1, false),
            (1, HANDSHAKE_LENGTH_MAX, true),
            (1, HANDSHAKE_LENGTH_MAX + 1, false),
            (2, RESPONSE_LENGTH_MIN, true),
            (2, RESPONSE_LENGTH_MIN - 1, false),
            (2, HANDSHAKE_LENGTH_MAX + 1, false),
            (3, COOKIE_REPLY_LENGTH, true),
            (3, COOKIE_REPLY_LENGTH - 1, false),
            (3, COOKIE_REPLY_LENGTH + 1, false),
        ];
        for (kind, length, good) in cases {
            let mut datagram = vec![0; length];
            datagram[0] = kind;
            let expected = if good { None } else { Some(MessageError::Length { kind, length }) };
            assert_eq!(HandshakeMessage::parse(&datagram).err(), expected, "{kind} {length}");
            for reserved in 1..4 {
                let mut datagram = datagram.clone();
                datagram[reserved] = 1;
                assert_eq!(HandshakeMessage::parse(&datagram), Err(MessageError::Header));
            }
        }
        assert_eq!(HandshakeMessage::parse(&[1, 0, 0]), Err(MessageError::Truncated { length: 3 }));
        for kind in [0, 4, 5, 255] {
            let datagram = [kind; 600];
            assert_eq!(HandshakeMessage::parse(&datagram), Err(MessageError::Type { kind }));
        }
    }

    #[test]
    fn one_type_is_not_another() {
        let datagrams = [1, 2, 3].map(|kind| {
            let length = if kind == 3 { COOKIE_REPLY_LENGTH } else { INITIATION_LENGTH_MIN };
            let mut datagram = vec![0; length];
            datagram[0] = kind;
            datagram
        });
        for datagram in &datagrams {
            let parsed = [
                Initiation::parse(datagram).is_ok(),
                Response::parse(datagram).is_ok(),
                CookieReply::parse(datagram).is_ok(),
            ];
            let expected: [bool; 3] = [1, 2, 3].map(|kind| datagram[0] == kind);
            assert_eq!(parsed, expected);
        }
    }

    proptest! {
        #[test]
        fn accessors_never_fail(
            kind in 0..5_u8, body in proptest::collection::vec(any::<u8>(), 0..1300),
        ) {
            let datagram = [&[kind, 0, 0, 0], &body[..]].concat();
            match HandshakeMessage::parse(&datagram) {
                Ok(HandshakeMessage::Initiation(m)) => {
                    prop_assert!(m.noise().len() >= INITIATION_NOISE);
                    prop_assert_eq!(&m.ephemeral()[..], &m.noise()[..32]);
                    prop_assert_eq!(&m.sender().to_le_bytes()[..], &m.as_bytes()[4..8]);
                }
                Ok(HandshakeMessage::Response(m)) => {
                    prop_assert!(m.noise().len() >= RESPONSE_NOISE);
                    prop_assert_eq!(&m.receiver().to_le_bytes()[..], &m.as_bytes()[8..12]);
                }
                Ok(HandshakeMessage::CookieReply(m)) => {
                    prop_assert_eq!(&m.sealed_cookie()[..], &datagram[32..64]);
                    prop_assert_eq!(&m.nonce()[..], &datagram[8..32]);
                    prop_assert_eq!(&m.receiver().to_le_bytes()[..], &datagram[4..8]);
                }
                Err(_) => {}
            }
        }
    }
}
