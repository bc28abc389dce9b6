//! The three daemons of the project, started as an operator would start them.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{self as unix, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::http::Metrics;
use super::process::{Lifetime, Process};
use super::wait::wait_for;
use crate::paths;

/// How long a daemon may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(60);

/// The program, built, and where one set of its daemons lives.
#[derive(Clone, Debug)]
pub struct Site {
    /// The program `sluice`.
    pub program: PathBuf,
    /// Holds everything below.
    pub dir: PathBuf,
    /// How long what is started here lives.
    pub lifetime: Lifetime,
    /// Whether the daemons take the ports that the documents name, where they are free. Tests that run side by side
    /// would take them from each other.
    pub usual_ports: bool,
}

impl Site {
    /// A site in the directory `dir` with the program of the debug build.
    pub fn debug(dir: &Path) -> anyhow::Result<Site> {
        let program = paths::target().join("debug/sluice");
        if !program.is_file() {
            bail!("{} is not there; `cargo build` makes it", program.display());
        }
        Site { program, dir: dir.into(), lifetime: Lifetime::Ours, usual_ports: false }.prepared()
    }

    /// The same with its directories made.
    pub fn prepared(self) -> anyhow::Result<Site> {
        for dir in [self.run_dir(), self.dir.join("state")] {
            std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        }
        Ok(self)
    }

