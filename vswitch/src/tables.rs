//! The flow tables as the workers see them: per table one hash table for each mask in use ("tuple space"), the
//! one that can hold the highest priority first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use packet::{Depth, FlowKey, WORDS, field};

use crate::flow::{Flow, PackedKey};
use crate::groups::LiveGroups;
use crate::hash;
use crate::meters::LiveMeters;
use crate::trie::{Trie, Way};

/// Flow tables of the switch, numbered from 0.
pub const TABLES: usize = 64;

/// The flows of one table that have the same mask.
#[derive(Clone)]
pub struct SubTable {
    mask: Arc<FlowKey>,
    /// Indexes of the words in which the mask has bits.
    words: Arc<[u8]>,
    priority_max: u16,
    flows: Trie<Flow>,
}

impl SubTable {
    fn new(mask: Arc<FlowKey>) -> SubTable {
        let words = (0..WORDS as u8).filter(|word| mask.words()[usize::from(*word)] != 0).collect();
        SubTable { mask, words, priority_max: 0, flows: Trie::default() }
    }

    /// The mask.
    pub fn mask(&self) -> &Arc<FlowKey> {
        &self.mask
    }

    /// Number of flows.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether there is no flow.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// All flows, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Flow>> {
        self.flows.iter()
    }

    /// The words of a key that count, packed as in [`PackedKey`].
    #[inline]
    fn pack(&self, key: &FlowKey) -> [u64; WORDS] {
        let mut packed = [0; WORDS];
        for (place, word) in packed.iter_mut().zip(&*self.words) {
            let word = usize::from(*word) & (WORDS - 1);
            *place = key.words()[word] & self.mask.words()[word];
        }
        packed
    }

    #[inline]
    fn hash(&self, packed: &[u64]) -> u64 {
        hash::words(0, &packed[..self.words.len().min(packed.len())])
    }

    fn hash_of(&self, key: &PackedKey) -> u64 {
        self.hash(key.words(self.words.len()))
    }

    /// The flow of the highest priority that matches.
    fn lookup(&self, key: &FlowKey) -> Option<&Arc<Flow>> {
        let packed = self.pack(key);
        self.flows
            .with_hash(self.hash(&packed))
            .filter(|flow| flow.packed.is(&packed))
            .max_by_key(|flow| flow.priority)
    }

    /// The way to the flows with this key.
    pub(crate) fn way(&self, key: &FlowKey) -> Way<'_, Flow> {
        self.flows.way(self.hash(&self.pack(key)))
    }

    /// The flow with exactly this key and priority.
    pub(crate) fn get(&self, key: &PackedKey, priority: u16) -> Option<&Arc<Flow>> {
        self.flows.with_hash(self.hash_of(key)).find(|flow| flow.priority == priority && flow.packed == *key)
    }

    /// Adds a flow that is not there yet.
    pub(crate) fn insert(&mut self, flow: Arc<Flow>) {
        self.flows.insert(self.hash_of(&flow.packed), flow);
    }

    /// Puts `flow` in the place of the one with the same key and priority.
    pub(crate) fn replace(&mut self, flow: Arc<Flow>) -> Option<Arc<Flow>> {
        let new = flow.clone();
        let here = |old: &Flow| old.priority == new.priority && old.packed == new.packed;
        self.flows.replace(self.hash_of(&new.packed), flow, here)
    }

    /// Takes out the flow with this key and priority.
    pub(crate) fn remove(&mut self, key: &PackedKey, priority: u16) -> Option<Arc<Flow>> {
        let hash = self.hash_of(key);
        self.flows.remove(hash, |flow| flow.priority == priority && flow.packed == *key)
    }
}

/// One flow table.
#[derive(Clone, Default)]
pub struct Table {
    /// Highest possible priority first.
    subtables: Vec<SubTable>,
}

impl Table {
    /// The flow that decides on a packet: of the highest priority among those that match. Which one of several
    /// with the same priority is undefined (OpenFlow 1.3.5, 5.3).
    pub fn lookup(&self, key: &FlowKey) -> Option<&Arc<Flow>> {
        let mut best: Option<&Arc<Flow>> = None;
        for subtable in &self.subtables {
            if best.is_some_and(|best| best.priority >= subtable.priority_max) {
                break;
            }
            if let Some(flow) = subtable.lookup(key)
                && best.is_none_or(|best| flow.priority > best.priority)
            {
                best = Some(flow);
            }
        }
        best
    }

    /// The hash tables, one for each mask.
    pub fn subtables(&self) -> &[SubTable] {
        &self.subtables
    }

    /// Number of flows.
    pub fn len(&self) -> usize {
        self.subtables.iter().map(SubTable::len).sum()
    }

    /// Whether there is no flow.
    pub fn is_empty(&self) -> bool {
        self.subtables.is_empty()
    }

    /// All flows, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Flow>> {
        self.subtables.iter().flat_map(SubTable::iter)
    }

    pub(crate) fn get(&self, mask: &FlowKey) -> Option<&SubTable> {
        self.subtables.iter().find(|subtable| same(&subtable.mask, mask))
    }

    /// Changes the flows of one mask; the subtable is made when it is needed and goes when it is empty.
    /// `priority_max` is asked afterwards, for the order.
    pub(crate) fn with_mask<R>(
        &mut self,
        mask: &FlowKey,
        change: impl FnOnce(&mut SubTable) -> R,
        priority_max: impl FnOnce() -> u16,
    ) -> R {
        let at = self.subtables.iter().position(|subtable| same(&subtable.mask, mask)).unwrap_or_else(|| {
            self.subtables.push(SubTable::new(Arc::new(*mask)));
            self.subtables.len() - 1
        });
        let result = change(&mut self.subtables[at]);
        if self.subtables[at].is_empty() {
            self.subtables.remove(at);
            return result;
        }
        let priority_max = priority_max();
        if self.subtables[at].priority_max != priority_max || self.subtables[at].len() == 1 {
            self.subtables[at].priority_max = priority_max;
            self.subtables.sort_by_key(|subtable| std::cmp::Reverse(subtable.priority_max));
        }
        result
    }
}

