//! What the switches are and do: ports, flow entries with counters, addresses, links.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use ofp::{Body, FlowStats, FlowStatsRequest, MultipartReply, MultipartRequest, PortNo};
use serde::Deserialize;
use serde_json::{Value, json};
use telemetry::Problem;

use super::objects::{parse_dpid, visible};
use super::{Shared, Who};
use crate::controller::SwitchEntry;
use crate::datapath::AskError;
use crate::entry::{Cookie, ours_request};
use crate::flow_json::FlowSpec;
use crate::links::End;
use crate::model::{Dpid, Item, Kind, Place, PortRef, Subject};
use crate::views::{ApiError, PortList, RefusedView, SwitchList, SwitchView, port_view};

type Answer = Result<Json<Value>, ApiError>;

/// The switches: those in session, and those that something is wanted of.
pub async fn list(State(controller): Shared) -> Json<SwitchList> {
    let connected = controller.switches();
    let layout = controller.layout();
    let mut switches: Vec<_> = connected.values().map(|entry| SwitchView::connected(entry)).collect();
    let absent = layout.switches().map(|(dpid, _)| dpid).filter(|dpid| !connected.contains_key(dpid));
    switches.extend(absent.map(SwitchView::absent));
    switches.sort_by_key(|view| view.dpid);
    Json(SwitchList { switches })
}

/// A switch in session.
pub fn connected(state: &Shared, dpid: &str) -> Result<Arc<SwitchEntry>, Problem> {
    let dpid = parse_dpid(dpid)?;
    state.switch(dpid).ok_or_else(|| {
        Problem::not_found(format!("switch {dpid} is not connected"))
            .detail("it can be asked while it is in session")
    })
}

/// The ports of a switch in session.
pub async fn ports(state: Shared, Path(dpid): Path<String>) -> Result<Json<PortList>, ApiError> {
    let entry = connected(&state, &dpid)?;
    let status = entry.status();
    let ports = status.ports.values().map(|port| port_view(port, &status)).collect();
    Ok(Json(PortList { dpid: entry.dpid, ports }))
}

/// What went wrong when a switch was asked.
pub fn ask_error(dpid: Dpid, error: AskError) -> ApiError {
    let title = format!("switch {dpid} cannot be asked");
    let status = match error {
        AskError::Refused(code) => return ApiError::Refused(Box::new(RefusedView::message(title, code))),
        AskError::Silent => StatusCode::GATEWAY_TIMEOUT,
        AskError::Busy => StatusCode::SERVICE_UNAVAILABLE,
        AskError::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
        AskError::Gone => StatusCode::NOT_FOUND,
    };
    Problem::new(status, title).detail(error.to_string()).into()
}

/// Asks a switch for a multipart answer.
pub async fn ask(entry: &SwitchEntry, request: MultipartRequest) -> Result<MultipartReply, ApiError> {
    match entry.ask(vec![Body::MultipartRequest(request)]).await {
        Ok(Some(Body::MultipartReply(reply))) => Ok(reply),
        Ok(_) => Err(ask_error(entry.dpid, AskError::Silent)),
        Err(error) => Err(ask_error(entry.dpid, error)),
    }
}

async fn flow_stats(entry: &SwitchEntry, request: FlowStatsRequest) -> Result<Vec<FlowStats>, ApiError> {
    match ask(entry, MultipartRequest::Flow(request)).await? {
        MultipartReply::Flow(entries) => Ok(entries),
        _ => Err(ask_error(entry.dpid, AskError::Silent)),
    }
}

/// Counters of the ports of a switch.
pub async fn port_stats(state: Shared, Path(dpid): Path<String>) -> Answer {
    let entry = connected(&state, &dpid)?;
    let MultipartReply::PortStats(list) = ask(&entry, MultipartRequest::PortStats(PortNo::ANY)).await? else {
        return Err(ask_error(entry.dpid, AskError::Silent));
    };
    let names = entry.status();
    let view = |stats: &ofp::PortStats| {
        json!({
            "port": stats.port_no.0,
            "name": names.ports.get(&stats.port_no).map(|port| port.name.to_string()),
            "rx_packets": stats.rx_packets, "tx_packets": stats.tx_packets,
            "rx_bytes": stats.rx_bytes, "tx_bytes": stats.tx_bytes,
            "rx_dropped": stats.rx_dropped, "tx_dropped": stats.tx_dropped,
            "rx_errors": stats.rx_errors, "tx_errors": stats.tx_errors,
        })
    };
    Ok(Json(json!({"dpid": entry.dpid, "ports": list.iter().map(view).collect::<Vec<_>>()})))
}

