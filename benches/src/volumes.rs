//! Disks to measure on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

/// Bytes of the disks.
pub const DISK_BYTES: u64 = 1 << 30;

/// A compressed RAM disk of our own: a fast and steady block device. Removed when dropped.
pub struct Zram {
    number: u32,
}

impl Zram {
    /// Adds a device of [`DISK_BYTES`].
    ///
    /// # Errors
    /// When the kernel has no zram, or we are not root.
    pub fn add() -> anyhow::Result<Zram> {
        let number = fs::read_to_string("/sys/class/zram-control/hot_add")
            .context("adding a zram device (needs root and a kernel with zram: modprobe zram)")?;
        let zram = Zram { number: number.trim().parse().context("the number of the new zram device")? };
        let size = format!("/sys/block/zram{}/disksize", zram.number);
        fs::write(&size, DISK_BYTES.to_string()).with_context(|| format!("writing {size}"))?;
        Ok(zram)
    }

    /// The device's node.
    pub fn path(&self) -> PathBuf {
        format!("/dev/zram{}", self.number).into()
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        let _ = fs::write(format!("/sys/block/zram{}/reset", self.number), "1");
        let _ = fs::write("/sys/class/zram-control/hot_remove", self.number.to_string());
    }
}

/// Writes [`DISK_BYTES`] random bytes to a device, or to a file that is made.
///
/// # Errors
/// When there is no room.
pub fn fill(path: &Path) -> anyhow::Result<()> {
    let status = Command::new("dd")
        .args(["if=/dev/urandom", "bs=1M", "oflag=direct", "status=none"])
        .arg(format!("count={}", DISK_BYTES >> 20))
        .arg(format!("of={}", path.display()))
        .status()
        .context("starting dd")?;
    ensure!(status.success(), "dd: {status}");
    Ok(())
}
