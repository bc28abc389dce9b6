//! What `sluice trace` tells is what the switch does.

use ofp::{
    Action, Body, Bucket, FlowMod, GroupMod, GroupModCommand, GroupType, Instruction, Masked, OxmField,
};
use telemetry::check::Errors;
use vswitch::bridge::{BridgeConfig, FailMode};
use vswitch::model::PortNo;
use vswitch::openflow::AgentConfig;
use vswitch::trace::{Trace, read_frame, trace};

use crate::client::{Client, add};
use crate::data_path::{Switch, frame};

fn read(text: &str) -> Result<Vec<u8>, String> {
    let mut errors = Errors::new();
    let frame = read_frame(text, &mut errors);
    errors.into_result("no frame", ()).map_err(|problem| problem.to_string())?;
    Ok(frame.expect("no error"))
}

/// Traces a frame and sends it for real: both have to come to the same.
fn follow(switch: &Switch, port: u32, frame: &[u8]) -> Trace {
    let before = switch.bridge.fdb().entries().len();
    let told = trace(&switch.bridge, PortNo(port), frame);
    assert_eq!(switch.bridge.fdb().entries().len(), before, "a trace learns nothing");
    let sent = switch.frame(port, frame);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let really: Vec<_> = sent.frames.iter().map(|(port, frame)| (Some(port.0), hex(frame))).collect();
    let to_ports = told.outputs.iter().filter(|output| output.ofport.is_some());
    let told_frames: Vec<_> = to_ports.map(|output| (output.ofport, output.frame.clone())).collect();
    assert_eq!(told_frames, really);
    assert_eq!(told.outputs.len() - told_frames.len(), sent.packet_ins);
    let drops: Vec<_> = told.drops.iter().map(|drop| drop.split(':').next().unwrap_or_default()).collect();
    assert_eq!(drops, sent.drops.iter().map(|drop| drop.name()).collect::<Vec<_>>());
    told
}

#[test]
fn the_way_through_the_tables_is_told() {
    let config = BridgeConfig { fail_mode: FailMode::Secure, ..BridgeConfig::default() };
    let switch = Switch::start(config, AgentConfig::default());
    let mut client = Client::connect(&switch.socket());
    let output = |port| Action::Output { port: ofp::PortNo(port), max_len: 20 };
    let web = [OxmField::EthType(0x0800), OxmField::IpProto(6), OxmField::TcpDst(Masked::exact(80))];
    let tag = vec![Action::PushVlan(0x8100), Action::SetField(OxmField::VlanVid(Masked::exact(0x100a)))];
    let first = FlowMod {
        cookie: 0x77,
        instructions: vec![Instruction::ApplyActions(tag), Instruction::GotoTable(3)],
        ..add(9, &web, &[])
    };
    client.send(Body::FlowMod(first));
    client.send(Body::FlowMod(FlowMod { table_id: 3, ..add(0, &[], &[2, 4]) }));
    let arp = FlowMod {
        instructions: vec![Instruction::ApplyActions(vec![output(ofp::PortNo::CONTROLLER.0)])],
        ..add(5, &[OxmField::EthType(0x0806)], &[])
    };
    client.send(Body::FlowMod(arp));
    client.barrier();

    let told = follow(&switch, 1, &read("tcp 10.0.0.1:1->10.0.0.2:80").expect("a frame"));
    assert!(told.fields.starts_with("tcp,in_port=1"), "{}", told.fields);
    let [first, second] = &told.tables[..] else { panic!("{:?}", told.tables) };
    assert_eq!((first.table, first.cookie, second.table), (0, Some(0x77), 3));
    let rule = "priority=9,tcp,tp_dst=80 actions=push_vlan:0x8100,set_field:4106->vlan_vid,goto_table:3";
    assert_eq!(first.rule.as_deref(), Some(rule));
    assert!(first.because.contains("tcp, tp_dst=80"), "{}", first.because);
    assert!(second.because.contains("table-miss"), "{}", second.because);
    assert!(second.changed.contains(&"dl_vlan=10".to_string()), "{:?}", second.changed);
    assert!(told.outputs[0].changed.contains(&"dl_vlan=10".to_string()), "{:?}", told.outputs);

    let told = follow(&switch, 1, &read("udp 10.0.0.1:1->10.0.0.2:80").expect("a frame"));
    assert_eq!((told.tables.len(), told.tables[0].rule.as_deref()), (1, None));
    assert!(told.drops[0].starts_with("table_miss: "), "{:?}", told.drops);

    let told = follow(&switch, 1, &read("arp 10.0.0.1->10.0.0.2").expect("a frame"));
    assert!(told.outputs[0].port.contains("controllers"), "{:?}", told.outputs);
    assert_eq!(told.outputs[0].frame.len(), 40);
}

