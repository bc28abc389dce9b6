//! One controller's session: what it says and what it is answered.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ofp::{
    Addition, Body, BundleControl, BundleControlType, ErrorCode, ErrorMessage, FlowMod, Hello, Message,
    MultipartReply, MultipartRequest, PacketOut, QueueConfig, RoleMessage, SwitchConfig,
};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::bundles::{Bundles, Outcome};
use super::{Entry, Role, Shared, actions, convert, count, dispatch, flow_mod, groups, meters, replies};
use crate::bridge::Change;
use crate::flow_tables::Removed;

/// Asynchronous messages that may wait for a session that reads slowly.
const NOTICES_MAX: usize = 1024;
/// Bytes of answers that are collected before they are written.
const OUT_BYTES: usize = 64 * 1024;
/// How long a controller may take to read what it is sent.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Multipart requests that may be unfinished at once.
const OPEN_REQUESTS_MAX: usize = 16;
/// Bytes of a multipart request: the features of all tables are a quarter of that.
const REQUEST_BYTES_MAX: usize = 4 << 20;
/// Bytes of a packet that no action sent, for controllers that did not say how many they want (7.3.2).
const MISS_SEND_LEN: u16 = 128;
/// Flows of a reply that are turned into messages at a time.
const FLOWS_AT_ONCE: usize = 512;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum Close {
    /// The other side closed the connection.
    #[error("the other side closed the connection")]
    Closed,
    /// Reading or writing failed.
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    /// It does not read.
    #[error("the other side did not read for {} s", WRITE_TIMEOUT.as_secs())]
    NotReading,
    /// It does not answer.
    #[error("the other side did not answer an echo request")]
    NotAnswering,
    /// It does not speak OpenFlow 1.3.
    #[error("the other side does not speak OpenFlow 1.3")]
    Version,
    /// The stream is no OpenFlow.
    #[error("the other side broke the protocol: {0}")]
    Protocol(String),
}

/// One session.
pub struct Session<W> {
    shared: Arc<Shared>,
    id: u64,
    peer: String,
    dialed: bool,
    greeted: bool,
    writer: W,
    out: Vec<u8>,
    config: SwitchConfig,
    flow_mods: flow_mod::Waiting,
    /// Flows removed since the last report.
    removed: Vec<Removed>,
    /// Multipart requests of which more parts are to come, with the bytes so far.
    open_requests: HashMap<u32, usize>,
    bundles: Bundles,
    notices: Option<mpsc::Sender<Arc<[u8]>>>,
}

impl<W: AsyncWrite + Unpin> Session<W> {
    /// A session that has to shake hands yet, and the queue of its asynchronous messages.
    pub fn new(
        shared: Arc<Shared>,
        peer: String,
        dialed: bool,
        writer: W,
    ) -> (Session<W>, mpsc::Receiver<Arc<[u8]>>) {
        let (sender, receiver) = mpsc::channel(NOTICES_MAX);
        let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
        let bundles = Bundles::new(shared.bundled.clone());
        let session = Session {
            shared,
            id,
            peer,
            dialed,
            greeted: false,
            writer,
            out: Vec::new(),
            config: SwitchConfig { flags: ofp::ConfigFlags(0), miss_send_len: MISS_SEND_LEN },
            flow_mods: flow_mod::Waiting::default(),
            removed: Vec::new(),
            open_requests: HashMap::new(),
            bundles,
            notices: Some(sender),
        };
        (session, receiver)
    }

    /// Whether the handshake is over.
    pub fn greeted(&self) -> bool {
        self.greeted
    }

    /// Queues our hello.
    pub fn hello(&mut self) {
        self.send(0, Body::Hello(Hello::default()));
    }

    /// Queues an echo request.
    pub fn probe(&mut self) {
        self.send(0, Body::EchoRequest(Vec::new()));
    }

    /// Queues asynchronous messages, encoded already.
    pub fn notice(&mut self, bytes: &[u8]) {
        count(&self.shared.stats.messages_sent);
        self.out.extend_from_slice(bytes);
    }

