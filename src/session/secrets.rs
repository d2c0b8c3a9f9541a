//! From a finished handshake to the key of each lane and direction.

use std::fmt;

use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::aead::{CIPHER_KEY_LENGTH, CipherSuite, OpenKey, SealKey};

const LABEL: &[u8] = b"landbridge v1 lane";

/// What a finished handshake leaves behind: both keys of Noise's `Split()` and
/// the handshake hash. Wiped when dropped; never shown by `Debug`.
///
/// Each lane and direction has a key of its own, so none shares a counter or a
/// replay window with another:
///
/// ```text
/// key = HKDF-SHA-256(salt = handshake hash, secret = k1 ‖ k2,
///                    info = "landbridge v1 lane" ‖ lane ‖ direction)      RFC 5869
/// direction: 0 from the initiator, 1 from the responder
/// ```
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct SessionSecrets {
    split: [u8; 2 * CIPHER_KEY_LENGTH],
    handshake_hash: [u8; 32],
    #[zeroize(skip)]
    cipher: CipherSuite,
    #[zeroize(skip)]
    initiated: bool,
}

/// Both keys of one lane, as this appliance uses them.
#[derive(Debug)]
pub struct LaneKeys {
    /// Seals what is sent.
    pub seal: SealKey,
    /// Opens what is received.
    pub open: OpenKey,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    FromInitiator = 0,
    FromResponder = 1,
}

impl SessionSecrets {
    pub(super) fn new(
        split: (&[u8; CIPHER_KEY_LENGTH], &[u8; CIPHER_KEY_LENGTH]),
        handshake_hash: [u8; 32],
        cipher: CipherSuite,
        initiated: bool,
    ) -> Self {
        let mut secrets =
            Self { split: [0; 2 * CIPHER_KEY_LENGTH], handshake_hash, cipher, initiated };
        let (from_initiator, from_responder) = secrets.split.split_at_mut(CIPHER_KEY_LENGTH);
        from_initiator.copy_from_slice(split.0);
        from_responder.copy_from_slice(split.1);
        secrets
    }

    /// The keys of `lane`. Asked twice, it gives the same keys: the counters must
    /// then go on, not start again.
    pub fn lane(&self, lane: u8) -> LaneKeys {
        let (sent, received) = if self.initiated {
            (Direction::FromInitiator, Direction::FromResponder)
        } else {
            (Direction::FromResponder, Direction::FromInitiator)
        };
        LaneKeys {
            seal: SealKey::new(self.cipher, &mut self.key(lane, sent)),
            open: OpenKey::new(self.cipher, &mut self.key(lane, received)),
        }
    }

    fn key(&self, lane: u8, direction: Direction) -> Zeroizing<[u8; CIPHER_KEY_LENGTH]> {
        let mut key = Zeroizing::new([0; CIPHER_KEY_LENGTH]);
        Salt::new(HKDF_SHA256, &self.handshake_hash)
            .extract(&self.split)
            .expand(&[LABEL, &[lane, direction as u8]], CipherKey)
            .and_then(|okm| okm.fill(&mut *key))
            .expect("32 bytes are within HKDF's limit");
        key
    }
}

impl fmt::Debug for SessionSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionSecrets({})", self.cipher)
    }
}

struct CipherKey;

impl KeyType for CipherKey {
    fn len(&self) -> usize {
        CIPHER_KEY_LENGTH
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn secrets(initiated: bool) -> SessionSecrets {
        SessionSecrets::new((&[1; 32], &[2; 32]), [3; 32], CipherSuite::Aes256Gcm, initiated)
    }

    #[test]
    fn no_two_lanes_or_directions_share_a_key() {
        let secrets = secrets(true);
        let keys: HashSet<[u8; 32]> = (0..=u8::MAX)
            .flat_map(|lane| {
                [Direction::FromInitiator, Direction::FromResponder]
                    .map(|direction| *secrets.key(lane, direction))
            })
            .collect();
        assert_eq!(keys.len(), 512);
    }

    #[test]
    fn every_input_changes_the_key() {
        let key = |one, two, hash| {
            *SessionSecrets::new((&[one; 32], &[two; 32]), [hash; 32], CipherSuite::Aes256Gcm, true)
                .key(0, Direction::FromInitiator)
        };
        let keys = HashSet::from([key(1, 2, 3), key(9, 2, 3), key(1, 9, 3), key(1, 2, 9)]);
        assert_eq!(keys.len(), 4);
    }

    #[test]
    fn what_one_side_seals_only_the_other_opens_on_that_lane() {
        let (here, there) = (secrets(true), secrets(false));
        let sealed = |from: &SessionSecrets, lane| {
            let (mut datagram, mut tag) = (b"frame".to_vec(), [0; 16]);
            from.lane(lane).seal.seal(1, b"", &mut datagram, &mut tag);
            datagram.extend(tag);
            datagram
        };
        for (from, to) in [(&here, &there), (&there, &here)] {
            assert_eq!(to.lane(5).open.open(1, b"", &mut sealed(from, 5)), Ok(5));
            assert!(to.lane(6).open.open(1, b"", &mut sealed(from, 5)).is_err());
            assert!(from.lane(5).open.open(1, b"", &mut sealed(from, 5)).is_err());
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(format!("{:?}", secrets(true)), "SessionSecrets(AES-256-GCM)");
    }
}
