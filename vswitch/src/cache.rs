//! A worker's cache of decisions.
//!
//! The key of an entry is the packet's key under the union of all masks in the tables, cut down to the words in
//! which that union has bits. So what no flow looks at does not fill the cache (with a lone NORMAL flow there is
//! one entry), and a five-tuple with addresses and VLAN fits with everything else into one cache line:
//!
//! ```text
//! word 0  generation << 32 | verdict      a generation other than the current one = no entry
//! word 1  packets << 44 | bytes           counted here, not yet on the flows
//! word 2  LISTED | last used (ms)         LISTED: the entry is in one of the two lists of counted entries
//! word 3… the key's words
//! ```
//!
//! Counting a packet therefore touches no line but the entry's own. The counts move to the flows when the entry
//! is given away and when the control side asks ([`FlowCache::start_drain`]).

use packet::{FlowKey, WORDS};
use reactor::{large_table, prefetch};

use crate::flow::FlowStats;
use crate::hash;
use crate::tables::TableStats;

const LINE_WORDS: usize = 8;
const META_WORDS: usize = 3;
/// Words of a key in the first line of an entry.
const FIRST_WORDS: usize = LINE_WORDS - META_WORDS;
const LISTED: u64 = 1 << 63;
const PACKETS_SHIFT: u32 = 44;
const PACKETS_MAX: u64 = (1 << (64 - PACKETS_SHIFT)) - 1;
/// Entries with the same index: an entry and its neighbour line. Each key has two indexes, of which the second is looked
/// at when the first has no room: with one, a sixth of the flows of a cache a third full would push each other out.
const WAYS: usize = 2;
/// Cache lines at the start.
const LINES_MIN: usize = 1 << 12;
/// Cache lines at most, for tables that are not large: 16 MiB.
pub const LINES_MAX: usize = 1 << 18;
/// Cache lines at most with a million flows in the tables: 128 MiB.
const LINES_MOST: usize = 1 << 21;

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u64; LINE_WORDS]);

/// Whom an entry counts for.
#[derive(Clone, Default)]
struct Origin {
    flows: Box<[FlowStats]>,
    looked_up: u64,
    hit: u64,
}

/// Which words of a key make the key of an entry.
struct Shape {
    words: [u8; WORDS],
    masks: [u64; WORDS],
    count: usize,
    /// Words of a key in the cache: those, and zeros up to the end of its last line.
    padded: usize,
    /// Lines of an entry.
    stride: usize,
    /// Number of sets minus 1.
    sets_mask: usize,
}

impl Shape {
    fn new(mask: &FlowKey, lines: usize) -> Shape {
        let (words, masks) = ([0; WORDS], [0; WORDS]);
        let mut shape = Shape { words, masks, count: 0, padded: 0, stride: 1, sets_mask: 0 };
        for (word, mask) in mask.words().iter().enumerate().filter(|(_, mask)| **mask != 0) {
            shape.words[shape.count] = word as u8;
            shape.masks[shape.count] = *mask;
            shape.count += 1;
        }
        shape.stride = (shape.count + META_WORDS).div_ceil(LINE_WORDS);
        shape.padded = (shape.stride * LINE_WORDS - META_WORDS).min(WORDS);
        // The largest power of two that fits.
        shape.sets_mask = (1 << (lines / (shape.stride * WAYS)).ilog2()) - 1;
        shape
    }

    /// Writes the words that make the key of an entry to the front of `to`, and the zeros behind them.
    #[inline]
    fn cut(&self, key: &FlowKey, to: &mut [u64; WORDS]) {
        if self.padded > FIRST_WORDS {
            *to = [0; WORDS];
        } else {
            to[..FIRST_WORDS].fill(0);
        }
        let words = self.words.iter().zip(&self.masks).take(self.count);
        for (place, (word, mask)) in to.iter_mut().zip(words) {
            *place = key.words()[usize::from(*word) & (WORDS - 1)] & mask;
        }
    }
}

/// A packet's place in the cache, computed for a whole batch before the first entry is looked at.
#[derive(Clone, Copy)]
pub struct Place {
    key: [u64; WORDS],
    /// Where it is, or else.
    sets: [usize; 2],
}

impl Place {
    /// No place; to initialise batches.
    pub const NONE: Place = Place { key: [0; WORDS], sets: [0; 2] };
}

/// What the caller decided for a packet that was not in the cache.
pub struct Entry<'a> {
    /// Number of the verdict.
    pub verdict: u32,
    /// The flows that count the packet.
    pub flows: &'a [FlowStats],
    /// Bit `t`: table `t` was looked up.
    pub looked_up: u64,
    /// Bit `t`: a flow of table `t` matched.
    pub hit: u64,
}

