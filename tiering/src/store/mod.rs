//! A pool at work: requests in, actions out.
//!
//! One owner drives it: [`Store::submit`], then [`Store::next_action`] until there is none, carry the actions out in
//! any order and at any time, report each with [`Store::complete`], collect [`Store::next_done`]. It does no I/O, has no
//! clock and starts no thread.
//!
//! # How a request runs
//! A request is cut into parts of one unit each. A part is dispatched: it looks at the map and at the hot directory
//! and either emits actions, or waits for one event (the unit's lock, a slot's fill, a firm record, scratch
//! memory, space) after which it is dispatched *again from the start*. No decision is carried over a wait.
//!
//! - *Fastest*: a read of valid hot pages in one unit. [`Store::hit`] finds them, and the caller does the rest.
//! - *Fast*: other reads of valid hot pages, or an overwrite of pages that only the hot slot has. One lookup, one action.
//! - *Slow*: everything that changes the map or the directory. Such changes become visible in memory when the data has
//!   been written, append a record, and are acknowledged when the record's journal block has been written.
//! - *Slowest*: what must wait for firm records: the first write to a clean page, reuse of a slot, a guest flush.
//!
//! # Order rules
//! [`Rule`] lists the eight rules; each names the place that keeps it.

mod budget;
mod check;
mod checkpoint;
mod commit;
mod copy;
mod damaged;
mod demote;
mod fill;
mod grow;
mod layout;
mod limits;
mod load;
mod lost;
mod open;
mod pins;
mod read;
mod volumes;
mod write;

pub use check::{Checked, check};
pub use grow::{GrowError, Grown, Growth, adopted_device_bytes, adopted_superblocks_at};
pub use layout::DeviceInfo;
pub use limits::Limits;
pub use lost::{Lost, Ranges};
pub use open::{BlockingIo, DeviceSpec, FormatSpec, OpenError, OpenOptions, format};
pub use read::Hit;
pub use volumes::{Explanation, Residency, VolumeError, VolumeInfo};

use crate::alloc::Allocator;
use crate::hash::FastMap;
use crate::hot::Directory;
use crate::journal::Record;
use crate::map::{Entry, Map};
use crate::policy::{Policy, window::Windows};
use crate::slab::Slab;
use crate::superblock::Superblock;
use crate::types::*;
use std::collections::{BTreeMap, VecDeque};

/// The order rules. A store can be told to break one of them, so that a crash tester can show it would notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// 1: data is durable before the record that points to it (`commit`: data flush before the firm mark).
    DataBeforeRecord,
    /// 2: a record is durable before the old slot is used again (`commit`: slots are released by a finished cycle).
    RecordBeforeReuse,
    /// 3: a guest flush completes when all acknowledged before it is on stable media (`commit`: cycle).
    FlushCoversAll,
    /// 4: clean-to-dirty is durable before the clean copy is overwritten (`write`: `make_dirty`).
    DirtyBeforeOverwrite,
    /// 5: a guest write during a move wins (`fill`: claimed pages; `demote`: rewritten pages).
    WriteBeatsMove,
    /// 6: an overwrite of an owned extent writes no metadata (`write`: no record without new pages).
    OverwriteIsQuiet,
    /// 7: an error of journal or checkpoint makes the pool read-only at once (`commit`: `fail`).
    LogErrorStops,
    /// 8: no slot is read that its owner did not write (`read`: fresh extents read as zero).
    NoForeignRead,
}

impl Rule {
    /// All of them, in order.
    pub const ALL: [Rule; 8] = [
        Rule::DataBeforeRecord,
        Rule::RecordBeforeReuse,
        Rule::FlushCoversAll,
        Rule::DirtyBeforeOverwrite,
        Rule::WriteBeatsMove,
        Rule::OverwriteIsQuiet,
        Rule::LogErrorStops,
        Rule::NoForeignRead,
    ];
}

