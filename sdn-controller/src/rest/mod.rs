//! The REST interface: routes, answers, and the OpenAPI description made from them.

mod access;
mod describe;
mod document;
mod door;
mod events;
mod listen;
mod objects;
mod page;
mod ryu;
mod stats;
mod switches;
mod tokens;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{ConnectInfo, DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::{MethodRouter, get, put};
use axum::{Extension, Json, Router};
use telemetry::Problem;
use telemetry::http::{AdminSocket, Peer, ServeError};

use crate::auth::Identity;
use crate::controller::{ChangeError, Controller};
use crate::model::Kind;
use crate::views::{ApiError, RefusedView};

use access::{Denied, Rule};
pub use door::RestConfig;
use door::{Door, Refused};
use listen::{Caller, RestListener};

/// Bytes of a request body at most.
const BODY_BYTES_MAX: usize = 64 << 20;

type Shared = State<Arc<Controller>>;
type Who = Extension<Identity>;

/// The routes, and `/openapi.json`. Each request is to carry an [`Identity`] as an extension.
pub fn router(controller: Arc<Controller>) -> Router {
    let description = Json(describe::openapi());
    let mut router = Router::new()
        .route("/openapi.json", get(async move || description))
        .route("/v1/switches", get(switches::list))
        .route("/v1/switches/{dpid}/ports", get(switches::ports))
        .route("/v1/switches/{dpid}/port-stats", get(switches::port_stats))
        .route("/v1/switches/{dpid}/entries", get(switches::entries))
        .route("/v1/switches/{dpid}/flows", get(objects::list_flows))
        .route("/v1/switches/{dpid}/flows/{id}", objects::flow_routes())
        .route("/v1/addresses", get(switches::addresses))
        .route("/v1/counters", get(switches::counters))
        .route("/v1/topology", get(switches::topology))
        .route("/v1/document", get(document::export).merge(put(document::apply)))
        .route("/v1/events", get(events::stream))
        .route("/v1/audit", get(document::audit))
        .route("/v1/tokens", get(tokens::list).post(tokens::make))
        .route("/v1/tokens/{name}", axum::routing::delete(tokens::delete))
        .route("/v1/whoami", get(tokens::whoami));
    for &kind in Kind::ALL.iter().filter(|kind| **kind != Kind::Flow) {
        let (many, one): (MethodRouter<_>, MethodRouter<_>) = objects::routes(kind);
        let path = format!("/v1/{}", kind.plural());
        router = router.route(&path, many).route(&format!("{path}/{{name}}"), one);
    }
    telemetry::http::answer_problems(router.merge(page::routes()).merge(stats::routes()))
        .layer(middleware::from_fn(permit))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(controller.clone(), count))
        .with_state(controller)
}

/// Serves REST on `<run_dir>/controller.admin.sock`, to whom its mode lets in; who it is is told by the kernel.
///
/// # Errors
/// The socket cannot be had.
pub async fn serve_socket(
    run_dir: &std::path::Path,
    controller: Arc<Controller>,
) -> Result<telemetry::http::Server, ServeError> {
    let path = run_dir.join("controller.admin.sock");
    let failed = |source| ServeError::Socket { attempt: "make the directory of", path: path.clone(), source };
    std::fs::create_dir_all(run_dir).map_err(failed)?;
    let router = router(controller).layer(middleware::from_fn(name_peer));
    telemetry::http::serve_admin(AdminSocket::new(path), router).await
}

async fn name_peer(ConnectInfo(peer): ConnectInfo<Peer>, mut request: Request, next: Next) -> Response {
    let process = peer.pid.map_or("a process".to_owned(), |pid| format!("process {pid}"));
    request.extensions_mut().insert(Identity::local(format!("user {}", peer.uid), process));
    next.run(request).await
}

