//! One switch in session, without I/O: messages and wishes in, messages out. Time is an argument.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ofp::{
    Body, ErrorCode, Field, FlowMod, FlowModCommand, FlowModFlags, FlowRemoved, Match, Message,
    MultipartReply, MultipartRequest, OxmField, PacketIn, Port, PortNo, PortState, PortStatus,
    PortStatusReason, Reassembler,
};
use tokio::sync::oneshot;

use crate::addresses::{Addresses, DESTINATION_TIMEOUT_S, Lesson, SOURCE_TIMEOUT_S};
use crate::entry::{self, Cookie, FlowBody, FlowKey};
use crate::metrics::Metrics;
use crate::model::{Desired, Dpid};
use crate::plan::{self, Owner, Plan};
use crate::reconcile::{Flows, reconcile};

/// How long a switch may take to tell its flow entries, or to answer a barrier.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long after somebody else deleted entries of ours they are written again: not at once, because two controllers
/// that disagree must not spin.
const REPAIR_DELAY: Duration = Duration::from_secs(1);
/// How often old addresses are forgotten.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(10);
/// Flow entries in one answer at most.
pub const ENTRIES_MAX: usize = 200_000;

/// A rule that the switch refused.
#[derive(Clone, PartialEq, Debug)]
pub struct Refusal {
    /// The rule.
    pub key: FlowKey,
    /// The switch's error; `None` when the rule is too long for a message.
    pub error: Option<ErrorCode>,
}

/// What others may know of a switch in session.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Whether everything that can be had is in the switch.
    pub settled: bool,
    /// Its ports.
    pub ports: BTreeMap<PortNo, Port>,
    /// What it refused, by whom it was for.
    pub refusals: BTreeMap<Owner, Vec<Refusal>>,
    /// What cannot be had now, by whom it is for.
    pub obstacles: BTreeMap<Owner, Vec<String>>,
    /// Rules in it, without learned ones.
    pub flows: usize,
    /// Addresses learned.
    pub addresses: usize,
}

/// The switch broke the protocol or its promises; the session ends.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// No answer for too long.
    #[error("no answer to {request} within {} s", PATIENCE.as_secs())]
    Silent {
        /// The request.
        request: &'static str,
    },
    /// It refused what every switch must answer.
    #[error("it refused {request}: {error}")]
    Refused {
        /// The request.
        request: &'static str,
        /// Its error.
        error: ErrorCode,
    },
    /// Its parts make no answer.
    #[error("its answer is no good")]
    Reassembly(#[from] ofp::ReassemblyError),
}

/// A flow-mod on its way.
struct Sent {
    key: FlowKey,
    body: Option<FlowBody>,
    before: Option<FlowBody>,
}

enum Phase {
    /// Waits for the flow entries it has.
    Reading {
        xid: u32,
        parts: Reassembler,
    },
    Idle,
    /// Waits for the barrier behind a change.
    Changing {
        barrier: u32,
        sent: HashMap<u32, Sent>,
        waiting: Vec<oneshot::Sender<Arc<Status>>>,
    },
}

/// One switch in session.
pub struct Datapath {
    dpid: Dpid,
    metrics: Arc<Metrics>,
    desired: Arc<Desired>,
    ports: BTreeMap<PortNo, Port>,
    plan: Plan,
    installed: Flows,
    refused: HashMap<FlowKey, (FlowBody, Option<ErrorCode>)>,
    addresses: Addresses,
    phase: Phase,
    since: Instant,
    /// Whether the plan has to be made anew.
    dirty: bool,
    repair_at: Option<Instant>,
    expire_at: Instant,
    waiting: Vec<oneshot::Sender<Arc<Status>>>,
    finished: Vec<oneshot::Sender<Arc<Status>>>,
    changed: bool,
    out: Vec<Message>,
    xid: u32,
}

impl Datapath {
    /// A switch whose session begins; its first message asks for the entries it has. `xid` is the last one used.
    pub fn new(
        dpid: Dpid,
        ports: BTreeMap<PortNo, Port>,
        desired: Arc<Desired>,
        metrics: Arc<Metrics>,
        xid: u32,
        now: Instant,
    ) -> Datapath {
        let mut datapath = Datapath {
            dpid,
            metrics,
            desired,
            ports,
            plan: Plan::default(),
            installed: Flows::new(),
            refused: HashMap::new(),
            addresses: Addresses::default(),
            phase: Phase::Idle,
            since: now,
            dirty: true,
            repair_at: None,
            expire_at: now + EXPIRY_INTERVAL,
            waiting: Vec::new(),
            finished: Vec::new(),
            changed: true,
            out: Vec::new(),
            xid,
        };
        let request = MultipartRequest::Flow(entry::ours_request());
        let xid = datapath.send(Body::MultipartRequest(request));
        datapath.phase = Phase::Reading { xid, parts: Reassembler::new(ENTRIES_MAX) };
        datapath
    }

