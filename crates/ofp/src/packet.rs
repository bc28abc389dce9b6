//! Packets to and from the controller.

use crate::action::Action;
use crate::error::{DecodeError, ErrorCode};
use crate::matching::Match;
use crate::types::PortNo;
use crate::wire::{Reader, Wire, Writer};

/// `OFP_NO_BUFFER`: the packet is in the message.
pub const NO_BUFFER: u32 = 0xffff_ffff;
/// `OFPCML_NO_BUFFER`: send all of the packet to the controller, and do not buffer it.
pub const CONTROLLER_LEN_NO_BUFFER: u16 = 0xffff;

wire_enum! {
    /// Why a packet is sent to the controller (`OFPR_*`).
    PacketInReason: u8 {
        /// The table-miss entry sent it.
        NoMatch = 0,
        /// An action sent it.
        Action = 1,
        /// Its TTL is used up.
        InvalidTtl = 2,
    }
}

/// `OFPT_PACKET_IN` (7.4.1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PacketIn {
    /// Where the switch keeps the packet, or [`NO_BUFFER`].
    pub buffer_id: u32,
    /// Bytes of the whole packet.
    pub total_len: u16,
    /// Why it is sent.
    pub reason: PacketInReason,
    /// The table whose entry sent it.
    pub table_id: u8,
    /// The cookie of that entry.
    pub cookie: u64,
    /// At least the ingress port.
    pub matching: Match,
    /// The packet or its beginning.
    pub data: Vec<u8>,
}

impl Wire for PacketIn {
    fn put(&self, w: &mut Writer<'_>) {
        w.u32(self.buffer_id);
        w.u16(self.total_len);
        w.u8(self.reason.number());
        w.u8(self.table_id);
        w.u64(self.cookie);
        self.matching.put(w);
        w.zeros(2);
        w.bytes(&self.data);
    }

    fn get(r: &mut Reader<'_>) -> Result<PacketIn, DecodeError> {
        let (buffer_id, total_len) = (r.u32()?, r.u16()?);
        let reason = PacketInReason::from_number(r.u8()?)
            .ok_or(DecodeError::new(ErrorCode::BAD_TYPE, "packet-in reason"))?;
        let (table_id, cookie, matching) = (r.u8()?, r.u64()?, Match::get(r)?);
        r.skip(2)?;
        Ok(PacketIn { buffer_id, total_len, reason, table_id, cookie, matching, data: r.rest().to_vec() })
    }
}

/// `OFPT_PACKET_OUT` (7.3.7).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PacketOut {
    /// The buffered packet, or [`NO_BUFFER`] and the packet in `data`.
    pub buffer_id: u32,
    /// The ingress port the packet is treated as having, or `CONTROLLER`.
    pub in_port: PortNo,
    /// What to do with it; none = drop.
    pub actions: Vec<Action>,
    /// The packet, unless it is buffered.
    pub data: Vec<u8>,
}

impl Wire for PacketOut {
    fn put(&self, w: &mut Writer<'_>) {
        w.u32(self.buffer_id);
        self.in_port.put(w);
        let len = w.at();
        w.u16(0);
        w.zeros(6);
        let start = w.at();
        w.list(&self.actions);
        w.patch_len(len, start);
        w.bytes(&self.data);
    }

    fn get(r: &mut Reader<'_>) -> Result<PacketOut, DecodeError> {
        let (buffer_id, in_port, len) = (r.u32()?, PortNo::get(r)?, r.u16()?);
        r.skip(6)?;
        let actions = r.part(len.into(), ErrorCode::BAD_LEN, "actions of a packet-out")?.list()?;
        Ok(PacketOut { buffer_id, in_port, actions, data: r.rest().to_vec() })
    }
}
