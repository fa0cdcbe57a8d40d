//! An estate of many nodes, nine tenths full, on which desktops come and go.

use std::{
    alloc::System,
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use gpudesk_crds::{
    Allocation, Desktop, GpuNode,
    desktop::PowerState,
    desktop_template::{NumaPolicy, Pinning},
    types::{PageSize, VgpuSeries},
};
use gpudesk_inventory::simulated::hosts;
use gpudesk_placement::{
    Limits, Snapshot,
    request::{
        CardRequirements, CpuRequest, Demand, DesktopKey, MemoryRequest, Request, Share, ShareRequest, Way,
    },
};
use stats_alloc::StatsAlloc;

#[global_allocator]
static MEMORY: StatsAlloc<System> = StatsAlloc::system();

/// Bytes allocated and not yet given back.
fn allocated() -> usize {
    let stats = MEMORY.stats();
    stats.bytes_allocated.wrapping_sub(stats.bytes_deallocated)
}

/// Cards of a node.
pub(crate) const CARDS: usize = 8;
/// Desktops that are defined.
const DEFINED: usize = 72_000;
/// Of the cards' slices, how many are taken, in percent.
const FULL: usize = 90;
/// Memory units of a card.
const UNITS: usize = 8;

/// A host with two sockets and eight cards that do MIG.
const HOST: &str = "
sockets: 2
coresPerSocket: 64
threadsPerCore: 2
memoryMiB: 2097152
cards:
- model: H100 SXM5 80GB
  count: 8
  numaCells: [0, 0, 0, 0, 1, 1, 1, 1]
";

/// How often each profile is asked for.
pub(crate) struct Mix {
    pub(crate) name: &'static str,
    /// Profile, memory units, weight.
    profiles: &'static [(&'static str, usize, u64)],
}

pub(crate) const MIXES: &[Mix] = &[
    Mix {
        name: "uniform",
        profiles: &[
            ("1g.10gb", 1, 1),
            ("1g.20gb", 2, 1),
            ("2g.20gb", 2, 1),
            ("3g.40gb", 4, 1),
            ("4g.40gb", 4, 1),
            ("7g.80gb", 8, 1),
        ],
    },
    Mix {
        name: "small",
        profiles: &[("1g.10gb", 1, 8), ("1g.20gb", 2, 3), ("2g.20gb", 2, 3), ("3g.40gb", 4, 1)],
    },
    Mix {
        name: "large",
        profiles: &[("2g.20gb", 2, 1), ("3g.40gb", 4, 4), ("4g.40gb", 4, 3), ("7g.80gb", 8, 4)],
    },
    Mix { name: "bimodal", profiles: &[("1g.10gb", 1, 6), ("7g.80gb", 8, 1)] },
];

/// A small generator of random numbers (splitmix64), the same on every machine.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// An estate and who runs on it.
pub(crate) struct Bench {
    pub(crate) snapshot: Snapshot,
    pub(crate) nodes: usize,
    /// Memory that the nodes take, and who runs on them.
    pub(crate) bytes: usize,
    mix: &'static Mix,
    demands: Vec<Arc<Demand>>,
    running: Vec<(DesktopKey, usize)>,
    stopped: VecDeque<usize>,
    random: Random,
}

impl Bench {
    pub(crate) fn new(nodes: usize, mix: &'static Mix) -> Self {
        let snapshot = Snapshot::new(Limits::default());
        let mut random = Random(42);
        let demands = mix.profiles.iter().map(|(profile, _, _)| demand(profile)).collect();
        let mut bench = Self {
            snapshot,
            nodes,
            bytes: 0,
            mix,
            demands,
            running: vec![],
            stopped: VecDeque::new(),
            random: Random(random.next()),
        };
        for number in 0..DEFINED {
            let request = bench.request(number);
            bench.snapshot.desktop_seen(&object(&request.desktop));
            bench.snapshot.wants(&request.desktop, Some(&request));
            bench.stopped.push_back(number);
        }
        let before = allocated();
        let mut node = node();
        for number in 0..nodes {
            node.metadata.name = Some(format!("node-{number}"));
            bench.snapshot.node_seen(&node);
        }
        bench.snapshot.catch_up();
        bench.fill();
        bench.bytes = allocated().saturating_sub(before);
        bench
    }

