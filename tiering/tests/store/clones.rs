//! How many clones of an image a pool has room for.

use tiering::VolumeError;

use crate::rig::Rig;

/// The pool of the README's example, whose metadata has room for every clone's worst case: all of it written anew.
#[test]
fn a_thousand_clones_of_a_gib_fit_two_gib_of_hot_tier() {
    let mut rig = Rig::new(2 << 30, 20 << 30);
    let hot = rig.store.hot_slots().1;
    assert!(
        u64::from(hot) * tiering::UNIT_BYTES > (2 << 30) * 8 / 10,
        "most of the hot tier is for data: {hot}"
    );
    let image = rig.store.create_volume(1 << 30).expect("there is room");
    for clone in 0..1000 {
        rig.store.fork_volume(image, true).unwrap_or_else(|error| panic!("clone {clone}: {error}"));
        rig.drive();
    }
    assert_eq!(rig.store.volumes().count(), 1001);
    // What is promised stays promised: more is refused, and nobody runs out later.
    let refused = (0..1000).find_map(|_| {
        let error = rig.store.fork_volume(image, true).err();
        rig.drive();
        error
    });
    assert!(matches!(refused, Some(VolumeError::MetadataFull { .. })), "{refused:?}");
}