/// Which flow entries are wanted.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Entries {
    /// Those of others too.
    all: bool,
}

fn kind_of(cookie: u64) -> Value {
    match Cookie::from_number(cookie) {
        None => json!({"kind": "foreign"}),
        Some(Cookie::Shared) => json!({"kind": "shared"}),
        Some(Cookie::Network(vlan)) => json!({"kind": "network", "vlan": vlan}),
        Some(Cookie::Static) => json!({"kind": "static"}),
        Some(Cookie::Learned(vlan)) => json!({"kind": "learned", "vlan": vlan}),
        Some(Cookie::Attachment(number)) => json!({"kind": "attachment", "number": number}),
        Some(Cookie::Spoof(number)) => json!({"kind": "spoof", "number": number}),
        Some(Cookie::Acl { acl, rule }) => json!({"kind": "acl", "number": acl, "rule": rule}),
        Some(Cookie::Discovery) => json!({"kind": "discovery"}),
    }
}

/// The flow entries that are in a switch, with their counters.
pub async fn entries(state: Shared, Path(dpid): Path<String>, Query(query): Query<Entries>) -> Answer {
    let entry = connected(&state, &dpid)?;
    let request = if query.all { FlowStatsRequest::default() } else { ours_request() };
    let mut list = flow_stats(&entry, request).await?;
    list.sort_by(|a, b| (a.table_id, b.priority).cmp(&(b.table_id, a.priority)));
    let view = |stats: &FlowStats| {
        let spec = FlowSpec {
            table: stats.table_id,
            priority: stats.priority,
            matching: stats.matching.clone(),
            instructions: stats.instructions.clone(),
        };
        let mut value = spec.to_json();
        value["cookie"] = json!(format!("{:#x}", stats.cookie));
        value["of"] = kind_of(stats.cookie);
        value["packets"] = json!(stats.packet_count);
        value["bytes"] = json!(stats.byte_count);
        value["seconds"] = json!(stats.duration_sec);
        value
    };
    Ok(Json(json!({"dpid": entry.dpid, "entries": list.iter().map(view).collect::<Vec<_>>()})))
}

/// Which addresses are wanted.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AddressQuery {
    network: Option<String>,
    mac: Option<String>,
}

/// The addresses learned on every switch.
pub async fn addresses(
    State(controller): Shared,
    Extension(who): Who,
    Query(query): Query<AddressQuery>,
) -> Json<Value> {
    let desired = controller.desired();
    let theirs = |network: Option<&&String>| match &who.tenant {
        None => true,
        Some(tenant) => network.is_some_and(|name| desired.networks[*name].tenant.as_ref() == Some(tenant)),
    };
    let names: BTreeMap<u16, &String> = desired.networks.iter().map(|(name, n)| (n.vlan, name)).collect();
    let mut list = Vec::new();
    for (dpid, entry) in controller.switches() {
        let status = entry.status();
        for (vlan, mac, port, age) in entry.addresses().await {
            let (network, mac) = (names.get(&vlan), mac.to_string());
            let wrong = !theirs(network)
                || query.network.as_ref().is_some_and(|wanted| network != Some(&wanted))
                || query.mac.as_ref().is_some_and(|wanted| *wanted != mac);
            if !wrong {
                let name = status.ports.get(&port).map(|port| port.name.to_string());
                list.push(json!({
                    "network": network, "vlan": vlan, "mac": mac, "dpid": dpid, "port": port.0,
                    "port_name": name, "seconds": age.as_secs(),
                }));
            }
        }
    }
    list.sort_by_key(|row| {
        (row["vlan"].as_u64(), row["mac"].as_str().map(str::to_owned), row["dpid"].as_u64())
    });
    Json(json!({"addresses": list}))
}

