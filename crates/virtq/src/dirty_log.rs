//! The dirty log of live migration (vhost-user "Migration"): one bit per 4 KiB page of guest-physical memory.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::mapping::Mapping;

/// Bytes of guest memory a bit stands for (`VHOST_LOG_PAGE`).
const PAGE_BYTES: u64 = 4096;

/// The bitmap that tells the frontend which pages the device wrote.
#[derive(Debug)]
pub struct DirtyLog {
    mapping: Mapping,
    bytes: u64,
}

impl DirtyLog {
    /// Maps the bitmap: `size` bytes of `file` from `offset` on.
    ///
    /// # Errors
    ///
    /// The file is too small or cannot be mapped.
    pub fn new(file: &File, offset: u64, size: u64) -> io::Result<DirtyLog> {
        if size == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a dirty log of 0 bytes covers nothing"));
        }
        Ok(DirtyLog { mapping: Mapping::file(file, offset, size)?, bytes: size })
    }

    /// Marks every page that `len` bytes at a guest-physical address touch. Call it after the bytes were written.
    ///
    /// Pages beyond the bitmap are left out: the frontend chose its size.
    pub fn mark(&self, guest_addr: u64, len: u64) {
        let Some(last) = len.checked_sub(1) else { return };
        let end_page = guest_addr.saturating_add(last) / PAGE_BYTES;
        let bits = self.bytes.saturating_mul(8);
        for page in guest_addr / PAGE_BYTES..=end_page.min(bits.saturating_sub(1)) {
            // SAFETY: `page / 8 < bytes`, the length of the mapping, which lives as long as `self`; atomics are how the
            // frontend takes the bits, too.
            let cell = unsafe { AtomicU8::from_ptr(self.mapping.start().add((page / 8) as usize)) };
            // Always written, even when the bit seems set: a read could pass our data's stores, and the frontend may
            // have taken the bit in between.
            cell.fetch_or(1 << (page % 8), Ordering::SeqCst);
        }
    }

    /// True once a SIGBUS was caught on the bitmap.
    pub fn lost(&self) -> bool {
        self.mapping.lost()
    }
}
