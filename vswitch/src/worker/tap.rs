//! Captures, as a worker sees them: the slow road that frames take while somebody looks.

use std::sync::Arc;

use packet::Header;
use virtq::GuestSlice;

use crate::capture::{Direction, Tap};
use crate::forwarder::{self, Forwarder, VerdictId};
use crate::model::{DropReason, PacketIn, PacketOut, PortNo};
use crate::worker::egress::{Egress, Route, Sink};
use crate::worker::frame::read_at;
use crate::worker::guest_source::GuestSource;

/// The captures that are going on.
#[derive(Default)]
pub(crate) struct Taps(Vec<Arc<Tap>>);

impl Taps {
    /// Whether there is any.
    #[inline]
    pub(crate) fn active(&self) -> bool {
        !self.0.is_empty()
    }

    pub(crate) fn add(&mut self, tap: Arc<Tap>) {
        self.0.push(tap);
    }

    pub(crate) fn remove(&mut self, id: u64) {
        self.0.retain(|tap| tap.id != id);
    }

    fn wants(&self, port: PortNo) -> bool {
        self.0.iter().any(|tap| tap.wants(port))
    }

    fn see(&self, port: PortNo, direction: Direction, frame: &[u8], drops: &[DropReason]) {
        for tap in self.0.iter().filter(|tap| tap.wants(port)) {
            tap.see(direction, frame, drops);
        }
    }

    /// As [`Forwarder::forward`], with every frame and drop shown to the captures.
    #[cold]
    pub(crate) fn forward(
        &self,
        forwarder: &Forwarder,
        verdict: VerdictId,
        in_port: PortNo,
        header: &mut Header,
        now_ms: u64,
        egress: &mut Egress<'_>,
    ) {
        let original = self.wants(in_port).then(|| egress.to_vec(header));
        let mut tapped = Tapped::new(self, egress);
        forwarder.forward(verdict, in_port, header, now_ms, &mut tapped);
        if let Some(original) = original {
            self.see(in_port, Direction::Rx, &original, &tapped.drops);
        }
        tapped.show();
    }

    /// As [`Forwarder::packet_out`], likewise.
    #[cold]
    pub(crate) fn packet_out(
        &self,
        forwarder: &Forwarder,
        packet: &PacketOut,
        header: &mut Header,
        now_ms: u64,
        egress: &mut Egress<'_>,
    ) {
        let mut tapped = Tapped::new(self, egress);
        forwarder.packet_out(packet, header, now_ms, &mut tapped);
        tapped.show();
    }

    /// A frame of a guest that is not even looked at.
    #[cold]
    pub(crate) fn refused(
        &self,
        source: &GuestSource,
        buffers: &[GuestSlice],
        port: PortNo,
        reason: DropReason,
    ) {
        if self.wants(port) {
            let total: u64 = buffers.iter().map(|buffer| u64::from(buffer.len())).sum();
            let bytes = total.saturating_sub(source.frame_offset()).min(u16::MAX.into());
            let mut frame = vec![0; bytes as usize];
            read_at(source.memory(), buffers, source.frame_offset(), &mut frame);
            self.see(port, Direction::Rx, &frame, &[reason]);
        }
    }

    /// A frame that was handed over by another worker; `deliver` delivers it.
    #[cold]
    pub(crate) fn deliver(
        &self,
        port: PortNo,
        frame: &[u8],
        sinks: &mut [Option<Sink>],
        deliver: impl FnOnce(&mut [Option<Sink>]),
    ) {
        let before = lengths(sinks);
        deliver(sinks);
        self.see(port, Direction::Tx, frame, &since(sinks, &before));
    }
}

/// How many drops each target counted since its last publish.
fn lengths(sinks: &[Option<Sink>]) -> Vec<usize> {
    sinks.iter().map(|sink| sink.as_ref().map_or(0, |sink| sink.drops().len())).collect()
}

/// The drops since then.
fn since(sinks: &[Option<Sink>], before: &[usize]) -> Vec<DropReason> {
    let new = |(sink, before): (&Option<Sink>, &usize)| {
        sink.as_ref().map_or_else(Vec::new, |sink| sink.drops()[*before..].to_vec())
    };
    sinks.iter().zip(before).flat_map(new).collect()
}

/// A way out that is watched.
struct Tapped<'t, 'e, 'a> {
    taps: &'t Taps,
    egress: &'e mut Egress<'a>,
    /// Why the frame, or copies of it, went nowhere.
    drops: Vec<DropReason>,
    /// What was sent to ports of interest.
    sent: Vec<(PortNo, Vec<u8>, Vec<DropReason>)>,
}

impl<'t, 'e, 'a> Tapped<'t, 'e, 'a> {
    fn new(taps: &'t Taps, egress: &'e mut Egress<'a>) -> Tapped<'t, 'e, 'a> {
        Tapped { taps, egress, drops: Vec::new(), sent: Vec::new() }
    }

    fn show(self) {
        for (port, frame, drops) in self.sent {
            self.taps.see(port, Direction::Tx, &frame, &drops);
        }
    }
}

impl forwarder::Egress for Tapped<'_, '_, '_> {
    fn send(&mut self, port: PortNo, header: &Header) {
        let frame = self.taps.wants(port).then(|| self.egress.to_vec(header));
        let before = lengths(self.egress.targets.sinks);
        let full = |egress: &Egress<'_>| {
            egress.targets.source.map_or(0, |source| source.tx_drops(DropReason::RingFull))
        };
        let full_before = full(self.egress);
        let route = self.egress.targets.routes.get(port.0 as usize);
        let (nowhere, elsewhere) =
            (matches!(route, None | Some(Route::Nowhere)), matches!(route, Some(Route::Worker(_))));
        self.egress.send(port, header);
        let mut drops = since(self.egress.targets.sinks, &before);
        if nowhere {
            drops.push(DropReason::LinkDown);
        } else if full(self.egress) > full_before {
            drops.push(DropReason::RingFull);
        }
        self.drops.extend(&drops);
        // What another worker delivers, it shows itself.
        if let Some(frame) = frame
            && (!elsewhere || !drops.is_empty())
        {
            self.sent.push((port, frame, drops));
        }
    }

    fn packet_in(&mut self, packet_in: PacketIn, max_len: u16, header: &Header) {
        self.egress.packet_in(packet_in, max_len, header);
    }

    fn frame_bytes(&self, header: &Header) -> usize {
        self.egress.frame_bytes(header)
    }

    fn dropped(&mut self, reason: DropReason) {
        self.drops.push(reason);
        self.egress.dropped(reason);
    }
}
