//! `idle`: what the daemons use while their guests are connected and quiet.
#![allow(clippy::print_stdout, reason = "figures are what this program is for")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use benches::blk_load::{Client, Load, Op};
use benches::testpmd::Testpmd;
use benches::usage::Usage;
use clap::Parser;
use comfy_table::{Table, presets};
use xtask::lab::hugepages::Hugepages;
use xtask::lab::{Daemon, Lifetime, Site};

/// Measure the daemons at rest, with frontends connected to every volume and port
#[derive(Parser)]
struct Options {
    /// Volumes and ports
    #[arg(long, default_value_t = 10)]
    count: usize,
    /// Length of the measurement in seconds
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
}

/// Memory of testpmd, in pages of 2 MiB.
const PAGES: u64 = 256;
/// One request makes sure that each volume's queue runs before it rests.
const TOUCH: Load = Load { op: Op::RandomRead, block_bytes: 4096, depth: 1 };

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let program = benches::release_program()?;
    let dir = tempfile::tempdir()?;
    let site = Site { program, dir: dir.path().join("site"), lifetime: Lifetime::Ours, usual_ports: false }
        .prepared()?;
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["daemon at rest", "% of one processor", "resident MiB"]);
    table.add_row(blk(&site, &options)?);
    table.add_row(switch(&site, &options)?);
    println!("{table}");
    Ok(())
}

fn blk(site: &Site, options: &Options) -> anyhow::Result<[String; 3]> {
    let mut daemon = site.blk()?;
    let mut clients = Vec::new();
    for index in 0..options.count {
        let name = format!("n{index}");
        site.sluice(&["volume", "create", &name, "--null", "--size", "1GiB"])?;
        let mut client = Client::connect(&site.socket(&name), TOUCH)?;
        client.measure(0.01, daemon.process().id())?;
        clients.push(client);
    }
    rest(&format!("blk, {} volumes", options.count), &mut daemon, options)
}

fn switch(site: &Site, options: &Options) -> anyhow::Result<[String; 3]> {
    let _pages = Hugepages::reserve(PAGES)?;
    let mut daemon = site.switch(None)?;
    let mut sockets = Vec::<PathBuf>::new();
    for index in 0..options.count {
        let name = format!("p{index}");
        site.sluice(&["port", "add", &name, "--vhost-user"])?;
        sockets.push(site.socket(&name));
    }
    let sockets: Vec<_> = sockets.iter().map(PathBuf::as_path).collect();
    let _client = Testpmd::start(&sockets, 64)?;
    rest(&format!("switch, {} ports", options.count), &mut daemon, options)
}

/// A row: the daemon's use of the processor over the time of the measurement, and its memory.
fn rest(name: &str, daemon: &mut Daemon, options: &Options) -> anyhow::Result<[String; 3]> {
    let id = daemon.process().id();
    let (before, start) = (Usage::of(id)?, Instant::now());
    std::thread::sleep(Duration::from_secs_f64(options.seconds));
    let after = Usage::of(id)?;
    let percent = 100.0 * (after.cpu_seconds - before.cpu_seconds) / start.elapsed().as_secs_f64();
    Ok([name.to_string(), format!("{percent:.2}"), format!("{:.1}", after.resident_kib as f64 / 1024.0)])
}
