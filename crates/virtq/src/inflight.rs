//! The inflight region (vhost-user "Inflight I/O tracking", split virtqueue layout, version 1).
//!
//! The frontend keeps this memory while the backend is gone. For every descriptor head it says whether the request was
//! taken and not yet answered, and in which order it was taken:
//!
//! ```text
//! queue region (rounded up to 64 bytes)      descriptor state
//!   0 features         u64                     0 inflight  u8
//!   8 version          u16                     1 padding   [u8; 5]
//!  10 desc_num         u16                     6 next      u16
//!  12 last_batch_head  u16                     8 counter   u64
//!  14 used_idx         u16
//!  16 states           [.; desc_num]
//! ```
//!
//! The order of the stores is the whole point. A process that is killed leaves exactly the stores before some
//! instruction, so they are volatile (never reordered by the compiler) and need no fence.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::sync::Arc;

use crate::mapping::Mapping;
use crate::ring::RingFault;

const HEADER_BYTES: u64 = 16;
const STATE_BYTES: u64 = 16;
const QUEUE_ALIGN: u64 = 64;
const VERSION: u16 = 1;

/// Why an inflight region was refused.
#[derive(Debug, thiserror::Error)]
pub enum InflightError {
    /// The memory is smaller than the queues need.
    #[error("{queues} queues of {size} descriptors need {needed} bytes of inflight memory, {len} were given")]
    TooSmall {
        /// Number of queues.
        queues: u16,
        /// Descriptors a queue.
        size: u16,
        /// Bytes needed.
        needed: u64,
        /// Bytes given.
        len: u64,
    },
    /// No queues, or queues of no descriptors.
    #[error("an inflight region for {queues} queues of {size} descriptors makes no sense")]
    Empty {
        /// Number of queues.
        queues: u16,
        /// Descriptors a queue.
        size: u16,
    },
    /// The memory cannot be created or mapped.
    #[error("mapping the inflight region")]
    Map(#[from] io::Error),
}

/// Shared memory with the state of all queues of one device.
#[derive(Clone, Debug)]
pub struct InflightRegion {
    mapping: Arc<Mapping>,
    queues: u16,
    size: u16,
}

/// One queue's part of an [`InflightRegion`].
#[derive(Debug)]
pub struct InflightQueue {
    mapping: Arc<Mapping>,
    base: *mut u8,
    capacity: u16,
    counter: u64,
}

// SAFETY: `base` points into `mapping`, which is Send.
unsafe impl Send for InflightQueue {}

/// What a predecessor left behind.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// Heads taken and not answered, in the order they were taken.
    pub(crate) heads: Vec<u16>,
}

fn queue_bytes(size: u16) -> u64 {
    (HEADER_BYTES + STATE_BYTES * u64::from(size)).next_multiple_of(QUEUE_ALIGN)
}

impl InflightRegion {
    /// Creates zeroed memory for `queues` queues of `size` descriptors; returns its file, to be sent to the frontend, and
    /// its length in bytes. Use [`InflightRegion::open`] on the file to work with it.
    ///
    /// # Errors
    ///
    /// No queues, or the system refuses.
    pub fn create(queues: u16, size: u16) -> Result<(File, u64), InflightError> {
        if queues == 0 || size == 0 {
            return Err(InflightError::Empty { queues, size });
        }
        // SAFETY: a valid C string and flags; the result is checked.
        let fd = unsafe { libc::memfd_create(c"sluice-inflight".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error().into());
        }
        // SAFETY: the descriptor is fresh and ours alone.
        let file = unsafe { File::from_raw_fd(fd) };
        let len = queue_bytes(size) * u64::from(queues);
        file.set_len(len)?;
        Ok((file, len))
    }

    /// Maps the region a frontend gives (SET_INFLIGHT_FD).
    ///
    /// # Errors
    ///
    /// `len` is too small for the queues, or the file for `len`.
    pub fn open(
        file: &File,
        offset: u64,
        len: u64,
        queues: u16,
        size: u16,
    ) -> Result<InflightRegion, InflightError> {
        if queues == 0 || size == 0 {
            return Err(InflightError::Empty { queues, size });
        }
        let needed = queue_bytes(size) * u64::from(queues);
        if len < needed {
            return Err(InflightError::TooSmall { queues, size, needed, len });
        }
        Ok(InflightRegion { mapping: Arc::new(Mapping::file(file, offset, needed)?), queues, size })
    }

    /// A region in memory of our own.
    #[cfg(test)]
    pub(crate) fn anonymous(queues: u16, size: u16) -> InflightRegion {
        let len = queue_bytes(size) as usize * usize::from(queues);
        InflightRegion { mapping: Arc::new(Mapping::anonymous(len).unwrap()), queues, size }
    }

