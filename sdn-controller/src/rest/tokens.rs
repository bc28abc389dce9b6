//! Tokens: who has one, new ones, and their end.

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};
use telemetry::Problem;
use telemetry::check::{Errors, Fields};
use telemetry::http::JsonBody;

use super::{Shared, Who};
use crate::auth::{Grant, Role};
use crate::views::ApiError;

/// The tokens, without their texts: those are not known.
pub async fn list(State(controller): Shared) -> Json<Value> {
    let tokens: Vec<_> = controller.tokens().list().into_values().collect();
    Json(json!({"tokens": tokens}))
}

/// Makes a token; the answer is the one place where its text is told.
pub async fn make(
    State(controller): Shared,
    Extension(who): Who,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let title = "the token cannot be made";
    let mut errors = Errors::new();
    let mut fields = Fields::new("", body, &mut errors);
    let name = fields.required::<String>("name", "a name").unwrap_or_default();
    let role = fields.required::<String>("role", "read, operate or admin").unwrap_or_default();
    let tenant = fields.optional::<String>("tenant", "the name of a tenant");
    fields.finish();
    if !name.is_empty() {
        errors.name("name", &name);
    }
    let parsed = role.parse::<Role>();
    if let (Err(detail), false) = (&parsed, role.is_empty()) {
        errors.add("role", &role, *detail, "give read, operate or admin");
    }
    if let Some(tenant) = &tenant {
        if parsed == Ok(Role::Admin) {
            errors.add("role", &role, "is over all tenants", "give read or operate, or no tenant");
        }
        if !controller.desired().tenants.contains_key(tenant) {
            errors.add("tenant", tenant, "there is no such tenant", "see GET /v1/tenants");
        }
    }
    errors.into_result(title, ())?;
    let Ok(role) = parsed else { return Err(Problem::internal(title).into()) };
    let made = controller.make_token(&who, &name, Grant { role, tenant: tenant.clone() }).await;
    let made = made.map_err(|error| Problem::internal(title).detail(error.to_string()))?;
    let Some(text) = made else {
        return Err(Problem::conflict(title).detail(format!("there is a token {name} already")).into());
    };
    let view = json!({"name": name, "role": role, "tenant": tenant, "token": text});
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], Json(view)).into_response())
}

/// Ends a token; from the answer on nobody gets in with it.
pub async fn delete(
    State(controller): Shared,
    Extension(who): Who,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let title = format!("token {name} cannot be deleted");
    let gone = controller.delete_token(&who, &name).await;
    if gone.map_err(|error| Problem::internal(title).detail(error.to_string()))? {
        return Ok(Json(json!({"name": name, "status": "deleted"})));
    }
    Err(Problem::not_found(format!("there is no token {name}")).into())
}

/// Who asks, as the controller knows them.
pub async fn whoami(Extension(who): Who) -> Json<Value> {
    Json(json!({"name": who.name, "from": who.from, "role": who.role, "tenant": who.tenant}))
}
