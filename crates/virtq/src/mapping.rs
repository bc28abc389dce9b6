//! One mapped piece of a file (or of anonymous memory), known to the SIGBUS guard while it lives.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;

use crate::sigbus;

/// Memory shared with somebody who may write to it, and cut off its file, at any time.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// Where the bytes that were asked for begin; the mapping itself starts at a page border.
    start: usize,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Mapped(sigbus::Registration),
    #[cfg(miri)]
    Heap(std::alloc::Layout),
}

// SAFETY: the memory belongs to nobody in particular; all access goes through raw pointers and volatile or plain
// copies, whose races with the peer (and so with our own threads) are part of the contract of this crate.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` gives no reference into the memory.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file` from `offset` on, shared, readable and writable.
    ///
    /// The offset may be any number: the mapping is rounded outwards to the page size of the file's file system
    /// (2 MiB or more on hugetlbfs). A regular file that ends before `offset + len` is refused, since touching the
    /// missing pages would raise SIGBUS.
    pub(crate) fn file(file: &File, offset: u64, len: u64) -> io::Result<Mapping> {
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
        let meta = file.metadata()?;
        let end = offset
            .checked_add(len)
            .ok_or_else(|| invalid(format!("offset {offset:#x} plus length {len:#x} wraps around")))?;
        if meta.is_file() && meta.len() < end {
            return Err(invalid(format!("the file has {} bytes, {end} are needed", meta.len())));
        }
        let page = meta.blksize().max(4096).next_power_of_two();
        let first = offset & !(page - 1);
        let last = end
            .checked_next_multiple_of(page)
            .ok_or_else(|| invalid(format!("end {end:#x} wraps around")))?;
        let too_large = |_| invalid(format!("{len:#x} bytes do not fit the address space"));
        let map_len = usize::try_from(last - first).map_err(too_large)?;
        let first_off = libc::off_t::try_from(first).map_err(too_large)?;
        // SAFETY: a fresh shared mapping at an address the kernel chooses touches no memory of ours.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                map_len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                first_off,
            )
        };
        Mapping::adopt(base, map_len, (offset - first) as usize)
    }

    /// Zeroed memory of our own; on the heap under Miri, which knows no mmap of this kind.
    #[cfg(not(miri))]
    pub(crate) fn anonymous(len: usize) -> io::Result<Mapping> {
        let map_len = len.max(1).next_multiple_of(4096);
        // SAFETY: a fresh anonymous mapping at an address the kernel chooses touches no memory of ours.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                map_len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        Mapping::adopt(base, map_len, 0)
    }

    /// Zeroed memory of our own; on the heap under Miri, which knows no mmap of this kind.
    #[cfg(miri)]
    pub(crate) fn anonymous(len: usize) -> io::Result<Mapping> {
        let layout = std::alloc::Layout::from_size_align(len.max(1), 4096).map_err(io::Error::other)?;
        // SAFETY: the layout has a size above zero.
        let base = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Mapping { base, len: layout.size(), start: 0, kind: Kind::Heap(layout) })
    }

    fn adopt(base: *mut libc::c_void, len: usize, start: usize) -> io::Result<Mapping> {
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let Some(base) = NonNull::new(base.cast::<u8>()) else {
            return Err(io::Error::other("mmap returned address 0"));
        };
        // A core dump of this daemon must not contain guests' memory. Failing here would only cost disk space.
        // SAFETY: the range is the mapping made just now.
        unsafe { libc::madvise(base.as_ptr().cast(), len, libc::MADV_DONTDUMP) };
        Ok(Mapping { base, len, start, kind: Kind::Mapped(sigbus::register(base.as_ptr() as usize, len)) })
    }

    /// Address of the first byte that was asked for.
    pub(crate) fn start(&self) -> *mut u8 {
        // SAFETY: `start` is below `len` (it is the distance to the page border the mapping begins at).
        unsafe { self.base.as_ptr().add(self.start) }
    }

    /// True once a SIGBUS replaced this mapping by zero pages.
    pub(crate) fn lost(&self) -> bool {
        match &self.kind {
            Kind::Mapped(registration) => registration.lost(),
            #[cfg(miri)]
            Kind::Heap(_) => false,
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        match &mut self.kind {
            Kind::Mapped(registration) => {
                // First forgotten by the guard, so that it never writes over a later mapping at this address.
                registration.release();
                // SAFETY: base and len are those of our mmap; nobody uses the memory, since users hold the Mapping.
                unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
            }
            #[cfg(miri)]
            Kind::Heap(layout) => {
                // SAFETY: allocated in `anonymous` with this layout.
                unsafe { std::alloc::dealloc(self.base.as_ptr(), *layout) };
            }
        }
    }
}
