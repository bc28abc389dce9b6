//! A vhost-user-blk frontend that loads a server: one virtqueue, a fixed number of requests in flight.
//!
//! Rings and messages are those of the crate `virtio-driver`, so that nothing of the server's own code is measured
//! against itself. The client waits for the call eventfd, as a guest does that takes interrupts.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue,
    VirtioBlkReqBuf, VirtioBlkTransport, VirtioFeatureFlags, VirtioTransport,
};

use crate::usage::Usage;

/// Entries of the virtqueue.
const QUEUE_SIZE: u16 = 256;
/// Time before a measurement in which caches warm up.
const WARM_UP: Duration = Duration::from_millis(300);
/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// What a block looks like before its first write: bytes that a compressing device cannot make vanish.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// What the requests do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads at random places.
    RandomRead,
    /// Writes at random places.
    RandomWrite,
}

/// One kind of load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Reads or writes.
    pub op: Op,
    /// Bytes a request.
    pub block_bytes: usize,
    /// Requests in flight.
    pub depth: usize,
}

/// What a load brought.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Requests a second.
    pub iops: f64,
    /// Median time of a request in microseconds.
    pub p50_us: f64,
    /// Time that 99 of 100 requests stay below, in microseconds.
    pub p99_us: f64,
    /// Processor time of the server per request, in nanoseconds.
    pub server_cpu_ns: f64,
}

/// Memory shared with the server.
struct Buffers {
    start: std::ptr::NonNull<libc::c_void>,
    len: usize,
    file: File,
}

impl Buffers {
    fn new(len: usize) -> anyhow::Result<Buffers> {
        let len = len.next_multiple_of(2 << 20);
        let file = File::from(memfd_create(c"bench-buffers", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(len as u64)?;
        let size = len.try_into()?;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: a fresh mapping at an address the kernel chooses.
        let start =
            unsafe { mmap(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags, &file, 0)? };
        let buffers = Buffers { start, len, file };
        let mut value = SEED;
        for offset in (0..len).step_by(8) {
            value = value.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let bytes = (value ^ value >> 29).to_le_bytes();
            // SAFETY: the length is a multiple of 8, so these 8 bytes lie in the mapping.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffers.at(offset), bytes.len()) };
        }
        Ok(buffers)
    }

    fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.len);
        // SAFETY: inside the mapping.
        unsafe { self.start.as_ptr().cast::<u8>().add(offset) }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: our mapping, and no server uses it once the connection is closed (it is dropped before).
        let _ = unsafe { munmap(self.start, self.len) };
    }
}

/// A connected frontend. The order of the fields is that of their end: the connection goes before its memory.
pub struct Client {
    queue: VirtioBlkQueue<'static, usize>,
    notifier: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    _device: Box<VirtioBlkTransport>,
    buffers: Buffers,
    load: Load,
    blocks: u64,
    random: u64,
    started: Vec<Instant>,
    free: Vec<usize>,
}

/// Times of requests in steps of 1.6 %: 64 linear steps per power of two of nanoseconds.
struct Histogram(Vec<u64>);

impl Histogram {
    fn new() -> Histogram {
        Histogram(vec![0; 64 * 40])
    }

    fn add(&mut self, time: Duration) {
        let ns = (time.as_nanos() as u64).max(64);
        let shift = ns.ilog2() - 6;
        let place = 64 * shift as usize + (ns >> shift) as usize;
        let last = self.0.len() - 1;
        self.0[place.min(last)] += 1;
    }

    /// The value that `share` of all stay at or below, in microseconds.
    fn share_us(&self, share: f64) -> f64 {
        let wanted = (self.0.iter().sum::<u64>() as f64 * share).ceil() as u64;
        let mut seen = 0;
        let at = self.0.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        let place = at.unwrap_or(0);
        let shift = (place / 64).saturating_sub(1);
        (((place - 64 * shift) << shift) as f64 + (1u64 << shift) as f64 / 2.0) / 1e3
    }
}

