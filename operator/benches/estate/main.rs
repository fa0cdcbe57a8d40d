//! How much of a mixed estate the placement engine fills, over the most that any placement of the same
//! desktops can. One JSON line per measure; a round is an order of arrival, the same for all rules.
//!
//! Nodes have two cells and cards that do MIG, time-sliced vGPUs of one size or of several, and are given
//! away whole; cores and hugepages are dedicated, and scarce in some mixes. More is asked for than fits.
//! All desktops are switched on at once and decided one by one in random order, and none leaves or is
//! refused while it fits. What is counted is GiB of GPU memory: the framebuffer that a share is named after.
//!
//! - `estate/MIX`: over the optimum, which may choose whom to leave out; `fixtures.json` holds it,
//!   `optimum.py` wrote it. `estate/worst` is the worst mix of each round.
//! - `estate-best-fit/MIX`: the same for best-fit.
//! - `estate-judged/PRICES`: `estate` over all mixes where cards are judged by some of the prices only, beside
//!   the lines of code of all prices.
//! - `estate-planner/MIX`: the same for the batch planner, which sees the cards only, where cores and
//!   pages suffice.
//! - `estate-light/MIX`: as `estate`, but everything fits.
//! - `estate-local/MIX`, `estate-light-local/MIX`: desktops on the cell of their card over desktops placed,
//!   where an optimum has all of them there.

mod engine;
mod figures;
mod fixtures;
mod known;
mod rules;

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use clap::Parser;

use engine::{Estate, Judged};
use figures::Measure;
use fixtures::{Fixtures, Instance};
use rules::{Ledger, Rules};

/// Floor and goal of the part of the optimum that is placed.
const PLACED: (f64, f64) = (0.97, 0.995);
/// Floor and goal of what is placed on the cell of its card.
const LOCAL: (f64, f64) = (0.97, 1.0);
/// What prices are made of.
const PRICES: [&str; 5] = [
    include_str!("../../placement/src/prices.rs"),
    include_str!("../../placement/src/lookahead/fill.rs"),
    include_str!("../../placement/src/batch/program.rs"),
    include_str!("../../placement/src/batch/pricing.rs"),
    include_str!("../../placement/src/batch/simplex.rs"),
];
/// Desktops of these ask for less than there is.
const LIGHT: f64 = 1.0;

/// Fills mixed estates and prints one JSON line per measure.
#[derive(Debug, Parser)]
#[command(name = "estate")]
struct Options {
    /// Orders of arrival.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Mixes by name, comma separated; all when absent.
    #[arg(long, value_delimiter = ',')]
    mixes: Vec<String>,
    /// GPU memory asked for, of all that there is, comma separated; all when absent.
    #[arg(long, value_delimiter = ',')]
    loads: Vec<f64>,
    /// Passed by `cargo bench`; means nothing here.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A small generator of random numbers (splitmix64), the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn order(count: usize, round: usize) -> Result<Vec<usize>> {
    let mut random = Random(u64::try_from(round)?);
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last, usize::try_from(random.next() % (u64::try_from(last)? + 1))?);
    }
    Ok(order)
}

/// The measures of one mix.
struct Measures {
    ours: Measure,
    best_fit: Measure,
    planner: Measure,
    light: Measure,
    local: Measure,
    light_local: Measure,
}

impl Measures {
    fn new(mix: &str, rounds: usize) -> Self {
        let measure = |kind: &str, of, at_least| Measure::new(format!("{kind}/{mix}"), of, at_least, rounds);
        Self {
            ours: measure("estate", ["ours", "optimum"], Some(PLACED)),
            best_fit: measure("estate-best-fit", ["best-fit", "optimum"], None),
            planner: measure("estate-planner", ["batch-planner", "optimum"], None),
            light: measure("estate-light", ["ours", "optimum"], Some(PLACED)),
            local: measure("estate-local", ["local", "placed"], None),
            light_local: measure("estate-light-local", ["local", "placed"], Some(LOCAL)),
        }
    }

