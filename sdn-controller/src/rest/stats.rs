//! `/stats/...`: paths, bodies and answers of Ryu's `ofctl_rest` for OpenFlow 1.3, with one difference: errors are told.
//!
//! What is written here goes to the switch and is not kept; it is somebody else's as far as the controller is concerned.
//! Who did it is in the audit log.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use ofp::{
    Body, FlowMod, FlowModCommand, FlowModFlags, FlowStats, FlowStatsRequest, GroupModCommand,
    MeterModCommand, MultipartReply, MultipartRequest, PortNo, Role, RoleMessage,
};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use telemetry::Problem;
use telemetry::http::JsonBody;

use super::ryu::{self, BUFFERS, GROUPS, Input, TABLES};
use super::switches::{ask, ask_error, connected};
use super::{Shared, Who};
use crate::auth::Identity;
use crate::controller::{Controller, SwitchEntry};
use crate::datapath::AskError;
use crate::views::ApiError;

type Answer = Result<Json<Value>, ApiError>;

/// The routes.
pub fn routes() -> Router<Arc<Controller>> {
    Router::new()
        .route("/stats/switches", get(switches))
        .route("/stats/desc/{dpid}", get(desc))
        .route(
            "/stats/flow/{dpid}",
            get(async |s: Shared, d: Path<String>| flow(s, d, None).await)
                .post(async |s: Shared, d: Path<String>, JsonBody(b): JsonBody| flow(s, d, Some(b)).await),
        )
        .route(
            "/stats/aggregateflow/{dpid}",
            get(async |s: Shared, d: Path<String>| aggregate(s, d, None).await).post(
                async |s: Shared, d: Path<String>, JsonBody(b): JsonBody| aggregate(s, d, Some(b)).await,
            ),
        )
        .route("/stats/table/{dpid}", get(table))
        .route("/stats/port/{dpid}", get(port_all))
        .route("/stats/port/{dpid}/{port}", get(port_one))
        .route("/stats/portdesc/{dpid}", get(port_desc))
        .route("/stats/portdesc/{dpid}/{port}", get(port_desc_one))
        .route("/stats/group/{dpid}", get(async |s: Shared, Path(d): Path<String>| group(s, d, None).await))
        .route(
            "/stats/group/{dpid}/{id}",
            get(async |s: Shared, Path((d, id)): Path<(String, u32)>| group(s, d, Some(id)).await),
        )
        .route("/stats/groupdesc/{dpid}", get(group_desc))
        .route("/stats/groupdesc/{dpid}/{id}", get(group_desc_one))
        .route("/stats/meter/{dpid}", get(async |s: Shared, Path(d): Path<String>| meter(s, d, None).await))
        .route(
            "/stats/meter/{dpid}/{id}",
            get(async |s: Shared, Path((d, id)): Path<(String, u32)>| meter(s, d, Some(id)).await),
        )
        .route(
            "/stats/meterconfig/{dpid}",
            get(async |s: Shared, Path(d): Path<String>| meter_config(s, d, None).await),
        )
        .route(
            "/stats/meterconfig/{dpid}/{id}",
            get(async |s: Shared, Path((d, id)): Path<(String, u32)>| meter_config(s, d, Some(id)).await),
        )
        .route("/stats/role/{dpid}", get(role))
        .route("/stats/role", post(set_role))
        .route("/stats/flowentry/{command}", post(flow_entry))
        .route("/stats/flowentry/clear/{dpid}", delete(clear))
        .route("/stats/groupentry/{command}", post(group_entry))
        .route("/stats/meterentry/{command}", post(meter_entry))
}

fn of(entry: &SwitchEntry, value: Value) -> Json<Value> {
    let mut answer = Map::new();
    answer.insert(entry.dpid.to_string(), value);
    Json(answer.into())
}

fn strange(entry: &SwitchEntry) -> ApiError {
    ask_error(entry.dpid, AskError::Silent)
}

