//! The journal: a ring of 4 KiB blocks on the first hot device.
//!
//! Records are absolute ("this entry is now X"), numbered without gaps (`lsn`), and replayed in order. A block is
//! valid if its checksum is right, its sequence number is the expected one and it names the checksum of the block
//! before it: a lost or torn block ends the log there, and blocks of an earlier lap never fit in.
//!
//! **Firm and tentative.** A record is *firm* when the data it points to was made stable before a block that says so
//! was written: every block carries `firm_lsn`, and all records up to it are firm. A record beyond it is
//! *tentative*: it is honoured only when the host has not rebooted since (`boot`), for then the devices have kept their
//! caches. So an acknowledged write survives the death of the process at the price of one unflushed block, and a
//! power cut never meets a record whose data did not land. What an opening refuses to honour it declares void
//! in the log before anything else, so that it stays refused.
//!
//! **Stable.** A block that ends the log may be one whose write was interrupted, or one that was flushed and was
//! damaged since. To tell them apart every block names the sequence number before which all blocks were flushed when
//! it was written. A log that ends before the greatest such number has lost what was promised: [`Damage`]. The last
//! block that was flushed has no witness until the next one is written.

use crate::map::Entry;
use crate::types::{Extent, PageMask, Pin, TenantId, VolumeId};
use crate::wire::{Put, Reader};

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 4096;
const HEADER_BYTES: usize = 64;
const RECORD_BYTES: usize = 32;
/// Records in a block.
pub const BLOCK_RECORDS: usize = (BLOCK_BYTES - HEADER_BYTES) / RECORD_BYTES;
const MAGIC: u32 = 0x4a4c_5331;

/// One change of the pool's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// A unit of a volume now has this entry.
    Map {
        /// The volume.
        volume: VolumeId,
        /// The unit.
        unit: u64,
        /// The entry.
        entry: Entry,
    },
    /// A hot slot now holds this.
    Hot {
        /// The hot slot.
        slot: u32,
        /// What it holds.
        state: Option<HotState>,
    },
    /// A volume was made.
    Create {
        /// Its id.
        id: VolumeId,
        /// Its size.
        size_bytes: u64,
    },
    /// A volume has a new size.
    Resize {
        /// Its id.
        id: VolumeId,
        /// Its size.
        size_bytes: u64,
    },
    /// A snapshot or clone was made.
    Fork {
        /// Of what.
        from: VolumeId,
        /// Its id.
        to: VolumeId,
        /// Clone (true) or snapshot.
        writable: bool,
    },
    /// A volume is gone.
    Delete {
        /// Its id.
        id: VolumeId,
    },
    /// The operator pinned a volume, all of it.
    SetPin {
        /// Its id.
        id: VolumeId,
        /// Where.
        pin: Pin,
    },
    /// The operator pinned a part of a volume.
    PinRange {
        /// Its id.
        id: VolumeId,
        /// Which part, and where.
        range: PinRange,
    },
    /// The operator set the limits of a volume.
    SetLimits {
        /// Its id.
        id: VolumeId,
        /// All of them.
        limits: UnitLimits,
    },
    /// The operator set what a tenant's volumes may map together.
    SetTenant {
        /// The tenant.
        id: TenantId,
        /// Units, [`UNLIMITED`] for no limit.
        quota: u64,
    },
    /// Records with these numbers were refused by an opening and never count.
    Void {
        /// The first of them.
        first: u64,
        /// The last of them.
        last: u64,
    },
}

/// No limit, where limits are numbers.
pub const UNLIMITED: u64 = u64::MAX;

/// A part of a volume with a pin of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PinRange {
    /// First unit.
    pub first: u64,
    /// Units.
    pub count: u64,
    /// Where the operator wants it.
    pub pin: Pin,
}

impl PinRange {
    /// First unit behind it.
    pub fn end(&self) -> u64 {
        self.first.saturating_add(self.count)
    }
}

/// Limits of a volume, in units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitLimits {
    /// It may map so many, or [`UNLIMITED`].
    pub quota: u64,
    /// So many of its hot slots are left to it.
    pub hot_min: u32,
    /// It may have so many hot slots; `u32::MAX` for no limit.
    pub hot_max: u32,
    /// Who pays for it.
    pub tenant: TenantId,
}

