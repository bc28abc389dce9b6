//! Where a worker's frames go: targets by port number, and what has to be done to a frame on its way there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use packet::{FlowKey, Header, parse};
use reactor::Io;
use virtq::RingFault;

use crate::forwarder;
use crate::model::{DropReason, PacketIn, PacketInSender, PortNo};
use crate::port::offload::{Accepts, Offload, complete_checksum, segment, vlan_bytes};
use crate::worker::PortCells;
use crate::worker::counters::at_target;
use crate::worker::frame::{Frame, Payload};
use crate::worker::guest_sink::GuestSink;
use crate::worker::handover::{Handed, ToWorker};
use crate::worker::socket::{SocketSink, WIRE_BYTES_MIN};

/// Bytes of an Ethernet header.
const ETHERNET_BYTES: usize = 14;

/// What a target is.
#[allow(clippy::large_enum_variant, reason = "nearly all are guests, and a box would cost each frame a load")]
pub(crate) enum SinkKind {
    Guest(GuestSink),
    Socket(SocketSink),
}

/// A ring of a guest or a device of the host, as a target.
pub(crate) struct Sink {
    pub(crate) kind: SinkKind,
    /// Its port's place in the table.
    pub(crate) slot: usize,
    /// Its port's name.
    pub(crate) name: Arc<str>,
    pub(crate) generation: u32,
    pub(crate) mtu: usize,
    dirty: bool,
    packets: u64,
    bytes: u64,
    /// Drops since the last publish, by reason.
    drops: Vec<DropReason>,
}

impl Sink {
    pub(crate) fn new(kind: SinkKind, slot: usize, name: Arc<str>, mtu: u16, generation: u32) -> Sink {
        let mtu = mtu.into();
        Sink { kind, slot, name, generation, mtu, dirty: false, packets: 0, bytes: 0, drops: Vec::new() }
    }

    /// Delivers a frame, or as many segments of it as the target wants, and counts.
    #[inline(always)]
    fn deliver(&mut self, frame: &Frame<'_>, scratch: &mut [u8], io: &mut Io) {
        let accepts = match &self.kind {
            SinkKind::Guest(guest) => guest.accepts(),
            SinkKind::Socket(_) => Accepts::ALL,
        };
        if !self.fits(frame) {
            self.drops.push(DropReason::TooLong);
        } else if accepts.takes(frame.offload) {
            self.write(frame, io);
        } else {
            self.deliver_in_software(frame, scratch, io);
        }
    }

    /// Whether the frame, or each of its segments, is within the MTU.
    #[inline]
    fn fits(&self, frame: &Frame<'_>) -> bool {
        let bytes = match frame.offload.gso {
            None => frame.bytes(),
            Some(gso) => usize::from(gso.header_bytes) + usize::from(gso.size),
        };
        let limit = self.mtu + ETHERNET_BYTES;
        bytes <= limit || bytes <= limit + vlan_bytes(frame.head)
    }

    /// Does what the target does not: a pass over a copy of the frame.
    #[cold]
    fn deliver_in_software(&mut self, frame: &Frame<'_>, scratch: &mut [u8], io: &mut Io) {
        let whole = frame.linearise(scratch);
        match (frame.offload.gso, frame.offload.partial) {
            (Some(gso), _) => {
                let whole = &*whole;
                let cut = segment(whole, gso, |head, part| {
                    let (payload, offload) = (&Payload::Bytes(part), &Offload::NONE);
                    self.write(&Frame { head, payload, payload_bytes: part.len(), offload }, io);
                });
                if !cut {
                    self.drops.push(DropReason::TooLong);
                }
            }
            (None, Some(partial)) => {
                complete_checksum(whole, partial);
                self.write(&Frame::of(whole, &Offload::NONE), io);
            }
            (None, None) => self.write(&Frame::of(whole, &Offload::NONE), io),
        }
    }

    #[inline(always)]
    fn write(&mut self, frame: &Frame<'_>, io: &mut Io) {
        let written = match &mut self.kind {
            SinkKind::Guest(guest) => guest.deliver(frame),
            SinkKind::Socket(socket) => socket.deliver(frame, io),
        };
        match written {
            Ok(()) => {
                self.packets += 1;
                self.bytes += frame.bytes() as u64;
            }
            Err(reason) => self.drops.push(reason),
        }
    }

    /// Shows the target what it got and moves the counts to `cells`.
    #[inline]
    pub(crate) fn publish(&mut self, io: &mut Io, cells: &PortCells) -> Option<RingFault> {
        self.dirty = false;
        cells.tx_packets.add(std::mem::take(&mut self.packets));
        cells.tx_bytes.add(std::mem::take(&mut self.bytes));
        for reason in self.drops.drain(..) {
            cells.tx_drop(reason);
        }
        let SinkKind::Guest(guest) = &mut self.kind else { return None };
        if guest.publish(io) {
            cells.interrupts.add(1);
        }
        guest.take_fault(io)
    }

