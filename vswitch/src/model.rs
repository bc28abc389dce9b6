//! What the pipeline, the agent, the ports and the workers say to each other.
//!
//! The control side ([`crate::bridge::Bridge`]) owns ports and flow tables and publishes them as one immutable
//! [`Snapshot`]; the data path is reached through [`SwitchControl`]. Workers decide with a
//! [`crate::forwarder::Forwarder`] of their own and hand packets for the controller to a [`PacketInSender`].

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

pub use ofp::PortNo;
use packet::{Edit, MacAddr};
use tokio::sync::{mpsc, oneshot};

use crate::flow::FlowStats;
use crate::ports::Ports;
use crate::tables::Tables;

/// The highest number a port of the switch can have.
pub const PORT_NO_LAST: PortNo = PortNo(0xfeff);

/// Whether `port` is a number that a port of the switch can have: none of the reserved ones of OpenFlow 1.3.5, 7.2.1.
pub const fn is_physical(port: PortNo) -> bool {
    port.0 >= 1 && port.0 <= PORT_NO_LAST.0
}

/// A set of VLAN ids, 0..4096.
#[derive(Clone, PartialEq, Eq)]
pub struct VlanSet(Box<[u64; 64]>);

impl VlanSet {
    /// No VLAN.
    pub fn none() -> VlanSet {
        VlanSet(Box::new([0; 64]))
    }

    /// Every VLAN.
    pub fn all() -> VlanSet {
        VlanSet(Box::new([u64::MAX; 64]))
    }

    /// Adds a VLAN; the high bits of `vid` are ignored.
    pub fn insert(&mut self, vid: u16) {
        self.0[usize::from(vid >> 6) & 63] |= 1 << (vid & 63);
    }

    /// Whether the VLAN is in the set.
    #[inline]
    pub fn contains(&self, vid: u16) -> bool {
        self.0[usize::from(vid >> 6) & 63] & (1 << (vid & 63)) != 0
    }

    /// The ids in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (0..4096).filter(|vid| self.contains(*vid))
    }
}

impl FromIterator<u16> for VlanSet {
    fn from_iter<I: IntoIterator<Item = u16>>(vids: I) -> VlanSet {
        let mut set = VlanSet::none();
        vids.into_iter().for_each(|vid| set.insert(vid));
        set
    }
}

impl fmt::Debug for VlanSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// How a port takes part in VLANs when packets are switched by NORMAL or FLOOD. An explicit output action sends
/// packets as they are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VlanMode {
    /// Untagged member of one VLAN (1..=4094, or 0: the untagged network). Tagged packets are dropped, except
    /// priority tags (VID 0), which are taken off.
    Access(u16),
    /// Tagged member of `allowed`; untagged packets belong to `native`, or are dropped without one.
    Trunk {
        /// VLANs that pass tagged.
        allowed: VlanSet,
        /// VLAN of untagged packets, untagged on the way out.
        native: Option<u16>,
    },
}

/// A port as the control side knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortConfig {
    /// Its OpenFlow number, `1..=PORT_NO_LAST`.
    pub ofport: PortNo,
    /// Its name; OpenFlow shows the first 15 bytes.
    pub name: String,
    /// Its hardware address in port descriptions; not the guest's.
    pub mac: MacAddr,
    /// VLAN membership.
    pub vlan: VlanMode,
    /// Largest IP packet, bytes, without the Ethernet header.
    pub mtu: u16,
    /// Whether somebody is attached and the carrier is up: link state in OpenFlow, flooding target or not.
    pub link_up: bool,
    /// Speed for port descriptions, kbit/s.
    pub speed_kbps: u32,
    /// What controllers want of it by port-mods (`OFPPC_*`, OpenFlow 1.3.5, 7.2.1); not kept over a restart.
    pub config: ofp::PortConfig,
}

impl PortConfig {
    /// Whether frames can leave by the port: its link is up and no controller switched that off.
    pub fn sends(&self) -> bool {
        let off = ofp::PortConfig::PORT_DOWN | ofp::PortConfig::NO_FWD;
        self.link_up && self.config.0 & off.0 == 0
    }

    /// Whether frames from the port are dropped because a controller wants it so.
    pub fn ignores(&self) -> bool {
        let off = ofp::PortConfig::PORT_DOWN | ofp::PortConfig::NO_RECV;
        self.config.0 & off.0 != 0
    }

    /// Whether the port is live (`OFPPS_LIVE`): its link is up, and the port was not switched off.
    pub fn is_live(&self) -> bool {
        self.link_up && !self.config.contains(ofp::PortConfig::PORT_DOWN)
    }
}