    /// The part of queue `index`; `None` when the region has fewer queues.
    pub fn queue(&self, index: u16) -> Option<InflightQueue> {
        (index < self.queues).then(|| InflightQueue {
            mapping: Arc::clone(&self.mapping),
            // SAFETY: the mapping holds `queues` regions of this size (checked in `open`), and `index < queues`.
            base: unsafe { self.mapping.start().add((queue_bytes(self.size) * u64::from(index)) as usize) },
            capacity: self.size,
            counter: 0,
        })
    }

    /// Number of queues.
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// Descriptors a queue.
    pub fn queue_size(&self) -> u16 {
        self.size
    }
}

/// A field of the region; `Word` types need no alignment, since the frontend chooses the offset.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Field<T: Copy>(T);

impl InflightQueue {
    #[inline]
    fn get<T: Copy>(&self, offset: u64) -> T {
        debug_assert!(offset + size_of::<T>() as u64 <= queue_bytes(self.capacity));
        // SAFETY: all callers use offsets inside the queue's region: header fields, or states below `capacity`.
        unsafe { self.base.add(offset as usize).cast::<Field<T>>().read_volatile().0 }
    }

    #[inline]
    fn set<T: Copy>(&mut self, offset: u64, value: T) {
        debug_assert!(offset + size_of::<T>() as u64 <= queue_bytes(self.capacity));
        #[cfg(test)]
        crate::kill::point();
        // SAFETY: as in `get`.
        unsafe { self.base.add(offset as usize).cast::<Field<T>>().write_volatile(Field(value)) }
    }

    /// Offset of a head's state.
    ///
    /// # Panics
    ///
    /// When the head is outside the region: callers compare with the queue's size first, which is not larger.
    #[inline]
    fn state(&self, head: u16) -> u64 {
        assert!(head < self.capacity, "descriptor {head} has no inflight state");
        HEADER_BYTES + STATE_BYTES * u64::from(head)
    }

    /// Any byte of the region, as the frontend may set it.
    #[cfg(test)]
    pub(crate) fn overwrite(&mut self, offset: u64, byte: u8) {
        self.set::<u8>(offset, byte);
    }

    fn version(&self) -> u16 {
        self.get(8)
    }

    fn last_batch_head(&self) -> u16 {
        self.get(12)
    }

    fn used_idx(&self) -> u16 {
        self.get(14)
    }

    fn in_flight(&self, head: u16) -> bool {
        self.get::<u8>(self.state(head)) == 1
    }

    /// Prepares the region for a queue of `size` whose used ring stands at `used_idx`, and tells what was left in flight.
    pub(crate) fn recover(&mut self, size: u16, used_idx: u16) -> Result<Recovered, RingFault> {
        if size > self.capacity {
            return Err(RingFault::InflightTooSmall { capacity: self.capacity, size });
        }
        match self.version() {
            0 => {
                // Fresh memory is zero. The version comes last: it says that the rest is valid.
                self.set::<u16>(10, self.capacity);
                self.set::<u16>(14, used_idx);
                self.set::<u16>(8, VERSION);
                return Ok(Recovered::default());
            }
            VERSION => {}
            version => return Err(RingFault::InflightVersion { version }),
        }
        // The predecessor published a batch and died before it had cleared all of the batch's marks.
        self.retire(used_idx, size);
        let mut heads: Vec<u16> = (0..size).filter(|&head| self.in_flight(head)).collect();
        heads.sort_by_key(|&head| self.get::<u64>(self.state(head) + 8));
        self.counter = match heads.last() {
            Some(&last) => self.get::<u64>(self.state(last) + 8).wrapping_add(1),
            None => 0,
        };
        Ok(Recovered { heads })
    }

    /// A head was taken from the avail ring. The mark comes last: only then is the counter meaningful.
    #[inline]
    pub(crate) fn take(&mut self, head: u16) {
        let state = self.state(head);
        self.set::<u64>(state + 8, self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.set::<u8>(state, 1);
    }

    /// A head goes back untouched to the avail ring.
    pub(crate) fn give_back(&mut self, head: u16) {
        self.set::<u8>(self.state(head), 0);
        self.counter = self.counter.wrapping_sub(1);
    }

    /// A head's used element was written and will be part of the next batch.
    #[inline]
    pub(crate) fn link(&mut self, head: u16) {
        let last = self.last_batch_head();
        self.set::<u16>(self.state(head) + 6, last);
        self.set::<u16>(12, head);
    }

    /// The used ring's index was stored: the marks of the batch go, then our own index follows.
    ///
    /// Also run on memory a peer has written, hence bounded by the queue's size and indifferent to bad links.
    #[inline]
    pub(crate) fn retire(&mut self, used_idx: u16, size: u16) {
        let mut head = self.last_batch_head();
        for _ in 0..used_idx.wrapping_sub(self.used_idx()).min(size) {
            if head >= self.capacity {
                break;
            }
            let state = self.state(head);
            self.set::<u8>(state, 0);
            head = self.get::<u16>(state + 6);
        }
        self.set::<u16>(14, used_idx);
    }

    pub(crate) fn lost(&self) -> bool {
        self.mapping.lost()
    }
}
