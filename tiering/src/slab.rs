//! Values under small numbers that are used again: no allocation once the high-water mark is reached.

#[derive(Debug)]
pub(crate) struct Slab<T> {
    items: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub fn new() -> Self {
        Slab { items: Vec::new(), free: Vec::new() }
    }

    pub fn insert(&mut self, item: T) -> u32 {
        match self.free.pop() {
            Some(at) => {
                self.items[at as usize] = Some(item);
                at
            }
            None => {
                self.items.push(Some(item));
                self.items.len() as u32 - 1
            }
        }
    }

    pub fn remove(&mut self, at: u32) -> T {
        let item = self.items[at as usize].take().expect("a number is given back once");
        self.free.push(at);
        item
    }

    pub fn get(&self, at: u32) -> Option<&T> {
        self.items.get(at as usize)?.as_ref()
    }

    pub fn at(&mut self, at: u32) -> &mut T {
        self.items[at as usize].as_mut().expect("a number in use")
    }

    pub fn len(&self) -> usize {
        self.items.len() - self.free.len()
    }
}
