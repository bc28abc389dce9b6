//! Lost, damaged and returning devices, and a full pool.

use crate::model::UNIT_SECTORS;
use crate::world::{self, World};
use simkit::SimDisk;
use tiering::{Explanation, Lost, OpenError, Request, RequestError, RequestKind, UNIT_BYTES, VolumeId};

pub fn fresh() -> World {
    let mut disks = world::used_disks(1);
    world::format(&mut disks);
    World::new(disks, 1, 1, None).expect("a new pool opens")
}

/// One request, driven to its end; `None` if it waits for something that does not come.
pub fn request(
    world: &mut World,
    kind: RequestKind,
    id: VolumeId,
    unit: u64,
    sectors: u64,
) -> Option<Result<(), RequestError>> {
    let len = (sectors * 512) as u32;
    if kind == RequestKind::Write {
        world.buffers[1] =
            (0..sectors).flat_map(|at| world::sector_of(100 * (unit + 1) + at % 100)).collect();
    }
    assert!(world.submit(Request { tag: 1, volume: id, kind, offset: unit * UNIT_BYTES, len }));
    let mut result = None;
    world.settle(|_, done| result = Some(done.result));
    result
}

pub fn first_sector(world: &mut World, id: VolumeId, unit: u64) -> Result<u64, String> {
    Ok(world.read_volume(id, (unit + 1) * UNIT_SECTORS)?[(unit * UNIT_SECTORS) as usize])
}

/// A volume of four written units; with `drained` nothing is only hot. The pool is closed.
fn closed_pool(drained: bool) -> (World, VolumeId) {
    let mut world = fresh();
    let id = world.store.create_volume(4 * UNIT_BYTES).unwrap();
    for unit in 0..4 {
        assert_eq!(request(&mut world, RequestKind::Write, id, unit, UNIT_SECTORS), Some(Ok(())));
    }
    if drained {
        world.store.drain(true);
        world.settle(|_, _| {});
        assert_eq!(world.store.dirty_slots(), 0);
    }
    world.store.close();
    world.settle(|_, _| {});
    assert!(world.store.closed());
    assert_eq!(request(&mut world, RequestKind::Write, id, 0, 8), Some(Err(RequestError::ReadOnly)));
    (world, id)
}

#[test]
fn a_drained_and_closed_pool_needs_no_hot_tier() {
    let (world, id) = closed_pool(true);
    let mut disks = world.disks.clone();
    disks.0[0].faults().gone = true;
    let mut cold = World::new(disks, 2, 1, None).expect("cold alone is whole");
    for unit in 0..4 {
        assert_eq!(first_sector(&mut cold, id, unit), Ok(100 * (unit + 1)));
    }
    assert!(cold.store.lost().is_empty());
    assert_eq!(request(&mut cold, RequestKind::Write, id, 0, 8), Some(Err(RequestError::ReadOnly)));
}

#[test]
fn a_lost_hot_tier_with_dirty_data_needs_degraded_and_names_what_is_gone() {
    let (world, id) = closed_pool(false);
    let dirty = world.store.dirty_slots();
    assert!(dirty > 0);
    let mut disks = world.disks.clone();
    disks.0[0].faults().gone = true;
    let refused = world::open(&mut disks.clone(), 2).map(|_| ()).unwrap_err();
    let mut cold = World::with(disks, 2, 1, None, true).expect("degraded opens");
    let lost: Vec<Lost> = cold.store.lost();
    assert_eq!(lost.iter().map(|lost| lost.len).sum::<u64>(), u64::from(dirty) * UNIT_BYTES);
    assert_eq!(refused, OpenError::HotMissing { units: dirty as usize, lost: lost.clone() });
    let first = format!("volume {} bytes {}..{}", id.0, lost[0].offset, lost[0].offset + lost[0].len);
    assert!(refused.to_string().contains(&first), "{refused} does not name {first}");
    for unit in 0..4 {
        let there = |lost: &Lost| (lost.offset..lost.offset + lost.len).contains(&(unit * UNIT_BYTES));
        let gone = lost.iter().any(|lost| lost.volume == id && there(lost));
        let read = request(&mut cold, RequestKind::Read, id, unit, 0);
        assert_eq!(read, Some(Err(RequestError::Range)), "nothing to read is an error of its own");
        cold.buffers[1] = vec![0; 512];
        let read = request(&mut cold, RequestKind::Read, id, unit, 1);
        assert_eq!(read, Some(if gone { Err(RequestError::Io) } else { Ok(()) }), "unit {unit}");
        if !gone {
            assert_eq!(world::number_of(&cold.buffers[1]), 100 * (unit + 1));
        }
    }
}

