//! A device that takes its time, by the kernel's limit of I/O operations a second for a control group.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

const GROUPS: &str = "/sys/fs/cgroup/blkio";

/// Operations of one process on one disk, slowed down until this is dropped.
pub struct Slow {
    group: PathBuf,
    device: String,
    process: u32,
}

const LIMITS: [&str; 2] = ["blkio.throttle.read_iops_device", "blkio.throttle.write_iops_device"];

impl Slow {
    /// Lets the disk that holds `file` carry out `per_second` operations a second of `process`, reads and writes each. The
    /// kernel counts by tenths of a second: with 10 a second each operation takes that long, with 100 ten go at once.
    ///
    /// # Errors
    /// When the kernel has no such limits (it takes cgroup v1 and root).
    pub fn new(process: u32, file: &Path, per_second: u32) -> anyhow::Result<Slow> {
        let group = Path::new(GROUPS).join(format!("sluice-bench-{process}"));
        fs::create_dir(&group)
            .with_context(|| format!("making {} (needs root and cgroup v1)", group.display()))?;
        let slow = Slow { group, device: whole_disk(fs::metadata(file)?.dev())?, process };
        for limit in LIMITS {
            let path = slow.group.join(limit);
            fs::write(&path, format!("{} {per_second}", slow.device))
                .with_context(|| format!("writing {}", path.display()))?;
        }
        fs::write(slow.group.join("cgroup.procs"), process.to_string())?;
        Ok(slow)
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        // What waits there goes on. The process may have ended already.
        for limit in LIMITS {
            let _ = fs::write(self.group.join(limit), format!("{} 0", self.device));
        }
        let _ = fs::write(Path::new(GROUPS).join("cgroup.procs"), self.process.to_string());
        let _ = fs::remove_dir(&self.group);
    }
}

/// The disk of a partition, as `major:minor`: limits hold for whole disks.
fn whole_disk(device: u64) -> io::Result<String> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let own = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"))?;
    let disk = if own.join("partition").exists() { own.parent().unwrap_or(&own).to_path_buf() } else { own };
    Ok(fs::read_to_string(disk.join("dev"))?.trim().to_string())
}
