//! A volume against a model of it, driven by the crate `virtio-driver` on several queues: every sector is checked.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::ptr::NonNull;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use serde_json::json;
use vhost_blk::config::DaemonConfig;
use vhost_blk::daemon::Daemon;
use vhost_blk::spec::read_create;
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue,
    VirtioBlkReqBuf, VirtioFeatureFlags, VirtioTransport,
};

const QUEUES: usize = 3;
const DEPTH: usize = 16;
const SECTOR: usize = 512;
/// Sectors of the disk.
const SECTORS: usize = 8192;
/// Largest request.
const REQUEST_SECTORS: usize = 128;
const ROUNDS: usize = 3000;

/// Memory that the device may use, one buffer per request in flight.
struct Buffers {
    base: NonNull<u8>,
    bytes: usize,
    file: File,
}

impl Buffers {
    fn new() -> Buffers {
        // One sector more each, so that buffers can begin anywhere.
        let bytes = QUEUES * DEPTH * (REQUEST_SECTORS + 8) * SECTOR;
        let file = File::from(memfd_create(c"buffers", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(bytes as u64).unwrap();
        let length = bytes.try_into().unwrap();
        // SAFETY: a fresh mapping at an address of the kernel's choice, of a file of that length.
        let base = unsafe {
            mmap(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, &file, 0)
                .unwrap()
        };
        Buffers { base: base.cast(), bytes, file }
    }

    /// The buffer of one request in flight, beginning `shift` bytes behind its aligned start.
    fn pointer(&self, queue: usize, slot: usize, shift: usize) -> *mut u8 {
        let at = (queue * DEPTH + slot) * (REQUEST_SECTORS + 8) * SECTOR + shift;
        assert!(at < self.bytes && shift < 8 * SECTOR);
        // SAFETY: inside the mapping, as just checked.
        unsafe { self.base.as_ptr().add(at) }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; the device is gone.
        unsafe { munmap(self.base.cast(), self.bytes).unwrap() };
    }
}

/// A seeded generator (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// What was asked; `data` is what the disk holds there afterwards, per sector (0: zeroes), or `None` for a read.
struct Flight {
    first: usize,
    count: usize,
    shift: usize,
    written: Option<u32>,
    discard: bool,
}

/// What a sector may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sector {
    /// The pattern of this generation; 0 is all zeroes.
    Generation(u32),
    /// Discarded: zeroes, or what was there before.
    Discarded(u32),
}

struct Model {
    sectors: Vec<Sector>,
    /// Sectors of requests in flight: nothing else touches them.
    busy: Vec<bool>,
    generation: u32,
}

fn sector_bytes(index: usize, generation: u32) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    if generation != 0 {
        for (place, word) in bytes.chunks_exact_mut(8).enumerate() {
            let value = u64::from(generation) << 32 | (index as u64) << 8 | place as u64;
            word.copy_from_slice(&value.to_le_bytes());
        }
    }
    bytes
}

impl Model {
    /// A run of sectors that nothing in flight touches.
    fn choose(&self, random: &mut Random) -> Option<(usize, usize)> {
        let count = 1 + random.below(REQUEST_SECTORS);
        let first = random.below(SECTORS - count);
        (!self.busy[first..first + count].contains(&true)).then_some((first, count))
    }

    fn check(&self, first: usize, bytes: &[u8]) {
        for (offset, found) in bytes.chunks_exact(SECTOR).enumerate() {
            let index = first + offset;
            let right = match self.sectors[index] {
                Sector::Generation(generation) => found == sector_bytes(index, generation),
                Sector::Discarded(before) => {
                    found == sector_bytes(index, 0) || found == sector_bytes(index, before)
                }
            };
            assert!(right, "sector {index} is not {:?}: begins with {:?}", self.sectors[index], &found[..16]);
        }
    }
}

struct Rig<'a> {
    buffers: Buffers,
    queues: Vec<VirtioBlkQueue<'a, usize>>,
    notifiers: Vec<Box<dyn QueueNotifier>>,
    flights: Vec<Vec<Option<Flight>>>,
    model: Model,
}

