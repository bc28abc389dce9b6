//! The data path as others see it: worker threads, and the commands they take.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use reactor::{WorkerConfig, WorkerHandle};
use telemetry::{RateLimited, Registry};
use virtq::Queue;

use crate::capture::{Capture, CaptureSpec, capture};
use crate::fdb::Fdb;
use crate::model::{Clock, Fence, PacketInSender, PacketOut, PortCounters, PortNo, Snapshot, SwitchControl};
use crate::port::backend::{Homes, worker_of_pair};
use crate::worker::{
    BUFFER_BYTES, Command, NewPort, NewQueue, PortCells, PortReader, QueueName, SocketKind, SwitchWorker,
    WorkerCells, WorkerSetup, connect,
};

/// Packet-outs that may wait for the workers.
const PACKET_OUTS_MAX: usize = 1024;
/// Buffers of each worker for frames of tap devices and packet sockets.
const BUFFERS: u32 = 1024;

/// How the data path is set up.
pub struct DataPathConfig {
    /// Processors to pin workers to; empty: one worker that is not pinned.
    pub cores: Vec<usize>,
    /// How long a worker without work polls before it sleeps, in microseconds.
    pub spin_us: u32,
    /// See [`Fdb::new`].
    pub seed: u64,
    /// See [`crate::config::PacketInLimits::port`].
    pub packet_ins_per_second: u32,
}

/// The device of the host behind a port.
pub struct HostDevice {
    /// The open device.
    pub fd: OwnedFd,
    /// What it is.
    pub kind: HostDeviceKind,
}

/// What kind of device of the host a port has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostDeviceKind {
    /// A tap device, opened by [`reactor::netdev::open_tap`].
    Tap,
    /// A packet socket, opened by [`reactor::netdev::open_packet`].
    Packet,
}

struct Entry {
    home: usize,
    readers: Vec<PortReader>,
}

/// The worker threads of a switch.
pub struct DataPath {
    workers: Vec<WorkerHandle<Command>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    epochs: Vec<Arc<AtomicU64>>,
    ports: Mutex<HashMap<PortNo, Entry>>,
    homes: Homes,
    packet_outs: Arc<AtomicUsize>,
    registry: Registry,
}

impl DataPath {
    /// Starts the workers.
    ///
    /// # Errors
    /// A core does not exist, or the host has no io_uring for us.
    pub fn start(
        config: &DataPathConfig,
        registry: &Registry,
        clock: Clock,
        fdb: &Arc<Fdb>,
        packet_ins: &PacketInSender,
    ) -> io::Result<Arc<DataPath>> {
        let cores: Vec<Option<usize>> = match &config.cores[..] {
            [] => vec![None],
            cores => cores.iter().copied().map(Some).collect(),
        };
        let handles = Arc::new(OnceLock::new());
        let log = Arc::new(RateLimited::per_minute());
        let snapshot = Arc::new(Snapshot::initial(cores.len()));
        let (mut workers, mut threads, mut epochs) = (Vec::new(), Vec::new(), Vec::new());
        for (peers, core) in connect(cores.len(), &handles)?.into_iter().zip(&cores) {
            let name = format!("switch-{}", peers.index);
            let cells = worker_cells(registry, &name);
            epochs.push(cells.epoch.clone());
            let setup = WorkerSetup {
                index: peers.index,
                snapshot: snapshot.clone(),
                fdb: fdb.clone(),
                seed: config.seed,
                packet_ins_per_second: config.packet_ins_per_second,
                clock,
                packet_ins: packet_ins.clone(),
                cells,
                peers,
                log: log.clone(),
            };
            match spawn(name, *core, config.spin_us, registry, setup) {
                Ok((worker, thread)) => {
                    workers.push(worker);
                    threads.push(thread);
                }
                Err(error) => {
                    stop(&workers, threads);
                    return Err(error);
                }
            }
        }
        assert!(handles.set(workers.clone()).is_ok(), "nobody else sets it");
        Ok(Arc::new(DataPath {
            workers,
            threads: Mutex::new(threads),
            epochs,
            ports: Mutex::default(),
            homes: Homes::default(),
            packet_outs: Arc::default(),
            registry: registry.clone(),
        }))
    }

