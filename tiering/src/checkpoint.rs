//! Checkpoints: the whole state as a stream of chunks, the same bytes on the first hot and the first cold device.
//!
//! The map is as of the freeze; the hot slots are as of the moment each was written out, which is right because a
//! record of a hot slot is absolute and all records since the freeze are replayed over it. The superblock names a
//! checkpoint only after every record up to its end is firm.

use crate::hot::Directory;
use crate::journal::{HotState, PinRange, UNLIMITED, UnitLimits, pin_code, pin_from};
use crate::map::{Entries, Entry, LEAF_ENTRIES, Map, Volume};
use crate::types::{TenantId, UNIT_BYTES, VOLUME_BYTES_MAX, VolumeId};
use crate::wire::{Put, Reader};
use std::collections::BTreeMap;

/// Bytes of a full chunk.
pub const CHUNK_BYTES: usize = 64 << 10;
const HEADER_BYTES: usize = 32;
const MAGIC: u32 = 0x504b_4353;

const TAG_GLOBAL: u8 = b'G';
const TAG_VOLUME: u8 = b'V';
const TAG_RANGE: u8 = b'R';
const TAG_TENANT: u8 = b'T';
const TAG_LEAF: u8 = b'L';
const TAG_HOT: u8 = b'H';
const TAG_END: u8 = b'E';

/// Pinned parts of all volumes of a pool together at most.
pub const PIN_RANGES_MAX: usize = 1024;
/// Tenants with a quota at most.
pub const TENANTS_MAX: usize = 4096;
/// Bytes set aside for each leaf: itself, one top-level reference, and, since every volume has a leaf of its own at
/// least, a volume's entry.
const PER_LEAF: u64 = LEAF_ENTRIES * 8 + 128;
const PER_HOT_SLOT: u64 = 22;
const PER_RANGE: u64 = 22;
const PER_TENANT: u64 = 13;
const FIXED: u64 = 4096 + PIN_RANGES_MAX as u64 * PER_RANGE + TENANTS_MAX as u64 * PER_TENANT;
const ROOM: u64 = (CHUNK_BYTES - HEADER_BYTES) as u64;

/// Bytes of an area that holds `leaves` leaves, their volumes' top levels, and `hot_slots` hot slots in the worst case.
pub fn area_bytes(leaves: u64, hot_slots: u64) -> u64 {
    let payload = leaves * PER_LEAF + hot_slots * PER_HOT_SLOT + FIXED;
    payload.div_ceil(ROOM) * CHUNK_BYTES as u64 + CHUNK_BYTES as u64
}

/// Leaves that an area of so many bytes holds beside `hot_slots` hot slots: the reverse of [`area_bytes`].
pub fn leaves_fitting(area_bytes: u64, hot_slots: u64) -> u64 {
    let payload = (area_bytes / CHUNK_BYTES as u64).saturating_sub(1) * ROOM;
    payload.saturating_sub(FIXED.saturating_add(hot_slots.saturating_mul(PER_HOT_SLOT))) / PER_LEAF
}

/// Produces the chunks of one checkpoint.
#[derive(Debug)]
pub struct Writer {
    id: u64,
    index: u64,
    pending: Vec<u8>,
    leaves: Vec<u32>,
    next_leaf: usize,
    next_slot: u32,
    ended: bool,
}

impl Writer {
    /// Notes what belongs to the checkpoint; the caller has frozen the map. One volume may be left out: it is not
    /// whole yet.
    pub fn new(id: u64, map: &Map, next_volume: u32, unseen: Option<VolumeId>) -> Self {
        let mut pending = vec![TAG_GLOBAL];
        pending.put_u32(next_volume);
        pending.put_u32(map.epoch);
        let mut leaves = Vec::new();
        for (id, volume) in map.volumes().filter(|(id, _)| Some(*id) != unseen) {
            pending.put_u8(TAG_VOLUME);
            pending.put_u32(id.0);
            pending.put_u64(volume.size_bytes);
            pending.put_u8(u8::from(volume.writable));
            pending.put_u8(pin_code(volume.pin));
            pending.put_u32(volume.epoch);
            pending.put_u32(volume.parent.map_or(u32::MAX, |parent| parent.0));
            pending.put_u64(volume.home.unwrap_or(u64::MAX));
            pending.put_u64(volume.limits.quota);
            pending.put_u32(volume.limits.hot_min);
            pending.put_u32(volume.limits.hot_max);
            pending.put_u32(volume.limits.tenant.0);
            pending.put_u32(volume.top.iter().filter(|leaf| **leaf != 0).count() as u32);
            for (at, leaf) in volume.top.iter().enumerate().filter(|(_, leaf)| **leaf != 0) {
                pending.put_u32(at as u32);
                pending.put_u32(leaf - 1);
                leaves.push(leaf - 1);
            }
            for range in &volume.ranges {
                pending.put_u8(TAG_RANGE);
                pending.put_u32(id.0);
                pending.put_u64(range.first);
                pending.put_u64(range.count);
                pending.put_u8(pin_code(range.pin));
            }
        }
        for (id, tenant) in map.tenants().filter(|(_, tenant)| tenant.quota != UNLIMITED) {
            pending.put_u8(TAG_TENANT);
            pending.put_u32(id.0);
            pending.put_u64(tenant.quota);
        }
        leaves.sort_unstable();
        leaves.dedup();
        Writer { id, index: 0, pending, leaves, next_leaf: 0, next_slot: 0, ended: false }
    }

