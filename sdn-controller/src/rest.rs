//! The REST interface: routes, answers, and the OpenAPI description made from them.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{DefaultBodyLimit, MatchedPath, Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use telemetry::Problem;
use telemetry::check::Errors;
use telemetry::http::JsonBody;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::controller::{ChangeError, Controller, Progress, Subject};
use crate::flow_json::FlowSpec;
use crate::model::{Dpid, Network};
use crate::views::{
    ApiError, FlowDocument, FlowList, FlowView, NetworkList, NetworkView, PortList, Refused, SwitchList,
    SwitchView, port_view,
};

/// Bytes of a request body at most.
const BODY_BYTES_MAX: usize = 1 << 20;

#[derive(OpenApi)]
#[openapi(info(
    title = "Sluice network controller",
    description = "Networks and static flows on OpenFlow 1.3 switches. Every PUT is idempotent. 200 means that the \
                   switches confirmed it behind a barrier; 202 that it is stored and goes to the switches that are \
                   named in the answer when they can take it; 422 that a switch refused it, with the OpenFlow error, \
                   and that everything is as before."
))]
struct Description;

type Answer<T> = Result<(StatusCode, Json<T>), ApiError>;
type Shared = State<Arc<Controller>>;

/// The routes, and `/openapi.json`.
pub fn router(controller: Arc<Controller>) -> Router {
    let (router, description) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(list_switches))
        .routes(routes!(list_ports))
        .routes(routes!(list_flows))
        .routes(routes!(get_flow, put_flow, delete_flow))
        .routes(routes!(list_networks))
        .routes(routes!(get_network, put_network, delete_network))
        .split_for_parts();
    let description = Json(description);
    router
        .route("/openapi.json", axum::routing::get(async move || description))
        .fallback(async |request: Request| {
            Problem::not_found(format!("there is no {}", request.uri().path()))
        })
        .method_not_allowed_fallback(async |request: Request| {
            let title = format!("{} does not take {}", request.uri().path(), request.method());
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, title)
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(controller.clone(), count))
        .with_state(controller)
}

async fn count(State(controller): Shared, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let (path, begin) = (request.uri().path().to_owned(), Instant::now());
    let response = next.run(request).await;
    let status = response.status().as_u16();
    // Methods are as free as paths; only those that the routes know become labels.
    let label = match method.as_str() {
        known @ ("GET" | "PUT" | "DELETE" | "HEAD") => known,
        _ => "other",
    };
    controller.metrics().request(label, route.as_deref().unwrap_or("none"), status);
    if !method.is_safe() {
        let duration_ms = begin.elapsed().as_millis();
        tracing::info!(%method, path, status, duration_ms, "request");
    }
    response
}

fn parse_dpid(text: &str) -> Result<Dpid, Problem> {
    text.parse().map_err(|error: crate::model::ParseDpidError| {
        let mut errors = Errors::new();
        errors.add("dpid", text, error.to_string(), "see GET /v1/switches");
        Problem::invalid("no such switch can be", errors.list().to_vec())
    })
}

/// Reads name and body of a PUT, and tells all errors of both at once.
fn read<T>(
    (field, name): (&str, &str),
    title: &str,
    body: serde_json::Value,
    parse: impl FnOnce(serde_json::Value, &mut Errors) -> Option<T>,
) -> Result<T, Problem> {
    let mut errors = Errors::new();
    let value = parse(body, &mut errors);
    errors.name(field, name);
    match value {
        Some(value) => errors.into_result(title, value),
        None => Err(Problem::invalid(title, errors.list().to_vec())),
    }
}

fn change_error(title: String, error: ChangeError) -> ApiError {
    match error {
        ChangeError::Conflicts(conflicts) => {
            let text: Vec<_> = conflicts.iter().map(ToString::to_string).collect();
            Problem::conflict(title).detail(text.join("; ")).into()
        }
        ChangeError::Refused(refusals) => ApiError::Refused(Box::new(Refused::new(title, &refusals))),
        ChangeError::Store(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "the store failed");
            Problem::internal(title).detail(error.to_string()).into()
        }
    }
}

/// 200 when everything is applied, 202 when something is pending.
fn status_of<'a>(progress: impl IntoIterator<Item = &'a Progress>) -> StatusCode {
    let applied = progress.into_iter().all(|progress| matches!(progress, Progress::Applied));
    if applied { StatusCode::OK } else { StatusCode::ACCEPTED }
}

