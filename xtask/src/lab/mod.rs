//! A small laboratory: processes, guests and daemons that a program starts, asks and ends, always with a deadline.

pub mod daemons;
pub mod guest;
pub mod http;
pub mod hugepages;
pub mod netns;
pub mod ovs;
pub mod process;
pub mod qemu;
pub mod qmp;
pub mod wait;

pub use daemons::{Daemon, Site};
pub use guest::Guest;
pub use process::{Lifetime, Process};
pub use qmp::Qmp;
pub use wait::{interrupted, interruptible, wait_for};
