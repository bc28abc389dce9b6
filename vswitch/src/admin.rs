//! The admin interface: ports, addresses and flows over HTTP, described by OpenAPI at `/openapi.json`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use telemetry::Problem;
use telemetry::check::Errors;
use telemetry::http::JsonBody;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::capture::{CaptureSpec, FRAME_BYTES_DEFAULT};
use crate::flow_tables::Selection;
use crate::frame_words::FrameWords;
use crate::openflow::{convert, flow_json};
use crate::port_spec::{PortView, read_add};
use crate::switch::Switch;
use crate::trace::{Trace, read_frame, trace};

#[derive(OpenApi)]
#[openapi(info(title = "Sluice switch", description = "Ports, learned addresses and flows of the switch."))]
struct Description;

/// A learned address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct FdbView {
    /// VLAN; 0 is the network without a tag.
    pub vlan: u16,
    /// The address.
    pub mac: String,
    /// Name of the port it was last seen on.
    pub port: Option<String>,
    /// Number of that port.
    pub ofport: u32,
    /// Seconds since it was last seen.
    pub age_s: u32,
}

/// The body of a request to add a port; [`read_add`] checks it.
#[derive(utoipa::ToSchema)]
#[schema(as = AddPort)]
#[allow(dead_code, reason = "describes the body, which is read key by key")]
struct AddPort {
    /// Unique name.
    name: String,
    /// A guest connects to `<name>.sock` in the run directory.
    vhost_user: Option<bool>,
    /// The guest's VMM listens at this socket and we connect.
    client: Option<String>,
    /// A network interface of the host.
    af_packet: Option<String>,
    /// A tap interface; made when it does not exist.
    tap: Option<String>,
    /// OpenFlow port number, 1 to 65279; the lowest free one unless given.
    ofport: Option<u32>,
    /// Access port: untagged member of this VLAN.
    vlan: Option<u16>,
    /// Trunk: tagged member of these VLANs, such as `10,20-29`.
    trunk: Option<String>,
    /// Trunk: VLAN of untagged frames.
    native: Option<u16>,
    /// Largest IP packet, bytes.
    mtu: Option<u16>,
    /// Queue pairs, 1 to 8.
    queue_pairs: Option<u16>,
    /// Owner of the socket, name or id.
    socket_owner: Option<String>,
    /// Group of the socket, name or id.
    socket_group: Option<String>,
    /// Mode of the socket, octal.
    socket_mode: Option<String>,
}

/// The routes of the switch daemon.
pub fn router(switch: Arc<Switch>) -> Router {
    let (router, description) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(list, add))
        .routes(routes!(show, delete))
        .routes(routes!(fdb))
        .routes(routes!(flows))
        .routes(routes!(capture))
        .routes(routes!(follow))
        .split_for_parts();
    router.route("/openapi.json", get(async || Json(description))).with_state(switch)
}

/// What of a port's frames to capture; values are texts so that everything wrong is told at once.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
struct CaptureQuery {
    /// `true`: only frames that were dropped.
    drops: Option<String>,
    /// Only frames that these words describe, such as `tcp 10.0.0.1->*:80 vlan 10`.
    filter: Option<String>,
    /// Bytes of each frame to keep.
    frame_bytes: Option<String>,
}

/// The frame to follow.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
struct TraceQuery {
    /// Hexadecimal, or words such as `tcp 10.0.0.1:1->10.0.0.2:80 vlan 10`.
    frame: String,
}

/// Runs what blocks on files and workers beside the threads that serve requests.
async fn blocking<R: Send + 'static>(
    switch: Arc<Switch>,
    work: impl FnOnce(&Switch) -> R + Send + 'static,
) -> Result<R, Problem> {
    tokio::task::spawn_blocking(move || work(&switch))
        .await
        .map_err(|error| Problem::internal("the request could not be carried out").detail(error.to_string()))
}

/// All ports.
#[utoipa::path(get, path = "/v1/ports", responses((status = 200, body = [PortView])))]
async fn list(State(switch): State<Arc<Switch>>) -> Result<Json<Vec<PortView>>, Problem> {
    blocking(switch, Switch::list).await.map(Json)
}

/// Add a port.
#[utoipa::path(post, path = "/v1/ports", request_body = AddPort, responses(
    (status = 201, body = PortView),
    (status = 400, description = "All that is wrong with the request", body = Problem),
    (status = 409, description = "A name, number or interface is taken, or cannot be used", body = Problem),
))]
async fn add(
    State(switch): State<Arc<Switch>>,
    JsonBody(body): JsonBody,
) -> Result<(StatusCode, Json<PortView>), Problem> {
    let spec = read_add(body)?;
    let view = blocking(switch, move |switch| switch.add(spec)).await??;
    Ok((StatusCode::CREATED, Json(view)))
}

/// One port.
#[utoipa::path(get, path = "/v1/ports/{name}", params(("name" = String, Path)), responses(
    (status = 200, body = PortView),
    (status = 404, body = Problem),
))]
async fn show(
    State(switch): State<Arc<Switch>>,
    Path(name): Path<String>,
) -> Result<Json<PortView>, Problem> {
    blocking(switch, move |switch| switch.show(&name)).await?.map(Json)
}

