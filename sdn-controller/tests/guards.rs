//! What the controller watches for: links between switches, loops, addresses that move all the time, and switches that
//! send whatever comes to their mind.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{PATIENCE, Stage, Switch, port};
use ofp::{
    Body, BundleControl, BundleControlType, ErrorCode, ErrorMessage, MacAddr, Match, Message, MeterFeatures,
    MultipartReply, MultipartRequest, OxmField, PacketIn, PacketInReason, PortNo, PortStatus,
    PortStatusReason, Role, RoleMessage,
};
use proptest::prelude::*;
use sdn_controller::controller::Options;
use sdn_controller::datapath::{Datapath, Reason, Setup};
use sdn_controller::discovery::Probes;
use sdn_controller::entry::Cookie;
use sdn_controller::layout::Layout;
use sdn_controller::metrics::Metrics;
use sdn_controller::model::{Desired, Dpid, Item, Kind, Subject};
use serde_json::json;
use telemetry::Registry;
use telemetry::check::Errors;

const HOST: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x99]);

fn watching(hold: Duration) -> Options {
    let probe_interval = Some(Duration::from_millis(100));
    Options { probe_interval, loop_hold: Some(hold), ..Options::default() }
}

fn probe_in(in_port: u32, data: Vec<u8>) -> Body {
    Body::PacketIn(PacketIn {
        buffer_id: ofp::NO_BUFFER,
        total_len: data.len() as u16,
        reason: PacketInReason::Action,
        table_id: 0,
        cookie: Cookie::Discovery.number(),
        matching: Match::any().with(OxmField::InPort(PortNo(in_port))),
        data,
    })
}

impl Switch {
    /// Sends the next probe out of `port` in by a port of this switch or of `other`.
    async fn carry(&mut self, port: u32, other: Option<&mut Switch>, to: u32) {
        let leaves = |out: &&ofp::PacketOut| {
            let action = ofp::Action::Output { port: PortNo(port), max_len: 0 };
            out.actions == [action]
        };
        self.packet_outs.clear();
        self.until("a probe", |s| s.packet_outs.iter().any(|out| leaves(&out))).await;
        let data = self.packet_outs.iter().find(leaves).expect("it is there").data.clone();
        let line = match other {
            Some(other) => &mut other.line,
            None => &mut self.line,
        };
        line.send(0, probe_in(to, data)).await;
    }

    fn lets_nothing_in_by(&self, port: u32) -> bool {
        let matching = Match::any().with(OxmField::InPort(PortNo(port)));
        let shut = |key: &sdn_controller::entry::FlowKey| key.priority == 50_000 && *key.matching == matching;
        self.flows.iter().any(|(key, flow)| shut(key) && flow.instructions.is_empty())
    }
}

#[tokio::test]
async fn links_are_found_by_probes_of_ours_alone() {
    let stage = Stage::with(watching(PATIENCE)).await;
    let mut first = Switch::connect(&stage, 1, BTreeMap::new()).await;
    first.work(stage.settled(1)).await;
    let mut second = Switch::connect(&stage, 2, BTreeMap::new()).await;
    second.work(stage.settled(2)).await;
    first.carry(3, Some(&mut second), 2).await;
    let links = || stage.controller.links();
    let found = |count| stage.until("the links are known", move |c| c.links().len() == count);
    second.work(found(1)).await;
    let [(a, b, both)] = links()[..] else { panic!("{:?}", links()) };
    assert_eq!(((a.dpid, a.port), (b.dpid, b.port), both), ((Dpid(1), 3), (Dpid(2), 2), false));

    // Somebody else's frames are no links, nor are ours in by a port with hosts. That is a loop if they left by such a port
    // of the same network: its frames would take the same way.
    let other = Probes::new(Instant::now()).expect("randomness");
    let probe =
        sdn_controller::discovery::Probe { dpid: Dpid(1), port: PortNo(1), vlan: 10, broadcast: false };
    let forged = other.frame(Instant::now(), probe, HOST, PATIENCE);
    second.line.send(0, probe_in(1, forged)).await;
    first.work(stage.network(10, 1, &[1])).await;
    second.carry(1, Some(&mut first), 1).await;
    let members = [(1, 1), (2, 1)].map(|(dpid, port)| json!({"dpid": dpid, "port": port}));
    let red = stage.set(Kind::Network, "net10", Some(json!({"vlan": 10, "ports": members})));
    first.work(second.work(red)).await.expect("it is made");
    assert!(!first.lets_nothing_in_by(1));
    second.carry(1, Some(&mut first), 1).await;
    first.until("the port is shut", |s| s.lets_nothing_in_by(1)).await;
    assert_eq!(links().len(), 1, "{:?}", links());

    // A port that goes takes its links along.
    let status = PortStatus { reason: PortStatusReason::Delete, port: port(2, "p2") };
    second.line.send(0, Body::PortStatus(status)).await;
    second.work(found(0)).await;
}

