//! Bundles (ONF EXT-230): all or nothing, in order, live when the commit is answered.

use ofp::{
    Body, BundleAdd, BundleControl, BundleControlType, BundleFlags, ErrorCode, FlowMod, FlowModCommand,
    FlowModFlags, Message, OxmField, PortMod, PortStatusReason, Role, RoleMessage,
};
use vswitch::bridge::{BridgeConfig, FailMode};
use vswitch::model::PortNo;
use vswitch::openflow::AgentConfig;

use crate::client::{Client, add};
use crate::data_path::{Switch, frame};

type Controller = Client<std::os::unix::net::UnixStream>;

const BOTH: BundleFlags = BundleFlags(3);

fn start(flow_limit: usize) -> Switch {
    let config = BridgeConfig { fail_mode: FailMode::Secure, flow_limit, ..BridgeConfig::default() };
    Switch::start(config, AgentConfig::default())
}

fn control(kind: BundleControlType, bundle_id: u32, flags: BundleFlags) -> Body {
    Body::BundleControl(BundleControl { bundle_id, kind, flags, properties: Vec::new() })
}

fn is(kind: BundleControlType, body: &Body) -> bool {
    matches!(body, Body::BundleControl(control) if control.kind == kind)
}

fn open(client: &mut Controller, bundle_id: u32) {
    let reply = client.ask(control(BundleControlType::OpenRequest, bundle_id, BOTH));
    assert!(is(BundleControlType::OpenReply, &reply), "{reply:?}");
}

fn commit(client: &mut Controller, bundle_id: u32) -> Body {
    client.ask(control(BundleControlType::CommitRequest, bundle_id, BOTH))
}

/// Adds a message under a number of the caller's choice.
fn put(client: &mut Controller, bundle_id: u32, xid: u32, body: Body) {
    let message = Box::new(Message { xid, body });
    let body = Body::BundleAdd(BundleAdd { bundle_id, flags: BOTH, message, properties: Vec::new() });
    client.raw(&Message { xid, body }.encode().expect("legal"));
}

fn in_port(port: u32) -> OxmField {
    OxmField::InPort(ofp::PortNo(port))
}

fn port_mod(port: u32, config: ofp::PortConfig) -> PortMod {
    PortMod {
        port_no: ofp::PortNo(port),
        hw_addr: ofp::MacAddr([2, 0, 0, 0, 1, port as u8]),
        config,
        mask: ofp::PortConfig::NAMED,
        advertise: ofp::PortFeatures(0),
    }
}

#[test]
fn a_bundle_is_carried_out_whole_in_order_and_live() {
    let switch = start(100);
    let mut client = Client::connect(&switch.socket());
    let before = switch.bridge.epoch();
    open(&mut client, 7);
    put(&mut client, 7, 1, Body::FlowMod(add(1, &[in_port(1)], &[2])));
    put(&mut client, 7, 2, Body::FlowMod(FlowMod { table_id: 255, ..FlowMod::new(FlowModCommand::Delete) }));
    put(&mut client, 7, 3, Body::FlowMod(add(1, &[in_port(1)], &[3, 4])));
    put(&mut client, 7, 4, Body::PortMod(port_mod(4, ofp::PortConfig::NO_FWD)));
    client.barrier();
    assert_eq!(client.flows(), []);
    assert_eq!(switch.bridge.epoch(), before, "nothing is published before the commit");
    let reply = client.ask(control(BundleControlType::CloseRequest, 7, BOTH));
    assert!(is(BundleControlType::CloseReply, &reply), "{reply:?}");
    let reply = commit(&mut client, 7);
    assert!(is(BundleControlType::CommitReply, &reply), "{reply:?}");
    assert_eq!(switch.bridge.epoch(), before + 1, "one publication for all");
    assert_eq!(switch.frame(1, &frame(1, 2)).frames, [(PortNo(3), frame(1, 2))]);
    assert_eq!(client.flows().len(), 1);
    let changed = client.notice(|body| match body {
        Body::PortStatus(status) => Some((status.reason, status.port.port_no.0, status.port.config)),
        _ => None,
    });
    assert_eq!(changed, (PortStatusReason::Modify, 4, ofp::PortConfig::NO_FWD));
}

/// What of flows must be the same again.
fn state(client: &mut Controller) -> Vec<(String, u64, u64)> {
    let flow = |flow: ofp::FlowStats| {
        (format!("{:?} {:?}", flow.matching, flow.instructions), flow.packet_count, flow.byte_count)
    };
    let mut flows: Vec<_> = client.flows().into_iter().map(flow).collect();
    flows.sort();
    flows
}

