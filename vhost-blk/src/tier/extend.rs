//! Pools that become larger while they are at work: a device has grown, or another one joins.

use std::path::Path;

use telemetry::Problem;
use telemetry::check::Errors;
use tiering::{DeviceId, DeviceSpec as NewMember, Grown, Growth};
use uuid::Uuid;

use super::control::PoolHandle;
use super::device::OpenDevice;
use super::registry::{open_new, view};
use super::spec::{DeviceSpec, MoreDevices, NewDevice, PoolView, TierName};
use crate::disk;
use crate::volume::{Held, Volumes, chain_of};

/// One thing to be done.
enum Step {
    /// A device of the pool has so many bytes now.
    Larger { place: usize, size_bytes: u64 },
    /// Another device joins.
    Join { tier: TierName, device: OpenDevice },
}

impl Volumes {
    /// Makes a pool larger: devices that it has already become as large as is said, others join it. Writes that waited for
    /// space go on by themselves.
    ///
    /// # Errors
    /// The pool is not there or not open, or something is wrong with the devices: then nothing has changed, unless the
    /// message says so.
    pub fn extend_pool(&self, name: &str, more: &MoreDevices) -> Result<PoolView, Problem> {
        let mut held = self.lock();
        let pool = held.open_pool(name)?;
        let title = format!("the pool `{name}` cannot be extended");
        let steps = plan(&held, name, &pool, more)
            .map_err(|errors| Problem::invalid(title.clone(), errors.list().to_vec()))?;
        for (done, step) in steps.into_iter().enumerate() {
            self.carry_out(&mut held, name, &pool, step).map_err(|reason| {
                let before = if done > 0 { format!("; {done} before it are in use") } else { String::new() };
                Problem::conflict(title.clone()).detail(format!("{reason}{before}"))
            })?;
        }
        tracing::info!(pool = name, "extended");
        Ok(view(&held, &held.pools[name]))
    }

    fn carry_out(&self, held: &mut Held, name: &str, pool: &PoolHandle, step: Step) -> Result<(), String> {
        match step {
            Step::Larger { place, size_bytes } => {
                pool.grow(None, Growth::Larger { device: DeviceId(place as u8), size_bytes })?;
                if let Some(device) = devices_of(held, name).and_then(|devices| devices.get_mut(place)) {
                    device.size_bytes = size_bytes;
                }
                self.keep(held).map_err(|problem| problem.to_string())
            }
            Step::Join { tier, device } => {
                let (uuid, size_bytes) = (Uuid::new_v4(), device.size_bytes);
                let spec =
                    DeviceSpec { tier, path: device.path.clone(), size_bytes, uuid, adopted_bytes: None };
                let growth = Growth::Add(NewMember { uuid, tier: tier.into(), size_bytes });
                let joined = self.join(held, name, pool, spec, device.clone(), growth);
                joined.map(drop).map_err(|reason| {
                    device.unmake();
                    format!("{}: {reason}", device.path.display())
                })
            }
        }
    }

    /// A device joins a pool, as `growth` says; `spec` is how the list names it.
    pub(super) fn join(
        &self,
        held: &mut Held,
        name: &str,
        pool: &PoolHandle,
        spec: DeviceSpec,
        device: OpenDevice,
        growth: Growth,
    ) -> Result<Grown, String> {
        let uuid = spec.uuid;
        // Kept before it joins: a pool that has it must be able to find it.
        if let Some(devices) = devices_of(held, name) {
            devices.push(spec);
        }
        let kept = self.keep(held).map_err(|problem| problem.to_string());
        kept.and_then(|()| pool.grow(Some(device), growth)).inspect_err(|_| {
            if let Some(devices) = devices_of(held, name) {
                devices.retain(|device| device.uuid != uuid);
            }
            // The list may name it for longer than it is there, not the other way round.
            if let Err(problem) = self.keep(held) {
                tracing::warn!(pool = name, error = chain_of(&problem), "the list names a device too many");
            }
        })
    }
}

