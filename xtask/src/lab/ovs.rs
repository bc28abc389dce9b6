//! A private Open vSwitch: database and daemon in a directory and a network namespace of their own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;

use super::netns::Namespace;
use super::process::{Lifetime, Process, output};
use super::wait::wait_for;
use crate::paths::find_program;

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const DPDK_DAEMON: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
/// How long a program of Open vSwitch's may take. A loaded machine is slow.
const LIMIT: Duration = Duration::from_secs(60);

/// What moves the packets. Both run in the daemon: nothing here needs the kernel's module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Datapath {
    /// The plain userspace datapath.
    Userspace,
    /// The same over DPDK, with one polling thread on this processor. Needs 1 GiB of hugepages.
    Dpdk {
        /// The processor.
        core: usize,
    },
}

/// Database and daemon; both end with it.
pub struct Ovs {
    // In this order, so that the daemon does not see its database go.
    daemon: Option<Process>,
    _database: Process,
    datapath: Datapath,
    directory: TempDir,
    namespace: Namespace,
}

impl Ovs {
    /// Starts it without a bridge.
    ///
    /// # Errors
    /// Without root, when a package is missing, or when it does not come up.
    pub fn start(datapath: Datapath) -> anyhow::Result<Ovs> {
        for program in ["ovs-vswitchd", "ovsdb-server", "ovsdb-tool", "ovs-vsctl", "ovs-ofctl"] {
            let remedy = "apt-get install openvswitch-switch";
            ensure!(find_program(program).is_some(), "{program} is not there; {remedy}");
        }
        let dpdk = matches!(datapath, Datapath::Dpdk { .. });
        let there = !dpdk || Path::new(DPDK_DAEMON).exists();
        ensure!(there, "{DPDK_DAEMON} is not there; apt-get install openvswitch-switch-dpdk");
        let directory = TempDir::with_prefix("sluice-ovs-")?;
        let path = |name: &str| directory.path().join(name);
        output(
            in_directory(&directory, Command::new("ovsdb-tool"))
                .arg("create")
                .arg(path("conf.db"))
                .arg(SCHEMA),
        )?;
        let mut command = in_directory(&directory, Command::new("ovsdb-server"));
        command.arg(path("conf.db")).arg(format!("--remote=punix:{}", path("db.sock").display()));
        command.arg(format!("--unixctl={}", path("db.ctl").display())).arg("--no-chdir");
        let mut database = Process::start("ovsdb-server", &command, &path("db.log"), Lifetime::Ours)?;
        wait_for("the database of Open vSwitch", LIMIT, || {
            database.alive()?;
            Ok(path("db.sock").exists().then_some(()))
        })?;
        let namespace = Namespace::new("ovs")?;
        let mut ovs = Ovs { daemon: None, _database: database, datapath, directory, namespace };
        ovs.vsctl(&["--no-wait", "init"])?;
        if let Datapath::Dpdk { core } = datapath {
            let mask = format!("{:#x}", 1u64 << core);
            let settings = [
                "other_config:dpdk-init=true".to_owned(),
                "other_config:dpdk-socket-mem=1024".to_owned(),
                format!("other_config:dpdk-lcore-mask={mask}"),
                format!("other_config:pmd-cpu-mask={mask}"),
                "other_config:dpdk-extra=--no-pci --in-memory --single-file-segments".to_owned(),
            ];
            let settings = settings.each_ref().map(String::as_str);
            ovs.vsctl(&[&["--no-wait", "set", "Open_vSwitch", "."], &settings[..]].concat())?;
        }
        ovs.start_daemon()?;
        Ok(ovs)
    }

