//! The state of a pool while it is put together from a checkpoint and the journal behind it.

use crate::alloc::Allocator;
use crate::checkpoint::Content;
use crate::hash::FastMap;
use crate::hot::Directory;
use crate::journal::{HotState, Record};
use crate::map::{LEAF_ENTRIES, Map};
use crate::types::*;

/// More forks than this were never made in one pool: entries have 30 bits for it.
const EPOCHS_END: u32 = 1 << 29;
/// Nor so many volumes.
const VOLUMES_END: u32 = 1 << 31;

/// A range of cold slots, as superblocks know it.
#[derive(Debug, Clone, Copy)]
pub(super) struct ColdSlots {
    pub slots: u64,
    pub adopted: bool,
}

/// See the module.
pub(super) struct Loading {
    pub map: Map,
    pub allocator: Allocator,
    pub hot: Directory,
    pub freed: Vec<Extent>,
    pub next_volume: u32,
    /// Leaves the pool was made for: what needs more was never recorded.
    leaves_max: u64,
}

impl Loading {
    /// `None` if the checkpoint says what cannot be.
    pub fn from_content(
        content: Content,
        cold: &[ColdSlots],
        hot_slots: u32,
        leaves_max: u64,
    ) -> Option<Loading> {
        let mut allocator = Allocator::new(0);
        for part in cold {
            match part.adopted {
                true => allocator.extend_home(part.slots, false),
                false => allocator.extend(part.slots),
            }
        }
        let cold_slots = allocator.slots();
        // Both count on from here.
        if content.epoch >= EPOCHS_END || content.next_volume >= VOLUMES_END {
            return None;
        }
        let mut loading = Loading {
            map: Map::at_epoch(content.epoch),
            allocator,
            hot: Directory::new(hot_slots),
            freed: Vec::new(),
            next_volume: content.next_volume.max(1),
            leaves_max,
        };
        let mut refs: FastMap<u32, u32> = FastMap::default();
        for leaf in
            content.volumes.values().flat_map(|volume| &volume.top).filter_map(|leaf| leaf.checked_sub(1))
        {
            *refs.entry(leaf).or_insert(0) += 1;
        }
        for (id, quota) in content.tenants {
            loading.map.set_tenant(id, quota);
        }
        for (id, volume) in content.volumes {
            let parts_end = volume.ranges.last().map_or(0, |range| range.end());
            if parts_end > volume.units() || volume.epoch > content.epoch {
                return None;
            }
            loading.map.insert(id, volume);
        }
        let mut twice = Vec::new();
        let mut bad = false;
        for (leaf, entries) in content.leaves {
            let allocator = &mut loading.allocator;
            let refs = refs.get(&leaf).copied()?;
            bad |= u64::from(leaf) >= leaves_max.saturating_mul(2);
            if bad {
                return None;
            }
            loading.map.load_leaf(leaf, entries, refs, |extent| {
                bad |= extent >= cold_slots;
                if extent < cold_slots && !allocator.take(extent) {
                    twice.push(extent);
                }
            });
        }
        twice.into_iter().for_each(|extent| loading.map.load_shared(extent));
        loading.map.load_done();
        for (slot, state) in content.hot {
            bad |= slot >= hot_slots || state.extent >= cold_slots;
            loading.hot.load(slot, Some(state));
        }
        (!bad).then_some(loading)
    }

    /// `None` if the record contradicts the state.
    pub fn apply(&mut self, record: Record) -> Option<()> {
        match record {
            Record::Map { volume, unit, entry } => {
                let known = self.map.volume(volume)?;
                if unit >= known.units()
                    || entry.birth() > self.map.epoch
                    || entry.extent().is_some_and(|extent| extent >= self.allocator.slots())
                {
                    return None;
                }
                if let Some(extent) = entry.extent() {
                    self.allocator.take(extent);
                }
                self.freed.extend(self.map.set(volume, unit, entry));
            }
            Record::Hot { slot, state } => {
                let fits = state.is_none_or(|state| state.extent < self.allocator.slots());
                if slot >= self.hot.slots() || !fits {
                    return None;
                }
                self.hot.load(slot, state);
            }
            Record::Create { id, size_bytes } => {
                if self.map.volume(id).is_some() || !self.fits(size_bytes) {
                    return None;
                }
                self.map.create(id, size_bytes);
                self.next_volume =
                    self.next_volume.max(id.0.checked_add(1).filter(|next| *next < VOLUMES_END)?);
            }
            Record::Resize { id, size_bytes } => {
                let known = self.map.volume(id)?;
                if !self.fits(size_bytes) || size_bytes < known.size_bytes {
                    return None;
                }
                self.map.resize(id, size_bytes);
            }
            Record::Fork { from, to, writable } => {
                if self.map.volume(to).is_some() || !self.map.fork(from, to, writable) {
                    return None;
                }
                self.next_volume =
                    self.next_volume.max(to.0.checked_add(1).filter(|next| *next < VOLUMES_END)?);
            }
            Record::Delete { id } => {
                for leaf in self.map.delete(id)? {
                    self.map.release_leaf(leaf, &mut self.freed);
                }
            }
            Record::SetPin { id, pin } => self.map.set_pin(id, pin),
            Record::PinRange { id, range } => {
                let known = self.map.volume(id)?;
                if range.count == 0 || range.first.checked_add(range.count)? > known.units() {
                    return None;
                }
                self.map.pin_range(id, range);
            }
            Record::SetLimits { id, limits } => self.map.set_limits(id, limits),
            Record::SetTenant { id, quota } => self.map.set_tenant(id, quota),
            Record::Void { .. } => {}
        }
        Some(())
    }

    /// Whether a volume may have had this size in a pool of this metadata.
    fn fits(&self, size_bytes: u64) -> bool {
        size_bytes <= VOLUME_BYTES_MAX && size_bytes.div_ceil(UNIT_BYTES * LEAF_ENTRIES) <= self.leaves_max
    }
}

/// The pages that only a lost hot tier had.
pub(super) fn only_hot(hot: &[(u32, HotState)]) -> FastMap<Extent, PageMask> {
    let dirty = hot.iter().filter(|(_, state)| state.dirty != 0 || state.fresh);
    dirty.map(|(_, state)| (state.extent, if state.fresh { ALL_PAGES } else { state.dirty })).collect()
}
