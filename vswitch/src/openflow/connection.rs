//! Connections: dialling with back-off, listening, and the loop between socket and session.

use std::fs;
use std::future::ready;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen as listen_fd, socket,
};
use nix::sys::stat::{Mode, fchmod};
use ofp::Framer;
use telemetry::tls::Tls;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::session::{Close, Session};
use super::{Shared, count};
use crate::config::OpenFlowAddress;

/// First and longest wait between two attempts to reach a controller.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// How long an attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Sessions of one listener at once.
const ACCEPTED_MAX: usize = 64;
/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;
/// Asynchronous messages written at once.
const NOTICES_AT_ONCE: usize = 256;
/// How long changes of a stream that does not end may wait to become live, unless a barrier is among them. Each
/// publication makes the next changes copy what they touch, and workers forget what they had decided.
const UNSETTLED_MAX: Duration = Duration::from_secs(1);

/// A listening socket.
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// TLS over TCP.
    Tls(TcpListener, TlsAcceptor),
    /// A Unix socket, and its file.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// The file to remove in the end.
    pub fn socket_file(&self) -> Option<PathBuf> {
        match self {
            Listener::Tcp(_) | Listener::Tls(..) => None,
            Listener::Unix(_, path) => Some(path.clone()),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> OpenFlowAddress {
        match self {
            Listener::Tcp(listener) => OpenFlowAddress::Tcp(local_address(listener)),
            Listener::Tls(listener, _) => OpenFlowAddress::Tls(local_address(listener)),
            Listener::Unix(_, path) => OpenFlowAddress::Unix(path.clone()),
        }
    }
}

fn local_address(listener: &TcpListener) -> SocketAddr {
    // It was bound, so it has one.
    listener.local_addr().unwrap_or_else(|_| ([0, 0, 0, 0], 0).into())
}

fn listen_tcp(address: &SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// What is missing for an address with TLS.
fn without_tls() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "TLS needs a key, a certificate and those of authorities")
}

/// Listens at `address`.
pub fn listen(address: &OpenFlowAddress, tls: Option<&Tls>) -> io::Result<Listener> {
    match address {
        OpenFlowAddress::Tcp(address) => listen_tcp(address).map(Listener::Tcp),
        OpenFlowAddress::Tls(address) => {
            let acceptor = TlsAcceptor::from(tls.ok_or_else(without_tls)?.server.clone());
            listen_tcp(address).map(|listener| Listener::Tls(listener, acceptor))
        }
        OpenFlowAddress::Unix(path) => {
            let listener = listen_unix(path)?;
            Ok(Listener::Unix(UnixListener::from_std(listener)?, path.clone()))
        }
    }
}

/// A Unix socket that only its owner may connect to, from the first moment on.
fn listen_unix(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    if let Ok(metadata) = fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path is taken by something else"));
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody listens there"));
        }
        // Left behind by a process that was killed.
        fs::remove_file(path)?;
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // The mode of the socket before `bind` is what the file gets: there is no moment in which it is wider.
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen_fd(&fd, Backlog::new(ACCEPTED_MAX as i32)?)?;
    Ok(fd.into())
}

/// Accepts sessions for ever.
pub async fn accept(listener: Listener, shared: Arc<Shared>) {
    let room = Arc::new(Semaphore::new(ACCEPTED_MAX));
    let mut sessions = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        while sessions.try_join_next().is_some() {}
        let accepted = match &listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, peer)| {
                let (shared, peer) = (shared.clone(), format!("tcp:{peer}"));
                sessions.spawn(async move {
                    run_tcp(stream, shared, peer, false).await;
                    drop(permit);
                });
            }),
            Listener::Tls(listener, acceptor) => listener.accept().await.map(|(stream, peer)| {
                let (shared, acceptor) = (shared.clone(), acceptor.clone());
                sessions.spawn(async move {
                    accept_tls(stream, acceptor, shared, format!("ssl:{peer}")).await;
                    drop(permit);
                });
            }),
            Listener::Unix(listener, path) => listener.accept().await.map(|(stream, _)| {
                let (shared, peer) = (shared.clone(), format!("unix:{}", path.display()));
                sessions.spawn(async move {
                    run(stream, shared, peer, false).await;
                    drop(permit);
                });
            }),
        };
        if let Err(error) = accepted {
            // Out of descriptors, most likely: others will close theirs.
            tracing::warn!(%error, "cannot accept an OpenFlow connection");
            sleep(RETRY.1).await;
        }
    }
}

/// Shakes hands with whoever called, and serves it if one of our authorities signed its certificate.
async fn accept_tls(stream: TcpStream, acceptor: TlsAcceptor, shared: Arc<Shared>, peer: String) {
    no_delay(&stream, &peer);
    let accepted = timeout(CONNECT_TIMEOUT, acceptor.accept(stream)).await;
    match accepted.unwrap_or_else(|elapsed| Err(late(elapsed))) {
        Ok(stream) => {
            run(stream, shared, peer, false).await;
        }
        Err(error) => {
            count(&shared.stats.handshakes_failed);
            tracing::warn!(%peer, %error, "refused an OpenFlow connection: the TLS handshake failed");
        }
    }
}

/// Shakes hands with a controller that we called.
async fn connect_tls(to: SocketAddr, shared: &Shared, peer: &str) -> io::Result<TlsStream<TcpStream>> {
    let tls = shared.config.tls.as_ref().ok_or_else(without_tls)?;
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(to)).await.map_err(late)??;
    no_delay(&stream, peer);
    let handshake = TlsConnector::from(tls.client.clone()).connect(to.ip().into(), stream);
    timeout(CONNECT_TIMEOUT, handshake).await.unwrap_or_else(|elapsed| Err(late(elapsed))).map_err(|error| {
        count(&shared.stats.handshakes_failed);
        io::Error::new(error.kind(), format!("the TLS handshake failed: {error}"))
    })
}

