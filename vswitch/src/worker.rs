//! A worker: takes bursts of frames from the ports it has, has the forwarder decide, and writes them to other ports.
//!
//! ```text
//! poll: for each source            guest ring: up to 32 chains     device of the host: what its receives brought
//!         take, load headers       header copied out, net header checked, next buffers of the likely target fetched
//!         classify                 one batch through the flow cache
//!         forward each             edits on the copy, then Egress: header copy + payload straight into the target
//!         finish                   chains back to the sender, one publish
//!       then publish every target that got something, once; then what other workers handed over, and counters
//! ```
//!
//! Speeds: guest to guest on one worker copies the payload once and takes no system call; to a device of the host
//! or another worker it is copied into a buffer of ours first; a checksum or segmentation that the target does not take
//! costs a pass over the payload.

mod control_source;
pub(crate) mod counters;
mod egress;
mod frame;
mod guest_sink;
mod guest_source;
mod handover;
mod ports;
mod socket;
mod tap;
mod wiring;

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use packet::{Depth, FlowKey, HEADER_BYTES_MAX, HEADER_BYTES_SHORT, Header, parse_into, parse_to};
use reactor::{Io, Reply, Worker};
use telemetry::{Counter, RateLimited};
use virtq::Queue;

use crate::capture::Tap;
use crate::fdb::Fdb;
use crate::forwarder::{BATCH_MAX, Forwarder, VerdictId};
use crate::model::{Clock, Fence, PacketInSender, PacketOut, PortNo, Snapshot};
use crate::port::offload::{FRAME_BYTES_MAX, Offload};

use egress::{Outlet, Sink};
use frame::Payload;
use guest_source::{GuestSource, Taken};
use handover::FromWorker;
use ports::{PortTable, Source, SourceKind};
use tap::Taps;

pub use counters::{PortCells, PortReader};
pub(crate) use ports::{NewPort, NewQueue};
pub use socket::SocketKind;
pub(crate) use wiring::{BUFFER_BYTES, Peers, connect};

/// Frames that other workers handed over, taken in one pass.
const HANDED_BUDGET: usize = 64;
/// Flows whose counters are moved in one pass.
const DRAIN_BUDGET: usize = 1024;
/// Passes with work between two looks at the health of guests' memory.
const HEALTH_PASSES: u32 = 4096;

/// What other threads ask of a worker.
pub(crate) enum Command {
    /// Decide by this snapshot.
    Apply(Arc<Snapshot>),
    /// Drop the fence when everything before is done; the first worker passes it on to the others after that.
    Fence(Fence),
    /// Drop the fence when everything counted so far is in the flows' counters.
    Drain(Fence),
    /// Send a controller's packet; the counter says how many wait.
    PacketOut(Box<PacketOut>, Arc<AtomicUsize>),
    /// A new port.
    AddPort(Box<NewPort>, Reply<std::io::Result<()>>),
    /// Forget a port and all that belongs to it.
    RemovePort(PortNo, Reply<()>),
    /// A ring of a guest starts.
    StartQueue(Box<NewQueue>, Reply<std::io::Result<()>>),
    /// A ring of a guest stops.
    StopQueue(QueueName, Reply<Option<Queue>>),
    /// A ring signals another eventfd.
    SetCall(QueueName, Option<std::os::fd::OwnedFd>, Reply<()>),
    /// The guest behind a port moved here: announce its address.
    Announce(PortNo, [u8; 6]),
    /// Show a capture what goes by.
    Capture(Arc<Tap>),
    /// That capture ended.
    EndCapture(u64),
    /// End the thread.
    Stop,
}

/// Which ring of which frontend of which port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct QueueName {
    pub(crate) port: PortNo,
    /// Number of the frontend's session, larger for newer ones.
    pub(crate) session: u64,
    pub(crate) index: u16,
}

/// What a worker tells the metrics, written by it alone.
pub(crate) struct WorkerCells {
    pub(crate) cache_hits: Counter,
    pub(crate) cache_misses: Counter,
    /// The epoch it decides by.
    pub(crate) epoch: Arc<AtomicU64>,
}

/// One burst, reused for all.
struct Burst {
    heads: [u16; BATCH_MAX],
    chains: Vec<Taken>,
    headers: Box<[Header; BATCH_MAX]>,
    keys: [FlowKey; BATCH_MAX],
    bytes: [u32; BATCH_MAX],
    offloads: [Offload; BATCH_MAX],
    verdicts: [VerdictId; BATCH_MAX],
    /// Which chain a frame is in.
    origin: [u8; BATCH_MAX],
}

