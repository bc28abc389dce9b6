//! What the storage daemon is started with.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Settings of the storage daemon, resolved and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonConfig {
    /// Where the list of volumes is kept over restarts; held by one daemon at a time.
    pub state_dir: PathBuf,
    /// Where the volumes' sockets and the admin socket stand.
    pub run_dir: PathBuf,
    /// Where Prometheus scrapes; `None` serves no metrics.
    pub metrics: Option<SocketAddr>,
    /// Processors to pin workers to, one worker each; empty means one worker that is not pinned.
    pub cores: Vec<usize>,
    /// How long a worker polls without work before it sleeps, in microseconds.
    pub spin_us: u32,
}
