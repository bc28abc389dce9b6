//! Making a pool and opening it.
//!
//! Opening reads superblocks, one checkpoint and the journal behind it: its time is bounded by the metadata (8 bytes for
//! each 64 KiB that is mapped, and the journal's size), whatever the devices hold. It uses blocking I/O: it
//! happens once, before the first request.

use super::{Device, Stats, Store, checkpoint, commit};
use crate::alloc::Allocator;
use crate::checkpoint::{CHUNK_BYTES, Content, area_bytes, read};
use crate::hash::{FastMap, FastSet};
use crate::hot::Directory;
use crate::journal::{BLOCK_BYTES, BlockHeader, Cursor, Record, Replay, encode_block, replay};
use crate::map::{LEAF_ENTRIES, Map};
use crate::policy::window::Windows;
use crate::slab::Slab;
use crate::superblock::{CheckpointAt, DEVICES_MAX, SUPERBLOCK_BYTES, Superblock};
use crate::types::*;
use std::collections::{BTreeMap, VecDeque};
use uuid::Uuid;

/// Devices as opening and formatting need them, in the order of the pool: hot ones first.
pub trait BlockingIo {
    /// Whether the device is there.
    fn present(&self, device: DeviceId) -> bool;
    /// Reads all of `into`.
    fn read(&mut self, device: DeviceId, offset: u64, into: &mut [u8]) -> Result<(), IoError>;
    /// Writes all of `bytes`.
    fn write(&mut self, device: DeviceId, offset: u64, bytes: &[u8]) -> Result<(), IoError>;
    /// Makes what was written stable.
    fn flush(&mut self, device: DeviceId) -> Result<(), IoError>;
}

/// A device of a new pool.
#[derive(Debug, Clone, Copy)]
pub struct DeviceSpec {
    /// A fresh name for it.
    pub uuid: Uuid,
    /// Its tier.
    pub tier: Tier,
    /// Its size.
    pub size_bytes: u64,
}

/// A new pool.
#[derive(Debug, Clone)]
pub struct FormatSpec {
    /// A fresh name for it.
    pub pool: Uuid,
    /// Hot devices, then cold ones.
    pub devices: Vec<DeviceSpec>,
    /// Size of the journal; at least 64 blocks of 4 KiB.
    pub journal_bytes: u64,
    /// Map leaves to set metadata space aside for; each maps 32 MiB.
    pub leaves_max: u64,
}

impl FormatSpec {
    /// A pool with the usual shares: a journal of 1/64 of the first hot device (256 KiB to 64 MiB), and leaves
    /// for four times the cold tier.
    pub fn usual(pool: Uuid, devices: Vec<DeviceSpec>) -> Self {
        let cold: u64 = devices.iter().filter(|d| d.tier == Tier::Cold).map(|d| d.size_bytes).sum();
        let hot = devices.first().map_or(0, |device| device.size_bytes);
        let journal_bytes = (hot / 64).clamp(256 << 10, 64 << 20).next_multiple_of(BLOCK_BYTES as u64);
        let fits = hot / 32 / (LEAF_ENTRIES * 8);
        let leaves_max = (cold / (UNIT_BYTES * LEAF_ENTRIES) * 4).max(fits.min(40_000)).max(64);
        FormatSpec { pool, devices, journal_bytes, leaves_max }
    }
}

/// How to open.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Numbers to work with.
    pub tuning: Tuning,
    /// Open read-only without the hot tier although data was only there.
    pub degraded: bool,
    /// The time now, ns, of the clock that `tick` goes by.
    pub now_ns: u64,
}

