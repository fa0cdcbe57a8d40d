//! Shares that come and go.

use std::{cmp::Reverse, collections::BinaryHeap};

use clap::ValueEnum;
use gpudesk_placement::lookahead::Placed;
use serde_json::json;

use crate::{
    Options,
    cards::{self, Card, Mix},
    rules::{Rule, States},
};

/// Lifetimes that a round lasts; those before [`WARM`] are not counted.
const ROUND: f64 = 60.0;
const WARM: f64 = 10.0;

/// How long shares live; 1 on average.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Lifetime {
    /// Without memory.
    Exponential,
    /// All the same.
    Fixed,
    /// One in twenty lives 21 times as long as the rest.
    Heavy,
}

/// Random numbers: `SplitMix64` (Steele, Lea and Flood, 2014).
pub(crate) struct Random(u64);

impl Random {
    /// From a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(7919).wrapping_add(13))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Between 0 and 1, neither of them.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    fn fraction(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Exponential with mean 1.
    pub(crate) fn exponential(&mut self) -> f64 {
        -self.fraction().ln()
    }
}

/// A request: when it comes, what it wants, how long it stays.
struct Arrival {
    time: f64,
    kind: usize,
    life: f64,
}

fn arrivals(seed: u64, rate: f64, mix: &Mix, lifetime: Lifetime) -> Vec<Arrival> {
    let mut random = Random::new(seed);
    let (mut time, mut arrivals) = (0.0, vec![]);
    loop {
        time += random.exponential() / rate;
        if time > ROUND {
            return arrivals;
        }
        let mut left = random.fraction();
        let kind = mix.shares.iter().position(|share| {
            left -= share;
            left < 0.0 && *share > 0.0
        });
        let kind = kind.or_else(|| mix.shares.iter().rposition(|share| *share > 0.0)).unwrap_or(0);
        let (which, life) = (random.fraction(), random.exponential());
        let life = match lifetime {
            Lifetime::Exponential => life,
            Lifetime::Fixed => 1.0,
            Lifetime::Heavy if which < 0.95 => life * 0.5,
            Lifetime::Heavy => life * 10.5,
        };
        arrivals.push(Arrival { time, kind, life });
    }
}

/// What became of the arrivals of a round.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    slices: f64,
    requests: f64,
    largest_refused: f64,
}

struct Counter<'a> {
    card: &'a Card,
    largest: usize,
    offered: Tally,
    tally: Tally,
}

impl Counter<'_> {
    fn count(&mut self, arrival: &Arrival, accepted: bool) {
        if arrival.time < WARM {
            return;
        }
        let slices = f64::from(self.card.geometry.kinds[arrival.kind].slices);
        let largest = f64::from(u8::from(arrival.kind == self.largest));
        self.offered.slices += slices;
        self.offered.requests += 1.0;
        self.offered.largest_refused += largest;
        if accepted {
            self.tally.slices += slices;
            self.tally.requests += 1.0;
        } else {
            self.tally.largest_refused += largest;
        }
    }

    /// As parts of what was offered.
    fn parts(&self) -> Tally {
        Tally {
            slices: self.tally.slices / self.offered.slices,
            requests: self.tally.requests / self.offered.requests,
            largest_refused: self.tally.largest_refused / self.offered.largest_refused.max(1.0),
        }
    }
}

/// Ends first first: the bits of a time that is not negative have its order.
type Ends<T> = BinaryHeap<(Reverse<u64>, T)>;

fn ended<T: Ord + Copy>(ends: &mut Ends<T>, now: f64) -> Option<T> {
    let due = ends.peek().is_some_and(|(Reverse(end), _)| f64::from_bits(*end) <= now);
    if due { ends.pop().map(|(_, what)| what) } else { None }
}

fn churn(
    states: &States,
    rule: &Rule,
    cards: usize,
    arrivals: &[Arrival],
    mut counter: Counter<'_>,
) -> Tally {
    let mut cards = vec![0usize; cards];
    let mut ends: Ends<(usize, Placed)> = BinaryHeap::new();
    for arrival in arrivals {
        while let Some((card, share)) = ended(&mut ends, arrival.time) {
            cards[card] = states.without(cards[card], share);
        }
        let choices =
            cards.iter().enumerate().filter_map(|(card, state)| Some((card, rule[arrival.kind][*state]?)));
        let best = choices.min_by_key(|(_, choice)| choice.rank);
        counter.count(arrival, best.is_some());
        if let Some((card, choice)) = best {
            cards[card] = choice.next;
            ends.push((Reverse((arrival.time + arrival.life).to_bits()), (card, choice.add)));
        }
    }
    counter.parts()
}

/// Everything may move at every arrival.
fn repack(card: &Card, cards: usize, arrivals: &[Arrival], mut counter: Counter<'_>) -> Tally {
    let cards = i64::try_from(cards).unwrap_or(i64::MAX);
    let mut counts = vec![0i64; card.geometry.kinds.len()];
    let mut ends: Ends<usize> = BinaryHeap::new();
    for arrival in arrivals {
        while let Some(kind) = ended(&mut ends, arrival.time) {
            counts[kind] -= 1;
        }
        counts[arrival.kind] += 1;
        let fits = (card.fits)(cards, &counts);
        counter.count(arrival, fits);
        if fits {
            ends.push((Reverse((arrival.time + arrival.life).to_bits()), arrival.kind));
        } else {
            counts[arrival.kind] -= 1;
        }
    }
    counter.parts()
}

/// Rounds of one rule beside another.
struct Compared {
    ours: f64,
    baseline: f64,
    spread: [f64; 2],
    difference: f64,
    margin: f64,
}

