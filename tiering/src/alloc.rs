//! Which cold slots are taken: one bit a slot and a count per 4096.

/// Slots of the cold tier. What is taken is found again at opening from the map, so nothing of this is stored.
#[derive(Debug, Clone)]
pub struct Allocator {
    words: Vec<u64>,
    /// Free slots in each group of 64 words.
    free_in: Vec<u32>,
    slots: u64,
    free: u64,
    homes: Vec<Home>,
}

/// Slots of an adopted device. They are given to the units they are the home of and to nobody else: so the device
/// stays an image of its volume. In `words` they all count as taken.
#[derive(Debug, Clone)]
struct Home {
    first: u64,
    slots: u64,
    taken: Vec<u64>,
}

const GROUP: usize = 64;

impl Allocator {
    /// All `slots` free.
    pub fn new(slots: u64) -> Self {
        let mut allocator =
            Allocator { words: Vec::new(), free_in: Vec::new(), slots: 0, free: 0, homes: Vec::new() };
        allocator.extend(slots);
        allocator
    }

    /// Adds `more` free slots at the end.
    pub fn extend(&mut self, more: u64) {
        let old = self.slots;
        self.slots += more;
        self.words.resize(self.slots.div_ceil(64) as usize, u64::MAX);
        self.free_in.resize(self.words.len().div_ceil(GROUP), 0);
        for slot in old..self.slots {
            self.release_bit(slot);
        }
    }

    /// Adds `more` slots at the end that are only given out by [`Allocator::allocate_home`].
    pub fn extend_home(&mut self, more: u64, taken: bool) {
        let (first, fill) = (self.slots, if taken { u64::MAX } else { 0 });
        self.homes.push(Home { first, slots: more, taken: vec![fill; more.div_ceil(64) as usize] });
        self.slots += more;
        self.words.resize(self.slots.div_ceil(64) as usize, u64::MAX);
        self.free_in.resize(self.words.len().div_ceil(GROUP), 0);
    }

    /// Takes slot `at` of the adopted device whose slots begin at `first`. False if there is none, or it is taken.
    pub fn allocate_home(&mut self, first: u64, at: u64) -> bool {
        self.home_slot(first, at).is_some_and(|slot| self.take(slot))
    }

    /// Slot `at` of the adopted device whose slots begin at `first`, if there is one.
    pub fn home_slot(&self, first: u64, at: u64) -> Option<u64> {
        self.homes.iter().any(|home| home.first == first && at < home.slots).then(|| first + at)
    }

    /// Where the slots of the adopted device begin that this slot is on.
    pub fn home_of(&self, slot: u64) -> Option<u64> {
        let home = self.homes.iter().find(|home| (home.first..home.first + home.slots).contains(&slot));
        home.map(|home| home.first)
    }

    /// The word and bit of a slot of an adopted device.
    fn home_word(&mut self, slot: u64) -> Option<(&mut u64, u64)> {
        let home =
            self.homes.iter_mut().find(|home| (home.first..home.first + home.slots).contains(&slot))?;
        let at = slot - home.first;
        Some((&mut home.taken[(at / 64) as usize], at % 64))
    }

    /// Slots altogether.
    pub fn slots(&self) -> u64 {
        self.slots
    }

    /// Slots that may be allocated.
    pub fn free(&self) -> u64 {
        self.free
    }

    /// Takes a free slot, `near` itself if it can be had, else the first one after it: units that follow each other
    /// in a volume come to follow each other on the disk.
    pub fn allocate(&mut self, near: u64) -> Option<u64> {
        if self.free == 0 {
            return None;
        }
        let start = (near % self.slots) as usize;
        let (word, bit) = (start / 64, start % 64);
        let ahead = !self.words[word] & (u64::MAX << bit);
        let slot = if ahead != 0 {
            word as u64 * 64 + u64::from(ahead.trailing_zeros())
        } else {
            let word = self.word_with_room(word + 1).or_else(|| self.word_with_room(0))?;
            word as u64 * 64 + u64::from((!self.words[word]).trailing_zeros())
        };
        self.take(slot);
        Some(slot)
    }

