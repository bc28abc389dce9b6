//! Deterministic stand-ins for the world: a seeded generator, a clock that only tests move, and a disk
//! that loses power, tears writes and returns errors. For tests and benches only.
//!
//! Everything here is a function of its seed: the same seed gives the same run, so a failing test prints
//! the seed and can be replayed.
#![forbid(unsafe_code)]

pub mod disk;
mod image;
mod rng;

pub use disk::{CutMode, DiskFault, Faults, Operation, SimDisk, Ticket};
pub use image::Image;
pub use rng::Rng;

/// A clock that stands still until a test moves it.
#[derive(Debug, Default, Clone)]
pub struct Clock {
    now_ns: u64,
}

impl Clock {
    /// Nanoseconds since the clock was made.
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// Moves the clock forward by `ns` nanoseconds.
    pub fn advance_ns(&mut self, ns: u64) {
        self.now_ns += ns;
    }
}
