//! From fractions of cards to whole ones.

use super::{
    Class, Plan, Planned, Want,
    program::{self, Column, Relaxed, Rest},
};

/// Programs solved in search of a better rounding, each time that less is taken of the whole part.
const PROGRAMS: usize = 100;
/// How many cards of each layout are held back from the whole part, one attempt after the other: the
/// best plan does not always contain all of it.
const HOLD_BACK: [u32; 4] = [0, 1, 2, 4];
/// A request unmet costs more than any number of cards that it could save.
const UNMET: f64 = 1e4;

struct Rounding<'a> {
    classes: &'a [Class<'a>],
    penalty: Vec<f64>,
    pool: Vec<Column>,
    programs: usize,
    hold_back: u32,
    bound: f64,
    best: Option<(f64, Vec<Planned>, Rest)>,
}

pub(super) fn plan(classes: &[Class<'_>], want: &[Want]) -> Plan {
    let rest = Rest {
        want: want.iter().map(|want| want.count).collect(),
        cards: classes.iter().map(|class| class.count).collect(),
    };
    let penalty = want.iter().map(|want| UNMET * f64::from(want.worth.max(1))).collect();
    let mut rounding =
        Rounding { classes, penalty, pool: vec![], programs: 0, hold_back: 0, bound: 0.0, best: None };
    let relaxed = rounding.relax(&rest);
    rounding.bound = (relaxed.cost - 1e-6).ceil();
    for hold_back in HOLD_BACK {
        if !rounding.settled() {
            (rounding.hold_back, rounding.programs) = (hold_back, 0);
            rounding.search(&relaxed, rest.clone(), 0.0, vec![]);
        }
    }
    let least = whole(rounding.bound);
    let Some((_, cards, rest)) = rounding.best else { return Plan { least, ..Plan::default() } };
    let cost = |planned: &Planned| u64::from(planned.times) * u64::from(classes[planned.class].cost);
    Plan { cost: cards.iter().map(cost).sum(), unmet: rest.want, cards, least }
}

/// A number of cards that a program found.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it is whole, small and not negative"
)]
fn whole(number: f64) -> u64 {
    number.max(0.0) as u64
}

impl Rounding<'_> {
    fn relax(&mut self, rest: &Rest) -> Relaxed {
        self.programs += 1;
        program::relax(self.classes, rest, &self.penalty, &mut self.pool)
    }

    fn settled(&self) -> bool {
        self.best.as_ref().is_some_and(|(cost, _, _)| *cost <= self.bound + 1e-6)
    }

    /// Takes the whole part of the solution, then tries the broken layouts, largest fraction first.
    fn search(&mut self, relaxed: &Relaxed, mut rest: Rest, mut cost: f64, mut cards: Vec<Planned>) {
        let mut took_some = false;
        for (column, amount) in &relaxed.amounts {
            let times = u32::try_from(whole(amount + 1e-6)).unwrap_or(0).saturating_sub(self.hold_back);
            took_some |= times > 0;
            self.take(column, times, &mut rest, &mut cost, &mut cards);
        }
        let held = f64::from(self.hold_back);
        let fraction = |amount: f64| (amount + 1e-6).fract() + (amount + 1e-6).floor().min(held);
        let mut broken: Vec<(&Column, f64)> =
            relaxed.amounts.iter().map(|(column, amount)| (column, fraction(*amount))).collect();
        broken.retain(|(_, fraction)| *fraction > 1e-5);
        broken.sort_by(|a, b| b.1.total_cmp(&a.1));
        if rest.want.iter().all(|want| *want == 0) || (broken.is_empty() && !took_some) {
            return self.offer(rest, cost, cards);
        }
        if broken.is_empty() {
            let relaxed = self.relax(&rest);
            if relaxed.amounts.is_empty() {
                return self.offer(rest, cost, cards);
            }
            return self.search(&relaxed, rest, cost, cards);
        }
        for (nth, (column, _)) in broken.iter().enumerate() {
            if self.settled() || (nth > 0 && self.programs >= PROGRAMS) {
                return;
            }
            let (mut rest, mut cost, mut cards) = (rest.clone(), cost, cards.clone());
            self.take(column, 1, &mut rest, &mut cost, &mut cards);
            let relaxed = self.relax(&rest);
            let hope = cost + (relaxed.cost - 1e-6).ceil();
            if self.best.as_ref().is_some_and(|(best, _, _)| hope >= *best) {
                continue;
            }
            self.search(&relaxed, rest, cost, cards);
        }
    }

    /// Puts a layout on so many cards, as far as there are cards and requests.
    fn take(&self, column: &Column, times: u32, rest: &mut Rest, cost: &mut f64, cards: &mut Vec<Planned>) {
        let class = column.class;
        let mut left = times.min(rest.cards[class]);
        while left > 0 {
            let per_shape = column.counts.iter().zip(&rest.want).filter(|(has, _)| **has > 0);
            let full = per_shape.map(|(has, want)| want / has).min().unwrap_or(0).min(left);
            let times = full.max(1);
            let mut left_of = rest.want.clone();
            let fits = |shape: usize, of: &mut Vec<u32>| {
                let enough = of[shape] > 0;
                of[shape] = of[shape].saturating_sub(1);
                enough
            };
            let adds = column.layout.adds.iter().filter(|(shape, _)| fits(*shape, &mut left_of));
            let adds: Vec<_> = adds.copied().collect();
            if adds.is_empty() {
                return;
            }
            for (shape, _) in &adds {
                rest.want[*shape] -= times;
            }
            rest.cards[class] -= times;
            *cost += f64::from(times) * f64::from(self.classes[class].cost);
            left -= times;
            cards.push(Planned { class, times, adds });
        }
    }

    fn offer(&mut self, rest: Rest, cost: f64, cards: Vec<Planned>) {
        let unmet: f64 =
            rest.want.iter().zip(&self.penalty).map(|(want, penalty)| f64::from(*want) * penalty).sum();
        let total = cost + unmet;
        if self.best.as_ref().is_none_or(|(best, _, _)| total < *best - 1e-6) {
            self.best = Some((total, cards, rest));
        }
    }
}
