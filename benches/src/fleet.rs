//! Switches that exist on the wire only: they agree to everything, carry nothing, and count what they are told.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use ofp::{
    Action, Body, BundleControl, BundleControlType, ErrorCode, ErrorMessage, FlowMod, FlowModCommand, Framer,
    Hello, Instruction, MacAddr, Match, Message, MeterFeatures, MultipartReply, MultipartRequest, OxmField,
    PacketIn, PacketInReason, Port, PortNo, SwitchConfig, SwitchFeatures,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// How long a controller may be silent until we believe that it has said everything.
const QUIET: Duration = Duration::from_secs(2);

/// What all switches of a fleet have been told.
#[derive(Default)]
struct Told {
    flow_mods: AtomicU64,
    packet_outs: AtomicU64,
    /// Messages but for echoes.
    messages: AtomicU64,
    /// Microseconds from the start of the fleet to the last of them.
    last_us: AtomicU64,
    /// What went wrong first.
    failure: Mutex<Option<String>>,
}

/// A number of switches, datapath ids from 1 on.
pub struct Fleet {
    runtime: Runtime,
    told: Arc<Told>,
    orders: Vec<mpsc::UnboundedSender<Vec<PacketOf>>>,
    start: Instant,
}

/// A packet that a switch shows its controller.
#[derive(Clone, Copy, Debug)]
pub struct PacketOf {
    /// Ingress port.
    pub port: u32,
    /// Source address.
    pub mac: [u8; 6],
}

