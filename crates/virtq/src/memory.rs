//! The guest memory map: regions, translation, copies.

use std::fs::File;
use std::io;
use std::sync::Arc;

use crate::mapping::Mapping;
use crate::window::Window;

/// Most regions a map may have: what QEMU's vhost-user frontend can send by ADD_MEM_REG, and Linux' vhost too.
pub const MAX_REGIONS: usize = 509;

/// One region as a frontend describes it (vhost-user "Memory region description" plus its file).
#[derive(Debug)]
pub struct RegionSpec {
    /// Guest-physical address of the first byte.
    pub guest_addr: u64,
    /// Bytes.
    pub size: u64,
    /// Address of the first byte in the frontend's own address space; ring addresses are given in it.
    pub user_addr: u64,
    /// Where the region begins in the file, in bytes.
    pub mmap_offset: u64,
    /// The memory. Closed after mapping.
    pub file: File,
}

/// Why a memory map was refused.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// More than [`MAX_REGIONS`].
    #[error("{count} memory regions, at most {MAX_REGIONS} are possible")]
    TooManyRegions {
        /// How many there would be.
        count: usize,
    },
    /// A region of no bytes.
    #[error("the memory region at {guest_addr:#x} is empty")]
    Empty {
        /// Its guest-physical address.
        guest_addr: u64,
    },
    /// Address plus size exceed 64 bits.
    #[error(
        "the memory region at guest {guest_addr:#x}, frontend {user_addr:#x}, of {size:#x} bytes wraps around"
    )]
    Wraps {
        /// Guest-physical address.
        guest_addr: u64,
        /// Frontend address.
        user_addr: u64,
        /// Bytes.
        size: u64,
    },
    /// Two regions share guest addresses.
    #[error("the memory regions at {first:#x} and {second:#x} overlap")]
    Overlap {
        /// Guest-physical address of the lower one.
        first: u64,
        /// Guest-physical address of the upper one.
        second: u64,
    },
    /// A region to be removed is not part of the map.
    #[error("no memory region at guest {guest_addr:#x}, frontend {user_addr:#x}, of {size:#x} bytes")]
    NoSuchRegion {
        /// Guest-physical address.
        guest_addr: u64,
        /// Frontend address.
        user_addr: u64,
        /// Bytes.
        size: u64,
    },
    /// The file is too small or cannot be mapped.
    #[error(
        "mapping the memory region at {guest_addr:#x} ({size:#x} bytes from file offset {mmap_offset:#x})"
    )]
    Map {
        /// Guest-physical address.
        guest_addr: u64,
        /// Bytes.
        size: u64,
        /// File offset.
        mmap_offset: u64,
        /// What the system said.
        source: io::Error,
    },
}

/// A range of guest memory inside one region: plain data, 16 bytes.
///
/// Sound by construction, since each access checks it against the map it is used with. Using it with another map than
/// the one that made it is a bug of the caller: the access panics or hits other bytes of that guest, never foreign ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestSlice {
    offset: u64,
    len: u32,
    /// Of 32 bits, so that there is no gap behind it: with one, a copy reads more than was written a moment before, and waits.
    region: u32,
}

impl GuestSlice {
    /// Bytes.
    #[inline]
    pub fn len(self) -> u32 {
        self.len
    }

    /// No bytes at all.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The part of `len` bytes that begins `offset` bytes inside; `None` when it would reach beyond the end.
    #[inline]
    pub fn sub(self, offset: u32, len: u32) -> Option<GuestSlice> {
        let end = offset.checked_add(len)?;
        (end <= self.len).then_some(GuestSlice {
            offset: self.offset + u64::from(offset),
            len,
            region: self.region,
        })
    }
}

/// Remembers the region of the last translation; one per queue. Most guests have one hot region.
#[derive(Clone, Copy, Debug, Default)]
pub struct RegionHint(u32);

#[derive(Clone, Debug)]
struct Region {
    guest_addr: u64,
    size: u64,
    user_addr: u64,
    host: *mut u8,
    mapping: Arc<Mapping>,
}

/// The memory of one guest. Immutable: a changed map is a new value, which shares the mappings that stay.
#[derive(Debug)]
pub struct GuestMemory {
    /// Sorted by guest address, free of overlaps.
    regions: Box<[Region]>,
}

// SAFETY: `Region::host` points into `Region::mapping`, which is Send and Sync itself.
unsafe impl Send for GuestMemory {}
// SAFETY: as above; no `&self` method gives out a reference into the memory.
unsafe impl Sync for GuestMemory {}

impl Region {
    fn map(spec: &RegionSpec) -> Result<Region, MemoryError> {
        let &RegionSpec { guest_addr, size, user_addr, mmap_offset, .. } = spec;
        if size == 0 {
            return Err(MemoryError::Empty { guest_addr });
        }
        if guest_addr.checked_add(size).is_none() || user_addr.checked_add(size).is_none() {
            return Err(MemoryError::Wraps { guest_addr, user_addr, size });
        }
        let mapping = Mapping::file(&spec.file, mmap_offset, size).map_err(|source| MemoryError::Map {
            guest_addr,
            size,
            mmap_offset,
            source,
        })?;
        Ok(Region { guest_addr, size, user_addr, host: mapping.start(), mapping: Arc::new(mapping) })
    }

