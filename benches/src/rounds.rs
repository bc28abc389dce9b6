//! Figures of several rounds.

use comfy_table::{Table, presets};
use serde::Serialize;

/// Says on the standard error how far a long run is.
#[allow(clippy::print_stderr, reason = "progress of a long run")]
pub fn progress(scenario: &str, round: u32, rounds: u32) {
    eprintln!("{scenario}: round {round} of {rounds}");
}

/// The table of `figures`, for a document, beside the figures of `peer`.
pub fn table(scenario: &str, peer: &str, figures: &[Comparison]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([scenario, peer, "Sluice", "better by"]);
    table.add_rows(figures.iter().map(Comparison::row));
    table
}

/// The middle of `values`; 0 when there are none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n.is_multiple_of(2) => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
        n => sorted[n / 2],
    }
}

/// One quantity, measured on the peer and on Sluice in turn.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// What was measured, with its unit.
    pub what: String,
    /// The peer's figures, one a round.
    pub peer: Vec<f64>,
    /// Ours, one a round.
    pub ours: Vec<f64>,
    /// Whether more is better.
    pub more_is_better: bool,
}

impl Comparison {
    /// No figures yet.
    pub fn new(what: impl Into<String>, more_is_better: bool) -> Comparison {
        Comparison { what: what.into(), peer: Vec::new(), ours: Vec::new(), more_is_better }
    }

    /// Median over the rounds of how many times better we are than the peer; above 1 is better.
    pub fn ratio(&self) -> f64 {
        let of_round =
            |(peer, ours): (&f64, &f64)| if self.more_is_better { ours / peer } else { peer / ours };
        median(&self.peer.iter().zip(&self.ours).map(of_round).collect::<Vec<_>>())
    }

    /// The row of a table: what, peer, ours, ratio.
    pub fn row(&self) -> [String; 4] {
        [
            self.what.clone(),
            show(median(&self.peer)),
            show(median(&self.ours)),
            format!("{:.2}x", self.ratio()),
        ]
    }
}

/// A figure with three digits that matter.
fn show(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let peer = vec![1.0, 10.0, 100.0];
        let ours = vec![2.0, 20.0, 500.0];
        let more = Comparison { what: String::new(), peer, ours, more_is_better: true };
        assert_eq!(more.ratio(), 2.0);
        assert_eq!(Comparison { more_is_better: false, ..more }.ratio(), 0.5);
    }
}
