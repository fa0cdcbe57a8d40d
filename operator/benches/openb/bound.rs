//! Upper bounds on what any policy can place, in thousandths of a GPU.
//!
//! [`fluid`] knows all arrivals, may refuse any, and may split them: a linear program over node types
//! and shapes with CPU, memory and GPU. [`without_refusal`] is about policies that place every
//! request that fits somewhere, as all policies here do.
//!
//! The argument of the second. Take one shape that asks for a part of one GPU of any model. Let `t`
//! be its first arrival that is turned away. All its arrivals before `t` were placed. From `t` on, for
//! good since nobody leaves, every GPU with as much free is on a node with too little CPU or memory
//! for it. So later requests for at least as much of a GPU are placed only if they ask for less CPU or
//! for less memory. For each `t`, a linear program over the ways to fill one GPU bounds what these
//! counts admit, CPU and memory left aside; the highest over all `t` bounds the policy. `t` goes
//! through [`SLICES`] slices of the arrivals, each with the forced count at its beginning and the
//! admitted counts at its end. This holds for each shape, so the lowest of a few shapes is the bound.

use std::collections::BTreeMap;

use super::cluster::{Node, Shape, WHOLE, World};
use super::real;
use super::simplex::{Column, Row, gain, maximise};

const SLICES: usize = 100;

/// Shapes tried for the bound without refusal.
const TRIED: usize = 3;

/// The price of a forced request that is not placed: more than any GPU can make up for.
const FORCED: f64 = 1e5;

/// The bound with refusals, without rounding requests to whole ones.
pub(crate) fn fluid(world: &World) -> Option<f64> {
    let mut types: BTreeMap<(u64, u64, usize, usize), (Node, u64)> = BTreeMap::new();
    for node in &world.nodes {
        let key = (node.cpu, node.memory, node.gpus().len(), node.model);
        types.entry(key).or_insert_with(|| (node.clone(), 0)).1 += 1;
    }
    let types: Vec<(Node, u64)> = types.into_values().collect();
    let mut counts = vec![0_u64; world.shapes.len()];
    for &arrival in &world.arrivals {
        counts[arrival] += 1;
    }
    let free = |limit: f64| Row { limit, penalty: 0.0 };
    let of_type = |(node, count): &(Node, u64)| {
        [real(node.cpu * count) / 1e3, real(node.memory * count) / 1e3, real(node.gpu_total() * count) / 1e3]
            .map(free)
    };
    let mut rows: Vec<Row> = types.iter().flat_map(of_type).collect();
    rows.extend(counts.iter().map(|&count| free(real(count))));
    let mut columns = Vec::new();
    for (i, (node, _)) in types.iter().enumerate() {
        for (j, shape) in world.shapes.iter().enumerate() {
            if counts[j] > 0 && shape.gpus > 0 && node.fits(shape) {
                let gpu = real(shape.gpu_total()) / 1e3;
                let (cpu, memory) = (real(shape.cpu) / 1e3, real(shape.memory) / 1e3);
                let entries =
                    vec![(3 * i, cpu), (3 * i + 1, memory), (3 * i + 2, gpu), (3 * types.len() + j, 1.0)];
                columns.push(Column { value: gpu * 1e3, entries });
            }
        }
    }
    maximise(&rows, |prices| {
        columns.iter().max_by(|a, b| gain(a, prices).total_cmp(&gain(b, prices))).cloned()
    })
}

/// The bound for policies that refuse nothing that fits. None if no shape allows the argument.
pub(crate) fn without_refusal(world: &World) -> Option<f64> {
    let mut candidates: Vec<(u64, usize)> = Vec::new();
    for (i, shape) in world.shapes.iter().enumerate() {
        if shape.is_fraction() && shape.models.is_empty() {
            candidates.push((world.mix[i] * u64::from(WHOLE % shape.milli), i));
        }
    }
    candidates.sort_unstable_by(|a, b| b.cmp(a));
    let bounds = candidates.iter().take(TRIED).filter_map(|&(_, pivot)| forced_by(world, pivot));
    bounds.min_by(f64::total_cmp)
}

