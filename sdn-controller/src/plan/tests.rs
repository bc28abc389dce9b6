//! Packets through the rules of a plan.

use std::collections::BTreeMap;

use ofp::{Action, Instruction, MacAddr, OxmField, Port, PortNo, VID_NONE, VID_PRESENT};
use serde_json::{Value, json};

use super::*;
use crate::layout::Layout;
use crate::model::{Desired, Dpid, Kind};

const PLAIN: Way =
    Way { tagging: Tagging::Untagged, after_learning: FORWARD, meter: None, deliver: false, copies: vec![] };

fn port(number: u32, name: &str) -> (PortNo, Port) {
    (PortNo(number), Port::new(PortNo(number), MacAddr([2, 0, 0, 0, 0, number as u8]), name))
}

fn desired(items: &[(Kind, &str, Value)]) -> Desired {
    let desired = Desired::of(items);
    assert_eq!(desired.conflicts(), []);
    desired
}

const ABLE: Abilities = Abilities { meter_max: 1 << 18, bundles: true };

fn plan_of(desired: &Desired, ports: &BTreeMap<PortNo, Port>) -> Plan {
    let layout = Layout::new(desired, &Layout::default());
    let plan = Plan::new(&layout.of(Dpid(1)), ports, ABLE);
    for (key, body) in &plan.flows {
        key.matching.validate().unwrap_or_else(|error| panic!("{key:?}: {error}"));
        let pops = body.instructions.iter().any(|instruction| match instruction {
            Instruction::ApplyActions(actions) => actions.contains(&Action::PopVlan),
            _ => false,
        });
        // Open vSwitch refuses to take off a tag that the match does not ask for.
        assert!(!pops || key.matching.field(ofp::Field::VlanVid).is_some(), "{key:?}");
    }
    plan
}

/// A packet as far as the rules look at it.
#[derive(Clone, Debug)]
struct Frame {
    in_port: u32,
    tag: Option<u16>,
    src: MacAddr,
    dst: MacAddr,
    /// Everything else, by field.
    rest: Vec<OxmField>,
}

fn frame(in_port: u32, tag: Option<u16>, dst: MacAddr) -> Frame {
    Frame { in_port, tag, src: host(0x99), dst, rest: vec![] }
}

fn host(number: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, number])
}

fn fits(matching: &Match, frame: &Frame, metadata: u64) -> bool {
    matching.fields.iter().all(|field| {
        let kind = field.field().expect("a known field");
        let found = match field {
            OxmField::InPort(_) => Some(u128::from(frame.in_port)),
            OxmField::VlanVid(_) => Some(frame.tag.map_or(VID_NONE, |tag| VID_PRESENT | tag).into()),
            OxmField::EthDst(_) => Some(ofp::OxmValue::to_number(frame.dst)),
            OxmField::EthSrc(_) => Some(ofp::OxmValue::to_number(frame.src)),
            OxmField::Metadata(_) => Some(metadata.into()),
            _ => {
                frame.rest.iter().find(|f| f.field() == Some(kind)).and_then(|f| f.numbers()).map(|(n, _)| n)
            }
        };
        let (value, mask) = field.numbers().expect("a known field");
        found.is_some_and(|found| found & mask.unwrap_or(u128::MAX) == value)
    })
}

