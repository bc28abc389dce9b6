//! What is wanted, cut into a part for each switch: segments (VLANs) with their members, and static flows.
//!
//! A network is one segment. A service chain splits its network: the attachments behind the functions move into a
//! segment of their own, and the functions are what connects the segments. Uplinks become tagged members of every
//! segment that has members on both of their sides; of uplinks that form loops only a tree is used.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;
use ofp::MacAddr;

use crate::flow_json::FlowSpec;
use crate::model::{
    Acl, Attachment, Chain, Desired, Dpid, Entry, Flooding, Kind, Mirror, MirrorDirection, MirrorSource,
    Network, Place, PortMode, PortRef, Rates, Subject, Uplink,
};
use crate::rule_set::RuleSet;

/// What shall hold for one attached host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Policy {
    /// The number of its attachment; 0 for a port that has none.
    pub number: u32,
    /// Where it may send from; none = anywhere.
    pub macs: Vec<MacAddr>,
    /// Where it may send from; none = anywhere.
    pub ips: Vec<IpNet>,
    /// Its rate limits.
    pub rates: Rates,
    /// Its ACLs.
    pub rules: Arc<RuleSet>,
    /// Whether DHCP servers and routers may be there.
    pub trusted: bool,
    /// Where copies of what it sends go.
    pub copies_from: Vec<PortRef>,
    /// Where copies of what it gets go.
    pub copies_to: Vec<PortRef>,
}

/// One port of a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Whom it is for.
    pub owner: Subject,
    /// The port.
    pub port: PortRef,
    /// How it takes part.
    pub mode: PortMode,
    /// What shall hold for the host behind it.
    pub policy: Option<Arc<Policy>>,
}

/// A VLAN on a switch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Whom it is for.
    pub owner: Subject,
    /// VLAN id.
    pub vlan: u16,
    /// What happens to frames whose receiver is not known.
    pub flooding: Flooding,
    /// Whether DHCP and router advertisements from access ports are dropped.
    pub guard: bool,
    /// Whose ARP and neighbour discovery is sent to them alone.
    pub hosts: Arc<Vec<(IpAddr, MacAddr)>>,
    /// Where copies of everything go.
    pub copies: Vec<PortRef>,
    /// Its ports.
    pub members: Vec<Member>,
}

/// What one switch shall do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SwitchLayout {
    /// Its VLANs.
    pub segments: Vec<Arc<Segment>>,
    /// Its static flows.
    pub flows: Vec<(String, Arc<FlowSpec>)>,
}

/// What every switch shall do.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    switches: BTreeMap<Dpid, Arc<SwitchLayout>>,
    /// Where something of each thing is, once somebody has asked for many.
    places: OnceLock<HashMap<Subject, BTreeSet<Dpid>>>,
    networks: BTreeMap<String, Arc<NetworkPart>>,
    shared: Shared,
}

/// One network laid out, and what of: as long as that is the same, it need not be laid out again.
#[derive(Debug)]
struct NetworkPart {
    network: Entry<Network>,
    attachments: Vec<(String, Entry<Attachment>)>,
    chains: Vec<(String, Entry<Chain>)>,
    segments: Vec<(Dpid, Arc<Segment>)>,
}

/// What every network may depend on.
#[derive(Clone, Debug, Default)]
struct Shared {
    acls: BTreeMap<String, Entry<Acl>>,
    uplinks: BTreeMap<String, Entry<Uplink>>,
    mirrors: BTreeMap<String, Entry<Mirror>>,
}

fn same<T>(a: &Entry<T>, b: &Entry<T>) -> bool {
    a.number == b.number && Arc::ptr_eq(&a.value, &b.value)
}

fn map_is_same<T>(a: &BTreeMap<String, Entry<T>>, b: &BTreeMap<String, Entry<T>>) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.0 == b.0 && same(a.1, b.1))
}

