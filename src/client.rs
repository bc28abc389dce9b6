//! HTTP over a daemon's admin socket.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use telemetry::{Problem, StopSignals};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::remote::Remote;

/// How long a command waits for a daemon that is still starting.
const STARTING_PATIENCE: Duration = Duration::from_secs(10);
/// How often it asks.
const STARTING_PAUSE: Duration = Duration::from_millis(20);

/// Where the daemons of this host keep their sockets.
#[derive(clap::Args)]
pub struct RunDir {
    /// Directory of the daemon's sockets
    #[arg(long, env = "SLUICE_RUN_DIR", default_value = "/run/sluice")]
    pub run_dir: PathBuf,
}

impl RunDir {
    /// The admin socket of `daemon`: `blk`, `switch` or `controller`.
    pub fn admin_socket(&self, daemon: &str) -> PathBuf {
        self.run_dir.join(format!("{daemon}.admin.sock"))
    }
}

/// The volumes of the storage daemon.
pub const VOLUMES: Collection = Collection { daemon: "blk", path: "/v1/volumes" };

/// What a daemon keeps many of, by name: volumes, pools, ports.
pub struct Collection {
    /// The daemon, as in [`RunDir::admin_socket`].
    pub daemon: &'static str,
    /// Where its admin API has them.
    pub path: &'static str,
}

impl Collection {
    /// Asks for all of them.
    pub fn list(&self, at: &RunDir) -> anyhow::Result<Value> {
        self.send(at, Method::GET, self.path, None)
    }

    /// Makes one more, as `body` says.
    pub fn make(&self, at: &RunDir, body: &Value) -> anyhow::Result<Value> {
        self.send(at, Method::POST, self.path, Some(body))
    }

    /// Asks for one of them.
    pub fn show(&self, at: &RunDir, name: &str) -> anyhow::Result<Value> {
        self.one(at, Method::GET, name, None)
    }

    /// Asks for, changes or deletes one of them.
    pub fn one(
        &self,
        at: &RunDir,
        method: Method,
        name: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        self.send(at, method, &path(self.path, name), body)
    }

    /// Has something done to one of them.
    pub fn act(&self, at: &RunDir, name: &str, verb: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        self.below(at, Method::POST, name, verb, body)
    }

    /// Asks for or changes what is below one of them: `below` is the rest of the path, and a query.
    pub fn below(
        &self,
        at: &RunDir,
        method: Method,
        name: &str,
        below: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        self.send(at, method, &format!("{}/{below}", path(self.path, name)), body)
    }

    fn send(&self, at: &RunDir, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        request(&at.admin_socket(self.daemon), method, path, body)
    }
}

/// Owner, group and mode of a socket, which the daemon checks.
#[derive(clap::Args)]
pub struct SocketFlags {
    /// Owner of the socket, a name or id
    #[arg(long, value_name = "USER")]
    socket_owner: Option<String>,
    /// Group of the socket, a name or id
    #[arg(long, value_name = "GROUP")]
    socket_group: Option<String>,
    /// Mode of the socket in octal, such as 0660
    #[arg(long, value_name = "MODE")]
    socket_mode: Option<String>,
}

impl SocketFlags {
    /// Puts what was given into the body of a request.
    pub fn put(&self, body: &mut Map<String, Value>) {
        put_texts(
            body,
            [
                ("socket_owner", &self.socket_owner),
                ("socket_group", &self.socket_group),
                ("socket_mode", &self.socket_mode),
            ],
        );
    }
}

/// Where a daemon answers.
pub enum Endpoint {
    /// At its socket.
    Unix(PathBuf),
    /// Elsewhere.
    Remote(Remote),
}

/// A daemon refused what was asked.
#[derive(Debug)]
pub struct Refusal {
    /// HTTP status of the answer.
    pub status: u16,
    /// What the daemon said; `None` when it was no problem report.
    pub problem: Option<Problem>,
}

impl Refusal {
    /// Whether the request was wrong, in contrast to a daemon that failed.
    pub fn invalid(&self) -> bool {
        (400..500).contains(&self.status)
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.problem {
            Some(problem) => problem.fmt(f),
            None => write!(f, "the daemon answered with HTTP status {}", self.status),
        }
    }
}

impl std::error::Error for Refusal {}

/// `collection/name`, with everything in `name` escaped that a path may not hold as it is.
pub fn path(collection: &str, name: &str) -> String {
    format!("{collection}/{}", escape(name))
}

/// `text` with everything escaped that a path or a value of a query may not hold as it is.
pub fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// Puts the values that were given into the body of a request, as they are.
pub fn put_texts<const N: usize>(body: &mut Map<String, Value>, values: [(&str, &Option<String>); N]) {
    for (key, value) in values {
        if let Some(text) = value {
            body.insert(key.to_string(), json!(text));
        }
    }
}

/// The same for paths, which count from where the command is given.
pub fn put_paths<const N: usize>(body: &mut Map<String, Value>, values: [(&str, &Option<PathBuf>); N]) {
    for (key, value) in values {
        if let Some(path) = value {
            // An empty path has no absolute form; the daemon says so.
            let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            body.insert(key.to_string(), json!(absolute));
        }
    }
}

