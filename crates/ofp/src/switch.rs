//! The switch as a whole: features, configuration, description, roles, asynchronous messages, experimenters.

use crate::error::{DecodeError, ErrorCode};
use crate::types::Text;
use crate::wire::{Reader, Wire, Writer};

flags! {
    /// `OFPC_*` of the features reply.
    Capabilities: u32 {
        /// Flow statistics.
        FLOW_STATS = 1 << 0,
        /// Table statistics.
        TABLE_STATS = 1 << 1,
        /// Port statistics.
        PORT_STATS = 1 << 2,
        /// Group statistics.
        GROUP_STATS = 1 << 3,
        /// Reassembles IP fragments.
        IP_REASM = 1 << 5,
        /// Queue statistics.
        QUEUE_STATS = 1 << 6,
        /// Blocks ports that would make loops.
        PORT_BLOCKED = 1 << 8,
    }
}

/// `OFPT_FEATURES_REPLY` (7.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SwitchFeatures {
    /// The switch's number: MAC address in the lower 48 bits by custom.
    pub datapath_id: u64,
    /// Packets it can buffer.
    pub n_buffers: u32,
    /// Flow tables.
    pub n_tables: u8,
    /// 0 for the main connection.
    pub auxiliary_id: u8,
    /// What it can do.
    pub capabilities: Capabilities,
}

impl Wire for SwitchFeatures {
    fn put(&self, w: &mut Writer<'_>) {
        w.u64(self.datapath_id);
        w.u32(self.n_buffers);
        w.u8(self.n_tables);
        w.u8(self.auxiliary_id);
        w.zeros(2);
        w.u32(self.capabilities.0);
        w.zeros(4);
    }

    fn get(r: &mut Reader<'_>) -> Result<SwitchFeatures, DecodeError> {
        let (datapath_id, n_buffers, n_tables, auxiliary_id) = (r.u64()?, r.u32()?, r.u8()?, r.u8()?);
        r.skip(2)?;
        let capabilities = Capabilities(r.u32()?);
        r.skip(4)?;
        Ok(SwitchFeatures { datapath_id, n_buffers, n_tables, auxiliary_id, capabilities })
    }
}

flags! {
    /// `OFPC_FRAG_*`: treatment of IP fragments; none set = no special treatment.
    ConfigFlags: u16 {
        /// Drop fragments.
        FRAG_DROP = 1,
        /// Reassemble fragments.
        FRAG_REASM = 2,
    }
}

/// `OFPT_SET_CONFIG` and `OFPT_GET_CONFIG_REPLY` (7.3.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SwitchConfig {
    /// Treatment of fragments.
    pub flags: ConfigFlags,
    /// Bytes of a packet to send to the controller when it is not sent by an output action.
    pub miss_send_len: u16,
}

impl Wire for SwitchConfig {
    fn put(&self, w: &mut Writer<'_>) {
        w.u16(self.flags.0);
        w.u16(self.miss_send_len);
    }

    fn get(r: &mut Reader<'_>) -> Result<SwitchConfig, DecodeError> {
        Ok(SwitchConfig { flags: ConfigFlags(r.u16()?), miss_send_len: r.u16()? })
    }
}

/// The switch's description (7.3.5.1).
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Desc {
    /// Manufacturer.
    pub manufacturer: Text<256>,
    /// Hardware.
    pub hardware: Text<256>,
    /// Software.
    pub software: Text<256>,
    /// Serial number.
    pub serial: Text<32>,
    /// Description of this datapath, for people.
    pub datapath: Text<256>,
}

impl Wire for Desc {
    fn put(&self, w: &mut Writer<'_>) {
        self.manufacturer.put(w);
        self.hardware.put(w);
        self.software.put(w);
        self.serial.put(w);
        self.datapath.put(w);
    }

    fn get(r: &mut Reader<'_>) -> Result<Desc, DecodeError> {
        Ok(Desc {
            manufacturer: Text::get(r)?,
            hardware: Text::get(r)?,
            software: Text::get(r)?,
            serial: Text::get(r)?,
            datapath: Text::get(r)?,
        })
    }
}

wire_enum! {
    /// What a controller is to a switch (`OFPCR_ROLE_*`).
    Role: u32 {
        /// Only asks.
        NoChange = 0,
        /// Full access, like every other controller of this role.
        Equal = 1,
        /// Full access; every other master becomes a slave.
        Master = 2,
        /// Read-only, and sees port status only.
        Slave = 3,
    }
}

/// `OFPT_ROLE_REQUEST` and `OFPT_ROLE_REPLY` (7.3.9).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoleMessage {
    /// The role.
    pub role: Role,
    /// Number of the election that gave it.
    pub generation_id: u64,
}

impl Wire for RoleMessage {
    fn put(&self, w: &mut Writer<'_>) {
        w.u32(self.role.number());
        w.zeros(4);
        w.u64(self.generation_id);
    }

    fn get(r: &mut Reader<'_>) -> Result<RoleMessage, DecodeError> {
        let role = Role::from_number(r.u32()?).ok_or(DecodeError::new(ErrorCode::ROLE_BAD_ROLE, "role"))?;
        r.skip(4)?;
        Ok(RoleMessage { role, generation_id: r.u64()? })
    }
}

/// `OFPT_SET_ASYNC` and `OFPT_GET_ASYNC_REPLY` (7.3.10): bit per reason; the first of each pair is for the roles
/// master and equal, the second for slave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AsyncConfig {
    /// Packet-ins, by [`crate::PacketInReason`].
    pub packet_in_mask: [u32; 2],
    /// Port status, by [`crate::PortStatusReason`].
    pub port_status_mask: [u32; 2],
    /// Flow-removeds, by [`crate::FlowRemovedReason`].
    pub flow_removed_mask: [u32; 2],
}

impl Wire for AsyncConfig {
    fn put(&self, w: &mut Writer<'_>) {
        for pair in [self.packet_in_mask, self.port_status_mask, self.flow_removed_mask] {
            w.u32(pair[0]);
            w.u32(pair[1]);
        }
    }

    fn get(r: &mut Reader<'_>) -> Result<AsyncConfig, DecodeError> {
        let mut pair = || Ok::<_, DecodeError>([r.u32()?, r.u32()?]);
        Ok(AsyncConfig { packet_in_mask: pair()?, port_status_mask: pair()?, flow_removed_mask: pair()? })
    }
}

/// `OFPT_EXPERIMENTER` (7.5.4), and the body of experimenter multipart messages: raw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Experimenter {
    /// The experimenter's number.
    pub experimenter: u32,
    /// The experimenter's own type.
    pub exp_type: u32,
    /// What follows.
    pub data: Vec<u8>,
}

impl Wire for Experimenter {
    fn put(&self, w: &mut Writer<'_>) {
        w.u32(self.experimenter);
        w.u32(self.exp_type);
        w.bytes(&self.data);
    }

    fn get(r: &mut Reader<'_>) -> Result<Experimenter, DecodeError> {
        Ok(Experimenter { experimenter: r.u32()?, exp_type: r.u32()?, data: r.rest().to_vec() })
    }
}
