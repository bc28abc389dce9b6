//! The controller against switches of the test's own, which speak real OpenFlow over loopback and do what real ones do
//! and what no switch should.

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::{Line, PATIENCE, Stage, Switch, flow, port, set};
use ofp::{
    Body, ErrorCode, FlowMod, FlowModCommand, FlowStats, Hello, MacAddr, Match, Message, MeterModCommand,
    MultipartReply, MultipartRequest, OxmField, PortNo, PortStatus, PortStatusReason, SwitchFeatures,
};
use sdn_controller::auth::Identity;
use sdn_controller::controller::{ChangeError, Progress};
use sdn_controller::datapath::Refused;
use sdn_controller::edit::Edit;
use sdn_controller::entry::{Cookie, FlowKey};
use sdn_controller::flow_json::FlowSpec;
use sdn_controller::model::{Dpid, Item, Kind, Subject};
use serde_json::json;
use telemetry::check::Errors;
use tokio::io::AsyncWriteExt as _;

const HOST: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x99]);

#[tokio::test]
async fn only_the_difference_is_sent_again() {
    let stage = Stage::new().await;
    let progress = stage.network(10, 1, &[1, 2]).await;
    assert!(matches!(progress[&Dpid(1)], Progress::Pending(_)));
    let mut switch = Switch::connect(&stage, 1, BTreeMap::new()).await;
    switch.work(stage.settled(1)).await;
    let flows = switch.flows.clone();
    assert_eq!(switch.flow_mods.len(), flows.len());
    assert!(
        switch.flow_mods.windows(2).all(|pair| pair[0].table_id >= pair[1].table_id),
        "later tables first"
    );
    drop(switch);
    stage.until("the session ends", |c| c.switch(Dpid(1)).is_none()).await;

    // As it was left, but for one entry that is missing, one that is strange, and one that is somebody else's.
    let mut kept = flows.clone();
    let (missing, _) = kept.pop_first().unwrap();
    let foreign = FlowMod { cookie: 7, table_id: 9, ..FlowMod::new(FlowModCommand::Add) };
    let strange = FlowMod { cookie: Cookie::Static.number(), table_id: 8, ..foreign.clone() };
    for flow in [&foreign, &strange] {
        kept.insert(FlowKey::new(flow.table_id, 0, &Match::any()), flow.clone());
    }
    let mut switch = Switch::connect(&stage, 1, kept).await;
    switch.work(stage.settled(1)).await;
    let sent: Vec<_> = switch.flow_mods.iter().map(|f| (f.command, f.table_id)).collect();
    assert_eq!(sent, [(FlowModCommand::Add, missing.table), (FlowModCommand::DeleteStrict, 8)]);
    let mut expected = flows;
    expected.insert(FlowKey::new(9, 0, &Match::any()), foreign);
    assert_eq!(switch.flows, expected);
}

#[tokio::test]
async fn a_refused_change_leaves_everything_as_it_was() {
    let stage = Stage::new().await;
    let mut switch = Switch::connect(&stage, 5, BTreeMap::new()).await;
    switch.refused_group = Some(77);
    let good = flow(json!({"priority": 5, "match": {"in_port": 1}, "actions": [{"output": 2}]}));
    let bad = flow(json!({"priority": 5, "match": {"in_port": 1}, "actions": [{"group": 77}]}));
    let controller = stage.controller.clone();
    let set = async |id: &str, flow: &FlowSpec| {
        let item = Item::Flow(Arc::new(flow.clone()));
        set(&controller, Subject::flow(Dpid(5), id), Some(item)).await
    };
    let applied = BTreeMap::from([(Dpid(5), Progress::Applied)]);
    assert_eq!(switch.work(set("f", &good)).await.unwrap(), applied);
    for id in ["f", "g"] {
        let flow = if id == "g" { FlowSpec { priority: 6, ..bad.clone() } } else { bad.clone() };
        let Err(ChangeError::Refused(refusals)) = switch.work(set(id, &flow)).await else {
            panic!("refused")
        };
        let refusal = &refusals[&Dpid(5)][0];
        assert!(matches!(refusal.what, Refused::Flow(_)));
        assert_eq!(refusal.error, Some(ErrorCode::ACTION_BAD_OUT_GROUP));
    }
    let desired = stage.controller.desired();
    assert_eq!(desired.flows.len(), 1);
    assert_eq!(*desired.flows[&(Dpid(5), "f".into())], good);
    assert_eq!(switch.flows.len(), 1);
    assert_eq!(switch.work(set("f", &good)).await.unwrap(), applied);
}

