//! The operator's hand: pins, quotas, and how much of the hot tier a volume may and must have.
//!
//! A quota counts the units a volume *maps*, shared or not: what a clone shares with its image counts for both, so
//! the sum over a tenant's volumes never understates what they occupy. Copy-on-write therefore needs no quota, new units do.
//! A write that a quota forbids fails; it is not held like one in a full pool, for then a tenant could fill everybody's
//! queue with requests that wait for its operator.
//!
//! A hot slot counts for the volume whose request filled it. At its maximum a volume gives up its own oldest slot for a new
//! one; at or below its minimum none of its slots is taken for others.

use super::{Store, VolumeError};
use crate::checkpoint::{PIN_RANGES_MAX, TENANTS_MAX};
use crate::journal::{PinRange, Record, UNLIMITED, UnitLimits};
use crate::types::*;

/// What a volume may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Bytes it may map, counted in whole units; none for no limit.
    pub quota_bytes: Option<u64>,
    /// Bytes of the hot tier that others do not take from it.
    pub hot_min_bytes: u64,
    /// Bytes of the hot tier it may have; none for no limit.
    pub hot_max_bytes: Option<u64>,
    /// Who pays for it.
    pub tenant: Option<TenantId>,
}

impl Limits {
    pub(super) fn from_units(units: UnitLimits) -> Limits {
        Limits {
            quota_bytes: (units.quota != UNLIMITED).then(|| units.quota.saturating_mul(UNIT_BYTES)),
            hot_min_bytes: u64::from(units.hot_min) * UNIT_BYTES,
            hot_max_bytes: (units.hot_max != u32::MAX).then(|| u64::from(units.hot_max) * UNIT_BYTES),
            tenant: (units.tenant != TenantId::NONE).then_some(units.tenant),
        }
    }

    fn to_units(self) -> UnitLimits {
        let slots = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        UnitLimits {
            quota: self.quota_bytes.map_or(UNLIMITED, |bytes| bytes / UNIT_BYTES),
            hot_min: slots(self.hot_min_bytes.div_ceil(UNIT_BYTES)),
            hot_max: self.hot_max_bytes.map_or(u32::MAX, |bytes| slots(bytes / UNIT_BYTES)),
            tenant: self.tenant.unwrap_or(TenantId::NONE),
        }
    }
}

impl Store {
    /// Sets all limits of a volume. Less than it has now takes nothing away at once: it gets nothing new until it fits.
    pub fn set_limits(&mut self, id: VolumeId, limits: Limits) -> Result<(), VolumeError> {
        self.changeable()?;
        let known = self.map.volume(id).ok_or(VolumeError::NoVolume(id))?.limits;
        let units = limits.to_units();
        if units.hot_min > units.hot_max {
            let (min, max) = (limits.hot_min_bytes, limits.hot_max_bytes.unwrap_or(u64::MAX));
            return Err(VolumeError::HotBounds { min, max });
        }
        // A tenth of the hot tier is left to everybody.
        let total = u64::from(self.hot.slots()) * 9 / 10;
        let promised = self.map.hot_minimums() - u64::from(known.hot_min);
        if units.hot_min > known.hot_min && promised + u64::from(units.hot_min) > total {
            let free = total.saturating_sub(promised) * UNIT_BYTES;
            return Err(VolumeError::HotMinimum { wanted: limits.hot_min_bytes, free });
        }
        self.map.set_limits(id, units);
        self.note(Record::SetLimits { id, limits: units });
        Ok(())
    }

    /// Sets how many bytes the volumes of a tenant may map together; none for no limit.
    pub fn set_tenant_quota(&mut self, id: TenantId, quota_bytes: Option<u64>) -> Result<(), VolumeError> {
        self.changeable()?;
        let quota = quota_bytes.map_or(UNLIMITED, |bytes| bytes / UNIT_BYTES);
        let quotas = self.map.tenants().filter(|(_, tenant)| tenant.quota != UNLIMITED).count();
        if id == TenantId::NONE || (quotas >= TENANTS_MAX && self.map.tenant(id).quota == UNLIMITED) {
            return Err(VolumeError::Tenants(id));
        }
        self.map.set_tenant(id, quota);
        self.note(Record::SetTenant { id, quota });
        Ok(())
    }

    /// Bytes that the volumes of a tenant map together, and its quota.
    pub fn tenant_usage(&self, id: TenantId) -> (u64, Option<u64>) {
        let tenant = self.map.tenant(id);
        let quota = (tenant.quota != UNLIMITED).then(|| tenant.quota.saturating_mul(UNIT_BYTES));
        (tenant.mapped * UNIT_BYTES, quota)
    }