/// Serves REST on `listener` as `config` says, until `stop` is done.
///
/// # Errors
/// The server failed.
pub async fn serve_tcp(
    listener: tokio::net::TcpListener,
    config: RestConfig,
    controller: Arc<Controller>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let (base, tls) = (config.base.clone(), config.tls.clone());
    let listener = RestListener::new(listener, tls, controller.clone())?;
    let door = Arc::new(Door { config, controller: controller.clone() });
    let router = router(controller).layer(middleware::from_fn_with_state(door, door::identify));
    // What rewrites paths has to stand before what looks at them.
    let router = Router::new().fallback_service(router).layer(middleware::from_fn_with_state(base, strip));
    let service = router.into_make_service_with_connect_info::<Caller>();
    axum::serve(listener, service).with_graceful_shutdown(stop).await
}

/// Takes the base off the path, if it is there: some proxies take it off themselves.
async fn strip(State(base): State<String>, mut request: Request, next: Next) -> Response {
    let uri = request.uri();
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if let Some(rest) = path.strip_prefix(&base).filter(|_| !base.is_empty()) {
        if rest.is_empty() {
            // The page names everything from where it is, which has to be a directory.
            return Redirect::permanent(&format!("{base}/")).into_response();
        }
        let mut parts = uri.clone().into_parts();
        if rest.starts_with('/') {
            parts.path_and_query = rest.parse().ok();
            if let Ok(uri) = Uri::from_parts(parts) {
                *request.uri_mut() = uri;
            }
        }
    }
    next.run(request).await
}

/// Lets those pass who may.
async fn permit(request: Request, next: Next) -> Response {
    if let Some(Refused(problem)) = request.extensions().get() {
        return refuse(problem.clone());
    }
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    // What is not there is told to whoever may look at anything.
    let rule = route.map_or(access::rule(&Method::GET, "/v1/whoami"), |r| access::rule(request.method(), r));
    if rule == Rule::Anybody {
        return next.run(request).await;
    }
    let (method, path) = (request.method(), request.uri().path());
    let Some(who) = request.extensions().get::<Identity>() else {
        let problem =
            Problem::new(StatusCode::UNAUTHORIZED, format!("{method} {path}: it is not known who asks"));
        return refuse(problem.detail("give `Authorization: Bearer` and a token, or show a certificate"));
    };
    let Err(denied) = rule.admits(who) else { return next.run(request).await };
    let problem = Problem::new(StatusCode::FORBIDDEN, format!("{} may not {method} {path}", who.name));
    refuse(match denied {
        Denied::Role(least) => problem.detail(format!("the role {least} is needed")),
        Denied::Tenant => problem.detail("it is of all tenants, and they are confined to one"),
    })
}

fn refuse(problem: Problem) -> Response {
    let ask = problem.status == StatusCode::UNAUTHORIZED.as_u16();
    let mut response = problem.into_response();
    if ask {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

async fn count(State(controller): Shared, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let who = request.extensions().get::<Identity>().map(|who| who.name.clone());
    let (path, begin) = (request.uri().path().to_owned(), Instant::now());
    let response = next.run(request).await;
    let status = response.status().as_u16();
    // Methods are as free as paths; only those that the routes know become labels.
    let label = match method {
        Method::GET | Method::PUT | Method::POST | Method::DELETE | Method::HEAD => method.as_str(),
        _ => "other",
    };
    controller.metrics().request(label, route.as_deref().unwrap_or("none"), status);
    if !method.is_safe() {
        let duration_ms = begin.elapsed().as_millis();
        tracing::info!(%method, path, status, duration_ms, who, "request");
    }
    response
}

fn change_error(title: String, error: ChangeError) -> ApiError {
    match error {
        ChangeError::Conflicts(conflicts) => {
            let text: Vec<_> = conflicts.iter().map(ToString::to_string).collect();
            Problem::conflict(title).detail(text.join("; ")).into()
        }
        ChangeError::Precondition(subject) => {
            let problem = Problem::new(StatusCode::PRECONDITION_FAILED, title);
            problem.detail(format!("{subject} is not as the request expects it; read it again")).into()
        }
        ChangeError::Refused(refusals) => ApiError::Refused(Box::new(RefusedView::new(title, &refusals))),
        ChangeError::Store(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "the store failed");
            Problem::internal(title).detail(error.to_string()).into()
        }
    }
}
