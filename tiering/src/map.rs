//! Which extent holds which unit of which volume: two levels, leaves shared between snapshots and clones.
//!
//! A volume's top level lists leaves; a leaf of 4 KiB has 512 entries of 8 bytes and so covers 32 MiB. A snapshot
//! copies the top level and counts one more reference on each leaf, whatever the depth: reads never walk a chain.
//! A leaf with several references is copied before it changes, and every extent in it then has one more owner.
//!
//! Invariant: the owners of an extent are the distinct leaves that name it; `shared` keeps (owners - 1) where that is
//! not zero. An extent whose last owner goes is handed back by the call that removed it.

use crate::hash::FastMap;
use crate::journal::{PinRange, UNLIMITED, UnitLimits};
use crate::types::{Extent, Pin, TenantId, UNIT_BYTES, VolumeId};
use std::collections::BTreeMap;

/// Entries in a leaf.
pub const LEAF_ENTRIES: u64 = 512;
const EXTENT_BITS: u32 = 34;

/// One unit of a volume: nothing, or an extent and the epoch in which it was allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Entry(u64);

impl Entry {
    /// Never written: reads as zero.
    pub const NONE: Entry = Entry(0);

    /// An entry for `extent`, born in `epoch`.
    pub fn new(extent: Extent, epoch: u32) -> Self {
        assert!(extent + 1 < 1 << EXTENT_BITS && epoch < 1 << (64 - EXTENT_BITS), "map entry out of range");
        Entry(u64::from(epoch) << EXTENT_BITS | (extent + 1))
    }

    /// The extent, unless the entry is empty.
    pub fn extent(self) -> Option<Extent> {
        (self.0 & ((1 << EXTENT_BITS) - 1)).checked_sub(1)
    }

    /// The epoch in which the extent was allocated.
    pub fn birth(self) -> u32 {
        (self.0 >> EXTENT_BITS) as u32
    }

    /// As stored.
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// From storage; `None` where no entry looks like that.
    pub fn from_bits(bits: u64) -> Option<Self> {
        (bits == 0 || bits & ((1 << EXTENT_BITS) - 1) != 0).then_some(Entry(bits))
    }
}

/// 512 entries.
pub type Entries = Box<[Entry; LEAF_ENTRIES as usize]>;

#[derive(Debug)]
struct Leaf {
    entries: Entries,
    /// Top levels that name this leaf.
    refs: u32,
}

/// A volume, snapshot or clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Bytes the guest sees.
    pub size_bytes: u64,
    /// A snapshot is not.
    pub writable: bool,
    /// Entries born in this epoch or later belong to this volume alone.
    pub epoch: u32,
    /// Where the operator wants it, as far as `ranges` does not say otherwise.
    pub pin: Pin,
    /// Parts with a pin of their own, in order, apart from each other.
    pub ranges: Vec<PinRange>,
    /// What it may use.
    pub limits: UnitLimits,
    /// What it was made from.
    pub parent: Option<VolumeId>,
    /// The extent of its first unit on an adopted device: unit `n` is at home at `home + n`.
    pub home: Option<Extent>,
    /// Units it maps or was promised.
    pub(crate) mapped: u64,
    /// Leaf number + 1 for each 32 MiB, 0 where nothing was ever written.
    pub(crate) top: Vec<u32>,
}

impl Volume {
    /// Units the guest sees, the last one perhaps in part.
    pub fn units(&self) -> u64 {
        self.size_bytes.div_ceil(UNIT_BYTES)
    }

    /// Where the operator wants a unit.
    pub fn pin_of(&self, unit: u64) -> Pin {
        let at = self.ranges.partition_point(|range| range.end() <= unit);
        self.ranges.get(at).filter(|range| range.first <= unit).map_or(self.pin, |range| range.pin)
    }

    /// The parts that are pinned hot, in order.
    pub(crate) fn hot_parts(&self) -> Vec<PinRange> {
        let mut parts = Vec::new();
        let mut at = 0;
        let rest = PinRange { first: self.units(), count: 0, pin: Pin::Auto };
        for range in self.ranges.iter().chain([&rest]) {
            if self.pin == Pin::Hot && at < range.first {
                parts.push(PinRange { first: at, count: range.first - at, pin: Pin::Hot });
            }
            if range.pin == Pin::Hot {
                parts.push(*range);
            }
            at = range.end();
        }
        parts
    }

