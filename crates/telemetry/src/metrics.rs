//! The cells that are counted in.

use std::cell::Cell as NotSync;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Smallest bucket of a histogram: 2^10 ns, about a microsecond.
pub(crate) const BOUND_LOG2_MIN: u32 = 10;
/// Largest finite bucket of a histogram: 2^34 ns, about 17 seconds.
pub(crate) const BOUND_LOG2_MAX: u32 = 34;
/// Finite buckets, and the one above all of them.
pub(crate) const BUCKETS: usize = (BOUND_LOG2_MAX - BOUND_LOG2_MIN + 2) as usize;

/// One number on cache lines of its own: cells of different workers never share one.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct CountCell(pub(crate) AtomicU64);

/// A counter with one writer at a time: adding is a plain load and store. It can move to another thread, but two threads
/// cannot share it (it is not `Sync`); use a [`SharedCounter`] for that.
pub struct Counter {
    pub(crate) cell: Arc<CountCell>,
    pub(crate) one_writer: PhantomData<NotSync<()>>,
}

impl Counter {
    pub(crate) fn new(cell: Arc<CountCell>) -> Counter {
        Counter { cell, one_writer: PhantomData }
    }

    /// A counter that no registry shows, for tests and tools.
    pub fn detached() -> Counter {
        Counter::new(Arc::default())
    }

    /// Adds `count` (for a counter of seconds: nanoseconds).
    #[inline]
    pub fn add(&self, count: u64) {
        self.cell.0.store(self.cell.0.load(Relaxed).wrapping_add(count), Relaxed);
    }

    /// The value so far.
    #[inline]
    pub fn get(&self) -> u64 {
        self.cell.0.load(Relaxed)
    }

    /// A view of this counter for other threads.
    pub fn reader(&self) -> CounterReader {
        CounterReader { cell: self.cell.clone() }
    }
}

/// Reads a [`Counter`] from any thread; keeps its value readable after the counter is gone.
#[derive(Clone)]
pub struct CounterReader {
    cell: Arc<CountCell>,
}

impl CounterReader {
    /// The value so far.
    pub fn get(&self) -> u64 {
        self.cell.0.load(Relaxed)
    }
}

/// A counter that any number of threads add to, for control paths.
#[derive(Clone)]
pub struct SharedCounter {
    pub(crate) cell: Arc<CountCell>,
}

impl SharedCounter {
    /// A counter that no registry shows, for tests and tools.
    pub fn detached() -> SharedCounter {
        SharedCounter { cell: Arc::default() }
    }

    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.cell.0.fetch_add(count, Relaxed);
    }

    /// The value so far.
    pub fn get(&self) -> u64 {
        self.cell.0.load(Relaxed)
    }
}

/// A value that goes up and down.
#[derive(Clone)]
pub struct Gauge {
    pub(crate) cell: Arc<AtomicI64>,
}

impl Gauge {
    /// A gauge that no registry shows, for tests and tools.
    pub fn detached() -> Gauge {
        Gauge { cell: Arc::default() }
    }

    /// Replaces the value.
    pub fn set(&self, value: i64) {
        self.cell.store(value, Relaxed);
    }

    /// Adds `change`, which may be negative.
    pub fn add(&self, change: i64) {
        self.cell.fetch_add(change, Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> i64 {
        self.cell.load(Relaxed)
    }
}

/// Buckets and sum of one histogram.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct HistogramCells {
    pub(crate) buckets: [AtomicU64; BUCKETS],
    pub(crate) sum_ns: AtomicU64,
}

/// A histogram of durations with one writer at a time and fixed power-of-two bounds from 2^10 to 2^34 ns; shown in seconds.
pub struct Histogram {
    pub(crate) cells: Arc<HistogramCells>,
    pub(crate) one_writer: PhantomData<NotSync<()>>,
}

impl Histogram {
    pub(crate) fn new(cells: Arc<HistogramCells>) -> Histogram {
        Histogram { cells, one_writer: PhantomData }
    }

    /// A histogram that no registry shows, for tests and tools.
    pub fn detached() -> Histogram {
        Histogram::new(Arc::default())
    }

    /// Counts one duration of `ns` nanoseconds.
    #[inline]
    pub fn record_ns(&self, ns: u64) {
        self.record_many_ns(ns, 1);
    }

    /// Counts `count` durations of `ns` nanoseconds each, as one batch that ended together has them.
    #[inline]
    pub fn record_many_ns(&self, ns: u64, count: u64) {
        let bucket = &self.cells.buckets[bucket_of(ns)];
        bucket.store(bucket.load(Relaxed).wrapping_add(count), Relaxed);
        let sum = &self.cells.sum_ns;
        sum.store(sum.load(Relaxed).wrapping_add(ns.wrapping_mul(count)), Relaxed);
    }

    /// Counts one duration.
    pub fn record(&self, duration: Duration) {
        self.record_ns(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.cells.buckets.iter().map(|bucket| bucket.load(Relaxed)).sum()
    }
}

/// The first bucket whose upper bound is not below `ns`.
#[inline]
fn bucket_of(ns: u64) -> usize {
    let log2_ceiling = u64::BITS - ns.saturating_sub(1).leading_zeros();
    (log2_ceiling.clamp(BOUND_LOG2_MIN, BOUND_LOG2_MAX + 1) - BOUND_LOG2_MIN) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        for (ns, bucket) in [
            (0, 0),
            (1, 0),
            (1 << 10, 0),
            ((1 << 10) + 1, 1),
            (1 << 11, 1),
            (1 << 34, BUCKETS - 2),
            ((1 << 34) + 1, BUCKETS - 1),
            (u64::MAX, BUCKETS - 1),
        ] {
            assert_eq!(bucket_of(ns), bucket, "{ns} ns");
        }
    }

    #[test]
    fn a_counter_moves_between_threads_and_is_read_from_another() {
        let counter = Counter::detached();
        let reader = counter.reader();
        counter.add(2);
        std::thread::spawn(move || counter.add(3)).join().unwrap();
        assert_eq!(reader.get(), 5);
    }
}
