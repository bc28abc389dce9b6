//! Switches of the test's own, which speak real OpenFlow over loopback and do what real ones do.

// Each test file uses what it needs.
#![allow(dead_code, reason = "shared by several test files")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ofp::{
    Action, Body, BundleControl, BundleControlType, ErrorCode, ErrorMessage, Field, FlowMod, FlowModCommand,
    FlowStats, Framer, Hello, Instruction, MacAddr, Match, Message, MeterConfig, MeterFeatures, MeterMod,
    MeterModCommand, MultipartReply, MultipartRequest, OxmField, PacketIn, PacketInReason, Port, PortNo,
    SwitchFeatures,
};
use sdn_controller::auth::Identity;
use sdn_controller::controller::{ChangeError, Controller, Options, Progress};
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

pub const PATIENCE: Duration = Duration::from_secs(60);

/// A controller that listens on loopback, and its store.
pub struct Stage {
    pub controller: Arc<Controller>,
    pub address: SocketAddr,
    pub _directory: tempfile::TempDir,
}

impl Stage {
    pub async fn new() -> Stage {
        Stage::with(Options::default()).await
    }

    pub async fn with(options: Options) -> Stage {
        let directory = tempfile::tempdir().unwrap();
        let (store, desired) = Store::open(directory.path()).unwrap();
        assert_eq!(desired, Desired::default());
        let controller = Controller::new(store, desired, Metrics::new(&Registry::new()), options);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(sdn_controller::daemon::accept(listener, controller.clone()));
        Stage { controller, address, _directory: directory }
    }

    /// Waits until `condition` holds.
    pub async fn until(&self, what: &str, condition: impl Fn(&Controller) -> bool) {
        let wait = async {
            while !condition(&self.controller) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}: not in time"));
    }

    pub async fn settled(&self, dpid: u64) {
        let settled = |c: &Controller| c.switch(Dpid(dpid)).is_some_and(|switch| switch.status().settled);
        self.until("the switch has what it should", settled).await;
    }

    pub async fn network(&self, vlan: u16, dpid: u64, ports: &[u32]) -> BTreeMap<Dpid, Progress> {
        let ports: Vec<_> = ports.iter().map(|port| json!({"dpid": dpid, "port": port})).collect();
        let network = json!({"vlan": vlan, "ports": ports});
        self.set(Kind::Network, &format!("net{vlan}"), Some(network)).await.unwrap()
    }

    pub async fn set(
        &self,
        kind: Kind,
        name: &str,
        value: Option<Value>,
    ) -> Result<BTreeMap<Dpid, Progress>, ChangeError> {
        let item = value.map(|value| Item::from_json(kind, value, &mut Errors::new()).unwrap());
        set(&self.controller, Subject::new(kind, name), item).await
    }
}

pub async fn set(
    controller: &Controller,
    subject: Subject,
    item: Option<Item>,
) -> Result<BTreeMap<Dpid, Progress>, ChangeError> {
    controller.change(&Identity::controller(), &Edit::one(subject, item)).await
}

pub fn flow(value: Value) -> FlowSpec {
    FlowSpec::from_json(value, &mut Errors::new()).unwrap()
}

pub fn port(number: u32, name: &str) -> Port {
    let mac = MacAddr([2, 0, 0, 0, 0, number as u8]);
    Port { state: ofp::PortState::LIVE, ..Port::new(PortNo(number), mac, name) }
}

/// One end of a connection.
pub struct Line {
    pub stream: TcpStream,
    pub framer: Framer,
}

impl Line {
    pub async fn connect(address: SocketAddr) -> Line {
        Line { stream: TcpStream::connect(address).await.unwrap(), framer: Framer::new() }
    }

    pub async fn send(&mut self, xid: u32, body: Body) {
        self.stream.write_all(&Message { xid, body }.encode().unwrap()).await.unwrap();
    }

