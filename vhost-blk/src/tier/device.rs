//! The devices of a pool: opened, measured, and read and written before the pool is at work.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tiering::superblock::{SUPERBLOCK_BYTES, Superblock};
use tiering::{BlockingIo, DeviceId, IoError};

use super::spec::DeviceSpec;
use crate::disk::{self, DiskError, Medium, QueueLimits};

/// Scratch buffers of 64 KiB that each pool moves data through.
pub const SCRATCH_BUFFERS: u32 = 128;
/// Alignment of memory that suits direct I/O everywhere.
const MEMORY_ALIGN: usize = 4096;
/// Bytes read or written at once.
const CHUNK_BYTES: usize = 1 << 20;
/// Largest block that a volume can have.
const BLOCK_BYTES_MAX: u32 = 4096;
/// Where file systems, partition tables and volume managers leave their marks.
const MARKS_BYTES: usize = 72 << 10;

/// An open device of a pool, locked against other daemons.
#[derive(Debug, Clone)]
pub struct OpenDevice {
    /// Its path.
    pub path: PathBuf,
    /// The open file.
    pub file: Arc<File>,
    /// What kind it is.
    pub medium: Medium,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Alignment of memory, and of offsets and lengths.
    pub alignment: (u32, u32),
    /// Whether space can be given back.
    pub discard: bool,
    /// Whether the file was made when it was opened.
    pub made: bool,
}

impl OpenDevice {
    /// Opens a device; a file that does not exist is made if `make` is set and a size is given.
    ///
    /// # Errors
    /// The host refuses, it is neither file nor block device, too small, or in use.
    pub fn open(path: &Path, size_bytes: Option<u64>, make: bool) -> Result<OpenDevice, DiskError> {
        let made = make && !path.exists();
        if made && size_bytes.is_none() {
            return Err(DiskError::NoSize(path.to_path_buf()));
        }
        let (file, direct) = disk::open(path, false, made)?;
        let opened = Self::measure(path, file, direct, size_bytes, made);
        if opened.is_err() && made {
            let _ = std::fs::remove_file(path);
        }
        opened
    }

    fn measure(
        path: &Path,
        file: File,
        direct: bool,
        size_bytes: Option<u64>,
        made: bool,
    ) -> Result<OpenDevice, DiskError> {
        let kind = file.metadata().map_err(disk::host("inspect", path))?.file_type();
        let medium = match (kind.is_file(), kind.is_block_device()) {
            (true, _) => Medium::File,
            (_, true) => Medium::Device,
            _ => {
                let (expected, remedy) =
                    ("file or block device", "give the path of a regular file or of a block device");
                return Err(DiskError::Kind { path: path.to_path_buf(), expected, remedy });
            }
        };
        disk::lock(&file, path, false)?;
        if let (true, Some(size)) = (made, size_bytes) {
            file.set_len(size).map_err(disk::host("set the size of", path))?;
            file.sync_all().map_err(disk::host("make durable", path))?;
            disk::sync_parent(path)?;
        }
        let actual = disk::length(&file).map_err(disk::host("measure", path))?;
        let wanted = size_bytes.unwrap_or(actual);
        if actual < wanted {
            let remedy = "give a smaller size, or make it larger first";
            return Err(DiskError::TooSmall { path: path.to_path_buf(), actual, wanted, remedy });
        }
        let limits = QueueLimits::of(&file, medium);
        let (memory_align, offset_align) = disk::alignment(&file, medium, &limits);
        let usable = direct && offset_align <= BLOCK_BYTES_MAX;
        if direct && !usable {
            disk::clear_direct(&file).map_err(disk::host("turn off direct I/O for", path))?;
        }
        if !usable {
            tracing::warn!(path = %path.display(), "no direct I/O here: the page cache is used");
        }
        let discard = match medium {
            Medium::Device => limits.discard,
            _ => disk::punches_holes(&file, actual),
        };
        Ok(OpenDevice {
            path: path.to_path_buf(),
            file: Arc::new(file),
            medium,
            size_bytes: wanted,
            alignment: if usable { (memory_align, offset_align) } else { (1, 1) },
            discard,
            made,
        })
    }

