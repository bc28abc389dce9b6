//! A controller, switches of either make that it drives, and hosts in namespaces around them: real packets.
//!
//! ```text
//! h1, h3 --- br1 (dpid 1) up1 ===== up2 br2 (dpid 2) --- h2, h4, h5
//! ```
//!
//! Controller and switches share one namespace; a port `hN` has the number N and leads to host N, 10.0.0.N.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hyper::Method;
use serde_json::Value;
use xtask::lab::http::{self, Answer, Metrics};
use xtask::lab::netns::{Host, Namespace, cable, ip};
use xtask::lab::ovs::{Datapath, Ovs, ofctl};
use xtask::lab::process::{Lifetime, Process, output};

use crate::{binary, holds_within};

const OPENFLOW: &str = "127.0.0.1:6653";
/// Where the controller's REST interface is, in the namespace of the fabric.
pub const REST: &str = "127.0.0.1:8080";
const METRICS: &str = "127.0.0.1:9103";

/// For what must come to be.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// For an echo reply that comes; a loaded machine is slow.
pub const REPLY: Duration = Duration::from_secs(30);
/// For an echo reply that must not come.
pub const SILENCE: Duration = Duration::from_millis(400);

/// The port of the trunk between the two switches, on both.
pub const TRUNK: u32 = 10;

/// Whose switches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Make {
    /// Bridges of Open vSwitch, userspace datapath.
    OpenVSwitch,
    /// Ours.
    Sluice,
}

enum Switches {
    Ovs(Box<Ovs>),
    Sluice { namespace: Namespace, daemons: BTreeMap<u64, Sluice> },
}

/// One switch of ours.
struct Sluice {
    process: Process,
    command: Command,
    directory: PathBuf,
}

impl Sluice {
    fn start(namespace: &Namespace, dpid: u64, directory: &Path) -> Sluice {
        std::fs::create_dir_all(directory).unwrap();
        let mut command = namespace.command(binary::sluice().to_str().unwrap());
        command.args(["switch", "run", "--fail-mode", "secure", "--dpid", &dpid.to_string()]);
        command.arg("--state-dir").arg(directory.join("state")).arg("--run-dir").arg(directory);
        command.args(["--controller", &format!("tcp:{OPENFLOW}")]);
        command.args(["--listen", &format!("punix:{}", directory.join("mgmt").display())]);
        command.args(["--metrics", &Sluice::metrics(dpid)]);
        let process = Sluice::process(&command, directory);
        let mut sluice = Sluice { process, command, directory: directory.to_owned() };
        sluice.wait();
        sluice
    }

    fn metrics(dpid: u64) -> String {
        format!("127.0.0.1:{}", 9200 + dpid)
    }

    fn process(command: &Command, directory: &Path) -> Process {
        Process::start("switch", command, &directory.join("log"), Lifetime::Ours).unwrap()
    }

    fn wait(&mut self) {
        let admin = self.directory.join("switch.admin.sock");
        let ready = holds_within(PATIENCE, || {
            self.process.alive().unwrap();
            std::os::unix::net::UnixStream::connect(&admin).is_ok()
        });
        assert!(ready, "the switch starts:\n{}", self.process.output());
    }

    fn add_port(&self, name: &str, number: u32) {
        self.port(&["add", name, "--af-packet", name, "--ofport", &number.to_string()]);
    }

    fn port(&self, words: &[&str]) {
        let mut command = Command::new(binary::sluice());
        output(command.arg("port").args(words).env("SLUICE_RUN_DIR", &self.directory)).unwrap();
    }
}

/// All of it; ended with the value. What goes wrong with it is a panic.
pub struct Fabric {
    controller: Process,
    switches: Switches,
    directory: tempfile::TempDir,
}

impl Fabric {
    /// A controller without switches.
    ///
    /// # Panics
    /// Without root, or without the Debian package openvswitch-switch.
    pub fn new(make: Make) -> Fabric {
        let directory = tempfile::Builder::new().prefix("sluice-fabric-").tempdir().unwrap();
        let switches = match make {
            Make::OpenVSwitch => Switches::Ovs(Box::new(Ovs::start(Datapath::Userspace).unwrap())),
            Make::Sluice => {
                Switches::Sluice { namespace: Namespace::new("switch").unwrap(), daemons: BTreeMap::new() }
            }
        };
        let controller = controller(switches.namespace(), directory.path());
        Fabric { controller, switches, directory }
    }

    /// The same with two switches, the trunk and five hosts, as the picture above shows them.
    ///
    /// # Panics
    /// As [`Fabric::new`].
    pub fn with_hosts(make: Make) -> (Fabric, Vec<Host>) {
        let mut fabric = Fabric::new(make);
        fabric.add_switch(1);
        fabric.add_switch(2);
        fabric.join();
        let hosts = [(1, 1), (2, 2), (1, 3), (2, 4), (2, 5)].map(|(dpid, n)| fabric.add_host(dpid, n));
        fabric.settled(2);
        (fabric, hosts.into())
    }

