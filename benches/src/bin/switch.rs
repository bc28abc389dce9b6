//! `switch`: frames through our switch and through Open vSwitch with DPDK, with testpmd as the client of both.
#![allow(clippy::print_stdout, reason = "figures are what this program is for")]

use std::path::Path;

use anyhow::Context as _;
use benches::ovs::OvsDpdk;
use benches::pairs::Pairs;
use benches::rounds;
use benches::sluice::{Figures, Sluice};
use benches::testpmd::Testpmd;
use clap::Parser;
use xtask::lab::hugepages::Hugepages;

/// Compare our switch with Open vSwitch-DPDK: one worker on core 0, dpdk-testpmd on core 1.
#[derive(Parser)]
struct Options {
    /// Rounds with the processors at the same distance; each measures the peer, then Sluice
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Length of one measurement in seconds
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only scenarios whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Print the figures of every round as JSON
    #[arg(long)]
    json: bool,
}

struct Scenario {
    name: &'static str,
    frame_bytes: u32,
    flows: &'static [&'static str],
}

const LEARNING: &[&str] = &["actions=NORMAL"];
const PORT_RULE: &[&str] = &["in_port=1,actions=output:2", "in_port=2,actions=output:1"];
const SCENARIOS: &[Scenario] = &[
    Scenario { name: "learning, 64 B", frame_bytes: 64, flows: LEARNING },
    Scenario { name: "learning, 1500 B", frame_bytes: 1500, flows: LEARNING },
    Scenario { name: "port rule, 64 B", frame_bytes: 64, flows: PORT_RULE },
    Scenario { name: "port rule, 1500 B", frame_bytes: 1500, flows: PORT_RULE },
];
/// Memory of testpmd and of Open vSwitch, in pages of 2 MiB.
const PAGES: u64 = 1024;

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let program = benches::release_program()?;
    let _pages = Hugepages::reserve(PAGES)?;
    let dir = tempfile::tempdir()?;
    let mut figures = Vec::new();
    for scenario in SCENARIOS.iter().filter(|scenario| scenario.name.contains(&options.only)) {
        let mut pairs = Pairs::new(scenario.name, options.rounds);
        while pairs.begin_round() {
            let peer = measure_peer(scenario, options.seconds).context("Open vSwitch")?;
            let ours = measure_ours(&program, &dir.path().join("site"), scenario, options.seconds);
            let ours = ours.context("sluice switch")?;
            pairs.push(Some(peer), ours);
        }
        figures.extend(pairs.figures());
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
        return Ok(());
    }
    println!("{}", rounds::table("scenario", "Open vSwitch-DPDK", &figures));
    Ok(())
}

/// What the peer does.
fn measure_peer(scenario: &Scenario, seconds: f64) -> anyhow::Result<Figures> {
    let ovs = OvsDpdk::start(2)?;
    ovs.set_flows(scenario.flows)?;
    let mut client = Testpmd::start(&[&ovs.socket(1), &ovs.socket(2)], scenario.frame_bytes)?;
    ovs.measure(&mut client, seconds)
}

/// What ours does.
fn measure_ours(program: &Path, dir: &Path, scenario: &Scenario, seconds: f64) -> anyhow::Result<Figures> {
    let sluice = Sluice::start(program, dir, 2)?;
    sluice.set_flows(scenario.flows)?;
    let mut client = Testpmd::start(&[&sluice.socket(1), &sluice.socket(2)], scenario.frame_bytes)?;
    sluice.measure(&mut client, seconds)
}
