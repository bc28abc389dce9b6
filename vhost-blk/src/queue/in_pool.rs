//! Requests of volumes that are in a pool: given to its store, which answers with actions on the guest's buffers.
//!
//! A read of hot data goes the way of a read from a raw volume: the store only says where, and keeps it there meanwhile.
//!
//! Most requests are one action, which follows at once, while the chain is still at hand. Later actions walk the chain
//! again, as every continued request does: the guest may have changed it, and only the guest is hurt.

use reactor::{Full, Io};
use tiering::{
    Action, Buffer, DISCARD_BYTES_MAX, Hit, RequestError, RequestKind, TRANSFER_BYTES_MAX, VolumeId,
};
use virtq::Chain;

use super::begin::AT_ONCE_MAX;
use super::ranges::{Method, read_range};
use super::transfer::{Rest, is_transient};
use super::{CHANGED, Failure, Kit, Serving, Stage, Step};
use crate::metrics::ErrorKind;
use crate::request::{DiskLimits, HEADER_BYTES, Request, Status, offset_in};
use crate::tier::{GuestPart, Owner, Pool};

impl Serving {
    /// The pool of the volume, by its number at the worker.
    #[inline]
    pub(crate) fn pool_number(&self) -> Option<usize> {
        match self.target {
            super::Target::Pool { pool, .. } => Some(pool),
            _ => None,
        }
    }

    /// Brings what the store will look up for these requests into the processor's caches: together, so that the waiting
    /// for memory is done once. Whatever the guest changes afterwards, nothing is decided here.
    #[inline]
    pub(super) fn warm(&mut self, heads: &[u16], kit: &mut Kit<'_>) {
        let (super::Target::Pool { volume, .. }, [_, _, ..]) = (self.target, heads) else { return };
        let mut offsets = [0; AT_ONCE_MAX];
        let mut count = 0;
        for header in heads.iter().filter_map(|head| self.queue.peek(*head)) {
            offsets[count] = offset_in(&header);
            count += 1;
        }
        if let Some(pool) = kit.pool.as_deref_mut() {
            pool.store().warm(volume, &offsets[..count]);
        }
    }

    /// Starts the next operation of a request whose chain is in `kit`.
    #[inline]
    pub(super) fn advance_in_pool(
        &mut self,
        head: u16,
        volume: VolumeId,
        kit: &mut Kit<'_>,
        limits: &DiskLimits,
    ) -> Result<Step, Full> {
        let slot = &mut self.slots[usize::from(head)];
        let most = u64::from(TRANSFER_BYTES_MAX);
        match slot.request {
            Some(Request::Read { bytes, .. }) if slot.done == bytes => Ok(Step::Ended(Ok(()))),
            Some(Request::Write { bytes, .. }) if slot.done == bytes => {
                if bytes == 0 || !self.writes_through() {
                    return Ok(Step::Ended(Ok(())));
                }
                self.ask_pool(head, volume, kit, RequestKind::Flush, 0, 0, Stage::Sync)
            }
            Some(Request::Read { offset, bytes }) => {
                slot.chunk = (bytes - slot.done).min(most);
                let (at, len) = (offset + slot.done, slot.chunk as u32);
                match self.read_hit(head, volume, kit, at, len)? {
                    Some(step) => Ok(step),
                    None => self.ask_pool(head, volume, kit, RequestKind::Read, at, len, Stage::Transfer),
                }
            }
            Some(Request::Write { offset, bytes }) => {
                slot.chunk = (bytes - slot.done).min(most);
                let (at, len) = (offset + slot.done, slot.chunk as u32);
                self.ask_pool(head, volume, kit, RequestKind::Write, at, len, Stage::Transfer)
            }
            Some(Request::Flush) => self.ask_pool(head, volume, kit, RequestKind::Flush, 0, 0, Stage::Sync),
            Some(request @ (Request::Discard { ranges } | Request::WriteZeroes { ranges })) => {
                self.next_range_in_pool(head, volume, kit, limits, (request, ranges))
            }
            Some(Request::GetId) | None => Ok(Step::Ended(Ok(()))),
        }
    }

