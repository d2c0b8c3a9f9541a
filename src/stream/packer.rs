use crate::wire::datagram::{
    DATAGRAM_LENGTH_MAX, HEADER_LENGTH, POSITION_LENGTH, Position, STREAM_OVERHEAD, TAG_LENGTH,
};

/// Segments that one UDP GSO send may have (`UDP_MAX_SEGMENTS`,
/// linux/include/linux/udp.h, before it grew to 128).
const BATCH_DATAGRAMS_MAX: usize = 64;

/// Packs records into a batch of equally sized datagrams, laid out one after
/// the other as a GSO send takes them; only the last may be shorter.
///
/// In each datagram, header and tag are left blank for whoever seals it; the
/// position and the stream bytes are written here.
pub struct Packer {
    buffer: Box<[u8]>,
    datagram_size: usize,
    batch_datagrams: usize,
    /// Finished datagrams in the batch.
    closed: usize,
    /// Length of the last finished datagram.
    last_length: usize,
    /// Stream bytes in the datagram being filled.
    open: usize,
    position: Position,
    /// Bytes of the current record written so far.
    record_offset: u32,
    /// The current record has a trailer.
    has_trailer: bool,
}

impl Packer {
    /// A packer for datagrams of `datagram_size` bytes, header and tag included.
    pub fn new(datagram_size: usize) -> Self {
        let mut packer = Self {
            buffer: vec![0; DATAGRAM_LENGTH_MAX].into_boxed_slice(),
            datagram_size: 0,
            batch_datagrams: 0,
            closed: 0,
            last_length: 0,
            open: 0,
            position: Position::default(),
            record_offset: 0,
            has_trailer: false,
        };
        packer.set_datagram_size(datagram_size);
        packer
    }

    /// Changes the size of the datagrams to come. What was not taken is lost:
    /// call it between [`Packer::take`] and the next record.
    ///
    /// # Panics
    /// Where not even one stream byte would fit, or more than UDP can carry.
    pub fn set_datagram_size(&mut self, datagram_size: usize) {
        assert!((STREAM_OVERHEAD + 1..=DATAGRAM_LENGTH_MAX).contains(&datagram_size));
        self.datagram_size = datagram_size;
        self.batch_datagrams = (DATAGRAM_LENGTH_MAX / datagram_size).min(BATCH_DATAGRAMS_MAX);
        self.reset();
    }

    /// Bytes of a full datagram.
    pub fn datagram_size(&self) -> usize {
        self.datagram_size
    }

    /// Forgets everything that was not taken; the next record starts afresh.
    pub fn reset(&mut self) {
        self.closed = 0;
        self.open = 0;
        self.record_offset = 0;
        self.position = Position::default();
    }

    /// Nothing to take.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.closed == 0 && self.open == 0
    }

    /// No room for another byte before [`Packer::take`].
    #[inline]
    pub fn is_full(&self) -> bool {
        self.closed == self.batch_datagrams
    }

    /// Starts a record. The batch must not be full.
    #[inline]
    pub fn begin_record(&mut self, has_trailer: bool) {
        debug_assert!(!self.is_full());
        self.record_offset = 0;
        self.has_trailer = has_trailer;
        if self.open == 0 {
            self.position.record_offset = 0;
            self.position.has_trailer = false;
        }
        if self.position.first_record.is_none() {
            self.position.first_record = Some(self.open as u16);
        }
    }

    /// Appends as many of the record's bytes as the batch has room for, and
    /// returns how many.
    #[inline]
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let payload = self.datagram_size - STREAM_OVERHEAD;
        let mut written = 0;
        while written < bytes.len() && !self.is_full() {
            let taken = (payload - self.open).min(bytes.len() - written);
            let start = self.open_start() + HEADER_LENGTH + POSITION_LENGTH + self.open;
            self.buffer[start..start + taken].copy_from_slice(&bytes[written..written + taken]);
            self.open += taken;
            self.record_offset += taken as u32;
            written += taken;
            if self.open == payload {
                self.close();
            }
        }
        written
    }

    /// Ends the batch and hands out its datagrams with the size that all but
    /// the last have. Bytes [16, 22) of each hold its [`Position`], with
    /// nothing skipped.
    #[inline]
    pub fn take(&mut self) -> (usize, &mut [u8]) {
        if self.open > 0 {
            self.close();
        }
        let length = match self.closed {
            0 => 0,
            closed => (closed - 1) * self.datagram_size + self.last_length,
        };
        self.closed = 0;
        (self.datagram_size, &mut self.buffer[..length])
    }

    fn open_start(&self) -> usize {
        self.closed * self.datagram_size
    }

    fn close(&mut self) {
        let start = self.open_start() + HEADER_LENGTH;
        if let Some(bytes) = self.buffer[start..].first_chunk_mut::<POSITION_LENGTH>() {
            self.position.emit(bytes);
        }
        self.last_length = HEADER_LENGTH + POSITION_LENGTH + self.open + TAG_LENGTH;
        self.closed += 1;
        self.open = 0;
        self.position = Position {
            first_record: None,
            skipped: 0,
            record_offset: self.record_offset,
            has_trailer: self.has_trailer,
        };
    }
}
