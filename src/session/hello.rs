//! What two appliances tell each other inside the handshake, and what follows
//! from it.
//!
//! The payload of both handshake messages is a list of fields, little endian:
//!
//! ```text
//! [type u8][length u8][value: length bytes] …     type 0 stands alone: padding
//! ```
//!
//! A field of an unknown type is skipped and counted, so that a later version
//! can say more without breaking an earlier one.

use std::{fmt, num::NonZeroU8};

use thiserror::Error;

use super::aead::{CipherSet, CipherSuite};

/// The lowest protocol version that this build speaks.
pub const VERSION_MIN: u16 = 1;
/// The highest protocol version that this build speaks.
pub const VERSION_MAX: u16 = if cfg!(feature = "next-protocol") { 2 } else { 1 };

/// The most lanes that a tunnel can have.
pub const LANES_MAX: u8 = 64;
/// The longest software version, in bytes.
pub const SOFTWARE_LENGTH_MAX: usize = 64;
/// The longest that [`Hello::encode`] writes, in bytes.
pub const HELLO_LENGTH_MAX: usize =
    6 + 6 + 3 + 6 + 34 + (2 + SOFTWARE_LENGTH_MAX) + 10 + FUTURE_FIELD.len();

/// What an appliance says of itself in a handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Protocol versions that it speaks.
    pub versions: VersionRange,
    /// Optional abilities, one bit each. Version 1 knows none; bits without a
    /// meaning yet are ignored.
    pub capabilities: u32,
    /// Data lanes that it offers.
    pub lanes: LaneCount,
    /// Ciphers that it offers.
    pub ciphers: CipherSet,
    /// Digest of its group file. A difference is reported and drops nothing.
    pub group_digest: [u8; 32],
    /// Its software's version, for people to read.
    pub software: SoftwareVersion,
    /// Drawn anew at each start of the process: another one means that the peer
    /// has restarted.
    pub startup_id: u64,
}

/// The protocol versions that an appliance speaks, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionRange {
    min: u16,
    max: u16,
}

/// A number of data lanes, 1 to [`LANES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LaneCount(NonZeroU8);

/// A software version: at most [`SOFTWARE_LENGTH_MAX`] characters of printable ASCII,
/// safe to show on a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SoftwareVersion(String);

/// What both sides' [`Hello`] come to: the same, whichever side asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// The highest version that both speak.
    pub version: u16,
    /// Abilities that both have.
    pub capabilities: u32,
    /// The larger number of lanes: the side with fewer threads serves several on one.
    pub lanes: LaneCount,
    /// AES-256-GCM where both have it in hardware, else ChaCha20-Poly1305.
    pub cipher: CipherSuite,
}

/// Why two appliances that know each other can't make a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Disagreement {
    /// No version that both speak.
    #[error(
        "no common protocol version: here {local}, there {remote}; update the appliance with the \
         lower one"
    )]
    NoCommonVersion {
        /// Versions spoken here.
        local: VersionRange,
        /// Versions spoken there.
        remote: VersionRange,
    },
    /// No cipher that both offer.
    #[error("no common cipher: here {local:?}, there {remote:?}; update the older appliance")]
    NoCommonCipher {
        /// Ciphers offered here.
        local: CipherSet,
        /// Ciphers offered there.
        remote: CipherSet,
    },
}

/// Why bytes are not a [`Hello`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HelloError {
    /// A field's length runs past the end.
    #[error("field {kind} runs past the end of the handshake payload")]
    Truncated {
        /// The field's type.
        kind: u8,
    },
    /// A known field of a length that it can't have.
    #[error("field {kind} has {length} bytes, a length that it cannot have")]
    Length {
        /// The field's type.
        kind: u8,
        /// Its length in bytes.
        length: usize,
    },
    /// A known field twice.
    #[error("field {kind} is there twice")]
    Duplicate {
        /// The field's type.
        kind: u8,
    },
    /// A known field is not there.
    #[error("field {kind} is missing")]
    Missing {
        /// The field's type.
        kind: u8,
    },
    /// Version 0, or a range that ends before it starts.
    #[error("{min} to {max} is not a range of protocol versions")]
    Versions {
        /// The lowest version named.
        min: u16,
        /// The highest version named.
        max: u16,
    },
    /// No lane at all.
    #[error("a tunnel needs at least one lane, 0 are offered")]
    NoLanes,
}

