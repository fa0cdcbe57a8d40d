//! What the free part of a node is expected to be worth less, given the mix of requests.
//!
//! [`Mix::loss`] says how many millionths of a GPU of a node's free GPUs will, by expectation, never
//! serve anybody. It is the sum of four parts:
//!
//! * Holes. A GPU with `h` thousandths free is hit by the requests of the mix in proportion to how
//!   often they occur. What fits takes its part, and the rest is a smaller hole. The expected
//!   remainder follows from the smaller holes, and is looked up. A chance of one in
//!   [`NO_HIT`] that nothing comes at all keeps a hole from being worth as much as its best filling.
//! * Starved requests. For each shape, the GPU that requests of this shape could use if CPU and
//!   memory were free of charge, less what they can use with what the node has left.
//! * Blocked requests. For each shape that does not fit on the node even once, all its free GPU.
//! * Touched nodes. Free GPUs are worth more together: `k` of them count [`TOGETHER`] times `k`²
//!   less, so that a node in use is taken before an untouched one.
//!
//! The shapes count by how often they occur. Starved and blocked requests count one in [`SHARE`]
//! each, since they look at one shape at a time and a node serves several.
//!
//! All arithmetic is in integers and the result depends on nothing but the arguments.

use super::cluster::{Node, Shape, WHOLE};

/// One in this many times, no further request comes for a hole.
const NO_HIT: u64 = 20;

/// The parts that look at one shape at a time count one in this many.
const SHARE: i128 = 3;

/// Millionths of a GPU by which `k` free GPUs of one node are worth more together, times `k`².
const TOGETHER: i64 = 2_000;

/// Millionths in a thousandth.
const MICRO: u64 = 1_000;

/// The requests to expect, and what follows from them for a single GPU.
pub(crate) struct Mix {
    shapes: Vec<(Shape, u64)>,
    total: u64,
    /// For each GPU model, the expected remainder of a hole of each size, in millionths of a GPU.
    holes: Vec<Vec<u64>>,
}

impl Mix {
    /// The mix of `shapes` with the number of times each occurs, on `models` GPU models. Requests
    /// without a GPU do not count.
    pub(crate) fn new(shapes: &[(Shape, u64)], models: usize) -> Self {
        let shapes: Vec<(Shape, u64)> =
            shapes.iter().filter(|(shape, count)| shape.gpus > 0 && *count > 0).cloned().collect();
        let total = shapes.iter().map(|(_, count)| count).sum::<u64>().max(1);
        let holes = (0..models).map(|model| remainders(&shapes, model)).collect();
        Self { shapes, total, holes }
    }

    /// The expected loss on `node`, in millionths of a GPU. Only differences mean something: placing
    /// a request costs the loss after less the loss before.
    pub(crate) fn loss(&self, node: &Node) -> i64 {
        let holes: u64 = node.gpus().iter().map(|&free| self.holes[node.model][free as usize]).sum();
        let untouched = i64::try_from(node.gpus_with(WHOLE)).unwrap_or(i64::MAX);
        let free = u128::from(node.gpu_total());
        let mut stranded = 0_u128;
        for (shape, count) in &self.shapes {
            let (room, runs) = rooms(node, shape);
            let starved = u128::from((room - runs) * shape.gpu_total());
            let blocked = if runs == 0 { free } else { 0 };
            stranded += u128::from(*count) * (starved + blocked);
        }
        let stranded = stranded * u128::from(MICRO) / u128::from(self.total);
        let stranded = i128::try_from(stranded).unwrap_or(i128::MAX) / SHARE;
        i64::try_from(i128::from(holes) + stranded).unwrap_or(i64::MAX) - TOGETHER * untouched * untouched
    }
}

/// How many requests of `shape` the GPUs of `node` have room for, and how many of these can run with
/// its CPU and memory. A model that will not do has room for none.
fn rooms(node: &Node, shape: &Shape) -> (u64, u64) {
    if !shape.allows(node.model) {
        return (0, 0);
    }
    let room = if shape.gpus == 1 {
        node.gpus().iter().map(|&free| u64::from(free / shape.milli)).sum()
    } else {
        (node.gpus_with(shape.milli) / shape.gpus) as u64
    };
    let runs = (node.cpu / shape.cpu.max(1)).min(node.memory / shape.memory.max(1));
    (room, room.min(runs))
}

/// The expected remainder of a hole of 0 to 1000 thousandths on a GPU of `model`, in millionths.
fn remainders(shapes: &[(Shape, u64)], model: usize) -> Vec<u64> {
    let mut counts = vec![0_u64; WHOLE as usize + 1];
    for (shape, count) in shapes {
        if shape.gpus == 1 && shape.allows(model) {
            counts[shape.milli as usize] += count;
        }
    }
    let none = counts.iter().sum::<u64>();
    let mut remainders = vec![0_u64];
    for hole in 1..=WHOLE as usize {
        let mut weight = u128::from(none);
        let mut sum = u128::from(none) * hole as u128 * u128::from(MICRO);
        for size in 1..=hole {
            let count = u128::from(counts[size]) * u128::from(NO_HIT);
            weight += count;
            sum += count * u128::from(remainders[hole - size]);
        }
        let remainder = sum.checked_div(weight).unwrap_or(hole as u128 * u128::from(MICRO));
        remainders.push(u64::try_from(remainder).unwrap_or(u64::MAX));
    }
    remainders
}
