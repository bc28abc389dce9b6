//! The ports a worker has, their rings and devices, and which completion belongs to what.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU16;

use reactor::{Io, WatchId};
use vhost_session::FrontendHandle;
use virtq::Queue;

use crate::model::PortNo;
use crate::port::device::{Device, DriverFeatures, QueueRole};
use crate::worker::control_source::ControlSource;
use crate::worker::egress::{Route, Sink, SinkKind};
use crate::worker::guest_sink::GuestSink;
use crate::worker::guest_source::GuestSource;
use crate::worker::socket::{SocketKind, SocketSink, SocketSource};
use crate::worker::{PortCells, QueueName};

/// A new port, as one worker gets to know it.
pub(crate) struct NewPort {
    pub(crate) number: PortNo,
    pub(crate) name: Arc<str>,
    pub(crate) mtu: u16,
    /// The worker that has the port's device or first queue pair.
    pub(crate) home: usize,
    pub(crate) cells: PortCells,
    /// The device of the host, for its home.
    pub(crate) socket: Option<(OwnedFd, SocketKind)>,
}

/// A ring that starts.
pub(crate) struct NewQueue {
    pub(crate) name: QueueName,
    pub(crate) role: QueueRole,
    pub(crate) queue: Queue,
    pub(crate) kick: OwnedFd,
    pub(crate) call: Option<OwnedFd>,
    pub(crate) err: Option<OwnedFd>,
    pub(crate) driver: DriverFeatures,
    pub(crate) frontend: Option<FrontendHandle>,
    pub(crate) device: Arc<Device>,
    /// Queue pairs that receive, as set by the control queue.
    pub(crate) active_pairs: Arc<AtomicU16>,
}

/// A receive ring of a port.
struct Receiver {
    name: QueueName,
    pair: u16,
    sink: usize,
    active_pairs: Arc<AtomicU16>,
}

/// A port.
pub(crate) struct Slot {
    pub(crate) number: PortNo,
    pub(crate) name: Arc<str>,
    pub(crate) cells: PortCells,
    mtu: u16,
    home: usize,
    receivers: Vec<Receiver>,
    socket_sink: Option<usize>,
}

pub(crate) enum SourceKind {
    Guest(GuestSource),
    Socket(SocketSource),
    Control(ControlSource),
}

/// Where frames come from.
pub(crate) struct Source {
    pub(crate) kind: SourceKind,
    pub(crate) port: PortNo,
    pub(crate) slot: usize,
    /// The sink that its next frames will most likely go to.
    pub(crate) likely: usize,
    name: Option<QueueName>,
    watch: Option<WatchId>,
    generation: u32,
    token: u64,
}

impl Source {
    /// Work on anything but a guest's transmit ring.
    pub(crate) fn poll_slow(&mut self, io: &mut Io) -> bool {
        match &mut self.kind {
            SourceKind::Guest(_) => false,
            SourceKind::Socket(socket) => socket.start(io, self.token),
            SourceKind::Control(control) => control.poll(io),
        }
    }

    /// Asks for kicks; true if there is work already.
    pub(crate) fn arm(&mut self) -> bool {
        match &mut self.kind {
            SourceKind::Guest(guest) => guest.arm(),
            SourceKind::Socket(socket) => socket.wants_poll(),
            SourceKind::Control(control) => control.arm(),
        }
    }

    pub(crate) fn disarm(&mut self) {
        match &mut self.kind {
            SourceKind::Guest(guest) => guest.disarm(),
            SourceKind::Socket(_) => {}
            SourceKind::Control(control) => control.disarm(),
        }
    }
}

/// Completions that mean no more than "wake up".
pub(crate) const TOKEN_NONE: u64 = 0;
const KICK: u64 = 1;
const READABLE: u64 = 2;
const RECEIVED: u64 = 3;
const WRITTEN: u64 = 4;

/// What a completion is about: the index of a source or sink.
pub(crate) enum Meaning {
    Nothing,
    Kick(usize),
    Readable(usize),
    Received(usize),
    Written(usize),
}

fn token(kind: u64, index: usize, generation: u32) -> u64 {
    kind << 56 | (index as u64 & 0xff_ffff) << 32 | u64::from(generation)
}

/// Ports, sources and sinks of one worker. Indexes of sources and sinks stay the same while they live.
pub(crate) struct PortTable {
    worker: usize,
    pub(crate) slots: Vec<Option<Slot>>,
    pub(crate) by_number: HashMap<PortNo, usize>,
    pub(crate) sources: Vec<Option<Source>>,
    pub(crate) sinks: Vec<Option<Sink>>,
    /// By port number.
    pub(crate) routes: Vec<Route>,
    generation: u32,
}

