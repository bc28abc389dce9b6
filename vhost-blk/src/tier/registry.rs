//! The pools of a daemon: made, found again after a restart, shown, removed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use reactor::WorkerHandle;
use telemetry::Problem;
use telemetry::check::Errors;
use tiering::{DeviceSpec as NewMember, FormatSpec, OpenError, OpenOptions, Store, Tuning};
use tiering::{UNIT_BYTES, VolumeInfo};
use uuid::Uuid;

use super::PoolStart;
use super::adopt::give_back;
use super::control::{PoolHandle, PoolStatus};
use super::device::{Devices, OpenDevice, SCRATCH_BUFFERS};
use super::limits::TenantUsage;
use super::metrics::PoolMetrics;
use super::spec::{
    DeviceSpec, LostRange, MoreDevices, NewDevice, NewPool, PoolSpec, PoolState, PoolUsage, PoolView,
    TenantSpec, TierName,
};
use crate::outage::pause;
use crate::spec::Backing;
use crate::volume::{Doomed, Held, Volumes, chain_of};
use crate::worker::Command;

/// Requests that a pool takes at a time.
const REQUESTS_MAX: u32 = 4096;
/// Where Linux tells which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A pool of this daemon.
pub(crate) struct HeldPool {
    pub(crate) spec: PoolSpec,
    /// How to reach it, or why it is not open.
    pub(crate) open: Result<PoolHandle, String>,
    /// Attempts to open it that failed, and when the next one is due.
    pub(crate) retry: (u32, Instant),
    /// It was told in the log what was lost with a device.
    pub(crate) told: bool,
}

impl HeldPool {
    fn new(spec: PoolSpec, open: Result<PoolHandle, String>) -> HeldPool {
        HeldPool { spec, open, retry: (1, Instant::now() + pause(0)), told: false }
    }
}

impl Volumes {
    /// All pools, by name.
    pub fn pools(&self) -> Vec<PoolView> {
        let held = self.lock();
        held.pools.values().map(|pool| view(&held, pool)).collect()
    }

    /// One pool.
    pub fn pool(&self, name: &str) -> Result<PoolView, Problem> {
        let held = self.lock();
        held.pools.get(name).map(|pool| view(&held, pool)).ok_or_else(|| no_pool(name))
    }

    /// Makes a pool and opens it.
    pub fn create_pool(&self, new: &NewPool) -> Result<PoolView, Problem> {
        let mut held = self.lock();
        if held.pools.contains_key(&new.name) {
            let title = format!("there is a pool `{}` already", new.name);
            return Err(Problem::conflict(title).detail("choose another name, or delete that one first"));
        }
        let workers = self.workers()?.clone();
        let title = format!("the pool `{}` cannot be made", new.name);
        let devices = open_new(&held, &new.devices)
            .map_err(|errors| Problem::invalid(title.clone(), errors.list().to_vec()))?;
        let unmake = |devices: &[OpenDevice]| devices.iter().for_each(OpenDevice::unmake);
        let member = |(at, device): (usize, &OpenDevice)| DeviceSpec {
            tier: if at < new.devices.hot.len() { TierName::Hot } else { TierName::Cold },
            path: device.path.clone(),
            size_bytes: device.size_bytes,
            uuid: Uuid::new_v4(),
            adopted_bytes: None,
        };
        let spec = PoolSpec {
            name: new.name.clone(),
            uuid: Uuid::new_v4(),
            devices: devices.iter().enumerate().map(member).collect(),
            migration_bytes_per_s: new.migration_bytes_per_s,
            tenants: Vec::new(),
        };
        let open = format(&spec, &devices).and_then(|devices| {
            self.start_pool(&spec, devices, &workers[held.pools.len() % workers.len()], false)
        });
        let open = match open {
            Ok(handle) => handle,
            Err(reason) => {
                unmake(&devices);
                let mut errors = Errors::new();
                errors.add("devices", "", reason, "");
                return Err(Problem::invalid(title, errors.list().to_vec()));
            }
        };
        held.pools.insert(spec.name.clone(), HeldPool::new(spec, Ok(open)));
        if let Err(problem) = self.keep(&held) {
            if let Some(HeldPool { open: Ok(handle), .. }) = held.pools.remove(&new.name) {
                handle.close();
            }
            unmake(&devices);
            return Err(problem);
        }
        tracing::info!(pool = new.name, "made");
        Ok(view(&held, &held.pools[&new.name]))
    }