    fn send(&mut self, body: Body) -> u32 {
        self.xid = self.xid.wrapping_add(1);
        self.out.push(Message { xid: self.xid, body });
        self.xid
    }

    /// The messages to send.
    pub fn take_out(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.out)
    }

    /// Those whose wishes are done; to be told when the status is published.
    pub fn take_finished(&mut self) -> Vec<oneshot::Sender<Arc<Status>>> {
        std::mem::take(&mut self.finished)
    }

    /// Whether an answer to a long request is under way.
    pub fn is_reading(&self) -> bool {
        matches!(self.phase, Phase::Reading { .. })
    }

    /// What others may know, if that changed since the last call.
    pub fn take_status(&mut self) -> Option<Arc<Status>> {
        std::mem::take(&mut self.changed).then(|| Arc::new(self.status()))
    }

    fn status(&self) -> Status {
        let mut refusals = BTreeMap::<Owner, Vec<Refusal>>::new();
        for (key, (_, error)) in &self.refused {
            let owner = self.plan.owners.get(key).cloned().unwrap_or(Owner::Networks);
            refusals.entry(owner).or_default().push(Refusal { key: key.clone(), error: *error });
        }
        refusals.values_mut().for_each(|list| list.sort_by(|a, b| a.key.cmp(&b.key)));
        Status {
            settled: !self.dirty && matches!(self.phase, Phase::Idle),
            ports: self.ports.clone(),
            refusals,
            obstacles: self.plan.obstacles.clone(),
            flows: self.installed.len(),
            addresses: self.addresses.len(),
        }
    }

    /// The operator wants something else; `done` is told when the switch has it, or has refused it.
    pub fn wish(&mut self, now: Instant, desired: Arc<Desired>, done: oneshot::Sender<Arc<Status>>) {
        self.desired = desired;
        self.changed = true;
        self.dirty = true;
        self.waiting.push(done);
        self.change(now);
    }

    /// A message from the switch.
    ///
    /// # Errors
    /// The switch is of no use; the session is to be closed.
    pub fn receive(&mut self, now: Instant, message: Message) -> Result<(), Broken> {
        match message.body {
            Body::MultipartReplyMore(reply) => self.part(now, message.xid, true, reply),
            Body::MultipartReply(reply) => self.part(now, message.xid, false, reply),
            Body::Error(error) => self.error(message.xid, error.error),
            Body::BarrierReply => {
                self.barrier(now, message.xid);
                Ok(())
            }
            Body::PacketIn(packet_in) => {
                self.packet_in(now, &packet_in);
                Ok(())
            }
            Body::PortStatus(status) => {
                self.port_status(now, status);
                Ok(())
            }
            Body::FlowRemoved(removed) => {
                self.flow_removed(now, &removed);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// When [`Datapath::tick`] has something to do.
    pub fn deadline(&self) -> Instant {
        let patience = (!matches!(self.phase, Phase::Idle)).then_some(self.since + PATIENCE);
        [patience, self.repair_at].into_iter().flatten().fold(self.expire_at, Instant::min)
    }

    /// Time has passed.
    ///
    /// # Errors
    /// The switch was silent for too long.
    pub fn tick(&mut self, now: Instant) -> Result<(), Broken> {
        if now >= self.since + PATIENCE {
            match self.phase {
                Phase::Reading { .. } => {
                    return Err(Broken::Silent { request: "the request for its flow entries" });
                }
                Phase::Changing { .. } => return Err(Broken::Silent { request: "a barrier" }),
                Phase::Idle => {}
            }
        }
        if self.repair_at.is_some_and(|at| now >= at) {
            self.repair_at = None;
            self.dirty = true;
            self.change(now);
        }
        if now >= self.expire_at {
            self.expire_at = now + EXPIRY_INTERVAL;
            self.addresses.expire(now);
            self.changed = true;
        }
        Ok(())
    }

    fn part(&mut self, now: Instant, xid: u32, more: bool, reply: MultipartReply) -> Result<(), Broken> {
        let Phase::Reading { xid: expected, parts } = &mut self.phase else { return Ok(()) };
        if xid != *expected {
            return Ok(());
        }
        let Some(MultipartReply::Flow(entries)) = parts.push(xid, more, reply)? else { return Ok(()) };
        self.plan = Plan::new(&self.desired, self.dpid, &self.ports);
        let mut learned = Vec::new();
        for stats in &entries {
            let (key, body) = entry::from_stats(stats);
            match Cookie::from_number(body.cookie) {
                Some(Cookie::Learned(_)) => learned.push((key, body, stats.duration_sec)),
                Some(_) => drop(self.installed.insert(key, body)),
                // The switch told more than was asked for; it is not ours to touch.
                None => {}
            }
        }
        self.adopt(now, learned);
        self.phase = Phase::Idle;
        self.dirty = true;
        self.changed = true;
        self.change(now);
        Ok(())
    }

    /// Takes over the addresses learned in an earlier session, where they are still right.
    fn adopt(&mut self, now: Instant, mut learned: Vec<(FlowKey, FlowBody, u32)>) {
        // Destinations first: a source rule without its destination would hide a host from us while it is flooded to.
        learned.sort_by_key(|(key, _, _)| std::cmp::Reverse(key.table));
        for (key, body, age) in learned {
            let right = match plan::read_learned(&key, &body) {
                Some((vlan, mac, port, destination)) => match self.plan.members.get(&(vlan, port)) {
                    Some(&tagging) if destination => {
                        let age = Duration::from_secs(age.into());
                        self.addresses.insert(vlan, mac, port, now.checked_sub(age).unwrap_or(now));
                        plan::destination_rule(vlan, mac, port, tagging) == (key.clone(), body)
                    }
                    Some(_) => {
                        self.addresses.port_of(vlan, mac) == Some(port)
                            && plan::source_rule(vlan, mac, port) == (key.clone(), body)
                    }
                    None => false,
                },
                None => false,
            };
            if !right {
                if let Some((vlan, mac, _, true)) = plan::read_learned(&key, &FlowBody::new(0, &[])) {
                    self.addresses.forget(vlan, mac);
                }
                self.delete(&key);
            }
        }
    }

    fn delete(&mut self, key: &FlowKey) -> u32 {
        self.metrics.flow_deletes.add(1);
        self.send(Body::FlowMod(entry::delete(key)))
    }

    /// Sends what is needed to have what is wanted, unless something is under way: then that is done at its end.
    fn change(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Idle) || !self.dirty {
            return;
        }
        self.dirty = false;
        self.changed = true;
        let plan = Plan::new(&self.desired, self.dpid, &self.ports);
        self.forget_former_members(&plan);
        self.plan = plan;
        self.refused.retain(|key, (body, _)| self.plan.flows.get(key) == Some(body));
        let mut wanted = self.plan.flows.clone();
        for key in self.refused.keys() {
            // Not sent again, and what was there before stays as it is.
            match self.installed.get(key) {
                Some(before) => drop(wanted.insert(key.clone(), before.clone())),
                None => drop(wanted.remove(key)),
            }
        }
        let changes = reconcile(&wanted, &self.installed);
        let waiting = std::mem::take(&mut self.waiting);
        if changes.is_empty() {
            self.finished.extend(waiting);
            return;
        }
        let mut sent = HashMap::with_capacity(changes.add.len() + changes.delete.len());
        for (key, body) in changes.add {
            let message = Message { xid: 0, body: Body::FlowMod(entry::add(&key, &body)) };
            if message.encode().is_err() {
                self.refused.insert(key, (body, None));
                continue;
            }
            self.metrics.flow_adds.add(1);
            let xid = self.send(message.body);
            let before = self.installed.insert(key.clone(), body.clone());
            sent.insert(xid, Sent { key, body: Some(body), before });
        }
        for key in changes.delete {
            let xid = self.delete(&key);
            let before = self.installed.remove(&key);
            sent.insert(xid, Sent { key, body: None, before });
        }
        let barrier = self.send(Body::BarrierRequest);
        self.since = now;
        self.phase = Phase::Changing { barrier, sent, waiting };
    }

    /// Deletes what was learned on ports that leave a network, or change their tagging in it.
    fn forget_former_members(&mut self, plan: &Plan) {
        let former: Vec<_> = self
            .plan
            .members
            .iter()
            .filter(|(member, tagging)| plan.members.get(*member) != Some(*tagging))
            .map(|(&(vlan, port), _)| (vlan, port))
            .collect();
        for &(vlan, port) in &former {
            self.forget_learned(Some(vlan), port);
        }
        self.addresses.retain(|vlan, port| !former.contains(&(vlan, port)));
    }

    /// Deletes the learned rules of a port, in one VLAN or in all.
    fn forget_learned(&mut self, vlan: Option<u16>, port: PortNo) {
        let in_vlan = vlan.map(|vlan| OxmField::VlanVid(ofp::Masked::exact(ofp::VID_PRESENT | vlan)));
        let fields =
            |first: Option<OxmField>| Match { fields: first.into_iter().chain(in_vlan.clone()).collect() };
        let delete = |table_id, matching, out_port| FlowMod {
            cookie: Cookie::Learned(0).number(),
            cookie_mask: Cookie::KIND_MASK,
            table_id,
            matching,
            out_port,
            ..FlowMod::new(FlowModCommand::Delete)
        };
        let sources = delete(plan::LEARN, fields(Some(OxmField::InPort(port))), PortNo::ANY);
        let destinations = delete(plan::FORWARD, fields(None), port);
        for flow_mod in [destinations, sources] {
            self.metrics.flow_deletes.add(1);
            self.send(Body::FlowMod(flow_mod));
        }
    }

    fn error(&mut self, xid: u32, error: ErrorCode) -> Result<(), Broken> {
        self.metrics.errors.add(1);
        match &mut self.phase {
            Phase::Reading { xid: request, .. } if *request == xid => {
                Err(Broken::Refused { request: "the request for its flow entries", error })
            }
            Phase::Changing { barrier, .. } if *barrier == xid => {
                Err(Broken::Refused { request: "a barrier", error })
            }
            Phase::Changing { sent, .. } => {
                // A delete that is refused leaves nothing that could be repaired: read back at the next session.
                if let Some(Sent { key, body: Some(body), before }) = sent.remove(&xid) {
                    match before {
                        Some(before) => drop(self.installed.insert(key.clone(), before)),
                        None => drop(self.installed.remove(&key)),
                    }
                    self.refused.insert(key, (body, Some(error)));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn barrier(&mut self, now: Instant, xid: u32) {
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Changing { barrier, waiting, .. } if barrier == xid => {
                self.metrics.reconciled(now.saturating_duration_since(self.since));
                self.finished.extend(waiting);
                self.changed = true;
                self.change(now);
            }
            other => self.phase = other,
        }
    }

    fn packet_in(&mut self, now: Instant, packet_in: &PacketIn) {
        let Some(Cookie::Network(vlan)) = Cookie::from_number(packet_in.cookie) else { return };
        let Some(OxmField::InPort(port)) = packet_in.matching.field(Field::InPort) else { return };
        let port = *port;
        let Some(&[s0, s1, s2, s3, s4, s5]) = packet_in.data.get(6..12).and_then(|s| s.first_chunk::<6>())
        else {
            return;
        };
        let mac = ofp::MacAddr([s0, s1, s2, s3, s4, s5]);
        let Some(&tagging) = self.plan.members.get(&(vlan, port)) else { return };
        if mac.is_group() || mac == ofp::MacAddr::default() {
            return;
        }
        match self.addresses.seen(now, vlan, mac, port) {
            Lesson::Known => return,
            Lesson::Refused => return self.metrics.refused_packets.add(1),
            Lesson::Moved(from) => {
                let (key, _) = plan::source_rule(vlan, mac, from);
                self.delete(&key);
            }
            Lesson::Learn => {}
        }
        self.metrics.learned.add(1);
        // The destination first: once the source rule is there we are not shown this host for a while.
        let destination = plan::destination_rule(vlan, mac, port, tagging);
        let source = plan::source_rule(vlan, mac, port);
        for ((key, body), hard_timeout) in [(destination, DESTINATION_TIMEOUT_S), (source, SOURCE_TIMEOUT_S)]
        {
            let flow_mod = FlowMod { hard_timeout, flags: FlowModFlags(0), ..entry::add(&key, &body) };
            self.metrics.flow_adds.add(1);
            self.send(Body::FlowMod(flow_mod));
        }
    }

    fn port_status(&mut self, now: Instant, status: PortStatus) {
        let PortStatus { reason, port } = status;
        let number = port.port_no;
        let down = port.state.contains(PortState::LINK_DOWN) || reason == PortStatusReason::Delete;
        if down && self.plan.members.keys().any(|&(_, member)| member == number) {
            // Its hosts may come up elsewhere.
            self.forget_learned(None, number);
            self.addresses.retain(|_, port| port != number);
        }
        self.changed = true;
        let before = self.ports.get(&number).map(|port| port.name);
        let after = (reason != PortStatusReason::Delete).then_some(port.name);
        if reason == PortStatusReason::Delete {
            self.ports.remove(&number);
        } else if self.ports.contains_key(&number) || self.ports.len() < PORTS_MAX {
            self.ports.insert(number, port);
        }
        if before != after {
            // What was refused for want of this port may be taken now.
            self.refused.clear();
            self.dirty = true;
            self.change(now);
        }
    }

    fn flow_removed(&mut self, now: Instant, removed: &FlowRemoved) {
        let key = FlowKey::new(removed.table_id, removed.priority, &removed.matching);
        // Deletions of our own were taken off the list when they were sent.
        if self.installed.get(&key).is_some_and(|body| body.cookie == removed.cookie) {
            self.installed.remove(&key);
            self.repair_at.get_or_insert(now + REPAIR_DELAY);
        }
    }
}

/// Ports of one switch at most.
pub const PORTS_MAX: usize = 65_536;
