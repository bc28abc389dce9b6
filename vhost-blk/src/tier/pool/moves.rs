//! Moves between the tiers, through scratch memory.

use reactor::{Buffers, FileId, Full, Io};
use tiering::{Action, ActionKind, Buffer};
use virtq::GuestSlice;

use super::Pool;

/// Neighbouring units that are moved by one operation at most: 1 MiB.
const MERGED_MAX: usize = 16;

impl Pool {
    /// Moves scratch memory from or to a device: a write by one operation with those that follow right behind it. (Reads
    /// stay apart: a kernel thread that copies a long one keeps guests waiting.)
    pub(super) fn move_scratch(&mut self, action: Action, file: FileId, io: &mut Io) -> Result<bool, Full> {
        let mut actions = [action; MERGED_MAX];
        let mut count = 1;
        while action.kind == ActionKind::Write && self.waiting.is_empty() && count < MERGED_MAX {
            let behind = |next: &&Action| follows(&actions[count - 1], next);
            let Some(next) = self.store.peek_action().filter(behind) else { break };
            actions[count] = *next;
            count += 1;
            self.store.next_action();
        }
        let actions = &actions[..count];
        let mut parts = [GuestSlice::default(); MERGED_MAX];
        for (part, action) in parts.iter_mut().zip(actions) {
            let Buffer::Scratch { index, offset } = action.buffer else {
                unreachable!("scratch memory moves")
            };
            *part = self.scratch_part(index, offset, action.len);
        }
        let len = actions.iter().map(|action| action.len).sum();
        let buffers = Buffers::Guest { memory: self.scratch_id, segments: &parts[..count], skip: 0, len };
        let token = self.token | u64::from(action.id.0);
        let started = match action.kind {
            ActionKind::Write => io.write(file, action.offset, buffers, token),
            _ => io.read(file, action.offset, buffers, token),
        };
        if let Err(full) = started {
            // The first one is put back by whoever took it.
            actions[1..].iter().rev().for_each(|action| self.put_back(*action));
            return Err(full);
        }
        for (at, action) in actions.iter().enumerate() {
            self.takes_off(*action, false, io);
            if let (Some(Some(flight)), Some(next)) =
                (self.flights.get_mut(action.id.0 as usize), actions.get(at + 1))
            {
                flight.next = Some(next.id.0);
            }
        }
        Ok(false)
    }
}

/// Whether an action moves scratch memory right behind another one.
fn follows(before: &Action, action: &Action) -> bool {
    let place = |action: &Action| (action.kind, action.device, action.offset);
    matches!(action.buffer, Buffer::Scratch { .. })
        && place(action) == (before.kind, before.device, before.offset + u64::from(before.len))
}
