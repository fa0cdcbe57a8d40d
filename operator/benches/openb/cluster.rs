//! Nodes, requests and the replay of arrivals against a policy. No request leaves again.

/// The most GPUs one node may have.
pub(crate) const MOST_GPUS: usize = 16;

/// One whole GPU, in thousandths.
pub(crate) const WHOLE: u32 = 1000;

/// What one pod asks for. Equal shapes are interchangeable.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shape {
    /// CPU in thousandths of a core.
    pub(crate) cpu: u64,
    /// Memory in MiB.
    pub(crate) memory: u64,
    /// Number of GPUs, 0 for a pod without one.
    pub(crate) gpus: usize,
    /// Thousandths of each GPU: below [`WHOLE`] only when `gpus` is 1, and 0 only when `gpus` is 0.
    pub(crate) milli: u32,
    /// GPU models that will do, sorted. Empty for any.
    pub(crate) models: Vec<usize>,
}

impl Shape {
    /// Thousandths of a GPU over all GPUs of the request.
    pub(crate) fn gpu_total(&self) -> u64 {
        u64::from(self.milli) * self.gpus as u64
    }

    /// A part of one GPU.
    pub(crate) fn is_fraction(&self) -> bool {
        self.gpus == 1 && self.milli < WHOLE
    }

    /// A node of this GPU model may serve the request.
    pub(crate) fn allows(&self, model: usize) -> bool {
        self.models.is_empty() || self.models.contains(&model)
    }
}

/// What is free on a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    /// Free CPU in thousandths of a core.
    pub(crate) cpu: u64,
    /// Free memory in MiB.
    pub(crate) memory: u64,
    /// Index of the GPU model.
    pub(crate) model: usize,
    count: usize,
    free: [u32; MOST_GPUS],
}

impl Node {
    /// An empty node; `gpus` beyond [`MOST_GPUS`] are cut off, which the trace reader refuses.
    pub(crate) fn new(cpu: u64, memory: u64, gpus: usize, model: usize) -> Self {
        let count = gpus.min(MOST_GPUS);
        let mut free = [0; MOST_GPUS];
        free[..count].fill(WHOLE);
        Self { cpu, memory, model, count, free }
    }

    /// Free thousandths of each GPU.
    pub(crate) fn gpus(&self) -> &[u32] {
        &self.free[..self.count]
    }

    /// Free thousandths over all GPUs.
    pub(crate) fn gpu_total(&self) -> u64 {
        self.gpus().iter().map(|&free| u64::from(free)).sum()
    }

    /// How many GPUs have at least `milli` free.
    pub(crate) fn gpus_with(&self, milli: u32) -> usize {
        self.gpus().iter().filter(|&&free| free >= milli).count()
    }

    /// The request can be placed here.
    pub(crate) fn fits(&self, shape: &Shape) -> bool {
        self.cpu >= shape.cpu
            && self.memory >= shape.memory
            && (shape.gpus == 0 || (shape.allows(self.model) && self.gpus_with(shape.milli) >= shape.gpus))
    }

    /// The node after the request took its part. A fraction takes `gpu`; whole GPUs are taken from the
    /// first free ones. The request must fit.
    pub(crate) fn with(&self, shape: &Shape, gpu: usize) -> Self {
        let mut after = self.clone();
        after.cpu = after.cpu.saturating_sub(shape.cpu);
        after.memory = after.memory.saturating_sub(shape.memory);
        if shape.is_fraction() {
            after.free[gpu] = after.free[gpu].saturating_sub(shape.milli);
        } else {
            let whole = after.free[..after.count].iter_mut().filter(|free| **free == WHOLE);
            for free in whole.take(shape.gpus) {
                *free = 0;
            }
        }
        after
    }

    /// Indices of the GPUs on which a fraction fits; only the first of several equal ones.
    pub(crate) fn choices(&self, milli: u32) -> impl Iterator<Item = usize> {
        let gpus = self.gpus();
        (0..gpus.len()).filter(move |&i| gpus[i] >= milli && !gpus[..i].contains(&gpus[i]))
    }

    /// The same node with its GPUs in ascending order of what is free: nodes with equal keys are
    /// equal to every policy here.
    pub(crate) fn key(&self) -> Self {
        let mut key = self.clone();
        key.free[..key.count].sort_unstable();
        key
    }
}

/// One replay: a cluster in its order of preference among equals, and what arrives.
#[derive(Clone, Debug)]
pub(crate) struct World {
    /// The nodes, empty. Among equal scores the first wins.
    pub(crate) nodes: Vec<Node>,
    /// All shapes that occur.
    pub(crate) shapes: Vec<Shape>,
    /// How often each shape occurs in the trace: the mix that policies may know.
    pub(crate) mix: Vec<u64>,
    /// Indices of `shapes` in order of arrival.
    pub(crate) arrivals: Vec<usize>,
    /// Number of GPU models.
    pub(crate) models: usize,
}

impl World {
    /// Thousandths of a GPU in the empty cluster.
    pub(crate) fn capacity(&self) -> u64 {
        self.nodes.iter().map(Node::gpu_total).sum()
    }
}

/// How much a policy wants a node for a request, and the GPU on it.
pub(crate) struct Choice {
    /// Higher is better.
    pub(crate) score: i64,
    /// The GPU a fraction goes to, otherwise 0.
    pub(crate) gpu: usize,
}

/// A placement policy. It judges a node by the state of that node alone.
pub(crate) trait Policy {
    /// Judges `node`, on which the request `World::shapes[shape]` fits.
    fn judge(&mut self, node: &Node, shape: usize) -> Choice;
}

/// What a replay came to, in thousandths of a GPU.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    /// Given to pods.
    pub(crate) placed: u64,
    /// Asked for by pods with more than one GPU.
    pub(crate) large_asked: u64,
    /// Given to pods with more than one GPU.
    pub(crate) large_placed: u64,
}

#[derive(Clone, Copy)]
struct Cached {
    version: u32,
    score: Option<i64>,
    gpu: usize,
}

/// Places every arrival that fits somewhere on the node with the highest score.
pub(crate) fn replay(world: &World, policy: &mut dyn Policy) -> Outcome {
    let mut nodes = world.nodes.clone();
    let mut versions = vec![1_u32; nodes.len()];
    let mut cache = vec![vec![Cached { version: 0, score: None, gpu: 0 }; nodes.len()]; world.shapes.len()];
    let mut outcome = Outcome::default();
    for &arrival in &world.arrivals {
        let shape = &world.shapes[arrival];
        let mut best: Option<(i64, usize, usize)> = None;
        for (i, cached) in cache[arrival].iter_mut().enumerate() {
            if cached.version != versions[i] {
                let choice = nodes[i].fits(shape).then(|| policy.judge(&nodes[i], arrival));
                *cached = Cached {
                    version: versions[i],
                    score: choice.as_ref().map(|c| c.score),
                    gpu: choice.map_or(0, |c| c.gpu),
                };
            }
            if let Some(score) = cached.score
                && best.is_none_or(|(highest, _, _)| score > highest)
            {
                best = Some((score, i, cached.gpu));
            }
        }
        let large = if shape.gpus > 1 { shape.gpu_total() } else { 0 };
        outcome.large_asked += large;
        if let Some((_, i, gpu)) = best {
            nodes[i] = nodes[i].with(shape, gpu);
            versions[i] += 1;
            outcome.placed += shape.gpu_total();
            outcome.large_placed += large;
        }
    }
    outcome
}
