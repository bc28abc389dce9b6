//! Controllers by others drive our switch: Faucet with Gauge, os-ken's learning switch, `ovs-testcontroller`, plain and
//! over TLS. Hosts in namespaces try who reaches whom, and the flows' counters have to be exact.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use comfy_table::{Table, presets};
use serde_json::Value;

use super::python;
use crate::lab::netns::{Host, Namespace};
use crate::lab::{Lifetime, Process, Site, wait_for};
use crate::paths::{self, find_program};
use crate::progress::Progress;
use crate::setup;

/// What the Python environment holds: these versions are what the results are about.
const PACKAGES: [&str; 2] = ["os-ken==3.1.0", "faucet==1.10.12"];
/// How long a controller may take to start and to set the switch up.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long an echo may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a host that must not be reached is waited for.
const SILENCE: Duration = Duration::from_millis(300);
/// Echo requests whose frames are counted.
const COUNTED: u8 = 10;

/// One verdict.
pub struct Verdict {
    /// What was judged.
    pub what: String,
    /// `Ok`: what was seen. `Err`: what was wrong.
    pub outcome: Result<String, String>,
}

/// The verdicts of a judge.
#[derive(Default)]
pub struct Report {
    /// In the order in which they were made.
    pub verdicts: Vec<Verdict>,
}

impl Report {
    /// Takes a verdict.
    pub fn add(&mut self, what: impl Into<String>, outcome: anyhow::Result<String>) {
        let outcome = outcome.map_err(|error| format!("{error:#}"));
        self.verdicts.push(Verdict { what: what.into(), outcome });
    }

    /// Whether everything was good.
    pub fn passed(&self) -> bool {
        !self.verdicts.is_empty() && self.verdicts.iter().all(|verdict| verdict.outcome.is_ok())
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(["judged", "", "seen"]);
        for Verdict { what, outcome } in &self.verdicts {
            let (mark, seen) = match outcome {
                Ok(seen) => ("good", seen),
                Err(wrong) => ("BAD", wrong),
            };
            table.add_row([what.as_str(), mark, seen.as_str()]);
        }
        let good = self.verdicts.iter().filter(|verdict| verdict.outcome.is_ok()).count();
        write!(f, "{table}\n\n{good} of {} good", self.verdicts.len())
    }
}

/// Installs the controllers by others where our other products are, if they are not there yet; returns the directory
/// of their programs.
///
/// # Errors
/// The package index or the distribution's packages cannot be reached.
pub fn install(progress: &Progress) -> anyhow::Result<PathBuf> {
    python::environment("controllers", &PACKAGES, progress)
}

/// The learning switch that os-ken's package used to bring.
pub const LEARNING_SWITCH: &str = include_str!("learning_switch.py");

/// Lets one controller drive the switch of a stage; the path is that of Python's programs.
type Judge = fn(Stage, &Path) -> anyhow::Result<String>;

/// Lets every controller drive a switch of its own.
pub fn run(progress: &Progress) -> anyhow::Result<Report> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run this as root");
    setup::run(progress)?;
    let built = paths::cargo().args(["build", "--quiet", "--package", "sluice"]).status()?;
    ensure!(built.success(), "the program does not build");
    let programs = install(progress)?;
    let logs = paths::target().join("judge").join("controllers");
    if logs.exists() {
        fs::remove_dir_all(&logs).with_context(|| format!("removing {}", logs.display()))?;
    }
    let mut report = Report::default();
    let controllers: [(&str, Judge); 4] = [
        ("ovs-testcontroller", test_controller),
        ("ovs-testcontroller over TLS", test_controller_tls),
        ("a learning switch by os-ken 3.1.0", learning_switch),
        ("Faucet 1.10.12 with Gauge", faucet),
    ];
    for (index, (name, judge)) in controllers.into_iter().enumerate() {
        progress.note(&format!("{name} drives the switch"));
        let directory = logs.join(index.to_string());
        let outcome = Stage::new(&directory).and_then(|stage| judge(stage, &programs));
        crate::lab::interrupted()?;
        report.add(name, outcome);
    }
    Ok(report)
}

/// A switch and a controller in one namespace, and hosts with a cable to the switch.
struct Stage {
    hosts: Vec<Host>,
    site: Site,
    namespace: Namespace,
}

impl Stage {
    fn new(directory: &Path) -> anyhow::Result<Stage> {
        fs::create_dir_all(directory)?;
        Ok(Stage { hosts: Vec::new(), site: Site::debug(directory)?, namespace: Namespace::new("switch")? })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.site.dir.join(name)
    }

