//! The virtio-blk device and the storage daemon.
//!
//! From a guest to its data: [`backend`] takes a queue over from the vhost-user session and gives it to a [`worker`],
//! which pops requests, has them parsed by [`request`], and turns them into operations on a [`disk`] (`queue`). [`tier`] runs tiered
//! pools beside them. [`volume`] keeps the list of volumes, [`job`] runs what takes long, [`admin`] shows it over HTTP, [`daemon`] puts everything together.
//!
//! Invariants: nothing a guest writes can make a worker panic, wait or allocate; a request is answered exactly once; what
//! blocks runs beside the workers; a volume whose flush failed writes nothing any more.
#![forbid(unsafe_code)]

pub mod admin;
pub mod backend;
pub mod config;
pub mod config_space;
pub mod daemon;
pub mod disk;
mod helper;
pub mod image;
pub mod job;
pub mod metrics;
mod outage;
pub mod queue;
pub mod request;
pub mod spec;
pub mod tier;
pub mod volume;
pub mod worker;
