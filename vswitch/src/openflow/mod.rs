//! The OpenFlow 1.3 agent: dials controllers, listens for others, keeps one session with each.
//!
//! ```text
//! connection (bytes, reconnects) -> session (one controller's messages) -> Bridge (flows, ports)
//! workers -> PacketInReceiver -> dispatch -> every session's bounded queue
//! ```
//!
//! A controller can do no more harm than its flows: messages are decoded by `ofp`, every queue is bounded, and a
//! session that breaks the protocol or does not read is closed without touching the others.

mod actions;
mod bundles;
mod connection;
pub mod convert;
mod dispatch;
pub mod flow_mod;
mod groups;
mod meters;
mod replies;
mod session;
mod text;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use telemetry::tls::Tls;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::bridge::Bridge;
use crate::config::{OpenFlowAddress, PacketInLimits};
use crate::model::PacketInReceiver;

pub use text::{flow_json, flow_text, match_parts, rule_text};

/// How an [`Agent`] is set up.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Controllers to dial and to keep dialling.
    pub controllers: Vec<OpenFlowAddress>,
    /// Where others may connect. TCP addresses are open to whoever reaches them, TLS ones to whoever has a
    /// certificate, Unix sockets to their owner.
    pub listeners: Vec<OpenFlowAddress>,
    /// For addresses with TLS.
    pub tls: Option<Tls>,
    /// Packet-ins per second and session; the rest is dropped and counted.
    pub packet_ins_per_second: u32,
    /// Silence after which a session is asked whether it lives, and after as much again closed.
    pub probe_interval: Duration,
}

impl Default for AgentConfig {
    fn default() -> AgentConfig {
        AgentConfig {
            controllers: Vec::new(),
            listeners: Vec::new(),
            tls: None,
            packet_ins_per_second: PacketInLimits::default().controller,
            probe_interval: Duration::from_secs(5),
        }
    }
}

/// An address that cannot be listened at.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for OpenFlow at {address}")]
pub struct ListenError {
    /// The address.
    pub address: OpenFlowAddress,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// What the agent counted, over all sessions that ever were.
#[derive(Default, Debug)]
pub struct AgentStats {
    /// Messages received.
    pub messages_received: AtomicU64,
    /// Messages sent.
    pub messages_sent: AtomicU64,
    /// Errors answered.
    pub errors_sent: AtomicU64,
    /// Packet-ins sent, once per session.
    pub packet_ins_sent: AtomicU64,
    /// Packet-ins that a session's rate or queue did not allow.
    pub packet_ins_dropped: AtomicU64,
    /// Other asynchronous messages that found a session's queue full.
    pub notices_dropped: AtomicU64,
    /// Flow-mods that were carried out.
    pub flow_mods: AtomicU64,
    /// TLS handshakes that failed, ours and those of others.
    pub handshakes_failed: AtomicU64,
}

/// What a controller is to us: 6.3.6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    Equal,
    Master,
    Slave,
}

/// What others need to know about a session.
struct Entry {
    id: u64,
    peer: String,
    dialed: bool,
    role: Role,
    filter: ofp::AsyncConfig,
    /// Bytes it wants of packets that no action sent (`miss_send_len`).
    miss_send_len: u16,
    notices: mpsc::Sender<Arc<[u8]>>,
    rate: dispatch::Rate,
}

/// A session as `show` lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionInfo {
    /// Address of the other side.
    pub peer: String,
    /// Whether we dialled.
    pub dialed: bool,
    /// `equal`, `master` or `slave`.
    pub role: &'static str,
}

/// What all sessions share.
struct Shared {
    bridge: Arc<Bridge>,
    config: AgentConfig,
    stats: AgentStats,
    sessions: Mutex<Vec<Entry>>,
    /// The election that made the present master.
    generation: Mutex<Option<u64>>,
    next_id: AtomicU64,
    bundled: bundles::Budget,
}

impl Shared {
    fn sessions(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The running agent. Dropping it stops it.
pub struct Agent {
    shared: Arc<Shared>,
    listening: Vec<OpenFlowAddress>,
    socket_files: Vec<PathBuf>,
    tasks: Vec<JoinHandle<()>>,
}

impl Agent {
    /// Starts the agent on the current tokio runtime.
    ///
    /// # Errors
    /// All addresses that cannot be listened at; nothing runs then.
    pub fn start(
        config: AgentConfig,
        bridge: Arc<Bridge>,
        packet_ins: PacketInReceiver,
    ) -> Result<Agent, Vec<ListenError>> {
        let (mut listeners, mut errors) = (Vec::new(), Vec::new());
        for address in &config.listeners {
            match connection::listen(address, config.tls.as_ref()) {
                Ok(listener) => listeners.push(listener),
                Err(source) => errors.push(ListenError { address: address.clone(), source }),
            }
        }
        let socket_files: Vec<PathBuf> =
            listeners.iter().filter_map(connection::Listener::socket_file).collect();
        if !errors.is_empty() {
            remove_files(&socket_files);
            return Err(errors);
        }
        let listening = listeners.iter().map(connection::Listener::address).collect();
        let controllers = config.controllers.clone();
        let shared = Arc::new(Shared {
            bridge,
            config,
            stats: AgentStats::default(),
            sessions: Mutex::new(Vec::new()),
            generation: Mutex::new(None),
            next_id: AtomicU64::new(1),
            bundled: bundles::Budget::default(),
        });
        let mut tasks = Vec::new();
        for listener in listeners {
            tasks.push(tokio::spawn(connection::accept(listener, shared.clone())));
        }
        for controller in controllers {
            tasks.push(tokio::spawn(connection::dial(controller, shared.clone())));
        }
        // Subscribed here, not in the task: nothing that happens after the start may be missed.
        let events = shared.bridge.events();
        tasks.push(tokio::spawn(dispatch::run(shared.clone(), packet_ins, events)));
        tasks.push(tokio::spawn(dispatch::tick(shared.clone())));
        Ok(Agent { shared, listening, socket_files, tasks })
    }

    /// Where it listens; TCP port 0 is replaced by the real one.
    pub fn listening(&self) -> &[OpenFlowAddress] {
        &self.listening
    }

    /// The sessions that have shaken hands.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        let info = |entry: &Entry| SessionInfo {
            peer: entry.peer.clone(),
            dialed: entry.dialed,
            role: match entry.role {
                Role::Equal => "equal",
                Role::Master => "master",
                Role::Slave => "slave",
            },
        };
        self.shared.sessions().iter().map(info).collect()
    }

    /// What it counted.
    pub fn stats(&self) -> &AgentStats {
        &self.shared.stats
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        remove_files(&self.socket_files);
    }
}

/// Bytes of a message that an error which answers it repeats (7.5.4: at least 64).
const HEAD_BYTES: usize = 64;

/// The beginning of a message that may be refused later. Not on its own in memory: a million would leave as many holes
/// between the flows.
struct Head {
    len: u8,
    bytes: [u8; HEAD_BYTES],
}

impl Head {
    fn new(message: &[u8]) -> Head {
        let mut bytes = [0; HEAD_BYTES];
        let len = message.len().min(HEAD_BYTES);
        bytes[..len].copy_from_slice(&message[..len]);
        Head { len: len as u8, bytes }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

fn remove_files(files: &[PathBuf]) {
    for file in files {
        if let Err(error) = std::fs::remove_file(file) {
            tracing::warn!(file = %file.display(), %error, "cannot remove an OpenFlow socket");
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
