//! Superblocks: who a device is, and where the pool's state begins.
//!
//! Two copies of 4 KiB at bytes 0 and 4096 of each device, written in turn; the valid one with the higher generation
//! counts, so a torn write leaves the other. `docs/TIERING-FORMAT.md` has the table of fields.

use crate::journal::Cursor;
use crate::wire::{Put, Reader};
use uuid::Uuid;

/// Bytes of one copy.
pub const SUPERBLOCK_BYTES: usize = 4096;
/// Devices of a pool at most.
pub const DEVICES_MAX: usize = 16;
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

/// What a device says about itself and its pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The pool.
    pub pool: Uuid,
    /// All devices of the pool, hot ones first.
    pub devices: Vec<Uuid>,
    /// How many of them are hot.
    pub hot_devices: u8,
    /// Which of them this is.
    pub index: u8,
    /// Devices the pool went on without: they must not come back.
    pub excluded: u16,
    /// Counts writes of this superblock.
    pub generation: u64,
    /// Counts openings of the pool for writing.
    pub epoch: u64,
    /// First byte of the slots.
    pub data_offset: u64,
    /// Slots of 64 KiB on this device.
    pub slots: u64,
    /// First byte of the journal (first hot device).
    pub journal_offset: u64,
    /// Blocks of the journal.
    pub journal_blocks: u64,
    /// First byte of the two checkpoint areas (first hot and first cold device).
    pub area_offset: u64,
    /// Bytes of each of the two areas.
    pub area_bytes: u64,
    /// Map leaves the areas have room for.
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
        out.put_u8(self.hot_devices);
        out.put_u8(self.devices.len() as u8);
        out.put_u8(self.index);
        out.put_u8(u8::from(self.checkpoint.clean));
        out.put_u16(self.excluded);
        let at = &self.checkpoint;
        for field in [
            self.generation,
            self.epoch,
            self.data_offset,
            self.slots,
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
            out.extend_from_slice(device.as_bytes());
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
        let (hot_devices, count, index, clean) =
            (reader.u8()?, reader.u8()?, reader.u8()?, reader.u8()? == 1);
        let excluded = reader.u16()?;
        let mut fields = [0; 14];
        for field in &mut fields {
            *field = reader.u64()?;
        }
        let [generation, epoch, data_offset, slots, journal_offset, journal_blocks, rest @ ..] = fields;
        let [area_offset, area_bytes, leaves_max, id, len, lsn, sequence, journal_lsn] = rest;
        let previous_crc = reader.u32()?;
        if usize::from(count) > DEVICES_MAX || index >= count || hot_devices >= count || journal_blocks == 0 {
            return None;
        }
        let devices = (0..count).map(|_| reader.array().map(Uuid::from_bytes)).collect::<Option<_>>()?;
        let journal = Cursor { sequence, previous_crc, lsn: journal_lsn };
        let checkpoint = CheckpointAt { id, len, journal, lsn, clean };
        Some(Superblock {
            pool,
            devices,
            hot_devices,
            index,
            excluded,
            generation,
            epoch,
            data_offset,
            slots,
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

    /// Where the copy of this generation goes.
    pub fn place(&self) -> u64 {
        self.generation % 2 * SUPERBLOCK_BYTES as u64
    }

    /// First byte of the area of checkpoint `id`.
    pub fn area(&self, id: u64) -> u64 {
        self.area_offset + id % 2 * self.area_bytes
    }
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
            devices: (0..16).map(Uuid::from_u128).collect(),
            hot_devices: 1,
            index: 15,
            excluded: 1,
            generation: 8,
            epoch: 2,
            data_offset: 1 << 20,
            slots: 10,
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