fn devices_of<'a>(held: &'a mut Held, name: &str) -> Option<&'a mut Vec<DeviceSpec>> {
    held.pools.get_mut(name).map(|pool| &mut pool.spec.devices)
}

/// What is to be done, or all that speaks against it.
fn plan(held: &Held, name: &str, pool: &PoolHandle, more: &MoreDevices) -> Result<Vec<Step>, Errors> {
    let mut errors = Errors::new();
    let mut steps = Vec::new();
    let mut joining = MoreDevices { force: more.force, ..MoreDevices::default() };
    let known = held.pools.get(name).map_or(&[][..], |pool| &pool.spec.devices);
    for (tier, list) in [(TierName::Hot, &more.hot), (TierName::Cold, &more.cold)] {
        for (at, device) in list.iter().enumerate() {
            let field = format!("{}[{at}]", tier.key());
            let path = device.path.display();
            match known.iter().position(|known| known.path == device.path) {
                Some(place) if known[place].tier != tier => {
                    let detail = format!("it is a {} device of this pool", known[place].tier.key());
                    errors.add(field, path, detail, "give it as that, or another device");
                }
                Some(place) => match larger(device, known[place].size_bytes) {
                    Ok(size_bytes) => steps.push(Step::Larger { place, size_bytes }),
                    Err(detail) => errors.add(field, path, detail, "give a larger size"),
                },
                None if tier == TierName::Hot => joining.hot.push(device.clone()),
                None => joining.cold.push(device.clone()),
            }
        }
    }
    match open_new(held, &joining) {
        Ok(devices) => {
            for (at, device) in devices.into_iter().enumerate() {
                let tier = if at < joining.hot.len() { TierName::Hot } else { TierName::Cold };
                let (its, ours) = (device.block_bytes(), pool.block_bytes());
                if its > ours {
                    let detail = format!("it has blocks of {its} bytes, and volumes of the pool of {ours}");
                    errors.add(tier.key(), device.path.display(), detail, "give another device");
                }
                steps.push(Step::Join { tier, device });
            }
        }
        Err(more) => errors.extend(more.list().to_vec()),
    }
    if errors.is_empty() {
        // Only now: what grows a file cannot be taken back.
        for step in &steps {
            if let Step::Larger { place, size_bytes } = step
                && let Err(detail) = stretch(&known[*place].path, *size_bytes)
            {
                errors.add(known[*place].tier.key(), known[*place].path.display(), detail, "");
            }
        }
    }
    if errors.is_empty() {
        return Ok(steps);
    }
    for step in &steps {
        if let Step::Join { device, .. } = step {
            device.unmake();
        }
    }
    Err(errors)
}

/// The new size of a device of the pool.
fn larger(device: &NewDevice, known_bytes: u64) -> Result<u64, String> {
    let actual = std::fs::File::open(&device.path).and_then(|file| disk::length(&file));
    let size_bytes = match device.size_bytes {
        Some(size_bytes) => size_bytes,
        None => actual.map_err(|error| format!("cannot measure it: {error}"))?,
    };
    if size_bytes > known_bytes {
        return Ok(size_bytes);
    }
    Err(format!("the pool uses {known_bytes} bytes of it already, not fewer than {size_bytes}"))
}

/// Makes a file as long as that; a device has to be.
fn stretch(path: &Path, size_bytes: u64) -> Result<(), String> {
    let file = std::fs::OpenOptions::new().write(true).open(path).map_err(|error| chain_of(&error))?;
    let actual = disk::length(&file).map_err(|error| format!("cannot measure it: {error}"))?;
    if actual >= size_bytes {
        return Ok(());
    }
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(format!("it has {actual} bytes, not {size_bytes}"));
    }
    let stretched = file.set_len(size_bytes).and_then(|()| file.sync_all());
    stretched.map_err(|error| format!("cannot make it {size_bytes} bytes long: {error}"))
}
