//! Long-term keys: an appliance's X25519 key pair and the group's preshared key.
//!
//! Text is base64 of the 32 bytes, as `wg genkey`, `wg pubkey` and `wg genpsk`
//! write it.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use thiserror::Error;
use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::random::Random;

/// Bytes in each kind of key.
pub const KEY_LENGTH: usize = 32;

/// An appliance's X25519 private key. Wiped from memory when dropped; never
/// shown by `Debug`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; KEY_LENGTH]);

/// An appliance's X25519 public key: who it is, to every other member.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_LENGTH]);

/// A secret that members share beforehand: mixed into each handshake (the
/// `psk2` of Noise `IKpsk2`), it keeps recorded traffic secret even from one who
/// breaks X25519 later. Wiped when dropped; never shown by `Debug`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; KEY_LENGTH]);

/// Why a text or bytes are not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Not base64 at all.
    #[error(
        "the key is not valid base64: a key is 44 characters (A-Z a-z 0-9 + /) that end in `=`"
    )]
    Base64,
    /// Base64 of another number of bytes.
    #[error("the key decodes to {length} bytes, not 32: was it cut off, or pasted twice?")]
    Length {
        /// Bytes that were found.
        length: usize,
    },
    /// 32 zero bytes: a placeholder, never a key.
    #[error("the key is all zeros: that is a placeholder, put a generated key in its place")]
    AllZero,
}

impl PrivateKey {
    /// Makes a new key from 32 random bytes, clamped as RFC 7748 section 5 says.
    pub fn generate(random: &mut dyn Random) -> Self {
        let mut key = Self([0; KEY_LENGTH]);
        random.fill(&mut key.0);
        key.0[0] &= 0xf8;
        key.0[31] = (key.0[31] & 0x7f) | 0x40;
        key
    }

    /// Takes 32 raw bytes.
    ///
    /// # Errors
    /// [`KeyError::AllZero`].
    pub fn from_bytes(bytes: [u8; KEY_LENGTH]) -> Result<Self, KeyError> {
        Ok(Self(*not_all_zero(Zeroizing::new(bytes))?))
    }

    /// The public key that belongs to this one.
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&StaticSecret::from(self.0)).to_bytes())
    }

    /// The key as base64, for the file that keeps it. The text is wiped when dropped.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0))
    }

    pub(super) fn as_bytes(&self) -> &[u8; KEY_LENGTH] {
        &self.0
    }
}

impl PublicKey {
    /// Takes 32 raw bytes.
    ///
    /// # Errors
    /// [`KeyError::AllZero`].
    pub fn from_bytes(bytes: [u8; KEY_LENGTH]) -> Result<Self, KeyError> {
        Ok(Self(*not_all_zero(Zeroizing::new(bytes))?))
    }

    /// The 32 raw bytes.
    pub fn as_bytes(&self) -> &[u8; KEY_LENGTH] {
        &self.0
    }
}

impl PresharedKey {
    /// Makes a new key from 32 random bytes.
    pub fn generate(random: &mut dyn Random) -> Self {
        let mut key = Self([0; KEY_LENGTH]);
        random.fill(&mut key.0);
        key
    }

    /// Takes 32 raw bytes.
    ///
    /// # Errors
    /// [`KeyError::AllZero`].
    pub fn from_bytes(bytes: [u8; KEY_LENGTH]) -> Result<Self, KeyError> {
        Ok(Self(*not_all_zero(Zeroizing::new(bytes))?))
    }

    /// The key as base64. The text is wiped when dropped.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0))
    }

    pub(super) fn as_bytes(&self) -> &[u8; KEY_LENGTH] {
        &self.0
    }
}

impl FromStr for PrivateKey {
    type Err = KeyError;

    /// Reads base64; white space around it is ignored.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        Ok(Self(*decode(text)?))
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    /// Reads base64; white space around it is ignored.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        Ok(Self(*decode(text)?))
    }
}

impl FromStr for PresharedKey {
    type Err = KeyError;

    /// Reads base64; white space around it is ignored.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        Ok(Self(*decode(text)?))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(public {})", self.public())
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(…)")
    }
}

fn decode(text: &str) -> Result<Zeroizing<[u8; KEY_LENGTH]>, KeyError> {
    let bytes = Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_| KeyError::Base64)?);
    let key = <[u8; KEY_LENGTH]>::try_from(bytes.as_slice())
        .map_err(|_| KeyError::Length { length: bytes.len() })?;
    not_all_zero(Zeroizing::new(key))
}

fn not_all_zero(
    bytes: Zeroizing<[u8; KEY_LENGTH]>,
) -> Result<Zeroizing<[u8; KEY_LENGTH]>, KeyError> {
    if bytes.iter().fold(0, |sum, byte| sum | byte) == 0 {
        return Err(KeyError::AllZero);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::random::SeededRandom, *};

    /// RFC 7748 section 6.1, Alice's key pair.
    #[test]
    fn public_key_of_the_rfc() {
        let private: PrivateKey = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=".parse().unwrap();
        assert_eq!(private.public().to_string(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }

    #[test]
    fn generated_keys_are_clamped_and_differ() {
        let mut random = SeededRandom(1);
        let (one, two) = (PrivateKey::generate(&mut random), PrivateKey::generate(&mut random));
        for key in [&one, &two] {
            assert_eq!(key.as_bytes()[0] & 7, 0);
            assert_eq!(key.as_bytes()[31] & 0xc0, 0x40);
        }
        assert_ne!(one.public(), two.public());
    }

    #[test]
    fn mistakes_are_told_apart() {
        let zeros = STANDARD.encode([0; 32]);
        let cases = [
            ("", KeyError::Length { length: 0 }),
            ("not a key", KeyError::Base64),
            ("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo", KeyError::Base64),
            ("aGVsbG8=", KeyError::Length { length: 5 }),
            (zeros.as_str(), KeyError::AllZero),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<PublicKey>().unwrap_err(), error, "{text:?}");
            assert_eq!(text.parse::<PrivateKey>().unwrap_err(), error, "{text:?}");
            assert_eq!(text.parse::<PresharedKey>().unwrap_err(), error, "{text:?}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let mut random = SeededRandom(2);
        let (private, preshared) =
            (PrivateKey::generate(&mut random), PresharedKey::generate(&mut random));
        assert!(!format!("{private:?}").contains(private.to_base64().as_str()));
        assert!(!format!("{preshared:?}").contains(preshared.to_base64().as_str()));
        assert!(format!("{private:?}").contains(&private.public().to_string()));
    }

    proptest! {
        #[test]
        fn text_round_trips(bytes in any::<[u8; 32]>()) {
            prop_assume!(bytes != [0; 32]);
            let public = PublicKey::from_bytes(bytes).unwrap();
            prop_assert_eq!(format!(" {public}\n").parse::<PublicKey>().unwrap(), public);
            let private = PrivateKey::from_bytes(bytes).unwrap();
            prop_assert_eq!(*private.to_base64().parse::<PrivateKey>().unwrap().as_bytes(), bytes);
            let preshared = PresharedKey::from_bytes(bytes).unwrap();
            prop_assert_eq!(
                *preshared.to_base64().parse::<PresharedKey>().unwrap().as_bytes(), bytes);
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,60}") {
            if let Ok(key) = text.parse::<PublicKey>() {
                prop_assert_eq!(key.to_string(), text.trim());
            }
        }
    }
}
