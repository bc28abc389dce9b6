//! What one worker spends on deciding, without rings: `cargo bench -p vswitch --bench pipeline`.
//!
//! Header copy, parse, classify and forward for batches of 32 frames of 64 bytes, then what changes of the tables
//! cost the control side.
#![allow(clippy::print_stdout, reason = "figures are what this program is for")]

use std::hint::black_box;
use std::sync::Arc;

use packet::{FlowKey, Header, MacAddr, field};
use vswitch::fdb::Fdb;
use vswitch::flow::{Action, FlowFlags, Instructions};
use vswitch::flow_tables::{FlowTables, NewFlow};
use vswitch::forwarder::{BATCH_MAX, Egress, Forwarder, VerdictId};
use vswitch::model::{DropReason, PacketIn, PortConfig, PortNo, Snapshot, VlanMode};
use vswitch::ports::Ports;

/// Packets of a round, and rounds of which the best counts: others work on this machine too.
const PACKETS: usize = 640_000;
const ROUNDS: usize = 12;

#[derive(Default)]
struct Count {
    sent: u64,
    dropped: u64,
}

impl Egress for Count {
    #[inline]
    fn send(&mut self, port: PortNo, header: &Header) {
        black_box((port, header.bytes().as_ptr()));
        self.sent += 1;
    }
    fn packet_in(&mut self, _: PacketIn, _: u16, _: &Header) {}
    fn frame_bytes(&self, header: &Header) -> usize {
        header.len()
    }
    fn dropped(&mut self, _: DropReason) {
        self.dropped += 1;
    }
}

fn ports() -> Arc<Ports> {
    let port = |number: u32| {
        Arc::new(PortConfig {
            ofport: PortNo(number),
            name: format!("p{number}"),
            mac: MacAddr([2, 0, 0, 0, 1, number as u8]),
            vlan: VlanMode::Access(0),
            mtu: 1500,
            link_up: true,
            speed_kbps: 10_000_000,
            config: ofp::PortConfig(0),
        })
    };
    Arc::new(Ports::new((1..=4).map(port)))
}

/// UDP frame number `flow` from host 1 to host 2.
fn frame(flow: u32) -> [u8; 64] {
    let mut frame = [0; 64];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00]);
    frame[14..34].copy_from_slice(&[0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame[26..30].copy_from_slice(&(0x0a00_0000 | flow).to_be_bytes());
    frame[34..42].copy_from_slice(&[0x10, 0, 0x20, 0, 0, 30, 0, 0]);
    frame
}

fn five_tuple(flow: u32) -> NewFlow {
    let full = |key: FlowKey| {
        key.with(field::IN_PORT, u64::MAX)
            .with(field::ETH_TYPE, u64::MAX)
            .with(field::IP_PROTO, u64::MAX)
            .with(field::IPV4_SRC, u64::MAX)
            .with(field::IPV4_DST, u64::MAX)
            .with(field::TP_SRC, u64::MAX)
            .with(field::TP_DST, u64::MAX)
    };
    NewFlow {
        table: 0,
        priority: 100,
        key: packet::parse(&frame(flow), 1),
        mask: Arc::new(full(FlowKey::ZERO)),
        cookie: 0,
        idle_timeout_s: 0,
        hard_timeout_s: 0,
        flags: FlowFlags::default(),
        instructions: Arc::new(Instructions {
            apply: vec![Action::Output { port: PortNo(2), max_len: 0 }],
            ..Instructions::default()
        }),
    }
}

/// Nanoseconds a packet for `flows` flows in random order.
fn forward(forwarder: &mut Forwarder, flows: u32) -> f64 {
    let frames: Vec<[u8; 64]> = (0..flows).map(frame).collect();
    let mut headers = vec![Header::new(); BATCH_MAX];
    let mut keys = [FlowKey::ZERO; BATCH_MAX];
    let mut verdicts = [VerdictId::default(); BATCH_MAX];
    let bytes = [64; BATCH_MAX];
    let mut count = Count::default();
    let mut random = 1u32;
    let mut run = |packets: usize| {
        for _ in 0..packets / BATCH_MAX {
            for (header, key) in headers.iter_mut().zip(&mut keys) {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let frame = &frames[((u64::from(random) * u64::from(flows)) >> 32) as usize];
                header.load(frame.len(), |to| to.copy_from_slice(frame));
                *key = forwarder.key(header, PortNo(1));
            }
            forwarder.classify(&keys, &bytes, &mut verdicts, 1000);
            for (header, verdict) in headers.iter_mut().zip(&verdicts) {
                forwarder.forward(*verdict, PortNo(1), header, 1000, &mut count);
            }
        }
    };
    run(flows as usize * 20);
    let mut round = |_| {
        let begin = cpu_ns();
        run(PACKETS);
        (cpu_ns() - begin) / PACKETS as f64
    };
    (0..ROUNDS).map(&mut round).fold(f64::INFINITY, f64::min)
}

/// CPU time of this thread, nanoseconds.
fn cpu_ns() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0.0)
}

fn forwarder(tables: &FlowTables) -> Forwarder {
    let fdb = Arc::new(Fdb::new(16_384, 300, 0x1234_5678_9abc_def1));
    fdb.learn(0, MacAddr([2, 0, 0, 0, 0, 2]), PortNo(2), 1);
    let snapshot = Snapshot { epoch: 1, tables: tables.tables().clone(), ports: ports() };
    Forwarder::new(0, Arc::new(snapshot), fdb, 0x9876_5432_1234_5679)
}

fn resident_bytes() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: f64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0.0);
    pages * 4096.0
}

fn main() {
    // Cycles need the clock rate of the time-stamp counter; the kernel prints it.
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mhz =
        cpuinfo.lines().find(|line| line.starts_with("cpu MHz")).and_then(|line| line.split(':').nth(1));
    let ghz = mhz.and_then(|mhz| mhz.trim().parse::<f64>().ok()).unwrap_or(0.0) / 1000.0;
    let print = |what: &str, ns: f64| println!("{what:58} {ns:8.1} ns {:8.0} cycles", ns * ghz);

    let mut learning = FlowTables::new(1, 1 << 21);
    learning.set_normal_on_miss(true);
    for flows in [1, 100_000] {
        print(
            &format!("learning, {flows} flows: copy, parse, classify, forward"),
            forward(&mut forwarder(&learning), flows),
        );
    }
    for rules in [1_000, 10_000, 100_000, 1_000_000u32] {
        let before = resident_bytes();
        let begin = cpu_ns();
        let mut tables = FlowTables::new(1, 1 << 21);
        for flow in 0..rules {
            tables.add(&five_tuple(flow), 1).expect("room");
        }
        let add = (cpu_ns() - begin) / f64::from(rules);
        let size = (resident_bytes() - before) / f64::from(rules);
        let mut forwarder = forwarder(&tables);
        print(&format!("{rules} five-tuple rules, flows = rules"), forward(&mut forwarder, rules));
        println!("    add: {add:.0} ns a rule, {size:.0} bytes resident a rule");
        let begin = cpu_ns();
        let mut published = Vec::new();
        for flow in 0..1000 {
            tables.add(&five_tuple(flow), 1).expect("room");
            published.push(tables.tables().clone());
        }
        let change = (cpu_ns() - begin) / 1e6;
        println!("    change of one rule with a publication each: {change:.1} us");
    }
}
