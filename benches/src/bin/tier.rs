//! What the tiered store itself costs: memory of the map, time of opening, snapshots and clones, reads through generations.
//! The devices are sparse files that are never read for data: every action is reported as done, so that only the
//! library's own time and space count. Opening reads the real metadata.
//!
//! `cargo run --release -p benches --bin tier`

use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;
use tiering::{
    ActionKind, BlockingIo, Buffer, DeviceId, DeviceSpec, FormatSpec, IoError, OpenOptions, Request,
    RequestKind, Store, TRANSFER_BYTES_MAX, Tier, UNIT_BYTES, VolumeId,
};
use uuid::Uuid;

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const MIB: f64 = (1u64 << 20) as f64;

/// A hot and a cold file.
struct Files {
    files: [File; 2],
    now_ns: u64,
    _directory: tempfile::TempDir,
}

impl BlockingIo for Files {
    fn present(&self, device: DeviceId) -> bool {
        device.0 < 2
    }
    fn read(&mut self, device: DeviceId, offset: u64, into: &mut [u8]) -> Result<(), IoError> {
        self.files[usize::from(device.0)].read_exact_at(into, offset).map_err(|_| IoError)
    }
    fn write(&mut self, device: DeviceId, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
        self.files[usize::from(device.0)].write_all_at(bytes, offset).map_err(|_| IoError)
    }
    fn flush(&mut self, _: DeviceId) -> Result<(), IoError> {
        Ok(())
    }
}

impl Files {
    fn new(hot_bytes: u64, cold_bytes: u64, leaves_max: u64) -> Result<Files> {
        let directory = tempfile::tempdir()?;
        let file = |name: &str, bytes: u64| -> Result<File> {
            let path = directory.path().join(name);
            let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
            file.set_len(bytes)
                .with_context(|| format!("cannot make {} of {bytes} bytes", path.display()))?;
            Ok(file)
        };
        let files = [file("hot", hot_bytes)?, file("cold", cold_bytes)?];
        let mut files = Files { files, now_ns: 0, _directory: directory };
        let device = |uuid, tier, size_bytes| DeviceSpec { uuid: Uuid::from_u128(uuid), tier, size_bytes };
        let devices = vec![device(2, Tier::Hot, hot_bytes), device(3, Tier::Cold, cold_bytes)];
        let spec = FormatSpec { leaves_max, ..FormatSpec::usual(Uuid::from_u128(1), devices) };
        tiering::format(&mut files, &spec)?;
        Ok(files)
    }

    fn open(&mut self) -> Result<Store> {
        let options = OpenOptions { now_ns: self.now_ns, ..OpenOptions::default() };
        Ok(Store::open(self, options)?)
    }

    /// Carries out what is metadata, and says of data that it is done.
    fn drive(&mut self, store: &mut Store) -> Result<()> {
        loop {
            let mut any = false;
            while let Some(action) = store.next_action() {
                any = true;
                if let (ActionKind::Write, Buffer::Meta { index, offset }) = (action.kind, action.buffer) {
                    let from = offset as usize;
                    let bytes = store.meta(index)[from..from + action.len as usize].to_vec();
                    self.write(action.device, action.offset, &bytes)?;
                }
                store.complete(action.id, Ok(action.len));
            }
            while let Some(done) = store.next_done() {
                any = true;
                done.result?;
            }
            if !any {
                return Ok(());
            }
        }
    }

    fn request(
        &mut self,
        store: &mut Store,
        volume: VolumeId,
        kind: RequestKind,
        offset: u64,
        len: u32,
    ) -> Result<()> {
        while store.submit(Request { tag: 0, volume, kind, offset, len }).is_err() {
            self.drive(store)?;
        }
        self.drive(store)
    }

    /// Every unit of the volume is written once.
    fn fill(&mut self, store: &mut Store, volume: VolumeId, bytes: u64) -> Result<()> {
        for offset in (0..bytes).step_by(TRANSFER_BYTES_MAX as usize) {
            self.request(store, volume, RequestKind::Write, offset, TRANSFER_BYTES_MAX)?;
        }
        self.settle(store)
    }

    /// What was recorded is in the journal, and firm.
    fn settle(&mut self, store: &mut Store) -> Result<()> {
        for _ in 0..1000 {
            self.now_ns += 1_000_000_000;
            store.tick(self.now_ns);
            self.drive(store)?;
            if store.settled() {
                return Ok(());
            }
        }
        ensure!(store.settled(), "the records do not become firm");
        Ok(())
    }

    fn forked(&mut self, store: &mut Store, from: VolumeId, writable: bool) -> Result<VolumeId> {
        let id = store.fork_volume(from, writable)?;
        while store.next_forked() != Some(id) {
            self.drive(store)?;
        }
        Ok(id)
    }
}

/// Resident bytes of this process.
fn resident() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/statm")?;
    let pages: f64 = status.split_whitespace().nth(1).context("no resident size")?.parse()?;
    Ok(pages * 4096.0)
}

#[expect(clippy::print_stdout, reason = "the table is what the program is for")]
fn row(what: &str, value: String, target: &str, good: bool) {
    println!("| {what} | {value} | {target} | {} |", if good { "yes" } else { "NO" });
}

