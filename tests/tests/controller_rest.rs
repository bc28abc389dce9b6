//! The controller's REST interface as a real process serves it: every route, every kind of error, and writes in the middle
//! of which it is killed. (Switches are in `controller_ovs.rs` and in the controller's own tests.)

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hyper::Method;
use serde_json::{Value, json};
use tests::frontend::PATIENCE;
use tests::{binary, holds_within};
use xtask::lab::Daemon;
use xtask::lab::http::{self, Answer};
use xtask::lab::process::{Lifetime, Process};

/// A controller with directories of its own.
struct Bed {
    daemon: Daemon,
    rest: SocketAddr,
    /// Operations that were tried, as the description names them.
    tried: Mutex<BTreeSet<(String, String)>>,
    _dir: tempfile::TempDir,
}

impl Bed {
    /// In memory where that is possible: a process that is killed loses nothing that the kernel has.
    fn new() -> Bed {
        let memory = std::path::Path::new("/dev/shm");
        let mut builder = tempfile::Builder::new();
        builder.prefix("sluice-");
        let dir = if memory.is_dir() { builder.tempdir_in(memory) } else { builder.tempdir() }.unwrap();
        let site = binary::site(dir.path());
        let (daemon, _, rest) = site.controller().unwrap();
        Bed { daemon, rest, tried: Mutex::default(), _dir: dir }
    }

    fn request(&self, method: &Method, path: &str, body: Option<&Value>) -> Answer {
        http::request(self.rest, method.clone(), path, body).expect("an answer")
    }

    /// Asks, and checks that the description knows the status. `route` is the path as it is described.
    #[track_caller]
    fn check(
        &self,
        method: &Method,
        (route, path): (&str, &str),
        body: Option<&Value>,
        status: u16,
    ) -> Value {
        let answer = self.request(method, path, body);
        assert_eq!(answer.status.as_u16(), status, "{method} {path}: {}", answer.body);
        let operation = (route.to_owned(), method.as_str().to_lowercase());
        let description = self.request(&Method::GET, "/openapi.json", None).json().unwrap();
        let described = &description["paths"][route][&operation.1]["responses"][status.to_string()];
        // What is wrong with a path itself is the same everywhere.
        assert!(described.is_object() || status == 400, "{method} {route} does not describe {status}");
        self.tried.lock().unwrap().insert(operation);
        answer.json().unwrap()
    }
}

const SWITCHES: &str = "/v1/switches";
const PORTS: &str = "/v1/switches/{dpid}/ports";
const FLOWS: &str = "/v1/switches/{dpid}/flows";
const FLOW: &str = "/v1/switches/{dpid}/flows/{id}";
const NETWORKS: &str = "/v1/networks";
const NETWORK: &str = "/v1/networks/{name}";

fn fields(problem: &Value) -> Vec<&str> {
    let errors = problem["errors"].as_array().expect("a list of errors");
    errors.iter().map(|error| error["field"].as_str().expect("a field")).collect()
}