async fn switches(State(controller): Shared) -> Json<Value> {
    Json(controller.switches().into_keys().map(|dpid| json!(dpid)).collect())
}

async fn desc(state: Shared, Path(dpid): Path<String>) -> Answer {
    let entry = connected(&state, &dpid)?;
    let d = &entry.desc;
    let value = json!({
        "mfr_desc": d.manufacturer.to_string(), "hw_desc": d.hardware.to_string(), "sw_desc": d.software.to_string(),
        "serial_num": d.serial.to_string(), "dp_desc": d.datapath.to_string(),
    });
    Ok(of(&entry, value))
}

fn selection(filter: Option<Value>) -> Result<FlowStatsRequest, ApiError> {
    let Some(filter) = filter else { return Ok(FlowStatsRequest::default()) };
    let mut input = Input::new(filter);
    let request = FlowStatsRequest {
        table_id: input.reserved("table_id", TABLES, ofp::TABLE_ALL),
        out_port: PortNo(input.port("out_port", PortNo::ANY.0)),
        out_group: input.reserved("out_group", GROUPS, ofp::group::ANY),
        cookie: input.number("cookie", 0),
        cookie_mask: input.number("cookie_mask", 0),
        matching: input.matching(),
    };
    input.finish("the filter cannot be read")?;
    Ok(request)
}

/// Bytes of an entry in the switch's answer, which Ryu shows.
fn length(stats: &FlowStats) -> usize {
    let body = Body::MultipartReply(MultipartReply::Flow(vec![stats.clone()]));
    ofp::Message { xid: 0, body }.encode().map_or(0, |bytes| bytes.len() - 16)
}

async fn flow(state: Shared, Path(dpid): Path<String>, filter: Option<Value>) -> Answer {
    let entry = connected(&state, &dpid)?;
    let MultipartReply::Flow(list) = ask(&entry, MultipartRequest::Flow(selection(filter)?)).await? else {
        return Err(strange(&entry));
    };
    let view = |s: &FlowStats| {
        json!({
            "priority": s.priority, "cookie": s.cookie, "idle_timeout": s.idle_timeout, "hard_timeout": s.hard_timeout,
            "byte_count": s.byte_count, "duration_nsec": s.duration_nsec, "duration_sec": s.duration_sec,
            "packet_count": s.packet_count, "table_id": s.table_id, "flags": s.flags.0, "length": length(s),
            "actions": ryu::instructions(&s.instructions), "match": ryu::matching(&s.matching),
        })
    };
    Ok(of(&entry, list.iter().map(view).collect()))
}

async fn aggregate(state: Shared, Path(dpid): Path<String>, filter: Option<Value>) -> Answer {
    let entry = connected(&state, &dpid)?;
    match ask(&entry, MultipartRequest::Aggregate(selection(filter)?)).await? {
        MultipartReply::Aggregate(a) => Ok(of(
            &entry,
            json!([{"packet_count": a.packet_count, "byte_count": a.byte_count, "flow_count": a.flow_count}]),
        )),
        _ => Err(strange(&entry)),
    }
}

async fn table(state: Shared, Path(dpid): Path<String>) -> Answer {
    let entry = connected(&state, &dpid)?;
    let MultipartReply::Table(list) = ask(&entry, MultipartRequest::Table).await? else {
        return Err(strange(&entry));
    };
    let view = |t: &ofp::TableStats| {
        json!({"table_id": t.table_id, "active_count": t.active_count, "lookup_count": t.lookup_count,
               "matched_count": t.matched_count})
    };
    Ok(of(&entry, list.iter().map(view).collect()))
}

async fn port_all(state: Shared, Path(dpid): Path<String>) -> Answer {
    port(state, dpid, PortNo::ANY).await
}

async fn port_one(state: Shared, Path((dpid, number)): Path<(String, String)>) -> Answer {
    let port_no = port_number(&number)?;
    port(state, dpid, port_no).await
}

