//! 2Q: newcomers wait in a FIFO; who is wanted again after leaving it is kept in an LRU list. What streams bring along
//! waits in a FIFO of its own, a short one, so that a scan pushes out little besides itself.

use super::Policy;
use super::list::{Ghosts, Links, List};
use crate::types::Extent;

/// Newcomers' share of the hot tier, per cent.
const NEWCOMERS_PERCENT: u32 = 15;
/// Below so many slots (64 MiB) a queue of newcomers that short forgets before anything comes back.
pub(super) const SMALL_SLOTS: u32 = 1024;
/// Newcomers' share then, per cent. Streams are newcomers like others.
const NEWCOMERS_PERCENT_SMALL: u32 = 50;
/// The share of what streams bring along, per cent.
const PASSING_PERCENT: u32 = 2;
/// Slots of that at least: some windows of streams side by side.
const PASSING_MIN: u32 = 32;
/// Extents remembered after they left, per cent of the hot slots.
const GHOSTS_PERCENT: u32 = 40;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Newcomers,
    Passing,
    Proven,
}

/// Three lists and the ghosts of the first two.
#[derive(Debug)]
pub struct TwoQueue {
    links: Links,
    newcomers: List,
    passing: List,
    proven: List,
    places: Vec<Place>,
    ghosts: Ghosts,
    newcomers_max: u32,
    passing_max: u32,
}

impl TwoQueue {
    /// For so many slots.
    pub fn new(slots: u32) -> Self {
        let mut queue = TwoQueue {
            links: Links::new(0),
            newcomers: List::EMPTY,
            passing: List::EMPTY,
            proven: List::EMPTY,
            places: Vec::new(),
            ghosts: Ghosts::new(1),
            newcomers_max: 1,
            passing_max: 1,
        };
        queue.grow(slots);
        queue
    }

    fn list(&mut self, place: Place) -> (&mut List, &mut Links) {
        let list = match place {
            Place::Newcomers => &mut self.newcomers,
            Place::Passing => &mut self.passing,
            Place::Proven => &mut self.proven,
        };
        (list, &mut self.links)
    }

    fn put(&mut self, slot: u32, extent: Extent, new: Place) {
        let place = if self.ghosts.take(extent) { Place::Proven } else { new };
        self.places[slot as usize] = place;
        let (list, links) = self.list(place);
        list.push_front(links, slot);
    }
}

fn share(slots: u32, percent: u32) -> u32 {
    (u64::from(slots) * u64::from(percent) / 100).max(1) as u32
}

impl Policy for TwoQueue {
    fn hit(&mut self, slot: u32) {
        // Hits among the newcomers say little: one read of 64 KiB in pieces looks like many.
        if self.places[slot as usize] == Place::Proven {
            self.proven.move_to_front(&mut self.links, slot);
        }
    }

    fn insert(&mut self, slot: u32, extent: Extent) {
        self.put(slot, extent, Place::Newcomers);
    }

    fn insert_passing(&mut self, slot: u32, extent: Extent) {
        let small = (self.places.len() as u32) < SMALL_SLOTS;
        self.put(slot, extent, if small { Place::Newcomers } else { Place::Passing });
    }

    fn remove(&mut self, slot: u32, extent: Extent, demoted: bool) {
        let place = self.places[slot as usize];
        let (list, links) = self.list(place);
        list.remove(links, slot);
        if demoted && place != Place::Proven {
            self.ghosts.add(extent);
        }
    }

    fn victim(&mut self, usable: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        let mut order = [&self.proven, &self.newcomers, &self.passing];
        if self.newcomers.len() > self.newcomers_max || self.proven.len() == 0 {
            order.swap(0, 1);
        }
        if self.passing.len() > self.passing_max {
            order.rotate_right(1);
        }
        order.into_iter().find_map(|list| list.find_back(&self.links, usable))
    }

    fn grow(&mut self, slots: u32) {
        let percent = if slots < SMALL_SLOTS { NEWCOMERS_PERCENT_SMALL } else { NEWCOMERS_PERCENT };
        self.links.grow(slots);
        self.places.resize(slots as usize, Place::Newcomers);
        self.ghosts.grow(share(slots, GHOSTS_PERCENT) as usize);
        self.newcomers_max = share(slots, percent);
        self.passing_max = share(slots, PASSING_PERCENT).max(PASSING_MIN);
    }

    fn standing(&self, slot: u32) -> &'static str {
        match self.places[slot as usize] {
            Place::Newcomers => "newcomer",
            Place::Passing => "part of a stream",
            Place::Proven => "proven",
        }
    }
}
