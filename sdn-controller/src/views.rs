//! What the REST interface answers, as JSON.

use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ofp::{ErrorCode, PortConfig, PortState};
use serde::Serialize;
use serde_json::{Value, json};
use telemetry::Problem;
use utoipa::ToSchema;

use crate::controller::{Progress, SwitchEntry};
use crate::datapath::{Refusal, Refused, Status};
use crate::edit::Preview;
use crate::entry::{FlowBody, FlowKey, MeterBody};
use crate::flow_json::FlowSpec;
use crate::model::{Dpid, Item, Subject};

/// An answer that is no success.
#[derive(Debug)]
pub enum ApiError {
    /// The request is wrong, or the daemon failed.
    Problem(Problem),
    /// A switch refused.
    Refused(Box<RefusedView>),
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> ApiError {
        ApiError::Problem(problem)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        match self {
            ApiError::Problem(problem) => problem.into_response(),
            ApiError::Refused(refused) => refused.into_response(),
        }
    }
}

/// How far something is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// In the switch.
    Applied,
    /// Stored; not in the switch yet.
    Pending,
    /// The switch refused it.
    Refused,
}

/// An error of the OpenFlow specification.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct OpenFlowError {
    /// Its type.
    #[serde(rename = "type")]
    #[schema(example = 2)]
    pub kind: u16,
    /// Its code.
    #[schema(example = 9)]
    pub code: u16,
    /// The type's name, where the specification has one.
    #[schema(example = "OFPET_BAD_ACTION")]
    pub type_name: Option<&'static str>,
    /// The code's name, where the specification has one.
    #[schema(example = "OFPBAC_BAD_OUT_GROUP")]
    pub code_name: Option<&'static str>,
}

impl From<ErrorCode> for OpenFlowError {
    fn from(error: ErrorCode) -> OpenFlowError {
        let (type_name, code_name) = error.names();
        OpenFlowError { kind: error.kind, code: error.code, type_name, code_name }
    }
}

/// A rule that a switch refused.
#[derive(Clone, PartialEq, Debug, Serialize, ToSchema)]
pub struct RefusedRule {
    /// The switch.
    pub dpid: Dpid,
    /// The rule: table, priority and match, or meter.
    pub rule: Value,
    /// The switch's error; null when the rule does not fit into an OpenFlow message.
    pub openflow: Option<OpenFlowError>,
}

fn key_json(key: &FlowKey) -> Value {
    let (matching, table, priority) = ((*key.matching).clone(), key.table, key.priority);
    let mut rule = FlowSpec { table, priority, matching, instructions: vec![] }.to_json();
    if let Some(rule) = rule.as_object_mut() {
        rule.remove("actions");
    }
    rule
}

fn flow_json(key: &FlowKey, body: &FlowBody) -> Value {
    let (matching, table, priority) = ((*key.matching).clone(), key.table, key.priority);
    FlowSpec { table, priority, matching, instructions: body.instructions.to_vec() }.to_json()
}

impl RefusedRule {
    fn new(dpid: Dpid, refusal: &Refusal) -> RefusedRule {
        let rule = match &refusal.what {
            Refused::Flow(key) => key_json(key),
            Refused::Meter(id) => json!({"meter": id}),
        };
        RefusedRule { dpid, rule, openflow: refusal.error.map(OpenFlowError::from) }
    }
}

/// 422: a problem (RFC 9457) with the OpenFlow errors. Everything is as before the request.
#[derive(Debug, Serialize, ToSchema)]
pub struct RefusedView {
    /// The problem.
    #[serde(flatten)]
    pub problem: Problem,
    /// The first error.
    pub openflow: Option<OpenFlowError>,
    /// Every rule that was refused.
    pub refusals: Vec<RefusedRule>,
}

