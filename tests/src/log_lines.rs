//! What the code under test says in the log.

use std::io;
use std::sync::{Mutex, Once, PoisonError};
use std::time::Instant;

use tracing_subscriber::fmt::MakeWriter;

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
static START: Once = Once::new();

struct Collector;

impl io::Write for Collector {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
        lines.extend(String::from_utf8_lossy(bytes).lines().map(str::to_owned));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Collector {
    type Writer = Collector;

    fn make_writer(&self) -> Collector {
        Collector
    }
}

/// Starts collecting, once per process. Level `info` and above.
pub fn collect() {
    START.call_once(|| {
        let subscriber = tracing_subscriber::fmt().with_writer(Collector).with_ansi(false).finish();
        tracing::subscriber::set_global_default(subscriber).expect("the first subscriber of this process");
    });
}

/// Lines of level `warn` and above that contain `text`.
pub fn warnings(text: &str) -> Vec<String> {
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    lines.iter().filter(|line| is_warning(line)).filter(|line| line.contains(text)).cloned().collect()
}

fn is_warning(line: &str) -> bool {
    line.contains(" WARN ") || line.contains("ERROR ")
}

/// Warnings that one socket may cause in a minute.
const WARNINGS_PER_MINUTE: u64 = 20;

/// What one socket's frontends did since `begin` shows in the log of a daemon, and has not filled it.
///
/// # Panics
/// It does not, or has.
pub fn assert_bounded(log: &str, begin: Instant) {
    let warnings = log.lines().filter(|line| is_warning(line)).count() as u64;
    let allowed = WARNINGS_PER_MINUTE * (begin.elapsed().as_secs() / 60 + 1);
    assert!((1..=allowed).contains(&warnings), "{warnings} warnings, {allowed} allowed:\n{log}");
}
