//! A controller that waits for each answer: what a switch's control side costs.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use ofp::{Action, Body, FlowMod, FlowModCommand, Framer, Hello, Instruction, Masked, Message, OxmField};

use crate::frames::Udp;

/// How long a switch may take for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}

/// One session with a switch.
pub struct Controller {
    stream: Box<dyn Stream>,
    framer: Framer,
    xid: u32,
}

impl Controller {
    /// Connects to a switch that listens at `tcp:ADDRESS:PORT` or `unix:PATH` and shakes hands.
    ///
    /// # Errors
    /// Nobody listens or it does not speak OpenFlow 1.3.
    pub fn connect(target: &str) -> anyhow::Result<Controller> {
        let stream: Box<dyn Stream> = match target.split_once(':') {
            Some(("tcp", address)) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
            Some(("unix", path)) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
            _ => bail!("{target}: not an address"),
        };
        let mut controller = Controller { stream, framer: Framer::new(), xid: 1 };
        controller.send(Body::Hello(Hello::default()))?;
        match controller.receive()?.body {
            Body::Hello(hello) if hello.agrees() => Ok(controller),
            other => bail!("no hello: {other:?}"),
        }
    }

    /// Sends one message and returns its number.
    ///
    /// # Errors
    /// The session ended.
    pub fn send(&mut self, body: Body) -> anyhow::Result<u32> {
        self.xid += 1;
        let bytes = Message { xid: self.xid, body }.encode()?;
        self.stream.write_all(&bytes)?;
        Ok(self.xid)
    }

    /// Sends messages that are encoded already.
    ///
    /// # Errors
    /// The session ended.
    pub fn send_raw(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// The next message that is no echo request.
    ///
    /// # Errors
    /// None came, or none that could be read.
    pub fn receive(&mut self) -> anyhow::Result<Message> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(bytes) = self.framer.pop()? {
                let message = ofp::decode(bytes)?;
                let Body::EchoRequest(data) = message.body else { return Ok(message) };
                let bytes = Message { xid: message.xid, body: Body::EchoReply(data) }.encode()?;
                self.stream.write_all(&bytes)?;
                continue;
            }
            let count = self.stream.read(&mut buffer).context("waiting for the switch")?;
            ensure!(count > 0, "the switch ended the session");
            let mut rest = &buffer[..count];
            while !rest.is_empty() {
                rest = &rest[self.framer.push(rest)..];
            }
        }
    }

    /// Waits until everything sent so far is carried out.
    ///
    /// # Errors
    /// The switch refused something, or the session ended.
    pub fn barrier(&mut self) -> anyhow::Result<()> {
        let xid = self.send(Body::BarrierRequest)?;
        loop {
            match self.receive()? {
                Message { xid: found, body: Body::BarrierReply } if found == xid => return Ok(()),
                Message { body: Body::Error(error), .. } => bail!("refused: {:?}", error.error),
                _ => {}
            }
        }
    }
}

/// A flow-mod for exactly this flow, out by `port`.
pub fn exact(command: FlowModCommand, flow: &Udp, port: u32) -> FlowMod {
    let mut flow_mod = FlowMod::new(command);
    flow_mod.priority = 100;
    let [src, dst] = flow.addresses.map(std::net::Ipv4Addr::from);
    flow_mod.matching.fields = vec![
        OxmField::InPort(ofp::PortNo(1)),
        OxmField::EthType(0x0800),
        OxmField::IpProto(17),
        OxmField::Ipv4Src(Masked::exact(src)),
        OxmField::Ipv4Dst(Masked::exact(dst)),
        OxmField::UdpSrc(Masked::exact(flow.ports[0])),
        OxmField::UdpDst(Masked::exact(flow.ports[1])),
    ];
    let output = Action::Output { port: ofp::PortNo(port), max_len: 0 };
    flow_mod.instructions = vec![Instruction::ApplyActions(vec![output])];
    flow_mod
}
