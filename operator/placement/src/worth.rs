//! What a card in a state is worth to the requests to come: the card's shape and the mix, in the
//! terms of [`crate::lookahead`].

use std::sync::Arc;

use crate::{
    lookahead::{ALL_CARDS, Asked, Values, fill},
    mix::{Mix, Wanted},
    prices::{self, Prices},
    shape::{Offer, Shape},
    state::{self, CardUse, UsedShare},
};

/// Memory that a card counts for when nobody says how much it has, in MiB.
const UNKNOWN_MEMORY_MIB: u64 = 16 * 1024;

/// The cards of an estate by shape: which part of all cards each is, in [`ALL_CARDS`]ths, rounded to
/// three binary digits so that one card more seldom changes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Supply {
    shapes: Vec<(Arc<Shape>, u64)>,
}

impl Supply {
    /// From how many cards there are of each shape, in an order that equal estates share.
    pub fn new<'a>(counts: impl Iterator<Item = (&'a Arc<Shape>, u64)> + Clone) -> Self {
        let total: u64 = counts.clone().map(|(_, count)| count).sum();
        let part = |count: u64| {
            let part = (count * ALL_CARDS).checked_div(total).unwrap_or(0).max(1);
            let step = 1u64 << part.ilog2().saturating_sub(2);
            (part + step / 2) / step * step
        };
        let shapes = counts.filter(|(_, count)| *count > 0);
        Self { shapes: shapes.map(|(shape, count)| (shape.clone(), part(count))).collect() }
    }

    /// The shapes, and which part of [`ALL`] each is.
    pub(crate) fn shapes(&self) -> impl Iterator<Item = (&Arc<Shape>, u64)> {
        self.shapes.iter().map(|(shape, part)| (shape, *part))
    }

    /// On which part of all cards a request can go.
    fn of(&self, wanted: &Wanted) -> u64 {
        let offers = |shape: &Shape| offer_of(shape, wanted).is_some();
        let parts = self.shapes().filter(|(shape, _)| offers(shape)).map(|(_, part)| part);
        parts.sum::<u64>().clamp(1, ALL_CARDS)
    }
}

/// All cards, as a [`Supply`] counts them.
pub(crate) const ALL: u64 = ALL_CARDS;

/// What weighs more while desktops wait: a loss for them over a loss for those who may come.
const WAITING: i64 = 1 << 20;
/// A loss for those who wait is told in steps of 16 MiB.
const TELLING: i64 = 16 * prices::MIB;

/// The mix as it concerns one shape.
#[derive(Clone, Debug)]
pub struct Outlook {
    values: Values,
    /// MiB.
    memory: u64,
    /// What the mix asks for, by kind.
    defined: Vec<Asked>,
    /// What those ask for who wait; nothing while nobody does.
    waiting: Vec<Asked>,
    offers: Vec<(Offer, i64)>,
}

/// What a shape offers of a wanted share when nothing is taken: of the first way that it offers.
pub(crate) fn offer_of(shape: &Shape, wanted: &Wanted) -> Option<Offer> {
    shape.first_offer(&wanted.cards, wanted.ways.iter())
}

/// The kind of the geometry that serves an offer.
pub(crate) fn kind_of(offer: &Offer) -> Option<u16> {
    match offer {
        Offer::Whole => Some(0),
        Offer::Kinds(kinds, _) => kinds.first().map(|(kind, _)| kind + 1),
    }
}

/// How many of an offer live on one GPU instance.
pub(crate) fn on_one_instance(shape: &Shape, offer: &Offer) -> Option<u32> {
    let Offer::Kinds(kinds, _) = offer else { return None };
    let (kind, vgpu) = kinds.first()?;
    let backed = shape.kind(*kind)?.backed.get(usize::from((*vgpu)?))?;
    u32::try_from(backed.max.max(1)).ok()
}