/// Counters of a port since it was made, summed over workers: OpenFlow 1.3.5, 7.3.5.6.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortCounters {
    /// Packets from the port.
    pub rx_packets: u64,
    /// Packets to the port.
    pub tx_packets: u64,
    /// Bytes from the port.
    pub rx_bytes: u64,
    /// Bytes to the port.
    pub tx_bytes: u64,
    /// Packets from the port that were dropped.
    pub rx_dropped: u64,
    /// Packets to the port that were dropped (ring full, no buffer).
    pub tx_dropped: u64,
    /// Malformed packets from the port.
    pub rx_errors: u64,
    /// Errors while sending.
    pub tx_errors: u64,
}

/// Why a packet went nowhere (or not to one of its targets). Every drop has one, and a counter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum DropReason {
    /// Shorter than an Ethernet header.
    TooShort,
    /// No flow matched and the table has no miss entry.
    TableMiss,
    /// The matching flow has no output.
    NoActions,
    /// The output port does not exist.
    NoSuchPort,
    /// The output port has no peer or no carrier.
    LinkDown,
    /// A controller switched receiving, sending or packet-ins of the port off (port-mod).
    PortBlocked,
    /// The only target was the ingress port itself.
    IngressPort,
    /// The VLAN is not a member of the ingress port.
    VlanNotAllowed,
    /// NORMAL or FLOOD found no other port in the VLAN.
    NoOtherPort,
    /// Destination is a link-local bridge address (01:80:c2:00:00:0x), which bridges do not forward.
    LinkLocal,
    /// An edit found no room, for example too many pushed tags.
    NoHeadroom,
    /// TTL or hop limit ran out.
    TtlExpired,
    /// The port's share of packet-ins, or what the controllers can take, is used up.
    PacketInLimit,
    /// Larger than the target's MTU and not segmentable.
    TooLong,
    /// The target's ring has no free buffer.
    RingFull,
    /// The target's buffers are too small for the packet.
    BufferTooSmall,
    /// The sender's virtio header is malformed.
    BadHeader,
    /// Above the rate of a meter.
    Metered,
    /// No bucket of the group is live.
    NoLiveBucket,
    /// A fragment of an IP packet, which a controller wants dropped (`OFPC_FRAG_DROP`).
    Fragment,
}

impl DropReason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [DropReason; 20] = [
        DropReason::TooShort,
        DropReason::TableMiss,
        DropReason::NoActions,
        DropReason::NoSuchPort,
        DropReason::LinkDown,
        DropReason::PortBlocked,
        DropReason::IngressPort,
        DropReason::VlanNotAllowed,
        DropReason::NoOtherPort,
        DropReason::LinkLocal,
        DropReason::NoHeadroom,
        DropReason::TtlExpired,
        DropReason::PacketInLimit,
        DropReason::TooLong,
        DropReason::RingFull,
        DropReason::BufferTooSmall,
        DropReason::BadHeader,
        DropReason::Metered,
        DropReason::NoLiveBucket,
        DropReason::Fragment,
    ];

    /// The reason in words.
    pub const fn words(self) -> &'static str {
        match self {
            DropReason::TooShort => "shorter than an Ethernet header",
            DropReason::TableMiss => "no flow matched and the table has no miss entry",
            DropReason::NoActions => "the matching flow has no output",
            DropReason::NoSuchPort => "the output port does not exist",
            DropReason::LinkDown => "the output port has no peer or no carrier",
            DropReason::PortBlocked => {
                "a controller switched receiving, sending or packet-ins of the port off (port-mod)"
            }
            DropReason::IngressPort => "the only target was the ingress port itself",
            DropReason::VlanNotAllowed => "the VLAN is not a member of the ingress port",
            DropReason::NoOtherPort => "NORMAL or FLOOD found no other port in the VLAN",
            DropReason::LinkLocal => {
                "the destination is a link-local bridge address (01:80:c2:00:00:0x), which bridges do not forward"
            }
            DropReason::NoHeadroom => "an edit found no room, for example too many pushed tags",
            DropReason::TtlExpired => "the TTL or hop limit ran out",
            DropReason::PacketInLimit => {
                "the port's share of packet-ins, or what the controllers can take, is used up"
            }
            DropReason::TooLong => "larger than the target's MTU and not segmentable",
            DropReason::RingFull => "the target's ring has no free buffer",
            DropReason::BufferTooSmall => "the target's buffers are too small for the packet",
            DropReason::BadHeader => "the sender's virtio header is malformed",
            DropReason::Metered => "above the rate of a meter",
            DropReason::NoLiveBucket => "no bucket of the group is live",
            DropReason::Fragment => {
                "a fragment of an IP packet, which a controller wants dropped (set-config)"
            }
        }
    }

    /// The label in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            DropReason::TooShort => "too_short",
            DropReason::TableMiss => "table_miss",
            DropReason::NoActions => "no_actions",
            DropReason::NoSuchPort => "no_such_port",
            DropReason::LinkDown => "link_down",
            DropReason::PortBlocked => "port_blocked",
            DropReason::IngressPort => "ingress_port",
            DropReason::VlanNotAllowed => "vlan_not_allowed",
            DropReason::NoOtherPort => "no_other_port",
            DropReason::LinkLocal => "link_local",
            DropReason::NoHeadroom => "no_headroom",
            DropReason::TtlExpired => "ttl_expired",
            DropReason::PacketInLimit => "packet_in_limit",
            DropReason::TooLong => "too_long",
            DropReason::RingFull => "ring_full",
            DropReason::BufferTooSmall => "buffer_too_small",
            DropReason::BadHeader => "bad_header",
            DropReason::Metered => "metered",
            DropReason::NoLiveBucket => "no_live_bucket",
            DropReason::Fragment => "fragment",
        }
    }
}

