//! Meters: modification, configuration, statistics, features.

use crate::error::{DecodeError, ErrorCode};
use crate::wire::{Reader, Wire, Writer};

/// Reserved meter numbers (`OFPM_*`).
pub mod meter {
    /// The highest number of a meter.
    pub const MAX: u32 = 0xffff_0000;
    /// The meter of the slow path.
    pub const SLOWPATH: u32 = 0xffff_fffd;
    /// The meter of the controller connection.
    pub const CONTROLLER: u32 = 0xffff_fffe;
    /// Every meter.
    pub const ALL: u32 = 0xffff_ffff;
}

wire_enum! {
    /// What a meter-mod does (`OFPMC_*`).
    MeterModCommand: u16 {
        /// New meter.
        Add = 0,
        /// Change it.
        Modify = 1,
        /// Delete it.
        Delete = 2,
    }
}

flags! {
    /// `OFPMF_*`.
    MeterFlags: u16 {
        /// Rates are in kbit/s.
        KBPS = 1,
        /// Rates are in packets per second.
        PKTPS = 2,
        /// The burst sizes are meant.
        BURST = 4,
        /// Collect statistics.
        STATS = 8,
    }
}

/// What happens above a rate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MeterBand {
    /// Drop the packet.
    Drop {
        /// Rate above which the band applies.
        rate: u32,
        /// Burst in kilobits or packets.
        burst_size: u32,
    },
    /// Raise the drop precedence in the DSCP field.
    DscpRemark {
        /// Rate above which the band applies.
        rate: u32,
        /// Burst in kilobits or packets.
        burst_size: u32,
        /// By how much.
        prec_level: u8,
    },
    /// An experimenter's band, as it came.
    Experimenter {
        /// Rate above which the band applies.
        rate: u32,
        /// Burst in kilobits or packets.
        burst_size: u32,
        /// The experimenter's number.
        experimenter: u32,
        /// What follows the number.
        data: Vec<u8>,
    },
}

const DROP: u16 = 1;
const DSCP_REMARK: u16 = 2;
const EXPERIMENTER: u16 = 0xffff;

impl Wire for MeterBand {
    fn put(&self, w: &mut Writer<'_>) {
        let start = w.at();
        let (kind, rate, burst_size) = match *self {
            MeterBand::Drop { rate, burst_size } => (DROP, rate, burst_size),
            MeterBand::DscpRemark { rate, burst_size, .. } => (DSCP_REMARK, rate, burst_size),
            MeterBand::Experimenter { rate, burst_size, .. } => (EXPERIMENTER, rate, burst_size),
        };
        w.u16(kind);
        w.u16(0);
        w.u32(rate);
        w.u32(burst_size);
        match self {
            MeterBand::Drop { .. } => w.zeros(4),
            MeterBand::DscpRemark { prec_level, .. } => {
                w.u8(*prec_level);
                w.zeros(3);
            }
            MeterBand::Experimenter { experimenter, data, .. } => {
                w.u32(*experimenter);
                w.bytes(data);
            }
        }
        w.patch_len(start + 2, start);
    }

    fn get(outer: &mut Reader<'_>) -> Result<MeterBand, DecodeError> {
        let kind = outer.u16()?;
        let len = usize::from(outer.u16()?);
        let body = len.checked_sub(4).ok_or(outer.error())?;
        let mut r = outer.part(body, ErrorCode::BAD_LEN, "meter band")?;
        let (rate, burst_size) = (r.u32()?, r.u32()?);
        let band = match kind {
            DROP => {
                r.skip(4)?;
                MeterBand::Drop { rate, burst_size }
            }
            DSCP_REMARK => {
                let prec_level = r.u8()?;
                r.skip(3)?;
                MeterBand::DscpRemark { rate, burst_size, prec_level }
            }
            EXPERIMENTER => {
                let (experimenter, data) = (r.u32()?, r.rest().to_vec());
                MeterBand::Experimenter { rate, burst_size, experimenter, data }
            }
            _ => return Err(DecodeError::new(ErrorCode::METER_BAD_BAND, "meter band type")),
        };
        r.finish().map(|()| band)
    }
}

/// `OFPT_METER_MOD` (7.3.4.4).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MeterMod {
    /// What to do.
    pub command: MeterModCommand,
    /// Unit and options.
    pub flags: MeterFlags,
    /// Its number.
    pub meter_id: u32,
    /// Its bands.
    pub bands: Vec<MeterBand>,
}

impl Wire for MeterMod {
    fn put(&self, w: &mut Writer<'_>) {
        w.u16(self.command.number());
        w.u16(self.flags.0);
        w.u32(self.meter_id);
        w.list(&self.bands);
    }

