//! What other software switches got wrong at some time.

use std::os::unix::net::UnixStream;

use ofp::{
    Action, Body, Bucket, ErrorCode, FlowMod, FlowModCommand, GroupMod, GroupModCommand, GroupType,
    Instruction, MultipartReply, MultipartRequest, OxmField, PacketOut, PortNo, group,
};
use vswitch::bridge::{BridgeConfig, FailMode};
use vswitch::openflow::AgentConfig;

use crate::client::{Client, add};
use crate::data_path::Switch;

fn start() -> (Switch, Client<UnixStream>) {
    let config = BridgeConfig { fail_mode: FailMode::Secure, ..BridgeConfig::default() };
    let switch = Switch::start(config, AgentConfig::default());
    let client = Client::connect(&switch.socket());
    (switch, client)
}

fn output(port: PortNo) -> Action {
    Action::Output { port, max_len: 0xffff }
}

fn in_port(port: u32) -> OxmField {
    OxmField::InPort(PortNo(port))
}

fn apply(actions: Vec<Action>) -> FlowMod {
    let mut flow_mod = FlowMod::new(FlowModCommand::Add);
    flow_mod.matching.fields = vec![in_port(1)];
    flow_mod.instructions = vec![Instruction::ApplyActions(actions)];
    flow_mod
}

fn packet_out(in_port: PortNo, data: Vec<u8>, actions: Vec<Action>) -> Body {
    Body::PacketOut(PacketOut { buffer_id: ofp::NO_BUFFER, in_port, actions, data })
}

#[test]
fn a_delete_needs_no_instructions_and_no_buffer() {
    let (_switch, mut client) = start();
    client.send(Body::FlowMod(add(5, &[in_port(1)], &[2])));
    client.barrier();
    assert_eq!(client.flows().len(), 1);
    let mut delete = FlowMod::new(FlowModCommand::Delete);
    delete.table_id = ofp::TABLE_ALL;
    delete.buffer_id = 7;
    client.send(Body::FlowMod(delete));
    client.barrier();
    assert_eq!(client.flows(), vec![]);
}

#[test]
fn a_bucket_sends_back_only_by_in_port() {
    let (switch, mut client) = start();
    let bucket = |port| Bucket {
        weight: 0,
        watch_port: PortNo::ANY,
        watch_group: group::ANY,
        actions: vec![output(port)],
    };
    let buckets = vec![bucket(PortNo::IN_PORT), bucket(PortNo(1)), bucket(PortNo(2))];
    let (command, kind) = (GroupModCommand::Add, GroupType::All);
    client.send(Body::GroupMod(GroupMod { command, kind, group_id: 1, buckets }));
    client.send(Body::FlowMod(apply(vec![Action::Group(1)])));
    client.barrier();
    let frame = [2; 60];
    let sent = switch.frame(1, &frame);
    let ports: Vec<u32> = sent.frames.iter().map(|(port, _)| port.0).collect();
    assert_eq!(ports, [1, 2]);
    // TABLE is for packet-outs, and ANY for nobody.
    for port in [PortNo::TABLE, PortNo::ANY, PortNo(0)] {
        let buckets = vec![bucket(port)];
        let request = GroupMod { command, kind, group_id: 2, buckets };
        assert_eq!(client.error(Body::GroupMod(request)), ErrorCode::ACTION_BAD_OUT_PORT, "{port}");
    }
}

