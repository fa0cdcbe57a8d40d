//! The policy of this project: the node, and the GPU on it, where the expected loss grows least.

use std::collections::HashMap;

use super::cluster::{Choice, Node, Policy, Shape, World};
use super::fragmentation::Mix;

/// The policy for one replay.
pub(crate) struct Ours {
    shapes: Vec<Shape>,
    mix: Mix,
    known: HashMap<Node, i64>,
}

impl Ours {
    /// The policy for the shapes and the mix of `world`.
    pub(crate) fn new(world: &World) -> Self {
        let mix: Vec<(Shape, u64)> = world.shapes.iter().cloned().zip(world.mix.iter().copied()).collect();
        Self { shapes: world.shapes.clone(), mix: Mix::new(&mix, world.models), known: HashMap::new() }
    }

    fn loss(&mut self, node: &Node) -> i64 {
        let mix = &self.mix;
        *self.known.entry(node.key()).or_insert_with_key(|key| mix.loss(key))
    }
}

impl Policy for Ours {
    fn judge(&mut self, node: &Node, shape: usize) -> Choice {
        let shape = self.shapes[shape].clone();
        let before = self.loss(node);
        if !shape.is_fraction() {
            return Choice { score: before - self.loss(&node.with(&shape, 0)), gpu: 0 };
        }
        let mut best = Choice { score: i64::MIN, gpu: 0 };
        for gpu in node.choices(shape.milli) {
            let score = before - self.loss(&node.with(&shape, gpu));
            if score > best.score {
                best = Choice { score, gpu };
            }
        }
        best
    }
}
