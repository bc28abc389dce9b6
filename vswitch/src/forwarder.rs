//! What one worker does with packets: classify a batch, then carry out each verdict.
//!
//! ```text
//! header copy -> parse -> FlowKey --classify (batch of up to 32)--> VerdictId
//!                                    | hit: one cache line            |
//!                                    | miss: pipeline::decide         v
//!                                                            forward: edits on the header copy,
//!                                                            NORMAL/FLOOD resolved, Egress called per port
//! ```

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;

use packet::{Depth, Edit, FlowKey, Header, MacAddr, Outcome, edit, field, parse_to};

use crate::cache::{Entry, FlowCache, LINES_MAX, Place};
use crate::config::PacketInLimits;
use crate::fdb::Fdb;
use crate::groups::Group;
use crate::meters::{Metered, remark};
use crate::model::{
    DropReason, Op, Origin, PACKET_IN_QUEUE_MAX, PacketIn, PacketInReason, PacketOut, PortNo, Snapshot, Tail,
    Target, Verdict, is_physical,
};
use crate::pipeline::{self, Decision, OPS_MAX};
use crate::ports::EgressTag;
use crate::tables::TableStats;

/// What NORMAL did last in this batch: most packets of a batch have the same two addresses.
///
/// Forgotten with each batch, so it is never older than a batch is long.
#[derive(Default)]
struct Recent {
    /// VLAN, source and port that were learned.
    learned: Cell<Option<(u16, MacAddr, PortNo)>>,
    /// A packet that was sent as it came in: all of it that NORMAL looks at, and the port it was sent by.
    sent: Cell<Option<(Lead, PortNo)>>,
}

/// Ingress port of a packet, and its bytes up to the end of the first tag, if it has one.
type Lead = (PortNo, [u8; 16]);

/// The lead of a packet that is long enough for a tag and the type behind it.
#[inline]
fn lead(in_port: PortNo, header: &Header) -> Option<Lead> {
    let [lead @ .., _, _] = header.bytes().first_chunk::<18>()?;
    Some((in_port, *lead))
}

impl Recent {
    #[inline]
    fn forget(&self) {
        self.learned.set(None);
        self.sent.set(None);
    }

    #[inline]
    fn port_for(&self, in_port: PortNo, header: &Header) -> Option<PortNo> {
        let (sent, port) = self.sent.get()?;
        (lead(in_port, header) == Some(sent)).then_some(port)
    }
}

/// Packets that [`Forwarder::classify`] takes at once.
pub const BATCH_MAX: usize = 32;

/// A verdict of one [`Forwarder`]; valid until its next `classify` or `apply`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VerdictId(u32);

/// Where a forwarder puts what it decided: implemented by the worker for the packet at hand, whose payload
/// (everything from [`Header::consumed`] on) it knows.
pub trait Egress {
    /// Send the packet: `header`, then the payload. Called once for each port.
    fn send(&mut self, port: PortNo, header: &Header);
    /// A copy of the packet goes to the controller: complete `packet_in.frame` (it holds nothing yet) with up to
    /// `max_len` bytes of `header` and payload, set `total_len`, and send it.
    fn packet_in(&mut self, packet_in: PacketIn, max_len: u16, header: &Header);
    /// Bytes of the packet with this header.
    fn frame_bytes(&self, header: &Header) -> usize;
    /// The packet, or one of its copies, goes nowhere.
    fn dropped(&mut self, reason: DropReason);
    /// The same, on its way to this port.
    fn dropped_at(&mut self, _port: PortNo, reason: DropReason) {
        self.dropped(reason);
    }
    /// The packet takes a bucket of a group. For those who want to know the way.
    fn takes_bucket(&mut self, _group: &Group, _bucket: usize) {}
}

/// A packet on its way through groups.
struct Walk {
    in_port: PortNo,
    now_ms: u64,
    /// Who sent it there.
    origin: Origin,
    steps_left: usize,
}

