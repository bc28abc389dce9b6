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
//!
//! Which line it is a byte of the hash tells, kept for all entries of a set in one word: so a packet loads one line of its
//! own, and the words of all sets stay in the processor's inner caches.

use std::hint::select_unpredictable;

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
/// Entries with the same index, and bytes of a word of tags. Each key has two indexes and is put where there is more room:
/// so a cache that is three quarters full has room for everybody.
const WAYS: usize = 8;
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
    /// The key of an entry is the first words of a key, with the bits that `leading` has: so it is where rules look at
    /// ingress port, addresses, VLAN and ports of IPv4 packets.
    direct: bool,
    leading: [u64; FIRST_WORDS],
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
        let (leading, others) = mask.words().split_first_chunk().expect("a key has that many words");
        let (leading, direct) = (*leading, others.iter().all(|word| *word == 0));
        let mut shape = Shape { words, masks, count: 0, direct, leading, padded: 0, stride: 1, sets_mask: 0 };
        for (word, mask) in mask.words().iter().enumerate().filter(|(_, mask)| **mask != 0) {
            shape.words[shape.count] = word as u8;
            shape.masks[shape.count] = *mask;
            shape.count += 1;
        }
        let words = if direct { FIRST_WORDS } else { shape.count };
        shape.stride = (words + META_WORDS).div_ceil(LINE_WORDS);
        shape.padded = (shape.stride * LINE_WORDS - META_WORDS).min(WORDS);
        // The largest power of two that fits.
        shape.sets_mask = (1 << (lines / (shape.stride * WAYS)).ilog2()) - 1;
        shape
    }

    /// Writes the words that make the key of an entry to the front of `to`, and the zeros behind them.
    #[inline]
    fn cut(&self, key: &FlowKey, to: &mut [u64; WORDS]) {
        if self.direct {
            for (i, mask) in self.leading.iter().enumerate() {
                to[i] = key.words()[i] & mask;
            }
            return;
        }
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
    tag: u8,
    /// First line of the entry that it most likely is.
    likely: usize,
}

impl Place {
    /// No place; to initialise batches.
    pub const NONE: Place = Place { key: [0; WORDS], sets: [0; 2], tag: 0, likely: 0 };
}

/// The lowest and the highest bit of each byte.
const LOW_BITS: u64 = 0x0101_0101_0101_0101;
const HIGH_BITS: u64 = LOW_BITS << 7;

/// The highest bit of each byte of `tags` that is `tag`. Bytes above the first that is may be wrong; a key says for certain.
#[inline]
fn same(tags: u64, tag: u8) -> u64 {
    let differs = tags ^ (LOW_BITS * u64::from(tag));
    differs.wrapping_sub(LOW_BITS) & !differs & HIGH_BITS
}