    fn run(
        &mut self,
        fixtures: &Fixtures,
        rules: &BTreeMap<String, Rules>,
        instance: &Instance,
        rounds: usize,
        by_prices: &mut [(Judged, Measure)],
    ) -> Result<()> {
        let Self { ours, best_fit, planner, light, local, light_local } = self;
        let estate = Estate::new(fixtures, instance)?;
        let (ours, local) = if instance.load < LIGHT { (light, light_local) } else { (ours, local) };
        let known = (instance.load > LIGHT && !instance.mix.starts_with("few-"))
            .then(|| known::placed(fixtures, rules, instance))
            .transpose()?;
        for round in 0..rounds {
            let order = order(instance.arrivals.len(), round)?;
            let found = estate.run(fixtures, rules, instance, &order, Judged::All)?;
            for (judged, measure) in by_prices.iter_mut().filter(|_| instance.load > LIGHT) {
                let worth = match judged {
                    Judged::All => found.worth,
                    _ => estate.run(fixtures, rules, instance, &order, *judged)?.worth,
                };
                measure.add(round, worth, instance.bound);
            }
            ensure!(
                found.worth <= instance.bound,
                "{} of {} in {}",
                found.worth,
                instance.bound,
                instance.mix
            );
            ours.add(round, found.worth, instance.bound);
            if instance.local {
                local.add(round, i64::from(found.local), i64::from(found.placed));
            }
            if let Some(known) = known {
                planner.add(round, known, instance.bound);
            }
            if instance.load > LIGHT {
                let mut ledger = Ledger::new(rules, &instance.nodes)?;
                let mut worth = 0;
                for of in
                    order.iter().filter_map(|number| instance.types.get(*instance.arrivals.get(*number)?))
                {
                    if ledger.best_fit(of) {
                        worth += fixtures.wishes.get(&of.wish).map_or(0, |wish| wish.worth);
                    }
                }
                best_fit.add(round, worth, instance.bound);
            }
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(options.rounds > 0, "at least one round");
    let fixtures = fixtures::all(include_str!("fixtures.json"))?;
    let rules = Rules::all(&fixtures)?;
    let mut by_mix: Vec<(&str, Measures)> = vec![];
    let mut by_prices = [
        (Judged::All, "estate-judged/all-prices"),
        (Judged::Defined, "estate-judged/prices-of-what-is-defined"),
        (Judged::Waiting, "estate-judged/prices-of-who-waits"),
        (Judged::None, "estate-judged/no-prices"),
    ]
    .map(|(judged, name)| (judged, Measure::new(name.into(), ["ours", "optimum"], None, options.rounds)));
    for instance in &fixtures.instances {
        let wanted = (options.mixes.is_empty() || options.mixes.contains(&instance.mix))
            && (options.loads.is_empty() || options.loads.contains(&instance.load));
        if !wanted {
            continue;
        }
        if by_mix.iter().all(|(mix, _)| *mix != instance.mix) {
            by_mix.push((&instance.mix, Measures::new(&instance.mix, options.rounds)));
        }
        if let Some((_, measures)) = by_mix.iter_mut().find(|(mix, _)| *mix == instance.mix) {
            measures.run(&fixtures, &rules, instance, options.rounds, &mut by_prices)?;
        }
    }
    let mut worst = Measure::new("estate/worst".into(), ["ours", "optimum"], Some(PLACED), options.rounds);
    for (_, measures) in &by_mix {
        let Measures { ours, best_fit, planner, light, local, light_local } = measures;
        worst.take_worse(ours);
        for measure in [ours, best_fit, planner, local, light, light_local] {
            measure.print();
        }
    }
    worst.print();
    for (_, measure) in &by_prices {
        measure.print();
    }
    let lines: usize = PRICES.iter().map(|of| of.lines().count()).sum();
    println!("{}", serde_json::json!({"measure": "estate-judged/lines-of-prices", "lines": lines}));
    Ok(())
}