impl Outlook {
    /// What the mix wants of cards of this shape: of each request, the first way that they offer.
    /// `defined` are the prices of the mix, `waiting` those of who waits, if anybody does.
    pub fn new(
        shape: &Shape,
        mix: &Mix,
        supply: &Supply,
        defined: &Prices,
        waiting: Option<&Prices>,
    ) -> Self {
        let geometry = &shape.geometry;
        let mut counts = vec![0; geometry.kinds.len()];
        let mut served = vec![0; geometry.kinds.len()];
        let mut total = 0;
        let mut offers: Vec<(Offer, i64)> = vec![];
        for (wanted, weight) in &mix.wanted {
            total += u64::from(*weight);
            let Some(offer) = offer_of(shape, wanted) else { continue };
            let kind = kind_of(&offer).map_or(0, usize::from);
            if let (Some(count), Some(served)) = (counts.get_mut(kind), served.get_mut(kind)) {
                *count += u64::from(*weight);
                // Of several requests for a kind, the one that has the most other cards to go to.
                *served = supply.of(wanted).max(*served);
            }
            match offers.iter_mut().find(|(other, _)| *other == offer) {
                Some((_, sum)) => *sum += i64::from(*weight),
                None => offers.push((offer, i64::from(*weight))),
            }
        }
        let memory = shape.memory_mib.and_then(|mib| u64::try_from(mib).ok()).unwrap_or(UNKNOWN_MEMORY_MIB);
        for served in served.iter_mut().filter(|served| **served == 0) {
            *served = ALL_CARDS;
        }
        let defined = defined.asked(shape, geometry);
        let waiting = waiting.map(|waiting| waiting.asked(shape, geometry)).unwrap_or_default();
        Self {
            values: Values::scarce(geometry.clone(), &counts, total, memory, &served),
            memory,
            defined,
            waiting,
            offers,
        }
    }

    /// What a card is worth, in MiB of GPU memory; the cost of a choice is what it takes away. The starts
    /// that it still has count as much as what still fits at the prices of the mix.
    pub fn worth(&self, used: &CardUse) -> i64 {
        let whole = self.memory.saturating_mul(prices::MIB.unsigned_abs());
        self.values.worth(&used.layout(), whole, &self.defined) / prices::MIB
    }

    /// What those who wait lose when one of them takes a share of a card, weighed against
    /// [`Outlook::worth`]: what still fits for the others, before and after.
    pub fn waiting_lose(&self, before: &CardUse, after: &CardUse, takes: UsedShare) -> i64 {
        if self.waiting.is_empty() {
            return 0;
        }
        let mut others = self.waiting.clone();
        if let Some(asked) = others.get_mut(usize::from(takes.placed().kind)) {
            asked.limit = asked.limit.saturating_sub(1);
        }
        let worth = |used: &CardUse| fill(self.values.geometry(), &used.layout(), &others);
        // What differs by rounding only is equal.
        WAITING.saturating_mul((worth(before) - worth(after) + TELLING / 2).div_euclid(TELLING))
    }

    /// Of the free units, how many in a thousand the mix cannot use.
    pub fn stranded_permille(&self, shape: &Shape, used: &CardUse) -> i32 {
        let Some(mode) = used.shares().first().map(|share| share.mode) else { return 0 };
        let free = (shape.units(mode) - used.units(shape)).max(0);
        let weights: i64 = self.offers.iter().map(|(_, weight)| weight).sum();
        if free == 0 || weights == 0 {
            return 0;
        }
        let usable = |offer: &Offer| {
            let size = match offer {
                Offer::Whole => shape.units(mode),
                Offer::Kinds(kinds, _) => {
                    kinds.first().and_then(|(kind, _)| shape.extent(*kind)).map_or(1, |kind| kind.size.max(1))
                }
            };
            i64::from((state::count_more(shape, used, std::slice::from_ref(offer)) * size).min(free))
        };
        let used: i64 = self.offers.iter().map(|(offer, weight)| usable(offer) * weight).sum();
        i32::try_from(1000 - used * 1000 / (weights * i64::from(free))).unwrap_or(0)
    }
}
