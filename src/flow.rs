//! `sluice flow`: the flow entries of the switch.

use clap::Subcommand;
use hyper::Method;

use crate::client::{self, RunDir};
use crate::output::{self, Format};

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
        daemon: RunDir,
        /// How to print
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Verb::Show { daemon, output } = args.verb;
    let flows = client::request(&daemon.admin_socket("switch"), Method::GET, "/v1/flows", None)?;
    if output == Format::Json {
        output::json(&flows);
        return Ok(());
    }
    for flow in flows.as_array().into_iter().flatten() {
        output::line(output::text(&flow["text"]));
    }
    Ok(())
}
