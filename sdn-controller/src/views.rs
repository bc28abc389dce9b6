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
use crate::datapath::Refusal;
use crate::flow_json::FlowSpec;
use crate::model::{Dpid, Network, NetworkPort};

/// An answer that is no success.
#[derive(Debug)]
pub enum ApiError {
    /// The request is wrong, or the daemon failed.
    Problem(Problem),
    /// A switch refused.
    Refused(Box<Refused>),
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> ApiError {
        ApiError::Problem(problem)
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
    /// The rule: table, priority and match.
    pub rule: Value,
    /// The switch's error; null when the rule does not fit into an OpenFlow message.
    pub openflow: Option<OpenFlowError>,
}

impl RefusedRule {
    fn new(dpid: Dpid, refusal: &Refusal) -> RefusedRule {
        let matching = refusal.key.matching.clone();
        let (table, priority) = (refusal.key.table, refusal.key.priority);
        let mut rule = FlowSpec { table, priority, matching, instructions: vec![] }.to_json();
        if let Some(rule) = rule.as_object_mut() {
            rule.remove("actions");
        }
        RefusedRule { dpid, rule, openflow: refusal.error.map(OpenFlowError::from) }
    }
}

/// 422: a problem (RFC 9457) with the OpenFlow errors. Everything is as before the request.
#[derive(Debug, Serialize, ToSchema)]
pub struct Refused {
    /// The problem.
    #[serde(flatten)]
    pub problem: Problem,
    /// The first error.
    pub openflow: Option<OpenFlowError>,
    /// Every rule that was refused.
    pub refusals: Vec<RefusedRule>,
}

impl Refused {
    /// The answer to a change that these switches refused.
    pub fn new(title: String, refusals: &BTreeMap<Dpid, Vec<Refusal>>) -> Refused {
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
        Refused { problem, openflow: refusals.first().and_then(|first| first.openflow.clone()), refusals }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response = (StatusCode::UNPROCESSABLE_ENTITY, Json(self)).into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

fn state_of(progress: &Progress) -> (State, Vec<String>) {
    match progress {
        Progress::Applied => (State::Applied, vec![]),
        Progress::Pending(reasons) => (State::Pending, reasons.clone()),
        Progress::Refused(_) => (State::Refused, vec![]),
    }
}

fn refusals_of(dpid: Dpid, progress: &Progress) -> Vec<RefusedRule> {
    match progress {
        Progress::Refused(refusals) => {
            refusals.iter().map(|refusal| RefusedRule::new(dpid, refusal)).collect()
        }
        _ => vec![],
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
    /// Ethernet addresses learned, as of a few seconds ago.
    pub addresses: usize,
    /// Whether everything that it can have is in it.
    pub settled: bool,
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
            addresses: status.addresses,
            settled: status.settled,
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
}

/// A port as JSON.
pub fn port_view(port: &ofp::Port) -> PortView {
    let up = !port.config.contains(PortConfig::PORT_DOWN) && !port.state.contains(PortState::LINK_DOWN);
    PortView {
        port: port.port_no.reserved_name().map_or(json!(port.port_no.0), |name| json!(name)),
        name: port.name.to_string(),
        hw_addr: port.hw_addr.to_string(),
        up,
        config: port.config.names().collect(),
        state: port.state.names().collect(),
        speed_kbps: port.current_speed_kbps,
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

/// A network and how far it is.
#[derive(Debug, Serialize, ToSchema)]
pub struct NetworkView {
    /// Its name.
    pub name: String,
    /// Its VLAN id.
    pub vlan: u16,
    /// Its ports.
    pub ports: Vec<NetworkPort>,
    /// How far it is: the worst of its switches.
    pub status: State,
    /// How far it is on each of its switches.
    pub switches: Vec<SwitchProgress>,
}

/// How far a network is on a switch.
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

impl NetworkView {
    /// A network as JSON.
    pub fn new(name: &str, network: &Network, progress: &BTreeMap<Dpid, Progress>) -> NetworkView {
        let switches: Vec<_> = progress
            .iter()
            .map(|(&dpid, progress)| {
                let (status, reasons) = state_of(progress);
                SwitchProgress { dpid, status, reasons, refusals: refusals_of(dpid, progress) }
            })
            .collect();
        let any = |state| switches.iter().any(|switch| switch.status == state);
        let status = match (any(State::Refused), any(State::Pending)) {
            (true, _) => State::Refused,
            (_, true) => State::Pending,
            _ => State::Applied,
        };
        NetworkView {
            name: name.to_owned(),
            vlan: network.vlan,
            ports: network.ports.clone(),
            status,
            switches,
        }
    }
}

/// The networks.
#[derive(Debug, Serialize, ToSchema)]
pub struct NetworkList {
    /// By name.
    pub networks: Vec<NetworkView>,
}

/// A static flow and how far it is.
#[derive(Debug, Serialize, ToSchema)]
pub struct FlowView {
    /// The switch.
    pub dpid: Dpid,
    /// Its id.
    pub id: String,
    /// The flow, as in the request.
    #[serde(flatten)]
    #[schema(value_type = FlowDocument)]
    pub flow: Value,
    /// How far it is.
    pub status: State,
    /// What it waits for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// The switch's error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub openflow: Option<OpenFlowError>,
}

impl FlowView {
    /// A static flow as JSON.
    pub fn new(dpid: Dpid, id: &str, flow: &FlowSpec, progress: &Progress) -> FlowView {
        let (status, reasons) = state_of(progress);
        let openflow = refusals_of(dpid, progress).into_iter().find_map(|refusal| refusal.openflow);
        FlowView { dpid, id: id.to_owned(), flow: flow.to_json(), status, reasons, openflow }
    }
}

/// The static flows of a switch.
#[derive(Debug, Serialize, ToSchema)]
pub struct FlowList {
    /// The switch.
    pub dpid: Dpid,
    /// By id.
    pub flows: Vec<FlowView>,
}

/// A static flow. `actions` is short for `instructions` with one `apply_actions`; give one of the two, or neither to
/// drop packets. Names and numbers are those of the OpenFlow 1.3 specification.
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes what `FlowSpec::from_json` reads")]
pub struct FlowDocument {
    /// The flow table. Networks use tables 0, 1 and 2.
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