impl Client {
    /// Connects to the server on `socket` and makes its queue.
    ///
    /// # Errors
    /// When the server refuses, or its disk is smaller than one block.
    pub fn connect(socket: &Path, load: Load) -> anyhow::Result<Client> {
        let path = socket.to_str().context("the socket's path is not UTF-8")?;
        // A driver that does not know FLUSH would get every write through to the medium.
        let wanted = VirtioFeatureFlags::VERSION_1.bits()
            | VirtioFeatureFlags::RING_EVENT_IDX.bits()
            | VirtioBlkFeatureFlags::FLUSH.bits();
        let buffers = Buffers::new(load.depth * load.block_bytes)?;
        let mut device: VhostUser<VirtioBlkConfig, VirtioBlkReqBuf> =
            VhostUser::new(path, wanted).with_context(|| format!("connecting to {path}"))?;
        let config: VirtioBlkConfig = device.get_config()?;
        let capacity = { config.capacity }.to_native() * 512;
        device.map_mem_region(buffers.at(0) as usize, buffers.len, buffers.file.as_raw_fd(), 0)?;
        let mut device: Box<VirtioBlkTransport> = Box::new(device);
        let queue = VirtioBlkQueue::setup_queues(&mut *device, 1, QUEUE_SIZE)?;
        let queue = queue.into_iter().next().context("no queue was made")?;
        let blocks = capacity / load.block_bytes as u64;
        ensure!(blocks > 0, "the disk has {capacity} bytes, less than a block of {}", load.block_bytes);
        Ok(Client {
            queue,
            notifier: device.get_submission_notifier(0),
            call: device.get_completion_fd(0),
            _device: device,
            buffers,
            load,
            blocks,
            random: SEED,
            started: vec![Instant::now(); load.depth],
            free: (0..load.depth).collect(),
        })
    }

    /// Runs the load for a warm-up and `seconds` more; `server` is the process that serves it.
    ///
    /// # Errors
    /// A failed request, or a server that stopped answering.
    pub fn measure(&mut self, seconds: f64, server: u32) -> anyhow::Result<Figures> {
        self.run(WARM_UP)?;
        let before = Usage::of(server)?;
        let start = Instant::now();
        let (requests, times) = self.run(Duration::from_secs_f64(seconds))?;
        let elapsed = start.elapsed().as_secs_f64();
        let cpu = Usage::of(server)?.cpu_seconds - before.cpu_seconds;
        ensure!(requests > 0, "no request was answered");
        Ok(Figures {
            iops: requests as f64 / elapsed,
            p50_us: times.share_us(0.5),
            p99_us: times.share_us(0.99),
            server_cpu_ns: cpu * 1e9 / requests as f64,
        })
    }

    /// One request in every `step_bytes` of the first `bytes`: in order, or each place once in an order that looks random.
    ///
    /// # Errors
    /// A failed request, or a server that stopped answering.
    pub fn pass(&mut self, bytes: u64, step_bytes: u64, scrambled: bool) -> anyhow::Result<Figures> {
        let mut times = Histogram::new();
        let places = bytes / step_bytes;
        // A step that shares no factor with the number of places visits each once.
        let stride = (places * 5 / 8..).find(|step| gcd(*step, places) == 1).unwrap_or(1);
        let start = Instant::now();
        for at in 0..places {
            let place = if scrambled { at * stride % places } else { at };
            while self.free.is_empty() {
                self.kick()?;
                self.collect(&mut times)?;
            }
            let block = place * step_bytes / self.load.block_bytes as u64;
            self.submit(self.load.op, block, Instant::now())?;
            self.kick()?;
        }
        self.drain(&mut times)?;
        let iops = places as f64 / start.elapsed().as_secs_f64();
        let (p50_us, p99_us) = (times.share_us(0.5), times.share_us(0.99));
        Ok(Figures { iops, p50_us, p99_us, server_cpu_ns: 0.0 })
    }

