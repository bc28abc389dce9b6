//! The operator's hand: growth, adoption, quotas, bounds of the hot tier, pins; and what of it survives a reopening.

use crate::faults::{first_sector, fresh, request};
use crate::model::UNIT_SECTORS;
use crate::world::{self, ADOPTED, ADOPTED_SECTORS, World};
use tiering::{
    DeviceId, DeviceSpec, Explanation, GrowError, Grown, Growth, Limits, OpenError, Pin, Request,
    RequestError, RequestKind, TenantId, Tier, UNIT_BYTES, VolumeError, VolumeId,
};
use uuid::Uuid;

fn write(world: &mut World, id: VolumeId, unit: u64) -> Option<Result<(), RequestError>> {
    request(world, RequestKind::Write, id, unit, UNIT_SECTORS)
}

fn grown(world: &mut World) -> Result<Grown, GrowError> {
    world.settle(|_, _| {});
    world.store.next_grown().expect("it is done one way or the other")
}

fn new_cold(world: &mut World, units: u64) -> Growth {
    let disk = world::used_disk(units * UNIT_BYTES, 3);
    let size_bytes = disk.size();
    world.disks.0.push(disk);
    Growth::Add(DeviceSpec { uuid: Uuid::from_u128(77), tier: Tier::Cold, size_bytes })
}

/// The pool closed and opened again, as after a restart.
fn reopened(mut world: World) -> World {
    world.store.close();
    world.settle(|_, _| {});
    assert!(world.store.closed());
    World::new(world.disks, 1, 1, None).expect("it opens again")
}

#[test]
fn a_write_that_waits_for_space_goes_on_when_the_pool_has_grown() {
    for kind in 0..2 {
        let mut world = fresh();
        let slots = world.store.cold_slots().1;
        let id = world.store.create_volume((slots + 4) * UNIT_BYTES).unwrap();
        for unit in 0..slots {
            assert_eq!(write(&mut world, id, unit), Some(Ok(())));
        }
        assert_eq!(write(&mut world, id, slots), None, "no space: it waits");
        assert_eq!(world.store.waiting_for_space(), 1);
        let growth = match kind {
            0 => new_cold(&mut world, 4),
            _ => {
                world.disks.0[1].grow(3 * UNIT_BYTES);
                Growth::Larger { device: DeviceId(1), size_bytes: world.disks.0[1].size() }
            }
        };
        world.store.grow(growth).unwrap();
        assert_eq!(world.store.grow(growth), Err(GrowError::Running));
        let mut ended = Vec::new();
        world.settle(|_, done| ended.push(done.result));
        assert_eq!(ended, [Ok(())], "growth {kind}");
        let grown = world.store.next_grown().unwrap().unwrap();
        assert_eq!((grown.more_bytes, grown.volume), (3 * UNIT_BYTES, None));
        assert_eq!(world.store.waiting_for_space(), 0);
        assert_eq!(write(&mut world, id, slots + 1), Some(Ok(())));
        let mut again = reopened(world);
        assert_eq!(again.store.cold_slots(), (1, slots + 3));
        for unit in 0..slots + 2 {
            assert_eq!(first_sector(&mut again, id, unit), Ok(100 * (unit + 1)));
        }
    }
}

#[test]
fn a_hot_tier_that_grew_is_used_at_once() {
    let mut world = fresh();
    let before = world.store.hot_slots();
    world.disks.0[0].grow(5 * UNIT_BYTES);
    let size_bytes = world.disks.0[0].size();
    world.store.grow(Growth::Larger { device: DeviceId(0), size_bytes }).unwrap();
    assert_eq!(grown(&mut world).unwrap().more_bytes, 5 * UNIT_BYTES);
    assert_eq!(world.store.hot_slots(), (before.0 + 5, before.1 + 5));
    let id = world.store.create_volume(16 * UNIT_BYTES).unwrap();
    for unit in 0..u64::from(before.1) + 4 {
        assert_eq!(write(&mut world, id, unit), Some(Ok(())));
    }
    assert!(world.store.volumes().next().unwrap().hot_bytes > u64::from(before.1) * UNIT_BYTES);
    assert_eq!(reopened(world).store.hot_slots().1, before.1 + 5);
}

