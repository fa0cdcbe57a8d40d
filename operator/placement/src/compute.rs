//! Which CPUs and how much memory a node can still give.

use gpudesk_crds::{
    Compute, VcpuPin,
    allocation::GuestCell,
    desktop_template::Pinning,
    types::{CpuSet, PageSize},
};

use crate::{
    facts::{NodeFacts, page},
    occupancy::{CellUse, NodeUse, Taken},
    request::{CpuRequest, Demand},
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

/// Where CPUs and memory come from; cells by their position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    /// One cell; `strict` when memory must come from there.
    Cell {
        /// The cell.
        at: usize,
        /// Whether memory must come from it.
        strict: bool,
    },
    /// These cells, in equal parts and strictly, each part a cell of the guest.
    Cells(&'a [usize]),
    /// The node, wherever there is room.
    Node,
}

/// Why CPUs or memory do not suffice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NoCompute {
    /// The host's cores have fewer threads than the guest should see.
    Threads,
    /// CPUs.
    Cpus,
    /// Memory of this page size.
    Memory(PageSize),
}

/// A node, what is taken there, and what is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The node.
    pub facts: &'a NodeFacts,
    /// What is taken.
    pub used: &'a NodeUse,
    /// Taken altogether.
    pub total: &'a Taken,
    /// What is asked for.
    pub demand: &'a Demand,
    /// Bounds.
    pub limits: Limits,
}

/// Cores and MiB of one guest cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    cores: i64,
    mib: i64,
}

/// `count` equal parts: the first ones take what is left over. Memory is split in whole pages; of
/// ordinary ones in whole GiB where that can be, the last part taking the rest.
fn parts(demand: &Demand, pages: PageSize, count: usize) -> Vec<Part> {
    let of = |total: i64, index: i64, count: i64| total / count + i64::from(index < total % count);
    let total = i64::try_from(count).unwrap_or(1).max(1);
    let mib = demand.memory.mib;
    let unit = pages.mib().unwrap_or(if mib >= 1024 * total { 1024 } else { 1 });
    let part = |index: i64| {
        let last = index + 1 == total;
        let units = of(mib / unit, index, total);
        let rest = if last { mib % unit } else { 0 };
        Part { cores: of(i64::from(demand.cpu.cores), index, total), mib: units * unit + rest }
    };
    (0..total).map(part).collect()
}

/// Whether CPUs and memory suffice in `scope` with pages of `pages`; and the memory that is then
/// left there, in MiB.
///
/// # Errors
/// What does not suffice; memory before CPUs.
pub fn check(asked: Asked<'_>, scope: Scope<'_>, pages: PageSize) -> Result<i64, NoCompute> {
    if let Scope::Cells(cells) = scope
        && parts(asked.demand, pages, cells.len()).iter().any(|part| part.mib <= 0)
    {
        return Err(NoCompute::Memory(pages));
    }
    let left = memory_left(asked, scope, pages).ok_or(NoCompute::Memory(pages))?;
    let Asked { facts, demand, .. } = asked;
    let threads = usize::try_from(demand.cpu.threads_per_core).unwrap_or(1);
    if threads > 1 && !facts.cells.iter().flat_map(|cell| &cell.cores).any(|core| core.len() >= threads) {
        return Err(NoCompute::Threads);
    }
    if let Scope::Cells(cells) = scope
        && i64::from(demand.cpu.cores) < i64::try_from(cells.len()).unwrap_or(i64::MAX)
    {
        return Err(NoCompute::Cpus);
    }
    let suffices = match demand.cpu.pinning {
        Pinning::Shared => shares(asked, scope),
        Pinning::Dedicated | Pinning::DedicatedThreads => can_dedicate(asked, scope),
    };
    if suffices { Ok(left) } else { Err(NoCompute::Cpus) }
}

