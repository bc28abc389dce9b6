//! Tables, decision and cache against a naive model: a list of rules that is scanned for every packet.

use std::collections::BTreeMap;
use std::sync::Arc;

use packet::{Edit, FlowKey, MacAddr, field};
use proptest::prelude::*;
use vswitch::fdb::Fdb;
use vswitch::flow::{Action, FlowFlags, Instructions};
use vswitch::flow_tables::{ANY_GROUP, FlowModError, FlowTables, NewFlow, RemovedReason, Selection};
use vswitch::forwarder::{BATCH_MAX, Forwarder, VerdictId};
use vswitch::model::{DropReason, Op, PortNo, Snapshot, Target};
use vswitch::pipeline::{Decision, decide};

const LIMIT: usize = 18;

/// A rule of the model. No two of a table with different matches have the same priority, so that the specification
/// says which one decides.
#[derive(Clone, Debug)]
struct Rule {
    flow: NewFlow,
    packets: u64,
    bytes: u64,
}

#[derive(Clone, Debug)]
enum Step {
    Add { rule: usize, program: usize, cookie: u64, reset: bool },
    Modify { rule: usize, program: usize, strict: bool, reset: bool },
    Delete { rule: usize, strict: bool, all_tables: bool, cookie: Option<u64>, out_port: Option<u32> },
    Publish,
    Packets(Vec<usize>),
}

fn mask_and_key() -> impl Strategy<Value = (FlowKey, FlowKey)> {
    let fields = prop_oneof![
        Just((field::IN_PORT, vec![1, 2], u64::from(u32::MAX))),
        Just((field::ETH_DST, vec![0x0200_0000_0001, 0x0200_0000_0002], (1 << 48) - 1)),
        Just((field::VLAN_VID, vec![0, 0x100a, 0x1014], 0x1fff)),
        Just((field::VLAN_VID, vec![0x0002], 0x0002)),
        Just((field::ETH_TYPE, vec![0x0800, 0x86dd], 0xffff)),
        Just((field::IPV4_SRC, vec![0x0a00_0000, 0x0a01_0000], 0xffff_0000)),
        Just((field::IPV4_SRC, vec![0x0a00_0001, 0x0a01_0001], 0xffff_ffff)),
        Just((field::TP_DST, vec![80, 443], 0xffff)),
        Just((field::IPV6_SRC_LO, vec![1, 2], u64::MAX)),
        Just((field::IPV6_DST_LO, vec![1, 2], u64::MAX)),
        Just((field::ND_TARGET_LO, vec![1, 2], u64::MAX)),
        Just((field::METADATA, vec![1, 2], 0x3)),
    ];
    let chosen = fields.prop_flat_map(|(field, values, mask)| {
        proptest::sample::select(values).prop_map(move |value| (field, value, mask))
    });
    proptest::collection::vec(chosen, 0..3).prop_map(|fields| {
        let (mut mask, mut key) = (FlowKey::ZERO, FlowKey::ZERO);
        for (field, value, bits) in fields {
            mask.set(field, bits);
            key.set(field, value & bits);
        }
        (mask, key)
    })
}

fn rules() -> impl Strategy<Value = Vec<(u8, FlowKey, FlowKey)>> {
    proptest::collection::vec((proptest::sample::select(vec![0, 0, 0, 1, 1, 2]), mask_and_key()), 20..24)
        .prop_map(|rules| rules.into_iter().map(|(table, (mask, key))| (table, mask, key)).collect())
}

