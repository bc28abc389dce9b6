//! From heads on the ring to operations of the host.

use reactor::Full;
use virtq::Chain;

use super::ranges::read_range;
use super::transfer::Rest;
use super::{CHANGED, Failure, Kit, Serving, Slot, Stage, Step, Target};
use crate::metrics::ErrorKind;
use crate::request::{
    DiskLimits, HEADER_BYTES, RANGE_BYTES, Request, SERIAL_BYTES, STATUS_BYTES, Status, parse,
};

/// Requests carried out at once, by the worker itself, before their answers are shown: the guest is at work on these while
/// the next ones are carried out.
pub(super) const AT_ONCE_MAX: usize = 24;

impl Serving {
    pub(super) fn take(
        &mut self,
        kit: &mut Kit<'_>,
        limits: &DiskLimits,
        heads: &mut [u16],
        completions: u64,
    ) -> bool {
        let count = match self.queue.pop_batch(heads) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(fault) => {
                self.break_ring(0, &fault, kit.io);
                return true;
            }
        };
        let now_ns = kit.io.now_ns();
        let mut at_once = 0;
        // Those of other queues do not count: every queue has its turn in every pass.
        let before = kit.io.at_once_waiting();
        for (position, &head) in heads[..count].iter().enumerate() {
            if kit.io.at_once_waiting() - before >= AT_ONCE_MAX {
                self.queue.undo_pop((count - position) as u16);
                break;
            }
            if position.is_multiple_of(AT_ONCE_MAX) {
                self.warm(&heads[position..count.min(position + AT_ONCE_MAX)], kit);
            }
            self.open += 1;
            match self.begin(head, kit, limits, now_ns) {
                Ok(Step::Started) => {}
                Ok(Step::Ended(result)) => {
                    at_once += 1;
                    self.answer(head, result);
                }
                Ok(Step::Broken) => break,
                Err(Full) => {
                    self.open -= 1;
                    self.queue.undo_pop((count - position) as u16);
                    self.stalled_at = Some(completions);
                    self.metrics.stalls.add(1);
                    break;
                }
            }
        }
        if at_once > 0 {
            self.metrics.queue_time.record_many_ns(0, at_once);
            self.metrics.device_time.record_many_ns(0, at_once);
        }
        true
    }

    /// Goes on with requests that found no room.
    pub(super) fn retry(&mut self, kit: &mut Kit<'_>, limits: &DiskLimits, completions: u64) -> bool {
        let mut worked = false;
        while let Some(head) = self.waiting.pop_front() {
            let step = if self.slots[usize::from(head)].stage == Stage::New {
                self.begin(head, kit, limits, kit.io.now_ns())
            } else {
                self.resume(head, kit, limits)
            };
            match step {
                Ok(Step::Started) => {}
                Ok(Step::Ended(result)) => self.answer(head, result),
                Ok(Step::Broken) => return true,
                Err(Full) => {
                    self.waiting.push_front(head);
                    self.stalled_at = Some(completions);
                    self.metrics.stalls.add(1);
                    return worked;
                }
            }
            worked = true;
        }
        worked
    }

    /// Parses a request and starts its first operation.
    #[inline]
    fn begin(
        &mut self,
        head: u16,
        kit: &mut Kit<'_>,
        limits: &DiskLimits,
        now_ns: u64,
    ) -> Result<Step, Full> {
        let chain = &mut *kit.chain;
        if let Err(fault) = self.queue.walk(head, chain) {
            self.break_ring(1, &fault, kit.io);
            return Ok(Step::Broken);
        }
        let mut header = [0; HEADER_BYTES];
        chain.read_at(self.queue.memory(), 0, &mut header);
        let slot = &mut self.slots[usize::from(head)];
        *slot = Slot { popped_ns: now_ns, submitted_ns: now_ns, ..Slot::default() };
        let request = match parse(&header, chain.readable_bytes(), chain.writable_bytes(), limits) {
            Ok(request) => request,
            Err(fault) => {
                let Some(status) = fault.status() else {
                    self.break_ring(1, &fault, kit.io);
                    return Ok(Step::Broken);
                };
                slot.status = chain.last_writable_byte().unwrap_or_default();
                return Ok(self.refuse(head, &fault, status));
            }
        };
        slot.request = Some(request);
        slot.status = chain.last_writable_byte().unwrap_or_default();
        let changes = !matches!(request, Request::Read { .. } | Request::GetId);
        if changes && self.disk.poisoned().is_some() {
            return Ok(Step::Ended(Err(Failure::io(ErrorKind::Poisoned))));
        }
        match request {
            Request::Discard { ranges } | Request::WriteZeroes { ranges } => {
                // All of them before the first: a request is refused as a whole.
                for index in 0..ranges {
                    if let Err(fault) = read_range(&self.queue, chain, request, index, limits) {
                        let status = fault.status().unwrap_or(Status::IoError);
                        return Ok(self.refuse(head, &fault, status));
                    }
                }
            }
            Request::GetId => {
                let mut serial = [0; SERIAL_BYTES];
                let bytes = self.session.serial.as_bytes();
                serial[..bytes.len()].copy_from_slice(bytes);
                slot.chunk = (chain.writable_bytes() - STATUS_BYTES).min(SERIAL_BYTES as u64);
                chain.write_at(self.queue.memory(), 0, &serial[..slot.chunk as usize]);
                for part in chain.writable_range(0, slot.chunk) {
                    self.queue.log_written(part, 0, part.len());
                }
                return Ok(Step::Ended(Ok(())));
            }
            _ => {}
        }
        self.advance(head, kit, limits)
    }

    /// Goes on with a request that was begun: walks and checks its chain again.
    pub(super) fn resume(&mut self, head: u16, kit: &mut Kit<'_>, limits: &DiskLimits) -> Result<Step, Full> {
        if let Err(fault) = self.queue.walk(head, kit.chain) {
            self.break_ring(1, &fault, kit.io);
            return Ok(Step::Broken);
        }
        if self.is_unchanged(head, kit.chain) {
            self.advance(head, kit, limits)
        } else {
            Ok(self.refuse(head, &CHANGED, Status::IoError))
        }
    }

    /// Whether a chain that was walked again still has the shape of its request.
    pub(super) fn is_unchanged(&self, head: u16, chain: &Chain) -> bool {
        let header = HEADER_BYTES as u64;
        match self.slots[usize::from(head)].request {
            Some(Request::Read { bytes, .. }) => chain.writable_bytes() == bytes + STATUS_BYTES,
            Some(Request::Write { bytes, .. }) => chain.readable_bytes() == header + bytes,
            Some(Request::Discard { ranges } | Request::WriteZeroes { ranges }) => {
                chain.readable_bytes() == header + u64::from(ranges) * RANGE_BYTES as u64
            }
            _ => true,
        }
    }

    /// Starts the next operation of a request whose chain is in `kit`.
    #[inline]
    fn advance(&mut self, head: u16, kit: &mut Kit<'_>, limits: &DiskLimits) -> Result<Step, Full> {
        let slot = &mut self.slots[usize::from(head)];
        slot.submitted_ns = kit.io.now_ns();
        let file = match self.target {
            Target::File(file) => file,
            Target::Pool { volume, .. } => return self.advance_in_pool(head, volume, kit, limits),
            Target::Nothing => return Ok(Step::Ended(Ok(()))),
        };
        let token = self.token | u64::from(head);
        match slot.request {
            Some(Request::Read { bytes, .. } | Request::Write { bytes, .. }) if slot.done == bytes => {
                Ok(Step::Ended(Ok(())))
            }
            Some(Request::Read { offset, bytes } | Request::Write { offset, bytes }) => {
                let (alignment, at) = (self.disk.alignment(), offset + slot.done);
                let rest = Rest { file, alignment, at, bytes: bytes - slot.done };
                self.transfer(head, rest, Stage::Transfer, kit)
            }
            Some(Request::Flush) => {
                kit.io.fsync(file, true, token)?;
                slot.stage = Stage::Sync;
                Ok(Step::Started)
            }
            Some(request @ (Request::Discard { ranges } | Request::WriteZeroes { ranges })) => {
                self.next_range(head, file, kit, limits, request, ranges)
            }
            Some(Request::GetId) | None => Ok(Step::Ended(Ok(()))),
        }
    }
}
