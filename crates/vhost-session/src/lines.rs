//! What the sessions of one socket say in the log: a frontend that connects again and again must not fill it.

use std::fmt::Arguments;

use telemetry::RateLimited;

/// Lines of each level that all sessions of one socket may write within a minute.
const LINES_PER_MINUTE: u32 = 20;

/// The log of one socket.
pub(crate) struct Lines {
    limited: RateLimited,
}

impl Lines {
    pub(crate) fn new() -> Lines {
        Lines { limited: RateLimited::per_minute().with_lines(LINES_PER_MINUTE) }
    }

    pub(crate) fn info(&self, text: Arguments<'_>) {
        match self.limited.pass("info") {
            Some(0) => tracing::info!("{text}"),
            Some(missing) => tracing::info!("{text} ({missing} lines like this were left out before)"),
            None => tracing::debug!("{text}"),
        }
    }

    pub(crate) fn warn(&self, text: Arguments<'_>) {
        match self.limited.pass("warn") {
            Some(0) => tracing::warn!("{text}"),
            Some(missing) => tracing::warn!("{text} ({missing} lines like this were left out before)"),
            None => tracing::debug!("{text}"),
        }
    }
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lines")
    }
}
