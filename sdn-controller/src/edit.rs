//! Changes of what is wanted: what they are, what they mean in words, how they are noted.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde_json::{Value, json};

use crate::auth::Identity;
use crate::controller::ChangeError;
use crate::model::{Desired, Dpid, Item, Subject};
use crate::reconcile::Changes;

/// What has to hold for a change to be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Precondition {
    /// The thing has one of these tags.
    Match(Vec<String>),
    /// The thing is there, whatever it is like.
    Exists,
    /// There is no such thing.
    Absent,
}

/// A change: all of it or nothing.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Edit {
    /// What each thing shall be; `None`: gone.
    pub sets: Vec<(Subject, Option<Item>)>,
    /// What has to hold for the first of them.
    pub precondition: Option<Precondition>,
}

/// What a change would do to a switch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SwitchPreview {
    /// Whether it is connected; else it gets what it needs when it is.
    pub connected: bool,
    /// What would be sent.
    pub changes: Changes,
    /// What stands in the way.
    pub obstacles: Vec<String>,
}

/// What a change would do.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Preview {
    /// In words, a line each.
    pub words: Vec<String>,
    /// To each switch that it changes.
    pub switches: BTreeMap<Dpid, SwitchPreview>,
}

/// The tag of a thing: another one when it changes.
pub fn tag(item: &Item) -> String {
    let mut hasher = DefaultHasher::new();
    item.to_json().to_string().hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

impl Edit {
    /// A change without conditions.
    pub fn new(sets: Vec<(Subject, Option<Item>)>) -> Edit {
        Edit { sets, precondition: None }
    }

    /// A change of one thing.
    pub fn one(subject: Subject, item: Option<Item>) -> Edit {
        Edit::new(vec![(subject, item)])
    }

    /// Everything that is to be as in `document`; with `prune`, what is not in it goes.
    pub fn document(document: Vec<(Subject, Item)>, prune: bool, desired: &Desired) -> Edit {
        let mut sets: Vec<_> = document.into_iter().map(|(subject, item)| (subject, Some(item))).collect();
        if prune {
            let kept: std::collections::HashSet<Subject> = sets.iter().map(|(s, _)| s.clone()).collect();
            let gone = desired.subjects().into_iter().filter(|subject| !kept.contains(subject));
            sets.extend(gone.map(|subject| (subject, None)).collect::<Vec<_>>());
        }
        Edit::new(sets)
    }

    /// Whether its condition holds.
    ///
    /// # Errors
    /// It does not.
    pub fn check(&self, desired: &Desired) -> Result<(), ChangeError> {
        let (Some(condition), Some((subject, _))) = (&self.precondition, self.sets.first()) else {
            return Ok(());
        };
        let found = desired.get(subject).map(|(_, item)| tag(&item));
        let holds = match (condition, found) {
            (Precondition::Match(tags), Some(found)) => tags.contains(&found),
            (Precondition::Exists, Some(_)) | (Precondition::Absent, None) => true,
            _ => false,
        };
        if holds { Ok(()) } else { Err(ChangeError::Precondition(subject.clone())) }
    }
}

/// A change in words.
pub fn words(sets: &[(Subject, Option<Item>)], before: &Desired, after: &Desired) -> Vec<String> {
    let json = |desired: &Desired, subject: &Subject| desired.get(subject).map(|(_, item)| item.to_json());
    let mut lines = Vec::new();
    for (subject, _) in sets {
        match (json(before, subject), json(after, subject)) {
            (None, Some(new)) => lines.push(format!("make {subject}: {new}")),
            (Some(_), None) => lines.push(format!("delete {subject}")),
            (Some(old), Some(new)) if old != new => {
                let parts = differences(&old, &new);
                lines.extend(parts.into_iter().map(|part| format!("change {subject}: {part}")));
            }
            _ => {}
        }
    }
    lines
}

/// What differs between two objects, key by key; in lists, element by element.
fn differences(old: &Value, new: &Value) -> Vec<String> {
    let empty = serde_json::Map::new();
    let (old, new) = (old.as_object().unwrap_or(&empty), new.as_object().unwrap_or(&empty));
    let mut parts = Vec::new();
    let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for key in keys {
        match (old.get(key), new.get(key)) {
            (Some(a), Some(b)) if a == b => {}
            (Some(Value::Array(a)), Some(Value::Array(b))) => {
                let only = |of: &[Value], other: &[Value]| -> Vec<Value> {
                    of.iter().filter(|item| !other.contains(item)).cloned().collect()
                };
                let (gone, added) = (only(a, b), only(b, a));
                parts.extend(gone.iter().map(|item| format!("{key} without {item}")));
                parts.extend(added.iter().map(|item| format!("{key} with {item}")));
                if gone.is_empty() && added.is_empty() {
                    parts.push(format!("{key} in another order"));
                }
            }
            (Some(a), Some(b)) => parts.push(format!("{key} {b} instead of {a}")),
            (Some(a), None) => parts.push(format!("no {key} instead of {a}")),
            (None, Some(b)) => parts.push(format!("{key} {b}")),
            (None, None) => {}
        }
    }
    parts
}

/// The record of one change.
pub fn audit(
    who: &Identity,
    time_ms: u64,
    subject: &Subject,
    before: Option<&Item>,
    after: Option<&Item>,
) -> Value {
    let action = match (before, after) {
        (None, _) => "make",
        (_, None) => "delete",
        _ => "change",
    };
    let json = |item: Option<&Item>| item.map_or(Value::Null, Item::to_json);
    record(who, time_ms, action, (subject.kind.singular(), &subject.name), [json(before), json(after)])
}

/// The record of something that was done to a thing: how it was before, and after it.
pub fn record(
    who: &Identity,
    time_ms: u64,
    action: &str,
    (kind, name): (&str, &str),
    [before, after]: [Value; 2],
) -> Value {
    json!({
        "time_ms": time_ms, "who": who.name, "from": who.from, "action": action, "kind": kind, "name": name,
        "before": before, "after": after,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Kind;
    use telemetry::check::Errors;

    fn network(value: Value) -> Option<Item> {
        Some(Item::from_json(Kind::Network, value, &mut Errors::new()).expect("a good network"))
    }

    #[test]
    fn changes_in_words() {
        let subject = |name: &str| Subject::new(Kind::Network, name);
        let (mut before, mut after) = (Desired::default(), Desired::default());
        let port = |n: u32| json!({"dpid": 1, "port": n});
        before.set(&subject("a"), network(json!({"vlan": 1, "ports": [port(1), port(2)]})), None);
        before.set(&subject("b"), network(json!({"vlan": 2})), None);
        after.set(&subject("a"), network(json!({"vlan": 3, "ports": [port(2)], "mtu": 1400})), None);
        after.set(&subject("c"), network(json!({"vlan": 2})), None);
        let sets = ["a", "b", "c"].map(|name| (subject(name), None));
        let expected = [
            "change network a: mtu 1400",
            "change network a: ports without {\"dpid\":1,\"mode\":\"access\",\"port\":1}",
            "change network a: vlan 3 instead of 1",
            "delete network b",
            "make network c: {\"ports\":[],\"vlan\":2}",
        ];
        assert_eq!(words(&sets, &before, &after), expected);
    }

    #[test]
    fn a_document_is_everything_or_a_part() {
        let subject = |name: &str| Subject::new(Kind::Network, name);
        let mut desired = Desired::default();
        desired.set(&subject("old"), network(json!({"vlan": 1})), None);
        let document = || vec![(subject("new"), network(json!({"vlan": 2})).unwrap())];
        assert_eq!(Edit::document(document(), false, &desired).sets.len(), 1);
        let all = Edit::document(document(), true, &desired).sets;
        assert_eq!(all[1], (subject("old"), None));
    }
}
