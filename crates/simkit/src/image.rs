//! The stable content of a disk, cheap to copy.

use std::sync::Arc;

const PAGE: usize = 4096;
const SECTOR: usize = 512;

#[derive(Debug, Clone)]
struct Page {
    bytes: Arc<[u8; PAGE]>,
    hash: u64,
}

/// Bytes of a disk in 4 KiB pages that copies share until one of them writes.
/// A crash tester takes thousands of copies of the same disk; each costs a few hundred pointers.
#[derive(Debug, Clone)]
pub struct Image {
    pages: Vec<Option<Page>>,
}

impl Image {
    /// A disk of `bytes` (a multiple of 4096) that reads as zero.
    pub fn new(bytes: u64) -> Self {
        assert!(bytes.is_multiple_of(PAGE as u64), "a disk of {bytes} bytes is not whole pages");
        Image { pages: vec![None; (bytes / PAGE as u64) as usize] }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        (self.pages.len() * PAGE) as u64
    }

    /// Adds `bytes` (a multiple of 4096) that read as zero.
    pub fn grow(&mut self, bytes: u64) {
        assert!(bytes.is_multiple_of(PAGE as u64), "a disk cannot grow by {bytes} bytes");
        self.pages.resize(self.pages.len() + (bytes / PAGE as u64) as usize, None);
    }

    /// Copies bytes out; the range must lie inside the disk.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        let mut at = offset as usize;
        let mut rest = into;
        while !rest.is_empty() {
            let (page, within) = (at / PAGE, at % PAGE);
            let n = rest.len().min(PAGE - within);
            let (now, later) = rest.split_at_mut(n);
            match &self.pages[page] {
                Some(page) => now.copy_from_slice(&page.bytes[within..within + n]),
                None => now.fill(0),
            }
            at += n;
            rest = later;
        }
    }

    /// Copies bytes in; the range must lie inside the disk.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut at = offset as usize;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (page, within) = (at / PAGE, at % PAGE);
            let n = rest.len().min(PAGE - within);
            let target = self.pages[page].get_or_insert_with(|| Page { bytes: Arc::new([0; PAGE]), hash: 0 });
            Arc::make_mut(&mut target.bytes)[within..within + n].copy_from_slice(&rest[..n]);
            target.hash = hash_of(&target.bytes);
            at += n;
            rest = &rest[n..];
        }
    }

    /// A number that differs, as good as surely, where the content differs.
    pub fn fingerprint(&self) -> u64 {
        let fold = |hash: u64, page: &Option<Page>| {
            (hash ^ page.as_ref().map_or(1, |page| page.hash))
                .wrapping_mul(0xd6e8_feb8_6659_fd93)
                .rotate_left(31)
        };
        self.pages.iter().fold(0, fold)
    }

    /// Writes one 512-byte sector of `bytes` (the `index`th) as if `bytes` began at `offset`.
    pub(crate) fn write_sector_of(&mut self, offset: u64, bytes: &[u8], index: usize) {
        let from = index * SECTOR;
        self.write(offset + from as u64, &bytes[from..from + SECTOR]);
    }
}

/// Kept with each page, so that the fingerprint of a copy costs nothing for the pages it shares.
fn hash_of(page: &[u8; PAGE]) -> u64 {
    let mut lanes = [1u64, 2, 3, 4];
    for words in page.chunks_exact(32) {
        for (lane, word) in lanes.iter_mut().zip(words.chunks_exact(8)) {
            let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
            *lane = (*lane ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
    }
    lanes[0] ^ lanes[1].rotate_left(16) ^ lanes[2].rotate_left(32) ^ lanes[3].rotate_left(48)
}