/// Requests for GPU, by size in thousandths; several GPUs count as so many whole ones.
type Sizes = BTreeMap<u32, u64>;

fn forced_by(world: &World, pivot: usize) -> Option<f64> {
    let pivotal = &world.shapes[pivot];
    let barred = |s: &Shape| s.milli >= pivotal.milli && s.cpu >= pivotal.cpu && s.memory >= pivotal.memory;
    let add = |sizes: &mut Sizes, shape: &Shape| *sizes.entry(shape.milli).or_default() += shape.gpus as u64;
    let mut admitted = Sizes::new();
    for &arrival in &world.arrivals {
        let shape = &world.shapes[arrival];
        if shape.gpus > 0 && !barred(shape) {
            add(&mut admitted, shape);
        }
    }
    let gpus = world.capacity() / u64::from(WHOLE);
    let (mut forced, mut highest) = (0, 0.0_f64);
    for slice in world.arrivals.chunks(world.arrivals.len().div_ceil(SLICES).max(1)) {
        let before = forced;
        for &arrival in slice {
            let shape = &world.shapes[arrival];
            if shape.gpus > 0 && barred(shape) {
                add(&mut admitted, shape);
            }
            forced += u64::from(arrival == pivot);
        }
        highest = highest.max(fillings(gpus, &admitted, pivotal.milli, before)?);
    }
    Some(highest.max(fillings(gpus, &admitted, pivotal.milli, forced)?))
}

/// The most that `gpus` GPUs hold of the admitted requests, with at least `forced` of size `pivot`.
fn fillings(gpus: u64, admitted: &Sizes, pivot: u32, forced: u64) -> Option<f64> {
    let sizes: Vec<u32> = admitted.keys().copied().collect();
    let mut rows: Vec<Row> =
        admitted.values().map(|&count| Row { limit: real(count), penalty: 0.0 }).collect();
    let (of_gpus, of_forced) = (rows.len(), rows.len() + 1);
    rows.push(Row { limit: real(gpus), penalty: 0.0 });
    rows.push(Row { limit: real(forced), penalty: FORCED });
    let surplus = Column { value: 0.0, entries: vec![(of_forced, -1.0)] };
    maximise(&rows, |prices| {
        let worth = |i: usize| {
            f64::from(sizes[i]) - prices[i] - if sizes[i] == pivot { prices[of_forced] } else { 0.0 }
        };
        let counts = best_filling(&sizes, worth);
        let mut entries: Vec<(usize, f64)> = vec![(of_gpus, 1.0)];
        let mut value = 0.0;
        for (i, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            entries.push((i, f64::from(count)));
            value += f64::from(count * sizes[i]);
            if sizes[i] == pivot {
                entries.push((of_forced, f64::from(count)));
            }
        }
        let filling = Column { value, entries };
        let better = gain(&surplus, prices) > gain(&filling, prices);
        Some(if better { surplus.clone() } else { filling })
    })
}

/// How many of each size fill one GPU for the highest worth.
fn best_filling(sizes: &[u32], worth: impl Fn(usize) -> f64) -> Vec<u32> {
    let worths: Vec<f64> = (0..sizes.len()).map(worth).collect();
    let unit = sizes.iter().fold(WHOLE, |a, &b| gcd(a, b)).max(1);
    let cells = (WHOLE / unit) as usize;
    let mut best: Vec<(f64, Option<usize>)> = vec![(0.0, None); cells + 1];
    for cell in 1..=cells {
        best[cell] = (best[cell - 1].0, None);
        for (i, &size) in sizes.iter().enumerate() {
            let taken = (size / unit) as usize;
            if worths[i] > 0.0 && taken <= cell && best[cell - taken].0 + worths[i] > best[cell].0 {
                best[cell] = (best[cell - taken].0 + worths[i], Some(i));
            }
        }
    }
    let mut counts = vec![0; sizes.len()];
    let mut cell = cells;
    while cell > 0 {
        match best[cell].1 {
            Some(i) => {
                counts[i] += 1;
                cell -= (sizes[i] / unit) as usize;
            }
            None => cell -= 1,
        }
    }
    counts
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
