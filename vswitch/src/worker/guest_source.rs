//! A guest's transmit ring: where its frames are taken from, a burst at a time.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use packet::{HEADER_BYTES_MAX, Header};
use reactor::Io;
use vhost_session::FrontendHandle;
use virtq::{Chain, GuestMemory, GuestSlice, Lone, Queue, RingFault};

use crate::model::DropReason;
use crate::port::device::DriverFeatures;
use crate::port::offload::{Accepts, FRAME_BYTES_MAX, FRAME_BYTES_MIN, NET_HEADER_BYTES_LEGACY, Offload};
use crate::worker::frame::read_at;

const CACHE_LINE: u32 = 64;
/// The net header of a frame with nothing left undone.
const NOTHING_SAID: [u8; NET_HEADER_BYTES_LEGACY] = [0; NET_HEADER_BYTES_LEGACY];

/// How much of a frame is copied: an offload's fields must lie in the copy wherever they are.
#[inline]
fn reach(net_header: &[u8; NET_HEADER_BYTES_LEGACY], limit: usize) -> usize {
    if Offload::claimed(net_header) { HEADER_BYTES_MAX } else { limit }
}

/// One transmit ring of a guest.
pub(crate) struct GuestSource {
    queue: Queue,
    memory: Arc<GuestMemory>,
    call: Option<OwnedFd>,
    err: Option<OwnedFd>,
    frontend: Option<FrontendHandle>,
    header_bytes: u64,
    allowed: Accepts,
    leftover: Vec<u16>,
    fault: Option<RingFault>,
    fault_told: bool,
}

/// A place for one chain.
pub(crate) struct Taken {
    /// The buffer of a chain that is nothing else; not readable if it is empty.
    lone: Option<GuestSlice>,
    /// Any other chain.
    chain: Chain,
}

impl Taken {
    /// An empty place.
    pub(crate) fn new() -> Taken {
        Taken { lone: None, chain: Chain::new(256) }
    }

    /// The readable buffers.
    #[inline]
    pub(crate) fn buffers(&self) -> &[GuestSlice] {
        match &self.lone {
            Some(slice) => std::slice::from_ref(slice),
            None => self.chain.readable(),
        }
    }
}

impl GuestSource {
    pub(crate) fn new(
        mut queue: Queue,
        call: Option<OwnedFd>,
        err: Option<OwnedFd>,
        frontend: Option<FrontendHandle>,
        features: &DriverFeatures,
    ) -> GuestSource {
        let mut leftover = queue.resubmit();
        leftover.reverse();
        queue.disarm();
        GuestSource {
            memory: queue.memory().clone(),
            queue,
            call,
            err,
            frontend,
            header_bytes: features.header_bytes as u64,
            allowed: features.host_accepts,
            leftover,
            fault: None,
            fault_told: false,
        }
    }

    pub(crate) fn set_call(&mut self, call: Option<OwnedFd>) {
        self.call = call;
    }

    pub(crate) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Where the frame begins among the readable bytes of a chain.
    #[inline]
    pub(crate) fn frame_offset(&self) -> u64 {
        self.header_bytes
    }

    pub(crate) fn into_queue(mut self) -> Queue {
        self.queue.publish();
        let taken = self.queue.in_flight();
        self.queue.undo_pop(taken);
        self.queue
    }

