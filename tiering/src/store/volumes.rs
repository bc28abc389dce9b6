//! Making, forking and deleting volumes, and what is known about them.

use super::Store;
use crate::checkpoint::leaves_fitting;
use crate::hash::FastMap;
use crate::journal::Record;
use crate::map::LEAF_ENTRIES;
use crate::types::*;

/// Leaves given back in one tick.
const REAP_MAX: usize = 64;

/// Why a volume could not be made, changed or deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// No such volume.
    #[error("there is no volume {}", .0.0)]
    NoVolume(VolumeId),
    /// A size that cannot be.
    #[error("a volume of {0} bytes cannot be: give a multiple of 512 between 512 and {VOLUME_BYTES_MAX}")]
    Size(u64),
    /// Shrinking is not offered.
    #[error("volume {} has {now} bytes and cannot shrink to {wanted}", id.0)]
    Shrink {
        /// Which.
        id: VolumeId,
        /// Its size.
        now: u64,
        /// The size asked for.
        wanted: u64,
    },
    /// The map of the volume may come to need more metadata than the pool has set aside.
    #[error(
        "the volume may need {wanted} map leaves, one for 32 MiB, and the pool has {free} left of {total}: delete volumes, or use a pool of larger devices"
    )]
    MetadataFull {
        /// Leaves the volume may need.
        wanted: u64,
        /// Leaves not yet promised.
        free: u64,
        /// Leaves of the pool.
        total: u64,
    },
    /// Requests for it are in flight.
    #[error("volume {} is in use", .0.0)]
    InUse(VolumeId),
    /// The pool takes no changes.
    #[error("the pool is read-only: {0}")]
    ReadOnly(&'static str),
    /// A clone would map more than its tenant may.
    #[error("volume {} maps {mapped} bytes, and its tenant {} has {free} left of its quota", id.0, tenant.0)]
    Quota {
        /// The volume to be forked.
        id: VolumeId,
        /// What it maps.
        mapped: u64,
        /// Who would pay.
        tenant: TenantId,
        /// What is left.
        free: u64,
    },
    /// Impossible bounds.
    #[error("a volume cannot have {min} bytes of the hot tier at least and {max} at most")]
    HotBounds {
        /// The minimum.
        min: u64,
        /// The maximum.
        max: u64,
    },
    /// The hot tier cannot keep that promise.
    #[error("{wanted} bytes of the hot tier cannot be kept for one volume: {free} are not promised yet")]
    HotMinimum {
        /// What was asked for.
        wanted: u64,
        /// What could be had.
        free: u64,
    },
    /// A range that is not in the volume.
    #[error("{len} bytes at {offset} are not inside volume {}, which has {size_bytes}", id.0)]
    Range {
        /// The volume.
        id: VolumeId,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Its size.
        size_bytes: u64,
    },
    /// Metadata has room for so many.
    #[error("the volumes of a pool can have {0} pinned ranges together: pin larger ones, or whole volumes")]
    PinRanges(usize),
    /// Metadata has room for so many, and nobody is nobody.
    #[error(
        "tenant {} cannot have a quota: 0 stands for no tenant, and a pool has {} tenants with one at most",
        .0.0, crate::checkpoint::TENANTS_MAX
    )]
    Tenants(TenantId),
}

/// A fork that waits for the writes in flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct PendingFork {
    pub from: VolumeId,
    pub to: VolumeId,
    pub writable: bool,
}

/// What is known about a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its id.
    pub id: VolumeId,
    /// Bytes the guest sees.
    pub size_bytes: u64,
    /// A snapshot is not.
    pub writable: bool,
    /// What it was made from.
    pub parent: Option<VolumeId>,
    /// Where the operator wants it.
    pub pin: Pin,
    /// Parts of it that are pinned otherwise: see [`Store::pin_ranges`].
    pub pin_ranges: usize,
    /// What it may use.
    pub limits: super::Limits,
    /// Bytes it maps, in whole units, shared with others or not.
    pub mapped_bytes: u64,
    /// Bytes of hot slots that its requests filled.
    pub hot_bytes: u64,
    /// The adopted device whose content it is.
    pub adopted: Option<DeviceId>,
}

