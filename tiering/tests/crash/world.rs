//! A store and its two disks, driven step by step in an order that a seed chooses.

use simkit::{CutMode, DiskFault, Image, Operation, Rng, SimDisk, Ticket};
use tiering::{
    Action, ActionKind, BlockingIo, Buffer, DeviceId, DeviceSpec, Done, FormatSpec, GrowError, Growth, Hit,
    IoError, OpenError, OpenOptions, Request, RequestKind, Rule, Store, Tier, Tuning, UNIT_BYTES, VolumeId,
};
use uuid::Uuid;

/// What the tester does to a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Write,
    Overwrite,
    Flush,
    Discard,
    Snapshot,
    Clone,
    Promote,
    Demote,
    WriteBack,
    Delete,
    Zero,
    Read,
    Checkpoint,
    Create,
    Grow,
    Adopt,
    Pin,
    Limit,
}

impl Op {
    /// Those of which all short sequences are tried.
    pub const SHORT: [Op; 10] = [
        Op::Write,
        Op::Overwrite,
        Op::Flush,
        Op::Discard,
        Op::Snapshot,
        Op::Clone,
        Op::Promote,
        Op::Demote,
        Op::WriteBack,
        Op::Delete,
    ];
}

/// Hot slots and cold slots are few, so that they are used again and again.
const HOT_BYTES: u64 = 17 * UNIT_BYTES;
const COLD_BYTES: u64 = 24 * UNIT_BYTES;
/// Sectors of an adopted device's volume: its last unit is half there.
pub const ADOPTED_SECTORS: u64 = UNIT_BYTES / 512 * 3 / 2;
/// Sector `n` of an adopted device says that it is from write `ADOPTED + n`.
pub const ADOPTED: u64 = 0xad0_0000;
pub const TAGS: u32 = 16;
const SCRATCH: u32 = 6;

/// The pool's disks: one hot, one cold, and those that joined.
#[derive(Debug, Clone)]
pub struct Disks(pub Vec<SimDisk>);

impl BlockingIo for Disks {
    fn present(&self, device: DeviceId) -> bool {
        self.0.get(usize::from(device.0)).is_some_and(|disk| !disk.is_gone())
    }
    fn read(&mut self, device: DeviceId, offset: u64, into: &mut [u8]) -> Result<(), IoError> {
        self.0[usize::from(device.0)].read(offset, into).map(|_| ()).map_err(|_| IoError)
    }
    fn write(&mut self, device: DeviceId, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
        self.0[usize::from(device.0)].write(offset, bytes).map(|_| ()).map_err(|_| IoError)
    }
    fn flush(&mut self, device: DeviceId) -> Result<(), IoError> {
        self.0[usize::from(device.0)].flush().map_err(|_| IoError)
    }
}

/// Disks full of somebody else's old data.
pub fn used_disks(seed: u64) -> Disks {
    Disks([HOT_BYTES, COLD_BYTES].iter().map(|bytes| used_disk(*bytes, seed)).collect())
}

pub fn used_disk(bytes: u64, seed: u64) -> SimDisk {
    let mut image = Image::new(bytes);
    image.write(0, &vec![0xee; bytes as usize]);
    SimDisk::from_image(image, seed)
}

/// A disk as it is adopted: numbered sectors, and room for superblocks behind them.
pub fn adoptable_disk(seed: u64) -> SimDisk {
    let mut disk = used_disk(tiering::adopted_device_bytes(ADOPTED_SECTORS * 512), seed);
    let bytes: Vec<u8> = (0..ADOPTED_SECTORS).flat_map(|at| sector_of(ADOPTED + at)).collect();
    disk.write(0, &bytes).expect("it has that size");
    disk.flush().expect("it works");
    disk
}

pub fn format(disks: &mut Disks) {
    let device = |uuid, tier, size_bytes| DeviceSpec { uuid: Uuid::from_u128(uuid), tier, size_bytes };
    let devices = vec![device(11, Tier::Hot, HOT_BYTES), device(12, Tier::Cold, COLD_BYTES)];
    let spec = FormatSpec { pool: Uuid::from_u128(10), devices, journal_bytes: 64 * 4096, leaves_max: 12 };
    tiering::format(disks, &spec).expect("the disks are large enough");
}

