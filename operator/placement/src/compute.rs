//! Which CPUs and how much memory a node can still give.

use std::collections::BTreeSet;

use gpudesk_crds::{
    Compute, VcpuPin,
    types::{CpuSet, PageSize},
};

use crate::{
    facts::NodeFacts,
    occupancy::{NodeUse, free_cores},
    request::{CpuRequest, Request},
};

/// How many vCPUs that float may stand on one CPU of the host, unless told otherwise.
pub const DEFAULT_CPU_OVERCOMMIT: u32 = 4;

/// Bounds that are the operator's, not a node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// vCPUs per host CPU, for those that float.
    pub cpu_overcommit: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { cpu_overcommit: i64::from(DEFAULT_CPU_OVERCOMMIT) }
    }
}

/// Where CPUs and memory come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One cell; `strict` when memory must come from there.
    Cell {
        /// Number of the cell.
        id: i32,
        /// Whether memory must come from it.
        strict: bool,
    },
    /// The node, wherever there is room.
    Node,
}

/// Why CPUs or memory do not suffice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoCompute {
    /// The host's cores have fewer threads than the guest should see.
    Threads,
    /// CPUs.
    Cpus,
    /// Memory of this page size.
    Memory(PageSize),
}

/// CPUs and memory for `request` from `scope`, with pages of `pages`; and the memory that is then
/// left there, in MiB.
///
/// # Errors
/// What does not suffice; memory before CPUs.
pub fn fit(
    facts: &NodeFacts,
    used: &NodeUse,
    request: &Request,
    scope: Scope,
    pages: PageSize,
    limits: Limits,
) -> Result<(Compute, i64), NoCompute> {
    let left = memory_left(facts, used, request.memory.mib, scope, pages).ok_or(NoCompute::Memory(pages))?;
    let cpu = request.cpu;
    let threads = usize::try_from(cpu.threads_per_core).unwrap_or(1);
    if threads > 1 && !facts.cells.iter().flat_map(|cell| &cell.cores).any(|core| core.len() >= threads) {
        return Err(NoCompute::Threads);
    }
    let (pins, emulator_cpus) = if cpu.dedicated {
        let pins = dedicate(facts, used, cpu, scope, limits).ok_or(NoCompute::Cpus)?;
        (pins, housekeeping(facts, scope))
    } else {
        if !shares(facts, used, cpu, scope, limits) {
            return Err(NoCompute::Cpus);
        }
        (vec![], None)
    };
    let compute = Compute {
        cores: cpu.cores,
        threads_per_core: cpu.threads_per_core,
        numa_cells: match scope {
            Scope::Cell { id, strict: _ } => vec![id],
            Scope::Node => vec![],
        },
        vcpu_pins: pins,
        emulator_cpus,
        memory_mib: request.memory.mib,
        page_size: pages,
        numa_strict: matches!(scope, Scope::Cell { strict: true, .. }),
    };
    Ok((compute, left))
}

/// MiB that are left in `scope` once `mib` are taken; `None` when they do not fit.
fn memory_left(facts: &NodeFacts, used: &NodeUse, mib: i64, scope: Scope, pages: PageSize) -> Option<i64> {
    let unit = pages.mib().unwrap_or(1);
    let amount = mib.checked_add(unit - 1)? / unit;
    let pool = used.memory.get(&pages).cloned().unwrap_or_default();
    let node_left = facts.memory(pages) - pool.total() - amount;
    let left = match scope {
        Scope::Node => node_left,
        Scope::Cell { id, strict } => {
            let cell = facts.cell(id)?.memory.get(&pages).copied().unwrap_or(0) - pool.on(id);
            // What floats may all stand on this cell: who must be here cannot count on the rest.
            node_left.min(cell - amount - if strict { pool.floating } else { 0 })
        }
    };
    (left >= 0).then(|| left.saturating_mul(unit))
}

