//! Demotion and write-back.
//!
//! A clean copy leaves by a record alone. A dirty one is written back first, together with the dirty neighbours of its
//! aligned group of cold slots, in the order of the disk: a cold disk's time is its seeks.

use super::fill::Wanted;
use super::{JobKind, Owner, Rule, Store};
use crate::types::*;

/// Slots looked at in one go to make room.
const ROUND_MAX: u32 = 64;
/// Dirty slots looked at in one go by a drain.
const DRAIN_LOOKS: u32 = 256;
/// Units that are read together and then written together, as one transfer where they are neighbours: 1 MiB.
const RUN_UNITS: u64 = 16;
/// Pause after the cold tier refused a write-back, ns.
const RETRY_NS: u64 = 1_000_000_000;

/// Write-backs of neighbours: written in the order of the disk when the last of them is read.
#[derive(Debug, Default)]
pub(super) struct Run {
    reading: u32,
    read: Vec<u32>,
}

impl Store {
    /// Hot slots that are kept free.
    pub(super) fn free_wanted(&self) -> u64 {
        let slots = u64::from(self.hot.slots());
        (slots * u64::from(self.tuning.free_permille) / 1000).clamp(1, slots / 4 + 1)
    }

    /// Keeps some hot slots free, so that a write miss finds one at once.
    pub(super) fn make_room(&mut self) {
        if self.read_only.is_some() {
            return;
        }
        let wanted = self.free_wanted();
        for _ in 0..ROUND_MAX {
            let coming = self.freed_hot.len() as u64 + u64::from(self.write_backs_running);
            if u64::from(self.hot.free()) + coming >= wanted {
                break;
            }
            let (hot, map, cold_writers) = (&self.hot, &self.map, &self.cold_writers);
            let kept = |id| {
                map.hot_minimums() > 0
                    && map.volume(id).is_some_and(|volume| hot.held_by(id) <= volume.limits.hot_min)
            };
            let may_write = self.now_ns >= self.write_back_after_ns && !self.scratch_free.is_empty();
            let victim = self.policy.victim(&mut |slot| {
                let state = hot.slot(slot);
                let quiet = state.extent().is_some_and(|extent| !cold_writers.contains_key(&extent));
                state.idle() && !kept(state.volume()) && (state.is_clean() || (may_write && quiet))
            });
            let Some(slot) = victim else { break };
            if self.hot.slot(slot).is_clean() {
                self.demote(slot);
            } else if !self.write_back_group(slot) {
                break;
            }
        }
        if !self.freed_hot.is_empty() && u64::from(self.hot.free()) < wanted.div_ceil(2) {
            self.commit.want_firm = true;
        }
        if self.draining {
            self.drain_some();
        }
    }

    /// A clean copy goes.
    pub(super) fn demote(&mut self, slot: u32) {
        let extent = self.hot.slot(slot).extent().expect("a victim holds an extent");
        if let Some(lsn) = self.detach(slot, true) {
            self.unfirm_demotions.insert(extent, lsn);
        }
        self.stats.demotions += 1;
    }

    /// Writes back the dirty units of the group around a slot's extent, its own run first: scratch memory may run out, and
    /// so may the budget. False if none could be started.
    pub(super) fn write_back_group(&mut self, slot: u32) -> bool {
        let extent = self.hot.slot(slot).extent().expect("a victim holds an extent");
        let group = (self.tuning.group_bytes / UNIT_BYTES).max(1);
        let first = extent - extent % group;
        let (own, all) = (extent - (extent - first) % RUN_UNITS, first..first + group);
        let mut started = false;
        for run in [own].into_iter().chain(all.clone().step_by(RUN_UNITS as usize)) {
            started |= self.write_back_run(run..all.end.min(run + RUN_UNITS));
        }
        started
    }

    fn may_write_back(&self) -> bool {
        !self.scratch_free.is_empty() && self.budget.allows(UNIT_BYTES, self.now_ns)
    }

