//! Whether a desktop fits on one node, and how best.

use std::sync::Arc;

use gpudesk_crds::{
    desktop_template::{NumaPolicy, Pinning},
    types::PageSize,
};

use crate::{
    cards::{self, Among, Cards, Found, NoGpus, Pick, Sought},
    compute::{self, Asked, Limits, NoCompute, Scope},
    facts::NodeFacts,
    functions::{self, FoundFunctions},
    occupancy::{NodeUse, Taken},
    request::{Demand, Share, VgpuWish},
    score::Score,
    starving::{self, Rooms},
    tables::{ShapeId, StateId, Tables},
};

/// Something asked for, with the numbers of its parts.
#[derive(Clone, Debug, Default)]
pub struct Prepared {
    /// What is asked for.
    pub demand: Arc<Demand>,
    /// Its shares.
    pub sought: Vec<Sought>,
}

impl Prepared {
    /// Looks up what the shares ask for.
    pub fn new(tables: &mut Tables, demand: &Arc<Demand>) -> Self {
        let sought = demand.shares.iter().map(|share| Sought {
            ways: share.ways.iter().map(|way| (way.index, tables.wish(share, &way.share))).collect(),
            least: share.ways.iter().map(|way| least(&way.share)).collect(),
            spread: share.spread,
        });
        let sought = sought.collect();
        Self { demand: demand.clone(), sought }
    }
}

/// The least framebuffer that a way allows, where it allows several.
fn least(share: &Share) -> i64 {
    match share {
        Share::Vgpu(VgpuWish::Size { series: _, min, max: _ }, _) => *min,
        Share::VirtualFunction { framebuffer_mib } => *framebuffer_mib,
        Share::Passthrough
        | Share::Vgpu(VgpuWish::Type(_), _)
        | Share::Mig { profile: _, series: _, framebuffer_mib: _ } => 0,
    }
}

/// A node as it is, or as it would be without somebody.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// What it offers.
    pub facts: &'a NodeFacts,
    /// What is taken.
    pub used: &'a NodeUse,
    /// Taken altogether.
    pub total: &'a Taken,
    /// Shape and state of each card.
    pub slots: &'a [(ShapeId, StateId)],
    /// Room on the cards for what the mix wants.
    pub rooms: &'a Rooms,
    /// What is starved as it is.
    pub starved: i64,
}

/// How a desktop would stand on a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What it is worth.
    pub score: Score,
    /// Cards.
    pub found: Found,
    /// Functions and drives.
    pub functions: FoundFunctions,
    /// Where CPUs and memory come from.
    pub from: From,
    /// Pages behind the memory.
    pub pages: PageSize,
}

/// Where CPUs and memory come from; cells by position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// One cell.
    Cell {
        /// The cell.
        at: usize,
        /// Whether memory must come from it.
        strict: bool,
    },
    /// These cells, each a cell of the guest.
    Cells(Vec<usize>),
    /// Any.
    Node,
}

impl From {
    pub(crate) fn scope(&self) -> Scope<'_> {
        match self {
            Self::Cell { at, strict } => Scope::Cell { at: *at, strict: *strict },
            Self::Cells(cells) => Scope::Cells(cells),
            Self::Node => Scope::Node,
        }
    }
}

/// Why a desktop does not fit on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Misfit {
    /// A share of a GPU.
    Gpus(NoGpus),
    /// A function or drive, by the position of the request.
    Function(usize),
    /// CPUs or memory of the node.
    Compute(NoCompute),
    /// CPUs or memory of the one cell that it must be.
    OnCell(NoCompute),
    /// A function or drive on the one cell that it must be.
    FunctionOnCell(usize),
    /// Cards on different cells, where one is a must.
    Apart,
    /// Cards of which the cell is not known, where it is a must.
    CellUnknown,
}

/// What a search for cards found.
type Searched = Result<Found, NoGpus>;

