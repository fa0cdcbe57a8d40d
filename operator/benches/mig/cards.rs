//! The cards and mixes of the churn benchmark, and what they hold when everything may move.

use gpudesk_placement::lookahead::{Geometry, Kind, Mode};

use crate::churn::Random;

/// A card with the names of its kinds.
pub(crate) struct Card {
    /// Name.
    pub(crate) name: &'static str,
    /// What it offers.
    pub(crate) geometry: Geometry,
    /// Names of its kinds.
    pub(crate) kinds: &'static [&'static str],
    /// Whether all of these fit on so many cards, wherever they stand.
    pub(crate) fits: fn(i64, &[i64]) -> bool,
}

/// How often each kind is asked for; adds up to 1.
pub(crate) struct Mix {
    /// Name.
    pub(crate) name: String,
    /// Share of each kind.
    pub(crate) shares: Vec<f64>,
}

fn card(size: i32, slices: i32, max_count: i32, starts: &[i32]) -> Kind {
    Kind { size, slices, starts: starts.to_vec(), max_count, ..Kind::default() }
}

/// A100, H100, H200, B200 and their like.
fn seven_slices() -> Card {
    let geometry = Geometry {
        modes: vec![Mode { units: 8, slices: Some(7), ..Mode::default() }],
        kinds: vec![
            card(1, 1, 7, &[0, 1, 2, 3, 4, 5, 6]),
            card(2, 1, 4, &[0, 2, 4, 6]),
            card(2, 2, 3, &[0, 2, 4]),
            card(4, 3, 2, &[0, 4]),
            card(4, 4, 1, &[0]),
            card(8, 7, 1, &[0]),
        ],
    };
    let kinds = &["1g", "1gd", "2g", "3g", "4g", "7g"];
    Card { name: "seven-slices", geometry, kinds, fits: fits_seven }
}

/// RTX PRO 6000 Blackwell. An A30 is the same with other units.
fn four_slices() -> Card {
    let geometry = Geometry {
        modes: vec![Mode { units: 12, slices: Some(4), ..Mode::default() }],
        kinds: vec![card(3, 1, 4, &[0, 3, 6, 9]), card(6, 2, 2, &[0, 6]), card(12, 4, 1, &[0])],
    };
    let fits = |cards: i64, counts: &[i64]| match counts {
        [one, two, four] => one + 2 * two + 4 * four <= 4 * cards,
        _ => false,
    };
    Card { name: "four-slices", geometry, kinds: &["1g", "2g", "4g"], fits }
}

/// Exact: 3g lose least in the upper halves, double memory in units 6 and 7, and compute slices never
/// limit where memory does not.
fn fits_seven(cards: i64, counts: &[i64]) -> bool {
    let [one, double, two, three, four, seven] = *counts else { return false };
    let cards = cards - seven;
    let upper = three.min(cards);
    let (lower_free, upper_free) = (cards - four - (three - upper), cards - upper);
    let pairs = 2 * lower_free + upper_free - two;
    let last = double.min(upper_free);
    let pairs_left = pairs - (double - last);
    cards >= 0
        && lower_free >= 0
        && pairs >= 0
        && pairs_left >= 0
        && one <= 2 * pairs_left + upper_free - last
}

/// All cards.
pub(crate) fn all() -> Vec<Card> {
    vec![seven_slices(), four_slices()]
}

impl Card {
    /// Requests of a mix that one card holds on average, when packed best.
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "numbers are small")]
    pub(crate) fn capacity(&self, mix: &Mix) -> f64 {
        let cards = 100_000i64;
        let (mut low, mut high) = (0.0, 1e6);
        for _ in 0..60 {
            let middle = f64::midpoint(low, high);
            let counts: Vec<i64> = mix.shares.iter().map(|share| (share * middle) as i64).collect();
            if (self.fits)(cards, &counts) {
                low = middle;
            } else {
                high = middle;
            }
        }
        low / cards as f64
    }

    /// Named mixes, every pair of kinds, and random mixes from even to very uneven.
    pub(crate) fn mixes(&self, random: u64) -> Vec<Mix> {
        let kinds = &self.geometry.kinds;
        let last = kinds.len() - 1;
        let only = |shares: &[(usize, f64)]| {
            let mut all = vec![0.0; kinds.len()];
            for (kind, share) in shares {
                all[*kind] = *share;
            }
            all
        };
        let by = |weight: fn(&Kind) -> f64| kinds.iter().map(weight).collect();
        let mut mixes: Vec<(String, Vec<f64>)> = vec![
            ("uniform".into(), by(|_| 1.0)),
            ("equal-slices".into(), by(|kind| 1.0 / f64::from(kind.slices))),
            ("small".into(), by(|kind| 1.0 / f64::from(kind.size * kind.size))),
            ("large".into(), by(|kind| f64::from(kind.size))),
            ("bimodal".into(), only(&[(0, 0.8), (last, 0.2)])),
            ("flood".into(), only(&[(0, 0.95), (last, 0.05)])),
        ];
        for first in 0..kinds.len() {
            for second in first + 1..kinds.len() {
                let share = |kind: usize| (kind, 1.0 / f64::from(kinds[kind].size));
                let name = format!("{}+{}", self.kinds[first], self.kinds[second]);
                mixes.push((name, only(&[share(first), share(second)])));
            }
        }
        for number in 0..random {
            let mut draw = Random::new(number + 77);
            let power = [1.0, 2.5, 1.0, 4.0][usize::try_from(number % 4).unwrap_or(0)];
            let share = |kind: &Kind| draw.exponential().powf(power) / f64::from(kind.slices).sqrt();
            mixes.push((format!("random-{number}"), kinds.iter().map(share).collect()));
        }
        let even = |(name, shares): (String, Vec<f64>)| {
            let sum: f64 = shares.iter().sum();
            Mix { name, shares: shares.iter().map(|share| share / sum).collect() }
        };
        mixes.into_iter().map(even).collect()
    }
}