    fn write_back_run(&mut self, extents: std::ops::Range<Extent>) -> bool {
        let run = self.runs.insert(Run::default());
        for extent in extents {
            if !self.may_write_back() {
                break;
            }
            if let Some(slot) = self.hot.find(extent) {
                self.start_write_back(slot, run);
            }
        }
        let started = self.runs.at(run).reading > 0;
        if !started {
            self.runs.remove(run);
        }
        started
    }

    /// Writes back one slot if it is dirty and nothing speaks against it.
    pub(super) fn write_back(&mut self, slot: u32) {
        if let Some(extent) = self.hot.slot(slot).extent() {
            self.write_back_run(extent..extent + 1);
        }
    }

    fn start_write_back(&mut self, slot: u32, run: u32) {
        let state = self.hot.slot(slot);
        let Some(extent) = state.extent() else { return };
        let busy = state.writing_back || state.writers > 0 || state.claimed != 0 || state.fill_running;
        if busy || state.is_clean() || self.cold_writers.contains_key(&extent) {
            return;
        }
        let pages = state.dirty & state.valid;
        let bytes = if state.fresh { UNIT_BYTES } else { u64::from(pages.count_ones()) * PAGE_BYTES };
        if pages == 0 {
            return;
        }
        let Some(scratch) = self.scratch_free.pop() else { return };
        self.budget.spend(bytes);
        let state = self.hot.slot_mut(slot);
        (state.writing_back, state.rewritten) = (true, 0);
        state.users += 1;
        self.write_backs_running += 1;
        let job = self.job(JobKind::WriteBack, extent);
        let drains = self.hot.drains(slot);
        let state = self.jobs.at(job);
        (state.drains, state.run) = (drains, Some(run));
        (state.slot, state.scratch, state.pages) = (Some(slot), Some(scratch), pages);
        self.runs.at(run).reading += 1;
        for (first, count) in runs(pages) {
            let (start, len) = (first * PAGE_BYTES as u32, count * PAGE_BYTES as u32);
            let buffer = Buffer::Scratch { index: scratch, offset: start };
            self.emit_hot(slot, start, len, ActionKind::Read, buffer, Owner::Job(job));
        }
    }

    pub(super) fn advance_write_back(&mut self, job: u32) {
        let state = self.jobs.at(job);
        let (failed, pages, extent, run) = (state.failed, state.pages, state.extent, state.run.take());
        let slot = state.slot.expect("a write-back has a slot");
        let ended = failed || self.hot.slot(slot).extent() != Some(extent);
        let Some(run) = run else {
            if !ended {
                self.wrote_back(slot, pages);
                let drained = self.jobs.at(job).drains;
                self.hot.written_back(slot, drained, self.now_ns);
            }
            return self.end_write_back(job, slot, failed);
        };
        let members = self.runs.at(run);
        members.reading -= 1;
        if !ended {
            members.read.push(job);
        }
        if members.reading == 0 {
            let mut read = self.runs.remove(run).read;
            read.sort_unstable_by_key(|job| self.jobs.at(*job).extent);
            read.into_iter().for_each(|job| self.write_to_cold(job));
        }
        if ended {
            self.end_write_back(job, slot, failed);
        }
    }

    /// What was read goes to the cold slot.
    fn write_to_cold(&mut self, job: u32) {
        let state = self.jobs.at(job);
        let (pages, extent) = (state.pages, state.extent);
        let (slot, scratch) = (state.slot.expect("has a slot"), state.scratch.expect("has scratch memory"));
        let state = self.hot.slot(slot);
        if state.extent() != Some(extent) {
            return self.end_write_back(job, slot, false);
        }
        let zeroes = if state.fresh { !state.valid } else { 0 };
        for (first, count) in runs(pages) {
            let (start, len) = (first * PAGE_BYTES as u32, count * PAGE_BYTES as u32);
            let buffer = Buffer::Scratch { index: scratch, offset: start };
            self.stats.written_back_bytes += u64::from(len);
            self.emit_cold(extent, start, len, ActionKind::Write, buffer, Owner::Job(job));
        }
        for (first, count) in runs(zeroes) {
            let (start, len) = (first * PAGE_BYTES as u32, count * PAGE_BYTES as u32);
            self.stats.written_back_bytes += u64::from(len);
            self.emit_cold(extent, start, len, ActionKind::Write, Buffer::Zeroes, Owner::Job(job));
        }
    }

