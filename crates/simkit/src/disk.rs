//! A disk with a volatile cache, power cuts and faults.
//!
//! # Fault model
//! What a real disk may do, and what this one therefore does:
//!
//! 1. **Volatile cache.** A completed write is in the cache. Reads see it. It is on stable media only after a
//!    flush that was *submitted* after the write *completed* has itself completed.
//! 2. **Power cut.** Of the writes that are not on stable media (in the cache, or submitted and not completed)
//!    any subset may have landed, in any order, each torn at 512 bytes: every sector of the disk holds its
//!    stable content or that sector of any one of the writes that cover it. A sector itself is never torn.
//! 3. **Process death.** The disk keeps its power: completed writes stay; submitted ones land or not, per sector.
//! 4. **Latent error.** A marked sector makes every read that touches it fail until the sector is written.
//! 5. **Error on demand.** The n-th read, write or flush from now fails. A failed write may have landed in part. A
//!    failed flush makes nothing stable, and the *next* flush does not help the writes the failed one covered:
//!    they are dropped from the cache as clean, like after an fsync error on Linux. They stay readable, but they are
//!    never on stable media.
//! 6. **Short transfer.** A read or write may move only a prefix, a multiple of 512 bytes, at least one sector.
//! 7. **Lost device.** Every operation fails from a moment on.
//! 8. **Latency.** Each operation takes a time: seek when it does not continue the last one, plus bytes over rate.
//!    The disk says how long; the test moves its clock.
//!
//! Not modelled: bit rot inside a sector that reads without error (checksums of metadata are tested by flipping
//! bits of an image instead), writes that land at a wrong address, a flush that lies.
//!
//! Operations are sans-time: `submit` takes the operation and returns a [`Ticket`], `complete` makes it happen.
//! A harness that completes tickets in any order explores the orders a real queue would show.

use crate::{Image, Rng};
use std::collections::BTreeMap;

/// Bytes of a sector: the unit in which writes are torn.
pub const SECTOR: u64 = 512;

/// What to do with the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Read `len` bytes at `offset`.
    Read {
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        len: u32,
    },
    /// Write `bytes` at `offset`.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// Make every write that completed before this stable.
    Flush,
}

/// Why an operation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DiskFault {
    /// The medium or an injected fault said no.
    #[error("input/output error")]
    Io,
    /// The device is gone.
    #[error("no such device")]
    Gone,
    /// The range is not on the disk or not in whole sectors: a bug of the caller.
    #[error("range is outside the disk or not in whole sectors")]
    Range,
}

/// Names a submitted operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// What shall go wrong.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Fail the n-th read from now (1 = the next), then work again.
    pub read_in: Option<u32>,
    /// Fail the n-th write from now.
    pub write_in: Option<u32>,
    /// Fail the n-th flush from now.
    pub flush_in: Option<u32>,
    /// One of so many transfers is short.
    pub short_one_in: Option<u64>,
    /// The device is gone.
    pub gone: bool,
}

/// Which unstable writes land when the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CutMode {
    /// None.
    Nothing,
    /// All, in the order of submission.
    Everything,
    /// Exactly the writes whose bit is set, in the order of submission; writes beyond the 64th do not land.
    Subset(u64),
    /// The first so many, in the order of submission.
    Prefix(u32),
    /// Every sector on its own: stable content or any of the writes that cover it, by this seed.
    Torn(u64),
}

#[derive(Debug, Clone)]
struct Unstable {
    id: u64,
    offset: u64,
    bytes: Vec<u8>,
    completed: bool,
}

#[derive(Debug, Clone)]
enum Running {
    Read { offset: u64, len: u32 },
    Write { id: u64 },
    Flush { covers: Vec<u64> },
}

/// The disk. See the module for what it may do.
#[derive(Debug, Clone)]
pub struct SimDisk {
    stable: Image,
    /// What reads see: stable content and the cache.
    visible: Image,
    unstable: Vec<Unstable>,
    running: BTreeMap<Ticket, Running>,
    latent: std::collections::BTreeSet<u64>,
    faults: Faults,
    rng: Rng,
    next_id: u64,
    head: u64,
    /// Time for an access that does not continue the last one, ns.
    pub seek_ns: u64,
    /// Transfer rate, bytes per second.
    pub bytes_per_s: u64,
    /// Operations of each kind that were submitted: reads, writes, flushes.
    pub counts: [u64; 3],
    /// Bytes written since the disk was made.
    pub bytes_written: u64,
}

