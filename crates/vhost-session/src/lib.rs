//! One vhost-user connection: messages, state machine, acknowledged commands to workers.
//!
//! A device calls [`serve`] with a socket and a factory of [`Backend`]s. Each frontend that connects gets a backend and a
//! thread of its own, asleep unless a message arrives. The session keeps what the frontend has told (`state`), starts a
//! ring when everything it needs is there and stops it when any of it goes or changes. Receiving, decoding and
//! acknowledging is done by the `vhost` crate's `BackendReqHandler`; what it doesn't dispatch is handled in front of it
//! (`session`).
//!
//! Invariants:
//! - A ring runs only while features, memory, addresses, size, kick and enablement are all there.
//! - The frontend gets no answer before the worker has acknowledged what the answer promises.
//! - Whatever a frontend sends ends at most its own session, with one line in the log; all sessions of a socket together
//!   write a few lines a minute at most.
//! - Frontends that never get as far as sharing memory make room for others; half a message is waited for a few seconds.
//! - No thread here waits for a frontend in a way that closing the endpoint doesn't end.
#![forbid(unsafe_code)]

mod backend;
mod control;
mod endpoint;
mod handler;
mod lines;
mod metrics;
mod ring;
mod session;
mod socket;
mod state;
mod wire;

pub use backend::{Backend, BackendError, QueueStart, Refused};
pub use control::{FrontendHandle, SessionInfo};
pub use endpoint::{Endpoint, SESSIONS_MAX, SocketRole, serve};
pub use metrics::SessionMetrics;
pub use socket::{EndpointError, SOCKET_PATH_BYTES_MAX};
