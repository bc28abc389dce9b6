//! The `controller` commands.

use std::net::SocketAddr;
use std::path::PathBuf;

use sdn_controller::DaemonConfig;

use crate::output;
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
    Run(Options),
    /// Check the settings, and nothing else
    Check(Options),
}

/// Settings of the daemon; each is also a key of the file given by --config, where a flag wins.
#[derive(clap::Args)]
struct Options {
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
    /// Where Prometheus metrics are served, default nowhere
    #[arg(long, value_name = "ADDRESS:PORT", help_heading = "Settings")]
    metrics: Option<String>,
}

impl Options {
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
        settings.finish()?;
        Ok(DaemonConfig {
            state_dir: state_dir.unwrap_or_else(|| PathBuf::from("/var/lib/sluice/controller")),
            openflow: openflow.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 6653))),
            rest: rest.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080))),
            metrics,
            options: sdn_controller::controller::Options::default(),
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
    }
}
