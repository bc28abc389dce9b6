//! Flow-mods.

use std::sync::Arc;

use ofp::{ErrorCode, FlowMod, FlowModCommand, FlowModFlags};

use super::{Head, convert};
use crate::bridge::Bridge;
use crate::flow::{Action, Instructions};
use crate::flow_tables::{FlowChange, NewFlow, Removed, Selection};

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
}

impl Waiting {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Takes a flow-mod, which came as `message`. `true`: these are enough for now.
    ///
    /// # Errors
    /// The code to answer with; the others wait as before.
    pub fn push(&mut self, flow_mod: &FlowMod, message: &[u8]) -> Result<bool, ErrorCode> {
        self.changes.push(change(flow_mod, &mut self.last)?);
        self.messages.push(Head::new(message));
        Ok(self.changes.len() >= TOGETHER)
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

/// The instructions of the last flow-mod of a controller: most say the same again.
#[derive(Default)]
pub struct LastInstructions(Option<Arc<Instructions>>);

fn instructions(flow_mod: &FlowMod, last: &mut LastInstructions) -> Result<Arc<Instructions>, ErrorCode> {
    if let Some(same) = last.0.as_ref().filter(|last| last.wire == flow_mod.instructions) {
        return Ok(same.clone());
    }
    let new = convert::instructions(&flow_mod.instructions, &flow_mod.matching)?;
    // Edits make sense for some matches only, so they are looked at each time.
    let same_for_all = !new.actions().any(|action| matches!(action, Action::Edit(_)));
    last.0 = same_for_all.then(|| new.clone());
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
        mask,
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
