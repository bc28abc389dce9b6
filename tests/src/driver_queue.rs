//! The driver's side of a split virtqueue, in memory shared with a backend.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::guest_ram::GuestRam;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// A buffer: guest address and bytes.
pub type Buffer = (u64, u32);

/// One ring with its eventfds. Buffers are the caller's; the queue knows only descriptors.
pub struct DriverQueue {
    ram: Arc<GuestRam>,
    size: u16,
    desc: u64,
    avail: u64,
    used: u64,
    /// One indirect table per head, if asked for.
    tables: Option<u64>,
    event_idx: bool,
    kick: EventFd,
    call: EventFd,
    avail_idx: u16,
    published: u16,
    used_idx: u16,
    free: Vec<u16>,
    /// Descriptors of the chain that begins at this head; empty: not in flight.
    chains: Vec<Vec<u16>>,
}

/// Longest chain in an indirect table.
const INDIRECT_MAX: usize = 256;

impl DriverQueue {
    /// A ring of `size` entries in `ram`.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new(ram: Arc<GuestRam>, size: u16, event_idx: bool) -> io::Result<Self> {
        let entries = usize::from(size);
        let eventfd = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        Ok(Self {
            desc: ram.alloc(16 * entries, 16),
            avail: ram.alloc(6 + 2 * entries, 2),
            used: ram.alloc(6 + 8 * entries, 4),
            tables: None,
            ram,
            size,
            event_idx,
            kick: eventfd()?,
            call: eventfd()?,
            avail_idx: 0,
            published: 0,
            used_idx: 0,
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); entries],
        })
    }

    /// Sends every chain as one descriptor that points to a table.
    #[must_use]
    pub fn with_indirect(mut self) -> Self {
        self.tables = Some(self.ram.alloc(usize::from(self.size) * INDIRECT_MAX * 16, 16));
        self
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The memory it lives in.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Guest addresses of descriptor table, available and used ring.
    pub fn addresses(&self) -> [u64; 3] {
        [self.desc, self.avail, self.used]
    }

    /// The eventfd we signal.
    pub fn kick_fd(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// The eventfd the backend signals.
    pub fn call_fd(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }

    /// Takes new eventfds, as a frontend does when interrupts are re-routed.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn renew_eventfds(&mut self) -> io::Result<()> {
        self.kick = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        self.call = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(())
    }

    /// Starts from nothing, as a driver does after a reset of the device.
    pub fn reset(&mut self) {
        self.ram.write(self.avail, &vec![0; 6 + 2 * usize::from(self.size)]);
        self.ram.write(self.used, &vec![0; 6 + 8 * usize::from(self.size)]);
        (self.avail_idx, self.published, self.used_idx) = (0, 0, 0);
        self.free = (0..self.size).rev().collect();
        self.chains.iter_mut().for_each(Vec::clear);
    }

    /// Used index as the device has published it: where a frontend lets a new backend begin.
    pub fn device_used_idx(&self) -> u16 {
        self.ram.load(self.used + 2)
    }

    /// Chains made available and not yet seen used.
    pub fn in_flight(&self) -> u16 {
        self.avail_idx.wrapping_sub(self.used_idx)
    }

    /// Descriptors that are free.
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// Puts a chain into the available ring (not yet published) and returns its head; `None`: no descriptors left.
    pub fn add(&mut self, readable: &[Buffer], writable: &[Buffer]) -> Option<u16> {
        let parts: Vec<(Buffer, u16)> = readable
            .iter()
            .map(|&buffer| (buffer, 0))
            .chain(writable.iter().map(|&buffer| (buffer, WRITE)))
            .collect();
        let needed = if self.tables.is_some() { 1 } else { parts.len() };
        if needed == 0 || needed > self.free.len() {
            return None;
        }
        let slots: Vec<u16> = self.free.split_off(self.free.len() - needed);
        let head = slots[0];
        if let Some(tables) = self.tables {
            assert!(parts.len() <= INDIRECT_MAX, "the table of a chain holds {INDIRECT_MAX}");
            let table = tables + u64::from(head) * INDIRECT_MAX as u64 * 16;
            for (index, &(buffer, flags)) in parts.iter().enumerate() {
                let next = (index + 1 < parts.len()).then_some(index as u16 + 1);
                self.write_descriptor(table + index as u64 * 16, buffer, flags, next);
            }
            self.write_descriptor(
                self.desc + u64::from(head) * 16,
                (table, parts.len() as u32 * 16),
                INDIRECT,
                None,
            );
        } else {
            for (index, &(buffer, flags)) in parts.iter().enumerate() {
                let next = slots.get(index + 1).copied();
                self.write_descriptor(self.desc + u64::from(slots[index]) * 16, buffer, flags, next);
            }
        }
        self.chains[usize::from(head)] = slots;
        self.add_head(head);
        Some(head)
    }

    /// Puts any number into the available ring, also one that makes no sense.
    pub fn add_head(&mut self, head: u16) {
        let slot = self.avail_idx % self.size;
        self.ram.store(self.avail + 4 + 2 * u64::from(slot), head);
        self.avail_idx = self.avail_idx.wrapping_add(1);
    }

    /// Writes one descriptor.
    pub fn write_descriptor(&self, at: u64, (addr, len): Buffer, flags: u16, next: Option<u16>) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        let flags = flags | if next.is_some() { NEXT } else { 0 };
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.unwrap_or(0).to_le_bytes());
        self.ram.write(at, &bytes);
    }

    /// Publishes what was added and kicks if the device asks for it. Returns whether it kicked.
    pub fn publish(&mut self) -> bool {
        let old = std::mem::replace(&mut self.published, self.avail_idx);
        self.ram.store(self.avail + 2, self.avail_idx);
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = self.ram.load(self.used + 4 + 8 * u64::from(self.size));
            self.avail_idx.wrapping_sub(event).wrapping_sub(1) < self.avail_idx.wrapping_sub(old)
        } else {
            self.ram.load(self.used) & NO_NOTIFY == 0
        };
        if wanted && old != self.avail_idx {
            self.kick();
            return true;
        }
        false
    }

    /// Kicks, whether the device wants it or not.
    pub fn kick(&self) {
        self.kick.write(1).expect("an eventfd far from its maximum");
    }

    /// The next used chain, if there is one: head and bytes written. Its descriptors are free again.
    ///
    /// # Panics
    /// The device used a head that is not in flight: a request done twice, or never made.
    pub fn poll_used(&mut self) -> Option<(u16, u32)> {
        if self.ram.load(self.used + 2) == self.used_idx {
            return None;
        }
        let slot = u64::from(self.used_idx % self.size);
        let element = self.ram.bytes(self.used + 4 + 8 * slot, 8);
        let id = u32::from_le_bytes([element[0], element[1], element[2], element[3]]);
        let written = u32::from_le_bytes([element[4], element[5], element[6], element[7]]);
        let head =
            u16::try_from(id).ok().filter(|&head| head < self.size).expect("used element names a descriptor");
        let chain = std::mem::take(&mut self.chains[usize::from(head)]);
        assert!(!chain.is_empty(), "descriptor {head} was used without being in flight");
        self.free.extend(chain);
        self.used_idx = self.used_idx.wrapping_add(1);
        Some((head, written))
    }

    /// Asks for a call with the next used chain. True: there is one already.
    pub fn arm(&mut self) -> bool {
        if self.event_idx {
            self.ram.store(self.avail + 4 + 2 * u64::from(self.size), self.used_idx);
        } else {
            self.ram.store(self.avail, 0);
        }
        fence(Ordering::SeqCst);
        self.ram.load(self.used + 2) != self.used_idx
    }

    /// No calls, please.
    pub fn disarm(&mut self) {
        if !self.event_idx {
            self.ram.store(self.avail, NO_INTERRUPT);
        }
    }

    /// The next used chain, asleep on the call eventfd until there is one. `None`: nothing within `patience`.
    pub fn wait_used(&mut self, patience: Duration) -> Option<(u16, u32)> {
        let until = Instant::now() + patience;
        loop {
            if let Some(used) = self.poll_used() {
                return Some(used);
            }
            if !self.arm() && !self.wait_call(until.saturating_duration_since(Instant::now())) {
                return self.poll_used();
            }
        }
    }

    /// Sleeps until the device has called, and takes the call. False: it has not within `patience`.
    pub fn wait_call(&self, patience: Duration) -> bool {
        let timeout =
            PollTimeout::try_from(patience.min(Duration::from_secs(3600))).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.call.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) => false,
            Ok(_) => self.call.read().is_ok(),
            // Interrupted by a signal: callers look again.
            Err(_) => true,
        }
    }
}

/// Sleeps until the device has called for any of the queues, and takes the calls. False: it has not within `patience`.
pub fn wait_any_call<'a>(queues: impl Iterator<Item = &'a DriverQueue> + Clone, patience: Duration) -> bool {
    let mut fds: Vec<_> =
        queues.clone().map(|queue| PollFd::new(queue.call_fd(), PollFlags::POLLIN)).collect();
    let timeout = PollTimeout::try_from(patience.min(Duration::from_secs(3600))).unwrap_or(PollTimeout::MAX);
    let ready = poll(&mut fds, timeout) != Ok(0);
    for queue in queues {
        queue.wait_call(Duration::ZERO);
    }
    ready
}
