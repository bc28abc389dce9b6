//! Meter-mods and what is told of meters.

use ofp::{
    ErrorCode, MeterBand, MeterBandCounter, MeterConfig, MeterFeatures, MeterFlags, MeterMod,
    MeterModCommand, MeterStats,
};

use super::convert;
use crate::bridge::Bridge;
use crate::meters::{BANDS_MAX, BandKind, MeterChange, MeterError, NewBand, NewMeter};

/// The change that a meter-mod asks for.
///
/// # Errors
/// The code to answer with.
pub fn change(request: &MeterMod) -> Result<MeterChange, ErrorCode> {
    Ok(match request.command {
        MeterModCommand::Add => MeterChange::Add(meter(request)?),
        MeterModCommand::Modify => MeterChange::Modify(meter(request)?),
        MeterModCommand::Delete => {
            MeterChange::Delete((request.meter_id != ofp::meter::ALL).then_some(request.meter_id))
        }
    })
}

fn meter(request: &MeterMod) -> Result<NewMeter, ErrorCode> {
    let flags = request.flags;
    let packets = flags.contains(MeterFlags::PKTPS);
    if packets && flags.contains(MeterFlags::KBPS) {
        return Err(ErrorCode::METER_BAD_FLAGS);
    }
    let meant = |burst: u32| if flags.contains(MeterFlags::BURST) { burst } else { 0 };
    let band = |band: &MeterBand| match *band {
        MeterBand::Drop { rate, burst_size } => {
            Ok(NewBand { kind: BandKind::Drop, rate, burst: meant(burst_size) })
        }
        MeterBand::DscpRemark { rate, burst_size, prec_level } => {
            let kind = BandKind::DscpRemark(prec_level);
            Ok(NewBand { kind, rate, burst: meant(burst_size) })
        }
        MeterBand::Experimenter { .. } => Err(ErrorCode::METER_BAD_BAND),
    };
    let id = request.meter_id;
    let wire = MeterConfig { flags, meter_id: id, bands: request.bands.clone() };
    let bands = request.bands.iter().map(band).collect::<Result<_, ErrorCode>>()?;
    Ok(NewMeter { id, packets, bands, wire })
}

/// The code for a refused change.
pub fn code(error: MeterError) -> ErrorCode {
    match error {
        MeterError::Exists(_) => ErrorCode::METER_EXISTS,
        MeterError::Unknown(_) => ErrorCode::UNKNOWN_METER,
        MeterError::Invalid(_) => ErrorCode::INVALID_METER,
        MeterError::Full { .. } => ErrorCode::OUT_OF_METERS,
        MeterError::TooManyBands => ErrorCode::OUT_OF_BANDS,
    }
}

/// What `make` says of the wanted meter, or of all.
fn each<T>(
    bridge: &Bridge,
    wanted: u32,
    make: impl Fn(&crate::meters::Meter, u32) -> T,
) -> Result<Vec<T>, ErrorCode> {
    let meters = bridge.meters();
    let all = wanted == ofp::meter::ALL;
    let chosen = meters.iter().filter(|(meter, _)| all || meter.config.id == wanted);
    let list: Vec<T> = chosen.map(|(meter, flows)| make(meter, *flows)).collect();
    if list.is_empty() && !all { Err(ErrorCode::UNKNOWN_METER) } else { Ok(list) }
}

/// Statistics of one meter or of all.
///
/// # Errors
/// The one does not exist.
pub fn stats(bridge: &Bridge, wanted: u32) -> Result<Vec<MeterStats>, ErrorCode> {
    let now_ms = bridge.clock().now_ms();
    each(bridge, wanted, |meter, flow_count| {
        let counters = meter.stats.sum();
        let (duration_sec, duration_nsec) = convert::duration(now_ms.saturating_sub(meter.created_ms));
        let bands = meter.band_stats().map(|stats| {
            let counters = stats.sum();
            MeterBandCounter { packet_count: counters.packets, byte_count: counters.bytes }
        });
        MeterStats {
            meter_id: meter.config.id,
            flow_count,
            packet_in_count: counters.packets,
            byte_in_count: counters.bytes,
            duration_sec,
            duration_nsec,
            bands: bands.collect(),
        }
    })
}

/// The configuration of one meter or of all, as it was sent.
///
/// # Errors
/// The one does not exist.
pub fn configs(bridge: &Bridge, wanted: u32) -> Result<Vec<MeterConfig>, ErrorCode> {
    each(bridge, wanted, |meter, _| meter.config.wire.clone())
}

/// What meters can do: drop and remark, by kilobits or packets, with bursts and counters.
pub fn features(bridge: &Bridge) -> MeterFeatures {
    MeterFeatures {
        max_meter: bridge.config().meter_limit.min(u32::MAX as usize) as u32,
        band_types: 1 << 1 | 1 << 2,
        capabilities: MeterFlags::NAMED.0.into(),
        max_bands: BANDS_MAX as u8,
        max_color: 0,
    }
}
