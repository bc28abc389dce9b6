//! The switch daemon: workers, ports, OpenFlow agent, admin socket and metrics, from start to clean stop.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use telemetry::http::{AdminSocket, ServeError, Server, serve_admin, serve_metrics};
use telemetry::state::{StateDir, StateError};
use telemetry::{HostError, Registry};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::bridge::Bridge;
use crate::config::DaemonConfig;
use crate::data_path::{DataPath, DataPathConfig};
use crate::fdb::{FDB_LIMIT_DEFAULT, Fdb};
use crate::metrics::ControlMetrics;
use crate::model::{Clock, packet_in_queue};
use crate::openflow::{Agent, AgentConfig, ListenError};
use crate::switch::{RestoreError, Switch};

/// Name of the admin socket in the run directory.
pub const ADMIN_SOCKET: &str = "switch.admin.sock";
/// How often links of the host's devices are looked at and metrics of the control side are brought up to date.
const TICK: Duration = Duration::from_millis(500);

/// Why the daemon could not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The list of ports.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// A socket.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Addresses for OpenFlow.
    #[error("{}", list(.0))]
    Listen(Vec<ListenError>),
    /// A directory, thread or other means of the host.
    #[error(transparent)]
    Host(#[from] HostError),
}

fn list(errors: &[ListenError]) -> String {
    let texts: Vec<String> = errors.iter().map(|error| format!("{error}: {}", error.source)).collect();
    texts.join("; ")
}

/// A running daemon; [`Daemon::stop`] ends it.
pub struct Daemon {
    switch: Arc<Switch>,
    data_path: Arc<DataPath>,
    agent: Option<Arc<Agent>>,
    ticker: Option<JoinHandle<()>>,
    servers: Vec<Server>,
    registry: Registry,
}

impl Daemon {
    /// Starts everything. Nothing is left behind when something fails.
    pub async fn start(config: DaemonConfig) -> Result<Daemon, DaemonError> {
        virtq::install_sigbus_guard();
        let state = StateDir::open(&config.state_dir)?;
        telemetry::make_run_dir(&config.run_dir)?;
        let registry = Registry::new();
        let clock = Clock::start();
        // The source of randomness of the standard library's hash tables: keys from the operating system.
        let seed = RandomState::new().build_hasher().finish();
        let ageing_s = u32::try_from(config.ageing.as_secs()).unwrap_or(u32::MAX);
        let fdb = Arc::new(Fdb::new(FDB_LIMIT_DEFAULT, ageing_s, seed));
        let (packet_ins, receiver) = packet_in_queue();
        let workers = DataPathConfig { cores: config.cores.clone(), spin_us: config.spin_us, seed };
        let data_path = DataPath::start(&workers, &registry, clock, &fdb, &packet_ins).map_err(
            HostError::attempting(format!("start the workers (cores {:?}) with io_uring", config.cores)),
        )?;
        let bridge = Arc::new(Bridge::new(config.bridge.clone(), data_path.clone(), fdb, clock));
        let run_dir = config.run_dir.clone();
        let switch = Switch::empty(bridge, data_path.clone(), run_dir, registry.clone(), state);
        let mut daemon = Daemon {
            switch: Arc::new(switch),
            data_path,
            agent: None,
            ticker: None,
            servers: Vec::new(),
            registry,
        };
        match daemon.serve(&config, receiver).await {
            Ok(()) => Ok(daemon),
            Err(error) => {
                daemon.stop().await;
                Err(error)
            }
        }
    }

    async fn serve(
        &mut self,
        config: &DaemonConfig,
        packet_ins: crate::model::PacketInReceiver,
    ) -> Result<(), DaemonError> {
        if let Some(address) = config.metrics {
            self.servers.push(serve_metrics(address, self.registry.clone()).await?);
        }
        // The admin socket comes first: it tells whether another daemon has this run directory.
        let socket = AdminSocket::new(config.run_dir.join(ADMIN_SOCKET));
        self.servers.push(serve_admin(socket, crate::admin::router(self.switch.clone())).await?);
        let switch = self.switch.clone();
        tokio::task::spawn_blocking(move || switch.restore())
            .await
            .map_err(|error| HostError::attempting("restore the ports")(io::Error::other(error)))??;
        // Controllers find the ports that were kept.
        let agent = AgentConfig {
            controllers: config.controllers.clone(),
            listeners: config.listen.clone(),
            tls: config.tls.clone(),
            ..AgentConfig::default()
        };
        let agent = Agent::start(agent, self.switch.bridge().clone(), packet_ins);
        let agent = Arc::new(agent.map_err(DaemonError::Listen)?);
        self.agent = Some(agent.clone());
        let metrics = ControlMetrics::new(&self.registry, self.data_path.epochs().len());
        self.ticker = Some(tokio::spawn(tick(self.switch.clone(), agent, metrics)));
        Ok(())
    }

    /// The ports, for embedding and tests.
    pub fn switch(&self) -> &Arc<Switch> {
        &self.switch
    }

    /// The OpenFlow agent.
    pub fn agent(&self) -> Option<&Agent> {
        self.agent.as_deref()
    }

    /// What is counted.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Drains all rings, removes the sockets, ends the workers.
    pub async fn stop(mut self) {
        self.servers.clear();
        if let Some(ticker) = self.ticker.take() {
            ticker.abort();
            let _ = ticker.await;
        }
        self.agent = None;
        let (switch, data_path) = (self.switch.clone(), self.data_path.clone());
        let stop = move || {
            switch.close();
            data_path.stop();
        };
        let _ = tokio::task::spawn_blocking(stop).await;
    }
}

/// Everything that is looked at from time to time.
async fn tick(switch: Arc<Switch>, agent: Arc<Agent>, metrics: ControlMetrics) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        metrics.update(&switch, &agent);
        let switch = switch.clone();
        let _ = tokio::task::spawn_blocking(move || switch.tick()).await;
    }
}

/// Runs the daemon until SIGTERM or SIGINT.
pub fn run(config: DaemonConfig) -> Result<(), DaemonError> {
    telemetry::run_daemon(Daemon::start(config), Daemon::stop)
}
