//! A data path without ports: each worker is a thread with a [`Forwarder`], a frame is handed to the worker of its
//! ingress port, and what would be sent is collected.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use packet::{Header, MacAddr};
use tempfile::TempDir;
use vswitch::bridge::{Bridge, BridgeConfig};
use vswitch::config::{OpenFlowAddress, PacketInLimits};
use vswitch::fdb::Fdb;
use vswitch::forwarder::{Egress, Forwarder, VerdictId};
use vswitch::model::{
    Clock, DropReason, Fence, PacketIn, PacketInSender, PacketOut, PortConfig, PortCounters, PortNo,
    Snapshot, SwitchControl, VlanMode, packet_in_queue,
};
use vswitch::openflow::{Agent, AgentConfig};

/// Longest wait for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

enum Command {
    Publish(Arc<Snapshot>),
    Fence(Fence),
    Drain(Fence),
    PacketOut(PacketOut),
    /// So many times in one and the same moment.
    Frames(PortNo, Vec<u8>, usize, SyncSender<Vec<Sent>>),
}

/// What became of one frame.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Port and frame, in order.
    pub frames: Vec<(PortNo, Vec<u8>)>,
    /// Reasons of drops.
    pub drops: Vec<DropReason>,
    /// Copies for the controller.
    pub packet_ins: usize,
}

type Counters = Arc<Mutex<HashMap<PortNo, PortCounters>>>;

struct Data {
    workers: Vec<Sender<Command>>,
    counters: Counters,
}

impl Data {
    fn all(&self, command: impl Fn() -> Command) {
        for worker in &self.workers {
            // A worker that is gone has nothing to do any more.
            let _ = worker.send(command());
        }
    }
}

impl SwitchControl for Data {
    fn workers(&self) -> usize {
        self.workers.len()
    }
    fn publish(&self, snapshot: Arc<Snapshot>) {
        self.all(|| Command::Publish(snapshot.clone()));
    }
    fn fence(&self, fence: Fence) {
        self.all(|| Command::Fence(fence.clone()));
    }
    fn drain_counters(&self, fence: Fence) {
        self.all(|| Command::Drain(fence.clone()));
    }
    fn packet_out(&self, packet: PacketOut) -> bool {
        self.workers[0].send(Command::PacketOut(packet)).is_ok()
    }
    fn port_counters(&self, port: PortNo) -> Option<PortCounters> {
        Some(self.counters.lock().expect("not poisoned").get(&port).copied().unwrap_or_default())
    }
}

struct Collect<'a> {
    payload: &'a [u8],
    sent: Sent,
    packet_ins: &'a PacketInSender,
}

impl Collect<'_> {
    fn frame(&self, header: &Header) -> Vec<u8> {
        [header.bytes(), &self.payload[header.consumed().min(self.payload.len())..]].concat()
    }
}

impl Egress for Collect<'_> {
    fn send(&mut self, port: PortNo, header: &Header) {
        self.sent.frames.push((port, self.frame(header)));
    }
    fn packet_in(&mut self, packet_in: PacketIn, max_len: u16, header: &Header) {
        let mut frame = self.frame(header);
        let total_len = frame.len() as u16;
        if max_len != 0xffff {
            frame.truncate(max_len.into());
        }
        self.sent.packet_ins += 1;
        self.packet_ins.send(PacketIn { total_len, frame: frame.into(), ..packet_in });
    }
    fn frame_bytes(&self, header: &Header) -> usize {
        self.frame(header).len()
    }
    fn dropped(&mut self, reason: DropReason) {
        self.sent.drops.push(reason);
    }
}

fn worker(
    commands: &Receiver<Command>,
    mut forwarder: Forwarder,
    packet_ins: &PacketInSender,
    clock: Clock,
    counters: &Counters,
) {
    for command in commands {
        match command {
            Command::Publish(snapshot) => forwarder.apply(snapshot),
            Command::Fence(fence) => drop(fence),
            Command::Drain(fence) => {
                forwarder.start_drain();
                while !forwarder.drain(2) {}
                drop(fence);
            }
            Command::PacketOut(packet) => {
                let mut collect = Collect { payload: &packet.frame, sent: Sent::default(), packet_ins };
                let mut header = Header::of(&packet.frame);
                forwarder.packet_out(&packet, &mut header, clock.now_ms(), &mut collect);
                count(counters, None, &collect.sent);
            }
            Command::Frames(in_port, frame, times, done) => {
                let now_ms = clock.now_ms();
                let forward = || {
                    let mut header = Header::of(&frame);
                    let key = forwarder.key(&header, in_port);
                    let mut verdict = [VerdictId::default()];
                    forwarder.classify(&[key], &[frame.len() as u32], &mut verdict, now_ms);
                    let mut collect = Collect { payload: &frame, sent: Sent::default(), packet_ins };
                    forwarder.forward(verdict[0], in_port, &mut header, now_ms, &mut collect);
                    count(counters, Some((in_port, frame.len())), &collect.sent);
                    collect.sent
                };
                let _ = done.send(std::iter::repeat_with(forward).take(times).collect());
            }
        }
    }
}

