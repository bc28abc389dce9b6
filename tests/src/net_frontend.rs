//! A virtio-net driver behind a vhost-user frontend: sends and receives frames through a switch port.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::driver_queue::{Buffer, DriverQueue, wait_any_call};
use crate::frontend::{
    F_EVENT_IDX, F_INDIRECT, F_PROTOCOL, F_VERSION_1, Frontend, PATIENCE, Protocol, Request,
};
use crate::guest_ram::GuestRam;

/// Feature bits of network devices (VIRTIO 1.2, 5.1.3).
pub mod feature {
    /// Device handles packets with partial checksum.
    pub const CSUM: u64 = 1 << 0;
    /// Driver handles packets with partial checksum.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// Device tells the MTU.
    pub const MTU: u64 = 1 << 3;
    /// Device tells the MAC address.
    pub const MAC: u64 = 1 << 5;
    /// Driver takes TSOv4.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// Driver takes TSOv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// Device takes TSOv4.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// Device takes TSOv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// Driver merges receive buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// Link status in the configuration space.
    pub const STATUS: u64 = 1 << 16;
    /// Control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// Several queue pairs.
    pub const MQ: u64 = 1 << 22;
    /// Buffers are used in order.
    pub const IN_ORDER: u64 = 1 << 35;
}

/// `struct virtio_net_hdr` with `num_buffers`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetHeader {
    /// `VIRTIO_NET_HDR_F_NEEDS_CSUM` (1), `VIRTIO_NET_HDR_F_DATA_VALID` (2).
    pub flags: u8,
    /// 0: none, 1: TCPv4, 3: UDP, 4: TCPv6, 0x80: with ECN.
    pub gso_type: u8,
    /// Bytes of Ethernet, IP and TCP headers.
    pub hdr_len: u16,
    /// Bytes of payload per segment.
    pub gso_size: u16,
    /// Where the checksum begins.
    pub csum_start: u16,
    /// Where, after that, it is stored.
    pub csum_offset: u16,
    /// Receive buffers the frame takes.
    pub num_buffers: u16,
}

impl NetHeader {
    fn bytes(self) -> [u8; 12] {
        let words = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, self.num_buffers];
        let mut bytes = [0; 12];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        for (chunk, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn parse(bytes: &[u8]) -> Self {
        let word = |at: usize| bytes.get(at..at + 2).map_or(1, |word| u16::from_le_bytes([word[0], word[1]]));
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
            num_buffers: word(10),
        }
    }
}

/// How the driver is set up.
#[derive(Debug, Clone)]
pub struct NetOptions {
    /// Features it accepts of those the device offers.
    pub features: u64,
    /// Queue pairs it uses.
    pub queue_pairs: u16,
    /// Entries per ring.
    pub queue_size: u16,
    /// Bytes of one receive buffer, header included.
    pub rx_buffer_bytes: u32,
    /// Every chain in an indirect table.
    pub indirect: bool,
}

impl Default for NetOptions {
    fn default() -> Self {
        use feature::{CSUM, CTRL_VQ, GUEST_CSUM, MAC, MQ, MRG_RXBUF, STATUS};
        Self {
            features: CSUM
                | GUEST_CSUM
                | MAC
                | MRG_RXBUF
                | STATUS
                | CTRL_VQ
                | MQ
                | F_EVENT_IDX
                | F_INDIRECT
                | F_PROTOCOL
                | F_VERSION_1,
            queue_pairs: 1,
            queue_size: 256,
            rx_buffer_bytes: 2048,
            indirect: false,
        }
    }
}

/// Bytes of a transmit slot: the largest GSO frame with its header.
const TX_SLOT_BYTES: usize = 0x1_1000;
const TX_SLOTS_MAX: u16 = 64;

struct Pair {
    rx: DriverQueue,
    tx: DriverQueue,
    /// Receive buffer of a head.
    rx_buffers: Vec<Buffer>,
    /// Transmit slots not in flight.
    tx_slots: Vec<u64>,
    /// Slot of a head in flight.
    tx_slot_of: Vec<u64>,
}

/// A connected driver.
pub struct NetFrontend {
    frontend: Frontend,
    options: NetOptions,
    pairs: Vec<Pair>,
    control: Option<(u16, DriverQueue)>,
    ram: Arc<GuestRam>,
    header_bytes: usize,
}