    /// Requests at a steady rate for a warm-up and `seconds` more, whether earlier ones are done or not, as long as the depth
    /// allows it: the load of guests that do not wait for this disk alone. Times count from when a request was due.
    ///
    /// # Errors
    /// A failed request.
    pub fn steady(&mut self, seconds: f64, per_second: u32) -> anyhow::Result<Figures> {
        let mut times = Histogram::new();
        let (begin, pause) = (Instant::now(), Duration::from_secs(1) / per_second);
        let end = begin + WARM_UP + Duration::from_secs_f64(seconds);
        let (mut due, mut requests, mut warm) = (begin, 0, false);
        loop {
            let now = Instant::now();
            if now >= end {
                break;
            }
            if !warm && now >= begin + WARM_UP {
                (times, requests, warm) = (Histogram::new(), 0, true);
            }
            while due <= now && !self.free.is_empty() {
                let block = self.random_block();
                self.submit(self.load.op, block, due)?;
                due += pause;
            }
            self.kick()?;
            requests += self.take(&mut times)?;
        }
        self.drain(&mut times)?;
        let (p50_us, p99_us) = (times.share_us(0.5), times.share_us(0.99));
        Ok(Figures { iops: requests as f64 / seconds, p50_us, p99_us, server_cpu_ns: 0.0 })
    }

    fn run(&mut self, time: Duration) -> anyhow::Result<(u64, Histogram)> {
        let mut times = Histogram::new();
        let mut requests = 0;
        let mut now = Instant::now();
        let end = now + time;
        while now < end {
            while !self.free.is_empty() {
                let block = self.random_block();
                self.submit(self.load.op, block, now)?;
            }
            self.kick()?;
            requests += self.collect(&mut times)?;
            now = Instant::now();
        }
        self.drain(&mut times)?;
        Ok((requests, times))
    }

    fn drain(&mut self, times: &mut Histogram) -> anyhow::Result<()> {
        self.kick()?;
        while self.free.len() < self.load.depth {
            self.collect(times)?;
        }
        Ok(())
    }

    fn random_block(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % self.blocks
    }

    fn submit(&mut self, op: Op, block: u64, now: Instant) -> anyhow::Result<()> {
        let slot = self.free.pop().context("more requests than slots")?;
        let bytes = self.load.block_bytes;
        let buffer = self.buffers.at(slot * bytes);
        let offset = block * bytes as u64;
        self.started[slot] = now;
        match op {
            // SAFETY: the slot's part of the shared memory is used by this request alone until it completes.
            Op::RandomRead => unsafe { self.queue.read_raw(offset, buffer, bytes, slot)? },
            // SAFETY: as above.
            Op::RandomWrite => unsafe { self.queue.write_raw(offset, buffer, bytes, slot)? },
        }
        Ok(())
    }

    fn kick(&mut self) -> io::Result<()> {
        if self.queue.avail_notif_needed() { self.notifier.notify() } else { Ok(()) }
    }

    /// Takes what is complete.
    fn take(&mut self, times: &mut Histogram) -> anyhow::Result<u64> {
        let mut taken = 0;
        let mut now = None;
        for completion in self.queue.completions() {
            ensure!(
                completion.ret == 0,
                "a request failed: {}",
                io::Error::from_raw_os_error(-completion.ret)
            );
            let now = *now.get_or_insert_with(Instant::now);
            times.add(now.duration_since(self.started[completion.context]));
            self.free.push(completion.context);
            taken += 1;
        }
        Ok(taken)
    }

    /// Takes what is complete; sleeps until something is.
    fn collect(&mut self, times: &mut Histogram) -> anyhow::Result<u64> {
        let mut asked = false;
        loop {
            let taken = self.take(times)?;
            if taken > 0 {
                if asked {
                    self.queue.set_used_notif_enabled(false);
                }
                return Ok(taken);
            }
            if asked {
                self.wait()?;
            } else {
                // Asked for first, looked at again, slept then: no signal gets lost.
                self.queue.set_used_notif_enabled(true);
                asked = true;
            }
        }
    }

    fn wait(&self) -> anyhow::Result<()> {
        let mut fds = [PollFd::new(self.call.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::try_from(ANSWER_LIMIT)?)? == 0 {
            bail!("no answer for {} s", ANSWER_LIMIT.as_secs());
        }
        self.call.read()?;
        Ok(())
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_times() {
        let mut times = Histogram::new();
        for us in [1, 5, 5, 5, 100] {
            times.add(Duration::from_micros(us));
        }
        assert!((times.share_us(0.5) - 5.0).abs() < 0.05, "{}", times.share_us(0.5));
        times.add(Duration::ZERO);
        times.add(Duration::from_secs(1 << 20));
        for _ in 0..10 {
            times.add(Duration::from_millis(3));
        }
        assert!((times.share_us(0.5) - 3000.0).abs() < 30.0, "{}", times.share_us(0.5));
    }
}
