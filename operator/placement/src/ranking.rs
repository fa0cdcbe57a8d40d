//! The nodes in the order in which they suit one demand, kept up by events.
//!
//! A verdict depends on the demand and on one node. So only nodes that have changed since a ranking was
//! used are judged anew when it is used again, and the best of all is read off a tournament tree. Desktops
//! of one template share a demand: a decision costs as much as a few nodes, however many there are, and a
//! change costs nothing, however many demands there are.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::Arc;

use crate::{filters::Rejection, fit::Prepared, score::Score};

/// Number of a node in the snapshot.
pub type NodeId = u32;

/// What a demand finds on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is no such node.
    Absent,
    /// It fits, and so well.
    Fits(Score),
    /// It does not, for this reason.
    Not(Rejection),
}

/// The nodes in the order of one demand.
#[derive(Clone, Debug)]
pub struct Ranking {
    /// The demand.
    pub prepared: Prepared,
    /// When it was used last, counted in decisions.
    pub used_at: u64,
    /// What is known of it on empty nodes: for which version of the nodes, and whether it fits.
    pub fits_empty: Option<(u64, bool)>,
    /// The nearest fit by moving others: for which version, and how many would move where.
    pub nearest: Option<(u64, Option<(usize, NodeId)>)>,
    verdicts: Vec<Verdict>,
    reasons: Vec<(Rejection, usize)>,
    winners: Vec<NodeId>,
    width: usize,
    /// Until which change of the estate its verdicts hold.
    pub judged_at: u64,
}

const NOBODY: NodeId = NodeId::MAX;

fn at(id: NodeId) -> usize {
    usize::try_from(id).unwrap_or(usize::MAX)
}

impl Ranking {
    /// A ranking in which all nodes are still to be judged.
    pub fn new(prepared: Prepared) -> Self {
        Self {
            prepared,
            used_at: 0,
            fits_empty: None,
            nearest: None,
            verdicts: vec![],
            reasons: vec![],
            winners: vec![],
            width: 0,
            judged_at: 0,
        }
    }

    /// Notes what was found on nodes. `names` are the nodes' names by number.
    pub fn set(&mut self, found: &[(NodeId, Verdict)], names: &[Arc<str>]) {
        if self.width < names.len() {
            self.width = names.len().next_power_of_two();
            self.verdicts.resize(self.width, Verdict::Absent);
            self.winners.clear();
        }
        // Another node may have the number by now, and so another name.
        let plays =
            |before: Verdict, verdict: Verdict| before != verdict || matches!(verdict, Verdict::Fits(_));
        let mut changed = vec![];
        for &(id, verdict) in found {
            let Some(slot) = self.verdicts.get_mut(at(id)) else { continue };
            let before = std::mem::replace(slot, verdict);
            if !plays(before, verdict) {
                continue;
            }
            if let Verdict::Not(reason) = before {
                self.count(reason, false);
            }
            if let Verdict::Not(reason) = verdict {
                self.count(reason, true);
            }
            changed.push(id);
        }
        // A game for each change and round, or all games once.
        if self.winners.is_empty() || changed.len() > self.width / 8 {
            self.play_all(names);
        } else {
            for id in changed {
                self.play(id, names);
            }
        }
    }

    fn count(&mut self, reason: Rejection, more: bool) {
        let position = self.reasons.iter().position(|(known, _)| *known == reason);
        match (position, more) {
            (Some(position), true) => {
                if let Some((_, count)) = self.reasons.get_mut(position) {
                    *count += 1;
                }
            }
            (None, true) => self.reasons.push((reason, 1)),
            (Some(position), false) => {
                if let Some((_, count)) = self.reasons.get_mut(position) {
                    *count -= 1;
                    if *count == 0 {
                        self.reasons.swap_remove(position);
                    }
                }
            }
            (None, false) => {}
        }
    }

    /// Plays all games.
    fn play_all(&mut self, names: &[Arc<str>]) {
        self.winners = vec![NOBODY; 2 * self.width];
        for (id, (leaf, verdict)) in (0..).zip(self.winners.iter_mut().skip(self.width).zip(&self.verdicts)) {
            if matches!(verdict, Verdict::Fits(_)) {
                *leaf = id;
            }
        }
        for position in (1..self.width).rev() {
            self.decide(position, names);
        }
    }

    /// Plays the games of a node again, from its leaf to the root.
    fn play(&mut self, id: NodeId, names: &[Arc<str>]) {
        let mut position = self.width + at(id);
        let fits = matches!(self.verdicts.get(at(id)), Some(Verdict::Fits(_)));
        if let Some(leaf) = self.winners.get_mut(position) {
            *leaf = if fits { id } else { NOBODY };
        }
        while position > 1 {
            position /= 2;
            self.decide(position, names);
        }
    }

    fn decide(&mut self, position: usize, names: &[Arc<str>]) {
        let (Some(&one), Some(&other)) = (self.winners.get(2 * position), self.winners.get(2 * position + 1))
        else {
            return;
        };
        let winner = if self.order(one, other, names) == Ordering::Greater { other } else { one };
        if let Some(slot) = self.winners.get_mut(position) {
            *slot = winner;
        }
    }

    /// By score, then by name; who does not play comes last.
    fn order(&self, one: NodeId, other: NodeId, names: &[Arc<str>]) -> Ordering {
        match (self.score(one), self.score(other)) {
            (Some(a), Some(b)) => a.cmp(b).then_with(|| names.get(at(one)).cmp(&names.get(at(other)))),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => Ordering::Equal,
        }
    }

    fn score(&self, id: NodeId) -> Option<&Score> {
        match self.verdicts.get(at(id))? {
            Verdict::Fits(score) => Some(score),
            Verdict::Absent | Verdict::Not(_) => None,
        }
    }

    /// What was found on a node.
    pub fn verdict(&self, id: NodeId) -> Verdict {
        self.verdicts.get(at(id)).copied().unwrap_or(Verdict::Absent)
    }

    /// Why nodes were left out, and how many; in no particular order.
    pub fn reasons(&self) -> &[(Rejection, usize)] {
        &self.reasons
    }

    /// The nodes on which it fits, best first.
    pub fn in_order<'a>(&'a self, names: &'a [Arc<str>]) -> impl Iterator<Item = (NodeId, Score)> + 'a {
        let mut heap = BinaryHeap::new();
        if self.width > 0 {
            heap.extend(self.entry(1, names));
        }
        std::iter::from_fn(move || {
            let top: Entry<'a> = heap.pop()?;
            // The losers on the winner's way up: each may be the next.
            let mut position = top.position;
            while position < self.width {
                let (left, right) = (2 * position, 2 * position + 1);
                let loser = if self.winners.get(left) == Some(&top.id) { right } else { left };
                heap.extend(self.entry(loser, names));
                position = left + right - loser;
            }
            Some((top.id, top.score))
        })
    }

    fn entry<'a>(&self, position: usize, names: &'a [Arc<str>]) -> Option<Entry<'a>> {
        let id = *self.winners.get(position)?;
        let score = *self.score(id)?;
        Some(Entry { score, name: names.get(at(id))?, id, position })
    }
}

/// A subtree by its winner; the best one is the greatest.
#[derive(PartialEq, Eq)]
struct Entry<'a> {
    score: Score,
    name: &'a str,
    id: NodeId,
    position: usize,
}

impl Ord for Entry<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.score, other.name, other.position).cmp(&(self.score, self.name, self.position))
    }
}

impl PartialOrd for Entry<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
