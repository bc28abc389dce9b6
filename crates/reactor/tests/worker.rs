//! A worker on real files, pipes, eventfds and packet sockets.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use reactor::{Buffer, Buffers, Full, Gone, Io, Reply, Worker, WorkerConfig, WorkerHandle, spawn};
use telemetry::Registry;
use virtq::{GuestMemory, GuestSlice, RegionHint};

type Job = Box<dyn FnOnce(&mut Probe, &mut Io) + Send>;

/// Runs whatever the test sends and remembers what completed.
#[derive(Default)]
struct Probe {
    completed: VecDeque<(u64, i32, Option<Buffer>)>,
    waiting: VecDeque<Reply<(u64, i32, Option<Buffer>)>>,
    next_tick: Option<Instant>,
    ticks: u32,
    poll_work: u32,
    arms: u32,
}

impl Probe {
    fn answer(&mut self) {
        while !self.completed.is_empty() && !self.waiting.is_empty() {
            self.waiting.pop_front().unwrap().send(self.completed.pop_front().unwrap());
        }
    }
}

impl Worker for Probe {
    type Command = Job;

    fn command(&mut self, io: &mut Io, job: Job) {
        job(self, io);
        self.answer();
    }

    fn completion(&mut self, io: &mut Io, token: u64, result: i32) {
        self.completed.push_back((token, result, io.take_buffer()));
        self.answer();
    }

    fn poll(&mut self, _io: &mut Io) -> bool {
        let work = self.poll_work > 0;
        self.poll_work = self.poll_work.saturating_sub(1);
        work
    }

    fn arm(&mut self, _io: &mut Io) -> bool {
        self.arms += 1;
        self.poll_work > 0
    }

    fn disarm(&mut self, _io: &mut Io) {}

    fn deadline(&mut self, _now: Instant) -> Option<Instant> {
        self.next_tick
    }

    fn tick(&mut self, _io: &mut Io, now: Instant) {
        self.ticks += 1;
        self.next_tick = (self.ticks < 20).then(|| now + Duration::from_millis(5));
    }
}

struct Bench {
    worker: WorkerHandle<Job>,
    thread: Option<JoinHandle<()>>,
    registry: Registry,
}

impl Bench {
    fn new(config: WorkerConfig) -> Bench {
        let registry = Registry::new();
        let (worker, thread) = spawn(config, &registry, |_| Probe::default()).expect("a worker");
        Bench { worker, thread: Some(thread), registry }
    }

    /// Runs `job` on the worker and returns what it returns.
    fn on<R: Send + 'static>(&self, job: impl FnOnce(&mut Probe, &mut Io) -> R + Send + 'static) -> R {
        let make = |reply: Reply<R>| -> Job { Box::new(move |probe, io| reply.send(job(probe, io))) };
        self.worker.call(make).expect("the worker lives")
    }

    /// The next completion: token, result, buffer.
    fn next(&self) -> (u64, i32, Option<Buffer>) {
        let make =
            |reply| -> Job { Box::new(move |probe: &mut Probe, _: &mut Io| probe.waiting.push_back(reply)) };
        self.worker.call(make).expect("the worker lives")
    }

    fn done(&self) -> (u64, i32) {
        let (token, result, _) = self.next();
        (token, result)
    }

    fn metric(&self, name: &str) -> f64 {
        let text = self.registry.encode();
        let line = text.lines().find(|line| line.starts_with(name)).expect("the metric is there");
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.worker.send(Box::new(|_, io| io.stop()));
        self.thread.take().unwrap().join().expect("the worker ends cleanly");
    }
}

fn memory() -> (Arc<GuestMemory>, impl Fn(&GuestMemory, u64, u32) -> GuestSlice) {
    let memory = Arc::new(GuestMemory::anonymous(&[(0, 1 << 20)]));
    (memory, |memory, address, len| memory.slice(&mut RegionHint::default(), address, len).expect("in range"))
}

fn pipe() -> (PipeReader, PipeWriter) {
    std::io::pipe().unwrap()
}