#[test]
fn every_route_does_what_its_description_says() {
    let bed = Bed::new();
    let (get, put, delete) = (Method::GET, Method::PUT, Method::DELETE);
    assert_eq!(bed.check(&get, (SWITCHES, SWITCHES), None, 200)["switches"], json!([]));
    assert_eq!(bed.check(&get, (NETWORKS, NETWORKS), None, 200)["networks"], json!([]));
    bed.check(&get, (PORTS, "/v1/switches/1/ports"), None, 404);

    let (flow, f1) = (
        json!({"priority": 5, "match": {"in_port": 1}, "actions": [{"output": 2}]}),
        "/v1/switches/1/flows/f1",
    );
    bed.check(&get, (FLOW, f1), None, 404);
    bed.check(&delete, (FLOW, f1), None, 404);
    assert_eq!(bed.check(&put, (FLOW, f1), Some(&flow), 202)["status"], "pending");
    assert_eq!(bed.check(&put, (FLOW, f1), Some(&flow), 202)["status"], "pending", "once more");
    bed.check(&put, (FLOW, "/v1/switches/1/flows/f2"), Some(&flow), 409);
    assert_eq!(bed.check(&get, (FLOW, f1), None, 200)["actions"], flow["actions"]);
    assert_eq!(
        bed.check(&get, (FLOWS, "/v1/switches/0x1/flows"), None, 200)["flows"].as_array().unwrap().len(),
        1
    );
    assert_eq!(bed.check(&get, (SWITCHES, SWITCHES), None, 200)["switches"].as_array().unwrap().len(), 1);

    let (network, red) = (json!({"vlan": 10, "ports": [{"dpid": 1, "port": 3}]}), "/v1/networks/red");
    bed.check(&get, (NETWORK, red), None, 404);
    bed.check(&delete, (NETWORK, red), None, 404);
    assert_eq!(bed.check(&put, (NETWORK, red), Some(&network), 202)["status"], "pending");
    bed.check(&put, (NETWORK, "/v1/networks/blue"), Some(&network), 409);
    assert_eq!(bed.check(&get, (NETWORK, red), None, 200)["vlan"], 10);
    assert_eq!(bed.check(&get, (NETWORKS, NETWORKS), None, 200)["networks"].as_array().unwrap().len(), 1);

    // Everything that is wrong, at once.
    let bad = json!({"priority": 70_000, "match": {"in_port": "x", "colour": 1}, "actions": [{"fly": 2}], "more": 1});
    let problem = bed.check(&put, (FLOW, "/v1/switches/1/flows/F!"), Some(&bad), 400);
    assert!(fields(&problem).len() >= 5, "{problem:#}");
    let bad =
        json!({"vlan": 4095, "ports": [{"dpid": "zz", "port": 0}, {"port": 1, "mode": "wild"}], "more": 1});
    let problem = bed.check(&put, (NETWORK, "/v1/networks/a!b"), Some(&bad), 400);
    assert!(fields(&problem).len() >= 5, "{problem:#}");
    assert_eq!(fields(&bed.check(&get, (PORTS, "/v1/switches/x/ports"), None, 400)), ["dpid"]);
    bed.check(&put, (NETWORK, "/v1/networks/green"), None, 400);

    assert_eq!(bed.check(&delete, (FLOW, f1), None, 202)["status"], "pending");
    bed.check(&get, (FLOW, f1), None, 404);
    bed.check(&delete, (NETWORK, red), None, 202);
    bed.check(&get, (NETWORK, red), None, 404);

    every_other_kind(&bed);
    for (method, path, status) in
        [(&get, "/v1/nothing", 404), (&Method::POST, NETWORKS, 405), (&delete, SWITCHES, 405)]
    {
        let answer = bed.request(method, path, None);
        assert_eq!(answer.status.as_u16(), status, "{method} {path}: {}", answer.body);
        assert!(answer.json().unwrap()["title"].is_string(), "{}", answer.body);
    }
    let description = bed.request(&get, "/openapi.json", None).json().unwrap();
    let known = description["paths"].as_object().unwrap().iter().flat_map(|(path, methods)| {
        methods.as_object().unwrap().keys().map(move |method| (path.clone(), method.clone()))
    });
    let untried: Vec<_> = known.filter(|operation| !bed.tried.lock().unwrap().contains(operation)).collect();
    assert!(untried.is_empty(), "described and not tried: {untried:?}");
}