impl NetFrontend {
    /// Connects to a port's socket and starts the device.
    ///
    /// # Errors
    /// Nobody listens, the port refuses, or the options ask for more than it has.
    pub fn connect(path: impl AsRef<Path>, options: NetOptions) -> io::Result<Self> {
        Self::start(Frontend::connect_within(path, PATIENCE)?, options)
    }

    /// Starts the device on a connection that exists.
    ///
    /// # Errors
    /// The port refuses, or the options ask for more than it has.
    pub fn start(mut frontend: Frontend, options: NetOptions) -> io::Result<Self> {
        frontend.negotiate(options.features, Protocol::all())?;
        let pairs = usize::from(options.queue_pairs);
        let rx_bytes = usize::from(options.queue_size) * options.rx_buffer_bytes as usize;
        let tables = if options.indirect { usize::from(options.queue_size) * 256 * 16 * 2 } else { 0 };
        let rings = usize::from(options.queue_size) * 64 + 8192;
        let per_pair = rx_bytes + usize::from(TX_SLOTS_MAX) * TX_SLOT_BYTES + tables + rings;
        let bytes = (pairs * per_pair + 0x10_0000).next_multiple_of(0x1000);
        let ram = Arc::new(GuestRam::new(0, bytes)?);
        frontend.set_mem_table(&[&ram])?;
        let merge_or_v1 = frontend.features & (feature::MRG_RXBUF | F_VERSION_1) != 0;
        let mut net = Self {
            header_bytes: if merge_or_v1 { 12 } else { 10 },
            pairs: Vec::new(),
            control: None,
            ram,
            frontend,
            options,
        };
        for _ in 0..pairs {
            net.pairs.push(net.make_pair()?);
        }
        net.start_queues()?;
        Ok(net)
    }

    fn queue(&self) -> io::Result<DriverQueue> {
        let event_idx = self.frontend.features & F_EVENT_IDX != 0;
        let queue = DriverQueue::new(Arc::clone(&self.ram), self.options.queue_size, event_idx)?;
        let indirect = self.options.indirect && self.frontend.features & F_INDIRECT != 0;
        Ok(if indirect { queue.with_indirect() } else { queue })
    }

    fn make_pair(&self) -> io::Result<Pair> {
        let size = usize::from(self.options.queue_size);
        let mut pair = Pair {
            rx: self.queue()?,
            tx: self.queue()?,
            rx_buffers: vec![(0, 0); size],
            tx_slots: (0..self.options.queue_size.min(TX_SLOTS_MAX))
                .map(|_| self.ram.alloc(TX_SLOT_BYTES, 64))
                .collect(),
            tx_slot_of: vec![0; size],
        };
        for _ in 0..size {
            let buffer =
                (self.ram.alloc(self.options.rx_buffer_bytes as usize, 64), self.options.rx_buffer_bytes);
            pair.post(buffer);
        }
        pair.rx.publish();
        Ok(pair)
    }

    fn start_queues(&mut self) -> io::Result<()> {
        for (number, pair) in (0u16..).zip(&self.pairs) {
            self.frontend.start_queue(2 * number, &pair.rx, 0)?;
            self.frontend.start_queue(2 * number + 1, &pair.tx, 0)?;
        }
        if self.frontend.features & feature::CTRL_VQ != 0 {
            let multi_queue = self.frontend.features & feature::MQ != 0;
            let pairs_max = if multi_queue { self.config_u16(8)? } else { 1 };
            let event_idx = self.frontend.features & F_EVENT_IDX != 0;
            let control = DriverQueue::new(Arc::clone(&self.ram), 64, event_idx)?;
            self.frontend.start_queue(2 * pairs_max, &control, 0)?;
            self.control = Some((2 * pairs_max, control));
            if multi_queue && self.options.queue_pairs > 1 {
                let pairs = self.options.queue_pairs;
                if self.control(4, 0, &pairs.to_le_bytes())? != 0 {
                    return Err(io::Error::other(format!("the device refuses {pairs} queue pairs")));
                }
            }
        }
        for pair in &mut self.pairs {
            // Buffers were posted before the device looked.
            pair.rx.kick();
        }
        Ok(())
    }

