//! A peer that holds real keys and does with them what it likes.

use blake2::{
    Blake2s256, Blake2sMac, Digest,
    digest::{Mac, consts::U16},
};
use landbridge::session::{
    CipherSet, Hello, Identity, LaneCount, PrivateKey, PublicKey, Random, SoftwareVersion,
    VersionRange, message::INITIATION_LENGTH_MIN,
};

/// Repeatable bytes (SplitMix64).
pub(crate) struct Seeded(pub(crate) u64);

impl Random for Seeded {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
        }
    }
}

/// The private key of appliance `number`.
const fn private_key(number: u8) -> [u8; 32] {
    let mut key = [number; 32];
    key[0] &= 0xf8;
    key[31] = 0x40;
    key
}

pub(crate) fn identity(number: u8) -> Identity {
    let private = PrivateKey::from_bytes(private_key(number)).expect("a key");
    Identity { private, preshared: None }
}

pub(crate) fn hello(startup_id: u64) -> Hello {
    Hello {
        versions: VersionRange::LOCAL,
        capabilities: 0,
        lanes: LaneCount::ONE,
        ciphers: CipherSet::for_hardware(true),
        group_digest: [7; 32],
        software: SoftwareVersion::lossy(b"0.1.0"),
        startup_id,
    }
}

/// Puts the mac1 for `receiver` over the last 32 bytes but 16 of a handshake
/// message, as anyone can who knows its public key.
pub(crate) fn correct_mac1(message: &mut [u8], receiver: &PublicKey) {
    let Some(covered) = message.len().checked_sub(32) else { return };
    let key =
        Blake2s256::new().chain_update(b"landbridge v1 mac1").chain_update(receiver.as_bytes());
    let mut mac = <Blake2sMac<U16> as Mac>::new_from_slice(&key.finalize()).expect("32 bytes");
    Mac::update(&mut mac, &message[..covered]);
    message[covered..covered + 16].copy_from_slice(&mac.finalize().into_bytes());
}

fn noise(key: &[u8; 32]) -> snow::Builder<'_> {
    snow::Builder::new("Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s".parse().expect("a protocol"))
        .prologue(b"landbridge v1")
        .and_then(|builder| builder.local_private_key(key))
        .and_then(|builder| builder.psk(2, &[0; 32]))
        .expect("good parameters")
        .fixed_ephemeral_key_for_testing_only(&[0x31; 32])
}

/// An initiation from `own` to `receiver` that authenticates, whatever it says.
pub(crate) fn initiation(own: u8, receiver: &PublicKey, sender: u32, payload: &[u8]) -> Vec<u8> {
    let key = private_key(own);
    let mut noise = noise(&key)
        .remote_public_key(receiver.as_bytes())
        .and_then(snow::Builder::build_initiator)
        .expect("an initiator");
    let mut message = vec![1, 0, 0, 0];
    message.extend(sender.to_le_bytes());
    let mut buffer = [0; 1200];
    let mut padded = payload[..payload.len().min(1000)].to_vec();
    padded.resize(padded.len().max(INITIATION_LENGTH_MIN - 8 - 96 - 32), 0);
    let length = noise.write_message(&padded, &mut buffer).expect("fits");
    message.extend_from_slice(&buffer[..length]);
    message.resize(message.len() + 32, 0);
    correct_mac1(&mut message, receiver);
    message
}

/// A response of `own` to an authentic initiation, whatever it says.
pub(crate) fn response(
    own: u8,
    initiation: &[u8],
    receiver: &PublicKey,
    sender: u32,
    payload: &[u8],
) -> Option<Vec<u8>> {
    let key = private_key(own);
    let mut noise = noise(&key).build_responder().ok()?;
    let mut buffer = [0; 1200];
    noise.read_message(&initiation[8..initiation.len() - 32], &mut buffer).ok()?;
    let mut message = vec![2, 0, 0, 0];
    message.extend(sender.to_le_bytes());
    message.extend(&initiation[4..8]);
    let payload = &payload[..payload.len().min(1000)];
    let length = noise.write_message(payload, &mut buffer).ok()?;
    message.extend_from_slice(&buffer[..length]);
    message.resize(message.len() + 32, 0);
    correct_mac1(&mut message, receiver);
    Some(message)
}