fn cells_of(facts: &NodeFacts, scope: Scope) -> BTreeSet<i32> {
    match scope {
        Scope::Cell { id, strict: _ } => BTreeSet::from([id]),
        Scope::Node => facts.cells.iter().map(|cell| cell.id).collect(),
    }
}

/// One host CPU per vCPU, from cores that nobody else gets.
fn dedicate(
    facts: &NodeFacts,
    used: &NodeUse,
    cpu: CpuRequest,
    scope: Scope,
    limits: Limits,
) -> Option<Vec<VcpuPin>> {
    let threads = usize::try_from(cpu.threads_per_core).ok()?;
    let wanted = usize::try_from(cpu.vcpus()).ok()?;
    let mut cells: Vec<i32> = cells_of(facts, scope).into_iter().collect();
    // The emptiest cell first, so that few cells are touched.
    cells.sort_by_key(|cell| {
        (std::cmp::Reverse(free_cores(facts, used, &BTreeSet::from([*cell])).count()), *cell)
    });
    let mut cpus = vec![];
    let mut taken = used.dedicated.clone();
    for cell in cells {
        for core in free_cores(facts, used, &BTreeSet::from([cell])) {
            if cpus.len() >= wanted {
                break;
            }
            // A guest core with two threads stands on one host core with two threads.
            let of_core = core.len() / threads * threads;
            if of_core == 0 {
                continue;
            }
            cpus.extend(core.iter().take(if threads > 1 { threads } else { of_core }));
            taken.extend(core.iter().collect::<Vec<_>>());
        }
    }
    cpus.truncate(wanted);
    (cpus.len() == wanted && shared_still_fit(facts, used, &taken, limits)).then(|| {
        cpus.into_iter()
            .zip(0..)
            .map(|(cpu, vcpu)| VcpuPin { vcpu, cpus: std::iter::once(cpu).collect() })
            .collect()
    })
}

/// Whether those who share CPUs still have enough when `taken` are dedicated.
fn shared_still_fit(facts: &NodeFacts, used: &NodeUse, taken: &CpuSet, limits: Limits) -> bool {
    let total = facts.cpus() - size(taken);
    total * limits.cpu_overcommit >= used.shared_vcpus.total()
        && facts.cells.iter().all(|cell| {
            (cell.cpus - dedicated_on(facts, cell.id, taken)) * limits.cpu_overcommit
                >= used.shared_vcpus.on(cell.id)
        })
}

fn shares(facts: &NodeFacts, used: &NodeUse, cpu: CpuRequest, scope: Scope, limits: Limits) -> bool {
    let total = (facts.cpus() - size(&used.dedicated)) * limits.cpu_overcommit;
    let fits_node = used.shared_vcpus.total() + cpu.vcpus() <= total;
    fits_node
        && match scope {
            Scope::Node => true,
            Scope::Cell { id, strict: _ } => facts.cell(id).is_some_and(|cell| {
                let cpus = cell.cpus - dedicated_on(facts, id, &used.dedicated);
                used.shared_vcpus.on(id) + cpu.vcpus() <= cpus * limits.cpu_overcommit
            }),
        }
}

fn dedicated_on(facts: &NodeFacts, cell: i32, dedicated: &CpuSet) -> i64 {
    let cores = facts.cell(cell).map(|cell| cell.cores.as_slice()).unwrap_or_default();
    let on_cell = cores.iter().flat_map(CpuSet::iter).filter(|cpu| dedicated.contains(*cpu)).count();
    i64::try_from(on_cell).unwrap_or(i64::MAX)
}

fn size(cpus: &CpuSet) -> i64 {
    i64::try_from(cpus.len()).unwrap_or(i64::MAX)
}

fn housekeeping(facts: &NodeFacts, scope: Scope) -> Option<CpuSet> {
    let cells = cells_of(facts, scope);
    let cpus: CpuSet =
        facts.cells.iter().filter(|c| cells.contains(&c.id)).flat_map(|c| c.housekeeping.iter()).collect();
    (!cpus.is_empty()).then_some(cpus)
}
