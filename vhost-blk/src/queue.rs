//! One running virtqueue of a disk: from heads on the ring to operations of the host and back to the guest.
//!
//! A request is taken off the ring, walked, parsed, and becomes one operation; its [`Slot`], found by its head, remembers
//! what is left of it. Most are answered by their first completion. A transfer that the host cut short goes on where it
//! ended; what finds no room in the worker waits, in order, and nothing is popped before it. Continued requests walk their
//! chain again: the guest may have changed it meanwhile, so it is checked again, and only the guest is hurt.

mod in_pool;
mod ranges;

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use reactor::{Buffers, FileId, Full, IOVECS_MAX, Io, MemoryId, Reply, WatchId};
use tiering::{Hit, VolumeId};
use virtq::{Chain, GuestMemory, GuestSlice, Parts, Queue};

use crate::backend::SessionState;
use crate::disk::Disk;
use crate::helper::{Helper, Job};
use crate::metrics::{ErrorKind, Op, QueueMetrics};
use crate::request::{
    DiskLimits, HEADER_BYTES, RANGE_BYTES, Request, SERIAL_BYTES, STATUS_BYTES, Status, parse,
};
use crate::tier::Pool;
use crate::worker::QUEUE_SHIFT;
use ranges::{Method, read_range};

/// Heads taken off a ring at once: enough to share the cost of publishing, few enough to be fair to other queues.
pub(crate) const POP_BATCH: usize = 64;
/// Requests carried out at once, by plain system calls, before their answers are shown: the guest is at work on these while
/// the next ones are carried out.
const AT_ONCE_MAX: usize = 16;
/// Most bytes of one operation: what Linux moves in one call, in whole pages.
const TRANSFER_BYTES_MAX: u64 = 1 << 30;

/// What a worker is given to serve a queue.
pub struct Start {
    /// The ring.
    pub queue: Queue,
    /// Signalled by the guest.
    pub kick: OwnedFd,
    /// Signalled for the guest.
    pub call: Option<OwnedFd>,
    /// Signalled when the ring is broken.
    pub err: Option<OwnedFd>,
    /// Index of the queue within its device, for messages.
    pub index: u16,
    /// The disk.
    pub disk: Arc<Disk>,
    /// What the queues of one frontend share.
    pub session: Arc<SessionState>,
    /// Where it is counted.
    pub metrics: QueueMetrics,
}

/// What is given back when a queue has stopped.
pub struct Stopped {
    /// The ring, with everything published, and nothing in flight but what the next session finds there.
    pub queue: Queue,
    /// Where it was counted.
    pub metrics: QueueMetrics,
}

/// What the kernel (or the helper) is doing for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Not begun.
    #[default]
    New,
    /// Begun, with nothing in flight: between two ranges.
    Between,
    /// A transfer straight from or to guest memory, or through a bounce buffer.
    Transfer,
    /// The same from the hot device of a pool.
    Hit(Hit),
    /// A flush, or what makes ranges durable for a guest that asked for write-through.
    Sync,
    /// A range by this method.
    Range(Method),
    /// The note that the volume is poisoned: its flush is answered when that lasts.
    Note(ErrorKind),
}

#[derive(Clone, Copy, Default)]
struct Slot {
    request: Option<Request>,
    stage: Stage,
    status: GuestSlice,
    /// Bytes done, of the whole transfer or of the current range.
    done: u64,
    /// Bytes of the operation in flight.
    chunk: u64,
    /// The current range of a discard or write-zeroes.
    range: u32,
    /// The guest changed its chain while the pool was at work on the request.
    tampered: bool,
    /// It could not be read where it was hot: the pool serves it.
    missed: bool,
    popped_ns: u64,
    submitted_ns: u64,
}

/// Why a request was not done, and what the guest gets to know of it.
#[derive(Clone, Copy, Debug)]
struct Failure {
    kind: ErrorKind,
    status: Status,
}

impl Failure {
    /// A failure that is not the guest's.
    fn io(kind: ErrorKind) -> Failure {
        Failure { kind, status: Status::IoError }
    }
}

/// How far a step brought a request.
enum Step {
    /// An operation is in flight.
    Started,
    /// It can be answered.
    Ended(Result<(), Failure>),
    /// The ring is broken; the request is never answered.
    Broken,
}