impl Default for UnitLimits {
    fn default() -> Self {
        UnitLimits { quota: UNLIMITED, hot_min: 0, hot_max: u32::MAX, tenant: TenantId::NONE }
    }
}

/// What a hot slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotState {
    /// Whose data.
    pub extent: Extent,
    /// The volume whose request brought it here: its limits count it.
    pub volume: VolumeId,
    /// Pages that are in the slot.
    pub valid: PageMask,
    /// Pages of which the slot has the only copy.
    pub dirty: PageMask,
    /// The cold slot was never written: pages that are not valid are zero.
    pub fresh: bool,
}

impl Record {
    fn encode(&self, out: &mut Vec<u8>) {
        let (kind, short, a, b, c) = match *self {
            Record::Map { volume, unit, entry } => (1, volume.0, unit, entry.to_bits(), 0),
            Record::Hot { slot, state: None } => (2, slot, 0, 0, 0),
            Record::Hot { slot, state: Some(hot) } => {
                let masks = u64::from(hot.valid) | u64::from(hot.dirty) << 16 | u64::from(hot.fresh) << 32;
                (3, slot, hot.extent, masks, u64::from(hot.volume.0))
            }
            Record::Create { id, size_bytes } => (4, id.0, size_bytes, 0, 0),
            Record::Resize { id, size_bytes } => (5, id.0, size_bytes, 0, 0),
            Record::Fork { from, to, writable } => (6, from.0, u64::from(to.0), u64::from(writable), 0),
            Record::Delete { id } => (7, id.0, 0, 0, 0),
            Record::SetPin { id, pin } => (8, id.0, u64::from(pin_code(pin)), 0, 0),
            Record::Void { first, last } => (9, 0, first, last, 0),
            Record::PinRange { id, range } => {
                (10, id.0, range.first, range.count, u64::from(pin_code(range.pin)))
            }
            Record::SetLimits { id, limits } => {
                let hot = u64::from(limits.hot_min) | u64::from(limits.hot_max) << 32;
                (11, id.0, limits.quota, hot, u64::from(limits.tenant.0))
            }
            Record::SetTenant { id, quota } => (12, id.0, quota, 0, 0),
        };
        out.put_u32(kind);
        out.put_u32(short);
        out.put_u64(a);
        out.put_u64(b);
        out.put_u64(c);
    }

    fn decode(bytes: &[u8]) -> Option<Record> {
        let mut reader = Reader(bytes);
        let (kind, short, a, b, c) =
            (reader.u32()?, reader.u32()?, reader.u64()?, reader.u64()?, reader.u64()?);
        let id = VolumeId(short);
        let word = |wide: u64| u32::try_from(wide).ok();
        Some(match kind {
            1 => Record::Map { volume: id, unit: a, entry: Entry::from_bits(b)? },
            2 => Record::Hot { slot: short, state: None },
            3 => {
                let (valid, dirty, fresh) = (b as u16, (b >> 16) as u16, b >> 32 & 1 == 1);
                let volume = VolumeId(word(c)?);
                Record::Hot { slot: short, state: Some(HotState { extent: a, volume, valid, dirty, fresh }) }
            }
            4 => Record::Create { id, size_bytes: a },
            5 => Record::Resize { id, size_bytes: a },
            6 => Record::Fork { from: id, to: VolumeId(word(a)?), writable: b == 1 },
            7 => Record::Delete { id },
            8 => Record::SetPin { id, pin: pin_from(u8::try_from(a).ok()?)? },
            9 => Record::Void { first: a, last: b },
            10 => {
                let pin = pin_from(u8::try_from(c).ok()?)?;
                Record::PinRange { id, range: PinRange { first: a, count: b, pin } }
            }
            11 => {
                let (hot_min, hot_max, tenant) = (b as u32, (b >> 32) as u32, TenantId(word(c)?));
                Record::SetLimits { id, limits: UnitLimits { quota: a, hot_min, hot_max, tenant } }
            }
            12 => Record::SetTenant { id: TenantId(short), quota: a },
            _ => return None,
        })
    }
}