impl Hello {
    /// Appends the fields to `out`, at most [`HELLO_LENGTH_MAX`] bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut versions = [0; 4];
        versions[..2].copy_from_slice(&self.versions.min.to_le_bytes());
        versions[2..].copy_from_slice(&self.versions.max.to_le_bytes());
        put(out, kind::VERSIONS, &versions);
        put(out, kind::CAPABILITIES, &self.capabilities.to_le_bytes());
        put(out, kind::LANES, &[self.lanes.get()]);
        put(out, kind::CIPHERS, &self.ciphers.bits().to_le_bytes());
        put(out, kind::GROUP_DIGEST, &self.group_digest);
        put(out, kind::SOFTWARE, self.software.as_str().as_bytes());
        put(out, kind::STARTUP_ID, &self.startup_id.to_le_bytes());
        if cfg!(feature = "next-protocol") {
            out.extend(FUTURE_FIELD);
        }
    }

    /// Reads the fields. Returns how many of unknown type were skipped, too.
    ///
    /// # Errors
    /// [`HelloError`].
    pub fn decode(payload: &[u8]) -> Result<(Self, usize), HelloError> {
        let (fields, unknown) = Fields::scan(payload)?;
        let versions = fields.array::<4>(kind::VERSIONS)?;
        let hello = Self {
            versions: VersionRange::new(
                u16::from_le_bytes([versions[0], versions[1]]),
                u16::from_le_bytes([versions[2], versions[3]]),
            )?,
            capabilities: u32::from_le_bytes(fields.array(kind::CAPABILITIES)?),
            lanes: LaneCount::at_most(fields.array::<1>(kind::LANES)?[0])
                .ok_or(HelloError::NoLanes)?,
            ciphers: CipherSet::from_bits(u32::from_le_bytes(fields.array(kind::CIPHERS)?)),
            group_digest: fields.array(kind::GROUP_DIGEST)?,
            software: SoftwareVersion::lossy(fields.bytes(kind::SOFTWARE)?),
            startup_id: u64::from_le_bytes(fields.array(kind::STARTUP_ID)?),
        };
        Ok((hello, unknown))
    }
}

impl Agreed {
    /// What two appliances that said these can use between them.
    ///
    /// # Errors
    /// [`Disagreement`].
    pub fn between(local: &Hello, remote: &Hello) -> Result<Self, Disagreement> {
        let version = local.versions.highest_common(remote.versions).ok_or(
            Disagreement::NoCommonVersion { local: local.versions, remote: remote.versions },
        )?;
        let cipher = local
            .ciphers
            .preferred_with(remote.ciphers)
            .ok_or(Disagreement::NoCommonCipher { local: local.ciphers, remote: remote.ciphers })?;
        Ok(Self {
            version,
            capabilities: local.capabilities & remote.capabilities,
            lanes: local.lanes.max(remote.lanes),
            cipher,
        })
    }
}

impl VersionRange {
    /// What this build speaks.
    pub const LOCAL: Self = Self { min: VERSION_MIN, max: VERSION_MAX };

    /// Versions `min` to `max`, both included.
    ///
    /// # Errors
    /// [`HelloError::Versions`] where that is no range or has version 0.
    pub const fn new(min: u16, max: u16) -> Result<Self, HelloError> {
        if min == 0 || min > max {
            return Err(HelloError::Versions { min, max });
        }
        Ok(Self { min, max })
    }

    /// The lowest version.
    pub const fn min(self) -> u16 {
        self.min
    }

    /// The highest version.
    pub const fn max(self) -> u16 {
        self.max
    }

    /// The highest version that is in both.
    pub fn highest_common(self, other: Self) -> Option<u16> {
        let highest = self.max.min(other.max);
        (highest >= self.min.max(other.min)).then_some(highest)
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.min)
        } else {
            write!(f, "{} to {}", self.min, self.max)
        }
    }
}

impl LaneCount {
    /// One lane.
    pub const ONE: Self = Self(NonZeroU8::MIN);

    /// `lanes` lanes, or none where that isn't 1 to [`LANES_MAX`].
    pub const fn new(lanes: u8) -> Option<Self> {
        match NonZeroU8::new(lanes) {
            Some(count) if lanes <= LANES_MAX => Some(Self(count)),
            _ => None,
        }
    }

    /// As many as there can be up to `lanes`: a later version may offer more than
    /// [`LANES_MAX`].
    fn at_most(lanes: u8) -> Option<Self> {
        Self::new(lanes.min(LANES_MAX))
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0.get()
    }
}

impl SoftwareVersion {
    /// The version that `text` names; what isn't printable ASCII becomes `?`, what
    /// is too long is cut.
    pub fn lossy(text: &[u8]) -> Self {
        let printable = |byte: &u8| if matches!(byte, b' '..=b'~') { *byte as char } else { '?' };
        Self(text.iter().take(SOFTWARE_LENGTH_MAX).map(printable).collect())
    }

