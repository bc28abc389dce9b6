//! `sluice topology`, `sluice switch list` and `sluice switch show`: the controller's switches and what connects them.

use hyper::Method;
use serde_json::{Value, json};

use crate::client;
use crate::controller::Look;
use crate::output;

/// Runs `sluice topology`.
pub fn run(look: &Look) -> anyhow::Result<()> {
    let topology = look.at.request(Method::GET, "/v1/topology", None)?;
    look.output.print(&topology, |topology| {
        let end = |end: &Value| match end {
            Value::Null => "outside".to_owned(),
            end => format!("switch {} port {}", end["dpid"], output::text(&end["port"])),
        };
        let links = topology["links"].as_array().into_iter().flatten();
        let rows = links.map(|link| {
            let up = if link["up"] == json!(true) { "up" } else { "down" };
            let seen = match link["seen"].as_bool() {
                Some(true) => "pass",
                Some(false) => "do not pass",
                None => "",
            };
            [output::text(&link["name"]), end(&link["a"]), end(&link["b"]), up.to_owned(), seen.to_owned()]
        });
        output::table(["UPLINK", "FROM", "TO", "STATE", "PROBES"], rows);
        let found = topology["discovered"].as_array().into_iter().flatten();
        let rows = found.map(|link| {
            let both = if link["both_ways"] == json!(true) { "both ways" } else { "one way" };
            [end(&link["a"]), end(&link["b"]), both.to_owned()]
        });
        output::table(["LINK FROM", "TO", "PROBES PASS"], rows);
    })
}

/// Runs `sluice switch list`.
pub fn switches(look: &Look) -> anyhow::Result<()> {
    let switches = look.at.request(Method::GET, "/v1/switches", None)?;
    look.output.print(&switches["switches"], |switches| {
        let rows = switches.as_array().into_iter().flatten().map(|switch| {
            let state = match (switch["connected"] == json!(true), switch["settled"] == json!(true)) {
                (false, _) => "absent",
                (true, false) => "busy",
                (true, true) => "settled",
            };
            let cell = |key: &str| output::text(&switch[key]);
            [
                cell("dpid"),
                state.into(),
                cell("address"),
                cell("software"),
                cell("ports"),
                cell("flows"),
                cell("meters"),
            ]
        });
        output::table(["DPID", "STATE", "ADDRESS", "SOFTWARE", "PORTS", "FLOWS", "METERS"], rows);
    })
}

/// Runs `sluice switch show`.
pub fn switch(dpid: &str, look: &Look) -> anyhow::Result<()> {
    let of = |what: &str| format!("{}/{what}", client::path("/v1/switches", dpid));
    let ports = look.at.request(Method::GET, &of("ports"), None)?;
    let stats = look.at.request(Method::GET, &of("port-stats"), None)?;
    let switches = look.at.request(Method::GET, "/v1/switches", None)?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut switch = list(&switches["switches"])
        .into_iter()
        .find(|switch| switch["dpid"] == ports["dpid"])
        .unwrap_or_else(|| json!({"dpid": ports["dpid"], "connected": false}));
    switch["port_list"] = ports["ports"].clone();
    let counters = list(&stats["ports"]);
    for port in switch["port_list"].as_array_mut().into_iter().flatten() {
        let of_it = counters.iter().find(|counters| counters["name"] == port["name"]);
        port["counters"] = of_it.cloned().unwrap_or_default();
    }
    look.output.print(&switch, |switch| {
        let mut plain = switch.clone();
        plain.as_object_mut().map(|fields| fields.remove("port_list"));
        if let Some(since) = switch["since"].as_u64() {
            plain["since"] = json!(output::time(since));
        }
        output::fields(&plain);
        let rows = list(&switch["port_list"]).into_iter().map(|port| {
            let link = match (port["shut"].as_str(), port["up"] == json!(true)) {
                (Some(why), _) => format!("shut: {why}"),
                (None, true) => "up".to_owned(),
                (None, false) => "down".to_owned(),
            };
            let packets = |way: &str| output::text(&port["counters"][format!("{way}_packets")]);
            let text = |key: &str| output::text(&port[key]);
            [text("port"), text("name"), text("hw_addr"), link, packets("rx"), packets("tx")]
        });
        output::table(["PORT", "NAME", "ADDRESS", "LINK", "IN", "OUT"], rows);
    })
}
