//! Who may ask the controller what: tokens, certificates, roles, tenants, browsers and proxies, over real connections.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::ServerName;
use sdn_controller::auth::{Grant, Identity, Role};
use sdn_controller::controller::{Controller, Options};
use sdn_controller::metrics::Metrics;
use sdn_controller::rest::{self, RestConfig};
use sdn_controller::store::Store;
use serde_json::{Value, json};
use telemetry::Registry;
use telemetry::tls::{https_client, https_server};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

const PATIENCE: Duration = Duration::from_secs(60);

struct Stage {
    controller: Arc<Controller>,
    address: SocketAddr,
    directory: tempfile::TempDir,
}

/// An answer: its status, its headers as they came, and its body.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    (method, path): (&str, &str),
    headers: &[(&str, &str)],
    body: Option<&Value>,
) -> std::io::Result<Answer> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut head =
        format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
    if !headers.iter().any(|(name, _)| *name == "host") {
        head.push_str("host: localhost\r\n");
    }
    let talk = async {
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).await?;
        let mut text = Vec::new();
        // A server that has said everything may leave without the last words of TLS.
        let ended = stream.read_to_end(&mut text).await;
        if text.is_empty() { ended.map(|_| text) } else { Ok(text) }
    };
    let text = tokio::time::timeout(PATIENCE, talk).await.expect("an answer")?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Ok(Answer { status, head: head.to_lowercase(), body: body.to_owned() })
}

