//! The control side's flow tables: flow-mods, timeouts, queries. [`FlowTables::tables`] is what is published.
//!
//! Every change is checked whole before anything is changed, so a refused flow-mod leaves no trace.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use packet::{Edit, FlowKey, field};

use crate::flow::{Action, Flow, FlowFlags, FlowStats, Instructions, PackedKey, Shared};
use crate::groups::{GROUP_LIMIT_DEFAULT, GroupChange, GroupError, GroupTable, Groups};
use crate::hash::ControllersHasher;
use crate::meters::{METER_LIMIT_DEFAULT, MeterChange, MeterError, MeterTable, Meters};
use crate::model::PortNo;
use crate::ports::Ports;
use crate::tables::{SubTable, TABLES, Table, Tables};
use crate::trie::Way;

/// Flows in all tables together, unless configured otherwise.
pub const FLOW_LIMIT_DEFAULT: usize = 1_000_000;

/// Why a flow-mod was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FlowModError {
    /// The switch has no such table.
    #[error("table {0} does not exist; tables are 0 to {last}", last = TABLES - 1)]
    BadTable(u8),
    /// All flows that fit are in use.
    #[error("the tables hold {limit} flows, which is the limit; delete some or raise it")]
    TableFull {
        /// The limit.
        limit: usize,
    },
    /// An action names a group that does not exist.
    #[error("there is no group {0}; add it first")]
    UnknownGroup(u32),
    /// The flow names a meter that does not exist.
    #[error("there is no meter {0}; add it first")]
    UnknownMeter(u32),
    /// CHECK_OVERLAP, and a flow of the same priority overlaps.
    #[error("the flow overlaps one of the same priority {priority}")]
    Overlap {
        /// The priority.
        priority: u16,
    },
    /// Goto-Table to the same or an earlier table, or to one that does not exist.
    #[error("goto_table {goto} from table {table}: only later tables up to {last} are allowed", last = TABLES - 1)]
    BadGoto {
        /// Where the flow is.
        table: u8,
        /// Where it wants to go.
        goto: u8,
    },
}

/// A flow to add.
#[derive(Clone, Debug)]
pub struct NewFlow {
    /// Table.
    pub table: u8,
    /// Priority.
    pub priority: u16,
    /// The fields to match; bits outside of the mask are ignored.
    pub key: FlowKey,
    /// Which bits count; flows with the same mask had best share it.
    pub mask: Arc<FlowKey>,
    /// The controller's number for it.
    pub cookie: u64,
    /// See [`Flow::idle_timeout_s`].
    pub idle_timeout_s: u16,
    /// See [`Flow::hard_timeout_s`].
    pub hard_timeout_s: u16,
    /// Flags.
    pub flags: FlowFlags,
    /// What it does.
    pub instructions: Arc<Instructions>,
}

/// Which flows a request is about (OpenFlow 1.3.5, 6.4).
#[derive(Clone, Debug)]
pub struct Selection {
    /// Table; `None` = all.
    pub table: Option<u8>,
    /// Strict: exactly this priority, key and mask. `None`: all flows at least as specific.
    pub strict_priority: Option<u16>,
    /// The fields.
    pub key: FlowKey,
    /// Which bits of them count.
    pub mask: FlowKey,
    /// The cookie under `cookie_mask`.
    pub cookie: u64,
    /// Which bits of the cookie count; 0 = any cookie.
    pub cookie_mask: u64,
    /// Only flows with an output to this port; `PortNo::ANY` = no such condition.
    pub out_port: PortNo,
    /// Only flows with an action to this group; [`ANY_GROUP`] = no such condition.
    pub out_group: u32,
}

/// One change of the flow tables.
#[derive(Clone, Debug)]
pub enum FlowChange {
    /// Add a flow; one with the same match and priority is replaced.
    Add(NewFlow),
    /// Give the selected flows other instructions.
    Modify {
        /// Which flows.
        selection: Selection,
        /// What they do from now on.
        instructions: Arc<Instructions>,
        /// Their counters begin at zero again.
        reset_counts: bool,
    },
    /// Delete the selected flows.
    Delete(Selection),
}

