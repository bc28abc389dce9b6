//! What a worker asks of the kernel: transfers, watches, signals.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use io_uring::types::{CancelBuilder, Fixed, FsyncFlags};
use io_uring::{opcode, squeue};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use virtq::{GuestMemory, GuestSlice};

use crate::at_once::{AtOnce, Direction, Span};
use crate::files::{FileId, Files};
use crate::ops::{Holds, Op, Ops};
use crate::pool::{Buffer, PacketInfo, Pool};
use crate::ring::{Completion, Ring};
use crate::signal::Signals;
use crate::worker::WorkerConfig;

/// The worker's ring has no room. Nothing was started: undo the pop and try again when something has completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the worker's ring is full")]
pub struct Full;

/// A guest memory map that operations name; see [`Io::add_memory`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemoryId(u16);

/// A watched file descriptor; see [`Io::watch`].
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct WatchId(u32);

/// Most segments that one operation takes (UIO_MAXIOV of Linux). A transfer with more is cut there, as a short transfer.
pub const IOVECS_MAX: usize = 1024;

/// Segments of operations that are queued but not yet submitted.
const ARENA_IOVECS: usize = 4 * IOVECS_MAX;

/// Where a transfer reads from or writes to.
#[derive(Debug)]
pub enum Buffers<'a> {
    /// `len` bytes of guest memory: those after the first `skip` bytes of the concatenated `segments`.
    Guest {
        /// The map that the segments belong to.
        memory: MemoryId,
        /// The segments, all of that map.
        segments: &'a [GuestSlice],
        /// Bytes to pass over.
        skip: u64,
        /// Bytes to transfer; at most what the segments hold after `skip`.
        len: u32,
    },
    /// A part of a pool buffer, which comes back with the completion.
    Pool(Buffer, Range<usize>),
}

struct MemorySlot {
    memory: Option<Arc<GuestMemory>>,
    users: u32,
    in_flight: u32,
}

/// The kernel side of one worker: its ring, fixed files, guest memory maps and buffer pool.
///
/// Operations end with [`crate::Worker::completion`], which gets their token and the result: a count of bytes (0 for
/// operations without data) or a negative errno. They start at the end of the pass at the latest.
pub struct Io {
    pub(crate) ring: Ring,
    ops: Ops,
    files: Files,
    memories: Vec<MemorySlot>,
    pool: Pool,
    arena: Box<[libc::iovec]>,
    arena_used: usize,
    returned: Option<u32>,
    /// Operations that are to be carried out at once, when the pass ends at the latest.
    at_once: AtOnce,
    /// Those that were, and are not yet told of.
    done: VecDeque<Completion>,
    signals: Signals,
    start: Instant,
    pub(crate) now: Instant,
    pub(crate) stopping: bool,
    pub(crate) full_count: u64,
}

impl Io {
    pub(crate) fn new(config: &WorkerConfig) -> io::Result<Io> {
        let now = Instant::now();
        let ring = Ring::new(config.ring_entries, config.operations_max.saturating_mul(2))?;
        let files = Files::new(config.files_max, &ring.submitter())?;
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Ok(Io {
            ring,
            ops: Ops::new(config.operations_max),
            files,
            memories: Vec::new(),
            pool: Pool::new(config.buffers, config.buffer_bytes)?,
            arena: vec![empty; ARENA_IOVECS].into(),
            arena_used: 0,
            returned: None,
            at_once: AtOnce::new(),
            done: VecDeque::with_capacity(config.operations_max as usize),
            signals: Signals::new(),
            start: now,
            now,
            stopping: false,
            full_count: 0,
        })
    }

    /// The time at which this pass of the loop began.
    #[inline]
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Nanoseconds from the start of the worker to the beginning of this pass; for measuring how long things took.
    #[inline]
    pub fn now_ns(&self) -> u64 {
        self.now.duration_since(self.start).as_nanos() as u64
    }

    /// Ends the worker after this pass: what is in flight is waited for, then the thread returns.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// How often an operation found no room; for a metric.
    pub fn full_count(&self) -> u64 {
        self.full_count
    }

