//! Frames through the switch: learning, VLANs, edits.

use std::collections::BTreeSet;

use vswitch::bridge::{BridgeConfig, FailMode};
use vswitch::model::{DropReason, PortConfig, PortNo, VlanMode};
use vswitch::openflow::AgentConfig;

use ofp::{Action, Body, Instruction, Masked, OxmField};

use crate::client::{Client, add};
use crate::data_path::{Sent, Switch, frame, port};

fn tagged(frame: &[u8], tci: u16) -> Vec<u8> {
    [&frame[..12], &[0x81, 0x00], &tci.to_be_bytes(), &frame[12..]].concat()
}

fn ports_of(sent: &Sent) -> Vec<u32> {
    let mut ports: Vec<u32> = sent.frames.iter().map(|(port, _)| port.0).collect();
    ports.sort_unstable();
    ports
}

fn learning() -> Switch {
    Switch::start(BridgeConfig::default(), AgentConfig::default())
}

#[test]
fn addresses_are_learned_moved_and_forgotten() {
    let switch = learning();
    assert_eq!(ports_of(&switch.frame(1, &frame(1, 2))), [2, 3, 4]);
    assert_eq!(ports_of(&switch.frame(2, &frame(2, 1))), [1]);
    assert_eq!(ports_of(&switch.frame(1, &frame(1, 2))), [2]);
    // The peer is on the port where the packet came from.
    assert_eq!(switch.frame(2, &frame(3, 2)).drops, [DropReason::IngressPort]);
    // Host 1 moves to port 4.
    assert_eq!(ports_of(&switch.frame(4, &frame(1, 2))), [2]);
    assert_eq!(ports_of(&switch.frame(2, &frame(2, 1))), [4]);
    assert_eq!(switch.bridge.fdb().moved(), 1);
    switch.bridge.set_link(PortNo(4), false).expect("there is a port 4");
    switch.bridge.barrier().wait();
    assert_eq!(ports_of(&switch.frame(2, &frame(2, 1))), [1, 3]);
    // Group addresses are flooded and never learned; bridge addresses are not forwarded.
    let mut broadcast = frame(1, 2);
    broadcast[..6].fill(0xff);
    broadcast[6] = 0x03;
    assert_eq!(ports_of(&switch.frame(1, &broadcast)), [2, 3]);
    assert!(switch.bridge.fdb().entries().iter().all(|entry| !entry.mac.is_multicast()));
    broadcast[..6].copy_from_slice(&[0x01, 0x80, 0xc2, 0, 0, 0]);
    assert_eq!(switch.frame(1, &broadcast).drops, [DropReason::LinkLocal]);
    assert_eq!(switch.frame(1, &[0; 11]).drops, [DropReason::TooShort]);
}

/// The VLAN matrix: every kind of port and tag against what NORMAL has to do, computed from the rules of 802.1Q.
#[test]
fn vlans_are_kept_apart() {
    let switch = learning();
    let trunk =
        |allowed: &[u16], native| VlanMode::Trunk { allowed: allowed.iter().copied().collect(), native };
    let modes = [
        VlanMode::Access(10),
        VlanMode::Access(20),
        trunk(&[10, 20], None),
        trunk(&[10], Some(20)),
        VlanMode::Access(10),
        trunk(&[30], Some(1)),
    ];
    for (index, vlan) in modes.iter().enumerate() {
        let config = PortConfig { vlan: vlan.clone(), ..port(index as u32 + 1) };
        let known = switch.bridge.has_port(config.ofport);
        let result = if known { switch.bridge.update_port(config) } else { switch.bridge.add_port(config) };
        result.expect("a legal port");
    }
    switch.bridge.barrier().wait();
    let ingress = |mode: &VlanMode, tag: Option<u16>| match (mode, tag) {
        (VlanMode::Access(vid), None | Some(0)) => Some(*vid),
        (VlanMode::Access(_), Some(_)) => None,
        (VlanMode::Trunk { native, .. }, None | Some(0)) => *native,
        (VlanMode::Trunk { allowed, .. }, Some(vid)) => allowed.contains(vid).then_some(vid),
    };
    let egress = |mode: &VlanMode, vid: u16| match mode {
        VlanMode::Access(access) => (*access == vid).then_some(false),
        VlanMode::Trunk { native, .. } if *native == Some(vid) => Some(false),
        VlanMode::Trunk { allowed, .. } => allowed.contains(vid).then_some(true),
    };
    for (from, mode) in modes.iter().enumerate() {
        for (host, tag) in [None, Some(0), Some(10), Some(20), Some(30), Some(99)].into_iter().enumerate() {
            let plain = frame(100 + (from * 8 + host) as u8, 99);
            let sent_in = tag.map_or(plain.clone(), |vid| tagged(&plain, 0xa000 | vid));
            let sent = switch.frame(from as u32 + 1, &sent_in);
            let Some(vid) = ingress(mode, tag) else {
                assert_eq!(sent.drops, [DropReason::VlanNotAllowed], "port {from} tag {tag:?}");
                continue;
            };
            let priority = if tag.is_some() { 0xa000 } else { 0 };
            let expected: BTreeSet<(PortNo, Vec<u8>)> = modes
                .iter()
                .enumerate()
                .filter(|(to, _)| *to != from)
                .filter_map(|(to, mode)| Some((to, egress(mode, vid)?)))
                .map(|(to, tag)| {
                    let frame = if tag { tagged(&plain, priority | vid) } else { plain.clone() };
                    (PortNo(to as u32 + 1), frame)
                })
                .collect();
            assert_eq!(
                sent.frames.iter().cloned().collect::<BTreeSet<_>>(),
                expected,
                "port {from} tag {tag:?}"
            );
            assert_eq!(sent.frames.len(), expected.len());
        }
    }
    // Learned in VLAN 10 only: the same address in VLAN 20 is still flooded.
    switch.frame(1, &frame(50, 99));
    assert_eq!(ports_of(&switch.frame(5, &frame(51, 50))), [1]);
    assert_eq!(ports_of(&switch.frame(2, &frame(52, 50))), [3, 4]);
}