    fn get(r: &mut Reader<'_>) -> Result<MeterMod, DecodeError> {
        let command = MeterModCommand::from_number(r.u16()?)
            .ok_or(DecodeError::new(ErrorCode::METER_BAD_COMMAND, "meter-mod command"))?;
        let flags = MeterFlags(r.u16()?);
        if !MeterFlags::NAMED.contains(flags) {
            return Err(DecodeError::new(ErrorCode::METER_BAD_FLAGS, "meter flags"));
        }
        Ok(MeterMod { command, flags, meter_id: r.u32()?, bands: r.list()? })
    }
}

/// One entry of a meter configuration reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MeterConfig {
    /// Unit and options.
    pub flags: MeterFlags,
    /// Its number.
    pub meter_id: u32,
    /// Its bands.
    pub bands: Vec<MeterBand>,
}

impl Wire for MeterConfig {
    fn put(&self, w: &mut Writer<'_>) {
        let start = w.at();
        w.u16(0);
        w.u16(self.flags.0);
        w.u32(self.meter_id);
        w.list(&self.bands);
        w.patch_len(start, start);
    }

    fn get(outer: &mut Reader<'_>) -> Result<MeterConfig, DecodeError> {
        let mut r = outer.sized("meter configuration")?;
        Ok(MeterConfig { flags: MeterFlags(r.u16()?), meter_id: r.u32()?, bands: r.list()? })
    }
}

/// Counters of one band.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct MeterBandCounter {
    /// Packets above the rate.
    pub packet_count: u64,
    /// Their bytes.
    pub byte_count: u64,
}

impl Wire for MeterBandCounter {
    fn put(&self, w: &mut Writer<'_>) {
        w.u64(self.packet_count);
        w.u64(self.byte_count);
    }

    fn get(r: &mut Reader<'_>) -> Result<MeterBandCounter, DecodeError> {
        Ok(MeterBandCounter { packet_count: r.u64()?, byte_count: r.u64()? })
    }
}

/// One entry of a meter statistics reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MeterStats {
    /// Its number.
    pub meter_id: u32,
    /// Flow entries that use it.
    pub flow_count: u32,
    /// Packets that came in.
    pub packet_in_count: u64,
    /// Their bytes.
    pub byte_in_count: u64,
    /// Whole seconds it lives.
    pub duration_sec: u32,
    /// Nanoseconds beyond those.
    pub duration_nsec: u32,
    /// Counters of its bands.
    pub bands: Vec<MeterBandCounter>,
}

impl Wire for MeterStats {
    fn put(&self, w: &mut Writer<'_>) {
        let start = w.at();
        w.u32(self.meter_id);
        w.u16(0);
        w.zeros(6);
        w.u32(self.flow_count);
        w.u64(self.packet_in_count);
        w.u64(self.byte_in_count);
        w.u32(self.duration_sec);
        w.u32(self.duration_nsec);
        w.list(&self.bands);
        w.patch_len(start + 4, start);
    }

    fn get(outer: &mut Reader<'_>) -> Result<MeterStats, DecodeError> {
        let (meter_id, len) = (outer.u32()?, usize::from(outer.u16()?));
        let body = len.checked_sub(6).ok_or(outer.error())?;
        let mut r = outer.part(body, ErrorCode::BAD_LEN, "meter statistics entry")?;
        r.skip(6)?;
        Ok(MeterStats {
            meter_id,
            flow_count: r.u32()?,
            packet_in_count: r.u64()?,
            byte_in_count: r.u64()?,
            duration_sec: r.u32()?,
            duration_nsec: r.u32()?,
            bands: r.list()?,
        })
    }
}

/// What a switch can do with meters (7.3.5.14).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct MeterFeatures {
    /// Meters at most.
    pub max_meter: u32,
    /// Bit per band type number.
    pub band_types: u32,
    /// Bits as in [`MeterFlags`].
    pub capabilities: u32,
    /// Bands of a meter at most.
    pub max_bands: u8,
    /// Colours at most.
    pub max_color: u8,
}

impl Wire for MeterFeatures {
    fn put(&self, w: &mut Writer<'_>) {
        w.u32(self.max_meter);
        w.u32(self.band_types);
        w.u32(self.capabilities);
        w.u8(self.max_bands);
        w.u8(self.max_color);
        w.zeros(2);
    }

    fn get(r: &mut Reader<'_>) -> Result<MeterFeatures, DecodeError> {
        let features = MeterFeatures {
            max_meter: r.u32()?,
            band_types: r.u32()?,
            capabilities: r.u32()?,
            max_bands: r.u8()?,
            max_color: r.u8()?,
        };
        r.skip(2).map(|()| features)
    }
}
