//! A guest's receive ring: where frames for it are written.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use reactor::Io;
use vhost_session::FrontendHandle;
use virtq::{Chain, GuestMemory, GuestSlice, Lone, Queue, RingFault, Window};

use crate::model::DropReason;
use crate::port::device::DriverFeatures;
use crate::port::offload::{Accepts, NET_HEADER_BYTES};
use crate::worker::frame::Frame;

/// Buffers that are taken from the ring ahead of the frames: enough for the largest frame in buffers of 512 bytes.
const READY_MAX: usize = 128;
/// Buffers taken at once.
const REFILL: usize = 32;
const CACHE_LINE: u32 = 64;

/// One receive buffer, popped and translated.
#[derive(Clone, Copy, Default)]
struct Ready {
    /// The buffer, if it is in one piece.
    slice: GuestSlice,
    /// Bytes it holds.
    bytes: u32,
    head: u16,
    /// In several pieces: walked again when it is used.
    pieces: bool,
}

/// One receive ring of a guest.
pub(crate) struct GuestSink {
    queue: Queue,
    memory: Arc<GuestMemory>,
    call: Option<OwnedFd>,
    err: Option<OwnedFd>,
    frontend: Option<FrontendHandle>,
    header_bytes: usize,
    merge: bool,
    accepts: Accepts,
    ready: Box<[Ready; READY_MAX]>,
    // Buffers are numbered as they are popped, and each is at its number in `ready`. One number moves for each frame, and no
    // other beside it: those that move together are loaded together, which waits when one of them was just stored.
    /// The first that is full and not yet in the used ring, what was written to it being its length.
    full: usize,
    /// The first that is free.
    next: usize,
    /// The first that is not translated yet.
    end: usize,
    /// The first that the CPU was not asked for yet, if it is not below `next`.
    asked: usize,
    /// Heads that come after those: popped, not yet translated, so that nobody waits for their descriptors.
    popped: [u16; REFILL],
    popped_count: usize,
    /// Heads a killed predecessor left in flight, oldest last.
    leftover: Vec<u16>,
    chain: Chain,
    fault: Option<RingFault>,
    fault_told: bool,
}

impl GuestSink {
    pub(crate) fn new(
        mut queue: Queue,
        call: Option<OwnedFd>,
        err: Option<OwnedFd>,
        frontend: Option<FrontendHandle>,
        features: &DriverFeatures,
    ) -> GuestSink {
        let mut leftover = queue.resubmit();
        leftover.reverse();
        // Buffers are looked for when a frame comes, never waited for.
        queue.disarm();
        GuestSink {
            memory: queue.memory().clone(),
            chain: Chain::new(queue.size()),
            queue,
            call,
            err,
            frontend,
            header_bytes: features.header_bytes,
            merge: features.merge_rx,
            accepts: features.guest_accepts,
            ready: Box::new([Ready::default(); READY_MAX]),
            full: 0,
            next: 0,
            end: 0,
            popped: [0; REFILL],
            popped_count: 0,
            asked: 0,
            leftover,
            fault: None,
            fault_told: false,
        }
    }

    pub(crate) fn accepts(&self) -> Accepts {
        self.accepts
    }

    pub(crate) fn set_call(&mut self, call: Option<OwnedFd>) {
        self.call = call;
    }

    /// Ends the use of the ring: what was taken ahead goes back.
    pub(crate) fn into_queue(mut self) -> Queue {
        self.flush();
        self.queue.publish();
        let taken = self.queue.in_flight();
        self.queue.undo_pop(taken);
        self.queue
    }

    #[inline]
    fn at(&self, number: usize) -> Ready {
        self.ready[number % READY_MAX]
    }

    #[cold]
    fn broken(&mut self, fault: RingFault) {
        self.fault.get_or_insert(fault);
    }

    /// Takes more buffers from the ring, as many as a burst needs.
    fn refill(&mut self) {
        self.pop();
        self.translate();
    }

