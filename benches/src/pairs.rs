//! Figures of two switches in turn, in pairs that were measured at the same distance of the processors.

use crate::distance::Distance;
use crate::rounds::Comparison;
use crate::sluice::Figures;

/// What was measured in one scenario.
pub struct Pairs {
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
}

impl Pairs {
    /// None yet.
    pub fn new(scenario: &str) -> Pairs {
        Pairs { near: Pair::new(scenario, "near"), far: Pair::new(scenario, "far") }
    }

    /// Takes the figures of one pair of windows, unless the two cannot be compared: the processors moved on the way.
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
        let seen = [self.near, self.far].into_iter().filter(|pair| !pair.mpps.ours.is_empty());
        seen.flat_map(|Pair { mut mpps, cycles }| {
            mpps.what += &format!(", {} windows", mpps.ours.len());
            [mpps, cycles]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(mpps: f64, distance: Option<Distance>) -> Figures {
        Figures { mpps, cycles: 1.0, distance }
    }

    #[test]
    fn only_windows_of_one_distance_count_together() {
        let (near, far) = (Some(Distance::Near), Some(Distance::Far));
        let mut pairs = Pairs::new("x");
        for (peer, ours) in [(near, far), (near, near), (far, near), (None, near), (far, None), (far, far)] {
            pairs.push(Some(figures(2.0, peer)), figures(3.0, ours));
        }
        pairs.push(None, figures(4.0, far));
        let figures: Vec<_> = pairs.figures().map(|figure| (figure.what, figure.peer, figure.ours)).collect();
        assert_eq!(figures.len(), 4);
        assert_eq!(figures[0], ("x, near: Mpps, 1 windows".into(), vec![2.0], vec![3.0]));
        assert_eq!(figures[2], ("x, far: Mpps, 2 windows".into(), vec![2.0], vec![3.0, 4.0]));
    }
}