pub fn open(disks: &mut Disks, boot: u128) -> Result<Store, OpenError> {
    open_with(disks, boot, false)
}

/// How soon operators' changes reach the cold tier, in simulated time.
pub const CHANGE_DELAY_NS: u64 = 60_000_000_000;

pub fn open_with(disks: &mut Disks, boot: u128, degraded: bool) -> Result<Store, OpenError> {
    let tuning = Tuning {
        requests_max: TAGS,
        scratch_buffers: SCRATCH,
        group_bytes: 4 * UNIT_BYTES,
        // Seldom: the pools of these tests are to be full at times, and each checkpoint frees space.
        change_delay_ns: CHANGE_DELAY_NS,
        boot: Uuid::from_u128(boot << 64),
        ..Tuning::default()
    };
    Store::open(disks, OpenOptions { tuning, degraded, ..OpenOptions::default() })
}

/// What a disk is at work on.
enum Work {
    Action(Action),
    /// A read that the world carries out by itself.
    Hit(Hit, Request),
}

struct Flight {
    work: Work,
    ticket: Ticket,
}

/// A running pool.
pub struct World {
    pub store: Store,
    pub disks: Disks,
    pub buffers: Vec<Vec<u8>>,
    scratch: Vec<Vec<u8>>,
    flights: Vec<Flight>,
    hits_done: Vec<Done>,
    pub rng: Rng,
    pub now_ns: u64,
    pub boot: u128,
}

impl World {
    pub fn new(disks: Disks, boot: u128, seed: u64, broken: Option<Rule>) -> Result<World, OpenError> {
        Self::with(disks, boot, seed, broken, false)
    }

    pub fn with(
        disks: Disks,
        boot: u128,
        seed: u64,
        broken: Option<Rule>,
        degraded: bool,
    ) -> Result<World, OpenError> {
        let mut disks = disks;
        let mut store = open_with(&mut disks, boot, degraded)?;
        if let Some(rule) = broken {
            store.break_rule(rule);
        }
        Ok(World {
            store,
            disks,
            buffers: vec![Vec::new(); TAGS as usize],
            scratch: vec![vec![0xcc; UNIT_BYTES as usize]; SCRATCH as usize],
            flights: Vec::new(),
            hits_done: Vec::new(),
            rng: Rng::new(seed),
            now_ns: 0,
            boot,
        })
    }

    /// The disks as they would be found after a crash now.
    pub fn crashed(&self, power: bool, modes: &[CutMode]) -> Vec<Image> {
        let both = self.disks.0.iter().zip(modes);
        both.map(|(disk, mode)| if power { disk.cut(*mode) } else { disk.killed(*mode) }).collect()
    }

