//! The controller against switches of the test's own, which speak real OpenFlow over loopback and do what real ones do
//! and what no switch should.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ofp::{
    Action, Body, BundleControl, BundleControlType, ErrorCode, ErrorMessage, Field, FlowMod, FlowModCommand,
    FlowStats, Framer, Hello, Instruction, MacAddr, Match, Message, MeterConfig, MeterFeatures, MeterMod,
    MeterModCommand, MultipartReply, MultipartRequest, OxmField, PacketIn, PacketInReason, Port, PortNo,
    PortStatus, PortStatusReason, SwitchFeatures, Text,
};
use sdn_controller::auth::Identity;
use sdn_controller::controller::{ChangeError, Controller, Options, Progress};
use sdn_controller::datapath::Refused;
use sdn_controller::edit::Edit;
use sdn_controller::entry::{Cookie, FlowKey};
use sdn_controller::flow_json::FlowSpec;
use sdn_controller::metrics::Metrics;
use sdn_controller::model::{Desired, Dpid, Item, Kind, Subject};
use sdn_controller::store::Store;
use serde_json::{Value, json};
use telemetry::Registry;
use telemetry::check::Errors;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const PATIENCE: Duration = Duration::from_secs(60);

/// A controller that listens on loopback, and its store.
struct Stage {
    controller: Arc<Controller>,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Stage {
    async fn new() -> Stage {
        let directory = tempfile::tempdir().unwrap();
        let (store, desired) = Store::open(directory.path()).unwrap();
        assert_eq!(desired, Desired::default());
        let controller = Controller::new(store, desired, Metrics::new(&Registry::new()), Options::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(sdn_controller::daemon::accept(listener, controller.clone()));
        Stage { controller, address, _directory: directory }
    }

    /// Waits until `condition` holds.
    async fn until(&self, what: &str, condition: impl Fn(&Controller) -> bool) {
        let wait = async {
            while !condition(&self.controller) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}: not in time"));
    }

    async fn settled(&self, dpid: u64) {
        let settled = |c: &Controller| c.switch(Dpid(dpid)).is_some_and(|switch| switch.status().settled);
        self.until("the switch has what it should", settled).await;
    }

    async fn network(&self, vlan: u16, dpid: u64, ports: &[u32]) -> BTreeMap<Dpid, Progress> {
        let ports: Vec<_> = ports.iter().map(|port| json!({"dpid": dpid, "port": port})).collect();
        let network = json!({"vlan": vlan, "ports": ports});
        self.set(Kind::Network, &format!("net{vlan}"), Some(network)).await.unwrap()
    }

    async fn set(
        &self,
        kind: Kind,
        name: &str,
        value: Option<Value>,
    ) -> Result<BTreeMap<Dpid, Progress>, ChangeError> {
        let item = value.map(|value| Item::from_json(kind, value, &mut Errors::new()).unwrap());
        set(&self.controller, Subject::new(kind, name), item).await
    }
}

async fn set(
    controller: &Controller,
    subject: Subject,
    item: Option<Item>,
) -> Result<BTreeMap<Dpid, Progress>, ChangeError> {
    controller.change(&Identity::controller(), &Edit::one(subject, item)).await
}

fn flow(value: Value) -> FlowSpec {
    FlowSpec::from_json(value, &mut Errors::new()).unwrap()
}

fn port(number: u32, name: &str) -> Port {
    Port {
        port_no: PortNo(number),
        hw_addr: MacAddr([2, 0, 0, 0, 0, number as u8]),
        name: Text::new(name),
        config: ofp::PortConfig(0),
        state: ofp::PortState::LIVE,
        current: ofp::PortFeatures(0),
        advertised: ofp::PortFeatures(0),
        supported: ofp::PortFeatures(0),
        peer: ofp::PortFeatures(0),
        current_speed_kbps: 0,
        max_speed_kbps: 0,
    }
}

/// One end of a connection.
struct Line {
    stream: TcpStream,
    framer: Framer,
}

impl Line {
    async fn connect(address: SocketAddr) -> Line {
        Line { stream: TcpStream::connect(address).await.unwrap(), framer: Framer::new() }
    }

    async fn send(&mut self, xid: u32, body: Body) {
        self.stream.write_all(&Message { xid, body }.encode().unwrap()).await.unwrap();
    }

    /// The next message; `None` when the controller closed the connection.
    async fn next(&mut self) -> Option<Message> {
        let receive = async {
            loop {
                if let Some(bytes) = self.framer.pop().unwrap() {
                    return Some(ofp::decode(bytes).unwrap());
                }
                let mut buffer = [0; 4096];
                let count = self.stream.read(&mut buffer).await.unwrap_or(0);
                if count == 0 {
                    return None;
                }
                assert_eq!(self.framer.push(&buffer[..count]), count);
            }
        };
        tokio::time::timeout(PATIENCE, receive).await.expect("the controller says something")
    }

    /// The session's beginning, up to the request for the flow entries, which is returned.
    async fn introduce(&mut self, dpid: u64, ports: &[Port]) -> Message {
        self.send(1, Body::Hello(Hello::default())).await;
        loop {
            let message = self.next().await.expect("the controller stays");
            let xid = message.xid;
            match message.body {
                Body::Hello(hello) => assert!(hello.agrees()),
                Body::FeaturesRequest => {
                    let features = SwitchFeatures {
                        datapath_id: dpid,
                        n_buffers: 0,
                        n_tables: 16,
                        auxiliary_id: 0,
                        capabilities: ofp::Capabilities(0),
                    };
                    self.send(xid, Body::FeaturesReply(features)).await;
                }
                Body::MultipartRequest(MultipartRequest::Desc) => {
                    let reply = MultipartReply::Desc(Box::default());
                    self.send(xid, Body::MultipartReply(reply)).await;
                }
                Body::MultipartRequest(MultipartRequest::PortDesc) => {
                    // In two parts, as a large switch would.
                    let (first, second) = ports.split_at(ports.len() / 2);
                    self.send(xid, Body::MultipartReplyMore(MultipartReply::PortDesc(first.to_vec()))).await;
                    self.send(xid, Body::MultipartReply(MultipartReply::PortDesc(second.to_vec()))).await;
                }
                Body::MultipartRequest(MultipartRequest::Flow(_)) => return message,
                other => panic!("unexpected in a handshake: {other:?}"),
            }
        }
    }
}

/// What is refused is refused with the beginning of the message, as the specification wants it.
fn refusal(code: ErrorCode, message: &Message) -> Body {
    Body::Error(ErrorMessage::refusing(code, &message.encode().unwrap()))
}

impl Line {
    /// The next error; requests before it stay unanswered.
    async fn next_error(&mut self) -> Message {
        loop {
            let message = self.next().await.expect("a little nonsense is borne");
            if matches!(message.body, Body::Error(_)) {
                return message;
            }
        }
    }

    /// Answers the next barrier and nothing before it.
    async fn answer_next_barrier(&mut self) {
        loop {
            let message = self.next().await.expect("the controller stays");
            if message.body == Body::BarrierRequest {
                return self.send(message.xid, Body::BarrierReply).await;
            }
        }
    }
}

/// A switch that keeps flow entries and meters.
struct Switch {
    line: Line,
    dpid: u64,
    flows: BTreeMap<FlowKey, FlowMod>,
    flow_mods: Vec<FlowMod>,
    /// Flow-mods whose instructions mention this group are refused.
    refused_group: Option<u32>,
    errors: Vec<Body>,
    /// `None`: it has none.
    meters: Option<BTreeMap<u32, MeterMod>>,
    meter_mods: Vec<MeterMod>,
    /// Messages of the bundle that is open; `None`: it takes no bundles.
    bundle: Option<Vec<Message>>,
    commits: usize,
}

impl Switch {
    async fn connect(stage: &Stage, dpid: u64, flows: BTreeMap<FlowKey, FlowMod>) -> Switch {
        let ports = [port(1, "p1"), port(2, "p2"), port(3, "p3")];
        let mut line = Line::connect(stage.address).await;
        let request = line.introduce(dpid, &ports).await;
        let mut switch = Switch { flows, ..Switch::new(line, dpid) };
        switch.answer(request).await;
        switch
    }

    /// One that has meters and takes bundles.
    async fn able(stage: &Stage, dpid: u64) -> Switch {
        let mut line = Line::connect(stage.address).await;
        let request = line.introduce(dpid, &[port(1, "p1"), port(2, "p2"), port(3, "p3")]).await;
        let (meters, bundle) = (Some(BTreeMap::new()), Some(vec![]));
        let mut switch = Switch { meters, bundle, ..Switch::new(line, dpid) };
        switch.answer(request).await;
        switch
    }

    fn new(line: Line, dpid: u64) -> Switch {
        Switch {
            line,
            dpid,
            flows: BTreeMap::new(),
            flow_mods: vec![],
            refused_group: None,
            errors: vec![],
            meters: None,
            meter_mods: vec![],
            bundle: None,
            commits: 0,
        }
    }

    fn stats(&self) -> Vec<FlowStats> {
        let entry = |flow: &FlowMod| FlowStats {
            table_id: flow.table_id,
            duration_sec: 1,
            duration_nsec: 0,
            priority: flow.priority,
            idle_timeout: flow.idle_timeout,
            hard_timeout: flow.hard_timeout,
            flags: flow.flags,
            cookie: flow.cookie,
            packet_count: 0,
            byte_count: 0,
            matching: flow.matching.clone(),
            instructions: flow.instructions.clone(),
        };
        self.flows.values().filter(|f| f.cookie & Cookie::OURS_MASK == Cookie::OURS).map(entry).collect()
    }

    async fn answer(&mut self, message: Message) {
        let xid = message.xid;
        match message.body.clone() {
            Body::EchoRequest(data) => self.line.send(xid, Body::EchoReply(data)).await,
            Body::BarrierRequest => self.line.send(xid, Body::BarrierReply).await,
            Body::MultipartRequest(MultipartRequest::Flow(request)) => {
                assert_eq!((request.cookie, request.cookie_mask), (Cookie::OURS, Cookie::OURS_MASK));
                for part in ofp::split_reply(xid, MultipartReply::Flow(self.stats()), 400).unwrap() {
                    self.line.send(xid, part.body).await;
                }
            }
            Body::MultipartRequest(MultipartRequest::MeterConfig(ofp::meter::ALL)) => {
                let Some(meters) = &self.meters else {
                    return self.line.send(xid, refusal(ErrorCode::BAD_MULTIPART, &message)).await;
                };
                let config = |meter: &MeterMod| {
                    let (flags, meter_id, bands) = (meter.flags, meter.meter_id, meter.bands.clone());
                    MeterConfig { flags, meter_id, bands }
                };
                let reply = MultipartReply::MeterConfig(meters.values().map(config).collect());
                self.line.send(xid, Body::MultipartReply(reply)).await;
            }
            Body::MultipartRequest(MultipartRequest::MeterFeatures) => {
                let max_meter = if self.meters.is_some() { 1 << 16 } else { 0 };
                let features = MeterFeatures { max_meter, ..MeterFeatures::default() };
                let reply = Body::MultipartReply(MultipartReply::MeterFeatures(features));
                self.line.send(xid, reply).await;
            }
            Body::MeterMod(meter) => {
                let meters = self.meters.as_mut().expect("it has meters");
                match meter.command {
                    MeterModCommand::Delete => assert!(meters.remove(&meter.meter_id).is_some()),
                    MeterModCommand::Add => assert!(meters.insert(meter.meter_id, meter.clone()).is_none()),
                    MeterModCommand::Modify => {
                        assert!(meters.insert(meter.meter_id, meter.clone()).is_some())
                    }
                }
                self.meter_mods.push(meter);
            }
            Body::BundleControl(control) => self.bundle_control(message, control).await,
            Body::BundleAdd(add) => self.bundle.as_mut().expect("a bundle is open").push(*add.message),
            Body::FlowMod(flow_mod) => {
                if self.refuses(&flow_mod) {
                    return self.line.send(xid, refusal(ErrorCode::ACTION_BAD_OUT_GROUP, &message)).await;
                }
                self.apply(flow_mod);
            }
            Body::Error(error) => self.errors.push(Body::Error(error)),
            other => panic!("unexpected: {other:?}"),
        }
    }

    fn refuses(&self, flow_mod: &FlowMod) -> bool {
        let groups = format!("{:?}", flow_mod.instructions);
        self.refused_group.is_some_and(|group| groups.contains(&format!("Group({group})")))
    }

    async fn bundle_control(&mut self, message: Message, control: BundleControl) {
        let Some(bundle) = &mut self.bundle else {
            return self.line.send(message.xid, refusal(ErrorCode::BAD_EXPERIMENTER, &message)).await;
        };
        let kind = match control.kind {
            BundleControlType::OpenRequest => BundleControlType::OpenReply,
            BundleControlType::CloseRequest => BundleControlType::CloseReply,
            BundleControlType::DiscardRequest => BundleControlType::DiscardReply,
            BundleControlType::CommitRequest => BundleControlType::CommitReply,
            other => panic!("unexpected: {other:?}"),
        };
        if kind == BundleControlType::CommitReply {
            self.commits += 1;
            let messages = std::mem::take(bundle);
            let flow_mods = messages.iter().map(|message| match &message.body {
                Body::FlowMod(flow_mod) => (message, flow_mod.clone()),
                other => panic!("not in a bundle: {other:?}"),
            });
            let flow_mods: Vec<_> = flow_mods.collect();
            if let Some((bad, _)) = flow_mods.iter().find(|(_, flow_mod)| self.refuses(flow_mod)) {
                self.line.send(bad.xid, refusal(ErrorCode::ACTION_BAD_OUT_GROUP, bad)).await;
                return self
                    .line
                    .send(message.xid, refusal(ErrorCode::BUNDLE_MESSAGE_FAILED, &message))
                    .await;
            }
            flow_mods.into_iter().for_each(|(_, flow_mod)| self.apply(flow_mod));
        }
        self.line.send(message.xid, Body::BundleControl(BundleControl { kind, ..control })).await;
    }

    fn apply(&mut self, flow_mod: FlowMod) {
        let key = FlowKey::new(flow_mod.table_id, flow_mod.priority, &flow_mod.matching);
        match flow_mod.command {
            FlowModCommand::Add => drop(self.flows.insert(key, flow_mod.clone())),
            FlowModCommand::DeleteStrict => drop(self.flows.remove(&key)),
            FlowModCommand::Delete => {
                let outputs = |flow: &FlowMod| format!("{:?}", flow.instructions);
                let to = format!("port: {}", flow_mod.out_port);
                self.flows.retain(|key, flow| {
                    let fits = key.table == flow_mod.table_id
                        && flow.cookie & flow_mod.cookie_mask == flow_mod.cookie
                        && flow_mod.matching.fields.iter().all(|field| key.matching.fields.contains(field))
                        && (flow_mod.out_port == PortNo::ANY || outputs(flow).contains(&to));
                    !fits
                });
            }
            other => panic!("the controller never sends {other:?}"),
        }
        self.flow_mods.push(flow_mod);
    }

    /// Does its work until `stop` is done.
    async fn work<T>(&mut self, stop: impl Future<Output = T>) -> T {
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                done = &mut stop => return done,
                message = self.line.next() => self.answer(message.expect("the controller stays")).await,
            }
        }
    }

