//! The table of fixed files.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use io_uring::Submitter;

/// A file that operations name; see [`crate::Io::add_file`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId(pub(crate) u32);

pub(crate) struct Files {
    free: Vec<u32>,
    /// By slot.
    ways: Box<[Way]>,
}

/// How transfers of a file are carried out.
enum Way {
    /// Started by the kernel while they are submitted.
    Submitted,
    /// By a thread of the kernel's.
    Threaded,
    /// By the worker itself: the device is memory and never waits, and handing a small transfer to another thread would
    /// cost more than the transfer.
    AtOnce(OwnedFd),
}

const EMPTY: RawFd = -1;

impl Files {
    pub(crate) fn new(capacity: u32, submitter: &Submitter<'_>) -> io::Result<Files> {
        submitter.register_files(&vec![EMPTY; capacity as usize])?;
        let ways = (0..capacity).map(|_| Way::Submitted).collect();
        Ok(Files { free: (0..capacity).rev().collect(), ways })
    }

    /// The kernel takes a reference of its own: the caller may close `fd`.
    pub(crate) fn add(&mut self, submitter: &Submitter<'_>, fd: BorrowedFd<'_>) -> io::Result<FileId> {
        let slot = self.free.pop().ok_or_else(|| {
            io::Error::new(io::ErrorKind::QuotaExceeded, "the worker's table of files is full")
        })?;
        if let Err(error) = submitter.register_files_update(slot, &[fd.as_raw_fd()]) {
            self.free.push(slot);
            return Err(error);
        }
        self.ways[slot as usize] = match in_memory(fd) {
            // Without a descriptor of our own the slower way does as well.
            true => fd.try_clone_to_owned().map_or(Way::Threaded, Way::AtOnce),
            false if needs_thread(fd) => Way::Threaded,
            false => Way::Submitted,
        };
        Ok(FileId(slot))
    }

    /// Operations in flight keep the file; the slot is free for another.
    pub(crate) fn remove(&mut self, submitter: &Submitter<'_>, file: FileId) {
        let emptied = submitter.register_files_update(file.0, &[EMPTY]);
        debug_assert!(emptied.is_ok(), "{emptied:?}");
        self.ways[file.0 as usize] = Way::Submitted;
        self.free.push(file.0);
    }

    #[inline]
    pub(crate) fn threaded(&self, file: FileId) -> bool {
        matches!(self.ways[file.0 as usize], Way::Threaded | Way::AtOnce(_))
    }

    /// Whether a transfer of `bytes` of this file is carried out by the worker itself.
    #[inline]
    pub(crate) fn is_at_once(&self, file: FileId, bytes: u32) -> bool {
        bytes <= AT_ONCE_BYTES_MAX && matches!(self.ways[file.0 as usize], Way::AtOnce(_))
    }

    /// The descriptor for that.
    #[inline]
    pub(crate) fn at_once(&self, file: FileId) -> Option<BorrowedFd<'_>> {
        match &self.ways[file.0 as usize] {
            Way::AtOnce(fd) => Some(fd.as_fd()),
            _ => None,
        }
    }
}

/// Largest transfer that is carried out at once. A larger one leaves the core to others now and then, on a kernel thread.
const AT_ONCE_BYTES_MAX: u32 = 16 << 10;

/// Whether this is a block device that keeps its data in memory and nowhere else: a RAM disk, or zram that writes nothing
/// back to a real device.
fn in_memory(fd: BorrowedFd<'_>) -> bool {
    let Ok(stat) = nix::sys::stat::fstat(fd) else { return false };
    if stat.st_mode & libc::S_IFMT != libc::S_IFBLK {
        return false;
    }
    let (major, minor) = (libc::major(stat.st_rdev), libc::minor(stat.st_rdev));
    let Ok(devices) = std::fs::read_to_string("/proc/devices") else { return false };
    let Some((_, blocks)) = devices.split_once("Block devices:") else { return false };
    let named = |name: &str| blocks.lines().any(|line| line.trim() == format!("{major} {name}"));
    // The file is there only if the kernel can write back at all.
    let backing = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/backing_dev"));
    named("ramdisk") || named("zram") && backing.map_or(true, |device| device.trim() == "none")
}

/// Whether reads of this file cannot be started without the risk to block: io_uring then hands every operation to a kernel
/// thread (zram, most file systems' buffered writes, ...). Asked by a read that must not wait.
fn needs_thread(fd: BorrowedFd<'_>) -> bool {
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    let mut page = Box::new(Page([0; 4096]));
    let iovec = libc::iovec { iov_base: page.0.as_mut_ptr().cast(), iov_len: page.0.len() };
    let Ok(kind) = nix::sys::stat::fstat(fd).map(|stat| stat.st_mode & libc::S_IFMT) else { return false };
    if kind != libc::S_IFREG && kind != libc::S_IFBLK {
        return false;
    }
    // SAFETY: one iovec of 4096 bytes that live across the call.
    let read = unsafe { libc::preadv2(fd.as_raw_fd(), &iovec, 1, 0, libc::RWF_NOWAIT) };
    read < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EOPNOTSUPP)
}