fn port_number(text: &str) -> Result<PortNo, Problem> {
    let number = text.parse().ok().map(PortNo).or_else(|| PortNo::from_reserved_name(text));
    number.ok_or_else(|| Problem::not_found(format!("{text} is no port")))
}

async fn port(state: Shared, dpid: String, port_no: PortNo) -> Answer {
    let entry = connected(&state, &dpid)?;
    let MultipartReply::PortStats(list) = ask(&entry, MultipartRequest::PortStats(port_no)).await? else {
        return Err(strange(&entry));
    };
    let view = |p: &ofp::PortStats| {
        json!({
            "port_no": ryu::port(p.port_no), "rx_packets": p.rx_packets, "tx_packets": p.tx_packets,
            "rx_bytes": p.rx_bytes, "tx_bytes": p.tx_bytes, "rx_dropped": p.rx_dropped, "tx_dropped": p.tx_dropped,
            "rx_errors": p.rx_errors, "tx_errors": p.tx_errors, "rx_frame_err": p.rx_frame_err,
            "rx_over_err": p.rx_over_err, "rx_crc_err": p.rx_crc_err, "collisions": p.collisions,
            "duration_sec": p.duration_sec, "duration_nsec": p.duration_nsec,
        })
    };
    Ok(of(&entry, list.iter().map(view).collect()))
}

async fn port_desc(state: Shared, Path(dpid): Path<String>) -> Answer {
    ports(&state, &dpid, |_| true)
}

async fn port_desc_one(state: Shared, Path((dpid, number)): Path<(String, String)>) -> Answer {
    let wanted = port_number(&number)?;
    ports(&state, &dpid, |port| port.port_no == wanted || wanted == PortNo::ANY)
}

fn ports(state: &Shared, dpid: &str, wanted: impl Fn(&ofp::Port) -> bool) -> Answer {
    let entry = connected(state, dpid)?;
    let view = |p: &ofp::Port| {
        json!({
            "port_no": ryu::port(p.port_no), "hw_addr": p.hw_addr.to_string(), "name": p.name.to_string(),
            "config": p.config.0, "state": p.state.0, "curr": p.current.0, "advertised": p.advertised.0,
            "supported": p.supported.0, "peer": p.peer.0, "curr_speed": p.current_speed_kbps,
            "max_speed": p.max_speed_kbps,
        })
    };
    Ok(of(&entry, entry.status().ports.values().filter(|port| wanted(port)).map(view).collect()))
}

async fn group(state: Shared, dpid: String, id: Option<u32>) -> Answer {
    let entry = connected(&state, &dpid)?;
    let request = MultipartRequest::Group(id.unwrap_or(ofp::group::ALL));
    let MultipartReply::Group(list) = ask(&entry, request).await? else { return Err(strange(&entry)) };
    let view = |g: &ofp::GroupStats| {
        let bucket =
            |b: &ofp::BucketCounter| json!({"packet_count": b.packet_count, "byte_count": b.byte_count});
        json!({
            "length": 40 + 16 * g.buckets.len(), "group_id": g.group_id, "ref_count": g.ref_count,
            "packet_count": g.packet_count, "byte_count": g.byte_count, "duration_sec": g.duration_sec,
            "duration_nsec": g.duration_nsec, "bucket_stats": g.buckets.iter().map(bucket).collect::<Vec<_>>(),
        })
    };
    Ok(of(&entry, list.iter().map(view).collect()))
}

async fn group_desc(state: Shared, Path(dpid): Path<String>) -> Answer {
    groups(&state, &dpid, None).await
}

async fn group_desc_one(state: Shared, Path((dpid, id)): Path<(String, u32)>) -> Answer {
    groups(&state, &dpid, Some(id)).await
}

