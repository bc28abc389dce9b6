//! Instructions (7.2.4).

use crate::action::Action;
use crate::error::{DecodeError, ErrorCode};
use crate::wire::{Reader, Wire, Writer};

/// One instruction of a flow entry.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Instruction {
    /// Continue in a later table.
    GotoTable(u8),
    /// Write the masked bits of the metadata.
    WriteMetadata {
        /// The bits to write.
        metadata: u64,
        /// Which bits are written.
        mask: u64,
    },
    /// Merge into the action set.
    WriteActions(Vec<Action>),
    /// Do at once.
    ApplyActions(Vec<Action>),
    /// Empty the action set.
    ClearActions,
    /// Pass through a meter.
    Meter(u32),
    /// An experimenter's instruction, as it came.
    Experimenter {
        /// The experimenter's number.
        experimenter: u32,
        /// What follows the number.
        data: Vec<u8>,
    },
}

const GOTO_TABLE: u16 = 1;
const WRITE_METADATA: u16 = 2;
const WRITE_ACTIONS: u16 = 3;
const APPLY_ACTIONS: u16 = 4;
const CLEAR_ACTIONS: u16 = 5;
const METER: u16 = 6;
const EXPERIMENTER: u16 = 0xffff;

const HEADER: usize = 4;

impl Instruction {
    /// The number on the wire (`OFPIT_*`).
    pub fn number(&self) -> u16 {
        match self {
            Instruction::GotoTable(_) => GOTO_TABLE,
            Instruction::WriteMetadata { .. } => WRITE_METADATA,
            Instruction::WriteActions(_) => WRITE_ACTIONS,
            Instruction::ApplyActions(_) => APPLY_ACTIONS,
            Instruction::ClearActions => CLEAR_ACTIONS,
            Instruction::Meter(_) => METER,
            Instruction::Experimenter { .. } => EXPERIMENTER,
        }
    }

    fn get_body(kind: u16, r: &mut Reader<'_>) -> Result<Instruction, DecodeError> {
        match kind {
            GOTO_TABLE => {
                let table = r.u8()?;
                r.skip(3).map(|()| Instruction::GotoTable(table))
            }
            WRITE_METADATA => {
                r.skip(4)?;
                Ok(Instruction::WriteMetadata { metadata: r.u64()?, mask: r.u64()? })
            }
            WRITE_ACTIONS => {
                r.skip(4)?;
                r.list().map(Instruction::WriteActions)
            }
            APPLY_ACTIONS => {
                r.skip(4)?;
                r.list().map(Instruction::ApplyActions)
            }
            CLEAR_ACTIONS => {
                // Actions in here mean nothing (7.2.4), but a list that claims to be one must be one.
                r.skip(4)?;
                r.list::<Action>().map(|_| Instruction::ClearActions)
            }
            METER => r.u32().map(Instruction::Meter),
            EXPERIMENTER => Ok(Instruction::Experimenter { experimenter: r.u32()?, data: r.rest().to_vec() }),
            _ => Err(DecodeError::new(ErrorCode::UNKNOWN_INSTRUCTION, "instruction type")),
        }
    }
}

impl Wire for Instruction {
    fn put(&self, w: &mut Writer<'_>) {
        let start = w.at();
        w.u16(self.number());
        w.u16(0);
        match self {
            Instruction::GotoTable(table) => {
                w.u8(*table);
                w.zeros(3);
            }
            Instruction::WriteMetadata { metadata, mask } => {
                w.zeros(4);
                w.u64(*metadata);
                w.u64(*mask);
            }
            Instruction::WriteActions(actions) | Instruction::ApplyActions(actions) => {
                w.zeros(4);
                w.list(actions);
            }
            Instruction::ClearActions => w.zeros(4),
            Instruction::Meter(meter) => w.u32(*meter),
            Instruction::Experimenter { experimenter, data } => {
                w.u32(*experimenter);
                w.bytes(data);
                w.pad8(start);
            }
        }
        w.patch_len(start + 2, start);
    }

    fn get(r: &mut Reader<'_>) -> Result<Instruction, DecodeError> {
        let bad_len = DecodeError::new(ErrorCode::INSTRUCTION_BAD_LEN, "instruction");
        let (kind, len) = (r.u16().map_err(|_| bad_len)?, usize::from(r.u16().map_err(|_| bad_len)?));
        if len % 8 != 0 || len < 8 {
            return Err(bad_len);
        }
        let mut body = r.part(len - HEADER, ErrorCode::INSTRUCTION_BAD_LEN, "instruction")?;
        let instruction = Instruction::get_body(kind, &mut body)?;
        body.finish()?;
        Ok(instruction)
    }
}

/// The header of an instruction without its arguments, as table features list them.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct InstructionId {
    /// The number on the wire (`OFPIT_*`).
    pub kind: u16,
    /// For type 0xffff: the experimenter and its data, as it came.
    pub experimenter: Vec<u8>,
}

impl InstructionId {
    /// The id of an instruction that is no experimenter's.
    pub const fn new(kind: u16) -> InstructionId {
        InstructionId { kind, experimenter: Vec::new() }
    }

    /// The numbers of all instructions of the specification except experimenters.
    pub const STANDARD: [u16; 6] =
        [GOTO_TABLE, WRITE_METADATA, WRITE_ACTIONS, APPLY_ACTIONS, CLEAR_ACTIONS, METER];
}

impl Wire for InstructionId {
    fn put(&self, w: &mut Writer<'_>) {
        w.u16(self.kind);
        w.patch_id(&self.experimenter);
    }

    fn get(r: &mut Reader<'_>) -> Result<InstructionId, DecodeError> {
        let kind = r.u16()?;
        Ok(InstructionId { kind, experimenter: r.id_payload()? })
    }
}