    /// The pages are on the cold slot; what guests wrote meanwhile stays dirty.
    fn wrote_back(&mut self, slot: u32, pages: PageMask) {
        let careless = self.breaks(Rule::WriteBeatsMove);
        let state = self.hot.slot_mut(slot);
        self.stats.moves_aborted += u64::from(state.rewritten & pages != 0);
        state.dirty &= !(pages & !(if careless { 0 } else { state.rewritten }));
        state.fresh = false;
        if state.dirty & state.valid == 0 {
            (state.sole, state.sole_pending) = (0, 0);
        }
        self.record_slot(slot);
        self.stats.write_backs += 1;
    }

    fn end_write_back(&mut self, job: u32, slot: u32, failed: bool) {
        let mut job = self.jobs.remove(job);
        self.hot.slot_mut(slot).writing_back = false;
        self.write_backs_running -= 1;
        if failed {
            self.write_back_after_ns = self.now_ns + RETRY_NS;
            self.stats.moves_aborted += 1;
        }
        self.leave_slot(slot);
        self.free_scratch(&mut job);
        self.room_wanted = true;
    }

    /// Writes everything back, as fast as scratch memory and the budget allow, until it is turned off. All that is dirty
    /// now has been written back when [`Store::drain_left`] is zero, whatever guests write meanwhile.
    pub fn drain(&mut self, on: bool) {
        self.draining = on;
        if on {
            self.hot.mark_drain();
        }
        self.room_wanted = on;
        self.pump();
    }

    fn drain_some(&mut self) {
        if self.now_ns < self.write_back_after_ns {
            return;
        }
        // What is read together is written together: not one unit for each that ends.
        let run = RUN_UNITS.min(u64::from(self.tuning.scratch_buffers) / 4) as usize;
        if self.write_backs_running > 0 && self.scratch_free.len() < run {
            return;
        }
        // The oldest first, each with its group.
        let mut at = self.hot.oldest_dirty();
        for _ in 0..DRAIN_LOOKS {
            let Some(slot) = at else { return };
            if !self.may_write_back() {
                return;
            }
            at = self.hot.dirtied_after(slot);
            if !self.hot.slot(slot).writing_back {
                self.write_back_group(slot);
            }
        }
    }

    /// Hot slots that the drain which was turned on last has still to write back.
    pub fn drain_left(&self) -> u32 {
        self.hot.drain_left()
    }

    /// Hot slots whose data is only there.
    pub fn dirty_slots(&self) -> u32 {
        self.hot.dirty_slots()
    }

    /// For how long the oldest dirty hot slot has been dirty, ns; 0 if there is none.
    pub fn oldest_dirty_ns(&self) -> u64 {
        let oldest = self.hot.oldest_dirty();
        oldest.map_or(0, |slot| self.now_ns.saturating_sub(self.hot.slot(slot).dirty_since_ns))
    }

    /// Demotes the unit now if it is hot: written back first if need be (call again then). For operators and tests.
    pub fn demote_unit(&mut self, volume: VolumeId, unit: u64) {
        let entry = self.map.volume(volume).map(|v| self.map.get(v, unit));
        if let Some(slot) = entry.and_then(|entry| entry.extent()).and_then(|extent| self.hot.find(extent)) {
            let state = self.hot.slot(slot);
            if state.idle() && state.is_clean() {
                self.demote(slot);
            } else {
                self.write_back(slot);
            }
        }
        self.pump();
    }

    /// Promotes the unit now. For operators and tests.
    pub fn promote_unit(&mut self, volume: VolumeId, unit: u64) {
        let entry = self.map.volume(volume).map(|v| self.map.get(v, unit));
        if let Some(extent) = entry.and_then(|entry| entry.extent()) {
            let slot = self.hot.find(extent);
            if slot.is_none_or(|slot| self.hot.slot(slot).valid != ALL_PAGES) {
                self.start_fill(extent, slot, Wanted { volume, unit, passing: false, needed: false }, None);
            }
        }
        self.pump();
    }
}
