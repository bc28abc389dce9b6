//! `blk`: requests through our storage daemon and through qemu-storage-daemon, with one client for both.
#![allow(clippy::print_stdout, reason = "figures are what this program is for")]

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use benches::blk_load::{Client, Figures, Load, Op};
use benches::qsd::Qsd;
use benches::rounds::{self, Comparison};
use benches::{CLIENT_CORE, SERVER_CORE, pin, volumes};
use clap::Parser;
use xtask::lab::Site;
use xtask::lab::process::Lifetime;

/// Compare our storage daemon with qemu-storage-daemon: server on core 0, client on core 1
#[derive(Parser)]
struct Options {
    /// Rounds; each measures the peer, then Sluice
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Length of one measurement in seconds
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only scenarios whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// The program to measure, instead of building it
    #[arg(long)]
    program: Option<PathBuf>,
    /// Print the figures of every round as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Disk {
    Null,
    /// Nothing written: the device costs as little as it can, so that the servers' own cost shows.
    Zram,
    /// Full of random bytes, which the device copies from all over the memory for either server.
    FullZram,
    File,
}

struct Scenario {
    name: &'static str,
    disk: Disk,
    load: Load,
}

const fn scenario(name: &'static str, disk: Disk, op: Op, kib: usize, depth: usize) -> Scenario {
    Scenario { name, disk, load: Load { op, block_bytes: kib << 10, depth } }
}

const SCENARIOS: &[Scenario] = &[
    scenario("null 4k randread QD32", Disk::Null, Op::RandomRead, 4, 32),
    scenario("null 128k randread QD8", Disk::Null, Op::RandomRead, 128, 8),
    scenario("null 4k randread QD1", Disk::Null, Op::RandomRead, 4, 1),
    scenario("zram 4k randread QD32", Disk::Zram, Op::RandomRead, 4, 32),
    scenario("zram 4k randread QD1", Disk::Zram, Op::RandomRead, 4, 1),
    scenario("zram 128k randread QD8", Disk::Zram, Op::RandomRead, 128, 8),
    scenario("full zram 4k randread QD32", Disk::FullZram, Op::RandomRead, 4, 32),
    scenario("file 4k randread QD32", Disk::File, Op::RandomRead, 4, 32),
    scenario("file 4k randwrite QD32", Disk::File, Op::RandomWrite, 4, 32),
];

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    benches::need("qemu-storage-daemon", "qemu-utils")?;
    let site_program = options.program.clone().map_or_else(benches::release_program, Ok)?;
    // Below the target directory, since a temporary directory may lie in memory and know no direct I/O.
    let base = xtask::paths::target().join("bench");
    std::fs::create_dir_all(&base)?;
    let dir = tempfile::tempdir_in(base)?;
    let chosen: Vec<_> = SCENARIOS.iter().filter(|scenario| scenario.name.contains(&options.only)).collect();
    let uses = |disk: Disk| chosen.iter().any(|scenario| scenario.disk == disk);
    let add_zram = |disk: Disk| uses(disk).then(volumes::Zram::add).transpose();
    let (zram, full_zram) = (add_zram(Disk::Zram)?, add_zram(Disk::FullZram)?);
    let path = |zram: &Option<volumes::Zram>| zram.as_ref().map(volumes::Zram::path).unwrap_or_default();
    let (zram_path, full_zram_path) = (path(&zram), path(&full_zram));
    let file = dir.path().join("disk.img");
    for (disk, path) in [(Disk::File, &file), (Disk::FullZram, &full_zram_path)] {
        if uses(disk) {
            volumes::fill(path)?;
        }
    }
    let mut figures = Vec::new();
    for scenario in chosen {
        let path = match scenario.disk {
            Disk::Zram => &zram_path,
            Disk::FullZram => &full_zram_path,
            Disk::File | Disk::Null => &file,
        };
        let mut iops = Comparison::new(format!("{}: IOPS", scenario.name), true);
        let mut p50 = Comparison::new(format!("{}: p50 us", scenario.name), false);
        let mut cpu = Comparison::new(format!("{}: server ns/IO", scenario.name), false);
        for round in 1..=options.rounds {
            rounds::progress(scenario.name, round, options.rounds);
            let peer = measure_peer(dir.path(), scenario, path, options.seconds);
            let peer = peer.context("qemu-storage-daemon")?;
            let site = Site {
                program: site_program.clone(),
                dir: dir.path().join(format!("site{round}")),
                lifetime: Lifetime::Ours,
                usual_ports: false,
            };
            let ours = measure_ours(&site.prepared()?, scenario, path, options.seconds);
            let ours = ours.context("sluice blk")?;
            for (comparison, of) in [
                (&mut iops, (|f: &Figures| f.iops) as fn(&Figures) -> f64),
                (&mut p50, |f| f.p50_us),
                (&mut cpu, |f| f.server_cpu_ns),
            ] {
                comparison.peer.push(of(&peer));
                comparison.ours.push(of(&ours));
            }
        }
        figures.extend([iops, p50, cpu]);
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
        return Ok(());
    }
    println!("{}", rounds::table("scenario", "qemu-storage-daemon", &figures));
    Ok(())
}

fn measure_peer(dir: &Path, scenario: &Scenario, path: &Path, seconds: f64) -> anyhow::Result<Figures> {
    let path = path.display();
    let blockdev = match scenario.disk {
        // Its fastest way: the buffers stay as they are.
        Disk::Null => format!("driver=null-co,read-zeroes=off,size={}", volumes::DISK_BYTES),
        Disk::Zram | Disk::FullZram => {
            format!("driver=host_device,filename={path},cache.direct=on,aio=io_uring")
        }
        Disk::File => format!("driver=file,filename={path},cache.direct=on,aio=io_uring"),
    };
    let qsd = Qsd::start(dir, &blockdev)?;
    load(qsd.socket(), qsd.id(), scenario, seconds)
}

fn measure_ours(site: &Site, scenario: &Scenario, path: &Path, seconds: f64) -> anyhow::Result<Figures> {
    let mut daemon = site.blk()?;
    let (path, size) = (path.display().to_string(), volumes::DISK_BYTES.to_string());
    let args: &[&str] = match scenario.disk {
        Disk::Null => &["--null", "--size", &size],
        Disk::Zram | Disk::FullZram => &["--device", &path],
        Disk::File => &["--file", &path, "--size", &size],
    };
    site.sluice(&[&["volume", "create", "v0"], args].concat())?;
    let figures = load(&site.socket("v0"), daemon.process().id(), scenario, seconds)?;
    site.sluice(&["volume", "delete", "v0"])?;
    Ok(figures)
}

/// Puts the server on its core and the client on the other one.
fn load(socket: &Path, server: u32, scenario: &Scenario, seconds: f64) -> anyhow::Result<Figures> {
    pin(server, SERVER_CORE)?;
    pin(std::process::id(), CLIENT_CORE)?;
    Client::connect(socket, scenario.load)?.measure(seconds, server)
}