/// The switches: those in session, and those that something is wanted of.
#[utoipa::path(get, path = "/v1/switches", tag = "switches", responses((status = 200, body = SwitchList)))]
async fn list_switches(State(controller): Shared) -> Json<SwitchList> {
    let connected = controller.switches();
    let wanted = controller.desired().switches();
    let mut switches: Vec<_> = connected.values().map(|entry| SwitchView::connected(entry)).collect();
    switches.extend(wanted.into_iter().filter(|dpid| !connected.contains_key(dpid)).map(SwitchView::absent));
    switches.sort_by_key(|view| view.dpid);
    Json(SwitchList { switches })
}

/// The ports of a switch in session.
#[utoipa::path(get, path = "/v1/switches/{dpid}/ports", tag = "switches",
    params(("dpid" = String, Path, description = "decimal, 0x..., or 16 hexadecimal digits")),
    responses((status = 200, body = PortList), (status = 404, body = Problem, description = "not connected")))]
async fn list_ports(State(controller): Shared, Path(dpid): Path<String>) -> Answer<PortList> {
    let dpid = parse_dpid(&dpid)?;
    let entry = controller.switch(dpid).ok_or_else(|| {
        Problem::not_found(format!("switch {dpid} is not connected"))
            .detail("its ports are known while it is in session")
    })?;
    let ports = entry.status().ports.values().map(port_view).collect();
    Ok((StatusCode::OK, Json(PortList { dpid, ports })))
}

/// The static flows of a switch.
#[utoipa::path(get, path = "/v1/switches/{dpid}/flows", tag = "flows",
    params(("dpid" = String, Path, description = "decimal, 0x..., or 16 hexadecimal digits")),
    responses((status = 200, body = FlowList)))]
async fn list_flows(State(controller): Shared, Path(dpid): Path<String>) -> Answer<FlowList> {
    let dpid = parse_dpid(&dpid)?;
    let desired = controller.desired();
    let flows = desired.flows_of(dpid).map(|(id, flow)| flow_view(&controller, dpid, id, flow)).collect();
    Ok((StatusCode::OK, Json(FlowList { dpid, flows })))
}

fn flow_view(controller: &Controller, dpid: Dpid, id: &str, flow: &FlowSpec) -> FlowView {
    let progress = controller.progress(&Subject::Flow(dpid, id.to_owned()), dpid);
    FlowView::new(dpid, id, flow, &progress)
}

/// A static flow.
#[utoipa::path(get, path = "/v1/switches/{dpid}/flows/{id}", tag = "flows",
    params(("dpid" = String, Path, description = "decimal, 0x..., or 16 hexadecimal digits"),
           ("id" = String, Path, description = "[a-z0-9][a-z0-9._-]{0,62}")),
    responses((status = 200, body = FlowView), (status = 404, body = Problem)))]
async fn get_flow(State(controller): Shared, Path((dpid, id)): Path<(String, String)>) -> Answer<FlowView> {
    let dpid = parse_dpid(&dpid)?;
    let desired = controller.desired();
    let flow = desired.flows.get(&(dpid, id.clone())).ok_or_else(|| no_flow(dpid, &id))?;
    Ok((StatusCode::OK, Json(flow_view(&controller, dpid, &id, flow))))
}

fn no_flow(dpid: Dpid, id: &str) -> Problem {
    Problem::not_found(format!("switch {dpid} has no static flow {id}"))
}

/// Makes a static flow, or makes it another. It is in the switch for as long as it is here: it has no timeouts.
#[utoipa::path(put, path = "/v1/switches/{dpid}/flows/{id}", tag = "flows", request_body = FlowDocument,
    params(("dpid" = String, Path, description = "decimal, 0x..., or 16 hexadecimal digits"),
           ("id" = String, Path, description = "[a-z0-9][a-z0-9._-]{0,62}")),
    responses((status = 200, body = FlowView, description = "in the switch"),
              (status = 202, body = FlowView, description = "stored; the switch gets it when it can"),
              (status = 400, body = Problem, description = "everything that is wrong with it"),
              (status = 409, body = Problem, description = "another flow has the same table, priority and match"),
              (status = 422, body = Refused, description = "the switch refused it; nothing is changed")))]
async fn put_flow(
    State(controller): Shared,
    Path((dpid, id)): Path<(String, String)>,
    JsonBody(body): JsonBody,
) -> Answer<FlowView> {
    let dpid = parse_dpid(&dpid)?;
    let title = format!("flow {id} of switch {dpid} cannot be set");
    let flow = read(("id", &id), &title, body, FlowSpec::from_json)?;
    let progress = controller
        .set_flow(dpid, &id, Some(flow.clone()))
        .await
        .map_err(|error| change_error(title, error))?;
    Ok((status_of([&progress]), Json(FlowView::new(dpid, &id, &flow, &progress))))
}

