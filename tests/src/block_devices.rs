//! Block devices of a test's own; who may not make any skips the test.

use std::path::Path;

/// A block device over a file; taken down when dropped.
pub struct LoopDevice(String);

impl LoopDevice {
    /// `None` without the right to make one.
    #[must_use]
    pub fn new(file: &Path, sector_bytes: u32) -> Option<LoopDevice> {
        let sector_bytes = sector_bytes.to_string();
        let args = ["--find", "--show", "--sector-size", &sector_bytes, file.to_str().unwrap()];
        run("losetup", &args).map(|path| LoopDevice(path.trim().to_string()))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> String {
        self.0.clone()
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = run("losetup", &["--detach", &self.0]);
    }
}

/// A compressed RAM disk; removed when dropped.
pub struct RamDisk(String);

impl RamDisk {
    /// `None` without the right to make one, or where the kernel has none.
    #[must_use]
    pub fn new(bytes: u64) -> Option<RamDisk> {
        let number = std::fs::read_to_string("/sys/class/zram-control/hot_add").ok()?;
        let disk = RamDisk(number.trim().to_string());
        std::fs::write(format!("/sys/block/zram{}/disksize", disk.0), bytes.to_string()).ok()?;
        Some(disk)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/dev/zram{}", self.0)
    }
}

impl Drop for RamDisk {
    fn drop(&mut self) {
        let _ = std::fs::write(format!("/sys/block/zram{}/reset", self.0), "1");
        let _ = std::fs::write("/sys/class/zram-control/hot_remove", &self.0);
    }
}

/// What a program printed, if it ended well.
///
/// # Panics
/// There is no such program.
#[must_use]
pub fn run(program: &str, args: &[&str]) -> Option<String> {
    let output = std::process::Command::new(program).args(args).output().expect("a program of util-linux");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