    /// The next chunk, its length a multiple of 4096; `None` after the last.
    pub fn next_chunk(&mut self, map: &Map, hot: &Directory) -> Option<Vec<u8>> {
        let room = CHUNK_BYTES - HEADER_BYTES;
        while self.pending.len() < room && !self.ended {
            self.produce(map, hot);
        }
        if self.pending.is_empty() {
            return None;
        }
        let rest = self.pending.split_off(self.pending.len().min(room));
        let payload = std::mem::replace(&mut self.pending, rest);
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        chunk.put_u32(MAGIC);
        chunk.put_u32(0);
        chunk.put_u64(self.id);
        chunk.put_u64(self.index);
        chunk.put_u32(payload.len() as u32);
        chunk.put_u32(0);
        chunk.extend_from_slice(&payload);
        chunk.resize(chunk.len().next_multiple_of(4096), 0);
        let crc = crc32c::crc32c(&chunk[8..]);
        chunk[4..8].copy_from_slice(&crc.to_le_bytes());
        self.index += 1;
        Some(chunk)
    }

    fn produce(&mut self, map: &Map, hot: &Directory) {
        if let Some(&leaf) = self.leaves.get(self.next_leaf) {
            self.next_leaf += 1;
            self.pending.put_u8(TAG_LEAF);
            self.pending.put_u32(leaf);
            let entries = map.frozen_leaf(leaf).expect("a frozen top level names leaves that are kept");
            entries.iter().for_each(|entry| self.pending.put_u64(entry.to_bits()));
        } else if self.next_slot < hot.slots() {
            let slot = self.next_slot;
            self.next_slot += 1;
            if let Some(state) = hot.slot(slot).state() {
                self.pending.put_u8(TAG_HOT);
                self.pending.put_u32(slot);
                self.pending.put_u64(state.extent);
                self.pending.put_u32(state.volume.0);
                self.pending.put_u16(state.valid);
                self.pending.put_u16(state.dirty);
                self.pending.put_u8(u8::from(state.fresh));
            }
        } else {
            self.pending.put_u8(TAG_END);
            self.ended = true;
        }
    }
}

/// What a checkpoint says, still to be put into a map.
#[derive(Debug, Default)]
pub struct Content {
    /// The next volume's id.
    pub next_volume: u32,
    /// The map's epoch.
    pub epoch: u32,
    /// The volumes, their top levels filled in.
    pub volumes: BTreeMap<VolumeId, Volume>,
    /// The tenants that have a quota.
    pub tenants: BTreeMap<TenantId, u64>,
    /// The leaves by number.
    pub leaves: BTreeMap<u32, Entries>,
    /// The hot slots in use.
    pub hot: Vec<(u32, HotState)>,
}

/// Joins the chunks of checkpoint `id` in `area`. `None` if one is damaged or missing.
fn join(area: &[u8], id: u64) -> Option<Vec<u8>> {
    let mut stream = Vec::with_capacity(area.len());
    for (index, chunk) in area.chunks(CHUNK_BYTES).enumerate() {
        let mut reader = Reader(chunk);
        let (magic, crc) = (reader.u32()?, reader.u32()?);
        let (its_id, its_index, len, _) = (reader.u64()?, reader.u64()?, reader.u32()?, reader.u32()?);
        if magic != MAGIC
            || its_id != id
            || its_index != index as u64
            || crc != crc32c::crc32c(chunk.get(8..)?)
        {
            return None;
        }
        stream.extend_from_slice(reader.bytes(len as usize)?);
    }
    Some(stream)
}

