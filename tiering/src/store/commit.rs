//! Group commit: records into the journal, and the one cycle that makes everything so far survive a power cut.
//!
//! The cycle, for everything that was acknowledged or recorded when it began (`up_to`):
//! 1. flush each device that has unflushed writes (rule 3; one with nothing unflushed is skipped);
//! 2. if some record up to `up_to` is not firm: write a journal block that says all are (rule 1: their data is stable);
//! 3. flush the journal's device;
//! 4. complete the guest flushes, release slots (rule 2), let waiting writes go on (rule 4).
//!
//! Besides, records that acknowledgements wait for are written at once as tentative blocks, without any flush. One
//! journal write runs at a time, so blocks reach the device in order.

use super::{Owner, Rule, Store};
use crate::journal::{BLOCK_BYTES, BLOCK_RECORDS, BlockHeader, Cursor, Record, encode_block};
use crate::types::*;
use std::collections::VecDeque;

/// The pseudo tag with which the checkpoint waits for a cycle.
pub(super) const CHECKPOINT_TAG: u32 = u32::MAX;
/// Journal blocks in one write.
const WRITE_BLOCKS_MAX: u64 = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Idle,
    FlushData { up_to: u64, running: u32 },
    WriteMark { up_to: u64 },
    FlushLog { up_to: u64 },
}

#[derive(Debug)]
struct Writing {
    last_lsn: u64,
    meta: u32,
    running: u32,
    /// The write carries the mark of the cycle.
    mark: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Commit {
    pending: VecDeque<Record>,
    pub cursor: Cursor,
    pub written_lsn: u64,
    /// All blocks before this one are written.
    written_sequence: u64,
    /// The running flush of the journal's device makes all blocks before this one stable.
    flushing_sequence: u64,
    /// All blocks before this one are stable.
    stable_sequence: u64,
    /// All records up to this one have stable data.
    data_lsn: u64,
    pub firm_lsn: u64,
    writing: Option<Writing>,
    stage: Stage,
    batch: Vec<u32>,
    next: Vec<u32>,
    pub want_firm: bool,
    /// First block the last checkpoint needs.
    pub tail_sequence: u64,
    /// Slots whose clean pages become dirty with a record: (record, slot, extent).
    pub dirtying: Vec<(u64, u32, Extent)>,
    last_cycle_ns: u64,
}

impl Commit {
    /// Everything before the cursor is firm; the journal begins at `tail_sequence`.
    pub fn new(cursor: Cursor, tail_sequence: u64) -> Self {
        let last = cursor.lsn - 1;
        Commit {
            pending: VecDeque::new(),
            cursor,
            written_lsn: last,
            written_sequence: cursor.sequence,
            flushing_sequence: cursor.sequence,
            stable_sequence: cursor.sequence,
            data_lsn: last,
            firm_lsn: last,
            writing: None,
            stage: Stage::Idle,
            batch: Vec::new(),
            next: Vec::new(),
            want_firm: false,
            tail_sequence,
            dirtying: Vec::new(),
            last_cycle_ns: 0,
        }
    }

    pub fn append(&mut self, record: Record) -> u64 {
        self.pending.push_back(record);
        self.last_lsn()
    }

    /// For the opening, which writes one block by itself.
    pub fn take_pending(&mut self) -> Vec<Record> {
        let count = self.pending.len().min(BLOCK_RECORDS);
        self.pending.drain(..count).collect()
    }

    /// The opening has made everything in the log firm.
    pub fn opened(&mut self) {
        let last = self.cursor.lsn - 1;
        (self.written_lsn, self.data_lsn, self.firm_lsn) = (last, last, last);
        (self.written_sequence, self.stable_sequence) = (self.cursor.sequence, self.cursor.sequence);
    }

    pub fn last_lsn(&self) -> u64 {
        self.cursor.lsn + self.pending.len() as u64 - 1
    }
}

impl Store {
    pub(super) fn queue_flush(&mut self, tag: u32) {
        self.commit.next.push(tag);
    }

    fn journal_blocks(&self) -> u64 {
        self.devices[0].block.journal_blocks
    }

    /// Journal blocks in use since the last checkpoint, and all of them.
    pub fn log_depth(&self) -> (u64, u64) {
        (self.journal_used(), self.journal_blocks())
    }

    /// Blocks between the tail and the cursor.
    fn journal_used(&self) -> u64 {
        self.commit.cursor.sequence - self.commit.tail_sequence
    }

    /// No new changes now: what runs must still fit, and the checkpoint that makes room.
    pub(super) fn journal_crowded(&self) -> bool {
        let coming = self.commit.pending.len().div_ceil(BLOCK_RECORDS) as u64;
        self.journal_used() + coming > self.journal_blocks() * 5 / 8
    }

    /// What is left of the ring belongs to the cycle of the checkpoint that frees it: reads bring data in and send other
    /// data out however crowded it is, and each of their cycles would take a block.
    fn journal_is_the_checkpoints(&self) -> bool {
        self.journal_used() > self.journal_blocks() * 7 / 8 && !self.commit.next.contains(&CHECKPOINT_TAG)
    }