    /// Directory of the sockets.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The socket of a volume or port.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.run_dir().join(format!("{name}.sock"))
    }

    /// A command of the program that finds the daemons of this site.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).env("SLUICE_RUN_DIR", self.run_dir());
        command
    }

    /// Runs a command of the program to its end; its error is what it said.
    pub fn sluice(&self, args: &[&str]) -> anyhow::Result<String> {
        let output =
            self.command(args).output().with_context(|| format!("running {}", self.program.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("sluice {} ({}): {}", args.join(" "), output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a command with `-o json` and returns what it printed.
    pub fn sluice_json(&self, args: &[&str]) -> anyhow::Result<Value> {
        let args = [args, &["-o", "json"]].concat();
        let text = self.sluice(&args)?;
        serde_json::from_str(&text).with_context(|| format!("sluice {}: not JSON: {text}", args.join(" ")))
    }

    /// Starts the storage daemon.
    pub fn blk(&self) -> anyhow::Result<Daemon> {
        let metrics = self.address(9101)?;
        self.daemon("blk", metrics, &["--cores", "0"])
    }

    /// Starts the switch with a standing order to call the controller at `openflow`.
    pub fn switch(&self, openflow: Option<SocketAddr>) -> anyhow::Result<Daemon> {
        let metrics = self.address(9102)?;
        let address = self.address(6654)?;
        let listen = format!("ptcp:{address}");
        let controller = openflow.map(|address| format!("tcp:{address}"));
        // Beside the storage daemon where there is room.
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let core = if processors > 1 { "1" } else { "0" };
        let mut args = vec!["--cores", core, "--dpid", "1", "--listen", &listen, "--fail-mode", "standalone"];
        if let Some(controller) = &controller {
            args.extend(["--controller", controller]);
        }
        let mut daemon = self.daemon("switch", metrics, &args)?;
        daemon.openflow = Some(format!("tcp:{address}"));
        Ok(daemon)
    }

    /// Starts the controller; returns it with its OpenFlow and REST addresses.
    pub fn controller(&self) -> anyhow::Result<(Daemon, SocketAddr, SocketAddr)> {
        let metrics = self.address(9103)?;
        let (openflow, rest) = (self.address(6653)?, self.address(8080)?);
        let args = ["--openflow", &format!("tcp:{openflow}"), "--rest", &rest.to_string()];
        let mut daemon = self.daemon("controller", metrics, &args)?;
        daemon.wait_listening(rest)?;
        Ok((daemon, openflow, rest))
    }

    fn address(&self, usual: u16) -> anyhow::Result<SocketAddr> {
        free_address(if self.usual_ports { usual } else { 0 })
    }

    fn daemon(&self, noun: &str, metrics: SocketAddr, args: &[&str]) -> anyhow::Result<Daemon> {
        let state = self.dir.join("state").join(noun).display().to_string();
        std::fs::create_dir_all(&state)?;
        let mut command = Command::new(&self.program);
        command.args([noun, "run", "--state-dir", &state]);
        command.arg("--run-dir").arg(self.run_dir());
        command.args(["--metrics", &metrics.to_string()]).args(args);
        command.env("SLUICE_RUN_DIR", self.run_dir());
        let log = self.dir.join(format!("{noun}.log"));
        let admin = self.run_dir().join(format!("{noun}.admin.sock"));
        let process = Process::start(noun, &command, &log, self.lifetime)?;
        let mut daemon = Daemon {
            process,
            command,
            log,
            admin,
            metrics,
            openflow: None,
            lifetime: self.lifetime,
            noun: noun.into(),
        };
        daemon.wait_ready()?;
        Ok(daemon)
    }
}

/// One running daemon. Dropping it ends it.
pub struct Daemon {
    process: Process,
    command: Command,
    log: PathBuf,
    admin: PathBuf,
    metrics: SocketAddr,
    openflow: Option<String>,
    lifetime: Lifetime,
    noun: String,
}

impl Daemon {
    /// Waits until it answers.
    fn wait_ready(&mut self) -> anyhow::Result<()> {
        self.wait_listening(self.metrics)?;
        // The controller is driven over REST; the others over their socket.
        if self.noun == "controller" {
            return Ok(());
        }
        wait_for(&format!("admin socket of {}", self.noun), START_LIMIT, || {
            self.process.alive()?;
            Ok(UnixStream::connect(&self.admin).ok().map(drop))
        })
    }

    fn wait_listening(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        wait_for(&format!("{} on {address}", self.noun), START_LIMIT, || {
            self.process.alive()?;
            Ok(TcpStream::connect(address).ok().map(drop))
        })
    }

    /// The process itself.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Where its metrics are.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    /// Where a switch listens for OpenFlow, as `ovs-ofctl` writes it.
    pub fn openflow(&self) -> Option<&str> {
        self.openflow.as_deref()
    }

    /// Its metrics now.
    pub fn metrics(&self) -> anyhow::Result<Metrics> {
        Metrics::scrape(self.metrics)
    }

    /// Kills it (SIGKILL), as a crash would.
    pub fn crash(&mut self) -> anyhow::Result<()> {
        self.process.kill()
    }

    /// Starts it again with the same command after it ended.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.process = Process::start(&self.noun, &self.command, &self.log, self.lifetime)?;
        self.wait_ready()
    }
}

/// Ports for daemons, below those that the kernel gives to connections by itself: such a port could be taken between our
/// look and the daemon's start, or while a daemon is restarted.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// A loopback address that nobody listens on: port `preferred` when it is free, any with 0. It is offered to no other
/// caller, of whatever process, while this process lives.
pub fn free_address(preferred: u16) -> anyhow::Result<SocketAddr> {
    // Processes that run side by side begin at different places.
    let count = u32::from(PORTS.end - PORTS.start);
    let first = std::process::id().wrapping_mul(37) % count;
    let others = (0..count).map(|n| PORTS.start + ((first + n) % count) as u16);
    let mut ports = std::iter::once(preferred).filter(|port| *port != 0).chain(others);
    let free = ports.find(|port| claim(*port) && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok());
    Ok((Ipv4Addr::LOCALHOST, free.context("no free port on loopback")?).into())
}

/// Takes a port for this process. The claim is a socket without a file, which goes with the process.
fn claim(port: u16) -> bool {
    static CLAIMS: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    let listener = unix::SocketAddr::from_abstract_name(format!("sluice-lab-port-{port}"))
        .and_then(|name| UnixListener::bind_addr(&name));
    let claimed =
        listener.map(|listener| CLAIMS.lock().unwrap_or_else(PoisonError::into_inner).push(listener));
    claimed.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_not_offered() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert_ne!(free_address(port).unwrap().port(), port);
    }

    #[test]
    fn a_port_is_offered_once() {
        let [one, other] = [0; 2].map(|any| free_address(any).unwrap());
        assert_ne!(one, other);
        assert_ne!(free_address(one.port()).unwrap(), one, "although nobody listens there");
    }
}