/// Reads checkpoint `id` from the bytes of its area, of a pool of `leaves_max` leaves. `None` if anything is damaged or
/// makes no sense; any bytes are allowed.
pub fn read(area: &[u8], id: u64, leaves_max: u64) -> Option<Content> {
    let stream = join(area, id)?;
    let mut reader = Reader(&stream);
    let mut content = Content::default();
    loop {
        match reader.u8()? {
            TAG_GLOBAL => (content.next_volume, content.epoch) = (reader.u32()?, reader.u32()?),
            TAG_VOLUME => read_volume(&mut reader, &mut content, leaves_max)?,
            TAG_RANGE => {
                let volume = content.volumes.get_mut(&VolumeId(reader.u32()?))?;
                let (first, count) = (reader.u64()?, reader.u64()?);
                let range = PinRange { first, count, pin: pin_from(reader.u8()?)? };
                let apart = volume.ranges.last().is_none_or(|last| last.end() <= first);
                if !apart || count == 0 || first.checked_add(count)? > volume.units() {
                    return None;
                }
                volume.ranges.push(range);
            }
            TAG_TENANT => drop(content.tenants.insert(TenantId(reader.u32()?), reader.u64()?)),
            TAG_LEAF => {
                let leaf = reader.u32()?;
                let mut entries = Box::new([Entry::NONE; LEAF_ENTRIES as usize]);
                for entry in entries.iter_mut() {
                    *entry = Entry::from_bits(reader.u64()?)?;
                }
                content.leaves.insert(leaf, entries);
            }
            TAG_HOT => {
                let slot = reader.u32()?;
                let (extent, volume) = (reader.u64()?, VolumeId(reader.u32()?));
                let (valid, dirty, fresh) = (reader.u16()?, reader.u16()?, reader.u8()? == 1);
                content.hot.push((slot, HotState { extent, volume, valid, dirty, fresh }));
            }
            TAG_END => break,
            _ => return None,
        }
    }
    let whole =
        content.volumes.values().flat_map(|volume| &volume.top).all(|leaf| match leaf.checked_sub(1) {
            Some(leaf) => content.leaves.contains_key(&leaf),
            None => true,
        });
    whole.then_some(content)
}

