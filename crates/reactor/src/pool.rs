//! Buffers of the reactor's own: for misaligned disk requests and for frames of tap devices and packet sockets.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::ptr::{self, NonNull};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Buffers begin on a page: enough for O_DIRECT on any device.
const ALIGNMENT: usize = 4096;

/// One buffer of the worker's pool. Whoever has this value may touch the bytes; it is given away with an operation and
/// comes back with its completion ([`crate::Io::take_buffer`]). Give it back with [`crate::Io::release`].
#[must_use = "a buffer that is not released is lost to the pool"]
#[derive(Debug, PartialEq, Eq)]
pub struct Buffer(pub(crate) u32);

/// What a packet socket said about a received frame (PACKET_AUXDATA, packet(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketInfo {
    /// Whether the host delivered the auxiliary data.
    pub present: bool,
    /// `TP_STATUS_*` flags: `TP_STATUS_VLAN_VALID` makes the two VLAN fields meaningful, `TP_STATUS_CSUMNOTREADY` says
    /// that the transport checksum is still to be filled in.
    pub status: u32,
    /// Length on the wire, even if the buffer was smaller.
    pub wire_bytes: u32,
    /// Tag control information of the VLAN tag that the host took out of the frame.
    pub vlan_tci: u16,
    /// Its TPID; 0 when not valid, read it as 0x8100 then.
    pub vlan_tpid: u16,
}

const CONTROL_BYTES: usize = 64;

/// `tpacket_auxdata` of linux/if_packet.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct AuxData {
    status: u32,
    len: u32,
    snaplen: u32,
    mac: u16,
    net: u16,
    vlan_tci: u16,
    vlan_tpid: u16,
}

#[repr(C, align(8))]
struct Envelope {
    header: libc::msghdr,
    iovec: libc::iovec,
    control: [u8; CONTROL_BYTES],
}

pub(crate) struct Pool {
    base: NonNull<u8>,
    buffer_bytes: usize,
    stride: usize,
    free: Vec<u32>,
    /// One per buffer, written by the kernel during a receive: never moved.
    envelopes: Box<[Envelope]>,
}

// SAFETY: the mapping and the envelopes belong to this value alone; the raw pointers in it point into them.
unsafe impl Send for Pool {}

impl Pool {
    pub(crate) fn new(count: u32, buffer_bytes: usize) -> io::Result<Pool> {
        let stride = buffer_bytes.max(1).next_multiple_of(ALIGNMENT);
        let length = NonZeroUsize::new(stride * count.max(1) as usize).expect("at least one byte each");
        // Pages come into being when they are first used; an unused pool costs address space only.
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let base = unsafe {
            mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)?
        };
        let empty = || Envelope {
            // SAFETY: all zeroes is a valid msghdr: null pointers and lengths of 0.
            header: unsafe { std::mem::zeroed() },
            iovec: libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 },
            control: [0; CONTROL_BYTES],
        };
        Ok(Pool {
            base: base.cast(),
            buffer_bytes,
            stride,
            free: (0..count).rev().collect(),
            envelopes: (0..count).map(|_| empty()).collect(),
        })
    }

    pub(crate) fn take(&mut self) -> Option<Buffer> {
        self.free.pop().map(Buffer)
    }

    pub(crate) fn free_count(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn release(&mut self, buffer: Buffer) {
        debug_assert!(!self.free.contains(&buffer.0), "buffer released twice");
        self.free.push(buffer.0);
    }

    pub(crate) fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }

    pub(crate) fn pointer(&self, buffer: &Buffer) -> *mut u8 {
        let index = buffer.0 as usize;
        assert!(index < self.envelopes.len());
        // SAFETY: the mapping is `stride` times the number of buffers long.
        unsafe { self.base.as_ptr().add(index * self.stride) }
    }

    pub(crate) fn bytes(&self, buffer: &Buffer) -> &[u8] {
        // SAFETY: inside the mapping, which lives as long as `self`; whoever has the Buffer has no operation on it in
        // flight (operations take it by value), so nobody writes while this reference lives.
        unsafe { std::slice::from_raw_parts(self.pointer(buffer), self.buffer_bytes) }
    }

    pub(crate) fn bytes_mut(&mut self, buffer: &mut Buffer) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` excludes any other reference into the pool.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(buffer), self.buffer_bytes) }
    }

    /// Pointer and length of `range` of the buffer.
    pub(crate) fn part(&self, buffer: &Buffer, range: Range<usize>) -> (*mut u8, u32) {
        assert!(
            range.start <= range.end && range.end <= self.buffer_bytes,
            "{range:?} of {}",
            self.buffer_bytes
        );
        // SAFETY: `range` lies in the buffer, as just checked.
        (unsafe { self.pointer(buffer).add(range.start) }, (range.end - range.start) as u32)
    }

    /// A message header that receives into the whole buffer and takes auxiliary data.
    pub(crate) fn receive_header(&mut self, buffer: &Buffer) -> *mut libc::msghdr {
        let (pointer, length) = self.part(buffer, 0..self.buffer_bytes);
        let envelope = &mut self.envelopes[buffer.0 as usize];
        envelope.iovec = libc::iovec { iov_base: pointer.cast(), iov_len: length as usize };
        envelope.header.msg_iov = &raw mut envelope.iovec;
        envelope.header.msg_iovlen = 1;
        envelope.header.msg_control = envelope.control.as_mut_ptr().cast();
        envelope.header.msg_controllen = CONTROL_BYTES;
        envelope.header.msg_flags = 0;
        &raw mut envelope.header
    }

    pub(crate) fn packet_info(&self, buffer: &Buffer) -> PacketInfo {
        let envelope = &self.envelopes[buffer.0 as usize];
        if envelope.header.msg_control.is_null() || envelope.header.msg_controllen > CONTROL_BYTES {
            return PacketInfo::default();
        }
        // SAFETY: the header is valid and its control buffer is `envelope.control`, of which the kernel filled
        // `msg_controllen` bytes; the CMSG functions stay inside that length.
        unsafe {
            let mut message = libc::CMSG_FIRSTHDR(&envelope.header);
            while !message.is_null() {
                let head = message.read_unaligned();
                let length = libc::CMSG_LEN(size_of::<AuxData>() as u32) as usize;
                if head.cmsg_level == libc::SOL_PACKET
                    && head.cmsg_type == libc::PACKET_AUXDATA
                    && head.cmsg_len >= length
                {
                    let aux = libc::CMSG_DATA(message).cast::<AuxData>().read_unaligned();
                    return PacketInfo {
                        present: true,
                        status: aux.status,
                        wire_bytes: aux.len,
                        vlan_tci: aux.vlan_tci,
                        vlan_tpid: aux.vlan_tpid,
                    };
                }
                message = libc::CMSG_NXTHDR(&envelope.header, message);
            }
        }
        PacketInfo::default()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: made by `new` with this length; the reactor drops the pool after every operation has ended.
        let _ = unsafe { munmap(self.base.cast(), self.stride * self.envelopes.len().max(1)) };
    }
}
