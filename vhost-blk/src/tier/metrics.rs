//! What is counted per pool.

use std::time::Duration;

use telemetry::{Counter, Gauge, Histogram, Registry};
use tiering::{Action, ActionKind, Stats, Store, UNIT_BYTES, VolumeInfo};

/// The cells of one pool, which its worker writes.
pub struct PoolMetrics {
    hits: [Counter; 2],
    misses: [Counter; 2],
    promotions: Counter,
    demotions: Counter,
    write_backs: Counter,
    aborted: Counter,
    moved: [Counter; 2],
    records: Counter,
    journal_blocks: Counter,
    commits: Counter,
    checkpoints: Counter,
    full_waits: Counter,
    io_errors: Counter,
    /// Operations that a device of the pool failed.
    pub device_errors: Counter,
    journal_time: Histogram,
    flush_time: Histogram,
    dirty: Gauge,
    space: [[Gauge; 2]; 2],
    waiting: Gauge,
    read_only: Gauge,
    dirty_age: Gauge,
    log: [Gauge; 2],
    migration: Gauge,
    fill: Gauge,
    full_in: Gauge,
    rates: Rates,
}

/// Time over which the rate of moves is averaged, seconds.
const MIGRATION_WINDOW_S: f64 = 5.0;
/// The same for the rate at which space goes.
const FILL_WINDOW_S: f64 = 60.0;
/// Forecasts beyond ten years are none.
const FORECAST_MAX_S: f64 = 10.0 * 365.0 * 86400.0;
/// Shortest time between two looks at a rate, ns.
const LOOK_NS: u64 = 500_000_000;

/// How fast things go, averaged so that older seconds count less and less.
#[derive(Default)]
struct Rates {
    seen_ns: u64,
    moved: u64,
    free: Option<u64>,
    moved_per_s: f64,
    used_per_s: f64,
}

impl Rates {
    /// Takes over bytes moved so far and bytes that are free now.
    fn look(&mut self, now_ns: u64, moved: u64, free: u64) {
        let passed = now_ns.saturating_sub(self.seen_ns);
        if passed < LOOK_NS && self.free.is_some() {
            return;
        }
        let seconds = passed as f64 / 1e9;
        let used = self.free.map_or(0.0, |before| before as f64 - free as f64);
        if self.free.is_some() {
            let average = |rate: &mut f64, amount: f64, window: f64| {
                let weight = (-seconds / window).exp();
                *rate = *rate * weight + amount / seconds * (1.0 - weight);
            };
            average(&mut self.moved_per_s, moved.saturating_sub(self.moved) as f64, MIGRATION_WINDOW_S);
            average(&mut self.used_per_s, used, FILL_WINDOW_S);
        }
        (self.seen_ns, self.moved, self.free) = (now_ns, moved, Some(free));
    }

    /// Seconds until `free` bytes are gone at this rate; -1 for never.
    fn full_in_s(&self, free: u64) -> i64 {
        let seconds = free as f64 / self.used_per_s;
        if free > 0 && (self.used_per_s < 1.0 || seconds > FORECAST_MAX_S) {
            -1
        } else {
            seconds.max(0.0) as i64
        }
    }
}

impl PoolMetrics {
    /// Registers the cells of `pool`.
    pub fn new(registry: &Registry, pool: &str) -> PoolMetrics {
        let labels = [("pool", pool)];
        let counter = |name: &str, help: &str| registry.counter(name, help, &labels);
        let gauge = |name: &str, help: &str| registry.gauge(name, help, &labels);
        let by_op = |name: &str, help: &str, tier: &str| {
            ["read", "write"]
                .map(|op| registry.counter(name, help, &[("pool", pool), ("op", op), ("tier", tier)]))
        };
        let space = |name: &str, help: &str| {
            ["hot", "cold"].map(|tier| registry.gauge(name, help, &[("pool", pool), ("tier", tier)]))
        };
        PoolMetrics {
            hits: by_op("sluice_tier_hits_total", "Parts of requests that the hot tier served.", "hot"),
            misses: by_op("sluice_tier_misses_total", "Parts of requests whose data were not hot.", "cold"),
            promotions: counter("sluice_tier_promotions_total", "Units brought into the hot tier."),
            demotions: counter("sluice_tier_demotions_total", "Units that left the hot tier."),
            write_backs: counter("sluice_tier_write_backs_total", "Units written back to the cold tier."),
            aborted: counter("sluice_tier_moves_aborted_total", "Moves given up for a guest or an error."),
            moved: ["promote", "write_back"].map(|op| {
                let help = "Bytes moved between the tiers.";
                registry.counter("sluice_tier_moved_bytes_total", help, &[("pool", pool), ("op", op)])
            }),
            records: counter("sluice_tier_journal_records_total", "Records put into the journal."),
            journal_blocks: counter("sluice_tier_journal_blocks_total", "Journal blocks written."),
            commits: counter("sluice_tier_commits_total", "Commit cycles that made records durable."),
            checkpoints: counter("sluice_tier_checkpoints_total", "Checkpoints written."),
            full_waits: counter("sluice_tier_full_waits_total", "Writes that had to wait for space."),
            io_errors: counter("sluice_tier_io_errors_total", "Requests that a device error failed."),
            device_errors: counter("sluice_tier_device_errors_total", "Operations that a device failed."),
            journal_time: registry.histogram(
                "sluice_tier_journal_write_seconds",
                "Time of writes to journal and checkpoints.",
                &labels,
            ),
            flush_time: registry.histogram(
                "sluice_tier_flush_seconds",
                "Time of flushes of the pool's devices.",
                &labels,
            ),
            dirty: gauge("sluice_tier_dirty_bytes", "Data that are on the hot tier only, in whole units."),
            space: {
                let total = space("sluice_tier_space_bytes", "Space for data.");
                let free = space("sluice_tier_free_bytes", "Space for data that is free.");
                [total, free]
            },
            waiting: gauge("sluice_tier_waiting_writes", "Writes that wait for space now."),
            read_only: gauge("sluice_tier_read_only", "1 while the pool takes no writes."),
            dirty_age: gauge(
                "sluice_tier_dirty_age_seconds",
                "For how long the data that wait longest have been on the hot tier only.",
            ),
            log: {
                let depth =
                    gauge("sluice_tier_log_blocks", "Journal blocks in use since the last checkpoint.");
                [depth, gauge("sluice_tier_log_blocks_max", "Journal blocks of the pool.")]
            },
            migration: gauge(
                "sluice_tier_migration_bytes_per_second",
                "Bytes that move between the tiers each second, averaged over some seconds.",
            ),
            fill: gauge("sluice_tier_fill_percent", "Space for data that is in use."),
            full_in: gauge(
                "sluice_tier_full_in_seconds",
                "Time until the pool is full if it goes on like the last minute; -1 when it does not fill.",
            ),
            rates: Rates::default(),
        }
    }