    /// Why frames were not delivered since the last publish.
    pub(crate) fn drops(&self) -> &[DropReason] {
        &self.drops
    }

    pub(crate) fn check_memory(&self) {
        if let SinkKind::Guest(guest) = &self.kind {
            guest.check_memory();
        }
    }
}

/// How a worker reaches a port.
#[derive(Clone)]
pub(crate) enum Route {
    /// Nobody is attached.
    Nowhere,
    /// By this sink of its own.
    Sink(usize),
    /// By one of several rings of the guest, each with the number of its queue pair, ascending; those from the given
    /// number on rest.
    Sinks(Arc<[(u16, usize)]>, Arc<AtomicU16>),
    /// By another worker.
    Worker(usize),
}

/// The target of one port for one frame; `None`: nobody is attached.
#[inline]
fn sink_for(route: &Route, head: &[u8]) -> Option<usize> {
    match route {
        Route::Sink(sink) => Some(*sink),
        Route::Sinks(sinks, active) => {
            let active = active.load(Ordering::Relaxed);
            let count = sinks.partition_point(|(pair, _)| *pair < active).max(1);
            // All frames of a flow to the same ring, so that they stay in order.
            let at = ((flow_hash(&parse(head, 0)) >> 32) * count as u64) >> 32;
            sinks.get(at as usize).map(|(_, sink)| *sink)
        }
        Route::Nowhere | Route::Worker(_) => None,
    }
}

fn flow_hash(key: &FlowKey) -> u64 {
    // Addresses and ports; not the ingress port and not what changes from frame to frame.
    const WORDS: [usize; 8] = [1, 2, 3, 4, 7, 8, 9, 10];
    WORDS.iter().fold(0, |hash: u64, word| {
        (hash.rotate_left(23) ^ key.words()[*word]).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}

/// What a worker needs to send frames besides its ports.
pub(crate) struct Outlet {
    pub(crate) peers: super::Peers,
    pub(crate) packet_ins: PacketInSender,
    /// Targets that got something since their last publish.
    pub(crate) dirty: Vec<usize>,
    /// A frame whose offload is done in software.
    pub(crate) scratch: Box<[u8]>,
}

impl Outlet {
    /// The way out for frames of the port that `source` counts; each sets its own payload, length and offload.
    #[inline]
    pub(crate) fn egress<'a>(
        &'a mut self,
        io: &'a mut Io,
        sinks: &'a mut [Option<Sink>],
        routes: &'a [Route],
        source: Option<&'a PortCells>,
    ) -> Egress<'a> {
        Egress {
            incoming: Incoming { payload: Payload::Bytes(&[]), bytes: 0, offload: &Offload::NONE },
            targets: Targets { io, sinks, routes, outlet: self, source, last: usize::MAX },
        }
    }
}

/// A frame as it came in.
pub(crate) struct Incoming<'a> {
    /// Everything behind the header copy.
    pub(crate) payload: Payload<'a>,
    /// Bytes of all of it.
    pub(crate) bytes: usize,
    /// What was left undone.
    pub(crate) offload: &'a Offload,
}

impl Incoming<'_> {
    /// The frame with `header`; `offload` says what is left undone of it now.
    #[inline]
    fn frame<'f>(&'f self, header: &'f Header, offload: &'f Offload) -> Frame<'f> {
        let payload_bytes = self.bytes - header.consumed();
        Frame { head: header.bytes(), payload: &self.payload, payload_bytes, offload }
    }

    /// What is left undone of it with `header`, whose edits may have moved what the sender pointed at.
    fn offload(&self, header: &Header) -> Offload {
        self.offload.moved(header.grown())
    }
}

/// The way out for the frame at hand.
pub(crate) struct Egress<'a> {
    pub(crate) incoming: Incoming<'a>,
    pub(crate) targets: Targets<'a>,
}

/// Where frames of one port can go.
pub(crate) struct Targets<'a> {
    io: &'a mut Io,
    pub(crate) sinks: &'a mut [Option<Sink>],
    pub(crate) routes: &'a [Route],
    outlet: &'a mut Outlet,
    /// Counters of the port they came from.
    pub(crate) source: Option<&'a PortCells>,
    /// The sink that got the last frame.
    pub(crate) last: usize,
}