#[test]
fn guest_memory_goes_to_a_file_and_back() {
    let bench = Bench::new(WorkerConfig::default());
    let file = tempfile::tempfile().unwrap();
    let (memory, slice) = memory();
    let segments = [slice(&memory, 0, 100), slice(&memory, 5000, 1), slice(&memory, 10_000, 8000)];
    for (n, segment) in segments.iter().enumerate() {
        memory.write(*segment, 0, &vec![n as u8 + 1; segment.len() as usize]);
    }
    let target = slice(&memory, 100_000, 4096);
    let held = memory.clone();
    let fd = file.as_fd().try_clone_to_owned().unwrap();
    bench.on(move |_, io| {
        let file = io.add_file(fd.as_fd()).unwrap();
        let memory = io.add_memory(held);
        let from = Buffers::Guest { memory, segments: &segments, skip: 99, len: 4002 };
        io.write(file, 512, from, 1).unwrap();
    });
    assert_eq!(bench.done(), (1, 4002));
    let mut written = vec![0; 4002];
    file.read_exact_at(&mut written, 512).unwrap();
    assert_eq!(written[..3], [1, 2, 3]);
    assert!(written[2..].iter().all(|&byte| byte == 3));
    assert_eq!(file.metadata().unwrap().len(), 512 + 4002);
    bench.on(move |_, io| {
        let file = io.add_file(file.as_fd()).unwrap();
        let memory = io.add_memory(GuestMemory::anonymous(&[(0, 4096)]).into());
        let other = GuestMemory::anonymous(&[(0, 4096)]);
        let segment = other.slice(&mut RegionHint::default(), 0, 4096).unwrap();
        io.read(file, 4000, Buffers::Guest { memory, segments: &[segment], skip: 0, len: 4096 }, 2).unwrap();
        io.fsync(file, true, 3).unwrap();
        io.fallocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 512, 100, 4).unwrap();
    });
    let mut done = [bench.done(), bench.done(), bench.done()];
    done.sort_unstable();
    assert_eq!(done, [(2, 514), (3, 0), (4, 0)], "a read at the end of the file is short");
    assert_eq!(target.len(), 4096);
}

#[test]
fn a_pool_buffer_travels_with_its_operation() {
    let bench = Bench::new(WorkerConfig { buffers: 2, buffer_bytes: 8192, ..WorkerConfig::default() });
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(b"hello", 3).unwrap();
    let free = bench.on(move |_, io| {
        let file = io.add_file(file.as_fd()).unwrap();
        let (one, mut other) = (io.buffer().unwrap(), io.buffer().unwrap());
        assert!(io.buffer().is_none());
        io.bytes_mut(&mut other)[..2].copy_from_slice(b"HE");
        io.write(file, 3, Buffers::Pool(other, 0..2), 1).unwrap();
        io.flush();
        io.read(file, 3, Buffers::Pool(one, 0..5), 2).unwrap();
        io.free_buffers()
    });
    assert_eq!(free, 0);
    let mut read = None;
    for _ in 0..2 {
        let (token, result, buffer) = bench.next();
        match token {
            1 => assert_eq!(result, 2),
            _ => {
                assert_eq!(result, 5);
                read = buffer;
                continue;
            }
        }
        let buffer = buffer.unwrap();
        bench.on(move |_, io| io.release(buffer));
    }
    let buffer = read.expect("the read's buffer");
    let (start, free) = bench.on(move |_, io| {
        let start = io.bytes(&buffer)[2..5].to_vec();
        io.release(buffer);
        (start, io.free_buffers())
    });
    assert_eq!((&start[..], free), (&b"llo"[..], 2));
}

#[test]
fn a_full_ring_says_so_and_recovers() {
    // One of the four is the mailbox's watch.
    let bench = Bench::new(WorkerConfig { operations_max: 4, ring_entries: 2, ..WorkerConfig::default() });
    let (reader, mut writer) = pipe();
    let refused = bench.on(move |_, io| {
        let file = io.add_file(reader.as_fd()).unwrap();
        let mut refused = 0;
        for token in 0..5 {
            let buffer = io.buffer().unwrap();
            if let Err((Full, buffer)) = io.receive(file, buffer, token) {
                refused += 1;
                io.release(buffer);
            }
        }
        refused
    });
    assert_eq!(refused, 2);
    for _ in 0..3 {
        writer.write_all(b"x").unwrap();
        assert_eq!(bench.done().1, 1);
    }
    bench.on(|_, io| mark(io, 9));
    assert_eq!(bench.done(), (9, 0));
}

/// An operation that always completes.
fn mark(io: &mut Io, token: u64) {
    let file = io.add_file(tempfile::tempfile().unwrap().as_fd()).unwrap();
    io.fsync(file, true, token).unwrap();
}

