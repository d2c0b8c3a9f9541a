//! Signals: short messages between the two ends of a lane, outside its stream.
//!
//! The plaintext of a signal datagram is a list of
//! `[kind u8][length u16 LE][body]`; kind 0 is padding up to the end.
//! Unknown kinds are skipped by their length and counted.

use bytes::{Buf, BufMut};

/// One signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// Asks for a [`Signal::Pong`] with the same sequence number. Padded to a
    /// size under test, it is a path MTU probe (RFC 8899, section 4.1).
    Ping {
        /// Chosen by the sender, returned by the receiver.
        sequence: u32,
    },
    /// Answers a ping.
    Pong {
        /// The ping's.
        sequence: u32,
    },
    /// The sender is going away; the session is over.
    Close {
        /// Why.
        reason: CloseReason,
    },
    /// Digest of the sender's group file, for versions that change it while they
    /// run: this one understands it, but tells its own in handshakes only.
    GroupDigest {
        /// [`crate::config::Group`]'s digest.
        digest: [u8; 32],
    },
}

/// Why a peer closes its session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseReason {
    /// It stops on its operator's request.
    Shutdown,
    /// Anything that this version has no word for.
    Other(u8),
}

const PADDING: u8 = 0;
const PING: u8 = 1;
const PONG: u8 = 2;
const CLOSE: u8 = 3;
const GROUP_DIGEST: u8 = 4;
#[cfg(feature = "next-protocol")]
const UNHEARD_OF: u8 = 200;

impl Signal {
    /// Appends the signal to `out`.
    pub fn emit(&self, out: &mut impl BufMut) {
        match self {
            Self::Ping { sequence } => put(out, PING, &sequence.to_le_bytes()),
            Self::Pong { sequence } => put(out, PONG, &sequence.to_le_bytes()),
            Self::Close { reason } => put(out, CLOSE, &[reason.to_wire()]),
            Self::GroupDigest { digest } => put(out, GROUP_DIGEST, digest),
        }
        #[cfg(feature = "next-protocol")]
        put(out, UNHEARD_OF, b"a signal that only the next version knows");
    }
}

fn put(out: &mut impl BufMut, kind: u8, body: &[u8]) {
    out.put_u8(kind);
    out.put_u16_le(body.len() as u16);
    out.put_slice(body);
}

impl CloseReason {
    const SHUTDOWN: u8 = 1;

    const fn to_wire(self) -> u8 {
        match self {
            Self::Shutdown => Self::SHUTDOWN,
            Self::Other(code) => code,
        }
    }

    const fn from_wire(code: u8) -> Self {
        match code {
            Self::SHUTDOWN => Self::Shutdown,
            other => Self::Other(other),
        }
    }
}

/// What stands at one place of a signal datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Item {
    /// A signal that this version knows.
    Known(Signal),
    /// A kind that it does not: skipped.
    Unknown(u8),
    /// The rest of the datagram makes no sense.
    Malformed,
}

/// Walks over the signals of a plaintext.
pub fn parse(plaintext: &[u8]) -> impl Iterator<Item = Item> {
    let mut rest = plaintext;
    std::iter::from_fn(move || {
        if !rest.has_remaining() || rest[0] == PADDING {
            return None;
        }
        let item = parse_one(&mut rest);
        if item == Item::Malformed {
            rest = &[];
        }
        Some(item)
    })
}

fn parse_one(rest: &mut &[u8]) -> Item {
    let kind = rest.get_u8();
    let Ok(length) = rest.try_get_u16_le() else { return Item::Malformed };
    let Some((body, after)) = rest.split_at_checked(usize::from(length)) else {
        return Item::Malformed;
    };
    *rest = after;
    // Longer bodies are allowed: a later version may append fields.
    match (kind, body) {
        (PING, [a, b, c, d, ..]) => {
            Item::Known(Signal::Ping { sequence: u32::from_le_bytes([*a, *b, *c, *d]) })
        }
        (PONG, [a, b, c, d, ..]) => {
            Item::Known(Signal::Pong { sequence: u32::from_le_bytes([*a, *b, *c, *d]) })
        }
        (CLOSE, [code, ..]) => Item::Known(Signal::Close { reason: CloseReason::from_wire(*code) }),
        (GROUP_DIGEST, body) => match body.first_chunk() {
            Some(digest) => Item::Known(Signal::GroupDigest { digest: *digest }),
            None => Item::Malformed,
        },
        (PING | PONG | CLOSE, _) => Item::Malformed,
        (other, _) => Item::Unknown(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn known(plaintext: &[u8]) -> Vec<Signal> {
        parse(plaintext)
            .filter_map(|item| match item {
                Item::Known(signal) => Some(signal),
                _ => None,
            })
            .collect()
    }

    proptest! {
        #[test]
        fn round_trips(sequence: u32, digest: [u8; 32], code in 2u8.., padding in 0usize..50) {
            let signals = [
                Signal::Ping { sequence },
                Signal::GroupDigest { digest },
                Signal::Close { reason: CloseReason::Other(code) },
                Signal::Pong { sequence },
            ];
            let mut bytes = Vec::new();
            for signal in &signals {
                signal.emit(&mut bytes);
            }
            bytes.resize(bytes.len() + padding, 0);
            prop_assert_eq!(known(&bytes), signals);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            prop_assert!(parse(&bytes).count() <= bytes.len());
        }
    }

    #[test]
    fn unknown_kinds_are_skipped_and_the_next_signal_is_read() {
        let mut bytes = Vec::new();
        put(&mut bytes, 99, b"news");
        put(&mut bytes, PING, &7u32.to_le_bytes());
        assert_eq!(
            parse(&bytes).collect::<Vec<_>>(),
            [Item::Unknown(99), Item::Known(Signal::Ping { sequence: 7 })]
        );
    }

    #[test]
    fn a_truncated_signal_ends_the_walk() {
        assert_eq!(parse(&[PING, 9, 0, 1]).collect::<Vec<_>>(), [Item::Malformed]);
        assert_eq!(parse(&[PING, 1, 0, 1]).collect::<Vec<_>>(), [Item::Malformed]);
        assert_eq!(parse(&[PING]).collect::<Vec<_>>(), [Item::Malformed]);
    }
}
