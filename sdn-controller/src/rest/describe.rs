//! The OpenAPI description. Schemas come from the types, and paths from the kinds, which all have the same verbs.

use serde_json::{Value, json};
use telemetry::Problem;
use utoipa::{OpenApi, ToSchema};

use crate::auth::Token;
use crate::model::{Acl, Attachment, Chain, Kind, Mirror, Network, Tenant, Uplink};
use crate::views::{FlowDocument, ObjectStatus, PortList, PreviewView, RefusedView, SwitchList};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Sluice network controller",
        description = "Networks and static flows on OpenFlow 1.3 switches. Every PUT is idempotent. 200 means that the \
                       switches confirmed it behind a barrier; 202 that it is stored and goes to the switches that are \
                       named in the answer when they can take it; 422 that a switch refused it, with the OpenFlow \
                       error, and that everything is as before. With ?dry_run=true a write tells what it would do and \
                       does nothing. GET and PUT answer with an ETag, which If-Match of a later write may name."
    ),
    components(schemas(
        Tenant,
        Acl,
        Network,
        Attachment,
        Uplink,
        Mirror,
        Chain,
        FlowDocument,
        ObjectStatus,
        SwitchList,
        PortList,
        PreviewView,
        RefusedView,
        Token,
        Problem
    ))
)]
struct Components;

fn reference<T: ToSchema>() -> Value {
    json!({"$ref": format!("#/components/schemas/{}", T::name())})
}

fn name_of(kind: Kind) -> std::borrow::Cow<'static, str> {
    match kind {
        Kind::Tenant => Tenant::name(),
        Kind::Acl => Acl::name(),
        Kind::Network => Network::name(),
        Kind::Attachment => Attachment::name(),
        Kind::Uplink => Uplink::name(),
        Kind::Mirror => Mirror::name(),
        Kind::Chain => Chain::name(),
        Kind::Flow => FlowDocument::name(),
    }
}

fn answer(description: &str, kind: &str, schema: Value) -> Value {
    json!({"description": description, "content": {kind: {"schema": schema}}})
}

fn problem(description: &str) -> Value {
    answer(description, "application/problem+json", reference::<Problem>())
}

fn query(name: &str, kind: &str, description: &str) -> Value {
    json!({"name": name, "in": "query", "description": description, "schema": {"type": kind}})
}

fn in_path(name: &str, description: &str) -> Value {
    json!({"name": name, "in": "path", "required": true, "description": description, "schema": {"type": "string"}})
}

const DPID: &str = "decimal, 0x..., or 16 hexadecimal digits";
const NAME: &str = "[a-z0-9][a-z0-9._-]{0,62}";

/// The verbs of one thing of a kind.
fn verbs_of_one(kind: Kind, places: &[Value]) -> Value {
    let name = kind.singular();
    let body = json!({"$ref": format!("#/components/schemas/{}", name_of(kind))});
    let view = json!({"allOf": [body, reference::<ObjectStatus>()]});
    let done = |what: &str| answer(what, "application/json", view.clone());
    let done_or_preview = |what: &str| {
        let either = json!({"oneOf": [view, reference::<PreviewView>()]});
        answer(&format!("{what}, or what would be done"), "application/json", either)
    };
    let with = |more: &[Value]| [places, more].concat();
    let header = |name: &str, description: &str| json!({"name": name, "in": "header", "description": description, "schema": {"type": "string"}});
    let write = with(&[
        query("dry_run", "boolean", "tell what would happen, and do nothing"),
        header("If-Match", "do it only if the ETag is one of these"),
        header("If-None-Match", "`*`: do it only if there is no such thing"),
    ]);
    let failures = json!({
        "400": problem("everything that is wrong with it"),
        "401": problem("nobody knows who asks"),
        "403": problem("whoever asks may not"),
        "409": problem("it contradicts what is there"),
        "412": problem("it is not as the request expects it"),
        "422": answer("a switch refused it; nothing is changed", "application/problem+json", reference::<RefusedView>()),
    });
    let answers = |more: Value| {
        let mut all = failures.clone();
        if let (Some(all), Some(more)) = (all.as_object_mut(), more.as_object()) {
            all.extend(more.clone());
        }
        all
    };
    json!({
        "get": {"tags": [kind.plural()], "summary": format!("One {name}."), "operationId": format!("get_{name}"),
                "parameters": places,
                "responses": {"200": done("it is there"), "401": problem("nobody knows who asks"),
                              "404": problem("there is none")}},
        "put": {"tags": [kind.plural()], "summary": format!("Makes a {name}, or makes it another."),
                "operationId": format!("put_{name}"), "parameters": write,
                "requestBody": {"required": true, "content": {"application/json": {"schema": body}}},
                "responses": answers(json!({
                    "200": done_or_preview("in all its switches"),
                    "202": done("stored; some switch or port is not there yet")}))},
        "delete": {"tags": [kind.plural()], "summary": format!("Deletes a {name}."),
                   "operationId": format!("delete_{name}"), "parameters": write,
                   "responses": answers(json!({
                       "200": done_or_preview("gone from all switches"),
                       "202": done("some switch is told when it can be"),
                       "404": problem("there is none")}))},
    })
}

