//! Superblocks: who a device is, and where the pool's state begins.
//!
//! Two copies of 4 KiB at bytes 0 and 4096 of each device, written in turn; the valid one with the higher generation
//! counts, so a torn write leaves the other. `docs/TIERING-FORMAT.md` has the table of fields.

use crate::journal::Cursor;
use crate::types::{Tier, UNIT_BYTES};
use crate::wire::{Put, Reader};
use uuid::Uuid;

/// Bytes of one copy.
pub const SUPERBLOCK_BYTES: usize = 4096;
/// Devices of a pool at most.
pub const DEVICES_MAX: usize = 16;
/// Ranges of slots on one device at most: each growth of a device that is not the last of its tier adds one.
pub const SEGMENTS_MAX: usize = 64;
/// No number in a superblock comes near to this.
const NUMBERS_END: u64 = 1 << 62;
const MAGIC: u64 = u64::from_le_bytes(*b"SluiceT1");

/// Where the last checkpoint is and where the journal goes on after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CheckpointAt {
    /// Counts checkpoints; its parity names the area.
    pub id: u64,
    /// Bytes of its chunks in the area.
    pub len: u64,
    /// First block to replay.
    pub journal: Cursor,
    /// Records up to this one are in the checkpoint, except those of hot slots, which are to be replayed.
    pub lsn: u64,
    /// Everything was written back and the pool was closed: the cold tier alone is whole.
    pub clean: bool,
}

/// A device as all devices of its pool know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub uuid: Uuid,
    /// Its tier.
    pub tier: Tier,
    /// Where its superblocks begin: 0, or behind the data of an adopted device. An adopted device begins with bytes that
    /// a guest chose, so the others say where to look.
    pub superblocks_at: u64,
}

/// A range of a tier's slots on one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First slot, counted over the tier.
    pub first: u64,
    /// Slots.
    pub slots: u64,
}

/// What a device says about itself and its pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The pool.
    pub pool: Uuid,
    /// All devices of the pool in the order in which they came to it: hot ones, cold ones, later ones.
    pub devices: Vec<Member>,
    /// Which of them this is.
    pub index: u8,
    /// Counts writes of this superblock.
    pub generation: u64,
    /// Counts openings of the pool for writing.
    pub epoch: u64,
    /// First byte of the slots.
    pub data_offset: u64,
    /// The slots of 64 KiB on this device, one range after the other from `data_offset` on.
    pub segments: Vec<Segment>,
    /// First byte of the journal (first hot device).
    pub journal_offset: u64,
    /// Blocks of the journal.
    pub journal_blocks: u64,
    /// First byte of the two checkpoint areas (first hot and first cold device).
    pub area_offset: u64,
    /// Bytes of each of the two areas.
    pub area_bytes: u64,
    /// Map leaves the pool was made for; fewer fit when the hot tier has grown.
    pub leaves_max: u64,
    /// The last checkpoint.
    pub checkpoint: CheckpointAt,
}

impl Superblock {
    /// The 4096 bytes of one copy.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SUPERBLOCK_BYTES);
        out.put_u64(MAGIC);
        out.put_u32(0);
        out.extend_from_slice(self.pool.as_bytes());
        out.put_u8(self.devices.len() as u8);
        out.put_u8(self.index);
        out.put_u8(u8::from(self.checkpoint.clean));
        out.put_u8(self.segments.len() as u8);
        let at = &self.checkpoint;
        for field in [
            self.generation,
            self.epoch,
            self.data_offset,
            self.journal_offset,
            self.journal_blocks,
            self.area_offset,
            self.area_bytes,
            self.leaves_max,
            at.id,
            at.len,
            at.lsn,
            at.journal.sequence,
            at.journal.lsn,
        ] {
            out.put_u64(field);
        }
        out.put_u32(at.journal.previous_crc);
        for device in &self.devices {
            out.extend_from_slice(device.uuid.as_bytes());
            out.put_u64(device.superblocks_at);
            out.put_u8(u8::from(device.tier == Tier::Cold));
        }
        for segment in &self.segments {
            out.put_u64(segment.first);
            out.put_u64(segment.slots);
        }
        out.resize(SUPERBLOCK_BYTES, 0);
        let crc = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads one copy; `None` if it is not one, or damaged. Any bytes are allowed.
    pub fn decode(bytes: &[u8]) -> Option<Superblock> {
        let bytes = bytes.get(..SUPERBLOCK_BYTES)?;
        let mut reader = Reader(bytes);
        let (magic, crc) = (reader.u64()?, reader.u32()?);
        if magic != MAGIC || crc != crc32c::crc32c(&bytes[12..]) {
            return None;
        }
        let pool = Uuid::from_bytes(reader.array()?);
        let (count, index, clean, segments) = (reader.u8()?, reader.u8()?, reader.u8()? == 1, reader.u8()?);
        let mut fields = [0; 13];
        for field in &mut fields {
            *field = reader.u64()?;
        }
        let [generation, epoch, data_offset, journal_offset, journal_blocks, rest @ ..] = fields;
        let [area_offset, area_bytes, leaves_max, id, len, lsn, sequence, journal_lsn] = rest;
        let previous_crc = reader.u32()?;
        // Counters count on from here: one near its end, or an offset there, is no real one.
        let real = fields.iter().all(|field| *field < NUMBERS_END);
        let fits = real
            && journal_lsn > 0
            && usize::from(count) <= DEVICES_MAX
            && usize::from(segments) <= SEGMENTS_MAX;
        if !fits || index >= count || journal_blocks == 0 {
            return None;
        }
        let devices = (0..count).map(|_| read_member(&mut reader)).collect::<Option<_>>()?;
        let segments = (0..segments).map(|_| read_segment(&mut reader)).collect::<Option<_>>()?;
        let journal = Cursor { sequence, previous_crc, lsn: journal_lsn };
        let checkpoint = CheckpointAt { id, len, journal, lsn, clean };
        Some(Superblock {
            pool,
            devices,
            index,
            generation,
            epoch,
            data_offset,
            segments,
            journal_offset,
            journal_blocks,
            area_offset,
            area_bytes,
            leaves_max,
            checkpoint,
        })
    }

