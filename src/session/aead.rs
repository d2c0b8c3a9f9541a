//! Sealing and opening datagrams: AES-256-GCM or ChaCha20-Poly1305.
//!
//! The only module that knows which library does the arithmetic: `ring` today.
//! `aws-lc-rs` has the same interface and could take its place here.
//!
//! **Nonce** (96 bits, RFC 5116 section 3.2): four zero bytes, then the
//! datagram's counter, little endian. It never repeats because each (session,
//! lane, direction) has a key of its own and never uses a counter twice.

use std::{fmt, hint::black_box};

use ring::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use thiserror::Error;
use zeroize::Zeroize;

/// Bytes that sealing adds to a datagram, whichever the cipher.
pub const TAG_LENGTH: usize = 16;
/// Bytes in a cipher's key, whichever the cipher.
pub const CIPHER_KEY_LENGTH: usize = 32;

/// An AEAD that transport datagrams can be sealed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CipherSuite {
    /// AES-256-GCM (NIST SP 800-38D): the fastest, given AES instructions.
    Aes256Gcm,
    /// ChaCha20-Poly1305 (RFC 8439): the fastest without them.
    ChaCha20Poly1305,
}

impl CipherSuite {
    /// All suites, the preferred first.
    pub const ALL: [Self; 2] = [Self::Aes256Gcm, Self::ChaCha20Poly1305];

    /// The suite's bit in a [`CipherSet`] as the handshake carries it. Bit 0 stays free.
    pub const fn wire_bit(self) -> u32 {
        match self {
            Self::Aes256Gcm => 1 << 1,
            Self::ChaCha20Poly1305 => 1 << 2,
        }
    }

    fn algorithm(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes256Gcm => &aead::AES_256_GCM,
            Self::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        }
    }
}

impl fmt::Display for CipherSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Aes256Gcm => "AES-256-GCM",
            Self::ChaCha20Poly1305 => "ChaCha20-Poly1305",
        })
    }
}

/// The suites that an appliance offers. AES-256-GCM is in it only where the
/// processor has instructions for it, so that two sets have AES in common only
/// if it is fast at both ends.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CipherSet(u32);

impl CipherSet {
    /// No suite at all.
    pub const EMPTY: Self = Self(0);

    /// What an appliance offers, given whether its processor has AES (and
    /// carry-less multiplication) instructions.
    pub const fn for_hardware(has_aes: bool) -> Self {
        let portable = Self::EMPTY.with(CipherSuite::ChaCha20Poly1305);
        if has_aes { portable.with(CipherSuite::Aes256Gcm) } else { portable }
    }

    /// What to offer on this processor. Asked once, at start-up.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        let has_aes = std::arch::is_x86_feature_detected!("aes")
            && std::arch::is_x86_feature_detected!("pclmulqdq");
        #[cfg(target_arch = "aarch64")]
        let has_aes = std::arch::is_aarch64_feature_detected!("aes")
            && std::arch::is_aarch64_feature_detected!("pmull");
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let has_aes = false;
        Self::for_hardware(has_aes)
    }

    /// The set as the handshake carries it. Bits of later suites are kept.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The bits that the handshake carries.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// This set and `suite`.
    #[must_use]
    pub const fn with(self, suite: CipherSuite) -> Self {
        Self(self.0 | suite.wire_bit())
    }

    /// Is `suite` in it?
    pub const fn contains(self, suite: CipherSuite) -> bool {
        self.0 & suite.wire_bit() != 0
    }

    /// The suite that this set and `other` agree on, if any: the same whichever
    /// side asks.
    pub fn preferred_with(self, other: Self) -> Option<CipherSuite> {
        CipherSuite::ALL.into_iter().find(|suite| self.contains(*suite) && other.contains(*suite))
    }
}

impl fmt::Debug for CipherSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(CipherSuite::ALL.into_iter().filter(|suite| self.contains(*suite)))
            .finish()
    }
}

/// The key that seals what this appliance sends on one lane.
pub struct SealKey(Key);