impl Rig<'_> {
    /// Starts one random request on `queue`, if it has room.
    fn submit(&mut self, queue: usize, random: &mut Random) {
        let Some(slot) = self.flights[queue].iter().position(Option::is_none) else { return };
        let Some((first, count)) = self.model.choose(random) else { return };
        // Most are aligned for direct I/O; some are not.
        let shift = [0, 0, 0, SECTOR, 1, 100][random.below(6)];
        let pointer = self.buffers.pointer(queue, slot, shift);
        let (at, bytes) = ((first * SECTOR) as u64, count * SECTOR);
        let mut flight = Flight { first, count, shift, written: None, discard: false };
        let ring = &mut self.queues[queue];
        match random.below(10) {
            0..4 => {
                self.model.generation += 1;
                flight.written = Some(self.model.generation);
                for offset in 0..count {
                    let data = sector_bytes(first + offset, self.model.generation);
                    // SAFETY: the buffer of this slot has room for the largest request, and no request uses it.
                    unsafe { pointer.add(offset * SECTOR).copy_from_nonoverlapping(data.as_ptr(), SECTOR) };
                }
                // SAFETY: the buffer lives until the completion was taken.
                unsafe { ring.write_raw(at, pointer, bytes, slot).unwrap() };
            }
            4 => {
                flight.written = Some(0);
                ring.write_zeroes(at, bytes as u64, random.below(2) == 0, slot).unwrap();
            }
            5 => {
                flight.discard = true;
                ring.discard(at, bytes as u64, slot).unwrap();
            }
            6 if random.below(8) == 0 => {
                flight.count = 0;
                ring.flush(slot).unwrap();
            }
            // SAFETY: as for writes.
            _ => unsafe { ring.read_raw(at, pointer, bytes, slot).unwrap() },
        }
        self.model.busy[first..first + flight.count].fill(true);
        self.flights[queue][slot] = Some(flight);
        if self.queues[queue].avail_notif_needed() {
            self.notifiers[queue].notify().unwrap();
        }
    }

    /// Takes the answers that are there; how many.
    fn complete(&mut self, queue: usize) -> usize {
        let done: Vec<_> = self.queues[queue].completions().map(|done| (done.context, done.ret)).collect();
        for &(slot, ret) in &done {
            let flight = self.flights[queue][slot].take().expect("a request in flight");
            assert_eq!(ret, 0, "sectors {} + {}", flight.first, flight.count);
            let run = flight.first..flight.first + flight.count;
            self.model.busy[run.clone()].fill(false);
            match flight.written {
                Some(generation) => self.model.sectors[run].fill(Sector::Generation(generation)),
                None if flight.discard => {
                    for sector in &mut self.model.sectors[run] {
                        if let Sector::Generation(before) = *sector {
                            *sector = Sector::Discarded(before);
                        }
                    }
                }
                None => {
                    let pointer = self.buffers.pointer(queue, slot, flight.shift);
                    // SAFETY: the device has answered and no request uses the buffer.
                    let bytes = unsafe { std::slice::from_raw_parts(pointer, flight.count * SECTOR) };
                    self.model.check(flight.first, bytes);
                }
            }
        }
        done.len()
    }
}

/// Sleeps until the device signals.
fn wait_for(signal: &EventFd) {
    let mut fds = [PollFd::new(signal.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(20_000u16)), Ok(1), "the device does not signal");
    signal.read().unwrap();
}

fn start_daemon(runtime: &tokio::runtime::Runtime, dir: &std::path::Path) -> Daemon {
    let config = DaemonConfig {
        state_dir: dir.join("state"),
        run_dir: dir.join("run"),
        metrics: None,
        cores: vec![0, 1],
        spin_us: 50,
    };
    runtime.block_on(Daemon::start(config)).unwrap()
}

#[test]
fn every_sector_is_what_was_written_last() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = start_daemon(&runtime, dir.path());
    let image = dir.path().join("v0.img");
    let body = json!({"name": "v0", "file": image, "size_bytes": SECTORS * SECTOR, "queues": QUEUES});
    daemon.volumes().create(read_create(body).unwrap()).unwrap();

    let features = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
    let device = VirtioBlkFeatureFlags::MQ
        | VirtioBlkFeatureFlags::FLUSH
        | VirtioBlkFeatureFlags::DISCARD
        | VirtioBlkFeatureFlags::WRITE_ZEROES;
    let path = dir.path().join("run/v0.sock").display().to_string();
    let mut transport =
        VhostUser::<VirtioBlkConfig, VirtioBlkReqBuf>::new(&path, features.bits() | device.bits()).unwrap();
    let buffers = Buffers::new();
    transport.map_mem_region(buffers.base.addr().get(), buffers.bytes, buffers.file.as_raw_fd(), 0).unwrap();
    assert_eq!(transport.get_config().unwrap().num_queues.to_native(), QUEUES as u16);
    let mut transport: Box<dyn VirtioTransport<VirtioBlkConfig, VirtioBlkReqBuf>> = Box::new(transport);
    let mut queues = VirtioBlkQueue::<usize>::setup_queues(transport.as_mut(), QUEUES, 64).unwrap();
    queues.iter_mut().for_each(|queue| queue.set_used_notif_enabled(true));
    let notifiers = (0..QUEUES).map(|queue| transport.get_submission_notifier(queue)).collect();
    let answers: Vec<_> = (0..QUEUES).map(|queue| transport.get_completion_fd(queue)).collect();
    let mut rig = Rig {
        buffers,
        queues,
        notifiers,
        flights: (0..QUEUES).map(|_| (0..DEPTH).map(|_| None).collect()).collect(),
        model: Model {
            sectors: vec![Sector::Generation(0); SECTORS],
            busy: vec![false; SECTORS],
            generation: 0,
        },
    };
    let mut random = Random(0x5eed_0001);
    let mut answered = 0;
    while answered < ROUNDS {
        for queue in 0..QUEUES {
            (0..DEPTH).for_each(|_| rig.submit(queue, &mut random));
        }
        for (queue, signal) in answers.iter().enumerate() {
            let mut taken = rig.complete(queue);
            while taken == 0 && rig.flights[queue].iter().any(Option::is_some) {
                wait_for(signal);
                taken = rig.complete(queue);
            }
            answered += taken;
        }
    }
    for (queue, signal) in answers.iter().enumerate() {
        while rig.flights[queue].iter().any(Option::is_some) {
            if rig.complete(queue) == 0 {
                wait_for(signal);
            }
        }
    }
    drop(transport);
    runtime.block_on(daemon.stop());
    let stored = std::fs::read(image).unwrap();
    assert_eq!(stored.len(), SECTORS * SECTOR);
    rig.model.check(0, &stored);
    assert!(rig.model.generation > ROUNDS as u32 / 4, "the load wrote little");
}