impl SimDisk {
    /// An empty disk of `bytes`; `seed` rules short transfers and torn failures.
    pub fn new(bytes: u64, seed: u64) -> Self {
        Self::from_image(Image::new(bytes), seed)
    }

    /// A disk that holds `image`, all of it stable.
    pub fn from_image(image: Image, seed: u64) -> Self {
        SimDisk {
            visible: image.clone(),
            stable: image,
            unstable: Vec::new(),
            running: BTreeMap::new(),
            latent: Default::default(),
            faults: Faults::default(),
            rng: Rng::new(seed),
            next_id: 0,
            head: u64::MAX,
            seek_ns: 0,
            bytes_per_s: u64::MAX,
            counts: [0; 3],
            bytes_written: 0,
        }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.stable.size()
    }

    /// Makes the disk larger by `bytes`, a multiple of 4096.
    pub fn grow(&mut self, bytes: u64) {
        self.stable.grow(bytes);
        self.visible.grow(bytes);
    }

    /// What shall go wrong from now on.
    pub fn faults(&mut self) -> &mut Faults {
        &mut self.faults
    }

    /// Whether the device was lost.
    pub fn is_gone(&self) -> bool {
        self.faults.gone
    }

    /// Marks the sector at byte `offset` unreadable until it is written.
    pub fn add_latent_error(&mut self, offset: u64) {
        self.latent.insert(offset / SECTOR);
    }

    /// Starts an operation. Returns its ticket and how long it takes, ns.
    pub fn submit(&mut self, operation: Operation) -> Result<(Ticket, u64), DiskFault> {
        let ticket = Ticket(self.next_id);
        self.next_id += 1;
        let mut ns = 0;
        let running = match operation {
            Operation::Read { offset, len } => {
                self.counts[0] += 1;
                ns += self.transfer_ns(offset, u64::from(len))?;
                Running::Read { offset, len }
            }
            Operation::Write { offset, bytes } => {
                self.counts[1] += 1;
                ns += self.transfer_ns(offset, bytes.len() as u64)?;
                self.bytes_written += bytes.len() as u64;
                self.unstable.push(Unstable { id: ticket.0, offset, bytes, completed: false });
                Running::Write { id: ticket.0 }
            }
            Operation::Flush => {
                self.counts[2] += 1;
                Running::Flush {
                    covers: self.unstable.iter().filter(|w| w.completed).map(|w| w.id).collect(),
                }
            }
        };
        self.running.insert(ticket, running);
        Ok((ticket, ns))
    }

    /// Finishes a submitted operation. A read copies into `into`. Returns the bytes moved.
    pub fn complete(&mut self, ticket: Ticket, into: &mut [u8]) -> Result<u32, DiskFault> {
        let running = self.running.remove(&ticket).expect("a ticket is completed once");
        if self.faults.gone {
            if let Running::Write { id } = running {
                self.unstable.retain(|w| w.id != id);
            }
            return Err(DiskFault::Gone);
        }
        match running {
            Running::Read { offset, len } => self.finish_read(offset, len, into),
            Running::Write { id } => self.finish_write(id),
            Running::Flush { covers } => self.finish_flush(&covers),
        }
    }

    /// Submits and completes a read at once.
    pub fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<u32, DiskFault> {
        let (ticket, _) = self.submit(Operation::Read { offset, len: into.len() as u32 })?;
        self.complete(ticket, into)
    }