    /// An empty volume keeps one: its entry in a checkpoint needs room too.
    fn leaves_reserved(&self) -> u64 {
        let leaves = if self.writable {
            self.units().div_ceil(LEAF_ENTRIES)
        } else {
            self.top.iter().filter(|leaf| **leaf != 0).count() as u64
        };
        leaves.max(1)
    }
}

/// What is known about a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenant {
    /// Units its volumes may map together, or [`UNLIMITED`].
    pub quota: u64,
    /// Units they map or were promised; what several share counts for each.
    pub mapped: u64,
}

impl Default for Tenant {
    fn default() -> Self {
        Tenant { quota: UNLIMITED, mapped: 0 }
    }
}

/// A leaf set aside so that a checkpoint sees all leaves as they were when it began.
#[derive(Debug, Default)]
struct Frozen {
    saved: FastMap<u32, Entries>,
    on: bool,
}

/// The maps of all volumes of a pool.
#[derive(Debug, Default)]
pub struct Map {
    leaves: Vec<Option<Leaf>>,
    free: Vec<u32>,
    volumes: FastMap<VolumeId, Volume>,
    tenants: BTreeMap<TenantId, Tenant>,
    shared: FastMap<Extent, u32>,
    frozen: Frozen,
    reserved: u64,
    hot_minimums: u64,
    /// Counts snapshots and clones; the birth of new entries.
    pub epoch: u32,
}

impl Map {
    /// An empty map that goes on counting at `epoch`.
    pub fn at_epoch(epoch: u32) -> Self {
        Map { epoch, ..Map::default() }
    }

    /// The volume.
    pub fn volume(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes.get(&id)
    }

    /// All volumes in order of their ids.
    pub fn volumes(&self) -> impl Iterator<Item = (VolumeId, &Volume)> {
        let mut all: Vec<_> = self.volumes.iter().map(|(id, volume)| (*id, volume)).collect();
        all.sort_unstable_by_key(|(id, _)| *id);
        all.into_iter()
    }

    /// Where the slots of the adopted devices begin whose content a volume is, in no order.
    pub fn homes(&self) -> impl Iterator<Item = Extent> {
        self.volumes.values().filter_map(|volume| volume.home)
    }

    /// Leaves that the volumes of this map may come to need, together.
    pub fn leaves_reserved(&self) -> u64 {
        self.reserved
    }

    /// Adds an empty volume. The caller has checked that the id is new and that the leaves are there.
    pub fn create(&mut self, id: VolumeId, size_bytes: u64) {
        let top = vec![0; size_bytes.div_ceil(UNIT_BYTES * LEAF_ENTRIES) as usize];
        let volume = Volume {
            size_bytes,
            writable: true,
            epoch: self.epoch,
            pin: Pin::Auto,
            ranges: Vec::new(),
            limits: UnitLimits::default(),
            parent: None,
            home: None,
            mapped: 0,
            top,
        };
        self.insert(id, volume);
    }

    /// Makes `to` share everything `from` has now. Both count as older than every later write. A clone is pinned and
    /// limited as its source is, but for the minimum of hot slots: those are not there twice.
    pub fn fork(&mut self, from: VolumeId, to: VolumeId, writable: bool) -> bool {
        self.epoch += 1;
        let Some(source) = self.volumes.get_mut(&from) else { return false };
        source.epoch = self.epoch;
        let limits = UnitLimits { hot_min: 0, ..source.limits };
        let copy = Volume { writable, limits, parent: Some(from), home: None, ..source.clone() };
        for leaf in copy.top.iter().filter(|leaf| **leaf != 0) {
            leaf_at(&mut self.leaves, leaf - 1).refs += 1;
        }
        self.insert(to, copy);
        true
    }

    /// Grows a volume; shrinking is the business of discards before it.
    pub fn resize(&mut self, id: VolumeId, size_bytes: u64) {
        if let Some(volume) = self.volumes.get_mut(&id) {
            self.reserved -= volume.leaves_reserved();
            volume.size_bytes = size_bytes;
            volume.top.resize(size_bytes.div_ceil(UNIT_BYTES * LEAF_ENTRIES) as usize, 0);
            self.reserved += volume.leaves_reserved();
        }
    }