/// Data that was on a lost hot tier only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// The volume.
    pub volume: VolumeId,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// Why a pool could not be made or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// An unusable set of devices.
    #[error(
        "a pool needs one or more hot devices and then one or more cold ones, {DEVICES_MAX} at most; given were {hot} hot and {cold} cold"
    )]
    Devices {
        /// Hot ones.
        hot: usize,
        /// Cold ones.
        cold: usize,
    },
    /// No room.
    #[error(
        "device {device} has {size_bytes} bytes: metadata needs {needed}, and at least one unit of {UNIT_BYTES} must be left"
    )]
    TooSmall {
        /// Which.
        device: usize,
        /// Its size.
        size_bytes: u64,
        /// What metadata needs.
        needed: u64,
    },
    /// The device failed.
    #[error("device {0} cannot be read or written")]
    Io(usize),
    /// No superblock.
    #[error("device {0} does not belong to a pool, or both its superblocks are damaged")]
    NotAMember(usize),
    /// Another pool's device, or at another place.
    #[error("device {device} belongs to pool {pool} at place {place}")]
    Foreign {
        /// Where it was given.
        device: usize,
        /// Its pool.
        pool: Uuid,
        /// Its place.
        place: u8,
    },
    /// The pool went on without it.
    #[error(
        "device {device} is of opening {its_epoch}, the pool of {epoch}: it is an old copy and must not be used"
    )]
    Outdated {
        /// Which.
        device: usize,
        /// Its epoch.
        its_epoch: u64,
        /// The pool's.
        epoch: u64,
    },
    /// Devices are missing.
    #[error("cold device {0} is missing: its data is nowhere else")]
    ColdMissing(usize),
    /// The hot tier is missing and was not drained.
    #[error(
        "the hot tier is missing and was not written back: {units} units known to be only there, and whatever changed since the last checkpoint; open degraded to read the rest"
    )]
    HotMissing {
        /// Units the cold checkpoint knows to be lost.
        units: usize,
    },
    /// Both copies of the checkpoint are damaged.
    #[error("checkpoint {0} is damaged on both tiers")]
    Checkpoint(u64),
    /// The journal says what cannot be.
    #[error("journal record {lsn} contradicts the state before it")]
    Journal {
        /// Which record.
        lsn: u64,
    },
}

/// Writes a new pool to its devices. Whatever was there is gone.
pub fn format(io: &mut dyn BlockingIo, spec: &FormatSpec) -> Result<(), OpenError> {
    let hot = spec.devices.iter().take_while(|device| device.tier == Tier::Hot).count();
    let cold = spec.devices.len() - hot;
    let mixed = spec.devices[hot..].iter().any(|device| device.tier == Tier::Hot);
    if hot == 0 || cold == 0 || spec.devices.len() > DEVICES_MAX || mixed {
        return Err(OpenError::Devices { hot, cold });
    }
    let superblocks = 2 * SUPERBLOCK_BYTES as u64;
    let hot_slots: u64 = spec.devices[..hot].iter().map(|device| device.size_bytes / UNIT_BYTES).sum();
    let area = area_bytes(spec.leaves_max, hot_slots);
    let journal_bytes = spec.journal_bytes.max(64 * BLOCK_BYTES as u64).next_multiple_of(BLOCK_BYTES as u64);
    for (index, device) in spec.devices.iter().enumerate() {
        let journal = if index == 0 { journal_bytes } else { 0 };
        let areas = if index == 0 || index == hot { 2 * area } else { 0 };
        let data_offset = (superblocks + journal + areas).next_multiple_of(UNIT_BYTES);
        let slots = device.size_bytes.saturating_sub(data_offset) / UNIT_BYTES;
        if slots == 0 {
            let (size_bytes, needed) = (device.size_bytes, data_offset);
            return Err(OpenError::TooSmall { device: index, size_bytes, needed });
        }
        let block = Superblock {
            pool: spec.pool,
            devices: spec.devices.iter().map(|device| device.uuid).collect(),
            hot_devices: hot as u8,
            index: index as u8,
            excluded: 0,
            generation: 1,
            epoch: 0,
            data_offset,
            slots,
            journal_offset: superblocks,
            journal_blocks: journal_bytes / BLOCK_BYTES as u64,
            area_offset: superblocks + journal,
            area_bytes: area,
            leaves_max: spec.leaves_max,
            checkpoint: CheckpointAt {
                journal: Cursor { lsn: 1, ..Cursor::default() },
                ..CheckpointAt::default()
            },
        };
        let id = DeviceId(index as u8);
        let failed = |_| OpenError::Io(index);
        io.write(id, SUPERBLOCK_BYTES as u64 - block.place(), &[0; SUPERBLOCK_BYTES]).map_err(failed)?;
        io.write(id, block.place(), &block.encode()).map_err(failed)?;
        io.flush(id).map_err(failed)?;
    }
    Ok(())
}

