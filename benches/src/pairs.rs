//! Figures of two switches in turn, in pairs that were measured at the same distance of the processors.

use crate::distance::Distance;
use crate::rounds::{self, Comparison};
use crate::sluice::Figures;

/// Tries for each round that is wanted, until there are enough of one distance.
const TRIES: u32 = 3;

/// What was measured in one scenario.
pub struct Pairs {
    scenario: String,
    wanted: u32,
    tried: u32,
    near: Pair,
    far: Pair,
}

/// What was measured at one distance.
struct Pair {
    mpps: Comparison,
    cycles: Comparison,
}

impl Pair {
    fn new(scenario: &str, distance: &str) -> Pair {
        Pair {
            mpps: Comparison::new(format!("{scenario}, {distance}: Mpps"), true),
            cycles: Comparison::new(format!("{scenario}, {distance}: busy cycles/packet"), false),
        }
    }

    fn rounds(&self) -> u32 {
        self.mpps.ours.len() as u32
    }
}

impl Pairs {
    /// None yet, of `wanted` rounds.
    pub fn new(scenario: &str, wanted: u32) -> Pairs {
        let (near, far) = (Pair::new(scenario, "near"), Pair::new(scenario, "far"));
        Pairs { scenario: scenario.into(), wanted, tried: 0, near, far }
    }

    /// Begins another round, if one is to be measured.
    pub fn begin_round(&mut self) -> bool {
        let most = self.near.rounds().max(self.far.rounds());
        let goes_on = most < self.wanted && self.tried < self.wanted * TRIES;
        if goes_on {
            self.tried += 1;
            rounds::progress(&self.scenario, most + 1, self.wanted);
        }
        goes_on
    }

    /// Takes the figures of one round, unless the two cannot be compared: the processors moved on the way.
    pub fn push(&mut self, peer: Option<Figures>, ours: Figures) {
        let peers = peer.map_or(ours.distance, |peer| peer.distance);
        let Some(distance) = ours.distance.filter(|distance| peers == Some(*distance)) else { return };
        let pair = match distance {
            Distance::Near => &mut self.near,
            Distance::Far => &mut self.far,
        };
        if let Some(peer) = peer {
            pair.mpps.peer.push(peer.mpps);
            pair.cycles.peer.push(peer.cycles);
        }
        pair.mpps.ours.push(ours.mpps);
        pair.cycles.ours.push(ours.cycles);
    }

    /// The figures of the distances that there were.
    pub fn figures(self) -> impl Iterator<Item = Comparison> {
        let seen = [self.near, self.far].into_iter().filter(|pair| pair.rounds() > 0);
        seen.flat_map(|pair| [pair.mpps, pair.cycles])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(mpps: f64, distance: Option<Distance>) -> Figures {
        Figures { mpps, cycles: 1.0, distance }
    }

    #[test]
    fn only_rounds_of_one_distance_count_together() {
        let (near, far) = (Some(Distance::Near), Some(Distance::Far));
        let mut pairs = Pairs::new("x", 2);
        for (peer, ours) in [(near, far), (near, near), (far, near), (None, near), (far, None), (far, far)] {
            assert!(pairs.begin_round());
            pairs.push(Some(figures(2.0, peer)), figures(3.0, ours));
        }
        // Six tries for two rounds.
        assert!(!pairs.begin_round());
        let figures: Vec<_> =
            pairs.figures().map(|figure| (figure.what.clone(), figure.ours.len())).collect();
        assert_eq!(figures.len(), 4);
        assert_eq!(figures[0], ("x, near: Mpps".into(), 1));
        assert_eq!(figures[2], ("x, far: Mpps".into(), 1));
    }

    #[test]
    fn ends_when_there_are_enough_of_one_distance() {
        let mut pairs = Pairs::new("x", 2);
        for distance in [Distance::Far, Distance::Near, Distance::Far] {
            assert!(pairs.begin_round());
            pairs.push(None, figures(1.0, Some(distance)));
        }
        assert!(!pairs.begin_round());
    }
}
