//! Every state of one card, and rules that say which state a request goes to first.

use std::collections::HashMap;

use gpudesk_placement::{
    batch::Class,
    lookahead::{Asked, Geometry, Placed, Values},
    prices::{self, NOMINAL_CARDS, NOMINAL_LOAD},
};

use crate::cards::{Card, Mix};

/// Every state that a card can be in.
pub(crate) struct States {
    /// What is on it, in order.
    pub(crate) placed: Vec<Vec<Placed>>,
    /// By state and kind: what can be added, and the state after it.
    adds: Vec<Vec<Vec<(Placed, usize)>>>,
    /// By state: what can leave, and the state after it.
    leaves: Vec<HashMap<Placed, usize>>,
}

/// The choice of a rule for one kind in one state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice {
    /// The lower, the sooner this state is taken; equal ranks by position of the card.
    pub(crate) rank: u32,
    /// What is added.
    pub(crate) add: Placed,
    /// The state after it.
    pub(crate) next: usize,
}

/// By kind and state.
pub(crate) type Rule = Vec<Vec<Option<Choice>>>;

impl States {
    /// Breadth first from the empty card.
    pub(crate) fn new(geometry: &Geometry) -> Self {
        let mut states = Self { placed: vec![vec![]], adds: vec![], leaves: vec![HashMap::new()] };
        let mut numbers = HashMap::from([(vec![], 0)]);
        while let Some(placed) = states.placed.get(states.adds.len()).cloned() {
            let from = states.adds.len();
            let mut by_kind = vec![];
            for kind in (0u16..).take(geometry.kinds.len()) {
                let mut adds = vec![];
                for add in geometry.choices(&placed, kind) {
                    let mut after = placed.clone();
                    after.insert(after.partition_point(|other| *other < add), add);
                    let next = *numbers.entry(after.clone()).or_insert_with(|| {
                        states.placed.push(after);
                        states.leaves.push(HashMap::new());
                        states.placed.len() - 1
                    });
                    states.leaves[next].insert(add, from);
                    adds.push((add, next));
                }
                by_kind.push(adds);
            }
            states.adds.push(by_kind);
        }
        states
    }

    /// The state once a share has left.
    pub(crate) fn without(&self, state: usize, share: Placed) -> usize {
        self.leaves[state].get(&share).copied().unwrap_or(state)
    }

    fn placements(&self, state: usize) -> usize {
        self.adds[state].iter().map(Vec::len).sum()
    }

    /// A rule from the cost of a choice: state before, what is added, state after. The least cost wins,
    /// then the lowest start, then the first card.
    fn rule<K: Ord>(&self, cost: impl Fn(usize, Placed, usize) -> K) -> Rule {
        let kinds = self.adds.first().map_or(0, Vec::len);
        let of_kind = |kind: usize| {
            let best = self.adds.iter().enumerate().filter_map(|(state, adds)| {
                let costs = adds[kind].iter().map(|(add, next)| (cost(state, *add, *next), *add, *next));
                costs.min_by(|a, b| a.0.cmp(&b.0)).map(|(key, add, next)| (key, state, add, next))
            });
            let mut best: Vec<_> = best.collect();
            best.sort_by(|a, b| a.0.cmp(&b.0));
            let mut choices = vec![None; self.adds.len()];
            let mut rank = 0;
            for (position, (key, state, add, next)) in best.iter().enumerate() {
                rank += u32::from(position > 0 && best[position - 1].0 != *key);
                choices[*state] = Some(Choice { rank, add: *add, next: *next });
            }
            choices
        };
        (0..kinds).map(of_kind).collect()
    }

    /// The fullest card by memory units; of its starts the one that leaves the most placements.
    pub(crate) fn best_fit(&self, geometry: &Geometry) -> Rule {
        let units = |state: usize| {
            let kinds = self.placed[state].iter().filter_map(|share| geometry.kind(share.kind));
            kinds.map(|kind| kind.size).sum::<i32>()
        };
        self.rule(|state, _, next| (-units(state), std::cmp::Reverse(self.placements(next))))
    }

    /// The first card, at its lowest start.
    pub(crate) fn first_fit(&self) -> Rule {
        self.rule(|_, _, _| 0)
    }

    /// The least loss of worth; without prices, of the starts alone.
    pub(crate) fn look_ahead(&self, card: &Card, mix: &Mix, prices: bool) -> Rule {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small, not negative")]
        let wanted: Vec<u64> = mix.shares.iter().map(|share| (share * 1e6).round() as u64).collect();
        let values = Values::new(card.geometry.clone(), &wanted, wanted.iter().sum(), 80 << 10);
        let asked = if prices { asked(card, mix) } else { vec![] };
        let units = card.geometry.modes.first().map_or(1, |mode| mode.units.unsigned_abs());
        let worth: Vec<i64> =
            self.placed.iter().map(|placed| values.worth(placed, u64::from(units) << 10, &asked)).collect();
        self.rule(|state, _, next| worth[state] - worth[next])
    }
}

/// Prices of the kinds, in 1024ths of a unit, as placement has them of a mix.
fn asked(card: &Card, mix: &Mix) -> Vec<Asked> {
    let kinds = &card.geometry.kinds;
    let serves: Vec<Option<u16>> = (0u16..).take(kinds.len()).map(Some).collect();
    let class =
        Class { geometry: &card.geometry, placed: &[], count: NOMINAL_CARDS, cost: 0, serves: &serves };
    let worth: Vec<f64> = kinds.iter().map(|kind| f64::from(kind.size)).collect();
    let units = card.geometry.modes.first().map_or(1, |mode| mode.units);
    let all = f64::from(NOMINAL_CARDS) * f64::from(units) * NOMINAL_LOAD / 100.0;
    let one: f64 = mix.shares.iter().zip(&worth).map(|(share, worth)| share * worth).sum();
    let expected: Vec<f64> = mix.shares.iter().map(|share| share * all / one).collect();
    #[expect(clippy::cast_possible_truncation, reason = "small")]
    let price = |price: f64| (price * 1024.0).round() as i64;
    let prices = prices::mean(&[class], &worth, &expected).into_iter();
    prices.map(|of| Asked { price: price(of), limit: u32::MAX }).collect()
}
