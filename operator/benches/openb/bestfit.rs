//! The published `BestFit` policy: the node with the least left over, CPU and GPU weighing the same.
//!
//! Source: Weng et al., "Beware of Fragmentation", USENIX ATC 2023, and its simulator. Leftovers are
//! measured against fixed largest nodes (128 cores, 8 GPUs), scores are whole numbers from 0 to 100,
//! and within a node a fraction goes to the GPU with the least free that still suffices.

use super::cluster::{Choice, Node, Policy, Shape, World};
use super::real;

const LARGEST_CPU: f64 = 128_000.0;
const LARGEST_GPU: f64 = 8_000.0;

/// The policy for one replay.
pub(crate) struct BestFit {
    shapes: Vec<Shape>,
}

impl BestFit {
    /// The policy for the shapes of `world`.
    pub(crate) fn new(world: &World) -> Self {
        Self { shapes: world.shapes.clone() }
    }
}

impl Policy for BestFit {
    fn judge(&mut self, node: &Node, shape: usize) -> Choice {
        let shape = &self.shapes[shape];
        let cpu = real(node.cpu.saturating_sub(shape.cpu)) / LARGEST_CPU;
        let gpu = real(node.gpu_total().saturating_sub(shape.gpu_total())) / LARGEST_GPU;
        let left = f64::midpoint(cpu, gpu);
        let tightest = node.choices(shape.milli).min_by_key(|&i| node.gpus()[i]);
        Choice { score: super::whole((1.0 - left) * 100.0), gpu: tightest.unwrap_or(0) }
    }
}