    /// Starts the current range of a discard or write-zeroes, or ends the request after the last.
    fn next_range_in_pool(
        &mut self,
        head: u16,
        volume: VolumeId,
        kit: &mut Kit<'_>,
        limits: &DiskLimits,
        (request, ranges): (Request, u32),
    ) -> Result<Step, Full> {
        loop {
            let slot = &mut self.slots[usize::from(head)];
            if slot.range == ranges {
                if slot.stage != Stage::Sync && self.writes_through() {
                    return self.ask_pool(head, volume, kit, RequestKind::Flush, 0, 0, Stage::Sync);
                }
                return Ok(Step::Ended(Ok(())));
            }
            let range = match read_range(&self.queue, kit.chain, request, slot.range, limits) {
                Ok(range) => range,
                Err(fault) => return Ok(self.refuse(head, &fault, Status::IoError)),
            };
            if slot.done >= range.bytes {
                slot.range += 1;
                slot.done = 0;
                slot.stage = Stage::Between;
                continue;
            }
            slot.chunk = (range.bytes - slot.done).min(u64::from(DISCARD_BYTES_MAX));
            let (at, len) = (range.offset + slot.done, slot.chunk as u32);
            let kind = match request {
                Request::Discard { .. } => RequestKind::Discard,
                _ => RequestKind::WriteZeroes,
            };
            return self.ask_pool(head, volume, kit, kind, at, len, Stage::Range(Method::Pool));
        }
    }

    /// Reads hot data where they are. `None`: the store is to be asked.
    #[inline]
    fn read_hit(
        &mut self,
        head: u16,
        volume: VolumeId,
        kit: &mut Kit<'_>,
        offset: u64,
        len: u32,
    ) -> Result<Option<Step>, Full> {
        if self.slots[usize::from(head)].missed {
            return Ok(None);
        }
        let found = kit.pool.as_deref_mut().and_then(|pool| pool.hit(volume, offset, len));
        let Some((hit, file, alignment)) = found else { return Ok(None) };
        let rest = Rest { file, alignment, at: hit.offset, bytes: u64::from(len) };
        let started = self.transfer(head, rest, Stage::Hit(hit), kit);
        if let (Err(_), Some(pool)) = (&started, kit.pool.as_deref_mut()) {
            pool.hit_done(hit, false);
        }
        started.map(Some)
    }

    /// Hot data were read. If not all of them came, the store serves the request: it may know another copy.
    #[inline]
    pub(super) fn hit_ended(&mut self, head: u16, hit: Hit, result: i32, kit: &mut Kit<'_>) {
        let pool = kit.pool.as_deref_mut().expect("a pool outlives the queues of its volumes");
        pool.hit_done(hit, result < 0 && !is_transient(-result));
        let slot = &mut self.slots[usize::from(head)];
        slot.missed = u64::try_from(result) != Ok(slot.chunk);
        slot.stage = if slot.missed { Stage::Between } else { Stage::Transfer };
    }

    /// Gives the store a request and carries out what it wants done with it at once.
    #[inline]
    #[allow(clippy::too_many_arguments, reason = "the fields of one request, told apart by their types")]
    fn ask_pool(
        &mut self,
        head: u16,
        volume: VolumeId,
        kit: &mut Kit<'_>,
        kind: RequestKind,
        offset: u64,
        len: u32,
        stage: Stage,
    ) -> Result<Step, Full> {
        let pool = kit.pool.as_deref_mut().expect("a pool outlives the queues of its volumes");
        let owner = Owner::Queue { queue: self.number(), head };
        let tag = pool.submit(owner, volume, kind, offset, len)?;
        self.slots[usize::from(head)].stage = stage;
        while let Some(action) = pool.next_action() {
            let started = match action.buffer {
                Buffer::Request { tag: of, .. } if of == tag => {
                    self.carry_out(head, action, pool, kit.io, kit.chain)
                }
                _ => Err(Full),
            };
            if started.is_err() {
                pool.put_back(action);
                break;
            }
        }
        Ok(Step::Started)
    }

    /// Carries out an action on the buffers of request `head`.
    pub(crate) fn act(&mut self, head: u16, action: Action, kit: &mut Kit<'_>) -> Result<(), Full> {
        let usable = self.walk_again(head, kit.io, kit.chain);
        let pool = kit.pool.as_deref_mut().expect("the action is the pool's");
        if usable {
            return self.carry_out(head, action, pool, kit.io, kit.chain);
        }
        pool.refuse(action);
        Ok(())
    }

