//! A guest's control queue.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use reactor::Io;
use virtq::{Chain, Queue, RingFault};

use crate::port::control_queue::{COMMAND_BYTES_MAX, Command, parse};
use crate::port::device::Device;

/// Commands carried out in one pass.
const BATCH: usize = 8;
const OK: u8 = 0;
const ERR: u8 = 1;

/// The control queue of one frontend.
pub(crate) struct ControlSource {
    queue: Queue,
    call: Option<OwnedFd>,
    chain: Chain,
    device: Arc<Device>,
    active_pairs: Arc<AtomicU16>,
    broken: bool,
    bytes: Vec<u8>,
}

impl ControlSource {
    pub(crate) fn new(
        mut queue: Queue,
        call: Option<OwnedFd>,
        device: Arc<Device>,
        active_pairs: Arc<AtomicU16>,
    ) -> ControlSource {
        // Commands of a killed predecessor: their outcome is unknown, so they fail.
        for head in queue.resubmit() {
            queue.push_used(head, 0);
        }
        queue.publish();
        let chain = Chain::new(queue.size());
        let bytes = Vec::with_capacity(COMMAND_BYTES_MAX);
        ControlSource { queue, call, chain, device, active_pairs, broken: false, bytes }
    }

    pub(crate) fn into_queue(mut self) -> Queue {
        let taken = self.queue.in_flight();
        self.queue.undo_pop(taken);
        self.queue
    }

    pub(crate) fn set_call(&mut self, call: Option<OwnedFd>) {
        self.call = call;
    }

    pub(crate) fn arm(&mut self) -> bool {
        !self.broken && self.queue.arm()
    }

    pub(crate) fn disarm(&mut self) {
        self.queue.disarm();
    }

    /// Carries out what waits. True if there was anything.
    pub(crate) fn poll(&mut self, io: &mut Io) -> bool {
        if self.broken {
            return false;
        }
        let mut heads = [0; BATCH];
        let taken = match self.queue.pop_batch(&mut heads) {
            Ok(taken) => taken,
            Err(fault) => return self.stop(&fault),
        };
        for &head in &heads[..taken] {
            if let Err(fault) = self.queue.walk(head, &mut self.chain) {
                return self.stop(&fault);
            }
            let written = self.command();
            self.queue.push_used(head, written);
        }
        if taken > 0
            && self.queue.publish()
            && let Some(call) = &self.call
        {
            io.signal(call.as_fd());
        }
        taken > 0
    }

    fn stop(&mut self, fault: &RingFault) -> bool {
        self.broken = true;
        tracing::warn!("a control queue is broken and stopped: {fault}");
        false
    }

    /// Carries out the command in `chain`; returns the bytes written.
    fn command(&mut self) -> u32 {
        let memory = self.queue.memory();
        let Some(status) = self.chain.last_writable_byte() else { return 0 };
        let length = self.chain.readable_bytes().min(COMMAND_BYTES_MAX as u64) as usize;
        self.bytes.resize(length, 0);
        self.chain.read_at(memory, 0, &mut self.bytes);
        let command = parse(&self.bytes, self.device.queue_pairs());
        if let Some(Command::QueuePairs(pairs)) = command {
            self.active_pairs.store(pairs, Ordering::Relaxed);
        }
        memory.write(status, 0, &[if command.is_some() { OK } else { ERR }]);
        self.queue.log_written(status, 0, 1);
        self.chain.writable_bytes() as u32
    }
}
