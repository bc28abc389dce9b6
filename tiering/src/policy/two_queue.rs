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
        let percent = if slots < SMALL_SLOTS { NEWCOMERS_PERCENT_SMALL } else { NEWCOMERS_PERCENT };
        Self::with_shares(slots, percent, GHOSTS_PERCENT)
    }

    /// With other shares than the usual, per cent of the slots.
    pub fn with_shares(slots: u32, newcomers_percent: u32, ghosts_percent: u32) -> Self {
        TwoQueue {
            links: Links::new(slots),
            newcomers: List::EMPTY,
            proven: List::EMPTY,
            is_proven: vec![false; slots as usize],
            ghosts: Ghosts::new((u64::from(slots) * u64::from(ghosts_percent) / 100).max(1) as usize),
            newcomers_max: (u64::from(slots) * u64::from(newcomers_percent) / 100).max(1) as u32,
        }
    }
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

    fn standing(&self, slot: u32) -> &'static str {
        if self.is_proven[slot as usize] { "proven" } else { "newcomer" }
    }
}
