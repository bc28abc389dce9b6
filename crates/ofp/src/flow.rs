//! Flow entries: modification, removal, statistics.

use crate::error::{DecodeError, ErrorCode};
use crate::instruction::Instruction;
use crate::matching::Match;
use crate::types::PortNo;
use crate::wire::{Reader, Wire, Writer};

wire_enum! {
    /// What a flow-mod does (`OFPFC_*`).
    FlowModCommand: u8 {
        /// New entry, or replace one of equal match and priority.
        Add = 0,
        /// Change the instructions of all entries that fit.
        Modify = 1,
        /// Change the instructions of the entry of equal match and priority.
        ModifyStrict = 2,
        /// Delete all entries that fit.
        Delete = 3,
        /// Delete the entry of equal match and priority.
        DeleteStrict = 4,
    }
}

flags! {
    /// `OFPFF_*`.
    FlowModFlags: u16 {
        /// Send a flow-removed message when the entry goes.
        SEND_FLOW_REM = 1,
        /// Refuse when an entry of equal priority overlaps.
        CHECK_OVERLAP = 2,
        /// Reset the counters of an entry that is replaced or modified.
        RESET_COUNTS = 4,
        /// Do not count packets.
        NO_PKT_COUNTS = 8,
        /// Do not count bytes.
        NO_BYT_COUNTS = 16,
    }
}

/// `OFPT_FLOW_MOD` (7.3.4.1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlowMod {
    /// Opaque number of the controller.
    pub cookie: u64,
    /// For modify and delete: the bits of the cookie that must be equal; 0 = any.
    pub cookie_mask: u64,
    /// The table; [`crate::TABLE_ALL`] for delete.
    pub table_id: u8,
    /// What to do.
    pub command: FlowModCommand,
    /// Seconds without packets after which the entry goes; 0 = never.
    pub idle_timeout: u16,
    /// Seconds after which the entry goes; 0 = never.
    pub hard_timeout: u16,
    /// Higher wins.
    pub priority: u16,
    /// A buffered packet to process, or [`crate::NO_BUFFER`].
    pub buffer_id: u32,
    /// Delete only entries that output here, or `ANY`.
    pub out_port: PortNo,
    /// Delete only entries that use this group, or [`crate::group::ANY`].
    pub out_group: u32,
    /// Flags.
    pub flags: FlowModFlags,
    /// Which packets.
    pub matching: Match,
    /// What happens to them.
    pub instructions: Vec<Instruction>,
}

impl FlowMod {
    /// A flow-mod of `command` for every packet in table 0: priority 0, no timeouts, no filters, no instructions.
    pub fn new(command: FlowModCommand) -> FlowMod {
        FlowMod {
            cookie: 0,
            cookie_mask: 0,
            table_id: 0,
            command,
            idle_timeout: 0,
            hard_timeout: 0,
            priority: 0,
            buffer_id: crate::NO_BUFFER,
            out_port: PortNo::ANY,
            out_group: crate::group::ANY,
            flags: FlowModFlags::default(),
            matching: Match::any(),
            instructions: Vec::new(),
        }
    }
}

impl Wire for FlowMod {
    fn put(&self, w: &mut Writer<'_>) {
        w.u64(self.cookie);
        w.u64(self.cookie_mask);
        w.u8(self.table_id);
        w.u8(self.command.number());
        w.u16(self.idle_timeout);
        w.u16(self.hard_timeout);
        w.u16(self.priority);
        w.u32(self.buffer_id);
        self.out_port.put(w);
        w.u32(self.out_group);
        w.u16(self.flags.0);
        w.zeros(2);
        self.matching.put(w);
        w.list(&self.instructions);
    }

