//! `sluice topology` and `sluice switch list`: the controller's switches and what connects them.

use hyper::Method;
use serde_json::{Value, json};

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
