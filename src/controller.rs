//! The `controller` commands.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use hyper::Method;
use sdn_controller::DaemonConfig;
use sdn_controller::controller::Options;
use sdn_controller::datapath::Foreign;
use sdn_controller::model::VlanRange;
use serde_json::{Value, json};

use crate::client::ControllerAt;
use crate::output::{self, BadInput, Style};
use crate::settings::Settings;

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
    /// Print everything that is wanted, as `apply` takes it
    Export {
        #[command(flatten)]
        at: ControllerAt,
        /// How to print
        #[arg(short, long, value_enum, default_value = "yaml")]
        output: Style,
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

/// Settings of the daemon; each is also a key of the file given by --config, where a flag wins.
#[derive(clap::Args)]
struct Settable {
    /// TOML file with settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the desired state
    #[arg(long, value_name = "DIR", help_heading = "Settings")]
    state_dir: Option<PathBuf>,
    /// Where switches connect, default tcp:127.0.0.1:6653
    #[arg(long, value_name = "tcp:ADDRESS:PORT", help_heading = "Settings")]
    openflow: Option<String>,
    /// Where REST is served, default 127.0.0.1:8080
    #[arg(long, value_name = "ADDRESS:PORT", help_heading = "Settings")]
    rest: Option<String>,
    /// Directory of the daemon's socket, default /run/sluice
    #[arg(long, value_name = "DIR", help_heading = "Settings")]
    run_dir: Option<PathBuf>,
    /// VLAN ids that the controller may choose for networks that name none, default 2000-3999
    #[arg(long, value_name = "FIRST-LAST", help_heading = "Settings")]
    vlan_range: Option<String>,
    /// What to do with flow entries of others when a switch connects: keep (default) or remove
    #[arg(long, value_name = "keep|remove", help_heading = "Settings")]
    foreign_flows: Option<String>,
    /// Where Prometheus metrics are served, default nowhere
    #[arg(long, value_name = "ADDRESS:PORT", help_heading = "Settings")]
    metrics: Option<String>,
}

impl Settable {
    /// The settings, or everything that is wrong with them.
    fn resolve(&self) -> anyhow::Result<DaemonConfig> {
        let mut settings = Settings::read(self.config.as_deref());
        let address = "give an address and a port, such as 127.0.0.1:8080";
        let state_dir = settings.path("state_dir", self.state_dir.as_deref());
        let openflow = settings.get(
            "openflow",
            self.openflow.as_deref(),
            "give tcp:ADDRESS:PORT, such as tcp:127.0.0.1:6653",
            |text| {
                let address = text.strip_prefix("tcp:").ok_or("does not begin with tcp:")?;
                address.parse::<SocketAddr>().map_err(|error| error.to_string())
            },
        );
        let rest = settings.parsed::<SocketAddr>("rest", self.rest.as_deref(), address);
        let metrics = settings.parsed::<SocketAddr>("metrics", self.metrics.as_deref(), address);
        // Until REST knows who asks, nobody else's host may ask.
        if let Some(rest) = rest.filter(|rest| !rest.ip().is_loopback()) {
            let remedy = "listen on a loopback address and put a proxy that authenticates in front";
            settings.refuse(
                "rest",
                &rest.to_string(),
                "is reachable by other hosts without a password",
                remedy,
            );
        }
        let run_dir = settings.path("run_dir", self.run_dir.as_deref());
        let vlans = settings.get(
            "vlan_range",
            self.vlan_range.as_deref(),
            "give two VLAN ids, such as 2000-3999",
            |text| {
                let numbers = text
                    .split_once('-')
                    .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
                match numbers {
                    Some((first, last)) if 1 <= first && first <= last && last <= 4094 => {
                        Ok(VlanRange { first, last })
                    }
                    _ => Err("is no range of VLAN ids".to_owned()),
                }
            },
        );
        let foreign =
            settings.get("foreign_flows", self.foreign_flows.as_deref(), "give keep or remove", |text| {
                match text {
                    "keep" => Ok(Foreign::Keep),
                    "remove" => Ok(Foreign::Remove),
                    _ => Err("is neither".to_owned()),
                }
            });
        settings.finish()?;
        Ok(DaemonConfig {
            socket_needed: run_dir.is_some(),
            run_dir: run_dir.unwrap_or_else(|| PathBuf::from("/run/sluice")),
            state_dir: state_dir.unwrap_or_else(|| PathBuf::from("/var/lib/sluice/controller")),
            openflow: openflow.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 6653))),
            rest: rest.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080))),
            metrics,
            options: Options { vlans: vlans.unwrap_or_default(), foreign: foreign.unwrap_or_default() },
        })
    }
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.verb {
        Verb::Run(options) => {
            let config = options.resolve()?;
            telemetry::logs::init(telemetry::logs::Format::Text);
            Ok(sdn_controller::run(config)?)
        }
        Verb::Check(options) => {
            options.resolve()?;
            output::line("the settings are usable");
            Ok(())
        }
        Verb::Apply(args) => apply(&args),
        Verb::Export { at, output } => {
            let document = at.request(Method::GET, "/v1/document", None)?;
            output.print(&document, output::json)
        }
    }
}
