//! What is printed: one JSON object a line.

use super::cluster::Outcome;
use super::{Bounds, Run, real};

/// Published means of ten seeds at 130 % arrivals: trace, policy, percent.
const PUBLISHED: [(&str, &str, f64); 4] = [
    ("openb_pod_list_default", "bestfit", 93.08),
    ("openb_pod_list_default", "fgd", 95.39),
    ("openb_pod_list_multigpu50", "bestfit", 95.74),
    ("openb_pod_list_multigpu50", "fgd", 97.18),
];

/// The lines for one trace: one a seed, then one for each thing compared with.
pub(crate) fn lines(trace: &str, load: f64, runs: &[Run]) -> Vec<String> {
    let trace_json = escaped(trace);
    let mut lines = Vec::new();
    for run in runs {
        let Run { seed, capacity, bestfit, fgd, ours, bounds } = run;
        let share = |outcome: &Outcome| real(outcome.placed) * 100.0 / real(*capacity);
        lines.push(format!(
            "{{\"bench\":\"openb\",\"trace\":{trace_json},\"measure\":\"gpu_allocation_ratio_of_seed\",\"unit\":\"%\",\
             \"seed\":{seed},\"ours\":{:.3},\"fgd\":{:.3},\"bestfit\":{:.3},\"bound\":{},\"bound_with_refusals\":{}}}",
            share(ours),
            share(fgd),
            share(bestfit),
            optional(percent(bounds.without_refusal, *capacity)),
            optional(percent(bounds.fluid, *capacity)),
        ));
    }
    let placed = |outcome: fn(&Run) -> Outcome| {
        series(runs, move |run| Some(real(outcome(run).placed) * 100.0 / real(run.capacity)))
    };
    let large = |outcome: fn(&Run) -> Outcome| {
        series(runs, move |run| {
            let Outcome { placed: _, large_asked, large_placed } = outcome(run);
            (large_asked > 0).then(|| real(large_placed) * 100.0 / real(large_asked))
        })
    };
    let bound = |which: fn(&Bounds) -> Option<f64>| {
        series(runs, move |run| percent(which(&run.bounds), run.capacity))
    };
    let (ours, fgd) = (placed(|run| run.ours), placed(|run| run.fgd));
    let tight = bound(|bounds| bounds.without_refusal);
    let loose = bound(|bounds| bounds.fluid);
    let measure = "gpu_allocation_ratio";
    let (large_ours, large_fgd) = (large(|run| run.ours), large(|run| run.fgd));
    for (measure, policy, mine, baseline) in [
        (measure, "bestfit", &ours, placed(|run| run.bestfit)),
        (measure, "fgd", &ours, fgd.clone()),
        (measure, "bound", &ours, tight),
        (measure, "bound_with_refusals", &ours, loose),
        ("multi_gpu_placed_ratio", "fgd", &large_ours, large_fgd),
    ] {
        let (Some(mine), Some(theirs)) = (Series::of(mine), Series::of(&baseline)) else { continue };
        let known = PUBLISHED.iter().find(|(of, by, _)| {
            measure == "gpu_allocation_ratio" && (load - 1.3).abs() < 1e-9 && *of == trace && *by == policy
        });
        let closed = Series::of(&fgd).filter(|_| policy.starts_with("bound")).map(|fgd| {
            let gap = theirs.mean - fgd.mean;
            if gap > 0.0 { (mine.mean - fgd.mean) * 100.0 / gap } else { 100.0 }
        });
        lines.push(format!(
            "{{\"bench\":\"openb\",\"trace\":{trace_json},\"measure\":\"{measure}\",\"unit\":\"%\",\"policy\":\"ours\",\
             \"against\":\"{policy}\",\"ours\":{:.3},\"baseline\":{:.3},\"ratio\":{:.5},\"spread\":[{:.3},{:.3}],\
             \"baseline_spread\":[{:.3},{:.3}],\"seeds\":{},\"arrivals\":{load},\"published\":{},\
             \"fgd_gap_closed_percent\":{}}}",
            mine.mean,
            theirs.mean,
            mine.mean / theirs.mean,
            mine.lowest,
            mine.highest,
            theirs.lowest,
            theirs.highest,
            runs.len(),
            optional(known.map(|(_, _, value)| *value)),
            optional(closed),
        ));
    }
    lines
}

/// The mean and the spread over the seeds.
struct Series {
    mean: f64,
    lowest: f64,
    highest: f64,
}

impl Series {
    fn of(values: &[f64]) -> Option<Self> {
        let lowest = values.iter().copied().min_by(f64::total_cmp)?;
        let highest = values.iter().copied().max_by(f64::total_cmp)?;
        Some(Self { mean: values.iter().sum::<f64>() / real(values.len() as u64), lowest, highest })
    }
}

/// The value of each run, or nothing if one has none: a mean over some of the seeds would mislead.
fn series(runs: &[Run], value: impl Fn(&Run) -> Option<f64>) -> Vec<f64> {
    runs.iter().map(value).collect::<Option<Vec<f64>>>().unwrap_or_default()
}

fn percent(bound: Option<f64>, capacity: u64) -> Option<f64> {
    bound.map(|bound| (bound * 100.0 / real(capacity)).min(100.0))
}

fn optional(value: Option<f64>) -> String {
    value.map_or_else(|| "null".to_owned(), |value| format!("{value:.3}"))
}

fn escaped(text: &str) -> String {
    let mut json = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            c if c.is_control() => json.push('?'),
            c => json.push(c),
        }
    }
    json.push('"');
    json
}
