//! The linear program over layouts: how many cards get which, fractions allowed.

use super::{
    Class,
    pricing::{self, Layout},
    simplex::{self, Simplex, TINY},
};

/// Rounds of new layouts before the program is taken as it is.
const ROUNDS: usize = 200;

/// A layout on a class of cards.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Column {
    /// Position of the class.
    pub(super) class: usize,
    /// How many of each request shape.
    pub(super) counts: Vec<u32>,
    /// The layout.
    pub(super) layout: Layout,
}

/// What is left to plan.
#[derive(Clone, Debug)]
pub(super) struct Rest {
    /// Requests of each shape.
    pub(super) want: Vec<u32>,
    /// Cards of each class.
    pub(super) cards: Vec<u32>,
}

/// A solution: amounts of columns, and the bound that it proves.
pub(super) struct Relaxed {
    /// Columns with their amount, those that are used.
    pub(super) amounts: Vec<(Column, f64)>,
    /// Cost of cards and of what is unmet.
    pub(super) cost: f64,
}

impl Column {
    fn fits(&self, rest: &Rest) -> bool {
        rest.cards[self.class] > 0 && self.counts.iter().zip(&rest.want).all(|(has, want)| has <= want)
    }
}

/// What the dual gains by a price: for each request shape, then for each class.
fn gain(rest: &Rest) -> Vec<f64> {
    let want = rest.want.iter().map(|want| f64::from(*want));
    want.chain(rest.cards.iter().map(|count| -f64::from(*count))).collect()
}

/// What bounds prices: no layout is worth more than its card, no request more than its penalty.
fn rows(classes: &[Class<'_>], penalty: &[f64], columns: &[Column]) -> Vec<(Vec<f64>, f64)> {
    let width = penalty.len() + classes.len();
    let layouts = columns.iter().map(|column| {
        let mut row = vec![0.0; width];
        for (cell, count) in row.iter_mut().zip(&column.counts) {
            *cell = f64::from(*count);
        }
        row[penalty.len() + column.class] = -1.0;
        (row, f64::from(classes[column.class].cost))
    });
    let unmet = penalty.iter().enumerate().map(|(shape, penalty)| {
        let mut row = vec![0.0; width];
        row[shape] = 1.0;
        (row, *penalty)
    });
    layouts.chain(unmet).collect()
}

/// The mean price of a request of each shape over several demands, `worth` at most.
pub(super) fn mean_prices(classes: &[Class<'_>], worth: &[f64], demands: &[Vec<u32>]) -> Vec<f64> {
    let mut sums = vec![0.0; worth.len()];
    let cards: Vec<u32> = classes.iter().map(|class| class.count).collect();
    let mut pool = vec![];
    let mut simplex = Simplex::new(&rows(classes, worth, &pool), worth.len() + classes.len());
    for want in demands {
        let rest = Rest { want: want.clone(), cards: cards.clone() };
        let gain = gain(&rest);
        for round in 0..=ROUNDS {
            let solved = simplex.solve(&gain);
            let before = pool.len();
            if round < ROUNDS {
                price(classes, &rest, &solved.prices, &mut pool);
            }
            if pool.len() == before {
                sums.iter_mut().zip(&solved.prices).for_each(|(sum, price)| *sum += price);
                break;
            }
            simplex = Simplex::new(&rows(classes, worth, &pool), gain.len());
        }
    }
    let count = f64::from(u32::try_from(demands.len().max(1)).unwrap_or(u32::MAX));
    sums.into_iter().map(|sum| sum / count).collect()
}

/// Solves it for the rest. `penalty` is what one unmet request of each shape costs; `pool` keeps the
/// layouts found so far.
pub(super) fn relax(classes: &[Class<'_>], rest: &Rest, penalty: &[f64], pool: &mut Vec<Column>) -> Relaxed {
    let gain = gain(rest);
    for round in 0..=ROUNDS {
        let columns: Vec<Column> = pool.iter().filter(|column| column.fits(rest)).cloned().collect();
        let rows = rows(classes, penalty, &columns);
        let solved = simplex::solve(&rows, &gain);
        let before = pool.len();
        if round < ROUNDS {
            price(classes, rest, &solved.prices, pool);
        }
        if pool.len() == before {
            let amounts = columns.into_iter().zip(solved.amounts).filter(|(_, amount)| *amount > TINY);
            return Relaxed { amounts: amounts.collect(), cost: solved.objective };
        }
    }
    Relaxed { amounts: vec![], cost: 0.0 }
}

/// Adds the layouts that the prices show to be missing.
fn price(classes: &[Class<'_>], rest: &Rest, prices: &[f64], pool: &mut Vec<Column>) {
    let (shape_prices, class_prices) = prices.split_at(rest.want.len());
    for (number, class) in classes.iter().enumerate().filter(|(number, _)| rest.cards[*number] > 0) {
        let layout = pricing::best(class.geometry, class.placed, class.serves, &rest.want, shape_prices);
        let fair = f64::from(class.cost) + class_prices[number];
        if layout.worth <= fair + 1e-7 || layout.adds.is_empty() {
            continue;
        }
        let mut counts = vec![0u32; rest.want.len()];
        for (shape, _) in &layout.adds {
            counts[*shape] += 1;
        }
        let mut placed = class.placed.to_vec();
        let adds = layout.adds.into_iter().filter(|(shape, share)| {
            // Where a limit was left out of the search, what is too many goes; so do engines, which it does not see.
            let engines = class.geometry.kind(share.kind).is_some_and(|kind| !kind.engines.is_none());
            let keep = counts[*shape] <= rest.want[*shape]
                && (!engines || class.geometry.check(&placed, *share).is_ok());
            if keep {
                placed.push(*share);
            } else {
                counts[*shape] -= 1;
            }
            keep
        });
        let adds: Vec<_> = adds.collect();
        let column = Column { class: number, counts, layout: Layout { worth: 0.0, adds } };
        if !pool.iter().any(|other| other.class == column.class && other.counts == column.counts) {
            pool.push(column);
        }
    }
}
