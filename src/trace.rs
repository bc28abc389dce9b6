//! `sluice trace`: what the switch would do with a frame, and why.

use hyper::Method;
use serde_json::Value;

use crate::client;
use crate::output::{self, Look};

/// Arguments of `sluice trace`.
#[derive(clap::Args)]
pub struct Args {
    /// Name of the port by which the frame comes in
    port: String,
    /// The frame: hexadecimal, or words such as: tcp 10.0.0.1:1->10.0.0.2:80 vlan 10
    #[arg(required = true)]
    frame: Vec<String>,
    #[command(flatten)]
    look: Look,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let frame = client::escape(&args.frame.join(" "));
    let path = format!("{}/trace?frame={frame}", client::path("/v1/ports", &args.port));
    let trace = client::request(&args.look.daemon.admin_socket("switch"), Method::GET, &path, None)?;
    args.look.output.print(&trace, print);
    Ok(())
}

fn list(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(output::text).collect()
}

fn print(trace: &Value) {
    let bytes = output::text(&trace["frame"]).len() / 2;
    output::line(format_args!("{} ({bytes} bytes)", output::text(&trace["fields"])));
    for step in trace["tables"].as_array().into_iter().flatten() {
        let rule = match &step["rule"] {
            Value::Null => "no rule".to_string(),
            rule => format!("{} (cookie {:#x})", output::text(rule), step["cookie"].as_u64().unwrap_or(0)),
        };
        output::line(format_args!("table {}: {rule}", step["table"]));
        output::line(format_args!("    {}", output::text(&step["because"])));
        let changed = list(&step["changed"]);
        if !changed.is_empty() {
            output::line(format_args!("    by then changed: {}", changed.join(",")));
        }
    }
    if let Some(learning) = trace["learning"].as_str() {
        output::line(format_args!("learning: {learning}"));
    }
    for taken in trace["buckets"].as_array().into_iter().flatten() {
        let because = output::text(&taken["because"]);
        output::line(format_args!("group {}, bucket {}: {because}", taken["group"], taken["bucket"]));
    }
    for sent in trace["outputs"].as_array().into_iter().flatten() {
        let changed = match list(&sent["changed"]) {
            changed if changed.is_empty() => "as it came".to_string(),
            changed => format!("with {}", changed.join(",")),
        };
        let port = match &sent["ofport"] {
            Value::Null => output::text(&sent["port"]),
            number => format!("port {number} ({})", output::text(&sent["port"])),
        };
        output::line(format_args!("=> {port}, {changed}"));
    }
    for drop in list(&trace["drops"]) {
        output::line(format_args!("=> dropped: {drop}"));
    }
}
