//! The volumes of a daemon: made, found again after a restart, grown, removed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use axum::http::StatusCode;

use reactor::WorkerHandle;
use serde::{Deserialize, Serialize};
use telemetry::state::{StateDir, StateError};
use telemetry::{Gauge, Problem, RateLimited, Registry};
use vhost_session::{Endpoint, SessionMetrics, SocketRole};

use crate::backend::BlkBackend;
use crate::disk::Disk;
use crate::metrics::QueueMetrics;
use crate::outage::{Outage, poison_note};
use crate::spec::{VolumeSpec, VolumeState, VolumeView};
use crate::worker::Command;

/// File in the state directory that lists the volumes.
const LIST_FILE: &str = "volumes.json";
/// Version of that file's format.
const LIST_VERSION: u32 = 1;
/// Permission bits of a volume's socket when none are given.
const SOCKET_MODE: u32 = 0o660;

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
    /// The worker that serves queue `index`: neighbouring queues run on different ones.
    pub fn worker(&self, index: u16) -> WorkerHandle<Command> {
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
    volumes: Mutex<BTreeMap<String, Volume>>,
}

impl Volumes {
    /// No volumes yet; requests are refused until [`Volumes::restore`].
    pub fn empty(state: StateDir, run_dir: PathBuf, registry: Registry) -> Volumes {
        let limited = Arc::new(RateLimited::per_minute());
        let state = Mutex::new(Some(Arc::new(state)));
        Volumes { state, run_dir, registry, limited, workers: OnceLock::new(), volumes: Mutex::default() }
    }

    /// Serves the volumes that the state directory lists, on `workers`. One whose data cannot be used is listed as failed
    /// and keeps no other from being served.
    pub fn restore(&self, workers: Vec<WorkerHandle<Command>>) -> Result<(), RestoreError> {
        let mut volumes = self.lock();
        let workers = self.workers.get_or_init(|| workers.into());
        for spec in self.read_list()? {
            let service = self.serve(&spec, false, &volumes, workers).map_err(Outage::first);
            match &service {
                Ok(_) => tracing::info!(volume = spec.name, "serving again"),
                Err(outage) => {
                    tracing::error!(
                        volume = spec.name,
                        reason = outage.reason,
                        "this volume cannot be served"
                    );
                }
            }
            volumes.insert(spec.name.clone(), Volume { spec, service });
        }
        Ok(())
    }

    fn read_list(&self) -> Result<Vec<VolumeSpec>, RestoreError> {
        let Ok(state) = self.state() else { return Ok(Vec::new()) };
        let Some(bytes) = state.read(LIST_FILE)? else { return Ok(Vec::new()) };
        let wrong = |reason| RestoreError::List { path: state.path().join(LIST_FILE), reason };
        let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        if kept.version != LIST_VERSION {
            return Err(wrong(format!("its version is {}, not {LIST_VERSION}", kept.version)));
        }
        Ok(kept.volumes)
    }

    /// Who serves queues; `None` while the daemon is starting.
    pub(crate) fn workers(&self) -> Option<&Arc<[WorkerHandle<Command>]>> {
        self.workers.get()
    }

    /// All volumes, by name.
    pub fn list(&self) -> Vec<VolumeView> {
        self.lock().values().map(|volume| self.view(volume)).collect()
    }

    /// One volume.
    pub fn show(&self, name: &str) -> Result<VolumeView, Problem> {
        self.lock().get(name).map(|volume| self.view(volume)).ok_or_else(|| no_volume(name))
    }

    /// The block size in bytes of a volume.
    pub fn block_bytes(&self, name: &str) -> Result<u32, Problem> {
        let volumes = self.lock();
        let volume = volumes.get(name).ok_or_else(|| no_volume(name))?;
        Ok(volume.spec.block_bytes.unwrap_or(512))
    }