    /// The namespace that the daemon runs in; a controller on loopback belongs here too.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// A file in the directory of its sockets and logs.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start_daemon(&mut self) -> anyhow::Result<()> {
        let dpdk = matches!(self.datapath, Datapath::Dpdk { .. });
        let program = if dpdk { DPDK_DAEMON } else { "ovs-vswitchd" };
        let mut command = in_directory(&self.directory, self.namespace.command(program));
        command.arg(self.database()).arg(format!("--unixctl={}", self.path("vswitchd.ctl").display()));
        command.args(["--no-chdir", "-vconsole:warn"]);
        if dpdk {
            command.arg("--mlockall");
        }
        let log = self.path("vswitchd.log");
        let daemon = self.daemon.insert(Process::start("ovs-vswitchd", &command, &log, Lifetime::Ours)?);
        let control = self.directory.path().join("vswitchd.ctl");
        wait_for("the control socket of ovs-vswitchd", LIMIT, || {
            daemon.alive()?;
            Ok(control.exists().then_some(()))
        })
    }

    /// Process id of the daemon.
    pub fn daemon_id(&self) -> Option<u32> {
        self.daemon.as_ref().map(Process::id)
    }

    /// Kills the daemon (SIGKILL) and starts it again: its flow entries are gone.
    ///
    /// # Errors
    /// It does not start.
    pub fn kill_and_restart(&mut self) -> anyhow::Result<()> {
        self.daemon.as_mut().context("it was started")?.kill()?;
        // Left over by the one that was killed.
        std::fs::remove_file(self.path("vswitchd.ctl"))?;
        self.start_daemon()
    }

    /// Configures by `ovs-vsctl`, which waits until the daemon has done it.
    ///
    /// # Errors
    /// It is refused, or not done in time.
    pub fn vsctl(&self, words: &[&str]) -> anyhow::Result<String> {
        let (timeout, database) = (timeout(), format!("--db={}", self.database()));
        output(self.tool("ovs-vsctl").args([&timeout, &database]).args(words))
    }

    /// Asks or tells the daemon by `ovs-appctl`.
    ///
    /// # Errors
    /// It is refused.
    pub fn appctl(&self, words: &[&str]) -> anyhow::Result<String> {
        output(self.tool("ovs-appctl").arg(timeout()).arg("-t").arg(self.path("vswitchd.ctl")).args(words))
    }

    /// Asks or tells a bridge by `ovs-ofctl`.
    ///
    /// # Errors
    /// It is refused.
    pub fn ofctl(&self, verb: &str, bridge: &str, words: &[&str]) -> anyhow::Result<String> {
        ofctl(&self.target(bridge), verb, words)
    }

    /// A bridge as `ovs-ofctl` is told of it.
    pub fn target(&self, bridge: &str) -> String {
        format!("unix:{}", self.path(&format!("{bridge}.mgmt")).display())
    }

    /// The flow entries of a bridge, one a line.
    ///
    /// # Errors
    /// The bridge does not answer.
    pub fn flows(&self, bridge: &str) -> anyhow::Result<Vec<String>> {
        let text = self.ofctl("dump-flows", bridge, &[])?;
        Ok(text.lines().filter(|line| line.contains("cookie=")).map(|line| line.trim().to_owned()).collect())
    }

    /// Makes a bridge without ports and flow entries that does nothing of its own and, if told so, calls the
    /// controller at this address.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn add_bridge(&self, name: &str, dpid: u64, controller: Option<&str>) -> anyhow::Result<()> {
        let id = format!("other-config:datapath-id={dpid:016x}");
        let set = ["datapath_type=netdev", "protocols=OpenFlow13", "fail-mode=secure", &id];
        let mut words = [&["add-br", name, "--", "set", "bridge", name][..], &set].concat();
        words.push("other-config:disable-in-band=true");
        let target = format!("tcp:{}", controller.unwrap_or_default());
        if controller.is_some() {
            words.extend(["--", "set-controller", name, &target]);
            words.extend(["--", "set", "controller", name, "max_backoff=1000"]);
        }
        self.vsctl(&words).map(drop)
    }

    /// Adds port `number`, called `name`, to a bridge: an interface of the namespace, or what `settings` (in the words
    /// of `ovs-vsctl`) make of it.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn add_port(&self, bridge: &str, name: &str, number: u32, settings: &[&str]) -> anyhow::Result<()> {
        let number = format!("ofport_request={number}");
        let words = ["add-port", bridge, name, "--", "set", "interface", name, &number];
        self.vsctl(&[&words[..], settings].concat()).map(drop)
    }

    /// Joins two bridges by a pair of ports of these names and numbers.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn join(&self, ends: [(&str, &str, u32); 2]) -> anyhow::Result<()> {
        let mut words = Vec::new();
        let [one, other] = ends;
        for ((bridge, port, number), (_, peer, _)) in [(one, other), (other, one)] {
            let line = format!("-- add-port {bridge} {port} -- set interface {port} type=patch");
            words.extend(line.split(' ').map(str::to_owned));
            words.extend([format!("options:peer={peer}"), format!("ofport_request={number}")]);
        }
        self.vsctl(&words.iter().map(String::as_str).collect::<Vec<_>>()).map(drop)
    }

    fn database(&self) -> String {
        format!("unix:{}", self.path("db.sock").display())
    }

    fn tool(&self, program: &str) -> Command {
        in_directory(&self.directory, Command::new(program))
    }
}

/// Asks or tells the switch at `target`, of whatever make, by `ovs-ofctl`.
///
/// # Errors
/// It is refused, or the Debian package openvswitch-common is missing.
pub fn ofctl(target: &str, verb: &str, words: &[&str]) -> anyhow::Result<String> {
    let there = find_program("ovs-ofctl").is_some();
    ensure!(there, "ovs-ofctl is not there; apt-get install openvswitch-common");
    output(Command::new("ovs-ofctl").args(["-O", "OpenFlow13", &timeout(), verb, target]).args(words))
}

fn timeout() -> String {
    format!("--timeout={}", LIMIT.as_secs())
}

/// A program of Open vSwitch's that keeps to this directory.
fn in_directory(directory: &TempDir, mut command: Command) -> Command {
    for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
        command.env(variable, directory.path());
    }
    command
}
