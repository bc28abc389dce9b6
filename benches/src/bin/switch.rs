//! `switch`: frames through our switch and through Open vSwitch with DPDK, with testpmd as the client of both.
#![allow(clippy::print_stdout, reason = "figures are what this program is for")]

use std::path::{Path, PathBuf};

use benches::ovs::OvsDpdk;
use benches::pairs::Pairs;
use benches::rounds;
use benches::sluice::Sluice;
use benches::testpmd::Testpmd;
use benches::turns::{self, Peer};
use clap::Parser;
use xtask::lab::hugepages::Hugepages;

/// Compare our switch with Open vSwitch-DPDK: one worker on core 0, dpdk-testpmd on core 1.
#[derive(Parser)]
struct Options {
    /// How often both are started anew
    #[arg(long, default_value_t = 3)]
    starts: u32,
    /// Pairs of windows of each start; one of the pair measures the peer, the other Sluice
    #[arg(long, default_value_t = 10)]
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
    let program = options.program.clone().map_or_else(benches::release_program, Ok)?;
    let _pages = Hugepages::reserve(PAGES)?;
    let dir = tempfile::tempdir()?;
    let mut figures = Vec::new();
    for scenario in SCENARIOS.iter().filter(|scenario| scenario.name.contains(&options.only)) {
        let mut pairs = Pairs::new(scenario.name);
        for start in 1..=options.starts {
            rounds::progress(scenario.name, start, options.starts);
            measure(scenario, &options, &program, &dir.path().join("site"), &mut pairs)?;
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

/// One start of both.
fn measure(
    scenario: &Scenario,
    options: &Options,
    program: &Path,
    dir: &Path,
    pairs: &mut Pairs,
) -> anyhow::Result<()> {
    let ovs = OvsDpdk::start(2)?;
    ovs.set_flows(scenario.flows)?;
    let client = Testpmd::start(&[&ovs.socket(1), &ovs.socket(2)], scenario.frame_bytes)?;
    let peer = Peer::start(ovs, client)?;
    let sluice = Sluice::start(program, dir, 2)?;
    sluice.set_flows(scenario.flows)?;
    let mut client = Testpmd::start(&[&sluice.socket(1), &sluice.socket(2)], scenario.frame_bytes)?;
    turns::take(pairs, Some(peer), (&sluice, &mut client), options.pairs, options.seconds)
}
