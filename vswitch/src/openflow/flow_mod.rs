//! Flow-mods.

use ofp::{ErrorCode, FlowMod, FlowModCommand, FlowModFlags};

use super::convert;
use crate::bridge::Bridge;
use crate::flow_tables::{NewFlow, Removed, Selection};

/// Carries out a flow-mod. The flows it removed are returned: to be reported when their counters are final.
///
/// # Errors
/// The code to answer with; nothing was changed.
pub fn apply(bridge: &Bridge, flow_mod: &FlowMod) -> Result<Vec<Removed>, ErrorCode> {
    match flow_mod.command {
        FlowModCommand::Add => add(bridge, flow_mod).map(|()| Vec::new()),
        FlowModCommand::Modify | FlowModCommand::ModifyStrict => {
            modify(bridge, flow_mod).map(|()| Vec::new())
        }
        FlowModCommand::Delete | FlowModCommand::DeleteStrict => {
            bridge.delete_flows(&selection(flow_mod)?).map_err(convert::flow_mod_error)
        }
    }
}

/// There are no buffered packets to apply a new flow to.
fn check_buffer(flow_mod: &FlowMod) -> Result<(), ErrorCode> {
    if flow_mod.buffer_id == ofp::NO_BUFFER { Ok(()) } else { Err(ErrorCode::BUFFER_UNKNOWN) }
}

fn add(bridge: &Bridge, flow_mod: &FlowMod) -> Result<(), ErrorCode> {
    check_buffer(flow_mod)?;
    let (key, mask) = convert::key_and_mask(&flow_mod.matching)?;
    let flow = NewFlow {
        table: flow_mod.table_id,
        priority: flow_mod.priority,
        key,
        mask,
        cookie: flow_mod.cookie,
        idle_timeout_s: flow_mod.idle_timeout,
        hard_timeout_s: flow_mod.hard_timeout,
        flags: convert::flags(flow_mod.flags),
        instructions: convert::instructions(&flow_mod.instructions, &flow_mod.matching)?,
    };
    bridge.add_flow(flow).map_err(convert::flow_mod_error)
}

fn modify(bridge: &Bridge, flow_mod: &FlowMod) -> Result<(), ErrorCode> {
    check_buffer(flow_mod)?;
    if flow_mod.table_id == ofp::TABLE_ALL {
        return Err(ErrorCode::FLOW_MOD_BAD_TABLE_ID);
    }
    let mut selection = selection(flow_mod)?;
    // The output filters are for deletion only (7.3.4.1).
    (selection.out_port, selection.out_group) = (Selection::all().out_port, Selection::all().out_group);
    let instructions = convert::instructions(&flow_mod.instructions, &flow_mod.matching)?;
    let reset = flow_mod.flags.contains(FlowModFlags::RESET_COUNTS);
    bridge.modify_flows(&selection, &instructions, reset).map(|_| ()).map_err(convert::flow_mod_error)
}

fn selection(flow_mod: &FlowMod) -> Result<Selection, ErrorCode> {
    let cookie = (flow_mod.cookie, flow_mod.cookie_mask);
    let (out_port, out_group) = (flow_mod.out_port, flow_mod.out_group);
    let selection = convert::selection(flow_mod.table_id, &flow_mod.matching, cookie, out_port, out_group)?;
    let strict = matches!(flow_mod.command, FlowModCommand::ModifyStrict | FlowModCommand::DeleteStrict);
    Ok(Selection { strict_priority: strict.then_some(flow_mod.priority), ..selection })
}
