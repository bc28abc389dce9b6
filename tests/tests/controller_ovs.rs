//! The controller drives Open vSwitch's userspace datapath: two bridges with a trunk between them, hosts in namespaces,
//! real packets.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};
use tests::binary;
use tests::holds_within;
use tests::ovs::{Host, Ovs};
use xtask::lab::http::{self, Answer, Metrics};
use xtask::lab::process::{Lifetime, Process};

const OPENFLOW: &str = "127.0.0.1:6653";
const REST: &str = "127.0.0.1:8080";
const METRICS: &str = "127.0.0.1:9103";

/// For what must come to be.
const PATIENCE: Duration = Duration::from_secs(60);
/// For an echo reply that comes; a loaded machine is slow.
const REPLY: Duration = Duration::from_secs(30);
/// For an echo reply that must not come.
const SILENCE: Duration = Duration::from_millis(400);

/// Open vSwitch, the controller beside it, and what they keep on disk.
struct Stage {
    controller: Process,
    ovs: Ovs,
    directory: tempfile::TempDir,
}

impl Stage {
    fn new() -> Stage {
        let ovs = Ovs::start();
        let directory = tempfile::Builder::new().prefix("sluice-controller-").tempdir().unwrap();
        let controller = controller(&ovs, &directory);
        Stage { controller, ovs, directory }
    }

    /// A new start after [`Stage::kill_controller`].
    fn start_controller(&mut self) {
        self.controller = controller(&self.ovs, &self.directory);
    }

    /// SIGKILL.
    fn kill_controller(&mut self) {
        self.controller.kill().unwrap();
    }

    fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let server: SocketAddr = REST.parse().unwrap();
        self.ovs.namespace.enter(|| http::request(server, method, path, body)).unwrap()
    }

    fn get(&self, path: &str) -> Value {
        self.request(Method::GET, path, None).json().unwrap()
    }

    fn put(&self, path: &str, body: Value) -> (u16, Value) {
        let answer = self.request(Method::PUT, path, Some(&body));
        (answer.status.as_u16(), answer.json().unwrap())
    }

    fn metrics(&self) -> Metrics {
        let server: SocketAddr = METRICS.parse().unwrap();
        self.ovs.namespace.enter(|| Metrics::scrape(server)).unwrap()
    }

    fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.metrics().sum(name, labels).unwrap_or(0.0)
    }

    /// Waits until so many switches are in session and have everything they can have.
    #[track_caller]
    fn settled(&self, count: usize) {
        let all = || {
            let list = self.get("/v1/switches");
            let switches = list["switches"].as_array().unwrap().clone();
            switches.iter().filter(|switch| switch["settled"] == true).count() == count
        };
        let ok = holds_within(PATIENCE, all);
        assert!(ok, "{:#}\n{}", self.get("/v1/switches"), self.controller.output());
    }
}

fn controller(ovs: &Ovs, directory: &tempfile::TempDir) -> Process {
    let mut command = ovs.namespace.command(binary::sluice().to_str().unwrap());
    command.args(["controller", "run", "--state-dir"]).arg(directory.path().join("state"));
    command.arg("--run-dir").arg(directory.path());
    command.args(["--openflow", &format!("tcp:{OPENFLOW}"), "--rest", REST, "--metrics", METRICS]);
    let log = directory.path().join("controller.log");
    let mut process = Process::start("controller", &command, &log, Lifetime::Ours).unwrap();
    let answers = holds_within(PATIENCE, || {
        process.alive().unwrap();
        ovs.namespace.enter(|| std::net::TcpStream::connect(METRICS).is_ok())
    });
    assert!(answers, "the controller starts:\n{}", process.output());
    process
}

/// Two bridges: hosts 1 and 3 on the first, 2, 4 and 5 on the second, a trunk between them.
fn two_bridges(stage: &Stage) -> Vec<Host> {
    let ovs = &stage.ovs;
    ovs.add_bridge("br1", 1, OPENFLOW);
    ovs.add_bridge("br2", 2, OPENFLOW);
    ovs.join([("br1", "up1", 10), ("br2", "up2", 10)]);
    [("br1", 1), ("br2", 2), ("br1", 3), ("br2", 4), ("br2", 5)]
        .map(|(bridge, n)| ovs.add_host(bridge, &format!("h{n}"), n, Ipv4Addr::new(10, 0, 0, n as u8)))
        .into()
}