/// One worker's view of the switch: its snapshot, its cache of decisions, the shared forwarding database.
pub struct Forwarder {
    worker: usize,
    /// Whether it leaves no trace of what it does.
    observes: bool,
    snapshot: Arc<Snapshot>,
    fdb: Arc<Fdb>,
    cache: FlowCache,
    verdicts: Verdicts,
    decision: Decision,
    places: [Place; BATCH_MAX],
    table_stats: Arc<TableStats>,
    recent: Recent,
    /// Packet-ins that each port may still cause, by port number; made when a port causes its first.
    packet_ins: RefCell<HashMap<PortNo, Allowance>>,
    /// See [`PacketInLimits::port`].
    packet_ins_per_second: u32,
}

/// Packet-ins that packets of one port can cause at once, if so many are allowed in a second: a quarter of the workers' queue
/// to the agent ([`PACKET_IN_QUEUE_MAX`]). So a guest cannot keep the controllers from hearing the others.
const PACKET_INS_AT_ONCE: u64 = PACKET_IN_QUEUE_MAX as u64 / 4;

/// A token bucket. A token has 1000 parts, so that each millisecond adds a whole number of them.
struct Allowance {
    parts: u64,
    filled_ms: u64,
}

impl Allowance {
    const TOKEN: u64 = 1000;

    fn full(per_second: u32, now_ms: u64) -> Allowance {
        Allowance { parts: Allowance::most(per_second), filled_ms: now_ms }
    }

    fn most(per_second: u32) -> u64 {
        PACKET_INS_AT_ONCE.min(per_second.into()) * Allowance::TOKEN
    }

    fn take(&mut self, per_second: u32, now_ms: u64) -> bool {
        let passed_ms = now_ms.saturating_sub(self.filled_ms);
        let filled = self.parts.saturating_add(passed_ms.saturating_mul(per_second.into()));
        self.parts = filled.min(Allowance::most(per_second));
        self.filled_ms = now_ms;
        let allowed = self.parts >= Allowance::TOKEN;
        if allowed {
            self.parts -= Allowance::TOKEN;
        }
        allowed
    }
}

/// The verdicts that entries of the cache refer to, each different one once.
struct Verdicts {
    list: Vec<Verdict>,
    by_ops: HashMap<Box<[Op]>, u32>,
    /// Whether some of them count for flows, and so hold those flows' counters.
    counting: bool,
}

/// Verdicts kept until the cache starts anew.
const VERDICTS_MAX: usize = 2 * LINES_MAX;

impl Verdicts {
    /// A verdict without steps for each reason to drop, at the number of the reason.
    fn new() -> Verdicts {
        let list = DropReason::ALL.into_iter().map(Verdict::dropping).collect();
        Verdicts { list, by_ops: HashMap::new(), counting: false }
    }

    fn number(&mut self, decision: &Decision) -> u32 {
        if decision.ops.is_empty() {
            return decision.drop.unwrap_or(DropReason::NoActions) as u32;
        }
        let number = self.list.len() as u32;
        if !decision.tails.is_empty() {
            self.counting = true;
        } else if let Some(number) = self.by_ops.get(decision.ops.as_slice()) {
            return *number;
        } else {
            self.by_ops.insert(decision.ops.as_slice().into(), number);
        }
        self.list.push(decision.verdict());
        number
    }
}

impl Forwarder {
    /// The forwarder of worker number `worker`. `seed`: see [`Fdb::new`].
    pub fn new(worker: usize, snapshot: Arc<Snapshot>, fdb: Arc<Fdb>, seed: u64) -> Forwarder {
        let table_stats = snapshot.tables.stats().clone();
        let mut forwarder = Forwarder {
            worker,
            observes: false,
            snapshot: snapshot.clone(),
            fdb,
            cache: FlowCache::new(worker, seed),
            verdicts: Verdicts::new(),
            decision: Decision::default(),
            places: [Place::NONE; BATCH_MAX],
            table_stats,
            recent: Recent::default(),
            packet_ins: RefCell::new(HashMap::new()),
            packet_ins_per_second: PacketInLimits::default().port,
        };
        forwarder.apply(snapshot);
        forwarder
    }