#[test]
fn a_signal_wakes_a_sleeping_worker_each_time() {
    let bench = Bench::new(WorkerConfig { spin_us: 0, ..WorkerConfig::default() });
    let kick = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let fd = kick.as_fd().try_clone_to_owned().unwrap();
    let watch = bench.on(move |_, io| io.watch(fd.as_fd(), 7).unwrap());
    // The watch is set up at the end of a pass: a signal of that very moment could be told twice.
    bench.on(|_, _| ());
    for _ in 0..100 {
        kick.write(1).unwrap();
        assert_eq!(bench.done(), (7, libc::POLLIN as i32));
    }
    bench.on(move |_, io| io.unwatch(watch));
    kick.write(1).unwrap();
    // Anything the watch still said would come before this.
    bench.on(|_, io| mark(io, 8));
    assert_eq!(bench.done(), (8, 0));
}

#[test]
fn what_cannot_be_watched_is_refused() {
    let bench = Bench::new(WorkerConfig::default());
    let refused = bench.on(|_, io| io.watch(tempfile::tempfile().unwrap().as_fd(), 7).unwrap_err());
    assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
}

#[test]
fn an_idle_worker_sleeps_and_its_timer_is_kept() {
    let bench = Bench::new(WorkerConfig { spin_us: 0, ..WorkerConfig::default() });
    let start = Instant::now();
    bench.on(|probe, io| probe.next_tick = Some(io.now()));
    while bench.on(|probe, _| probe.ticks) < 20 {
        assert!(start.elapsed() < Duration::from_secs(20), "the ticks do not come");
        std::thread::park_timeout(Duration::from_millis(50));
    }
    assert!(start.elapsed() >= Duration::from_millis(19 * 5), "ticks came too early");
    // A tick that is late already when the worker wants to sleep needs no sleep.
    let asleep = bench.metric("sluice_worker_sleeps_total");
    assert!((1.0..2000.0).contains(&asleep), "{asleep} sleeps for 20 ticks");
}

#[test]
fn work_found_while_arming_is_done_before_sleeping() {
    let bench = Bench::new(WorkerConfig { spin_us: 0, ..WorkerConfig::default() });
    bench.on(|probe, _| probe.poll_work = 1000);
    while bench.on(|probe, _| probe.poll_work) > 0 {}
    assert!(bench.metric("sluice_worker_passes_total") >= 1000.0);
    assert!(bench.metric("sluice_worker_busy_seconds_total") > 0.0);
}

#[test]
fn memory_is_held_until_its_last_operation_ended() {
    let bench = Bench::new(WorkerConfig::default());
    let (memory, slice) = memory();
    let segment = slice(&memory, 0, 4);
    let (reader, mut writer) = pipe();
    let held = memory.clone();
    bench.on(move |_, io| {
        let file = io.add_file(reader.as_fd()).unwrap();
        let (id, again) = (io.add_memory(held.clone()), io.add_memory(held));
        assert_eq!(id, again);
        io.read(file, 0, Buffers::Guest { memory: id, segments: &[segment], skip: 0, len: 4 }, 1).unwrap();
        io.remove_memory(id);
        io.remove_memory(again);
    });
    assert_eq!(Arc::strong_count(&memory), 2);
    writer.write_all(b"data").unwrap();
    assert_eq!(bench.done(), (1, 4));
    assert_eq!(Arc::strong_count(&memory), 1);
    let mut read = [0; 4];
    memory.read(segment, 0, &mut read);
    assert_eq!(&read, b"data");
}

#[test]
fn a_removed_file_ends_its_pending_receives_and_a_stopped_worker_is_gone() {
    let bench = Bench::new(WorkerConfig::default());
    let (reader, _writer) = pipe();
    let (other_reader, _other_writer) = pipe();
    let free = bench.on(move |_, io| {
        let file = io.add_file(reader.as_fd()).unwrap();
        let other = io.add_file(other_reader.as_fd()).unwrap();
        for (file, token) in [(file, 1), (other, 2)] {
            let buffer = io.buffer().unwrap();
            io.receive(file, buffer, token).unwrap();
        }
        io.flush();
        io.remove_file(file);
        io.free_buffers()
    });
    let (token, result, buffer) = bench.next();
    assert_eq!((token, result), (1, -libc::ECANCELED));
    let buffer = buffer.unwrap();
    assert_eq!(bench.on(move |_, io| (io.release(buffer), io.free_buffers()).1), free + 1);
    let worker = bench.worker.clone();
    drop(bench);
    assert_eq!(worker.send(Box::new(|_, _| ())), Err(Gone));
    assert_eq!(worker.call(|reply: Reply<()>| -> Job { Box::new(move |_, _| reply.send(())) }), Err(Gone));
}

