//! The table of fixed files.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};

use io_uring::Submitter;

/// A file that operations name; see [`crate::Io::add_file`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId(pub(crate) u32);

pub(crate) struct Files {
    free: Vec<u32>,
    /// By slot: whether operations on the file go to a kernel thread.
    threaded: Box<[bool]>,
}

const EMPTY: RawFd = -1;

impl Files {
    pub(crate) fn new(capacity: u32, submitter: &Submitter<'_>) -> io::Result<Files> {
        submitter.register_files(&vec![EMPTY; capacity as usize])?;
        Ok(Files { free: (0..capacity).rev().collect(), threaded: vec![false; capacity as usize].into() })
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
        self.threaded[slot as usize] = needs_thread(fd);
        Ok(FileId(slot))
    }

    /// Operations in flight keep the file; the slot is free for another.
    pub(crate) fn remove(&mut self, submitter: &Submitter<'_>, file: FileId) {
        let emptied = submitter.register_files_update(file.0, &[EMPTY]);
        debug_assert!(emptied.is_ok(), "{emptied:?}");
        self.threaded[file.0 as usize] = false;
        self.free.push(file.0);
    }

    #[inline]
    pub(crate) fn threaded(&self, file: FileId) -> bool {
        self.threaded[file.0 as usize]
    }
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
