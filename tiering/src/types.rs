//! The words the library and its caller exchange.

use uuid::Uuid;

/// Bytes of a map unit: what is allocated, promoted and demoted as one.
pub const UNIT_BYTES: u64 = 64 << 10;
/// Bytes of a page: the grain of the valid and dirty masks.
pub const PAGE_BYTES: u64 = 4 << 10;
/// Pages in a unit.
pub const UNIT_PAGES: u32 = (UNIT_BYTES / PAGE_BYTES) as u32;
/// Bytes of a sector: the grain of requests.
pub const SECTOR_BYTES: u64 = 512;
/// Largest volume, bytes (512 TiB).
pub const VOLUME_BYTES_MAX: u64 = 512 << 40;
/// Longest read or write, bytes.
pub const TRANSFER_BYTES_MAX: u32 = 4 << 20;
/// Longest discard or write-zeroes, bytes: bounds what one request can put into the journal.
pub const DISCARD_BYTES_MAX: u32 = 256 << 20;

/// One bit for each page of a unit.
pub type PageMask = u16;
/// All pages of a unit.
pub const ALL_PAGES: PageMask = PageMask::MAX;

/// Names a volume, snapshot or clone of a pool; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub u32);

/// Names who pays for a volume; what it stands for is the caller's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(pub u32);

impl TenantId {
    /// Nobody in particular: no quota counts it.
    pub const NONE: TenantId = TenantId(0);
}

/// A unit of data, named by the cold slot it owns. All volumes that share data share the extent, and so its hot copy.
pub type Extent = u64;

/// Position of a device in the pool: hot devices first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u8);

/// What a guest asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// Fill the request's buffer.
    Read,
    /// Store the request's buffer.
    Write,
    /// Everything acknowledged before is to survive a power cut.
    Flush,
    /// The range may read as zero from now on; whole units give their space back.
    Discard,
    /// The range reads as zero from now on.
    WriteZeroes,
}

/// A guest request. The caller keeps the buffer and names it by `tag`, which no other request in flight may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The caller's name for the request; below [`Tuning::requests_max`].
    pub tag: u32,
    /// The volume.
    pub volume: VolumeId,
    /// What to do.
    pub kind: RequestKind,
    /// First byte, a multiple of 512. Ignored by a flush.
    pub offset: u64,
    /// Bytes, a multiple of 512. Ignored by a flush.
    pub len: u32,
}

/// Names an action in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ActionId(pub u32);

/// Whose memory an action reads or fills. The library never touches guest data itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buffer {
    /// Part of a request's buffer.
    Request {
        /// Which request.
        tag: u32,
        /// First byte in its buffer.
        offset: u32,
    },
    /// Part of a scratch buffer of 64 KiB that the caller keeps; the library only names it
    /// (`0..Tuning::scratch_buffers`).
    Scratch {
        /// Which scratch buffer.
        index: u32,
        /// First byte in it.
        offset: u32,
    },
    /// Bytes the library keeps: [`crate::Store::meta`].
    Meta {
        /// Which of them.
        index: u32,
        /// First byte in it.
        offset: u32,
    },
    /// Zero bytes.
    Zeroes,
    /// No memory is involved.
    None,
}

/// What to do with a device or with memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActionKind {
    /// Device to buffer.
    Read,
    /// Buffer to device.
    Write,
    /// Make completed writes stable.
    Flush,
    /// Give the range back to the device: a hint, its failure is not an error.
    Discard,
    /// Fill the request buffer with zero bytes; no device.
    ZeroFill,
    /// Copy from this scratch buffer (index, first byte) to the request buffer; no device.
    CopyOut {
        /// Which scratch buffer.
        scratch: u32,
        /// First byte in it.
        scratch_offset: u32,
    },
}

/// One thing the caller has to do, and then to report with [`crate::Store::complete`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action {
    /// For the report.
    pub id: ActionId,
    /// Which device; meaningless for actions on memory.
    pub device: DeviceId,
    /// What.
    pub kind: ActionKind,
    /// First byte on the device.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
    /// Whose memory.
    pub buffer: Buffer,
}

/// A request that is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Its tag, free from now on.
    pub tag: u32,
    /// How it ended.
    pub result: Result<(), RequestError>,
}

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A device failed, or the data was on a device that is lost.
    #[error("input/output error")]
    Io,
    /// The pool takes no writes: it was opened so, or its journal failed.
    #[error("the pool is read-only")]
    ReadOnly,
    /// The range is not inside the volume, not whole sectors, or longer than the limit.
    #[error("the range is outside the volume, not in whole sectors or too long")]
    Range,
    /// No such volume, or it is being deleted.
    #[error("no such volume")]
    NoVolume,
    /// The write waited for space in a full pool and was called off.
    #[error("the pool is full")]
    NoSpace,
    /// The write needs new space, and the volume's quota or its tenant's is used up.
    #[error("the volume's quota or its tenant's is used up")]
    Quota,
}

