//! What is left: how many more of a share fit, and what of the free room nobody can use.

use gpudesk_crds::types::PciAddress;

use crate::{
    cards::Sought,
    fit::Prepared,
    prices::Prices,
    ranking::NodeId,
    request::{CpuRequest, Demand, MemoryRequest, Share, ShareRequest},
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
        let whole = share.ways.iter().any(|way| way.share == Share::Passthrough);
        let ids: Vec<NodeId> = self.estate.existing().map(|(id, _)| id).collect();
        let mut of = |wishes: &[WishId]| {
            let version = self.estate.version;
            let known =
                self.totals.get(wishes).filter(|(known, _)| *known == version).map(|(_, total)| *total);
            let (mut total, mut placeable) = (0, 0);
            for id in &ids {
                if known.is_none() {
                    total += self.count_on(*id, wishes, whole, true);
                }
                if self.takes_desktops(*id) {
                    placeable += self.count_on(*id, wishes, whole, false);
                }
            }
            let total = known.unwrap_or(total);
            self.totals.insert(wishes.into(), (version, total));
            (total, placeable)
        };
        let (total, placeable) = of(&wishes);
        let ways = match wishes.as_slice() {
            [_] => vec![(total, placeable)],
            several => several.iter().map(|wish| of(&[*wish])).collect(),
        };
        Counts { total, placeable, ways }
    }

    fn takes_desktops(&self, id: NodeId) -> bool {
        let facts = self.estate.node(id).and_then(|state| state.facts.as_ref());
        facts.is_some_and(|facts| {
            !facts.is_cordoned() && facts.ready && self.estate.closed(&facts.name).is_none()
        })
    }

    fn count_on(&mut self, id: NodeId, wishes: &[WishId], whole: bool, empty: bool) -> i32 {
        let Some(facts) = self.estate.node(id).and_then(|state| state.facts.clone()) else { return 0 };
        let mut along: Vec<usize> = vec![];
        let mut count = 0;
        for (position, card) in facts.cards.iter().enumerate() {
            let Some(state) = self.estate.node(id) else { continue };
            let Some((shape, state)) = state.slots().get(position).copied() else { continue };
            // A whole card takes its IOMMU group along, which must be free and ours to give.
            if whole && !card.group.is_empty() {
                if along.contains(&position) {
                    continue;
                }
                let used = self.estate.node(id).map(|state| state.used.cards.as_slice()).unwrap_or_default();
                let ours = |member: &usize| {
                    (empty || used.get(*member).is_some_and(CardUse::is_free))
                        && facts.cards.get(*member).is_some_and(|card| card.shape.refused.is_none())
                };
                if !card.group.iter().all(ours) {
                    continue;
                }
                along.extend(&card.group);
            }
            let tables = &mut self.estate.tables;
            let state = if empty { tables.state(shape, &CardUse::default()) } else { state };
            count += tables.count(shape, state, wishes);
        }
        count
    }

    /// Every card that desktops may use, with what is left of it.
    pub fn fragmentation(&self) -> Vec<Fragment> {
        let list = self.estate.tables.list();
        let mut found = vec![];
        for (_, state) in self.estate.by_name() {
            let Some(facts) = &state.facts else { continue };
            for (card, used) in facts.cards.iter().zip(&state.used.cards) {
                if card.shape.refused.is_some() {
                    continue;
                }
                let mode = used.shares().first().map(|share| share.mode);
                let units = mode.map_or(card.shape.mig_memory.max(1), |mode| card.shape.units(mode));
                let prices = Prices::default();
                let outlook = crate::worth::Outlook::new(&card.shape, &list.mix, &list.supply, &prices, None);
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