#[tokio::test]
async fn a_loop_shuts_its_port_while_it_lasts() {
    let stage = Stage::with(watching(Duration::from_millis(500))).await;
    let mut switch = Switch::connect(&stage, 1, BTreeMap::new()).await;
    switch.work(stage.network(10, 1, &[1, 2])).await;
    switch.carry(1, None, 2).await;
    switch.until("it is shut", |s| s.lets_nothing_in_by(2)).await;
    let status = stage.controller.switch(Dpid(1)).expect("in session").status();
    assert_eq!(status.shut.get(&PortNo(2)), Some(&Reason::Loop));
    assert_eq!(stage.controller.metrics().ports_shut.get(), 1);
    // What the loop gives back keeps it shut: longer than one shutting lasts.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(1200) {
        switch.carry(1, None, 2).await;
        assert!(switch.lets_nothing_in_by(2));
    }
    switch.until("it is open again", |s| !s.lets_nothing_in_by(2)).await;
    switch.work(stage.until("nothing is shut", |c| c.metrics().ports_shut.get() == 0)).await;
}

/// A function of a service chain passes on what it gets, from one VLAN to another: that is what it is for.
#[tokio::test]
async fn a_bridge_between_two_vlans_is_no_loop() {
    let stage = Stage::with(watching(PATIENCE)).await;
    let mut switch = Switch::connect(&stage, 1, BTreeMap::new()).await;
    switch.work(stage.network(10, 1, &[1])).await;
    switch.work(stage.network(20, 1, &[2, 3])).await;
    switch.carry(1, None, 2).await;
    switch.carry(2, None, 1).await;
    // Behind them, one that is a loop: they were looked at before it.
    switch.carry(2, None, 3).await;
    switch.until("the loop is found", |s| s.lets_nothing_in_by(3)).await;
    assert!(!switch.lets_nothing_in_by(1) && !switch.lets_nothing_in_by(2));
    let status = stage.controller.switch(Dpid(1)).expect("in session").status();
    assert_eq!(status.shut.len(), 1, "{:?}", status.shut);
}

#[tokio::test]
async fn an_address_that_flaps_shuts_the_port_where_it_was_not_at_first() {
    let stage = Stage::with(watching(PATIENCE)).await;
    let mut switch = Switch::connect(&stage, 1, BTreeMap::new()).await;
    switch.work(stage.network(10, 1, &[1, 2])).await;
    // A host that moves there and back is one that moves.
    for port in [1, 2, 1] {
        switch.packet_in(10, port, HOST).await;
    }
    switch.work(stage.until("it moved", |c| c.metrics().moved.get() == 2)).await;
    assert!(!switch.lets_nothing_in_by(1) && !switch.lets_nothing_in_by(2));
    for port in [2, 1, 2, 1] {
        switch.packet_in(10, port, HOST).await;
    }
    switch.until("the second is shut", |s| s.lets_nothing_in_by(2)).await;
    assert!(!switch.lets_nothing_in_by(1), "the first is where it was");
    assert_eq!(stage.controller.metrics().flapping.get(), 1);
}

/// A switch that never takes a byte is given up, and costs the others nothing.
#[tokio::test]
async fn a_switch_that_does_not_listen() {
    let stage = Stage::with(watching(PATIENCE)).await;
    let mut good = Switch::connect(&stage, 1, BTreeMap::new()).await;
    good.work(stage.settled(1)).await;
    let mut deaf = common::Line::connect(stage.address).await;
    deaf.introduce(2, &[port(1, "p1")]).await;
    let bytes = Message { xid: 9, body: Body::EchoRequest(vec![0; 60_000]) }.encode().unwrap();
    let talk = async {
        // Each is answered, and no answer is taken.
        while tokio::io::AsyncWriteExt::write_all(&mut deaf.stream, &bytes).await.is_ok() {}
    };
    good.work(async { tokio::time::timeout(PATIENCE, talk).await.expect("it is given up") }).await;
    let progress = good.work(stage.network(10, 1, &[1, 2])).await;
    assert_eq!(progress[&Dpid(1)], sdn_controller::controller::Progress::Applied);
}

/// What a switch does with the next message it gets.
#[derive(Clone, Debug)]
enum Step {
    /// Answers it as it should.
    Answer,
    /// Refuses it with an error of these numbers.
    Refuse(u16, u16),
    /// Answers in a part, with more to come that never does.
    Part,
    /// Says nothing.
    Silence,
    /// Says this, with the number of the message or another.
    Bytes(Vec<u8>, bool),
    /// Lets so many milliseconds pass.
    Wait(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Answer),
        2 => (0..20u16, 0..16u16).prop_map(|(kind, code)| Step::Refuse(kind, code)),
        1 => Just(Step::Part),
        1 => Just(Step::Silence),
        3 => (proptest::collection::vec(any::<u8>(), 8..120), any::<bool>()).prop_map(|(b, own)| Step::Bytes(b, own)),
        1 => any::<u16>().prop_map(Step::Wait),
    ]
}