#[test]
fn growth_that_cannot_be_is_refused_and_changes_nothing() {
    let mut world = fresh();
    let size_bytes = world.disks.0[1].size();
    let larger = Growth::Larger { device: DeviceId(1), size_bytes };
    assert!(matches!(world.store.grow(larger), Err(GrowError::NotLarger { .. })));
    let nobody = Growth::Larger { device: DeviceId(9), size_bytes };
    assert_eq!(world.store.grow(nobody), Err(GrowError::NoDevice(DeviceId(9))));
    let spec = DeviceSpec { uuid: Uuid::nil(), tier: Tier::Cold, size_bytes: UNIT_BYTES };
    assert!(matches!(world.store.grow(Growth::Add(spec)), Err(GrowError::TooSmall { .. })));
    let adopt = Growth::Adopt { uuid: Uuid::nil(), data_bytes: 1000, size_bytes: 1 << 20 };
    assert_eq!(world.store.grow(adopt), Err(GrowError::Size(1000)));
    // More hot slots need room in the checkpoints that volumes were promised.
    for _ in 0..12 {
        world.store.create_volume(UNIT_BYTES).unwrap();
    }
    let spec = DeviceSpec { uuid: Uuid::nil(), tier: Tier::Hot, size_bytes: 1 << 30 };
    let refused = world.store.grow(Growth::Add(spec)).unwrap_err();
    assert!(matches!(refused, GrowError::Metadata { wanted: 12, .. }), "{refused}");
    assert_eq!(reopened(world).store.devices().count(), 2);
}

#[test]
fn a_device_that_fails_while_it_joins_does_not_hurt_the_pool() {
    for adopt in [false, true] {
        let mut world = fresh();
        let id = world.store.create_volume(4 * UNIT_BYTES).unwrap();
        let growth = match adopt {
            false => new_cold(&mut world, 4),
            true => {
                let disk = world::adoptable_disk(1);
                let size_bytes = disk.size();
                world.disks.0.push(disk);
                Growth::Adopt { uuid: Uuid::nil(), data_bytes: ADOPTED_SECTORS * 512, size_bytes }
            }
        };
        world.disks.0[2].faults().write_in = Some(2);
        world.store.grow(growth).unwrap();
        assert_eq!(grown(&mut world), Err(GrowError::Io(DeviceId(2))));
        assert_eq!(write(&mut world, id, 0), Some(Ok(())));
        assert_eq!((world.store.devices().count(), world.store.volumes().count()), (2, 1));
        // The device may stand in the caller's list all the same.
        let mut again = reopened(world);
        assert_eq!(first_sector(&mut again, id, 0), Ok(100));
        again.store.grow(growth).unwrap();
        assert_eq!(grown(&mut again).unwrap().volume.is_some(), adopt);
    }
}

fn adopted() -> (World, VolumeId) {
    let mut world = fresh();
    let disk = world::adoptable_disk(1);
    let size_bytes = disk.size();
    world.disks.0.push(disk);
    let adopt = Growth::Adopt { uuid: Uuid::nil(), data_bytes: ADOPTED_SECTORS * 512, size_bytes };
    world.store.grow(adopt).unwrap();
    assert_eq!(world.store.volumes().count(), 0, "nobody sees it before it is whole");
    let id = grown(&mut world).unwrap().volume.unwrap();
    (world, id)
}

fn image_of(world: &World) -> Vec<u64> {
    let mut bytes = vec![0; ADOPTED_SECTORS as usize * 512];
    world.disks.0[2].visible().read(0, &mut bytes);
    bytes.chunks_exact(512).map(world::number_of).collect()
}

