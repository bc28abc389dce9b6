//! What a frontend has told about one ring so far.

use std::io;
use std::os::fd::OwnedFd;

use virtq::RingSetup;

/// Where the three parts of a ring lie, in the frontend's virtual addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RingAddresses {
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
    /// Guest address under which writes to the used ring are logged.
    pub(crate) used_log: Option<u64>,
}

/// One ring. It runs as long as everything is there; see [`Ring::setup`].
#[derive(Debug, Default)]
pub(crate) struct Ring {
    pub(crate) size: u16,
    pub(crate) addresses: Option<RingAddresses>,
    /// Index of the next available entry: set by SET_VRING_BASE, kept current at every stop.
    pub(crate) base: u16,
    pub(crate) kick: Option<OwnedFd>,
    pub(crate) call: Option<OwnedFd>,
    pub(crate) err: Option<OwnedFd>,
    pub(crate) enabled: bool,
    pub(crate) running: bool,
}

const VIRTIO_RING_F_INDIRECT_DESC: u64 = 1 << 28;
const VIRTIO_RING_F_EVENT_IDX: u64 = 1 << 29;
const VIRTIO_F_IN_ORDER: u64 = 1 << 35;

impl Ring {
    /// The set-up of the ring if it has addresses, size, kick and enablement. (Features and memory are the session's.)
    pub(crate) fn setup(&self, features: u64, enabled_from_start: bool) -> Option<RingSetup> {
        let addresses = self.addresses?;
        if self.size == 0 || self.kick.is_none() || !(self.enabled || enabled_from_start) {
            return None;
        }
        Some(RingSetup {
            size: self.size,
            desc_user_addr: addresses.desc,
            avail_user_addr: addresses.avail,
            used_user_addr: addresses.used,
            used_log_addr: addresses.used_log,
            next_avail: self.base,
            event_idx: features & VIRTIO_RING_F_EVENT_IDX != 0,
            indirect: features & VIRTIO_RING_F_INDIRECT_DESC != 0,
            in_order: features & VIRTIO_F_IN_ORDER != 0,
        })
    }

    /// Forgets all but the eventfds for calls and errors and the enablement: frontends send those once and expect them
    /// to last over a device reset.
    pub(crate) fn reset(&mut self) {
        self.size = 0;
        self.addresses = None;
        self.base = 0;
        self.kick = None;
    }
}

pub(crate) fn duplicate(fd: Option<&OwnedFd>) -> io::Result<Option<OwnedFd>> {
    fd.map(OwnedFd::try_clone).transpose()
}