    /// The next message; `None` when the controller closed the connection.
    pub async fn next(&mut self) -> Option<Message> {
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
    pub async fn introduce(&mut self, dpid: u64, ports: &[Port]) -> Message {
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
pub fn refusal(code: ErrorCode, message: &Message) -> Body {
    Body::Error(ErrorMessage::refusing(code, &message.encode().unwrap()))
}

impl Line {
    /// The next error; requests before it stay unanswered.
    pub async fn next_error(&mut self) -> Message {
        loop {
            let message = self.next().await.expect("a little nonsense is borne");
            if matches!(message.body, Body::Error(_)) {
                return message;
            }
        }
    }

    /// Answers the next barrier and nothing before it.
    pub async fn answer_next_barrier(&mut self) {
        loop {
            let message = self.next().await.expect("the controller stays");
            if message.body == Body::BarrierRequest {
                return self.send(message.xid, Body::BarrierReply).await;
            }
        }
    }
}

/// A switch that keeps flow entries and meters.
pub struct Switch {
    pub line: Line,
    pub dpid: u64,
    pub flows: BTreeMap<FlowKey, FlowMod>,
    pub flow_mods: Vec<FlowMod>,
    /// Flow-mods whose instructions mention this group are refused.
    pub refused_group: Option<u32>,
    pub errors: Vec<Body>,
    /// `None`: it has none.
    pub meters: Option<BTreeMap<u32, MeterMod>>,
    pub meter_mods: Vec<MeterMod>,
    /// Messages of the bundle that is open; `None`: it takes no bundles.
    pub bundle: Option<Vec<Message>>,
    pub commits: usize,
    /// Packets that it was to send.
    pub packet_outs: Vec<ofp::PacketOut>,
}

impl Switch {
    pub async fn connect(stage: &Stage, dpid: u64, flows: BTreeMap<FlowKey, FlowMod>) -> Switch {
        let ports = [port(1, "p1"), port(2, "p2"), port(3, "p3")];
        let mut line = Line::connect(stage.address).await;
        let request = line.introduce(dpid, &ports).await;
        let mut switch = Switch { flows, ..Switch::new(line, dpid) };
        switch.answer(request).await;
        switch
    }

    /// One that has meters and takes bundles.
    pub async fn able(stage: &Stage, dpid: u64) -> Switch {
        let mut line = Line::connect(stage.address).await;
        let request = line.introduce(dpid, &[port(1, "p1"), port(2, "p2"), port(3, "p3")]).await;
        let (meters, bundle) = (Some(BTreeMap::new()), Some(vec![]));
        let mut switch = Switch { meters, bundle, ..Switch::new(line, dpid) };
        switch.answer(request).await;
        switch
    }

    pub fn new(line: Line, dpid: u64) -> Switch {
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
            packet_outs: vec![],
        }
    }

    pub fn stats(&self) -> Vec<FlowStats> {
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

    pub async fn answer(&mut self, message: Message) {
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
            Body::PacketOut(packet_out) => self.packet_outs.push(packet_out),
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

    pub fn refuses(&self, flow_mod: &FlowMod) -> bool {
        let groups = format!("{:?}", flow_mod.instructions);
        self.refused_group.is_some_and(|group| groups.contains(&format!("Group({group})")))
    }

    pub async fn bundle_control(&mut self, message: Message, control: BundleControl) {
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

    pub fn apply(&mut self, flow_mod: FlowMod) {
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
    pub async fn work<T>(&mut self, stop: impl Future<Output = T>) -> T {
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                done = &mut stop => return done,
                message = self.line.next() => self.answer(message.expect("the controller stays")).await,
            }
        }
    }

    /// Shows the controller a packet, as the rule of the VLAN would.
    pub async fn packet_in(&mut self, vlan: u16, in_port: u32, source: MacAddr) {
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
    pub async fn until(&mut self, what: &str, condition: impl Fn(&Switch) -> bool) {
        let until = tokio::time::Instant::now() + PATIENCE;
        while !condition(self) {
            let message = tokio::time::timeout_at(until, self.line.next()).await;
            let message = message.unwrap_or_else(|_| panic!("{what}: not in time: {:#?}", self.flows));
            self.answer(message.expect("the controller stays")).await;
        }
    }

    pub fn outputs_to(&self, mac: MacAddr) -> Option<PortNo> {
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
