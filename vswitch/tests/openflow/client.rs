//! A controller for the tests: blocking, one connection.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use ofp::{
    Body, ErrorCode, FlowMod, FlowModCommand, Framer, Hello, Instruction, Message, MultipartReply,
    MultipartRequest, OxmField, Reassembler,
};

use crate::data_path::PATIENCE;

pub struct Client<S> {
    stream: S,
    framer: Framer,
    xid: u32,
    /// Asynchronous messages that came while a reply was awaited.
    pub notices: Vec<Message>,
}

impl Client<UnixStream> {
    /// Connects and shakes hands.
    pub fn connect(path: &Path) -> Client<UnixStream> {
        let stream = UnixStream::connect(path).expect("the agent listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Client::over(stream)
    }
}

impl<S: Read + Write> Client<S> {
    /// Shakes hands.
    pub fn over(stream: S) -> Client<S> {
        let mut client = Client { stream, framer: Framer::new(), xid: 100, notices: Vec::new() };
        client.send_as(0, Body::Hello(Hello::default()));
        let hello = client.next();
        assert!(matches!(hello.body, Body::Hello(ref hello) if hello.agrees()), "{hello:?}");
        client
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the agent reads");
    }

    fn send_as(&mut self, xid: u32, body: Body) {
        let bytes = Message { xid, body }.encode().expect("a legal message");
        self.raw(&bytes);
    }

    /// Sends and returns the number of the request.
    pub fn send(&mut self, body: Body) -> u32 {
        self.xid += 1;
        self.send_as(self.xid, body);
        self.xid
    }

    /// The next message; echo requests are answered on the way. Panics at the end of the stream.
    pub fn next(&mut self) -> Message {
        self.try_next().expect("the session lives")
    }

    /// The next message, `None` at the end of the stream.
    pub fn try_next(&mut self) -> Option<Message> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(bytes) = self.framer.pop().expect("the agent frames well") {
                let message = ofp::decode(bytes).expect("the agent speaks OpenFlow");
                if let Body::EchoRequest(data) = message.body {
                    self.send_as(message.xid, Body::EchoReply(data));
                    continue;
                }
                return Some(message);
            }
            let count = self.stream.read(&mut buffer).expect("in time");
            if count == 0 {
                return None;
            }
            let mut rest = &buffer[..count];
            while !rest.is_empty() {
                rest = &rest[self.framer.push(rest)..];
            }
        }
    }

    /// The reply to request `xid`; what comes before is kept in `notices`.
    pub fn reply(&mut self, xid: u32) -> Body {
        loop {
            let message = self.next();
            if message.xid == xid {
                return message.body;
            }
            self.notices.push(message);
        }
    }

    pub fn ask(&mut self, body: Body) -> Body {
        let xid = self.send(body);
        self.reply(xid)
    }

    pub fn barrier(&mut self) {
        assert_eq!(self.ask(Body::BarrierRequest), Body::BarrierReply);
    }

    /// The error that answers a request.
    pub fn error(&mut self, body: Body) -> ErrorCode {
        match self.ask(body) {
            Body::Error(error) => error.error,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// The next notice that `pick` takes.
    pub fn notice<T>(&mut self, pick: impl Fn(&Body) -> Option<T>) -> T {
        loop {
            while !self.notices.is_empty() {
                let message = self.notices.remove(0);
                if let Some(found) = pick(&message.body) {
                    return found;
                }
            }
            let message = self.next();
            self.notices.push(message);
        }
    }

    /// A whole multipart reply.
    pub fn multipart(&mut self, request: MultipartRequest) -> MultipartReply {
        let xid = self.send(Body::MultipartRequest(request));
        let mut parts = Reassembler::new(1 << 20);
        loop {
            let (more, part) = match self.reply(xid) {
                Body::MultipartReply(part) => (false, part),
                Body::MultipartReplyMore(part) => (true, part),
                other => panic!("{other:?}"),
            };
            if let Some(whole) = parts.push(xid, more, part).expect("parts of one reply") {
                return whole;
            }
        }
    }

    pub fn flows(&mut self) -> Vec<ofp::FlowStats> {
        match self.multipart(MultipartRequest::Flow(ofp::FlowStatsRequest::default())) {
            MultipartReply::Flow(flows) => flows,
            other => panic!("{other:?}"),
        }
    }
}

/// A flow-mod that adds: priority, fields, outputs.
pub fn add(priority: u16, fields: &[OxmField], outputs: &[u32]) -> FlowMod {
    let outputs =
        outputs.iter().map(|port| ofp::Action::Output { port: ofp::PortNo(*port), max_len: 0xffff });
    let mut flow_mod = FlowMod::new(FlowModCommand::Add);
    flow_mod.priority = priority;
    flow_mod.matching.fields = fields.to_vec();
    flow_mod.instructions = vec![Instruction::ApplyActions(outputs.collect())];
    flow_mod
}