/// Hosts 1, 2 and 5, the last on a native port.
fn red() -> Value {
    json!({ "vlan": 10, "ports": [
        { "dpid": 1, "port": 1 }, { "dpid": 2, "port": "h2" }, { "dpid": 2, "port": 5, "mode": "native" },
        { "dpid": 1, "port": "up1", "mode": "trunk" }, { "dpid": 2, "port": "up2", "mode": "trunk" },
    ]})
}

/// Hosts 3 and 4.
fn blue() -> Value {
    json!({ "vlan": 20, "ports": [
        { "dpid": "0x1", "port": "h3" }, { "dpid": "0000000000000002", "port": 4, "mode": "access" },
        { "dpid": 1, "port": 10, "mode": "trunk" }, { "dpid": 2, "port": 10, "mode": "trunk" },
    ]})
}

fn make_networks(stage: &Stage) {
    for (name, body) in [("red", red()), ("blue", blue())] {
        let (status, answer) = stage.put(&format!("/v1/networks/{name}"), body);
        assert_eq!((status, &answer["status"]), (200, &json!("applied")), "{answer:#}");
    }
}

/// Whether `from` does not reach `to`, or soon does no more: Open vSwitch answers a barrier before the cache of its
/// datapath forgets what was deleted.
fn parted(from: &Host, to: &Host) -> bool {
    holds_within(PATIENCE, || !from.pings(to, SILENCE))
}

/// Every host against every other: those of a group reach each other, and nobody else.
#[track_caller]
fn assert_reach(hosts: &[Host], groups: &[&[usize]]) {
    for a in 1..=hosts.len() {
        for b in (1..=hosts.len()).filter(|&b| b != a) {
            let together = groups.iter().any(|group| group.contains(&a) && group.contains(&b));
            let (from, to) = (&hosts[a - 1], &hosts[b - 1]);
            let right = if together { from.pings(to, REPLY) } else { parted(from, to) };
            assert!(right, "host {a} to host {b}: together is {together}");
        }
    }
}

const APART: &[&[usize]] = &[&[1, 2, 5], &[3, 4]];

/// Packets of the flow entry of `bridge` whose line has all of `parts`.
fn packets(ovs: &Ovs, bridge: &str, parts: &[&str]) -> u64 {
    let flows = ovs.flows(bridge);
    let fits = |line: &&String| parts.iter().all(|part| line.contains(part));
    let line = flows.iter().find(fits).unwrap_or_else(|| panic!("{parts:?} in {flows:#?}"));
    let count = line.split("n_packets=").nth(1).and_then(|rest| rest.split(',').next());
    count.and_then(|count| count.parse().ok()).expect("a flow entry has a packet count")
}