#[test]
fn an_adopted_device_is_its_volume_and_stays_an_image_of_it() {
    let (mut world, id) = adopted();
    let before: Vec<u64> = (ADOPTED..ADOPTED + ADOPTED_SECTORS).collect();
    assert_eq!(world.read_volume(id, ADOPTED_SECTORS), Ok(before.clone()));
    assert_eq!(
        world.disks.0[2].bytes_written,
        ADOPTED_SECTORS * 512 + 3 * 4096,
        "only superblocks were written"
    );
    // Discarded and written again, it is at home again; written over, it is after a drain.
    assert_eq!(request(&mut world, RequestKind::Discard, id, 0, UNIT_SECTORS), Some(Ok(())));
    world.store.checkpoint();
    world.settle(|_, _| {});
    assert_eq!(write(&mut world, id, 0), Some(Ok(())));
    assert_eq!(request(&mut world, RequestKind::Write, id, 1, 8), Some(Ok(())));
    world.store.drain(true);
    world.settle(|_, _| {});
    let now = world.read_volume(id, ADOPTED_SECTORS).unwrap();
    assert_ne!(now, before);
    assert_eq!(image_of(&world), now);
    let mut again = reopened(world);
    assert!(again.store.devices().nth(2).unwrap().adopted);
    assert_eq!(again.read_volume(id, ADOPTED_SECTORS), Ok(now));
}

/// What the device does not hold as its volume has it is told; the volume's deletion leaves the device as it is.
#[test]
fn an_adopted_device_outlives_its_volume_unchanged() {
    let (mut world, id) = adopted();
    let away = |world: &World| world.store.units_away(id, 0, u64::MAX).unwrap();
    let wait = |world: &mut World| {
        for _ in 0..3 {
            world.store.checkpoint();
            world.settle(|_, _| {});
        }
    };
    assert_eq!(away(&world), Some(0));
    assert_eq!(request(&mut world, RequestKind::Write, id, 1, 8), Some(Ok(())));
    assert_eq!(away(&world), Some(1), "it is hot only");
    let copy = world.store.fork_volume(id, true).unwrap();
    wait(&mut world);
    assert_eq!(away(&world), Some(2), "a copy could change them");
    assert_eq!(world.store.units_away(copy, 0, u64::MAX), Ok(None));
    world.store.delete_volume(copy).unwrap();
    wait(&mut world);
    assert_eq!(request(&mut world, RequestKind::Discard, id, 0, UNIT_SECTORS), Some(Ok(())));
    assert_eq!(away(&world), Some(2), "the discarded unit still has its old bytes");
    world.store.drain(true);
    wait(&mut world);
    assert_eq!(away(&world), Some(0));
    let image = image_of(&world);
    world.store.delete_volume(id).unwrap();
    wait(&mut world);
    assert_eq!(image_of(&world), image);
    let mut again = reopened(world);
    wait(&mut again);
    assert_eq!(image_of(&again), image);
}

#[test]
fn nobody_else_gets_space_on_an_adopted_device() {
    let (mut world, id) = adopted();
    assert_eq!(request(&mut world, RequestKind::Discard, id, 0, UNIT_SECTORS), Some(Ok(())));
    world.store.checkpoint();
    world.settle(|_, _| {});
    let (free, slots) = world.store.cold_slots();
    assert_eq!(free, slots - 2);
    let other = world.store.create_volume((free + 1) * UNIT_BYTES).unwrap();
    for unit in 0..free {
        assert_eq!(write(&mut world, other, unit), Some(Ok(())));
    }
    assert_eq!(write(&mut world, other, free), None, "what is free is not for everybody");
    let tag = Request { tag: 2, volume: id, kind: RequestKind::WriteZeroes, offset: 512, len: 512 };
    assert!(world.submit(tag));
    world.settle(|_, done| assert_eq!(done.result, Ok(())));
    // A guest's bytes at the beginning of the device may look like superblocks: nobody looks there.
    let forged: Vec<u8> = {
        let mut bytes = vec![0; 4096];
        world.disks.0[1].visible().read(0, &mut bytes);
        bytes
    };
    let mut disks = world.disks.clone();
    disks.0[2].write(0, &forged).unwrap();
    assert!(world::open(&mut disks, 1).is_ok());
}

