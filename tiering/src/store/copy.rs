//! Copy-on-write: the first write to a unit that a snapshot or clone shares.
//!
//! The whole unit is copied to a new extent, the guest's data is written over it, and only then does the map name it. The
//! write waits for that, for cold data too: it is the price of snapshots whose reads cost nothing.

use super::write::data;
use super::{Job, JobKind, Owner, Part, Store};
use crate::types::*;

impl Store {
    pub(super) fn write_shared(&mut self, part: Part, source: Extent) {
        if self.scratch_free.is_empty() {
            return self.scratch_waiters.push_back(part);
        }
        let Some(extent) = self.allocate(&part) else { return self.wait_for_room(part) };
        let scratch = self.scratch_free.pop().expect("there is one");
        self.lock(&part);
        // Held before a slot is sought for the copy: a volume at its maximum of hot bytes gives up its oldest one for that.
        let source_slot = self.hot.find(source);
        let (valid, fresh) = source_slot.map_or((0, false), |slot| {
            self.policy.hit(slot);
            self.hot.slot_mut(slot).users += 1;
            (self.hot.slot(slot).valid, self.hot.slot(slot).fresh)
        });
        let target = self.hot_slot_for(&part, extent, true);
        if let Some(slot) = target {
            let state = self.hot.slot_mut(slot);
            state.claimed = ALL_PAGES;
            state.users += 1;
        }
        let wanted = !pages_covered(part.start, part.len);
        let job = self.job(JobKind::CopyOnWrite, extent);
        let state = self.jobs.at(job);
        (state.part, state.slot, state.source_slot, state.scratch) =
            (Some(part), target, source_slot, Some(scratch));
        state.zero_pages = if fresh { wanted & !valid } else { 0 };
        state.pages = wanted & !state.zero_pages;
        let pages = state.pages;
        // One action that is not there keeps the job from ending while it is being started.
        self.jobs.at(job).pending = 1;
        for (from_hot, pages) in [(true, pages & valid), (false, pages & !valid)] {
            for (first, count) in runs(pages) {
                let (start, len) = (first * PAGE_BYTES as u32, count * PAGE_BYTES as u32);
                let buffer = Buffer::Scratch { index: scratch, offset: start };
                match source_slot {
                    Some(slot) if from_hot => {
                        self.emit_hot(slot, start, len, ActionKind::Read, buffer, Owner::Job(job));
                    }
                    _ => self.emit_cold(source, start, len, ActionKind::Read, buffer, Owner::Job(job)),
                }
            }
        }
        self.jobs.at(job).pending -= 1;
        if self.jobs.at(job).pending == 0 {
            self.advance_copy(job);
        }
    }

    pub(super) fn advance_copy(&mut self, job: u32) {
        let state = self.jobs.at(job);
        state.stage += 1;
        let (stage, failed, source_slot) = (state.stage, state.failed, state.source_slot);
        if let (1, Some(slot)) = (stage, source_slot) {
            self.leave_slot(slot);
        }
        let state = self.jobs.at(job);
        let (pages, zeroes) = (state.pages, state.zero_pages);
        match stage {
            _ if failed => self.end_copy(job, false),
            1 if pages | zeroes != 0 => self.write_copied(job, pages, zeroes),
            1 | 2 => {
                state.stage = 2;
                let part = state.part.expect("a guest write has a part");
                self.emit_target(job, part.start, part.len, data(&part));
            }
            _ => self.end_copy(job, true),
        }
    }

    fn write_copied(&mut self, job: u32, pages: PageMask, zeroes: PageMask) {
        let scratch = self.jobs.at(job).scratch.expect("held to the end");
        for (first, count) in runs(pages) {
            let (start, len) = (first * PAGE_BYTES as u32, count * PAGE_BYTES as u32);
            self.emit_target(job, start, len, Buffer::Scratch { index: scratch, offset: start });
        }
        for (first, count) in runs(zeroes) {
            self.emit_target(job, first * PAGE_BYTES as u32, count * PAGE_BYTES as u32, Buffer::Zeroes);
        }
    }

    fn emit_target(&mut self, job: u32, start: u32, len: u32, buffer: Buffer) {
        let state = self.jobs.at(job);
        let (slot, extent) = (state.slot, state.extent);
        match slot {
            Some(slot) => self.emit_hot(slot, start, len, ActionKind::Write, buffer, Owner::Job(job)),
            None => self.emit_cold(extent, start, len, ActionKind::Write, buffer, Owner::Job(job)),
        }
    }

    fn end_copy(&mut self, job: u32, ok: bool) {
        let mut job: Job = self.jobs.remove(job);
        let part = job.part.expect("a guest write has a part");
        if let Some(slot) = job.slot {
            let state = self.hot.slot_mut(slot);
            state.claimed = 0;
            if ok {
                (state.valid, state.dirty, state.sole) = (ALL_PAGES, ALL_PAGES, ALL_PAGES);
                self.record_slot(slot);
            } else {
                self.detach(slot, false);
            }
            self.leave_slot(slot);
        }
        if ok {
            let lsn = self.publish(&part, job.extent);
            self.part_done(part.tag, Ok(()), lsn);
        } else {
            self.freed_cold.push((self.commit.last_lsn(), job.extent));
            self.part_done(part.tag, Err(RequestError::Io), 0);
        }
        self.free_scratch(&mut job);
        self.unlock(&part);
    }
}
