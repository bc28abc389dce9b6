//! The hot tier's directory: which extent each hot slot holds, and how much of it.
//!
//! # Which copy may be overwritten in place
//! A write goes in place only to the copy that the *durable* state already names as the sole truth for its pages;
//! any other write goes where the durable state points to nothing, and a record publishes it. `sole` has the
//! pages of the first kind. Otherwise a power cut could leave new bytes in a copy that counts as clean, and
//! the demotion of that copy would later bring the old bytes back.

use crate::hash::FastMap;
use crate::journal::HotState;
use crate::policy::list::{Links, List};
use crate::types::{Extent, PageMask, VolumeId};

const NO_EXTENT: Extent = Extent::MAX;

/// One hot slot.
#[derive(Debug, Clone)]
pub struct Slot {
    extent: Extent,
    /// The volume whose request brought the extent here.
    volume: VolumeId,
    /// Pages that are here.
    pub valid: PageMask,
    /// Pages that are only here.
    pub dirty: PageMask,
    /// Pages that durable state names as only here, or does not name at all: they may be overwritten in place.
    pub sole: PageMask,
    /// Pages that become `sole` when the record `sole_lsn` is firm.
    pub sole_pending: PageMask,
    /// The record that says the clean pages are dirty.
    pub sole_lsn: u64,
    /// Pages a guest write was sent to that are not valid yet: a fill leaves them alone.
    pub claimed: PageMask,
    /// Pages a fill is writing now: guest writes to them wait.
    pub filling: PageMask,
    /// Pages written since the running write-back read them.
    pub rewritten: PageMask,
    /// A write-back runs.
    pub writing_back: bool,
    /// The cold slot was never written.
    pub fresh: bool,
    /// A fill runs.
    pub fill_running: bool,
    /// Its volume is pinned hot: no victim.
    pub pinned: bool,
    /// Actions in flight on the slot: it is neither demoted nor used for something else.
    pub users: u32,
    /// Guest writes in flight among them.
    pub writers: u32,
    /// The last record about this slot.
    pub lsn: u64,
    /// When the extent came here, ns.
    pub since_ns: u64,
    /// Since when it is among the dirty ones, ns.
    pub dirty_since_ns: u64,
    listed_dirty: bool,
    /// The running drain has still to write it back.
    to_drain: bool,
}

const EMPTY: Slot = Slot {
    extent: NO_EXTENT,
    volume: VolumeId(0),
    valid: 0,
    dirty: 0,
    sole: 0,
    sole_pending: 0,
    sole_lsn: 0,
    claimed: 0,
    filling: 0,
    rewritten: 0,
    writing_back: false,
    fresh: false,
    fill_running: false,
    pinned: false,
    users: 0,
    writers: 0,
    lsn: 0,
    since_ns: 0,
    dirty_since_ns: 0,
    listed_dirty: false,
    to_drain: false,
};

impl Slot {
    /// Whose data, unless the slot is free or waits to become free.
    pub fn extent(&self) -> Option<Extent> {
        (self.extent != NO_EXTENT).then_some(self.extent)
    }

    /// The volume whose request brought the extent here: its limits count the slot.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// What a record says about the slot. Once a page is dirty all valid ones count as dirty in the record, so that
    /// overwriting them writes no further metadata.
    pub fn state(&self) -> Option<HotState> {
        let valid = self.valid;
        (self.extent != NO_EXTENT && valid != 0).then_some(HotState {
            extent: self.extent,
            volume: self.volume,
            valid,
            dirty: if self.dirty & valid != 0 { valid } else { 0 },
            fresh: self.fresh,
        })
    }

    /// Nothing is only here.
    pub fn is_clean(&self) -> bool {
        self.dirty == 0 && !self.fresh
    }

    /// A value for which all that a read looks at is loaded.
    pub fn touch(&self) -> u64 {
        self.extent ^ u64::from(self.users) ^ u64::from(self.valid)
    }

    /// Nothing is going on that speaks against demotion.
    pub fn idle(&self) -> bool {
        self.extent != NO_EXTENT && self.users == 0 && !self.writing_back && !self.pinned && self.claimed == 0
    }
}

