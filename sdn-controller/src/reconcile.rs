//! From what is to what shall be, with the fewest messages.

use std::collections::BTreeMap;

use crate::entry::{FlowBody, FlowKey};

/// Flow entries by what tells them apart.
pub type Flows = BTreeMap<FlowKey, FlowBody>;

/// What to send to a switch, in this order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Entries to add, or to put in place of the one with their key. Later tables first, so that a packet that is sent
    /// on to a table finds it filled.
    pub add: Vec<(FlowKey, FlowBody)>,
    /// Entries to delete. Earlier tables first, so that no packet is sent on to a table that is being emptied.
    pub delete: Vec<FlowKey>,
}

impl Changes {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.delete.is_empty()
    }
}

/// What turns `actual` into `desired`.
pub fn reconcile(desired: &Flows, actual: &Flows) -> Changes {
    let different = |(key, body): &(&FlowKey, &FlowBody)| actual.get(*key) != Some(*body);
    let mut add: Vec<_> =
        desired.iter().filter(different).map(|(key, body)| (key.clone(), body.clone())).collect();
    add.sort_by_key(|(key, _)| std::cmp::Reverse(key.table));
    let delete = actual.keys().filter(|key| !desired.contains_key(*key)).cloned().collect();
    Changes { add, delete }
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

    /// A switch that does what it is told.
    fn apply(actual: &Flows, changes: &Changes) -> Flows {
        let mut flows = actual.clone();
        flows.extend(changes.add.iter().cloned());
        flows.retain(|key, _| !changes.delete.contains(key));
        flows
    }

    proptest! {
        #[test]
        fn changes_lead_to_what_is_desired(desired in flows(), actual in flows()) {
            let changes = reconcile(&desired, &actual);
            prop_assert_eq!(apply(&actual, &changes), desired);
        }

        #[test]
        fn nothing_is_sent_that_is_not_needed(desired in flows(), actual in flows()) {
            let changes = reconcile(&desired, &actual);
            for (key, body) in &changes.add {
                prop_assert_ne!(actual.get(key), Some(body));
            }
            for key in &changes.delete {
                prop_assert!(actual.contains_key(key));
            }
            prop_assert!(reconcile(&desired, &desired).is_empty());
        }

        #[test]
        fn order(desired in flows(), actual in flows()) {
            let changes = reconcile(&desired, &actual);
            prop_assert!(changes.add.windows(2).all(|pair| pair[0].0.table >= pair[1].0.table));
            prop_assert!(changes.delete.windows(2).all(|pair| pair[0].table <= pair[1].table));
        }
    }
}