    pub(crate) fn label(&self) -> String {
        format!("{}-{}", self.mix.name, self.nodes)
    }

    /// What the desktop of a number asks for: its profile by the weights of the mix.
    fn profile_of(&self, number: usize) -> usize {
        let total: u64 = self.mix.profiles.iter().map(|(_, _, weight)| weight).sum();
        let mut at = Random(number as u64).below(total);
        for (position, (_, _, weight)) in self.mix.profiles.iter().enumerate() {
            if at < *weight {
                return position;
            }
            at -= weight;
        }
        0
    }

    fn request(&self, number: usize) -> Request {
        Request {
            desktop: DesktopKey::new("school", &format!("desktop-{number}")),
            labels: BTreeMap::new(),
            affinity: vec![],
            home: None,
            previous: None,
            demand: self.demands[self.profile_of(number)].clone(),
        }
    }

    fn fill(&mut self) {
        let wanted = self.nodes * CARDS * UNITS * FULL / 100;
        let mut taken = 0;
        let mut number = DEFINED;
        let mut refused = 0;
        while taken < wanted && refused < 1000 {
            // An estate larger than its desktops is filled by more of them.
            let next = self.stopped.pop_front().unwrap_or_else(|| {
                number += 1;
                number
            });
            let request = self.request(next);
            let Ok(placed) = self.snapshot.place(&request) else {
                self.stopped.push_back(next);
                refused += 1;
                continue;
            };
            refused = 0;
            self.snapshot.take(&request.desktop, &Arc::new(placed.allocation(None)));
            taken += self.mix.profiles[self.profile_of(next)].1;
            self.running.push((request.desktop, next));
        }
    }

    /// The next desktop that starts.
    pub(crate) fn next_request(&mut self) -> Request {
        let number = self.stopped.pop_front().unwrap_or(0);
        self.stopped.push_back(number);
        let number = number + 1_000_000 * usize::try_from(1 + self.random.below(1000)).unwrap();
        self.request(number)
    }

    /// Decides, and counts what was decided as taken: all that the placement lock is held for.
    pub(crate) fn decide_and_take(&mut self, request: &Request) -> Option<Arc<Allocation>> {
        let placed = self.snapshot.place(request).ok()?;
        let allocation = Arc::new(placed.allocation(None));
        self.snapshot.take(&request.desktop, &allocation);
        self.running.push((request.desktop.clone(), usize::MAX));
        Some(allocation)
    }

    /// One that runs stops, at random; none when none was started.
    pub(crate) fn release_one(&mut self, started: Option<&Arc<Allocation>>) {
        if started.is_none() && self.running.is_empty() {
            return;
        }
        let at = usize::try_from(self.random.below(self.running.len() as u64)).unwrap();
        let (key, _) = self.running.swap_remove(at);
        self.snapshot.forget(&key);
    }
}

/// A node of the estate, still without a name of its own.
pub(crate) fn node() -> GpuNode {
    hosts::node(&hosts::hosts("node", HOST, None).unwrap()[0], None)
}

pub(crate) fn demand(profile: &str) -> Arc<Demand> {
    let share = Share::Mig { profile: profile.into(), series: VgpuSeries::C, framebuffer_mib: None };
    Arc::new(Demand {
        node_selector: BTreeMap::new(),
        tolerations: vec![],
        cpu: CpuRequest { cores: 2, threads_per_core: 2, pinning: Pinning::Shared },
        memory: MemoryRequest { mib: 4096, pages: PageSize::None, allow_fallback: false },
        numa: NumaPolicy::Preferred,
        shares: vec![ShareRequest {
            name: "gpu".into(),
            profile: profile.into(),
            ways: vec![Way { index: 0, share }],
            cards: CardRequirements::default(),
            spread: false,
        }],
        functions: vec![],
    })
}

pub(crate) fn object(key: &DesktopKey) -> Desktop {
    // Who is defined to run and has no place waits, and is looked ahead for.
    let spec = gpudesk_crds::DesktopSpec { power_state: PowerState::Stopped, ..Default::default() };
    let mut desktop = Desktop::new(&key.name, spec);
    desktop.metadata.namespace = Some(key.namespace.clone());
    desktop.metadata.resource_version = Some("1".into());
    desktop
}
