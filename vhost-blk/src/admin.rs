//! The admin interface: volumes over HTTP, described by OpenAPI at `/openapi.json`.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use telemetry::Problem;
use telemetry::http::JsonBody;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::image::{ExportVolume, ImportImage, read_export, read_import};
use crate::job::JobView;
use crate::spec::{CreateVolume, ForkVolume, ResizeVolume, VolumeView, read_create, read_fork, read_resize};
use crate::tier::check::CheckView;
use crate::tier::explain::{CELLS_MAX, DifferenceView, HeatView, PlaceView};
use crate::tier::limits::{SetLimits, SetPin, SetTenant, read_limits, read_pin, read_tenant};
use crate::tier::spec::{self as pools, CreatePool, ExtendPool, OpenPool, PoolView};
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
        .routes(routes!(fork))
        .routes(routes!(list_pools, create_pool))
        .routes(routes!(show_pool, delete_pool))
        .routes(routes!(open_pool))
        .routes(routes!(drain_pool))
        .routes(routes!(extend_pool))
        .routes(routes!(import_image))
        .routes(routes!(export_volume))
        .routes(routes!(set_tenant))
        .routes(routes!(check_pool))
        .routes(routes!(pin))
        .routes(routes!(set_limits))
        .routes(routes!(explain))
        .routes(routes!(heat))
        .routes(routes!(differences))
        .routes(routes!(list_jobs))
        .routes(routes!(show_job, cancel_job))
        .split_for_parts();
    router.route("/openapi.json", get(async || Json(description))).with_state(volumes)
}

/// Runs what blocks on files and workers beside the threads that serve requests. Refused until the volumes of an earlier
/// run are back, so that nobody takes a daemon that starts for one that has nothing.
async fn blocking<R: Send + 'static>(
    volumes: Arc<Volumes>,
    work: impl FnOnce(&Volumes) -> R + Send + 'static,
) -> Result<R, Problem> {
    volumes.workers()?;
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
    let new = read_create(body)?;
    let view = blocking(volumes, move |volumes| volumes.create(new)).await??;
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

/// Stop serving a volume and forget it; its data stay, but those in a pool are deleted. A file that was adopted stays as it is.
#[utoipa::path(delete, path = "/v1/volumes/{name}", params(("name" = String, Path), Force), responses(
    (status = 204),
    (status = 404, body = Problem),
    (status = 409, description = "It was adopted, and its file does not hold all of it", body = Problem),
))]
async fn delete(
    State(volumes): State<Arc<Volumes>>,
    Path(name): Path<String>,
    force: Result<Query<Force>, QueryRejection>,
) -> Result<StatusCode, Problem> {
    let Force { force } = query(force)?;
    blocking(volumes, move |volumes| volumes.delete(&name, force)).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// Make a snapshot or clone of a volume in a pool.
#[utoipa::path(post, path = "/v1/volumes/{name}/copies", params(("name" = String, Path)), request_body = ForkVolume,
    responses(
        (status = 201, body = VolumeView),
        (status = 400, description = "All that is wrong with the request", body = Problem),
        (status = 404, body = Problem),
        (status = 409, description = "There is a volume of that name, or the volume is in no pool", body = Problem),
    ))]
async fn fork(
    State(volumes): State<Arc<Volumes>>,
    Path(name): Path<String>,
    JsonBody(body): JsonBody,
) -> Result<(StatusCode, Json<VolumeView>), Problem> {
    let new = read_fork(&name, body)?;
    let view = blocking(volumes, move |volumes| volumes.fork(&name, new)).await??;
    Ok((StatusCode::CREATED, Json(view)))
}

/// All pools.
#[utoipa::path(get, path = "/v1/pools", responses((status = 200, body = [PoolView])))]
async fn list_pools(State(volumes): State<Arc<Volumes>>) -> Result<Json<Vec<PoolView>>, Problem> {
    blocking(volumes, Volumes::pools).await.map(Json)
}

/// Make a pool.
#[utoipa::path(post, path = "/v1/pools", request_body = CreatePool, responses(
    (status = 201, body = PoolView),
    (status = 400, description = "All that is wrong with the request or its devices", body = Problem),
    (status = 409, description = "There is a pool of that name", body = Problem),
))]
async fn create_pool(
    State(volumes): State<Arc<Volumes>>,
    JsonBody(body): JsonBody,
) -> Result<(StatusCode, Json<PoolView>), Problem> {
    let new = pools::read_create(body)?;
    let view = blocking(volumes, move |volumes| volumes.create_pool(&new)).await??;
    Ok((StatusCode::CREATED, Json(view)))
}