    /// Ends the workers. Ports are to be removed before.
    pub fn stop(&self) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        stop(&self.workers, threads);
    }

    /// The epoch each worker decides by.
    pub fn epochs(&self) -> Vec<u64> {
        self.epochs.iter().map(|epoch| epoch.load(Ordering::Acquire)).collect()
    }

    fn ports(&self) -> MutexGuard<'_, HashMap<PortNo, Entry>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a port known to the workers. It gets frames once a snapshot has it with its link up.
    ///
    /// # Errors
    /// The number is taken, or the worker cannot use the device.
    pub fn add_port(
        &self,
        number: PortNo,
        name: &str,
        mtu: u16,
        device: Option<HostDevice>,
    ) -> io::Result<()> {
        let mut ports = self.ports();
        if ports.contains_key(&number) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("port {number} exists")));
        }
        let home = self.homes.next(self.workers.len());
        let mut device = device;
        let mut readers = Vec::new();
        for (index, worker) in self.workers.iter().enumerate() {
            let cells = PortCells::new(&self.registry, name);
            readers.push(cells.reader());
            let socket = device.take_if(|_| index == home).map(|device| {
                let kind = match device.kind {
                    HostDeviceKind::Tap => SocketKind::Tap,
                    HostDeviceKind::Packet => SocketKind::Packet,
                };
                (device.fd, kind)
            });
            let port = Box::new(NewPort { number, name: name.into(), mtu, home, cells, socket });
            let added = worker.call(|reply| Command::AddPort(port, reply)).map_err(io::Error::other);
            if let Err(error) = added.flatten() {
                for worker in &self.workers[..index] {
                    let _ = worker.call(|reply| Command::RemovePort(number, reply));
                }
                return Err(error);
            }
        }
        ports.insert(number, Entry { home, readers });
        Ok(())
    }

    /// Makes the workers forget a port whose rings were stopped.
    pub fn remove_port(&self, number: PortNo) {
        if self.ports().remove(&number).is_some() {
            for worker in &self.workers {
                // A worker that ended has forgotten it.
                let _ = worker.call(|reply| Command::RemovePort(number, reply));
            }
        }
    }

    /// Gives a ring to a worker; returns which. It runs when this returns.
    pub(crate) fn start_queue(&self, pair: usize, queue: NewQueue) -> io::Result<usize> {
        let home = self.ports().get(&queue.name.port).map(|port| port.home);
        let home = home.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the port is gone"))?;
        let index = worker_of_pair(home, pair, self.workers.len());
        let queue = Box::new(queue);
        let started = self.workers[index].call(|reply| Command::StartQueue(queue, reply));
        started.map_err(io::Error::other).flatten().map(|()| index)
    }

    /// Takes a ring back, published and drained.
    pub(crate) fn stop_queue(&self, worker: usize, name: QueueName) -> Option<Queue> {
        self.workers[worker].call(|reply| Command::StopQueue(name, reply)).ok().flatten()
    }

    pub(crate) fn set_call(&self, worker: usize, name: QueueName, call: Option<OwnedFd>) {
        // A worker that ended signals nobody.
        let _ = self.workers[worker].call(|reply| Command::SetCall(name, call, reply));
    }

    /// Begins to show the workers' frames to a capture, which ends when it is dropped.
    pub fn capture(self: &Arc<DataPath>, spec: CaptureSpec) -> Capture {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let data_path = self.clone();
        let (tap, capture) = capture(id, spec, move || data_path.send_all(|| Command::EndCapture(id)));
        self.send_all(|| Command::Capture(tap.clone()));
        capture
    }

    pub(crate) fn announce(&self, port: PortNo, mac: [u8; 6]) {
        let home = self.ports().get(&port).map(|port| port.home);
        if let Some(home) = home {
            let _ = self.workers[home].send(Command::Announce(port, mac));
        }
    }

    fn send_all(&self, command: impl Fn() -> Command) {
        for worker in &self.workers {
            // Nothing to do for a worker that ended: the process is stopping.
            let _ = worker.send(command());
        }
    }
}

fn worker_cells(registry: &Registry, name: &str) -> WorkerCells {
    let labels = [("worker", name)];
    WorkerCells {
        cache_hits: registry.counter(
            "sluice_switch_flow_cache_hits_total",
            "Packets whose decision was in the worker's cache.",
            &labels,
        ),
        cache_misses: registry.counter(
            "sluice_switch_flow_cache_misses_total",
            "Packets that had to be looked up in the flow tables.",
            &labels,
        ),
        epoch: Arc::default(),
    }
}

fn spawn(
    name: String,
    core: Option<usize>,
    spin_us: u32,
    registry: &Registry,
    setup: WorkerSetup,
) -> io::Result<(WorkerHandle<Command>, JoinHandle<()>)> {
    let config = WorkerConfig {
        name,
        core,
        ring_entries: 512,
        operations_max: 8192,
        files_max: 4096,
        buffers: BUFFERS,
        buffer_bytes: BUFFER_BYTES,
        spin_us,
        ..WorkerConfig::default()
    };
    reactor::spawn(config, registry, move |io| SwitchWorker::new(setup, io))
}

fn stop(workers: &[WorkerHandle<Command>], threads: Vec<JoinHandle<()>>) {
    for worker in workers {
        // One that ended already needs no word.
        let _ = worker.send(Command::Stop);
    }
    for thread in threads {
        let _ = thread.join();
    }
}

impl SwitchControl for DataPath {
    fn workers(&self) -> usize {
        self.workers.len()
    }

    fn publish(&self, snapshot: Arc<Snapshot>) {
        self.send_all(|| Command::Apply(snapshot.clone()));
    }

    fn fence(&self, fence: Fence) {
        // The first worker sends packet-outs, perhaps to ports of others: they get the fence from it.
        let _ = self.workers[0].send(Command::Fence(fence));
    }

    fn drain_counters(&self, fence: Fence) {
        self.send_all(|| Command::Drain(fence.clone()));
    }

    fn packet_out(&self, packet: PacketOut) -> bool {
        if self.packet_outs.fetch_add(1, Ordering::Relaxed) >= PACKET_OUTS_MAX {
            self.packet_outs.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        self.workers[0].send(Command::PacketOut(Box::new(packet), self.packet_outs.clone())).is_ok()
    }

    fn port_counters(&self, port: PortNo) -> Option<PortCounters> {
        let ports = self.ports();
        let mut sum = PortCounters::default();
        ports.get(&port)?.readers.iter().for_each(|reader| reader.add_to(&mut sum));
        Some(sum)
    }
}