/// The key that opens what this appliance receives on one lane.
pub struct OpenKey(Key);

/// A datagram that is not what the holder of the key sealed: forged, damaged,
/// or sealed with another key, counter or associated data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the datagram does not authenticate: forged, damaged or sealed with another key")]
pub struct OpenError;

impl SealKey {
    /// Makes the key from its 32 bytes, which are wiped.
    pub fn new(suite: CipherSuite, bytes: &mut [u8; CIPHER_KEY_LENGTH]) -> Self {
        Self(Key::new(suite, bytes))
    }

    /// The cipher in use.
    pub fn suite(&self) -> CipherSuite {
        self.0.suite
    }

    /// Encrypts `plaintext` where it lies and writes its tag to `tag`; `aad` is
    /// authenticated with it. The caller never uses a `counter` twice.
    ///
    /// # Panics
    /// Where `plaintext` is longer than the cipher allows (2³⁶ bytes, RFC 5116
    /// section 5.2; a datagram has 2¹⁶ at most).
    #[inline]
    pub fn seal(&self, counter: u64, aad: &[u8], plaintext: &mut [u8], tag: &mut [u8; TAG_LENGTH]) {
        let sealed = self
            .0
            .inner
            .seal_in_place_separate_tag(nonce(counter), Aad::from(aad), plaintext)
            .expect("a datagram is far shorter than the cipher's limit");
        tag.copy_from_slice(sealed.as_ref());
    }
}

impl OpenKey {
    /// Makes the key from its 32 bytes, which are wiped.
    pub fn new(suite: CipherSuite, bytes: &mut [u8; CIPHER_KEY_LENGTH]) -> Self {
        Self(Key::new(suite, bytes))
    }

    /// The cipher in use.
    pub fn suite(&self) -> CipherSuite {
        self.0.suite
    }

    /// Authenticates and decrypts `ciphertext_and_tag` where it lies. Returns the
    /// length of the plaintext, which then stands at its start.
    ///
    /// # Errors
    /// [`OpenError`]; what the buffer holds is then undefined.
    #[inline]
    pub fn open(
        &self,
        counter: u64,
        aad: &[u8],
        ciphertext_and_tag: &mut [u8],
    ) -> Result<usize, OpenError> {
        self.0
            .inner
            .open_in_place(nonce(counter), Aad::from(aad), ciphertext_and_tag)
            .map(|plaintext| plaintext.len())
            .map_err(|_| OpenError)
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealKey({})", self.suite())
    }
}

impl fmt::Debug for OpenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenKey({})", self.suite())
    }
}

/// Boxed, so that moving a lane's state leaves no copy of its key behind.
struct Key {
    inner: Box<LessSafeKey>,
    suite: CipherSuite,
}

impl Key {
    fn new(suite: CipherSuite, bytes: &mut [u8; CIPHER_KEY_LENGTH]) -> Self {
        let key = Self { inner: Box::new(expand(suite, bytes)), suite };
        bytes.zeroize();
        key
    }
}

impl Drop for Key {
    /// ring does not wipe its key schedules, so one of zeros is written over this one.
    fn drop(&mut self) {
        *self.inner = expand(self.suite, &[0; CIPHER_KEY_LENGTH]);
        black_box(&*self.inner);
    }
}

fn expand(suite: CipherSuite, bytes: &[u8; CIPHER_KEY_LENGTH]) -> LessSafeKey {
    LessSafeKey::new(
        UnboundKey::new(suite.algorithm(), bytes).expect("every suite's key has 32 bytes"),
    )
}