/// What has the verbs of a network has them all, and what can only be looked at can be.
fn every_other_kind(bed: &Bed) {
    let (get, put, delete) = (Method::GET, Method::PUT, Method::DELETE);
    let at = |port: u32| json!({"dpid": 1, "port": port});
    let things = [
        ("tenants", json!({"description": "theirs"})),
        ("acls", json!({"rules": []})),
        ("uplinks", json!({"a": at(8), "b": {"dpid": 2, "port": 8}})),
        ("networks", json!({"vlan": 30})),
        ("attachments", json!({"network": "x", "dpid": 1, "port": 1})),
        ("mirrors", json!({"source": {"network": "x"}, "to": at(9)})),
        ("chains", json!({"network": "x", "inside": ["x"], "hops": [{"inside": at(4), "outside": at(5)}]})),
    ];
    for (kind, body) in &things {
        let (many, one, path) =
            (format!("/v1/{kind}"), format!("/v1/{kind}/{{name}}"), format!("/v1/{kind}/x"));
        bed.check(&get, (&one, &path), None, 404);
        bed.check(&put, (&one, &path), Some(&json!({"colour": 1})), 400);
        let trial = bed.check(&put, (&one, &format!("{path}?dry_run=true")), Some(body), 200);
        assert_eq!(trial["dry_run"], true, "{trial:#}");
        bed.check(&get, (&one, &path), None, 404);
        let answer = bed.request(&put, &path, Some(body));
        assert!(answer.status.is_success(), "{kind}: {}", answer.body);
        bed.check(&get, (&one, &path), None, 200);
        let list = bed.check(&get, (&many, &many), None, 200);
        assert_eq!(list[kind].as_array().map(Vec::len), Some(1), "{list:#}");
    }
    // What others name stays, until they are gone.
    let kept = bed.check(&delete, ("/v1/networks/{name}", "/v1/networks/x"), None, 409);
    let detail = kept["detail"].as_str().unwrap();
    assert!(detail.contains("attachment x needs network x"), "{detail}");
    // Queries and paths that cannot be read are told like everything else.
    for path in ["/v1/attachments?limit=x", "/v1/attachments?colour=red", "/v1/switches/1/flows/%ff"] {
        let answer = bed.request(&get, path, None);
        assert_eq!((answer.status.as_u16(), &answer.json().unwrap()["status"]), (400, &json!(400)), "{path}");
    }
    let document = "/v1/document";
    let whole = bed.check(&get, (document, document), None, 200);
    let trial = bed.check(&put, (document, "/v1/document?dry_run=true"), Some(&whole), 200);
    assert_eq!(trial["changes"], json!([]), "what was exported changes nothing");
    for (kind, _) in things.iter().rev() {
        let (one, path) = (format!("/v1/{kind}/{{name}}"), format!("/v1/{kind}/x"));
        let answer = bed.request(&delete, &path, None);
        assert!(answer.status.is_success(), "{kind}: {}", answer.body);
        bed.check(&delete, (&one, &path), None, 404);
    }
    for path in ["/v1/addresses", "/v1/counters", "/v1/topology", "/v1/audit"] {
        bed.check(&get, (path, path), None, 200);
    }
    for path in ["port-stats", "entries"] {
        let route = format!("/v1/switches/{{dpid}}/{path}");
        bed.check(&get, (&route, &format!("/v1/switches/1/{path}")), None, 404);
    }
    bed.check(&get, ("/v1/whoami", "/v1/whoami"), None, 200);
    let (tokens, token) = ("/v1/tokens", "/v1/tokens/{name}");
    let wanted = json!({"name": "ci", "role": "read"});
    bed.check(&Method::POST, (tokens, tokens), Some(&wanted), 201);
    bed.check(&Method::POST, (tokens, tokens), Some(&wanted), 409);
    assert_eq!(bed.check(&get, (tokens, tokens), None, 200)["tokens"][0]["name"], "ci");
    bed.check(&delete, (token, "/v1/tokens/ci"), None, 200);
    bed.check(&delete, (token, "/v1/tokens/ci"), None, 404);
    // Events have no end; that they come is the page's test.
    bed.tried.lock().unwrap().insert(("/v1/events".into(), "get".into()));
}

