//! A virtio-blk driver on a vhost-user frontend: requests of any shape on any queue, and a reconnect after the backend
//! was killed, as QEMU does it.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::driver_queue::{Buffer, DriverQueue, wait_any_call};
use crate::frontend::{
    F_EVENT_IDX, F_INDIRECT, F_LOG_ALL, F_PROTOCOL, F_VERSION_1, Frontend, Inflight, PATIENCE, Protocol,
};
use crate::guest_ram::GuestRam;

/// `VIRTIO_BLK_T_IN`
pub const READ: u32 = 0;
/// `VIRTIO_BLK_T_OUT`
pub const WRITE: u32 = 1;
/// `VIRTIO_BLK_T_FLUSH`
pub const FLUSH: u32 = 4;
/// `VIRTIO_BLK_T_GET_ID`
pub const GET_ID: u32 = 8;
/// `VIRTIO_BLK_T_DISCARD`
pub const DISCARD: u32 = 11;
/// `VIRTIO_BLK_T_WRITE_ZEROES`
pub const WRITE_ZEROES: u32 = 13;
/// `VIRTIO_BLK_S_OK`
pub const OK: u8 = 0;
/// `VIRTIO_BLK_S_IOERR`
pub const IO_ERROR: u8 = 1;
/// `VIRTIO_BLK_S_UNSUPP`
pub const UNSUPPORTED: u8 = 2;

/// Everything of the device's own features that this driver knows to use.
pub const BLK_FEATURES: u64 =
    1 << 2 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14;
/// `VIRTIO_BLK_F_CONFIG_WCE`
pub const F_CONFIG_WCE: u64 = 1 << 11;

/// A status byte that no device writes: an unanswered request shows it.
const UNANSWERED: u8 = 0xee;

/// How a driver is set up.
#[derive(Clone, Debug)]
pub struct BlkOptions {
    /// Features to accept if offered.
    pub features: u64,
    /// Queues to start.
    pub queues: u16,
    /// Entries of each.
    pub queue_size: u16,
    /// Requests in flight per queue at most.
    pub slots: usize,
    /// Bytes of data per request at most.
    pub slot_bytes: usize,
    /// Whether chains are tables.
    pub indirect: bool,
    /// Whether requests in flight are remembered over the backend's death.
    pub inflight: bool,
}

impl Default for BlkOptions {
    fn default() -> BlkOptions {
        BlkOptions {
            features: BLK_FEATURES | F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | F_PROTOCOL,
            queues: 1,
            queue_size: 128,
            slots: 16,
            slot_bytes: 64 << 10,
            indirect: false,
            inflight: true,
        }
    }
}

/// Memory of one request: header, data, status. The data begin at a page and may be used from `shift` on.
struct Slot {
    header: u64,
    data: u64,
    status: u64,
}

struct Ring {
    queue: DriverQueue,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// By head.
    flying: HashMap<u16, Flight>,
}

struct Flight {
    slot: usize,
    tag: u64,
    /// Where the answer's data are, and how many bytes.
    reads: Buffer,
}

/// A request to be sent.
#[derive(Clone, Debug, Default)]
pub struct BlkRequest<'a> {
    /// Type field of the header.
    pub kind: u32,
    /// Sector field of the header.
    pub sector: u64,
    /// What the device may read behind the header.
    pub out: &'a [u8],
    /// How many bytes the device may write before the status.
    pub read_bytes: usize,
    /// Number of descriptors that the data are cut into; 0 is 1.
    pub parts: usize,
    /// Bytes by which the data miss a page's beginning.
    pub shift: usize,
    /// Comes back with the answer.
    pub tag: u64,
}

/// An answered request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkAnswer {
    /// As sent.
    pub tag: u64,
    /// Status byte.
    pub status: u8,
    /// The data that were read.
    pub data: Vec<u8>,
    /// Bytes written, says the used element.
    pub written: u32,
}

/// A connected driver.
pub struct BlkFrontend {
    frontend: Frontend,
    path: PathBuf,
    ram: Arc<GuestRam>,
    rings: Vec<Ring>,
    options: BlkOptions,
    area: Option<Inflight>,
}

