//! Cutting a byte stream into messages.

use crate::message::{HEADER_LEN, MESSAGE_LEN_MAX};

/// Turns a byte stream into the bytes of whole messages. Holds at most [`Framer::CAPACITY`] bytes.
#[derive(Debug, Default)]
pub struct Framer {
    buffer: Vec<u8>,
    start: usize,
}

/// The stream is not OpenFlow; there is no way to find the next message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a message header claims {length} bytes; the header alone has 8")]
pub struct FrameError {
    /// The length the header claims.
    pub length: u16,
}

impl Framer {
    /// Bytes held at most: one message of the largest size and the beginning of the next.
    pub const CAPACITY: usize = 2 * (MESSAGE_LEN_MAX + 1);

    /// A framer at the beginning of a stream.
    pub fn new() -> Framer {
        Framer::default()
    }

    /// Takes received bytes; returns how many. Fewer than given are taken only while whole messages wait in here:
    /// pop them, then push the rest.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        let count = bytes.len().min(Framer::CAPACITY - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        count
    }

    /// The next whole message, to be given to [`crate::decode`].
    ///
    /// # Errors
    /// A length below that of the header; every later call fails the same way.
    pub fn pop(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let waiting = &self.buffer[self.start..];
        let Some(header) = waiting.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let length = u16::from_be_bytes([header[2], header[3]]);
        let len = usize::from(length);
        if len < HEADER_LEN {
            return Err(FrameError { length });
        }
        if waiting.len() < len {
            return Ok(None);
        }
        let start = self.start;
        self.start += len;
        Ok(Some(&self.buffer[start..start + len]))
    }

    /// Bytes that wait for the rest of their message.
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.start
    }
}
