//! The Prometheus registry: what is shown, under which name and labels.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use prometheus::proto;
use prometheus::{Encoder as _, TextEncoder};

use crate::metrics::{
    BOUND_LOG2_MAX, BOUND_LOG2_MIN, BUCKETS, CountCell, Counter, Gauge, Histogram, HistogramCells,
    SharedCounter,
};

const NS_PER_SECOND: f64 = 1e9;

/// All metrics of one daemon. Cheap to clone; clones are the same registry.
///
/// A metric is shown while its handle lives. Several handles with equal name and labels are summed at scrape, so each
/// worker counts in a cell of its own.
#[derive(Clone, Default)]
pub struct Registry {
    families: Arc<Mutex<BTreeMap<String, Family>>>,
}

struct Family {
    help: String,
    kind: Kind,
    cells: Vec<(Labels, Cell)>,
}

type Labels = Vec<(String, String)>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Counter,
    Seconds,
    Gauge,
    Histogram,
}

enum Cell {
    Count(Weak<CountCell>),
    Gauge(Weak<AtomicI64>),
    Histogram(Weak<HistogramCells>),
}

impl Cell {
    fn gone(&self) -> bool {
        match self {
            Cell::Count(cell) => cell.strong_count() == 0,
            Cell::Gauge(cell) => cell.strong_count() == 0,
            Cell::Histogram(cell) => cell.strong_count() == 0,
        }
    }
}

/// The summed value of all cells with equal labels.
enum Sum {
    Count(u64),
    Gauge(i64),
    Histogram { buckets: Box<[u64; BUCKETS]>, sum_ns: u64 },
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Registry {
        Registry::default()
    }