/// Counts since the opening.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Parts of reads served from the hot tier.
    pub read_hits: u64,
    /// Parts of reads that needed the cold tier.
    pub read_misses: u64,
    /// Parts of writes to units that were hot.
    pub write_hits: u64,
    /// Parts of writes to units that were not.
    pub write_misses: u64,
    /// Units brought in from cold, at least in part.
    pub promotions: u64,
    /// Units that left the hot tier.
    pub demotions: u64,
    /// Units written back.
    pub write_backs: u64,
    /// Moves given up, in whole or for some pages, because a guest write came first, or for an error.
    pub moves_aborted: u64,
    /// Bytes read from cold to be promoted.
    pub filled_bytes: u64,
    /// Bytes written back to cold.
    pub written_back_bytes: u64,
    /// Records appended to the journal.
    pub records: u64,
    /// Journal blocks written.
    pub journal_blocks: u64,
    /// Commit cycles that made records firm.
    pub commits: u64,
    /// Checkpoints finished.
    pub checkpoints: u64,
    /// Times a write had to wait because the pool was full.
    pub full_waits: u64,
    /// Parts of writes refused because a quota was used up.
    pub quota_refusals: u64,
    /// Guest-visible device errors.
    pub io_errors: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PartKind {
    Read,
    Write,
    Zero,
    Discard,
}

/// A request's share of one unit.
#[derive(Debug, Clone, Copy)]
struct Part {
    tag: u32,
    volume: VolumeId,
    unit: u64,
    /// First byte in the unit.
    start: u32,
    len: u32,
    /// First byte in the request's buffer.
    buffer: u32,
    kind: PartKind,
    /// A fill this part waited for failed: do not wait for another.
    fill_failed: bool,
}

#[derive(Debug)]
struct Running {
    request: Request,
    parts_left: u32,
    error: Option<RequestError>,
    /// The record that must be in the journal before the acknowledgement.
    ack_lsn: u64,
}

/// Who waits for an action.
#[derive(Debug, Clone, Copy)]
enum Owner {
    Read {
        part: Part,
        slot: Option<u32>,
        extent: Extent,
    },
    Job(u32),
    Journal,
    FlushData,
    FlushLog,
    Checkpoint,
    Trim {
        extent: Extent,
    },
    /// Is the device still there?
    Probe {
        scratch: u32,
    },
}