#[test]
fn an_old_copy_of_a_device_is_refused() {
    let world = fresh();
    let old = world.disks.0[0].visible().clone();
    let mut disks = world.disks.clone();
    for boot in 2..4 {
        world::open(&mut disks, boot).expect("it opens again and again");
    }
    disks.0[0] = SimDisk::from_image(old, 1);
    let refused = world::open(&mut disks, 9).map(|_| ()).unwrap_err();
    assert!(matches!(refused, OpenError::Outdated { device: 0, its_epoch: 1, epoch: 3 }), "{refused}");
}

#[test]
fn strangers_and_swapped_devices_are_refused() {
    let world = fresh();
    let mut swapped = world.disks.clone();
    swapped.0.swap(0, 1);
    assert!(matches!(world::open(&mut swapped, 2), Err(OpenError::Foreign { device: 0, place: 1, .. })));
    let mut blank = world.disks.clone();
    blank.0[1].write(0, &[0; 8192]).unwrap();
    assert!(matches!(world::open(&mut blank, 2), Err(OpenError::NotAMember(1))));
}

#[test]
fn a_damaged_checkpoint_is_read_from_the_other_tier() {
    let (world, id) = closed_pool(false);
    let mut disks = world.disks.clone();
    // Both areas of the hot disk lie between its journal and its slots.
    disks.0[0].write(8192 + 64 * 4096, &vec![0x55; 384 << 10]).unwrap();
    let mut again = World::new(disks, 2, 1, None).expect("the cold tier has the same checkpoint");
    for unit in 0..4 {
        assert_eq!(first_sector(&mut again, id, unit), Ok(100 * (unit + 1)));
    }
}

#[test]
fn an_unreadable_clean_hot_page_is_read_from_cold() {
    let (world, id) = closed_pool(true);
    let mut again = World::new(world.disks.clone(), 1, 1, None).unwrap();
    let hot =
        (0..4).find(|unit| matches!(again.store.explain(id, unit * UNIT_BYTES), Ok(Explanation::Hot { .. })));
    let unit = hot.expect("draining demotes nothing by itself");
    for offset in (0..again.disks.0[0].size()).step_by(512) {
        again.disks.0[0].add_latent_error(offset);
    }
    again.buffers[1] = vec![0; 512];
    assert_eq!(request(&mut again, RequestKind::Read, id, unit, 1), Some(Ok(())));
    assert_eq!(world::number_of(&again.buffers[1]), 100 * (unit + 1));
}

#[test]
fn a_full_pool_holds_new_data_lets_overwrites_pass_and_goes_on_after_a_discard() {
    let mut world = fresh();
    let (_, slots) = world.store.cold_slots();
    let id = world.store.create_volume((slots + 1) * UNIT_BYTES).unwrap();
    for unit in 0..slots {
        assert_eq!(request(&mut world, RequestKind::Write, id, unit, 8), Some(Ok(())), "unit {unit}");
    }
    assert_eq!(request(&mut world, RequestKind::Write, id, slots, 8), None, "no space: it waits");
    let tag = |tag, kind, unit: u64| Request {
        tag,
        volume: id,
        kind,
        offset: unit * UNIT_BYTES,
        len: UNIT_BYTES as u32,
    };
    world.buffers[2] = vec![7; UNIT_BYTES as usize];
    assert!(world.submit(tag(2, RequestKind::Write, 0)));
    let mut ended = Vec::new();
    world.settle(|_, done| ended.push((done.tag, done.result)));
    assert_eq!(ended, [(2, Ok(()))], "an overwrite needs no space");
    assert!(world.store.stats().full_waits > 0);
    assert!(world.submit(tag(3, RequestKind::Discard, 1)));
    ended.clear();
    world.settle(|_, done| ended.push((done.tag, done.result)));
    ended.sort_by_key(|(tag, _)| *tag);
    assert_eq!(ended, [(1, Ok(())), (3, Ok(()))], "the discard's space serves the waiting write");
}

fn written(units: u64) -> (World, VolumeId) {
    let mut world = fresh();
    let id = world.store.create_volume(16 * UNIT_BYTES).unwrap();
    for unit in 0..units {
        assert_eq!(request(&mut world, RequestKind::Write, id, unit, UNIT_SECTORS), Some(Ok(())));
    }
    assert_eq!(request(&mut world, RequestKind::Flush, id, 0, 0), Some(Ok(())));
    (world, id)
}

fn read(world: &mut World, id: VolumeId, unit: u64) -> Option<Result<(), RequestError>> {
    world.buffers[1] = vec![0; 512];
    request(world, RequestKind::Read, id, unit, 1)
}