    /// A counter with one writer. `name` is `sluice_<thing>_<unit>_total`.
    ///
    /// # Panics
    /// As all methods that register: on a name or label that Prometheus does not allow, and on a name that is already
    /// used by another kind of metric. Both are bugs of the caller.
    pub fn counter(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Counter {
        let cell = Arc::default();
        self.register(name, help, labels, Kind::Counter, Cell::Count(Arc::downgrade(&cell)));
        Counter::new(cell)
    }

    /// A counter with one writer of a time: counted in nanoseconds, shown in seconds. `name` is
    /// `sluice_<thing>_seconds_total`.
    pub fn seconds(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Counter {
        let cell = Arc::default();
        self.register(name, help, labels, Kind::Seconds, Cell::Count(Arc::downgrade(&cell)));
        Counter::new(cell)
    }

    /// A counter that several threads add to.
    pub fn shared_counter(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> SharedCounter {
        let cell = Arc::default();
        self.register(name, help, labels, Kind::Counter, Cell::Count(Arc::downgrade(&cell)));
        SharedCounter { cell }
    }

    /// A gauge. `name` is `sluice_<thing>_<unit>`.
    pub fn gauge(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Gauge {
        let cell = Arc::default();
        self.register(name, help, labels, Kind::Gauge, Cell::Gauge(Arc::downgrade(&cell)));
        Gauge { cell }
    }

    /// A histogram of durations. `name` is `sluice_<thing>_seconds`.
    pub fn histogram(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Histogram {
        let cells = Arc::default();
        self.register(name, help, labels, Kind::Histogram, Cell::Histogram(Arc::downgrade(&cells)));
        Histogram::new(cells)
    }

    fn families(&self) -> MutexGuard<'_, BTreeMap<String, Family>> {
        // A panic between two whole-entry updates leaves the map usable.
        self.families.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, name: &str, help: &str, labels: &[(&str, &str)], kind: Kind, cell: Cell) {
        assert!(is_identifier(name, true), "metric name `{name}`");
        for (label, _) in labels {
            assert!(is_identifier(label, false) && *label != "le", "label `{label}` of metric `{name}`");
        }
        let mut labels: Labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        labels.sort();
        assert!(labels.windows(2).all(|pair| pair[0].0 != pair[1].0), "metric `{name}` has a label twice");
        let mut families = self.families();
        let family = families.entry(name.to_string()).or_insert_with(|| Family {
            help: help.to_string(),
            kind,
            cells: Vec::new(),
        });
        assert_eq!(family.kind, kind, "metric `{name}` is already registered with another kind");
        // Volumes, ports and sessions come and go: the dead are swept when the list would otherwise have to grow.
        if family.cells.len() == family.cells.capacity() {
            family.cells.retain(|(_, cell)| !cell.gone());
        }
        family.cells.push((labels, cell));
    }

    /// Everything in the Prometheus text format 0.0.4.
    pub fn encode(&self) -> String {
        let mut families = self.families();
        let mut shown = Vec::new();
        families.retain(|name, family| {
            family.cells.retain(|(_, cell)| !cell.gone());
            let sums = family.sums();
            if !sums.is_empty() {
                shown.push(proto_family(name, family, sums));
            }
            !family.cells.is_empty()
        });
        drop(families);
        let mut text = Vec::new();
        TextEncoder::new().encode(&shown, &mut text).expect("writing to memory, names were checked");
        String::from_utf8(text).expect("made of strings")
    }
}

impl Family {
    fn sums(&self) -> BTreeMap<&Labels, Sum> {
        let mut sums = BTreeMap::new();
        for (labels, cell) in &self.cells {
            match cell {
                Cell::Count(cell) => {
                    let Some(cell) = cell.upgrade() else { continue };
                    if let Sum::Count(sum) = sums.entry(labels).or_insert(Sum::Count(0)) {
                        *sum = sum.wrapping_add(cell.0.load(Relaxed));
                    }
                }
                Cell::Gauge(cell) => {
                    let Some(cell) = cell.upgrade() else { continue };
                    if let Sum::Gauge(sum) = sums.entry(labels).or_insert(Sum::Gauge(0)) {
                        *sum = sum.wrapping_add(cell.load(Relaxed));
                    }
                }
                Cell::Histogram(cells) => {
                    let Some(cells) = cells.upgrade() else { continue };
                    let empty = Sum::Histogram { buckets: Box::new([0; BUCKETS]), sum_ns: 0 };
                    if let Sum::Histogram { buckets, sum_ns } = sums.entry(labels).or_insert(empty) {
                        for (sum, bucket) in buckets.iter_mut().zip(&cells.buckets) {
                            *sum = sum.wrapping_add(bucket.load(Relaxed));
                        }
                        *sum_ns = sum_ns.wrapping_add(cells.sum_ns.load(Relaxed));
                    }
                }
            }
        }
        sums
    }
}

fn proto_family(name: &str, family: &Family, sums: BTreeMap<&Labels, Sum>) -> proto::MetricFamily {
    let metrics: Vec<_> = sums
        .into_iter()
        .map(|(labels, sum)| {
            let mut metric = proto::Metric::from_label(labels.iter().map(proto_label).collect());
            match sum {
                Sum::Count(count) => {
                    let mut counter = proto::Counter::default();
                    let divisor = if family.kind == Kind::Seconds { NS_PER_SECOND } else { 1.0 };
                    counter.set_value(count as f64 / divisor);
                    metric.set_counter(counter);
                }
                Sum::Gauge(value) => {
                    let mut gauge = proto::Gauge::default();
                    gauge.set_value(value as f64);
                    metric.set_gauge(gauge);
                }
                Sum::Histogram { buckets, sum_ns } => metric.set_histogram(proto_histogram(&buckets, sum_ns)),
            }
            metric
        })
        .collect();
    let mut shown = proto::MetricFamily::default();
    shown.set_name(name.to_string());
    shown.set_help(family.help.clone());
    shown.set_field_type(match family.kind {
        Kind::Counter | Kind::Seconds => proto::MetricType::COUNTER,
        Kind::Gauge => proto::MetricType::GAUGE,
        Kind::Histogram => proto::MetricType::HISTOGRAM,
    });
    shown.set_metric(metrics);
    shown
}

fn proto_label((name, value): &(String, String)) -> proto::LabelPair {
    let mut pair = proto::LabelPair::default();
    pair.set_name(name.clone());
    pair.set_value(value.clone());
    pair
}

fn proto_histogram(buckets: &[u64; BUCKETS], sum_ns: u64) -> proto::Histogram {
    let mut cumulative = 0u64;
    let shown = (BOUND_LOG2_MIN..=BOUND_LOG2_MAX).zip(buckets).map(|(log2, count)| {
        cumulative = cumulative.wrapping_add(*count);
        let mut bucket = proto::Bucket::default();
        bucket.set_upper_bound((1u64 << log2) as f64 / NS_PER_SECOND);
        bucket.set_cumulative_count(cumulative);
        bucket
    });
    let mut histogram = proto::Histogram::default();
    histogram.set_bucket(shown.collect());
    histogram.set_sample_count(cumulative.wrapping_add(buckets[BUCKETS - 1]));
    histogram.set_sample_sum(sum_ns as f64 / NS_PER_SECOND);
    histogram
}

/// `[a-zA-Z_][a-zA-Z0-9_]*`, for metric names with colons too.
fn is_identifier(text: &str, colons: bool) -> bool {
    !text.starts_with(|c: char| c.is_ascii_digit())
        && !text.is_empty()
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses the text format strictly: (name, labels) to value. Panics on a line that is not valid.
    fn parse(text: &str) -> BTreeMap<(String, String), f64> {
        let mut samples = BTreeMap::new();
        let mut typed = std::collections::BTreeSet::new();
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                let (keyword, name, rest) =
                    (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
                match keyword {
                    "HELP" => assert!(!rest.is_empty()),
                    "TYPE" => {
                        assert!(["counter", "gauge", "histogram"].contains(&rest), "{line}");
                        assert!(typed.insert(name.to_string()), "{name} twice");
                    }
                    _ => panic!("{line}"),
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
            let (name, labels) = series.split_once('{').map_or((series, ""), |(name, rest)| {
                (name, rest.strip_suffix('}').expect("labels are closed"))
            });
            assert!(is_identifier(name, true), "{line}");
            let family =
                ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(name);
            assert!(typed.contains(family) || typed.contains(name), "{name} has no type");
            let value = value.parse::<f64>().expect("a number");
            assert!(samples.insert((name.to_string(), labels.to_string()), value).is_none(), "{line} twice");
        }
        samples
    }

    fn key(name: &str, labels: &str) -> (String, String) {
        (name.to_string(), labels.to_string())
    }

    #[test]
    fn the_text_is_valid_and_holds_every_kind() {
        let registry = Registry::new();
        let requests =
            registry.counter("sluice_requests_total", "Requests.", &[("volume", "v\"0\\\n"), ("op", "read")]);
        let busy = registry.seconds("sluice_busy_seconds_total", "Busy.", &[]);
        let sessions = registry.gauge("sluice_sessions", "Sessions.", &[]);
        let latency = registry.histogram("sluice_latency_seconds", "Latency.", &[("volume", "v0")]);
        requests.add(7);
        busy.add(1_500_000_000);
        sessions.set(-3);
        latency.record_ns(1024);
        latency.record_ns(1025);
        latency.record_ns(u64::MAX / 4);
        let samples = parse(&registry.encode());
        assert_eq!(samples[&key("sluice_requests_total", r#"op="read",volume="v\"0\\\n""#)], 7.0);
        assert_eq!(samples[&key("sluice_busy_seconds_total", "")], 1.5);
        assert_eq!(samples[&key("sluice_sessions", "")], -3.0);
        let bucket =
            |le: &str| samples[&key("sluice_latency_seconds_bucket", &format!(r#"volume="v0",le="{le}""#))];
        assert_eq!(bucket("0.000001024"), 1.0);
        assert_eq!(bucket("0.000002048"), 2.0);
        assert_eq!(bucket("17.179869184"), 2.0);
        assert_eq!(bucket("+Inf"), 3.0);
        assert_eq!(samples[&key("sluice_latency_seconds_count", r#"volume="v0""#)], 3.0);
    }

    #[test]
    fn cells_with_equal_labels_are_summed_and_vanish_with_their_handles() {
        let registry = Registry::new();
        let labels = [("volume", "v0"), ("queue", "1")];
        let one = registry.counter("sluice_kicks_total", "Kicks.", &labels);
        let other = registry.counter("sluice_kicks_total", "Kicks.", &[labels[1], labels[0]]);
        one.add(1);
        other.add(2);
        let series = key("sluice_kicks_total", r#"queue="1",volume="v0""#);
        assert_eq!(parse(&registry.encode())[&series], 3.0);
        drop(one);
        assert_eq!(parse(&registry.encode())[&series], 2.0);
        drop(other);
        assert_eq!(registry.encode(), "");
    }

    #[test]
    fn dead_cells_do_not_pile_up_between_scrapes() {
        let registry = Registry::new();
        for n in 0..10_000 {
            registry.gauge("sluice_port_up", "Up.", &[("port", &n.to_string())]);
        }
        assert!(registry.families()["sluice_port_up"].cells.len() < 64);
    }

    #[test]
    #[should_panic(expected = "another kind")]
    fn one_name_has_one_kind() {
        let registry = Registry::new();
        let _counter = registry.counter("sluice_x_total", "X.", &[]);
        registry.gauge("sluice_x_total", "X.", &[]);
    }
}