/// A number if it is one; else the text, so that the daemon names it among everything else.
pub fn number(text: &str) -> Value {
    text.parse::<u64>().map_or_else(|_| json!(text), |number| json!(number))
}

/// The same for what [`number`] makes of the texts.
pub fn put_numbers<const N: usize>(body: &mut Map<String, Value>, values: [(&str, &Option<String>); N]) {
    for (key, value) in values {
        if let Some(text) = value {
            body.insert(key.to_string(), number(text));
        }
    }
}

/// Sends one request to the admin socket `socket` and returns the answer's JSON (null when it has no body).
pub fn request(socket: &Path, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
    request_at(&Endpoint::Unix(socket.to_owned()), method, path, body)
}

/// Sends one request and returns the answer's JSON (null when it has no body).
pub fn request_at(
    endpoint: &Endpoint,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let until = Instant::now() + STARTING_PATIENCE;
        loop {
            match exchange(endpoint, method.clone(), path, body).await {
                Err(error) if is_starting(&error) && Instant::now() < until => {
                    tokio::time::sleep(STARTING_PAUSE).await;
                }
                result => return result,
            }
        }
    })
}

/// A daemon that has just been started answers 503 until it has its volumes or ports back.
fn is_starting(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refusal>().is_some_and(|refusal| refusal.status == 503)
}

/// Notices that the user wants a command to end, in place of ending at once.
pub struct Interrupt {
    runtime: tokio::runtime::Runtime,
    signals: StopSignals,
}

impl Interrupt {
    /// From now on SIGINT and SIGTERM are for [`Interrupt::within`].
    pub fn new() -> anyhow::Result<Interrupt> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let signals = {
            let _inside = runtime.enter();
            StopSignals::listen()?
        };
        Ok(Interrupt { runtime, signals })
    }

    /// Waits a while, or until there is a signal; true when there was one, also before.
    pub fn within(&mut self, pause: Duration) -> bool {
        self.runtime.block_on(async {
            tokio::select! {
                () = self.signals.received() => true,
                () = tokio::time::sleep(pause) => false,
            }
        })
    }
}

/// Writes the body of the answer to a GET to `file` as it comes, until the daemon ends it, somebody interrupts us, or
/// nobody reads the file any more.
pub fn stream(socket: &Path, path: &str, file: &mut dyn Write) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut signals = StopSignals::listen()?;
        let mut body = send(&Endpoint::Unix(socket.to_owned()), Method::GET, path, None).await?.into_body();
        loop {
            let frame = tokio::select! {
                frame = body.frame() => frame,
                () = signals.received() => None,
            };
            let Some(frame) = frame else { return Ok(file.flush()?) };
            let Ok(bytes) = frame?.into_data() else { continue };
            match file.write_all(&bytes).and_then(|()| file.flush()) {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            }
        }
    })
}

async fn exchange(
    endpoint: &Endpoint,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> anyhow::Result<Value> {
    let bytes = send(endpoint, method, path, body).await?.into_body().collect().await?.to_bytes();
    if bytes.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_slice(&bytes)?) }
}

/// Sends a request; an answer that is no success is an error.
async fn send(
    endpoint: &Endpoint,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> anyhow::Result<Response<Incoming>> {
    match endpoint {
        Endpoint::Unix(socket) => {
            let stream = tokio::net::UnixStream::connect(socket).await.with_context(|| {
                format!(
                    "no daemon answers at {}; is it running, and is --run-dir (SLUICE_RUN_DIR) right?",
                    socket.display()
                )
            })?;
            send_over(stream, ("localhost", None), method, path, body).await
        }
        Endpoint::Remote(remote) => {
            let Remote { authority, tls, base, token } = remote;
            let stream = tokio::net::TcpStream::connect(authority).await.with_context(|| {
                format!("no controller answers at {authority}; is --url (SLUICE_URL) or --controller right?")
            })?;
            let (path, who) = (format!("{base}{path}"), (authority.as_str(), token.as_deref()));
            let Some((name, config)) = tls else { return send_over(stream, who, method, &path, body).await };
            let connector = tokio_rustls::TlsConnector::from(config.clone());
            let stream = connector.connect(name.clone(), stream).await.with_context(|| {
                format!(
                    "{authority} is not the controller that it should be; is --cacert (SLUICE_CACERT) right?"
                )
            })?;
            send_over(stream, who, method, &path, body).await
        }
    }
}

async fn send_over(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    (host, token): (&str, Option<&str>),
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> anyhow::Result<Response<Incoming>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let bytes = body.map(Value::to_string).unwrap_or_default();
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", host)
        .header("content-type", "application/json");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(Full::new(Bytes::from(bytes)))?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    if !status.is_success() {
        let bytes = answer.into_body().collect().await?.to_bytes();
        let problem = serde_json::from_slice(&bytes).ok();
        bail!(Refusal { status: status.as_u16(), problem });
    }
    Ok(answer)
}
