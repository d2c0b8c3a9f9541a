//! The Noise protocol in use, and how `snow` gets its randomness and its keys.

use snow::{
    Builder, HandshakeState,
    params::{CipherChoice, DHChoice, HashChoice},
    resolvers::{CryptoResolver, DefaultResolver},
    types::{Cipher, Dh, Hash},
};
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use super::{
    handshake::Identity,
    keys::{KEY_LENGTH, PublicKey},
    random::{Random, draw},
};

/// Pattern, curve, cipher and hash: WireGuard's.
const PROTOCOL: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
/// Both sides mix this in first. It has no part in version negotiation: that
/// happens inside, where both ranges are authenticated.
const PROLOGUE: &[u8] = b"landbridge v1";
/// Where the pattern mixes the preshared key in.
const PSK_POSITION: u8 = 2;
/// Stands for "no preshared key", as in WireGuard.
const NO_PSK: [u8; KEY_LENGTH] = [0; KEY_LENGTH];

/// The initiator's state, ephemeral key drawn.
pub(super) fn initiator(
    identity: &Identity,
    remote: &PublicKey,
    random: &mut dyn Random,
) -> Result<HandshakeState, snow::Error> {
    builder(identity, random)?.remote_public_key(remote.as_bytes())?.build_initiator()
}

/// The responder's state, ephemeral key drawn.
pub(super) fn responder(
    identity: &Identity,
    random: &mut dyn Random,
) -> Result<HandshakeState, snow::Error> {
    builder(identity, random)?.build_responder()
}

fn builder<'a>(
    identity: &'a Identity,
    random: &mut dyn Random,
) -> Result<Builder<'a>, snow::Error> {
    let resolver = Resolver { ephemeral: Zeroizing::new(draw(random)) };
    Builder::with_resolver(PROTOCOL.parse()?, Box::new(resolver))
        .prologue(PROLOGUE)?
        .local_private_key(identity.private.as_bytes())?
        .psk(PSK_POSITION, identity.preshared.as_ref().map_or(&NO_PSK, |psk| psk.as_bytes()))
}

/// snow's own primitives, but for randomness, which is drawn beforehand from the
/// caller's source, and for X25519, which here wipes its keys.
struct Resolver {
    ephemeral: Zeroizing<[u8; KEY_LENGTH]>,
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn snow::types::Random>> {
        Some(Box::new(Drawn(Some(self.ephemeral.clone()))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        match choice {
            DHChoice::Curve25519 => Some(Box::<X25519>::default()),
            _ => None,
        }
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

/// The bytes of one ephemeral key, given out once.
struct Drawn(Option<Zeroizing<[u8; KEY_LENGTH]>>);

impl snow::types::Random for Drawn {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        match self.0.take() {
            Some(bytes) if bytes.len() == dest.len() => {
                dest.copy_from_slice(&*bytes);
                Ok(())
            }
            _ => Err(snow::Error::Rng),
        }
    }
}

#[derive(Default)]
struct X25519 {
    private: Zeroizing<[u8; KEY_LENGTH]>,
    public: [u8; KEY_LENGTH],
}

impl X25519 {
    fn secret(&self) -> StaticSecret {
        StaticSecret::from(*self.private)
    }
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        KEY_LENGTH
    }

    fn priv_len(&self) -> usize {
        KEY_LENGTH
    }

    fn set(&mut self, private: &[u8]) {
        self.private.copy_from_slice(private);
        self.public = x25519_dalek::PublicKey::from(&self.secret()).to_bytes();
    }

    fn generate(&mut self, random: &mut dyn snow::types::Random) -> Result<(), snow::Error> {
        let mut private = Zeroizing::new([0; KEY_LENGTH]);
        random.try_fill_bytes(&mut *private)?;
        self.set(&*private);
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &*self.private
    }

    /// Refuses points of low order (RFC 7748 section 6.1), which would make the
    /// shared secret a known one.
    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let public: [u8; KEY_LENGTH] =
            public.get(..KEY_LENGTH).and_then(|key| key.try_into().ok()).ok_or(snow::Error::Dh)?;
        let shared = self.secret().diffie_hellman(&public.into());
        if !shared.was_contributory() {
            return Err(snow::Error::Dh);
        }
        out[..KEY_LENGTH].copy_from_slice(shared.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_compute_the_same() {
        let (mut one, mut other) = (X25519::default(), X25519::default());
        one.set(&[1; 32]);
        other.set(&[2; 32]);
        let (mut here, mut there) = ([0; 56], [0; 56]);
        one.dh(other.pubkey(), &mut here).unwrap();
        other.dh(one.pubkey(), &mut there).unwrap();
        assert_eq!(here, there);
        assert_eq!(here[..32], x25519_dalek::x25519([1; 32], other.public));
        assert_ne!(here[..32], [0; 32]);
    }

    /// Our X25519 and randomness against snow's own: the protocol is the standard one.
    #[test]
    fn plain_snow_understands_it() {
        use super::super::{keys::PrivateKey, random::SeededRandom};
        let mut random = SeededRandom(1);
        let [here, there] = [(); 2]
            .map(|()| Identity { private: PrivateKey::generate(&mut random), preshared: None });
        let mut ours = initiator(&here, &there.private.public(), &mut random).unwrap();
        let mut theirs = Builder::new(PROTOCOL.parse().unwrap())
            .prologue(PROLOGUE)
            .and_then(|builder| builder.local_private_key(there.private.as_bytes()))
            .and_then(|builder| builder.psk(2, &[0; 32]))
            .and_then(Builder::build_responder)
            .unwrap();
        let (mut message, mut payload) = ([0; 200], [0; 200]);
        let length = ours.write_message(b"first", &mut message).unwrap();
        assert_eq!(theirs.read_message(&message[..length], &mut payload), Ok(5));
        let length = theirs.write_message(b"second", &mut message).unwrap();
        assert_eq!(ours.read_message(&message[..length], &mut payload), Ok(6));
        assert_eq!(payload[..6], *b"second");
        assert_eq!(ours.get_handshake_hash(), theirs.get_handshake_hash());
        assert_eq!(theirs.get_remote_static(), Some(&here.private.public().as_bytes()[..]));
    }

    #[test]
    fn low_order_points_are_refused() {
        let mut dh = X25519::default();
        dh.set(&[7; 32]);
        let mut one = [0; 32];
        one[0] = 1;
        for point in [[0; 32], one] {
            assert_eq!(dh.dh(&point, &mut [0; 56]), Err(snow::Error::Dh));
        }
        assert_eq!(dh.dh(&[1; 31], &mut [0; 56]), Err(snow::Error::Dh));
        assert_eq!(dh.dh(&[9; 32], &mut [0; 56]), Ok(()));
    }

    #[test]
    fn an_ephemeral_key_is_given_out_once() {
        use snow::types::Random;
        let mut drawn = Drawn(Some(Zeroizing::new([3; 32])));
        let mut bytes = [0; 32];
        assert_eq!(drawn.try_fill_bytes(&mut bytes), Ok(()));
        assert_eq!(bytes, [3; 32]);
        assert_eq!(drawn.try_fill_bytes(&mut bytes), Err(snow::Error::Rng));
    }
}
