//! The control side of the switch: ports, flow tables, publication.
//!
//! The daemon adds and changes ports here, the OpenFlow agent changes flows; both lead to one sequence of
//! snapshots. Nothing here is ever waited for by a worker.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use packet::{FlowKey, MacAddr};
use tokio::sync::broadcast;

use crate::fdb::Fdb;
use crate::flow::{Action, Flow};
use crate::flow_tables::{FLOW_LIMIT_DEFAULT, FlowChange, FlowModError, FlowTables, Removed, Selection};
use crate::groups::{GROUP_LIMIT_DEFAULT, Group, GroupChange, GroupError};
use crate::meters::{METER_LIMIT_DEFAULT, Meter, MeterChange, MeterError};
use crate::model::{
    Clock, Fence, PORT_NO_LAST, PacketOut, Passed, PortConfig, PortCounters, PortNo, Snapshot, SwitchControl,
    is_physical,
};
use crate::pipeline::{self, Decision};
use crate::ports::Ports;
use crate::tables::TableCounters;

/// Events that a slow listener may be behind before it misses some.
const EVENTS_MAX: usize = 65_536;

/// What the switch does with packets that match no flow while it has no flows and no controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FailMode {
    /// Switch them by MAC learning, until a controller connects or somebody adds a flow.
    #[default]
    Standalone,
    /// Drop them.
    Secure,
}

/// How a [`Bridge`] is set up.
#[derive(Clone, Debug)]
pub struct BridgeConfig {
    /// `datapath_id` in OpenFlow.
    pub datapath_id: u64,
    /// See [`FailMode`].
    pub fail_mode: FailMode,
    /// Flows in all tables together.
    pub flow_limit: usize,
    /// Groups.
    pub group_limit: usize,
    /// Meters.
    pub meter_limit: usize,
}

impl Default for BridgeConfig {
    fn default() -> BridgeConfig {
        BridgeConfig {
            datapath_id: 1,
            fail_mode: FailMode::Standalone,
            flow_limit: FLOW_LIMIT_DEFAULT,
            group_limit: GROUP_LIMIT_DEFAULT,
            meter_limit: METER_LIMIT_DEFAULT,
        }
    }
}

/// What happened to a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortChange {
    /// It is new.
    Added,
    /// Its configuration or link changed.
    Modified,
    /// It is gone.
    Removed,
}

/// What the agent tells controllers about.
#[derive(Clone, Debug)]
pub enum Event {
    /// A port, as it is now or was.
    Port(PortChange, Arc<PortConfig>),
    /// A flow that was added with SEND_FLOW_REM went; its counters are final.
    FlowRemoved(Arc<Removed>),
}

/// Why a port was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PortError {
    /// The number is reserved by OpenFlow or zero.
    #[error("port number {0} is out of range; use 1 to {last}", last = PORT_NO_LAST.0)]
    BadNumber(u32),
    /// The number is taken.
    #[error("port number {number} is taken by {name:?}; choose another")]
    NumberTaken {
        /// The number.
        number: PortNo,
        /// Who has it.
        name: String,
    },
    /// No port has this number.
    #[error("there is no port {0}")]
    NoSuchPort(PortNo),
}

/// What a controller wants of a port: a port-mod (OpenFlow 1.3.5, 7.3.4.3).
#[derive(Clone, Debug)]
pub struct PortChangeRequest {
    /// The port.
    pub port: PortNo,
    /// Its address, as a check that this port is meant.
    pub mac: MacAddr,
    /// The bits to set.
    pub config: ofp::PortConfig,
    /// Which bits to change.
    pub mask: ofp::PortConfig,
}

/// One change that a controller asks for.
#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "nearly all are of flows, and a box would cost each an allocation"
)]
pub enum Change {
    /// Of flows.
    Flow(FlowChange),
    /// Of a group.
    Group(GroupChange),
    /// Of a meter.
    Meter(MeterChange),
    /// Of a port.
    Port(PortChangeRequest),
}

