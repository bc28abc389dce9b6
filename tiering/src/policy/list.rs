//! Doubly linked lists over slot numbers, and the memory of extents that left.

use crate::hash::FastMap;
use crate::types::Extent;
use std::collections::VecDeque;

const END: u32 = u32::MAX;

/// Links of all slots; several lists share them, a slot is in one list at most.
#[derive(Debug)]
pub struct Links(Vec<(u32, u32)>);

impl Links {
    pub fn new(slots: u32) -> Self {
        Links(vec![(END, END); slots as usize])
    }

    pub fn grow(&mut self, slots: u32) {
        self.0.resize(slots as usize, (END, END));
    }
}

/// One list. The front is the warm end.
#[derive(Debug, Clone, Copy)]
pub struct List {
    front: u32,
    back: u32,
    len: u32,
}

impl List {
    pub const EMPTY: List = List { front: END, back: END, len: 0 };

    pub fn len(&self) -> u32 {
        self.len
    }

    pub fn back(&self) -> Option<u32> {
        (self.back != END).then_some(self.back)
    }

    /// The neighbour towards the front.
    pub fn before(&self, links: &Links, slot: u32) -> Option<u32> {
        let before = links.0[slot as usize].0;
        (before != END).then_some(before)
    }

    pub fn push_front(&mut self, links: &mut Links, slot: u32) {
        links.0[slot as usize] = (END, self.front);
        match self.front {
            END => self.back = slot,
            front => links.0[front as usize].0 = slot,
        }
        self.front = slot;
        self.len += 1;
    }

    pub fn remove(&mut self, links: &mut Links, slot: u32) {
        let (before, after) = links.0[slot as usize];
        match before {
            END => self.front = after,
            before => links.0[before as usize].1 = after,
        }
        match after {
            END => self.back = before,
            after => links.0[after as usize].0 = before,
        }
        self.len -= 1;
    }

    pub fn move_to_front(&mut self, links: &mut Links, slot: u32) {
        if self.front != slot {
            self.remove(links, slot);
            self.push_front(links, slot);
        }
    }

    /// The slot nearest to the back that `usable` agrees to, within the search bound.
    pub fn find_back(&self, links: &Links, usable: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        let mut at = self.back();
        for _ in 0..super::VICTIM_SEARCH_MAX {
            let slot = at?;
            if usable(slot) {
                return Some(slot);
            }
            at = self.before(links, slot);
        }
        None
    }
}

/// Remembers the last so many extents that left.
#[derive(Debug)]
pub struct Ghosts {
    order: VecDeque<(Extent, u32)>,
    /// How often an extent entered: older entries of `order` are void.
    known: FastMap<Extent, u32>,
    capacity: usize,
    stamp: u32,
}

impl Ghosts {
    pub fn new(capacity: usize) -> Self {
        Ghosts { order: VecDeque::new(), known: FastMap::default(), capacity, stamp: 0 }
    }

    pub fn grow(&mut self, capacity: usize) {
        self.capacity = capacity;
    }

    pub fn add(&mut self, extent: Extent) {
        self.stamp = self.stamp.wrapping_add(1);
        self.known.insert(extent, self.stamp);
        self.order.push_back((extent, self.stamp));
        while self.known.len() > self.capacity || self.order.len() > 2 * self.capacity + 1 {
            let Some((old, stamp)) = self.order.pop_front() else { return };
            if self.known.get(&old) == Some(&stamp) {
                self.known.remove(&old);
            }
        }
    }

    /// Whether the extent is remembered.
    pub fn knows(&self, extent: Extent) -> bool {
        self.known.contains_key(&extent)
    }

    /// Forgets the extent; true if it was remembered.
    pub fn take(&mut self, extent: Extent) -> bool {
        self.known.remove(&extent).is_some()
    }
}