impl FlowChange {
    /// Lets it use the one copy of its instructions.
    pub fn share(&mut self, shared: &mut Shared) {
        if let FlowChange::Add(NewFlow { instructions, .. }) | FlowChange::Modify { instructions, .. } = self
        {
            *instructions = shared.one(instructions);
        }
    }
}

/// `OFPG_ANY`.
pub const ANY_GROUP: u32 = 0xffff_ffff;

impl Selection {
    /// Every flow.
    pub fn all() -> Selection {
        Selection {
            table: None,
            strict_priority: None,
            key: FlowKey::ZERO,
            mask: FlowKey::ZERO,
            cookie: 0,
            cookie_mask: 0,
            out_port: PortNo::ANY,
            out_group: ANY_GROUP,
        }
    }

    fn wants(&self, flow: &Flow) -> bool {
        let fits = match self.strict_priority {
            Some(priority) => flow.priority == priority && *flow.mask == self.mask && flow.key() == self.key,
            None => flow.mask.covers(&self.mask) && flow.key().matches(&self.key, &self.mask),
        };
        fits && (flow.cookie ^ self.cookie) & self.cookie_mask == 0
            && (self.out_port == PortNo::ANY || flow.instructions.outputs_to(self.out_port))
            && (self.out_group == ANY_GROUP || flow.instructions.groups().any(|id| id == self.out_group))
    }
}

/// Why a flow went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RemovedReason {
    /// No packet for its idle timeout.
    IdleTimeout,
    /// Its hard timeout passed.
    HardTimeout,
    /// Deleted by a flow-mod, or with its meter.
    Delete,
    /// Deleted with its group.
    GroupDelete,
}

/// A flow that went.
#[derive(Clone, Debug)]
pub struct Removed {
    /// The flow. Its counters are final once every worker has used the next snapshot and drained its counters.
    pub flow: Arc<Flow>,
    /// Why.
    pub reason: RemovedReason,
    /// When, milliseconds of the switch's clock.
    pub at_ms: u64,
}

/// What the control side knows about the flows of one mask and does not publish.
#[derive(Default)]
struct Priorities(BTreeMap<u16, usize>);

impl Priorities {
    fn add(&mut self, priority: u16) {
        *self.0.entry(priority).or_default() += 1;
    }

    fn remove(&mut self, priority: u16) {
        if let Some(count) = self.0.get_mut(&priority) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&priority);
            }
        }
    }

    fn max(&self) -> u16 {
        self.0.last_key_value().map_or(0, |(priority, _)| *priority)
    }
}

/// A step back: what [`FlowTables::roll_back`] undoes.
enum Step {
    Put { flow: Arc<Flow>, old: Option<Arc<Flow>> },
    Take(Arc<Flow>),
}

/// The flow tables and what is needed to change them.
pub struct FlowTables {
    tables: Tables,
    priorities: [HashMap<FlowKey, Priorities, BuildHasherDefault<ControllersHasher>>; TABLES],
    /// Flows with a timeout, by the time at which the next look at them is due.
    timers: BTreeMap<(u64, u64), Arc<Flow>>,
    /// Flows that pop a VLAN tag.
    popping: usize,
    /// Flows that change the label stack.
    labelling: usize,
    len: usize,
    limit: usize,
    workers: usize,
    next_id: u64,
    shared: Shared,
    groups: GroupTable,
    meters: MeterTable,
    ports: Arc<Ports>,
    /// What was done since [`FlowTables::begin`]; `None` outside of a transaction.
    steps: Option<Vec<Step>>,
    /// Groups and meters as they were then.
    before: Option<(Groups, Meters)>,
}

