//! The nodes: what they offer, what is taken on them, and how a request fits on one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gpudesk_crds::Allocation;

use crate::{
    build,
    compute::Limits,
    facts::{Cell, NodeFacts},
    filters::{self, Rejection},
    fit::{self, Place, Plan, Prepared},
    links,
    occupancy::{Claim, Held, HeldBy, NodeUse, Taken},
    prices::{Alike, PriceList},
    ranking::{NodeId, Ranking, Verdict},
    request::{DesktopKey, Previous},
    shape::Shape,
    starving::{self, Rooms},
    state::CardUse,
    tables::{ShapeId, StateId, Tables},
    worth::Supply,
};

/// One node: what it offers and what is taken.
#[derive(Clone, Debug, Default)]
pub struct NodeState {
    /// What it offers; absent when desktops hold something there and its object is gone.
    pub facts: Option<Arc<NodeFacts>>,
    /// Who holds what there.
    pub held: HeldBy,
    /// The sum of it.
    pub used: NodeUse,
    /// The sum over its cells.
    pub total: Taken,
    slots: Vec<(ShapeId, StateId)>,
    rooms: Rooms,
    starved: i64,
}

/// Two nodes are equal when they offer the same and the same is taken, whatever was looked up.
impl PartialEq for NodeState {
    fn eq(&self, other: &Self) -> bool {
        let Self { facts, held, used, total, slots: _, rooms: _, starved: _ } = self;
        (facts, held, used, total) == (&other.facts, &other.held, &other.used, &other.total)
    }
}

impl NodeState {
    fn place<'a>(&'a self, facts: &'a NodeFacts) -> Place<'a> {
        let Self { facts: _, held: _, used, total, slots, rooms, starved } = self;
        Place { facts, used, total, slots, rooms, starved: *starved }
    }

    /// Looks up what there is to know of the cards, and sums up.
    fn sum_up(&mut self, tables: &mut Tables, limits: Limits) {
        let Some(facts) = &self.facts else { return };
        self.total = self.used.total();
        self.slots = slots_of(tables, facts, &self.used, &self.slots);
        self.rooms = starving::rooms(tables, &self.slots);
        let dedicated = self.used.dedicated();
        self.starved = starving::starved(facts, &self.total, dedicated, &self.rooms, tables, limits);
    }

    /// The node as it would be without one desktop.
    fn without(&self, tables: &mut Tables, limits: Limits, facts: &Arc<NodeFacts>, key: &DesktopKey) -> Self {
        let claims = self.held.iter().map(|(key, held)| (key, &held.claim));
        let used = NodeUse::of(facts, claims, Some(key));
        let mut apart =
            Self { used, facts: Some(facts.clone()), slots: self.slots.clone(), ..Self::default() };
        apart.sum_up(tables, limits);
        apart
    }

    /// Shape and state of each card.
    pub fn slots(&self) -> &[(ShapeId, StateId)] {
        &self.slots
    }
}

/// All nodes.
#[derive(Clone, Debug, Default)]
pub struct Estate {
    /// Bounds that are the operator's.
    pub limits: Limits,
    /// What is the same for many cards.
    pub tables: Tables,
    nodes: Vec<Option<NodeState>>,
    names: Vec<Arc<str>>,
    free: Vec<NodeId>,
    by_name: BTreeMap<Arc<str>, NodeId>,
    silent: BTreeSet<String>,
    unclear: BTreeSet<String>,
    existing: usize,
    cards: BTreeMap<ShapeId, u64>,
    /// Cells of the node that was seen last.
    cells: Arc<[Cell]>,
    /// Counts changes of what nodes offer.
    pub version: u64,
    /// Counts changes of nodes.
    clock: u64,
    /// When each node changed last.
    changed_at: Vec<u64>,
    /// When all were last to be judged anew.
    all_changed_at: u64,
}