fn place<T>(list: &mut Vec<Option<T>>) -> usize {
    list.iter().position(Option::is_none).unwrap_or_else(|| {
        list.push(None);
        list.len() - 1
    })
}

impl PortTable {
    pub(crate) fn new(worker: usize) -> PortTable {
        PortTable {
            worker,
            slots: Vec::new(),
            by_number: HashMap::new(),
            sources: Vec::new(),
            sinks: Vec::new(),
            routes: Vec::new(),
            generation: 0,
        }
    }

    fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        self.generation
    }

    /// Adds a port, and its device if this is its home.
    pub(crate) fn add(&mut self, new: NewPort, io: &mut Io) -> io::Result<()> {
        let slot = place(&mut self.slots);
        let NewPort { number, name, mtu, home, cells, socket } = new;
        let receivers = Vec::new();
        let mut port = Slot { number, name, cells, mtu, home, receivers, socket_sink: None };
        if let Some((fd, kind)) = socket {
            port.socket_sink = Some(self.add_socket(&port, slot, &fd, kind, io)?);
        }
        self.slots[slot] = Some(port);
        self.by_number.insert(number, slot);
        self.update_route(slot);
        Ok(())
    }

    fn add_socket(
        &mut self,
        port: &Slot,
        slot: usize,
        fd: &OwnedFd,
        kind: SocketKind,
        io: &mut Io,
    ) -> io::Result<usize> {
        let generation = self.next_generation();
        let (source, sink) = (place(&mut self.sources), place(&mut self.sinks));
        let socket = SocketSource::new(io, fd, kind, token(READABLE, source, generation))?;
        let target = SocketSink::new(socket.file(), kind, token(WRITTEN, sink, generation));
        self.sources[source] = Some(Source {
            kind: SourceKind::Socket(socket),
            port: port.number,
            slot,
            likely: usize::MAX,
            name: None,
            watch: None,
            generation,
            token: token(RECEIVED, source, generation),
        });
        let target = SinkKind::Socket(target);
        self.sinks[sink] = Some(Sink::new(target, slot, port.name.clone(), port.mtu, generation));
        Ok(sink)
    }

    /// Forgets a port. Its rings were stopped before.
    pub(crate) fn remove(&mut self, number: PortNo, io: &mut Io) {
        let Some(slot) = self.by_number.remove(&number) else { return };
        for place in &mut self.sources {
            if let Some(source) = place.take_if(|source| source.slot == slot) {
                if let Some(watch) = source.watch {
                    io.unwatch(watch);
                }
                if let SourceKind::Socket(socket) = source.kind {
                    socket.remove(io);
                }
            }
        }
        for place in &mut self.sinks {
            place.take_if(|sink| sink.slot == slot);
        }
        self.slots[slot] = None;
        self.routes[number.0 as usize] = Route::Nowhere;
    }

    /// Takes over a ring of a guest.
    pub(crate) fn start_queue(&mut self, new: NewQueue, io: &mut Io) -> io::Result<()> {
        let Some(&slot) = self.by_number.get(&new.name.port) else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the port is being removed"));
        };
        let generation = self.next_generation();
        let (call, err, frontend) = (new.call, new.err, new.frontend);
        let kind = match new.role {
            QueueRole::Receive(pair) => {
                let sink = place(&mut self.sinks);
                let guest = GuestSink::new(new.queue, call, err, frontend, &new.driver);
                let port = self.slots[slot].as_mut().expect("by_number names a port");
                let (name, mtu) = (port.name.clone(), port.mtu);
                self.sinks[sink] = Some(Sink::new(SinkKind::Guest(guest), slot, name, mtu, generation));
                let active_pairs = new.active_pairs;
                port.receivers.push(Receiver { name: new.name, pair, sink, active_pairs });
                self.update_route(slot);
                return Ok(());
            }
            QueueRole::Transmit(_) => {
                SourceKind::Guest(GuestSource::new(new.queue, call, err, frontend, &new.driver))
            }
            QueueRole::Control => {
                SourceKind::Control(ControlSource::new(new.queue, call, new.device, new.active_pairs))
            }
        };
        let source = place(&mut self.sources);
        let watch = io.watch(new.kick.as_fd(), token(KICK, source, generation))?;
        self.sources[source] = Some(Source {
            kind,
            port: new.name.port,
            slot,
            likely: usize::MAX,
            name: Some(new.name),
            watch: Some(watch),
            generation,
            token: 0,
        });
        Ok(())
    }

    /// Gives a ring back, published and drained. `None`: it does not run here.
    pub(crate) fn stop_queue(&mut self, name: QueueName, io: &mut Io) -> Option<Queue> {
        let same = |source: &Source| source.name == Some(name);
        if let Some(place) = self.sources.iter_mut().find(|place| place.as_ref().is_some_and(same)) {
            let source = place.take()?;
            if let Some(watch) = source.watch {
                io.unwatch(watch);
            }
            return match source.kind {
                SourceKind::Guest(guest) => Some(guest.into_queue()),
                SourceKind::Control(control) => Some(control.into_queue()),
                SourceKind::Socket(_) => None,
            };
        }
        let slot = *self.by_number.get(&name.port)?;
        let receivers = &mut self.slots[slot].as_mut()?.receivers;
        let at = receivers.iter().position(|receiver| receiver.name == name)?;
        let sink = receivers.remove(at).sink;
        self.update_route(slot);
        match self.sinks[sink].take()?.kind {
            SinkKind::Guest(guest) => Some(guest.into_queue()),
            SinkKind::Socket(_) => None,
        }
    }

    pub(crate) fn set_call(&mut self, name: QueueName, call: Option<OwnedFd>) {
        let source = self.sources.iter_mut().flatten().find(|source| source.name == Some(name));
        if let Some(source) = source {
            return match &mut source.kind {
                SourceKind::Guest(guest) => guest.set_call(call),
                SourceKind::Control(control) => control.set_call(call),
                SourceKind::Socket(_) => {}
            };
        }
        let receiver = self
            .by_number
            .get(&name.port)
            .and_then(|slot| self.slots[*slot].as_ref())
            .and_then(|slot| slot.receivers.iter().find(|receiver| receiver.name == name));
        if let Some(receiver) = receiver
            && let Some(Sink { kind: SinkKind::Guest(guest), .. }) = &mut self.sinks[receiver.sink]
        {
            guest.set_call(call);
        }
    }

    /// The frontend whose rings started last has the port.
    fn update_route(&mut self, slot: usize) {
        let port = self.slots[slot].as_ref().expect("called with a port");
        let newest = port.receivers.iter().map(|receiver| receiver.name.session).max();
        let mut rings: Vec<&Receiver> =
            port.receivers.iter().filter(|receiver| Some(receiver.name.session) == newest).collect();
        rings.sort_by_key(|receiver| receiver.pair);
        let route = match (rings.as_slice(), port.socket_sink) {
            ([], Some(sink)) => Route::Sink(sink),
            ([], None) if port.home != self.worker => Route::Worker(port.home),
            ([], None) => Route::Nowhere,
            ([only], _) => Route::Sink(only.sink),
            ([first, ..], _) => Route::Sinks(
                rings.iter().map(|receiver| (receiver.pair, receiver.sink)).collect(),
                first.active_pairs.clone(),
            ),
        };
        let number = port.number.0 as usize;
        if self.routes.len() <= number {
            self.routes.resize(number + 1, Route::Nowhere);
        }
        self.routes[number] = route;
    }

    /// What a completion with this token is about; nothing if its ring or device is gone.
    pub(crate) fn meaning(&self, token: u64) -> Meaning {
        let (kind, index, generation) = (token >> 56, (token >> 32 & 0xff_ffff) as usize, token as u32);
        let source = self.sources.get(index).and_then(Option::as_ref);
        let source = source.is_some_and(|source| source.generation == generation);
        let sink = self.sinks.get(index).and_then(Option::as_ref);
        let sink = sink.is_some_and(|sink| sink.generation == generation);
        match kind {
            KICK if source => Meaning::Kick(index),
            READABLE if source => Meaning::Readable(index),
            RECEIVED if source => Meaning::Received(index),
            WRITTEN if sink => Meaning::Written(index),
            _ => Meaning::Nothing,
        }
    }

    fn cells(&self, slot: usize) -> Option<&PortCells> {
        self.slots[slot].as_ref().map(|slot| &slot.cells)
    }

    pub(crate) fn kicked(&self, source: usize) {
        let cells = self.sources[source].as_ref().and_then(|source| self.cells(source.slot));
        if let Some(cells) = cells {
            cells.kicks.add(1);
        }
    }

    pub(crate) fn readable(&mut self, source: usize) {
        if let Some(Source { kind: SourceKind::Socket(socket), .. }) = &mut self.sources[source] {
            socket.became_readable();
        }
    }

    /// A write to a device of the host ended.
    pub(crate) fn written(&self, sink: usize, result: i32) {
        let cells = self.sinks[sink].as_ref().and_then(|sink| self.cells(sink.slot));
        if let Some(cells) = cells.filter(|_| result < 0) {
            cells.tx_errors.add(1);
        }
    }
}
