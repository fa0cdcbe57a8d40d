//! The published Fragmentation Gradient Descent: the node whose fragmentation grows least.
//!
//! Source: Weng et al., "Beware of Fragmentation", USENIX ATC 2023, and its simulator. The typical
//! pods are the most frequent shapes that make up 95 % of the trace, pods without a GPU included. A
//! typical pod that cannot run on a node counts all free GPU of the node as fragmented, one that can
//! run counts the GPUs with too little free for it. Memory is not looked at. The gradient goes
//! through a sigmoid and is cut to a whole number from 0 to 100; the first of equal nodes wins, and
//! the published result depends on that coarseness.

use std::collections::{BTreeMap, HashMap};

use super::cluster::{Choice, Node, Policy, Shape, World};
use super::real;

const TYPICAL_PERCENT: u64 = 95;

struct Typical {
    shape: Shape,
    share: f64,
}

/// The policy for one replay.
pub(crate) struct Fgd {
    shapes: Vec<Shape>,
    typical: Vec<Typical>,
    known: HashMap<Node, f64>,
}

impl Fgd {
    /// The policy for the shapes and the mix of `world`.
    pub(crate) fn new(world: &World) -> Self {
        Self { shapes: world.shapes.clone(), typical: typical(world), known: HashMap::new() }
    }

    fn fragmentation(&mut self, node: &Node) -> f64 {
        let mut key = node.key();
        key.memory = 0;
        if let Some(&known) = self.known.get(&key) {
            return known;
        }
        let mut sum = 0.0;
        for Typical { shape, share } in &self.typical {
            let runs = shape.gpus > 0
                && shape.allows(node.model)
                && node.cpu >= shape.cpu
                && node.gpus_with(shape.milli) >= shape.gpus;
            let short = |free: &u32| u64::from(if *free < shape.milli { *free } else { 0 });
            let lost = if runs { node.gpus().iter().map(short).sum() } else { node.gpu_total() };
            sum += share * real(lost);
        }
        self.known.insert(key, sum);
        sum
    }

    fn score(&mut self, before: f64, after: &Node) -> i64 {
        let gradient = (before - self.fragmentation(after)) / 1000.0;
        super::whole(100.0 / (1.0 + (-gradient).exp()))
    }
}

impl Policy for Fgd {
    fn judge(&mut self, node: &Node, shape: usize) -> Choice {
        let shape = self.shapes[shape].clone();
        let before = self.fragmentation(node);
        if !shape.is_fraction() {
            return Choice { score: self.score(before, &node.with(&shape, 0)), gpu: 0 };
        }
        let mut best = Choice { score: i64::MIN, gpu: 0 };
        for gpu in node.choices(shape.milli) {
            let score = self.score(before, &node.with(&shape, gpu));
            if score > best.score {
                best = Choice { score, gpu };
            }
        }
        best
    }
}

/// The most frequent shapes, memory aside, until they cover the share of the trace.
fn typical(world: &World) -> Vec<Typical> {
    let mut counts: BTreeMap<Shape, u64> = BTreeMap::new();
    for (shape, &count) in world.shapes.iter().zip(&world.mix) {
        *counts.entry(Shape { memory: 0, ..shape.clone() }).or_default() += count;
    }
    let mut ranked: Vec<(u64, Shape)> = counts.into_iter().map(|(shape, count)| (count, shape)).collect();
    ranked.sort_by(|a, b| b.cmp(a));
    let total: u64 = ranked.iter().map(|(count, _)| count).sum();
    let mut covered = 0;
    ranked.retain(|(count, _)| {
        let wanted = *count > 0 && covered * 100 < total * TYPICAL_PERCENT;
        covered += if wanted { *count } else { 0 };
        wanted
    });
    ranked.into_iter().map(|(count, shape)| Typical { shape, share: real(count) / real(covered) }).collect()
}