    /// Submits and completes a write at once.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<u32, DiskFault> {
        let (ticket, _) = self.submit(Operation::Write { offset, bytes: bytes.to_vec() })?;
        self.complete(ticket, &mut [])
    }

    /// Submits and completes a flush at once.
    pub fn flush(&mut self) -> Result<(), DiskFault> {
        let (ticket, _) = self.submit(Operation::Flush)?;
        self.complete(ticket, &mut []).map(|_| ())
    }

    /// How many writes are not on stable media: the bits that [`CutMode::Subset`] knows.
    pub fn unstable_writes(&self) -> usize {
        self.unstable.len()
    }

    /// The content after a power cut now (fault 2). The disk itself goes on.
    pub fn cut(&self, mode: CutMode) -> Image {
        self.landed(self.stable.clone(), mode, |_| true)
    }

    /// The content after the process died now (fault 3): completed writes are there, running ones by `mode`.
    pub fn killed(&self, mode: CutMode) -> Image {
        self.landed(self.visible.clone(), mode, |write| !write.completed)
    }

    /// What reads see now.
    pub fn visible(&self) -> &Image {
        &self.visible
    }

    fn landed(&self, mut image: Image, mode: CutMode, may: impl Fn(&Unstable) -> bool) -> Image {
        let writes: Vec<&Unstable> = self.unstable.iter().filter(|w| may(w)).collect();
        match mode {
            CutMode::Nothing => {}
            CutMode::Everything => writes.iter().for_each(|w| image.write(w.offset, &w.bytes)),
            CutMode::Subset(bits) => {
                for (_, w) in writes.iter().take(64).enumerate().filter(|(i, _)| bits >> i & 1 == 1) {
                    image.write(w.offset, &w.bytes);
                }
            }
            CutMode::Prefix(n) => {
                writes.iter().take(n as usize).for_each(|w| image.write(w.offset, &w.bytes))
            }
            CutMode::Torn(seed) => {
                // Each write's sectors land or not, and the writes land in a shuffled order: together that
                // reaches every choice the model allows for every sector.
                let mut rng = Rng::new(seed);
                let mut order: Vec<usize> = (0..writes.len()).collect();
                for i in (1..order.len()).rev() {
                    order.swap(i, rng.below(i as u64 + 1) as usize);
                }
                for i in order {
                    let share = rng.below(5);
                    for sector in 0..writes[i].bytes.len() / SECTOR as usize {
                        if rng.chance(share, 4) {
                            image.write_sector_of(writes[i].offset, &writes[i].bytes, sector);
                        }
                    }
                }
            }
        }
        image
    }

    fn transfer_ns(&mut self, offset: u64, len: u64) -> Result<u64, DiskFault> {
        let whole = offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR) && len > 0;
        let end = offset.checked_add(len).ok_or(DiskFault::Range)?;
        if !whole || end > self.size() {
            return Err(DiskFault::Range);
        }
        let seek = if self.head == offset { 0 } else { self.seek_ns };
        self.head = end;
        Ok(seek + (u128::from(len) * 1_000_000_000 / u128::from(self.bytes_per_s)) as u64)
    }

    fn short(&mut self, len: u32) -> u32 {
        match self.faults.short_one_in {
            Some(n) if len > SECTOR as u32 && self.rng.chance(1, n) => {
                (1 + self.rng.below(u64::from(len) / SECTOR - 1)) as u32 * SECTOR as u32
            }
            _ => len,
        }
    }

    fn finish_read(&mut self, offset: u64, len: u32, into: &mut [u8]) -> Result<u32, DiskFault> {
        if due(&mut self.faults.read_in) {
            return Err(DiskFault::Io);
        }
        let len = self.short(len);
        let sectors = offset / SECTOR..(offset + u64::from(len)) / SECTOR;
        if self.latent.range(sectors).next().is_some() {
            return Err(DiskFault::Io);
        }
        self.visible.read(offset, &mut into[..len as usize]);
        Ok(len)
    }

    fn finish_write(&mut self, id: u64) -> Result<u32, DiskFault> {
        let at = self.unstable.iter().position(|w| w.id == id).expect("a running write is listed");
        if due(&mut self.faults.write_in) {
            // It may have landed in part; from here on it may still land at a cut, but is not to be seen.
            return Err(DiskFault::Io);
        }
        let full = self.unstable[at].bytes.len() as u32;
        let len = self.short(full);
        let write = &mut self.unstable[at];
        write.completed = true;
        write.bytes.truncate(len as usize);
        let (offset, bytes) = (write.offset, write.bytes.clone());
        self.visible.write(offset, &bytes);
        for sector in offset / SECTOR..(offset + u64::from(len)) / SECTOR {
            self.latent.remove(&sector);
        }
        Ok(len)
    }

    fn finish_flush(&mut self, covers: &[u64]) -> Result<u32, DiskFault> {
        let failed = due(&mut self.faults.flush_in);
        for write in self.unstable.extract_if(.., |w| covers.binary_search(&w.id).is_ok()) {
            if !failed {
                self.stable.write(write.offset, &write.bytes);
            }
        }
        if failed { Err(DiskFault::Io) } else { Ok(0) }
    }
}

fn due(countdown: &mut Option<u32>) -> bool {
    match countdown {
        Some(1) => {
            *countdown = None;
            true
        }
        Some(n) => {
            *n -= 1;
            false
        }
        None => false,
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