fn program() -> impl Strategy<Value = Instructions> {
    let output = |port| Action::Output { port, max_len: 0xffff };
    let action = prop_oneof![
        (1..4u32).prop_map(move |port| output(PortNo(port))),
        Just(output(PortNo::NORMAL)),
        Just(output(PortNo::CONTROLLER)),
        Just(Action::Edit(Edit::PushVlan(0x8100))),
        Just(Action::Edit(Edit::PopVlan)),
        Just(Action::Edit(Edit::SetVlanVid(20))),
        Just(Action::Edit(Edit::SetVlanPcp(5))),
        Just(Action::Edit(Edit::SetEthDst(MacAddr([2, 0, 0, 0, 0, 2])))),
    ];
    let list = || proptest::collection::vec(action.clone(), 0..3);
    let metadata = proptest::option::of((0..4u64, 1..4u64));
    (list(), any::<bool>(), list(), metadata, proptest::option::of(1..4u8)).prop_map(
        |(apply, clear, write, metadata, goto)| Instructions {
            apply,
            clear,
            write,
            metadata,
            goto,
            ..Instructions::default()
        },
    )
}

fn packet_key() -> impl Strategy<Value = FlowKey> {
    let tag = proptest::sample::select(vec![0u64, 0x100a, 0x1014, 0x300a]);
    let fields = (
        1..3u64,
        1..3u64,
        tag.clone(),
        tag,
        0..2u64,
        0..2u64,
        proptest::sample::select(vec![80u64, 443]),
        1..3u64,
    );
    fields.prop_map(|(port, dst, outer, inner, kind, net, tp, low)| {
        FlowKey::ZERO
            .with(field::IN_PORT, port)
            .with(field::ETH_DST, 0x0200_0000_0000 | dst)
            .with(field::VLAN_TCI, outer)
            .with(field::VLAN_TCI_2, if outer == 0 { 0 } else { inner })
            .with(field::ETH_TYPE, if kind == 0 { 0x0800 } else { 0x86dd })
            .with(field::IPV4_SRC, 0x0a00_0001 | (net << 16))
            .with(field::TP_DST, tp)
            .with(field::IPV6_SRC_LO, low)
            .with(field::IPV6_DST_LO, 3 - low)
            .with(field::ND_TARGET_LO, low)
    })
}

fn step(rules: usize) -> impl Strategy<Value = Step> {
    let rule = 0..rules;
    prop_oneof![
        12 => (rule.clone(), 0..6usize, 0..3u64, any::<bool>())
            .prop_map(|(rule, program, cookie, reset)| Step::Add { rule, program, cookie, reset }),
        2 => (rule.clone(), 0..6usize, any::<bool>(), any::<bool>())
            .prop_map(|(rule, program, strict, reset)| Step::Modify { rule, program, strict, reset }),
        2 => (rule, any::<bool>(), any::<bool>(), proptest::option::of(0..3u64), proptest::option::of(1..4u32))
            .prop_map(|(rule, strict, all_tables, cookie, out_port)| Step::Delete {
                rule, strict, all_tables, cookie, out_port
            }),
        3 => Just(Step::Publish),
        4 => proptest::collection::vec(0..32usize, 1..BATCH_MAX).prop_map(Step::Packets),
    ]
}

/// The pipeline as the specification tells it, over a list of rules. Returns what is to be done and the rules that
/// matched.
fn model_decide(rules: &BTreeMap<(u8, u16), Rule>, key: &FlowKey) -> (Vec<Op>, Vec<(u8, u16)>, DropReason) {
    let mut key = key.with(field::METADATA, 0);
    let (mut ops, mut matched) = (Vec::new(), Vec::new());
    let mut set: BTreeMap<u32, Action> = BTreeMap::new();
    let mut table = 0;
    let mut at;
    loop {
        let best = rules
            .iter()
            .filter(|((number, _), _)| *number == table)
            .filter(|(_, rule)| {
                (0..16).all(|w| (rule.flow.key.words()[w] ^ key.words()[w]) & rule.flow.mask.words()[w] == 0)
            })
            .max_by_key(|((_, priority), _)| *priority);
        let Some((id, rule)) = best else {
            return (ops, matched, DropReason::TableMiss);
        };
        matched.push(*id);
        at = (rule.flow.table, rule.flow.cookie, rule.flow.priority == 0 && *rule.flow.mask == FlowKey::ZERO);
        for action in &rule.flow.instructions.apply {
            model_execute(action, &mut key, at, &mut ops);
        }
        if rule.flow.instructions.clear {
            set.clear();
        }
        for action in &rule.flow.instructions.write {
            set.insert(model_order(action), *action);
        }
        if let Some((value, mask)) = rule.flow.instructions.metadata {
            let old = key.get(field::METADATA);
            key.set(field::METADATA, (old & !mask) | (value & mask));
        }
        match rule.flow.instructions.goto {
            Some(next) => table = next,
            None => break,
        }
    }
    for action in set.values() {
        model_execute(action, &mut key, at, &mut ops);
    }
    (ops, matched, DropReason::NoActions)
}

