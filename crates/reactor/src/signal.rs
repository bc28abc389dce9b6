//! Signals to eventfds that belong to somebody else as much as to us.
//!
//! A signal is a write(2), which is the cheapest there is. But it sleeps when the counter is full and O_NONBLOCK is not
//! set, and whoever shares the eventfd may fill the one and clear the other at any time. So a guard looks after all workers
//! now and then: an eventfd that is full and has kept a worker for a whole interval is emptied, which wakes the worker.
//! From then on it is signalled in a way that never sleeps and costs three times as much: by the kernel, when an
//! asynchronous operation that completes at once does so (IOCB_FLAG_RESFD of io_submit(2)).

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Once, PoisonError, Weak};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// How often the guard looks: twice in the same write, and it does something about it.
const GUARD_INTERVAL: Duration = Duration::from_millis(100);

/// No signal is being written.
const NONE: u64 = u64::MAX;

/// What the guard sees of a worker.
struct Watched {
    /// Number of the signal being written (lower half), and its descriptor.
    writing: AtomicU64,
    /// The guard has emptied the eventfd that the worker was writing to.
    rescued: AtomicBool,
}

/// Signals eventfds for one worker.
pub(crate) struct Signals {
    watched: Arc<Watched>,
    count: u32,
    /// Descriptors on which a write was stuck. By number: a descriptor that gets the same one later is signalled the dear
    /// way as well, which does no harm.
    suspects: Vec<RawFd>,
    safe: Option<SafeSignals>,
}

impl Signals {
    pub(crate) fn new() -> Signals {
        let watched = Arc::new(Watched { writing: AtomicU64::new(NONE), rescued: AtomicBool::new(false) });
        guard(&watched);
        Signals { watched, count: 0, suspects: Vec::new(), safe: None }
    }

    /// Signals an eventfd. What goes wrong is its receiver's own doing.
    #[inline]
    pub(crate) fn signal(&mut self, fd: BorrowedFd<'_>) {
        let raw = fd.as_raw_fd();
        if !self.suspects.is_empty() && self.suspects.contains(&raw) {
            return self.signal_safely(fd);
        }
        self.count = self.count.wrapping_add(1);
        self.watched.writing.store(u64::from(raw as u32) << 32 | u64::from(self.count), Relaxed);
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes that live across the call.
        unsafe { libc::write(raw, one.as_ptr().cast(), one.len()) };
        self.watched.writing.store(NONE, Relaxed);
        if self.watched.rescued.load(Relaxed) {
            self.suspect(raw);
        }
    }

    #[cold]
    fn suspect(&mut self, fd: RawFd) {
        self.watched.rescued.store(false, Relaxed);
        self.suspects.push(fd);
        tracing::warn!("the frontend filled the eventfd {fd} on which it wants to be called");
    }

    #[cold]
    fn signal_safely(&mut self, fd: BorrowedFd<'_>) {
        if self.safe.is_none() {
            self.safe = SafeSignals::new().ok();
        }
        if let Some(safe) = &mut self.safe {
            safe.signal(fd);
        }
    }
}

/// Looks after a worker until it is gone.
fn guard(worker: &Arc<Watched>) {
    static WORKERS: Mutex<Vec<Weak<Watched>>> = Mutex::new(Vec::new());
    static START: Once = Once::new();
    let workers = || WORKERS.lock().unwrap_or_else(PoisonError::into_inner);
    workers().push(Arc::downgrade(worker));
    START.call_once(|| {
        let look = move || {
            let mut before: Vec<u64> = Vec::new();
            loop {
                std::thread::sleep(GUARD_INTERVAL);
                let mut workers = workers();
                workers.retain(|worker| worker.strong_count() > 0);
                let alive: Vec<_> = workers.iter().filter_map(Weak::upgrade).collect();
                drop(workers);
                for worker in &alive {
                    let writing = worker.writing.load(Relaxed);
                    // Numbers of different workers may meet by chance: that costs a look, no more.
                    if writing != NONE && before.contains(&writing) {
                        rescue(worker, writing);
                    }
                }
                before = alive.iter().map(|worker| worker.writing.load(Relaxed)).collect();
            }
        };
        if let Err(error) = std::thread::Builder::new().name("signal-guard".to_string()).spawn(look) {
            tracing::error!(%error, "no guard for signals: a frontend can stop a worker by filling its eventfd");
        }
    });
}

