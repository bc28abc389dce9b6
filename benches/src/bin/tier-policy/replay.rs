//! The replay: who is hot, what moves, and what that costs a cold disk.
//!
//! Cost: 8 ms for each cold access that does not start where the last one ended, plus bytes / 150 MB/s; divided by the same
//! sum for all requests without a hot tier. Moved: bytes filled plus bytes written back, per user byte. A request
//! is a hit if every unit it touches is hot.

use super::workload::{Access, Scan};
use std::collections::{BTreeSet, HashMap};
use tiering::policy::{Kind, Policy, window::Decision, window::Windows};

const SEEK_S: f64 = 0.008;
const BYTES_PER_S: f64 = 150e6;
const PAGE: u64 = 4096;

/// How to place.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// For the table.
    pub name: &'static str,
    /// Bytes of a unit.
    pub unit: u64,
    /// The policy; none is Belady's, which knows the future.
    pub policy: Option<Kind>,
    /// Use the product's fill windows.
    pub window: bool,
    /// Write back dirty neighbours in groups of so many bytes; 0 for one by one.
    pub group_bytes: u64,
}

impl Setup {
    /// As the product does it by default.
    pub fn product() -> Setup {
        let tuning = tiering::Tuning::default();
        Setup {
            name: "ours",
            unit: tiering::UNIT_BYTES,
            policy: Some(tuning.policy),
            window: true,
            group_bytes: tuning.group_bytes,
        }
    }

    /// Units of 256 KiB and nothing else.
    pub fn plain() -> Setup {
        Setup { name: "", unit: 256 << 10, policy: None, window: false, group_bytes: 0 }
    }
}

/// The three figures.
pub struct Outcome {
    /// Requests that missed.
    pub miss: f64,
    /// Bytes moved per user byte.
    pub moved: f64,
    /// Cold-disk time against no hot tier.
    pub disk: f64,
}

#[derive(Default)]
struct ColdDisk {
    head: u64,
    seconds: f64,
}

impl ColdDisk {
    fn access(&mut self, offset: u64, len: u64) {
        let seek = if offset == self.head { 0.0 } else { SEEK_S };
        self.seconds += seek + len as f64 / BYTES_PER_S;
        self.head = offset + len;
    }
}

/// Evicts what is wanted last.
struct Belady {
    uses: HashMap<u64, Vec<u32>>,
    next: Vec<u32>,
    order: BTreeSet<(u32, u32)>,
}

enum Placement {
    Policy(Box<dyn Policy>),
    Belady(Belady),
}

#[derive(Clone, Copy, Default)]
struct Slot {
    unit: u64,
    dirty: u64,
}

/// A hot tier under replay.
pub struct Replay {
    setup: Setup,
    placement: Placement,
    windows: Windows,
    index: HashMap<u64, u32>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    cold: ColdDisk,
    moved: u64,
    now: u32,
}

impl Replay {
    /// An empty tier of so many bytes; `future` is what Belady's policy may know.
    pub fn new(setup: Setup, future: &[Access], hot_bytes: u64) -> Replay {
        let slots = (hot_bytes / setup.unit).max(1) as u32;
        let placement = match setup.policy {
            Some(kind) => Placement::Policy(kind.build(slots)),
            None => {
                let mut uses: HashMap<u64, Vec<u32>> = HashMap::new();
                for (at, access) in future.iter().enumerate().rev() {
                    for unit in units(access, setup.unit) {
                        uses.entry(unit).or_default().push(at as u32);
                    }
                }
                Placement::Belady(Belady { uses, next: vec![0; slots as usize], order: BTreeSet::new() })
            }
        };
        Replay {
            setup,
            placement,
            windows: Windows::new(tiering::Tuning::default().stream_bypass_bytes, slots),
            index: HashMap::new(),
            slots: vec![Slot::default(); slots as usize],
            free: (0..slots).rev().collect(),
            cold: ColdDisk::default(),
            moved: 0,
            now: 0,
        }
    }

    /// The three figures of one load.
    pub fn run(setup: Setup, accesses: &[Access], hot_bytes: u64) -> Outcome {
        let mut replay = Replay::new(setup, accesses, hot_bytes);
        let mut without = ColdDisk::default();
        let (mut missed, mut user) = (0u64, 0u64);
        for access in accesses {
            without.access(access.offset, access.len);
            user += access.len;
            missed += u64::from(!replay.access(access));
        }
        Outcome {
            miss: missed as f64 / accesses.len() as f64,
            moved: replay.moved as f64 / user as f64,
            disk: replay.cold.seconds / without.seconds,
        }
    }

    /// Hit ratio of `probe` after `warm`.
    pub fn hits_of(mut self, warm: &[Access], probe: &[Access]) -> f64 {
        for access in warm {
            self.access(access);
        }
        self.ratio(probe)
    }

    /// Hit ratio after the scan, and the share of the scanned bytes that was promoted.
    pub fn hits_after_scan(mut self, scan: &Scan) -> (f64, f64) {
        for access in &scan.warm {
            self.access(access);
        }
        let before = self.moved;
        for access in &scan.scan {
            self.access(access);
        }
        let promoted = (self.moved - before) as f64 / scan.scan.iter().map(|a| a.len).sum::<u64>() as f64;
        (self.ratio(&scan.probe), promoted)
    }