/// 5.10: pop, push VLAN, set, output.
fn model_order(action: &Action) -> u32 {
    match action {
        Action::Edit(Edit::PopVlan) => 1,
        Action::Edit(Edit::PushVlan(_)) => 2,
        Action::Edit(Edit::SetVlanVid(_)) => 3,
        Action::Edit(Edit::SetVlanPcp(_)) => 4,
        Action::Edit(_) => 5,
        Action::Group(_) | Action::Output { .. } => 100,
    }
}

fn model_execute(
    action: &Action,
    key: &mut FlowKey,
    (table, cookie, miss): (u8, u64, bool),
    ops: &mut Vec<Op>,
) {
    use vswitch::model::{Origin, PacketInReason};
    let (metadata, tunnel_id) = (key.get(field::METADATA), key.get(field::TUNNEL_ID));
    let origin = Origin { table, cookie, metadata, tunnel_id };
    match *action {
        Action::Edit(edit) => {
            edit.apply_to_key(key);
            ops.push(Op::Edit(edit));
        }
        Action::Output { port: PortNo::NORMAL, .. } => ops.push(Op::Output(Target::Normal)),
        Action::Output { port: PortNo::CONTROLLER, max_len } => {
            let reason = if miss { PacketInReason::TableMiss } else { PacketInReason::Action };
            ops.push(Op::Output(Target::Controller { max_len, reason, origin }));
        }
        Action::Output { port, .. } => ops.push(Op::Output(Target::Port(port))),
        Action::Group(id) => ops.push(Op::Group { id, origin }),
    }
}

/// As the switch shortens it: nothing after the last output, a reason only without outputs.
fn model_verdict(mut ops: Vec<Op>, drop: DropReason) -> (Vec<Op>, DropReason) {
    let outputs = ops.iter().rposition(|op| matches!(op, Op::Output(_)));
    ops.truncate(outputs.map_or(0, |at| at + 1));
    let drop = if ops.is_empty() { drop } else { DropReason::NoActions };
    (ops, drop)
}

struct World {
    pool: Vec<(u8, FlowKey, FlowKey)>,
    programs: Vec<Arc<Instructions>>,
    keys: Vec<FlowKey>,
    tables: FlowTables,
    forwarder: Forwarder,
    epoch: u64,
    /// By table and priority.
    model: BTreeMap<(u8, u16), Rule>,
    published: BTreeMap<(u8, u16), Rule>,
    /// Counted, by cell of the model that was current when it was published: id of the flow's counters.
    gone: Vec<(Arc<vswitch::flow::Flow>, u64, u64)>,
}

impl World {
    fn priority(rule: usize) -> u16 {
        // One rule is a table-miss entry if its match is empty.
        rule as u16
    }