impl FlowTables {
    /// Empty tables for flows that `workers` workers count, at most `limit` of them.
    pub fn new(workers: usize, limit: usize) -> FlowTables {
        FlowTables {
            tables: Tables::empty(workers, false),
            priorities: std::array::from_fn(|_| HashMap::default()),
            timers: BTreeMap::new(),
            popping: 0,
            labelling: 0,
            len: 0,
            limit,
            workers,
            next_id: 0,
            shared: Shared::default(),
            groups: GroupTable::new(workers, GROUP_LIMIT_DEFAULT),
            meters: MeterTable::new(workers, METER_LIMIT_DEFAULT),
            ports: Arc::default(),
            steps: None,
            before: None,
        }
    }

    /// Begins a transaction: what is changed from now on can be undone until [`FlowTables::commit`].
    pub fn begin(&mut self) {
        self.steps = Some(Vec::new());
        self.before = Some((self.groups.all().clone(), self.meters.all().clone()));
    }

    /// Ends a transaction and keeps what was done.
    pub fn commit(&mut self) {
        (self.steps, self.before) = (None, None);
    }

    /// Ends a transaction and undoes what was done since it began, counters included.
    pub fn roll_back(&mut self) {
        if let Some((groups, meters)) = self.before.take() {
            self.groups.restore(groups);
            self.meters.restore(meters);
            self.publish_groups();
            self.publish_meters();
        }
        for step in self.steps.take().into_iter().flatten().rev() {
            match step {
                Step::Put { flow, old: Some(old) } => self.put(old, Some(&flow)),
                Step::Put { flow, old: None } => self.take(&flow),
                Step::Take(flow) => self.put(flow, None),
            }
        }
    }

    /// Carries out one change, and returns the flows that it deleted.
    ///
    /// # Errors
    /// See [`FlowTables::add`], [`FlowTables::modify`] and [`FlowTables::delete`]; nothing is changed then.
    pub fn apply(&mut self, change: &FlowChange, now_ms: u64) -> Result<Vec<Removed>, FlowModError> {
        match change {
            FlowChange::Add(flow) => self.add(flow, now_ms).map(|()| Vec::new()),
            FlowChange::Modify { selection, instructions, reset_counts } => {
                self.modify(selection, instructions, *reset_counts).map(|_| Vec::new())
            }
            FlowChange::Delete(selection) => self.delete(selection, now_ms),
        }
    }

    /// Fetches what changes of single flows will look at. One after the other, each would wait for memory by itself.
    pub fn fetch(&self, changes: &[FlowChange]) {
        let way = |change: &FlowChange| {
            let (table, key, mask) = match change {
                FlowChange::Add(new) => (new.table, &new.key, &*new.mask),
                FlowChange::Modify { selection, .. } | FlowChange::Delete(selection) => {
                    selection.strict_priority?;
                    (selection.table?, &selection.key, &selection.mask)
                }
            };
            self.tables.table(table)?.get(mask).map(|subtable| subtable.way(key))
        };
        let mut ways: Vec<Way<'_, Flow>> = changes.iter().filter_map(way).collect();
        while !ways.is_empty() {
            ways.retain_mut(Way::step);
        }
    }

    /// With other limits than the usual ones for groups and meters.
    #[must_use]
    pub fn with_limits(mut self, groups: usize, meters: usize) -> FlowTables {
        self.groups = GroupTable::new(self.workers, groups);
        self.meters = MeterTable::new(self.workers, meters);
        self
    }

    /// The tables as they are now, to be published: cheap to clone.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Switches packets that match nothing in table 0 by NORMAL, or drops them.
    pub fn set_normal_on_miss(&mut self, normal: bool) {
        self.tables.normal_on_miss = normal;
    }

    /// Drops fragments of IP packets before any table, or treats them as other packets.
    pub fn set_drop_fragments(&mut self, drop: bool) {
        self.tables.drop_fragments = drop;
        self.update_mask();
    }

