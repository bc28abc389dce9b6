//! From what is to what shall be, with the fewest messages.

use std::collections::BTreeMap;

use crate::entry::{FlowBody, FlowKey, MeterBody};

/// Flow entries by what tells them apart.
pub type Flows = BTreeMap<FlowKey, FlowBody>;
/// Meters by number.
pub type Meters = BTreeMap<u32, MeterBody>;

/// What to send to a switch, in this order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Meters that are not there. Before the entries that use them.
    pub new_meters: Vec<(u32, MeterBody)>,
    /// Meters that are there and different.
    pub other_meters: Vec<(u32, MeterBody)>,
    /// Entries to add, or to put in place of the one with their key. Later tables first, so that a packet that is sent
    /// on to a table finds it filled.
    pub add: Vec<(FlowKey, FlowBody)>,
    /// Entries to delete. Earlier tables first, so that no packet is sent on to a table that is being emptied.
    pub delete: Vec<FlowKey>,
    /// Meters to delete. After the entries that use them, which would go with them.
    pub old_meters: Vec<u32>,
}

impl Changes {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Changes::default()
    }
}

/// What turns `actual` into `desired`.
pub fn reconcile(desired: (&Flows, &Meters), actual: (&Flows, &Meters)) -> Changes {
    let different = |(key, body): &(&FlowKey, &FlowBody)| actual.0.get(*key) != Some(*body);
    let mut add: Vec<_> =
        desired.0.iter().filter(different).map(|(key, body)| (key.clone(), body.clone())).collect();
    add.sort_by_key(|(key, _)| std::cmp::Reverse(key.table));
    let meters = |there: bool| {
        let wanted = desired.1.iter().filter(move |(id, meter)| {
            let found = actual.1.get(*id);
            found != Some(*meter) && found.is_some() == there
        });
        wanted.map(|(id, meter)| (*id, *meter)).collect()
    };
    Changes {
        new_meters: meters(false),
        other_meters: meters(true),
        add,
        delete: actual.0.keys().filter(|key| !desired.0.contains_key(*key)).cloned().collect(),
        old_meters: actual.1.keys().filter(|id| !desired.1.contains_key(*id)).copied().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofp::{Instruction, Match, OxmField, PortNo};
    use proptest::prelude::*;

    fn flows() -> impl Strategy<Value = Flows> {
        let flow =
            (0u8..3, 0u16..3, 1u32..4, 0u64..2, 0u8..3).prop_map(|(table, priority, port, cookie, goto)| {
                let matching = Match::any().with(OxmField::InPort(PortNo(port)));
                let key = FlowKey::new(table, priority, &matching);
                (key, FlowBody::new(cookie, &[Instruction::GotoTable(goto)]))
            });
        prop::collection::btree_map(any::<u8>(), flow, 0..30).prop_map(|map| map.into_values().collect())
    }

    fn meters() -> impl Strategy<Value = Meters> {
        let meter =
            (any::<bool>(), 1u32..3).prop_map(|(packets, rate)| MeterBody { packets, rate, burst: 1 });
        prop::collection::btree_map(0u32..6, meter, 0..5)
    }

    fn rules() -> impl Strategy<Value = (Flows, Meters)> {
        (flows(), meters())
    }

    /// A switch that does what it is told, and is told nothing that it would refuse.
    fn apply((flows, meters): &(Flows, Meters), changes: &Changes) -> (Flows, Meters) {
        let (mut flows, mut meters) = (flows.clone(), meters.clone());
        for (id, meter) in &changes.new_meters {
            assert!(meters.insert(*id, *meter).is_none(), "a meter is added twice");
        }
        for (id, meter) in &changes.other_meters {
            assert!(meters.insert(*id, *meter).is_some(), "a meter is changed that is not there");
        }
        flows.extend(changes.add.iter().cloned());
        for key in &changes.delete {
            assert!(flows.remove(key).is_some(), "an entry is deleted that is not there");
        }
        for id in &changes.old_meters {
            assert!(meters.remove(id).is_some(), "a meter is deleted that is not there");
        }
        (flows, meters)
    }

    proptest! {
        #[test]
        fn changes_lead_to_what_is_desired(desired in rules(), actual in rules()) {
            let changes = reconcile((&desired.0, &desired.1), (&actual.0, &actual.1));
            prop_assert_eq!(apply(&actual, &changes), desired);
        }

        #[test]
        fn nothing_is_sent_that_is_not_needed(desired in rules(), actual in rules()) {
            let changes = reconcile((&desired.0, &desired.1), (&actual.0, &actual.1));
            for (key, body) in &changes.add {
                prop_assert_ne!(actual.0.get(key), Some(body));
            }
            for (id, meter) in changes.new_meters.iter().chain(&changes.other_meters) {
                prop_assert_ne!(actual.1.get(id), Some(meter));
            }
            prop_assert!(reconcile((&desired.0, &desired.1), (&desired.0, &desired.1)).is_empty());
        }

        #[test]
        fn order(desired in rules(), actual in rules()) {
            let changes = reconcile((&desired.0, &desired.1), (&actual.0, &actual.1));
            prop_assert!(changes.add.windows(2).all(|pair| pair[0].0.table >= pair[1].0.table));
            prop_assert!(changes.delete.windows(2).all(|pair| pair[0].table <= pair[1].table));
        }
    }
}
