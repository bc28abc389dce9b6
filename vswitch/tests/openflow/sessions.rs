//! Sessions: what controllers say and hear.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use ofp::{
    Action, AsyncConfig, Body, ErrorCode, ErrorMessage, FlowMod, FlowModCommand, FlowModFlags,
    FlowRemovedReason, Instruction, Masked, Message, MultipartReply, MultipartRequest, OxmField,
    PacketInReason, PortState, PortStatusReason, Role, RoleMessage,
};
use vswitch::bridge::{BridgeConfig, FailMode};
use vswitch::config::OpenFlowAddress;
use vswitch::model::{DropReason, PortNo};
use vswitch::openflow::AgentConfig;

use crate::client::{Client, add};
use crate::data_path::{PATIENCE, Switch, frame, port, wait_for};

fn secure() -> BridgeConfig {
    BridgeConfig { fail_mode: FailMode::Secure, ..BridgeConfig::default() }
}

fn start() -> Switch {
    Switch::start(secure(), AgentConfig::default())
}

fn in_port(port: u32) -> OxmField {
    OxmField::InPort(ofp::PortNo(port))
}

#[test]
fn after_the_barrier_the_very_next_packet_is_decided_anew() {
    let switch = start();
    let mut client = Client::connect(&switch.socket());
    for round in 0..300u32 {
        let out = 2 + round % 3;
        client.send(Body::FlowMod(add(10, &[in_port(1)], &[out])));
        client.barrier();
        let sent = switch.frame(1, &frame(1, 2));
        assert_eq!(sent.frames, [(PortNo(out), frame(1, 2))], "round {round}");
    }
}

#[test]
fn flow_mods_live_without_a_barrier_too() {
    let switch = start();
    let mut client = Client::connect(&switch.socket());
    client.send(Body::FlowMod(add(10, &[in_port(1)], &[2])));
    wait_for("the flow is live", || !switch.frame(1, &frame(1, 2)).frames.is_empty());
}

#[test]
fn flow_mods_received_together_are_carried_out_in_order() {
    let switch = start();
    let mut client = Client::connect(&switch.socket());
    let of_priority = |command, priority| FlowMod { command, ..add(priority, &[in_port(1)], &[2]) };
    let mut flow_mods: Vec<FlowMod> =
        (0..100).map(|priority| of_priority(FlowModCommand::Add, priority)).collect();
    // Each sees what those before it did, and a refused one changes nothing for those behind it.
    flow_mods.extend((0..50).map(|priority| of_priority(FlowModCommand::DeleteStrict, priority)));
    flow_mods.insert(70, FlowMod { table_id: 200, ..of_priority(FlowModCommand::Add, 9) });
    flow_mods.push(of_priority(FlowModCommand::Add, 7));
    let messages: Vec<Vec<u8>> = (1000..)
        .zip(flow_mods)
        .map(|(xid, flow_mod)| Message { xid, body: Body::FlowMod(flow_mod) }.encode().expect("legal"))
        .collect();
    client.raw(&messages.concat());
    client.barrier();
    let refused = ErrorMessage::refusing(ErrorCode::FLOW_MOD_BAD_TABLE_ID, &messages[70]);
    assert_eq!(client.notices, [Message { xid: 1070, body: Body::Error(refused) }]);
    let mut priorities: Vec<u16> = client.flows().iter().map(|flow| flow.priority).collect();
    priorities.sort_unstable();
    assert_eq!(priorities, std::iter::once(7).chain(50..100).collect::<Vec<_>>());
}

