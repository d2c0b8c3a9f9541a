//! The handshake: one message each way, then both sides hold the same secrets.
//!
//! ```text
//! initiator                                            responder
//! Initiator::start ──── initiation: e, es, s, ss ────▶ Responder::read
//!                       Hello (padded)                   known peer? replay?
//! Initiator::finish ◀── response: e, ee, se, psk ───── Responder::respond
//!                       Hello
//! Established                                          Established, yet unproven
//!           ──── first transport datagram that opens: proof ────▶
//! ```
//!
//! # What each message proves
//!
//! It is Noise `IKpsk2` (Noise revision 34, sections 7.5 and 9), over 25519, ChaChaPoly
//! and BLAKE2s, by `snow`.
//!
//! * **The initiation** proves that whoever made it held the initiator's static
//!   private key, *or the responder's* (`ss`: who has stolen an appliance's key can
//!   pose as any peer towards that appliance). It proves neither freshness (a
//!   recorded one authenticates again) nor the preshared key (mixed in only by the
//!   response). Its payload is secret only as long as the responder's static key is.
//!   So the responder may believe who speaks and what is in the [`Hello`], and must
//!   not yet change what it sends, or to where: an [`Established`] from
//!   [`Responder::respond`] stays pending until a transport datagram opens with its keys.
//! * **The response** proves to the initiator both static keys, the preshared key
//!   and freshness: its [`Established`] can be used at once.
//! * **The first transport datagram** proves the same to the responder, with no
//!   way around it by a stolen key of its own.
//!
//! # Secrets in memory
//!
//! Static, ephemeral, split and lane keys are wiped when dropped. Out of reach are
//! `snow`'s chaining key and cipher state, which it frees unwiped when the handshake
//! ends, and what `ring` leaves on the stack while it expands a key.

use std::fmt;

use snow::HandshakeState;
use thiserror::Error;
use zeroize::Zeroizing;

use super::{
    cookie::{Cookie, CookieError},
    hello::{Agreed, Disagreement, HELLO_LENGTH_MAX, Hello, HelloError},
    keys::{PresharedKey, PrivateKey, PublicKey},
    message::{
        CookieReply, HANDSHAKE_LENGTH_MAX, INDEX_LENGTH, INITIATION_HEADER, INITIATION_LENGTH_MIN,
        INITIATION_NOISE, Initiation, MAC_LENGTH, MACS, Mac1Key, MessageError, RESPONSE_HEADER,
        RESPONSE_NOISE, Response, TYPE_INITIATION, TYPE_RESPONSE,
    },
    noise,
    random::Random,
    secrets::SessionSecrets,
};
use crate::time::Instant;

/// Who this appliance is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its private key.
    pub private: PrivateKey,
    /// The secret shared beforehand, if there is one: then every peer needs it.
    pub preshared: Option<PresharedKey>,
}

/// A handshake that this appliance began and that waits for its response.
pub struct Initiator {
    noise: HandshakeState,
    local_public: PublicKey,
    peer: PublicKey,
    local_index: u32,
    hello: Hello,
    mac1: [u8; MAC_LENGTH],
}

/// An initiation that authenticated and can be answered.
pub struct Responder {
    noise: HandshakeState,
    peer: PublicKey,
    ephemeral: [u8; 32],
    remote_index: u32,
    remote_hello: Hello,
    unknown_fields: usize,
    length: usize,
}

/// What [`Responder::respond`] leaves to do.
#[derive(Debug)]
pub struct Answer {
    /// The response, to be sent to where the initiation came from, whatever the
    /// outcome: the other side learns from it why there is no tunnel.
    pub datagram: Vec<u8>,
    /// The session, pending until its first transport datagram opens; or why the
    /// two can't work together.
    pub outcome: Result<Established, Disagreement>,
}

