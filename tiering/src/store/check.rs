//! A check of a pool's metadata as it stands on the devices. Nothing is written, and the pool may be at work meanwhile: then
//! what is found must be found again to count, since superblocks, checkpoint and journal are read one after the other.

use super::open::{BlockingIo, Members, hot_slots, load_content};
use super::{damaged, load::Loading};
use crate::checkpoint::read;
use crate::hash::FastMap;
use crate::journal::{Replay, replay};
use crate::map::Map;
use crate::superblock::{SUPERBLOCK_BYTES, Superblock};
use crate::types::*;
use uuid::Uuid;

/// Findings that are told one by one.
const FINDINGS_MAX: usize = 100;

/// What a check has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// Volumes, snapshots and clones.
    pub volumes: u64,
    /// Units that they map; what several share counts for each.
    pub units: u64,
    /// Extents, each counted once.
    pub extents: u64,
    /// Hot slots in use.
    pub hot_slots: u64,
    /// Records of the journal behind the checkpoint.
    pub records: u64,
    /// What is wrong, in words for people.
    pub findings: Vec<String>,
}

impl Checked {
    fn found(&mut self, finding: String) {
        match self.findings.len() {
            ..FINDINGS_MAX => self.findings.push(finding),
            FINDINGS_MAX => self.findings.push("and more".to_string()),
            _ => {}
        }
    }
}

/// Checks superblocks, both copies of the checkpoint, the journal, and that what they say fits together. `boot` is as for
/// [`Tuning::boot`].
pub fn check(io: &mut dyn BlockingIo, boot: Uuid) -> Checked {
    let mut checked = Checked::default();
    let members = match Members::read(io) {
        Ok(members) => members,
        Err(error) => {
            checked.found(error.to_string());
            return checked;
        }
    };
    check_superblocks(io, &members, &mut checked);
    check_copies(io, &members, &mut checked);
    let loading = match load(io, &members, boot, &mut checked) {
        Ok(loading) => loading,
        Err(finding) => {
            checked.found(finding);
            return checked;
        }
    };
    check_map(&loading, &mut checked);
    check_hot(&loading, &mut checked);
    checked
}

/// Each device has two superblocks; the second one is blank as long as the first one was never replaced.
fn check_superblocks(io: &mut dyn BlockingIo, members: &Members, checked: &mut Checked) {
    for (at, member) in members.chief.devices.iter().enumerate() {
        if members.blocks[at].is_none() {
            checked.found(format!("device {at} ({}) is not there", member.uuid));
            continue;
        }
        for (name, skip) in [("first", 0), ("second", SUPERBLOCK_BYTES as u64)] {
            let mut bytes = vec![0; SUPERBLOCK_BYTES];
            let read = io.read(DeviceId(at as u8), member.superblocks_at + skip, &mut bytes);
            let blank = bytes.iter().all(|byte| *byte == 0);
            if read.is_err() || !(blank || Superblock::decode(&bytes).is_some()) {
                checked.found(format!("the {name} superblock of device {at} is damaged"));
            }
        }
    }
}

/// The checkpoint stands on both tiers.
fn check_copies(io: &mut dyn BlockingIo, members: &Members, checked: &mut Checked) {
    let at = members.chief.checkpoint;
    if at.id == 0 {
        return;
    }
    for tier in [Tier::Hot, Tier::Cold] {
        let Some((device, Some(block))) = members.of(tier).next() else { continue };
        let good = at.len <= block.area_bytes && {
            let mut bytes = vec![0; at.len as usize];
            let found = io.read(DeviceId(device as u8), block.area(at.id), &mut bytes);
            found.is_ok() && read(&bytes, at.id, block.leaves_max).is_some()
        };
        if !good {
            checked.found(format!("checkpoint {} on device {device} is damaged", at.id));
        }
    }
}

/// The state as an opening would find it.
fn load(
    io: &mut dyn BlockingIo,
    members: &Members,
    boot: Uuid,
    checked: &mut Checked,
) -> Result<Loading, String> {
    let content = load_content(io, members).map_err(|error| error.to_string())?;
    let chief = &members.chief;
    let contradicts = || format!("checkpoint {} contradicts itself", chief.checkpoint.id);
    let slots = hot_slots(members);
    let mut loading = Loading::from_content(content, &members.cold_slots(), slots, chief.leaves_max)
        .ok_or_else(contradicts)?;
    if members.blocks[0].is_none() {
        return Ok(loading);
    }
    let (ring, unreadable) = damaged::read_ring(io, chief.journal_offset, chief.journal_blocks)
        .map_err(|error| error.to_string())?;
    let (pool, boot) = (chief.pool.as_u64_pair().0, boot.as_u64_pair().0);
    let Replay { records, end, damage, .. } = replay(&ring, chief.checkpoint.journal, pool, boot);
    let damage = damage.or_else(|| damaged::ends_unreadable(end, &unreadable, chief.journal_blocks));
    if let Some(damage) = damage {
        checked.found(format!("journal blocks {:?} are damaged", damage.blocks));
    }
    for (lsn, record) in records.into_iter().filter(|(lsn, _)| *lsn > chief.checkpoint.lsn) {
        checked.records += 1;
        loading
            .apply(record)
            .ok_or_else(|| format!("journal record {lsn} contradicts the state before it"))?;
    }
    Ok(loading)
}

/// Copies share an extent at the same place, and since the same epoch: anything else is somebody else's data.
fn check_map(loading: &Loading, checked: &mut Checked) {
    let map: &Map = &loading.map;
    let mut known: FastMap<Extent, (VolumeId, u64, u32)> = FastMap::default();
    for (id, volume) in map.volumes() {
        checked.volumes += 1;
        let mut mapped = 0;
        for (unit, extent) in map.units_in(volume, 0..u64::MAX - 512) {
            mapped += 1;
            let birth = map.get(volume, unit).birth();
            if unit >= volume.units() {
                checked.found(format!("volume {} maps unit {unit} beyond its end", id.0));
            }
            if birth > map.epoch {
                checked.found(format!("unit {unit} of volume {} was born in an epoch to come", id.0));
            }
            if !loading.allocator.is_taken(extent) {
                checked.found(format!("cold slot {extent} of unit {unit} of volume {} counts as free", id.0));
            }
            let (other, place, its_birth) = *known.entry(extent).or_insert((id, unit, birth));
            if (place, its_birth) != (unit, birth) {
                let mine = format!("unit {unit} of volume {}", id.0);
                checked.found(format!(
                    "cold slot {extent} belongs to {mine} and to unit {place} of volume {}",
                    other.0
                ));
            }
        }
        if mapped != volume.mapped {
            checked.found(format!("volume {} maps {mapped} units, and {} are counted", id.0, volume.mapped));
        }
        checked.units += mapped;
    }
    checked.extents = known.len() as u64;
}

/// A hot slot holds an extent that is not in another slot.
fn check_hot(loading: &Loading, checked: &mut Checked) {
    let mut known: FastMap<Extent, u32> = FastMap::default();
    for slot in 0..loading.hot.slots() {
        let state = loading.hot.slot(slot);
        let Some(extent) = state.extent() else { continue };
        checked.hot_slots += 1;
        if state.dirty & !state.valid != 0 {
            checked.found(format!("hot slot {slot} has dirty pages that it does not have"));
        }
        if let Some(other) = known.insert(extent, slot) {
            checked.found(format!("hot slots {other} and {slot} hold the same extent {extent}"));
        }
    }
}
