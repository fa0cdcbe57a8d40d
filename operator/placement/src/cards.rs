//! Shares for all requests of a desktop on one node: a bounded search for the best combination.

use gpudesk_crds::types::{ShareMode, VgpuSeries};

use crate::{
    facts::NodeFacts,
    links,
    occupancy::NodeUse,
    shape::{NoShare, Shape},
    state::UsedShare,
    tables::{Candidate, ShapeId, StateId, Tables, WishId},
};

/// How many single choices are tried on one node before the best combination so far is taken.
const TRIES: usize = 4096;

/// The cards of a node as they are now.
#[derive(Clone, Copy, Debug)]
pub struct Cards<'a> {
    /// The node.
    pub facts: &'a NodeFacts,
    /// What is taken.
    pub used: &'a NodeUse,
    /// Shape and state of each card.
    pub slots: &'a [(ShapeId, StateId)],
}

/// A share request with the numbers of what its ways ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sought {
    /// Position of the alternative in its profile, and what it asks for.
    pub ways: Vec<(usize, WishId)>,
    /// Least framebuffer of each way in MiB; what is beyond counts as oversize.
    pub least: Vec<i64>,
    /// The emptiest card first.
    pub spread: bool,
}

/// Which cards may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Among<'a> {
    /// Any.
    All,
    /// Those of a cell.
    Cell(usize),
    /// Those of these cells.
    Cells(&'a [usize]),
}

/// A share on a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    /// Position of the card.
    pub card: usize,
    /// Position of the alternative among the request's ways.
    pub way: usize,
    /// What is taken.
    pub candidate: Candidate,
}

/// Shares that fit together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// How good they are.
    pub key: Key,
    /// In the order of the requests.
    pub picks: Vec<Pick>,
    /// The fabric partition that the whole cards form.
    pub partition: Option<i32>,
}

/// How good a combination is; the fields of [`crate::score::Score`] that cards decide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Alternatives.
    pub ways: u64,
    /// GiB beyond the least.
    pub oversize: u16,
    /// Distance between the cards.
    pub links: u16,
    /// What the estate loses.
    pub cost: i64,
}

/// Why shares do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NoGpus {
    /// Position of the request that failed, and of its way that came nearest; `None` when each fits
    /// alone, but not all together.
    pub share: Option<(usize, usize)>,
    /// Why.
    pub why: NoShare,
}

/// The best shares for all requests.
///
/// # Errors
/// What came nearest and why it failed.
pub fn best(
    tables: &mut Tables,
    cards: Cards<'_>,
    sought: &[Sought],
    among: Among<'_>,
    previous: Option<&[usize]>,
) -> Result<Found, NoGpus> {
    let mut search = Search {
        tables,
        cards,
        among,
        previous,
        states: vec![],
        picks: vec![],
        best: None,
        tries: TRIES,
        every_start: false,
        together: NoShare::NoCard,
    };
    match sought {
        [] => return Ok(Found::default()),
        [one] if cards.facts.partitions.is_empty() => return search.single(one),
        _ => {}
    }
    let mut least = 0;
    for (position, share) in sought.iter().enumerate() {
        match search.alone(share) {
            Ok(index) => least |= nibble(index, position),
            Err((way, why)) => return Err(NoGpus { share: Some((position, way)), why }),
        }
    }
    search.states = cards.slots.iter().map(|(_, state)| *state).collect();
    search.descend(sought, Key::default());
    if search.best.as_ref().is_none_or(|best| best.key.ways > least) {
        // The best start for one may be the only one for another.
        (search.every_start, search.tries) = (true, TRIES);
        search.descend(sought, Key::default());
    }
    let why = if search.together == NoShare::NoCard { NoShare::NoFreePlacement } else { search.together };
    search.best.ok_or(NoGpus { share: None, why })
}

struct Search<'a> {
    tables: &'a mut Tables,
    cards: Cards<'a>,
    among: Among<'a>,
    previous: Option<&'a [usize]>,
    states: Vec<StateId>,
    picks: Vec<Pick>,
    best: Option<Found>,
    tries: usize,
    every_start: bool,
    together: NoShare,
}