/// What a transfer has still to move.
struct Rest {
    file: FileId,
    /// What direct I/O on it needs.
    alignment: (u32, u32),
    /// First byte in the file.
    at: u64,
    bytes: u64,
}

/// What a worker lends its queues while it works on them.
pub(crate) struct Kit<'a> {
    /// Its ring.
    pub(crate) io: &'a mut Io,
    /// The chain that was walked last.
    pub(crate) chain: &'a mut Chain,
    /// The pool of the queue's volume, if it is in one.
    pub(crate) pool: Option<&'a mut Pool>,
}

/// Where the data of a queue's volume are.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// Nowhere.
    Nothing,
    /// In a file or on a device.
    File(FileId),
    /// In a pool of the same worker.
    Pool {
        /// Its number at the worker.
        pool: usize,
        /// The volume in it.
        volume: VolumeId,
    },
}

const CHANGED: &str = "the guest changed a request that was being served";

/// A running queue.
pub(crate) struct Serving {
    queue: Queue,
    call: Option<OwnedFd>,
    err: Option<OwnedFd>,
    index: u16,
    watch: WatchId,
    memory: MemoryId,
    target: Target,
    disk: Arc<Disk>,
    session: Arc<SessionState>,
    metrics: QueueMetrics,
    helper: Helper,
    /// Upper part of this queue's tokens; the head is the lower 16 bits.
    token: u64,
    slots: Box<[Slot]>,
    /// Requests that found no room, oldest first.
    waiting: VecDeque<u16>,
    /// Heads that were taken and not answered.
    open: u32,
    /// The worker's count of completions when room was last missing: before it changes there is none.
    stalled_at: Option<u64>,
    broken: bool,
    unpublished: bool,
    stopping: Option<Reply<Option<Stopped>>>,
    /// Requests that waited for space in a full pool when the queue had to stop.
    left: Vec<u16>,
}

impl Serving {
    /// Takes a queue over: first come the requests that a killed predecessor left.
    pub(crate) fn new(start: Start, token: u64, helper: Helper, io: &mut Io) -> std::io::Result<Serving> {
        let mut queue = start.queue;
        let watch = io.watch(start.kick.as_fd(), token | KICK)?;
        let target = match (start.disk.seat(), start.disk.file_handle()) {
            (Some(seat), _) => Target::Pool { pool: seat.pool.number(), volume: seat.volume },
            (None, None) => Target::Nothing,
            (None, Some(file)) => match io.add_file(file.as_fd()) {
                Ok(file) => Target::File(file),
                Err(error) => {
                    io.unwatch(watch);
                    return Err(error);
                }
            },
        };
        let memory = io.add_memory(queue.memory().clone());
        let size = usize::from(queue.size());
        let mut waiting = VecDeque::with_capacity(size);
        waiting.extend(queue.resubmit());
        queue.disarm();
        Ok(Serving {
            call: start.call,
            err: start.err,
            index: start.index,
            watch,
            memory,
            target,
            disk: start.disk,
            session: start.session,
            metrics: start.metrics,
            helper,
            token,
            slots: vec![Slot::default(); size].into(),
            open: waiting.len() as u32,
            waiting,
            stalled_at: None,
            broken: false,
            // A predecessor may have died between its last answer and the signal.
            unpublished: true,
            stopping: None,
            left: Vec::new(),
            queue,
        })
    }

    /// The queue's number at its worker.
    fn number(&self) -> u32 {
        (self.token >> QUEUE_SHIFT) as u32
    }

    /// Signals another eventfd from now on, and once: it may have missed one.
    pub(crate) fn set_call(&mut self, call: Option<OwnedFd>, io: &mut Io) {
        self.call = call;
        self.signal(io);
    }

    /// Pops no more; `reply` is answered when everything taken was answered, or waits for space in a full pool.
    pub(crate) fn stop(&mut self, reply: Reply<Option<Stopped>>) {
        self.stopping = Some(reply);
    }

    /// Whether [`Serving::finish`] is due.
    #[inline]
    pub(crate) fn stopped(&self) -> bool {
        self.stopping.is_some() && self.open == 0
    }