/// What was dropped as spoofed by each attachment, and what each rule of the ACLs did, over all switches.
pub async fn counters(State(controller): Shared, Extension(who): Who) -> Json<Value> {
    let desired = controller.desired();
    let (mut spoofed, mut hits) =
        (BTreeMap::<u32, (u64, u64)>::new(), BTreeMap::<(u16, u16), (u64, u64)>::new());
    for entry in controller.switches().into_values() {
        // A switch that does not answer counts nothing.
        let Ok(list) = flow_stats(&entry, ours_request()).await else { continue };
        for stats in list {
            let counter = match Cookie::from_number(stats.cookie) {
                Some(Cookie::Spoof(number)) => spoofed.entry(number).or_default(),
                Some(Cookie::Acl { acl, rule }) => hits.entry((acl, rule)).or_default(),
                _ => continue,
            };
            counter.0 += stats.packet_count;
            counter.1 += stats.byte_count;
        }
    }
    let theirs = |kind, name: &str, item| visible(&who, &desired, &Subject::new(kind, name), &item);
    let of_attachment = desired.attachments.iter().filter_map(|(name, attachment)| {
        if !theirs(Kind::Attachment, name, Item::Attachment(attachment.value.clone())) {
            return None;
        }
        let (packets, bytes) = spoofed.get(&attachment.number)?;
        Some((name.clone(), json!({"spoofed_packets": packets, "spoofed_bytes": bytes})))
    });
    let acls =
        desired.acls.iter().filter(|(name, acl)| theirs(Kind::Acl, name, Item::Acl(acl.value.clone())));
    let of_acl = acls.map(|(name, acl)| {
        let count = |rule: usize| hits.get(&(acl.number as u16, rule as u16)).copied().unwrap_or_default();
        let one = |rule: usize| json!({"packets": count(rule).0, "bytes": count(rule).1});
        let rules: Vec<_> = (1..=acl.rules.len()).map(one).collect();
        (name.clone(), json!({"rules": rules, "default": one(0)}))
    });
    let attachments: serde_json::Map<String, Value> = of_attachment.collect();
    let acls: serde_json::Map<String, Value> = of_acl.collect();
    Json(json!({"attachments": attachments, "acls": acls}))
}

/// The switches and what connects them.
pub async fn topology(State(controller): Shared) -> Json<Value> {
    let switches = controller.switches();
    let desired = controller.desired();
    let number = |place: &Place| {
        let status = switches.get(&place.dpid)?.status();
        match &place.port {
            PortRef::Number(number) => Some(*number),
            PortRef::Name(name) => status
                .ports
                .values()
                .find(|port| port.name.as_bytes() == name.as_bytes())
                .map(|p| p.port_no.0),
        }
    };
    let up = |place: &Place| {
        let status = switches.get(&place.dpid)?.status();
        let port = status.ports.get(&PortNo(number(place)?))?;
        Some(port_view(port, &status).up)
    };
    let end = |place: &Place| json!({"dpid": place.dpid, "port": place.port, "number": number(place), "up": up(place)});
    let found = controller.links();
    // Whether probes pass between these places; `None`: none are sent, or not known which ports they are.
    let seen = |a: &Place, b: &Place| {
        controller.probes()?;
        let (a, b) = (End { dpid: a.dpid, port: number(a)? }, End { dpid: b.dpid, port: number(b)? });
        Some(found.iter().any(|(x, y, _)| (*x, *y) == (a.min(b), a.max(b))))
    };
    let links: Vec<_> = desired
        .uplinks
        .iter()
        .map(|(name, uplink)| {
            let b = uplink.b.as_ref().map(end);
            let works = up(&uplink.a) == Some(true) && uplink.b.as_ref().is_none_or(|b| up(b) == Some(true));
            let seen = uplink.b.as_ref().and_then(|b| seen(&uplink.a, b));
            json!({"name": name, "a": end(&uplink.a), "b": b, "up": works, "seen": seen})
        })
        .collect();
    let end_found = |end: &End| {
        let status = switches.get(&end.dpid).map(|entry| entry.status());
        let name = status.and_then(|status| Some(status.ports.get(&PortNo(end.port))?.name.to_string()));
        json!({"dpid": end.dpid, "port": end.port, "name": name})
    };
    let discovered: Vec<_> = found
        .iter()
        .map(|(a, b, both)| json!({"a": end_found(a), "b": end_found(b), "both_ways": both}))
        .collect();
    let layout = controller.layout();
    let mut nodes: Vec<_> = switches
        .values()
        .map(|entry| json!({"dpid": entry.dpid, "connected": true, "ports": entry.status().ports.len()}))
        .collect();
    let absent = layout.switches().map(|(dpid, _)| dpid).filter(|dpid| !switches.contains_key(dpid));
    nodes.extend(absent.map(|dpid| json!({"dpid": dpid, "connected": false})));
    nodes.sort_by_key(|node| node["dpid"].as_u64());
    Json(json!({"switches": nodes, "links": links, "discovered": discovered}))
}