/// The way of the lowest bit in what [`same`] says; any, if there is none.
#[inline]
fn way(bits: u64) -> usize {
    (bits.trailing_zeros() / 8) as usize % WAYS
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
    /// A word for each set, a byte for each of its entries: their [`Place::tag`]s. What is not an entry any longer, or
    /// never was one, has one too.
    tags: Vec<u64>,
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
            tags: Vec::new(),
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
        self.tags = large_table(&0, lines / WAYS);
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
            self.tags.fill(0);
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
        self.allocate((self.lines.len() * 2).min(self.lines_max));
        let mut mask = [0; WORDS];
        for i in 0..self.shape.count {
            mask[usize::from(self.shape.words[i])] = self.shape.masks[i];
        }
        self.shape = Shape::new(&FlowKey::from_words(mask), self.lines.len());
    }

    /// Finds in which sets a packet with this key is, if it is there at all, and asks for their tags.
    #[inline]
    pub fn place(&self, key: &FlowKey, place: &mut Place) {
        self.shape.cut(key, &mut place.key);
        let hash = if self.shape.direct {
            hash::words(self.seed, &place.key[..FIRST_WORDS])
        } else {
            hash::words(self.seed, &place.key[..self.shape.count.min(WORDS)])
        };
        place.sets = [hash as usize & self.shape.sets_mask, (hash >> 28) as usize & self.shape.sets_mask];
        place.tag = (hash >> 56) as u8;
        place.sets.iter().for_each(|set| prefetch(&self.tags[*set]));
    }

    /// Finds which entry it most likely is, and asks for its line, so that the lines of a batch are on their way together.
    #[inline]
    pub fn find_likely(&self, place: &mut Place) {
        let [first, second] = place.sets.map(|set| same(self.tags[set], place.tag));
        // Which of them it is cannot be foreseen.
        let (set, bits) = select_unpredictable(first != 0, (place.sets[0], first), (place.sets[1], second));
        place.likely = self.line(set, way(bits));
        prefetch(&self.lines[place.likely]);
        if first != 0 && second != 0 {
            prefetch(&self.lines[self.line(place.sets[1], way(second))]);
        }
    }

    /// The first line of an entry.
    #[inline]
    fn line(&self, set: usize, way: usize) -> usize {
        (set * WAYS + way) * self.shape.stride
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
        if self.holds(place.likely, &place.key) { Some(place.likely) } else { self.find_elsewhere(place) }
    }

    /// The same where another entry has the same tag, or the entry is younger than the place.
    #[inline(never)]
    fn find_elsewhere(&self, place: &Place) -> Option<usize> {
        place.sets.into_iter().find_map(|set| {
            let mut bits = same(self.tags[set], place.tag);
            while bits != 0 {
                let line = self.line(set, way(bits));
                if self.holds(line, &place.key) {
                    return Some(line);
                }
                bits &= bits - 1;
            }
            None
        })
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
        let Some((age, set, way)) = self.room(place) else { return };
        let entry = self.line(set, way);
        self.displaced += usize::from(age != 0);
        self.tags[set] &= !(0xff << (8 * way));
        self.tags[set] |= u64::from(place.tag) << (8 * way);
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

    /// How recently an entry was used; 0: it is none.
    fn age(&self, set: usize, way: usize) -> u64 {
        let line = &self.lines[self.line(set, way)].0;
        if (line[0] >> 32) as u32 == self.generation { (line[2] & !LISTED) + 1 } else { 0 }
    }

    /// Which entry a new one takes the place of: one that is none, else the one that was not used for the longest time; how
    /// recently that was, its set and its way.
    fn room(&self, place: &Place) -> Option<(u64, usize, usize)> {
        let rated = place.sets.into_iter().flat_map(|set| {
            let ages: [u64; WAYS] = std::array::from_fn(|way| self.age(set, way));
            let used = ages.iter().filter(|age| **age != 0).count();
            (0..WAYS).map(move |way| {
                // What has the same tag and is no entry would be looked at before the new one each time.
                let other = (self.tags[set] >> (8 * way)) as u8 != place.tag;
                (ages[way], other, used, set, way)
            })
        });
        rated.min().map(|(age, _, _, set, way)| (age, set, way))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache of [`LINES_MIN`] entries whose keys are source addresses.
    fn cache(stats: &TableStats) -> FlowCache {
        let mut cache = FlowCache::new(0, 0x1234_5678_9abc_def1);
        cache.invalidate(&FlowKey::ZERO.with(packet::field::IPV4_SRC, u64::MAX), stats);
        cache
    }

    /// The verdict for a packet from `source`, which is `source` itself; whether it was in the cache.
    fn ask(cache: &mut FlowCache, source: u32, flows: &[FlowStats], now_ms: u64, stats: &TableStats) -> bool {
        let mut place = Place::NONE;
        cache.place(&FlowKey::ZERO.with(packet::field::IPV4_SRC, source.into()), &mut place);
        cache.find_likely(&mut place);
        match cache.hit(&place, 60, now_ms, stats) {
            Some(verdict) => {
                assert_eq!(verdict, source, "the verdict of another flow");
                true
            }
            None => {
                let entry = Entry { verdict: source, flows, looked_up: 1, hit: 1 };
                cache.insert(&place, &entry, 1, 60, now_ms, stats);
                false
            }
        }
    }

    #[test]
    fn a_cache_three_quarters_full_has_room_for_all() {
        const FLOWS: u32 = LINES_MIN as u32 / 4 * 3;
        let stats = TableStats::new(1);
        let mut cache = cache(&stats);
        let flows = [FlowStats::new(1)];
        // Each flow misses once after each change of the tables, whatever is left from before.
        for epoch in 0..5 {
            let now_ms = 1 + epoch;
            assert!((0..FLOWS).all(|source| !ask(&mut cache, source, &flows, now_ms, &stats)));
            for _ in 0..2 {
                assert!((0..FLOWS).all(|source| ask(&mut cache, source, &flows, now_ms, &stats)));
            }
            assert_eq!(cache.displaced, 0, "in epoch {epoch}");
            cache.invalidate(&FlowKey::ZERO.with(packet::field::IPV4_SRC, u64::MAX), &stats);
        }
        cache.flush(&stats);
        assert_eq!(flows[0].sum().packets, 5 * 3 * u64::from(FLOWS), "each packet is counted");
    }

    #[test]
    fn what_was_not_used_for_the_longest_time_makes_room() {
        const FLOWS: u32 = LINES_MIN as u32 * 2;
        let stats = TableStats::new(1);
        let mut cache = cache(&stats);
        let flows = [FlowStats::new(1)];
        for source in 0..FLOWS {
            ask(&mut cache, source, &flows, source.into(), &stats);
            // One that is used all the time stays.
            assert!(ask(&mut cache, 0, &flows, source.into(), &stats));
        }
        assert!(cache.displaced > 0);
        cache.flush(&stats);
        assert_eq!(flows[0].sum().packets, 2 * u64::from(FLOWS), "also for those that had to go");
    }

    #[test]
    fn equal_bytes_are_found() {
        for tag in [0, 1, 0x7f, 0x80, 0xff] {
            for at in 0..WAYS {
                let others = [0x55, 0xaa][at % 2];
                let mut bytes = [others; WAYS];
                bytes[at] = tag;
                let bits = same(u64::from_le_bytes(bytes), tag);
                assert_eq!(way(bits), at);
                assert!(bits != 0);
            }
            assert_eq!(same(LOW_BITS * u64::from(tag ^ 0x10), tag), 0);
        }
    }
}