    /// Makes a file known to the ring, which keeps a reference of its own: `fd` may be closed. Files for [`Io::receive`]
    /// must be in blocking mode (O_NONBLOCK makes a receive fail with EAGAIN instead of waiting).
    pub fn add_file(&mut self, fd: BorrowedFd<'_>) -> io::Result<FileId> {
        self.files.add(&self.ring.submitter(), fd)
    }

    /// Forgets a file. Pending receives on it end with ECANCELED; transfers in flight end normally.
    pub fn remove_file(&mut self, file: FileId) {
        // By operation, not by file: others may have added the same file.
        let pending: Vec<u32> = self.ops.receives_on(file.0).collect();
        for operation in pending {
            self.cancel(operation);
        }
        // What is queued names the slot by number and must be taken first.
        self.flush();
        self.files.remove(&self.ring.submitter(), file);
    }

    /// Makes a guest memory map known. The same map may be added by several queues; it is held until each of them removed
    /// it and no operation uses it.
    pub fn add_memory(&mut self, memory: Arc<GuestMemory>) -> MemoryId {
        let same = |slot: &MemorySlot| slot.memory.as_ref().is_some_and(|held| Arc::ptr_eq(held, &memory));
        let found = self.memories.iter().position(|slot| slot.users > 0 && same(slot));
        let index = found
            .or_else(|| self.memories.iter().position(|slot| slot.memory.is_none()))
            .unwrap_or_else(|| {
                self.memories.push(MemorySlot { memory: None, users: 0, in_flight: 0 });
                self.memories.len() - 1
            });
        let slot = &mut self.memories[index];
        slot.memory = Some(memory);
        slot.users += 1;
        MemoryId(u16::try_from(index).expect("a map per queue, and far fewer queues than 65536"))
    }

    /// Undoes one [`Io::add_memory`].
    pub fn remove_memory(&mut self, id: MemoryId) {
        let slot = &mut self.memories[id.0 as usize];
        assert!(slot.users > 0, "{id:?} removed more often than added");
        slot.users -= 1;
        slot.drop_unused();
    }

    /// Reads from `offset` of a file (ignored by files without offsets) into `to`.
    #[inline]
    pub fn read(&mut self, file: FileId, offset: u64, to: Buffers<'_>, token: u64) -> Result<(), Full> {
        self.transfer(Direction::Read, file, offset, to, token)
    }

    /// Writes `from` at `offset` of a file (ignored by files without offsets).
    #[inline]
    pub fn write(&mut self, file: FileId, offset: u64, from: Buffers<'_>, token: u64) -> Result<(), Full> {
        self.transfer(Direction::Write, file, offset, from, token)
    }

    /// As [`Io::write`], and completes only when the data are durable (RWF_DSYNC).
    pub fn write_durable(
        &mut self,
        file: FileId,
        offset: u64,
        from: Buffers<'_>,
        token: u64,
    ) -> Result<(), Full> {
        self.transfer(Direction::WriteDurable, file, offset, from, token)
    }

    /// Makes completed writes durable: fdatasync when `data_only`, else fsync.
    pub fn fsync(&mut self, file: FileId, data_only: bool, token: u64) -> Result<(), Full> {
        let flags = if data_only { FsyncFlags::DATASYNC } else { FsyncFlags::empty() };
        let entry = opcode::Fsync::new(Fixed(file.0)).flags(flags).build();
        // SAFETY: an fsync points to no memory. The kernel always gives it to a thread of its own.
        unsafe { self.start(Op::active(Holds::Nothing, token, true), entry) }
    }

    /// fallocate(2) with `mode` (`FALLOC_FL_*`): punch holes, write zeroes, on files and block devices.
    pub fn fallocate(
        &mut self,
        file: FileId,
        mode: i32,
        offset: u64,
        len: u64,
        token: u64,
    ) -> Result<(), Full> {
        let entry = opcode::Fallocate::new(Fixed(file.0), len).offset(offset).mode(mode).build();
        // SAFETY: a fallocate points to no memory. The kernel always gives it to a thread of its own.
        unsafe { self.start(Op::active(Holds::Nothing, token, true), entry) }
    }

    /// Receives one frame into a pool buffer with read(2): tap devices, and sockets whose auxiliary data nobody needs.
    /// It may stay pending for as long as nothing comes; it does not keep the worker awake.
    pub fn receive(&mut self, file: FileId, buffer: Buffer, token: u64) -> Result<(), (Full, Buffer)> {
        self.receive_with(file, buffer, token, 0)
    }

