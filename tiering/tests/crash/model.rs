//! What each sector of each volume may hold.
//!
//! Every written sector has a number of its own in it, so a sector that comes back says which write it is from.
//! A sector's versions are kept in order, from the newest that must survive (`floor`) on.

use std::collections::BTreeMap;
use tiering::{UNIT_BYTES, VolumeId};

/// Sectors in a unit.
pub const UNIT_SECTORS: u64 = UNIT_BYTES / 512;

/// How a write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    NotYet,
    Acknowledged,
    /// It failed: this sector may have been written before the failure.
    Refused,
}

/// Versions of one sector, oldest first.
#[derive(Debug, Clone, Default)]
struct Sector {
    /// (number of the write, how it ended). The first is the floor.
    versions: Vec<(u64, End)>,
}

impl Sector {
    fn newest_acknowledged(&self) -> usize {
        self.versions.iter().rposition(|(_, end)| *end == End::Acknowledged).unwrap_or(0)
    }

    /// What a read may give now: the newest acknowledged, and what was refused after it.
    fn current(&self) -> Vec<(u64, End)> {
        let newest = self.newest_acknowledged();
        let after = self.versions[newest + 1..].iter().filter(|(_, end)| *end == End::Refused);
        std::iter::once(&self.versions[newest]).chain(after).copied().collect()
    }
}

/// A volume, as the guest knows it.
#[derive(Debug, Clone, Default)]
pub struct VolumeModel {
    sectors: Vec<Sector>,
    /// Its making survives a crash.
    pub settled: bool,
    /// Somebody asked to delete it.
    pub dying: bool,
    /// Snapshots take no writes.
    pub writable: bool,
}

/// All volumes.
#[derive(Debug, Clone, Default)]
pub struct Model {
    pub volumes: BTreeMap<VolumeId, VolumeModel>,
}

/// A flush under way: how far each sector's versions must survive once it is done.
pub type Promise = Vec<(VolumeId, Vec<usize>)>;

/// Which crash it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    Power,
    Kill,
}

impl Model {
    pub fn create(&mut self, id: VolumeId, units: u64, writable: bool) {
        let sectors =
            vec![Sector { versions: vec![(0, End::Acknowledged)] }; (units * UNIT_SECTORS) as usize];
        self.volumes.insert(id, VolumeModel { sectors, settled: false, dying: false, writable });
    }

    /// An adopted volume holds these from the beginning, and its making survives a crash.
    pub fn adopt(&mut self, id: VolumeId, numbers: std::ops::Range<u64>) {
        let sectors = numbers.map(|number| Sector { versions: vec![(number, End::Acknowledged)] }).collect();
        self.volumes.insert(id, VolumeModel { sectors, settled: true, dying: false, writable: true });
    }

    /// `to` has what `from` had last; in a `full` pool perhaps also what was written since and not acknowledged.
    pub fn fork(&mut self, from: VolumeId, to: VolumeId, writable: bool, full: bool) {
        let mut copy = self.volumes[&from].clone();
        for sector in &mut copy.sectors {
            if full {
                // Writes that wait for space do not hold up a copy: what they wrote already may be in it.
                let newest = sector.newest_acknowledged();
                sector.versions.drain(..newest);
                sector.versions[1..].iter_mut().for_each(|(_, end)| *end = End::Refused);
            } else {
                sector.versions = sector.current();
            }
        }
        (copy.settled, copy.writable, copy.dying) = (false, writable, false);
        self.volumes.insert(to, copy);
    }

    /// A write of these sectors begins. `number` is the first sector's, the others follow; zero for all if `zero`.
    pub fn begin(&mut self, id: VolumeId, first: u64, count: u64, number: u64, zero: bool) {
        let volume = self.volumes.get_mut(&id).expect("writes go to volumes that are there");
        for (at, sector) in volume.sectors[first as usize..(first + count) as usize].iter_mut().enumerate() {
            sector.versions.push((if zero { 0 } else { number + at as u64 }, End::NotYet));
        }
    }