    /// Starts a program in the switch's namespace.
    fn start(
        &self,
        name: &str,
        program: &Path,
        arguments: &[&str],
        environment: &[(&str, PathBuf)],
    ) -> anyhow::Result<Process> {
        let mut command = self.namespace.command(&program.display().to_string());
        command.args(arguments).envs(environment.iter().map(|(key, value)| (key, value)));
        // Where Open vSwitch's tools put their control sockets.
        command.env("OVS_RUNDIR", &self.site.dir);
        // Programs of a Python environment start others of it by name.
        if let Some(programs) = program.parent() {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let all = std::iter::once(programs.to_path_buf()).chain(std::env::split_paths(&path));
            command.env("PATH", std::env::join_paths(all)?);
        }
        Process::start(name, &command, &self.path(&format!("{name}.log")), Lifetime::Ours)
    }

    /// Starts the switch, which calls `controllers`, and plugs in `count` hosts, 10.0.0.1 and so on.
    fn switch(&mut self, controllers: &[&str], more: &[&str], count: u8) -> anyhow::Result<Process> {
        let (state, run) =
            (self.path("state").display().to_string(), self.site.run_dir().display().to_string());
        let mut arguments =
            vec!["switch", "run", "--state-dir", &state, "--run-dir", &run, "--fail-mode", "secure"];
        for controller in controllers {
            arguments.extend(["--controller", controller]);
        }
        arguments.extend(more);
        let mut process = self.start("sluice", &self.site.program, &arguments, &[])?;
        let admin = self.site.run_dir().join("switch.admin.sock");
        wait_for("the switch", START_LIMIT, || {
            process.alive()?;
            Ok(std::os::unix::net::UnixStream::connect(&admin).ok())
        })?;
        for number in 1..=count {
            let port = format!("p{number}");
            self.hosts.push(Host::new(&self.namespace, &port, Ipv4Addr::new(10, 0, 0, number))?);
            self.site.sluice(&[
                "port",
                "add",
                &port,
                "--af-packet",
                &port,
                "--ofport",
                &number.to_string(),
            ])?;
        }
        Ok(process)
    }

    fn host(&self, number: usize) -> &Host {
        &self.hosts[number - 1]
    }

    fn flows(&self) -> anyhow::Result<Vec<Value>> {
        let flows = self.site.sluice_json(&["flow", "show"])?;
        Ok(flows.as_array().context("no list of flows")?.clone())
    }

    /// Waits until the controller has set the switch up: there is a flow of which `wanted` is true.
    fn set_up(&self, controller: &mut Process, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
        wait_for("flows of the controller", START_LIMIT, || {
            controller.alive()?;
            Ok(self.flows()?.iter().any(&wanted).then_some(()))
        })
    }

    /// Every host reaches those it should and no others.
    fn matrix(&self, reaches: impl Fn(usize, usize) -> bool) -> anyhow::Result<usize> {
        let numbers = || 1..=self.hosts.len();
        let mut pairs = 0;
        for (from, to) in numbers().flat_map(|from| numbers().map(move |to| (from, to))) {
            if from == to {
                continue;
            }
            let wanted = reaches(from, to);
            let patience = if wanted { PATIENCE * 3 } else { SILENCE };
            let answered = self.host(from).pings(self.host(to), patience)?;
            ensure!(answered == wanted, "host {from} reaches host {to}: {answered} instead of {wanted}");
            pairs += 1;
        }
        Ok(pairs)
    }

