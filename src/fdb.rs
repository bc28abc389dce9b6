//! `sluice fdb`: the addresses the switch has learned.

use clap::Subcommand;
use hyper::Method;

use crate::client::{self, RunDir};
use crate::output::{self, Format};

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
        daemon: RunDir,
        /// How to print
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Verb::Show { daemon, output } = args.verb;
    let entries = client::request(&daemon.admin_socket("switch"), Method::GET, "/v1/fdb", None)?;
    if output == Format::Json {
        output::json(&entries);
        return Ok(());
    }
    let rows = entries
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| ["vlan", "mac", "port", "ofport", "age_s"].map(|key| output::text(&entry[key])));
    output::table(["VLAN", "MAC", "PORT", "OFPORT", "AGE (S)"], rows);
    Ok(())
}
