//! Where a desktop runs and which shares of which cards it gets. Pure: no clock, no client.
//!
//! ```text
//!  GpuNode ──▶ facts ─┐          ┌─▶ ranking per demand ─▶ best node ─▶ Placed
//!  Desktop ─▶ claims ─┼─▶ estate ┤     ▲ one verdict per node, judged anew when the node has changed
//!  demands ─▶ mix ────┘          └─▶ fit on a node = filters, cards, functions, CPUs and memory
//!                │                     ▲
//!                └─▶ price list ───────┘ worked out aside
//! ```
//!
//! A decision depends on what is there, taken and asked for, and on the [`prices::PriceList`] in use, not on
//! the order of events. With nobody waiting a list, too, depends on nothing else. While desktops wait, prices
//! are those of some moment: up to one change in 32 cards old, and a second where they are worked out aside
//! ([`Snapshot::pricing_work`]).
//! [`score::Score`] is the policy, [`filters::FILTERS`] and [`fit`] are what must hold,
//! [`Snapshot::explain`] says why a desktop waits.
//!
//! [`Snapshot::place`] solves no program and moves nobody in thought; [`prices::PricingWork::solve`],
//! [`Snapshot::think`], [`Snapshot::count`], [`need`] and [`moves`] do, and belong on a copy that
//! [follows](Snapshot::follow).
#![forbid(unsafe_code)]

pub mod affinity;
pub mod batch;
pub mod build;
pub mod cards;
pub mod compute;
pub mod decide;
pub mod estate;
pub mod explain;
pub mod facts;
pub mod filters;
pub mod fit;
pub mod fragments;
pub mod functions;
pub mod links;
pub mod lookahead;
pub mod mix;
pub mod moves;
pub mod need;
pub mod occupancy;
pub mod prices;
pub mod ranking;
pub mod request;
pub mod reserve;
pub mod score;
pub mod shape;
pub mod snapshot;
pub mod starving;
pub mod state;
pub mod tables;
#[cfg(test)]
mod tests;
pub mod worth;

pub use build::Built;
pub use compute::Limits;
pub use decide::{NoRoom, Placed};
pub use explain::Explanation;
pub use moves::Move;
pub use request::Request;
pub use reserve::Reservation;
pub use snapshot::{Change, Snapshot};
