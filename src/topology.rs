//! `sluice topology` and `sluice switch list`: the controller's switches and what connects them.

use hyper::Method;
use serde_json::{Value, json};

use crate::client::ControllerAt;
use crate::output::{self, Style};

/// Arguments of both.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    at: ControllerAt,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Style,
}

/// Runs `sluice topology`.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let topology = args.at.request(Method::GET, "/v1/topology", None)?;
    args.output.print(&topology, |topology| {
        let end = |end: &Value| match end {
            Value::Null => "outside".to_owned(),
            end => format!("switch {} port {}", end["dpid"], output::text(&end["port"])),
        };
        let links = topology["links"].as_array().into_iter().flatten();
        let rows = links.map(|link| {
            let up = if link["up"] == json!(true) { "up" } else { "down" };
            [output::text(&link["name"]), end(&link["a"]), end(&link["b"]), up.to_owned()]
        });
        output::table(["UPLINK", "FROM", "TO", "STATE"], rows);
    })
}

/// Runs `sluice switch list`.
pub fn switches(args: &Args) -> anyhow::Result<()> {
    let switches = args.at.request(Method::GET, "/v1/switches", None)?;
    args.output.print(&switches["switches"], |switches| {
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