    /// As [`Io::receive`], but completes with EAGAIN when nothing is there. For batches after a watch has fired: many
    /// pending receives would all be woken by each frame.
    pub fn try_receive(&mut self, file: FileId, buffer: Buffer, token: u64) -> Result<(), (Full, Buffer)> {
        self.receive_with(file, buffer, token, libc::RWF_NOWAIT)
    }

    fn receive_with(
        &mut self,
        file: FileId,
        buffer: Buffer,
        token: u64,
        flags: i32,
    ) -> Result<(), (Full, Buffer)> {
        let (pointer, length) = self.pool.part(&buffer, 0..self.pool.buffer_bytes());
        let entry =
            opcode::Read::new(Fixed(file.0), pointer, length).offset(u64::MAX).rw_flags(flags).build();
        // SAFETY: the buffer is in the pool, and comes back only with the completion.
        let started = unsafe {
            self.start(Op::passive(Holds::Receive { buffer: buffer.0, file: file.0 }, token), entry)
        };
        started.map_err(|full| (full, buffer))
    }

    /// Receives one frame from a packet socket with recvmsg(2), with its auxiliary data; see [`Io::packet_info`].
    pub fn receive_packet(&mut self, file: FileId, buffer: Buffer, token: u64) -> Result<(), (Full, Buffer)> {
        self.receive_packet_with(file, buffer, token, 0)
    }

    /// As [`Io::receive_packet`], but completes with EAGAIN when nothing is there; see [`Io::try_receive`].
    pub fn try_receive_packet(
        &mut self,
        file: FileId,
        buffer: Buffer,
        token: u64,
    ) -> Result<(), (Full, Buffer)> {
        self.receive_packet_with(file, buffer, token, libc::MSG_DONTWAIT as u32)
    }

    fn receive_packet_with(
        &mut self,
        file: FileId,
        buffer: Buffer,
        token: u64,
        flags: u32,
    ) -> Result<(), (Full, Buffer)> {
        let header = self.pool.receive_header(&buffer);
        let entry = opcode::RecvMsg::new(Fixed(file.0), header).flags(flags).build();
        // SAFETY: header, iovec, control bytes and buffer are the pool's and are not touched until the completion.
        let started = unsafe {
            self.start(Op::passive(Holds::Receive { buffer: buffer.0, file: file.0 }, token), entry)
        };
        started.map_err(|full| (full, buffer))
    }

    /// A buffer of the pool, if one is free.
    pub fn buffer(&mut self) -> Option<Buffer> {
        self.pool.take()
    }

    /// How many buffers are free.
    pub fn free_buffers(&self) -> usize {
        self.pool.free_count()
    }

    /// Size of every buffer of the pool.
    pub fn buffer_bytes(&self) -> usize {
        self.pool.buffer_bytes()
    }

    /// Gives a buffer back to the pool.
    pub fn release(&mut self, buffer: Buffer) {
        self.pool.release(buffer);
    }

    /// Inside [`crate::Worker::completion`]: takes over the buffer of the operation that completed, if it had one. A
    /// buffer that is not taken goes back to the pool.
    pub fn take_buffer(&mut self) -> Option<Buffer> {
        self.returned.take().map(Buffer)
    }

    /// The bytes of a buffer.
    pub fn bytes(&self, buffer: &Buffer) -> &[u8] {
        self.pool.bytes(buffer)
    }

    /// The bytes of a buffer, to be written.
    pub fn bytes_mut(&mut self, buffer: &mut Buffer) -> &mut [u8] {
        self.pool.bytes_mut(buffer)
    }

    /// What the packet socket said about the frame that [`Io::receive_packet`] last put into this buffer.
    pub fn packet_info(&self, buffer: &Buffer) -> PacketInfo {
        self.pool.packet_info(buffer)
    }