#[test]
fn packet_ins_say_why_and_from_where() {
    let switch = start();
    let mut client = Client::connect(&switch.socket());
    let to_controller =
        |max_len| Instruction::ApplyActions(vec![Action::Output { port: ofp::PortNo::CONTROLLER, max_len }]);
    let mut miss = add(0, &[], &[]);
    (miss.instructions, miss.cookie) = (vec![Instruction::GotoTable(2)], 1);
    client.send(Body::FlowMod(miss));
    let mut second = add(0, &[], &[]);
    (second.table_id, second.cookie, second.instructions) = (2, 77, vec![to_controller(0xffff)]);
    client.send(Body::FlowMod(second));
    let mut action = add(5, &[in_port(3)], &[]);
    (action.cookie, action.instructions) = (88, vec![to_controller(20)]);
    client.send(Body::FlowMod(action));
    // What is noted beside a packet is told too.
    let mut noted = add(5, &[in_port(4)], &[]);
    let tunnel = OxmField::TunnelId(Masked::exact(9));
    let note = Instruction::WriteMetadata { metadata: 0x1234, mask: 0xff };
    noted.instructions = vec![
        Instruction::ApplyActions(vec![Action::SetField(tunnel.clone())]),
        note,
        Instruction::GotoTable(2),
    ];
    client.send(Body::FlowMod(noted));
    client.barrier();
    let packet_in = |body: &Body| match body {
        Body::PacketIn(packet_in) => Some(packet_in.clone()),
        _ => None,
    };
    assert_eq!(switch.frame(2, &frame(2, 1)).packet_ins, 1);
    let seen = client.notice(packet_in);
    assert_eq!((seen.reason, seen.table_id, seen.cookie), (PacketInReason::NoMatch, 2, 77));
    assert_eq!((seen.buffer_id, seen.total_len, seen.data), (ofp::NO_BUFFER, 60, frame(2, 1)));
    assert_eq!(seen.matching.fields, [in_port(2)]);
    assert_eq!(switch.frame(3, &frame(3, 1)).packet_ins, 1);
    let seen = client.notice(packet_in);
    assert_eq!((seen.reason, seen.table_id, seen.cookie), (PacketInReason::Action, 0, 88));
    assert_eq!((seen.total_len, seen.data), (60, frame(3, 1)[..20].to_vec()));
    assert_eq!(switch.frame(4, &frame(4, 1)).packet_ins, 1);
    let seen = client.notice(packet_in);
    let metadata = OxmField::Metadata(Masked::exact(0x34));
    assert_eq!((seen.table_id, seen.cookie), (2, 77));
    assert_eq!(seen.matching.fields, [in_port(4), metadata, tunnel]);
}

#[test]
fn packet_ins_are_limited_and_the_session_lives_on() {
    let config = AgentConfig { packet_ins_per_second: 50, ..AgentConfig::default() };
    let switch = Switch::start(secure(), config);
    let mut client = Client::connect(&switch.socket());
    client.send(Body::FlowMod(add(0, &[], &[ofp::PortNo::CONTROLLER.0])));
    client.barrier();
    let begin = Instant::now();
    let made: usize = (0..2000).map(|_| switch.frame(1, &frame(1, 2)).packet_ins).sum();
    client.barrier();
    let stats = switch.agent.as_ref().expect("running").stats();
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
    wait_for("all packet-ins are dealt with", || {
        let dealt_with = load(&stats.packet_ins_sent) + load(&stats.packet_ins_dropped);
        // The queue between workers and agent may have been full for a while.
        dealt_with >= made as u64 / 2
    });
    // A second's worth at once, then so many a second.
    let allowed = 50 * (begin.elapsed().as_secs() + 2);
    assert!(load(&stats.packet_ins_sent) <= allowed, "{allowed} allowed, {stats:?}");
    assert!(load(&stats.packet_ins_dropped) > 0, "{stats:?}");
    client.barrier();
}

/// An operator's own limit: a second's worth at once.
#[test]
fn a_port_causes_no_more_packet_ins_than_it_may() {
    let switch = Switch::with_packet_ins(3, 1, secure(), AgentConfig::default());
    let mut client = Client::connect(&switch.socket());
    client.send(Body::FlowMod(add(0, &[], &[ofp::PortNo::CONTROLLER.0])));
    client.barrier();
    let sent = switch.burst(1, &frame(1, 2), 20);
    assert_eq!(sent.iter().map(|sent| sent.packet_ins).sum::<usize>(), 3);
    assert_eq!(switch.frame(2, &frame(2, 1)).packet_ins, 1, "another port has its own");
}