    /// Pops heads, unless there are some that are not translated yet, and asks the CPU for their descriptors.
    fn pop(&mut self) {
        if self.fault.is_some() || self.popped_count > 0 {
            return;
        }
        while self.popped_count < REFILL
            && let Some(head) = self.leftover.pop()
        {
            self.popped[self.popped_count] = head;
            self.popped_count += 1;
        }
        if self.popped_count == 0 {
            match self.queue.pop_batch(&mut self.popped) {
                Ok(popped) => self.popped_count = popped,
                Err(fault) => self.broken(fault),
            }
        }
    }

    /// Makes the popped heads ready, as many as there is room for.
    fn translate(&mut self) {
        if self.fault.is_some() {
            return;
        }
        if READY_MAX - (self.end - self.full) < self.popped_count {
            self.flush();
        }
        let room = self.popped_count.min(READY_MAX - (self.end - self.full));
        for at in 0..room {
            let head = self.popped[at];
            let place = &mut self.ready[self.end % READY_MAX];
            place.head = head;
            match self.queue.walk_lone(head, &mut self.chain) {
                Ok(Some(Lone { slice, writable })) => {
                    place.slice = slice;
                    place.bytes = if writable { slice.len() } else { 0 };
                    place.pieces = !writable;
                }
                Ok(None) => {
                    let writable = self.chain.writable();
                    place.slice = writable.first().copied().unwrap_or_default();
                    place.bytes = self.chain.writable_bytes() as u32;
                    place.pieces = writable.len() != 1;
                }
                Err(fault) => return self.broken(fault),
            }
            self.end += 1;
        }
        self.popped.copy_within(room..self.popped_count, 0);
        self.popped_count -= room;
    }

    /// Asks the CPU for the buffers that the next `frames` frames will most likely go to.
    #[inline]
    pub(crate) fn expect(&mut self, frames: usize) {
        // Not earlier: the driver, which reads what it was given last, would fetch them back.
        self.queue.prefetch_used(frames);
        self.prepare(frames);
    }

    /// [`GuestSink::expect`] before anything is known of them.
    fn prepare(&mut self, frames: usize) {
        if self.end - self.next < frames {
            self.refill();
        }
        let end = self.end.min(self.next + frames);
        for number in self.asked.max(self.next)..end {
            let ready = self.at(number);
            if !ready.pieces {
                let window = self.memory.window(ready.slice);
                // The net header is seldom written, the frame always; two lines are a header, and its payload comes by
                // itself.
                window.prefetch(0);
                window.prefetch_write(CACHE_LINE);
                window.prefetch_write(2 * CACHE_LINE);
            }
        }
        self.asked = self.asked.max(end);
    }

    /// Writes a frame whose offload the guest takes. It is seen after [`GuestSink::publish`].
    #[inline]
    pub(crate) fn deliver(&mut self, frame: &Frame<'_>) -> Result<(), DropReason> {
        if self.next == self.end {
            self.refill();
            if self.next == self.end {
                return Err(DropReason::RingFull);
            }
        }
        let need = self.header_bytes + frame.bytes();
        let ready = self.at(self.next);
        if ready.pieces || (ready.bytes as usize) < need {
            return self.deliver_in_pieces(frame, need);
        }
        let window = self.memory.window(ready.slice);
        let net_header = frame.offload.emit(self.accepts, 1);
        if self.header_bytes == NET_HEADER_BYTES {
            // Nearly always the same as last time.
            window.write_changed(0, &net_header);
        } else {
            window.write(0, &net_header[..self.header_bytes]);
        }
        window.write(self.header_bytes as u32, frame.head);
        if frame.payload_bytes > 0 {
            frame.copy_payload(0, frame.payload_bytes, window, (self.header_bytes + frame.head.len()) as u32);
        }
        if self.queue.logs_writes() {
            self.queue.log_written(ready.slice, 0, need as u32);
        }
        self.used(need as u32);
        Ok(())
    }

    /// The next buffer is full, of `written` bytes.
    #[inline]
    fn used(&mut self, written: u32) {
        self.ready[self.next % READY_MAX].bytes = written;
        self.next += 1;
    }

