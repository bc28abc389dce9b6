//! `tiered`: requests to volumes in a pool, through the storage daemon, against a raw volume on the same kind of device.
//!
//! The fast device is a zram, the large one a file.
#![allow(clippy::print_stdout, reason = "figures are what this program is for")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use benches::blk_load::{Client, Figures, Load, Op};
use benches::rounds::median;
use benches::slow::Slow;
use benches::volumes::Zram;
use benches::{CLIENT_CORE, SERVER_CORE, pin, volumes};
use clap::Parser;
use xtask::lab::process::Lifetime;
use xtask::lab::{Daemon, Site, wait_for};

const MIB: u64 = 1 << 20;
const COLD: &str = "6GiB";
/// Requests a second of a load that leaves the daemon room.
const STEADY_PER_S: u32 = 50_000;

/// What volumes in a tiered pool cost: server on core 0, client on core 1
#[derive(Parser)]
struct Options {
    /// Rounds of what is compared in turn
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Length of one measurement in seconds
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Only parts whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// The program to measure, instead of building it
    #[arg(long)]
    program: Option<PathBuf>,
}

fn row(what: &str, measured: &str, target: &str, good: bool) {
    println!("| {what} | {measured} | {target} | {} |", if good { "yes" } else { "**no**" });
}

/// A daemon with a pool on a zram and a file. It goes first: a device that it has open stays.
struct Bed {
    daemon: Daemon,
    site: Site,
    zram: Zram,
    raw: Option<Zram>,
    dir: tempfile::TempDir,
}

impl Bed {
    fn new(program: &Path, hot_size: Option<&str>, options: &[&str]) -> Result<Bed> {
        // Below the target directory, since a temporary directory may lie in memory and know no direct I/O.
        let base = xtask::paths::target().join("bench");
        std::fs::create_dir_all(&base)?;
        let dir = tempfile::tempdir_in(base)?;
        let zram = Zram::add()?;
        let program = program.to_path_buf();
        let site = Site { program, dir: dir.path().into(), lifetime: Lifetime::Ours, usual_ports: false };
        let site = site.prepared()?;
        let mut daemon = site.blk()?;
        pin(daemon.process().id(), SERVER_CORE)?;
        let hot = zram.path().display().to_string();
        let hot = hot_size.map_or(hot.clone(), |size| format!("{hot}:{size}"));
        let cold = format!("{}:{COLD}", dir.path().join("cold.img").display());
        site.sluice(&[&["pool", "create", "pool0", "--hot", &hot, "--cold", &cold], options].concat())?;
        Ok(Bed { daemon, site, zram, raw: None, dir })
    }

    /// The same, and beside the pool the volume `raw`: a full device of the hot one's kind.
    fn with_raw(program: &Path) -> Result<Bed> {
        let mut bed = Bed::new(program, None, &[])?;
        let path = bed.raw.insert(Zram::add()?).path();
        volumes::fill(&path)?;
        bed.site.sluice(&["volume", "create", "raw", "--device", &path.display().to_string()])?;
        Ok(bed)
    }

    /// A volume of the pool, all of it written.
    fn volume(&mut self, name: &str, bytes: u64) -> Result<()> {
        let size = bytes.to_string();
        self.site.sluice(&["volume", "create", name, "--pool", "pool0", "--size", &size])?;
        self.client(name, Op::RandomWrite, 1 << 20, 4)?.pass(bytes, MIB, false)?;
        Ok(())
    }

    fn client(&self, name: &str, op: Op, block_bytes: usize, depth: usize) -> Result<Client> {
        pin(std::process::id(), CLIENT_CORE)?;
        Client::connect(&self.site.socket(name), Load { op, block_bytes, depth })
    }

    fn measure(&mut self, name: &str, op: Op, depth: usize, seconds: f64) -> Result<Figures> {
        let server = self.daemon.process().id();
        self.client(name, op, 4096, depth)?.measure(seconds, server)
    }

    fn frontends(&self, name: &str) -> Result<u64> {
        let volume = self.site.sluice_json(&["volume", "show", name])?;
        volume["frontends"].as_u64().context("the number of frontends")
    }
}

