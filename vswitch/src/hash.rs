//! The hash of keys: a folded multiplication per pair of words, seeded so that guests cannot aim at collisions.

use std::hash::Hasher;

const A: u64 = 0x9e37_79b9_7f4a_7c15;
const B: u64 = 0xd6e8_feb8_6659_fd93;

/// High and low half of the product, folded.
#[inline]
pub fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

/// A hasher for maps by what controllers choose and not guests, masks and instructions: a flow-mod asks each time.
#[derive(Default)]
pub struct ControllersHasher(u64);

impl Hasher for ControllersHasher {
    fn write(&mut self, bytes: &[u8]) {
        let mut pairs = bytes.chunks_exact(16);
        // As in `words`.
        for (i, pair) in (&mut pairs).enumerate() {
            let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| pair[at + i]));
            self.0 ^= fold(word(0) ^ A.rotate_left(i as u32 * 7), word(8) ^ B.rotate_left(i as u32 * 11));
        }
        for chunk in pairs.remainder().chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = fold(self.0 ^ u64::from_ne_bytes(word) ^ A, B);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The hash of a list of words.
#[inline]
pub fn words(seed: u64, words: &[u64]) -> u64 {
    let mut hash = seed;
    let mut pairs = words.chunks_exact(2);
    // The products of the pairs do not wait for each other.
    for (i, pair) in (&mut pairs).enumerate() {
        hash ^= fold(pair[0] ^ A.rotate_left(i as u32 * 7), pair[1] ^ seed.rotate_left(i as u32 * 11));
    }
    if let [last] = pairs.remainder() {
        hash ^= fold(*last ^ A, seed ^ B);
    }
    fold(hash, B)
}
