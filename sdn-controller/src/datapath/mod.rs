//! One switch in session, without I/O: messages and wishes in, messages out. Time is an argument.

mod ask;
mod change;
mod guard;
mod learn;
mod role;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ofp::{
    Body, BundleControl, BundleControlType, BundleFlags, ErrorCode, FlowMod, FlowRemoved, FlowStats,
    FlowStatsRequest, MacAddr, Message, MeterConfig, MultipartReply, MultipartRequest, Port, PortNo,
    PortState, PortStatus, PortStatusReason, Reassembler,
};
use tokio::sync::oneshot;

use crate::addresses::Addresses;
use crate::controller::Options;
use crate::discovery::Probes;
use crate::entry::{self, Cookie, FlowKey, MeterBody};
use crate::layout::SwitchLayout;
use crate::metrics::Metrics;
use crate::model::Dpid;
use crate::plan::{Abilities, Owner, Plan};
use crate::reconcile::{Flows, Meters};

use ask::Asks;
pub use ask::{Answer, AskError};
use change::Sent;
pub use guard::Reason;
use guard::{Guard, Probing};
use role::{Election, Turn};

/// How long a switch may take to tell its flow entries, or to answer a barrier.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long after somebody else deleted entries of ours they are written again: not at once, because two controllers
/// that disagree must not spin.
const REPAIR_DELAY: Duration = Duration::from_secs(1);
/// Why nothing is done at a switch that another controller leads.
const STANDBY: &str = "another controller leads the switch; it gets this from us when we do";
/// How often old addresses are forgotten.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(10);
/// Flow entries in one answer at most.
pub const ENTRIES_MAX: usize = 200_000;
/// Ports of one switch at most.
pub const PORTS_MAX: usize = 65_536;

/// What a switch refused.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Refused {
    /// A flow entry.
    Flow(FlowKey),
    /// A meter.
    Meter(u32),
}

/// A rule that the switch refused.
#[derive(Clone, PartialEq, Debug)]
pub struct Refusal {
    /// The rule.
    pub what: Refused,
    /// The switch's error; `None` when the rule is too long for a message.
    pub error: Option<ErrorCode>,
}

/// What others may know of a switch in session.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Whether everything that can be had is in the switch.
    pub settled: bool,
    /// Our role at it.
    pub role: &'static str,
    /// Its ports that are shut, and why.
    pub shut: BTreeMap<PortNo, Reason>,
    /// Its ports.
    pub ports: BTreeMap<PortNo, Port>,
    /// What it refused, by whom it was for.
    pub refusals: BTreeMap<Owner, Vec<Refusal>>,
    /// What cannot be had now, by whom it is for.
    pub obstacles: BTreeMap<Owner, Vec<String>>,
    /// Rules in it, without learned ones.
    pub flows: usize,
    /// Meters in it.
    pub meters: usize,
    /// Addresses learned.
    pub addresses: usize,
    /// What it can do.
    pub abilities: Abilities,
}

/// Something that happened on a switch and that others want to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Happening {
    /// A port came, went or changed.
    Port {
        /// Its number.
        port: PortNo,
        /// Its name.
        name: String,
        /// Whether packets can pass; `None`: it is gone.
        up: Option<bool>,
    },
    /// A probe that left elsewhere came in: there is a link.
    Link {
        /// Where it left.
        from: (Dpid, PortNo),
        /// Where it came in.
        port: PortNo,
    },
    /// An address moves between ports all the time.
    Flapping {
        /// VLAN id.
        vlan: u16,
        /// The address.
        mac: MacAddr,
        /// Where it was last.
        from: PortNo,
        /// Where it is.
        to: PortNo,
    },
    /// A port is shut for a while.
    Shut {
        /// The port.
        port: PortNo,
        /// Why.
        reason: Reason,
        /// Where the probe left, or came in, that shows the loop.
        other: Option<(u64, PortNo)>,
        /// For how long, unless it goes on.
        seconds: u64,
    },
    /// A port is open again.
    Opened {
        /// The port.
        port: PortNo,
    },
    /// An address appeared at another port.
    Moved {
        /// VLAN id.
        vlan: u16,
        /// The address.
        mac: MacAddr,
        /// Where it was.
        from: PortNo,
        /// Where it is.
        to: PortNo,
    },
}

/// What to do with flow entries that are not ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Foreign {
    /// Leave them alone.
    #[default]
    Keep,
    /// Delete them when the switch connects.
    Remove,
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