impl Stage {
    async fn new(change: impl FnOnce(&mut RestConfig, &Path)) -> Stage {
        let directory = tempfile::tempdir().unwrap();
        let (store, desired) = Store::open(directory.path()).unwrap();
        let controller = Controller::new(store, desired, Metrics::new(&Registry::new()), Options::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut config = RestConfig::local(address);
        change(&mut config, directory.path());
        tokio::spawn(rest::serve_tcp(listener, config, controller.clone(), std::future::pending()));
        Stage { controller, address, directory }
    }

    async fn token(&self, name: &str, role: Role, tenant: Option<&str>) -> String {
        let grant = Grant { role, tenant: tenant.map(str::to_owned) };
        self.controller.make_token(&Identity::controller(), name, grant).await.unwrap().expect("a new name")
    }

    async fn ask(
        &self,
        request: (&str, &str),
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> std::io::Result<Answer> {
        exchange(TcpStream::connect(self.address).await?, request, headers, body).await
    }

    /// Asks with a token, if one is given.
    async fn with(&self, token: Option<&str>, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let value = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<_> = value.iter().map(|value| ("authorization", value.as_str())).collect();
        self.ask((method, path), &headers, body).await.unwrap()
    }

    /// Puts something there as the administrator.
    async fn put(&self, path: &str, body: Value) {
        let answer = self.ask(("PUT", path), &[], Some(&body)).await.unwrap();
        assert!((200..300).contains(&answer.status), "{path}: {}", answer.body);
    }
}

/// An authority and what it signs, in files.
struct Pki {
    directory: PathBuf,
    name: &'static str,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    fn new(directory: &Path, name: &'static str) -> Pki {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(directory.join(format!("{name}-ca.pem")), certificate.pem()).unwrap();
        Pki { directory: directory.to_owned(), name, issuer: Issuer::new(params, key) }
    }

    fn ca(&self) -> PathBuf {
        self.directory.join(format!("{}-ca.pem", self.name))
    }

    /// Key and certificate.
    fn sign(&self, common_name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = |kind: &str| self.directory.join(format!("{}-{common_name}-{kind}.pem", self.name));
        std::fs::write(path("key"), key.serialize_pem()).unwrap();
        std::fs::write(path("cert"), certificate.pem()).unwrap();
        (path("key"), path("cert"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_in_until_it_is_ended() {
    let stage = Stage::new(|config, _| config.loopback = None).await;
    let admin = stage.token("root", Role::Admin, None).await;
    let ask = async |value: &str| {
        stage.ask(("GET", "/v1/whoami"), &[("authorization", value)], None).await.unwrap().status
    };
    let absent = stage.ask(("GET", "/v1/whoami"), &[], None).await.unwrap();
    assert_eq!(absent.status, 401);
    assert!(absent.head.contains("www-authenticate: bearer"), "{}", absent.head);
    assert_eq!(ask(&format!("Bearer {admin}")).await, 200);
    assert_eq!(ask(&format!("bearer  {admin}")).await, 200, "the scheme has no case");
    for wrong in
        ["", "Bearer", "Bearer ", "Bearer x", &format!("Basic {admin}"), &format!("Bearer {admin}0"), &admin]
    {
        assert_eq!(ask(wrong).await, 401, "{wrong}");
    }
    // A bad token is not made good by being on this host.
    let open = Stage::new(|_, _| {}).await;
    assert_eq!(open.with(Some("x"), "GET", "/v1/whoami", None).await.status, 401);
    assert_eq!(open.with(None, "GET", "/v1/whoami", None).await.json()["role"], "admin");

    let wanted = json!({"name": "eve", "role": "read"});
    let made = stage.with(Some(&admin), "POST", "/v1/tokens", Some(&wanted)).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let eve = made.json()["token"].as_str().expect("told once").to_owned();
    let again = stage.with(Some(&admin), "POST", "/v1/tokens", Some(&wanted)).await;
    assert_eq!(again.status, 409);
    let listed = stage.with(Some(&admin), "GET", "/v1/tokens", None).await;
    assert!(listed.body.contains("eve") && !listed.body.contains(&eve[7..]), "{}", listed.body);
    let audit = stage.with(Some(&admin), "GET", "/v1/audit", None).await;
    assert!(audit.body.contains("\"kind\":\"token\"") && !audit.body.contains(&eve[7..]), "{}", audit.body);

    // A stream that is open when the token ends says nothing more.
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    let request =
        format!("GET /v1/events?after=0 HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {eve}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    let gone = stage.with(Some(&admin), "DELETE", "/v1/tokens/eve", None).await;
    assert_eq!(gone.status, 200);
    assert_eq!(stage.with(Some(&eve), "GET", "/v1/whoami", None).await.status, 401);
    let body = json!({"description": "secret"});
    assert_eq!(stage.with(Some(&admin), "PUT", "/v1/tenants/t", Some(&body)).await.status, 200);
    let mut rest = Vec::new();
    let read = async {
        let mut buffer = [0; 4096];
        while !rest.ends_with(b"0\r\n\r\n") {
            let count = stream.read(&mut buffer).await.unwrap();
            assert_ne!(count, 0, "the stream is ended in order");
            rest.extend_from_slice(&buffer[..count]);
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("the stream ends");
    assert!(!String::from_utf8_lossy(&rest).contains("secret"));
    assert_eq!(stage.with(Some(&admin), "DELETE", "/v1/tokens/eve", None).await.status, 404);

    // What is kept outlives the daemon; what was told is not in it.
    let Stage { controller, directory, .. } = stage;
    let users = controller.store().await.users().unwrap();
    assert_eq!(users.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["root"]);
    let file = std::fs::read(directory.path().join("controller.redb")).unwrap();
    let inside = |text: &str| file.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(!inside(&admin) && !inside(&admin[7..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_wish_for_a_token_is_told() {
    let stage = Stage::new(|_, _| {}).await;
    stage.put("/v1/tenants/acme", json!({})).await;
    for (body, fields) in [
        (json!({}), vec!["name", "role"]),
        (json!({"name": "A", "role": "king", "tenant": "none", "x": 1}), vec!["x", "name", "role", "tenant"]),
        (json!({"name": "a", "role": "admin", "tenant": "acme"}), vec!["role"]),
    ] {
        let answer = stage.with(None, "POST", "/v1/tokens", Some(&body)).await;
        let errors = answer.json()["errors"].as_array().cloned().unwrap_or_default();
        let found: Vec<_> = errors.iter().filter_map(|error| error["field"].as_str()).collect();
        assert_eq!((answer.status, found), (400, fields), "{body}");
    }
}

/// The least role, and whether those confined to a tenant may; `None`: anybody may.
type Need = Option<(Role, bool)>;

/// Every route and what it needs.
const ROUTES: &[(&str, &str, Need)] = &[
    ("GET", "/", None),
    ("GET", "/page/app.js", None),
    ("GET", "/page/style.css", None),
    ("GET", "/openapi.json", None),
    ("GET", "/v1/whoami", Some((Role::Read, true))),
    ("GET", "/v1/events", Some((Role::Read, true))),
    ("GET", "/v1/addresses", Some((Role::Read, true))),
    ("GET", "/v1/counters", Some((Role::Read, true))),
    ("GET", "/v1/topology", Some((Role::Read, false))),
    ("GET", "/v1/audit", Some((Role::Read, false))),
    ("GET", "/v1/document", Some((Role::Read, false))),
    ("PUT", "/v1/document", Some((Role::Operate, false))),
    ("GET", "/v1/switches", Some((Role::Read, false))),
    ("GET", "/v1/switches/{dpid}/ports", Some((Role::Read, false))),
    ("GET", "/v1/switches/{dpid}/port-stats", Some((Role::Read, false))),
    ("GET", "/v1/switches/{dpid}/entries", Some((Role::Read, false))),
    ("GET", "/v1/switches/{dpid}/flows", Some((Role::Read, false))),
    ("GET", "/v1/switches/{dpid}/flows/{id}", Some((Role::Read, false))),
    ("PUT", "/v1/switches/{dpid}/flows/{id}", Some((Role::Operate, false))),
    ("DELETE", "/v1/switches/{dpid}/flows/{id}", Some((Role::Operate, false))),
    ("GET", "/v1/tokens", Some((Role::Admin, false))),
    ("POST", "/v1/tokens", Some((Role::Admin, false))),
    ("DELETE", "/v1/tokens/{name}", Some((Role::Admin, false))),
    ("GET", "/stats/switches", Some((Role::Read, false))),
    ("GET", "/stats/desc/{dpid}", Some((Role::Read, false))),
    ("GET", "/stats/flow/{dpid}", Some((Role::Read, false))),
    ("POST", "/stats/flow/{dpid}", Some((Role::Read, false))),
    ("GET", "/stats/aggregateflow/{dpid}", Some((Role::Read, false))),
    ("POST", "/stats/aggregateflow/{dpid}", Some((Role::Read, false))),
    ("GET", "/stats/table/{dpid}", Some((Role::Read, false))),
    ("GET", "/stats/port/{dpid}", Some((Role::Read, false))),
    ("GET", "/stats/port/{dpid}/{port}", Some((Role::Read, false))),
    ("GET", "/stats/portdesc/{dpid}", Some((Role::Read, false))),
    ("GET", "/stats/group/{dpid}", Some((Role::Read, false))),
    ("GET", "/stats/group/{dpid}/{id}", Some((Role::Read, false))),
    ("GET", "/stats/groupdesc/{dpid}", Some((Role::Read, false))),
    ("GET", "/stats/meter/{dpid}", Some((Role::Read, false))),
    ("GET", "/stats/meter/{dpid}/{id}", Some((Role::Read, false))),
    ("GET", "/stats/meterconfig/{dpid}", Some((Role::Read, false))),
    ("GET", "/stats/meterconfig/{dpid}/{id}", Some((Role::Read, false))),
    ("GET", "/stats/groupdesc/{dpid}/{id}", Some((Role::Read, false))),
    ("GET", "/stats/portdesc/{dpid}/{port}", Some((Role::Read, false))),
    ("GET", "/stats/role/{dpid}", Some((Role::Read, false))),
    ("POST", "/stats/role", Some((Role::Operate, false))),
    ("POST", "/stats/flowentry/{command}", Some((Role::Operate, false))),
    ("DELETE", "/stats/flowentry/clear/{dpid}", Some((Role::Operate, false))),
    ("POST", "/stats/groupentry/{command}", Some((Role::Operate, false))),
    ("POST", "/stats/meterentry/{command}", Some((Role::Operate, false))),
];

/// Those of the kinds, which are all alike.
fn routes_of_kinds() -> Vec<(&'static str, String, Need)> {
    let kinds = ["tenants", "acls", "networks", "attachments", "uplinks", "mirrors", "chains"];
    let of_kind = |kind: &str| {
        let one = format!("/v1/{kind}/{{name}}");
        [
            ("GET", format!("/v1/{kind}"), Some((Role::Read, true))),
            ("GET", one.clone(), Some((Role::Read, true))),
            ("PUT", one.clone(), Some((Role::Operate, true))),
            ("DELETE", one, Some((Role::Operate, true))),
        ]
    };
    kinds.into_iter().flat_map(of_kind).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_wants_its_role() {
    let stage = Stage::new(|config, _| config.loopback = None).await;
    let (read, operate) = (Role::Read, Role::Operate);
    let mut callers = vec![(None, None)];
    for (name, role, tenant) in [
        ("r", read, None),
        ("o", operate, None),
        ("a", Role::Admin, None),
        ("tr", read, Some("t")),
        ("to", operate, Some("t")),
    ] {
        callers.push((Some(stage.token(name, role, tenant).await), Some((role, tenant))));
    }
    let fixed = ROUTES.iter().map(|(method, path, need)| (*method, (*path).to_owned(), *need));
    let routes: Vec<_> = fixed.chain(routes_of_kinds()).collect();
    for (method, route, need) in &routes {
        let path = route
            .replace("{dpid}", "1")
            .replace("{name}", "x")
            .replace("{id}", "1")
            .replace("{port}", "1")
            .replace("{command}", "add");
        // The stream of events has no end: its first line says enough.
        for (token, who) in &callers {
            let status = if *route == "/v1/events" && who.is_some() {
                let mut stream = TcpStream::connect(stage.address).await.unwrap();
                let token = token.as_deref().unwrap_or_default();
                let request = format!(
                    "GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\r\n"
                );
                stream.write_all(request.as_bytes()).await.unwrap();
                let mut line = [0; 12];
                stream.read_exact(&mut line).await.unwrap();
                String::from_utf8_lossy(&line[9..]).parse().unwrap()
            } else {
                // A body that no route takes: what comes after the permission does nothing.
                stage.with(token.as_deref(), method, &path, Some(&json!([]))).await.status
            };
            let expected = match (need, who) {
                (None, _) => None,
                (Some(_), None) => Some(401),
                (Some((least, _)), Some((role, _))) if role < least => Some(403),
                (Some((_, false)), Some((_, Some(_)))) => Some(403),
                _ => None,
            };
            match expected {
                Some(expected) => assert_eq!(status, expected, "{method} {path} by {who:?}"),
                // What belongs to no tenant is not theirs, which only shows when it is read.
                None if who.is_some_and(|(_, tenant)| tenant.is_some()) => assert_ne!(status, 401),
                None => assert!(status != 401 && status != 403, "{method} {path} by {who:?}: {status}"),
            }
        }
    }
    // None is missing here.
    let document = stage.with(None, "GET", "/openapi.json", None).await.json();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let known = |(m, p, _): &&(&str, String, _)| m.eq_ignore_ascii_case(method) && p == path;
            assert!(routes.iter().any(|route| known(&route)), "{method} {path} is in no table");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tenant_neither_sees_nor_changes_what_is_anothers() {
    let stage = Stage::new(|_, _| {}).await;
    for tenant in ["mine", "theirs"] {
        let given = [5, 20].map(|port| json!({"dpid": 1, "port": port}));
        let ports = if tenant == "mine" { json!(given) } else { json!([]) };
        stage.put(&format!("/v1/tenants/{tenant}"), json!({"ports": ports})).await;
        let vlan = if tenant == "mine" { 10 } else { 20 };
        stage.put(&format!("/v1/acls/{tenant}-acl"), json!({"tenant": tenant, "rules": []})).await;
        stage.put(&format!("/v1/networks/{tenant}-net"), json!({"vlan": vlan, "tenant": tenant})).await;
        let place = json!({"network": format!("{tenant}-net"), "dpid": 1, "port": vlan});
        stage.put(&format!("/v1/attachments/{tenant}-port"), place).await;
    }
    stage.put("/v1/networks/common", json!({"vlan": 30})).await;
    let token = stage.token("op", Role::Operate, Some("mine")).await;
    let ask = async |method: &str, path: &str, body: Option<Value>| {
        stage.with(Some(&token), method, path, body.as_ref()).await
    };
    for (kind, names) in [
        ("tenants", vec!["mine"]),
        ("acls", vec!["mine-acl"]),
        ("networks", vec!["mine-net"]),
        ("attachments", vec!["mine-port"]),
        ("uplinks", vec![]),
        ("mirrors", vec![]),
        ("chains", vec![]),
    ] {
        let list = ask("GET", &format!("/v1/{kind}"), None).await.json();
        let found: Vec<_> = list[kind].as_array().unwrap().iter().map(|item| item["name"].clone()).collect();
        assert_eq!(found, names, "{kind}");
    }
    for path in [
        "networks/theirs-net",
        "networks/common",
        "attachments/theirs-port",
        "acls/theirs-acl",
        "tenants/theirs",
    ] {
        assert_eq!(ask("GET", &format!("/v1/{path}"), None).await.status, 404, "{path}");
        assert_eq!(ask("DELETE", &format!("/v1/{path}"), None).await.status, 404, "{path}");
    }
    let before = stage.controller.desired();
    for (path, body) in [
        ("networks/theirs-net", json!({"vlan": 21, "tenant": "theirs"})),
        ("networks/theirs-net", json!({"vlan": 21, "tenant": "mine"})),
        ("networks/mine-net", json!({"vlan": 10, "tenant": "theirs"})),
        ("networks/new", json!({"vlan": 40, "tenant": "theirs"})),
        ("networks/new", json!({"vlan": 40})),
        ("attachments/theirs-port", json!({"network": "mine-net", "dpid": 1, "port": 5})),
        ("attachments/new", json!({"network": "theirs-net", "dpid": 1, "port": 5})),
        ("attachments/new", json!({"network": "common", "dpid": 1, "port": 5})),
        // Ports that nobody gave them: for an attachment, and for a network itself.
        ("attachments/new", json!({"network": "mine-net", "dpid": 1, "port": 6})),
        ("attachments/new", json!({"network": "mine-net", "dpid": 2, "port": 5})),
        ("attachments/new", json!({"network": "mine-net", "dpid": 1, "port": "p5"})),
        ("attachments/mine-port", json!({"network": "mine-net", "dpid": 1, "port": 6})),
        ("networks/mine-net", json!({"vlan": 10, "tenant": "mine", "ports": [{"dpid": 1, "port": 6}]})),
        ("acls/theirs-acl", json!({"tenant": "mine", "rules": []})),
        ("acls/new", json!({"rules": []})),
        ("tenants/mine", json!({})),
        ("tenants/mine", json!({"ports": [{"dpid": 1, "port": 6}]})),
        ("uplinks/new", json!({"a": {"dpid": 1, "port": 9}})),
        ("mirrors/new", json!({"source": {"attachment": "mine-port"}, "to": {"dpid": 1, "port": 9}})),
    ] {
        let answer = ask("PUT", &format!("/v1/{path}"), Some(body.clone())).await;
        assert_eq!(answer.status, 403, "{path} {body}: {}", answer.body);
        let dry = ask("PUT", &format!("/v1/{path}?dry_run=true"), Some(body)).await;
        assert_eq!(dry.status, 403, "{path}, tried: {}", dry.body);
    }
    // What is in the way is not named.
    for (path, body) in [
        ("networks/new", json!({"vlan": 20, "tenant": "mine"})),
        ("attachments/new", json!({"network": "mine-net", "dpid": 1, "port": 20, "mode": "trunk"})),
        ("networks/mine-net", json!({"vlan": 10, "tenant": "mine", "acls": ["theirs-acl"]})),
    ] {
        let answer = ask("PUT", &format!("/v1/{path}"), Some(body)).await;
        assert_eq!(answer.status, 409, "{path}: {}", answer.body);
        let said =
            answer.body.replace("theirs-acl", if path.ends_with("mine-net") { "" } else { "theirs-acl" });
        assert!(!said.contains("theirs-"), "{}", answer.body);
    }
    assert_eq!(*stage.controller.desired(), *before);
    assert_eq!(ask("GET", "/v1/counters", None).await.json()["acls"].as_object().unwrap().len(), 1);
    // Their own they change.
    assert_eq!(
        ask("PUT", "/v1/networks/mine-net", Some(json!({"vlan": 11, "tenant": "mine"}))).await.status,
        202
    );
    let at = |port: u32, macs: &[&str]| json!({"network": "mine-net", "dpid": 1, "port": port, "macs": macs});
    // What somebody attached for them stays theirs to change, and to take away, but not to put back.
    for (name, port, status) in [("mine-port", 10, 202), ("new", 5, 202), ("other", 10, 403)] {
        let body = at(port, &["02:00:00:00:00:01"]);
        let answer = ask("PUT", &format!("/v1/attachments/{name}"), Some(body)).await;
        assert_eq!(answer.status, status, "{name}: {}", answer.body);
    }
    assert_eq!(ask("DELETE", "/v1/attachments/mine-port", None).await.status, 202);
    let answer = ask("PUT", "/v1/attachments/mine-port", Some(at(10, &[]))).await;
    assert_eq!(answer.status, 403);
    assert!(answer.body.contains("port 10 of switch 1 is none of tenant mine"), "{}", answer.body);
    // Of what happens they hear what is theirs.
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    let request = format!(
        "GET /v1/events?after=0 HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut heard = String::new();
    let read = async {
        while !heard.contains("\"delete\"") {
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).await.unwrap();
            heard.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("what is theirs is heard");
    assert!(heard.contains("mine-net") && !heard.contains("theirs") && !heard.contains("common"), "{heard}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_tokens_and_what_is_no_tls() {
    let stage = Stage::new(|config, directory| {
        let pki = Pki::new(directory, "good");
        let (key, cert) = pki.sign("server");
        config.tls = Some(https_server(&key, &cert, Some(&pki.ca())).unwrap());
        let operator = Grant { role: Role::Operate, tenant: None };
        config.clients = [("alice".to_owned(), operator)].into();
        for name in ["alice", "mallory"] {
            pki.sign(name);
        }
        Pki::new(directory, "other").sign("alice");
    })
    .await;
    let file = |name: &str| stage.directory.path().join(name);
    let connect = async |ca: &str, who: Option<&str>| {
        let identity = who.map(|who| (file(&format!("{who}-key.pem")), file(&format!("{who}-cert.pem"))));
        let identity = identity.as_ref().map(|(key, cert)| (key.as_path(), cert.as_path()));
        let config = https_client(&file(&format!("{ca}-ca.pem")), identity).unwrap();
        let stream = TcpStream::connect(stage.address).await.unwrap();
        TlsConnector::from(config).connect(ServerName::try_from("localhost").unwrap(), stream).await
    };
    let whoami = async |who: Option<&str>, headers: &[(&str, &str)]| {
        exchange(connect("good", who).await?, ("GET", "/v1/whoami"), headers, None).await
    };

    // Handshakes that never end, and bytes that are none, are in nobody's way.
    let mut silent = Vec::new();
    for number in 0..200 {
        let mut stream = TcpStream::connect(stage.address).await.unwrap();
        let bytes: &[u8] = if number % 2 == 0 { &[] } else { &[22, 3, 1, 2, 0, 1] };
        stream.write_all(bytes).await.unwrap();
        silent.push(stream);
    }
    let plain = stage.ask(("GET", "/v1/whoami"), &[], None).await.unwrap();
    assert_eq!((plain.status, plain.body.trim()), (400, "https is spoken here alone"));
    let mut noise = TcpStream::connect(stage.address).await.unwrap();
    noise.write_all(&[22; 4096]).await.unwrap();

    let alice = whoami(Some("good-alice"), &[]).await.unwrap().json();
    assert_eq!((&alice["name"], &alice["role"]), (&json!("alice"), &json!("operate")));
    assert_eq!(whoami(None, &[]).await.unwrap().status, 401, "being on this host is not enough here");
    assert_eq!(whoami(Some("good-mallory"), &[]).await.unwrap().status, 403, "signed, and without a role");
    assert!(whoami(Some("other-alice"), &[]).await.is_err(), "signed by somebody else");
    assert!(
        connect("other", Some("good-alice")).await.is_err(),
        "the client looks at the server's certificate too"
    );
    let token = format!("Bearer {}", stage.token("ci", Role::Read, None).await);
    let by_token = whoami(None, &[("authorization", &token)]).await.unwrap().json();
    assert_eq!((&by_token["name"], &by_token["role"]), (&json!("ci"), &json!("read")));
    // A browser that has the certificate does not lend it to pages of others.
    let headers = [("origin", "https://evil.example")];
    assert_eq!(whoami(Some("good-alice"), &headers).await.unwrap().status, 403);
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_others_are_refused() {
    let stage = Stage::new(|config, _| config.hosts = vec!["net.example".to_owned()]).await;
    let port = stage.address.port();
    let body = json!({"vlan": 10});
    let put = async |headers: &[(&str, &str)]| {
        let path = "/v1/networks/red?dry_run=true";
        stage.ask(("PUT", path), headers, Some(&body)).await.unwrap().status
    };
    let ours = format!("127.0.0.1:{port}");
    let origin = format!("http://{ours}");
    for (headers, status) in [
        (vec![("host", ours.as_str())], 200),
        (vec![("host", "localhost")], 200),
        (vec![("host", "[::1]:80")], 200),
        (vec![("host", "net.example:1234")], 200),
        // Somebody's name that means this host.
        (vec![("host", "evil.example")], 421),
        (vec![("host", "127.0.0.1.evil.example")], 421),
        (vec![("host", "192.0.2.1")], 421),
        (vec![("host", &ours), ("origin", &origin)], 200),
        (vec![("host", &ours), ("origin", "http://evil.example")], 403),
        (vec![("host", &ours), ("origin", "null")], 403),
        (vec![("host", &ours), ("origin", "http://127.0.0.1:1")], 403),
        (vec![("host", &ours), ("sec-fetch-site", "cross-site")], 403),
        (vec![("host", &ours), ("sec-fetch-site", "same-origin")], 200),
        // Nobody is believed who was not named.
        (vec![("host", "evil.example"), ("x-forwarded-host", &ours)], 421),
    ] {
        assert_eq!(put(&headers).await, status, "{headers:?}");
    }
    let link = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
    assert_eq!(stage.ask(("GET", "/"), &link, None).await.unwrap().status, 200, "a link may lead here");
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_proxy() {
    let here: IpAddr = "127.0.0.1".parse().unwrap();
    let stage = Stage::new(|config, _| {
        config.proxies = vec![here];
        config.base = "/sluice".to_owned();
    })
    .await;
    let token = format!("Bearer {}", stage.token("ci", Role::Admin, None).await);
    let forwarded = [("x-forwarded-for", "203.0.113.9, 198.51.100.7"), ("x-forwarded-host", "net.example")];
    let ask = async |path: &str, more: &[(&str, &str)]| {
        let headers: Vec<_> = forwarded.iter().chain(more).copied().collect();
        stage.ask(("GET", path), &headers, None).await.unwrap()
    };
    assert_eq!(ask("/sluice/v1/whoami", &[]).await.status, 401, "the proxy's host is not the asker's");
    let who = ask("/sluice/v1/whoami", &[("authorization", &token)]).await.json();
    assert_eq!(who["from"], "198.51.100.7", "what the nearest proxy says, not what it was told");
    assert_eq!(ask("/v1/whoami", &[("authorization", &token)]).await.status, 200, "a proxy may cut it off");
    let page = ask("/sluice", &[]).await;
    assert!(page.status == 308 && page.head.contains("location: /sluice/"), "{}", page.head);
    let page = ask("/sluice/", &[]).await;
    assert_eq!(page.status, 200);
    for file in ["page/app.js", "page/style.css"] {
        assert!(page.body.contains(&format!("\"{file}\"")), "{}", page.body);
        assert_eq!(ask(&format!("/sluice/{file}"), &[]).await.status, 200);
    }
    assert_eq!(ask("/sluicegate/v1/whoami", &[("authorization", &token)]).await.status, 404);
    let origin = |value| [("authorization", token.as_str()), ("origin", value)];
    assert_eq!(ask("/v1/whoami", &origin("https://net.example")).await.status, 200);
    assert_eq!(ask("/v1/whoami", &origin("https://evil.example")).await.status, 403);
}
