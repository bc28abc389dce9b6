//! 2Q: newcomers wait in a FIFO; who is wanted again after leaving it is kept in an LRU list.

use super::Policy;
use super::list::{Ghosts, Links, List};
use crate::types::Extent;

/// Newcomers' share of the hot tier, per cent.
const NEWCOMERS_PERCENT: u32 = 15;
/// Below so many slots (64 MiB) a queue of newcomers that short forgets before anything comes back.
const SMALL_SLOTS: u32 = 1024;
/// Newcomers' share then, per cent.
const NEWCOMERS_PERCENT_SMALL: u32 = 50;
/// Extents remembered after they left, per cent of the hot slots.
const GHOSTS_PERCENT: u32 = 50;

/// Two lists and the ghosts of the first.
#[derive(Debug)]
pub struct TwoQueue {
    links: Links,
    newcomers: List,
    proven: List,
    is_proven: Vec<bool>,
    ghosts: Ghosts,
    newcomers_max: u32,
}

impl TwoQueue {
    /// For so many slots.
    pub fn new(slots: u32) -> Self {
        let mut queue = TwoQueue {
            links: Links::new(0),
            newcomers: List::EMPTY,
            proven: List::EMPTY,
            is_proven: Vec::new(),
            ghosts: Ghosts::new(1),
            newcomers_max: 1,
        };
        queue.grow(slots);
        queue
    }
}

fn share(slots: u32, percent: u32) -> u32 {
    (u64::from(slots) * u64::from(percent) / 100).max(1) as u32
}

impl Policy for TwoQueue {
    fn hit(&mut self, slot: u32) {
        // Hits among the newcomers say little: one read of 64 KiB in pieces looks like many.
        if self.is_proven[slot as usize] {
            self.proven.move_to_front(&mut self.links, slot);
        }
    }

    fn insert(&mut self, slot: u32, extent: Extent) {
        let back_again = self.ghosts.take(extent);
        self.is_proven[slot as usize] = back_again;
        let list = if back_again { &mut self.proven } else { &mut self.newcomers };
        list.push_front(&mut self.links, slot);
    }

    fn remove(&mut self, slot: u32, extent: Extent, demoted: bool) {
        if self.is_proven[slot as usize] {
            self.proven.remove(&mut self.links, slot);
        } else {
            self.newcomers.remove(&mut self.links, slot);
            if demoted {
                self.ghosts.add(extent);
            }
        }
    }

    fn victim(&mut self, usable: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        let (first, second) = if self.newcomers.len() > self.newcomers_max || self.proven.len() == 0 {
            (&self.newcomers, &self.proven)
        } else {
            (&self.proven, &self.newcomers)
        };
        first.find_back(&self.links, usable).or_else(|| second.find_back(&self.links, usable))
    }

    fn grow(&mut self, slots: u32) {
        let percent = if slots < SMALL_SLOTS { NEWCOMERS_PERCENT_SMALL } else { NEWCOMERS_PERCENT };
        self.links.grow(slots);
        self.is_proven.resize(slots as usize, false);
        self.ghosts.grow(share(slots, GHOSTS_PERCENT) as usize);
        self.newcomers_max = share(slots, percent);
    }

    fn standing(&self, slot: u32) -> &'static str {
        if self.is_proven[slot as usize] { "proven" } else { "newcomer" }
    }
}