impl Fleet {
    /// `count` switches with `ports` ports each call the controller at `address`, all at once.
    ///
    /// # Errors
    /// When there is no runtime to be had.
    pub fn connect(address: SocketAddr, count: u64, ports: u32) -> anyhow::Result<Fleet> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (told, start) = (Arc::new(Told::default()), Instant::now());
        let mut orders = Vec::new();
        for dpid in 1..=count {
            let (order, inbox) = mpsc::unbounded_channel();
            orders.push(order);
            let told = told.clone();
            runtime.spawn(async move {
                let failed = serve(address, dpid, ports, &told, start, inbox).await;
                let text =
                    failed.map_or_else(|error| format!("switch {dpid}: {error:#}"), |()| String::new());
                let mut failure = told.failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert(text);
            });
        }
        Ok(Fleet { runtime, told, orders, start })
    }

    /// Flow-mods that came, in bundles too.
    pub fn flow_mods(&self) -> u64 {
        self.told.flow_mods.load(Ordering::Relaxed)
    }

    /// Packet-outs that came.
    pub fn packet_outs(&self) -> u64 {
        self.told.packet_outs.load(Ordering::Relaxed)
    }

    /// Fails when a switch has lost its session.
    ///
    /// # Errors
    /// What happened to it.
    pub fn alive(&self) -> anyhow::Result<()> {
        let failure = self.told.failure.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(failure.is_none(), "{}", failure.as_deref().unwrap_or_default());
        Ok(())
    }

    /// Waits until nothing has been said for a while, and at least `least` flow-mods were; how long that took from
    /// the first connection to the last word.
    ///
    /// # Errors
    /// It does not get there, or a session ends.
    pub fn provisioned(&self, least: u64, limit: Duration) -> anyhow::Result<Duration> {
        let deadline = Instant::now() + limit;
        loop {
            self.alive()?;
            let last = Duration::from_micros(self.told.last_us.load(Ordering::Relaxed));
            let messages = self.told.messages.load(Ordering::Relaxed);
            let quiet = self.start.elapsed().saturating_sub(last) > QUIET;
            if quiet && self.flow_mods() >= least && messages >= 4 * self.orders.len() as u64 {
                return Ok(last);
            }
            let count = self.flow_mods();
            ensure!(Instant::now() < deadline, "{count} of {least} flow-mods after {limit:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until `counted` is `count`, looking at it often, and says how long that took.
    ///
    /// # Errors
    /// It does not get there, or a session ends.
    pub fn until(&self, limit: Duration, done: impl Fn(&Fleet) -> bool) -> anyhow::Result<Duration> {
        let start = Instant::now();
        while !done(self) {
            self.alive()?;
            ensure!(start.elapsed() < limit, "not within {limit:?}: {} flow-mods", self.flow_mods());
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(start.elapsed())
    }

    /// Switch `dpid` shows these packets.
    ///
    /// # Errors
    /// It is gone.
    pub fn show(&self, dpid: u64, packets: Vec<PacketOf>) -> anyhow::Result<()> {
        let order = self.orders.get(dpid as usize - 1).context("no such switch")?;
        order.send(packets).ok().context("the session of a switch has ended")
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // Ends the switches; the runtime goes with the value.
        self.orders.clear();
        let _ = &self.runtime;
    }
}

/// One switch.
struct Switch<'a> {
    dpid: u64,
    ports: u32,
    told: &'a Told,
    start: Instant,
    out: Vec<u8>,
    /// The entry that sends packets to the controller, for each VLAN it matches on (0: for all).
    shown_by: HashMap<u16, (u8, u64)>,
    /// The VLAN that packets of a port are put into.
    vlans: HashMap<u32, u16>,
}

async fn serve(
    address: SocketAddr,
    dpid: u64,
    ports: u32,
    told: &Told,
    start: Instant,
    mut inbox: mpsc::UnboundedReceiver<Vec<PacketOf>>,
) -> anyhow::Result<()> {
    let stream = TcpStream::connect(address).await.context("connecting")?;
    stream.set_nodelay(true)?;
    let (mut read, mut write) = stream.into_split();
    let (shown_by, vlans) = (HashMap::new(), HashMap::new());
    let mut switch = Switch { dpid, ports, told, start, out: Vec::new(), shown_by, vlans };
    switch.send(1, Body::Hello(Hello::default()))?;
    let (mut framer, mut buffer) = (Framer::new(), vec![0; 64 << 10]);
    loop {
        if !switch.out.is_empty() {
            write.write_all(&switch.out).await?;
            switch.out.clear();
        }
        tokio::select! {
            count = read.read(&mut buffer) => {
                let count = count?;
                ensure!(count > 0, "the controller closed the connection");
                let mut rest = &buffer[..count];
                while !rest.is_empty() {
                    let taken = framer.push(rest);
                    rest = &rest[taken..];
                    while let Some(bytes) = framer.pop()? {
                        let message = ofp::decode(bytes).map_err(|error| anyhow::anyhow!("{error:?}"))?;
                        switch.answer(message)?;
                    }
                }
            },
            packets = inbox.recv() => match packets {
                Some(packets) => packets.iter().try_for_each(|packet| switch.show(packet))?,
                None => return Ok(()),
            },
        }
    }
}

impl Switch<'_> {
    fn send(&mut self, xid: u32, body: Body) -> anyhow::Result<()> {
        let bytes = Message { xid, body }.encode().map_err(|error| anyhow::anyhow!("{error:?}"))?;
        self.out.extend(bytes);
        Ok(())
    }

    fn answer(&mut self, message: Message) -> anyhow::Result<()> {
        let xid = message.xid;
        let (count, last) = (&self.told.messages, &self.told.last_us);
        if !matches!(message.body, Body::EchoRequest(_) | Body::EchoReply(_)) {
            count.fetch_add(1, Ordering::Relaxed);
            last.store(self.start.elapsed().as_micros() as u64, Ordering::Relaxed);
        }
        let body = match message.body {
            Body::EchoRequest(data) => Body::EchoReply(data),
            Body::BarrierRequest => Body::BarrierReply,
            Body::GetConfigRequest => {
                Body::GetConfigReply(SwitchConfig { flags: ofp::ConfigFlags(0), miss_send_len: 0xffff })
            }
            Body::FeaturesRequest => Body::FeaturesReply(SwitchFeatures {
                datapath_id: self.dpid,
                n_buffers: 0,
                n_tables: 254,
                auxiliary_id: 0,
                capabilities: ofp::Capabilities(0),
            }),
            Body::MultipartRequest(request) => match self.multipart(&request) {
                Some(reply) => Body::MultipartReply(reply),
                None => {
                    let request = Message { xid, body: Body::MultipartRequest(request) };
                    let bytes = request.encode().map_err(|error| anyhow::anyhow!("{error:?}"))?;
                    Body::Error(ErrorMessage::refusing(ErrorCode::BAD_MULTIPART, &bytes))
                }
            },
            Body::BundleControl(control) => {
                let kind = match control.kind {
                    BundleControlType::OpenRequest => BundleControlType::OpenReply,
                    BundleControlType::CloseRequest => BundleControlType::CloseReply,
                    BundleControlType::CommitRequest => BundleControlType::CommitReply,
                    BundleControlType::DiscardRequest => BundleControlType::DiscardReply,
                    other => anyhow::bail!("a controller sends {other:?}"),
                };
                Body::BundleControl(BundleControl { kind, ..control })
            }
            Body::BundleAdd(add) => return self.take(&add.message.body),
            other => return self.take(&other),
        };
        self.send(xid, body)
    }

    fn take(&mut self, body: &Body) -> anyhow::Result<()> {
        match body {
            Body::FlowMod(flow_mod) => {
                self.told.flow_mods.fetch_add(1, Ordering::Relaxed);
                self.note(flow_mod);
            }
            Body::PacketOut(_) => drop(self.told.packet_outs.fetch_add(1, Ordering::Relaxed)),
            Body::Error(error) => anyhow::bail!("the controller says {:?}", error.error),
            _ => {}
        }
        Ok(())
    }

    fn multipart(&self, request: &MultipartRequest) -> Option<MultipartReply> {
        Some(match request {
            MultipartRequest::Desc => MultipartReply::Desc(Box::default()),
            MultipartRequest::PortDesc => MultipartReply::PortDesc((1..=self.ports).map(port).collect()),
            MultipartRequest::Flow(_) => MultipartReply::Flow(vec![]),
            MultipartRequest::MeterConfig(_) => MultipartReply::MeterConfig(vec![]),
            MultipartRequest::GroupDesc => MultipartReply::GroupDesc(vec![]),
            MultipartRequest::MeterFeatures => MultipartReply::MeterFeatures(MeterFeatures {
                max_meter: 1 << 20,
                ..MeterFeatures::default()
            }),
            _ => return None,
        })
    }

    /// Remembers what decides how packets are shown.
    fn note(&mut self, flow_mod: &FlowMod) {
        if flow_mod.command != FlowModCommand::Add {
            return;
        }
        let vlan = flow_mod.matching.fields.iter().find_map(|field| match field {
            OxmField::VlanVid(vid) => Some(vid.value & !ofp::VID_PRESENT),
            _ => None,
        });
        for instruction in &flow_mod.instructions {
            let Instruction::ApplyActions(actions) = instruction else { continue };
            for action in actions {
                match action {
                    Action::Output { port: PortNo::CONTROLLER, .. } => {
                        let entry = (flow_mod.table_id, flow_mod.cookie);
                        self.shown_by.insert(vlan.unwrap_or(0), entry);
                    }
                    Action::SetField(OxmField::VlanVid(vid)) => {
                        if let Some(OxmField::InPort(port)) = flow_mod.matching.field(ofp::Field::InPort) {
                            self.vlans.insert(port.0, vid.value & !ofp::VID_PRESENT);
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    fn show(&mut self, packet: &PacketOf) -> anyhow::Result<()> {
        let vlan = self.vlans.get(&packet.port).copied().unwrap_or(0);
        let entry = self.shown_by.get(&vlan).or_else(|| self.shown_by.get(&0));
        let &(table_id, cookie) = entry.context("no entry that sends packets to the controller")?;
        let mut data = vec![2, 0xee, 0, 0, 0, 1];
        data.extend(packet.mac);
        data.extend([8, 0]);
        data.resize(64, 0);
        let matching = Match::any().with(OxmField::InPort(PortNo(packet.port)));
        let packet_in = PacketIn {
            buffer_id: ofp::NO_BUFFER,
            total_len: 64,
            reason: PacketInReason::Action,
            table_id,
            cookie,
            matching,
            data,
        };
        self.send(0, Body::PacketIn(packet_in))
    }
}

fn port(number: u32) -> Port {
    let mac = MacAddr([2, 0xff, 0, 0, 0, number as u8]);
    Port { state: ofp::PortState::LIVE, ..Port::new(PortNo(number), mac, &format!("p{number}")) }
}