fn late(_: Elapsed) -> io::Error {
    io::ErrorKind::TimedOut.into()
}

/// Dials a controller, again and again.
pub async fn dial(address: OpenFlowAddress, shared: Arc<Shared>) {
    let mut wait = RETRY.0;
    let mut reported = false;
    loop {
        let greeted = match connect(&address, &shared).await {
            Ok(greeted) => greeted,
            Err(error) => {
                if !reported {
                    tracing::warn!(controller = %address, %error, "cannot reach the controller; trying on");
                    reported = true;
                }
                false
            }
        };
        if greeted {
            (wait, reported) = (RETRY.0, false);
        }
        sleep(wait).await;
        wait = (wait * 2).min(RETRY.1);
    }
}

/// One attempt and the session that it leads to. `true` = there was one.
async fn connect(address: &OpenFlowAddress, shared: &Arc<Shared>) -> io::Result<bool> {
    let peer = address.to_string();
    Ok(match address {
        OpenFlowAddress::Tcp(to) => {
            let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(to)).await.map_err(late)??;
            run_tcp(stream, shared.clone(), peer, true).await
        }
        OpenFlowAddress::Tls(to) => {
            let stream = connect_tls(*to, shared, &peer).await?;
            run(stream, shared.clone(), peer, true).await
        }
        OpenFlowAddress::Unix(path) => {
            let stream = timeout(CONNECT_TIMEOUT, UnixStream::connect(path)).await.map_err(late)??;
            run(stream, shared.clone(), peer, true).await
        }
    })
}

/// Barrier replies must not wait for more to send.
fn no_delay(stream: &TcpStream, peer: &str) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "cannot set TCP_NODELAY");
    }
}

async fn run_tcp(stream: TcpStream, shared: Arc<Shared>, peer: String, dialed: bool) -> bool {
    no_delay(&stream, &peer);
    run(stream, shared, peer, dialed).await
}

/// Runs a session to its end. `true` = it shook hands.
async fn run<S: AsyncRead + AsyncWrite>(stream: S, shared: Arc<Shared>, peer: String, dialed: bool) -> bool {
    let (reader, writer) = tokio::io::split(stream);
    let (mut session, notices) = Session::new(shared.clone(), peer.clone(), dialed, writer);
    let end = serve(&mut session, reader, notices, shared.config.probe_interval).await;
    let greeted = session.greeted();
    match end {
        // A tool that ends with answers unread resets its connection: no news either.
        Err(Close::Io(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
            tracing::debug!(%peer, "the OpenFlow session ended");
        }
        Err(Close::Closed) => tracing::debug!(%peer, "the OpenFlow session ended"),
        Err(reason) => tracing::info!(%peer, %reason, "the OpenFlow session was closed"),
        Ok(never) => match never {},
    }
    greeted
}

async fn serve<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    session: &mut Session<W>,
    mut reader: R,
    mut notices: tokio::sync::mpsc::Receiver<Arc<[u8]>>,
    probe_interval: Duration,
) -> Result<std::convert::Infallible, Close> {
    let mut framer = Framer::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut heard = Instant::now();
    let mut probed = false;
    // Since when something that was received may not be live.
    let mut unsettled: Option<Instant> = None;
    session.hello();
    session.flush().await?;
    loop {
        let silence = if probed { probe_interval * 2 } else { probe_interval };
        let overdue = unsettled.is_some_and(|since| since.elapsed() >= UNSETTLED_MAX);
        tokio::select! {
            biased;
            Some(notice) = notices.recv() => {
                session.notice(&notice);
                for _ in 0..NOTICES_AT_ONCE {
                    let Ok(notice) = notices.try_recv() else { break };
                    session.notice(&notice);
                }
                session.flush().await?;
            }
            read = reader.read(&mut buffer), if !overdue => {
                let taken = match read {
                    Ok(0) => Err(Close::Closed),
                    Ok(count) => take(session, &mut framer, &buffer[..count]).await,
                    Err(error) => Err(error.into()),
                };
                match taken {
                    // Bytes alone are no sign of life: one at a time, they could keep a session for ever.
                    Ok(true) => (heard, probed) = (Instant::now(), false),
                    Ok(false) => {}
                    Err(reason) => {
                        // What was understood holds, whatever came after it.
                        session.settle().await?;
                        return Err(reason);
                    }
                }
                unsettled.get_or_insert_with(Instant::now);
                session.flush().await?;
                // Others get their turn, however fast this one sends.
                yield_now().await;
            }
            // Nothing more is there for the moment.
            () = ready(()), if unsettled.is_some() => {
                session.settle().await?;
                unsettled = None;
            }
            () = sleep_until(heard + silence) => {
                if probed || !session.greeted() {
                    return Err(Close::NotAnswering);
                }
                probed = true;
                session.probe();
                session.flush().await?;
            }
        }
    }
}

/// Handles the messages in what was received. `true` = there was a whole one.
async fn take<W: AsyncWrite + Unpin>(
    session: &mut Session<W>,
    framer: &mut Framer,
    mut received: &[u8],
) -> Result<bool, Close> {
    let mut whole = false;
    while !received.is_empty() {
        let taken = framer.push(received);
        received = &received[taken..];
        loop {
            match framer.pop() {
                Ok(Some(message)) => {
                    whole = true;
                    session.message(message).await?;
                }
                Ok(None) => break,
                Err(error) => return Err(Close::Protocol(error.to_string())),
            }
        }
    }
    Ok(whole)
}
