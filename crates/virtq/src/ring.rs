//! The layout of a split virtqueue (virtio 1.2, section 2.7) and the rules a driver can break.

use crate::memory::GuestMemory;

/// Largest size of a split queue (virtio 1.2, 2.7).
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// `VIRTQ_DESC_F_NEXT`
pub(crate) const DESC_F_NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`
pub(crate) const DESC_F_WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`
pub(crate) const DESC_F_INDIRECT: u16 = 4;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT`
pub(crate) const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY`
pub(crate) const USED_F_NO_NOTIFY: u16 = 1;
/// Bytes of a descriptor.
pub(crate) const DESC_BYTES: u32 = 16;

/// Which rule of the virtqueue a driver (or a frontend, at set-up) broke. The queue is broken then: stop it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingFault {
    /// Not a power of two, 0, or above [`MAX_QUEUE_SIZE`].
    #[error("queue size {size} is not a power of two from 1 to {MAX_QUEUE_SIZE}")]
    BadSize {
        /// The size asked for.
        size: u16,
    },
    /// A ring address is not a multiple of what its fields need.
    #[error("the {ring} at {user_addr:#x} is not aligned to {align} bytes")]
    Misaligned {
        /// Descriptor table, avail ring or used ring.
        ring: &'static str,
        /// The address given by the frontend.
        user_addr: u64,
        /// The alignment in bytes.
        align: usize,
    },
    /// A ring is not inside one memory region.
    #[error("the {ring} at {user_addr:#x} ({bytes} bytes) is not inside one region of guest memory")]
    RingOutsideMemory {
        /// Descriptor table, avail ring or used ring.
        ring: &'static str,
        /// The address given by the frontend.
        user_addr: u64,
        /// Its size.
        bytes: u64,
    },
    /// The driver made more entries available than the queue has.
    #[error("avail index {avail_idx} is {ahead} entries ahead of {next_avail}, the queue has {size}")]
    AvailRunsAhead {
        /// The driver's index.
        avail_idx: u16,
        /// Where we stand.
        next_avail: u16,
        /// The distance.
        ahead: u16,
        /// Queue size.
        size: u16,
    },
    /// An entry of the avail ring names a descriptor that does not exist.
    #[error("avail entry {position} names descriptor {head}, the queue has {size}")]
    HeadOutside {
        /// Index of the entry (not masked).
        position: u16,
        /// The descriptor index found.
        head: u16,
        /// Queue size.
        size: u16,
    },
    /// A head was made available again before it was used.
    #[error("descriptor {head} was made available while it is still in flight")]
    HeadInFlight {
        /// The descriptor index.
        head: u16,
    },
    /// A `next` field names a descriptor that does not exist.
    #[error("a chain continues at descriptor {next}, its table has {size}")]
    NextOutside {
        /// The `next` field.
        next: u32,
        /// Entries in the table it points into.
        size: u32,
    },
    /// More links than the queue has descriptors: also how a loop shows.
    #[error("the chain at {head} has more than {size} descriptors")]
    ChainTooLong {
        /// Head of the chain.
        head: u16,
        /// The limit.
        size: u16,
    },
    /// Buffers of 4 GiB and more in all (virtio 1.2, 2.7.5.2).
    #[error("the chain at {head} has buffers of {bytes} bytes, 4 GiB and more")]
    ChainTooLarge {
        /// Head of the chain.
        head: u16,
        /// Readable and writable bytes.
        bytes: u64,
    },
    /// Buffers that run over so many region borders that the chain has too many parts.
    #[error("the chain at {head} falls into more than {limit} parts at region borders")]
    TooManyParts {
        /// Head of the chain.
        head: u16,
        /// The limit.
        limit: usize,
    },
    /// A buffer is not (wholly) in guest memory.
    #[error("a buffer of {len} bytes at {guest_addr:#x} is not inside guest memory")]
    BufferOutsideMemory {
        /// Guest-physical address.
        guest_addr: u64,
        /// Bytes.
        len: u32,
    },
    /// A device-readable descriptor after a device-writable one (virtio 1.2, 2.7.4.2).
    #[error("the chain at {head} has a readable buffer after a writable one")]
    ReadableAfterWritable {
        /// Head of the chain.
        head: u16,
    },
    /// An indirect descriptor although the feature was not negotiated.
    #[error("the chain at {head} has an indirect table, which was not negotiated")]
    IndirectNotNegotiated {
        /// Head of the chain.
        head: u16,
    },
    /// An indirect descriptor inside an indirect table.
    #[error("the chain at {head} has an indirect table inside an indirect table")]
    IndirectNested {
        /// Head of the chain.
        head: u16,
    },
    /// An indirect descriptor that has `next` set as well.
    #[error("the chain at {head} continues after an indirect table")]
    IndirectWithNext {
        /// Head of the chain.
        head: u16,
    },
    /// An indirect table that is empty or no multiple of 16 bytes.
    #[error("the chain at {head} has an indirect table of {len} bytes")]
    IndirectBadLength {
        /// Head of the chain.
        head: u16,
        /// Its length.
        len: u32,
    },
    /// The inflight region is made for smaller queues.
    #[error("the inflight region holds {capacity} descriptors a queue, the queue has {size}")]
    InflightTooSmall {
        /// Entries a queue has in the region.
        capacity: u16,
        /// Queue size.
        size: u16,
    },
    /// The inflight region was written in another format.
    #[error("the inflight region has version {version}, only version 1 is known")]
    InflightVersion {
        /// The version found.
        version: u16,
    },
}

/// A copy of one descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

/// A 64-bit word at any address; a volatile access to it is one instruction where the CPU allows it.
#[derive(Clone, Copy)]
#[repr(C, packed)]
pub(crate) struct Word(pub(crate) u64);

impl Descriptor {
    /// Copies a descriptor out of guest memory, reading each byte once.
    ///
    /// # Safety
    ///
    /// `at` must be valid for 16 bytes; it needs no alignment.
    #[inline]
    pub(crate) unsafe fn load(at: *const u8) -> Descriptor {
        let words = at.cast::<Word>();
        // SAFETY: valid for two words by the contract above; `Word` has alignment 1. Volatile since the guest may
        // change them at any time: a second read by the compiler could see another value than the one checked.
        let (low, high) = unsafe { (words.read_volatile().0, words.add(1).read_volatile().0) };
        Descriptor::from_words(low, high)
    }

    pub(crate) fn from_bytes(bytes: [u8; DESC_BYTES as usize]) -> Descriptor {
        let wide = u128::from_le_bytes(bytes);
        Descriptor::from_words(wide as u64, (wide >> 64) as u64)
    }

    #[inline]
    fn from_words(addr: u64, rest: u64) -> Descriptor {
        Descriptor { addr, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }

    #[inline]
    pub(crate) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// Looks up a ring by its frontend address and checks alignment and bounds, once for the life of the queue.
pub(crate) fn resolve(
    mem: &GuestMemory,
    ring: &'static str,
    user_addr: u64,
    bytes: u64,
    align: usize,
) -> Result<*mut u8, RingFault> {
    let slice =
        mem.slice_user(user_addr, bytes).ok_or(RingFault::RingOutsideMemory { ring, user_addr, bytes })?;
    let host = mem.host_ptr(slice);
    // Both: the rule is about the guest's address, our accesses need it of the host's.
    if !mem.guest_addr(slice).is_multiple_of(align as u64) || !(host as usize).is_multiple_of(align) {
        return Err(RingFault::Misaligned { ring, user_addr, align });
    }
    Ok(host)
}
