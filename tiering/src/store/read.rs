//! Reads: from the hot slot, from the cold one, or zero.

use super::fill::Wanted;
use super::{Owner, Part, Rule, Store};
use crate::policy::window::Decision;
use crate::types::*;

/// Where a read that its caller carries out finds its data: see [`Store::hit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// The hot device.
    pub device: DeviceId,
    /// First byte there.
    pub offset: u64,
    slot: u32,
}

/// Places that [`Store::warm`] looks up together.
const WARM_TOGETHER: usize = 32;

impl Store {
    /// The short way of a read, for which nothing is submitted: where its data are if they are hot, in one piece. The
    /// caller reads them there and says so with [`Store::hit_done`]; until then they stay. `None`: it is to be submitted.
    #[inline]
    pub fn hit(&mut self, volume: VolumeId, offset: u64, len: u32) -> Option<Hit> {
        if self.hot_lost || !self.lost.is_empty() {
            return None;
        }
        let (unit, start) = (offset / UNIT_BYTES, (offset % UNIT_BYTES) as u32);
        let held = self.map.volume(volume)?;
        let end = offset.checked_add(u64::from(len))?;
        if len == 0 || end > held.size_bytes || u64::from(start) + u64::from(len) > UNIT_BYTES {
            return None;
        }
        let slot = self.hot.find(self.map.get(held, unit).extent()?)?;
        let state = self.hot.slot_mut(slot);
        if pages_touched(start, len) & !state.valid != 0 {
            return None;
        }
        state.users += 1;
        self.policy.hit(slot);
        self.budget.guest(u64::from(len), self.now_ns);
        self.stats.read_hits += 1;
        let (device, at) = self.locate(Tier::Hot, u64::from(slot));
        Some(Hit { device, offset: at + u64::from(start), slot })
    }

    /// Looks up places of a volume for the sake of the processor's caches: requests for them come next. Most of such a look-up
    /// is waiting for memory, and these do not wait for each other.
    #[inline]
    pub fn warm(&self, volume: VolumeId, offsets: &[u64]) {
        let Some(held) = self.map.volume(volume) else { return };
        for offsets in offsets.chunks(WARM_TOGETHER) {
            let mut extents = [None; WARM_TOGETHER];
            for (extent, offset) in extents.iter_mut().zip(offsets) {
                *extent = self.map.get(held, offset / UNIT_BYTES).extent();
            }
            let mut slots = [None; WARM_TOGETHER];
            for (slot, extent) in slots.iter_mut().zip(&extents[..offsets.len()]) {
                *slot = extent.and_then(|extent| self.hot.find(extent));
            }
            for slot in slots[..offsets.len()].iter().flatten() {
                std::hint::black_box(self.hot.slot(*slot).touch());
            }
        }
    }

    /// The caller has read where [`Store::hit`] said. After a failure it submits the read, which is then served from the
    /// other copy if there is one.
    #[inline]
    pub fn hit_done(&mut self, hit: Hit, failed: bool) {
        self.leave_slot(hit.slot);
        if failed {
            self.suspect(hit.device);
            self.pump();
        }
    }

    pub(super) fn dispatch_read(&mut self, part: Part) {
        let Some(entry) = self.entry(&part) else {
            return self.part_done(part.tag, Err(RequestError::NoVolume), 0);
        };
        let Some(extent) = entry.extent() else { return self.read_zero(part, 0) };
        if self.lost.get(&extent).is_some_and(|pages| pages & pages_touched(part.start, part.len) != 0) {
            return self.part_done(part.tag, Err(RequestError::Io), 0);
        }
        match self.hot.find(extent) {
            // What was only there was answered above.
            Some(slot) if self.hot_lost && self.is_lost(Tier::Hot, u64::from(slot)) => {
                self.read_from(part, extent, None);
            }
            Some(slot) => self.read_hot(part, extent, slot),
            None => self.read_miss(part, extent),
        }
    }

