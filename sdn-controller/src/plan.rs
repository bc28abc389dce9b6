//! The rules of a switch: networks laid out in three tables with matches and actions that every OpenFlow 1.3 switch
//! has, plus the static flows.
//!
//! ```text
//! table 0  classify   in_port=access, no tag (or priority tag)   push VLAN, goto 1
//!                     in_port=trunk, vlan                        goto 1
//!                     in_port of any network, anything else      drop
//! table 1  learn      bridge control frames, group sources       drop
//!                     in_port, vlan, eth_src known               goto 2         (learned)
//!                     vlan                                       copy to the controller, goto 2
//! table 2  forward    vlan, eth_dst known                        out of its port (learned)
//!                     vlan                                       trunks as they are, then untagged to the others
//! ```
//!
//! Within the tables every packet carries its VLAN's tag, so isolation is a property of the matches and does not depend
//! on how a switch configures its ports. A packet of an unknown source is forwarded and shown to the controller at the
//! same time, so nothing waits for the controller, and without it the network floods instead of failing.

use std::collections::{BTreeMap, HashMap};

use ofp::{
    Action, Field, Instruction, MacAddr, Masked, Match, OxmField, Port, PortNo, VID_NONE, VID_PRESENT,
};

use crate::entry::{Cookie, FlowBody, FlowKey};
use crate::model::{Desired, Dpid, Network, NetworkPort, PortMode, PortRef, modes_agree};
use crate::reconcile::Flows;

/// Table of classification by port and tag.
pub const CLASSIFY: u8 = 0;
/// Table of source addresses.
pub const LEARN: u8 = 1;
/// Table of destination addresses.
pub const FORWARD: u8 = 2;

const PRIORITY_CLASSIFY: u16 = 20_000;
const PRIORITY_OTHERS: u16 = 19_000;
const PRIORITY_GUARD: u16 = 30_000;
const PRIORITY_LEARNED: u16 = 20_000;
const PRIORITY_NETWORK: u16 = 10_000;

/// Bytes of a packet that the controller gets to see: enough for the addresses.
const LEARN_BYTES: u16 = 64;
const VLAN_ETHERTYPE: u16 = 0x8100;

/// Whom a rule is for.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Owner {
    /// All networks of the switch.
    Networks,
    /// A network.
    Network(String),
    /// A static flow.
    Flow(String),
}

/// How a port sends packets of a VLAN.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Tagging {
    /// With the tag.
    Tagged,
    /// Without.
    Untagged,
}

/// What a switch shall have.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Plan {
    /// Its rules.
    pub flows: Flows,
    /// Whom each is for.
    pub owners: HashMap<FlowKey, Owner>,
    /// The ports of each VLAN, by VLAN and port number.
    pub members: HashMap<(u16, PortNo), Tagging>,
    /// What cannot be had now, in words, by whom it is for.
    pub obstacles: BTreeMap<Owner, Vec<String>>,
}

