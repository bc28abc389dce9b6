//! Metrics of the control side. Ports and workers count for themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use telemetry::{Gauge, Registry, SharedCounter};

use crate::openflow::Agent;
use crate::switch::Switch;

/// Shows a number that another part of the program counts.
struct Mirror {
    shown: SharedCounter,
    seen: AtomicU64,
}

impl Mirror {
    fn new(registry: &Registry, name: &str, help: &str, labels: &[(&str, &str)]) -> Mirror {
        Mirror { shown: registry.shared_counter(name, help, labels), seen: AtomicU64::new(0) }
    }

    fn set(&self, value: u64) {
        let before = self.seen.swap(value, Ordering::Relaxed);
        self.shown.add(value.saturating_sub(before));
    }

    fn follow(&self, source: &AtomicU64) {
        self.set(source.load(Ordering::Relaxed));
    }
}

/// What is brought up to date from time to time.
pub(crate) struct ControlMetrics {
    flows: Gauge,
    ports: Gauge,
    addresses: Gauge,
    addresses_refused: Mirror,
    addresses_moved: Mirror,
    lag: Vec<Gauge>,
    sessions: Gauge,
    messages: [Mirror; 2],
    errors: Mirror,
    packet_ins: Mirror,
    packet_ins_dropped: Mirror,
    flow_mods: Mirror,
    handshakes_failed: Mirror,
}

impl ControlMetrics {
    pub(crate) fn new(registry: &Registry, workers: usize) -> ControlMetrics {
        let gauge = |name: &str, help: &str| registry.gauge(name, help, &[]);
        let mirror = |name: &str, help: &str| Mirror::new(registry, name, help, &[]);
        let messages = ["received", "sent"].map(|direction| {
            Mirror::new(
                registry,
                "sluice_openflow_messages_total",
                "OpenFlow messages.",
                &[("direction", direction)],
            )
        });
        let lag = (0..workers).map(|worker| {
            registry.gauge(
                "sluice_switch_epoch_lag",
                "Publications of tables and ports that the worker has not taken over yet.",
                &[("worker", &format!("switch-{worker}"))],
            )
        });
        ControlMetrics {
            flows: gauge("sluice_switch_flows", "Flow entries in all tables."),
            ports: gauge("sluice_switch_ports", "Ports."),
            addresses: gauge("sluice_switch_fdb_entries", "Learned addresses."),
            addresses_refused: mirror(
                "sluice_switch_fdb_refused_total",
                "Addresses that found no room in the table.",
            ),
            addresses_moved: mirror(
                "sluice_switch_fdb_moves_total",
                "Addresses that were seen on another port than before.",
            ),
            lag: lag.collect(),
            sessions: gauge("sluice_openflow_sessions", "Controllers and tools that have shaken hands."),
            messages,
            errors: mirror("sluice_openflow_errors_total", "OpenFlow errors answered."),
            packet_ins: mirror("sluice_openflow_packet_ins_total", "Packets sent to controllers."),
            packet_ins_dropped: mirror(
                "sluice_openflow_packet_ins_dropped_total",
                "Packets for controllers that exceeded a session's rate or queue.",
            ),
            flow_mods: mirror("sluice_openflow_flow_mods_total", "Flow-mods carried out."),
            handshakes_failed: mirror("sluice_openflow_tls_failures_total", "TLS handshakes that failed."),
        }
    }

    pub(crate) fn update(&self, switch: &Arc<Switch>, agent: &Agent) {
        let bridge = switch.bridge();
        let flows: usize = bridge.tables().iter().map(|(count, _)| count).sum();
        self.flows.set(flows as i64);
        self.ports.set(bridge.ports().len() as i64);
        self.addresses.set(bridge.fdb().len() as i64);
        self.addresses_refused.set(bridge.fdb().refused());
        self.addresses_moved.set(bridge.fdb().moved());
        // The workers' epochs first: what is published in between is not a lag.
        let epochs = switch.data_path().epochs();
        let latest = epochs.iter().copied().max().unwrap_or(0).max(bridge.epoch());
        for (lag, epoch) in self.lag.iter().zip(epochs) {
            lag.set(latest.saturating_sub(epoch) as i64);
        }
        let stats = agent.stats();
        self.sessions.set(agent.sessions().len() as i64);
        self.messages[0].follow(&stats.messages_received);
        self.messages[1].follow(&stats.messages_sent);
        self.errors.follow(&stats.errors_sent);
        self.packet_ins.follow(&stats.packet_ins_sent);
        self.packet_ins_dropped.follow(&stats.packet_ins_dropped);
        self.flow_mods.follow(&stats.flow_mods);
        self.handshakes_failed.follow(&stats.handshakes_failed);
    }
}