#[test]
fn a_port_cannot_use_up_what_the_controller_can_take() {
    let switch = Switch::start(secure(), AgentConfig::default());
    let mut client = Client::connect(&switch.socket());
    client.send(Body::FlowMod(add(0, &[], &[ofp::PortNo::CONTROLLER.0])));
    client.barrier();
    // Far more than a port may cause at once; drops are counted for what they are.
    let sent = switch.burst(1, &frame(1, 2), 1000);
    let passed: usize = sent.iter().map(|sent| sent.packet_ins).sum();
    assert_eq!(passed, 256);
    assert!(sent[..passed].iter().all(|sent| sent.drops.is_empty()));
    assert!(sent[passed..].iter().all(|sent| sent.drops == [DropReason::PacketInLimit]));
    // The others are heard, of the same worker and of another one.
    for port in [3, 2] {
        assert_eq!(switch.frame(port, &frame(port as u8, 1)).packet_ins, 1, "port {port}");
        client.notice(|body| match body {
            Body::PacketIn(packet_in) if packet_in.matching.fields == [in_port(port)] => Some(()),
            _ => None,
        });
    }
}

#[test]
fn fragments_are_dropped_where_a_controller_wants_it() {
    let switch = start();
    let (mut client, mut other) = (Client::connect(&switch.socket()), Client::connect(&switch.socket()));
    client.send(Body::FlowMod(add(5, &[in_port(1)], &[2])));
    client.barrier();
    let fragment = |bits: u16| {
        let mut frame = frame(1, 2);
        frame[20..22].copy_from_slice(&bits.to_be_bytes());
        frame
    };
    let mut ipv6 = [&[2; 12][..], &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 16, 44, 64], &[0xfd; 32]].concat();
    ipv6.extend([17, 0, 0, 1, 0, 0, 0, 1, 0, 53, 0, 53, 0, 8, 0, 0]);
    // More to come, the last of several, and one of IPv6; not to be fragmented is no fragment.
    let fragments = [fragment(0x2000), fragment(0x0005), ipv6];
    let expect = |dropped: bool| {
        for frame in &fragments {
            let sent = switch.frame(1, frame);
            let drops: &[DropReason] = if dropped { &[DropReason::Fragment] } else { &[] };
            assert_eq!((sent.frames.len(), &*sent.drops), (usize::from(!dropped), drops));
        }
        assert_eq!(switch.frame(1, &fragment(0x4000)).frames.len(), 1);
    };
    let config = |flags| ofp::SwitchConfig { flags, miss_send_len: 128 };
    expect(false);
    client.send(Body::SetConfig(config(ofp::ConfigFlags::FRAG_DROP)));
    client.barrier();
    expect(true);
    // No flow counts them.
    assert_eq!(client.flows()[0].packet_count, 5);
    // It is the switch's, not the controller's, and no slave's to change.
    let Body::GetConfigReply(seen) = other.ask(Body::GetConfigRequest) else { panic!("no configuration") };
    assert_eq!(seen.flags, ofp::ConfigFlags::FRAG_DROP);
    other.ask(Body::RoleRequest(RoleMessage { role: Role::Slave, generation_id: 1 }));
    assert_eq!(other.error(Body::SetConfig(config(ofp::ConfigFlags(0)))), ErrorCode::CONFIG_EPERM);
    let reassemble = Body::SetConfig(config(ofp::ConfigFlags::FRAG_REASM));
    assert_eq!(client.error(reassemble), ErrorCode::CONFIG_BAD_FLAGS);
    expect(true);
    client.send(Body::SetConfig(config(ofp::ConfigFlags(0))));
    client.barrier();
    expect(false);
}

#[test]
fn removed_flows_are_reported_with_final_counters() {
    let switch = start();
    let mut client = Client::connect(&switch.socket());
    let mut flow = add(10, &[in_port(1)], &[2]);
    (flow.flags, flow.cookie) = (FlowModFlags::SEND_FLOW_REM, 42);
    client.send(Body::FlowMod(flow.clone()));
    client.barrier();
    for _ in 0..5 {
        switch.frame(1, &frame(1, 2));
    }
    client.send(Body::FlowMod(FlowMod {
        command: FlowModCommand::Delete,
        ..FlowMod::new(FlowModCommand::Delete)
    }));
    client.barrier();
    let removed = |body: &Body| match body {
        Body::FlowRemoved(removed) => Some(removed.clone()),
        _ => None,
    };
    let seen = client.notice(removed);
    assert_eq!((seen.cookie, seen.priority, seen.reason), (42, 10, FlowRemovedReason::Delete));
    assert_eq!((seen.packet_count, seen.byte_count), (5, 300));
    assert_eq!(seen.matching.fields, [in_port(1)]);

    flow.hard_timeout = 1;
    client.send(Body::FlowMod(flow.clone()));
    let seen = client.notice(removed);
    assert_eq!((seen.reason, seen.hard_timeout), (FlowRemovedReason::HardTimeout, 1));
    assert!(seen.duration_sec >= 1, "{seen:?}");
}

