//! The admin interface: volumes over HTTP, described by OpenAPI at `/openapi.json`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use telemetry::Problem;
use telemetry::http::JsonBody;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::spec::{CreateVolume, ResizeVolume, VolumeView, read_create, read_resize};
use crate::volume::Volumes;

#[derive(OpenApi)]
#[openapi(info(title = "Sluice storage daemon", description = "Volumes served to guests over vhost-user."))]
struct Description;

/// The routes of the storage daemon.
pub fn router(volumes: Arc<Volumes>) -> Router {
    let (router, description) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(list, create))
        .routes(routes!(show, resize, delete))
        .routes(routes!(reopen))
        .split_for_parts();
    router.route("/openapi.json", get(async || Json(description))).with_state(volumes)
}

/// Runs what blocks on files and workers beside the threads that serve requests.
async fn blocking<R: Send + 'static>(
    volumes: Arc<Volumes>,
    work: impl FnOnce(&Volumes) -> R + Send + 'static,
) -> Result<R, Problem> {
    tokio::task::spawn_blocking(move || work(&volumes))
        .await
        .map_err(|error| Problem::internal("the request could not be carried out").detail(error.to_string()))
}

/// All volumes.
#[utoipa::path(get, path = "/v1/volumes", responses((status = 200, body = [VolumeView])))]
async fn list(State(volumes): State<Arc<Volumes>>) -> Result<Json<Vec<VolumeView>>, Problem> {
    blocking(volumes, Volumes::list).await.map(Json)
}

/// Make a volume.
#[utoipa::path(post, path = "/v1/volumes", request_body = CreateVolume, responses(
    (status = 201, body = VolumeView),
    (status = 400, description = "All that is wrong with the request", body = Problem),
    (status = 409, description = "There is a volume of that name", body = Problem),
))]
async fn create(
    State(volumes): State<Arc<Volumes>>,
    JsonBody(body): JsonBody,
) -> Result<(StatusCode, Json<VolumeView>), Problem> {
    let spec = read_create(body)?;
    let view = blocking(volumes, move |volumes| volumes.create(spec)).await??;
    Ok((StatusCode::CREATED, Json(view)))
}

/// One volume.
#[utoipa::path(get, path = "/v1/volumes/{name}", params(("name" = String, Path)), responses(
    (status = 200, body = VolumeView),
    (status = 404, body = Problem),
))]
async fn show(
    State(volumes): State<Arc<Volumes>>,
    Path(name): Path<String>,
) -> Result<Json<VolumeView>, Problem> {
    blocking(volumes, move |volumes| volumes.show(&name)).await?.map(Json)
}

/// Grow a volume.
#[utoipa::path(patch, path = "/v1/volumes/{name}", params(("name" = String, Path)), request_body = ResizeVolume,
    responses(
        (status = 200, body = VolumeView),
        (status = 400, description = "All that is wrong with the request", body = Problem),
        (status = 404, body = Problem),
        (status = 409, description = "The volume is not served", body = Problem),
    ))]
async fn resize(
    State(volumes): State<Arc<Volumes>>,
    Path(name): Path<String>,
    JsonBody(body): JsonBody,
) -> Result<Json<VolumeView>, Problem> {
    let resize = move |volumes: &Volumes| {
        let size_bytes = read_resize(&name, volumes.block_bytes(&name)?, body)?;
        volumes.resize(&name, size_bytes)
    };
    blocking(volumes, resize).await?.map(Json)
}

/// Open the file or device of a volume again: one that failed, or that refuses writes since a flush failed.
#[utoipa::path(post, path = "/v1/volumes/{name}/reopen", params(("name" = String, Path)), responses(
    (status = 200, body = VolumeView),
    (status = 400, description = "It cannot be opened", body = Problem),
    (status = 404, body = Problem),
    (status = 409, description = "It is served as it should be", body = Problem),
))]
async fn reopen(
    State(volumes): State<Arc<Volumes>>,
    Path(name): Path<String>,
) -> Result<Json<VolumeView>, Problem> {
    blocking(volumes, move |volumes| volumes.reopen(&name)).await?.map(Json)
}

/// Stop serving a volume and forget it; its data stay.
#[utoipa::path(delete, path = "/v1/volumes/{name}", params(("name" = String, Path)), responses(
    (status = 204),
    (status = 404, body = Problem),
))]
async fn delete(
    State(volumes): State<Arc<Volumes>>,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    blocking(volumes, move |volumes| volumes.delete(&name)).await??;
    Ok(StatusCode::NO_CONTENT)
}
