//! What would become of a frame, and why: the tables as workers have them, the same [`pipeline::decide`], the same
//! forwarder, and nothing is sent, learned or counted.

use std::sync::Arc;

use packet::{FlowKey, Header, field, parse};
use serde::Serialize;

use crate::bridge::Bridge;
use crate::forwarder::{Egress, Forwarder};
use crate::groups::{Group, GroupKind};
use crate::model::{DropReason, PacketIn, PacketInReason, PacketOut, PortNo, Snapshot};
use crate::openflow::{convert, match_parts, rule_text};
use crate::pipeline::{self, Decision, Visit};

/// A table on the way of a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct TraceStep {
    /// The table.
    pub table: u8,
    /// The rule that decided, as `ovs-ofctl` writes it; none if no rule matched.
    pub rule: Option<String>,
    /// Its cookie.
    pub cookie: Option<u64>,
    /// Why it was this rule.
    pub because: String,
    /// What earlier tables had changed of the frame by then, metadata included.
    pub changed: Vec<String>,
}

/// A bucket of a group on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct TraceBucket {
    /// The group.
    pub group: u32,
    /// Place of the bucket in the group, from 0.
    pub bucket: usize,
    /// Why this one.
    pub because: String,
}

/// A frame that leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct TraceOutput {
    /// Number of the port; none if it goes to the controllers.
    pub ofport: Option<u32>,
    /// Name of the port.
    pub port: String,
    /// The frame, hexadecimal; to the controllers as much as they are sent.
    pub frame: String,
    /// What of it is not as it came in.
    pub changed: Vec<String>,
}

/// What becomes of a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Trace {
    /// The port it comes in by.
    pub port: String,
    /// Number of that port.
    pub ofport: u32,
    /// The frame, hexadecimal.
    pub frame: String,
    /// Its fields, as `ovs-ofctl` writes them.
    pub fields: String,
    /// The tables, in the order in which they were asked.
    pub tables: Vec<TraceStep>,
    /// What NORMAL and FLOOD go by, if the frame gets there.
    pub learning: Option<String>,
    /// The buckets of groups that it, or copies of it, take, in order.
    pub buckets: Vec<TraceBucket>,
    /// What leaves.
    pub outputs: Vec<TraceOutput>,
    /// Why it, or copies of it, go nowhere.
    pub drops: Vec<String>,
}

/// Follows a frame that comes in by a port.
pub fn trace(bridge: &Bridge, in_port: PortNo, frame: &[u8]) -> Trace {
    let snapshot = bridge.snapshot();
    let key = parse(frame, in_port.0);
    let mut decision = Decision::explained();
    let mut collect = Collect {
        payload: frame,
        snapshot: &snapshot,
        original: key,
        buckets: vec![],
        outputs: vec![],
        drops: vec![],
    };
    if snapshot.ports.ignores(in_port) {
        collect.dropped(DropReason::PortBlocked);
    } else {
        pipeline::decide(&snapshot.tables, &key, &mut decision);
        let packet = PacketOut { frame: frame.into(), in_port, verdict: decision.verdict() };
        let forwarder = Forwarder::observer(snapshot.clone(), bridge.fdb().clone());
        forwarder.packet_out(&packet, &mut Header::of(frame), bridge.clock().now_ms(), &mut collect);
    }
    let Collect { buckets, outputs, drops, .. } = collect;
    let visits = decision.visits.take().unwrap_or_default();
    Trace {
        port: name_of(&snapshot, in_port),
        ofport: in_port.0,
        frame: hex(frame),
        fields: fields(&key).join(","),
        tables: visits.iter().map(|visit| step(bridge, &snapshot, visit, &key)).collect(),
        learning: decision.uses_learning().then(|| learning(bridge, &snapshot, in_port, &key)),
        buckets,
        outputs,
        drops,
    }
}