/// How a worker is made.
pub(crate) struct WorkerSetup {
    pub(crate) index: usize,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) fdb: Arc<Fdb>,
    pub(crate) seed: u64,
    pub(crate) packet_ins_per_second: u32,
    pub(crate) clock: Clock,
    pub(crate) packet_ins: PacketInSender,
    pub(crate) cells: WorkerCells,
    pub(crate) peers: Peers,
    pub(crate) log: Arc<RateLimited>,
}

/// The program of one worker thread.
pub(crate) struct SwitchWorker {
    forwarder: Forwarder,
    clock: Clock,
    cells: WorkerCells,
    ports: PortTable,
    outlet: Outlet,
    burst: Box<Burst>,
    /// A frame of a device of the host.
    inbox: Box<[u8]>,
    draining: Vec<Fence>,
    passes: u32,
    taps: Taps,
    log: Arc<RateLimited>,
}

impl SwitchWorker {
    pub(crate) fn new(setup: WorkerSetup, io: &mut Io) -> SwitchWorker {
        let frame_room = || vec![0; FRAME_BYTES_MAX + packet::HEADROOM_BYTES].into_boxed_slice();
        if let Err(error) = io.watch(setup.peers.bell.fd(), ports::TOKEN_NONE) {
            // Handed frames then wait for the next kick or tick; nothing is lost.
            tracing::error!("worker {}: cannot watch its doorbell: {error}", setup.index);
        }
        SwitchWorker {
            forwarder: Forwarder::new(setup.index, setup.snapshot, setup.fdb, setup.seed)
                .with_packet_ins(setup.packet_ins_per_second),
            clock: setup.clock,
            cells: setup.cells,
            ports: PortTable::new(setup.index),
            outlet: Outlet {
                peers: setup.peers,
                packet_ins: setup.packet_ins,
                dirty: Vec::new(),
                scratch: frame_room(),
            },
            burst: Box::new(Burst {
                heads: [0; BATCH_MAX],
                chains: (0..BATCH_MAX).map(|_| Taken::new()).collect(),
                headers: Box::new(std::array::from_fn(|_| Header::new())),
                keys: [FlowKey::ZERO; BATCH_MAX],
                bytes: [0; BATCH_MAX],
                offloads: [Offload::NONE; BATCH_MAX],
                verdicts: [VerdictId::default(); BATCH_MAX],
                origin: [0; BATCH_MAX],
            }),
            inbox: frame_room(),
            draining: Vec::new(),
            passes: 0,
            taps: Taps::default(),
            log: setup.log,
        }
    }

    /// One burst of a guest's ring. True if there was anything.
    fn guest_burst(&mut self, index: usize, io: &mut Io) -> bool {
        let now_ms = self.clock.at_ms(io.now());
        let PortTable { sources, sinks, slots, routes, .. } = &mut self.ports;
        let Some(Source { kind: SourceKind::Guest(source), port, slot, likely, .. }) = &mut sources[index]
        else {
            return false;
        };
        let burst = &mut *self.burst;
        let taken = source.take(&mut burst.heads, &mut burst.chains);
        if taken == 0 {
            return self.report_source_fault(index, io);
        }
        let cells = &slots[*slot].as_ref().expect("a source has its port").cells;
        if let Some(Sink { kind: egress::SinkKind::Guest(sink), .. }) =
            sinks.get_mut(*likely).and_then(Option::as_mut)
        {
            sink.expect(taken);
        }
        let depth = self.forwarder.depth();
        let (count, bytes) = load(burst, source, taken, depth, *port, cells, &self.taps);
        classify(burst, &mut self.forwarder, (count, bytes), depth, *port, now_ms);
        let Burst { heads, chains, headers, bytes: lengths, offloads, verdicts, origin, .. } = burst;
        cells.rx_packets.add(count as u64);
        cells.rx_bytes.add(bytes);
        let mut egress = self.outlet.egress(io, sinks, routes, Some(cells));
        egress.targets.last = *likely;
        let tapped = self.taps.active();
        for i in 0..count {
            let header = &mut headers[i];
            egress.incoming.payload = Payload::Guest {
                memory: source.memory(),
                buffers: chains[usize::from(origin[i])].buffers(),
                offset: source.frame_offset() + header.consumed() as u64,
            };
            egress.incoming.bytes = lengths[i] as usize;
            egress.incoming.offload = &offloads[i];
            if tapped {
                self.taps.forward(&self.forwarder, verdicts[i], *port, header, now_ms, &mut egress);
            } else {
                self.forwarder.forward(verdicts[i], *port, header, now_ms, &mut egress);
            }
        }
        *likely = egress.targets.last;
        if source.finish(&heads[..taken], io) {
            cells.interrupts.add(1);
        }
        true
    }

