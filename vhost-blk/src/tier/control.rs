//! How other threads reach a pool, and what they may know of it at any time.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, mpsc};

use reactor::{Gone, WorkerHandle};
use tiering::{Grown, Growth, RequestError, RequestKind, Store, VolumeError, VolumeId};

use super::device::OpenDevice;
use super::pool::{Grow, OwnTransfer, Pool};
use crate::worker::Command;

/// What is known of an open pool without asking its worker.
#[derive(Debug, Default)]
pub struct PoolStatus {
    read_only: OnceLock<String>,
    full: AtomicBool,
}

impl PoolStatus {
    /// Why nothing is written any more, if so.
    pub fn read_only(&self) -> Option<&str> {
        self.read_only.get().map(String::as_str)
    }

    /// Whether writes wait for space.
    pub fn full(&self) -> bool {
        self.full.load(Relaxed)
    }

    /// Takes over what the store says; tells the log what has changed.
    pub(crate) fn update(&self, store: &Store, pool: &str) {
        if let Some(why) = store.read_only()
            && !store.closed()
            && self.read_only.set(why.to_string()).is_ok()
        {
            tracing::error!(pool, why, "the pool is read-only from now on");
        }
        let full = store.waiting_for_space() > 0;
        if self.full.swap(full, Relaxed) != full {
            match full {
                true => tracing::error!(pool, "the pool is full: writes wait until there is space"),
                false => tracing::info!(pool, "the pool has space again"),
            }
        }
    }
}

/// Reaches one open pool from any thread.
#[derive(Clone, Debug)]
pub struct PoolHandle {
    worker: WorkerHandle<Command>,
    number: usize,
    block_bytes: u32,
    status: Arc<PoolStatus>,
}

impl PoolHandle {
    pub(crate) fn new(
        worker: WorkerHandle<Command>,
        number: usize,
        block_bytes: u32,
        status: Arc<PoolStatus>,
    ) -> PoolHandle {
        PoolHandle { worker, number, block_bytes, status }
    }

    /// The worker that runs the pool, and so the queues of its volumes.
    pub fn worker(&self) -> &WorkerHandle<Command> {
        &self.worker
    }

    /// The pool's number at its worker.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Smallest block that its volumes can have, bytes.
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// What is known without asking.
    pub fn status(&self) -> &Arc<PoolStatus> {
        &self.status
    }

    /// Does something on the pool's worker and waits for what comes of it.
    pub fn ask<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> R + Send + 'static,
    ) -> Result<R, Gone> {
        self.on_worker(move |pool| work(pool.store()))
    }

    pub(crate) fn on_worker<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Pool) -> R + Send + 'static,
    ) -> Result<R, Gone> {
        self.worker
            .call(|reply| Command::Pool(self.number, Box::new(move |pool: &mut Pool| reply.send(work(pool)))))
    }

    /// Changes something and waits until the change survives a crash.
    pub fn change<R: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Store) -> Result<R, VolumeError> + Send + 'static,
    ) -> Result<R, ChangeError> {
        let (sender, firm) = mpsc::sync_channel(1);
        let value = self.on_worker(move |pool| {
            let value = change(pool.store())?;
            // Who asked may be gone; then nobody wants the answer.
            pool.when_firm(Box::new(move |result| _ = sender.send(result)));
            Ok::<R, VolumeError>(value)
        })??;
        firm.recv().map_err(|_| Gone)??;
        Ok(value)
    }

    /// Makes a snapshot or clone and waits until it survives a crash.
    pub fn fork(&self, from: VolumeId, writable: bool) -> Result<VolumeId, ChangeError> {
        let (sender, made) = mpsc::sync_channel(1);
        let id = self.on_worker(move |pool| {
            let id = pool.store().fork_volume(from, writable)?;
            pool.when_forked(id, Box::new(move |result| _ = sender.send(result)));
            Ok::<_, VolumeError>(id)
        })??;
        made.recv().map_err(|_| Gone)??;
        Ok(id)
    }

    /// Makes the pool larger, with another device or without, and waits until it is. Errors are words for people.
    pub(crate) fn grow(&self, device: Option<OpenDevice>, growth: Growth) -> Result<Grown, String> {
        let (sender, grown) = mpsc::sync_channel(1);
        let then = Box::new(move |result| _ = sender.send(result));
        let grow = Box::new(Grow { device, growth, then });
        self.worker.send(Command::GrowPool(self.number, grow)).map_err(|gone| gone.to_string())?;
        grown.recv().map_err(|_| Gone.to_string())?
    }

    /// Starts a transfer of the daemon's own; the result comes by itself.
    pub(crate) fn transfer(&self, transfer: OwnTransfer) -> Result<(), Gone> {
        self.worker
            .send(Command::Pool(self.number, Box::new(move |pool: &mut Pool| pool.begin_own(transfer))))
    }

    /// Waits until everything that was answered before survives a power cut.
    pub fn flush(&self, volume: VolumeId) -> Result<(), TransferError> {
        let (sender, done) = mpsc::sync_channel(1);
        let then = Box::new(move |result| _ = sender.send(result));
        self.transfer(OwnTransfer { volume, kind: RequestKind::Flush, offset: 0, buffer: None, then })?;
        Ok(done.recv().map_err(|_| Gone)??)
    }

    /// Ends the pool's work: all of its state is on its devices afterwards, and they are free.
    pub fn close(&self) {
        // A worker that is gone has nothing to close.
        let _ = self
            .worker
            .call(|reply| Command::Pool(self.number, Box::new(move |pool: &mut Pool| pool.close(reply))));
    }
}

/// Why a transfer of the daemon's own failed.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The store refused or a device failed.
    #[error(transparent)]
    Failed(#[from] RequestError),
    /// The pool was closed meanwhile.
    #[error("the pool is no longer open")]
    Gone(#[from] Gone),
}

/// Why a pool could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The store refused.
    #[error(transparent)]
    Refused(#[from] VolumeError),
    /// The pool was closed meanwhile.
    #[error("the pool is no longer open")]
    Gone(#[from] Gone),
}
