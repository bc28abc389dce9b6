//! What a device's connections count.

use telemetry::{Gauge, Registry, SharedCounter};

/// Counters of one endpoint, shared by its sessions.
#[derive(Clone)]
pub struct SessionMetrics {
    sessions: Gauge,
    sessions_total: SharedCounter,
    failures: SharedCounter,
    messages: SharedCounter,
    refusals: SharedCounter,
    queues: Gauge,
    queue_starts: SharedCounter,
}

impl std::fmt::Debug for SessionMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionMetrics")
            .field("sessions", &self.sessions.get())
            .field("messages", &self.messages.get())
            .finish_non_exhaustive()
    }
}

impl SessionMetrics {
    /// Counters shown by `registry` under `labels`, e.g. `[("volume", "v0")]`.
    pub fn new(registry: &Registry, labels: &[(&str, &str)]) -> Self {
        Self {
            sessions: registry.gauge("sluice_vhost_sessions", "Connected vhost-user frontends", labels),
            sessions_total: registry.shared_counter(
                "sluice_vhost_sessions_total",
                "vhost-user connections made",
                labels,
            ),
            failures: registry.shared_counter(
                "sluice_vhost_session_failures_total",
                "vhost-user connections closed because of a bad message, a broken ring or lost memory",
                labels,
            ),
            messages: registry.shared_counter(
                "sluice_vhost_messages_total",
                "vhost-user messages received",
                labels,
            ),
            refusals: registry.shared_counter(
                "sluice_vhost_message_refusals_total",
                "vhost-user messages answered with a negative acknowledgement",
                labels,
            ),
            queues: registry.gauge("sluice_vhost_queues_running", "Rings that run", labels),
            queue_starts: registry.shared_counter(
                "sluice_vhost_queue_starts_total",
                "Rings started, also after a change of memory or features",
                labels,
            ),
        }
    }

    /// Counters that no registry shows, for tests and tools.
    pub fn detached() -> Self {
        Self {
            sessions: Gauge::detached(),
            sessions_total: SharedCounter::detached(),
            failures: SharedCounter::detached(),
            messages: SharedCounter::detached(),
            refusals: SharedCounter::detached(),
            queues: Gauge::detached(),
            queue_starts: SharedCounter::detached(),
        }
    }

    pub(crate) fn session_started(&self) {
        self.sessions.add(1);
        self.sessions_total.add(1);
    }

    pub(crate) fn session_ended(&self, failed: bool) {
        self.sessions.add(-1);
        self.failures.add(failed.into());
    }

    pub(crate) fn message(&self) {
        self.messages.add(1);
    }

    pub(crate) fn refusal(&self) {
        self.refusals.add(1);
    }

    pub(crate) fn queue_started(&self) {
        self.queues.add(1);
        self.queue_starts.add(1);
    }

    pub(crate) fn queue_stopped(&self) {
        self.queues.add(-1);
    }
}