/// The superblocks of the devices that are there, in the pool's order.
fn superblocks(io: &mut dyn BlockingIo) -> Result<Vec<Option<Superblock>>, OpenError> {
    let mut found: Vec<Option<Superblock>> = Vec::new();
    let mut count = DEVICES_MAX;
    let mut at = 0;
    while at < count {
        let id = DeviceId(at as u8);
        if !io.present(id) {
            found.push(None);
            at += 1;
            continue;
        }
        let mut bytes = vec![0; 2 * SUPERBLOCK_BYTES];
        io.read(id, 0, &mut bytes).map_err(|_| OpenError::Io(at))?;
        let (first, second) = bytes.split_at(SUPERBLOCK_BYTES);
        let block = Superblock::newest(first, second).ok_or(OpenError::NotAMember(at))?;
        let stranger =
            found.iter().flatten().any(|other| other.pool != block.pool || other.devices != block.devices);
        if stranger || usize::from(block.index) != at {
            return Err(OpenError::Foreign { device: at, pool: block.pool, place: block.index });
        }
        count = block.devices.len();
        found.push(Some(block));
        at += 1;
    }
    found.truncate(count);
    if found.iter().flatten().next().is_none() {
        return Err(OpenError::NotAMember(0));
    }
    Ok(found)
}

/// An old copy of a device must not come back: superblocks are written hot first, so along the pool's order the epoch
/// falls by one at most, and only once (a crash between the writes).
fn check_epochs(blocks: &[Option<Superblock>]) -> Result<(), OpenError> {
    let epoch = blocks.iter().flatten().map(|block| block.epoch).max().unwrap_or(0);
    let mut above = epoch;
    for (device, block) in blocks.iter().enumerate() {
        let Some(block) = block else { continue };
        let fits = block.epoch <= above && block.epoch + 1 >= epoch && block.excluded == 0;
        if !fits {
            return Err(OpenError::Outdated { device, its_epoch: block.epoch, epoch });
        }
        above = block.epoch;
    }
    Ok(())
}

fn load_content(
    io: &mut dyn BlockingIo,
    block: &Superblock,
    cold: Option<&Superblock>,
) -> Result<Content, OpenError> {
    let at = block.checkpoint;
    if at.id == 0 {
        return Ok(Content { next_volume: 1, ..Content::default() });
    }
    // The same bytes are on both tiers: one damaged copy does no harm.
    for source in [Some(block), cold].into_iter().flatten() {
        let fits = at.len <= source.area_bytes && at.len <= usize::MAX as u64 && at.len > 0;
        let mut bytes = vec![0; if fits { at.len as usize } else { CHUNK_BYTES }];
        let found = io.read(DeviceId(source.index), source.area(at.id), &mut bytes);
        if let Some(content) = found.ok().and_then(|()| read(&bytes, at.id)) {
            return Ok(content);
        }
    }
    Err(OpenError::Checkpoint(at.id))
}

/// The state in memory while it is being put together.
struct Loading {
    map: Map,
    allocator: Allocator,
    hot: Directory,
    freed: Vec<Extent>,
    next_volume: u32,
}

