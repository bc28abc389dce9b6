//! What a guest asks of a disk: from the bytes of a request to a checked [`Request`] (virtio 1.2, 5.2.6).
//!
//! Pure and total: any bytes give a request or a [`RequestFault`], and a request that comes out lies within the disk.

/// Size of the unit in which virtio-blk counts, whatever the block size of the disk.
pub const SECTOR_BYTES: u64 = 512;
/// Size of `virtio_blk_req`'s header: type, reserved, sector.
pub const HEADER_BYTES: usize = 16;
/// Size of the status byte that ends a request.
pub const STATUS_BYTES: u64 = 1;
/// Size of a `virtio_blk_discard_write_zeroes` segment.
pub const RANGE_BYTES: usize = 16;
/// Size of the serial that `VIRTIO_BLK_T_GET_ID` returns.
pub const SERIAL_BYTES: usize = 20;
/// Most segments one discard or write-zeroes request may carry.
pub const RANGES_MAX: u32 = 32;
/// Most sectors one discard or write-zeroes segment may cover: 2 GiB, which every file system zeroes in bounded time.
pub const RANGE_SECTORS_MAX: u32 = 1 << 22;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;
const RANGE_FLAG_UNMAP: u32 = 1;

/// The status byte of an answered request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Failed, by the guest's fault or the host's.
    IoError = 1,
    /// A request of a kind this disk does not serve.
    Unsupported = 2,
}

/// What the checks need to know of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskLimits {
    /// Size in sectors of 512 bytes.
    pub capacity_sectors: u64,
    /// Logical block size in bytes: 512 or 4096. Requests are whole blocks.
    pub block_bytes: u32,
    /// Whether writes, discards and write-zeroes are refused.
    pub read_only: bool,
    /// Whether discards are served; write-zeroes always are.
    pub discard: bool,
}

/// A request that may be carried out as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Fill the guest's buffers from the disk.
    Read {
        /// Byte offset on the disk.
        offset: u64,
        /// Length in bytes, a multiple of the block size; may be 0.
        bytes: u64,
    },
    /// Write the guest's buffers to the disk.
    Write {
        /// Byte offset on the disk.
        offset: u64,
        /// Length in bytes, a multiple of the block size; may be 0.
        bytes: u64,
    },
    /// Make completed writes durable.
    Flush,
    /// Return the serial.
    GetId,
    /// Give space back; the segments follow the header, each to be checked by [`parse_range`].
    Discard {
        /// Number of segments, 1 to [`RANGES_MAX`].
        ranges: u32,
    },
    /// Write zeroes; the segments follow the header, each to be checked by [`parse_range`].
    WriteZeroes {
        /// Number of segments, 1 to [`RANGES_MAX`].
        ranges: u32,
    },
}

/// One checked segment of a discard or write-zeroes request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Byte offset on the disk.
    pub offset: u64,
    /// Length in bytes; may be 0.
    pub bytes: u64,
    /// Whether write-zeroes may give the space back.
    pub unmap: bool,
}

/// A request that the guest got wrong. Answered with a status byte where there is one; never our error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestFault {
    /// Nothing can be known about the request.
    #[error("a request of {readable} readable bytes has no whole header of 16 bytes")]
    NoHeader {
        /// Bytes the device may read.
        readable: u64,
    },
    /// The request cannot be answered.
    #[error("a request of type {kind} has no writable byte for its status")]
    NoStatus {
        /// Type field of the header.
        kind: u32,
    },
    /// A type this disk does not serve.
    #[error("requests of type {kind} are not served")]
    Unsupported {
        /// Type field of the header.
        kind: u32,
    },
    /// A range with flags that this type of request may not carry.
    #[error("a range of a request of type {kind} carries the flags {flags:#x}")]
    RangeFlags {
        /// Type field of the header.
        kind: u32,
        /// Flags field of the range.
        flags: u32,
    },
    /// A write to a disk that may only be read.
    #[error("a request of type {kind} would change a read-only disk")]
    ReadOnly {
        /// Type field of the header.
        kind: u32,
    },
    /// Data that are not whole blocks.
    #[error("sector {sector} and {bytes} bytes are not whole blocks of {block_bytes} bytes")]
    PartialBlock {
        /// First sector asked for.
        sector: u64,
        /// Bytes asked for.
        bytes: u64,
        /// Logical block size.
        block_bytes: u32,
    },
    /// Data beyond the end of the disk.
    #[error("{sectors} sectors from sector {first} on do not lie within the capacity of {capacity}")]
    OutOfRange {
        /// First sector.
        first: u64,
        /// Number of sectors.
        sectors: u64,
        /// Capacity in sectors.
        capacity: u64,
    },
    /// A segment list of a wrong length.
    #[error("a segment list of {bytes} bytes is not 1 to 32 segments of 16 bytes")]
    RangeList {
        /// Length of the list.
        bytes: u64,
    },
    /// A segment longer than the limit in the config space.
    #[error("a segment of {sectors} sectors is longer than the limit of {limit}")]
    RangeTooLong {
        /// Length asked for.
        sectors: u32,
        /// The limit.
        limit: u32,
    },
}

