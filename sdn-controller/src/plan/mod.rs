//! The rules of a switch: networks laid out in tables with matches and actions that every OpenFlow 1.3 switch has, plus
//! the static flows.
//!
//! ```text
//! table 0  classify   probes of links                            to the controller
//!                     in_port that is shut                       drop
//!                     in_port=access, no tag (or priority tag)   copies, meter, push VLAN, goto the first of 1 to 4
//!                     in_port=trunk, vlan                        that has something to say
//!                     in_port of any network, anything else      drop
//! table 1  spoof      in_port, vlan, address it may send from    goto 2, 3 or 4
//!                     in_port, vlan                              drop (counted)
//! table 2  guard      DHCP answers, router advertisements        drop
//! table 3  acl        in_port, vlan, rule of an egress ACL       goto 4, or drop
//! table 4  learn      bridge control frames, group sources       drop
//!                     in_port, vlan, eth_src known               goto 5 or 6          (learned)
//!                     vlan                                       copy to the controller, goto 5 or 6
//! table 5  suppress   vlan, ARP or ND for a known host           to its address, goto 6
//! table 6  forward    vlan, eth_dst known                        meter, out of its port (learned), or goto 7
//!                     vlan, rule of an ingress ACL               flood to those who may get it
//!                     vlan                                       trunks as they are, then untagged to the others
//! table 7  deliver    metadata=vlan and port, rule of an ingress ACL   meter, out of the port, or drop
//! ```
//!
//! Within the tables every packet carries its VLAN's tag, so isolation is a property of the matches and does not depend
//! on how a switch configures its ports. A packet of an unknown source is forwarded and shown to the controller at the
//! same time, so nothing waits for the controller, and without it the network floods instead of failing.

mod flood;
mod host;
mod learned;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use ofp::{Action, Instruction, MacAddr, Masked, Match, OxmField, Port, PortNo, VID_NONE, VID_PRESENT};

use crate::discovery::{BROADCAST_ETHERTYPE, LLDP_ETHERTYPE, NEAREST_BRIDGE, PROBE_BYTES};
use crate::entry::{Cookie, FlowBody, FlowKey};
use crate::layout::{Member, Policy, Segment, SwitchLayout};
use crate::model::{Direction, PortMode, PortRef, Subject, modes_agree};
use crate::reconcile::{Flows, Meters};

pub use learned::{destination_rule, read_learned, source_rule};

/// Table of classification by port and tag.
pub const CLASSIFY: u8 = 0;
/// Table of addresses a port may send from.
pub const SPOOF: u8 = 1;
/// Table of what access ports must not send.
pub const GUARD: u8 = 2;
/// Table of egress ACLs.
pub const ACL: u8 = 3;
/// Table of source addresses.
pub const LEARN: u8 = 4;
/// Table of ARP and neighbour discovery.
pub const SUPPRESS: u8 = 5;
/// Table of destination addresses.
pub const FORWARD: u8 = 6;
/// Table of ingress ACLs of a port.
pub const DELIVER: u8 = 7;
/// The first table that networks leave alone.
pub const FREE: u8 = 8;

/// Also on ports that are shut, or nobody would see when the loop is gone.
const PRIORITY_DISCOVERY: u16 = 60_000;
const PRIORITY_SHUT: u16 = 50_000;
const PRIORITY_CLASSIFY: u16 = 20_000;
const PRIORITY_OTHERS: u16 = 19_000;
const PRIORITY_GUARD: u16 = 30_000;
const PRIORITY_LEARNED: u16 = 20_000;
const PRIORITY_NETWORK: u16 = 10_000;

/// Bytes of a packet that the controller gets to see: enough for the addresses.
const LEARN_BYTES: u16 = 64;
const VLAN_ETHERTYPE: u16 = 0x8100;
/// Meters of flooding have the number of their VLAN; those of attachments begin here, four for each.
const ATTACHMENT_METERS: u32 = 0x2000;

/// Whom a rule is for.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Owner {
    /// All networks of the switch.
    Networks,
    /// One thing that the operator wants.
    Of(Subject),
}

/// How a port sends packets of a VLAN.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Tagging {
    /// With the tag.
    Tagged,
    /// Without.
    Untagged,
}