    /// The write that is newest in these sectors was acknowledged.
    pub fn acknowledge(&mut self, id: VolumeId, first: u64, count: u64) {
        if let Some(volume) = self.volumes.get_mut(&id) {
            for sector in &mut volume.sectors[first as usize..(first + count) as usize] {
                sector.versions.last_mut().expect("it was begun").1 = End::Acknowledged;
            }
        }
    }

    /// The write that is newest in these sectors failed: what it wrote may be there or not.
    pub fn refuse(&mut self, id: VolumeId, first: u64, count: u64) {
        if let Some(volume) = self.volumes.get_mut(&id) {
            for sector in &mut volume.sectors[first as usize..(first + count) as usize] {
                sector.versions.last_mut().expect("it was begun").1 = End::Refused;
            }
        }
    }

    /// What a flush that starts now will promise.
    pub fn promise(&self) -> Promise {
        let of = |volume: &VolumeModel| volume.sectors.iter().map(Sector::newest_acknowledged).collect();
        self.volumes.iter().map(|(id, volume)| (*id, of(volume))).collect()
    }

    /// The flush is done.
    pub fn keep(&mut self, promise: &Promise) {
        for (id, floors) in promise {
            let Some(volume) = self.volumes.get_mut(id) else { continue };
            for (sector, floor) in volume.sectors.iter_mut().zip(floors) {
                // Versions are never removed while flushes are under way, so positions hold.
                for at in 0..*floor {
                    sector.versions[at].0 = u64::MAX;
                }
            }
        }
    }

    /// Forgets versions below the floors; only when no flush is under way.
    pub fn compact(&mut self) {
        for sector in self.volumes.values_mut().flat_map(|volume| &mut volume.sectors) {
            sector.versions.retain(|(number, _)| *number != u64::MAX);
        }
    }

    /// What a read of this sector may give while nothing crashes: one number, unless a write to it failed.
    pub fn current(&self, id: VolumeId, sector: u64) -> Vec<u64> {
        let sector = &self.volumes[&id].sectors[sector as usize];
        sector.current().into_iter().map(|(number, _)| number).collect()
    }

    /// Whether the sector may read as `number` after a crash.
    pub fn allows(&self, id: VolumeId, sector: u64, number: u64, crash: Crash) -> Result<(), String> {
        let sector = &self.volumes[&id].sectors[sector as usize];
        let from = match crash {
            Crash::Power => 0,
            Crash::Kill => sector.newest_acknowledged(),
        };
        if sector.versions[from..].iter().any(|(version, _)| *version == number) {
            return Ok(());
        }
        Err(format!("holds {number:#x}, allowed is one of {:x?} after {crash:?}", &sector.versions[from..]))
    }

    pub fn sectors(&self, id: VolumeId) -> u64 {
        self.volumes[&id].sectors.len() as u64
    }
}

/// The model must refuse what is wrong, or the tester proves nothing.
pub fn self_test() {
    let id = VolumeId(1);
    let mut model = Model::default();
    model.create(id, 1, true);
    model.begin(id, 0, 2, 10, false);
    assert!(model.allows(id, 1, 11, Crash::Power).is_ok() && model.allows(id, 1, 0, Crash::Kill).is_ok());
    model.acknowledge(id, 0, 2);
    assert!(model.allows(id, 0, 0, Crash::Power).is_ok(), "not flushed: the old may come back");
    assert!(model.allows(id, 0, 0, Crash::Kill).is_err(), "but not when only the process died");
    let promise = model.promise();
    model.begin(id, 0, 1, 20, false);
    model.keep(&promise);
    assert!(model.allows(id, 0, 0, Crash::Power).is_err(), "flushed: older is wrong");
    assert!(model.allows(id, 0, 10, Crash::Power).is_ok() && model.allows(id, 0, 20, Crash::Power).is_ok());
    assert!(model.allows(id, 0, 77, Crash::Power).is_err(), "a stranger");
    assert_eq!(model.current(id, 0), [10]);
    model.fork(id, VolumeId(2), false, false);
    assert!(model.allows(VolumeId(2), 0, 20, Crash::Power).is_err(), "a fork has what was acknowledged");
    model.refuse(id, 0, 1);
    assert_eq!(model.current(id, 0), [10, 20], "a write that failed may be there");
}
