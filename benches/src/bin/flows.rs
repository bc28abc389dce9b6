//! `flows`: many rules and many flows through our switch and through Open vSwitch with DPDK.
#![allow(clippy::print_stdout, reason = "figures are what this program is for")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use benches::frames::{self, Udp, exact_rule, flow, shuffled};
use benches::ovs::OvsDpdk;
use benches::pairs::Pairs;
use benches::rounds;
use benches::sluice::Sluice;
use benches::testpmd::Testpmd;
use benches::turns::{self, Peer};
use benches::usage::Usage;
use clap::Parser;
use xtask::lab::hugepages::Hugepages;

/// Many rules, many flows: one worker on core 0, dpdk-testpmd on core 1 replays frames of 64 bytes.
#[derive(Parser)]
struct Options {
    /// How often both are started anew
    #[arg(long, default_value_t = 3)]
    starts: u32,
    /// Pairs of windows of each start; one of the pair measures the peer, the other Sluice
    #[arg(long, default_value_t = 5)]
    pairs: u32,
    /// Length of a window in seconds
    #[arg(long, default_value_t = 0.3)]
    seconds: f64,
    /// The program to measure, instead of building it
    #[arg(long)]
    program: Option<PathBuf>,
    /// Only scenarios whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Measure Sluice alone
    #[arg(long)]
    alone: bool,
}

struct Scenario {
    name: &'static str,
    /// Flows of the traffic.
    flows: u32,
    frame: fn(u32) -> Udp,
    rules: fn() -> Vec<String>,
    /// Whether the peer is measured too.
    peer: bool,
}

const SCENARIOS: &[Scenario] = &[
    Scenario { name: "learning, 1 flow", flows: 1, frame: flow, rules: learning, peer: true },
    Scenario { name: "learning, 100 000 flows", flows: 100_000, frame: flow, rules: learning, peer: true },
    Scenario {
        name: "100 000 exact rules and flows",
        flows: 100_000,
        frame: flow,
        rules: || exact(100_000),
        peer: true,
    },
    Scenario {
        name: "1 M exact rules and flows",
        flows: 1_000_000,
        frame: flow,
        rules: || exact(1_000_000),
        peer: false,
    },
    Scenario {
        name: "five tables, 10 000 flows",
        flows: 10_000,
        frame: host_frame,
        rules: faucet,
        peer: true,
    },
];

/// Memory of testpmd and of Open vSwitch, in pages of 2 MiB.
const PAGES: u64 = 1024;
/// Time until a switch has seen every flow: a miss costs Open vSwitch tens of microseconds.
const WARM_UP: Duration = Duration::from_secs(4);

fn learning() -> Vec<String> {
    vec!["actions=NORMAL".into()]
}

fn exact(count: u32) -> Vec<String> {
    (0..count).map(|number| exact_rule(&flow(number), "output:2")).collect()
}

/// Hosts behind each port of the five tables.
const HOSTS: u32 = 2500;

fn host(port: u8, number: u32) -> [u8; 6] {
    let [_, _, high, low] = (number % HOSTS).to_be_bytes();
    [2, 0, 0, port, high, low]
}

/// Flow number `number` between the hosts of the five tables.
fn host_frame(number: u32) -> Udp {
    Udp { to: host(2, number / 3), from: host(1, number), ..flow(number) }
}

