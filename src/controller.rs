//! The `controller` commands.

use std::path::{Path, PathBuf};

use hyper::Method;
use sdn_controller::DaemonError;
use serde_json::{Value, json};

use crate::client;
use crate::controller_settings::Settable;
use crate::output::{self, BadInput, Style};
use crate::remote::ControllerAt;

/// Arguments of `sluice controller`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Run the daemon
    Run(Box<Settable>),
    /// Check the settings, and nothing else
    Check(Box<Settable>),
    /// Make everything as in a file, all of it or nothing
    Apply(Apply),
    /// Tokens of those who ask from elsewhere
    Token {
        #[command(subcommand)]
        verb: TokenVerb,
    },
    /// Show who changed what, the latest first
    Audit {
        /// How many changes at most
        #[arg(long, value_name = "COUNT", default_value = "50")]
        limit: u64,
        #[command(flatten)]
        look: Look,
    },
    /// Print everything that is wanted, as `apply` takes it
    Export {
        #[command(flatten)]
        at: ControllerAt,
        /// How to print
        #[arg(short, long, value_enum, default_value = "yaml")]
        output: Style,
    },
}

#[derive(clap::Subcommand)]
enum TokenVerb {
    /// Make a token and print it: it is told this once
    Create {
        /// Name, for the audit log
        name: String,
        /// What its bearer may do: read, operate or admin
        #[arg(long)]
        role: String,
        /// Tenant that its bearer is confined to
        #[arg(long)]
        tenant: Option<String>,
        #[command(flatten)]
        at: ControllerAt,
    },
    /// List the tokens
    List {
        #[command(flatten)]
        look: Look,
    },
    /// End a token
    Delete {
        /// Its name
        name: String,
        #[command(flatten)]
        at: ControllerAt,
    },
}

#[derive(clap::Args)]
struct Apply {
    /// YAML or JSON file, `-` for the standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Leave alone what is not in the file, instead of deleting it
    #[arg(long)]
    merge: bool,
    #[command(flatten)]
    dry: DryRun,
    #[command(flatten)]
    at: ControllerAt,
}

/// Which controller is asked, and how its answer is printed.
#[derive(clap::Args)]
pub struct Look {
    #[command(flatten)]
    pub at: ControllerAt,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Style,
}

/// Whether something is only to be tried.
#[derive(clap::Args)]
pub struct DryRun {
    /// Tell what would change, in words and flow-mods, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

impl DryRun {
    /// What it adds to a path that already has a query.
    pub fn query(&self) -> &'static str {
        if self.dry_run { "dry_run=true" } else { "dry_run=false" }
    }

    /// Prints what would be done, if that was asked for.
    pub fn print(&self, answer: &Value) -> bool {
        if self.dry_run {
            print_preview(answer);
        }
        self.dry_run
    }
}

fn print_preview(preview: &Value) {
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let changes = list(preview, "changes");
    if changes.is_empty() {
        output::line("nothing would change");
    }
    changes.iter().for_each(|line| output::line(output::text(line)));
    for switch in list(preview, "switches") {
        let absent =
            if switch["connected"] == json!(true) { "" } else { " (not connected; it gets this when it is)" };
        output::line(format_args!("switch {}{absent}:", switch["dpid"]));
        for (key, word) in [
            ("meters", "set-meter"),
            ("add", "add-flow"),
            ("delete", "del-flow"),
            ("delete_meters", "del-meter"),
        ] {
            list(&switch, key).iter().for_each(|entry| output::line(format_args!("  {word} {entry}")));
        }
        list(&switch, "obstacles")
            .iter()
            .for_each(|text| output::line(format_args!("  but: {}", output::text(text))));
    }
}

/// Reads a YAML or JSON file; JSON is YAML too.
pub fn read_document(file: &Path) -> anyhow::Result<Value> {
    let bad = |detail: String| BadInput(format!("{} cannot be read: {detail}", file.display()));
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin()).map_err(|error| bad(error.to_string()))?
    } else {
        std::fs::read_to_string(file).map_err(|error| bad(error.to_string()))?
    };
    Ok(serde_saphyr::from_str(&text).map_err(|error| bad(error.to_string()))?)
}

fn apply(args: &Apply) -> anyhow::Result<()> {
    let document = read_document(&args.file)?;
    let path = format!("/v1/document?merge={}&{}", args.merge, args.dry.query());
    let answer = args.at.request(Method::PUT, &path, Some(&document))?;
    if args.dry.print(&answer) {
        return Ok(());
    }
    let changes = answer["changes"].as_array().cloned().unwrap_or_default();
    changes.iter().for_each(|line| output::line(output::text(line)));
    for switch in
        answer["switches"].as_array().into_iter().flatten().filter(|s| s["status"] != json!("applied"))
    {
        let reasons =
            switch["reasons"].as_array().into_iter().flatten().map(output::text).collect::<Vec<_>>();
        output::line(format_args!("switch {}: pending: {}", switch["dpid"], reasons.join("; ")));
    }
    if changes.is_empty() {
        output::line("nothing to change");
    }
    Ok(())
}

fn audit(records: &Value) {
    let rows = records.as_array().into_iter().flatten().map(|record| {
        let time = output::time(record["time_ms"].as_u64().unwrap_or_default() / 1000);
        let what = ["action", "kind", "name"].map(|key| output::text(&record[key])).join(" ");
        [time, output::text(&record["who"]), output::text(&record["from"]), what]
    });
    output::table(["TIME", "WHO", "FROM", "WHAT"], rows);
}

fn token(verb: TokenVerb) -> anyhow::Result<()> {
    const TOKENS: &str = "/v1/tokens";
    match verb {
        TokenVerb::Create { name, role, tenant, at } => {
            let mut body = json!({"name": name, "role": role});
            if let Some(tenant) = tenant {
                body["tenant"] = json!(tenant);
            }
            let made = at.request(Method::POST, TOKENS, Some(&body))?;
            output::line(output::text(&made["token"]));
            Ok(())
        }
        TokenVerb::List { look: Look { at, output } } => {
            let tokens = at.request(Method::GET, TOKENS, None)?;
            output.print(&tokens["tokens"], |tokens| {
                let rows = tokens
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|token| ["name", "role", "tenant"].map(|key| output::text(&token[key])));
                output::table(["NAME", "ROLE", "TENANT"], rows);
            })
        }
        TokenVerb::Delete { name, at } => {
            at.request(Method::DELETE, &client::path(TOKENS, &name), None)?;
            output::line(format_args!("token {name} is deleted"));
            Ok(())
        }
    }
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.verb {
        Verb::Run(options) => {
            let config = options.resolve()?;
            telemetry::logs::init(telemetry::logs::Format::Text);
            match sdn_controller::run(config) {
                // Settings again, though it takes the store to see it.
                Err(error @ DaemonError::Nobody { .. }) => Err(BadInput(error.to_string()).into()),
                result => Ok(result?),
            }
        }
        Verb::Check(options) => {
            options.resolve()?;
            output::line("the settings are usable");
            Ok(())
        }
        Verb::Apply(args) => apply(&args),
        Verb::Token { verb } => token(verb),
        Verb::Audit { limit, look: Look { at, output } } => {
            let answer = at.request(Method::GET, &format!("/v1/audit?limit={limit}"), None)?;
            output.print(&answer["records"], audit)
        }
        Verb::Export { at, output } => {
            let document = at.request(Method::GET, "/v1/document", None)?;
            output.print(&document, output::json)
        }
    }
}
