//! What is the same for many cards, worked out once: shapes, states of cards, and what a card of a
//! shape in a state can give.

use std::collections::HashMap;
use std::sync::Arc;

use crate::{
    mix::Mix,
    prices::PriceList,
    request::{CardRequirements, Share, ShareRequest},
    shape::{NoShare, Offer, Shape},
    state::{self, CardUse, Choice},
    worth::Outlook,
};

/// States that are kept before all that nobody is in are dropped. Cards with MIG have some thousand;
/// cards that mix vGPU sizes could fill any memory.
const MOST_STATES: usize = 1 << 16;
/// Ways to put one share on a card that are looked at, the smallest first. Cards have some dozens; figures that no card
/// has would make a state of each.
const MOST_CHOICES: usize = 256;

/// Number of a shape.
pub type ShapeId = u32;
/// Number of a state of a shape.
pub type StateId = u32;
/// Number of something asked for: a share of certain cards.
pub type WishId = u32;

/// One way in which a card can give a share now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What it takes.
    pub choice: Choice,
    /// What the estate loses for requests to come; see [`Outlook`].
    pub cost: i64,
    /// State of the card after it.
    pub next: StateId,
}

/// What a card can give: the best first (smallest framebuffer, least cost, lowest start).
pub type Outcome = Result<Arc<[Candidate]>, NoShare>;

/// Shapes, states and what is known of them.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    shapes: Vec<ShapeEntry>,
    shape_ids: HashMap<Arc<Shape>, ShapeId>,
    wishes: Vec<Arc<(Share, CardRequirements)>>,
    wish_ids: HashMap<Arc<(Share, CardRequirements)>, WishId>,
    list: Arc<PriceList>,
    /// The shares that the mix wants, each once, as the numbers of its ways.
    wanted: Vec<Box<[WishId]>>,
    /// Which of them each entry of the mix is.
    share_of: Vec<usize>,
    states: usize,
}

#[derive(Clone, Debug)]
struct ShapeEntry {
    shape: Arc<Shape>,
    /// All of it in words, which have an order.
    text: String,
    offers: Vec<Option<Result<Offer, NoShare>>>,
    states: Vec<StateEntry>,
    state_ids: HashMap<Arc<CardUse>, StateId>,
    outlook: Option<Outlook>,
}

#[derive(Clone, Debug)]
struct StateEntry {
    used: Arc<CardUse>,
    worth: Option<i64>,
    outcomes: Vec<Option<Outcome>>,
    counts: Vec<(Box<[WishId]>, i32)>,
    wanted: Vec<Option<i32>>,
}

