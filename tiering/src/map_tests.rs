use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

#[derive(Debug, Clone)]
enum Step {
    Write { volume: usize, unit: u64 },
    Discard { volume: usize, unit: u64 },
    Fork { volume: usize, writable: bool },
    Delete { volume: usize },
}

fn step() -> impl Strategy<Value = Step> {
    // Units in three leaves, few enough to collide.
    let unit = (0u64..3, 0u64..4).prop_map(|(leaf, at)| leaf * LEAF_ENTRIES + at);
    prop_oneof![
        6 => (any::<usize>(), unit.clone()).prop_map(|(volume, unit)| Step::Write { volume, unit }),
        2 => (any::<usize>(), unit).prop_map(|(volume, unit)| Step::Discard { volume, unit }),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(volume, writable)| Step::Fork { volume, writable }),
        1 => any::<usize>().prop_map(|volume| Step::Delete { volume }),
    ]
}

/// A volume as a plain map from unit to extent.
type Naive = BTreeMap<VolumeId, BTreeMap<u64, Extent>>;

fn owners(naive: &Naive, extent: Extent) -> usize {
    naive.values().filter(|units| units.values().any(|e| *e == extent)).count()
}

proptest! {
    #[test]
    fn equals_plain_maps(steps in prop::collection::vec(step(), 1..120)) {
        let mut map = Map::default();
        let mut naive = Naive::new();
        let mut next_extent = 0;
        map.create(VolumeId(0), 3 * LEAF_ENTRIES * UNIT_BYTES);
        naive.insert(VolumeId(0), BTreeMap::new());
        let mut next_volume = 1;
        for step in steps {
            let ids: Vec<VolumeId> = naive.keys().copied().collect();
            let pick = |at: usize| (!ids.is_empty()).then(|| ids[at % ids.len()]);
            let mut freed = Vec::new();
            let before: BTreeSet<Extent> = naive.values().flat_map(|units| units.values().copied()).collect();
            match step {
                Step::Write { volume, unit } => {
                    let Some(id) = pick(volume).filter(|id| map.volume(*id).unwrap().writable) else { continue };
                    let volume = map.volume(id).unwrap();
                    let entry = map.get(volume, unit);
                    let owned = map.owned(volume, unit, entry);
                    let alone = entry.extent().is_some_and(|extent| owners(&naive, extent) == 1);
                    prop_assert_eq!(owned, alone, "in place is allowed exactly where nobody else reads it");
                    if !owned {
                        freed.extend(map.set(id, unit, Entry::new(next_extent, map.epoch)));
                        naive.get_mut(&id).unwrap().insert(unit, next_extent);
                        next_extent += 1;
                    }
                }
                Step::Discard { volume, unit } => {
                    let Some(id) = pick(volume).filter(|id| map.volume(*id).unwrap().writable) else { continue };
                    freed.extend(map.set(id, unit, Entry::NONE));
                    naive.get_mut(&id).unwrap().remove(&unit);
                }
                Step::Fork { volume, writable } => {
                    let Some(id) = pick(volume) else { continue };
                    prop_assert!(map.fork(id, VolumeId(next_volume), writable));
                    naive.insert(VolumeId(next_volume), naive[&id].clone());
                    next_volume += 1;
                }
                Step::Delete { volume } => {
                    let Some(id) = pick(volume) else { continue };
                    for leaf in map.delete(id).unwrap() {
                        map.release_leaf(leaf, &mut freed);
                    }
                    naive.remove(&id);
                }
            }
            let after: BTreeSet<Extent> = naive.values().flat_map(|units| units.values().copied()).collect();
            freed.sort_unstable();
            let gone: Vec<Extent> = before.difference(&after).copied().collect();
            prop_assert_eq!(freed, gone, "freed is exactly what nobody names any more");
            for (id, units) in &naive {
                let volume = map.volume(*id).unwrap();
                for unit in (0..3).flat_map(|leaf| (0..4).map(move |at| leaf * LEAF_ENTRIES + at)) {
                    prop_assert_eq!(map.get(volume, unit).extent(), units.get(&unit).copied());
                }
            }
            prop_assert!(map.leaf_count() <= map.leaves_reserved() , "a reservation covers what is used");
            if let [a, .., b] = naive.keys().copied().collect::<Vec<_>>()[..] {
                let differing: Vec<u64> = map.diff(map.volume(a).unwrap(), map.volume(b).unwrap(), 0..u64::MAX)
                    .into_iter().flat_map(|(first, count)| first..first + count).collect();
                let expected: BTreeSet<u64> = naive[&a].iter().filter(|(u, e)| naive[&b].get(u) != Some(e)).map(|(u, _)| *u)
                    .chain(naive[&b].keys().filter(|u| !naive[&a].contains_key(u)).copied()).collect();
                prop_assert_eq!(differing, expected.into_iter().collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn a_frozen_leaf_stays_while_the_map_goes_on() {
    let mut map = Map::default();
    map.create(VolumeId(1), 1 << 30);
    map.set(VolumeId(1), 3, Entry::new(7, 0));
    let leaf = map.volume(VolumeId(1)).unwrap().top[0] - 1;
    map.freeze();
    map.set(VolumeId(1), 3, Entry::new(8, 0));
    assert_eq!(map.frozen_leaf(leaf).unwrap()[3].extent(), Some(7));
    for leaf in map.delete(VolumeId(1)).unwrap() {
        map.release_leaf(leaf, &mut Vec::new());
    }
    map.create(VolumeId(2), 1 << 30);
    map.set(VolumeId(2), 3, Entry::new(9, 0));
    assert_eq!(map.volume(VolumeId(2)).unwrap().top[0] - 1, leaf, "the leaf's number is used again");
    assert_eq!(map.frozen_leaf(leaf).unwrap()[3].extent(), Some(7));
    map.thaw();
    assert_eq!(map.frozen_leaf(leaf).unwrap()[3].extent(), Some(9));
}

#[test]
fn entries_round_trip_at_their_limits() {
    let most = Entry::new((1 << 34) - 2, (1 << 30) - 1);
    assert_eq!((most.extent(), most.birth()), (Some((1 << 34) - 2), (1 << 30) - 1));
    assert_eq!(Entry::from_bits(most.to_bits()), Some(most));
    assert_eq!(Entry::from_bits(1 << 40), None);
    assert_eq!(Entry::NONE.extent(), None);
}
