//! Copies between guest memory and ours, or another guest's.

/// A copy that is no call for up to 128 bytes, as nearly all headers are: two blocks of a fixed length that may overlap.
///
/// # Safety
///
/// As for [`std::ptr::copy_nonoverlapping`] with `len` bytes.
#[inline(always)]
pub(crate) unsafe fn short(from: *const u8, to: *mut u8, len: usize) {
    /// # Safety
    ///
    /// Both must be valid for `len` bytes, `N <= len <= 2 * N`, and must not overlap.
    #[inline(always)]
    unsafe fn ends<const N: usize>(from: *const u8, to: *mut u8, len: usize) {
        // SAFETY: the first and the last `N` of `len` bytes; arrays of bytes need no alignment.
        unsafe {
            let first = from.cast::<[u8; N]>().read();
            let last = from.add(len - N).cast::<[u8; N]>().read();
            to.cast::<[u8; N]>().write(first);
            to.add(len - N).cast::<[u8; N]>().write(last);
        }
    }
    // SAFETY: the caller's promise, and the lengths of each arm.
    unsafe {
        match len {
            33..=64 => ends::<32>(from, to, len),
            65..=128 => ends::<64>(from, to, len),
            16..=32 => ends::<16>(from, to, len),
            8..=15 => ends::<8>(from, to, len),
            _ => std::ptr::copy_nonoverlapping(from, to, len),
        }
    }
}

/// A copy of what is seldom in the nearest cache: strictly from the front to the end, which is what the CPU fetches ahead for.
/// The library's begins with the last 256 bytes and waits for them.
///
/// Where the two overlap, what `to` holds afterwards is made of bytes of both, but which is not said.
///
/// # Safety
///
/// `from` must be valid for reads and `to` for writes of `len` bytes.
// A call: most frames have no payload behind their header copy, and their way is shorter without this.
#[inline(never)]
pub(crate) unsafe fn long(from: *const u8, to: *mut u8, len: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if len >= x86::LEAST && is_x86_feature_detected!("avx") {
        // SAFETY: the caller's promise; length and CPU were just checked.
        return unsafe { x86::forward(from, to, len) };
    }
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy(from, to, len) };
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86 {
    use std::arch::x86_64::{__m256i, _mm256_loadu_si256, _mm256_setzero_si256, _mm256_storeu_si256};

    const WORD: usize = size_of::<__m256i>();
    /// Bytes that are loaded before any of them is stored.
    const BLOCK: usize = 4 * WORD;
    /// Shortest copy of [`forward`].
    pub(super) const LEAST: usize = 2 * WORD;

    /// # Safety
    ///
    /// As for [`super::long`], and `len` must not be below [`LEAST`].
    #[target_feature(enable = "avx")]
    pub(super) unsafe fn forward(from: *const u8, to: *mut u8, len: usize) {
        // SAFETY: a block ends at `len` at the latest, and so do the last words, which `LEAST` has room for; these
        // instructions need no alignment.
        unsafe {
            let mut at = 0;
            while len - at > BLOCK {
                words::<4>(from.add(at), to.add(at));
                at += BLOCK;
            }
            if len - at > LEAST {
                words::<2>(from.add(at), to.add(at));
            }
            words::<2>(from.add(len - LEAST), to.add(len - LEAST));
        }
    }

    /// # Safety
    ///
    /// Both must be valid for `N` words.
    #[inline]
    #[target_feature(enable = "avx")]
    unsafe fn words<const N: usize>(from: *const u8, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            // Not by closures: they would be calls.
            let mut loaded = [_mm256_setzero_si256(); N];
            for (word, value) in loaded.iter_mut().enumerate() {
                *value = _mm256_loadu_si256(from.add(word * WORD).cast());
            }
            for (word, value) in loaded.into_iter().enumerate() {
                _mm256_storeu_si256(to.add(word * WORD).cast(), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Copies each length with `copy` and looks at the bytes and their neighbours.
    fn check(most: usize, copy: unsafe fn(*const u8, *mut u8, usize)) {
        const MARGIN: usize = 40;
        let from: Vec<u8> = (0..most + MARGIN).map(|i| (i * 7 + i / 256 + 1) as u8).collect();
        for len in 0..=most {
            let (skip, at) = (len % MARGIN, MARGIN - len % 3);
            let mut to = vec![0xaa; most + 2 * MARGIN];
            // SAFETY: both have `MARGIN` bytes more than the longest copy; two vectors do not overlap.
            unsafe { copy(from.as_ptr().add(skip), to.as_mut_ptr().add(at), len) };
            assert_eq!(to[at..at + len], from[skip..skip + len]);
            let around = to[..at].iter().chain(&to[at + len..]);
            assert!(around.copied().all(|byte| byte == 0xaa), "beside {len} bytes");
        }
    }

    #[test]
    fn every_length_is_copied_whole_and_nothing_else() {
        check(200, |from, to, len| {
            // SAFETY: see `check`.
            unsafe { short(from, to, len) }
        });
        check(1000, |from, to, len| {
            // SAFETY: see `check`.
            unsafe { long(from, to, len) }
        });
    }
}
