//! The decision: a pure function of tables and key.

use std::sync::Arc;

use packet::{Edit, FlowKey, field};

use crate::flow::{Action, ActionSet, Flow, FlowStats};
use crate::model::{DropReason, Op, Origin, PacketInReason, PortNo, Tail, Target, Verdict};
use crate::tables::{TABLES, Tables};

/// Steps of one verdict. A packet that would need more (flows of many tables with long action lists) is dropped
/// at that point: the limit keeps the work for one packet bounded.
pub const OPS_MAX: usize = 1024;

/// What was decided for a packet, and which flows had a part in it. Reusable: the lists keep their room.
#[derive(Default)]
pub struct Decision {
    /// What to do.
    pub ops: Vec<Op>,
    /// Why the packet ends, if there is no output among `ops`.
    pub drop: Option<DropReason>,
    /// The counters of the flows that matched, in the order of the tables.
    pub matched: Vec<FlowStats>,
    /// Bit `t`: table `t` was looked up.
    pub looked_up: u64,
    /// Bit `t`: a flow of table `t` matched.
    pub hit: u64,
    /// The same for tables behind steps that may end a packet.
    pub tails: Vec<Tail>,
    /// The tables that were asked, for who wants to know why (`Some` before the decision); workers do not.
    pub visits: Option<Vec<Visit>>,
    action_set: ActionSet,
}

/// A table that was asked.
#[derive(Clone, Debug)]
pub struct Visit {
    /// The table.
    pub table: u8,
    /// The packet as it was then.
    pub key: FlowKey,
    /// The flow that matched.
    pub flow: Option<Arc<Flow>>,
}

impl Decision {
    /// One that notes which tables were asked.
    pub fn explained() -> Decision {
        Decision { visits: Some(Vec::new()), ..Decision::default() }
    }

    /// Whether MAC learning has a say in where the packet goes.
    pub fn uses_learning(&self) -> bool {
        self.ops.iter().any(|op| matches!(op, Op::Output(Target::Normal | Target::Flood)))
    }

    fn clear(&mut self) {
        if let Some(visits) = &mut self.visits {
            visits.clear();
        }
        self.ops.clear();
        self.tails.clear();
        self.matched.clear();
        self.action_set.clear();
        (self.drop, self.looked_up, self.hit) = (None, 0, 0);
    }

    /// The decision as a value of its own.
    pub fn verdict(&self) -> Verdict {
        Verdict {
            ops: self.ops.as_slice().into(),
            drop: self.drop.unwrap_or(DropReason::NoActions),
            sends: self.ops.iter().any(sends),
            tails: self.tails.as_slice().into(),
        }
    }

    fn look_up(&mut self, table: u8) {
        let looked_up = self.tails.last_mut().map_or(&mut self.looked_up, |tail| &mut tail.looked_up);
        *looked_up |= 1 << table;
    }

    fn count(&mut self, table: u8, stats: &FlowStats) {
        let (hit, flows) = match self.tails.last_mut() {
            Some(tail) => (&mut tail.hit, &mut tail.flows),
            None => (&mut self.hit, &mut self.matched),
        };
        *hit |= 1 << table;
        flows.push(stats.clone());
    }
}

/// The flow whose actions are being executed: what a packet-in says about it.
#[derive(Clone, Copy)]
struct Executed {
    reason: PacketInReason,
    table: u8,
    cookie: u64,
}

impl Executed {
    /// A packet-out.
    const NONE: Executed =
        Executed { reason: PacketInReason::Action, table: Origin::NONE.table, cookie: Origin::NONE.cookie };

    fn origin(self, key: &FlowKey) -> Origin {
        let (metadata, tunnel_id) = (key.get(field::METADATA), key.get(field::TUNNEL_ID));
        Origin { table: self.table, cookie: self.cookie, metadata, tunnel_id }
    }
}

/// Runs the pipeline for a packet with this key: OpenFlow 1.3.5, 5.1.
pub fn decide(tables: &Tables, key: &FlowKey, decision: &mut Decision) {
    decision.clear();
    run(tables, key.with(field::METADATA, 0), decision);
    finish(decision);
}

/// Executes the action list of a packet-out (OpenFlow 1.3.5, 7.3.7) on a packet with this key. An output to
/// TABLE runs the pipeline for the packet as it then is.
pub fn decide_actions(tables: &Tables, key: &FlowKey, actions: &[Action], decision: &mut Decision) {
    decision.clear();
    let mut key = *key;
    for action in actions {
        match *action {
            Action::Output { port: PortNo::TABLE, .. } => {
                run(tables, key.with(field::METADATA, 0), decision);
                decision.action_set.clear();
            }
            action => execute(action, &mut key, Executed::NONE, decision),
        }
    }
    finish(decision);
}

fn finish(decision: &mut Decision) {
    if decision.ops.len() > OPS_MAX {
        decision.ops.truncate(OPS_MAX);
    }
    // Edits after the last step that somebody sees change nothing.
    let last = decision.ops.iter().rposition(|op| !matches!(op, Op::Edit(_)));
    decision.ops.truncate(last.map_or(0, |at| at + 1));
    if decision.ops.iter().any(sends) {
        decision.drop = None;
    }
}