fn number(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

fn at(id: u32) -> usize {
    usize::try_from(id).unwrap_or(usize::MAX)
}

impl Tables {
    /// The number of a shape.
    pub fn shape(&mut self, shape: &Arc<Shape>) -> ShapeId {
        if let Some(id) = self.shape_ids.get(shape) {
            return *id;
        }
        let id = number(self.shapes.len());
        self.shape_ids.insert(shape.clone(), id);
        self.shapes.push(ShapeEntry {
            shape: shape.clone(),
            text: format!("{shape:?}"),
            offers: vec![],
            states: vec![],
            state_ids: HashMap::new(),
            outlook: None,
        });
        id
    }

    /// The one copy of a shape that is kept.
    pub fn kept(&mut self, shape: &Arc<Shape>) -> Arc<Shape> {
        let id = self.shape(shape);
        self.shapes.get(at(id)).map_or_else(|| shape.clone(), |entry| entry.shape.clone())
    }

    /// What orders shapes by what they are, whatever was seen first.
    pub(crate) fn order_of(&self, shape: ShapeId) -> &str {
        self.shapes.get(at(shape)).map_or("", |entry| &entry.text)
    }

    /// The number of a state.
    pub fn state(&mut self, shape: ShapeId, used: &CardUse) -> StateId {
        let Some(entry) = self.shapes.get_mut(at(shape)) else { return StateId::MAX };
        if let Some(id) = entry.state_ids.get(used) {
            return *id;
        }
        let id = number(entry.states.len());
        let used = Arc::new(used.clone());
        entry.state_ids.insert(used.clone(), id);
        entry.states.push(StateEntry { used, worth: None, outcomes: vec![], counts: vec![], wanted: vec![] });
        self.states += 1;
        id
    }

    /// The number of what a way of a share asks for.
    pub fn wish(&mut self, request: &ShareRequest, share: &Share) -> WishId {
        self.wish_of(share, &request.cards)
    }

    fn wish_of(&mut self, share: &Share, cards: &CardRequirements) -> WishId {
        let wish = (share.clone(), cards.clone());
        if let Some(id) = self.wish_ids.get(&wish) {
            return *id;
        }
        let id = number(self.wishes.len());
        let wish = Arc::new(wish);
        self.wish_ids.insert(wish.clone(), id);
        self.wishes.push(wish);
        id
    }

    /// Whether so much is kept that it is time to begin again.
    pub fn is_full(&self) -> bool {
        self.states > MOST_STATES
    }

    /// Judges by another list from now on.
    pub fn use_list(&mut self, list: &Arc<PriceList>) {
        let mut wanted: Vec<Box<[WishId]>> = vec![];
        let numbers = list.mix.wanted.iter().map(|(of, _)| {
            let share = of.ways.iter().map(|way| self.wish_of(way, &of.cards)).collect();
            wanted.iter().position(|other| *other == share).unwrap_or_else(|| {
                wanted.push(share);
                wanted.len() - 1
            })
        });
        self.share_of = numbers.collect();
        if wanted != self.wanted {
            self.wanted = wanted;
            self.shapes.iter_mut().flat_map(|entry| &mut entry.states).for_each(|state| state.wanted.clear());
        }
        self.list = list.clone();
        self.forget_worth();
    }

    /// The list by which it judges.
    pub fn list(&self) -> &Arc<PriceList> {
        &self.list
    }

    fn forget_worth(&mut self) {
        for entry in &mut self.shapes {
            entry.outlook = None;
            for state in &mut entry.states {
                state.worth = None;
                state.outcomes.clear();
            }
        }
    }

    /// The mix by which it judges.
    pub fn mix(&self) -> &Mix {
        &self.list.mix
    }

    /// How many shares the mix wants that differ.
    pub(crate) fn shares_wanted(&self) -> usize {
        self.wanted.len()
    }

    /// Which of them each entry of the mix is.
    pub(crate) fn share_of(&self) -> &[usize] {
        &self.share_of
    }

    /// What a shape offers of a wish when nothing is taken.
    pub fn offer(&mut self, shape: ShapeId, wish: WishId) -> Result<&Offer, NoShare> {
        let Some(asked) = self.wishes.get(at(wish)) else { return Err(NoShare::NoCard) };
        let Some(entry) = self.shapes.get_mut(at(shape)) else { return Err(NoShare::NoCard) };
        if entry.offers.len() <= at(wish) {
            entry.offers.resize(at(wish) + 1, None);
        }
        let Some(slot) = entry.offers.get_mut(at(wish)) else { return Err(NoShare::NoCard) };
        let offer = slot.get_or_insert_with(|| {
            let (way, cards) = &**asked;
            entry.shape.gives(cards, way)
        });
        offer.as_ref().map_err(|why| *why)
    }

    /// What a card of a shape in a state gives.
    pub fn outcome(&mut self, shape: ShapeId, state: StateId, wish: WishId) -> Outcome {
        let known = self
            .shapes
            .get(at(shape))
            .and_then(|entry| entry.states.get(at(state)))
            .and_then(|state| state.outcomes.get(at(wish)))
            .and_then(Option::as_ref);
        if let Some(outcome) = known {
            return outcome.clone();
        }
        let outcome = self.work_out(shape, state, wish);
        if let Some(entry) = self.shapes.get_mut(at(shape)).and_then(|entry| entry.states.get_mut(at(state)))
        {
            if entry.outcomes.len() <= at(wish) {
                entry.outcomes.resize(at(wish) + 1, None);
            }
            if let Some(slot) = entry.outcomes.get_mut(at(wish)) {
                *slot = Some(outcome.clone());
            }
        }
        outcome
    }

    fn work_out(&mut self, shape: ShapeId, state: StateId, wish: WishId) -> Outcome {
        let offer = self.offer(shape, wish)?.clone();
        let Some(entry) = self.shapes.get(at(shape)) else { return Err(NoShare::NoCard) };
        let Some(used) = entry.states.get(at(state)).map(|state| state.used.clone()) else {
            return Err(NoShare::NoCard);
        };
        let of_shape = entry.shape.clone();
        let found = state::choices(&of_shape, &used, &offer)?;
        let before = self.worth(shape, state);
        let mut candidates: Vec<Candidate> = found
            .into_iter()
            .take(MOST_CHOICES)
            .map(|choice| {
                let mut after = (*used).clone();
                after.put(choice.takes);
                let next = self.state(shape, &after);
                let waiting = self.outlook(shape).map(|of| of.waiting_lose(&used, &after, choice.takes));
                let cost = before - self.worth(shape, next) + waiting.unwrap_or(0);
                Candidate { choice, cost, next }
            })
            .collect();
        // Whole cards differ in size, but none is smaller for the asker's sake.
        let size = |candidate: &Candidate| match offer {
            Offer::Whole => 0,
            Offer::Kinds(..) => candidate.choice.framebuffer_mib,
        };
        candidates.sort_by_key(|candidate| {
            (size(candidate), candidate.cost, candidate.choice.takes.start, candidate.choice.takes.kind)
        });
        Ok(candidates.into())
    }

    /// How many more of a share a card of a shape in a state gives, the ways in their order.
    pub fn count(&mut self, shape: ShapeId, state: StateId, ways: &[WishId]) -> i32 {
        let offers: Vec<Offer> =
            ways.iter().filter_map(|wish| self.offer(shape, *wish).ok().cloned()).collect();
        let Some(entry) = self.shapes.get_mut(at(shape)) else { return 0 };
        let Some(kept) = entry.states.get_mut(at(state)) else { return 0 };
        if let Some((_, count)) = kept.counts.iter().find(|(known, _)| **known == *ways) {
            return *count;
        }
        let count = state::count_more(&entry.shape, &kept.used, &offers);
        kept.counts.push((ways.into(), count));
        count
    }

    /// How many more of the wanted share at `position` a card of a shape in a state gives.
    pub fn count_wanted(&mut self, shape: ShapeId, state: StateId, position: usize) -> i32 {
        let kept = self.shapes.get(at(shape)).and_then(|entry| entry.states.get(at(state)));
        if let Some(count) = kept.and_then(|state| state.wanted.get(position)).copied().flatten() {
            return count;
        }
        let ways = self.wanted.get(position).cloned().unwrap_or_default();
        let count = self.count(shape, state, &ways);
        if let Some(kept) = self.shapes.get_mut(at(shape)).and_then(|entry| entry.states.get_mut(at(state))) {
            if kept.wanted.len() <= position {
                kept.wanted.resize(position + 1, None);
            }
            if let Some(slot) = kept.wanted.get_mut(position) {
                *slot = Some(count);
            }
        }
        count
    }

    /// What a card of a shape in a state is worth to the mix.
    pub fn worth(&mut self, shape: ShapeId, state: StateId) -> i64 {
        let Some(kept) = self.shapes.get(at(shape)).and_then(|entry| entry.states.get(at(state))) else {
            return 0;
        };
        if let Some(worth) = kept.worth {
            return worth;
        }
        let used = kept.used.clone();
        let worth = self.outlook(shape).map_or(0, |outlook| outlook.worth(&used));
        if let Some(kept) = self.shapes.get_mut(at(shape)).and_then(|entry| entry.states.get_mut(at(state))) {
            kept.worth = Some(worth);
        }
        worth
    }

    fn outlook(&mut self, shape: ShapeId) -> Option<&Outlook> {
        let Self { shapes, list, .. } = self;
        let PriceList { version: _, mix, supply, defined, waiting } = &**list;
        let entry = shapes.get_mut(at(shape))?;
        let of = &entry.shape;
        Some(entry.outlook.get_or_insert_with(|| Outlook::new(of, mix, supply, defined, waiting.as_ref())))
    }

    /// What is taken in a state.
    pub fn used(&self, shape: ShapeId, state: StateId) -> Option<&Arc<CardUse>> {
        Some(&self.shapes.get(at(shape))?.states.get(at(state))?.used)
    }

    /// A shape by its number.
    pub fn shape_of(&self, shape: ShapeId) -> Option<&Arc<Shape>> {
        self.shapes.get(at(shape)).map(|entry| &entry.shape)
    }
}