fn count(counters: &Counters, received: Option<(PortNo, usize)>, sent: &Sent) {
    let mut counters = counters.lock().expect("not poisoned");
    if let Some((port, bytes)) = received {
        let port = counters.entry(port).or_default();
        port.rx_packets += 1;
        port.rx_bytes += bytes as u64;
        port.rx_dropped += u64::from(sent.frames.is_empty() && sent.packet_ins == 0);
    }
    for (port, frame) in &sent.frames {
        let port = counters.entry(*port).or_default();
        port.tx_packets += 1;
        port.tx_bytes += frame.len() as u64;
    }
}

/// A switch with an agent; everything stops when it is dropped.
pub struct Switch {
    pub bridge: Arc<Bridge>,
    pub agent: Option<Agent>,
    _runtime: tokio::runtime::Runtime,
    pub directory: TempDir,
    pub counters: Counters,
    workers: Vec<Sender<Command>>,
    threads: Vec<JoinHandle<()>>,
}

impl Switch {
    /// A switch with ports 1 to 4 in VLAN 0 and an agent that listens on a Unix socket.
    pub fn start(config: BridgeConfig, agent: AgentConfig) -> Switch {
        Switch::with_workers(2, config, agent)
    }

    pub fn with_workers(count: usize, config: BridgeConfig, agent: AgentConfig) -> Switch {
        Switch::with_packet_ins(PacketInLimits::default().port, count, config, agent)
    }

    /// One whose ports can cause so many packet-ins a second.
    pub fn with_packet_ins(
        per_second: u32,
        count: usize,
        config: BridgeConfig,
        mut agent: AgentConfig,
    ) -> Switch {
        let (packet_ins, receiver) = packet_in_queue();
        let (clock, fdb) = (Clock::start(), Arc::new(Fdb::new(1024, 300, 3)));
        let counters = Counters::default();
        let (mut workers, mut threads) = (Vec::new(), Vec::new());
        let first = Arc::new(Snapshot::initial(count));
        for number in 0..count {
            let (sender, commands) = channel();
            let forwarder = Forwarder::new(number, first.clone(), fdb.clone(), 5);
            let forwarder = forwarder.with_packet_ins(per_second);
            let (packet_ins, counters) = (packet_ins.clone(), counters.clone());
            workers.push(sender);
            threads.push(std::thread::spawn(move || {
                worker(&commands, forwarder, &packet_ins, clock, &counters)
            }));
        }
        let data = Data { workers: workers.clone(), counters: counters.clone() };
        let bridge = Arc::new(Bridge::new(config, Arc::new(data), fdb, clock));
        for number in 1..=4 {
            bridge.add_port(port(number)).expect("a free number");
        }
        let directory = tempfile::tempdir().expect("a temporary directory");
        agent.listeners.push(OpenFlowAddress::Unix(directory.path().join("s.mgmt")));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let agent = {
            let _inside = runtime.enter();
            Agent::start(agent, bridge.clone(), receiver).expect("the agent starts")
        };
        Switch { bridge, agent: Some(agent), _runtime: runtime, directory, counters, workers, threads }
    }

    /// The file of the listener.
    pub fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("s.mgmt")
    }

    /// Sends a frame into a port and returns what became of it.
    pub fn frame(&self, in_port: u32, frame: &[u8]) -> Sent {
        self.burst(in_port, frame, 1).remove(0)
    }

    /// Sends a frame into a port so many times, all within one moment of the worker's clock.
    pub fn burst(&self, in_port: u32, frame: &[u8], times: usize) -> Vec<Sent> {
        let (sender, done) = sync_channel(1);
        let worker = &self.workers[in_port as usize % self.workers.len()];
        worker
            .send(Command::Frames(PortNo(in_port), frame.to_vec(), times, sender))
            .expect("the worker runs");
        done.recv_timeout(PATIENCE).expect("the worker answers")
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.agent = None;
        // Their queues are still open: only a panic ends them.
        let panicked = self.threads.iter().any(JoinHandle::is_finished);
        assert!(!panicked || std::thread::panicking(), "a worker panicked");
    }
}

/// An access port in the untagged network.
pub fn port(number: u32) -> PortConfig {
    PortConfig {
        ofport: PortNo(number),
        name: format!("p{number}"),
        mac: MacAddr([2, 0, 0, 0, 1, number as u8]),
        vlan: VlanMode::Access(0),
        mtu: 1500,
        link_up: true,
        speed_kbps: 10_000_000,
        config: ofp::PortConfig(0),
    }
}

/// An Ethernet frame of 60 bytes: IPv4, UDP, from host `from` to host `to`.
pub fn frame(from: u8, to: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 0x08, 0x00];
    frame.extend([0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, from, 10, 0, 0, to]);
    frame.extend([0x10, 0x00, 0x20, 0x00, 0, 26, 0, 0]);
    frame.resize(60, 0xab);
    frame
}

/// Waits until `ready` says so.
pub fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !ready() {
        assert!(std::time::Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