/// What Faucet 1.10 installs for an access port 1 and a trunk 2 in VLAN 100 with an ACL on port 1: port ACLs, VLANs,
/// sources, destinations, flooding; 2500 learned hosts behind each port.
fn faucet() -> Vec<String> {
    let colons = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    let mut rules: Vec<String> = (0..20)
        .map(|port| format!("table=0,priority=20480,in_port=1,tcp,tp_dst={},actions=drop", 8000 + port))
        .collect();
    rules.extend(
        [
            "table=0,priority=20470,in_port=1,ip,nw_dst=192.168.0.0/16,actions=drop",
            "table=0,priority=20469,in_port=1,actions=goto_table:1",
            "table=0,priority=20480,in_port=2,actions=goto_table:1",
            "table=0,priority=0,actions=drop",
            "table=1,priority=36863,dl_dst=01:80:c2:00:00:00,actions=drop",
            "table=1,priority=4096,in_port=1,vlan_tci=0,actions=push_vlan:0x8100,set_field:4196->vlan_vid,goto_table:2",
            "table=1,priority=4096,in_port=2,dl_vlan=100,actions=goto_table:2",
            "table=1,priority=0,actions=drop",
            "table=2,priority=20490,dl_type=0x9000,actions=drop",
            "table=2,priority=20480,dl_src=ff:ff:ff:ff:ff:ff,actions=drop",
            "table=2,priority=4096,dl_vlan=100,actions=CONTROLLER:96,goto_table:3",
            "table=2,priority=0,actions=goto_table:3",
            "table=3,priority=0,actions=goto_table:4",
            "table=4,priority=8240,dl_dst=01:00:0c:cc:cc:cc,actions=drop",
            "table=4,priority=8208,dl_vlan=100,dl_dst=ff:ff:ff:ff:ff:ff,actions=strip_vlan,output:1,output:2",
            "table=4,priority=8192,in_port=1,dl_vlan=100,actions=output:2",
            "table=4,priority=8192,in_port=2,dl_vlan=100,actions=strip_vlan,output:1",
            "table=4,priority=0,actions=drop",
        ]
        .map(str::to_owned),
    );
    for number in 0..HOSTS {
        let [one, two] = [host(1, number), host(2, number)].map(colons);
        rules.extend([
            format!("table=2,priority=8191,in_port=1,dl_vlan=100,dl_src={one},actions=goto_table:3"),
            format!("table=2,priority=8191,in_port=2,dl_vlan=100,dl_src={two},actions=goto_table:3"),
            format!("table=3,priority=8192,dl_vlan=100,dl_dst={one},actions=strip_vlan,output:1"),
            format!("table=3,priority=8192,dl_vlan=100,dl_dst={two},actions=output:2"),
        ]);
    }
    rules
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let program = options.program.clone().map_or_else(benches::release_program, Ok)?;
    let _pages = Hugepages::reserve(PAGES)?;
    let dir = tempfile::tempdir()?;
    let mut figures = Vec::new();
    let mut notes = Vec::new();
    for scenario in SCENARIOS.iter().filter(|scenario| scenario.name.contains(&options.only)) {
        let mut pairs = Pairs::new(scenario.name);
        let file = dir.path().join("frames.pcap");
        frames::write_pcap(&file, shuffled(scenario.flows).map(|number| (scenario.frame)(number).frame()))?;
        let rules = (scenario.rules)();
        let mut resident = None;
        for start in 1..=options.starts {
            rounds::progress(scenario.name, start, options.starts);
            let peer = if scenario.peer && !options.alone {
                let ovs = OvsDpdk::start(2)?;
                ovs.set_flows(&rules)?;
                let client = client([&ovs.socket(1), &ovs.socket(2)], &file, scenario)?;
                Some(Peer::start(ovs, client)?)
            } else {
                None
            };
            let mut sluice = Sluice::start(&program, &dir.path().join("site"), 2)?;
            let id = sluice.process_id();
            let before = Usage::of(id)?.resident_kib;
            sluice.set_flows(&rules)?;
            let added = Usage::of(id)?.resident_kib.saturating_sub(before) as f64 * 1024.0;
            resident.get_or_insert(added / rules.len() as f64);
            let mut client = client([&sluice.socket(1), &sluice.socket(2)], &file, scenario)?;
            let ours = (&sluice, &mut client);
            turns::take(&mut pairs, peer, ours, options.pairs, options.seconds)?;
        }
        if let Some(bytes) = resident.filter(|_| rules.len() > 1000) {
            notes.push(format!("{}: {bytes:.0} bytes resident a rule", scenario.name));
        }
        figures.extend(pairs.figures());
    }
    println!("{}", rounds::table("scenario, 64 B", "Open vSwitch-DPDK", &figures));
    notes.iter().for_each(|note| println!("{note}"));
    Ok(())
}

/// The client: the flows by port 1, and by port 2 a frame of the host that they go to.
fn client(sockets: [&Path; 2], file: &Path, scenario: &Scenario) -> anyhow::Result<Testpmd> {
    let answers = file.with_extension("answers");
    let Udp { to, from, addresses: [src, dst], .. } = flow(0);
    let answer = Udp { to: from, from: to, addresses: [dst, src], ports: [53, 1024] };
    frames::write_pcap(&answers, std::iter::once(answer.frame()))?;
    let mut client = Testpmd::replay(sockets, file, &answers, scenario.flows as usize)?;
    client.warm_up = WARM_UP;
    Ok(client)
}