/// A hit against the raw device.
fn hot_hits(options: &Options, program: &Path) -> Result<()> {
    let mut bed = Bed::with_raw(program)?;
    bed.volume("v0", 640 * MIB)?;
    let (mut shares, mut rates) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let raw = bed.measure("raw", Op::RandomRead, 32, options.seconds)?;
        let hot = bed.measure("v0", Op::RandomRead, 32, options.seconds)?;
        shares.push(hot.iops / raw.iops);
        rates.push((raw.iops, hot.iops));
    }
    let share = median(&shares);
    let middle = |of: fn(&(f64, f64)) -> f64| median(&rates.iter().map(of).collect::<Vec<_>>()) / 1e3;
    let measured = format!("{share:.2}x ({:.0} k IOPS, raw {:.0} k)", middle(|r| r.1), middle(|r| r.0));
    row("hot hit, 4k randread QD32, against the raw volume", &measured, ">= 0.95x", share >= 0.95);
    // A detach under load: until the daemon has let go of the frontend.
    let mut client = bed.client("v0", Op::RandomWrite, 4096, 32)?;
    let server = bed.daemon.process().id();
    client.measure(options.seconds, server)?;
    let begin = Instant::now();
    drop(client);
    wait_for("the frontend is gone", std::time::Duration::from_secs(10), || {
        Ok((bed.frontends("v0")? == 0).then_some(()))
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    row("clean detach after a load of writes, s", &format!("{seconds:.2}"), "<= 1", seconds <= 1.0);
    Ok(())
}

/// Reads of hot data while other data move.
fn migration(options: &Options, program: &Path, limit: &str) -> Result<()> {
    let mut bed = Bed::new(program, None, &["--migration-limit", limit])?;
    bed.volume("reads", 256 * MIB)?;
    bed.site.sluice(&["pool", "drain", "pool0", "--hot"])?;
    bed.volume("moves", 512 * MIB)?;
    for rate in [None, Some(STEADY_PER_S)] {
        migration_row(options, &mut bed, limit, rate)?;
    }
    Ok(())
}

/// With as many requests as 32 in flight can be, or at a steady rate.
fn migration_row(options: &Options, bed: &mut Bed, limit: &str, rate: Option<u32>) -> Result<()> {
    let reads = |bed: &mut Bed| match rate {
        None => bed.measure("reads", Op::RandomRead, 32, options.seconds),
        Some(rate) => bed.client("reads", Op::RandomRead, 4096, 32)?.steady(options.seconds, rate),
    };
    let (mut shares, mut pairs) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let off = reads(bed)?;
        let job = bed.site.sluice_json(&["pool", "drain", "pool0", "--hot", "--background"])?;
        let on = reads(bed)?;
        let id = job["id"].to_string();
        let state = bed.site.sluice_json(&["job", "show", &id])?["state"].clone();
        ensure!(state == "running", "the drain ended before the measurement: {state}");
        bed.site.sluice(&["job", "cancel", &id])?;
        shares.push(on.p99_us / off.p99_us);
        pairs.push((off.p99_us, on.p99_us));
    }
    let share = median(&shares);
    let middle = |of: fn(&(f64, f64)) -> f64| median(&pairs.iter().map(of).collect::<Vec<_>>());
    let measured = format!("{share:.2}x ({:.0} us, without {:.0})", middle(|p| p.1), middle(|p| p.0));
    let load = rate.map_or("QD32".to_string(), |rate| format!("at {} k/s", rate / 1000));
    let what = format!("p99 of 4k reads {load} with {limit}/s of migration against without");
    row(&what, &measured, "<= 1.25x", share <= 1.25);
    Ok(())
}

/// Writes to data of which nothing is hot, while the cold device takes a tenth of a second for each operation: ten times
/// what a disk takes.
fn write_misses(program: &Path) -> Result<()> {
    let mut bed = Bed::with_raw(program)?;
    let (bytes, step) = (512 * MIB, MIB);
    for (name, bytes) in [("v0", bytes), ("probe", 32 * MIB)] {
        let size = bytes.to_string();
        bed.site.sluice(&["volume", "create", name, "--pool", "pool0", "--size", &size, "--pin", "cold"])?;
        bed.client(name, Op::RandomWrite, 1 << 20, 4)?.pass(bytes, MIB, false)?;
    }
    bed.site.sluice(&["volume", "pin", "v0", "auto"])?;
    let hot = bed.client("raw", Op::RandomWrite, 4096, 1)?.pass(bytes, step, true)?;
    let server = bed.daemon.process().id();
    let _slow = Slow::new(server, &bed.dir.path().join("cold.img"), 10)?;
    let cold = bed.client("probe", Op::RandomRead, 4096, 1)?.pass(16 * MIB, MIB, true)?;
    let misses = |bed: &Bed| {
        let all = bed.daemon.metrics()?;
        all.sum("sluice_tier_misses_total", &[("op", "write")]).context("the number of misses")
    };
    let before = misses(&bed)?;
    let miss = bed.client("v0", Op::RandomWrite, 4096, 1)?.pass(bytes, step, true)?;
    // What is counted is shown a moment later.
    wait_for("all writes to be counted as misses", std::time::Duration::from_secs(5), || {
        Ok((misses(&bed)? - before >= (bytes / step) as f64).then_some(()))
    })?;
    let share = miss.p50_us / hot.p50_us;
    let measured = format!(
        "{share:.2}x ({:.1} us, p99 {:.1}; hot {:.1}, p99 {:.1}; cold reads {:.0} ms)",
        miss.p50_us,
        miss.p99_us,
        hot.p50_us,
        hot.p99_us,
        cold.p50_us / 1e3
    );
    row(
        "4k write miss with a cold device of 10 operations a second, QD1 p50",
        &measured,
        "<= 2x hot",
        share <= 2.0,
    );
    Ok(())
}

