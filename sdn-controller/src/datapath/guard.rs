//! Probes on their way and back, and ports that are shut for a while because a loop goes through them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ofp::{Action, Body, Field, MacAddr, OxmField, PacketIn, PacketOut, Port, PortNo, PortState};

use super::{Datapath, Happening, Phase};
use crate::discovery::{Probe, Probes};
use crate::plan::{Tagging, Way};

/// Moves of one address in [`FLAP_WINDOW`] that are no move any more.
const FLAPS: u32 = 6;
const FLAP_WINDOW: Duration = Duration::from_secs(10);
/// Addresses whose moves are counted at once.
const FLAPPING_MAX: usize = 4096;
/// Probes a second that are looked at, for each port.
const PROBES_PER_PORT: u32 = 50;

/// Why a port is shut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// A probe of ours came in by it.
    Loop,
    /// An address moves between it and another port all the time.
    Flapping,
}

impl Reason {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Reason::Loop => "loop",
            Reason::Flapping => "flapping",
        }
    }
}

/// How often an address moved in a window of time.
struct Moves {
    /// Where it was when it had not moved for a while.
    home: PortNo,
    count: u32,
    since: Instant,
    last: Instant,
}

/// What is watched on a switch.
#[derive(Default)]
pub(super) struct Guard {
    /// Ports that are shut, until when.
    shut: BTreeMap<PortNo, (Reason, Instant)>,
    moves: HashMap<(u16, MacAddr), Moves>,
    heard: HashMap<PortNo, (u32, Instant)>,
    /// When probes go out again; `None`: never.
    pub(super) next: Option<Instant>,
}

impl Guard {
    /// Nothing is shut; probes go out at this time, if at all.
    pub(super) fn new(next: Option<Instant>) -> Guard {
        Guard { next, ..Guard::default() }
    }

    /// The ports that are shut.
    pub(super) fn shut(&self) -> impl Iterator<Item = (PortNo, Reason)> {
        self.shut.iter().map(|(port, (reason, _))| (*port, *reason))
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.shut.values().map(|(_, until)| *until).chain(self.next).min()
    }

    /// Whether one more probe from this port is looked at.
    fn listens(&mut self, now: Instant, port: PortNo) -> bool {
        let (count, since) = self.heard.entry(port).or_insert((0, now));
        if now >= *since + Duration::from_secs(1) {
            (*count, *since) = (0, now);
        }
        *count += 1;
        *count <= PROBES_PER_PORT
    }

    /// Counts a move; the port where the address was at first, if it moves all the time.
    fn moved(&mut self, now: Instant, key: (u16, MacAddr), from: PortNo) -> Option<PortNo> {
        if self.moves.len() >= FLAPPING_MAX {
            self.moves.retain(|_, moves| now < moves.last + FLAP_WINDOW);
        }
        if self.moves.len() >= FLAPPING_MAX && !self.moves.contains_key(&key) {
            return None;
        }
        let afresh = Moves { home: from, count: 0, since: now, last: now };
        let moves = self.moves.entry(key).or_insert(afresh);
        if now >= moves.last + FLAP_WINDOW {
            *moves = Moves { home: from, count: 0, since: now, last: now };
        } else if now >= moves.since + FLAP_WINDOW {
            // It has not come to rest: whoever borrows it does not get it by waiting for a new window.
            (moves.count, moves.since) = (0, now);
        }
        (moves.count, moves.last) = (moves.count + 1, now);
        let flaps = moves.count >= FLAPS;
        if flaps {
            (moves.count, moves.since) = (0, now);
        }
        flaps.then_some(moves.home)
    }
}

fn is_up(port: &Port) -> bool {
    port.port_no <= PortNo::MAX
        && !port.config.contains(ofp::PortConfig::PORT_DOWN)
        && !port.state.contains(PortState::LINK_DOWN)
}