    /// Decides on and forwards one frame that is in `frame` from where `header` was loaded.
    fn single(&mut self, io: &mut Io, port: PortNo, header: &mut Header, bytes: usize, offload: Offload) {
        let now_ms = self.clock.at_ms(io.now());
        let length = (bytes as isize + header.grown()) as u32;
        let key = self.forwarder.key(header, port);
        let mut verdict = [VerdictId::default()];
        self.forwarder.classify(&[key], &[length], &mut verdict, now_ms);
        let PortTable { sinks, slots, routes, by_number, .. } = &mut self.ports;
        let cells = by_number.get(&port).and_then(|slot| slots[*slot].as_ref()).map(|slot| &slot.cells);
        if let Some(cells) = cells {
            cells.rx_packets.add(1);
            cells.rx_bytes.add(length.into());
        }
        let mut egress = self.outlet.egress(io, sinks, routes, cells);
        egress.incoming.payload = Payload::Bytes(&self.inbox[header.consumed()..bytes]);
        egress.incoming.bytes = bytes;
        egress.incoming.offload = &offload;
        if self.taps.active() {
            self.taps.forward(&self.forwarder, verdict[0], port, header, now_ms, &mut egress);
        } else {
            self.forwarder.forward(verdict[0], port, header, now_ms, &mut egress);
        }
    }

    /// A receive of a device of the host completed.
    fn socket_received(&mut self, index: usize, result: i32, io: &mut Io) {
        let Some(Source { kind: SourceKind::Socket(source), port, slot, .. }) =
            &mut self.ports.sources[index]
        else {
            return;
        };
        let (port, slot) = (*port, *slot);
        let arrived = source.finish(io, result, &mut self.inbox);
        let mut header = Header::new();
        let loaded = arrived.map(|arrived| {
            let arrived = arrived?;
            arrived.load(&self.inbox, &mut header).map(|offload| (arrived.bytes, offload))
        });
        let cells = &self.ports.slots[slot].as_ref().expect("a source has its port").cells;
        match loaded {
            Some(Ok((bytes, offload))) => self.single(io, port, &mut header, bytes, offload),
            Some(Err(reason)) => cells.rx_drop(reason),
            None if result != -libc::EAGAIN && result != -libc::ECANCELED => cells.rx_errors.add(1),
            None => {}
        }
    }

    /// A frame of our own that enters by `port`: an announcement.
    fn inject(&mut self, io: &mut Io, port: PortNo, frame: &[u8]) {
        self.inbox[..frame.len()].copy_from_slice(frame);
        let mut header = Header::of(frame);
        self.single(io, port, &mut header, frame.len(), Offload::NONE);
    }

    fn packet_out(&mut self, packet: &PacketOut, io: &mut Io) {
        let now_ms = self.clock.at_ms(io.now());
        let bytes = packet.frame.len();
        if bytes > FRAME_BYTES_MAX {
            return;
        }
        let mut header = Header::of(&packet.frame);
        let PortTable { sinks, routes, .. } = &mut self.ports;
        let mut egress = self.outlet.egress(io, sinks, routes, None);
        egress.incoming.payload = Payload::Bytes(&packet.frame[header.consumed()..]);
        egress.incoming.bytes = bytes;
        if self.taps.active() {
            self.taps.packet_out(&self.forwarder, packet, &mut header, now_ms, &mut egress);
        } else {
            self.forwarder.packet_out(packet, &mut header, now_ms, &mut egress);
        }
    }