    /// So many packet-ins a second may packets of one port cause.
    #[must_use]
    pub fn with_packet_ins(self, per_second: u32) -> Forwarder {
        Forwarder { packet_ins_per_second: per_second, ..self }
    }

    /// A forwarder that only shows what would become of packets: it learns no addresses.
    pub fn observer(snapshot: Arc<Snapshot>, fdb: Arc<Fdb>) -> Forwarder {
        Forwarder { observes: true, ..Forwarder::new(0, snapshot, fdb, 0) }
    }

    /// Number of the worker.
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// The epoch in use.
    pub fn epoch(&self) -> u64 {
        self.snapshot.epoch
    }

    /// The snapshot in use.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Packets whose decision was found in the cache, and those that had to be decided.
    pub fn cache_counters(&self) -> (u64, u64) {
        (self.cache.hits, self.cache.misses)
    }

    /// Uses `snapshot` from now on.
    pub fn apply(&mut self, snapshot: Arc<Snapshot>) {
        self.snapshot = snapshot;
        self.table_stats = self.snapshot.tables.stats().clone();
        let ports = &self.snapshot.ports;
        self.packet_ins.get_mut().retain(|port, _| ports.contains(*port));
        if self.verdicts.counting {
            self.verdicts = Verdicts::new();
        }
        self.cache.expect(self.snapshot.tables.len());
        self.cache.invalidate(self.snapshot.tables.mask(), &self.table_stats);
    }

    /// How deep the current tables need packets parsed.
    #[inline]
    pub fn depth(&self) -> Depth {
        self.snapshot.tables.depth()
    }

    /// The key of a packet for [`Forwarder::classify`].
    #[inline]
    pub fn key(&self, header: &Header, in_port: PortNo) -> FlowKey {
        parse_to(header.bytes(), in_port.0, self.depth())
    }

    /// Decides on a batch: `keys[i]` of a packet of `bytes[i]` bytes gets `verdicts[i]`, and is counted on the
    /// flows that matched. The three slices have the same length, at most [`BATCH_MAX`]. `now_ms`: the switch's
    /// clock in milliseconds.
    pub fn classify(&mut self, keys: &[FlowKey], bytes: &[u32], verdicts: &mut [VerdictId], now_ms: u64) {
        let count = keys.len();
        assert!(bytes.len() == count && verdicts.len() == count && count <= BATCH_MAX);
        self.begin_batch();
        // Step by step for all of them: what one step asks for comes while it goes on.
        let places = &mut self.places[..count];
        places.iter_mut().zip(keys).for_each(|(place, key)| self.cache.place(key, place));
        places.iter_mut().for_each(|place| self.cache.find_likely(place));
        let ignoring = self.snapshot.ports.ignoring();
        for i in 0..count {
            if ignoring && self.snapshot.ports.ignores(PortNo(keys[i].get(field::IN_PORT) as u32)) {
                verdicts[i] = VerdictId(DropReason::PortBlocked as u32);
                continue;
            }
            verdicts[i] = match self.cache.hit(&self.places[i], bytes[i], now_ms, &self.table_stats) {
                Some(verdict) => VerdictId(verdict),
                None => self.miss(&keys[i], i, 1, bytes[i].into(), now_ms),
            };
        }
    }

    /// [`Forwarder::classify`] for a batch of `packets` packets with the same key and `bytes` bytes together.
    pub fn classify_alike(&mut self, key: &FlowKey, packets: usize, bytes: u64, now_ms: u64) -> VerdictId {
        assert!(packets <= BATCH_MAX);
        if self.snapshot.ports.ignores(PortNo(key.in_port())) {
            return VerdictId(DropReason::PortBlocked as u32);
        }
        self.begin_batch();
        self.cache.place(key, &mut self.places[0]);
        self.cache.find_likely(&mut self.places[0]);
        match self.cache.hit_many(&self.places[0], packets as u64, bytes, now_ms, &self.table_stats) {
            Some(verdict) => VerdictId(verdict),
            None => self.miss(key, 0, packets as u64, bytes, now_ms),
        }
    }

