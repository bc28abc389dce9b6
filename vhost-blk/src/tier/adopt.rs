//! Volumes made of a file or device as it is: nothing is copied, its bytes become cold data where they are.

use std::path::{Path, PathBuf};

use telemetry::Problem;
use telemetry::check::show_size;
use tiering::{
    DeviceId, Growth, Pin, SECTOR_BYTES, Store, UNIT_BYTES, VolumeId, adopted_device_bytes,
    adopted_superblocks_at,
};
use uuid::Uuid;

use super::control::PoolHandle;
use super::device::OpenDevice;
use super::explain::{UNITS_AT_ONCE, gone};
use super::limits::ChangeLimits;
use super::spec::{DeviceSpec, TierName};
use crate::disk::{self, DiskError, host};
use crate::spec::{Backing, VolumeSpec, VolumeView};
use crate::volume::{Held, Volumes, no_volume, refused};

/// Why a file or device cannot be adopted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdoptError {
    /// The host refuses, or somebody uses it.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Not whole sectors.
    #[error(
        "{path} has {bytes} bytes, which are not whole sectors of 512; give --size to take a part of it, or make it larger"
    )]
    Sectors {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// No room behind the data.
    #[error(
        "{path} has {bytes} bytes, and the pool needs {needed} for {data} of data: make the device larger (lvextend), or give a smaller --size"
    )]
    NoRoom {
        /// The device.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// What is needed.
        needed: u64,
        /// The data.
        data: u64,
    },
    /// Somebody's bytes are where the pool's would be.
    #[error(
        "{path} has data from byte {at} on, where the pool keeps its own: give a larger --size, or clear {bytes} bytes there if nobody needs them"
    )]
    Occupied {
        /// The device.
        path: PathBuf,
        /// Where.
        at: u64,
        /// Bytes that the pool needs.
        bytes: u64,
    },
    /// It is a part of a pool.
    #[error(
        "{0} belongs to a pool; until that is deleted, its volume can be exported and imported elsewhere"
    )]
    Member(PathBuf),
    /// Blocks that volumes of the pool do not have.
    #[error("{path} has blocks of {its} bytes, and volumes of the pool of {ours}; give another device")]
    Blocks {
        /// The device.
        path: PathBuf,
        /// Its blocks.
        its: u32,
        /// Those of the pool.
        ours: u32,
    },
    /// The pool did not take it.
    #[error("{0}")]
    Pool(String),
}

impl Volumes {
    /// Serves what is there already: a file or device that is adopted, or a volume of the pool that has no name. It is not
    /// given up for an error that comes after: the same command finds it again.
    pub(crate) fn name_what_is_there(
        &self,
        held: &mut Held,
        mut spec: VolumeSpec,
        limits: &ChangeLimits,
        pool: &PoolHandle,
    ) -> Result<VolumeView, Problem> {
        let title = format!("the volume `{}` cannot be created", spec.name);
        let Backing::Pool(place) = &mut spec.backing else { return Err(Problem::internal(title)) };
        match place.adopted.clone() {
            Some(path) => {
                let adopted = self.adopt(held, &place.name, pool, &path, spec.size_bytes);
                let wrong = |error: AdoptError| refused(title.clone(), &error, "adopt", &path.display());
                place.id = adopted.map_err(wrong)?.0;
            }
            None => spec.read_only |= held.find_unnamed(pool, place)?,
        }
        let id = place.volume();
        let pin: Pin = place.pin.into();
        if pin != Pin::Auto {
            let pinned = pool.change(move |store| store.pin_volume(id, pin));
            pinned.map_err(|error| Problem::conflict(title.clone()).detail(error.to_string()))?;
        }
        if !limits.is_empty() {
            self.limit(held, place, limits).map_err(|reason| Problem::conflict(title).detail(reason))?;
        }
        self.put_into_service(held, spec, None)
    }

    /// Refuses to delete an adopted volume whose file would not hold all of it; else it is out of service.
    pub(crate) fn check_left_whole(&self, held: &mut Held, name: &str) -> Result<(), Problem> {
        let spec = &held.volumes.get(name).ok_or_else(|| no_volume(name))?.spec;
        let Some(place) = spec.backing.place().filter(|place| place.adopted.is_some()).cloned() else {
            return Ok(());
        };
        let size_bytes = spec.size_bytes.unwrap_or_default();
        let pool = held.open_pool(&place.name)?;
        let check = || {
            let away = bytes_away(&pool, place.volume(), size_bytes).map_err(gone)?;
            if away == 0 {
                return Ok(());
            }
            let title = format!("the volume `{name}` cannot be deleted");
            let file = place.adopted.as_deref().unwrap_or(Path::new("")).display();
            Err(Problem::conflict(title).detail(format!(
                "{} of it are not in {file}, or shared with copies of it: delete those, write back \
                 (`sluice pool drain {} --hot`); what a copy made it write elsewhere stays there: export the volume and give \
                 --force, which leaves the file as it is",
                show_size(away),
                place.name
            )))
        };
        check()?;
        held.put_out_of_service(name, "it is being deleted");
        // What guests wrote meanwhile.
        check().inspect_err(|_| self.try_serving(held, name))
    }

