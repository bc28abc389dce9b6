//! Guest memory as a frontend has it: a memfd that is mapped here and shared with the backend.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Distance between guest addresses and the "virtual addresses of the frontend" that rings are named by: a backend that
/// mixes the two up finds no memory.
const USER_OFFSET: u64 = 0x7f00_0000_0000;

/// One region of guest memory, with a bump allocator.
pub struct GuestRam {
    file: File,
    guest_addr: u64,
    size: usize,
    map: NonNull<u8>,
    next: Mutex<usize>,
}

// SAFETY: the mapping is shared memory that another process may change at any time anyway; all access is by copies and
// atomics through the methods below.
unsafe impl Send for GuestRam {}
// SAFETY: as above.
unsafe impl Sync for GuestRam {}

impl GuestRam {
    /// `size` bytes (a multiple of 4096) at `guest_addr`.
    ///
    /// # Errors
    /// The system has no memory or descriptor left.
    pub fn new(guest_addr: u64, size: usize) -> io::Result<Self> {
        let file = File::from(memfd_create(c"guest-ram", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(size as u64)?;
        let length = NonZeroUsize::new(size).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping of a file of that length, at an address of the kernel's choice.
        let map = unsafe {
            mmap(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, &file, 0)?
        };
        Ok(Self { file, guest_addr, size, map: map.cast(), next: Mutex::new(0) })
    }

    /// The memfd.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Guest address of the first byte.
    pub fn guest_addr(&self) -> u64 {
        self.guest_addr
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size as u64
    }

    /// Address of the first byte in the frontend's own address space, as the protocol wants it.
    pub fn user_addr(&self) -> u64 {
        self.to_user(self.guest_addr)
    }

    /// The frontend's address of a guest address.
    pub fn to_user(&self, guest_addr: u64) -> u64 {
        guest_addr + USER_OFFSET
    }

    /// Takes `bytes` out of the region and returns their guest address. Never given back.
    ///
    /// # Panics
    /// The region is used up: the test wants a larger one.
    pub fn alloc(&self, bytes: usize, align: usize) -> u64 {
        let mut next = self.next.lock().unwrap();
        let start = next.next_multiple_of(align);
        assert!(start + bytes <= self.size, "guest memory of {} bytes is used up", self.size);
        *next = start + bytes;
        self.guest_addr + start as u64
    }

    fn at(&self, guest_addr: u64, bytes: usize) -> NonNull<u8> {
        let offset = guest_addr.checked_sub(self.guest_addr).expect("an address of this region") as usize;
        assert!(offset + bytes <= self.size, "{bytes} bytes at {guest_addr:#x} leave the region");
        // SAFETY: the offset lies in the mapping (checked above).
        unsafe { self.map.add(offset) }
    }

    /// Copies out of guest memory.
    pub fn read(&self, guest_addr: u64, into: &mut [u8]) {
        let from = self.at(guest_addr, into.len());
        // SAFETY: `at` checked the range; the buffer is ours alone and does not overlap a mapping.
        unsafe { from.as_ptr().copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) }
    }

    /// Copies into guest memory.
    pub fn write(&self, guest_addr: u64, bytes: &[u8]) {
        let to = self.at(guest_addr, bytes.len());
        // SAFETY: as in `read`.
        unsafe { to.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    /// `len` bytes as a vector.
    pub fn bytes(&self, guest_addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(guest_addr, &mut bytes);
        bytes
    }

    fn word(&self, guest_addr: u64) -> &AtomicU16 {
        assert!(guest_addr.is_multiple_of(2), "ring indexes are aligned");
        let at = self.at(guest_addr, 2);
        // SAFETY: in the mapping, which lives as long as `self`, aligned, and only ever used atomically here.
        unsafe { AtomicU16::from_ptr(at.cast().as_ptr()) }
    }

    /// An index of the other side: what it published before is seen after.
    pub fn load(&self, guest_addr: u64) -> u16 {
        self.word(guest_addr).load(Ordering::Acquire)
    }

    /// Publishes an index.
    pub fn store(&self, guest_addr: u64, value: u16) {
        self.word(guest_addr).store(value, Ordering::Release);
    }
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; nobody borrows from it any more.
        let _ = unsafe { munmap(self.map.cast(), self.size) };
    }
}
