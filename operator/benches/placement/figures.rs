//! Ratios of one run and how they are told.

use std::time::Duration;

/// A ratio of two figures, once per round.
pub(crate) struct Measure {
    /// Name, in parts from the general to the particular.
    pub(crate) name: String,
    /// Floor and goal, where more is better.
    pub(crate) at_least: Option<(f64, f64)>,
    /// Floor and goal, where less is better.
    pub(crate) at_most: Option<(f64, f64)>,
    ours: &'static str,
    baseline: &'static str,
    rounds: Vec<(f64, f64)>,
}

impl Measure {
    pub(crate) fn new(name: &str, ours: &'static str, baseline: &'static str) -> Self {
        Self { name: name.into(), at_least: None, at_most: None, ours, baseline, rounds: vec![] }
    }

    /// One round: numerator and denominator of the ratio.
    pub(crate) fn add(&mut self, numerator: f64, denominator: f64) {
        self.rounds.push((numerator, denominator));
    }

    fn sorted(&self) -> Vec<f64> {
        let mut ratios: Vec<f64> = self.rounds.iter().map(|(a, b)| a / b).collect();
        ratios.sort_by(f64::total_cmp);
        ratios
    }

    /// The median ratio.
    pub(crate) fn ratio(&self) -> f64 {
        let ratios = self.sorted();
        ratios[ratios.len() / 2]
    }

    pub(crate) fn holds(&self) -> bool {
        self.at_least.is_none_or(|(floor, _)| self.ratio() >= floor)
            && self.at_most.is_none_or(|(floor, _)| self.ratio() <= floor)
    }

    pub(crate) fn print(&self) {
        let ratios = self.sorted();
        let middle = |of: fn(&(f64, f64)) -> f64| {
            let mut all: Vec<f64> = self.rounds.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        let (floor, goal) = self.at_least.or(self.at_most).unzip();
        println!(
            "{}",
            serde_json::json!({
                "measure": self.name, "ratio": round(self.ratio()),
                "spread": [round(ratios[0]), round(ratios[ratios.len() - 1])],
                "numerator": middle(|round| round.0), "denominator": middle(|round| round.1),
                "of": [self.ours, self.baseline], "rounds": ratios.len(),
                "floor": floor, "goal": goal,
            })
        );
    }
}

fn round(figure: f64) -> f64 {
    (figure * 10_000.0).round() / 10_000.0
}

/// A quantile in seconds.
pub(crate) fn quantile(times: &[Duration], at: f64) -> f64 {
    let mut times: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
    times.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index of a list")]
    let position = ((times.len() - 1) as f64 * at).round() as usize;
    times[position]
}