/// Wakes a worker out of a write to an eventfd that is full.
fn rescue(worker: &Watched, writing: u64) {
    // SAFETY: duplicates a descriptor by number; at worst there is none, or another one (see below).
    let copy = unsafe { libc::fcntl((writing >> 32) as RawFd, libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 {
        return;
    }
    // SAFETY: a new descriptor that nobody else knows.
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    // Still in the same write, so it was in it when its descriptor was duplicated.
    if worker.writing.load(Relaxed) != writing {
        return;
    }
    let mut look = [PollFd::new(std::os::fd::AsFd::as_fd(&copy), PollFlags::POLLOUT)];
    let _ = poll(&mut look, PollTimeout::ZERO);
    // A worker that just gets no processor is left alone: its eventfd is not full.
    if look[0].revents().is_none_or(|events| events.contains(PollFlags::POLLOUT)) {
        return;
    }
    worker.rescued.store(true, Relaxed);
    let mut count = [0u8; 8];
    let part = libc::iovec { iov_base: count.as_mut_ptr().cast(), iov_len: count.len() };
    // SAFETY: one iovec of eight bytes that live across the call, which does not wait (RWF_NOWAIT).
    unsafe { libc::preadv2(copy.as_raw_fd(), &raw const part, 1, -1, libc::RWF_NOWAIT) };
}

/// Operations of one context: those that completed and whose completions were not taken yet.
const OPERATIONS: u32 = 256;
/// After so many their completions are taken, all at once.
const REAP_AFTER: u32 = 128;

/// include/uapi/linux/aio_abi.h
const IOCB_CMD_POLL: u16 = 5;
/// include/uapi/linux/aio_abi.h
const IOCB_FLAG_RESFD: u32 = 1;

/// `struct io_event` of include/uapi/linux/aio_abi.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

/// Signals eventfds without ever waiting.
struct SafeSignals {
    /// `aio_context_t`
    context: libc::c_ulong,
    /// Always readable: polling it completes at once.
    ready: EventFd,
    unreaped: u32,
    events: Box<[Event]>,
}

impl SafeSignals {
    fn new() -> io::Result<SafeSignals> {
        let ready = EventFd::from_value_and_flags(1, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one number to `context`, which is zero before, as it demands.
        if unsafe { libc::syscall(libc::SYS_io_setup, OPERATIONS, &raw mut context) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let events = vec![Event::default(); OPERATIONS as usize].into();
        Ok(SafeSignals { context, ready, unreaped: 0, events })
    }

    /// A full counter stays full; what is no eventfd is refused.
    fn signal(&mut self, fd: BorrowedFd<'_>) {
        if self.unreaped >= REAP_AFTER {
            self.reap();
        }
        // SAFETY: all zeroes is a valid iocb.
        let mut request: libc::iocb = unsafe { std::mem::zeroed() };
        request.aio_lio_opcode = IOCB_CMD_POLL;
        request.aio_fildes = self.ready.as_raw_fd() as u32;
        request.aio_buf = libc::POLLIN as u64;
        request.aio_flags = IOCB_FLAG_RESFD;
        request.aio_resfd = fd.as_raw_fd() as u32;
        let mut list = [&raw mut request];
        // SAFETY: one request, which the kernel copies before it returns; a poll points to no memory.
        let submitted = unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, list.as_mut_ptr()) };
        self.unreaped += u32::from(submitted == 1);
    }

    fn reap(&mut self) {
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let (events, count) = (self.events.as_mut_ptr(), self.events.len());
        // SAFETY: room for `count` events; the kernel writes that many at most and does not wait for any.
        unsafe { libc::syscall(libc::SYS_io_getevents, self.context, 0, count, events, &raw const none) };
        self.unreaped = 0;
    }
}

impl Drop for SafeSignals {
    fn drop(&mut self) {
        // SAFETY: made by `new` and destroyed once; nothing is in flight.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_full_eventfd_in_blocking_mode_keeps_a_worker_for_a_moment_only_and_once() {
        let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
        let fd = eventfd.as_fd().try_clone_to_owned().unwrap();
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let mut signals = Signals::new();
            for _ in 0..3 {
                let suspects = signals.suspects.len();
                eventfd.write(u64::MAX - 1).unwrap();
                (0..5).for_each(|_| signals.signal(fd.as_fd()));
                let count = eventfd.read().unwrap();
                let _ = sender.send((suspects, signals.suspects.len(), count));
            }
        });
        let limit = Duration::from_secs(30);
        let next = || receiver.recv_timeout(limit).expect("a signal waits for nobody");
        assert_eq!(next(), (0, 1, 5), "emptied by the guard, then signalled");
        assert_eq!(next(), (1, 1, u64::MAX), "full, and nobody waits");
        assert_eq!(next(), (1, 1, u64::MAX));
    }

    #[test]
    fn an_eventfd_that_is_not_full_is_left_alone() {
        let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
        let worker = Watched { writing: AtomicU64::new(NONE), rescued: AtomicBool::new(false) };
        let writing = u64::from(eventfd.as_raw_fd() as u32) << 32 | 7;
        worker.writing.store(writing, Relaxed);
        eventfd.write(3).unwrap();
        rescue(&worker, writing);
        assert!(!worker.rescued.load(Relaxed));
        assert_eq!(eventfd.read().unwrap(), 3);
        // Another write by now.
        eventfd.write(u64::MAX - 1).unwrap();
        rescue(&worker, writing + 1);
        assert!(!worker.rescued.load(Relaxed));
        rescue(&worker, writing);
        assert!(worker.rescued.load(Relaxed));
    }

    #[test]
    fn safe_signals_without_end_are_all_counted() {
        let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
        let mut signals = SafeSignals::new().unwrap();
        let count = 10 * u64::from(OPERATIONS);
        (0..count).for_each(|_| signals.signal(eventfd.as_fd()));
        assert_eq!(eventfd.read().unwrap(), count);
        let (_reader, writer) = std::io::pipe().unwrap();
        signals.signal(writer.as_fd());
    }
}
