//! `sluice acl`: ACLs of the controller.

use std::path::PathBuf;

use clap::Subcommand;
use hyper::Method;
use serde_json::{Value, json};

use crate::client;
use crate::controller::{DryRun, Look, read_document};
use crate::net::change;
use crate::output;
use crate::remote::ControllerAt;

/// Arguments of `sluice acl`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make an ACL from a file, or make it another
    Set {
        /// Name of the ACL
        name: String,
        /// YAML or JSON file with `rules` and `default`, `-` for the standard input
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        dry: DryRun,
        #[command(flatten)]
        at: ControllerAt,
    },
    /// List the ACLs
    List {
        #[command(flatten)]
        look: Look,
    },
    /// Show the rules of an ACL and how often each was hit
    Show {
        /// Name of the ACL
        name: String,
        #[command(flatten)]
        look: Look,
    },
    /// Delete an ACL
    Delete {
        /// Name of the ACL
        name: String,
        #[command(flatten)]
        dry: DryRun,
        #[command(flatten)]
        at: ControllerAt,
    },
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.verb {
        Verb::Set { name, file, dry, at } => {
            change(&at, &dry, Method::PUT, ("/v1/acls", &name), Some(&read_document(&file)?))
        }
        Verb::Delete { name, dry, at } => change(&at, &dry, Method::DELETE, ("/v1/acls", &name), None),
        Verb::List { look: Look { at, output } } => {
            let acls = at.request(Method::GET, "/v1/acls", None)?;
            output.print(&acls["acls"], list)
        }
        Verb::Show { name, look: Look { at, output } } => {
            let mut acl = at.request(Method::GET, &client::path("/v1/acls", &name), None)?;
            let counters = at.request(Method::GET, "/v1/counters", None)?;
            acl["hits"] = counters["acls"][&name].clone();
            output.print(&acl, show)
        }
    }
}

fn list(acls: &Value) {
    let rows = acls.as_array().into_iter().flatten().map(|acl| {
        [
            output::text(&acl["name"]),
            output::text(&acl["tenant"]),
            acl["rules"].as_array().map_or(0, Vec::len).to_string(),
            output::text(&acl["default"]["ingress"]),
            output::text(&acl["default"]["egress"]),
        ]
    });
    output::table(["NAME", "TENANT", "RULES", "INGRESS", "EGRESS"], rows);
}

fn show(acl: &Value) {
    let rules = acl["rules"].as_array().cloned().unwrap_or_default();
    let mut rows: Vec<[String; 4]> = Vec::new();
    for (index, mut rule) in rules.into_iter().enumerate() {
        let hits = &acl["hits"]["rules"][index]["packets"];
        let ends = ["direction", "action"].map(|key| {
            let value = rule[key].clone();
            rule.as_object_mut().map(|rule| rule.remove(key));
            output::text(&value)
        });
        let packets = rule
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| format!("{key} {}", output::text(value)));
        let [direction, action] = ends;
        rows.push([direction, packets.collect::<Vec<_>>().join(", "), action, output::text(hits)]);
    }
    for direction in ["ingress", "egress"] {
        let hits = if direction == "ingress" { &acl["hits"]["default"]["packets"] } else { &json!("") };
        rows.push([
            direction.into(),
            "anything else".into(),
            output::text(&acl["default"][direction]),
            output::text(hits),
        ]);
    }
    output::table(["DIRECTION", "PACKETS", "ACTION", "HITS"], rows);
}
