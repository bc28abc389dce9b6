//! A pool that grows while it works: a device became larger, another one joins, or one is adopted with its content.
//!
//! Growth is part of a checkpoint. A device that joins gets its superblocks first; the hot devices' superblocks that
//! name the checkpoint name the new space too; only when all superblocks are stable is the space used. So a crash at any
//! step leaves the pool with all of it or nothing.
//!
//! **Adoption.** The device's bytes become the cold data of a new volume, unit by unit where they are; nothing is
//! copied. Its superblocks go behind the data. The volume's map is built over some ticks, unseen by everybody, and
//! becomes true with the checkpoint that names the device. The slots of an adopted device are used for the units at home
//! there and for nothing else: after a drain the device is a plain image of its volume again, but for units that a
//! snapshot or clone kept and the volume wrote elsewhere.

use super::{Device, DeviceSpec, Owner, Store};
use crate::checkpoint::leaves_fitting;
use crate::map::{Entry, LEAF_ENTRIES};
use crate::superblock::{DEVICES_MAX, Member, SEGMENTS_MAX, SUPERBLOCK_BYTES, Segment, Superblock};
use crate::types::*;
use uuid::Uuid;

/// Leaves of an adopted volume built in one tick.
const LEAVES_PER_TICK: u64 = 64;
/// Slots of a cold tier at most: what a map entry can name.
const COLD_SLOTS_MAX: u64 = (1 << 34) - 2;

/// How a pool is to grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Growth {
    /// A device of the pool has so many bytes now.
    Larger {
        /// Which.
        device: DeviceId,
        /// Its size.
        size_bytes: u64,
    },
    /// A device joins; what it holds is lost. Its id is the number of devices so far. The caller must be able to find
    /// it again at the next opening before it asks for this: an opening that is given more devices than the pool has
    /// leaves the others alone.
    Add(DeviceSpec),
    /// A device joins the cold tier and its first `data_bytes` become a new volume, without being copied.
    Adopt {
        /// A fresh name for the device.
        uuid: Uuid,
        /// Bytes of the volume, a multiple of 512.
        data_bytes: u64,
        /// Bytes of the device, [`adopted_device_bytes`] at least: the superblocks go behind the data.
        size_bytes: u64,
    },
}

/// Bytes a device must have to be adopted with so many bytes of data.
pub fn adopted_device_bytes(data_bytes: u64) -> u64 {
    adopted_superblocks_at(data_bytes) + 2 * SUPERBLOCK_BYTES as u64
}

/// Where an adopted device with so many bytes of data has its superblocks.
pub fn adopted_superblocks_at(data_bytes: u64) -> u64 {
    data_bytes.next_multiple_of(UNIT_BYTES)
}

/// A growth that is done and survives a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grown {
    /// The device that grew or joined.
    pub device: DeviceId,
    /// Bytes of data it can hold more than before.
    pub more_bytes: u64,
    /// The volume that an adopted device holds.
    pub volume: Option<VolumeId>,
}

/// Why a pool could not grow. Nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrowError {
    /// The pool takes no changes.
    #[error("the pool is read-only: {0}")]
    ReadOnly(&'static str),
    /// One at a time.
    #[error("the pool is still growing: wait until that is done")]
    Running,
    /// No such device.
    #[error("the pool has no device {}", .0.0)]
    NoDevice(DeviceId),
    /// An adopted device keeps its size.
    #[error("device {} was adopted: it holds one volume and cannot grow", .0.0)]
    Adopted(DeviceId),
    /// Not larger than before.
    #[error(
        "device {} has {size_bytes} bytes and the pool uses {used_bytes} of them: there is no room for one more unit of {UNIT_BYTES}",
        device.0
    )]
    NotLarger {
        /// Which.
        device: DeviceId,
        /// Its size.
        size_bytes: u64,
        /// What is in use.
        used_bytes: u64,
    },
    /// No room for superblocks and one unit, or behind the data.
    #[error("a device of {size_bytes} bytes is too small: {needed} are needed")]
    TooSmall {
        /// Its size.
        size_bytes: u64,
        /// What is needed.
        needed: u64,
    },
    /// A volume of that size cannot be.
    #[error("{0} bytes cannot be adopted: give a multiple of 512 between 512 and {VOLUME_BYTES_MAX}")]
    Size(u64),
    /// A limit of the format.
    #[error("the pool cannot have more: {0}")]
    Limit(&'static str),
    /// The pool's metadata was laid out for less.
    #[error(
        "metadata space is fixed when a pool is made: with this, {fitting} map leaves fit, and volumes may need {wanted}; delete volumes first"
    )]
    Metadata {
        /// Leaves that would fit.
        fitting: u64,
        /// Leaves promised to volumes.
        wanted: u64,
    },
    /// The new device failed.
    #[error("device {} cannot be written", .0.0)]
    Io(DeviceId),
}

