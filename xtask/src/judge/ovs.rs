//! A private Open vSwitch in the namespace of its caller.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;

use crate::lab::{Process, process::Lifetime, wait_for};

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const START_LIMIT: Duration = Duration::from_secs(30);

/// Database and daemon; both end with it.
pub(super) struct Ovs {
    _daemon: Process,
    _database: Process,
    directory: PathBuf,
}

impl Ovs {
    /// Starts it with a bridge of this datapath id that has these interfaces, numbered from 1, and calls the
    /// controller.
    pub(super) fn start(
        directory: &Path,
        controller: &str,
        dpid: u64,
        interfaces: &[&str],
    ) -> anyhow::Result<Ovs> {
        let directory = directory.join("ovs");
        std::fs::create_dir_all(&directory)?;
        let path = |name: &str| directory.join(name);
        run(Command::new("ovsdb-tool").arg("create").arg(path("conf.db")).arg(SCHEMA))?;
        let mut command = Command::new("ovsdb-server");
        command.arg(path("conf.db")).arg(format!("--remote=punix:{}", path("db.sock").display()));
        command.arg(format!("--unixctl={}", path("db.ctl").display())).arg("--no-chdir");
        let database = Process::start("ovsdb-server", &command, &path("db.log"), Lifetime::Ours)?;
        wait_for("the database of Open vSwitch", START_LIMIT, || Ok(path("db.sock").exists().then_some(())))?;
        let mut command = Command::new("ovs-vswitchd");
        command.arg(format!("unix:{}", path("db.sock").display()));
        command.arg(format!("--unixctl={}", path("vswitchd.ctl").display()));
        command.args(["--no-chdir", "-vconsole:warn"]).env("OVS_RUNDIR", &directory);
        let daemon = Process::start("ovs-vswitchd", &command, &path("vswitchd.log"), Lifetime::Ours)?;
        let ovs = Ovs { _daemon: daemon, _database: database, directory };
        ovs.vsctl("--no-wait init")?;
        ovs.vsctl(&format!(
            "add-br judge -- set bridge judge datapath_type=netdev protocols=OpenFlow13 fail-mode=secure \
             other-config:datapath-id={dpid:016x} other-config:disable-in-band=true"
        ))?;
        for (number, interface) in (1..).zip(interfaces) {
            let port = format!("add-port judge {interface} -- set interface {interface}");
            ovs.vsctl(&format!("{port} ofport_request={number}"))?;
        }
        ovs.vsctl(&format!(
            "set-controller judge tcp:{controller} -- set controller judge max_backoff=1000"
        ))?;
        Ok(ovs)
    }

    fn vsctl(&self, arguments: &str) -> anyhow::Result<()> {
        let mut command = Command::new("ovs-vsctl");
        command.arg("--timeout=30").arg(format!("--db=unix:{}", self.directory.join("db.sock").display()));
        run(command.args(arguments.split_whitespace()))
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {}", said.trim());
    Ok(())
}