#[test]
fn actions_change_what_later_outputs_send() {
    let config = BridgeConfig { fail_mode: FailMode::Secure, ..BridgeConfig::default() };
    let switch = Switch::start(config, AgentConfig::default());
    let mut client = Client::connect(&switch.socket());
    let output = |port| Action::Output { port: ofp::PortNo(port), max_len: 0 };
    let vid = |vid: u16| Action::SetField(OxmField::VlanVid(Masked::exact(vid | 0x1000)));
    let mut flow = add(1, &[OxmField::InPort(ofp::PortNo(1))], &[]);
    flow.instructions = vec![Instruction::ApplyActions(vec![
        output(2),
        Action::PushVlan(0x8100),
        vid(10),
        output(3),
        Action::PushVlan(0x88a8),
        vid(20),
        Action::SetField(OxmField::VlanPcp(3)),
        output(3),
        Action::PopVlan,
        Action::PopVlan,
        Action::SetField(OxmField::EthDst(Masked::exact(ofp::MacAddr([2, 0, 0, 0, 0, 77])))),
        output(ofp::PortNo::IN_PORT.0),
        output(1),
    ])];
    client.send(Body::FlowMod(flow));
    client.barrier();
    let original = frame(1, 2);
    let one = tagged(&original, 10);
    let mut two = tagged(&one, 20 | 3 << 13);
    two[12..14].copy_from_slice(&[0x88, 0xa8]);
    let mut last = original.clone();
    last[5] = 77;
    let sent = switch.frame(1, &original);
    let expected = [(PortNo(2), original), (PortNo(3), one), (PortNo(3), two), (PortNo(1), last)];
    assert_eq!(sent.frames, expected);
    // The last output names the ingress port: not sent back.
    assert_eq!(sent.drops, [DropReason::IngressPort]);
}

#[test]
fn later_tables_see_what_earlier_ones_changed() {
    let config = BridgeConfig { fail_mode: FailMode::Secure, ..BridgeConfig::default() };
    let switch = Switch::start(config, AgentConfig::default());
    let mut client = Client::connect(&switch.socket());
    let mut pop = add(1, &[OxmField::VlanVid(Masked::with_mask(0x1000, 0x1000))], &[]);
    pop.instructions = vec![Instruction::ApplyActions(vec![Action::PopVlan]), Instruction::GotoTable(1)];
    client.send(Body::FlowMod(pop));
    for (value, out) in [(0x1000 | 7, 2), (0, 3)] {
        let mut flow = add(1, &[OxmField::VlanVid(Masked::exact(value))], &[out]);
        flow.table_id = 1;
        client.send(Body::FlowMod(flow));
    }
    client.barrier();
    let plain = frame(1, 2);
    let inner = tagged(&plain, 7);
    assert_eq!(switch.frame(1, &tagged(&inner, 5)).frames, [(PortNo(2), inner.clone())]);
    assert_eq!(switch.frame(1, &tagged(&plain, 5)).frames, [(PortNo(3), plain.clone())]);
    assert_eq!(switch.frame(1, &inner).frames, [(PortNo(3), plain.clone())]);
    assert_eq!(switch.frame(1, &tagged(&tagged(&plain, 8), 5)).drops, [DropReason::TableMiss]);
    assert_eq!(switch.frame(1, &plain).drops, [DropReason::TableMiss]);
}

#[test]
fn an_unknown_or_dead_output_is_a_drop_with_its_reason() {
    let config = BridgeConfig { fail_mode: FailMode::Secure, ..BridgeConfig::default() };
    let switch = Switch::start(config, AgentConfig::default());
    let mut client = Client::connect(&switch.socket());
    client.send(Body::FlowMod(add(1, &[], &[3, 2000, ofp::PortNo::LOCAL.0])));
    client.barrier();
    switch.bridge.set_link(PortNo(3), false).expect("there is a port 3");
    client.barrier();
    let sent = switch.frame(1, &frame(1, 2));
    assert_eq!(sent.drops, [DropReason::LinkDown, DropReason::NoSuchPort, DropReason::NoSuchPort]);
    client.send(Body::FlowMod(add(1, &[], &[ofp::PortNo::ALL.0])));
    client.barrier();
    assert_eq!(ports_of(&switch.frame(1, &frame(1, 2))), [2, 4]);
}