fn at(id: NodeId) -> usize {
    usize::try_from(id).unwrap_or(usize::MAX)
}

impl Estate {
    /// No nodes yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// The number of a node, existing or not.
    pub fn id(&self, name: &str) -> Option<NodeId> {
        self.by_name.get(name).copied()
    }

    /// A node by its number.
    pub fn node(&self, id: NodeId) -> Option<&NodeState> {
        self.nodes.get(at(id))?.as_ref()
    }

    /// Names by number; empty for numbers that are free.
    pub fn names(&self) -> &[Arc<str>] {
        &self.names
    }

    /// The nodes by name, those included of which only what desktops hold is left.
    pub fn by_name(&self) -> impl Iterator<Item = (NodeId, &NodeState)> {
        self.by_name.values().filter_map(|id| Some((*id, self.node(*id)?)))
    }

    /// The nodes that exist, by name.
    pub fn existing(&self) -> impl Iterator<Item = (NodeId, &Arc<NodeFacts>)> {
        self.by_name().filter_map(|(id, state)| Some((id, state.facts.as_ref()?)))
    }

    /// The cards that desktops may have something of, by shape.
    pub fn supply(&self) -> Supply {
        let cards = self.in_order();
        let usable = cards.iter().filter_map(|id| Some((self.tables.shape_of(*id)?, *self.cards.get(id)?)));
        Supply::new(usable.filter(|(shape, _)| shape.refused.is_none()))
    }

    /// The shapes of all cards, in an order that equal estates share.
    fn in_order(&self) -> Vec<ShapeId> {
        let mut shapes: Vec<ShapeId> = self.cards.keys().copied().collect();
        shapes.sort_by_key(|shape| self.tables.order_of(*shape));
        shapes
    }

    /// How many cards there are.
    pub fn cards(&self) -> u64 {
        self.cards.values().sum()
    }

    /// The cards of nodes that take desktops, those together that are alike, in an order that equal estates
    /// share.
    pub fn alike(&self) -> Vec<Alike> {
        let places = self.in_order().into_iter().zip(0usize..).collect::<BTreeMap<_, _>>();
        let mut counts: BTreeMap<(ShapeId, StateId), u32> = BTreeMap::new();
        for (_, state) in self.by_name() {
            let takes = |facts: &&Arc<NodeFacts>| !facts.is_cordoned() && self.closed(&facts.name).is_none();
            if state.facts.as_ref().is_some_and(|facts| takes(&facts)) {
                for slot in &state.slots {
                    *counts.entry(*slot).or_default() += 1;
                }
            }
        }
        let cards = counts.into_iter().filter_map(|((id, state), count)| {
            let (shape, used) = (self.tables.shape_of(id)?.clone(), self.tables.used(id, state)?.clone());
            shape.refused.is_none().then(|| (places.get(&id), Alike { shape, used, count }))
        });
        let mut cards: Vec<_> = cards.collect();
        cards.sort_by(|(a, one), (b, other)| (a, &one.used).cmp(&(b, &other.used)));
        cards.into_iter().map(|(_, cards)| cards).collect()
    }

    /// How many nodes exist.
    pub fn count(&self) -> usize {
        self.existing
    }

    /// What a node offers.
    pub fn facts_of(&self, name: &str) -> Option<&NodeFacts> {
        self.node(self.id(name)?)?.facts.as_deref()
    }

    /// What closes a node to new desktops that is not among its facts.
    pub fn closed(&self, name: &str) -> Option<Rejection> {
        let silent = self.silent.contains(name).then_some(Rejection::Silent);
        silent.or_else(|| self.unclear.contains(name).then_some(Rejection::Unclear))
    }

    /// Which nodes are silent; returns those that were.
    pub fn set_silent(&mut self, silent: BTreeSet<String>) -> BTreeSet<String> {
        self.touch_all(&(&self.silent ^ &silent));
        std::mem::replace(&mut self.silent, silent)
    }

