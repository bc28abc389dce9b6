//! One frontend of a vhost-user port: gives its rings to the workers.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vhost_session::{Backend, BackendError, FrontendHandle, QueueStart};
use virtq::Queue;

use crate::data_path::DataPath;
use crate::model::PortNo;
use crate::port::device::{Device, DriverFeatures, QUEUE_SIZE_MAX, QueueRole};
use crate::worker::{NewQueue, QueueName};

/// `VHOST_USER_PROTOCOL_F_RARP`
const PROTOCOL_RARP: u64 = 1 << 2;
/// `VHOST_USER_PROTOCOL_F_NET_MTU`
const PROTOCOL_MTU: u64 = 1 << 4;

/// Hears whether a guest is attached to a port. Called with the session's thread waiting.
pub trait LinkObserver: Send + Sync + 'static {
    /// The first receive ring of the port started, or the last one stopped.
    fn link_changed(&self, port: PortNo, up: bool);
}

/// What the frontends of one port share.
pub struct NetPort {
    number: PortNo,
    device: Arc<Device>,
    data_path: Arc<DataPath>,
    observer: Arc<dyn LinkObserver>,
    /// Receive rings that run, of all frontends. Held while the observer is told, so that it hears in order.
    receivers: Mutex<usize>,
    sessions: AtomicU64,
}

impl NetPort {
    /// A port that the data path knows already.
    pub fn new(
        number: PortNo,
        device: Device,
        data_path: Arc<DataPath>,
        observer: Arc<dyn LinkObserver>,
    ) -> Arc<NetPort> {
        Arc::new(NetPort {
            number,
            device: Arc::new(device),
            data_path,
            observer,
            receivers: Mutex::new(0),
            sessions: AtomicU64::new(0),
        })
    }

    /// A backend for one more frontend.
    pub fn backend(self: &Arc<NetPort>) -> NetBackend {
        NetBackend {
            session: self.sessions.fetch_add(1, Ordering::Relaxed),
            port: self.clone(),
            features: 0,
            driver: DriverFeatures::new(0),
            active_pairs: Arc::new(AtomicU16::new(u16::MAX)),
            frontend: None,
            running: vec![None; self.device.queue_count().into()],
        }
    }

    fn receiver(&self, started: bool) {
        let mut receivers = self.receivers.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *receivers;
        *receivers = if started { before + 1 } else { before.saturating_sub(1) };
        if (before == 0) != (*receivers == 0) {
            self.observer.link_changed(self.number, started);
        }
    }
}

/// The device as one frontend sees it.
pub struct NetBackend {
    port: Arc<NetPort>,
    session: u64,
    features: u64,
    driver: DriverFeatures,
    active_pairs: Arc<AtomicU16>,
    frontend: Option<FrontendHandle>,
    /// By ring: what it is, and which worker has it.
    running: Vec<Option<(QueueRole, usize)>>,
}

impl NetBackend {
    fn name(&self, index: u16) -> QueueName {
        QueueName { port: self.port.number, session: self.session, index }
    }
}

impl Backend for NetBackend {
    fn features(&self) -> u64 {
        self.port.device.features()
    }

    fn extra_protocol_features(&self) -> u64 {
        PROTOCOL_RARP | PROTOCOL_MTU
    }

    fn queue_count(&self) -> u16 {
        self.port.device.queue_count()
    }

    fn queue_count_reported(&self) -> u16 {
        self.port.device.queue_pairs()
    }

    fn queue_size_max(&self) -> u16 {
        QUEUE_SIZE_MAX
    }

    fn read_config(&self, offset: u32, into: &mut [u8]) {
        self.port.device.read_config(offset, into);
    }

    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), BackendError> {
        // Legacy drivers set the address this way; the switch learns addresses from frames.
        if (offset as usize).saturating_add(bytes.len()) <= 6 {
            return Ok(());
        }
        let text = format!("{} bytes at offset {offset} of the config space cannot be written", bytes.len());
        Err(BackendError::new(text))
    }

    fn negotiated(&mut self, features: u64) -> Result<(), BackendError> {
        self.features = features;
        self.driver = DriverFeatures::new(features);
        // A driver with a control queue begins with one pair and asks for more.
        let by_command = self.driver.multi_queue && self.driver.control_queue;
        self.active_pairs = Arc::new(AtomicU16::new(if by_command { 1 } else { u16::MAX }));
        Ok(())
    }

    fn start_queue(&mut self, start: QueueStart) -> Result<(), BackendError> {
        let index = start.index;
        let Some(role) = self.port.device.role(index, &self.driver) else {
            return Err(BackendError::new(format!("ring {index} has no purpose with these features")));
        };
        let pair = match role {
            QueueRole::Receive(pair) | QueueRole::Transmit(pair) => pair,
            QueueRole::Control => 0,
        };
        let queue = NewQueue {
            name: self.name(index),
            role,
            queue: start.queue,
            kick: start.kick,
            call: start.call,
            err: start.err,
            driver: self.driver,
            frontend: self.frontend.clone(),
            device: self.port.device.clone(),
            active_pairs: self.active_pairs.clone(),
        };
        let worker = self
            .port
            .data_path
            .start_queue(pair.into(), queue)
            .map_err(|error| BackendError::new(format!("ring {index} cannot be started: {error}")))?;
        self.running[usize::from(index)] = Some((role, worker));
        if matches!(role, QueueRole::Receive(_)) {
            self.port.receiver(true);
        }
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<Queue> {
        let (role, worker) = self.running.get_mut(usize::from(index))?.take()?;
        let queue = self.port.data_path.stop_queue(worker, self.name(index));
        if matches!(role, QueueRole::Receive(_)) {
            self.port.receiver(false);
        }
        queue
    }

    fn set_call(&mut self, index: u16, call: Option<OwnedFd>) {
        if let Some(Some((_, worker))) = self.running.get(usize::from(index)) {
            self.port.data_path.set_call(*worker, self.name(index), call);
        }
    }

    fn reset(&mut self) {
        self.features = 0;
        self.driver = DriverFeatures::new(0);
    }

    fn set_mtu(&mut self, mtu: u16) {
        self.port.device.set_frontend_mtu(mtu);
    }

    fn send_rarp(&mut self, mac: [u8; 6]) {
        self.port.data_path.announce(self.port.number, mac);
    }

    fn connected(&mut self, frontend: FrontendHandle) {
        self.frontend = Some(frontend);
    }

    fn disconnected(&mut self) {
        self.frontend = None;
    }
}

/// Which of `workers` workers has ring pair `pair` of a port whose first pair is at `home`.
pub(crate) fn worker_of_pair(home: usize, pair: usize, workers: usize) -> usize {
    (home + pair) % workers
}

/// Picks a home for a port: round robin.
#[derive(Default)]
pub(crate) struct Homes(AtomicUsize);

impl Homes {
    pub(crate) fn next(&self, workers: usize) -> usize {
        self.0.fetch_add(1, Ordering::Relaxed) % workers
    }
}