/// Two units, the first clean on both tiers, the second only hot.
fn clean_and_dirty() -> (World, VolumeId) {
    let (mut world, id) = written(2);
    // The first call writes it back: hot and clean.
    world.store.demote_unit(id, 0);
    world.settle(|_, _| {});
    assert!(matches!(world.store.explain(id, 0), Ok(Explanation::Hot { dirty: 0, .. })));
    assert!(matches!(world.store.explain(id, UNIT_BYTES), Ok(Explanation::Hot { dirty: 1.., .. })));
    assert_eq!(world.store.dirty_slots(), 1);
    (world, id)
}

#[test]
fn a_hot_device_lost_at_work_leaves_what_is_clean_and_names_what_is_not() {
    let (mut world, id) = clean_and_dirty();
    world.disks.0[0].faults().gone = true;
    assert_eq!(read(&mut world, id, 1), Some(Err(RequestError::Io)), "its only copy is gone");
    assert_eq!(world.store.read_only(), Some("a hot device is lost"));
    assert_eq!(world.store.lost_devices().collect::<Vec<_>>(), [tiering::DeviceId(0)]);
    let lost = [Lost { volume: id, offset: UNIT_BYTES, len: UNIT_BYTES }];
    assert_eq!(world.store.lost(), lost);
    let report = world.store.fault_report().unwrap();
    assert!(report.contains("device 0") && report.contains("volume 1 bytes 65536..131072"), "{report}");
    assert_eq!(read(&mut world, id, 0), Some(Ok(())), "the cold copy is as good");
    assert_eq!(world::number_of(&world.buffers[1]), 100);
    assert_eq!(read(&mut world, id, 3), Some(Ok(())), "never written is zero");
    for kind in [RequestKind::Write, RequestKind::Flush, RequestKind::Discard] {
        assert_eq!(request(&mut world, kind, id, 2, 8), Some(Err(RequestError::ReadOnly)));
    }
    // Nothing went on without it, so it may come back.
    let mut disks = world.disks.clone();
    disks.0[0].faults().gone = false;
    let mut back = World::new(disks, 1, 1, None).expect("the pool is as it was");
    for unit in 0..2 {
        assert_eq!(first_sector(&mut back, id, unit), Ok(100 * (unit + 1)));
    }
}

#[test]
fn a_cold_device_lost_at_work_leaves_what_is_hot() {
    let (mut world, id) = written(8);
    let cold = (0..8)
        .find(|unit| matches!(world.store.explain(id, unit * UNIT_BYTES), Ok(Explanation::Cold { .. })));
    let cold = cold.expect("eight units do not fit the hot tier");
    world.disks.0[1].faults().gone = true;
    assert_eq!(read(&mut world, id, cold), Some(Err(RequestError::Io)));
    assert_eq!(world.store.read_only(), Some("a cold device is lost"));
    let lost = world.store.lost();
    for unit in 0..8 {
        let offset = unit * UNIT_BYTES;
        let gone = lost.iter().any(|lost| (lost.offset..lost.offset + lost.len).contains(&offset));
        assert_eq!(read(&mut world, id, unit), Some(if gone { Err(RequestError::Io) } else { Ok(()) }));
        assert_eq!(gone, matches!(world.store.explain(id, offset), Ok(Explanation::Cold { .. })), "{unit}");
    }
}

#[test]
fn one_error_of_a_device_fails_one_request_and_nothing_else() {
    let (mut world, id) = clean_and_dirty();
    world.disks.0[0].faults().read_in = Some(1);
    assert_eq!(read(&mut world, id, 1), Some(Err(RequestError::Io)), "its only copy cannot be read");
    assert_eq!(read(&mut world, id, 1), Some(Ok(())));
    world.disks.0[0].faults().read_in = Some(1);
    assert_eq!(read(&mut world, id, 0), Some(Ok(())), "the cold copy steps in");
    world.disks.0[0].faults().write_in = Some(1);
    let failed = request(&mut world, RequestKind::Write, id, 5, UNIT_SECTORS);
    assert_eq!(failed, Some(Err(RequestError::Io)), "a new unit that did not land");
    assert_eq!(first_sector(&mut world, id, 5), Ok(0), "is not there");
    // The write-back of the dirty unit fails: it stays dirty and is tried again.
    world.disks.0[1].faults().write_in = Some(1);
    world.store.drain(true);
    world.settle(|_, _| {});
    assert_eq!((world.store.dirty_slots(), world.store.stats().moves_aborted), (1, 1));
    world.settle(|_, _| {});
    assert_eq!((world.store.dirty_slots(), world.store.stats().moves_aborted), (0, 1));
    assert_eq!(world.store.read_only(), None);
    assert!(world.store.lost_devices().next().is_none() && world.store.fault_report().is_none());
    for unit in 0..2 {
        assert_eq!(first_sector(&mut world, id, unit), Ok(100 * (unit + 1)));
    }
}