fn sends(op: &Op) -> bool {
    matches!(op, Op::Output(_) | Op::Group { .. })
}

/// Whether a packet may get no further than this step: then the tables behind it do not count it.
fn may_end(op: &Op) -> bool {
    matches!(op, Op::Meter(_) | Op::Edit(Edit::DecTtl | Edit::DecMplsTtl))
}

fn run(tables: &Tables, mut key: FlowKey, decision: &mut Decision) {
    let mut number = 0;
    // Steps before this one were looked at: see `may_end`.
    let mut seen = decision.ops.len();
    if tables.drops_fragments() && key.get(field::IP_FRAGMENT) != 0 {
        decision.drop = Some(DropReason::Fragment);
        return;
    }
    let mut executed = Executed::NONE;
    while let Some(table) = tables.table(number) {
        decision.look_up(number);
        let found = table.lookup(&key);
        if let Some(visits) = &mut decision.visits {
            visits.push(Visit { table: number, key, flow: found.cloned() });
        }
        let Some(flow) = found else {
            if number == 0 && tables.normal_on_miss() {
                decision.ops.push(Op::Output(Target::Normal));
            }
            decision.drop = Some(DropReason::TableMiss);
            return;
        };
        decision.count(number, &flow.stats);
        let miss_entry = flow.priority == 0 && *flow.mask == FlowKey::ZERO;
        let reason = if miss_entry { PacketInReason::TableMiss } else { PacketInReason::Action };
        executed = Executed { reason, table: number, cookie: flow.cookie };
        let instructions = &flow.instructions;
        if let Some(meter) = instructions.meter {
            decision.ops.push(Op::Meter(meter));
        }
        for action in &instructions.apply {
            execute(*action, &mut key, executed, decision);
        }
        if instructions.clear {
            decision.action_set.clear();
        }
        for action in &instructions.write {
            decision.action_set.write(*action);
        }
        if let Some((value, mask)) = instructions.metadata {
            key.set(field::METADATA, (key.get(field::METADATA) & !mask) | (value & mask));
        }
        match instructions.goto {
            // Only forward: checked when the flow was added, checked again so that a loop cannot be.
            Some(next) if next > number && usize::from(next) < TABLES => {
                if decision.ops[seen..].iter().any(may_end) {
                    decision.ops.push(Op::Passed(decision.tails.len() as u8));
                    decision.tails.push(Tail::default());
                }
                seen = decision.ops.len();
                number = next;
            }
            _ => break,
        }
    }
    let action_set = std::mem::take(&mut decision.action_set);
    for action in action_set.actions() {
        execute(*action, &mut key, executed, decision);
        if matches!(action, Action::Group(_)) {
            // A group takes the place of the output (5.10).
            break;
        }
    }
    decision.action_set = action_set;
    decision.drop = Some(DropReason::NoActions);
}

fn execute(action: Action, key: &mut FlowKey, executed: Executed, decision: &mut Decision) {
    if decision.ops.len() >= OPS_MAX {
        return;
    }
    match action {
        Action::Edit(edit) => {
            // Whether the packet has the field at all is seen when the edit is carried out: the decision is
            // shared by packets that differ in fields no flow looks at.
            edit.apply_to_key(key);
            decision.ops.push(Op::Edit(edit));
        }
        // Its buckets work on copies: nothing that follows depends on them.
        Action::Group(id) => decision.ops.push(Op::Group { id, origin: executed.origin(key) }),
        Action::Output { port, max_len } => {
            if let Some(target) = target(port, max_len, executed.reason, executed.origin(key)) {
                decision.ops.push(Op::Output(target));
            }
        }
    }
}

/// The steps of a bucket with this action set. Who sent the packet through the group is filled in when they are taken.
pub(crate) fn steps_of_bucket(set: &ActionSet) -> Vec<Op> {
    let (reason, origin) = (PacketInReason::Action, Origin::NONE);
    let mut ops = Vec::new();
    for action in set.actions() {
        match *action {
            Action::Edit(edit) => ops.push(Op::Edit(edit)),
            Action::Group(id) => {
                ops.push(Op::Group { id, origin });
                break;
            }
            Action::Output { port, max_len } => {
                ops.extend(target(port, max_len, reason, origin).map(Op::Output))
            }
        }
    }
    ops
}

fn target(port: PortNo, max_len: u16, reason: PacketInReason, origin: Origin) -> Option<Target> {
    Some(match port {
        PortNo::IN_PORT => Target::InPort,
        PortNo::NORMAL => Target::Normal,
        PortNo::FLOOD => Target::Flood,
        PortNo::ALL => Target::All,
        PortNo::CONTROLLER => Target::Controller { max_len, reason, origin },
        // TABLE is only legal in packet-outs and handled there; ANY is never legal.
        PortNo::TABLE | PortNo::ANY => return None,
        port => Target::Port(port),
    })
}