/// One pool.
#[utoipa::path(get, path = "/v1/pools/{name}", params(("name" = String, Path)), responses(
    (status = 200, body = PoolView),
    (status = 404, body = Problem),
))]
async fn show_pool(
    State(volumes): State<Arc<Volumes>>,
    Path(name): Path<String>,
) -> Result<Json<PoolView>, Problem> {
    blocking(volumes, move |volumes| volumes.pool(&name)).await?.map(Json)
}

/// Forget a pool without volumes; its devices are left alone.
#[utoipa::path(delete, path = "/v1/pools/{name}", params(("name" = String, Path)), responses(
    (status = 204),
    (status = 404, body = Problem),
    (status = 409, description = "It has volumes", body = Problem),
))]
async fn delete_pool(
    State(volumes): State<Arc<Volumes>>,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    blocking(volumes, move |volumes| volumes.delete_pool(&name)).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// Open a pool that failed, once what was missing is back, or without its hot tier.
#[utoipa::path(post, path = "/v1/pools/{name}/open", params(("name" = String, Path)), request_body = OpenPool,
    responses(
        (status = 200, body = PoolView),
        (status = 400, description = "All that is wrong with the request", body = Problem),
        (status = 404, body = Problem),
        (status = 409, description = "It is open, or cannot be opened", body = Problem),
    ))]
async fn open_pool(
    State(volumes): State<Arc<Volumes>>,
    Path(name): Path<String>,
    JsonBody(body): JsonBody,
) -> Result<Json<PoolView>, Problem> {
    let degraded = pools::read_open(&name, body)?;
    blocking(volumes, move |volumes| volumes.open_pool(&name, degraded)).await?.map(Json)
}

/// Begin to write back all that is only on the hot tier of a pool.
#[utoipa::path(post, path = "/v1/pools/{name}/drain", params(("name" = String, Path)), responses(
    (status = 202, description = "It has begun", body = JobView),
    (status = 404, body = Problem),
    (status = 409, description = "It is not open or read-only, or is being drained", body = Problem),
))]
async fn drain_pool(
    State(volumes): State<Arc<Volumes>>,
    Path(name): Path<String>,
) -> Result<(StatusCode, Json<JobView>), Problem> {
    let job = blocking(volumes, move |volumes| volumes.drain_pool(&name)).await??;
    Ok((StatusCode::ACCEPTED, Json(job)))
}

/// Begin to make a golden image, a read-only volume in a pool, of a raw or qcow2 image.
#[utoipa::path(post, path = "/v1/images", request_body = ImportImage, responses(
    (status = 202, description = "It has begun", body = JobView),
    (status = 400, description = "All that is wrong with the request, or the image cannot be used", body = Problem),
    (status = 404, body = Problem),
    (status = 409, description = "There is a volume of that name, or the pool has no space", body = Problem),
))]
async fn import_image(
    State(volumes): State<Arc<Volumes>>,
    JsonBody(body): JsonBody,
) -> Result<(StatusCode, Json<JobView>), Problem> {
    let new = read_import(body)?;
    let of_job = volumes.clone();
    let job = blocking(volumes, move |_| of_job.import_image(new)).await??;
    Ok((StatusCode::ACCEPTED, Json(job)))
}

/// Begin to write a volume in a pool, as it is now, to a raw or qcow2 image.
#[utoipa::path(post, path = "/v1/volumes/{name}/export", params(("name" = String, Path)),
    request_body = ExportVolume, responses(
    (status = 202, description = "It has begun", body = JobView),
    (status = 400, description = "All that is wrong with the request, or the file cannot be made", body = Problem),
    (status = 404, body = Problem),
    (status = 409, description = "It is in no open pool, or there is no room for the file", body = Problem),
))]
async fn export_volume(
    State(volumes): State<Arc<Volumes>>,
    Path(name): Path<String>,
    JsonBody(body): JsonBody,
) -> Result<(StatusCode, Json<JobView>), Problem> {
    let new = read_export(&name, body)?;
    let of_job = volumes.clone();
    let job = blocking(volumes, move |_| of_job.export_volume(new)).await??;
    Ok((StatusCode::ACCEPTED, Json(job)))
}