    /// Marks a slot taken, when the map is read. False if there is no such slot or it was taken.
    pub fn take(&mut self, slot: u64) -> bool {
        if let Some((word, bit)) = self.home_word(slot) {
            let free = *word >> bit & 1 == 0;
            *word |= 1 << bit;
            return free;
        }
        if slot >= self.slots || self.words[(slot / 64) as usize] >> (slot % 64) & 1 == 1 {
            return false;
        }
        self.words[(slot / 64) as usize] |= 1 << (slot % 64);
        self.free_in[slot as usize / 64 / GROUP] -= 1;
        self.free -= 1;
        true
    }

    /// Whether the slot is taken.
    pub fn is_taken(&self, slot: u64) -> bool {
        let home = self.homes.iter().find(|home| (home.first..home.first + home.slots).contains(&slot));
        match home {
            Some(home) => {
                home.taken[((slot - home.first) / 64) as usize] >> ((slot - home.first) % 64) & 1 == 1
            }
            None => self.words[(slot / 64) as usize] >> (slot % 64) & 1 == 1,
        }
    }

    /// Gives a slot back.
    pub fn release(&mut self, slot: u64) {
        assert!(slot < self.slots && self.is_taken(slot), "cold slot {slot} is released but was not taken");
        match self.home_word(slot) {
            Some((word, bit)) => *word &= !(1 << bit),
            None => self.release_bit(slot),
        }
    }

    fn release_bit(&mut self, slot: u64) {
        self.words[(slot / 64) as usize] &= !(1 << (slot % 64));
        self.free_in[slot as usize / 64 / GROUP] += 1;
        self.free += 1;
    }

    fn word_with_room(&self, from: usize) -> Option<usize> {
        let mut word = from;
        while word < self.words.len() {
            if word.is_multiple_of(GROUP) && self.free_in[word / GROUP] == 0 {
                word += GROUP;
                continue;
            }
            if self.words[word] != u64::MAX {
                return Some(word);
            }
            word += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn homes_are_given_only_to_those_who_name_them() {
        let mut allocator = Allocator::new(3);
        allocator.extend_home(70, true);
        allocator.extend(2);
        assert_eq!((allocator.slots(), allocator.free()), (75, 5));
        assert_eq!(std::iter::from_fn(|| allocator.allocate(1)).collect::<Vec<_>>(), [1, 2, 73, 74, 0]);
        assert!(
            !allocator.allocate_home(3, 0)
                && !allocator.allocate_home(0, 3)
                && !allocator.allocate_home(3, 70)
        );
        allocator.release(3);
        assert!(!allocator.is_taken(3) && allocator.free() == 0 && allocator.allocate(3).is_none());
        assert!(allocator.allocate_home(3, 0) && allocator.is_taken(3) && !allocator.take(3));
    }

    proptest! {
        #[test]
        fn equals_a_set(slots in 1u64..9000, ops in prop::collection::vec((0u8..8, any::<u64>()), 1..400)) {
            let mut allocator = Allocator::new(slots);
            let mut free: BTreeSet<u64> = (0..slots).collect();
            let mut taken = Vec::new();
            for (kind, value) in ops {
                if kind < 6 {
                    let near = value % slots;
                    let expected = free.range(near..).next().or_else(|| free.first()).copied();
                    prop_assert_eq!(allocator.allocate(value), expected);
                    if let Some(slot) = expected {
                        free.remove(&slot);
                        taken.push(slot);
                    }
                } else if kind == 6 && !taken.is_empty() {
                    let slot = taken.swap_remove(value as usize % taken.len());
                    allocator.release(slot);
                    free.insert(slot);
                } else if kind == 7 {
                    let slot = value % (slots + 10);
                    let could = free.remove(&slot);
                    prop_assert_eq!(allocator.take(slot), could);
                    if could {
                        taken.push(slot);
                    }
                }
                prop_assert_eq!(allocator.free(), free.len() as u64);
            }
        }
    }
}
