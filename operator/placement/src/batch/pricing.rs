//! The layout of one card that is worth most at given prices.

use std::collections::HashMap;

use crate::lookahead::{Geometry, Placed};

/// Keeps the states of one search in bounds: a limit that would multiply them beyond this is left out,
/// and what is too many falls away when the layout is used.
const MOST_COUNTS: u32 = 4096;
/// The same of all states: a daemon may name a card of any size.
const MOST_STATES: u32 = 1 << 19;

/// A layout: what is added to a card.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Layout {
    /// What it is worth.
    pub(super) worth: f64,
    /// Request shape and share, by position of the shape and start.
    pub(super) adds: Vec<(usize, Placed)>,
}

/// One kind as the search sees it.
struct Item<'a> {
    shape: usize,
    kind: u16,
    size: i32,
    slices: i32,
    starts: &'a [i32],
    price: f64,
    /// How many more there may be, and the factor of its digit in the count; `None` without a limit.
    limit: Option<(u32, u32)>,
}

/// A choice at a unit: the item put there, or none.
type Memo = HashMap<(i32, i32, u32), (f64, Option<usize>)>;

struct Search<'a> {
    items: Vec<Item<'a>>,
    taken: Vec<(i32, i32)>,
    units: i32,
    memo: Memo,
}

/// The layout that is worth most on a card with these shares. No shape gets more than `want`, with few
/// exceptions that [`MOST_COUNTS`] explains.
pub(super) fn best(
    geometry: &Geometry,
    placed: &[Placed],
    serves: &[Option<u16>],
    want: &[u32],
    prices: &[f64],
) -> Layout {
    let room = geometry.room(placed);
    let mut best = Layout { worth: 0.0, adds: vec![] };
    for (number, mode) in (0u16..).zip(&geometry.modes) {
        if room.mode.is_some_and(|active| active != number) {
            continue;
        }
        let slices = mode.slices.map(|all| all - room.slices);
        let length = |number: i32| u32::try_from(number).unwrap_or(0).saturating_add(1);
        let states = length(mode.units).saturating_mul(slices.map_or(1, length));
        let most_counts = (MOST_STATES / states).min(MOST_COUNTS);
        let mut factor = 1u32;
        let mut items: Vec<Item<'_>> = vec![];
        for (shape, kind) in serves.iter().enumerate() {
            let (Some(kind), Some(want), Some(price)) = (*kind, want.get(shape), prices.get(shape)) else {
                continue;
            };
            let Some(of) = geometry.kind(kind).filter(|of| of.mode == number && of.size > 0) else {
                continue;
            };
            let own = placed.iter().filter(|share| share.kind == kind).count();
            let most = of.max_count.min(of.places.unwrap_or(i32::MAX));
            let left = most - i32::try_from(own).unwrap_or(i32::MAX);
            let limit = (*want).min(u32::try_from(left).unwrap_or(0));
            if *price <= 0.0 || limit == 0 {
                continue;
            }
            let fit = if of.starts.is_empty() {
                u32::try_from(mode.units / of.size).unwrap_or(0)
            } else {
                u32::try_from(of.starts.len()).unwrap_or(u32::MAX)
            };
            let digits = factor.checked_mul(limit + 1).filter(|product| *product <= most_counts);
            let digit = match digits {
                Some(product) if limit < fit => Some((limit, std::mem::replace(&mut factor, product))),
                _ => None,
            };
            items.push(Item {
                shape,
                kind,
                size: of.size,
                slices: of.slices,
                starts: &of.starts,
                price: *price,
                limit: digit,
            });
        }
        let taken = placed.iter().filter_map(|share| Some((share.start?, geometry.kind(share.kind)?.size)));
        let counted = placed.iter().filter(|share| share.start.is_none());
        let counted: i32 = counted.filter_map(|share| geometry.kind(share.kind)).map(|kind| kind.size).sum();
        // Shares without a position stand at the beginning, whatever their order.
        let taken = taken.chain((counted > 0).then_some((0, counted))).collect();
        let slices = slices.unwrap_or(i32::MAX);
        let mut search = Search { items, taken, units: mode.units, memo: Memo::new() };
        let worth = search.worth(0, slices, 0);
        if worth > best.worth {
            best = Layout { worth, adds: search.adds(slices) };
        }
    }
    best
}

impl Search<'_> {
    fn free(&self, start: i32, size: i32) -> bool {
        start + size <= self.units
            && self.taken.iter().all(|(at, of)| start + size <= *at || at + of <= start)
    }

    fn next(&self, item: usize, at: i32, slices: i32, counts: u32) -> Option<(i32, i32, u32)> {
        let item = self.items.get(item)?;
        let starts_here = item.starts.is_empty() || item.starts.binary_search(&at).is_ok();
        if !starts_here || item.slices > slices || !self.free(at, item.size) {
            return None;
        }
        let counts = match item.limit {
            None => counts,
            Some((limit, factor)) if counts / factor % (limit + 1) < limit => counts + factor,
            Some(_) => return None,
        };
        let slices = if slices == i32::MAX { slices } else { slices - item.slices };
        Some((at + item.size, slices, counts))
    }

    /// The most that the units from `at` on give.
    fn worth(&mut self, at: i32, slices: i32, counts: u32) -> f64 {
        if at >= self.units {
            return 0.0;
        }
        if let Some((worth, _)) = self.memo.get(&(at, slices, counts)) {
            return *worth;
        }
        let mut best = (self.worth(at + 1, slices, counts), None);
        for item in 0..self.items.len() {
            let Some((next, left, more)) = self.next(item, at, slices, counts) else { continue };
            let worth = self.items[item].price + self.worth(next, left, more);
            if worth > best.0 {
                best = (worth, Some(item));
            }
        }
        self.memo.insert((at, slices, counts), best);
        best.0
    }

    fn adds(&self, slices: i32) -> Vec<(usize, Placed)> {
        let mut adds = vec![];
        let mut state = (0, slices, 0);
        while let Some((_, choice)) = self.memo.get(&state) {
            let next = choice.and_then(|item| self.next(item, state.0, state.1, state.2));
            state = match (choice.and_then(|item| self.items.get(item)), next) {
                (Some(item), Some(next)) => {
                    let start = (!item.starts.is_empty()).then_some(state.0);
                    adds.push((item.shape, Placed { kind: item.kind, start }));
                    next
                }
                _ => (state.0 + 1, state.1, state.2),
            };
        }
        adds
    }
}