    /// Delivers what other workers handed over.
    fn take_handed(&mut self, io: &mut Io, budget: usize) -> bool {
        let mut taken = 0;
        let PortTable { sinks, routes, .. } = &mut self.ports;
        for from in &mut self.outlet.peers.from {
            taken += from.take(budget, |handed| {
                let mut deliver = |sinks: &mut [Option<Sink>]| {
                    egress::deliver_handed(
                        handed,
                        sinks,
                        routes,
                        &mut self.outlet.dirty,
                        &mut self.outlet.scratch,
                        io,
                    );
                };
                if self.taps.active() {
                    self.taps.deliver(handed.port, handed.bytes(), sinks, deliver);
                } else {
                    deliver(sinks);
                }
            });
        }
        taken > 0
    }

    /// Shows every target what it got.
    fn publish(&mut self, io: &mut Io) {
        for index in self.outlet.dirty.drain(..) {
            let Some(sink) = &mut self.ports.sinks[index] else { continue };
            let cells = &self.ports.slots[sink.slot].as_ref().expect("a sink has its port").cells;
            let fault = sink.publish(io, cells);
            if let Some(fault) = fault {
                cells.ring_faults.add(1);
                report(&self.log, &sink.name, "receive", fault);
            }
        }
        for peer in self.outlet.peers.to.iter_mut().flatten() {
            peer.flush();
        }
    }

    #[cold]
    fn report_source_fault(&mut self, index: usize, io: &mut Io) -> bool {
        let Some(source) = &mut self.ports.sources[index] else { return false };
        let SourceKind::Guest(guest) = &mut source.kind else { return false };
        if let Some(fault) = guest.take_fault(io) {
            let slot = self.ports.slots[source.slot].as_ref().expect("a source has its port");
            slot.cells.ring_faults.add(1);
            report(&self.log, &slot.name, "transmit", fault);
        }
        false
    }

    fn drain(&mut self) -> bool {
        if self.draining.is_empty() {
            return false;
        }
        if self.forwarder.drain(DRAIN_BUDGET) {
            self.draining.clear();
        }
        true
    }

    fn count_cache(&mut self) {
        let (hits, misses) = self.forwarder.cache_counters();
        self.cells.cache_hits.add(hits - self.cells.cache_hits.get());
        self.cells.cache_misses.add(misses - self.cells.cache_misses.get());
    }

    fn check_memory(&self) {
        for source in self.ports.sources.iter().flatten() {
            if let SourceKind::Guest(guest) = &source.kind {
                guest.check_memory();
            }
        }
        self.ports.sinks.iter().flatten().for_each(Sink::check_memory);
    }

    fn pass_fence(&mut self, fence: Fence, io: &mut Io) {
        // Packet-outs before it may be on their way to ports of other workers: those pass it after taking them.
        self.take_handed(io, usize::MAX);
        self.publish(io);
        if self.outlet.peers.index == 0 {
            for peer in self.outlet.peers.handles.get().into_iter().flatten().skip(1) {
                // A worker that ended has nothing to wait for.
                let _ = peer.send(Command::Fence(fence.clone()));
            }
        }
    }
}

/// Reads the headers of a burst; returns how many frames are good, and their bytes.
#[inline]
fn load(
    burst: &mut Burst,
    source: &GuestSource,
    taken: usize,
    depth: Depth,
    port: PortNo,
    cells: &PortCells,
    taps: &Taps,
) -> (usize, u64) {
    let (mut count, mut bytes) = (0, 0);
    // Where no rule looks at the packet, none edits what is behind its first addresses and tags.
    let limit = if depth == Depth::Port { HEADER_BYTES_SHORT } else { HEADER_BYTES_MAX };
    for at in 0..taken {
        let header = &mut burst.headers[count];
        match source.load(burst.chains[at].buffers(), header, limit, &mut burst.offloads[count]) {
            Ok(length) => {
                burst.bytes[count] = length;
                burst.origin[count] = at as u8;
                bytes += u64::from(length);
                count += 1;
            }
            Err(reason) => {
                cells.rx_drop(reason);
                taps.refused(source, burst.chains[at].buffers(), port, reason);
            }
        }
    }
    (count, bytes)
}

