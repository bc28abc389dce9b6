//! The settings of the controller daemon.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sdn_controller::auth::{Grant, Role};
use sdn_controller::controller::Options;
use sdn_controller::datapath::Foreign;
use sdn_controller::model::VlanRange;
use sdn_controller::rest::RestConfig;
use sdn_controller::{DaemonConfig, OpenFlowAddress};
use telemetry::tls::https_server;

use crate::settings::{Settings, TlsSettings};

/// As LLDP implementations do while a link is new (IEEE 802.1AB: 1 s fast, 30 s slow): links are found and lost soon.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// Long enough to keep a storm short, short enough that nobody has to open a port by hand.
const LOOP_HOLD: Duration = Duration::from_secs(60);
const ADDRESS: &str = "give an address and a port, such as 127.0.0.1:8080";

/// Settings of the daemon; each is also a key of the file given by --config, where a flag wins.
#[derive(clap::Args)]
pub struct Settable {
    /// TOML file with settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the desired state
    #[arg(long, value_name = "DIR", help_heading = "Settings")]
    state_dir: Option<PathBuf>,
    /// Where switches connect, default tcp:127.0.0.1:6653: tcp:ADDRESS:PORT or, for TLS, ssl:ADDRESS:PORT, separated by
    /// commas
    #[arg(long, value_name = "TARGET,...", help_heading = "Settings")]
    openflow: Option<String>,
    /// PEM file with the controller's private key, for ssl:
    #[arg(long, value_name = "FILE", help_heading = "Settings")]
    tls_key: Option<PathBuf>,
    /// PEM file with the controller's certificate
    #[arg(long, value_name = "FILE", help_heading = "Settings")]
    tls_cert: Option<PathBuf>,
    /// PEM file with the authorities that sign the certificates of switches
    #[arg(long, value_name = "FILE", help_heading = "Settings")]
    tls_ca: Option<PathBuf>,
    /// Whether this controller leads where another one drives the same switches: the one with the highest number does,
    /// the others stand by [default: there is no other]
    #[arg(long, value_name = "0-65535", help_heading = "Settings")]
    priority: Option<String>,
    /// Where REST is served, default 127.0.0.1:8080; any address but a loopback one needs TLS, and tokens or rest_clients
    #[arg(long, value_name = "ADDRESS:PORT", help_heading = "Settings")]
    rest: Option<String>,
    /// PEM file with the private key of the REST server, for TLS
    #[arg(long, value_name = "FILE", help_heading = "Settings")]
    rest_key: Option<PathBuf>,
    /// PEM file with its certificate
    #[arg(long, value_name = "FILE", help_heading = "Settings")]
    rest_cert: Option<PathBuf>,
    /// PEM file with the authorities that sign the certificates of those who ask
    #[arg(long, value_name = "FILE", help_heading = "Settings")]
    rest_ca: Option<PathBuf>,
    /// What those may who show a certificate, by its common name: read, operate or admin, in one tenant or in all
    #[arg(long, value_name = "NAME=ROLE[:TENANT],...", help_heading = "Settings")]
    rest_clients: Option<String>,
    /// What those on this host may without a token on a loopback address: admin (default, but none with rest_proxies),
    /// operate, read or none
    #[arg(long, value_name = "ROLE", help_heading = "Settings")]
    rest_loopback_role: Option<String>,
    /// Further names under which browsers may ask a loopback address
    #[arg(long, value_name = "NAME,...", help_heading = "Settings")]
    rest_hosts: Option<String>,
    /// Addresses of reverse proxies that are believed when X-Forwarded-For and X-Forwarded-Host say for whom they ask
    #[arg(long, value_name = "ADDRESS,...", help_heading = "Settings")]
    rest_proxies: Option<String>,
    /// What a reverse proxy puts before every path, such as /sluice
    #[arg(long, value_name = "PATH", help_heading = "Settings")]
    rest_base: Option<String>,
    /// Directory of the daemon's socket, default /run/sluice
    #[arg(long, value_name = "DIR", help_heading = "Settings")]
    run_dir: Option<PathBuf>,
    /// VLAN ids that the controller may choose for networks that name none, default 2000-3999
    #[arg(long, value_name = "FIRST-LAST", help_heading = "Settings")]
    vlan_range: Option<String>,
    /// What to do with flow entries of others when a switch connects: keep (default) or remove
    #[arg(long, value_name = "keep|remove", help_heading = "Settings")]
    foreign_flows: Option<String>,
    /// How often LLDP probes go out of the ports of switches to find what connects them, 0 for never [default: 5]
    #[arg(long, value_name = "SECONDS", help_heading = "Settings")]
    probe_s: Option<String>,
    /// How long a port of hosts is shut when a loop within one network goes through it or an address flaps, 0 for not at
    /// all [default: 60]
    #[arg(long, value_name = "SECONDS", help_heading = "Settings")]
    loop_hold_s: Option<String>,
    /// Where Prometheus metrics are served, default nowhere
    #[arg(long, value_name = "ADDRESS:PORT", help_heading = "Settings")]
    metrics: Option<String>,
}