#[test]
fn features_of_meters_and_groups_are_told() {
    let (_switch, mut client) = start();
    match client.multipart(MultipartRequest::MeterFeatures) {
        MultipartReply::MeterFeatures(features) => {
            assert_eq!((features.band_types, features.capabilities), (0b110, 0xf));
            assert!(features.max_meter > 0 && features.max_bands > 0);
        }
        other => panic!("{other:?}"),
    }
    match client.multipart(MultipartRequest::GroupFeatures) {
        MultipartReply::GroupFeatures(features) => {
            assert_eq!((features.types, features.capabilities), (0xf, 0xf));
            assert!(features.max_groups.iter().all(|max| *max > 0));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn frames_shorter_than_a_header_hurt_nobody() {
    let (switch, mut client) = start();
    let edits = vec![
        Action::PushVlan(0x8100),
        Action::PushMpls(0x8847),
        Action::CopyTtlOut,
        Action::DecMplsTtl,
        Action::PopMpls(0x0800),
        Action::DecNwTtl,
        Action::PopVlan,
        output(PortNo(2)),
    ];
    client.send(Body::FlowMod(apply(edits)));
    client.barrier();
    for length in 0..14 {
        let request = packet_out(PortNo(1), vec![2; length], vec![output(PortNo::TABLE)]);
        assert_eq!(client.error(request), ErrorCode::BAD_PACKET);
    }
    // Headers that say more than there is.
    for kind in [[0x08, 0x00], [0x86, 0xdd], [0x08, 0x06], [0x88, 0x47], [0x81, 0x00], [0x00, 0x10]] {
        for length in 0..60 {
            let frame = [&[2; 12][..], &kind, &vec![0x45; length]].concat();
            switch.frame(1, &frame);
        }
    }
    client.barrier();
}

#[test]
fn actions_without_length_are_refused() {
    let (_switch, mut client) = start();
    let request = ofp::Message { xid: 9, body: Body::FlowMod(apply(vec![output(PortNo(2))])) };
    let bytes = request.encode().expect("a legal message");
    // The action is the last 16 bytes: type, length, port, bytes for the controller, padding.
    let at = bytes.len() - 14;
    for length in [0, 4, 8, 15, 17, 24, 0xffff] {
        let mut bad = bytes.clone();
        bad[at..at + 2].copy_from_slice(&u16::to_be_bytes(length));
        client.raw(&bad);
        match client.reply(9) {
            Body::Error(error) => assert_eq!(error.error, ErrorCode::ACTION_BAD_LEN, "{length}"),
            other => panic!("{length}: {other:?}"),
        }
    }
    assert_eq!(client.flows(), vec![]);
}

#[test]
fn table_255_is_all_tables_where_that_makes_sense_and_none_elsewhere() {
    let (_switch, mut client) = start();
    for table_id in [64, 254, 255] {
        let flow_mod = FlowMod { table_id, ..add(1, &[], &[2]) };
        assert_eq!(client.error(Body::FlowMod(flow_mod)), ErrorCode::FLOW_MOD_BAD_TABLE_ID);
        let mut goto = add(1, &[], &[2]);
        goto.instructions.push(Instruction::GotoTable(table_id));
        assert_eq!(client.error(Body::FlowMod(goto)), ErrorCode::INSTRUCTION_BAD_TABLE_ID);
    }
    let modify = FlowMod { command: FlowModCommand::Modify, table_id: 255, ..add(1, &[], &[2]) };
    assert_eq!(client.error(Body::FlowMod(modify)), ErrorCode::FLOW_MOD_BAD_TABLE_ID);
    let last = FlowMod { table_id: 63, ..add(1, &[], &[2]) };
    client.send(Body::FlowMod(last));
    client.barrier();
    assert_eq!(client.flows().len(), 1);
}

#[test]
fn unknown_buffers_are_unknown() {
    let (_switch, mut client) = start();
    let flow_mod = FlowMod { buffer_id: 7, ..add(1, &[], &[2]) };
    assert_eq!(client.error(Body::FlowMod(flow_mod)), ErrorCode::BUFFER_UNKNOWN);
    let (in_port, actions, data) = (PortNo(1), vec![output(PortNo(2))], Vec::new());
    let request = Body::PacketOut(PacketOut { buffer_id: 7, in_port, actions, data });
    assert_eq!(client.error(request), ErrorCode::BUFFER_UNKNOWN);
    assert_eq!(client.flows(), vec![]);
}

#[test]
fn the_longest_multipart_request_is_answered() {
    let (_switch, mut client) = start();
    for more in [0u8, 1] {
        // Table features full of zeros, and with more to come.
        let mut bytes = vec![4, 18, 0xff, 0xf8, 0, 0, 0, 9, 0, 12, 0, more, 0, 0, 0, 0];
        bytes.resize(0xfff8, 0);
        client.raw(&bytes);
        assert!(matches!(client.reply(9), Body::Error(_)));
    }
    client.barrier();
}

#[test]
fn reserved_ports_are_refused_where_they_make_no_sense() {
    let (_switch, mut client) = start();
    for port in [PortNo::ANY, PortNo(0), PortNo(0xff00), PortNo::TABLE] {
        assert_eq!(
            client.error(Body::FlowMod(apply(vec![output(port)]))),
            ErrorCode::ACTION_BAD_OUT_PORT,
            "{port}"
        );
    }
    for port in [PortNo::ALL, PortNo::FLOOD, PortNo::NORMAL, PortNo::TABLE, PortNo::IN_PORT] {
        let request = packet_out(port, vec![2; 60], vec![output(PortNo(2))]);
        assert_eq!(client.error(request), ErrorCode::BAD_PORT, "{port}");
    }
    let field = Action::SetField(in_port(2));
    assert_eq!(client.error(Body::FlowMod(apply(vec![field]))), ErrorCode::ACTION_BAD_SET_TYPE);
    for port in [PortNo::ALL, PortNo::CONTROLLER, PortNo(0)] {
        let request = Body::MultipartRequest(MultipartRequest::PortStats(port));
        assert_eq!(client.error(request), ErrorCode::BAD_PORT, "{port}");
    }
}