    #[inline]
    fn begin_batch(&mut self) {
        self.cache.grow_if_needed(&self.table_stats);
        self.recent.forget();
        if self.verdicts.list.len() > VERDICTS_MAX {
            self.verdicts = Verdicts::new();
            self.cache.invalidate(self.snapshot.tables.mask(), &self.table_stats);
        }
    }

    /// Decides on packets with this key, whose place is number `place` of the batch.
    #[cold]
    fn miss(&mut self, key: &FlowKey, place: usize, packets: u64, bytes: u64, now_ms: u64) -> VerdictId {
        let decision = &mut self.decision;
        pipeline::decide(&self.snapshot.tables, key, decision);
        let verdict = self.verdicts.number(decision);
        let (looked_up, hit) = (decision.looked_up, decision.hit);
        let entry = Entry { verdict, flows: &decision.matched, looked_up, hit };
        self.cache.insert(&self.places[place], &entry, packets, bytes, now_ms, &self.table_stats);
        VerdictId(verdict)
    }

    /// The steps of a verdict.
    #[inline]
    pub fn verdict(&self, id: VerdictId) -> &Verdict {
        &self.verdicts.list[id.0 as usize]
    }

    /// Carries out a verdict on a packet that came in on `in_port`. `header` is edited on the way.
    #[inline]
    pub fn forward(
        &self,
        id: VerdictId,
        in_port: PortNo,
        header: &mut Header,
        now_ms: u64,
        egress: &mut impl Egress,
    ) {
        let verdict = self.verdict(id);
        // What nearly all verdicts are takes no call.
        match *verdict.ops {
            [Op::Output(Target::Normal)] => match self.recent.port_for(in_port, header) {
                Some(port) => egress.send(port, header),
                None => self.normal(in_port, header, now_ms, egress),
            },
            [Op::Output(Target::Port(port))] if port != in_port && self.snapshot.ports.sends(port) => {
                egress.send(port, header);
            }
            _ => self.run(verdict, in_port, header, now_ms, egress),
        }
    }

    /// Carries out what a controller decided for a packet of its own.
    pub fn packet_out(&self, packet: &PacketOut, header: &mut Header, now_ms: u64, egress: &mut impl Egress) {
        self.recent.forget();
        self.run(&packet.verdict, packet.in_port, header, now_ms, egress);
    }

    /// Starts to move all that was counted so far into the flows' counters.
    pub fn start_drain(&mut self) {
        self.cache.start_drain();
    }

    /// Goes on with it, over at most `budget` flows; `true` = done.
    pub fn drain(&mut self, budget: usize) -> bool {
        self.cache.drain(budget, &self.table_stats)
    }

    #[inline(never)]
    fn run(
        &self,
        verdict: &Verdict,
        in_port: PortNo,
        header: &mut Header,
        now_ms: u64,
        egress: &mut impl Egress,
    ) {
        if verdict.ops.is_empty() {
            return egress.dropped(verdict.drop);
        }
        for op in &verdict.ops {
            match *op {
                Op::Edit(edit) => {
                    if !self.edit(edit, in_port, header, now_ms, egress) {
                        return;
                    }
                }
                Op::Output(target) => self.output(target, in_port, header, now_ms, egress),
                Op::Group { id, origin } => {
                    let mut walk = Walk { in_port, now_ms, origin, steps_left: OPS_MAX };
                    self.group(id, &mut walk, header, egress);
                }
                Op::Meter(id) => {
                    if !self.meter(id, header, now_ms, egress) {
                        return;
                    }
                }
                Op::Passed(tail) => self.count(verdict.tails.get(usize::from(tail)), header, now_ms, egress),
            }
        }
        if !verdict.sends {
            egress.dropped(verdict.drop);
        }
    }