fn name_of(snapshot: &Snapshot, port: PortNo) -> String {
    snapshot.ports.get(port).map_or_else(|| port.to_string(), |config| config.name.clone())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All fields that a key has.
fn fields(key: &FlowKey) -> Vec<String> {
    // What is zero of these is not there.
    let mut mask = FlowKey::from_words([u64::MAX; packet::WORDS]).with(field::IN_PHY_PORT, 0);
    for absent in [field::METADATA, field::TUNNEL_ID, field::IPV6_EXTHDR] {
        if key.get(absent) == 0 {
            mask.set(absent, 0);
        }
    }
    match_parts(&convert::matching(key, &mask))
}

/// The fields of `now` that are not as in `before`.
fn changed(before: &FlowKey, now: &FlowKey) -> Vec<String> {
    let before = fields(before);
    fields(now).into_iter().filter(|field| !before.contains(field)).collect()
}

fn step(bridge: &Bridge, snapshot: &Arc<Snapshot>, visit: &Visit, original: &FlowKey) -> TraceStep {
    let changed = changed(original, &visit.key);
    let rules = snapshot.tables.table(visit.table).map_or(0, crate::tables::Table::len);
    let Some(flow) = &visit.flow else {
        let normal = visit.table == 0 && snapshot.tables.normal_on_miss();
        let because = match (rules, normal) {
            (_, true) => "there are no rules and no controller: switched by learned addresses".to_string(),
            (0, _) => "the table has no rules".to_string(),
            (rules, _) => format!("none of its {rules} rules matches"),
        };
        return TraceStep { table: visit.table, rule: None, cookie: None, because, changed };
    };
    let stats = convert::flow_stats(flow, bridge.clock().now_ms());
    let parts = match_parts(&stats.matching);
    let because = match (parts.is_empty(), flow.priority) {
        (true, 0) => format!("no other of the table's {rules} rules matches: its table-miss entry"),
        (true, _) => format!("it matches every frame, and none of higher priority matches ({rules} rules)"),
        (false, _) => {
            format!("the frame is {}; none of higher priority matches ({rules} rules)", parts.join(", "))
        }
    };
    TraceStep {
        table: visit.table,
        rule: Some(rule_text(&stats)),
        cookie: Some(flow.cookie),
        because,
        changed,
    }
}

/// What NORMAL knows of the frame as it came in.
fn learning(bridge: &Bridge, snapshot: &Snapshot, in_port: PortNo, key: &FlowKey) -> String {
    let tag = key.vlan_vid();
    let vid = snapshot.ports.ingress_vlan(in_port, tag);
    let Some(vid) = vid else { return "the port is in no VLAN that the frame could be of".to_string() };
    let dst = key.eth_dst();
    let network = if vid == 0 { "the untagged network".to_string() } else { format!("VLAN {vid}") };
    if dst.is_multicast() {
        return format!("{network}, {dst} is a group: flooded");
    }
    match bridge.fdb().lookup(vid, dst) {
        Some(port) => format!("{network}, {dst} was learned on port {port} ({})", name_of(snapshot, port)),
        None => format!("{network}, {dst} is unknown: flooded"),
    }
}

/// Takes what would be sent.
struct Collect<'a> {
    payload: &'a [u8],
    snapshot: &'a Snapshot,
    original: FlowKey,
    buckets: Vec<TraceBucket>,
    outputs: Vec<TraceOutput>,
    drops: Vec<String>,
}

impl Collect<'_> {
    fn frame(&self, header: &Header) -> Vec<u8> {
        [header.bytes(), &self.payload[header.consumed().min(self.payload.len())..]].concat()
    }

    fn output(&mut self, ofport: Option<u32>, port: String, frame: &[u8]) {
        let now = parse(frame, self.original.in_port());
        let changed = changed(&self.original, &now);
        self.outputs.push(TraceOutput { ofport, port, frame: hex(frame), changed });
    }
}

impl Egress for Collect<'_> {
    fn send(&mut self, port: PortNo, header: &Header) {
        let frame = self.frame(header);
        self.output(Some(port.0), name_of(self.snapshot, port), &frame);
    }

    fn packet_in(&mut self, packet_in: PacketIn, max_len: u16, header: &Header) {
        let reason = match packet_in.reason {
            PacketInReason::TableMiss => "table miss",
            PacketInReason::Action => "action",
            PacketInReason::InvalidTtl => "the TTL ran out",
        };
        let mut frame = self.frame(header);
        if max_len != ofp::CONTROLLER_LEN_NO_BUFFER {
            frame.truncate(max_len.into());
        }
        self.output(None, format!("the controllers ({reason}, table {})", packet_in.origin.table), &frame);
    }

    fn frame_bytes(&self, header: &Header) -> usize {
        header.bytes().len() + self.payload.len().saturating_sub(header.consumed())
    }

    fn dropped(&mut self, reason: DropReason) {
        self.drops.push(format!("{}: {}", reason.name(), reason.words()));
    }

    fn dropped_at(&mut self, port: PortNo, reason: DropReason) {
        let (name, words, known) = (reason.name(), reason.words(), name_of(self.snapshot, port));
        self.drops.push(format!("{name}: {words} (port {port}, {known})"));
    }

    fn takes_bucket(&mut self, group: &Group, bucket: usize) {
        let count = group.config.buckets.len();
        let because = match group.config.kind {
            GroupKind::All => format!("each of its {count} buckets gets a copy"),
            GroupKind::Select => {
                format!("one of {count} by weight, always the same for a flow while it is live")
            }
            GroupKind::Indirect => "it is the only one".to_string(),
            GroupKind::FastFailover => format!("the first of {count} that is live"),
        };
        self.buckets.push(TraceBucket { group: group.config.id, bucket, because });
    }
}

/// Reads a frame: hexadecimal, or the words of [`crate::frame_words`].
pub fn read_frame(text: &str, errors: &mut telemetry::check::Errors) -> Option<Vec<u8>> {
    let digits: String = text.chars().filter(|c| !c.is_whitespace() && *c != ':').collect();
    if digits.len() >= 28 && digits.chars().all(|c| c.is_ascii_hexdigit()) {
        if !digits.len().is_multiple_of(2) || digits.len() > 2 * FRAME_BYTES_MAX {
            let detail = format!("has {} digits: half a byte too many, or more than fit", digits.len());
            errors.add("frame", text, detail, format!("give 14 to {FRAME_BYTES_MAX} bytes"));
            return None;
        }
        let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap_or(0);
        return Some((0..digits.len()).step_by(2).map(byte).collect());
    }
    crate::frame_words::FrameWords::parse(text, "frame", errors).map(|words| words.frame())
}

/// Longest frame that can be followed, bytes.
const FRAME_BYTES_MAX: usize = 9216;
