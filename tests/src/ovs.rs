//! Open vSwitch's userspace datapath in a network namespace of its own, with hosts in namespaces around it.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use xtask::lab::netns;
use xtask::lab::process::{Lifetime, Process};
use xtask::paths::find_program;

use crate::holds_within;

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a program to its end and returns what it printed.
fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr)))
    }
}

/// A network namespace of the laboratory; gone with the value. What goes wrong with it is a panic.
pub struct Namespace(netns::Namespace);

impl Namespace {
    /// A new namespace with its loopback up.
    ///
    /// # Panics
    /// Without root or iproute2.
    pub fn new(what: &str) -> Namespace {
        Namespace(netns::Namespace::new(what).expect("root, and iproute2"))
    }

    /// Runs `work` in the namespace, on a thread of its own.
    ///
    /// # Panics
    /// When `work` does.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.0.enter(work).expect("root may enter a namespace")
    }

    /// A command that runs in the namespace.
    pub fn command(&self, program: &str) -> Command {
        self.0.command(program)
    }
}

/// A host with one Ethernet interface.
pub struct Host(netns::Host);

impl Host {
    /// Whether `to` answers one of three echo requests within `patience`.
    ///
    /// # Panics
    /// Without root.
    pub fn pings(&self, to: &Host, patience: Duration) -> bool {
        self.0.pings(&to.0, patience).expect("raw sockets need root")
    }
}

/// A private Open vSwitch: database, daemon, and its namespace.
pub struct Ovs {
    /// The namespace the daemon runs in; a controller belongs here too.
    pub namespace: Namespace,
    directory: tempfile::TempDir,
    daemon: Option<Process>,
    _database: Process,
}

impl Ovs {
    /// Starts it.
    ///
    /// # Panics
    /// Without root, or without the Debian package openvswitch-switch.
    pub fn start() -> Ovs {
        for program in ["ovs-vswitchd", "ovsdb-server", "ovsdb-tool", "ovs-vsctl", "ovs-ofctl"] {
            let remedy = "install the Debian package: apt-get install openvswitch-switch";
            assert!(find_program(program).is_some(), "{program} is not there; {remedy}");
        }
        let directory = tempfile::Builder::new().prefix("sluice-ovs-").tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let schema = "/usr/share/openvswitch/vswitch.ovsschema";
        run("ovsdb-tool", &["create", path("conf.db").to_str().unwrap(), schema]).unwrap();
        let mut command = Command::new("ovsdb-server");
        command.arg(path("conf.db")).arg(format!("--remote=punix:{}", path("db.sock").display()));
        command.arg(format!("--unixctl={}", path("db.ctl").display())).arg("--no-chdir");
        let database = Process::start("ovsdb-server", &command, &path("db.log"), Lifetime::Ours).unwrap();
        let namespace = Namespace::new("ovs");
        let mut ovs = Ovs { namespace, directory, daemon: None, _database: database };
        let listens = holds_within(PATIENCE, || ovs.path("db.sock").exists());
        assert!(listens, "ovsdb-server listens");
        ovs.vsctl(&["--no-wait", "init"]);
        ovs.start_daemon();
        ovs
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn database(&self) -> String {
        format!("unix:{}", self.path("db.sock").display())
    }

    fn start_daemon(&mut self) {
        let mut command = self.namespace.command("ovs-vswitchd");
        command.arg(self.database()).arg(format!("--unixctl={}", self.path("vswitchd.ctl").display()));
        command.args(["--no-chdir", "-vconsole:warn"]).env("OVS_RUNDIR", self.directory.path());
        let log = self.path("vswitchd.log");
        self.daemon = Some(Process::start("ovs-vswitchd", &command, &log, Lifetime::Ours).unwrap());
    }

    /// Kills the daemon (SIGKILL) and starts it again: its flow entries are gone.
    ///
    /// # Panics
    /// It does not start.
    pub fn kill_and_restart(&mut self) {
        self.daemon.as_mut().expect("it runs").kill().unwrap();
        self.start_daemon();
    }

    /// Configures by `ovs-vsctl`, which waits until the daemon has done it.
    ///
    /// # Panics
    /// It is refused, or not done in time.
    pub fn vsctl(&self, args: &[&str]) -> String {
        let database = format!("--db={}", self.database());
        run("ovs-vsctl", &[&["--timeout=60", &database], args].concat()).unwrap()
    }

    /// Asks or tells a bridge by `ovs-ofctl`.
    ///
    /// # Panics
    /// It is refused.
    pub fn ofctl(&self, verb: &str, bridge: &str, args: &[&str]) -> String {
        let target = format!("unix:{}", self.path(&format!("{bridge}.mgmt")).display());
        run("ovs-ofctl", &[&["-O", "OpenFlow13", "--timeout=60", verb, &target], args].concat()).unwrap()
    }

    /// The flow entries of a bridge, one a line.
    ///
    /// # Panics
    /// The bridge does not answer.
    pub fn flows(&self, bridge: &str) -> Vec<String> {
        let text = self.ofctl("dump-flows", bridge, &[]);
        text.lines().filter(|line| line.contains("cookie=")).map(|line| line.trim().to_owned()).collect()
    }

    /// Makes a bridge without ports that does nothing of its own and calls the controller at `controller`.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn add_bridge(&self, name: &str, dpid: u64, controller: &str) {
        let id = format!("other-config:datapath-id={dpid:016x}");
        self.vsctl(
            &[
                &[
                    "add-br",
                    name,
                    "--",
                    "set",
                    "bridge",
                    name,
                    "datapath_type=netdev",
                    "protocols=OpenFlow13",
                ][..],
                &["fail-mode=secure", &id, "--", "set-controller", name, &format!("tcp:{controller}")],
                &["--", "set", "controller", name, "max_backoff=1000"],
            ]
            .concat(),
        );
    }

    /// Joins two bridges by a pair of ports of these names and numbers.
    ///
    /// # Panics
    /// They cannot be made.
    pub fn join(&self, ends: [(&str, &str, u32); 2]) {
        for ((bridge, port, number), (_, peer, _)) in [(ends[0], ends[1]), (ends[1], ends[0])] {
            let (peer, number) = (format!("options:peer={peer}"), format!("ofport_request={number}"));
            let set = ["set", "interface", port, "type=patch", &peer, &number];
            self.vsctl(&[&["--no-wait", "add-port", bridge, port, "--"][..], &set].concat());
        }
    }

    /// Adds a host: a namespace of its own with `address`/24, on port `number` of the bridge, called `port`.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn add_host(&self, bridge: &str, port: &str, number: u32, address: Ipv4Addr) -> Host {
        let host = netns::Host::new(&self.namespace.0, port, address).expect("root, and iproute2");
        let number = format!("ofport_request={number}");
        self.vsctl(&["add-port", bridge, port, "--", "set", "interface", port, &number]);
        Host(host)
    }
}
