//! Why a desktop waits, in one line.

use std::{cmp::Reverse, collections::BTreeMap};

use gpudesk_crds::{conditions::Reason, types::PageSize};

use crate::{
    card::NoShare,
    compute::NoCompute,
    facts::{NodeFacts, Refused},
    fit::Misfit,
    gpus::NoGpus,
    request::Request,
};

/// Why a desktop waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// `Unschedulable`, or `Unsatisfiable` when not even an empty estate would do.
    pub reason: Reason,
    /// `0/5 nodes: 2 no free placement for 1g.24gb, 2 cordoned, 1 not ready`.
    pub message: String,
}

/// Why a node was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Its owner wants no new desktops there.
    Cordoned,
    /// The daemon says that desktops cannot run there.
    NotReady,
    /// The daemon has not renewed its lease.
    Silent,
    /// Labels.
    Selector,
    /// The desktop's disks are on another node.
    NotHome,
    /// It does not fit.
    Misfit(Misfit),
}

/// Counts the reasons of all nodes: the most frequent first, equals by their text.
pub fn summary<'a>(request: &Request, rejections: impl Iterator<Item = &'a Rejection>) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut nodes = 0;
    for rejection in rejections {
        nodes += 1;
        *counts.entry(text(request, rejection)).or_default() += 1;
    }
    if nodes == 0 {
        return "0/0 nodes: no GpuNode exists".into();
    }
    let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| Reverse(*count));
    let reasons: Vec<String> = counts.into_iter().map(|(text, count)| format!("{count} {text}")).collect();
    format!("0/{nodes} nodes: {}", reasons.join(", "))
}

fn text(request: &Request, rejection: &Rejection) -> String {
    match rejection {
        Rejection::Cordoned => "cordoned".into(),
        Rejection::NotReady => "not ready".into(),
        Rejection::Silent => "node daemon silent".into(),
        Rejection::Selector => "without the labels of nodeSelector".into(),
        Rejection::NotHome => "without the desktop's disks".into(),
        Rejection::Misfit(misfit) => misfit_text(request, misfit),
    }
}

fn misfit_text(request: &Request, misfit: &Misfit) -> String {
    match misfit {
        Misfit::Gpus(gpus) => gpus_text(request, gpus),
        Misfit::Compute(reason) => compute_text(request, *reason),
        Misfit::OnCell(reason) if request.shares.is_empty() => {
            format!("{} on one NUMA cell", compute_text(request, *reason))
        }
        Misfit::OnCell(reason) => format!("{} on the GPU's NUMA cell", compute_text(request, *reason)),
        Misfit::Apart => "free cards on different NUMA cells only".into(),
    }
}

fn gpus_text(request: &Request, NoGpus { share, why }: &NoGpus) -> String {
    let asked = share.and_then(|(share, way)| {
        let share = request.shares.get(share)?;
        Some((&share.profile, &share.ways.get(way)?.share))
    });
    let Some((profile, share)) = asked else {
        return format!("no room for all {} GPU shares together", request.shares.len());
    };
    match why {
        NoShare::NoCard => format!("no card that qualifies for {profile}"),
        NoShare::Refused(Refused::Unmanaged) => format!("cards for {profile} unmanaged"),
        NoShare::Refused(Refused::Failed) => format!("cards for {profile} failed"),
        NoShare::Refused(Refused::Unavailable) => {
            format!("cards for {profile} unavailable (see status.devices[].unavailable of the GpuNode)")
        }
        NoShare::Refused(Refused::Layout) => {
            format!("cards for {profile} with a layout, which is not yet supported")
        }
        NoShare::ModeNotAllowed => format!("mode {} not allowed on cards for {profile}", share.mode()),
        NoShare::NotOffered => format!("no card that offers {share}"),
        NoShare::NoFreePlacement => format!("no free placement for {share}"),
    }
}

fn compute_text(request: &Request, reason: NoCompute) -> String {
    match reason {
        NoCompute::Threads => "only one thread per core".into(),
        NoCompute::Cpus if request.cpu.dedicated => "not enough free cores".into(),
        NoCompute::Cpus => "not enough CPUs".into(),
        NoCompute::Memory(PageSize::None) => "not enough memory".into(),
        NoCompute::Memory(pages) => format!("not enough {pages} hugepages"),
    }
}

/// What to say when not even an empty node would do: the figure that no host reaches, or the counts.
pub fn unsatisfiable<'a>(
    request: &Request,
    nodes: impl Iterator<Item = &'a NodeFacts> + Clone,
    counts: &str,
) -> Explanation {
    let pages = request.memory.pages;
    let unit = pages.mib().unwrap_or(1);
    let largest_memory = nodes
        .clone()
        .map(|node| {
            let wanted = node.memory(pages) * unit;
            let fallback = if request.memory.allow_fallback { node.memory(PageSize::None) } else { 0 };
            (wanted.max(fallback), Reverse(&node.name))
        })
        .max();
    let largest_cpu = nodes
        .map(|node| {
            let cores = node.cells.iter().flat_map(|cell| &cell.cores);
            let threads = usize::try_from(request.cpu.threads_per_core).unwrap_or(1);
            let dedicable: usize = cores.map(|core| core.len() / threads * threads).sum();
            let dedicable = i64::try_from(dedicable).unwrap_or(i64::MAX);
            (if request.cpu.dedicated { dedicable } else { i64::MAX }, Reverse(&node.name))
        })
        .max();
    let kind = match pages {
        PageSize::None => String::new(),
        pages => format!(" in {pages} hugepages"),
    };
    let message = match (largest_memory, largest_cpu) {
        (Some((mib, Reverse(name))), _) if mib < request.memory.mib => format!(
            "needs {} MiB{kind}; the largest host, {name}, has {mib} MiB for desktops",
            request.memory.mib
        ),
        (_, Some((cpus, Reverse(name)))) if cpus < request.cpu.vcpus() => format!(
            "needs {} dedicated CPUs; the largest host, {name}, has {cpus} for desktops",
            request.cpu.vcpus()
        ),
        _ => format!("fits on no host even when nothing else runs; {counts}"),
    };
    Explanation { reason: Reason::Unsatisfiable, message }
}