/// All hot slots.
#[derive(Debug)]
pub struct Directory {
    slots: Vec<Slot>,
    index: FastMap<Extent, u32>,
    free: Vec<u32>,
    /// The slots of each volume in the order in which they were filled.
    of_volume: FastMap<VolumeId, List>,
    links: Links,
    /// The dirty slots in the order in which they became so.
    dirty: List,
    dirty_links: Links,
    /// Slots that the running drain has still to write back.
    to_drain: u32,
}

impl Directory {
    /// `slots` free slots.
    pub fn new(slots: u32) -> Self {
        let mut directory = Directory {
            slots: Vec::new(),
            index: FastMap::default(),
            free: Vec::new(),
            of_volume: FastMap::default(),
            links: Links::new(0),
            dirty: List::EMPTY,
            dirty_links: Links::new(0),
            to_drain: 0,
        };
        directory.grow(slots);
        directory
    }

    /// Adds free slots so that there are so many, not fewer than before.
    pub fn grow(&mut self, slots: u32) {
        let before = self.slots();
        self.slots.resize(slots as usize, EMPTY);
        self.index.reserve((slots - before) as usize);
        self.links.grow(slots);
        self.dirty_links.grow(slots);
        self.free.splice(0..0, (before..slots).rev());
    }

    /// Number of slots.
    pub fn slots(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Slots that can be attached at once.
    pub fn free(&self) -> u32 {
        self.free.len() as u32
    }

    /// Slots that a volume's requests filled.
    pub fn held_by(&self, volume: VolumeId) -> u32 {
        self.of_volume.get(&volume).map_or(0, List::len)
    }

    /// Slots whose data is only there.
    pub fn dirty_slots(&self) -> u32 {
        self.dirty.len()
    }

    /// The same, counted anew: for when a mistake would lose data.
    pub fn count_dirty(&self) -> u32 {
        self.slots.iter().filter(|slot| slot.state().is_some_and(|state| state.dirty != 0)).count() as u32
    }

    /// The slot that has been dirty longest.
    pub fn oldest_dirty(&self) -> Option<u32> {
        self.dirty.back()
    }

    /// The slot that became dirty next after a dirty one.
    pub fn dirtied_after(&self, slot: u32) -> Option<u32> {
        self.dirty.before(&self.dirty_links, slot)
    }

    /// Looks whether the slot is dirty, as its record would say, after something has changed there.
    pub fn look_dirty(&mut self, slot: u32, now_ns: u64) {
        let state = &mut self.slots[slot as usize];
        let dirty = state.state().is_some_and(|state| state.dirty != 0);
        match (state.listed_dirty, dirty) {
            (false, true) => {
                state.dirty_since_ns = now_ns;
                self.dirty.push_front(&mut self.dirty_links, slot);
            }
            (true, false) => {
                self.to_drain -= u32::from(std::mem::take(&mut state.to_drain));
                self.dirty.remove(&mut self.dirty_links, slot);
            }
            _ => return,
        }
        state.listed_dirty = dirty;
    }

    /// What is dirty now is to be drained.
    pub fn mark_drain(&mut self) {
        let mut at = self.dirty.back();
        while let Some(slot) = at {
            self.slots[slot as usize].to_drain = true;
            at = self.dirtied_after(slot);
        }
        self.to_drain = self.dirty.len();
    }

    /// Whether the slot was marked by [`Directory::mark_drain`] and not written back since.
    pub fn drains(&self, slot: u32) -> bool {
        self.slots[slot as usize].to_drain
    }

    /// Slots of which that is true.
    pub fn drain_left(&self) -> u32 {
        self.to_drain
    }

    /// The slot was written back, and is dirty by what was written meanwhile: it counts as dirty since now. `drained`: it
    /// had its mark when that began.
    pub fn written_back(&mut self, slot: u32, drained: bool, now_ns: u64) {
        let state = &mut self.slots[slot as usize];
        if !state.listed_dirty {
            return;
        }
        if drained {
            self.to_drain -= u32::from(std::mem::take(&mut state.to_drain));
        }
        state.dirty_since_ns = now_ns;
        self.dirty.remove(&mut self.dirty_links, slot);
        self.dirty.push_front(&mut self.dirty_links, slot);
    }

    /// The slot that holds an extent.
    pub fn find(&self, extent: Extent) -> Option<u32> {
        self.index.get(&extent).copied()
    }

    /// A slot.
    pub fn slot(&self, slot: u32) -> &Slot {
        &self.slots[slot as usize]
    }

    /// A slot, to change.
    pub fn slot_mut(&mut self, slot: u32) -> &mut Slot {
        &mut self.slots[slot as usize]
    }

    /// Gives an extent a free slot with nothing valid in it, on behalf of a volume.
    pub fn attach(&mut self, extent: Extent, fresh: bool, volume: VolumeId, now_ns: u64) -> Option<u32> {
        let slot = self.free.pop()?;
        self.slots[slot as usize] = Slot { extent, fresh, volume, since_ns: now_ns, ..EMPTY };
        let before = self.index.insert(extent, slot);
        assert!(before.is_none(), "extent {extent} would have two hot copies");
        self.of_volume.entry(volume).or_insert(List::EMPTY).push_front(&mut self.links, slot);
        Some(slot)
    }

    /// Parts the slot from its extent. It stays out of use until [`Directory::release`].
    pub fn detach(&mut self, slot: u32) {
        let state = &mut self.slots[slot as usize];
        let volume = state.volume;
        let extent = std::mem::replace(&mut state.extent, NO_EXTENT);
        self.index.remove(&extent);
        self.look_dirty(slot, 0);
        let list = self.of_volume.get_mut(&volume).expect("an attached slot is in its volume's list");
        list.remove(&mut self.links, slot);
        if list.len() == 0 {
            self.of_volume.remove(&volume);
        }
    }

    /// Of the slots a volume has longest, one that `usable` agrees to.
    pub fn oldest_of(&self, volume: VolumeId, usable: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        self.of_volume.get(&volume)?.find_back(&self.links, usable)
    }

    /// The slot can be attached again: durable state does not name it, and nothing is in flight on it.
    pub fn release(&mut self, slot: u32) {
        let state = &mut self.slots[slot as usize];
        assert!(state.extent == NO_EXTENT && state.users == 0, "hot slot {slot} is still in use");
        *state = EMPTY;
        self.free.push(slot);
    }

    /// Takes the state of a slot from a record or checkpoint: the later one counts.
    pub(crate) fn load(&mut self, slot: u32, state: Option<HotState>) {
        let Some(target) = self.slots.get_mut(slot as usize) else { return };
        *target = EMPTY;
        if let Some(state) = state {
            *target = Slot {
                extent: state.extent,
                volume: state.volume,
                valid: state.valid,
                dirty: state.dirty,
                sole: state.dirty,
                fresh: state.fresh,
                // Durable state names the slot.
                lsn: 1,
                ..EMPTY
            };
        }
    }

    /// After the last `load`: builds the index. Returns slots whose extent `keep` does not know (it was freed) or that
    /// another slot holds too; they are detached, and not free until their records are.
    pub(crate) fn load_done(&mut self, keep: impl Fn(Extent) -> bool) -> Vec<u32> {
        self.free.clear();
        self.index.clear();
        self.of_volume.clear();
        self.dirty = List::EMPTY;
        let mut orphans = Vec::new();
        for slot in (0..self.slots.len() as u32).rev() {
            match self.slots[slot as usize].extent() {
                None => self.free.push(slot),
                Some(extent) if keep(extent) && !self.index.contains_key(&extent) => {
                    self.index.insert(extent, slot);
                    let volume = self.slots[slot as usize].volume;
                    self.of_volume.entry(volume).or_insert(List::EMPTY).push_front(&mut self.links, slot);
                    self.look_dirty(slot, 0);
                }
                Some(_) => {
                    self.slots[slot as usize].extent = NO_EXTENT;
                    orphans.push(slot);
                }
            }
        }
        orphans
    }
}
