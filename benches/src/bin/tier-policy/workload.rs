//! Where the accesses come from: traces, and generators with fixed seeds.

use anyhow::{Context, Result};
use std::path::Path;
use std::process::{Command, Stdio};

/// One request.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// A write.
    pub write: bool,
}

/// A named sequence of requests.
pub struct Workload {
    /// For the table.
    pub name: &'static str,
    /// In order.
    pub accesses: Vec<Access>,
}

/// All there are; traces that are missing are named on standard error and left out.
#[expect(clippy::print_stderr, reason = "the table on standard output stays clean")]
pub fn all(traces: &Path) -> Result<Vec<Workload>> {
    let mut found = Vec::new();
    for (name, file, tool, parse) in [
        ("cloudphysics", "cloudphysics.csv.xz", "xz", parse_cloudphysics as fn(&str) -> Option<Access>),
        ("arc_P3", "arc_P3.lis.zst", "zstd", parse_arc),
    ] {
        let path = traces.join(file);
        if !path.exists() {
            eprintln!("{} is not there: {name} is skipped (see --traces)", path.display());
            continue;
        }
        let out = Command::new(tool).arg("-dc").arg(&path).stderr(Stdio::inherit()).output();
        let out =
            out.with_context(|| format!("cannot run {tool} to unpack {}: install it", path.display()))?;
        let text =
            String::from_utf8(out.stdout).with_context(|| format!("{} is not text", path.display()))?;
        found.push(Workload { name, accesses: text.lines().filter_map(parse).collect() });
    }
    for (name, make) in [
        ("zipf", zipf as fn(&mut Random) -> Vec<Access>),
        ("loop", looping),
        ("hot shift", hot_shift),
        ("boot storm", boot_storm),
    ] {
        found.push(Workload { name, accesses: make(&mut Random(42)) });
    }
    Ok(found)
}

fn parse_cloudphysics(line: &str) -> Option<Access> {
    let mut fields = line.split(',').skip(2);
    let op = fields.next()?;
    let len: u64 = fields.next()?.trim().parse().ok()?;
    let block: u64 = fields.next()?.trim().parse().ok()?;
    (len > 0).then_some(Access { offset: block * 512, len, write: op.eq_ignore_ascii_case("2a") })
}

fn parse_arc(line: &str) -> Option<Access> {
    let mut fields = line.split_ascii_whitespace();
    let block: u64 = fields.next()?.parse().ok()?;
    let count: u64 = fields.next()?.parse().ok()?;
    (count > 0).then_some(Access { offset: block * 512, len: count * 512, write: false })
}

/// SplitMix64: equal seeds, equal loads.
pub struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Rank in `0..n` with probability about 1 / rank.
    fn zipf(&mut self, n: u64) -> u64 {
        (((n as f64 + 1.0).powf(self.unit())) as u64).clamp(1, n) - 1
    }
}

const GIB: u64 = 1 << 30;

fn page(index: u64, write: bool) -> Access {
    Access { offset: index * 4096, len: 4096, write }
}

/// Hot ranks are spread over the disk in clusters of 16 KiB.
fn spread(rank: u64, pages: u64) -> u64 {
    let cluster = (rank / 4).wrapping_mul(0x9e37_79b9_7f4a_7c15) % (pages / 4);
    cluster * 4 + rank % 4
}

fn zipf(random: &mut Random) -> Vec<Access> {
    let pages = GIB / 4096;
    (0..300_000).map(|_| page(spread(random.zipf(pages), pages), random.below(10) < 3)).collect()
}

fn looping(_: &mut Random) -> Vec<Access> {
    let len = 128 << 10;
    (0..40_000u64).map(|i| Access { offset: i * len % (512 << 20), len, write: false }).collect()
}

fn hot_shift(random: &mut Random) -> Vec<Access> {
    let pages = GIB / 4096;
    let one = |i: u64, random: &mut Random| {
        let base = i / 50_000 * 20_011;
        page((spread(random.zipf(pages / 8), pages) + base) % pages, random.below(10) < 3)
    };
    (0..300_000).map(|i| one(i, random)).collect()
}

/// 64 clones of one image boot: each reads the same 200 MiB in pieces, shifted against each other, and writes a little of
/// its own. The clones' shared extents are one address range here, as they are for the policy.
fn boot_storm(random: &mut Random) -> Vec<Access> {
    let pieces: Vec<u64> = (0..4_000).map(|_| random.below(GIB / 4096 / 16)).collect();
    let mut all = Vec::new();
    for step in 0..pieces.len() + 64 * 20 {
        for guest in 0..64usize {
            if let Some(piece) = step.checked_sub(guest * 20).and_then(|at| pieces.get(at)) {
                all.push(Access { offset: piece * 65536, len: 16384, write: false });
                if random.below(10) == 0 {
                    all.push(page(GIB / 4096 + guest as u64 * 4096 + random.below(1024), true));
                }
            }
        }
    }
    all
}

/// A warm hot tier, a scan past it, and the same question before and after.
pub struct Scan {
    /// Hot capacity.
    pub hot_bytes: u64,
    /// Makes the tier warm.
    pub warm: Vec<Access>,
    /// Asks how warm it is.
    pub probe: Vec<Access>,
    /// Ten times the hot size in order.
    pub scan: Vec<Access>,
}

/// The scan test for a hot tier of so many bytes.
pub fn scan_after_warm_up(hot_bytes: u64) -> Scan {
    let mut random = Random(7);
    let units = hot_bytes / 65536;
    let mut draw = |count| (0..count).map(|_| page(random.zipf(units) * 16, false)).collect::<Vec<_>>();
    let (warm, probe) = (draw(200_000), draw(20_000));
    let scan = (0..10 * hot_bytes / 131_072).map(|i| Access {
        offset: (1 << 40) + i * 131_072,
        len: 131_072,
        write: false,
    });
    Scan { hot_bytes, warm, probe, scan: scan.collect() }
}