/// How much of a range of a volume is where, in units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Residency {
    /// Written at some time.
    pub mapped: u64,
    /// Of those, on the hot tier, at least in part.
    pub hot: u64,
    /// Of those, only there, at least in part.
    pub dirty: u64,
}

/// Where a byte of a volume is, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Explanation {
    /// Never written: reads as zero and takes no space.
    Unmapped,
    /// On the cold tier only.
    Cold {
        /// Its cold slot.
        extent: Extent,
        /// The hot copy was lost with the hot tier; these pages cannot be read.
        lost: PageMask,
        /// What would move it.
        moves_when: &'static str,
    },
    /// On the hot tier, at least in part.
    Hot {
        /// Its cold slot.
        extent: Extent,
        /// Its hot slot.
        slot: u32,
        /// Pages that are hot.
        valid: PageMask,
        /// Pages that are only hot.
        dirty: PageMask,
        /// The volume whose request brought it here.
        by: VolumeId,
        /// Since when, ns of the store's clock.
        since_ns: u64,
        /// What the policy thinks of it.
        standing: &'static str,
        /// What would move it.
        moves_when: &'static str,
    },
}

impl Store {
    pub(super) fn changeable(&self) -> Result<(), VolumeError> {
        match self.read_only {
            Some(why) => Err(VolumeError::ReadOnly(why)),
            None if self.checkpoint.sealed => Err(VolumeError::ReadOnly("the pool is being closed")),
            None => Ok(()),
        }
    }

    /// Leaves that fit the pool's metadata beside its hot slots.
    pub(super) fn leaves_max(&self) -> u64 {
        let block = &self.devices[0].block;
        leaves_fitting(block.area_bytes, self.hot_slots_to_be()).min(block.leaves_max)
    }

    /// Leaves that are promised to volumes, or not given back yet.
    pub(super) fn leaves_promised(&self) -> u64 {
        let source = |fork: &PendingFork| self.map.volume(fork.from).map_or(0, |volume| volume.units());
        let forks: u64 = self.forks.iter().map(|fork| source(fork).div_ceil(LEAF_ENTRIES)).sum();
        self.map.leaves_reserved() + self.dying_leaves.len() as u64 + forks
    }

    fn reserve(&self, wanted: u64) -> Result<(), VolumeError> {
        let total = self.leaves_max();
        let free = total.saturating_sub(self.leaves_promised());
        if wanted > free { Err(VolumeError::MetadataFull { wanted, free, total }) } else { Ok(()) }
    }

    pub(super) fn new_id(&mut self) -> VolumeId {
        self.next_volume += 1;
        VolumeId(self.next_volume - 1)
    }

    pub(super) fn note(&mut self, record: Record) {
        self.record(record);
        self.commit.want_firm = true;
        self.checkpoint_soon();
        self.pump();
    }

