//! The metrics server and the admin socket.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, FromRequest, Request};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::serve::IncomingStream;
use axum::{Router, routing::get};
use serde_json::Value;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::task::JoinHandle;

use crate::{Problem, Registry};

/// A running server. It ends when this is dropped; an admin socket's file is removed with it.
#[derive(Debug)]
pub struct Server {
    task: JoinHandle<()>,
    address: Option<SocketAddr>,
    socket: Option<PathBuf>,
}

impl Server {
    /// Where a TCP server listens, with the port the host chose when 0 was asked for.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(path) = &self.socket {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The TCP address cannot be had.
    #[error("cannot listen on {address} for metrics; choose another --metrics address")]
    Metrics {
        /// The address asked for.
        address: SocketAddr,
        /// What the host said.
        source: io::Error,
    },
    /// Another daemon answers on this socket.
    #[error("another daemon answers on {0}; stop it or choose another --run-dir")]
    Taken(PathBuf),
    /// Something that is not a socket is in the way.
    #[error("{0} exists and is not a socket; remove it or choose another --run-dir")]
    NotASocket(PathBuf),
    /// The socket cannot be made.
    #[error("cannot {attempt} the socket {path}")]
    Socket {
        /// What was attempted.
        attempt: &'static str,
        /// The socket's path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// Serves `/metrics` (Prometheus text) and `/healthz` on `address`.
pub async fn serve_metrics(address: SocketAddr, registry: Registry) -> Result<Server, ServeError> {
    let failed = |source| ServeError::Metrics { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let metrics = move || async move {
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], registry.encode())
    };
    let router = Router::new().route("/metrics", get(metrics)).route("/healthz", get(async || "ok\n"));
    let task = tokio::spawn(async move {
        // Accept errors are retried inside; it only ends when aborted.
        let _ = axum::serve(listener, router).await;
    });
    Ok(Server { task, address: Some(bound), socket: None })
}

/// Where an admin socket is and who may use it.
#[derive(Clone, Debug)]
pub struct AdminSocket {
    /// Path of the socket.
    pub path: PathBuf,
    /// User that owns it; the daemon's when none is given.
    pub owner: Option<u32>,
    /// Group that owns it; the daemon's when none is given.
    pub group: Option<u32>,
    /// Permission bits, usually 0o660.
    pub mode: u32,
}

impl AdminSocket {
    /// A socket of the daemon's own user and group with mode 0660.
    pub fn new(path: impl Into<PathBuf>) -> AdminSocket {
        AdminSocket { path: path.into(), owner: None, group: None, mode: 0o660 }
    }
}

/// Who is at the other end of an admin connection (SO_PEERCRED). Handlers get it as `ConnectInfo<Peer>`.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Process, when the host tells.
    pub pid: Option<i32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Peer {
        // A peer that cannot be named is nobody: the overflow user.
        stream.io().peer_cred().map_or(Peer { uid: 65534, gid: 65534, pid: None }, |peer| Peer {
            uid: peer.uid(),
            gid: peer.gid(),
            pid: peer.pid(),
        })
    }
}

/// The same routes, with every refusal a [`Problem`]: of unknown paths and methods, and of paths and queries that cannot be
/// read, about which the framework has words of its own.
pub fn answer_problems<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    router
        .fallback(async |request: Request| {
            Problem::not_found(format!("there is no {}", request.uri().path()))
        })
        .method_not_allowed_fallback(async |request: Request| {
            let title = format!("{} does not take {}", request.uri().path(), request.method());
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, title)
        })
        .layer(middleware::map_response(problem_of_text))
}

/// Bytes of a refusal in plain text at most.
const REFUSAL_MAX: usize = 16 << 10;

async fn problem_of_text(response: Response) -> Response {
    let text = |value: &axum::http::HeaderValue| value.as_bytes().starts_with(b"text/plain");
    let plain = response.headers().get(header::CONTENT_TYPE).is_some_and(text);
    if !plain || !response.status().is_client_error() {
        return response;
    }
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), REFUSAL_MAX).await.unwrap_or_default();
    let title = "the request cannot be read";
    Problem::new(status, title).detail(String::from_utf8_lossy(&body).trim()).into_response()
}

/// Serves `router` on a unix socket. The socket of a killed daemon is replaced; that of a live one is refused. Requests
/// that change something are logged with the peer's user and process. Unknown paths and methods are answered as
/// [`Problem`]s.
pub async fn serve_admin(socket: AdminSocket, router: Router) -> Result<Server, ServeError> {
    let listener = bind(&socket).await?;
    let router = answer_problems(router).layer(middleware::from_fn(audit));
    let service = router.into_make_service_with_connect_info::<Peer>();
    let task = tokio::spawn(async move {
        let _ = axum::serve(listener, service).await;
    });
    Ok(Server { task, address: None, socket: Some(socket.path) })
}

async fn audit(ConnectInfo(peer): ConnectInfo<Peer>, request: Request, next: Next) -> Response {
    let reading = request.method() == Method::GET || request.method() == Method::HEAD;
    let (method, path) = (request.method().clone(), request.uri().path().to_string());
    let response = next.run(request).await;
    if !reading {
        let status = response.status().as_u16();
        tracing::info!(%method, path, status, uid = peer.uid, pid = peer.pid, "admin request");
    }
    response
}

