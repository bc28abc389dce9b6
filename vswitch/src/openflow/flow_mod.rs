//! Flow-mods.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use ofp::{Addition, ErrorCode, FlowMod, FlowModCommand, FlowModFlags};
use packet::FlowKey;

use super::{Head, convert};
use crate::bridge::Bridge;
use crate::flow::{Action, Instructions};
use crate::flow_tables::{FlowChange, NewFlow, Removed, Selection};
use crate::hash::ControllersHasher;

/// The change that a flow-mod asks for; `last` has the instructions of the one before it.
///
/// # Errors
/// The code to answer with.
pub fn change(flow_mod: &FlowMod, last: &mut LastInstructions) -> Result<FlowChange, ErrorCode> {
    match flow_mod.command {
        FlowModCommand::Add => add(flow_mod, last),
        FlowModCommand::Modify | FlowModCommand::ModifyStrict => modify(flow_mod, last),
        FlowModCommand::Delete | FlowModCommand::DeleteStrict => selection(flow_mod).map(FlowChange::Delete),
    }
}

/// Flow-mods that are carried out together: fewer wait longer for memory, each by itself.
const TOGETHER: usize = 32;

/// Flow-mods of a controller that wait to be carried out. Nobody waits for them longer than it takes to read others that
/// were received with them.
#[derive(Default)]
pub struct Waiting {
    changes: Vec<FlowChange>,
    messages: Vec<Head>,
    last: LastInstructions,
    known: KnownInstructions,
}

impl Waiting {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Whether these are enough for now.
    pub fn are_enough(&self) -> bool {
        self.changes.len() >= TOGETHER
    }

    /// Takes a flow-mod that adds an entry, which came as `message`, if entries before it did the same to other packets:
    /// so it is with nearly all of a long stream. `false`: decode it, then [`Waiting::push`] tells.
    pub fn push_known(&mut self, add: &Addition<'_>, message: &[u8]) -> bool {
        let Some(change) = self.known.change(add) else { return false };
        self.changes.push(change);
        self.messages.push(Head::new(message));
        true
    }

    /// Takes a flow-mod, which came as `message`.
    ///
    /// # Errors
    /// The code to answer with; the others wait as before.
    pub fn push(&mut self, flow_mod: &FlowMod, message: &[u8]) -> Result<(), ErrorCode> {
        let change = change(flow_mod, &mut self.last)?;
        self.known.learn(message, &change);
        self.changes.push(change);
        self.messages.push(Head::new(message));
        Ok(())
    }

    /// Carries all of them out, one by one. `done` gets each one's message and the flows that it removed, or the code to
    /// answer with.
    pub fn carry_out(
        &mut self,
        bridge: &Bridge,
        mut done: impl FnMut(&[u8], Result<Vec<Removed>, ErrorCode>),
    ) {
        let messages = &self.messages;
        bridge.apply_flows(&self.changes, |at, result| {
            done(messages[at].bytes(), result.map_err(convert::flow_mod_error));
        });
        self.changes.clear();
        self.messages.clear();
    }
}

/// Different instructions, and different masks, of a controller that are known at once.
const KNOWN_MAX: usize = 256;
/// Bytes of instructions that are kept: no controller makes the switch remember much.
const KNOWN_BYTES_MAX: usize = 1024;

/// What a controller had entries do, by what it was on the wire.
#[derive(Default)]
pub struct KnownInstructions {
    by_wire: HashMap<Vec<u8>, Arc<Instructions>, BuildHasherDefault<ControllersHasher>>,
    masks: KnownMasks,
}

impl KnownInstructions {
    /// The change that an addition asks for; `None` if its instructions are not known, or something is wrong with it.
    pub fn change(&mut self, add: &Addition<'_>) -> Option<FlowChange> {
        let instructions = self.by_wire.get(add.instructions)?;
        let (mut key, mut mask) = (FlowKey::ZERO, FlowKey::ZERO);
        if !convert::addition(add, &mut key, &mut mask) {
            return None;
        }
        Some(FlowChange::Add(NewFlow {
            table: add.table_id,
            priority: add.priority,
            key,
            mask: self.masks.one(&mask),
            cookie: add.cookie,
            idle_timeout_s: add.idle_timeout,
            hard_timeout_s: add.hard_timeout,
            flags: convert::flags(add.flags),
            instructions: instructions.clone(),
        }))
    }