/// Deletes a static flow.
#[utoipa::path(delete, path = "/v1/switches/{dpid}/flows/{id}", tag = "flows",
    params(("dpid" = String, Path, description = "decimal, 0x..., or 16 hexadecimal digits"),
           ("id" = String, Path, description = "[a-z0-9][a-z0-9._-]{0,62}")),
    responses((status = 200, body = FlowView, description = "gone from the switch"),
              (status = 202, body = FlowView, description = "the switch is told when it can be"),
              (status = 404, body = Problem)))]
async fn delete_flow(
    State(controller): Shared,
    Path((dpid, id)): Path<(String, String)>,
) -> Answer<FlowView> {
    let dpid = parse_dpid(&dpid)?;
    let flow =
        controller.desired().flows.get(&(dpid, id.clone())).cloned().ok_or_else(|| no_flow(dpid, &id))?;
    let title = format!("flow {id} of switch {dpid} cannot be deleted");
    let progress = controller.set_flow(dpid, &id, None).await.map_err(|error| change_error(title, error))?;
    Ok((status_of([&progress]), Json(FlowView::new(dpid, &id, &flow, &progress))))
}

/// The networks.
#[utoipa::path(get, path = "/v1/networks", tag = "networks", responses((status = 200, body = NetworkList)))]
async fn list_networks(State(controller): Shared) -> Json<NetworkList> {
    let desired = controller.desired();
    let networks =
        desired.networks.iter().map(|(name, network)| network_view(&controller, name, network)).collect();
    Json(NetworkList { networks })
}

fn network_view(controller: &Controller, name: &str, network: &Network) -> NetworkView {
    let subject = Subject::Network(name.to_owned());
    let progress =
        network.switches().into_iter().map(|dpid| (dpid, controller.progress(&subject, dpid))).collect();
    NetworkView::new(name, network, &progress)
}

/// A network.
#[utoipa::path(get, path = "/v1/networks/{name}", tag = "networks",
    params(("name" = String, Path, description = "[a-z0-9][a-z0-9._-]{0,62}")),
    responses((status = 200, body = NetworkView), (status = 404, body = Problem)))]
async fn get_network(State(controller): Shared, Path(name): Path<String>) -> Answer<NetworkView> {
    let desired = controller.desired();
    let network = desired.networks.get(&name).ok_or_else(|| no_network(&name))?;
    Ok((StatusCode::OK, Json(network_view(&controller, &name, network))))
}

fn no_network(name: &str) -> Problem {
    Problem::not_found(format!("there is no network {name}"))
}

/// Makes a network, or makes it another. Its ports reach each other and nobody else.
#[utoipa::path(put, path = "/v1/networks/{name}", tag = "networks", request_body = Network,
    params(("name" = String, Path, description = "[a-z0-9][a-z0-9._-]{0,62}")),
    responses((status = 200, body = NetworkView, description = "in all its switches"),
              (status = 202, body = NetworkView, description = "stored; some switch or port is not there yet"),
              (status = 400, body = Problem, description = "everything that is wrong with it"),
              (status = 409, body = Problem, description = "its VLAN or a port belongs to another network"),
              (status = 422, body = Refused, description = "a switch refused it; nothing is changed")))]
async fn put_network(
    State(controller): Shared,
    Path(name): Path<String>,
    JsonBody(body): JsonBody,
) -> Answer<NetworkView> {
    let title = format!("network {name} cannot be set");
    let network = read(("name", &name), &title, body, Network::from_json)?;
    let progress = controller
        .set_network(&name, Some(network.clone()))
        .await
        .map_err(|error| change_error(title, error))?;
    Ok((status_of(progress.values()), Json(NetworkView::new(&name, &network, &progress))))
}

/// Deletes a network.
#[utoipa::path(delete, path = "/v1/networks/{name}", tag = "networks",
    params(("name" = String, Path, description = "[a-z0-9][a-z0-9._-]{0,62}")),
    responses((status = 200, body = NetworkView, description = "gone from all switches"),
              (status = 202, body = NetworkView, description = "some switch is told when it can be"),
              (status = 404, body = Problem)))]
async fn delete_network(State(controller): Shared, Path(name): Path<String>) -> Answer<NetworkView> {
    let network = controller.desired().networks.get(&name).cloned().ok_or_else(|| no_network(&name))?;
    let title = format!("network {name} cannot be deleted");
    let progress = controller.set_network(&name, None).await.map_err(|error| change_error(title, error))?;
    Ok((status_of(progress.values()), Json(NetworkView::new(&name, &network, &progress))))
}

/// What `method_not_allowed_fallback` and the like answer with is a [`Problem`] too.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        match self {
            ApiError::Problem(problem) => problem.into_response(),
            ApiError::Refused(refused) => refused.into_response(),
        }
    }
}
