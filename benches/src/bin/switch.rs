//! `switch`: frames through our switch and through Open vSwitch with DPDK, with testpmd as the client of both.
#![allow(clippy::print_stdout, reason = "figures are what this program is for")]

use anyhow::Context as _;
use benches::hugepages::Hugepages;
use benches::ovs::{OvsDpdk, set_flows};
use benches::rounds::Comparison;
use benches::testpmd::{Testpmd, Window};
use benches::{SERVER_CORE, pin};
use clap::Parser;
use comfy_table::{Table, presets};
use xtask::lab::{Daemon, Lifetime, Site, wait_for};

/// Compare our switch with Open vSwitch-DPDK: one worker on core 0, dpdk-testpmd on core 1.
#[derive(Parser)]
struct Options {
    /// Rounds; each measures the peer, then Sluice
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
        let mut mpps = Comparison::new(format!("{}: Mpps", scenario.name), true);
        let mut cycles = Comparison::new(format!("{}: busy cycles/packet", scenario.name), false);
        for round in 1..=options.rounds {
            eprint_progress(scenario.name, round, options.rounds);
            let peer = measure_peer(scenario, options.seconds).context("Open vSwitch")?;
            let site = Site {
                program: program.clone(),
                dir: dir.path().join("site"),
                lifetime: Lifetime::Ours,
                usual_ports: false,
            };
            let ours = measure_ours(&site.prepared()?, scenario, options.seconds).context("sluice switch")?;
            mpps.peer.push(peer.0);
            cycles.peer.push(peer.1);
            mpps.ours.push(ours.0);
            cycles.ours.push(ours.1);
        }
        figures.extend([mpps, cycles]);
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["scenario", "Open vSwitch-DPDK", "Sluice", "better by"]);
    table.add_rows(figures.iter().map(Comparison::row));
    println!("{table}");
    Ok(())
}

#[allow(clippy::print_stderr, reason = "progress of a long run")]
fn eprint_progress(scenario: &str, round: u32, rounds: u32) {
    eprintln!("{scenario}: round {round} of {rounds}");
}

/// Mpps and cycles per packet of the peer.
fn measure_peer(scenario: &Scenario, seconds: f64) -> anyhow::Result<(f64, f64)> {
    let ovs = OvsDpdk::start(2)?;
    ovs.set_flows(scenario.flows)?;
    let mut client = Testpmd::start(&[&ovs.socket(1), &ovs.socket(2)], scenario.frame_bytes)?;
    let mut cycles = Err(anyhow::anyhow!("the window has not begun"));
    let mut begun = false;
    let window = client.measure(seconds, || {
        if begun {
            cycles = ovs.cycles_per_packet();
        } else {
            ovs.clear_figures()?;
        }
        begun = true;
        Ok(())
    })?;
    Ok((window.mpps(), cycles?))
}

/// Mpps and cycles per packet of ours.
fn measure_ours(site: &Site, scenario: &Scenario, seconds: f64) -> anyhow::Result<(f64, f64)> {
    let mut daemon = site.switch(None)?;
    pin(daemon.process().id(), SERVER_CORE)?;
    site.sluice(&["port", "add", "p1", "--vhost-user", "--ofport", "1"])?;
    site.sluice(&["port", "add", "p2", "--vhost-user", "--ofport", "2"])?;
    let (first, second) = (site.socket("p1"), site.socket("p2"));
    wait_for("the ports' sockets", std::time::Duration::from_secs(5), || {
        Ok((first.exists() && second.exists()).then_some(()))
    })?;
    set_flows(daemon.openflow().context("the switch listens for OpenFlow")?, scenario.flows)?;
    let mut client = Testpmd::start(&[&first, &second], scenario.frame_bytes)?;
    let mut busy = Vec::new();
    let window = client.measure(seconds, || {
        busy.push(busy_seconds(&daemon)?);
        Ok(())
    })?;
    site.sluice(&["port", "delete", "p1"])?;
    site.sluice(&["port", "delete", "p2"])?;
    Ok((window.mpps(), cycles_per_packet(&busy, &window)))
}

/// Time the workers spent with work since the daemon started.
fn busy_seconds(daemon: &Daemon) -> anyhow::Result<f64> {
    let metrics = daemon.metrics()?;
    metrics
        .sum("sluice_worker_busy_seconds_total", &[])
        .context("no sluice_worker_busy_seconds_total in /metrics")
}

fn cycles_per_packet(busy_seconds: &[f64], window: &Window) -> f64 {
    let busy = busy_seconds.last().unwrap_or(&0.0) - busy_seconds.first().unwrap_or(&0.0);
    busy * cycles_per_second() / window.frames as f64
}

/// Rate of the processor's time stamp counter, the unit in which the peer counts.
fn cycles_per_second() -> f64 {
    let start = std::time::Instant::now();
    // SAFETY: reading the time stamp counter has no precondition on x86-64.
    let first = unsafe { std::arch::x86_64::_rdtsc() };
    std::thread::sleep(std::time::Duration::from_millis(50));
    // SAFETY: as above.
    let last = unsafe { std::arch::x86_64::_rdtsc() };
    (last - first) as f64 / start.elapsed().as_secs_f64()
}
