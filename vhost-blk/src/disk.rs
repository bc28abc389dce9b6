//! The file or device behind a volume: opened, measured, grown, and declared unusable.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use rustix::fs::{AtFlags, StatxFlags};
use telemetry::state::{StateDir, StateError};
use tiering::{PAGE_BYTES, UNIT_BYTES, VolumeId};

use crate::config_space::DiskShape;
use crate::request::{DiskLimits, SECTOR_BYTES};
use crate::spec::{Backing, VolumeSpec};
use crate::tier::control::PoolHandle;

/// How long a lock of a file may belong to a daemon that is gone.
const LOCK_WAIT: Duration = Duration::from_secs(3);
/// Pause between attempts to take it.
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// Logical block size of a volume that was given none, where the device does not ask for larger ones.
const BLOCK_BYTES_DEFAULT: u32 = 512;
/// Largest block size that guests know to deal with.
const BLOCK_BYTES_MAX: u32 = 4096;
/// Alignment that O_DIRECT is content with everywhere, for kernels that do not tell.
const ALIGNMENT_UNKNOWN: u32 = 4096;

/// Why a volume's file or device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The host refused.
    #[error("cannot {attempt} {path}: {source}")]
    Host {
        /// What was attempted.
        attempt: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Not what the volume was said to be.
    #[error("{path} is not a {expected}; {remedy}")]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A new file without a size.
    #[error("{0} does not exist and no size was given; give --size to have it made")]
    NoSize(PathBuf),
    /// Smaller than the volume.
    #[error("{path} has {actual} bytes, less than the {wanted} of the volume; {remedy}")]
    TooSmall {
        /// The file.
        path: PathBuf,
        /// Its size.
        actual: u64,
        /// The volume's size.
        wanted: u64,
        /// What to do.
        remedy: &'static str,
    },
    /// Not whole blocks.
    #[error(
        "{path} has {actual} bytes, which are not whole blocks of {block_bytes}; give --size or another --block-size"
    )]
    PartialBlock {
        /// The file.
        path: PathBuf,
        /// Its size.
        actual: u64,
        /// The volume's block size.
        block_bytes: u32,
    },
    /// Another process or volume uses it.
    #[error("{0} is in use by another volume or daemon; stop that one first")]
    InUse(PathBuf),
    /// A volume can only grow.
    #[error(
        "the volume has {actual} bytes and cannot shrink to {wanted}; make a smaller volume and copy the data"
    )]
    Shrink {
        /// Its size.
        actual: u64,
        /// The size asked for.
        wanted: u64,
    },
}

/// How ranges are given back or zeroed on this backing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// Nowhere.
    Null,
    /// A regular file: fallocate does everything.
    File,
    /// A block device: discards need an ioctl.
    Device,
    /// A pool.
    Pool,
}

/// A volume's place in a pool.
#[derive(Clone, Debug)]
pub struct Seat {
    /// The pool.
    pub pool: PoolHandle,
    /// The volume in it.
    pub volume: VolumeId,
}

/// An open volume, shared by everything that serves it.
#[derive(Debug)]
pub struct Disk {
    medium: Medium,
    path: PathBuf,
    file: Option<Arc<File>>,
    seat: Option<Seat>,
    size_bytes: AtomicU64,
    block_bytes: u32,
    physical_block_bytes: u32,
    optimal_io_bytes: u32,
    read_only: bool,
    discard: bool,
    direct: bool,
    memory_align: u32,
    offset_align: u32,
    /// Whether the file was made when it was opened.
    made: bool,
    poison: OnceLock<String>,
    /// Where a restart finds out about `poison`.
    note: OnceLock<PoisonNote>,
}

#[derive(Debug)]
struct PoisonNote {
    state: Arc<StateDir>,
    file: String,
}

impl Disk {
    /// Opens the backing of `spec`. A file that does not exist is made if `make` is set: not when a volume that has been
    /// there before is opened again, which would silently replace its data by zeroes.
    pub fn open(spec: &VolumeSpec, make: bool) -> Result<Arc<Disk>, DiskError> {
        let disk = match &spec.backing {
            Backing::Null => Disk::null(spec),
            Backing::File(path) => Disk::file(spec, path, make)?,
            Backing::Device(path) => Disk::device(spec, path)?,
            Backing::Pool(_) => unreachable!("volumes of pools are opened by `Disk::in_pool`"),
        };
        Ok(Arc::new(disk))
    }