    /// Notes how long a write of metadata or a flush took.
    pub(crate) fn device_time(&self, action: &Action, took: Duration) {
        match action.kind {
            ActionKind::Write => self.journal_time.record_ns(took.as_nanos() as u64),
            ActionKind::Flush => self.flush_time.record_ns(took.as_nanos() as u64),
            _ => {}
        }
    }

    /// Takes over what the store has counted.
    pub(crate) fn update(&mut self, store: &mut Store) {
        let stats: Stats = store.stats();
        for (counter, value) in [
            (&self.hits[0], stats.read_hits),
            (&self.hits[1], stats.write_hits),
            (&self.misses[0], stats.read_misses),
            (&self.misses[1], stats.write_misses),
            (&self.promotions, stats.promotions),
            (&self.demotions, stats.demotions),
            (&self.write_backs, stats.write_backs),
            (&self.aborted, stats.moves_aborted),
            (&self.moved[0], stats.filled_bytes),
            (&self.moved[1], stats.written_back_bytes),
            (&self.records, stats.records),
            (&self.journal_blocks, stats.journal_blocks),
            (&self.commits, stats.commits),
            (&self.checkpoints, stats.checkpoints),
            (&self.full_waits, stats.full_waits),
            (&self.io_errors, stats.io_errors),
        ] {
            counter.add(value - counter.get());
        }
        let bytes = |units: u64| (units * UNIT_BYTES) as i64;
        let (hot_free, hot) = store.hot_slots();
        let (cold_free, cold) = store.cold_slots();
        let [total, free] = &self.space;
        for (gauge, units) in
            [(&total[0], hot.into()), (&free[0], hot_free.into()), (&total[1], cold), (&free[1], cold_free)]
        {
            gauge.set(bytes(units));
        }
        self.waiting.set(store.waiting_for_space() as i64);
        self.read_only.set(i64::from(store.read_only().is_some()));
        self.dirty.set(bytes(store.dirty_slots().into()));
        self.dirty_age.set((store.oldest_dirty_ns() / 1_000_000_000) as i64);
        let (used, blocks) = store.log_depth();
        self.log[0].set(used as i64);
        self.log[1].set(blocks as i64);
        let free = cold_free * UNIT_BYTES;
        self.rates.look(store.now_ns(), stats.filled_bytes + stats.written_back_bytes, free);
        self.migration.set(self.rates.moved_per_s as i64);
        self.fill.set(((cold - cold_free) * 100 / cold.max(1)) as i64);
        self.full_in.set(self.rates.full_in_s(free));
    }
}

/// What is shown of a volume in a pool, by whoever knows its name.
pub(crate) struct VolumeGauges {
    mapped: Gauge,
    hot: Gauge,
    share: Gauge,
}

impl VolumeGauges {
    /// Registers the cells of `volume`.
    pub(crate) fn new(registry: &Registry, pool: &str, volume: &str) -> VolumeGauges {
        let gauge =
            |name: &str, help: &str| registry.gauge(name, help, &[("pool", pool), ("volume", volume)]);
        VolumeGauges {
            mapped: gauge(
                "sluice_tier_volume_mapped_bytes",
                "Bytes that a volume has written, in whole units.",
            ),
            hot: gauge("sluice_tier_volume_hot_bytes", "Bytes of the hot tier that a volume fills."),
            share: gauge("sluice_tier_volume_hot_percent", "Share of a volume that is hot."),
        }
    }

    /// Takes over what the store says.
    pub(crate) fn update(&self, info: &VolumeInfo) {
        self.mapped.set(info.mapped_bytes as i64);
        self.hot.set(info.hot_bytes as i64);
        self.share.set((info.hot_bytes * 100 / info.mapped_bytes.max(1)).min(100) as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_fills_steadily_is_full_when_its_space_is_gone() {
        let (mut rates, second) = (Rates::default(), 1_000_000_000);
        let free = |at: u64| (10_000 - at * 10) << 20;
        for at in 0..600 {
            rates.look(at * second, at << 20, free(at));
        }
        let left = rates.full_in_s(free(599));
        assert!((390..=410).contains(&left), "{left}");
        assert!((rates.moved_per_s - (1 << 20) as f64).abs() < 1e4, "{}", rates.moved_per_s);
        for at in 600..2000 {
            rates.look(at * second, 600 << 20, free(599));
        }
        assert_eq!((rates.full_in_s(free(599)), rates.moved_per_s as u64), (-1, 0));
        assert_eq!(rates.full_in_s(0), 0);
    }
}
