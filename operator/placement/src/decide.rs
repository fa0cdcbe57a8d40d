//! One decision: the best node of the estate for a request, by numbered steps.

use std::collections::BTreeMap;
use std::sync::Arc;

use gpudesk_crds::{
    Allocation, Compute, GpuAllocation,
    allocation::{DecisionRecord, FilteredNodes, HostDeviceAllocation, ScoredNode},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::{
    affinity::Ruling,
    explain,
    filters::Rejection,
    fit::{Plan, Prepared},
    ranking::{NodeId, Ranking, Verdict},
    request::{Demand, Request},
    score::Score,
    snapshot::Snapshot,
};

/// Verdicts that all rankings together keep, of some fifty bytes each; beyond, the ranking that was not
/// used for the longest time goes.
const VERDICTS: usize = 1 << 20;
/// How many of the best nodes a decision tells of.
const TOLD: usize = 3;
/// How many reasons a decision tells of.
const REASONS: usize = 16;

/// A decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// The node.
    pub node: String,
    /// What it is worth.
    pub score: Score,
    /// CPUs and memory.
    pub compute: Compute,
    /// Shares of GPUs.
    pub gpus: Vec<GpuAllocation>,
    /// Functions of network cards, and drives.
    pub host_devices: Vec<HostDeviceAllocation>,
    /// The NVLink fabric partition that the cards form.
    pub fabric_partition: Option<i32>,
    /// Why it is there.
    pub record: DecisionRecord,
}

impl Placed {
    /// As an allocation that is never written; generations as in `like`.
    pub fn allocation(&self, like: Option<&Allocation>) -> Allocation {
        Allocation {
            node: self.node.clone(),
            desktop_generation: like.map_or(0, |like| like.desktop_generation),
            template_generation: like.map_or(0, |like| like.template_generation),
            restarted_at: like.and_then(|like| like.restarted_at.clone()),
            stop_for: None,
            made_of: None,
            id: None,
            decided_at: Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH),
            compute: Some(self.compute.clone()),
            gpus: self.gpus.clone(),
            host_devices: self.host_devices.clone(),
            fabric_partition: self.fabric_partition,
            decision: None,
        }
    }
}

/// There is no room: why each node was left out, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NoRoom {
    /// Reasons and how many nodes.
    pub rejections: BTreeMap<Rejection, usize>,
}

/// A node on which the request would stand.
#[derive(Clone, Debug)]
struct Contender {
    id: NodeId,
    name: Arc<str>,
    score: Score,
    apart: bool,
    plan: Option<Plan>,
}

impl Snapshot {
    /// Chooses node, cards, shares, CPUs and memory for a desktop. Takes nothing: see
    /// [`Snapshot::assume`].
    ///
    /// The score of the choice is the least of all nodes, as if each had been looked at.
    ///
    /// # Errors
    /// Why no node will do.
    pub fn place(&mut self, request: &Request) -> Result<Placed, NoRoom> {
        let position = self.ranking_for(&request.demand);
        let contenders = self.contenders(position, request);
        let Some(best) = contenders.first().cloned() else {
            return Err(self.no_room(position, request));
        };
        let prepared = self.prepared(position);
        let without = best.apart.then_some(&request.desktop);
        let plan = match best.plan {
            Some(plan) => plan,
            None => match self.estate.fit(&prepared, best.id, without, None) {
                Ok(plan) => plan,
                Err(_) => return Err(self.no_room(position, request)),
            },
        };
        let Some((compute, gpus, host_devices)) = self.estate.build(&prepared, best.id, without, &plan)
        else {
            return Err(self.no_room(position, request));
        };
        Ok(Placed {
            node: best.name.to_string(),
            score: best.score,
            compute,
            gpus,
            host_devices,
            fabric_partition: plan.found.partition,
            record: self.record(position, request, &contenders),
        })
    }