impl Plan {
    /// The rules of switch `dpid` with these ports.
    pub fn new(desired: &Desired, dpid: Dpid, ports: &BTreeMap<PortNo, Port>) -> Plan {
        let mut plan = Plan::default();
        let mut modes: HashMap<PortNo, (PortMode, &str)> = HashMap::new();
        for (name, network) in &desired.networks {
            let owner = Owner::Network(name.clone());
            let mut members = Vec::new();
            for port in network.ports.iter().filter(|port| port.dpid == dpid) {
                match resolve(port, ports) {
                    Err(obstacle) => plan.obstacle(&owner, obstacle),
                    // The same port by number in one network and by name in another shows only here.
                    Ok(number) => match modes.get(&number) {
                        Some(&(mode, other)) if !modes_agree(mode, port.mode) => {
                            plan.obstacle(
                                &owner,
                                format!("port {} is in mode {mode:?} in network {other}", port.port),
                            );
                        }
                        _ => {
                            modes.insert(number, (port.mode, name));
                            members.push((number, port.mode));
                        }
                    },
                }
            }
            plan.add_network(&owner, network, &members);
        }
        if !plan.flows.is_empty() {
            plan.add_guards();
        }
        for (id, flow) in desired.flows_of(dpid) {
            let (owner, key) = (Owner::Flow(id.to_owned()), flow.key());
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

    fn add_network(&mut self, owner: &Owner, network: &Network, members: &[(PortNo, PortMode)]) {
        let vlan = network.vlan;
        let cookie = Cookie::Network(vlan).number();
        for &(port, mode) in members {
            let tagging = if mode == PortMode::Trunk { Tagging::Tagged } else { Tagging::Untagged };
            self.members.insert((vlan, port), tagging);
            let from =
                |vid| Match::any().with(OxmField::InPort(port)).with(OxmField::VlanVid(Masked::exact(vid)));
            let set_vid = Action::SetField(OxmField::VlanVid(Masked::exact(VID_PRESENT | vlan)));
            let classify = |actions: Vec<Action>| {
                let apply = (!actions.is_empty()).then_some(Instruction::ApplyActions(actions));
                FlowBody::new(
                    cookie,
                    &apply.into_iter().chain([Instruction::GotoTable(LEARN)]).collect::<Vec<_>>(),
                )
            };
            let key = |vid| FlowKey::new(CLASSIFY, PRIORITY_CLASSIFY, &from(vid));
            match tagging {
                Tagging::Tagged => self.add(owner, key(VID_PRESENT | vlan), classify(vec![])),
                Tagging::Untagged => {
                    let push = vec![Action::PushVlan(VLAN_ETHERTYPE), set_vid.clone()];
                    self.add(owner, key(VID_NONE), classify(push));
                    // A tag of VLAN 0 carries a priority and no network.
                    self.add(owner, key(VID_PRESENT), classify(vec![set_vid]));
                }
            }
            let others = Match::any().with(OxmField::InPort(port));
            let drop = FlowBody::new(Cookie::Shared.number(), &[]);
            self.add(&Owner::Networks, FlowKey::new(CLASSIFY, PRIORITY_OTHERS, &others), drop);
        }
        if members.is_empty() {
            return;
        }
        let of_vlan = in_vlan(vlan);
        let to_controller = Action::Output { port: PortNo::CONTROLLER, max_len: LEARN_BYTES };
        let learn = [Instruction::ApplyActions(vec![to_controller]), Instruction::GotoTable(FORWARD)];
        let flood = [Instruction::ApplyActions(flood_actions(members))];
        self.add(owner, FlowKey::new(LEARN, PRIORITY_NETWORK, &of_vlan), FlowBody::new(cookie, &learn));
        self.add(owner, FlowKey::new(FORWARD, PRIORITY_NETWORK, &of_vlan), FlowBody::new(cookie, &flood));
    }

    /// What no bridge forwards and nobody may learn from.
    fn add_guards(&mut self) {
        let link_local = Masked::with_mask(
            MacAddr([0x01, 0x80, 0xc2, 0, 0, 0]),
            MacAddr([0xff, 0xff, 0xff, 0xff, 0xff, 0xf0]),
        );
        let group = MacAddr([1, 0, 0, 0, 0, 0]);
        for field in [OxmField::EthDst(link_local), OxmField::EthSrc(Masked::with_mask(group, group))] {
            let key = FlowKey::new(LEARN, PRIORITY_GUARD, &Match::any().with(field));
            self.add(&Owner::Networks, key, FlowBody::new(Cookie::Shared.number(), &[]));
        }
    }
}

/// The number of a port of a network.
fn resolve(port: &NetworkPort, ports: &BTreeMap<PortNo, Port>) -> Result<PortNo, String> {
    match &port.port {
        // A rule for a number takes effect when the port appears.
        PortRef::Number(number) => Ok(PortNo(*number)),
        PortRef::Name(name) => ports
            .values()
            .find(|p| p.name.as_bytes() == name.as_bytes())
            .map(|p| p.port_no)
            .ok_or_else(|| format!("the switch has no port `{name}`")),
    }
}

fn in_vlan(vlan: u16) -> Match {
    Match::any().with(OxmField::VlanVid(Masked::exact(VID_PRESENT | vlan)))
}

/// Tagged copies first: once the tag is off it stays off.
fn flood_actions(members: &[(PortNo, PortMode)]) -> Vec<Action> {
    let output = |&(port, _): &(PortNo, PortMode)| Action::Output { port, max_len: 0 };
    let (tagged, untagged): (Vec<_>, Vec<_>) = members.iter().partition(|(_, mode)| *mode == PortMode::Trunk);
    let pop = (!untagged.is_empty()).then_some(Action::PopVlan);
    tagged.iter().map(output).chain(pop).chain(untagged.iter().map(output)).collect()
}

/// The rule that lets packets of a known source pass without a copy to the controller.
pub fn source_rule(vlan: u16, mac: MacAddr, port: PortNo) -> (FlowKey, FlowBody) {
    let matching = in_vlan(vlan).with(OxmField::InPort(port)).with(OxmField::EthSrc(Masked::exact(mac)));
    let body = FlowBody::new(Cookie::Learned(vlan).number(), &[Instruction::GotoTable(FORWARD)]);
    (FlowKey::new(LEARN, PRIORITY_LEARNED, &matching), body)
}

/// The rule that sends packets for a known address out of its port.
pub fn destination_rule(vlan: u16, mac: MacAddr, port: PortNo, tagging: Tagging) -> (FlowKey, FlowBody) {
    let matching = in_vlan(vlan).with(OxmField::EthDst(Masked::exact(mac)));
    let pop = (tagging == Tagging::Untagged).then_some(Action::PopVlan);
    let actions = pop.into_iter().chain([Action::Output { port, max_len: 0 }]).collect();
    let body = FlowBody::new(Cookie::Learned(vlan).number(), &[Instruction::ApplyActions(actions)]);
    (FlowKey::new(FORWARD, PRIORITY_LEARNED, &matching), body)
}

/// A learned rule, read back: VLAN, address and port, and whether it is the destination's.
pub fn read_learned(key: &FlowKey, body: &FlowBody) -> Option<(u16, MacAddr, PortNo, bool)> {
    let Some(OxmField::VlanVid(vid)) = key.matching.field(Field::VlanVid) else { return None };
    let vlan = vid.value & !VID_PRESENT;
    match key.table {
        LEARN => match (key.matching.field(Field::InPort), key.matching.field(Field::EthSrc)) {
            (Some(OxmField::InPort(port)), Some(OxmField::EthSrc(mac))) => {
                Some((vlan, mac.value, *port, false))
            }
            _ => None,
        },
        FORWARD => match (key.matching.field(Field::EthDst), body.instructions.first()) {
            (Some(OxmField::EthDst(mac)), Some(Instruction::ApplyActions(actions))) => match actions.last() {
                Some(Action::Output { port, .. }) => Some((vlan, mac.value, *port, true)),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofp::{PortConfig, PortFeatures, PortState, Text};
    use serde_json::json;
    use telemetry::check::Errors;

    fn port(number: u32, name: &str) -> (PortNo, Port) {
        let port = Port {
            port_no: PortNo(number),
            hw_addr: MacAddr([2, 0, 0, 0, 0, number as u8]),
            name: Text::new(name),
            config: PortConfig(0),
            state: PortState(0),
            current: PortFeatures(0),
            advertised: PortFeatures(0),
            supported: PortFeatures(0),
            peer: PortFeatures(0),
            current_speed_kbps: 0,
            max_speed_kbps: 0,
        };
        (PortNo(number), port)
    }

    fn desired(networks: &[(&str, serde_json::Value)]) -> Desired {
        let read = |(name, value): &(&str, serde_json::Value)| {
            ((*name).to_owned(), Network::from_json(value.clone(), &mut Errors::new()).unwrap())
        };
        Desired { networks: networks.iter().map(read).collect(), ..Desired::default() }
    }

    /// Packets through the rules, as a switch would: the ports a packet leaves by and its tag there.
    fn forward(flows: &Flows, in_port: u32, tag: Option<u16>, dst: MacAddr) -> Vec<(u32, Option<u16>)> {
        let (mut tag, mut out, mut table) = (tag, Vec::new(), 0);
        loop {
            let fits = |key: &FlowKey| {
                key.matching.fields.iter().all(|field| match field {
                    OxmField::InPort(port) => port.0 == in_port,
                    OxmField::VlanVid(vid) => vid.value == tag.map_or(VID_NONE, |t| VID_PRESENT | t),
                    OxmField::EthDst(mac) => {
                        let mask = mac.mask.unwrap_or(MacAddr::BROADCAST);
                        (0..6).all(|i| dst.0[i] & mask.0[i] == mac.value.0[i])
                    }
                    OxmField::EthSrc(mac) => {
                        mac.mask.is_none() && mac.value == MacAddr([2, 0, 0, 0, 0, 0x99])
                    }
                    other => panic!("no rule of ours has {other}"),
                })
            };
            let hit = flows
                .iter()
                .filter(|(key, _)| key.table == table && fits(key))
                .max_by_key(|(k, _)| k.priority);
            let Some((_, body)) = hit else { return out };
            let mut next = None;
            for instruction in &body.instructions {
                match instruction {
                    Instruction::GotoTable(table) => next = Some(*table),
                    Instruction::ApplyActions(actions) => {
                        for action in actions {
                            match action {
                                Action::Output { port, .. } if port.0 == in_port => {}
                                Action::Output { port, .. } => out.push((port.0, tag)),
                                Action::PushVlan(_) => tag = Some(0),
                                Action::PopVlan => tag = None,
                                Action::SetField(OxmField::VlanVid(vid)) => tag = Some(vid.value & 0xfff),
                                other => panic!("no rule of ours has {other}"),
                            }
                        }
                    }
                    other => panic!("no rule of ours has {other:?}"),
                }
            }
            match next {
                Some(next) => table = next,
                None => return out,
            }
        }
    }

    const CONTROLLER: u32 = PortNo::CONTROLLER.0;

    fn two_networks() -> Plan {
        let ports = [port(1, "a"), port(2, "b"), port(3, "c"), port(4, "up")].into();
        let desired = desired(&[
            (
                "red",
                json!({"vlan": 10, "ports": [{"dpid": 1, "port": 1}, {"dpid": 1, "port": "b"},
                                                 {"dpid": 1, "port": "up", "mode": "trunk"}, {"dpid": 2, "port": 9}]}),
            ),
            (
                "blue",
                json!({"vlan": 20, "ports": [{"dpid": 1, "port": 3},
                                                  {"dpid": 1, "port": "up", "mode": "native"}]}),
            ),
        ]);
        Plan::new(&desired, Dpid(1), &ports)
    }

    #[test]
    fn packets_stay_in_their_network_and_have_the_tag_of_the_port() {
        let plan = two_networks();
        let from = |in_port, tag| {
            let mut out = forward(&plan.flows, in_port, tag, MacAddr::BROADCAST);
            out.retain(|(port, _)| *port != CONTROLLER);
            out
        };
        assert_eq!(from(1, None), [(4, Some(10)), (2, None)]);
        assert_eq!(from(1, Some(0)), [(4, Some(10)), (2, None)], "a priority tag carries no network");
        assert_eq!(from(2, None), [(4, Some(10)), (1, None)]);
        assert_eq!(from(3, None), [(4, None)]);
        assert_eq!(from(4, Some(10)), [(1, None), (2, None)]);
        assert_eq!(from(4, None), [(3, None)]);
        for (port, tag) in
            [(1, Some(10)), (1, Some(20)), (3, Some(10)), (4, Some(20)), (4, Some(30)), (5, None)]
        {
            assert_eq!(from(port, tag), [], "port {port} tag {tag:?}");
        }
    }

    #[test]
    fn unknown_sources_are_shown_to_the_controller_and_known_ones_are_not() {
        let mut plan = two_networks();
        let (key, body) = destination_rule(10, MacAddr([2, 0, 0, 0, 0, 0x55]), PortNo(2), Tagging::Untagged);
        plan.flows.insert(key, body);
        let to_known = |plan: &Plan| forward(&plan.flows, 1, None, MacAddr([2, 0, 0, 0, 0, 0x55]));
        assert_eq!(to_known(&plan), [(CONTROLLER, Some(10)), (2, None)]);
        let (key, body) = source_rule(10, MacAddr([2, 0, 0, 0, 0, 0x99]), PortNo(1));
        plan.flows.insert(key, body);
        assert_eq!(to_known(&plan), [(2, None)]);
    }

    #[test]
    fn bridge_control_frames_go_nowhere() {
        let plan = two_networks();
        assert_eq!(forward(&plan.flows, 1, None, MacAddr([0x01, 0x80, 0xc2, 0, 0, 0x0e])), []);
    }

    #[test]
    fn learned_rules_are_read_back() {
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        let (key, body) = destination_rule(10, mac, PortNo(7), Tagging::Untagged);
        assert_eq!(read_learned(&key, &body), Some((10, mac, PortNo(7), true)));
        let (key, body) = source_rule(10, mac, PortNo(7));
        assert_eq!(read_learned(&key, &body), Some((10, mac, PortNo(7), false)));
    }

    #[test]
    fn ports_that_are_not_there_or_are_named_twice_are_obstacles() {
        let ports = [port(1, "a"), port(2, "b")].into();
        let desired = desired(&[
            ("blue", json!({"vlan": 20, "ports": [{"dpid": 1, "port": 1}]})),
            ("red", json!({"vlan": 10, "ports": [{"dpid": 1, "port": "a"}, {"dpid": 1, "port": "ghost"}]})),
        ]);
        let plan = Plan::new(&desired, Dpid(1), &ports);
        let red = plan.obstacles.get(&Owner::Network("red".into())).unwrap();
        assert_eq!(red, &["port a is in mode Access in network blue", "the switch has no port `ghost`"]);
        assert_eq!(plan.members.len(), 1);
    }

    #[test]
    fn an_empty_wish_is_an_empty_plan() {
        assert_eq!(Plan::new(&Desired::default(), Dpid(1), &BTreeMap::new()), Plan::default());
    }
}