/// Whether two masks are equal; most that are, are one.
fn same(one: &FlowKey, other: &FlowKey) -> bool {
    std::ptr::eq(one, other) || one == other
}

/// How often each table was looked up and matched: one row of cells per worker, and one for the control side.
#[derive(Debug)]
pub struct TableStats(Box<[[TableCell; TABLES]]>);

#[derive(Default, Debug)]
struct TableCell {
    lookups: AtomicU64,
    matches: AtomicU64,
}

/// What a [`TableStats`] says of one table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TableCounters {
    /// Packets looked up.
    pub lookups: u64,
    /// Packets that matched a flow.
    pub matches: u64,
}

impl TableStats {
    /// Zeros for `workers` workers and the control side.
    pub fn new(workers: usize) -> TableStats {
        TableStats((0..=workers).map(|_| std::array::from_fn(|_| TableCell::default())).collect())
    }

    /// Counts `packets` packets for the tables in the bit sets. Only `worker` itself calls this for its row.
    pub fn add(&self, worker: usize, looked_up: u64, hit: u64, packets: u64) {
        let row = &self.0[worker];
        let count = |counter: &AtomicU64| {
            counter.store(counter.load(Ordering::Relaxed) + packets, Ordering::Relaxed);
        };
        let mut rest = looked_up;
        while rest != 0 {
            let cell = &row[rest.trailing_zeros() as usize];
            count(&cell.lookups);
            // No table matches without having been looked up.
            if hit & rest & rest.wrapping_neg() != 0 {
                count(&cell.matches);
            }
            rest &= rest - 1;
        }
    }

    /// The sums for one table.
    pub fn sum(&self, table: usize) -> TableCounters {
        self.0.iter().fold(TableCounters::default(), |sum, row| TableCounters {
            lookups: sum.lookups + row[table].lookups.load(Ordering::Relaxed),
            matches: sum.matches + row[table].matches.load(Ordering::Relaxed),
        })
    }
}

/// An immutable state of all flow tables, shared with the states before and after it as far as they agree.
#[derive(Clone)]
pub struct Tables {
    pub(crate) tables: [Arc<Table>; TABLES],
    pub(crate) mask: FlowKey,
    pub(crate) normal_on_miss: bool,
    pub(crate) drop_fragments: bool,
    pub(crate) groups: Arc<LiveGroups>,
    pub(crate) meters: Arc<LiveMeters>,
    stats: Arc<TableStats>,
}

impl Tables {
    /// Tables without a flow for `workers` workers. `normal_on_miss`: packets are switched by NORMAL instead of
    /// dropped.
    pub fn empty(workers: usize, normal_on_miss: bool) -> Tables {
        let tables = std::array::from_fn(|_| Arc::default());
        let stats = Arc::new(TableStats::new(workers));
        let (groups, meters) = (Arc::default(), Arc::default());
        let (mask, drop_fragments) = (FlowKey::ZERO, false);
        Tables { tables, mask, normal_on_miss, drop_fragments, groups, meters, stats }
    }

    /// Lookups and matches of the tables.
    pub fn stats(&self) -> &Arc<TableStats> {
        &self.stats
    }

    /// The table of this number.
    #[inline]
    pub fn table(&self, number: u8) -> Option<&Table> {
        self.tables.get(usize::from(number)).map(|table| &**table)
    }

    /// Every bit of a packet's key that a decision can depend on.
    #[inline]
    pub fn mask(&self) -> &FlowKey {
        &self.mask
    }

    /// How deep packets have to be parsed for these tables.
    pub fn depth(&self) -> Depth {
        // Metadata and tunnel are not in the packet.
        const PORT: FlowKey = FlowKey::ZERO
            .with(field::IN_PORT, u64::MAX)
            .with(field::IN_PHY_PORT, u64::MAX)
            .with(field::METADATA, u64::MAX)
            .with(field::TUNNEL_ID, u64::MAX);
        const ETHERNET: FlowKey = PORT
            .with(field::ETH_DST, u64::MAX)
            .with(field::ETH_SRC, u64::MAX)
            .with(field::ETH_TYPE, u64::MAX)
            .with(field::VLAN_TCI, u64::MAX)
            .with(field::VLAN_TCI_2, u64::MAX)
            .with(field::VLAN_TCI_3, u64::MAX);
        if PORT.covers(&self.mask) {
            Depth::Port
        } else if ETHERNET.covers(&self.mask) {
            Depth::Ethernet
        } else {
            Depth::All
        }
    }

    /// Whether a packet that matches nothing in table 0 is switched by NORMAL.
    pub fn normal_on_miss(&self) -> bool {
        self.normal_on_miss
    }

    /// Whether fragments of IP packets are dropped before any table.
    pub fn drops_fragments(&self) -> bool {
        self.drop_fragments
    }

    /// Number of flows in all tables.
    pub fn len(&self) -> usize {
        self.tables.iter().map(|table| table.len()).sum()
    }

    /// Whether there is no flow at all.
    pub fn is_empty(&self) -> bool {
        self.tables.iter().all(|table| table.is_empty())
    }
}