#[test]
fn a_device_that_was_cut_short_is_refused() {
    let world = reopened(fresh());
    let mut disks = world.disks;
    let mut short = simkit::Image::new(disks.0[1].size() - UNIT_BYTES);
    let mut bytes = vec![0; short.size() as usize];
    disks.0[1].visible().read(0, &mut bytes);
    short.write(0, &bytes);
    let needed = disks.0[1].size();
    disks.0[1] = simkit::SimDisk::from_image(short, 1);
    assert_eq!(world::open(&mut disks, 2).map(|_| ()).unwrap_err(), OpenError::Short { device: 1, needed });
}

#[test]
fn quotas_of_volumes_and_tenants_bind_and_are_remembered() {
    let mut world = fresh();
    let [a, b] = [0, 1].map(|_| world.store.create_volume(8 * UNIT_BYTES).unwrap());
    let tenant = Some(TenantId(5));
    let two = Some(2 * UNIT_BYTES + 5);
    world.store.set_limits(a, Limits { quota_bytes: two, tenant, ..Limits::default() }).unwrap();
    world.store.set_limits(b, Limits { tenant, ..Limits::default() }).unwrap();
    world.store.set_tenant_quota(TenantId(5), Some(3 * UNIT_BYTES)).unwrap();
    assert_eq!(world.store.set_tenant_quota(TenantId::NONE, None), Err(VolumeError::Tenants(TenantId::NONE)));
    let (full, fits) = (Some(Err(RequestError::Quota)), Some(Ok(())));
    assert_eq!([0, 1, 2].map(|unit| write(&mut world, a, unit)), [fits, fits, full]);
    assert_eq!([0, 1].map(|unit| write(&mut world, b, unit)), [fits, full]);
    assert_eq!(write(&mut world, a, 1), fits, "what is mapped may be written over");
    assert_eq!(world.store.tenant_usage(TenantId(5)), (3 * UNIT_BYTES, Some(3 * UNIT_BYTES)));
    assert!(matches!(world.store.fork_volume(a, true), Err(VolumeError::Quota { free: 0, .. })));
    let mut world = World::new(world.disks, 1, 1, None).expect("it opens after the death of the process");
    assert_eq!([write(&mut world, a, 3), write(&mut world, b, 1)], [full, full]);
    assert_eq!(request(&mut world, RequestKind::Discard, a, 0, UNIT_SECTORS), fits);
    assert_eq!([write(&mut world, b, 1), write(&mut world, a, 0)], [fits, full]);
    world.store.delete_volume(a).unwrap();
    let mut world = reopened(world);
    assert_eq!(world.store.tenant_usage(TenantId(5)).0, 2 * UNIT_BYTES);
    assert_eq!([write(&mut world, b, 2), write(&mut world, b, 3)], [fits, full]);
}

#[test]
fn a_volume_keeps_its_share_of_the_hot_tier_and_takes_no_more() {
    let mut world = fresh();
    let slots = u64::from(world.store.hot_slots().1);
    let [kept, bound, other] = [0, 1, 2].map(|_| world.store.create_volume(8 * UNIT_BYTES).unwrap());
    let minimum = Limits { hot_min_bytes: 2 * UNIT_BYTES, ..Limits::default() };
    let too_much = Limits { hot_min_bytes: slots * UNIT_BYTES, ..Limits::default() };
    assert!(matches!(world.store.set_limits(kept, too_much), Err(VolumeError::HotMinimum { .. })));
    let upside_down = Limits { hot_max_bytes: Some(UNIT_BYTES), ..minimum };
    assert!(matches!(world.store.set_limits(kept, upside_down), Err(VolumeError::HotBounds { .. })));
    world.store.set_limits(kept, minimum).unwrap();
    world.store.set_limits(bound, Limits { hot_max_bytes: Some(UNIT_BYTES), ..Limits::default() }).unwrap();
    let hot = |world: &World, id| {
        world.store.volumes().find(|info| info.id == id).map(|info| info.hot_bytes / UNIT_BYTES).unwrap()
    };
    for unit in 0..2 {
        assert_eq!(write(&mut world, kept, unit), Some(Ok(())));
    }
    for unit in 0..4 {
        assert_eq!(write(&mut world, bound, unit), Some(Ok(())));
        assert!(hot(&world, bound) <= 1);
    }
    for round in 0..3 {
        for unit in 0..8 {
            assert_eq!(write(&mut world, other, unit), Some(Ok(())), "round {round}");
        }
    }
    assert_eq!(hot(&world, kept), 2);
    let mut world = World::new(world.disks, 1, 1, None).expect("it opens after the death of the process");
    for unit in 0..8 {
        assert_eq!(write(&mut world, other, unit), Some(Ok(())));
    }
    assert_eq!(hot(&world, kept), 2, "the minimum survives a reopening, and whose the slots are");
    for unit in 0..2 {
        assert_eq!(first_sector(&mut world, kept, unit), Ok(100 * (unit + 1)));
    }
}