    /// Begins to grow the pool in one of the ways there are. What it was.
    pub fn grow(&mut self) -> Option<&'static str> {
        let count = self.disks.0.len();
        let kind = self.rng.below(4);
        let seed = self.rng.next_u64();
        if self.store.is_growing() || (count > 4 && kind > 1) {
            return None;
        }
        let tier = if kind == 2 { Tier::Hot } else { Tier::Cold };
        let growth = match kind {
            0 | 1 => {
                let device = self.rng.below(count as u64) as usize;
                self.disks.0[device].grow(UNIT_BYTES * (1 + seed % 2));
                let size_bytes = self.disks.0[device].size();
                Growth::Larger { device: DeviceId(device as u8), size_bytes }
            }
            _ => {
                let size_bytes = UNIT_BYTES * (2 + seed % 3);
                self.disks.0.push(used_disk(size_bytes, seed));
                let uuid = Uuid::from_u128(20 + count as u128);
                Growth::Add(DeviceSpec { uuid, tier, size_bytes })
            }
        };
        if let Err(error) = self.store.grow(growth) {
            assert!(matches!(error, GrowError::Adopted(_) | GrowError::Metadata { .. }), "{error}");
            self.disks.0.truncate(count);
            return None;
        }
        Some(["larger", "larger", "a hot device", "a cold device"][kind as usize])
    }

    /// Begins to adopt a disk.
    pub fn adopt(&mut self) -> bool {
        let count = self.disks.0.len();
        if self.store.is_growing() || count > 4 {
            return false;
        }
        let disk = adoptable_disk(self.rng.next_u64());
        let size_bytes = disk.size();
        self.disks.0.push(disk);
        let uuid = Uuid::from_u128(20 + count as u128);
        let adopt = Growth::Adopt { uuid, data_bytes: ADOPTED_SECTORS * 512, size_bytes };
        if let Err(error) = self.store.grow(adopt) {
            assert!(matches!(error, GrowError::Metadata { .. }), "{error}");
            self.disks.0.truncate(count);
            return false;
        }
        true
    }

    /// Every other read takes the short way if there is one.
    pub fn submit(&mut self, request: Request) -> bool {
        let Request { tag, volume, kind, offset, len } = request;
        if kind == RequestKind::Read
            && tag % 2 == 0
            && let Some(hit) = self.store.hit(volume, offset, len)
        {
            let disk = &mut self.disks.0[usize::from(hit.device.0)];
            let read = disk.submit(Operation::Read { offset: hit.offset, len });
            let (ticket, _) = read.expect("the store stays inside its devices");
            self.flights.push(Flight { work: Work::Hit(hit, request), ticket });
            return true;
        }
        self.store.submit(request).is_ok()
    }

    /// The next finished request, if any.
    pub fn next_done(&mut self) -> Option<Done> {
        self.hits_done.pop().or_else(|| self.store.next_done())
    }

    /// Sends out what the store wants done. True if there was anything.
    pub fn issue(&mut self) -> bool {
        let mut any = false;
        while let Some(action) = self.store.next_action() {
            any = true;
            self.issue_one(action);
        }
        any
    }

    fn issue_one(&mut self, action: Action) {
        let len = action.len as usize;
        let operation = match action.kind {
            ActionKind::ZeroFill => {
                self.target(action.buffer, len).fill(0);
                return self.store.complete(action.id, Ok(action.len));
            }
            ActionKind::CopyOut { scratch, scratch_offset } => {
                let from = scratch_offset as usize;
                let bytes = self.scratch[scratch as usize][from..from + len].to_vec();
                self.target(action.buffer, len).copy_from_slice(&bytes);
                return self.store.complete(action.id, Ok(action.len));
            }
            ActionKind::Read => Operation::Read { offset: action.offset, len: action.len },
            ActionKind::Write => {
                Operation::Write { offset: action.offset, bytes: self.source(action.buffer, len) }
            }
            // The worst a discard can do to what was there.
            ActionKind::Discard => Operation::Write { offset: action.offset, bytes: vec![0xdd; len] },
            ActionKind::Flush => Operation::Flush,
        };
        let disk = &mut self.disks.0[usize::from(action.device.0)];
        let (ticket, _) = disk.submit(operation).expect("the store stays inside its devices");
        self.flights.push(Flight { work: Work::Action(action), ticket });
    }

    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Completes one of the operations in flight.
    pub fn complete_one(&mut self) {
        let at = self.rng.below(self.flights.len() as u64) as usize;
        let Flight { work, ticket } = self.flights.swap_remove(at);
        let (device, read, buffer) = match work {
            Work::Action(action) => {
                let len = if action.kind == ActionKind::Read { action.len } else { 0 };
                (action.device, len, action.buffer)
            }
            Work::Hit(hit, Request { tag, len, .. }) => (hit.device, len, Buffer::Request { tag, offset: 0 }),
        };
        let mut bytes = vec![0; read as usize];
        let result = self.disks.0[usize::from(device.0)].complete(ticket, &mut bytes);
        if let (1.., Ok(moved)) = (read, result) {
            self.target(buffer, moved as usize).copy_from_slice(&bytes[..moved as usize]);
        }
        match work {
            Work::Action(action) => self.store.complete(action.id, result.map_err(|_: DiskFault| IoError)),
            Work::Hit(hit, request) => {
                self.store.hit_done(hit, result.is_err());
                match result {
                    Ok(moved) if moved == read => {
                        self.hits_done.push(Done { tag: request.tag, result: Ok(()) });
                    }
                    _ => self.store.submit(request).expect("a read is always taken"),
                }
            }
        }
    }

    /// Runs until nothing is left to do, letting time pass where the store waits for it.
    pub fn settle(&mut self, mut each: impl FnMut(&mut World, Done)) {
        let mut idle_ticks = 0;
        while idle_ticks < 4 {
            let busy = self.issue() || self.in_flight() > 0;
            if self.in_flight() > 0 {
                self.complete_one();
            }
            while let Some(done) = self.next_done() {
                each(self, done);
            }
            if busy {
                idle_ticks = 0;
            } else {
                idle_ticks += 1;
                self.tick();
            }
        }
    }

    pub fn tick(&mut self) {
        self.now_ns += 300_000_000;
        self.store.tick(self.now_ns);
    }

    /// Reads a whole volume, in one request a unit; the numbers found in its sectors.
    pub fn read_volume(&mut self, id: VolumeId, sectors: u64) -> Result<Vec<u64>, String> {
        let mut numbers = Vec::new();
        for unit in 0..(sectors * 512).div_ceil(UNIT_BYTES) {
            let len = (sectors * 512 - unit * UNIT_BYTES).min(UNIT_BYTES) as u32;
            self.buffers[0] = vec![0xab; len as usize];
            self.store
                .submit(Request {
                    tag: 0,
                    volume: id,
                    kind: RequestKind::Read,
                    offset: unit * UNIT_BYTES,
                    len,
                })
                .map_err(|busy| busy.to_string())?;
            let mut result = None;
            while result.is_none() {
                self.issue();
                if let Some(done) = self.store.next_done() {
                    result = Some(done.result);
                } else if self.in_flight() > 0 {
                    self.complete_one();
                } else {
                    return Err(format!("a read of volume {} stalls", id.0));
                }
            }
            result.expect("the loop ended").map_err(|error| format!("unit {unit}: {error}"))?;
            numbers.extend(self.buffers[0].chunks_exact(512).map(number_of));
        }
        Ok(numbers)
    }

    fn target(&mut self, buffer: Buffer, len: usize) -> &mut [u8] {
        match buffer {
            Buffer::Request { tag, offset } => {
                &mut self.buffers[tag as usize][offset as usize..offset as usize + len]
            }
            Buffer::Scratch { index, offset } => {
                &mut self.scratch[index as usize][offset as usize..offset as usize + len]
            }
            other => panic!("nothing can be read into {other:?}"),
        }
    }

    fn source(&self, buffer: Buffer, len: usize) -> Vec<u8> {
        match buffer {
            Buffer::Request { tag, offset } => {
                self.buffers[tag as usize][offset as usize..offset as usize + len].to_vec()
            }
            Buffer::Scratch { index, offset } => {
                self.scratch[index as usize][offset as usize..offset as usize + len].to_vec()
            }
            Buffer::Meta { index, offset } => {
                self.store.meta(index)[offset as usize..offset as usize + len].to_vec()
            }
            Buffer::Zeroes => vec![0; len],
            Buffer::None => panic!("a write has a source"),
        }
    }
}

/// A sector that says which write it is from.
pub fn sector_of(number: u64) -> impl Iterator<Item = u8> {
    (0..64).flat_map(move |_| number.to_le_bytes())
}

/// Which write a sector is from; torn sectors, which do not exist, would be strangers.
pub fn number_of(sector: &[u8]) -> u64 {
    let first = u64::from_le_bytes(sector[..8].try_into().expect("eight bytes"));
    let same = sector[8..] == sector[..sector.len() - 8];
    if same { first } else { u64::MAX - 1 }
}