fn parse_vlans(text: &str) -> Result<VlanRange, String> {
    let numbers =
        text.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    match numbers {
        Some((first, last)) if 1 <= first && first <= last && last <= 4094 => Ok(VlanRange { first, last }),
        _ => Err("is no range of VLAN ids".to_owned()),
    }
}

fn parse_openflow(text: &str) -> Result<OpenFlowAddress, String> {
    let (kind, address) = text.split_once(':').ok_or("has no protocol")?;
    let address = address.parse().map_err(|_| format!("`{address}` is no address and port"));
    match kind {
        "tcp" => address.map(OpenFlowAddress::Tcp),
        "ssl" => address.map(OpenFlowAddress::Tls),
        _ => Err("begins with neither tcp: nor ssl:".to_owned()),
    }
}

fn parse_client(text: &str) -> Result<(String, Grant), String> {
    let (name, grant) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("has no NAME=")?;
    let (role, tenant) = match grant.split_once(':') {
        Some((role, tenant)) => (role, Some(tenant.to_owned())),
        None => (grant, None),
    };
    let role: Role = role.parse().map_err(|error| format!("`{role}` {error}"))?;
    if role == Role::Admin && tenant.is_some() {
        return Err(format!("{name} cannot be admin of one tenant: that role is over all of them"));
    }
    Ok((name.to_owned(), Grant { role, tenant }))
}