/// Why a packet goes to the controller: `ofp_packet_in_reason`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PacketInReason {
    /// No flow matched: a table-miss entry (priority 0, no match) sent it.
    TableMiss,
    /// A flow's action sent it.
    Action,
    /// Its TTL ran out.
    InvalidTtl,
}

/// One step of a verdict.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    /// Change the packet; later outputs send the changed one.
    Edit(Edit),
    /// Send it as it is now.
    Output(Target),
    /// Send a copy through a group.
    Group {
        /// The group.
        id: u32,
        /// For packet-ins.
        origin: Origin,
    },
    /// Let a meter decide whether the packet goes on.
    Meter(u32),
    /// The packet came so far: the tables from here on count it ([`Verdict::tails`], by number).
    Passed(u8),
}

/// Where an output goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Target {
    /// One port, unless it is the ingress port.
    Port(PortNo),
    /// The ingress port.
    InPort,
    /// By MAC learning, within the VLAN.
    Normal,
    /// All ports of the VLAN but the ingress.
    Flood,
    /// All ports but the ingress.
    All,
    /// Copy to the controller.
    Controller {
        /// Bytes of the frame to send; 0xffff (`OFPCML_NO_BUFFER`) = all.
        max_len: u16,
        /// Why, as the packet-in says.
        reason: PacketInReason,
        /// Where from, as the packet-in says.
        origin: Origin,
    },
}

/// The flow that sends a packet to somebody, and what the tables noted beside the packet: packet-ins tell both (7.4.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Origin {
    /// Its table.
    pub table: u8,
    /// Its cookie.
    pub cookie: u64,
    /// Metadata by then.
    pub metadata: u64,
    /// Tunnel id by then.
    pub tunnel_id: u64,
}

impl Origin {
    /// No flow.
    pub const NONE: Origin = Origin { table: 0, cookie: u64::MAX, metadata: 0, tunnel_id: 0 };
}

/// What to do with a packet: steps in order; no steps = drop for `drop`.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The steps.
    pub ops: Box<[Op]>,
    /// Why packets end here, if there is no output among the steps.
    pub drop: DropReason,
    /// Whether there is an output among the steps.
    pub sends: bool,
    /// Who counts a packet only when it was not ended by a step before: [`Op::Passed`].
    pub tails: Box<[Tail]>,
}

/// The tables behind a step that may end a packet.
#[derive(Clone, Debug, Default)]
pub struct Tail {
    /// Counters of the flows that match there.
    pub flows: Vec<FlowStats>,
    /// Bit `t`: table `t` was looked up.
    pub looked_up: u64,
    /// Bit `t`: a flow of table `t` matched.
    pub hit: u64,
}

impl Verdict {
    /// No steps.
    pub fn dropping(drop: DropReason) -> Verdict {
        Verdict { ops: Box::default(), drop, sends: false, tails: Box::default() }
    }

    /// The target if the verdict is one output and nothing else: the fast road.
    #[inline]
    pub fn single(&self) -> Option<Target> {
        match *self.ops {
            [Op::Output(target)] => Some(target),
            _ => None,
        }
    }
}

/// Ports and tables of one moment, published to the workers as a whole.
#[derive(Clone)]
pub struct Snapshot {
    /// Grows with every publication; workers tag cached decisions with it.
    pub epoch: u64,
    /// The flow tables.
    pub tables: Tables,
    /// The ports.
    pub ports: Arc<Ports>,
}

impl Snapshot {
    /// What workers start with: no ports, no flows, every packet is dropped.
    pub fn initial(workers: usize) -> Snapshot {
        Snapshot { epoch: 0, tables: Tables::empty(workers, false), ports: Arc::default() }
    }
}

