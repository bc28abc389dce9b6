//! Runs: operations overlap with the store's own moves, and at many steps copies of the disks are taken as a crash would
//! leave them, opened, and held against the model.

use crate::model::{Crash, Model, Promise, UNIT_SECTORS};
use crate::world::{self, ADOPTED, ADOPTED_SECTORS, Op, TAGS, World};
use simkit::{CutMode, Image, SimDisk};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use tiering::{Done, Limits, Pin, Request, RequestError, RequestKind, Rule, TenantId, UNIT_BYTES, VolumeId};

const UNITS: u64 = 5;

/// What went wrong, and how to see it again.
#[derive(Debug)]
pub struct Finding {
    what: String,
    seed: u64,
    log: Vec<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}\nseed {}\n{}", self.what, self.seed, self.log.join("\n"))
    }
}

/// How much was looked at.
#[derive(Debug, Default)]
pub struct Tally {
    pub states: u64,
    seen: HashSet<u64>,
    promotions: u64,
    demotions: u64,
    write_backs: u64,
    aborted: u64,
    checkpoints: u64,
    full_waits: u64,
    growths: u64,
    adoptions: u64,
    quota_refusals: u64,
}

impl Tally {
    pub fn distinct(&self) -> usize {
        self.seen.len()
    }

    pub fn covered(&self) -> bool {
        let all = [
            self.promotions,
            self.demotions,
            self.write_backs,
            self.aborted,
            self.checkpoints,
            self.full_waits,
            self.growths,
            self.adoptions,
            self.quota_refusals,
        ];
        all.iter().all(|count| *count > 0)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} crash states, {} distinct; {} promotions, {} demotions, {} write-backs, {} moves given up, {} checkpoints, {} waits for space, {} growths, {} adoptions, {} writes over quota",
            self.states,
            self.seen.len(),
            self.promotions,
            self.demotions,
            self.write_backs,
            self.aborted,
            self.checkpoints,
            self.full_waits,
            self.growths,
            self.adoptions,
            self.quota_refusals
        )
    }
}

/// What the first reading after a crash gave.
type Found = BTreeMap<VolumeId, Vec<u64>>;

enum InFlight {
    Write { volume: VolumeId, first: u64, count: u64 },
    Flush(Promise),
    Read { volume: VolumeId, first: u64, count: u64, allowed: Vec<Vec<u64>> },
}

pub struct Run {
    world: World,
    model: Model,
    in_flight: BTreeMap<u32, InFlight>,
    forks: BTreeMap<VolumeId, ()>,
    next_number: u64,
    seed: u64,
    broken: Option<Rule>,
    log: Vec<String>,
    problem: Option<String>,
    flushes_may_fail: bool,
    /// Volumes that had a quota once: their writes may be refused.
    limited: bool,
    growths: u64,
    adoptions: u64,
}

impl Run {
    pub fn new(seed: u64, broken: Option<Rule>) -> Run {
        let mut disks = world::used_disks(seed);
        world::format(&mut disks);
        let world = World::new(disks, 1, seed, broken).expect("a new pool opens");
        Run {
            world,
            model: Model::default(),
            in_flight: BTreeMap::new(),
            forks: BTreeMap::new(),
            next_number: 0x1000,
            seed,
            broken,
            log: Vec::new(),
            problem: None,
            flushes_may_fail: false,
            limited: false,
            growths: 0,
            adoptions: 0,
        }
    }

    fn finding(&mut self, what: String) -> Finding {
        Finding { what, seed: self.seed, log: std::mem::take(&mut self.log) }
    }

    /// One short sequence after a fixed beginning: a volume with some flushed, half written and untouched units.
    pub fn sequence(mut self, ops: &[Op], tally: &mut Tally) -> Result<(), Finding> {
        let id = self.world.store.create_volume(UNITS * UNIT_BYTES).expect("there is room");
        self.model.create(id, UNITS, true);
        self.write(id, 0, UNIT_SECTORS);
        self.write(id, UNIT_SECTORS + 8, 8);
        self.drain()?;
        self.flush(id);
        self.drain()?;
        for op in ops {
            self.apply(*op);
            let steps = self.world.rng.below(6);
            self.steps(steps, 3, tally)?;
        }
        self.steps(12, 2, tally)?;
        self.finish(tally)
    }

