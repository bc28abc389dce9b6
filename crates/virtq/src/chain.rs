//! One request as the device sees it: the readable and the writable buffers of a descriptor chain.

use crate::memory::{GuestMemory, GuestSlice};

/// Parts a chain may have beyond the queue's size, for buffers that run over region borders.
const EXTRA_PARTS: usize = 32;

/// The buffers of one chain, translated. Made once and used again for every request: no allocation per request.
#[derive(Debug, Default)]
pub struct Chain {
    /// Readable buffers, then writable ones; the first `len` are valid. A fixed slice, so that a hostile chain cannot
    /// make it grow.
    slices: Box<[GuestSlice]>,
    len: usize,
    readable_len: usize,
    readable_bytes: u64,
    writable_bytes: u64,
}

impl Chain {
    /// A chain for queues of up to `queue_size` descriptors; larger queues enlarge it at their first walk.
    pub fn new(queue_size: u16) -> Chain {
        let mut chain = Chain::default();
        chain.restart(queue_size);
        chain
    }

    /// The buffers the device reads, in order, none empty.
    #[inline]
    pub fn readable(&self) -> &[GuestSlice] {
        &self.slices[..self.readable_len]
    }

    /// The buffers the device writes, in order, none empty.
    #[inline]
    pub fn writable(&self) -> &[GuestSlice] {
        &self.slices[self.readable_len..self.len]
    }

    /// Total of [`Chain::readable`].
    #[inline]
    pub fn readable_bytes(&self) -> u64 {
        self.readable_bytes
    }

    /// Total of [`Chain::writable`].
    #[inline]
    pub fn writable_bytes(&self) -> u64 {
        self.writable_bytes
    }

    /// Copies readable bytes from byte `offset` on; returns how many there were (fewer than asked for at the end).
    #[inline]
    pub fn read_at(&self, mem: &GuestMemory, offset: u64, into: &mut [u8]) -> usize {
        let mut done = 0;
        for part in self.readable_range(offset, into.len() as u64) {
            let end = done + part.len() as usize;
            mem.read(part, 0, &mut into[done..end]);
            done = end;
        }
        done
    }

    /// Copies `bytes` into the writable buffers from byte `offset` on; returns how many fitted.
    #[inline]
    pub fn write_at(&self, mem: &GuestMemory, offset: u64, bytes: &[u8]) -> usize {
        let mut done = 0;
        for part in self.writable_range(offset, bytes.len() as u64) {
            let end = done + part.len() as usize;
            mem.write(part, 0, &bytes[done..end]);
            done = end;
        }
        done
    }

    /// The parts of the readable buffers from byte `offset` on, `len` bytes or up to the end.
    #[inline]
    pub fn readable_range(&self, offset: u64, len: u64) -> Parts<'_> {
        parts(self.readable(), offset, len)
    }

    /// The parts of the writable buffers from byte `offset` on, `len` bytes or up to the end.
    #[inline]
    pub fn writable_range(&self, offset: u64, len: u64) -> Parts<'_> {
        parts(self.writable(), offset, len)
    }

    /// The last writable byte, where virtio-blk and the network control queue want their status.
    #[inline]
    pub fn last_writable_byte(&self) -> Option<GuestSlice> {
        let last = self.writable().last()?;
        last.sub(last.len() - 1, 1)
    }

    /// Empties the chain for a queue of `queue_size`.
    #[inline]
    pub(crate) fn restart(&mut self, queue_size: u16) {
        let parts = usize::from(queue_size) + EXTRA_PARTS;
        if self.slices.len() < parts {
            self.slices = vec![GuestSlice::default(); parts].into_boxed_slice();
        }
        self.len = 0;
        self.readable_len = 0;
        self.readable_bytes = 0;
        self.writable_bytes = 0;
    }

    /// Appends a readable buffer; false when the chain is full. The caller adds no readable after a writable one.
    #[inline]
    pub(crate) fn push_readable(&mut self, slice: GuestSlice) -> bool {
        let pushed = self.push(slice);
        self.readable_len = self.len;
        self.readable_bytes += u64::from(slice.len());
        pushed
    }

    /// Appends a writable buffer; false when the chain is full.
    #[inline]
    pub(crate) fn push_writable(&mut self, slice: GuestSlice) -> bool {
        self.writable_bytes += u64::from(slice.len());
        self.push(slice)
    }

    #[inline]
    fn push(&mut self, slice: GuestSlice) -> bool {
        let Some(place) = self.slices.get_mut(self.len) else {
            return false;
        };
        *place = slice;
        self.len += 1;
        true
    }

    pub(crate) fn part_limit(&self) -> usize {
        self.slices.len()
    }
}

/// The parts of some buffers from byte `offset` on, `len` bytes or up to the end.
#[inline]
pub fn parts(buffers: &[GuestSlice], offset: u64, len: u64) -> Parts<'_> {
    Parts { rest: buffers.iter(), skip: offset, left: len }
}

/// Iterator over the parts of a byte range; see [`parts`].
#[derive(Clone, Debug)]
pub struct Parts<'a> {
    rest: std::slice::Iter<'a, GuestSlice>,
    skip: u64,
    left: u64,
}

impl Iterator for Parts<'_> {
    type Item = GuestSlice;

    #[inline]
    fn next(&mut self) -> Option<GuestSlice> {
        while self.left > 0 {
            let slice = *self.rest.next()?;
            let len = u64::from(slice.len());
            if self.skip >= len {
                self.skip -= len;
                continue;
            }
            let take = (len - self.skip).min(self.left);
            // Both fit 32 bits: they are at most the slice's length.
            let part = slice.sub(self.skip as u32, take as u32);
            self.skip = 0;
            self.left -= take;
            return part;
        }
        None
    }
}