/// A finished handshake.
#[derive(Debug)]
pub struct Established {
    /// Who is at the other end.
    pub peer: PublicKey,
    /// The index that the peer writes into what it sends to this session.
    pub local_index: u32,
    /// The index to write into what is sent to the peer.
    pub remote_index: u32,
    /// Did this appliance begin it? If not, it is pending until proven.
    pub initiated: bool,
    /// What the peer said of itself.
    pub remote_hello: Hello,
    /// Fields of the peer's `Hello` that this build doesn't know.
    pub unknown_fields: usize,
    /// What both will use.
    pub agreed: Agreed,
    /// What the lanes' keys come from.
    pub secrets: SessionSecrets,
}

/// Why a handshake message is refused.
#[derive(Debug, Error)]
pub enum HandshakeError {
    /// Not a message of the kind expected.
    #[error("not a handshake message of the kind expected")]
    Message(#[source] MessageError),
    /// mac1 is wrong: whoever sent it doesn't know the key it sent it to.
    #[error("mac1 is wrong: damaged, or meant for another appliance's key")]
    Mac1,
    /// A response to some other session.
    #[error("the response is for session {receiver:#010x}, this one is {local:#010x}")]
    Receiver {
        /// The index in the response.
        receiver: u32,
        /// This session's.
        local: u32,
    },
    /// The response came before.
    #[error("this handshake has its response already")]
    Finished,
    /// Noise refused it: forged, damaged, or made with another key.
    #[error(
        "the handshake does not authenticate: forged, damaged, wrong key or wrong preshared key"
    )]
    Noise(#[source] snow::Error),
    /// A static key that is in nobody's group file entry.
    #[error("the key {0} is not a member of this group")]
    UnknownPeer(PublicKey),
    /// The session index under Noise's protection is not the one in the header.
    #[error("the session index in the header was tampered with")]
    Sender,
    /// The peer's payload can't be read.
    #[error("the payload of {peer} cannot be read")]
    Hello {
        /// Who sent it.
        peer: PublicKey,
        /// What is wrong with it.
        #[source]
        source: HelloError,
    },
    /// Both sides can't work together.
    #[error("no tunnel with {peer} ({remote_software}) is possible")]
    Disagreement {
        /// The other side.
        peer: PublicKey,
        /// The software it runs.
        remote_software: super::hello::SoftwareVersion,
        /// Why.
        #[source]
        source: Disagreement,
    },
}

impl Initiator {
    /// Begins a handshake with `remote`. Returns the initiation to send, too: the
    /// same datagram isn't to be sent again, a lost one is followed by a new `start`.
    ///
    /// `local_index` is random and names no other session of this appliance;
    /// `cookie` is a fresh one from `remote`, where there is one.
    ///
    /// # Errors
    /// [`HandshakeError::Noise`] where `remote` is no usable key (a point of low order).
    pub fn start(
        identity: &Identity,
        remote: &PublicKey,
        local_index: u32,
        hello: &Hello,
        cookie: Option<&Cookie>,
        random: &mut dyn Random,
    ) -> Result<(Self, Vec<u8>), HandshakeError> {
        let mut noise =
            noise::initiator(identity, remote, random).map_err(HandshakeError::Noise)?;
        let mut payload = payload(local_index, hello);
        payload.resize(INITIATION_LENGTH_MIN - INITIATION_HEADER - INITIATION_NOISE - MACS, 0);

        let mut datagram = Vec::with_capacity(INITIATION_LENGTH_MIN);
        datagram.extend([TYPE_INITIATION, 0, 0, 0]);
        datagram.extend(local_index.to_le_bytes());
        write_noise(&mut noise, &payload, INITIATION_NOISE, &mut datagram)?;
        let mac1 = Mac1Key::of(remote).append(&mut datagram, cookie.map(Cookie::as_bytes));

        let initiator = Self {
            noise,
            local_public: identity.private.public(),
            peer: *remote,
            local_index,
            hello: hello.clone(),
            mac1,
        };
        Ok((initiator, datagram))
    }

    /// The index of the session being made.
    pub fn local_index(&self) -> u32 {
        self.local_index
    }

    /// Who is to answer.
    pub fn peer(&self) -> PublicKey {
        self.peer
    }