    fn send(&mut self, xid: u32, body: Body) {
        match (Message { xid, body }).encode_into(&mut self.out) {
            Ok(()) => count(&self.shared.stats.messages_sent),
            Err(error) => tracing::warn!(peer = %self.peer, %error, "an answer cannot be written"),
        }
    }

    fn refuse(&mut self, request: &[u8], code: ErrorCode) {
        count(&self.shared.stats.errors_sent);
        let xid = ofp::Header::peek(request).map_or(0, |header| header.xid);
        self.send(xid, Body::Error(ErrorMessage::refusing(code, request)));
    }

    /// Writes what is queued.
    pub async fn flush(&mut self) -> Result<(), Close> {
        if self.out.is_empty() {
            return Ok(());
        }
        let written = tokio::time::timeout(WRITE_TIMEOUT, self.writer.write_all(&self.out)).await;
        self.out.clear();
        self.out.shrink_to(2 * OUT_BYTES);
        written.map_err(|_| Close::NotReading)?.map_err(Close::Io)
    }

    /// Everything received so far was handled: makes it live and tells of removed flows.
    pub async fn settle(&mut self) -> Result<(), Close> {
        self.carry_out_flow_mods();
        self.shared.bridge.publish();
        self.report_removed().await;
        self.flush().await
    }

    fn change(&mut self, change: &Change) -> Result<(), ErrorCode> {
        let removed = self.shared.bridge.apply(change).map_err(convert::change_error)?;
        self.keep_removed(removed);
        Ok(())
    }

    async fn report_removed(&mut self) {
        let removed = std::mem::take(&mut self.removed);
        self.shared.bridge.report_removed(removed).await;
    }

    /// Handles one message, `bytes`.
    pub async fn message(&mut self, bytes: &[u8]) -> Result<(), Close> {
        count(&self.shared.stats.messages_received);
        if self.greeted && self.known_flow_mod(bytes) {
            return self.flush_much().await;
        }
        let message = match ofp::decode(bytes) {
            Ok(message) => message,
            Err(error) if self.greeted => {
                tracing::debug!(peer = %self.peer, %error, "refused a message");
                if let Some(bundle_id) = ofp::BundleAdd::peek(bytes) {
                    self.bundles.spoil(bundle_id);
                }
                self.refuse(bytes, error.code);
                return Ok(());
            }
            Err(error) => return Err(Close::Protocol(error.to_string())),
        };
        match message.body {
            Body::FlowMod(request) if self.greeted => {
                self.flow_mod(&request, bytes);
                return self.flush_much().await;
            }
            // What follows a flow-mod sees what it did.
            _ => self.carry_out_flow_mods(),
        }
        match message.body {
            Body::Hello(hello) if !self.greeted => self.greet(&hello).await,
            // 6.3.1: a hello after the handshake says nothing.
            Body::Hello(_) => Ok(()),
            Body::Error(error) => {
                tracing::info!(peer = %self.peer, error = %error.error, "the controller refused a message");
                if self.greeted { Ok(()) } else { Err(Close::Version) }
            }
            _ if !self.greeted => Err(Close::Protocol("the first message is not a hello".to_string())),
            body => {
                if matches!(body, Body::MultipartRequestMore(_)) {
                    self.note_part(message.xid, bytes.len())?;
                }
                if let Err(code) = self.request(message.xid, body).await? {
                    self.refuse(bytes, code);
                }
                self.flush_much().await
            }
        }
    }

    async fn flush_much(&mut self) -> Result<(), Close> {
        if self.out.len() > OUT_BYTES { self.flush().await } else { Ok(()) }
    }

    /// Takes a flow-mod that need not be decoded. `true`: it was one.
    fn known_flow_mod(&mut self, bytes: &[u8]) -> bool {
        let Some(add) = Addition::peek(bytes) else { return false };
        let taken = !self.is_slave() && self.flow_mods.push_known(&add, bytes);
        if taken {
            self.carry_out_enough_flow_mods();
        }
        taken
    }

