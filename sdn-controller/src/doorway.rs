//! Connections as they come in, so many at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::controller::Controller;

/// Connections at once, those in handshake too.
const CONNECTIONS_MAX: usize = 1024;

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