    /// Opens a pool that failed or that became read-only, once what was missing is back; without its hot tier when
    /// `degraded`. A read-only pool's guests are disconnected for a moment.
    pub fn open_pool(&self, name: &str, degraded: bool) -> Result<PoolView, Problem> {
        let mut held = self.lock();
        let open = held.pools.get(name).ok_or_else(|| no_pool(name))?.open.clone();
        if let Ok(handle) = open {
            if handle.status().read_only().is_none() {
                return Err(Problem::conflict(format!("the pool `{name}` is open")));
            }
            for volume in volumes_of(&held, name) {
                held.put_out_of_service(&volume, "its pool is being opened again");
            }
            handle.close();
        }
        self.reopen_pool(&mut held, name, degraded)?;
        Ok(view(&held, &held.pools[name]))
    }

    /// Tries those pools again that failed and whose time has come; tells what was lost with a device.
    pub(crate) fn look_after_pools(&self, held: &mut Held, now: Instant) {
        let due = |pool: &&HeldPool| pool.open.is_err() && pool.retry.1 <= now;
        let names: Vec<String> = held.pools.values().filter(due).map(|pool| pool.spec.name.clone()).collect();
        for name in names {
            if self.reopen_pool(held, &name, false).is_ok() {
                tracing::info!(pool = name, "open now");
            } else if let Some(pool) = held.pools.get_mut(&name) {
                let (attempts, _) = pool.retry;
                pool.retry = (attempts.saturating_add(1), now + pause(attempts));
            }
        }
        let silent = |pool: &&HeldPool| {
            !pool.told && pool.open.as_ref().is_ok_and(|open| open.status().read_only().is_some())
        };
        let names: Vec<String> =
            held.pools.values().filter(silent).map(|pool| pool.spec.name.clone()).collect();
        for name in names {
            let usage = view(held, &held.pools[&name]).usage.unwrap_or_default();
            for device in &usage.lost_devices {
                tracing::error!(pool = name, device = %device.display(), "a device of the pool is lost");
            }
            for (volume, ranges) in lost_by_volume(&usage.lost) {
                tracing::error!(pool = name, volume, ranges, "these bytes of the volume cannot be read");
            }
            held.pools.values_mut().filter(|pool| pool.spec.name == name).for_each(|pool| pool.told = true);
        }
    }

    fn reopen_pool(&self, held: &mut Held, name: &str, degraded: bool) -> Result<(), Problem> {
        let workers = self.workers()?.clone();
        let place = held.pools.keys().position(|key| key == name).unwrap_or_default();
        let pool = held.pools.get_mut(name).ok_or_else(|| no_pool(name))?;
        pool.told = false;
        pool.open = self.find_pool(&mut pool.spec, &workers[place % workers.len()], degraded);
        if let Err(reason) = &pool.open {
            let title = format!("the pool `{name}` cannot be opened");
            return Err(Problem::conflict(title).detail(reason.clone()));
        }
        sweep(held, name);
        self.serve_again(held, name);
        Ok(())
    }