#[test]
fn networks_over_two_bridges_and_every_restart() {
    let mut stage = Stage::new();
    // Nobody is there yet: stored, and said so.
    let (status, answer) = stage.put("/v1/networks/red", red());
    assert_eq!((status, &answer["status"]), (202, &json!("pending")), "{answer:#}");
    let hosts = two_bridges(&stage);
    stage.settled(2);
    make_networks(&stage);
    assert_reach(&hosts, APART);

    // Known destinations are not flooded.
    let flood = ["table=6", "priority=10000", "dl_vlan=10"];
    let known =
        || stage.ovs.flows("br1").iter().filter(|f| f.contains("table=6") && f.contains("dl_dst")).count();
    assert!(
        holds_within(PATIENCE, || known() >= hosts.len()),
        "addresses are learned: {:#?}",
        stage.ovs.flows("br1")
    );
    let before = packets(&stage.ovs, "br1", &flood);
    for _ in 0..20 {
        assert!(hosts[0].pings(&hosts[1], REPLY));
    }
    let flooded = packets(&stage.ovs, "br1", &flood) - before;
    assert!(flooded < 10, "{flooded} packets of 20 echoes between known hosts were flooded");

    // The same again sends nothing.
    let before = stage.ovs.flows("br1").iter().filter(|flow| flow.contains("send_flow_rem")).count();
    make_networks(&stage);
    assert_eq!(stage.ovs.flows("br1").iter().filter(|flow| flow.contains("send_flow_rem")).count(), before);

    // Without the controller packets flow; a new one, told nothing, changes nothing.
    stage.kill_controller();
    assert!(hosts[0].pings(&hosts[1], REPLY) && hosts[2].pings(&hosts[3], REPLY));
    stage.start_controller();
    stage.settled(2);
    // But for addresses learned meanwhile, two entries each.
    let sent = || {
        let metrics = stage.metrics();
        let sum = |name| metrics.sum(name, &[]).unwrap_or(0.0);
        sum("sluice_openflow_flow_mods_total") - 2.0 * sum("sluice_controller_addresses_learned_total")
    };
    assert!(holds_within(PATIENCE, || sent() == 0.0), "a restarted controller sent flow-mods");
    assert_eq!(stage.get("/v1/networks/red")["status"], "applied");
    assert_reach(&hosts, APART);

    // A switch that comes back empty gets all of it again.
    let reconciled = |stage: &Stage| stage.metric("sluice_controller_reconcile_seconds_count", &[]);
    let before = reconciled(&stage);
    stage.ovs.kill_and_restart();
    let back = || reconciled(&stage) >= before + 2.0;
    assert!(holds_within(PATIENCE, back), "the rules are sent again");
    stage.settled(2);
    assert_reach(&hosts, APART);

    // SIGTERM ends it cleanly.
    assert!(stage.controller.stop().unwrap().success());
}

#[test]
fn edits_deletions_and_meddling() {
    let stage = Stage::new();
    let hosts = two_bridges(&stage);
    stage.settled(2);
    stage.ovs.ofctl("add-flow", "br1", &["cookie=0x7,table=5,priority=3,in_port=1,actions=drop"]);
    make_networks(&stage);
    assert!(hosts[0].pings(&hosts[1], REPLY));

    // Host 2 moves to the other network.
    let (mut red, mut blue) = (red(), blue());
    let ports = |network: &mut Value| network["ports"].as_array_mut().unwrap().clone();
    red["ports"] = ports(&mut red).into_iter().filter(|port| port["port"] != "h2").collect();
    blue["ports"] = [ports(&mut blue), vec![json!({"dpid": 2, "port": "h2"})]].concat().into();
    assert_eq!(
        stage.put("/v1/networks/blue", blue.clone()).0,
        409,
        "the port belongs to the other network still"
    );
    assert_eq!(stage.put("/v1/networks/red", red).0, 200);
    assert_eq!(stage.put("/v1/networks/blue", blue).0, 200);
    assert_reach(&hosts, &[&[1, 5], &[2, 3, 4]]);

    // Somebody else deletes our rules: they are written again.
    let ours = || stage.ovs.flows("br1").iter().filter(|flow| flow.contains("send_flow_rem")).count();
    let before = ours();
    stage.ovs.ofctl("del-flows", "br1", &["table=0"]);
    assert!(holds_within(PATIENCE, || ours() == before), "{:#?}", stage.ovs.flows("br1"));
    assert!(hosts[0].pings(&hosts[4], REPLY));

    // A port that comes later, by its name.
    let late = json!({ "vlan": 30, "ports": [{ "dpid": 1, "port": "h6" }, { "dpid": 1, "port": "h7" }] });
    let (status, answer) = stage.put("/v1/networks/green", late);
    assert_eq!((status, &answer["status"]), (202, &json!("pending")), "{answer:#}");
    assert!(answer.to_string().contains("has no port `h6`"), "{answer:#}");
    let new =
        [6, 7].map(|n| stage.ovs.add_host("br1", &format!("h{n}"), n, Ipv4Addr::new(10, 0, 0, n as u8)));
    let applied = || stage.get("/v1/networks/green")["status"] == "applied";
    assert!(holds_within(PATIENCE, applied), "{:#}", stage.get("/v1/networks/green"));
    assert!(new[0].pings(&new[1], REPLY) && parted(&new[0], &hosts[0]));

    // Nothing of ours stays, and what was not ours does.
    for name in ["red", "blue", "green"] {
        let answer = stage.request(Method::DELETE, &format!("/v1/networks/{name}"), None);
        assert_eq!(answer.status.as_u16(), 200, "{}", answer.body);
        assert_eq!(stage.request(Method::GET, &format!("/v1/networks/{name}"), None).status.as_u16(), 404);
    }
    let left = stage.ovs.flows("br1");
    assert!(left.len() == 1 && left[0].contains("cookie=0x7,"), "{left:#?}");
    assert_eq!(stage.ovs.flows("br2"), [""; 0]);
}

