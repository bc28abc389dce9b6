//! Actions (7.2.5).

use std::fmt;

use crate::error::{DecodeError, EncodeError, ErrorCode};
use crate::oxm::OxmField;
use crate::types::PortNo;
use crate::wire::{Reader, Wire, Writer};

/// One action of an action list, an action set or a group's bucket.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Action {
    /// Send the packet out of a port.
    Output {
        /// The port; reserved ones too.
        port: PortNo,
        /// Bytes to send to the controller, [`crate::CONTROLLER_LEN_NO_BUFFER`] for all.
        max_len: u16,
    },
    /// Copy the TTL from the next to the outermost header.
    CopyTtlOut,
    /// Copy the TTL from the outermost to the next header.
    CopyTtlIn,
    /// Set the MPLS TTL.
    SetMplsTtl(u8),
    /// Decrement the MPLS TTL.
    DecMplsTtl,
    /// Push a VLAN tag of this ethertype (0x8100 or 0x88a8).
    PushVlan(u16),
    /// Remove the outermost VLAN tag.
    PopVlan,
    /// Push an MPLS header of this ethertype (0x8847 or 0x8848).
    PushMpls(u16),
    /// Remove the outermost MPLS header; the ethertype of what is below.
    PopMpls(u16),
    /// Choose the queue of the output port.
    SetQueue(u32),
    /// Process by a group.
    Group(u32),
    /// Set the IP TTL.
    SetNwTtl(u8),
    /// Decrement the IP TTL.
    DecNwTtl,
    /// Write a header field; never with a mask.
    SetField(OxmField),
    /// Push a PBB header of this ethertype (0x88e7).
    PushPbb(u16),
    /// Remove the PBB header.
    PopPbb,
    /// An experimenter's action, as it came.
    Experimenter {
        /// The experimenter's number.
        experimenter: u32,
        /// What follows the number; a multiple of eight bytes together with the eight before it.
        data: Vec<u8>,
    },
}

const OUTPUT: u16 = 0;
const COPY_TTL_OUT: u16 = 11;
const COPY_TTL_IN: u16 = 12;
const SET_MPLS_TTL: u16 = 15;
const DEC_MPLS_TTL: u16 = 16;
const PUSH_VLAN: u16 = 17;
const POP_VLAN: u16 = 18;
const PUSH_MPLS: u16 = 19;
const POP_MPLS: u16 = 20;
const SET_QUEUE: u16 = 21;
const GROUP: u16 = 22;
const SET_NW_TTL: u16 = 23;
const DEC_NW_TTL: u16 = 24;
const SET_FIELD: u16 = 25;
const PUSH_PBB: u16 = 26;
const POP_PBB: u16 = 27;
const EXPERIMENTER: u16 = 0xffff;

const HEADER: usize = 4;

impl Action {
    /// The number on the wire (`OFPAT_*`).
    pub fn number(&self) -> u16 {
        match self {
            Action::Output { .. } => OUTPUT,
            Action::CopyTtlOut => COPY_TTL_OUT,
            Action::CopyTtlIn => COPY_TTL_IN,
            Action::SetMplsTtl(_) => SET_MPLS_TTL,
            Action::DecMplsTtl => DEC_MPLS_TTL,
            Action::PushVlan(_) => PUSH_VLAN,
            Action::PopVlan => POP_VLAN,
            Action::PushMpls(_) => PUSH_MPLS,
            Action::PopMpls(_) => POP_MPLS,
            Action::SetQueue(_) => SET_QUEUE,
            Action::Group(_) => GROUP,
            Action::SetNwTtl(_) => SET_NW_TTL,
            Action::DecNwTtl => DEC_NW_TTL,
            Action::SetField(_) => SET_FIELD,
            Action::PushPbb(_) => PUSH_PBB,
            Action::PopPbb => POP_PBB,
            Action::Experimenter { .. } => EXPERIMENTER,
        }
    }

