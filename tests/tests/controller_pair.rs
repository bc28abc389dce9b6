//! Two controllers that share nothing, over TLS with certificates by `ovs-pki`: the one with the higher priority leads
//! Open vSwitch and our switch, the other takes over when it dies, and the switches keep every flow entry.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::{Value, json};
use tests::fabric::{PATIENCE, parted, reaches};
use tests::{binary, holds_within};
use xtask::lab::http;
use xtask::lab::netns::{Host, Namespace};
use xtask::lab::ovs::{Datapath, Ovs};
use xtask::lab::process::{Lifetime, Process, output};

/// Keys, certificates and authorities as `ovs-pki` makes them.
fn pki(dir: &Path) {
    for words in [&["init"][..], &["req+sign", "sw", "switch"], &["req+sign", "ctl", "controller"]] {
        let mut command = Command::new("ovs-pki");
        command.arg(format!("--dir={}", dir.join("pki").display()));
        command.arg(format!("--log={}", dir.join("pki.log").display())).args(words);
        output(command.current_dir(dir)).unwrap();
    }
}

/// One of the two.
struct Controller<'a> {
    namespace: &'a Namespace,
    command: Command,
    process: Process,
    rest: SocketAddr,
    log: std::path::PathBuf,
}

impl Controller<'_> {
    fn start<'a>(namespace: &'a Namespace, dir: &Path, number: u16, priority: u16) -> Controller<'a> {
        let own = dir.join(format!("controller{number}"));
        std::fs::create_dir_all(&own).unwrap();
        let rest = SocketAddr::from(([127, 0, 0, 1], 8080 + number));
        let mut command = namespace.command(binary::sluice().to_str().unwrap());
        command.args(["controller", "run", "--state-dir"]).arg(own.join("state"));
        command.arg("--run-dir").arg(&own);
        command.args([
            "--openflow",
            &format!("ssl:127.0.0.1:{}", 6653 + number),
            "--rest",
            &rest.to_string(),
        ]);
        command.args(["--priority", &priority.to_string()]);
        command
            .arg("--tls-key")
            .arg(dir.join("ctl-privkey.pem"))
            .arg("--tls-cert")
            .arg(dir.join("ctl-cert.pem"));
        command.arg("--tls-ca").arg(dir.join("pki/switchca/cacert.pem"));
        let log = own.join("log");
        let process = Process::start("controller", &command, &log, Lifetime::Ours).unwrap();
        Controller { namespace, command, process, rest, log }
    }

    fn restart(&mut self) {
        self.process = Process::start("controller", &self.command, &self.log, Lifetime::Ours).unwrap();
    }

    fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Option<(u16, Value)> {
        let answer = self.namespace.enter(|| http::request(self.rest, method, path, body)).unwrap().ok()?;
        Some((answer.status.as_u16(), answer.json().unwrap()))
    }

    /// Its role at each switch.
    fn roles(&self) -> BTreeMap<u64, String> {
        let Some((_, list)) = self.request(Method::GET, "/v1/switches", None) else { return BTreeMap::new() };
        let role = |switch: &Value| Some((switch["dpid"].as_u64()?, switch["role"].as_str()?.to_owned()));
        list["switches"].as_array().unwrap().iter().filter_map(role).collect()
    }

    #[track_caller]
    fn is(&self, role: &str) {
        let everywhere = || {
            let roles = self.roles();
            roles.len() == 2 && roles.values().all(|found| found == role)
        };
        assert!(
            holds_within(PATIENCE, everywhere),
            "{:?}, not {role}:\n{}",
            self.roles(),
            self.process.output()
        );
    }
}

fn network(ports: &[u32]) -> Value {
    let at = |dpid: u64| ports.iter().map(move |port| json!({"dpid": dpid, "port": port}));
    json!({"vlan": 10, "ports": at(1).chain(at(2)).collect::<Vec<_>>()})
}

