//! What the code under test says in the log.

use std::io;
use std::sync::{Mutex, Once, PoisonError};

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
    let worse = |line: &&String| line.contains(" WARN ") || line.contains("ERROR ");
    lines.iter().filter(worse).filter(|line| line.contains(text)).cloned().collect()
}