impl Search<'_> {
    /// Whether a card may be looked at for the share of this position.
    fn is_near(&self, position: usize, card: usize) -> bool {
        if self.previous.is_some_and(|previous| previous.get(position) != Some(&card)) {
            return false;
        }
        let cell = self.cards.facts.cards.get(card).and_then(|card| card.cell);
        match self.among {
            Among::All => true,
            Among::Cell(wanted) => cell == Some(wanted),
            Among::Cells(wanted) => cell.is_some_and(|cell| wanted.contains(&cell)),
        }
    }

    /// What a card gives, seen together with the cards of its IOMMU group.
    fn outcome(&mut self, card: usize, state: StateId, wish: WishId) -> crate::tables::Outcome {
        let Some((shape, _)) = self.cards.slots.get(card) else { return Err(NoShare::NoCard) };
        let found = self.tables.outcome(*shape, state, wish)?;
        if found.first().is_some_and(|first| first.choice.takes.mode == ShareMode::Passthrough) {
            self.group_is_free(card)?;
        }
        Ok(found)
    }

    /// What shares the IOMMU group goes with the card, so it must be ours to give.
    fn group_is_free(&self, card: usize) -> Result<(), NoShare> {
        let group = self.cards.facts.cards.get(card).map(|card| card.group.as_slice()).unwrap_or_default();
        for member in group {
            if let Some(refused) = self.cards.facts.cards.get(*member).and_then(|card| card.shape.refused) {
                return Err(NoShare::Refused(refused));
            }
            if !self.cards.used.cards.get(*member).is_some_and(crate::state::CardUse::is_free) {
                return Err(NoShare::NoFreePlacement);
            }
        }
        Ok(())
    }

    fn cost(&self, card: usize, spread: bool, candidate: &Candidate) -> i64 {
        if !spread {
            return candidate.cost;
        }
        let (Some((shape, _)), Some(facts)) = (self.cards.slots.get(card), self.cards.facts.cards.get(card))
        else {
            return 0;
        };
        let state = self.states.get(card).copied().or(self.cards.slots.get(card).map(|(_, state)| *state));
        let used = state.and_then(|state| self.tables.used(*shape, state));
        let units = i64::from(facts.shape.units(candidate.choice.takes.mode));
        used.map_or(0, |used| i64::from(used.units(&facts.shape)) * 1024 / units)
    }

    /// One share: the best of the first way that a card gives.
    fn single(mut self, share: &Sought) -> Result<Found, NoGpus> {
        let mut nearest = (NoShare::NoCard, 0);
        for (way, (index, wish)) in share.ways.iter().enumerate() {
            let mut best: Option<(Key, Pick)> = None;
            for card in 0..self.cards.slots.len() {
                if !self.is_near(0, card) {
                    continue;
                }
                let state = self.cards.slots.get(card).map_or(StateId::MAX, |(_, state)| *state);
                match self.outcome(card, state, *wish) {
                    Ok(found) => {
                        let Some(candidate) = found.first() else { continue };
                        let key = Key {
                            ways: nibble(*index, 0),
                            oversize: oversize(share, way, candidate),
                            links: 0,
                            cost: self.cost(card, share.spread, candidate),
                        };
                        if best.as_ref().is_none_or(|(other, _)| key < *other) {
                            best = Some((key, Pick { card, way, candidate: *candidate }));
                        }
                    }
                    Err(why) => nearest = nearer(nearest, (why, way)),
                }
            }
            if let Some((key, pick)) = best {
                return Ok(Found { key, picks: vec![pick], partition: None });
            }
        }
        Err(NoGpus { share: Some((0, nearest.1)), why: nearest.0 })
    }

    /// The first alternative of a share that some card gives if nothing else is asked for.
    fn alone(&mut self, share: &Sought) -> Result<usize, (usize, NoShare)> {
        let mut nearest = (NoShare::NoCard, 0);
        for (way, (index, wish)) in share.ways.iter().enumerate() {
            for card in 0..self.cards.slots.len() {
                if self.previous.is_none() && !self.is_near(usize::MAX, card) {
                    continue;
                }
                let state = self.cards.slots.get(card).map_or(StateId::MAX, |(_, state)| *state);
                match self.outcome(card, state, *wish) {
                    Ok(_) => return Ok(*index),
                    Err(why) => nearest = nearer(nearest, (why, way)),
                }
            }
        }
        Err((nearest.1, nearest.0))
    }

    /// Tries every choice for the next share, the most promising first.
    fn descend(&mut self, sought: &[Sought], key: Key) {
        let depth = self.picks.len();
        let Some(share) = sought.get(depth) else { return self.complete(key) };
        let mut choices: Vec<(Key, Pick)> = vec![];
        for (way, (index, wish)) in share.ways.iter().enumerate() {
            let ways = key.ways | nibble(*index, depth);
            if self.best.as_ref().is_some_and(|best| ways > best.key.ways) {
                break;
            }
            // Shares that ask for the same are interchangeable: the later one takes no earlier card.
            let same = depth.checked_sub(1).filter(|before| sought.get(*before) == Some(share));
            let twin = same.and_then(|before| self.picks.get(before)).filter(|pick| pick.way == way);
            let first = twin.map_or(0, |pick| pick.card);
            for card in first..self.cards.slots.len() {
                if !self.is_near(depth, card) {
                    continue;
                }
                let state = self.states.get(card).copied().unwrap_or(StateId::MAX);
                let Ok(found) = self.outcome(card, state, *wish) else { continue };
                let fit = found.iter().filter(|candidate| self.goes_together(sought.len(), card, candidate));
                let mut seen: Option<Option<u16>> = None;
                let before = choices.len();
                for candidate in fit {
                    if !self.every_start && seen == Some(candidate.choice.takes.kind) {
                        continue;
                    }
                    seen = Some(candidate.choice.takes.kind);
                    let next = Key {
                        ways,
                        oversize: key.oversize.saturating_add(oversize(share, way, candidate)),
                        links: key.links.saturating_add(self.links(card)),
                        cost: key.cost.saturating_add(self.cost(card, share.spread, candidate)),
                    };
                    choices.push((next, Pick { card, way, candidate: *candidate }));
                }
                if choices.len() == before {
                    self.together = self.together.max(NoShare::NotTogether);
                }
            }
        }
        choices.sort_by_key(|(key, pick)| (*key, pick.card));
        for (next, pick) in choices {
            if self.tries == 0 {
                return;
            }
            self.tries -= 1;
            if self.best.as_ref().is_some_and(|best| {
                (next.ways, next.oversize, next.links) > (best.key.ways, best.key.oversize, best.key.links)
            }) {
                continue;
            }
            let Some(state) = self.states.get_mut(pick.card) else { continue };
            let before = std::mem::replace(state, pick.candidate.next);
            self.picks.push(pick);
            self.descend(sought, next);
            self.picks.pop();
            if let Some(state) = self.states.get_mut(pick.card) {
                *state = before;
            }
        }
    }

    fn complete(&mut self, mut key: Key) {
        let partition = match self.partition() {
            Ok(partition) => partition,
            Err(why) => {
                self.together = self.together.max(why);
                return;
            }
        };
        if let Some((_, broken)) = partition {
            key.cost = key.cost.saturating_add(broken);
        }
        if self.best.as_ref().is_none_or(|best| key < best.key) {
            self.best =
                Some(Found { key, picks: self.picks.clone(), partition: partition.map(|(id, _)| id) });
        }
    }

    /// The fabric partition that the whole cards of this combination form, and what of the larger
    /// ones is lost with it; none where there is no fabric, or no whole card.
    fn partition(&self) -> Result<Option<(i32, i64)>, NoShare> {
        let facts = self.cards.facts;
        let is_whole = |pick: &&Pick| pick.candidate.choice.takes.mode == ShareMode::Passthrough;
        let mut whole: Vec<usize> = self.picks.iter().filter(is_whole).map(|pick| pick.card).collect();
        if facts.partitions.is_empty() || whole.is_empty() {
            return Ok(None);
        }
        whole.sort_unstable();
        let on_board = |card: &usize| facts.partitions.iter().any(|partition| partition.cards.contains(card));
        if !whole.iter().any(on_board) {
            return Ok(None);
        }
        let formed = facts.partitions.iter().find(|partition| partition.cards == whole);
        let formed = formed.ok_or(NoShare::NoPartition)?;
        let is_free =
            |card: &usize| self.cards.used.cards.get(*card).is_some_and(crate::state::CardUse::is_free);
        let broken = facts.partitions.iter().filter(|other| {
            other.cards.iter().all(is_free)
                && other.cards.iter().any(|card| whole.contains(card))
                && other.cards.len() > whole.len()
        });
        let lost = broken.map(|other| i64::try_from(other.cards.len()).unwrap_or(0) * 1024).sum();
        Ok(Some((formed.id, lost)))
    }

    /// Whether a share may stand beside those already picked: no card of one IOMMU group is given
    /// whole and shared at once, and all vGPUs of a machine are of one board and one series, which
    /// must be Q or C (NVIDIA vGPU User Guide, several vGPUs in one machine).
    fn goes_together(&self, shares: usize, card: usize, candidate: &Candidate) -> bool {
        let Some(on) = self.cards.facts.cards.get(card) else { return false };
        let takes = candidate.choice.takes;
        let whole = takes.mode == ShareMode::Passthrough;
        let clash = self.picks.iter().any(|pick| {
            let other_whole = pick.candidate.choice.takes.mode == ShareMode::Passthrough;
            on.group.contains(&pick.card) && whole != other_whole
        });
        if clash {
            return false;
        }
        let Some(series) = series(&on.shape, takes) else { return true };
        let vgpus = self.picks.iter().filter_map(|pick| {
            let other = self.cards.facts.cards.get(pick.card)?;
            Some((other, self::series(&other.shape, pick.candidate.choice.takes)?))
        });
        let mut vgpus = vgpus.peekable();
        if shares > 1 && vgpus.peek().is_some() && !matches!(series, VgpuSeries::Q | VgpuSeries::C) {
            return false;
        }
        vgpus.all(|(other, of_other)| other.shape.product == on.shape.product && of_other == series)
    }

    /// How far a card is from those already picked, summed.
    fn links(&self, card: usize) -> u16 {
        self.picks
            .iter()
            .map(|pick| links::distance(self.cards.facts, pick.card, card))
            .fold(0, u16::saturating_add)
    }
}