    /// Ends a stopped queue and gives it back.
    pub(crate) fn finish(mut self, io: &mut Io) {
        self.leave();
        self.publish(io);
        io.unwatch(self.watch);
        if let Target::File(file) = self.target {
            io.remove_file(file);
        }
        io.remove_memory(self.memory);
        if let Some(reply) = self.stopping {
            reply.send(Some(Stopped { queue: self.queue, metrics: self.metrics }));
        }
    }

    /// A signal from the guest; `poll` sees what it is about.
    pub(crate) fn kicked(&self) {
        self.metrics.kicks.add(1);
    }

    /// Takes and starts requests, one batch; shows answers to the guest. `completions` is the worker's count of them.
    #[inline]
    pub(crate) fn poll(&mut self, kit: &mut Kit<'_>, heads: &mut [u16], completions: u64) -> bool {
        let mut worked = false;
        if self.queue.lost() && !self.broken {
            self.break_ring(0, &"guest memory was taken away", kit.io);
        }
        // What is answered goes out before anything else is begun: the guest refills the ring meanwhile.
        if self.unpublished {
            self.publish(kit.io);
        }
        if self.stalled_at != Some(completions) {
            self.stalled_at = None;
            let limits = self.disk.limits();
            if !self.waiting.is_empty() {
                worked |= self.retry(kit, &limits, completions);
            }
            if self.waiting.is_empty() && self.stopping.is_none() && !self.broken {
                worked |= self.take(kit, &limits, heads, completions);
            }
        }
        if self.unpublished {
            self.publish(kit.io);
        }
        if self.stopping.is_some() && self.open > 0 {
            self.call_off_waiting(kit);
        }
        worked
    }

    /// Asks for a kick. True if requests wait already. A queue that waits for room needs none: completions wake it.
    pub(crate) fn arm(&mut self) -> bool {
        // What the look itself finds out is dealt with in the next pass: it counts as work.
        !self.broken
            && self.stopping.is_none()
            && self.stalled_at.is_none()
            && (self.queue.arm() | self.queue.lost())
    }

    /// No kicks, please.
    pub(crate) fn disarm(&mut self) {
        if !self.broken {
            self.queue.disarm();
        }
    }