#[derive(Debug)]
struct Act {
    action: Action,
    owner: Owner,
    /// For actions on cold slots: the generation in which it was emitted.
    generation: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum JobKind {
    /// Guest data into a hot slot.
    HotWrite,
    /// Guest data into a new cold slot, zeroes around it.
    FreshCold,
    /// Guest data into a cold slot in place.
    ColdWrite,
    /// Cold to scratch to hot.
    Fill,
    /// Hot to scratch to cold.
    WriteBack,
    /// A shared unit to a new extent, then guest data over it.
    CopyOnWrite,
}

/// Several actions that belong together.
#[derive(Debug)]
struct Job {
    kind: JobKind,
    stage: u8,
    pending: u32,
    failed: bool,
    part: Option<Part>,
    slot: Option<u32>,
    extent: Extent,
    scratch: Option<u32>,
    pages: PageMask,
    zero_pages: PageMask,
    publish: bool,
    /// A write-back that the running drain waits for.
    drains: bool,
    /// The neighbours with which a write-back is read.
    run: Option<u32>,
    /// The slot a copy-on-write reads from.
    source_slot: Option<u32>,
}

#[derive(Debug)]
struct Device {
    block: Superblock,
    tier: Tier,
    unflushed: bool,
    /// It is there, and flushes of guests concern it.
    present: bool,
    /// It failed, and was asked whether it is there.
    probed: bool,
    /// It was there, and no longer is.
    lost: bool,
}

/// An open pool.
#[derive(Debug)]
pub struct Store {
    tuning: Tuning,
    broken: Option<Rule>,
    devices: Vec<Device>,
    layout: layout::Layout,
    map: Map,
    allocator: Allocator,
    hot: Directory,
    policy: Box<dyn Policy>,
    windows: Windows,
    requests: Vec<Option<Running>>,
    done: VecDeque<Done>,
    acts: Slab<Act>,
    ready: VecDeque<u32>,
    jobs: Slab<Job>,
    runs: Slab<demote::Run>,
    walks: VecDeque<pins::Walk>,
    meta: Slab<Vec<u8>>,
    scratch_free: Vec<u32>,
    locks: FastMap<(VolumeId, u64), VecDeque<Part>>,
    slot_waiters: FastMap<u32, Vec<Part>>,
    firm_waiters: Vec<(u64, Part)>,
    scratch_waiters: VecDeque<Part>,
    room_waiters: VecDeque<Part>,
    ack_waiters: Vec<(u64, u32)>,
    /// Extents with in-place cold writes in flight: they are neither filled nor written back.
    cold_writers: FastMap<Extent, u32>,
    /// Extents whose demotion is not firm: durable state may still name the hot copy.
    unfirm_demotions: FastMap<Extent, u64>,
    /// Extents with records that are not in the journal yet: a later write to them is acknowledged no earlier, for
    /// without the record the death of the process would lose it.
    unwritten: FastMap<Extent, u64>,
    /// The last record that took an owner from an extent that has others. Before it is firm, durable state may still
    /// name more owners than memory does, and none of them may write in place.
    unshared_lsn: u64,
    commit: commit::Commit,
    checkpoint: checkpoint::Progress,
    /// Freed cold slots and the record that freed them: usable after the next checkpoint.
    freed_cold: Vec<(u64, Extent)>,
    /// Freed by a finished checkpoint, still perhaps under old reads: usable when no action of that generation runs.
    cooling: Vec<(u64, Vec<Extent>)>,
    /// Detached hot slots and the record that freed them.
    freed_hot: Vec<(u64, u32)>,
    generation: u64,
    generations: BTreeMap<u64, u32>,
    dying_leaves: Vec<u32>,
    forks: Vec<volumes::PendingFork>,
    forks_done: VecDeque<(u64, VolumeId)>,
    writes_in_flight: FastMap<VolumeId, u32>,
    held_requests: VecDeque<Request>,
    lost: FastMap<Extent, PageMask>,
    /// A hot device was lost while the pool was at work.
    hot_lost: bool,
    read_only: Option<&'static str>,
    write_backs_running: u32,
    /// Nothing is written back before this time: the cold tier failed.
    write_back_after_ns: u64,
    draining: bool,
    /// The stock of free hot slots is to be looked at.
    room_wanted: bool,
    next_volume: u32,
    growing: Option<grow::Growing>,
    grown: VecDeque<Result<Grown, GrowError>>,
    budget: budget::Budget,
    now_ns: u64,
    stats: Stats,
}

impl Store {
    /// Takes a request. `Busy` means nothing was taken: drive the store and submit again.
    pub fn submit(&mut self, request: Request) -> Result<(), Busy> {
        assert!(request.tag < self.tuning.requests_max, "tag {} is out of range", request.tag);
        assert!(self.requests[request.tag as usize].is_none(), "tag {} is in flight", request.tag);
        if request.kind != RequestKind::Read && self.read_only.is_none() && self.journal_crowded() {
            self.start_checkpoint(false);
            return Err(Busy);
        }
        if let Err(error) = self.check(&request) {
            self.done.push_back(Done { tag: request.tag, result: Err(error) });
            return Ok(());
        }
        self.requests[request.tag as usize] =
            Some(Running { request, parts_left: 1, error: None, ack_lsn: 0 });
        if matches!(request.kind, RequestKind::Read | RequestKind::Write) {
            self.budget.guest(u64::from(request.len), self.now_ns);
        }
        if request.kind == RequestKind::Flush {
            self.queue_flush(request.tag);
        } else if request.kind != RequestKind::Read
            && self.forks.iter().any(|fork| fork.from == request.volume)
        {
            self.held_requests.push_back(request);
        } else {
            self.start(request);
        }
        self.pump();
        Ok(())
    }

    /// The next thing to do, if any.
    pub fn next_action(&mut self) -> Option<Action> {
        let at = self.ready.pop_front()?;
        self.acts.get(at).map(|act| act.action)
    }

    /// The action that [`Store::next_action`] gives next.
    pub fn peek_action(&self) -> Option<&Action> {
        self.acts.get(*self.ready.front()?).map(|act| &act.action)
    }