    /// `change` is what `message` asks for.
    pub fn learn(&mut self, message: &[u8], change: &FlowChange) {
        let (Some(add), FlowChange::Add(NewFlow { instructions, .. })) = (Addition::peek(message), change)
        else {
            return;
        };
        if add.instructions.len() <= KNOWN_BYTES_MAX && same_for_all(instructions) {
            if self.by_wire.len() >= KNOWN_MAX {
                self.by_wire.clear();
            }
            self.by_wire.insert(add.instructions.to_vec(), instructions.clone());
        }
    }
}

/// Masks that a controller used, each once: many flows wait in a bundle, and the holes that theirs would leave between
/// the flows of the tables stay.
#[derive(Default)]
struct KnownMasks {
    last: Arc<FlowKey>,
    known: HashSet<Arc<FlowKey>, BuildHasherDefault<ControllersHasher>>,
}

impl KnownMasks {
    /// The one copy of a mask.
    fn one(&mut self, mask: &FlowKey) -> Arc<FlowKey> {
        if *self.last != *mask {
            let known = self.known.get(mask).cloned();
            self.last = known.unwrap_or_else(|| Arc::new(*mask));
            if self.known.len() >= KNOWN_MAX {
                self.known.clear();
            }
            self.known.insert(self.last.clone());
        }
        self.last.clone()
    }
}

/// Edits make sense for some matches only, so they are looked at each time.
fn same_for_all(instructions: &Instructions) -> bool {
    !instructions.actions().any(|action| matches!(action, Action::Edit(_)))
}

/// The instructions of the last flow-mod of a controller: most say the same again.
#[derive(Default)]
pub struct LastInstructions {
    instructions: Option<Arc<Instructions>>,
    masks: KnownMasks,
}

fn instructions(flow_mod: &FlowMod, last: &mut LastInstructions) -> Result<Arc<Instructions>, ErrorCode> {
    let same = last.instructions.as_ref().filter(|last| last.wire == flow_mod.instructions);
    if let Some(same) = same {
        return Ok(same.clone());
    }
    let new = convert::instructions(&flow_mod.instructions, &flow_mod.matching)?;
    last.instructions = same_for_all(&new).then(|| new.clone());
    Ok(new)
}

/// There are no buffered packets to apply a new flow to.
fn check_buffer(flow_mod: &FlowMod) -> Result<(), ErrorCode> {
    if flow_mod.buffer_id == ofp::NO_BUFFER { Ok(()) } else { Err(ErrorCode::BUFFER_UNKNOWN) }
}

fn add(flow_mod: &FlowMod, last: &mut LastInstructions) -> Result<FlowChange, ErrorCode> {
    check_buffer(flow_mod)?;
    let (key, mask) = convert::key_and_mask(&flow_mod.matching)?;
    Ok(FlowChange::Add(NewFlow {
        table: flow_mod.table_id,
        priority: flow_mod.priority,
        key,
        mask: last.masks.one(&mask),
        cookie: flow_mod.cookie,
        idle_timeout_s: flow_mod.idle_timeout,
        hard_timeout_s: flow_mod.hard_timeout,
        flags: convert::flags(flow_mod.flags),
        instructions: instructions(flow_mod, last)?,
    }))
}

fn modify(flow_mod: &FlowMod, last: &mut LastInstructions) -> Result<FlowChange, ErrorCode> {
    check_buffer(flow_mod)?;
    if flow_mod.table_id == ofp::TABLE_ALL {
        return Err(ErrorCode::FLOW_MOD_BAD_TABLE_ID);
    }
    let mut selection = selection(flow_mod)?;
    // The output filters are for deletion only (7.3.4.1).
    (selection.out_port, selection.out_group) = (Selection::all().out_port, Selection::all().out_group);
    let instructions = instructions(flow_mod, last)?;
    let reset_counts = flow_mod.flags.contains(FlowModFlags::RESET_COUNTS);
    Ok(FlowChange::Modify { selection, instructions, reset_counts })
}