    /// Output to a port, all of the packet if that is the controller.
    pub const fn output(port: PortNo) -> Action {
        Action::Output { port, max_len: crate::packet::CONTROLLER_LEN_NO_BUFFER }
    }

    fn put_body(&self, w: &mut Writer<'_>) {
        match *self {
            Action::Output { port, max_len } => {
                port.put(w);
                w.u16(max_len);
                w.zeros(6);
            }
            Action::SetMplsTtl(ttl) | Action::SetNwTtl(ttl) => {
                w.u8(ttl);
                w.zeros(3);
            }
            Action::PushVlan(ethertype)
            | Action::PushMpls(ethertype)
            | Action::PopMpls(ethertype)
            | Action::PushPbb(ethertype) => {
                w.u16(ethertype);
                w.zeros(2);
            }
            Action::SetQueue(id) | Action::Group(id) => w.u32(id),
            Action::SetField(ref field) => {
                if field.has_mask() {
                    w.fail(EncodeError::BadField { field: field.name() });
                }
                field.put(w);
            }
            Action::Experimenter { experimenter, ref data } => {
                w.u32(experimenter);
                w.bytes(data);
            }
            Action::CopyTtlOut
            | Action::CopyTtlIn
            | Action::DecMplsTtl
            | Action::PopVlan
            | Action::DecNwTtl
            | Action::PopPbb => w.zeros(4),
        }
    }

    fn get_body(kind: u16, r: &mut Reader<'_>) -> Result<Action, DecodeError> {
        let ethertype = |r: &mut Reader<'_>| r.u16().and_then(|t| r.skip(2).map(|()| t));
        let ttl = |r: &mut Reader<'_>| r.u8().and_then(|t| r.skip(3).map(|()| t));
        let plain = |r: &mut Reader<'_>, action| r.skip(4).map(|()| action);
        match kind {
            OUTPUT => {
                let action = Action::Output { port: PortNo::get(r)?, max_len: r.u16()? };
                r.skip(6).map(|()| action)
            }
            COPY_TTL_OUT => plain(r, Action::CopyTtlOut),
            COPY_TTL_IN => plain(r, Action::CopyTtlIn),
            SET_MPLS_TTL => ttl(r).map(Action::SetMplsTtl),
            DEC_MPLS_TTL => plain(r, Action::DecMplsTtl),
            PUSH_VLAN => ethertype(r).map(Action::PushVlan),
            POP_VLAN => plain(r, Action::PopVlan),
            PUSH_MPLS => ethertype(r).map(Action::PushMpls),
            POP_MPLS => ethertype(r).map(Action::PopMpls),
            SET_QUEUE => r.u32().map(Action::SetQueue),
            GROUP => r.u32().map(Action::Group),
            SET_NW_TTL => ttl(r).map(Action::SetNwTtl),
            DEC_NW_TTL => plain(r, Action::DecNwTtl),
            SET_FIELD => get_set_field(r),
            PUSH_PBB => ethertype(r).map(Action::PushPbb),
            POP_PBB => plain(r, Action::PopPbb),
            EXPERIMENTER => Ok(Action::Experimenter { experimenter: r.u32()?, data: r.rest().to_vec() }),
            _ => Err(DecodeError::new(ErrorCode::ACTION_BAD_TYPE, "action type")),
        }
    }
}

/// A set-field action speaks of the field in the terms of actions: its errors are translated.
fn get_set_field(r: &mut Reader<'_>) -> Result<Action, DecodeError> {
    let field = OxmField::get(r).map_err(|error| DecodeError {
        code: match error.code {
            ErrorCode::MATCH_BAD_LEN => ErrorCode::ACTION_BAD_SET_LEN,
            ErrorCode::ACTION_BAD_LEN => ErrorCode::ACTION_BAD_LEN,
            _ => ErrorCode::ACTION_BAD_SET_ARGUMENT,
        },
        what: error.what,
    })?;
    let refuse = |code| Err(DecodeError::new(code, field.name()));
    if field.has_mask() {
        return refuse(ErrorCode::ACTION_BAD_SET_ARGUMENT);
    }
    if field.field().is_some_and(|f| !f.settable()) {
        return refuse(ErrorCode::ACTION_BAD_SET_TYPE);
    }
    if r.len() >= 8 {
        return Err(r.error());
    }
    r.rest();
    Ok(Action::SetField(field))
}