    /// Notes where the operator wants the volume, all of it.
    pub fn set_pin(&mut self, id: VolumeId, pin: Pin) {
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.pin = pin;
            volume.ranges.clear();
        }
    }

    /// Notes where the operator wants a part of the volume.
    pub fn pin_range(&mut self, id: VolumeId, range: PinRange) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        let old = std::mem::take(&mut volume.ranges);
        let mut parts: Vec<PinRange> = Vec::with_capacity(old.len() + 2);
        for part in old {
            if part.first < range.first {
                let count = part.count.min(range.first - part.first);
                parts.push(PinRange { count, ..part });
            }
            if part.end() > range.end() {
                let first = part.first.max(range.end());
                parts.push(PinRange { first, count: part.end() - first, ..part });
            }
        }
        if range.count > 0 && range.pin != volume.pin {
            parts.push(range);
        }
        parts.sort_unstable_by_key(|part| part.first);
        for part in parts {
            match volume.ranges.last_mut() {
                Some(last) if last.end() == part.first && last.pin == part.pin => last.count += part.count,
                _ => volume.ranges.push(part),
            }
        }
    }

    /// Hot slots promised to volumes, together.
    pub fn hot_minimums(&self) -> u64 {
        self.hot_minimums
    }

    /// Pinned parts of all volumes.
    pub fn pin_ranges(&self) -> usize {
        self.volumes.values().map(|volume| volume.ranges.len()).sum()
    }

    /// Notes the limits of a volume, and who pays for it.
    pub fn set_limits(&mut self, id: VolumeId, limits: UnitLimits) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        let (before, mapped) = (volume.limits.tenant, volume.mapped);
        self.hot_minimums -= u64::from(volume.limits.hot_min);
        self.hot_minimums += u64::from(limits.hot_min);
        volume.limits = limits;
        self.credit(before, mapped);
        self.charge(limits.tenant, mapped);
    }

    /// Notes what a tenant's volumes may map together.
    pub fn set_tenant(&mut self, id: TenantId, quota: u64) {
        self.tenants.entry(id).or_default().quota = quota;
        self.credit(id, 0);
    }

    /// Tenants with volumes or with a quota.
    pub fn tenants(&self) -> impl Iterator<Item = (TenantId, Tenant)> {
        self.tenants.iter().map(|(id, tenant)| (*id, *tenant))
    }

    /// What is known about a tenant.
    pub fn tenant(&self, id: TenantId) -> Tenant {
        self.tenants.get(&id).copied().unwrap_or_default()
    }

    /// Counts a unit that is about to be mapped; false if a quota forbids it.
    pub fn promise(&mut self, id: VolumeId) -> bool {
        let Some(volume) = self.volumes.get_mut(&id) else { return false };
        let tenant = volume.limits.tenant;
        if volume.mapped >= volume.limits.quota {
            return false;
        }
        if tenant != TenantId::NONE {
            let tenant = self.tenants.entry(tenant).or_default();
            if tenant.mapped >= tenant.quota {
                return false;
            }
            tenant.mapped += 1;
        }
        volume.mapped += 1;
        true
    }

    /// The promised unit is mapped now, and counted as such, or will not be.
    pub fn end_promise(&mut self, id: VolumeId) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        volume.mapped -= 1;
        let tenant = volume.limits.tenant;
        self.credit(tenant, 1);
    }

    fn charge(&mut self, tenant: TenantId, units: u64) {
        if tenant != TenantId::NONE {
            self.tenants.entry(tenant).or_default().mapped += units;
        }
    }

    fn credit(&mut self, tenant: TenantId, units: u64) {
        if let Some(known) = self.tenants.get_mut(&tenant) {
            known.mapped -= units;
            if known.mapped == 0 && known.quota == UNLIMITED {
                self.tenants.remove(&tenant);
            }
        }
    }

    /// Takes the volume out; its leaves are to be given to [`Map::release_leaf`], at leisure.
    pub fn delete(&mut self, id: VolumeId) -> Option<Vec<u32>> {
        let volume = self.volumes.remove(&id)?;
        self.reserved -= volume.leaves_reserved();
        self.hot_minimums -= u64::from(volume.limits.hot_min);
        self.credit(volume.limits.tenant, volume.mapped);
        Some(volume.top.into_iter().filter_map(|leaf| leaf.checked_sub(1)).collect())
    }

    /// Takes one reference from a leaf; extents without owner are pushed to `freed`.
    pub fn release_leaf(&mut self, leaf: u32, freed: &mut Vec<Extent>) {
        let slot = leaf_at(&mut self.leaves, leaf);
        slot.refs -= 1;
        if slot.refs > 0 {
            return;
        }
        self.free.push(leaf);
        let gone = self.leaves[leaf as usize].take().expect("the leaf was just there");
        for extent in gone.entries.iter().filter_map(|entry| entry.extent()) {
            if self.disown(extent) {
                freed.push(extent);
            }
        }
        if self.frozen.on {
            self.frozen.saved.entry(leaf).or_insert(gone.entries);
        }
    }

    /// The entry of a unit; empty beyond the volume.
    pub fn get(&self, volume: &Volume, unit: u64) -> Entry {
        match volume.top.get((unit / LEAF_ENTRIES) as usize) {
            Some(&leaf) if leaf != 0 => match &self.leaves[leaf as usize - 1] {
                Some(leaf) => leaf.entries[(unit % LEAF_ENTRIES) as usize],
                None => Entry::NONE,
            },
            _ => Entry::NONE,
        }
    }

    /// The mapped units of a volume in a range, in order; empty leaves cost nothing.
    pub fn units_in(
        &self,
        volume: &Volume,
        range: std::ops::Range<u64>,
    ) -> impl Iterator<Item = (u64, Extent)> {
        let tops = (range.start / LEAF_ENTRIES) as usize..range.end.div_ceil(LEAF_ENTRIES) as usize;
        let end = tops.end.min(volume.top.len());
        let tops = tops.start.min(end)..end;
        let leaves = tops.clone().zip(&volume.top[tops]).filter_map(|(at, leaf)| {
            Some((at as u64 * LEAF_ENTRIES, self.leaves.get(leaf.checked_sub(1)? as usize)?.as_ref()?))
        });
        leaves
            .flat_map(|(first, leaf)| {
                (first..)
                    .zip(leaf.entries.iter())
                    .filter_map(|(unit, entry)| entry.extent().map(|extent| (unit, extent)))
            })
            .filter(move |(unit, _)| range.contains(unit))
    }

    /// Whether a write to this unit may go in place: the entry belongs to this volume alone.
    pub fn owned(&self, volume: &Volume, unit: u64, entry: Entry) -> bool {
        let Some(extent) = entry.extent() else { return false };
        if entry.birth() >= volume.epoch {
            return true;
        }
        let leaf = volume.top[(unit / LEAF_ENTRIES) as usize] - 1;
        let alone = self.leaves[leaf as usize].as_ref().is_some_and(|leaf| leaf.refs == 1);
        alone && !self.shared.contains_key(&extent)
    }

    /// Sets an entry. Returns the extent that lost its last owner thereby.
    pub fn set(&mut self, id: VolumeId, unit: u64, entry: Entry) -> Option<Extent> {
        let volume = self.volumes.get_mut(&id)?;
        let place = volume.top.get_mut((unit / LEAF_ENTRIES) as usize)?;
        if *place == 0 {
            if entry == Entry::NONE {
                return None;
            }
            *place = 1 + add_leaf(&mut self.leaves, &mut self.free, Box::new([Entry::NONE; 512]), 1);
        }
        let mut leaf = *place - 1;
        if leaf_at(&mut self.leaves, leaf).refs > 1 {
            let shared = leaf_at(&mut self.leaves, leaf);
            shared.refs -= 1;
            let copy = shared.entries.clone();
            for extent in copy.iter().filter_map(|entry| entry.extent()) {
                *self.shared.entry(extent).or_insert(0) += 1;
            }
            leaf = add_leaf(&mut self.leaves, &mut self.free, copy, 1);
            *place = leaf + 1;
        }
        let target = leaf_at(&mut self.leaves, leaf);
        if self.frozen.on {
            self.frozen.saved.entry(leaf).or_insert_with(|| target.entries.clone());
        }
        let old = std::mem::replace(&mut target.entries[(unit % LEAF_ENTRIES) as usize], entry);
        let tenant = volume.limits.tenant;
        match (old == Entry::NONE, entry == Entry::NONE) {
            (true, false) => {
                volume.mapped += 1;
                self.charge(tenant, 1);
            }
            (false, true) => {
                volume.mapped -= 1;
                self.credit(tenant, 1);
            }
            _ => {}
        }
        old.extent().filter(|extent| self.disown(*extent))
    }

    /// The units of a range in which two volumes differ, as (first unit, count) in order: equal leaves are skipped unseen.
    pub fn diff(&self, a: &Volume, b: &Volume, range: std::ops::Range<u64>) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let end = a.top.len().max(b.top.len()).min(range.end.div_ceil(LEAF_ENTRIES) as usize);
        for at in (range.start / LEAF_ENTRIES) as usize..end {
            if a.top.get(at).unwrap_or(&0) == b.top.get(at).unwrap_or(&0) {
                continue;
            }
            let first = at as u64 * LEAF_ENTRIES;
            let units = first.max(range.start)..(first + LEAF_ENTRIES).min(range.end);
            for unit in units.filter(|unit| self.get(a, *unit).extent() != self.get(b, *unit).extent()) {
                match ranges.last_mut() {
                    Some((start, count)) if *start + *count == unit => *count += 1,
                    _ => ranges.push((unit, 1)),
                }
            }
        }
        ranges
    }

    /// From here to [`Map::thaw`], [`Map::frozen_leaf`] answers as of now.
    pub fn freeze(&mut self) {
        self.frozen.on = true;
    }

    /// The leaf as it was at the freeze.
    pub fn frozen_leaf(&self, leaf: u32) -> Option<&Entries> {
        self.frozen
            .saved
            .get(&leaf)
            .or_else(|| self.leaves.get(leaf as usize)?.as_ref().map(|leaf| &leaf.entries))
    }

    /// Ends the freeze.
    pub fn thaw(&mut self) {
        self.frozen = Frozen::default();
    }

    /// Leaves in use.
    pub fn leaf_count(&self) -> u64 {
        (self.leaves.len() - self.free.len()) as u64
    }

    /// Puts a volume back as read from a checkpoint. The leaves follow with [`Map::load_leaf`].
    pub(crate) fn insert(&mut self, id: VolumeId, volume: Volume) {
        self.reserved += volume.leaves_reserved();
        self.hot_minimums += u64::from(volume.limits.hot_min);
        self.charge(volume.limits.tenant, volume.mapped);
        let before = self.volumes.insert(id, volume);
        assert!(before.is_none(), "a volume id is used once");
    }

    /// Adds an empty volume whose units are at home in the extents from `home` on, in order.
    pub(crate) fn create_at_home(&mut self, id: VolumeId, size_bytes: u64, home: Extent) {
        self.create(id, size_bytes);
        self.volumes.get_mut(&id).expect("it was just made").home = Some(home);
    }

    /// Puts a leaf back under the number that the top levels know. `refs` is the number of top levels that name it.
    pub(crate) fn load_leaf(
        &mut self,
        leaf: u32,
        entries: Entries,
        refs: u32,
        mut owned: impl FnMut(Extent),
    ) {
        if self.leaves.len() <= leaf as usize {
            self.leaves.resize_with(leaf as usize + 1, || None);
        }
        for extent in entries.iter().filter_map(|entry| entry.extent()) {
            owned(extent);
        }
        self.leaves[leaf as usize] = Some(Leaf { entries, refs });
    }

    /// Notes one more owner of an extent, when a checkpoint is read.
    pub(crate) fn load_shared(&mut self, extent: Extent) {
        *self.shared.entry(extent).or_insert(0) += 1;
    }

    /// After the last leaf was loaded: finds free numbers, and what each volume maps.
    pub(crate) fn load_done(&mut self) {
        self.free = (0..self.leaves.len() as u32).filter(|at| self.leaves[*at as usize].is_none()).collect();
        let mapped_in = |leaf: &Option<Leaf>| match leaf {
            Some(leaf) => leaf.entries.iter().filter(|entry| **entry != Entry::NONE).count() as u64,
            None => 0,
        };
        let counts: Vec<u64> = self.leaves.iter().map(mapped_in).collect();
        let mut charges = Vec::new();
        for volume in self.volumes.values_mut() {
            let leaves = volume.top.iter().filter_map(|leaf| leaf.checked_sub(1));
            volume.mapped = leaves.filter_map(|leaf| counts.get(leaf as usize)).sum();
            charges.push((volume.limits.tenant, volume.mapped));
        }
        charges.into_iter().for_each(|(tenant, mapped)| self.charge(tenant, mapped));
    }

    /// True when it was the last owner.
    fn disown(&mut self, extent: Extent) -> bool {
        match self.shared.get_mut(&extent) {
            None => true,
            Some(1) => {
                self.shared.remove(&extent);
                false
            }
            Some(more) => {
                *more -= 1;
                false
            }
        }
    }
}

fn leaf_at(leaves: &mut [Option<Leaf>], leaf: u32) -> &mut Leaf {
    leaves[leaf as usize].as_mut().expect("a top level names leaves that exist")
}

fn add_leaf(leaves: &mut Vec<Option<Leaf>>, free: &mut Vec<u32>, entries: Entries, refs: u32) -> u32 {
    let leaf = Some(Leaf { entries, refs });
    match free.pop() {
        Some(at) => {
            leaves[at as usize] = leaf;
            at
        }
        None => {
            leaves.push(leaf);
            leaves.len() as u32 - 1
        }
    }
}

#[cfg(test)]
#[path = "map_tests.rs"]
mod tests;
