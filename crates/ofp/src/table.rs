//! Flow tables: modification, statistics, features.

use crate::action::ActionId;
use crate::error::{DecodeError, ErrorCode};
use crate::instruction::InstructionId;
use crate::oxm::OxmId;
use crate::types::Text;
use crate::wire::{Reader, Wire, Writer, padding8};

/// `OFPTT_ALL`: every table, in deletions and requests.
pub const TABLE_ALL: u8 = 0xff;

/// `OFPT_TABLE_MOD` (7.3.3). The configuration has no meaning in 1.3.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableMod {
    /// The table, or [`TABLE_ALL`].
    pub table_id: u8,
    /// Deprecated bits.
    pub config: u32,
}

impl Wire for TableMod {
    fn put(&self, w: &mut Writer<'_>) {
        w.u8(self.table_id);
        w.zeros(3);
        w.u32(self.config);
    }

    fn get(r: &mut Reader<'_>) -> Result<TableMod, DecodeError> {
        let table_id = r.u8()?;
        r.skip(3)?;
        Ok(TableMod { table_id, config: r.u32()? })
    }
}

/// Statistics of one table (7.3.5.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableStats {
    /// The table.
    pub table_id: u8,
    /// Entries in it.
    pub active_count: u32,
    /// Packets looked up.
    pub lookup_count: u64,
    /// Packets that fitted an entry.
    pub matched_count: u64,
}

impl Wire for TableStats {
    fn put(&self, w: &mut Writer<'_>) {
        w.u8(self.table_id);
        w.zeros(3);
        w.u32(self.active_count);
        w.u64(self.lookup_count);
        w.u64(self.matched_count);
    }

    fn get(r: &mut Reader<'_>) -> Result<TableStats, DecodeError> {
        let table_id = r.u8()?;
        r.skip(3)?;
        Ok(TableStats { table_id, active_count: r.u32()?, lookup_count: r.u64()?, matched_count: r.u64()? })
    }
}

/// One thing a table can do (7.3.5.5.2). `miss` marks those of the table-miss entry, where they differ.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TableProperty {
    /// Instructions.
    Instructions {
        /// Of the table-miss entry.
        miss: bool,
        /// Which.
        ids: Vec<InstructionId>,
    },
    /// Tables that goto can name.
    NextTables {
        /// Of the table-miss entry.
        miss: bool,
        /// Which.
        tables: Vec<u8>,
    },
    /// Actions in write-actions.
    WriteActions {
        /// Of the table-miss entry.
        miss: bool,
        /// Which.
        ids: Vec<ActionId>,
    },
    /// Actions in apply-actions.
    ApplyActions {
        /// Of the table-miss entry.
        miss: bool,
        /// Which.
        ids: Vec<ActionId>,
    },
    /// Fields that can be matched.
    Match(Vec<OxmId>),
    /// Fields that can be left out of a match.
    Wildcards(Vec<OxmId>),
    /// Fields that write-actions can set.
    WriteSetField {
        /// Of the table-miss entry.
        miss: bool,
        /// Which.
        ids: Vec<OxmId>,
    },
    /// Fields that apply-actions can set.
    ApplySetField {
        /// Of the table-miss entry.
        miss: bool,
        /// Which.
        ids: Vec<OxmId>,
    },
    /// An experimenter's property, as it came.
    Experimenter {
        /// Of the table-miss entry.
        miss: bool,
        /// Experimenter, type and data.
        data: Vec<u8>,
    },
}

const INSTRUCTIONS: u16 = 0;
const NEXT_TABLES: u16 = 2;
const WRITE_ACTIONS: u16 = 4;
const APPLY_ACTIONS: u16 = 6;
const MATCH: u16 = 8;
const WILDCARDS: u16 = 10;
const WRITE_SETFIELD: u16 = 12;
const APPLY_SETFIELD: u16 = 14;
const EXPERIMENTER: u16 = 0xfffe;

