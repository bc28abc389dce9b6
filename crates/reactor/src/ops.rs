//! The table of operations that the kernel has not finished.

/// What an operation holds while the kernel works on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holds {
    /// Nothing: the slot is free, `token` is the next free slot.
    Free,
    /// No memory: fsync, fallocate, cancel.
    Nothing,
    /// Guest memory of this map.
    Memory(u16),
    /// A pool buffer.
    Buffer(u32),
    /// A pool buffer, for as long as nothing comes on this fixed file.
    Receive {
        /// The buffer.
        buffer: u32,
        /// The file.
        file: u32,
    },
    /// A watch on this fixed file: stays until it is cancelled.
    Watch(u32),
    /// Nothing any more: a watch that ended while its owner can still name it.
    Ended,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    /// What the worker gets back.
    pub(crate) token: u64,
    pub(crate) holds: Holds,
    /// Whether the worker hears of the completion.
    pub(crate) told: bool,
    /// Ends by itself within the time of one disk or network operation: it counts as activity.
    pub(crate) active: bool,
    /// Runs on a kernel thread, which needs this core.
    pub(crate) threaded: bool,
}

impl Op {
    /// An operation that ends by itself.
    pub(crate) fn active(holds: Holds, token: u64, threaded: bool) -> Op {
        Op { token, holds, told: true, active: true, threaded }
    }

    /// An operation that waits for something from outside.
    pub(crate) fn passive(holds: Holds, token: u64) -> Op {
        Op { token, holds, told: true, active: false, threaded: false }
    }
}

/// Preallocated; an index is an operation's `user_data` from push to its last completion.
pub(crate) struct Ops {
    slots: Box<[Op]>,
    free_head: u32,
    used: u32,
    ended: u32,
    active: u32,
    threaded: u32,
}

const END: u64 = u64::MAX;

impl Ops {
    pub(crate) fn new(capacity: u32) -> Ops {
        let slots = (0..capacity).map(|index| {
            let next = if index + 1 == capacity { END } else { u64::from(index) + 1 };
            Op { token: next, holds: Holds::Free, told: false, active: false, threaded: false }
        });
        Ops { slots: slots.collect(), free_head: 0, used: 0, ended: 0, active: 0, threaded: 0 }
    }

    /// Operations that end by themselves.
    pub(crate) fn active(&self) -> u32 {
        self.active
    }

    /// Operations that run on a kernel thread.
    pub(crate) fn threaded(&self) -> u32 {
        self.threaded
    }

    /// Everything that the kernel has: also watches and pending receives.
    pub(crate) fn pending(&self) -> u32 {
        self.used - self.ended
    }

    pub(crate) fn has_room(&self) -> bool {
        (self.used as usize) < self.slots.len()
    }

    #[inline]
    pub(crate) fn insert(&mut self, op: Op) -> Option<u32> {
        if !self.has_room() {
            return None;
        }
        let index = self.free_head;
        let slot = &mut self.slots[index as usize];
        debug_assert_eq!(slot.holds, Holds::Free);
        self.free_head = slot.token as u32;
        self.used += 1;
        self.active += u32::from(op.active);
        self.threaded += u32::from(op.threaded);
        *slot = op;
        Some(index)
    }

    #[inline]
    pub(crate) fn get(&self, index: u32) -> Op {
        self.slots[index as usize]
    }

    /// Receives that wait on this fixed file.
    pub(crate) fn receives_on(&self, wanted: u32) -> impl Iterator<Item = u32> {
        let waits = move |op: &Op| matches!(op.holds, Holds::Receive { file, .. } if file == wanted);
        (0u32..).zip(&self.slots).filter(move |(_, op)| waits(op)).map(|(index, _)| index)
    }

    pub(crate) fn set_told(&mut self, index: u32, told: bool) {
        self.slots[index as usize].told = told;
    }

    /// The kernel is done with a watch.
    pub(crate) fn end_watch(&mut self, index: u32) {
        self.slots[index as usize].holds = Holds::Ended;
        self.ended += 1;
    }

    /// The owner of an ended watch will not name it again.
    pub(crate) fn bury(&mut self, index: u32) {
        self.ended -= 1;
        self.remove(index);
    }

    #[inline]
    pub(crate) fn remove(&mut self, index: u32) {
        let next = if self.has_room() { u64::from(self.free_head) } else { END };
        let slot = &mut self.slots[index as usize];
        assert!(slot.holds != Holds::Free, "completion of operation {index}, which is not in flight");
        self.used -= 1;
        self.active -= u32::from(slot.active);
        self.threaded -= u32::from(slot.threaded);
        *slot = Op { token: next, holds: Holds::Free, told: false, active: false, threaded: false };
        self.free_head = index;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_reused_and_full_is_full() {
        let mut ops = Ops::new(3);
        let op = |token, active| Op { active, ..Op::active(Holds::Nothing, token, active) };
        let all: Vec<_> = (0..3).map(|n| ops.insert(op(n, n != 1)).unwrap()).collect();
        assert_eq!((ops.insert(op(9, true)), ops.active(), ops.pending(), ops.threaded()), (None, 2, 3, 2));
        for &index in &all {
            ops.remove(index);
        }
        assert_eq!((ops.active(), ops.pending(), ops.threaded()), (0, 0, 0));
        for round in 0..10 {
            let a = ops.insert(op(round, true)).unwrap();
            let b = ops.insert(op(round + 1, true)).unwrap();
            assert_ne!(a, b);
            assert_eq!((ops.get(a).token, ops.get(b).token), (round, round + 1));
            ops.remove(a);
            ops.remove(b);
        }
    }

    #[test]
    #[should_panic(expected = "not in flight")]
    fn a_second_completion_is_a_bug() {
        let mut ops = Ops::new(1);
        let index = ops.insert(Op::passive(Holds::Nothing, 0)).unwrap();
        ops.remove(index);
        ops.remove(index);
    }
}
