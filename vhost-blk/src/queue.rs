//! One running virtqueue of a disk: from heads on the ring to operations of the host and back to the guest.
//!
//! A request is taken off the ring, walked, parsed, and becomes one operation; its [`Slot`], found by its head, remembers
//! what is left of it. Most are answered by their first completion. A transfer that the host cut short goes on where it
//! ended; what finds no room in the worker waits, in order, and nothing is popped before it. Continued requests walk their
//! chain again: the guest may have changed it meanwhile, so it is checked again, and only the guest is hurt.
//!
//! By stage: `begin` takes requests, `transfer`, `ranges` and `in_pool` carry them out, `answer` ends them.

mod answer;
mod begin;
mod in_pool;
mod ranges;
mod transfer;

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use reactor::{FileId, Io, MemoryId, Reply, WatchId};
use tiering::{Hit, VolumeId};
use virtq::{Chain, GuestSlice, Queue};

use crate::backend::SessionState;
use crate::disk::Disk;
use crate::helper::Helper;
use crate::metrics::{ErrorKind, QueueMetrics};
use crate::request::{Request, Status};
use crate::tier::Pool;
use crate::worker::QUEUE_SHIFT;
use ranges::Method;
pub(crate) use transfer::is_aligned;

/// Heads taken off a ring at once: enough to share the cost of publishing, few enough to be fair to other queues.
pub(crate) const POP_BATCH: usize = 64;

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

    /// Whether a change is answered only once it is durable.
    #[inline]
    fn writes_through(&self) -> bool {
        self.session.write_through.load(Relaxed)
    }
}

/// Marks the token of a queue's kick among those of its requests.
pub(crate) const KICK: u64 = 1 << 16;
