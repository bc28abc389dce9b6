//! What one worker counts for one port, and how others read the sum.

use telemetry::{Counter, CounterReader, Registry};

use crate::model::{DropReason, PortCounters};

const REASONS: usize = DropReason::ALL.len();

/// Whether this is a reason of the target and not of the sender.
pub(crate) const fn at_target(reason: DropReason) -> bool {
    matches!(reason, DropReason::TooLong | DropReason::RingFull | DropReason::BufferTooSmall)
}

/// The cells of one worker for one port. "rx" is from the port, "tx" to it, as in OpenFlow.
pub struct PortCells {
    pub(crate) rx_packets: Counter,
    pub(crate) rx_bytes: Counter,
    pub(crate) tx_packets: Counter,
    pub(crate) tx_bytes: Counter,
    rx_drops: [Counter; REASONS],
    tx_drops: [Counter; REASONS],
    pub(crate) rx_errors: Counter,
    pub(crate) tx_errors: Counter,
    pub(crate) kicks: Counter,
    pub(crate) interrupts: Counter,
    pub(crate) ring_faults: Counter,
}

/// Reads a [`PortCells`] from any thread.
pub struct PortReader {
    rx_packets: CounterReader,
    rx_bytes: CounterReader,
    tx_packets: CounterReader,
    tx_bytes: CounterReader,
    rx_drops: [CounterReader; REASONS],
    tx_drops: [CounterReader; REASONS],
    rx_errors: CounterReader,
    tx_errors: CounterReader,
}

impl PortCells {
    /// Zero counters for the port `name`, shown by `registry`; those of several workers are summed there.
    pub fn new(registry: &Registry, name: &str) -> PortCells {
        let by_direction = |metric: &str, help: &str, direction: &str| {
            registry.counter(metric, help, &[("port", name), ("direction", direction)])
        };
        let packets = |direction| {
            by_direction("sluice_port_packets_total", "Packets from (rx) and to (tx) a port.", direction)
        };
        let bytes = |direction| {
            by_direction("sluice_port_bytes_total", "Bytes of those packets, without FCS.", direction)
        };
        let errors = |direction| {
            by_direction("sluice_port_errors_total", "Failures of the host's device of a port.", direction)
        };
        let drops = |direction: &'static str| {
            DropReason::ALL.map(|reason| {
                // TooLong is both: a frame longer than any may be, or than its target's MTU.
                let shown = match direction {
                    "tx" => at_target(reason),
                    _ => !at_target(reason) || reason == DropReason::TooLong,
                };
                let labels = [("port", name), ("direction", direction), ("reason", reason.name())];
                let help = "Packets from (rx) and to (tx) a port that went nowhere, by reason.";
                if shown {
                    registry.counter("sluice_port_drops_total", help, &labels)
                } else {
                    Counter::detached()
                }
            })
        };
        let plain = |metric: &str, help: &str| registry.counter(metric, help, &[("port", name)]);
        PortCells {
            rx_packets: packets("rx"),
            rx_bytes: bytes("rx"),
            tx_packets: packets("tx"),
            tx_bytes: bytes("tx"),
            rx_drops: drops("rx"),
            tx_drops: drops("tx"),
            rx_errors: errors("rx"),
            tx_errors: errors("tx"),
            kicks: plain("sluice_port_kicks_total", "Wake-ups of the worker by a port's driver."),
            interrupts: plain("sluice_port_interrupts_total", "Signals sent to a port's driver."),
            ring_faults: plain(
                "sluice_port_ring_faults_total",
                "Rings stopped because the driver broke a rule.",
            ),
        }
    }

    /// Packets to the port, or of its own to others, that were not delivered for this reason.
    pub(crate) fn tx_drops(&self, reason: DropReason) -> u64 {
        self.tx_drops[reason as usize].get()
    }

    /// A view for other threads.
    pub fn reader(&self) -> PortReader {
        PortReader {
            rx_packets: self.rx_packets.reader(),
            rx_bytes: self.rx_bytes.reader(),
            tx_packets: self.tx_packets.reader(),
            tx_bytes: self.tx_bytes.reader(),
            rx_drops: self.rx_drops.each_ref().map(Counter::reader),
            tx_drops: self.tx_drops.each_ref().map(Counter::reader),
            rx_errors: self.rx_errors.reader(),
            tx_errors: self.tx_errors.reader(),
        }
    }

    /// Counts a packet from the port that went nowhere.
    #[inline]
    pub(crate) fn rx_drop(&self, reason: DropReason) {
        self.rx_drops[reason as usize].add(1);
    }

    /// Counts a packet to the port that was not delivered.
    #[inline]
    pub(crate) fn tx_drop(&self, reason: DropReason) {
        self.tx_drops[reason as usize].add(1);
    }
}

impl PortReader {
    /// Adds this worker's counters to `sum`.
    pub fn add_to(&self, sum: &mut PortCounters) {
        let total = |cells: &[CounterReader]| cells.iter().map(CounterReader::get).sum::<u64>();
        let malformed = [DropReason::TooShort, DropReason::BadHeader]
            .map(|reason| self.rx_drops[reason as usize].get())
            .iter()
            .sum::<u64>();
        sum.rx_packets += self.rx_packets.get();
        sum.tx_packets += self.tx_packets.get();
        sum.rx_bytes += self.rx_bytes.get();
        sum.tx_bytes += self.tx_bytes.get();
        sum.rx_dropped += total(&self.rx_drops) - malformed;
        sum.tx_dropped += total(&self.tx_drops);
        sum.rx_errors += self.rx_errors.get() + malformed;
        sum.tx_errors += self.tx_errors.get();
    }
}