    /// The version's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SoftwareVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Field types. A number, once given a meaning, keeps it for ever.
mod kind {
    pub(super) const PADDING: u8 = 0;
    pub(super) const VERSIONS: u8 = 1;
    pub(super) const CAPABILITIES: u8 = 2;
    pub(super) const LANES: u8 = 3;
    pub(super) const CIPHERS: u8 = 4;
    pub(super) const GROUP_DIGEST: u8 = 5;
    pub(super) const SOFTWARE: u8 = 6;
    pub(super) const STARTUP_ID: u8 = 7;
    pub(super) const COUNT: usize = 8;
}

/// A field that no build knows, as a later version might send one.
const FUTURE_FIELD: [u8; 6] = [0xf0, 4, b'n', b'e', b'x', b't'];

fn put(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let length = u8::try_from(value.len()).expect("every field's value is at most 64 bytes");
    out.extend([kind, length]);
    out.extend(value);
}

/// The known fields of a payload, each at most once.
struct Fields<'a>([Option<&'a [u8]>; kind::COUNT]);

impl<'a> Fields<'a> {
    fn scan(mut rest: &'a [u8]) -> Result<(Self, usize), HelloError> {
        let mut fields = Self([None; kind::COUNT]);
        let mut unknown = 0;
        while let Some((&kind, after_kind)) = rest.split_first() {
            if kind == kind::PADDING {
                rest = after_kind;
                continue;
            }
            let (&length, after_length) =
                after_kind.split_first().ok_or(HelloError::Truncated { kind })?;
            let (value, after_value) = after_length
                .split_at_checked(usize::from(length))
                .ok_or(HelloError::Truncated { kind })?;
            match fields.0.get_mut(usize::from(kind)) {
                Some(Some(_)) => return Err(HelloError::Duplicate { kind }),
                Some(field) => *field = Some(value),
                None => unknown += 1,
            }
            rest = after_value;
        }
        Ok((fields, unknown))
    }

