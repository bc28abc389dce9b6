//! A persistent hash trie: cloning shares everything, a change copies the nodes on the way to one leaf (and only
//! those that somebody else still holds). So one changed flow among a million costs microseconds, and workers
//! keep reading the state they have.

use std::sync::Arc;

use reactor::prefetch;

const BITS: u32 = 5;
const FANOUT: usize = 1 << BITS;
/// Items a leaf holds before it splits. The branch that takes its place is as large as fifty items: it should have some.
const LEAF_MAX: usize = 16;
/// Items of a leaf in one line of memory.
const LINE_ITEMS: usize = 4;
/// Beyond this depth the hash has no bits left and leaves grow.
const DEPTH_MAX: u32 = 64 / BITS;

enum Node<T> {
    Empty,
    /// One item has no leaf of its own: with a million items that is more than a third of them, and a line less to load.
    One((u64, Arc<T>)),
    Branch(Arc<Branch<T>>),
    Leaf(Arc<Leaf<T>>),
}

impl<T> Clone for Node<T> {
    fn clone(&self) -> Node<T> {
        match self {
            Node::Empty => Node::Empty,
            Node::One(item) => Node::One(item.clone()),
            Node::Branch(branch) => Node::Branch(branch.clone()),
            Node::Leaf(leaf) => Node::Leaf(leaf.clone()),
        }
    }
}

/// A copy counts one reference more to everything below it, its end one less, and each count is somewhere else in memory:
/// all of them are fetched at once, before the first is changed. One by one they take microseconds.
struct Branch<T>([Node<T>; FANOUT]);

impl<T> Branch<T> {
    fn fetch(&self) {
        for node in &self.0 {
            match node {
                Node::Empty => {}
                Node::One((_, item)) => prefetch(&**item),
                Node::Branch(branch) => prefetch(&**branch),
                Node::Leaf(leaf) => prefetch(&**leaf),
            }
        }
    }
}

impl<T> Clone for Branch<T> {
    fn clone(&self) -> Branch<T> {
        self.fetch();
        Branch(self.0.clone())
    }
}

impl<T> Drop for Branch<T> {
    fn drop(&mut self) {
        self.fetch();
    }
}

/// See [`Branch`].
struct Leaf<T>(Vec<(u64, Arc<T>)>);

impl<T> Leaf<T> {
    fn fetch(&self) {
        self.0.iter().for_each(|(_, item)| prefetch(&**item));
    }
}

impl<T> Clone for Leaf<T> {
    fn clone(&self) -> Leaf<T> {
        self.fetch();
        // Whoever copies a leaf is about to add to it.
        let mut items = Vec::with_capacity(self.0.len() + 1);
        items.extend(self.0.iter().cloned());
        Leaf(items)
    }
}

impl<T> Drop for Leaf<T> {
    fn drop(&mut self) {
        self.fetch();
    }
}

/// A multiset of items by hash; what makes two items equal is up to the caller.
pub struct Trie<T> {
    root: Node<T>,
    len: usize,
}

impl<T> Clone for Trie<T> {
    fn clone(&self) -> Trie<T> {
        Trie { root: self.root.clone(), len: self.len }
    }
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

impl<T> Trie<T> {
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
    pub fn with_hash(&self, hash: u64) -> impl Iterator<Item = &Arc<T>> {
        let mut node = &self.root;
        let mut depth = 0;
        while let Node::Branch(branch) = node {
            node = &branch.0[slot(hash, depth)];
            depth += 1;
        }
        let items = match node {
            Node::One(item) => std::slice::from_ref(item),
            Node::Leaf(leaf) => leaf.0.as_slice(),
            _ => &[],
        };
        items.iter().filter(move |(found, _)| *found == hash).map(|(_, item)| item)
    }

    /// The way to the items with this hash, to be fetched before it is taken.
    pub fn way(&self, hash: u64) -> Way<'_, T> {
        Way { node: &self.root, hash, depth: 0, leaf_asked: false }
    }

    /// Adds an item.
    pub fn insert(&mut self, hash: u64, item: Arc<T>) {
        self.len += 1;
        insert(&mut self.root, hash, item, 0);
    }

