//! What every sector of a disk must hold, under a random load that keeps many requests in flight.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use crate::blk_frontend::{
    BlkAnswer, BlkFrontend, BlkRequest, DISCARD, FLUSH, IO_ERROR, OK, READ, WRITE, WRITE_ZEROES, range_list,
};
use crate::frontend::PATIENCE;

/// Bytes of a sector, the unit of addresses.
pub const SECTOR: usize = 512;

/// A small generator of numbers (xorshift64*), so that a seed repeats a run.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A sequence of its own for every seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }
}

/// Content of a sector: 0 is zeros, everything else a version of its own.
type Version = u32;

/// The expectation for one disk.
#[derive(Clone)]
pub struct DiskModel {
    /// One entry per sector; two where a discard leaves it open: zeros or what was there.
    sectors: Vec<(Version, Version)>,
    /// What a sector may hold besides: changes of it that failed, each of which may have been made all the same.
    maybe: HashMap<u64, Vec<Version>>,
    /// Whether I/O errors are answers like others.
    may_fail: bool,
    /// Sectors that a request in flight changes or reads.
    busy: Vec<bool>,
    random: Random,
    /// Requests that are not answered yet, by tag.
    flying: HashMap<u64, Operation>,
    next_tag: u64,
    next_version: Version,
    /// Block size in sectors: requests are multiples of it.
    block: u64,
    sectors_max: u64,
    /// Requests that were done.
    pub done: u64,
    /// Those of them that ended with an I/O error.
    pub failed: u64,
}

/// The bytes of a sector with a version: both stand in every 16 of them.
pub fn pattern(sector: u64, version: Version) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    if version != 0 {
        for (place, chunk) in bytes.chunks_exact_mut(16).enumerate() {
            chunk[..8].copy_from_slice(&sector.to_le_bytes());
            chunk[8..12].copy_from_slice(&version.to_le_bytes());
            chunk[12..].copy_from_slice(&(place as u32).to_le_bytes());
        }
    }
    bytes
}

impl DiskModel {
    /// A disk of zeros. `block_bytes` is the logical block size, `request_bytes_max` the longest request to make.
    pub fn new(capacity_sectors: u64, block_bytes: u64, request_bytes_max: usize, seed: u64) -> Self {
        Self {
            sectors: vec![(0, 0); capacity_sectors as usize],
            maybe: HashMap::new(),
            may_fail: false,
            busy: vec![false; capacity_sectors as usize],
            random: Random::new(seed),
            flying: HashMap::new(),
            next_tag: 0,
            next_version: 0,
            block: block_bytes / SECTOR as u64,
            sectors_max: (request_bytes_max / SECTOR) as u64,
            done: 0,
            failed: 0,
        }
    }

    /// Whether requests may end with an I/O error from now on.
    pub fn allow_errors(&mut self, allow: bool) {
        self.may_fail = allow;
    }

    /// A random operation that touches no sector of those in flight; `None`: this draw did.
    fn draw(&mut self) -> Option<Operation> {
        let capacity = self.sectors.len() as u64;
        let blocks = 1 + self.random.below(self.sectors_max / self.block);
        let sectors = (blocks * self.block).min(capacity);
        let first = self.random.below((capacity - sectors) / self.block + 1) * self.block;
        let kind = self.random.below(100);
        if kind < 3 {
            return Some(Operation { kind: FLUSH, sectors: 0..0, version: 0 });
        }
        let sectors = first..first + sectors;
        let range = sectors.start as usize..sectors.end as usize;
        if self.busy[range.clone()].contains(&true) {
            return None;
        }
        self.busy[range].fill(true);
        let kind = match kind {
            ..40 => READ,
            40..85 => WRITE,
            85..92 => DISCARD,
            _ => WRITE_ZEROES,
        };
        self.next_version += 1;
        Some(Operation { kind, sectors, version: self.next_version })
    }

    /// Compares an answer with the expectation, and changes that as the request did.
    ///
    /// # Panics
    /// A request failed or was never made, or what was read is not what must be there.
    fn settle(&mut self, answer: &BlkAnswer) {
        let operation = self.flying.remove(&answer.tag).expect("every answer belongs to one request");
        let failed = self.may_fail && answer.status == IO_ERROR;
        assert!(failed || answer.status == OK, "status {} of {operation:?}", answer.status);
        self.done += 1;
        self.failed += u64::from(failed);
        let Operation { kind, sectors, version } = operation;
        match kind {
            READ | FLUSH if failed => {}
            _ if failed => {
                let version = if kind == WRITE { version } else { 0 };
                sectors.clone().for_each(|sector| self.maybe.entry(sector).or_default().push(version));
            }
            READ => self.compare(sectors.start, &answer.data),
            WRITE => self.overwrite(&sectors, version),
            DISCARD => self.set(&sectors, |(version, _)| (version, 0)),
            WRITE_ZEROES => self.overwrite(&sectors, 0),
            _ => {}
        }
        self.busy[sectors.start as usize..sectors.end as usize].fill(false);
    }