impl Loading {
    fn from_content(content: Content, cold_slots: u64, hot_slots: u32) -> Option<Loading> {
        let mut loading = Loading {
            map: Map::at_epoch(content.epoch),
            allocator: Allocator::new(cold_slots),
            hot: Directory::new(hot_slots),
            freed: Vec::new(),
            next_volume: content.next_volume.max(1),
        };
        let mut refs: FastMap<u32, u32> = FastMap::default();
        for leaf in
            content.volumes.values().flat_map(|volume| &volume.top).filter_map(|leaf| leaf.checked_sub(1))
        {
            *refs.entry(leaf).or_insert(0) += 1;
        }
        for (id, volume) in content.volumes {
            loading.map.insert(id, volume);
        }
        let mut twice = Vec::new();
        let mut bad = false;
        for (leaf, entries) in content.leaves {
            let allocator = &mut loading.allocator;
            let refs = refs.get(&leaf).copied()?;
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

    fn apply(&mut self, record: Record) -> Option<()> {
        match record {
            Record::Map { volume, unit, entry } => {
                let known = self.map.volume(volume)?;
                if unit >= known.units()
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
                if self.map.volume(id).is_some() || size_bytes > VOLUME_BYTES_MAX {
                    return None;
                }
                self.map.create(id, size_bytes);
                self.next_volume = self.next_volume.max(id.0.checked_add(1)?);
            }
            Record::Resize { id, size_bytes } => {
                let known = self.map.volume(id)?;
                if size_bytes > VOLUME_BYTES_MAX || size_bytes < known.size_bytes {
                    return None;
                }
                self.map.resize(id, size_bytes);
            }
            Record::Fork { from, to, writable } => {
                if self.map.volume(to).is_some() || !self.map.fork(from, to, writable) {
                    return None;
                }
                self.next_volume = self.next_volume.max(to.0.checked_add(1)?);
            }
            Record::Delete { id } => {
                for leaf in self.map.delete(id)? {
                    self.map.release_leaf(leaf, &mut self.freed);
                }
            }
            Record::SetPin { id, pin } => self.map.set_pin(id, pin),
            Record::Void { .. } => {}
        }
        Some(())
    }
}

impl Store {
    /// Opens a pool. Nothing is written to any device when it fails before the state is understood, nor when the
    /// pool is opened without its hot tier.
    pub fn open(io: &mut dyn BlockingIo, options: OpenOptions) -> Result<Store, OpenError> {
        let blocks = superblocks(io)?;
        check_epochs(&blocks)?;
        let hot_devices = usize::from(blocks.iter().flatten().next().expect("one was found").hot_devices);
        if let Some(missing) = (hot_devices..blocks.len()).find(|at| blocks[*at].is_none()) {
            return Err(OpenError::ColdMissing(missing));
        }
        let hot_missing = blocks[..hot_devices].iter().any(Option::is_none);
        let cold_block = blocks[hot_devices].clone().expect("no cold device is missing");
        let chief = blocks[0].clone().filter(|_| !hot_missing).unwrap_or_else(|| cold_block.clone());
        let content = load_content(io, &chief, (!hot_missing).then_some(&cold_block))?;
        let slots =
            |range: &[Option<Superblock>]| range.iter().flatten().map(|block| block.slots).sum::<u64>();
        let cold_slots = slots(&blocks[hot_devices..]);
        let hot_slots = if hot_missing {
            content.hot.iter().map(|(slot, _)| slot + 1).max().unwrap_or(0)
        } else {
            u32::try_from(slots(&blocks[..hot_devices])).map_err(|_| OpenError::NotAMember(0))?
        };
        let damaged = OpenError::Checkpoint(chief.checkpoint.id);
        let loading = Loading::from_content(content, cold_slots, hot_slots).ok_or(damaged)?;
        if hot_missing {
            return Self::without_hot(blocks, hot_devices, &chief, loading, options);
        }
        Self::with_journal(io, blocks, hot_devices, loading, options)
    }

    fn with_journal(
        io: &mut dyn BlockingIo,
        blocks: Vec<Option<Superblock>>,
        hot_devices: usize,
        mut loading: Loading,
        options: OpenOptions,
    ) -> Result<Store, OpenError> {
        let chief = blocks[0].clone().expect("the first hot device is there");
        let mut ring = vec![0; chief.journal_blocks as usize * BLOCK_BYTES];
        io.read(DeviceId(0), chief.journal_offset, &mut ring).map_err(|_| OpenError::Io(0))?;
        let (pool, boot) = (chief.pool.as_u64_pair().0, options.tuning.boot.as_u64_pair().0);
        let Replay { records, refused, end } = replay(&ring, chief.checkpoint.journal, pool, boot);
        drop(ring);
        for (lsn, record) in records.into_iter().filter(|(lsn, _)| *lsn > chief.checkpoint.lsn) {
            loading.apply(record).ok_or(OpenError::Journal { lsn })?;
        }
        let freed: FastSet<Extent> = loading.freed.iter().copied().collect();
        let allocator = &loading.allocator;
        let orphans = loading.hot.load_done(|extent| allocator.is_taken(extent) && !freed.contains(&extent));
        let commit = commit::Commit::new(end, chief.checkpoint.journal.sequence);
        let mut store = Self::assemble(blocks, hot_devices, loading, commit, options);
        if let Some((first, last)) = refused {
            store.record(Record::Void { first, last });
        }
        for slot in orphans {
            let lsn = store.record(Record::Hot { slot, state: None });
            store.freed_hot.push((lsn, slot));
        }
        store.settle(io)?;
        Ok(store)
    }

    /// Makes what was found firm, and the opening known to all devices.
    fn settle(&mut self, io: &mut dyn BlockingIo) -> Result<(), OpenError> {
        for at in 0..self.devices.len() {
            io.flush(DeviceId(at as u8)).map_err(|_| OpenError::Io(at))?;
        }
        let chief = self.devices[0].block.clone();
        // The first block says what is void: it goes first. Its own records point to no data, so they are firm too.
        let records: Vec<Record> = self.commit.take_pending();
        let firm_lsn = self.commit.cursor.lsn - 1 + records.len() as u64;
        let header = BlockHeader { pool: self.pool_tag(), boot: self.boot_tag(), firm_lsn };
        let mut bytes = Vec::new();
        let first = self.commit.cursor.sequence;
        encode_block(&mut self.commit.cursor, header, &records, &mut bytes);
        let offset = chief.journal_offset + first % chief.journal_blocks * BLOCK_BYTES as u64;
        io.write(DeviceId(0), offset, &bytes).map_err(|_| OpenError::Io(0))?;
        io.flush(DeviceId(0)).map_err(|_| OpenError::Io(0))?;
        self.commit.opened();
        self.release_hot();
        for at in 0..self.devices.len() {
            let block = &mut self.devices[at].block;
            block.generation += 1;
            block.epoch = chief.epoch + 1;
            block.checkpoint = CheckpointAt { clean: false, ..chief.checkpoint };
            let failed = |_| OpenError::Io(at);
            io.write(DeviceId(at as u8), block.place(), &block.encode()).map_err(failed)?;
            io.flush(DeviceId(at as u8)).map_err(failed)?;
        }
        Ok(())
    }

    /// Read-only, from the cold tier's checkpoint.
    fn without_hot(
        blocks: Vec<Option<Superblock>>,
        hot_devices: usize,
        chief: &Superblock,
        mut loading: Loading,
        options: OpenOptions,
    ) -> Result<Store, OpenError> {
        let mut lost = FastMap::default();
        for slot in 0..loading.hot.slots() {
            if let Some(state) =
                loading.hot.slot(slot).state().filter(|state| state.dirty != 0 || state.fresh)
            {
                lost.insert(state.extent, if state.fresh { ALL_PAGES } else { state.dirty });
            }
        }
        if !chief.checkpoint.clean && !options.degraded {
            return Err(OpenError::HotMissing { units: lost.len() });
        }
        loading.hot = Directory::new(0);
        let commit = commit::Commit::new(Cursor { lsn: 1, ..Cursor::default() }, 0);
        let mut store = Self::assemble(blocks, hot_devices, loading, commit, options);
        store.lost = lost;
        store.fail("it was opened without its hot tier");
        Ok(store)
    }

    fn assemble(
        blocks: Vec<Option<Superblock>>,
        hot_devices: usize,
        loading: Loading,
        commit: commit::Commit,
        options: OpenOptions,
    ) -> Store {
        let template = blocks.iter().flatten().next().cloned().expect("one was found");
        let mut first_slots = [0, 0];
        let mut devices = Vec::new();
        for (at, block) in blocks.into_iter().enumerate() {
            let tier = if at < hot_devices { Tier::Hot } else { Tier::Cold };
            let present = block.is_some();
            let block = block.unwrap_or_else(|| Superblock { slots: 0, index: at as u8, ..template.clone() });
            let first = &mut first_slots[usize::from(tier == Tier::Cold)];
            let first_slot = *first;
            *first += block.slots;
            devices.push(Device { block, tier, first_slot, unflushed: false, present });
        }
        let Loading { map, allocator, hot, freed, next_volume } = loading;
        let tuning = options.tuning;
        let mut policy = tuning.policy.build(hot.slots());
        for slot in 0..hot.slots() {
            if let Some(extent) = hot.slot(slot).extent() {
                policy.insert(slot, extent);
            }
        }
        Store {
            windows: Windows::new(tuning.stream_bypass_bytes),
            requests: (0..tuning.requests_max).map(|_| None).collect(),
            scratch_free: (0..tuning.scratch_buffers).rev().collect(),
            tokens: tuning.group_bytes,
            tuning,
            broken: None,
            devices,
            map,
            allocator,
            hot,
            policy,
            done: VecDeque::new(),
            acts: Slab::new(),
            ready: VecDeque::new(),
            jobs: Slab::new(),
            meta: Slab::new(),
            locks: FastMap::default(),
            slot_waiters: FastMap::default(),
            firm_waiters: Vec::new(),
            scratch_waiters: VecDeque::new(),
            room_waiters: VecDeque::new(),
            ack_waiters: Vec::new(),
            cold_writers: FastMap::default(),
            unfirm_demotions: FastMap::default(),
            unwritten: FastMap::default(),
            unshared_lsn: 0,
            commit,
            checkpoint: checkpoint::Progress::default(),
            freed_cold: freed.into_iter().map(|extent| (0, extent)).collect(),
            cooling: Vec::new(),
            freed_hot: Vec::new(),
            generation: 1,
            generations: BTreeMap::new(),
            dying_leaves: Vec::new(),
            forks: Vec::new(),
            forks_done: VecDeque::new(),
            writes_in_flight: FastMap::default(),
            held_requests: VecDeque::new(),
            lost: FastMap::default(),
            read_only: None,
            write_backs_running: 0,
            write_back_after_ns: 0,
            draining: false,
            room_wanted: true,
            next_volume,
            now_ns: options.now_ns,
            stats: Stats::default(),
        }
    }

    /// What cannot be read because it was only on a lost hot tier.
    pub fn lost(&self) -> Vec<Lost> {
        let mut found = Vec::new();
        if self.lost.is_empty() {
            return found;
        }
        for (id, volume) in self.map.volumes() {
            for unit in 0..volume.units() {
                let extent = self.map.get(volume, unit).extent();
                let Some(pages) = extent.and_then(|extent| self.lost.get(&extent)) else { continue };
                found.extend(runs(*pages).map(|(first, count)| Lost {
                    volume: id,
                    offset: unit * UNIT_BYTES + u64::from(first) * PAGE_BYTES,
                    len: u64::from(count) * PAGE_BYTES,
                }));
            }
        }
        found
    }
}