async fn groups(state: &Shared, dpid: &str, id: Option<u32>) -> Answer {
    let entry = connected(state, dpid)?;
    let MultipartReply::GroupDesc(list) = ask(&entry, MultipartRequest::GroupDesc).await? else {
        return Err(strange(&entry));
    };
    let view = |g: &ofp::GroupDesc| {
        let bucket = |b: &ofp::Bucket| {
            let actions: Vec<_> = b.actions.iter().map(ryu::action).collect();
            json!({"weight": b.weight, "watch_port": b.watch_port.0, "watch_group": b.watch_group, "actions": actions})
        };
        let buckets: Vec<_> = g.buckets.iter().map(bucket).collect();
        json!({"type": ryu::group_type(g.kind), "group_id": g.group_id, "buckets": buckets})
    };
    let wanted = |group: &&ofp::GroupDesc| id.is_none_or(|id| group.group_id == id);
    Ok(of(&entry, list.iter().filter(wanted).map(view).collect()))
}

async fn meter(state: Shared, dpid: String, id: Option<u32>) -> Answer {
    let entry = connected(&state, &dpid)?;
    let request = MultipartRequest::Meter(id.unwrap_or(ofp::meter::ALL));
    let MultipartReply::Meter(list) = ask(&entry, request).await? else { return Err(strange(&entry)) };
    let view = |m: &ofp::MeterStats| {
        let band = |b: &ofp::MeterBandCounter| json!({"packet_band_count": b.packet_count, "byte_band_count": b.byte_count});
        json!({
            "meter_id": m.meter_id, "len": 40 + 16 * m.bands.len(), "flow_count": m.flow_count,
            "packet_in_count": m.packet_in_count, "byte_in_count": m.byte_in_count, "duration_sec": m.duration_sec,
            "duration_nsec": m.duration_nsec, "band_stats": m.bands.iter().map(band).collect::<Vec<_>>(),
        })
    };
    Ok(of(&entry, list.iter().map(view).collect()))
}

async fn meter_config(state: Shared, dpid: String, id: Option<u32>) -> Answer {
    let entry = connected(&state, &dpid)?;
    let request = MultipartRequest::MeterConfig(id.unwrap_or(ofp::meter::ALL));
    let MultipartReply::MeterConfig(list) = ask(&entry, request).await? else { return Err(strange(&entry)) };
    let view = |m: &ofp::MeterConfig| {
        let bands: Vec<_> = m.bands.iter().map(ryu::band).collect();
        json!({"flags": ryu::meter_flags(m.flags), "meter_id": m.meter_id, "bands": bands})
    };
    Ok(of(&entry, list.iter().map(view).collect()))
}

const ROLES: [(&str, Role); 4] =
    [("NOCHANGE", Role::NoChange), ("EQUAL", Role::Equal), ("MASTER", Role::Master), ("SLAVE", Role::Slave)];

async fn role(state: Shared, Path(dpid): Path<String>) -> Answer {
    let entry = connected(&state, &dpid)?;
    let question = RoleMessage { role: Role::NoChange, generation_id: 0 };
    match entry.ask(vec![Body::RoleRequest(question)]).await {
        Ok(Some(Body::RoleReply(answer))) => {
            let role = ROLES.iter().find(|(_, role)| *role == answer.role).map(|(name, _)| name);
            Ok(of(&entry, json!([{"role": role, "generation_id": answer.generation_id}])))
        }
        Ok(_) => Err(strange(&entry)),
        Err(error) => Err(ask_error(entry.dpid, error)),
    }
}

async fn set_role(
    state: Shared,
    Extension(who): Who,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let mut input = Input::new(body.clone());
    let dpid = input.dpid();
    let role = input.one_of("role", &ROLES, Role::Equal);
    input.finish("the role cannot be read")?;
    if state.options().priority.is_some() {
        let problem = Problem::conflict(format!("the role at switch {dpid} cannot be set"));
        let detail = "the controllers of the switch settle it among themselves, by --priority";
        return Err(problem.detail(detail).into());
    }
    let request = RoleMessage { role, generation_id: 0 };
    tell(&state, &who, &dpid, Body::RoleRequest(request), ("set", "role"), body).await
}

/// Bytes of a body that the audit log keeps.
const NOTED_BYTES_MAX: usize = 16 << 10;

