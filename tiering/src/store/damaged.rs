//! Opening with a damaged journal: read-only, and only when the operator says so.
//!
//! What the damaged blocks said is not known. Hot slots may hold another extent by now, and one of another volume, so no
//! hot copy is read: what was only there is lost. Cold slots keep what they held, since freed ones are used again only after
//! a checkpoint. Blocks behind the damage still tell of changes: what they name is lost or as they say. A change of
//! which nothing is left but the damaged blocks cannot be seen: such data read as of before.

use super::load::{Loading, only_hot};
use super::open::{BlockingIo, Members, OpenError, OpenOptions};
use super::{Store, commit};
use crate::hash::FastMap;
use crate::hot::Directory;
use crate::journal::{BLOCK_BYTES, Cursor, Damage, Record};
use crate::types::*;

/// The journal's blocks, and which of them the device could not read.
pub(super) fn read_ring(
    io: &mut dyn BlockingIo,
    offset: u64,
    blocks: u64,
) -> Result<(Vec<u8>, Vec<u64>), OpenError> {
    let mut ring = vec![0; blocks as usize * BLOCK_BYTES];
    if io.read(DeviceId(0), offset, &mut ring).is_ok() {
        return Ok((ring, Vec::new()));
    }
    let mut unreadable = Vec::new();
    for (at, block) in (0..).zip(ring.chunks_exact_mut(BLOCK_BYTES)) {
        if io.read(DeviceId(0), offset + at * BLOCK_BYTES as u64, block).is_err() {
            block.fill(0);
            unreadable.push(at);
        }
    }
    if unreadable.len() as u64 == blocks {
        return Err(OpenError::Io(0));
    }
    Ok((ring, unreadable))
}

/// A log that ends at a block that cannot be read may have ended there, or not: nobody can tell, so it counts as damaged.
pub(super) fn ends_unreadable(end: Cursor, unreadable: &[u64], blocks: u64) -> Option<Damage> {
    let ends_there = unreadable.contains(&(end.sequence % blocks));
    ends_there.then(|| Damage { blocks: vec![end.sequence], ..Damage::default() })
}

impl Loading {
    /// Applies what can be known beyond the damage. What can no longer be read.
    fn beyond(&mut self, behind: Vec<(u64, Record)>) -> FastMap<Extent, PageMask> {
        let slots = 0..self.hot.slots();
        let hot: Vec<_> = slots.filter_map(|slot| Some((slot, self.hot.slot(slot).state()?))).collect();
        let mut lost = only_hot(&hot);
        for (_, record) in behind {
            let (changed, pages) = match record {
                Record::Map { volume, unit, .. } => {
                    let known = self.map.volume(volume).filter(|volume| unit < volume.units());
                    (known.and_then(|known| self.map.get(known, unit).extent()), ALL_PAGES)
                }
                Record::Hot { state: Some(state), .. } => {
                    (Some(state.extent), if state.fresh { ALL_PAGES } else { state.dirty })
                }
                _ => (None, 0),
            };
            let applied = !matches!(record, Record::Hot { .. }) && self.apply(record).is_some();
            let now = match record {
                // The data may be in a hot slot of which the damaged blocks spoke.
                Record::Map { entry, .. } if applied => entry.extent(),
                _ => changed,
            };
            if let Some(extent) = now {
                *lost.entry(extent).or_insert(0) |= pages;
            }
        }
        self.hot = Directory::new(0);
        lost
    }
}

impl Store {
    /// Read-only with a damaged journal, or why not.
    pub(super) fn without_journal(
        members: Members,
        mut loading: Loading,
        damage: Damage,
        options: OpenOptions,
    ) -> Result<Store, OpenError> {
        let Damage { blocks, records_lost, behind } = damage;
        let lost = loading.beyond(behind);
        let degraded = options.degraded;
        let commit = commit::Commit::new(Cursor { lsn: 1, ..Cursor::default() }, 0);
        let mut store = Self::assemble(members, loading, commit, options);
        store.lost = lost;
        if !degraded {
            let ring = store.devices[0].block.journal_blocks;
            let first = store.devices[0].block.journal_offset;
            let blocks = blocks.iter().map(|at| first + at % ring * BLOCK_BYTES as u64).collect();
            return Err(OpenError::JournalDamaged { blocks, records_lost, lost: store.lost() });
        }
        store.fail("blocks of its journal are damaged, and changes that were flushed are lost with them");
        Ok(store)
    }
}
