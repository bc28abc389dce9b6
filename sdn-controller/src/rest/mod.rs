//! The REST interface: routes, answers, and the OpenAPI description made from them.

mod describe;
mod document;
mod events;
mod objects;
mod page;
mod ryu;
mod stats;
mod switches;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{ConnectInfo, DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, get, put};
use axum::{Extension, Json, Router};
use telemetry::Problem;
use telemetry::http::{AdminSocket, Peer, ServeError};

use crate::auth::{Identity, Role};
use crate::controller::{ChangeError, Controller};
use crate::model::Kind;
use crate::views::{ApiError, RefusedView};

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
        .route("/v1/audit", get(document::audit));
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

/// Whoever looks needs less than whoever changes.
async fn permit(Extension(who): Who, request: Request, next: Next) -> Response {
    let needed = if request.method().is_safe() { Role::Read } else { Role::Operate };
    if who.role < needed {
        let title = format!("{} may not {} {}", who.name, request.method(), request.uri().path());
        let problem = Problem::new(StatusCode::FORBIDDEN, title);
        return problem.detail(format!("the role {needed:?} is needed").to_lowercase()).into_response();
    }
    next.run(request).await
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
