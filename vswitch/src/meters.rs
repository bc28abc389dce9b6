//! Meters (OpenFlow 1.3.5, 5.7): rates above which packets of a flow are dropped or marked.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use packet::{Edit, FlowKey, Header, field};

use crate::flow::FlowStats;

/// Meters at most, unless configured otherwise. Only those that are made take memory, and controllers take the limit
/// for the highest number as well: Open vSwitch means it so.
pub const METER_LIMIT_DEFAULT: usize = 65_536;
/// Bands of a meter at most.
pub const BANDS_MAX: usize = 16;
/// What may come at once where the controller did not say, as a part of a second's worth: 1 / this.
const BURST_DEFAULT: u64 = 10;

/// What happens to a packet above a rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BandKind {
    /// It is dropped.
    Drop,
    /// The drop precedence of its DSCP rises by this (RFC 2597); packets without one pass as they are.
    DscpRemark(u8),
}

/// One band of a meter to add.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewBand {
    /// What it does.
    pub kind: BandKind,
    /// Above what rate: kbit/s, or packets per second.
    pub rate: u32,
    /// What may come at once, kbit or packets; 0 = a tenth of a second's worth.
    pub burst: u32,
}

/// A meter to add, or what one becomes.
#[derive(Clone, Debug)]
pub struct NewMeter {
    /// Its number.
    pub id: u32,
    /// Rates count packets instead of kilobits.
    pub packets: bool,
    /// The bands.
    pub bands: Vec<NewBand>,
    /// The meter as the controller sent it, for it to see again.
    pub wire: ofp::MeterConfig,
}

/// One change of the meters.
#[derive(Clone, Debug)]
pub enum MeterChange {
    /// Add a meter.
    Add(NewMeter),
    /// Give the meter with this number other bands.
    Modify(NewMeter),
    /// Delete a meter, or with `None` all, and the flows that use it.
    Delete(Option<u32>),
}

/// A band at work. The state of the rate is one number, the time at which the packets so far will have had their turn
/// (the virtual scheduling form of a token bucket, ITU-T I.371), so workers share it without a lock.
#[derive(Debug)]
struct Band {
    config: NewBand,
    burst_ns: u64,
    turn_ns: AtomicU64,
    stats: FlowStats,
}

impl Band {
    /// Takes a packet that counts `units` (bits or packets); `true` if that is above the rate.
    fn exceeded(&self, units: u64, per_second: u64, now_ns: u64) -> bool {
        if per_second == 0 {
            return true;
        }
        let cost_ns = units * 1_000_000_000 / per_second;
        // A packet larger than the burst still passes at the rate.
        let burst_ns = self.burst_ns.max(cost_ns);
        let take = |turn_ns: u64| {
            let next = turn_ns.max(now_ns) + cost_ns;
            (next - now_ns <= burst_ns).then_some(next)
        };
        self.turn_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err()
    }
}

/// What a meter makes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Metered {
    /// It goes on as it is.
    Pass,
    /// It goes on after its drop precedence was raised by this.
    Remark(u8),
    /// It ends here.
    Drop,
}

/// A meter.
#[derive(Debug)]
pub struct Meter {
    /// What it does.
    pub config: NewMeter,
    /// When it was added, milliseconds of the switch's clock.
    pub created_ms: u64,
    /// Packets that came in.
    pub stats: FlowStats,
    started: Instant,
    bands: Vec<Band>,
}

impl Meter {
    fn new(config: NewMeter, created_ms: u64, stats: FlowStats, workers: usize) -> Meter {
        let unit = if config.packets { 1 } else { 1000 };
        let band = |config: &NewBand| {
            let rate = u64::from(config.rate) * unit;
            let burst = match config.burst {
                0 => rate / BURST_DEFAULT,
                burst => u64::from(burst) * unit,
            };
            let burst_ns = (u128::from(burst) * 1_000_000_000).checked_div(rate.into()).unwrap_or(0);
            // An hour's worth is as good as more.
            let burst_ns = burst_ns.min(3_600_000_000_000) as u64;
            Band { config: *config, burst_ns, turn_ns: AtomicU64::new(0), stats: FlowStats::new(workers) }
        };
        let bands = config.bands.iter().map(band).collect();
        Meter { config, created_ms, stats, started: Instant::now(), bands }
    }

    /// Counters of the bands.
    pub fn band_stats(&self) -> impl Iterator<Item = &FlowStats> {
        self.bands.iter().map(|band| &band.stats)
    }

    /// Takes a packet of `bytes` bytes now. `worker` counts.
    pub(crate) fn take(&self, worker: usize, bytes: usize, now_ms: u64) -> Metered {
        self.take_at(worker, bytes, now_ms, self.started.elapsed().as_nanos() as u64)
    }

