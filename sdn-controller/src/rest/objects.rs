//! Things that the operator wants: the same verbs for all of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, get};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use telemetry::Problem;
use telemetry::check::Errors;
use telemetry::http::JsonBody;

use super::{Shared, Who, change_error};
use crate::auth::Identity;
use crate::controller::{Controller, Progress};
use crate::edit::{Edit, Precondition, tag};
use crate::model::{Desired, Dpid, Item, Kind, Place, Subject};
use crate::views::{self, ApiError, PreviewView};

/// Things in one answer at most.
const PAGE_MAX: usize = 10_000;

/// The routes of a kind: of all things of it, and of one.
pub fn routes(kind: Kind) -> (MethodRouter<Arc<Controller>>, MethodRouter<Arc<Controller>>) {
    let many =
        get(async move |state: Shared, who: Who, page: Query<Page>| list(state, who, page, kind).await);
    let one = get(async move |state: Shared, who: Who, Path(name): Path<String>| {
        read(&state.0, &who.0, &Subject { kind, name }).await
    })
    .put(
        async move |state: Shared,
                    who: Who,
                    Path(name): Path<String>,
                    query: Query<Write>,
                    headers: HeaderMap,
                    JsonBody(body): JsonBody| {
            write(&state.0, &who.0, Subject { kind, name }, query.0, &headers, Some(body)).await
        },
    )
    .delete(
        async move |state: Shared,
                    who: Who,
                    Path(name): Path<String>,
                    query: Query<Write>,
                    headers: HeaderMap| {
            write(&state.0, &who.0, Subject { kind, name }, query.0, &headers, None).await
        },
    );
    (many, one)
}

/// The routes of one static flow.
pub fn flow_routes() -> MethodRouter<Arc<Controller>> {
    type At = Path<(String, String)>;
    get(async |state: Shared, who: Who, Path((dpid, id)): At| {
        read(&state.0, &who.0, &Subject::flow(parse_dpid(&dpid)?, &id)).await
    })
    .put(
        async |state: Shared,
               who: Who,
               Path((dpid, id)): At,
               query: Query<Write>,
               headers: HeaderMap,
               JsonBody(body): JsonBody| {
            let subject = Subject::flow(parse_dpid(&dpid)?, &id);
            write(&state.0, &who.0, subject, query.0, &headers, Some(body)).await
        },
    )
    .delete(
        async |state: Shared, who: Who, Path((dpid, id)): At, query: Query<Write>, headers: HeaderMap| {
            let subject = Subject::flow(parse_dpid(&dpid)?, &id);
            write(&state.0, &who.0, subject, query.0, &headers, None).await
        },
    )
}

/// Which part of a list is wanted.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Page {
    limit: Option<usize>,
    after: Option<String>,
    tenant: Option<String>,
    network: Option<String>,
    dpid: Option<String>,
}

/// How a change is meant.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Write {
    /// Tell what would happen, and do nothing.
    pub dry_run: bool,
}

/// Reads the number of a switch.
///
/// # Errors
/// It is none.
pub fn parse_dpid(text: &str) -> Result<Dpid, Problem> {
    text.parse().map_err(|error: crate::model::ParseDpidError| {
        let mut errors = Errors::new();
        errors.add("dpid", text, error.to_string(), "see GET /v1/switches");
        Problem::invalid("no such switch can be", errors.list().to_vec())
    })
}

/// Whether `who` may see a thing: those confined to a tenant see what is theirs, and what is everybody's.
pub fn visible(who: &Identity, desired: &Desired, subject: &Subject, item: &Item) -> bool {
    let Some(tenant) = &who.tenant else { return true };
    match (subject.kind, desired.tenant_of(item)) {
        (_, Some(owner)) => owner == tenant,
        (Kind::Acl, None) => true,
        (Kind::Tenant, None) => subject.name == *tenant,
        _ => false,
    }
}

