//! Ratios of one run and how they are told.

/// A ratio of two figures, once per round.
pub(crate) struct Measure {
    /// Name, in parts from the general to the particular.
    name: String,
    /// Floor and goal.
    at_least: Option<(f64, f64)>,
    of: [&'static str; 2],
    rounds: Vec<(i64, i64)>,
}

impl Measure {
    /// Without rounds yet.
    pub(crate) fn new(
        name: String,
        of: [&'static str; 2],
        at_least: Option<(f64, f64)>,
        rounds: usize,
    ) -> Self {
        Self { name, at_least, of, rounds: vec![(0, 0); rounds] }
    }

    /// Adds to the figures of a round.
    pub(crate) fn add(&mut self, round: usize, numerator: i64, denominator: i64) {
        if let Some(figures) = self.rounds.get_mut(round) {
            figures.0 += numerator;
            figures.1 += denominator;
        }
    }

    /// Takes a round of another measure when it is worse.
    pub(crate) fn take_worse(&mut self, other: &Self) {
        for (own, other) in self.rounds.iter_mut().zip(&other.rounds) {
            if own.1 == 0 || i128::from(other.0) * i128::from(own.1) < i128::from(own.0) * i128::from(other.1)
            {
                *own = *other;
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "figures are small")]
    fn ratios(&self) -> Vec<f64> {
        let measured = self.rounds.iter().filter(|(_, of)| *of > 0);
        let mut ratios: Vec<f64> = measured.map(|(figure, of)| *figure as f64 / *of as f64).collect();
        ratios.sort_by(f64::total_cmp);
        ratios
    }

    /// One line, unless nothing was measured: the median of the rounds.
    pub(crate) fn print(&self) {
        let ratios = self.ratios();
        let (Some(least), Some(most)) = (ratios.first(), ratios.last()) else { return };
        let Some(middle) = ratios.get(ratios.len() / 2) else { return };
        let median = |of: fn(&(i64, i64)) -> i64| {
            let mut all: Vec<i64> = self.rounds.iter().map(of).collect();
            all.sort_unstable();
            all.get(all.len() / 2).copied()
        };
        let (floor, goal) = self.at_least.unzip();
        println!(
            "{}",
            serde_json::json!({
                "measure": self.name, "ratio": round(*middle), "spread": [round(*least), round(*most)],
                "numerator": median(|round| round.0), "denominator": median(|round| round.1),
                "of": self.of, "rounds": ratios.len(), "floor": floor, "goal": goal,
            })
        );
    }
}

fn round(figure: f64) -> f64 {
    (figure * 10_000.0).round() / 10_000.0
}
