//! `sluice fdb`: the addresses the switch has learned.

use clap::Subcommand;
use serde_json::Value;

use crate::client::Collection;
use crate::output::{self, Look};

const ADDRESSES: Collection = Collection { daemon: "switch", path: "/v1/fdb" };

/// Arguments of `sluice fdb`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show the learned addresses
    Show {
        #[command(flatten)]
        look: Look,
    },
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Verb::Show { look } = args.verb;
    look.output.print(&ADDRESSES.list(&look.daemon)?, table);
    Ok(())
}

fn table(entries: &Value) {
    let rows = entries
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| ["vlan", "mac", "port", "ofport", "age_s"].map(|key| output::text(&entry[key])));
    output::table(["VLAN", "MAC", "PORT", "OFPORT", "AGE (S)"], rows);
}