impl Wire for Action {
    fn put(&self, w: &mut Writer<'_>) {
        let start = w.at();
        w.u16(self.number());
        w.u16(0);
        self.put_body(w);
        w.pad8(start);
        w.patch_len(start + 2, start);
    }

    fn get(r: &mut Reader<'_>) -> Result<Action, DecodeError> {
        let bad_len = DecodeError::new(ErrorCode::ACTION_BAD_LEN, "action");
        let (kind, len) = (r.u16().map_err(|_| bad_len)?, usize::from(r.u16().map_err(|_| bad_len)?));
        if len % 8 != 0 || len < 8 {
            return Err(bad_len);
        }
        let mut body = r.part(len - HEADER, ErrorCode::ACTION_BAD_LEN, "action")?;
        let action = Action::get_body(kind, &mut body)?;
        body.finish()?;
        Ok(action)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Output { port, .. } => write!(f, "output:{port}"),
            Action::CopyTtlOut => f.write_str("copy_ttl_out"),
            Action::CopyTtlIn => f.write_str("copy_ttl_in"),
            Action::SetMplsTtl(ttl) => write!(f, "set_mpls_ttl:{ttl}"),
            Action::DecMplsTtl => f.write_str("dec_mpls_ttl"),
            Action::PushVlan(ethertype) => write!(f, "push_vlan:{ethertype:#06x}"),
            Action::PopVlan => f.write_str("pop_vlan"),
            Action::PushMpls(ethertype) => write!(f, "push_mpls:{ethertype:#06x}"),
            Action::PopMpls(ethertype) => write!(f, "pop_mpls:{ethertype:#06x}"),
            Action::SetQueue(queue) => write!(f, "set_queue:{queue}"),
            Action::Group(group) => write!(f, "group:{group}"),
            Action::SetNwTtl(ttl) => write!(f, "set_nw_ttl:{ttl}"),
            Action::DecNwTtl => f.write_str("dec_nw_ttl"),
            Action::SetField(field) => write!(f, "set_field:{field}"),
            Action::PushPbb(ethertype) => write!(f, "push_pbb:{ethertype:#06x}"),
            Action::PopPbb => f.write_str("pop_pbb"),
            Action::Experimenter { experimenter, data } => {
                write!(f, "experimenter:{experimenter:#x}({} bytes)", data.len())
            }
        }
    }
}

/// The header of an action without its arguments, as table features list them.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ActionId {
    /// The number on the wire (`OFPAT_*`).
    pub kind: u16,
    /// For type 0xffff: the experimenter and its data, as it came.
    pub experimenter: Vec<u8>,
}

impl ActionId {
    /// The id of an action that is no experimenter's.
    pub const fn new(kind: u16) -> ActionId {
        ActionId { kind, experimenter: Vec::new() }
    }

    /// The numbers of all actions of the specification except PBB and experimenters.
    pub const STANDARD: [u16; 14] = [
        OUTPUT,
        COPY_TTL_OUT,
        COPY_TTL_IN,
        SET_MPLS_TTL,
        DEC_MPLS_TTL,
        PUSH_VLAN,
        POP_VLAN,
        PUSH_MPLS,
        POP_MPLS,
        SET_QUEUE,
        GROUP,
        SET_NW_TTL,
        DEC_NW_TTL,
        SET_FIELD,
    ];
}

impl Wire for ActionId {
    fn put(&self, w: &mut Writer<'_>) {
        w.u16(self.kind);
        w.patch_id(&self.experimenter);
    }

    fn get(r: &mut Reader<'_>) -> Result<ActionId, DecodeError> {
        let kind = r.u16()?;
        Ok(ActionId { kind, experimenter: r.id_payload()? })
    }
}
