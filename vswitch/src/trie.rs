//! A persistent hash trie: cloning shares everything, a change copies the nodes on the way to one leaf (and only
//! those that somebody else still holds). So one changed flow among a million costs microseconds, and workers
//! keep reading the state they have.

use std::sync::Arc;

const BITS: u32 = 5;
const FANOUT: usize = 1 << BITS;
/// Items a leaf holds before it splits.
const LEAF_MAX: usize = 8;
/// Beyond this depth the hash has no bits left and leaves grow.
const DEPTH_MAX: u32 = 64 / BITS;

enum Node<T> {
    Empty,
    /// One item has no leaf of its own: with a million items that is more than a third of them, and a line less to load.
    One((u64, T)),
    Branch(Arc<[Node<T>; FANOUT]>),
    Leaf(Arc<Vec<(u64, T)>>),
}

impl<T: Clone> Clone for Node<T> {
    fn clone(&self) -> Node<T> {
        match self {
            Node::Empty => Node::Empty,
            Node::One(item) => Node::One(item.clone()),
            Node::Branch(slots) => Node::Branch(slots.clone()),
            Node::Leaf(items) => Node::Leaf(items.clone()),
        }
    }
}

/// A multiset of items by hash; what makes two items equal is up to the caller.
#[derive(Clone)]
pub struct Trie<T> {
    root: Node<T>,
    len: usize,
}

impl<T> Default for Trie<T> {
    fn default() -> Trie<T> {
        Trie { root: Node::Empty, len: 0 }
    }
}

#[inline]
fn slot(hash: u64, depth: u32) -> usize {
    // Beyond DEPTH_MAX there are only leaves, so the shift stays below 64.
    (hash >> (depth * BITS)) as usize & (FANOUT - 1)
}

impl<T: Clone> Trie<T> {
    /// Number of items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The items with this hash.
    #[inline]
    pub fn with_hash(&self, hash: u64) -> impl Iterator<Item = &T> {
        let mut node = &self.root;
        let mut depth = 0;
        while let Node::Branch(slots) = node {
            node = &slots[slot(hash, depth)];
            depth += 1;
        }
        let items = match node {
            Node::One(item) => std::slice::from_ref(item),
            Node::Leaf(items) => items.as_slice(),
            _ => &[],
        };
        items.iter().filter(move |(found, _)| *found == hash).map(|(_, item)| item)
    }

    /// Adds an item.
    pub fn insert(&mut self, hash: u64, item: T) {
        self.len += 1;
        insert(&mut self.root, hash, item, 0);
    }

    /// Exchanges the first item that `pick` picks among those with this hash; returns what was there.
    pub fn replace(&mut self, hash: u64, item: T, pick: impl Fn(&T) -> bool) -> Option<T> {
        // Look first: a miss must not copy the way to the leaf.
        self.with_hash(hash).find(|item| pick(item))?;
        let mut node = &mut self.root;
        let mut depth = 0;
        loop {
            match node {
                Node::Empty => return None,
                Node::One((found, place)) => {
                    return (*found == hash && pick(place)).then(|| std::mem::replace(place, item));
                }
                Node::Branch(slots) => {
                    node = &mut Arc::make_mut(slots)[slot(hash, depth)];
                    depth += 1;
                }
                Node::Leaf(items) => {
                    let mut items = Arc::make_mut(items).iter_mut();
                    let (_, place) = items.find(|(found, item)| *found == hash && pick(item))?;
                    return Some(std::mem::replace(place, item));
                }
            }
        }
    }

    /// Takes out the first item that `pick` picks among those with this hash.
    pub fn remove(&mut self, hash: u64, pick: impl Fn(&T) -> bool) -> Option<T> {
        self.with_hash(hash).find(|item| pick(item))?;
        let item = remove(&mut self.root, hash, &pick, 0);
        self.len -= usize::from(item.is_some());
        item
    }

    /// All items, in no order.
    pub fn iter(&self) -> Iter<'_, T> {
        Iter { nodes: vec![&self.root], leaf: [].iter() }
    }
}

fn insert<T: Clone>(node: &mut Node<T>, hash: u64, item: T, depth: u32) {
    match node {
        Node::Empty => *node = Node::One((hash, item)),
        Node::One(_) => {
            let Node::One(first) = std::mem::replace(node, Node::Empty) else { return };
            *node = Node::Leaf(Arc::new(vec![first, (hash, item)]));
        }
        Node::Branch(slots) => insert(&mut Arc::make_mut(slots)[slot(hash, depth)], hash, item, depth + 1),
        Node::Leaf(items) if items.len() < LEAF_MAX || depth >= DEPTH_MAX => {
            Arc::make_mut(items).push((hash, item));
        }
        Node::Leaf(items) => {
            let items = std::mem::take(Arc::make_mut(items));
            *node = Node::Branch(Arc::new(std::array::from_fn(|_| Node::Empty)));
            for (hash, item) in items.into_iter().chain([(hash, item)]) {
                insert(node, hash, item, depth);
            }
        }
    }
}