    /// The least score of all nodes, found by looking at each of them: what [`Snapshot::place`] must
    /// equal, and what it is measured against. Nothing is remembered from node to node.
    pub fn best_score_of_all(&mut self, request: &Request) -> Option<(Score, String)> {
        let prepared = Prepared::new(&mut self.estate.tables, &request.demand);
        let apart = self.own_nodes(request);
        let ruling = self.ruling(request);
        let ids: Vec<NodeId> = self.estate.existing().map(|(id, _)| id).collect();
        let mut best: Option<(Score, Arc<str>)> = None;
        for id in ids {
            let without = apart.contains(&id).then_some(&request.desktop);
            let mut found = self.verdict_of(request, ruling.as_ref(), &prepared, id, without).ok();
            if let Some(previous) =
                request.previous.as_ref().filter(|previous| *previous.node == *self.name(id))
                && let Some(plan) = &found
            {
                let affinity = plan.score.affinity;
                let again = self.estate.fit(&prepared, id, without, Some(previous)).ok();
                let again = again.map(|mut again| {
                    again.score.affinity = affinity;
                    again
                });
                found = again.filter(|again| again.score < plan.score).or(found);
            }
            if let Some(plan) = found {
                let name = self.name(id);
                if best.as_ref().is_none_or(|(score, best)| (plan.score, &name) < (*score, best)) {
                    best = Some((plan.score, name));
                }
            }
        }
        best.map(|(score, name)| (score, name.to_string()))
    }

    /// Per node, why it will not do; nothing where it would.
    pub fn rejections(&mut self, request: &Request) -> Vec<(String, Option<Rejection>)> {
        let position = self.ranking_for(&request.demand);
        let apart = self.own_nodes(request);
        let ruling = self.ruling(request);
        let prepared = self.prepared(position);
        let ids: Vec<NodeId> = self.estate.existing().map(|(id, _)| id).collect();
        let mut found = vec![];
        for id in ids {
            let without = apart.contains(&id).then_some(&request.desktop);
            let why = self.verdict_of(request, ruling.as_ref(), &prepared, id, without).err();
            found.push((self.name(id).to_string(), why));
        }
        found
    }

    fn verdict_of(
        &mut self,
        request: &Request,
        ruling: Option<&Ruling>,
        prepared: &Prepared,
        id: NodeId,
        without: Option<&crate::request::DesktopKey>,
    ) -> Result<Plan, Rejection> {
        if request.home.as_deref().is_some_and(|home| home != &*self.name(id)) {
            return Err(Rejection::NotHome);
        }
        let mut plan = self.estate.fit(prepared, id, without, None)?;
        plan.score.affinity = self.penalty(ruling, id).ok_or(Rejection::Affinity)?;
        Ok(plan)
    }

    /// Step 1: the ranking of what is asked for, up to date.
    pub(crate) fn ranking_for(&mut self, demand: &Arc<Demand>) -> usize {
        if self.estate.tables.is_full() {
            self.estate.begin_tables_again();
            self.totals.clear();
            self.rankings.clear();
            self.ranking_of.clear();
        }
        self.decisions += 1;
        let position = match self.ranking_of.get(demand) {
            Some(position) => *position,
            None => self.add_ranking(demand),
        };
        if let Some(ranking) = self.rankings.get_mut(position) {
            ranking.used_at = self.decisions;
            self.estate.refresh(ranking);
        }
        position
    }

    fn add_ranking(&mut self, demand: &Arc<Demand>) -> usize {
        let prepared = Prepared::new(&mut self.estate.tables, demand);
        let ranking = Ranking::new(prepared);
        let most = VERDICTS / self.estate.names().len().next_power_of_two();
        let oldest = || self.rankings.iter().enumerate().min_by_key(|(_, ranking)| ranking.used_at);
        let position = match (self.rankings.len() < most, oldest()) {
            (false, Some((position, _))) => position,
            _ => self.rankings.len(),
        };
        if let Some(slot) = self.rankings.get_mut(position) {
            self.ranking_of.remove(&slot.prepared.demand);
            *slot = ranking;
        } else {
            self.rankings.push(ranking);
        }
        self.ranking_of.insert(demand.clone(), position);
        position
    }