#[test]
fn removing_a_file_leaves_others_of_the_same_file_alone() {
    let bench = Bench::new(WorkerConfig::default());
    let (reader, mut writer) = pipe();
    bench.on(move |_, io| {
        let (one, other) = (io.add_file(reader.as_fd()).unwrap(), io.add_file(reader.as_fd()).unwrap());
        let buffer = io.buffer().unwrap();
        io.receive(one, buffer, 1).unwrap();
        let buffer = io.buffer().unwrap();
        io.read(other, 0, Buffers::Pool(buffer, 0..4), 2).unwrap();
        io.remove_file(one);
    });
    assert_eq!(bench.done(), (1, -libc::ECANCELED));
    writer.write_all(b"data").unwrap();
    assert_eq!(bench.done(), (2, 4));
}

#[test]
fn a_core_that_does_not_exist_is_refused() {
    let config = WorkerConfig { core: Some(1000), ..WorkerConfig::default() };
    assert!(spawn(config, &Registry::new(), |_| Probe::default()).is_err());
}

#[test]
fn a_blocking_read_of_an_eventfd_sees_the_signals() {
    let bench = Bench::new(WorkerConfig::default());
    let call = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
    let fd = call.as_fd().try_clone_to_owned().unwrap();
    bench.on(move |_, io| (0..3).for_each(|_| io.signal(fd.as_fd())));
    let mut count = [0; 8];
    File::from(call.as_fd().try_clone_to_owned().unwrap()).read_exact(&mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 3);
}

/// A packet socket on the loopback device of a network namespace of this thread's own; `None` without the right to make
/// one.
fn packet_socket() -> Option<OwnedFd> {
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
        return None;
    }
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip(8)");
    assert!(up.success());
    let protocol = i32::from((libc::ETH_P_ALL as u16).to_be());
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: 1,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: plain socket calls with arguments that live across them; the new descriptor is owned by nobody else.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol);
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        let socket = OwnedFd::from_raw_fd(fd);
        let length = size_of::<libc::sockaddr_ll>() as u32;
        assert_eq!(libc::bind(fd, (&raw const address).cast(), length), 0);
        let one = 1i32;
        let (level, option) = (libc::SOL_PACKET, libc::PACKET_AUXDATA);
        assert_eq!(libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const one).cast(), 4), 0);
        Some(socket)
    }
}

#[test]
fn a_packet_socket_tells_the_vlan_tag() {
    // A thread of its own: the namespace is its alone.
    std::thread::spawn(|| {
        let Some(socket) = packet_socket() else { return };
        let bench = Bench::new(WorkerConfig { buffers: 4, buffer_bytes: 2048, ..WorkerConfig::default() });
        let sender = socket.try_clone().unwrap();
        bench.on(move |_, io| {
            let file = io.add_file(socket.as_fd()).unwrap();
            let buffer = io.buffer().unwrap();
            io.receive_packet(file, buffer, 1).unwrap();
        });
        // Broadcast, tag 802.1Q priority 3 VLAN 10, local experimental ethertype.
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 1, 0x81, 0x00, 0x60, 0x0a, 0x88, 0xb5]);
        frame.resize(80, 0x55);
        File::from(sender).write_all(&frame).unwrap();
        let (token, result, buffer) = bench.next();
        let buffer = buffer.unwrap();
        let (info, bytes) =
            bench.on(move |_, io| (io.packet_info(&buffer), io.bytes(&buffer)[..76].to_vec()));
        assert!(info.present && info.status & libc::TP_STATUS_VLAN_VALID != 0, "{info:?}");
        assert_eq!((info.vlan_tci, info.vlan_tpid, info.wire_bytes), (0x600a, 0x8100, 76));
        assert_eq!((token, result, &bytes[12..14]), (1, 76, &[0x88, 0xb5][..]));
    })
    .join()
    .unwrap();
}
