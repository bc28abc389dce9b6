//! Guest writes, zeroes and discards.

use super::fill::Wanted;
use super::{JobKind, Owner, Part, PartKind, Rule, Store};
use crate::journal::Record;
use crate::map::Entry;
use crate::policy::window::Decision;
use crate::types::*;
use std::collections::VecDeque;

impl Store {
    pub(super) fn dispatch_write(&mut self, part: Part) {
        if self.read_only.is_some() {
            return self.part_done(part.tag, Err(RequestError::ReadOnly), 0);
        }
        if let Some(waiting) = self.locks.get_mut(&(part.volume, part.unit)) {
            waiting.push_back(part);
            return;
        }
        let Some(volume) = self.map.volume(part.volume) else {
            return self.part_done(part.tag, Err(RequestError::NoVolume), 0);
        };
        let entry = self.map.get(volume, part.unit);
        let unit_bytes = (volume.size_bytes - part.unit * UNIT_BYTES).min(UNIT_BYTES) as u32;
        if matches!(part.kind, PartKind::Discard | PartKind::Zero) {
            let whole = part.start == 0 && part.len >= unit_bytes;
            if whole || entry == Entry::NONE || part.kind == PartKind::Discard {
                return self.unmap(part, entry, whole);
            }
        }
        match entry.extent() {
            None => self.write_fresh(part),
            Some(extent) if self.map.owned(volume, part.unit, entry) => {
                if entry.birth() < volume.epoch && self.unshared_lsn > self.commit.firm_lsn {
                    // It was shared, and durable state may not know yet that it no longer is.
                    return self.wait_firm(self.unshared_lsn, part);
                }
                self.write_owned(part, extent)
            }
            Some(extent) => self.write_shared(part, extent),
        }
    }

    /// A whole unit goes; a part of one stays as it is (a discard is a hint, and zero is what is there).
    fn unmap(&mut self, part: Part, entry: Entry, whole: bool) {
        if entry == Entry::NONE || !whole {
            return self.part_done(part.tag, Ok(()), 0);
        }
        // The map's record comes before the slot's: a log that ends between them still finds the data.
        let lsn = self.record(Record::Map { volume: part.volume, unit: part.unit, entry: Entry::NONE });
        match self.map.set(part.volume, part.unit, Entry::NONE) {
            Some(freed) => self.free_extent(freed),
            None => self.unshared_lsn = lsn,
        }
        self.part_done(part.tag, Ok(()), lsn);
    }

    /// A unit nobody wrote before.
    fn write_fresh(&mut self, part: Part) {
        if !self.map.promise(part.volume) {
            self.stats.quota_refusals += 1;
            return self.part_done(part.tag, Err(RequestError::Quota), 0);
        }
        let Some(extent) = self.allocate(&part) else {
            self.map.end_promise(part.volume);
            return self.wait_for_room(part);
        };
        self.lock(&part);
        match self.hot_slot_for(&part, extent, true) {
            Some(slot) => self.hot_write(part, extent, slot, true),
            None => {
                let job = self.job(JobKind::FreshCold, extent);
                self.jobs.at(job).part = Some(part);
                let end = part.start + part.len;
                for (start, len) in [(0, part.start), (end, UNIT_BYTES as u32 - end)] {
                    if len > 0 {
                        self.emit_cold(
                            extent,
                            start,
                            len,
                            ActionKind::Write,
                            Buffer::Zeroes,
                            Owner::Job(job),
                        );
                    }
                }
                self.emit_cold(extent, part.start, part.len, ActionKind::Write, data(&part), Owner::Job(job));
            }
        }
    }

    pub(super) fn fresh_cold_done(&mut self, job: u32) {
        let job = self.jobs.remove(job);
        let part = job.part.expect("a guest write has a part");
        if job.failed {
            self.freed_cold.push((self.commit.last_lsn(), job.extent));
            self.map.end_promise(part.volume);
            self.part_done(part.tag, Err(RequestError::Io), 0);
        } else {
            let lsn = self.publish(&part, job.extent);
            self.part_done(part.tag, Ok(()), lsn);
        }
        self.unlock(&part);
    }

    /// The map names the extent from now on.
    pub(super) fn publish(&mut self, part: &Part, extent: Extent) -> u64 {
        let entry = Entry::new(extent, self.map.epoch);
        let shared = self.entry(part).and_then(|old| old.extent()).is_some();
        if !shared {
            self.map.end_promise(part.volume);
        }
        let freed = self.map.set(part.volume, part.unit, entry);
        let lsn = self.record(Record::Map { volume: part.volume, unit: part.unit, entry });
        self.unwritten.insert(extent, lsn);
        match freed {
            Some(freed) => self.free_extent(freed),
            None if shared => self.unshared_lsn = lsn,
            None => {}
        }
        lsn
    }