    /// Counts a packet for the tables that it got to.
    #[cold]
    fn count(&self, tail: Option<&Tail>, header: &Header, now_ms: u64, egress: &mut impl Egress) {
        let Some(tail) = tail.filter(|_| !self.observes) else { return };
        // As it came in, as all flows count it.
        let bytes = egress.frame_bytes(header).saturating_add_signed(-header.grown()) as u64;
        for flow in &tail.flows {
            flow.cell(self.worker).add(1, bytes, now_ms);
        }
        self.table_stats.add(self.worker, tail.looked_up, tail.hit, 1);
    }

    /// Applies an edit; `false`: the packet ended here.
    #[inline]
    fn edit(
        &self,
        edit: Edit,
        in_port: PortNo,
        header: &mut Header,
        now_ms: u64,
        egress: &mut impl Egress,
    ) -> bool {
        match edit.apply(header) {
            Outcome::Done | Outcome::Absent => return true,
            Outcome::NoRoom => egress.dropped(DropReason::NoHeadroom),
            Outcome::Expired => {
                self.invalid_ttl(in_port, header, now_ms, egress);
                egress.dropped(DropReason::TtlExpired);
            }
        }
        false
    }

    /// Sends copies of a packet through a group.
    #[cold]
    fn group(&self, id: u32, walk: &mut Walk, header: &mut Header, egress: &mut impl Egress) {
        let live = self.snapshot.tables.groups.get(id);
        let buckets =
            live.map_or(0..0, |live| live.buckets(|| packet::parse(header.bytes(), walk.in_port.0)));
        if let Some(live) = live {
            let bytes = egress.frame_bytes(header) as u64;
            if !self.observes {
                live.group.stats.cell(self.worker).add(1, bytes, walk.now_ms);
            }
            for bucket in buckets.clone() {
                // Empty buckets cost a step too.
                walk.steps_left = walk.steps_left.saturating_sub(1);
                if walk.steps_left == 0 {
                    return egress.dropped(DropReason::NoActions);
                }
                if !self.observes {
                    live.group.bucket_stats[bucket].cell(self.worker).add(1, bytes, walk.now_ms);
                }
                egress.takes_bucket(&live.group, bucket);
                self.bucket(&live.group.ops[bucket], walk, header, egress);
            }
        }
        if buckets.is_empty() {
            egress.dropped(DropReason::NoLiveBucket);
        }
    }

    fn bucket(&self, ops: &[Op], walk: &mut Walk, header: &mut Header, egress: &mut impl Egress) {
        if ops.iter().all(|op| matches!(op, Op::Edit(_))) {
            egress.dropped(DropReason::NoActions);
        } else if ops.iter().any(|op| matches!(op, Op::Edit(_))) {
            self.bucket_steps(ops, walk, &mut header.clone(), egress);
        } else {
            self.bucket_steps(ops, walk, header, egress);
        }
    }

    fn bucket_steps(&self, ops: &[Op], walk: &mut Walk, header: &mut Header, egress: &mut impl Egress) {
        let Walk { in_port, now_ms, origin, .. } = *walk;
        for op in ops {
            if walk.steps_left == 0 {
                // Groups behind groups multiply: what one packet causes is bounded.
                return egress.dropped(DropReason::NoActions);
            }
            walk.steps_left -= 1;
            match *op {
                Op::Edit(edit) => {
                    if !self.edit(edit, in_port, header, now_ms, egress) {
                        return;
                    }
                }
                Op::Output(Target::Controller { max_len, reason, .. }) => {
                    let target = Target::Controller { max_len, reason, origin };
                    self.output(target, in_port, header, now_ms, egress);
                }
                Op::Output(target) => self.output(target, in_port, header, now_ms, egress),
                Op::Group { id, .. } => self.group(id, walk, header, egress),
                // Meters and tables belong to flows.
                Op::Meter(_) | Op::Passed(_) => {}
            }
        }
    }