    pub(crate) fn prepared(&self, position: usize) -> Prepared {
        let ranking = self.rankings.get(position);
        ranking.map_or_else(Prepared::default, |ranking| ranking.prepared.clone())
    }

    fn name(&self, id: NodeId) -> Arc<str> {
        let position = usize::try_from(id).unwrap_or(usize::MAX);
        self.estate.names().get(position).cloned().unwrap_or_default()
    }

    /// Step 2: nodes where the desktop itself holds something or left something behind: what is its
    /// own is not in its way there.
    fn own_nodes(&self, request: &Request) -> Vec<NodeId> {
        let held = self.holds(&request.desktop).and_then(|allocation| self.estate.id(&allocation.node));
        let left = self.left_behind.get(&request.desktop.to_string());
        let mut own: Vec<NodeId> = held.into_iter().chain(left.into_iter().flatten().copied()).collect();
        own.sort_unstable();
        own.dedup();
        own
    }

    fn ruling(&self, request: &Request) -> Option<Ruling> {
        self.neighbours.ruling(request, |node| self.estate.facts_of(node))
    }

    fn penalty(&self, ruling: Option<&Ruling>, id: NodeId) -> Option<u16> {
        let Some(ruling) = ruling else { return Some(0) };
        let facts = self.estate.node(id).and_then(|state| state.facts.as_deref());
        facts.and_then(|facts| ruling.penalty(facts))
    }

    /// Steps 3 to 6: who is in question, the best first; at most as many as are told of.
    fn contenders(&mut self, position: usize, request: &Request) -> Vec<Contender> {
        let own = self.own_nodes(request);
        let ruling = self.ruling(request);
        let prepared = self.prepared(position);
        let mut contenders = vec![];
        // 3. Its home, if it has one; else its own nodes, judged without what it holds.
        let home = request.home.as_deref().map(|home| self.estate.id(home));
        let apart: Vec<NodeId> = match home {
            Some(home) => home.into_iter().collect(),
            None => own.clone(),
        };
        for id in &apart {
            let without = own.contains(id).then_some(&request.desktop);
            if let Ok(plan) = self.verdict_of(request, ruling.as_ref(), &prepared, *id, without) {
                contenders.push(self.contender(*id, plan, without.is_some()));
            }
        }
        // 4. All others, in the order of the ranking.
        if home.is_none() {
            self.add_ranked(position, &own, ruling.as_ref(), &mut contenders);
        }
        // 5. The cards that it had before.
        if let Some(previous) = &request.previous
            && let Some(id) = self.estate.id(&previous.node)
            && home.is_none_or(|home| home == Some(id))
            && let Some(affinity) = self.penalty(ruling.as_ref(), id)
        {
            let without = own.contains(&id).then_some(&request.desktop);
            if let Ok(mut plan) = self.estate.fit(&prepared, id, without, Some(previous)) {
                plan.score.affinity = affinity;
                let again = self.contender(id, plan, without.is_some());
                contenders.retain(|other| other.id != id || other.score < again.score);
                if contenders.iter().all(|other| other.id != id) {
                    contenders.push(again);
                }
            }
        }
        // 6. The least score wins, then the first name.
        contenders.sort_by(|a, b| (a.score, &a.name).cmp(&(b.score, &b.name)));
        contenders.truncate(TOLD);
        contenders
    }

    fn contender(&self, id: NodeId, plan: Plan, apart: bool) -> Contender {
        Contender { id, name: self.name(id), score: plan.score, apart, plan: Some(plan) }
    }