    /// Takes the response. A forged or damaged one changes nothing: the real one
    /// can still come.
    ///
    /// # Errors
    /// [`HandshakeError`]. After [`HandshakeError::Hello`] and
    /// [`HandshakeError::Disagreement`], which only the true peer can cause, this
    /// handshake is over.
    pub fn finish(&mut self, datagram: &[u8]) -> Result<Established, HandshakeError> {
        let response = Response::parse(datagram).map_err(HandshakeError::Message)?;
        let (receiver, local) = (response.receiver(), self.local_index);
        if receiver != local {
            return Err(HandshakeError::Receiver { receiver, local });
        }
        if self.noise.is_handshake_finished() {
            return Err(HandshakeError::Finished);
        }
        if !Mac1Key::of(&self.local_public).verify(datagram) {
            return Err(HandshakeError::Mac1);
        }
        let (remote_index, remote_hello, unknown_fields) =
            read_noise(&mut self.noise, response.noise(), &|_| true)?;
        let agreed = Agreed::between(&self.hello, &remote_hello).map_err(|source| {
            let remote_software = remote_hello.software.clone();
            HandshakeError::Disagreement { peer: self.peer, remote_software, source }
        })?;
        Ok(Established {
            peer: self.peer,
            local_index: local,
            remote_index,
            initiated: true,
            remote_hello,
            unknown_fields,
            agreed,
            secrets: secrets(&mut self.noise, agreed, true),
        })
    }

    /// Takes a cookie reply to the initiation: the cookie to begin again with.
    ///
    /// # Errors
    /// [`CookieError`].
    pub fn take_cookie(&self, now: Instant, datagram: &[u8]) -> Result<Cookie, CookieError> {
        let reply = CookieReply::parse(datagram).map_err(CookieError::Message)?;
        if reply.receiver() != self.local_index {
            return Err(CookieError::Receiver);
        }
        Cookie::open(now, reply, &self.peer, &self.mac1)
    }
}

impl Responder {
    /// Reads an initiation from a peer that `is_known`. Changes nothing: what it
    /// proves, and what not, stands in the module's text. Check
    /// [`Responder::ephemeral`] against [`super::replay::SeenInitiations`] before answering.
    ///
    /// # Errors
    /// [`HandshakeError`]; the answer to any is silence.
    pub fn read(
        identity: &Identity,
        datagram: &[u8],
        is_known: &dyn Fn(&PublicKey) -> bool,
        random: &mut dyn Random,
    ) -> Result<Self, HandshakeError> {
        let initiation = Initiation::parse(datagram).map_err(HandshakeError::Message)?;
        if !Mac1Key::of(&identity.private.public()).verify(datagram) {
            return Err(HandshakeError::Mac1);
        }
        let mut noise = noise::responder(identity, random).map_err(HandshakeError::Noise)?;
        let (remote_index, remote_hello, unknown_fields) =
            read_noise(&mut noise, initiation.noise(), is_known)?;
        if remote_index != initiation.sender() {
            return Err(HandshakeError::Sender);
        }
        Ok(Self {
            peer: remote_static(&noise)?,
            noise,
            ephemeral: initiation.ephemeral(),
            remote_index,
            remote_hello,
            unknown_fields,
            length: datagram.len(),
        })
    }

    /// Who began it.
    pub fn peer(&self) -> PublicKey {
        self.peer
    }

    /// The initiator's ephemeral key: names this very initiation.
    pub fn ephemeral(&self) -> [u8; 32] {
        self.ephemeral
    }

    /// What the peer said of itself.
    pub fn remote_hello(&self) -> &Hello {
        &self.remote_hello
    }