/// What is done on the way to a host behind a port.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Way {
    /// How the port sends.
    pub tagging: Tagging,
    /// The table that comes after learning.
    pub after_learning: u8,
    /// The meter that packets pass first.
    pub meter: Option<u32>,
    /// Whether rules of its own decide about each packet.
    pub deliver: bool,
    /// Where copies go.
    pub copies: Vec<PortNo>,
}

/// What a switch can do beyond what every one can.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Abilities {
    /// The highest number of a meter; 0 = it has none.
    pub meter_max: u32,
    /// Whether it takes changes in bundles.
    pub bundles: bool,
}

/// What a switch shall have.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Plan {
    /// Its rules.
    pub flows: Flows,
    /// Its meters.
    pub meters: Meters,
    /// Whom each rule is for.
    pub owners: HashMap<FlowKey, Owner>,
    /// Whom each meter is for.
    pub meter_owners: HashMap<u32, Owner>,
    /// The ports of each VLAN, by VLAN and port number.
    pub members: HashMap<(u16, PortNo), Way>,
    /// What cannot be had now, in words, by whom it is for.
    pub obstacles: BTreeMap<Owner, Vec<String>>,
}

/// A member of a segment whose port is there.
struct Seated<'a> {
    port: PortNo,
    member: &'a Member,
    tagging: Tagging,
    copies_from: Vec<PortNo>,
    copies_to: Vec<PortNo>,
}

impl Seated<'_> {
    fn policy(&self) -> Option<&Policy> {
        self.member.policy.as_deref()
    }

    fn owner(&self) -> Owner {
        Owner::Of(self.member.owner.clone())
    }

    fn cookie(&self, vlan: u16) -> u64 {
        match self.policy() {
            Some(policy) if policy.number > 0 => Cookie::Attachment(policy.number).number(),
            _ => Cookie::Network(vlan).number(),
        }
    }

    /// What to do with a packet that goes out by this port.
    fn deliver(&self) -> Vec<Action> {
        let pop = (self.tagging == Tagging::Untagged).then_some(Action::PopVlan);
        pop.into_iter()
            .chain([output(self.port)])
            .chain(self.copies_to.iter().map(|&port| output(port)))
            .collect()
    }
}

fn output(port: PortNo) -> Action {
    Action::Output { port, max_len: 0 }
}

fn in_vlan(vlan: u16) -> Match {
    Match::any().with(OxmField::VlanVid(Masked::exact(VID_PRESENT | vlan)))
}

/// Packets of a segment from one of its ports.
fn from_port(vlan: u16, port: PortNo) -> Match {
    in_vlan(vlan).with(OxmField::InPort(port))
}

/// Apply actions if there are any, then the rest.
fn steps(meter: Option<u32>, actions: Vec<Action>, goto: Option<u8>) -> Vec<Instruction> {
    let meter = meter.map(Instruction::Meter);
    let apply = (!actions.is_empty()).then_some(Instruction::ApplyActions(actions));
    meter.into_iter().chain(apply).chain(goto.map(Instruction::GotoTable)).collect()
}

impl Plan {
    /// The rules of a switch with these ports.
    pub fn new(layout: &SwitchLayout, ports: &BTreeMap<PortNo, Port>, abilities: Abilities) -> Plan {
        let mut plan = Plan::default();
        let mut seats = Seats { ports, by_name: HashMap::new(), modes: HashMap::new() };
        for port in ports.values() {
            seats.by_name.entry(port.name.as_bytes().to_vec()).or_insert(port.port_no);
        }
        for segment in &layout.segments {
            plan.add_segment(segment, &mut seats, abilities);
        }
        if !plan.flows.is_empty() {
            plan.add_guards();
        }
        for (id, flow) in &layout.flows {
            let owner = Owner::Of(Subject::new(crate::model::Kind::Flow, id));
            let key = flow.key();
            if plan.flows.contains_key(&key) {
                let obstacle = "a network has a rule of the same table, priority and match".to_owned();
                plan.obstacle(&owner, obstacle);
            } else {
                plan.add(&owner, key, flow.body(Cookie::Static.number()));
            }
        }
        plan
    }