    /// Forgets a pool without volumes. Its devices are left alone, but that adopted files are as long as before.
    pub fn delete_pool(&self, name: &str) -> Result<(), Problem> {
        let mut held = self.lock();
        let pool = held.pools.get(name).ok_or_else(|| no_pool(name))?;
        let volumes = volumes_of(&held, name);
        if !volumes.is_empty() {
            let title = format!("the pool `{name}` has volumes");
            return Err(Problem::conflict(title).detail(format!("delete {} first", volumes.join(", "))));
        }
        if held.unfinished.iter().any(|unfinished| unfinished.pool == name) {
            let title = format!("the pool `{name}` is in use");
            return Err(Problem::conflict(title).detail("wait for its imports and exports, or cancel them"));
        }
        let open = pool.open.clone();
        let pool = held.pools.remove(name);
        if let Err(problem) = self.keep(&held) {
            held.pools.extend(pool.map(|pool| (name.to_string(), pool)));
            return Err(problem);
        }
        if let Ok(handle) = open {
            handle.close();
        }
        pool.iter().flat_map(|pool| &pool.spec.devices).for_each(give_back);
        tracing::info!(pool = name, "deleted");
        Ok(())
    }

    /// Opens the pools of an earlier run. One that cannot be opened is kept as failed, and keeps no other from it.
    pub(crate) fn restore_pools(
        &self,
        held: &mut Held,
        specs: Vec<PoolSpec>,
        workers: &[WorkerHandle<Command>],
    ) {
        for (place, mut spec) in specs.into_iter().enumerate() {
            let open = self.find_pool(&mut spec, &workers[place % workers.len()], false);
            match &open {
                Ok(_) => tracing::info!(pool = spec.name, "open again"),
                Err(reason) => tracing::error!(pool = spec.name, reason, "this pool cannot be opened"),
            }
            let name = spec.name.clone();
            held.pools.insert(name.clone(), HeldPool::new(spec, open));
            sweep(held, &name);
        }
        self.bury(held);
    }

    /// Deletes in open pools what was to be deleted when an earlier run ended.
    pub(crate) fn bury(&self, held: &mut Held) {
        let Held { volumes, pools, doomed, .. } = held;
        let named = |pool: &str, id: u32| {
            let is = |backing: &Backing| matches!(backing, Backing::Pool(place) if place.name == pool && place.id == id);
            volumes.values().any(|volume| is(&volume.spec.backing))
        };
        doomed.retain(|doomed| {
            let Some(Ok(handle)) = pools.get(&doomed.pool).map(|pool| &pool.open) else {
                return pools.contains_key(&doomed.pool);
            };
            if named(&doomed.pool, doomed.id) {
                return false;
            }
            match handle.change({
                let id = doomed.id;
                move |store| store.delete_volume(tiering::VolumeId(id))
            }) {
                Ok(()) | Err(super::control::ChangeError::Refused(tiering::VolumeError::NoVolume(_))) => false,
                Err(error) => {
                    tracing::error!(pool = doomed.pool, id = doomed.id, %error, "a volume is still to be deleted");
                    true
                }
            }
        });
    }

    /// Opens a pool's devices and the pool. A device that was to join it, and did not before the daemon died, is no longer
    /// in `spec` then.
    fn find_pool(
        &self,
        spec: &mut PoolSpec,
        worker: &WorkerHandle<Command>,
        degraded: bool,
    ) -> Result<PoolHandle, String> {
        let (devices, mut missing) = Devices::open(spec.devices.iter());
        let members = devices.list.iter().zip(&spec.devices);
        let wrong: Vec<String> =
            members.filter_map(|(device, of)| check_member(spec, of, device.as_ref()).err()).collect();
        if !wrong.is_empty() {
            missing.extend(wrong);
            return Err(missing.join("; "));
        }
        let handle =
            self.start_pool(spec, devices, worker, degraded).map_err(|reason| match &missing[..] {
                [] => reason,
                missing => format!("{}; {reason}", missing.join("; ")),
            })?;
        let members = handle.ask(|store| store.devices().count()).map_err(|gone| gone.to_string())?;
        spec.devices.truncate(members);
        Ok(handle)
    }