    /// Makes an empty thin volume. It survives a crash once [`Store::settled`] is true.
    pub fn create_volume(&mut self, size_bytes: u64) -> Result<VolumeId, VolumeError> {
        self.changeable()?;
        if size_bytes == 0 || size_bytes > VOLUME_BYTES_MAX || !size_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(VolumeError::Size(size_bytes));
        }
        self.reserve(size_bytes.div_ceil(UNIT_BYTES * LEAF_ENTRIES))?;
        let id = self.new_id();
        self.map.create(id, size_bytes);
        self.note(Record::Create { id, size_bytes });
        Ok(id)
    }

    /// Makes a volume larger.
    pub fn resize_volume(&mut self, id: VolumeId, size_bytes: u64) -> Result<(), VolumeError> {
        self.changeable()?;
        let now = self.map.volume(id).ok_or(VolumeError::NoVolume(id))?.size_bytes;
        if size_bytes > VOLUME_BYTES_MAX || !size_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(VolumeError::Size(size_bytes));
        }
        if size_bytes < now {
            return Err(VolumeError::Shrink { id, now, wanted: size_bytes });
        }
        let leaves = |bytes: u64| bytes.div_ceil(UNIT_BYTES * LEAF_ENTRIES);
        self.reserve(leaves(size_bytes) - leaves(now))?;
        self.map.resize(id, size_bytes);
        self.note(Record::Resize { id, size_bytes });
        Ok(())
    }

    /// Makes a snapshot (not writable) or a clone. It exists when [`Store::next_forked`] gives its id: first the writes
    /// in flight on `from` are completed, but for those that wait for space, and later ones wait for it.
    pub fn fork_volume(&mut self, from: VolumeId, writable: bool) -> Result<VolumeId, VolumeError> {
        self.changeable()?;
        let source = self.map.volume(from).ok_or(VolumeError::NoVolume(from))?;
        let (tenant, mapped) = (source.limits.tenant, source.mapped);
        let known = self.map.tenant(tenant);
        let free = known.quota.saturating_sub(known.mapped);
        if tenant != TenantId::NONE && mapped > free {
            let (mapped, free) = (mapped * UNIT_BYTES, free * UNIT_BYTES);
            return Err(VolumeError::Quota { id: from, mapped, tenant, free });
        }
        self.reserve(source.units().div_ceil(LEAF_ENTRIES))?;
        let to = self.new_id();
        self.forks.push(PendingFork { from, to, writable });
        self.pump();
        Ok(to)
    }

    /// The next fork that is made and survives a crash.
    pub fn next_forked(&mut self) -> Option<VolumeId> {
        let (lsn, id) = *self.forks_done.front()?;
        if lsn > self.commit.firm_lsn {
            return None;
        }
        self.forks_done.pop_front();
        Some(id)
    }

    pub(super) fn pump_forks(&mut self) {
        let mut at = 0;
        while let Some(fork) = self.forks.get(at).copied() {
            if self.writes_at_work(fork.from) > 0 {
                at += 1;
                continue;
            }
            self.forks.remove(at);
            if self.map.fork(fork.from, fork.to, fork.writable) {
                let lsn = self.record(Record::Fork { from: fork.from, to: fork.to, writable: fork.writable });
                self.forks_done.push_back((lsn, fork.to));
                self.commit.want_firm = true;
                self.checkpoint_soon();
            }
            for request in std::mem::take(&mut self.held_requests) {
                if self.forks.iter().any(|fork| fork.from == request.volume) {
                    self.held_requests.push_back(request);
                } else {
                    self.start(request);
                }
            }
        }
    }

    /// Writes in flight on a volume, but for those that do nothing but wait for space: they are not acknowledged, and begin
    /// anew when there is some. A full pool must not hold up a copy.
    fn writes_at_work(&self, id: VolumeId) -> u32 {
        let writes = self.writes_in_flight.get(&id).copied().unwrap_or(0);
        if writes == 0 || self.room_waiters.is_empty() {
            return writes;
        }
        let mut parts: FastMap<u32, u32> = FastMap::default();
        for part in self.room_waiters.iter().filter(|part| part.volume == id) {
            *parts.entry(part.tag).or_insert(0) += 1;
        }
        let waits = |(tag, parts): &(&u32, &u32)| {
            self.requests[**tag as usize].as_ref().is_some_and(|running| running.parts_left == **parts)
        };
        writes - parts.iter().filter(waits).count() as u32
    }

    /// Deletes a volume. Its space comes back in the background.
    pub fn delete_volume(&mut self, id: VolumeId) -> Result<(), VolumeError> {
        self.changeable()?;
        self.map.volume(id).ok_or(VolumeError::NoVolume(id))?;
        let used = self.requests.iter().flatten().any(|running| running.request.volume == id);
        if used || self.forks.iter().any(|fork| fork.from == id) {
            return Err(VolumeError::InUse(id));
        }
        self.unmark_pinned(id);
        self.dying_leaves.extend(self.map.delete(id).into_iter().flatten());
        self.mark_pinned();
        self.writes_in_flight.remove(&id);
        self.unshared_lsn = self.commit.last_lsn() + 1;
        self.note(Record::Delete { id });
        Ok(())
    }

    /// Gives back some of the space of deleted volumes.
    pub(super) fn reap(&mut self) {
        if self.read_only.is_some() || self.journal_crowded() {
            return;
        }
        let mut freed = Vec::new();
        for _ in 0..REAP_MAX {
            let Some(leaf) = self.dying_leaves.pop() else { break };
            self.map.release_leaf(leaf, &mut freed);
        }
        for extent in freed {
            self.free_extent(extent);
        }
    }

    /// Everything recorded so far survives a crash.
    pub fn settled(&self) -> bool {
        self.commit.firm_lsn == self.commit.last_lsn() && self.forks.is_empty()
    }

    /// Number of the last record: of the change that was made last.
    pub fn last_record(&self) -> u64 {
        self.commit.last_lsn()
    }

    /// Records up to this one survive a power cut.
    pub fn firm_record(&self) -> u64 {
        self.commit.firm_lsn
    }

    /// All volumes.
    pub fn volumes(&self) -> impl Iterator<Item = VolumeInfo> {
        self.map.volumes().filter_map(|(id, _)| self.volume(id))
    }

    /// One volume.
    pub fn volume(&self, id: VolumeId) -> Option<VolumeInfo> {
        let volume = self.map.volume(id).filter(|_| Some(id) != self.unseen())?;
        Some(VolumeInfo {
            id,
            size_bytes: volume.size_bytes,
            writable: volume.writable,
            parent: volume.parent,
            pin: volume.pin,
            pin_ranges: volume.ranges.len(),
            limits: super::Limits::from_units(volume.limits),
            mapped_bytes: volume.mapped * UNIT_BYTES,
            hot_bytes: u64::from(self.hot.held_by(id)) * UNIT_BYTES,
            adopted: volume.home.map(|home| self.locate(Tier::Cold, home).0),
        })
    }

    /// The ranges in which two volumes differ among `units` units from unit `first` on, as (first byte, bytes), in whole
    /// units. What they share costs no time.
    pub fn diff(
        &self,
        a: VolumeId,
        b: VolumeId,
        first: u64,
        units: u64,
    ) -> Result<Vec<(u64, u64)>, VolumeError> {
        let find = |id| self.map.volume(id).ok_or(VolumeError::NoVolume(id));
        let units = self.map.diff(find(a)?, find(b)?, first..first.saturating_add(units));
        Ok(units.into_iter().map(|(first, count)| (first * UNIT_BYTES, count * UNIT_BYTES)).collect())
    }

    /// The ranges that were ever written among `units` units from unit `first` on, as (first byte, bytes), in whole units.
    /// What was never written costs no time.
    pub fn mapped(&self, id: VolumeId, first: u64, units: u64) -> Result<Vec<(u64, u64)>, VolumeError> {
        let volume = self.map.volume(id).ok_or(VolumeError::NoVolume(id))?;
        let end = first.saturating_add(units).min(volume.units());
        let mut found: Vec<(u64, u64)> = Vec::new();
        for (unit, _) in self.map.units_in(volume, first.min(end)..end) {
            match found.last_mut() {
                Some((start, len)) if *start + *len == unit * UNIT_BYTES => *len += UNIT_BYTES,
                _ => found.push((unit * UNIT_BYTES, UNIT_BYTES)),
            }
        }
        Ok(found)
    }

    /// Free cold slots, and all of them. Those that become free with the next checkpoint count: who needs them has it made.
    pub fn cold_slots(&self) -> (u64, u64) {
        let cooling: usize = self.cooling.iter().map(|(_, extents)| extents.len()).sum();
        let coming = self.freed_cold.len() + cooling;
        (self.allocator.free() + coming as u64, self.allocator.slots())
    }

    /// Parts of writes that wait for space: more than zero is an alert.
    pub fn waiting_for_space(&self) -> usize {
        self.room_waiters.len()
    }

    /// Free hot slots, and all of them.
    pub fn hot_slots(&self) -> (u32, u32) {
        (self.hot.free(), self.hot.slots())
    }

    /// How much of `units` units from `first` on is where. What was never written costs no time.
    pub fn residency(&self, id: VolumeId, first: u64, units: u64) -> Result<Residency, VolumeError> {
        let volume = self.map.volume(id).ok_or(VolumeError::NoVolume(id))?;
        let mut found = Residency::default();
        let end = first.saturating_add(units).min(volume.units());
        for (_, extent) in self.map.units_in(volume, first.min(end)..end) {
            found.mapped += 1;
            if let Some(slot) = self.hot.find(extent) {
                found.hot += 1;
                found.dirty += u64::from(!self.hot.slot(slot).is_clean());
            }
        }
        Ok(found)
    }

    /// Of the volume of an adopted device, among `count` units from `first` on: those that the device does not hold as the
    /// volume has them, for it alone. They are only hot, or a copy shares them, or were discarded and are not given back
    /// yet. `None` for any other volume.
    pub fn units_away(&self, id: VolumeId, first: u64, count: u64) -> Result<Option<u64>, VolumeError> {
        let volume = self.map.volume(id).ok_or(VolumeError::NoVolume(id))?;
        let Some(home) = volume.home else { return Ok(None) };
        let at_home = |unit: &u64| {
            let entry = self.map.get(volume, *unit);
            let slot = self.allocator.home_slot(home, *unit);
            match entry.extent() {
                None => slot.is_none_or(|slot| !self.allocator.is_taken(slot)),
                Some(extent) => {
                    let clean = self.hot.find(extent).is_none_or(|slot| self.hot.slot(slot).is_clean());
                    slot == Some(extent) && clean && self.map.owned(volume, *unit, entry)
                }
            }
        };
        let units = first..first.saturating_add(count).min(volume.units());
        Ok(Some(units.filter(|unit| !at_home(unit)).count() as u64))
    }

    /// Where the byte at `offset` is and why.
    pub fn explain(&self, id: VolumeId, offset: u64) -> Result<Explanation, VolumeError> {
        let volume = self.map.volume(id).ok_or(VolumeError::NoVolume(id))?;
        let Some(extent) = self.map.get(volume, offset / UNIT_BYTES).extent() else {
            return Ok(Explanation::Unmapped);
        };
        let Some(slot) = self.hot.find(extent) else {
            let full = self.hot.held_by(id) >= volume.limits.hot_max;
            let moves_when = match volume.pin_of(offset / UNIT_BYTES) {
                Pin::Cold => "never: the volume is pinned cold",
                _ if full => {
                    "it is next used and the volume, at its maximum of hot bytes, has given up another"
                }
                Pin::Hot => "soon, in the background, as far as the hot tier has room: it is pinned hot",
                Pin::Auto => "it is next written, or read outside a long stream, within the migration limit",
            };
            let lost = self.lost.get(&extent).copied().unwrap_or(0);
            return Ok(Explanation::Cold { extent, lost, moves_when });
        };
        let state = self.hot.slot(slot);
        let sent_out = state.volume() == id && volume.pin_of(offset / UNIT_BYTES) == Pin::Cold;
        let moves_when = match (state.pinned, state.dirty != 0) {
            (false, _) if sent_out => "soon, in the background: it is pinned cold",
            (true, _) => "never: it is pinned hot",
            _ if self.keeps_minimum(state.volume()) => {
                "never: its volume has its minimum of hot bytes, not more"
            }
            (false, true) => "the policy needs its slot: written back, then demoted",
            (false, false) => "the policy needs its slot: demoted without a write",
        };
        Ok(Explanation::Hot {
            extent,
            slot,
            by: state.volume(),
            valid: state.valid,
            dirty: state.dirty,
            since_ns: state.since_ns,
            standing: self.policy.standing(slot),
            moves_when,
        })
    }
}
