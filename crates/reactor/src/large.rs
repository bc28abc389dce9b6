//! Tables of a worker that are larger than the processor's caches.

use std::mem::MaybeUninit;

use nix::sys::mman::{MmapAdvise, madvise};

/// Bytes below which a table fits into few enough pages as it is.
const WORTH_BYTES: usize = 2 << 20;

/// `count` copies of `value`, in huge pages where the kernel has some: looking up an address costs as much as the line
/// itself when a table has more pages than the processor remembers, and twice that under a hypervisor.
pub fn large_table<T: Clone>(value: &T, count: usize) -> Vec<T> {
    let mut table = Vec::with_capacity(count);
    prefer_huge_pages(table.spare_capacity_mut());
    table.resize(count, value.clone());
    table
}

fn prefer_huge_pages<T>(room: &mut [MaybeUninit<T>]) {
    const PAGE: usize = 4096;
    let bytes = std::mem::size_of_val(room);
    let address = room.as_mut_ptr().cast::<libc::c_void>();
    let before = address.align_offset(PAGE);
    if bytes < WORTH_BYTES || before >= bytes {
        return;
    }
    let Some(start) = std::ptr::NonNull::new(address.wrapping_byte_add(before)) else { return };
    // SAFETY: the whole pages lie within memory that is ours alone, and this advice changes no contents.
    // A kernel without huge pages refuses, which changes nothing either.
    let _ = unsafe { madvise(start, (bytes - before) / PAGE * PAGE, MmapAdvise::MADV_HUGEPAGE) };
}

/// Asks the processor for the line that holds the beginning of `value`.
#[inline]
pub fn prefetch<T>(value: &T) {
    virtq::prefetch(std::ptr::from_ref(value).cast());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_any_size_hold_what_they_should() {
        for count in [0, 1, 1000, WORTH_BYTES / 8 + 1, WORTH_BYTES] {
            let table = large_table(&7u64, count);
            assert_eq!(table.len(), count);
            assert!(table.iter().all(|value| *value == 7));
            table.iter().take(3).for_each(prefetch);
        }
    }
}