pub(crate) fn pin_code(pin: Pin) -> u8 {
    match pin {
        Pin::Auto => 0,
        Pin::Hot => 1,
        Pin::Cold => 2,
    }
}

pub(crate) fn pin_from(code: u8) -> Option<Pin> {
    [Pin::Auto, Pin::Hot, Pin::Cold].get(usize::from(code)).copied()
}

/// Where the log goes on: the next block and what it must name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    /// Sequence number of the next block; its place is this modulo the ring's blocks.
    pub sequence: u64,
    /// Checksum of the block before it.
    pub previous_crc: u32,
    /// Number of the next record.
    pub lsn: u64,
}

/// What a block says besides its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockHeader {
    /// Which pool.
    pub pool: u64,
    /// Which boot of the host wrote it.
    pub boot: u64,
    /// All records up to this one are firm.
    pub firm_lsn: u64,
    /// All blocks before this sequence number were flushed when this one was written.
    pub stable: u64,
}

/// Appends one block with `records` (at most [`BLOCK_RECORDS`], perhaps none) to `out` and moves the cursor on.
pub fn encode_block(cursor: &mut Cursor, header: BlockHeader, records: &[Record], out: &mut Vec<u8>) {
    assert!(records.len() <= BLOCK_RECORDS, "a block holds {BLOCK_RECORDS} records");
    let start = out.len();
    out.put_u32(MAGIC);
    out.put_u32(0);
    for field in [header.pool, cursor.sequence, header.boot, cursor.lsn, header.firm_lsn] {
        out.put_u64(field);
    }
    out.put_u32(cursor.previous_crc);
    out.put_u16(records.len() as u16);
    out.put_u16(0);
    out.put_u64(header.stable);
    for record in records {
        record.encode(out);
    }
    out.resize(start + BLOCK_BYTES, 0);
    let crc = crc32c::crc32c(&out[start + 8..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    *cursor =
        Cursor { sequence: cursor.sequence + 1, previous_crc: crc, lsn: cursor.lsn + records.len() as u64 };
}

/// A block by itself: whether it follows the one before is for the caller to see.
struct Block {
    header: BlockHeader,
    sequence: u64,
    previous_crc: u32,
    lsn: u64,
    records: Vec<Record>,
    next: Cursor,
}

impl Block {
    /// `None` if it is no block of this pool, or damaged.
    fn decode(bytes: &[u8], pool: u64) -> Option<Block> {
        let mut reader = Reader(bytes);
        let (magic, crc) = (reader.u32()?, reader.u32()?);
        let (its_pool, sequence, boot, lsn) = (reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?);
        let (firm_lsn, previous_crc, count) = (reader.u64()?, reader.u32()?, usize::from(reader.u16()?));
        let (_, stable) = (reader.u16()?, reader.u64()?);
        let fits = magic == MAGIC && its_pool == pool && count <= BLOCK_RECORDS && stable <= sequence;
        if !fits || crc != crc32c::crc32c(bytes.get(8..)?) {
            return None;
        }
        let records = bytes.get(HEADER_BYTES..)?.chunks_exact(RECORD_BYTES).take(count).map(Record::decode);
        let records = records.collect::<Option<Vec<_>>>()?;
        let (next, lsn_end) = (sequence.checked_add(1)?, lsn.checked_add(count as u64)?);
        let next = Cursor { sequence: next, previous_crc: crc, lsn: lsn_end };
        let header = BlockHeader { pool, boot, firm_lsn, stable };
        Some(Block { header, sequence, previous_crc, lsn, records, next })
    }

    fn follows(&self, end: &Cursor) -> bool {
        let Block { sequence, previous_crc, lsn, .. } = *self;
        *end == Cursor { sequence, previous_crc, lsn }
    }
}

/// What is found in the ring.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// The records to apply, in order, with their numbers.
    pub records: Vec<(u64, Record)>,
    /// Numbers of the records refused now: to be declared void before the log goes on.
    pub refused: Option<(u64, u64)>,
    /// Where the log goes on.
    pub end: Cursor,
    /// Blocks that were flushed and cannot be read: what they said is lost.
    pub damage: Option<Damage>,
}

/// Flushed blocks that are missing or damaged, from [`Replay::end`] on.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Sequence numbers of the blocks that cannot be read, in order.
    pub blocks: Vec<u64>,
    /// Records known to have been in them; there were more if the last block of the log is among them.
    pub records_lost: u64,
    /// Records of the blocks behind: they tell of changes whose beginning may be lost.
    pub behind: Vec<(u64, Record)>,
}