fn remove<T: Clone>(node: &mut Node<T>, hash: u64, pick: &impl Fn(&T) -> bool, depth: u32) -> Option<T> {
    let (item, empty) = match node {
        Node::Empty => (None, false),
        Node::One((found, here)) => {
            if *found != hash || !pick(here) {
                return None;
            }
            let Node::One((_, item)) = std::mem::replace(node, Node::Empty) else { return None };
            (Some(item), true)
        }
        Node::Branch(slots) => {
            let slots = Arc::make_mut(slots);
            let item = remove(&mut slots[slot(hash, depth)], hash, pick, depth + 1);
            (item, slots.iter().all(|slot| matches!(slot, Node::Empty)))
        }
        Node::Leaf(items) => {
            let items = Arc::make_mut(items);
            let at = items.iter().position(|(found, item)| *found == hash && pick(item));
            let item = at.map(|at| items.swap_remove(at).1);
            let last = if items.len() == 1 { items.pop() } else { None };
            if let Some(last) = last {
                *node = Node::One(last);
                return item;
            }
            (item, items.is_empty())
        }
    };
    if empty {
        *node = Node::Empty;
    }
    item
}

/// See [`Trie::iter`].
pub struct Iter<'a, T> {
    nodes: Vec<&'a Node<T>>,
    leaf: std::slice::Iter<'a, (u64, T)>,
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        loop {
            if let Some((_, item)) = self.leaf.next() {
                return Some(item);
            }
            match self.nodes.pop()? {
                Node::Empty => {}
                Node::One(item) => self.leaf = std::slice::from_ref(item).iter(),
                Node::Branch(slots) => self.nodes.extend(slots.iter()),
                Node::Leaf(items) => self.leaf = items.iter(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u32),
        Remove(u64, u32),
        Replace(u64, u32, u32),
        Fork,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Few hashes, many of them equal in the low or in the high bits: deep branches and full collisions.
        let hash = prop_oneof![0..4u64, (0..40u64).prop_map(|h| h << 58), (0..40u64).prop_map(|h| h << 20)];
        let step = prop_oneof![
            4 => (hash.clone(), 0..20u32).prop_map(|(h, v)| Step::Insert(h, v)),
            2 => (hash.clone(), 0..20u32).prop_map(|(h, v)| Step::Remove(h, v)),
            1 => (hash, 0..20u32, 0..20u32).prop_map(|(h, v, w)| Step::Replace(h, v, w)),
            1 => Just(Step::Fork),
        ];
        proptest::collection::vec(step, 0..200)
    }

    fn contents(trie: &Trie<(u64, u32)>) -> Vec<(u64, u32)> {
        let mut all: Vec<_> = trie.iter().copied().collect();
        all.sort_unstable();
        all
    }

    proptest! {
        #[test]
        fn behaves_like_a_list_and_never_changes_its_clones(steps in steps()) {
            let mut trie = Trie::default();
            let mut model: Vec<(u64, u32)> = Vec::new();
            let mut forks = Vec::new();
            for step in steps {
                match step {
                    Step::Insert(h, v) => {
                        trie.insert(h, (h, v));
                        model.push((h, v));
                    }
                    Step::Remove(h, v) => {
                        let expected = model.iter().position(|e| *e == (h, v)).map(|at| model.swap_remove(at));
                        prop_assert_eq!(trie.remove(h, |e| *e == (h, v)), expected);
                    }
                    Step::Replace(h, v, w) => {
                        let place = model.iter_mut().find(|e| **e == (h, v));
                        let expected = place.map(|place| std::mem::replace(place, (h, w)));
                        prop_assert_eq!(trie.replace(h, (h, w), |e| *e == (h, v)), expected);
                    }
                    Step::Fork => forks.push((trie.clone(), contents(&trie))),
                }
                model.sort_unstable();
                prop_assert_eq!(&contents(&trie), &model);
                prop_assert_eq!(trie.len(), model.len());
            }
            for (fork, expected) in forks {
                prop_assert_eq!(contents(&fork), expected);
            }
        }
    }
}
