//! What a share costs where more is asked for than there is: prices for look-ahead.
//!
//! Requests compete for cards, and a card that is opened for some of them is lost to others. The linear
//! program of [`crate::batch`] says what one request more of each shape would take from the rest when
//! all are packed as well as can be: its dual prices, nothing where there is room for all. A card in a
//! state is worth the best layout that it can still take at these prices ([`crate::lookahead::fill`]),
//! and a choice costs what it takes away from that. Such *bid prices* are how seats and rooms are sold
//! (Williamson, "Airline network seat inventory control", 1992). As few requests make prices jump between
//! nothing and all, they are the mean over several programs with demand a little more or less than
//! expected (Talluri and van Ryzin, "A randomized linear programming method for computing network bid
//! prices", 1999); here over a Latin hypercube of normal quantiles, the same each time, with the root of
//! what is expected as standard deviation.

use std::collections::HashMap;
use std::sync::Arc;

use crate::{
    batch::{self, Class},
    lookahead::{Asked, Geometry, Placed},
    mix::{Census, Mix, Wanted},
    shape::{Offer, Shape},
    state::CardUse,
    worth::{self, Supply},
};

/// Programs whose prices are averaged.
const SAMPLES: u32 = 64;
/// Fixed point of prices: this is one MiB of GPU memory.
pub const MIB: i64 = 1 << 10;
/// Kinds of cards and of requests that a program has at most: the largest of them.
const MOST: usize = 32;
/// Cards in the program of what is defined; how many there really are does not count.
pub const NOMINAL_CARDS: u32 = 128;
/// What is defined is taken to ask for so much of the memory of all cards, in percent.
pub const NOMINAL_LOAD: f64 = 110.0;

/// Cards that are alike.
#[derive(Clone, Debug)]
pub struct Alike {
    /// What they offer.
    pub shape: Arc<Shape>,
    /// What is on each.
    pub used: Arc<CardUse>,
    /// How many.
    pub count: u32,
}

/// By what cards are judged: worked out aside, and the same for all decisions until the next.
#[derive(Clone, Debug, Default)]
pub struct PriceList {
    /// Counts lists.
    pub version: u64,
    /// What is defined.
    pub mix: Mix,
    /// Which cards there are.
    pub supply: Supply,
    /// Prices of what is defined.
    pub defined: Prices,
    /// Prices of those who wait; nothing while nobody does, or where there is room for all.
    pub waiting: Option<Prices>,
}

/// What the next list is worked out from: a copy, so that nobody waits for it.
#[derive(Clone, Debug)]
pub struct PricingWork {
    pub(crate) before: Arc<PriceList>,
    /// What is defined, and which cards there are, where that is new.
    pub(crate) defined: Option<(Mix, Supply)>,
    pub(crate) waiting: Waits,
}

/// Who waits.
#[derive(Clone, Debug)]
pub(crate) enum Waits {
    /// As for the list before.
    AsBefore,
    /// Nobody.
    Nobody,
    /// These, beside cards as they are.
    For(Vec<Alike>, Census),
}

impl PricingWork {
    /// Works it out: some dozens of linear programs.
    pub fn solve(self) -> PriceList {
        let Self { before, defined, waiting } = self;
        let mut list = PriceList { version: before.version + 1, ..(*before).clone() };
        if let Some((mix, supply)) = defined {
            list.defined = Prices::of_mix(&mix, &supply);
            (list.mix, list.supply) = (mix, supply);
        }
        match waiting {
            Waits::AsBefore => {}
            Waits::Nobody => list.waiting = None,
            Waits::For(cards, census) => {
                let requests = census.counts().map(|(wanted, count)| {
                    (wanted.clone(), f64::from(u32::try_from(count).unwrap_or(u32::MAX)))
                });
                let requests: Vec<(Wanted, f64)> = requests.collect();
                list.waiting = Some(Prices::new(&cards, &requests)).filter(Prices::any);
            }
        }
        list
    }
}