    /// Exchanges the first item that `pick` picks among those with this hash; returns what was there.
    pub fn replace(&mut self, hash: u64, item: Arc<T>, pick: impl Fn(&T) -> bool) -> Option<Arc<T>> {
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
                Node::Branch(branch) => {
                    node = &mut Arc::make_mut(branch).0[slot(hash, depth)];
                    depth += 1;
                }
                Node::Leaf(leaf) => {
                    let mut items = Arc::make_mut(leaf).0.iter_mut();
                    let (_, place) = items.find(|(found, item)| *found == hash && pick(item))?;
                    return Some(std::mem::replace(place, item));
                }
            }
        }
    }

    /// Takes out the first item that `pick` picks among those with this hash.
    pub fn remove(&mut self, hash: u64, pick: impl Fn(&T) -> bool) -> Option<Arc<T>> {
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

fn insert<T>(node: &mut Node<T>, hash: u64, item: Arc<T>, depth: u32) {
    match node {
        Node::Empty => *node = Node::One((hash, item)),
        Node::One(_) => {
            let Node::One(first) = std::mem::replace(node, Node::Empty) else { return };
            *node = Node::Leaf(Arc::new(Leaf(vec![first, (hash, item)])));
        }
        Node::Branch(branch) => {
            insert(&mut Arc::make_mut(branch).0[slot(hash, depth)], hash, item, depth + 1);
        }
        Node::Leaf(leaf) if leaf.0.len() < LEAF_MAX || depth >= DEPTH_MAX => {
            Arc::make_mut(leaf).0.push((hash, item));
        }
        Node::Leaf(leaf) => {
            let items = std::mem::take(&mut Arc::make_mut(leaf).0);
            *node = Node::Branch(Arc::new(Branch(std::array::from_fn(|_| Node::Empty))));
            for (hash, item) in items.into_iter().chain([(hash, item)]) {
                insert(node, hash, item, depth);
            }
        }
    }
}

fn remove<T>(node: &mut Node<T>, hash: u64, pick: &impl Fn(&T) -> bool, depth: u32) -> Option<Arc<T>> {
    let (item, empty) = match node {
        Node::Empty => (None, false),
        Node::One((found, here)) => {
            if *found != hash || !pick(here) {
                return None;
            }
            let Node::One((_, item)) = std::mem::replace(node, Node::Empty) else { return None };
            (Some(item), true)
        }
        Node::Branch(branch) => {
            let slots = &mut Arc::make_mut(branch).0;
            let item = remove(&mut slots[slot(hash, depth)], hash, pick, depth + 1);
            (item, slots.iter().all(|slot| matches!(slot, Node::Empty)))
        }
        Node::Leaf(leaf) => {
            let items = &mut Arc::make_mut(leaf).0;
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

/// See [`Trie::way`].
pub struct Way<'a, T> {
    node: &'a Node<T>,
    hash: u64,
    depth: u32,
    leaf_asked: bool,
}

impl<T> Way<'_, T> {
    /// Asks for the memory of the next step, and returns whether there is another one. Who has several ways to take does a
    /// step of each in turn: then they wait for memory together.
    pub fn step(&mut self) -> bool {
        match self.node {
            Node::Empty | Node::One(_) => false,
            Node::Branch(branch) => {
                self.node = &branch.0[slot(self.hash, self.depth)];
                self.depth += 1;
                prefetch(self.node);
                // A change asks first whether somebody else holds the branch.
                prefetch(&**branch);
                true
            }
            Node::Leaf(leaf) if !self.leaf_asked => {
                self.leaf_asked = true;
                prefetch(&**leaf);
                true
            }
            Node::Leaf(leaf) => {
                leaf.0.iter().step_by(LINE_ITEMS).for_each(prefetch);
                false
            }
        }
    }
}

/// See [`Trie::iter`].
pub struct Iter<'a, T> {
    nodes: Vec<&'a Node<T>>,
    leaf: std::slice::Iter<'a, (u64, Arc<T>)>,
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = &'a Arc<T>;

    fn next(&mut self) -> Option<&'a Arc<T>> {
        loop {
            if let Some((_, item)) = self.leaf.next() {
                return Some(item);
            }
            match self.nodes.pop()? {
                Node::Empty => {}
                Node::One(item) => self.leaf = std::slice::from_ref(item).iter(),
                Node::Branch(branch) => self.nodes.extend(branch.0.iter()),
                Node::Leaf(leaf) => self.leaf = leaf.0.iter(),
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
        let mut all: Vec<_> = trie.iter().map(|item| **item).collect();
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
                        trie.insert(h, Arc::new((h, v)));
                        model.push((h, v));
                    }
                    Step::Remove(h, v) => {
                        let expected = model.iter().position(|e| *e == (h, v)).map(|at| model.swap_remove(at));
                        prop_assert_eq!(trie.remove(h, |e| *e == (h, v)).map(|item| *item), expected);
                    }
                    Step::Replace(h, v, w) => {
                        let place = model.iter_mut().find(|e| **e == (h, v));
                        let expected = place.map(|place| std::mem::replace(place, (h, w)));
                        let replaced = trie.replace(h, Arc::new((h, w)), |e| *e == (h, v));
                        prop_assert_eq!(replaced.map(|item| *item), expected);
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