/// The switch's clock: monotonic, the same for all threads, and never 0.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Clock {
        Clock(Instant::now())
    }

    /// Milliseconds since a moment before the start.
    pub fn now_ms(&self) -> u64 {
        self.at_ms(Instant::now())
    }

    /// What the clock shows at `instant`.
    pub fn at_ms(&self, instant: Instant) -> u64 {
        instant.saturating_duration_since(self.0).as_millis() as u64 + 1
    }
}

/// A packet on its way to the controllers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PacketIn {
    /// Where it came in.
    pub in_port: PortNo,
    /// Why it is sent.
    pub reason: PacketInReason,
    /// Where from.
    pub origin: Origin,
    /// Length of the whole frame, bytes.
    pub total_len: u16,
    /// The frame as it was when it was sent to the controller, cut at the action's `max_len`.
    pub frame: Box<[u8]>,
}

/// A packet that a controller sends out, decided already.
#[derive(Clone, Debug)]
pub struct PacketOut {
    /// The frame.
    pub frame: Box<[u8]>,
    /// Its ingress port for NORMAL, FLOOD, ALL and IN_PORT; `PortNo::CONTROLLER` if it has none.
    pub in_port: PortNo,
    /// What to do with it.
    pub verdict: Verdict,
}

/// Packet-ins that may wait for the agent; beyond that they are dropped and counted.
pub const PACKET_IN_QUEUE_MAX: usize = 1024;

/// The workers' end of the bounded queue of packet-ins. Clone it for each worker.
#[derive(Clone, Debug)]
pub struct PacketInSender {
    queue: mpsc::Sender<PacketIn>,
    dropped: Arc<AtomicU64>,
}

/// The agent's end of the queue of packet-ins.
#[derive(Debug)]
pub struct PacketInReceiver {
    /// Packet-ins in the order the workers sent them.
    pub queue: mpsc::Receiver<PacketIn>,
    dropped: Arc<AtomicU64>,
}

/// The queue that takes packet-ins from the workers to the agent.
pub fn packet_in_queue() -> (PacketInSender, PacketInReceiver) {
    let (sender, receiver) = mpsc::channel(PACKET_IN_QUEUE_MAX);
    let dropped = Arc::new(AtomicU64::new(0));
    (
        PacketInSender { queue: sender, dropped: dropped.clone() },
        PacketInReceiver { queue: receiver, dropped },
    )
}

impl PacketInSender {
    /// Queues a packet-in; never waits. `false` = the queue is full or nobody listens: dropped and counted.
    pub fn send(&self, packet_in: PacketIn) -> bool {
        let sent = self.queue.try_send(packet_in).is_ok();
        if !sent {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        sent
    }
}

impl PacketInReceiver {
    /// How many packet-ins found the queue full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// A promise of several workers: when the last clone is dropped, the [`Passed`] that was made with it is ready.
#[derive(Clone, Debug)]
pub struct Fence {
    _alive: Arc<oneshot::Sender<()>>,
}

/// Ready when every clone of its [`Fence`] was dropped.
#[derive(Debug)]
pub struct Passed(oneshot::Receiver<()>);

impl Fence {
    /// A fence and the future that waits for it.
    pub fn new() -> (Fence, Passed) {
        let (sender, receiver) = oneshot::channel();
        (Fence { _alive: Arc::new(sender) }, Passed(receiver))
    }
}

impl Passed {
    /// Blocks the calling thread until the fence has passed. Not for async code.
    pub fn wait(self) {
        // The sender is only ever dropped, never used: an error is the signal.
        let _ = self.0.blocking_recv();
    }
}

impl Future for Passed {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(context).map(|_| ())
    }
}

/// What the control side asks of the data path. Every call returns at once; calls of one thread reach each
/// worker in the order they were made.
pub trait SwitchControl: Send + Sync + 'static {
    /// How many workers there are: constant, at least 1. Worker `i` counts into cell `i` of each flow.
    fn workers(&self) -> usize;

    /// Every worker shall use this snapshot from now on (`Forwarder::apply`).
    fn publish(&self, snapshot: Arc<Snapshot>);

    /// Every worker drops its clone when it has done all that was sent to it before: the snapshot decides every
    /// packet from now on, packet-outs are in their ports' rings.
    fn fence(&self, fence: Fence);

    /// Every worker drops its clone when every packet it counted before is in the flows' counters
    /// (`Forwarder::start_drain`, then `Forwarder::drain` with a budget in each round until it says so).
    fn drain_counters(&self, fence: Fence);

    /// A packet from a controller. `false` = too many are waiting; the agent answers with an error.
    fn packet_out(&self, packet: PacketOut) -> bool;

    /// Counters of the port since it was made; `None` = no such port.
    fn port_counters(&self, port: PortNo) -> Option<PortCounters>;
}