/// Delete a port.
#[utoipa::path(delete, path = "/v1/ports/{name}", params(("name" = String, Path)), responses(
    (status = 204),
    (status = 404, body = Problem),
))]
async fn delete(State(switch): State<Arc<Switch>>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    blocking(switch, move |switch| switch.delete(&name)).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// The learned addresses, by VLAN and address.
#[utoipa::path(get, path = "/v1/fdb", responses((status = 200, body = [FdbView])))]
async fn fdb(State(switch): State<Arc<Switch>>) -> Json<Vec<FdbView>> {
    let now_s = (switch.bridge().clock().now_ms() / 1000) as u32;
    let mut entries = switch.bridge().fdb().entries();
    entries.sort_unstable_by_key(|entry| (entry.vid, entry.mac));
    let view = entries.into_iter().map(|entry| FdbView {
        vlan: entry.vid,
        mac: entry.mac.to_string(),
        port: switch.name_of(entry.port),
        ofport: entry.port.0,
        age_s: now_s.saturating_sub(entry.seen_s),
    });
    Json(view.collect())
}

/// The flow entries of all tables with their counters.
#[utoipa::path(get, path = "/v1/flows", responses((status = 200, description = "A list of flow entries")))]
async fn flows(State(switch): State<Arc<Switch>>) -> Result<Json<Vec<Value>>, Problem> {
    let bridge = switch.bridge();
    bridge.drain_counters().await;
    let flows = bridge
        .flows(&Selection::all())
        .map_err(|error| Problem::internal("the flows cannot be read").detail(error.to_string()))?;
    let now_ms = bridge.clock().now_ms();
    let mut flows: Vec<_> = flows.iter().collect();
    flows.sort_by_key(|flow| (flow.table, std::cmp::Reverse(flow.priority), flow.id));
    Ok(Json(flows.into_iter().map(|flow| flow_json(flow, now_ms)).collect()))
}

/// The frames of a port as they go by, as a pcapng file without end. What was dropped has the reason as its comment.
#[utoipa::path(get, path = "/v1/ports/{name}/capture", params(("name" = String, Path), CaptureQuery), responses(
    (status = 200, description = "pcapng", content_type = "application/octet-stream"),
    (status = 400, body = Problem),
    (status = 404, body = Problem),
))]
async fn capture(
    State(switch): State<Arc<Switch>>,
    Path(name): Path<String>,
    Query(query): Query<CaptureQuery>,
) -> Result<impl IntoResponse, Problem> {
    let mut errors = Errors::new();
    let text = query.filter.unwrap_or_default();
    let words = FrameWords::parse(&text, "filter", &mut errors).unwrap_or_default();
    let filter = convert::key_and_mask(&words.matching()).unwrap_or_else(|code| {
        errors.add("filter", &text, format!("is no match ({code})"), "say what belongs together");
        Default::default()
    });
    let drops = match query.drops.as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => {
            errors.add("drops", other, "is neither true nor false", "give one of them");
            false
        }
    };
    let bytes = query.frame_bytes.as_deref().map_or(Ok(FRAME_BYTES_DEFAULT), str::parse);
    let frame_bytes_max = bytes.ok().filter(|bytes| (1..=FRAME_BYTES_DEFAULT).contains(bytes));
    if frame_bytes_max.is_none() {
        let given = query.frame_bytes.as_deref().unwrap_or_default();
        errors.add("frame_bytes", given, "is no number of bytes", format!("give 1 to {FRAME_BYTES_DEFAULT}"));
    }
    errors.into_result(format!("the port `{name}` cannot be captured"), ())?;
    let frame_bytes_max = frame_bytes_max.unwrap_or(FRAME_BYTES_DEFAULT);
    let port = blocking(switch.clone(), move |switch| switch.show(&name)).await??.spec;
    let number = crate::model::PortNo(port.ofport.unwrap_or(0));
    let spec = CaptureSpec { name: port.name, port: number, drops, filter, frame_bytes_max };
    let capture = switch.data_path().capture(spec);
    // Whoever has an answer misses nothing from then on.
    switch.bridge().barrier().await;
    let body = Body::new(capture);
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], body))
}

/// What would become of a frame that comes in by a port, table by table. Nothing is sent, learned or counted.
#[utoipa::path(get, path = "/v1/ports/{name}/trace", params(("name" = String, Path), TraceQuery), responses(
    (status = 200, body = Trace),
    (status = 400, body = Problem),
    (status = 404, body = Problem),
))]
async fn follow(
    State(switch): State<Arc<Switch>>,
    Path(name): Path<String>,
    Query(query): Query<TraceQuery>,
) -> Result<Json<Trace>, Problem> {
    let mut errors = Errors::new();
    let frame = read_frame(&query.frame, &mut errors).unwrap_or_default();
    errors.into_result("the frame cannot be followed", ())?;
    let port = blocking(switch.clone(), move |switch| switch.show(&name)).await??.spec;
    let number = crate::model::PortNo(port.ofport.unwrap_or(0));
    Ok(Json(trace(switch.bridge(), number, &frame)))
}