impl BlkFrontend {
    /// Connects to the volume at `path` and starts its queues.
    ///
    /// # Errors
    /// Nobody serves there, or a message was refused.
    pub fn connect(path: impl AsRef<Path>, options: BlkOptions) -> io::Result<BlkFrontend> {
        let mut frontend = Frontend::connect_within(&path, PATIENCE)?;
        frontend.negotiate(options.features, Protocol::all())?;
        let event_idx = frontend.features & F_EVENT_IDX != 0;
        let per_slot = options.slot_bytes.next_multiple_of(4096) + 3 * 4096;
        let tables = usize::from(options.queue_size) * 4096 + (64 << 10);
        let bytes = usize::from(options.queues) * (options.slots * per_slot + tables) + (1 << 20);
        let ram = Arc::new(GuestRam::new(0x1_0000_0000, bytes.next_multiple_of(2 << 20))?);
        let ring = || -> io::Result<Ring> {
            let queue = DriverQueue::new(Arc::clone(&ram), options.queue_size, event_idx)?;
            let queue = if options.indirect { queue.with_indirect() } else { queue };
            let slot = |_| Slot {
                header: ram.alloc(16, 16),
                data: ram.alloc(options.slot_bytes + 4096, 4096),
                status: ram.alloc(1, 1),
            };
            let slots = (0..options.slots).map(slot).collect();
            Ok(Ring { queue, slots, free: (0..options.slots).collect(), flying: HashMap::new() })
        };
        let rings = (0..options.queues).map(|_| ring()).collect::<io::Result<Vec<_>>>()?;
        let area = match options.inflight {
            true => Some(frontend.get_inflight(options.queues, options.queue_size)?),
            false => None,
        };
        let path = path.as_ref().to_path_buf();
        let mut driver = BlkFrontend { frontend, path, ram, rings, options, area };
        driver.start()?;
        Ok(driver)
    }

    /// Connects again after the backend went away: same memory, same rings, same requests in flight.
    ///
    /// # Errors
    /// Nobody serves there, or a message was refused.
    pub fn reconnect(&mut self) -> io::Result<()> {
        self.frontend = Frontend::connect_within(&self.path, PATIENCE)?;
        self.frontend.negotiate(self.options.features, Protocol::all())?;
        self.start()
    }

    fn start(&mut self) -> io::Result<()> {
        self.frontend.set_mem_table(&[&self.ram])?;
        if let Some(area) = &self.area {
            self.frontend.set_inflight(area)?;
        }
        for (index, ring) in self.rings.iter().enumerate() {
            self.frontend.start_queue(index as u16, &ring.queue, ring.queue.device_used_idx())?;
            // What was made available while nobody listened.
            ring.queue.kick();
        }
        Ok(())
    }

