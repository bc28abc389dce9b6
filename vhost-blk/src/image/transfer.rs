//! Data of a volume in a pool, moved by the daemon itself: several requests at a time, through memory of its own.

use std::collections::VecDeque;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tiering::{RequestError, RequestKind, UNIT_BYTES, VolumeId};
use virtq::{GuestMemory, GuestSlice, RegionHint};

use crate::tier::OwnTransfer;
use crate::tier::control::{PoolHandle, TransferError};

/// Bytes of one request at most.
pub const CHUNK_BYTES: usize = 1 << 20;
/// Requests at a time.
const DEPTH: usize = 8;
/// How often is looked whether the pool is full while nothing completes.
const FULL_LOOK: Duration = Duration::from_secs(1);
/// Units that are looked at in one go on the pool's worker: 4 GiB.
const LOOK_UNITS: u64 = 1 << 16;

/// Gets the bytes at an offset.
type Each<'a, E> = &'a mut dyn FnMut(u64, &[u8]) -> Result<(), E>;
type Ended = (usize, Result<(), RequestError>);

/// Reads or writes one volume.
pub struct Transfers {
    pool: PoolHandle,
    volume: VolumeId,
    memory: Arc<GuestMemory>,
    slices: Vec<GuestSlice>,
    free: Vec<usize>,
    ended: (mpsc::Sender<Ended>, mpsc::Receiver<Ended>),
}

impl Transfers {
    /// For `volume` of `pool`.
    pub fn new(pool: PoolHandle, volume: VolumeId) -> Transfers {
        let memory = Arc::new(GuestMemory::anonymous(&[(0, DEPTH * CHUNK_BYTES)]));
        let mut hint = RegionHint::default();
        let mut slice = |at: usize| {
            let found = memory.slice(&mut hint, (at * CHUNK_BYTES) as u64, CHUNK_BYTES as u32);
            found.expect("inside the memory just made")
        };
        let slices = (0..DEPTH).map(&mut slice).collect();
        Transfers { pool, volume, memory, slices, free: (0..DEPTH).collect(), ended: mpsc::channel() }
    }

    fn begin(
        &mut self,
        slot: usize,
        kind: RequestKind,
        offset: u64,
        len: usize,
    ) -> Result<(), TransferError> {
        let slice = self.slices[slot].sub(0, len as u32).expect("a chunk at most");
        let sender = self.ended.0.clone();
        self.pool.transfer(OwnTransfer {
            volume: self.volume,
            kind,
            offset,
            buffer: Some((self.memory.clone(), slice)),
            // Whoever asked may have given up; then nobody wants the result.
            then: Box::new(move |result| _ = sender.send((slot, result))),
        })?;
        Ok(())
    }

    /// The next request that ends. A full pool holds writes until there is space; these do not wait for it.
    fn next_ended(&mut self) -> Result<Ended, TransferError> {
        loop {
            match self.ended.1.recv_timeout(FULL_LOOK) {
                Ok(ended) => return Ok(ended),
                Err(_) if self.pool.status().full() => {
                    let volume = self.volume;
                    self.pool.on_worker(move |pool| pool.cancel_own_waiting(volume))?;
                }
                Err(_) => {
                    // A worker that is gone drops what it was given.
                    self.pool.ask(|_| ())?;
                }
            }
        }
    }

