//! Tiered pools: the store of crate `tiering` over a worker's io_uring.
//!
//! A pool lives on one worker, and so do all queues of its volumes: a hit goes from guest memory to the device without
//! leaving the thread. [`device`] opens devices and does the blocking I/O of formatting and opening, [`Pool`] drives the
//! store on the worker, [`control`] reaches it from other threads, [`spec`] says what a pool is as it is asked for, kept
//! and shown, [`registry`] makes, finds and removes pools.

mod adopt;
pub mod check;
pub mod control;
pub mod device;
mod drain;
pub mod explain;
mod extend;
pub mod limits;
mod metrics;
mod pool;
pub mod registry;
pub mod spec;

pub(crate) use explain::gone;
pub(crate) use metrics::VolumeGauges;
pub use pool::{Grow, Pool, PoolStart};
pub(crate) use pool::{GuestPart, OwnTransfer, Owner, POOL_TOKEN};