fn answer(message: &Message, more: bool) -> Option<Body> {
    let reply = match &message.body {
        Body::MultipartRequest(MultipartRequest::Flow(_)) => MultipartReply::Flow(vec![]),
        Body::MultipartRequest(MultipartRequest::MeterConfig(_)) => MultipartReply::MeterConfig(vec![]),
        Body::MultipartRequest(MultipartRequest::MeterFeatures) => {
            MultipartReply::MeterFeatures(MeterFeatures { max_meter: 1 << 16, ..MeterFeatures::default() })
        }
        Body::BarrierRequest => return Some(Body::BarrierReply),
        Body::RoleRequest(request) => {
            let role = if request.role == Role::Master { Role::Master } else { Role::Slave };
            return Some(Body::RoleReply(RoleMessage { role, generation_id: request.generation_id }));
        }
        Body::BundleControl(control) => {
            let kind = match control.kind {
                BundleControlType::OpenRequest => BundleControlType::OpenReply,
                BundleControlType::CommitRequest => BundleControlType::CommitReply,
                _ => return None,
            };
            return Some(Body::BundleControl(BundleControl { kind, ..control.clone() }));
        }
        _ => return None,
    };
    Some(if more { Body::MultipartReplyMore(reply) } else { Body::MultipartReply(reply) })
}

fn desired() -> Desired {
    let mut desired = Desired::default();
    for (kind, name, value) in [
        (Kind::Network, "red", json!({"vlan": 10, "flooding": {"limit_pps": 100}})),
        (
            Kind::Attachment,
            "a",
            json!({"network": "red", "dpid": 1, "port": 1, "macs": ["02:00:00:00:00:01"]}),
        ),
        (
            Kind::Attachment,
            "b",
            json!({"network": "red", "dpid": 1, "port": 2, "rates": {"inbound": {"average": 9}}}),
        ),
    ] {
        let item = Item::from_json(kind, value, &mut Errors::new()).expect("a good item");
        desired.set(&Subject::new(kind, name), Some(item), None);
    }
    desired
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever a switch says: no panic, every message of ours can be written, and what waits for an answer is bounded.
    #[test]
    fn a_switch_says_what_it_likes(steps in proptest::collection::vec(step(), 0..80), leads: bool) {
        let (desired, begin) = (desired(), Instant::now());
        let layout = Layout::new(&desired, &Layout::default());
        let options = Options { priority: leads.then_some(9), ..watching(Duration::from_secs(5)) };
        let metrics = Arc::new(Metrics::new(&Registry::new()));
        let probes = Probes::new(begin).map(Arc::new);
        let ports = [port(1, "p1"), port(2, "p2"), port(3, "p3")].map(|port| (port.port_no, port)).into();
        let setup = Setup { dpid: Dpid(1), options, probes, metrics };
        let mut datapath = Datapath::new(ports, layout.of(Dpid(1)), setup, 4, begin);
        let (mut now, mut open): (_, std::collections::VecDeque<Message>) = (begin, Default::default());
        for step in steps {
            let out = datapath.take_out();
            prop_assert!(out.len() < 1000, "{} messages at once", out.len());
            for message in out {
                prop_assert!(message.encode().is_ok());
                open.push_back(message);
            }
            datapath.take_happenings();
            datapath.take_status();
            let said = match (step, open.front()) {
                (Step::Wait(millis), _) => {
                    now += Duration::from_millis(millis.into());
                    if datapath.tick(now).is_err() {
                        return Ok(());
                    }
                    continue;
                }
                (Step::Bytes(mut bytes, own), front) => {
                    let length = bytes.len() as u16;
                    bytes[0] = 4;
                    bytes[2..4].copy_from_slice(&length.to_be_bytes());
                    if let Some(message) = front.filter(|_| own) {
                        bytes[4..8].copy_from_slice(&message.xid.to_be_bytes());
                    }
                    ofp::decode(&bytes).ok()
                }
                (_, None) => None,
                (step, Some(message)) => {
                    let body = match step {
                        Step::Answer => answer(message, false),
                        Step::Part => answer(message, true),
                        Step::Refuse(kind, code) => Some(Body::Error(ErrorMessage {
                            error: ErrorCode { kind, code, experimenter: 0 },
                            data: vec![],
                        })),
                        _ => None,
                    };
                    let xid = message.xid;
                    open.pop_front();
                    body.map(|body| Message { xid, body })
                }
            };
            if said.is_some_and(|message| datapath.receive(now, message).is_err()) {
                return Ok(());
            }
        }
    }
}
