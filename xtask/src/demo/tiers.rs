//! The demo's tiered volume: a golden image in a pool, a clone of it in a guest, and what the guest reads often moves to the
//! fast tier.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Serialize;

use super::stage::Stage;
use crate::lab::{Daemon, Site};
use crate::progress::Progress;

/// Name of the clone, which the first guest has as its second disk.
pub const CLONE: &str = "alice-data";
const POOL: &str = "pool0";
const GOLDEN: &str = "gold";
const IMAGE_MIB: u64 = 48;
/// What the guest reads again and again: so much, from here on.
const OFTEN_MIB: u64 = 8;
const OFTEN_AT_MIB: u64 = 24;
/// How often it does.
const ROUNDS: usize = 3;
/// Share of the last round that must come from the fast tier.
const HOT_AT_LAST: f64 = 0.9;
/// Lines of its heat map.
const HEAT_LINES: &str = "6";
/// How long one command of the guest may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What became of the tiered volume.
#[derive(Debug, Serialize)]
pub struct TierResult {
    /// Size of the golden image.
    pub image_mib: u64,
    /// Share of each round's reads that the fast tier served.
    pub hit_ratios: Vec<f64>,
    /// Units of 64 KiB that were brought into the fast tier.
    pub promotions: f64,
    /// Which parts of the clone were hot after the last round, as `sluice tier show` draws it.
    pub heat_map: String,
    /// The guest read every byte of the image as it was made.
    pub intact: bool,
    /// The golden image did not change when the guest wrote to its clone.
    pub golden: bool,
}

impl TierResult {
    /// Whether the hit ratio rose, and nothing was wrong.
    pub fn passed(&self) -> bool {
        self.warmed() && self.intact && self.golden
    }

    /// Whether what was read often became hot.
    pub fn warmed(&self) -> bool {
        let ends = self.hit_ratios.first().zip(self.hit_ratios.last());
        ends.is_some_and(|(first, last)| last > first && *last >= HOT_AT_LAST)
    }
}

fn raw(site: &Site) -> PathBuf {
    site.dir.join("gold.raw")
}

/// Makes an image as others have it, a compressed qcow2 file, imports it and clones it.
pub fn make(site: &Site, progress: &Progress) -> anyhow::Result<()> {
    progress.note("making a pool, a golden image in it, and a clone");
    let mut bytes = vec![0; (IMAGE_MIB << 20) as usize];
    let mut value = 0x9e37_79b9_7f4a_7c15_u64;
    for chunk in bytes.chunks_exact_mut(8) {
        value = value.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        chunk.copy_from_slice(&(value ^ value >> 29).to_le_bytes());
    }
    // What is empty takes no space in the pool.
    bytes[..(IMAGE_MIB << 20) as usize / 4].fill(0);
    std::fs::write(raw(site), bytes).context("writing the image")?;
    let qcow2 = site.dir.join("gold.qcow2");
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-c", "-f", "raw", "-O", "qcow2"]).args([&raw(site), &qcow2]);
    let status = convert.status().context("starting qemu-img")?;
    ensure!(status.success(), "qemu-img: {status}");
    let device = |name: &str, size: &str| format!("{}:{size}", site.dir.join(name).display());
    let (hot, cold) = (device("hot.dev", "32MiB"), device("cold.dev", "256MiB"));
    site.sluice(&["pool", "create", POOL, "--hot", &hot, "--cold", &cold])?;
    site.sluice(&["image", "import", GOLDEN, "--pool", POOL, "--from", &qcow2.display().to_string()])?;
    site.sluice(&["volume", "clone", GOLDEN, CLONE])?;
    Ok(())
}

/// Parts of reads that each tier served so far.
fn reads(blk: &Daemon) -> anyhow::Result<[f64; 2]> {
    let metrics = blk.metrics()?;
    let of = |name| metrics.sum(name, &[("pool", POOL), ("op", "read")]).unwrap_or_default();
    Ok(["sluice_tier_hits_total", "sluice_tier_misses_total"].map(of))
}

/// Has the first guest read a part of its clone again and again, then all of it, and write to it.
pub fn run(stage: &mut Stage, progress: &Progress) -> anyhow::Result<TierResult> {
    let mut hit_ratios = Vec::new();
    for _ in 0..ROUNDS {
        let before = reads(&stage.blk)?;
        let (skip, count) = (OFTEN_AT_MIB * 16, OFTEN_MIB * 16);
        stage.guests[0].run_within(
            &format!(
                "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vdb of=/dev/null bs=64k skip={skip} count={count}"
            ),
            LIMIT,
        )?;
        let counted = || {
            let now = reads(&stage.blk)?;
            let [hits, misses] = [now[0] - before[0], now[1] - before[1]];
            // Counters are shown with the pool's next tick.
            Ok((hits + misses >= count as f64).then_some(hits / (hits + misses)))
        };
        let ratio = crate::lab::wait_for("the reads are counted", LIMIT, counted)?;
        progress.note(&format!("{:.0} % of the reads came from the fast tier", ratio * 100.0));
        hit_ratios.push(ratio);
    }
    let heat_map = stage.site.sluice(&["tier", "show", CLONE, "--lines", HEAT_LINES])?;
    let expected = digest(&raw(&stage.site))?;
    let found = stage.guests[0].run_within("sha256sum </dev/vdb", LIMIT)?.output;
    let intact = found.split_whitespace().next() == Some(expected.as_str());
    stage.guests[0].run_within("dd if=/dev/urandom of=/dev/vdb bs=1M count=4 && sync", LIMIT)?;
    let exported = stage.site.dir.join("exported.raw");
    stage.site.sluice(&["volume", "export", GOLDEN, "--to", &exported.display().to_string()])?;
    let golden = digest(&exported)? == expected;
    let promotions = stage.blk.metrics()?.sum("sluice_tier_promotions_total", &[("pool", POOL)]);
    let promotions = promotions.unwrap_or_default();
    Ok(TierResult { image_mib: IMAGE_MIB, hit_ratios, promotions, heat_map, intact, golden })
}

fn digest(file: &Path) -> anyhow::Result<String> {
    let output = Command::new("sha256sum").arg(file).output().context("starting sha256sum")?;
    ensure!(output.status.success(), "sha256sum {}: {}", file.display(), output.status);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().next().map(str::to_string).context("sha256sum says nothing")
}
