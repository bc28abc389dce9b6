//! The volumes of a daemon: made, found again after a restart, grown, removed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use axum::http::StatusCode;

use reactor::WorkerHandle;
use serde::{Deserialize, Serialize};
use telemetry::state::{StateDir, StateError};
use telemetry::{Gauge, Problem, RateLimited, Registry};
use vhost_session::{Endpoint, SessionMetrics, SocketRole};

use tiering::{Pin, VolumeId};

use crate::backend::BlkBackend;
use crate::disk::{Disk, Seat};
use crate::job::Jobs;
use crate::metrics::QueueMetrics;
use crate::outage::{Outage, poison_note};
use crate::spec::{Backing, NewFork, NewVolume, VolumeSpec, VolumeState, VolumeView};
use crate::tier::VolumeGauges;
use crate::tier::control::{ChangeError, PoolHandle};
use crate::tier::registry::{HeldPool, no_pool};
use crate::tier::spec::{PoolPlace, PoolSpec};
use crate::worker::Command;

/// File in the state directory that lists the volumes.
const LIST_FILE: &str = "volumes.json";
/// Version of that file's format.
const LIST_VERSION: u32 = 1;
/// Permission bits of a volume's socket when none are given.
const SOCKET_MODE: u32 = 0o660;
/// State of a volume that an earlier run has left and this one has not come to yet.
const STARTING: &str = "the daemon is still starting";

/// What the sessions of one volume share.
pub struct Shared {
    /// Name of the volume.
    pub name: String,
    /// Its serial.
    pub serial: String,
    /// Number of queues.
    pub queues: u16,
    /// Its data.
    pub disk: Arc<Disk>,
    /// 1 once nothing may be written any more.
    pub poisoned: Gauge,
    /// Brake for messages that guests can cause.
    pub limited: Arc<RateLimited>,
    registry: Registry,
    workers: Arc<[WorkerHandle<Command>]>,
    first_worker: usize,
    /// By queue: cells of queues that have stopped, to be counted on in.
    metrics: Mutex<Vec<Vec<QueueMetrics>>>,
}

impl Shared {
    /// The worker that serves queue `index`: neighbouring queues run on different ones, but those of a volume in a pool
    /// beside their pool.
    pub fn worker(&self, index: u16) -> WorkerHandle<Command> {
        if let Some(seat) = self.disk.seat() {
            return seat.pool.worker().clone();
        }
        self.workers[(self.first_worker + usize::from(index)) % self.workers.len()].clone()
    }

    /// Cells for queue `index`, which nobody else writes.
    pub fn take_metrics(&self, index: u16) -> QueueMetrics {
        let idle = self.metrics().get_mut(usize::from(index)).and_then(Vec::pop);
        idle.unwrap_or_else(|| QueueMetrics::new(&self.registry, &self.name, index))
    }

    /// Gives cells back, so that they stay visible and go on where they ended.
    pub fn return_metrics(&self, index: u16, metrics: QueueMetrics) {
        if let Some(idle) = self.metrics().get_mut(usize::from(index)) {
            idle.push(metrics);
        }
    }

    fn metrics(&self) -> MutexGuard<'_, Vec<Vec<QueueMetrics>>> {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The list of volumes as it is kept.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: u32,
    volumes: Vec<VolumeSpec>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pools: Vec<PoolSpec>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    doomed: Vec<Doomed>,
}

/// A volume in a pool that is to be deleted: its name is gone already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Doomed {
    /// Name of the pool.
    pub(crate) pool: String,
    /// The volume's number in it.
    pub(crate) id: u32,
}

/// What the list in the state directory is about.
#[derive(Default)]
pub(crate) struct Held {
    pub(crate) volumes: BTreeMap<String, Volume>,
    pub(crate) pools: BTreeMap<String, HeldPool>,
    pub(crate) doomed: Vec<Doomed>,
    /// Volumes in pools that have no name yet, or will never have one: doomed if the daemon ends now.
    pub(crate) unfinished: Vec<Doomed>,
    /// Names of volumes that are being made.
    pub(crate) reserved: BTreeSet<String>,
}