    /// Of which nodes it is not understood what they offer or what is taken there; returns those before.
    pub fn set_unclear(&mut self, unclear: BTreeSet<String>) -> BTreeSet<String> {
        self.touch_all(&(&self.unclear ^ &unclear));
        std::mem::replace(&mut self.unclear, unclear)
    }

    fn touch_all(&mut self, names: &BTreeSet<String>) {
        names
            .iter()
            .filter_map(|name| self.id(name))
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|id| self.touch(id));
    }

    /// A node has changed: who uses a ranking next judges it.
    fn touch(&mut self, id: NodeId) {
        self.clock += 1;
        if self.changed_at.len() <= at(id) {
            self.changed_at.resize(at(id) + 1, 0);
        }
        if let Some(changed_at) = self.changed_at.get_mut(at(id)) {
            *changed_at = self.clock;
        }
    }

    /// Judges the nodes that have changed since a ranking was used. Servers are alike in rows: what was found on the
    /// one before holds for one that stands as it does.
    pub fn refresh(&mut self, ranking: &mut Ranking) {
        let since = ranking.judged_at;
        let all = self.all_changed_at > since;
        let changed = self.changed_at.iter().zip(0..).filter(|(changed_at, _)| all || **changed_at > since);
        let changed: Vec<NodeId> = changed.map(|(_, id)| id).collect();
        let mut before: Option<(NodeId, Verdict)> = None;
        let mut judged = Vec::with_capacity(changed.len());
        for id in changed {
            let verdict = match (self.admits(&ranking.prepared, id), before) {
                (Some(Ok(())), Some((other, verdict))) if self.are_alike(other, id) => verdict,
                (Some(Ok(())), _) => {
                    let found = self.fit(&ranking.prepared, id, None, None);
                    found.map_or_else(Verdict::Not, |plan| Verdict::Fits(plan.score))
                }
                (Some(Err(rejection)), _) => {
                    judged.push((id, Verdict::Not(rejection)));
                    continue;
                }
                (None, _) => {
                    judged.push((id, Verdict::Absent));
                    continue;
                }
            };
            before = Some((id, verdict));
            judged.push((id, verdict));
        }
        ranking.set(&judged, &self.names);
        ranking.judged_at = self.clock;
    }

    /// Whether a node takes a demand before anything is measured; nothing where there is none.
    fn admits(&self, prepared: &Prepared, id: NodeId) -> Option<Result<(), Rejection>> {
        let facts = self.node(id)?.facts.as_deref()?;
        Some(filters::pass(facts, &prepared.demand, self.closed(&facts.name), false))
    }

    /// Whether all that [`fit::fit`] measures is the same on both.
    fn are_alike(&self, one: NodeId, other: NodeId) -> bool {
        let (Some(one), Some(other)) = (self.node(one), self.node(other)) else { return false };
        let NodeState { facts, held: _, used, total, slots, rooms, starved } = one;
        (slots, total, starved) == (&other.slots, &other.total, &other.starved)
            && (used, rooms) == (&other.used, &other.rooms)
            && facts.as_deref().zip(other.facts.as_deref()).is_some_and(|(a, b)| a.is_built_as(b))
    }

    /// Those nodes.
    pub fn unclear(&self) -> &BTreeSet<String> {
        &self.unclear
    }

    /// The silent nodes.
    pub fn silent(&self) -> &BTreeSet<String> {
        &self.silent
    }

    /// Sets what a node offers; nothing when its object is gone. Returns its number when that is new.
    pub fn offer(&mut self, name: &str, facts: Option<NodeFacts>) -> Option<NodeId> {
        let same = match self.id(name).and_then(|id| self.node(id)) {
            Some(state) => state.facts.as_deref() == facts.as_ref(),
            None => facts.is_none(),
        };
        if same {
            return None;
        }
        self.version += 1;
        let before = self.facts_of(name).is_some();
        self.existing = self.existing + usize::from(facts.is_some()) - usize::from(before);
        let gone = self.id(name).and_then(|id| self.node(id)).and_then(|state| state.facts.clone());
        for card in gone.iter().flat_map(|facts| &facts.cards) {
            let shape = self.tables.shape(&card.shape);
            if let Some(count) = self.cards.get_mut(&shape) {
                *count -= 1;
                if *count == 0 {
                    self.cards.remove(&shape);
                }
            }
        }
        for card in facts.iter().flat_map(|facts| &facts.cards) {
            let shape = self.tables.shape(&card.shape);
            *self.cards.entry(shape).or_default() += 1;
        }
        let facts = facts.map(|mut facts| {
            for card in &mut facts.cards {
                card.shape = self.tables.kept(&card.shape);
            }
            if facts.cells == self.cells {
                facts.cells = self.cells.clone();
            }
            self.cells = facts.cells.clone();
            Arc::new(facts)
        });
        Some(self.change(name, |state| {
            state.facts = facts;
            state.slots.clear();
            if let Some(facts) = &state.facts {
                for held in state.held.values_mut() {
                    held.claim = Claim::of(facts, &held.allocation);
                }
            }
        }))
    }

    /// Sets what a desktop holds on a node.
    pub fn hold(&mut self, name: &str, key: &DesktopKey, allocation: Option<&Arc<Allocation>>) -> NodeId {
        self.change(name, |state| match allocation {
            Some(allocation) => {
                let claim =
                    state.facts.as_ref().map(|facts| Claim::of(facts, allocation)).unwrap_or_default();
                state.held.insert(key.clone(), Held { allocation: allocation.clone(), claim });
            }
            None => {
                state.held.remove(key);
            }
        })
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut NodeState)) -> NodeId {
        let id = self.id(name).unwrap_or_else(|| self.add(name));
        self.touch(id);
        let Some(slot) = self.nodes.get_mut(at(id)) else { return id };
        let state = slot.get_or_insert_default();
        change(state);
        if let Some(facts) = &state.facts {
            let claims = state.held.iter().map(|(key, held)| (key, &held.claim));
            state.used = NodeUse::of(facts, claims, None);
            state.sum_up(&mut self.tables, self.limits);
        } else {
            let held = std::mem::take(&mut state.held);
            *state = NodeState { held, ..NodeState::default() };
            if state.held.is_empty() {
                *slot = None;
                self.by_name.remove(name);
                self.free.push(id);
                if let Some(name) = self.names.get_mut(at(id)) {
                    *name = Arc::default();
                }
            }
        }
        id
    }

    fn add(&mut self, name: &str) -> NodeId {
        let name: Arc<str> = name.into();
        let id = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(None);
            self.names.push(name.clone());
            NodeId::try_from(self.nodes.len() - 1).unwrap_or(NodeId::MAX)
        });
        if let Some(slot) = self.names.get_mut(at(id)) {
            *slot = name.clone();
        }
        self.by_name.insert(name, id);
        id
    }

    /// Drops what the tables know of states that no card is in.
    pub fn begin_tables_again(&mut self) {
        let mut tables = Tables::default();
        tables.use_list(self.tables.list());
        let cards = std::mem::take(&mut self.cards);
        for (shape, count) in cards {
            if let Some(shape) = self.tables.shape_of(shape) {
                let shape = tables.shape(&shape.clone());
                self.cards.insert(shape, count);
            }
        }
        self.tables = tables;
        self.nodes.iter_mut().flatten().for_each(|state| state.slots.clear());
        self.sum_up();
    }

    /// The shapes of all cards.
    pub fn shapes(&self) -> impl Iterator<Item = &Arc<Shape>> {
        self.cards.keys().filter_map(|shape| self.tables.shape_of(*shape))
    }

    /// Judges by another list from now on.
    pub fn use_list(&mut self, list: &Arc<PriceList>) {
        self.tables.use_list(list);
        self.sum_up();
    }

    fn sum_up(&mut self) {
        for state in self.nodes.iter_mut().flatten() {
            state.sum_up(&mut self.tables, self.limits);
        }
        self.clock += 1;
        self.all_changed_at = self.clock;
    }

    /// How a demand would stand on a node. What `without` holds there is not in the way; with
    /// `previous`, only the cards that it had.
    ///
    /// # Errors
    /// Why it does not.
    pub fn fit(
        &mut self,
        prepared: &Prepared,
        id: NodeId,
        without: Option<&DesktopKey>,
        previous: Option<&Previous>,
    ) -> Result<Plan, Rejection> {
        let Some(state) = self.nodes.get(at(id)).and_then(Option::as_ref) else {
            return Err(Rejection::NotReady);
        };
        let Some(facts) = state.facts.clone() else { return Err(Rejection::NotReady) };
        filters::pass(&facts, &prepared.demand, self.closed(&facts.name), false)?;
        let cards = match previous {
            None => None,
            Some(previous) => {
                let cards = links::previous_cards(&facts, previous, &prepared.demand.shares);
                Some(cards.ok_or(Rejection::NotHome)?)
            }
        };
        let limits = self.limits;
        match without {
            None => {
                let place = state.place(&facts);
                fit::fit(&mut self.tables, place, prepared, limits, cards.as_deref())
            }
            Some(key) => {
                let apart = state.without(&mut self.tables, limits, &facts, key);
                fit::fit(&mut self.tables, apart.place(&facts), prepared, limits, cards.as_deref())
            }
        }
        .map_err(Rejection::Misfit)
    }

    /// Whether a demand would fit on a node on which nothing is taken, were it ready.
    ///
    /// # Errors
    /// Why it would not.
    pub fn fit_empty(&mut self, prepared: &Prepared, id: NodeId) -> Result<(), Rejection> {
        let Some((facts, slots)) =
            self.node(id).and_then(|state| Some((state.facts.clone()?, state.slots.clone())))
        else {
            return Err(Rejection::NotReady);
        };
        filters::pass(&facts, &prepared.demand, None, true)?;
        let used = NodeUse::empty(&facts);
        let mut empty = NodeState { used, facts: Some(facts.clone()), slots, ..NodeState::default() };
        empty.sum_up(&mut self.tables, self.limits);
        fit::fit(&mut self.tables, empty.place(&facts), prepared, self.limits, None)
            .map(|_| ())
            .map_err(Rejection::Misfit)
    }

    /// What the allocation says of a plan on a node.
    pub fn build(
        &mut self,
        prepared: &Prepared,
        id: NodeId,
        without: Option<&DesktopKey>,
        plan: &Plan,
    ) -> Option<crate::Built> {
        let limits = self.limits;
        let state = self.nodes.get(at(id))?.as_ref()?;
        let facts = state.facts.clone()?;
        match without {
            None => {
                let place = state.place(&facts);
                build::build(place, prepared, self.limits, plan)
            }
            Some(key) => {
                let apart = state.without(&mut self.tables, limits, &facts, key);
                build::build(apart.place(&facts), prepared, self.limits, plan)
            }
        }
    }
}

/// Shape and state of each card; `known` are those of the same cards in another state, or none.
fn slots_of(
    tables: &mut Tables,
    facts: &NodeFacts,
    used: &NodeUse,
    known: &[(ShapeId, StateId)],
) -> Vec<(ShapeId, StateId)> {
    let none = CardUse::default();
    let slot = |(position, card): (usize, &crate::facts::Card)| {
        let shape = known.get(position).map_or_else(|| tables.shape(&card.shape), |(shape, _)| *shape);
        (shape, tables.state(shape, used.cards.get(position).unwrap_or(&none)))
    };
    facts.cards.iter().enumerate().map(slot).collect()
}
