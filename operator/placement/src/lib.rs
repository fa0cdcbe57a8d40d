//! Where a desktop runs and which shares of which cards it gets. Pure: no clock, no client.
//!
//! ```text
//!  GpuNode ──▶ facts ──┐
//!                      ├─▶ snapshot ──▶ place ──▶ fit per node = compute + gpus(card) ──▶ best score
//!  Desktop ─▶ occupancy┘                     └──▶ explain, when nothing fits
//! ```
//!
//! The same snapshot and the same request give the same decision.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use gpudesk_crds::conditions::Reason;

pub mod card;
pub mod compute;
pub mod explain;
pub mod facts;
pub mod fit;
pub mod gpus;
pub mod occupancy;
pub mod request;
pub mod snapshot;
#[cfg(test)]
mod tests;

use compute::Limits;
use explain::{Explanation, Rejection};
use facts::NodeFacts;
use fit::{Misfit, Plan};
use occupancy::NodeUse;
use request::Request;
use snapshot::{NodeState, View};

/// A decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// The node.
    pub node: String,
    /// What the desktop gets there.
    pub plan: Plan,
}

/// Chooses node, CPUs, memory and shares for a desktop.
///
/// # Errors
/// Per node, why it was left out; for [`explain`].
pub fn place(view: &View, request: &Request, limits: Limits) -> Result<Placed, Vec<Rejection>> {
    let mut best: Option<Placed> = None;
    let mut rejections = vec![];
    // Nodes come by name, so of equals the first name wins.
    for (facts, state) in view.nodes() {
        match on_node(view, facts, state, request, limits) {
            Ok(plan) => {
                if best.as_ref().is_none_or(|best| plan.score < best.plan.score) {
                    best = Some(Placed { node: facts.name.clone(), plan });
                }
            }
            Err(rejection) => rejections.push(rejection),
        }
    }
    best.ok_or(rejections)
}

fn on_node(
    view: &View,
    facts: &NodeFacts,
    state: &NodeState,
    request: &Request,
    limits: Limits,
) -> Result<Plan, Rejection> {
    if request.home.as_ref().is_some_and(|home| *home != facts.name) {
        return Err(Rejection::NotHome);
    }
    if !request.node_selector.iter().all(|(key, value)| facts.labels.get(key) == Some(value)) {
        return Err(Rejection::Selector);
    }
    if facts.cordoned {
        return Err(Rejection::Cordoned);
    }
    if !facts.ready {
        return Err(Rejection::NotReady);
    }
    if view.is_silent(&facts.name) {
        return Err(Rejection::Silent);
    }
    fit::fit(facts, &used_by_others(facts, state, request), request, limits).map_err(Rejection::Misfit)
}

/// What others hold on a node: a desktop that is decided anew is not in its own way.
fn used_by_others<'a>(facts: &NodeFacts, state: &'a NodeState, request: &Request) -> Cow<'a, NodeUse> {
    let own = request.desktop.to_string();
    let left_behind = || {
        let mut instances = facts.cards.iter().flat_map(|card| &card.device.instances);
        instances.any(|instance| instance.owner.as_ref() == Some(&own))
    };
    if state.held.contains_key(&request.desktop) || left_behind() {
        Cow::Owned(NodeUse::of(facts, &state.held, Some(&request.desktop)))
    } else {
        Cow::Borrowed(&state.used)
    }
}

/// Why a desktop waits: whether for room that others have, or for a host that is not there.
pub fn explain(view: &View, request: &Request, rejections: &[Rejection], limits: Limits) -> Explanation {
    let on_empty = |facts: &NodeFacts| {
        if request.home.as_ref().is_some_and(|home| *home != facts.name) {
            return Err(Rejection::NotHome);
        }
        if !request.node_selector.iter().all(|(key, value)| facts.labels.get(key) == Some(value)) {
            return Err(Rejection::Selector);
        }
        fit::fit(facts, &NodeUse::empty(facts), request, limits).map_err(Rejection::Misfit)
    };
    let mut on_empty_nodes = vec![];
    for (facts, _) in view.nodes() {
        match on_empty(facts) {
            Ok(_) => {
                let message = explain::summary(request, rejections.iter());
                return Explanation { reason: Reason::Unschedulable, message };
            }
            Err(rejection) => on_empty_nodes.push(rejection),
        }
    }
    let counts = explain::summary(request, on_empty_nodes.iter());
    // Failed or kept cards, labels and absent nodes come and go: only a size is beyond all hope.
    let too_small = |rejection: &Rejection| match rejection {
        Rejection::Misfit(Misfit::Compute(_) | Misfit::OnCell(_) | Misfit::Apart) => true,
        Rejection::Misfit(Misfit::Gpus(gpus)) => !is_refused(gpus.why),
        Rejection::Cordoned
        | Rejection::NotReady
        | Rejection::Silent
        | Rejection::Selector
        | Rejection::NotHome => false,
    };
    let may_come_back = |rejection: &Rejection| match rejection {
        Rejection::Misfit(Misfit::Gpus(gpus)) => is_refused(gpus.why),
        _ => false,
    };
    let unknown = view.nodes().any(|(facts, _)| facts.cells.is_empty());
    if !unknown && on_empty_nodes.iter().any(too_small) && !on_empty_nodes.iter().any(may_come_back) {
        explain::unsatisfiable(request, view.nodes().map(|(facts, _)| facts), &counts)
    } else {
        Explanation { reason: Reason::Unschedulable, message: explain::summary(request, rejections.iter()) }
    }
}

fn is_refused(why: card::NoShare) -> bool {
    matches!(why, card::NoShare::Refused(_))
}