impl Shared {
    fn is_of(&self, desired: &Desired) -> bool {
        map_is_same(&self.acls, &desired.acls)
            && map_is_same(&self.uplinks, &desired.uplinks)
            && map_is_same(&self.mirrors, &desired.mirrors)
    }
}

impl Layout {
    /// The layout of `desired`. Parts that are as in `before` are shared with it, so that what changed is seen by
    /// comparing pointers.
    pub fn new(desired: &Desired, before: &Layout) -> Layout {
        let mut builder = Builder::new(desired);
        let unchanged = before.shared.is_of(desired);
        let mut networks = BTreeMap::new();
        let mut parts = BTreeMap::<Dpid, SwitchLayout>::new();
        for (name, network) in &desired.networks {
            let earlier = before.networks.get(name).filter(|_| unchanged);
            let part = match earlier.filter(|part| builder.is_of(part, name, network)) {
                Some(part) => part.clone(),
                None => Arc::new(builder.network(name, network)),
            };
            for (dpid, segment) in &part.segments {
                parts.entry(*dpid).or_default().segments.push(segment.clone());
            }
            networks.insert(name.clone(), part);
        }
        for ((dpid, id), flow) in &desired.flows {
            parts.entry(*dpid).or_default().flows.push((id.clone(), flow.value.clone()));
        }
        let share = |(dpid, part): (Dpid, SwitchLayout)| {
            let same = before.switches.get(&dpid).filter(|earlier| ***earlier == part);
            (dpid, same.cloned().unwrap_or_else(|| Arc::new(part)))
        };
        let shared = match unchanged {
            true => before.shared.clone(),
            false => Shared {
                acls: desired.acls.clone(),
                uplinks: desired.uplinks.clone(),
                mirrors: desired.mirrors.clone(),
            },
        };
        let switches = parts.into_iter().map(share).collect();
        Layout { switches, places: OnceLock::new(), networks, shared }
    }

    /// Every thing that has something on a switch, with that switch; most of them more than once.
    fn owners(&self) -> impl Iterator<Item = (Dpid, &Subject)> {
        let segments = self.switches.iter().flat_map(|(dpid, part)| part.segments.iter().map(|s| (*dpid, s)));
        segments.flat_map(|(dpid, segment)| {
            let members = segment.members.iter().map(|member| &member.owner);
            members.chain([&segment.owner]).map(move |owner| (dpid, owner))
        })
    }

    /// Where something of each thing is.
    fn places(&self) -> &HashMap<Subject, BTreeSet<Dpid>> {
        self.places.get_or_init(|| {
            let mut places = HashMap::<Subject, BTreeSet<Dpid>>::new();
            for (dpid, owner) in self.owners() {
                match places.get_mut(owner) {
                    Some(there) => drop(there.insert(dpid)),
                    None => drop(places.insert(owner.clone(), [dpid].into())),
                }
            }
            places
        })
    }

    /// The part of a switch.
    pub fn of(&self, dpid: Dpid) -> Arc<SwitchLayout> {
        self.switches.get(&dpid).cloned().unwrap_or_default()
    }

    /// Every switch that something is wanted of.
    pub fn switches(&self) -> impl Iterator<Item = (Dpid, &Arc<SwitchLayout>)> {
        self.switches.iter().map(|(dpid, part)| (*dpid, part))
    }

    /// The switches whose parts differ.
    pub fn changed(&self, other: &Layout) -> BTreeSet<Dpid> {
        let dpids = self.switches.keys().chain(other.switches.keys());
        let differs = |dpid: &&Dpid| match (self.switches.get(dpid), other.switches.get(dpid)) {
            (Some(a), Some(b)) => !Arc::ptr_eq(a, b),
            _ => true,
        };
        dpids.filter(differs).copied().collect()
    }

