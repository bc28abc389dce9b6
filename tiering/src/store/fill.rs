//! Promotion: a cold unit is read into scratch memory and written to its hot slot, around what guests wrote meanwhile.
//!
//! The slot belongs to the extent from the start, with nothing valid in it. A guest write goes into the same slot
//! without waiting for the cold read, claims its pages, and the fill leaves claimed and valid pages alone. Only
//! while the fill writes to the hot slot do guest writes to those very pages wait.

use super::{JobKind, Owner, Part, Rule, Store};
use crate::types::*;

/// What a fill is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub volume: VolumeId,
    pub unit: u64,
    /// It is part of a long stream.
    pub passing: bool,
    /// A guest's write cannot do without: no budget forbids it.
    pub needed: bool,
}

impl Wanted {
    /// For the unit of a part.
    pub fn by(part: &Part) -> Wanted {
        Wanted { volume: part.volume, unit: part.unit, passing: false, needed: false }
    }
}

/// Scratch buffers left to copy-on-write, which guests wait for.
const SCRATCH_RESERVE: usize = 2;

impl Store {
    /// Starts to bring an extent in for a unit of a volume, or the pages of it that are missing. `reader` gets its bytes on the way. False if
    /// that is not possible now; nothing has happened then.
    pub(super) fn start_fill(
        &mut self,
        extent: Extent,
        slot: Option<u32>,
        wanted: Wanted,
        reader: Option<Part>,
    ) -> bool {
        let busy = self.scratch_free.len() <= SCRATCH_RESERVE || self.cold_writers.contains_key(&extent);
        let allowed = wanted.needed || self.budget.allows(UNIT_BYTES, self.now_ns);
        if busy || !allowed || self.read_only.is_some() {
            return false;
        }
        let slot = match slot {
            Some(slot) if self.hot.slot(slot).fill_running || self.hot.slot(slot).fresh => return false,
            Some(slot) => slot,
            None => {
                let Some(slot) = self.attach(extent, false, wanted) else { return false };
                slot
            }
        };
        self.budget.spend(UNIT_BYTES);
        let state = self.hot.slot_mut(slot);
        state.fill_running = true;
        state.users += 1;
        let scratch = self.scratch_free.pop().expect("there was enough");
        let job = self.job(JobKind::Fill, extent);
        let state = self.jobs.at(job);
        (state.part, state.slot, state.scratch) = (reader, Some(slot), Some(scratch));
        self.stats.filled_bytes += UNIT_BYTES;
        let buffer = Buffer::Scratch { index: scratch, offset: 0 };
        self.emit_cold(extent, 0, UNIT_BYTES as u32, ActionKind::Read, buffer, Owner::Job(job));
        true
    }

    /// Gives an extent a hot slot for a unit of a volume, if one is free and the volume may have it.
    pub(super) fn attach(&mut self, extent: Extent, fresh: bool, wanted: Wanted) -> Option<u32> {
        let Wanted { volume, unit, passing, .. } = wanted;
        self.room_wanted = true;
        let pin = self.map.volume(volume)?.pin_of(unit);
        if !self.may_heat(volume) {
            return None;
        }
        let slot = self.hot.attach(extent, fresh, volume, self.now_ns)?;
        self.hot.slot_mut(slot).pinned = pin == Pin::Hot;
        match passing {
            true => self.policy.insert_passing(slot, extent),
            false => self.policy.insert(slot, extent),
        }
        Some(slot)
    }

    pub(super) fn advance_fill(&mut self, job: u32) {
        let state = self.jobs.at(job);
        state.stage += 1;
        let (stage, failed, slot) = (state.stage, state.failed, state.slot.expect("a fill has a slot"));
        match stage {
            1 => match state.part {
                Some(part) if failed => {
                    self.part_done(part.tag, Err(RequestError::Io), 0);
                    self.end_fill(job, slot, 0, true);
                }
                None if failed => self.end_fill(job, slot, 0, true),
                Some(part) => {
                    let scratch = state.scratch.expect("a fill has scratch memory");
                    let kind = ActionKind::CopyOut { scratch, scratch_offset: part.start };
                    let buffer = Buffer::Request { tag: part.tag, offset: part.buffer };
                    self.emit(DeviceId(0), kind, 0, part.len, buffer, Owner::Job(job));
                }
                None => {
                    state.stage += 1;
                    self.write_fill(job, slot);
                }
            },
            2 => {
                let part = state.part.expect("only a reader makes this stage");
                self.part_done(part.tag, Ok(()), 0);
                self.write_fill(job, slot);
            }
            _ => {
                let pages = state.pages;
                self.end_fill(job, slot, if failed { 0 } else { pages }, failed);
            }
        }
    }

    fn write_fill(&mut self, job: u32, slot: u32) {
        let careless = self.breaks(Rule::WriteBeatsMove);
        let (extent, scratch) =
            (self.jobs.at(job).extent, self.jobs.at(job).scratch.expect("held to the end"));
        let state = self.hot.slot_mut(slot);
        let pages = if careless { ALL_PAGES } else { !(state.valid | state.claimed) };
        if state.extent() != Some(extent) || pages == 0 {
            return self.end_fill(job, slot, 0, false);
        }
        state.filling = pages;
        self.jobs.at(job).pages = pages;
        for (first, count) in runs(pages) {
            let (start, len) = (first * PAGE_BYTES as u32, count * PAGE_BYTES as u32);
            let buffer = Buffer::Scratch { index: scratch, offset: start };
            self.emit_hot(slot, start, len, ActionKind::Write, buffer, Owner::Job(job));
        }
    }

    fn end_fill(&mut self, job: u32, slot: u32, pages: PageMask, failed: bool) {
        let mut job = self.jobs.remove(job);
        let state = self.hot.slot_mut(slot);
        (state.filling, state.fill_running) = (0, false);
        if state.extent() == Some(job.extent) {
            if pages != 0 {
                state.valid |= pages;
                self.stats.promotions += 1;
                self.record_slot(slot);
            } else {
                self.stats.moves_aborted += 1;
                let state = self.hot.slot(slot);
                if state.valid == 0 && state.claimed == 0 && state.users == 1 {
                    self.detach(slot, false);
                }
            }
        }
        self.leave_slot(slot);
        self.wake_slot(slot, failed);
        self.free_scratch(&mut job);
    }
}