#[test]
fn a_flow_in_use_is_not_idle() {
    let switch = start();
    let mut client = Client::connect(&switch.socket());
    let mut flow = add(10, &[in_port(1)], &[2]);
    (flow.flags, flow.idle_timeout) = (FlowModFlags::SEND_FLOW_REM, 2);
    let removed = |body: &Body| match body {
        Body::FlowRemoved(removed) => Some(removed.clone()),
        _ => None,
    };
    // Used for longer than the timeout: it must not go while packets come. A machine that has no time for this thread
    // may let the flow be idle after all; then it is tried again.
    let half = Duration::from_millis(1000);
    for _ in 0..10 {
        client.send(Body::FlowMod(flow.clone()));
        client.barrier();
        let begin = Instant::now();
        let (mut packets, mut last, mut longest) = (0, begin, Duration::ZERO);
        while begin.elapsed() < Duration::from_millis(2500) {
            packets += switch.frame(1, &frame(1, 2)).frames.len() as u64;
            std::thread::sleep(Duration::from_millis(20));
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        let there = client.flows().len();
        longest = longest.max(last.elapsed());
        let seen = client.notice(removed);
        assert_eq!(seen.reason, FlowRemovedReason::IdleTimeout);
        if longest < half {
            assert_eq!((there, seen.packet_count), (1, packets));
            assert!(seen.duration_sec >= 4, "{seen:?}");
            return;
        }
    }
    panic!("this machine never had time for the test");
}

#[test]
fn ports_come_and_go() {
    let switch = start();
    let mut client = Client::connect(&switch.socket());
    client.barrier();
    let status = |body: &Body| match body {
        Body::PortStatus(status) => Some((status.reason, status.port.port_no.0, status.port.state)),
        _ => None,
    };
    switch.bridge.set_link(PortNo(2), false).expect("there is a port 2");
    assert_eq!(client.notice(status), (PortStatusReason::Modify, 2, PortState::LINK_DOWN));
    switch.bridge.set_link(PortNo(2), true).expect("there is a port 2");
    assert_eq!(client.notice(status), (PortStatusReason::Modify, 2, PortState::LIVE));
    switch.bridge.add_port(port(9)).expect("9 is free");
    assert_eq!(client.notice(status), (PortStatusReason::Add, 9, PortState::LIVE));
    switch.bridge.remove_port(PortNo(9)).expect("there is a port 9");
    assert_eq!(client.notice(status), (PortStatusReason::Delete, 9, PortState::LIVE));
    let MultipartReply::PortDesc(ports) = client.multipart(MultipartRequest::PortDesc) else {
        panic!("no ports")
    };
    assert_eq!(ports.iter().map(|port| port.port_no.0).collect::<Vec<_>>(), [1, 2, 3, 4]);
}

#[test]
fn requests_that_make_no_sense_are_refused_by_the_book() {
    let switch = Switch::start(BridgeConfig { flow_limit: 3, ..secure() }, AgentConfig::default());
    let mut client = Client::connect(&switch.socket());
    let mut refused = |flow_mod: FlowMod| client.error(Body::FlowMod(flow_mod));
    let base = add(1, &[in_port(1)], &[2]);
    assert_eq!(refused(FlowMod { table_id: 64, ..base.clone() }), ErrorCode::FLOW_MOD_BAD_TABLE_ID);
    assert_eq!(refused(FlowMod { table_id: 255, ..base.clone() }), ErrorCode::FLOW_MOD_BAD_TABLE_ID);
    assert_eq!(refused(FlowMod { buffer_id: 7, ..base.clone() }), ErrorCode::BUFFER_UNKNOWN);
    let goto = |table| vec![Instruction::GotoTable(table)];
    assert_eq!(
        refused(FlowMod { instructions: goto(0), ..base.clone() }),
        ErrorCode::INSTRUCTION_BAD_TABLE_ID
    );
    assert_eq!(
        refused(FlowMod { instructions: goto(64), ..base.clone() }),
        ErrorCode::INSTRUCTION_BAD_TABLE_ID
    );
    let bad_match = add(1, &[OxmField::TcpDst(Masked::exact(80))], &[2]);
    assert_eq!(refused(bad_match), ErrorCode::MATCH_BAD_PREREQ);
    assert_eq!(refused(add(1, &[in_port(1), in_port(1)], &[2])), ErrorCode::MATCH_DUP_FIELD);
    assert_eq!(refused(add(1, &[], &[0xffff_fff9])), ErrorCode::ACTION_BAD_OUT_PORT);
    assert_eq!(client.flows(), []);
    for port in 1..=3 {
        client.send(Body::FlowMod(add(1, &[in_port(port)], &[2])));
    }
    assert_eq!(client.error(Body::FlowMod(add(1, &[in_port(4)], &[2]))), ErrorCode::FLOW_MOD_TABLE_FULL);
    let overlap = FlowMod { flags: FlowModFlags::CHECK_OVERLAP, ..add(1, &[], &[2]) };
    assert_eq!(client.error(Body::FlowMod(overlap)), ErrorCode::FLOW_MOD_OVERLAP);
    assert_eq!(client.flows().len(), 3);
    // A delete without instructions and with a buffer number that means nothing.
    client.send(Body::FlowMod(FlowMod {
        table_id: 255,
        buffer_id: 0,
        ..FlowMod::new(FlowModCommand::Delete)
    }));
    client.barrier();
    assert_eq!(client.flows(), []);
    let packet_out = |buffer_id, port, data| {
        let (in_port, actions) = (ofp::PortNo(port), Vec::new());
        Body::PacketOut(ofp::PacketOut { buffer_id, in_port, actions, data })
    };
    assert_eq!(client.error(packet_out(1, 1, frame(1, 2))), ErrorCode::BUFFER_UNKNOWN);
    assert_eq!(client.error(packet_out(ofp::NO_BUFFER, 1, vec![0; 13])), ErrorCode::BAD_PACKET);
    assert_eq!(client.error(packet_out(ofp::NO_BUFFER, 0, frame(1, 2))), ErrorCode::BAD_PORT);
    assert_eq!(client.error(Body::BarrierReply), ErrorCode::BAD_TYPE);
    let meter = Body::MultipartRequest(MultipartRequest::Meter(3));
    assert_eq!(client.error(meter), ErrorCode::UNKNOWN_METER);
}

#[test]
fn long_replies_come_in_parts() {
    let switch = start();
    let mut client = Client::connect(&switch.socket());
    for address in 0..3000u32 {
        let fields = [OxmField::EthType(0x0800), OxmField::Ipv4Dst(Masked::exact(address.into()))];
        client.send(Body::FlowMod(add(7, &fields, &[2])));
    }
    client.barrier();
    let flows = client.flows();
    assert_eq!(flows.len(), 3000);
    let delete = FlowMod { priority: 7, ..FlowMod::new(FlowModCommand::Delete) };
    client.send(Body::FlowMod(delete));
    client.barrier();
    assert_eq!(client.flows(), []);
    // The switch keeps its tables as they are: asked to take its own features back, or others, or parts with MORE.
    let MultipartReply::TableFeatures(own) = client.multipart(MultipartRequest::TableFeatures(Vec::new()))
    else {
        panic!("no table features")
    };
    let mut fewer = own[..1].to_vec();
    fewer[0].max_entries /= 2;
    for wanted in [own[..2].to_vec(), fewer] {
        let request = Body::MultipartRequest(MultipartRequest::TableFeatures(wanted));
        assert_eq!(client.error(request), ErrorCode::TABLE_FEATURES_EPERM);
    }
    let features = MultipartRequest::TableFeatures(Vec::new());
    let xid = client.send(Body::MultipartRequestMore(features.clone()));
    client.barrier();
    client.raw(&ofp::Message { xid, body: Body::MultipartRequest(features) }.encode().expect("legal"));
    assert!(
        matches!(client.reply(xid), Body::Error(error) if error.error == ErrorCode::TABLE_FEATURES_EPERM)
    );
}

#[test]
fn one_master_at_a_time_and_slaves_only_look() {
    let switch = start();
    let (mut first, mut second) = (Client::connect(&switch.socket()), Client::connect(&switch.socket()));
    let role = |role, generation_id| Body::RoleRequest(RoleMessage { role, generation_id });
    let is = |role| move |body: Body| matches!(body, Body::RoleReply(reply) if reply.role == role);
    assert!(is(Role::Equal)(first.ask(role(Role::NoChange, 0))));
    assert!(is(Role::Master)(first.ask(role(Role::Master, 10))));
    // What a slave knows how to say counts as little as what it does not.
    first.send(Body::FlowMod(add(1, &[], &[2])));
    let everything = FlowMod { table_id: ofp::TABLE_ALL, ..FlowMod::new(FlowModCommand::Delete) };
    first.send(Body::FlowMod(everything));
    first.barrier();
    assert!(is(Role::Master)(second.ask(role(Role::Master, 11))));
    assert!(is(Role::Slave)(first.ask(role(Role::NoChange, 0))));
    assert_eq!(first.error(role(Role::Master, 10)), ErrorCode::ROLE_STALE);
    assert_eq!(first.error(Body::FlowMod(add(1, &[], &[2]))), ErrorCode::IS_SLAVE);
    assert_eq!(first.flows(), []);
    second.send(Body::FlowMod(add(0, &[], &[ofp::PortNo::CONTROLLER.0])));
    second.barrier();
    switch.frame(1, &frame(1, 2));
    let is_packet_in = |body: &Body| matches!(body, Body::PacketIn(_)).then_some(());
    second.notice(is_packet_in);
    first.barrier();
    assert!(
        !first.notices.iter().any(|message| matches!(message.body, Body::PacketIn(_))),
        "a slave got a packet-in"
    );
    // A slave that asks for packet-ins gets them.
    let Body::GetAsyncReply(filter) = first.ask(Body::GetAsyncRequest) else { panic!("no filter") };
    first.send(Body::SetAsync(AsyncConfig { packet_in_mask: [0, 0b111], ..filter }));
    first.barrier();
    switch.frame(1, &frame(1, 2));
    first.notice(is_packet_in);
    let sessions = switch.agent.as_ref().expect("running").sessions();
    let mut roles: Vec<_> = sessions.iter().map(|session| session.role).collect();
    roles.sort_unstable();
    assert_eq!(roles, ["master", "slave"]);
}

#[test]
fn packet_outs_are_sent_before_the_barrier_is_answered() {
    let switch = start();
    let mut client = Client::connect(&switch.socket());
    for round in 1..=200u64 {
        let actions = vec![Action::Output { port: ofp::PortNo(3), max_len: 0 }];
        let (buffer_id, in_port) = (ofp::NO_BUFFER, ofp::PortNo::CONTROLLER);
        client.send(Body::PacketOut(ofp::PacketOut { buffer_id, in_port, actions, data: frame(1, 2) }));
        client.barrier();
        let sent = switch.counters.lock().expect("not poisoned")[&PortNo(3)].tx_packets;
        assert_eq!(sent, round);
    }
}

#[test]
fn controllers_are_dialled_again_and_flows_outlive_them() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let config = AgentConfig { controllers: vec![OpenFlowAddress::Tcp(address)], ..AgentConfig::default() };
    let switch =
        Switch::start(BridgeConfig { fail_mode: FailMode::Standalone, ..BridgeConfig::default() }, config);
    let accept = || {
        let (stream, _) = listener.accept().expect("the switch dials");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Client::over(stream)
    };
    // Standalone, nobody there yet: a learning switch.
    assert_eq!(switch.frame(1, &frame(1, 2)).frames.len(), 3);
    let mut client = accept();
    let Body::FeaturesReply(features) = client.ask(Body::FeaturesRequest) else { panic!("no features") };
    assert_eq!((features.datapath_id, features.n_tables), (1, 64));
    client.barrier();
    // With a controller, packets that match nothing are dropped.
    assert_eq!(switch.frame(1, &frame(1, 2)).drops, [DropReason::TableMiss]);
    drop(client);
    wait_for("standalone again", || switch.frame(1, &frame(1, 2)).frames.len() == 3);
    let mut client = accept();
    client.send(Body::FlowMod(add(1, &[in_port(1)], &[4])));
    client.barrier();
    drop(client);
    wait_for("the session is gone", || switch.agent.as_ref().expect("running").sessions().is_empty());
    // There are flows: they go on deciding.
    assert_eq!(switch.frame(1, &frame(1, 2)).frames, [(PortNo(4), frame(1, 2))]);
    assert_eq!(switch.frame(2, &frame(2, 1)).drops, [DropReason::TableMiss]);
    let mut client = accept();
    assert_eq!(client.flows().len(), 1);
}

