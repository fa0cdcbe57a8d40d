//! What a card in a state is worth to the requests to come, and so what a choice costs.
//!
//! The worth of a card is the number of starts that each wanted kind will find on it, weighed:
//!
//! ```text
//! worth = Σ over kinds  share^⅝ · fraction³ · Σ over its starts  1 / C(16 + j, j)   + a little for fullness
//! ```
//!
//! - `share` is the kind's part of the mix. Demand for a kind fluctuates with the root of its volume,
//!   so a rare kind needs more in reserve than its part. The exponent is between that and proportion:
//!   with ½ a kind that is hardly wanted was protected too much, with 1 it was shut out.
//! - `fraction` is the part of the card that one share takes: room for a large share is hard to come
//!   by again, room for a small one is everywhere.
//! - `j` counts the placed shares in the way. `1 / C(16 + j, j)` is the chance that all of them end
//!   within a sixteenth of a usual lifetime, when lifetimes are exponential: a start behind one share is
//!   worth 1/17 of a free one, behind two 1/153. So shares gather where room is lost already, and what
//!   is nearly empty is left to drain.
//! - Fullness, `(units in use / units)^1.5`, decides where the starts do not: the fuller card.
//!
//! Beside that counts what still fits on the card at prices of the kinds ([`Values::worth`]): both weigh
//! the same on an empty card. The starts alone do not see that some layouts fill a card and others leave
//! a unit over, the prices alone not that a share in the way will go.
//!
//! A choice costs what the card is worth before, less what it is worth after. The idea of charging a
//! choice with the requests that it shuts out is that of fragmentation gradient descent (Weng et al.,
//! "Beware of Fragmentation", USENIX ATC 2023) and of separable routing in loss networks (Krishnan and
//! Ott, "State-dependent routing for telephone traffic", 1986).
//!
//! Integers throughout: the same card and the same mix give the same worth everywhere.

mod fill;
#[cfg(test)]
mod tests;

pub use fill::{Asked, fill};
pub use gpudesk_geometry::{Geometry, Kind, Mode, Placed};

/// An exponential time of this rate, in lifetimes of a share, passes before a start is wanted.
const HASTE: u64 = 16;
/// Fixed point of the chances.
const CHANCE: i64 = 1 << 20;
/// Fixed point of fractions of a card.
const FRACTION: u64 = 1 << 12;
/// What a full card gains, in thousandths of what an empty one is worth.
const FULLNESS: i128 = 400;

/// All cards of the estate, as [`Values::scarce`] counts them.
pub const ALL_CARDS: u64 = 1 << 10;

/// How card states of one geometry are valued under one mix.
#[derive(Clone, Debug)]
pub struct Values {
    geometry: Geometry,
    /// Weight of a start, by kind.
    weights: Vec<i64>,
    /// Chance that a start behind so many shares comes free in time.
    chances: Vec<i64>,
    /// Worth of an empty card.
    empty: i64,
}

/// The chance of each number of shares in the way, down to none at all.
fn chances() -> Vec<i64> {
    let mut chance = CHANCE;
    let mut all = vec![];
    for j in 1..=u64::from(u8::MAX) {
        all.push(chance);
        if chance == 0 {
            break;
        }
        chance = chance * signed(j) / signed(HASTE + j);
    }
    all
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i32) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

impl Values {
    /// For cards of a geometry. `wanted` counts requests by kind, and `total` those for all cards of the
    /// estate, so that costs on different cards compare; `whole` is the size of the card in any unit
    /// that the estate shares, MiB say. Kinds past the end of `wanted` are not wanted. When nothing is
    /// wanted of such cards every kind is, equally.
    pub fn new(geometry: Geometry, wanted: &[u64], total: u64, whole: u64) -> Self {
        Self::scarce(geometry, wanted, total, whole, &[])
    }