    /// Number of flows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no flow.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many flows fit.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Adds a flow; one with the same match and priority is replaced.
    ///
    /// # Errors
    /// The first rule that the flow breaks; nothing is changed then.
    pub fn add(&mut self, new: &NewFlow, now_ms: u64) -> Result<(), FlowModError> {
        let packed = PackedKey::new(&new.key, &new.mask);
        let table = self.tables.table(new.table).ok_or(FlowModError::BadTable(new.table))?;
        self.check_instructions(new.table, &new.instructions)?;
        if new.flags.check_overlap && overlaps(table, &new.key, &new.mask, new.priority) {
            return Err(FlowModError::Overlap { priority: new.priority });
        }
        let subtable = table.get(&new.mask);
        let old = subtable.and_then(|subtable| subtable.get(&packed, new.priority)).cloned();
        if old.is_none() && self.len >= self.limit {
            return Err(FlowModError::TableFull { limit: self.limit });
        }
        let stats = match &old {
            Some(old) if !new.flags.reset_counts => old.stats.clone(),
            _ => FlowStats::new(self.workers),
        };
        self.next_id += 1;
        let flow = Arc::new(Flow {
            id: self.next_id,
            table: new.table,
            priority: new.priority,
            packed,
            mask: subtable.map_or(&new.mask, SubTable::mask).clone(),
            cookie: new.cookie,
            idle_timeout_s: new.idle_timeout_s,
            hard_timeout_s: new.hard_timeout_s,
            flags: new.flags,
            created_ms: now_ms,
            instructions: self.shared.one(&new.instructions),
            stats,
        });
        self.put(flow, old.as_ref());
        Ok(())
    }

    /// Gives the selected flows other instructions. Counters stay, unless `reset_counts`. Returns how many.
    ///
    /// # Errors
    /// As [`FlowTables::add`]; nothing is changed then.
    pub fn modify(
        &mut self,
        selection: &Selection,
        instructions: &Arc<Instructions>,
        reset_counts: bool,
    ) -> Result<usize, FlowModError> {
        let table = selection.table.unwrap_or(u8::MAX);
        self.tables.table(table).ok_or(FlowModError::BadTable(table))?;
        self.check_instructions(table, instructions)?;
        let flows = self.select(selection)?;
        let instructions = self.shared.one(instructions);
        for old in &flows {
            let stats = if reset_counts { FlowStats::new(self.workers) } else { old.stats.clone() };
            let flow = Flow { instructions: instructions.clone(), stats, ..(**old).clone() };
            self.put(Arc::new(flow), Some(old));
        }
        Ok(flows.len())
    }

    /// Deletes the selected flows and returns them.
    ///
    /// # Errors
    /// The table does not exist.
    pub fn delete(&mut self, selection: &Selection, now_ms: u64) -> Result<Vec<Removed>, FlowModError> {
        let flows = self.select(selection)?;
        flows.iter().for_each(|flow| self.take(flow));
        let removed = |flow| Removed { flow, reason: RemovedReason::Delete, at_ms: now_ms };
        Ok(flows.into_iter().map(removed).collect())
    }

    /// The selected flows, in the order of the tables, otherwise in no order.
    ///
    /// # Errors
    /// The table does not exist.
    pub fn select(&self, selection: &Selection) -> Result<Vec<Arc<Flow>>, FlowModError> {
        let tables = match selection.table {
            Some(number) if usize::from(number) >= TABLES => return Err(FlowModError::BadTable(number)),
            Some(number) => &self.tables.tables[usize::from(number)..=usize::from(number)],
            None => &self.tables.tables[..],
        };
        let key = selection.key.masked(&selection.mask);
        let selection = Selection { key, ..selection.clone() };
        let mut flows = Vec::new();
        for subtable in tables.iter().flat_map(|table| table.subtables()) {
            select_in(subtable, &selection, &mut flows);
        }
        Ok(flows)
    }