    /// Reports an action: the bytes moved (whatever for flushes and the like), or that it failed. A short transfer is
    /// continued with another action of the same id.
    pub fn complete(&mut self, id: ActionId, result: Result<u32, IoError>) {
        let act = self.acts.at(id.0);
        let transfer = matches!(act.action.kind, ActionKind::Read | ActionKind::Write);
        let mut failed = result.is_err();
        if let (true, Ok(moved)) = (transfer, result) {
            if moved > 0 && moved < act.action.len {
                act.action.offset += u64::from(moved);
                act.action.len -= moved;
                act.action.buffer = advance(act.action.buffer, moved);
                self.ready.push_back(id.0);
                return;
            }
            failed = moved != act.action.len;
        }
        let act = self.acts.remove(id.0);
        if failed && !matches!(act.owner, Owner::Probe { .. } | Owner::Trim { .. }) {
            self.suspect(act.action.device);
        }
        if act.action.kind == ActionKind::Write {
            self.devices[usize::from(act.action.device.0)].unflushed = true;
        }
        if let Some(generation) = act.generation {
            self.leave_generation(generation);
        }
        match act.owner {
            Owner::Read { part, slot, extent } => self.read_done(part, slot, extent, failed),
            Owner::Job(job) => {
                let state = self.jobs.at(job);
                state.pending -= 1;
                state.failed |= failed;
                if state.pending == 0 {
                    self.advance_job(job);
                }
            }
            Owner::Journal => self.journal_written(failed),
            Owner::FlushData => self.data_flushed(failed),
            Owner::FlushLog => self.log_flushed(failed),
            Owner::Checkpoint => self.checkpoint_step(failed, act.action),
            Owner::Probe { scratch } => self.probed(act.action.device, scratch, failed),
            Owner::Trim { extent } => {
                self.allocator.release(extent);
                self.retry_room_waiters();
            }
        }
        self.pump();
    }

    /// The next finished request, if any.
    pub fn next_done(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    /// Tells the time: background work, commits of old records, deletion, and the migration budget go by it.
    pub fn tick(&mut self, now_ns: u64) {
        let passed = now_ns.saturating_sub(self.now_ns);
        self.now_ns = now_ns;
        self.budget.tick(passed);
        self.reap();
        self.build_adopted();
        self.make_room();
        self.tick_pins();
        self.tick_commit();
        self.tick_checkpoint();
        self.retry_room_waiters();
        self.pump();
    }

    /// Bytes named by [`Buffer::Meta`].
    pub fn meta(&self, index: u32) -> &[u8] {
        self.meta.get(index).expect("the action that names it is in flight")
    }

    /// Counts.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The time of the last [`Store::tick`], ns.
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// Why the pool takes no writes, if so.
    pub fn read_only(&self) -> Option<&'static str> {
        self.read_only
    }

    /// Nothing is in flight and nothing waits to be done.
    pub fn idle(&self) -> bool {
        self.acts.len() == 0 && self.ready.is_empty() && self.jobs.len() == 0 && self.done.is_empty()
    }

    /// Makes the store break a rule. Only for tests of the crash tester.
    #[doc(hidden)]
    pub fn break_rule(&mut self, rule: Rule) {
        self.broken = Some(rule);
    }

    fn breaks(&self, rule: Rule) -> bool {
        self.broken == Some(rule)
    }

    fn check(&self, request: &Request) -> Result<(), RequestError> {
        let volume = self.map.volume(request.volume).ok_or(RequestError::NoVolume)?;
        let writes = request.kind != RequestKind::Read;
        if writes && (self.read_only.is_some() || self.checkpoint.sealed) {
            return Err(RequestError::ReadOnly);
        }
        if request.kind == RequestKind::Flush {
            return Ok(());
        }
        if writes && !volume.writable {
            return Err(RequestError::ReadOnly);
        }
        let most = match request.kind {
            RequestKind::Read | RequestKind::Write => TRANSFER_BYTES_MAX,
            _ => DISCARD_BYTES_MAX,
        };
        let whole = request.offset.is_multiple_of(SECTOR_BYTES)
            && u64::from(request.len).is_multiple_of(SECTOR_BYTES);
        let end = request.offset.checked_add(u64::from(request.len)).ok_or(RequestError::Range)?;
        if !whole || request.len == 0 || request.len > most || end > volume.size_bytes {
            return Err(RequestError::Range);
        }
        Ok(())
    }

    /// Cuts a request into parts and dispatches them.
    fn start(&mut self, request: Request) {
        let kind = match request.kind {
            RequestKind::Read => PartKind::Read,
            RequestKind::Write => PartKind::Write,
            RequestKind::WriteZeroes => PartKind::Zero,
            RequestKind::Discard => PartKind::Discard,
            RequestKind::Flush => unreachable!("flushes have no parts"),
        };
        if kind != PartKind::Read {
            *self.writes_in_flight.entry(request.volume).or_insert(0) += 1;
        }
        let mut done = 0;
        while done < request.len {
            let at = request.offset + u64::from(done);
            let start = (at % UNIT_BYTES) as u32;
            let len = (UNIT_BYTES as u32 - start).min(request.len - done);
            let (tag, volume, unit) = (request.tag, request.volume, at / UNIT_BYTES);
            self.running(tag).parts_left += 1;
            self.dispatch(Part { tag, volume, unit, start, len, buffer: done, kind, fill_failed: false });
            done += len;
        }
        self.part_done(request.tag, Ok(()), 0);
    }