/// The cache. See the module's documentation.
pub struct FlowCache {
    worker: usize,
    seed: u64,
    shape: Shape,
    generation: u32,
    lines: Vec<Line>,
    origins: Vec<Origin>,
    counted: Vec<u32>,
    draining: Vec<u32>,
    lines_max: usize,
    /// Live entries that had to go for others since the last growth.
    displaced: usize,
    /// Packets that found their decision here.
    pub hits: u64,
    /// Packets that did not.
    pub misses: u64,
}

impl FlowCache {
    /// An empty cache that counts into cell `worker`.
    pub fn new(worker: usize, seed: u64) -> FlowCache {
        let mut cache = FlowCache {
            worker,
            seed,
            shape: Shape::new(&FlowKey::ZERO, LINES_MIN),
            generation: 1,
            lines: Vec::new(),
            origins: Vec::new(),
            counted: Vec::new(),
            draining: Vec::new(),
            lines_max: LINES_MAX,
            displaced: 0,
            hits: 0,
            misses: 0,
        };
        cache.allocate(LINES_MIN);
        cache
    }

    /// Says how many flows there are: with more than fit, all of them would miss.
    pub fn expect(&mut self, flows: usize) {
        self.lines_max = (2 * flows).next_power_of_two().clamp(LINES_MAX, LINES_MOST);
    }

    fn allocate(&mut self, lines: usize) {
        self.lines = large_table(&Line([0; LINE_WORDS]), lines);
        self.origins = large_table(&Origin::default(), lines);
        self.counted = Vec::with_capacity(lines);
        self.draining = Vec::with_capacity(lines);
        self.displaced = 0;
    }

    /// Forgets all decisions, because the tables changed; `mask` is the union of their masks. What was counted
    /// stays and is drained as ever.
    pub fn invalidate(&mut self, mask: &FlowKey, stats: &TableStats) {
        let shape = Shape::new(mask, self.lines.len());
        let moved = shape.stride != self.shape.stride;
        if moved || self.generation == u32::MAX {
            // The entries' places change, or old generations would come again.
            self.flush(stats);
            self.lines.fill(Line([0; LINE_WORDS]));
            self.generation = 0;
        }
        self.shape = shape;
        self.generation += 1;
    }

    /// Doubles the room, if it would help and is allowed. Between batches only.
    pub fn grow_if_needed(&mut self, stats: &TableStats) {
        let entries = (self.shape.sets_mask + 1) * WAYS;
        if self.displaced < entries / 4 || self.lines.len() >= self.lines_max {
            return;
        }
        self.flush(stats);
        self.allocate((self.lines.len() * 4).min(self.lines_max));
        let mut mask = [0; WORDS];
        for i in 0..self.shape.count {
            mask[usize::from(self.shape.words[i])] = self.shape.masks[i];
        }
        self.shape = Shape::new(&FlowKey::from_words(mask), self.lines.len());
    }

    /// Finds where a packet with this key is, if it is there at all.
    #[inline]
    pub fn place(&self, key: &FlowKey, place: &mut Place) {
        self.shape.cut(key, &mut place.key);
        let hash = hash::words(self.seed, &place.key[..self.shape.count.min(WORDS)]);
        place.sets[0] = hash as usize & self.shape.sets_mask;
        place.sets[1] = (hash >> 32) as usize & self.shape.sets_mask;
    }

    /// Asks for the first lines of a place, so that the lines of a batch are on their way together.
    #[inline]
    pub fn touch(&self, place: &Place) {
        for first_line in self.ways(place.sets[0]) {
            prefetch(&self.lines[first_line]);
        }
    }

    /// The first lines of a set's entries.
    #[inline]
    fn ways(&self, set: usize) -> [usize; WAYS] {
        let first = set * WAYS * self.shape.stride;
        [first, first + self.shape.stride]
    }

    #[inline]
    fn holds(&self, first_line: usize, key: &[u64; WORDS]) -> bool {
        let line = &self.lines[first_line].0;
        let differs = u64::from((line[0] >> 32) as u32 ^ self.generation);
        // Word by word, and always all of them: a comparison of slices is a call.
        let differs = (0..FIRST_WORDS).fold(differs, |all, i| all | (line[META_WORDS + i] ^ key[i]));
        differs == 0 && (self.shape.stride == 1 || self.goes_on(first_line, key))
    }

    /// Whether the other lines of an entry hold the rest of a long key.
    fn goes_on(&self, first_line: usize, key: &[u64; WORDS]) -> bool {
        (FIRST_WORDS..self.shape.padded).all(|i| {
            let word = i + META_WORDS;
            self.lines[first_line + word / LINE_WORDS].0[word % LINE_WORDS] == key[i]
        })
    }