/// Decides on the first `count` frames of a burst, `bytes` bytes together.
#[inline]
fn classify(
    burst: &mut Burst,
    forwarder: &mut Forwarder,
    (count, bytes): (usize, u64),
    depth: Depth,
    port: PortNo,
    now_ms: u64,
) {
    let verdicts = &mut burst.verdicts[..count];
    if depth == Depth::Port {
        // No rule tells the packets of this port apart.
        let key = parse_to(&[], port.0, depth);
        return verdicts.fill(forwarder.classify_alike(&key, count, bytes, now_ms));
    }
    // Not while headers are copied: what is read over the border of two parts of a copy waits for both.
    for (key, header) in burst.keys[..count].iter_mut().zip(&*burst.headers) {
        parse_into(key, header.bytes(), port.0, depth);
    }
    forwarder.classify(&burst.keys[..count], &burst.bytes[..count], verdicts, now_ms);
}

#[cold]
fn report(log: &RateLimited, port: &str, ring: &str, fault: virtq::RingFault) {
    if let Some(suppressed) = log.pass(port) {
        tracing::warn!(port, ring, suppressed, "the driver broke a ring, which is stopped: {fault}");
    }
}

impl Worker for SwitchWorker {
    type Command = Command;

    fn command(&mut self, io: &mut Io, command: Command) {
        match command {
            Command::Apply(snapshot) => {
                self.cells.epoch.store(snapshot.epoch, Ordering::Release);
                self.forwarder.apply(snapshot);
            }
            Command::Fence(fence) => self.pass_fence(fence, io),
            Command::Drain(fence) => {
                self.forwarder.start_drain();
                self.draining.push(fence);
            }
            Command::PacketOut(packet, waiting) => {
                waiting.fetch_sub(1, Ordering::Relaxed);
                self.packet_out(&packet, io);
            }
            Command::AddPort(port, reply) => reply.send(self.ports.add(*port, io)),
            Command::RemovePort(port, reply) => {
                self.ports.remove(port, io);
                reply.send(());
            }
            Command::StartQueue(queue, reply) => reply.send(self.ports.start_queue(*queue, io)),
            Command::StopQueue(name, reply) => {
                self.publish(io);
                reply.send(self.ports.stop_queue(name, io));
            }
            Command::SetCall(name, call, reply) => {
                if let Some(call) = &call {
                    io.signal(call.as_fd());
                }
                self.ports.set_call(name, call);
                reply.send(());
            }
            Command::Announce(port, mac) => self.inject(io, port, &rarp(mac)),
            Command::Capture(tap) => self.taps.add(tap),
            Command::EndCapture(id) => self.taps.remove(id),
            Command::Stop => io.stop(),
        }
    }

    fn completion(&mut self, io: &mut Io, token: u64, result: i32) {
        match self.ports.meaning(token) {
            ports::Meaning::Nothing => {}
            ports::Meaning::Kick(index) => self.ports.kicked(index),
            ports::Meaning::Readable(index) => self.ports.readable(index),
            ports::Meaning::Received(index) => self.socket_received(index, result, io),
            ports::Meaning::Written(index) => self.ports.written(index, result),
        }
    }

    fn poll(&mut self, io: &mut Io) -> bool {
        let mut worked = !self.outlet.peers.from.is_empty() && self.take_handed(io, HANDED_BUDGET);
        for index in 0..self.ports.sources.len() {
            worked |= match &mut self.ports.sources[index] {
                Some(Source { kind: SourceKind::Guest(_), .. }) => self.guest_burst(index, io),
                Some(source) => source.poll_slow(io),
                None => false,
            };
        }
        self.publish(io);
        worked |= self.drain();
        if worked {
            self.count_cache();
            self.passes = (self.passes + 1) % HEALTH_PASSES;
            if self.passes == 0 {
                self.check_memory();
            }
        }
        worked
    }

    fn arm(&mut self, _io: &mut Io) -> bool {
        self.check_memory();
        self.outlet.peers.bell.fall_asleep();
        let mut work = !self.draining.is_empty() || !self.outlet.peers.from.iter().all(FromWorker::is_empty);
        for source in self.ports.sources.iter_mut().flatten() {
            work |= source.arm();
        }
        work
    }

    fn disarm(&mut self, _io: &mut Io) {
        self.outlet.peers.bell.wake_up();
        self.ports.sources.iter_mut().flatten().for_each(Source::disarm);
    }
}

/// The frame by which a guest that moved tells switches where it is: a reverse ARP request (RFC 903) from and for `mac`.
fn rarp(mac: [u8; 6]) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    // RARP; Ethernet, IPv4, their lengths, request reverse.
    frame[12..22].copy_from_slice(&[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    frame[22..28].copy_from_slice(&mac);
    frame[32..38].copy_from_slice(&mac);
    frame
}