    /// Takes up to `heads.len()` chains, translates them and asks the CPU for the frames' first lines.
    #[inline]
    pub(crate) fn take(&mut self, heads: &mut [u16], places: &mut [Taken]) -> usize {
        if self.fault.is_some() {
            return 0;
        }
        let taken = if self.leftover.is_empty() {
            match self.queue.pop_batch(heads) {
                Ok(taken) => taken,
                Err(fault) => {
                    self.fault = Some(fault);
                    return 0;
                }
            }
        } else {
            let rest = self.leftover.len().saturating_sub(heads.len());
            let mut taken = 0;
            for head in self.leftover.drain(rest..).rev() {
                heads[taken] = head;
                taken += 1;
            }
            taken
        };
        for (at, (&head, place)) in heads[..taken].iter().zip(places).enumerate() {
            match self.queue.walk_lone(head, &mut place.chain) {
                Ok(Some(Lone { slice, writable })) => {
                    // Drivers put the net header right in front of the frame: the first line may hold little else.
                    let window = self.memory.window(slice);
                    window.prefetch(0);
                    window.prefetch(CACHE_LINE);
                    // The rest of what is copied as the header of a longer one.
                    window.prefetch(2 * CACHE_LINE);
                    // Nothing to be read where the device may write.
                    place.lone = Some(if writable { GuestSlice::default() } else { slice });
                }
                Ok(None) => {
                    place.lone = None;
                    for &buffer in place.chain.readable().iter().take(2) {
                        self.memory.window(buffer).prefetch(0);
                    }
                }
                Err(fault) => {
                    self.fault = Some(fault);
                    return at;
                }
            }
        }
        taken
    }

    /// Copies net header and frame header, `limit` bytes of it at most, out of a chain and checks them; returns the length
    /// of the frame.
    #[inline]
    pub(crate) fn load(
        &self,
        buffers: &[GuestSlice],
        header: &mut Header,
        limit: usize,
        offload: &mut Offload,
    ) -> Result<u32, DropReason> {
        let all: u64 = buffers.iter().map(|buffer| u64::from(buffer.len())).sum();
        let bytes = all.saturating_sub(self.header_bytes);
        if bytes < FRAME_BYTES_MIN as u64 {
            return Err(DropReason::TooShort);
        }
        if bytes > FRAME_BYTES_MAX as u64 {
            return Err(DropReason::TooLong);
        }
        let bytes = bytes as usize;
        // What a driver says there without having agreed on anything means nothing, and a line less is read.
        let says = self.allowed != Accepts::default();
        let net_header = match buffers {
            // One buffer, or net header and frame in one each: nearly all drivers.
            [only] => {
                let window = self.memory.window(*only);
                let net_header = if says { window.read_array(0) } else { NOTHING_SAID };
                header.load_up_to(reach(&net_header, limit), bytes, |to| {
                    window.read(self.header_bytes as u32, to);
                });
                if bytes > limit {
                    // Where its payload begins: the CPU sees by itself how that goes on.
                    window.prefetch(self.header_bytes as u32 + limit as u32);
                }
                net_header
            }
            [first, second] if u64::from(first.len()) == self.header_bytes => {
                let net_header = if says { self.memory.window(*first).read_array(0) } else { NOTHING_SAID };
                header.load_up_to(reach(&net_header, limit), bytes, |to| self.memory.read(*second, 0, to));
                net_header
            }
            buffers => {
                let mut net_header = NOTHING_SAID;
                if says {
                    read_at(&self.memory, buffers, 0, &mut net_header);
                }
                header.load(bytes, |to| read_at(&self.memory, buffers, self.header_bytes, to));
                net_header
            }
        };
        offload.parse_into(&net_header, self.allowed, header.bytes(), bytes)?;
        header.set_partial_checksum(offload.partial.is_some());
        Ok(bytes as u32)
    }

    /// Gives the chains back; all frames were copied.
    #[inline]
    pub(crate) fn finish(&mut self, heads: &[u16], io: &mut Io) -> bool {
        for &head in heads {
            self.queue.push_used(head, 0);
        }
        if !self.queue.publish() {
            return false;
        }
        if let Some(call) = &self.call {
            io.signal(call.as_fd());
        }
        true
    }

    /// Asks for kicks. True if there is work already.
    pub(crate) fn arm(&mut self) -> bool {
        self.fault.is_none() && (self.queue.arm() || !self.leftover.is_empty())
    }

    pub(crate) fn disarm(&mut self) {
        self.queue.disarm();
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