impl RefusedView {
    /// The answer to a change that these switches refused.
    pub fn new(title: String, refusals: &BTreeMap<Dpid, Vec<Refusal>>) -> RefusedView {
        let refusals: Vec<_> = refusals
            .iter()
            .flat_map(|(dpid, list)| list.iter().map(|refusal| RefusedRule::new(*dpid, refusal)))
            .collect();
        let detail = refusals.first().map(|first| match &first.openflow {
            Some(error) => {
                let (kind, code) =
                    (error.type_name.unwrap_or("error"), error.code_name.unwrap_or("unknown code"));
                format!("switch {} refused it: {kind} ({}), {code} ({})", first.dpid, error.kind, error.code)
            }
            None => "a rule of it does not fit into an OpenFlow message".to_owned(),
        });
        let problem = Problem { detail, ..Problem::new(StatusCode::UNPROCESSABLE_ENTITY, title) };
        RefusedView { problem, openflow: refusals.first().and_then(|first| first.openflow.clone()), refusals }
    }

    /// The answer to a message that the switch refused.
    pub fn message(title: String, error: ErrorCode) -> RefusedView {
        let detail = Some(format!("the switch refused it: {error}"));
        let problem = Problem { detail, ..Problem::new(StatusCode::UNPROCESSABLE_ENTITY, title) };
        RefusedView { problem, openflow: Some(error.into()), refusals: vec![] }
    }
}