/// Binds beside the final name and renames, so that nobody connects before owner and mode are right.
async fn bind(socket: &AdminSocket) -> Result<UnixListener, ServeError> {
    let path = &socket.path;
    let failed = |attempt| move |source| ServeError::Socket { attempt, path: path.clone(), source };
    refuse_taken(path).await?;
    let mut temporary = path.clone().into_os_string();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let _ = std::fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary).map_err(failed("bind"))?;
    let set_up = || {
        std::os::unix::fs::chown(&temporary, socket.owner, socket.group)
            .map_err(failed("change the owner of"))?;
        let mode = std::fs::Permissions::from_mode(socket.mode);
        std::fs::set_permissions(&temporary, mode).map_err(failed("change the mode of"))?;
        std::fs::rename(&temporary, path).map_err(failed("rename"))
    };
    set_up().inspect_err(|_| {
        let _ = std::fs::remove_file(&temporary);
    })?;
    Ok(listener)
}

async fn refuse_taken(path: &Path) -> Result<(), ServeError> {
    use std::os::unix::fs::FileTypeExt as _;
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => Err(ServeError::NotASocket(path.to_path_buf())),
        Ok(_) if UnixStream::connect(path).await.is_ok() => Err(ServeError::Taken(path.to_path_buf())),
        _ => Ok(()),
    }
}

/// A request body that is any JSON; anything else is answered as a [`Problem`]. Read it with
/// [`crate::check::Fields`], which finds all errors at once.
pub struct JsonBody(pub Value);

impl<S: Send + Sync> FromRequest<S> for JsonBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<JsonBody, Problem> {
        let bytes = axum::body::Bytes::from_request(request, state).await.map_err(|rejection| {
            let status = rejection.into_response().status();
            Problem::new(status, "the request body could not be read")
        })?;
        serde_json::from_slice(&bytes).map(JsonBody).map_err(|error| {
            Problem::new(StatusCode::BAD_REQUEST, "the request body is not JSON").detail(error.to_string())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

    async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn request(line: &str, body: &str) -> String {
        format!(
            "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    #[tokio::test]
    async fn metrics_and_health_are_served() {
        let registry = Registry::new();
        let counter = registry.counter("sluice_x_total", "X.", &[]);
        counter.add(3);
        let server = serve_metrics("127.0.0.1:0".parse().unwrap(), registry).await.unwrap();
        let address = server.address().unwrap();
        let connect = async || tokio::net::TcpStream::connect(address).await.unwrap();
        let answer = exchange(connect().await, &request("GET /metrics", "")).await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("text/plain; version=0.0.4"),
            "{answer}"
        );
        assert!(answer.ends_with("# TYPE sluice_x_total counter\nsluice_x_total 3\n"), "{answer}");
        assert!(exchange(connect().await, &request("GET /healthz", "")).await.ends_with("ok\n"));
        let taken = serve_metrics(address, Registry::new()).await.unwrap_err();
        assert!(taken.to_string().contains(&address.to_string()));
    }

    #[tokio::test]
    async fn the_admin_socket_has_its_mode_knows_its_peer_and_answers_problems() {
        let dir = tempfile::tempdir().unwrap();
        let socket = AdminSocket { mode: 0o600, ..AdminSocket::new(dir.path().join("a.sock")) };
        let path = socket.path.clone();
        let who = async |ConnectInfo(peer): ConnectInfo<Peer>| format!("pid {:?}", peer.pid);
        let echo = async |JsonBody(value): JsonBody| value.to_string();
        let number = async |axum::extract::Path(number): axum::extract::Path<u8>| number.to_string();
        let list = async |axum::extract::Query(words): axum::extract::Query<Vec<(String, u8)>>| {
            words.len().to_string()
        };
        let router = || {
            let router = Router::new().route("/who", get(who)).route("/echo", axum::routing::post(echo));
            router.route("/number/{number}", get(number)).route("/list", get(list))
        };
        let server = serve_admin(socket.clone(), router()).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let connect = async || UnixStream::connect(&path).await.unwrap();
        let ask = async |line: &str, body: &str| exchange(connect().await, &request(line, body)).await;
        let pid = format!("pid Some({})", std::process::id());
        assert!(ask("GET /who", "").await.ends_with(&pid));
        assert!(ask("POST /echo", r#"{"a": [1]}"#).await.ends_with(r#"{"a":[1]}"#));
        for (line, body, status) in [
            ("GET /nothing", "", "404"),
            ("DELETE /who", "", "405"),
            ("POST /echo", "{", "400"),
            ("POST /echo", "\u{fffd}", "400"),
            ("GET /number/x", "", "400"),
            ("GET /list?a=x", "", "400"),
        ] {
            let answer = ask(line, body).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{line}: {answer}");
            assert!(
                answer.contains("application/problem+json") && answer.contains("about:blank"),
                "{answer}"
            );
        }
        assert!(matches!(serve_admin(socket, router()).await, Err(ServeError::Taken(_))));
        drop(server);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_dead_daemons_socket_is_replaced_and_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let server = serve_admin(AdminSocket::new(&path), Router::new()).await.unwrap();
        drop(server);
        std::fs::write(&path, b"precious").unwrap();
        let refused = serve_admin(AdminSocket::new(&path), Router::new()).await;
        assert!(matches!(refused, Err(ServeError::NotASocket(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