#[tokio::test]
async fn addresses_are_learned_moved_and_forgotten() {
    let stage = Stage::new().await;
    let mut switch = Switch::connect(&stage, 1, BTreeMap::new()).await;
    switch.work(stage.network(10, 1, &[1, 2])).await;
    switch.packet_in(10, 1, HOST).await;
    switch.until("learned", |s| s.outputs_to(HOST) == Some(PortNo(1))).await;
    // Not a port of the network, a group address, an unknown cookie: nobody learns from those.
    switch.packet_in(10, 3, MacAddr([2, 0, 0, 0, 0, 3])).await;
    switch.packet_in(10, 1, MacAddr([3, 0, 0, 0, 0, 3])).await;
    switch.packet_in(20, 1, MacAddr([2, 0, 0, 0, 0, 4])).await;
    switch.packet_in(10, 2, HOST).await;
    switch.until("moved", |s| s.outputs_to(HOST) == Some(PortNo(2))).await;
    let learned = |s: &Switch| s.flows.values().filter(|f| f.cookie == Cookie::Learned(10).number()).count();
    switch.until("its rules are there", |s| learned(s) == 2).await;

    // Over a reconnection what was learned stays learned.
    let flows = switch.flows.clone();
    drop(switch);
    stage.until("the session ends", |c| c.switch(Dpid(1)).is_none()).await;
    let mut switch = Switch::connect(&stage, 1, flows).await;
    switch.work(stage.settled(1)).await;
    assert_eq!(switch.flow_mods, []);

    // The port goes: so does what was learned there.
    let status = PortStatus { reason: PortStatusReason::Delete, port: port(2, "p2") };
    switch.line.send(0, Body::PortStatus(status)).await;
    switch.until("forgotten", |s| learned(s) == 0).await;
}

#[tokio::test]
async fn two_connections_that_claim_to_be_one_switch() {
    let stage = Stage::new().await;
    let mut first = Switch::connect(&stage, 1, BTreeMap::new()).await;
    first.work(stage.settled(1)).await;
    // While the first answers, a second is turned away.
    let second = async {
        let mut line = Line::connect(stage.address).await;
        line.send(1, Body::Hello(Hello::default())).await;
        let mut seen = Vec::new();
        while let Some(message) = line.next().await {
            let features = SwitchFeatures {
                datapath_id: 1,
                n_buffers: 0,
                n_tables: 1,
                auxiliary_id: 0,
                capabilities: ofp::Capabilities(0),
            };
            let reply = match &message.body {
                Body::FeaturesRequest => Some(Body::FeaturesReply(features)),
                Body::MultipartRequest(MultipartRequest::Desc) => {
                    Some(Body::MultipartReply(MultipartReply::Desc(Box::default())))
                }
                Body::MultipartRequest(MultipartRequest::PortDesc) => {
                    Some(Body::MultipartReply(MultipartReply::PortDesc(vec![])))
                }
                _ => None,
            };
            if let Some(body) = reply {
                line.send(message.xid, body).await;
            }
            seen.push(message.body);
        }
        seen
    };
    let seen = first.work(second).await;
    assert!(!seen.iter().any(|body| matches!(body, Body::FlowMod(_))), "{seen:?}");
    assert!(stage.controller.switch(Dpid(1)).is_some());
    // A first that has gone silent makes room.
    let mut second =
        tokio::time::timeout(PATIENCE, Switch::connect(&stage, 1, BTreeMap::new())).await.unwrap();
    second.work(stage.network(10, 1, &[1, 2])).await;
    assert_eq!(second.dpid, 1);
    assert!(!second.flows.is_empty() && first.flows.is_empty());
}

/// Whether the controller ends this connection by itself, and its last words.
async fn ended(line: &mut Line) -> Vec<Body> {
    let mut words = Vec::new();
    while let Some(message) = line.next().await {
        words.push(message.body);
    }
    words
}