/// Each of our flow entries without its counters, and for how many seconds it has been there.
fn entries(ovs: &Ovs) -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    for line in ovs.flows("br1").unwrap().iter().filter(|line| line.contains("cookie=0x51ce")) {
        let parts: Vec<&str> = line.split(", ").collect();
        let seconds = parts.iter().find_map(|part| part.strip_prefix("duration=")?.strip_suffix('s'));
        let counted = ["duration=", "n_packets=", "n_bytes=", "idle_age=", "hard_age="];
        let kept = parts.iter().filter(|part| !counted.iter().any(|word| part.starts_with(word)));
        let text = kept.copied().collect::<Vec<_>>().join(", ");
        // Learned ones come and go with their time-outs.
        if !text.contains("hard_timeout=") {
            found.insert(text, seconds.and_then(|seconds| seconds.parse().ok()).expect("a duration"));
        }
    }
    found
}

#[test]
fn the_other_takes_over_and_nothing_is_lost() {
    let directory = tempfile::Builder::new().prefix("sluice-pair-").tempdir().unwrap();
    let dir = directory.path();
    pki(dir);
    let path = |name: &str| dir.join(name).display().to_string();
    let (key, cert, ca) = (path("sw-privkey.pem"), path("sw-cert.pem"), path("pki/controllerca/cacert.pem"));
    let ovs = Ovs::start(Datapath::Userspace).unwrap();
    let mut first = Controller::start(ovs.namespace(), dir, 0, 200);
    let second = Controller::start(ovs.namespace(), dir, 1, 100);

    ovs.vsctl(&["set-ssl", &key, &cert, &ca]).unwrap();
    ovs.add_bridge("br1", 1, None).unwrap();
    ovs.vsctl(&["set-controller", "br1", "ssl:127.0.0.1:6653", "ssl:127.0.0.1:6654"]).unwrap();
    let hosts = [1, 2, 3].map(|n: u8| {
        let host = Host::new(ovs.namespace(), &format!("h{n}"), Ipv4Addr::new(10, 0, 0, n)).unwrap();
        ovs.add_port("br1", &format!("h{n}"), n.into(), &[]).unwrap();
        host
    });
    let mut command = ovs.namespace().command(binary::sluice().to_str().unwrap());
    command.args(["switch", "run", "--dpid", "2", "--fail-mode", "secure", "--run-dir", &path("switch")]);
    command.args([
        "--state-dir",
        &path("switch/state"),
        "--tls-key",
        &key,
        "--tls-cert",
        &cert,
        "--tls-ca",
        &ca,
    ]);
    command.args(["--controller", "ssl:127.0.0.1:6653,ssl:127.0.0.1:6654"]);
    let _switch = Process::start("switch", &command, &dir.join("switch.log"), Lifetime::Ours).unwrap();

    first.is("master");
    second.is("slave");
    let put = |controller: &Controller<'_>, body: &Value| {
        let (status, answer) =
            controller.request(Method::PUT, "/v1/networks/red", Some(body)).expect("an answer");
        (status, answer["status"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(put(&first, &network(&[1, 2])), (200, "applied".into()));
    assert_eq!(put(&second, &network(&[1, 2])), (202, "pending".into()), "it stands by");
    assert!(reaches(&hosts[0], &hosts[1]));
    assert!(parted(&hosts[0], &hosts[2]));
    let before = entries(&ovs);
    assert!(before.len() > 5, "{before:#?}");

    first.process.kill().unwrap();
    let dead = Instant::now();
    second.is("master");
    println!("the second leads both switches {} ms after the first died", dead.elapsed().as_millis());
    assert!(dead.elapsed() < Duration::from_secs(30), "{:?}", dead.elapsed());
    let settled = || {
        let (_, list) = second.request(Method::GET, "/v1/switches", None).expect("an answer");
        list["switches"].as_array().unwrap().iter().all(|switch| switch["settled"] == true)
    };
    assert!(holds_within(PATIENCE, settled));
    let after = entries(&ovs);
    assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    for (entry, seconds) in &after {
        assert!(*seconds >= before[entry], "written again: {entry}");
    }
    assert!(reaches(&hosts[0], &hosts[1]));
    assert_eq!(put(&second, &network(&[1, 2, 3])), (200, "applied".into()));
    assert!(reaches(&hosts[0], &hosts[2]));

    first.restart();
    first.is("master");
    second.is("slave");
}
