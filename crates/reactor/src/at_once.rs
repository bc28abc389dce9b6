//! Transfers of disks that are memory: they never wait, so they are carried out by the worker itself, many by one system
//! call (Linux AIO, whose submission carries such transfers out and returns when they are done).

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use crate::ring::Completion;

/// Transfers carried out together at most.
const BATCH_MAX: usize = 64;
/// Fewer than so many are carried out one by one: two calls for all of them would cost more.
const BATCH_MIN: usize = 4;

/// What a transfer does with its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
    WriteDurable,
}

/// The bytes of a transfer: one part, or many that are named by a list.
#[derive(Clone, Copy)]
pub(crate) enum Span {
    One(libc::iovec),
    Many { iovecs: *const libc::iovec, count: usize },
}

/// A control block as `io_submit(2)` takes it (`struct iocb` of linux/aio_abi.h, little-endian).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ControlBlock {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    result_fd: u32,
}

const _: () = assert!(size_of::<ControlBlock>() == 64 && cfg!(target_endian = "little"));

/// What `io_getevents(2)` tells (`struct io_event`).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    block: u64,
    result: i64,
    result2: i64,
}

const PREAD: u16 = 0;
const PWRITE: u16 = 1;
const PREADV: u16 = 7;
const PWRITEV: u16 = 8;

/// Transfers that wait to be carried out. None is under way outside [`AtOnce::run`].
pub(crate) struct AtOnce {
    blocks: Vec<ControlBlock>,
    /// The kernel's number for the context, made with the first transfers; `None`: it gives us none.
    context: OnceCell<Option<u64>>,
}

impl AtOnce {
    pub(crate) fn new() -> AtOnce {
        AtOnce { blocks: Vec::with_capacity(BATCH_MAX), context: OnceCell::new() }
    }

    /// Transfers that wait.
    #[inline]
    pub(crate) fn waiting(&self) -> usize {
        self.blocks.len()
    }

    /// Whether [`AtOnce::run`] is due before the next transfer.
    #[inline]
    pub(crate) fn full(&self) -> bool {
        self.blocks.len() == BATCH_MAX
    }

    /// Adds a transfer, whose completion will be of operation `op`. There is room for it.
    ///
    /// # Safety
    /// The file stays open, and what the span names stays mapped and is referred to by nobody, until [`AtOnce::run`].
    #[inline]
    pub(crate) unsafe fn add(
        &mut self,
        op: u32,
        direction: Direction,
        file: BorrowedFd<'_>,
        offset: u64,
        span: Span,
    ) {
        let (buffer, bytes, many) = match span {
            Span::One(part) => (part.iov_base as u64, part.iov_len as u64, false),
            Span::Many { iovecs, count } => (iovecs as u64, count as u64, true),
        };
        let opcode = match (direction, many) {
            (Direction::Read, false) => PREAD,
            (Direction::Read, true) => PREADV,
            (_, false) => PWRITE,
            (_, true) => PWRITEV,
        };
        self.blocks.push(ControlBlock {
            data: u64::from(op),
            rw_flags: if direction == Direction::WriteDurable { libc::RWF_DSYNC } else { 0 },
            opcode,
            file: file.as_raw_fd() as u32,
            buffer,
            bytes,
            offset: offset as i64,
            ..ControlBlock::default()
        });
    }

    /// Carries out what waits; its completions go to `done`.
    pub(crate) fn run(&mut self, done: &mut VecDeque<Completion>) {
        let taken = if self.blocks.len() < BATCH_MIN { 0 } else { self.run_together(done) };
        for block in self.blocks.drain(..).skip(taken) {
            // SAFETY: as promised to `add`.
            let result = unsafe { carry_out(&block) };
            done.push_back(Completion { op: block.data as u32, result, more: false });
        }
    }

    /// By two system calls; returns how many the kernel took: the first ones, up to one that it refuses.
    fn run_together(&mut self, done: &mut VecDeque<Completion>) -> usize {
        let Some(context) = *self.context.get_or_init(new_context) else { return 0 };
        let mut pointers = [std::ptr::null_mut::<ControlBlock>(); BATCH_MAX];
        for (pointer, block) in pointers.iter_mut().zip(&mut self.blocks) {
            *pointer = block;
        }
        // SAFETY: so many blocks, which name what stays valid until they are done, as promised to `add`; they are waited for
        // below.
        let submitted =
            unsafe { libc::syscall(libc::SYS_io_submit, context, self.blocks.len(), pointers.as_mut_ptr()) };
        let taken = usize::try_from(submitted).unwrap_or(0);
        let mut events = [Event::default(); BATCH_MAX];
        let mut left = taken;
        while left > 0 {
            let none = std::ptr::null_mut::<libc::timespec>();
            // SAFETY: room for `left` events. All of them have happened already, so this does not wait.
            let count = unsafe {
                libc::syscall(libc::SYS_io_getevents, context, left, left, events.as_mut_ptr(), none)
            };
            let Ok(count) = usize::try_from(count) else {
                let error = io::Error::last_os_error();
                assert_eq!(error.kind(), io::ErrorKind::Interrupted, "io_getevents failed: {error}");
                continue;
            };
            for event in &events[..count] {
                let result = i32::try_from(event.result).unwrap_or(-libc::EIO);
                done.push_back(Completion { op: event.data as u32, result, more: false });
            }
            left -= count;
        }
        taken
    }
}

