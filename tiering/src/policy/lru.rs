//! Least recently used: the yardstick, and good when the hot tier is tiny.

use super::Policy;
use super::list::{Links, List};
use crate::types::Extent;

/// One list in order of use.
#[derive(Debug)]
pub struct Lru {
    links: Links,
    list: List,
}

impl Lru {
    /// For so many slots.
    pub fn new(slots: u32) -> Self {
        Lru { links: Links::new(slots), list: List::EMPTY }
    }
}

impl Policy for Lru {
    fn hit(&mut self, slot: u32) {
        self.list.move_to_front(&mut self.links, slot);
    }

    fn insert(&mut self, slot: u32, _: Extent) {
        self.list.push_front(&mut self.links, slot);
    }

    fn remove(&mut self, slot: u32, _: Extent, _: bool) {
        self.list.remove(&mut self.links, slot);
    }

    fn victim(&mut self, usable: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        self.list.find_back(&self.links, usable)
    }

    fn grow(&mut self, slots: u32) {
        self.links.grow(slots);
    }

    fn standing(&self, _: u32) -> &'static str {
        "by last use"
    }
}
