//! S3-FIFO: a small and a main FIFO, a use counter of two bits, ghosts. A hit writes one byte and moves nothing.

use super::list::{Ghosts, Links, List};
use super::{Policy, VICTIM_SEARCH_MAX};
use crate::types::Extent;

/// The small queue's share of the hot tier, per cent.
const SMALL_PERCENT: u32 = 10;
const USES_MAX: u8 = 3;

/// Two queues, counters and ghosts.
#[derive(Debug)]
pub struct S3Fifo {
    links: Links,
    small: List,
    main: List,
    in_main: Vec<bool>,
    uses: Vec<u8>,
    ghosts: Ghosts,
    small_max: u32,
}

impl S3Fifo {
    /// For so many slots.
    pub fn new(slots: u32) -> Self {
        let mut queues = S3Fifo {
            links: Links::new(0),
            small: List::EMPTY,
            main: List::EMPTY,
            in_main: Vec::new(),
            uses: Vec::new(),
            ghosts: Ghosts::new(1),
            small_max: 1,
        };
        queues.grow(slots);
        queues
    }

    fn victim_in_small(&mut self, usable: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        let mut at = self.small.back();
        for _ in 0..VICTIM_SEARCH_MAX {
            let slot = at?;
            at = self.small.before(&self.links, slot);
            if self.uses[slot as usize] > 1 {
                self.small.remove(&mut self.links, slot);
                self.main.push_front(&mut self.links, slot);
                (self.in_main[slot as usize], self.uses[slot as usize]) = (true, 0);
            } else if usable(slot) {
                return Some(slot);
            }
        }
        None
    }

    fn victim_in_main(&mut self, usable: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        for left in (0..VICTIM_SEARCH_MAX).rev() {
            let slot = self.main.back()?;
            // Near the bound any usable slot must do: all are used a lot.
            let cold = self.uses[slot as usize] == 0 || left < VICTIM_SEARCH_MAX / 4;
            if cold && usable(slot) {
                return Some(slot);
            }
            self.uses[slot as usize] = self.uses[slot as usize].saturating_sub(1);
            self.main.move_to_front(&mut self.links, slot);
        }
        None
    }
}

impl Policy for S3Fifo {
    fn hit(&mut self, slot: u32) {
        let uses = &mut self.uses[slot as usize];
        *uses = (*uses + 1).min(USES_MAX);
    }

    fn insert(&mut self, slot: u32, extent: Extent) {
        let back_again = self.ghosts.take(extent);
        (self.in_main[slot as usize], self.uses[slot as usize]) = (back_again, 0);
        let list = if back_again { &mut self.main } else { &mut self.small };
        list.push_front(&mut self.links, slot);
    }

    fn remove(&mut self, slot: u32, extent: Extent, demoted: bool) {
        if self.in_main[slot as usize] {
            self.main.remove(&mut self.links, slot);
        } else {
            self.small.remove(&mut self.links, slot);
            if demoted {
                self.ghosts.add(extent);
            }
        }
    }

    fn victim(&mut self, usable: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        let full = self.small.len() > self.small_max || self.main.len() == 0;
        if let Some(slot) = full.then(|| self.victim_in_small(usable)).flatten() {
            return Some(slot);
        }
        // The small queue's pass may have moved the only usable slot on.
        self.victim_in_main(usable)
            .or_else(|| self.victim_in_small(usable))
            .or_else(|| self.victim_in_main(usable))
    }

    fn grow(&mut self, slots: u32) {
        self.links.grow(slots);
        self.in_main.resize(slots as usize, false);
        self.uses.resize(slots as usize, 0);
        self.ghosts.grow((slots as usize).max(1));
        self.small_max = (u64::from(slots) * u64::from(SMALL_PERCENT) / 100).max(1) as u32;
    }

    fn standing(&self, slot: u32) -> &'static str {
        if self.in_main[slot as usize] { "main queue" } else { "small queue" }
    }
}
