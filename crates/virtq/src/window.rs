//! A slice of guest memory that was checked once, for several accesses.

use std::marker::PhantomData;

use crate::copy;
use crate::cpu;
use crate::memory::GuestMemory;

/// Bytes of guest memory: a slice whose place in the map was checked, so that an access only compares with its length.
///
/// It holds the map by reference, so the mapping outlives it. What it shows may change at any time, like all guest memory:
/// it gives out copies and never a reference.
#[derive(Clone, Copy, Debug)]
pub struct Window<'m> {
    start: *mut u8,
    len: u32,
    map: PhantomData<&'m GuestMemory>,
}

impl<'m> Window<'m> {
    /// # Safety
    ///
    /// `start` must be valid for reads and writes of `len` bytes while the map behind `'m` lives.
    #[inline]
    pub(crate) unsafe fn new(start: *mut u8, len: u32) -> Window<'m> {
        Window { start, len, map: PhantomData }
    }

    /// Bytes.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "an empty one is of no use to anybody")]
    pub fn len(self) -> u32 {
        self.len
    }

    /// Address in this process.
    #[inline]
    pub(crate) fn start(self) -> *mut u8 {
        self.start
    }

    /// Address of `len` bytes at `offset`.
    ///
    /// # Panics
    ///
    /// When they are not inside: a bug of the caller, never a guest's doing, since guests choose addresses and lengths only
    /// before translation.
    #[inline]
    fn at(self, offset: u32, len: usize) -> *mut u8 {
        if u64::from(offset) + len as u64 > u64::from(self.len) {
            outside(offset, len, self.len);
        }
        // SAFETY: `offset + len <= self.len`, for which `start` is valid by the contract of `new`.
        unsafe { self.start.add(offset as usize) }
    }

    /// Copies from `offset` on until `into` is full.
    ///
    /// # Panics
    ///
    /// When the bytes are not inside (a bug of the caller).
    #[inline]
    pub fn read(self, offset: u32, into: &mut [u8]) {
        let from = self.at(offset, into.len());
        // SAFETY: `from` is valid for `into.len()` bytes (checked by `at`), and `into`, a unique borrow of our own memory,
        // cannot overlap a mapping.
        unsafe { copy::short(from, into.as_mut_ptr(), into.len()) };
        settle(into.as_mut_ptr());
    }

    /// Copies `N` bytes from `offset` on.
    ///
    /// # Panics
    ///
    /// When the bytes are not inside (a bug of the caller).
    #[inline]
    pub fn read_array<const N: usize>(self, offset: u32) -> [u8; N] {
        let from = self.at(offset, N);
        let mut bytes = [0; N];
        // SAFETY: as in `read`. Of a constant length: that is no call.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), N) };
        settle(bytes.as_mut_ptr());
        bytes
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Panics
    ///
    /// When the bytes are not inside (a bug of the caller).
    #[inline]
    pub fn write(self, offset: u32, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: as in `read`, the other way round.
        unsafe { copy::short(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Copies `N` bytes to `offset`.
    ///
    /// # Panics
    ///
    /// When the bytes are not inside (a bug of the caller).
    #[inline]
    pub fn write_array<const N: usize>(self, offset: u32, bytes: &[u8; N]) {
        let to = self.at(offset, N);
        // SAFETY: as in `read`, the other way round. Of a constant length: that is no call.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, N) };
    }

    /// [`Window::write_array`], unless the bytes are there already: a line that nobody writes stays in the caches of both
    /// sides.
    ///
    /// # Panics
    ///
    /// When the bytes are not inside (a bug of the caller).
    #[inline]
    pub fn write_changed<const N: usize>(self, offset: u32, bytes: &[u8; N]) {
        if self.read_array(offset) != *bytes {
            self.write_array(offset, bytes);
        }
    }

    /// Sets `len` bytes at `offset` to zero.
    ///
    /// # Panics
    ///
    /// When the bytes are not inside (a bug of the caller).
    #[inline]
    pub fn zero(self, offset: u32, len: u32) {
        let to = self.at(offset, len as usize);
        // SAFETY: `to` is valid for `len` bytes (checked by `at`).
        unsafe { std::ptr::write_bytes(to, 0, len as usize) };
    }

    /// Copies `len` bytes at `offset` to `at` in guest memory of the same or another guest: one copy. A guest that names
    /// the same bytes twice gets any of them.
    ///
    /// # Panics
    ///
    /// When the bytes are not inside the windows (a bug of the caller).
    #[inline]
    pub fn copy_to(self, offset: u32, to: Window<'_>, at: u32, len: u32) {
        let source = self.at(offset, len as usize);
        let target = to.at(at, len as usize);
        // SAFETY: both are valid for `len` bytes (checked by `at`); a guest may well name the same bytes twice, which this
        // copy allows.
        unsafe { copy::long(source, target, len as usize) };
    }

    /// Asks the CPU for the cache line at `offset`, if that is inside.
    #[inline]
    pub fn prefetch(self, offset: u32) {
        if offset < self.len {
            cpu::prefetch(self.at(offset, 0));
        }
    }

    /// Asks the CPU for the cache line at `offset`, to be written, if that is inside.
    #[inline]
    pub fn prefetch_write(self, offset: u32) {
        if offset < self.len {
            cpu::prefetch_write(self.at(offset, 0));
        }
    }
}

/// Makes the copy the truth: without it the compiler might read a value a second time from where it was copied from,
/// and the guest could have changed it after the check.
#[inline]
fn settle(copied: *mut u8) {
    #[cfg(not(miri))]
    // SAFETY: no instruction at all; it only claims to read and write memory reachable from `copied`.
    unsafe {
        std::arch::asm!("/* {} */", in(reg) copied, options(nostack, preserves_flags));
    }
    let _ = copied;
}

#[cold]
#[inline(never)]
fn outside(offset: u32, len: usize, all: u32) -> ! {
    panic!("{len} bytes at offset {offset} are not inside a slice of {all} bytes");
}

#[cfg(test)]
mod tests {
    use crate::{GuestMemory, RegionHint};

    #[test]
    fn every_length_is_copied_whole_and_nothing_else() {
        let memory = GuestMemory::anonymous(&[(0, 4096)]);
        let pattern: Vec<u8> = (0..300u32).map(|i| (i * 7 + 1) as u8).collect();
        for len in 0..=300u32 {
            let all = memory.slice(&mut RegionHint::default(), 0, 400).unwrap();
            memory.window(all).zero(0, 400);
            let window = memory.window(all.sub(50, len).unwrap());
            window.write(0, &pattern[..len as usize]);
            let mut back = vec![0xaa; len as usize];
            window.read(0, &mut back);
            assert_eq!(back, pattern[..len as usize]);
            let mut around = [0xaa; 400];
            memory.window(all).read(0, &mut around);
            assert!(around[..50].iter().all(|byte| *byte == 0), "before {len} bytes");
            assert!(around[50 + len as usize..].iter().all(|byte| *byte == 0), "behind {len} bytes");
        }
    }

    #[test]
    fn arrays_and_copies_land_where_they_should() {
        let memory = GuestMemory::anonymous(&[(0, 4096)]);
        let slice = memory.slice(&mut RegionHint::default(), 16, 64).unwrap();
        let window = memory.window(slice);
        window.write_array(3, b"abcdefgh");
        assert_eq!(&window.read_array::<4>(5), b"cdef");
        for _ in 0..2 {
            window.write_changed(3, b"abc");
            assert_eq!(&window.read_array::<8>(3), b"abcdefgh");
        }
        window.write_changed(9, b"G");
        assert_eq!(&window.read_array::<8>(3), b"abcdefGh");
        window.write_array(9, b"g");
        window.copy_to(3, window, 5, 8);
        assert_eq!(&window.read_array::<10>(3), b"ababcdefgh");
        window.prefetch(63);
        window.prefetch(64);
        window.prefetch_write(1 << 20);
    }

    #[test]
    #[should_panic(expected = "2 bytes at offset 63 are not inside a slice of 64 bytes")]
    fn an_access_over_the_end_is_refused() {
        let memory = GuestMemory::anonymous(&[(0, 4096)]);
        let slice = memory.slice(&mut RegionHint::default(), 0, 64).unwrap();
        memory.window(slice).write(63, &[1, 2]);
    }
}