    /// A volume in a pool, of `size_bytes`. The pool is open, and its blocks are no larger than the volume's.
    pub fn in_pool(spec: &VolumeSpec, seat: Seat, size_bytes: u64) -> Arc<Disk> {
        let block_bytes = spec.block_bytes.unwrap_or(seat.pool.block_bytes());
        Arc::new(Disk {
            medium: Medium::Pool,
            path: PathBuf::new(),
            file: None,
            size_bytes: AtomicU64::new(size_bytes),
            block_bytes,
            physical_block_bytes: PAGE_BYTES as u32,
            optimal_io_bytes: UNIT_BYTES as u32,
            read_only: spec.read_only,
            discard: true,
            direct: true,
            memory_align: 1,
            offset_align: 1,
            made: false,
            poison: OnceLock::new(),
            note: OnceLock::new(),
            seat: Some(seat),
        })
    }

    fn null(spec: &VolumeSpec) -> Disk {
        let block_bytes = spec.block_bytes.unwrap_or(BLOCK_BYTES_DEFAULT);
        Disk {
            medium: Medium::Null,
            path: PathBuf::new(),
            file: None,
            seat: None,
            size_bytes: AtomicU64::new(spec.size_bytes.unwrap_or_default()),
            block_bytes,
            physical_block_bytes: 4096,
            optimal_io_bytes: 0,
            read_only: spec.read_only,
            discard: true,
            direct: false,
            memory_align: 1,
            offset_align: 1,
            made: false,
            poison: OnceLock::new(),
            note: OnceLock::new(),
        }
    }

    fn file(spec: &VolumeSpec, path: &Path, make: bool) -> Result<Disk, DiskError> {
        let made = make && !path.exists();
        let size = match (made, spec.size_bytes) {
            (true, None) => return Err(DiskError::NoSize(path.to_path_buf())),
            (_, size) => size,
        };
        let (file, direct) = open(path, spec.read_only, made)?;
        let set_up = || {
            let metadata = file.metadata().map_err(host("inspect", path))?;
            if !metadata.is_file() {
                let remedy = "give a path to a regular file, or use --device for a block device";
                return Err(DiskError::Kind { path: path.to_path_buf(), expected: "regular file", remedy });
            }
            lock(&file, path, spec.read_only)?;
            if made {
                file.set_len(size.unwrap_or_default()).map_err(host("set the size of", path))?;
                file.sync_all().map_err(host("make durable", path))?;
                sync_parent(path)?;
            }
            Disk::measure(
                spec,
                Medium::File,
                path,
                file.try_clone().map_err(host("duplicate", path))?,
                direct,
            )
        };
        set_up()
            .inspect_err(|_| {
                if made {
                    let _ = std::fs::remove_file(path);
                }
            })
            .map(|disk| Disk { made, ..disk })
    }