#[derive(Debug)]
pub(super) struct Growing {
    device: DeviceId,
    tier: Tier,
    segment: Segment,
    /// The superblock of a device that joins.
    joins: Option<Box<Superblock>>,
    volume: Option<VolumeId>,
    /// Units of the adopted volume still to be put into the map, from this one on.
    next_unit: u64,
    units: u64,
    /// The checkpoint that carries it has begun.
    begun: bool,
}

impl Store {
    /// Begins to grow. [`Store::next_grown`] says when it is done; waiting writes then go on by themselves.
    pub fn grow(&mut self, growth: Growth) -> Result<(), GrowError> {
        match self.read_only {
            Some(why) => return Err(GrowError::ReadOnly(why)),
            None if self.checkpoint.sealed => return Err(GrowError::ReadOnly("the pool is being closed")),
            None if self.growing.is_some() => return Err(GrowError::Running),
            None => {}
        }
        let growing = match growth {
            Growth::Larger { device, size_bytes } => self.larger(device, size_bytes)?,
            Growth::Add(spec) => self.joining(spec)?,
            Growth::Adopt { uuid, data_bytes, size_bytes } => self.adopting(uuid, data_bytes, size_bytes)?,
        };
        self.growing = Some(growing);
        self.pump();
        Ok(())
    }

    /// A growth is under way.
    pub fn is_growing(&self) -> bool {
        self.growing.is_some()
    }

    /// The next growth that is done, or failed.
    pub fn next_grown(&mut self) -> Option<Result<Grown, GrowError>> {
        self.grown.pop_front()
    }

    fn larger(&self, device: DeviceId, size_bytes: u64) -> Result<Growing, GrowError> {
        let known = self.devices.get(usize::from(device.0)).ok_or(GrowError::NoDevice(device))?;
        if known.block.member().superblocks_at != 0 {
            return Err(GrowError::Adopted(device));
        }
        let used_bytes = known.block.data_bytes_end();
        let more = size_bytes.saturating_sub(used_bytes) / UNIT_BYTES;
        if more == 0 {
            return Err(GrowError::NotLarger { device, size_bytes, used_bytes });
        }
        let segment = self.new_segment(known.tier, more)?;
        let goes_on =
            known.block.segments.last().is_some_and(|last| last.first + last.slots == segment.first);
        if !goes_on && known.block.segments.len() == SEGMENTS_MAX {
            return Err(GrowError::Limit("the device has grown too often"));
        }
        Ok(Growing::of(device, known.tier, segment))
    }

    fn joining(&self, spec: DeviceSpec) -> Result<Growing, GrowError> {
        let slots = (spec.size_bytes / UNIT_BYTES).saturating_sub(1);
        if slots == 0 {
            return Err(GrowError::TooSmall { size_bytes: spec.size_bytes, needed: 2 * UNIT_BYTES });
        }
        let member = Member { uuid: spec.uuid, tier: spec.tier, superblocks_at: 0 };
        self.joins(member, UNIT_BYTES, slots)
    }

