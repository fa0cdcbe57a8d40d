//! How well MIG cards are packed: shares that come and go without migration, and sets of shares known
//! together. One JSON line per measure; every rule sees the same arrivals and lifetimes.
//!
//! - `mig-churn`: requests arrive at random and leave after a random time; one that finds no start is
//!   lost. Measured against best-fit (fullest card by memory units; of its starts the one that leaves
//!   the most placements) and first-fit. `gap_closed` says how far from best-fit to an ideal that may
//!   move everything at every arrival.
//! - `mig-batch`: cards used over the fewest possible; `fixtures.json` holds those, `optimum.py` wrote it.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

mod cards;
mod churn;
mod fixtures;
mod packing;
mod rules;

use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Parser;

use churn::Lifetime;

/// Packs MIG cards and prints one JSON line per measure.
#[derive(Debug, Parser)]
#[command(name = "mig")]
struct Options {
    /// Rounds, each with its own random arrivals.
    #[arg(long, default_value_t = 5)]
    seeds: u64,
    /// Cards in the estate.
    #[arg(long, default_value_t = 100)]
    cards: usize,
    /// Mixes by name, comma separated; all when absent.
    #[arg(long, value_delimiter = ',')]
    mixes: Vec<String>,
    /// Random mixes beside the named ones.
    #[arg(long, default_value_t = 12)]
    random_mixes: u64,
    /// Offered load, of what the cards hold of the mix when packed best.
    #[arg(long, value_delimiter = ',', default_values_t = [0.7, 0.8, 0.9, 1.0, 1.1])]
    loads: Vec<f64>,
    /// How long shares live.
    #[arg(long, value_enum, default_value_t = Lifetime::Exponential)]
    lifetime: Lifetime,
    /// Cards by name (seven-slices, four-slices), comma separated; all when absent.
    #[arg(long, value_delimiter = ',')]
    geometries: Vec<String>,
    /// Only `churn` or only `batch`.
    #[arg(long)]
    only: Option<String>,
    /// Passed by `cargo bench`; means nothing here.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(options.seeds > 0 && options.cards > 0, "at least one round and one card");
    let only = options.only.as_deref();
    if only != Some("batch") {
        churn::run(&options);
    }
    if only != Some("churn") {
        packing::run(&options.mixes, || {
            let begin = Instant::now();
            move || begin.elapsed().as_secs_f64() * 1000.0
        })?;
    }
    Ok(())
}