impl IntoResponse for RefusedView {
    fn into_response(self) -> Response {
        let mut response = (StatusCode::UNPROCESSABLE_ENTITY, Json(self)).into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

/// How far a thing is on a switch.
#[derive(Debug, Serialize, ToSchema)]
pub struct SwitchProgress {
    /// The switch.
    pub dpid: Dpid,
    /// How far.
    pub status: State,
    /// What it waits for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// The rules that the switch refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<RefusedRule>,
}

impl SwitchProgress {
    fn new(dpid: Dpid, progress: &Progress) -> SwitchProgress {
        let (status, reasons, refusals) = match progress {
            Progress::Applied => (State::Applied, vec![], vec![]),
            Progress::Pending(reasons) => (State::Pending, reasons.clone(), vec![]),
            Progress::Refused(list) => {
                (State::Refused, vec![], list.iter().map(|refusal| RefusedRule::new(dpid, refusal)).collect())
            }
        };
        SwitchProgress { dpid, status, reasons, refusals }
    }
}

/// What every answer about a thing has beside the thing itself.
#[derive(Debug, Serialize, ToSchema)]
pub struct ObjectStatus {
    /// Its name; of a flow `dpid` and `id`.
    pub name: String,
    /// How far it is: the worst of its switches.
    pub status: State,
    /// How far it is on each of its switches.
    pub switches: Vec<SwitchProgress>,
}

/// A thing and how far it is.
pub fn object(subject: &Subject, item: &Item, progress: &BTreeMap<Dpid, Progress>) -> Value {
    let mut value = item.to_json();
    let switches: Vec<_> = progress.iter().map(|(dpid, p)| SwitchProgress::new(*dpid, p)).collect();
    let any = |state| switches.iter().any(|switch| switch.status == state);
    let status = match (any(State::Refused), any(State::Pending)) {
        (true, _) => State::Refused,
        (_, true) => State::Pending,
        _ => State::Applied,
    };
    value["status"] = json!(status);
    let Some((dpid, id)) = subject.flow_key() else {
        value["name"] = json!(subject.name);
        value["switches"] = json!(switches);
        return value;
    };
    // A flow is on one switch.
    value["dpid"] = json!(dpid);
    value["id"] = json!(id);
    for switch in switches {
        if !switch.reasons.is_empty() {
            value["reasons"] = json!(switch.reasons);
        }
        if let Some(error) = switch.refusals.into_iter().find_map(|refusal| refusal.openflow) {
            value["openflow"] = json!(error);
        }
    }
    value
}

/// What a change would do to a switch.
#[derive(Debug, Serialize, ToSchema)]
pub struct SwitchPreviewView {
    /// The switch.
    pub dpid: Dpid,
    /// Whether it is connected; else it gets what it needs when it is.
    pub connected: bool,
    /// Flow entries that would be added or replaced, in this order.
    #[schema(value_type = Vec<Object>)]
    pub add: Vec<Value>,
    /// Flow entries that would be deleted after that.
    #[schema(value_type = Vec<Object>)]
    pub delete: Vec<Value>,
    /// Meters that would be made or changed before.
    #[schema(value_type = Vec<Object>)]
    pub meters: Vec<Value>,
    /// Meters that would be deleted at the end.
    pub delete_meters: Vec<u32>,
    /// What stands in the way.
    pub obstacles: Vec<String>,
}

/// What a change would do, without having done it.
#[derive(Debug, Serialize, ToSchema)]
pub struct PreviewView {
    /// Always true.
    pub dry_run: bool,
    /// In words, a line each; empty: nothing changes.
    pub changes: Vec<String>,
    /// To each switch that it changes.
    pub switches: Vec<SwitchPreviewView>,
}

impl PreviewView {
    /// A preview as JSON.
    pub fn new(preview: &Preview) -> PreviewView {
        let meter = |(id, meter): &(u32, MeterBody)| {
            let unit = if meter.packets { "pktps" } else { "kbps" };
            json!({"meter": id, "unit": unit, "rate": meter.rate, "burst": meter.burst})
        };
        let switches = preview.switches.iter().map(|(dpid, switch)| {
            let changes = &switch.changes;
            SwitchPreviewView {
                dpid: *dpid,
                connected: switch.connected,
                add: changes.add.iter().map(|(key, body)| flow_json(key, body)).collect(),
                delete: changes.delete.iter().map(key_json).collect(),
                meters: changes.new_meters.iter().chain(&changes.other_meters).map(meter).collect(),
                delete_meters: changes.old_meters.clone(),
                obstacles: switch.obstacles.clone(),
            }
        });
        PreviewView { dry_run: true, changes: preview.words.clone(), switches: switches.collect() }
    }
}

/// A switch.
#[derive(Debug, Serialize, ToSchema)]
pub struct SwitchView {
    /// Its number.
    pub dpid: Dpid,
    /// Its number as 16 hexadecimal digits.
    pub datapath_id: String,
    /// Whether it is in session.
    pub connected: bool,
    /// The rest is known while it is in session.
    #[serde(flatten)]
    pub session: Option<SessionView>,
}

/// A switch in session.
#[derive(Debug, Serialize, ToSchema)]
pub struct SessionView {
    /// Where it is connected from.
    pub address: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Its manufacturer.
    pub manufacturer: String,
    /// Its hardware.
    pub hardware: String,
    /// Its software.
    pub software: String,
    /// Its description of itself.
    pub description: String,
    /// Flow tables it has.
    pub tables: u8,
    /// Ports it has.
    pub ports: usize,
    /// Rules of ours in it, without learned ones.
    pub flows: usize,
    /// Meters of ours in it.
    pub meters: usize,
    /// Ethernet addresses learned, as of a few seconds ago.
    pub addresses: usize,
    /// The highest number of a meter it takes, 0 = none.
    pub meter_max: u32,
    /// Whether changes go to it in bundles.
    pub bundles: bool,
    /// Whether everything that it can have is in it.
    pub settled: bool,
    /// Our role at it: equal where there is no other controller, else master or slave.
    pub role: &'static str,
}

impl SwitchView {
    /// A switch in session.
    pub fn connected(entry: &SwitchEntry) -> SwitchView {
        let status = entry.status();
        let session = SessionView {
            address: entry.peer.to_string(),
            since: entry.since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            manufacturer: entry.desc.manufacturer.to_string(),
            hardware: entry.desc.hardware.to_string(),
            software: entry.desc.software.to_string(),
            description: entry.desc.datapath.to_string(),
            tables: entry.features.n_tables,
            ports: status.ports.len(),
            flows: status.flows,
            meters: status.meters,
            addresses: status.addresses,
            meter_max: status.abilities.meter_max,
            bundles: status.abilities.bundles,
            settled: status.settled,
            role: status.role,
        };
        SwitchView { connected: true, session: Some(session), ..SwitchView::absent(entry.dpid) }
    }

    /// A switch that something is wanted of and that is not there.
    pub fn absent(dpid: Dpid) -> SwitchView {
        SwitchView { dpid, datapath_id: format!("{:016x}", dpid.0), connected: false, session: None }
    }
}

/// The switches.
#[derive(Debug, Serialize, ToSchema)]
pub struct SwitchList {
    /// By number.
    pub switches: Vec<SwitchView>,
}

/// A port of a switch.
#[derive(Debug, Serialize, ToSchema)]
pub struct PortView {
    /// Its OpenFlow number, or the name of a reserved port.
    pub port: Value,
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    pub hw_addr: String,
    /// Whether packets can pass: it is not off and has a link.
    pub up: bool,
    /// What is wanted of it (`OFPPC_*`).
    pub config: Vec<&'static str>,
    /// How it is (`OFPPS_*`).
    pub state: Vec<&'static str>,
    /// Its speed in kbit/s, 0 = not known.
    pub speed_kbps: u32,
    /// Why the controller lets nothing in by it for a while: loop or flapping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shut: Option<&'static str>,
}

/// A port as JSON.
pub fn port_view(port: &ofp::Port, status: &Status) -> PortView {
    let up = !port.config.contains(PortConfig::PORT_DOWN) && !port.state.contains(PortState::LINK_DOWN);
    PortView {
        port: port.port_no.reserved_name().map_or(json!(port.port_no.0), |name| json!(name)),
        name: port.name.to_string(),
        hw_addr: port.hw_addr.to_string(),
        up,
        config: port.config.names().collect(),
        state: port.state.names().collect(),
        speed_kbps: port.current_speed_kbps,
        shut: status.shut.get(&port.port_no).map(|reason| reason.word()),
    }
}

/// The ports of a switch.
#[derive(Debug, Serialize, ToSchema)]
pub struct PortList {
    /// The switch.
    pub dpid: Dpid,
    /// By number.
    pub ports: Vec<PortView>,
}

/// A static flow. `actions` is short for `instructions` with one `apply_actions`; give one of the two, or neither to
/// drop packets. Names and numbers are those of the OpenFlow 1.3 specification.
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes what `FlowSpec::from_json` reads")]
pub struct FlowDocument {
    /// The flow table. Networks use tables 0 to 7.
    #[schema(default = 0, maximum = 254)]
    table: u8,
    /// Higher wins. Networks use 10000 to 30000.
    #[schema(default = 0, example = 100)]
    priority: u16,
    /// Match fields by name (in_port, eth_src, eth_dst, eth_type, vlan_vid, vlan_pcp, ip_proto, ipv4_src, ipv4_dst,
    /// ipv6_src, ipv6_dst, tcp_src, tcp_dst, udp_src, udp_dst, icmpv4_type, arp_op, metadata, and all others of
    /// OpenFlow 1.3 but PBB). Addresses are texts, with `/` and a prefix length or mask where the specification
    /// allows a mask; other values are numbers, or texts of number, `/` and mask. In vlan_vid the bit 4096 says that
    /// there is a tag: 4106 is VLAN 10, 0 no tag, "0x1000/0x1000" any tag.
    #[schema(value_type = Object, example = json!({"in_port": 1, "eth_type": 2048, "ipv4_dst": "10.0.0.0/24"}))]
    r#match: Value,
    /// {"output": PORT} with a number or IN_PORT, NORMAL, FLOOD, ALL, CONTROLLER, LOCAL; {"output": {"port":
    /// "CONTROLLER", "max_len": 128}}; {"group": N}; {"set_queue": N}; {"push_vlan": 33024}; "pop_vlan";
    /// {"set_field": {FIELD: VALUE}}; "dec_nw_ttl"; {"set_nw_ttl": N}; {"push_mpls": ETHERTYPE}; {"pop_mpls":
    /// ETHERTYPE}; {"set_mpls_ttl": N}; "dec_mpls_ttl"; "copy_ttl_in"; "copy_ttl_out".
    #[schema(value_type = Vec<Object>, example = json!([{"output": 2}]))]
    actions: Vec<Value>,
    /// {"apply_actions": [..]}, {"write_actions": [..]}, "clear_actions", {"write_metadata": {"metadata": N, "mask":
    /// N}}, {"meter": N}, {"goto_table": N}; each at most once.
    #[schema(value_type = Option<Vec<Object>>)]
    instructions: Option<Vec<Value>>,
}