    /// Offset of `len` bytes at `addr` when they lie in here, `base` being the region's address in the same space.
    #[inline]
    fn offset_of(&self, base: u64, addr: u64, len: u64) -> Option<u64> {
        let offset = addr.wrapping_sub(base);
        (offset < self.size && len <= self.size - offset).then_some(offset)
    }
}

impl GuestMemory {
    /// Maps all regions.
    ///
    /// # Errors
    ///
    /// Too many, empty, overlapping or wrapping regions; a file that is too small or cannot be mapped.
    pub fn new(specs: Vec<RegionSpec>) -> Result<GuestMemory, MemoryError> {
        // Counted before anything is mapped: a thousand mappings made for nothing would be a gift to the sender.
        if specs.len() > MAX_REGIONS {
            return Err(MemoryError::TooManyRegions { count: specs.len() });
        }
        let regions = specs.iter().map(Region::map).collect::<Result<Vec<_>, _>>()?;
        GuestMemory::from_regions(regions)
    }

    /// This map and one region more; the other mappings are shared, not made again (hot add).
    ///
    /// # Errors
    ///
    /// As for [`GuestMemory::new`].
    pub fn with_region(&self, spec: RegionSpec) -> Result<GuestMemory, MemoryError> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(MemoryError::TooManyRegions { count: self.regions.len() + 1 });
        }
        let mut regions = self.regions.to_vec();
        regions.push(Region::map(&spec)?);
        GuestMemory::from_regions(regions)
    }

    /// This map without one region (hot remove). All three values must match, as the vhost-user protocol demands.
    ///
    /// # Errors
    ///
    /// [`MemoryError::NoSuchRegion`].
    pub fn without_region(
        &self,
        guest_addr: u64,
        user_addr: u64,
        size: u64,
    ) -> Result<GuestMemory, MemoryError> {
        let mut regions = self.regions.to_vec();
        let at = regions
            .iter()
            .position(|r| (r.guest_addr, r.user_addr, r.size) == (guest_addr, user_addr, size))
            .ok_or(MemoryError::NoSuchRegion { guest_addr, user_addr, size })?;
        regions.remove(at);
        GuestMemory::from_regions(regions)
    }

    /// Zeroed memory of our own, frontend addresses equal to guest addresses: for tests and benches.
    ///
    /// # Panics
    ///
    /// When the regions (address, bytes) overlap, are empty, too many, or memory is short.
    pub fn anonymous(regions: &[(u64, usize)]) -> GuestMemory {
        assert!(regions.len() <= MAX_REGIONS, "too many regions");
        let region = |&(guest_addr, size): &(u64, usize)| {
            assert!(size > 0, "the region at {guest_addr:#x} is empty");
            let mapping = Mapping::anonymous(size).expect("anonymous memory");
            Region {
                guest_addr,
                size: size as u64,
                user_addr: guest_addr,
                host: mapping.start(),
                mapping: Arc::new(mapping),
            }
        };
        GuestMemory::from_regions(regions.iter().map(region).collect()).expect("regions without overlap")
    }

    fn from_regions(mut regions: Vec<Region>) -> Result<GuestMemory, MemoryError> {
        regions.sort_by_key(|r| r.guest_addr);
        for pair in regions.windows(2) {
            // The sum does not wrap: checked when the region was made.
            if pair[0].guest_addr + pair[0].size > pair[1].guest_addr {
                return Err(MemoryError::Overlap { first: pair[0].guest_addr, second: pair[1].guest_addr });
            }
        }
        Ok(GuestMemory { regions: regions.into_boxed_slice() })
    }

    /// Number of regions.
    pub fn region_count(&self) -> usize {
        self.regions.len()
    }

    /// Translates a guest-physical range, looking at the region of the last hit first.
    ///
    /// `None` unless the whole range lies in one region.
    #[inline]
    pub fn slice(&self, hint: &mut RegionHint, guest_addr: u64, len: u32) -> Option<GuestSlice> {
        if let Some(region) = self.regions.get(hint.0 as usize)
            && let Some(offset) = region.offset_of(region.guest_addr, guest_addr, u64::from(len))
        {
            return Some(GuestSlice { offset, len, region: hint.0 });
        }
        self.slice_elsewhere(hint, guest_addr, len)
    }

    #[cold]
    fn slice_elsewhere(&self, hint: &mut RegionHint, guest_addr: u64, len: u32) -> Option<GuestSlice> {
        let (index, offset) = self.locate(guest_addr)?;
        hint.0 = index as u32;
        let region = &self.regions[index];
        (u64::from(len) <= region.size - offset).then_some(GuestSlice { offset, len, region: index as u32 })
    }

    /// The region that contains a guest address, and the offset in it.
    fn locate(&self, guest_addr: u64) -> Option<(usize, u64)> {
        let after = self.regions.partition_point(|r| r.guest_addr <= guest_addr);
        let index = after.checked_sub(1)?;
        let offset = guest_addr - self.regions[index].guest_addr;
        (offset < self.regions[index].size).then_some((index, offset))
    }

    /// Translates a guest-physical range that may run over the border of regions adjacent in guest space; gives each
    /// part to `part`, which returns false to stop. False when a byte has no region or `part` said stop.
    pub(crate) fn split_slice(
        &self,
        mut guest_addr: u64,
        len: u32,
        mut part: impl FnMut(GuestSlice) -> bool,
    ) -> bool {
        let mut left = len;
        while left > 0 {
            let Some((index, offset)) = self.locate(guest_addr) else {
                return false;
            };
            let here = (self.regions[index].size - offset).min(u64::from(left)) as u32;
            let slice = GuestSlice { offset, len: here, region: index as u32 };
            if !part(slice) {
                return false;
            }
            left -= here;
            match guest_addr.checked_add(u64::from(here)) {
                Some(next) => guest_addr = next,
                None => return left == 0,
            }
        }
        true
    }

    /// Translates a range given in the frontend's address space, as ring addresses are.
    ///
    /// `None` unless the whole range (at most 4 GiB) lies in one region.
    pub fn slice_user(&self, user_addr: u64, len: u64) -> Option<GuestSlice> {
        let len32 = u32::try_from(len).ok()?;
        let found = |(index, region): (usize, &Region)| {
            let offset = region.offset_of(region.user_addr, user_addr, len)?;
            Some(GuestSlice { offset, len: len32, region: index as u32 })
        };
        self.regions.iter().enumerate().find_map(found)
    }

    /// Guest-physical address of the slice's first byte.
    ///
    /// # Panics
    ///
    /// When the slice was made by another map.
    #[inline]
    pub fn guest_addr(&self, slice: GuestSlice) -> u64 {
        self.regions[slice.region as usize].guest_addr + slice.offset
    }

    /// The slice, checked once for several accesses.
    ///
    /// # Panics
    ///
    /// When the slice is not inside the map: a bug of the caller, never a guest's doing, since guests choose addresses and
    /// lengths only before translation.
    #[inline]
    pub fn window(&self, slice: GuestSlice) -> Window<'_> {
        let Some(region) = self.regions.get(slice.region as usize) else { foreign_slice(slice.region) };
        if slice.offset > region.size || u64::from(slice.len) > region.size - slice.offset {
            out_of_region(slice.offset, slice.len, region.size);
        }
        // SAFETY: `offset + len <= region.size` was just checked, and `host` is valid for `size` bytes while
        // `region.mapping` lives, which `self` keeps alive.
        unsafe { Window::new(region.host.add(slice.offset as usize), slice.len) }
    }

    /// Copies from guest memory, `offset` bytes inside the slice, until `into` is full.
    ///
    /// # Panics
    ///
    /// When the bytes are not inside the slice (a bug of the caller).
    #[inline]
    pub fn read(&self, slice: GuestSlice, offset: u32, into: &mut [u8]) {
        self.window(slice).read(offset, into);
    }

    /// Copies `bytes` into guest memory, `offset` bytes inside the slice.
    ///
    /// # Panics
    ///
    /// When the bytes are not inside the slice (a bug of the caller).
    #[inline]
    pub fn write(&self, slice: GuestSlice, offset: u32, bytes: &[u8]) {
        self.window(slice).write(offset, bytes);
    }

    /// Sets `len` bytes of guest memory to zero, `offset` bytes inside the slice.
    ///
    /// # Panics
    ///
    /// When the bytes are not inside the slice (a bug of the caller).
    #[inline]
    pub fn zero(&self, slice: GuestSlice, offset: u32, len: u32) {
        self.window(slice).zero(offset, len);
    }

    /// Address of the slice in this process, for system calls that take guest memory. Using it is unsafe: the caller
    /// must keep this map alive, and the memory may change at any time.
    ///
    /// # Panics
    ///
    /// When the slice is not inside the map (a bug of the caller).
    #[inline]
    pub fn host_ptr(&self, slice: GuestSlice) -> *mut u8 {
        self.window(slice).start()
    }

    /// True once a SIGBUS (a file cut short by the frontend) was caught on one of the mappings: the guest now sees zeros
    /// where its memory was, and its session must be closed.
    pub fn lost(&self) -> bool {
        self.regions.iter().any(|r| r.mapping.lost())
    }
}

// The fields one by one: a slice handed over whole would be assembled in memory on the hot path, too, and reading back
// in one piece what was written in three stalls the CPU.

#[cold]
#[inline(never)]
fn foreign_slice(region: u32) -> ! {
    panic!("a slice of region {region} was made by another memory map");
}

#[cold]
#[inline(never)]
fn out_of_region(at: u64, len: u32, size: u64) -> ! {
    panic!("a slice of {len} bytes at {at:#x} is not inside its region of {size} bytes");
}
