//! The plan itself: every desktop that wants a place is decided, each counting on those before it, by
//! the same engine as in the operator. Pure.

use std::{collections::BTreeMap, sync::Arc};

use gpudesk_crds::{Allocation, Desktop, GROUP, VERSION, types::PciAddress};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

use super::{
    document::{Defragmentation, DesktopPlan, FewestCards, PlannedDesktop, PlannedMove, State, Summary},
    estate::Estate,
    order::{Candidate, Intent, candidates},
    room, usage,
};
use crate::{
    desktop::validate::Wanted,
    placement::{Placed, compute::Limits, need::CardsNeeded, snapshot::Snapshot},
};

/// Which plan is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bounds of the operator.
    pub limits: Limits,
    /// Plan for stopped desktops too, as if all were started.
    pub all: bool,
    /// Look for moves that make room for pending desktops, at most so many for each.
    pub most_moves: Option<usize>,
}

/// How far a plan is: what is done now, and how much of it.
pub type Progress<'a> = &'a mut dyn FnMut(&str, usize);

/// A snapshot in the making and what became of each desktop.
#[derive(Clone)]
pub(crate) struct Round<'a> {
    estate: &'a Estate,
    limits: Limits,
    pub(crate) snapshot: Snapshot,
    pub(crate) desktops: Vec<PlannedDesktop>,
}

/// Plans.
///
/// # Errors
/// What is wrong with manifests, a sentence each.
pub fn plan(estate: &Estate, options: Options, progress: Progress<'_>) -> Result<DesktopPlan, Vec<String>> {
    let candidates = candidates(estate, options.all)?;
    let mut round = Round::new(estate, options.limits, &candidates, true);
    for (done, candidate) in candidates.iter().enumerate() {
        progress("desktops decided", done);
        round.decide(candidate);
    }
    let room = room::room(&round, &candidates, progress);
    round.snapshot.catch_up();
    let stranded = stranded(&round.snapshot);
    let demands = candidates.iter().zip(&round.desktops).filter_map(|(candidate, planned)| {
        let runs = planned.state != State::Stopped;
        candidate.wanted.as_ref().filter(|_| runs).map(|wanted| &wanted.request.demand)
    });
    let fewest_cards = round.snapshot.cards_needed(demands).products.into_iter().map(|product| {
        let CardsNeeded { product, cards, needed } = product;
        FewestCards { product, cards, needed }
    });
    let fewest_cards = fewest_cards.collect();
    let defragmentation = match options.most_moves {
        Some(most) => round.clone().defragment(&candidates, most, progress),
        None => vec![],
    };
    let desktops = round.desktops;
    let count = |state: State| desktops.iter().filter(|desktop| desktop.state == state).count();
    Ok(DesktopPlan {
        api_version: format!("{GROUP}/{VERSION}"),
        kind: "DesktopPlan".into(),
        summary: Summary {
            desktops: desktops.len(),
            held: count(State::Held),
            placed: count(State::Placed),
            pending: count(State::Pending),
            stopped: count(State::Stopped),
        },
        nodes: usage::nodes(&estate.nodes, &desktops, &stranded),
        desktops,
        defragmentation,
        room,
        fewest_cards,
        notes: estate.notes.clone(),
    })
}

/// Of the free units of each card, how many in a thousand the mix cannot use.
fn stranded(snapshot: &Snapshot) -> BTreeMap<(String, PciAddress), i32> {
    let fragments = snapshot.fragmentation().into_iter();
    fragments.map(|fragment| ((fragment.node, fragment.card), fragment.stranded_permille)).collect()
}

impl<'a> Round<'a> {
    /// Before any decision: the machines, the mix of what is asked for, and, with `held`, what desktops
    /// hold already.
    pub(crate) fn new(estate: &'a Estate, limits: Limits, candidates: &[Candidate], held: bool) -> Self {
        let mut snapshot = Snapshot::new(limits);
        for node in estate.nodes.values() {
            snapshot.node_seen(node);
        }
        snapshot.set_silent(estate.silent());
        for candidate in candidates {
            if held {
                snapshot.desktop_seen(&candidate.desktop);
            } else {
                let desktop = Desktop { status: None, ..(*candidate.desktop).clone() };
                snapshot.desktop_seen(&desktop);
            }
            snapshot.wants(&candidate.key, candidate.wanted.as_ref().map(|wanted| &wanted.request));
        }
        Self { estate, limits, snapshot, desktops: vec![] }
    }

    /// The bounds.
    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Finds a place for a desktop that wants one, and counts it as taken.
    pub(crate) fn decide(&mut self, candidate: &Candidate) {
        let mut planned = standing(candidate);
        if let Intent::Wants(wanted) = &candidate.intent {
            self.snapshot.catch_up();
            if let Ok(placed) = self.snapshot.place(&wanted.request) {
                let allocation = Arc::new(allocation(placed, &candidate.desktop, wanted));
                self.snapshot.take(&candidate.key, &allocation);
                planned.state = State::Placed;
                fill(&mut planned, &allocation);
            } else {
                let explanation = self.snapshot.explain(&wanted.request);
                planned.reason = Some(explanation.reason.as_str().into());
                planned.message = Some(explanation.message);
            }
        }
        self.desktops.push(planned);
    }

