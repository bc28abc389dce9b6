//! The virtio-net device: what it offers, its configuration space, and what a driver's choice means.
//!
//! Offered with a control queue, although the frontends in use keep theirs to themselves: QEMU's vhost-user-net and
//! DPDK's virtio-user answer the guest's control queue on their own and tell us the outcome by SET_VRING_ENABLE. Both
//! mask our CTRL_VQ bit with a list of their own, so offering it harms neither.

use std::sync::atomic::{AtomicU16, Ordering};

use packet::MacAddr;

use crate::port::offload::{Accepts, NET_HEADER_BYTES, NET_HEADER_BYTES_LEGACY};
use crate::port_spec::QUEUE_PAIRS_MAX;

/// Feature bits (VIRTIO 1.2, 5.1.3 and 6).
pub mod feature {
    /// Device takes packets with partial checksum.
    pub const CSUM: u64 = 1 << 0;
    /// Driver takes packets with partial checksum.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// Device tells the MTU.
    pub const MTU: u64 = 1 << 3;
    /// Device tells the MAC address.
    pub const MAC: u64 = 1 << 5;
    /// Driver takes TSO over IPv4.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// Driver takes TSO over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// Driver takes TSO with ECN.
    pub const GUEST_ECN: u64 = 1 << 9;
    /// Device takes TSO over IPv4.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// Device takes TSO over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// Device takes TSO with ECN.
    pub const HOST_ECN: u64 = 1 << 13;
    /// Driver merges receive buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// Link status in the configuration space.
    pub const STATUS: u64 = 1 << 16;
    /// Control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// Receive modes by the control queue.
    pub const CTRL_RX: u64 = 1 << 18;
    /// More receive modes by the control queue.
    pub const CTRL_RX_EXTRA: u64 = 1 << 20;
    /// Driver announces itself when asked.
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    /// Several queue pairs.
    pub const MQ: u64 = 1 << 22;
    /// MAC address by the control queue.
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
    /// Any descriptor layout, legacy drivers.
    pub const ANY_LAYOUT: u64 = 1 << 27;
    /// Indirect descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Event indexes.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Not a legacy driver.
    pub const VERSION_1: u64 = 1 << 32;
    /// Buffers are used in order.
    pub const IN_ORDER: u64 = 1 << 35;
}

/// Everything that the device offers, whatever its number of queue pairs.
const OFFERED: u64 = feature::CSUM
    | feature::GUEST_CSUM
    | feature::MTU
    | feature::MAC
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::GUEST_ECN
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::HOST_ECN
    | feature::MRG_RXBUF
    | feature::STATUS
    | feature::CTRL_VQ
    | feature::CTRL_RX
    | feature::CTRL_RX_EXTRA
    | feature::GUEST_ANNOUNCE
    | feature::CTRL_MAC_ADDR
    | feature::ANY_LAYOUT
    | feature::INDIRECT_DESC
    | feature::EVENT_IDX
    | feature::VERSION_1
    | feature::IN_ORDER;

const STATUS_LINK_UP: u16 = 1;
/// Bytes of `virtio_net_config` up to `mtu`.
const CONFIG_BYTES: usize = 12;

/// Largest ring of a port, in descriptors.
pub const QUEUE_SIZE_MAX: u16 = 4096;

/// What the driver's choice of features means for the data path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DriverFeatures {
    /// Bytes of the `virtio_net_hdr` in front of each frame.
    pub header_bytes: usize,
    /// Frames may run over several receive buffers.
    pub merge_rx: bool,
    /// What we may leave undone in frames for the guest.
    pub guest_accepts: Accepts,
    /// What the guest may leave undone.
    pub host_accepts: Accepts,
    /// More than one queue pair.
    pub multi_queue: bool,
    /// There is a control queue.
    pub control_queue: bool,
}

impl DriverFeatures {
    /// Interprets feature bits.
    pub fn new(bits: u64) -> DriverFeatures {
        let has = |bit: u64| bits & bit != 0;
        let long = has(feature::VERSION_1) || has(feature::MRG_RXBUF);
        let accepts = |csum, tso4, tso6, ecn| Accepts {
            csum: has(csum),
            tso4: has(csum) && has(tso4),
            tso6: has(csum) && has(tso6),
            ecn: has(ecn),
        };
        DriverFeatures {
            header_bytes: if long { NET_HEADER_BYTES } else { NET_HEADER_BYTES_LEGACY },
            merge_rx: has(feature::MRG_RXBUF),
            guest_accepts: accepts(
                feature::GUEST_CSUM,
                feature::GUEST_TSO4,
                feature::GUEST_TSO6,
                feature::GUEST_ECN,
            ),
            host_accepts: accepts(feature::CSUM, feature::HOST_TSO4, feature::HOST_TSO6, feature::HOST_ECN),
            multi_queue: has(feature::MQ),
            control_queue: has(feature::CTRL_VQ),
        }
    }
}

/// What a ring of the device is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueueRole {
    /// To the guest; number of the pair.
    Receive(u16),
    /// From the guest; number of the pair.
    Transmit(u16),
    /// The control queue.
    Control,
}

/// The device of one port.
#[derive(Debug)]
pub struct Device {
    mac: MacAddr,
    mtu: u16,
    queue_pairs: u16,
    /// What the frontend said the network's MTU is; 0: nothing.
    frontend_mtu: AtomicU16,
}

