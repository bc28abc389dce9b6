//! Everything that is wanted, as one value.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use telemetry::check::Errors;

use super::{
    Acl, Attachment, Chain, Conflict, Dpid, Mirror, Network, Tenant, Uplink, VLAN_AUTOMATIC, conflict,
};
use crate::flow_json::FlowSpec;

/// Static flows over all switches at most.
pub const FLOWS_MAX: usize = 65_536;

/// The VLAN ids that the controller may choose from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VlanRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl Default for VlanRange {
    fn default() -> VlanRange {
        VlanRange { first: 2000, last: 3999 }
    }
}

impl VlanRange {
    /// Where a name belongs: the same in every process and release (FNV-1a).
    fn place_of(self, name: &str) -> u16 {
        let hash = name
            .bytes()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        let count = u32::from(self.last - self.first) + 1;
        self.first + (hash % count) as u16
    }
}

/// One thing that is wanted, with the number that tells it apart in cookies and meters.
#[derive(PartialEq, Eq, Debug)]
pub struct Entry<T> {
    /// Its number; of nothing else of its kind.
    pub number: u32,
    /// The thing.
    pub value: Arc<T>,
}

impl<T> Clone for Entry<T> {
    fn clone(&self) -> Entry<T> {
        Entry { number: self.number, value: self.value.clone() }
    }
}

impl<T> std::ops::Deref for Entry<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