    fn start_pool(
        &self,
        spec: &PoolSpec,
        mut devices: Devices,
        worker: &WorkerHandle<Command>,
        degraded: bool,
    ) -> Result<PoolHandle, String> {
        let boot = boot_id()?;
        let tuning = Tuning {
            requests_max: REQUESTS_MAX,
            scratch_buffers: SCRATCH_BUFFERS,
            migration_bytes_per_s: spec.migration_bytes_per_s.unwrap_or(u64::MAX),
            boot,
            ..Tuning::default()
        };
        let epoch = Instant::now();
        let options = OpenOptions { tuning, degraded, now_ns: 0 };
        let store = Store::open(&mut devices, options).map_err(|error| say(spec, &devices, &error))?;
        devices.list.truncate(store.devices().count());
        let status = Arc::new(PoolStatus::default());
        status.update(&store, &spec.name);
        let block_bytes = devices.list.iter().flatten().map(OpenDevice::block_bytes).max().unwrap_or(512);
        let start = PoolStart {
            name: spec.name.clone(),
            store,
            devices: devices.list,
            requests_max: REQUESTS_MAX,
            epoch,
            status: status.clone(),
            metrics: PoolMetrics::new(self.registry(), &spec.name),
            limited: self.limited(),
        };
        let number = worker
            .call(|reply| Command::OpenPool(Box::new(start), reply))
            .map_err(|gone| gone.to_string())??;
        Ok(PoolHandle::new(worker.clone(), number, block_bytes, status))
    }
}

/// Has those volumes of a pool deleted that a crash in the middle of making them left without a name: of which nothing
/// would be lost, since they are empty or the same as what they are a copy of.
fn sweep(held: &mut Held, pool: &str) {
    let Some(Ok(handle)) = held.pools.get(pool).map(|pool| &pool.open) else { return };
    if handle.status().read_only().is_some() {
        return;
    }
    let places = held.volumes.values().filter_map(|volume| volume.spec.backing.place());
    let named: BTreeSet<u32> = places.filter(|place| place.name == pool).map(|place| place.id).collect();
    let look = move |store: &mut Store| {
        let same = |info: &VolumeInfo| {
            info.parent.is_some_and(|parent| {
                store.diff(parent, info.id, 0, u64::MAX).is_ok_and(|diff| diff.is_empty())
            })
        };
        let left = |info: &VolumeInfo| {
            !named.contains(&info.id.0) && info.adopted.is_none() && (info.mapped_bytes == 0 || same(info))
        };
        store.volumes().filter(left).map(|info| info.id.0).collect::<Vec<u32>>()
    };
    // A pool that is gone has nothing to be swept.
    let left = handle.ask(look).unwrap_or_default();
    for id in left {
        tracing::info!(pool, id, "a volume whose making was interrupted is deleted");
        held.doomed.push(Doomed { pool: pool.to_string(), id });
    }
}

/// Lost ranges for people, by volume: the first few.
fn lost_by_volume(lost: &[LostRange]) -> BTreeMap<&str, String> {
    const SHOWN: usize = 8;
    let mut volumes: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for range in lost {
        let text = format!("{}..{}", range.offset, range.offset + range.bytes);
        volumes.entry(&range.volume).or_default().push(text);
    }
    let say = |ranges: Vec<String>| match ranges.len() {
        ..=SHOWN => ranges.join(", "),
        all => format!("{} and {} more", ranges[..SHOWN].join(", "), all - SHOWN),
    };
    volumes.into_iter().map(|(volume, ranges)| (volume, say(ranges))).collect()
}

/// Which boot of the host this is.
pub(super) fn boot_id() -> Result<Uuid, String> {
    let text = std::fs::read_to_string(BOOT_ID).ok();
    text.and_then(|text| Uuid::parse_str(text.trim()).ok())
        .ok_or_else(|| format!("cannot read {BOOT_ID}, which tells what survived"))
}

/// What is asked of a pool that is not there.
pub(crate) fn no_pool(name: &str) -> Problem {
    Problem::not_found(format!("there is no pool `{name}`"))
}