    fn overwrite(&mut self, sectors: &Range<u64>, version: Version) {
        self.set(sectors, |_| (version, version));
        sectors.clone().for_each(|sector| drop(self.maybe.remove(&sector)));
    }

    fn set(&mut self, sectors: &Range<u64>, change: impl Fn((Version, Version)) -> (Version, Version)) {
        for expectation in &mut self.sectors[sectors.start as usize..sectors.end as usize] {
            *expectation = change(*expectation);
        }
    }

    /// Compares what was read from sector `first` on, none of which is being changed.
    ///
    /// # Panics
    /// It is not what must be there.
    pub fn compare(&self, first: u64, data: &[u8]) {
        for (sector, bytes) in (first..).zip(data.chunks_exact(SECTOR)) {
            let (one, other) = self.sectors[sector as usize];
            let maybe = self.maybe.get(&sector).map_or(&[][..], Vec::as_slice);
            let good = [one, other].iter().chain(maybe).any(|version| bytes == pattern(sector, *version));
            assert!(
                good,
                "sector {sector} holds {:02x?}, expected version {one} or {other}, or of {maybe:?}",
                &bytes[..16]
            );
        }
    }

    /// Keeps random requests in flight on all queues until `count` more are done.
    ///
    /// # Panics
    /// A request failed, what was read is not what must be there, or the device is silent for [`PATIENCE`].
    pub fn load(&mut self, blk: &mut BlkFrontend, count: u64) {
        let end = self.done + count;
        while self.done < end {
            self.fill(blk);
            let mut patience = PATIENCE;
            while let Some(answer) = blk.answer_any(patience) {
                self.settle(&answer);
                patience = Duration::ZERO;
            }
            assert!(patience.is_zero(), "{} requests are not answered", self.flying.len());
        }
    }

    /// Sends until the queues are full or draws collide.
    pub fn fill(&mut self, blk: &mut BlkFrontend) {
        for _ in 0..64 {
            let queue = self.random.below(blk.queues() as u64) as usize;
            if !blk.has_room(queue) {
                continue;
            }
            let Some(operation) = self.draw() else { continue };
            let tag = self.next_tag;
            self.next_tag += 1;
            operation.send(blk, queue, tag);
            self.flying.insert(tag, operation);
        }
    }

    /// Requests that are not answered yet.
    pub fn in_flight(&self) -> usize {
        self.flying.len()
    }

    /// Waits for all that is in flight.
    ///
    /// # Panics
    /// As [`DiskModel::load`].
    pub fn finish(&mut self, blk: &mut BlkFrontend) {
        while !self.flying.is_empty() {
            let answer = blk.answer_any(PATIENCE).expect("requests are answered");
            self.settle(&answer);
        }
    }

    /// Reads every sector and compares it. Nothing may be in flight.
    ///
    /// # Panics
    /// One is not what it must be.
    pub fn verify(&self, blk: &mut BlkFrontend) {
        for sector in (0..self.sectors.len() as u64).step_by(self.sectors_max as usize) {
            let sectors = self.sectors_max.min(self.sectors.len() as u64 - sector) as usize;
            self.compare(sector, &blk.read(sector, sectors * SECTOR));
        }
    }

    /// Compares the bytes of the file behind the disk.
    ///
    /// # Panics
    /// A sector is not what it must be.
    pub fn verify_bytes(&self, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.sectors.len() * SECTOR);
        self.compare(0, bytes);
    }
}

/// A request of the model.
#[derive(Debug, Clone)]
struct Operation {
    kind: u32,
    sectors: Range<u64>,
    version: Version,
}

impl Operation {
    fn send(&self, blk: &mut BlkFrontend, queue: usize, tag: u64) {
        let Range { start: sector, end } = self.sectors;
        let (sectors, bytes) = ((end - sector) as u32, (end - sector) as usize * SECTOR);
        let out: Vec<u8> = match self.kind {
            WRITE => self.sectors.clone().flat_map(|sector| pattern(sector, self.version)).collect(),
            DISCARD => range_list(&[(sector, sectors, 0)]),
            WRITE_ZEROES => range_list(&[(sector, sectors, self.version % 2)]),
            _ => Vec::new(),
        };
        let read_bytes = if self.kind == READ { bytes } else { 0 };
        let sector = if matches!(self.kind, READ | WRITE) { sector } else { 0 };
        blk.send(
            queue,
            &BlkRequest { kind: self.kind, sector, out: &out, read_bytes, parts: 2, shift: 0, tag },
        );
    }
}