    /// The switches that something of `subject` is on.
    pub fn switches_of(&self, subject: &Subject) -> BTreeSet<Dpid> {
        match subject.flow_key() {
            Some((dpid, _)) => [dpid].into(),
            None => self.places().get(subject).cloned().unwrap_or_default(),
        }
    }

    /// The switches that something of any of these is on.
    pub fn switches_of_all<'a>(
        &self,
        subjects: impl ExactSizeIterator<Item = &'a Subject>,
    ) -> BTreeSet<Dpid> {
        if subjects.len() > FEW {
            return subjects.flat_map(|subject| self.switches_of(subject)).collect();
        }
        // One look at everything is cheaper than to note where all of it is.
        let subjects: Vec<&Subject> = subjects.collect();
        let flows = subjects.iter().filter_map(|subject| subject.flow_key()).map(|(dpid, _)| dpid);
        let others = self.owners().filter(|(_, owner)| subjects.contains(owner)).map(|(dpid, _)| dpid);
        flows.chain(others).collect()
    }
}

/// So many things are looked for one by one.
const FEW: usize = 8;

struct Builder<'a> {
    desired: &'a Desired,
    attachments: HashMap<&'a str, Vec<(&'a str, &'a Entry<Attachment>)>>,
    chains: HashMap<&'a str, Vec<(&'a str, &'a Entry<Chain>)>>,
    /// Where copies of what attachments send and get go.
    copies: HashMap<&'a str, Vec<&'a Mirror>>,
    rule_sets: HashMap<Vec<&'a str>, Arc<RuleSet>>,
    tree: Tree<'a>,
    /// Of the network that is being laid out.
    segments: Vec<(Dpid, Arc<Segment>)>,
}

type Members = BTreeMap<Dpid, Vec<Member>>;