    /// When the next look at the timeouts is due, milliseconds of the switch's clock.
    pub fn next_timeout_ms(&self) -> Option<u64> {
        self.timers.first_key_value().map(|((at_ms, _), _)| *at_ms)
    }

    /// Whether an idle timeout is among what is due: then the workers' counters should be drained before
    /// [`FlowTables::expire`], or a flow in use could be taken for idle.
    pub fn idle_timeout_due(&self, now_ms: u64) -> bool {
        self.timers.range(..=(now_ms, u64::MAX)).any(|(_, flow)| flow.idle_timeout_s != 0)
    }

    /// Removes and returns the flows whose time is over.
    pub fn expire(&mut self, now_ms: u64) -> Vec<Removed> {
        let mut removed = Vec::new();
        while let Some(entry) = self.timers.first_entry() {
            if entry.key().0 > now_ms {
                break;
            }
            let timed = entry.remove();
            let subtable = self.tables.tables[usize::from(timed.table)].get(&timed.mask);
            let current = subtable.and_then(|subtable| subtable.get(&timed.packed, timed.priority));
            // Replaced or deleted since; a modified flow keeps its id and its timer.
            let Some(flow) = current.filter(|flow| flow.id == timed.id).cloned() else {
                continue;
            };
            match expiry(&flow) {
                Some((at_ms, reason)) if at_ms <= now_ms => {
                    self.take(&flow);
                    removed.push(Removed { flow, reason, at_ms: now_ms });
                }
                Some((at_ms, _)) => {
                    self.timers.insert((at_ms, flow.id), flow);
                }
                None => {}
            }
        }
        removed
    }

    /// Puts a flow in its place, where `old` is now.
    fn put(&mut self, flow: Arc<Flow>, old: Option<&Arc<Flow>>) {
        if let Some(steps) = &mut self.steps {
            steps.push(Step::Put { flow: flow.clone(), old: old.cloned() });
        }
        let table = usize::from(flow.table);
        let dependent = self.dependent();
        self.remember(&flow);
        if let Some(old) = old {
            self.forget(old);
        }
        let priorities = self.priorities[table].entry(*flow.mask).or_default();
        if old.is_none() {
            priorities.add(flow.priority);
            self.len += 1;
        }
        if old.is_none_or(|old| old.id != flow.id)
            && let Some((at_ms, _)) = expiry(&flow)
        {
            self.timers.insert((at_ms, flow.id), flow.clone());
        }
        let mask = flow.mask.clone();
        let table = Arc::make_mut(&mut self.tables.tables[table]);
        let masks = table.subtables().len();
        table.with_mask(
            &mask,
            |subtable| match old {
                Some(_) => drop(subtable.replace(flow)),
                None => subtable.insert(flow),
            },
            || priorities.max(),
        );
        if table.subtables().len() != masks || dependent != self.dependent() {
            self.update_mask();
        }
    }

    /// Takes a flow out.
    fn take(&mut self, flow: &Arc<Flow>) {
        if let Some(steps) = &mut self.steps {
            steps.push(Step::Take(flow.clone()));
        }
        let table = usize::from(flow.table);
        let dependent = self.dependent();
        self.len -= 1;
        self.forget(flow);
        let priorities = self.priorities[table].entry(*flow.mask).or_default();
        priorities.remove(flow.priority);
        let table_ref = Arc::make_mut(&mut self.tables.tables[table]);
        let masks = table_ref.subtables().len();
        let removed = table_ref.with_mask(
            &flow.mask,
            |subtable| subtable.remove(&flow.packed, flow.priority),
            || priorities.max(),
        );
        assert!(removed.is_some(), "a selected flow is in its table");
        if priorities.0.is_empty() {
            self.priorities[table].remove(&*flow.mask);
        }
        if self.tables.tables[table].subtables().len() != masks || dependent != self.dependent() {
            self.update_mask();
        }
    }