#[inline]
fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; aead::NONCE_LEN];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair(suite: CipherSuite, key: u8) -> (SealKey, OpenKey) {
        (SealKey::new(suite, &mut [key; 32]), OpenKey::new(suite, &mut [key; 32]))
    }

    fn sealed(key: &SealKey, counter: u64, aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let mut datagram = plaintext.to_vec();
        let mut tag = [0; TAG_LENGTH];
        key.seal(counter, aad, &mut datagram, &mut tag);
        datagram.extend(tag);
        datagram
    }

    /// Against an implementation of its own: pins the layout of the nonce too.
    #[test]
    fn agrees_with_another_implementation() {
        use chacha20poly1305::{ChaCha20Poly1305, KeyInit, aead::Aead, aead::Payload};
        let ours = sealed(&pair(CipherSuite::ChaCha20Poly1305, 7).0, 0x0102, b"header", b"frame");
        let theirs = ChaCha20Poly1305::new(&[7; 32].into())
            .encrypt(
                &[0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0].into(),
                Payload { msg: b"frame", aad: b"header" },
            )
            .unwrap();
        assert_eq!(ours, theirs);
    }

    /// NIST GCM test case 13 (McGrew and Viega, appendix B): zero key and nonce, no text.
    #[test]
    fn aes_gcm_test_case() {
        let tag = sealed(&pair(CipherSuite::Aes256Gcm, 0).0, 0, b"", b"");
        let expected = 0x530f_8afb_c745_36b9_a963_b4f1_c4cb_738b_u128.to_be_bytes();
        assert_eq!(tag, expected);
    }

    #[test]
    fn key_bytes_are_wiped_and_not_shown() {
        let mut bytes = [0xa7; 32];
        let key = SealKey::new(CipherSuite::Aes256Gcm, &mut bytes);
        assert_eq!(bytes, [0; 32]);
        assert_eq!(format!("{key:?}"), "SealKey(AES-256-GCM)");
    }

    #[test]
    fn agreement_on_a_cipher() {
        let (with, without) = (CipherSet::for_hardware(true), CipherSet::for_hardware(false));
        let aes_only = CipherSet::EMPTY.with(CipherSuite::Aes256Gcm);
        let cases = [
            (with, with, Some(CipherSuite::Aes256Gcm)),
            (with, without, Some(CipherSuite::ChaCha20Poly1305)),
            (without, without, Some(CipherSuite::ChaCha20Poly1305)),
            (aes_only, without, None),
            (aes_only, with, Some(CipherSuite::Aes256Gcm)),
            (CipherSet::EMPTY, with, None),
            (CipherSet::from_bits(1 << 31), CipherSet::from_bits(1 << 31), None),
        ];
        for (one, other, agreed) in cases {
            assert_eq!(one.preferred_with(other), agreed);
            assert_eq!(other.preferred_with(one), agreed);
        }
    }

    proptest! {
        #[test]
        fn opens_only_what_was_sealed(
            aes in any::<bool>(), counter in any::<u64>(), other in any::<u64>(),
            aad in proptest::collection::vec(any::<u8>(), 0..32),
            plaintext in proptest::collection::vec(any::<u8>(), 0..200), damage in any::<usize>(),
        ) {
            let suite = if aes { CipherSuite::Aes256Gcm } else { CipherSuite::ChaCha20Poly1305 };
            let (seal, open) = pair(suite, 1);
            let datagram = sealed(&seal, counter, &aad, &plaintext);

            let mut whole = datagram.clone();
            let length = open.open(counter, &aad, &mut whole).unwrap();
            prop_assert_eq!(&whole[..length], &plaintext[..]);

            let mut damaged = datagram.clone();
            let at = damage % damaged.len();
            damaged[at] ^= 1 << (damage % 8);
            prop_assert_eq!(open.open(counter, &aad, &mut damaged), Err(OpenError));
            prop_assert_eq!(
                open.open(counter, &aad, &mut datagram[..at].to_vec()), Err(OpenError));
            if other != counter {
                prop_assert_eq!(open.open(other, &aad, &mut datagram.clone()), Err(OpenError));
            }
            let longer = [&aad[..], b"x"].concat();
            prop_assert_eq!(open.open(counter, &longer, &mut datagram.clone()), Err(OpenError));
            let wrong = pair(suite, 2).1;
            prop_assert_eq!(wrong.open(counter, &aad, &mut datagram.clone()), Err(OpenError));
        }
    }
}
