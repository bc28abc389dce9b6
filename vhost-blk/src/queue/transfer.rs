//! Reads and writes: straight from or to guest memory where the host can, through a bounce buffer where it cannot.

use reactor::{Buffers, FileId, Full, IOVECS_MAX};
use virtq::{GuestMemory, Parts};

use super::{Failure, Kit, Serving, Stage, Step, Target};
use crate::request::{HEADER_BYTES, Request};

/// Most bytes of one operation: what Linux moves in one call, in whole pages.
const TRANSFER_BYTES_MAX: u64 = 1 << 30;

/// What a transfer has still to move.
pub(super) struct Rest {
    pub(super) file: FileId,
    /// What direct I/O on it needs.
    pub(super) alignment: (u32, u32),
    /// First byte in the file.
    pub(super) at: u64,
    pub(super) bytes: u64,
}

impl Serving {
    /// Starts what is left of a read or write.
    #[inline]
    pub(super) fn transfer(
        &mut self,
        head: u16,
        rest: Rest,
        stage: Stage,
        kit: &mut Kit<'_>,
    ) -> Result<Step, Full> {
        let Rest { file, alignment, at, bytes: left } = rest;
        let (io, chain) = (&mut *kit.io, &mut *kit.chain);
        let (token, write_through) = (self.token | u64::from(head), self.writes_through());
        let slot = &mut self.slots[usize::from(head)];
        let write = matches!(slot.request, Some(Request::Write { .. }));
        let (segments, skip) = match write {
            true => (chain.readable(), HEADER_BYTES as u64 + slot.done),
            false => (chain.writable(), slot.done),
        };
        let parts = if write { chain.readable_range(skip, left) } else { chain.writable_range(skip, left) };
        let (buffers, chunk) = if is_aligned(self.queue.memory(), alignment, parts) {
            let len = left.min(TRANSFER_BYTES_MAX) as u32;
            (Buffers::Guest { memory: self.memory, segments, skip, len }, u64::from(len))
        } else {
            let mut buffer = io.buffer().ok_or(Full)?;
            let chunk = left.min(io.buffer_bytes() as u64) as usize;
            if write {
                chain.read_at(self.queue.memory(), skip, &mut io.bytes_mut(&mut buffer)[..chunk]);
            }
            self.metrics.bounce_copies.add(1);
            (Buffers::Pool(buffer, 0..chunk), chunk as u64)
        };
        match write {
            false => io.read(file, at, buffers, token)?,
            true if write_through => io.write_durable(file, at, buffers, token)?,
            true => io.write(file, at, buffers, token)?,
        }
        slot.chunk = chunk;
        slot.stage = stage;
        Ok(Step::Started)
    }

    /// A transfer ended; `None` when there is more to do.
    #[inline]
    pub(super) fn transferred(
        &mut self,
        head: u16,
        result: i32,
        kit: &mut Kit<'_>,
    ) -> Option<Result<(), Failure>> {
        let (io, chain) = (&mut *kit.io, &mut *kit.chain);
        let slot = &mut self.slots[usize::from(head)];
        let (Some(Request::Read { bytes, .. }) | Some(Request::Write { bytes, .. })) = slot.request else {
            unreachable!("a transfer belongs to a read or write")
        };
        let write = matches!(slot.request, Some(Request::Write { .. }));
        let bounced = io.take_buffer();
        let moved = match result {
            ..0 if is_transient(-result) => 0,
            ..0 => {
                bounced.into_iter().for_each(|buffer| io.release(buffer));
                return Some(Err(self.host_failed(if write { "write to" } else { "read from" }, -result)));
            }
            // The end of the file inside the volume: it was cut short by somebody else.
            0 => {
                bounced.into_iter().for_each(|buffer| io.release(buffer));
                return Some(Err(self.host_failed("reach the end of", libc::EIO)));
            }
            moved => u64::from(moved.unsigned_abs()),
        };
        // What goes on begins at a block again.
        let moved = if moved == slot.chunk {
            moved
        } else {
            self.metrics.short_transfers.add(1);
            let (_, align) = self.disk.alignment();
            moved - (slot.done + moved) % u64::from(align)
        };
        let at = slot.done;
        slot.done += moved;
        let (done, logs) = (slot.done, self.queue.logs_writes());
        if let Some(buffer) = bounced {
            if !write {
                match self.queue.walk(head, chain) {
                    Ok(()) => {
                        _ = chain.write_at(self.queue.memory(), at, &io.bytes(&buffer)[..moved as usize])
                    }
                    Err(fault) => self.break_ring(1, &fault, io),
                }
            }
            io.release(buffer);
        }
        if logs && !write && !self.broken && done == bytes && self.queue.walk(head, chain).is_ok() {
            for part in chain.writable_range(0, bytes) {
                self.queue.log_written(part, 0, part.len());
            }
        }
        let sync = write && matches!(self.target, Target::Pool { .. }) && self.writes_through();
        (done == bytes && !sync).then_some(Ok(()))
    }
}

/// The host asks for another try.
pub(super) fn is_transient(errno: i32) -> bool {
    matches!(errno, libc::EAGAIN | libc::EINTR)
}

/// Whether direct I/O, which needs this alignment of memory and of offsets, can use the guest's buffers as they are.
#[inline]
pub(crate) fn is_aligned(memory: &GuestMemory, alignment: (u32, u32), parts: Parts<'_>) -> bool {
    let (memory_align, offset_align) = alignment;
    if (memory_align, offset_align) == (1, 1) {
        return true;
    }
    let mut count = 0;
    for part in parts {
        let address = memory.host_ptr(part).addr();
        if address & (memory_align as usize - 1) != 0 || part.len() & (offset_align - 1) != 0 {
            return false;
        }
        count += 1;
    }
    count <= IOVECS_MAX
}
