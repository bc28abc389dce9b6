//! Which extents deserve the hot tier.
//!
//! A policy sees hot slots and extents, never volumes, so clones that share data share its heat. It is told of hits and
//! of what comes and goes, and is asked for victims. Whether a miss is promoted at all, and with how many
//! neighbours, is decided apart from it, in [`window`].

pub(crate) mod list;
mod lru;
mod s3_fifo;
mod two_queue;
pub mod window;

pub use lru::Lru;
pub use s3_fifo::S3Fifo;
pub use two_queue::TwoQueue;

use crate::types::Extent;

/// How many slots from the cold end a search for a victim looks at: bounds the work when many are busy.
pub const VICTIM_SEARCH_MAX: u32 = 128;

/// Chooses what leaves the hot tier.
pub trait Policy: Send + std::fmt::Debug {
    /// The extent in `slot` was read or written. On the path of every hot hit: a few loads and stores.
    fn hit(&mut self, slot: u32);
    /// `extent` came into `slot`.
    fn insert(&mut self, slot: u32, extent: Extent);
    /// `extent` came into `slot` as part of a stream: it is likely to be wanted once, soon, and not again.
    fn insert_passing(&mut self, slot: u32, extent: Extent) {
        self.insert(slot, extent);
    }
    /// `extent` left `slot`: demoted (worth remembering), or freed by its owner.
    fn remove(&mut self, slot: u32, extent: Extent, demoted: bool);
    /// The slot to demote next among those `usable` agrees to. It stays in until `remove`.
    fn victim(&mut self, usable: &mut dyn FnMut(u32) -> bool) -> Option<u32>;
    /// There are so many slots from now on, not fewer than before.
    fn grow(&mut self, slots: u32);
    /// A word for what the policy thinks of the slot, for `explain`.
    fn standing(&self, slot: u32) -> &'static str;
}

/// The policies there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// Least recently used.
    Lru,
    /// 2Q: a short queue for newcomers, ghosts, and a list of those that came back.
    #[default]
    TwoQueue,
    /// S3-FIFO: two FIFO queues with small use counters, and ghosts.
    S3Fifo,
}

impl Kind {
    /// A policy for so many hot slots.
    pub fn build(self, slots: u32) -> Box<dyn Policy> {
        match self {
            Kind::Lru => Box::new(Lru::new(slots)),
            Kind::TwoQueue => Box::new(TwoQueue::new(slots)),
            Kind::S3Fifo => Box::new(S3Fifo::new(slots)),
        }
    }
}

#[cfg(test)]
mod tests;
