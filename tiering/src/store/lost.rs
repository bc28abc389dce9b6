//! Devices that are lost while the pool is at work, and what is lost with them.
//!
//! One failed operation is no lost device: the superblock is read, and if that fails too the device counts as lost. The pool
//! is read-only from then on. Reads go on where another copy is: clean data of a lost hot device comes from cold, hot
//! data of a lost cold device from hot. The rest gives I/O errors and is listed. Nothing is written to any device, so when the
//! device comes back the pool opens as after a power cut, with everything that was flushed.

use super::{Owner, Store};
use crate::superblock::SUPERBLOCK_BYTES;
use crate::types::*;

/// Data that cannot be read: its only copy was on a lost device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// The volume.
    pub volume: VolumeId,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// Lost ranges for people: the first few, and how many more.
#[derive(Debug, Clone, Copy)]
pub struct Ranges<'a>(pub &'a [Lost]);

impl std::fmt::Display for Ranges<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SHOWN: usize = 8;
        for (at, Lost { volume, offset, len }) in self.0.iter().take(SHOWN).enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(out, "{comma}volume {} bytes {offset}..{}", volume.0, offset + len)?;
        }
        match self.0.len() {
            0 => write!(out, "none"),
            all if all > SHOWN => {
                let bytes: u64 = self.0.iter().map(|lost| lost.len).sum();
                write!(out, " and {} ranges more, {bytes} bytes together", all - SHOWN)
            }
            _ => Ok(()),
        }
    }
}

impl Store {
    /// An operation of the device failed: is it still there?
    pub(super) fn suspect(&mut self, device: DeviceId) {
        let state = &mut self.devices[usize::from(device.0)];
        if state.probed || state.lost || !state.present {
            return;
        }
        let Some(scratch) = self.scratch_free.pop() else { return };
        state.probed = true;
        let offset = state.block.member().superblocks_at;
        let (len, buffer) = (SUPERBLOCK_BYTES as u32, Buffer::Scratch { index: scratch, offset: 0 });
        self.emit(device, ActionKind::Read, offset, len, buffer, Owner::Probe { scratch });
    }

    pub(super) fn probed(&mut self, device: DeviceId, scratch: u32, failed: bool) {
        self.scratch_free.push(scratch);
        self.devices[usize::from(device.0)].probed = false;
        if failed {
            self.lose(device);
        }
        if let Some(part) = self.scratch_waiters.pop_front() {
            self.dispatch(part);
        }
    }

    /// The device is gone, as the caller or a probe found: the pool is read-only, see the module.
    pub fn device_lost(&mut self, device: DeviceId) {
        self.lose(device);
        self.pump();
    }

    fn lose(&mut self, device: DeviceId) {
        let state = &mut self.devices[usize::from(device.0)];
        if std::mem::replace(&mut state.lost, true) {
            return;
        }
        state.present = false;
        if state.tier == Tier::Cold {
            return self.fail("a cold device is lost");
        }
        self.hot_lost = true;
        for slot in 0..self.hot.slots() {
            let state = self.hot.slot(slot);
            let Some(extent) =
                state.extent().filter(|_| !state.is_clean() && self.is_lost(Tier::Hot, slot.into()))
            else {
                continue;
            };
            let pages = if state.fresh { ALL_PAGES } else { state.dirty };
            self.lost.insert(extent, pages);
        }
        self.fail("a hot device is lost");
    }

    /// Whether a slot was on a lost device.
    pub(super) fn is_lost(&self, tier: Tier, slot: u64) -> bool {
        self.devices[usize::from(self.locate(tier, slot).0.0)].lost
    }

    /// Devices that were lost while the pool was at work.
    pub fn lost_devices(&self) -> impl Iterator<Item = DeviceId> {
        let lost = self.devices.iter().enumerate().filter(|(_, device)| device.lost);
        lost.map(|(at, _)| DeviceId(at as u8))
    }

    /// Why the pool takes no writes, on which device, and what cannot be read, in one text for people.
    pub fn fault_report(&self) -> Option<String> {
        let why = self.read_only?;
        let mut text = format!("the pool is read-only: {why}");
        for device in self.lost_devices() {
            let uuid = self.devices[usize::from(device.0)].block.member().uuid;
            text += &format!("; device {} ({uuid}) is lost", device.0);
        }
        let lost = self.lost();
        if !lost.is_empty() {
            text += &format!("; these ranges cannot be read: {}", Ranges(&lost));
        }
        Some(text)
    }

    fn lost_pages(&self, extent: Extent, cold_lost: bool) -> PageMask {
        let known = self.lost.get(&extent).copied().unwrap_or(0);
        if !cold_lost || !self.is_lost(Tier::Cold, extent) {
            return known;
        }
        let hot = self.hot.find(extent).filter(|slot| !self.is_lost(Tier::Hot, u64::from(*slot)));
        known
            | hot.map_or(ALL_PAGES, |slot| match self.hot.slot(slot).fresh {
                true => 0,
                false => !self.hot.slot(slot).valid,
            })
    }

    /// What cannot be read because its only copy was on a lost device, by volume, in order.
    pub fn lost(&self) -> Vec<Lost> {
        let mut found: Vec<Lost> = Vec::new();
        let cold_lost = self.devices.iter().any(|device| device.lost && device.tier == Tier::Cold);
        if self.lost.is_empty() && !cold_lost {
            return found;
        }
        for (id, volume) in self.map.volumes() {
            for (unit, extent) in self.map.units_in(volume, 0..volume.units()) {
                for (first, count) in runs(self.lost_pages(extent, cold_lost)) {
                    let offset = unit * UNIT_BYTES + u64::from(first) * PAGE_BYTES;
                    let len = (u64::from(count) * PAGE_BYTES).min(volume.size_bytes.saturating_sub(offset));
                    match found.last_mut() {
                        Some(last) if last.volume == id && last.offset + last.len == offset => {
                            last.len += len
                        }
                        _ if len > 0 => found.push(Lost { volume: id, offset, len }),
                        _ => {}
                    }
                }
            }
        }
        found
    }
}
