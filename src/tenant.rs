//! `sluice tenant`: tenants of the controller, and the ports that are given to them.

use clap::Subcommand;
use hyper::Method;
use serde_json::{Value, json};

use crate::client::{self, number};
use crate::controller::{DryRun, Look};
use crate::net::change;
use crate::output;
use crate::remote::ControllerAt;

const TENANTS: &str = "/v1/tenants";

/// Arguments of `sluice tenant`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a tenant, or make it another
    Create {
        /// Name of the tenant
        name: String,
        /// For people
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
        /// Port that those confined to the tenant may attach to its networks; may be given again
        #[arg(long, value_name = "DPID/PORT")]
        port: Vec<String>,
        #[command(flatten)]
        dry: DryRun,
        #[command(flatten)]
        at: ControllerAt,
    },
    /// List the tenants
    List {
        #[command(flatten)]
        look: Look,
    },
    /// Show a tenant and its ports
    Show {
        /// Name of the tenant
        name: String,
        #[command(flatten)]
        look: Look,
    },
    /// Delete a tenant
    Delete {
        /// Name of the tenant
        name: String,
        #[command(flatten)]
        dry: DryRun,
        #[command(flatten)]
        at: ControllerAt,
    },
}

/// `1/5` or `1/web0`; what is wrong with it the controller tells.
fn port(text: &str) -> Value {
    let (dpid, port) = text.split_once('/').unwrap_or((text, ""));
    json!({"dpid": dpid, "port": number(port)})
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.verb {
        Verb::Create { name, description, port: ports, dry, at } => {
            let ports: Vec<Value> = ports.iter().map(|text| port(text)).collect();
            let body = json!({"description": description.unwrap_or_default(), "ports": ports});
            change(&at, &dry, Method::PUT, (TENANTS, &name), Some(&body))
        }
        Verb::Delete { name, dry, at } => change(&at, &dry, Method::DELETE, (TENANTS, &name), None),
        Verb::List { look: Look { at, output } } => {
            let tenants = at.request(Method::GET, TENANTS, None)?;
            output.print(&tenants["tenants"], list)
        }
        Verb::Show { name, look: Look { at, output } } => {
            let tenant = at.request(Method::GET, &client::path(TENANTS, &name), None)?;
            output.print(&tenant, |tenant| list(&json!([tenant])))
        }
    }
}

fn list(tenants: &Value) {
    let rows = tenants.as_array().into_iter().flatten().map(|tenant| {
        let place =
            |place: &Value| format!("{}/{}", output::text(&place["dpid"]), output::text(&place["port"]));
        let ports: Vec<String> = tenant["ports"].as_array().into_iter().flatten().map(place).collect();
        [output::text(&tenant["name"]), output::text(&tenant["description"]), ports.join(" ")]
    });
    output::table(["NAME", "DESCRIPTION", "PORTS"], rows);
}