#[test]
fn static_flows_and_refusals() {
    let mut stage = Stage::new();
    stage.ovs.add_bridge("br1", 1, OPENFLOW);
    let a = stage.ovs.add_host("br1", "a", 1, Ipv4Addr::new(10, 0, 0, 1));
    let b = stage.ovs.add_host("br1", "b", 2, Ipv4Addr::new(10, 0, 0, 2));
    stage.settled(1);
    let flow = |from: u32, to: u32| json!({ "priority": 5, "match": { "in_port": from }, "actions": [{ "output": to }] });
    for (id, body) in [("ab", flow(1, 2)), ("ba", flow(2, 1))] {
        let (status, answer) = stage.put(&format!("/v1/switches/1/flows/{id}"), body);
        assert_eq!((status, &answer["status"]), (200, &json!("applied")), "{answer:#}");
    }
    assert!(a.pings(&b, REPLY));

    // A refused flow says why, and what was there stays.
    let bad = json!({ "priority": 5, "match": { "in_port": 1 }, "actions": [{ "group": 77 }] });
    for id in ["ab", "new"] {
        let body =
            if id == "new" { json!({ "table": 3, "actions": [{ "group": 77 }] }) } else { bad.clone() };
        let (status, answer) = stage.put(&format!("/v1/switches/1/flows/{id}"), body);
        let error = json!({ "type": 2, "code": 9, "type_name": "OFPET_BAD_ACTION", "code_name": "OFPBAC_BAD_OUT_GROUP" });
        assert_eq!((status, &answer["openflow"]), (422, &error), "{answer:#}");
    }
    assert_eq!(stage.get("/v1/switches/1/flows/ab")["actions"], json!([{ "output": 2 }]));
    assert_eq!(stage.request(Method::GET, "/v1/switches/1/flows/new", None).status.as_u16(), 404);
    assert!(a.pings(&b, REPLY));

    // All of it survives the controller's death, and nothing is sent again.
    let everything = json!({ "table": 9, "priority": 40, "match": {
        "eth_type": 34525, "ip_proto": 6, "ipv6_dst": "2001:db8::/32", "tcp_dst": 443, "vlan_vid": 4106, "vlan_pcp": 2,
    }, "instructions": [
        { "apply_actions": ["pop_vlan", { "set_field": { "eth_dst": "02:00:00:00:00:01" } }, { "output": "IN_PORT" }] },
        { "write_metadata": { "metadata": 16, "mask": 240 } }, { "goto_table": 10 },
    ]});
    assert_eq!(stage.put("/v1/switches/1/flows/everything", everything).0, 200);
    stage.kill_controller();
    stage.start_controller();
    stage.settled(1);
    assert_eq!(stage.metric("sluice_openflow_flow_mods_total", &[]), 0.0, "{:#?}", stage.ovs.flows("br1"));
    let list = stage.get("/v1/switches/1/flows");
    assert!(list["flows"].as_array().unwrap().iter().all(|flow| flow["status"] == "applied"), "{list:#}");

    let gone = stage.request(Method::DELETE, "/v1/switches/1/flows/ab", None);
    assert_eq!(gone.status.as_u16(), 200, "{}", gone.body);
    assert!(parted(&a, &b));
    assert_eq!(stage.request(Method::DELETE, "/v1/switches/1/flows/ab", None).status.as_u16(), 404);
}