    /// Stops all queues, as QEMU does when it pauses its guest, and returns where each of them stands.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub fn pause(&mut self) -> io::Result<Vec<u16>> {
        (0..self.options.queues).map(|index| self.frontend.stop_queue(index)).collect()
    }

    /// Starts all queues again where they stood.
    ///
    /// # Errors
    /// A message was refused.
    pub fn resume(&mut self, bases: &[u16]) -> io::Result<()> {
        for (index, (ring, base)) in self.rings.iter().zip(bases).enumerate() {
            self.frontend.start_queue(index as u16, &ring.queue, *base)?;
            ring.queue.kick();
        }
        Ok(())
    }

    /// Has the daemon mark in `log` what it writes from now on, as QEMU does when its guest begins to migrate.
    ///
    /// # Errors
    /// A message was refused.
    pub fn log_to(&mut self, log: &GuestRam) -> io::Result<()> {
        self.frontend.set_log(log)?;
        self.frontend.set_features(self.frontend.features | F_LOG_ALL)?;
        for (index, ring) in self.rings.iter().enumerate() {
            let [_, _, used] = ring.queue.addresses();
            self.frontend.set_addresses(index as u16, &ring.queue, Some(used))?;
        }
        Ok(())
    }

    /// The messages below.
    pub fn frontend(&self) -> &Frontend {
        &self.frontend
    }

    /// The ring of queue `index`, to do what no driver does.
    pub fn ring(&mut self, index: usize) -> &mut DriverQueue {
        &mut self.rings[index].queue
    }

    /// Requests in flight on queue `index`.
    pub fn in_flight(&self, index: usize) -> usize {
        self.rings[index].flying.len()
    }

    /// Their tags.
    pub fn tags(&self, index: usize) -> Vec<u64> {
        self.rings[index].flying.values().map(|flight| flight.tag).collect()
    }

    /// Whether queue `index` has room for one more request.
    pub fn has_room(&self, index: usize) -> bool {
        let ring = &self.rings[index];
        !ring.free.is_empty() && ring.queue.free_descriptors() >= 40
    }

    /// Queues.
    pub fn queues(&self) -> usize {
        self.rings.len()
    }

    /// The memory shared with the daemon.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Sends a read of the first sector without touching the request's own memory, which may be gone. Its answer can't be
    /// taken.
    ///
    /// # Panics
    /// There is no room for it.
    pub fn send_untouched(&mut self, index: usize) {
        let ring = &mut self.rings[index];
        let Slot { header, data, status } = ring.slots[ring.free.pop().expect("a free slot")];
        ring.queue.add(&[(header, 16)], &[(data, 512), (status, 1)]).expect("free descriptors");
        ring.queue.publish();
        ring.queue.kick();
    }

    /// Capacity in sectors, from the config space.
    ///
    /// # Errors
    /// The connection is dead.
    pub fn capacity(&self) -> io::Result<u64> {
        let bytes = self.frontend.read_config(0, 8)?;
        Ok(bytes.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }

    /// Sends a request.
    ///
    /// # Panics
    /// There is no room for it.
    pub fn send(&mut self, index: usize, request: &BlkRequest<'_>) {
        let ring = &mut self.rings[index];
        let slot = ring.free.pop().expect("a free slot");
        let Slot { header, data, status } = ring.slots[slot];
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&request.kind.to_le_bytes());
        bytes[8..].copy_from_slice(&request.sector.to_le_bytes());
        self.ram.write(header, &bytes);
        self.ram.write(status, &[UNANSWERED]);
        let data = data + request.shift as u64;
        self.ram.write(data, request.out);
        let mut readable = vec![(header, 16)];
        readable.extend(cut(data, request.out.len(), request.parts));
        let mut writable = cut(data, request.read_bytes, request.parts);
        writable.push((status, 1));
        let head = ring.queue.add(&readable, &writable).expect("free descriptors");
        let reads = (data, request.read_bytes as u32);
        ring.flying.insert(head, Flight { slot, tag: request.tag, reads });
        ring.queue.publish();
    }

    /// The next answer on queue `index`, if it comes within `patience`.
    pub fn answer(&mut self, index: usize, patience: Duration) -> Option<BlkAnswer> {
        let ring = &mut self.rings[index];
        let (head, written) = ring.queue.wait_used(patience)?;
        let flight = ring.flying.remove(&head).expect("a request in flight");
        ring.free.push(flight.slot);
        let status = self.ram.bytes(ring.slots[flight.slot].status, 1)[0];
        let data = self.ram.bytes(flight.reads.0, flight.reads.1 as usize);
        Some(BlkAnswer { tag: flight.tag, status, data, written })
    }

    /// The next answer on any queue, asleep until there is one; `None`: none within `patience`.
    pub fn answer_any(&mut self, patience: Duration) -> Option<BlkAnswer> {
        let until = Instant::now() + patience;
        loop {
            if let Some(answer) = (0..self.rings.len()).find_map(|index| self.answer(index, Duration::ZERO)) {
                return Some(answer);
            }
            // `answer` has armed every queue.
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            wait_any_call(self.rings.iter().map(|ring| &ring.queue), left);
        }
    }

    /// Sends a request on queue 0 and waits for its answer.
    ///
    /// # Panics
    /// It does not come, or others are in flight.
    pub fn ask(&mut self, request: &BlkRequest<'_>) -> BlkAnswer {
        assert_eq!(self.in_flight(0), 0);
        self.send(0, request);
        self.answer(0, PATIENCE).expect("an answer")
    }

    /// Reads `bytes` from `sector` on.
    ///
    /// # Panics
    /// The device says anything but OK.
    pub fn read(&mut self, sector: u64, bytes: usize) -> Vec<u8> {
        let answer = self.ask(&BlkRequest { kind: READ, sector, read_bytes: bytes, ..BlkRequest::default() });
        assert_eq!((answer.status, answer.written), (OK, bytes as u32 + 1));
        answer.data
    }

    /// Writes `out` at `sector` and returns the status.
    pub fn write(&mut self, sector: u64, out: &[u8]) -> u8 {
        self.ask(&BlkRequest { kind: WRITE, sector, out, ..BlkRequest::default() }).status
    }

    /// Flushes and returns the status.
    pub fn flush(&mut self) -> u8 {
        self.ask(&BlkRequest { kind: FLUSH, ..BlkRequest::default() }).status
    }

    /// Discards or zeroes ranges of (sector, sectors, flags) and returns the status.
    pub fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let out = range_list(ranges);
        self.ask(&BlkRequest { kind, out: &out, ..BlkRequest::default() }).status
    }
}

/// The segment list of a discard or write-zeroes.
pub fn range_list(ranges: &[(u64, u32, u32)]) -> Vec<u8> {
    let mut list = Vec::new();
    for (sector, sectors, flags) in ranges {
        list.extend(sector.to_le_bytes());
        list.extend(sectors.to_le_bytes());
        list.extend(flags.to_le_bytes());
    }
    list
}

/// `len` bytes from `at` on in `parts` pieces of whole sectors, as far as there are enough.
fn cut(at: u64, len: usize, parts: usize) -> Vec<Buffer> {
    let sectors = len / 512;
    let parts = parts.clamp(1, sectors.max(1));
    let mut pieces = Vec::new();
    let mut done = 0;
    for part in 1..=parts {
        let end = if part == parts { len } else { sectors * part / parts * 512 };
        if end > done {
            pieces.push((at + done as u64, (end - done) as u32));
        }
        done = end;
    }
    pieces
}
