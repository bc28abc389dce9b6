//! Disks to measure on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};

/// Bytes of the disks.
pub const DISK_BYTES: u64 = 1 << 30;

/// What removes a device, as soon as nobody uses it any more, once its standard input has ended: when we let it go, and
/// however we may end.
const REMOVE: &str = "
    trap '' HUP INT TERM
    read -r nothing
    tries=100
    until echo 1 > /sys/block/zram$0/reset || [ $tries = 0 ]; do tries=$((tries - 1)); sleep 0.1; done
    echo $0 > /sys/class/zram-control/hot_remove";

/// A compressed RAM disk of our own: a fast and steady block device. Removed when dropped, or when this process ends without
/// that.
pub struct Zram {
    number: u32,
    remover: Child,
}

impl Zram {
    /// Adds a device of [`DISK_BYTES`].
    ///
    /// # Errors
    /// When the kernel has no zram, or we are not root.
    pub fn add() -> anyhow::Result<Zram> {
        let number = fs::read_to_string("/sys/class/zram-control/hot_add")
            .context("adding a zram device (needs root and a kernel with zram: modprobe zram)")?;
        let number = number.trim().parse().context("the number of the new zram device")?;
        let mut remover = Command::new("sh");
        remover.args(["-c", REMOVE]).arg(format!("{number}")).stdin(Stdio::piped()).stderr(Stdio::null());
        let zram = Zram { number, remover: remover.spawn().context("starting sh")? };
        let size = format!("/sys/block/zram{number}/disksize");
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
        // Ends its standard input first.
        let _ = self.remover.wait();
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
