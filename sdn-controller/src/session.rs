//! One connection from a switch: bytes, time-outs, back-pressure. What the messages mean is in [`crate::datapath`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ofp::{
    Body, Desc, ErrorCode, ErrorMessage, Framer, Header, Hello, MacAddr, Message, MultipartReply,
    MultipartRequest, Port, PortNo, Reassembler, SwitchFeatures,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};

use crate::controller::{Controller, Taken};
use crate::datapath::{Answer, Broken, Datapath, Done, PORTS_MAX, Setup};
use crate::layout::SwitchLayout;
use crate::metrics::{Direction, Metrics};
use crate::model::Dpid;
use crate::reconcile::Changes;

/// From the connection to knowing the switch.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Silence after which the switch is asked whether it is there.
const ECHO_AFTER: Duration = Duration::from_secs(5);
/// Silence after which it is given up.
const SILENCE_LIMIT: Duration = Duration::from_secs(15);
/// How long a switch may refuse to take bytes.
const STALL_LIMIT: Duration = Duration::from_secs(15);
/// Bytes waiting for a slow switch above which nothing more is read from it.
const BACKLOG_HIGH: usize = 1 << 20;
/// Bytes of one multipart answer at most.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// Messages that cannot be decoded, after which the session ends.
const BAD_MESSAGES_MAX: u32 = 1000;
const READ_BYTES: usize = 64 << 10;

