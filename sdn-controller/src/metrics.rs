//! What the controller counts.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ofp::MessageType;
use telemetry::{Gauge, Histogram, Registry, SharedCounter};

/// A message's way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From a switch.
    Received,
    /// To a switch.
    Sent,
}

/// The metrics of the daemon.
pub struct Metrics {
    /// Switches in session.
    pub sessions: Gauge,
    /// Connections, the ones that never got into session too.
    pub connections: SharedCounter,
    /// Flow entries added or replaced.
    pub flow_adds: SharedCounter,
    /// Flow entries deleted.
    pub flow_deletes: SharedCounter,
    /// OpenFlow errors from switches.
    pub errors: SharedCounter,
    /// Bytes from switches that are no OpenFlow.
    pub bad_messages: SharedCounter,
    /// Addresses learned.
    pub learned: SharedCounter,
    /// Addresses that appeared at another port.
    pub moved: SharedCounter,
    /// Addresses that moved all the time.
    pub flapping: SharedCounter,
    /// Ports shut because of a loop.
    pub shuts: SharedCounter,
    /// Ports that are shut.
    pub ports_shut: Gauge,
    /// Links between switches.
    pub links: Gauge,
    /// Packet-ins over the limits.
    pub refused_packets: SharedCounter,
    messages: [Vec<SharedCounter>; 2],
    // A histogram has one writer at a time.
    reconcile: Mutex<Histogram>,
    requests: Mutex<HashMap<(String, String, u16), SharedCounter>>,
    registry: Registry,
}

impl Metrics {
    /// Metrics shown in `registry`.
    pub fn new(registry: &Registry) -> Metrics {
        let counter = |name, help| registry.shared_counter(name, help, &[]);
        let messages = |direction: &'static str| {
            let one = |kind: &MessageType| {
                let kind = snake_case(&format!("{kind:?}"));
                let labels = [("direction", direction), ("type", kind.as_str())];
                registry.shared_counter("sluice_openflow_messages_total", "OpenFlow messages.", &labels)
            };
            MessageType::ALL.iter().map(one).collect()
        };
        let flow_mods = |op| {
            let help = "Flow entries added or replaced, and deleted, by flow-mods to switches.";
            registry.shared_counter("sluice_openflow_flow_mods_total", help, &[("op", op)])
        };
        Metrics {
            sessions: registry.gauge("sluice_openflow_sessions", "Switches in session.", &[]),
            connections: counter("sluice_openflow_connections_total", "Connections accepted."),
            flow_adds: flow_mods("add"),
            flow_deletes: flow_mods("delete"),
            errors: counter("sluice_openflow_errors_total", "OpenFlow errors received from switches."),
            bad_messages: counter(
                "sluice_openflow_bad_messages_total",
                "Messages that could not be decoded.",
            ),
            learned: counter(
                "sluice_controller_addresses_learned_total",
                "Ethernet addresses learned or moved.",
            ),
            moved: counter(
                "sluice_controller_addresses_moved_total",
                "Addresses that appeared at another port.",
            ),
            flapping: counter(
                "sluice_controller_addresses_flapping_total",
                "Addresses found to move between ports all the time.",
            ),
            shuts: counter(
                "sluice_controller_port_shuts_total",
                "Ports shut for a while because of a loop or of a flapping address.",
            ),
            ports_shut: registry.gauge("sluice_controller_ports_shut", "Ports that are shut.", &[]),
            links: registry.gauge("sluice_controller_links", "Links between switches that probes pass.", &[]),
            refused_packets: counter(
                "sluice_controller_packet_ins_refused_total",
                "Packet-ins over the limits.",
            ),
            messages: [messages("received"), messages("sent")],
            reconcile: Mutex::new(registry.histogram(
                "sluice_controller_reconcile_seconds",
                "From the first flow-mod of a change to the barrier behind it.",
                &[],
            )),
            requests: Mutex::default(),
            registry: registry.clone(),
        }
    }

    /// Counts a message by the type number in its header.
    pub fn message(&self, direction: Direction, kind: u8) {
        if let Some(counter) = self.messages[direction as usize].get(usize::from(kind)) {
            counter.add(1);
        }
    }

    /// Counts a change that a switch confirmed.
    pub fn reconciled(&self, duration: Duration) {
        self.reconcile.lock().unwrap_or_else(PoisonError::into_inner).record(duration);
    }

    /// Counts a REST request. `route` is the route's pattern, so there are few of them.
    pub fn request(&self, method: &str, route: &str, status: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let counter = requests.entry((method.to_owned(), route.to_owned(), status)).or_insert_with(|| {
            let status = status.to_string();
            let labels = [("method", method), ("route", route), ("status", status.as_str())];
            self.registry.shared_counter("sluice_rest_requests_total", "REST requests answered.", &labels)
        });
        counter.add(1);
    }
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_requests_are_counted_by_their_labels() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry);
        metrics.message(Direction::Received, MessageType::PacketIn.number());
        metrics.message(Direction::Sent, 200);
        metrics.request("GET", "/v1/switches", 200);
        metrics.request("GET", "/v1/switches", 200);
        metrics.reconciled(Duration::from_millis(1));
        let text = registry.encode();
        for line in [
            "sluice_openflow_messages_total{direction=\"received\",type=\"packet_in\"} 1",
            "sluice_rest_requests_total{method=\"GET\",route=\"/v1/switches\",status=\"200\"} 2",
            "sluice_controller_reconcile_seconds_count 1",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}