/// Whether `who` may make this of a thing.
fn permitted(
    who: &Identity,
    desired: &Desired,
    subject: &Subject,
    item: Option<&Item>,
) -> Result<(), Problem> {
    let Some(tenant) = &who.tenant else { return Ok(()) };
    let theirs = |item: &Item| match item {
        Item::Network(network) => network.tenant.as_deref() == Some(tenant),
        Item::Acl(acl) => acl.tenant.as_deref() == Some(tenant),
        Item::Attachment(_) => desired.tenant_of(item) == Some(tenant),
        _ => false,
    };
    let before = desired.get(subject).map(|(_, item)| item);
    let refused = |detail: String| {
        let title = format!("{} may not change {subject}", who.name);
        Err(Problem::new(StatusCode::FORBIDDEN, title).detail(detail))
    };
    if !before.iter().chain(item).all(theirs) || before.is_none() && item.is_none() {
        return refused(format!("only networks, attachments and ACLs of tenant {tenant} are theirs"));
    }
    let had = before.as_ref().map(places_of).unwrap_or_default();
    let given = desired.tenants.get(tenant).map(|tenant| tenant.ports.as_slice()).unwrap_or_default();
    // What somebody else attached for them stays as it is.
    let allowed = |place: &Place| had.contains(place) || given.contains(place);
    match item.map(places_of).unwrap_or_default().into_iter().find(|place| !allowed(place)) {
        None => Ok(()),
        Some(place) => refused(format!(
            "{place} is none of tenant {tenant}: those who are confined to no tenant give it ports (`sluice tenant \
             create`), or attach them"
        )),
    }
}

/// The ports that a network or an attachment takes part by.
fn places_of(item: &Item) -> Vec<Place> {
    match item {
        Item::Network(network) => network
            .ports
            .iter()
            .map(|member| Place { dpid: member.dpid, port: member.port.clone() })
            .collect(),
        Item::Attachment(attachment) => vec![attachment.place.clone()],
        _ => vec![],
    }
}

fn none(subject: &Subject) -> Problem {
    match subject.flow_key() {
        Some((dpid, id)) => Problem::not_found(format!("switch {dpid} has no static flow {id}")),
        None => Problem::not_found(format!("there is no {subject}")),
    }
}

async fn list(
    State(controller): Shared,
    Extension(who): Who,
    Query(page): Query<Page>,
    kind: Kind,
) -> Result<Json<Value>, ApiError> {
    page_of(&controller, &who, &page, kind, controller.desired().subjects_of(kind)).map(Json)
}

fn page_of(
    controller: &Controller,
    who: &Identity,
    page: &Page,
    kind: Kind,
    subjects: Vec<Subject>,
) -> Result<Value, ApiError> {
    let (desired, layout) = (controller.desired(), controller.layout());
    let dpid = page.dpid.as_deref().map(parse_dpid).transpose()?;
    let limit = page.limit.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
    let wanted = |subject: &Subject, item: &Item| {
        let of_network = |name: &String| match item {
            Item::Attachment(attachment) => attachment.network == *name,
            Item::Chain(chain) => chain.network == *name,
            _ => subject.kind == Kind::Network && subject.name == *name,
        };
        visible(who, &desired, subject, item)
            && page.tenant.as_deref().is_none_or(|tenant| desired.tenant_of(item) == Some(tenant))
            && page.network.as_ref().is_none_or(of_network)
            && dpid.is_none_or(|dpid| layout.switches_of(subject).contains(&dpid))
    };
    let later = |subject: &&Subject| {
        page.after
            .as_ref()
            .is_none_or(|after| subject.flow_key().map_or(&subject.name, |_| &subject.name) > after)
    };
    let mut found = Vec::new();
    let mut next = None;
    for subject in subjects.iter().filter(later) {
        let Some((_, item)) = desired.get(subject).filter(|(_, item)| wanted(subject, item)) else {
            continue;
        };
        if found.len() == limit {
            next = Some(json!(true));
            break;
        }
        found.push((subject, item));
    }
    let last = found.last().map(|(subject, _)| subject.name.clone());
    let view = |(subject, item): &(&Subject, Item)| {
        views::object(subject, item, &controller.progress(&layout, subject))
    };
    let mut answer = json!({ kind.plural(): found.iter().map(view).collect::<Vec<_>>() });
    if next.is_some() {
        answer["next"] = json!(last);
    }
    Ok(answer)
}

/// The static flows of a switch.
pub async fn list_flows(
    State(controller): Shared,
    Extension(who): Who,
    Path(dpid): Path<String>,
    Query(page): Query<Page>,
) -> Result<Json<Value>, ApiError> {
    let dpid = parse_dpid(&dpid)?;
    let desired = controller.desired();
    let subjects = desired.flows_of(dpid).map(|(id, _)| Subject::flow(dpid, id)).collect();
    let page = Page { after: page.after.map(|id| Subject::flow(dpid, &id).name), ..page };
    let mut answer = page_of(&controller, &who, &page, Kind::Flow, subjects)?;
    answer["dpid"] = json!(dpid);
    Ok(Json(answer))
}