    fn get(r: &mut Reader<'_>) -> Result<FlowMod, DecodeError> {
        let (cookie, cookie_mask, table_id) = (r.u64()?, r.u64()?, r.u8()?);
        let command = FlowModCommand::from_number(r.u8()?)
            .ok_or(DecodeError::new(ErrorCode::FLOW_MOD_BAD_COMMAND, "flow-mod command"))?;
        let (idle_timeout, hard_timeout, priority) = (r.u16()?, r.u16()?, r.u16()?);
        let (buffer_id, out_port, out_group) = (r.u32()?, PortNo::get(r)?, r.u32()?);
        let flags = FlowModFlags(r.u16()?);
        if !FlowModFlags::NAMED.contains(flags) {
            return Err(DecodeError::new(ErrorCode::FLOW_MOD_BAD_FLAGS, "flow-mod flags"));
        }
        r.skip(2)?;
        let (matching, instructions) = (Match::get(r)?, r.list()?);
        Ok(FlowMod {
            cookie,
            cookie_mask,
            table_id,
            command,
            idle_timeout,
            hard_timeout,
            priority,
            buffer_id,
            out_port,
            out_group,
            flags,
            matching,
            instructions,
        })
    }
}

wire_enum! {
    /// Why an entry went (`OFPRR_*`).
    FlowRemovedReason: u8 {
        /// Idle for too long.
        IdleTimeout = 0,
        /// Its time was over.
        HardTimeout = 1,
        /// A flow-mod deleted it.
        Delete = 2,
        /// Its group was deleted.
        GroupDelete = 3,
    }
}

/// `OFPT_FLOW_REMOVED` (7.4.2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlowRemoved {
    /// The entry's cookie.
    pub cookie: u64,
    /// The entry's priority.
    pub priority: u16,
    /// Why it went.
    pub reason: FlowRemovedReason,
    /// The table it was in.
    pub table_id: u8,
    /// Whole seconds it lived.
    pub duration_sec: u32,
    /// Nanoseconds beyond those.
    pub duration_nsec: u32,
    /// Idle timeout in seconds.
    pub idle_timeout: u16,
    /// Hard timeout in seconds.
    pub hard_timeout: u16,
    /// Packets that fitted.
    pub packet_count: u64,
    /// Their bytes.
    pub byte_count: u64,
    /// The entry's match.
    pub matching: Match,
}

impl Wire for FlowRemoved {
    fn put(&self, w: &mut Writer<'_>) {
        w.u64(self.cookie);
        w.u16(self.priority);
        w.u8(self.reason.number());
        w.u8(self.table_id);
        w.u32(self.duration_sec);
        w.u32(self.duration_nsec);
        w.u16(self.idle_timeout);
        w.u16(self.hard_timeout);
        w.u64(self.packet_count);
        w.u64(self.byte_count);
        self.matching.put(w);
    }

    fn get(r: &mut Reader<'_>) -> Result<FlowRemoved, DecodeError> {
        Ok(FlowRemoved {
            cookie: r.u64()?,
            priority: r.u16()?,
            reason: FlowRemovedReason::from_number(r.u8()?)
                .ok_or(DecodeError::new(ErrorCode::BAD_TYPE, "flow-removed reason"))?,
            table_id: r.u8()?,
            duration_sec: r.u32()?,
            duration_nsec: r.u32()?,
            idle_timeout: r.u16()?,
            hard_timeout: r.u16()?,
            packet_count: r.u64()?,
            byte_count: r.u64()?,
            matching: Match::get(r)?,
        })
    }
}

/// Which entries a flow or aggregate statistics request is about (7.3.5.2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlowStatsRequest {
    /// The table, or [`crate::TABLE_ALL`].
    pub table_id: u8,
    /// Only entries that output here, or `ANY`.
    pub out_port: PortNo,
    /// Only entries that use this group, or [`crate::group::ANY`].
    pub out_group: u32,
    /// The cookie to compare under the mask.
    pub cookie: u64,
    /// 0 = any cookie.
    pub cookie_mask: u64,
    /// Only entries at least as specific as this.
    pub matching: Match,
}

impl Default for FlowStatsRequest {
    /// Every entry.
    fn default() -> FlowStatsRequest {
        FlowStatsRequest {
            table_id: crate::TABLE_ALL,
            out_port: PortNo::ANY,
            out_group: crate::group::ANY,
            cookie: 0,
            cookie_mask: 0,
            matching: Match::any(),
        }
    }
}