fn read_volume(reader: &mut Reader<'_>, content: &mut Content, leaves_max: u64) -> Option<()> {
    let id = VolumeId(reader.u32()?);
    let (size_bytes, writable, pin) = (reader.u64()?, reader.u8()? == 1, pin_from(reader.u8()?)?);
    let (epoch, parent, home) = (reader.u32()?, reader.u32()?, reader.u64()?);
    let (quota, hot_min, hot_max) = (reader.u64()?, reader.u32()?, reader.u32()?);
    let (tenant, count) = (TenantId(reader.u32()?), reader.u32()?);
    let leaves = size_bytes.div_ceil(UNIT_BYTES * LEAF_ENTRIES);
    if size_bytes > VOLUME_BYTES_MAX || leaves > leaves_max {
        return None;
    }
    let mut top = vec![0; leaves as usize];
    for _ in 0..count {
        let (at, leaf) = (reader.u32()?, reader.u32()?);
        *top.get_mut(at as usize)? = leaf.checked_add(1)?;
    }
    let parent = (parent != u32::MAX).then_some(VolumeId(parent));
    let volume = Volume {
        size_bytes,
        writable,
        epoch,
        pin,
        ranges: Vec::new(),
        limits: UnitLimits { quota, hot_min, hot_max, tenant },
        parent,
        home: (home != u64::MAX).then_some(home),
        mapped: 0,
        top,
    };
    content.volumes.insert(id, volume).is_none().then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEAVES: u64 = 1 << 16;

    fn dump(map: &Map, hot: &Directory) -> Vec<u8> {
        let mut writer = Writer::new(9, map, 40, None);
        std::iter::from_fn(|| writer.next_chunk(map, hot)).flatten().collect()
    }

    fn sample() -> (Map, Directory) {
        let (mut map, mut hot) = (Map::default(), Directory::new(9));
        map.create(VolumeId(3), 1 << 40);
        for unit in (0..40_000).step_by(97) {
            map.set(VolumeId(3), unit, Entry::new(unit, map.epoch));
        }
        map.fork(VolumeId(3), VolumeId(4), false);
        map.set(VolumeId(3), 5, Entry::new(1 << 20, map.epoch));
        map.pin_range(VolumeId(3), PinRange { first: 7, count: 9, pin: crate::types::Pin::Hot });
        let limits = UnitLimits { quota: 1 << 20, hot_min: 1, hot_max: 2, tenant: TenantId(6) };
        map.set_limits(VolumeId(3), limits);
        map.set_tenant(TenantId(6), 1 << 30);
        let slot = hot.attach(97, false, VolumeId(3), 0).unwrap();
        (hot.slot_mut(slot).valid, hot.slot_mut(slot).dirty) = (6, 2);
        (map, hot)
    }

    #[test]
    fn round_trip() {
        let (map, hot) = sample();
        let bytes = dump(&map, &hot);
        assert!(bytes.len() > 3 * CHUNK_BYTES);
        assert!(bytes.len() as u64 <= area_bytes(map.leaf_count(), 9));
        let content = read(&bytes, 9, LEAVES).unwrap();
        assert_eq!((content.next_volume, content.epoch), (40, 1));
        for id in [VolumeId(3), VolumeId(4)] {
            // What a volume maps is counted from the leaves.
            assert_eq!(content.volumes[&id], Volume { mapped: 0, ..map.volume(id).unwrap().clone() });
        }
        assert_eq!(content.tenants, BTreeMap::from([(TenantId(6), 1 << 30)]));
        assert_eq!(content.leaves.len() as u64, map.leaf_count());
        assert_eq!(
            content.hot,
            [(0, HotState { extent: 97, volume: VolumeId(3), valid: 6, dirty: 6, fresh: false })]
        );
        assert!(read(&bytes, 8, LEAVES).is_none(), "another checkpoint's chunks");
        assert!(read(&bytes[..bytes.len() - 4096], 9, LEAVES).is_none());
    }

    #[test]
    fn an_area_holds_the_leaves_it_was_made_for_and_fewer_beside_more_hot_slots() {
        for (leaves, slots) in [(0, 0), (1, 1), (12, 7), (40_000, 100_000), (1 << 24, 1 << 26)] {
            let area = area_bytes(leaves, slots);
            assert!(leaves_fitting(area, slots) >= leaves);
            assert!(area_bytes(leaves_fitting(area, slots), slots) <= area);
            assert!(leaves_fitting(area, slots * 2 + 1_000_000) < leaves.max(1));
        }
        assert_eq!(leaves_fitting(0, u64::MAX), 0);
    }

    /// Volumes that hold nothing still have entries in a checkpoint: each must be paid for by a reserved leaf.
    #[test]
    fn many_small_volumes_fit_what_is_reserved_for_them() {
        let (mut map, hot) = (Map::default(), Directory::new(0));
        map.create(VolumeId(0), UNIT_BYTES);
        for id in 1..2000 {
            match id % 2 {
                0 => drop(map.fork(VolumeId(0), VolumeId(id), false)),
                _ => map.create(VolumeId(id), UNIT_BYTES),
            }
            map.set_limits(VolumeId(id), UnitLimits { tenant: TenantId(id), ..UnitLimits::default() });
            map.set_tenant(TenantId(id), 5);
            map.set(VolumeId(id), 0, Entry::new(u64::from(id), map.epoch));
        }
        let reserved = area_bytes(map.leaves_reserved(), 0);
        assert!(dump(&map, &hot).len() as u64 <= reserved, "{reserved}");
    }

    proptest! {
        #[test]
        fn damage_is_found(at: prop::sample::Index, flip in 1u8..) {
            let (map, hot) = sample();
            let mut bytes = dump(&map, &hot);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(read(&bytes, 9, LEAVES).is_none());
        }

        #[test]
        fn any_payload_is_read_without_panic(mut bytes in prop::collection::vec(any::<u8>(), 64..9000), tag in 0usize..7) {
            bytes[HEADER_BYTES] = b"GVLHERT"[tag];
            let mut head = Vec::new();
            head.put_u32(MAGIC);
            head.put_u32(0);
            head.put_u64(9);
            head.put_u64(0);
            head.put_u32((bytes.len() - HEADER_BYTES) as u32);
            bytes[..head.len()].copy_from_slice(&head);
            let crc = crc32c::crc32c(&bytes[8..]);
            bytes[4..8].copy_from_slice(&crc.to_le_bytes());
            read(&bytes, 9, LEAVES);
        }
    }
}
