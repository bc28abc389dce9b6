//! The worker thread and its loop.

use std::io;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use telemetry::{Counter, Registry};

use crate::cycles;
use crate::io::Io;
use crate::mailbox::{Mailbox, WorkerHandle};
use crate::ring::Completion;

/// How a worker is set up.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Name of the thread and of the worker in metrics; at most 15 bytes are shown by the host.
    pub name: String,
    /// The core it is pinned to; not pinned when `None`.
    pub core: Option<usize>,
    /// Submission queue entries: operations that one submit can carry.
    pub ring_entries: u32,
    /// Operations in flight at most, with watches and pending receives.
    pub operations_max: u32,
    /// Files and watches at most.
    pub files_max: u32,
    /// Buffers in the pool; each takes memory only once it was used.
    pub buffers: u32,
    /// Bytes of each buffer.
    pub buffer_bytes: usize,
    /// How long a worker without work looks again and again before it sleeps, in microseconds. 20 to 50 pays for itself
    /// as soon as requests come one by one; 0 sleeps at once.
    pub spin_us: u32,
    /// Pause between two looks at sources that were empty, in nanoseconds: looking more often slows the drivers that fill
    /// them.
    pub pace_ns: u32,
}

impl Default for WorkerConfig {
    fn default() -> WorkerConfig {
        WorkerConfig {
            name: "worker".to_string(),
            core: None,
            ring_entries: 256,
            operations_max: 4096,
            files_max: 1024,
            buffers: 64,
            buffer_bytes: 256 << 10,
            spin_us: 50,
            pace_ns: 300,
        }
    }
}

/// The program that one worker thread runs. Every method is called on that thread only and must not block.
pub trait Worker: Sized + 'static {
    /// What other threads ask of it.
    type Command: Send + 'static;

    /// Carries out one command.
    fn command(&mut self, io: &mut Io, command: Self::Command);

    /// The operation or watch with this token completed: bytes, poll events, or a negative errno.
    fn completion(&mut self, io: &mut Io, token: u64, result: i32);

    /// Works on all sources, each with a budget. True if there was anything to do.
    fn poll(&mut self, io: &mut Io) -> bool;

    /// Called before the worker sleeps: asks all sources for a kick. True if one of them has work already.
    fn arm(&mut self, io: &mut Io) -> bool;

    /// Called when the worker is awake again: kicks are no longer needed.
    fn disarm(&mut self, io: &mut Io);

    /// When [`Worker::tick`] is wanted next. Asked in every pass; must be cheap.
    fn deadline(&mut self, _now: Instant) -> Option<Instant> {
        None
    }

    /// The deadline is over.
    fn tick(&mut self, _io: &mut Io, _now: Instant) {}
}

/// Completions taken from the ring at once.
const COMPLETIONS_BATCH: usize = 64;

/// What the loop counts.
struct Counters {
    busy: Counter,
    passes: Counter,
    sleeps: Counter,
    full: Counter,
}

impl Counters {
    fn new(registry: &Registry, worker: &str) -> Counters {
        let labels = [("worker", worker)];
        Counters {
            busy: registry.seconds(
                "sluice_worker_busy_seconds_total",
                "Time spent in passes that found work.",
                &labels,
            ),
            passes: registry.counter(
                "sluice_worker_passes_total",
                "Passes of the loop that found work.",
                &labels,
            ),
            sleeps: registry.counter(
                "sluice_worker_sleeps_total",
                "Times the worker went to sleep.",
                &labels,
            ),
            full: registry.counter(
                "sluice_worker_ring_full_total",
                "Operations that had to wait for room.",
                &labels,
            ),
        }
    }
}

/// Starts a worker thread. `make` builds its program there. Returns when the program is built, or why it cannot be: the
/// core does not exist, io_uring is not allowed or too old. The join handle ends after [`Io::stop`].
pub fn spawn<W: Worker>(
    config: WorkerConfig,
    registry: &Registry,
    make: impl FnOnce(&mut Io) -> W + Send + 'static,
) -> io::Result<(WorkerHandle<W::Command>, JoinHandle<()>)> {
    let mailbox = Arc::new(Mailbox::new()?);
    let handle = WorkerHandle::new(mailbox.clone());
    let counters = Counters::new(registry, &config.name);
    let (ready, started) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name(config.name.clone()).spawn(move || {
        // The mailbox is closed however the thread ends, so that nobody waits for it in vain.
        let mailbox = CloseOnDrop(mailbox);
        match set_up(&config, &mailbox.0) {
            Ok(mut io) => {
                let worker = make(&mut io);
                let _ = ready.send(Ok(()));
                Loop { worker, io, mailbox: &mailbox.0, config: &config, counters }.run();
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        }
    })?;
    match started.recv() {
        Ok(Ok(())) => Ok((handle, thread)),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::other("the worker ended while it was being set up")),
    }
}