impl Datapath {
    /// The VLAN whose frames have no tag at the port: hosts are behind it, in contrast to other switches.
    fn untagged(&self, port: PortNo) -> Option<u16> {
        let mut members = self.plan.members.iter();
        let here = |(&(vlan, member), way): (&(u16, PortNo), &Way)| {
            (member == port && way.tagging == Tagging::Untagged).then_some(vlan)
        };
        members.find_map(here)
    }

    /// What is due: probes, and ports that are opened again.
    pub(super) fn watch(&mut self, now: Instant) {
        let due: Vec<PortNo> =
            self.guard.shut.iter().filter(|(_, (_, until))| now >= *until).map(|(p, _)| *p).collect();
        for port in &due {
            self.guard.shut.remove(port);
            self.metrics.ports_shut.add(-1);
            self.happenings.push(Happening::Opened { port: *port });
        }
        if !due.is_empty() {
            (self.dirty, self.changed) = (true, true);
            self.change(now);
        }
        if self.guard.next.is_some_and(|next| now >= next) {
            self.guard.next = self.probing.as_ref().map(|(interval, _)| now + *interval);
            let untagged = self.plan.members.iter().filter(|(_, way)| way.tagging == Tagging::Untagged);
            let vlans: HashMap<PortNo, u16> = untagged.map(|(&(vlan, port), _)| (port, vlan)).collect();
            let ports: Vec<PortNo> = self.ports.keys().copied().collect();
            ports.into_iter().for_each(|port| self.probe(now, port, vlans.get(&port).copied()));
        }
    }

    /// Sends a probe out of a port that came up.
    pub(super) fn probe_at_once(&mut self, now: Instant, port: PortNo) {
        self.probe(now, port, self.untagged(port));
    }

    /// Sends a probe out of a port, if it is up; by broadcast where hosts are, in this VLAN.
    fn probe(&mut self, now: Instant, port: PortNo, vlan: Option<u16>) {
        let Some((interval, probes)) = self.probing.clone() else { return };
        if matches!(self.phase, Phase::Standby | Phase::Reading(_)) {
            return;
        }
        let Some(source) = self.ports.get(&port).filter(|port| is_up(port)).map(|port| port.hw_addr) else {
            return;
        };
        if vlan.is_some() && self.hold.is_none() {
            return;
        }
        let probe =
            Probe { dpid: self.dpid, port, vlan: vlan.unwrap_or_default(), broadcast: vlan.is_some() };
        let data = probes.frame(now, probe, source, interval * 3);
        self.send(Body::PacketOut(PacketOut {
            buffer_id: ofp::NO_BUFFER,
            in_port: PortNo::CONTROLLER,
            actions: vec![Action::Output { port, max_len: 0 }],
            data,
        }));
    }

    /// A frame that looks like a probe came in.
    pub(super) fn probe_in(&mut self, now: Instant, packet_in: &PacketIn) {
        let Some(OxmField::InPort(port)) = packet_in.matching.field(Field::InPort) else { return };
        let Some((_, probes)) = self.probing.clone() else { return };
        let port = *port;
        if !self.guard.listens(now, port) {
            return self.metrics.refused_packets.add(1);
        }
        // Guests may send LLDP as they like: it is theirs, and says nothing to us.
        let Some((probe, tag)) = probes.read(now, &packet_in.data) else { return };
        let hosts = self.untagged(port);
        let vlan = match tag {
            0 => hosts,
            tag => self.plan.members.contains_key(&(tag, port)).then_some(tag),
        };
        // What left as a frame of one VLAN and comes back as one of another passed a function of a service chain, or
        // somebody who joins two networks: no frame goes round by that.
        let loops = vlan == Some(probe.vlan);
        let left_by_us = probe.dpid == self.dpid && self.untagged(probe.port) == Some(probe.vlan);
        if loops && hosts.is_some() {
            self.shut(now, port, Reason::Loop, Some((probe.dpid.0, probe.port)));
        } else if loops && left_by_us {
            // It left by a port with hosts and came round by another switch: the way in is theirs.
            self.shut(now, probe.port, Reason::Loop, Some((self.dpid.0, port)));
        } else if hosts.is_none() && !probe.broadcast {
            self.happenings.push(Happening::Link { from: (probe.dpid, probe.port), port });
        }
    }