    fn obstacle(&mut self, owner: &Owner, text: String) {
        self.obstacles.entry(owner.clone()).or_default().push(text);
    }

    fn add(&mut self, owner: &Owner, key: FlowKey, body: FlowBody) {
        self.owners.insert(key.clone(), owner.clone());
        self.flows.insert(key, body);
    }

    fn add_segment<'a>(&mut self, segment: &'a Segment, seats: &mut Seats<'a>, abilities: Abilities) {
        let vlan = segment.vlan;
        let owner = Owner::Of(segment.owner.clone());
        let copies = self.copy_ports(&owner, &segment.copies, seats);
        let mut seated: Vec<Seated<'_>> = Vec::with_capacity(segment.members.len());
        for member in &segment.members {
            let of = Owner::Of(member.owner.clone());
            let port = match seats.take(member) {
                Ok(port) if self.members.contains_key(&(vlan, port)) => continue,
                Ok(port) => port,
                Err(obstacle) => {
                    self.obstacle(&of, obstacle);
                    continue;
                }
            };
            let tagging = if member.mode == PortMode::Trunk { Tagging::Tagged } else { Tagging::Untagged };
            let (mut copies_from, mut copies_to) = (copies.clone(), vec![]);
            if let Some(policy) = &member.policy {
                copies_from.extend(self.copy_ports(&of, &policy.copies_from, seats));
                copies_to = self.copy_ports(&of, &policy.copies_to, seats);
            }
            copies_from.retain(|copy| *copy != port);
            copies_to.retain(|copy| *copy != port);
            let way = Way {
                tagging,
                after_learning: if segment.hosts.is_empty() { FORWARD } else { SUPPRESS },
                meter: None,
                deliver: false,
                copies: copies_to.clone(),
            };
            self.members.insert((vlan, port), way);
            seated.push(Seated { port, member, tagging, copies_from, copies_to });
        }
        for seat in &seated {
            self.add_member(segment, seat, abilities);
        }
        if seated.is_empty() {
            return;
        }
        let cookie = Cookie::Network(vlan).number();
        let after_learning = if segment.hosts.is_empty() { FORWARD } else { SUPPRESS };
        let to_controller = Action::Output { port: PortNo::CONTROLLER, max_len: LEARN_BYTES };
        let learn = steps(None, vec![to_controller], Some(after_learning));
        self.add(
            &owner,
            FlowKey::new(LEARN, PRIORITY_NETWORK, &in_vlan(vlan)),
            FlowBody::new(cookie, &learn),
        );
        self.add_suppression(&owner, segment);
        self.add_flooding(&owner, segment, &seated, abilities);
    }

    /// Shows the controller the probes of links, its own among them.
    pub fn add_discovery(&mut self) {
        let to_controller = Action::Output { port: PortNo::CONTROLLER, max_len: PROBE_BYTES };
        let body = FlowBody::new(Cookie::Discovery.number(), &steps(None, vec![to_controller], None));
        let of_type = |ether_type| Match::any().with(OxmField::EthType(ether_type));
        let lldp = of_type(LLDP_ETHERTYPE).with(OxmField::EthDst(Masked::exact(NEAREST_BRIDGE)));
        for matching in [lldp, of_type(BROADCAST_ETHERTYPE)] {
            let key = FlowKey::new(CLASSIFY, PRIORITY_DISCOVERY, &matching);
            self.add(&Owner::Networks, key, body.clone());
        }
    }

    /// Lets nothing in by a port.
    pub fn shut(&mut self, port: PortNo) {
        let from = Match::any().with(OxmField::InPort(port));
        let drop = FlowBody::new(Cookie::Shared.number(), &[]);
        self.add(&Owner::Networks, FlowKey::new(CLASSIFY, PRIORITY_SHUT, &from), drop);
    }

    fn copy_ports(&mut self, owner: &Owner, ports: &[PortRef], seats: &Seats<'_>) -> Vec<PortNo> {
        let mut found = Vec::new();
        for port in ports {
            match seats.resolve(port) {
                Ok(number) => found.push(number),
                Err(obstacle) => self.obstacle(owner, format!("no copies are made: {obstacle}")),
            }
        }
        found
    }

    fn add_member(&mut self, segment: &Segment, seat: &Seated<'_>, abilities: Abilities) {
        let (vlan, owner, cookie) = (segment.vlan, seat.owner(), seat.cookie(segment.vlan));
        let meters = self.add_meters(&owner, seat, abilities);
        let next = self.add_checks(segment, seat, meters.from_host[1]);
        let from =
            |vid| Match::any().with(OxmField::InPort(seat.port)).with(OxmField::VlanVid(Masked::exact(vid)));
        let set_vid = Action::SetField(OxmField::VlanVid(Masked::exact(VID_PRESENT | vlan)));
        let classify = |actions: Vec<Action>| {
            let copies = seat.copies_from.iter().map(|&port| output(port));
            let actions = copies.chain(actions).collect();
            FlowBody::new(cookie, &steps(meters.from_host[0], actions, Some(next)))
        };
        let key = |vid| FlowKey::new(CLASSIFY, PRIORITY_CLASSIFY, &from(vid));
        match seat.tagging {
            Tagging::Tagged => self.add(&owner, key(VID_PRESENT | vlan), classify(vec![])),
            Tagging::Untagged => {
                let push = vec![Action::PushVlan(VLAN_ETHERTYPE), set_vid.clone()];
                self.add(&owner, key(VID_NONE), classify(push));
                // A tag of VLAN 0 carries a priority and no network.
                self.add(&owner, key(VID_PRESENT), classify(vec![set_vid]));
            }
        }
        let others = Match::any().with(OxmField::InPort(seat.port));
        let drop = FlowBody::new(Cookie::Shared.number(), &[]);
        self.add(&Owner::Networks, FlowKey::new(CLASSIFY, PRIORITY_OTHERS, &others), drop);
        self.add_delivery(vlan, seat, meters.to_host);
    }

    /// What no bridge forwards and nobody may learn from.
    fn add_guards(&mut self) {
        let link_local = Masked::with_mask(
            MacAddr([0x01, 0x80, 0xc2, 0, 0, 0]),
            MacAddr([0xff, 0xff, 0xff, 0xff, 0xff, 0xf0]),
        );
        // Spanning tree of a vendor, one for each VLAN.
        let per_vlan = Masked::exact(MacAddr([0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcd]));
        let group = MacAddr([1, 0, 0, 0, 0, 0]);
        let fields = [
            OxmField::EthDst(link_local),
            OxmField::EthDst(per_vlan),
            OxmField::EthSrc(Masked::with_mask(group, group)),
        ];
        for field in fields {
            let key = FlowKey::new(LEARN, PRIORITY_GUARD, &Match::any().with(field));
            self.add(&Owner::Networks, key, FlowBody::new(Cookie::Shared.number(), &[]));
        }
    }
}