    /// Where controller and switches live.
    pub fn namespace(&self) -> &Namespace {
        self.switches.namespace()
    }

    /// Open vSwitch itself.
    ///
    /// # Panics
    /// The switches are not of that make.
    pub fn ovs(&self) -> &Ovs {
        match &self.switches {
            Switches::Ovs(ovs) => ovs,
            Switches::Sluice { .. } => panic!("the switches are ours"),
        }
    }

    /// Adds a switch that calls the controller.
    ///
    /// # Panics
    /// It does not start.
    pub fn add_switch(&mut self, dpid: u64) {
        match &mut self.switches {
            Switches::Ovs(ovs) => ovs.add_bridge(&format!("br{dpid}"), dpid, Some(OPENFLOW)).unwrap(),
            Switches::Sluice { namespace, daemons } => {
                let directory = self.directory.path().join(format!("switch{dpid}"));
                daemons.insert(dpid, Sluice::start(namespace, dpid, &directory));
            }
        }
    }

    /// The trunk: `up1` of switch 1 to `up2` of switch 2.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn join(&self) {
        match &self.switches {
            Switches::Ovs(ovs) => ovs.join([("br1", "up1", TRUNK), ("br2", "up2", TRUNK)]).unwrap(),
            Switches::Sluice { namespace, daemons } => {
                cable(Some(namespace), ["up1", "up2"], 1600).unwrap();
                daemons[&1].add_port("up1", TRUNK);
                daemons[&2].add_port("up2", TRUNK);
            }
        }
    }

    /// Adds host `n` to a switch.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn add_host(&self, dpid: u64, n: u8) -> Host {
        let host = Host::new(self.namespace(), &format!("h{n}"), Ipv4Addr::new(10, 0, 0, n)).unwrap();
        self.plug(dpid, n);
        host
    }

    /// Adds a function of a service chain: a host that bridges its interfaces `eth0` and `eth1`, on these two ports of
    /// the switch.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn add_function(&self, dpid: u64, ports: [u8; 2]) -> Namespace {
        let inside = Namespace::new("function").unwrap();
        let (at, outside) = (&inside.name, &self.namespace().name);
        ip(&format!("-n {at} link add bridge type bridge")).unwrap();
        for (n, interface) in ports.into_iter().zip(["eth0", "eth1"]) {
            ip(&format!("-n {outside} link add h{n} type veth peer name {interface} netns {at}")).unwrap();
            ip(&format!("-n {outside} link set h{n} up")).unwrap();
            ip(&format!("-n {at} link set {interface} master bridge up")).unwrap();
            self.plug(dpid, n);
        }
        ip(&format!("-n {at} link set bridge up")).unwrap();
        inside
    }

    /// Makes the interface `hN` a port of a switch.
    fn plug(&self, dpid: u64, n: u8) {
        let port = format!("h{n}");
        match &self.switches {
            Switches::Ovs(ovs) => ovs.add_port(&format!("br{dpid}"), &port, n.into(), &[]).unwrap(),
            Switches::Sluice { daemons, .. } => daemons[&dpid].add_port(&port, n.into()),
        }
    }

    /// Adds the port `vN` with the number N for a guest to a switch; its socket. Switches of ours only.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn add_guest_port(&self, dpid: u64, n: u32) -> PathBuf {
        let Switches::Sluice { daemons, .. } = &self.switches else { panic!("the switches are not ours") };
        let name = format!("v{n}");
        daemons[&dpid].port(&["add", &name, "--vhost-user", "--ofport", &n.to_string()]);
        daemons[&dpid].directory.join(format!("{name}.sock"))
    }

    /// Takes a port off a switch.
    ///
    /// # Panics
    /// It cannot be done.
    pub fn remove_port(&self, dpid: u64, name: &str) {
        match &self.switches {
            Switches::Ovs(ovs) => ovs.vsctl(&["del-port", name]).map(drop).unwrap(),
            Switches::Sluice { daemons, .. } => daemons[&dpid].port(&["delete", name]),
        }
    }

    /// Kills (SIGKILL) the daemon of the switch and starts it again: its flow entries are gone. The bridges of Open
    /// vSwitch have one daemon.
    ///
    /// # Panics
    /// It does not start again.
    pub fn restart_switch(&mut self, dpid: u64) {
        match &mut self.switches {
            Switches::Ovs(ovs) => ovs.kill_and_restart().unwrap(),
            Switches::Sluice { daemons, .. } => {
                let sluice = daemons.get_mut(&dpid).unwrap();
                sluice.process.kill().unwrap();
                sluice.process = Sluice::process(&sluice.command, &sluice.directory);
                sluice.wait();
            }
        }
    }

    /// Asks or tells a switch by `ovs-ofctl`.
    ///
    /// # Panics
    /// It is refused.
    pub fn ofctl(&self, verb: &str, dpid: u64, words: &[&str]) -> String {
        let target = match &self.switches {
            Switches::Ovs(ovs) => ovs.target(&format!("br{dpid}")),
            Switches::Sluice { daemons, .. } => {
                format!("unix:{}", daemons[&dpid].directory.join("mgmt").display())
            }
        };
        ofctl(&target, verb, words).unwrap()
    }

    /// The flow entries of a switch, one a line.
    ///
    /// # Panics
    /// The switch does not answer.
    pub fn flows(&self, dpid: u64) -> Vec<String> {
        let text = self.ofctl("dump-flows", dpid, &[]);
        text.lines().filter(|line| line.contains("cookie=")).map(|line| line.trim().to_owned()).collect()
    }

    /// Packets of the flow entries of a switch whose lines have all of `parts`.
    ///
    /// # Panics
    /// There is no such entry.
    #[track_caller]
    pub fn packets(&self, dpid: u64, parts: &[&str]) -> u64 {
        let flows = self.flows(dpid);
        let fits = |line: &&String| parts.iter().all(|part| line.contains(part));
        let count = |line: &String| {
            let text = line.split("n_packets=").nth(1)?.split(',').next()?;
            text.parse::<u64>().ok()
        };
        let counts: Vec<u64> = flows.iter().filter(fits).filter_map(count).collect();
        assert!(!counts.is_empty(), "{parts:?} in {flows:#?}");
        counts.iter().sum()
    }

    /// Flow-mods that the switches were sent since they started, counted by them, in bundles too.
    ///
    /// # Panics
    /// A switch does not tell.
    pub fn flow_mods(&self) -> u64 {
        match &self.switches {
            Switches::Ovs(ovs) => {
                let log = std::fs::read_to_string(ovs.path("vswitchd.log")).unwrap();
                log.lines()
                    .filter(|line| line.contains(": received: "))
                    .map(|line| line.matches("OFPT_FLOW_MOD").count() as u64)
                    .sum()
            }
            Switches::Sluice { namespace, daemons } => {
                let count = |dpid: &u64| {
                    let server: SocketAddr = Sluice::metrics(*dpid).parse().unwrap();
                    let scrape = || namespace.enter(|| Metrics::scrape(server)).unwrap().unwrap();
                    // The switch writes its figures down from time to time, all at once: when it has done so again, they
                    // are of now. A question of ours changes one of them.
                    let labels = [("direction", "received")];
                    let asked = || scrape().sum("sluice_openflow_messages_total", &labels).unwrap_or(0.0);
                    let before = asked();
                    self.ofctl("get-frags", *dpid, &[]);
                    assert!(holds_within(PATIENCE, || asked() > before), "switch {dpid} counts");
                    scrape().sum("sluice_openflow_flow_mods_total", &[]).unwrap_or(0.0) as u64
                };
                daemons.keys().map(count).sum()
            }
        }
    }

    /// From now on [`Fabric::flow_mods`] counts.
    ///
    /// # Panics
    /// The switch does not do as it is told.
    pub fn count_flow_mods(&self) {
        if let Switches::Ovs(ovs) = &self.switches {
            ovs.appctl(&["vlog/set", "vconn:console:dbg"]).unwrap();
            ovs.appctl(&["vlog/disable-rate-limit", "vconn"]).unwrap();
        }
    }

    /// A new start of the controller after [`Fabric::kill_controller`].
    ///
    /// # Panics
    /// It does not start.
    pub fn start_controller(&mut self) {
        self.controller = controller(self.switches.namespace(), self.directory.path());
    }

    /// SIGKILL.
    ///
    /// # Panics
    /// It had ended.
    pub fn kill_controller(&mut self) {
        self.controller.kill().unwrap();
    }

    /// The controller.
    pub fn controller(&mut self) -> &mut Process {
        &mut self.controller
    }

    /// Asks the controller.
    ///
    /// # Panics
    /// It does not answer.
    pub fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let server: SocketAddr = REST.parse().unwrap();
        self.namespace().enter(|| http::request(server, method, path, body)).unwrap().unwrap()
    }

    /// GET.
    ///
    /// # Panics
    /// No JSON is answered.
    pub fn get(&self, path: &str) -> Value {
        self.request(Method::GET, path, None).json().unwrap()
    }

    /// PUT; the status and what is answered.
    ///
    /// # Panics
    /// No JSON is answered.
    pub fn put(&self, path: &str, body: &Value) -> (u16, Value) {
        let answer = self.request(Method::PUT, path, Some(body));
        (answer.status.as_u16(), answer.json().unwrap())
    }

    /// PUT of something that every switch takes at once.
    ///
    /// # Panics
    /// It is not so.
    #[track_caller]
    pub fn apply(&self, path: &str, body: &Value) {
        let (status, answer) = self.put(path, body);
        assert_eq!((status, answer["status"].as_str()), (200, Some("applied")), "{path}: {answer:#}");
    }

    /// Makes everything as in `document`; it holds for every packet when this returns.
    ///
    /// # Panics
    /// The document is refused, or a switch does not take it.
    #[track_caller]
    pub fn make(&self, document: &Value) {
        let (status, answer) = self.put("/v1/document", document);
        assert_eq!(status, 200, "{answer:#}");
        self.settled(2);
        self.in_force();
    }

    /// Waits until what the switches have been told holds for every packet.
    ///
    /// # Panics
    /// A switch does not answer.
    pub fn in_force(&self) {
        if let Switches::Ovs(ovs) = &self.switches {
            // A barrier is answered before the cache of the datapath forgets what was.
            ovs.appctl(&["revalidator/wait"]).unwrap();
        }
    }

    /// DELETE of something that is there.
    ///
    /// # Panics
    /// It is not so.
    #[track_caller]
    pub fn delete(&self, path: &str) {
        let answer = self.request(Method::DELETE, path, None);
        assert_eq!(answer.status.as_u16(), 200, "{path}: {}", answer.body);
    }

    /// The sum of a metric of the controller.
    ///
    /// # Panics
    /// It does not answer.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let server: SocketAddr = METRICS.parse().unwrap();
        let metrics = self.namespace().enter(|| Metrics::scrape(server)).unwrap().unwrap();
        metrics.sum(name, labels).unwrap_or(0.0)
    }

    /// Waits until so many switches are in session and have everything they can have.
    ///
    /// # Panics
    /// They do not get there.
    #[track_caller]
    pub fn settled(&self, count: usize) {
        let all = || {
            let list = self.get("/v1/switches");
            let switches = list["switches"].as_array().unwrap().clone();
            switches.iter().filter(|switch| switch["settled"] == true).count() == count
        };
        let ok = holds_within(PATIENCE, all);
        assert!(ok, "{:#}\n{}", self.get("/v1/switches"), self.controller.output());
    }
}

