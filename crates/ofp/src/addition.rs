//! Flow-mods that add an entry, read where they are.
//!
//! [`crate::decode`] makes lists of what a flow-mod says, so that one can look at it again and again. Who fills a table
//! with a hundred thousand entries a second looks at each once.

use crate::flow::{FlowModCommand, FlowModFlags};
use crate::matching::{Given, HEADER, TYPE_OXM};
use crate::message::{self, MessageType};
use crate::oxm::Field;
use crate::wire::padding8;

/// A flow-mod that adds an entry, applies to no buffered packet and has nothing wrong with it before its match.
#[derive(Clone, Copy, Debug)]
pub struct Addition<'a> {
    /// See [`crate::FlowMod::cookie`].
    pub cookie: u64,
    /// See [`crate::FlowMod::table_id`].
    pub table_id: u8,
    /// See [`crate::FlowMod::idle_timeout`].
    pub idle_timeout: u16,
    /// See [`crate::FlowMod::hard_timeout`].
    pub hard_timeout: u16,
    /// See [`crate::FlowMod::priority`].
    pub priority: u16,
    /// See [`crate::FlowMod::flags`].
    pub flags: FlowModFlags,
    /// The fields of the match on the wire.
    fields: &'a [u8],
    /// The instructions on the wire: whatever came after the match.
    pub instructions: &'a [u8],
}

/// Bytes of a flow-mod before its match, without the header of the message.
const FIXED: usize = 40;

impl<'a> Addition<'a> {
    /// Looks at a message. `None`: it is not one, or [`crate::decode`] would refuse it.
    pub fn peek(message: &'a [u8]) -> Option<Addition<'a>> {
        let header = message::Header::peek(message)?;
        let flow_mod = (header.version, header.kind) == (message::VERSION, MessageType::FlowMod.number());
        if !flow_mod || usize::from(header.length) != message.len() {
            return None;
        }
        let (fixed, rest) = message[message::HEADER_LEN..].split_first_chunk::<FIXED>()?;
        let u16_at = |at: usize| u16::from_be_bytes([fixed[at], fixed[at + 1]]);
        let buffer_id = u32::from_be_bytes([fixed[24], fixed[25], fixed[26], fixed[27]]);
        let flags = FlowModFlags(u16_at(36));
        if fixed[17] != FlowModCommand::Add.number()
            || buffer_id != crate::NO_BUFFER
            || !FlowModFlags::NAMED.contains(flags)
        {
            return None;
        }
        let (kind, rest) = rest.split_first_chunk::<HEADER>()?;
        let len = usize::from(u16::from_be_bytes([kind[2], kind[3]]));
        if u16::from_be_bytes([kind[0], kind[1]]) != TYPE_OXM {
            return None;
        }
        let (fields, rest) = rest.split_at_checked(len.checked_sub(HEADER)?)?;
        let instructions = rest.get(padding8(len)..)?;
        Some(Addition {
            cookie: u64::from_be_bytes(*fixed.first_chunk()?),
            table_id: fixed[16],
            idle_timeout: u16_at(18),
            hard_timeout: u16_at(20),
            priority: u16_at(22),
            flags,
            fields,
            instructions,
        })
    }

    /// Gives `each` the fields of the match with value and mask as numbers, in their order; those without a mask have all
    /// of its bits. `false`: it is not a match that [`crate::decode`] and [`crate::Match::validate`] let pass, and what was
    /// given means nothing.
    #[inline]
    #[must_use]
    pub fn fields(&self, mut each: impl FnMut(Field, u128, u128)) -> bool {
        let mut given = Given::default();
        let mut rest = self.fields;
        while !rest.is_empty() {
            let Some(([class_high, class_low, second, len], after)) = rest.split_first_chunk() else {
                return false;
            };
            let Some((payload, after)) = after.split_at_checked(usize::from(*len)) else { return false };
            let class = u16::from_be_bytes([*class_high, *class_low]);
            let Some(field) = Field::of(class, second >> 1) else { return false };
            let Ok((value, mask)) = field.read(payload, second & 1 != 0) else { return false };
            let mask = mask.unwrap_or(field.full_mask());
            if given.has(field) || given.missing_prerequisite(field).is_some() {
                return false;
            }
            given.add(field, value, mask);
            each(field, value, mask);
            rest = after;
        }
        true
    }
}