/// What a session is told when it begins.
pub struct Setup {
    /// The switch.
    pub dpid: Dpid,
    /// What the controller does by itself.
    pub options: Options,
    /// What makes probes, if they are sent.
    pub probes: Option<Arc<Probes>>,
    /// The counters.
    pub metrics: Arc<Metrics>,
}

/// Told when a wish is done.
pub type Done = oneshot::Sender<Arc<Status>>;

/// What is known of a switch while it is read back.
struct Reading {
    /// Requests: flow entries, meters, what meters it has, a bundle, and the barrier behind them.
    flows: u32,
    meters: u32,
    meter_features: u32,
    bundle: u32,
    barrier: u32,
    parts: Reassembler,
    entries: Option<Vec<FlowStats>>,
    configs: Vec<MeterConfig>,
    abilities: Abilities,
    barrier_passed: bool,
}

enum Phase {
    /// Another controller leads the switch, or it is not known yet who does.
    Standby,
    /// Waits for what the switch has.
    Reading(Box<Reading>),
    Idle,
    /// Waits for the barrier behind a change.
    Changing {
        barrier: u32,
        sent: HashMap<u32, Sent>,
        /// Whether it went out as a bundle, and whether that failed.
        bundle: Option<bool>,
        waiting: Vec<Done>,
    },
}

/// One switch in session.
pub struct Datapath {
    dpid: Dpid,
    election: Option<Election>,
    guard: Guard,
    probing: Option<Probing>,
    /// How long ports are shut.
    hold: Option<Duration>,
    metrics: Arc<Metrics>,
    foreign: Foreign,
    layout: Arc<SwitchLayout>,
    ports: BTreeMap<PortNo, Port>,
    abilities: Abilities,
    plan: Plan,
    installed: Flows,
    meters: Meters,
    refused: HashMap<FlowKey, (entry::FlowBody, Option<ErrorCode>)>,
    refused_meters: HashMap<u32, (MeterBody, ErrorCode)>,
    addresses: Addresses,
    phase: Phase,
    since: Instant,
    /// Whether the plan has to be made anew.
    dirty: bool,
    repair_at: Option<Instant>,
    expire_at: Instant,
    waiting: Vec<Done>,
    finished: Vec<Done>,
    happenings: Vec<Happening>,
    asks: Asks,
    changed: bool,
    out: Vec<Message>,
    xid: u32,
    bundle_id: u32,
}

impl Datapath {
    /// A switch whose session begins; its first messages ask for what it has. `xid` is the last one used.
    pub fn new(
        ports: BTreeMap<PortNo, Port>,
        layout: Arc<SwitchLayout>,
        setup: Setup,
        xid: u32,
        now: Instant,
    ) -> Datapath {
        let Setup { dpid, options, probes, metrics } = setup;
        let probing = options.probe_interval.zip(probes);
        let mut datapath = Datapath {
            dpid,
            metrics,
            foreign: options.foreign,
            guard: Guard::new(probing.as_ref().map(|_| now)),
            probing,
            hold: options.loop_hold,
            election: options.priority.map(|priority| Election::new(priority, now)),
            layout,
            ports,
            abilities: Abilities::default(),
            plan: Plan::default(),
            installed: Flows::new(),
            meters: Meters::new(),
            refused: HashMap::new(),
            refused_meters: HashMap::new(),
            addresses: Addresses::default(),
            phase: Phase::Standby,
            since: now,
            dirty: true,
            repair_at: None,
            expire_at: now + EXPIRY_INTERVAL,
            waiting: Vec::new(),
            finished: Vec::new(),
            happenings: Vec::new(),
            asks: Asks::default(),
            changed: true,
            out: Vec::new(),
            xid,
            bundle_id: 1,
        };
        match datapath.election {
            None => datapath.read_back(now),
            Some(_) => datapath.campaign(now),
        }
        datapath
    }

    /// Asks the switch for what it has; from then on we drive it.
    fn read_back(&mut self, now: Instant) {
        let request = match self.foreign {
            Foreign::Keep => entry::ours_request(),
            Foreign::Remove => FlowStatsRequest::default(),
        };
        let mut ask = |request| self.send(Body::MultipartRequest(request));
        let flows = ask(MultipartRequest::Flow(request));
        let meters = ask(MultipartRequest::MeterConfig(ofp::meter::ALL));
        let meter_features = ask(MultipartRequest::MeterFeatures);
        let bundle = self.send(self.bundle(BundleControlType::OpenRequest));
        let barrier = self.send(Body::BarrierRequest);
        self.since = now;
        self.phase = Phase::Reading(Box::new(Reading {
            flows,
            meters,
            meter_features,
            bundle,
            barrier,
            parts: Reassembler::new(ENTRIES_MAX),
            entries: None,
            configs: Vec::new(),
            abilities: Abilities::default(),
            barrier_passed: false,
        }));
    }