/// The ports of the switch, and how each is used.
struct Seats<'a> {
    ports: &'a BTreeMap<PortNo, Port>,
    by_name: HashMap<Vec<u8>, PortNo>,
    modes: HashMap<PortNo, (PortMode, &'a Subject)>,
}

impl<'a> Seats<'a> {
    fn resolve(&self, port: &PortRef) -> Result<PortNo, String> {
        match port {
            // A rule for a number takes effect when the port appears.
            PortRef::Number(number) => Ok(PortNo(*number)),
            PortRef::Name(name) => self
                .by_name
                .get(name.as_bytes())
                .copied()
                .filter(|number| self.ports.contains_key(number))
                .ok_or_else(|| format!("the switch has no port `{name}`")),
        }
    }

    /// The port of a member. The same port by number in one place and by name in another shows only here.
    fn take(&mut self, member: &'a Member) -> Result<PortNo, String> {
        let number = self.resolve(&member.port)?;
        match self.modes.get(&number) {
            Some(&(mode, other)) if !modes_agree(mode, member.mode) => {
                Err(format!("port {} is in mode {mode:?} in {other}", member.port))
            }
            _ => {
                self.modes.insert(number, (member.mode, &member.owner));
                Ok(number)
            }
        }
    }
}

/// Whether rules for this direction exist.
fn has_rules(policy: Option<&Policy>, direction: Direction) -> bool {
    policy.is_some_and(|policy| !policy.rules.clauses(direction).is_empty())
}
