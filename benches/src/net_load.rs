//! Frames at a steady rate: two vhost-user frontends with rings of their own, one that sends and one or more that receive.
//!
//! A frame carries its number and its flow, so that a receiver can tell what was lost and what came out where it should
//! not. The sender sleeps between bursts: the processor it runs on is free for who controls the switch. No more frames are
//! on their way at once than half a ring holds, so none is lost because a receiver was late.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use nix::sys::time::TimeSpec;
use tests::driver_queue::DriverQueue;
use tests::frontend::{F_PROTOCOL, F_VERSION_1, Frontend, PATIENCE, Protocol};
use tests::guest_ram::GuestRam;
use tests::net_frontend::feature::MRG_RXBUF;

use crate::frames::{FRAME_BYTES, flow};

const ENTRIES: u16 = 1024;
/// Frames on their way at once. As many may be there that were sent and not shown in [`Shared::next`] yet: the sender
/// writes a burst, then tells.
pub const IN_FLIGHT_MAX: u64 = ENTRIES as u64 / 2;
/// Bytes of `struct virtio_net_hdr_v1`.
const HEADER_BYTES: u64 = 12;
const BUFFER_BYTES: usize = 256;
/// Where a frame's number and flow stand, behind Ethernet, IPv4 and UDP headers.
const MARK_AT: u64 = 42;
/// `VRING_USED_F_NO_NOTIFY`.
const NO_NOTIFY: u16 = 1;
/// How long the sender sleeps when nothing is due.
const NAP: Duration = Duration::from_micros(50);

/// A ring whose descriptor number n is buffer number n, for a device that uses buffers in order.
struct Ring {
    queue: DriverQueue,
    ram: Arc<GuestRam>,
    avail: u64,
    used: u64,
    buffers: u64,
    avail_idx: u16,
    used_idx: u16,
}

impl Ring {
    fn new(ram: &Arc<GuestRam>, receives: bool) -> std::io::Result<Ring> {
        let mut queue = DriverQueue::new(ram.clone(), ENTRIES, false)?;
        let buffers = ram.alloc(usize::from(ENTRIES) * BUFFER_BYTES, 64);
        for number in 0..u64::from(ENTRIES) {
            let at = buffers + number * BUFFER_BYTES as u64;
            let head = if receives {
                queue.add(&[], &[(at, BUFFER_BYTES as u32)])
            } else {
                queue.add(&[(at, HEADER_BYTES as u32 + FRAME_BYTES as u32)], &[])
            };
            assert_eq!(head.map(u64::from), Some(number), "descriptors are given out in order");
        }
        queue.disarm();
        let [_, avail, used] = queue.addresses();
        let avail_idx = if receives { ENTRIES } else { 0 };
        let ring = Ring { queue, ram: ram.clone(), avail, used, buffers, avail_idx, used_idx: 0 };
        ring.ram.store(avail + 2, avail_idx);
        Ok(ring)
    }

    fn buffer(&self, number: u16) -> u64 {
        self.buffers + u64::from(number % ENTRIES) * BUFFER_BYTES as u64
    }

    fn publish(&self) {
        self.ram.store(self.avail + 2, self.avail_idx);
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.ram.load(self.used) & NO_NOTIFY == 0 {
            self.queue.kick();
        }
    }
}

/// A connected frontend.
struct Port {
    /// Its end is the session's.
    _frontend: Frontend,
    rx: Ring,
    tx: Ring,
}

impl Port {
    fn connect(socket: &Path) -> anyhow::Result<Port> {
        let mut frontend = Frontend::connect_within(socket, PATIENCE)?;
        frontend.negotiate(F_PROTOCOL | F_VERSION_1 | MRG_RXBUF, Protocol::MQ | Protocol::REPLY_ACK)?;
        let ram = Arc::new(GuestRam::new(0, 1 << 20)?);
        frontend.set_mem_table(&[&ram])?;
        let port = Port { rx: Ring::new(&ram, true)?, tx: Ring::new(&ram, false)?, _frontend: frontend };
        port._frontend.start_queue(0, &port.rx.queue, 0)?;
        port._frontend.start_queue(1, &port.tx.queue, 0)?;
        port.rx.queue.kick();
        Ok(port)
    }

    /// Takes what arrived: number and flow of each frame.
    fn receive(&mut self, mut frame: impl FnMut(u64, u32)) -> u64 {
        let ring = &mut self.rx;
        let until = ring.ram.load(ring.used + 2);
        let mut taken = 0;
        while ring.used_idx != until {
            let mut element = [0; 8];
            ring.ram.read(ring.used + 4 + 8 * u64::from(ring.used_idx % ENTRIES), &mut element);
            let head = u16::from_le_bytes([element[0], element[1]]);
            let mut mark = [0; 12];
            ring.ram.read(ring.buffer(head) + HEADER_BYTES + MARK_AT, &mut mark);
            let (number, flow) = mark.split_at(8);
            frame(
                u64::from_le_bytes(number.try_into().unwrap_or_default()),
                u32::from_le_bytes(flow.try_into().unwrap_or_default()),
            );
            ring.ram.store(ring.avail + 4 + 2 * u64::from(ring.avail_idx % ENTRIES), head);
            ring.avail_idx = ring.avail_idx.wrapping_add(1);
            ring.used_idx = ring.used_idx.wrapping_add(1);
            taken += 1;
        }
        if taken > 0 {
            ring.publish();
        }
        taken
    }
}