    /// Shows the controller a packet, as the rule of the VLAN would.
    async fn packet_in(&mut self, vlan: u16, in_port: u32, source: MacAddr) {
        let mut data = vec![0xff; 6];
        data.extend(source.0);
        data.extend([0x81, 0, 0, vlan as u8, 8, 0]);
        let packet_in = PacketIn {
            buffer_id: ofp::NO_BUFFER,
            total_len: data.len() as u16,
            reason: PacketInReason::Action,
            table_id: 1,
            cookie: Cookie::Network(vlan).number(),
            matching: Match::any().with(OxmField::InPort(PortNo(in_port))),
            data,
        };
        self.line.send(0, Body::PacketIn(packet_in)).await;
    }

    /// Works until its flow entries are as wanted.
    async fn until(&mut self, what: &str, condition: impl Fn(&Switch) -> bool) {
        let until = tokio::time::Instant::now() + PATIENCE;
        while !condition(self) {
            let message = tokio::time::timeout_at(until, self.line.next()).await;
            let message = message.unwrap_or_else(|_| panic!("{what}: not in time: {:#?}", self.flows));
            self.answer(message.expect("the controller stays")).await;
        }
    }

    fn outputs_to(&self, mac: MacAddr) -> Option<PortNo> {
        let is = |key: &FlowKey| matches!(key.matching.field(Field::EthDst), Some(OxmField::EthDst(m)) if m.value == mac);
        let (_, flow) = self.flows.iter().find(|(key, _)| is(key))?;
        match flow.instructions.first() {
            Some(Instruction::ApplyActions(actions)) => match actions.last() {
                Some(Action::Output { port, .. }) => Some(*port),
                _ => None,
            },
            _ => None,
        }
    }
}

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