    /// An address moved: perhaps once too often.
    pub(super) fn address_moved(
        &mut self,
        now: Instant,
        (vlan, mac): (u16, MacAddr),
        from: PortNo,
        to: PortNo,
    ) {
        self.metrics.moved.add(1);
        self.happenings.push(Happening::Moved { vlan, mac, from, to });
        let Some(home) = self.guard.moved(now, (vlan, mac), from) else { return };
        self.metrics.flapping.add(1);
        // Never where it was first: else whoever uses its address could shut its port.
        let late = [to, from].into_iter().find(|port| *port != home && self.untagged(*port).is_some());
        self.happenings.push(Happening::Flapping { vlan, mac, from, to });
        if let Some(port) = late {
            self.shut(now, port, Reason::Flapping, None);
        }
    }

    fn shut(&mut self, now: Instant, port: PortNo, reason: Reason, other: Option<(u64, PortNo)>) {
        let Some(hold) = self.hold else { return };
        if self.guard.shut.insert(port, (reason, now + hold)).is_some() {
            // Still so: it stays shut.
            return;
        }
        self.metrics.ports_shut.add(1);
        self.metrics.shuts.add(1);
        self.happenings.push(Happening::Shut { port, reason, other, seconds: hold.as_secs() });
        (self.dirty, self.changed) = (true, true);
        self.change(now);
    }

    /// A port went away: what was watched there is over.
    pub(super) fn unwatch(&mut self, port: PortNo) {
        self.guard.heard.remove(&port);
        if self.guard.shut.remove(&port).is_some() {
            self.metrics.ports_shut.add(-1);
            self.dirty = true;
        }
    }

    /// Adds to a plan what is of no network: what shows us probes, and ports that are shut.
    pub(super) fn add_guards_to(&self, plan: &mut crate::plan::Plan) {
        if self.probing.is_some() {
            plan.add_discovery();
        }
        self.guard.shut.keys().for_each(|port| plan.shut(*port));
    }
}

impl Drop for Datapath {
    fn drop(&mut self) {
        self.metrics.ports_shut.add(-(self.guard.shut.len() as i64));
    }
}

/// How often probes go out, and what makes them.
pub(super) type Probing = (Duration, Arc<Probes>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_is_where_an_address_was_at_rest() {
        let (mut guard, begin) = (Guard::default(), Instant::now());
        let (key, owner, thief) = ((10, MacAddr([2, 0, 0, 0, 0, 1])), PortNo(1), PortNo(2));
        let mut moved = |millis, from| guard.moved(begin + Duration::from_millis(millis), key, from);
        // The thief's last move of one window is such that the first of the next is the owner's.
        assert_eq!((moved(0, owner), moved(10, thief), moved(9_900, owner)), (None, None, None));
        let flaps: Vec<_> =
            (0..6).map(|n| moved(10_100 + n, if n % 2 == 0 { thief } else { owner })).collect();
        assert_eq!(flaps, [None, None, None, None, None, Some(owner)]);
        // Nor does it get it by what is still on its way when its port is shut.
        let flaps: Vec<_> =
            (0..6).map(|n| moved(10_200 + n, if n % 2 == 0 { thief } else { owner })).collect();
        assert_eq!(flaps[5], Some(owner));
        // Whoever has it for long has it.
        assert_eq!(moved(30_000, thief), None);
        let flaps: Vec<_> =
            (0..5).map(|n| moved(30_001 + n, if n % 2 == 0 { owner } else { thief })).collect();
        assert_eq!(flaps[4], Some(thief));
    }
}