    /// Instructions for a table: goto only forward.
    fn instructions(&self, program: usize, table: u8) -> Arc<Instructions> {
        let mut instructions = (*self.programs[program % self.programs.len()]).clone();
        instructions.goto = instructions.goto.filter(|goto| *goto > table);
        Arc::new(instructions)
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Add { rule, program, cookie, reset } => self.add(*rule, *program, *cookie, *reset),
            Step::Modify { rule, program, strict, reset } => self.modify(*rule, *program, *strict, *reset),
            Step::Delete { rule, strict, all_tables, cookie, out_port } => {
                self.delete(*rule, *strict, *all_tables, *cookie, *out_port);
            }
            Step::Publish => self.publish(),
            Step::Packets(packets) => self.packets(packets),
        }
    }

    fn add(&mut self, rule: usize, program: usize, cookie: u64, reset: bool) {
        let rule = rule % self.pool.len();
        let (table, mask, key) = self.pool[rule];
        let flow = NewFlow {
            table,
            priority: World::priority(rule),
            key,
            mask: Arc::new(mask),
            cookie,
            idle_timeout_s: 0,
            hard_timeout_s: 0,
            flags: FlowFlags { reset_counts: reset, ..FlowFlags::default() },
            instructions: self.instructions(program, table),
        };
        let id = (table, flow.priority);
        let old = self.model.get(&id);
        let result = self.tables.add(&flow, 1);
        if old.is_none() && self.model.len() >= LIMIT {
            assert_eq!(result, Err(FlowModError::TableFull { limit: LIMIT }));
            return;
        }
        assert_eq!(result, Ok(()));
        let (packets, bytes) = old.filter(|_| !reset).map_or((0, 0), |old| (old.packets, old.bytes));
        self.model.insert(id, Rule { flow, packets, bytes });
    }

    fn selection(&self, rule: usize, strict: bool) -> Selection {
        let rule = rule % self.pool.len();
        let (table, mask, key) = self.pool[rule];
        let strict_priority = strict.then(|| World::priority(rule));
        Selection { table: Some(table), strict_priority, key, mask, ..Selection::all() }
    }

    fn selected(model: &BTreeMap<(u8, u16), Rule>, selection: &Selection) -> Vec<(u8, u16)> {
        let fits = |rule: &Rule| {
            let flow = &rule.flow;
            let table = selection.table.is_none_or(|table| table == flow.table);
            let what = match selection.strict_priority {
                Some(priority) => {
                    flow.priority == priority && *flow.mask == selection.mask && flow.key == selection.key
                }
                None => (0..16).all(|w| {
                    let mask = selection.mask.words()[w];
                    flow.mask.words()[w] & mask == mask
                        && (flow.key.words()[w] ^ selection.key.words()[w]) & mask == 0
                }),
            };
            let out = selection.out_port == PortNo::ANY
                || flow.instructions.apply.iter().chain(&flow.instructions.write).any(
                    |action| matches!(action, Action::Output { port, .. } if *port == selection.out_port),
                );
            let cookie = (flow.cookie ^ selection.cookie) & selection.cookie_mask == 0;
            table && what && out && cookie && selection.out_group == ANY_GROUP
        };
        model.iter().filter(|(_, rule)| fits(rule)).map(|(id, _)| *id).collect()
    }

    fn modify(&mut self, rule: usize, program: usize, strict: bool, reset: bool) {
        let selection = self.selection(rule, strict);
        let instructions = self.instructions(program, selection.table.expect("set above"));
        let ids = World::selected(&self.model, &selection);
        assert_eq!(self.tables.modify(&selection, &instructions, reset), Ok(ids.len()));
        for id in ids {
            let rule = self.model.get_mut(&id).expect("selected");
            rule.flow.instructions = instructions.clone();
            if reset {
                (rule.packets, rule.bytes) = (0, 0);
            }
        }
    }

    fn delete(&mut self, rule: usize, strict: bool, all: bool, cookie: Option<u64>, out_port: Option<u32>) {
        let mut selection = self.selection(rule, strict);
        if all {
            selection.table = None;
        }
        if let Some(cookie) = cookie {
            (selection.cookie, selection.cookie_mask) = (cookie, u64::MAX);
        }
        selection.out_port = out_port.map_or(PortNo::ANY, PortNo);
        let ids = World::selected(&self.model, &selection);
        let removed = self.tables.delete(&selection, 1).expect("the table exists");
        let mut found: Vec<_> =
            removed.iter().map(|removed| (removed.flow.table, removed.flow.priority)).collect();
        found.sort_unstable();
        assert_eq!(found, ids);
        assert!(removed.iter().all(|removed| removed.reason == RemovedReason::Delete));
        for removed in removed {
            let rule = self.model.remove(&(removed.flow.table, removed.flow.priority)).expect("selected");
            self.gone.push((removed.flow, rule.packets, rule.bytes));
        }
    }

    fn publish(&mut self) {
        self.epoch += 1;
        let tables = self.tables.tables().clone();
        self.forwarder.apply(Arc::new(Snapshot { epoch: self.epoch, tables, ports: Arc::default() }));
        self.published = self.model.clone();
    }

    fn packets(&mut self, packets: &[usize]) {
        // The counters of the model belong to the current rules, so packets are only sent through current tables.
        self.publish();
        let keys: Vec<FlowKey> = packets.iter().map(|packet| self.keys[packet % self.keys.len()]).collect();
        let bytes: Vec<u32> = (0..keys.len() as u32).map(|i| 60 + i).collect();
        let mut verdicts = vec![VerdictId::default(); keys.len()];
        self.forwarder.classify(&keys, &bytes, &mut verdicts, 5);
        let mut decision = Decision::default();
        for ((key, bytes), verdict) in keys.iter().zip(&bytes).zip(&verdicts) {
            let (ops, matched, drop) = model_decide(&self.published, key);
            let (ops, drop) = model_verdict(ops, drop);
            decide(self.tables.tables(), key, &mut decision);
            let looked_up = decision.verdict();
            assert_eq!(*looked_up.ops, *ops, "decide, {key:?}");
            assert_eq!(decision.matched.len(), matched.len());
            let cached = self.forwarder.verdict(*verdict);
            assert_eq!(*cached.ops, *ops, "cache, {key:?}");
            if ops.is_empty() {
                assert_eq!((looked_up.drop, cached.drop), (drop, drop));
            }
            for id in matched {
                let rule = self.model.get_mut(&id).expect("just published");
                rule.packets += 1;
                rule.bytes += u64::from(*bytes);
            }
        }
    }

    fn check_counters(&mut self) {
        self.forwarder.start_drain();
        while !self.forwarder.drain(3) {}
        for flow in self.tables.select(&Selection::all()).expect("all tables") {
            let counters = flow.stats.sum();
            let rule = &self.model[&(flow.table, flow.priority)];
            assert_eq!((counters.packets, counters.bytes), (rule.packets, rule.bytes), "{:?}", flow.key());
        }
        for (flow, packets, bytes) in &self.gone {
            let counters = flow.stats.sum();
            assert_eq!((counters.packets, counters.bytes), (*packets, *bytes), "deleted {:?}", flow.key());
        }
        assert_eq!(self.tables.len(), self.model.len());
        assert_eq!(self.tables.tables().len(), self.model.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn decisions_and_counters_are_those_of_a_list_of_rules(
        pool in rules(),
        programs in proptest::collection::vec(program(), 6),
        keys in proptest::collection::vec(packet_key(), 32),
        steps in proptest::collection::vec(step(24), 1..120),
    ) {
        let fdb = Arc::new(Fdb::new(16, 300, 1));
        let mut world = World {
            pool,
            programs: programs.into_iter().map(Arc::new).collect(),
            keys,
            tables: FlowTables::new(1, LIMIT),
            forwarder: Forwarder::new(0, Arc::new(Snapshot::initial(1)), fdb, 7),
            epoch: 0,
            model: BTreeMap::new(),
            published: BTreeMap::new(),
            gone: Vec::new(),
        };
        for step in &steps {
            world.step(step);
        }
        world.check_counters();
    }
}
