//! Connections for REST, with TLS or without. Handshakes run beside each other, so a slow one holds up nobody.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::auth::common_name;
use crate::controller::Controller;
use crate::doorway::Doorway;

/// From the connection to the end of the TLS handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long a connection may do nothing; event streams say something more often.
const IDLE_LIMIT: Duration = Duration::from_secs(75);
/// First byte of a TLS record that begins a handshake (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 22;
const PLAIN_ANSWER: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: 27\r\n\r\nhttps is spoken here alone\n";

/// Who is at the other end. Handlers get it as `ConnectInfo<Caller>`.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The address.
    pub address: SocketAddr,
    /// The common name in the certificate that was shown; empty when there is none in it.
    pub subject: Option<String>,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that ends when nothing happens on it.
pub struct Connection {
    stream: Stream,
    idle: Pin<Box<Sleep>>,
    subject: Option<String>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn new(stream: Stream, permit: OwnedSemaphorePermit) -> Connection {
        let subject = match &stream {
            Stream::Plain(_) => None,
            Stream::Tls(stream) => {
                let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                shown.map(|certificate| common_name(certificate).unwrap_or_default())
            }
        };
        Connection { stream, idle: Box::pin(tokio::time::sleep(IDLE_LIMIT)), subject, _permit: permit }
    }

    /// Something happened, or it is late.
    fn watch<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.idle.as_mut().reset(Instant::now() + IDLE_LIMIT);
            return poll;
        }
        ready!(self.idle.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let poll = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        };
        self.watch(cx, poll)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        self.watch(cx, poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        };
        if poll.is_ready() { poll } else { self.watch(cx, poll) }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        };
        self.watch(cx, poll)
    }
}

/// A listener whose connections are ready for HTTP.
pub struct RestListener {
    ready: mpsc::Receiver<(Connection, SocketAddr)>,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for RestListener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RestListener {
    /// Accepts connections of `listener`, with TLS where it is given.
    ///
    /// # Errors
    /// The listener has no address.
    pub fn new(
        listener: TcpListener,
        tls: Option<Arc<rustls::ServerConfig>>,
        controller: Arc<Controller>,
    ) -> io::Result<RestListener> {
        let address = listener.local_addr()?;
        let (sender, ready) = mpsc::channel(64);
        let acceptor = tls.map(TlsAcceptor::from);
        let task = tokio::spawn(accept(listener, acceptor, sender, controller));
        Ok(RestListener { ready, address, task })
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    ready: mpsc::Sender<(Connection, SocketAddr)>,
    controller: Arc<Controller>,
) {
    let doorway = Doorway::new(listener, "REST");
    while let Some((permit, stream, peer)) = doorway.next(&controller).await {
        let Some(acceptor) = acceptor.clone() else {
            // The other end is gone only when the server is.
            drop(ready.send((Connection::new(Stream::Plain(stream), permit), peer)).await);
            continue;
        };
        let (ready, controller) = (ready.clone(), controller.clone());
        tokio::spawn(async move {
            let handshake = tokio::time::timeout(HANDSHAKE_LIMIT, handshake(acceptor, stream));
            match handshake.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => {
                    drop(ready.send((Connection::new(Stream::Tls(Box::new(stream)), permit), peer)).await);
                }
                Err(error) => {
                    if let Some(suppressed) = controller.limited().pass("rest-tls") {
                        tracing::info!(%peer, %error, suppressed, "a TLS handshake for REST failed");
                    }
                }
            }
        });
    }
}

async fn handshake(acceptor: TlsAcceptor, mut stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0] != TLS_HANDSHAKE {
        stream.write_all(PLAIN_ANSWER).await?;
        return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no TLS"));
    }
    acceptor.accept(stream).await
}

impl Listener for RestListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        match self.ready.recv().await {
            Some(accepted) => accepted,
            // The task that accepts ends with this alone.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl Connected<IncomingStream<'_, RestListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, RestListener>) -> Caller {
        Caller { address: *stream.remote_addr(), subject: stream.io().subject.clone() }
    }
}
