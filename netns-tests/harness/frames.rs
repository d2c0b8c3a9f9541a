//! Ethernet frames to send, and seeded bytes to fill them with.

/// EtherType for local experiments (IEEE 802, 0x88B5): no kernel acts on it.
pub(crate) const EXPERIMENTAL: u16 = 0x88b5;
/// Customer VLAN tag (IEEE 802.1Q).
pub(crate) const C_TAG: u16 = 0x8100;
/// Service VLAN tag (IEEE 802.1ad).
pub(crate) const S_TAG: u16 = 0x88a8;

/// A frame: addresses, `(TPID, TCI)` tags from the outside in, EtherType, payload.
pub(crate) fn frame(
    destination: [u8; 6],
    source: [u8; 6],
    tags: &[(u16, u16)],
    ether_type: u16,
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = [destination, source].concat();
    for (tpid, tci) in tags {
        bytes.extend(tpid.to_be_bytes());
        bytes.extend(tci.to_be_bytes());
    }
    bytes.extend(ether_type.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A small seeded generator (SplitMix64, Steele et al. 2014): the same seed
/// gives the same numbers everywhere.
#[derive(Debug, Clone)]
pub(crate) struct Seeded(u64);

impl Seeded {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..1.
    pub(crate) fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Fills all whole words of eight bytes.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_exact_mut(8) {
            word.copy_from_slice(&self.next().to_ne_bytes());
        }
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.next() as u8).take(length).collect()
    }
}