    /// Lets a meter decide; `false`: the packet ended here.
    #[cold]
    fn meter(&self, id: u32, header: &mut Header, now_ms: u64, egress: &mut impl Egress) -> bool {
        // A meter that is gone has taken its flows along.
        let Some(meter) = self.snapshot.tables.meters.get(id).filter(|_| !self.observes) else { return true };
        match meter.take(self.worker, egress.frame_bytes(header), now_ms) {
            Metered::Pass => {}
            Metered::Remark(level) => {
                let key = packet::parse(header.bytes(), 0);
                remark(header, &key, level);
            }
            Metered::Drop => {
                egress.dropped(DropReason::Metered);
                return false;
            }
        }
        true
    }

    #[inline]
    fn output(
        &self,
        target: Target,
        in_port: PortNo,
        header: &mut Header,
        now_ms: u64,
        egress: &mut impl Egress,
    ) {
        match target {
            Target::Port(port) if port == in_port => egress.dropped(DropReason::IngressPort),
            Target::Port(port) => self.send(port, header, egress),
            Target::InPort => self.send(in_port, header, egress),
            Target::Normal => self.normal(in_port, header, now_ms, egress),
            Target::Flood => match self.vlan(in_port, header) {
                Some(vid) => self.flood(vid, in_port, header, egress),
                None => egress.dropped(DropReason::VlanNotAllowed),
            },
            Target::All => self.all(in_port, header, egress),
            Target::Controller { max_len, reason, origin } => {
                let frame = Box::default();
                let packet_in = PacketIn { in_port, reason, origin, total_len: 0, frame };
                self.controller(packet_in, max_len, header, now_ms, egress);
            }
        }
    }

    fn controller(
        &self,
        packet_in: PacketIn,
        max_len: u16,
        header: &Header,
        now_ms: u64,
        egress: &mut impl Egress,
    ) {
        let port = self.snapshot.ports.get(packet_in.in_port);
        if port.is_some_and(|port| port.config.contains(ofp::PortConfig::NO_PACKET_IN)) {
            egress.dropped(DropReason::PortBlocked);
        } else if self.may_cause_packet_in(packet_in.in_port, now_ms) {
            egress.packet_in(packet_in, max_len, header);
        } else {
            egress.dropped(DropReason::PacketInLimit);
        }
    }

    /// Controllers that asked for it (7.3.10) see the packet whose TTL ran out.
    #[cold]
    fn invalid_ttl(&self, in_port: PortNo, header: &Header, now_ms: u64, egress: &mut impl Egress) {
        let (reason, frame) = (PacketInReason::InvalidTtl, Box::default());
        let packet_in = PacketIn { in_port, reason, origin: Origin::NONE, total_len: 0, frame };
        // Cut to what each controller wants (`miss_send_len`) by the agent.
        self.controller(packet_in, ofp::CONTROLLER_LEN_NO_BUFFER, header, now_ms, egress);
    }

    fn may_cause_packet_in(&self, in_port: PortNo, now_ms: u64) -> bool {
        if !is_physical(in_port) {
            // A controller's own packet comes back to it: no guest's doing.
            return true;
        }
        let mut packet_ins = self.packet_ins.borrow_mut();
        let per_second = self.packet_ins_per_second;
        let allowance = packet_ins.entry(in_port).or_insert_with(|| Allowance::full(per_second, now_ms));
        allowance.take(per_second, now_ms)
    }

    #[inline]
    fn send(&self, port: PortNo, header: &Header, egress: &mut impl Egress) {
        let ports = &self.snapshot.ports;
        if ports.sends(port) {
            return egress.send(port, header);
        }
        let reason = match ports.get(port) {
            Some(config) if config.link_up => DropReason::PortBlocked,
            Some(_) => DropReason::LinkDown,
            None => DropReason::NoSuchPort,
        };
        egress.dropped_at(port, reason);
    }

    fn all(&self, in_port: PortNo, header: &Header, egress: &mut impl Egress) {
        for port in self.snapshot.ports.iter().filter(|port| port.sends() && port.ofport != in_port) {
            egress.send(port.ofport, header);
        }
    }

