//! Whole-system tests: in-process frontends, daemons, QEMU guests, peers.
//!
//! The library holds what several tests need: a vhost-user frontend that speaks single messages ([`frontend`]), the
//! driver's side of a ring ([`driver_queue`]) in shared memory ([`guest_ram`]), a network and a block driver on
//! top ([`net_frontend`], [`blk_frontend`]); what a disk must hold ([`disk_model`]); the program under test
//! ([`binary`]) and its daemons ([`daemon`]); a device that echoes for tests of the session itself ([`echo_device`]); the log ([`log_lines`]);
//! a controller with switches and hosts around it ([`fabric`]), and the frames that they exchange ([`wire`]); a browser ([`browser`]);
//! block devices ([`block_devices`]), and one that fails ([`failing_disk`]).

use std::time::{Duration, Instant};

pub mod bad_messages;
pub mod binary;
pub mod blk_frontend;
pub mod block_devices;
pub mod browser;
pub mod daemon;
pub mod disk_model;
pub mod driver_queue;
pub mod echo_device;
pub mod fabric;
pub mod failing_disk;
pub mod frontend;
pub mod guest_ram;
pub mod log_lines;
pub mod net_frontend;
pub mod pool_bed;
pub mod switch;
pub mod wire;

/// Looks at a condition until it holds; false: it did not within `patience`. For conditions that nothing announces.
pub fn holds_within(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + patience;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= until {
            return condition();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
