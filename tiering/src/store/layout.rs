//! Which slot is where: the devices of the pool and their ranges of slots.

use super::{Device, Store};
use crate::superblock::Segment;
use crate::types::*;
use uuid::Uuid;

/// A range of slots and where it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    first: u64,
    slots: u64,
    device: DeviceId,
    offset: u64,
}

/// The slots of both tiers.
#[derive(Debug, Default)]
pub(super) struct Layout {
    hot: Vec<Place>,
    cold: Vec<Place>,
}

impl Layout {
    pub fn of(devices: &[Device]) -> Layout {
        let mut layout = Layout::default();
        for (at, device) in devices.iter().enumerate() {
            let places = match device.tier {
                Tier::Hot => &mut layout.hot,
                Tier::Cold => &mut layout.cold,
            };
            let mut offset = device.block.data_offset;
            for Segment { first, slots } in device.block.segments.iter().copied() {
                places.push(Place { first, slots, device: DeviceId(at as u8), offset });
                offset += slots * UNIT_BYTES;
            }
        }
        layout.hot.sort_unstable_by_key(|place| place.first);
        layout.cold.sort_unstable_by_key(|place| place.first);
        layout
    }

    fn places(&self, tier: Tier) -> &[Place] {
        match tier {
            Tier::Hot => &self.hot,
            Tier::Cold => &self.cold,
        }
    }

    /// Slots of a tier.
    pub fn slots(&self, tier: Tier) -> u64 {
        self.places(tier).last().map_or(0, |last| last.first + last.slots)
    }

    pub fn locate(&self, tier: Tier, slot: u64) -> (DeviceId, u64) {
        let places = self.places(tier);
        let at = places.partition_point(|place| place.first <= slot);
        let place = &places[at.checked_sub(1).expect("a slot is on some device")];
        assert!(slot - place.first < place.slots, "slot {slot} is on no device");
        (place.device, place.offset + (slot - place.first) * UNIT_BYTES)
    }
}

/// What is known about a device of an open pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its place in the pool.
    pub id: DeviceId,
    /// Its name.
    pub uuid: Uuid,
    /// Its tier.
    pub tier: Tier,
    /// It is there.
    pub present: bool,
    /// It was adopted: it holds one volume and nothing else.
    pub adopted: bool,
    /// Bytes for data.
    pub data_bytes: u64,
    /// Bytes of the device that the pool uses, from its beginning.
    pub used_bytes: u64,
}

impl Store {
    /// The devices in the pool's order: as they were given to `format`, then as they were added.
    pub fn devices(&self) -> impl Iterator<Item = DeviceInfo> {
        self.devices.iter().enumerate().map(|(at, device)| {
            let (member, slots) = (device.block.member(), device.block.slots());
            let data_bytes = slots * UNIT_BYTES;
            DeviceInfo {
                id: DeviceId(at as u8),
                uuid: member.uuid,
                tier: member.tier,
                present: device.present,
                adopted: member.superblocks_at != 0,
                data_bytes,
                used_bytes: device.block.data_bytes_end(),
            }
        })
    }

    /// The pool's name.
    pub fn pool(&self) -> Uuid {
        self.devices[0].block.pool
    }

    /// Devices of the hot tier, then of the cold one: the order in which superblocks are written.
    pub(super) fn hot_first(&self) -> Vec<usize> {
        let of = |tier| (0..self.devices.len()).filter(move |at| self.devices[*at].tier == tier);
        of(Tier::Hot).chain(of(Tier::Cold)).collect()
    }
}
