//! The side of a connection that other threads may touch: closing it, notifying the frontend, showing its state.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::net::SendFlags;

use crate::wire;

/// What an operator may want to know about a connection.
#[derive(Debug, Clone)]
pub struct SessionInfo {
    /// Number of the connection within its endpoint, counted from 1.
    pub id: u64,
    /// When the connection was made.
    pub since: Instant,
    /// Process id of the frontend, if the kernel tells.
    pub peer_pid: Option<u32>,
    /// Feature bits the driver accepted; `None` before SET_FEATURES.
    pub features: Option<u64>,
    /// Protocol features the frontend accepted.
    pub protocol_features: u64,
    /// Device status as last set by SET_STATUS.
    pub status: u8,
    /// Number of memory regions and their bytes.
    pub memory: (usize, u64),
    /// Indexes of the rings that run.
    pub running_queues: Vec<u16>,
    /// Messages handled.
    pub messages: u64,
    /// Messages answered with a negative acknowledgement.
    pub refused_messages: u64,
}

/// State shared between a session's thread and everybody who holds a handle.
#[derive(Debug)]
pub(crate) struct Control {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// The connection, for `shutdown` only; gone once the session has ended, so that a handle kept by a worker holds
    /// no descriptor.
    socket: Option<UnixStream>,
    /// The frontend's end of the channel for requests of ours (SET_BACKEND_REQ_FD).
    requests: Option<UnixStream>,
    close_reason: Option<String>,
    info: SessionInfo,
}

impl Control {
    pub(crate) fn new(id: u64, socket: UnixStream) -> Arc<Self> {
        let peer_pid = rustix::net::sockopt::socket_peercred(&socket)
            .ok()
            .and_then(|credentials| u32::try_from(credentials.pid.as_raw_nonzero().get()).ok());
        let info = SessionInfo {
            id,
            since: Instant::now(),
            peer_pid,
            features: None,
            protocol_features: 0,
            status: 0,
            memory: (0, 0),
            running_queues: Vec::new(),
            messages: 0,
            refused_messages: 0,
        };
        let inner = Inner { socket: Some(socket), requests: None, close_reason: None, info };
        Arc::new(Self { inner: Mutex::new(inner) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the session: its thread wakes from any wait on the socket. The first reason given counts.
    pub(crate) fn close(&self, reason: &str) {
        let mut inner = self.lock();
        inner.close_reason.get_or_insert_with(|| reason.to_owned());
        if let Some(socket) = &inner.socket {
            // Fails only when the peer is gone already, which ends the session as well.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn close_reason(&self) -> Option<String> {
        self.lock().close_reason.clone()
    }

    /// Whether [`Control::close`] was called.
    pub(crate) fn is_closing(&self) -> bool {
        self.lock().close_reason.is_some()
    }

    /// Whether the frontend has not told anything yet that would have to be told again after a new connection.
    pub(crate) fn has_said_nothing(&self) -> bool {
        let inner = self.lock();
        inner.info.features.is_none() && inner.info.memory == (0, 0)
    }

    /// The session has ended: gives all descriptors back.
    pub(crate) fn ended(&self) {
        let mut inner = self.lock();
        inner.socket = None;
        inner.requests = None;
    }

    pub(crate) fn set_requests(&self, channel: Option<UnixStream>) {
        self.lock().requests = channel;
    }

    /// Tells the frontend that the configuration space has changed. False if it has no channel for that.
    pub(crate) fn config_changed(&self) -> bool {
        let inner = self.lock();
        let Some(channel) = &inner.requests else { return false };
        // Never waits: a frontend that doesn't read has a notification of the same meaning in its buffer already.
        let message = wire::config_change_message();
        match rustix::net::send(channel, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(sent) => sent == message.len(),
            Err(error) => error == rustix::io::Errno::AGAIN,
        }
    }

    pub(crate) fn info(&self) -> SessionInfo {
        self.lock().info.clone()
    }

    pub(crate) fn update_info(&self, update: impl FnOnce(&mut SessionInfo)) {
        update(&mut self.lock().info);
    }
}

/// A frontend, as seen by the device: whoever holds one may notify it or close its session, from any thread and also
/// after the session has ended (then nothing happens).
#[derive(Debug, Clone)]
pub struct FrontendHandle {
    control: Arc<Control>,
}

impl FrontendHandle {
    pub(crate) fn new(control: Arc<Control>) -> Self {
        Self { control }
    }

    /// Tells the frontend that the configuration space has changed (new capacity, link state). False if the frontend
    /// offered no channel for that.
    pub fn config_changed(&self) -> bool {
        self.control.config_changed()
    }

    /// Ends the session: its thread stops all rings and says `reason` in the log. Returns at once.
    pub fn close(&self, reason: &str) {
        self.control.close(reason);
    }

    /// Number of the connection within its endpoint.
    pub fn id(&self) -> u64 {
        self.control.info().id
    }
}