/// What the sender and whoever watches share.
#[derive(Default)]
pub struct Shared {
    /// Number of the next frame.
    pub next: AtomicU64,
    /// Ends the load.
    pub stop: AtomicBool,
}

/// What became of the frames.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Outcome {
    /// Frames sent.
    pub sent: u64,
    /// Those that came out nowhere.
    pub lost: u64,
    /// Those that the caller's judge called wrong.
    pub wrong: u64,
    /// From the first frame to the last.
    pub seconds: f64,
    /// The longest time without any frame that arrived.
    pub longest_gap: Duration,
}

/// The sender at port 1 of a switch, and receivers.
pub struct Load {
    sender: Port,
    receivers: Vec<Port>,
    shared: Arc<Shared>,
}

impl Load {
    /// Connects to the ports: frames go in by the first socket.
    ///
    /// # Errors
    /// A port refuses.
    pub fn connect(sockets: &[&Path]) -> anyhow::Result<Load> {
        ensure!(sockets.len() >= 2, "a load needs a way in and a way out");
        let mut ports = sockets.iter().map(|socket| Port::connect(socket)).collect::<Result<Vec<_>, _>>()?;
        let receivers = ports.split_off(1);
        let sender = ports.remove(0);
        for number in 0..ENTRIES {
            let at = sender.tx.buffer(number);
            sender.tx.ram.write(at, &[0; HEADER_BYTES as usize]);
        }
        Ok(Load { sender, receivers, shared: Arc::default() })
    }

    /// What it shares with others.
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Sends `per_second` frames a second of `flows` flows in turn, until told to stop. `right(receiver, number, flow)`
    /// judges where each came out.
    pub fn run(
        &mut self,
        per_second: f64,
        flows: u32,
        mut right: impl FnMut(usize, u64, u32) -> bool,
    ) -> Outcome {
        let frames: Vec<_> = (0..flows).map(|number| flow(number).frame()).collect();
        let (start, mut heard) = (Instant::now(), Instant::now());
        let mut outcome = Outcome { sent: 0, lost: 0, wrong: 0, seconds: 0.0, longest_gap: Duration::ZERO };
        let mut arrived = 0;
        let mut stopped: Option<Instant> = None;
        loop {
            let mut taken = 0;
            for (at, receiver) in self.receivers.iter_mut().enumerate() {
                let wrong = &mut outcome.wrong;
                taken += receiver.receive(|number, flow| *wrong += u64::from(!right(at, number, flow)));
            }
            let now = Instant::now();
            if taken > 0 {
                outcome.longest_gap = outcome.longest_gap.max(now - heard);
                heard = now;
                arrived += taken;
            }
            if let Some(stopped) = stopped {
                // What is still on its way arrives in far less time, or never.
                if arrived == outcome.sent || now - stopped > Duration::from_secs(1) {
                    outcome.lost = outcome.sent - arrived;
                    return outcome;
                }
                continue;
            }
            let due = (now - start).as_secs_f64() * per_second;
            let room = IN_FLIGHT_MAX.saturating_sub(outcome.sent - arrived);
            let count = (due as u64).saturating_sub(outcome.sent).min(room);
            self.send(&frames, &mut outcome.sent, count);
            if self.shared.stop.load(Ordering::Relaxed) {
                outcome.seconds = (now - start).as_secs_f64();
                stopped = Some(now);
            } else if count == 0 {
                nap();
            }
        }
    }

    fn send(&mut self, frames: &[[u8; FRAME_BYTES]], sent: &mut u64, count: u64) {
        let ring = &mut self.sender.tx;
        for _ in 0..count {
            let flow = (*sent % frames.len() as u64) as u32;
            let at = ring.buffer(ring.avail_idx) + HEADER_BYTES;
            ring.ram.write(at, &frames[flow as usize]);
            ring.ram.write(at + MARK_AT, &sent.to_le_bytes());
            ring.ram.write(at + MARK_AT + 8, &flow.to_le_bytes());
            ring.avail_idx = ring.avail_idx.wrapping_add(1);
            *sent += 1;
        }
        if count > 0 {
            self.shared.next.store(*sent, Ordering::Release);
            ring.publish();
        }
    }
}

/// A short sleep; the kernel's slack for timers would double it.
fn nap() {
    let request = TimeSpec::from(NAP);
    // An interrupted sleep is as good.
    let _ = nix::time::clock_nanosleep(
        nix::time::ClockId::CLOCK_MONOTONIC,
        nix::time::ClockNanosleepFlags::empty(),
        &request,
    );
}
