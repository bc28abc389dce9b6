//! The private copy of a frame's first bytes.

/// How many bytes of a frame are copied, decided on and edited; the rest is payload that never leaves its place.
pub const HEADER_BYTES_MAX: usize = 256;
/// Enough for the addresses, tags, and an IPv4 or IPv6 header with a TCP header behind it: what is copied when nothing
/// looks deeper.
pub const HEADER_BYTES_SHORT: usize = 128;
/// Room in front of the copy for pushed tags and labels.
pub const HEADROOM_BYTES: usize = 64;

/// The first [`HEADER_BYTES_MAX`] bytes of a frame, copied out of reach of whoever sent it, with room in front
/// for what is pushed. The frame to send is [`Header::bytes`] followed by the bytes of the original frame from
/// [`Header::consumed`] on.
#[derive(Clone)]
pub struct Header {
    buf: [u8; HEADROOM_BYTES + HEADER_BYTES_MAX],
    start: u16,
    end: u16,
    consumed: u16,
    partial_checksum: bool,
}

impl Default for Header {
    fn default() -> Header {
        Header::new()
    }
}

impl Header {
    /// An empty header.
    pub const fn new() -> Header {
        Header {
            buf: [0; HEADROOM_BYTES + HEADER_BYTES_MAX],
            start: HEADROOM_BYTES as u16,
            end: HEADROOM_BYTES as u16,
            consumed: 0,
            partial_checksum: false,
        }
    }

    /// Starts a new frame of `frame_bytes`: `copy` fills the given slice, which is its first
    /// `min(frame_bytes, HEADER_BYTES_MAX)` bytes. The checksum state is reset to "complete".
    #[inline]
    pub fn load(&mut self, frame_bytes: usize, copy: impl FnOnce(&mut [u8])) {
        self.load_up_to(HEADER_BYTES_MAX, frame_bytes, copy);
    }

    /// [`Header::load`], but at most `limit` bytes (itself at most [`HEADER_BYTES_MAX`]) of the frame.
    #[inline]
    pub fn load_up_to(&mut self, limit: usize, frame_bytes: usize, copy: impl FnOnce(&mut [u8])) {
        let len = frame_bytes.min(limit).min(HEADER_BYTES_MAX);
        self.start = HEADROOM_BYTES as u16;
        self.end = (HEADROOM_BYTES + len) as u16;
        self.consumed = len as u16;
        self.partial_checksum = false;
        copy(&mut self.buf[HEADROOM_BYTES..HEADROOM_BYTES + len]);
    }

    /// The header of a frame that is all in memory.
    pub fn of(frame: &[u8]) -> Header {
        let mut header = Header::new();
        header.load(frame.len(), |to| to.copy_from_slice(&frame[..to.len()]));
        header
    }

    /// The header as it stands.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.buf[usize::from(self.start)..usize::from(self.end)]
    }

    /// The header as it stands, to be edited in place.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buf[usize::from(self.start)..usize::from(self.end)]
    }

    /// Length of [`Header::bytes`].
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        usize::from(self.end - self.start)
    }

    /// Bytes of the original frame that the copy took: the payload starts there.
    #[inline]
    pub fn consumed(&self) -> usize {
        usize::from(self.consumed)
    }

    /// How many bytes longer (or, negative, shorter) edits made the frame. Offsets into the frame that others
    /// keep (`csum_start`, header length) move by as much.
    #[inline]
    pub fn grown(&self) -> isize {
        self.len() as isize - self.consumed() as isize
    }

    /// Says that the transport checksum is only the sum of the pseudo header (the sender left the rest to a
    /// later hand, `VIRTIO_NET_HDR_F_NEEDS_CSUM`), so that edits update it accordingly.
    #[inline]
    pub fn set_partial_checksum(&mut self, partial: bool) {
        self.partial_checksum = partial;
    }

    /// See [`Header::set_partial_checksum`].
    #[inline]
    pub fn partial_checksum(&self) -> bool {
        self.partial_checksum
    }

    /// Opens a gap of `bytes` at offset `at` by moving what is before it to the front. `false`, and nothing
    /// done, if the headroom is used up or `at` is beyond the end.
    pub(crate) fn insert(&mut self, at: usize, bytes: usize) -> bool {
        let start = usize::from(self.start);
        if bytes > start || at > self.len() {
            return false;
        }
        self.buf.copy_within(start..start + at, start - bytes);
        self.start = (start - bytes) as u16;
        true
    }

    /// Removes `bytes` at offset `at`. `false`, and nothing done, if they are not all there.
    pub(crate) fn remove(&mut self, at: usize, bytes: usize) -> bool {
        let start = usize::from(self.start);
        if at + bytes > self.len() {
            return false;
        }
        self.buf.copy_within(start..start + at, start + bytes);
        self.start = (start + bytes) as u16;
        true
    }
}
