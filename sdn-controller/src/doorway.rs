//! Connections as they come in, so many at once.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::controller::Controller;

/// Connections at once, those in handshake too.
const CONNECTIONS_MAX: usize = 1024;

/// Listens at `address`. All switches may call at once, after a restart: whom the kernel's queue has no place for calls again
/// a second later at the earliest, and the usual queue has 128 places.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A predecessor's connections may still linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(CONNECTIONS_MAX as u32)
}

/// A listener of the controller. At the limit, new connections wait in the kernel.
pub(crate) struct Doorway {
    listener: TcpListener,
    permits: Arc<Semaphore>,
    whose: &'static str,
}

impl Doorway {
    /// For connections of `whose`, as messages say it.
    pub(crate) fn new(listener: TcpListener, whose: &'static str) -> Doorway {
        Doorway { listener, permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)), whose }
    }

    /// The next connection; its place is free when the permit is dropped. `None`: there will be none any more.
    pub(crate) async fn next(
        &self,
        controller: &Controller,
    ) -> Option<(OwnedSemaphorePermit, TcpStream, SocketAddr)> {
        let permit = self.permits.clone().acquire_owned().await.ok()?;
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    // Small messages, answers awaited: without this each waits for the acknowledgement of the one before.
                    drop(stream.set_nodelay(true));
                    return Some((permit, stream, peer));
                }
                Err(error) => {
                    // Out of descriptors, or the peer was gone already: the next one may do better, in a moment.
                    if controller.limited().pass(self.whose).is_some() {
                        tracing::warn!(%error, "a {} connection could not be accepted", self.whose);
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn many_may_call_before_the_first_is_let_in() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = match listen(address.parse().unwrap()) {
                Err(_) if address.starts_with('[') => continue,
                listener => listener.unwrap(),
            };
            let address = listener.local_addr().unwrap();
            // Nobody accepts them: whom the queue has no place for is never connected.
            let call = || std::net::TcpStream::connect_timeout(&address, Duration::from_secs(10));
            let calls: Vec<_> =
                (0..400).map(|at| call().unwrap_or_else(|error| panic!("{at}: {error}"))).collect();
            assert_eq!(calls.len(), 400);
        }
    }
}