#[expect(clippy::cast_precision_loss, reason = "few rounds")]
fn compare(ours: &[f64], baseline: &[f64]) -> Compared {
    let rounds = ours.len() as f64;
    let mean = |all: &[f64]| all.iter().sum::<f64>() / rounds;
    let pairs = || ours.iter().zip(baseline);
    let ratios = pairs().map(|(ours, baseline)| if *baseline > 0.0 { ours / baseline } else { 1.0 });
    let spread = ratios.fold([f64::MAX, f64::MIN], |[low, high], ratio| [low.min(ratio), high.max(ratio)]);
    let difference = mean(ours) - mean(baseline);
    let squares: f64 = pairs().map(|(ours, baseline)| (ours - baseline - difference).powi(2)).sum();
    let margin = 2.0 * (squares / (rounds - 1.0).max(1.0) / rounds).sqrt();
    Compared { ours: mean(ours), baseline: mean(baseline), spread, difference, margin }
}

fn rounded(number: f64) -> f64 {
    (number * 1e5).round() / 1e5
}

/// Runs all cards, mixes and loads, and prints their lines and one for all together.
pub(crate) fn run(options: &Options) {
    let chosen = |names: &[String], name: &str| names.is_empty() || names.iter().any(|other| other == name);
    for card in cards::all().iter().filter(|card| chosen(&options.geometries, card.name)) {
        let states = States::new(&card.geometry);
        let (best_fit, first_fit) = (states.best_fit(&card.geometry), states.first_fit());
        let (mut gained, mut gained_by_starts) = (0.0, 0.0);
        let (mut gap, mut below, mut worst) = (0.0, 0, (f64::MAX, String::new()));
        for mix in card.mixes(options.random_mixes).iter().filter(|mix| chosen(&options.mixes, &mix.name)) {
            let (ours, starts) = (states.look_ahead(card, mix, true), states.look_ahead(card, mix, false));
            let rules = [&ours, &best_fit, &first_fit, &starts];
            for load in &options.loads {
                let rounds = rounds(options, card, &states, &rules, mix, *load);
                let slices = compare(&pick(&rounds, 0, |t| t.slices), &pick(&rounds, 1, |t| t.slices));
                let ideal = compare(&pick(&rounds, 3, |t| t.slices), &pick(&rounds, 1, |t| t.slices));
                let starts = compare(&pick(&rounds, 4, |t| t.slices), &pick(&rounds, 1, |t| t.slices));
                gained += slices.difference;
                gained_by_starts += starts.difference;
                gap += ideal.difference;
                below += usize::from(slices.difference + slices.margin < 0.0);
                if slices.difference < worst.0 {
                    worst = (slices.difference, format!("{} at {load}", mix.name));
                }
                print(card, mix, *load, &rounds, &ideal);
            }
        }
        println!(
            "{}",
            json!({
                "bench": "mig-churn", "card": card.name, "mix": "all", "measure": "gap_closed",
                "lifetime": format!("{:?}", options.lifetime), "gap_closed": rounded(gained / gap.max(1e-9)),
                "gap_closed_without_prices": rounded(gained_by_starts / gap.max(1e-9)),
                "below_best_fit": below, "worst_difference": rounded(worst.0), "worst": worst.1,
            })
        );
    }
}

/// By round: look-ahead, best-fit, first-fit, free repacking, look-ahead without prices.
fn rounds(
    options: &Options,
    card: &Card,
    states: &States,
    rules: &[&Rule; 4],
    mix: &Mix,
    load: f64,
) -> Vec<[Tally; 5]> {
    #[expect(clippy::cast_precision_loss, reason = "few cards")]
    let rate = card.capacity(mix) * load * options.cards as f64;
    let largest = mix.shares.iter().rposition(|share| *share > 0.0).unwrap_or(0);
    let round = |seed: u64| {
        let arrivals = arrivals(seed, rate, mix, options.lifetime);
        let counter = || Counter { card, largest, offered: Tally::default(), tally: Tally::default() };
        let [ours, best, first, starts] =
            rules.map(|rule| churn(states, rule, options.cards, &arrivals, counter()));
        [ours, best, first, repack(card, options.cards, &arrivals, counter()), starts]
    };
    (0..options.seeds).map(round).collect()
}

type Part = fn(&Tally) -> f64;

fn pick(rounds: &[[Tally; 5]], rule: usize, part: Part) -> Vec<f64> {
    rounds.iter().map(|round| part(&round[rule])).collect()
}

fn print(card: &Card, mix: &Mix, load: f64, rounds: &[[Tally; 5]], ideal: &Compared) {
    let parts: [(&str, Part); 3] = [
        ("slices_accepted", |tally| tally.slices),
        ("requests_accepted", |tally| tally.requests),
        ("largest_refused", |tally| tally.largest_refused),
    ];
    for (measure, part) in parts {
        for (baseline_name, rule) in [("best-fit", 1), ("first-fit", 2)] {
            let compared = compare(&pick(rounds, 0, part), &pick(rounds, rule, part));
            let mut line = json!({
                "bench": "mig-churn", "card": card.name, "mix": mix.name, "load": load, "measure": measure,
                "ours": rounded(compared.ours), "baseline": rounded(compared.baseline),
                "baseline_name": baseline_name, "spread": compared.spread.map(rounded),
                "ratio": if compared.baseline > 0.0 { rounded(compared.ours / compared.baseline) } else { 1.0 },
                "difference": rounded(compared.difference), "margin": rounded(compared.margin),
            });
            // Below this the ideal is no better than chance.
            if measure == "slices_accepted" && rule == 1 && ideal.difference > 0.002 {
                line["free_repacking"] = json!(rounded(ideal.ours));
                line["gap_closed"] = json!(rounded(compared.difference / ideal.difference));
            }
            println!("{line}");
        }
    }
}