/// Why a change was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChangeError {
    /// A change of flows.
    #[error(transparent)]
    Flow(#[from] FlowModError),
    /// A change of a group.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// A change of a meter.
    #[error(transparent)]
    Meter(#[from] MeterError),
    /// There is no such port.
    #[error("there is no port {0}")]
    NoSuchPort(PortNo),
    /// The port has another address.
    #[error("port {0} has another address")]
    OtherPort(PortNo),
}

/// Several changes of which one was refused: none was carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("change number {at} of several was refused")]
pub struct CommitError {
    /// Which one, from 0.
    pub at: usize,
    /// Why.
    pub source: ChangeError,
}

struct State {
    flows: FlowTables,
    ports: BTreeMap<PortNo, Arc<PortConfig>>,
    /// When each port was added, milliseconds of the switch's clock.
    port_added_ms: BTreeMap<PortNo, u64>,
    published_ports: Arc<Ports>,
    epoch: u64,
    unpublished: bool,
    controllers: usize,
    /// The second of the last look for old addresses.
    aged_s: u32,
    /// Snapshots that workers may still hold: kept so that the last one to let go of a big one is not a worker.
    retired: Vec<Arc<Snapshot>>,
    decision: Decision,
}

impl State {
    /// Takes over what the ports are now, for the next publication.
    fn take_ports(&mut self) {
        self.published_ports = Arc::new(Ports::new(self.ports.values().cloned()));
        self.flows.set_ports(&self.published_ports);
    }
}

/// The control side. See the module's documentation.
pub struct Bridge {
    config: BridgeConfig,
    clock: Clock,
    fdb: Arc<Fdb>,
    data_path: Arc<dyn SwitchControl>,
    state: Mutex<State>,
    events: broadcast::Sender<Event>,
}

impl Bridge {
    /// The bridge over a data path whose workers start with [`Snapshot::initial`]. Publishes a first snapshot.
    pub fn new(
        config: BridgeConfig,
        data_path: Arc<dyn SwitchControl>,
        fdb: Arc<Fdb>,
        clock: Clock,
    ) -> Bridge {
        let state = State {
            flows: FlowTables::new(data_path.workers(), config.flow_limit)
                .with_limits(config.group_limit, config.meter_limit),
            ports: BTreeMap::new(),
            port_added_ms: BTreeMap::new(),
            published_ports: Arc::default(),
            epoch: 0,
            unpublished: true,
            controllers: 0,
            aged_s: 0,
            retired: Vec::new(),
            decision: Decision::default(),
        };
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let bridge = Bridge { config, clock, fdb, data_path, state: Mutex::new(state), events };
        bridge.publish();
        bridge
    }

    /// How it was set up.
    pub fn config(&self) -> &BridgeConfig {
        &self.config
    }

    /// The switch's clock.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The forwarding database.
    pub fn fdb(&self) -> &Arc<Fdb> {
        &self.fdb
    }

    /// Events from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a port.
    ///
    /// # Errors
    /// Its number is out of range or taken.
    pub fn add_port(&self, config: PortConfig) -> Result<(), PortError> {
        let mut state = self.lock();
        if !is_physical(config.ofport) {
            return Err(PortError::BadNumber(config.ofport.0));
        }
        if let Some(other) = state.ports.get(&config.ofport) {
            return Err(PortError::NumberTaken { number: config.ofport, name: other.name.clone() });
        }
        state.port_added_ms.insert(config.ofport, self.clock.now_ms());
        self.put_port(&mut state, PortChange::Added, Arc::new(config));
        Ok(())
    }

    /// Gives the port with `config.ofport` this configuration: VLANs, link state, MTU.
    ///
    /// # Errors
    /// There is no such port.
    pub fn update_port(&self, config: PortConfig) -> Result<(), PortError> {
        self.update_port_locked(&mut self.lock(), config)
    }

    fn update_port_locked(&self, state: &mut State, config: PortConfig) -> Result<(), PortError> {
        let old = state.ports.get(&config.ofport).ok_or(PortError::NoSuchPort(config.ofport))?;
        if **old == config {
            return Ok(());
        }
        let forget = old.vlan != config.vlan || !config.link_up;
        let port = config.ofport;
        self.put_port(state, PortChange::Modified, Arc::new(config));
        if forget {
            self.fdb.forget_port(port);
        }
        Ok(())
    }

    /// Changes only the link state of a port.
    ///
    /// # Errors
    /// There is no such port.
    pub fn set_link(&self, port: PortNo, up: bool) -> Result<(), PortError> {
        let mut state = self.lock();
        let config = state.ports.get(&port).ok_or(PortError::NoSuchPort(port))?;
        let config = PortConfig { link_up: up, ..(**config).clone() };
        self.update_port_locked(&mut state, config)
    }

    /// Removes a port and forgets the addresses behind it. Workers no longer send to it once a fence passed
    /// ([`Bridge::barrier`]).
    ///
    /// # Errors
    /// There is no such port.
    pub fn remove_port(&self, port: PortNo) -> Result<(), PortError> {
        let mut state = self.lock();
        let config = state.ports.remove(&port).ok_or(PortError::NoSuchPort(port))?;
        state.port_added_ms.remove(&port);
        self.ports_changed(&mut state);
        self.fdb.forget_port(port);
        let _ = self.events.send(Event::Port(PortChange::Removed, config));
        Ok(())
    }

    fn put_port(&self, state: &mut State, change: PortChange, config: Arc<PortConfig>) {
        state.ports.insert(config.ofport, config.clone());
        self.ports_changed(state);
        // Nobody listens while no agent runs.
        let _ = self.events.send(Event::Port(change, config));
    }

    fn ports_changed(&self, state: &mut State) {
        state.take_ports();
        state.unpublished = true;
        self.publish_locked(state);
    }

    /// The ports, by number.
    pub fn ports(&self) -> Vec<Arc<PortConfig>> {
        self.lock().ports.values().cloned().collect()
    }

    /// Whether there is such a port.
    pub fn has_port(&self, port: PortNo) -> bool {
        self.lock().ports.contains_key(&port)
    }

    /// How long a port exists, milliseconds; `None` = no such port.
    pub fn port_age_ms(&self, port: PortNo) -> Option<u64> {
        let added_ms = *self.lock().port_added_ms.get(&port)?;
        Some(self.clock.now_ms().saturating_sub(added_ms))
    }

    /// Counters of a port; `None` = no such port.
    pub fn port_counters(&self, port: PortNo) -> Option<PortCounters> {
        self.data_path.port_counters(port)
    }

    /// Counts controllers: while there is one, [`FailMode::Standalone`] rests.
    pub fn controller_connected(&self, connected: bool) {
        let mut state = self.lock();
        state.controllers =
            if connected { state.controllers + 1 } else { state.controllers.saturating_sub(1) };
        self.update_miss(&mut state);
        self.publish_locked(&mut state);
    }

    fn update_miss(&self, state: &mut State) {
        let standalone = self.config.fail_mode == FailMode::Standalone;
        let normal = standalone && state.controllers == 0 && state.flows.is_empty();
        if state.flows.tables().normal_on_miss() != normal {
            state.flows.set_normal_on_miss(normal);
            state.unpublished = true;
        }
    }

    fn change<R>(&self, change: impl FnOnce(&mut FlowTables) -> R) -> R {
        let mut state = self.lock();
        let result = change(&mut state.flows);
        state.unpublished = true;
        self.update_miss(&mut state);
        result
    }

    /// Drops fragments of IP packets (`OFPC_FRAG_DROP`), or treats them as other packets. For all controllers, as there
    /// is one switch.
    pub fn set_drop_fragments(&self, drop: bool) {
        self.change(|flows| flows.set_drop_fragments(drop));
    }

    /// Whether fragments of IP packets are dropped.
    pub fn drops_fragments(&self) -> bool {
        self.lock().flows.tables().drops_fragments()
    }

    /// Carries out a change, and returns the flows that it deleted: give them to [`Bridge::report_removed`]. A
    /// change of flows becomes live with the next [`Bridge::publish`], one of a port at once.
    ///
    /// # Errors
    /// The first rule that it breaks; nothing is changed then.
    pub fn apply(&self, change: &Change) -> Result<Vec<Removed>, ChangeError> {
        let now_ms = self.clock.now_ms();
        match change {
            Change::Flow(change) => Ok(self.change(|flows| flows.apply(change, now_ms))?),
            Change::Group(change) => Ok(self.change(|flows| flows.apply_group(change, now_ms))?),
            Change::Meter(change) => Ok(self.change(|flows| flows.apply_meter(change, now_ms))?),
            Change::Port(_) => self.commit(std::slice::from_ref(change)).map_err(|error| error.source),
        }
    }

    /// Carries out changes of flows one by one, as [`Bridge::apply`] does; `done` gets what each came to.
    pub fn apply_flows(
        &self,
        changes: &[FlowChange],
        mut done: impl FnMut(usize, Result<Vec<Removed>, FlowModError>),
    ) {
        let now_ms = self.clock.now_ms();
        self.change(|flows| {
            flows.fetch(changes);
            for (at, change) in changes.iter().enumerate() {
                done(at, flows.apply(change, now_ms));
            }
        });
    }

    /// Carries out all changes, in this order and with one publication, or none of them. Returns the flows that were
    /// deleted.
    ///
    /// # Errors
    /// The first one that is refused.
    pub fn commit(&self, changes: &[Change]) -> Result<Vec<Removed>, CommitError> {
        let now_ms = self.clock.now_ms();
        let mut state = self.lock();
        let (mut removed, mut ports) = (Vec::new(), Vec::new());
        state.flows.begin();
        for (at, change) in changes.iter().enumerate() {
            let result = match change {
                Change::Flow(change) => state.flows.apply(change, now_ms).map_err(ChangeError::Flow),
                Change::Group(change) => state.flows.apply_group(change, now_ms).map_err(ChangeError::Group),
                Change::Meter(change) => state.flows.apply_meter(change, now_ms).map_err(ChangeError::Meter),
                Change::Port(request) => configure_port(&mut state, request, &mut ports).map(|()| Vec::new()),
            };
            match result {
                Ok(more) => removed.extend(more),
                Err(source) => {
                    state.flows.roll_back();
                    for old in ports.into_iter().rev() {
                        state.ports.insert(old.ofport, old);
                    }
                    return Err(CommitError { at, source });
                }
            }
        }
        state.flows.commit();
        state.unpublished = true;
        if !ports.is_empty() {
            state.take_ports();
        }
        self.publish_locked(&mut state);
        ports.sort_by_key(|port| port.ofport);
        ports.dedup_by_key(|port| port.ofport);
        for port in ports {
            let config = state.ports[&port.ofport].clone();
            if !config.is_live() {
                self.fdb.forget_port(config.ofport);
            }
            let _ = self.events.send(Event::Port(PortChange::Modified, config));
        }
        Ok(removed)
    }

    /// The groups by number, each with the number of flows and groups that use it. Their counters are exact at any
    /// time.
    pub fn groups(&self) -> Vec<(Arc<Group>, u32)> {
        self.lock().flows.groups().list()
    }

    /// Whether every group that the actions name exists.
    pub fn knows_groups(&self, actions: &[Action]) -> bool {
        let state = self.lock();
        actions.iter().all(|action| match action {
            Action::Group(id) => state.flows.groups().contains(*id),
            _ => true,
        })
    }

    /// The meters by number, each with the number of flows that use it. Their counters are exact at any time.
    pub fn meters(&self) -> Vec<(Arc<Meter>, u32)> {
        self.lock().flows.meters().list()
    }

    /// The selected flows. Their counters are exact as of a preceding [`Bridge::drain_counters`].
    ///
    /// # Errors
    /// The table does not exist.
    pub fn flows(&self, selection: &Selection) -> Result<Vec<Arc<Flow>>, FlowModError> {
        self.lock().flows.select(selection)
    }

    /// Number of flows and lookups of each table.
    pub fn tables(&self) -> Vec<(usize, TableCounters)> {
        let tables = self.lock().flows.tables().clone();
        let table =
            |(number, table): (usize, &Arc<crate::tables::Table>)| (table.len(), tables.stats().sum(number));
        tables.tables.iter().enumerate().map(table).collect()
    }

    /// Publishes what changed since the last time, if anything did.
    pub fn publish(&self) {
        self.publish_locked(&mut self.lock());
    }

    fn publish_locked(&self, state: &mut State) {
        self.update_miss(state);
        if !state.unpublished {
            return;
        }
        state.unpublished = false;
        state.epoch += 1;
        let (tables, ports) = (state.flows.tables().clone(), state.published_ports.clone());
        let snapshot = Arc::new(Snapshot { epoch: state.epoch, tables, ports });
        state.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
        state.retired.push(snapshot.clone());
        // Under the lock, so that workers get snapshots in order.
        self.data_path.publish(snapshot);
    }

    /// The latest snapshot: what workers decide by, or soon do.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        let state = self.lock();
        state.retired.last().cloned().unwrap_or_else(|| Arc::new(Snapshot::initial(self.data_path.workers())))
    }

    /// The number of the latest snapshot.
    pub fn epoch(&self) -> u64 {
        self.lock().epoch
    }

    /// Ready when everything before is live: every worker decides by the latest snapshot and has sent the
    /// packet-outs.
    pub fn barrier(&self) -> Passed {
        self.publish();
        let (fence, passed) = Fence::new();
        self.data_path.fence(fence);
        passed
    }

    /// Ready when every packet that workers counted before is in its flows' counters.
    pub fn drain_counters(&self) -> Passed {
        self.publish();
        let (fence, passed) = Fence::new();
        self.data_path.drain_counters(fence);
        passed
    }

    /// Tells the listeners of flows that went, once their counters are final.
    pub async fn report_removed(&self, removed: Vec<Removed>) {
        if !removed.iter().any(|removed| removed.flow.flags.send_removed) {
            return;
        }
        self.barrier().await;
        self.drain_counters().await;
        for removed in removed.into_iter().filter(|removed| removed.flow.flags.send_removed) {
            let _ = self.events.send(Event::FlowRemoved(Arc::new(removed)));
        }
    }

    /// Removes flows whose time is over and forgets old addresses. To be called about every 100 ms.
    pub async fn tick(&self) {
        let now_ms = self.clock.now_ms();
        let now_s = (now_ms / 1000) as u32;
        let (due, idle) = {
            let mut state = self.lock();
            if state.aged_s != now_s {
                state.aged_s = now_s;
                self.fdb.age(now_s);
            }
            let due = state.flows.next_timeout_ms().is_some_and(|at_ms| at_ms <= now_ms);
            (due, due && state.flows.idle_timeout_due(now_ms))
        };
        if idle {
            self.drain_counters().await;
        }
        if due {
            let removed = self.change(|flows| flows.expire(now_ms));
            self.publish();
            self.report_removed(removed).await;
        }
    }

    /// Sends a packet of a controller. `false` = too many wait already.
    pub fn packet_out(&self, frame: Box<[u8]>, in_port: PortNo, actions: &[Action]) -> bool {
        let key: FlowKey = packet::parse(&frame, in_port.0);
        let mut state = self.lock();
        let State { flows, decision, .. } = &mut *state;
        pipeline::decide_actions(flows.tables(), &key, actions, decision);
        let now_ms = self.clock.now_ms();
        let control = self.data_path.workers();
        for flow in &decision.matched {
            flow.cell(control).add(1, frame.len() as u64, now_ms);
        }
        flows.tables().stats().add(control, decision.looked_up, decision.hit, 1);
        let verdict = decision.verdict();
        // Under the lock, and after the flows it was decided by are published: a packet-out never overtakes the
        // flow-mods before it.
        self.publish_locked(&mut state);
        self.data_path.packet_out(PacketOut { frame, in_port, verdict })
    }
}

/// Sets the bits of a port; what it was before goes to `before` if it was anything else.
fn configure_port(
    state: &mut State,
    request: &PortChangeRequest,
    before: &mut Vec<Arc<PortConfig>>,
) -> Result<(), ChangeError> {
    let old = state.ports.get(&request.port).ok_or(ChangeError::NoSuchPort(request.port))?;
    if old.mac != request.mac {
        return Err(ChangeError::OtherPort(request.port));
    }
    let config = ofp::PortConfig(old.config.0 & !request.mask.0 | request.config.0 & request.mask.0);
    if config != old.config {
        let new = PortConfig { config, ..(**old).clone() };
        before.extend(state.ports.insert(request.port, Arc::new(new)));
    }
    Ok(())
}