    /// Undoes the making of a file by [`Disk::open`], for a volume that comes to nothing after all.
    pub fn unmake(&self) {
        if self.made {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    fn device(spec: &VolumeSpec, path: &Path) -> Result<Disk, DiskError> {
        let kind = std::fs::metadata(path).map_err(host("inspect", path))?.file_type();
        if !kind.is_block_device() {
            let remedy = "give the path of a block device such as /dev/sdb, or use --file for a file";
            return Err(DiskError::Kind { path: path.to_path_buf(), expected: "block device", remedy });
        }
        let (file, direct) = open(path, spec.read_only, false)?;
        lock(&file, path, spec.read_only)?;
        Disk::measure(spec, Medium::Device, path, file, direct)
    }

    fn measure(
        spec: &VolumeSpec,
        medium: Medium,
        path: &Path,
        file: File,
        direct: bool,
    ) -> Result<Disk, DiskError> {
        let limits = QueueLimits::of(&file, medium);
        let (memory_align, offset_align) = alignment(&file, medium, &limits);
        let natural = if medium == Medium::Device { limits.logical_block_bytes } else { BLOCK_BYTES_DEFAULT };
        let block_bytes = spec.block_bytes.unwrap_or(natural.clamp(BLOCK_BYTES_DEFAULT, BLOCK_BYTES_MAX));
        // Blocks smaller than what the device transfers go through the page cache, which can do that.
        if direct && offset_align > block_bytes {
            clear_direct(&file).map_err(host("turn off direct I/O for", path))?;
        }
        let direct = direct && offset_align <= block_bytes;
        let actual = length(&file).map_err(host("measure", path))?;
        let wanted = spec.size_bytes.unwrap_or(actual);
        if actual < wanted {
            let remedy = match medium {
                Medium::Device => "give a smaller --size or a larger device",
                _ => "give a smaller --size, or grow the file with `truncate -s` first",
            };
            return Err(DiskError::TooSmall { path: path.to_path_buf(), actual, wanted, remedy });
        }
        if !wanted.is_multiple_of(u64::from(block_bytes)) || wanted == 0 {
            return Err(DiskError::PartialBlock { path: path.to_path_buf(), actual: wanted, block_bytes });
        }
        let discard = match medium {
            Medium::Device => limits.discard,
            _ => spec.read_only || punches_holes(&file, actual),
        };
        let (memory_align, offset_align) = if direct { (memory_align, offset_align) } else { (1, 1) };
        if !direct {
            tracing::warn!(volume = spec.name, path = %path.display(), "no direct I/O here: the page cache is used");
        }
        Ok(Disk {
            medium,
            path: path.to_path_buf(),
            file: Some(Arc::new(file)),
            seat: None,
            size_bytes: AtomicU64::new(wanted),
            block_bytes,
            physical_block_bytes: limits.physical_block_bytes.max(block_bytes),
            optimal_io_bytes: limits.optimal_io_bytes,
            read_only: spec.read_only,
            discard,
            direct,
            memory_align,
            offset_align,
            made: false,
            poison: OnceLock::new(),
            note: OnceLock::new(),
        })
    }

    /// Grows the volume, and its file with it. A size it has already is no error.
    pub fn resize(&self, wanted: u64) -> Result<(), DiskError> {
        let actual = self.size_bytes();
        if wanted < actual {
            return Err(DiskError::Shrink { actual, wanted });
        }
        if let Some(file) = &self.file {
            let path = self.path.clone();
            let length = length(file).map_err(host("measure", &self.path))?;
            match self.medium {
                Medium::File if length < wanted => {
                    file.set_len(wanted).map_err(host("grow", &self.path))?;
                    file.sync_all().map_err(host("make durable", &self.path))?;
                }
                Medium::Device if length < wanted => {
                    let remedy = "grow the device first";
                    return Err(DiskError::TooSmall { path, actual: length, wanted, remedy });
                }
                _ => {}
            }
        }
        self.size_bytes.store(wanted, Relaxed);
        Ok(())
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Relaxed)
    }

    /// Logical block size in bytes.
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// What the parser needs to know, as of now: a volume can grow.
    pub fn limits(&self) -> DiskLimits {
        DiskLimits {
            capacity_sectors: self.size_bytes() / SECTOR_BYTES,
            block_bytes: self.block_bytes,
            read_only: self.read_only,
            discard: self.discard,
        }
    }

    /// What the config space shows.
    pub fn shape(&self, queues: u16, writeback: bool) -> DiskShape {
        DiskShape {
            limits: self.limits(),
            queues,
            physical_block_bytes: self.physical_block_bytes,
            optimal_io_bytes: self.optimal_io_bytes,
            writeback,
        }
    }

    /// The open file, if there is one.
    pub fn file_handle(&self) -> Option<&Arc<File>> {
        self.file.as_ref()
    }

    /// Its place in a pool, if it is in one.
    pub fn seat(&self) -> Option<&Seat> {
        self.seat.as_ref()
    }

    /// What kind of backing it is.
    pub fn medium(&self) -> Medium {
        self.medium
    }

    /// Whether requests bypass the page cache.
    pub fn direct(&self) -> bool {
        self.direct
    }

    /// Alignment in bytes that buffers in memory need, and that offsets and lengths need. Both 1 without direct I/O.
    pub fn alignment(&self) -> (u32, u32) {
        (self.memory_align, self.offset_align)
    }

    /// Why nothing may be written any more, if so.
    pub fn poisoned(&self) -> Option<&str> {
        let pool = self.seat.as_ref().and_then(|seat| seat.pool.status().read_only());
        self.poison.get().map(String::as_str).or(pool)
    }

    /// Completed writes may be lost: nothing that changes data is served from now on, visibly. The first reason counts;
    /// true if this was it.
    pub fn poison(&self, reason: String) -> bool {
        self.poison.set(reason).is_ok()
    }

    /// From now on [`Disk::note_poison`] writes to `file` of the state directory; what stands there already poisons the
    /// volume again: a restart does not bring lost writes back.
    pub fn keep_poison_in(&self, state: Arc<StateDir>, file: String) -> Result<(), StateError> {
        if let Some(reason) = state.read(&file)? {
            self.poison(String::from_utf8_lossy(&reason).into_owned());
        }
        // Set once, when the volume is opened.
        let _ = self.note.set(PoisonNote { state, file });
        Ok(())
    }

    /// Makes the poison last over restarts. Blocks on the state directory's disk.
    pub fn note_poison(&self) -> Result<(), StateError> {
        match (self.note.get(), self.poisoned()) {
            (Some(note), Some(reason)) => note.state.replace(&note.file, reason.as_bytes()),
            _ => Ok(()),
        }
    }
}

pub(crate) fn host(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    move |source| DiskError::Host { attempt, path: path.to_path_buf(), source }
}

/// Opens for direct I/O, or through the page cache where that does not exist. The second value says which.
pub(crate) fn open(path: &Path, read_only: bool, make: bool) -> Result<(File, bool), DiskError> {
    let attempt = |flags: i32, make: bool| {
        OpenOptions::new()
            .read(true)
            .write(!read_only || make)
            .create_new(make)
            .custom_flags(flags)
            .open(path)
    };
    let (file, direct) = match attempt(libc::O_DIRECT, make) {
        Ok(file) => (file, true),
        // Some file systems refuse O_DIRECT only after having made the file.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            (attempt(0, make && !path.exists()).map_err(host("open", path))?, false)
        }
        Err(error) => return Err(host(if make { "make" } else { "open" }, path)(error)),
    };
    // When a guest read is nobody's business, and asking the clock for it costs. A file of somebody else's may not be used
    // like that.
    let _ = add_flags(&file, OFlag::O_NOATIME);
    Ok((file, direct))
}