    /// Gives the full buffers to the used ring.
    #[inline]
    fn flush(&mut self) {
        for number in self.full..self.next {
            let Ready { head, bytes, .. } = self.at(number);
            self.queue.push_used(head, bytes);
        }
        self.full = self.next;
    }

    /// Writes a frame over several buffers, or into one that is in pieces.
    #[cold]
    fn deliver_in_pieces(&mut self, frame: &Frame<'_>, need: usize) -> Result<(), DropReason> {
        while self.next < self.end && self.at(self.next).bytes == 0 {
            // A chain that nothing can be written to: given back as it is.
            self.used(0);
        }
        let buffers = self.buffers_for(need)?;
        let net_header = frame.offload.emit(self.accepts, buffers as u16);
        let net_header = &net_header[..self.header_bytes];
        let mut done = 0;
        for _ in 0..buffers {
            let ready = self.at(self.next);
            let before = done;
            if ready.pieces {
                if let Err(fault) = self.queue.walk(ready.head, &mut self.chain) {
                    self.broken(fault);
                    return Err(DropReason::RingFull);
                }
                for &slice in self.chain.writable() {
                    done += fill(self.memory.window(slice), net_header, frame, done, need);
                }
                for &slice in self.chain.writable() {
                    self.queue.log_written(slice, 0, slice.len());
                }
            } else {
                done += fill(self.memory.window(ready.slice), net_header, frame, done, need);
                self.queue.log_written(ready.slice, 0, (done - before) as u32);
            }
            self.used((done - before) as u32);
        }
        Ok(())
    }

    /// How many of the ready buffers `need` bytes take.
    fn buffers_for(&mut self, need: usize) -> Result<usize, DropReason> {
        let mut room = 0;
        for index in 0..READY_MAX {
            let number = self.next + index;
            if number == self.end {
                self.refill();
                if number == self.end {
                    return Err(DropReason::RingFull);
                }
            }
            room += self.at(number).bytes as usize;
            if room >= need {
                return Ok(index + 1);
            }
            if !self.merge {
                break;
            }
        }
        Err(DropReason::BufferTooSmall)
    }

    /// Shows what was delivered to the guest, by one signal at most. True if there was one.
    #[inline]
    pub(crate) fn publish(&mut self, io: &mut Io) -> bool {
        self.flush();
        let signal = self.queue.publish();
        if signal && let Some(call) = &self.call {
            io.signal(call.as_fd());
        }
        // While the driver looks at these, the lines of the next ones come.
        self.prepare(REFILL);
        self.pop();
        signal
    }

    /// Why the ring cannot be used any longer; told once.
    pub(crate) fn take_fault(&mut self, io: &mut Io) -> Option<RingFault> {
        let fault = self.fault.filter(|_| !std::mem::replace(&mut self.fault_told, true))?;
        if let Some(err) = &self.err {
            io.signal(err.as_fd());
        }
        Some(fault)
    }

    /// Whether the guest's memory went away under us; its session is closed then.
    pub(crate) fn check_memory(&self) {
        if self.queue.lost()
            && let Some(frontend) = &self.frontend
        {
            frontend.close("the guest's memory was cut short");
        }
    }
}

/// Writes as much of the stream (net header, frame) from byte `done` on as fits into `slice`; `need` bytes end it.
fn fill(window: Window<'_>, net_header: &[u8], frame: &Frame<'_>, done: usize, need: usize) -> usize {
    let room = (window.len() as usize).min(need - done);
    let (mut at, mut position) = (0, done);
    let mut base = 0;
    for lead in [net_header, frame.head] {
        if position < base + lead.len() && at < room {
            let part = &lead[position - base..];
            let part = &part[..part.len().min(room - at)];
            window.write(at as u32, part);
            at += part.len();
            position += part.len();
        }
        base += lead.len();
    }
    if at < room {
        frame.copy_payload(position - base, room - at, window, at as u32);
    }
    room
}