    fn take_at(&self, worker: usize, bytes: usize, now_ms: u64, now_ns: u64) -> Metered {
        self.stats.cell(worker).add(1, bytes as u64, now_ms);
        let (units, unit) = if self.config.packets { (1, 1) } else { (bytes as u64 * 8, 1000) };
        // Of the bands whose rate is exceeded the one with the highest rate applies (5.7.1).
        let mut applied: Option<&Band> = None;
        for band in &self.bands {
            if band.exceeded(units, u64::from(band.config.rate) * unit, now_ns)
                && applied.is_none_or(|applied| band.config.rate > applied.config.rate)
            {
                applied = Some(band);
            }
        }
        let Some(band) = applied else { return Metered::Pass };
        band.stats.cell(worker).add(1, bytes as u64, now_ms);
        match band.config.kind {
            BandKind::Drop => Metered::Drop,
            BandKind::DscpRemark(level) => Metered::Remark(level),
        }
    }
}

/// Raises the drop precedence of a packet of an assured forwarding class by `level`; of others nothing changes.
pub(crate) fn remark(header: &mut Header, key: &FlowKey, level: u8) {
    let dscp = key.get(field::IP_DSCP) as u8;
    let (class, precedence) = (dscp >> 3, dscp >> 1 & 3);
    if (1..=4).contains(&class) && precedence > 0 && dscp & 1 == 0 {
        let raised = precedence.saturating_add(level).min(3);
        // Only IP has a DSCP, and it does if the key has one.
        let _ = Edit::SetIpDscp(class << 3 | raised << 1).apply(header);
    }
}

/// Why a meter-mod was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MeterError {
    /// A meter of this number exists.
    #[error("meter {0} exists; modify it or choose another number")]
    Exists(u32),
    /// No meter of this number exists.
    #[error("there is no meter {0}")]
    Unknown(u32),
    /// The number is zero or reserved.
    #[error("{0} is no number of a meter")]
    Invalid(u32),
    /// As many meters as fit.
    #[error("there are {limit} meters, which is the limit; delete some or raise it")]
    Full {
        /// The limit.
        limit: usize,
    },
    /// Too many bands.
    #[error("a meter has {BANDS_MAX} bands at most")]
    TooManyBands,
}

/// All meters of one moment, by number, as workers look them up.
#[derive(Default)]
pub struct LiveMeters(Vec<(u32, Arc<Meter>)>);

impl LiveMeters {
    pub(crate) fn get(&self, id: u32) -> Option<&Meter> {
        let at = self.0.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(&self.0[at].1)
    }
}

/// Meters by number.
pub(crate) type Meters = BTreeMap<u32, Arc<Meter>>;

/// The meters and who uses them: the control side.
pub(crate) struct MeterTable {
    meters: Meters,
    /// Flows that use a meter.
    pub(crate) users: HashMap<u32, u32>,
    limit: usize,
    workers: usize,
}

impl MeterTable {
    pub(crate) fn new(workers: usize, limit: usize) -> MeterTable {
        MeterTable { meters: BTreeMap::new(), users: HashMap::new(), limit, workers }
    }

    pub(crate) fn contains(&self, id: u32) -> bool {
        self.meters.contains_key(&id)
    }

    pub(crate) fn all(&self) -> &Meters {
        &self.meters
    }

    /// Takes the meters back that there were before.
    pub(crate) fn restore(&mut self, meters: Meters) {
        self.meters = meters;
    }

    /// Carries out a change and returns the meters that it deleted, ascending.
    pub(crate) fn apply(&mut self, change: &MeterChange, now_ms: u64) -> Result<Vec<u32>, MeterError> {
        match change {
            MeterChange::Add(new) => self.add(new.clone(), now_ms).map(|()| Vec::new()),
            MeterChange::Modify(new) => self.modify(new.clone()).map(|()| Vec::new()),
            MeterChange::Delete(id) => Ok(self.delete(*id)),
        }
    }

    /// The meters, each with the number of flows that use it.
    pub(crate) fn list(&self) -> Vec<(Arc<Meter>, u32)> {
        let used =
            |meter: &Arc<Meter>| (meter.clone(), self.users.get(&meter.config.id).copied().unwrap_or(0));
        self.meters.values().map(used).collect()
    }

    pub(crate) fn live(&self) -> LiveMeters {
        LiveMeters(self.meters.iter().map(|(id, meter)| (*id, meter.clone())).collect())
    }

    fn add(&mut self, new: NewMeter, now_ms: u64) -> Result<(), MeterError> {
        if self.contains(new.id) {
            return Err(MeterError::Exists(new.id));
        }
        check(&new)?;
        if self.meters.len() >= self.limit {
            return Err(MeterError::Full { limit: self.limit });
        }
        let stats = FlowStats::new(self.workers);
        self.meters.insert(new.id, Arc::new(Meter::new(new, now_ms, stats, self.workers)));
        Ok(())
    }