/// The records of a log, before it is known which of them count.
#[derive(Default)]
struct Found {
    all: Vec<(u64, Record, bool)>,
    voids: Vec<std::ops::RangeInclusive<u64>>,
    firm: u64,
    stable: u64,
}

impl Found {
    fn add(&mut self, block: Block, boot: u64) {
        self.firm = self.firm.max(block.header.firm_lsn);
        self.stable = self.stable.max(block.header.stable);
        for (lsn, record) in (block.lsn..).zip(block.records) {
            if let Record::Void { first, last } = record {
                self.voids.push(first..=last);
            }
            self.all.push((lsn, record, block.header.boot == boot));
        }
    }
}

/// Reads the log in `ring` (a whole number of blocks) from `start`. `boot` is the boot of the host now. Any bytes are
/// allowed; what does not fit ends the log.
pub fn replay(ring: &[u8], start: Cursor, pool: u64, boot: u64) -> Replay {
    let blocks = (ring.len() / BLOCK_BYTES) as u64;
    let block_at = |sequence: u64| {
        let at = (sequence % blocks) as usize * BLOCK_BYTES;
        Block::decode(&ring[at..at + BLOCK_BYTES], pool)
    };
    let mut result = Replay { end: start, ..Replay::default() };
    let mut found = Found::default();
    while blocks > 0 && result.end.sequence.wrapping_sub(start.sequence) < blocks {
        let Some(block) = block_at(result.end.sequence).filter(|block| block.follows(&result.end)) else {
            break;
        };
        result.end = block.next;
        found.add(block, boot);
    }
    let in_log = found.all.len();
    let place = |at: u64| start.sequence.checked_add(at);
    let behind = (0..blocks).filter_map(place).filter(|sequence| *sequence > result.end.sequence);
    let behind: Vec<Block> =
        behind.filter_map(|at| block_at(at).filter(|block| block.sequence == at)).collect();
    let stable = behind.iter().map(|block| block.header.stable).max().unwrap_or(0);
    if stable > result.end.sequence {
        result.damage = Some(damage(result.end, stable, behind, boot, &mut found));
    }
    let Found { all, voids, firm, .. } = found;
    for (at, (lsn, record, same_boot)) in all.into_iter().enumerate() {
        if voids.iter().any(|range| range.contains(&lsn)) {
            continue;
        }
        match &mut result.damage {
            _ if lsn > firm && !same_boot => {
                let first = result.refused.map_or(lsn, |(first, _)| first);
                result.refused = Some((first, lsn));
            }
            Some(damage) if at >= in_log => damage.behind.push((lsn, record)),
            _ => result.records.push((lsn, record)),
        }
    }
    result
}

/// Goes on behind the log's `end`: blocks before `stable` belong to it, the one that says so, and those that follow
/// without a gap.
fn damage(end: Cursor, stable: u64, behind: Vec<Block>, boot: u64, found: &mut Found) -> Damage {
    let mut damage = Damage::default();
    let mut next = end;
    let witness = behind.iter().find(|block| block.header.stable == stable).map_or(0, |block| block.sequence);
    for block in behind {
        let follows = block.follows(&next);
        if !follows && block.sequence > witness {
            break;
        }
        if !follows {
            damage.blocks.extend(next.sequence..block.sequence.min(stable));
            damage.records_lost += block.lsn.saturating_sub(next.lsn);
        }
        next = block.next;
        found.add(block, boot);
    }
    damage.blocks.extend(next.sequence..stable);
    damage
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