    /// Watches a file descriptor, usually the eventfd of a kick, for becoming readable. It is never read: each signal
    /// wakes the worker and calls [`crate::Worker::completion`] with `token` and the poll events, or with a negative errno
    /// when the descriptor cannot be watched any longer. What cannot be polled at all (a file, say) is refused with EPERM.
    pub fn watch(&mut self, fd: BorrowedFd<'_>, token: u64) -> io::Result<WatchId> {
        // io_uring takes such a watch, but never lets go of it again; epoll refuses it.
        Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        let file = self.add_file(fd)?;
        let pushed = self.ops.insert(Op::passive(Holds::Watch(file.0), token)).filter(|&index| {
            let pushed = self.push_watch(index, file.0);
            if !pushed {
                self.ops.remove(index);
            }
            pushed
        });
        pushed.map(WatchId).ok_or_else(|| {
            self.files.remove(&self.ring.submitter(), file);
            io::Error::new(io::ErrorKind::QuotaExceeded, Full)
        })
    }

    /// Ends a watch; its token is not heard of again.
    pub fn unwatch(&mut self, watch: WatchId) {
        if self.ops.get(watch.0).holds == Holds::Ended {
            self.ops.bury(watch.0);
            return;
        }
        self.ops.set_told(watch.0, false);
        self.cancel(watch.0);
    }

    /// Signals an eventfd: at once, not with the next submit. Whoever else has it can't keep the worker for long, and only
    /// once.
    #[inline]
    pub fn signal(&mut self, fd: BorrowedFd<'_>) {
        self.signals.signal(fd);
    }

    /// Operations that are carried out at once and of which the worker has not heard yet.
    #[inline]
    pub fn at_once_waiting(&self) -> usize {
        self.at_once.waiting() + self.done.len()
    }

    /// Gives what is queued to the kernel now instead of at the end of the pass.
    pub fn flush(&mut self) {
        self.run_at_once();
        self.ring.submit();
        if self.ring.submitted() {
            self.arena_used = 0;
        }
    }

    /// Operations that end by themselves (not watches, not pending receives).
    #[inline]
    pub fn active(&self) -> u32 {
        self.ops.active()
    }

    /// Whether an operation in flight needs a kernel thread: then this core must not be spun away.
    #[inline]
    pub(crate) fn kernel_thread_wanted(&self) -> bool {
        self.ops.threaded() > 0
    }

    /// Takes completions into `batch`; returns how many.
    #[inline]
    pub(crate) fn completions(&mut self, batch: &mut [Completion]) -> usize {
        let mut count = 0;
        while count < batch.len()
            && let Some(completion) = self.done.pop_front()
        {
            batch[count] = completion;
            count += 1;
        }
        count + self.ring.completions(&mut batch[count..])
    }

    /// Submits and sleeps until something completes.
    pub(crate) fn wait(&mut self, timeout: Option<std::time::Duration>) {
        self.run_at_once();
        if !self.done.is_empty() {
            return self.flush();
        }
        self.ring.wait(timeout);
        if self.ring.submitted() {
            self.arena_used = 0;
        }
    }

    /// Cancels everything pending and tells whether anything is left in flight.
    pub(crate) fn wind_down(&mut self, cancelled: &mut bool) -> bool {
        if !*cancelled {
            let all = opcode::AsyncCancel2::new(CancelBuilder::any()).build().user_data(CANCEL_USER_DATA);
            // SAFETY: a cancellation points to no memory.
            *cancelled = self.ops.active() == 0 && unsafe { self.ring.push(&all) };
        }
        self.ops.pending() > 0
    }

    /// Ends the bookkeeping of one completion. Returns the token if the worker is to hear of it.
    #[inline]
    pub(crate) fn finish(&mut self, completion: Completion) -> Option<u64> {
        if completion.op == CANCEL_USER_DATA as u32 {
            return None;
        }
        let op = self.ops.get(completion.op);
        match op.holds {
            Holds::Watch(file) => return self.watch_fired(op, file, completion),
            Holds::Memory(memory) => {
                let slot = &mut self.memories[memory as usize];
                slot.in_flight -= 1;
                slot.drop_unused();
            }
            Holds::Buffer(buffer) | Holds::Receive { buffer, .. } => self.returned = Some(buffer),
            Holds::Nothing => {}
            Holds::Free | Holds::Ended => unreachable!("completion {} of nothing", completion.op),
        }
        debug_assert!(!completion.more);
        self.ops.remove(completion.op);
        op.told.then_some(op.token)
    }

    /// After the worker heard of a completion: a buffer it did not take is the pool's again.
    #[inline]
    pub(crate) fn reclaim(&mut self) {
        if let Some(buffer) = self.returned.take() {
            self.pool.release(Buffer(buffer));
        }
    }

