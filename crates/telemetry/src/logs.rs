//! Structured logs on standard error, and a brake for lines that hostile input could repeat without end.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `time LEVEL target: message key=value`
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging on standard error, once per process; later calls change nothing. The level is `info`, or what
/// `SLUICE_LOG` says in the filter language of `tracing` (`debug`, `vhost_blk=trace,info`).
pub fn init(format: Format) {
    let filter = EnvFilter::try_from_env("SLUICE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let _ = match format {
        Format::Text => builder.finish().try_init(),
        Format::Json => builder.json().flatten_event(true).finish().try_init(),
    };
}

/// Keys that one brake tells apart; all further keys share one line per interval.
const KEYS_MAX: usize = 4096;

/// Lets one line (or a few) per key and interval through and counts the rest.
///
/// ```
/// # let limited = telemetry::RateLimited::per_minute();
/// if let Some(suppressed) = limited.pass("v0/ring 3") {
///     tracing::warn!(volume = "v0", queue = 3, suppressed, "the guest's ring is broken");
/// }
/// ```
pub struct RateLimited {
    interval: Duration,
    lines: u32,
    keys: Mutex<HashMap<String, Passed>>,
}

struct Passed {
    /// When the interval began.
    at: Instant,
    /// Lines written since then.
    lines: u32,
    suppressed: u64,
}

impl RateLimited {
    /// One line per key and minute.
    pub fn per_minute() -> RateLimited {
        RateLimited::new(Duration::from_secs(60))
    }

    /// One line per key and `interval`.
    pub fn new(interval: Duration) -> RateLimited {
        RateLimited { interval, lines: 1, keys: Mutex::default() }
    }

    /// So many lines per key and interval instead of one: for what is normal now and then, and hostile without end.
    #[must_use]
    pub fn with_lines(self, lines: u32) -> RateLimited {
        RateLimited { lines, ..self }
    }

    /// Whether a line about `key` may be written now; if so, how many were suppressed since the last one.
    pub fn pass(&self, key: &str) -> Option<u64> {
        self.pass_at(key, Instant::now())
    }

    fn pass_at(&self, key: &str, now: Instant) -> Option<u64> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |passed: &Passed| now.saturating_duration_since(passed.at) < self.interval;
        if keys.len() >= KEYS_MAX && !keys.contains_key(key) {
            keys.retain(|_, passed| fresh(passed));
        }
        let key = if keys.len() >= KEYS_MAX && !keys.contains_key(key) { "" } else { key };
        match keys.get_mut(key) {
            Some(passed) if fresh(passed) && passed.lines < self.lines => {
                passed.lines += 1;
                Some(0)
            }
            Some(passed) if fresh(passed) => {
                passed.suppressed += 1;
                None
            }
            Some(passed) => {
                (passed.at, passed.lines) = (now, 1);
                Some(std::mem::take(&mut passed.suppressed))
            }
            None => {
                keys.insert(key.to_string(), Passed { at: now, lines: 1, suppressed: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute_and_the_count_of_the_others() {
        let limited = RateLimited::per_minute();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(limited.pass_at("a", at(0)), Some(0));
        assert_eq!(limited.pass_at("a", at(1)), None);
        assert_eq!(limited.pass_at("b", at(1)), Some(0));
        assert_eq!(limited.pass_at("a", at(59)), None);
        assert_eq!(limited.pass_at("a", at(60)), Some(2));
        assert_eq!(limited.pass_at("a", at(61)), None);
    }

    #[test]
    fn a_few_lines_a_minute_where_that_is_allowed() {
        let limited = RateLimited::per_minute().with_lines(3);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let first: Vec<_> = (0..5).map(|second| limited.pass_at("a", at(second))).collect();
        assert_eq!(first, [Some(0), Some(0), Some(0), None, None]);
        assert_eq!(limited.pass_at("a", at(60)), Some(2));
        assert_eq!(limited.pass_at("a", at(61)), Some(0));
    }

    #[test]
    fn many_keys_neither_grow_it_nor_write_many_lines() {
        let limited = RateLimited::per_minute();
        let start = Instant::now();
        let passed = (0..3 * KEYS_MAX).filter(|n| limited.pass_at(&n.to_string(), start).is_some()).count();
        assert_eq!(passed, KEYS_MAX + 1);
        assert!(limited.keys.lock().unwrap().len() <= KEYS_MAX + 1);
        assert_eq!(limited.pass_at("later", start + Duration::from_secs(60)), Some(0));
    }
}