/// Writing back all of the hot tier.
fn drain(program: &Path) -> Result<()> {
    let mut bed = Bed::new(program, None, &[])?;
    let bytes = 768 * MIB;
    bed.volume("v0", bytes)?;
    let job = bed.site.sluice_json(&["pool", "drain", "pool0", "--hot"])?;
    let seconds = job["took_s"].as_f64().context("how long the drain took")?;
    let ours = bytes as f64 / seconds / MIB as f64;
    let to = bed.dir.path().join("sequential");
    // What the pool's file is like: its space is given out before, but nothing was written there.
    std::fs::File::create(&to)?.set_len(bytes)?;
    let begin = Instant::now();
    let status = Command::new("dd")
        .args(["bs=4M", "iflag=direct", "oflag=direct", "conv=notrunc,fdatasync", "status=none"])
        .arg(format!("if={}", bed.zram.path().display()))
        .arg(format!("count={}", bytes / (4 * MIB)))
        .arg(format!("of={}", to.display()))
        .status()?;
    ensure!(status.success(), "dd: {status}");
    let device = bytes as f64 / begin.elapsed().as_secs_f64() / MIB as f64;
    let share = ours / device;
    let measured = format!("{share:.2}x ({ours:.0} MiB/s, dd {device:.0} MiB/s)");
    row("drain rate against sequential writes to the cold file", &measured, ">= 0.8x", share >= 0.8);
    Ok(())
}

/// A chain of a thousand clones, and a thousand clones of one volume.
fn generations(options: &Options, program: &Path) -> Result<()> {
    let mut bed = Bed::new(program, None, &[])?;
    let bytes = 64 * MIB;
    bed.volume("flat", bytes)?;
    bed.volume("g0", bytes)?;
    let begin = Instant::now();
    for generation in 1..=1000u64 {
        let (from, to) = (format!("g{}", generation - 1), format!("g{generation}"));
        bed.site.sluice(&["volume", "clone", &from, &to])?;
        let mut client = bed.client(&to, Op::RandomWrite, 4096, 1)?;
        client.pass(4096, 4096, false)?;
        drop(client);
    }
    let seconds = begin.elapsed().as_secs_f64();
    row("1000 clones through the command line, s", &format!("{seconds:.1}"), "<= 10", seconds <= 10.0);
    let mut shares = Vec::new();
    for _ in 0..options.rounds {
        let flat = bed.measure("flat", Op::RandomRead, 32, options.seconds)?;
        let deep = bed.measure("g1000", Op::RandomRead, 32, options.seconds)?;
        shares.push(deep.iops / flat.iops);
    }
    let share = median(&shares);
    row("4k read QD32 through 1000 generations", &format!("{share:.2}x"), ">= 0.95x flat", share >= 0.95);
    Ok(())
}

fn main() -> Result<()> {
    let options = Options::parse();
    let program = options.program.clone().map_or_else(benches::release_program, Ok)?;
    let chosen = |name: &str| name.contains(&options.only);
    println!("| what | measured | must reach | reached |\n|---|---|---|---|");
    if chosen("hits") {
        hot_hits(&options, &program)?;
    }
    if chosen("migration") {
        migration(&options, &program, "16MiB")?;
    }
    if chosen("misses") {
        write_misses(&program)?;
    }
    if chosen("drain") {
        drain(&program)?;
    }
    if chosen("generations") {
        generations(&options, &program)?;
    }
    Ok(())
}