    fn flow_mod(&mut self, request: &FlowMod, bytes: &[u8]) {
        let taken =
            if self.is_slave() { Err(ErrorCode::IS_SLAVE) } else { self.flow_mods.push(request, bytes) };
        match taken {
            Ok(()) => self.carry_out_enough_flow_mods(),
            Err(code) => self.refuse(bytes, code),
        }
    }

    fn carry_out_enough_flow_mods(&mut self) {
        if self.flow_mods.are_enough() {
            self.carry_out_flow_mods();
        }
    }

    fn carry_out_flow_mods(&mut self) {
        if self.flow_mods.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.flow_mods);
        let bridge = self.shared.bridge.clone();
        waiting.carry_out(&bridge, |message, result| match result {
            Ok(removed) => {
                self.keep_removed(removed);
                count(&self.shared.stats.flow_mods);
            }
            Err(code) => self.refuse(message, code),
        });
        self.flow_mods = waiting;
    }

    async fn greet(&mut self, hello: &Hello) -> Result<(), Close> {
        if !hello.agrees() {
            let data = b"this switch speaks OpenFlow 1.3".to_vec();
            let error = ErrorCode::HELLO_INCOMPATIBLE;
            self.send(0, Body::Error(ErrorMessage { error, data }));
            self.flush().await?;
            return Err(Close::Version);
        }
        self.greeted = true;
        if self.dialed {
            self.shared.bridge.controller_connected(true);
        }
        if let Some(notices) = self.notices.take() {
            self.shared.sessions().push(Entry {
                id: self.id,
                peer: self.peer.clone(),
                dialed: self.dialed,
                role: Role::Equal,
                filter: dispatch::default_filter(),
                miss_send_len: self.config.miss_send_len,
                notices,
                rate: dispatch::Rate::new(self.shared.config.packet_ins_per_second),
            });
        }
        Ok(())
    }

    fn entry<R>(&self, with: impl FnOnce(&mut Entry) -> R) -> Option<R> {
        self.shared.sessions().iter_mut().find(|entry| entry.id == self.id).map(with)
    }

    fn is_slave(&self) -> bool {
        self.entry(|entry| entry.role == Role::Slave).unwrap_or(true)
    }

    /// Carries out a request. The inner error is answered, the outer one closes the session.
    async fn request(&mut self, xid: u32, body: Body) -> Result<Result<(), ErrorCode>, Close> {
        if changes_something(&body) && self.is_slave() {
            return Ok(Err(ErrorCode::IS_SLAVE));
        }
        match body {
            Body::BarrierRequest => {
                self.shared.bridge.barrier().await;
                self.report_removed().await;
                self.send(xid, Body::BarrierReply);
                self.flush().await?;
                Ok(Ok(()))
            }
            Body::MultipartRequest(request) => self.multipart(xid, request).await,
            Body::BundleControl(request) => Ok(self.bundle_control(xid, request).await),
            Body::MultipartRequestMore(request) => Ok(self.more(xid, &request)),
            body => Ok(self.simple(xid, body)),
        }
    }

    /// Requests that need not wait for anything.
    fn simple(&mut self, xid: u32, body: Body) -> Result<(), ErrorCode> {
        match body {
            Body::EchoRequest(data) => self.send(xid, Body::EchoReply(data)),
            Body::FeaturesRequest => {
                let features = replies::features(&self.shared.bridge);
                self.send(xid, Body::FeaturesReply(features));
            }
            Body::GetConfigRequest => {
                let drops = self.shared.bridge.drops_fragments();
                let flags = if drops { ofp::ConfigFlags::FRAG_DROP } else { ofp::ConfigFlags(0) };
                self.send(xid, Body::GetConfigReply(SwitchConfig { flags, ..self.config }));
            }
            Body::SetConfig(config) => self.set_config(config)?,
            Body::PacketOut(request) => return self.packet_out(request),
            Body::PortMod(request) => {
                let change = Change::Port(convert::port_change(&request)?);
                self.change(&change)?;
            }
            Body::BundleAdd(request) => return self.bundles.add(xid, &request),
            Body::TableMod(request) => return table_mod(&request),
            Body::GroupMod(request) => {
                let change = Change::Group(groups::change(&request)?);
                self.change(&change)?;
            }
            Body::MeterMod(request) => {
                let change = Change::Meter(meters::change(&request)?);
                self.change(&change)?;
            }
            Body::RoleRequest(request) => return self.role(xid, request),
            Body::GetAsyncRequest => {
                let filter = self.entry(|entry| entry.filter).unwrap_or_else(dispatch::default_filter);
                self.send(xid, Body::GetAsyncReply(filter));
            }
            Body::SetAsync(filter) => {
                self.entry(|entry| entry.filter = filter);
            }
            Body::QueueGetConfigRequest(port) => {
                if port != ofp::PortNo::ANY && !self.shared.bridge.has_port(port) {
                    return Err(ErrorCode::QUEUE_BAD_PORT);
                }
                self.send(xid, Body::QueueGetConfigReply(QueueConfig { port, queues: Vec::new() }));
            }
            Body::Experimenter(_) => return Err(ErrorCode::BAD_EXPERIMENTER),
            // Any message shows that the other side lives.
            Body::EchoReply(_) => {}
            // What only switches send, and what was handled before.
            _ => return Err(ErrorCode::BAD_TYPE),
        }
        Ok(())
    }

    /// Fragments are a matter of the switch, the bytes of packet-ins one of the controller.
    fn set_config(&mut self, config: SwitchConfig) -> Result<(), ErrorCode> {
        let drop = match config.flags {
            ofp::ConfigFlags(0) => false,
            ofp::ConfigFlags::FRAG_DROP => true,
            // Nor are they put together.
            _ => return Err(ErrorCode::CONFIG_BAD_FLAGS),
        };
        if drop != self.shared.bridge.drops_fragments() {
            if self.is_slave() {
                return Err(ErrorCode::CONFIG_EPERM);
            }
            self.shared.bridge.set_drop_fragments(drop);
        }
        self.config = config;
        self.entry(|entry| entry.miss_send_len = config.miss_send_len);
        Ok(())
    }

    fn packet_out(&mut self, request: PacketOut) -> Result<(), ErrorCode> {
        if request.buffer_id != ofp::NO_BUFFER {
            return Err(ErrorCode::BUFFER_UNKNOWN);
        }
        if request.data.len() < 14 {
            return Err(ErrorCode::BAD_PACKET);
        }
        let in_port = dispatch::ingress(request.in_port).ok_or(ErrorCode::BAD_PORT)?;
        let actions = actions::packet_out(&request.actions)?;
        if !self.shared.bridge.knows_groups(&actions) {
            return Err(ErrorCode::ACTION_BAD_OUT_GROUP);
        }
        if !self.shared.bridge.packet_out(request.data.into(), in_port, &actions) {
            tracing::debug!(peer = %self.peer, "too many packet-outs at once: one dropped");
        }
        Ok(())
    }

    /// A bundle is carried out before its commit is answered, and live then.
    async fn bundle_control(&mut self, xid: u32, request: BundleControl) -> Result<(), ErrorCode> {
        let kind = match self.bundles.control(&request)? {
            Outcome::Reply(kind) => kind,
            Outcome::Commit(changes, messages) => {
                match self.shared.bridge.commit(&changes) {
                    Ok(removed) => self.keep_removed(removed),
                    Err(error) => {
                        let failed = &messages[error.at];
                        tracing::debug!(peer = %self.peer, error = %error.source, "refused a bundle");
                        let code = convert::change_error(error.source);
                        count(&self.shared.stats.errors_sent);
                        let error = ErrorMessage::refusing(code, failed.head.bytes());
                        self.send(failed.xid, Body::Error(error));
                        return Err(ErrorCode::BUNDLE_MESSAGE_FAILED);
                    }
                }
                let flow_mods = changes.iter().filter(|change| matches!(change, Change::Flow(_))).count();
                self.shared.stats.flow_mods.fetch_add(flow_mods as u64, Ordering::Relaxed);
                self.shared.bridge.barrier().await;
                BundleControlType::CommitReply
            }
        };
        self.send(xid, Body::BundleControl(BundleControl { kind, properties: Vec::new(), ..request }));
        Ok(())
    }

    /// Keeps those of the removed flows that somebody wants to hear of.
    fn keep_removed(&mut self, removed: Vec<Removed>) {
        self.removed.extend(removed.into_iter().filter(|removed| removed.flow.flags.send_removed));
    }

    fn role(&mut self, xid: u32, request: RoleMessage) -> Result<(), ErrorCode> {
        let wanted = match request.role {
            ofp::Role::NoChange => None,
            ofp::Role::Equal => Some(Role::Equal),
            ofp::Role::Master => Some(Role::Master),
            ofp::Role::Slave => Some(Role::Slave),
        };
        let mut generation = self.shared.generation.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(wanted, Some(Role::Master | Role::Slave)) {
            // 6.3.6: numbers wrap, so "older" is a signed difference.
            if generation.is_some_and(|current| (request.generation_id.wrapping_sub(current) as i64) < 0) {
                return Err(ErrorCode::ROLE_STALE);
            }
            *generation = Some(request.generation_id);
        }
        let mut current = Role::Equal;
        for entry in self.shared.sessions().iter_mut() {
            if entry.id == self.id {
                entry.role = wanted.unwrap_or(entry.role);
                current = entry.role;
            } else if wanted == Some(Role::Master) && entry.role == Role::Master {
                entry.role = Role::Slave;
            }
        }
        let role = match current {
            Role::Equal => ofp::Role::Equal,
            Role::Master => ofp::Role::Master,
            Role::Slave => ofp::Role::Slave,
        };
        let generation_id = generation.unwrap_or(u64::MAX);
        drop(generation);
        self.send(xid, Body::RoleReply(RoleMessage { role, generation_id }));
        Ok(())
    }

    /// A part of a request with more to come. Only table features can be long, and changing them is refused
    /// anyway: the parts are not kept, only the fact that there were some.
    fn more(&mut self, xid: u32, request: &MultipartRequest) -> Result<(), ErrorCode> {
        if !matches!(request, MultipartRequest::TableFeatures(_)) {
            return Err(ErrorCode::BAD_MULTIPART);
        }
        if !self.open_requests.contains_key(&xid) && self.open_requests.len() >= OPEN_REQUESTS_MAX {
            return Err(ErrorCode::MULTIPART_BUFFER_OVERFLOW);
        }
        self.open_requests.entry(xid).or_default();
        Ok(())
    }

    /// Who sends a request that does not end means us no good.
    fn note_part(&mut self, xid: u32, bytes: usize) -> Result<(), Close> {
        let Some(sum) = self.open_requests.get_mut(&xid) else { return Ok(()) };
        *sum += bytes;
        if *sum <= REQUEST_BYTES_MAX {
            return Ok(());
        }
        Err(Close::Protocol(format!("a multipart request of more than {REQUEST_BYTES_MAX} bytes")))
    }

    async fn multipart(
        &mut self,
        xid: u32,
        request: MultipartRequest,
    ) -> Result<Result<(), ErrorCode>, Close> {
        if self.open_requests.remove(&xid).is_some() {
            return Ok(Err(ErrorCode::TABLE_FEATURES_EPERM));
        }
        match request {
            MultipartRequest::Flow(request) => self.flow_stats(xid, &request).await,
            MultipartRequest::Aggregate(request) => {
                self.shared.bridge.drain_counters().await;
                Ok(self.aggregate(xid, &request))
            }
            request => {
                if matches!(request, MultipartRequest::Table) {
                    self.shared.bridge.drain_counters().await;
                }
                Ok(replies::multipart(&self.shared.bridge, &request).map(|reply| {
                    self.reply(xid, reply, true);
                }))
            }
        }
    }

    fn flows(&self, request: &ofp::FlowStatsRequest) -> Result<Vec<Arc<crate::flow::Flow>>, ErrorCode> {
        let cookie = (request.cookie, request.cookie_mask);
        let (out_port, out_group) = (request.out_port, request.out_group);
        let selection = convert::selection(request.table_id, &request.matching, cookie, out_port, out_group)?;
        self.shared.bridge.flows(&selection).map_err(|_| ErrorCode::BAD_TABLE_ID)
    }

    async fn flow_stats(
        &mut self,
        xid: u32,
        request: &ofp::FlowStatsRequest,
    ) -> Result<Result<(), ErrorCode>, Close> {
        self.shared.bridge.drain_counters().await;
        let flows = match self.flows(request) {
            Ok(flows) => flows,
            Err(code) => return Ok(Err(code)),
        };
        let now_ms = self.shared.bridge.clock().now_ms();
        let mut chunks = flows.chunks(FLOWS_AT_ONCE).peekable();
        if chunks.peek().is_none() {
            self.reply(xid, MultipartReply::Flow(Vec::new()), true);
        }
        while let Some(chunk) = chunks.next() {
            let stats = chunk.iter().map(|flow| convert::flow_stats(flow, now_ms)).collect();
            self.reply(xid, MultipartReply::Flow(stats), chunks.peek().is_none());
            // A million flows are written as they are turned into messages, never held as a whole.
            self.flush().await?;
        }
        Ok(Ok(()))
    }

    fn aggregate(&mut self, xid: u32, request: &ofp::FlowStatsRequest) -> Result<(), ErrorCode> {
        let mut sum = ofp::AggregateStats::default();
        for flow in self.flows(request)? {
            let counters = flow.stats.sum();
            sum.packet_count += counters.packets;
            sum.byte_count += counters.bytes;
            sum.flow_count += 1;
        }
        self.reply(xid, MultipartReply::Aggregate(sum), true);
        Ok(())
    }

    /// Queues a reply in as many messages as it takes; `last`: nothing follows.
    fn reply(&mut self, xid: u32, reply: MultipartReply, last: bool) {
        let messages = match ofp::split_reply(xid, reply, ofp::MESSAGE_LEN_MAX) {
            Ok(messages) => messages,
            Err(error) => {
                tracing::warn!(peer = %self.peer, %error, "a reply cannot be written");
                return;
            }
        };
        for message in messages {
            let body = match message.body {
                Body::MultipartReply(reply) if !last => Body::MultipartReplyMore(reply),
                body => body,
            };
            self.send(xid, body);
        }
    }
}