    /// As [`Values::new`], where not every card of the estate serves each kind: `served` says for each
    /// on which part of them its requests can go, in [`ALL_CARDS`]ths. What few cards can serve
    /// weighs more on those.
    pub fn scarce(geometry: Geometry, wanted: &[u64], total: u64, whole: u64, served: &[u64]) -> Self {
        let known = geometry.kinds.iter().zip(wanted).any(|(_, count)| *count > 0);
        let (nothing, one) = (0, 1);
        let weights = geometry.kinds.iter().enumerate().map(|(position, kind)| {
            let count = if known { wanted.get(position).unwrap_or(&nothing) } else { &one };
            let total = if known { total.max(1) } else { u64::try_from(geometry.kinds.len()).unwrap_or(1) };
            let mode = geometry.mode_of(kind);
            let (part, all) = match mode.slices {
                Some(slices) if kind.slices > 0 => (unsigned(kind.slices), unsigned(slices)),
                _ if kind.starts.is_empty() => (1, unsigned(geometry.holds(kind))),
                _ => (unsigned(kind.size), unsigned(mode.units)),
            };
            let fraction = u128::from(FRACTION * part / all.max(1)).pow(3);
            // 32 bits of fraction each, and 36 in the fraction's cube; 20 are left.
            let share = (u128::from(*count) << 32) / u128::from(total);
            let share = share.min(1 << 32);
            let fourth_root = (share << 92).isqrt().isqrt();
            let share = ((share * fourth_root) << 1).isqrt();
            let served = u128::from(served.get(position).copied().unwrap_or(ALL_CARDS).max(1));
            let weight = ((share * fraction * u128::from(whole.min(1 << 40))) >> 38) / served;
            i64::try_from(weight.min(1 << 40)).unwrap_or(i64::MAX)
        });
        let weights = weights.collect();
        let mut values = Self { geometry, weights, chances: chances(), empty: 0 };
        values.empty = values.value(&[]);
        values
    }

    /// The geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// What a card with these shares is worth.
    pub fn value(&self, placed: &[Placed]) -> i64 {
        let room = self.geometry.room(placed);
        let mut sum = 0i128;
        let mut starts = vec![];
        for (position, (kind, weight)) in self.geometry.kinds.iter().zip(&self.weights).enumerate() {
            if *weight == 0 {
                continue;
            }
            let most = self.geometry.most(kind);
            let found = if room.mode.is_some_and(|mode| mode != kind.mode) {
                i64::from(most) * self.chance(placed.len())
            } else if kind.starts.is_empty() {
                let position = u16::try_from(position).unwrap_or(u16::MAX);
                let free = self.geometry.more(placed, position).min(most);
                i64::from(free) * self.chance(0) + i64::from(most - free) * self.chance(1)
            } else {
                self.starts(placed, position, &mut starts);
                starts.iter().rev().take(usize::try_from(most).unwrap_or(0)).sum()
            };
            sum += i128::from(found) * i128::from(*weight);
        }
        let open = i64::try_from(sum / i128::from(CHANCE)).unwrap_or(i64::MAX);
        open + self.fullness(room)
    }

    /// The value, in a unit in which that of an empty card is `whole`, and what still fits at these
    /// prices by kind, which are in the same unit.
    pub fn worth(&self, placed: &[Placed], whole: u64, asked: &[Asked]) -> i64 {
        let starts = i128::from(self.value(placed)) * i128::from(whole) / i128::from(self.empty.max(1));
        i64::try_from(starts).unwrap_or(i64::MAX).saturating_add(fill(&self.geometry, placed, asked))
    }

    /// What it costs to put a share on a card with these: never compare across mixes.
    pub fn cost(&self, placed: &[Placed], share: Placed) -> i64 {
        let mut after = placed.to_vec();
        after.push(share);
        self.value(placed) - self.value(&after)
    }

    fn chance(&self, in_the_way: usize) -> i64 {
        self.chances.get(in_the_way).copied().unwrap_or(0)
    }

    /// The chance of each start of a kind, ascending.
    fn starts(&self, placed: &[Placed], position: usize, into: &mut Vec<i64>) {
        into.clear();
        let Some(kind) = self.geometry.kinds.get(position) else { return };
        let room = self.geometry.room(placed);
        let own = placed.iter().filter(|share| usize::from(share.kind) == position).count();
        let mode = self.geometry.mode_of(kind);
        let full = mode.slices.is_some_and(|all| room.slices + kind.slices > all)
            || !mode.engines.hold(room.engines, kind.engines)
            || i32::try_from(own).is_ok_and(|own| own >= kind.max_count);
        for start in &kind.starts {
            // Free, and yet beyond what the card may hold: one of the others has to go first.
            let in_the_way = self.geometry.in_the_way(placed, kind, *start).max(usize::from(full));
            into.push(self.chance(in_the_way));
        }
        into.sort_unstable();
    }

    fn fullness(&self, room: gpudesk_geometry::Room) -> i64 {
        let Some(mode) = room.mode.and_then(|mode| self.geometry.modes.get(usize::from(mode))) else {
            return 0;
        };
        let (used, all) = (i128::from(room.units.max(0)), i128::from(mode.units.max(1)));
        let bent = ((used.min(all).pow(3) << 40) / all.pow(3)).isqrt();
        i64::try_from((i128::from(self.empty) * FULLNESS * bent / 1000) >> 20).unwrap_or(0)
    }
}