    fn adopting(&mut self, uuid: Uuid, data_bytes: u64, size_bytes: u64) -> Result<Growing, GrowError> {
        if data_bytes == 0 || data_bytes > VOLUME_BYTES_MAX || !data_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(GrowError::Size(data_bytes));
        }
        let needed = adopted_device_bytes(data_bytes);
        if size_bytes < needed {
            return Err(GrowError::TooSmall { size_bytes, needed });
        }
        let units = data_bytes.div_ceil(UNIT_BYTES);
        let member = Member { uuid, tier: Tier::Cold, superblocks_at: units * UNIT_BYTES };
        let growing = self.joins(member, 0, units)?;
        let (fitting, wanted) = (self.leaves_max(), self.leaves_promised() + units.div_ceil(LEAF_ENTRIES));
        if wanted > fitting {
            return Err(GrowError::Metadata { fitting, wanted });
        }
        let volume = self.new_id();
        self.map.create_at_home(volume, data_bytes, growing.segment.first);
        Ok(Growing { volume: Some(volume), units, ..growing })
    }

    fn joins(&self, member: Member, data_offset: u64, slots: u64) -> Result<Growing, GrowError> {
        if self.devices.len() == DEVICES_MAX {
            return Err(GrowError::Limit("it has the most devices already"));
        }
        let device = DeviceId(self.devices.len() as u8);
        let segment = self.new_segment(member.tier, slots)?;
        let mut block = self.devices[0].block.clone();
        block.devices.push(member);
        block.index = device.0;
        block.generation = 1;
        (block.data_offset, block.segments) = (data_offset, vec![segment]);
        Ok(Growing { joins: Some(Box::new(block)), ..Growing::of(device, member.tier, segment) })
    }

    fn new_segment(&self, tier: Tier, slots: u64) -> Result<Segment, GrowError> {
        let first = self.layout.slots(tier);
        let most = if tier == Tier::Hot { u64::from(u32::MAX) - 1 } else { COLD_SLOTS_MAX };
        if first.saturating_add(slots) > most {
            return Err(GrowError::Limit("slots of one tier are counted with fewer bits"));
        }
        if tier == Tier::Hot {
            let block = &self.devices[0].block;
            let fitting = leaves_fitting(block.area_bytes, first + slots).min(block.leaves_max);
            let wanted = self.leaves_promised();
            if wanted > fitting {
                return Err(GrowError::Metadata { fitting, wanted });
            }
        }
        Ok(Segment { first, slots })
    }

    /// The volume that is being adopted: nobody sees it yet.
    pub(super) fn unseen(&self) -> Option<VolumeId> {
        self.growing.as_ref().and_then(|growing| growing.volume)
    }

    /// Hot slots that are there or are coming.
    pub(super) fn hot_slots_to_be(&self) -> u64 {
        let coming = self.growing.as_ref().filter(|growing| growing.tier == Tier::Hot);
        self.layout.slots(Tier::Hot) + coming.map_or(0, |growing| growing.segment.slots)
    }

    /// Puts some more units of an adopted volume into the map.
    pub(super) fn build_adopted(&mut self) {
        let Some(Growing { volume: Some(volume), next_unit, units, segment, .. }) = &mut self.growing else {
            return;
        };
        let until = (*next_unit + LEAVES_PER_TICK * LEAF_ENTRIES).min(*units);
        for unit in *next_unit..until {
            self.map.set(*volume, unit, Entry::new(segment.first + unit, self.map.epoch));
        }
        *next_unit = until;
    }

    pub(super) fn pump_growth(&mut self) {
        let ready = |growing: &Growing| !growing.begun && growing.next_unit == growing.units;
        if self.growing.as_ref().is_some_and(ready) {
            self.start_checkpoint(false);
        }
    }

    /// A checkpoint begins: true if it carries the growth.
    pub(super) fn growth_begins(&mut self) -> bool {
        match &mut self.growing {
            Some(growing) if !growing.begun && growing.next_unit == growing.units => {
                growing.begun = true;
                true
            }
            _ => false,
        }
    }

    /// The dump is stable; superblocks follow. True if a device joins: its own are written first.
    pub(super) fn growth_in_superblocks(&mut self, at: crate::superblock::CheckpointAt) -> bool {
        let Some(growing) = self.growing.as_mut().filter(|growing| growing.begun) else { return false };
        let Some(mut block) = growing.joins.take() else {
            let segment = growing.segment;
            let segments = &mut self.devices[usize::from(growing.device.0)].block.segments;
            match segments.last_mut() {
                Some(last) if last.first + last.slots == segment.first => last.slots += segment.slots,
                _ => segments.push(segment),
            }
            return false;
        };
        let (id, tier, member) = (growing.device, growing.tier, block.member());
        block.checkpoint = at;
        block.epoch = self.devices[0].block.epoch;
        let mut copies = Vec::new();
        for generation in 1..=2 {
            block.generation = generation;
            copies.push((block.place(), block.encode()));
        }
        for device in &mut self.devices {
            device.block.devices.push(member);
        }
        let joined =
            Device { block: *block, tier, unflushed: false, present: false, probed: false, lost: false };
        self.devices.push(joined);
        for (offset, bytes) in copies {
            let len = bytes.len() as u32;
            let buffer = Buffer::Meta { index: self.meta.insert(bytes), offset: 0 };
            self.emit(id, ActionKind::Write, offset, len, buffer, Owner::Checkpoint);
        }
        true
    }

    /// The joining device cannot be written: the pool goes on without it, and without the checkpoint that names it.
    pub(super) fn growth_failed(&mut self) {
        let growing = self.growing.take().expect("a device was joining");
        self.devices.pop();
        for device in &mut self.devices {
            device.block.devices.pop();
        }
        if let Some(leaves) = growing.volume.and_then(|volume| self.map.delete(volume)) {
            // Its extents never were slots of the pool.
            leaves.into_iter().for_each(|leaf| self.map.release_leaf(leaf, &mut Vec::new()));
        }
        self.grown.push_back(Err(GrowError::Io(growing.device)));
    }

    /// All superblocks name the new space.
    pub(super) fn growth_done(&mut self) {
        if !self.growing.as_ref().is_some_and(|growing| growing.begun) {
            return;
        }
        let Growing { device, tier, segment, volume, .. } = self.growing.take().expect("it was just seen");
        self.devices[usize::from(device.0)].present = true;
        self.layout = super::layout::Layout::of(&self.devices);
        match tier {
            Tier::Hot => {
                let slots = self.layout.slots(Tier::Hot) as u32;
                self.hot.grow(slots);
                self.policy.grow(slots);
                self.windows.grow(slots);
            }
            Tier::Cold if volume.is_some() => self.allocator.extend_home(segment.slots, true),
            Tier::Cold => self.allocator.extend(segment.slots),
        }
        self.grown.push_back(Ok(Grown { device, more_bytes: segment.slots * UNIT_BYTES, volume }));
        self.room_wanted = true;
        self.retry_room_waiters();
    }
}

impl Growing {
    fn of(device: DeviceId, tier: Tier, segment: Segment) -> Growing {
        Growing { device, tier, segment, joins: None, volume: None, next_unit: 0, units: 0, begun: false }
    }
}
