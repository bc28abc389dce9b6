//! What the switch daemon is started with.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

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
    /// How long a learned address is kept without a frame from it.
    pub ageing: Duration,
}

/// The address of one end of an OpenFlow connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OpenFlowAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for OpenFlowAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenFlowAddress::Tcp(address) => write!(f, "tcp:{address}"),
            OpenFlowAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Reads the address of a controller to call: `tcp:ADDRESS[:PORT]` or `unix:PATH`, as `ovs-vsctl` writes it.
///
/// # Errors
/// What is wrong with it.
pub fn parse_controller(text: &str) -> Result<OpenFlowAddress, String> {
    parse(text, "tcp:", "unix:")
}

/// Reads the address to listen at: `ptcp:ADDRESS[:PORT]` or `punix:PATH`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_listener(text: &str) -> Result<OpenFlowAddress, String> {
    parse(text, "ptcp:", "punix:")
}

/// The port that IANA gave OpenFlow.
const OPENFLOW_PORT: u16 = 6653;

fn parse(text: &str, tcp: &str, unix: &str) -> Result<OpenFlowAddress, String> {
    if let Some(path) = text.strip_prefix(unix) {
        let absolute = path.starts_with('/');
        return if absolute {
            Ok(OpenFlowAddress::Unix(path.into()))
        } else {
            Err("has no absolute path".to_string())
        };
    }
    let Some(address) = text.strip_prefix(tcp) else {
        return Err(format!("begins neither with `{tcp}` nor with `{unix}`"));
    };
    let with_port = address.parse::<SocketAddr>();
    let parsed = with_port.or_else(|_| Ok(SocketAddr::new(address.parse()?, OPENFLOW_PORT)));
    parsed
        .map(OpenFlowAddress::Tcp)
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
        ] {
            assert!(parse_controller(text).is_err(), "{text}");
        }
        assert!(parse_listener("tcp:127.0.0.1:6653").is_err());
    }
}