    /// Pins a volume, all of it: parts pinned otherwise are forgotten. Data that is elsewhere moves in the background.
    pub fn pin_volume(&mut self, id: VolumeId, pin: Pin) -> Result<(), VolumeError> {
        self.changeable()?;
        self.map.volume(id).ok_or(VolumeError::NoVolume(id))?;
        self.unmark_pinned(id);
        self.map.set_pin(id, pin);
        self.mark_pinned();
        self.carry_out_pins_of(id);
        self.note(Record::SetPin { id, pin });
        Ok(())
    }

    /// Pins a part of a volume, in whole units: those it touches.
    pub fn pin_range(&mut self, id: VolumeId, offset: u64, len: u64, pin: Pin) -> Result<(), VolumeError> {
        self.changeable()?;
        let volume = self.map.volume(id).ok_or(VolumeError::NoVolume(id))?;
        let end = offset.checked_add(len).filter(|end| len > 0 && *end <= volume.size_bytes);
        let Some(end) = end else {
            return Err(VolumeError::Range { id, offset, len, size_bytes: volume.size_bytes });
        };
        // One that splits another makes three of it.
        if self.map.pin_ranges() + 2 > PIN_RANGES_MAX {
            return Err(VolumeError::PinRanges(PIN_RANGES_MAX));
        }
        let first = offset / UNIT_BYTES;
        let range = PinRange { first, count: end.div_ceil(UNIT_BYTES) - first, pin };
        self.unmark_pinned(id);
        self.map.pin_range(id, range);
        self.mark_pinned();
        self.carry_out_pins_of(id);
        self.note(Record::PinRange { id, range });
        Ok(())
    }

    /// The parts of a volume with a pin of their own: first byte, bytes, pin.
    pub fn pin_ranges(&self, id: VolumeId) -> Vec<(u64, u64, Pin)> {
        let ranges = self.map.volume(id).map_or(&[][..], |volume| &volume.ranges[..]);
        ranges.iter().map(|r| (r.first * UNIT_BYTES, r.count * UNIT_BYTES, r.pin)).collect()
    }

    /// Takes the marks off the hot slots that a volume pinned. Others that share them mark them again.
    pub(super) fn unmark_pinned(&mut self, id: VolumeId) {
        self.mark_parts(id, false);
    }

    /// Marks the hot slots of all that is pinned hot: they are no victims.
    pub(super) fn mark_pinned(&mut self) {
        let hot = |volume: &crate::map::Volume| {
            volume.pin == Pin::Hot || volume.ranges.iter().any(|range| range.pin == Pin::Hot)
        };
        let ids: Vec<VolumeId> =
            self.map.volumes().filter(|(_, volume)| hot(volume)).map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.mark_parts(id, true));
    }

    fn mark_parts(&mut self, id: VolumeId, pinned: bool) {
        let Some(volume) = self.map.volume(id) else { return };
        for part in volume.hot_parts() {
            for (_, extent) in self.map.units_in(volume, part.first..part.end()) {
                if let Some(slot) = self.hot.find(extent) {
                    self.hot.slot_mut(slot).pinned = pinned;
                }
            }
        }
    }

    /// Whether a volume would have less than its minimum without one of its hot slots.
    pub(super) fn keeps_minimum(&self, id: VolumeId) -> bool {
        self.map.hot_minimums() > 0
            && self.map.volume(id).is_some_and(|volume| self.hot.held_by(id) <= volume.limits.hot_min)
    }

    /// Whether a volume may have one more hot slot. At its maximum its oldest one leaves for that, perhaps later.
    pub(super) fn may_heat(&mut self, id: VolumeId) -> bool {
        let Some(max) = self.map.volume(id).map(|volume| volume.limits.hot_max) else { return false };
        if self.hot.held_by(id) < max {
            return true;
        }
        let may_write = self.now_ns >= self.write_back_after_ns && !self.scratch_free.is_empty();
        let (hot, cold_writers) = (&self.hot, &self.cold_writers);
        let victim = hot.oldest_of(id, &mut |slot| {
            let state = hot.slot(slot);
            let quiet = state.extent().is_some_and(|extent| !cold_writers.contains_key(&extent));
            state.idle() && (state.is_clean() || (may_write && quiet))
        });
        match victim {
            Some(slot) if self.hot.slot(slot).is_clean() => self.demote(slot),
            Some(slot) => self.write_back(slot),
            None => {}
        }
        self.hot.held_by(id) < max
    }
}