impl Drop for AtOnce {
    fn drop(&mut self) {
        if let Some(&Some(context)) = self.context.get() {
            // SAFETY: the context is ours, with nothing under way.
            unsafe { libc::syscall(libc::SYS_io_destroy, context) };
        }
    }
}

/// Makes a context for a batch.
fn new_context() -> Option<u64> {
    let mut context = 0u64;
    // SAFETY: the kernel writes one number, which has to be 0 before.
    let made = unsafe { libc::syscall(libc::SYS_io_setup, BATCH_MAX, &raw mut context) };
    if made != 0 {
        let error = io::Error::last_os_error();
        tracing::info!(%error, "no Linux AIO: each small transfer of a disk in memory is a system call");
        return None;
    }
    Some(context)
}

/// By a plain system call: bytes or a negative errno.
///
/// # Safety
/// As for [`AtOnce::add`].
unsafe fn carry_out(block: &ControlBlock) -> i32 {
    let &ControlBlock { opcode, rw_flags, offset, .. } = block;
    let file = block.file as libc::c_int;
    let one = libc::iovec { iov_base: block.buffer as *mut libc::c_void, iov_len: block.bytes as usize };
    let (iovecs, count) = match opcode {
        PREAD | PWRITE => (&raw const one, 1),
        _ => (block.buffer as *const libc::iovec, block.bytes as libc::c_int),
    };
    // SAFETY: as promised by the caller; `count` iovecs.
    let moved = unsafe {
        match opcode {
            // The kernel has less to fetch and to check.
            PREAD => libc::pread64(file, one.iov_base, one.iov_len, offset),
            PREADV => libc::preadv2(file, iovecs, count, offset, 0),
            _ => libc::pwritev2(file, iovecs, count, offset, rw_flags),
        }
    };
    let errno = || io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    i32::try_from(moved).ok().filter(|moved| *moved >= 0).unwrap_or_else(|| -errno())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::FileExt as _;

    /// Carries out reads of 512 bytes at `offsets`, and returns their results and bytes by the number of the operation.
    fn read_all(file: &std::fs::File, offsets: &[u64]) -> (Vec<i32>, Vec<[u8; 512]>) {
        let mut bytes = vec![[0; 512]; offsets.len()];
        let mut queue = AtOnce::new();
        for (op, (offset, into)) in offsets.iter().zip(&mut bytes).enumerate() {
            let part = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
            // SAFETY: `bytes` and `file` outlive the queue's run.
            unsafe { queue.add(op as u32, Direction::Read, file.as_fd(), *offset, Span::One(part)) };
        }
        let mut done = VecDeque::new();
        queue.run(&mut done);
        assert_eq!((queue.waiting(), done.len()), (0, offsets.len()));
        let mut results = vec![i32::MIN; offsets.len()];
        for completion in done {
            results[completion.op as usize] = completion.result;
        }
        (results, bytes)
    }

    #[test]
    fn few_and_many_are_carried_out_alike() {
        let file = tempfile::tempfile().unwrap();
        for place in 0..64u8 {
            file.write_all_at(&[place + 1; 512], 512 * u64::from(place)).unwrap();
        }
        for count in [1, BATCH_MIN - 1, BATCH_MIN, BATCH_MAX] {
            let offsets: Vec<u64> = (0..count as u64).rev().map(|place| 512 * place).collect();
            let (results, bytes) = read_all(&file, &offsets);
            assert_eq!(results, vec![512; count]);
            let expected = offsets.iter().map(|offset| [(offset / 512) as u8 + 1; 512]);
            assert_eq!(bytes, expected.collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_the_kernel_refuses_fails_alone() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 4096], 0).unwrap();
        let bad = i64::MAX as u64 - 100;
        for place in [0, 3, 7] {
            let mut offsets = [512; 8];
            offsets[place] = bad;
            let (results, bytes) = read_all(&file, &offsets);
            for (at, (result, bytes)) in results.iter().zip(&bytes).enumerate() {
                match at == place {
                    true => assert_eq!(*result, -libc::EINVAL),
                    false => assert_eq!((*result, bytes[0]), (512, 7), "{at} of those around {place}"),
                }
            }
        }
    }

    #[test]
    fn lists_of_parts_and_durable_writes() {
        let file = tempfile::tempfile().unwrap();
        let mut sources: Vec<[u8; 64]> = (0..16).map(|at| [at + 1; 64]).collect();
        let lists: Vec<Vec<libc::iovec>> = sources
            .chunks_mut(2)
            .map(|two| {
                let part =
                    |half: &mut [u8; 64]| libc::iovec { iov_base: half.as_mut_ptr().cast(), iov_len: 64 };
                two.iter_mut().map(part).collect()
            })
            .collect();
        let mut queue = AtOnce::new();
        for (op, list) in lists.iter().enumerate() {
            let span = Span::Many { iovecs: list.as_ptr(), count: list.len() };
            let direction = if op % 2 == 0 { Direction::Write } else { Direction::WriteDurable };
            // SAFETY: `sources`, `lists` and `file` outlive the run.
            unsafe { queue.add(op as u32, direction, file.as_fd(), 128 * op as u64, span) };
        }
        let mut done = VecDeque::new();
        queue.run(&mut done);
        assert!(done.len() == 8 && done.iter().all(|completion| completion.result == 128));
        let mut back = vec![0; 1024];
        file.read_exact_at(&mut back, 0).unwrap();
        assert_eq!(back, sources.concat());
    }
}
