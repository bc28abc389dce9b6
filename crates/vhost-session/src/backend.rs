//! What a device gives to a session, and what a session gives to a device.

use std::os::fd::OwnedFd;

use virtq::Queue;

use crate::control::FrontendHandle;

/// A ring that has everything it needs: addresses, size, kick, enablement, features and memory.
///
/// Its descriptors belong to the receiver; the session keeps duplicates for later restarts.
#[derive(Debug)]
pub struct QueueStart {
    /// Index of the ring within the device, below [`Backend::queue_count`].
    pub index: u16,
    /// The ring itself, ready to be popped from.
    pub queue: Queue,
    /// Eventfd that the driver writes to when it made buffers available.
    pub kick: OwnedFd,
    /// Eventfd to write to when buffers were used; `None` while the frontend polls.
    pub call: Option<OwnedFd>,
    /// Eventfd to write to when the ring turned out to be broken.
    pub err: Option<OwnedFd>,
    /// The feature bits that the driver accepted, without the two bits that belong to vhost-user itself
    /// (`LOG_ALL`, `PROTOCOL_FEATURES`).
    pub features: u64,
}

/// A device refused what a frontend asked of it. The text is shown in the log.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BackendError(
    /// What was asked, with its value, and why it can't be done.
    pub String,
);

impl BackendError {
    /// An error with the given text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// The factory of an endpoint has no backend for one more frontend (too many, device being removed).
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(
    /// Why the connection was turned away.
    pub String,
);

impl Refused {
    /// A refusal with the given text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// The device behind one connection.
///
/// One value per connection; every call comes from the connection's own sleeping thread, one at a time. A call that
/// concerns a worker returns when that worker has acknowledged it, because the frontend gets its answer right
/// afterwards and acts on it. A call must not close the endpoint it runs under: that would wait for itself.
pub trait Backend: Send + 'static {
    /// Feature bits of the device and its rings. The session adds `PROTOCOL_FEATURES` and `LOG_ALL`.
    fn features(&self) -> u64;

    /// Protocol features that only some devices have: MTU, RARP. Others are masked out.
    fn extra_protocol_features(&self) -> u64 {
        0
    }

    /// Number of rings: every index below it is valid.
    fn queue_count(&self) -> u16;

    /// What GET_QUEUE_NUM answers. Network frontends count queue *pairs* here, all others rings.
    fn queue_count_reported(&self) -> u16 {
        self.queue_count()
    }

    /// Largest ring size, in descriptors, that the device accepts.
    fn queue_size_max(&self) -> u16;

    /// Copies the configuration space from `offset` on into `into`. The session cleared `into` before: bytes beyond
    /// the end of the space are left alone.
    fn read_config(&self, offset: u32, into: &mut [u8]);

    /// The driver wrote `bytes` at `offset` of the configuration space.
    ///
    /// # Errors
    /// The field can't be written or the value is not allowed; nothing was changed.
    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), BackendError>;

    /// The driver accepted these features (a subset of [`Backend::features`]). Comes again when a guest restarts with
    /// other ones; no ring runs at that time.
    ///
    /// # Errors
    /// The combination makes no sense for the device.
    fn negotiated(&mut self, features: u64) -> Result<(), BackendError>;

    /// Takes over a ring. Its first act is [`Queue::resubmit`]: a killed predecessor may have left requests in flight.
    ///
    /// # Errors
    /// The device can't serve the ring; it was dropped.
    fn start_queue(&mut self, start: QueueStart) -> Result<(), BackendError>;

    /// Gives a ring back, drained: nothing in flight, everything published. `None` if it was not running.
    fn stop_queue(&mut self, index: u16) -> Option<Queue>;

    /// The running ring `index` shall signal another eventfd from now on (`None`: the frontend polls), and once right away:
    /// what was used before went to the old eventfd, or to none.
    fn set_call(&mut self, index: u16, call: Option<OwnedFd>);

    /// The driver reset the device. No ring runs.
    fn reset(&mut self);

    /// The frontend tells the MTU, in bytes, that the network of this port may use.
    fn set_mtu(&mut self, _mtu: u16) {}

    /// The guest has just migrated to this host: announce its address to the network.
    fn send_rarp(&mut self, _mac: [u8; 6]) {}

    /// First call of a connection. The handle may be kept by workers: they close a session whose ring broke or whose
    /// memory was lost.
    fn connected(&mut self, frontend: FrontendHandle);

    /// Last call of a connection; all rings were stopped before.
    fn disconnected(&mut self);
}
