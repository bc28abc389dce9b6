//! Making a pool and opening it.
//!
//! Opening reads superblocks, one checkpoint and the journal behind it: its time is bounded by the metadata (8 bytes for
//! each 64 KiB that is mapped, and the journal's size), whatever the devices hold. It uses blocking I/O: it
//! happens once, before the first request.

use super::layout::Layout;
use super::load::{ColdSlots, Loading, only_hot};
use super::lost::{Lost, Ranges};
use super::{Device, Stats, Store, checkpoint, commit, damaged};
use crate::checkpoint::{Content, area_bytes, read};
use crate::hash::{FastMap, FastSet};
use crate::journal::{BLOCK_BYTES, BlockHeader, Cursor, Record, Replay, encode_block, replay};
use crate::map::LEAF_ENTRIES;
use crate::policy::window::Windows;
use crate::slab::Slab;
use crate::superblock::{CheckpointAt, DEVICES_MAX, Member, SUPERBLOCK_BYTES, Segment, Superblock};
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

/// A device of a new pool, or one that joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// A pool with the usual shares: a journal of 1/64 of the first hot device (256 KiB to 64 MiB), and leaves for four
    /// times the cold tier, or for 40 000 (1250 GiB of volumes and clones) as far as their areas take no more than an
    /// eighth of a hot device of a GiB or more, a sixteenth of a smaller one.
    pub fn usual(pool: Uuid, devices: Vec<DeviceSpec>) -> Self {
        let cold: u64 = devices.iter().filter(|d| d.tier == Tier::Cold).map(|d| d.size_bytes).sum();
        let hot = devices.first().map_or(0, |device| device.size_bytes);
        let journal_bytes = (hot / 64).clamp(256 << 10, 64 << 20).next_multiple_of(BLOCK_BYTES as u64);
        // There are two areas.
        let share = if hot < 1 << 30 { 32 } else { 16 };
        let fits = hot / share / (LEAF_ENTRIES * 8);
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
    /// A device is shorter than it was.
    #[error("device {device} ends before byte {needed}: it was cut short, and what was there is lost")]
    Short {
        /// Which.
        device: usize,
        /// How long it must be.
        needed: u64,
    },
    /// Superblocks that contradict each other.
    #[error("device {0} has a superblock that contradicts those of the others")]
    Layout(usize),
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
        "the hot tier is missing and was not written back: {units} units known to be only there ({}), and whatever changed since the last checkpoint; open degraded to read the rest",
        Ranges(lost)
    )]
    HotMissing {
        /// Units the cold checkpoint knows to be lost.
        units: usize,
        /// Where they are.
        lost: Vec<Lost>,
    },
    /// Both copies of the checkpoint are damaged.
    #[error("checkpoint {0} is damaged on both tiers")]
    Checkpoint(u64),
    /// Blocks of the journal that were flushed are damaged.
    #[error(
        "{} blocks of the journal on device 0 are damaged, from byte {} on, although later ones show that they were flushed: at least {records_lost} changes that were promised are lost, and these ranges cannot be read: {}; open degraded to read the rest as it was before",
        blocks.len(), blocks.first().unwrap_or(&0), Ranges(lost)
    )]
    JournalDamaged {
        /// Where they are, in bytes on the first hot device.
        blocks: Vec<u64>,
        /// Records known to have been in them.
        records_lost: u64,
        /// What is known to be lost.
        lost: Vec<Lost>,
    },
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
    let member = |device: &DeviceSpec| Member { uuid: device.uuid, tier: device.tier, superblocks_at: 0 };
    let mut next_slot = [0, 0];
    for (index, device) in spec.devices.iter().enumerate() {
        let journal = if index == 0 { journal_bytes } else { 0 };
        let areas = if index == 0 || index == hot { 2 * area } else { 0 };
        let data_offset = (superblocks + journal + areas).next_multiple_of(UNIT_BYTES);
        let slots = device.size_bytes.saturating_sub(data_offset) / UNIT_BYTES;
        if slots == 0 {
            let (size_bytes, needed) = (device.size_bytes, data_offset);
            return Err(OpenError::TooSmall { device: index, size_bytes, needed });
        }
        let next = &mut next_slot[usize::from(device.tier == Tier::Cold)];
        let segment = Segment { first: *next, slots };
        *next += slots;
        let block = Superblock {
            pool: spec.pool,
            devices: spec.devices.iter().map(member).collect(),
            index: index as u8,
            generation: 1,
            epoch: 0,
            data_offset,
            segments: vec![segment],
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

/// What the superblocks say.
pub(super) struct Members {
    /// The superblocks of the devices that are there, in the pool's order.
    pub(super) blocks: Vec<Option<Superblock>>,
    /// The one with the newest checkpoint: its list of devices counts.
    pub(super) chief: Superblock,
}

impl Members {
    pub(super) fn read(io: &mut dyn BlockingIo) -> Result<Members, OpenError> {
        let mut blocks: Vec<Option<Superblock>> = Vec::new();
        let mut known: Vec<Member> = Vec::new();
        while blocks.len() < DEVICES_MAX && (known.is_empty() || blocks.len() < known.len()) {
            let at = blocks.len();
            let id = DeviceId(at as u8);
            if !io.present(id) {
                blocks.push(None);
                continue;
            }
            let mut bytes = vec![0; 2 * SUPERBLOCK_BYTES];
            let from = known.get(at).map_or(0, |member| member.superblocks_at);
            io.read(id, from, &mut bytes).map_err(|_| OpenError::Io(at))?;
            let (first, second) = bytes.split_at(SUPERBLOCK_BYTES);
            let block = Superblock::newest(first, second).ok_or(OpenError::NotAMember(at))?;
            // A device that joins is written first: lists of different length agree in what they have in common.
            let agrees = block.devices.iter().zip(&known).all(|(a, b)| a == b);
            let stranger = blocks.iter().flatten().any(|other| other.pool != block.pool) || !agrees;
            if stranger || usize::from(block.index) != at {
                return Err(OpenError::Foreign { device: at, pool: block.pool, place: block.index });
            }
            if block.devices.len() > known.len() {
                known.clone_from(&block.devices);
            }
            blocks.push(Some(block));
        }
        let newest = blocks.iter().flatten().rev().max_by_key(|block| block.checkpoint.id);
        let chief = newest.ok_or(OpenError::NotAMember(0))?.clone();
        blocks.resize(chief.devices.len(), None);
        let members = Members { blocks, chief };
        members.check_epochs()?;
        members.check_layout(io)?;
        Ok(members)
    }

    pub(super) fn of(&self, tier: Tier) -> impl Iterator<Item = (usize, Option<&Superblock>)> {
        let all = self.chief.devices.iter().zip(&self.blocks).enumerate();
        all.filter(move |(_, (member, _))| member.tier == tier).map(|(at, (_, block))| (at, block.as_ref()))
    }

    /// An old copy of a device must not come back: superblocks are written hot first, so along that order the
    /// epoch falls by one at most, and only once (a crash between the writes).
    fn check_epochs(&self) -> Result<(), OpenError> {
        let epoch = self.blocks.iter().flatten().map(|block| block.epoch).max().unwrap_or(0);
        let mut above = epoch;
        for (device, block) in self.of(Tier::Hot).chain(self.of(Tier::Cold)) {
            let Some(block) = block else { continue };
            if block.epoch > above || block.epoch.saturating_add(1) < epoch {
                return Err(OpenError::Outdated { device, its_epoch: block.epoch, epoch });
            }
            above = block.epoch;
        }
        Ok(())
    }

    /// Every slot of a tier is on one device, and the devices are as long as they were.
    fn check_layout(&self, io: &mut dyn BlockingIo) -> Result<(), OpenError> {
        let first_cold = self.of(Tier::Cold).next().ok_or(OpenError::Layout(0))?.0;
        let first_hot = self.of(Tier::Hot).next().ok_or(OpenError::Layout(0))?.0;
        if first_hot != 0 {
            return Err(OpenError::Layout(first_hot));
        }
        for (tier, most) in [(Tier::Hot, u64::from(u32::MAX)), (Tier::Cold, 1 << 34)] {
            let mut segments: Vec<(Segment, usize)> = Vec::new();
            for (at, block) in self.of(tier) {
                let Some(block) = block else { continue };
                segments.extend(block.segments.iter().map(|segment| (*segment, at)));
            }
            segments.sort_unstable_by_key(|(segment, _)| segment.first);
            let whole = self.of(tier).all(|(_, block)| block.is_some());
            let mut next = 0;
            for (segment, at) in segments {
                let end = segment.first.checked_add(segment.slots).filter(|end| *end < most);
                if segment.first < next || (whole && segment.first != next) {
                    return Err(OpenError::Layout(at));
                }
                next = end.ok_or(OpenError::Layout(at))?;
            }
        }
        for (at, block) in self.blocks.iter().enumerate() {
            let Some(block) = block else { continue };
            let areas =
                block.area_bytes.checked_mul(2).and_then(|bytes| bytes.checked_add(block.area_offset));
            let journal = block.journal_blocks.checked_mul(BLOCK_BYTES as u64);
            let journal = journal.and_then(|bytes| bytes.checked_add(block.journal_offset));
            let mut needed = block.data_bytes_end();
            if at == first_hot {
                needed = needed.max(journal.ok_or(OpenError::Layout(at))?);
            }
            if at == first_hot || at == first_cold {
                needed = needed.max(areas.ok_or(OpenError::Layout(at))?);
            }
            let leaves_fit = block.leaves_max <= block.area_bytes / (LEAF_ENTRIES * 8);
            if !leaves_fit || needed < SECTOR_BYTES || !needed.is_multiple_of(SECTOR_BYTES) {
                return Err(OpenError::Layout(at));
            }
            let mut last = [0; SECTOR_BYTES as usize];
            let failed = |_| OpenError::Short { device: at, needed };
            io.read(DeviceId(at as u8), needed - SECTOR_BYTES, &mut last).map_err(failed)?;
        }
        Ok(())
    }

    /// The cold slots in their order.
    pub(super) fn cold_slots(&self) -> Vec<ColdSlots> {
        let of = |block: &Superblock| {
            let adopted = block.member().superblocks_at != 0;
            block.segments.iter().map(move |s| (s.first, ColdSlots { slots: s.slots, adopted })).collect()
        };
        let mut all: Vec<(u64, ColdSlots)> = self
            .of(Tier::Cold)
            .filter_map(|(_, block)| block.map(of))
            .flat_map(|part: Vec<_>| part)
            .collect();
        all.sort_unstable_by_key(|(first, _)| *first);
        all.into_iter().map(|(_, part)| part).collect()
    }
}

/// Slots of the hot devices that are there.
pub(super) fn hot_slots(members: &Members) -> u32 {
    members.of(Tier::Hot).filter_map(|(_, block)| block).map(Superblock::slots).sum::<u64>() as u32
}

/// Reads the checkpoint. The same bytes are on both tiers: one damaged copy does no harm.
pub(super) fn load_content(io: &mut dyn BlockingIo, members: &Members) -> Result<Content, OpenError> {
    let at = members.chief.checkpoint;
    if at.id == 0 {
        return Ok(Content { next_volume: 1, ..Content::default() });
    }
    for tier in [Tier::Hot, Tier::Cold] {
        let Some(source) = members.of(tier).next().and_then(|(_, block)| block) else { continue };
        if at.len == 0 || at.len > source.area_bytes {
            continue;
        }
        let mut bytes = vec![0; at.len as usize];
        let found = io.read(DeviceId(source.index), source.area(at.id), &mut bytes);
        if let Some(content) = found.ok().and_then(|()| read(&bytes, at.id, source.leaves_max)) {
            return Ok(content);
        }
    }
    Err(OpenError::Checkpoint(at.id))
}

impl Store {
    /// Opens a pool. Nothing is written to any device when it fails before the state is understood, nor when the
    /// pool is opened without its hot tier.
    pub fn open(io: &mut dyn BlockingIo, options: OpenOptions) -> Result<Store, OpenError> {
        let members = Members::read(io)?;
        if let Some((missing, _)) = members.of(Tier::Cold).find(|(_, block)| block.is_none()) {
            return Err(OpenError::ColdMissing(missing));
        }
        let content = load_content(io, &members)?;
        let damaged = OpenError::Checkpoint(members.chief.checkpoint.id);
        let (cold, leaves_max) = (members.cold_slots(), members.chief.leaves_max);
        if members.of(Tier::Hot).any(|(_, block)| block.is_none()) {
            let lost = only_hot(&content.hot);
            let content = Content { hot: Vec::new(), ..content };
            let loading = Loading::from_content(content, &cold, 0, leaves_max).ok_or(damaged)?;
            return Self::without_hot(members, loading, lost, options);
        }
        let slots = hot_slots(&members);
        let loading = Loading::from_content(content, &cold, slots, leaves_max).ok_or(damaged)?;
        Self::with_journal(io, members, loading, options)
    }

    fn with_journal(
        io: &mut dyn BlockingIo,
        members: Members,
        mut loading: Loading,
        options: OpenOptions,
    ) -> Result<Store, OpenError> {
        let chief = &members.chief;
        let (ring, unreadable) = damaged::read_ring(io, chief.journal_offset, chief.journal_blocks)?;
        let (pool, boot) = (chief.pool.as_u64_pair().0, options.tuning.boot.as_u64_pair().0);
        let Replay { records, refused, end, damage } = replay(&ring, chief.checkpoint.journal, pool, boot);
        drop(ring);
        for (lsn, record) in records.into_iter().filter(|(lsn, _)| *lsn > chief.checkpoint.lsn) {
            loading.apply(record).ok_or(OpenError::Journal { lsn })?;
        }
        let damage = damage.or_else(|| damaged::ends_unreadable(end, &unreadable, chief.journal_blocks));
        if let Some(damage) = damage {
            return Self::without_journal(members, loading, damage, options);
        }
        let freed: FastSet<Extent> = loading.freed.iter().copied().collect();
        let allocator = &loading.allocator;
        let orphans = loading.hot.load_done(|extent| allocator.is_taken(extent) && !freed.contains(&extent));
        let commit = commit::Commit::new(end, chief.checkpoint.journal.sequence);
        let mut store = Self::assemble(members, loading, commit, options);
        if let Some((first, last)) = refused {
            store.record(Record::Void { first, last });
        }
        for slot in orphans {
            let lsn = store.record(Record::Hot { slot, state: None });
            store.freed_hot.push((lsn, slot));
        }
        store.mark_pinned();
        store.carry_out_all_pins();
        store.settle(io)?;
        Ok(store)
    }

    /// Makes what was found firm, and the opening known to all devices.
    fn settle(&mut self, io: &mut dyn BlockingIo) -> Result<(), OpenError> {
        for at in 0..self.devices.len() {
            io.flush(DeviceId(at as u8)).map_err(|_| OpenError::Io(at))?;
        }
        let chief = self.devices[0].block.clone();
        let epoch = self.devices.iter().map(|device| device.block.epoch).max().unwrap_or(0) + 1;
        // The first block says what is void: it goes first. Its own records point to no data, so they are firm too.
        let records: Vec<Record> = self.commit.take_pending();
        let firm_lsn = self.commit.cursor.lsn - 1 + records.len() as u64;
        let first = self.commit.cursor.sequence;
        let header = BlockHeader { pool: self.pool_tag(), boot: self.boot_tag(), firm_lsn, stable: first };
        let mut bytes = Vec::new();
        encode_block(&mut self.commit.cursor, header, &records, &mut bytes);
        let offset = chief.journal_offset + first % chief.journal_blocks * BLOCK_BYTES as u64;
        io.write(DeviceId(0), offset, &bytes).map_err(|_| OpenError::Io(0))?;
        io.flush(DeviceId(0)).map_err(|_| OpenError::Io(0))?;
        self.commit.opened();
        self.release_hot();
        for at in self.hot_first() {
            let block = &mut self.devices[at].block;
            block.generation += 1;
            block.epoch = epoch;
            block.checkpoint = CheckpointAt { clean: false, ..chief.checkpoint };
            let failed = |_| OpenError::Io(at);
            io.write(DeviceId(at as u8), block.place(), &block.encode()).map_err(failed)?;
            io.flush(DeviceId(at as u8)).map_err(failed)?;
        }
        Ok(())
    }

    /// Read-only, from the cold tier's checkpoint.
    fn without_hot(
        members: Members,
        loading: Loading,
        lost: FastMap<Extent, PageMask>,
        options: OpenOptions,
    ) -> Result<Store, OpenError> {
        let (clean, degraded) = (members.chief.checkpoint.clean, options.degraded);
        let commit = commit::Commit::new(Cursor { lsn: 1, ..Cursor::default() }, 0);
        let mut store = Self::assemble(members, loading, commit, options);
        store.lost = lost;
        if !clean && !degraded {
            return Err(OpenError::HotMissing { units: store.lost.len(), lost: store.lost() });
        }
        store.fail("it was opened without its hot tier");
        Ok(store)
    }

    pub(super) fn assemble(
        members: Members,
        loading: Loading,
        commit: commit::Commit,
        options: OpenOptions,
    ) -> Store {
        let Members { blocks, chief } = members;
        let mut devices = Vec::new();
        for (at, block) in blocks.into_iter().enumerate() {
            let (tier, present) = (chief.devices[at].tier, block.is_some());
            // All superblocks go on from the newest checkpoint and list of devices.
            let mut block = block.unwrap_or_else(|| Superblock {
                segments: Vec::new(),
                index: at as u8,
                ..chief.clone()
            });
            block.checkpoint = chief.checkpoint;
            block.devices.clone_from(&chief.devices);
            devices.push(Device { block, tier, unflushed: false, present, probed: false, lost: false });
        }
        let Loading { map, allocator, hot, freed, next_volume, .. } = loading;
        let tuning = options.tuning;
        let mut policy = tuning.policy.build(hot.slots());
        for slot in 0..hot.slots() {
            if let Some(extent) = hot.slot(slot).extent() {
                policy.insert(slot, extent);
            }
        }
        Store {
            windows: Windows::new(tuning.stream_bypass_bytes, hot.slots()),
            requests: (0..tuning.requests_max).map(|_| None).collect(),
            scratch_free: (0..tuning.scratch_buffers).rev().collect(),
            budget: super::budget::Budget::new(&tuning, options.now_ns),
            tuning,
            broken: None,
            layout: Layout::of(&devices),
            devices,
            map,
            allocator,
            hot,
            policy,
            done: VecDeque::new(),
            acts: Slab::new(),
            ready: VecDeque::new(),
            jobs: Slab::new(),
            runs: Slab::new(),
            walks: VecDeque::new(),
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
            hot_lost: false,
            read_only: None,
            write_backs_running: 0,
            write_back_after_ns: 0,
            draining: false,
            room_wanted: true,
            next_volume,
            growing: None,
            grown: VecDeque::new(),
            now_ns: options.now_ns,
            stats: Stats::default(),
        }
    }
}
