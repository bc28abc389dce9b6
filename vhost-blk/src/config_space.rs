//! Feature bits and config space of the virtio block device (virtio 1.2, 5.2.3 and 5.2.4).

use crate::request::{DiskLimits, RANGE_SECTORS_MAX, RANGES_MAX, SECTOR_BYTES};

/// Size of `virtio_blk_config` up to and with its secure-erase fields.
pub const CONFIG_BYTES: usize = 72;
/// Offset of the `writeback` field, the only one a driver may write (`VIRTIO_BLK_F_CONFIG_WCE`).
pub const WRITEBACK_OFFSET: usize = 32;
/// Data segments a request may have: with header and status they fill a ring of 128, the smallest QEMU makes.
pub const SEG_MAX: u32 = 126;

/// Maximum number of segments is in the config space.
pub const F_SEG_MAX: u64 = 1 << 2;
/// The disk is read-only.
pub const F_RO: u64 = 1 << 5;
/// The block size is in the config space.
pub const F_BLK_SIZE: u64 = 1 << 6;
/// Flush requests are served.
pub const F_FLUSH: u64 = 1 << 9;
/// The topology is in the config space.
pub const F_TOPOLOGY: u64 = 1 << 10;
/// The driver may toggle between write-back and write-through.
pub const F_CONFIG_WCE: u64 = 1 << 11;
/// Several queues.
pub const F_MQ: u64 = 1 << 12;
/// Discard requests are served.
pub const F_DISCARD: u64 = 1 << 13;
/// Write-zeroes requests are served.
pub const F_WRITE_ZEROES: u64 = 1 << 14;
/// Indirect descriptors.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// Used and avail event indexes.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// Virtio 1.0 and later.
pub const F_VERSION_1: u64 = 1 << 32;

/// What the config space of a disk shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskShape {
    /// Capacity, block size and what is served.
    pub limits: DiskLimits,
    /// Number of queues.
    pub queues: u16,
    /// Size in bytes of a physical block: a power of two, at least the logical block.
    pub physical_block_bytes: u32,
    /// Bytes best written in one go; 0 when unknown.
    pub optimal_io_bytes: u32,
    /// Whether completed writes may still sit in a volatile cache until a flush.
    pub writeback: bool,
}

impl DiskShape {
    /// Feature bits to offer.
    pub fn features(&self) -> u64 {
        let mut bits = F_VERSION_1
            | F_EVENT_IDX
            | F_INDIRECT_DESC
            | F_SEG_MAX
            | F_BLK_SIZE
            | F_TOPOLOGY
            | F_FLUSH
            | F_CONFIG_WCE;
        if self.queues > 1 {
            bits |= F_MQ;
        }
        if self.limits.read_only {
            return bits | F_RO;
        }
        if self.limits.discard {
            bits |= F_DISCARD;
        }
        bits | F_WRITE_ZEROES
    }

    /// The config space, little-endian.
    pub fn bytes(&self) -> [u8; CONFIG_BYTES] {
        let mut config = [0; CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        let limits = &self.limits;
        let blocks = |bytes: u32| bytes / limits.block_bytes;
        let alignment_sectors = limits.block_bytes / SECTOR_BYTES as u32;
        put(0, &limits.capacity_sectors.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &limits.block_bytes.to_le_bytes());
        put(24, &[blocks(self.physical_block_bytes).max(1).ilog2() as u8]);
        put(26, &(blocks(self.physical_block_bytes).max(1) as u16).to_le_bytes());
        put(28, &blocks(self.optimal_io_bytes).to_le_bytes());
        put(WRITEBACK_OFFSET, &[u8::from(self.writeback)]);
        put(34, &self.queues.to_le_bytes());
        put(36, &RANGE_SECTORS_MAX.to_le_bytes());
        put(40, &RANGES_MAX.to_le_bytes());
        put(44, &alignment_sectors.to_le_bytes());
        put(48, &RANGE_SECTORS_MAX.to_le_bytes());
        put(52, &RANGES_MAX.to_le_bytes());
        put(56, &[1]);
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: DiskShape = DiskShape {
        limits: DiskLimits { capacity_sectors: 1 << 40, block_bytes: 512, read_only: false, discard: true },
        queues: 4,
        physical_block_bytes: 4096,
        optimal_io_bytes: 65536,
        writeback: true,
    };

    /// The fields as QEMU and Linux read them, at the offsets of the specification.
    #[test]
    fn fields_stand_where_drivers_look() {
        let bytes = SHAPE.bytes();
        let le = |at: usize, len: usize| {
            bytes[at..at + len].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b))
        };
        for (name, at, len, expect) in [
            ("capacity", 0, 8, 1 << 40),
            ("size_max", 8, 4, 0),
            ("seg_max", 12, 4, 126),
            ("blk_size", 20, 4, 512),
            ("physical_block_exp", 24, 1, 3),
            ("alignment_offset", 25, 1, 0),
            ("min_io_size", 26, 2, 8),
            ("opt_io_size", 28, 4, 128),
            ("writeback", 32, 1, 1),
            ("num_queues", 34, 2, 4),
            ("max_discard_sectors", 36, 4, 1 << 22),
            ("max_discard_seg", 40, 4, 32),
            ("discard_sector_alignment", 44, 4, 1),
            ("max_write_zeroes_sectors", 48, 4, 1 << 22),
            ("max_write_zeroes_seg", 52, 4, 32),
            ("write_zeroes_may_unmap", 56, 1, 1),
        ] {
            assert_eq!(le(at, len), expect, "{name}");
        }
    }

    #[test]
    fn features_follow_the_shape() {
        let read_only =
            DiskShape { limits: DiskLimits { read_only: true, ..SHAPE.limits }, queues: 1, ..SHAPE };
        assert_eq!(
            SHAPE.features() & (F_RO | F_MQ | F_DISCARD | F_WRITE_ZEROES),
            F_MQ | F_DISCARD | F_WRITE_ZEROES
        );
        assert_eq!(read_only.features() & (F_RO | F_MQ | F_DISCARD | F_WRITE_ZEROES), F_RO);
        let blocks_4k = DiskShape { limits: DiskLimits { block_bytes: 4096, ..SHAPE.limits }, ..SHAPE };
        assert_eq!(blocks_4k.bytes()[24], 0);
        assert_eq!(blocks_4k.bytes()[44], 8);
    }
}