    /// The best of the ranking, as many as are told of. Affinity that is preferred can put a later
    /// one before an earlier one, as long as what weighs more is equal.
    fn add_ranked(
        &self,
        position: usize,
        own: &[NodeId],
        ruling: Option<&Ruling>,
        into: &mut Vec<Contender>,
    ) {
        let Some(ranking) = self.rankings.get(position) else { return };
        let mut kept: Vec<Contender> = vec![];
        for (id, mut score) in ranking.in_order(self.estate.names()) {
            let worst = kept.get(TOLD - 1).map(|contender| contender.score);
            // What comes now is no better than this, whatever affinity says of it; of equals the
            // first name came first.
            if worst.is_some_and(|worst| worst <= score) {
                break;
            }
            if own.contains(&id) {
                continue;
            }
            let Some(affinity) = self.penalty(ruling, id) else { continue };
            score.affinity = affinity;
            kept.push(Contender { id, name: self.name(id), score, apart: false, plan: None });
            kept.sort_by(|a, b| (a.score, &a.name).cmp(&(b.score, &b.name)));
            kept.truncate(TOLD);
        }
        into.extend(kept);
    }

    /// The account of all nodes for a request for which there is no room.
    fn no_room(&mut self, position: usize, request: &Request) -> NoRoom {
        NoRoom { rejections: self.count_rejections(position, request) }
    }

    fn count_rejections(&mut self, position: usize, request: &Request) -> BTreeMap<Rejection, usize> {
        let own = self.own_nodes(request);
        let ruling = self.ruling(request);
        let prepared = self.prepared(position);
        let mut counts: BTreeMap<Rejection, usize> = BTreeMap::new();
        let mut apart = own;
        if let Some(home) = &request.home {
            apart =
                self.estate.id(home).filter(|_| self.estate.facts_of(home).is_some()).into_iter().collect();
            let others = self.estate.count() - apart.len();
            if others > 0 {
                counts.insert(Rejection::NotHome, others);
            }
        } else if let Some(ranking) = self.rankings.get(position) {
            counts.extend(ranking.reasons().iter().copied());
            for id in &apart {
                if let Verdict::Not(reason) = ranking.verdict(*id)
                    && let Some(count) = counts.get_mut(&reason)
                {
                    *count -= 1;
                }
            }
            if let Some(ruling) = &ruling {
                let forbidden = ranking
                    .in_order(self.estate.names())
                    .filter(|(id, _)| !apart.contains(id) && self.penalty(Some(ruling), *id).is_none());
                let forbidden = forbidden.count();
                if forbidden > 0 {
                    *counts.entry(Rejection::Affinity).or_default() += forbidden;
                }
            }
        }
        for id in apart {
            let without =
                (request.home.is_none() || self.own_nodes(request).contains(&id)).then_some(&request.desktop);
            if let Err(reason) = self.verdict_of(request, ruling.as_ref(), &prepared, id, without) {
                *counts.entry(reason).or_default() += 1;
            }
        }
        counts.retain(|_, count| *count > 0);
        counts
    }

    /// What is told of a decision: who was left out and why, and the best three.
    fn record(&mut self, position: usize, request: &Request, contenders: &[Contender]) -> DecisionRecord {
        let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        let mut texts: BTreeMap<String, usize> = BTreeMap::new();
        for (rejection, count) in self.count_rejections(position, request) {
            let mut text = explain::text(request, &rejection);
            text.truncate(text.char_indices().nth(128).map_or(text.len(), |(at, _)| at));
            *texts.entry(text).or_default() += count;
        }
        let mut filtered: Vec<FilteredNodes> =
            texts.into_iter().map(|(reason, nodes)| FilteredNodes { reason, nodes: number(nodes) }).collect();
        filtered.sort_by_key(|filtered| std::cmp::Reverse(filtered.nodes));
        filtered.truncate(REASONS);
        DecisionRecord {
            nodes: number(self.estate.count()),
            filtered,
            best: contenders
                .iter()
                .map(|contender| ScoredNode {
                    node: contender.name.to_string(),
                    score: contender.score.to_string(),
                })
                .collect(),
        }
    }
}
