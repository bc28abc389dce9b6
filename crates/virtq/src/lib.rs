//! Device-side virtqueues over cached ring pointers, the guest memory map, the inflight region and the dirty log.
//!
//! # Invariants
//!
//! - Guest memory is hostile and changes at any time. No reference into it ever exists: it is read by volatile or raw
//!   copies, and decisions are made on the copy.
//! - A [`GuestSlice`] is plain data (region, offset, length). Every access checks it again against the
//!   [`GuestMemory`] it is used with, so no slice, wherever it comes from, can reach outside a mapping.
//! - A [`Queue`] resolves and checks the addresses of its rings once. Afterwards an index is masked or compared
//!   before each access, and the mappings live as long as the queue.
//! - Nothing a guest or a frontend writes makes this crate panic, allocate or loop: a broken ring is a
//!   [`RingFault`]. Panics are kept for mistakes of the device code (completing a head twice, say).
//! - No I/O happens here except `mmap`, and no other thread or clock is known.

#![warn(missing_docs)]

#[cfg(target_endian = "big")]
compile_error!("virtq reads and writes little-endian rings in place; big-endian hosts are not supported");

mod chain;
mod copy;
mod cpu;
mod dirty_log;
mod inflight;
#[cfg(test)]
mod kill;
mod mapping;
mod memory;
mod queue;
mod ring;
mod sigbus;
mod window;

pub use chain::{Chain, Parts, parts};
pub use cpu::prefetch;
pub use dirty_log::DirtyLog;
pub use inflight::{InflightError, InflightQueue, InflightRegion};
pub use memory::{GuestMemory, GuestSlice, MAX_REGIONS, MemoryError, RegionHint, RegionSpec};
pub use queue::{Lone, Queue, RingSetup};
pub use ring::{MAX_QUEUE_SIZE, RingFault};
pub use sigbus::install_sigbus_guard;
pub use window::Window;
