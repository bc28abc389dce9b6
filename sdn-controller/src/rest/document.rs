//! Everything as one document, and who changed what.

use axum::extract::{Query, State};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use telemetry::Problem;
use telemetry::check::Errors;
use telemetry::http::JsonBody;

use super::{Shared, Who, change_error};
use crate::auth::Identity;
use crate::controller::Progress;
use crate::edit::Edit;
use crate::model::{Desired, Item, Kind, Subject};
use crate::views::{ApiError, PreviewView};

/// Version of the document.
const VERSION: u64 = 1;

fn whole(who: &Identity) -> Result<(), Problem> {
    let Some(tenant) = &who.tenant else { return Ok(()) };
    let title = format!("{} is confined to tenant {tenant}", who.name);
    let detail = "the document and the audit log are of all tenants";
    Err(Problem::new(axum::http::StatusCode::FORBIDDEN, title).detail(detail))
}

/// Everything that is wanted.
pub fn write(desired: &Desired) -> Value {
    let mut document = Map::new();
    document.insert("version".into(), json!(VERSION));
    for &kind in Kind::ALL {
        let mut things = Map::new();
        for subject in desired.subjects_of(kind) {
            if let Some((_, item)) = desired.get(&subject) {
                things.insert(subject.name.clone(), item.to_json());
            }
        }
        if !things.is_empty() {
            document.insert(kind.plural().into(), things.into());
        }
    }
    document.into()
}

/// Reads a document; everything wrong with it goes to `errors`.
pub fn read(value: Value, errors: &mut Errors) -> Vec<(Subject, Item)> {
    let Value::Object(mut document) = value else {
        errors.add("", value, "not a table of kinds", "see GET /v1/document");
        return vec![];
    };
    match document.remove("version").unwrap_or(json!(VERSION)) {
        version if version == json!(VERSION) => {}
        other => errors.add("version", other, "not known", format!("give {VERSION}")),
    }
    let mut things = Vec::new();
    for &kind in Kind::ALL {
        let of_kind = match document.remove(kind.plural()) {
            None | Some(Value::Null) => continue,
            Some(Value::Object(things)) => things,
            Some(other) => {
                errors.add(
                    kind.plural(),
                    other,
                    "not a table of names",
                    "give names and what they stand for",
                );
                continue;
            }
        };
        for (name, value) in of_kind {
            let path = format!("{}.{name}", kind.plural());
            let mut of_one = Errors::new();
            let item = Item::from_json(kind, value, &mut of_one);
            let subject = Subject::new(kind, &name);
            match (kind, subject.flow_key()) {
                (Kind::Flow, Some((dpid, id))) => {
                    of_one.name("", &id);
                    things.extend(item.map(|item| (Subject::flow(dpid, &id), item)));
                }
                (Kind::Flow, None) => {
                    of_one.add("", &name, "no switch and id", "write 1/web for flow web of switch 1")
                }
                _ => {
                    of_one.name("", &name);
                    things.extend(item.map(|item| (subject, item)));
                }
            }
            for error in of_one.list() {
                let field = [path.as_str(), error.field.as_str()].join(".");
                errors.add(field.trim_end_matches('.'), &error.value, &error.detail, &error.remedy);
            }
        }
    }
    for (key, value) in document {
        let kinds: Vec<_> = Kind::ALL.iter().map(|kind| kind.plural()).collect();
        errors.add(key, value, "unknown key", format!("the keys are version, {}", kinds.join(", ")));
    }
    things
}

/// Everything that is wanted, to be kept and given back.
pub async fn export(State(controller): Shared, Extension(who): Who) -> Result<Json<Value>, ApiError> {
    whole(&who)?;
    Ok(Json(write(&controller.desired())))
}

/// How a document is meant.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Apply {
    dry_run: bool,
    /// Leave alone what is not in the document.
    merge: bool,
}

/// Makes everything as in the document, all of it or nothing.
pub async fn apply(
    State(controller): Shared,
    Extension(who): Who,
    Query(query): Query<Apply>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    whole(&who)?;
    let title = "the document cannot be applied";
    let mut errors = Errors::new();
    let things = read(body, &mut errors);
    let things = errors.into_result(title, things)?;
    let edit = Edit::document(things, !query.merge, &controller.desired());
    let preview = controller.preview(&edit).await.map_err(|error| change_error(title.into(), error))?;
    if query.dry_run {
        return Ok(Json(PreviewView::new(&preview)).into_response());
    }
    let progress = controller.change(&who, &edit).await.map_err(|error| change_error(title.into(), error))?;
    let state = |progress: &Progress| match progress {
        Progress::Applied => json!({"status": "applied"}),
        Progress::Pending(reasons) => json!({"status": "pending", "reasons": reasons}),
        Progress::Refused(_) => json!({"status": "refused"}),
    };
    let switches: Vec<_> = progress
        .iter()
        .map(|(dpid, progress)| {
            let mut value = state(progress);
            value["dpid"] = json!(dpid);
            value
        })
        .collect();
    let applied = progress.values().all(|progress| *progress == Progress::Applied);
    let status = if applied { axum::http::StatusCode::OK } else { axum::http::StatusCode::ACCEPTED };
    Ok((status, Json(json!({"changes": preview.words, "switches": switches}))).into_response())
}

/// Which records are wanted.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditQuery {
    before: Option<u64>,
    limit: Option<usize>,
}

/// Who changed what, the latest first.
pub async fn audit(
    State(controller): Shared,
    Extension(who): Who,
    Query(query): Query<AuditQuery>,
) -> Result<Json<Value>, ApiError> {
    whole(&who)?;
    let store = controller.store().await;
    let (before, limit) = (query.before.unwrap_or(u64::MAX), query.limit.unwrap_or(100).clamp(1, 1000));
    let read = tokio::task::spawn_blocking(move || store.audit(before, limit)).await;
    let records = read
        .expect("reading does not panic")
        .map_err(|error| Problem::internal("the audit log cannot be read").detail(error.to_string()))?;
    let next = records.last().filter(|_| records.len() == limit).map(|record| record["number"].clone());
    Ok(Json(json!({"records": records, "next": next})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_read_as_it_was_written() {
        let document = json!({
            "version": 1,
            "tenants": {"t": {"description": "x"}},
            "networks": {"red": {"vlan": 10, "ports": [{"dpid": 1, "port": 1, "mode": "access"}]}},
            "flows": {"1/f": {"table": 0, "priority": 5, "match": {"in_port": 1}, "actions": [{"output": 2}]}},
        });
        let mut errors = Errors::new();
        let things = read(document.clone(), &mut errors);
        assert!(errors.is_empty(), "{errors:?}");
        let mut desired = Desired::default();
        things.into_iter().for_each(|(subject, item)| desired.set(&subject, Some(item), None));
        assert_eq!(write(&desired), document);
    }

    #[test]
    fn everything_wrong_is_told_with_its_place() {
        let wrong = json!({
            "version": 9, "nets": {}, "tenants": [],
            "networks": {"Red": {"vlan": 5000}}, "flows": {"f": {}, "1/f": {"table": 255}},
        });
        let mut errors = Errors::new();
        read(wrong, &mut errors);
        let fields: Vec<_> = errors.list().iter().map(|error| error.field.as_str()).collect();
        let expected =
            ["version", "tenants", "networks.Red.vlan", "networks.Red", "flows.1/f.table", "flows.f", "nets"];
        assert_eq!(fields, expected);
    }
}