fn add_flags(file: &File, flags: OFlag) -> nix::Result<()> {
    let before = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    fcntl(file, FcntlArg::F_SETFL(before | flags)).map(drop)
}

/// One writer or many readers, across daemons: two writers would destroy each other's data.
///
/// A daemon that was killed holds its locks a little longer than it lives: the kernel still ends what its io_uring had
/// in flight. So a lock that is taken is tried again for a while.
pub(crate) fn lock(file: &File, path: &Path, shared: bool) -> Result<(), DiskError> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match if shared { file.try_lock_shared() } else { file.try_lock() } {
            Ok(()) => return Ok(()),
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(LOCK_RETRY),
            Err(std::fs::TryLockError::WouldBlock) => return Err(DiskError::InUse(path.to_path_buf())),
            Err(std::fs::TryLockError::Error(error)) => return Err(host("lock", path)(error)),
        }
    }
}

/// From now on this open file goes through the page cache.
pub(crate) fn clear_direct(file: &File) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    fcntl(file, FcntlArg::F_SETFL(flags - OFlag::O_DIRECT))?;
    Ok(())
}

pub(crate) fn sync_parent(path: &Path) -> Result<(), DiskError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(host("make durable", parent))
}

pub(crate) fn length(file: &File) -> io::Result<u64> {
    use std::io::{Seek as _, SeekFrom};
    let mut file = file;
    file.seek(SeekFrom::End(0))
}

/// Whether space can be given back: tried beyond the end, where there is none.
pub(crate) fn punches_holes(file: &File, length: u64) -> bool {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let beyond = i64::try_from(length.next_multiple_of(1 << 20)).unwrap_or(i64::MAX - 4096);
    fallocate(file, flags, beyond, 4096).is_ok()
}

/// Alignment of memory and of offsets for direct I/O (statx(2), STATX_DIOALIGN).
pub(crate) fn alignment(file: &File, medium: Medium, limits: &QueueLimits) -> (u32, u32) {
    let told = rustix::fs::statx(file.as_fd(), c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok();
    let told =
        told.filter(|stat| stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && stat.stx_dio_offset_align > 0);
    match told {
        Some(stat) => (stat.stx_dio_mem_align.max(1), stat.stx_dio_offset_align),
        None if medium == Medium::Device => (limits.logical_block_bytes, limits.logical_block_bytes),
        None => (ALIGNMENT_UNKNOWN, BLOCK_BYTES_DEFAULT),
    }
}

/// What the host says of the block device that holds the data (sysfs-block).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueLimits {
    logical_block_bytes: u32,
    physical_block_bytes: u32,
    optimal_io_bytes: u32,
    pub(crate) discard: bool,
}

