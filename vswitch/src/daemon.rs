//! The switch daemon: workers, ports, OpenFlow agent, admin socket and metrics, from start to clean stop.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use reactor::netdev::DeviceChanges;
use telemetry::http::{AdminSocket, ServeError, Server, serve_admin, serve_metrics};
use telemetry::state::{StateDir, StateError};
use telemetry::{ControlThread, HostError, Registry};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
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
/// How often ports that could not be served are tried again and metrics of the control side are brought up to date.
const TICK: Duration = Duration::from_millis(500);

/// How often links of the host's devices are looked at although nothing was heard: the kernel tells of a carrier that is
/// lost up to a second late, and controllers are to know within 100 ms.
const LINK_LOOK: Duration = Duration::from_millis(50);

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
    tasks: Vec<JoinHandle<()>>,
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
        let workers = DataPathConfig {
            cores: config.cores.clone(),
            spin_us: config.spin_us,
            seed,
            packet_ins_per_second: config.packet_ins.port,
        };
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
            tasks: Vec::new(),
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
        // Before the links are looked at for the first time: what changes later is heard of.
        let changes = LinkChanges::listen();
        let changes = changes.map_err(HostError::attempting("hear of network devices that change"))?;
        let switch = self.switch.clone();
        tokio::task::spawn_blocking(move || switch.restore())
            .await
            .map_err(|error| HostError::attempting("restore the ports")(io::Error::other(error)))??;
        self.tasks.push(tokio::spawn(watch_links(self.switch.clone(), changes)));
        // Controllers find the ports that were kept.
        let agent = AgentConfig {
            controllers: config.controllers.clone(),
            listeners: config.listen.clone(),
            tls: config.tls.clone(),
            packet_ins_per_second: config.packet_ins.controller,
            ..AgentConfig::default()
        };
        let agent = Agent::start(agent, self.switch.bridge().clone(), packet_ins);
        let agent = Arc::new(agent.map_err(DaemonError::Listen)?);
        self.agent = Some(agent.clone());
        let metrics = ControlMetrics::new(&self.registry, self.data_path.epochs().len());
        self.tasks.push(tokio::spawn(tick(self.switch.clone(), agent, metrics)));
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
        for task in self.tasks.drain(..) {
            task.abort();
            let _ = task.await;
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

/// Changes of network devices, to be waited for.
struct LinkChanges {
    changes: DeviceChanges,
    /// The same socket for Tokio, which has no name for its kind and waits for it like for any other.
    ready: UnixDatagram,
}

impl LinkChanges {
    fn listen() -> io::Result<LinkChanges> {
        let changes = DeviceChanges::listen()?;
        let ready = UnixDatagram::from_std(changes.readable()?.into())?;
        Ok(LinkChanges { changes, ready })
    }

    /// Waits until something changed.
    async fn next(&self) -> io::Result<()> {
        self.ready.readable().await?;
        // That nothing is left has to be said, or Tokio believes that there is more.
        let drain = || self.changes.take().and_then(|_| Err(io::ErrorKind::WouldBlock.into()));
        match self.ready.try_io(Interest::READABLE, drain) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Looks at the links of the host's devices when the kernel says that something about a device changed, and often.
async fn watch_links(switch: Arc<Switch>, changes: LinkChanges) {
    loop {
        if let Ok(Err(error)) = tokio::time::timeout(LINK_LOOK, changes.next()).await {
            tracing::error!(%error, "changes of network devices are no longer heard of; restart the daemon");
            return;
        }
        if !switch.has_host_devices() {
            continue;
        }
        let switch = switch.clone();
        let _ = tokio::task::spawn_blocking(move || switch.look_at_links()).await;
    }
}

/// Runs the daemon until SIGTERM or SIGINT.
pub fn run(config: DaemonConfig) -> Result<(), DaemonError> {
    telemetry::run_daemon(ControlThread::First, Daemon::start(config), Daemon::stop)
}
