//! Many requests at once: which shares on which cards, with as few cards as can be.
//!
//! The cards are filled as a cutting stock problem (Gilmore and Gomory, "A linear programming approach
//! to the cutting-stock problem", 1961):
//!
//! ```text
//!  wanted, cards ─▶ linear program over layouts ◀─▶ best layout at these prices (pricing)
//!                        │ whole numbers of cards
//!                        ▼
//!                 the rest again, until nothing is left ─▶ a few other roundings ─▶ the best plan
//! ```
//!
//! The linear program gives a bound: a plan that meets it is optimal, and the search ends. Pure, and the
//! same input gives the same plan.

mod pricing;
mod program;
mod rounding;
mod simplex;
#[cfg(test)]
mod tests;

use crate::lookahead::{Geometry, Placed};

/// Cards that are alike: of one geometry, with the same shares on them.
#[derive(Clone, Debug)]
pub struct Class<'a> {
    /// What they offer.
    pub geometry: &'a Geometry,
    /// What is on each.
    pub placed: &'a [Placed],
    /// How many there are.
    pub count: u32,
    /// What it costs to use one: 1 for an empty card, 0 for one that is in use anyway.
    pub cost: u32,
    /// For each request shape the kind that serves it here; `None` where none does.
    pub serves: &'a [Option<u16>],
}

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// How many requests of this shape.
    pub count: u32,
    /// What one is worth when not all fit, in slices say.
    pub worth: u32,
}

/// A card with what the plan adds to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Position of its class.
    pub class: usize,
    /// How many cards get this.
    pub times: u32,
    /// What is added: position of the request shape, and the share. Each share is legal when those
    /// before it are placed.
    pub adds: Vec<(usize, Placed)>,
}

/// Which shares go on which cards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Cards that get something.
    pub cards: Vec<Planned>,
    /// Requests of each shape that found no room.
    pub unmet: Vec<u32>,
    /// Sum of the costs of the cards.
    pub cost: u64,
    /// No plan costs less, when all requests fit.
    pub least: u64,
}

/// The best plan found: first the most worth placed, then the least cost.
pub fn plan(classes: &[Class<'_>], want: &[Want]) -> Plan {
    rounding::plan(classes, want)
}

/// What one request more of each shape would cost where these cards are all that there is: what others
/// lose by it, its own `worth` at most, and nothing where there is room for all. The mean over several
/// demands, each by shape.
pub(crate) fn prices(classes: &[Class<'_>], worth: &[f64], demands: &[Vec<u32>]) -> Vec<f64> {
    program::mean_prices(classes, worth, demands)
}