    /// Where the entry for this place begins, if there is one.
    #[inline]
    fn find(&self, place: &Place) -> Option<usize> {
        for set in place.sets {
            let [first, second] = self.ways(set);
            // Both are compared before anything is decided: which of them it is cannot be foreseen.
            let (in_first, in_second) = (self.holds(first, &place.key), self.holds(second, &place.key));
            if in_first | in_second {
                return Some(if in_second { second } else { first });
            }
        }
        None
    }

    /// The verdict for a packet of `bytes` bytes at this place, which is counted; `None` = not here.
    #[inline]
    pub fn hit(&mut self, place: &Place, bytes: u32, now_ms: u64, stats: &TableStats) -> Option<u32> {
        self.hit_many(place, 1, u64::from(bytes), now_ms, stats)
    }

    /// [`FlowCache::hit`] for `packets` packets of the same place with `bytes` bytes together.
    #[inline]
    pub fn hit_many(
        &mut self,
        place: &Place,
        packets: u64,
        bytes: u64,
        now_ms: u64,
        stats: &TableStats,
    ) -> Option<u32> {
        let first_line = self.find(place)?;
        self.hits += packets;
        self.count(first_line, packets, bytes, now_ms, stats);
        Some(self.lines[first_line].0[0] as u32)
    }

    #[inline]
    fn count(&mut self, first_line: usize, packets: u64, bytes: u64, now_ms: u64, stats: &TableStats) {
        let line = &mut self.lines[first_line].0;
        let listed = line[2] & LISTED != 0;
        line[1] += (packets << PACKETS_SHIFT) + bytes;
        line[2] = LISTED | now_ms;
        // A batch adds 32 packets of 64 KiB at most, so the bytes cannot run over before the packets do.
        let full = line[1] >> PACKETS_SHIFT > PACKETS_MAX - 64;
        if !listed {
            self.counted.push(first_line as u32);
        }
        if full {
            self.settle(first_line, stats);
        }
    }

    /// Puts a decision into the cache and counts the `packets` packets that asked for it, `bytes` bytes together.
    pub fn insert(
        &mut self,
        place: &Place,
        new: &Entry<'_>,
        packets: u64,
        bytes: u64,
        now_ms: u64,
        stats: &TableStats,
    ) {
        self.misses += packets;
        // An empty one, else the one that was not used for the longest time.
        let age = |first_line: &usize| {
            let line = &self.lines[*first_line].0;
            if (line[0] >> 32) as u32 == self.generation { (line[2] & !LISTED) + 1 } else { 0 }
        };
        let candidates = place.sets.into_iter().flat_map(|set| self.ways(set));
        let Some(entry) = candidates.min_by_key(age) else { return };
        self.displaced += usize::from(age(&entry) != 0);
        self.settle(entry, stats);
        self.origins[entry] = Origin { flows: new.flows.into(), looked_up: new.looked_up, hit: new.hit };
        let lines = &mut self.lines[entry..entry + self.shape.stride];
        lines[0].0[0] = (u64::from(self.generation) << 32) | u64::from(new.verdict);
        for (i, value) in place.key[..self.shape.padded].iter().enumerate() {
            let word = i + META_WORDS;
            lines[word / LINE_WORDS].0[word % LINE_WORDS] = *value;
        }
        self.count(entry, packets, bytes, now_ms, stats);
    }

    /// Moves what an entry counted to its flows.
    #[cold]
    fn settle(&mut self, first_line: usize, stats: &TableStats) {
        let line = &mut self.lines[first_line].0;
        let (packets, bytes) = (line[1] >> PACKETS_SHIFT, line[1] & ((1 << PACKETS_SHIFT) - 1));
        if packets == 0 {
            return;
        }
        line[1] = 0;
        let used_ms = line[2] & !LISTED;
        let origin = &self.origins[first_line];
        for flow in &origin.flows {
            flow.cell(self.worker).add(packets, bytes, used_ms);
        }
        stats.add(self.worker, origin.looked_up, origin.hit, packets);
    }

    /// Everything counted so far is to be moved to the flows by the next [`FlowCache::drain`] calls.
    pub fn start_drain(&mut self) {
        if self.draining.is_empty() {
            std::mem::swap(&mut self.counted, &mut self.draining);
        } else {
            // No entry is in both lists, so they fit into one.
            self.draining.append(&mut self.counted);
        }
    }

    /// Goes on with that, over at most `budget` entries; `true` = done.
    pub fn drain(&mut self, budget: usize, stats: &TableStats) -> bool {
        for _ in 0..budget {
            let Some(entry) = self.draining.pop() else {
                return true;
            };
            self.settle(entry as usize, stats);
            self.lines[entry as usize].0[2] &= !LISTED;
        }
        self.draining.is_empty()
    }

    fn flush(&mut self, stats: &TableStats) {
        self.start_drain();
        self.drain(usize::MAX, stats);
    }
}
