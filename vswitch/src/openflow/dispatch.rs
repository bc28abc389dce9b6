//! Asynchronous messages: from workers and bridge to every session that wants them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ofp::{Body, FlowRemovedReason, Masked, Match, Message, OxmField, PortStatusReason};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::{Instant, MissedTickBehavior};

use super::{Entry, Role, Shared, convert, count, replies};
use crate::bridge::{Event, PortChange};
use crate::flow_tables::{Removed, RemovedReason};
use crate::model::{PacketIn, PacketInReason, PacketInReceiver, PortNo, is_physical};

/// How often timeouts are looked at.
const TICK: Duration = Duration::from_millis(100);

/// A token bucket that holds one second's worth.
pub struct Rate {
    per_second: f64,
    tokens: f64,
    filled: Instant,
}

impl Rate {
    /// A full bucket.
    pub fn new(per_second: u32) -> Rate {
        let per_second = f64::from(per_second);
        Rate { per_second, tokens: per_second, filled: Instant::now() }
    }

    /// Takes one token if there is one.
    pub fn allow(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_second).min(self.per_second);
        self.filled = now;
        let allowed = self.tokens >= 1.0;
        if allowed {
            self.tokens -= 1.0;
        }
        allowed
    }
}

/// Sends packet-ins and events to the sessions until the workers or the bridge are gone.
pub async fn run(
    shared: Arc<Shared>,
    mut packet_ins: PacketInReceiver,
    mut events: broadcast::Receiver<Event>,
) {
    loop {
        tokio::select! {
            packet_in = packet_ins.queue.recv() => match packet_in {
                Some(packet_in) => send_packet_in(&shared, packet_in),
                None => return,
            },
            event = events.recv() => match event {
                Ok(Event::Port(change, config)) => send_port_status(&shared, change, &config),
                Ok(Event::FlowRemoved(removed)) => send_flow_removed(&shared, &removed),
                Err(RecvError::Lagged(missed)) => {
                    shared.stats.notices_dropped.fetch_add(missed, Ordering::Relaxed);
                    tracing::warn!(missed, "more flows or ports changed at once than can be reported");
                }
                Err(RecvError::Closed) => return,
            },
        }
    }
}

/// Keeps the timeouts of flows and addresses.
pub async fn tick(shared: Arc<Shared>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        shared.bridge.tick().await;
    }
}

/// The message, for all sessions. Asynchronous messages carry no number of a request.
fn encode(body: Body) -> Option<Arc<[u8]>> {
    match (Message { xid: 0, body }).encode() {
        Ok(bytes) => Some(bytes.into()),
        Err(error) => {
            tracing::warn!(%error, "a message for the controllers cannot be written");
            None
        }
    }
}

/// Of a pair of masks, the one for the session's role (7.3.10).
fn wants(entry: &Entry, masks: [u32; 2], reason: u8) -> bool {
    let mask = masks[usize::from(entry.role == Role::Slave)];
    mask.checked_shr(reason.into()).is_some_and(|mask| mask & 1 != 0)
}

fn send_packet_in(shared: &Shared, mut packet_in: PacketIn) {
    let (reason, by_action) = match packet_in.reason {
        PacketInReason::TableMiss => (ofp::PacketInReason::NoMatch, true),
        PacketInReason::Action => (ofp::PacketInReason::Action, true),
        PacketInReason::InvalidTtl => (ofp::PacketInReason::InvalidTtl, false),
    };
    let in_port = packet_in.in_port;
    let frame = std::mem::take(&mut packet_in.frame);
    let origin = packet_in.origin;
    let mut matching = Match::any().with(OxmField::InPort(in_port));
    // What is zero is left out (7.4.1).
    if origin.metadata != 0 {
        matching = matching.with(OxmField::Metadata(Masked::exact(origin.metadata)));
    }
    if origin.tunnel_id != 0 {
        matching = matching.with(OxmField::TunnelId(Masked::exact(origin.tunnel_id)));
    }
    let message = |bytes: usize| {
        encode(Body::PacketIn(ofp::PacketIn {
            buffer_id: ofp::NO_BUFFER,
            total_len: packet_in.total_len,
            reason,
            table_id: origin.table,
            cookie: origin.cookie,
            matching: matching.clone(),
            data: frame[..frame.len().min(bytes)].to_vec(),
        }))
    };
    // Made when the first session wants it, for all that want as many bytes.
    let mut made: Option<(usize, Arc<[u8]>)> = None;
    let now = Instant::now();
    for entry in shared.sessions().iter_mut() {
        if !wants(entry, entry.filter.packet_in_mask, reason.number()) {
            continue;
        }
        if !entry.rate.allow(now) {
            count(&shared.stats.packet_ins_dropped);
            continue;
        }
        let bytes = match entry.miss_send_len {
            // Actions say themselves how many bytes they send (7.2.5).
            _ if by_action => frame.len(),
            ofp::CONTROLLER_LEN_NO_BUFFER => frame.len(),
            length => usize::from(length).min(frame.len()),
        };
        if made.as_ref().is_none_or(|(made, _)| *made != bytes) {
            made = message(bytes).map(|message| (bytes, message));
        }
        let sent = made.as_ref().is_some_and(|(_, message)| entry.notices.try_send(message.clone()).is_ok());
        count(if sent { &shared.stats.packet_ins_sent } else { &shared.stats.packet_ins_dropped });
    }
}