/// Which buckets of groups a frame takes, and by which port it would have gone that has no link.
#[test]
fn buckets_and_ports_without_link_are_told() {
    let config = BridgeConfig { fail_mode: FailMode::Secure, ..BridgeConfig::default() };
    let switch = Switch::start(config, AgentConfig::default());
    let mut client = Client::connect(&switch.socket());
    let bucket = |port: u32| Bucket {
        weight: 0,
        watch_port: ofp::PortNo(port),
        watch_group: ofp::group::ANY,
        actions: vec![Action::Output { port: ofp::PortNo(port), max_len: 0 }],
    };
    let group = |group_id, kind, buckets| {
        Body::GroupMod(GroupMod { command: GroupModCommand::Add, kind, group_id, buckets })
    };
    client.send(group(7, GroupType::FastFailover, vec![bucket(2), bucket(3)]));
    let instructions = vec![Instruction::ApplyActions(vec![
        Action::Group(7),
        Action::Output { port: ofp::PortNo(2), max_len: 0 },
    ])];
    client.send(Body::FlowMod(FlowMod { instructions, ..add(0, &[], &[]) }));
    client.barrier();
    let taken =
        |told: &Trace| told.buckets.iter().map(|taken| (taken.group, taken.bucket)).collect::<Vec<_>>();
    let told = follow(&switch, 1, &frame(1, 4));
    assert_eq!((taken(&told), told.drops.len()), (vec![(7, 0)], 0));
    switch.bridge.set_link(PortNo(2), false).expect("there is a port 2");
    let told = follow(&switch, 1, &frame(1, 4));
    assert_eq!(taken(&told), [(7, 1)]);
    assert!(told.buckets[0].because.contains("first of 2 that is live"), "{:?}", told.buckets);
    assert!(
        told.drops[0].starts_with("link_down: ") && told.drops[0].contains("port 2, p2"),
        "{:?}",
        told.drops
    );
}

#[test]
fn learning_is_told_and_not_done() {
    let switch = Switch::start(BridgeConfig::default(), AgentConfig::default());
    let told = follow(&switch, 1, &frame(1, 2));
    assert!(told.learning.as_ref().is_some_and(|text| text.contains("is unknown: flooded")), "{told:?}");
    let told = follow(&switch, 2, &frame(2, 1));
    assert!(told.learning.as_ref().is_some_and(|text| text.contains("learned on port 1 (p1)")), "{told:?}");
    assert_eq!(told.outputs.len(), 1);
}

#[test]
fn frames_are_read_from_digits_and_words() {
    assert_eq!(read("ffffffffffff 020000000001 0800").expect("a frame").len(), 14);
    assert_eq!(read("ff:ff:ff:ff:ff:ff:02:00:00:00:00:01:08:00").expect("a frame").len(), 14);
    assert!(read("ffffffffffff0200000000010800f").expect_err("half a byte").contains("half a byte"));
    assert!(read("tpc 10.0.0.1->10.0.0.2").expect_err("no protocol").contains("tpc"));
}