impl QueueLimits {
    pub(crate) fn of(file: &File, medium: Medium) -> QueueLimits {
        let device = file.metadata().map_or(0, |metadata| match medium {
            Medium::Device => metadata.rdev(),
            _ => metadata.dev(),
        });
        let (major, minor) = (libc::major(device), libc::minor(device));
        let queue = |name: &str| {
            // A partition's limits are those of its disk.
            ["", "../"].iter().find_map(|up| {
                let path = format!("/sys/dev/block/{major}:{minor}/{up}queue/{name}");
                std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok()
            })
        };
        let size = |name, default: u32| {
            let bytes = queue(name).and_then(|bytes| u32::try_from(bytes).ok()).unwrap_or(default);
            if bytes.is_power_of_two() || bytes == 0 { bytes } else { default }
        };
        QueueLimits {
            logical_block_bytes: size("logical_block_size", BLOCK_BYTES_DEFAULT).max(BLOCK_BYTES_DEFAULT),
            physical_block_bytes: size("physical_block_size", 4096).clamp(BLOCK_BYTES_DEFAULT, 1 << 16),
            optimal_io_bytes: size("optimal_io_size", 0),
            discard: queue("discard_max_bytes").is_some_and(|bytes| bytes > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(body: serde_json::Value) -> VolumeSpec {
        crate::spec::read_create(body).expect("a good volume").spec
    }

    fn error(body: serde_json::Value) -> String {
        Disk::open(&spec(body), true).expect_err("refused").to_string()
    }

    #[test]
    fn a_file_is_made_sparse_and_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        let disk = Disk::open(&spec(json!({"name": "v", "file": path, "size_bytes": "1GiB"})), true).unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!((metadata.len(), metadata.blocks() < 64), (1 << 30, true));
        assert_eq!((disk.size_bytes(), disk.limits().capacity_sectors), (1 << 30, 1 << 21));
        disk.resize(2 << 30).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 2 << 30);
        assert!(matches!(disk.resize(1 << 30), Err(DiskError::Shrink { .. })));
        assert!(matches!(
            Disk::open(&spec(json!({"name": "w", "file": path})), true),
            Err(DiskError::InUse(_))
        ));
    }

    #[test]
    fn what_cannot_be_used_is_said_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        assert!(error(json!({"name": "v", "file": path})).contains("--size"));
        assert!(!path.exists());
        std::fs::write(&path, vec![0; 1000]).unwrap();
        assert!(error(json!({"name": "v", "file": path})).contains("whole blocks"));
        assert!(error(json!({"name": "v", "file": path, "size_bytes": 4096})).contains("less than"));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1000);
        assert!(error(json!({"name": "v", "device": path})).contains("not a block device"));
        assert!(error(json!({"name": "v", "file": dir.path()})).contains("directory"));
        let nowhere = dir.path().join("no/where");
        assert!(error(json!({"name": "v", "file": nowhere, "size_bytes": 512})).contains("no/where"));
    }

    #[test]
    fn reads_leave_no_mark_on_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let (file, direct) = open(&dir.path().join("disk.img"), false, true).unwrap();
        let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL).unwrap());
        assert!(flags.contains(OFlag::O_NOATIME));
        assert_eq!(flags.contains(OFlag::O_DIRECT), direct);
    }

    #[test]
    fn a_larger_file_is_used_in_part() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let disk = Disk::open(&spec(json!({"name": "v", "file": path, "size_bytes": 8192})), true).unwrap();
        assert_eq!(disk.size_bytes(), 8192);
        disk.resize(1 << 19).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
    }

    #[test]
    fn the_first_poison_counts() {
        let disk = Disk::open(&spec(json!({"name": "v", "null": true, "size_bytes": 512})), true).unwrap();
        assert_eq!(disk.poisoned(), None);
        assert!(disk.poison("one".into()) && !disk.poison("two".into()));
        assert_eq!(disk.poisoned(), Some("one"));
    }

    #[test]
    fn a_noted_poison_outlives_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(dir.path()).unwrap());
        let open = || {
            let body = json!({"name": "v", "null": true, "size_bytes": 512});
            let disk = Disk::open(&spec(body), true).unwrap();
            disk.keep_poison_in(state.clone(), "v.poisoned".into()).unwrap();
            disk
        };
        let disk = open();
        disk.note_poison().unwrap();
        assert_eq!(open().poisoned(), None, "nothing to note");
        disk.poison("a flush failed".into());
        disk.note_poison().unwrap();
        assert_eq!(open().poisoned(), Some("a flush failed"));
        state.remove("v.poisoned").unwrap();
        assert_eq!(open().poisoned(), None);
    }
}
