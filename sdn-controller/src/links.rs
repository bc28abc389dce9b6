//! Links between switches, as probes have shown them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::Dpid;

/// A port of a switch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct End {
    /// The switch.
    pub dpid: Dpid,
    /// The port's number.
    pub port: u32,
}

/// What a link was found to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkChange {
    /// Where its probes leave.
    pub from: End,
    /// Where they arrive.
    pub to: End,
    /// Whether they do.
    pub up: bool,
}

/// The links that are known, each way by itself.
#[derive(Debug, Default)]
pub struct Links {
    ways: BTreeMap<End, (End, Instant)>,
}

impl Links {
    /// A probe that left at `from` arrived at `to`. What that changes.
    pub fn seen(&mut self, now: Instant, from: End, to: End) -> Vec<LinkChange> {
        let before = self.ways.insert(from, (to, now)).map(|(before, _)| before);
        if before == Some(to) {
            return vec![];
        }
        let gone = before.map(|before| LinkChange { from, to: before, up: false });
        gone.into_iter().chain([LinkChange { from, to, up: true }]).collect()
    }

    /// Forgets the links that `lost` says.
    fn forget(&mut self, lost: impl Fn(&End, &(End, Instant)) -> bool) -> Vec<LinkChange> {
        let mut changes = Vec::new();
        self.ways.retain(|from, way| {
            let goes = lost(from, way);
            if goes {
                changes.push(LinkChange { from: *from, to: way.0, up: false });
            }
            !goes
        });
        changes
    }

    /// Forgets the links that no probe came by for `worth`.
    pub fn expire(&mut self, now: Instant, worth: Duration) -> Vec<LinkChange> {
        self.forget(|_, (_, seen)| now.saturating_duration_since(*seen) > worth)
    }

    /// A port is down or gone.
    pub fn port_down(&mut self, end: End) -> Vec<LinkChange> {
        self.forget(|from, (to, _)| *from == end || *to == end)
    }

    /// A switch is gone.
    pub fn switch_gone(&mut self, dpid: Dpid) -> Vec<LinkChange> {
        self.forget(|from, (to, _)| from.dpid == dpid || to.dpid == dpid)
    }

    /// The links: both ends, the lower one first, and whether probes pass both ways.
    pub fn list(&self) -> Vec<(End, End, bool)> {
        let mut links = BTreeMap::new();
        for (from, (to, _)) in &self.ways {
            let both = self.ways.get(to).is_some_and(|(back, _)| back == from);
            links.insert((*from.min(to), *from.max(to)), both);
        }
        links.into_iter().map(|((a, b), both)| (a, b, both)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_come_move_and_age() {
        let (mut links, now) = (Links::default(), Instant::now());
        let end = |dpid, port| End { dpid: Dpid(dpid), port };
        let worth = Duration::from_secs(15);
        assert_eq!(links.seen(now, end(1, 9), end(2, 9)).len(), 1);
        assert_eq!(links.seen(now, end(1, 9), end(2, 9)), []);
        assert_eq!(links.list(), [(end(1, 9), end(2, 9), false)]);
        links.seen(now, end(2, 9), end(1, 9));
        assert_eq!(links.list(), [(end(1, 9), end(2, 9), true)]);
        let moved = links.seen(now, end(1, 9), end(3, 1));
        assert_eq!(moved.iter().map(|change| change.up).collect::<Vec<_>>(), [false, true]);
        let later = now + worth;
        links.seen(later, end(1, 9), end(3, 1));
        assert_eq!(links.expire(later + Duration::from_millis(1), worth).len(), 1, "the way back is old");
        assert_eq!(links.port_down(end(3, 1)).len(), 1);
        assert_eq!(links.list(), []);
        links.seen(now, end(1, 1), end(2, 1));
        assert_eq!(links.switch_gone(Dpid(2)).len(), 1);
    }
}
