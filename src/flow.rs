//! `sluice flow`: the flow entries of the switch.

use clap::Subcommand;
use serde_json::Value;

use crate::client::Collection;
use crate::output::{self, Look};

const FLOWS: Collection = Collection { daemon: "switch", path: "/v1/flows" };

/// Arguments of `sluice flow`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show the flow entries with their counters
    Show {
        #[command(flatten)]
        look: Look,
    },
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Verb::Show { look } = args.verb;
    look.output.print(&FLOWS.list(&look.daemon)?, print);
    Ok(())
}

fn print(flows: &Value) {
    for flow in flows.as_array().into_iter().flatten() {
        output::line(output::text(&flow["text"]));
    }
}