fn send_port_status(shared: &Shared, change: PortChange, config: &crate::model::PortConfig) {
    let reason = match change {
        PortChange::Added => PortStatusReason::Add,
        PortChange::Modified => PortStatusReason::Modify,
        PortChange::Removed => PortStatusReason::Delete,
    };
    let status = ofp::PortStatus { reason, port: replies::port(config) };
    let notice = encode(Body::PortStatus(status));
    send(shared, notice, |entry| wants(entry, entry.filter.port_status_mask, reason.number()));
}

fn send_flow_removed(shared: &Shared, removed: &Removed) {
    let flow = &removed.flow;
    let reason = match removed.reason {
        RemovedReason::IdleTimeout => FlowRemovedReason::IdleTimeout,
        RemovedReason::HardTimeout => FlowRemovedReason::HardTimeout,
        RemovedReason::Delete => FlowRemovedReason::Delete,
        RemovedReason::GroupDelete => FlowRemovedReason::GroupDelete,
    };
    let counters = flow.stats.sum();
    let (duration_sec, duration_nsec) = convert::duration(removed.at_ms.saturating_sub(flow.created_ms));
    let notice = encode(Body::FlowRemoved(ofp::FlowRemoved {
        cookie: flow.cookie,
        priority: flow.priority,
        reason,
        table_id: flow.table,
        duration_sec,
        duration_nsec,
        idle_timeout: flow.idle_timeout_s,
        hard_timeout: flow.hard_timeout_s,
        packet_count: counters.packets,
        byte_count: counters.bytes,
        matching: convert::matching(&flow.key(), &flow.mask),
    }));
    send(shared, notice, |entry| wants(entry, entry.filter.flow_removed_mask, reason.number()));
}

fn send(shared: &Shared, notice: Option<Arc<[u8]>>, wanted: impl Fn(&Entry) -> bool) {
    let Some(notice) = notice else { return };
    for entry in shared.sessions().iter().filter(|entry| wanted(entry)) {
        if entry.notices.try_send(notice.clone()).is_err() {
            count(&shared.stats.notices_dropped);
        }
    }
}

/// What a session that never sent SET_ASYNC gets: as Open vSwitch, everything but invalid TTLs for masters and
/// equals, port status only for slaves.
pub fn default_filter() -> ofp::AsyncConfig {
    let bit = |reason: ofp::PacketInReason| 1 << reason.number();
    let packet_ins = bit(ofp::PacketInReason::NoMatch) | bit(ofp::PacketInReason::Action);
    ofp::AsyncConfig {
        packet_in_mask: [packet_ins, 0],
        port_status_mask: [0b111, 0b111],
        flow_removed_mask: [0b1111, 0],
    }
}

/// Whether the port is one that a packet-out may name as its ingress.
pub fn ingress(port: ofp::PortNo) -> Option<PortNo> {
    match port {
        PortNo::CONTROLLER | PortNo::ANY => Some(PortNo::CONTROLLER),
        PortNo::LOCAL => Some(PortNo::LOCAL),
        port => is_physical(port).then_some(port),
    }
}
