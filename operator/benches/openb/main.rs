//! Replays a production GPU trace against three placement policies, and prints how much of the
//! cluster's GPU each gives away.
//!
//! `cargo bench -p gpudesk-placement --bench openb -- --nodes FILE --pods FILE [--seeds N]`
//!
//! The files are those of Alibaba's cluster-trace-gpu-v2023 (`openb`). The procedure is that of Weng
//! et al., "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient
//! Descent", USENIX ATC 2023: pods arrive in random order until they have asked for 130 % of the
//! cluster's GPU, whatever fits somewhere is placed, nothing leaves. The policies see the same
//! arrivals. The result is deterministic.
#![expect(clippy::disallowed_methods, reason = "reads the trace files named on the command line")]

mod bestfit;
mod bound;
mod cluster;
mod fgd;
mod fragmentation;
mod ours;
mod report;
mod simplex;
mod trace;

use std::path::Path;
use std::process::ExitCode;
use std::thread;

use cluster::{Outcome, World, replay};
use trace::Trace;

const USAGE: &str = "\
Replays a GPU trace against BestFit, FGD and the policy of gpudesk; prints JSON lines.

  --nodes FILE     CSV with sn,cpu_milli,memory_mib,gpu,model
  --pods FILE      CSV with name,cpu_milli,memory_mib,num_gpu,gpu_milli and perhaps gpu_spec
  --seeds N        seeds from 42 on, 10 by default
  --arrivals R     GPU asked for, relative to the cluster, 1.3 by default
  --help           this text";

const FIRST_SEED: u64 = 42;
const THREADS: usize = 2;

/// Errors are for the person at the command line.
type Result<T> = std::result::Result<T, String>;

/// Upper bounds in thousandths of a GPU; none where the solver found no end.
struct Bounds {
    /// For policies that refuse nothing that fits: the lower of both arguments.
    without_refusal: Option<f64>,
    /// For all policies.
    fluid: Option<f64>,
}

impl Bounds {
    fn new(world: &World) -> Self {
        let (forced, fluid) = (bound::without_refusal(world), bound::fluid(world));
        Self { without_refusal: forced.into_iter().chain(fluid).min_by(f64::total_cmp), fluid }
    }
}

/// What one seed came to.
struct Run {
    seed: u64,
    capacity: u64,
    bestfit: Outcome,
    fgd: Outcome,
    ours: Outcome,
    bounds: Bounds,
}

impl Run {
    fn new(seed: u64, world: &World) -> Self {
        Self {
            seed,
            capacity: world.capacity(),
            bestfit: replay(world, &mut bestfit::BestFit::new(world)),
            fgd: replay(world, &mut fgd::Fgd::new(world)),
            ours: replay(world, &mut ours::Ours::new(world)),
            bounds: Bounds::new(world),
        }
    }
}

struct Options {
    nodes: String,
    pods: String,
    seeds: u64,
    arrivals: f64,
}

impl Options {
    /// None if help is asked for.
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let (mut nodes, mut pods, mut seeds, mut arrivals) = (None, None, 10, 1.3);
        while let Some(flag) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{flag} needs a value"));
            match flag.as_str() {
                "--nodes" => nodes = Some(value()?),
                "--pods" => pods = Some(value()?),
                "--seeds" => seeds = number(&flag, &value()?)?,
                "--arrivals" => arrivals = number(&flag, &value()?)?,
                "--help" | "-h" => return Ok(None),
                "--bench" => {}
                _ => return Err(format!("unknown argument {flag}\n\n{USAGE}")),
            }
        }
        let missing = |flag: &str| format!("{flag} is missing\n\n{USAGE}");
        let (nodes, pods) =
            (nodes.ok_or_else(|| missing("--nodes"))?, pods.ok_or_else(|| missing("--pods"))?);
        if seeds == 0 {
            return Err("--seeds must be at least 1".to_owned());
        }
        if !(arrivals > 0.0 && arrivals <= 100.0) {
            return Err("--arrivals must be above 0 and at most 100".to_owned());
        }
        Ok(Some(Self { nodes, pods, seeds, arrivals }))
    }
}

fn number<T: std::str::FromStr>(flag: &str, text: &str) -> Result<T> {
    text.parse().map_err(|_| format!("{flag}: {text:?} is not a number"))
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let Some(Options { nodes, pods, seeds, arrivals }) = Options::parse(std::env::args().skip(1))? else {
        println!("{USAGE}");
        return Ok(());
    };
    let read = |file: &String| std::fs::read_to_string(file).map_err(|e| format!("{file}: {e}"));
    let trace = Trace::parse((&nodes, &read(&nodes)?), (&pods, &read(&pods)?))?;
    let seeds: Vec<u64> = (FIRST_SEED..FIRST_SEED + seeds).collect();
    let mut runs = Vec::new();
    thread::scope(|scope| {
        let (trace, seeds) = (&trace, &seeds);
        let share = |first: usize| {
            let mine = seeds.iter().skip(first).step_by(THREADS);
            mine.map(|&seed| Run::new(seed, &trace.world(seed, arrivals))).collect::<Vec<Run>>()
        };
        let workers: Vec<_> = (0..THREADS).map(|first| scope.spawn(move || share(first))).collect();
        for worker in workers {
            runs.extend(worker.join().map_err(|_| "a replay failed".to_owned())?);
        }
        Ok::<(), String>(())
    })?;
    runs.sort_by_key(|run| run.seed);
    let name =
        Path::new(&pods).file_stem().map_or_else(|| pods.clone(), |stem| stem.to_string_lossy().into_owned());
    for line in report::lines(&name, arrivals, &runs) {
        println!("{line}");
    }
    Ok(())
}

/// A count as a floating point number; counts here are far below 2^53.
#[expect(clippy::cast_precision_loss, reason = "counts of pods and thousandths of a GPU are small")]
fn real(count: u64) -> f64 {
    count as f64
}

/// The whole part of a score, which is between -1000 and 1000.
#[expect(clippy::cast_possible_truncation, reason = "cutting is what the published policies do")]
fn whole(score: f64) -> i64 {
    score as i64
}
