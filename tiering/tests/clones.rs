//! How many clones of an image a pool has room for.

use std::collections::BTreeMap;

use tiering::{BlockingIo, DeviceId, DeviceSpec, FormatSpec, IoError, OpenOptions, Store, Tier, VolumeError};
use uuid::Uuid;

const BLOCK: usize = 4096;

/// Large devices, of which only what was written takes memory.
#[derive(Default)]
struct Sparse(BTreeMap<(u8, u64), Vec<u8>>);

impl BlockingIo for Sparse {
    fn present(&self, _: DeviceId) -> bool {
        true
    }
    fn read(&mut self, device: DeviceId, offset: u64, into: &mut [u8]) -> Result<(), IoError> {
        for (at, block) in (offset..).step_by(BLOCK).zip(into.chunks_mut(BLOCK)) {
            match self.0.get(&(device.0, at)) {
                Some(bytes) => block.copy_from_slice(&bytes[..block.len()]),
                None => block.fill(0),
            }
        }
        Ok(())
    }
    fn write(&mut self, device: DeviceId, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
        for (at, block) in (offset..).step_by(BLOCK).zip(bytes.chunks(BLOCK)) {
            self.0.insert((device.0, at), block.to_vec());
        }
        Ok(())
    }
    fn flush(&mut self, _: DeviceId) -> Result<(), IoError> {
        Ok(())
    }
}

/// Carries out nothing and says it worked.
fn drive(store: &mut Store) {
    while let Some(action) = store.next_action() {
        store.complete(action.id, Ok(action.len));
    }
}

/// The pool of the README's example, whose metadata has room for every clone's worst case: all of it written anew.
#[test]
fn a_thousand_clones_of_a_gib_fit_two_gib_of_hot_tier() {
    let device =
        |uuid, tier, gib: u64| DeviceSpec { uuid: Uuid::from_u128(uuid), tier, size_bytes: gib << 30 };
    let devices = vec![device(2, Tier::Hot, 2), device(3, Tier::Cold, 20)];
    let mut disks = Sparse::default();
    tiering::format(&mut disks, &FormatSpec::usual(Uuid::from_u128(1), devices)).expect("metadata fits");
    let mut store = Store::open(&mut disks, OpenOptions::default()).expect("a new pool opens");
    let hot = store.hot_slots().1;
    assert!(
        u64::from(hot) * tiering::UNIT_BYTES > (2 << 30) * 8 / 10,
        "most of the hot tier is for data: {hot}"
    );
    let image = store.create_volume(1 << 30).expect("there is room");
    for clone in 0..1000 {
        store.fork_volume(image, true).unwrap_or_else(|error| panic!("clone {clone}: {error}"));
        drive(&mut store);
    }
    assert_eq!(store.volumes().count(), 1001);
    // What is promised stays promised: more is refused, and nobody runs out later.
    let refused = (0..1000).find_map(|_| {
        let error = store.fork_volume(image, true).err();
        drive(&mut store);
        error
    });
    assert!(matches!(refused, Some(VolumeError::MetadataFull { .. })), "{refused:?}");
}