    /// Answers. `local_index` is random and names no other session of this
    /// appliance. The response is never longer than the initiation.
    ///
    /// # Errors
    /// [`HandshakeError::Noise`] where the initiator's ephemeral key is of low order.
    pub fn respond(mut self, local_index: u32, hello: &Hello) -> Result<Answer, HandshakeError> {
        let mut datagram = Vec::with_capacity(RESPONSE_LENGTH_MAX);
        datagram.extend([TYPE_RESPONSE, 0, 0, 0]);
        datagram.extend(local_index.to_le_bytes());
        datagram.extend(self.remote_index.to_le_bytes());
        write_noise(&mut self.noise, &payload(local_index, hello), RESPONSE_NOISE, &mut datagram)?;
        Mac1Key::of(&self.peer).append(&mut datagram, None);
        assert!(datagram.len() <= self.length, "a response never amplifies");

        let outcome = Agreed::between(hello, &self.remote_hello).map(|agreed| Established {
            peer: self.peer,
            local_index,
            remote_index: self.remote_index,
            initiated: false,
            remote_hello: self.remote_hello,
            unknown_fields: self.unknown_fields,
            agreed,
            secrets: secrets(&mut self.noise, agreed, false),
        });
        Ok(Answer { datagram, outcome })
    }
}

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Initiator({:#010x} to {})", self.local_index, self.peer)
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Responder({:#010x} from {})", self.remote_index, self.peer)
    }
}

const RESPONSE_LENGTH_MAX: usize =
    RESPONSE_HEADER + RESPONSE_NOISE + INDEX_LENGTH + HELLO_LENGTH_MAX + MACS;
const _: () = assert!(RESPONSE_LENGTH_MAX <= INITIATION_LENGTH_MIN);

/// The session index stands inside once more: in the header it is there for
/// whoever has no keys yet, and only this one is believed.
fn payload(index: u32, hello: &Hello) -> Vec<u8> {
    let mut payload = Vec::with_capacity(HANDSHAKE_LENGTH_MAX);
    payload.extend(index.to_le_bytes());
    hello.encode(&mut payload);
    payload
}

fn write_noise(
    noise: &mut HandshakeState,
    payload: &[u8],
    overhead: usize,
    datagram: &mut Vec<u8>,
) -> Result<(), HandshakeError> {
    let start = datagram.len();
    datagram.resize(start + payload.len() + overhead, 0);
    let written =
        noise.write_message(payload, &mut datagram[start..]).map_err(HandshakeError::Noise)?;
    assert_eq!(written, payload.len() + overhead, "the pattern's overhead is fixed");
    Ok(())
}

/// Reads the peer's message: its session index, its `Hello`, how many fields were unknown.
fn read_noise(
    noise: &mut HandshakeState,
    message: &[u8],
    is_known: &dyn Fn(&PublicKey) -> bool,
) -> Result<(u32, Hello, usize), HandshakeError> {
    let mut buffer = Zeroizing::new([0; HANDSHAKE_LENGTH_MAX]);
    let length = noise.read_message(message, &mut *buffer).map_err(HandshakeError::Noise)?;
    let peer = remote_static(noise)?;
    if !is_known(&peer) {
        return Err(HandshakeError::UnknownPeer(peer));
    }
    let unreadable = |source| HandshakeError::Hello { peer, source };
    let (index, fields) = buffer[..length]
        .split_first_chunk::<INDEX_LENGTH>()
        .ok_or(unreadable(HelloError::Truncated { kind: 0 }))?;
    let (hello, unknown_fields) = Hello::decode(fields).map_err(unreadable)?;
    Ok((u32::from_le_bytes(*index), hello, unknown_fields))
}

fn remote_static(noise: &HandshakeState) -> Result<PublicKey, HandshakeError> {
    noise
        .get_remote_static()
        .and_then(|key| <[u8; 32]>::try_from(key).ok())
        .and_then(|key| PublicKey::from_bytes(key).ok())
        .ok_or(HandshakeError::Noise(snow::Error::Dh))
}

fn secrets(noise: &mut HandshakeState, agreed: Agreed, initiated: bool) -> SessionSecrets {
    let hash: [u8; 32] =
        noise.get_handshake_hash().try_into().expect("BLAKE2s hashes have 32 bytes");
    let (one, two) = noise.dangerously_get_raw_split();
    let (one, two) = (Zeroizing::new(one), Zeroizing::new(two));
    SessionSecrets::new((&one, &two), hash, agreed.cipher, initiated)
}

#[cfg(test)]
mod tests;
