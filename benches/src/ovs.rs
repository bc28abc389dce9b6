//! A private Open vSwitch with its DPDK data path: the peer of the switch.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use xtask::lab::{Lifetime, Process, wait_for};

use crate::SERVER_CORE;

const DAEMON: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const START_LIMIT: Duration = Duration::from_secs(60);

/// Open vSwitch in directories and a network namespace of its own, with one bridge `br0` and one polling thread.
pub struct OvsDpdk {
    daemon: Option<Process>,
    database: Option<Process>,
    namespace: String,
    dir: TempDir,
}

impl OvsDpdk {
    /// Starts it with `ports` vhost-user ports (server sockets), OpenFlow numbers from 1 on.
    ///
    /// # Errors
    /// When a package is missing or it does not come up.
    pub fn start(ports: u32) -> anyhow::Result<OvsDpdk> {
        ensure!(Path::new(DAEMON).exists(), "{DAEMON} is not there; apt-get install openvswitch-switch-dpdk");
        let dir = TempDir::with_prefix("sluice-ovs-")?;
        let namespace = format!("sluice-ovs-{}", std::process::id());
        let mut ovs = OvsDpdk { daemon: None, database: None, namespace, dir };
        run(Command::new("ip").args(["netns", "add", &ovs.namespace]))?;
        run(Command::new("ip").args(["-n", &ovs.namespace, "link", "set", "lo", "up"]))?;
        ovs.start_database()?;
        ovs.start_daemon()?;
        ovs.vsctl(&[
            "add-br",
            "br0",
            "--",
            "set",
            "bridge",
            "br0",
            "datapath_type=netdev",
            "fail-mode=secure",
        ])?;
        ovs.vsctl(&["set", "bridge", "br0", "protocols=OpenFlow13"])?;
        for number in 1..=ports {
            let (name, request) = (format!("p{number}"), format!("ofport_request={number}"));
            ovs.vsctl(&[
                "add-port",
                "br0",
                &name,
                "--",
                "set",
                "Interface",
                &name,
                "type=dpdkvhostuser",
                &request,
            ])?;
        }
        Ok(ovs)
    }

    /// The socket of the port with OpenFlow number `number`.
    pub fn socket(&self, number: u32) -> PathBuf {
        self.dir.path().join(format!("p{number}"))
    }

    /// Replaces all flows by these, in the syntax of `ovs-ofctl`.
    ///
    /// # Errors
    /// What `ovs-ofctl` says.
    pub fn set_flows(&self, flows: &[&str]) -> anyhow::Result<()> {
        set_flows(&self.dir.path().join("br0.mgmt").display().to_string(), flows)
    }

    /// Forgets the polling thread's figures.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn clear_figures(&self) -> anyhow::Result<()> {
        self.appctl("dpif-netdev/pmd-stats-clear").map(drop)
    }

    /// Cycles a packet that the polling thread spent while it had packets, as it reports them.
    ///
    /// # Errors
    /// When the daemon does not answer or had no packets.
    pub fn cycles_per_packet(&self) -> anyhow::Result<f64> {
        let text = self.appctl("dpif-netdev/pmd-stats-show")?;
        let figures = text.lines().filter_map(|line| line.split_once("avg processing cycles per packet:"));
        let figure =
            figures.filter_map(|(_, value)| value.split_whitespace().next()?.parse::<f64>().ok()).next();
        figure.with_context(|| format!("no cycles per packet in:\n{text}"))
    }

    fn start_database(&mut self) -> anyhow::Result<()> {
        let file = self.dir.path().join("conf.db");
        run(self.command("ovsdb-tool").arg("create").arg(&file).arg(SCHEMA))?;
        let mut command = self.command("ovsdb-server");
        command
            .arg(&file)
            .arg(format!("--remote=punix:{}", self.socket_of_database().display()))
            .arg("--no-chdir");
        command.arg(format!("--unixctl={}", self.dir.path().join("database.ctl").display()));
        let log = self.dir.path().join("ovsdb-server.log");
        self.database = Some(Process::start("ovsdb-server", &command, &log, Lifetime::Ours)?);
        let socket = self.socket_of_database();
        wait_for("ovsdb-server's socket", START_LIMIT, || Ok(socket.exists().then_some(())))?;
        self.vsctl(&["--no-wait", "init"])
    }

    fn start_daemon(&mut self) -> anyhow::Result<()> {
        let mask = format!("{:#x}", 1 << SERVER_CORE);
        let settings = [
            "other_config:dpdk-init=true".to_string(),
            "other_config:dpdk-socket-mem=1024".to_string(),
            format!("other_config:dpdk-lcore-mask={mask}"),
            format!("other_config:pmd-cpu-mask={mask}"),
            "other_config:dpdk-extra=--no-pci --in-memory --single-file-segments".to_string(),
        ];
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        self.vsctl(&[&["--no-wait", "set", "Open_vSwitch", "."], &settings[..]].concat())?;
        let mut command = self.command("ip");
        command.args(["netns", "exec", &self.namespace, DAEMON]).arg(self.database_address());
        command.args(["--no-chdir", "--mlockall"]);
        command.arg(format!("--unixctl={}", self.control().display()));
        let log = self.dir.path().join("ovs-vswitchd.log");
        let daemon = self.daemon.insert(Process::start("ovs-vswitchd", &command, &log, Lifetime::Ours)?);
        let control = self.dir.path().join("daemon.ctl");
        wait_for("ovs-vswitchd's control socket", START_LIMIT, || {
            daemon.alive()?;
            Ok(control.exists().then_some(()))
        })
    }

    fn control(&self) -> PathBuf {
        self.dir.path().join("daemon.ctl")
    }

    fn socket_of_database(&self) -> PathBuf {
        self.dir.path().join("db.sock")
    }

    fn database_address(&self) -> String {
        format!("unix:{}", self.socket_of_database().display())
    }

    fn vsctl(&self, words: &[&str]) -> anyhow::Result<()> {
        let timeout = format!("--timeout={}", START_LIMIT.as_secs());
        let database = format!("--db={}", self.database_address());
        run(self.command("ovs-vsctl").args([&timeout, &database]).args(words)).map(drop)
    }

    fn appctl(&self, words: &str) -> anyhow::Result<String> {
        run(self.command("ovs-appctl").arg("-t").arg(self.control()).arg(words))
    }

    /// A command of Open vSwitch's that keeps to our directories.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
            command.env(variable, self.dir.path());
        }
        command
    }
}

impl Drop for OvsDpdk {
    fn drop(&mut self) {
        // In this order, so that the daemon does not see its database go.
        self.daemon = None;
        self.database = None;
        // An error here has nobody to go to; `ip netns list` shows what is left.
        let _ = Command::new("ip").args(["netns", "delete", &self.namespace]).status();
    }
}

/// Replaces all flows of the switch at `target` by `flows`, both in the syntax of `ovs-ofctl`.
///
/// # Errors
/// What `ovs-ofctl` says.
pub fn set_flows(target: &str, flows: &[&str]) -> anyhow::Result<()> {
    crate::need("ovs-ofctl", "openvswitch-common")?;
    let target = if target.contains(':') { target.to_string() } else { format!("unix:{target}") };
    run(Command::new("ovs-ofctl").args(["-O", "OpenFlow13", "del-flows", &target]))?;
    for flow in flows {
        run(Command::new("ovs-ofctl").args(["-O", "OpenFlow13", "add-flow", &target, flow]))?;
    }
    Ok(())
}

/// Runs a command to its end and returns what it printed.
fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