#[test]
fn a_failed_flush_stops_the_pool_and_loses_nothing_that_was_flushed() {
    for device in 0..2 {
        let (mut world, id) = written(8);
        world.disks.0[device].faults().flush_in = Some(1);
        world.store.drain(true);
        for unit in 0..8 {
            request(&mut world, RequestKind::Write, id, unit, UNIT_SECTORS);
        }
        let flushed = request(&mut world, RequestKind::Flush, id, 0, 0);
        assert!(matches!(flushed, Some(Err(RequestError::Io | RequestError::ReadOnly))), "{flushed:?}");
        assert!(world.store.read_only().is_some_and(|why| why.contains("flush")), "device {device}");
        let modes = [simkit::CutMode::Nothing; 2];
        let images = world.crashed(true, &modes).into_iter().map(|image| SimDisk::from_image(image, 1));
        let mut after = World::new(world::Disks(images.collect()), 2, 1, None).expect("it opens");
        for unit in 0..8 {
            assert_eq!(first_sector(&mut after, id, unit), Ok(100 * (unit + 1)));
        }
    }
}

#[test]
fn writes_that_wait_for_space_can_be_called_off() {
    let mut world = fresh();
    let (_, slots) = world.store.cold_slots();
    let ids = [0, 1].map(|_| world.store.create_volume((slots + 1) * UNIT_BYTES).unwrap());
    for unit in 0..slots {
        assert_eq!(request(&mut world, RequestKind::Write, ids[0], unit, 8), Some(Ok(())));
    }
    for (tag, id) in (2..).zip(ids) {
        world.buffers[tag as usize] = vec![1; 512];
        let write =
            Request { tag, volume: id, kind: RequestKind::Write, offset: slots * UNIT_BYTES, len: 512 };
        assert!(world.submit(write));
    }
    world.settle(|_, done| panic!("{done:?} found space"));
    world.store.cancel_waiting(|tag| tag == 3);
    let mut ended = Vec::new();
    world.settle(|_, done| ended.push((done.tag, done.result)));
    assert_eq!(ended, [(3, Err(RequestError::NoSpace))]);
    assert_eq!(world.store.waiting_for_space(), 1);
    assert!(world.store.delete_volume(ids[1]).is_ok());
}

#[test]
fn moves_stay_within_rate_and_share() {
    let moved = |world: &World| world.store.stats().filled_bytes + world.store.stats().written_back_bytes;
    let (mut world, id) = written(12);
    let (start, before) = (world.now_ns, moved(&world));
    let (rate, burst) = (UNIT_BYTES, 4 * UNIT_BYTES);
    world.store.set_migration(rate, 100);
    world.store.drain(true);
    for round in 0..40 {
        assert_eq!(read(&mut world, id, round % 12), Some(Ok(())));
        let allowed = burst + rate * (world.now_ns - start) / 1_000_000_000;
        assert!(moved(&world) - before <= allowed, "round {round}: {} of {allowed}", moved(&world) - before);
    }
    assert!(moved(&world) - before > burst, "but they go on");
    assert_eq!(
        request(&mut world, RequestKind::Write, id, 11, 1),
        Some(Ok(())),
        "a guest's write is not held"
    );
}

/// What an operator was told is done is soon known to the cold tier, too: volumes outlive the hot one.
#[test]
fn volumes_made_and_deleted_lately_outlive_the_hot_tier() {
    let mut world = fresh();
    let wait = |world: &mut World| {
        let until = world.now_ns + world::CHANGE_DELAY_NS + 1_000_000_000;
        while world.now_ns < until {
            world.settle(|_, _| {});
        }
    };
    let gone = world.store.create_volume(4 * UNIT_BYTES).unwrap();
    wait(&mut world);
    let kept = world.store.create_volume(8 * UNIT_BYTES).unwrap();
    let copy = world.store.fork_volume(kept, true).unwrap();
    world.store.resize_volume(kept, 9 * UNIT_BYTES).unwrap();
    world.store.delete_volume(gone).unwrap();
    wait(&mut world);
    assert_eq!(world.store.stats().checkpoints, 2, "one for each burst of changes");
    let mut disks = world.disks.clone();
    disks.0[0].faults().gone = true;
    let cold = World::with(disks, 2, 1, None, true).expect("degraded opens");
    let sizes: Vec<_> = cold.store.volumes().map(|info| (info.id, info.size_bytes)).collect();
    assert_eq!(sizes, [(kept, 9 * UNIT_BYTES), (copy, 8 * UNIT_BYTES)]);
}