    /// Says to the switch what is due about who leads it.
    fn campaign(&mut self, now: Instant) {
        let Some(request) = self.election.as_mut().and_then(|election| election.due(now)) else { return };
        let xid = self.send(request);
        if let Some(election) = &mut self.election {
            election.sent(xid, now);
        }
    }

    fn turn(&mut self, now: Instant, turn: Turn) {
        match turn {
            Turn::None => {}
            Turn::Lead => {
                self.changed = true;
                self.read_back(now);
            }
            Turn::Follow => self.stand_by(),
        }
        self.campaign(now);
    }

    /// Another controller drives the switch: what is in it is its business, and will be read back when it is ours again.
    fn stand_by(&mut self) {
        if let Phase::Changing { waiting, .. } = std::mem::replace(&mut self.phase, Phase::Standby) {
            self.finished.extend(waiting);
        }
        self.plan = Plan::default();
        self.installed.clear();
        self.meters.clear();
        self.refused.clear();
        self.refused_meters.clear();
        self.addresses = Addresses::default();
        self.repair_at = None;
        self.dirty = true;
        self.changed = true;
        self.finished.append(&mut self.waiting);
    }

    /// Who drives the switch, in the words of the specification.
    fn role(&self) -> &'static str {
        match (&self.election, &self.phase) {
            (None, _) => "equal",
            (_, Phase::Standby) => "slave",
            _ => "master",
        }
    }

    fn bundle(&self, kind: BundleControlType) -> Body {
        let flags = BundleFlags(BundleFlags::ATOMIC.0 | BundleFlags::ORDERED.0);
        Body::BundleControl(BundleControl { bundle_id: self.bundle_id, kind, flags, properties: vec![] })
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
    pub fn take_finished(&mut self) -> Vec<Done> {
        std::mem::take(&mut self.finished)
    }

    /// What happened since the last call.
    pub fn take_happenings(&mut self) -> Vec<Happening> {
        std::mem::take(&mut self.happenings)
    }

    /// Whether an answer to a long request is under way.
    pub fn is_reading(&self) -> bool {
        matches!(self.phase, Phase::Reading(_)) || !self.asks.is_empty()
    }

    /// What others may know, if that changed since the last call.
    pub fn take_status(&mut self) -> Option<Arc<Status>> {
        std::mem::take(&mut self.changed).then(|| Arc::new(self.status()))
    }

    /// The addresses learned: VLAN, address, port, and how long ago.
    pub fn addresses(&self, now: Instant) -> Vec<(u16, MacAddr, PortNo, Duration)> {
        self.addresses.list(now)
    }

    fn status(&self) -> Status {
        let mut refusals = BTreeMap::<Owner, Vec<Refusal>>::new();
        let mut refuse = |owner: Option<&Owner>, what, error| {
            let owner = owner.cloned().unwrap_or(Owner::Networks);
            refusals.entry(owner).or_default().push(Refusal { what, error });
        };
        for (key, (_, error)) in &self.refused {
            refuse(self.plan.owners.get(key), Refused::Flow(key.clone()), *error);
        }
        for (id, (_, error)) in &self.refused_meters {
            refuse(self.plan.meter_owners.get(id), Refused::Meter(*id), Some(*error));
        }
        refusals.values_mut().for_each(|list| list.sort_by(|a, b| a.what.cmp(&b.what)));
        let mut obstacles = self.plan.obstacles.clone();
        if matches!(self.phase, Phase::Standby) {
            obstacles.entry(Owner::Networks).or_default().push(STANDBY.to_owned());
        }
        Status {
            role: self.role(),
            shut: self.guard.shut().collect(),
            settled: !self.dirty && matches!(self.phase, Phase::Idle),
            ports: self.ports.clone(),
            refusals,
            obstacles,
            flows: self.installed.len(),
            meters: self.meters.len(),
            addresses: self.addresses.len(),
            abilities: self.abilities,
        }
    }

    /// The operator wants something else; `done` is told when the switch has it, or has refused it.
    pub fn wish(&mut self, now: Instant, layout: Arc<SwitchLayout>, done: Done) {
        if !Arc::ptr_eq(&self.layout, &layout) {
            self.layout = layout;
            self.dirty = true;
        }
        self.changed = true;
        self.waiting.push(done);
        self.change(now);
        if matches!(self.phase, Phase::Idle | Phase::Standby) {
            self.finished.append(&mut self.waiting);
        }
    }

    /// A message from the switch.
    ///
    /// # Errors
    /// The switch is of no use; the session is to be closed.
    pub fn receive(&mut self, now: Instant, message: Message) -> Result<(), Broken> {
        let xid = message.xid;
        match message.body {
            Body::MultipartReplyMore(reply) => self.part(now, xid, true, reply)?,
            Body::MultipartReply(reply) => self.part(now, xid, false, reply)?,
            Body::RoleReply(reply) if self.election.as_mut().is_some_and(|e| e.takes(xid)) => {
                let turn = self.election.as_mut().map_or(Turn::None, |e| e.answered(now, reply));
                self.turn(now, turn);
            }
            Body::Error(error) if self.election.is_some() && self.deposed(now, xid, error.error) => {}
            Body::Error(error) => self.error(xid, error.error)?,
            Body::BarrierReply => self.barrier(now, xid),
            Body::BundleControl(control) => self.bundle_answer(xid, control.kind),
            Body::PacketIn(_) | Body::FlowRemoved(_) if matches!(self.phase, Phase::Standby) => {}
            Body::PacketIn(packet_in) => self.packet_in(now, &packet_in),
            Body::PortStatus(status) => self.port_status(now, status),
            Body::FlowRemoved(removed) => self.flow_removed(now, &removed),
            answer => self.asks.answer(xid, answer),
        }
        Ok(())
    }

    /// Whether an error is about who leads the switch.
    fn deposed(&mut self, now: Instant, xid: u32, error: ErrorCode) -> bool {
        let Some(election) = &mut self.election else { return false };
        if election.takes(xid) {
            if Election::has_none(error) {
                // Then every controller drives it, and so do we.
                self.election = None;
                self.read_back(now);
                return true;
            }
        } else if error != ErrorCode::IS_SLAVE || !election.leads() {
            return false;
        }
        let turn = election.lose(now);
        self.turn(now, turn);
        true
    }

    /// When [`Datapath::tick`] has something to do.
    pub fn deadline(&self) -> Instant {
        let busy = !matches!(self.phase, Phase::Idle | Phase::Standby);
        let patience = busy.then_some(self.since + PATIENCE);
        let election = self.election.as_ref().map(Election::deadline);
        let times = [patience, self.repair_at, self.asks.deadline(), election, self.guard.deadline()];
        times.into_iter().flatten().fold(self.expire_at, Instant::min)
    }

    /// Time has passed.
    ///
    /// # Errors
    /// The switch was silent for too long.
    pub fn tick(&mut self, now: Instant) -> Result<(), Broken> {
        if now >= self.since + PATIENCE {
            match self.phase {
                Phase::Reading(_) => {
                    return Err(Broken::Silent { request: "the request for its flow entries" });
                }
                Phase::Changing { .. } => return Err(Broken::Silent { request: "a barrier" }),
                Phase::Idle | Phase::Standby => {}
            }
        }
        self.campaign(now);
        self.watch(now);
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
        self.asks.expire(now);
        Ok(())
    }

    fn part(&mut self, now: Instant, xid: u32, more: bool, reply: MultipartReply) -> Result<(), Broken> {
        let Phase::Reading(reading) = &mut self.phase else {
            self.asks.part(xid, more, reply);
            return Ok(());
        };
        if ![reading.flows, reading.meters, reading.meter_features].contains(&xid) {
            self.asks.part(xid, more, reply);
            return Ok(());
        }
        match reading.parts.push(xid, more, reply)? {
            Some(MultipartReply::Flow(entries)) if xid == reading.flows => reading.entries = Some(entries),
            Some(MultipartReply::MeterConfig(configs)) if xid == reading.meters => reading.configs = configs,
            Some(MultipartReply::MeterFeatures(features)) if xid == reading.meter_features => {
                reading.abilities.meter_max = features.max_meter;
            }
            _ => {}
        }
        self.read(now);
        Ok(())
    }

    fn bundle_answer(&mut self, xid: u32, kind: BundleControlType) {
        let Phase::Reading(reading) = &mut self.phase else { return };
        if reading.bundle == xid && kind == BundleControlType::OpenReply {
            reading.abilities.bundles = true;
            let discard = self.bundle(BundleControlType::DiscardRequest);
            self.send(discard);
        }
    }

    /// Goes on when the switch has told everything: what did not come before the barrier, it has not.
    fn read(&mut self, now: Instant) {
        let Phase::Reading(reading) = &mut self.phase else { return };
        let Some(entries) = reading.entries.take_if(|_| reading.barrier_passed) else { return };
        let configs = std::mem::take(&mut reading.configs);
        self.abilities = reading.abilities;
        self.installed.clear();
        self.plan = self.make_plan(&self.layout);
        let (mut learned, mut foreign) = (Vec::new(), Vec::new());
        for stats in &entries {
            let (key, body) = entry::from_stats(stats);
            match Cookie::from_number(body.cookie) {
                Some(Cookie::Learned(_)) => learned.push((key, body, stats.duration_sec)),
                Some(_) => drop(self.installed.insert(key, body)),
                None => foreign.push((key, body.cookie)),
            }
        }
        self.meters = self.our_meters(&configs);
        self.phase = Phase::Idle;
        if self.foreign == Foreign::Remove {
            for (key, cookie) in foreign {
                let flow_mod = FlowMod { cookie, cookie_mask: u64::MAX, ..entry::delete(&key) };
                self.metrics.flow_deletes.add(1);
                self.send(Body::FlowMod(flow_mod));
            }
        }
        self.adopt(now, learned);
        self.guard.next = self.probing.as_ref().map(|_| now);
        self.dirty = true;
        self.changed = true;
        self.change(now);
        if matches!(self.phase, Phase::Idle) {
            self.finished.append(&mut self.waiting);
        }
    }

    /// Meters carry no cookie: ours are those that rules of ours use or shall use.
    fn our_meters(&self, configs: &[MeterConfig]) -> Meters {
        let of_body = |body: &entry::FlowBody| {
            body.instructions.iter().find_map(|instruction| match instruction {
                ofp::Instruction::Meter(id) => Some(*id),
                _ => None,
            })
        };
        let used: std::collections::HashSet<u32> = self.installed.values().filter_map(of_body).collect();
        let ours = configs
            .iter()
            .filter(|c| used.contains(&c.meter_id) || self.plan.meters.contains_key(&c.meter_id));
        // What is not of our making is shown as a meter that nobody wants, and so replaced.
        let strange = MeterBody { packets: true, rate: 0, burst: 0 };
        ours.map(|config| (config.meter_id, MeterBody::from_config(config).unwrap_or(strange))).collect()
    }

    fn error(&mut self, xid: u32, error: ErrorCode) -> Result<(), Broken> {
        if let Phase::Reading(reading) = &self.phase {
            if [reading.meters, reading.meter_features, reading.bundle].contains(&xid) {
                return Ok(());
            }
            for (request, of) in
                [("the request for its flow entries", reading.flows), ("a barrier", reading.barrier)]
            {
                if of == xid {
                    return Err(Broken::Refused { request, error });
                }
            }
        }
        if self.asks.refused(xid, error) {
            return Ok(());
        }
        self.metrics.errors.add(1);
        match self.phase {
            Phase::Changing { barrier, .. } if barrier == xid => {
                Err(Broken::Refused { request: "a barrier", error })
            }
            Phase::Changing { .. } => {
                self.change_refused(xid, error);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn barrier(&mut self, now: Instant, xid: u32) {
        if let Phase::Reading(reading) = &mut self.phase
            && reading.barrier == xid
        {
            reading.barrier_passed = true;
            return self.read(now);
        }
        if self.asks.barrier(xid) {
            return;
        }
        self.change_confirmed(now, xid);
    }

    fn port_status(&mut self, now: Instant, status: PortStatus) {
        let PortStatus { reason, port } = status;
        let number = port.port_no;
        let gone = reason == PortStatusReason::Delete;
        let down = port.state.contains(PortState::LINK_DOWN) || gone;
        if down && self.plan.members.keys().any(|&(_, member)| member == number) {
            // Its hosts may come up elsewhere.
            self.forget_learned(None, number);
            self.addresses.retain(|_, port| port != number);
        }
        if down {
            self.unwatch(number);
        }
        self.changed = true;
        let up = !port.config.contains(ofp::PortConfig::PORT_DOWN) && !down;
        let name = port.name.to_string();
        self.happenings.push(Happening::Port { port: number, name, up: (!gone).then_some(up) });
        let before = self.ports.get(&number).map(|port| port.name);
        let after = (!gone).then_some(port.name);
        if gone {
            self.ports.remove(&number);
        } else if self.ports.contains_key(&number) || self.ports.len() < PORTS_MAX {
            self.ports.insert(number, port);
        }
        if before != after {
            // What was refused for want of this port may be taken now.
            self.refused.clear();
            self.dirty = true;
        }
        self.change(now);
        if up && !gone {
            self.probe_at_once(now, number);
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