    fn ratio(&mut self, probe: &[Access]) -> f64 {
        probe.iter().filter(|access| self.access(access)).count() as f64 / probe.len() as f64
    }

    /// One request; true if it was a hit.
    fn access(&mut self, access: &Access) -> bool {
        self.now += 1;
        let hit = units(access, self.setup.unit).all(|unit| self.index.contains_key(&unit));
        if !hit && !self.miss(access) {
            self.cold.access(access.offset, access.len);
            return false;
        }
        for unit in units(access, self.setup.unit) {
            let Some(&slot) = self.index.get(&unit) else { continue };
            self.touch(slot, unit);
            if access.write {
                let start = access.offset.max(unit * self.setup.unit);
                let end = (access.offset + access.len).min((unit + 1) * self.setup.unit);
                for page in start / PAGE..end.div_ceil(PAGE) {
                    self.slots[slot as usize].dirty |= 1 << (page % (self.setup.unit / PAGE));
                }
            }
        }
        hit
    }

    /// Brings in what the window says. False if the request goes past the hot tier.
    fn miss(&mut self, access: &Access) -> bool {
        let (mut start, mut end) = (access.offset, access.offset + access.len);
        let mut passing = false;
        if self.setup.window {
            match self.windows.miss(0, start, end - start, access.write) {
                Decision::Fill { start: s, end: e, passing: p } => (start, end, passing) = (s, e, p),
                Decision::Bypass => return false,
            }
        }
        let mut missing: Vec<u64> = Vec::new();
        for unit in start / self.setup.unit..end.div_ceil(self.setup.unit) {
            if !self.index.contains_key(&unit) {
                missing.push(unit);
            }
        }
        for run in missing.chunk_by(|a, b| a + 1 == *b) {
            let bytes = run.len() as u64 * self.setup.unit;
            self.cold.access(run[0] * self.setup.unit, bytes);
            self.moved += bytes;
        }
        for unit in missing {
            self.insert(unit, passing);
        }
        true
    }

    fn insert(&mut self, unit: u64, passing: bool) {
        let slot = self.free.pop().unwrap_or_else(|| self.evict());
        self.index.insert(unit, slot);
        self.slots[slot as usize] = Slot { unit, dirty: 0 };
        match &mut self.placement {
            Placement::Policy(policy) if passing => policy.insert_passing(slot, unit),
            Placement::Policy(policy) => policy.insert(slot, unit),
            Placement::Belady(_) => self.schedule(slot, unit),
        }
    }

    fn touch(&mut self, slot: u32, unit: u64) {
        match &mut self.placement {
            Placement::Policy(policy) => policy.hit(slot),
            Placement::Belady(_) => self.schedule(slot, unit),
        }
    }

    fn schedule(&mut self, slot: u32, unit: u64) {
        let Placement::Belady(belady) = &mut self.placement else { return };
        let uses = belady.uses.entry(unit).or_default();
        while uses.last().is_some_and(|at| *at < self.now) {
            uses.pop();
        }
        belady.order.remove(&(belady.next[slot as usize], slot));
        belady.next[slot as usize] = uses.last().copied().unwrap_or(u32::MAX);
        belady.order.insert((belady.next[slot as usize], slot));
    }

    fn evict(&mut self) -> u32 {
        let slot = match &mut self.placement {
            Placement::Policy(policy) => policy.victim(&mut |_| true).expect("a full tier has a victim"),
            Placement::Belady(belady) => belady.order.last().expect("a full tier has a victim").1,
        };
        let Slot { unit, dirty } = self.slots[slot as usize];
        if dirty != 0 {
            self.write_back(unit);
        }
        match &mut self.placement {
            Placement::Policy(policy) => policy.remove(slot, unit, true),
            Placement::Belady(belady) => drop(belady.order.remove(&(belady.next[slot as usize], slot))),
        }
        self.index.remove(&unit);
        slot
    }

    /// Writes the unit's dirty pages, and those of its group, in the order of the disk.
    fn write_back(&mut self, unit: u64) {
        let per_group = (self.setup.group_bytes / self.setup.unit).max(1);
        let first = unit - unit % per_group;
        let pages = self.setup.unit / PAGE;
        let mut span: Option<(u64, u64)> = None;
        for neighbour in first..first + per_group {
            let Some(&slot) = self.index.get(&neighbour) else { continue };
            let dirty = std::mem::take(&mut self.slots[slot as usize].dirty);
            self.moved += u64::from(dirty.count_ones()) * PAGE;
            for page in (0..pages).filter(|page| dirty >> page & 1 == 1).map(|page| neighbour * pages + page)
            {
                span = Some((span.map_or(page, |(start, _)| start), page + 1));
            }
        }
        // One pass of the head over the group: one seek, and the time of all it passes.
        if let Some((start, end)) = span {
            self.cold.access(start * PAGE, (end - start) * PAGE);
        }
    }
}

fn units(access: &Access, unit: u64) -> std::ops::Range<u64> {
    access.offset / unit..(access.offset + access.len).div_ceil(unit)
}
