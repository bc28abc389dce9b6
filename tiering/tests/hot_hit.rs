//! What a hot hit costs the library: submit, the one action, its completion, the done report, and the short way of
//! a read; memory only.
//!
//! `cargo test -p tiering --test hot_hit --release -- --ignored --nocapture` prints it.

use std::time::Instant;
use tiering::{
    ActionKind, BlockingIo, DeviceId, DeviceSpec, FormatSpec, IoError, OpenOptions, Request, RequestKind,
    Store, Tier, UNIT_BYTES, VolumeId,
};
use uuid::Uuid;

struct Memory([Vec<u8>; 2]);

impl BlockingIo for Memory {
    fn present(&self, device: DeviceId) -> bool {
        device.0 < 2
    }
    fn read(&mut self, device: DeviceId, offset: u64, into: &mut [u8]) -> Result<(), IoError> {
        let from = offset as usize;
        into.copy_from_slice(self.0[usize::from(device.0)].get(from..from + into.len()).ok_or(IoError)?);
        Ok(())
    }
    fn write(&mut self, device: DeviceId, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
        let from = offset as usize;
        self.0[usize::from(device.0)]
            .get_mut(from..from + bytes.len())
            .ok_or(IoError)?
            .copy_from_slice(bytes);
        Ok(())
    }
    fn flush(&mut self, _: DeviceId) -> Result<(), IoError> {
        Ok(())
    }
}

/// Carries out nothing and says it worked: only the library's own time counts. The number of actions that ran.
fn drive(store: &mut Store) -> u32 {
    let mut actions = 0;
    loop {
        while let Some(action) = store.next_action() {
            actions += 1;
            store.complete(action.id, Ok(action.len));
        }
        if store.next_done().is_none() {
            return actions;
        }
    }
}

fn pool(units: u64) -> (Store, VolumeId) {
    let bytes = (units + units / 8 + 600) * UNIT_BYTES;
    let device = |uuid, tier| DeviceSpec { uuid: Uuid::from_u128(uuid), tier, size_bytes: bytes };
    let spec = FormatSpec::usual(Uuid::from_u128(1), vec![device(2, Tier::Hot), device(3, Tier::Cold)]);
    let mut memory = Memory([vec![0; 256 << 20], vec![0; 256 << 20]]);
    tiering::format(&mut memory, &spec).expect("metadata fits");
    let mut store = Store::open(&mut memory, OpenOptions::default()).expect("a new pool opens");
    let id = store.create_volume(units * UNIT_BYTES).expect("there is room");
    for unit in 0..units {
        let len = UNIT_BYTES as u32;
        store
            .submit(Request { tag: 0, volume: id, kind: RequestKind::Write, offset: unit * UNIT_BYTES, len })
            .expect("not busy");
        drive(&mut store);
    }
    (store, id)
}

fn hits(store: &mut Store, id: VolumeId, kind: RequestKind, units: u64, count: u64) -> f64 {
    let mut at = 1u64;
    let begin = Instant::now();
    for _ in 0..count {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let offset = (at >> 33) % units * UNIT_BYTES + (at >> 20) % 16 * 4096;
        store.submit(Request { tag: 0, volume: id, kind, offset, len: 4096 }).expect("not busy");
        assert_eq!(drive(store), 1, "a hot hit is one action");
    }
    begin.elapsed().as_nanos() as f64 / count as f64
}

#[test]
fn a_hot_hit_is_one_action_on_the_hot_device() {
    let (mut store, id) = pool(64);
    store
        .submit(Request { tag: 3, volume: id, kind: RequestKind::Read, offset: 8192, len: 4096 })
        .expect("not busy");
    let action = store.next_action().expect("a read");
    assert_eq!((action.device, action.kind, action.len), (DeviceId(0), ActionKind::Read, 4096));
    assert!(store.next_action().is_none());
    store.complete(action.id, Ok(4096));
    assert!(store.next_done().is_some_and(|done| done.tag == 3 && done.result.is_ok()));
}

