use super::*;
use crate::hash::FastMap;
use proptest::prelude::*;

/// A cache of `slots` run by a policy; returns the misses.
fn misses(kind: Kind, slots: u32, keys: impl Iterator<Item = u64>) -> u64 {
    let mut policy = kind.build(slots);
    let mut resident: FastMap<u64, u32> = FastMap::default();
    let mut held = vec![u64::MAX; slots as usize];
    let mut free: Vec<u32> = (0..slots).collect();
    let mut missed = 0;
    for key in keys {
        if let Some(slot) = resident.get(&key) {
            policy.hit(*slot);
            continue;
        }
        missed += 1;
        let slot = free.pop().unwrap_or_else(|| {
            let slot = policy.victim(&mut |_| true).expect("a full cache has a victim");
            policy.remove(slot, held[slot as usize], true);
            resident.remove(&held[slot as usize]);
            slot
        });
        policy.insert(slot, key);
        resident.insert(key, slot);
        held[slot as usize] = key;
    }
    missed
}

const ALL: [Kind; 3] = [Kind::Lru, Kind::TwoQueue, Kind::S3Fifo];

#[test]
fn lru_misses_are_those_of_the_stack_distance() {
    let keys = [1, 2, 3, 1, 4, 2, 5, 1, 2, 3];
    assert_eq!(misses(Kind::Lru, 3, keys.into_iter()), 8);
}

#[test]
fn a_scan_does_not_push_out_what_is_proven() {
    // 50 hot keys, each wanted often, and single passes over a thousand others between.
    let keys = || {
        (0..200u64).flat_map(|round| {
            (0..50).chain((0..10).map(move |i| 1000 + (round * 10 + i) % 1000)).collect::<Vec<_>>()
        })
    };
    let of = |kind| misses(kind, 55, keys());
    assert!(of(Kind::TwoQueue) < of(Kind::Lru) / 2, "{} {}", of(Kind::TwoQueue), of(Kind::Lru));
    assert!(of(Kind::S3Fifo) < of(Kind::Lru) / 2, "{} {}", of(Kind::S3Fifo), of(Kind::Lru));
}

proptest! {
    #[test]
    fn victims_are_resident_and_usable(
        ops in prop::collection::vec((0u8..4, 0u64..60), 1..600), kind in 0usize..3, slots in 1u32..20,
    ) {
        let mut policy = ALL[kind].build(slots);
        let mut held: Vec<Option<u64>> = vec![None; slots as usize];
        for (op, key) in ops {
            let at = held.iter().position(|k| *k == Some(key));
            match (op, at) {
                (0..=2, Some(slot)) => policy.hit(slot as u32),
                (3, Some(slot)) => {
                    policy.remove(slot as u32, key, false);
                    held[slot] = None;
                }
                _ => {
                    let slot = held.iter().position(Option::is_none).unwrap_or_else(|| {
                        let usable: Vec<bool> = held.iter().enumerate().map(|(i, _)| slots == 1 || i as u64 % 2 == key % 2).collect();
                        let found = policy.victim(&mut |slot| usable[slot as usize]);
                        let slot = found.expect("some slot is usable") as usize;
                        assert!(usable[slot]);
                        policy.remove(slot as u32, held[slot].unwrap(), true);
                        slot
                    });
                    held[slot] = Some(key);
                    policy.insert(slot as u32, key);
                }
            }
        }
    }
}

#[test]
fn a_slot_that_moves_on_during_the_search_is_still_found() {
    let mut policy = S3Fifo::new(20);
    policy.insert(0, 0);
    policy.insert(1, 1);
    policy.remove(1, 1, true);
    policy.insert(1, 1);
    for _ in 0..3 {
        policy.hit(0);
    }
    // 1 is in the main queue, 0 in the small one and on its way there.
    assert_eq!(policy.victim(&mut |slot| slot == 0), Some(0));
}

#[test]
fn windows_grow_on_streams_and_let_long_ones_pass() {
    use window::{Decision, STREAM_WINDOW_BYTES, WINDOW_BYTES, Windows};
    let mut windows = Windows::new(4 << 20, 2048);
    assert_eq!(
        windows.miss(1, 5000, 4096, false),
        Decision::Fill { start: 0, end: WINDOW_BYTES, passing: false }
    );
    let next = windows.miss(1, WINDOW_BYTES, 4096, false);
    let end = WINDOW_BYTES + STREAM_WINDOW_BYTES;
    assert_eq!(next, Decision::Fill { start: WINDOW_BYTES, end, passing: false });
    let elsewhere = windows.miss(2, WINDOW_BYTES + STREAM_WINDOW_BYTES, 4096, false);
    assert!(
        matches!(elsewhere, Decision::Fill { start, end, .. } if end - start == WINDOW_BYTES),
        "{elsewhere:?}"
    );
    // A long stream is marked, then passed by; when it comes back it gets its windows.
    let mut stream = |from: u64| {
        let (mut at, mut filled, mut marked) = (from, 0, 0);
        while at < from + (64 << 20) {
            match windows.miss(3, at, 65536, false) {
                Decision::Fill { start, end, passing } => {
                    filled += end - start;
                    marked += if passing { end - start } else { 0 };
                    at = end;
                }
                Decision::Bypass => at += 65536,
            }
        }
        (filled >> 20, marked >> 20)
    };
    let (filled, marked) = stream(1 << 30);
    assert!((3..6).contains(&filled) && (1..4).contains(&marked), "{filled} {marked}");
    let (filled, _) = stream(1 << 30);
    assert!(filled >= 60, "{filled}");
}

#[test]
fn what_a_stream_brings_pushes_out_its_own() {
    let mut queue = TwoQueue::new(2000);
    for slot in 0..2000 {
        queue.insert(slot, u64::from(slot));
        if slot >= 300 {
            // Gone and back again: proven.
            queue.remove(slot, u64::from(slot), true);
            queue.insert(slot, u64::from(slot));
        }
    }
    let mut gone = Vec::new();
    let mut held: Vec<u64> = (0..2000).collect();
    for extent in 10_000..10_500 {
        let slot = queue.victim(&mut |_| true).expect("it is full");
        queue.remove(slot, std::mem::replace(&mut held[slot as usize], extent), true);
        gone.push(slot);
        queue.insert_passing(slot, extent);
    }
    gone.sort_unstable();
    gone.dedup();
    assert!(gone.len() < 60, "{} slots changed hands", gone.len());
}