#[tokio::test]
async fn hostile_switches_harm_nobody() {
    let stage = Stage::new().await;
    let mut good = Switch::connect(&stage, 1, BTreeMap::new()).await;
    good.work(stage.settled(1)).await;

    // Another version: told so, and closed.
    let mut line = Line::connect(stage.address).await;
    line.send(9, Body::Hello(Hello { version: 1, bitmap: None })).await;
    let words = good.work(ended(&mut line)).await;
    let incompatible =
        |body: &Body| matches!(body, Body::Error(e) if e.error == ErrorCode::HELLO_INCOMPATIBLE);
    assert!(words.iter().any(incompatible), "{words:?}");

    // A header with an impossible length, and something else than OpenFlow.
    for bytes in [&b"\x04\x00\x00\x07\0\0\0\0"[..], b"GET / HTTP/1.1\r\n\r\n"] {
        let mut line = Line::connect(stage.address).await;
        line.stream.write_all(bytes).await.unwrap();
        line.stream.shutdown().await.unwrap();
        good.work(ended(&mut line)).await;
    }

    // An answer without end.
    let mut line = Line::connect(stage.address).await;
    let request = line.introduce(2, &[]).await;
    let part = MultipartReply::Flow(some_flows(&stage).await);
    let bytes = Message { xid: request.xid, body: Body::MultipartReplyMore(part) }.encode().unwrap();
    let endless = async { while line.stream.write_all(&bytes).await.is_ok() {} };
    good.work(async { tokio::time::timeout(PATIENCE, endless).await.expect("an endless answer is cut off") })
        .await;

    // Nonsense in a session: each is answered by an error, and after too many the session ends.
    let mut line = Line::connect(stage.address).await;
    line.introduce(3, &[]).await;
    let mut nonsense = Message { xid: 6, body: Body::BarrierReply }.encode().unwrap();
    nonsense[1] = 77;
    line.stream.write_all(&nonsense.repeat(10)).await.unwrap();
    for _ in 0..10 {
        let answer = good.work(line.next_error()).await;
        let bad_type = matches!(&answer.body, Body::Error(e) if e.error == ErrorCode::BAD_TYPE);
        assert!(bad_type && answer.xid == 6, "{answer:?}");
    }
    line.stream.write_all(&nonsense.repeat(1000)).await.unwrap();
    good.work(ended(&mut line)).await;

    // All the while the good switch is served.
    let progress = good.work(stage.network(10, 1, &[1, 2])).await;
    assert_eq!(progress[&Dpid(1)], Progress::Applied);
}

/// As many flow entries as fit into one message.
async fn some_flows(stage: &Stage) -> Vec<FlowStats> {
    let flow = |n: u32| {
        let matching = Match::any().with(OxmField::InPort(PortNo(n)));
        let flow = FlowMod { cookie: Cookie::OURS, matching, ..FlowMod::new(FlowModCommand::Add) };
        (FlowKey::new(0, 0, &flow.matching), flow)
    };
    let line = Line::connect(stage.address).await;
    let flows = (1..900).map(flow).collect();
    Switch { flows, ..Switch::new(line, 0) }.stats()
}

#[tokio::test]
async fn half_a_message_and_then_silence() {
    let stage = Stage::new().await;
    let mut good = Switch::connect(&stage, 1, BTreeMap::new()).await;
    good.work(stage.settled(1)).await;
    let mut line = Line::connect(stage.address).await;
    line.stream.write_all(b"\x04\x00\x00\x10").await.unwrap();
    let begin = std::time::Instant::now();
    good.work(ended(&mut line)).await;
    assert!(begin.elapsed() >= Duration::from_secs(9), "a slow switch has ten seconds to introduce itself");

    // In session: asked whether it is there, then given up; the change it never confirmed is pending.
    let mut line = Line::connect(stage.address).await;
    line.introduce(2, &[port(1, "p1")]).await;
    let seen = good.work(ended(&mut line)).await;
    assert!(seen.iter().any(|body| matches!(body, Body::EchoRequest(_))), "{seen:?}");
    stage.until("it is off the list", |c| c.switch(Dpid(2)).is_none()).await;
}