/// Why `submit` did not take a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the store is busy: drive its actions and submit again")]
pub struct Busy;

/// How a device operation failed. The library needs to know no more than that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("device input/output error")]
pub struct IoError;

/// Which tier a device belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// Fast and small.
    Hot,
    /// Big and slow.
    Cold,
}

/// Where the operator wants a volume's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pin {
    /// By heat.
    #[default]
    Auto,
    /// Hot once touched, and never demoted while the pin lasts.
    Hot,
    /// Never promoted.
    Cold,
}

/// Numbers an operator or a test may choose at each opening.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// Requests in flight at most; tags are below it.
    pub requests_max: u32,
    /// Scratch buffers of 64 KiB the caller provides.
    pub scratch_buffers: u32,
    /// Placement policy.
    pub policy: crate::policy::Kind,
    /// Bytes per second that promotion, demotion and write-back may move together.
    pub migration_bytes_per_s: u64,
    /// While guests are at work, so many per cent of all bytes moved, theirs and the store's, may be the store's own
    /// moves: 1 to 99, or 100 for no such limit.
    pub migration_share_percent: u32,
    /// A stream that read so many bytes in order, or about half of the hot tier, is not promoted any further.
    pub stream_bypass_bytes: u64,
    /// Free hot slots kept ready for write misses, in thousandths of the hot tier (at least one slot).
    pub free_permille: u32,
    /// Write back the dirty units of an aligned group of so many bytes together.
    pub group_bytes: u64,
    /// Records older than this are made durable without being asked, ns.
    pub commit_interval_ns: u64,
    /// How soon the cold tier knows what an operator changed, unless checkpoints take long: until then the change is on
    /// the hot tier alone. Many changes in a row share one checkpoint.
    pub change_delay_ns: u64,
    /// Identifies this boot of the host: devices have kept their caches since a record was written with the same
    /// value (Linux: /proc/sys/kernel/random/boot_id).
    pub boot: Uuid,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            requests_max: 1024,
            scratch_buffers: 64,
            policy: crate::policy::Kind::default(),
            migration_bytes_per_s: u64::MAX,
            migration_share_percent: 100,
            stream_bypass_bytes: 64 << 20,
            free_permille: 10,
            group_bytes: 4 << 20,
            commit_interval_ns: 1_000_000_000,
            change_delay_ns: 1_000_000_000,
            boot: Uuid::nil(),
        }
    }
}

/// The pages that `len` bytes from `start` in a unit touch.
pub(crate) fn pages_touched(start: u32, len: u32) -> PageMask {
    let first = start / PAGE_BYTES as u32;
    let end = (start + len).div_ceil(PAGE_BYTES as u32);
    mask(first, end)
}

/// The pages that `len` bytes from `start` in a unit cover entirely.
pub(crate) fn pages_covered(start: u32, len: u32) -> PageMask {
    let first = start.div_ceil(PAGE_BYTES as u32);
    let end = (start + len) / PAGE_BYTES as u32;
    if first >= end { 0 } else { mask(first, end) }
}

fn mask(first: u32, end: u32) -> PageMask {
    ((1u32 << end) - (1u32 << first)) as PageMask
}

/// Runs of set bits as (first page, page count).
pub(crate) fn runs(mut pages: PageMask) -> impl Iterator<Item = (u32, u32)> {
    std::iter::from_fn(move || {
        if pages == 0 {
            return None;
        }
        let first = pages.trailing_zeros();
        let count = (!(u32::from(pages) >> first)).trailing_zeros();
        pages &= !mask(first, first + count);
        Some((first, count))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_runs() {
        assert_eq!(pages_touched(0, 65536), ALL_PAGES);
        assert_eq!(pages_touched(4095, 2), 0b11);
        assert_eq!(pages_covered(4095, 2), 0);
        assert_eq!(pages_covered(4096, 8192), 0b110);
        assert_eq!(pages_covered(1, 65535), ALL_PAGES & !1);
        for pages in 0..=u16::MAX {
            let again = runs(pages).fold(0, |all, (first, count)| all | mask(first, first + count));
            assert_eq!(again, pages);
        }
        assert_eq!(runs(0b1100_0000_0000_0101).collect::<Vec<_>>(), [(0, 1), (2, 1), (14, 2)]);
    }
}
