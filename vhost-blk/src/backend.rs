//! The device behind one vhost-user connection: hands queues to workers and waits for their word.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use reactor::WorkerHandle;
use telemetry::{Gauge, RateLimited};
use vhost_session::{Backend, BackendError, FrontendHandle, QueueStart};
use virtq::Queue;

use crate::config_space::{F_CONFIG_WCE, F_FLUSH, WRITEBACK_OFFSET};
use crate::queue::Start;
use crate::volume::Shared;
use crate::worker::Command;

/// Largest ring that frontends may make.
pub const QUEUE_SIZE_MAX: u16 = 1024;

/// What the queues of one frontend share.
pub struct SessionState {
    /// Name of the volume, for messages.
    pub volume: String,
    /// What GET_ID answers, at most 20 bytes.
    pub serial: String,
    /// Whether a write is answered only once it is durable.
    pub write_through: AtomicBool,
    /// To close the connection.
    pub frontend: FrontendHandle,
    /// 1 once nothing may be written any more.
    pub poisoned: Gauge,
    /// Brake for messages that the guest can cause.
    pub limited: Arc<RateLimited>,
}

/// The disk as one frontend sees it.
pub struct BlkBackend {
    volume: Arc<Shared>,
    session: Option<Arc<SessionState>>,
    /// By queue: where it runs.
    running: Vec<Option<(WorkerHandle<Command>, usize)>>,
    features: u64,
    writeback: bool,
}

impl BlkBackend {
    /// A disk for one more frontend.
    pub fn new(volume: Arc<Shared>) -> BlkBackend {
        let running = (0..volume.queues).map(|_| None).collect();
        BlkBackend { volume, session: None, running, features: 0, writeback: true }
    }

    /// Without FLUSH the driver can't ask for durability; with CONFIG_WCE it may have asked for it once and for all.
    fn set_cache_mode(&self) {
        let write_back =
            self.features & F_FLUSH != 0 && (self.features & F_CONFIG_WCE == 0 || self.writeback);
        if let Some(session) = &self.session {
            session.write_through.store(!write_back, Relaxed);
        }
    }
}

impl Backend for BlkBackend {
    fn features(&self) -> u64 {
        self.volume.disk.shape(self.volume.queues, self.writeback).features()
    }

    fn queue_count(&self) -> u16 {
        self.volume.queues
    }

    fn queue_size_max(&self) -> u16 {
        QUEUE_SIZE_MAX
    }

    fn read_config(&self, offset: u32, into: &mut [u8]) {
        let bytes = self.volume.disk.shape(self.volume.queues, self.writeback).bytes();
        if let Some(from) = bytes.get(offset as usize..) {
            let len = from.len().min(into.len());
            into[..len].copy_from_slice(&from[..len]);
        }
    }

    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), BackendError> {
        let [value @ (0 | 1)] = bytes else {
            let text =
                format!("{} bytes at offset {offset} of the config space cannot be written", bytes.len());
            return Err(BackendError::new(text));
        };
        if offset as usize != WRITEBACK_OFFSET {
            return Err(BackendError::new(format!("offset {offset} of the config space is read-only")));
        }
        self.writeback = *value == 1;
        self.set_cache_mode();
        // With write-through every completed write is durable, so those before have to become so.
        let made_durable = match (self.volume.disk.file_handle(), self.volume.disk.seat()) {
            _ if self.writeback => Ok(()),
            (Some(file), _) => file.sync_data().map_err(|error| error.to_string()),
            (_, Some(seat)) => seat.pool.flush(seat.volume).map_err(|error| error.to_string()),
            (None, None) => Ok(()),
        };
        made_durable
            .map_err(|error| BackendError::new(format!("cannot make earlier writes durable: {error}")))
    }

    fn negotiated(&mut self, features: u64) -> Result<(), BackendError> {
        self.features = features;
        self.set_cache_mode();
        Ok(())
    }

    fn start_queue(&mut self, start: QueueStart) -> Result<(), BackendError> {
        let session =
            self.session.clone().ok_or_else(|| BackendError::new("the connection is not set up"))?;
        let worker = self.volume.worker(start.index);
        let index = start.index;
        let start = Box::new(Start {
            queue: start.queue,
            kick: start.kick,
            call: start.call,
            err: start.err,
            index,
            disk: self.volume.disk.clone(),
            session,
            metrics: self.volume.take_metrics(index),
        });
        let number = worker
            .call(|reply| Command::Start(start, reply))
            .map_err(|gone| BackendError::new(gone.to_string()))?
            .map_err(BackendError::new)?;
        self.running[usize::from(index)] = Some((worker, number));
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<Queue> {
        let (worker, number) = self.running.get_mut(usize::from(index))?.take()?;
        let stopped = worker.call(|reply| Command::Stop(number, reply)).ok()??;
        self.volume.return_metrics(index, stopped.metrics);
        Some(stopped.queue)
    }

    fn set_call(&mut self, index: u16, call: Option<OwnedFd>) {
        if let Some(Some((worker, number))) = self.running.get(usize::from(index)) {
            let number = *number;
            // A worker that is gone signals nobody.
            let _ = worker.call(|reply| Command::SetCall(number, call, reply));
        }
    }

    fn reset(&mut self) {
        self.features = 0;
        self.writeback = true;
        self.set_cache_mode();
    }

    fn connected(&mut self, frontend: FrontendHandle) {
        self.session = Some(Arc::new(SessionState {
            volume: self.volume.name.clone(),
            serial: self.volume.serial.clone(),
            write_through: AtomicBool::new(true),
            frontend,
            poisoned: self.volume.poisoned.clone(),
            limited: self.volume.limited.clone(),
        }));
    }

    fn disconnected(&mut self) {}
}