    /// Forgets what was counted of a flow that goes.
    fn forget(&mut self, flow: &Flow) {
        self.popping -= usize::from(pops(flow));
        self.labelling -= usize::from(labels(flow));
        let drop_user = |users: &mut HashMap<u32, u32>, id: u32| {
            if let Some(count) = users.get_mut(&id) {
                *count -= 1;
                if *count == 0 {
                    users.remove(&id);
                }
            }
        };
        flow.instructions.groups().for_each(|id| drop_user(&mut self.groups.users, id));
        flow.instructions.meter.iter().for_each(|id| drop_user(&mut self.meters.users, *id));
    }

    /// Counts what others have to know of a flow that comes.
    fn remember(&mut self, flow: &Flow) {
        self.popping += usize::from(pops(flow));
        self.labelling += usize::from(labels(flow));
        flow.instructions.groups().for_each(|id| *self.groups.users.entry(id).or_default() += 1);
        flow.instructions.meter.iter().for_each(|id| *self.meters.users.entry(*id).or_default() += 1);
    }

    /// Which edits there are that make what is below a tag or label visible.
    fn dependent(&self) -> (bool, bool) {
        (self.popping > 0, self.labelling > 0)
    }

    /// The union of all masks, and what edits make decisions depend on besides.
    fn update_mask(&mut self) {
        let masks = self.tables.tables.iter().flat_map(|table| table.subtables()).map(SubTable::mask);
        let mut mask = masks.fold(FlowKey::ZERO, |union, mask| union.union(mask));
        mask.set(field::METADATA, 0);
        if mask.get(field::VLAN_TCI) != 0 {
            // set_vlan changes the tag of later tables only if there is one.
            mask.set(field::VLAN_TCI, mask.get(field::VLAN_TCI) | 0x1000);
            if self.popping > 0 {
                for tag in [field::VLAN_TCI, field::VLAN_TCI_2, field::VLAN_TCI_3] {
                    mask.set(tag, u64::MAX);
                }
            }
        }
        if self.labelling > 0 && mask != FlowKey::ZERO {
            for place in [field::ETH_TYPE, field::MPLS_1, field::MPLS_2, field::MPLS_PAYLOAD] {
                mask.set(place, u64::MAX);
            }
        }
        if self.tables.drop_fragments {
            mask.set(field::IP_FRAGMENT, 1);
        }
        self.tables.mask = mask;
    }
}

/// Groups and meters.
impl FlowTables {
    fn check_instructions(&self, table: u8, instructions: &Instructions) -> Result<(), FlowModError> {
        if let Some(goto) = instructions.goto
            && (goto <= table || usize::from(goto) >= TABLES)
        {
            return Err(FlowModError::BadGoto { table, goto });
        }
        if let Some(id) = instructions.groups().find(|id| !self.groups.contains(*id)) {
            return Err(FlowModError::UnknownGroup(id));
        }
        match instructions.meter {
            Some(id) if !self.meters.contains(id) => Err(FlowModError::UnknownMeter(id)),
            _ => Ok(()),
        }
    }

    /// The groups.
    pub(crate) fn groups(&self) -> &GroupTable {
        &self.groups
    }

    /// The meters.
    pub(crate) fn meters(&self) -> &MeterTable {
        &self.meters
    }

    /// Which ports are up decides which buckets of groups are live.
    pub fn set_ports(&mut self, ports: &Arc<Ports>) {
        self.ports = ports.clone();
        self.publish_groups();
    }

    fn publish_groups(&mut self) {
        self.tables.groups = Arc::new(self.groups.live(&self.ports));
    }

    fn publish_meters(&mut self) {
        self.tables.meters = Arc::new(self.meters.live());
    }

