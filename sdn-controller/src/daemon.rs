//! The daemon: listeners, shutdown.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use telemetry::state::{StateDir, StateError};
use telemetry::tls::Tls;
use telemetry::{HostError, Registry, StopSignals, notify_ready, notify_stopping};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::auth::TokenError;
use crate::controller::{Controller, Options};
use crate::doorway::{self, Doorway};
use crate::metrics::Metrics;
use crate::rest::RestConfig;
use crate::store::{Store, StoreError};
use crate::{rest, session};

/// From the connection of a switch to the end of its TLS handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// How long requests may take to end when the daemon stops; a little longer than they wait for switches.
const STOP_LIMIT: Duration = Duration::from_secs(7);

/// What the daemon needs to know.
#[derive(Clone, Debug)]
pub struct DaemonConfig {
    /// Directory of the desired state.
    pub state_dir: PathBuf,
    /// Directory of the socket.
    pub run_dir: PathBuf,
    /// Whether the daemon is of no use without its socket: its directory was asked for.
    pub socket_needed: bool,
    /// Where switches connect.
    pub openflow: Vec<OpenFlowAddress>,
    /// For those addresses that want TLS: our certificate, and who signs those of switches.
    pub tls: Option<Tls>,
    /// Where REST is served, and to whom.
    pub rest: RestConfig,
    /// Where metrics are served, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// What the controller does by itself.
    pub options: Options,
}

/// Where switches connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenFlowAddress {
    /// In the clear.
    Tcp(SocketAddr),
    /// Over TLS, both ends with certificates.
    Tls(SocketAddr),
}

impl OpenFlowAddress {
    fn address(self) -> SocketAddr {
        match self {
            OpenFlowAddress::Tcp(address) | OpenFlowAddress::Tls(address) => address,
        }
    }
}

impl fmt::Display for OpenFlowAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenFlowAddress::Tcp(address) => write!(f, "tcp:{address}"),
            OpenFlowAddress::Tls(address) => write!(f, "ssl:{address}"),
        }
    }
}

/// Why the daemon ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// An address cannot be had.
    #[error("cannot listen on {address} for {what}; choose another {flag} address")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What for.
        what: &'static str,
        /// The flag that names it.
        flag: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The store in it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A token in the store.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Other hosts can reach REST, and nobody could be let in.
    #[error(
        "REST at {address} is for other hosts, and there is neither a token nor a client certificate that would let \
         anybody in; make a token first (`sluice controller run` with --rest 127.0.0.1:8080, then `sluice controller \
         token create NAME --role admin`), or give rest_ca and rest_clients"
    )]
    Nobody {
        /// The address.
        address: SocketAddr,
    },
    /// The metrics server.
    #[error(transparent)]
    Metrics(#[from] telemetry::http::ServeError),
    /// An address wants TLS, and there are no certificates.
    #[error("{0} wants TLS; give tls_key, tls_cert and tls_ca")]
    NoCertificates(OpenFlowAddress),
    /// A thread or other means of the host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The REST server.
    #[error("the REST server failed")]
    Rest(#[source] io::Error),
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start: an address is taken, or the state belongs to another daemon or cannot be read.
pub fn run(config: DaemonConfig) -> Result<(), DaemonError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(HostError::attempting("start the threads"))?;
    runtime.block_on(serve(config))
}

fn listen(address: SocketAddr, what: &'static str, flag: &'static str) -> Result<TcpListener, DaemonError> {
    doorway::listen(address).map_err(|source| DaemonError::Listen { address, what, flag, source })
}

async fn serve(config: DaemonConfig) -> Result<(), DaemonError> {
    let mut signals = StopSignals::listen()?;
    let state = StateDir::open(&config.state_dir)?;
    let (store, desired) = Store::open(state.path())?;
    let registry = Registry::new();
    let users = store.users()?;
    let controller = Controller::new(store, desired, Metrics::new(&registry), config.options);
    controller.tokens().load(users)?;
    let address = config.rest.address;
    if !address.ip().is_loopback() && controller.tokens().is_empty() && config.rest.clients.is_empty() {
        return Err(DaemonError::Nobody { address });
    }
    let mut openflow = Vec::new();
    for at in &config.openflow {
        let acceptor = match (at, &config.tls) {
            (OpenFlowAddress::Tcp(_), _) => None,
            (OpenFlowAddress::Tls(_), Some(tls)) => Some(TlsAcceptor::from(tls.server.clone())),
            (OpenFlowAddress::Tls(_), None) => return Err(DaemonError::NoCertificates(*at)),
        };
        openflow.push((listen(at.address(), "switches", "--openflow")?, acceptor));
    }
    let rest = listen(address, "REST", "--rest")?;
    let _metrics = match config.metrics {
        Some(address) => Some(telemetry::http::serve_metrics(address, registry).await?),
        None => None,
    };
    let desired = controller.desired();
    tracing::info!(
        openflow = config.openflow.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        rest = %address,
        tls = config.rest.tls.is_some(),
        networks = desired.networks.len(),
        flows = desired.flows.len(),
        "controller runs"
    );
    notify_ready();
    let mut switches = JoinSet::new();
    for (listener, acceptor) in openflow {
        switches.spawn(accept_with(listener, acceptor, controller.clone()));
    }
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = async { drop(stopped.await) };
    switches.spawn(expire_links(controller.clone()));
    let _socket = match rest::serve_socket(&config.run_dir, controller.clone()).await {
        Ok(socket) => Some(socket),
        Err(error) if config.socket_needed => return Err(error.into()),
        Err(error) => {
            tracing::warn!(%error, "REST is not served on a socket");
            None
        }
    };
    let mut served = tokio::spawn(rest::serve_tcp(rest, config.rest, controller, stopped));
    tokio::select! {
        () = signals.received() => {}
        ended = &mut served => return ended.map_err(io::Error::other).flatten().map_err(DaemonError::Rest),
    }
    notify_stopping();
    drop(stop);
    // Requests that are being answered end; whoever keeps a connection open without a request does not hold us up.
    if tokio::time::timeout(STOP_LIMIT, &mut served).await.is_err() {
        served.abort();
    }
    switches.abort_all();
    tracing::info!("controller stopped");
    Ok(())
}

async fn expire_links(controller: Arc<Controller>) {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    loop {
        seconds.tick().await;
        controller.expire_links();
    }
}

/// Accepts switches for ever, without TLS.
pub async fn accept(listener: TcpListener, controller: Arc<Controller>) {
    accept_with(listener, None, controller).await;
}

/// Accepts switches for ever, with TLS where it is given; at the limit, new ones wait in the kernel.
pub async fn accept_with(listener: TcpListener, acceptor: Option<TlsAcceptor>, controller: Arc<Controller>) {
    let doorway = Doorway::new(listener, "switch");
    while let Some((permit, stream, peer)) = doorway.next(&controller).await {
        controller.metrics().connections.add(1);
        let (controller, acceptor) = (controller.clone(), acceptor.clone());
        tokio::spawn(async move {
            match acceptor {
                None => session::serve(controller, stream, peer).await,
                Some(acceptor) => serve_tls(controller, acceptor, stream, peer).await,
            }
            drop(permit);
        });
    }
}

async fn serve_tls(controller: Arc<Controller>, acceptor: TlsAcceptor, stream: TcpStream, peer: SocketAddr) {
    let handshake = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream));
    match handshake.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(stream) => session::serve(controller, stream, peer).await,
        Err(error) => {
            if let Some(suppressed) = controller.limited().pass(&peer.ip().to_string()) {
                tracing::info!(%peer, %error, suppressed, "the TLS handshake with a switch failed");
            }
        }
    }
}