    /// The better of two copies.
    pub fn newest(first: &[u8], second: &[u8]) -> Option<Superblock> {
        let (a, b) = (Superblock::decode(first), Superblock::decode(second));
        match (a, b) {
            (Some(a), Some(b)) => Some(if a.generation >= b.generation { a } else { b }),
            (a, b) => a.or(b),
        }
    }

    /// What all devices know of this one.
    pub fn member(&self) -> Member {
        self.devices[usize::from(self.index)]
    }

    /// Slots on this device.
    pub fn slots(&self) -> u64 {
        self.segments.iter().fold(0, |sum, segment| sum.saturating_add(segment.slots))
    }

    /// First byte behind all that the pool keeps on the device.
    pub fn data_bytes_end(&self) -> u64 {
        let data = self.data_offset.saturating_add(self.slots().saturating_mul(UNIT_BYTES));
        data.max(self.member().superblocks_at.saturating_add(2 * SUPERBLOCK_BYTES as u64))
    }

    /// Where the copy of this generation goes.
    pub fn place(&self) -> u64 {
        self.member().superblocks_at + self.generation % 2 * SUPERBLOCK_BYTES as u64
    }

    /// First byte of the area of checkpoint `id`.
    pub fn area(&self, id: u64) -> u64 {
        self.area_offset + id % 2 * self.area_bytes
    }
}

fn read_member(reader: &mut Reader<'_>) -> Option<Member> {
    let uuid = Uuid::from_bytes(reader.array()?);
    let superblocks_at = reader.u64().filter(|at| *at < NUMBERS_END)?;
    let tier = match reader.u8()? {
        0 => Tier::Hot,
        1 => Tier::Cold,
        _ => return None,
    };
    Some(Member { uuid, tier, superblocks_at })
}

fn read_segment(reader: &mut Reader<'_>) -> Option<Segment> {
    Some(Segment { first: reader.u64()?, slots: reader.u64()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_damage() {
        let journal = Cursor { sequence: 3, previous_crc: 9, lsn: 4 };
        let checkpoint = CheckpointAt { id: 5, len: 6, journal, lsn: 7, clean: true };
        let block = Superblock {
            pool: Uuid::from_u128(1),
            devices: (0..16)
                .map(|at| Member {
                    uuid: Uuid::from_u128(at),
                    tier: if at < 3 { Tier::Hot } else { Tier::Cold },
                    superblocks_at: at as u64 * 4096,
                })
                .collect(),
            index: 15,
            generation: 8,
            epoch: 2,
            data_offset: 1 << 20,
            segments: (0..SEGMENTS_MAX as u64).map(|first| Segment { first, slots: 1 }).collect(),
            journal_offset: 8192,
            journal_blocks: 64,
            area_offset: 1 << 19,
            area_bytes: 1 << 16,
            leaves_max: 12,
            checkpoint,
        };
        let bytes = block.encode();
        assert_eq!(bytes.len(), SUPERBLOCK_BYTES);
        assert_eq!(Superblock::decode(&bytes), Some(block.clone()));
        let newer = Superblock { generation: 9, ..block.clone() };
        assert_eq!(Superblock::newest(&bytes, &newer.encode()), Some(newer.clone()));
        for at in 0..SUPERBLOCK_BYTES {
            let mut damaged = newer.encode();
            damaged[at] ^= 0x40;
            assert_eq!(Superblock::decode(&damaged), None, "byte {at}");
            assert_eq!(Superblock::newest(&bytes, &damaged), Some(block.clone()));
        }
    }
}