    /// Copies what was read for an action into the buffers of request `head`, whose chain is in `chain`.
    pub(crate) fn bring(&mut self, head: u16, offset: u32, bytes: &[u8], chain: &Chain) {
        let at = self.slots[usize::from(head)].done + u64::from(offset);
        chain.write_at(self.queue.memory(), at, bytes);
    }

    /// The pool is done with what it was asked for request `head`.
    #[inline]
    pub(crate) fn pool_answered(&mut self, head: u16, result: Result<(), RequestError>, kit: &mut Kit<'_>) {
        if result == Err(RequestError::NoSpace) && self.calls_off(head) {
            return;
        }
        let code = match result {
            Ok(()) => self.slots[usize::from(head)].chunk as i32,
            Err(RequestError::ReadOnly) => -libc::EROFS,
            Err(RequestError::NoVolume) => -libc::ENODEV,
            Err(RequestError::Quota) => -libc::EDQUOT,
            Err(RequestError::NoSpace) => -libc::ENOSPC,
            Err(RequestError::Range) => -libc::EINVAL,
            Err(_) => -libc::EIO,
        };
        self.completed(head, code, kit);
    }

    /// A stopping queue does not wait for space in a full pool: see [`Serving::leave`].
    pub(super) fn call_off_waiting(&self, kit: &mut Kit<'_>) {
        if let Some(pool) = kit.pool.as_deref_mut() {
            pool.call_off(self.number());
        }
    }

    /// Notes a request that was called off since the queue stops. False if it is to be answered.
    #[cold]
    fn calls_off(&mut self, head: u16) -> bool {
        let unspoilt = !self.broken && !self.slots[usize::from(head)].tampered;
        if self.stopping.is_none() || !unspoilt {
            return false;
        }
        self.left.push(head);
        self.open -= 1;
        true
    }

    /// Leaves the requests that were called off to the next session, which does them again: they were never answered. The
    /// newest are as if they had never been taken; the others stay in flight in the inflight region. Where that is of no
    /// use (there is none, or the guest is migrating to a host that won't see it) they end with an I/O error: a guest
    /// can live with that, but not with a request that never ends.
    pub(super) fn leave(&mut self) {
        if self.broken || self.left.is_empty() {
            return;
        }
        self.queue.leave(&mut self.left);
        if !self.queue.keeps_in_flight() {
            for head in std::mem::take(&mut self.left) {
                self.open += 1;
                self.answer(head, Err(Failure::io(ErrorKind::NoSpace)));
            }
        }
    }

    /// Brings the chain of a request that is being served back into `chain`. False if the guest spoilt it.
    pub(crate) fn walk_again(&mut self, head: u16, io: &mut Io, chain: &mut Chain) -> bool {
        if self.broken {
            return false;
        }
        if let Err(fault) = self.queue.walk(head, chain) {
            // The request stays open until the store is done with it.
            self.break_ring(0, &fault, io);
            return false;
        }
        if !self.is_unchanged(head, chain) {
            self.refuse(head, &CHANGED, Status::IoError);
            self.slots[usize::from(head)].tampered = true;
            return false;
        }
        true
    }

    #[inline]
    fn carry_out(
        &mut self,
        head: u16,
        action: Action,
        pool: &mut Pool,
        io: &mut Io,
        chain: &Chain,
    ) -> Result<(), Full> {
        let Buffer::Request { offset, .. } = action.buffer else {
            unreachable!("an action on a request's buffer")
        };
        let slot = &self.slots[usize::from(head)];
        let at = slot.done + u64::from(offset);
        let write = matches!(slot.request, Some(Request::Write { .. }));
        let part = GuestPart {
            id: self.memory,
            memory: self.queue.memory(),
            chain,
            readable: write,
            skip: if write { at + HEADER_BYTES as u64 } else { at },
        };
        let bounced = pool.carry_out(action, Some(&part), io)?;
        self.metrics.bounce_copies.add(u64::from(bounced));
        Ok(())
    }
}