/// CPUs and memory for what [`check`] found to suffice.
pub fn build(asked: Asked<'_>, scope: Scope<'_>, pages: PageSize) -> Option<Compute> {
    let Asked { facts, demand, .. } = asked;
    let cpu = demand.cpu;
    let cells = cells_of(facts, scope);
    let (cpus, emulator_cpus) = match cpu.pinning {
        Pinning::Shared => (vec![], None),
        Pinning::Dedicated | Pinning::DedicatedThreads => {
            (dedicate(asked, scope)?, housekeeping(facts, &cells))
        }
    };
    let id = |at: usize| facts.cells.get(at).map(|cell| cell.id);
    let mut guest_cells = vec![];
    if let Scope::Cells(cells) = scope {
        let mut vcpu = 0u32;
        for (number, (part, at)) in (0..).zip(parts(demand, pages, cells.len()).into_iter().zip(cells)) {
            let vcpus = u32::try_from(part.cores * i64::from(cpu.threads_per_core)).unwrap_or(0);
            guest_cells.push(GuestCell {
                id: number,
                host_cell: id(*at)?,
                vcpus: (vcpu..vcpu + vcpus).collect(),
                memory_mib: part.mib,
            });
            vcpu += vcpus;
        }
    }
    Some(Compute {
        cores: cpu.cores,
        threads_per_core: cpu.threads_per_core,
        numa_cells: match scope {
            Scope::Cell { .. } | Scope::Cells(_) => cells.iter().filter_map(|at| id(*at)).collect(),
            Scope::Node => facts.ordinary(),
        },
        vcpu_pins: (0..)
            .zip(cpus)
            .map(|(vcpu, cpu)| VcpuPin { vcpu, cpus: std::iter::once(cpu).collect() })
            .collect(),
        emulator_cpus,
        memory_mib: demand.memory.mib,
        page_size: pages,
        numa_strict: match scope {
            Scope::Cell { at: _, strict } => strict,
            Scope::Cells(_) => true,
            Scope::Node => !facts.ordinary().is_empty(),
        },
        guest_cells,
        threads_only: cpu.pinning == Pinning::DedicatedThreads,
    })
}

/// MiB that are left in `scope`; `None` when what is asked for does not fit.
fn memory_left(asked: Asked<'_>, scope: Scope<'_>, pages: PageSize) -> Option<i64> {
    let Asked { facts, used, total, demand, .. } = asked;
    let unit = pages.mib().unwrap_or(1);
    let kind = page(pages);
    let amount = |mib: i64| Some(mib.checked_add(unit - 1)? / unit);
    let node_left =
        facts.memory(pages).saturating_sub(total.memory[kind]).saturating_sub(amount(demand.memory.mib)?);
    // What floats may all stand on this cell: who must be here cannot count on the rest.
    let on_cell = |at: usize, mib: i64, strict: bool| {
        let (cell, here) = (facts.cells.get(at)?, used.cells.get(at)?);
        let free = cell.memory[kind].saturating_sub(here.taken.memory[kind]).saturating_sub(amount(mib)?);
        Some(free.saturating_sub(if strict { used.floating.memory[kind] } else { 0 }))
    };
    let left = match scope {
        Scope::Node => node_left,
        Scope::Cell { at, strict } => node_left.min(on_cell(at, demand.memory.mib, strict)?),
        Scope::Cells(cells) => {
            let mut left = node_left;
            for (part, at) in parts(demand, pages, cells.len()).into_iter().zip(cells) {
                left = left.min(on_cell(*at, part.mib, true)?);
            }
            left
        }
    };
    (left >= 0).then(|| left.saturating_mul(unit))
}

fn cells_of(facts: &NodeFacts, scope: Scope<'_>) -> Vec<usize> {
    match scope {
        Scope::Cell { at, strict: _ } => vec![at],
        Scope::Cells(cells) => cells.to_vec(),
        Scope::Node => (0..facts.cells.len()).collect(),
    }
}

/// vCPUs that can still be dedicated on a cell.
fn room(used: &CellUse, cpu: CpuRequest) -> i64 {
    match (cpu.pinning, cpu.threads_per_core) {
        (Pinning::DedicatedThreads, 1) => used.free_threads,
        (Pinning::DedicatedThreads, _) => used.free_pairs * 2,
        (_, 1) => used.free_cores.threads,
        (_, _) => used.free_cores.pairs * 2,
    }
}

fn can_dedicate(asked: Asked<'_>, scope: Scope<'_>) -> bool {
    let Asked { facts, used, total, demand, .. } = asked;
    let room = |at: usize| used.cells.get(at).map_or(0, |cell| room(cell, demand.cpu));
    let threads = i64::from(demand.cpu.threads_per_core);
    let enough = match scope {
        Scope::Cells(cells) => parts(demand, PageSize::None, cells.len())
            .iter()
            .zip(cells)
            .all(|(part, at)| room(*at) >= part.cores * threads),
        Scope::Cell { .. } | Scope::Node => {
            cells_of(facts, scope).into_iter().map(room).sum::<i64>() >= demand.cpu.vcpus()
        }
    };
    // Who shares CPUs must still have enough; where nobody does, nothing more is to be seen.
    enough && (total.vcpus == 0 || dedicate(asked, scope).is_some())
}

