//! Checkpoints: dump to both tiers, one commit cycle, superblocks hot then cold; then the journal's tail moves on and
//! freed cold slots can be used again.
//!
//! Cold slots wait for a checkpoint, not just for a commit, because the cold tier's checkpoint must stay true when
//! the hot tier, and with it the journal, is lost.

use super::commit::CHECKPOINT_TAG;
use super::{Owner, Store};
use crate::checkpoint::Writer;
use crate::hash::FastSet;
use crate::superblock::CheckpointAt;
use crate::types::*;

/// Chunks under way at once, each on both tiers.
const CHUNKS_MAX: u32 = 2;
/// A checkpoint for the sake of such changes comes at the earliest this many times its own duration after they were made.
const CHANGE_REST: u64 = 10;

#[derive(Debug, Default)]
pub(super) struct Progress {
    running: Option<Dump>,
    /// The next one is the last: the pool is being closed.
    pub sealed: bool,
    pub closed: bool,
    /// When one is due because an operator changed something.
    due_ns: Option<u64>,
    /// How long the last one took.
    took_ns: u64,
}

#[derive(Debug)]
struct Dump {
    writer: Writer,
    at: CheckpointAt,
    stage: Stage,
    actions: u32,
    /// An action on a device that joins failed.
    join_failed: bool,
    began_ns: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Chunks,
    Cycle,
    /// The superblocks of a device that joins.
    Join,
    JoinFlush,
    Write(Tier),
    Flush(Tier),
}

impl Store {
    /// Starts a checkpoint unless one runs. One that is `last` closes the pool: no write is taken after it began.
    pub(super) fn start_checkpoint(&mut self, last: bool) {
        self.checkpoint.sealed |= last;
        if self.checkpoint.running.is_some() || self.read_only.is_some() || self.checkpoint.closed {
            return;
        }
        self.checkpoint.due_ns = None;
        let id = self.devices[0].block.checkpoint.id + 1;
        self.map.freeze();
        let unseen = if self.growth_begins() { None } else { self.unseen() };
        let writer = Writer::new(id, &self.map, self.next_volume, unseen);
        let lsn = self.commit.last_lsn();
        let clean = self.checkpoint.sealed && self.dirty_slots() == 0;
        assert!(!clean || self.hot.count_dirty() == 0, "a dirty hot slot is not among the dirty ones");
        let at = CheckpointAt { id, len: 0, journal: self.commit.cursor, lsn, clean };
        let began_ns = self.now_ns;
        self.checkpoint.running =
            Some(Dump { writer, at, stage: Stage::Chunks, actions: 0, join_failed: false, began_ns });
        self.dump_chunks();
    }

    /// An operator's change is recorded: it must not be lost with the hot tier.
    pub(super) fn checkpoint_soon(&mut self) {
        let delay = self.tuning.change_delay_ns.max(self.checkpoint.took_ns.saturating_mul(CHANGE_REST));
        self.checkpoint.due_ns.get_or_insert(self.now_ns.saturating_add(delay));
    }

    pub(super) fn tick_checkpoint(&mut self) {
        if self.checkpoint.due_ns.is_some_and(|due| due <= self.now_ns) {
            self.start_checkpoint(false);
        }
    }

    fn first_cold(&self) -> usize {
        self.devices.iter().position(|device| device.tier == Tier::Cold).expect("a pool has a cold device")
    }

    fn dump_chunks(&mut self) {
        let cold = self.first_cold();
        loop {
            let dump = self.checkpoint.running.as_mut().expect("a dump runs");
            if dump.actions >= 2 * CHUNKS_MAX {
                return;
            }
            let Some(chunk) = dump.writer.next_chunk(&self.map, &self.hot) else { break };
            let (at, len) = (dump.at.len, chunk.len() as u32);
            dump.at.len += u64::from(len);
            dump.actions += 2;
            let id = dump.at.id;
            assert!(
                dump.at.len <= self.devices[0].block.area_bytes,
                "the reservations bound a checkpoint's size"
            );
            for (device, bytes) in [(0, chunk.clone()), (cold, chunk)] {
                let offset = self.devices[device].block.area(id) + at;
                let buffer = Buffer::Meta { index: self.meta.insert(bytes), offset: 0 };
                self.emit(DeviceId(device as u8), ActionKind::Write, offset, len, buffer, Owner::Checkpoint);
            }
        }
        let dump = self.checkpoint.running.as_mut().expect("a dump runs");
        if dump.actions == 0 {
            dump.stage = Stage::Cycle;
            self.map.thaw();
            self.queue_flush(CHECKPOINT_TAG);
        }
    }

    /// A cycle that began after the dump is through: the dump is stable, and all it may name is firm.
    pub(super) fn checkpoint_is_firm(&mut self) {
        let at = self.checkpoint.running.as_ref().expect("a dump runs").at;
        if self.growth_in_superblocks(at) {
            let dump = self.checkpoint.running.as_mut().expect("a dump runs");
            (dump.stage, dump.actions) = (Stage::Join, 2);
        } else {
            self.write_superblocks(Tier::Hot);
        }
    }