/// Tells the switch, waits until it has done it, notes who wanted it, and says nothing, as Ryu does.
async fn tell(
    state: &Shared,
    who: &Identity,
    dpid: &str,
    message: Body,
    what: (&str, &str),
    body: Value,
) -> Result<Response, ApiError> {
    let entry = connected(state, dpid)?;
    entry.ask(vec![message]).await.map_err(|error| ask_error(entry.dpid, error))?;
    let length = body.to_string().len();
    let noted = if length > NOTED_BYTES_MAX { json!(format!("{length} bytes")) } else { body };
    state.note(who, entry.dpid, what, noted).await.map_err(|error| {
        let title = format!("switch {dpid} has done it, but the audit log cannot be written");
        Problem::internal(title).detail(error.to_string())
    })?;
    Ok(StatusCode::OK.into_response())
}

fn unknown(command: &str) -> ApiError {
    Problem::not_found(format!("there is no command {command}")).into()
}

async fn flow_entry(
    state: Shared,
    Extension(who): Who,
    Path(command): Path<String>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let kind = match command.as_str() {
        "add" => FlowModCommand::Add,
        "modify" => FlowModCommand::Modify,
        "modify_strict" => FlowModCommand::ModifyStrict,
        "delete" => FlowModCommand::Delete,
        "delete_strict" => FlowModCommand::DeleteStrict,
        _ => return Err(unknown(&command)),
    };
    let mut input = Input::new(body.clone());
    let dpid = input.dpid();
    let flow_mod = FlowMod {
        cookie: input.number("cookie", 0),
        cookie_mask: input.number("cookie_mask", 0),
        table_id: input.reserved("table_id", TABLES, 0),
        idle_timeout: input.number("idle_timeout", 0),
        hard_timeout: input.number("hard_timeout", 0),
        priority: input.number("priority", 0),
        buffer_id: input.reserved("buffer_id", BUFFERS, ofp::NO_BUFFER),
        out_port: PortNo(input.port("out_port", PortNo::ANY.0)),
        out_group: input.reserved("out_group", GROUPS, ofp::group::ANY),
        flags: FlowModFlags(input.number("flags", 0)),
        matching: input.matching(),
        instructions: input.instructions(),
        ..FlowMod::new(kind)
    };
    input.finish("the flow entry cannot be read")?;
    tell(&state, &who, &dpid, Body::FlowMod(flow_mod), (&command, "flowentry"), body).await
}

async fn clear(state: Shared, Extension(who): Who, Path(dpid): Path<String>) -> Result<Response, ApiError> {
    let everything = FlowMod { table_id: ofp::TABLE_ALL, ..FlowMod::new(FlowModCommand::Delete) };
    tell(&state, &who, &dpid, Body::FlowMod(everything), ("clear", "flowentry"), Value::Null).await
}

async fn group_entry(
    state: Shared,
    Extension(who): Who,
    Path(command): Path<String>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let kind = match command.as_str() {
        "add" => GroupModCommand::Add,
        "modify" => GroupModCommand::Modify,
        "delete" => GroupModCommand::Delete,
        _ => return Err(unknown(&command)),
    };
    let mut input = Input::new(body.clone());
    let dpid = input.dpid();
    let group_mod = input.group_mod(kind);
    input.finish("the group cannot be read")?;
    tell(&state, &who, &dpid, Body::GroupMod(group_mod), (&command, "groupentry"), body).await
}

async fn meter_entry(
    state: Shared,
    Extension(who): Who,
    Path(command): Path<String>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let kind = match command.as_str() {
        "add" => MeterModCommand::Add,
        "modify" => MeterModCommand::Modify,
        "delete" => MeterModCommand::Delete,
        _ => return Err(unknown(&command)),
    };
    let mut input = Input::new(body.clone());
    let dpid = input.dpid();
    let meter_mod = input.meter_mod(kind);
    input.finish("the meter cannot be read")?;
    tell(&state, &who, &dpid, Body::MeterMod(meter_mod), (&command, "meterentry"), body).await
}