    /// Writes whole volumes until the pool is nearly full.
    fn fill(&mut self) -> Result<(), Finding> {
        while self.world.store.cold_slots().0 > UNITS {
            let Ok(id) = self.world.store.create_volume(UNITS * UNIT_BYTES) else { break };
            self.model.create(id, UNITS, true);
            (0..UNITS).for_each(|unit| self.write(id, unit * UNIT_SECTORS, UNIT_SECTORS));
            self.drain()?;
        }
        Ok(())
    }

    /// A long run of everything.
    pub fn long(mut self, ops: u32, tally: &mut Tally) -> Result<(), Finding> {
        let id = self.world.store.create_volume(UNITS * UNIT_BYTES).expect("there is room");
        self.model.create(id, UNITS, true);
        const MIX: [Op; 33] = [
            Op::Write,
            Op::Write,
            Op::Write,
            Op::Write,
            Op::Write,
            Op::Write,
            Op::Overwrite,
            Op::Overwrite,
            Op::Overwrite,
            Op::Flush,
            Op::Flush,
            Op::Flush,
            Op::Discard,
            Op::Zero,
            Op::Snapshot,
            Op::Clone,
            Op::Promote,
            Op::Promote,
            Op::Promote,
            Op::Demote,
            Op::Demote,
            Op::WriteBack,
            Op::WriteBack,
            Op::Delete,
            Op::Read,
            Op::Read,
            Op::Checkpoint,
            Op::Create,
            Op::Grow,
            Op::Adopt,
            Op::Pin,
            Op::Limit,
            Op::Limit,
        ];
        if self.seed.is_multiple_of(4) {
            self.fill()?;
        }
        for _ in 0..ops {
            let op = MIX[self.world.rng.below(MIX.len() as u64) as usize];
            // A pool that grows is never full: every second one stays as it is.
            if self.seed.is_multiple_of(2) && matches!(op, Op::Grow | Op::Adopt) {
                continue;
            }
            self.apply(op);
            let steps = self.world.rng.below(10);
            self.steps(steps, 4, tally)?;
        }
        self.finish(tally)
    }

    fn finish(mut self, tally: &mut Tally) -> Result<(), Finding> {
        self.drain()?;
        let stats = self.world.store.stats();
        tally.promotions += stats.promotions;
        tally.demotions += stats.demotions;
        tally.write_backs += stats.write_backs;
        tally.aborted += stats.moves_aborted;
        tally.checkpoints += stats.checkpoints;
        tally.full_waits += stats.full_waits;
        tally.growths += self.growths;
        tally.adoptions += self.adoptions;
        tally.quota_refusals += stats.quota_refusals;
        let volumes: Vec<VolumeId> = self.model.volumes.keys().copied().collect();
        for id in volumes {
            let sectors = self.model.sectors(id);
            let numbers = self.world.read_volume(id, sectors).map_err(|what| self.finding(what))?;
            for (sector, number) in numbers.into_iter().enumerate() {
                let expected = self.model.current(id, sector as u64);
                if !expected.contains(&number) {
                    let what =
                        format!("volume {} sector {sector} reads {number:#x}, not {expected:x?}", id.0);
                    return Err(self.finding(what));
                }
            }
        }
        Ok(())
    }

