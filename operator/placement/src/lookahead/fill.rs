//! The most that can still be added to a card, when each kind has a price.

use super::{Geometry, Placed};

/// Limits of kinds multiply the work; what would multiply it beyond this is taken as unlimited.
const MOST_COUNTS: usize = 32;
/// The same of all states of one search: a daemon may name a card of any size.
const MOST_STATES: usize = 1 << 14;

/// What is paid for a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// For one.
    pub price: i64,
    /// For so many at most.
    pub limit: u32,
}

/// A kind as the search sees it.
struct Item<'a> {
    size: usize,
    slices: usize,
    starts: &'a [i32],
    price: i64,
    /// How many more there may be, and the factor of its digit in the count; `None` without a limit.
    limit: Option<(usize, usize)>,
}

fn length(number: i32) -> usize {
    usize::try_from(number).unwrap_or(0)
}

/// The sum of prices of the best layout that the card can still take, in the mode that it is in. `asked`
/// is by kind; kinds past its end are not asked for.
pub fn fill(geometry: &Geometry, placed: &[Placed], asked: &[Asked]) -> i64 {
    let room = geometry.room(placed);
    let modes = (0u16..).zip(&geometry.modes);
    let open = modes.filter(|(number, _)| room.mode.is_none_or(|mode| mode == *number));
    open.map(|(number, _)| fill_mode(geometry, number, placed, asked)).max().unwrap_or(0)
}

fn fill_mode(geometry: &Geometry, number: u16, placed: &[Placed], asked: &[Asked]) -> i64 {
    let room = geometry.room(placed);
    let Some(mode) = geometry.modes.get(usize::from(number)) else { return 0 };
    let slices = mode.slices.map(|all| length(all - room.slices));
    let states = (length(mode.units) + 1) * (slices.unwrap_or(0) + 1);
    let most_counts = (MOST_STATES / states).min(MOST_COUNTS);
    let mut counts = 1;
    let mut items: Vec<Item<'_>> = vec![];
    for (position, (kind, asked)) in geometry.kinds.iter().zip(asked).enumerate() {
        let own = placed.iter().filter(|share| usize::from(share.kind) == position).count();
        let most = kind.max_count.min(kind.places.unwrap_or(i32::MAX));
        let left = length(most).saturating_sub(own);
        let limit = left.min(usize::try_from(asked.limit).unwrap_or(usize::MAX));
        if kind.mode != number || kind.size <= 0 || limit == 0 || asked.price <= 0 {
            continue;
        }
        let fit = if kind.starts.is_empty() { length(mode.units / kind.size) } else { kind.starts.len() };
        let digit = (limit < fit && counts * (limit + 1) <= most_counts).then(|| {
            let factor = counts;
            counts *= limit + 1;
            (limit, factor)
        });
        items.push(Item {
            size: length(kind.size),
            slices: slices.map_or(0, |_| length(kind.slices)),
            starts: &kind.starts,
            price: asked.price,
            limit: digit,
        });
    }
    if items.is_empty() {
        return 0;
    }
    best(&items, &free(geometry, length(mode.units), placed), slices.unwrap_or(0), counts)
}

/// Which units are free. Shares without a position stand at the beginning, whatever their order.
fn free(geometry: &Geometry, units: usize, placed: &[Placed]) -> Vec<bool> {
    let mut free = vec![true; units];
    let mut counted = 0;
    for share in placed {
        let size = geometry.kind(share.kind).map_or(0, |kind| length(kind.size));
        let start = share.start.map_or(counted, length);
        counted += if share.start.is_none() { size } else { 0 };
        free.iter_mut().skip(start).take(size).for_each(|unit| *unit = false);
    }
    free
}

/// By unit, from the last to the first: the most from there on, by slices left and by how many of the
/// limited items there are already.
fn best(items: &[Item<'_>], free: &[bool], slices: usize, counts: usize) -> i64 {
    let width = (slices + 1) * counts;
    let mut worth = vec![0i64; (free.len() + 1) * width];
    // How many free units follow from each one.
    let mut run = 0;
    for at in (0..free.len()).rev() {
        run = if free[at] { run + 1 } else { 0 };
        let (here, after) = worth.split_at_mut((at + 1) * width);
        let here = &mut here[at * width..];
        here.copy_from_slice(&after[..width]);
        let starts = |item: &Item<'_>| {
            item.starts.is_empty() || item.starts.binary_search_by_key(&at, |start| length(*start)).is_ok()
        };
        for item in items.iter().filter(|item| item.size <= run && starts(item)) {
            let next = &after[(item.size - 1) * width..][..width];
            for left in item.slices..=slices {
                for count in 0..counts {
                    let more = match item.limit {
                        None => 0,
                        Some((limit, factor)) if count / factor % (limit + 1) < limit => factor,
                        Some(_) => continue,
                    };
                    let sum = item.price + next[(left - item.slices) * counts + count + more];
                    let cell = &mut here[left * counts + count];
                    *cell = sum.max(*cell);
                }
            }
        }
    }
    worth.get(slices * counts).copied().unwrap_or(0)
}
