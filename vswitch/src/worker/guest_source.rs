//! A guest's transmit ring: where its frames are taken from, a burst at a time.

use std::os::fd::{AsFd as _, OwnedFd};

use packet::Header;
use reactor::Io;
use vhost_session::FrontendHandle;
use virtq::{Chain, Queue, RingFault};

use crate::model::DropReason;
use crate::port::device::DriverFeatures;
use crate::port::offload::{Accepts, FRAME_BYTES_MAX, FRAME_BYTES_MIN, NET_HEADER_BYTES_LEGACY, Offload};

/// One transmit ring of a guest.
pub(crate) struct GuestSource {
    queue: Queue,
    call: Option<OwnedFd>,
    err: Option<OwnedFd>,
    frontend: Option<FrontendHandle>,
    header_bytes: u64,
    allowed: Accepts,
    leftover: Vec<u16>,
    fault: Option<RingFault>,
    fault_told: bool,
}

/// What was found in one chain.
pub(crate) struct Received {
    pub(crate) bytes: u32,
    pub(crate) offload: Offload,
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

    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
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
    pub(crate) fn take(&mut self, heads: &mut [u16], chains: &mut [Chain]) -> usize {
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
        for (at, (&head, chain)) in heads[..taken].iter().zip(chains).enumerate() {
            if let Err(fault) = self.queue.walk(head, chain) {
                self.fault = Some(fault);
                return at;
            }
            if let Some(&first) = chain.readable().first() {
                self.queue.memory().prefetch(first);
            }
            if let Some(&second) = chain.readable().get(1) {
                self.queue.memory().prefetch(second);
            }
        }
        taken
    }

    /// Copies net header and frame header out of a chain and checks them.
    #[inline]
    pub(crate) fn load(&self, chain: &Chain, header: &mut Header) -> Result<Received, DropReason> {
        let memory = self.queue.memory();
        let bytes = chain.readable_bytes().saturating_sub(self.header_bytes);
        if bytes < FRAME_BYTES_MIN as u64 {
            return Err(DropReason::TooShort);
        }
        if bytes > FRAME_BYTES_MAX as u64 {
            return Err(DropReason::TooLong);
        }
        let bytes = bytes as usize;
        let mut net_header = [0; NET_HEADER_BYTES_LEGACY];
        match chain.readable() {
            // Of a known length where it can be: that is no call.
            [first, ..] if first.len() as usize >= NET_HEADER_BYTES_LEGACY => {
                memory.read(*first, 0, &mut net_header);
            }
            _ => {
                chain.read_at(memory, 0, &mut net_header);
            }
        }
        header.load(bytes, |to| match chain.readable() {
            // One descriptor, or net header and frame in one each: nearly all drivers.
            [only] => memory.read(*only, self.header_bytes as u32, to),
            [first, second] if u64::from(first.len()) == self.header_bytes => memory.read(*second, 0, to),
            _ => {
                chain.read_at(memory, self.header_bytes, to);
            }
        });
        let offload = Offload::parse(&net_header, self.allowed, header.bytes(), bytes)?;
        header.set_partial_checksum(offload.partial.is_some());
        Ok(Received { bytes: bytes as u32, offload })
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
