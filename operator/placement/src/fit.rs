//! Whether a desktop fits on one node, and how best.

use gpudesk_crds::{Compute, GpuAllocation, desktop_template::NumaPolicy, types::PageSize};

use crate::{
    compute::{self, Limits, NoCompute, Scope},
    facts::NodeFacts,
    gpus::{self, Found, NoGpus},
    occupancy::NodeUse,
    request::Request,
};

/// How a desktop would stand on a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// CPUs and memory.
    pub compute: Compute,
    /// Shares of GPUs.
    pub gpus: Vec<GpuAllocation>,
    /// What it is worth.
    pub score: Score,
}

/// The worth of a plan; lower is better, compared field by field from the first.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score {
    /// Alternatives taken, per share.
    pub ways: Vec<usize>,
    /// Ordinary pages where hugepages were asked for.
    pub fallback: bool,
    /// How far CPUs, memory and cards are apart: 0 on one cell.
    pub distance: u8,
    /// `Pack` or `Spread` of the profiles.
    pub cards: i64,
    /// Memory left in MiB where it was taken: the tightest fit first.
    pub left_mib: i64,
}

/// Why a desktop does not fit on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// A share of a GPU.
    Gpus(NoGpus),
    /// CPUs or memory of the node.
    Compute(NoCompute),
    /// CPUs or memory of the one cell that it must be.
    OnCell(NoCompute),
    /// Cards on different cells, where one is a must.
    Apart,
}

/// The best plan for a desktop on a node.
///
/// # Errors
/// The nearest reason why there is none.
pub fn fit(facts: &NodeFacts, used: &NodeUse, request: &Request, limits: Limits) -> Result<Plan, Misfit> {
    let mut best: Option<Plan> = None;
    let mut found_on: Vec<(Option<i32>, Result<Found, NoGpus>)> = vec![];
    for pages in page_sizes(request) {
        for (distance, cards_of, scope) in tiers(facts, request) {
            let Ok((compute, left_mib)) = compute::fit(facts, used, request, scope, pages, limits) else {
                continue;
            };
            // Cards are searched once per cell, whatever else is tried with them.
            let known = found_on.iter().position(|(cell, _)| *cell == cards_of);
            let position = known.unwrap_or_else(|| {
                found_on.push((cards_of, gpus::fit(facts, used, &request.shares, cards_of)));
                found_on.len() - 1
            });
            let Some((_, Ok(found))) = found_on.get(position) else { continue };
            let score = Score {
                ways: found.ways.clone(),
                fallback: pages != request.memory.pages,
                distance,
                cards: found.key,
                left_mib,
            };
            if best.as_ref().is_none_or(|best| score < best.score) {
                best = Some(Plan { compute, gpus: found.gpus.clone(), score });
            }
        }
    }
    best.ok_or_else(|| why_not(facts, used, request, limits))
}

fn page_sizes(request: &Request) -> impl Iterator<Item = PageSize> + use<> {
    let memory = request.memory;
    let fallback = (memory.allow_fallback && memory.pages != PageSize::None).then_some(PageSize::None);
    std::iter::once(memory.pages).chain(fallback)
}

/// What is tried: how far apart, cards of which cell (any, if none), CPUs and memory from where.
fn tiers(facts: &NodeFacts, request: &Request) -> Vec<(u8, Option<i32>, Scope)> {
    let cells = || facts.cells.iter().map(|cell| cell.id);
    let mut tiers = vec![];
    match request.numa {
        NumaPolicy::Strict => tiers.extend(cells().map(|id| (0, Some(id), Scope::Cell { id, strict: true }))),
        NumaPolicy::Preferred => {
            tiers.extend(cells().map(|id| (0, Some(id), Scope::Cell { id, strict: false })));
            tiers.extend(cells().map(|id| (1, None, Scope::Cell { id, strict: false })));
            tiers.push((2, None, Scope::Node));
        }
        NumaPolicy::None => {
            if request.shares.len() > 1 {
                tiers.extend(cells().map(|id| (0, Some(id), Scope::Node)));
            }
            tiers.push((1, None, Scope::Node));
        }
    }
    tiers
}

/// The nearest reason: cards, then memory and CPUs, then that they are apart.
fn why_not(facts: &NodeFacts, used: &NodeUse, request: &Request, limits: Limits) -> Misfit {
    if let Err(gpus) = gpus::fit(facts, used, &request.shares, None) {
        return Misfit::Gpus(gpus);
    }
    let mut node_reason = None;
    for pages in page_sizes(request) {
        match compute::fit(facts, used, request, Scope::Node, pages, limits) {
            Ok(_) => {
                node_reason = None;
                break;
            }
            // Of several page sizes, the one asked for is named.
            Err(reason) => node_reason = node_reason.or(Some(reason)),
        }
    }
    if let Some(reason) = node_reason {
        return Misfit::Compute(reason);
    }
    let near = |id: &i32| gpus::fit(facts, used, &request.shares, Some(*id)).is_ok();
    let on_cells: Vec<NoCompute> = facts
        .cells
        .iter()
        .map(|cell| cell.id)
        .filter(near)
        .filter_map(|id| {
            compute::fit(facts, used, request, Scope::Cell { id, strict: true }, request.memory.pages, limits)
                .err()
        })
        .collect();
    on_cells.into_iter().max().map_or(Misfit::Apart, Misfit::OnCell)
}
