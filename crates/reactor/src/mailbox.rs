//! How other threads reach a worker.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// The worker ended; nobody will answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the worker thread has ended")]
pub struct Gone;

/// Where a worker sends the answer of a [`WorkerHandle::call`]. Dropping it unanswered makes the caller see [`Gone`].
#[derive(Debug)]
pub struct Reply<R>(mpsc::SyncSender<R>);

impl<R> Reply<R> {
    /// Answers the caller.
    pub fn send(self, answer: R) {
        // The caller may be gone; then nobody wants the answer.
        let _ = self.0.send(answer);
    }
}

pub(crate) struct Mailbox<C> {
    queue: Mutex<Option<VecDeque<C>>>,
    filled: AtomicBool,
    wake: EventFd,
}

impl<C> Mailbox<C> {
    pub(crate) fn new() -> io::Result<Mailbox<C>> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Mailbox { queue: Mutex::new(Some(VecDeque::new())), filled: AtomicBool::new(false), wake })
    }

    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Everything sent so far, in order. One relaxed load when there is nothing.
    pub(crate) fn take(&self) -> VecDeque<C> {
        if !self.filled.load(Ordering::Relaxed) {
            return VecDeque::new();
        }
        let mut queue = self.lock();
        self.filled.store(false, Ordering::Relaxed);
        queue.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Drops what is left (their callers see [`Gone`]) and refuses anything further.
    pub(crate) fn close(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<VecDeque<C>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reaches one worker from any thread. Cheap to clone. The worker does not end when its handles are dropped; send it a
/// command upon which it calls [`crate::Io::stop`].
pub struct WorkerHandle<C> {
    mailbox: Arc<Mailbox<C>>,
}

impl<C> Clone for WorkerHandle<C> {
    fn clone(&self) -> Self {
        WorkerHandle { mailbox: self.mailbox.clone() }
    }
}

impl<C> std::fmt::Debug for WorkerHandle<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WorkerHandle")
    }
}

impl<C: Send + 'static> WorkerHandle<C> {
    pub(crate) fn new(mailbox: Arc<Mailbox<C>>) -> WorkerHandle<C> {
        WorkerHandle { mailbox }
    }

    /// Gives the worker a command and wakes it. Commands are carried out in the order they were sent.
    pub fn send(&self, command: C) -> Result<(), Gone> {
        let mut queue = self.mailbox.lock();
        queue.as_mut().ok_or(Gone)?.push_back(command);
        self.mailbox.filled.store(true, Ordering::Relaxed);
        drop(queue);
        // Nonblocking: it can only fail when the counter is full, and then the worker is woken anyway.
        let _ = self.mailbox.wake.write(1);
        Ok(())
    }

    /// Gives the worker a command that carries a [`Reply`] and blocks until it is answered.
    pub fn call<R: Send + 'static>(&self, make: impl FnOnce(Reply<R>) -> C) -> Result<R, Gone> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.send(make(Reply(sender)))?;
        receiver.recv().map_err(|_| Gone)
    }
}