    /// Packets of all flows from port `from` of which `wanted` is true.
    fn packets(&self, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<u64> {
        let flows = self.flows()?;
        let packets =
            flows.iter().filter(|flow| wanted(flow)).map(|flow| flow["packets"].as_u64().unwrap_or(0));
        Ok(packets.sum())
    }

    /// A number of echoes between two hosts that know each other is counted exactly by the flows that carry them.
    fn counts(&self, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<String> {
        let before = self.packets(&wanted)?;
        let answered = self.host(1).echoes(self.host(2).address, COUNTED, PATIENCE)?;
        ensure!(answered == COUNTED, "{answered} of {COUNTED} echoes were answered");
        let counted = self.packets(&wanted)? - before;
        // ARP may renew what it knows at any time, so there may be a frame or two more, never less.
        let expected = 2 * u64::from(COUNTED);
        ensure!(
            (expected..=expected + 4).contains(&counted),
            "{counted} packets counted for {COUNTED} echoes and their answers"
        );
        Ok(format!("{COUNTED} echoes are {counted} packets"))
    }
}

/// Whether a flow matches on addresses: one that a learning controller made for two hosts that talk.
fn is_learned(flow: &Value) -> bool {
    flow["match"].get("eth_dst").is_some()
}

fn learning(
    stage: &mut Stage,
    controller: &mut Process,
    address: &str,
    more: &[&str],
) -> anyhow::Result<String> {
    let _switch = stage.switch(&[address], more, 3)?;
    // The flow that sends what nobody knows yet to the controller.
    stage.set_up(controller, |flow| flow["priority"] == 0)?;
    let pairs = stage.matrix(|_, _| true)?;
    let counted = stage.counts(is_learned)?;
    controller.alive()?;
    Ok(format!("{pairs} pairs of hosts reach each other; {counted}"))
}

fn test_controller(mut stage: Stage, _: &Path) -> anyhow::Result<String> {
    let program = find_program("ovs-testcontroller").context("ovs-testcontroller is not there")?;
    let mut controller =
        stage.start("controller", &program, &["-O", "OpenFlow13", "ptcp:6653:127.0.0.1"], &[])?;
    learning(&mut stage, &mut controller, "tcp:127.0.0.1:6653", &[])
}

/// With certificates by `ovs-pki`, each end signed by an authority of its own.
fn test_controller_tls(mut stage: Stage, _: &Path) -> anyhow::Result<String> {
    let program = find_program("ovs-testcontroller").context("ovs-testcontroller is not there")?;
    let pki = |arguments: &[&str]| {
        let mut command = Command::new("ovs-pki");
        command.arg(format!("--dir={}", stage.path("pki").display()));
        command.arg(format!("--log={}", stage.path("pki.log").display())).args(arguments);
        let output = command.current_dir(&stage.site.dir).output().context("ovs-pki is not there")?;
        ensure!(output.status.success(), "ovs-pki: {}", String::from_utf8_lossy(&output.stderr));
        anyhow::Ok(())
    };
    pki(&["init"])?;
    pki(&["req+sign", "sw", "switch"])?;
    pki(&["req+sign", "ctl", "controller"])?;
    let file = |name: &str| stage.path(name).display().to_string();
    let options = [
        ("--private-key", file("ctl-privkey.pem")),
        ("--certificate", file("ctl-cert.pem")),
        ("--ca-cert", file("pki/switchca/cacert.pem")),
    ];
    let options = options.map(|(option, file)| format!("{option}={file}"));
    let mut arguments = vec!["-O", "OpenFlow13", "pssl:6653:127.0.0.1"];
    arguments.extend(options.iter().map(String::as_str));
    let mut controller = stage.start("controller", &program, &arguments, &[])?;
    let (key, cert, ca) = (file("sw-privkey.pem"), file("sw-cert.pem"), file("pki/controllerca/cacert.pem"));
    let ours = ["--tls-key", &key, "--tls-cert", &cert, "--tls-ca", &ca];
    learning(&mut stage, &mut controller, "ssl:127.0.0.1:6653", &ours)
}

fn learning_switch(mut stage: Stage, programs: &Path) -> anyhow::Result<String> {
    let (manager, app) = (programs.join("osken-manager"), stage.path("learning_switch.py"));
    fs::write(&app, LEARNING_SWITCH)?;
    let app = app.display().to_string();
    let arguments = ["--ofp-listen-host", "127.0.0.1", "--ofp-tcp-listen-port", "6653", &app];
    let mut controller = stage.start("controller", &manager, &arguments, &[])?;
    learning(&mut stage, &mut controller, "tcp:127.0.0.1:6653", &[])
}

/// Hosts 1 and 2 in one VLAN, 3 and 4 in another; host 5 sees what host 1 says and hears; nobody may send to UDP port
/// 7777 from host 1.
const FAUCET: &str = "\
vlans:
  office: {vid: 100}
  lab: {vid: 200}
acls:
  guard:
    - rule: {dl_type: 0x0800, nw_proto: 17, udp_dst: 7777, actions: {allow: false}}
    - rule: {actions: {allow: true}}
dps:
  sw1:
    dp_id: 1
    hardware: Open vSwitch
    interfaces:
      1: {native_vlan: office, acl_in: guard}
      2: {native_vlan: office}
      3: {native_vlan: lab}
      4: {native_vlan: lab}
      5: {output_only: true, mirror: 1}
";

fn faucet(mut stage: Stage, programs: &Path) -> anyhow::Result<String> {
    let (config, watchers, counters) =
        (stage.path("faucet.yaml"), stage.path("gauge.yaml"), stage.path("ports.txt"));
    fs::write(&config, FAUCET)?;
    fs::write(
        &watchers,
        format!(
            "faucet_configs: [{}]\n\
             watchers:\n  ports: {{dps: [sw1], type: port_stats, interval: 1, db: text}}\n\
             dbs:\n  text: {{type: text, file: {}}}\n",
            config.display(),
            counters.display()
        ),
    )?;
    let environment = [
        ("FAUCET_CONFIG", config),
        ("GAUGE_CONFIG", watchers),
        ("FAUCET_LOG", stage.path("faucet-events.log")),
        ("FAUCET_EXCEPTION_LOG", stage.path("faucet-exceptions.log")),
        ("GAUGE_LOG", stage.path("gauge-events.log")),
        ("GAUGE_EXCEPTION_LOG", stage.path("gauge-exceptions.log")),
    ];
    let mut faucet = stage.start("faucet", &programs.join("faucet"), &[], &environment)?;
    let port = ["--ryu-ofp-tcp-listen-port", "6654"];
    let mut gauge = stage.start("gauge", &programs.join("gauge"), &port, &environment)?;
    let _switch = stage.switch(&["tcp:127.0.0.1:6653", "tcp:127.0.0.1:6654"], &[], 5)?;
    stage.set_up(&mut faucet, |flow| flow["match"]["vlan_vid"].is_string())?;
    let vlan = |host: usize| match host {
        1 | 2 => Some(100),
        3 | 4 => Some(200),
        _ => None,
    };
    let pairs = stage.matrix(|from, to| vlan(from).is_some() && vlan(from) == vlan(to))?;
    // The table of destinations carries each frame exactly once.
    let destinations = |flow: &Value| flow["match"].get("eth_dst").is_some() && flow["table"] == 3;
    let mirrored = stage.host(5).received_frames()?;
    let counted = stage.counts(destinations)?;
    let mirrored = stage.host(5).received_frames()? - mirrored;
    let expected = 2 * u64::from(COUNTED);
    ensure!((expected..=expected + 4).contains(&mirrored), "{mirrored} frames mirrored of {expected}");
    guarded(&stage)?;
    wait_for("counters of ports from Gauge", START_LIMIT, || {
        gauge.alive()?;
        let text = fs::read_to_string(&counters).unwrap_or_default();
        let packets = text.lines().rev().find(|line| line.contains("sw1-1-packets-in"));
        let packets = packets.and_then(|line| line.split_whitespace().last()?.parse::<u64>().ok());
        Ok(packets.filter(|packets| *packets > expected / 2))
    })?;
    for name in ["faucet-exceptions.log", "gauge-exceptions.log"] {
        let text = fs::read_to_string(stage.path(name)).unwrap_or_default();
        ensure!(text.trim().is_empty(), "{name}:\n{text}");
    }
    faucet.alive()?;
    Ok(format!("{pairs} pairs as the VLANs say; {counted}, {mirrored} mirrored; the ACL holds; Gauge counts"))
}

/// A datagram from host 1 to host 2 arrives, but not at the port that the ACL names.
fn guarded(stage: &Stage) -> anyhow::Result<()> {
    const OPEN: u16 = 7776;
    const SHUT: u16 = 7777;
    let (from, to) = (stage.host(1), stage.host(2));
    let bind = move |port| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port));
    let (open, shut) = to.namespace.enter(move || anyhow::Ok((bind(OPEN)?, bind(SHUT)?)))??;
    let address = to.address;
    from.namespace.enter(move || {
        let socket = bind(0)?;
        // The one that must not come first: when the other is there, it would have been, too.
        socket.send_to(b"shut", (address, SHUT))?;
        socket.send_to(b"open", (address, OPEN)).map(drop)
    })??;
    let mut buffer = [0; 16];
    open.set_read_timeout(Some(PATIENCE))?;
    open.recv(&mut buffer).context("a datagram that the ACL allows does not arrive")?;
    shut.set_nonblocking(true)?;
    ensure!(shut.recv(&mut buffer).is_err(), "a datagram arrived that the ACL forbids");
    Ok(())
}
