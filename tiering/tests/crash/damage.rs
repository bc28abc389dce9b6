//! Damaged blocks of the journal: what was flushed is there, or its loss is said.

use crate::faults::{fresh, request};
use crate::model::UNIT_SECTORS;
use crate::world::{self, Disks, World};
use simkit::{CutMode, SimDisk};
use tiering::{BlockingIo, DeviceId, OpenError, RequestError, RequestKind, UNIT_BYTES, VolumeId};

const JOURNAL_AT: u64 = 8192;
const BLOCK: u64 = 4096;
const ROUNDS: u64 = 4;

/// Two volumes; in each round each gets a new unit and flushes, and its first unit is demoted, so that hot slots change
/// hands. The disks as a power cut leaves them, and the blocks of the journal that the last checkpoint leaves to be read.
fn used_pool() -> (Disks, [VolumeId; 2], std::ops::Range<u64>) {
    let mut world = fresh();
    let ids = [0, 1].map(|_| world.store.create_volume(8 * UNIT_BYTES).expect("there is room"));
    for unit in 0..ROUNDS {
        for (which, id) in (0..).zip(ids) {
            write(&mut world, id, unit, value(which, unit));
            assert_eq!(request(&mut world, RequestKind::Flush, id, 0, 0), Some(Ok(())));
            world.store.demote_unit(id, unit / 2);
            world.settle(|_, _| {});
        }
    }
    // The last block has no witness but one that comes after it.
    write(&mut world, ids[0], 7, 7);
    assert_eq!(request(&mut world, RequestKind::Flush, ids[0], 0, 0), Some(Ok(())));
    let images = world.crashed(true, &[CutMode::Nothing; 2]).into_iter();
    let mut disks = Disks(images.map(|image| SimDisk::from_image(image, 1)).collect());
    let end = blocks_written(&mut disks);
    assert!(end < 60, "{end} blocks: the ring must not wrap for the numbers here");
    let needed = end - world.store.log_depth().0..end;
    assert!(needed.clone().count() > 10, "{needed:?} is too little to say anything");
    (disks, ids, needed)
}

fn value(volume: u64, unit: u64) -> u64 {
    1000 * (volume + 1) + unit
}

fn write(world: &mut World, id: VolumeId, unit: u64, number: u64) {
    world.buffers[1] = (0..UNIT_SECTORS).flat_map(|_| world::sector_of(number)).collect();
    let (offset, len) = (unit * UNIT_BYTES, UNIT_BYTES as u32);
    let request = tiering::Request { tag: 1, volume: id, kind: RequestKind::Write, offset, len };
    assert!(world.submit(request));
    world.settle(|_, done| assert_eq!(done.result, Ok(())));
}

/// What the first sector of a unit says; `None` if it cannot be read.
fn look(world: &mut World, id: VolumeId, unit: u64) -> Option<u64> {
    world.buffers[1] = vec![0; 512];
    match request(world, RequestKind::Read, id, unit, 1) {
        Some(Ok(())) => Some(world::number_of(&world.buffers[1])),
        Some(Err(RequestError::Io)) => None,
        other => panic!("unit {unit} of {id:?}: {other:?}"),
    }
}

fn contents(disks: &Disks) -> Vec<Vec<u8>> {
    let read = |disk: &SimDisk| {
        let mut bytes = vec![0; disk.size() as usize];
        disk.visible().read(0, &mut bytes);
        bytes
    };
    disks.0.iter().map(read).collect()
}

fn blocks_written(disks: &mut Disks) -> u64 {
    let mut block = [0; BLOCK as usize];
    let mut used = 0;
    while disks.read(DeviceId(0), JOURNAL_AT + used * BLOCK, &mut block).is_ok() && block[..4] == *b"1SLJ" {
        used += 1;
    }
    used
}

#[test]
fn a_damaged_block_of_the_journal_is_never_passed_over() {
    let (disks, ids, needed) = used_pool();
    let mut named = 0;
    for at in needed.start..needed.end - 1 {
        let mut damaged = disks.clone();
        damaged.write(DeviceId(0), JOURNAL_AT + at * BLOCK + 512, &[0x5a; 512]).expect("it is there");
        let before = contents(&damaged);
        let refused = world::open(&mut damaged, 2).map(|_| ()).expect_err("a flushed block is gone");
        let OpenError::JournalDamaged { blocks, lost, .. } = &refused else {
            panic!("block {at}: {refused}")
        };
        assert_eq!(*blocks, [JOURNAL_AT + at * BLOCK], "{refused}");
        named += usize::from(refused.to_string().contains("volume 2 bytes") && !lost.is_empty());
        assert!(before == contents(&damaged), "nothing is written by an opening that is refused");
        let mut world = World::with(damaged, 2, 1, None, true).expect("degraded opens");
        assert!(world.store.read_only().is_some_and(|why| why.contains("journal")));
        assert!(world.store.fault_report().is_some_and(|report| report.contains("journal")));
        for (which, id) in (0..).zip(ids) {
            if world.store.volumes().all(|known| known.id != id) {
                continue;
            }
            for unit in 0..ROUNDS {
                // Lost, never there, or right: not another volume's, and not what the slot held before.
                let found = look(&mut world, id, unit);
                let allowed = [None, Some(0), Some(value(which, unit))];
                assert!(allowed.contains(&found), "block {at}, volume {which}, unit {unit}: {found:?}");
            }
            let refused = request(&mut world, RequestKind::Write, id, 0, 8);
            assert_eq!(refused, Some(Err(RequestError::ReadOnly)));
        }
    }
    assert!(named > 0, "no opening named what is lost");
}

#[test]
fn several_damaged_blocks_are_all_named() {
    let (mut disks, _, needed) = used_pool();
    let blocks_lost = [1, 2, 6].map(|at| needed.start + at);
    for at in blocks_lost {
        disks.write(DeviceId(0), JOURNAL_AT + at * BLOCK, &[0; 4096]).expect("it is there");
    }
    let refused = world::open(&mut disks, 2).map(|_| ()).expect_err("flushed blocks are gone");
    let OpenError::JournalDamaged { blocks, .. } = refused else { panic!("{refused}") };
    assert_eq!(blocks, blocks_lost.map(|at| JOURNAL_AT + at * BLOCK));
}

#[test]
fn an_unreadable_block_counts_as_damaged_only_where_the_log_goes() {
    let (disks, ids, needed) = used_pool();
    for at in [needed.end + 3, 63] {
        let mut idle = disks.clone();
        idle.0[0].add_latent_error(JOURNAL_AT + at * BLOCK);
        let mut world = World::new(idle, 2, 1, None).expect("nobody needs that block");
        assert_eq!(look(&mut world, ids[0], 7), Some(7));
    }
    // A log that ends at one may have gone on there.
    for at in [needed.start, needed.end - 1, needed.end] {
        let mut damaged = disks.clone();
        damaged.0[0].add_latent_error(JOURNAL_AT + at * BLOCK + 512);
        let refused = world::open(&mut damaged, 2).map(|_| ()).expect_err("a needed block is gone");
        assert!(matches!(refused, OpenError::JournalDamaged { .. }), "block {at}: {refused}");
    }
}