    /// Undoes the making of a file, for a pool that comes to nothing.
    pub fn unmake(&self) {
        if self.made {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// Smallest block that requests on it are made of, bytes.
    pub fn block_bytes(&self) -> u32 {
        self.alignment.1.max(512)
    }

    /// The superblock on it, if it belongs to a pool: at its beginning, or at the end of a file that was adopted.
    pub fn superblock(&self) -> Option<Superblock> {
        let end = || {
            let at = disk::length(&self.file).ok()?.checked_sub(2 * SUPERBLOCK_BYTES as u64)?;
            self.superblock_at(at).filter(|block| block.member().superblocks_at == at)
        };
        self.superblock_at(0).or_else(end)
    }

    /// The superblock where this device has it: an adopted one begins with bytes that a guest chose.
    pub fn superblock_of(&self, spec: &DeviceSpec) -> Option<Superblock> {
        self.superblock_at(spec.adopted_bytes.map_or(0, tiering::adopted_superblocks_at))
    }

    fn superblock_at(&self, offset: u64) -> Option<Superblock> {
        let mut bytes = vec![0; 2 * SUPERBLOCK_BYTES];
        self.read(offset, &mut bytes).ok()?;
        let (first, second) = bytes.split_at(SUPERBLOCK_BYTES);
        Superblock::newest(first, second)
    }

    /// Whether its beginning holds anything: a file system, a partition table, somebody's data.
    pub fn in_use(&self) -> bool {
        let mut bytes = vec![0; MARKS_BYTES.min(self.size_bytes as usize)];
        self.read(0, &mut bytes).is_err() || bytes.iter().any(|byte| *byte != 0)
    }

    /// Whether anything but zeroes is in a range, as far as the device goes.
    pub fn holds_data(&self, from: u64, to: u64) -> std::io::Result<bool> {
        let mut bytes = vec![0; to.min(self.size_bytes).saturating_sub(from) as usize];
        self.read(from, &mut bytes)?;
        Ok(bytes.iter().any(|byte| *byte != 0))
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        // Whole blocks around what is asked for: direct I/O reads nothing else.
        let block = u64::from(self.block_bytes());
        let mut buffer = Aligned::new(into.len().min(CHUNK_BYTES) + 2 * block as usize);
        let mut at = offset;
        for chunk in into.chunks_mut(CHUNK_BYTES) {
            let start = at / block * block;
            let skip = (at - start) as usize;
            let bytes = buffer.bytes((skip + chunk.len()).next_multiple_of(block as usize));
            self.file.read_exact_at(bytes, start)?;
            chunk.copy_from_slice(&bytes[skip..skip + chunk.len()]);
            at += chunk.len() as u64;
        }
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        let mut buffer = Aligned::new(bytes.len().min(CHUNK_BYTES));
        let mut at = offset;
        for chunk in bytes.chunks(CHUNK_BYTES) {
            let copy = buffer.bytes(chunk.len());
            copy.copy_from_slice(chunk);
            self.file.write_all_at(copy, at)?;
            at += chunk.len() as u64;
        }
        Ok(())
    }
}

/// Memory that begins where direct I/O wants it.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new(bytes: usize) -> Aligned {
        let memory = vec![0; bytes.next_multiple_of(MEMORY_ALIGN) + MEMORY_ALIGN];
        let start = memory.as_ptr().align_offset(MEMORY_ALIGN);
        Aligned { memory, start }
    }

    fn bytes(&mut self, len: usize) -> &mut [u8] {
        &mut self.memory[self.start..self.start + len]
    }
}

/// The devices of a pool before it is at work.
#[derive(Debug, Default)]
pub struct Devices {
    /// In the pool's order; `None`: not there.
    pub list: Vec<Option<OpenDevice>>,
    /// What the host said to the last operation that failed.
    pub failure: Option<String>,
}

impl Devices {
    /// Opens those that are there; what is wrong with the others goes into the second value.
    pub fn open<'a>(specs: impl Iterator<Item = &'a DeviceSpec>) -> (Devices, Vec<String>) {
        let mut missing = Vec::new();
        let open = |spec: &DeviceSpec| match OpenDevice::open(&spec.path, Some(spec.size_bytes), false) {
            Ok(device) => Some(device),
            Err(error) => {
                missing.push(error.to_string());
                None
            }
        };
        let list = specs.map(open).collect();
        (Devices { list, failure: None }, missing)
    }

    fn with(
        &mut self,
        device: DeviceId,
        attempt: &str,
        work: impl FnOnce(&OpenDevice) -> std::io::Result<()>,
    ) -> Result<(), IoError> {
        let Some(Some(open)) = self.list.get(usize::from(device.0)) else { return Err(IoError) };
        work(open).map_err(|error| {
            self.failure = Some(format!("cannot {attempt} {}: {error}", open.path.display()));
            IoError
        })
    }
}

impl BlockingIo for Devices {
    fn present(&self, device: DeviceId) -> bool {
        self.list.get(usize::from(device.0)).is_some_and(Option::is_some)
    }

    fn read(&mut self, device: DeviceId, offset: u64, into: &mut [u8]) -> Result<(), IoError> {
        self.with(device, "read", |open| open.read(offset, into))
    }

    fn write(&mut self, device: DeviceId, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
        self.with(device, "write", |open| open.write(offset, bytes))
    }

    fn flush(&mut self, device: DeviceId) -> Result<(), IoError> {
        self.with(device, "flush", |open| open.file.sync_data())
    }
}
