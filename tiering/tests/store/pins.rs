//! Pins are carried out in the background.

use tiering::{Explanation, Pin, RequestKind, UNIT_BYTES, VolumeId};

use crate::rig::Rig;

const UNITS: u64 = 40;

/// A volume whose units were all written, and so are hot.
fn written(rig: &mut Rig, units: u64) -> VolumeId {
    let volume = rig.store.create_volume(units * UNIT_BYTES).expect("there is room");
    for unit in 0..units {
        assert!(rig.ask(0, volume, RequestKind::Write, unit));
    }
    volume
}

fn hot(rig: &Rig, volume: VolumeId, units: u64) -> u64 {
    let is_hot = |unit: &u64| {
        matches!(rig.store.explain(volume, unit * UNIT_BYTES), Ok(Explanation::Hot { valid: u16::MAX, .. }))
    };
    (0..units).filter(is_hot).count() as u64
}

fn wait(rig: &mut Rig) {
    (0..500).for_each(|_| rig.drive());
}

#[test]
fn what_is_pinned_cold_leaves_and_what_is_pinned_hot_comes() {
    let mut rig = Rig::new(16 << 20, 64 << 20);
    let (volume, other) = (written(&mut rig, UNITS), written(&mut rig, UNITS));
    wait(&mut rig);
    assert_eq!((hot(&rig, volume, UNITS), hot(&rig, other, UNITS)), (UNITS, UNITS));
    assert!(rig.store.dirty_slots() >= UNITS as u32);
    rig.store.pin_volume(volume, Pin::Cold).expect("the volume is there");
    let Ok(Explanation::Hot { moves_when, .. }) = rig.store.explain(volume, 0) else { panic!("it was hot") };
    assert!(moves_when.contains("pinned cold"), "{moves_when}");
    wait(&mut rig);
    assert_eq!((hot(&rig, volume, UNITS), hot(&rig, other, UNITS)), (0, UNITS));
    let half = UNITS / 2 * UNIT_BYTES;
    rig.store.pin_range(volume, half, half, Pin::Hot).expect("the range is there");
    wait(&mut rig);
    assert_eq!((hot(&rig, volume, UNITS / 2), hot(&rig, volume, UNITS)), (0, UNITS / 2));
    rig.store.pin_volume(volume, Pin::Hot).expect("the volume is there");
    wait(&mut rig);
    assert_eq!((hot(&rig, volume, UNITS), hot(&rig, other, UNITS)), (UNITS, UNITS));
}

/// A clone that is pinned cold takes nothing away from the image, nor one that is pinned hot.
#[test]
fn copies_that_another_volume_brought_stay() {
    let mut rig = Rig::new(16 << 20, 64 << 20);
    let image = written(&mut rig, UNITS);
    let clone = rig.store.fork_volume(image, true).expect("there is room");
    wait(&mut rig);
    rig.store.pin_volume(clone, Pin::Cold).expect("the clone is there");
    wait(&mut rig);
    assert_eq!(hot(&rig, image, UNITS), UNITS);
    rig.store.pin_volume(clone, Pin::Hot).expect("the clone is there");
    rig.store.pin_volume(image, Pin::Cold).expect("the image is there");
    wait(&mut rig);
    assert_eq!(hot(&rig, clone, UNITS), UNITS, "pinned hot by one of them");
}

/// More than the hot tier holds: some slots stay free, and nothing moves to and fro.
#[test]
fn too_much_that_is_pinned_hot_leaves_some_slots_free() {
    let mut rig = Rig::new(8 << 20, 64 << 20);
    let volume = written(&mut rig, 400);
    for pin in [Pin::Cold, Pin::Hot] {
        rig.store.pin_volume(volume, pin).expect("the volume is there");
        wait(&mut rig);
    }
    let (free, slots) = rig.store.hot_slots();
    assert!(free > 0 && hot(&rig, volume, 400) > u64::from(slots) * 8 / 10, "{free} of {slots} free");
    let moved = |rig: &Rig| (rig.store.stats().filled_bytes, rig.store.stats().demotions);
    let before = moved(&rig);
    wait(&mut rig);
    assert_eq!(moved(&rig), before);
}