macro_rules! kinds {
    ($($(#[$meta:meta])* $kind:ident($value:ty) in $map:ident = $one:literal, $many:literal;)*) => {
        /// What kind of thing.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub enum Kind { $($(#[$meta])* $kind,)* }

        impl Kind {
            /// Every kind, in the order in which they refer to each other.
            pub const ALL: &[Kind] = &[$(Kind::$kind,)*];

            /// One of it, in words and in the store.
            pub const fn singular(self) -> &'static str {
                match self { $(Kind::$kind => $one,)* }
            }

            /// Many of it, in paths and documents.
            pub const fn plural(self) -> &'static str {
                match self { $(Kind::$kind => $many,)* }
            }
        }

        /// One thing of any kind.
        #[derive(Clone, PartialEq, Debug)]
        pub enum Item { $($(#[$meta])* $kind(Arc<$value>),)* }

        impl Item {
            /// Its kind.
            pub fn kind(&self) -> Kind {
                match self { $(Item::$kind(_) => Kind::$kind,)* }
            }

            /// Reads a thing from JSON; everything wrong with it goes to `errors`.
            pub fn from_json(kind: Kind, value: Value, errors: &mut Errors) -> Option<Item> {
                match kind { $(Kind::$kind => <$value>::from_json(value, errors).map(|v| Item::$kind(Arc::new(v))),)* }
            }
        }
    };
}

kinds! {
    /// A tenant.
    Tenant(Tenant) in tenants = "tenant", "tenants";
    /// An ACL.
    Acl(Acl) in acls = "acl", "acls";
    /// A network.
    Network(Network) in networks = "network", "networks";
    /// An attachment.
    Attachment(Attachment) in attachments = "attachment", "attachments";
    /// An uplink.
    Uplink(Uplink) in uplinks = "uplink", "uplinks";
    /// A mirror.
    Mirror(Mirror) in mirrors = "mirror", "mirrors";
    /// A service chain.
    Chain(Chain) in chains = "chain", "chains";
    /// A static flow.
    Flow(FlowSpec) in flows = "flow", "flows";
}

impl Kind {
    /// The kind of this name in the store.
    pub fn from_singular(name: &str) -> Option<Kind> {
        Kind::ALL.iter().copied().find(|kind| kind.singular() == name)
    }
}

impl Item {
    /// The thing as JSON, as it is read again.
    pub fn to_json(&self) -> Value {
        match self {
            Item::Tenant(tenant) => serde_json::json!(**tenant),
            Item::Acl(acl) => serde_json::json!(**acl),
            Item::Network(network) => serde_json::json!(**network),
            Item::Attachment(attachment) => serde_json::json!(**attachment),
            Item::Uplink(uplink) => serde_json::json!(**uplink),
            Item::Mirror(mirror) => serde_json::json!(**mirror),
            Item::Chain(chain) => serde_json::json!(**chain),
            Item::Flow(flow) => flow.to_json(),
        }
    }
}

/// What names one thing. A flow's name is its switch and its id with a slash between them.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Subject {
    /// The kind of thing.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

impl Subject {
    /// The thing of this kind and name.
    pub fn new(kind: Kind, name: impl Into<String>) -> Subject {
        Subject { kind, name: name.into() }
    }

    /// A static flow.
    pub fn flow(dpid: Dpid, id: &str) -> Subject {
        Subject::new(Kind::Flow, format!("{dpid}/{id}"))
    }

    /// Switch and id of a static flow.
    pub fn flow_key(&self) -> Option<(Dpid, String)> {
        let (dpid, id) = self.name.split_once('/').filter(|_| self.kind == Kind::Flow)?;
        Some((dpid.parse().ok()?, id.to_owned()))
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.flow_key() {
            Some((dpid, id)) => write!(f, "flow {id} of switch {dpid}"),
            None => write!(f, "{} {}", self.kind.singular(), self.name),
        }
    }
}

/// Everything the operator wants. A value that is never changed in place: readers keep the one they have.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Desired {
    /// Tenants by name.
    pub tenants: BTreeMap<String, Entry<Tenant>>,
    /// ACLs by name.
    pub acls: BTreeMap<String, Entry<Acl>>,
    /// Networks by name.
    pub networks: BTreeMap<String, Entry<Network>>,
    /// Attachments by name.
    pub attachments: BTreeMap<String, Entry<Attachment>>,
    /// Uplinks by name.
    pub uplinks: BTreeMap<String, Entry<Uplink>>,
    /// Mirrors by name.
    pub mirrors: BTreeMap<String, Entry<Mirror>>,
    /// Service chains by name.
    pub chains: BTreeMap<String, Entry<Chain>>,
    /// Static flows by switch and id.
    pub flows: BTreeMap<(Dpid, String), Entry<FlowSpec>>,
    /// By kind.
    numbers: [Numbers; Kind::ALL.len()],
}

/// The numbers of one kind that are given: all from 1 to the highest but for the free ones. What is given decides how
/// that is written, so equal sets are equal values.
#[derive(Clone, PartialEq, Debug, Default)]
struct Numbers {
    highest: u32,
    free: BTreeSet<u32>,
}

impl Numbers {
    /// The lowest free one, without a look at those that are given.
    fn lowest_free(&self) -> u32 {
        self.free.first().copied().unwrap_or(self.highest + 1)
    }

    fn give(&mut self, number: u32) {
        if number > self.highest {
            self.free.extend(self.highest + 1..number);
            self.highest = number;
        } else {
            self.free.remove(&number);
        }
    }

    fn take_back(&mut self, number: u32) {
        self.free.insert(number);
        while self.highest > 0 && self.free.remove(&self.highest) {
            self.highest -= 1;
        }
    }
}

/// Puts `value` in, under the number of what was there or the lowest free one; or takes it out.
fn put<T>(
    map: &mut BTreeMap<String, Entry<T>>,
    numbers: &mut Numbers,
    key: &str,
    value: Option<Arc<T>>,
    number: Option<u32>,
) {
    let before = map.get(key).map(|entry| entry.number);
    let after = value.is_some().then(|| number.or(before).unwrap_or_else(|| numbers.lowest_free()));
    if before != after {
        before.into_iter().for_each(|number| numbers.take_back(number));
        after.into_iter().for_each(|number| numbers.give(number));
    }
    match (value, after) {
        (Some(value), Some(number)) => drop(map.insert(key.to_owned(), Entry { number, value })),
        _ => drop(map.remove(key)),
    }
}

impl Desired {
    /// A thing and its number.
    pub fn get(&self, subject: &Subject) -> Option<(u32, Item)> {
        fn of<T>(entry: Option<&Entry<T>>, item: impl Fn(Arc<T>) -> Item) -> Option<(u32, Item)> {
            entry.map(|entry| (entry.number, item(entry.value.clone())))
        }
        let name = &subject.name;
        match subject.kind {
            Kind::Tenant => of(self.tenants.get(name), Item::Tenant),
            Kind::Acl => of(self.acls.get(name), Item::Acl),
            Kind::Network => of(self.networks.get(name), Item::Network),
            Kind::Attachment => of(self.attachments.get(name), Item::Attachment),
            Kind::Uplink => of(self.uplinks.get(name), Item::Uplink),
            Kind::Mirror => of(self.mirrors.get(name), Item::Mirror),
            Kind::Chain => of(self.chains.get(name), Item::Chain),
            Kind::Flow => of(self.flows.get(&subject.flow_key()?), Item::Flow),
        }
    }

    /// Puts a thing in, or takes it out with `None`. A number is kept, given, or chosen.
    ///
    /// # Panics
    /// The item is not of the subject's kind.
    pub fn set(&mut self, subject: &Subject, item: Option<Item>, number: Option<u32>) {
        macro_rules! put_in {
            ($map:ident, $kind:ident) => {
                put(
                    &mut self.$map,
                    &mut self.numbers[subject.kind as usize],
                    &subject.name,
                    item.map(|item| match item {
                        Item::$kind(value) => value,
                        other => panic!("{subject} is no {}", other.kind().singular()),
                    }),
                    number,
                )
            };
        }
        match subject.kind {
            Kind::Tenant => put_in!(tenants, Tenant),
            Kind::Acl => put_in!(acls, Acl),
            Kind::Network => put_in!(networks, Network),
            Kind::Attachment => put_in!(attachments, Attachment),
            Kind::Uplink => put_in!(uplinks, Uplink),
            Kind::Mirror => put_in!(mirrors, Mirror),
            Kind::Chain => put_in!(chains, Chain),
            Kind::Flow => {
                let Some(key) = subject.flow_key() else { return };
                // Flows need no number of their own, and there may be many.
                match item {
                    Some(Item::Flow(value)) => drop(self.flows.insert(key, Entry { number: 0, value })),
                    _ => drop(self.flows.remove(&key)),
                }
            }
        }
    }

    /// All of these.
    #[cfg(test)]
    pub(crate) fn of(items: &[(Kind, &str, Value)]) -> Desired {
        let mut desired = Desired::default();
        for (kind, name, value) in items {
            let mut errors = Errors::new();
            let item = Item::from_json(*kind, value.clone(), &mut errors);
            let item = item.unwrap_or_else(|| panic!("{name}: {:?}", errors.list()));
            desired.set(&Subject::new(*kind, *name), Some(item), None);
        }
        desired
    }

    /// The names of a kind, in order.
    pub fn subjects_of(&self, kind: Kind) -> Vec<Subject> {
        fn of<T>(kind: Kind, map: &BTreeMap<String, T>) -> Vec<Subject> {
            map.keys().map(|name| Subject::new(kind, name)).collect()
        }
        match kind {
            Kind::Tenant => of(kind, &self.tenants),
            Kind::Acl => of(kind, &self.acls),
            Kind::Network => of(kind, &self.networks),
            Kind::Attachment => of(kind, &self.attachments),
            Kind::Uplink => of(kind, &self.uplinks),
            Kind::Mirror => of(kind, &self.mirrors),
            Kind::Chain => of(kind, &self.chains),
            Kind::Flow => self.flows.keys().map(|(dpid, id)| Subject::flow(*dpid, id)).collect(),
        }
    }

    /// Everything, in the order in which things refer to each other.
    pub fn subjects(&self) -> Vec<Subject> {
        Kind::ALL.iter().flat_map(|&kind| self.subjects_of(kind)).collect()
    }

    /// Everything that is wrong with it as a whole.
    pub fn conflicts(&self) -> Vec<Conflict> {
        conflict::find(self)
    }

    /// Chooses what was left to the controller, as it was in `before` where possible. Else the name decides, not what
    /// came first: controllers that are given the same choose the same, but for names that meet at one VLAN id.
    ///
    /// # Errors
    /// No VLAN id is left.
    pub fn complete(&mut self, before: &Desired, range: VlanRange) -> Result<(), Conflict> {
        let mut used: BTreeSet<u16> = self.networks.values().map(|network| network.vlan).collect();
        used.extend(self.chains.values().flat_map(|chain| chain.vlans.iter().copied()));
        let mut choose = |wished: Option<u16>, name: &str| {
            let free = |vlan: &u16| !used.contains(vlan);
            let begin = range.place_of(name);
            let vlan = wished
                .filter(free)
                .or_else(|| (begin..=range.last).find(free))
                .or_else(|| (range.first..begin).find(free));
            let vlan = vlan.ok_or(Conflict::NoVlan { first: range.first, last: range.last })?;
            used.insert(vlan);
            Ok(vlan)
        };
        for (name, network) in &mut self.networks {
            if network.vlan == VLAN_AUTOMATIC {
                let vlan = choose(before.networks.get(name).map(|network| network.vlan), name)?;
                network.value = Arc::new(Network { vlan, ..Network::clone(network) });
            }
        }
        for (name, chain) in &mut self.chains {
            if chain.vlans.is_empty() {
                let earlier = before.chains.get(name).map(|chain| chain.vlans.clone()).unwrap_or_default();
                let vlan = |index: usize| choose(earlier.get(index).copied(), &format!("{name}/{index}"));
                let vlans = (0..chain.hops.len()).map(vlan).collect::<Result<_, _>>()?;
                chain.value = Arc::new(Chain { vlans, ..Chain::clone(chain) });
            }
        }
        Ok(())
    }

    /// The static flows of a switch.
    pub fn flows_of(&self, dpid: Dpid) -> impl Iterator<Item = (&str, &Arc<FlowSpec>)> {
        self.flows
            .range((dpid, String::new())..)
            .take_while(move |((switch, _), _)| *switch == dpid)
            .map(|((_, id), flow)| (id.as_str(), &flow.value))
    }

    /// The tenant that a thing belongs to.
    pub fn tenant_of(&self, item: &Item) -> Option<&str> {
        let of_network =
            |name: &String| self.networks.get(name).and_then(|network| network.tenant.as_deref());
        match item {
            Item::Acl(acl) => acl.tenant.as_deref().and_then(|name| self.tenant_name(name)),
            Item::Network(network) => network.tenant.as_deref().and_then(|name| self.tenant_name(name)),
            Item::Attachment(attachment) => of_network(&attachment.network),
            _ => None,
        }
    }

    fn tenant_name(&self, name: &str) -> Option<&str> {
        self.tenants.get_key_value(name).map(|(name, _)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn item(kind: Kind, value: Value) -> Option<Item> {
        Some(Item::from_json(kind, value, &mut Errors::new()).expect("a good item"))
    }

    proptest::proptest! {
        #[test]
        fn numbers_are_the_lowest_free_ones(steps in proptest::collection::vec((0u32..40, 0u8..3), 0..100)) {
            let (mut numbers, mut given) = (Numbers::default(), BTreeSet::new());
            for (number, what) in steps {
                let lowest = (1..).find(|number| !given.contains(number)).unwrap();
                proptest::prop_assert_eq!(numbers.lowest_free(), lowest);
                let number = if what == 0 { lowest } else { number + 1 };
                match given.contains(&number) {
                    true => numbers.take_back(number),
                    false => numbers.give(number),
                }
                if !given.remove(&number) {
                    given.insert(number);
                }
                let mut afresh = Numbers::default();
                given.iter().for_each(|number| afresh.give(*number));
                proptest::prop_assert_eq!(&numbers, &afresh);
            }
        }
    }

    #[test]
    fn numbers_are_kept_and_given_again() {
        let mut desired = Desired::default();
        let subject = |name: &str| Subject::new(Kind::Tenant, name);
        let tenant = || item(Kind::Tenant, json!({}));
        for name in ["a", "b", "c"] {
            desired.set(&subject(name), tenant(), None);
        }
        let number = |desired: &Desired, name: &str| desired.get(&subject(name)).map(|(number, _)| number);
        desired.set(&subject("b"), tenant(), None);
        assert_eq!(["a", "b", "c"].map(|name| number(&desired, name)), [Some(1), Some(2), Some(3)]);
        desired.set(&subject("a"), None, None);
        desired.set(&subject("d"), tenant(), None);
        assert_eq!(["a", "d"].map(|name| number(&desired, name)), [None, Some(1)]);
    }

    #[test]
    fn vlans_are_chosen_and_kept() {
        let range = VlanRange { first: 2000, last: 2001 };
        let subject = |name: &str| Subject::new(Kind::Network, name);
        let vlan = |desired: &Desired, name: &str| desired.networks[name].vlan;
        let mut first = Desired::default();
        first.set(&subject("a"), item(Kind::Network, json!({"vlan": 2000})), None);
        first.set(&subject("b"), item(Kind::Network, json!({})), None);
        first.complete(&Desired::default(), range).unwrap();
        assert_eq!(vlan(&first, "b"), 2001);
        let mut second = first.clone();
        second.set(&subject("a"), None, None);
        second.set(&subject("b"), item(Kind::Network, json!({"vlan": "auto"})), None);
        second.complete(&first, range).unwrap();
        assert_eq!(vlan(&second, "b"), 2001);
        second.set(&subject("c"), item(Kind::Network, json!({})), None);
        second.complete(&first, range).unwrap();
        assert_eq!(vlan(&second, "c"), 2000);
        second.set(&subject("d"), item(Kind::Network, json!({})), None);
        assert!(matches!(second.complete(&first, range), Err(Conflict::NoVlan { .. })));
    }

    #[test]
    fn the_name_decides_what_is_chosen() {
        let vlans = |names: &[&str]| {
            let mut desired = Desired::default();
            for name in names {
                let before = desired.clone();
                desired.set(&Subject::new(Kind::Network, *name), item(Kind::Network, json!({})), None);
                desired.complete(&before, VlanRange::default()).unwrap();
            }
            let chosen = |name: &str| desired.networks[name].vlan;
            ["blue", "green", "red"].map(chosen)
        };
        // Whatever came first, or was there for a while.
        let chosen = vlans(&["blue", "green", "red"]);
        assert_eq!(vlans(&["red", "old", "green", "blue"]), chosen);
        // And in every release, or a new one would change the networks of an old one that stands beside it.
        assert_eq!(chosen, [2541, 2364, 3596]);
    }

    #[test]
    fn subjects_have_names() {
        let flow = Subject::flow(Dpid(7), "web");
        assert_eq!(flow.flow_key(), Some((Dpid(7), "web".into())));
        assert_eq!(flow.to_string(), "flow web of switch 7");
        assert_eq!(Subject::new(Kind::Acl, "a").to_string(), "acl a");
        for &kind in Kind::ALL {
            assert_eq!(Kind::from_singular(kind.singular()), Some(kind));
        }
    }
}