    fn dispatch(&mut self, part: Part) {
        match part.kind {
            PartKind::Read => self.dispatch_read(part),
            _ => self.dispatch_write(part),
        }
    }

    fn dispatch_all(&mut self, parts: impl IntoIterator<Item = Part>) {
        for part in parts {
            self.dispatch(part);
        }
    }

    fn running(&mut self, tag: u32) -> &mut Running {
        self.requests[tag as usize].as_mut().expect("the tag is in flight")
    }

    /// One part of the request is through; `lsn` is its record, 0 if there is none.
    fn part_done(&mut self, tag: u32, result: Result<(), RequestError>, lsn: u64) {
        let running = self.running(tag);
        running.parts_left -= 1;
        running.ack_lsn = running.ack_lsn.max(lsn);
        if let Err(error) = result {
            running.error = running.error.or(Some(error));
        }
        if running.parts_left > 0 {
            return;
        }
        let (lsn, failed) = (running.ack_lsn, running.error.is_some());
        if failed || lsn <= self.commit.written_lsn {
            self.acknowledge(tag);
        } else {
            self.ack_waiters.push((lsn, tag));
        }
    }

    fn acknowledge(&mut self, tag: u32) {
        let running = self.requests[tag as usize].take().expect("the tag is in flight");
        let error = running.error;
        self.stats.io_errors += u64::from(error == Some(RequestError::Io));
        if !matches!(running.request.kind, RequestKind::Read | RequestKind::Flush) {
            let writes =
                self.writes_in_flight.get_mut(&running.request.volume).expect("it was counted at its start");
            *writes -= 1;
        }
        self.done.push_back(Done { tag, result: error.map_or(Ok(()), Err) });
    }

    /// Appends a record; returns its number.
    fn record(&mut self, record: Record) -> u64 {
        self.stats.records += 1;
        self.commit.append(record)
    }

    /// Appends what a hot slot holds now.
    fn record_slot(&mut self, slot: u32) -> u64 {
        self.hot.look_dirty(slot, self.now_ns);
        let state = self.hot.slot(slot).state();
        let lsn = self.record(Record::Hot { slot, state });
        self.hot.slot_mut(slot).lsn = lsn;
        if let Some(state) = state {
            self.unwritten.insert(state.extent, lsn);
        }
        lsn
    }

    fn emit(
        &mut self,
        device: DeviceId,
        kind: ActionKind,
        offset: u64,
        len: u32,
        buffer: Buffer,
        owner: Owner,
    ) {
        let action = Action { id: ActionId(0), device, kind, offset, len, buffer };
        let at = self.acts.insert(Act { action, owner, generation: None });
        self.acts.at(at).action.id = ActionId(at);
        self.ready.push_back(at);
        if let Owner::Job(job) = owner {
            self.jobs.at(job).pending += 1;
        }
    }

    /// An action on a range of a hot slot.
    fn emit_hot(&mut self, slot: u32, start: u32, len: u32, kind: ActionKind, buffer: Buffer, owner: Owner) {
        let (device, offset) = self.locate(Tier::Hot, u64::from(slot));
        self.emit(device, kind, offset + u64::from(start), len, buffer, owner);
    }

    /// An action on a range of a cold slot. Until it is over the slot is not given to anybody else.
    fn emit_cold(
        &mut self,
        extent: Extent,
        start: u32,
        len: u32,
        kind: ActionKind,
        buffer: Buffer,
        owner: Owner,
    ) {
        let (device, offset) = self.locate(Tier::Cold, extent);
        self.emit(device, kind, offset + u64::from(start), len, buffer, owner);
        let at = *self.ready.back().expect("it was just emitted");
        self.acts.at(at).generation = Some(self.generation);
        *self.generations.entry(self.generation).or_insert(0) += 1;
    }

    fn leave_generation(&mut self, generation: u64) {
        let count = self.generations.get_mut(&generation).expect("it was entered");
        *count -= 1;
        if *count == 0 {
            self.generations.remove(&generation);
            self.release_cooled();
        }
    }

    /// Where a slot is.
    fn locate(&self, tier: Tier, slot: u64) -> (DeviceId, u64) {
        self.layout.locate(tier, slot)
    }