/// A packet through the rules, as a switch would: the ports it leaves by and its tag there.
fn through(flows: &Flows, mut frame: Frame) -> Vec<(u32, Option<u16>)> {
    let (mut out, mut table, mut metadata) = (Vec::new(), 0, 0);
    loop {
        let hit = flows
            .iter()
            .filter(|(key, _)| key.table == table && fits(&key.matching, &frame, metadata))
            .max_by_key(|(key, _)| key.priority);
        let Some((_, body)) = hit else { return out };
        let mut next = None;
        for instruction in body.instructions.iter() {
            match instruction {
                Instruction::GotoTable(table) => next = Some(*table),
                Instruction::Meter(_) => {}
                Instruction::WriteMetadata { metadata: value, mask: u64::MAX } => metadata = *value,
                Instruction::ApplyActions(actions) => {
                    for action in actions {
                        match action {
                            Action::Output { port, .. } if port.0 == frame.in_port => {}
                            Action::Output { port, .. } => out.push((port.0, frame.tag)),
                            Action::PushVlan(_) => frame.tag = Some(0),
                            Action::PopVlan => frame.tag = None,
                            Action::SetField(OxmField::VlanVid(vid)) => frame.tag = Some(vid.value & 0xfff),
                            Action::SetField(OxmField::EthDst(mac)) => frame.dst = mac.value,
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

/// Where a frame goes, without the controller.
fn reached(plan: &Plan, frame: Frame) -> Vec<u32> {
    let out = through(&plan.flows, frame).into_iter().map(|(port, _)| port);
    out.filter(|port| *port != CONTROLLER).collect()
}

const CONTROLLER: u32 = PortNo::CONTROLLER.0;

fn two_networks() -> Plan {
    let ports = [port(1, "a"), port(2, "b"), port(3, "c"), port(4, "up")].into();
    let desired = desired(&[
        (
            Kind::Network,
            "red",
            json!({"vlan": 10, "ports": [{"dpid": 1, "port": 1}, {"dpid": 1, "port": "b"},
                                             {"dpid": 1, "port": "up", "mode": "trunk"}, {"dpid": 2, "port": 9}]}),
        ),
        (
            Kind::Network,
            "blue",
            json!({"vlan": 20, "ports": [{"dpid": 1, "port": 3},
                                              {"dpid": 1, "port": "up", "mode": "native"}]}),
        ),
    ]);
    plan_of(&desired, &ports)
}

#[test]
fn packets_stay_in_their_network_and_have_the_tag_of_the_port() {
    let plan = two_networks();
    let from = |in_port, tag| {
        let mut out = through(&plan.flows, frame(in_port, tag, MacAddr::BROADCAST));
        out.retain(|(port, _)| *port != CONTROLLER);
        out
    };
    assert_eq!(from(1, None), [(4, Some(10)), (2, None)]);
    assert_eq!(from(1, Some(0)), [(4, Some(10)), (2, None)], "a priority tag carries no network");
    assert_eq!(from(2, None), [(4, Some(10)), (1, None)]);
    assert_eq!(from(3, None), [(4, None)]);
    assert_eq!(from(4, Some(10)), [(1, None), (2, None)]);
    assert_eq!(from(4, None), [(3, None)]);
    for (port, tag) in [(1, Some(10)), (1, Some(20)), (3, Some(10)), (4, Some(20)), (4, Some(30)), (5, None)]
    {
        assert_eq!(from(port, tag), [], "port {port} tag {tag:?}");
    }
}

#[test]
fn unknown_sources_are_shown_to_the_controller_and_known_ones_are_not() {
    let mut plan = two_networks();
    let (key, body) = destination_rule(10, host(0x55), PortNo(2), &PLAIN);
    plan.flows.insert(key, body);
    let to_known = |plan: &Plan| through(&plan.flows, frame(1, None, host(0x55)));
    assert_eq!(to_known(&plan), [(CONTROLLER, Some(10)), (2, None)]);
    let (key, body) = source_rule(10, host(0x99), PortNo(1), &PLAIN);
    plan.flows.insert(key, body);
    assert_eq!(to_known(&plan), [(2, None)]);
}

#[test]
fn bridge_control_frames_go_nowhere() {
    let plan = two_networks();
    assert_eq!(through(&plan.flows, frame(1, None, MacAddr([0x01, 0x80, 0xc2, 0, 0, 0x0e]))), []);
}

#[test]
fn learned_rules_are_read_back() {
    let mac = MacAddr([2, 0, 0, 0, 0, 1]);
    let (key, body) = destination_rule(10, mac, PortNo(7), &PLAIN);
    assert_eq!(read_learned(&key, &body), Some((10, mac, PortNo(7), true)));
    let (key, body) = source_rule(10, mac, PortNo(7), &PLAIN);
    assert_eq!(read_learned(&key, &body), Some((10, mac, PortNo(7), false)));
}

#[test]
fn ports_that_are_not_there_or_are_named_twice_are_obstacles() {
    let ports = [port(1, "a"), port(2, "b")].into();
    let desired = desired(&[
        (Kind::Network, "blue", json!({"vlan": 20, "ports": [{"dpid": 1, "port": 1}]})),
        (
            Kind::Network,
            "red",
            json!({"vlan": 10, "ports": [{"dpid": 1, "port": "a"}, {"dpid": 1, "port": "ghost"}]}),
        ),
    ]);
    let plan = plan_of(&desired, &ports);
    let red = plan.obstacles.get(&Owner::Of(Subject::new(Kind::Network, "red"))).unwrap();
    assert_eq!(red, &["port a is in mode Access in network blue", "the switch has no port `ghost`"]);
    assert_eq!(plan.members.len(), 1);
}

#[test]
fn an_empty_wish_is_an_empty_plan() {
    assert_eq!(plan_of(&Desired::default(), &BTreeMap::new()), Plan::default());
}

fn attach(port: u32, more: Value) -> Value {
    let mut value = json!({"network": "n", "dpid": 1, "port": port});
    for (key, item) in more.as_object().expect("an object") {
        value[key] = item.clone();
    }
    value
}

const IPV4: OxmField = OxmField::EthType(0x0800);

fn udp(from: u16, to: u16) -> Vec<OxmField> {
    let ports = [OxmField::UdpSrc(Masked::exact(from)), OxmField::UdpDst(Masked::exact(to))];
    [IPV4, OxmField::IpProto(17)].into_iter().chain(ports).collect()
}

fn ipv4_from(address: &str) -> OxmField {
    OxmField::Ipv4Src(Masked::exact(address.parse().expect("an address")))
}

#[test]
fn hosts_send_from_their_addresses_only() {
    let limited = json!({"macs": ["02:00:00:00:00:01"], "ips": ["10.0.0.1"]});
    let items = [
        (Kind::Network, "n", json!({"vlan": 10})),
        (Kind::Attachment, "a", attach(1, limited)),
        (Kind::Attachment, "b", attach(2, json!({}))),
    ];
    let plan = plan_of(&desired(&items), &BTreeMap::new());
    let passes = |src: MacAddr, rest: Vec<OxmField>| {
        let sent = Frame { src, rest, ..frame(1, None, MacAddr::BROADCAST) };
        reached(&plan, sent) == [2]
    };
    assert!(passes(host(1), vec![IPV4, ipv4_from("10.0.0.1")]));
    assert!(passes(host(1), vec![OxmField::EthType(0x88b5)]), "what is not IP has no IP address");
    assert!(!passes(host(2), vec![IPV4, ipv4_from("10.0.0.1")]), "another MAC address");
    assert!(!passes(host(1), vec![IPV4, ipv4_from("10.0.0.2")]), "another IP address");
    let arp = |spa: &str, sha| {
        let spa = OxmField::ArpSpa(Masked::exact(spa.parse().expect("an address")));
        vec![OxmField::EthType(0x0806), spa, OxmField::ArpSha(Masked::exact(sha))]
    };
    assert!(passes(host(1), arp("10.0.0.1", host(1))) && passes(host(1), arp("0.0.0.0", host(1))));
    assert!(!passes(host(1), arp("10.0.0.2", host(1))) && !passes(host(1), arp("10.0.0.1", host(2))));
    let dhcp = [udp(68, 67), vec![ipv4_from("0.0.0.0")]].concat();
    assert!(passes(host(1), dhcp), "who has no address may ask for one");
    let dropped = plan.flows.values().filter(|b| b.cookie == Cookie::Spoof(1).number()).count();
    assert_eq!(dropped, 4, "drops are counted by themselves");
    let free = Frame { src: host(7), ..frame(2, None, MacAddr::BROADCAST) };
    assert_eq!(reached(&plan, free), [1]);
}

#[test]
fn dhcp_servers_and_routers_are_where_they_are_trusted() {
    let items = |guard: bool| {
        [
            (Kind::Network, "n", json!({"vlan": 10, "guard": guard})),
            (Kind::Attachment, "a", attach(1, json!({}))),
            (Kind::Attachment, "b", attach(2, json!({"trusted": true}))),
            (Kind::Attachment, "c", attach(3, json!({}))),
        ]
    };
    let plan = plan_of(&desired(&items(true)), &BTreeMap::new());
    let to_all = |in_port, rest| Frame { rest, ..frame(in_port, None, MacAddr::BROADCAST) };
    let advertisement = || vec![OxmField::EthType(0x86dd), OxmField::IpProto(58), OxmField::Icmpv6Type(134)];
    for rest in [udp(67, 68), advertisement()] {
        assert_eq!(reached(&plan, to_all(1, rest.clone())), [0; 0]);
        assert_eq!(reached(&plan, to_all(2, rest)), [1, 3]);
    }
    assert_eq!(reached(&plan, to_all(1, udp(68, 67))), [2, 3], "questions pass");
    let open = plan_of(&desired(&items(false)), &BTreeMap::new());
    assert_eq!(reached(&open, to_all(1, udp(67, 68))), [2, 3]);
}

#[test]
fn acls_hold_in_both_directions_for_known_and_flooded_frames() {
    let rule = |direction: &str, port: u16| json!({"direction": direction, "action": "allow", "protocol": "udp", "destination_port": port});
    let deny = json!({"ingress": "deny", "egress": "deny"});
    let items = [
        (Kind::Acl, "web", json!({"rules": [rule("ingress", 80), rule("egress", 53)], "default": deny})),
        (Kind::Acl, "dns", json!({"rules": [rule("ingress", 53)], "default": {"ingress": "deny"}})),
        (Kind::Network, "n", json!({"vlan": 10, "guard": false})),
        (Kind::Attachment, "a", attach(1, json!({"acls": ["web"]}))),
        (Kind::Attachment, "b", attach(2, json!({"acls": ["dns"]}))),
        (Kind::Attachment, "c", attach(3, json!({}))),
        (Kind::Attachment, "d", attach(4, json!({"acls": ["web"]}))),
    ];
    let mut plan = plan_of(&desired(&items), &BTreeMap::new());
    let to_all = |in_port, rest| Frame { rest, ..frame(in_port, None, MacAddr::BROADCAST) };
    assert_eq!(reached(&plan, to_all(3, udp(9, 80))), [1, 4]);
    assert_eq!(reached(&plan, to_all(3, udp(9, 53))), [2]);
    assert_eq!(reached(&plan, to_all(3, udp(9, 7))), [0; 0]);
    assert_eq!(reached(&plan, to_all(3, vec![OxmField::EthType(0x0806)])), [1, 2, 4], "ARP passes");
    assert_eq!(reached(&plan, to_all(1, udp(9, 53))), [2, 3], "its egress rule lets this pass");
    assert_eq!(reached(&plan, to_all(1, udp(9, 80))), [0; 0], "and not this");
    // The same to a host that is known.
    let way = plan.members[&(10, PortNo(1))].clone();
    assert!(way.deliver);
    let (key, body) = destination_rule(10, host(0x11), PortNo(1), &way);
    assert_eq!(read_learned(&key, &body), Some((10, host(0x11), PortNo(1), true)));
    plan.flows.insert(key, body);
    let to_one = |rest| Frame { rest, ..frame(3, None, host(0x11)) };
    assert_eq!(through(&plan.flows, to_one(udp(9, 80))), [(CONTROLLER, Some(10)), (1, None)]);
    assert_eq!(reached(&plan, to_one(udp(9, 81))), [0; 0]);
}

#[test]
fn rate_limits_become_meters() {
    let rates = json!({"rates": {"outbound": {"average": 1000}, "inbound": {"average": 100, "peak": 200, "burst": 50}}});
    let items = [
        (Kind::Network, "n", json!({"vlan": 10, "flooding": {"limit_pps": 500}})),
        (Kind::Attachment, "a", attach(1, rates)),
    ];
    let desired = desired(&items);
    let plan = plan_of(&desired, &BTreeMap::new());
    let meter = |packets, rate, burst| crate::entry::MeterBody { packets, rate, burst };
    let base = 0x2000 + 4;
    let expected = [
        (10, meter(true, 500, 50)),
        (base, meter(false, 8192, 820)),
        (base + 2, meter(false, 1639, 263)),
        (base + 3, meter(false, 820, 410)),
    ];
    assert_eq!(plan.meters, expected.into());
    let way = &plan.members[&(10, PortNo(1))];
    assert!(way.deliver && way.meter == Some(base + 2));
    // A switch without meters forwards, and says what does not hold.
    let layout = Layout::new(&desired, &Layout::default());
    let without = Plan::new(&layout.of(Dpid(1)), &BTreeMap::new(), Abilities::default());
    assert!(without.meters.is_empty());
    assert_eq!(without.obstacles.len(), 2, "{:?}", without.obstacles);
}

#[test]
fn mirrors_copy_what_enters_and_what_leaves() {
    let at = |port: u32| json!({"dpid": 1, "port": port});
    let items = [
        (Kind::Network, "n", json!({"vlan": 10})),
        (Kind::Attachment, "a", attach(1, json!({}))),
        (Kind::Attachment, "b", attach(2, json!({}))),
        (Kind::Attachment, "c", attach(3, json!({}))),
        (Kind::Mirror, "of-a", json!({"source": {"attachment": "a"}, "to": at(8)})),
        (Kind::Mirror, "of-n", json!({"source": {"network": "n"}, "to": at(9)})),
    ];
    let plan = plan_of(&desired(&items), &BTreeMap::new());
    assert_eq!(reached(&plan, frame(1, None, MacAddr::BROADCAST)), [9, 8, 2, 3]);
    assert_eq!(reached(&plan, frame(2, None, MacAddr::BROADCAST)), [9, 1, 8, 3]);
    let way = &plan.members[&(10, PortNo(1))];
    let (key, body) = destination_rule(10, host(1), PortNo(1), way);
    assert_eq!(
        read_learned(&key, &body),
        Some((10, host(1), PortNo(1), true)),
        "copies are not the host's port"
    );
}

#[test]
fn requests_for_known_hosts_go_to_them_alone() {
    let known = json!({"macs": ["02:00:00:00:00:01"], "ips": ["10.0.0.1", "fd00::1"]});
    let items = [
        (Kind::Network, "n", json!({"vlan": 10, "suppress": true, "flooding": {"unknown_unicast": false}})),
        (Kind::Attachment, "a", attach(1, known)),
        (Kind::Attachment, "b", attach(2, json!({}))),
        (Kind::Attachment, "c", attach(3, json!({}))),
    ];
    let mut plan = plan_of(&desired(&items), &BTreeMap::new());
    let way = plan.members[&(10, PortNo(1))].clone();
    let (key, body) = destination_rule(10, host(1), PortNo(1), &way);
    plan.flows.insert(key, body);
    let asks = |address: &str| {
        let target = OxmField::ArpTpa(Masked::exact(address.parse().expect("an address")));
        let rest = vec![OxmField::EthType(0x0806), OxmField::ArpOp(1), target];
        reached(&plan, Frame { rest, ..frame(2, None, MacAddr::BROADCAST) })
    };
    assert_eq!(asks("10.0.0.1"), [1]);
    assert_eq!(asks("10.0.0.9"), [1, 3]);
    assert_eq!(reached(&plan, frame(2, None, host(0x77))), [0; 0], "unknown unicast is not flooded");
}

#[test]
fn a_service_chain_leads_through_its_functions() {
    let at = |port: u32| json!({"dpid": 1, "port": port});
    let hop = json!({"inside": at(5), "outside": at(6)});
    let items = [
        (Kind::Network, "n", json!({"vlan": 10})),
        (Kind::Attachment, "a", attach(1, json!({}))),
        (Kind::Attachment, "b", attach(2, json!({}))),
        (Kind::Chain, "c", json!({"network": "n", "inside": ["a"], "hops": [hop], "vlans": [100]})),
    ];
    let plan = plan_of(&desired(&items), &BTreeMap::new());
    let from = |port| reached(&plan, frame(port, None, MacAddr::BROADCAST));
    assert_eq!([from(1), from(6), from(2), from(5)], [[5], [2], [6], [1]]);
}
