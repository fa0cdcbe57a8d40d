//! What a decision costs: against looking at every node, and as the estate grows.
//!
//! Nodes with two sockets and eight cards that do MIG; 72,000 desktops defined, so many of them running
//! that nine tenths of the cards' slices are taken; then one comes and one goes. Both sides decide the
//! same requests on the same estate in turns, and every score must be equal. Then what more demands cost,
//! and how long the placement lock is held while two thousand desktops wait: see `load`.
//!
//! ```console
//! $ cargo bench -p gpudesk-placement --bench placement [-- --rounds N] [--nodes 10,100] [--chart FILE.svg]
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, clippy::cast_precision_loss)]

#[path = "../chart.rs"]
mod chart;
mod estate;
mod figures;
mod load;

use std::time::{Duration, Instant};

use estate::{Bench, MIXES};
use figures::{Measure, quantile};

/// Decisions of one round, for each mix.
const DECISIONS: usize = 400;
/// Of those, how many are decided by looking at every node as well.
const EXHAUSTIVE: usize = 12;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |flag: &str| {
        arguments.iter().position(|argument| argument == flag).and_then(|at| arguments.get(at + 1)).cloned()
    };
    if arguments.iter().any(|argument| argument == "--help") {
        println!(
            "Usage: placement [--rounds N (5)] [--nodes 10,100,1000,5000] [--load no] [--chart FILE.svg]"
        );
        return;
    }
    let rounds: usize =
        after("--rounds").map_or(5, |rounds| rounds.parse().expect("--rounds takes a number"));
    let sizes: Vec<usize> = after("--nodes")
        .unwrap_or_else(|| "10,100,1000,5000".into())
        .split(',')
        .filter(|size| !size.is_empty())
        .map(|size| size.parse().expect("--nodes takes numbers, like 10,100"))
        .collect();
    let mut measures: Vec<Measure> = vec![];
    let mut medians: Vec<Vec<Vec<f64>>> = vec![];
    for size in &sizes {
        eprintln!("{size} nodes");
        let mut per_mix = vec![];
        for mix in MIXES {
            let mut bench = Bench::new(*size, mix);
            per_mix.push(run(&mut bench, rounds, &mut measures));
        }
        medians.push(per_mix);
    }
    growth(&sizes, &medians, &mut measures);
    if after("--load").is_none_or(|load| load != "no") {
        under_load(rounds, &mut measures);
    }
    for measure in &measures {
        measure.print();
    }
    if let Some(file) = after("--chart") {
        let points: Vec<(String, f64)> = measures
            .iter()
            .filter(|measure| measure.name.starts_with("placement.exhaustive-over-decision"))
            .map(|measure| (measure.name.rsplit('.').next().unwrap_or_default().to_owned(), measure.ratio()))
            .collect();
        std::fs::write(
            &file,
            chart::bars("Looking at every node, over a decision (higher is better)", &points),
        )
        .expect("the chart can be written");
    }
    if measures.iter().any(|measure| !measure.holds()) {
        eprintln!("a floor is missed");
        std::process::exit(1);
    }
}

/// One size and one mix. Returns the median decision of each round, in seconds.
fn run(bench: &mut Bench, rounds: usize, measures: &mut Vec<Measure>) -> Vec<f64> {
    let label = bench.label();
    let mut ratios =
        Measure::new(&format!("placement.exhaustive-over-decision.{label}"), "ours", "every node looked at");
    if bench.nodes >= 5000 {
        ratios.at_least = Some((10.0, 50.0));
    }
    let mut tails = Measure::new(&format!("placement.p99-over-p50.{label}"), "p99", "p50");
    tails.at_most = Some((10.0, 4.0));
    let mut medians = vec![];
    for _ in 0..rounds {
        let (mut ours, mut all): (Vec<Duration>, Vec<Duration>) = (vec![], vec![]);
        for number in 0..DECISIONS {
            let request = bench.next_request();
            if number % (DECISIONS / EXHAUSTIVE) == 0 {
                let started = Instant::now();
                let best = bench.snapshot.best_score_of_all(&request);
                all.push(started.elapsed());
                let placed = bench.snapshot.place(&request).ok();
                let found = placed.map(|placed| (placed.score, placed.node));
                assert_eq!(best, found, "the decision is not the best of all");
            }
            let started = Instant::now();
            let placed = bench.decide_and_take(&request);
            ours.push(started.elapsed());
            bench.release_one(placed.as_ref());
        }
        let (p50, p99) = (quantile(&ours, 0.5), quantile(&ours, 0.99));
        // The same statistic on both sides: the mean, which a slow tail cannot hide in.
        let mean =
            |times: &[Duration]| times.iter().map(Duration::as_secs_f64).sum::<f64>() / times.len() as f64;
        ratios.add(mean(&all), mean(&ours));
        tails.add(p99, p50);
        medians.push(p50);
    }
    measures.push(ratios);
    measures.push(tails);
    let mut bytes = Measure::new(&format!("placement.bytes-per-card.{label}"), "bytes", "cards");
    bytes.add(bench.bytes as f64, (bench.nodes * estate::CARDS) as f64);
    measures.push(bytes);
    medians
}

/// How a decision grows with the estate: 5,000 nodes over 100.
fn growth(sizes: &[usize], medians: &[Vec<Vec<f64>>], measures: &mut Vec<Measure>) {
    let (Some(small), Some(large)) =
        (sizes.iter().position(|size| *size == 100), sizes.iter().position(|size| *size == 5000))
    else {
        return;
    };
    for (position, mix) in MIXES.iter().enumerate() {
        let mut measure =
            Measure::new(&format!("placement.p50-5000-over-100.{}", mix.name), "5,000 nodes", "100 nodes");
        measure.at_most = Some((4.0, 1.5));
        for (large, small) in medians[large][position].iter().zip(&medians[small][position]) {
            measure.add(*large, *small);
        }
        measures.push(measure);
    }
}

/// What more demands cost, and how long the lock is held.
fn under_load(rounds: usize, measures: &mut Vec<Measure>) {
    let mut demands = Measure::new("placement.demands-120-over-48", "120 demands", "48 demands");
    demands.at_most = Some((1.5, 1.2));
    for round in 0..rounds.min(3) {
        demands.add(load::fill(120, round as u64), load::fill(48, round as u64));
    }
    measures.push(demands);
    let (holds, thinker) = load::holds(120);
    let goal = Some((5.0, 2.0));
    let rows = [
        ("lock-held-p50", &holds, 0.5, None),
        ("lock-held-p99", &holds, 0.99, goal),
        ("lock-held-max", &holds, 1.0, None),
        ("lock-held-by-thinker-max", &thinker, 1.0, None),
    ];
    for (name, holds, at, at_most) in rows {
        let mut measure = Measure::new(&format!("placement.{name}"), "milliseconds", "1");
        measure.at_most = at_most;
        measure.add(1000.0 * quantile(holds, at), 1.0);
        measures.push(measure);
    }
}