#[test]
fn the_unix_listener_is_its_owners_and_goes_with_the_agent() {
    use std::os::unix::fs::PermissionsExt;
    let mut switch = start();
    let path = switch.socket();
    let mode = std::fs::metadata(&path).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    switch.agent = None;
    assert!(!path.exists());
}

#[test]
fn port_mods_stop_what_they_say_and_nothing_else() {
    let switch = start();
    let mut client = Client::connect(&switch.socket());
    client.send(Body::FlowMod(add(1, &[], &[ofp::PortNo::FLOOD.0])));
    client.send(Body::FlowMod(add(2, &[in_port(3)], &[2, ofp::PortNo::CONTROLLER.0])));
    client.barrier();
    let config = |client: &mut Client<_>, port: u32, config| {
        let (port_no, hw_addr) = (ofp::PortNo(port), ofp::MacAddr([2, 0, 0, 0, 1, port as u8]));
        let mask = ofp::PortConfig::NAMED;
        let advertise = ofp::PortFeatures(0);
        client.send(Body::PortMod(ofp::PortMod { port_no, hw_addr, config, mask, advertise }));
        client.barrier();
    };
    let ports = |sent: &Vec<(PortNo, Vec<u8>)>| sent.iter().map(|(port, _)| port.0).collect::<Vec<_>>();
    assert_eq!(ports(&switch.frame(1, &frame(1, 2)).frames), [2, 3, 4]);
    config(&mut client, 2, ofp::PortConfig::NO_FWD);
    assert_eq!(ports(&switch.frame(1, &frame(1, 2)).frames), [3, 4]);
    assert_eq!(switch.frame(3, &frame(3, 2)).drops, [DropReason::PortBlocked]);
    // It still receives.
    assert_eq!(ports(&switch.frame(2, &frame(2, 1)).frames), [1, 3, 4]);
    config(&mut client, 2, ofp::PortConfig::NO_RECV);
    switch.bridge.drain_counters().wait();
    let lookups = switch.bridge.tables()[0].1.lookups;
    assert_eq!(switch.frame(2, &frame(2, 1)).drops, [DropReason::PortBlocked]);
    assert_eq!(ports(&switch.frame(1, &frame(1, 2)).frames), [2, 3, 4]);
    config(&mut client, 2, ofp::PortConfig::PORT_DOWN);
    assert_eq!(switch.frame(2, &frame(2, 1)).drops, [DropReason::PortBlocked]);
    assert_eq!(ports(&switch.frame(1, &frame(1, 2)).frames), [3, 4]);
    config(&mut client, 2, ofp::PortConfig(0));
    config(&mut client, 3, ofp::PortConfig::NO_PACKET_IN);
    let sent = switch.frame(3, &frame(3, 2));
    assert_eq!((ports(&sent.frames), sent.packet_ins), (vec![2], 0));
    config(&mut client, 3, ofp::PortConfig(0));
    assert_eq!(switch.frame(3, &frame(3, 2)).packet_ins, 1);
    // What was not received was not looked up.
    switch.bridge.drain_counters().wait();
    assert_eq!(switch.bridge.tables()[0].1.lookups - lookups, 4);
    let wrong = Body::PortMod(ofp::PortMod {
        port_no: ofp::PortNo(2),
        hw_addr: ofp::MacAddr([9; 6]),
        config: ofp::PortConfig(0),
        mask: ofp::PortConfig(0),
        advertise: ofp::PortFeatures(0),
    });
    assert_eq!(client.error(wrong), ErrorCode::PORT_MOD_BAD_HW_ADDR);
}