fn selection(flow_mod: &FlowMod) -> Result<Selection, ErrorCode> {
    let cookie = (flow_mod.cookie, flow_mod.cookie_mask);
    let (out_port, out_group) = (flow_mod.out_port, flow_mod.out_group);
    let selection = convert::selection(flow_mod.table_id, &flow_mod.matching, cookie, out_port, out_group)?;
    let strict = matches!(flow_mod.command, FlowModCommand::ModifyStrict | FlowModCommand::DeleteStrict);
    Ok(Selection { strict_priority: strict.then_some(flow_mod.priority), ..selection })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofp::{Body, Instruction, Message, OxmField};

    fn add(eth_type: u16, priority: u16, action: ofp::Action) -> Vec<u8> {
        let mut flow_mod = FlowMod::new(FlowModCommand::Add);
        (flow_mod.priority, flow_mod.cookie, flow_mod.table_id) = (priority, 0x1234, 5);
        (flow_mod.idle_timeout, flow_mod.hard_timeout) = (6, 7);
        flow_mod.flags = FlowModFlags::SEND_FLOW_REM;
        flow_mod.matching.fields = vec![OxmField::EthType(eth_type)];
        flow_mod.instructions = vec![Instruction::ApplyActions(vec![action])];
        (Message { xid: 1, body: Body::FlowMod(flow_mod) }).encode().expect("valid")
    }

    fn decoded(message: &[u8]) -> Result<FlowChange, ErrorCode> {
        match ofp::decode(message).expect("valid").body {
            Body::FlowMod(flow_mod) => change(&flow_mod, &mut LastInstructions::default()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn known_instructions_make_the_change_that_decoding_makes() {
        let to = |port| ofp::Action::Output { port: ofp::PortNo(port), max_len: 0 };
        let mut known = KnownInstructions::default();
        for priority in 0..3 {
            for port in [2, 3] {
                let message = add(0x0800, priority, to(port));
                let change = decoded(&message).expect("valid");
                let peeked = Addition::peek(&message).and_then(|add| known.change(&add));
                if priority == 0 {
                    assert!(peeked.is_none(), "nobody said that before");
                    known.learn(&message, &change);
                } else {
                    assert_eq!(format!("{:?}", peeked.expect("known")), format!("{change:?}"));
                }
            }
        }
        for port in 0..2 * KNOWN_MAX as u32 {
            let message = add(0x0800, 1, to(port + 1));
            known.learn(&message, &decoded(&message).expect("valid"));
        }
        assert!(known.by_wire.len() <= KNOWN_MAX, "{}", known.by_wire.len());
    }

    #[test]
    fn long_instructions_are_not_remembered() {
        let to = |port| ofp::Action::Output { port: ofp::PortNo(port), max_len: 0 };
        for (actions, remembered) in [(10, 1), (KNOWN_BYTES_MAX / 16, 0)] {
            let mut flow_mod = FlowMod::new(FlowModCommand::Add);
            flow_mod.instructions = vec![Instruction::ApplyActions((1..=actions as u32).map(to).collect())];
            let message = (Message { xid: 1, body: Body::FlowMod(flow_mod) }).encode().expect("valid");
            let mut known = KnownInstructions::default();
            known.learn(&message, &decoded(&message).expect("valid"));
            assert_eq!(known.by_wire.len(), remembered, "{actions} actions");
        }
    }

    #[test]
    fn flows_that_wait_share_their_masks() {
        let to = ofp::Action::Output { port: ofp::PortNo(2), max_len: 0 };
        let messages = [add(0x0800, 1, to.clone()), add(0x0806, 2, to)];
        let mut last = LastInstructions::default();
        let mut changes = Vec::new();
        for message in messages.iter().cycle().take(10) {
            let Body::FlowMod(mut flow_mod) = ofp::decode(message).expect("valid").body else { panic!() };
            flow_mod
                .matching
                .fields
                .extend((flow_mod.priority == 2).then_some(OxmField::InPort(ofp::PortNo(1))));
            changes.push(change(&flow_mod, &mut last).expect("valid"));
        }
        let mask = |change: &FlowChange| match change {
            FlowChange::Add(new) => new.mask.clone(),
            other => panic!("{other:?}"),
        };
        for (at, change) in changes.iter().enumerate() {
            assert!(Arc::ptr_eq(&mask(change), &mask(&changes[at % 2])), "{at}");
        }
    }

    #[test]
    fn edits_are_looked_at_with_each_match() {
        let edit = || ofp::Action::SetField(OxmField::Ipv4Src(ofp::Masked::exact([10, 0, 0, 1].into())));
        let mut known = KnownInstructions::default();
        let fits = add(0x0800, 1, edit());
        known.learn(&fits, &decoded(&fits).expect("valid"));
        let message = add(0x0806, 1, edit());
        assert!(Addition::peek(&message).and_then(|add| known.change(&add)).is_none());
        assert_eq!(decoded(&message).map(|_| ()), Err(ErrorCode::ACTION_MATCH_INCONSISTENT));
    }
}