/// One host CPU per vCPU, from cores or threads that nobody else gets.
fn dedicate(asked: Asked<'_>, scope: Scope<'_>) -> Option<Vec<u32>> {
    let Asked { facts, used, demand, .. } = asked;
    let mut taken: Vec<CpuSet> = used.cells.iter().map(|cell| cell.dedicated.clone()).collect();
    let threads = i64::from(demand.cpu.threads_per_core);
    let mut cpus = vec![];
    if let Scope::Cells(cells) = scope {
        for (part, at) in parts(demand, PageSize::None, cells.len()).into_iter().zip(cells) {
            let wanted = usize::try_from(part.cores * threads).ok()?;
            let here = of_cell(facts, *at, demand.cpu, wanted, &mut taken);
            if here.len() < wanted {
                return None;
            }
            cpus.extend(here);
        }
    } else {
        let wanted = usize::try_from(demand.cpu.vcpus()).ok()?;
        let mut cells = cells_of(facts, scope);
        // The emptiest cell first, so that few cells are touched.
        let free = |at: &usize| used.cells.get(*at).map_or(0, |cell| room(cell, demand.cpu));
        cells.sort_by_key(|at| (std::cmp::Reverse(free(at)), *at));
        for at in cells {
            if cpus.len() < wanted {
                cpus.extend(of_cell(facts, at, demand.cpu, wanted - cpus.len(), &mut taken));
            }
        }
        if cpus.len() < wanted {
            return None;
        }
    }
    shared_still_fit(asked, &taken).then_some(cpus)
}

/// At most `wanted` CPUs of a cell; marks what goes with them.
fn of_cell(facts: &NodeFacts, at: usize, cpu: CpuRequest, wanted: usize, taken: &mut [CpuSet]) -> Vec<u32> {
    let (Some(cell), Some(taken)) = (facts.cells.get(at), taken.get_mut(at)) else { return vec![] };
    let threads = usize::try_from(cpu.threads_per_core).unwrap_or(1);
    let free = |core: &CpuSet, taken: &CpuSet| core.iter().filter(|cpu| !taken.contains(*cpu)).count();
    let mut cores: Vec<&CpuSet> = cell.cores.iter().collect();
    let by_threads = cpu.pinning == Pinning::DedicatedThreads;
    if by_threads {
        // Half-used cores first: whole ones stay for those who need them.
        cores.sort_by_key(|core| free(core, taken));
    }
    let mut cpus: Vec<u32> = vec![];
    for core in cores {
        if cpus.len() >= wanted {
            break;
        }
        let left: Vec<u32> = core.iter().filter(|cpu| !taken.contains(*cpu)).collect();
        if left.len() < threads || (!by_threads && left.len() < core.len()) {
            continue;
        }
        // A guest core with two threads stands on one host core with two threads.
        let here = if threads > 1 { threads } else { left.len() };
        let here = here.min(wanted - cpus.len());
        cpus.extend(left.iter().take(here));
        if by_threads {
            taken.extend(left.into_iter().take(here));
        } else {
            taken.extend(core.iter());
        }
    }
    cpus
}

/// Whether those who share CPUs still have enough when `taken` are dedicated.
fn shared_still_fit(asked: Asked<'_>, taken: &[CpuSet]) -> bool {
    let Asked { facts, used, total, limits, .. } = asked;
    let left: i64 = facts.cells.iter().zip(taken).map(|(cell, taken)| cell.shared(taken)).sum();
    left * limits.cpu_overcommit >= total.vcpus
        && facts
            .cells
            .iter()
            .zip(&used.cells)
            .zip(taken)
            .all(|((cell, used), taken)| cell.shared(taken) * limits.cpu_overcommit >= used.taken.vcpus)
}

fn shares(asked: Asked<'_>, scope: Scope<'_>) -> bool {
    let Asked { facts, used, total, demand, limits } = asked;
    let cells = facts.cells.iter().zip(&used.cells);
    let left: i64 = cells.map(|(cell, used)| cell.shared(&used.dedicated)).sum();
    let fits_cell = |at: usize, vcpus: i64| match (facts.cells.get(at), used.cells.get(at)) {
        (Some(cell), Some(used)) => {
            used.taken.vcpus + vcpus <= cell.shared(&used.dedicated) * limits.cpu_overcommit
        }
        _ => false,
    };
    total.vcpus.saturating_add(demand.cpu.vcpus()) <= left * limits.cpu_overcommit
        && match scope {
            Scope::Node => true,
            Scope::Cell { at, strict: _ } => fits_cell(at, demand.cpu.vcpus()),
            Scope::Cells(cells) => parts(demand, PageSize::None, cells.len())
                .iter()
                .zip(cells)
                .all(|(part, at)| fits_cell(*at, part.cores * i64::from(demand.cpu.threads_per_core))),
        }
}

fn housekeeping(facts: &NodeFacts, cells: &[usize]) -> Option<CpuSet> {
    let cpus: CpuSet = cells
        .iter()
        .filter_map(|at| facts.cells.get(*at))
        .flat_map(|cell| cell.housekeeping.iter())
        .collect();
    (!cpus.is_empty()).then_some(cpus)
}