    /// Some steps of the world, each followed by a crash in one of so many cases.
    fn steps(&mut self, steps: u64, one_in: u64, tally: &mut Tally) -> Result<(), Finding> {
        for _ in 0..steps {
            self.world.issue();
            if self.world.in_flight() > 0 {
                self.world.complete_one();
            }
            if self.world.rng.chance(1, 6) {
                self.world.tick();
            }
            self.collect();
            if let Some(what) = self.problem.take() {
                return Err(self.finding(what));
            }
            if self.world.rng.chance(1, one_in) {
                self.crash(tally)?;
            }
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), Finding> {
        let mut quiet = 0;
        for _ in 0..100_000 {
            let busy = self.world.issue() | (self.world.in_flight() > 0);
            if self.world.in_flight() > 0 {
                self.world.complete_one();
            }
            self.collect();
            if let Some(what) = self.problem.take() {
                return Err(self.finding(what));
            }
            quiet = if busy { 0 } else { quiet + 1 };
            if !busy {
                self.world.tick();
            }
            if quiet > 3 && self.waiting_for_space() {
                // Nothing frees space by itself: a volume goes, as an operator would do it.
                self.make_space();
                quiet = 0;
            }
            if quiet > 8 {
                break;
            }
        }
        if self.in_flight.is_empty() {
            return Ok(());
        }
        let tags: Vec<u32> = self.in_flight.keys().copied().collect();
        Err(self.finding(format!("requests {tags:?} never end")))
    }

    fn waiting_for_space(&self) -> bool {
        !self.in_flight.is_empty() && self.world.store.cold_slots().0 == 0
    }

    fn make_space(&mut self) {
        let ids: Vec<VolumeId> = self.model.volumes.keys().copied().collect();
        for id in ids {
            if self.world.store.delete_volume(id).is_ok() {
                self.log.push(format!("delete {} for space", id.0));
                self.model.volumes.remove(&id);
                return;
            }
        }
        // All that are left are being written to.
        self.log.extend(self.world.grow().map(|what| format!("grow for space: {what}")));
    }

    fn collect(&mut self) {
        while let Some(done) = self.world.next_done() {
            self.request_done(done);
        }
        while let Some(id) = self.world.store.next_forked() {
            self.forks.remove(&id);
            if let Some(volume) = self.model.volumes.get_mut(&id) {
                volume.settled = true;
            }
        }
        while let Some(grown) = self.world.store.next_grown() {
            match grown {
                Ok(grown) => {
                    self.growths += 1;
                    if let Some(id) = grown.volume {
                        self.adoptions += 1;
                        self.log.push(format!("adopted as {}", id.0));
                        self.model.adopt(id, ADOPTED..ADOPTED + ADOPTED_SECTORS);
                    }
                }
                Err(error) if !self.flushes_may_fail => self.problem = Some(error.to_string()),
                Err(_) => {}
            }
        }
        // A fork that is made but not yet firm is known to the model from here on.
        let made: Vec<_> = self.world.store.volumes().collect();
        for info in made {
            if !self.model.volumes.contains_key(&info.id) && self.forks.contains_key(&info.id) {
                let from = info.parent.expect("a fork has a parent");
                let full = self.world.store.waiting_for_space() > 0;
                self.model.fork(from, info.id, info.writable, full);
            }
        }
        if self.world.store.settled() {
            let gone: Vec<VolumeId> =
                self.model.volumes.iter().filter(|(_, v)| v.dying).map(|(id, _)| *id).collect();
            gone.iter().for_each(|id| drop(self.model.volumes.remove(id)));
            self.model.volumes.values_mut().for_each(|volume| volume.settled = true);
        }
    }

    fn request_done(&mut self, done: Done) {
        let what = self.in_flight.remove(&done.tag).expect("the tag is in flight");
        match (what, done.result) {
            (InFlight::Write { volume, first, count }, Ok(())) => {
                self.model.acknowledge(volume, first, count)
            }
            (InFlight::Flush(promise), Ok(())) => {
                self.model.keep(&promise);
                if !self.in_flight.values().any(|other| matches!(other, InFlight::Flush(_))) {
                    self.model.compact();
                }
            }
            (InFlight::Read { volume, first, count, allowed }, Ok(())) => {
                let buffer = &self.world.buffers[done.tag as usize];
                for at in 0..count as usize {
                    let number = world::number_of(&buffer[at * 512..(at + 1) * 512]);
                    let begun = self.model.volumes.get(&volume).is_none_or(|_| {
                        self.model.allows(volume, first + at as u64, number, Crash::Power).is_ok()
                    });
                    if !allowed[at].contains(&number) && !begun {
                        let sector = first + at as u64;
                        self.problem =
                            Some(format!("a read of volume {} sector {sector} gave {number:#x}", volume.0));
                    }
                }
            }
            (_, Err(RequestError::ReadOnly | RequestError::Io)) if self.flushes_may_fail => {}
            // Parts of it may have been written: each sector may hold the old or the new, from now on.
            (InFlight::Write { volume, first, count }, Err(RequestError::Quota)) if self.limited => {
                self.model.refuse(volume, first, count);
            }
            (_, Err(error)) => self.problem = Some(format!("request {} failed: {error}", done.tag)),
        }
    }

    fn tag(&mut self) -> Option<u32> {
        (1..TAGS).find(|tag| !self.in_flight.contains_key(tag))
    }

    fn overlaps(&self, id: VolumeId, first: u64, count: u64) -> bool {
        self.in_flight.values().any(|other| match other {
            InFlight::Write { volume, first: f, count: c } => {
                *volume == id && *f < first + count && first < f + c
            }
            _ => false,
        })
    }

    fn request(&mut self, kind: RequestKind, id: VolumeId, first: u64, count: u64, what: InFlight) -> bool {
        let Some(tag) = self.tag() else { return false };
        let len = (count * 512) as u32;
        match kind {
            RequestKind::Write => {
                let number = self.next_number;
                self.world.buffers[tag as usize] =
                    (number..number + count).flat_map(world::sector_of).collect();
            }
            RequestKind::Read => self.world.buffers[tag as usize] = vec![0xab; len as usize],
            _ => {}
        }
        let taken = self.world.submit(Request { tag, volume: id, kind, offset: first * 512, len });
        if taken {
            self.log.push(format!("{kind:?} volume {} sectors {first}+{count} tag {tag}", id.0));
            self.in_flight.insert(tag, what);
        }
        taken
    }

    fn write(&mut self, id: VolumeId, first: u64, count: u64) {
        if self.overlaps(id, first, count) {
            return;
        }
        if self.request(RequestKind::Write, id, first, count, InFlight::Write { volume: id, first, count }) {
            self.model.begin(id, first, count, self.next_number, false);
            self.next_number += count;
        }
    }

    fn zero(&mut self, kind: RequestKind, id: VolumeId, first: u64, count: u64) {
        if self.overlaps(id, first, count) {
            return;
        }
        if self.request(kind, id, first, count, InFlight::Write { volume: id, first, count }) {
            self.model.begin(id, first, count, 0, true);
        }
    }

    fn flush(&mut self, id: VolumeId) {
        let promise = self.model.promise();
        self.request(RequestKind::Flush, id, 0, 0, InFlight::Flush(promise));
    }

    fn some_volume(&mut self, writable: bool) -> Option<VolumeId> {
        let fits = |id: &VolumeId| {
            let volume = &self.model.volumes[id];
            !volume.dying && (volume.writable || !writable)
        };
        let ids: Vec<VolumeId> = self.model.volumes.keys().copied().filter(fits).collect();
        (!ids.is_empty()).then(|| ids[self.world.rng.below(ids.len() as u64) as usize])
    }

    fn apply(&mut self, op: Op) {
        let Some(id) = self.some_volume(matches!(op, Op::Write | Op::Overwrite | Op::Discard | Op::Zero))
        else {
            return;
        };
        let sectors = self.model.sectors(id);
        let unit = self.world.rng.below(sectors / UNIT_SECTORS);
        let first = unit * UNIT_SECTORS;
        match op {
            Op::Write => {
                // Whole pages mostly, odd sectors sometimes, now and then across a unit's end.
                let (grain, most) = if self.world.rng.chance(1, 3) { (1, 20) } else { (8, 5) };
                let at = first + self.world.rng.below(UNIT_SECTORS / grain) * grain;
                let count = (1 + self.world.rng.below(most)) * grain;
                self.write(id, at, count.min(sectors - at));
            }
            Op::Overwrite => self.write(id, self.seed % 2 * UNIT_SECTORS + 8, 8),
            Op::Grow => self.log.extend(self.world.grow().map(|what| format!("grow: {what}"))),
            Op::Adopt => {
                if self.world.adopt() {
                    self.log.push("adopt".to_owned());
                }
            }
            Op::Pin => self.pin(id),
            Op::Limit => self.limit(id),
            Op::Flush => self.flush(id),
            Op::Discard => self.zero(RequestKind::Discard, id, first, UNIT_SECTORS),
            Op::Zero => {
                let count = 1 + self.world.rng.below(UNIT_SECTORS + 40);
                self.zero(RequestKind::WriteZeroes, id, first, count.min(sectors - first));
            }
            Op::Snapshot | Op::Clone => {
                if let Ok(to) = self.world.store.fork_volume(id, op == Op::Clone) {
                    self.log.push(format!("{op:?} {} as {}", id.0, to.0));
                    self.forks.insert(to, ());
                    self.collect();
                }
            }
            Op::Promote => self.world.store.promote_unit(id, unit),
            Op::Demote | Op::WriteBack => self.world.store.demote_unit(id, unit),
            Op::Delete => {
                let keep_one =
                    self.model.volumes.values().filter(|volume| volume.writable && !volume.dying).count()
                        == 1;
                let only = keep_one && self.model.volumes[&id].writable;
                if !only && self.world.store.delete_volume(id).is_ok() {
                    self.log.push(format!("delete {}", id.0));
                    self.model.volumes.get_mut(&id).expect("it was chosen").dying = true;
                }
            }
            Op::Read => {
                let (at, count) = (first + self.world.rng.below(UNIT_SECTORS - 8), 8);
                let allowed = (at..at + count).map(|sector| self.model.current(id, sector)).collect();
                self.request(
                    RequestKind::Read,
                    id,
                    at,
                    count,
                    InFlight::Read { volume: id, first: at, count, allowed },
                );
            }
            Op::Checkpoint => self.world.store.checkpoint(),
            Op::Create => {
                if let Ok(to) = self.world.store.create_volume(UNITS * UNIT_BYTES) {
                    self.log.push(format!("create {}", to.0));
                    self.model.create(to, UNITS, true);
                }
            }
        }
    }

    fn pin(&mut self, id: VolumeId) {
        let pin = [Pin::Hot, Pin::Cold, Pin::Auto][self.world.rng.below(3) as usize];
        let (first, count) = (self.world.rng.below(UNIT_SECTORS), 1 + self.world.rng.below(UNIT_SECTORS / 2));
        let done = match self.world.rng.below(2) {
            0 => self.world.store.pin_volume(id, pin),
            _ => self.world.store.pin_range(id, first * 512, count * 512, pin),
        };
        done.expect("pins are taken");
    }

    fn limit(&mut self, id: VolumeId) {
        let units = |rng: &mut simkit::Rng| rng.below(7) * UNIT_BYTES;
        let rng = &mut self.world.rng;
        let some = rng.chance(1, 2);
        let limits = Limits {
            quota_bytes: some.then(|| units(rng)),
            hot_min_bytes: 0,
            hot_max_bytes: rng.chance(1, 2).then(|| units(rng)),
            tenant: rng.chance(1, 2).then_some(TenantId(1)),
        };
        let tenant_quota = rng.chance(1, 2).then(|| 3 * units(rng));
        self.limited = true;
        self.world.store.set_limits(id, limits).expect("limits are taken");
        self.world.store.set_tenant_quota(TenantId(1), tenant_quota).expect("a quota is taken");
    }

    /// A crash now, in a few of the ways it could go.
    fn crash(&mut self, tally: &mut Tally) -> Result<(), Finding> {
        let unstable: Vec<u64> =
            self.world.disks.0.iter().map(|disk| disk.unstable_writes() as u64).collect();
        let mut mode = |unstable: u64| match self.world.rng.below(8) {
            0 => CutMode::Nothing,
            1 => CutMode::Everything,
            2 => CutMode::Prefix(self.world.rng.below(unstable + 1) as u32),
            3..=5 => CutMode::Subset(self.world.rng.next_u64()),
            _ => CutMode::Torn(self.world.rng.next_u64()),
        };
        let modes: Vec<CutMode> = unstable.into_iter().map(&mut mode).collect();
        let power = self.world.rng.chance(3, 4);
        let images = self.world.crashed(power, &modes);
        // Drawn for every state, so that a run does not depend on what other runs have seen.
        let (deep, seed) = (self.world.rng.chance(1, 3), self.world.rng.next_u64());
        tally.states += 1;
        if !tally.seen.insert(fingerprint(&images) ^ u64::from(power)) {
            return Ok(());
        }
        let crash = if power { Crash::Power } else { Crash::Kill };
        let result = self.examine(images, crash, deep, seed);
        result.map_err(|what| self.finding(format!("after a cut ({crash:?}, {modes:?}): {what}")))
    }

    fn examine(&mut self, images: Vec<Image>, crash: Crash, deep: bool, seed: u64) -> Result<(), String> {
        let boot = self.world.boot + u128::from(crash == Crash::Power);
        let disks = images.into_iter().map(|image| SimDisk::from_image(image, self.seed));
        let disks = world::Disks(disks.collect());
        let mut after = World::new(disks, boot, seed, self.broken).map_err(|error| error.to_string())?;
        let present: Vec<VolumeId> = after.store.volumes().map(|info| info.id).collect();
        let adopted: Vec<VolumeId> =
            after.store.volumes().filter(|info| info.adopted.is_some()).map(|info| info.id).collect();
        for (id, volume) in &self.model.volumes {
            if volume.settled && !volume.dying && !present.contains(id) {
                return Err(format!("volume {} is gone", id.0));
            }
        }
        let mut found = Found::new();
        for id in present {
            if !self.model.volumes.contains_key(&id) {
                if self.forks.contains_key(&id) {
                    continue;
                }
                if adopted.contains(&id) && self.world.store.is_growing() {
                    // All of the growth or nothing: here it is all.
                    let numbers = after.read_volume(id, ADOPTED_SECTORS)?;
                    if numbers.iter().copied().eq(ADOPTED..ADOPTED + ADOPTED_SECTORS) {
                        found.insert(id, numbers);
                        continue;
                    }
                    return Err(format!("adopted volume {} is not what was adopted: {numbers:x?}", id.0));
                }
                return Err(format!("volume {} came back", id.0));
            }
            let sectors = self.model.sectors(id);
            let numbers =
                after.read_volume(id, sectors).map_err(|error| format!("volume {}: {error}", id.0))?;
            for (sector, number) in numbers.iter().enumerate() {
                let (sector, number) = (sector as u64, *number);
                self.model.allows(id, sector, number, crash).map_err(|error| {
                    format!("volume {} unit {} sector {sector} {error}", id.0, sector / UNIT_SECTORS)
                })?;
            }
            found.insert(id, numbers);
        }
        if deep { stays(after, found, seed) } else { Ok(()) }
    }
}

/// What was read after a crash stays, whatever is moved, written elsewhere, or lost in a second crash.
fn stays(mut after: World, found: Found, seed: u64) -> Result<(), String> {
    let ids: Vec<VolumeId> = found.keys().copied().collect();
    for unit in 0..UNITS {
        for id in &ids {
            match after.rng.below(3) {
                0 => after.store.promote_unit(*id, unit),
                _ => after.store.demote_unit(*id, unit),
            }
        }
        after.settle(|_, _| {});
        for id in &ids {
            after.store.demote_unit(*id, unit);
        }
        after.settle(|_, _| {});
    }
    // A stranger's data into all the space there is.
    if let Ok(id) = after.store.create_volume(UNITS * UNIT_BYTES) {
        let units = UNITS.min(after.store.cold_slots().0);
        for unit in 0..units {
            after.buffers[1] = (0..UNIT_SECTORS).flat_map(|_| world::sector_of(0xbad)).collect();
            let request = Request {
                tag: 1,
                volume: id,
                kind: RequestKind::Write,
                offset: unit * UNIT_BYTES,
                len: UNIT_BYTES as u32,
            };
            if after.submit(request) {
                let mut result = Ok(());
                after.settle(|_, done| result = done.result);
                result.map_err(|error| format!("a write after the crash: {error}"))?;
            }
        }
    }
    let again = after.boot + 1;
    let torn: Vec<CutMode> = (seed..).take(after.disks.0.len()).map(CutMode::Torn).collect();
    let images = after.crashed(true, &torn);
    check_exactly(&mut after, &found, "after moves")?;
    let disks = world::Disks(images.into_iter().map(|image| SimDisk::from_image(image, seed)).collect());
    let mut second =
        World::new(disks, again, seed, None).map_err(|error| format!("second opening: {error}"))?;
    check_exactly(&mut second, &found, "after a second crash")
}

fn check_exactly(world: &mut World, found: &Found, when: &str) -> Result<(), String> {
    for (id, before) in found {
        let numbers = world
            .read_volume(*id, before.len() as u64)
            .map_err(|error| format!("volume {}: {error}", id.0))?;
        if let Some(sector) = (0..before.len()).find(|at| numbers[*at] != before[*at]) {
            let (was, is) = (before[sector], numbers[sector]);
            return Err(format!("volume {} sector {sector} was {was:#x}, {when} it is {is:#x}", id.0));
        }
    }
    Ok(())
}

fn fingerprint(images: &[Image]) -> u64 {
    let mut hash = 0u64;
    for image in images {
        hash = hash.rotate_left(17) ^ image.fingerprint();
    }
    hash
}

/// Rule 6: overwriting what a volume owns and has hot appends nothing to the journal.
pub fn quiet_overwrites(broken: Option<Rule>) -> Result<(), Finding> {
    let mut run = Run::new(5, broken);
    let id = run.world.store.create_volume(UNITS * UNIT_BYTES).expect("there is room");
    run.model.create(id, UNITS, true);
    run.write(id, 0, UNIT_SECTORS);
    run.drain()?;
    run.flush(id);
    run.drain()?;
    let before = run.world.store.stats();
    for at in 0..40 {
        run.write(id, at * 3 % UNIT_SECTORS, 3);
        run.drain()?;
        run.flush(id);
        run.drain()?;
    }
    let after = run.world.store.stats();
    if (after.records, after.journal_blocks) != (before.records, before.journal_blocks) {
        let what = format!("40 overwrites appended {} records", after.records - before.records);
        return Err(run.finding(what));
    }
    Ok(())
}

/// Rule 7: flushes of the hot disk fail now and then; what was promised must still hold, and nothing more is promised.
pub fn failing_flushes(broken: Option<Rule>, tally: &mut Tally, states: u64) -> Result<(), Finding> {
    let mut seed = 50_000;
    while tally.states < states {
        seed += 1;
        let mut run = Run::new(seed, broken);
        run.flushes_may_fail = true;
        let id = run.world.store.create_volume(UNITS * UNIT_BYTES).expect("there is room");
        run.model.create(id, UNITS, true);
        run.drain()?;
        let device = (seed % 2) as usize;
        run.world.disks.0[device].faults().flush_in = Some(1 + (seed % 5) as u32);
        for op in [
            Op::Write,
            Op::Flush,
            Op::Demote,
            Op::Overwrite,
            Op::Flush,
            Op::Write,
            Op::Demote,
            Op::Flush,
            Op::Flush,
        ] {
            run.apply(op);
            run.steps(8, 3, tally)?;
        }
        run.drain()?;
        run.crash(tally)?;
        run.crash(tally)?;
    }
    Ok(())
}