    fn job(&mut self, kind: JobKind, extent: Extent) -> u32 {
        self.jobs.insert(Job {
            kind,
            stage: 0,
            pending: 0,
            failed: false,
            part: None,
            slot: None,
            extent,
            scratch: None,
            pages: 0,
            zero_pages: 0,
            publish: false,
            drains: false,
            run: None,
            source_slot: None,
        })
    }

    fn advance_job(&mut self, job: u32) {
        match self.jobs.at(job).kind {
            JobKind::HotWrite => self.hot_write_done(job),
            JobKind::FreshCold => self.fresh_cold_done(job),
            JobKind::ColdWrite => self.cold_write_done(job),
            JobKind::Fill => self.advance_fill(job),
            JobKind::WriteBack => self.advance_write_back(job),
            JobKind::CopyOnWrite => self.advance_copy(job),
        }
    }

    fn lock(&mut self, part: &Part) {
        let before = self.locks.insert((part.volume, part.unit), VecDeque::new());
        assert!(before.is_none(), "a unit has one lock");
    }

    fn unlock(&mut self, part: &Part) {
        let waiting = self.locks.remove(&(part.volume, part.unit)).expect("the unit was locked");
        self.dispatch_all(waiting);
    }

    fn wake_slot(&mut self, slot: u32, fill_failed: bool) {
        if let Some(parts) = self.slot_waiters.remove(&slot) {
            self.dispatch_all(
                parts.into_iter().map(|part| Part { fill_failed: part.fill_failed | fill_failed, ..part }),
            );
        }
    }

    fn leave_slot(&mut self, slot: u32) {
        let state = self.hot.slot_mut(slot);
        state.users -= 1;
        if state.users == 0 && state.extent().is_none() {
            self.release_hot();
        }
    }

    fn free_scratch(&mut self, job: &mut Job) {
        if let Some(scratch) = job.scratch.take() {
            self.scratch_free.push(scratch);
            if let Some(part) = self.scratch_waiters.pop_front() {
                self.dispatch(part);
            }
        }
    }

    /// An extent that nobody owns any more.
    fn free_extent(&mut self, extent: Extent) {
        let mut lsn = self.commit.last_lsn();
        if let Some(slot) = self.hot.find(extent) {
            lsn = self.detach(slot, false).unwrap_or(lsn);
        }
        self.lost.remove(&extent);
        self.freed_cold.push((lsn, extent));
    }

    /// Parts a slot from its extent; the record's number if there had to be one.
    fn detach(&mut self, slot: u32, demoted: bool) -> Option<u64> {
        let extent = self.hot.slot(slot).extent().expect("an attached slot");
        self.policy.remove(slot, extent, demoted);
        self.hot.detach(slot);
        let named = self.hot.slot(slot).lsn != 0;
        let lsn = named.then(|| self.record(Record::Hot { slot, state: None }));
        self.freed_hot.push((lsn.unwrap_or(0), slot));
        if !named || self.breaks(Rule::RecordBeforeReuse) {
            self.freed_hot.last_mut().expect("it was just pushed").0 = 0;
            self.release_hot();
        }
        self.wake_slot(slot, false);
        lsn
    }

    /// Puts detached slots back into use that no durable record names and nobody uses.
    fn release_hot(&mut self) {
        let firm = self.commit.firm_lsn;
        let mut at = 0;
        while let Some((lsn, slot)) = self.freed_hot.get(at).copied() {
            if lsn <= firm && self.hot.slot(slot).users == 0 {
                self.freed_hot.swap_remove(at);
                self.hot.release(slot);
            } else {
                at += 1;
            }
        }
    }

    fn entry(&self, part: &Part) -> Option<Entry> {
        self.map.volume(part.volume).map(|volume| self.map.get(volume, part.unit))
    }

    /// Everything that follows from what just happened.
    fn pump(&mut self) {
        self.pump_forks();
        self.pump_growth();
        if std::mem::take(&mut self.room_wanted) {
            self.make_room();
        }
        self.pump_commit();
    }
}

fn advance(buffer: Buffer, by: u32) -> Buffer {
    match buffer {
        Buffer::Request { tag, offset } => Buffer::Request { tag, offset: offset + by },
        Buffer::Scratch { index, offset } => Buffer::Scratch { index, offset: offset + by },
        Buffer::Meta { index, offset } => Buffer::Meta { index, offset: offset + by },
        other => other,
    }
}
