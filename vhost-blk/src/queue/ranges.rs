//! Discards and write-zeroes: one range after the other, each by the first method that the host supports.

use reactor::{Buffers, FileId, Full};
use virtq::{Chain, Queue};

use super::transfer::is_transient;
use super::{Failure, Kit, Serving, Stage, Step};
use crate::disk::Medium;
use crate::helper::Job;
use crate::request::{DiskLimits, HEADER_BYTES, RANGE_BYTES, Range, Request, Status, parse_range};

/// Ways to discard or zero a range, in the order in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// An ioctl on the helper thread.
    Discard,
    /// fallocate: gives the space back, reads zeroes afterwards.
    Punch,
    /// fallocate: keeps the space, reads zeroes afterwards.
    ZeroRange,
    /// Writing zeroes.
    Fill,
    /// By the pool of the volume.
    Pool,
}

impl Serving {
    /// Starts the current range of a discard or write-zeroes, or ends the request after the last.
    pub(super) fn next_range(
        &mut self,
        head: u16,
        file: FileId,
        kit: &mut Kit<'_>,
        limits: &DiskLimits,
        request: Request,
        ranges: u32,
    ) -> Result<Step, Full> {
        let (io, chain) = (&mut *kit.io, &*kit.chain);
        let (token, write_through) = (self.token | u64::from(head), self.writes_through());
        loop {
            let slot = &mut self.slots[usize::from(head)];
            if slot.range == ranges {
                if slot.stage != Stage::Sync && write_through {
                    io.fsync(file, true, token)?;
                    slot.stage = Stage::Sync;
                    return Ok(Step::Started);
                }
                return Ok(Step::Ended(Ok(())));
            }
            let range = match read_range(&self.queue, chain, request, slot.range, limits) {
                Ok(range) => range,
                Err(fault) => return Ok(self.refuse(head, &fault, Status::IoError)),
            };
            if slot.done == range.bytes {
                slot.range += 1;
                slot.done = 0;
                slot.stage = Stage::Between;
                continue;
            }
            let method = match slot.stage {
                Stage::Range(method) => method,
                _ => first_method(request, range, self.disk.medium()),
            };
            slot.chunk = range.bytes - slot.done;
            let keep = libc::FALLOC_FL_KEEP_SIZE;
            match method {
                Method::Discard => {
                    let Some(file) = self.disk.file_handle() else { return Ok(Step::Ended(Ok(()))) };
                    let (file, offset, bytes) = (file.clone(), range.offset, range.bytes);
                    self.helper.send(Job::Discard { file, offset, bytes, token });
                }
                Method::Punch => {
                    io.fallocate(file, libc::FALLOC_FL_PUNCH_HOLE | keep, range.offset, range.bytes, token)?;
                }
                Method::ZeroRange => {
                    io.fallocate(file, libc::FALLOC_FL_ZERO_RANGE | keep, range.offset, range.bytes, token)?;
                }
                Method::Pool => unreachable!("a pool's ranges are started by it"),
                Method::Fill => {
                    let mut buffer = io.buffer().ok_or(Full)?;
                    let chunk = slot.chunk.min(io.buffer_bytes() as u64) as usize;
                    io.bytes_mut(&mut buffer)[..chunk].fill(0);
                    io.write(file, range.offset + slot.done, Buffers::Pool(buffer, 0..chunk), token)?;
                    slot.chunk = chunk as u64;
                }
            }
            slot.stage = Stage::Range(method);
            return Ok(Step::Started);
        }
    }

    /// A range, or a part of it, ended; `None` when there is more to do.
    pub(super) fn ranged(&mut self, head: u16, method: Method, result: i32) -> Option<Result<(), Failure>> {
        let slot = &mut self.slots[usize::from(head)];
        let unsupported = matches!(-result, libc::EOPNOTSUPP | libc::EINVAL | libc::ENOTTY | libc::ENOSYS);
        let discard = matches!(slot.request, Some(Request::Discard { .. }));
        match (result, method) {
            (0.., Method::Fill) => slot.done += u64::from(result.unsigned_abs()),
            (0.., _) => slot.done += slot.chunk,
            _ if is_transient(-result) => {}
            // A discard is a hint.
            _ if unsupported && discard => slot.done += slot.chunk,
            (_, Method::Punch) if unsupported => slot.stage = Stage::Range(Method::ZeroRange),
            (_, Method::ZeroRange) if unsupported => slot.stage = Stage::Range(Method::Fill),
            _ => return Some(Err(self.host_failed("discard or zero a range of", -result))),
        }
        None
    }
}

/// Range `index` of a discard or write-zeroes.
pub(super) fn read_range(
    queue: &Queue,
    chain: &Chain,
    request: Request,
    index: u32,
    limits: &DiskLimits,
) -> Result<Range, crate::request::RequestFault> {
    let mut bytes = [0; RANGE_BYTES];
    let at = HEADER_BYTES as u64 + u64::from(index) * RANGE_BYTES as u64;
    chain.read_at(queue.memory(), at, &mut bytes);
    parse_range(&bytes, request, limits)
}

fn first_method(request: Request, range: Range, medium: Medium) -> Method {
    match request {
        Request::Discard { .. } if medium == Medium::Device => Method::Discard,
        Request::Discard { .. } => Method::Punch,
        _ if range.unmap => Method::Punch,
        _ => Method::ZeroRange,
    }
}
