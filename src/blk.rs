//! `sluice blk`: the storage daemon.

use std::path::PathBuf;

use clap::Subcommand;
use vhost_blk::config::DaemonConfig;

use crate::output;
use crate::settings::{Settings, WorkerFlags};

/// Arguments of `sluice blk`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the daemon in the foreground
    Run(Flags),
    /// Check flags and configuration file, and do nothing else
    Check(Flags),
}

/// Each flag may also stand in the TOML file, with `_` for `-`.
#[derive(clap::Args)]
struct Flags {
    /// TOML file with any of the settings below; a flag wins over the file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the list of volumes is kept [default: /var/lib/sluice/blk]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    worker: WorkerFlags,
}

impl Flags {
    fn resolve(&self) -> anyhow::Result<DaemonConfig> {
        let mut settings = Settings::read(self.config.as_deref());
        let config = DaemonConfig {
            state_dir: settings
                .path("state_dir", self.state_dir.as_deref())
                .unwrap_or_else(|| PathBuf::from("/var/lib/sluice/blk")),
            run_dir: settings.run_dir(self.worker.run_dir.as_deref()),
            metrics: settings.metrics(self.worker.metrics.as_deref()),
            cores: settings.cores(self.worker.cores.as_deref()),
            spin_us: settings.spin_us(self.worker.spin_us.as_deref()),
        };
        settings.finish()?;
        Ok(config)
    }
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.verb {
        Verb::Run(flags) => {
            let config = flags.resolve()?;
            telemetry::logs::init(telemetry::logs::Format::Text);
            Ok(vhost_blk::daemon::run(config)?)
        }
        Verb::Check(flags) => {
            let config = flags.resolve()?;
            output::line(format_args!("the configuration is good: {config:?}"));
            Ok(())
        }
    }
}
