//! A frame on its way to a port: the edited header copy, and the payload where it was received.

use virtq::{GuestMemory, GuestSlice, Window, parts};

use crate::port::offload::Offload;

/// Everything of a frame behind the header copy.
#[derive(Clone, Copy)]
pub(crate) enum Payload<'a> {
    /// In the sender's buffers.
    Guest {
        memory: &'a GuestMemory,
        buffers: &'a [GuestSlice],
        /// Where the payload begins among their bytes.
        offset: u64,
    },
    /// In memory of our own.
    Bytes(&'a [u8]),
}

/// A frame: `head`, then `payload_bytes` bytes of `payload`.
///
/// It refers to what was just put together, since what is copied right after it was written in other pieces has to wait until
/// it has arrived in the cache.
#[derive(Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub(crate) head: &'a [u8],
    pub(crate) payload: &'a Payload<'a>,
    pub(crate) payload_bytes: usize,
    pub(crate) offload: &'a Offload,
}

impl<'a> Frame<'a> {
    /// A frame that is all in memory of our own.
    pub(crate) fn of(head: &'a [u8], offload: &'a Offload) -> Frame<'a> {
        Frame { head, payload: &Payload::Bytes(&[]), payload_bytes: 0, offload }
    }

    /// Bytes of the frame.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.head.len() + self.payload_bytes
    }

    /// Copies `len` bytes of the payload from byte `skip` on to byte `at` of a guest's buffer.
    #[inline]
    pub(crate) fn copy_payload(&self, skip: usize, len: usize, to: Window<'_>, mut at: u32) {
        match *self.payload {
            Payload::Guest { memory, buffers: [only], offset } => {
                // A frame's bytes fit 32 bits.
                memory.window(*only).copy_to((offset + skip as u64) as u32, to, at, len as u32);
            }
            Payload::Guest { memory, buffers, offset } => {
                for part in parts(buffers, offset + skip as u64, len as u64) {
                    memory.window(part).copy_to(0, to, at, part.len());
                    at += part.len();
                }
            }
            Payload::Bytes(bytes) => to.write(at, &bytes[skip..skip + len]),
        }
    }

    /// Copies the frame's bytes from `skip` on until `into` is full.
    pub(crate) fn read(&self, skip: usize, into: &mut [u8]) {
        let from_head = self.head.len().saturating_sub(skip).min(into.len());
        if from_head > 0 {
            into[..from_head].copy_from_slice(&self.head[skip..skip + from_head]);
        }
        let rest = &mut into[from_head..];
        let skip = (skip + from_head) - self.head.len().min(skip + from_head);
        match *self.payload {
            Payload::Guest { memory, buffers, offset } => {
                read_at(memory, buffers, offset + skip as u64, rest);
            }
            Payload::Bytes(bytes) => rest.copy_from_slice(&bytes[skip..skip + rest.len()]),
        }
    }

    /// The whole frame in memory of its own: for who looks, never for who forwards.
    #[cold]
    pub(crate) fn to_vec(self) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes()];
        self.read(0, &mut bytes);
        bytes
    }

    /// The whole frame in `scratch`.
    pub(crate) fn linearise<'s>(&self, scratch: &'s mut [u8]) -> &'s mut [u8] {
        let bytes = &mut scratch[..self.bytes()];
        self.read(0, bytes);
        bytes
    }
}

/// Copies the buffers' bytes from `offset` on until `into` is full or they end.
pub(crate) fn read_at(memory: &GuestMemory, buffers: &[GuestSlice], offset: u64, into: &mut [u8]) {
    let mut done = 0;
    for part in parts(buffers, offset, into.len() as u64) {
        let end = done + part.len() as usize;
        memory.read(part, 0, &mut into[done..end]);
        done = end;
    }
}
