//! Block device calls that io_uring has no operation for.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

nix::ioctl_write_ptr_bad!(blkdiscard, nix::request_code_none!(0x12, 119), [u64; 2]);

/// Discards a range of a block device (BLKDISCARD). Blocks: call it on a helper thread, never on a worker.
pub fn discard_blocking(device: BorrowedFd<'_>, offset: u64, bytes: u64) -> io::Result<()> {
    // SAFETY: BLKDISCARD reads two u64, offset and length, which live across the call.
    unsafe { blkdiscard(device.as_raw_fd(), &[offset, bytes])? };
    Ok(())
}