    fn watch_fired(&mut self, op: Op, file: u32, completion: Completion) -> Option<u64> {
        if !completion.more {
            // The kernel ended the watch: after a burst it is set up again, else it is over. While its owner may still
            // name it, the slot stays taken.
            let again = op.told && completion.result >= 0 && self.push_watch(completion.op, file);
            if !again {
                self.files.remove(&self.ring.submitter(), FileId(file));
                self.ops.end_watch(completion.op);
                if !op.told {
                    self.ops.bury(completion.op);
                }
            }
        }
        op.told.then_some(op.token)
    }

    /// Cancels one operation.
    fn cancel(&mut self, operation: u32) {
        let which = CancelBuilder::user_data(u64::from(operation));
        let entry = opcode::AsyncCancel2::new(which).build().user_data(CANCEL_USER_DATA);
        // SAFETY: a cancellation points to no memory.
        while unsafe { !self.ring.push(&entry) } {
            self.flush();
        }
    }

    fn push_watch(&mut self, index: u32, file: u32) -> bool {
        let entry = opcode::PollAdd::new(Fixed(file), libc::POLLIN as u32).multi(true).build();
        let entry = entry.user_data(u64::from(index));
        // SAFETY: a poll points to no memory.
        unsafe {
            self.ring.push(&entry) || {
                self.flush();
                self.ring.push(&entry)
            }
        }
    }

    /// Queues `entry`.
    ///
    /// # Safety
    /// What the entry points to is kept by `op.holds` until the completion, or lies in the arena.
    #[inline]
    unsafe fn start(&mut self, op: Op, entry: squeue::Entry) -> Result<(), Full> {
        let Some(index) = self.ops.insert(op) else {
            self.full_count += 1;
            return Err(Full);
        };
        let entry = entry.user_data(u64::from(index));
        // SAFETY: as promised by the caller. Making room is not `flush`, since the entry may point into the arena.
        let pushed = unsafe {
            self.ring.push(&entry) || {
                self.ring.submit();
                self.ring.push(&entry)
            }
        };
        if !pushed {
            self.ops.remove(index);
            self.full_count += 1;
            return Err(Full);
        }
        Ok(())
    }

    /// Queues a transfer that is carried out at once.
    ///
    /// # Safety
    /// What `span` names is kept by `op.holds` until the completion, or lies in the arena.
    #[inline]
    unsafe fn start_at_once(
        &mut self,
        op: Op,
        direction: Direction,
        (file, offset): (FileId, u64),
        span: Span,
    ) -> Result<(), Full> {
        let Some(index) = self.ops.insert(op) else {
            self.full_count += 1;
            return Err(Full);
        };
        if self.at_once.full() {
            self.run_at_once();
        }
        let fd = self.files.at_once(file).expect("looked for before");
        // SAFETY: as promised by the caller; both the arena and the file outlast `flush`, which runs what is queued first.
        unsafe { self.at_once.add(index, direction, fd, offset, span) };
        Ok(())
    }

    #[inline]
    fn run_at_once(&mut self) {
        if self.at_once.waiting() > 0 {
            self.at_once.run(&mut self.done);
        }
    }