#[tokio::test]
async fn a_switch_that_confirms_nothing_delays_nobody_else() {
    let stage = Stage::new().await;
    let mut good = Switch::connect(&stage, 1, BTreeMap::new()).await;
    good.work(stage.settled(1)).await;
    let mut stuck = Line::connect(stage.address).await;
    let request = stuck.introduce(2, &[port(1, "p1")]).await;
    stuck.send(request.xid, Body::MultipartReply(MultipartReply::Flow(vec![]))).await;
    stuck.answer_next_barrier().await;
    stage.settled(2).await;
    let ends = RefCell::new(Vec::new());
    let end = async |vlan, dpid, ports: &[u32]| {
        let progress = stage.network(vlan, dpid, ports).await;
        ends.borrow_mut().push(dpid);
        progress
    };
    let both = async { tokio::join!(end(20, 2, &[1]), end(10, 1, &[1, 2])) };
    let (stuck_progress, good_progress) = good.work(both).await;
    assert!(matches!(stuck_progress[&Dpid(2)], Progress::Pending(_)), "{stuck_progress:?}");
    assert_eq!(good_progress[&Dpid(1)], Progress::Applied);
    assert_eq!(*ends.borrow(), [1, 2], "the good switch waited for the stuck one");
}

#[tokio::test]
async fn bundles_and_meters_where_the_switch_has_them() {
    let stage = Stage::new().await;
    let mut switch = Switch::able(&stage, 1).await;
    switch.work(stage.settled(1)).await;
    switch.work(stage.network(10, 1, &[2])).await;
    assert_eq!(switch.commits, 1, "all of it at once");
    let attach = |average: u32| {
        let rates = json!({"outbound": {"average": average}});
        Some(json!({"network": "net10", "dpid": 1, "port": 1, "rates": rates}))
    };
    for average in [100, 200, 200] {
        let progress = switch.work(stage.set(Kind::Attachment, "a", attach(average))).await.unwrap();
        assert_eq!(progress, BTreeMap::from([(Dpid(1), Progress::Applied)]));
    }
    let commands: Vec<_> = switch.meter_mods.iter().map(|meter| meter.command).collect();
    assert_eq!(commands, [MeterModCommand::Add, MeterModCommand::Modify], "the same again sends nothing");
    // What the switch refuses in a bundle is refused by itself, and nothing of it stays.
    switch.refused_group = Some(7);
    let before = switch.flows.clone();
    let two = json!({"flows": {
        "1/good": {"table": 9, "actions": [{"output": 1}]}, "1/bad": {"table": 9, "priority": 1, "actions": [{"group": 7}]},
    }});
    let things = two["flows"].as_object().unwrap().iter().map(|(name, value)| {
        let item = Item::from_json(Kind::Flow, value.clone(), &mut Errors::new());
        (Subject::new(Kind::Flow, name), item)
    });
    let edit = Edit::new(things.collect());
    let who = Identity::controller();
    let Err(ChangeError::Refused(refusals)) = switch.work(stage.controller.change(&who, &edit)).await else {
        panic!("refused")
    };
    assert_eq!(refusals[&Dpid(1)].len(), 1, "only the bad one is to blame");
    assert_eq!(switch.flows, before);
    switch.work(stage.set(Kind::Attachment, "a", None)).await.unwrap();
    assert!(switch.meters.as_ref().unwrap().is_empty());
    assert!(!switch.flows.values().any(|flow| format!("{:?}", flow.instructions).contains("Meter")));
}

#[tokio::test]
async fn what_a_change_would_do_is_told_and_not_done() {
    let stage = Stage::new().await;
    let mut switch = Switch::able(&stage, 1).await;
    switch.work(stage.network(10, 1, &[1, 2])).await;
    let before = switch.flow_mods.len();
    let ports = |ports: &[u32]| ports.iter().map(|port| json!({"dpid": 1, "port": port})).collect::<Vec<_>>();
    let wider = json!({"vlan": 10, "ports": ports(&[1, 2, 3])});
    let item = Item::from_json(Kind::Network, wider, &mut Errors::new());
    let edit = Edit::one(Subject::new(Kind::Network, "net10"), item);
    let preview = switch.work(stage.controller.preview(&edit)).await.unwrap();
    assert_eq!(
        preview.words,
        ["change network net10: ports with {\"dpid\":1,\"mode\":\"access\",\"port\":3}"]
    );
    let changes = &preview.switches[&Dpid(1)].changes;
    assert_eq!((changes.add.len(), changes.delete.len()), (4, 0), "classification three times, and flooding");
    assert_eq!(switch.flow_mods.len(), before);
    // What does not change forwarding sends nothing.
    let same = json!({"vlan": 10, "mtu": 1400, "ports": ports(&[1, 2])});
    switch.work(stage.set(Kind::Network, "net10", Some(same))).await.unwrap();
    assert_eq!(switch.flow_mods.len(), before);
}