impl PriceList {
    /// Whether it judges as another does.
    pub fn judges_like(&self, other: &Self) -> bool {
        let Self { version: _, mix, supply, defined, waiting } = self;
        (mix, supply, defined, waiting) == (&other.mix, &other.supply, &other.defined, &other.waiting)
    }
}

/// What requests for shares cost.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prices {
    of: Vec<Priced>,
}

#[derive(Clone, Debug, PartialEq)]
struct Priced {
    wanted: Wanted,
    /// For one share or for the shares of one GPU instance, in parts of [`MIB`].
    price: i64,
    /// How many are asked for.
    count: u32,
}

/// The shapes of some cards, each once.
struct Shapes<'a> {
    of: Vec<&'a Arc<Shape>>,
    by_shape: HashMap<&'a Arc<Shape>, usize>,
}

impl<'a> Shapes<'a> {
    fn new(cards: &'a [Alike]) -> Self {
        let mut shapes = Self { of: vec![], by_shape: HashMap::new() };
        for card in cards {
            shapes.by_shape.entry(&card.shape).or_insert_with(|| {
                shapes.of.push(&card.shape);
                shapes.of.len() - 1
            });
        }
        shapes
    }
}

/// A request shape of the program.
struct Sought<'a> {
    wanted: &'a Wanted,
    /// By shape, the kind that serves it.
    kinds: Vec<Option<u16>>,
    /// MiB.
    worth: u32,
    /// How many are expected.
    expected: f64,
}

impl<'a> Sought<'a> {
    /// Nothing where no card offers it.
    fn new(shapes: &Shapes<'_>, wanted: &'a Wanted, requests: f64) -> Option<Self> {
        let offers: Vec<Option<Offer>> =
            shapes.of.iter().map(|shape| worth::offer_of(shape, wanted)).collect();
        let kinds: Vec<Option<u16>> =
            offers.iter().map(|offer| offer.as_ref().and_then(worth::kind_of)).collect();
        let serving = || shapes.of.iter().zip(&offers).zip(&kinds);
        let worth = serving().filter_map(|((shape, _), kind)| memory_of(shape, *kind));
        let together =
            serving().filter_map(|((shape, offer), _)| worth::on_one_instance(shape, offer.as_ref()?));
        let expected = requests / f64::from(together.min().unwrap_or(1));
        Some(Self { wanted, worth: worth.max()?, kinds, expected })
    }
}

/// What is asked for of these cards; what asks for the same shares is one, whatever comes with them.
fn sought<'a>(shapes: &Shapes<'_>, requests: &'a [(Wanted, f64)]) -> Vec<Sought<'a>> {
    let mut found: Vec<Sought<'a>> = vec![];
    for (wanted, requests) in requests {
        let Some(new) = Sought::new(shapes, wanted, *requests) else { continue };
        match found.iter_mut().find(|other| other.wanted.is_the_same_share(wanted)) {
            Some(other) => other.expected += new.expected,
            None => found.push(new),
        }
    }
    found
}

/// What a share takes of a card's memory in MiB, by length.
fn memory_of(shape: &Shape, kind: Option<u16>) -> Option<u32> {
    let geometry = &shape.geometry;
    let kind = geometry.kind(kind?)?;
    let (part, all) = if kind.starts.is_empty() {
        (1, geometry.holds(kind))
    } else {
        (kind.size, geometry.mode_of(kind).units)
    };
    u32::try_from(nominal_memory(shape)? * i64::from(part) / i64::from(all.max(1))).ok()
}

/// The memory of a card in MiB, or the sum of what its shares promise where that is more: a driver
/// counts less of a whole card than of its parts.
fn nominal_memory(shape: &Shape) -> Option<i64> {
    let geometry = &shape.geometry;
    let parts = shape.kinds.iter().zip(geometry.kinds.iter().skip(1));
    let promised = parts.map(|(kind, of)| kind.framebuffer_mib * i64::from(geometry.holds(of)));
    promised.chain(shape.memory_mib).max().filter(|memory| *memory > 0)
}