fn list_of(kind: Kind, places: &[Value]) -> Value {
    let one = json!({"allOf": [
        {"$ref": format!("#/components/schemas/{}", name_of(kind))}, reference::<ObjectStatus>()]});
    let schema = json!({"type": "object", "properties": {
        kind.plural(): {"type": "array", "items": one},
        "next": {"type": "string", "description": "there is more: ask again with this as `after`"}}});
    let filters = [
        query("limit", "integer", "how many at most"),
        query("after", "string", "only names behind this one"),
        query("tenant", "string", "only those of this tenant"),
        query("network", "string", "only those of this network"),
        query("dpid", "string", "only those on this switch"),
    ];
    let parameters = [places, &filters[..]].concat();
    json!({"get": {"tags": [kind.plural()], "summary": format!("The {}.", kind.plural()),
           "operationId": format!("list_{}", kind.plural()), "parameters": parameters,
           "responses": {"200": answer("by name", "application/json", schema),
                         "401": problem("nobody knows who asks")}}})
}

fn look(tag: &str, id: &str, summary: &str, parameters: &[Value], schema: Value) -> Value {
    json!({"get": {"tags": [tag], "summary": summary, "operationId": id, "parameters": parameters,
           "responses": {"200": answer("it is so", "application/json", schema),
                         "401": problem("nobody knows who asks"), "403": problem("whoever asks may not"),
                         "404": problem("not connected")}}})
}