    fn bytes(&self, kind: u8) -> Result<&'a [u8], HelloError> {
        self.0[usize::from(kind)].ok_or(HelloError::Missing { kind })
    }

    fn array<const N: usize>(&self, kind: u8) -> Result<[u8; N], HelloError> {
        let value = self.bytes(kind)?;
        value.try_into().map_err(|_| HelloError::Length { kind, length: value.len() })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in super::super) fn hello(startup_id: u64) -> Hello {
        Hello {
            versions: VersionRange::LOCAL,
            capabilities: 0b101,
            lanes: LaneCount::new(4).unwrap(),
            ciphers: CipherSet::for_hardware(true),
            group_digest: [0xd1; 32],
            software: SoftwareVersion::lossy(b"0.1.0"),
            startup_id,
        }
    }

    fn encoded(hello: &Hello) -> Vec<u8> {
        let mut out = Vec::new();
        hello.encode(&mut out);
        out
    }

    const UNKNOWN: usize = if cfg!(feature = "next-protocol") { 1 } else { 0 };

    #[test]
    fn the_longest_fits_its_bound() {
        let mut longest = hello(u64::MAX);
        longest.software = SoftwareVersion::lossy(&[b'v'; 200]);
        let bytes = encoded(&longest);
        let slack = if cfg!(feature = "next-protocol") { 0 } else { FUTURE_FIELD.len() };
        assert_eq!(bytes.len() + slack, HELLO_LENGTH_MAX);
        assert_eq!(Hello::decode(&bytes), Ok((longest, UNKNOWN)));
    }

    #[test]
    fn unknown_fields_and_padding_are_skipped() {
        let mut bytes = vec![0, 0, 200, 3, 1, 2, 3, 8, 0];
        hello(1).encode(&mut bytes);
        bytes.extend([0, 255, 0, 0, 0]);
        assert_eq!(Hello::decode(&bytes), Ok((hello(1), 3 + UNKNOWN)));
    }

    #[test]
    fn each_field_is_needed_once_and_whole() {
        let (fields, _) = Fields::scan(&[]).unwrap();
        assert!(fields.0.iter().all(Option::is_none));
        let bytes = encoded(&hello(1));
        for wanted in kind::VERSIONS..=kind::STARTUP_ID {
            let mut without = Vec::new();
            let (fields, _) = Fields::scan(&bytes).unwrap();
            for kind in (kind::VERSIONS..=kind::STARTUP_ID).filter(|kind| *kind != wanted) {
                put(&mut without, kind, fields.bytes(kind).unwrap());
            }
            assert_eq!(Hello::decode(&without), Err(HelloError::Missing { kind: wanted }));

            let mut twice = bytes.clone();
            put(&mut twice, wanted, fields.bytes(wanted).unwrap());
            assert_eq!(Hello::decode(&twice), Err(HelloError::Duplicate { kind: wanted }));

            if wanted != kind::SOFTWARE {
                let length = fields.bytes(wanted).unwrap().len() + 1;
                put(&mut without, wanted, &vec![1; length]);
                assert_eq!(
                    Hello::decode(&without),
                    Err(HelloError::Length { kind: wanted, length })
                );
            }
        }
        assert_eq!(Hello::decode(&[1]), Err(HelloError::Truncated { kind: 1 }));
        assert_eq!(Hello::decode(&[77, 2, 0]), Err(HelloError::Truncated { kind: 77 }));
    }

    #[test]
    fn impossible_values_are_refused_and_large_ones_reduced() {
        for (min, max) in [(0, 1), (2, 1), (0, 0)] {
            assert_eq!(VersionRange::new(min, max), Err(HelloError::Versions { min, max }));
        }
        assert_eq!(LaneCount::new(0), None);
        assert_eq!(LaneCount::new(LANES_MAX + 1), None);
        assert_eq!(LaneCount::at_most(0), None);
        assert_eq!(LaneCount::at_most(255), LaneCount::new(LANES_MAX));
        assert_eq!(SoftwareVersion::lossy(b"1\x1b[2J\xff").as_str(), "1?[2J?");
    }

    #[test]
    fn versions_in_common() {
        let range = |min, max| VersionRange::new(min, max).unwrap();
        let cases = [
            ((1, 1), (1, 1), Some(1)),
            ((1, 1), (1, 2), Some(1)),
            ((1, 2), (1, 2), Some(2)),
            ((1, 3), (2, 9), Some(3)),
            ((1, 1), (2, 2), None),
            ((5, 7), (1, 4), None),
            ((5, 7), (7, 9), Some(7)),
        ];
        for ((a, b), (c, d), common) in cases {
            assert_eq!(range(a, b).highest_common(range(c, d)), common);
            assert_eq!(range(c, d).highest_common(range(a, b)), common);
        }
    }

    #[test]
    fn disagreements_name_both_sides() {
        let (one, mut other) = (hello(1), hello(2));
        other.versions = VersionRange::new(7, 9).unwrap();
        assert_eq!(
            Agreed::between(&one, &other),
            Err(Disagreement::NoCommonVersion { local: one.versions, remote: other.versions })
        );
        other = hello(2);
        other.ciphers = CipherSet::EMPTY;
        assert_eq!(
            Agreed::between(&other, &one),
            Err(Disagreement::NoCommonCipher { local: other.ciphers, remote: one.ciphers })
        );
    }

    fn any_hello() -> impl Strategy<Value = Hello> {
        (
            (1..5_u16, 0..5_u16, any::<u32>(), 1..=LANES_MAX, 0..8_u32),
            (any::<[u8; 32]>(), "[ -~]{0,64}", any::<u64>()),
        )
            .prop_map(
                |((min, more, capabilities, lanes, ciphers), (group_digest, software, id))| Hello {
                    versions: VersionRange::new(min, min + more).unwrap(),
                    capabilities,
                    lanes: LaneCount::new(lanes).unwrap(),
                    ciphers: CipherSet::from_bits(ciphers),
                    group_digest,
                    software: SoftwareVersion::lossy(software.as_bytes()),
                    startup_id: id,
                },
            )
    }

    proptest! {
        #[test]
        fn round_trip(hello in any_hello(), padding in 0..40_usize) {
            let mut bytes = encoded(&hello);
            prop_assert!(bytes.len() <= HELLO_LENGTH_MAX);
            bytes.resize(bytes.len() + padding, 0);
            prop_assert_eq!(Hello::decode(&bytes), Ok((hello, UNKNOWN)));
        }

        #[test]
        fn agreement_is_symmetric(one in any_hello(), other in any_hello()) {
            let (here, there) = (Agreed::between(&one, &other), Agreed::between(&other, &one));
            prop_assert_eq!(here.ok(), there.ok());
            if let Ok(agreed) = here {
                for side in [&one, &other] {
                    prop_assert!(
                        (side.versions.min()..=side.versions.max()).contains(&agreed.version));
                    prop_assert!(agreed.lanes >= side.lanes);
                    prop_assert!(side.ciphers.contains(agreed.cipher));
                    prop_assert_eq!(agreed.capabilities & !side.capabilities, 0);
                }
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok((hello, _)) = Hello::decode(&bytes) {
                prop_assert_eq!(Hello::decode(&encoded(&hello)).unwrap().0, hello);
            }
        }

        #[test]
        fn damaged_fields_are_read_or_refused(
            hello in any_hello(), at in any::<usize>(), value in any::<u8>(), cut in any::<usize>(),
        ) {
            let mut bytes = encoded(&hello);
            let length = bytes.len();
            bytes[at % length] = value;
            bytes.truncate(length - cut % 4);
            if let Ok((hello, _)) = Hello::decode(&bytes) {
                prop_assert_eq!(Hello::decode(&encoded(&hello)).unwrap().0, hello);
            }
        }
    }
}