    /// A unit that belongs to this volume alone.
    fn write_owned(&mut self, part: Part, extent: Extent) {
        let Some(slot) = self.hot.find(extent) else {
            self.stats.write_misses += 1;
            if self.cold_writers.contains_key(&extent) {
                return self.write_cold(part, extent);
            }
            return match self.hot_slot_for(&part, extent, false) {
                Some(slot) => {
                    self.write_hot(part, extent, slot);
                    self.fill_around(part, extent, slot);
                }
                None => self.write_cold(part, extent),
            };
        };
        self.stats.write_hits += 1;
        self.policy.hit(slot);
        self.write_hot(part, extent, slot);
    }

    /// The write is under way without waiting for cold; what is around it follows behind.
    fn fill_around(&mut self, part: Part, extent: Extent, slot: u32) {
        let Some(units) = self.map.volume(part.volume).map(|volume| volume.units()) else { return };
        let offset = part.unit * UNIT_BYTES + u64::from(part.start);
        if let Decision::Fill { start, end, passing } =
            self.windows.miss(part.volume.0, offset, u64::from(part.len), true)
        {
            if pages_touched(part.start, part.len) != ALL_PAGES && self.hot.find(extent) == Some(slot) {
                self.start_fill(extent, Some(slot), Wanted::by(&part), None);
            }
            self.fill_neighbours(part, start / UNIT_BYTES..end.div_ceil(UNIT_BYTES).min(units), passing);
        }
    }

    fn write_hot(&mut self, part: Part, extent: Extent, slot: u32) {
        let state = self.hot.slot(slot);
        let pages = pages_touched(part.start, part.len);
        if pages & (state.claimed | state.filling) != 0 {
            return self.slot_waiters.entry(slot).or_default().push(part);
        }
        let new = pages & !state.valid;
        let in_part = new & !pages_covered(part.start, part.len);
        if in_part != 0 && !state.fresh {
            // The rest of a page must come from cold first.
            if part.fill_failed {
                return self.part_done(part.tag, Err(RequestError::Io), 0);
            }
            let wanted = Wanted { needed: true, ..Wanted::by(&part) };
            if state.fill_running || self.start_fill(extent, Some(slot), wanted, None) {
                self.slot_waiters.entry(slot).or_default().push(part);
            } else {
                self.scratch_waiters.push_back(part);
            }
            return;
        }
        if pages & state.valid & !state.sole != 0 && !self.breaks(Rule::DirtyBeforeOverwrite) {
            return self.make_dirty(part, extent, slot);
        }
        self.hot_write(part, extent, slot, false);
    }

    /// Clean pages are to be overwritten: durable state must call them dirty first.
    fn make_dirty(&mut self, part: Part, extent: Extent, slot: u32) {
        let pages = pages_touched(part.start, part.len);
        let state = self.hot.slot_mut(slot);
        if pages & state.valid & !state.sole & !state.sole_pending != 0 {
            state.dirty |= pages & state.valid;
            state.sole_pending = state.valid;
            let lsn = self.record_slot(slot);
            self.hot.slot_mut(slot).sole_lsn = lsn;
            self.commit.dirtying.push((lsn, slot, extent));
        }
        self.wait_firm(self.hot.slot(slot).sole_lsn, part);
    }

    /// The part is dispatched again when the record is firm.
    fn wait_firm(&mut self, lsn: u64, part: Part) {
        self.firm_waiters.push((lsn, part));
        self.commit.want_firm = true;
    }

    /// Writes guest data into a hot slot: in place where only the slot has the page, or where nothing is yet.
    fn hot_write(&mut self, part: Part, extent: Extent, slot: u32, publish: bool) {
        let pages = pages_touched(part.start, part.len);
        let state = self.hot.slot_mut(slot);
        let new = pages & !state.valid;
        state.claimed |= new;
        state.dirty |= pages;
        state.users += 1;
        state.writers += 1;
        if state.writing_back {
            state.rewritten |= pages;
        }
        let job = self.job(JobKind::HotWrite, extent);
        let state = self.jobs.at(job);
        (state.part, state.slot, state.pages, state.publish) = (Some(part), Some(slot), new, publish);
        // New pages of a fresh extent that are covered in part get zeroes around the data.
        let (page, end) = (PAGE_BYTES as u32, part.start + part.len);
        let head = part.start % page;
        if head > 0 && new >> (part.start / page) & 1 == 1 {
            self.emit_hot(slot, part.start - head, head, ActionKind::Write, Buffer::Zeroes, Owner::Job(job));
        }
        let tail = end.next_multiple_of(page) - end;
        if tail > 0 && new >> ((end - 1) / page) & 1 == 1 {
            self.emit_hot(slot, end, tail, ActionKind::Write, Buffer::Zeroes, Owner::Job(job));
        }
        self.emit_hot(slot, part.start, part.len, ActionKind::Write, data(&part), Owner::Job(job));
    }