    fn config_u16(&self, offset: u32) -> io::Result<u16> {
        let bytes = self.frontend.read_config(offset, 2)?;
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    /// The connection, for messages of the test's own.
    pub fn frontend(&self) -> &Frontend {
        &self.frontend
    }

    /// The memory shared with the switch.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// The rings of one pair, receive and transmit, to do them wrong.
    pub fn queues(&mut self, pair: usize) -> (&mut DriverQueue, &mut DriverQueue) {
        let pair = &mut self.pairs[pair];
        (&mut pair.rx, &mut pair.tx)
    }

    /// MAC address from the configuration space.
    ///
    /// # Errors
    /// The connection is dead.
    pub fn mac(&self) -> io::Result<[u8; 6]> {
        let bytes = self.frontend.read_config(0, 6)?;
        bytes.try_into().map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Sends a frame on the first pair.
    ///
    /// # Errors
    /// The switch takes no frames: none of those before was used within [`PATIENCE`].
    pub fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.send_with(0, NetHeader::default(), frame)
    }

    /// Sends a frame with a header of its own on a pair.
    ///
    /// # Errors
    /// As [`NetFrontend::send`].
    pub fn send_with(&mut self, pair: usize, header: NetHeader, frame: &[u8]) -> io::Result<()> {
        self.queue_frame(pair, header, frame)?;
        self.pairs[pair].tx.publish();
        Ok(())
    }

    /// Sends several frames with one kick.
    ///
    /// # Errors
    /// As [`NetFrontend::send`].
    pub fn send_burst(&mut self, pair: usize, frames: &[&[u8]]) -> io::Result<()> {
        for frame in frames {
            self.queue_frame(pair, NetHeader::default(), frame)?;
        }
        self.pairs[pair].tx.publish();
        Ok(())
    }

    fn queue_frame(&mut self, number: usize, header: NetHeader, frame: &[u8]) -> io::Result<()> {
        let header_bytes = self.header_bytes;
        assert!(frame.len() + header_bytes <= TX_SLOT_BYTES, "a frame of {} bytes", frame.len());
        let pair = &mut self.pairs[number];
        pair.reclaim();
        while pair.tx_slots.is_empty() || pair.tx.free_descriptors() < 2 {
            pair.tx.publish();
            let Some((head, _)) = pair.tx.wait_used(PATIENCE) else {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the switch takes no frames"));
            };
            pair.tx_slots.push(pair.tx_slot_of[usize::from(head)]);
        }
        let slot = pair.tx_slots.pop().ok_or(io::ErrorKind::OutOfMemory)?;
        self.ram.write(slot, &header.bytes()[..header_bytes]);
        self.ram.write(slot + header_bytes as u64, frame);
        let parts = [(slot, header_bytes as u32), (slot + header_bytes as u64, frame.len() as u32)];
        let parts = if frame.is_empty() { &parts[..1] } else { &parts[..] };
        let head = pair.tx.add(parts, &[]).ok_or(io::ErrorKind::OutOfMemory)?;
        pair.tx_slot_of[usize::from(head)] = slot;
        Ok(())
    }

    /// Waits until the switch has used all transmitted frames.
    ///
    /// # Errors
    /// It has not within [`PATIENCE`].
    pub fn drain_tx(&mut self, pair: usize) -> io::Result<()> {
        let pair = &mut self.pairs[pair];
        while pair.tx.in_flight() > 0 {
            let Some((head, _)) = pair.tx.wait_used(PATIENCE) else {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the switch does not finish frames"));
            };
            pair.tx_slots.push(pair.tx_slot_of[usize::from(head)]);
        }
        Ok(())
    }

    /// The next frame on any pair; `None`: none within `patience`.
    pub fn recv(&mut self, patience: Duration) -> Option<Vec<u8>> {
        self.recv_with(patience).map(|(_, _, frame)| frame)
    }

    /// The next frame on any pair with its pair and header, asleep on the call eventfds until there is one.
    pub fn recv_with(&mut self, patience: Duration) -> Option<(usize, NetHeader, Vec<u8>)> {
        let until = Instant::now() + patience;
        loop {
            for number in 0..self.pairs.len() {
                if let Some((header, frame)) = self.poll_recv(number) {
                    return Some((number, header, frame));
                }
            }
            // All are armed before any is waited for.
            let ready = self.pairs.iter_mut().map(|pair| pair.rx.arm()).fold(false, |any, ready| any | ready);
            let left = until.saturating_duration_since(Instant::now());
            if !ready && (left.is_zero() || !wait_any_call(self.pairs.iter().map(|pair| &pair.rx), left)) {
                return (0..self.pairs.len()).find_map(|number| {
                    self.poll_recv(number).map(|(header, frame)| (number, header, frame))
                });
            }
        }
    }

    /// The next frame of a pair, if there is one. Its buffers are posted again.
    ///
    /// # Panics
    /// The device broke a rule: fewer buffers than announced, or more bytes than a buffer has.
    pub fn poll_recv(&mut self, number: usize) -> Option<(NetHeader, Vec<u8>)> {
        let pair = &mut self.pairs[number];
        let (head, written) = pair.rx.poll_used()?;
        let mut frame = pair.take(head, written, &self.ram);
        assert!(
            frame.len() >= self.header_bytes,
            "{written} bytes written, a header has {}",
            self.header_bytes
        );
        let header = NetHeader::parse(&frame[..self.header_bytes]);
        let merged = self.frontend.features & feature::MRG_RXBUF != 0;
        let buffers = if merged { header.num_buffers } else { 1 };
        assert!(buffers >= 1, "a frame takes at least one buffer");
        for _ in 1..buffers {
            // The index is published once per frame at the earliest.
            let (head, written) =
                pair.rx.poll_used().expect("all buffers of a merged frame are used at once");
            frame.extend(pair.take(head, written, &self.ram));
        }
        pair.rx.publish();
        frame.drain(..self.header_bytes);
        Some((header, frame))
    }

    /// One command on the control queue; returns the device's answer (0: done).
    ///
    /// # Errors
    /// There is no control queue, or no answer within [`PATIENCE`].
    pub fn control(&mut self, class: u8, command: u8, data: &[u8]) -> io::Result<u8> {
        let (_, queue) = self.control.as_mut().ok_or(io::ErrorKind::Unsupported)?;
        let at = self.ram.alloc(2 + data.len() + 1, 16);
        let (data_at, ack_at) = (at + 2, at + 2 + data.len() as u64);
        self.ram.write(at, &[class, command]);
        self.ram.write(data_at, data);
        self.ram.write(ack_at, &[0xff]);
        let readable = [(at, 2), (data_at, data.len() as u32)];
        queue.add(&readable, &[(ack_at, 1)]).ok_or(io::ErrorKind::OutOfMemory)?;
        queue.publish();
        queue.wait_used(PATIENCE).ok_or(io::ErrorKind::TimedOut)?;
        Ok(self.ram.bytes(ack_at, 1)[0])
    }

    /// Stops all rings (GET_VRING_BASE) and returns their next indexes.
    ///
    /// # Errors
    /// The connection is dead.
    pub fn stop(&mut self) -> io::Result<Vec<u16>> {
        let control = self.control.as_ref().map(|(index, _)| *index);
        (0..2 * self.pairs.len() as u16).chain(control).map(|index| self.frontend.stop_queue(index)).collect()
    }

    /// Tells the MTU (NET_SET_MTU).
    ///
    /// # Errors
    /// Refused, or the connection is dead.
    pub fn set_mtu(&self, mtu: u64) -> io::Result<()> {
        self.frontend.tell(Request::NET_SET_MTU, &mtu.to_ne_bytes(), &[])
    }
}

impl Pair {
    fn post(&mut self, buffer: Buffer) {
        let head = self.rx.add(&[], &[buffer]).expect("one descriptor per buffer");
        self.rx_buffers[usize::from(head)] = buffer;
    }

    /// Content of a used receive buffer; the buffer is posted again.
    fn take(&mut self, head: u16, written: u32, ram: &GuestRam) -> Vec<u8> {
        let buffer = self.rx_buffers[usize::from(head)];
        assert!(written <= buffer.1, "{written} bytes written into a buffer of {}", buffer.1);
        let bytes = ram.bytes(buffer.0, written as usize);
        self.post(buffer);
        bytes
    }

    fn reclaim(&mut self) {
        while let Some((head, _)) = self.tx.poll_used() {
            self.tx_slots.push(self.tx_slot_of[usize::from(head)]);
        }
    }
}

impl std::fmt::Debug for NetFrontend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fd = self.frontend.socket().as_fd().as_raw_fd();
        write!(f, "NetFrontend {{ fd: {fd}, pairs: {} }}", self.pairs.len())
    }
}