    /// The VLAN of a packet by its ingress port and tag.
    #[inline]
    fn vlan(&self, in_port: PortNo, header: &Header) -> Option<u16> {
        let tag = edit::outer_tci(header).map(|tci| tci & 0xfff);
        if !is_physical(in_port) {
            // From a controller: in the VLAN its tag says.
            return Some(tag.unwrap_or(0));
        }
        self.snapshot.ports.ingress_vlan(in_port, tag)
    }

    #[inline(never)]
    fn normal(&self, in_port: PortNo, header: &mut Header, now_ms: u64, egress: &mut impl Egress) {
        let Some(&[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5]) = header.bytes().first_chunk::<12>()
        else {
            return egress.dropped(DropReason::TooShort);
        };
        let (dst, src) = (MacAddr([d0, d1, d2, d3, d4, d5]), MacAddr([s0, s1, s2, s3, s4, s5]));
        let Some(vid) = self.vlan(in_port, header) else {
            return egress.dropped(DropReason::VlanNotAllowed);
        };
        let known = self.recent.learned.get() == Some((vid, src, in_port));
        if is_physical(in_port) && !self.observes && !known {
            self.fdb.learn(vid, src, in_port, (now_ms / 1000) as u32);
            self.recent.forget();
            self.recent.learned.set(Some((vid, src, in_port)));
        }
        if dst.is_multicast() {
            if dst.to_u64() & !0xf == 0x0180_c200_0000 {
                return egress.dropped(DropReason::LinkLocal);
            }
            return self.flood(vid, in_port, header, egress);
        }
        match self.fdb.lookup(vid, dst) {
            Some(port) if port == in_port => egress.dropped(DropReason::IngressPort),
            Some(port) => match self.snapshot.ports.egress_tag(port, vid) {
                Some(tag) if self.snapshot.ports.sends(port) => {
                    if self.send_tagged(port, vid, tag, header, egress) {
                        self.recent.sent.set(lead(in_port, header).map(|lead| (lead, port)));
                    }
                }
                // Learned before the port lost the VLAN or its peer: as if unknown.
                _ => self.flood(vid, in_port, header, egress),
            },
            None => self.flood(vid, in_port, header, egress),
        }
    }

    fn flood(&self, vid: u16, in_port: PortNo, header: &Header, egress: &mut impl Egress) {
        let mut sent = false;
        for port in self.snapshot.ports.iter().filter(|port| port.sends() && port.ofport != in_port) {
            if let Some(tag) = self.snapshot.ports.egress_tag(port.ofport, vid) {
                self.send_tagged(port.ofport, vid, tag, header, egress);
                sent = true;
            }
        }
        if !sent {
            egress.dropped(DropReason::NoOtherPort);
        }
    }

    /// Sends by `port` with the outer tag as the port wants it; `header` itself stays as it is. True if there was nothing
    /// to be changed.
    fn send_tagged(
        &self,
        port: PortNo,
        vid: u16,
        tag: EgressTag,
        header: &Header,
        egress: &mut impl Egress,
    ) -> bool {
        let outer = edit::outer_tci(header);
        let as_it_is = match tag {
            EgressTag::Untagged => outer.is_none(),
            EgressTag::Tagged => outer.is_some_and(|tci| tci & 0xfff == vid),
        };
        if as_it_is {
            egress.send(port, header);
            return true;
        }
        let mut copy = header.clone();
        let done = match tag {
            EgressTag::Untagged => edit::pop_vlan(&mut copy),
            // A priority tag becomes the VLAN's tag and keeps its priority.
            EgressTag::Tagged if outer.is_some() => edit::set_vlan_vid(&mut copy, vid),
            EgressTag::Tagged => {
                edit::push_vlan(&mut copy, packet::ethertype::VLAN) && edit::set_vlan_vid(&mut copy, vid)
            }
        };
        if done {
            egress.send(port, &copy);
        } else {
            egress.dropped(DropReason::NoHeadroom);
        }
        false
    }
}