impl RequestFault {
    /// The status that answers the request; `None` when it cannot be answered and the queue is broken.
    pub fn status(&self) -> Option<Status> {
        match self {
            RequestFault::NoHeader { .. } | RequestFault::NoStatus { .. } => None,
            RequestFault::Unsupported { .. } | RequestFault::RangeFlags { .. } => Some(Status::Unsupported),
            _ => Some(Status::IoError),
        }
    }
}

/// Parses a request whose header was copied out of guest memory. `readable` and `writable` are the sizes in bytes of
/// the chain's two halves, header and status byte included.
///
/// # Errors
/// What the guest got wrong. Buffers that a type does not use are ignored, as other devices do.
pub fn parse(
    header: &[u8; HEADER_BYTES],
    readable: u64,
    writable: u64,
    limits: &DiskLimits,
) -> Result<Request, RequestFault> {
    let kind = le32(header, 0);
    let sector = le64(header, 8);
    let Some(payload) = readable.checked_sub(HEADER_BYTES as u64) else {
        return Err(RequestFault::NoHeader { readable });
    };
    let Some(room) = writable.checked_sub(STATUS_BYTES) else {
        return Err(RequestFault::NoStatus { kind });
    };
    let changes = matches!(kind, TYPE_OUT | TYPE_DISCARD | TYPE_WRITE_ZEROES);
    if changes && limits.read_only {
        return Err(RequestFault::ReadOnly { kind });
    }
    match kind {
        TYPE_IN => extent(sector, room, limits).map(|offset| Request::Read { offset, bytes: room }),
        TYPE_OUT => extent(sector, payload, limits).map(|offset| Request::Write { offset, bytes: payload }),
        TYPE_FLUSH => Ok(Request::Flush),
        TYPE_GET_ID => Ok(Request::GetId),
        TYPE_DISCARD if limits.discard => Ok(Request::Discard { ranges: range_count(payload)? }),
        TYPE_WRITE_ZEROES => Ok(Request::WriteZeroes { ranges: range_count(payload)? }),
        _ => Err(RequestFault::Unsupported { kind }),
    }
}

/// Where the request begins whose header this is, if it has a place and that place exists.
#[inline]
pub fn offset_in(header: &[u8; HEADER_BYTES]) -> u64 {
    le64(header, 8).wrapping_mul(SECTOR_BYTES)
}

/// Parses one segment of `request`, a discard or write-zeroes.
///
/// # Errors
/// What the guest got wrong; the whole request is then refused.
pub fn parse_range(
    bytes: &[u8; RANGE_BYTES],
    request: Request,
    limits: &DiskLimits,
) -> Result<Range, RequestFault> {
    let zeroes = matches!(request, Request::WriteZeroes { .. });
    let (first, sectors, flags) = (le64(bytes, 0), le32(bytes, 8), le32(bytes, 12));
    let allowed = if zeroes { RANGE_FLAG_UNMAP } else { 0 };
    if flags & !allowed != 0 {
        let kind = if zeroes { TYPE_WRITE_ZEROES } else { TYPE_DISCARD };
        return Err(RequestFault::RangeFlags { kind, flags });
    }
    if sectors > RANGE_SECTORS_MAX {
        return Err(RequestFault::RangeTooLong { sectors, limit: RANGE_SECTORS_MAX });
    }
    let bytes = u64::from(sectors) * SECTOR_BYTES;
    Ok(Range { offset: extent(first, bytes, limits)?, bytes, unmap: flags & RANGE_FLAG_UNMAP != 0 })
}