/// What is tried: how far apart, cards of which cells, CPUs and memory from where.
struct Tier {
    distance: u8,
    cards: Vec<usize>,
    anywhere: bool,
    from: From,
}

/// The best plan for a desktop on a node; only with the cards `previous`, if any are given.
///
/// # Errors
/// The nearest reason why there is none.
pub fn fit(
    tables: &mut Tables,
    place: Place<'_>,
    prepared: &Prepared,
    limits: Limits,
    previous: Option<&[usize]>,
) -> Result<Plan, Misfit> {
    let mut fitting = Fitting { tables, place, prepared, limits, previous, searched: vec![] };
    let mut best: Option<Plan> = None;
    'pages: for pages in page_sizes(&prepared.demand) {
        let mut distance = 0;
        for tier in fitting.tiers() {
            // What is further apart, or on other pages, is only worth it for better shares.
            if tier.distance > distance && fitting.is_settled(best.as_ref()) {
                break 'pages;
            }
            distance = tier.distance;
            if let Some(plan) = fitting.try_tier(&tier, pages)
                && best.as_ref().is_none_or(|best| plan.score < best.score)
            {
                best = Some(plan);
            }
        }
        if fitting.is_settled(best.as_ref()) {
            break;
        }
    }
    if best.is_none() && prepared.demand.numa == NumaPolicy::Strict && prepared.sought.len() > 1 {
        best = fitting.over_cells();
    }
    best.ok_or_else(|| fitting.why_not())
}

struct Fitting<'a> {
    tables: &'a mut Tables,
    place: Place<'a>,
    prepared: &'a Prepared,
    limits: Limits,
    previous: Option<&'a [usize]>,
    searched: Vec<(Option<Vec<usize>>, Searched)>,
}

fn page_sizes(demand: &Demand) -> impl Iterator<Item = PageSize> + use<> {
    let memory = demand.memory;
    let fallback = (memory.allow_fallback && memory.pages != PageSize::None).then_some(PageSize::None);
    std::iter::once(memory.pages).chain(fallback)
}

impl<'a> Fitting<'a> {
    fn tiers(&self) -> Vec<Tier> {
        let cells = 0..self.place.facts.cells.len();
        let near = |strict: bool| {
            let tier = move |at| Tier {
                distance: 0,
                cards: vec![at],
                anywhere: false,
                from: From::Cell { at, strict },
            };
            cells.clone().map(tier)
        };
        match self.prepared.demand.numa {
            NumaPolicy::Strict => near(true).collect(),
            NumaPolicy::Preferred => {
                // The kernel would follow a mere preference into the memory of a device.
                let strict = self.place.facts.cells.iter().any(|cell| cell.of_device);
                let far =
                    |at| Tier { distance: 1, cards: vec![], anywhere: true, from: From::Cell { at, strict } };
                let spread = Tier { distance: 2, cards: vec![], anywhere: true, from: From::Node };
                near(strict).chain(cells.clone().map(far)).chain(std::iter::once(spread)).collect()
            }
            NumaPolicy::None => vec![Tier { distance: 0, cards: vec![], anywhere: true, from: From::Node }],
        }
    }

    /// Whether no cards of the node would give better alternatives than this plan.
    fn is_settled(&mut self, best: Option<&Plan>) -> bool {
        let Some(best) = best else { return false };
        let wanted = (best.score.ways, best.score.oversize);
        wanted == (0, 0) || self.cards_of(None).is_ok_and(|any| wanted <= (any.key.ways, any.key.oversize))
    }