/// What others ask of a session.
pub enum Command {
    /// The desired state changed. Told when the switch has it or refused it, with what is then known of the switch.
    Wish(Done),
    /// What would be sent if this were wanted?
    Preview {
        /// What would be wanted.
        layout: Arc<SwitchLayout>,
        /// Gets what would be sent, and what stands in the way.
        reply: oneshot::Sender<(Changes, Vec<String>)>,
    },
    /// Ask or tell the switch something, as it is.
    Ask {
        /// The messages.
        bodies: Vec<Body>,
        /// Gets the switch's answer.
        reply: oneshot::Sender<Answer>,
    },
    /// Which addresses are known: VLAN, address, port, and how long ago they were learned.
    Addresses(oneshot::Sender<Vec<(u16, MacAddr, PortNo, Duration)>>),
    /// Another connection claims to be this switch: is this one alive?
    Probe(oneshot::Sender<()>),
    /// Make room for the other connection.
    Close,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the switch closed the connection")]
    Closed,
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    #[error("it sent nothing for {} s", SILENCE_LIMIT.as_secs())]
    Silent,
    #[error("it took no bytes for {} s", STALL_LIMIT.as_secs())]
    Stalled,
    #[error("it did not introduce itself within {} s", HANDSHAKE_LIMIT.as_secs())]
    Handshake,
    #[error("it does not speak OpenFlow 1.3")]
    Version,
    #[error("its bytes are no OpenFlow")]
    Frame(#[from] ofp::FrameError),
    #[error("too many of its messages cannot be decoded")]
    Garbage,
    #[error("an answer is longer than {ANSWER_BYTES_MAX} bytes")]
    LongAnswer,
    #[error("it has more than {PORTS_MAX} ports")]
    Ports,
    #[error("it refused {request}: {error}")]
    Refused { request: &'static str, error: ErrorCode },
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error(transparent)]
    Reassembly(#[from] ofp::ReassemblyError),
    #[error("switch {0} is in session over another connection that answers")]
    Taken(Dpid),
    #[error("another connection of switch {0} took over")]
    Replaced(Dpid),
    #[error("it is auxiliary connection {0}; only main connections are served")]
    Auxiliary(u8),
    #[error("the controller stops")]
    Stopping,
}

/// How long the last words before a connection is closed may take.
const FAREWELL_LIMIT: Duration = Duration::from_millis(200);

/// Bytes in, bytes out.
struct Wire<S> {
    read: ReadHalf<S>,
    write: WriteHalf<S>,
    /// Whether the stream may still hold bytes that were written to it, as TLS does.
    unflushed: bool,
    framer: Framer,
    buffer: Box<[u8]>,
    backlog: Vec<u8>,
    written: usize,
    last_received: Instant,
    last_progress: Instant,
    bad_messages: u32,
    metrics: Arc<Metrics>,
}

impl<S: AsyncRead + AsyncWrite> Wire<S> {
    fn new(stream: S, metrics: Arc<Metrics>, now: Instant) -> Wire<S> {
        let (read, write) = tokio::io::split(stream);
        Wire {
            read,
            write,
            unflushed: false,
            framer: Framer::new(),
            buffer: vec![0; READ_BYTES].into(),
            backlog: Vec::new(),
            written: 0,
            last_received: now,
            last_progress: now,
            bad_messages: 0,
            metrics,
        }
    }

    fn send(&mut self, message: &Message) {
        if self.backlog.is_empty() {
            self.last_progress = Instant::now();
        }
        // Every message of ours was checked to fit, or is small.
        if let Err(error) = message.encode_into(&mut self.backlog) {
            tracing::error!(%error, kind = ?message.body.kind(), "a message could not be written");
            return;
        }
        self.metrics.message(Direction::Sent, message.body.kind().number());
    }

    fn waiting(&self) -> usize {
        self.backlog.len() - self.written
    }

    /// Writes some of the bytes; when there are none, sees to it that those before are on their way.
    async fn push(write: &mut WriteHalf<S>, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.is_empty() { write.flush().await.map(|()| 0) } else { write.write(bytes).await }
    }

    fn pushed(&mut self, count: usize) {
        self.written += count;
        self.last_progress = Instant::now();
        if self.written == self.backlog.len() {
            self.backlog.clear();
            self.backlog.shrink_to(BACKLOG_HIGH);
            self.written = 0;
        } else if self.written > BACKLOG_HIGH {
            self.backlog.drain(..self.written);
            self.written = 0;
        }
    }

    /// Waits until something happened: bytes in, bytes out, or `until`. Bytes are not read while too many wait to go
    /// out: a switch that talks and does not listen waits for itself.
    async fn turn(&mut self, until: Instant) -> Result<(), End> {
        let reading = self.waiting() < BACKLOG_HIGH;
        let waiting = self.waiting() > 0;
        tokio::select! {
            count = self.read.read(&mut self.buffer), if reading => {
                let count = count?;
                if count == 0 {
                    return Err(End::Closed);
                }
                self.last_received = Instant::now();
                let taken = self.framer.push(&self.buffer[..count]);
                // All whole messages were popped before, and a framer holds more than one and a read.
                assert_eq!(taken, count, "the framer is emptied before each read");
            }
            count = Wire::push(&mut self.write, &self.backlog[self.written..]), if waiting || self.unflushed => {
                let count = count?;
                if count == 0 && waiting {
                    return Err(End::Closed);
                }
                self.unflushed = waiting;
                if waiting {
                    self.pushed(count);
                }
            }
            () = tokio::time::sleep_until(until.into()) => {}
        }
        Ok(())
    }

    /// The next message that is there, and its length; one that cannot be decoded is answered here.
    fn pop(&mut self) -> Result<Option<(Message, usize)>, End> {
        loop {
            let Some(bytes) = self.framer.pop()? else { return Ok(None) };
            let kind = Header::peek(bytes).map_or(u8::MAX, |header| header.kind);
            self.metrics.message(Direction::Received, kind);
            match ofp::decode(bytes) {
                Ok(message) => return Ok(Some((message, bytes.len()))),
                Err(error) => {
                    let answer = error.answer(bytes);
                    self.metrics.bad_messages.add(1);
                    self.bad_messages += 1;
                    if self.bad_messages > BAD_MESSAGES_MAX {
                        return Err(End::Garbage);
                    }
                    // An error is never answered by an error, or two peers could go on for ever.
                    if kind != ofp::MessageType::Error.number() {
                        self.send(&answer);
                    }
                }
            }
        }
    }

    /// When the time-outs of the connection have to be looked at.
    fn deadline(&self, echo_asked: bool) -> Instant {
        let silence = self.last_received + if echo_asked { SILENCE_LIMIT } else { ECHO_AFTER };
        if self.waiting() > 0 { silence.min(self.last_progress + STALL_LIMIT) } else { silence }
    }

    /// The last words before a connection is closed, if the switch takes them.
    async fn farewell(&mut self, message: &Message) {
        self.send(message);
        let words = async {
            self.write.write_all(&self.backlog[self.written..]).await?;
            self.write.flush().await
        };
        // Whoever does not listen is not waited for.
        drop(tokio::time::timeout(FAREWELL_LIMIT, words).await);
    }
}

/// What the handshake finds out.
struct Introduction {
    features: SwitchFeatures,
    desc: Desc,
    ports: BTreeMap<PortNo, Port>,
    xid: u32,
}

/// Serves one connection until it ends.
pub async fn serve(controller: Arc<Controller>, stream: impl AsyncRead + AsyncWrite, peer: SocketAddr) {
    let mut wire = Wire::new(stream, controller.metrics().clone(), Instant::now());
    let end = match run(&controller, &mut wire, peer).await {
        Ok(never) => match never {},
        Err(end) => end,
    };
    if let Some(suppressed) = controller.limited().pass(&peer.ip().to_string()) {
        let cause = std::error::Error::source(&end).map(ToString::to_string);
        tracing::info!(%peer, suppressed, cause, "a switch connection ended: {end}");
    }
}

/// There is no good end.
enum Never {}

async fn run(
    controller: &Arc<Controller>,
    wire: &mut Wire<impl AsyncRead + AsyncWrite>,
    peer: SocketAddr,
) -> Result<Never, End> {
    let limit = tokio::time::timeout(HANDSHAKE_LIMIT, introduce(wire));
    let introduction = limit.await.map_err(|_| End::Handshake)??;
    let dpid = Dpid(introduction.features.datapath_id);
    let (commands, mut inbox) = mpsc::channel(64);
    let entry = controller.admit(dpid, peer, introduction.features, introduction.desc, commands).await;
    let entry = entry.map_err(|Taken| End::Taken(dpid))?;
    tracing::info!(%dpid, %peer, "switch in session");
    let now = Instant::now();
    wire.last_received = now;
    let (layout, metrics) = (controller.layout().of(dpid), controller.metrics().clone());
    let setup = Setup { dpid, options: controller.options(), probes: controller.probes(), metrics };
    let mut datapath = Datapath::new(introduction.ports, layout, setup, introduction.xid, now);
    let mut probes: Vec<oneshot::Sender<()>> = Vec::new();
    let (mut echo_asked, mut answer_bytes) = (false, 0);
    loop {
        datapath.take_out().iter().for_each(|message| wire.send(message));
        if let Some(status) = datapath.take_status() {
            entry.publish(status);
        }
        let status = entry.status();
        datapath.take_finished().into_iter().for_each(|done| drop(done.send(status.clone())));
        datapath.take_happenings().into_iter().for_each(|happening| entry.tell(happening));
        let until = wire.deadline(echo_asked).min(datapath.deadline());
        let received = wire.last_received;
        tokio::select! {
            turn = wire.turn(until) => turn?,
            command = inbox.recv() => match command {
                // What is wanted now, not when the command was sent: a later wish may have overtaken it.
                Some(Command::Wish(done)) => datapath.wish(Instant::now(), controller.layout().of(dpid), done),
                Some(Command::Preview { layout, reply }) => drop(reply.send(datapath.preview(&layout))),
                Some(Command::Ask { bodies, reply }) => datapath.ask(Instant::now(), bodies, reply),
                Some(Command::Addresses(reply)) => drop(reply.send(datapath.addresses(Instant::now()))),
                Some(Command::Probe(alive)) => {
                    probes.push(alive);
                    wire.send(&Message { xid: 0, body: Body::EchoRequest(vec![]) });
                }
                Some(Command::Close) => return Err(End::Replaced(dpid)),
                None => return Err(End::Stopping),
            },
        }
        if wire.last_received != received {
            echo_asked = false;
            for alive in probes.drain(..) {
                // Whoever asked may have stopped waiting.
                let _ = alive.send(());
            }
        }
        while let Some((message, len)) = wire.pop()? {
            answer_bytes = if datapath.is_reading() { answer_bytes + len } else { 0 };
            if answer_bytes > ANSWER_BYTES_MAX {
                return Err(End::LongAnswer);
            }
            match message.body {
                Body::EchoRequest(data) => {
                    wire.send(&Message { xid: message.xid, body: Body::EchoReply(data) });
                }
                _ => datapath.receive(Instant::now(), message)?,
            }
        }
        let now = Instant::now();
        datapath.tick(now)?;
        if wire.waiting() > 0 && now >= wire.last_progress + STALL_LIMIT {
            return Err(End::Stalled);
        }
        if now >= wire.last_received + SILENCE_LIMIT {
            return Err(End::Silent);
        }
        if !echo_asked && now >= wire.last_received + ECHO_AFTER {
            echo_asked = true;
            wire.send(&Message { xid: 0, body: Body::EchoRequest(vec![]) });
        }
    }
}

/// Agrees on the version and asks who the switch is and which ports it has.
async fn introduce(wire: &mut Wire<impl AsyncRead + AsyncWrite>) -> Result<Introduction, End> {
    let far = Instant::now() + HANDSHAKE_LIMIT;
    wire.send(&Message { xid: 1, body: Body::Hello(Hello::default()) });
    let hello = next(wire, far).await?;
    let agreed = matches!(&hello.body, Body::Hello(hello) if hello.agrees());
    if !agreed {
        let data = b"OpenFlow 1.3 is spoken here".to_vec();
        let error = ErrorMessage { error: ErrorCode::HELLO_INCOMPATIBLE, data };
        wire.farewell(&Message { xid: hello.xid, body: Body::Error(error) }).await;
        return Err(End::Version);
    }
    wire.send(&Message { xid: 2, body: Body::FeaturesRequest });
    let features = loop {
        match next(wire, far).await? {
            Message { body: Body::FeaturesReply(features), .. } => break features,
            Message { xid: 2, body: Body::Error(error) } => {
                return Err(End::Refused { request: "the features request", error: error.error });
            }
            _ => {}
        }
    };
    if features.auxiliary_id != 0 {
        return Err(End::Auxiliary(features.auxiliary_id));
    }
    wire.send(&Message { xid: 3, body: Body::MultipartRequest(MultipartRequest::Desc) });
    wire.send(&Message { xid: 4, body: Body::MultipartRequest(MultipartRequest::PortDesc) });
    let (mut parts, mut desc, mut ports) = (Reassembler::new(PORTS_MAX), None, None);
    let mut changes = Vec::new();
    while desc.is_none() || ports.is_none() {
        let Message { xid, body } = next(wire, far).await?;
        let (more, reply) = match body {
            Body::MultipartReplyMore(reply) => (true, reply),
            Body::MultipartReply(reply) => (false, reply),
            // A switch without a description is a switch.
            Body::Error(_) if xid == 3 => {
                desc.get_or_insert_default();
                continue;
            }
            Body::Error(error) if xid == 4 => {
                return Err(End::Refused { request: "the request for its ports", error: error.error });
            }
            Body::PortStatus(status) if changes.len() < PORTS_MAX => {
                changes.push(status);
                continue;
            }
            Body::PortStatus(_) => return Err(End::Ports),
            _ => continue,
        };
        match parts.push(xid, more, reply)? {
            Some(MultipartReply::Desc(found)) if xid == 3 => desc = Some(*found),
            Some(MultipartReply::PortDesc(list)) if xid == 4 => {
                ports = Some(list.into_iter().map(|port| (port.port_no, port)).collect::<BTreeMap<_, _>>());
            }
            _ => {}
        }
    }
    let mut ports = ports.unwrap_or_default();
    for status in changes {
        match status.reason {
            ofp::PortStatusReason::Delete => drop(ports.remove(&status.port.port_no)),
            _ => drop(ports.insert(status.port.port_no, status.port)),
        }
    }
    Ok(Introduction { features, desc: desc.unwrap_or_default(), ports, xid: 4 })
}

/// The next message of the handshake; echoes are answered on the way.
async fn next(wire: &mut Wire<impl AsyncRead + AsyncWrite>, until: Instant) -> Result<Message, End> {
    loop {
        match wire.pop()? {
            Some((Message { xid, body: Body::EchoRequest(data) }, _)) => {
                wire.send(&Message { xid, body: Body::EchoReply(data) });
            }
            Some((message, _)) => return Ok(message),
            None => wire.turn(until).await?,
        }
    }
}
