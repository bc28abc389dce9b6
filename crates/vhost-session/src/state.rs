//! The state machine of one connection: what the frontend has set so far, and which rings run because of it.
//!
//! A ring runs exactly while features, memory, addresses, size, kick and enablement are all there. Every message that
//! changes one of them stops the rings it touches (the worker drains them and gives their indexes back), applies
//! the change, and starts again what can run.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use virtq::{DirtyLog, GuestMemory, InflightRegion, Queue, RegionSpec};

use crate::backend::{Backend, BackendError, QueueStart};
use crate::control::Control;
use crate::metrics::SessionMetrics;
use crate::ring::{Ring, RingAddresses, duplicate};
use crate::wire;

/// `VHOST_F_LOG_ALL`: pages written are marked in the dirty log.
pub(crate) const LOG_ALL: u64 = 1 << 26;
/// `VHOST_USER_F_PROTOCOL_FEATURES`.
pub(crate) const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Why a message was refused. Nothing was changed by it unless the text says so.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("queue index {index}, the device has {count} queues")]
    QueueIndex { index: u32, count: u16 },
    #[error("queue size {size} of queue {index}, allowed are powers of two up to {max}")]
    QueueSize { index: u32, size: u32, max: u16 },
    #[error("queue base {base} of queue {index}, a split ring's index has 16 bits")]
    QueueBase { index: u32, base: u32 },
    #[error(
        "the {part} ring of queue {index} at user address {addr:#x} is not in the memory that the frontend shared"
    )]
    RingAddress { index: u32, part: &'static str, addr: u64 },
    #[error("queue {index} can't start: {fault}")]
    Ring { index: u16, fault: virtq::RingFault },
    #[error("memory map: {0}")]
    Memory(#[from] virtq::MemoryError),
    #[error("there is no memory region to remove")]
    NoMemory,
    #[error("SET_VRING_ENABLE of queue {index} with {value}, expected 0 or 1")]
    Enable { index: u32, value: u32 },
    #[error("features {got:#x}, offered were {offered:#x}")]
    Features { got: u64, offered: u64 },
    #[error("protocol features {got:#x}, offered were {offered:#x}")]
    ProtocolFeatures { got: u64, offered: u64 },
    #[error("{0} was not negotiated")]
    NotNegotiated(&'static str),
    #[error("the {what} descriptor of queue {index} is not an eventfd")]
    NotEventfd { index: u32, what: &'static str },
    #[error(
        "in-flight area of {queues} queues with {size} descriptors each, the device has {count} with up to {max}"
    )]
    InflightShape { queues: u16, size: u16, count: u16, max: u16 },
    #[error("in-flight area: {0}")]
    Inflight(#[from] virtq::InflightError),
    #[error("dirty log at offset {offset} with {bytes} bytes: {error}")]
    Log { offset: u64, bytes: u64, error: io::Error },
    #[error("MTU {0}, allowed are 68 to 65535 bytes")]
    Mtu(u64),
    #[error("the channel for requests of ours must be one local stream socket")]
    RequestChannel,
    #[error("{0}")]
    Backend(#[from] BackendError),
    #[error("descriptors: {0}")]
    Descriptor(#[from] io::Error),
}

/// Everything one frontend has set, and its backend.
pub(crate) struct State<B> {
    backend: B,
    control: Arc<Control>,
    metrics: SessionMetrics,
    rings: Vec<Ring>,
    /// As sent by SET_FEATURES, with the two bits of vhost-user.
    features: Option<u64>,
    /// What the device was last told by `negotiated`.
    device_features: Option<u64>,
    protocol_features: u64,
    features_asked: bool,
    status: u8,
    memory: Option<Arc<GuestMemory>>,
    /// (regions, bytes) of `memory`, for show.
    memory_size: (usize, u64),
    inflight: Option<InflightRegion>,
    log: Option<Arc<DirtyLog>>,
    /// Set by a message's handler that said no; taken by the session afterwards.
    pub(crate) refusal: Option<Refusal>,
}

impl<B: Backend> State<B> {
    pub(crate) fn new(backend: B, control: Arc<Control>, metrics: SessionMetrics) -> Self {
        let rings = std::iter::repeat_with(Ring::default).take(backend.queue_count().into()).collect();
        Self {
            backend,
            control,
            metrics,
            rings,
            features: None,
            device_features: None,
            protocol_features: 0,
            features_asked: false,
            status: 0,
            memory: None,
            memory_size: (0, 0),
            inflight: None,
            log: None,
            refusal: None,
        }
    }

    pub(crate) fn backend(&mut self) -> &mut B {
        &mut self.backend
    }

    /// The connection is over.
    pub(crate) fn disconnect(&mut self) {
        self.stop_all();
        self.backend.disconnected();
    }

    /// For `show`.
    pub(crate) fn publish(&self, refused: bool) {
        let running = (0u16..).zip(&self.rings).filter(|(_, ring)| ring.running).map(|(index, _)| index);
        self.control.update_info(|info| {
            info.features = self.features;
            info.protocol_features = self.protocol_features;
            info.status = self.status;
            info.memory = self.memory_size;
            info.running_queues.clear();
            info.running_queues.extend(running);
            info.messages += 1;
            info.refused_messages += u64::from(refused);
        });
    }

    // ---- features ----

    pub(crate) fn offered_features(&mut self) -> u64 {
        self.features_asked = true;
        self.backend.features() | LOG_ALL | PROTOCOL_FEATURES
    }

    pub(crate) fn offered_protocol_features(&self) -> Protocol {
        let extra = Protocol::from_bits_truncate(self.backend.extra_protocol_features());
        Protocol::MQ
            | Protocol::LOG_SHMFD
            | Protocol::REPLY_ACK
            | Protocol::BACKEND_REQ
            | Protocol::CONFIG
            | Protocol::INFLIGHT_SHMFD
            | Protocol::RESET_DEVICE
            | Protocol::CONFIGURE_MEM_SLOTS
            | Protocol::STATUS
            | (extra & (Protocol::MTU | Protocol::RARP))
    }

    /// Does a request with NEED_REPLY get an acknowledgement? The same rule as the `vhost` crate's.
    pub(crate) fn replies_enabled(&self) -> bool {
        self.features_asked && self.negotiated(Protocol::REPLY_ACK)
    }

    fn negotiated(&self, feature: Protocol) -> bool {
        self.protocol_features & feature.bits() != 0
    }

    fn require(&self, feature: Protocol, name: &'static str) -> Result<(), Refusal> {
        if self.negotiated(feature) { Ok(()) } else { Err(Refusal::NotNegotiated(name)) }
    }

    pub(crate) fn set_features(&mut self, features: u64) -> Result<(), Refusal> {
        let offered = self.backend.features() | LOG_ALL | PROTOCOL_FEATURES;
        if features & !offered != 0 {
            return Err(Refusal::Features { got: features, offered });
        }
        self.stop_all();
        let device_features = features & !(LOG_ALL | PROTOCOL_FEATURES);
        if self.device_features != Some(device_features) {
            self.features = None;
            self.device_features = None;
            self.backend.negotiated(device_features)?;
            self.device_features = Some(device_features);
        }
        self.features = Some(features);
        self.start_all()
    }

    pub(crate) fn set_protocol_features(&mut self, features: u64) -> Result<(), Refusal> {
        let offered = self.offered_protocol_features().bits();
        if features & !offered != 0 {
            return Err(Refusal::ProtocolFeatures { got: features, offered });
        }
        self.protocol_features = features;
        Ok(())
    }

    pub(crate) fn queue_count_reported(&self) -> u16 {
        self.backend.queue_count_reported()
    }

    // ---- rings ----

    fn index(&self, index: u32) -> Result<u16, Refusal> {
        let count = self.backend.queue_count();
        u16::try_from(index).ok().filter(|&index| index < count).ok_or(Refusal::QueueIndex { index, count })
    }

    /// Applies a change to one ring that must not run meanwhile.
    fn change_ring(&mut self, index: u32, change: impl FnOnce(&mut Ring)) -> Result<(), Refusal> {
        let index = self.index(index)?;
        self.stop(index);
        change(&mut self.rings[usize::from(index)]);
        self.start(index)
    }

    pub(crate) fn set_vring_num(&mut self, index: u32, size: u32) -> Result<(), Refusal> {
        self.index(index)?;
        let max = self.backend.queue_size_max();
        let refusal = Refusal::QueueSize { index, size, max };
        let size = u16::try_from(size).ok().filter(|&size| size <= max && size.is_power_of_two());
        let size = size.ok_or(refusal)?;
        self.change_ring(index, |ring| ring.size = size)
    }

    pub(crate) fn set_vring_base(&mut self, index: u32, base: u32) -> Result<(), Refusal> {
        self.index(index)?;
        let base = u16::try_from(base).map_err(|_| Refusal::QueueBase { index, base })?;
        self.change_ring(index, |ring| ring.base = base)
    }

    pub(crate) fn set_vring_addr(&mut self, index: u32, addresses: RingAddresses) -> Result<(), Refusal> {
        self.index(index)?;
        // Whether the whole ring lies in memory is checked when it starts; an address outside is refused here, where
        // the frontend gave it.
        let parts =
            [("descriptor", addresses.desc), ("available", addresses.avail), ("used", addresses.used)];
        for (part, addr) in parts {
            if self.memory.as_ref().and_then(|memory| memory.slice_user(addr, 1)).is_none() {
                return Err(Refusal::RingAddress { index, part, addr });
            }
        }
        if self.rings[index as usize].addresses == Some(addresses) {
            return Ok(());
        }
        self.change_ring(index, |ring| ring.addresses = Some(addresses))
    }

    /// The answer means: this ring is not touched any more. It needs a new kick to run again.
    pub(crate) fn get_vring_base(&mut self, index: u32) -> Result<u16, Refusal> {
        let index = self.index(index)?;
        self.stop(index);
        let ring = &mut self.rings[usize::from(index)];
        ring.kick = None;
        Ok(ring.base)
    }

    pub(crate) fn set_vring_kick(&mut self, index: u32, kick: Option<OwnedFd>) -> Result<(), Refusal> {
        self.index(index)?;
        check_eventfd(index, "kick", kick.as_ref())?;
        self.change_ring(index, |ring| ring.kick = kick)
    }

    pub(crate) fn set_vring_call(&mut self, index: u32, call: Option<OwnedFd>) -> Result<(), Refusal> {
        let queue = self.index(index)?;
        check_eventfd(index, "call", call.as_ref())?;
        let ring = &mut self.rings[usize::from(queue)];
        if ring.running {
            self.backend.set_call(queue, duplicate(call.as_ref())?);
        }
        ring.call = call;
        Ok(())
    }

    pub(crate) fn set_vring_err(&mut self, index: u32, err: Option<OwnedFd>) -> Result<(), Refusal> {
        self.index(index)?;
        check_eventfd(index, "err", err.as_ref())?;
        self.change_ring(index, |ring| ring.err = err)
    }

    pub(crate) fn set_vring_enable(&mut self, index: u32, value: u32) -> Result<(), Refusal> {
        self.index(index)?;
        if value > 1 {
            return Err(Refusal::Enable { index, value });
        }
        if self.rings[index as usize].enabled == (value == 1) {
            return Ok(());
        }
        self.change_ring(index, |ring| ring.enabled = value == 1)
    }

    fn stop(&mut self, index: u16) {
        let ring = &mut self.rings[usize::from(index)];
        if std::mem::take(&mut ring.running) {
            if let Some(queue) = self.backend.stop_queue(index) {
                ring.base = queue.next_avail();
            }
            self.metrics.queue_stopped();
        }
    }

    fn stop_all(&mut self) {
        for index in 0..self.backend.queue_count() {
            self.stop(index);
        }
    }

    /// Starts a ring if it has everything it needs and does not run yet.
    fn start(&mut self, index: u16) -> Result<(), Refusal> {
        let (Some(features), Some(memory)) = (self.features, &self.memory) else { return Ok(()) };
        let ring = &mut self.rings[usize::from(index)];
        let enabled_from_start = features & PROTOCOL_FEATURES == 0;
        let Some(setup) = ring.setup(features, enabled_from_start).filter(|_| !ring.running) else {
            return Ok(());
        };
        let Some(kick) = duplicate(ring.kick.as_ref())? else { return Ok(()) };
        let (call, err) = (duplicate(ring.call.as_ref())?, duplicate(ring.err.as_ref())?);
        let inflight = self.inflight.as_ref().and_then(|region| region.queue(index));
        let log = self.log.clone().filter(|_| features & LOG_ALL != 0);
        let queue = Queue::new(Arc::clone(memory), &setup, inflight, log)
            .map_err(|fault| Refusal::Ring { index, fault })?;
        let features = self.device_features.unwrap_or_default();
        self.backend.start_queue(QueueStart { index, queue, kick, call, err, features })?;
        ring.running = true;
        self.metrics.queue_started();
        Ok(())
    }

    /// Starts whatever can run. Of several failures the first is told; the other rings run.
    fn start_all(&mut self) -> Result<(), Refusal> {
        let mut result = Ok(());
        for index in 0..self.backend.queue_count() {
            result = result.and(self.start(index));
        }
        result
    }

    // ---- memory ----

    fn replace_memory(&mut self, memory: GuestMemory, size: (usize, u64)) -> Result<(), Refusal> {
        self.stop_all();
        self.memory = Some(Arc::new(memory));
        self.memory_size = size;
        self.start_all()
    }

    pub(crate) fn set_mem_table(&mut self, regions: Vec<RegionSpec>) -> Result<(), Refusal> {
        let size = (regions.len(), regions.iter().fold(0, |sum, region| region.size.saturating_add(sum)));
        let memory = GuestMemory::new(regions)?;
        self.replace_memory(memory, size)
    }

    pub(crate) fn add_mem_region(&mut self, region: RegionSpec) -> Result<(), Refusal> {
        let (count, bytes) = self.memory_size;
        let size = (count + 1, bytes.saturating_add(region.size));
        let memory = match &self.memory {
            Some(memory) => memory.with_region(region)?,
            None => GuestMemory::new(vec![region])?,
        };
        self.replace_memory(memory, size)
    }

    pub(crate) fn remove_mem_region(
        &mut self,
        guest_addr: u64,
        user_addr: u64,
        bytes: u64,
    ) -> Result<(), Refusal> {
        let (count, total) = self.memory_size;
        let memory = match &self.memory {
            Some(memory) => memory.without_region(guest_addr, user_addr, bytes)?,
            None => return Err(Refusal::NoMemory),
        };
        self.replace_memory(memory, (count.saturating_sub(1), total.saturating_sub(bytes)))
    }

    // ---- in-flight area and dirty log ----

    fn check_inflight(&self, queues: u16, size: u16) -> Result<(), Refusal> {
        let (count, max) = (self.backend.queue_count(), self.backend.queue_size_max());
        if queues == 0 || queues > count || size == 0 || size > max {
            return Err(Refusal::InflightShape { queues, size, count, max });
        }
        Ok(())
    }

    pub(crate) fn create_inflight(&mut self, queues: u16, size: u16) -> Result<(File, u64), Refusal> {
        self.check_inflight(queues, size)?;
        Ok(InflightRegion::create(queues, size)?)
    }

    pub(crate) fn set_inflight(
        &mut self,
        file: File,
        offset: u64,
        bytes: u64,
        queues: u16,
        size: u16,
    ) -> Result<(), Refusal> {
        self.check_inflight(queues, size)?;
        let region = InflightRegion::open(&file, offset, bytes, queues, size)?;
        self.stop_all();
        self.inflight = Some(region);
        self.start_all()
    }

    pub(crate) fn set_log(&mut self, file: File, offset: u64, bytes: u64) -> Result<(), Refusal> {
        let log =
            DirtyLog::new(&file, offset, bytes).map_err(|error| Refusal::Log { offset, bytes, error })?;
        let in_use = self.features.is_some_and(|features| features & LOG_ALL != 0);
        if in_use {
            self.stop_all();
        }
        self.log = Some(Arc::new(log));
        if in_use { self.start_all() } else { Ok(()) }
    }

    // ---- device ----

    /// RESET_OWNER: deprecated; understood as "disable all rings", which is what frontends mean by it.
    pub(crate) fn disable_all(&mut self) {
        self.stop_all();
        for ring in &mut self.rings {
            ring.enabled = false;
        }
    }

    pub(crate) fn reset_device(&mut self) {
        self.disable_all();
        self.virtio_reset();
    }

    fn virtio_reset(&mut self) {
        self.stop_all();
        for ring in &mut self.rings {
            ring.reset();
        }
        self.features = None;
        self.device_features = None;
        self.inflight = None;
        self.status = 0;
        self.backend.reset();
    }

    pub(crate) fn status(&self) -> Result<u8, Refusal> {
        self.require(Protocol::STATUS, "STATUS")?;
        Ok(self.status)
    }

    /// Status 0 is a reset of the device (VIRTIO 1.2, 2.1). The rings keep their enablement: frontends set it before
    /// the next features, not after.
    pub(crate) fn set_status(&mut self, status: u64) -> Result<(), Refusal> {
        self.require(Protocol::STATUS, "STATUS")?;
        if status & 0xff == 0 {
            if self.status != 0 {
                self.virtio_reset();
            }
        } else {
            self.status = status as u8;
        }
        Ok(())
    }

    pub(crate) fn set_mtu(&mut self, mtu: u64) -> Result<(), Refusal> {
        self.require(Protocol::MTU, "MTU")?;
        let mtu = u16::try_from(mtu).ok().filter(|&mtu| mtu >= 68).ok_or(Refusal::Mtu(mtu))?;
        self.backend.set_mtu(mtu);
        Ok(())
    }

    pub(crate) fn send_rarp(&mut self, payload: [u8; 8]) -> Result<(), Refusal> {
        self.require(Protocol::RARP, "RARP")?;
        let [a, b, c, d, e, f, _, _] = payload;
        self.backend.send_rarp([a, b, c, d, e, f]);
        Ok(())
    }

    pub(crate) fn set_request_channel(&mut self, mut files: Vec<OwnedFd>) -> Result<(), Refusal> {
        self.require(Protocol::BACKEND_REQ, "BACKEND_REQ")?;
        let channel = files.pop().filter(|fd| files.is_empty() && wire::is_unix_stream(fd));
        self.control.set_requests(Some(channel.ok_or(Refusal::RequestChannel)?.into()));
        Ok(())
    }

    pub(crate) fn read_config(&self, offset: u32, bytes: u32) -> Vec<u8> {
        let mut config = vec![0; bytes as usize];
        self.backend.read_config(offset, &mut config);
        config
    }

    pub(crate) fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Refusal> {
        Ok(self.backend.write_config(offset, bytes)?)
    }
}

fn check_eventfd(index: u32, what: &'static str, fd: Option<&OwnedFd>) -> Result<(), Refusal> {
    match fd {
        Some(fd) if !wire::is_eventfd(fd) => Err(Refusal::NotEventfd { index, what }),
        _ => Ok(()),
    }
}