/// Opens the devices of a new pool, or more of them for one: all of them, or everything that is wrong with them.
pub(super) fn open_new(held: &Held, new: &MoreDevices) -> Result<Vec<OpenDevice>, Errors> {
    let mut errors = Errors::new();
    let mut devices: Vec<OpenDevice> = Vec::new();
    let fields = ["hot", "cold"].into_iter().zip([&new.hot, &new.cold]);
    let numbered = fields.flat_map(|(tier, list)| {
        list.iter().enumerate().map(move |(at, device)| (format!("{tier}[{at}]"), device))
    });
    for (field, NewDevice { path, size_bytes }) in numbered {
        let user =
            held.pools.values().find(|pool| pool.spec.devices.iter().any(|device| device.path == *path));
        if let Some(pool) = user {
            let detail = format!("in use by the pool `{}`", pool.spec.name);
            errors.add(field, path.display(), detail, "give another device");
            continue;
        }
        let device = match OpenDevice::open(path, *size_bytes, true) {
            Ok(device) => device,
            Err(error) => {
                errors.add(field, path.display(), chain_of(&error), "");
                continue;
            }
        };
        if !device.made && !new.force {
            let (detail, remedy) = match device.superblock() {
                Some(block) => (
                    format!("it belongs to the pool {}", block.pool),
                    "give another device, or overwrite it with --force",
                ),
                None if device.in_use() => {
                    ("there are data on it".to_string(), "give another device, or overwrite it with --force")
                }
                None => (String::new(), ""),
            };
            if !detail.is_empty() {
                errors.add(field, path.display(), detail, remedy);
            }
        }
        devices.push(device);
    }
    if errors.is_empty() {
        return Ok(devices);
    }
    devices.iter().for_each(OpenDevice::unmake);
    Err(errors)
}

/// Writes a new pool to its devices.
fn format(spec: &PoolSpec, devices: &[OpenDevice]) -> Result<Devices, String> {
    let mut open = Devices { list: devices.iter().cloned().map(Some).collect(), failure: None };
    let member = |device: &DeviceSpec| {
        let DeviceSpec { uuid, size_bytes, tier, .. } = *device;
        NewMember { uuid, tier: tier.into(), size_bytes }
    };
    let members = spec.devices.iter().map(member).collect();
    tiering::format(&mut open, &FormatSpec::usual(spec.uuid, members))
        .map_err(|error| say(spec, &open, &error))?;
    Ok(open)
}

/// A device that is there must be the one that the pool knows.
fn check_member(pool: &PoolSpec, spec: &DeviceSpec, device: Option<&OpenDevice>) -> Result<(), String> {
    let Some(block) = device.and_then(|device| device.superblock_of(spec)) else { return Ok(()) };
    let path = spec.path.display();
    if block.pool != pool.uuid {
        return Err(format!("{path} belongs to the pool {}, not to {}", block.pool, pool.uuid));
    }
    match block.devices.get(usize::from(block.index)) {
        Some(member) if member.uuid == spec.uuid => Ok(()),
        _ => Err(format!("{path} is another device of the pool, not {}", spec.uuid)),
    }
}

/// An error of the store with the path of the device it speaks of.
fn say(spec: &PoolSpec, devices: &Devices, error: &OpenError) -> String {
    let device = match error {
        OpenError::TooSmall { device, .. }
        | OpenError::Short { device, .. }
        | OpenError::Foreign { device, .. }
        | OpenError::Outdated { device, .. }
        | OpenError::Io(device)
        | OpenError::NotAMember(device)
        | OpenError::Layout(device)
        | OpenError::ColdMissing(device) => Some(*device),
        _ => None,
    };
    let path = device.and_then(|at| spec.devices.get(at)).map(|device| device.path.display());
    let mut text = error.to_string();
    if let Some(path) = path {
        text = format!("{text} ({path})");
    }
    if let (OpenError::Io(_), Some(failure)) = (error, &devices.failure) {
        text = format!("{text}: {failure}");
    }
    if let OpenError::HotMissing { .. } | OpenError::JournalDamaged { .. } = error {
        text = format!("{text} with `sluice pool open {} --degraded`", spec.name);
    }
    text
}

fn volumes_of(held: &Held, pool: &str) -> Vec<String> {
    let inside = |backing: &Backing| matches!(backing, Backing::Pool(place) if place.name == pool);
    held.volumes.values().filter(|v| inside(&v.spec.backing)).map(|v| v.spec.name.clone()).collect()
}