/// The jobs that run, and the last ones that ended.
#[utoipa::path(get, path = "/v1/jobs", responses((status = 200, body = [JobView])))]
async fn list_jobs(State(volumes): State<Arc<Volumes>>) -> Json<Vec<JobView>> {
    Json(volumes.jobs().list())
}

/// One job.
#[utoipa::path(get, path = "/v1/jobs/{id}", params(("id" = u64, Path)), responses(
    (status = 200, body = JobView),
    (status = 404, body = Problem),
))]
async fn show_job(
    State(volumes): State<Arc<Volumes>>,
    Path(id): Path<u64>,
) -> Result<Json<JobView>, Problem> {
    volumes.jobs().show(id).map(Json)
}

/// Cancel a job; it ends within a moment.
#[utoipa::path(delete, path = "/v1/jobs/{id}", params(("id" = u64, Path)), responses(
    (status = 202, body = JobView),
    (status = 404, body = Problem),
))]
async fn cancel_job(
    State(volumes): State<Arc<Volumes>>,
    Path(id): Path<u64>,
) -> Result<(StatusCode, Json<JobView>), Problem> {
    volumes.jobs().cancel(id).map(|job| (StatusCode::ACCEPTED, Json(job)))
}

/// Make a pool larger: more devices, or more of those it has.
#[utoipa::path(post, path = "/v1/pools/{name}/devices", params(("name" = String, Path)), request_body = ExtendPool,
    responses(
        (status = 200, body = PoolView),
        (status = 400, description = "All that is wrong with the request or its devices", body = Problem),
        (status = 404, body = Problem),
        (status = 409, description = "It is not open or read-only, or cannot grow", body = Problem),
    ))]
async fn extend_pool(
    State(volumes): State<Arc<Volumes>>,
    Path(name): Path<String>,
    JsonBody(body): JsonBody,
) -> Result<Json<PoolView>, Problem> {
    let more = pools::read_extend(&name, body)?;
    blocking(volumes, move |volumes| volumes.extend_pool(&name, &more)).await?.map(Json)
}

/// Set how much a tenant's volumes in a pool may write together.
#[utoipa::path(put, path = "/v1/pools/{name}/tenants/{tenant}", params(("name" = String, Path), ("tenant" = String, Path)),
    request_body = SetTenant, responses(
        (status = 200, body = PoolView),
        (status = 400, description = "All that is wrong with the request", body = Problem),
        (status = 404, body = Problem),
        (status = 409, description = "The pool is not open, or read-only", body = Problem),
    ))]
async fn set_tenant(
    State(volumes): State<Arc<Volumes>>,
    Path((name, tenant)): Path<(String, String)>,
    JsonBody(body): JsonBody,
) -> Result<Json<PoolView>, Problem> {
    let quota = read_tenant(&tenant, body)?;
    blocking(volumes, move |volumes| volumes.set_tenant(&name, &tenant, quota)).await?.map(Json)
}

/// Say where a volume's data, or a part of them, are to be.
#[utoipa::path(post, path = "/v1/volumes/{name}/pin", params(("name" = String, Path)), request_body = SetPin,
    responses(
        (status = 200, body = VolumeView),
        (status = 400, description = "All that is wrong with the request", body = Problem),
        (status = 404, body = Problem),
        (status = 409, description = "It is in no pool, or in one that is not open or read-only", body = Problem),
    ))]
async fn pin(
    State(volumes): State<Arc<Volumes>>,
    Path(name): Path<String>,
    JsonBody(body): JsonBody,
) -> Result<Json<VolumeView>, Problem> {
    let (pin, range) = read_pin(&name, body)?;
    blocking(volumes, move |volumes| volumes.pin(&name, pin, range)).await?.map(Json)
}

/// Change what a volume in a pool may use.
#[utoipa::path(post, path = "/v1/volumes/{name}/limits", params(("name" = String, Path)), request_body = SetLimits,
    responses(
        (status = 200, body = VolumeView),
        (status = 400, description = "All that is wrong with the request", body = Problem),
        (status = 404, body = Problem),
        (status = 409, description = "It is in no pool, or the pool cannot promise that", body = Problem),
    ))]