    pub(super) fn tick_commit(&mut self) {
        let waited = self.now_ns - self.commit.last_cycle_ns >= self.tuning.commit_interval_ns;
        if waited && self.commit.last_lsn() > self.commit.firm_lsn {
            self.commit.want_firm = true;
        }
    }

    pub(super) fn pump_commit(&mut self) {
        if self.read_only.is_some() {
            return self.refuse_waiters();
        }
        if self.journal_used() > self.journal_blocks() / 2 {
            self.start_checkpoint(false);
        }
        let wanted = self.commit.want_firm || !self.commit.next.is_empty();
        if self.commit.stage == Stage::Idle && wanted && !self.journal_is_the_checkpoints() {
            self.start_cycle();
        }
        if self.commit.writing.is_some() {
            return;
        }
        if let Stage::WriteMark { up_to } = self.commit.stage {
            self.write_journal(Some(up_to));
        } else if !self.ack_waiters.is_empty() && !self.commit.pending.is_empty() {
            self.write_journal(None);
        }
    }

    fn start_cycle(&mut self) {
        self.commit.want_firm = false;
        self.commit.last_cycle_ns = self.now_ns;
        self.commit.batch = std::mem::take(&mut self.commit.next);
        let up_to = self.commit.last_lsn();
        let records = up_to > self.commit.firm_lsn;
        let skip = (records && self.breaks(Rule::DataBeforeRecord))
            || (!records && self.breaks(Rule::FlushCoversAll));
        let mut running = 0;
        if !skip {
            self.commit.flushing_sequence = self.commit.written_sequence;
        }
        for at in 0..self.devices.len() {
            let device = &mut self.devices[at];
            if device.unflushed && device.present && !skip {
                device.unflushed = false;
                running += 1;
                self.emit(DeviceId(at as u8), ActionKind::Flush, 0, 0, Buffer::None, Owner::FlushData);
            }
        }
        self.commit.stage = Stage::FlushData { up_to, running };
        if running == 0 {
            self.data_is_stable(up_to);
        }
    }

    pub(super) fn data_flushed(&mut self, failed: bool) {
        let Stage::FlushData { up_to, running } = self.commit.stage else { return };
        if failed && !self.breaks(Rule::LogErrorStops) {
            return self.fail("a flush failed: what devices hold is not known any more");
        }
        self.commit.stage = Stage::FlushData { up_to, running: running - 1 };
        if running == 1 {
            self.data_is_stable(up_to);
        }
    }

    fn data_is_stable(&mut self, up_to: u64) {
        self.commit.data_lsn = up_to;
        // A device that was skipped had nothing unflushed, blocks of the journal neither.
        self.commit.stable_sequence = self.commit.flushing_sequence;
        if up_to > self.commit.firm_lsn {
            self.commit.stage = Stage::WriteMark { up_to };
        } else {
            self.cycle_done(up_to);
        }
    }

    /// Writes pending records as far as the ring has room; without any, an empty block if a mark is due.
    fn write_journal(&mut self, mark: Option<u64>) {
        let blocks = self.journal_blocks();
        // Tentative writes leave the last quarter to the cycle of the checkpoint that frees the ring.
        let limit = if mark.is_some() { blocks - 1 } else { blocks * 3 / 4 };
        let room = limit.saturating_sub(self.journal_used()).min(WRITE_BLOCKS_MAX);
        if room == 0 {
            if mark.is_some() {
                self.fail("the journal is full and no checkpoint could free it");
            }
            return;
        }
        let header = BlockHeader {
            pool: self.pool_tag(),
            boot: self.boot_tag(),
            firm_lsn: self.commit.data_lsn,
            stable: self.commit.stable_sequence,
        };
        let first = self.commit.cursor.sequence;
        let mut bytes = Vec::with_capacity(BLOCK_BYTES);
        for _ in 0..room {
            let count = self.commit.pending.len().min(BLOCK_RECORDS);
            if count == 0 && !(bytes.is_empty() && mark.is_some()) {
                break;
            }
            let records: Vec<Record> = self.commit.pending.drain(..count).collect();
            encode_block(&mut self.commit.cursor, header, &records, &mut bytes);
        }
        let last_lsn = self.commit.cursor.lsn - 1;
        // The mark holds once the records it speaks of are all in the log.
        let mark = mark.filter(|up_to| last_lsn >= *up_to);
        let count = self.commit.cursor.sequence - first;
        self.stats.journal_blocks += count;
        let meta = self.meta.insert(bytes);
        let (start, before_wrap) = (first % blocks, (blocks - first % blocks).min(count));
        let pieces = [(start, 0, before_wrap), (0, before_wrap, count - before_wrap)];
        let offset = self.devices[0].block.journal_offset;
        let mut running = 0;
        for (at, from, count) in pieces.into_iter().filter(|(_, _, count)| *count > 0) {
            let buffer = Buffer::Meta { index: meta, offset: from as u32 * BLOCK_BYTES as u32 };
            let (offset, len) = (offset + at * BLOCK_BYTES as u64, count as u32 * BLOCK_BYTES as u32);
            self.emit(DeviceId(0), ActionKind::Write, offset, len, buffer, Owner::Journal);
            running += 1;
        }
        self.commit.writing = Some(Writing { last_lsn, meta, running, mark });
    }