    pub(super) fn hot_write_done(&mut self, job: u32) {
        let job = self.jobs.remove(job);
        let (part, slot) = (job.part.expect("a guest write has a part"), job.slot.expect("and a slot"));
        let loud = self.breaks(Rule::OverwriteIsQuiet);
        let state = self.hot.slot_mut(slot);
        state.writers -= 1;
        let mut lsn = 0;
        let here = state.extent() == Some(job.extent);
        if here {
            state.claimed &= !job.pages;
            if job.failed {
                state.dirty &= !job.pages;
                self.hot.look_dirty(slot, self.now_ns);
            } else {
                state.valid |= job.pages;
                state.sole |= job.pages;
                if job.pages != 0 || loud {
                    lsn = self.record_slot(slot);
                }
            }
        }
        if job.publish {
            if job.failed {
                self.detach(slot, false);
                self.freed_cold.push((self.commit.last_lsn(), job.extent));
                self.map.end_promise(part.volume);
            } else {
                lsn = self.publish(&part, job.extent);
            }
        }
        self.leave_slot(slot);
        self.write_done(&part, job.extent, job.failed, lsn);
        if here {
            self.wake_slot(slot, false);
        }
        if job.publish {
            self.unlock(&part);
        }
    }

    /// Guest data into the cold slot in place: nothing hot has these pages, in memory or in durable state.
    fn write_cold(&mut self, part: Part, extent: Extent) {
        if let Some(lsn) = self.unfirm_demotions.get(&extent).copied() {
            return self.wait_firm(lsn, part);
        }
        *self.cold_writers.entry(extent).or_insert(0) += 1;
        let job = self.job(JobKind::ColdWrite, extent);
        self.jobs.at(job).part = Some(part);
        self.emit_cold(extent, part.start, part.len, ActionKind::Write, data(&part), Owner::Job(job));
    }

    pub(super) fn cold_write_done(&mut self, job: u32) {
        let job = self.jobs.remove(job);
        let part = job.part.expect("a guest write has a part");
        let writers = self.cold_writers.get_mut(&job.extent).expect("it was counted");
        *writers -= 1;
        if *writers == 0 {
            self.cold_writers.remove(&job.extent);
        }
        self.write_done(&part, job.extent, job.failed, 0);
    }

    /// Data of a write is where it belongs.
    fn write_done(&mut self, part: &Part, extent: Extent, failed: bool, lsn: u64) {
        let earlier =
            if self.unwritten.is_empty() { 0 } else { self.unwritten.get(&extent).copied().unwrap_or(0) };
        let result = if failed { Err(RequestError::Io) } else { Ok(()) };
        self.part_done(part.tag, result, lsn.max(earlier));
    }

    /// A hot slot for a unit that is written and has none, if there is one to be had.
    pub(super) fn hot_slot_for(&mut self, part: &Part, extent: Extent, fresh: bool) -> Option<u32> {
        if self.map.volume(part.volume)?.pin_of(part.unit) == Pin::Cold {
            return None;
        }
        self.attach(extent, fresh, Wanted::by(part))
    }

    /// A cold slot, next to the one of the unit before if possible.
    pub(super) fn allocate(&mut self, part: &Part) -> Option<Extent> {
        let home = self.map.volume(part.volume).and_then(|volume| volume.home);
        if let Some(home) = home.filter(|home| self.allocator.allocate_home(*home, part.unit)) {
            return Some(home + part.unit);
        }
        let before = part.unit.checked_sub(1).and_then(|unit| self.entry(&Part { unit, ..*part }));
        let near = match before.and_then(|entry| entry.extent()) {
            Some(extent) => extent + 1,
            // Volumes and far units start apart, so that each has room to stay together.
            None => u64::from(part.volume.0).wrapping_mul(0x9e37_79b9).wrapping_add(part.unit),
        };
        self.allocator.allocate(near)
    }

    pub(super) fn wait_for_room(&mut self, part: Part) {
        self.stats.full_waits += 1;
        self.room_waiters.push_back(part);
        if !self.freed_cold.is_empty() {
            self.start_checkpoint(false);
        }
    }

    /// Calls off writes that wait for space in a full pool, as when their queue has to stop: those whose tag is one of
    /// `whose` fail with [`RequestError::NoSpace`]. A write of several units may have been done in part.
    pub fn cancel_waiting(&mut self, whose: impl Fn(u32) -> bool) {
        let waiting = std::mem::take(&mut self.room_waiters).into_iter();
        let (gone, stay): (VecDeque<Part>, VecDeque<Part>) = waiting.partition(|part| whose(part.tag));
        self.room_waiters = stay;
        for part in gone {
            self.part_done(part.tag, Err(RequestError::NoSpace), 0);
        }
        self.pump();
    }

    pub(super) fn retry_room_waiters(&mut self) {
        if self.room_waiters.is_empty() {
            return;
        }
        if self.allocator.free() > 0 || self.read_only.is_some() {
            let parts = std::mem::take(&mut self.room_waiters);
            self.dispatch_all(parts);
        } else if !self.freed_cold.is_empty() {
            self.start_checkpoint(false);
        }
    }
}

/// Where a part's data comes from.
pub(super) fn data(part: &Part) -> Buffer {
    match part.kind {
        PartKind::Zero => Buffer::Zeroes,
        _ => Buffer::Request { tag: part.tag, offset: part.buffer },
    }
}
