//! Worker threads: each owns one io_uring and runs one program, a [`Worker`], to completion.
//!
//! Invariants: a worker's state is touched by its own thread only; others reach it through its mailbox
//! ([`WorkerHandle`]). Memory that the kernel may touch is owned here while it may: guest memory maps are held until no
//! operation uses them, pool buffers are given away by value with the operation and come back with its completion. An
//! idle worker sleeps in one system call; a busy one makes one per pass.
//!
//! The loop of a worker, see [`spawn`]: completions, commands, timer, [`Worker::poll`], one submit. When nothing was done
//! for `spin_us`, or at once when an operation in flight needs a kernel thread on this core: [`Worker::arm`], and if there
//! is still nothing, one blocking wait.

mod at_once;
mod blockdev;
mod files;
mod io;
mod large;
mod mailbox;
pub mod netdev;
mod ops;
mod pool;
mod ring;
mod signal;
mod worker;

pub use blockdev::discard_blocking;
pub use files::FileId;
pub use io::{Buffers, Full, IOVECS_MAX, Io, MemoryId, WatchId};
pub use large::{large_table, prefetch};
pub use mailbox::{Gone, Reply, WorkerHandle};
pub use pool::{Buffer, PacketInfo};
pub use worker::{Worker, WorkerConfig, spawn};

/// The processor's cycle counter (TSC on x86, the virtual counter elsewhere): for cycles per packet and per request.
#[inline]
pub fn cycles() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86_64 processor has RDTSC; it reads a register and touches no memory.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
    #[cfg(target_arch = "aarch64")]
    {
        let count: u64;
        // SAFETY: the virtual counter is readable from user space on Linux; no memory is touched.
        unsafe { core::arch::asm!("mrs {}, cntvct_el0", out(reg) count, options(nomem, nostack)) };
        count
    }
}