/// The series of a vGPU; none for other shares.
fn series(shape: &Shape, takes: UsedShare) -> Option<VgpuSeries> {
    let kind = shape.kind(takes.kind?)?;
    match takes.vgpu {
        Some(vgpu) => kind.backed.get(usize::from(vgpu)).map(|vgpu| vgpu.series),
        None => kind.series,
    }
}

/// The nearer of two reasons, each with the way that it is about. Only places for one way are added up.
fn nearer(one: (NoShare, usize), other: (NoShare, usize)) -> (NoShare, usize) {
    match (one.0.nearer(other.0), one.1 == other.1) {
        (both, true) => (both, one.1),
        (_, false) if other.0 > one.0 => other,
        (_, false) => one,
    }
}

fn nibble(way: usize, share: usize) -> u64 {
    let way = u64::try_from(way.min(15)).unwrap_or(15);
    60usize.checked_sub(4 * share).map_or(0, |shift| way << shift)
}

fn oversize(share: &Sought, way: usize, candidate: &Candidate) -> u16 {
    let least = share.least.get(way).copied().unwrap_or(0);
    if least <= 0 || candidate.choice.takes.mode == ShareMode::Passthrough {
        return 0;
    }
    u16::try_from((candidate.choice.framebuffer_mib - least).max(0) / 1024).unwrap_or(u16::MAX)
}