/// What `/openapi.json` answers.
pub fn openapi() -> Value {
    let mut document = json!(Components::openapi());
    let at = [in_path("dpid", DPID)];
    let flow = [in_path("dpid", DPID), in_path("id", NAME)];
    let any = || json!({"type": "object"});
    let paths = &mut document["paths"];
    *paths = json!({
        "/v1/switches": look("switches", "list_switches", "Switches in session, and those that something is wanted of.",
                             &[], reference::<SwitchList>()),
        "/v1/switches/{dpid}/ports": look("switches", "list_ports", "The ports of a switch in session.", &at,
                                          reference::<PortList>()),
        "/v1/switches/{dpid}/port-stats": look("switches", "port_stats", "Counters of its ports.", &at, any()),
        "/v1/switches/{dpid}/entries": look("switches", "list_entries", "Flow entries that are in it, with counters.",
            &[at[0].clone(), query("all", "boolean", "those of others too")], any()),
        "/v1/switches/{dpid}/flows": list_of(Kind::Flow, &at),
        "/v1/switches/{dpid}/flows/{id}": verbs_of_one(Kind::Flow, &flow),
        "/v1/addresses": look("switches", "list_addresses", "Ethernet addresses learned.",
            &[query("network", "string", "only of this network"), query("mac", "string", "only this one")], any()),
        "/v1/counters": look("switches", "counters", "Spoofed packets by attachment, and hits of ACL rules.", &[], any()),
        "/v1/topology": look("switches", "topology", "The switches and what connects them: `links` as they are wanted, and whether probes pass them (`seen`); `discovered` as probes show them.", &[], any()),
        "/v1/audit": look("all", "audit", "Who changed what, the latest first.",
            &[query("before", "integer", "only records below this number"), query("limit", "integer", "how many")], any()),
    });
    paths["/v1/events"] = json!({"get": {"tags": ["all"], "operationId": "events",
        "summary": "What happens, as server-sent events: change, switch, port, moved, link, flapping, shut, opened, lost.",
        "responses": {"200": {"description": "events", "content": {"text/event-stream": {}}}}}});
    let text = |description: &str| json!({"type": "string", "description": description});
    let wanted = json!({"type": "object", "required": ["name", "role"], "properties": {
        "name": text(NAME), "role": text("read, operate or admin"), "tenant": text("the one it is confined to")}});
    paths["/v1/whoami"] = look("all", "whoami", "Who asks, as the controller knows them.", &[], any());
    paths["/v1/tokens"] = look(
        "tokens",
        "list_tokens",
        "The tokens, without their texts.",
        &[],
        json!({"type": "object", "properties": {"tokens": {"type": "array", "items": reference::<Token>()}}}),
    );
    paths["/v1/tokens"]["post"] = json!({"tags": ["tokens"], "operationId": "make_token",
        "summary": "Makes a token. Its text is in the answer and nowhere else: only its SHA-256 is kept.",
        "requestBody": {"required": true, "content": {"application/json": {"schema": wanted}}},
        "responses": {"201": answer("made", "application/json", any()), "400": problem("everything that is wrong with it"),
                      "401": problem("nobody knows who asks"), "403": problem("whoever asks may not"),
                      "409": problem("there is one of this name")}});
    paths["/v1/tokens/{name}"] = json!({"delete": {"tags": ["tokens"], "operationId": "delete_token",
        "summary": "Ends a token.", "parameters": [in_path("name", NAME)],
        "responses": {"200": answer("gone", "application/json", any()), "401": problem("nobody knows who asks"),
                      "403": problem("whoever asks may not"), "404": problem("there is none")}}});
    paths["/v1/document"] = json!({
        "get": {"tags": ["all"], "summary": "Everything that is wanted.", "operationId": "export",
                "responses": {"200": answer("names by kind", "application/json", any())}},
        "put": {"tags": ["all"], "summary": "Makes everything as in the document, all of it or nothing.",
                "operationId": "apply",
                "parameters": [query("dry_run", "boolean", "tell what would happen, and do nothing"),
                               query("merge", "boolean", "leave alone what is not in the document")],
                "requestBody": {"required": true, "content": {"application/json": {"schema": any()}}},
                "responses": {"200": answer("done, or what would be done", "application/json", any()),
                              "202": answer("stored; some switch is not there yet", "application/json", any()),
                              "400": problem("everything that is wrong with it"),
                              "409": problem("it contradicts itself"),
                              "422": answer("a switch refused it", "application/problem+json", reference::<RefusedView>())}},
    });
    document["components"]["securitySchemes"] = json!({
        "token": {"type": "http", "scheme": "bearer", "description": "`sluice controller token create` makes them"},
        "certificate": {"type": "mutualTLS"},
    });
    // Neither is needed where it is known otherwise who asks: on the socket, and on loopback unless set otherwise.
    document["security"] = json!([{"token": []}, {"certificate": []}, {}]);
    let paths = &mut document["paths"];
    for &kind in Kind::ALL.iter().filter(|kind| **kind != Kind::Flow) {
        paths[format!("/v1/{}", kind.plural())] = list_of(kind, &[]);
        paths[format!("/v1/{}/{{name}}", kind.plural())] = verbs_of_one(kind, &[in_path("name", NAME)]);
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(object) => object.iter().for_each(|(key, value)| match (key.as_str(), value) {
                ("$ref", Value::String(target)) => found.push(target.clone()),
                _ => references(value, found),
            }),
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn the_description_is_whole() {
        let document = openapi();
        assert_eq!(document["openapi"], "3.1.0");
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 20, "{found:?}");
        for target in found {
            let pointer = target.trim_start_matches('#');
            assert!(document.pointer(pointer).is_some(), "{target} is not there");
        }
    }
}
