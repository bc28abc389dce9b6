//! Replays block traces and synthetic loads with the placement code of the product: its policies, fill windows and
//! write-back groups; no device, no clock. Prints request miss, bytes moved per user byte, and cold-disk time
//! against no hot tier at all.
//!
//! `cargo run --release -p benches --bin tier-policy -- [--traces DIR] [--grid]`

mod replay;
mod workload;

use anyhow::Result;
use clap::Parser;
use replay::{Outcome, Replay, Setup};
use std::path::PathBuf;
use tiering::policy::Kind;
use workload::Access;

/// Replay traces with the product's placement code.
#[derive(Parser)]
struct Options {
    /// Directory with the traces; what is not there is skipped.
    #[arg(long, default_value = "../shared/traces")]
    traces: PathBuf,
    /// Only the workload of this name.
    #[arg(long)]
    only: Option<String>,
    /// Skip the peers (LRU of 256 KiB, Belady).
    #[arg(long)]
    ours: bool,
}

fn footprint(accesses: &[Access]) -> u64 {
    let mut pages: Vec<u64> =
        accesses.iter().flat_map(|a| a.offset / 4096..(a.offset + a.len).div_ceil(4096)).collect();
    pages.sort_unstable();
    pages.dedup();
    pages.len() as u64 * 4096
}

fn setups(options: &Options) -> Vec<Setup> {
    let product = Setup::product();
    let mut setups = vec![
        Setup { name: "ours, one by one", group_bytes: 0, ..product },
        Setup { name: "ours, 1 MiB groups", group_bytes: 1 << 20, ..product },
        Setup { name: "ours, 4 MiB groups", ..product },
        Setup { name: "S3-FIFO, 4 MiB groups", policy: Some(Kind::S3Fifo), ..product },
        Setup { name: "LRU 64 KiB, 4 MiB groups", policy: Some(Kind::Lru), ..product },
    ];
    if !options.ours {
        setups.push(Setup { name: "LRU 256 KiB", policy: Some(Kind::Lru), ..Setup::plain() });
        setups.push(Setup { name: "2Q 256 KiB", policy: Some(Kind::TwoQueue), ..Setup::plain() });
        setups.push(Setup { name: "Belady 256 KiB", policy: None, ..Setup::plain() });
    }
    setups
}

#[expect(clippy::print_stdout, reason = "the table is what the program is for")]
fn main() -> Result<()> {
    let options = Options::parse();
    println!("| load | hot | placement | miss | moved | disk |\n|---|---|---|---|---|---|");
    for workload in workload::all(&options.traces)? {
        if options.only.as_ref().is_some_and(|only| *only != workload.name) {
            continue;
        }
        let bytes = footprint(&workload.accesses);
        for percent in [1, 10, 25] {
            for setup in setups(&options) {
                let Outcome { miss, moved, disk } =
                    Replay::run(setup, &workload.accesses, bytes * percent / 100);
                println!(
                    "| {} | {percent} % | {} | {miss:.3} | {moved:.2} | {disk:.3} |",
                    workload.name, setup.name
                );
            }
        }
    }
    let scan = workload::scan_after_warm_up(bytes_of_scan_test());
    let before = Replay::new(Setup::product(), &[], scan.hot_bytes).hits_of(&scan.warm, &scan.probe);
    let (after, promoted) = Replay::new(Setup::product(), &[], scan.hot_bytes).hits_after_scan(&scan);
    println!(
        "\nscan of {} x the hot size after warm-up: hit ratio {before:.3} before, {after:.3} after, {:.2} % of the scanned bytes promoted",
        scan.scan.iter().map(|a| a.len).sum::<u64>() / scan.hot_bytes,
        promoted * 100.0
    );
    Ok(())
}

/// Hot bytes of the scan test.
fn bytes_of_scan_test() -> u64 {
    256 << 20
}