    fn write_superblocks(&mut self, tier: Tier) {
        let dump = self.checkpoint.running.as_mut().expect("a dump runs");
        dump.stage = Stage::Write(tier);
        let at = dump.at;
        for device in 0..self.devices.len() {
            if self.devices[device].tier != tier {
                continue;
            }
            let block = &mut self.devices[device].block;
            block.generation += 1;
            block.checkpoint = at;
            let (offset, bytes) = (block.place(), block.encode());
            let len = bytes.len() as u32;
            let buffer = Buffer::Meta { index: self.meta.insert(bytes), offset: 0 };
            self.checkpoint.running.as_mut().expect("a dump runs").actions += 1;
            self.emit(DeviceId(device as u8), ActionKind::Write, offset, len, buffer, Owner::Checkpoint);
        }
    }

    pub(super) fn checkpoint_step(&mut self, failed: bool, action: Action) {
        if let Buffer::Meta { index, .. } = action.buffer {
            self.meta.remove(index);
        }
        let joining = |dump: &Dump| matches!(dump.stage, Stage::Join | Stage::JoinFlush);
        if failed && !self.checkpoint.running.as_ref().is_some_and(joining) {
            self.fail("a checkpoint could not be written");
        }
        let Some(dump) = &mut self.checkpoint.running else { return };
        dump.actions -= 1;
        dump.join_failed |= failed;
        let (stage, actions, join_failed) = (dump.stage, dump.actions, dump.join_failed);
        if self.read_only.is_some() {
            return;
        }
        match stage {
            Stage::Chunks => self.dump_chunks(),
            _ if actions > 0 => {}
            Stage::Join | Stage::JoinFlush if join_failed => {
                self.checkpoint.running = None;
                self.growth_failed();
                // Whoever wanted the checkpoint still does.
                self.start_checkpoint(false);
            }
            Stage::Join => {
                let dump = self.checkpoint.running.as_mut().expect("a dump runs");
                (dump.stage, dump.actions) = (Stage::JoinFlush, 1);
                let device = DeviceId(self.devices.len() as u8 - 1);
                self.emit(device, ActionKind::Flush, 0, 0, Buffer::None, Owner::Checkpoint);
            }
            Stage::JoinFlush => self.write_superblocks(Tier::Hot),
            Stage::Write(tier) => self.flush_tier(tier),
            Stage::Flush(Tier::Hot) => self.write_superblocks(Tier::Cold),
            Stage::Flush(Tier::Cold) => self.checkpoint_done(),
            Stage::Cycle => unreachable!("the cycle has no actions of the checkpoint"),
        }
    }

    fn flush_tier(&mut self, tier: Tier) {
        self.checkpoint.running.as_mut().expect("a dump runs").stage = Stage::Flush(tier);
        for at in 0..self.devices.len() {
            if self.devices[at].tier == tier {
                self.checkpoint.running.as_mut().expect("a dump runs").actions += 1;
                self.emit(DeviceId(at as u8), ActionKind::Flush, 0, 0, Buffer::None, Owner::Checkpoint);
            }
        }
    }

    fn checkpoint_done(&mut self) {
        let dump = self.checkpoint.running.take().expect("a dump runs");
        self.stats.checkpoints += 1;
        self.checkpoint.took_ns = self.now_ns.saturating_sub(dump.began_ns);
        self.commit.tail_sequence = dump.at.journal.sequence;
        self.growth_done();
        let lsn = dump.at.lsn;
        let (gone, stay) =
            std::mem::take(&mut self.freed_cold).into_iter().partition(|(freed, _)| *freed <= lsn);
        self.freed_cold = stay;
        let gone: Vec<(u64, Extent)> = gone;
        if !gone.is_empty() {
            self.cooling.push((self.generation, gone.into_iter().map(|(_, extent)| extent).collect()));
            self.generation += 1;
        }
        if self.checkpoint.sealed {
            if dump.at.clean || self.dirty_slots() > 0 {
                self.checkpoint.closed = true;
                self.fail("the pool was closed");
            } else {
                self.start_checkpoint(true);
            }
        }
        self.release_cooled();
        self.room_wanted = true;
    }

    /// Slots freed before a checkpoint can be used again when no action that began before is running. Their space is
    /// given back to the device first: a discard that came later would take new data with it. What an adopted device
    /// holds is its owner's, and stays when the volume that it was is gone.
    pub(super) fn release_cooled(&mut self) {
        let oldest = self.generations.keys().next().copied().unwrap_or(u64::MAX);
        for at in (0..self.cooling.len()).rev() {
            if self.cooling[at].0 >= oldest {
                continue;
            }
            let (_, extents) = self.cooling.swap_remove(at);
            let homes: FastSet<Extent> = self.map.homes().collect();
            for extent in extents {
                if self.allocator.home_of(extent).is_some_and(|home| !homes.contains(&home)) {
                    self.allocator.release(extent);
                    continue;
                }
                let (device, offset) = self.locate(Tier::Cold, extent);
                let owner = Owner::Trim { extent };
                self.emit(device, ActionKind::Discard, offset, UNIT_BYTES as u32, Buffer::None, owner);
            }
        }
    }

    /// Writes a checkpoint now, if none runs.
    pub fn checkpoint(&mut self) {
        self.start_checkpoint(false);
        self.pump();
    }

    /// Ends the pool's work: no write is taken any more, and when [`Store::closed`] says so all state is on the
    /// devices. After a drain the cold tier then is whole by itself.
    pub fn close(&mut self) {
        self.start_checkpoint(true);
        self.pump();
    }

    /// The last checkpoint is on the devices.
    pub fn closed(&self) -> bool {
        self.checkpoint.closed
    }
}
