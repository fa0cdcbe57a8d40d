//! What is left: how many more of a share fit, and what of the free room nobody can use.

use gpudesk_crds::types::{PciAddress, ShareMode};

use crate::{
    cards::Sought,
    facts::NodeFacts,
    fit::Prepared,
    ranking::NodeId,
    request::{CpuRequest, Demand, MemoryRequest, ShareRequest},
    snapshot::Snapshot,
    state::CardUse,
    tables::WishId,
};

/// How many of a share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// On all nodes when nothing else runs.
    pub total: i32,
    /// Beside what runs, on nodes that take desktops now.
    pub placeable: i32,
    /// The same for each way alone: total and placeable.
    pub ways: Vec<(i32, i32)>,
}

/// A card and what is left of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Node.
    pub node: String,
    /// Address of the card.
    pub card: PciAddress,
    /// Product.
    pub product: String,
    /// Units of the card in the mode it is in: MIG memory units, units of the vGPU region, or 1.
    pub units: i32,
    /// Units in use.
    pub used: i32,
    /// Of the free units, how many in a thousand the defined mix cannot use: the weighted mean over
    /// what is wanted of such cards.
    pub stranded_permille: i32,
}

impl Snapshot {
    /// How many of a share fit, were it asked for alone: CPUs and memory are not looked at.
    pub fn count(&mut self, share: &ShareRequest) -> Counts {
        self.use_census();
        let demand = Demand {
            cpu: CpuRequest::default(),
            memory: MemoryRequest::default(),
            shares: vec![share.clone()],
            ..Demand::default()
        };
        let prepared = Prepared::new(&mut self.estate.tables, &std::sync::Arc::new(demand));
        let wishes: Vec<WishId> = prepared
            .sought
            .iter()
            .flat_map(|Sought { ways, .. }| ways.iter().map(|(_, wish)| *wish))
            .collect();
        let ids: Vec<NodeId> = self.estate.existing().map(|(id, _)| id).collect();
        let mut counts = Counts { ways: vec![(0, 0); wishes.len()], ..Counts::default() };
        for id in ids {
            let Some(facts) = self.estate.node(id).and_then(|state| state.facts.clone()) else { continue };
            counts.total += self.count_on(id, &facts, &wishes, true);
            let taking = !facts.cordoned && facts.ready && !self.estate.is_silent(&facts.name);
            if taking {
                counts.placeable += self.count_on(id, &facts, &wishes, false);
            }
            for (position, wish) in wishes.iter().enumerate() {
                let total = self.count_on(id, &facts, &[*wish], true);
                let placeable = if taking { self.count_on(id, &facts, &[*wish], false) } else { 0 };
                if let Some(way) = counts.ways.get_mut(position) {
                    *way = (way.0 + total, way.1 + placeable);
                }
            }
        }
        counts
    }

    fn count_on(&mut self, id: NodeId, facts: &NodeFacts, wishes: &[WishId], empty: bool) -> i32 {
        let Some(state) = self.estate.node(id) else { return 0 };
        let slots = state.slots().to_vec();
        let free: Vec<bool> = state.used.cards.iter().map(|card| empty || card.is_free()).collect();
        let mut along = vec![false; slots.len()];
        let mut count = 0;
        for (position, (shape, state)) in slots.into_iter().enumerate() {
            let Some(card) = facts.cards.get(position) else { continue };
            if along.get(position) == Some(&true) {
                continue;
            }
            let state = if empty { self.estate.tables.state(shape, &CardUse::default()) } else { state };
            let tables = &mut self.estate.tables;
            // A whole card takes its IOMMU group along, which must be free and ours to give.
            let whole = wishes.iter().any(|wish| {
                let outcome = tables.outcome(shape, state, *wish);
                outcome.is_ok_and(|found| {
                    found.first().is_some_and(|first| first.choice.takes.mode == ShareMode::Passthrough)
                })
            });
            if whole && !card.group.is_empty() {
                let ours = |member: &usize| {
                    free.get(*member) == Some(&true)
                        && facts.cards.get(*member).is_some_and(|card| card.shape.refused.is_none())
                };
                if !card.group.iter().all(ours) {
                    continue;
                }
                for member in &card.group {
                    if let Some(flag) = along.get_mut(*member) {
                        *flag = true;
                    }
                }
            }
            count += tables.count(shape, state, wishes);
        }
        count
    }

    /// Every card that desktops may use, with what is left of it.
    pub fn fragmentation(&mut self) -> Vec<Fragment> {
        self.use_census();
        let (mix, supply) = (self.estate.tables.mix().clone(), self.estate.tables.supply().clone());
        let mut found = vec![];
        for (_, state) in self.estate.by_name() {
            let Some(facts) = &state.facts else { continue };
            for (card, used) in facts.cards.iter().zip(&state.used.cards) {
                if card.shape.refused.is_some() {
                    continue;
                }
                let mode = used.shares().first().map(|share| share.mode);
                let units = mode.map_or(card.shape.mig_memory.max(1), |mode| card.shape.units(mode));
                let outlook = crate::worth::Outlook::new(&card.shape, &mix, &supply);
                found.push(Fragment {
                    node: facts.name.to_string(),
                    card: card.address,
                    product: card.shape.product.clone(),
                    units,
                    used: used.units(&card.shape).min(units),
                    stranded_permille: outlook.stranded_permille(&card.shape, used),
                });
            }
        }
        found
    }
}
