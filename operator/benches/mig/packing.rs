//! Sets of shares that are known together.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use gpudesk_placement::{
    batch::{self, Class, Plan, Want},
    lookahead::Placed,
};
use serde_json::json;

use crate::fixtures::{self, Instance};

/// Cards and time of the instances of one mix.
#[derive(Default)]
struct Sum {
    ours: u64,
    greedy: u64,
    fewest: u64,
    worst: f64,
    best: f64,
    slowest_ms: f64,
    instances: u32,
}

/// Runs all fixtures of these mixes (all when none is named); `clock` starts one that tells milliseconds.
pub(crate) fn run<F: FnOnce() -> f64>(mixes: &[String], clock: impl Fn() -> F) -> Result<()> {
    let mut sums: BTreeMap<(String, String, bool), Sum> = BTreeMap::new();
    for instance in fixtures::all()? {
        if !mixes.is_empty() && !mixes.contains(&instance.mix) {
            continue;
        }
        let elapsed = clock();
        let plan = planned(&instance)?;
        let took = elapsed();
        let greedy = first_fit_decreasing(&instance);
        ensure!(
            plan.cost >= instance.fewest,
            "{} {}: fewer cards than possible",
            instance.card,
            instance.mix
        );
        let key = (instance.card, instance.mix, !instance.used.is_empty());
        let sum = sums.entry(key).or_insert_with(|| Sum { best: f64::MAX, ..Sum::default() });
        sum.ours += plan.cost;
        sum.greedy += greedy;
        sum.fewest += instance.fewest;
        sum.instances += 1;
        sum.slowest_ms = sum.slowest_ms.max(took);
        let ratio = ratio(plan.cost, instance.fewest);
        sum.worst = sum.worst.max(ratio);
        sum.best = sum.best.min(ratio);
    }
    for ((card, mix, in_use), sum) in &sums {
        println!(
            "{}",
            json!({
                "bench": "mig-batch", "card": card, "mix": mix, "cards_in_use": in_use, "measure": "cards_used",
                "ours": sum.ours, "baseline": sum.greedy, "baseline_name": "first-fit-decreasing",
                "fewest": sum.fewest, "ratio": ratio(sum.ours, sum.fewest),
                "baseline_ratio": ratio(sum.greedy, sum.fewest), "spread": [sum.best, sum.worst],
                "instances": sum.instances, "slowest_ms": (sum.slowest_ms * 100.0).round() / 100.0,
            })
        );
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "small counts")]
fn ratio(cards: u64, fewest: u64) -> f64 {
    if fewest == 0 && cards == 0 {
        return 1.0;
    }
    (cards as f64 / fewest.max(1) as f64 * 1e4).round() / 1e4
}

fn planned(instance: &Instance) -> Result<Plan> {
    let kinds = instance.geometry.kinds.len();
    let serves: Vec<Option<u16>> = (0u16..).take(kinds).map(Some).collect();
    let class =
        |placed, count, cost| Class { geometry: &instance.geometry, placed, count, cost, serves: &serves };
    let in_use = instance.used.iter().map(|(placed, count)| class(placed.as_slice(), *count, 0));
    let classes: Vec<Class<'_>> = [class(&[], 1 << 20, 1)].into_iter().chain(in_use).collect();
    let wants = instance.wanted.iter().zip(&instance.geometry.kinds);
    let want = |(count, kind): (&u32, &gpudesk_placement::lookahead::Kind)| Want {
        count: *count,
        worth: u32::try_from(kind.size).unwrap_or(1),
    };
    let want: Vec<Want> = wants.map(want).collect();
    let plan = batch::plan(&classes, &want);
    let mut left = instance.wanted.clone();
    for card in &plan.cards {
        let mut placed = classes[card.class].placed.to_vec();
        for (shape, add) in &card.adds {
            ensure!(
                instance.geometry.choices(&placed, add.kind).contains(add),
                "{add:?} does not fit {placed:?}"
            );
            placed.push(*add);
            left[*shape] = left[*shape].saturating_sub(card.times);
        }
    }
    ensure!(left.iter().all(|left| *left == 0), "{} {}: {left:?} not placed", instance.card, instance.mix);
    Ok(plan)
}

/// The largest first, each on the first card that has a start for it, cards in use before empty ones.
fn first_fit_decreasing(instance: &Instance) -> u64 {
    let mut order: Vec<u16> = (0u16..).take(instance.geometry.kinds.len()).collect();
    let key = |kind: &u16| instance.geometry.kind(*kind).map(|kind| (kind.size, kind.slices));
    order.sort_by_key(|kind| std::cmp::Reverse(key(kind)));
    let in_use = instance.used.iter().flat_map(|(placed, count)| (0..*count).map(|_| placed.clone()));
    let mut cards: Vec<Vec<Placed>> = in_use.collect();
    let before = cards.len();
    for kind in order {
        let mut from = 0;
        for _ in 0..instance.wanted[usize::from(kind)] {
            loop {
                if from == cards.len() {
                    cards.push(vec![]);
                }
                if let Some(add) = instance.geometry.choices(&cards[from], kind).first() {
                    cards[from].push(*add);
                    break;
                }
                from += 1;
            }
        }
    }
    u64::try_from(cards.len() - before).unwrap_or(u64::MAX)
}