    fn take(&mut self, kit: &mut Kit<'_>, limits: &DiskLimits, heads: &mut [u16], completions: u64) -> bool {
        let count = match self.queue.pop_batch(heads) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(fault) => {
                self.break_ring(0, &fault, kit.io);
                return true;
            }
        };
        let now_ns = kit.io.now_ns();
        let mut at_once = 0;
        // Those of other queues do not count: every queue has its turn in every pass.
        let before = kit.io.ended_waiting();
        for (position, &head) in heads[..count].iter().enumerate() {
            if kit.io.ended_waiting() - before >= AT_ONCE_MAX {
                self.queue.undo_pop((count - position) as u16);
                break;
            }
            self.open += 1;
            match self.begin(head, kit, limits, now_ns) {
                Ok(Step::Started) => {}
                Ok(Step::Ended(result)) => {
                    at_once += 1;
                    self.answer(head, result);
                }
                Ok(Step::Broken) => break,
                Err(Full) => {
                    self.open -= 1;
                    self.queue.undo_pop((count - position) as u16);
                    self.stalled_at = Some(completions);
                    self.metrics.stalls.add(1);
                    break;
                }
            }
        }
        if at_once > 0 {
            self.metrics.queue_time.record_many_ns(0, at_once);
            self.metrics.device_time.record_many_ns(0, at_once);
        }
        true
    }

    /// Goes on with requests that found no room.
    fn retry(&mut self, kit: &mut Kit<'_>, limits: &DiskLimits, completions: u64) -> bool {
        let mut worked = false;
        while let Some(head) = self.waiting.pop_front() {
            let step = if self.slots[usize::from(head)].stage == Stage::New {
                self.begin(head, kit, limits, kit.io.now_ns())
            } else {
                self.resume(head, kit, limits)
            };
            match step {
                Ok(Step::Started) => {}
                Ok(Step::Ended(result)) => self.answer(head, result),
                Ok(Step::Broken) => return true,
                Err(Full) => {
                    self.waiting.push_front(head);
                    self.stalled_at = Some(completions);
                    self.metrics.stalls.add(1);
                    return worked;
                }
            }
            worked = true;
        }
        worked
    }

    /// Parses a request and starts its first operation.
    #[inline]
    fn begin(
        &mut self,
        head: u16,
        kit: &mut Kit<'_>,
        limits: &DiskLimits,
        now_ns: u64,
    ) -> Result<Step, Full> {
        let chain = &mut *kit.chain;
        if let Err(fault) = self.queue.walk(head, chain) {
            self.break_ring(1, &fault, kit.io);
            return Ok(Step::Broken);
        }
        let mut header = [0; HEADER_BYTES];
        chain.read_at(self.queue.memory(), 0, &mut header);
        let slot = &mut self.slots[usize::from(head)];
        *slot = Slot { popped_ns: now_ns, submitted_ns: now_ns, ..Slot::default() };
        let request = match parse(&header, chain.readable_bytes(), chain.writable_bytes(), limits) {
            Ok(request) => request,
            Err(fault) => {
                let Some(status) = fault.status() else {
                    self.break_ring(1, &fault, kit.io);
                    return Ok(Step::Broken);
                };
                slot.status = chain.last_writable_byte().unwrap_or_default();
                return Ok(self.refuse(head, &fault, status));
            }
        };
        slot.request = Some(request);
        slot.status = chain.last_writable_byte().unwrap_or_default();
        let changes = !matches!(request, Request::Read { .. } | Request::GetId);
        if changes && self.disk.poisoned().is_some() {
            return Ok(Step::Ended(Err(Failure::io(ErrorKind::Poisoned))));
        }
        match request {
            Request::Discard { ranges } | Request::WriteZeroes { ranges } => {
                // All of them before the first: a request is refused as a whole.
                for index in 0..ranges {
                    if let Err(fault) = read_range(&self.queue, chain, request, index, limits) {
                        let status = fault.status().unwrap_or(Status::IoError);
                        return Ok(self.refuse(head, &fault, status));
                    }
                }
            }
            Request::GetId => {
                let mut serial = [0; SERIAL_BYTES];
                let bytes = self.session.serial.as_bytes();
                serial[..bytes.len()].copy_from_slice(bytes);
                slot.chunk = (chain.writable_bytes() - STATUS_BYTES).min(SERIAL_BYTES as u64);
                chain.write_at(self.queue.memory(), 0, &serial[..slot.chunk as usize]);
                for part in chain.writable_range(0, slot.chunk) {
                    self.queue.log_written(part, 0, part.len());
                }
                return Ok(Step::Ended(Ok(())));
            }
            _ => {}
        }
        self.advance(head, kit, limits)
    }

    /// Goes on with a request that was begun: walks and checks its chain again.
    fn resume(&mut self, head: u16, kit: &mut Kit<'_>, limits: &DiskLimits) -> Result<Step, Full> {
        if let Err(fault) = self.queue.walk(head, kit.chain) {
            self.break_ring(1, &fault, kit.io);
            return Ok(Step::Broken);
        }
        if self.is_unchanged(head, kit.chain) {
            self.advance(head, kit, limits)
        } else {
            Ok(self.refuse(head, &CHANGED, Status::IoError))
        }
    }

    /// Whether a chain that was walked again still has the shape of its request.
    fn is_unchanged(&self, head: u16, chain: &Chain) -> bool {
        let header = HEADER_BYTES as u64;
        match self.slots[usize::from(head)].request {
            Some(Request::Read { bytes, .. }) => chain.writable_bytes() == bytes + STATUS_BYTES,
            Some(Request::Write { bytes, .. }) => chain.readable_bytes() == header + bytes,
            Some(Request::Discard { ranges } | Request::WriteZeroes { ranges }) => {
                chain.readable_bytes() == header + u64::from(ranges) * RANGE_BYTES as u64
            }
            _ => true,
        }
    }

    /// Starts the next operation of a request whose chain is in `kit`.
    #[inline]
    fn advance(&mut self, head: u16, kit: &mut Kit<'_>, limits: &DiskLimits) -> Result<Step, Full> {
        let slot = &mut self.slots[usize::from(head)];
        slot.submitted_ns = kit.io.now_ns();
        let file = match self.target {
            Target::File(file) => file,
            Target::Pool { volume, .. } => return self.advance_in_pool(head, volume, kit, limits),
            Target::Nothing => return Ok(Step::Ended(Ok(()))),
        };
        let token = self.token | u64::from(head);
        match slot.request {
            Some(Request::Read { bytes, .. } | Request::Write { bytes, .. }) if slot.done == bytes => {
                Ok(Step::Ended(Ok(())))
            }
            Some(Request::Read { offset, bytes } | Request::Write { offset, bytes }) => {
                let (alignment, at) = (self.disk.alignment(), offset + slot.done);
                let rest = Rest { file, alignment, at, bytes: bytes - slot.done };
                self.transfer(head, rest, Stage::Transfer, kit)
            }
            Some(Request::Flush) => {
                kit.io.fsync(file, true, token)?;
                slot.stage = Stage::Sync;
                Ok(Step::Started)
            }
            Some(request @ (Request::Discard { ranges } | Request::WriteZeroes { ranges })) => {
                self.next_range(head, file, kit, limits, request, ranges)
            }
            Some(Request::GetId) | None => Ok(Step::Ended(Ok(()))),
        }
    }

    /// Starts what is left of a read or write.
    #[inline]
    fn transfer(&mut self, head: u16, rest: Rest, stage: Stage, kit: &mut Kit<'_>) -> Result<Step, Full> {
        let Rest { file, alignment, at, bytes: left } = rest;
        let (io, chain) = (&mut *kit.io, &mut *kit.chain);
        let (token, write_through) = (self.token | u64::from(head), self.writes_through());
        let slot = &mut self.slots[usize::from(head)];
        let write = matches!(slot.request, Some(Request::Write { .. }));
        let (segments, skip) = match write {
            true => (chain.readable(), HEADER_BYTES as u64 + slot.done),
            false => (chain.writable(), slot.done),
        };
        let parts = if write { chain.readable_range(skip, left) } else { chain.writable_range(skip, left) };
        let (buffers, chunk) = if is_aligned(self.queue.memory(), alignment, parts) {
            let len = left.min(TRANSFER_BYTES_MAX) as u32;
            (Buffers::Guest { memory: self.memory, segments, skip, len }, u64::from(len))
        } else {
            let mut buffer = io.buffer().ok_or(Full)?;
            let chunk = left.min(io.buffer_bytes() as u64) as usize;
            if write {
                chain.read_at(self.queue.memory(), skip, &mut io.bytes_mut(&mut buffer)[..chunk]);
            }
            self.metrics.bounce_copies.add(1);
            (Buffers::Pool(buffer, 0..chunk), chunk as u64)
        };
        match write {
            false => io.read(file, at, buffers, token)?,
            true if write_through => io.write_durable(file, at, buffers, token)?,
            true => io.write(file, at, buffers, token)?,
        }
        slot.chunk = chunk;
        slot.stage = stage;
        Ok(Step::Started)
    }

    /// An operation of request `head` ended with `result`.
    #[inline]
    pub(crate) fn completed(&mut self, head: u16, result: i32, kit: &mut Kit<'_>) {
        if let Stage::Hit(hit) = self.slots[usize::from(head)].stage {
            self.hit_ended(head, hit, result, kit);
        }
        if self.broken {
            self.open -= 1;
            return;
        }
        let slot = &mut self.slots[usize::from(head)];
        let ended = match slot.stage {
            _ if slot.tampered => Some(Err(Failure { kind: ErrorKind::Guest, status: Status::IoError })),
            Stage::Transfer => self.transferred(head, result, kit),
            Stage::Sync => match self.synced(head, result) {
                Some(ended) => Some(ended),
                None => return,
            },
            Stage::Note(kind) => Some(Err(Failure::io(kind))),
            Stage::Range(method) => self.ranged(head, method, result),
            Stage::Between if slot.missed => None,
            Stage::New | Stage::Between | Stage::Hit(_) => {
                unreachable!("completion of a request with nothing in flight")
            }
        };
        if self.broken {
            return;
        }
        let ended = match ended {
            Some(ended) => ended,
            None => match self.resume(head, kit, &self.disk.limits()) {
                Ok(Step::Started) => return,
                Ok(Step::Ended(ended)) => ended,
                Ok(Step::Broken) => return,
                Err(Full) => {
                    self.waiting.push_back(head);
                    return;
                }
            },
        };
        let slot = &self.slots[usize::from(head)];
        self.metrics.queue_time.record_ns(slot.submitted_ns - slot.popped_ns);
        self.metrics.device_time.record_ns(kit.io.now_ns().saturating_sub(slot.submitted_ns));
        self.answer(head, ended);
    }

    /// A transfer ended; `None` when there is more to do.
    #[inline]
    fn transferred(&mut self, head: u16, result: i32, kit: &mut Kit<'_>) -> Option<Result<(), Failure>> {
        let (io, chain) = (&mut *kit.io, &mut *kit.chain);
        let slot = &mut self.slots[usize::from(head)];
        let (Some(Request::Read { bytes, .. }) | Some(Request::Write { bytes, .. })) = slot.request else {
            unreachable!("a transfer belongs to a read or write")
        };
        let write = matches!(slot.request, Some(Request::Write { .. }));
        let bounced = io.take_buffer();
        let moved = match result {
            ..0 if is_transient(-result) => 0,
            ..0 => {
                bounced.into_iter().for_each(|buffer| io.release(buffer));
                return Some(Err(self.host_failed(if write { "write to" } else { "read from" }, -result)));
            }
            // The end of the file inside the volume: it was cut short by somebody else.
            0 => {
                bounced.into_iter().for_each(|buffer| io.release(buffer));
                return Some(Err(self.host_failed("reach the end of", libc::EIO)));
            }
            moved => u64::from(moved.unsigned_abs()),
        };
        // What goes on begins at a block again.
        let moved = if moved == slot.chunk {
            moved
        } else {
            self.metrics.short_transfers.add(1);
            let (_, align) = self.disk.alignment();
            moved - (slot.done + moved) % u64::from(align)
        };
        let at = slot.done;
        slot.done += moved;
        let (done, logs) = (slot.done, self.queue.logs_writes());
        if let Some(buffer) = bounced {
            if !write {
                match self.queue.walk(head, chain) {
                    Ok(()) => {
                        _ = chain.write_at(self.queue.memory(), at, &io.bytes(&buffer)[..moved as usize])
                    }
                    Err(fault) => self.break_ring(1, &fault, io),
                }
            }
            io.release(buffer);
        }
        if logs && !write && !self.broken && done == bytes && self.queue.walk(head, chain).is_ok() {
            for part in chain.writable_range(0, bytes) {
                self.queue.log_written(part, 0, part.len());
            }
        }
        let sync = write && matches!(self.target, Target::Pool { .. }) && self.writes_through();
        (done == bytes && !sync).then_some(Ok(()))
    }

    /// Whether a change is answered only once it is durable.
    #[inline]
    fn writes_through(&self) -> bool {
        self.session.write_through.load(Relaxed)
    }

    /// A flush ended. One that failed may have lost writes that were answered: nothing is written any more. `None`: the
    /// first such answer waits until a restart would know of it, too.
    fn synced(&mut self, head: u16, result: i32) -> Option<Result<(), Failure>> {
        if result >= 0 {
            return Some(Ok(()));
        }
        let error = std::io::Error::from_raw_os_error(-result);
        let kind = ErrorKind::of_errno(-result);
        let first = self.disk.poison(format!("a flush failed: {error}"));
        self.session.poisoned.set(1);
        if !first {
            return Some(Err(Failure::io(kind)));
        }
        tracing::error!(volume = self.session.volume, %error, "a flush failed; nothing is written any more");
        self.slots[usize::from(head)].stage = Stage::Note(kind);
        let (disk, token) = (self.disk.clone(), self.token | u64::from(head));
        self.helper.send(Job::NotePoison { disk, token });
        None
    }

    fn host_failed(&self, attempt: &str, errno: i32) -> Failure {
        let error = std::io::Error::from_raw_os_error(errno);
        let key = format!("{}/{attempt}/{errno}", self.session.volume);
        if let Some(suppressed) = self.session.limited.pass(&key) {
            let volume = &self.session.volume;
            tracing::error!(volume, attempt, %error, suppressed, "the host failed; the guest gets an I/O error");
        }
        Failure::io(ErrorKind::of_errno(errno))
    }

    /// The guest asked for something wrong, which is answered with an error.
    #[cold]
    fn refuse(&self, head: u16, fault: &dyn std::fmt::Display, status: Status) -> Step {
        if let Some(suppressed) = self.session.limited.pass(&format!("{}/request", self.session.volume)) {
            let volume = &self.session.volume;
            tracing::warn!(volume, queue = self.index, head, %fault, suppressed, "refused a request of the guest");
        }
        Step::Ended(Err(Failure { kind: ErrorKind::Guest, status }))
    }

    /// The ring is broken: nothing is taken from it any more. `lost` is 1 when a request that was begun showed it.
    #[cold]
    fn break_ring(&mut self, lost: u32, fault: &dyn std::fmt::Display, io: &mut Io) {
        self.metrics.ring_faults.add(1);
        if self.queue.lost() {
            self.session.frontend.close("guest memory was taken away");
        }
        if let Some(suppressed) = self.session.limited.pass(&format!("{}/ring", self.session.volume)) {
            let volume = &self.session.volume;
            tracing::warn!(volume, queue = self.index, %fault, suppressed, "the guest broke its ring; the queue stops");
        }
        if let Some(err) = &self.err {
            io.signal(err.as_fd());
        }
        self.broken = true;
        // This request, and those that wait, are never answered; what is in flight in the kernel still ends.
        self.open -= lost + self.waiting.len() as u32;
        self.waiting.clear();
    }

    /// Answers a request: status byte, used element.
    #[inline]
    fn answer(&mut self, head: u16, result: Result<(), Failure>) {
        let Slot { status, request, chunk, .. } = self.slots[usize::from(head)];
        self.slots[usize::from(head)].stage = Stage::New;
        let (code, moved) = match (result, request) {
            (Ok(()), Some(Request::Read { bytes, .. } | Request::Write { bytes, .. })) => (Status::Ok, bytes),
            (Ok(()), _) => (Status::Ok, 0),
            (Err(failure), _) => {
                self.metrics.failed(failure.kind);
                (failure.status, 0)
            }
        };
        let written = match request {
            Some(Request::Read { .. }) => moved + STATUS_BYTES,
            Some(Request::GetId) => chunk + STATUS_BYTES,
            _ => STATUS_BYTES,
        };
        self.queue.memory().write(status, 0, &[code as u8]);
        self.queue.log_written(status, 0, 1);
        self.queue.push_used(head, written as u32);
        self.metrics.answered(request.as_ref().map_or(Op::Other, Op::from), moved);
        self.open -= 1;
        self.unpublished = true;
    }

    #[inline]
    fn publish(&mut self, io: &mut Io) {
        self.unpublished = false;
        if self.queue.publish() {
            self.signal(io);
        }
    }

    fn signal(&mut self, io: &mut Io) {
        if let Some(call) = &self.call {
            io.signal(call.as_fd());
            self.metrics.interrupts.add(1);
        }
    }
}

/// Marks the token of a queue's kick among those of its requests.
pub(crate) const KICK: u64 = 1 << 16;

/// The host asks for another try.
fn is_transient(errno: i32) -> bool {
    matches!(errno, libc::EAGAIN | libc::EINTR)
}

/// Whether direct I/O, which needs this alignment of memory and of offsets, can use the guest's buffers as they are.
#[inline]
pub(crate) fn is_aligned(memory: &GuestMemory, alignment: (u32, u32), parts: Parts<'_>) -> bool {
    let (memory_align, offset_align) = alignment;
    if (memory_align, offset_align) == (1, 1) {
        return true;
    }
    let mut count = 0;
    for part in parts {
        let address = memory.host_ptr(part).addr();
        if address & (memory_align as usize - 1) != 0 || part.len() & (offset_align - 1) != 0 {
            return false;
        }
        count += 1;
    }
    count <= IOVECS_MAX
}