/// Token of the mailbox's own watch, which the worker never sees.
const MAILBOX_TOKEN: u64 = u64::MAX;

fn set_up<C>(config: &WorkerConfig, mailbox: &Mailbox<C>) -> io::Result<Io> {
    if let Some(core) = config.core {
        let mut cores = CpuSet::new();
        cores.set(core)?;
        sched_setaffinity(Pid::from_raw(0), &cores)?;
    }
    let mut io = Io::new(config)?;
    io.watch(mailbox.wake_fd(), MAILBOX_TOKEN)?;
    Ok(io)
}

struct CloseOnDrop<C>(Arc<Mailbox<C>>);

impl<C> Drop for CloseOnDrop<C> {
    fn drop(&mut self) {
        self.0.close();
    }
}

struct Loop<'a, W: Worker> {
    worker: W,
    io: Io,
    mailbox: &'a Mailbox<W::Command>,
    config: &'a WorkerConfig,
    counters: Counters,
}

impl<W: Worker> Loop<'_, W> {
    fn run(mut self) {
        let spin = Duration::from_micros(self.config.spin_us.into());
        let mut last_work = Instant::now();
        while !self.io.stopping {
            let start = Instant::now();
            self.io.now = start;
            let worked = self.pass();
            if worked {
                last_work = Instant::now();
                self.counters.busy.add((last_work - start).as_nanos() as u64);
                self.counters.passes.add(1);
            }
            if self.io.stopping {
                break;
            }
            // Operations on a kernel thread of this core make no progress while it spins.
            if self.io.kernel_thread_wanted() || (!worked && start - last_work >= spin) {
                if self.sleep() {
                    last_work = Instant::now();
                }
            } else if !worked {
                self.pause();
            }
        }
        self.wind_down();
    }

    /// One pass; ends with one submit. True if there was anything to do.
    fn pass(&mut self) -> bool {
        let mut worked = self.completions();
        for command in self.mailbox.take() {
            self.worker.command(&mut self.io, command);
            worked = true;
        }
        let now = self.io.now;
        if self.worker.deadline(now).is_some_and(|deadline| deadline <= now) {
            self.worker.tick(&mut self.io, now);
            worked = true;
        }
        worked |= self.worker.poll(&mut self.io);
        let full = self.io.full_count();
        self.counters.full.add(full - self.counters.full.get());
        // With operations on a kernel thread in flight the pass ends in a wait, which submits too.
        if !self.io.kernel_thread_wanted() {
            self.io.flush();
        }
        worked
    }

    fn completions(&mut self) -> bool {
        let mut batch = [Completion::default(); COMPLETIONS_BATCH];
        let mut worked = false;
        // What completes while these are worked on waits for the next pass, so that no source starves.
        let mut rounds = self.config.operations_max as usize / COMPLETIONS_BATCH + 1;
        loop {
            let count = self.io.completions(&mut batch);
            for completion in &batch[..count] {
                let Some(token) = self.io.finish(*completion) else { continue };
                if token != MAILBOX_TOKEN {
                    self.worker.completion(&mut self.io, token, completion.result);
                    self.io.reclaim();
                }
                worked = true;
            }
            rounds -= 1;
            if count < COMPLETIONS_BATCH || rounds == 0 {
                return worked;
            }
        }
    }

    /// Asks for kicks, looks once more, and sleeps if there is still nothing. True if it did sleep.
    fn sleep(&mut self) -> bool {
        let work = self.worker.arm(&mut self.io);
        let timeout =
            self.worker.deadline(self.io.now).map(|at| at.saturating_duration_since(Instant::now()));
        if work || timeout == Some(Duration::ZERO) {
            self.io.flush();
        } else {
            self.counters.sleeps.add(1);
            self.io.wait(timeout);
        }
        self.worker.disarm(&mut self.io);
        !work
    }

    fn pause(&self) {
        let start = cycles();
        // Two to four cycles a nanosecond: near enough for a pause.
        while cycles().wrapping_sub(start) < u64::from(self.config.pace_ns) * 3 {
            std::hint::spin_loop();
        }
    }

    /// Waits for everything that uses memory of ours, then lets it go.
    fn wind_down(mut self) {
        let mut cancelled = false;
        while self.io.wind_down(&mut cancelled) {
            self.io.wait(None);
            let mut batch = [Completion::default(); COMPLETIONS_BATCH];
            let count = self.io.completions(&mut batch);
            for completion in &batch[..count] {
                let token = self.io.finish(*completion).filter(|&token| token != MAILBOX_TOKEN && !cancelled);
                if let Some(token) = token {
                    self.worker.completion(&mut self.io, token, completion.result);
                }
                self.io.reclaim();
            }
        }
    }
}