impl TableProperty {
    fn number(&self) -> u16 {
        match *self {
            TableProperty::Instructions { miss, .. } => INSTRUCTIONS + u16::from(miss),
            TableProperty::NextTables { miss, .. } => NEXT_TABLES + u16::from(miss),
            TableProperty::WriteActions { miss, .. } => WRITE_ACTIONS + u16::from(miss),
            TableProperty::ApplyActions { miss, .. } => APPLY_ACTIONS + u16::from(miss),
            TableProperty::Match(_) => MATCH,
            TableProperty::Wildcards(_) => WILDCARDS,
            TableProperty::WriteSetField { miss, .. } => WRITE_SETFIELD + u16::from(miss),
            TableProperty::ApplySetField { miss, .. } => APPLY_SETFIELD + u16::from(miss),
            TableProperty::Experimenter { miss, .. } => EXPERIMENTER + u16::from(miss),
        }
    }
}

impl Wire for TableProperty {
    fn put(&self, w: &mut Writer<'_>) {
        let start = w.at();
        w.u16(self.number());
        w.u16(0);
        match self {
            TableProperty::Instructions { ids, .. } => w.list(ids),
            TableProperty::NextTables { tables, .. } => w.bytes(tables),
            TableProperty::WriteActions { ids, .. } | TableProperty::ApplyActions { ids, .. } => w.list(ids),
            TableProperty::Match(ids)
            | TableProperty::Wildcards(ids)
            | TableProperty::WriteSetField { ids, .. }
            | TableProperty::ApplySetField { ids, .. } => w.list(ids),
            TableProperty::Experimenter { data, .. } => w.bytes(data),
        }
        w.patch_len(start + 2, start);
        w.pad8(start);
    }

    fn get(outer: &mut Reader<'_>) -> Result<TableProperty, DecodeError> {
        let (kind, len) = (outer.u16()?, usize::from(outer.u16()?));
        let body = len.checked_sub(4).ok_or(outer.error())?;
        let mut r = outer.part(body, ErrorCode::TABLE_FEATURES_BAD_LEN, "table property")?;
        outer.skip(padding8(len))?;
        let miss = kind & 1 != 0;
        Ok(match kind & !1 {
            INSTRUCTIONS => TableProperty::Instructions { miss, ids: r.list()? },
            NEXT_TABLES => TableProperty::NextTables { miss, tables: r.rest().to_vec() },
            WRITE_ACTIONS => TableProperty::WriteActions { miss, ids: r.list()? },
            APPLY_ACTIONS => TableProperty::ApplyActions { miss, ids: r.list()? },
            MATCH if !miss => TableProperty::Match(r.list()?),
            WILDCARDS if !miss => TableProperty::Wildcards(r.list()?),
            WRITE_SETFIELD => TableProperty::WriteSetField { miss, ids: r.list()? },
            APPLY_SETFIELD => TableProperty::ApplySetField { miss, ids: r.list()? },
            EXPERIMENTER => TableProperty::Experimenter { miss, data: r.rest().to_vec() },
            _ => return Err(DecodeError::new(ErrorCode::TABLE_FEATURES_BAD_TYPE, "table property type")),
        })
    }
}

/// What one table can do (7.3.5.5).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableFeatures {
    /// The table.
    pub table_id: u8,
    /// Its name.
    pub name: Text<32>,
    /// Metadata bits it can match.
    pub metadata_match: u64,
    /// Metadata bits it can write.
    pub metadata_write: u64,
    /// Deprecated bits.
    pub config: u32,
    /// Entries at most.
    pub max_entries: u32,
    /// The rest.
    pub properties: Vec<TableProperty>,
}

impl Wire for TableFeatures {
    fn put(&self, w: &mut Writer<'_>) {
        let start = w.at();
        w.u16(0);
        w.u8(self.table_id);
        w.zeros(5);
        self.name.put(w);
        w.u64(self.metadata_match);
        w.u64(self.metadata_write);
        w.u32(self.config);
        w.u32(self.max_entries);
        w.list(&self.properties);
        w.patch_len(start, start);
    }

    fn get(outer: &mut Reader<'_>) -> Result<TableFeatures, DecodeError> {
        let mut r = outer.sized("table features entry")?;
        let table_id = r.u8()?;
        r.skip(5)?;
        Ok(TableFeatures {
            table_id,
            name: Text::get(&mut r)?,
            metadata_match: r.u64()?,
            metadata_write: r.u64()?,
            config: r.u32()?,
            max_entries: r.u32()?,
            properties: r.list()?,
        })
    }
}