impl<W> Drop for Session<W> {
    fn drop(&mut self) {
        self.shared.sessions().retain(|entry| entry.id != self.id);
        if self.greeted && self.dialed {
            self.shared.bridge.controller_connected(false);
        }
        // What it sent and did not wait for becomes live all the same; nobody is left to hear what is wrong with it.
        self.flow_mods.carry_out(&self.shared.bridge, |_, _| {});
        self.shared.bridge.publish();
    }
}

/// Whether a message asks for more than to be told something: slaves may not (6.3.6).
fn changes_something(body: &Body) -> bool {
    match body {
        Body::GroupMod(_)
        | Body::MeterMod(_)
        | Body::PortMod(_)
        | Body::TableMod(_)
        | Body::PacketOut(_)
        | Body::BundleControl(_)
        | Body::BundleAdd(_) => true,
        Body::MultipartRequest(MultipartRequest::TableFeatures(features)) => !features.is_empty(),
        Body::MultipartRequestMore(_) => true,
        _ => false,
    }
}

fn table_mod(request: &ofp::TableMod) -> Result<(), ErrorCode> {
    if request.table_id != ofp::TABLE_ALL && usize::from(request.table_id) >= crate::tables::TABLES {
        return Err(ErrorCode::TABLE_MOD_BAD_TABLE);
    }
    // The configuration has no meaning in 1.3 (7.3.3).
    if request.config == 0 { Ok(()) } else { Err(ErrorCode::TABLE_MOD_BAD_CONFIG) }
}