    fn read_hot(&mut self, part: Part, extent: Extent, slot: u32) {
        self.policy.hit(slot);
        let pages = pages_touched(part.start, part.len);
        let missing = pages & !self.hot.slot(slot).valid;
        if missing == 0 {
            self.stats.read_hits += 1;
            return self.read_from(part, extent, Some(slot));
        }
        let fresh = self.hot.slot(slot).fresh && !self.breaks(Rule::NoForeignRead);
        if fresh {
            self.stats.read_hits += 1;
        } else {
            self.stats.read_misses += 1;
        }
        // Pieces of equal origin. The part itself counts as one of them.
        let end = part.start + part.len;
        let mut at = part.start;
        let mut pieces = 0;
        while at < end {
            let here = missing >> (at / PAGE_BYTES as u32) & 1;
            let mut until = at;
            while until < end && missing >> (until / PAGE_BYTES as u32) & 1 == here {
                until = (until / PAGE_BYTES as u32 + 1) * PAGE_BYTES as u32;
            }
            let until = until.min(end);
            let piece = Part { start: at, len: until - at, buffer: part.buffer + (at - part.start), ..part };
            pieces += 1;
            self.running(part.tag).parts_left += 1;
            match (here, fresh) {
                (0, _) => self.read_from(piece, extent, Some(slot)),
                (_, true) => self.read_zero(piece, extent),
                (_, false) => self.read_from(piece, extent, None),
            }
            at = until;
        }
        assert!(pieces > 0, "a part is not empty");
        self.part_done(part.tag, Ok(()), 0);
        if !fresh {
            self.start_fill(extent, Some(slot), Wanted::by(&part), None);
        }
    }

    fn read_miss(&mut self, part: Part, extent: Extent) {
        self.stats.read_misses += 1;
        let volume = self.map.volume(part.volume).expect("the entry was just found in it");
        let (pin, units) = (volume.pin_of(part.unit), volume.units());
        let offset = part.unit * UNIT_BYTES + u64::from(part.start);
        let decision = self.windows.miss(part.volume.0, offset, u64::from(part.len), false);
        let (range, passing) = match (pin, decision) {
            (Pin::Cold, _) | (Pin::Auto, Decision::Bypass) => return self.read_from(part, extent, None),
            (_, Decision::Fill { start, end, passing }) => {
                (start / UNIT_BYTES..end.div_ceil(UNIT_BYTES).min(units), passing)
            }
            (Pin::Hot, Decision::Bypass) => (part.unit..part.unit + 1, false),
        };
        if !self.start_fill(extent, None, Wanted { passing, ..Wanted::by(&part) }, Some(part)) {
            self.read_from(part, extent, None);
        }
        self.fill_neighbours(part, range, passing);
    }

    /// Brings in the cold units of the window around a miss.
    pub(super) fn fill_neighbours(&mut self, part: Part, range: std::ops::Range<u64>, passing: bool) {
        for unit in range.filter(|unit| *unit != part.unit) {
            let Some(volume) = self.map.volume(part.volume) else { return };
            let neighbour = self.map.get(volume, unit).extent();
            if volume.pin_of(unit) == Pin::Cold {
                continue;
            }
            if let Some(extent) = neighbour.filter(|extent| self.hot.find(*extent).is_none()) {
                self.start_fill(extent, None, Wanted { unit, passing, ..Wanted::by(&part) }, None);
            }
        }
    }

    fn read_from(&mut self, part: Part, extent: Extent, slot: Option<u32>) {
        let buffer = Buffer::Request { tag: part.tag, offset: part.buffer };
        let owner = Owner::Read { part, slot, extent };
        match slot {
            Some(slot) => {
                self.hot.slot_mut(slot).users += 1;
                self.emit_hot(slot, part.start, part.len, ActionKind::Read, buffer, owner);
            }
            None => self.emit_cold(extent, part.start, part.len, ActionKind::Read, buffer, owner),
        }
    }

    fn read_zero(&mut self, part: Part, extent: Extent) {
        let buffer = Buffer::Request { tag: part.tag, offset: part.buffer };
        let owner = Owner::Read { part, slot: None, extent };
        self.emit(DeviceId(0), ActionKind::ZeroFill, 0, part.len, buffer, owner);
    }

    pub(super) fn read_done(&mut self, part: Part, slot: Option<u32>, extent: Extent, failed: bool) {
        let mut result = if failed { Err(RequestError::Io) } else { Ok(()) };
        if let Some(slot) = slot {
            let state = self.hot.slot(slot);
            let clean = state.dirty & pages_touched(part.start, part.len) == 0 && !state.fresh;
            if failed && clean && state.extent() == Some(extent) {
                // The hot copy cannot be read, but the cold one is as good.
                self.read_from(part, extent, None);
                self.leave_slot(slot);
                return;
            }
            if failed && state.extent() != Some(extent) {
                result = Ok(());
                self.running(part.tag).parts_left += 1;
                self.dispatch(part);
            }
            self.leave_slot(slot);
        }
        self.part_done(part.tag, result, 0);
    }
}
