//! The storage daemon: workers, volumes, admin socket and metrics, from start to clean stop.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use reactor::WorkerHandle;
use telemetry::http::{AdminSocket, ServeError, Server, serve_admin, serve_metrics};
use telemetry::state::{StateDir, StateError};
use telemetry::{ControlThread, HostError, Registry};

use crate::config::DaemonConfig;
use crate::volume::{RestoreError, Volumes};
use crate::worker::{self, Command};

/// Name of the admin socket in the run directory.
pub const ADMIN_SOCKET: &str = "blk.admin.sock";

/// Why the daemon could not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The list of volumes.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// A socket.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// A directory, thread or other means of the host.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// A worker: how to reach it, and its thread.
type Running = (WorkerHandle<Command>, JoinHandle<()>);

/// A running daemon; [`Daemon::stop`] ends it.
pub struct Daemon {
    volumes: Arc<Volumes>,
    workers: Vec<Running>,
    servers: Vec<Server>,
    upkeep: Option<tokio::task::JoinHandle<()>>,
    registry: Registry,
}

/// How often volumes that failed are looked at.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

async fn upkeep(volumes: Arc<Volumes>) {
    loop {
        tokio::time::sleep(UPKEEP_INTERVAL).await;
        let volumes = volumes.clone();
        let retry = move || volumes.retry(Instant::now());
        if tokio::task::spawn_blocking(retry).await.is_err() {
            tracing::error!("looking after failed volumes failed itself; they are not tried again");
            return;
        }
    }
}

impl Daemon {
    /// Starts everything. Nothing is left behind when something fails.
    pub async fn start(config: DaemonConfig) -> Result<Daemon, DaemonError> {
        virtq::install_sigbus_guard();
        let state = StateDir::open(&config.state_dir)?;
        telemetry::make_run_dir(&config.run_dir)?;
        let registry = Registry::new();
        let mut daemon = Daemon {
            volumes: Arc::new(Volumes::empty(state, config.run_dir.clone(), registry.clone())),
            workers: start_workers(&config, &registry)?,
            servers: Vec::new(),
            upkeep: None,
            registry: registry.clone(),
        };
        if let Err(error) = daemon.serve(&config).await {
            daemon.stop().await;
            return Err(error);
        }
        Ok(daemon)
    }

    async fn serve(&mut self, config: &DaemonConfig) -> Result<(), DaemonError> {
        if let Some(address) = config.metrics {
            self.servers.push(serve_metrics(address, self.registry.clone()).await?);
        }
        // The admin socket comes first: it tells whether another daemon has this run directory.
        let socket = AdminSocket::new(config.run_dir.join(ADMIN_SOCKET));
        self.servers.push(serve_admin(socket, crate::admin::router(self.volumes.clone())).await?);
        let volumes = self.volumes.clone();
        let workers = self.workers.iter().map(|(handle, _)| handle.clone()).collect();
        tokio::task::spawn_blocking(move || volumes.restore(workers))
            .await
            .map_err(|error| HostError::attempting("restore the volumes")(io::Error::other(error)))??;
        self.upkeep = Some(tokio::spawn(upkeep(self.volumes.clone())));
        Ok(())
    }

    /// The volumes, for embedding and tests.
    pub fn volumes(&self) -> &Arc<Volumes> {
        &self.volumes
    }

    /// What is counted.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Drains all queues, removes the sockets, ends the workers.
    pub async fn stop(mut self) {
        self.servers.clear();
        if let Some(upkeep) = self.upkeep.take() {
            upkeep.abort();
        }
        let stop = move || {
            self.volumes.close();
            for (handle, thread) in self.workers {
                // A worker that is gone needs no word.
                let _ = handle.send(Command::Shutdown);
                let _ = thread.join();
            }
        };
        let _ = tokio::task::spawn_blocking(stop).await;
    }
}

/// Runs the daemon until SIGTERM or SIGINT.
pub fn run(config: DaemonConfig) -> Result<(), DaemonError> {
    telemetry::run_daemon(ControlThread::Own, Daemon::start(config), Daemon::stop)
}

fn start_workers(config: &DaemonConfig, registry: &Registry) -> Result<Vec<Running>, HostError> {
    let cores = match &config.cores[..] {
        [] => vec![None],
        cores => cores.iter().copied().map(Some).collect(),
    };
    let start = |(number, core)| {
        worker::start(format!("blk-{number}"), core, config.spin_us, registry)
            .map_err(HostError::attempting(format!("start worker {number} (core {core:?}) with io_uring")))
    };
    cores.into_iter().enumerate().map(start).collect()
}