impl Switches {
    fn namespace(&self) -> &Namespace {
        match self {
            Switches::Ovs(ovs) => ovs.namespace(),
            Switches::Sluice { namespace, .. } => namespace,
        }
    }
}

fn controller(namespace: &Namespace, directory: &Path) -> Process {
    let mut command = namespace.command(binary::sluice().to_str().unwrap());
    command.args(["controller", "run", "--state-dir"]).arg(directory.join("state"));
    command.arg("--run-dir").arg(directory);
    command.args(["--openflow", &format!("tcp:{OPENFLOW}"), "--rest", REST, "--metrics", METRICS]);
    let log = directory.join("controller.log");
    let mut process = Process::start("controller", &command, &log, Lifetime::Ours).unwrap();
    let answers = holds_within(PATIENCE, || {
        process.alive().unwrap();
        namespace.enter(|| std::net::TcpStream::connect(METRICS).is_ok()).unwrap()
    });
    assert!(answers, "the controller starts:\n{}", process.output());
    process
}

/// Whether `from` reaches `to`, soon at the latest.
///
/// # Panics
/// Without root.
pub fn reaches(from: &Host, to: &Host) -> bool {
    from.pings(to, REPLY).unwrap()
}

/// Whether `from` does not reach `to`, or soon does no more: Open vSwitch answers a barrier before the cache of its
/// datapath forgets what was deleted.
///
/// # Panics
/// Without root.
pub fn parted(from: &Host, to: &Host) -> bool {
    holds_within(PATIENCE, || !from.pings(to, SILENCE).unwrap())
}

/// Every host against every other: those of a group (by number) reach each other, and nobody else.
///
/// # Panics
/// It is not so.
#[track_caller]
pub fn assert_reach(hosts: &[Host], groups: &[&[usize]]) {
    for a in 1..=hosts.len() {
        for b in (1..=hosts.len()).filter(|&b| b != a) {
            let together = groups.iter().any(|group| group.contains(&a) && group.contains(&b));
            let (from, to) = (&hosts[a - 1], &hosts[b - 1]);
            let right = if together { reaches(from, to) } else { parted(from, to) };
            assert!(right, "host {a} to host {b}: together is {together}");
        }
    }
}