    /// Which desktops would have to move for pending ones to fit.
    fn defragment(
        mut self,
        candidates: &[Candidate],
        most: usize,
        progress: Progress<'_>,
    ) -> Vec<Defragmentation> {
        let mut found = vec![];
        let pending: Vec<&Candidate> = candidates
            .iter()
            .zip(&self.desktops)
            .filter(|(_, desktop)| desktop.state == State::Pending)
            .map(|(candidate, _)| candidate)
            .collect();
        for (done, candidate) in pending.into_iter().enumerate() {
            progress("pending desktops for which moves were sought", done);
            found.extend(self.after_moving(candidates, candidate, most));
        }
        found
    }

    /// What would have to move for a desktop to fit, at most so many others; all of it counts as done
    /// then. `None` when no such moves are known.
    pub(crate) fn after_moving(
        &mut self,
        candidates: &[Candidate],
        asked: &Candidate,
        most: usize,
    ) -> Option<Defragmentation> {
        let Intent::Wants(wanted) = &asked.intent else { return None };
        self.snapshot.catch_up();
        let (_, steps) = self.snapshot.fits_after_moving(&wanted.request, most)?;
        let mut moves = vec![];
        for step in steps {
            let other = candidates.iter().find(|candidate| candidate.key == step.desktop)?;
            let allocation = Arc::new(allocation(step.to, &other.desktop, other.wanted.as_ref()?));
            self.snapshot.take(&step.desktop, &allocation);
            let planned =
                self.desktops.iter_mut().find(|planned| planned.full_name() == step.desktop.to_string())?;
            let from_gpus = planned.gpus.clone();
            fill(planned, &allocation);
            moves.push(PlannedMove {
                desktop: step.desktop.to_string(),
                from: step.from,
                from_gpus,
                to: allocation.node.clone(),
                to_gpus: allocation.gpus.clone(),
            });
        }
        self.snapshot.catch_up();
        let placed = self.snapshot.place(&wanted.request).ok()?;
        let allocation = Arc::new(allocation(placed, &asked.desktop, wanted));
        self.snapshot.take(&asked.key, &allocation);
        Some(Defragmentation {
            desktop: asked.key.to_string(),
            moves,
            node: allocation.node.clone(),
            gpus: allocation.gpus.clone(),
        })
    }

    /// The estate.
    pub(crate) fn estate(&self) -> &'a Estate {
        self.estate
    }
}

/// What a decision would be as a record. A plan has no time.
pub(crate) fn allocation(placed: Placed, desktop: &Desktop, wanted: &Wanted) -> Allocation {
    let Placed { node, score: _, compute, gpus, host_devices, fabric_partition, record } = placed;
    Allocation {
        node,
        desktop_generation: desktop.metadata.generation.unwrap_or_default(),
        template_generation: wanted.template_generation,
        restarted_at: wanted.restarted_at.clone(),
        stop_for: None,
        made_of: None,
        id: None,
        decided_at: Time(Timestamp::UNIX_EPOCH),
        compute: Some(compute),
        gpus,
        host_devices,
        fabric_partition,
        decision: Some(record),
    }
}

/// How a desktop stands before anything is decided.
pub(crate) fn standing(candidate: &Candidate) -> PlannedDesktop {
    let mut planned = PlannedDesktop {
        namespace: candidate.key.namespace.clone(),
        name: candidate.key.name.clone(),
        state: State::Pending,
        priority: candidate.desktop.spec.priority,
        node: None,
        compute: None,
        gpus: vec![],
        host_devices: vec![],
        fabric_partition: None,
        decision: None,
        not_yet_supported: candidate.refused.clone(),
        reason: None,
        message: None,
    };
    match &candidate.intent {
        Intent::Wants(_) => {}
        Intent::Rests => planned.state = State::Stopped,
        Intent::Holds(allocation) => {
            planned.state = State::Held;
            fill(&mut planned, allocation);
        }
        Intent::Cannot(invalid) => {
            planned.reason = Some(invalid.reason.as_str().into());
            planned.message = Some(invalid.message.clone());
        }
    }
    planned
}

fn fill(planned: &mut PlannedDesktop, allocation: &Allocation) {
    planned.node = Some(allocation.node.clone());
    planned.compute.clone_from(&allocation.compute);
    planned.gpus.clone_from(&allocation.gpus);
    planned.host_devices.clone_from(&allocation.host_devices);
    planned.fabric_partition = allocation.fabric_partition;
    planned.decision.clone_from(&allocation.decision);
}
