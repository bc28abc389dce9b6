//! Volumes, extent map, journal, tiers, snapshots and mover, without I/O.
#![forbid(unsafe_code)]

pub mod alloc;
pub mod checkpoint;
pub mod hash;
pub mod hot;
pub mod journal;
pub mod map;
pub mod policy;
mod slab;
mod store;
pub mod superblock;
mod types;
mod wire;

pub use store::*;
pub use types::*;
