//! What every daemon shares to be operated: counter cells and their Prometheus registry, logs, the metrics and admin
//! sockets, TLS, problem reports, checks of input, the state directory and the daemon's life between two signals.
//!
//! Invariants: nothing here is a process-wide global except the log subscriber (a [`Registry`] is a value that is handed
//! around); cells that workers write need no locked instruction; this crate knows no disk, port or protocol of ours.
#![forbid(unsafe_code)]

mod access;
pub mod check;
pub mod http;
pub mod logs;
mod metrics;
pub mod problem;
mod registry;
mod service;
pub mod state;
pub mod tls;

pub use access::SocketAccess;
pub use logs::RateLimited;
pub use metrics::{Counter, CounterReader, Gauge, Histogram, SharedCounter};
pub use problem::{FieldError, Problem};
pub use registry::Registry;
pub use service::{
    ControlThread, HostError, StopSignals, make_run_dir, notify_ready, notify_stopping, run_daemon,
};