#[test]
fn a_bundle_that_fails_leaves_no_trace() {
    let switch = start(3);
    let mut client = Client::connect(&switch.socket());
    for port in 1..=2 {
        client.send(Body::FlowMod(add(1, &[in_port(port)], &[3])));
    }
    client.barrier();
    for _ in 0..5 {
        switch.frame(1, &frame(1, 2));
    }
    let before = state(&mut client);
    open(&mut client, 1);
    // Replaced with its counters at zero, modified, deleted, added; then one too many.
    let reset = FlowMod { flags: FlowModFlags::RESET_COUNTS, ..add(1, &[in_port(1)], &[4]) };
    put(&mut client, 1, 500, Body::FlowMod(reset));
    let modify = FlowMod { command: FlowModCommand::Modify, ..add(1, &[in_port(2)], &[4]) };
    put(&mut client, 1, 501, Body::FlowMod(modify));
    let delete = FlowMod { command: FlowModCommand::Delete, ..add(1, &[in_port(2)], &[]) };
    put(&mut client, 1, 502, Body::FlowMod(delete));
    put(&mut client, 1, 503, Body::PortMod(port_mod(2, ofp::PortConfig::PORT_DOWN)));
    for port in 3..=5 {
        put(&mut client, 1, 501 + port, Body::FlowMod(add(2, &[in_port(port)], &[1])));
    }
    let xid = client.send(control(BundleControlType::CommitRequest, 1, BOTH));
    // First the message that failed, then the commit.
    let Body::Error(error) = client.reply(506) else { panic!("no error") };
    assert_eq!(error.error, ErrorCode::FLOW_MOD_TABLE_FULL);
    assert_eq!(ofp::Header::peek(&error.data).map(|header| header.xid), Some(506));
    let Body::Error(error) = client.reply(xid) else { panic!("no error") };
    assert_eq!(error.error, ErrorCode::BUNDLE_MESSAGE_FAILED);
    assert_eq!(state(&mut client), before);
    assert_eq!(switch.frame(2, &frame(2, 1)).frames, [(PortNo(3), frame(2, 1))]);
    // The bundle is gone.
    assert_eq!(client.error(control(BundleControlType::DiscardRequest, 1, BOTH)), ErrorCode::BUNDLE_BAD_ID);
}

#[test]
fn bundles_are_refused_by_the_book() {
    use BundleControlType::{
        CloseReply, CloseRequest, CommitReply, CommitRequest, DiscardRequest, OpenRequest,
    };
    let switch = start(100);
    let mut client = Client::connect(&switch.socket());
    let flow = || Body::FlowMod(add(1, &[in_port(1)], &[2]));
    open(&mut client, 1);
    let mut refused = |kind, id, flags| client.error(control(kind, id, flags));
    assert_eq!(refused(OpenRequest, 1, BOTH), ErrorCode::BUNDLE_EXISTS);
    assert_eq!(refused(OpenRequest, 2, BundleFlags(4)), ErrorCode::BUNDLE_BAD_FLAGS);
    assert_eq!(refused(CommitReply, 1, BOTH), ErrorCode::BUNDLE_BAD_TYPE);
    for kind in [CloseRequest, CommitRequest, DiscardRequest] {
        assert_eq!(refused(kind, 9, BOTH), ErrorCode::BUNDLE_BAD_ID, "{kind:?}");
    }
    assert_eq!(refused(CloseRequest, 1, BundleFlags(0)), ErrorCode::BUNDLE_BAD_FLAGS);
    let mut code = |xid, bundle_id, body| {
        put(&mut client, bundle_id, xid, body);
        match client.reply(xid) {
            Body::Error(error) => error.error,
            other => panic!("not refused: {other:?}"),
        }
    };
    assert_eq!(code(900, 1, Body::EchoRequest(Vec::new())), ErrorCode::BUNDLE_MESSAGE_UNSUPPORTED);
    assert_eq!(code(901, 2, Body::FlowMod(add(1, &[], &[0xffff_fff9]))), ErrorCode::ACTION_BAD_OUT_PORT);
    // What was refused cannot be left out: not all messages could be carried out.
    put(&mut client, 1, 902, flow());
    let Body::Error(error) = commit(&mut client, 1) else { panic!("committed") };
    assert_eq!(error.error, ErrorCode::BUNDLE_MESSAGE_FAILED);
    let message = Box::new(Message { xid: 5, body: flow() });
    let wrong_xid = BundleAdd { bundle_id: 3, flags: BOTH, message, properties: Vec::new() };
    assert_eq!(client.error(Body::BundleAdd(wrong_xid)), ErrorCode::BUNDLE_MESSAGE_BAD_XID);
    // Bundle 4 is opened by its first message.
    put(&mut client, 4, 903, flow());
    let reply = client.ask(control(CloseRequest, 4, BOTH));
    assert!(is(CloseReply, &reply), "{reply:?}");
    assert_eq!(client.error(control(CloseRequest, 4, BOTH)), ErrorCode::BUNDLE_CLOSED);
    put(&mut client, 4, 904, flow());
    assert!(matches!(client.reply(904), Body::Error(error) if error.error == ErrorCode::BUNDLE_CLOSED));
    // Bundles 2, 3 and 4 are still there.
    for bundle_id in 100..113 {
        open(&mut client, bundle_id);
    }
    assert_eq!(client.error(control(OpenRequest, 200, BOTH)), ErrorCode::OUT_OF_BUNDLES);
    assert_eq!(client.flows(), []);
    // Slaves only look.
    client.ask(Body::RoleRequest(RoleMessage { role: Role::Slave, generation_id: 1 }));
    assert_eq!(client.error(control(OpenRequest, 300, BOTH)), ErrorCode::IS_SLAVE);
}