/// The byte offset of `bytes` bytes from `sector` on, checked against block size and capacity.
fn extent(sector: u64, bytes: u64, limits: &DiskLimits) -> Result<u64, RequestFault> {
    let block_sectors = u64::from(limits.block_bytes) / SECTOR_BYTES;
    if !bytes.is_multiple_of(u64::from(limits.block_bytes)) || !sector.is_multiple_of(block_sectors) {
        return Err(RequestFault::PartialBlock { sector, bytes, block_bytes: limits.block_bytes });
    }
    let sectors = bytes / SECTOR_BYTES;
    match sector.checked_add(sectors) {
        Some(end) if end <= limits.capacity_sectors => Ok(sector * SECTOR_BYTES),
        _ => Err(RequestFault::OutOfRange { first: sector, sectors, capacity: limits.capacity_sectors }),
    }
}

fn range_count(payload: u64) -> Result<u32, RequestFault> {
    let count = payload / RANGE_BYTES as u64;
    match u32::try_from(count) {
        Ok(count @ 1..=RANGES_MAX) if payload.is_multiple_of(RANGE_BYTES as u64) => Ok(count),
        _ => Err(RequestFault::RangeList { bytes: payload }),
    }
}

fn le32(bytes: &[u8; 16], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn le64(bytes: &[u8; 16], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DISK: DiskLimits =
        DiskLimits { capacity_sectors: 2048, block_bytes: 512, read_only: false, discard: true };
    const BLOCKS_4K: DiskLimits = DiskLimits { block_bytes: 4096, ..DISK };
    const READ_ONLY: DiskLimits = DiskLimits { read_only: true, ..DISK };
    const NO_DISCARD: DiskLimits = DiskLimits { discard: false, ..DISK };

    fn header(kind: u32, sector: u64) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        bytes
    }

    fn range(first: u64, sectors: u32, flags: u32) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&first.to_le_bytes());
        bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
        bytes[12..].copy_from_slice(&flags.to_le_bytes());
        bytes
    }

    #[test]
    fn good_requests() {
        let check = |kind, sector, readable, writable, limits: &DiskLimits, expect| {
            assert_eq!(parse(&header(kind, sector), readable, writable, limits), Ok(expect));
        };
        check(TYPE_IN, 8, 16, 4097, &DISK, Request::Read { offset: 4096, bytes: 4096 });
        check(TYPE_IN, 2047, 16, 513, &DISK, Request::Read { offset: 2047 * 512, bytes: 512 });
        check(TYPE_IN, 2048, 16, 1, &DISK, Request::Read { offset: 1 << 20, bytes: 0 });
        check(TYPE_OUT, 0, 16 + (1 << 20), 1, &DISK, Request::Write { offset: 0, bytes: 1 << 20 });
        check(TYPE_OUT, 8, 16 + 4096, 1, &BLOCKS_4K, Request::Write { offset: 4096, bytes: 4096 });
        check(TYPE_FLUSH, 99_999, 16, 1, &READ_ONLY, Request::Flush);
        check(TYPE_GET_ID, 0, 16, 21, &READ_ONLY, Request::GetId);
        check(TYPE_DISCARD, 0, 16 + 32, 1, &DISK, Request::Discard { ranges: 2 });
        check(TYPE_WRITE_ZEROES, 0, 16 + 16 * 32, 1, &NO_DISCARD, Request::WriteZeroes { ranges: 32 });
    }

    #[test]
    fn bad_requests() {
        let check = |kind, sector, readable, writable, limits: &DiskLimits, status, expect: &str| {
            let fault = parse(&header(kind, sector), readable, writable, limits).expect_err(expect);
            assert_eq!(fault.status(), status, "{fault}");
            assert!(fault.to_string().contains(expect), "`{fault}` does not say `{expect}`");
        };
        let failed = Some(Status::IoError);
        let unsupported = Some(Status::Unsupported);
        check(TYPE_IN, 0, 15, 513, &DISK, None, "no whole header");
        check(TYPE_IN, 0, 16, 0, &DISK, None, "no writable byte");
        check(TYPE_IN, 0, 16, 512, &DISK, failed, "not whole blocks");
        check(TYPE_IN, 1, 16, 4097, &BLOCKS_4K, failed, "not whole blocks of 4096");
        check(TYPE_OUT, 0, 16 + 512, 1, &BLOCKS_4K, failed, "not whole blocks of 4096");
        check(TYPE_IN, 2048, 16, 513, &DISK, failed, "capacity of 2048");
        check(TYPE_IN, u64::MAX, 16, 513, &DISK, failed, "capacity of 2048");
        check(TYPE_OUT, 2041, 16 + 4096, 1, &DISK, failed, "8 sectors from sector 2041");
        check(TYPE_OUT, 0, 16 + 512, 1, &READ_ONLY, failed, "read-only");
        check(TYPE_DISCARD, 0, 16 + 16, 1, &READ_ONLY, failed, "read-only");
        check(TYPE_WRITE_ZEROES, 0, 16 + 16, 1, &READ_ONLY, failed, "read-only");
        check(TYPE_DISCARD, 0, 16 + 16, 1, &NO_DISCARD, unsupported, "type 11");
        check(TYPE_DISCARD, 0, 16, 1, &DISK, failed, "segment list of 0 bytes");
        check(TYPE_DISCARD, 0, 16 + 17, 1, &DISK, failed, "segment list of 17 bytes");
        check(TYPE_WRITE_ZEROES, 0, 16 + 16 * 33, 1, &DISK, failed, "segment list of 528 bytes");
        check(2, 0, 16, 1, &DISK, unsupported, "type 2");
        check(14, 0, 16, 1, &DISK, unsupported, "type 14");
    }

    #[test]
    fn ranges() {
        let (discard, zeroes) = (Request::Discard { ranges: 1 }, Request::WriteZeroes { ranges: 1 });
        let whole = Range { offset: 0, bytes: 1 << 20, unmap: false };
        assert_eq!(parse_range(&range(0, 2048, 0), discard, &DISK), Ok(whole));
        assert_eq!(parse_range(&range(0, 2048, 1), zeroes, &DISK), Ok(Range { unmap: true, ..whole }));
        let fault = |bytes, request, limits| parse_range(&bytes, request, limits).expect_err("a bad range");
        assert_eq!(fault(range(0, 8, 1), discard, &DISK).status(), Some(Status::Unsupported));
        assert_eq!(fault(range(0, 8, 2), zeroes, &DISK).status(), Some(Status::Unsupported));
        assert_eq!(fault(range(1, 2048, 0), discard, &DISK).status(), Some(Status::IoError));
        assert_eq!(fault(range(0, u32::MAX, 0), zeroes, &DISK).status(), Some(Status::IoError));
        assert_eq!(fault(range(4, 8, 0), zeroes, &BLOCKS_4K).status(), Some(Status::IoError));
    }

    proptest! {
        #[test]
        fn what_comes_out_lies_within_the_disk(
            kind in prop_oneof![0u32..16, any::<u32>()],
            sector in prop_oneof![0u64..5000, any::<u64>()],
            readable in prop_oneof![0u64..5000, any::<u64>()],
            writable in prop_oneof![0u64..5000, any::<u64>()],
            disk in prop_oneof![Just(DISK), Just(BLOCKS_4K), Just(READ_ONLY), Just(NO_DISCARD)],
        ) {
            match parse(&header(kind, sector), readable, writable, &disk) {
                Ok(Request::Read { offset, bytes } | Request::Write { offset, bytes }) => {
                    prop_assert!(offset + bytes <= disk.capacity_sectors * SECTOR_BYTES);
                    prop_assert!((offset | bytes) % u64::from(disk.block_bytes) == 0);
                }
                Ok(_) => prop_assert!(readable >= 16 && writable >= 1),
                Err(fault) => prop_assert_eq!(fault.status().is_none(), readable < 16 || writable < 1),
            }
        }

        #[test]
        fn any_range_is_checked(bytes: [u8; 16], zeroes: bool) {
            let request = if zeroes { Request::WriteZeroes { ranges: 1 } } else { Request::Discard { ranges: 1 } };
            if let Ok(range) = parse_range(&bytes, request, &DISK) {
                prop_assert!(range.offset + range.bytes <= 1 << 20);
            }
        }
    }
}