fn whole_tib() -> Result<()> {
    let mut files = Files::new(16 * GIB, TIB + 8 * GIB, 80_000)?;
    let mut store = files.open()?;
    let before = resident()?;
    let id = store.create_volume(TIB)?;
    files.settle(&mut store)?;
    let empty = (resident()? - before) / MIB;
    row("RSS of an empty 1 TiB volume, MiB", format!("{empty:.2}"), "<= 2", empty <= 2.0);
    files.fill(&mut store, id, TIB)?;
    store.checkpoint();
    files.settle(&mut store)?;
    // What the opened pool holds, without what filling it needed on the way.
    drop(store);
    let begin = Instant::now();
    let mut store = files.open()?;
    let seconds = begin.elapsed().as_secs_f64();
    row("open after a kill with 1 TiB mapped, s", format!("{seconds:.2}"), "<= 2", seconds <= 2.0);
    let leaves = store.volumes().map(|info| info.mapped_bytes).sum::<u64>() / (32 << 20);
    let map = leaves as f64 * (4096.0 + 4.0 + 24.0) / MIB;
    row(
        "map of a fully mapped TiB, MiB (counted: leaves of 4 KiB and their numbers)",
        format!("{map:.0}"),
        "<= 136",
        map <= 136.0,
    );
    let begin = Instant::now();
    files.forked(&mut store, id, false)?;
    let ms = begin.elapsed().as_secs_f64() * 1e3;
    row("snapshot of a full 1 TiB volume, ms", format!("{ms:.2}"), "<= 10", ms <= 10.0);
    Ok(())
}

fn reads_ns(store: &mut Store, id: VolumeId, bytes: u64) -> Result<f64> {
    let mut best = f64::MAX;
    for _ in 0..5 {
        let (begin, count) = (Instant::now(), 200_000u64);
        for at in 0..count {
            let offset = at.wrapping_mul(0x9e37_79b9) % (bytes / 4096) * 4096;
            let hit = store.hit(id, offset, 4096).context("all of it is hot")?;
            store.hit_done(std::hint::black_box(hit), false);
        }
        best = best.min(begin.elapsed().as_nanos() as f64 / count as f64);
    }
    Ok(best)
}

fn generations() -> Result<()> {
    let bytes = 256 << 20;
    let mut files = Files::new(4 * GIB, 8 * GIB, 40_000)?;
    let mut store = files.open()?;
    let flat = store.create_volume(bytes)?;
    files.fill(&mut store, flat, bytes)?;
    let mut deep = store.create_volume(bytes)?;
    files.fill(&mut store, deep, bytes)?;
    for generation in 0..1000u64 {
        deep = files.forked(&mut store, deep, true)?;
        let offset = generation * UNIT_BYTES % bytes;
        files.request(&mut store, deep, RequestKind::Write, offset, 4096)?;
    }
    let flat = reads_ns(&mut store, flat, bytes)?;
    let deep = reads_ns(&mut store, deep, bytes)?;
    let share = flat / deep;
    let value = format!("{share:.2}x ({flat:.0} ns flat, {deep:.0} ns)");
    row("4k hot read through 1000 generations", value, ">= 0.95x flat", share >= 0.95);
    Ok(())
}

fn clones() -> Result<()> {
    let mut files = Files::new(8 * GIB, 8 * GIB, 40_000)?;
    let mut store = files.open()?;
    let image = store.create_volume(GIB)?;
    files.fill(&mut store, image, GIB)?;
    let used = |store: &Store| (store.cold_slots().1 - store.cold_slots().0) as f64;
    let one = used(&store);
    let begin = Instant::now();
    let clones = (0..1000).map(|_| files.forked(&mut store, image, true)).collect::<Result<Vec<_>>>()?;
    let seconds = begin.elapsed().as_secs_f64();
    row("1000 clones of a 1 GiB image, s", format!("{seconds:.2}"), "<= 10", seconds <= 10.0);
    let space = used(&store) / one;
    row("their space, in images", format!("{space:.3}"), "<= 1.01", space <= 1.01);
    for clone in clones {
        for offset in (0..GIB).step_by(TRANSFER_BYTES_MAX as usize) {
            files.request(&mut store, clone, RequestKind::Read, offset, TRANSFER_BYTES_MAX)?;
        }
    }
    let hot = f64::from(store.hot_slots().1 - store.hot_slots().0) * UNIT_BYTES as f64 / GIB as f64;
    row("hot bytes when all have read all of it, in images", format!("{hot:.3}"), "<= 1.1", hot <= 1.1);
    Ok(())
}

fn warmth() -> Result<()> {
    let (bytes, hot) = (4 * GIB, GIB);
    let mut files = Files::new(hot, 8 * GIB, 1000)?;
    let mut store = files.open()?;
    let id = store.create_volume(bytes)?;
    files.fill(&mut store, id, bytes)?;
    let mut seed = 1u64;
    let mut ratio = |files: &mut Files, store: &mut Store, reads: u64| -> Result<f64> {
        let before = store.stats();
        for _ in 0..reads {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Nine of ten reads go to an eighth of the volume.
            let span = if seed >> 60 < 14 { bytes / 8 } else { bytes };
            files.request(store, id, RequestKind::Read, (seed >> 8) % (span / 4096) * 4096, 4096)?;
            files.now_ns += 100_000;
            store.tick(files.now_ns);
        }
        let after = store.stats();
        let (hits, misses) = (after.read_hits - before.read_hits, after.read_misses - before.read_misses);
        Ok(hits as f64 / (hits + misses) as f64)
    };
    ratio(&mut files, &mut store, 400_000)?;
    let before = ratio(&mut files, &mut store, 20_000)?;
    files.settle(&mut store)?;
    drop(store);
    let mut store = files.open()?;
    let after = ratio(&mut files, &mut store, 20_000)?;
    let share = after / before;
    let value = format!("{share:.3} ({before:.3}, then {after:.3})");
    row("hit ratio after a kill and an opening", value, ">= 0.95 of before", share >= 0.95);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the table is what the program is for")]
fn main() -> Result<()> {
    println!("| what | measured | must reach | reached |\n|---|---|---|---|");
    whole_tib()?;
    generations()?;
    clones()?;
    warmth()
}