#[test]
fn pinned_ranges_stay_and_are_remembered() {
    let mut world = fresh();
    let id = world.store.create_volume(16 * UNIT_BYTES).unwrap();
    world.store.pin_range(id, UNIT_BYTES + 5, 10, Pin::Hot).unwrap();
    world.store.pin_range(id, 4 * UNIT_BYTES, 2 * UNIT_BYTES, Pin::Cold).unwrap();
    assert!(matches!(
        world.store.pin_range(id, 16 * UNIT_BYTES, 1, Pin::Hot),
        Err(VolumeError::Range { .. })
    ));
    let is_hot = |world: &World, unit: u64| {
        matches!(world.store.explain(id, unit * UNIT_BYTES), Ok(Explanation::Hot { .. }))
    };
    for _ in 0..2 {
        for unit in (0..16).chain(6..16) {
            assert_eq!(write(&mut world, id, unit), Some(Ok(())));
        }
        assert!(is_hot(&world, 1) && !is_hot(&world, 4) && !is_hot(&world, 5));
        let ranges = [(UNIT_BYTES, UNIT_BYTES, Pin::Hot), (4 * UNIT_BYTES, 2 * UNIT_BYTES, Pin::Cold)];
        assert_eq!(world.store.pin_ranges(id), ranges);
        world = reopened(world);
    }
    // A whole pin forgets the parts; unpinned, the slot goes when others are wanted.
    world.store.pin_range(id, 0, 16 * UNIT_BYTES, Pin::Auto).unwrap();
    assert!(world.store.pin_ranges(id).is_empty());
    world.store.pin_volume(id, Pin::Auto).unwrap();
    for unit in (4..16).chain(4..16) {
        assert_eq!(write(&mut world, id, unit), Some(Ok(())));
    }
    assert!(!is_hot(&world, 1));
}

#[test]
fn a_copy_does_not_push_out_what_it_copies() {
    let mut world = fresh();
    let id = world.store.create_volume(4 * UNIT_BYTES).unwrap();
    assert_eq!(write(&mut world, id, 0), Some(Ok(())));
    world.store.demote_unit(id, 0);
    world.settle(|_, _| {});
    assert!(
        matches!(world.store.explain(id, 0), Ok(Explanation::Hot { dirty: 0, .. })),
        "clean, and its only slot"
    );
    world.store.set_limits(id, Limits { hot_max_bytes: Some(UNIT_BYTES), ..Limits::default() }).unwrap();
    let snapshot = world.store.fork_volume(id, false).unwrap();
    world.settle(|_, _| {});
    assert_eq!(request(&mut world, RequestKind::Write, id, 0, 8), Some(Ok(())));
    let source = world.store.explain(snapshot, 0);
    assert!(matches!(source, Ok(Explanation::Hot { .. })), "the copy needed it: {source:?}");
    let sectors = |world: &mut World, id| world.read_volume(id, UNIT_SECTORS).unwrap();
    assert_eq!(sectors(&mut world, snapshot)[8..], sectors(&mut world, id)[8..]);
}