pub(super) fn view(held: &Held, pool: &HeldPool) -> PoolView {
    let spec = pool.spec.clone();
    let mut warnings = Vec::new();
    if spec.tier_bytes(TierName::Hot) > spec.tier_bytes(TierName::Cold) {
        warnings
            .push("the hot tier is larger than the cold one: what is beyond it is never used".to_string());
    }
    let tenants = spec.tenants.clone();
    let gathered = match &pool.open {
        Ok(handle) => handle.ask(move |store| gather(store, &tenants)).map_err(|gone| gone.to_string()),
        Err(reason) => Err(reason.clone()),
    };
    let (state, usage) = match gathered {
        Ok((mut usage, all, lost, read_only, gone)) => {
            usage.lost_devices = paths(&spec, &gone);
            let name = |id: tiering::VolumeId| held.name_in(&spec.name, id);
            let known = |id: u32| {
                held.unfinished.iter().any(|unfinished| unfinished.pool == spec.name && unfinished.id == id)
            };
            let unnamed = all.iter().filter(|info| name(info.id).is_none() && !known(info.id.0));
            usage.unnamed = unnamed.map(|info| info.id.0).collect();
            usage.lost = lost
                .into_iter()
                .map(|lost| LostRange {
                    volume: name(lost.volume).unwrap_or_else(|| lost.volume.0.to_string()),
                    offset: lost.offset,
                    bytes: lost.len,
                })
                .collect();
            let state = match read_only {
                Some(reason) => PoolState::ReadOnly { reason: reason.to_string() },
                None if usage.waiting_writes > 0 => PoolState::Full,
                None => PoolState::Open,
            };
            (state, Some(usage))
        }
        Err(reason) => (PoolState::Failed { reason }, None),
    };
    if let Some(usage) = &usage {
        if usage.promised_bytes > usage.cold_bytes {
            warnings.push("the volumes together are larger than the pool: watch its free space".to_string());
        }
        if !usage.unnamed.is_empty() {
            warnings.push(
                "there are volumes in the pool that no name belongs to: give them one with `volume create --unnamed`"
                    .to_string(),
            );
        }
    }
    PoolView { volumes: volumes_of(held, &spec.name), spec, state, usage, warnings }
}

/// Paths of the devices of a pool.
fn paths(spec: &PoolSpec, places: &[usize]) -> Vec<PathBuf> {
    places.iter().filter_map(|place| spec.devices.get(*place)).map(|device| device.path.clone()).collect()
}

type Gathered = (PoolUsage, Vec<VolumeInfo>, Vec<tiering::Lost>, Option<&'static str>, Vec<usize>);

fn gather(store: &mut Store, tenants: &[TenantSpec]) -> Gathered {
    let bytes = |units: u64| units * UNIT_BYTES;
    let (hot_free, hot) = store.hot_slots();
    let (cold_free, cold) = store.cold_slots();
    let volumes: Vec<VolumeInfo> = store.volumes().collect();
    let usage = PoolUsage {
        hot_bytes: bytes(hot.into()),
        hot_free_bytes: bytes(hot_free.into()),
        cold_bytes: bytes(cold),
        cold_free_bytes: bytes(cold_free),
        dirty_bytes: bytes(store.dirty_slots().into()),
        promised_bytes: volumes.iter().map(|volume| volume.size_bytes).sum(),
        waiting_writes: store.waiting_for_space() as u64,
        tenants: tenants
            .iter()
            .map(|tenant| {
                let (mapped_bytes, quota_bytes) = store.tenant_usage(tiering::TenantId(tenant.id));
                TenantUsage { tenant: tenant.name.clone(), mapped_bytes, quota_bytes }
            })
            .collect(),
        ..PoolUsage::default()
    };
    let gone = store.devices().filter(|device| !device.present).map(|device| usize::from(device.id.0));
    let gone = gone.collect();
    (usage, volumes, store.lost(), store.read_only(), gone)
}