    /// Takes over the bytes of a file or device, all of them unless `size_bytes` says fewer. What the pool keeps there
    /// for itself goes behind them; a file is made longer for it. One that the pool has already, and that no volume with a
    /// name belongs to, is found again.
    fn adopt(
        &self,
        held: &mut Held,
        name: &str,
        pool: &PoolHandle,
        path: &Path,
        size_bytes: Option<u64>,
    ) -> Result<VolumeId, AdoptError> {
        let known =
            held.pools.get(name).and_then(|pool| pool.spec.devices.iter().position(|of| of.path == path));
        if let Some(at) = known {
            let at = Some(DeviceId(at as u8));
            let find =
                move |store: &mut Store| store.volumes().find(|info| info.adopted == at).map(|info| info.id);
            let found = pool.ask(find).map_err(|gone| AdoptError::Pool(gone.to_string()))?;
            let nameless = found.filter(|id| held.name_in(name, *id).is_none());
            return nameless.ok_or_else(|| AdoptError::Member(path.to_path_buf()));
        }
        let file =
            std::fs::OpenOptions::new().read(true).write(true).open(path).map_err(host("open", path))?;
        let actual = disk::length(&file).map_err(host("measure", path))?;
        let data_bytes = size_bytes.unwrap_or(actual);
        if data_bytes == 0 || !data_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(AdoptError::Sectors { path: path.to_path_buf(), bytes: data_bytes });
        }
        if data_bytes > actual {
            let remedy = "give a smaller --size";
            let path = path.to_path_buf();
            return Err(DiskError::TooSmall { path, actual, wanted: data_bytes, remedy }.into());
        }
        let needed = adopted_device_bytes(data_bytes);
        // Locked before anything is changed: nobody else may be using it.
        let device = OpenDevice::open(path, Some(actual), false)?;
        if device.superblock().is_some() {
            return Err(AdoptError::Member(path.to_path_buf()));
        }
        let (its, ours) = (device.block_bytes(), pool.block_bytes());
        if its > ours {
            return Err(AdoptError::Blocks { path: path.to_path_buf(), its, ours });
        }
        let at = adopted_superblocks_at(data_bytes);
        if device.holds_data(at, needed).map_err(host("read", path))? {
            return Err(AdoptError::Occupied { path: path.to_path_buf(), at, bytes: needed - at });
        }
        let longer = needed > actual;
        if longer {
            let bytes = actual;
            if device.medium != disk::Medium::File {
                return Err(AdoptError::NoRoom { path: path.to_path_buf(), bytes, needed, data: data_bytes });
            }
            file.set_len(needed).and_then(|()| file.sync_all()).map_err(host("set the size of", path))?;
        }
        let device = OpenDevice { size_bytes: needed, ..device };
        self.join_adopted(held, name, pool, device, data_bytes).inspect_err(|_| {
            if longer {
                // As it was; what was added held nothing of its owner's.
                let _ = file.set_len(actual);
            }
        })
    }

    fn join_adopted(
        &self,
        held: &mut Held,
        name: &str,
        pool: &PoolHandle,
        device: OpenDevice,
        data_bytes: u64,
    ) -> Result<VolumeId, AdoptError> {
        let (uuid, size_bytes) = (Uuid::new_v4(), device.size_bytes);
        let path = device.path.clone();
        let adopted_bytes = Some(data_bytes);
        let spec = DeviceSpec { tier: TierName::Cold, path, size_bytes, uuid, adopted_bytes };
        let growth = Growth::Adopt { uuid, data_bytes, size_bytes };
        let grown = self.join(held, name, pool, spec, device, growth).map_err(AdoptError::Pool)?;
        grown.volume.ok_or_else(|| AdoptError::Pool("no volume came of it".to_string()))
    }
}

/// Bytes of an adopted volume that its device does not hold, for it alone.
fn bytes_away(pool: &PoolHandle, id: VolumeId, size_bytes: u64) -> Result<u64, reactor::Gone> {
    let mut away = 0;
    for first in (0..size_bytes.div_ceil(UNIT_BYTES)).step_by(UNITS_AT_ONCE as usize) {
        let found = pool.ask(move |store| store.units_away(id, first, UNITS_AT_ONCE))?;
        // A volume that the pool does not know has nothing to lose.
        away += found.ok().flatten().unwrap_or(0) * UNIT_BYTES;
    }
    Ok(away)
}

/// A file that was adopted is as long as before when its pool is gone: then it is nobody's but its owner's.
pub(super) fn give_back(device: &DeviceSpec) {
    let Some(data_bytes) = device.adopted_bytes else { return };
    let Ok(open) = OpenDevice::open(&device.path, None, false) else { return };
    let ours = open.superblock_of(device).is_some_and(|block| block.member().uuid == device.uuid);
    if !ours || open.medium != disk::Medium::File || open.size_bytes != device.size_bytes {
        return;
    }
    if let Err(error) = open.file.set_len(data_bytes).and_then(|()| open.file.sync_all()) {
        tracing::warn!(path = %device.path.display(), %error, "what the pool kept behind its data stays there");
    }
}