#[test]
fn settings_are_checked_whole_and_nothing_is_started() {
    let dir = tempfile::tempdir().unwrap();
    let site = binary::site(dir.path());
    let file = dir.path().join("controller.toml");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let output =
            site.command(&["controller", "check", "--config", file.to_str().unwrap()]).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let state = dir.path().join("state-of-it");
    assert_eq!(check(&format!("state_dir = {state:?}\nrest = \"127.0.0.1:1\"\n")).0, Some(0));
    assert!(!state.exists(), "check changes nothing");
    let (code, said) = check("restt = 1\nopenflow = \"6653\"\nrest = \"0.0.0.0:8080\"\nmetrics = \"here\"\n");
    assert_eq!(code, Some(2), "{said}");
    for part in ["restt", "6653", "0.0.0.0:8080", "here"] {
        assert!(said.contains(part), "`{part}` is not in:\n{said}");
    }
}

fn openssl(dir: &Path, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output();
    let output = output.expect("openssl is there: it is in the package of this name");
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What an operator does to reach the controller from another host.
#[test]
fn the_command_line_over_https_with_a_token_and_with_a_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let site = binary::site(dir.path());
    let new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    openssl(dir.path(), &format!("{new} -subj /CN=authority -keyout ca.key -out ca.pem"));
    for name in ["localhost", "alice"] {
        let signed = "-CA ca.pem -CAkey ca.key -addext basicConstraints=critical,CA:FALSE";
        let names = "-addext subjectAltName=DNS:localhost";
        openssl(
            dir.path(),
            &format!("{new} {signed} {names} -subj /CN={name} -keyout {name}.key -out {name}.pem"),
        );
    }
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (key, cert, ca) = (file("localhost.key"), file("localhost.pem"), file("ca.pem"));
    let address = xtask::lab::daemons::free_address(0).unwrap();
    let openflow = format!("tcp:{}", xtask::lab::daemons::free_address(0).unwrap());
    let (state, run) = (file("state"), file("run"));
    let daemon = |rest: &str, more: &[&str]| {
        let mut args =
            vec!["controller", "run", "--state-dir", &state, "--run-dir", &run, "--openflow", &openflow];
        args.extend(["--rest", rest, "--rest-key", &key, "--rest-cert", &cert]);
        args.extend(more);
        site.command(&args)
    };

    // For other hosts, and nobody could be let in: it does not even start.
    let refused = daemon("0.0.0.0:0", &[]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("controller token create"), "{said}");

    let clients = ["--rest-ca", &ca, "--rest-clients", "alice=admin"];
    let command = daemon(&address.to_string(), &clients);
    let _daemon = Process::start("controller", &command, &dir.path().join("log"), Lifetime::Ours).unwrap();
    let sluice = |args: &[&str]| {
        let output = site.command(args).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    let create = ["controller", "token", "create", "ci", "--role", "operate", "--run-dir", &run];
    assert!(holds_within(PATIENCE, || sluice(&["net", "list", "--run-dir", &run]).0 == Some(0)));
    let (code, token) = sluice(&create);
    assert_eq!(code, Some(0), "{token}");
    std::fs::write(file("token"), &token).unwrap();
    let url = format!("https://localhost:{}", address.port());
    let there = |what: &[&'static str], who: &[&str]| {
        let at = ["--url", &url, "--cacert", &ca];
        sluice(&what.iter().copied().chain(at).chain(who.iter().copied()).collect::<Vec<_>>())
    };
    let by_token = ["--token-file", &file("token")];
    let (code, said) = there(&["net", "create", "red", "--vlan", "10"], &by_token);
    assert_eq!(code, Some(0), "{said}");
    assert!(there(&["net", "list"], &["--token", token.trim()]).1.contains("red"));
    let (code, said) = there(&["controller", "token", "list"], &by_token);
    assert_eq!(code, Some(2), "it is the administrator's: {said}");
    let (alice_cert, alice_key) = (file("alice.pem"), file("alice.key"));
    let certified = ["--cert", alice_cert.as_str(), "--key", &alice_key];
    let (code, said) = there(&["controller", "token", "list"], &certified);
    assert!(code == Some(0) && said.contains("operate"), "{said}");
    assert_eq!(there(&["net", "list"], &[]).0, Some(2), "nobody");
    assert_eq!(there(&["net", "list"], &["--token", "x"]).0, Some(2), "a wrong token");
    assert_eq!(there(&["controller", "token", "delete", "ci"], &certified).0, Some(0));
    assert_eq!(there(&["net", "list"], &by_token).0, Some(2), "a token that is ended");
    // A server that somebody else signed, and a token that everybody could read on its way.
    let (code, said) = sluice(&["net", "list", "--url", &url, "--token", "x"]);
    assert!(code == Some(1) && said.contains("--cacert"), "{said}");
    let (code, said) = sluice(&["net", "list", "--url", "http://192.0.2.1", "--token", "x"]);
    assert!(code == Some(2) && said.contains("show the token"), "{said}");
}

/// `| head` ends a command quietly.
#[test]
fn a_reader_that_goes_is_no_crash() {
    use std::process::Stdio;
    let dir = tempfile::tempdir().unwrap();
    let mut command = binary::site(dir.path()).command(&["completions", "bash"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // More than a pipe holds is written.
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141), "{output:?}");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Flows that one thread writes again and again, each with the number of the write as its priority.
const FLOW_COUNT: u64 = 10;
const WRITES: u64 = 1000;
const KILLS: u64 = 5;

/// SIGKILL in the middle of writes: what was acknowledged is there, and nothing that was never asked for.
#[test]
fn acknowledged_writes_survive_kills() {
    let mut bed = Bed::new();
    let path = |flow: u64| format!("/v1/switches/7/flows/f{flow}");
    let (acknowledged, begun) = ([(); FLOW_COUNT as usize].map(|()| AtomicU64::new(0)), AtomicU64::new(0));
    let interrupted = AtomicU64::new(0);
    for life in 1..=KILLS {
        let (rest, dead) = (bed.rest, AtomicBool::new(false));
        let goal = WRITES * life / KILLS;
        std::thread::scope(|scope| {
            let writer = || {
                while !dead.load(Ordering::Relaxed) {
                    let number = begun.fetch_add(1, Ordering::Relaxed) + 1;
                    let flow = number % FLOW_COUNT;
                    let body = json!({"priority": number, "match": {"in_port": flow + 1}, "actions": []});
                    match http::request(rest, Method::PUT, &path(flow), Some(&body)) {
                        Ok(answer) if answer.status.as_u16() == 202 => {
                            acknowledged[flow as usize].store(number, Ordering::Relaxed);
                        }
                        Ok(answer) => panic!("write {number}: {}", answer.body),
                        // It died before it answered.
                        Err(_) => {
                            interrupted.fetch_add(1, Ordering::Relaxed);
                            return;
                        }
                    }
                }
            };
            let writer = scope.spawn(writer);
            let written = || begun.load(Ordering::Relaxed) > goal || writer.is_finished();
            assert!(holds_within(10 * PATIENCE, written), "the writes do not get on");
            bed.daemon.crash().unwrap();
            dead.store(true, Ordering::Relaxed);
            writer.join().expect("no write is refused");
        });
        bed.daemon.restart().unwrap();
        let last = begun.load(Ordering::Relaxed);
        for flow in 0..FLOW_COUNT {
            let answer = bed.request(&Method::GET, &path(flow), None);
            let there = answer.json().unwrap()["priority"].as_u64().unwrap_or(0);
            let expected = acknowledged[flow as usize].load(Ordering::Relaxed);
            // The write that was interrupted may have been done or not.
            let in_flight = last % FLOW_COUNT == flow && there == last;
            assert!(
                there == expected || in_flight,
                "flow {flow}: {there}, {expected} was acknowledged, {last} the last"
            );
            acknowledged[flow as usize].store(there, Ordering::Relaxed);
        }
    }
    assert!(begun.load(Ordering::Relaxed) >= WRITES);
    assert!(interrupted.load(Ordering::Relaxed) <= KILLS);
}