async fn read(controller: &Controller, who: &Identity, subject: &Subject) -> Result<Response, ApiError> {
    let (desired, layout) = (controller.desired(), controller.layout());
    let found = desired.get(subject).filter(|(_, item)| visible(who, &desired, subject, item));
    let (_, item) = found.ok_or_else(|| none(subject))?;
    let view = views::object(subject, &item, &controller.progress(&layout, subject));
    Ok((StatusCode::OK, etag(&item), Json(view)).into_response())
}

fn etag(item: &Item) -> [(HeaderName, HeaderValue); 1] {
    let value = HeaderValue::try_from(tag(item)).expect("a tag is plain text");
    [(header::ETAG, value)]
}

/// The condition that the headers ask for (RFC 9110, 13.1).
fn precondition(headers: &HeaderMap) -> Option<Precondition> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    match (text(header::IF_MATCH), text(header::IF_NONE_MATCH)) {
        (Some("*"), _) => Some(Precondition::Exists),
        (Some(tags), _) => {
            Some(Precondition::Match(tags.split(',').map(|tag| tag.trim().to_owned()).collect()))
        }
        (None, Some("*")) => Some(Precondition::Absent),
        _ => None,
    }
}

/// 200 when everything is applied, 202 when something is pending.
fn status_of(progress: &BTreeMap<Dpid, Progress>) -> StatusCode {
    let applied = progress.values().all(|progress| matches!(progress, Progress::Applied));
    if applied { StatusCode::OK } else { StatusCode::ACCEPTED }
}

/// Reads name and body of a change, and tells all errors of both at once.
fn parse(subject: &Subject, title: &str, body: Value) -> Result<Item, Problem> {
    let mut errors = Errors::new();
    let item = Item::from_json(subject.kind, body, &mut errors);
    match subject.flow_key() {
        Some((_, id)) => errors.name("id", &id),
        None => errors.name("name", &subject.name),
    }
    match item {
        Some(item) => errors.into_result(title, item),
        None => Err(Problem::invalid(title, errors.list().to_vec())),
    }
}

async fn write(
    controller: &Controller,
    who: &Identity,
    subject: Subject,
    query: Write,
    headers: &HeaderMap,
    body: Option<Value>,
) -> Result<Response, ApiError> {
    let verb = if body.is_some() { "set" } else { "deleted" };
    let title = format!("{subject} cannot be {verb}");
    let item = body.map(|body| parse(&subject, &title, body)).transpose()?;
    let desired = controller.desired();
    let before = desired.get(&subject).filter(|(_, item)| visible(who, &desired, &subject, item));
    if item.is_none() && before.is_none() {
        return Err(none(&subject).into());
    }
    permitted(who, &desired, &subject, item.as_ref())?;
    let sets = vec![(subject.clone(), item.clone())];
    let edit = Edit { sets, precondition: precondition(headers) };
    if query.dry_run {
        let preview = controller.preview(&edit).await;
        let mut preview = preview.map_err(|error| change_error(title, error.hidden_from(who)))?;
        if who.tenant.is_some() {
            // They are of everybody on the switch.
            preview.switches.values_mut().for_each(|switch| switch.obstacles.clear());
        }
        return Ok(Json(PreviewView::new(&preview)).into_response());
    }
    let progress = controller.change(who, &edit).await;
    let progress = progress.map_err(|error| change_error(title, error.hidden_from(who)))?;
    // What was left to the controller is chosen now.
    let now = controller.desired().get(&subject).map(|(_, item)| item);
    let shown = now.filter(|_| item.is_some()).or(item).or(before.map(|(_, item)| item));
    let Some(shown) = shown else { return Err(none(&subject).into()) };
    let of_its_own =
        |(dpid, _): &(&Dpid, &Progress)| place_of(&shown).is_none_or(|place| place.dpid == **dpid);
    let shown_progress = match subject.kind {
        // Others feel it too, by their uplinks; what counts for it is where it is.
        Kind::Attachment => progress.iter().filter(of_its_own).map(|(d, p)| (*d, p.clone())).collect(),
        _ => progress.clone(),
    };
    let view = views::object(&subject, &shown, &shown_progress);
    Ok((status_of(&progress), etag(&shown), Json(view)).into_response())
}

fn place_of(item: &Item) -> Option<&Place> {
    match item {
        Item::Attachment(attachment) => Some(&attachment.place),
        _ => None,
    }
}