impl<'a> Builder<'a> {
    fn new(desired: &'a Desired) -> Builder<'a> {
        let mut attachments: HashMap<&str, Vec<_>> = HashMap::new();
        for (name, attachment) in &desired.attachments {
            attachments.entry(&attachment.network).or_default().push((name.as_str(), attachment));
        }
        let mut chains: HashMap<&str, Vec<_>> = HashMap::new();
        for (name, chain) in &desired.chains {
            chains.entry(&chain.network).or_default().push((name.as_str(), chain));
        }
        let mut copies: HashMap<&str, Vec<&Mirror>> = HashMap::new();
        for mirror in desired.mirrors.values() {
            if let MirrorSource::Attachment(name) = &mirror.source {
                copies.entry(name).or_default().push(mirror);
            }
        }
        let (rule_sets, tree) = (HashMap::new(), Tree::new(desired));
        Builder { desired, attachments, chains, copies, rule_sets, tree, segments: Vec::new() }
    }

    /// Whether the part is of what the network is made of now.
    fn is_of(&self, part: &NetworkPart, name: &str, network: &Entry<Network>) -> bool {
        let attachments = self.attachments.get(name).map_or(&[][..], Vec::as_slice);
        let chains = self.chains.get(name).map_or(&[][..], Vec::as_slice);
        same(&part.network, network)
            && is_list_of(&part.attachments, attachments)
            && is_list_of(&part.chains, chains)
    }

    fn network(&mut self, name: &'a str, network: &'a Entry<Network>) -> NetworkPart {
        let owner = Subject::new(Kind::Network, name);
        let mut main = Members::new();
        for port in &network.ports {
            let guarded = port.mode != PortMode::Trunk && !network.acls.is_empty();
            let policy = guarded.then(|| {
                let rules = self.rules(&network.acls, &[]);
                Arc::new(Policy { rules, ..Policy::default() })
            });
            let (port_ref, mode) = (port.port.clone(), port.mode);
            let member = Member { owner: owner.clone(), port: port_ref, mode, policy };
            main.entry(port.dpid).or_default().push(member);
        }
        let chains = self.chains.remove(name).unwrap_or_default();
        let part_chains = owned(&chains);
        let inside: HashMap<&str, usize> = chains
            .iter()
            .enumerate()
            .flat_map(|(index, (_, chain))| chain.inside.iter().map(move |name| (name.as_str(), index)))
            .collect();
        let mut behind: Vec<Members> = vec![Members::new(); chains.len()];
        let attachments = self.attachments.remove(name).unwrap_or_default();
        let part_attachments = owned(&attachments);
        let mut hosts = Vec::new();
        for (attachment_name, attachment) in attachments {
            let member = self.member(attachment_name, attachment, network);
            if let (true, [mac]) = (network.suppress, &attachment.macs[..]) {
                let single = attachment.ips.iter().filter(|ip| ip.prefix_len() == ip.max_prefix_len());
                hosts.extend(single.map(|ip| (ip.addr(), mac.0)));
            }
            let members = inside.get(attachment_name).map_or(&mut main, |&index| &mut behind[index]);
            members.entry(attachment.place.dpid).or_default().push(member);
        }
        let hosts = Arc::new(hosts);
        for ((chain_name, chain), mut members) in chains.into_iter().zip(behind) {
            let of = Subject::new(Kind::Chain, chain_name);
            for (hop, &vlan) in chain.hops.iter().zip(&chain.vlans) {
                add_access(&mut members, &of, &hop.inside);
                self.segment(&of, vlan, network, &hosts, vec![], std::mem::take(&mut members));
                add_access(&mut members, &of, &hop.outside);
            }
            for (dpid, list) in members {
                main.entry(dpid).or_default().extend(list);
            }
        }
        let copies = self.desired.mirrors.values().filter_map(|mirror| match &mirror.source {
            MirrorSource::Network(source) if source == name => Some(mirror.to.clone()),
            _ => None,
        });
        self.segment(&owner, network.vlan, network, &hosts, copies.collect(), main);
        NetworkPart {
            network: network.clone(),
            attachments: part_attachments,
            chains: part_chains,
            segments: std::mem::take(&mut self.segments),
        }
    }

    fn segment(
        &mut self,
        owner: &Subject,
        vlan: u16,
        network: &Network,
        hosts: &Arc<Vec<(IpAddr, MacAddr)>>,
        copies: Vec<Place>,
        mut members: Members,
    ) {
        self.tree.connect(&mut members);
        for (dpid, members) in members {
            let here = |place: &&Place| place.dpid == dpid;
            let segment = Segment {
                owner: owner.clone(),
                vlan,
                flooding: network.flooding,
                guard: network.guard,
                hosts: hosts.clone(),
                copies: copies.iter().filter(here).map(|place| place.port.clone()).collect(),
                members,
            };
            self.segments.push((dpid, Arc::new(segment)));
        }
    }

    fn member(&mut self, name: &str, attachment: &'a Entry<Attachment>, network: &'a Network) -> Member {
        let copies = |wanted: MirrorDirection| {
            let fits = |direction: MirrorDirection| direction == wanted || direction == MirrorDirection::Both;
            let mirrors = self.copies.get(name).into_iter().flatten();
            mirrors.filter(|mirror| fits(mirror.direction)).map(|mirror| mirror.to.port.clone()).collect()
        };
        let (copies_from, copies_to) = (copies(MirrorDirection::Egress), copies(MirrorDirection::Ingress));
        let policy = Policy {
            number: attachment.number,
            macs: attachment.macs.iter().map(|mac| mac.0).collect(),
            ips: attachment.ips.clone(),
            rates: attachment.rates,
            rules: self.rules(&network.acls, &attachment.acls),
            trusted: attachment.trusted,
            copies_from,
            copies_to,
        };
        Member {
            owner: Subject::new(Kind::Attachment, name),
            port: attachment.place.port.clone(),
            mode: attachment.mode,
            policy: Some(Arc::new(policy)),
        }
    }

    fn rules(&mut self, first: &'a [String], then: &'a [String]) -> Arc<RuleSet> {
        let names: Vec<&str> = first.iter().chain(then).map(String::as_str).collect();
        let acls = &self.desired.acls;
        let make = |names: &Vec<&str>| {
            let named = names.iter().filter_map(|name| acls.get(*name));
            let list: Vec<_> = named.map(|acl| (acl.number, acl.value.clone())).collect();
            Arc::new(RuleSet::new(&list))
        };
        self.rule_sets.entry(names).or_insert_with_key(make).clone()
    }
}

fn owned<T>(list: &[(&str, &Entry<T>)]) -> Vec<(String, Entry<T>)> {
    list.iter().map(|(name, entry)| ((*name).to_owned(), (*entry).clone())).collect()
}

fn is_list_of<T>(ours: &[(String, Entry<T>)], list: &[(&str, &Entry<T>)]) -> bool {
    ours.len() == list.len() && ours.iter().zip(list).all(|(a, b)| a.0 == b.0 && same(&a.1, b.1))
}

fn add_access(members: &mut Members, owner: &Subject, place: &Place) {
    // What a function sends was checked where it entered the network.
    let policy = Policy { trusted: true, ..Policy::default() };
    let (port, policy) = (place.port.clone(), Some(Arc::new(policy)));
    let member = Member { owner: owner.clone(), port, mode: PortMode::Access, policy };
    members.entry(place.dpid).or_default().push(member);
}

/// The uplinks as a forest, and the ways out.
struct Tree<'a> {
    /// Each switch with the way to its parent (uplink, our end, its end), parents before children.
    nodes: Vec<(Dpid, Option<Edge<'a>>)>,
    /// Uplinks that lead out of the switches.
    exits: Vec<(&'a str, &'a Place)>,
}

#[derive(Clone, Copy)]
struct Edge<'a> {
    name: &'a str,
    ours: &'a Place,
    parents: &'a Place,
}