#[test]
fn the_short_way_finds_hot_data_in_one_piece_and_nothing_else() {
    let (mut store, id) = pool(2);
    let bytes = 2 * UNIT_BYTES;
    let hit = store.hit(id, 8192, 4096).expect("all of it is hot");
    store
        .submit(Request { tag: 0, volume: id, kind: RequestKind::Read, offset: 8192, len: 4096 })
        .expect("taken");
    let action = store.next_action().expect("a read");
    assert_eq!((hit.device, hit.offset), (action.device, action.offset));
    store.complete(action.id, Ok(4096));
    store.hit_done(hit, false);
    for (offset, len) in
        [(bytes - 4096, 8192), (bytes, 4096), (UNIT_BYTES - 4096, 8192), (0, 0), (u64::MAX, 512)]
    {
        assert!(store.hit(id, offset, len).is_none(), "{len} bytes at {offset}");
    }
    assert!(store.hit(VolumeId(id.0 + 1), 0, 4096).is_none(), "no such volume");
    let sparse = store.create_volume(bytes).expect("there is room");
    store
        .submit(Request { tag: 0, volume: sparse, kind: RequestKind::Write, offset: 0, len: 4096 })
        .expect("taken");
    drive(&mut store);
    assert!(store.hit(sparse, 0, 4096).is_some());
    assert!(store.hit(sparse, 4096, 4096).is_none(), "a page that nobody wrote");
    assert!(store.hit(sparse, UNIT_BYTES, 4096).is_none(), "a unit that nobody wrote");
}

#[test]
fn warming_takes_any_place_and_changes_nothing() {
    let (mut store, id) = pool(2);
    while store.next_done().is_some() {}
    let before = store.stats();
    let mut places: Vec<u64> = (0..40).map(|at| at * 4096).collect();
    places.extend([2 * UNIT_BYTES, u64::MAX, 1 << 60]);
    store.warm(id, &places);
    store.warm(id, &[]);
    store.warm(VolumeId(id.0 + 1), &places);
    assert_eq!(store.stats(), before);
    assert!(store.next_action().is_none() && store.idle());
}

#[test]
fn dirty_neighbours_are_written_back_in_the_order_of_the_disk() {
    let (mut store, _) = pool(64);
    while store.next_done().is_some() {}
    store.drain(true);
    let mut reads: Vec<_> = std::iter::from_fn(|| store.next_action()).collect();
    assert!(reads.iter().all(|action| (action.device, action.kind) == (DeviceId(0), ActionKind::Read)));
    reads.reverse();
    let mut writes = Vec::new();
    for action in reads {
        store.complete(action.id, Ok(action.len));
        writes.extend(std::iter::from_fn(|| store.next_action()));
    }
    assert_eq!(writes.len(), 64);
    assert!(writes.iter().all(|action| (action.device, action.kind) == (DeviceId(1), ActionKind::Write)));
    // Five aligned MiB at most are touched, and the runs come in any order.
    let jumps = writes.windows(2).filter(|pair| pair[1].offset != pair[0].offset + UNIT_BYTES).count();
    assert!(jumps < 5, "{jumps} jumps");
}

#[test]
#[ignore = "a measurement"]
fn nanoseconds_of_a_hot_hit() {
    for units in [1 << 10, 1 << 14] {
        let (mut store, id) = pool(units);
        let rounds = |store: &mut Store, kind| {
            (0..5).map(|_| hits(store, id, kind, units, 400_000)).fold(f64::MAX, f64::min)
        };
        let (count, mut at, begin) = (400_000, 1u64, Instant::now());
        for _ in 0..count {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let offset = (at >> 33) % units * UNIT_BYTES + (at >> 20) % 16 * 4096;
            let hit = store.hit(id, offset, 4096).expect("all of it is hot");
            store.hit_done(std::hint::black_box(hit), false);
        }
        let short = begin.elapsed().as_nanos() as f64 / f64::from(count);
        let (read, write) = (rounds(&mut store, RequestKind::Read), rounds(&mut store, RequestKind::Write));
        println!(
            "{:6} MiB hot: short way {short:.0} ns, read {read:.0} ns, overwrite {write:.0} ns",
            (units * UNIT_BYTES) >> 20
        );
    }
}
