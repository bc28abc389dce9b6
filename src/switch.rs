//! `sluice switch`: the switch daemon.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use vswitch::bridge::{BridgeConfig, FailMode};
use vswitch::config::{DaemonConfig, OpenFlowAddress, PacketInLimits, parse_controller, parse_listener};

use crate::controller::Look;
use crate::output;
use crate::settings::{Settings, TlsSettings, WorkerFlags};
use crate::topology;

/// Arguments of `sluice switch`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the daemon in the foreground
    Run(Box<Flags>),
    /// Check flags and configuration file, and do nothing else
    Check(Box<Flags>),
    /// List the switches of the controller
    List(Look),
    /// Show a switch of the controller and its ports
    Show {
        /// The switch
        dpid: String,
        #[command(flatten)]
        look: Look,
    },
}

/// Each flag may also stand in the TOML file, with `_` for `-`.
#[derive(clap::Args)]
struct Flags {
    /// TOML file with any of the settings below; a flag wins over the file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the list of ports is kept [default: /var/lib/sluice/switch]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    worker: WorkerFlags,
    /// OpenFlow datapath id, decimal or hexadecimal with 0x [default: 1]
    #[arg(long, value_name = "ID")]
    dpid: Option<String>,
    /// Controllers to call: tcp:ADDRESS:PORT, ssl:ADDRESS:PORT or unix:PATH, separated by commas or given several times
    #[arg(long, value_name = "TARGET")]
    controller: Vec<String>,
    /// Where controllers and tools may call: ptcp:ADDRESS:PORT, pssl:ADDRESS:PORT or punix:PATH, likewise
    #[arg(long, value_name = "TARGET")]
    listen: Vec<String>,
    /// PEM file with the switch's private key, for ssl: and pssl:
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// PEM file with the switch's certificate
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// PEM file with the certificates of those who sign the controllers' certificates
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Without flows and controller: standalone (learn and forward) or secure (drop) [default: standalone]
    #[arg(long, value_name = "MODE")]
    fail_mode: Option<String>,
    /// Flow entries at most [default: 1000000]
    #[arg(long, value_name = "COUNT")]
    flow_limit: Option<String>,
    /// Groups at most [default: 4096]
    #[arg(long, value_name = "COUNT")]
    group_limit: Option<String>,
    /// Meters at most [default: 65536]
    #[arg(long, value_name = "COUNT")]
    meter_limit: Option<String>,
    /// How long a learned address is kept without a frame from it, in seconds [default: 300]
    #[arg(long, value_name = "SECONDS")]
    ageing_s: Option<String>,
    /// Packet-ins a second sent to each controller at most [default: 50000]
    #[arg(long, value_name = "COUNT")]
    packet_in_rate: Option<String>,
    /// Packet-ins a second that packets of one port can cause in each worker [default: a fifth of packet-in-rate]
    #[arg(long, value_name = "COUNT")]
    port_packet_in_rate: Option<String>,
}

impl Flags {
    fn resolve(&self) -> anyhow::Result<DaemonConfig> {
        let mut settings = Settings::read(self.config.as_deref());
        let joined = |list: &[String]| (!list.is_empty()).then(|| list.join(","));
        let (controllers, listen) = (joined(&self.controller), joined(&self.listen));
        let defaults = BridgeConfig::default();
        let tls = self.tls(&mut settings);
        let mut config = DaemonConfig {
            state_dir: settings
                .path("state_dir", self.state_dir.as_deref())
                .unwrap_or_else(|| PathBuf::from("/var/lib/sluice/switch")),
            run_dir: settings.run_dir(self.worker.run_dir.as_deref()),
            metrics: settings.metrics(self.worker.metrics.as_deref()),
            cores: settings.cores(self.worker.cores.as_deref()),
            spin_us: settings.spin_us(self.worker.spin_us.as_deref()),
            bridge: BridgeConfig {
                datapath_id: settings
                    .get("dpid", self.dpid.as_deref(), "give a number from 1 to 2^64-1", parse_dpid)
                    .unwrap_or(defaults.datapath_id),
                fail_mode: settings
                    .get("fail_mode", self.fail_mode.as_deref(), "give standalone or secure", parse_fail_mode)
                    .unwrap_or(defaults.fail_mode),
                flow_limit: settings
                    .parsed("flow_limit", self.flow_limit.as_deref(), "give a number of flows")
                    .unwrap_or(defaults.flow_limit),
                group_limit: settings
                    .parsed("group_limit", self.group_limit.as_deref(), "give a number of groups")
                    .unwrap_or(defaults.group_limit),
                meter_limit: settings
                    .parsed("meter_limit", self.meter_limit.as_deref(), "give a number of meters")
                    .unwrap_or(defaults.meter_limit),
            },
            controllers: settings.list(
                "controller",
                controllers.as_deref(),
                "give tcp:ADDRESS[:PORT], ssl:ADDRESS[:PORT] or unix:PATH",
                parse_controller,
            ),
            listen: settings.list(
                "listen",
                listen.as_deref(),
                "give ptcp:ADDRESS[:PORT], pssl:ADDRESS[:PORT] or punix:PATH",
                parse_listener,
            ),
            tls: None,
            ageing: settings
                .get("ageing_s", self.ageing_s.as_deref(), "give seconds, 10 to 1000000", |text| {
                    match text.parse() {
                        // IEEE 802.1Q-2018, table 8-6.
                        Ok(seconds @ 10..=1_000_000) => Ok(Duration::from_secs(seconds)),
                        _ => Err("is not an ageing time".to_string()),
                    }
                })
                .unwrap_or(Duration::from_secs(300)),
            packet_ins: self.packet_ins(&mut settings),
        };
        let wanted = |address: &&OpenFlowAddress| matches!(address, OpenFlowAddress::Tls(_));
        let needs = config.controllers.iter().chain(&config.listen).find(wanted);
        config.tls = tls.load(&mut settings, needs.map(ToString::to_string));
        settings.finish()?;
        Ok(config)
    }

