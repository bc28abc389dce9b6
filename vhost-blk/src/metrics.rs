//! What is counted per volume and queue.

use telemetry::{Counter, Histogram, Registry};

use crate::request::Request;

/// Kinds of requests that are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Flushes.
    Flush,
    /// Discards.
    Discard,
    /// Write-zeroes.
    WriteZeroes,
    /// Everything else: serials, and requests that the guest got wrong.
    Other,
}

impl Op {
    const ALL: [(Op, &str); 6] = [
        (Op::Read, "read"),
        (Op::Write, "write"),
        (Op::Flush, "flush"),
        (Op::Discard, "discard"),
        (Op::WriteZeroes, "write_zeroes"),
        (Op::Other, "other"),
    ];
}

impl From<&Request> for Op {
    fn from(request: &Request) -> Op {
        match request {
            Request::Read { .. } => Op::Read,
            Request::Write { .. } => Op::Write,
            Request::Flush => Op::Flush,
            Request::Discard { .. } => Op::Discard,
            Request::WriteZeroes { .. } => Op::WriteZeroes,
            Request::GetId => Op::Other,
        }
    }
}

/// Why a request was answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The guest asked for something that does not exist or is not allowed.
    Guest,
    /// The host has no space left.
    NoSpace,
    /// The volume is poisoned by an earlier failed flush.
    Poisoned,
    /// The host's file or device failed.
    Host,
}

impl ErrorKind {
    const ALL: [(ErrorKind, &str); 4] = [
        (ErrorKind::Guest, "guest"),
        (ErrorKind::NoSpace, "no_space"),
        (ErrorKind::Poisoned, "poisoned"),
        (ErrorKind::Host, "host"),
    ];

    /// The kind of a failed operation of the host.
    pub fn of_errno(errno: i32) -> ErrorKind {
        match errno {
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => ErrorKind::NoSpace,
            _ => ErrorKind::Host,
        }
    }
}

/// The cells of one queue, which its worker writes.
pub struct QueueMetrics {
    requests: [Counter; Op::ALL.len()],
    bytes: [Counter; 2],
    errors: [Counter; ErrorKind::ALL.len()],
    /// Time from being taken off the ring to being given to the device.
    pub queue_time: Histogram,
    /// Time that the device took.
    pub device_time: Histogram,
    /// Violations of the ring's rules, each of which stops the queue.
    pub ring_faults: Counter,
    /// Transfers through a buffer of ours because of alignment.
    pub bounce_copies: Counter,
    /// Transfers that the host cut short and that were continued.
    pub short_transfers: Counter,
    /// Signals from the guest.
    pub kicks: Counter,
    /// Signals to the guest.
    pub interrupts: Counter,
    /// Times that taking requests had to wait for room in the worker.
    pub stalls: Counter,
}

impl QueueMetrics {
    /// Registers the cells of queue `index` of `volume`.
    pub fn new(registry: &Registry, volume: &str, index: u16) -> QueueMetrics {
        let index = index.to_string();
        let queue = [("volume", volume), ("queue", index.as_str())];
        let with = |key, value| [("volume", volume), ("queue", index.as_str()), (key, value)];
        let counter = |name: &str, help: &str| registry.counter(name, help, &queue);
        QueueMetrics {
            requests: Op::ALL.map(|(_, op)| {
                registry.counter("sluice_blk_requests_total", "Requests answered.", &with("op", op))
            }),
            bytes: ["read", "write"].map(|op| {
                registry.counter("sluice_blk_bytes_total", "Bytes transferred for requests.", &with("op", op))
            }),
            errors: ErrorKind::ALL.map(|(_, kind)| {
                let help = "Requests answered with an error.";
                registry.counter("sluice_blk_errors_total", help, &with("reason", kind))
            }),
            queue_time: registry.histogram(
                "sluice_blk_queue_seconds",
                "Time of requests from being taken off the ring to being given to the device.",
                &queue,
            ),
            device_time: registry.histogram(
                "sluice_blk_device_seconds",
                "Time of requests from being given to the device to being answered.",
                &queue,
            ),
            ring_faults: counter(
                "sluice_blk_ring_faults_total",
                "Broken rules of the ring; each stops the queue.",
            ),
            bounce_copies: counter(
                "sluice_blk_bounce_copies_total",
                "Transfers copied because of their alignment.",
            ),
            short_transfers: counter(
                "sluice_blk_short_transfers_total",
                "Transfers cut short by the host, continued.",
            ),
            kicks: counter("sluice_blk_kicks_total", "Signals from the guest."),
            interrupts: counter("sluice_blk_interrupts_total", "Signals to the guest."),
            stalls: counter(
                "sluice_blk_stalls_total",
                "Times that requests had to wait for room in the worker.",
            ),
        }
    }

    /// Counts an answered request and the bytes it moved.
    #[inline]
    pub fn answered(&self, op: Op, bytes: u64) {
        self.requests[op as usize].add(1);
        match op {
            Op::Read => self.bytes[0].add(bytes),
            Op::Write => self.bytes[1].add(bytes),
            _ => {}
        }
    }

    /// Counts a request answered with an error.
    pub fn failed(&self, kind: ErrorKind) {
        self.errors[kind as usize].add(1);
    }
}