impl Targets<'_> {
    #[cold]
    fn hand_over(&mut self, worker: usize, port: PortNo, frame: &Frame<'_>) {
        let sent = self
            .outlet
            .peers
            .to
            .get_mut(worker)
            .and_then(Option::as_mut)
            .is_some_and(|to: &mut ToWorker| to.send(port, frame));
        if !sent {
            self.count_drop(DropReason::RingFull);
        }
    }

    #[inline(always)]
    fn deliver(&mut self, port: PortNo, frame: &Frame<'_>) {
        let Some(route) = self.routes.get(port.0 as usize) else {
            return self.count_drop(DropReason::LinkDown);
        };
        let index = match route {
            Route::Sink(index) => *index,
            Route::Worker(worker) => return self.hand_over(*worker, port, frame),
            route => match sink_for(route, frame.head) {
                Some(index) => index,
                None => return self.count_drop(DropReason::LinkDown),
            },
        };
        let Some(sink) = &mut self.sinks[index] else { return };
        self.last = index;
        if !std::mem::replace(&mut sink.dirty, true) {
            self.outlet.dirty.push(index);
        }
        sink.deliver(frame, &mut self.outlet.scratch, self.io);
    }

    fn count_drop(&self, reason: DropReason) {
        if let Some(source) = self.source {
            if at_target(reason) { source.tx_drop(reason) } else { source.rx_drop(reason) }
        }
    }
}

impl Egress<'_> {
    /// The frame with `header`, in memory of its own: for who looks, never for who forwards.
    #[cold]
    pub(crate) fn to_vec(&self, header: &Header) -> Vec<u8> {
        self.incoming.frame(header, self.incoming.offload).to_vec()
    }

    /// Sends a frame that edits made longer or shorter.
    #[inline(never)]
    fn send_resized(&mut self, port: PortNo, header: &Header) {
        let offload = self.incoming.offload(header);
        let frame = self.incoming.frame(header, &offload);
        if header.grown() > 0 || frame.bytes() >= WIRE_BYTES_MIN {
            return self.targets.deliver(port, &frame);
        }
        // What was long enough for a wire until something was popped is so again.
        let mut bytes = [0; WIRE_BYTES_MIN];
        frame.linearise(&mut bytes);
        let length = self.incoming.bytes.clamp(frame.bytes(), WIRE_BYTES_MIN);
        self.targets.deliver(port, &Frame::of(&bytes[..length], &offload));
    }
}

impl forwarder::Egress for Egress<'_> {
    #[inline]
    fn send(&mut self, port: PortNo, header: &Header) {
        if header.grown() != 0 {
            return self.send_resized(port, header);
        }
        let frame = self.incoming.frame(header, self.incoming.offload);
        self.targets.deliver(port, &frame);
    }

    #[cold]
    fn packet_in(&mut self, mut packet_in: PacketIn, max_len: u16, header: &Header) {
        let offload = self.incoming.offload(header);
        let frame = self.incoming.frame(header, &offload);
        let (total, came) = (frame.bytes(), self.incoming.bytes);
        let whole = frame.linearise(&mut self.targets.outlet.scratch);
        if let Some(partial) = offload.partial
            && offload.gso.is_none()
        {
            complete_checksum(whole, partial);
        }
        let mut bytes = whole.to_vec();
        if bytes.len() < came {
            // What was popped made it shorter than a wire would carry it.
            bytes.resize(total.max(WIRE_BYTES_MIN.min(came)), 0);
        }
        packet_in.total_len = bytes.len().min(u16::MAX.into()) as u16;
        if max_len != u16::MAX {
            bytes.truncate(max_len.into());
        }
        packet_in.frame = bytes.into();
        if !self.targets.outlet.packet_ins.send(packet_in) {
            self.targets.count_drop(DropReason::PacketInLimit);
        }
    }

    fn frame_bytes(&self, header: &Header) -> usize {
        self.incoming.bytes.saturating_add_signed(header.grown())
    }

    fn dropped(&mut self, reason: DropReason) {
        self.targets.count_drop(reason);
    }
}

/// Delivers a frame that another worker decided on.
pub(crate) fn deliver_handed(
    handed: &Handed,
    sinks: &mut [Option<Sink>],
    routes: &[Route],
    dirty: &mut Vec<usize>,
    scratch: &mut [u8],
    io: &mut Io,
) {
    let route = routes.get(handed.port.0 as usize).unwrap_or(&Route::Nowhere);
    let Some(index) = sink_for(route, handed.bytes()) else { return };
    let Some(sink) = &mut sinks[index] else { return };
    if !std::mem::replace(&mut sink.dirty, true) {
        dirty.push(index);
    }
    sink.deliver(&Frame::of(handed.bytes(), &handed.offload), scratch, io);
}