    fn asked(&self) -> Asked<'a> {
        let Place { facts, used, total, slots: _, rooms: _, starved: _ } = self.place;
        Asked { facts, used, total, demand: &self.prepared.demand, limits: self.limits }
    }

    /// The best cards of these cells, or of all. Searched once, whatever else is tried with them.
    fn cards_of(&mut self, cells: Option<&[usize]>) -> Result<Found, NoGpus> {
        let known = self.searched.iter().find(|(searched, _)| searched.as_deref() == cells);
        if let Some((_, found)) = known {
            return found.clone();
        }
        let Place { facts, used, total: _, slots, rooms: _, starved: _ } = self.place;
        let among = match cells {
            None => Among::All,
            Some([cell]) => Among::Cell(*cell),
            Some(cells) => Among::Cells(cells),
        };
        let cards = Cards { facts, used, slots };
        let found = cards::best(self.tables, cards, &self.prepared.sought, among, self.previous);
        self.searched.push((cells.map(<[usize]>::to_vec), found.clone()));
        found
    }

    fn try_tier(&mut self, tier: &Tier, pages: PageSize) -> Option<Plan> {
        let asked = self.asked();
        let left = compute::check(asked, tier.from.scope(), pages).ok()?;
        // A desktop without cards has none to be far from.
        let cells = (!tier.anywhere && !self.prepared.sought.is_empty()).then_some(tier.cards.as_slice());
        let found = self.cards_of(cells).ok()?;
        let home: Vec<usize> = match &tier.from {
            From::Cell { at, strict: _ } => vec![*at],
            From::Cells(cells) => cells.clone(),
            From::Node => self.cells_of(&found),
        };
        let strict = self.prepared.demand.numa == NumaPolicy::Strict;
        let functions =
            functions::fit(asked.facts, asked.used, &asked.demand.functions, &home, strict).ok()?;
        let score = Score {
            ways: found.key.ways,
            oversize: found.key.oversize,
            moved: self.previous.is_none(),
            affinity: 0,
            fallback: pages != asked.demand.memory.pages,
            distance: tier.distance,
            links: found.key.links.saturating_add(functions.far),
            cost: found.key.cost.saturating_add(self.starves(&found, pages)),
            left: u16::try_from(left / 256).unwrap_or(u16::MAX),
        };
        Some(Plan { score, found, functions, from: tier.from.clone(), pages })
    }

    /// What the request starves: see [`starving`].
    fn starves(&mut self, found: &Found, pages: PageSize) -> i64 {
        let Place { facts, used, total, slots, rooms, starved } = self.place;
        if self.tables.mix().wanted.is_empty() || facts.cards.is_empty() {
            return 0;
        }
        let mut rooms = rooms.clone();
        for pick in &found.picks {
            let Some((shape, state)) = slots.get(pick.card) else { continue };
            for (position, room) in rooms.iter_mut().enumerate() {
                *room += self.tables.count_wanted(*shape, pick.candidate.next, position)
                    - self.tables.count_wanted(*shape, *state, position);
            }
        }
        let demand = &self.prepared.demand;
        let (mut taken, mut dedicated) = (*total, used.dedicated());
        match demand.cpu.pinning {
            Pinning::Shared => taken.vcpus = taken.vcpus.saturating_add(demand.cpu.vcpus()),
            Pinning::Dedicated | Pinning::DedicatedThreads => dedicated += demand.cpu.vcpus(),
        }
        let amount = pages.mib().map_or(demand.memory.mib, |page| demand.memory.mib / page);
        taken.memory[crate::facts::page(pages)] =
            taken.memory[crate::facts::page(pages)].saturating_add(amount);
        starving::starved(facts, &taken, dedicated, &rooms, self.tables, self.limits).saturating_sub(starved)
    }

    fn cells_of(&self, found: &Found) -> Vec<usize> {
        let cards = &self.place.facts.cards;
        let mut cells: Vec<usize> =
            found.picks.iter().filter_map(|pick| cards.get(pick.card)?.cell).collect();
        cells.sort_unstable();
        cells.dedup();
        cells
    }

    /// Several cards that no single cell has, not even when nothing is taken: the fewest cells that
    /// have them, and a cell of the guest for each.
    fn over_cells(&mut self) -> Option<Plan> {
        let count = self.place.facts.cells.len();
        let fewest =
            (1..=count).find(|size| subsets(count, *size).any(|cells| self.would_fit_empty(&cells)))?;
        if fewest == 1 {
            return None;
        }
        let mut best: Option<Plan> = None;
        for cells in subsets(count, fewest) {
            let Ok(found) = self.cards_of(Some(&cells)) else { continue };
            if self.cells_of(&found) != cells {
                continue;
            }
            let tier = Tier { distance: 0, cards: cells.clone(), anywhere: false, from: From::Cells(cells) };
            for pages in page_sizes(&self.prepared.demand) {
                if let Some(plan) = self.try_tier(&tier, pages)
                    && best.as_ref().is_none_or(|best| plan.score < best.score)
                {
                    best = Some(plan);
                }
            }
        }
        best
    }

    /// Whether the cards of these cells would do if nothing were taken.
    fn would_fit_empty(&mut self, cells: &[usize]) -> bool {
        let facts = self.place.facts;
        let used = NodeUse::empty(facts);
        let empty = crate::state::CardUse::default();
        let slots: Vec<(ShapeId, StateId)> =
            self.place.slots.iter().map(|(shape, _)| (*shape, self.tables.state(*shape, &empty))).collect();
        let cards = Cards { facts, used: &used, slots: &slots };
        cards::best(self.tables, cards, &self.prepared.sought, Among::Cells(cells), None).is_ok()
    }

    /// The nearest reason: cards, then functions, memory and CPUs, then that they are apart.
    fn why_not(&mut self) -> Misfit {
        let found = match self.cards_of(None) {
            Ok(found) => found,
            Err(gpus) => return Misfit::Gpus(gpus),
        };
        let asked = self.asked();
        if let Err(position) = functions::fit(asked.facts, asked.used, &asked.demand.functions, &[], false) {
            return Misfit::Function(position);
        }
        // Of several page sizes, the one asked for is named.
        let on_node: Vec<Result<i64, NoCompute>> =
            page_sizes(asked.demand).map(|pages| compute::check(asked, Scope::Node, pages)).collect();
        if let (true, Some(Err(reason))) = (on_node.iter().all(Result::is_err), on_node.first()) {
            return Misfit::Compute(*reason);
        }
        let mut reasons = vec![];
        let mut lacking = None;
        for at in 0..asked.facts.cells.len() {
            let cells = (!self.prepared.sought.is_empty()).then_some([at]);
            if self.cards_of(cells.as_ref().map(<[usize; 1]>::as_slice)).is_err() {
                continue;
            }
            match compute::check(asked, Scope::Cell { at, strict: true }, asked.demand.memory.pages) {
                Err(reason) => reasons.push(reason),
                Ok(_) => {
                    lacking =
                        functions::fit(asked.facts, asked.used, &asked.demand.functions, &[at], true).err();
                }
            }
        }
        match (reasons.into_iter().max(), lacking) {
            (_, Some(position)) => Misfit::FunctionOnCell(position),
            (Some(reason), None) => Misfit::OnCell(reason),
            (None, None) => {
                let card = |pick: &Pick| asked.facts.cards.get(pick.card);
                let is_unknown = |pick: &Pick| card(pick).is_some_and(|card| card.cell.is_none());
                if found.picks.iter().any(is_unknown) { Misfit::CellUnknown } else { Misfit::Apart }
            }
        }
    }
}

/// The subsets of `0..count` with `size` members, in order. Hosts have at most a few cells; beyond 16
/// only neighbours are looked at.
fn subsets(count: usize, size: usize) -> Box<dyn Iterator<Item = Vec<usize>>> {
    if count > 16 {
        return Box::new(
            (0..(count + 1).saturating_sub(size)).map(move |first| (first..first + size).collect()),
        );
    }
    let all = 0u32..1 << count;
    let of = move |bits: u32| (0..count).filter(move |at| bits & (1 << at) != 0).collect::<Vec<usize>>();
    Box::new(all.filter(move |bits| bits.count_ones() as usize == size).map(of))
}