    #[inline]
    fn transfer(
        &mut self,
        direction: Direction,
        file: FileId,
        offset: u64,
        buffers: Buffers<'_>,
        token: u64,
    ) -> Result<(), Full> {
        let threaded = self.files.threaded(file);
        let (memory, segments, skip, len) = match buffers {
            Buffers::Guest { memory, segments, skip, len } => (memory, segments, skip, len),
            Buffers::Pool(buffer, range) => {
                let (pointer, length) = self.pool.part(&buffer, range);
                if self.files.is_at_once(file, length) {
                    let span = Span::One(libc::iovec { iov_base: pointer.cast(), iov_len: length as usize });
                    let op = Op::active(Holds::Buffer(buffer.0), token, false);
                    // SAFETY: the buffer is in the pool and comes back only with the completion.
                    let started = unsafe { self.start_at_once(op, direction, (file, offset), span) };
                    return started.inspect_err(|_| self.pool.release(buffer));
                }
                let entry = single(direction, file, offset, pointer, length);
                // SAFETY: the buffer is in the pool and comes back only with the completion.
                let started =
                    unsafe { self.start(Op::active(Holds::Buffer(buffer.0), token, threaded), entry) };
                return started.inspect_err(|_| self.pool.release(buffer));
            }
        };
        if self.arena.len() - self.arena_used < segments.len().min(IOVECS_MAX) {
            self.flush();
            if self.arena_used != 0 {
                self.full_count += 1;
                return Err(Full);
            }
        }
        let slot = &mut self.memories[memory.0 as usize];
        let map = slot.memory.as_ref().expect("a MemoryId is valid until it is removed");
        let free = &mut self.arena[self.arena_used..];
        let count = gather(map, segments, skip, len, free);
        slot.in_flight += 1;
        self.arena_used += if count > 1 { count } else { 0 };
        // Both ways the map is held until the completion by its slot's `in_flight`, and the iovecs stay in the arena until
        // everything queued was given to the kernel (`flush` resets it only then), which copies them there.
        let started = if self.files.is_at_once(file, len) {
            let span = match count {
                1 => Span::One(free[0]),
                _ => Span::Many { iovecs: free.as_ptr(), count },
            };
            // SAFETY: see above.
            unsafe {
                let op = Op::active(Holds::Memory(memory.0), token, false);
                self.start_at_once(op, direction, (file, offset), span)
            }
        } else {
            let entry = match count {
                1 => single(direction, file, offset, free[0].iov_base.cast(), free[0].iov_len as u32),
                _ => several(direction, file, offset, &free[..count]),
            };
            // SAFETY: see above.
            unsafe { self.start(Op::active(Holds::Memory(memory.0), token, threaded), entry) }
        };
        if started.is_err() {
            self.memories[memory.0 as usize].in_flight -= 1;
        }
        started
    }
}

impl MemorySlot {
    #[inline]
    fn drop_unused(&mut self) {
        if self.users == 0 && self.in_flight == 0 {
            self.memory = None;
        }
    }
}

/// `user_data` of cancellations, of whose own completion nobody hears.
const CANCEL_USER_DATA: u64 = u32::MAX as u64;

fn single(direction: Direction, file: FileId, offset: u64, pointer: *mut u8, length: u32) -> squeue::Entry {
    match direction {
        Direction::Read => opcode::Read::new(Fixed(file.0), pointer, length).offset(offset).build(),
        Direction::Write => opcode::Write::new(Fixed(file.0), pointer, length).offset(offset).build(),
        Direction::WriteDurable => opcode::Write::new(Fixed(file.0), pointer, length)
            .offset(offset)
            .rw_flags(libc::RWF_DSYNC)
            .build(),
    }
}

fn several(direction: Direction, file: FileId, offset: u64, iovecs: &[libc::iovec]) -> squeue::Entry {
    let (pointer, count) = (iovecs.as_ptr(), iovecs.len() as u32);
    match direction {
        Direction::Read => opcode::Readv::new(Fixed(file.0), pointer, count).offset(offset).build(),
        Direction::Write => opcode::Writev::new(Fixed(file.0), pointer, count).offset(offset).build(),
        Direction::WriteDurable => opcode::Writev::new(Fixed(file.0), pointer, count)
            .offset(offset)
            .rw_flags(libc::RWF_DSYNC)
            .build(),
    }
}

/// Writes the iovecs of `len` bytes after `skip` of `segments`; at most [`IOVECS_MAX`]. Returns how many.
#[inline]
fn gather(
    map: &GuestMemory,
    segments: &[GuestSlice],
    mut skip: u64,
    len: u32,
    iovecs: &mut [libc::iovec],
) -> usize {
    let mut left = len;
    let mut count = 0;
    for segment in segments {
        let length = segment.len();
        if skip >= u64::from(length) {
            skip -= u64::from(length);
            continue;
        }
        if left == 0 || count == IOVECS_MAX {
            break;
        }
        let begin = skip as u32;
        let take = left.min(length - begin);
        let part = segment.sub(begin, take).expect("begin + take is at most the segment's length");
        iovecs[count] = libc::iovec { iov_base: map.host_ptr(part).cast(), iov_len: take as usize };
        count += 1;
        left -= take;
        skip = 0;
    }
    assert!(count > 0 && (left == 0 || count == IOVECS_MAX), "the segments hold less than {len} bytes");
    count
}
