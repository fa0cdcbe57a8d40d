//! What would fit if others moved. Thought of, shown, never done.

use std::sync::Arc;

use gpudesk_crds::Allocation;

use crate::{
    Placed,
    ranking::NodeId,
    request::{DesktopKey, Request},
    snapshot::Snapshot,
};

/// Nodes that are looked at, those first on which the least is in the way.
const NODES: usize = 6;
/// Sets of desktops that are tried altogether.
const TRIES: usize = 96;

/// A desktop that would move.
#[derive(Clone, Debug, PartialEq)]
pub struct Move {
    /// The desktop.
    pub desktop: DesktopKey,
    /// Where it is.
    pub from: String,
    /// Where it would be.
    pub to: Placed,
}

impl Snapshot {
    /// The fewest desktops, at most `most`, after whose move the request fits, with a place for each
    /// of them; and the number of the node that it would then get. A bounded search: finding nothing
    /// proves nothing.
    ///
    /// Desktops move that are known by what they ask for; one that its disks bind to its node moves
    /// on that node only.
    pub fn fits_after_moving(&mut self, request: &Request, most: usize) -> Option<(NodeId, Vec<Move>)> {
        let mut tries = TRIES;
        let nodes = self.nodes_in_question(request);
        for size in 1..=most {
            for (id, held) in &nodes {
                for set in sets(held.len(), size) {
                    if tries == 0 {
                        return None;
                    }
                    tries -= 1;
                    let victims: Vec<&(DesktopKey, Arc<Allocation>)> =
                        set.iter().filter_map(|position| held.get(*position)).collect();
                    if let Some(moves) = self.try_moving(request, *id, &victims) {
                        return Some((*id, moves));
                    }
                }
            }
        }
        None
    }

    /// Nodes that would do if they were empty, with the desktops that may be in the way: the least
    /// taken first, and of a node's desktops those with the smallest shares.
    #[expect(clippy::type_complexity, reason = "a list that lives for one call")]
    pub(crate) fn nodes_in_question(
        &mut self,
        request: &Request,
    ) -> Vec<(NodeId, Vec<(DesktopKey, Arc<Allocation>)>)> {
        let position = self.ranking_for(&request.demand);
        let prepared = self.prepared(position);
        let candidates: Vec<(usize, NodeId)> = self
            .estate
            .existing()
            .filter(|(_, facts)| request.home.as_deref().is_none_or(|home| home == &*facts.name))
            .filter(|(_, facts)| {
                !facts.is_cordoned() && facts.ready && self.estate.closed(&facts.name).is_none()
            })
            .filter_map(|(id, _)| Some((self.estate.node(id)?.held.len(), id)))
            .filter(|(held, _)| *held > 0)
            .collect();
        let mut named: Vec<(usize, Arc<str>, NodeId)> = candidates
            .into_iter()
            .filter_map(|(held, id)| Some((held, self.estate.node(id)?.facts.as_ref()?.name.clone(), id)))
            .collect();
        named.sort();
        let mut found = vec![];
        for (_, _, id) in named {
            if found.len() >= NODES {
                break;
            }
            if self.estate.fit_empty(&prepared, id).is_err() {
                continue;
            }
            let Some(state) = self.estate.node(id) else { continue };
            let mut held: Vec<(DesktopKey, Arc<Allocation>)> = state
                .held
                .iter()
                .filter(|(key, _)| **key != request.desktop && self.wish(key).is_some())
                .map(|(key, held)| (key.clone(), held.allocation.clone()))
                .collect();
            let size = |allocation: &Allocation| -> i64 {
                allocation.gpus.iter().map(|gpu| gpu.framebuffer_mib).sum()
            };
            held.sort_by(|(a, x), (b, y)| (size(x), a).cmp(&(size(y), b)));
            found.push((id, held));
        }
        found
    }

    /// Takes `victims` away, puts the request in, and looks for a place for each of them. Leaves
    /// everything as it was.
    fn try_moving(
        &mut self,
        request: &Request,
        id: NodeId,
        victims: &[&(DesktopKey, Arc<Allocation>)],
    ) -> Option<Vec<Move>> {
        let node = self.estate.node(id)?.facts.as_ref()?.name.to_string();
        for (key, _) in victims {
            self.lift(key, &node);
        }
        let moves = self.move_all(request, &node, victims);
        for (key, allocation) in victims {
            self.put_down(key, allocation);
        }
        moves
    }

    fn move_all(
        &mut self,
        request: &Request,
        node: &str,
        victims: &[&(DesktopKey, Arc<Allocation>)],
    ) -> Option<Vec<Move>> {
        let here = Request { home: Some(node.to_owned()), ..request.clone() };
        let own = self.holds(&request.desktop).cloned();
        let placed = self.place(&here).ok()?;
        if let Some(own) = &own {
            self.lift(&request.desktop, &own.node);
        }
        let mut standing = vec![(request.desktop.clone(), placed.allocation(None))];
        self.put_down(&request.desktop, &Arc::new(standing.first()?.1.clone()));
        let mut moves = vec![];
        for (key, allocation) in victims {
            let Some(asked) = self.request_of(key) else { break };
            let Ok(to) = self.place(&asked) else { break };
            let there = to.allocation(Some(allocation));
            self.put_down(key, &Arc::new(there.clone()));
            standing.push((key.clone(), there));
            moves.push(Move { desktop: key.clone(), from: allocation.node.clone(), to });
        }
        for (key, allocation) in &standing {
            self.lift(key, &allocation.node);
        }
        if let Some(own) = &own {
            self.put_down(&request.desktop, own);
        }
        (moves.len() == victims.len()).then_some(moves)
    }

    /// What a desktop that holds a place would ask for if it were decided anew.
    pub fn request_of(&self, key: &DesktopKey) -> Option<Request> {
        let wish = self.wish(key)?;
        Some(Request {
            desktop: key.clone(),
            labels: self.labels(key),
            affinity: wish.affinity.clone(),
            home: wish.home.clone(),
            previous: None,
            demand: wish.demand.clone(),
        })
    }
}

/// The subsets of `0..count` with `size` members, in order.
fn sets(count: usize, size: usize) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]];
    for _ in 0..size {
        let longer = |set: &Vec<usize>| {
            let first = set.last().map_or(0, |last| last + 1);
            let set = set.clone();
            (first..count)
                .map(move |next| set.iter().copied().chain([next]).collect::<Vec<_>>())
                .collect::<Vec<_>>()
        };
        all = all.iter().flat_map(longer).take(TRIES).collect();
    }
    all.retain(|set| set.len() == size);
    all
}
