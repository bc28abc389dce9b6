//! A daemon's life: from the signal handlers to the service manager's notification socket (sd_notify(3)).

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A directory, thread or other means of the host that a daemon did not get.
#[derive(Debug, thiserror::Error)]
#[error("cannot {attempt}")]
pub struct HostError {
    attempt: String,
    source: io::Error,
}

impl HostError {
    /// For `map_err`: `attempt` says what was attempted, with which value.
    pub fn attempting(attempt: impl Into<String>) -> impl FnOnce(io::Error) -> HostError {
        move |source| HostError { attempt: attempt.into(), source }
    }
}

/// SIGTERM and SIGINT, which ask a daemon to stop.
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// From now on the signals no longer end the process by themselves. Needs a runtime of tokio.
    pub fn listen() -> Result<StopSignals, HostError> {
        let handler = |kind| signal(kind).map_err(HostError::attempting("wait for signals"));
        Ok(StopSignals {
            terminate: handler(SignalKind::terminate())?,
            interrupt: handler(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next of them.
    pub async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Where a daemon's control side runs. One thread is enough: the processors belong to the workers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ControlThread {
    /// On the thread that starts the daemon. What it allocates is the first heap of the C library, which grows by many
    /// pages at once; those of other threads ask the kernel for each.
    First,
    /// On one of its own, so that starting and stopping may block.
    Own,
}

/// Starts a daemon whose work is done by threads of its own, tells the service manager, and stops it at a signal.
///
/// # Errors
/// What `start` answers, or the host has no thread or signal handler for us.
pub fn run_daemon<D, E: From<HostError>>(
    control: ControlThread,
    start: impl Future<Output = Result<D, E>>,
    stop: impl AsyncFnOnce(D),
) -> Result<(), E> {
    let runtime = match control {
        ControlThread::First => Builder::new_current_thread().enable_all().build(),
        ControlThread::Own => Builder::new_multi_thread().worker_threads(1).enable_all().build(),
    };
    let runtime = runtime.map_err(HostError::attempting("start the control thread"))?;
    runtime.block_on(async {
        let mut signals = StopSignals::listen()?;
        let daemon = start.await?;
        notify_ready();
        tracing::info!("ready");
        signals.received().await;
        notify_stopping();
        tracing::info!("stopping");
        stop(daemon).await;
        Ok(())
    })
}

/// Makes the directory of a daemon's sockets, if it is not there.
///
/// # Errors
/// The host's, with the path.
pub fn make_run_dir(path: &Path) -> Result<(), HostError> {
    let attempt = format!("make the run directory {}", path.display());
    std::fs::create_dir_all(path).map_err(HostError::attempting(attempt))
}

/// Tells the service manager that the daemon is ready. Does nothing when NOTIFY_SOCKET is not set.
pub fn notify_ready() {
    notify("READY=1");
}

/// Tells the service manager that the daemon is stopping on purpose.
pub fn notify_stopping() {
    notify("STOPPING=1");
}

fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(socket = ?path, %error, "the service manager could not be notified");
    }
}
