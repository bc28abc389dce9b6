//! What the switch daemon is started with.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use telemetry::tls::Tls;

use crate::bridge::BridgeConfig;

/// Settings of the switch daemon, resolved and checked.
#[derive(Clone, Debug)]
pub struct DaemonConfig {
    /// Where the list of ports is kept over restarts; held by one daemon at a time.
    pub state_dir: PathBuf,
    /// Where the ports' sockets and the admin socket stand.
    pub run_dir: PathBuf,
    /// Where Prometheus scrapes; `None` serves no metrics.
    pub metrics: Option<SocketAddr>,
    /// Processors to pin workers to, one worker each; empty means one worker that is not pinned.
    pub cores: Vec<usize>,
    /// How long a worker polls without work before it sleeps, in microseconds.
    pub spin_us: u32,
    /// Datapath id, fail mode and limits.
    pub bridge: BridgeConfig,
    /// Controllers to call, again and again until they answer.
    pub controllers: Vec<OpenFlowAddress>,
    /// Where controllers and tools may call us.
    pub listen: Vec<OpenFlowAddress>,
    /// Who we are to those that speak TLS, and whom of them we believe; needed for addresses with TLS only.
    pub tls: Option<Tls>,
    /// How long a learned address is kept without a frame from it.
    pub ageing: Duration,
    /// What guests can make the switch tell controllers.
    pub packet_ins: PacketInLimits,
}

/// Packet-ins a second at most, so that a guest can neither flood a controller nor keep it from hearing the others; the rest
/// is dropped and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketInLimits {
    /// Sent to each controller.
    pub controller: u32,
    /// Caused by packets of one port in one worker.
    pub port: u32,
}

impl PacketInLimits {
    /// The limit of ports that fits the one of controllers: the fifth part.
    pub fn with_controller(controller: u32) -> PacketInLimits {
        PacketInLimits { controller, port: (controller / 5).max(1) }
    }
}

impl Default for PacketInLimits {
    fn default() -> PacketInLimits {
        PacketInLimits::with_controller(50_000)
    }
}

/// The address of one end of an OpenFlow connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OpenFlowAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// TLS over TCP.
    Tls(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for OpenFlowAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenFlowAddress::Tcp(address) => write!(f, "tcp:{address}"),
            OpenFlowAddress::Tls(address) => write!(f, "ssl:{address}"),
            OpenFlowAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Reads the address of a controller to call: `tcp:ADDRESS[:PORT]`, `ssl:ADDRESS[:PORT]` or `unix:PATH`, as
/// `ovs-vsctl` writes it.
///
/// # Errors
/// What is wrong with it.
pub fn parse_controller(text: &str) -> Result<OpenFlowAddress, String> {
    parse(text, ["tcp:", "ssl:", "unix:"])
}

/// Reads the address to listen at: `ptcp:ADDRESS[:PORT]`, `pssl:ADDRESS[:PORT]` or `punix:PATH`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_listener(text: &str) -> Result<OpenFlowAddress, String> {
    parse(text, ["ptcp:", "pssl:", "punix:"])
}

/// The port that IANA gave OpenFlow.
const OPENFLOW_PORT: u16 = 6653;

fn parse(text: &str, prefixes: [&str; 3]) -> Result<OpenFlowAddress, String> {
    let [tcp, tls, unix] = prefixes;
    if let Some(path) = text.strip_prefix(unix) {
        let absolute = path.starts_with('/');
        return if absolute {
            Ok(OpenFlowAddress::Unix(path.into()))
        } else {
            Err("has no absolute path".to_string())
        };
    }
    if let Some(address) = text.strip_prefix(tcp) {
        return parse_address(address).map(OpenFlowAddress::Tcp);
    }
    match text.strip_prefix(tls) {
        Some(address) => parse_address(address).map(OpenFlowAddress::Tls),
        None => Err(format!("begins with none of `{tcp}`, `{tls}` and `{unix}`")),
    }
}

fn parse_address(address: &str) -> Result<SocketAddr, String> {
    let with_port = address.parse::<SocketAddr>();
    with_port
        .or_else(|_| Ok(SocketAddr::new(address.parse()?, OPENFLOW_PORT)))
        .map_err(|error: std::net::AddrParseError| format!("has no IP address ({error})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let tcp = |text: &str| OpenFlowAddress::Tcp(text.parse().expect("an address"));
        assert_eq!(parse_controller("tcp:127.0.0.1:6653"), Ok(tcp("127.0.0.1:6653")));
        assert_eq!(parse_controller("tcp:127.0.0.1"), Ok(tcp("127.0.0.1:6653")));
        assert_eq!(parse_controller("tcp:[::1]:7"), Ok(tcp("[::1]:7")));
        let tls = |text: &str| OpenFlowAddress::Tls(text.parse().expect("an address"));
        assert_eq!(parse_controller("ssl:127.0.0.1"), Ok(tls("127.0.0.1:6653")));
        assert_eq!(parse_listener("pssl:[::1]:6654"), Ok(tls("[::1]:6654")));
        assert_eq!(parse_listener("ptcp:0.0.0.0:6654"), Ok(tcp("0.0.0.0:6654")));
        assert_eq!(parse_listener("punix:/run/s.mgmt"), Ok(OpenFlowAddress::Unix("/run/s.mgmt".into())));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "127.0.0.1:6653",
            "tcp:",
            "tcp:host:6653",
            "tcp:127.0.0.1:70000",
            "unix:here",
            "ptcp:127.0.0.1",
            "pssl:127.0.0.1",
            "ssl:host",
        ] {
            assert!(parse_controller(text).is_err(), "{text}");
        }
        assert!(parse_listener("tcp:127.0.0.1:6653").is_err());
    }
}