    fn modify(&mut self, new: NewMeter) -> Result<(), MeterError> {
        let old = self.meters.get(&new.id).ok_or(MeterError::Unknown(new.id))?;
        check(&new)?;
        let meter = Meter::new(new, old.created_ms, old.stats.clone(), self.workers);
        self.meters.insert(meter.config.id, Arc::new(meter));
        Ok(())
    }

    /// Deletes one meter, or with `None` all.
    fn delete(&mut self, id: Option<u32>) -> Vec<u32> {
        match id {
            None => std::mem::take(&mut self.meters).into_keys().collect(),
            Some(id) => self.meters.remove(&id).map(|meter| meter.config.id).into_iter().collect(),
        }
    }
}

fn check(new: &NewMeter) -> Result<(), MeterError> {
    if new.id == 0 || new.id > ofp::meter::MAX {
        return Err(MeterError::Invalid(new.id));
    }
    if new.bands.len() > BANDS_MAX { Err(MeterError::TooManyBands) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(packets: bool, bands: &[NewBand]) -> Meter {
        let wire = ofp::MeterConfig { flags: ofp::MeterFlags(0), meter_id: 1, bands: Vec::new() };
        let config = NewMeter { id: 1, packets, bands: bands.to_vec(), wire };
        Meter::new(config, 1, FlowStats::new(1), 1)
    }

    /// Packets of 1500 bytes, one each `every_ns`, for ten seconds: how many passed, were remarked, were dropped.
    fn run(meter: &Meter, every_ns: u64) -> (u64, u64, u64) {
        let (mut passed, mut remarked, mut dropped) = (0, 0, 0);
        for at in 0..10_000_000_000 / every_ns {
            match meter.take_at(0, 1500, 1, at * every_ns) {
                Metered::Pass => passed += 1,
                Metered::Remark(_) => remarked += 1,
                Metered::Drop => dropped += 1,
            }
        }
        (passed, remarked, dropped)
    }

    #[test]
    fn what_passes_is_the_rate_and_the_burst() {
        let band = |kind, rate, burst| NewBand { kind, rate, burst };
        let drops = meter(true, &[band(BandKind::Drop, 1000, 50)]);
        assert_eq!(run(&drops, 500_000), (10_000 + 49, 0, 20_000 - 10_049));
        assert_eq!(drops.stats.sum().packets, 20_000);
        assert_eq!(drops.band_stats().next().unwrap().sum().packets, 20_000 - 10_049);
        // 12 kbit a packet: 12 Mbit/s are 1000 packets a second, and 1200 kbit 100 at once.
        let kbps = meter(false, &[band(BandKind::Drop, 12_000, 1200)]);
        let (passed, ..) = run(&kbps, 500_000);
        assert!((10_098..=10_101).contains(&passed), "{passed}");
        let below = meter(true, &[band(BandKind::Drop, 1000, 1)]);
        assert_eq!(run(&below, 1_000_000), (10_000, 0, 0));
        // A burst smaller than a packet still lets the rate through.
        let small = meter(false, &[band(BandKind::Drop, 12_000, 1)]);
        assert_eq!(run(&small, 500_000).0, 10_000);
        let nothing = meter(true, &[band(BandKind::Drop, 0, 0)]);
        assert_eq!(run(&nothing, 1_000_000).0, 0);
        assert_eq!(run(&meter(true, &[]), 1_000_000).0, 10_000);
    }

    #[test]
    fn of_the_exceeded_bands_the_highest_applies() {
        let bands = [
            NewBand { kind: BandKind::DscpRemark(1), rate: 500, burst: 1 },
            NewBand { kind: BandKind::Drop, rate: 1000, burst: 1 },
        ];
        let (passed, remarked, dropped) = run(&meter(true, &bands), 500_000);
        assert!(passed.abs_diff(5000) <= 2 && remarked.abs_diff(5000) <= 2, "{passed} {remarked}");
        assert!(dropped.abs_diff(10_000) <= 2, "{dropped}");
    }

    #[test]
    fn only_assured_forwarding_has_a_drop_precedence() {
        let frame = |dscp: u8| {
            let mut frame =
                [&[2; 12][..], &[8, 0, 0x45, dscp << 2, 0, 20, 0, 0, 0, 0, 9, 6], &[0; 30]].concat();
            frame.truncate(60);
            frame
        };
        let remarked = |dscp: u8, level: u8| {
            let frame = frame(dscp);
            let mut header = Header::of(&frame);
            remark(&mut header, &packet::parse(&frame, 1), level);
            header.bytes()[15] >> 2
        };
        assert_eq!(remarked(18, 1), 20);
        assert_eq!(remarked(18, 2), 22);
        assert_eq!(remarked(20, 255), 22);
        for other in [0, 46, 8, 19, 40] {
            assert_eq!(remarked(other, 1), other);
        }
    }
}