    fn packet_ins(&self, settings: &mut Settings) -> PacketInLimits {
        let flag = self.packet_in_rate.as_deref();
        let remedy = format!("give a number from 1 to {PACKET_INS_MAX}");
        let rate = settings.get("packet_in_rate", flag, &remedy, |text| parse_rate(text, PACKET_INS_MAX));
        let limits = rate.map_or_else(PacketInLimits::default, PacketInLimits::with_controller);
        let flag = self.port_packet_in_rate.as_deref();
        let remedy = format!(
            "give a number from 1 to packet_in_rate ({}): one port could keep the others out",
            limits.controller
        );
        let parse = |text: &str| parse_rate(text, limits.controller);
        let port = settings.get("port_packet_in_rate", flag, &remedy, parse).unwrap_or(limits.port);
        PacketInLimits { port, ..limits }
    }

    fn tls(&self, settings: &mut Settings) -> TlsSettings {
        TlsSettings {
            key: settings.path("tls_key", self.tls_key.as_deref()),
            cert: settings.path("tls_cert", self.tls_cert.as_deref()),
            ca: settings.path("tls_ca", self.tls_ca.as_deref()),
        }
    }
}

fn parse_dpid(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    match parsed {
        Ok(0) | Err(_) => Err("is not a datapath id".to_string()),
        Ok(dpid) => Ok(dpid),
    }
}

fn parse_rate(text: &str, most: u32) -> Result<u32, String> {
    match text.parse() {
        Ok(rate) if (1..=most).contains(&rate) => Ok(rate),
        _ => Err("is no such rate".to_string()),
    }
}

fn parse_fail_mode(text: &str) -> Result<FailMode, String> {
    match text {
        "standalone" => Ok(FailMode::Standalone),
        "secure" => Ok(FailMode::Secure),
        _ => Err("is not a fail mode".to_string()),
    }
}

/// More packet-ins a second than any controller takes.
const PACKET_INS_MAX: u32 = 100_000_000;

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.verb {
        Verb::Run(flags) => {
            let config = flags.resolve()?;
            telemetry::logs::init(telemetry::logs::Format::Text);
            Ok(vswitch::daemon::run(config)?)
        }
        Verb::List(args) => topology::switches(&args),
        Verb::Show { dpid, look } => topology::switch(&dpid, &look),
        Verb::Check(flags) => {
            let config = flags.resolve()?;
            output::line(format_args!("the configuration is good: {config:?}"));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Program {
        #[command(flatten)]
        flags: Flags,
    }

    fn limits(args: &[&str]) -> anyhow::Result<PacketInLimits> {
        let program = Program::parse_from([&["run"], args].concat());
        program.flags.resolve().map(|config| config.packet_ins)
    }

    #[test]
    fn packet_in_limits_are_checked_and_fit_each_other() {
        let of = |controller, port| PacketInLimits { controller, port };
        assert_eq!(limits(&[]).unwrap(), of(50_000, 10_000));
        assert_eq!(limits(&["--packet-in-rate", "1000"]).unwrap(), of(1000, 200));
        assert_eq!(limits(&["--packet-in-rate", "2"]).unwrap(), of(2, 1));
        assert_eq!(limits(&["--port-packet-in-rate", "7"]).unwrap(), of(50_000, 7));
        for wrong in [
            &["--packet-in-rate", "0"][..],
            &["--packet-in-rate", "many"],
            &["--port-packet-in-rate", "0"],
            &["--packet-in-rate", "100", "--port-packet-in-rate", "101"],
        ] {
            let said = limits(wrong).unwrap_err().to_string();
            assert!(said.contains(wrong[wrong.len() - 2]) && said.contains("give a number from 1"), "{said}");
        }
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, b"packet_in_rate = 500\nport_packet_in_rate = 20\n").unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(limits(&["--config", path]).unwrap(), of(500, 20));
    }
}