/// Memory that is left on cards, in MiB.
fn free_memory(cards: &Alike) -> f64 {
    let geometry = &cards.shape.geometry;
    let room = geometry.room(&cards.used.layout());
    let free = match room.mode.and_then(|mode| geometry.modes.get(usize::from(mode))) {
        None if cards.used.is_free() => 1.0,
        None => 0.0,
        Some(mode) => f64::from((mode.units - room.units).max(0)) / f64::from(mode.units.max(1)),
    };
    let all = nominal_memory(&cards.shape).and_then(|all| u32::try_from(all).ok());
    let all = f64::from(all.unwrap_or(0));
    all * free * f64::from(cards.count)
}

/// Numbers to shuffle by: `SplitMix64` (Steele, Lea and Flood, 2014).
fn scrambled(seed: usize) -> usize {
    let mut z = (seed as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    usize::try_from((z ^ (z >> 31)) >> 32).unwrap_or(0)
}

/// Normal quantiles, one from the middle of each of as many equal parts as there are samples, in an
/// order of its own for each request shape.
fn quantiles(shape: usize) -> Vec<f64> {
    // The logistic distribution comes near the normal one (Bowling et al., 2009).
    let quantile = |part: f64| (part / (1.0 - part)).ln() / 1.702;
    let parts = (0..SAMPLES).map(|sample| (f64::from(sample) + 0.5) / f64::from(SAMPLES));
    let mut shuffled: Vec<f64> = parts.map(quantile).collect();
    let count = shuffled.len();
    for last in (1..count).rev() {
        shuffled.swap(last, scrambled(shape * count + last) % (last + 1));
    }
    shuffled
}

/// A number of requests.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rounded and not negative")]
fn whole(number: f64) -> u32 {
    number.round().clamp(0.0, 1e9) as u32
}

/// The mean price of a request of each shape, `worth` at most, where so many of each are `expected`, a
/// little more or less.
pub fn mean(classes: &[Class<'_>], worth: &[f64], expected: &[f64]) -> Vec<f64> {
    let quantiles: Vec<Vec<f64>> = (0..expected.len()).map(quantiles).collect();
    let demand = |sample: usize| -> Vec<u32> {
        let shapes = expected.iter().zip(&quantiles);
        let off = |quantiles: &Vec<f64>| quantiles.get(sample).copied().unwrap_or(0.0);
        shapes.map(|(expected, of)| whole(expected + off(of) * expected.sqrt())).collect()
    };
    // Where the most that may come finds room, so does whatever is less.
    let most = quantiles.first().map_or(0.0, |of| of.iter().copied().fold(0.0, f64::max));
    let most = expected.iter().map(|expected| whole(expected + most * expected.sqrt())).collect();
    let prices = batch::prices(classes, worth, &[most]);
    if prices.iter().all(|price| *price <= 0.0) {
        return prices;
    }
    let demands: Vec<Vec<u32>> = (0..quantiles.first().map_or(0, Vec::len)).map(demand).collect();
    batch::prices(classes, worth, &demands)
}

impl Prices {
    /// Prices where these cards are all that there is; `requests` says how many there are of each.
    pub fn new(cards: &[Alike], requests: &[(Wanted, f64)]) -> Self {
        let shapes = Shapes::new(cards);
        let mut cards: Vec<(f64, &Alike)> = cards.iter().map(|cards| (free_memory(cards), cards)).collect();
        cards.retain(|(free, _)| *free > 0.0);
        let all: f64 = cards.iter().map(|(free, _)| free).sum();
        cards.sort_by(|a, b| b.0.total_cmp(&a.0));
        cards.truncate(MOST);
        let kept: f64 = cards.iter().map(|(free, _)| free).sum();
        let cards: Vec<&Alike> = cards.into_iter().map(|(_, cards)| cards).collect();
        let part = if all > 0.0 { kept / all } else { 1.0 };
        let mut sought = sought(&shapes, requests);
        for sought in &mut sought {
            sought.expected *= part;
        }
        sought.retain(|sought| sought.expected > 0.0);
        sought
            .sort_by(|a, b| (b.expected * f64::from(b.worth)).total_cmp(&(a.expected * f64::from(a.worth))));
        sought.truncate(MOST);
        Self::of_sought(&cards, &shapes, &sought)
    }

    fn of_sought(cards: &[&Alike], shapes: &Shapes<'_>, sought: &[Sought<'_>]) -> Self {
        let placed: Vec<Vec<Placed>> = cards.iter().map(|cards| cards.used.layout()).collect();
        let serves: Vec<Vec<Option<u16>>> = (0..shapes.of.len())
            .map(|shape| sought.iter().map(|sought| sought.kinds.get(shape).copied().flatten()).collect())
            .collect();
        let classes = cards.iter().zip(&placed).filter_map(|(cards, placed)| {
            let shape = *shapes.by_shape.get(&cards.shape)?;
            let (geometry, serves) = (&shapes.of.get(shape)?.geometry, serves.get(shape)?);
            Some(Class { geometry, placed, count: cards.count, cost: 0, serves })
        });
        let classes: Vec<Class<'_>> = classes.collect();
        let expected: Vec<f64> = sought.iter().map(|sought| sought.expected).collect();
        let worth: Vec<f64> = sought.iter().map(|sought| f64::from(sought.worth)).collect();
        let prices = mean(&classes, &worth, &expected);
        let of = sought.iter().zip(prices).map(|(sought, price)| Priced {
            wanted: sought.wanted.clone(),
            price: i64::from(whole(price * 1024.0)),
            count: whole(sought.expected.ceil()),
        });
        Self { of: of.collect() }
    }

    /// Prices of what is defined, where all cards are empty and what comes asks for a little more than
    /// there is: for requests of which nobody knows when they come.
    pub fn of_mix(mix: &Mix, supply: &Supply) -> Self {
        let cards: Vec<Alike> = supply
            .shapes()
            .map(|(shape, part)| Alike {
                shape: shape.clone(),
                used: Arc::default(),
                count: u32::try_from((part * u64::from(NOMINAL_CARDS) / worth::ALL).max(1)).unwrap_or(1),
            })
            .collect();
        let requests = |(wanted, weight): &(Wanted, u32)| (wanted.clone(), f64::from(*weight));
        let mut requests: Vec<(Wanted, f64)> = mix.wanted.iter().map(requests).collect();
        let shapes = Shapes::new(&cards);
        let all: f64 = cards.iter().map(free_memory).sum();
        let asked: f64 =
            sought(&shapes, &requests).iter().map(|sought| sought.expected * f64::from(sought.worth)).sum();
        if asked <= 0.0 {
            return Self::default();
        }
        for (_, weight) in &mut requests {
            *weight *= all * NOMINAL_LOAD / 100.0 / asked;
        }
        let mut prices = Self::new(&cards, &requests);
        // The estate is larger than this program, so that no card is short of requests.
        prices.of.iter_mut().for_each(|priced| priced.count = u32::MAX);
        prices
    }

    /// Whether some request takes something from another.
    pub fn any(&self) -> bool {
        self.of.iter().any(|priced| priced.price > 0)
    }

    /// What is asked for of each kind of a shape's geometry.
    pub(crate) fn asked(&self, shape: &Shape, geometry: &Geometry) -> Vec<Asked> {
        let mut asked = vec![Asked::default(); geometry.kinds.len()];
        for priced in self.of.iter().filter(|priced| priced.price > 0) {
            let kind = worth::offer_of(shape, &priced.wanted).and_then(|offer| worth::kind_of(&offer));
            if let Some(asked) = kind.and_then(|kind| asked.get_mut(usize::from(kind))) {
                asked.price = asked.price.max(priced.price);
                asked.limit = asked.limit.saturating_add(priced.count);
            }
        }
        asked
    }
}