    pub(super) fn journal_written(&mut self, failed: bool) {
        let Some(writing) = &mut self.commit.writing else { return };
        writing.running -= 1;
        let (finished, last_lsn, meta, mark) =
            (writing.running == 0, writing.last_lsn, writing.meta, writing.mark);
        if failed && !self.breaks(Rule::LogErrorStops) {
            self.fail("the journal could not be written");
        }
        if !finished {
            return;
        }
        self.commit.writing = None;
        self.meta.remove(meta);
        if self.read_only.is_some() {
            return;
        }
        self.commit.written_lsn = last_lsn;
        self.commit.written_sequence = self.commit.cursor.sequence;
        self.unwritten.retain(|_, lsn| *lsn > last_lsn);
        for at in (0..self.ack_waiters.len()).rev() {
            if self.ack_waiters[at].0 <= last_lsn {
                let (_, tag) = self.ack_waiters.swap_remove(at);
                self.acknowledge(tag);
            }
        }
        if let Some(up_to) = mark {
            self.commit.stage = Stage::FlushLog { up_to };
            self.commit.flushing_sequence = self.commit.written_sequence;
            self.devices[0].unflushed = false;
            self.emit(DeviceId(0), ActionKind::Flush, 0, 0, Buffer::None, Owner::FlushLog);
        }
    }

    pub(super) fn log_flushed(&mut self, failed: bool) {
        let Stage::FlushLog { up_to } = self.commit.stage else { return };
        if failed && !self.breaks(Rule::LogErrorStops) {
            return self.fail("the journal could not be flushed");
        }
        self.commit.stable_sequence = self.commit.flushing_sequence;
        self.cycle_done(up_to);
    }

    fn cycle_done(&mut self, up_to: u64) {
        self.commit.stage = Stage::Idle;
        if up_to > self.commit.firm_lsn {
            self.stats.commits += 1;
            self.commit.firm_lsn = up_to;
        }
        for tag in std::mem::take(&mut self.commit.batch) {
            match tag {
                CHECKPOINT_TAG => self.checkpoint_is_firm(),
                tag => self.part_done(tag, Ok(()), 0),
            }
        }
        self.unfirm_demotions.retain(|_, lsn| *lsn > up_to);
        for at in (0..self.commit.dirtying.len()).rev() {
            let (lsn, slot, extent) = self.commit.dirtying[at];
            if lsn > up_to {
                continue;
            }
            self.commit.dirtying.swap_remove(at);
            let state = self.hot.slot_mut(slot);
            if state.extent() == Some(extent) && state.sole_lsn == lsn {
                state.sole |= state.sole_pending;
                state.sole_pending = 0;
            }
        }
        self.release_hot();
        let (go, stay) =
            std::mem::take(&mut self.firm_waiters).into_iter().partition(|(lsn, _)| *lsn <= up_to);
        self.firm_waiters = stay;
        let go: Vec<_> = go;
        self.dispatch_all(go.into_iter().map(|(_, part)| part));
        if !self.firm_waiters.is_empty() {
            self.commit.want_firm = true;
        }
        self.room_wanted = true;
    }

    /// Rule 7: from here on nothing is written; reads go on.
    pub(super) fn fail(&mut self, why: &'static str) {
        if self.read_only.is_none() {
            self.read_only = Some(why);
            self.commit.stage = Stage::Idle;
        }
    }

    /// The pool is read-only: who waits for a record or a flush will not see it.
    fn refuse_waiters(&mut self) {
        let flushes = std::mem::take(&mut self.commit.next).into_iter();
        for tag in std::mem::take(&mut self.commit.batch).into_iter().chain(flushes) {
            if tag != CHECKPOINT_TAG {
                self.part_done(tag, Err(RequestError::Io), 0);
            }
        }
        for (_, tag) in std::mem::take(&mut self.ack_waiters) {
            self.running(tag).error = Some(RequestError::Io);
            self.acknowledge(tag);
        }
        let parts = std::mem::take(&mut self.firm_waiters).into_iter().map(|(_, part)| part);
        let parts: Vec<_> = parts.chain(std::mem::take(&mut self.scratch_waiters)).collect();
        let room = std::mem::take(&mut self.room_waiters);
        self.dispatch_all(parts);
        self.dispatch_all(room);
    }

    pub(super) fn pool_tag(&self) -> u64 {
        self.devices[0].block.pool.as_u64_pair().0
    }

    pub(super) fn boot_tag(&self) -> u64 {
        self.tuning.boot.as_u64_pair().0
    }
}
