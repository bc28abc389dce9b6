//! Flow-mods.

use ofp::{ErrorCode, FlowMod, FlowModCommand, FlowModFlags};

use super::convert;
use crate::bridge::{Bridge, Change};
use crate::flow_tables::{FlowChange, NewFlow, Removed, Selection};

/// The change that a flow-mod asks for.
///
/// # Errors
/// The code to answer with.
pub fn change(flow_mod: &FlowMod) -> Result<FlowChange, ErrorCode> {
    match flow_mod.command {
        FlowModCommand::Add => add(flow_mod),
        FlowModCommand::Modify | FlowModCommand::ModifyStrict => modify(flow_mod),
        FlowModCommand::Delete | FlowModCommand::DeleteStrict => selection(flow_mod).map(FlowChange::Delete),
    }
}

/// Carries out a flow-mod. The flows it removed are returned: to be reported when their counters are final.
///
/// # Errors
/// The code to answer with; nothing was changed.
pub fn apply(bridge: &Bridge, flow_mod: &FlowMod) -> Result<Vec<Removed>, ErrorCode> {
    bridge.apply(&Change::Flow(change(flow_mod)?)).map_err(convert::change_error)
}

/// There are no buffered packets to apply a new flow to.
fn check_buffer(flow_mod: &FlowMod) -> Result<(), ErrorCode> {
    if flow_mod.buffer_id == ofp::NO_BUFFER { Ok(()) } else { Err(ErrorCode::BUFFER_UNKNOWN) }
}

fn add(flow_mod: &FlowMod) -> Result<FlowChange, ErrorCode> {
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
        instructions: convert::instructions(&flow_mod.instructions, &flow_mod.matching)?,
    }))
}

fn modify(flow_mod: &FlowMod) -> Result<FlowChange, ErrorCode> {
    check_buffer(flow_mod)?;
    if flow_mod.table_id == ofp::TABLE_ALL {
        return Err(ErrorCode::FLOW_MOD_BAD_TABLE_ID);
    }
    let mut selection = selection(flow_mod)?;
    // The output filters are for deletion only (7.3.4.1).
    (selection.out_port, selection.out_group) = (Selection::all().out_port, Selection::all().out_group);
    let instructions = convert::instructions(&flow_mod.instructions, &flow_mod.matching)?;
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
