//! What is counted per pool.

use std::time::Duration;

use telemetry::{Counter, Gauge, Histogram, Registry};
use tiering::{Action, ActionKind, Stats, Store, UNIT_BYTES};

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
    pub(crate) fn update(&self, store: &mut Store) {
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
    }
}