/// Why the volumes of an earlier run cannot be found again.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The state directory failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// The list is not what this program writes.
    #[error(
        "{path} is not a list of volumes of this program ({reason}); restore it from a backup, or remove it and create the volumes again"
    )]
    List {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

pub(crate) struct Volume {
    pub(crate) spec: VolumeSpec,
    pub(crate) service: Result<Service, Outage>,
}

pub(crate) struct Service {
    pub(crate) shared: Arc<Shared>,
    endpoint: Endpoint,
    size: Gauge,
    /// For one in a pool.
    tier: Option<VolumeGauges>,
}

/// All volumes of a daemon. Its methods block: on files, and on workers that drain queues.
pub struct Volumes {
    /// `None` once they are closed: a request that comes too late must not overwrite the list.
    state: Mutex<Option<Arc<StateDir>>>,
    run_dir: PathBuf,
    registry: Registry,
    limited: Arc<RateLimited>,
    /// Empty until the volumes of an earlier run are restored.
    workers: OnceLock<Arc<[WorkerHandle<Command>]>>,
    held: Mutex<Held>,
    jobs: Jobs,
}

impl Volumes {
    /// No volumes yet; requests are refused until [`Volumes::restore`].
    pub fn empty(state: StateDir, run_dir: PathBuf, registry: Registry) -> Volumes {
        let limited = Arc::new(RateLimited::per_minute());
        let state = Mutex::new(Some(Arc::new(state)));
        let (workers, held, jobs) = (OnceLock::new(), Mutex::default(), Jobs::default());
        Volumes { state, run_dir, registry, limited, workers, held, jobs }
    }

    /// Serves the volumes that the state directory lists, on `workers`. One whose data cannot be used is listed as failed
    /// and keeps no other from being served.
    pub fn restore(&self, workers: Vec<WorkerHandle<Command>>) -> Result<(), RestoreError> {
        let mut held = self.lock();
        let workers = self.workers.get_or_init(|| workers.into());
        let Kept { volumes, pools, doomed, .. } = self.read_list()?;
        for spec in volumes {
            let service = Err(Outage::waiting(STARTING));
            held.volumes.insert(spec.name.clone(), Volume { spec, service });
        }
        held.doomed = doomed;
        self.restore_pools(&mut held, pools, workers);
        let names: Vec<String> = held.volumes.keys().cloned().collect();
        names.iter().for_each(|name| self.try_serving(&mut held, name));
        Ok(())
    }

    /// Serves what is in a pool that was opened again.
    pub(crate) fn serve_again(&self, held: &mut Held, pool: &str) {
        self.bury(held);
        let inside = |volume: &&Volume| matches!(&volume.spec.backing, Backing::Pool(at) if at.name == pool);
        let names: Vec<String> =
            held.volumes.values().filter(inside).map(|volume| volume.spec.name.clone()).collect();
        names.iter().for_each(|name| self.try_serving(held, name));
    }

    pub(crate) fn try_serving(&self, held: &mut Held, name: &str) {
        let (Some(volume), Some(workers)) = (held.volumes.get(name), self.workers.get()) else { return };
        if volume.service.is_ok() {
            return;
        }
        let spec = volume.spec.clone();
        let service = self.serve(&spec, false, held, workers).map_err(Outage::first);
        match &service {
            Ok(_) => tracing::info!(volume = name, "serving again"),
            Err(Outage { reason, .. }) => {
                tracing::error!(volume = name, reason, "this volume cannot be served");
            }
        }
        held.volumes.insert(name.to_string(), Volume { spec, service });
    }

    fn read_list(&self) -> Result<Kept, RestoreError> {
        let nothing = Kept { version: LIST_VERSION, volumes: vec![], pools: vec![], doomed: vec![] };
        let Ok(state) = self.state() else { return Ok(nothing) };
        let Some(bytes) = state.read(LIST_FILE)? else { return Ok(nothing) };
        let wrong = |reason| RestoreError::List { path: state.path().join(LIST_FILE), reason };
        let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        if kept.version != LIST_VERSION {
            return Err(wrong(format!("its version is {}, not {LIST_VERSION}", kept.version)));
        }
        Ok(kept)
    }

    /// All volumes, by name.
    pub fn list(&self) -> Vec<VolumeView> {
        self.lock().volumes.values().map(|volume| self.view(volume)).collect()
    }

    /// One volume, with what its pool knows of it.
    pub fn show(&self, name: &str) -> Result<VolumeView, Problem> {
        let tier = self.tier_view(name)?;
        let held = self.lock();
        let mut view =
            held.volumes.get(name).map(|volume| self.view(volume)).ok_or_else(|| no_volume(name))?;
        if let (Some(tier), Backing::Pool(place)) = (&tier, &mut view.spec.backing) {
            place.pin = tier.pin;
        }
        Ok(VolumeView { tier, ..view })
    }

    /// The block size in bytes of a volume.
    pub fn block_bytes(&self, name: &str) -> Result<u32, Problem> {
        let held = self.lock();
        let volume = held.volumes.get(name).ok_or_else(|| no_volume(name))?;
        Ok(volume.spec.block_bytes.unwrap_or(512))
    }

    /// The workers; an error while the daemon is still starting.
    pub(crate) fn workers(&self) -> Result<&Arc<[WorkerHandle<Command>]>, Problem> {
        self.workers.get().ok_or_else(|| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the daemon is still starting").detail("try again")
        })
    }

    /// Long work.
    pub fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(crate) fn limited(&self) -> Arc<RateLimited> {
        self.limited.clone()
    }

    /// Makes a volume and serves it.
    pub fn create(&self, new: NewVolume) -> Result<VolumeView, Problem> {
        let NewVolume { mut spec, limits } = new;
        let mut held = self.lock();
        held.refuse_taken(&spec.name)?;
        self.workers()?;
        let mut made = None;
        if let Backing::Pool(place) = &mut spec.backing {
            let pool = held.open_pool(&place.name)?;
            let size_bytes = spec.size_bytes.unwrap_or_default();
            let title = format!("the volume `{}` cannot be created", spec.name);
            if place.is_there() {
                return self.name_what_is_there(&mut held, spec, &limits, &pool);
            }
            let id = make_in_pool(&pool, size_bytes, place.pin.into())
                .map_err(|error| refused(title.clone(), &error, "size_bytes", &size_bytes))?;
            place.id = id.0;
            made = Some(Doomed { pool: place.name.clone(), id: id.0 });
            let limited = if limits.is_empty() { Ok(()) } else { self.limit(&mut held, place, &limits) };
            if let Err(reason) = limited {
                held.doomed.extend(made);
                self.bury(&mut held);
                return Err(Problem::conflict(title).detail(reason));
            }
        }
        self.put_into_service(&mut held, spec, made)
    }

    /// Serves a new volume and keeps it in the list; what was made for it in a pool is deleted when that fails.
    pub(crate) fn put_into_service(
        &self,
        held: &mut Held,
        mut spec: VolumeSpec,
        made: Option<Doomed>,
    ) -> Result<VolumeView, Problem> {
        let name = spec.name.clone();
        let undo = |held: &mut Held| {
            held.doomed.extend(made);
            self.bury(held);
        };
        let workers = self.workers()?;
        let make = spec.backing.place().is_none();
        let service = match self.serve(&spec, make, held, workers) {
            Ok(service) => service,
            Err(problem) => {
                undo(held);
                return Err(problem);
            }
        };
        spec.size_bytes = Some(service.shared.disk.size_bytes());
        spec.block_bytes = Some(service.shared.disk.block_bytes());
        let disk = service.shared.disk.clone();
        held.volumes.insert(name.clone(), Volume { spec, service: Ok(service) });
        if let Err(problem) = self.keep(held) {
            held.volumes.remove(&name);
            disk.unmake();
            undo(held);
            return Err(problem);
        }
        tracing::info!(volume = name, "created");
        Ok(self.view(&held.volumes[&name]))
    }

    /// Makes a snapshot (not writable) or a clone of a volume in a pool, and serves it.
    pub fn fork(&self, from: &str, fork: NewFork) -> Result<VolumeView, Problem> {
        let mut held = self.lock();
        held.refuse_taken(&fork.name)?;
        let source = held.volumes.get(from).ok_or_else(|| no_volume(from))?.spec.clone();
        let title = format!("the volume `{from}` cannot be copied to `{}`", fork.name);
        let Some(place) = source.backing.place() else {
            let detail = "it is not in a pool: only those have snapshots and clones";
            return Err(Problem::conflict(title).detail(detail));
        };
        let pool = held.open_pool(&place.name)?;
        let id = pool
            .fork(place.volume(), fork.writable)
            .map_err(|error| Problem::conflict(title).detail(chain_of(&error)))?;
        let backing = Backing::Pool(PoolPlace {
            id: id.0,
            origin: Some(from.to_string()),
            adopted: None,
            ..place.clone()
        });
        let serial = fork.serial.clone().unwrap_or_else(|| crate::spec::default_serial(&fork.name));
        let spec = VolumeSpec { name: fork.name, backing, read_only: !fork.writable, serial, ..source };
        let made = Doomed { pool: place.name.clone(), id: id.0 };
        self.put_into_service(&mut held, spec, Some(made))
    }

    /// Grows a volume and tells its guests.
    pub fn resize(&self, name: &str, size_bytes: u64) -> Result<VolumeView, Problem> {
        let mut held = self.lock();
        let volume = held.volumes.get_mut(name).ok_or_else(|| no_volume(name))?;
        let title = format!("the volume `{name}` cannot be resized");
        let service = match &volume.service {
            Ok(service) => service,
            Err(outage) => {
                return Err(Problem::conflict(title).detail(format!("it is not served: {}", outage.reason)));
            }
        };
        if volume.spec.read_only && volume.spec.backing.place().is_some() {
            return Err(Problem::conflict(title)
                .detail("it is read-only and stays as it is; clone it, and grow that"));
        }
        let disk = &service.shared.disk;
        if let Some(Seat { pool, volume }) = disk.seat().cloned()
            && size_bytes > disk.size_bytes()
        {
            pool.change(move |store| store.resize_volume(volume, size_bytes))
                .map_err(|error| refused(title.clone(), &error, "size_bytes", &size_bytes))?;
        }
        disk.resize(size_bytes).map_err(|error| refused(title, &error, "size_bytes", &size_bytes))?;
        volume.spec.size_bytes = Some(size_bytes);
        service.size.set(size_bytes as i64);
        let told = service.endpoint.config_changed();
        tracing::info!(volume = name, size_bytes, told, "resized");
        self.keep(&held)?;
        Ok(self.view(&held.volumes[name]))
    }

    /// Stops serving a volume and forgets it. Its data stay, but those in a pool are deleted. One that was adopted is
    /// refused, unless `force`, while its file does not hold all of it.
    pub fn delete(&self, name: &str, force: bool) -> Result<(), Problem> {
        let mut held = self.lock();
        if !force {
            self.check_left_whole(&mut held, name)?;
        }
        let volume = held.volumes.remove(name).ok_or_else(|| no_volume(name))?;
        let doomed = held.doomed.len();
        let place = volume.spec.backing.place();
        let doom = place.map(|place| Doomed { pool: place.name.clone(), id: place.id });
        held.doomed.extend(doom);
        if let Err(problem) = self.keep(&held) {
            held.doomed.truncate(doomed);
            held.volumes.insert(name.to_string(), volume);
            return Err(problem);
        }
        // Ends its sessions and waits until their queues are drained.
        drop(volume);
        if let Err(error) = self.state()?.remove(&poison_note(name)) {
            tracing::warn!(volume = name, %error, "a note about a failed flush stays behind");
        }
        tracing::info!(volume = name, "deleted");
        if held.doomed.len() > doomed {
            self.bury(&mut held);
            self.keep(&held)?;
        }
        Ok(())
    }

    /// Ends the making of a volume in a pool: what has no name by now is deleted.
    pub(crate) fn give_up(&self, pool: &str, id: VolumeId, name: Option<&str>) {
        let mut held = self.lock();
        if let Some(name) = name {
            held.reserved.remove(name);
        }
        let of = |unfinished: &Doomed| unfinished.pool == pool && unfinished.id == id.0;
        let Some(at) = held.unfinished.iter().position(of) else { return };
        let unfinished = held.unfinished.swap_remove(at);
        held.doomed.push(unfinished);
        self.bury(&mut held);
        // When the list cannot be kept, the next run deletes it.
        if let Err(problem) = self.keep(&held) {
            tracing::warn!(pool, %problem, "a volume that came to nothing stays in the list of what to delete");
        }
    }

    /// Where the sockets stand.
    pub(crate) fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Stops serving everything: jobs are cancelled, queues drained, sockets removed, pools closed. The list is kept, and the state
    /// directory is free for another daemon.
    pub fn close(&self) {
        self.jobs.close();
        let mut held = self.lock();
        held.volumes.clear();
        for pool in std::mem::take(&mut held.pools).into_values() {
            if let Ok(handle) = pool.open {
                handle.close();
            }
        }
        self.state.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// The state directory, while the daemon runs.
    pub(crate) fn state(&self) -> Result<Arc<StateDir>, Problem> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let stopping = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping");
        state.clone().ok_or_else(stopping)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn keep(&self, held: &Held) -> Result<(), Problem> {
        let kept = Kept {
            version: LIST_VERSION,
            volumes: held.volumes.values().map(|volume| volume.spec.clone()).collect(),
            pools: held.pools.values().map(|pool| pool.spec.clone()).collect(),
            doomed: held.doomed.iter().chain(&held.unfinished).cloned().collect(),
        };
        let text = serde_json::to_vec_pretty(&kept).map_err(|error| Problem::internal(error.to_string()))?;
        self.state()?
            .replace(LIST_FILE, &text)
            .map_err(|error| Problem::internal("the list of volumes cannot be kept").detail(chain_of(&error)))
    }

    /// Opens the data and the socket of a volume.
    pub(crate) fn serve(
        &self,
        spec: &VolumeSpec,
        make: bool,
        held: &Held,
        workers: &Arc<[WorkerHandle<Command>]>,
    ) -> Result<Service, Problem> {
        let title = format!("the volume `{}` cannot be served", spec.name);
        let disk = match &spec.backing {
            // A pool knows by itself what a failed flush has lost.
            Backing::Pool(place) => self.disk_in_pool(spec, place, held)?,
            backing => {
                let disk = Disk::open(spec, make).map_err(|error| match backing {
                    Backing::Device(path) => refused(title.clone(), &error, "device", &path.display()),
                    Backing::File(path) => refused(title.clone(), &error, "file", &path.display()),
                    Backing::Null | Backing::Pool(_) => refused(title.clone(), &error, "name", &spec.name),
                })?;
                disk.keep_poison_in(self.state()?, poison_note(&spec.name))
                    .map_err(|error| Problem::internal(title.clone()).detail(chain_of(&error)))?;
                disk
            }
        };
        let labels = [("volume", spec.name.as_str())];
        let size = self.registry.gauge("sluice_blk_volume_bytes", "Size of the volume.", &labels);
        size.set(disk.size_bytes() as i64);
        let shared = Arc::new(Shared {
            name: spec.name.clone(),
            serial: spec.serial.clone(),
            queues: spec.queues,
            disk: disk.clone(),
            poisoned: self.registry.gauge(
                "sluice_blk_volume_poisoned",
                "1 once a flush failed: nothing is written any more.",
                &labels,
            ),
            limited: self.limited.clone(),
            registry: self.registry.clone(),
            workers: workers.clone(),
            first_worker: held.volumes.values().map(|volume| usize::from(volume.spec.queues)).sum(),
            metrics: Mutex::new((0..spec.queues).map(|_| Vec::new()).collect()),
        });
        shared.poisoned.set(disk.poisoned().is_some().into());
        let role = SocketRole::Server {
            path: self.socket_path(&spec.name),
            owner: spec.socket.owner,
            group: spec.socket.group,
            mode: spec.socket.mode.unwrap_or(SOCKET_MODE),
        };
        let of_sessions = shared.clone();
        let factory = move || Ok(BlkBackend::new(of_sessions.clone()));
        let metrics = SessionMetrics::new(&self.registry, &labels);
        let endpoint = vhost_session::serve(spec.name.clone(), role, factory, metrics).map_err(|error| {
            disk.unmake();
            refused(title, &error, "name", &spec.name)
        })?;
        let place = spec.backing.place();
        let tier = place.map(|place| VolumeGauges::new(&self.registry, &place.name, &spec.name));
        Ok(Service { shared, endpoint, size, tier })
    }

    /// A volume in a pool as the pool knows it.
    fn disk_in_pool(&self, spec: &VolumeSpec, place: &PoolPlace, held: &Held) -> Result<Arc<Disk>, Problem> {
        let title = format!("the volume `{}` cannot be served", spec.name);
        let pool = held.open_pool(&place.name)?;
        let volume = place.volume();
        let info = pool
            .ask(move |store| store.volume(volume))
            .map_err(|gone| Problem::internal(title.clone()).detail(gone.to_string()))?;
        let Some(info) = info else {
            let detail = format!("the pool `{}` has no volume of the number {}", place.name, place.id);
            return Err(Problem::conflict(title).detail(detail));
        };
        let smallest = pool.block_bytes();
        if let Some(bytes) = spec.block_bytes.filter(|bytes| *bytes < smallest) {
            let mut errors = telemetry::check::Errors::new();
            let detail = format!("the devices of the pool have blocks of {smallest} bytes");
            errors.add("block_size", bytes, detail, format!("use {smallest}"));
            return Err(Problem::invalid(title, errors.list().to_vec()));
        }
        Ok(Disk::in_pool(spec, Seat { pool, volume }, info.size_bytes))
    }

    fn socket_path(&self, name: &str) -> PathBuf {
        self.run_dir.join(format!("{name}.sock"))
    }

    pub(crate) fn view(&self, volume: &Volume) -> VolumeView {
        let (state, frontends) = match &volume.service {
            Ok(service) => {
                let state = match service.shared.disk.poisoned() {
                    Some(reason) => VolumeState::Poisoned { reason: reason.to_string() },
                    None => VolumeState::Serving,
                };
                (state, service.endpoint.sessions().len() as u32)
            }
            Err(outage) => (outage.state(), 0),
        };
        VolumeView {
            spec: volume.spec.clone(),
            socket_path: self.socket_path(&volume.spec.name),
            state,
            frontends,
            tier: None,
        }
    }
}

impl Held {
    /// Ends the sessions of a volume and waits until their queues are drained.
    pub(crate) fn put_out_of_service(&mut self, name: &str, why: &str) {
        if let Some(volume) = self.volumes.get_mut(name) {
            volume.service = Err(Outage::waiting(why));
        }
    }

    /// Takes over what the pools say of their volumes.
    pub(crate) fn update_gauges(&self) {
        for pool in self.pools.values() {
            let Ok(handle) = &pool.open else { continue };
            // A pool that is gone has nothing to show.
            let all = handle.ask(|store| store.volumes().collect::<Vec<_>>()).unwrap_or_default();
            let infos: BTreeMap<u32, _> = all.into_iter().map(|info| (info.id.0, info)).collect();
            for volume in self.volumes.values() {
                if let (Some(place), Ok(service)) = (volume.spec.backing.place(), &volume.service)
                    && place.name == pool.spec.name
                    && let (Some(gauges), Some(info)) = (&service.tier, infos.get(&place.id))
                {
                    gauges.update(info);
                }
            }
        }
    }

    /// A name that is taken is no name for another volume.
    pub(crate) fn refuse_taken(&self, name: &str) -> Result<(), Problem> {
        if self.reserved.contains(name) {
            let title = format!("a volume `{name}` is being made");
            return Err(Problem::conflict(title).detail("choose another name, or cancel that job first"));
        }
        if !self.volumes.contains_key(name) {
            return Ok(());
        }
        let title = format!("there is a volume `{name}` already");
        Err(Problem::conflict(title).detail("choose another name, or delete that one first"))
    }

    /// The name of a volume of a pool, if it has one.
    pub(crate) fn name_in(&self, pool: &str, id: VolumeId) -> Option<String> {
        let here = |place: &PoolPlace| place.name == pool && place.id == id.0;
        let volume = self.volumes.values().find(|volume| volume.spec.backing.place().is_some_and(here))?;
        Some(volume.spec.name.clone())
    }

    /// Looks for a volume of a pool that has no name and is not being made or deleted; true if it is read-only.
    pub(crate) fn find_unnamed(&self, pool: &PoolHandle, place: &PoolPlace) -> Result<bool, Problem> {
        let id = place.volume();
        let find = move |store: &mut tiering::Store| store.volume(id);
        let found = pool.ask(find).map_err(crate::tier::gone)?;
        let on_its_way = |doomed: &Doomed| doomed.pool == place.name && doomed.id == place.id;
        let busy = self.doomed.iter().chain(&self.unfinished).any(on_its_way);
        match found.filter(|_| !busy && self.name_in(&place.name, id).is_none()) {
            Some(info) => Ok(!info.writable),
            None => {
                let title = format!("the pool `{}` has no volume {} without a name", place.name, place.id);
                Err(Problem::conflict(title).detail("`sluice pool show` lists those that it has as unnamed"))
            }
        }
    }

    /// The open pool of that name.
    pub(crate) fn open_pool(&self, name: &str) -> Result<PoolHandle, Problem> {
        let pool = self.pools.get(name).ok_or_else(|| no_pool(name))?;
        pool.open
            .clone()
            .map_err(|reason| Problem::conflict(format!("the pool `{name}` is not open")).detail(reason))
    }
}

pub(crate) fn make_in_pool(pool: &PoolHandle, size_bytes: u64, pin: Pin) -> Result<VolumeId, ChangeError> {
    pool.change(move |store| {
        let id = store.create_volume(size_bytes)?;
        if pin != Pin::Auto {
            store.pin_volume(id, pin)?;
        }
        Ok(id)
    })
}

pub(crate) fn no_volume(name: &str) -> Problem {
    Problem::not_found(format!("there is no volume `{name}`"))
}

/// An error with its causes, for people.
pub(crate) fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Some errors show their cause themselves.
        let shown = error.to_string();
        if !text.contains(&shown) {
            text = format!("{text}: {shown}");
        }
        cause = error.source();
    }
    text
}

/// What was asked does not fit the host: the request is at fault, and the message names its value.
pub(crate) fn refused(
    title: String,
    error: &dyn std::error::Error,
    field: &str,
    value: &dyn std::fmt::Display,
) -> Problem {
    let mut errors = telemetry::check::Errors::new();
    errors.add(field, value, chain_of(error), "");
    Problem::invalid(title, errors.list().to_vec())
}