impl<'a> Tree<'a> {
    fn new(desired: &'a Desired) -> Tree<'a> {
        let mut neighbours: BTreeMap<Dpid, Vec<Edge<'a>>> = BTreeMap::new();
        let mut exits = Vec::new();
        for (name, uplink) in &desired.uplinks {
            let Some(b) = &uplink.b else {
                exits.push((name.as_str(), &uplink.a));
                continue;
            };
            for (parents, ours) in [(&uplink.a, b), (b, &uplink.a)] {
                neighbours.entry(parents.dpid).or_default().push(Edge { name, ours, parents });
            }
        }
        let (mut nodes, mut seen) = (Vec::new(), BTreeSet::new());
        for &root in neighbours.keys() {
            if !seen.insert(root) {
                continue;
            }
            let mut next = nodes.len();
            nodes.push((root, None));
            while let Some(&(dpid, _)) = nodes.get(next) {
                for edge in neighbours.get(&dpid).into_iter().flatten() {
                    if seen.insert(edge.ours.dpid) {
                        nodes.push((edge.ours.dpid, Some(*edge)));
                    }
                }
                next += 1;
            }
        }
        Tree { nodes, exits }
    }

    /// Adds the uplinks that these members need to reach each other and the outside.
    fn connect(&self, members: &mut Members) {
        if self.nodes.is_empty() && self.exits.is_empty() || members.is_empty() {
            return;
        }
        let exits: BTreeSet<Dpid> = self.exits.iter().map(|(_, place)| place.dpid).collect();
        let ends = |dpid: &Dpid| usize::from(members.contains_key(dpid) || exits.contains(dpid));
        // Members and exits below each switch, and in its whole tree.
        let index: HashMap<Dpid, usize> =
            self.nodes.iter().enumerate().map(|(i, (dpid, _))| (*dpid, i)).collect();
        let mut below: Vec<usize> = self.nodes.iter().map(|(dpid, _)| ends(dpid)).collect();
        for (i, (_, edge)) in self.nodes.iter().enumerate().rev() {
            if let Some(edge) = edge {
                below[index[&edge.parents.dpid]] += below[i];
            }
        }
        let mut total = below.clone();
        let mut inhabited: Vec<bool> =
            self.nodes.iter().map(|(dpid, _)| members.contains_key(dpid)).collect();
        for (i, (_, edge)) in self.nodes.iter().enumerate().rev() {
            if let Some(edge) = edge {
                inhabited[index[&edge.parents.dpid]] |= inhabited[i];
            }
        }
        for (i, (_, edge)) in self.nodes.iter().enumerate() {
            if let Some(edge) = edge {
                let parent = index[&edge.parents.dpid];
                total[i] = total[parent];
                inhabited[i] = inhabited[parent];
            }
        }
        let mut added: Vec<(&str, &Place)> = Vec::new();
        for (i, (_, edge)) in self.nodes.iter().enumerate() {
            if let Some(edge) = edge.filter(|_| inhabited[i] && below[i] > 0 && below[i] < total[i]) {
                added.extend([(edge.name, edge.ours), (edge.name, edge.parents)]);
            }
        }
        let reached = |dpid: &Dpid| index.get(dpid).map_or(members.contains_key(dpid), |&i| inhabited[i]);
        added.extend(self.exits.iter().filter(|(_, place)| reached(&place.dpid)));
        for (name, place) in added {
            let owner = Subject::new(Kind::Uplink, name);
            let (port, mode) = (place.port.clone(), PortMode::Trunk);
            let list = members.entry(place.dpid).or_default();
            if !list.iter().any(|member| member.port == port) {
                list.push(Member { owner, port, mode, policy: None });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Item;
    use serde_json::{Value, json};
    use telemetry::check::Errors;

    fn at(dpid: u64, port: u32) -> Value {
        json!({"dpid": dpid, "port": port})
    }

    /// Segments of a switch as VLAN and ports.
    fn ports(layout: &Layout, dpid: u64) -> Vec<(u16, Vec<String>)> {
        let part = layout.of(Dpid(dpid));
        let ports = |s: &Segment| s.members.iter().map(|m| m.port.to_string()).collect();
        part.segments.iter().map(|segment| (segment.vlan, ports(segment))).collect()
    }

    #[test]
    fn uplinks_carry_what_is_on_both_sides_and_make_no_loops() {
        let link = |a: (u64, u32), b: (u64, u32)| json!({"a": at(a.0, a.1), "b": at(b.0, b.1)});
        let mut items = vec![
            // A triangle 1-2-3, and 4 behind 3.
            (Kind::Uplink, "a", link((1, 12), (2, 21))),
            (Kind::Uplink, "b", link((1, 13), (3, 31))),
            (Kind::Uplink, "c", link((2, 23), (3, 32))),
            (Kind::Uplink, "d", link((3, 34), (4, 43))),
            (Kind::Network, "wide", json!({"vlan": 10, "ports": [at(2, 1), at(4, 1)]})),
            (Kind::Network, "local", json!({"vlan": 20, "ports": [at(2, 2), at(2, 3)]})),
            (Kind::Network, "empty", json!({"vlan": 30})),
        ];
        let layout = Layout::new(&Desired::of(&items), &Layout::default());
        let strings = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(ports(&layout, 1), [(10, strings(&["12", "13"]))]);
        assert_eq!(ports(&layout, 2), [(20, strings(&["2", "3"])), (10, strings(&["1", "21"]))]);
        assert_eq!(ports(&layout, 3), [(10, strings(&["31", "34"]))]);
        assert_eq!(ports(&layout, 4), [(10, strings(&["1", "43"]))]);

        // A way out carries every network that is in reach.
        items.push((Kind::Uplink, "out", json!({"a": at(1, 99)})));
        let wider = Layout::new(&Desired::of(&items), &layout);
        assert_eq!(ports(&wider, 1).len(), 2);
        assert!(ports(&wider, 1).iter().all(|(_, ports)| ports.contains(&"99".into())));
        assert_eq!(wider.changed(&layout), [Dpid(1), Dpid(2)].into());
        let again = Layout::new(&Desired::of(&items), &wider);
        assert!(again.changed(&wider).is_empty(), "the same again shares everything");
    }

    /// An edit costs what it touches, however much there is: all other networks are shared with the layout before.
    #[test]
    fn an_edit_lays_out_the_networks_that_it_touches() {
        let attach = |network: u32, port: u32| json!({"network": format!("n{network}"), "dpid": port, "port": 1000 + network});
        let name = |network: u32, port: u32| format!("a{network}-{port}");
        let mut desired = Desired::of(&[
            (Kind::Acl, "x", json!({"rules": []})),
            (Kind::Uplink, "out", json!({"a": at(1, 99)})),
        ]);
        let set = |desired: &mut Desired, kind, name: &str, value: Value| {
            let item = Item::from_json(kind, value, &mut Errors::new()).expect("a good item");
            desired.set(&Subject::new(kind, name), Some(item), None);
        };
        for network in 0..50 {
            set(&mut desired, Kind::Network, &format!("n{network}"), json!({"vlan": network + 1}));
            for port in 1..=10 {
                set(&mut desired, Kind::Attachment, &name(network, port), attach(network, port));
            }
        }
        let before = Layout::new(&desired, &Layout::default());
        let made = |desired: &Desired| -> usize {
            let layout = Layout::new(desired, &before);
            // What is taken over is what would be made.
            let afresh = Layout::new(desired, &Layout::default());
            assert!(layout.switches().eq(afresh.switches()));
            let shared = |(name, part): &(&String, &Arc<NetworkPart>)| {
                before.networks.get(*name).is_some_and(|earlier| Arc::ptr_eq(earlier, part))
            };
            layout.networks.iter().filter(|part| !shared(part)).count()
        };
        assert_eq!((before.networks.len(), made(&desired)), (50, 0));
        let mut edited = desired.clone();
        set(&mut edited, Kind::Attachment, &name(7, 3), json!({"network": "n7", "dpid": 3, "port": 5}));
        assert_eq!(made(&edited), 1, "one network");
        set(&mut edited, Kind::Attachment, &name(7, 3), attach(8, 11));
        assert_eq!(made(&edited), 2, "from one network to another");
        set(&mut edited, Kind::Network, "n9", json!({"vlan": 4000}));
        edited.set(&Subject::new(Kind::Attachment, name(10, 1)), None, None);
        assert_eq!(made(&edited), 4);
        // What all may depend on.
        set(&mut edited, Kind::Acl, "x", json!({"rules": [], "default": {"ingress": "deny"}}));
        assert_eq!(made(&edited), 50);
    }

    #[test]
    fn a_chain_splits_its_network() {
        let attach = |port: u32| json!({"network": "n", "dpid": 1, "port": port});
        let items = [
            (Kind::Network, "n", json!({"vlan": 10})),
            (Kind::Attachment, "a", attach(1)),
            (Kind::Attachment, "b", attach(2)),
            (
                Kind::Chain,
                "c",
                json!({"network": "n", "inside": ["a"], "vlans": [100, 101], "hops": [
                    {"inside": at(1, 5), "outside": at(1, 6)}, {"inside": at(1, 7), "outside": at(1, 8)}]}),
            ),
        ];
        let layout = Layout::new(&Desired::of(&items), &Layout::default());
        let strings = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let expected = [(100, strings(&["1", "5"])), (101, strings(&["6", "7"])), (10, strings(&["2", "8"]))];
        assert_eq!(ports(&layout, 1), expected);
        assert_eq!(layout.switches_of(&Subject::new(Kind::Chain, "c")), [Dpid(1)].into());
    }
}