impl Settable {
    /// The settings, or everything that is wrong with them.
    pub fn resolve(&self) -> anyhow::Result<DaemonConfig> {
        let mut settings = Settings::read(self.config.as_deref());
        let state_dir = settings.path("state_dir", self.state_dir.as_deref());
        let remedy = "give tcp:ADDRESS:PORT or ssl:ADDRESS:PORT, such as tcp:127.0.0.1:6653";
        let mut openflow = settings.list("openflow", self.openflow.as_deref(), remedy, parse_openflow);
        if openflow.is_empty() {
            openflow.push(OpenFlowAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], 6653))));
        }
        let files = TlsSettings {
            key: settings.path("tls_key", self.tls_key.as_deref()),
            cert: settings.path("tls_cert", self.tls_cert.as_deref()),
            ca: settings.path("tls_ca", self.tls_ca.as_deref()),
        };
        let needs = openflow.iter().find(|address| matches!(address, OpenFlowAddress::Tls(_)));
        let tls = files.load(&mut settings, needs.map(ToString::to_string));
        let priority =
            settings.parsed::<u16>("priority", self.priority.as_deref(), "give a number, 0 to 65535");
        let seconds = |text: &str| match text.parse::<u64>() {
            Ok(0) => Ok(None),
            Ok(seconds @ 1..=3600) => Ok(Some(Duration::from_secs(seconds))),
            _ => Err("is no such time".to_owned()),
        };
        let remedy = "give seconds, 1 to 3600, or 0 for none";
        let probe_interval = settings.get("probe_s", self.probe_s.as_deref(), remedy, seconds);
        let loop_hold = settings.get("loop_hold_s", self.loop_hold_s.as_deref(), remedy, seconds);
        let rest = self.rest(&mut settings);
        let metrics = settings.parsed::<SocketAddr>("metrics", self.metrics.as_deref(), ADDRESS);
        let run_dir = settings.path("run_dir", self.run_dir.as_deref());
        let remedy = "give two VLAN ids, such as 2000-3999";
        let vlans = settings.get("vlan_range", self.vlan_range.as_deref(), remedy, parse_vlans);
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
            openflow,
            tls,
            rest,
            metrics,
            options: Options {
                vlans: vlans.unwrap_or_default(),
                foreign: foreign.unwrap_or_default(),
                priority,
                probe_interval: probe_interval.unwrap_or(Some(PROBE_INTERVAL)),
                loop_hold: loop_hold.unwrap_or(Some(LOOP_HOLD)),
            },
        })
    }

    fn rest(&self, settings: &mut Settings) -> RestConfig {
        let address = settings.parsed::<SocketAddr>("rest", self.rest.as_deref(), ADDRESS);
        let mut config =
            RestConfig::local(address.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080))));
        let key = settings.path("rest_key", self.rest_key.as_deref());
        let cert = settings.path("rest_cert", self.rest_cert.as_deref());
        let ca = settings.path("rest_ca", self.rest_ca.as_deref());
        let clients = settings.list(
            "rest_clients",
            self.rest_clients.as_deref(),
            "give NAME=ROLE or NAME=ROLE:TENANT, such as alice=admin,bob=operate:acme",
            parse_client,
        );
        config.clients = clients.into_iter().collect::<BTreeMap<_, _>>();
        if !config.clients.is_empty() && ca.is_none() {
            let remedy = "give rest_ca, a PEM file";
            settings.refuse("rest_clients", "", "does nothing without those who sign certificates", remedy);
        }
        match (&key, &cert) {
            (Some(key), Some(cert)) => match https_server(key, cert, ca.as_deref()) {
                Ok(tls) => config.tls = Some(Arc::clone(&tls)),
                Err(error) => {
                    let remedy = "give PEM files that belong together";
                    settings.refuse("rest_key", &key.display().to_string(), error.to_string(), remedy);
                }
            },
            (None, None) => {
                if let Some(ca) = &ca {
                    let detail = "does nothing without TLS";
                    settings.refuse(
                        "rest_ca",
                        &ca.display().to_string(),
                        detail,
                        "give rest_key and rest_cert",
                    );
                }
                if !config.address.ip().is_loopback() {
                    let remedy = "give rest_key and rest_cert, or listen on a loopback address";
                    let detail = "is reachable by other hosts without TLS";
                    settings.refuse("rest", &config.address.to_string(), detail, remedy);
                }
            }
            _ => settings.refuse("rest_key", "", "goes with rest_cert", "give both or neither"),
        }
        self.doors(settings, &mut config);
        config
    }

    /// Whom a browser or a proxy may come from.
    fn doors(&self, settings: &mut Settings, config: &mut RestConfig) {
        let address = |text: &str| {
            text.parse::<IpAddr>().map_err(|_| format!("has the part `{text}`, which is no address"))
        };
        let remedy = "give addresses, such as 127.0.0.1";
        config.proxies = settings.list("rest_proxies", self.rest_proxies.as_deref(), remedy, address);
        let name = |text: &str| Ok(text.to_owned());
        config.hosts = settings.list("rest_hosts", self.rest_hosts.as_deref(), "give host names", name);
        let role = |text: &str| match text {
            "none" => Ok(None),
            _ => text.parse().map(Some).map_err(str::to_owned),
        };
        let remedy = "give admin, operate, read or none";
        let loopback = settings.get("rest_loopback_role", self.rest_loopback_role.as_deref(), remedy, role);
        // Everybody whom a proxy lets in comes from its address.
        let usual = if config.proxies.is_empty() { Some(Role::Admin) } else { None };
        config.loopback = loopback.unwrap_or(usual);
        let base = |text: &str| match text.trim_end_matches('/') {
            "" => Ok(String::new()),
            path if path.starts_with('/') && !path.contains(['?', '#', '%', ' ']) => Ok(path.to_owned()),
            _ => Err("is no path".to_owned()),
        };
        let remedy = "give a path such as /sluice";
        let base = settings.get("rest_base", self.rest_base.as_deref(), remedy, base);
        config.base = base.unwrap_or_default();
    }
}