    /// Makes a volume and serves it.
    pub fn create(&self, mut spec: VolumeSpec) -> Result<VolumeView, Problem> {
        let mut volumes = self.lock();
        if volumes.contains_key(&spec.name) {
            let title = format!("there is a volume `{}` already", spec.name);
            return Err(Problem::conflict(title).detail("choose another name, or delete that one first"));
        }
        let workers = self.workers.get().ok_or_else(|| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the daemon is still starting").detail("try again")
        })?;
        let service = self.serve(&spec, true, &volumes, workers)?;
        spec.size_bytes = Some(service.shared.disk.size_bytes());
        spec.block_bytes = Some(service.shared.disk.block_bytes());
        let disk = service.shared.disk.clone();
        let name = spec.name.clone();
        volumes.insert(name.clone(), Volume { spec, service: Ok(service) });
        if let Err(problem) = self.keep(&volumes) {
            volumes.remove(&name);
            disk.unmake();
            return Err(problem);
        }
        tracing::info!(volume = name, "created");
        Ok(self.view(&volumes[&name]))
    }

    /// Grows a volume and tells its guests.
    pub fn resize(&self, name: &str, size_bytes: u64) -> Result<VolumeView, Problem> {
        let mut volumes = self.lock();
        let volume = volumes.get_mut(name).ok_or_else(|| no_volume(name))?;
        let title = format!("the volume `{name}` cannot be resized");
        let service = match &volume.service {
            Ok(service) => service,
            Err(outage) => {
                return Err(Problem::conflict(title).detail(format!("it is not served: {}", outage.reason)));
            }
        };
        service
            .shared
            .disk
            .resize(size_bytes)
            .map_err(|error| refused(title, &error, "size_bytes", &size_bytes))?;
        volume.spec.size_bytes = Some(size_bytes);
        service.size.set(size_bytes as i64);
        let told = service.endpoint.config_changed();
        tracing::info!(volume = name, size_bytes, told, "resized");
        self.keep(&volumes)?;
        Ok(self.view(&volumes[name]))
    }

    /// Stops serving a volume and forgets it. Its data stay.
    pub fn delete(&self, name: &str) -> Result<(), Problem> {
        let mut volumes = self.lock();
        let volume = volumes.remove(name).ok_or_else(|| no_volume(name))?;
        if let Err(problem) = self.keep(&volumes) {
            volumes.insert(name.to_string(), volume);
            return Err(problem);
        }
        // Ends its sessions and waits until their queues are drained.
        drop(volume);
        if let Err(error) = self.state()?.remove(&poison_note(name)) {
            tracing::warn!(volume = name, %error, "a note about a failed flush stays behind");
        }
        tracing::info!(volume = name, "deleted");
        Ok(())
    }

    /// Stops serving everything: queues are drained, sockets removed. The list is kept, and the state directory is free
    /// for another daemon.
    pub fn close(&self) {
        let mut volumes = self.lock();
        volumes.clear();
        self.state.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// The state directory, while the daemon runs.
    pub(crate) fn state(&self) -> Result<Arc<StateDir>, Problem> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let stopping = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping");
        state.clone().ok_or_else(stopping)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Volume>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, volumes: &BTreeMap<String, Volume>) -> Result<(), Problem> {
        let kept = Kept {
            version: LIST_VERSION,
            volumes: volumes.values().map(|volume| volume.spec.clone()).collect(),
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
        volumes: &BTreeMap<String, Volume>,
        workers: &Arc<[WorkerHandle<Command>]>,
    ) -> Result<Service, Problem> {
        let title = format!("the volume `{}` cannot be served", spec.name);
        let field = match &spec.backing {
            crate::spec::Backing::Device(_) => "device",
            _ => "file",
        };
        let disk =
            Disk::open(spec, make).map_err(|error| refused(title.clone(), &error, field, &spec.backing))?;
        disk.keep_poison_in(self.state()?, poison_note(&spec.name))
            .map_err(|error| Problem::internal(title.clone()).detail(chain_of(&error)))?;
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
            first_worker: volumes.values().map(|volume| usize::from(volume.spec.queues)).sum(),
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
        Ok(Service { shared, endpoint, size })
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
        }
    }
}

pub(crate) fn no_volume(name: &str) -> Problem {
    Problem::not_found(format!("there is no volume `{name}`"))
}

/// An error with its causes, for people.
fn chain_of(error: &dyn std::error::Error) -> String {
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
fn refused(
    title: String,
    error: &dyn std::error::Error,
    field: &str,
    value: &dyn std::fmt::Display,
) -> Problem {
    let mut errors = telemetry::check::Errors::new();
    errors.add(field, value, chain_of(error), "");
    Problem::invalid(title, errors.list().to_vec())
}