    /// Carries out a change of a group, and returns the flows that it deleted. A modified group counts anew.
    ///
    /// # Errors
    /// Nothing is changed then.
    pub fn apply_group(&mut self, change: &GroupChange, now_ms: u64) -> Result<Vec<Removed>, GroupError> {
        let deleted = self.groups.apply(change, now_ms)?;
        self.publish_groups();
        if !deleted.iter().any(|id| self.groups.users.contains_key(id)) {
            return Ok(Vec::new());
        }
        let uses = |flow: &Flow| flow.instructions.groups().any(|id| deleted.binary_search(&id).is_ok());
        Ok(self.take_all(uses, RemovedReason::GroupDelete, now_ms))
    }

    /// Carries out a change of a meter, and returns the flows that it deleted.
    ///
    /// # Errors
    /// Nothing is changed then.
    pub fn apply_meter(&mut self, change: &MeterChange, now_ms: u64) -> Result<Vec<Removed>, MeterError> {
        let deleted = self.meters.apply(change, now_ms)?;
        self.publish_meters();
        if !deleted.iter().any(|id| self.meters.users.contains_key(id)) {
            return Ok(Vec::new());
        }
        let uses = |flow: &Flow| flow.instructions.meter.is_some_and(|id| deleted.binary_search(&id).is_ok());
        Ok(self.take_all(uses, RemovedReason::Delete, now_ms))
    }

    /// Takes out every flow of which `which` is true.
    fn take_all(
        &mut self,
        which: impl Fn(&Flow) -> bool,
        reason: RemovedReason,
        now_ms: u64,
    ) -> Vec<Removed> {
        let all = self.tables.tables.iter().flat_map(|table| table.iter());
        let flows: Vec<Arc<Flow>> = all.filter(|flow| which(flow)).cloned().collect();
        flows.iter().for_each(|flow| self.take(flow));
        flows.into_iter().map(|flow| Removed { flow, reason, at_ms: now_ms }).collect()
    }
}

fn pops(flow: &Flow) -> bool {
    flow.instructions.actions().any(|action| matches!(action, Action::Edit(Edit::PopVlan)))
}

fn labels(flow: &Flow) -> bool {
    let changes = |edit: &Edit| matches!(edit, Edit::PushMpls(_) | Edit::PopMpls(_) | Edit::SetMplsBos(_));
    flow.instructions.actions().any(|action| matches!(action, Action::Edit(edit) if changes(edit)))
}

/// Whether some flow of this priority can match a packet that the given match matches too. That includes a flow
/// with the very same match: the check comes before the replacement (OpenFlow 1.3.5, 6.4).
fn overlaps(table: &Table, key: &FlowKey, mask: &FlowKey, priority: u16) -> bool {
    table.iter().any(|flow| {
        let common = mask.masked(&flow.mask);
        flow.priority == priority && flow.key().matches(key, &common)
    })
}

fn select_in(subtable: &SubTable, selection: &Selection, flows: &mut Vec<Arc<Flow>>) {
    if let Some(priority) = selection.strict_priority {
        if **subtable.mask() == selection.mask {
            let key = PackedKey::new(&selection.key, &selection.mask);
            let flow = subtable.get(&key, priority);
            flows.extend(flow.filter(|flow| selection.wants(flow)).cloned());
        }
    } else if subtable.mask().covers(&selection.mask) {
        flows.extend(subtable.iter().filter(|flow| selection.wants(flow)).cloned());
    }
}

/// When a flow's time is over as far as is known now, and why.
fn expiry(flow: &Flow) -> Option<(u64, RemovedReason)> {
    let hard = (flow.hard_timeout_s != 0)
        .then(|| (flow.created_ms + u64::from(flow.hard_timeout_s) * 1000, RemovedReason::HardTimeout));
    let used_ms = || flow.stats.sum().used_ms.max(flow.created_ms);
    let idle = (flow.idle_timeout_s != 0)
        .then(|| (used_ms() + u64::from(flow.idle_timeout_s) * 1000, RemovedReason::IdleTimeout));
    hard.into_iter().chain(idle).min_by_key(|(at_ms, _)| *at_ms)
}