impl Device {
    /// A device whose link is always up. `queue_pairs`: 1..=[`QUEUE_PAIRS_MAX`].
    pub fn new(mac: MacAddr, mtu: u16, queue_pairs: u16) -> Device {
        assert!((1..=QUEUE_PAIRS_MAX).contains(&queue_pairs), "{queue_pairs} queue pairs");
        Device { mac, mtu, queue_pairs, frontend_mtu: AtomicU16::new(0) }
    }

    /// Feature bits on offer.
    pub fn features(&self) -> u64 {
        OFFERED | if self.queue_pairs > 1 { feature::MQ } else { 0 }
    }

    /// Queue pairs.
    pub fn queue_pairs(&self) -> u16 {
        self.queue_pairs
    }

    /// Rings, with the control queue.
    pub fn queue_count(&self) -> u16 {
        2 * self.queue_pairs + 1
    }

    /// What ring `index` is for a driver; `None`: it has no business with it.
    pub fn role(&self, index: u16, driver: &DriverFeatures) -> Option<QueueRole> {
        let pairs = if driver.multi_queue { self.queue_pairs } else { 1 };
        // Frontends that keep the control queue to themselves may use pairs without MQ being negotiated.
        match index {
            _ if driver.control_queue && index == 2 * pairs => Some(QueueRole::Control),
            _ if index >= 2 * self.queue_pairs => None,
            _ if index.is_multiple_of(2) => Some(QueueRole::Receive(index / 2)),
            _ => Some(QueueRole::Transmit(index / 2)),
        }
    }

    /// Copies the configuration space from `offset` on; what is beyond its end stays as it is.
    pub fn read_config(&self, offset: u32, into: &mut [u8]) {
        let mut space = [0; CONFIG_BYTES];
        space[..6].copy_from_slice(&self.mac.0);
        space[6..8].copy_from_slice(&STATUS_LINK_UP.to_le_bytes());
        space[8..10].copy_from_slice(&self.queue_pairs.to_le_bytes());
        space[10..12].copy_from_slice(&self.mtu().to_le_bytes());
        let offset = offset.min(CONFIG_BYTES as u32) as usize;
        for (to, from) in into.iter_mut().zip(&space[offset..]) {
            *to = *from;
        }
    }

    /// The MTU in use: the port's, or a smaller one that the frontend asked for.
    pub fn mtu(&self) -> u16 {
        match self.frontend_mtu.load(Ordering::Relaxed) {
            0 => self.mtu,
            mtu => mtu.min(self.mtu),
        }
    }

    /// The frontend says what MTU the network may use.
    pub fn set_frontend_mtu(&self, mtu: u16) {
        self.frontend_mtu.store(mtu, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(queue_pairs: u16) -> Device {
        Device::new(MacAddr([2, 1, 2, 3, 4, 5]), 1500, queue_pairs)
    }

    #[test]
    fn any_part_of_the_configuration_space_can_be_read() {
        let device = device(4);
        let whole = [2, 1, 2, 3, 4, 5, 1, 0, 4, 0, 0xdc, 5];
        for offset in 0..20usize {
            for len in 0..20usize {
                let mut bytes = vec![0xee; len];
                device.read_config(offset as u32, &mut bytes);
                for (at, byte) in bytes.iter().enumerate() {
                    assert_eq!(*byte, *whole.get(offset + at).unwrap_or(&0xee), "{offset}+{at}");
                }
            }
        }
        device.read_config(u32::MAX, &mut [0; 4]);
    }

    #[test]
    fn several_queue_pairs_are_offered_only_where_they_are() {
        assert_eq!(device(1).features() & feature::MQ, 0);
        assert_ne!(device(2).features() & feature::MQ, 0);
    }

    #[test]
    fn the_control_queue_is_behind_the_pairs_that_were_negotiated() {
        let device = device(2);
        let driver = |bits| DriverFeatures::new(bits);
        let (plain, mq) = (driver(feature::CTRL_VQ), driver(feature::CTRL_VQ | feature::MQ));
        assert_eq!(device.role(2, &plain), Some(QueueRole::Control));
        assert_eq!(device.role(2, &mq), Some(QueueRole::Receive(1)));
        assert_eq!(device.role(3, &mq), Some(QueueRole::Transmit(1)));
        assert_eq!(device.role(4, &mq), Some(QueueRole::Control));
        assert_eq!(device.role(4, &driver(feature::MQ)), None);
        assert_eq!(device.role(2, &driver(0)), Some(QueueRole::Receive(1)));
    }

    #[test]
    fn the_header_is_short_for_legacy_drivers_only() {
        assert_eq!(DriverFeatures::new(0).header_bytes, 10);
        assert_eq!(DriverFeatures::new(feature::MRG_RXBUF).header_bytes, 12);
        assert_eq!(DriverFeatures::new(feature::VERSION_1).header_bytes, 12);
        let tso_alone = DriverFeatures::new(feature::GUEST_TSO4).guest_accepts;
        assert!(!tso_alone.tso4, "segmentation needs the checksum");
    }

    #[test]
    fn the_smaller_mtu_counts() {
        let device = device(1);
        device.set_frontend_mtu(9000);
        assert_eq!(device.mtu(), 1500);
        device.set_frontend_mtu(1400);
        assert_eq!(device.mtu(), 1400);
    }
}