impl Wire for FlowStatsRequest {
    fn put(&self, w: &mut Writer<'_>) {
        w.u8(self.table_id);
        w.zeros(3);
        self.out_port.put(w);
        w.u32(self.out_group);
        w.zeros(4);
        w.u64(self.cookie);
        w.u64(self.cookie_mask);
        self.matching.put(w);
    }

    fn get(r: &mut Reader<'_>) -> Result<FlowStatsRequest, DecodeError> {
        let table_id = r.u8()?;
        r.skip(3)?;
        let (out_port, out_group) = (PortNo::get(r)?, r.u32()?);
        r.skip(4)?;
        Ok(FlowStatsRequest {
            table_id,
            out_port,
            out_group,
            cookie: r.u64()?,
            cookie_mask: r.u64()?,
            matching: Match::get(r)?,
        })
    }
}

/// One entry of a flow statistics reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlowStats {
    /// The table it is in.
    pub table_id: u8,
    /// Whole seconds it lives.
    pub duration_sec: u32,
    /// Nanoseconds beyond those.
    pub duration_nsec: u32,
    /// Higher wins.
    pub priority: u16,
    /// Idle timeout in seconds.
    pub idle_timeout: u16,
    /// Hard timeout in seconds.
    pub hard_timeout: u16,
    /// Flags it was added with.
    pub flags: FlowModFlags,
    /// Its cookie.
    pub cookie: u64,
    /// Packets that fitted.
    pub packet_count: u64,
    /// Their bytes.
    pub byte_count: u64,
    /// Which packets.
    pub matching: Match,
    /// What happens to them.
    pub instructions: Vec<Instruction>,
}

impl Wire for FlowStats {
    fn put(&self, w: &mut Writer<'_>) {
        let start = w.at();
        w.u16(0);
        w.u8(self.table_id);
        w.zeros(1);
        w.u32(self.duration_sec);
        w.u32(self.duration_nsec);
        w.u16(self.priority);
        w.u16(self.idle_timeout);
        w.u16(self.hard_timeout);
        w.u16(self.flags.0);
        w.zeros(4);
        w.u64(self.cookie);
        w.u64(self.packet_count);
        w.u64(self.byte_count);
        self.matching.put(w);
        w.list(&self.instructions);
        w.patch_len(start, start);
    }

    fn get(outer: &mut Reader<'_>) -> Result<FlowStats, DecodeError> {
        let mut r = outer.sized("flow statistics entry")?;
        let table_id = r.u8()?;
        r.skip(1)?;
        let (duration_sec, duration_nsec) = (r.u32()?, r.u32()?);
        let (priority, idle_timeout, hard_timeout) = (r.u16()?, r.u16()?, r.u16()?);
        let flags = FlowModFlags(r.u16()?);
        r.skip(4)?;
        Ok(FlowStats {
            table_id,
            duration_sec,
            duration_nsec,
            priority,
            idle_timeout,
            hard_timeout,
            flags,
            cookie: r.u64()?,
            packet_count: r.u64()?,
            byte_count: r.u64()?,
            matching: Match::get(&mut r)?,
            instructions: r.list()?,
        })
    }
}

/// The aggregate statistics reply (7.3.5.3).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct AggregateStats {
    /// Packets of all entries.
    pub packet_count: u64,
    /// Bytes of all entries.
    pub byte_count: u64,
    /// How many entries.
    pub flow_count: u32,
}

impl Wire for AggregateStats {
    fn put(&self, w: &mut Writer<'_>) {
        w.u64(self.packet_count);
        w.u64(self.byte_count);
        w.u32(self.flow_count);
        w.zeros(4);
    }

    fn get(r: &mut Reader<'_>) -> Result<AggregateStats, DecodeError> {
        let stats = AggregateStats { packet_count: r.u64()?, byte_count: r.u64()?, flow_count: r.u32()? };
        r.skip(4).map(|()| stats)
    }
}