async fn set_limits(
    State(volumes): State<Arc<Volumes>>,
    Path(name): Path<String>,
    JsonBody(body): JsonBody,
) -> Result<Json<VolumeView>, Problem> {
    let limits = read_limits(&name, body)?;
    blocking(volumes, move |volumes| volumes.set_limits(&name, &limits)).await?.map(Json)
}

#[derive(serde::Deserialize, utoipa::IntoParams)]
struct At {
    /// A byte of the volume.
    offset: u64,
}

#[derive(serde::Deserialize, utoipa::IntoParams)]
struct Cells {
    /// Cells at most, 1 to 4096; 1024 when absent.
    cells: Option<u64>,
}

#[derive(serde::Deserialize, utoipa::IntoParams)]
struct With {
    /// Name of the other volume.
    with: String,
}

/// Where two volumes of a pool, such as two snapshots, do not share their data.
#[utoipa::path(get, path = "/v1/volumes/{name}/differences", params(("name" = String, Path), With), responses(
    (status = 200, body = Vec<DifferenceView>),
    (status = 404, body = Problem),
    (status = 409, description = "They are not in the same pool", body = Problem),
))]
async fn differences(
    State(volumes): State<Arc<Volumes>>,
    Path(name): Path<String>,
    with: Result<Query<With>, QueryRejection>,
) -> Result<Json<Vec<DifferenceView>>, Problem> {
    let With { with } = query(with)?;
    blocking(volumes, move |volumes| volumes.differences(&name, &with)).await?.map(Json)
}

#[derive(serde::Deserialize, utoipa::IntoParams)]
struct Force {
    /// Also one that was adopted and whose file does not hold all of it; false when absent.
    #[serde(default)]
    force: bool,
}

fn query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Problem> {
    let title = "the request's query cannot be read";
    query
        .map(|Query(query)| query)
        .map_err(|error| Problem::invalid(title, Vec::new()).detail(error.body_text()))
}

/// Where a byte of a volume is, and why.
#[utoipa::path(get, path = "/v1/volumes/{name}/explain", params(("name" = String, Path), At), responses(
    (status = 200, body = PlaceView),
    (status = 404, body = Problem),
    (status = 409, description = "It is in no pool, or has no such byte", body = Problem),
))]
async fn explain(
    State(volumes): State<Arc<Volumes>>,
    Path(name): Path<String>,
    at: Result<Query<At>, QueryRejection>,
) -> Result<Json<PlaceView>, Problem> {
    let At { offset } = query(at)?;
    blocking(volumes, move |volumes| volumes.explain(&name, offset)).await?.map(Json)
}

/// Where the data of a volume are, cell by cell.
#[utoipa::path(get, path = "/v1/volumes/{name}/heat", params(("name" = String, Path), Cells), responses(
    (status = 200, body = HeatView),
    (status = 404, body = Problem),
    (status = 409, description = "It is in no pool", body = Problem),
))]
async fn heat(
    State(volumes): State<Arc<Volumes>>,
    Path(name): Path<String>,
    cells: Result<Query<Cells>, QueryRejection>,
) -> Result<Json<HeatView>, Problem> {
    let cells = query(cells)?.cells.unwrap_or(1024).min(CELLS_MAX);
    blocking(volumes, move |volumes| volumes.heat(&name, cells)).await?.map(Json)
}

/// Check the metadata of a pool on its devices; guests go on meanwhile.
#[utoipa::path(post, path = "/v1/pools/{name}/check", params(("name" = String, Path)), responses(
    (status = 200, description = "What was found, perhaps nothing", body = CheckView),
    (status = 404, body = Problem),
))]
async fn check_pool(
    State(volumes): State<Arc<Volumes>>,
    Path(name): Path<String>,
) -> Result<Json<CheckView>, Problem> {
    blocking(volumes, move |volumes| volumes.check_pool(&name)).await?.map(Json)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody takes a daemon that starts for one without volumes.
    #[tokio::test]
    async fn a_daemon_that_starts_does_not_say_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let state = telemetry::state::StateDir::open(dir.path()).unwrap();
        let volumes = Arc::new(Volumes::empty(state, dir.path().into(), telemetry::Registry::new()));
        let refused = [
            list(State(volumes.clone())).await.err(),
            list_pools(State(volumes.clone())).await.err(),
            show_pool(State(volumes.clone()), Path("p".into())).await.err(),
        ];
        for problem in refused {
            assert_eq!(problem.map(|problem| problem.status), Some(503));
        }
    }
}