    /// Writes `bytes`, a chunk at most, at `offset`. Errors may be those of earlier writes: how this one ends, later calls
    /// tell.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), TransferError> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                let (slot, result) = self.next_ended()?;
                if let Err(error) = result {
                    self.free.push(slot);
                    return Err(error.into());
                }
                slot
            }
        };
        self.memory.write(self.slices[slot], 0, bytes);
        self.begin(slot, RequestKind::Write, offset, bytes.len())
    }

    /// Waits for all requests, whatever comes of them; the first error.
    pub fn finish(&mut self) -> Result<(), TransferError> {
        let mut first = Ok(());
        while self.free.len() < DEPTH {
            let (slot, result) = self.next_ended()?;
            self.free.push(slot);
            first = first.and(result);
        }
        Ok(first?)
    }

    /// Waits for all writes and until they survive a power cut.
    pub fn flush(&mut self) -> Result<(), TransferError> {
        self.finish()?;
        self.pool.flush(self.volume)
    }

    /// Reads these ranges in order, several at a time, and gives each to `each` with its offset. Ranges are of any length;
    /// what is given is a chunk at most.
    pub fn read<E: From<TransferError>>(
        &mut self,
        ranges: impl IntoIterator<Item = (u64, u64)>,
        mut each: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let chunk = CHUNK_BYTES as u64;
        let pieces = ranges.into_iter().flat_map(|(offset, len)| {
            (0..len.div_ceil(chunk))
                .map(move |at| (offset + at * chunk, (len - at * chunk).min(chunk) as usize))
        });
        let mut pieces = pieces.fuse();
        let mut running = VecDeque::new();
        let result = self.read_pieces(&mut pieces, &mut running, &mut each);
        // Those that ended and were not looked at: nothing will tell of them again.
        self.free.extend(running.into_iter().filter(|piece| piece.ended).map(|piece| piece.slot));
        result
    }

    fn read_pieces<E: From<TransferError>>(
        &mut self,
        pieces: &mut dyn Iterator<Item = (u64, usize)>,
        running: &mut VecDeque<Piece>,
        each: Each<'_, E>,
    ) -> Result<(), E> {
        let mut bytes = vec![0; CHUNK_BYTES];
        loop {
            while let Some(&Piece { slot, offset, len, .. }) = running.front().filter(|piece| piece.ended) {
                running.pop_front();
                self.memory.read(self.slices[slot], 0, &mut bytes[..len]);
                self.free.push(slot);
                each(offset, &bytes[..len])?;
            }
            while let Some(slot) = self.free.pop() {
                let Some((offset, len)) = pieces.next() else {
                    self.free.push(slot);
                    break;
                };
                self.begin(slot, RequestKind::Read, offset, len)?;
                running.push_back(Piece { slot, offset, len, ended: false });
            }
            if running.is_empty() {
                return Ok(());
            }
            let (slot, result) = self.next_ended()?;
            running.iter_mut().filter(|piece| piece.slot == slot).for_each(|piece| piece.ended = true);
            result.map_err(TransferError::from)?;
        }
    }
}

/// A read under way.
struct Piece {
    slot: usize,
    offset: u64,
    len: usize,
    ended: bool,
}

impl Drop for Transfers {
    fn drop(&mut self) {
        // Nothing may still write to the volume when its owner deletes it.
        let _ = self.finish();
    }
}

/// The ranges of a volume that were ever written, in whole units; the last may end behind the volume.
///
/// # Errors
/// The pool was closed meanwhile, or the volume is gone.
pub fn mapped(
    pool: &PoolHandle,
    volume: VolumeId,
    size_bytes: u64,
) -> Result<Vec<(u64, u64)>, TransferError> {
    let units = size_bytes.div_ceil(UNIT_BYTES);
    let mut found: Vec<(u64, u64)> = Vec::new();
    for first in (0..units).step_by(LOOK_UNITS as usize) {
        let some = pool.ask(move |store| store.mapped(volume, first, LOOK_UNITS))?;
        for (offset, len) in some.map_err(|_| RequestError::NoVolume)? {
            match found.last_mut() {
                Some((start, known)) if *start + *known == offset => *known += len,
                _ => found.push((offset, len)),
            }
        }
    }
    Ok(found)
}

/// The parts of `bytes` that are not zero, in whole pieces of `piece` bytes, joined: (first byte, bytes).
pub fn not_zero(bytes: &[u8], piece: usize) -> Vec<(usize, usize)> {
    let mut found: Vec<(usize, usize)> = Vec::new();
    for (at, part) in (0..).step_by(piece).zip(bytes.chunks(piece)) {
        if part.iter().all(|byte| *byte == 0) {
            continue;
        }
        match found.last_mut() {
            Some((start, len)) if *start + *len == at => *len += part.len(),
            _ => found.push((at, part.len())),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_left_out_piece_by_piece() {
        let mut bytes = vec![0; 10];
        assert_eq!(not_zero(&bytes, 4), []);
        bytes[5] = 1;
        bytes[9] = 1;
        assert_eq!(not_zero(&bytes, 4), [(4, 6)]);
        bytes[0] = 1;
        assert_eq!(not_zero(&bytes, 4), [(0, 10)]);
        bytes[5] = 0;
        assert_eq!(not_zero(&bytes, 4), [(0, 4), (8, 2)]);
    }
}
