//! Pins carried out in the background: what a volume has on the other tier moves without being used.
//!
//! A walk over the volume's units sends out, or brings in, what its pins say, as far as scratch memory and the budget of
//! moves allow; what was busy waits for the next pass. A copy that another volume brought stays: clones share it.

use super::Store;
use super::fill::Wanted;
use crate::map::{LEAF_ENTRIES, Volume};
use crate::types::*;

/// Units looked at in one go, and those moved: each is a record for the journal.
const LOOKS_MAX: u64 = 16 * LEAF_ENTRIES;
const MOVES_MAX: u32 = 512;

/// How far the pins of a volume are carried out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Walk {
    volume: VolumeId,
    /// The next unit to look at.
    unit: u64,
    /// Something behind could not be moved: there is another pass.
    left: bool,
}

impl Volume {
    pub(super) fn is_pinned(&self) -> bool {
        self.pin != Pin::Auto || self.ranges.iter().any(|range| range.pin != Pin::Auto)
    }
}

/// What became of a unit that a walk came to.
enum Moved {
    /// It was where it should be.
    Not,
    /// It goes there.
    Done,
    /// It has to be looked at again.
    Later,
    /// Nothing more can be moved now.
    Stop,
}

impl Store {
    /// The pins of a volume are carried out from its beginning.
    pub(super) fn carry_out_pins_of(&mut self, volume: VolumeId) {
        self.walks.retain(|walk| walk.volume != volume);
        if self.map.volume(volume).is_some_and(Volume::is_pinned) {
            self.walks.push_back(Walk { volume, unit: 0, left: false });
        }
    }

    /// After an opening: who was at it when the pool was closed is not known.
    pub(super) fn carry_out_all_pins(&mut self) {
        let pinned = self.map.volumes().filter(|(_, volume)| volume.is_pinned());
        self.walks = pinned.map(|(volume, _)| Walk { volume, unit: 0, left: false }).collect();
    }

    /// Carries pins on, one volume after the other.
    pub(super) fn tick_pins(&mut self) {
        if self.read_only.is_some() || self.checkpoint.sealed || self.journal_crowded() {
            return;
        }
        let Some(mut walk) = self.walks.pop_front() else { return };
        let (mut looks, mut moves) = (LOOKS_MAX, MOVES_MAX);
        while looks > 0 {
            let Some(volume) = self.map.volume(walk.volume) else { return };
            if walk.unit >= volume.units() {
                if walk.left {
                    self.walks.push_back(Walk { unit: 0, left: false, ..walk });
                }
                return;
            }
            let end = (walk.unit + LEAF_ENTRIES).min(volume.units());
            let units: Vec<_> = self.map.units_in(volume, walk.unit..end).collect();
            looks -= LEAF_ENTRIES;
            for (unit, extent) in units {
                walk.unit = unit;
                match self.carry_out_pin(walk.volume, unit, extent) {
                    Moved::Not => continue,
                    Moved::Done => {}
                    Moved::Later => walk.left = true,
                    Moved::Stop => moves = 1,
                }
                moves -= 1;
                if moves == 0 {
                    return self.walks.push_back(walk);
                }
            }
            walk.unit = end;
        }
        self.walks.push_back(walk);
    }

    fn carry_out_pin(&mut self, volume: VolumeId, unit: u64, extent: Extent) -> Moved {
        let Some(pin) = self.map.volume(volume).map(|volume| volume.pin_of(unit)) else { return Moved::Stop };
        let slot = self.hot.find(extent);
        match (pin, slot) {
            (Pin::Cold, Some(slot)) => self.send_out(volume, slot),
            (Pin::Hot, slot) => self.bring_in(volume, unit, extent, slot),
            _ => Moved::Not,
        }
    }

    fn send_out(&mut self, volume: VolumeId, slot: u32) -> Moved {
        let state = self.hot.slot(slot);
        if state.volume() != volume || state.pinned {
            return Moved::Not;
        }
        match (state.is_clean(), state.idle()) {
            (true, true) => {
                self.demote(slot);
                Moved::Done
            }
            (false, true) if self.now_ns < self.write_back_after_ns => Moved::Stop,
            // When it is written back it is clean, and leaves in the next pass.
            (false, true) if self.write_back_group(slot) => Moved::Later,
            (false, true) if self.scratch_free.is_empty() || !self.budget.allows(UNIT_BYTES, self.now_ns) => {
                Moved::Stop
            }
            _ => Moved::Later,
        }
    }

    fn bring_in(&mut self, volume: VolumeId, unit: u64, extent: Extent, slot: Option<u32>) -> Moved {
        if slot.is_some_and(|slot| self.hot.slot(slot).fresh || self.hot.slot(slot).valid == ALL_PAGES) {
            return Moved::Not;
        }
        // What is kept free is for those who write.
        self.room_wanted = true;
        if slot.is_none() && u64::from(self.hot.free()) <= self.free_wanted().div_ceil(2) {
            return Moved::Stop;
        }
        match self.start_fill(extent, slot, Wanted { volume, unit, passing: false, needed: false }, None) {
            true => Moved::Done,
            false => Moved::Stop,
        }
    }
}
